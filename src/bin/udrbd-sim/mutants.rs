//! Every seeded bug, looked for with the seeds that continuous integration plays: which checker finds it, and how soon.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use udrbd::engine::fault::Fault;
use udrbd::sim::world::Violation;
use udrbd::sim::{draw, run, shrink};

use crate::known::is_known;
use crate::one::SHRINK_RUNS;

struct Found {
    fault: Fault,
    /// First seed that finds it, counted from the first one played, and what it says.
    first: Option<(u64, Violation)>,
    steps: Option<usize>,
}

/// Looks for all of them, in at most `seeds` seeds each; true when all were found.
pub fn run(from: u64, seeds: u64, jobs: usize, shrink_all: bool) -> (bool, String) {
    let mut found = Vec::new();
    for fault in Fault::ALL {
        let first = first(*fault, from, seeds, jobs);
        let steps = first.as_ref().filter(|_| shrink_all).and_then(|(seed, _)| {
            shrink::shrink(&draw::plan(*seed), Some(*fault), SHRINK_RUNS).map(|small| small.plan.steps.len())
        });
        eprintln!(
            "{:32} {}",
            fault.name(),
            first
                .as_ref()
                .map_or_else(|| String::from("NOT FOUND"), |(seed, v)| format!("{seed} {}", v.checker.name()))
        );
        found.push(Found { fault: *fault, first, steps });
    }
    (found.iter().all(|f| f.first.is_some()), table(&found, from, seeds))
}

/// The first seed at which it is found.
fn first(fault: Fault, from: u64, seeds: u64, jobs: usize) -> Option<(u64, Violation)> {
    let next = AtomicU64::new(from);
    let best: Mutex<Option<(u64, Violation)>> = Mutex::new(None);
    let limit = AtomicU64::new(from + seeds);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= limit.load(Ordering::Relaxed) {
                        break;
                    }
                    if is_known(seed) {
                        continue;
                    }
                    let Some(violation) = run::seed(seed, Some(fault), false).violation else { continue };
                    limit.fetch_min(seed, Ordering::Relaxed);
                    if let Ok(mut best) = best.lock()
                        && best.as_ref().is_none_or(|(other, _)| seed < *other)
                    {
                        *best = Some((seed, violation));
                    }
                }
            });
        }
    });
    best.into_inner().ok().flatten()
}

fn table(found: &[Found], from: u64, seeds: u64) -> String {
    let mut out = String::new();
    let missed = found.iter().filter(|f| f.first.is_none()).count();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "# Seeded bugs\n\nMade by `cargo xtask sim --mutants`, seeds from {from}, at most {seeds} for each bug. {} bugs, {} found.\n",
        found.len(),
        found.len() - missed
    );
    let _ = writeln!(
        out,
        "| bug | what is done wrong | checker that found it | seeds needed | steps when shrunk |\n|---|---|---|---|---|"
    );
    for f in found {
        let (checker, needed) = match &f.first {
            Some((seed, v)) => (v.checker.name(), (seed - from + 1).to_string()),
            None => ("none", String::from("not found")),
        };
        let steps = f.steps.map_or_else(|| String::from("-"), |n| n.to_string());
        let _ = writeln!(out, "| {} | {} | {checker} | {needed} | {steps} |", f.fault.name(), f.fault.text());
    }
    let mut sizes: Vec<usize> = found.iter().filter_map(|f| f.steps).collect();
    sizes.sort_unstable();
    if let Some(median) = sizes.get(sizes.len() / 2) {
        let _ = writeln!(out, "\nMedian of the shrunk schedules: {median} steps.");
    }
    out
}
