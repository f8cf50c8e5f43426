//! A congested link: Ahead and Behind (behaviour.md 7.9, wire.md 5.9).
//!
//! Takes in: a write that is about to be sent, barrier acknowledgements, its timer. Gives out: the step to Ahead (or the end of
//! the connection, as `on-congestion` says), and the resync that ends it. Invariants: the peer hears that this node is Ahead
//! before it hears of a block that it misses; no write is completed in a generation that the peer calls its own as well, so
//! that neither a crash nor a forced peer can take the old data for the new ones; nothing that was sent is without its
//! barrier acknowledgement when the resync begins.
//!
//! **No flapping.** 8.4 goes Ahead again in the middle of the resync that is to end it, and then never gets through. Here only a
//! Connected node goes Ahead: while the resync runs its clients wait for the link, as under `on-congestion block`. And each
//! time that it goes Ahead within [`CONGESTION_CALM_S`] of the last resync's end it stays there twice as long, up to
//! [`CONGESTION_DWELL_MAX_S`]: in any minute it goes Ahead at most [`CONGESTION_PHASES_MAX`] times. (Where lost connections end it
//! sooner the clients wait for the link from then on.)

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::event::Timer;
use crate::engine::fault::Fault;
use crate::engine::options::OnCongestion;
use crate::engine::state::{ChangeMode, StateChange, VolumeState};
use crate::limits::{CONGESTION_CALM_S, CONGESTION_DWELL_MAX_S, CONGESTION_PHASES_MAX, CONGESTION_POSTPONE_MS};
use crate::units::{SectorRange, Timestamp, VolumeNr};
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState, Role};

/// What a volume remembers of its congestion.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Congestion {
    /// Sectors sent to the peer and not covered by a barrier acknowledgement.
    pub in_flight: u64,
    /// How often the time in Ahead was doubled.
    doubled: u32,
    /// It was Ahead, and has not been Connected since.
    ahead: bool,
    /// When that was over the last time.
    ended: Option<Timestamp>,
    /// The end of Ahead is ordered.
    leaves: bool,
    /// When it went Ahead the last times, the oldest one first.
    entries: [Option<Timestamp>; CONGESTION_PHASES_MAX],
}

impl Congestion {
    /// How long to stay Ahead once nothing is under way.
    fn dwell(&self) -> Duration {
        Duration::from_secs(1u64.checked_shl(self.doubled).unwrap_or(u64::MAX).min(CONGESTION_DWELL_MAX_S))
    }

    fn too_often(&self, now: Timestamp) -> bool {
        self.entries[0].is_some_and(|oldest| now < oldest.after(Duration::from_secs(60)))
    }

    fn enter(&mut self, now: Timestamp) {
        self.entries.rotate_left(1);
        self.entries[CONGESTION_PHASES_MAX - 1] = Some(now);
        let again = self.ended.is_some_and(|ended| now < ended.after(Duration::from_secs(CONGESTION_CALM_S)));
        self.doubled = if again { (self.doubled + 1).min(16) } else { 0 };
        self.ahead = true;
        self.leaves = false;
    }

    /// The state changed.
    pub(crate) fn note(&mut self, old: ConnState, new: ConnState, now: Timestamp) {
        if old != ConnState::Connected && new == ConnState::Connected && std::mem::take(&mut self.ahead) {
            self.ended = Some(now);
        }
        if new != ConnState::Ahead {
            self.leaves = false;
        }
    }
}

impl Engine {
    /// A write that was under way is acknowledged by its barrier, or lost with the link.
    pub(crate) fn note_arrived(&mut self, v: VolumeNr, range: SectorRange) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.congestion.in_flight = vol.congestion.in_flight.saturating_sub(range.count.0);
        }
    }

    /// Before a write is sent: whether the link is congested, and the state changes for that reason. The write then waits
    /// until the peer was told.
    pub(crate) fn yields_to_congestion(&mut self, v: VolumeNr, state: &VolumeState) -> bool {
        let Some(opts) = self.conn.opts.as_ref() else { return false };
        let (policy, fill, extents) = (opts.on_congestion, opts.congestion_fill, opts.congestion_extents);
        let possible = match policy {
            OnCongestion::Block => false,
            OnCongestion::PullAhead => opts.protocol == ReplProtocol::A,
            OnCongestion::Disconnect => true,
        };
        let good = state.conn == ConnState::Connected
            && state.role == Role::Primary
            && (state.disk, state.pdsk) == (DiskState::UpToDate, DiskState::UpToDate);
        if !possible || !good || self.conn.version < 96 || self.conn.link.is_none() {
            return false;
        }
        let Some(vol) = self.volumes.get(&v) else { return false };
        if policy == OnCongestion::PullAhead && vol.congestion.too_often(self.now) && !self.faulty(Fault::AheadFlaps) {
            return false;
        }
        let full = fill.0 > 0 && vol.congestion.in_flight >= fill.0;
        let wide = vol.disk.as_ref().is_some_and(|disk| u32::from(disk.al.used()) >= extents);
        if full {
            self.log(Level::Info, Some(v), "Congestion-fill threshold reached");
        }
        if wide {
            self.log(Level::Info, Some(v), "Congestion-extents threshold reached");
        }
        if !full && !wide {
            return false;
        }
        self.epochs.close();
        if policy == OnCongestion::Disconnect {
            self.drop_link(ConnState::Disconnecting);
            return true;
        }
        self.pull_ahead(v)
    }

    fn pull_ahead(&mut self, v: VolumeNr) -> bool {
        if let Err(code) = self.change(v, &StateChange::NONE.conn(ConnState::Ahead), ChangeMode::Soft) {
            self.log(Level::Warn, Some(v), format!("cannot pull ahead: {}", code.text()));
            return false;
        }
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return true };
        vol.congestion.enter(now);
        self.new_current_uuid(v);
        self.send_uuids_durably(v);
        self.tell_marked(v);
        // The extents may be those of writes that have arrived.
        self.check_ahead(v);
        true
    }

    /// Nothing is under way any more to a peer that is Behind: the resync is ordered.
    pub(crate) fn check_ahead(&mut self, v: VolumeNr) {
        let flaps = self.faulty(Fault::AheadFlaps);
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let congestion = &mut vol.congestion;
        if vol.state.conn == ConnState::Ahead && congestion.in_flight == 0 && !congestion.leaves {
            congestion.leaves = true;
            let dwell = if flaps { Duration::from_millis(20) } else { congestion.dwell() };
            self.out.push(Action::SetTimer { timer: Timer::LeaveAhead(v), at: now.after(dwell) });
        }
    }

    /// The time Ahead is over.
    pub(crate) fn on_leave_ahead(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.state.conn != ConnState::Ahead || !vol.congestion.leaves {
            return;
        }
        if vol.counters.unacked > 0 {
            self.log(Level::Warn, Some(v), "postponing start_resync ...");
            let at = self.now.after(Duration::from_millis(CONGESTION_POSTPONE_MS));
            return self.out.push(Action::SetTimer { timer: Timer::LeaveAhead(v), at });
        }
        self.start_source(v);
    }

    /// The own disk is about to go while the peer lacks what was written: what the peer has must not pass for good. With the
    /// link its state is unknown, and the next handshake compares generations.
    pub(crate) fn part_if_ahead(&mut self, v: VolumeNr) {
        if self.state(v).conn == ConnState::Ahead {
            self.log(Level::Error, Some(v), "the disk goes while the peer is behind; dropping the connection");
            self.drop_link(ConnState::NetworkFailure);
        }
    }
}
