//! Plays cells of the matrix with pairs of nodes, and compares what came out.

#![expect(clippy::print_stdout, reason = "a line for every cell: the matrix takes its time")]

use std::fmt::Write as _;

use xtask::harness::Verdict;
use xtask::lab::drbd::{Conf, compare_replicas, noise};
use xtask::lab::{Lab, LabError};

use crate::bench::{self, Bench, PAIRS, alone, asked, decided, letters, pair_name, until};
use crate::cells::{self, Cell};
use crate::side::{Side, Told};

/// What came out of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    /// In words, for the table: who survived, or that nobody decided.
    survivor: &'static str,
    /// What each node says in the end.
    told: [Told; 2],
    /// Generation identifiers as letters: equal ones have equal letters.
    generations: [String; 2],
}

impl Decision {
    fn words(&self) -> String {
        let node = |n: usize| {
            let Told { cstate, role, dstate } = &self.told[n];
            // Which of two that part notices first, and gives up, is a matter of time.
            let cstate = if alone(&self.told[n]) { "parted" } else { cstate };
            format!("{cstate} {role} {dstate} {}", self.generations[n])
        };
        format!("{}: {} — {}", self.survivor, node(0), node(1))
    }
}

fn conf(cell: &Cell, kernels: [bool; 2], lab: &Lab) -> Conf {
    let mut conf = bench::conf(kernels, lab);
    let zero = match cell.zero {
        "discard-first" => format!("discard-node-{}", conf.hosts[0].name),
        "discard-second" => format!("discard-node-{}", conf.hosts[1].name),
        zero => zero.to_owned(),
    };
    conf.net.push(format!("after-sb-0pri {zero};"));
    conf.net.push(format!("after-sb-1pri {};", cell.one));
    conf.net.push(format!("after-sb-2pri {};", cell.two));
    conf
}

fn play(cell: &Cell, seed: u64, sides: &[Side<'_>; 2], conf: &Conf) -> Result<Decision, LabError> {
    // Both down before one is up: it would meet the other one with the settings of the last cell.
    for side in sides {
        side.configure(conf)?;
        side.admin_all(&["down r0", "create-md --force r0"])?;
    }
    for side in sides {
        side.admin("up r0")?;
    }
    until(sides, "two new nodes", |told| told.iter().all(|t| t.cstate == "Connected"))?;
    // Not by skipping the first sync: what the last cell left on the disks differs.
    sides[0].admin("primary --force r0")?;
    until(sides, "two good nodes", decided)?;
    sides[0].admin("secondary r0")?;
    for side in sides {
        side.admin("disconnect r0")?;
    }
    let data = [noise(seed * 2, 4096), noise(seed * 2 + 1, 4096)];
    for place in [0, 1] {
        let side = &sides[place];
        side.admin("primary r0")?;
        if cell.changed[place] {
            // Different amounts, so that the least is known.
            for block in 0..=place as u64 {
                side.write(((place as u64 + 1) << 20) + block * 4096, &data[place])?;
            }
        }
        if !cell.primary[place] {
            side.admin("secondary r0")?;
        }
    }
    let before = [sides[0].generations()?, sides[1].generations()?];
    for side in sides {
        side.admin("connect r0")?;
    }
    let told = until(sides, "a decision", decided)?;
    let after = [sides[0].generations()?, sides[1].generations()?];
    if told[0].cstate == "Connected" {
        for side in sides {
            side.admin("down r0")?;
        }
        compare_replicas(sides[0].image(), sides[1].image())?;
    }
    let survivor = match [after[0][0], after[1][0]] {
        [a, b] if a != b => "nobody",
        [a, _] if a == before[0][0] => "first",
        [a, _] if a == before[1][0] => "second",
        _ => "a new generation",
    };
    // S is what both descend from.
    let known = vec![(0, '0'), (before[0][0], 'A'), (before[1][0], 'B'), (before[0][1], 'S')];
    Ok(Decision { survivor, told, generations: letters(known, &after) })
}

/// The cells of this run: all, or every so-manyth.
fn chosen() -> Vec<(u64, Cell)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let step = number("UDRBD_POLICIES_STEP").unwrap_or(1).max(1);
    let from = number("UDRBD_POLICIES_FROM").unwrap_or(0);
    (1..).zip(cells::all()).skip(from).step_by(step).collect()
}

/// The matrix: one case, because its cells share the booted nodes.
pub fn matrix(bench: &mut Bench) -> Result<(), Verdict> {
    if !asked("UDRBD_POLICIES") {
        return Err(Verdict::Skipped(String::from("played by `cargo xtask policies` only")));
    }
    if let Some(reason) = &bench.udrbd_missing {
        return Err(Verdict::Skipped(reason.clone()));
    }
    let chosen = chosen();
    if chosen.is_empty() {
        return Err(Verdict::Failed(String::from("no cell of the matrix was chosen")));
    }
    let mut results: Vec<Vec<String>> = vec![Vec::new(); chosen.len()];
    let mut survivors = vec![""; chosen.len()];
    for kernels in PAIRS {
        let first = conf(&chosen[0].1, kernels, &bench.lab);
        let sides = bench.sides(kernels, &first)?;
        for (at, (seed, cell)) in chosen.iter().enumerate() {
            let words = match play(cell, *seed, &sides, &conf(cell, kernels, &bench.lab)) {
                Ok(decision) => {
                    if kernels == [true, true] {
                        survivors[at] = decision.survivor;
                    }
                    decision.words()
                }
                Err(why) => format!("failed: {why}"),
            };
            println!("{} | {cell} | {words}", pair_name(kernels));
            results[at].push(words);
        }
        // What a node that is stuck refuses is in the results already; the next pair begins with another `down`.
        for side in &sides {
            drop(side.admin("down r0"));
        }
    }
    report(&chosen, &results, &survivors)
}

fn report(chosen: &[(u64, Cell)], results: &[Vec<String>], survivors: &[&str]) -> Result<(), Verdict> {
    let same = |list: &[String]| list.iter().all(|words| *words == list[0] && !words.starts_with("failed"));
    let alike = results.iter().filter(|list| same(list)).count();
    let mut table = format!(
        "# Split brain: what the policies decide\n\nWritten by `cargo xtask policies`. Both nodes were Primary one after the other while \
         they were parted; *changed*: who wrote; *Primary*: who is when they meet again. Each line was played by a pair of kernels, by \
         both pairs of a kernel and udrbd, and by two udrbd: the same survivor, states and relation of generation identifiers in \
         {alike} of {} lines.\n\n| Policy | Primary | Changed | Survivor | All pairs alike |\n|---|---|---|---|---|\n",
        chosen.len()
    );
    let mut complaints = String::new();
    for (((_, cell), list), survivor) in chosen.iter().zip(results).zip(survivors) {
        let yes = if same(list) { "yes" } else { "**no**" };
        let _ = writeln!(table, "| {cell} | {survivor} | {yes} |");
        if !same(list) {
            let _ = writeln!(complaints, "{cell}");
            for (pair, words) in PAIRS.iter().zip(list) {
                let _ = writeln!(complaints, "    {}: {words}", pair_name(*pair));
            }
        }
    }
    if let Some(path) = std::env::var_os("UDRBD_POLICIES_WRITE") {
        std::fs::write(&path, &table).map_err(|err| LabError::io("write the table", &err))?;
    }
    if complaints.is_empty() { Ok(()) } else { Err(Verdict::Failed(complaints)) }
}
