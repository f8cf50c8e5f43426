//! Which of the possible crash states of one step are looked at.
//!
//! Takes in the open sectors; gives out choices of values, each a map from sectors to the operation whose bytes they hold.
//! Metadata is chosen sector by sector, and sectors whose values are equal byte for byte do not count; if the number of
//! combinations allows it all of them are given. Otherwise: nothing, everything, each sector alone, all but each, and
//! random ones. Data writes join as wholes (none, all, random) and, in random choices, torn.

use std::collections::{BTreeMap, BTreeSet};

use super::medium::{Media, value};
use super::record::{Io, Key, OpNr, Recording};
use crate::engine::rng::Rng;

/// How much is looked at for each step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Up to this many combinations of metadata sectors all are taken.
    pub exhaustive: usize,
    /// Random ones otherwise.
    pub random: usize,
    /// Each is joined with data writes that are all lost, all kept, and something in between; otherwise with one of these.
    pub every_data_mode: bool,
}

/// A sector of metadata with the values that it may hold besides the durable one.
struct Open {
    key: Key,
    values: Vec<OpNr>,
}

pub(super) type Choice = BTreeMap<Key, OpNr>;

/// Sectors of metadata whose value matters.
fn open_meta(recording: &Recording, media: &Media) -> Vec<Open> {
    let mut open = Vec::new();
    for (key, ops) in &media.open {
        if !is_meta(recording, ops) {
            continue;
        }
        let zeroes: &[u8] = &[0; super::record::SECTOR];
        let bytes = |op: OpNr| value(recording, *key, op).unwrap_or(zeroes);
        let mut known = vec![media.durable.get(key).map_or(zeroes, |op| bytes(*op))];
        let mut values = Vec::new();
        // The newest of equals: it is the one that later rules speak of.
        for op in ops.iter().rev() {
            if !known.contains(&bytes(*op)) {
                known.push(bytes(*op));
                values.push(*op);
            }
        }
        if !values.is_empty() {
            open.push(Open { key: *key, values });
        }
    }
    open
}

fn is_meta(recording: &Recording, ops: &[OpNr]) -> bool {
    ops.iter().any(|op| matches!(recording.ops.get(*op as usize), Some(Io::Write { meta: true, .. })))
}

/// Data writes that are open, with their sectors.
fn open_data<'a>(recording: &Recording, media: &'a Media) -> Vec<(Key, &'a [OpNr])> {
    media.open.iter().filter(|(_, ops)| !is_meta(recording, ops)).map(|(key, ops)| (*key, &ops[..])).collect()
}

/// How the data writes end.
#[derive(Clone, Copy)]
enum DataMode {
    Lost,
    Kept,
    Whole,
    Torn,
}

fn add_data(choice: &mut Choice, data: &[(Key, &[OpNr])], mode: DataMode, rng: &mut Rng) {
    let coin = rng.next_u64();
    let kept: BTreeSet<OpNr> = match mode {
        DataMode::Whole => {
            let ops: BTreeSet<OpNr> = data.iter().flat_map(|(_, ops)| *ops).copied().collect();
            ops.into_iter().filter(|_| rng.next_u64() & 1 == 0).collect()
        }
        _ => BTreeSet::new(),
    };
    for (key, ops) in data {
        let pick = match mode {
            DataMode::Lost => None,
            DataMode::Kept => ops.last(),
            DataMode::Whole => ops.iter().rev().find(|op| kept.contains(op)),
            DataMode::Torn => {
                let index = usize::try_from(rng.next_u64() ^ coin).unwrap_or(0) % (ops.len() + 1);
                ops.get(index)
            }
        };
        if let Some(op) = pick {
            choice.insert(*key, *op);
        }
    }
}

/// Calls `f` with every choice; whether it was all that there are, as far as metadata goes.
pub(super) fn choices(
    recording: &Recording,
    media: &Media,
    effort: Effort,
    rng: &mut Rng,
    mut f: impl FnMut(Choice),
) -> bool {
    let open = open_meta(recording, media);
    let data = open_data(recording, media);
    let count = open.iter().try_fold(1_usize, |n, open| n.checked_mul(open.values.len() + 1));
    let exhaustive = count.filter(|n| *n <= effort.exhaustive);
    let base: Vec<Choice> = match exhaustive {
        Some(count) => (0..count).map(|index| numbered(&open, index)).collect(),
        None => sampled(&open, effort, rng),
    };
    for choice in base {
        if data.is_empty() {
            f(choice);
            continue;
        }
        let random = if rng.next_u64() & 1 == 0 { DataMode::Whole } else { DataMode::Torn };
        let modes = [DataMode::Lost, DataMode::Kept, random];
        let taken = if effort.every_data_mode {
            &modes[..]
        } else {
            let one = usize::try_from(rng.next_u64() % 3).unwrap_or(0);
            modes.get(one..=one).unwrap_or_default()
        };
        for mode in taken {
            let mut choice = choice.clone();
            add_data(&mut choice, &data, *mode, rng);
            f(choice);
        }
    }
    exhaustive.is_some()
}

/// The combination with this number.
fn numbered(open: &[Open], mut index: usize) -> Choice {
    let mut choice = Choice::new();
    for open in open {
        let digits = open.values.len() + 1;
        if let Some(op) = (index % digits).checked_sub(1).and_then(|i| open.values.get(i)) {
            choice.insert(open.key, *op);
        }
        index /= digits;
    }
    choice
}

fn sampled(open: &[Open], effort: Effort, rng: &mut Rng) -> Vec<Choice> {
    let newest = |open: &Open| open.values.first().map(|op| (open.key, *op));
    let all: Choice = open.iter().filter_map(newest).collect();
    let ops = open_ops(open);
    let mut out = vec![Choice::new(), all.clone()];
    // Each write alone, and all but it, as wholes.
    for op in ops.iter().take(effort.random) {
        let mine = open.iter().filter(|open| open.values.contains(op)).map(|open| (open.key, *op));
        out.push(mine.collect());
        let others = |open: &Open| open.values.iter().find(|other| *other != op).map(|other| (open.key, *other));
        out.push(open.iter().filter_map(others).collect());
    }
    let any = |rng: &mut Rng| usize::try_from(rng.next_u64() >> 1).unwrap_or(0);
    // Single sectors alone and missing.
    for _ in 0..open.len().min(effort.random) {
        let Some(one) = open.get(any(rng) % open.len()) else { break };
        out.push(newest(one).into_iter().collect());
        let mut rest = all.clone();
        rest.remove(&one.key);
        out.push(rest);
    }
    for round in 0..effort.random {
        // Whole writes in half of the cases, sectors in the others.
        out.push(drawn(open, &ops, round % 2 == 0, rng));
    }
    out
}

/// A random choice, of whole writes or sector by sector.
fn drawn(open: &[Open], ops: &BTreeSet<OpNr>, whole: bool, rng: &mut Rng) -> Choice {
    let kept: BTreeSet<OpNr> = ops.iter().copied().filter(|_| rng.next_u64() & 1 == 0).collect();
    let pick = |open: &Open, rng: &mut Rng| {
        let op = if whole {
            open.values.iter().find(|op| kept.contains(op))
        } else {
            let any = usize::try_from(rng.next_u64() >> 1).unwrap_or(0);
            open.values.get(any % (open.values.len() + 1))
        };
        op.map(|op| (open.key, *op))
    };
    open.iter().filter_map(|open| pick(open, rng)).collect()
}

/// One choice for the metadata, by the same rules as the random ones; no data write counts.
pub(super) fn any_metadata(recording: &Recording, media: &Media, rng: &mut Rng) -> Choice {
    let open = open_meta(recording, media);
    let whole = rng.next_u64() & 1 == 0;
    drawn(&open, &open_ops(&open), whole, rng)
}

/// The operations whose bytes are open.
fn open_ops(open: &[Open]) -> BTreeSet<OpNr> {
    open.iter().flat_map(|open| &open.values).copied().collect()
}
