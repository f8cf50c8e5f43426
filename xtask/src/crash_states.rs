//! `cargo xtask crash-states`: the whole enumeration of metadata crash states, of which every test run looks at a share.
//!
//! Builds the tests of `src/sim/crash_states` fast and with every assertion, runs them with the full figures in the
//! environment, and makes a table of what they say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::packages;
use crate::test::tallied;

/// States of each scenario in the full run.
pub const STATES: u64 = 20_000;
/// Images of all scenarios for drbdmeta in the full run.
pub const IMAGES: u64 = 200;
/// Seeds from which the share of a test run is drawn: all of them were looked at, and no open finding is among them
/// (docs/testing.md).
pub const SEEDS: u64 = 90;
/// The first seed of the tests.
pub const SEED_VARIABLE: &str = "UDRBD_CRASH_SEED";

/// Scenarios that there are at least: fewer rows mean that the tests did not run.
const SCENARIOS: usize = 8;

/// What to look at.
pub struct Order {
    /// States of each scenario that must be attached.
    pub states: u64,
    /// Images for drbdmeta.
    pub images: u64,
    /// First seed.
    pub seed: u64,
    /// Install drbdmeta if it can be.
    pub install: bool,
}

/// What was looked at of one scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Row {
    states: u64,
    recovered: u64,
    blank: u64,
    images: u64,
    applied: u64,
}

/// What the tests said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    rows: BTreeMap<String, Row>,
    /// Why drbdmeta saw nothing.
    skipped: Option<String>,
}

/// The numbers of a text, in order.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

impl Table {
    /// Takes in a line of the tests' output.
    fn line(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix("skipped: ") {
            self.skipped = Some(reason.to_owned());
        } else if let Some((scenario, rest)) =
            line.strip_prefix("crash states: ").and_then(|rest| rest.split_once(": "))
        {
            if let [states, recovered, blank] = numbers(rest)[..] {
                let row = self.rows.entry(scenario.to_owned()).or_default();
                (row.states, row.recovered, row.blank) = (states, recovered, blank);
            }
        } else if let Some((scenario, rest)) =
            line.strip_prefix("crash images: ").and_then(|rest| rest.split_once(": "))
            && let [images, applied] = numbers(rest)[..]
        {
            let row = self.rows.entry(scenario.to_owned()).or_default();
            (row.images, row.applied) = (images, applied);
        }
    }

    fn sum(&self) -> Row {
        self.rows.values().fold(Row::default(), |sum, row| Row {
            states: sum.states + row.states,
            recovered: sum.recovered + row.recovered,
            blank: sum.blank + row.blank,
            images: sum.images + row.images,
            applied: sum.applied + row.applied,
        })
    }

    /// What is missing, if something is.
    fn complaint(&self, order: &Order) -> Option<String> {
        let short = |row: &Row| row.recovered < order.states || row.recovered + row.blank != row.states;
        if self.rows.len() < SCENARIOS {
            return Some(format!("{} scenarios told of themselves, there are {SCENARIOS}", self.rows.len()));
        }
        if let Some((name, row)) = self.rows.iter().find(|(_, row)| short(row)) {
            return Some(format!("{name}: {} of {} states recovered", row.recovered, row.states));
        }
        let images = self.sum().images;
        let told = self.skipped.is_some() || images >= order.images;
        (!told).then(|| format!("{images} images went through drbdmeta instead of {}", order.images))
    }

    fn print(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| scenario | states | recovered | no metadata yet | images through drbdmeta | with apply-al |"
        );
        let _ = writeln!(out, "|---|---|---|---|---|---|");
        let rows = self.rows.iter().map(|(name, row)| (name.as_str(), *row));
        for (name, row) in rows.chain([("all", self.sum())]) {
            let Row { states, recovered, blank, images, applied } = row;
            let seen = if self.skipped.is_some() {
                String::from("skipped | skipped")
            } else {
                format!("{images} | {applied}")
            };
            let _ = writeln!(out, "| {name} | {states} | {recovered} | {blank} | {seen} |");
        }
        out
    }
}

/// Looks at them; fails unless all were looked at and none is wrong.
pub fn run(order: &Order) -> ExitCode {
    if order.install
        && let Err(hint) = packages::ensure_those(|name| name == "drbd-utils")
    {
        println!("crash-states: {hint}");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["test", "--quiet", "--package", "udrbd", "--profile", "sim", "--no-default-features", "--lib"])
        .args(["--", "--show-output", "sim::crash_states::"])
        .env("UDRBD_CRASH_STATES", order.states.to_string())
        .env("UDRBD_CRASH_IMAGES", order.images.to_string())
        .env(SEED_VARIABLE, order.seed.to_string())
        .current_dir(xtask::tidy::root());
    println!("crash-states: building");
    let mut begin = Instant::now();
    let (mut table, mut said) = (Table::default(), String::new());
    let run = tallied(&mut command, |line| {
        if line.starts_with("running ") {
            begin = Instant::now();
            println!("crash-states: {} states of each scenario, {} images", order.states, order.images);
        }
        table.line(line.trim_end());
        said.push_str(line);
    });
    let (success, tally) = match run {
        Ok(done) => done,
        Err(error) => {
            eprintln!("crash-states: cannot run cargo: {error}");
            return ExitCode::from(2);
        }
    };
    if !success {
        print!("{said}");
    }
    print!("{}", table.print());
    println!("{} tests passed, {} failed; {} s", tally.passed, tally.failed, begin.elapsed().as_secs());
    if let Some(reason) = &table.skipped {
        println!("skipped: no image went through drbdmeta: {reason}");
    }
    let complaint = table.complaint(order);
    if let Some(complaint) = &complaint {
        println!("crash-states: {complaint}");
    }
    if success && complaint.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order = Order { states: 100, images: 2, seed: 0, install: false };

    fn told(blank: u64) -> Table {
        let mut table = Table::default();
        for scenario in 0..SCENARIOS {
            table.line(&format!("crash states: S{scenario}: 120 states, 110 recovered, {blank} without metadata yet"));
            table.line(&format!("crash images: S{scenario}: 4 the same to drbdmeta, 3 with apply-al"));
        }
        table
    }

    #[test]
    fn a_full_table_adds_up() {
        let table = told(10);
        assert_eq!(table.complaint(&ORDER), None);
        let sum = Row { states: 960, recovered: 880, blank: 80, images: 32, applied: 24 };
        assert_eq!(table.sum(), sum);
        assert!(table.print().contains("| all | 960 | 880 | 80 | 32 | 24 |"));
    }

    #[test]
    fn what_is_missing_is_noticed() {
        assert!(Table::default().complaint(&ORDER).is_some());
        assert!(told(9).complaint(&ORDER).is_some(), "one state is neither");
        assert!(told(10).complaint(&Order { states: 111, ..ORDER }).is_some());
        let mut table = told(10);
        assert!(table.complaint(&Order { images: 33, ..ORDER }).is_some());
        table.line("skipped: drbdmeta is not installed");
        assert_eq!(table.complaint(&Order { images: 33, ..ORDER }), None);
        assert!(table.print().contains("| skipped | skipped |"));
    }
}
