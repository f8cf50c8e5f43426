//! Application requests: from admission to completion and retirement (behaviour.md 6).
//!
//! Owns the requests in flight. A client request is a *master* with one or more *parts*, each small enough for the peer
//! and the activity log. A write part: waits for admission, then for overlapping ranges, then for the activity log; then
//! one snapshot of the state decides where it goes (local disk, peer, or an out-of-sync mark); it completes to the client
//! when its local and its network part are done, and is retired when the peer's barrier acknowledgement (or the loss of
//! the link) says what became of it. Invariants: every write is exactly one of replicated, announced as out of sync,
//! or covered by a local bit; bits are set before the write that needs them starts; activity-log references are dropped
//! only after the bits are right. Hot path: per part two slab entries, one map entry, no allocation by name.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::action::{Action, ClientError, ClientResult, DiskOp, Level};
use crate::engine::al::{Begin, ExtentSpan, RequestKey};
use crate::engine::event::{ClientRequest, DiskFailure, RequestId, Socket};
use crate::engine::ops::Op;
use crate::engine::state::{admits_io, replicates, sends_out_of_sync, writes_locally};
use crate::limits::SECTOR_SIZE;
use crate::units::{BlockId, Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::ack::BlockAck;
use crate::wire::data::{Data, DpFlags, Trim};
use crate::wire::feature::FeatureFlags;
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::resync::{BlockDesc, BlockReq};
use crate::wire::state::{ConnState, DiskState, Role};

/// Largest part, in bytes, whatever the peer takes: the size of a replicated request from version 100 on.
const PART_BYTES_MAX: u64 = crate::limits::REQUEST_BYTES_MAX_V100 as u64;
/// Zeroes for peers that take no zero or discard packets.
static ZEROES: [u8; crate::limits::REQUEST_BYTES_MAX_V100 as usize] = [0; crate::limits::REQUEST_BYTES_MAX_V100 as usize];

/// What a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write { fua: bool },
    Discard,
    Zeroes { may_unmap: bool, fua: bool },
}

/// Progress of one half (local or network) of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Takes no part.
    Unused,
    /// Under way.
    Pending,
    /// Succeeded.
    Ok,
    /// Failed.
    Failed,
}

/// A client request.
#[derive(Debug)]
pub(crate) struct Master {
    pub id: RequestId,
    pub volume: VolumeNr,
    pub parts: u32,
    pub error: Option<ClientError>,
    pub data: SmallVec<[(Sector, Bytes); 1]>,
}

/// One part of a client request.
#[derive(Debug)]
pub(crate) struct Request {
    pub master: u64,
    pub volume: VolumeNr,
    pub kind: Kind,
    pub range: SectorRange,
    pub data: Option<Bytes>,
    pub local: Side,
    pub net: Side,
    /// Epoch, if it was replicated.
    pub epoch: Option<u32>,
    /// The peer said "written and in sync".
    pub set_in_sync: bool,
    /// During a resync: its range stays taken until the peer has said whether it is in sync, even where the client
    /// does not wait for that. So no newer write can have set the bits that this one clears.
    pub sync_due: bool,
    /// Its range is taken.
    pub registered: bool,
    /// Activity-log references held.
    pub al: Option<ExtentSpan>,
    /// Completed to the client.
    pub done: bool,
    /// The fate of its epoch is known.
    pub retired: bool,
    /// Acknowledgement that completes the network half; `None`: handing it to the socket does.
    pub ack: AckDue,
    pub started: Timestamp,
    /// A read that failed on one side is tried on the other once.
    pub tried_local: bool,
    pub tried_remote: bool,
    /// The local operation was given up (forced detach); its late completion is ignored.
    pub aborted: bool,
}

/// Which acknowledgement completes the network half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckDue {
    None,
    Receive,
    Write,
}

/// A flush under way.
#[derive(Debug)]
pub(crate) struct Flush {
    pub id: RequestId,
    pub volume: VolumeNr,
    pub local: Side,
    /// Waits until this epoch is retired.
    pub epoch: Option<u32>,
}

impl Engine {
    /// A client request arrived.
    pub(crate) fn on_client(&mut self, id: RequestId, v: VolumeNr, request: ClientRequest) {
        let Some(vol) = self.volumes.get_mut(&v) else { return self.complete_now(id, Err(ClientError::Gone)) };
        if vol.state.role != Role::Primary {
            return self.complete_now(id, Err(ClientError::NotPrimary));
        }
        let size = vol.size;
        let inside = |range: SectorRange| range.end().0 <= size.0;
        let (kind, range, pieces) = match request {
            ClientRequest::Flush => return self.start_flush(id, v),
            ClientRequest::Read(range) => (Kind::Read, range, SmallVec::new()),
            ClientRequest::Write { range, data, fua } => (Kind::Write { fua }, range, data),
            ClientRequest::Discard(range) => (Kind::Discard, range, SmallVec::new()),
            ClientRequest::WriteZeroes { range, may_unmap, fua } => (Kind::Zeroes { may_unmap, fua }, range, SmallVec::new()),
        };
        if !inside(range) {
            return self.complete_now(id, Err(ClientError::OutOfRange));
        }
        if range.is_empty() {
            return self.complete_now(id, Ok(SmallVec::new()));
        }
        let parts: SmallVec<[(SectorRange, Option<Bytes>); 1]> = if matches!(kind, Kind::Write { .. }) {
            let total: u64 = pieces.iter().map(|p| p.len() as u64).sum();
            if total != range.bytes() || pieces.iter().any(|p| p.is_empty() || !(p.len() as u64).is_multiple_of(SECTOR_SIZE)) {
                return self.complete_now(id, Err(ClientError::OutOfRange));
            }
            let mut at = range.start.0;
            pieces
                .into_iter()
                .map(|p| {
                    let part = SectorRange { start: Sector(at), count: Sectors::from_bytes_floor(p.len() as u64) };
                    at = part.end().0;
                    (part, Some(p))
                })
                .collect()
        } else {
            SmallVec::from_elem((range, None), 1)
        };
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let master = self.masters.insert(Master { id, volume: v, parts: count, error: None, data: SmallVec::new() });
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.application += 1;
        }
        for (range, data) in parts {
            let key = self.new_part(master, v, kind, range, data);
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.waiting.push_back(key);
            }
        }
        self.admit(v);
    }

    fn new_part(&mut self, master: u64, v: VolumeNr, kind: Kind, range: SectorRange, data: Option<Bytes>) -> u64 {
        self.requests.insert(Request {
            master,
            volume: v,
            kind,
            range,
            data,
            local: Side::Unused,
            net: Side::Unused,
            epoch: None,
            set_in_sync: false,
            sync_due: false,
            registered: false,
            al: None,
            done: false,
            retired: false,
            ack: AckDue::None,
            started: self.now,
            tried_local: false,
            tried_remote: false,
            aborted: false,
        })
    }

    /// Starts waiting requests as far as the state and the limits allow.
    pub(crate) fn admit(&mut self, v: VolumeNr) {
        loop {
            let limit = self.conn.opts.as_ref().map_or(1_000_000, |o| o.max_buffers as usize);
            let version = self.conn.version;
            let Some(vol) = self.volumes.get_mut(&v) else { return };
            if vol.waiting.is_empty() {
                return;
            }
            if vol.state.role != Role::Primary {
                // Demotion waits for what was accepted; what still waits here can only come from a lost race.
                let Some(key) = vol.waiting.pop_front() else { return };
                self.fail_part(key, ClientError::NotPrimary);
                continue;
            }
            if vol.promoting.is_some() || !admits_io(&vol.state, version) || vol.active.len() >= limit {
                return;
            }
            let Some(key) = vol.waiting.pop_front() else { return };
            self.start(key);
        }
    }

    /// Largest part of this kind now, in bytes.
    fn part_bytes_max(&self, kind: Kind) -> u64 {
        let by_version = match self.conn.link {
            Some(_) => u64::from(self.request_bytes_max()),
            None => PART_BYTES_MAX,
        };
        match kind {
            Kind::Read | Kind::Write { .. } => by_version,
            Kind::Discard | Kind::Zeroes { .. } if self.sends_zero_data(kind) => by_version,
            Kind::Discard | Kind::Zeroes { .. } => u64::from(FeatureFlags(self.conn.features).discard_bytes_max()),
        }
    }

    /// Whether this kind has to travel as data full of zeroes.
    fn sends_zero_data(&self, kind: Kind) -> bool {
        if self.conn.link.is_none() {
            return false;
        }
        let features = FeatureFlags(self.conn.features);
        let integrity = self.conn.opts.as_ref().is_some_and(|o| o.integrity_alg.alg().is_some());
        match kind {
            Kind::Discard => !features.has(FeatureFlags::TRIM),
            // A kernel receiver with an integrity algorithm misreads P_ZEROES (wire.md 5.11).
            Kind::Zeroes { .. } => !features.has(FeatureFlags::WZEROES) || integrity,
            Kind::Read | Kind::Write { .. } => false,
        }
    }

    fn start(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let (kind, v, master) = (request.kind, request.volume, request.master);
        let max = self.part_bytes_max(kind) / SECTOR_SIZE;
        // Split what is too large for the peer: the rest becomes a part of its own and comes next.
        if let Some(request) = self.requests.get_mut(key)
            && request.range.count.0 > max
        {
            let rest = SectorRange {
                start: Sector(request.range.start.0 + max),
                count: Sectors(request.range.count.0 - max),
            };
            request.range.count = Sectors(max);
            let data = request.data.as_mut().map(|d| d.split_off(usize::try_from(max * SECTOR_SIZE).unwrap_or(usize::MAX).min(d.len())));
            let rest = self.new_part(master, v, kind, rest, data);
            if let Some(m) = self.masters.get_mut(master) {
                m.parts += 1;
            }
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.waiting.push_front(rest);
            }
        }
        if kind == Kind::Read {
            return self.start_read(key);
        }
        let Some(range) = self.requests.get(key).map(|r| r.range) else { return };
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let behind = |k: &u64| self.requests.get(*k).is_some_and(|r| r.range.overlaps(range));
        if vol.active.overlaps(range)
            || vol.resync_ranges.overlaps(range)
            || vol.peer_active.overlaps(range)
            || (!vol.blocked.is_empty() && vol.blocked.iter().any(behind))
        {
            vol.blocked.push_back(key);
        } else {
            self.begin_write(key);
        }
    }

    /// Ranges became free: starts the writes that waited for them, in their order.
    pub(crate) fn retry_blocked(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.blocked.is_empty() {
            return;
        }
        let blocked = std::mem::take(&mut vol.blocked);
        let mut still: Vec<SectorRange> = Vec::new();
        for key in blocked {
            let Some(range) = self.requests.get(key).map(|r| r.range) else { continue };
            let Some(vol) = self.volumes.get_mut(&v) else { return };
            if vol.active.overlaps(range)
                || vol.resync_ranges.overlaps(range)
                || vol.peer_active.overlaps(range)
                || still.iter().any(|r| r.overlaps(range))
            {
                still.push(range);
                vol.blocked.push_back(key);
            } else {
                self.begin_write(key);
            }
        }
    }

    fn begin_write(&mut self, key: u64) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(key) else { return };
        request.started = now;
        request.registered = true;
        let (v, range) = (request.volume, request.range);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.active.insert(range, key);
        let begin = match (vol.usable(), ExtentSpan::of(range)) {
            (Some(disk), Some(span)) => Some((disk.al.begin(RequestKey(key), span, |_| false), span)),
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
        self.al_granted(ready);
        self.pump_al(v);
    }

    fn al_granted(&mut self, ready: Vec<RequestKey>) {
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

    /// Sends a write where one snapshot of the state says.
    fn submit_write(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let (v, range, kind) = (request.volume, request.range, request.kind);
        let Some(vol) = self.volumes.get(&v) else { return };
        let state = vol.state;
        let remote = self.conn.link.is_some() && state.conn >= ConnState::Connected && replicates(&state);
        let local = vol.disk_usable() && writes_locally(&state);
        if !remote && !local {
            self.log_no_data(v, range);
            self.unregister_write(key);
            return self.fail_part(key, ClientError::Io);
        }
        if local && !remote {
            let newly = self.set_bits(v, range);
            if newly > 0 && sends_out_of_sync(&state) && self.conn.version >= 96 {
                self.send_out_of_sync(v, range);
            }
        }
        let ack = match self.conn.protocol() {
            _ if !remote => AckDue::None,
            ReplProtocol::A => AckDue::None,
            ReplProtocol::B => AckDue::Receive,
            ReplProtocol::C => AckDue::Write,
        };
        let resync = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&state.conn);
        let sync_due = remote && resync && (self.conn.version >= 100 || self.conn.protocol() == ReplProtocol::C);
        if let Some(request) = self.requests.get_mut(key) {
            request.sync_due = sync_due;
            request.local = if local { Side::Pending } else { Side::Unused };
            request.net = if remote { Side::Pending } else { Side::Unused };
            request.ack = ack;
        }
        // The packet first: the peer's latency is the longer one.
        if remote {
            self.send_write(key, &state);
        }
        if local {
            let data = self.requests.get(key).and_then(|r| r.data.clone());
            let io = match (kind, data) {
                (Kind::Write { fua }, Some(data)) => DiskOp::Write { range, data: SmallVec::from_elem(data, 1), fua },
                (Kind::Discard, _) => DiskOp::Discard(range),
                (Kind::Zeroes { may_unmap, .. }, _) => DiskOp::WriteZeroes { range, may_unmap },
                (Kind::Write { .. } | Kind::Read, _) => return self.on_request_written(key, Err(no_payload())),
            };
            self.submit(v, io, Op::RequestWrite(key));
        }
    }

    fn send_out_of_sync(&mut self, v: VolumeNr, range: SectorRange) {
        // A discard may be larger than any block size field of a request; its length still fits 32 bits (limits.rs).
        let blksize = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        self.send_data(v, Packet::OutOfSync(BlockDesc { sector: range.start, blksize }));
    }

    fn send_write(&mut self, key: u64, state: &crate::engine::state::VolumeState) {
        self.send_due_barrier();
        let Some(request) = self.requests.get(key) else { return };
        let (v, range, kind) = (request.volume, request.range, request.kind);
        let epoch = self.epochs.add(key);
        let resync = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&state.conn);
        let flags = self.conn.version >= 95;
        let ack_flags = self.conn.version >= 100;
        let mut dp = DpFlags::RW_SYNC.with_if(DpFlags::MAY_SET_IN_SYNC, resync);
        let protocol = self.conn.protocol();
        if ack_flags {
            dp = dp
                .with_if(DpFlags::SEND_RECEIVE_ACK, protocol == ReplProtocol::B)
                .with_if(DpFlags::SEND_WRITE_ACK, protocol == ReplProtocol::C || resync);
        }
        let zero_data = self.sends_zero_data(kind);
        let digest_alg = self.conn.opts.as_ref().and_then(|o| o.integrity_alg.alg());
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let (seq, block_id, sector) = (vol.next_seq(), BlockId(key), range.start);
        vol.counters.sent += range.count.0;
        vol.counters.pending += 1;
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
                    Bytes::from_static(&ZEROES).slice(..usize::try_from(range.bytes()).unwrap_or(usize::MAX).min(ZEROES.len()))
                });
                let digest = digest_alg.map(|alg| alg.digest(&[&payload])).unwrap_or_default();
                Packet::Data(Data { sector, block_id, seq, flags: dp.with_if(DpFlags::FUA, fua && flags), digest, payload })
            }
        };
        self.send_data(v, packet);
        if let Some(request) = self.requests.get(key)
            && request.ack == AckDue::None
        {
            self.conn.await_sent(key);
        }
        if self.epochs.open_writes() >= self.conn.opts.as_ref().map_or(2048, |o| o.max_epoch_size as usize) {
            self.epochs.close();
        }
        self.arm_request_timeout();
    }

    /// Sends the barrier of the epoch that was closed last, if it was not sent yet.
    pub(crate) fn send_due_barrier(&mut self) {
        if self.conn.link.is_none() {
            return;
        }
        if let Some(barrier) = self.epochs.take_due_barrier(self.now) {
            self.send_data(VolumeNr(0), Packet::Barrier { barrier });
            self.arm_request_timeout();
        }
    }

    /// The local half of a write ended.
    pub(crate) fn on_request_written(&mut self, key: u64, result: Result<(), DiskFailure>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        if request.aborted {
            request.aborted = false;
            return self.retire(key);
        }
        let (v, kind) = (request.volume, request.kind);
        match result {
            Ok(()) => request.local = Side::Ok,
            Err(failure) => {
                request.local = Side::Failed;
                let range = request.range;
                // Bits are set when it is known that they are due, never later: a resync may be running by then.
                self.set_bits(v, range);
                // A discard that the device refuses is this request's failure, not the disk's.
                if !(matches!(kind, Kind::Discard | Kind::Zeroes { .. }) && failure.unsupported) {
                    self.log_error(v, format!("local WRITE IO error sector {}+{}: {}", range.start, range.count, failure.text));
                    self.on_io_error(v);
                }
            }
        }
        self.progress(key);
        self.wake_resync_reads(v);
    }

    /// Completes a write part when both halves are done, gives its range free, and retires it when its epoch is.
    fn progress(&mut self, key: u64) {
        let Some(request) = self.requests.get_mut(key) else { return };
        if request.local == Side::Pending || request.net == Side::Pending {
            return;
        }
        let (v, range) = (request.volume, request.range);
        if !request.done {
            request.done = true;
            let ok = request.local == Side::Ok || request.net == Side::Ok;
            let epoch = request.epoch;
            request.data = None;
            if epoch == Some(self.epochs.current()) {
                self.epochs.close();
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
            self.retry_blocked(v);
        }
        self.retire(key);
        self.admit(v);
        self.recheck_commands = true;
    }

    /// Forgets a write part whose fate is known, after its bits are right.
    fn retire(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let replicated = request.epoch.is_some();
        let settled = request.done && !request.registered && !request.aborted && request.local != Side::Pending;
        if !settled || (replicated && !request.retired) {
            return;
        }
        let Some(request) = self.requests.remove(key) else { return };
        let v = request.volume;
        if let Some(span) = request.al {
            let idle = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()).is_some_and(|d| d.al.end(span));
            if idle {
                self.pump_al(v);
            }
        }
        self.recheck_commands = true;
    }

    fn unregister_write(&mut self, key: u64) {
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
        self.retry_blocked(v);
    }

    fn fail_part(&mut self, key: u64, error: ClientError) {
        self.finish_part(key, Err(error));
        self.requests.remove(key);
    }

    /// Reports a part to its master; the last one completes the client request.
    fn finish_part(&mut self, key: u64, result: Result<Option<Bytes>, ClientError>) {
        let Some((master_key, start)) = self.requests.get(key).map(|r| (r.master, r.range.start)) else { return };
        let Some(master) = self.masters.get_mut(master_key) else { return };
        match result {
            Ok(Some(data)) => master.data.push((start, data)),
            Ok(None) => {}
            // The first error stays: a later success must not hide it.
            Err(error) => master.error = master.error.or(Some(error)),
        }
        master.parts -= 1;
        if master.parts > 0 {
            return;
        }
        let Some(mut master) = self.masters.remove(master_key) else { return };
        if let Some(vol) = self.volumes.get_mut(&master.volume) {
            vol.counters.application = vol.counters.application.saturating_sub(1);
        }
        let result = match master.error {
            Some(error) => Err(error),
            None => {
                master.data.sort_unstable_by_key(|(start, _)| *start);
                Ok(master.data.into_iter().map(|(_, data)| data).collect())
            }
        };
        self.complete(master.id, master.volume, result);
    }

    /// Completes to the client, unless a new generation has to become durable first.
    fn complete(&mut self, id: RequestId, v: VolumeNr, result: ClientResult) {
        match self.volumes.get_mut(&v).filter(|vol| vol.gate > 0) {
            Some(vol) => vol.held.push((id, result)),
            None => self.complete_now(id, result),
        }
    }

    fn complete_now(&mut self, id: RequestId, result: ClientResult) {
        self.out.push(Action::Complete { id, result });
    }

    // --- reads ---

    fn start_read(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let (v, range, tried_local, tried_remote) = (request.volume, request.range, request.tried_local, request.tried_remote);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let state = vol.state;
        let local = !tried_local
            && vol.usable().is_some_and(|d| {
                state.disk == DiskState::UpToDate
                    || (state.disk == DiskState::Inconsistent && !d.bitmap.any(range.bits_touched()))
            });
        let remote = !tried_remote
            && self.conn.link.is_some()
            && state.conn >= ConnState::Connected
            && state.pdsk == DiskState::UpToDate;
        if local {
            if let Some(request) = self.requests.get_mut(key) {
                request.local = Side::Pending;
            }
            self.submit(v, DiskOp::Read(range), Op::RequestRead(key));
        } else if remote {
            if let Some(request) = self.requests.get_mut(key) {
                request.net = Side::Pending;
                request.started = self.now;
            }
            // The peer must see every earlier write first; its barrier precedes a read of a later epoch.
            self.send_due_barrier();
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.counters.pending += 1;
            }
            let blksize = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            self.send_data(v, Packet::DataRequest(BlockReq { sector: range.start, block_id: BlockId(key), blksize }));
            self.arm_request_timeout();
        } else {
            self.log_no_data(v, range);
            self.fail_part(key, ClientError::Io);
        }
    }

    /// A local read ended.
    pub(crate) fn on_request_read(&mut self, key: u64, result: Result<Bytes, DiskFailure>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        if request.aborted {
            // Restarted on the peer already.
            request.aborted = false;
            return;
        }
        let (v, range) = (request.volume, request.range);
        match result {
            Ok(data) if data.len() as u64 == range.bytes() => self.read_done(key, data),
            other => {
                request.local = Side::Failed;
                request.tried_local = true;
                let text = other.err().map_or_else(|| String::from("short read"), |f| f.text);
                self.set_bits(v, range);
                self.log_error(v, format!("local READ IO error sector {}+{}: {text}", range.start, range.count));
                self.on_io_error(v);
                self.start_read(key);
            }
        }
    }

    fn read_done(&mut self, key: u64, data: Bytes) {
        self.finish_part(key, Ok(Some(data)));
        self.requests.remove(key);
        self.recheck_commands = true;
    }

    /// The peer answered a read: with data, or with a refusal.
    pub(crate) fn on_read_reply(&mut self, v: VolumeNr, sector: Sector, id: BlockId, data: Option<Bytes>) {
        let known = self.requests.get(id.0).filter(|r| {
            r.kind == Kind::Read && r.volume == v && r.range.start == sector && r.net == Side::Pending
        });
        let Some(request) = known else {
            return self.peer_error("P_DATA_REPLY", format!("no read of sector {sector} with id {:#x} is waiting", id.0));
        };
        let bytes = request.range.bytes();
        if data.as_ref().is_some_and(|d| d.len() as u64 != bytes) {
            return self.peer_error("P_DATA_REPLY", format!("carries another size than the {bytes} bytes asked for"));
        }
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.pending = vol.counters.pending.saturating_sub(1);
            vol.counters.received += bytes / SECTOR_SIZE;
        }
        match data {
            Some(data) => self.read_done(id.0, data),
            None => {
                if let Some(request) = self.requests.get_mut(id.0) {
                    request.net = Side::Failed;
                    request.tried_remote = true;
                }
                self.start_read(id.0);
            }
        }
    }

    // --- acknowledgements ---

    /// An acknowledgement for a replicated write.
    pub(crate) fn on_write_ack(&mut self, v: VolumeNr, ack: &BlockAck, name: &'static str, how: AckKind) {
        let key = ack.block_id.0;
        let known = self.requests.get(key).filter(|r| {
            r.volume == v && r.epoch.is_some() && !r.retired && r.range.start == ack.sector
        });
        let Some(request) = known else {
            if how == AckKind::Negative {
                // Protocol A and B: the write may be long completed; its blocks are marked all the same.
                if let Some(range) = SectorRange::from_bytes(ack.sector, u64::from(ack.blksize)) {
                    self.set_bits(v, range);
                }
                return;
            }
            return self.peer_error(name, format!("no write of sector {} with id {key:#x} is waiting", ack.sector));
        };
        // A negative acknowledgement of a discard carries size 0 (wire.md 5.10).
        if how != AckKind::Negative && u64::from(ack.blksize) != request.range.bytes() {
            return self.peer_error(name, format!("acknowledges {} bytes of {}", ack.blksize, request.range.bytes()));
        }
        let was_pending = request.net == Side::Pending;
        let Some(request) = self.requests.get_mut(key) else { return };
        match how {
            AckKind::Received if request.ack == AckDue::Write => {}
            AckKind::Received | AckKind::Written if request.net == Side::Failed => {}
            AckKind::Received => request.net = Side::Ok,
            AckKind::Written => {
                request.net = Side::Ok;
                request.sync_due = false;
            }
            AckKind::InSync => {
                request.net = Side::Ok;
                request.set_in_sync = true;
                request.sync_due = false;
            }
            AckKind::Negative => {
                request.net = Side::Failed;
                request.set_in_sync = false;
                request.sync_due = false;
            }
        }
        let range = request.range;
        if how == AckKind::Negative {
            // At once: a bitmap exchange may follow before the epoch is retired.
            self.set_bits(v, range);
        }
        if was_pending
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.counters.pending = vol.counters.pending.saturating_sub(1);
        }
        self.progress(key);
    }

    /// The oldest epoch is on the peer's stable storage.
    pub(crate) fn on_barrier_ack(&mut self, barrier: u32, set_size: u32) {
        let members = match self.epochs.ack(barrier, set_size) {
            Ok(members) => members,
            Err(error) => return self.peer_error("P_BARRIER_ACK", error.to_string()),
        };
        if let Some(waiting) = members.iter().find(|k| self.requests.get(**k).is_some_and(|r| r.net == Side::Pending)) {
            let ack = self.requests.get(*waiting).map(|r| r.ack);
            if ack != Some(AckDue::None) {
                return self.peer_error("P_BARRIER_ACK", format!("#{barrier} came before the acknowledgement of a write in it"));
            }
        }
        for key in members {
            if let Some(request) = self.requests.get_mut(key) {
                request.retired = true;
                request.sync_due = false;
                if request.net == Side::Pending {
                    request.net = Side::Ok;
                }
            }
            self.progress(key);
        }
        self.check_flushes();
        self.arm_request_timeout();
    }

    /// Packets were handed to the TCP stack: protocol A writes among them are done with the network.
    pub(crate) fn on_sent(&mut self, socket: Socket, packets: u64) {
        if socket == Socket::Meta {
            return;
        }
        self.note_sent(packets);
        while let Some(key) = self.conn.next_sent() {
            let Some(request) = self.requests.get_mut(key) else { continue };
            if request.net == Side::Pending && request.ack == AckDue::None {
                request.net = Side::Ok;
                let v = request.volume;
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.counters.pending = vol.counters.pending.saturating_sub(1);
                }
                self.progress(key);
            }
        }
    }

    /// The link is gone: every write that no barrier acknowledgement covers may be missing on the peer.
    pub(crate) fn requests_lost(&mut self) {
        for key in self.epochs.drain() {
            if let Some(request) = self.requests.get_mut(key) {
                request.net = Side::Failed;
                request.set_in_sync = false;
                request.sync_due = false;
                request.retired = true;
                let (v, range) = (request.volume, request.range);
                self.set_bits(v, range);
            }
            self.progress(key);
        }
        let reads: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, r)| r.kind == Kind::Read && r.net == Side::Pending)
            .map(|(key, _)| key)
            .collect();
        for key in reads {
            if let Some(request) = self.requests.get_mut(key) {
                request.net = Side::Failed;
            }
            self.start_read(key);
        }
        for vol in self.volumes.values_mut() {
            vol.counters.pending = 0;
        }
        self.check_flushes();
    }

    /// A forced detach: local halves count as failed, their buffers stay with the driver until the device returns them.
    pub(crate) fn abort_local_io(&mut self, v: VolumeNr) {
        let pending: Vec<(u64, Kind)> = self
            .requests
            .iter()
            .filter(|(_, r)| r.volume == v && r.local == Side::Pending)
            .map(|(key, r)| (key, r.kind))
            .collect();
        for (key, kind) in pending {
            if let Some(range) = self.requests.get(key).map(|r| r.range)
                && kind != Kind::Read
            {
                self.set_bits(v, range);
            }
            if let Some(request) = self.requests.get_mut(key) {
                request.local = Side::Failed;
                request.aborted = true;
                request.tried_local = true;
            }
            if kind == Kind::Read { self.start_read(key) } else { self.progress(key) }
        }
    }

    // --- flushes ---

    fn start_flush(&mut self, id: RequestId, v: VolumeNr) {
        self.epochs.close();
        let Some(vol) = self.volumes.get(&v) else { return self.complete_now(id, Err(ClientError::Gone)) };
        let local = vol.disk_usable();
        if !local && vol.state.pdsk < DiskState::Inconsistent {
            return self.complete_now(id, Err(ClientError::Io));
        }
        // Under C (and wherever the peer has the only copy) a flush speaks for both replicas.
        let both = self.conn.protocol() == ReplProtocol::C || !local;
        let epoch = if both && self.conn.link.is_some() { self.epochs.last() } else { None };
        let side = if local { Side::Pending } else { Side::Unused };
        let key = self.flushes.insert(Flush { id, volume: v, local: side, epoch });
        self.send_due_barrier();
        if epoch.is_some() && self.conn.relaxed_epochs {
            self.send_data(v, Packet::UnplugRemote);
        }
        if local {
            let mark = self.data_flush_mark(v);
            self.submit(v, DiskOp::Flush, Op::RequestFlush { flush: key, mark });
        } else {
            self.finish_flush(key);
        }
    }

    /// The local half of a flush ended.
    pub(crate) fn on_request_flushed(&mut self, key: u64, v: VolumeNr, result: Result<(), DiskFailure>) {
        if let Some(flush) = self.flushes.get_mut(key) {
            flush.local = if result.is_ok() { Side::Ok } else { Side::Failed };
        }
        if let Err(failure) = result {
            self.log_error(v, format!("local FLUSH IO error: {}", failure.text));
            self.on_io_error(v);
        }
        self.finish_flush(key);
    }

    fn check_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let keys: Vec<u64> = self.flushes.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.finish_flush(key);
        }
    }

    fn finish_flush(&mut self, key: u64) {
        let Some(flush) = self.flushes.get(key) else { return };
        if flush.local == Side::Pending || flush.epoch.is_some_and(|nr| !self.epochs.is_retired(nr)) {
            return;
        }
        let Some(flush) = self.flushes.remove(key) else { return };
        let remote_good =
            self.volumes.get(&flush.volume).is_some_and(|vol| self.conn.link.is_some() && vol.state.pdsk == DiskState::UpToDate);
        // Everything before it is acknowledged by the peer's barrier acknowledgement, or was never sent.
        let ok = flush.local == Side::Ok || remote_good;
        self.complete(flush.id, flush.volume, if ok { Ok(SmallVec::new()) } else { Err(ClientError::Io) });
        self.recheck_commands = true;
    }

    // --- bits ---

    /// Marks every block of a range out of sync; how many were in sync. Whatever resync of the range is under way
    /// carries older data: its end must not clear these bits.
    pub(crate) fn set_bits(&mut self, v: VolumeNr, range: SectorRange) -> u64 {
        let Some(vol) = self.volumes.get_mut(&v) else { return 0 };
        let bits = range.bits_touched();
        let newly = vol.disk.as_mut().map_or(0, |disk| disk.bitmap.set_range(bits.clone()));
        if let Some(resync) = vol.resync.as_mut() {
            resync.note_set(bits.start);
        }
        if !vol.resync_unacked.is_empty() {
            let from = range.start.0.saturating_sub(PART_BYTES_MAX / SECTOR_SIZE);
            for ((sector, bytes), unacked) in vol.resync_unacked.range_mut((from, 0)..(range.end().0, 0)) {
                let sent = SectorRange { start: Sector(*sector), count: Sectors::from_bytes_floor(u64::from(*bytes)) };
                unacked.stale |= sent.overlaps(range);
            }
        }
        if !vol.peer_active.is_empty() {
            let writes: SmallVec<[u64; 4]> = vol.peer_active.overlapping(range).collect();
            self.peer_writes_stale(&writes);
        }
        newly
    }

    /// Marks the whole blocks of a range in sync.
    pub(crate) fn clear_bits(&mut self, v: VolumeNr, range: SectorRange) -> u64 {
        let Some(vol) = self.volumes.get_mut(&v) else { return 0 };
        let bits = range.bits_covered(vol.size);
        let cleared = vol.disk.as_mut().map_or(0, |d| d.bitmap.clear_range(bits));
        if cleared > 0 {
            self.on_bits_cleared(v);
        }
        cleared
    }

    fn log_no_data(&mut self, v: VolumeNr, range: SectorRange) {
        self.log(Level::Error, Some(v), format!("IO ERROR: neither local nor remote data, sector {}+{}", range.start, range.count));
    }
}

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckKind {
    Received,
    Written,
    InSync,
    Negative,
}

fn no_payload() -> DiskFailure {
    DiskFailure { text: String::from("the request carries no data"), unsupported: false }
}
