//! Every seeded bug, looked for with the seeds that continuous integration plays: which checker finds it, and how soon.
//!
//! Each thread takes one bug after the other and plays seeds in order, up to the first that is not sound with the bug and is
//! sound without it.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use udrbd::engine::fault::Fault;
use udrbd::sim::world::Violation;
use udrbd::sim::{draw, run, shrink};

use crate::known::is_known;

/// Runs that shrinking one finding may play.
const SHRINK_RUNS: u32 = 1500;

/// Schedules made by hand that notice what drawn runs reach only rarely.
const STORIES: [&str; 6] = [
    include_str!("../../sim/scenarios/congestion.rs"),
    include_str!("../../sim/scenarios/policies.rs"),
    include_str!("../../sim/scenarios/suspended.rs"),
    include_str!("../../sim/scenarios/two_primaries.rs"),
    include_str!("../../sim/scenarios/writes.rs"),
    include_str!("../../sim/crash_states/tests/mod.rs"),
];

/// Whether a story injects it, and so must notice it.
fn has_story(fault: Fault) -> bool {
    let name = format!("Fault::{fault:?}");
    let whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric());
    STORIES.iter().any(|text| text.split(&name).skip(1).any(whole))
}

struct Found {
    fault: Fault,
    /// First seed that finds it, and what it says.
    first: Option<(u64, Violation)>,
    /// Steps of the shrunk schedule.
    steps: Option<usize>,
}

/// Looks for all of them (or for one); true when all were found.
pub fn run(seeds: &Range<u64>, only: Option<Fault>, jobs: usize, shrink_all: bool) -> (bool, String) {
    let faults: Vec<Fault> = only.map_or_else(|| Fault::ALL.to_vec(), |only| vec![only]);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = look(*fault, seeds, shrink_all);
                    let what = one.first.as_ref().map_or_else(
                        || String::from("NOT FOUND"),
                        |(seed, v)| format!("seed {seed}, {}: {}", v.checker.name(), v.text),
                    );
                    let steps = one.steps.map(|steps| format!(" ({steps} steps)")).unwrap_or_default();
                    eprintln!("{:28} {what}{steps}", fault.name());
                    if let Ok(mut found) = found.lock() {
                        found.push(one);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_default();
    found.sort_by_key(|f| f.fault);
    let noticed = |f: &Found| f.first.is_some() || has_story(f.fault);
    (found.len() == faults.len() && found.iter().all(noticed), table(&found, seeds))
}

fn look(fault: Fault, seeds: &Range<u64>, shrinks: bool) -> Found {
    let first = seeds.clone().filter(|seed| !is_known(*seed)).find_map(|seed| {
        let violation = run::seed(seed, Some(fault), false).violation?;
        run::seed(seed, None, false).violation.is_none().then_some((seed, violation))
    });
    let steps = first.as_ref().filter(|_| shrinks).and_then(|(seed, _)| {
        shrink::shrink(&draw::plan(*seed), Some(fault), SHRINK_RUNS).map(|small| small.plan.steps.len())
    });
    Found { fault, first, steps }
}

fn table(found: &[Found], seeds: &Range<u64>) -> String {
    let mut out = String::new();
    let missed = found.iter().filter(|f| f.first.is_none()).count();
    let told = found.iter().filter(|f| f.first.is_none() && has_story(f.fault)).count();
    let shrunk = found.iter().any(|f| f.steps.is_some());
    let (shrink, steps) =
        if shrunk { (" --shrink-all", " *Steps*: what is left of the schedule when it is shrunk.") } else { ("", "") };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "# Seeded bugs\n\nMade by `cargo xtask sim --mutants{shrink} --write docs/seeded-bugs.md`. {} mistakes that the engine \
         can be told to make (src/engine/fault.rs), {} found by seeds {}..{} as they are drawn, {told} by a schedule made by \
         hand (`src/sim/scenarios`, `src/sim/crash_states`; every test run plays these). *Seeds*: how many had to be played.{steps}\n",
        found.len(),
        found.len() - missed,
        seeds.start,
        seeds.end
    );
    let _ = writeln!(out, "| Bug | What is done wrong | Found by | Seeds | Steps |\n|---|---|---|---|---|");
    for f in found {
        let (checker, needed) = match &f.first {
            Some((seed, v)) => (v.checker.name(), (seed - seeds.start + 1).to_string()),
            None if has_story(f.fault) => ("a story", String::from("-")),
            None => ("-", String::from("**not found**")),
        };
        let steps = f.steps.map_or_else(|| String::from("-"), |n| n.to_string());
        let _ = writeln!(out, "| {} | {} | {checker} | {needed} | {steps} |", f.fault.name(), f.fault.text());
    }
    let mut needed: Vec<u64> =
        found.iter().filter_map(|f| f.first.as_ref()).map(|(seed, _)| seed - seeds.start + 1).collect();
    needed.sort_unstable();
    let mut sizes: Vec<usize> = found.iter().filter_map(|f| f.steps).collect();
    sizes.sort_unstable();
    if let (Some(median), Some(most)) = (needed.get(needed.len() / 2), needed.last()) {
        let _ = write!(out, "\nSeeds: {median} in the median, {most} at most.");
    }
    if let Some(median) = sizes.get(sizes.len() / 2) {
        let _ = write!(out, " Steps: {median} in the median.");
    }
    out.push('\n');
    out.push_str(
        "\nDefects that this engine had and that one run of many thousands reaches. A story injects each of them and notices it \
         (src/sim/scenarios).\n\n| Bug | What is done wrong |\n|---|---|\n",
    );
    for fault in Fault::MENDED {
        let _ = writeln!(out, "| {} | {} |", fault.name(), fault.text());
    }
    out
}
