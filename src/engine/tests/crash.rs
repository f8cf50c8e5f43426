//! Crashes and restarts of the pair's nodes, and their disks as bytes.

use std::collections::BTreeMap;

use super::pair::{Node, Pair, V};
use crate::engine::event::{Command, Event, LinkEvent, Socket};
use crate::engine::options::{DiskOptions, NetOptions};
use crate::meta::{MemIo, MetaIo};
use crate::units::{Sector, SectorRange, Sectors, VolumeNr};

impl Pair {
    /// The node's process dies: nothing in memory survives, what its disk had accepted does.
    pub(super) fn crash(&mut self, n: usize) {
        let seed = self.rng.next_u64();
        let disks = std::mem::take(&mut self.nodes[n].disks);
        let link = self.nodes[n].link.is_some();
        let separate = self.nodes[n].separate;
        self.nodes[n] = Node { disks, separate, ..Node::new("r0", seed) };
        let other = 1 - n;
        self.nodes[other].data.clear();
        self.nodes[other].meta.clear();
        self.nodes[other].closing = false;
        if link && let Some(nr) = self.nodes[other].link.take() {
            let lost = LinkEvent::Lost {
                nr,
                socket: Socket::Data,
                protocol_error: false,
                fatal: false,
                reason: String::from("reset"),
            };
            self.event(other, Event::Link(lost));
            self.nodes[other].closing = false;
        }
    }

    /// The node's power fails: of its unflushed blocks any subset is lost, each back to any state since the last flush.
    pub(super) fn power_cut(&mut self, n: usize) {
        let mut kept: BTreeMap<(VolumeNr, u64), u64> = BTreeMap::new();
        for (v, _, block, old) in std::mem::take(&mut self.nodes[n].cache).into_iter().rev() {
            let random = &mut self.rng;
            // Newest first: each write is undone as long as luck says so.
            let undo = kept.entry((v, block)).or_insert_with(|| random.next_u64() % 3);
            if *undo > 0 {
                *undo -= 1;
                self.nodes[n].disks.get_mut(&v).unwrap().write_at(block * 4096, &old).unwrap();
            }
        }
        self.crash(n);
    }

    /// Starts a crashed node again: volumes, attach, connect.
    pub(super) fn restart(&mut self, n: usize, net: &NetOptions) {
        let volumes: Vec<VolumeNr> = self.nodes[n].disks.keys().copied().collect();
        for v in volumes {
            self.command(n, v, Command::NewVolume(DiskOptions::default()));
            self.attach(n, v);
        }
        self.settle_for(0);
        self.command(n, V, Command::Connect(Box::new(net.clone())));
    }
}

pub(super) fn range(start: u64, count: u64) -> SectorRange {
    SectorRange { start: Sector(start), count: Sectors(count) }
}

// The memory device takes whole 4 KiB blocks only.
pub(super) fn read(io: &mut MemIo, range: SectorRange) -> Vec<u8> {
    let first = range.start.bytes() / 4096 * 4096;
    let end = range.end().bytes().div_ceil(4096) * 4096;
    let mut all = vec![0; usize::try_from(end - first).unwrap()];
    io.read_at(first, &mut all).unwrap();
    let skip = usize::try_from(range.start.bytes() - first).unwrap();
    all[skip..skip + usize::try_from(range.bytes()).unwrap()].to_vec()
}

pub(super) fn write(io: &mut MemIo, range: SectorRange, data: &[u8]) {
    let first = range.start.bytes() / 4096 * 4096;
    let end = range.end().bytes().div_ceil(4096) * 4096;
    let mut all = vec![0; usize::try_from(end - first).unwrap()];
    io.read_at(first, &mut all).unwrap();
    let skip = usize::try_from(range.start.bytes() - first).unwrap();
    all[skip..skip + data.len()].copy_from_slice(data);
    io.write_at(first, &all).unwrap();
}
