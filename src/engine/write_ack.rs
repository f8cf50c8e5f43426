//! What ends the network half of a write: acknowledgements, barriers, the socket, or the loss of the link.

use crate::engine::Engine;
use crate::engine::conflict::Standing;
use crate::engine::event::Socket;
use crate::engine::fault::Fault;
use crate::engine::request::{AckDue, AckKind, Kind, Side};
use crate::units::{SectorRange, VolumeNr};
use crate::wire::ack::BlockAck;

impl Engine {
    /// An acknowledgement for a replicated write.
    pub(crate) fn on_write_ack(&mut self, v: VolumeNr, ack: &BlockAck, name: &'static str, how: AckKind) {
        let key = ack.block_id.0;
        let known = self
            .requests
            .get(key)
            .filter(|r| r.volume == v && r.epoch.is_some() && !r.retired && r.range.start == ack.sector);
        let Some(request) = known else {
            if how == AckKind::Negative {
                // Protocol A and B: the write may be long completed; its blocks are marked all the same.
                if let Some(range) = SectorRange::from_bytes(ack.sector, u64::from(ack.blksize)) {
                    let size = self.volumes.get(&v).map_or(0, |vol| vol.size.0);
                    if range.end().0 > size {
                        return self
                            .peer_error(name, format!("range {range:?} is not inside the device of {size} sectors"));
                    }
                    self.mark_missed(v, range);
                    self.source_failed(v, range);
                }
                return;
            }
            return self.peer_error(name, format!("no write of sector {} with id {key:#x} is waiting", ack.sector));
        };
        // A negative acknowledgement of a discard carries size 0 (wire.md 5.10).
        if how != AckKind::Negative && u64::from(ack.blksize) != request.range.bytes() {
            return self.peer_error(name, format!("acknowledges {} bytes of {}", ack.blksize, request.range.bytes()));
        }
        if matches!(how, AckKind::Superseded | AckKind::Retry) {
            return self.on_conflict_answer(v, key, how, name);
        }
        if request.standing != Standing::Free {
            return self.peer_error(name, String::from("the peer has refused this write before"));
        }
        let was_pending = request.net == Side::Pending;
        let still_pending = how == AckKind::Received && matches!(request.ack, AckDue::Write | AckDue::Barrier);
        let Some(request) = self.requests.get_mut(key) else { return };
        match how {
            AckKind::Received if still_pending => {}
            AckKind::Received | AckKind::Written if request.net == Side::Failed => {}
            AckKind::Received => request.net = Side::Ok,
            AckKind::Written => {
                request.net = Side::Ok;
                request.confirmed = true;
                request.sync_due = false;
            }
            AckKind::InSync => {
                request.net = Side::Ok;
                request.confirmed = true;
                request.set_in_sync = true;
                request.sync_due = false;
            }
            AckKind::Negative => {
                request.net = Side::Failed;
                request.denied = true;
                request.set_in_sync = false;
                request.sync_due = false;
            }
            AckKind::Superseded | AckKind::Retry => {}
        }
        let range = request.range;
        if how == AckKind::Negative {
            // At once: a bitmap exchange may follow before the epoch is retired.
            if !self.faulty(Fault::PeerErrorUnmarked) {
                self.mark_missed(v, range);
            }
            self.source_failed(v, range);
        }
        if was_pending
            && !still_pending
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.counters.pending = vol.counters.pending.saturating_sub(1);
        }
        self.progress(key);
        self.settle_refused(v);
    }

    /// It is known by now what became of the peer's disk: completes what that disk could not write.
    pub(crate) fn release_denied(&mut self, v: VolumeNr) {
        let denied = |r: &super::request::Request| r.volume == v && r.denied && !r.done;
        let keys: Vec<u64> = self.requests.iter().filter(|(_, r)| denied(r)).map(|(key, _)| key).collect();
        for key in keys {
            self.progress(key);
        }
    }

    /// The oldest epoch is on the peer's stable storage.
    pub(crate) fn on_barrier_ack(&mut self, barrier: u32, set_size: u32) {
        let members = match self.epochs.ack(barrier, set_size) {
            Ok(members) => members,
            Err(error) => return self.peer_error("P_BARRIER_ACK", error.to_string()),
        };
        let answer_missing = |key: &u64| {
            let request = self.requests.get(*key).filter(|r| r.net == Side::Pending && r.standing == Standing::Free);
            request.is_some_and(|r| matches!(r.ack, AckDue::Receive | AckDue::Write))
        };
        if members.iter().any(answer_missing) {
            return self
                .peer_error("P_BARRIER_ACK", format!("#{barrier} came before the acknowledgement of a write in it"));
        }
        for key in members {
            if let Some(request) = self.requests.get_mut(key) {
                request.retired = true;
                request.sync_due = false;
                let (v, range) = (request.volume, request.range);
                let waited = request.net == Side::Pending && request.standing == Standing::Free;
                if waited {
                    request.net = Side::Ok;
                }
                self.note_arrived(v, range);
                if waited && let Some(vol) = self.volumes.get_mut(&v) {
                    vol.counters.pending = vol.counters.pending.saturating_sub(1);
                }
            }
            self.progress(key);
        }
        for v in self.volume_numbers() {
            self.check_ahead(v);
        }
        self.check_flushes();
        self.arm_request_timeout();
    }

    /// Packets were handed to the TCP stack: protocol A writes among them are done with the network.
    pub(crate) fn on_sent(&mut self, socket: Socket, packets: u64) {
        if socket == Socket::Meta {
            return;
        }
        self.note_sent(packets);
        while let Some(key) = self.conn.next_sent() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            if request.net == Side::Pending && request.ack == AckDue::None {
                request.net = Side::Ok;
                let v = request.volume;
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.counters.pending = vol.counters.pending.saturating_sub(1);
                }
                self.progress(key);
            }
        }
    }

    /// The link is gone: every write that no barrier acknowledgement covers may be missing on the peer.
    pub(crate) fn requests_lost(&mut self) {
        let (forgets, unmarked, acked_unmarked) = (
            self.faulty(Fault::LostRequestForgotten),
            self.faulty(Fault::LostRequestUnmarked),
            self.faulty(Fault::AckedEpochUnmarked),
        );
        for key in self.epochs.drain() {
            if let Some(request) = self.requests.get_mut(key) {
                if forgets && request.net == Side::Pending {
                    continue;
                }
                let marks = !(unmarked || (acked_unmarked && request.net == Side::Ok));
                request.standing = Standing::Free;
                request.net = Side::Failed;
                request.set_in_sync = false;
                request.sync_due = false;
                request.retired = true;
                let (v, range) = (request.volume, request.range);
                if marks {
                    self.mark_missed(v, range);
                }
            }
            self.progress(key);
        }
        self.refused_lost();
        self.reads_lost();
        for vol in self.volumes.values_mut() {
            vol.counters.pending = 0;
        }
        self.check_flushes();
    }

    /// Reads that wait for the peer begin anew.
    pub(crate) fn reads_lost(&mut self) {
        let reads: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, r)| r.kind == Kind::Read && r.net == Side::Pending)
            .map(|(key, _)| key)
            .collect();
        for key in reads {
            if self.faulty(Fault::LostReadForgotten) {
                break;
            }
            if let Some(request) = self.requests.get_mut(key) {
                request.net = Side::Failed;
            }
            self.start_read(key);
        }
    }
}
