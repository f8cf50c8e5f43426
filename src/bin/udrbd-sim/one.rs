//! One seed: what was drawn, what happened, and the smallest schedule that still fails.

use std::fmt::Write as _;

use udrbd::engine::fault::Fault;
use udrbd::sim::{draw, plan::Seconds, run, shrink};

/// Runs that a shrink may play.
pub const SHRINK_RUNS: u32 = 4000;

/// Plays a seed; true when it was sound.
pub fn run(seed: u64, inject: Option<Fault>, trace: bool, shrink: bool) -> (bool, String) {
    let plan = draw::plan(seed);
    let mut out = format!("{}", plan.params);
    let outcome = run::run(&plan, inject, trace);
    if let Some(lines) = &outcome.trace {
        out.push_str(lines);
    }
    let s = &outcome.stats;
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} s virtual, {} requests ({} ended well), {} faults, {} crashes, {} cuts, {} resyncs, {} split brains; digest {:016x}",
        Seconds(s.virtual_ns),
        s.requests,
        s.operations,
        s.faults,
        s.crashes,
        s.cuts,
        s.resyncs,
        s.split_brains,
        outcome.digest
    );
    match &outcome.violation {
        None => out.push_str("sound\n"),
        Some(v) => {
            let _ = writeln!(out, "VIOLATION at {} s, {}: {}", Seconds(v.at), v.checker.name(), v.text);
        }
    }
    if shrink && let Some(small) = shrink::shrink(&plan, inject, SHRINK_RUNS) {
        let _ = writeln!(
            out,
            "\nshrunk from {} to {} steps in {} runs (dice {}):",
            plan.steps.len(),
            small.plan.steps.len(),
            small.runs,
            small.plan.params.dice
        );
        for step in &small.plan.steps {
            let _ = writeln!(out, "{step}");
        }
        if let Some(v) = &small.outcome.violation {
            let _ = writeln!(out, "VIOLATION at {} s, {}: {}", Seconds(v.at), v.checker.name(), v.text);
        }
        if trace {
            out.push_str("\ntrace of the shrunk schedule:\n");
            out.push_str(small.outcome.trace.as_deref().unwrap_or_default());
        }
    }
    (outcome.violation.is_none(), out)
}
