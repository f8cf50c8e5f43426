//! Suspended I/O: what waits, what is kept when the link goes meanwhile, and how it goes on (behaviour.md 6.8).
//!
//! While a `susp` flag is set nothing of the applications is admitted and nothing is completed to them. When the link is lost
//! while I/O waits for fencing or for data, the writes that no barrier acknowledgement covers are *frozen*: neither lost nor
//! marked, and kept with their data. Ways out: they are *sent again* to a peer that came back in the same generation, or they
//! are *lost* like those of any link, after the generation that was put off has begun. Invariants: the flags belong to the
//! resource, every volume carries the same; nothing new goes to the peer before what is frozen was sent again, in its order and
//! its epochs; a write that was frozen and cannot be sent again is marked, in a generation that makes the next handshake look
//! at the marks.

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::admin::{Pending, Wait};
use crate::engine::conflict::Standing;
use crate::engine::event::RequestId;
use crate::engine::fault::Fault;
use crate::engine::request::{Kind, NO_CLIENT, Side};
use crate::engine::state::{
    Effect, Fencing, RestartHow, StateChange, VolumeState, admits_io, replicates, sends_out_of_sync, susp_text,
    writes_locally,
};
use crate::limits::AL_EXTENT_SECTORS;
use crate::units::VolumeNr;
use crate::wire::state::{ConnState, DiskState, Role};

/// What becomes of the frozen writes when I/O goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They are sent again.
    Resent,
    /// The peer lacks them.
    Lost,
    /// There are none of a lost link.
    None,
}

impl Engine {
    /// Whether the applications' I/O waits, for whatever reason.
    pub(crate) fn suspended(&self) -> bool {
        self.volumes.values().next().is_some_and(|vol| vol.state.is_suspended())
    }

    /// Whether the loss of the link leaves unacknowledged writes as they are.
    pub(crate) fn freezes_requests(&self) -> bool {
        self.volumes.values().next().is_some_and(|vol| vol.state.susp_nod || vol.state.susp_fen)
    }

    /// Whether a loss of the link may freeze writes, so that their data has to be kept until a barrier acknowledgement.
    pub(crate) fn may_freeze(&self) -> bool {
        self.opts.suspend_without_data
            || self.volumes.values().any(|vol| vol.opts.fencing == Fencing::ResourceAndStonith)
    }

    /// Brings what a change of one volume made of the flags to the others.
    pub(crate) fn share_suspension(&mut self, v: VolumeNr, old: &VolumeState) {
        let new = self.state(v);
        let flags = |s: &VolumeState| (s.susp, s.susp_nod, s.susp_fen);
        if flags(old) == flags(&new) {
            return;
        }
        let shared = StateChange::NONE.susp(new.susp).susp_nod(new.susp_nod).susp_fen(new.susp_fen);
        let others: Vec<VolumeNr> =
            self.volumes.values().filter(|vol| flags(&vol.state) != flags(&new)).map(|vol| vol.nr).collect();
        if others.len() + 1 == self.volumes.len() {
            let text = susp_text(old, &new);
            if !text.is_empty() {
                self.log(Level::Info, None, text.trim_end());
            }
        }
        if let Some(other) = others.first() {
            self.force(*other, &shared);
        }
    }

    /// The link is gone: its requests are kept or lost.
    pub(crate) fn requests_end(&mut self) {
        if !self.freezes_requests() {
            return self.requests_lost();
        }
        let again = self.refused_begin_again();
        for key in self.epochs.freeze() {
            if again.contains(&key) {
                continue;
            }
            if let Some(request) = self.requests.get_mut(key) {
                request.set_in_sync = false;
                request.sync_due = false;
                request.standing = Standing::Free;
                if request.master == NO_CLIENT {
                    // It was to end an epoch, and that is over.
                    request.net = Side::Failed;
                    request.retired = true;
                }
            }
            self.progress(key);
        }
        for key in again {
            self.begin_again(key);
        }
        self.reads_lost();
        for vol in self.volumes.values_mut() {
            vol.counters.pending = 0;
        }
    }

    /// A flush that came while I/O is suspended; it begins when that is over.
    pub(crate) fn put_off_flush(&mut self, id: RequestId, v: VolumeNr) {
        self.frozen_flushes.push((id, v));
    }

    /// Whether everything that is frozen can be sent on this link.
    pub(crate) fn can_resend(&self) -> bool {
        self.epochs.frozen().all(|key| {
            self.requests.get(key).is_none_or(|r| {
                let good = self.state(r.volume).disk == DiskState::UpToDate;
                let there = r.data.is_some() || !matches!(r.kind, Kind::Write { .. }) || !good;
                r.net == Side::Failed || (there && r.range.bytes() <= self.part_bytes_max(r.kind))
            })
        })
    }

    /// A change of the state lets I/O go on.
    pub(crate) fn thaw_by(&mut self, effect: Effect) {
        let Some(state) = self.volumes.values().next().map(|vol| vol.state) else { return };
        let parted = self.conn.state < ConnState::WfReportParams;
        let (clear, fate) = match effect {
            // Another volume's change, or an earlier effect of this one, has let it go on already.
            Effect::ThawNoData(_) if !state.susp_nod => return,
            Effect::ThawFenced | Effect::ThawReconnected if !state.susp_fen => return,
            Effect::ThawFenced if parted => (StateChange::NONE.susp_fen(false), Fate::Lost),
            Effect::ThawFenced => (StateChange::NONE.susp_fen(false), Fate::Resent),
            Effect::ThawReconnected => (StateChange::NONE.susp_fen(false), Fate::Resent),
            Effect::ThawNoData(RestartHow::Resend) => (StateChange::NONE.susp_nod(false), Fate::Resent),
            Effect::ThawNoData(RestartHow::RestartDiskIo) => {
                self.restart_local();
                let fate = if parted { Fate::Lost } else { Fate::None };
                (StateChange::NONE.susp_nod(false), fate)
            }
            _ => return,
        };
        if fate == Fate::Resent && !self.can_resend() {
            self.log(Level::Error, None, "the peer does not take what is to be sent again; it is resynced instead");
            self.thaw(&clear, Fate::Lost);
            return self.drop_link(ConnState::ProtocolError);
        }
        self.thaw(&clear, fate);
    }

    /// I/O goes on, as far as no other flag suspends it. `clear` says which flags go.
    pub(crate) fn thaw(&mut self, clear: &StateChange, fate: Fate) {
        match fate {
            Fate::Resent => {
                for v in self.volume_numbers() {
                    let state = self.state(v);
                    if state.conn == ConnState::Connected && state.pdsk < DiskState::Inconsistent {
                        // The peer has no disk to take what was frozen: it finds that out by the generation, when it has one.
                        self.begin_pending_generation(v);
                        self.send_uuids_durably(v);
                    } else if state.conn >= ConnState::Connected
                        && let Some(vol) = self.volumes.get_mut(&v)
                    {
                        vol.new_uuid_pending = false;
                    }
                }
                if self.faulty(Fault::ResendForgotten) {
                    for key in self.epochs.drain() {
                        if let Some(request) = self.requests.get_mut(key) {
                            request.retired = true;
                            request.net = if request.net == Side::Pending { Side::Failed } else { request.net };
                        }
                    }
                }
            }
            Fate::Lost => {
                for v in self.volume_numbers() {
                    self.begin_pending_generation(v);
                }
                self.requests_lost();
            }
            Fate::None => {
                for v in self.volume_numbers() {
                    let state = self.state(v);
                    let due = self.volumes.get(&v).is_some_and(|vol| vol.new_uuid_pending);
                    if due && state.conn >= ConnState::Connected && state.pdsk < DiskState::Inconsistent {
                        // Its disk went while nothing was written; from here on it is without what comes.
                        self.begin_pending_generation(v);
                        self.send_uuids_durably(v);
                    }
                }
            }
        }
        for v in self.volume_numbers() {
            self.force(v, clear);
        }
        if !self.suspended() {
            self.release();
        }
    }

    /// The generation that was put off while I/O was suspended.
    fn begin_pending_generation(&mut self, v: VolumeNr) {
        let forgets = self.faulty(Fault::ThawKeepsUuid);
        let random = self.rng.gen_id();
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if !std::mem::take(&mut vol.new_uuid_pending) || forgets {
            return;
        }
        if vol.disk_usable() {
            self.new_current_uuid(v);
        } else {
            vol.exposed = random;
            let text = "Resumed without access to data; please tear down before attempting to re-configure.";
            self.log(Level::Warn, Some(v), text);
        }
    }

    /// Nothing suspends I/O any more: what was held back goes on.
    fn release(&mut self) {
        // First of all: what ends below lets go what must not overtake the frozen writes.
        self.resend_due = true;
        for vol in self.volumes.values_mut().filter(|vol| vol.gate == 0) {
            for (id, result) in std::mem::take(&mut vol.held) {
                self.out.push(Action::Complete { id, result });
            }
        }
        let frozen: std::collections::BTreeSet<u64> = self.epochs.frozen().collect();
        let writes: Vec<u64> = self
            .requests
            .iter()
            .filter(|(key, r)| {
                let begun = r.local != Side::Unused || r.net != Side::Unused;
                r.kind != Kind::Read && r.registered && begun && !r.done && !frozen.contains(key)
            })
            .map(|(key, _)| key)
            .collect();
        for key in writes {
            self.progress(key);
        }
        self.recheck_commands = true;
    }

    /// Sends again what is frozen, then lets go what waited behind it.
    pub(crate) fn pump_resend(&mut self) {
        if !self.resend_due || self.suspended() {
            return;
        }
        while let Some(epoch) = self.epochs.next_frozen() {
            let version = self.conn.version;
            let settled = |key: &u64| {
                let state = self.requests.get(*key).map(|r| self.state(r.volume));
                state.is_none_or(|state| admits_io(&state, version))
            };
            if self.conn.link.is_none() || !epoch.iter().all(settled) {
                return;
            }
            for key in self.epochs.take_frozen() {
                self.resend(key);
            }
            self.epochs.close();
        }
        if self.epochs.rides_alone() {
            self.send_empty_write();
        }
        self.resend_due = false;
        for vol in self.volumes.values_mut() {
            vol.frozen_from = None;
        }
        let last = self.epochs.last();
        for flush in self.flushes.values_mut() {
            flush.epoch = flush.epoch.and(last);
        }
        for (id, v) in std::mem::take(&mut self.frozen_flushes) {
            self.start_flush(id, v);
        }
        self.check_flushes();
        for v in self.volume_numbers() {
            self.submit_held_back(v);
            self.retry_blocked(v);
            self.admit(v);
        }
    }

    /// Whether new I/O has to wait until what is frozen was sent again.
    pub(crate) fn resend_first(&self) -> bool {
        self.resend_due && self.epochs.has_frozen()
    }

    fn resend(&mut self, key: u64) {
        let now = self.now;
        let (trusting, replays) = (self.faulty(Fault::AckedNotResent), self.faulty(Fault::AckedResent));
        let Some(request) = self.requests.get_mut(key) else { return };
        let (v, range) = (request.volume, request.range);
        if request.begins_again {
            return;
        }
        let trusted = trusting && request.net == Side::Ok;
        if request.net == Side::Failed
            || trusted
            || (matches!(request.kind, Kind::Write { .. }) && request.data.is_none())
        {
            // The peer refused it, and its blocks are marked; or it had it, and there is no other copy that could differ.
            request.retired = true;
            return self.progress(key);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let state = vol.state;
        let both = state.peer == Role::Primary && state.conn >= ConnState::Connected;
        if request.net == Side::Ok
            && request.confirmed
            && (request.overwritten || both)
            && replicates(&state)
            && !replays
        {
            // The other Primary has it, and may have written there since, with a write that is here already or is lost: it
            // must not be undone by an older one. An empty write brings the acknowledgement that it is on stable storage.
            let (alone, spread) = (
                !both,
                range.count.0 > 0 && range.start.0 / AL_EXTENT_SECTORS != (range.end().0 - 1) / AL_EXTENT_SECTORS,
            );
            vol.congestion.in_flight += range.count.0;
            if alone && spread && self.set_bits(v, range) > 0 && sends_out_of_sync(&state) {
                // It may have crashed: its activity log covers where it wrote itself, which need not be all of this.
                self.send_out_of_sync(v, range);
            }
            self.send_due_barrier();
            let epoch = self.epochs.ride(key);
            if let Some(request) = self.requests.get_mut(key) {
                request.epoch = Some(epoch);
            }
            return self.progress(key);
        }
        let local = vol.disk_usable() && writes_locally(&state);
        let own_counts = local && state.disk == DiskState::UpToDate;
        // Where this node has no good copy these were written to the peer's data as they were when they froze.
        let changed = vol.frozen_from.is_some_and(|id| vol.peer.uuids.is_none_or(|now| !now.ids.current.same(id)));
        let stale = state.disk != DiskState::UpToDate && changed;
        if state.conn < ConnState::Connected || !replicates(&state) || stale {
            // The peer's data are to be replaced: it gets these with the rest. Or somebody wrote them since: these are lost.
            request.net = Side::Failed;
            request.retired = true;
            if self.set_bits(v, range) > 0 && sends_out_of_sync(&state) {
                self.send_out_of_sync(v, range);
            }
            return self.progress(key);
        }
        request.net = Side::Pending;
        request.confirmed = false;
        request.started = now;
        self.set_ack_due(key, &state, true, own_counts);
        self.send_write(key, &state);
    }

    /// A disk is back, good again: what no disk could take is written there.
    pub(crate) fn restart_local(&mut self) {
        let keys: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, r)| {
                let state = self.state(r.volume);
                let ended = r.local != Side::Pending && r.net != Side::Pending;
                let had = r.local != Side::Unused || r.net != Side::Unused;
                let failed = r.local != Side::Ok && !(r.net == Side::Ok && state.pdsk == DiskState::UpToDate);
                r.kind != Kind::Read && r.registered && !r.done && ended && had && failed
            })
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            self.restart_write(key);
        }
    }

    /// Begins a write anew: as a new part, because the old one may still be a member of an epoch.
    fn restart_write(&mut self, key: u64) {
        let Some(old) = self.requests.get_mut(key) else { return };
        old.done = true;
        let (master, v, kind, range, data) = (old.master, old.volume, old.kind, old.range, old.data.take());
        let new = self.new_part(master, v, kind, range, data);
        self.unregister_write(key);
        if let Some(old) = self.requests.get_mut(key) {
            old.registered = false;
            old.al = None;
        }
        self.retire(key);
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.waiting.push_front(new);
        }
    }

    /// `resume-io`.
    pub(crate) fn run_resume_io(&mut self, pending: Pending) {
        if self.conn.state_sent {
            return self.wait(pending, Wait::Change);
        }
        let parted = self.conn.state < ConnState::WfReportParams;
        let fate = if parted { Fate::Lost } else { Fate::None };
        self.thaw(&StateChange::NONE.susp(false).susp_nod(false).susp_fen(false), fate);
        self.command_done(pending.id, Ok(()));
    }
}
