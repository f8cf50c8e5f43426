//! Figures of many runs.

use std::fmt::Write as _;
use std::time::Duration;

use udrbd::sim::coverage::{Coverage, Group, existing};
use udrbd::sim::plan::{Plan, Start};
use udrbd::sim::run::Outcome;

/// Sums, and what is needed for medians.
#[derive(Default)]
pub struct Figures {
    runs: u64,
    virtual_ns: u128,
    operations: Vec<u64>,
    requests: u64,
    faults: Vec<u64>,
    crashes: Vec<u64>,
    resyncs: Vec<u64>,
    cuts: u64,
    split_brains: u64,
    events: u64,
    two_volumes: u64,
    odd_starts: u64,
    busy: Duration,
    reached: Coverage,
}

fn median(list: &[u64]) -> u64 {
    let mut list = list.to_vec();
    list.sort_unstable();
    list.get(list.len() / 2).copied().unwrap_or(0)
}

fn sum(list: &[u64]) -> u64 {
    list.iter().sum()
}

impl Figures {
    /// Counts a run, which took `busy` of one processor.
    pub fn add(&mut self, plan: &Plan, outcome: &Outcome, busy: Duration) {
        let s = &outcome.stats;
        self.runs += 1;
        self.virtual_ns += u128::from(s.virtual_ns);
        self.operations.push(s.operations);
        self.requests += s.requests;
        self.faults.push(s.faults);
        self.crashes.push(s.crashes);
        self.resyncs.push(s.resyncs);
        self.cuts += s.cuts;
        self.split_brains += s.split_brains;
        self.events += s.events;
        self.two_volumes += u64::from(plan.params.volumes.len() > 1);
        let odd = matches!(plan.params.start, Start::SplitBrain | Start::Recreated | Start::OddFlags);
        self.odd_starts += u64::from(odd);
        self.busy += busy;
        self.reached.merge(&outcome.coverage);
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.virtual_ns += other.virtual_ns;
        self.operations.extend(&other.operations);
        self.requests += other.requests;
        self.faults.extend(&other.faults);
        self.crashes.extend(&other.crashes);
        self.resyncs.extend(&other.resyncs);
        self.cuts += other.cuts;
        self.split_brains += other.split_brains;
        self.events += other.events;
        self.two_volumes += other.two_volumes;
        self.odd_starts += other.odd_starts;
        self.busy += other.busy;
        self.reached.merge(&other.reached);
    }

    /// For people.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub fn report(&self, elapsed: Duration, jobs: usize, failures: usize) -> String {
        let mut out = String::new();
        let runs = self.runs.max(1);
        let busy = self.busy.as_secs_f64().max(1e-9);
        let hours = self.virtual_ns as f64 / 3.6e12;
        let operations = sum(&self.operations);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} runs, {failures} not sound; {:.0} s on {jobs} threads, {busy:.0} core-seconds",
            self.runs,
            elapsed.as_secs_f64()
        );
        let _ = writeln!(
            out,
            "{hours:.1} virtual hours ({:.0} times real time per core), {:.1} million events",
            hours * 3600.0 / busy,
            self.events as f64 / 1e6
        );
        let _ = writeln!(
            out,
            "{operations} client operations ({:.0} per core-second), of {} asked for",
            operations as f64 / busy,
            self.requests
        );
        let _ = writeln!(
            out,
            "{} faults, {} crashes and power cuts, {} cuts of the link, {} resyncs, {} split brains",
            sum(&self.faults),
            sum(&self.crashes),
            self.cuts,
            sum(&self.resyncs),
            self.split_brains
        );
        let _ = writeln!(
            out,
            "median run: {} operations, {} faults, {} crashes, {} resyncs; two volumes in {} %, odd beginnings in {} %",
            median(&self.operations),
            median(&self.faults),
            median(&self.crashes),
            median(&self.resyncs),
            100 * self.two_volumes / runs,
            100 * self.odd_starts / runs
        );
        for (group, what) in
            [(Group::Transition, "state transitions"), (Group::Rule, "handshake rules"), (Group::Packet, "packets")]
        {
            let all = existing(group).len();
            let missing = self.reached.unreached(group).len();
            let _ = write!(out, "{} of {all} {what}, ", all - missing);
        }
        out.truncate(out.trim_end_matches(", ").len());
        out.push_str(" reached\n");
        out
    }

    /// Everything that was reached, and what was not.
    pub fn coverage(&self) -> String {
        let mut out = String::new();
        let groups = [
            (Group::Transition, "State transitions"),
            (Group::Rule, "Handshake rules"),
            (Group::Request, "Outcomes of requests"),
            (Group::Command, "Outcomes of commands"),
            (Group::Packet, "Packets sent"),
            (Group::Fault, "Faults"),
        ];
        for (group, title) in groups {
            let _ = writeln!(out, "\n{title}\n");
            let _ = writeln!(out, "| what | times |\n|---|---|");
            for (name, count) in self.reached.group(group) {
                let _ = writeln!(out, "| {name} | {count} |");
            }
            let missing = self.reached.unreached(group);
            if !missing.is_empty() {
                let _ = writeln!(out, "\nNot reached: {}.", missing.join(", "));
            }
        }
        out
    }
}
