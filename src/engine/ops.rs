//! Disk operations in flight: what each was for.
//!
//! Owns the table from operation id to purpose, and the local-reference count of each volume (the `lo:` counter; a disk
//! is given up only at 0).

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::{Action, DiskOp, Level};
use crate::engine::al::FlushMark;
use crate::engine::event::{DiskFailure, DiskResult, OpId};
use crate::limits::AL_EXTENT_SECTORS;
use crate::units::{Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::state::ConnState;

/// Why an operation was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A stage of a metadata job.
    Md { mark: Option<FlushMark> },
    /// Local part of an application write, discard or write-zeroes.
    RequestWrite(u64),
    /// Flush behind a durable write-zeroes.
    RequestWriteFlush { key: u64, mark: Option<FlushMark> },
    /// Application read.
    RequestRead(u64),
    /// Application flush.
    RequestFlush { flush: u64, mark: Option<FlushMark> },
    /// A write on the peer's behalf (replicated or resync).
    PeerWrite(u64),
    /// A read on the peer's behalf.
    PeerRead(u64),
    /// Old contents, to be saved before they are overwritten.
    UndoRead(u64),
    /// Flush that finishes received epochs.
    EpochFlush { round: u64, mark: Option<FlushMark> },
    /// Flush behind a write with the flush flag.
    PeerFlush { key: u64, mark: Option<FlushMark> },
}

/// An operation in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingOp {
    pub volume: VolumeNr,
    pub op: Op,
    pub started: Timestamp,
    /// The disk was given up: its end decides nothing.
    pub given_up: bool,
}

impl Engine {
    /// Hands an operation to the disk driver.
    pub(crate) fn submit(&mut self, v: VolumeNr, io: DiskOp, op: Op) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.local += 1;
            match &io {
                DiskOp::Read(range) => vol.counters.disk_read += range.count.0,
                DiskOp::Write { range, .. } | DiskOp::Discard(range) | DiskOp::WriteZeroes { range, .. } => {
                    vol.counters.disk_written += range.count.0;
                    if let Some(disk) = vol.disk.as_mut() {
                        disk.unflushed = true;
                    }
                }
                DiskOp::Flush | DiskOp::MetaWrite { .. } | DiskOp::MetaFlush => {}
            }
        }
        let id = OpId(self.ops.insert(PendingOp { volume: v, op, started: self.now, given_up: false }));
        self.arm_disk_timeout(v);
        self.out.push(Action::Disk { op: id, volume: v, io });
    }

    /// The operation after which a discarded range reads as zeroes on both nodes. A device that does not promise it is
    /// discarded only where the administrator says that whole granules read as zeroes (`discard-zeroes-if-aligned`).
    pub(crate) fn discard_op(&self, v: VolumeNr, range: SectorRange) -> DiskOp {
        let zeroes = self.volumes.get(&v).is_some_and(|vol| {
            let promised = vol.disk.as_ref().is_some_and(|disk| disk.geometry.discard_zeroes);
            promised || vol.opts.discard_zeroes_if_aligned
        });
        if zeroes { DiskOp::Discard(range) } else { DiskOp::WriteZeroes { range, may_unmap: true } }
    }

    /// Starts a flush of the data device, if there is a disk; the mark tells the activity log what it covered.
    pub(crate) fn data_flush_mark(&mut self, v: VolumeNr) -> Option<FlushMark> {
        let disk = self.volumes.get_mut(&v)?.disk.as_mut()?;
        disk.unflushed = false;
        disk.flushing += 1;
        Some(disk.al.data_flush_started())
    }

    /// A disk operation ended.
    pub(crate) fn on_disk(&mut self, id: OpId, result: DiskResult) {
        let Some(PendingOp { volume: v, op, given_up, .. }) = self.ops.remove(id.0) else { return };
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.local = vol.counters.local.saturating_sub(1);
        }
        if given_up {
            return self.late_completion(v);
        }
        self.op_ended(v, op, result);
        self.finish_detach(v);
    }

    /// Whoever an operation was for goes on.
    pub(crate) fn op_ended(&mut self, v: VolumeNr, op: Op, result: DiskResult) {
        match op {
            Op::Md { mark } => self.on_md_op(v, mark, result.map(drop)),
            Op::RequestWrite(key) => {
                self.note_written(v);
                if result.is_ok() && self.wants_flush_behind(key) {
                    let mark = self.data_flush_mark(v);
                    self.submit(v, DiskOp::Flush, Op::RequestWriteFlush { key, mark });
                } else {
                    self.on_request_written(key, result.map(drop));
                }
            }
            Op::RequestWriteFlush { key, mark } => {
                self.note_flush(v, mark, &result);
                self.on_request_written(key, result.map(drop));
            }
            Op::RequestRead(key) => self.on_request_read(key, required(result)),
            Op::RequestFlush { flush, mark } => {
                self.note_flush(v, mark, &result);
                self.on_request_flushed(flush, v, result.map(drop));
            }
            Op::PeerWrite(key) => {
                self.note_written(v);
                self.on_peer_written(key, &result.map(drop));
            }
            Op::PeerRead(key) => self.on_peer_read(key, required(result)),
            Op::UndoRead(token) => self.on_undo_read(token, required(result)),
            Op::EpochFlush { round, mark } => {
                self.note_flush(v, mark, &result);
                self.on_epoch_flushed(v, round, result.map(drop));
            }
            Op::PeerFlush { key, mark } => {
                self.note_flush(v, mark, &result);
                self.on_peer_flushed(key, &result.map(drop));
            }
        }
    }

    /// A write ended: no flush that began before covers it.
    fn note_written(&mut self, v: VolumeNr) {
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.unflushed = true;
        }
    }

    fn note_flush(&mut self, v: VolumeNr, mark: Option<FlushMark>, result: &DiskResult) {
        let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
        disk.flushing = disk.flushing.saturating_sub(u32::from(mark.is_some()));
        match (mark, result) {
            (Some(mark), Ok(_)) => disk.al.note_data_flush(mark),
            (_, Err(failure)) if !failure.unsupported => self.data_flush_failed(v),
            _ => disk.unflushed = true,
        }
    }

    /// A flush of the data device failed: whatever was written since the last good one may be gone, as after a crash.
    /// The activity log knows the own writes among it, the peer those of its epochs that are not acknowledged.
    pub(crate) fn data_flush_failed(&mut self, v: VolumeNr) {
        let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
        disk.unflushed = true;
        let extents = disk.al.unflushed_extents();
        for extent in extents {
            let range = SectorRange {
                start: Sector(u64::from(extent.0) * AL_EXTENT_SECTORS),
                count: Sectors(AL_EXTENT_SECTORS),
            };
            self.set_bits(v, range);
            self.source_failed(v, range);
        }
        if !self.rx.epochs.is_empty() {
            self.log(Level::Error, Some(v), "data that the peer sent may be lost; dropping the connection");
            self.drop_link(ConnState::NetworkFailure);
        }
    }
}

fn required(result: DiskResult) -> Result<Bytes, DiskFailure> {
    result?.ok_or_else(|| DiskFailure { text: String::from("read brought no data"), unsupported: false })
}
