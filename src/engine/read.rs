//! Application reads: local where the data is good, else from the peer; a failed one is tried on the other side once.
//!
//! On an Inconsistent disk a block is good that no bit marks, once the bits are known to say it ([`bits_known`]): a target
//! whose source goes away before its bitmap came has none of the bits, and its disk may be old everywhere.
//!
//! [`bits_known`]: super::volume::Volume::bits_known

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::{ClientError, DiskOp};
use crate::engine::event::DiskFailure;
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::request::{Kind, Side};
use crate::limits::SECTOR_SIZE;
use crate::units::{BlockId, Sector, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::resync::BlockReq;
use crate::wire::state::{ConnState, DiskState};

impl Engine {
    pub(crate) fn start_read(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let (v, range, tried_local, tried_remote) =
            (request.volume, request.range, request.tried_local, request.tried_remote);
        let careless = self.faulty(Fault::ReadInconsistent);
        let believing = self.faulty(Fault::BitsBelievedEarly);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.state.is_suspended() {
            return self.put_off_read(key);
        }
        let (state, known) = (vol.state, vol.bits_known || believing);
        let local = !tried_local
            && vol.usable().is_some_and(|d| {
                state.disk == DiskState::UpToDate
                    || (state.disk == DiskState::Inconsistent
                        && (careless || (known && !d.bitmap.any(range.bits_touched()))))
            });
        let remote = !tried_remote
            && self.conn.link.is_some()
            && state.conn >= ConnState::Connected
            && state.pdsk == DiskState::UpToDate;
        // A peer that is Primary, too, writes alone from the moment when it agrees to a detach here.
        let local = local && !(remote && self.leaves_disk(v));
        if local {
            if let Some(request) = self.requests.get_mut(key) {
                request.local = Side::Pending;
            }
            self.submit(v, DiskOp::Read(range), Op::RequestRead(key));
        } else if remote {
            if let Some(request) = self.requests.get_mut(key) {
                request.net = Side::Pending;
                request.started = self.now;
            }
            // The peer must see every earlier write first; its barrier precedes a read of a later epoch.
            self.send_due_barrier();
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.counters.pending += 1;
            }
            let blksize = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            self.send_data(v, Packet::DataRequest(BlockReq { sector: range.start, block_id: BlockId(key), blksize }));
            self.arm_request_timeout();
        } else {
            self.log_no_data(v, range);
            self.fail_part(key, ClientError::Io);
        }
    }

    /// A local read ended.
    pub(crate) fn on_request_read(&mut self, key: u64, result: Result<Bytes, DiskFailure>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (v, range) = (request.volume, request.range);
        match result {
            Ok(data) if data.len() as u64 == range.bytes() => self.read_done(key, data),
            other => {
                request.local = Side::Failed;
                request.tried_local = true;
                let text = other.err().map_or_else(|| String::from("short read"), |f| f.text);
                self.set_bits(v, range);
                self.source_failed(v, range);
                self.log_error(v, format!("local READ IO error sector {}+{}: {text}", range.start, range.count));
                self.on_io_error(v, Failed::Read);
                self.start_read(key);
            }
        }
    }

    /// I/O is suspended: the read begins anew when that is over, whatever it has found.
    fn put_off_read(&mut self, key: u64) {
        let Some(request) = self.requests.get_mut(key) else { return };
        (request.local, request.net) = (Side::Unused, Side::Unused);
        (request.tried_local, request.tried_remote) = (false, false);
        if let Some(vol) = self.volumes.get_mut(&request.volume) {
            vol.waiting.push_front(key);
        }
    }

    pub(crate) fn read_done(&mut self, key: u64, data: Bytes) {
        let suspended = self.requests.get(key).is_some_and(|r| self.state(r.volume).is_suspended());
        if suspended && !self.faulty(Fault::CompletedSuspended) {
            return self.put_off_read(key);
        }
        self.finish_part(key, Ok(Some(data)));
        self.requests.remove(key);
        self.recheck_commands = true;
    }

    /// The peer answered a read: with data, or with a refusal.
    pub(crate) fn on_read_reply(&mut self, v: VolumeNr, sector: Sector, id: BlockId, data: Option<Bytes>) {
        let known = self
            .requests
            .get(id.0)
            .filter(|r| r.kind == Kind::Read && r.volume == v && r.range.start == sector && r.net == Side::Pending);
        let Some(request) = known else {
            return self
                .peer_error("P_DATA_REPLY", format!("no read of sector {sector} with id {:#x} is waiting", id.0));
        };
        let bytes = request.range.bytes();
        if data.as_ref().is_some_and(|d| d.len() as u64 != bytes) {
            return self.peer_error("P_DATA_REPLY", format!("carries another size than the {bytes} bytes asked for"));
        }
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.pending = vol.counters.pending.saturating_sub(1);
            vol.counters.received += bytes / SECTOR_SIZE;
        }
        match data {
            Some(data) => self.read_done(id.0, data),
            None => {
                if let Some(request) = self.requests.get_mut(id.0) {
                    request.net = Side::Failed;
                    request.tried_remote = true;
                }
                self.start_read(id.0);
            }
        }
    }
}
