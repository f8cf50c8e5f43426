//! Disk operations in flight: what each was for.
//!
//! Owns the table from operation id to purpose, and the local-reference count of each volume (the `lo:` counter; a disk
//! is given up only at 0).

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::{Action, DiskOp};
use crate::engine::al::FlushMark;
use crate::engine::event::{DiskFailure, DiskResult, OpId};
use crate::units::VolumeNr;

/// Why an operation was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A stage of a metadata job.
    Md { mark: Option<FlushMark> },
    /// Local part of an application write, discard or write-zeroes.
    RequestWrite(u64),
    /// Application read.
    RequestRead(u64),
    /// Application flush.
    RequestFlush { flush: u64, mark: Option<FlushMark> },
    /// A write on the peer's behalf (replicated or resync).
    PeerWrite(u64),
    /// A read on the peer's behalf.
    PeerRead(u64),
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
        let id = OpId(self.ops.insert(PendingOp { volume: v, op }));
        self.out.push(Action::Disk { op: id, volume: v, io });
    }

    /// Starts a flush of the data device, if there is a disk; the mark tells the activity log what it covered.
    pub(crate) fn data_flush_mark(&mut self, v: VolumeNr) -> Option<FlushMark> {
        let disk = self.volumes.get_mut(&v)?.disk.as_mut()?;
        disk.unflushed = false;
        Some(disk.al.data_flush_started())
    }

    /// A disk operation ended.
    pub(crate) fn on_disk(&mut self, id: OpId, result: DiskResult) {
        let Some(PendingOp { volume: v, op }) = self.ops.remove(id.0) else { return };
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.local = vol.counters.local.saturating_sub(1);
        }
        match op {
            Op::Md { mark } => self.on_md_op(v, mark, result.map(drop)),
            Op::RequestWrite(key) => self.on_request_written(key, result.map(drop)),
            Op::RequestRead(key) => self.on_request_read(key, required(result)),
            Op::RequestFlush { flush, mark } => {
                self.note_flush(v, mark, result.is_ok());
                self.on_request_flushed(flush, v, result.map(drop));
            }
            Op::PeerWrite(key) => self.on_peer_written(key, &result.map(drop)),
            Op::PeerRead(key) => self.on_peer_read(key, required(result)),
            Op::EpochFlush { round, mark } => {
                self.note_flush(v, mark, result.is_ok());
                self.on_epoch_flushed(v, round, result.map(drop));
            }
            Op::PeerFlush { key, mark } => {
                self.note_flush(v, mark, result.is_ok());
                self.on_peer_flushed(key, result.is_ok());
            }
        }
        self.finish_detach(v);
    }

    fn note_flush(&mut self, v: VolumeNr, mark: Option<FlushMark>, ok: bool) {
        let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
        match (mark, ok) {
            (Some(mark), true) => disk.al.note_data_flush(mark),
            _ => disk.unflushed = true,
        }
    }
}

fn required(result: DiskResult) -> Result<Bytes, DiskFailure> {
    result?.ok_or_else(|| DiskFailure { text: String::from("read brought no data"), unsupported: false })
}
