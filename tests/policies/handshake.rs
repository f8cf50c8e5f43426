//! The comparison of generation identifiers, rule by rule: identifiers and flags are written into the metadata of two nodes that are
//! down, then they meet. Every pair of a kernel and udrbd must name the same rule with the same result, and end in the same states
//! and generations as two kernels do.
//!
//! **Does not play**: the corrections for peers older than protocol 96, which no kernel here speaks; two nodes without any identifier
//! (kernels wait for each other for ever then); two Primaries of which one remembers a crash (no metadata leads there).

#![expect(clippy::print_stdout, reason = "a line for every meeting")]

use std::fmt::Write as _;

use xtask::harness::Verdict;
use xtask::lab::LabError;
use xtask::lab::drbd::Conf;

use crate::bench::{self, Bench, PAIRS, alone, asked, letters, pair_name, until};
use crate::side::{Side, Told};

/// What lets two nodes meet.
enum Scene {
    /// Both come up with this metadata.
    Prepared,
    /// With this metadata they are connected, one is Primary and suspends its I/O when the other one goes down; that one comes up
    /// again and remembers a crash.
    Frozen,
}

/// One meeting.
struct Meeting {
    /// What it is about, for the table.
    name: &'static str,
    scene: Scene,
    /// Of each node: current, bitmap and two of the history, each a letter, `X+` for a later sync UUID of X, 4 or 0; then what
    /// kind of disk it is.
    ids: [(&'static str, Disk); 2],
    /// The tie breaker of the connection decides which node gets which result.
    tie: bool,
    /// udrbd's sync identifier follows from the one that was corrected away, a kernel's is random (docs/differences.md): both are
    /// told as `+`.
    any_sync_id: bool,
}

#[derive(Clone, Copy)]
enum Disk {
    Good,
    Crashed,
    Inconsistent,
}
use Disk::{Crashed, Good, Inconsistent};

const fn prepared(name: &'static str, one: (&'static str, Disk), two: (&'static str, Disk)) -> Meeting {
    Meeting { name, scene: Scene::Prepared, ids: [one, two], tie: false, any_sync_id: false }
}

const MEETINGS: &[Meeting] = &[
    prepared("both just created", ("4:0:0:0", Inconsistent), ("4:0:0:0", Inconsistent)),
    prepared("one just created", ("4:0:0:0", Inconsistent), ("A:0:0:0", Good)),
    prepared("one without a current identifier", ("0:0:0:0", Inconsistent), ("A:0:0:0", Good)),
    prepared("equal", ("A:0:0:0", Good), ("A:0:0:0", Good)),
    prepared("equal, one crashed as Primary", ("A:0:0:0", Crashed), ("A:0:0:0", Good)),
    Meeting { tie: true, ..prepared("equal, both crashed", ("A:0:0:0", Crashed), ("A:0:0:0", Crashed)) },
    Meeting {
        scene: Scene::Frozen,
        ..prepared("equal, one still Primary, the other crashed", ("A:0:0:0", Good), ("A:0:0:0", Crashed))
    },
    Meeting {
        any_sync_id: true,
        ..prepared("source missed the end of a resync", ("A:B:D:0", Good), ("A:0:B:D", Good))
    },
    prepared("target has no sync identifier", ("A:B:D:0", Good), ("A:0:E:0", Good)),
    prepared("one generation behind", ("A:0:0:0", Good), ("B:A:0:0", Good)),
    prepared("sync identifier never arrived", ("A:0:0:0", Good), ("B:A+:A:0", Good)),
    prepared("two generations behind", ("A:0:0:0", Good), ("B:D:A:0", Good)),
    prepared("three generations behind", ("A:0:0:0", Good), ("B:D:E:A", Good)),
    prepared("split brain since a common generation", ("A:D:0:0", Good), ("B:D:0:0", Good)),
    prepared("split brain somewhere in the history", ("A:D:G:0", Good), ("B:E:G:H", Good)),
    prepared("split brain by empty histories", ("A:0:0:0", Good), ("B:0:0:0", Good)),
    prepared("unrelated", ("A:D:G:E", Good), ("B:0:H:0", Good)),
    prepared("equal, one Inconsistent", ("A:0:0:0", Inconsistent), ("A:0:0:0", Good)),
    prepared("the newer one Inconsistent", ("B:A:0:0", Inconsistent), ("A:0:0:0", Good)),
    prepared("split brain, one Inconsistent", ("A:D:0:0", Inconsistent), ("B:D:0:0", Good)),
    prepared("split brain by empty histories, one Inconsistent", ("A:0:0:0", Inconsistent), ("B:0:0:0", Good)),
];

/// The identifier that a word of [`Meeting::ids`] stands for.
fn id(word: &str) -> u64 {
    let (letter, later) = word.strip_suffix('+').map_or((word, 0), |letter| (letter, 1u64 << 48));
    let value = match letter.bytes().next() {
        Some(letter @ b'A'..=b'H') => 0x1234_5678_9ABC_0000 + u64::from(letter - b'A' + 1) * 0x0101_0000_0000_1110,
        Some(b'4') => 4,
        _ => 0,
    };
    value.wrapping_add(later)
}

fn set_gi(ids: &str, disk: Disk) -> String {
    let ids: Vec<String> = ids.split(':').map(|word| format!("{:016X}", id(word))).collect();
    let flags = match disk {
        Good => "1:1:0:0:0:0:0",
        Crashed => "1:1:1:0:0:0:0",
        Inconsistent => "0:0:0:0:0:0:0",
    };
    format!("{}:{flags}", ids.join(":"))
}

/// What came out of a meeting.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// Rule and result of each node; nothing where the other one had parted before it came to that.
    verdicts: [Option<(String, i32)>; 2],
    /// States and generations.
    end: String,
}

impl Outcome {
    fn words(&self) -> String {
        let node = |n: usize| match &self.verdicts[n] {
            Some((rule, result)) => format!("{rule}: {result}"),
            None => String::from("-"),
        };
        format!("{} / {}", node(0), node(1))
    }

    /// Equal, where both nodes of both pairs came to a verdict.
    fn is_like(&self, other: &Self) -> bool {
        let same = |n: usize| match (&self.verdicts[n], &other.verdicts[n]) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        let some = |it: &Self| it.verdicts.iter().any(Option::is_some);
        same(0) && same(1) && some(self) && some(other) && self.end == other.end
    }
}

fn meet(meeting: &Meeting, swap: bool, sides: &[Side<'_>; 2], conf: &Conf) -> Result<Outcome, LabError> {
    let order = if swap { [1, 0] } else { [0, 1] };
    let frozen = matches!(meeting.scene, Scene::Frozen);
    for (at, (ids, disk)) in meeting.ids.iter().enumerate() {
        let side = &sides[order[at]];
        let mut conf = conf.clone();
        if frozen && at == 0 {
            conf.disk.push(String::from("fencing resource-and-stonith;"));
            conf.handlers.push(String::from("fence-peer \"exit 1\";"));
        }
        side.configure(&conf)?;
        side.admin_all(&["down r0", "create-md --force r0"])?;
        side.drbdmeta(&format!("set-gi {}", set_gi(ids, if frozen { Good } else { *disk })))?;
    }
    if frozen {
        for side in sides {
            side.admin("up r0")?;
        }
        until(sides, "two equal nodes", settled)?;
        let (primary, other) = (&sides[order[0]], &sides[order[1]]);
        primary.admin("primary r0")?;
        // Not a graceful end, which would be none to suspend anything for.
        other.admin("disconnect --force r0")?;
        other.admin("down r0")?;
        until(sides, "a Primary alone", |told| alone(&told[order[0]]))?;
        let (ids, disk) = meeting.ids[1];
        other.drbdmeta(&format!("set-gi {}", set_gi(ids, disk)))?;
        other.forget_log()?;
        primary.forget_log()?;
        other.admin("up r0")?;
    } else {
        for side in sides {
            side.forget_log()?;
        }
        for side in sides {
            side.admin("up r0")?;
        }
    }
    let told = until(sides, "the end of a meeting", settled)?;
    let mut known = vec![(0, '0'), (4, '4')];
    known.extend(('A'..='H').map(|letter| (id(&letter.to_string()), letter)));
    known.extend(('A'..='H').zip('S'..='Z').map(|(letter, later)| (id(&format!("{letter}+")), later)));
    let generations = [sides[0].generations()?, sides[1].generations()?];
    let letters = letters(known, &order.map(|n| generations[n]));
    let letters = letters.map(|text| if meeting.any_sync_id { text.replace(['a', 'T'], "+") } else { text });
    let node = |at: usize| {
        let Told { cstate, role, dstate } = &told[order[at]];
        // Which of two that part notices first, and gives up, is a matter of time.
        let cstate = if alone(&told[order[at]]) { "parted" } else { cstate };
        format!("{cstate} {role} {dstate} {}", letters[at])
    };
    let mut ends = [node(0), node(1)];
    let mut verdicts = [sides[order[0]].verdict()?, sides[order[1]].verdict()?];
    if meeting.tie {
        verdicts.sort();
        ends.sort();
    }
    Ok(Outcome { verdicts, end: ends.join(" — ") })
}

/// Parted, one of them for good; or connected, of one mind, and no resync runs.
fn settled(told: &[Told; 2]) -> bool {
    let mirrored = || match (told[0].dstate.split_once('/'), told[1].dstate.split_once('/')) {
        (Some((own, peer)), Some((other_own, other_peer))) => own == other_peer && peer == other_own,
        _ => false,
    };
    (told.iter().all(alone) && told.iter().any(|t| t.cstate == "StandAlone"))
        || (told.iter().all(|t| t.cstate == "Connected") && mirrored())
}

/// Every meeting, both ways round, with every pair.
pub fn rules(bench: &mut Bench) -> Result<(), Verdict> {
    if !asked("UDRBD_HANDSHAKE") {
        return Err(Verdict::Skipped(String::from("played by `cargo xtask handshake` only")));
    }
    if let Some(reason) = &bench.udrbd_missing {
        return Err(Verdict::Skipped(reason.clone()));
    }
    let mut results: Vec<Vec<Result<Outcome, String>>> = MEETINGS.iter().flat_map(|_| [vec![], vec![]]).collect();
    for kernels in PAIRS {
        let conf = bench::conf(kernels, &bench.lab);
        let sides = bench.sides(kernels, &conf)?;
        for (at, meeting) in MEETINGS.iter().enumerate() {
            for swap in [false, true] {
                let outcome = meet(meeting, swap, &sides, &conf).map_err(|why| why.to_string());
                let turned = if swap { ", turned" } else { "" };
                match &outcome {
                    Ok(it) => {
                        println!("{} | {}{turned} | {} | {}", pair_name(kernels), meeting.name, it.words(), it.end);
                    }
                    Err(why) => println!("{} | {}{turned} | failed: {why}", pair_name(kernels), meeting.name),
                }
                results[at * 2 + usize::from(swap)].push(outcome);
            }
        }
        // What a node that is stuck refuses is in the results already; the next pair begins with another `down`.
        for side in &sides {
            drop(side.admin("down r0"));
        }
    }
    report(&results)
}

fn report(results: &[Vec<Result<Outcome, String>>]) -> Result<(), Verdict> {
    let same = |list: &[Result<Outcome, String>]| match &list[0] {
        Ok(first) => list.iter().all(|it| it.as_ref().is_ok_and(|it| it.is_like(first))),
        Err(_) => false,
    };
    let alike = results.iter().filter(|list| same(list)).count();
    let mut table = format!(
        "# Handshake: what two nodes decide by their generation identifiers\n\nWritten by `cargo xtask handshake`. Identifiers (current, \
         bitmap, history; A+ is a later sync identifier of A) and flags were written into the metadata of two nodes, then they met. *Rule: \
         result* is what each node logs as `uuid_compare()` (1: source, -1: target, 2 and -2: with a full sync, 100: split brain; - : the \
         other node had given up before). Each line was played both ways round by two kernels, by both pairs of a kernel and udrbd, and by \
         two udrbd: the same rules, results, states and generations in {alike} of {}.\n\n\
         | Meeting | First node | Second node | Two kernels | All pairs alike | turned |\n|---|---|---|---|---|---|\n",
        results.len()
    );
    let mut complaints = String::new();
    for (meeting, both) in MEETINGS.iter().zip(results.chunks(2)) {
        let words = both[0][0].as_ref().map_or_else(|_| String::from("failed"), Outcome::words);
        let yes = |list: &[Result<Outcome, String>]| if same(list) { "yes" } else { "**no**" };
        let node = |n: usize| {
            let (ids, disk) = meeting.ids[n];
            let disk = match disk {
                Good => "",
                Crashed => ", crashed",
                Inconsistent => ", Inconsistent",
            };
            format!("{ids}{disk}")
        };
        let (one, other) = (yes(&both[0]), yes(&both[1]));
        let _ = writeln!(table, "| {} | {} | {} | {words} | {one} | {other} |", meeting.name, node(0), node(1));
        for (list, turned) in both.iter().zip(["", ", turned"]) {
            if !same(list) {
                let _ = writeln!(complaints, "{}{turned}", meeting.name);
                for (pair, it) in PAIRS.iter().zip(list) {
                    let _ = match it {
                        Ok(it) => writeln!(complaints, "    {}: {}: {}", pair_name(*pair), it.words(), it.end),
                        Err(why) => writeln!(complaints, "    {}: {why}", pair_name(*pair)),
                    };
                }
            }
        }
    }
    if let Some(path) = std::env::var_os("UDRBD_HANDSHAKE_WRITE") {
        std::fs::write(&path, &table).map_err(|err| LabError::io("write the table", &err))?;
    }
    if complaints.is_empty() { Ok(()) } else { Err(Verdict::Failed(complaints)) }
}
