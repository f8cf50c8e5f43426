//! A disk that does not answer is given up: `disk-timeout`, and `detach --force` (behaviour.md 6.7, 10.1, 10.2, 10.6).
//!
//! Takes in the age of the operations in flight. Gives out the end of the disk, and a failure for everything that waits for
//! it: clients, the peer, the activity log, metadata jobs and whoever waits for those. Invariants: an operation that was
//! given up decides nothing any more when it ends after all, well or not; its buffer belongs to the driver until then; and
//! the disk stays Failed, its devices open, until the last of them has ended, so that no late write meets a later attach.
//!
//! 8.4 watches the own application's requests and the metadata; this watches everything on the device, as a Secondary's hung
//! disk would otherwise only be noticed by its peer's ko-count, and would keep the next connection from coming up.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::event::{DiskFailure, Timer};
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::state::StateChange;
use crate::limits::DISK_TIMEOUT_CONFIRM_MS;
use crate::units::VolumeNr;
use crate::wire::state::{ConnState, DiskState};

impl Engine {
    /// An operation starts: the oldest one is watched from now on.
    pub(crate) fn arm_disk_timeout(&mut self, v: VolumeNr) {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.opts.disk_timeout.is_zero() || vol.disk_timer {
            return;
        }
        vol.disk_timer = true;
        let at = now.after(vol.opts.disk_timeout);
        self.out.push(Action::SetTimer { timer: Timer::DiskTimeout(v), at });
    }

    /// The oldest operation may be overdue. It is asked for a second time before the disk goes: a node that stood still for
    /// a while finds the timer before the completions that came meanwhile.
    pub(crate) fn on_disk_timeout(&mut self, v: VolumeNr) {
        let now = self.now;
        let waits = self.ops.iter().filter(|(_, op)| op.volume == v && !op.given_up);
        let oldest = waits.map(|(key, op)| (op.started, key, matches!(op.op, Op::Md { .. }))).min();
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.disk_timer = false;
        let limit = vol.opts.disk_timeout;
        let (Some((started, key, meta)), false) = (oldest, limit.is_zero()) else { return };
        let suspect = vol.disk_suspect.replace(key);
        let due = started.after(limit);
        if now < due || suspect != Some(key) {
            if now < due {
                vol.disk_suspect = None;
            }
            vol.disk_timer = true;
            let at = due.max(now.after(Duration::from_millis(if now < due { 0 } else { DISK_TIMEOUT_CONFIRM_MS })));
            return self.out.push(Action::SetTimer { timer: Timer::DiskTimeout(v), at });
        }
        let text = if meta {
            "meta-data IO operation timed out"
        } else {
            "Local backing device failed to meet the disk-timeout"
        };
        self.log(Level::Error, Some(v), text);
        self.force_off(v, Some(Failed::Timeout));
    }

    /// Takes the disk away, whatever is under way on it; `why` if it is an error of the device's.
    pub(crate) fn force_off(&mut self, v: VolumeNr, why: Option<Failed>) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.forced_detach = true;
        let goes_already = vol.state.disk <= DiskState::Failed && vol.disk.is_some();
        match why {
            // It was going, and hangs on the way.
            _ if goes_already => self.give_up_operations(v),
            Some(why) => self.on_io_error(v, why),
            None => {
                self.part_if_ahead(v);
                self.force(v, &StateChange::NONE.disk(DiskState::Failed));
            }
        }
    }

    /// Disks that a change of their state has taken away.
    pub(crate) fn give_up_what_is_due(&mut self) {
        for v in std::mem::take(&mut self.give_up_due) {
            self.give_up_operations(v);
        }
    }

    /// Everything that waits for the disk goes on as after a failure.
    pub(crate) fn give_up_operations(&mut self, v: VolumeNr) {
        let mut given_up = Vec::new();
        for (key, op) in self.ops.iter() {
            if op.volume == v && !op.given_up {
                given_up.push((key, op.op));
            }
        }
        for (key, _) in &given_up {
            if let Some(op) = self.ops.get_mut(*key) {
                op.given_up = true;
            }
        }
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.stuck = vol.stuck.saturating_add(given_up.len() as u64);
        }
        for (_, op) in given_up {
            let text = String::from("the disk was given up");
            self.op_ended(v, op, Err(DiskFailure { text, unsupported: false }));
        }
        let waiting = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()).map(|disk| disk.al.drain_waiting());
        for key in waiting.unwrap_or_default() {
            self.al_bypassed(key);
        }
        if !self.rx.epochs.is_empty() {
            // What the peer sent may be in the disk's cache for ever. It is not acknowledged, and the peer marks it.
            self.log(Level::Error, Some(v), "data that the peer sent may be lost; dropping the connection");
            self.drop_link(ConnState::NetworkFailure);
        }
    }

    /// An operation that was given up has ended after all.
    pub(crate) fn late_completion(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.stuck = vol.stuck.saturating_sub(1);
        }
        self.finish_detach(v);
    }

    /// Whether a disk may go: nothing is under way on it.
    pub(crate) fn disk_is_idle(&self, v: VolumeNr) -> bool {
        let careless = self.faulty(Fault::ClosedWithStuckIo);
        self.volumes.get(&v).is_some_and(|vol| {
            let in_flight = if careless { vol.counters.local.saturating_sub(vol.stuck) } else { vol.counters.local };
            in_flight == 0 && vol.md.is_idle()
        })
    }
}
