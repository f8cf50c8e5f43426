//! The clients: requests handed to whichever node is Primary, and what comes back compared with the history.

use bytes::Bytes;
use smallvec::SmallVec;

use super::coverage::Group;
use super::node::nr;
use super::plan::ClientOp;
use super::reads::Read;
use super::stamp::{self, SECTOR, WriteId};
use super::world::{Asked, Checker, Pending, World};
use crate::engine::event::{ClientRequest, Event, RequestId};
use crate::limits::CLIENT_REQUEST_BYTES_MAX;
use crate::units::{Sector, SectorRange, Sectors};
use crate::wire::state::{ConnState, DiskState, Role};

/// Largest piece of a client's payload, sectors.
const PIECE: u64 = 2048;

impl World {
    /// A client asks for something on the node where the volume is Primary; `node` decides where that says nothing.
    pub(super) fn client(&mut self, op: ClientOp, volume: usize, start: u64, count: u64, node: usize) {
        if volume >= self.differs.len() {
            return;
        }
        let node = self.primary(volume).unwrap_or(node);
        if !self.nodes[node].is_up() || self.nodes[node].frozen_until > self.now {
            return;
        }
        if self.nodes[node].volumes[volume].seen.role != Role::Primary {
            // A client that found the wrong node: the engine must refuse it. Reads are enough for that.
            if op == ClientOp::Read && self.now.is_multiple_of(5) {
                self.ask(node, volume, Asked::Read { start, count }, ClientRequest::Read(range(start, count)));
            }
            return;
        }
        if !self.nodes[node].volumes[volume].opened {
            self.nodes[node].volumes[volume].opened = true;
            self.event(node, Event::Opened { volume: nr(volume) });
            if !self.nodes[node].is_up() {
                // It died over it.
                return;
            }
        }
        let count = count.min(CLIENT_REQUEST_BYTES_MAX / SECTOR as u64);
        if self.grown[volume] && op != ClientOp::Flush && start + count > self.nodes[node].volumes[volume].size {
            // The device has not grown yet, and a client sees its end.
            return;
        }
        match op {
            ClientOp::Read => {
                self.ask(node, volume, Asked::Read { start, count }, ClientRequest::Read(range(start, count)));
            }
            ClientOp::Flush => self.ask(node, volume, Asked::Flush, ClientRequest::Flush),
            ClientOp::Write { fua } => {
                let id = self.write(node, volume, start, count, false, fua);
                let request = ClientRequest::Write { range: range(start, count), data: payload(id, start, count), fua };
                self.ask(node, volume, Asked::Write(id), request);
            }
            ClientOp::Discard => {
                let id = self.write(node, volume, start, count, true, false);
                self.ask(node, volume, Asked::Write(id), ClientRequest::Discard(range(start, count)));
            }
            ClientOp::Zeroes { fua, unmap } => {
                let id = self.write(node, volume, start, count, true, fua);
                let request = ClientRequest::WriteZeroes { range: range(start, count), may_unmap: unmap, fua };
                self.ask(node, volume, Asked::Write(id), request);
            }
        }
    }

    fn write(&mut self, node: usize, volume: usize, start: u64, count: u64, zero: bool, fua: bool) -> WriteId {
        let scene = self.scene(node, volume);
        self.model.invoke(self.tick, node, volume, start, count, zero, fua, &scene)
    }

    fn ask(&mut self, node: usize, volume: usize, what: Asked, request: ClientRequest) {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        let scene = self.scene(node, volume);
        self.trace.note(self.now, node, 30, id.0, || match what {
            Asked::Read { start, count } => format!("vol {volume} request {}: read {start}+{count}", id.0),
            Asked::Flush => format!("vol {volume} request {}: flush", id.0),
            Asked::Write(write) => {
                let w = self.model.write(write).map(|w| (w.start, w.count, w.zero, w.fua));
                format!("vol {volume} request {}: write {} {w:?}", id.0, write.0)
            }
        });
        self.coverage.count(Group::Request, "made");
        self.stats.requests += 1;
        if let Some(answers) = &mut self.answers {
            answers.asked = Some((id, what));
        }
        let disk = self.serving_disk(node, volume);
        let pending = Pending { node, volume, began: self.tick, what, powers: scene.powers, disk };
        self.pending.insert(id, pending);
        if let Asked::Read { start, count } = what {
            self.model.begin_read(self.tick, id.0, volume, start, count);
        }
        self.event(node, Event::Client { id, volume: nr(volume), request });
    }

    /// The node whose disk has to serve what is read now: its own where it is good, the peer's where there is none.
    pub(super) fn serving_disk(&self, node: usize, volume: usize) -> Option<usize> {
        match self.nodes[node].volumes[volume].seen.disk {
            DiskState::UpToDate => Some(node),
            DiskState::Inconsistent => None,
            _ => Some(1 - node),
        }
    }

    /// Compares the reply to a read with the history.
    pub(super) fn check_reply(
        &mut self,
        node: usize,
        pending: &Pending,
        start: u64,
        count: u64,
        data: &[Bytes],
        disk: Option<usize>,
    ) {
        let total: usize = data.iter().map(Bytes::len).sum();
        if total as u64 != count * SECTOR as u64 {
            return self.fail(Checker::Read, format!("a read of {count} sectors returned {total} bytes"));
        }
        if let Some(answers) = &mut self.answers {
            let sectors = data.iter().flat_map(|piece| piece.chunks(SECTOR)).zip(start..);
            answers.read = sectors.map(|(bytes, sector)| stamp::content(bytes, sector)).collect();
        }
        // Two Primaries that are connected have one history; its reads are of the own disk.
        let alone = |n: &super::node::Node| {
            let seen = n.volumes[pending.volume].seen;
            seen.role == Role::Primary && seen.conn < ConnState::Connected
        };
        let is_primary = |n: &super::node::Node| n.volumes[pending.volume].seen.role == Role::Primary;
        let split = self.nodes.iter().all(is_primary) && self.nodes.iter().any(alone);
        let two = self.params.two_primaries();
        let read = Read { node, volume: pending.volume, began: pending.began, now: self.tick, disk, split, two };
        let mut sector = start;
        for piece in data {
            for bytes in piece.chunks(SECTOR) {
                let content = stamp::content(bytes, sector);
                if let Err(text) = self.model.check_read(&read, sector, content) {
                    return self.fail(Checker::Read, text);
                }
                sector += 1;
            }
        }
    }
}

fn range(start: u64, count: u64) -> SectorRange {
    SectorRange { start: Sector(start), count: Sectors(count) }
}

fn payload(id: WriteId, start: u64, count: u64) -> SmallVec<[Bytes; 1]> {
    let mut data = SmallVec::new();
    let mut at = start;
    while at < start + count {
        let part = PIECE.min(start + count - at);
        data.push(stamp::data(id, at, part));
        at += part;
    }
    data
}
