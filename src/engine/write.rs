//! The life of a write part: overlap, activity log, one decision where it goes, completion and retirement.
//! Part of the request room, see `request`.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::action::{Action, ClientError, DiskOp};
use crate::engine::al::{Begin, ExtentSpan, RequestKey};
use crate::engine::event::{DiskFailure, Timer};
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::request::{AckDue, Kind, NO_CLIENT, Side, ZEROES, no_payload};
use crate::engine::state::{VolumeState, admits_io, replicates, sends_out_of_sync, writes_locally};
use crate::limits::BARRIER_DELAY_MS;
use crate::meta::MdFlags;
use crate::units::{BlockId, SectorRange, VolumeNr};
use crate::wire::data::{Data, DpFlags, Trim};
use crate::wire::digest::Digest;
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::resync::BlockDesc;
use crate::wire::state::{ConnState, DiskState, Role};

impl Engine {
    /// Ranges became free: starts the writes that waited for them, in their order.
    pub(crate) fn retry_blocked(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        // A disk that is being attached neither takes a write nor is known by the peer to miss it.
        let unsettled = matches!(vol.state.disk, DiskState::Attaching | DiskState::Negotiating);
        if vol.blocked.is_empty() || unsettled {
            return;
        }
        let blocked = std::mem::take(&mut vol.blocked);
        let mut still: Vec<SectorRange> = Vec::new();
        for key in blocked {
            let Some(range) = self.requests.get(key).map(|r| r.range) else { continue };
            if self.range_taken(v, range) || still.iter().any(|r| r.overlaps(range)) {
                let Some(vol) = self.volumes.get_mut(&v) else { return };
                still.push(range);
                vol.blocked.push_back(key);
            } else {
                self.begin_write(key);
            }
        }
    }

    /// Whether a write of this range has to wait for another write or for a resync.
    pub(crate) fn range_taken(&self, v: VolumeNr, range: SectorRange) -> bool {
        let Some(vol) = self.volumes.get(&v) else { return false };
        (vol.active.overlaps(range) && !self.faulty(Fault::OverlapsNotSerialised))
            || (vol.resync_ranges.overlaps(range) && !self.faulty(Fault::WriteIgnoresResync))
            || (vol.peer_active.overlaps(range) && !self.faulty(Fault::OwnWriteOvertakes))
    }

    pub(crate) fn begin_write(&mut self, key: u64) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(key) else { return };
        request.started = now;
        request.registered = true;
        let (v, range, logged) = (request.volume, request.range, request.al.is_some());
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.active.insert(range, key);
        if logged {
            // It began before, and gave way to a write of the peer.
            return self.submit_write(key);
        }
        self.log_activity(key);
    }

    /// Waits for the activity log where there is one, then submits.
    fn log_activity(&mut self, key: u64) {
        let unlogged = self.faulty(Fault::AlTransactionSkipped);
        let Some(request) = self.requests.get(key) else { return };
        let (v, range) = (request.volume, request.range);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let begin = match (vol.usable(), ExtentSpan::of(range)) {
            (Some(disk), Some(span)) if !unlogged => Some((disk.al.begin(RequestKey(key), span, |_| false), span)),
            _ => None,
        };
        match begin {
            None | Some((Begin::NotLogged, _)) => self.submit_write(key),
            Some((Begin::Hot, span)) => {
                if let Some(request) = self.requests.get_mut(key) {
                    request.al = Some(span);
                }
                self.submit_write(key);
            }
            Some((Begin::Pending | Begin::Blocked, _)) => self.pump_al(v),
        }
    }

    /// Writes the next activity-log transaction if one is due and starts the writes that need none.
    pub(crate) fn pump_al(&mut self, v: VolumeNr) {
        let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
        let transaction = disk.al.next_transaction(|_| false);
        let ready = disk.al.take_ready();
        if let Some(transaction) = transaction {
            self.md_transaction(v, &transaction);
        }
        self.al_granted(ready);
    }

    /// An activity-log transaction is durable (or failed): the requests that waited for it go on.
    pub(crate) fn on_al_written(&mut self, v: VolumeNr, tr_number: u32, ok: bool) {
        let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
        let ready = if ok {
            disk.al.transaction_done(tr_number)
        } else {
            // The disk is failing: the requests go on without it, and hold no references.
            let keys = disk.al.transaction_failed(tr_number);
            for key in keys {
                self.al_bypassed(key);
            }
            return;
        };
        let ring_done = disk.sb.flags.contains(MdFlags::AL_DISABLED) && !disk.al.ring_is_stale();
        self.al_granted(ready);
        if ring_done {
            self.update_md_flags(v);
            self.md_superblock(v, None);
        }
        self.pump_al(v);
    }

    /// The superblock says that the activity log is not kept: now it need not be.
    pub(crate) fn on_al_updates_durable(&mut self, v: VolumeNr, ok: bool) {
        if let Some(vol) = self.volumes.get_mut(&v)
            && let Some(disk) = vol.disk.as_mut()
            && ok
            && !vol.opts.al_updates
        {
            disk.al.set_updates(false);
            self.pump_al(v);
        }
    }

    pub(crate) fn al_granted(&mut self, ready: Vec<RequestKey>) {
        for RequestKey(key) in ready {
            if key & super::peer_request::PEER_KEY != 0 {
                self.peer_al_granted(key & !super::peer_request::PEER_KEY, true);
            } else if let Some(request) = self.requests.get_mut(key) {
                request.al = ExtentSpan::of(request.range);
                self.submit_write(key);
            }
        }
    }

    /// A request goes on without the activity log, because there is no disk any more.
    pub(crate) fn al_bypassed(&mut self, RequestKey(key): RequestKey) {
        if key & super::peer_request::PEER_KEY != 0 {
            self.peer_al_granted(key & !super::peer_request::PEER_KEY, false);
        } else {
            self.submit_write(key);
        }
    }

    /// Sends a write where it has to go, in pieces that the link takes.
    pub(crate) fn submit_write(&mut self, key: u64) {
        let mut next = Some(key);
        while let Some(part) = next {
            next = self.cut_for_link(part);
            self.submit_part(part);
        }
    }

    /// The state may let the writes go that came too late for the last one.
    pub(crate) fn submit_held_back(&mut self, v: VolumeNr) {
        let resend_first = self.resend_first();
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if !vol.held_back.is_empty() && admits_io(&vol.state, self.conn.version) && !resend_first {
            for key in std::mem::take(&mut vol.held_back) {
                // The disk that knew of it may be gone, and another one there.
                if self.requests.get(key).is_some_and(|r| r.al.is_none()) {
                    self.log_activity(key);
                } else {
                    self.submit_write(key);
                }
            }
        }
    }

    /// Sends a part where one snapshot of the state says.
    pub(crate) fn submit_part(&mut self, key: u64) {
        if self.yields_to_peer(key) {
            return;
        }
        let Some(request) = self.requests.get(key) else { return };
        let (v, range, kind) = (request.volume, request.range, request.kind);
        let Some(vol) = self.volumes.get(&v) else { return };
        let state = vol.state;
        if state.is_suspended() || self.resend_first() {
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.held_back.push(key);
            }
            return;
        }
        let unannounced = |engine: &Self| engine.effects.iter().any(|(changed, ..)| *changed == v);
        if self.yields_to_congestion(v, &state) || (state.conn == ConnState::Ahead && unannounced(self)) {
            // The peer hears of the state before it hears of the block.
            return self.unannounced.push(key);
        }
        let Some(vol) = self.volumes.get(&v) else { return };
        let remote = self.conn.link.is_some() && state.conn >= ConnState::Connected && replicates(&state);
        let local = vol.disk_usable() && writes_locally(&state);
        let vol_saves = vol.undo.is_some();
        if !remote && !local {
            self.log_no_data(v, range);
            self.unregister_write(key);
            return self.fail_part(key, ClientError::Io);
        }
        if self.conn.link.is_some() && !admits_io(&state, self.conn.version) {
            // It was let in before the bitmaps were exchanged, and up to version 95 nobody could tell the peer of it now.
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.held_back.push(key);
            }
            return;
        }
        if local && vol_saves && self.undo_before_own(key) {
            return;
        }
        if remote && !local && unannounced(self) {
            // The peer keeps the books for a node without a disk, once it knows: the state goes first.
            return self.unannounced.push(key);
        }
        if local && !remote && self.volumes.get(&v).is_some_and(|vol| vol.target_maybe_done && vol.resync.is_none()) {
            // The target of the resync that broke off may hold this generation; it must not hold this write's as well.
            self.new_current_uuid(v);
        }
        if local && !remote {
            // A block that failed here is marked, and the target does not know it.
            let unknown = self.volumes.get(&v).is_some_and(|vol| vol.failed_early.touches(&range.bits_touched()));
            let unmarked = state.conn == ConnState::Ahead && self.faulty(Fault::AheadUnmarked);
            let newly = if unmarked { 0 } else { self.set_bits(v, range) };
            if (newly > 0 || unknown)
                && sends_out_of_sync(&state)
                && self.conn.version >= 96
                && !self.faulty(Fault::OutOfSyncNotSent)
            {
                self.send_out_of_sync(v, range);
            }
        }
        let own_counts = local && state.disk == DiskState::UpToDate;
        self.set_ack_due(key, &state, remote, own_counts);
        if let Some(request) = self.requests.get_mut(key) {
            request.local = if local { Side::Pending } else { Side::Unused };
            request.net = if remote { Side::Pending } else { Side::Unused };
        }
        // The packet first: the peer's latency is the longer one.
        if remote {
            self.send_write(key, &state);
        }
        if local {
            let data = self.requests.get(key).and_then(|r| r.data.clone());
            let io = match (kind, data) {
                (Kind::Write { fua }, Some(data)) => {
                    let fua = fua && !self.faulty(Fault::FuaIgnored);
                    DiskOp::Write { range, data: SmallVec::from_elem(data, 1), fua }
                }
                (Kind::Discard, _) => self.discard_op(v, range),
                (Kind::Zeroes { may_unmap, .. }, _) => DiskOp::WriteZeroes { range, may_unmap },
                (Kind::Write { .. } | Kind::Read, _) => return self.on_request_written(key, Err(no_payload())),
            };
            self.submit(v, io, Op::RequestWrite(key));
        }
    }

    /// What ends the network half of a write that is about to be sent (or, not `remote`, is not).
    pub(crate) fn set_ack_due(&mut self, key: u64, state: &VolumeState, remote: bool, own_counts: bool) {
        let ack = match self.conn.protocol() {
            _ if !remote => AckDue::None,
            ReplProtocol::A | ReplProtocol::B if !own_counts && self.conn.version >= 100 => AckDue::Write,
            ReplProtocol::A | ReplProtocol::B if !own_counts => AckDue::Barrier,
            ReplProtocol::A => AckDue::None,
            ReplProtocol::B => AckDue::Receive,
            ReplProtocol::C => AckDue::Write,
        };
        let resync = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&state.conn);
        let sync_due = remote && resync && (self.conn.version >= 100 || self.conn.protocol() == ReplProtocol::C);
        if let Some(request) = self.requests.get_mut(key) {
            request.sync_due = sync_due;
            request.ack = ack;
        }
    }

    pub(crate) fn send_out_of_sync(&mut self, v: VolumeNr, range: SectorRange) {
        // A discard may be larger than any block size field of a request; its length still fits 32 bits (limits.rs).
        let blksize = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        self.send_data(v, Packet::OutOfSync(BlockDesc { sector: range.start, blksize }));
    }

    pub(crate) fn send_write(&mut self, key: u64, state: &VolumeState) {
        self.send_due_barrier();
        let Some(request) = self.requests.get(key) else { return };
        let (v, range, kind, ack) = (request.volume, request.range, request.kind, request.ack);
        let epoch = self.epochs.add(key);
        let resync = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&state.conn);
        let flags = self.conn.version >= 95;
        let ack_flags = self.conn.version >= 100;
        let mut dp = DpFlags::RW_SYNC.with_if(DpFlags::MAY_SET_IN_SYNC, resync);
        let protocol = self.conn.protocol();
        if ack_flags {
            dp = dp
                .with_if(DpFlags::SEND_RECEIVE_ACK, protocol == ReplProtocol::B)
                .with_if(DpFlags::SEND_WRITE_ACK, ack == AckDue::Write || resync);
        }
        let zero_data = self.sends_zero_data(kind);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let (seq, block_id, sector) = (vol.next_seq(), BlockId(key), range.start);
        vol.counters.sent += range.count.0;
        vol.counters.pending += 1;
        vol.congestion.in_flight += range.count.0;
        let Some(request) = self.requests.get_mut(key) else { return };
        request.epoch = Some(epoch);
        let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        let packet = match kind {
            Kind::Discard if !zero_data => {
                Packet::Trim(Trim { sector, block_id, seq, flags: dp.with(DpFlags::DISCARD), size })
            }
            Kind::Zeroes { may_unmap, fua } if !zero_data => {
                let dp = dp.with(DpFlags::ZEROES).with_if(DpFlags::DISCARD, may_unmap).with_if(DpFlags::FUA, fua);
                Packet::Zeroes(Trim { sector, block_id, seq, flags: dp, size })
            }
            _ => {
                let fua = matches!(kind, Kind::Write { fua: true } | Kind::Zeroes { fua: true, .. });
                let payload = request.data.clone().unwrap_or_else(|| {
                    Bytes::from_static(&ZEROES)
                        .slice(..usize::try_from(range.bytes()).unwrap_or(usize::MAX).min(ZEROES.len()))
                });
                Packet::Data(Data {
                    sector,
                    block_id,
                    seq,
                    flags: dp.with_if(DpFlags::FUA, fua && flags),
                    // The link fills it in where one was agreed.
                    digest: Digest::EMPTY,
                    payload,
                })
            }
        };
        self.send_data(v, packet);
        match ack {
            AckDue::None => self.conn.await_sent(key),
            AckDue::Barrier => self.epochs.close(),
            AckDue::Receive | AckDue::Write => {}
        }
        if self.epochs.open_writes() >= self.conn.opts.as_ref().map_or(2048, |o| o.max_epoch_size as usize) {
            self.epochs.close();
        }
        self.arm_request_timeout();
    }

    /// Nothing more is ready: a closed epoch's barrier goes out now, or, to a peer that does not order by epochs, together
    /// with the next write (one system call and one packet less for each write at queue depth 1).
    pub(crate) fn end_batch(&mut self) {
        if !self.conn.relaxed_epochs {
            return self.send_due_barrier();
        }
        if self.epochs.barrier_due() && !self.conn.barrier_timer {
            self.conn.barrier_timer = true;
            let at = self.now.after(Duration::from_millis(BARRIER_DELAY_MS));
            self.out.push(Action::SetTimer { timer: Timer::Barrier, at });
        }
    }

    /// The delay is over.
    pub(crate) fn on_barrier_timer(&mut self) {
        self.conn.barrier_timer = false;
        self.send_due_barrier();
    }

    /// Sends the barrier of the epoch that was closed last, if it was not sent yet.
    pub(crate) fn send_due_barrier(&mut self) {
        if self.conn.link.is_none() {
            return;
        }
        if let Some(barrier) = self.epochs.take_due_barrier(self.now) {
            if !self.faulty(Fault::BarrierNotSent) {
                self.send_data(VolumeNr(0), Packet::Barrier { barrier });
            }
            self.arm_request_timeout();
            self.ask_for_mixed_epoch();
        }
    }

    /// Whether a flush must follow the local half before it counts: the disk knows no durable write-zeroes.
    pub(crate) fn wants_flush_behind(&self, key: u64) -> bool {
        self.requests.get(key).is_some_and(|r| matches!(r.kind, Kind::Zeroes { fua: true, .. }))
    }

    /// The local half of a write ended.
    pub(crate) fn on_request_written(&mut self, key: u64, result: Result<(), DiskFailure>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (v, kind) = (request.volume, request.kind);
        match result {
            Ok(()) => request.local = Side::Ok,
            Err(failure) => {
                request.local = Side::Failed;
                let range = request.range;
                // Bits are set when it is known that they are due, never later: a resync may be running by then.
                if !self.faulty(Fault::LocalErrorUnmarked) {
                    self.set_bits(v, range);
                }
                self.source_failed(v, range);
                // A discard that the device refuses is this request's failure, not the disk's.
                if !(matches!(kind, Kind::Discard | Kind::Zeroes { .. }) && failure.unsupported) {
                    self.log_error(
                        v,
                        format!("local WRITE IO error sector {}+{}: {}", range.start, range.count, failure.text),
                    );
                    self.on_io_error(v, Failed::Write);
                    let still_good = self.state(v).disk == DiskState::UpToDate;
                    if let Some(request) = self.requests.get_mut(key) {
                        request.stale_here = still_good;
                    }
                }
            }
        }
        self.begin_again(key);
        self.progress(key);
        self.wake_peer_requests(v);
    }

    /// Completes a write part when both halves are done, gives its range free, and retires it when its epoch is. It
    /// succeeded if it is on a disk that is UpToDate.
    pub(crate) fn progress(&mut self, key: u64) {
        let (hasty, blind) = (self.faulty(Fault::AckBeforePeer), self.faulty(Fault::LocalErrorIsSuccess));
        let eager = self.faulty(Fault::CompletedSuspended);
        let may_freeze = self.may_freeze();
        let Some(request) = self.requests.get_mut(key) else { return };
        let early = hasty && request.local == Side::Ok;
        if request.local == Side::Pending || (request.net == Side::Pending && !early) {
            return;
        }
        let (v, range) = (request.volume, request.range);
        if !request.done {
            let Some(vol) = self.volumes.get_mut(&v) else { return };
            if vol.state.is_suspended() && !eager && request.master != NO_CLIENT {
                return;
            }
            let own_counts = request.local == Side::Ok && vol.state.disk == DiskState::UpToDate;
            if !own_counts
                && request.net == Side::Ok
                && !request.confirmed
                && !request.retired
                && self.conn.link.is_some()
            {
                // It was meant as the second copy, and is the only one: now the peer has to say that it is written.
                request.net = Side::Pending;
                request.ack = AckDue::Barrier;
                vol.counters.pending += 1;
                self.epochs.close();
                return;
            }
            if request.denied && !request.retired && vol.state.pdsk == DiskState::UpToDate && self.conn.link.is_some() {
                // The peer's disk, which lacks it, is about to go: first the generation begins that says so.
                self.epochs.close();
                return;
            }
            request.done = true;
            // The peer lacks it and says no more: the next handshake has to find that out.
            let lacks = request.denied && vol.state.pdsk == DiskState::UpToDate && self.conn.link.is_some();
            let renew = lacks
                && own_counts
                && matches!(request.kind, Kind::Write { .. })
                && vol.state.role == Role::Primary
                && vol.disk.as_ref().is_some_and(|disk| disk.sb.bitmap.0 == 0);
            // A device that cannot write zeroes is no reason to part with the peer: the client has to write them.
            let own_counts = own_counts && !(lacks && matches!(request.kind, Kind::Zeroes { .. }));
            // A copy counts where a resync will not replace it.
            let ok = own_counts
                || (request.net == Side::Ok && vol.state.pdsk == DiskState::UpToDate && !request.stale_here)
                || (blind && request.local == Side::Failed && request.net == Side::Unused);
            let epoch = request.epoch;
            if epoch.is_none() || !may_freeze {
                request.data = None;
            }
            if epoch == Some(self.epochs.current()) {
                self.epochs.close();
            }
            if renew {
                vol.gate_peer_lacks = true;
                self.new_current_uuid(v);
            }
            self.finish_part(key, if ok { Ok(None) } else { Err(ClientError::Io) });
        }
        let Some(request) = self.requests.get_mut(key) else { return };
        if request.registered && !request.sync_due {
            request.registered = false;
            let in_sync = request.set_in_sync && request.local == Side::Ok && request.net == Side::Ok;
            if in_sync {
                // No newer write of this range exists: it would still wait for this one.
                self.clear_bits(v, range);
            }
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.active.remove(range, key);
                if vol.resync.is_some() {
                    self.resync_kick.insert(v);
                }
            }
            // A write that never reached this disk ends the waiting of the peer's reads, too.
            self.wake_peer_requests(v);
            self.retry_blocked(v);
        }
        self.retire(key);
        self.admit(v);
        self.recheck_commands = true;
    }

    /// Forgets a write part whose fate is known, after its bits are right.
    pub(crate) fn retire(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let replicated = request.epoch.is_some();
        let settled = request.done && !request.registered && request.local != Side::Pending;
        if !settled || (replicated && !request.retired) {
            return;
        }
        let Some(request) = self.requests.remove(key) else { return };
        let v = request.volume;
        if let Some(span) = request.al {
            let idle = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()).is_some_and(|d| d.al.end(span));
            if idle && !self.faulty(Fault::AlWaitersNotWoken) {
                self.pump_al(v);
            }
        }
        self.recheck_commands = true;
    }

    pub(crate) fn unregister_write(&mut self, key: u64) {
        let Some(request) = self.requests.get_mut(key) else { return };
        let (v, range, al) = (request.volume, request.range, request.al.take());
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.active.remove(range, key);
            if let (Some(span), Some(disk)) = (al, vol.disk.as_mut())
                && disk.al.end(span)
            {
                self.pump_al(v);
            }
        }
        if !self.faulty(Fault::RoomForgotten) {
            self.admit_due.insert(v);
        }
        self.wake_peer_requests(v);
        self.retry_blocked(v);
    }
}
