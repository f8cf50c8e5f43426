//! Many seeds, on several threads: which of them were not sound, and the figures of all.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use udrbd::engine::fault::Fault;
use udrbd::sim::{draw, run};

use crate::figures::Figures;
use crate::known::is_known;

/// What to play.
pub struct Order {
    /// Seeds.
    pub seeds: Range<u64>,
    /// Mistake of both engines.
    pub inject: Option<Fault>,
    /// Threads.
    pub jobs: usize,
    /// Goes on for so long, from the first seed.
    pub minutes: Option<u64>,
    /// Plays each twice.
    pub twice: bool,
    /// Prints what was reached.
    pub coverage: bool,
}

/// Failures that are told in full.
const TOLD: usize = 50;

/// Plays them; true when all were sound.
pub fn run(order: &Order) -> (bool, String) {
    let begin = Instant::now();
    let next = AtomicU64::new(order.seeds.start);
    let end = if order.minutes.is_some() { u64::MAX } else { order.seeds.end };
    let deadline = order.minutes.map(|minutes| begin + Duration::from_secs(60 * minutes));
    let figures = Mutex::new(Figures::default());
    let failures = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let known = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..order.jobs {
            scope.spawn(|| {
                let mut mine = Figures::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || deadline.is_some_and(|at| Instant::now() >= at) {
                        break;
                    }
                    let finding = play(seed, order, &mut mine);
                    if finding.is_some() && order.inject.is_none() && is_known(seed) {
                        known.fetch_add(1, Ordering::Relaxed);
                    } else if let Some(text) = finding
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push((seed, text));
                        stop.store(failures.len() >= 10 * TOLD, Ordering::Relaxed);
                    }
                }
                if let Ok(mut all) = figures.lock() {
                    all.merge(&mine);
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_default();
    failures.sort();
    let figures = figures.into_inner().unwrap_or_default();
    let mut out = String::new();
    for (seed, text) in failures.iter().take(TOLD) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "seed {seed}: {text}");
    }
    let known = known.into_inner();
    if known > 0 {
        let _ = writeln!(out, "{known} open findings that are known (src/bin/udrbd-sim/known.txt)");
    }
    out.push_str(&figures.report(begin.elapsed(), order.jobs, failures.len()));
    if order.coverage {
        out.push_str(&figures.coverage());
    }
    (failures.is_empty(), out)
}

fn play(seed: u64, order: &Order, figures: &mut Figures) -> Option<String> {
    let plan = draw::plan(seed);
    let begin = Instant::now();
    let outcome = run::run(&plan, order.inject, false);
    figures.add(&plan, &outcome, begin.elapsed());
    if order.twice {
        let again = run::run(&plan, order.inject, false);
        if again.digest != outcome.digest {
            return Some(String::from("two runs of this seed had different traces"));
        }
    }
    outcome.violation.map(|v| format!("{} at {} ms: {}", v.checker.name(), v.at / 1_000_000, v.text))
}
