//! Requests of the peer: replicated writes, reads, resync and verify reads, and the epochs that the peer's barriers end.
//!
//! Owns every request of the peer until it is answered, and the list of received epochs. Invariants: two writes for the
//! peer that overlap are never on their way to the disk at the same time, and reach it in the order of their arrival; a
//! read sees every overlapping write that arrived before it; a `P_BARRIER_ACK` is sent only after the acknowledgements
//! of all writes of its epoch and after a flush that began when they were all complete; from a peer that orders by
//! epochs, no write starts before the epoch before its own is finished. Source: wire.md 5, 6, 9; behaviour.md 5.6.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::action::DiskOp;
use crate::engine::al::ExtentSpan;
use crate::engine::conflict::Verdict;
use crate::engine::event::DiskFailure;
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::limits::PEER_REQUESTS_MAX;
use crate::units::{BlockId, SectorRange, Timestamp, VolumeNr};
use crate::wire::ack::BlockAck;
use crate::wire::data::DpFlags;
use crate::wire::digest::Digest;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, Role};

/// Marks the keys of peer requests among the activity log's keys.
pub(crate) const PEER_KEY: u64 = 1 << 63;

/// What a peer request does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PeerKind {
    /// A replicated write, discard or write-zeroes.
    Write { flags: DpFlags },
    /// Resync data that this node asked for.
    ResyncWrite,
    /// An application read of the peer.
    Read,
    /// A resync read; zeroes may be answered without data.
    ResyncRead { thin: bool },
    /// A resync read that is answered with data only if the digest differs.
    ChecksumRead { digest: Digest },
    /// A verify read.
    VerifyRead,
}

/// How a write reaches the disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WriteIo {
    Data(Bytes),
    Discard,
    Zeroes { may_unmap: bool },
}

/// A request of the peer.
#[derive(Debug)]
pub(crate) struct PeerRequest {
    pub volume: VolumeNr,
    pub kind: PeerKind,
    pub range: SectorRange,
    pub(crate) block_id: BlockId,
    pub(crate) io: Option<WriteIo>,
    pub(crate) arrival: u64,
    pub(crate) epoch: Option<u64>,
    pub(crate) submitted: bool,
    /// Its link is gone: no answer.
    pub(crate) orphan: bool,
    /// A question of a resync that is over, or its data: the answer would be taken for one of the next resync. It still counts
    /// as one of this link's, unlike an orphan.
    pub(crate) dropped: bool,
    pub(crate) al: Option<ExtentSpan>,
    /// Waits for the activity log.
    pub(crate) al_pending: bool,
    pub(crate) al_settled: bool,
    /// Bits were set before the write, because the peer has no disk.
    pub(crate) marked: bool,
    /// Bits of its range were set after it came: it does not carry the newest data and clears nothing.
    pub(crate) stale: bool,
    pub(crate) since: Timestamp,
    /// It is not written, for own writes (see `conflict`): which, and whether the peer was told.
    pub(crate) refused: Option<Verdict>,
    pub(crate) refused_for: SmallVec<[u64; 2]>,
    pub(crate) answered: bool,
    /// Waits until what it overwrites is saved; has waited.
    pub(crate) undo_pending: bool,
    pub(crate) undo_settled: bool,
}

impl PeerRequest {
    pub(crate) fn is_write(&self) -> bool {
        matches!(self.kind, PeerKind::Write { .. } | PeerKind::ResyncWrite)
    }
}

/// A received epoch.
#[derive(Debug)]
pub(crate) struct Epoch {
    pub(crate) id: u64,
    pub(crate) writes: u32,
    /// Writes that were refused for own ones and are not counted.
    pub(crate) refused: u32,
    pub(crate) active: u32,
    pub(crate) barrier: Option<u32>,
}

/// Epochs received on the present link, oldest first; the last one is open.
#[derive(Debug, Default)]
pub(crate) struct ReceivedEpochs {
    pub(crate) epochs: VecDeque<Epoch>,
    pub(crate) next_id: u64,
    /// Number of the running flush, its operations in flight and how many epochs it finishes.
    pub(crate) round: u64,
    pub(crate) flushing: u32,
    pub(crate) covered: usize,
    /// The peer's client waits: flush at once.
    pub(crate) urgent: bool,
    pub(crate) timer: bool,
    pub(crate) arrivals: u64,
    /// A flush failed once: from then on order by waiting only.
    pub(crate) drain_only: bool,
}

impl ReceivedEpochs {
    /// Epoch objects, as `/proc/drbd` counts them.
    pub(crate) fn count(&self) -> usize {
        self.epochs.len().max(1)
    }

    /// Whether the flush method was given up.
    pub(crate) const fn drain_only(&self) -> bool {
        self.drain_only
    }

    pub(crate) fn open(&mut self) -> &mut Epoch {
        if self.epochs.back().is_none_or(|e| e.barrier.is_some()) {
            self.next_id += 1;
            self.epochs.push_back(Epoch { id: self.next_id, writes: 0, refused: 0, active: 0, barrier: None });
        }
        let last = self.epochs.len() - 1;
        &mut self.epochs[last]
    }
}

impl Engine {
    /// Whether the link driver may hand over another packet of the data socket; when not, it stops reading until the
    /// next answer went out.
    #[must_use]
    pub fn accepts_peer_requests(&self) -> bool {
        self.peer_requests.len() < PEER_REQUESTS_MAX
            && self.rx.count() < PEER_REQUESTS_MAX
            && self.conn.stalled.len() < PEER_REQUESTS_MAX
    }

    pub(crate) fn accept(
        &mut self,
        v: VolumeNr,
        kind: PeerKind,
        range: SectorRange,
        block_id: BlockId,
        io: Option<WriteIo>,
        epoch: Option<u64>,
    ) {
        self.rx.arrivals += 1;
        let request = PeerRequest {
            volume: v,
            kind,
            range,
            block_id,
            io,
            arrival: self.rx.arrivals,
            epoch,
            submitted: false,
            orphan: false,
            dropped: false,
            al: None,
            al_pending: false,
            al_settled: false,
            marked: false,
            stale: false,
            since: self.now,
            refused: None,
            refused_for: SmallVec::new(),
            answered: false,
            undo_pending: false,
            undo_settled: false,
        };
        let (write, replicated) = (request.is_write(), matches!(request.kind, PeerKind::Write { .. }));
        let locks_out_writes = !write && request.kind != PeerKind::Read;
        if !write && let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.unacked += 1;
        }
        let key = self.peer_requests.insert(request);
        if let Some(vol) = self.volumes.get_mut(&v) {
            if write {
                vol.peer_active.insert(range, key);
            } else if locks_out_writes {
                // New application writes wait until the answer is on its way (wire.md 9.4).
                vol.resync_ranges.insert(range, key);
            }
        }
        if replicated {
            self.announce_conflict(v, range);
        }
        if !self.try_peer(key)
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.peer_waiting.push_back(key);
        }
    }

    /// Starts a peer request if nothing stands before it; whether it needs no further waiting here.
    pub(crate) fn try_peer(&mut self, key: u64) -> bool {
        let Some(request) = self.peer_requests.get(key) else { return true };
        if request.submitted || request.al_pending || request.undo_pending {
            return true;
        }
        let (v, range, arrival, write) = (request.volume, request.range, request.arrival, request.is_write());
        let epoch = request.epoch;
        let resync_read = !write && request.kind != PeerKind::Read;
        let meets_own = matches!(request.kind, PeerKind::Write { .. }) && self.state(v).role == Role::Primary;
        if meets_own {
            match self.judge_peer_write(key) {
                Verdict::Apply => {}
                Verdict::Wait => return false,
                Verdict::Retry | Verdict::Supersede => return true,
            }
        }
        if self.strict_epochs()
            && let Some(epoch) = epoch
            && self.rx.epochs.front().is_some_and(|front| front.id != epoch)
        {
            return false;
        }
        let Some(vol) = self.volumes.get(&v) else { return true };
        if write && Self::undo_holds_writes(vol) {
            return false;
        }
        let range = Self::undo_range(vol, range);
        let before = |k: u64| k != key && self.peer_requests.get(k).is_some_and(|r| r.arrival < arrival);
        if vol.peer_active.overlapping(range).any(before) && !self.faulty(Fault::PeerOverlapsNotSerialised) {
            return false;
        }
        let on_disk = |k: u64| {
            use super::request::Side;
            self.requests.get(k).is_none_or(|r| matches!(r.local, Side::Ok | Side::Failed))
        };
        let overtakes = resync_read && self.faulty(Fault::ResyncReadOvertakes);
        let waits_for_own = (resync_read || write) && !overtakes && !meets_own;
        if waits_for_own && !vol.active.overlapping(range).all(on_disk) {
            return false;
        }
        if write && self.awaits_indicator(key) {
            return false;
        }
        if write {
            self.submit_peer_write(key);
        } else {
            self.submit_peer_read(key);
        }
        true
    }

    /// Something finished: starts what waited for it, in order of arrival. Nothing starts once the link has gone: the peer's
    /// disk is unknown by then, and a write for the only copy would reach it unmarked and without the activity log.
    pub(crate) fn wake_peer_requests(&mut self, v: VolumeNr) {
        self.settle_refused(v);
        let careless = self.faulty(Fault::WaitersOutliveLink);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.peer_waiting.is_empty() || (vol.state.conn <= ConnState::WfConnection && !careless) {
            return;
        }
        let waiting = std::mem::take(&mut vol.peer_waiting);
        for key in waiting {
            if !self.try_peer(key)
                && let Some(vol) = self.volumes.get_mut(&v)
            {
                vol.peer_waiting.push_back(key);
            }
        }
    }

    pub(crate) fn submit_peer_io(&mut self, key: u64) {
        let (no_fua, no_discard) = (self.faulty(Fault::FuaIgnored), self.faulty(Fault::DiscardNotMirrored));
        if self.undo_before_peer(key) {
            return;
        }
        if let Some(request) = self.peer_requests.get(key).filter(|r| matches!(r.kind, PeerKind::Write { .. })) {
            self.note_overwritten(request.volume, request.range);
        }
        let Some(request) = self.peer_requests.get_mut(key) else { return };
        request.submitted = true;
        let (v, range, block_id, epoch) = (request.volume, request.range, request.block_id, request.epoch);
        let flags = if let PeerKind::Write { flags } = &request.kind { *flags } else { DpFlags::default() };
        let fua = flags.has(DpFlags::FUA) && !no_fua;
        let (io, resync) = (request.io.take(), request.kind == PeerKind::ResyncWrite);
        let io = match io {
            Some(WriteIo::Data(data)) => DiskOp::Write { range, data: SmallVec::from_elem(data, 1), fua },
            Some(WriteIo::Discard | WriteIo::Zeroes { may_unmap: true }) if no_discard && !resync => {
                return self.on_peer_written(key, &Ok(()));
            }
            Some(WriteIo::Discard) => self.discard_op(v, range),
            Some(WriteIo::Zeroes { may_unmap }) => DiskOp::WriteZeroes { range, may_unmap },
            None => return,
        };
        if self.volumes.get(&v).is_some_and(super::volume::Volume::disk_usable) {
            // Said only of what is on its way to the disk: the end of the link drops everything before that.
            if epoch.is_some() && self.wants_ack(flags, DpFlags::SEND_RECEIVE_ACK) {
                let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
                self.send_ack(v, range.start, block_id, size, Packet::RecvAck);
            }
            self.submit(v, io, Op::PeerWrite(key));
        } else {
            self.on_peer_written(key, &Err(DiskFailure { text: String::from("the disk is gone"), unsupported: true }));
        }
    }

    /// A write for the peer ended on the local disk.
    pub(crate) fn on_peer_written(&mut self, key: u64, result: &Result<(), DiskFailure>) {
        let Some(request) = self.peer_requests.get(key) else { return };
        let (v, range, orphan) = (request.volume, request.range, request.orphan);
        let flush = !orphan && matches!(&request.kind, PeerKind::Write { flags } if flags.has(DpFlags::FLUSH));
        if result.is_ok() && flush {
            // What the sender wanted flushed before this write is flushed with it, before the acknowledgement.
            let mark = self.data_flush_mark(v);
            return self.submit(v, DiskOp::Flush, Op::PeerFlush { key, mark });
        }
        if let Err(failure) = result {
            if !self.faulty(Fault::PeerErrorUnmarked) && !self.error_kept_quiet(key) {
                self.set_bits(v, range);
            }
            if !failure.unsupported {
                self.log_error(
                    v,
                    format!("local WRITE IO error sector {}+{}: {}", range.start, range.count, failure.text),
                );
            }
        }
        let failed = result.as_ref().is_err_and(|f| !f.unsupported);
        self.answer_peer_write(key, result.is_ok());
        if failed {
            self.on_io_error(v, Failed::PeerWrite);
        }
        self.finish_peer(key);
    }

    /// The flush behind a write with the flush flag ended.
    pub(crate) fn on_peer_flushed(&mut self, key: u64, result: &Result<(), DiskFailure>) {
        let Some((v, range, refused)) = self.peer_requests.get(key).map(|r| (r.volume, r.range, r.refused)) else {
            return;
        };
        if refused.is_some() {
            return self.on_refused_flushed(key, result);
        }
        if let Err(failure) = result {
            self.set_bits(v, range);
            self.log_error(v, format!("local FLUSH IO error: {}", failure.text));
        }
        self.answer_peer_write(key, result.is_ok());
        if result.as_ref().is_err_and(|f| !f.unsupported) {
            self.on_io_error(v, Failed::Flush);
        }
        self.finish_peer(key);
    }

    pub(crate) fn answer_peer_write(&mut self, key: u64, ok: bool) {
        let Some(request) = self.peer_requests.get(key) else { return };
        if (request.orphan && !self.faulty(Fault::OrphanAnswered)) || (!ok && self.error_kept_quiet(key)) {
            return;
        }
        let (v, range, block_id) = (request.volume, request.range, request.block_id);
        let (marked, stale, dropped) = (request.marked, request.stale, request.dropped);
        let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        match request.kind.clone() {
            PeerKind::Write { .. } if !ok => self.send_ack(v, range.start, block_id, size, Packet::NegAck),
            PeerKind::Write { flags } => {
                let syncing = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&self.state(v).conn);
                // Only together with the acknowledgement: both nodes clear the same bits or neither does.
                let due = self.wants_ack(flags, DpFlags::SEND_WRITE_ACK);
                let in_sync = due && flags.has(DpFlags::MAY_SET_IN_SYNC) && syncing && !marked && !stale;
                if in_sync {
                    self.clear_bits(v, range);
                }
                if due {
                    let kind = if in_sync { Packet::RsWriteAck } else { Packet::WriteAck };
                    self.send_ack(v, range.start, block_id, size, kind);
                }
            }
            PeerKind::ResyncWrite if dropped => self.old_resync_written(v, range, ok),
            PeerKind::ResyncWrite => self.resync_written(v, range, ok, stale),
            _ => {}
        }
    }

    /// Forgets a peer request and lets go what waited for it.
    pub(crate) fn finish_peer(&mut self, key: u64) {
        let Some(request) = self.peer_requests.remove(key) else { return };
        let v = request.volume;
        if let Some(vol) = self.volumes.get_mut(&v) {
            if request.is_write() {
                vol.peer_active.remove(request.range, key);
            } else {
                vol.resync_ranges.remove(request.range, key);
            }
            self.recheck_commands |= request.orphan;
            if request.kind != PeerKind::ResyncWrite && !request.orphan {
                vol.counters.unacked = vol.counters.unacked.saturating_sub(1);
            }
            if let (Some(span), Some(disk)) = (request.al, vol.disk.as_mut())
                && disk.al.end(span)
            {
                self.pump_al(v);
            }
        }
        if let (Some(id), false) = (request.epoch, request.orphan)
            && let Some(epoch) = self.rx.epochs.iter_mut().find(|e| e.id == id)
        {
            epoch.active = epoch.active.saturating_sub(1);
            self.progress_epochs();
        }
        if matches!(request.kind, PeerKind::Write { .. }) && request.refused.is_none() && !request.orphan {
            self.conflicts_over(v, request.range);
        }
        self.wake_peer_requests(v);
        self.retry_blocked(v);
        self.admit(v);
    }

    /// Sends a block acknowledgement with the next sequence number.
    pub(crate) fn send_ack(
        &mut self,
        v: VolumeNr,
        sector: crate::units::Sector,
        block_id: BlockId,
        blksize: u32,
        kind: fn(BlockAck) -> Packet,
    ) {
        if self.conn.link.is_none() {
            return;
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let seq = vol.next_seq();
        self.send_meta(v, kind(BlockAck { sector, block_id, blksize, seq }));
    }

    /// The link is gone: nothing is answered any more; what has not started is dropped (the peer marks it out of sync).
    pub(crate) fn peer_requests_orphaned(&mut self) {
        let keys: Vec<u64> = self.peer_requests.iter().map(|(key, _)| key).collect();
        for key in &keys {
            if let Some(request) = self.peer_requests.get_mut(*key) {
                request.orphan = true;
            }
        }
        for key in keys {
            if self.peer_requests.get(key).is_some_and(|r| !r.submitted && !r.al_pending) {
                self.finish_peer(key);
            }
        }
        for vol in self.volumes.values_mut() {
            vol.peer_waiting.clear();
            vol.refused.clear();
        }
        if !self.faulty(Fault::EpochsNotReset) {
            self.rx.epochs.clear();
        }
        self.rx.flushing = 0;
        self.rx.covered = 0;
        self.rx.round += 1;
        self.rx.urgent = false;
    }

    /// Whether writes of a link that is gone are still on their way to the good disk of `v`: until they are there,
    /// nobody may rely on what it holds.
    pub(crate) fn orphans_on_their_way(&self, v: VolumeNr) -> bool {
        self.volumes.get(&v).is_some_and(super::volume::Volume::disk_usable)
            && self.peer_requests.iter().any(|(_, r)| r.volume == v && r.orphan && r.is_write())
    }

    /// Bits in the ranges of these writes were set just now.
    pub(crate) fn peer_writes_stale(&mut self, keys: &[u64]) {
        for key in keys {
            if let Some(request) = self.peer_requests.get_mut(*key) {
                request.stale = true;
            }
        }
    }

    /// The disk of a volume is gone: its peer requests hold no activity-log references any more.
    pub(crate) fn peer_requests_drop_al(&mut self, v: VolumeNr) {
        let keys: Vec<u64> = self.peer_requests.iter().filter(|(_, r)| r.volume == v).map(|(key, _)| key).collect();
        for key in keys {
            if let Some(request) = self.peer_requests.get_mut(key) {
                request.al = None;
            }
        }
    }
}
