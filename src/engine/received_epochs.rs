//! Epochs on the receiving side: what the peer's barriers end, and the flush that lets them be acknowledged.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, DiskOp, Level};
use crate::engine::event::{DiskFailure, Timer};
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::limits::{EPOCH_FLUSH_DELAY_MS, EPOCH_FLUSH_WRITES};
use crate::units::VolumeNr;
use crate::wire::packet::Packet;

impl Engine {
    /// Whether writes of an epoch wait for the one before.
    pub(crate) fn strict_epochs(&self) -> bool {
        !self.conn.relaxed_epochs
            && self.volumes.values().any(|vol| vol.disk.is_some() && (vol.opts.disk_flushes || vol.opts.disk_drain))
    }

    /// The peer's barrier: the open epoch is complete. One without writes is ignored, as the kernel does.
    pub(crate) fn on_barrier(&mut self, barrier: u32) {
        if let Some(epoch) = self.rx.epochs.back_mut().filter(|e| e.barrier.is_none() && e.writes + e.refused > 0) {
            epoch.barrier = Some(barrier);
            self.progress_epochs();
        }
    }

    /// The peer's hint: under relaxed epochs a client waits for the barrier acknowledgement.
    pub(crate) fn on_unplug(&mut self) {
        if self.conn.relaxed_epochs && !self.rx.epochs.is_empty() {
            self.rx.urgent = true;
            self.progress_epochs();
        }
    }

    /// The delay after which received epochs are flushed at the latest is over.
    pub(crate) fn on_epoch_timer(&mut self) {
        self.rx.timer = false;
        self.rx.urgent = true;
        self.progress_epochs();
    }

    pub(crate) fn progress_epochs(&mut self) {
        if self.rx.flushing > 0 {
            return;
        }
        let complete = self.rx.epochs.iter().take_while(|e| e.barrier.is_some() && e.active == 0).count();
        if complete == 0 {
            return;
        }
        let flushed: Vec<VolumeNr> = self
            .volumes
            .values()
            // A disk that is being detached may hold writes of these epochs in its cache; one that was given up has none of
            // this link.
            .filter(|vol| vol.disk.is_some() && vol.stuck == 0 && vol.opts.disk_flushes && !self.rx.drain_only)
            .map(|vol| vol.nr)
            .collect();
        if flushed.is_empty() || self.faulty(Fault::BarrierAckBeforeFlush) {
            self.rx.covered = complete;
            return self.retire_epochs();
        }
        let writes: u32 = self.rx.epochs.iter().take(complete).map(|e| e.writes).sum();
        if self.conn.relaxed_epochs && !self.rx.urgent && writes < EPOCH_FLUSH_WRITES {
            if !self.rx.timer {
                self.rx.timer = true;
                let at = self.now.after(Duration::from_millis(EPOCH_FLUSH_DELAY_MS));
                if !self.faulty(Fault::EpochTimerForgotten) {
                    self.out.push(Action::SetTimer { timer: Timer::EpochFlush, at });
                }
            }
            return;
        }
        self.rx.urgent = false;
        self.rx.round += 1;
        self.rx.covered = complete;
        self.rx.flushing = u32::try_from(flushed.len()).unwrap_or(u32::MAX);
        let round = self.rx.round;
        for v in flushed {
            let mark = self.data_flush_mark(v);
            self.submit(v, DiskOp::Flush, Op::EpochFlush { round, mark });
        }
    }

    /// One volume's flush for received epochs ended.
    pub(crate) fn on_epoch_flushed(&mut self, v: VolumeNr, round: u64, result: Result<(), DiskFailure>) {
        match result {
            Ok(()) => {}
            Err(failure) if failure.unsupported => {
                self.log(Level::Warn, Some(v), format!("Method to ensure write ordering: drain ({})", failure.text));
                self.rx.drain_only = true;
            }
            Err(failure) => {
                // Never acknowledged: the link ends with it, and the peer marks these writes.
                self.log_error(v, format!("local FLUSH IO error: {}", failure.text));
                self.on_io_error(v, Failed::Flush);
                return;
            }
        }
        if round != self.rx.round || self.rx.flushing == 0 {
            return;
        }
        self.rx.flushing -= 1;
        if self.rx.flushing == 0 {
            self.retire_epochs();
        }
    }

    pub(crate) fn retire_epochs(&mut self) {
        for epoch in self.rx.epochs.drain(..self.rx.covered).collect::<Vec<_>>() {
            // As a kernel does: one of nothing but refused writes is not acknowledged.
            if let Some(barrier) = epoch.barrier.filter(|_| epoch.writes > 0) {
                self.send_meta(VolumeNr(0), Packet::BarrierAck { barrier, set_size: epoch.writes });
            }
        }
        self.rx.covered = 0;
        for v in self.volume_numbers() {
            self.wake_peer_requests(v);
        }
        self.progress_epochs();
    }
}
