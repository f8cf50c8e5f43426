//! Plays cells of the matrix with pairs of nodes, and compares what came out.

#![expect(clippy::print_stdout, reason = "a line for every cell: the matrix takes its time")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use xtask::harness::{Case, Verdict};
use xtask::lab::drbd::{Conf, KernelNode, compare_replicas, noise};
use xtask::lab::{GuestOptions, Lab, LabError, check_available, wait_until};

use crate::cells::{self, Cell};
use crate::side::{DISK_BYTES, Side, Told, host, kernel_image, udrbd_image};
use crate::udrbd_node::UdrbdNode;

/// The only case: cells share the booted nodes.
pub const CASES: &[Case<Bench>] = &[Case { name: "policies::all_pairs_decide_alike", run: matrix }];

/// Which nodes are kernels.
const PAIRS: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];
fn pair_name(kernels: [bool; 2]) -> String {
    let name = |kernel: bool| if kernel { "kernel" } else { "udrbd" };
    format!("{}/{}", name(kernels[0]), name(kernels[1]))
}

/// How long two nodes may take to come to a decision and carry it out.
const DECIDED: Duration = Duration::from_secs(40);

/// The lab and two kernel nodes.
pub struct Bench {
    kernels: [KernelNode; 2],
    lab: Lab,
    udrbd_missing: Option<String>,
}

impl Bench {
    pub fn new() -> Result<Self, String> {
        if !asked() {
            return Err(String::from("played by `cargo xtask policies` only"));
        }
        check_available().map_err(|why| why.to_string())?;
        let make = || -> Result<Self, LabError> {
            let lab = Lab::new(2)?;
            let boot = |place: usize, nr: u8| {
                blank(&kernel_image(&lab, place))?;
                blank(&udrbd_image(&lab, place))?;
                KernelNode::new(&lab, lab.boot(nr, &GuestOptions::with_disks([kernel_image(&lab, place)]))?)
            };
            let (one, two) = std::thread::scope(|scope| {
                let other = scope.spawn(|| boot(1, 2));
                (boot(0, 1), other.join())
            });
            let two = two.map_err(|_panic| LabError::new("the thread that booted node 2 panicked"))?;
            Ok(Self { kernels: [one?, two?], lab, udrbd_missing: UdrbdNode::missing() })
        };
        make().map_err(|why| why.to_string())
    }

    pub fn after_failure(&mut self) -> String {
        let mut text = String::new();
        for node in &self.kernels {
            let _ = write!(text, "---- n{}\n{}", node.guest.nr(), node.report());
        }
        for name in ["u1", "u2"] {
            let _ = write!(text, "---- {name}\n{}", UdrbdNode::log_tail_of(&self.lab, name));
        }
        text
    }
}

fn blank(path: &Path) -> Result<(), LabError> {
    let make = || {
        let file = std::fs::File::options().write(true).create(true).truncate(true).open(path)?;
        file.set_len(DISK_BYTES)
    };
    make().map_err(|err| LabError::io(format_args!("make {}", path.display()), &err))
}

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
    let mut conf = Conf::new([host(kernels[0], 0, lab), host(kernels[1], 1, lab)]);
    let zero = match cell.zero {
        "discard-first" => format!("discard-node-{}", conf.hosts[0].name),
        "discard-second" => format!("discard-node-{}", conf.hosts[1].name),
        zero => zero.to_owned(),
    };
    conf.net.push(format!("after-sb-0pri {zero};"));
    conf.net.push(format!("after-sb-1pri {};", cell.one));
    conf.net.push(format!("after-sb-2pri {};", cell.two));
    conf.net.push(String::from("allow-two-primaries yes;"));
    conf.net.push(String::from("connect-int 1;"));
    // Otherwise half of the time of a cell is spent on looking whether two new sockets stay alive.
    conf.net.push(String::from("socket-check-timeout 5;"));
    conf
}

/// Waits until `so` holds of what both nodes say.
fn until(sides: &[Side<'_>; 2], what: &str, so: impl Fn(&[Told; 2]) -> bool) -> Result<[Told; 2], LabError> {
    wait_until(what, DECIDED, || {
        let told = [sides[0].told()?, sides[1].told()?];
        Ok(if so(&told) { Ok(told) } else { Err(format!("{told:?}")) })
    })
}

fn alone(told: &Told) -> bool {
    matches!(told.cstate.as_str(), "StandAlone" | "WFConnection")
}

/// Both parted and one of them for good, or both connected and good.
fn decided(told: &[Told; 2]) -> bool {
    let together = |t: &Told| t.cstate == "Connected" && t.dstate == "UpToDate/UpToDate";
    (told.iter().all(alone) && told.iter().any(|t| t.cstate == "StandAlone")) || told.iter().all(together)
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
    Ok(Decision { survivor, told, generations: letters(&before, &after) })
}

/// Names identifiers: S what both descend from, A and B what each had, other letters for what is new.
fn letters(before: &[[u64; 4]; 2], after: &[[u64; 4]; 2]) -> [String; 2] {
    let mut known = vec![(0, '0'), (before[0][0], 'A'), (before[1][0], 'B'), (before[0][1], 'S')];
    let mut next = 'a';
    [0, 1].map(|n| {
        let mut name = |id: u64| {
            if let Some((_, letter)) = known.iter().find(|(known, _)| *known == id) {
                return *letter;
            }
            let letter = next;
            known.push((id, letter));
            next = char::from(u8::try_from(next).unwrap_or(b'z').saturating_add(1));
            letter
        };
        after[n].map(&mut name).iter().collect()
    })
}

/// Whether `cargo xtask policies` runs this.
fn asked() -> bool {
    std::env::var_os("UDRBD_POLICIES").is_some()
}

/// The cells of this run: all, or every so-manyth.
fn chosen() -> Vec<(u64, Cell)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let step = number("UDRBD_POLICIES_STEP").unwrap_or(1).max(1);
    let from = number("UDRBD_POLICIES_FROM").unwrap_or(0);
    (1..).zip(cells::all()).skip(from).step_by(step).collect()
}

fn matrix(bench: &mut Bench) -> Result<(), Verdict> {
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
        let side = |place: usize| -> Result<Side<'_>, LabError> {
            if kernels[place] {
                return Ok(Side::Kernel(&bench.kernels[place], kernel_image(&bench.lab, place)));
            }
            let name = ["u1", "u2"][place];
            let node = UdrbdNode::start_as(&bench.lab, name, &first)?;
            Ok(Side::Udrbd(Box::new(node), udrbd_image(&bench.lab, place)))
        };
        let sides = [side(0)?, side(1)?];
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
