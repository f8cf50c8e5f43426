//! Random faults against one pair, then peace: both nodes end UpToDate and equal, and nothing acknowledged is lost.
//!
//! Checks at the end only: convergence, equality of the data areas, clean bitmaps, and that every block holds the newest
//! write that was promised or a later one. Does not check reads in between, nor split brain (a node is promoted only when
//! the one before it died while both were connected and good).

use std::collections::BTreeMap;

use super::net;
use super::pair::{A, B, MIB, Pair, V};
use crate::engine::event::{ClientRequest, Command, RequestId};
use crate::engine::options::NetOptions;
use crate::units::VolumeNr;
use crate::wire::params::ReplProtocol;
use crate::wire::state::DiskState;

const BLOCKS: u64 = 2500;
const W: VolumeNr = VolumeNr(1);

/// Per block: fills in order of issue, and how many of them (counted from the first) a later fault may not undo.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<u64, Vec<u8>>,
    promised: BTreeMap<u64, usize>,
    open: BTreeMap<RequestId, (u64, u64, BTreeMap<u64, usize>)>,
    acked: Vec<(u64, usize)>,
    flushes: BTreeMap<RequestId, usize>,
    next: u8,
    primary: usize,
}

impl Model {
    fn write(&mut self, p: &mut Pair, start: u64, count: u64) {
        self.next = self.next % 250 + 1;
        let id = p.write(self.primary, start * 8, count * 8, self.next);
        let mut at = BTreeMap::new();
        for block in start..start + count {
            let history = self.blocks.entry(block).or_insert_with(|| vec![0]);
            history.push(self.next);
            at.insert(block, history.len() - 1);
        }
        self.open.insert(id, (start, count, at));
    }

    fn collect(&mut self, p: &Pair, flushed_only: bool) {
        let done: Vec<RequestId> = self
            .open
            .keys()
            .copied()
            .filter(|id| p.nodes[self.primary].completed.get(id).is_some_and(Result::is_ok))
            .collect();
        for id in done {
            let (.., at) = self.open.remove(&id).unwrap();
            self.acked.extend(at);
        }
        for (id, count) in self.flushes.clone() {
            if p.nodes[self.primary].completed.get(&id).is_some_and(Result::is_ok) {
                self.flushes.remove(&id);
                for (block, index) in &self.acked[..count] {
                    let promised = self.promised.entry(*block).or_default();
                    *promised = (*promised).max(*index);
                }
            }
        }
        if !flushed_only {
            for (block, index) in &self.acked {
                let promised = self.promised.entry(*block).or_default();
                *promised = (*promised).max(*index);
            }
        }
    }

    fn flush(&mut self, p: &mut Pair) {
        self.collect(p, true);
        let id = p.client(self.primary, V, ClientRequest::Flush);
        self.flushes.insert(id, self.acked.len());
    }

    fn check(&self, p: &mut Pair, seed: u64) {
        let data = p.data(A, V);
        for (block, history) in &self.blocks {
            let promised = self.promised.get(block).copied().unwrap_or(0);
            let at = usize::try_from(block * 4096).unwrap();
            let found = data[at];
            assert!(
                history[promised..].contains(&found),
                "seed {seed}: block {block} holds {found}, promised is {:?}",
                &history[promised..]
            );
        }
    }
}

fn storm(seed: u64, power: bool) {
    let protocol = [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C][usize::try_from(seed % 3).unwrap()];
    let n: NetOptions = net(protocol);
    let mut p = Pair::new(seed);
    p.relaxed = seed.is_multiple_of(2);
    p.version = [101, 101, 100, 97][usize::try_from(seed / 3 % 4).unwrap()];
    for n in [A, B] {
        p.nodes[n].separate = seed / 2 % 2 == 1;
    }
    let second = seed / 5 % 2 == 1;
    if second {
        p.up(&[12 * MIB, 6 * MIB], &n);
        p.command(A, W, Command::NewCurrentUuid { clear_bitmap: true });
        p.settle();
    } else {
        p.up(&[12 * MIB], &n);
    }
    p.ok(A, Command::NewCurrentUuid { clear_bitmap: true });
    p.ok(A, Command::Primary { force: false });
    if second {
        p.command(A, W, Command::Primary { force: false });
        p.settle();
    }
    let mut m = Model::default();
    let mut cut_power = false;
    for _ in 0..60 {
        match p.rng.next_u64() % 20 {
            0..=9 => {
                for _ in 0..p.rng.next_u64() % 6 {
                    let (start, count) = (p.rng.next_u64() % BLOCKS, 1 + p.rng.next_u64() % 20);
                    m.write(&mut p, start, count);
                    if second {
                        p.write_to(m.primary, W, start % 1000 * 8, count * 8, m.next);
                    }
                }
            }
            10 => m.flush(&mut p),
            11 => p.cut(),
            12 => p.join(),
            13 => {
                p.command(A, V, Command::PauseSync);
            }
            14 => {
                p.command(B, V, Command::ResumeSync);
                p.command(A, V, Command::ResumeSync);
            }
            15 => {
                let v = if p.rng.next_u64().is_multiple_of(2) { V } else { W };
                p.command(1 - m.primary, v, Command::Invalidate);
            }
            16 | 17 => {
                let victim = usize::from(p.rng.next_u64().is_multiple_of(2));
                let good = |p: &Pair, n: usize| {
                    p.nodes[n].text().starts_with("Connected") && p.nodes[n].text().ends_with("UpToDate/UpToDate")
                };
                let fail_over = victim == m.primary && protocol == ReplProtocol::C && good(&p, A) && good(&p, B);
                // Under C whatever was acknowledged is on the survivor, flushed here or not.
                m.collect(&p, power && !fail_over);
                if power {
                    cut_power = true;
                    p.power_cut(victim);
                } else {
                    p.crash(victim);
                }
                if fail_over {
                    m.primary = 1 - victim;
                    p.settle_for(0);
                    for v in volumes(second) {
                        p.command(m.primary, v, Command::Primary { force: false });
                        p.settle_for(0);
                    }
                    // What the survivor took over unflushed is promised from now on: as a mount does, flush it.
                    p.client(m.primary, V, ClientRequest::Flush);
                    p.settle_for(0);
                    m.open.clear();
                    m.flushes.clear();
                    m.acked.clear();
                    let (start, count) = (p.rng.next_u64() % BLOCKS, 1 + p.rng.next_u64() % 20);
                    m.write(&mut p, start, count);
                }
                p.restart(victim, &n);
                if victim == m.primary {
                    m.open.clear();
                    m.flushes.clear();
                    // Acknowledged writes that no flush covers may be gone with the cache: only what is there counts on.
                    m.acked.clear();
                    p.join();
                    p.settle_for(3_000_000_000);
                    for v in volumes(second) {
                        p.command(m.primary, v, Command::Primary { force: false });
                    }
                }
            }
            18 => {
                p.command(1 - m.primary, V, Command::Detach { force: false });
            }
            _ => attach_if_detached(&mut p),
        }
        for _ in 0..p.rng.next_u64() % 60 {
            p.step();
        }
    }
    p.join();
    p.command(A, V, Command::ResumeSync);
    p.command(B, V, Command::ResumeSync);
    p.settle_for(60_000_000_000);
    attach_if_detached(&mut p);
    p.settle_for(60_000_000_000);
    m.collect(&p, power && cut_power);
    let story = |p: &Pair| format!("{}\n{}", p.nodes[A].log.join("\n"), p.nodes[B].log.join("\nB "));
    assert!(
        p.nodes[A].text().ends_with("UpToDate/UpToDate"),
        "seed {seed} power {power}: {} | {}\n{}",
        p.nodes[A].text(),
        p.nodes[B].text(),
        story(&p)
    );
    assert_eq!(
        (p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()),
        (0, 0),
        "seed {seed} power {power}\n{}",
        story(&p)
    );
    for v in volumes(second) {
        let (a, b) = (p.data(A, v), p.data(B, v));
        let differs = a.chunks(4096).zip(b.chunks(4096)).position(|(x, y)| x != y);
        assert_eq!(differs, None, "seed {seed} power {power}: blocks of volume {v} differ\n{}", story(&p));
        assert_eq!((p.nodes[A].state(v).disk, p.nodes[A].state(v).pdsk), (DiskState::UpToDate, DiskState::UpToDate));
    }
    m.check(&mut p, seed);
}

fn volumes(second: bool) -> impl Iterator<Item = VolumeNr> {
    [V, W].into_iter().take(1 + usize::from(second))
}

fn attach_if_detached(p: &mut Pair) {
    for n in [A, B] {
        let gone = p.nodes[n].state(V).disk == DiskState::Diskless;
        if gone && p.nodes[n].engine.status(p.now).volumes[0].disk_path.is_none() {
            p.attach(n, V);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("UDRBD_STORM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let from = std::env::var("UDRBD_STORM_FROM").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    from..from + count
}

#[test]
fn process_crashes_and_cuts_lose_nothing_acknowledged() {
    seeds().for_each(|seed| storm(seed, false));
}

#[test]
fn power_cuts_lose_nothing_flushed_and_replicas_end_equal() {
    seeds().for_each(|seed| storm(seed, true));
}
