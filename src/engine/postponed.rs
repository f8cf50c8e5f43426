//! Own writes that the other Primary refused: they begin again, or end with the write that replaces them.
//!
//! Takes in the resolver's answers, the ends of its writes here, and the loss of the link. Gives out writes that begin again.
//! Invariants: a postponed write keeps its activity-log extents until it has begun again, because the disks differ there
//! meanwhile; a superseded one is complete when its replacement is on this disk; over a freeze each begins again, since its
//! replacement may be here or lost. Source: behaviour.md 12; wire.md 7. See `two_primaries` for the other direction.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::action::Action;
use crate::engine::conflict::{self, Standing};
use crate::engine::event::Timer;
use crate::engine::fault::Fault;
use crate::engine::peer_request::PeerKind;
use crate::engine::request::{AckDue, AckKind, Kind, NO_CLIENT, Request, Side};
use crate::engine::volume::Volume;
use crate::limits::CONFLICT_RESEND_MS;
use crate::units::{BlockId, Sector, SectorRange, Sectors, VolumeNr};
use crate::wire::data::{Data, DpFlags};
use crate::wire::digest::Digest;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState, Role};

impl Engine {
    /// An own write that is about to be submitted gives way to a write of the peer that came while it waited for the activity
    /// log: it begins again when that one is done.
    pub(crate) fn yields_to_peer(&mut self, key: u64) -> bool {
        let careless = self.faulty(Fault::OwnWriteOvertakes);
        let Some(request) = self.requests.get_mut(key) else { return false };
        let (v, range) = (request.volume, request.range);
        let Some(vol) = self.volumes.get_mut(&v) else { return false };
        if careless || vol.peer_active.is_empty() || vol.state.role != Role::Primary {
            return false;
        }
        let write = |k: u64| self.peer_requests.get(k).is_some_and(|r| matches!(r.kind, PeerKind::Write { .. }));
        if !vol.peer_active.overlapping(range).any(write) {
            return false;
        }
        request.registered = false;
        vol.active.remove(range, key);
        vol.blocked.push_front(key);
        true
    }

    /// The resolver's word on an own write that met one of its own.
    pub(crate) fn on_conflict_answer(&mut self, v: VolumeNr, key: u64, how: AckKind, name: &'static str) {
        let (relaxed, allowed, now) = (self.conn.relaxed_epochs, self.two_primaries(), self.now);
        let Some(request) = self.requests.get_mut(key) else { return };
        if !allowed || self.conn.resolve_conflicts || request.net != Side::Pending || request.standing != Standing::Free
        {
            return self.peer_error(name, String::from("there was no conflict that the peer decides"));
        }
        request.standing = if how == AckKind::Superseded { Standing::Superseded } else { Standing::Postponed };
        request.sync_due = false;
        // The peer has answered; what it waits for now is another write, with a time of its own.
        request.started = now;
        let (epoch, range) = (request.epoch, request.range);
        if epoch == Some(self.epochs.current()) {
            self.epochs.close();
        }
        if !relaxed {
            // A kernel does not count it, and says no more of it.
            if let Some(request) = self.requests.get_mut(key) {
                request.retired = true;
            }
            self.epochs.forget(epoch, key);
            self.note_arrived(v, range);
            self.ask_for_mixed_epoch();
            self.check_flushes();
        }
        self.await_conflicting_write();
        // Without a disk the resolver's write was refused when it came: what it met is over.
        let diskless = self.volumes.get(&v).is_some_and(|vol| !vol.disk_usable());
        let early = match how {
            AckKind::Superseded => diskless || self.faulty(Fault::SupersededEarly),
            _ => self.faulty(Fault::RetryForgotten),
        };
        let ended = self.requests.get(key).is_some_and(|request| request.local != Side::Pending);
        if early {
            self.conflict_resolved(key);
        } else if diskless && ended {
            self.send_again(key);
        }
        self.wake_peer_requests(v);
    }

    /// A superseded write is replaced here, too: it is done.
    fn conflict_resolved(&mut self, key: u64) {
        let Some(request) = self.requests.get_mut(key).filter(|r| r.net == Side::Pending) else { return };
        request.standing = Standing::Free;
        request.net = Side::Ok;
        request.confirmed = true;
        if let Some(vol) = self.volumes.get_mut(&request.volume) {
            vol.counters.pending = vol.counters.pending.saturating_sub(1);
        }
        self.progress(key);
    }

    /// A write of the peer is done here: what it superseded is complete, what was postponed for it is sent again.
    pub(crate) fn conflicts_over(&mut self, v: VolumeNr, range: SectorRange) {
        let Some(vol) = self.volumes.get(&v) else { return };
        if vol.active.is_empty() {
            return;
        }
        for key in vol.active.overlapping(range).collect::<Vec<_>>() {
            let Some(own) = self.requests.get(key).filter(|own| own.local != Side::Pending) else { continue };
            match own.standing {
                Standing::Superseded if conflict::covers(range, own.range) => self.conflict_resolved(key),
                Standing::Postponed => self.send_again(key),
                Standing::Free | Standing::Superseded => {}
            }
        }
    }

    /// A refused write begins again, as a new one. What it holds of the activity log goes over to that.
    fn send_again(&mut self, key: u64) {
        let Some(old) = self.requests.remove(key) else { return };
        let v = old.volume;
        if !old.retired {
            // Its barrier acknowledgement finds it no more.
            self.note_arrived(v, old.range);
        }
        let state = self.state(v);
        let frozen = self.freezes_requests();
        if frozen {
            // It is neither lost nor marked, like all that is frozen.
        } else if state.disk != DiskState::UpToDate || state.pdsk < DiskState::Inconsistent {
            // It may come to nothing this time, and the own disk has it. (A target with a disk gets it, or says that it did not;
            // a bit that only its source has would never go.)
            self.set_bits(v, old.range);
        }
        let new = self.new_part(old.master, v, old.kind, old.range, old.data);
        if let Some(request) = self.requests.get_mut(new) {
            request.al = old.al;
        }
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.pending = vol.counters.pending.saturating_sub(1);
            vol.active.remove(old.range, key);
            vol.blocked.push_front(new);
        }
        self.wake_peer_requests(v);
        self.retry_blocked(v);
    }

    fn await_conflicting_write(&mut self) {
        let at = self.now.after(Duration::from_millis(CONFLICT_RESEND_MS));
        self.out.push(Action::SetTimer { timer: Timer::Conflict, at });
    }

    /// Sends refused writes again for which nothing has come.
    pub(crate) fn on_conflict_timer(&mut self) {
        if self.conn.link.is_none() {
            return;
        }
        let refused: Vec<(u64, VolumeNr, SectorRange)> = self
            .requests
            .iter()
            .filter(|(_, r)| r.standing != Standing::Free && r.local != Side::Pending)
            .map(|(key, r)| (key, r.volume, r.range))
            .collect();
        let mut left = false;
        for (key, v, range) in refused {
            let coming = self.volumes.get(&v).is_some_and(|vol| vol.peer_active.overlaps(range));
            if coming {
                left = true;
            } else {
                self.send_again(key);
            }
        }
        if left {
            self.await_conflicting_write();
        }
    }

    /// The link is gone, and everything waits for the next one. What the peer refused begins again: its own write, for which it
    /// did, may still reach this disk, or may not. Says which these are.
    pub(crate) fn refused_begin_again(&mut self) -> BTreeSet<u64> {
        let refused = |r: &Request| r.standing != Standing::Free;
        let keys: BTreeSet<u64> = self.requests.iter().filter(|(_, r)| refused(r)).map(|(key, _)| key).collect();
        for key in &keys {
            if let Some(request) = self.requests.get_mut(*key) {
                request.begins_again = true;
                request.retired = true;
            }
        }
        keys
    }

    /// Begins a refused write again, unless the own disk has not ended it yet.
    pub(crate) fn begin_again(&mut self, key: u64) {
        if self.requests.get(key).is_some_and(|r| r.begins_again && r.local != Side::Pending) {
            self.send_again(key);
        }
    }

    /// A write of the other Primary goes to the own disk: those that it covers, in part or whole, are not to come after it.
    pub(crate) fn note_overwritten(&mut self, v: VolumeNr, range: SectorRange) {
        if !self.two_primaries() || self.state(v).role != Role::Primary || !self.may_freeze() {
            return;
        }
        let older = |key: &u64| self.requests.get(*key).is_some_and(|r| r.volume == v && r.range.overlaps(range));
        let keys: SmallVec<[u64; 4]> = self.epochs.unanswered().filter(older).collect();
        for key in keys {
            if let Some(request) = self.requests.get_mut(key).filter(|request| !request.registered) {
                request.overwritten = true;
            }
        }
    }

    /// The link is gone: what the peer refused is as good as what it never saw.
    pub(crate) fn refused_lost(&mut self) {
        let refused = |r: &Request| r.standing != Standing::Free;
        let keys: Vec<u64> = self.requests.iter().filter(|(_, r)| refused(r)).map(|(key, _)| key).collect();
        for key in keys {
            let Some(request) = self.requests.get_mut(key) else { continue };
            request.standing = Standing::Free;
            request.begins_again = false;
            request.net = Side::Failed;
            request.retired = true;
            let (v, range) = (request.volume, request.range);
            self.mark_missed(v, range);
            self.progress(key);
        }
    }

    /// A kernel never acknowledges an epoch in which it refused a write. The acknowledgement of a later one says that all of
    /// it is on the disk; where there is none an empty write begins one.
    pub(crate) fn ask_for_mixed_epoch(&mut self) {
        if self.conn.relaxed_epochs || !self.epochs.mixed_is_last() {
            return;
        }
        if self.epochs.barrier_due() {
            // It comes back here.
            return self.send_due_barrier();
        }
        self.send_empty_write();
    }

    /// Writes nothing, for the acknowledgement of its epoch: everything before it is on the peer's stable storage then.
    pub(crate) fn send_empty_write(&mut self) {
        let connected = |vol: &&Volume| vol.state.conn >= ConnState::Connected;
        let Some(v) = self.volumes.values().find(connected).map(|vol| vol.nr) else { return };
        let range = SectorRange { start: Sector(0), count: Sectors(0) };
        let key = self.new_part(NO_CLIENT, v, Kind::Write { fua: false }, range, None);
        let epoch = self.epochs.add(key);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let seq = vol.next_seq();
        vol.counters.pending += 1;
        let Some(request) = self.requests.get_mut(key) else { return };
        (request.net, request.ack, request.epoch) = (Side::Pending, AckDue::Write, Some(epoch));
        self.send_data(
            v,
            Packet::Data(Data {
                sector: range.start,
                block_id: BlockId(key),
                seq,
                flags: DpFlags::RW_SYNC.with(DpFlags::FLUSH).with(DpFlags::SEND_WRITE_ACK),
                digest: Digest::EMPTY,
                payload: Bytes::new(),
            }),
        );
        self.epochs.close();
        self.send_due_barrier();
    }
}
