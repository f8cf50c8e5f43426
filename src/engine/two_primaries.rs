//! Two Primaries at work: carries out what [`conflict`](super::conflict) decides.
//!
//! Owns the order of the two sockets towards each other (packets of the data socket that have to wait for acknowledgements),
//! the refused writes of the peer until they are answered and their epoch may end, and the own writes that the peer refused
//! until its write is here. Invariants: a packet of the data socket never overtakes another one; an epoch is acknowledged
//! only when every write of it is decided and answered, and to a peer without relaxed epochs only when the own writes that
//! decided are acknowledged (it has forgotten the refused ones by then); a postponed write keeps its activity-log extents
//! until it has begun again, because the disks differ there meanwhile. Source: behaviour.md 12; wire.md 7.
//!
//! **Epochs.** A peer that knows relaxed epochs counts refused writes like others on both sides. Any other one is a kernel, which
//! does not count them, acknowledges no epoch of nothing else, and never one in which some were refused: the epoch after it
//! speaks for both, and where none follows an empty write asks for it.
//!
//! **A kernel errs** where its disk is slow: it also refuses a write that began after its own was acknowledged. Nothing
//! comes then, nor where the resolver's write came while there was no disk here, so an own write that waits for nothing is sent
//! again after a while.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::action::{Action, DiskOp, Level};
use crate::engine::admin::{Pending, Wait};
use crate::engine::conflict::{self, OwnWrite, Standing, Verdict};
use crate::engine::event::{DiskFailure, Socket, Timer};
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::peer_request::PeerKind;
use crate::engine::request::{AckDue, AckKind, Kind, NO_CLIENT, Request, Side};
use crate::engine::volume::Volume;
use crate::limits::CONFLICT_RESEND_MS;
use crate::units::{BlockId, Sector, SectorRange, Sectors, SeqNr, Timestamp, VolumeNr};
use crate::wire::data::{Data, DpFlags};
use crate::wire::digest::Digest;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState, Role};

impl Engine {
    /// Whether both nodes may be Primary. Before version 100 nobody can say "send it again".
    pub(crate) fn two_primaries(&self) -> bool {
        let version_fits = self.conn.link.is_none() || self.conn.version >= 100;
        self.conn.opts.as_ref().is_some_and(|o| o.two_primaries) && version_fits
    }

    // --- the two sockets in order ---

    /// A packet of the present link.
    pub(crate) fn receive(&mut self, socket: Socket, v: VolumeNr, packet: Packet) {
        let number = sequence(&packet);
        if socket == Socket::Data {
            if !self.conn.stalled.is_empty() || self.comes_early(v, number) {
                return self.stall(v, packet);
            }
            self.note_sequence(v, number);
            return self.on_packet(socket, v, packet);
        }
        self.on_packet(socket, v, packet);
        self.note_sequence(v, number);
        self.release_stalled();
    }

    fn comes_early(&self, v: VolumeNr, number: Option<SeqNr>) -> bool {
        let (Some(number), Some(vol)) = (number, self.volumes.get(&v)) else { return false };
        self.conn.resolve_conflicts
            && self.two_primaries()
            && conflict::overtakes(number, vol.peer_seq)
            && !self.faulty(Fault::SequenceIgnored)
    }

    fn note_sequence(&mut self, v: VolumeNr, number: Option<SeqNr>) {
        if let (Some(number), Some(vol)) = (number, self.volumes.get_mut(&v))
            && conflict::is_after(number, vol.peer_seq)
        {
            vol.peer_seq = number;
        }
    }

    fn stall(&mut self, v: VolumeNr, packet: Packet) {
        if self.conn.stalled.is_empty() {
            self.await_missing_acks();
        }
        self.conn.stalled.push_back((v, packet));
    }

    fn await_missing_acks(&mut self) {
        let limit = self.conn.opts.as_ref().map_or(Duration::ZERO, |o| o.ping_timeout);
        self.conn.stalled_until = self.now.after(limit);
        self.out.push(Action::SetTimer { timer: Timer::MissingAcks, at: self.conn.stalled_until });
    }

    /// The acknowledgements that the first waiting packet needs may be there.
    fn release_stalled(&mut self) {
        let mut moved = false;
        while let Some((v, packet)) = self.conn.stalled.front() {
            let (v, number) = (*v, sequence(packet));
            if self.comes_early(v, number) {
                if moved {
                    self.await_missing_acks();
                }
                return;
            }
            let Some((_, packet)) = self.conn.stalled.pop_front() else { return };
            moved = true;
            self.note_sequence(v, number);
            self.on_packet(Socket::Data, v, packet);
        }
        if moved {
            self.out.push(Action::CancelTimer(Timer::MissingAcks));
        }
    }

    /// The acknowledgements did not come.
    pub(crate) fn on_missing_acks(&mut self) {
        if !self.conn.stalled.is_empty() && self.now >= self.conn.stalled_until {
            self.log(Level::Error, None, "Timed out waiting for missing ack packets; disconnecting");
            self.drop_link(ConnState::ProtocolError);
        }
    }

    // --- writes of the peer ---

    fn own_writes(&self, v: VolumeNr, range: SectorRange) -> impl Iterator<Item = &Request> {
        let active = self.volumes.get(&v).map(|vol| vol.active.overlapping(range));
        active.into_iter().flatten().filter_map(|key| self.requests.get(key))
    }

    /// The own writes there that the peer has not acknowledged, by key.
    fn open_own_writes(&self, v: VolumeNr, range: SectorRange) -> SmallVec<[u64; 2]> {
        let active = self.volumes.get(&v).map(|vol| vol.active.overlapping(range));
        let open = |key: &u64| self.requests.get(*key).is_some_and(|own| own.net == Side::Pending);
        active.into_iter().flatten().filter(open).collect()
    }

    /// Whether one of the own writes for which this one was refused is still so. Later ones have no say in it, or there would
    /// be no end.
    fn any_of(&self, key: u64, is: impl Fn(&Request) -> bool) -> bool {
        let deciding = self.peer_requests.get(key).map(|request| &request.refused_for);
        deciding.into_iter().flatten().any(|own| self.requests.get(*own).is_some_and(&is))
    }

    fn verdict(&self, v: VolumeNr, range: SectorRange) -> Verdict {
        let resolver = self.conn.resolve_conflicts;
        let verdict = conflict::judge_all(self.own_writes(v, range).map(|own| own.as_seen_by(range)), resolver);
        if verdict > Verdict::Wait && self.faulty(Fault::ConflictIgnored) {
            let busy = self.own_writes(v, range).any(|own| own.local == Side::Pending);
            return if busy { Verdict::Wait } else { Verdict::Apply };
        }
        verdict
    }

    /// Says that an incoming write meets own ones that the peer did not know of.
    pub(crate) fn announce_conflict(&mut self, v: VolumeNr, range: SectorRange) {
        if !self.volumes.get(&v).is_some_and(|vol| vol.state.role == Role::Primary && !vol.active.is_empty()) {
            return;
        }
        let verdict = self.verdict(v, range);
        let met = self.own_writes(v, range).filter(|own| own.net == Side::Pending && own.standing == Standing::Free);
        let lines: Vec<String> = met.filter_map(|own| conflict::line(own.range, range, verdict)).collect();
        for line in lines {
            self.log(Level::Warn, Some(v), line);
        }
        if verdict != Verdict::Apply {
            self.arm_request_timeout();
        }
    }

    /// What is to become of a write of the peer now; one that is refused is dealt with.
    pub(crate) fn judge_peer_write(&mut self, key: u64) -> Verdict {
        let Some(request) = self.peer_requests.get(key) else { return Verdict::Apply };
        let (v, range, epoch) = (request.volume, request.range, request.epoch);
        let verdict = self.verdict(v, range);
        if verdict <= Verdict::Wait {
            return verdict;
        }
        let deciding = self.open_own_writes(v, range);
        if !self.conn.relaxed_epochs
            && let Some(epoch) = self.rx.epochs.iter_mut().find(|e| Some(e.id) == epoch)
        {
            epoch.writes = epoch.writes.saturating_sub(1);
            epoch.refused += 1;
        }
        if let Some(request) = self.peer_requests.get_mut(key) {
            request.refused = Some(verdict);
            request.refused_for = deciding;
            request.io = None;
        }
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.refused.push(key);
        }
        self.settle_refused(v);
        verdict
    }

    /// Answers refused writes whose answer is due, and forgets those that nothing depends on any more.
    pub(crate) fn settle_refused(&mut self, v: VolumeNr) {
        let keys = self.volumes.get(&v).map(|vol| vol.refused.clone()).unwrap_or_default();
        for key in keys {
            self.settle_one_refused(v, key);
        }
    }

    fn settle_one_refused(&mut self, v: VolumeNr, key: u64) {
        let hasty = self.faulty(Fault::SupersededUnwritten);
        let Some(request) = self.peer_requests.get(key).filter(|r| !r.submitted) else { return };
        let Some(verdict) = request.refused else { return };
        if !request.answered {
            if verdict == Verdict::Supersede && !hasty {
                if self.any_of(key, |own| own.local == Side::Pending) {
                    return;
                }
                if self.volumes.get(&v).is_some_and(Volume::disk_usable) {
                    // The sender's client will be told that it is written on both nodes, and may have asked for durably.
                    if let Some(request) = self.peer_requests.get_mut(key) {
                        request.submitted = true;
                    }
                    let mark = self.data_flush_mark(v);
                    return self.submit(v, DiskOp::Flush, Op::PeerFlush { key, mark });
                }
            }
            return self.answer_refused(key);
        }
        self.release_refused(v, key);
    }

    fn answer_refused(&mut self, key: u64) {
        let Some(request) = self.peer_requests.get_mut(key) else { return };
        request.answered = true;
        let (v, range, block_id, verdict) = (request.volume, request.range, request.block_id, request.refused);
        let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        let kind = if verdict == Some(Verdict::Supersede) { Packet::Superseded } else { Packet::RetryWrite };
        self.send_ack(v, range.start, block_id, size, kind);
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.peer_active.remove(range, key);
        }
        self.release_refused(v, key);
        self.wake_peer_requests(v);
        self.retry_blocked(v);
        self.admit(v);
    }

    /// Lets the epoch of an answered one go.
    fn release_refused(&mut self, v: VolumeNr, key: u64) {
        if !self.peer_requests.get(key).is_some_and(|r| r.answered) {
            return;
        }
        if self.conn.relaxed_epochs || !self.any_of(key, |own| own.net == Side::Pending) {
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.refused.retain(|k| *k != key);
            }
            self.finish_peer(key);
        }
    }

    /// The flush behind the own write that replaces a refused one ended.
    pub(crate) fn on_refused_flushed(&mut self, key: u64, result: &Result<(), DiskFailure>) {
        let Some(request) = self.peer_requests.get_mut(key) else { return };
        request.submitted = false;
        let (v, range, orphan) = (request.volume, request.range, request.orphan);
        if let Err(failure) = result {
            self.set_bits(v, range);
            self.log_error(v, format!("local FLUSH IO error: {}", failure.text));
            if !failure.unsupported {
                self.on_io_error(v, Failed::Flush);
            }
        }
        if orphan {
            return self.finish_peer(key);
        }
        self.answer_refused(key);
    }

    /// When the oldest write of the peer came that waits for an answer of the peer.
    pub(crate) fn oldest_conflict(&self) -> Option<Timestamp> {
        let waiting = self.volumes.values().flat_map(|vol| vol.peer_waiting.iter());
        let open = |own: &Request| own.net == Side::Pending && own.standing == Standing::Free;
        waiting
            .filter_map(|key| self.peer_requests.get(*key))
            .filter(|r| matches!(r.kind, PeerKind::Write { .. }) && self.own_writes(r.volume, r.range).any(open))
            .map(|r| r.since)
            .min()
    }

    /// Whether the other Primary was asked to agree to the detach of this disk, and has not answered.
    pub(crate) fn leaves_disk(&self, v: VolumeNr) -> bool {
        let detaches =
            |c: &Pending| c.volume == v && c.wait == Wait::Answer && matches!(c.job, super::admin::Job::Detach { .. });
        self.state(v).peer == Role::Primary && self.commands.iter().any(detaches)
    }

    // --- own writes ---

    /// An own write that is about to be submitted gives way to a write of the peer that came while it waited for the activity
    /// log: it begins again when that one is done.
    pub(crate) fn yields_to_peer(&mut self, key: u64) -> bool {
        let Some(request) = self.requests.get_mut(key) else { return false };
        let (v, range) = (request.volume, request.range);
        let Some(vol) = self.volumes.get_mut(&v) else { return false };
        if vol.peer_active.is_empty() || vol.state.role != Role::Primary {
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

impl Request {
    fn as_seen_by(&self, incoming: SectorRange) -> OwnWrite {
        OwnWrite {
            covers: conflict::covers(self.range, incoming),
            submitted: self.local != Side::Unused || self.net != Side::Unused,
            local_pending: self.local == Side::Pending,
            unanswered: self.net == Side::Pending,
            standing: self.standing,
        }
    }
}

/// The sequence number of a packet that carries one.
fn sequence(packet: &Packet) -> Option<SeqNr> {
    match packet {
        Packet::Data(p) => Some(p.seq),
        Packet::Trim(p) | Packet::Zeroes(p) => Some(p.seq),
        Packet::RecvAck(p)
        | Packet::WriteAck(p)
        | Packet::RsWriteAck(p)
        | Packet::Superseded(p)
        | Packet::RetryWrite(p)
        | Packet::NegAck(p)
        | Packet::NegDreply(p)
        | Packet::NegRsDreply(p)
        | Packet::RsCancel(p)
        | Packet::RsIsInSync(p)
        | Packet::OvResult(p) => Some(p.seq),
        _ => None,
    }
}
