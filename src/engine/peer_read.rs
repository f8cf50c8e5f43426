//! Reads for the peer: application, resync, checksum and verify reads, and what is answered to them.

use crate::engine::Engine;
use crate::engine::action::{DiskOp, Level};
use crate::engine::event::DiskFailure;
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::peer_request::PeerKind;
use crate::units::{BlockId, SectorRange, VolumeNr};
use crate::wire::data::DataReply;
use crate::wire::digest::Digest;
use crate::wire::packet::Packet;
use crate::wire::resync::{BlockDesc, BlockReq};
use crate::wire::state::{ConnState, DiskState};
use bytes::Bytes;

impl Engine {
    /// A read of the peer's application.
    pub(crate) fn on_data_request(&mut self, v: VolumeNr, p: &BlockReq) {
        let Some(range) =
            self.checked_range(v, "P_DATA_REQUEST", SectorRange::from_bytes(p.sector, u64::from(p.blksize)))
        else {
            return;
        };
        if self.state(v).disk != DiskState::UpToDate {
            return self.send_ack(v, p.sector, p.block_id, p.blksize, Packet::NegDreply);
        }
        self.accept(v, PeerKind::Read, range, p.block_id, None, None);
    }

    /// A resync or verify read of the peer.
    pub(crate) fn on_resync_request(&mut self, v: VolumeNr, p: &BlockReq, kind: PeerKind) {
        let name = match kind {
            PeerKind::VerifyRead => "P_OV_REQUEST",
            PeerKind::ChecksumRead { .. } => "P_CSUM_RS_REQUEST",
            _ => "P_RS_DATA_REQUEST",
        };
        let Some(range) = self.checked_range(v, name, SectorRange::from_bytes(p.sector, u64::from(p.blksize))) else {
            return;
        };
        let state = self.state(v);
        if state.conn < ConnState::Connected {
            return self.peer_error(name, format!("not expected in state {}", state.conn));
        }
        if kind == PeerKind::VerifyRead && !self.verify_requested(v, range) {
            return self.peer_error(name, format!("not expected in state {}", state.conn));
        }
        if kind != PeerKind::VerifyRead
            && let Some(resync) = self.volumes.get_mut(&v).and_then(|vol| vol.resync.as_mut())
        {
            resync.asked = true;
        }
        if state.conn == ConnState::Ahead {
            return self.send_ack(v, p.sector, BlockId::SYNCER, p.blksize, Packet::RsCancel);
        }
        if state.disk != DiskState::UpToDate {
            self.log(Level::Warn, Some(v), "Can not satisfy peer's read request, no local data.");
            return self.send_ack(v, p.sector, BlockId::SYNCER, p.blksize, Packet::NegRsDreply);
        }
        self.accept(v, kind, range, BlockId::SYNCER, None, None);
    }

    pub(crate) fn submit_peer_read(&mut self, key: u64) {
        let Some(request) = self.peer_requests.get_mut(key) else { return };
        request.submitted = true;
        let (v, range) = (request.volume, request.range);
        if self.volumes.get(&v).is_some_and(super::volume::Volume::disk_usable) {
            self.submit(v, DiskOp::Read(range), Op::PeerRead(key));
        } else {
            self.on_peer_read(key, Err(DiskFailure { text: String::from("the disk is gone"), unsupported: true }));
        }
    }

    /// A read for the peer ended.
    pub(crate) fn on_peer_read(&mut self, key: u64, result: Result<Bytes, DiskFailure>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        let (v, range, id, kind) = (request.volume, request.range, request.block_id, request.kind.clone());
        let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        let sector = range.start;
        if request.orphan || request.dropped {
            return self.finish_peer(key);
        }
        let result = result.and_then(|data| {
            if data.len() as u64 == range.bytes() {
                Ok(data)
            } else {
                Err(DiskFailure { text: String::from("short read"), unsupported: false })
            }
        });
        let resync = matches!(kind, PeerKind::ResyncRead { .. } | PeerKind::ChecksumRead { .. });
        let result = if resync && self.state(v).disk <= DiskState::Failed {
            Err(DiskFailure { text: String::from("the disk is gone"), unsupported: true })
        } else {
            result
        };
        let mut disk_failed = false;
        let reply = |payload: Bytes, block_id: BlockId| DataReply {
            sector,
            block_id,
            // The link fills it in where one was agreed.
            digest: Digest::EMPTY,
            payload,
        };
        match (kind, result) {
            (PeerKind::Read, Ok(data)) => {
                self.count_sent(v, data.len());
                self.send_data(v, Packet::DataReply(reply(data, id)));
            }
            (PeerKind::ResyncRead { thin: true }, Ok(data)) if data.iter().all(|b| *b == 0) => {
                self.expect_resync_ack(v, range);
                self.send_data(v, Packet::RsDeallocated(BlockDesc { sector, blksize: size }));
            }
            (PeerKind::ChecksumRead { digest }, Ok(data)) if self.csums_digest(&data) == Some(digest) => {
                self.clear_bits(v, range);
                self.send_ack(v, sector, BlockId::SYNCER, size, Packet::RsIsInSync);
            }
            (PeerKind::ResyncRead { .. } | PeerKind::ChecksumRead { .. }, Ok(data)) => {
                self.expect_resync_ack(v, range);
                if self.faulty(Fault::SourceDoneEarly) {
                    self.clear_bits(v, range);
                }
                self.count_sent(v, data.len());
                self.send_data(v, Packet::RsDataReply(reply(data, BlockId::SYNCER)));
            }
            (PeerKind::VerifyRead, result) => {
                disk_failed = result.is_err();
                let digest = self.verify_digest(result.ok().as_deref());
                let req = BlockReq { sector, block_id: BlockId::SYNCER, blksize: size };
                self.send_data(v, Packet::OvReply { req, digest });
            }
            (PeerKind::Read, Err(_)) => {
                disk_failed = true;
                self.send_ack(v, sector, id, size, Packet::NegDreply);
            }
            (_, Err(_)) => {
                disk_failed = true;
                self.resync_failed(v, range);
                self.send_ack(v, sector, BlockId::SYNCER, size, Packet::NegRsDreply);
            }
            (PeerKind::Write { .. } | PeerKind::ResyncWrite, Ok(_)) => {}
        }
        if disk_failed {
            self.log_error(v, format!("local READ IO error sector {}+{}", range.start, range.count));
            self.on_io_error(v, Failed::PeerRead);
        }
        self.finish_peer(key);
    }

    /// The resync from here is over: nothing that it still reads is sent any more.
    pub(crate) fn drop_resync_reads(&mut self, v: VolumeNr) {
        for request in self.peer_requests.values_mut().filter(|request| request.volume == v) {
            request.dropped |= matches!(request.kind, PeerKind::ResyncRead { .. } | PeerKind::ChecksumRead { .. });
        }
    }

    pub(crate) fn csums_digest(&self, data: &[u8]) -> Option<Digest> {
        self.conn.opts.as_ref()?.csums_alg.alg().map(|alg| alg.digest(&[data]))
    }

    pub(crate) fn count_sent(&mut self, v: VolumeNr, bytes: usize) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.sent += Self::sectors_of(bytes);
        }
    }
}
