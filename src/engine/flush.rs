//! Client flushes: local disk, and under protocol C the peer's stable storage too.

use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::action::{ClientError, DiskOp};
use crate::engine::event::{DiskFailure, RequestId};
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::request::{Flush, Side};
use crate::units::VolumeNr;
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::state::DiskState;

impl Engine {
    pub(crate) fn start_flush(&mut self, id: RequestId, v: VolumeNr) {
        let Some(vol) = self.volumes.get(&v) else { return self.complete_now(id, Err(ClientError::Gone)) };
        if vol.state.is_suspended() || self.resend_first() {
            return self.put_off_flush(id, v);
        }
        self.epochs.close();
        let Some(vol) = self.volumes.get(&v) else { return };
        let local = vol.disk_usable();
        let own_counts = local && vol.state.disk == DiskState::UpToDate;
        if !own_counts && vol.state.pdsk != DiskState::UpToDate {
            return self.complete_now(id, Err(ClientError::Io));
        }
        // Under C (and wherever the peer has the only good copy, which a resync would take) a flush speaks for both replicas.
        let both = (self.conn.protocol() == ReplProtocol::C && !self.faulty(Fault::FlushIgnoresPeer)) || !own_counts;
        let epoch = if both && self.conn.link.is_some() { self.epochs.last() } else { None };
        let side = match local {
            true if self.faulty(Fault::FlushBeforeLocal) => Side::Ok,
            true => Side::Pending,
            false => Side::Unused,
        };
        let key = self.flushes.insert(Flush { id, volume: v, local: side, epoch, peer_only: !own_counts });
        self.send_due_barrier();
        if epoch.is_some() && self.conn.relaxed_epochs {
            self.send_data(v, Packet::UnplugRemote);
        }
        if local {
            let mark = self.data_flush_mark(v);
            self.submit(v, DiskOp::Flush, Op::RequestFlush { flush: key, mark });
        }
        self.finish_flush(key);
    }

    /// The local half of a flush ended.
    pub(crate) fn on_request_flushed(&mut self, key: u64, v: VolumeNr, result: Result<(), DiskFailure>) {
        if let Some(flush) = self.flushes.get_mut(key) {
            flush.local = if result.is_ok() { Side::Ok } else { Side::Failed };
        }
        if let Err(failure) = result {
            self.log_error(v, format!("local FLUSH IO error: {}", failure.text));
            self.on_io_error(v, Failed::Flush);
        }
        self.finish_flush(key);
    }

    pub(crate) fn check_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let keys: Vec<u64> = self.flushes.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.finish_flush(key);
        }
    }

    /// What is left is the peer's copy: everything that was written has to be durable there.
    fn flush_needs_peer(&mut self, key: u64, v: VolumeNr) {
        self.epochs.close();
        self.send_due_barrier();
        let epoch = if self.conn.link.is_some() { self.epochs.last() } else { None };
        if let Some(flush) = self.flushes.get_mut(key) {
            flush.epoch = epoch.or(flush.epoch);
            flush.peer_only = true;
        }
        if epoch.is_some() && self.conn.relaxed_epochs {
            self.send_data(v, Packet::UnplugRemote);
        }
    }

    pub(crate) fn finish_flush(&mut self, key: u64) {
        let Some(flush) = self.flushes.get(key) else { return };
        if flush.local == Side::Pending {
            return;
        }
        let v = flush.volume;
        let state = self.state(v);
        if state.is_suspended() {
            return;
        }
        let disk = state.disk;
        // Everything before it is acknowledged by the peer's barrier acknowledgement, or was never sent.
        let own_counts = flush.local == Side::Ok && disk == DiskState::UpToDate;
        if !own_counts && !flush.peer_only {
            self.flush_needs_peer(key, v);
        }
        if self.flushes.get(key).is_some_and(|f| f.epoch.is_some_and(|nr| !self.epochs.is_retired(nr))) {
            return;
        }
        let Some(flush) = self.flushes.remove(key) else { return };
        let peer_counts = self.conn.link.is_some() && self.state(v).pdsk == DiskState::UpToDate;
        let ok = own_counts || peer_counts;
        self.complete(flush.id, v, if ok { Ok(SmallVec::new()) } else { Err(ClientError::Io) });
        self.recheck_commands = true;
    }
}
