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
use crate::engine::action::{Action, ClientError, ClientResult, Level};
use crate::engine::al::ExtentSpan;
use crate::engine::conflict::Standing;
use crate::engine::event::{ClientRequest, DiskFailure, RequestId};
use crate::engine::fault::Fault;
use crate::engine::state::admits_io;
use crate::limits::SECTOR_SIZE;
use crate::units::{Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::feature::FeatureFlags;
use crate::wire::state::Role;

/// Largest part, in bytes, whatever the peer takes: the size of a replicated request from version 100 on.
pub(crate) const PART_BYTES_MAX: u64 = crate::limits::REQUEST_BYTES_MAX_V100 as u64;
/// Zeroes for peers that take no zero or discard packets.
pub(crate) static ZEROES: [u8; crate::limits::REQUEST_BYTES_MAX_V100 as usize] =
    [0; crate::limits::REQUEST_BYTES_MAX_V100 as usize];

/// Master of a part that no client waits for.
pub(crate) const NO_CLIENT: u64 = u64::MAX;

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
    /// The peer said that the write is on its disk.
    pub confirmed: bool,
    /// The peer said that it could not write it.
    pub denied: bool,
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
    /// The local half failed, and the disk is called UpToDate all the same: a source that passes errors on stays one.
    /// Readers will find the old data here, wherever else the new ones are.
    pub stale_here: bool,
    /// What the peer, as the resolver of conflicts, said of it.
    pub standing: Standing,
    /// It was refused on a link that is gone, and begins again once the own disk has ended it.
    pub begins_again: bool,
    /// The other Primary has written there since it was written, and that is on its way to the own disk, or there.
    pub overwritten: bool,
    /// What it overwrites is saved, as far as that is wanted.
    pub undo_settled: bool,
}

/// What completes the network half. Where the own copy does not count, nothing less than a written one on the peer will do,
/// whatever the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckDue {
    /// Handing it to the socket is enough.
    None,
    Receive,
    Write,
    /// Only the peer's barrier acknowledgement says that it is written.
    Barrier,
}

/// A flush under way.
#[derive(Debug)]
pub(crate) struct Flush {
    pub id: RequestId,
    pub volume: VolumeNr,
    pub local: Side,
    /// Waits until this epoch is retired.
    pub epoch: Option<u32>,
    /// The epoch covers everything that was written before: the peer's copy alone is enough.
    pub peer_only: bool,
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
            ClientRequest::WriteZeroes { range, may_unmap, fua } => {
                (Kind::Zeroes { may_unmap, fua }, range, SmallVec::new())
            }
        };
        if !inside(range) {
            return self.complete_now(id, Err(ClientError::OutOfRange));
        }
        if range.is_empty() {
            return self.complete_now(id, Ok(SmallVec::new()));
        }
        let parts: SmallVec<[(SectorRange, Option<Bytes>); 1]> = if matches!(kind, Kind::Write { .. }) {
            let total: u64 = pieces.iter().map(|p| p.len() as u64).sum();
            if total != range.bytes()
                || pieces.iter().any(|p| p.is_empty() || !(p.len() as u64).is_multiple_of(SECTOR_SIZE))
            {
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

    pub(crate) fn new_part(
        &mut self,
        master: u64,
        v: VolumeNr,
        kind: Kind,
        range: SectorRange,
        data: Option<Bytes>,
    ) -> u64 {
        self.requests.insert(Request {
            master,
            volume: v,
            kind,
            range,
            data,
            local: Side::Unused,
            net: Side::Unused,
            epoch: None,
            confirmed: false,
            denied: false,
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
            stale_here: false,
            standing: Standing::Free,
            begins_again: false,
            overwritten: false,
            undo_settled: false,
        })
    }

    /// Starts waiting requests as far as the state and the limits allow.
    pub(crate) fn admit(&mut self, v: VolumeNr) {
        loop {
            let limit = self.conn.opts.as_ref().map_or(1_000_000, |o| o.max_buffers as usize);
            let limit = if self.faulty(Fault::MaxBuffersIgnored) { usize::MAX } else { limit };
            let version = self.conn.version;
            let resend_first = self.resend_first();
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
            let admits = admits_io(&vol.state, version) && !resend_first;
            if vol.promoting.is_some() || !admits || vol.active.len() >= limit {
                return;
            }
            let Some(key) = vol.waiting.pop_front() else { return };
            self.start(key);
        }
    }

    /// Largest part of this kind now, in bytes.
    pub(crate) fn part_bytes_max(&self, kind: Kind) -> u64 {
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
    pub(crate) fn sends_zero_data(&self, kind: Kind) -> bool {
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

    pub(crate) fn start(&mut self, key: u64) {
        let Some(request) = self.requests.get(key) else { return };
        let (kind, v) = (request.kind, request.volume);
        let max = self.part_bytes_max(kind) / SECTOR_SIZE;
        // What is too large for the peer is split, and the rest comes next.
        if let Some(rest) = self.cut_part(key, max)
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.waiting.push_front(rest);
        }
        if kind == Kind::Read {
            return self.start_read(key);
        }
        let Some(range) = self.requests.get(key).map(|r| r.range) else { return };
        let taken = self.range_taken(v, range);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let behind = |k: &u64| self.requests.get(*k).is_some_and(|r| r.range.overlaps(range));
        if taken || (!vol.blocked.is_empty() && vol.blocked.iter().any(behind)) {
            vol.blocked.push_back(key);
        } else {
            self.begin_write(key);
        }
    }

    pub(crate) fn fail_part(&mut self, key: u64, error: ClientError) {
        self.finish_part(key, Err(error));
        self.requests.remove(key);
    }

    /// Reports a part to its master; the last one completes the client request.
    pub(crate) fn finish_part(&mut self, key: u64, result: Result<Option<Bytes>, ClientError>) {
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
    pub(crate) fn complete(&mut self, id: RequestId, v: VolumeNr, result: ClientResult) {
        let twice = self.faulty(Fault::CompletedTwice);
        match self.volumes.get_mut(&v).filter(|vol| vol.gate > 0) {
            Some(vol) if twice => {
                vol.held.push((id, result.clone()));
                self.complete_now(id, result);
            }
            Some(vol) => vol.held.push((id, result)),
            None => self.complete_now(id, result),
        }
    }

    pub(crate) fn complete_now(&mut self, id: RequestId, result: ClientResult) {
        self.out.push(Action::Complete { id, result });
    }

    pub(crate) fn log_no_data(&mut self, v: VolumeNr, range: SectorRange) {
        self.log(
            Level::Error,
            Some(v),
            format!("IO ERROR: neither local nor remote data, sector {}+{}", range.start, range.count),
        );
    }
}

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckKind {
    Received,
    Written,
    InSync,
    Negative,
    /// Two Primaries: the peer's own write replaces it.
    Superseded,
    /// Two Primaries: to be sent again after the peer's own write.
    Retry,
}

pub(crate) fn no_payload() -> DiskFailure {
    DiskFailure { text: String::from("the request carries no data"), unsupported: false }
}
