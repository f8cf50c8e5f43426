//! Two Primaries at work: carries out what [`conflict`](super::conflict) decides.
//!
//! Owns the order of the two sockets towards each other (packets of the data socket that have to wait for acknowledgements),
//! and the refused writes of the peer until they are answered and their epoch may end. (Own writes that the peer refused:
//! `postponed`.) Invariants: a packet of the data socket never overtakes another one; an epoch is acknowledged
//! only when every write of it is decided and answered, and to a peer without relaxed epochs only when the own writes that
//! decided are acknowledged (it has forgotten the refused ones by then). Source: behaviour.md 12; wire.md 7.
//!
//! **Epochs.** A peer that knows relaxed epochs counts refused writes like others on both sides. Any other one is a kernel, which
//! does not count them, acknowledges no epoch of nothing else, and never one in which some were refused: the epoch after it
//! speaks for both, and where none follows an empty write asks for it.
//!
//! **A kernel errs** where its disk is slow: it also refuses a write that began after its own was acknowledged. Nothing
//! comes then, nor where the resolver's write came while there was no disk here, so an own write that waits for nothing is sent
//! again after a while.

use std::time::Duration;

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
use crate::engine::request::{Request, Side};
use crate::engine::volume::Volume;
use crate::units::{SectorRange, SeqNr, Timestamp, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, Role};

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
