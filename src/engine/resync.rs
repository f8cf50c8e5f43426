//! Resync: the target asks for what its bitmap marks, the source answers, both clear bits (wire.md 9, behaviour.md 7).
//!
//! Owns the run of one resync: cursor, requests in flight, pace and progress. Rules: the target asks only for ranges that no
//! application write of its own touches, and such writes wait for what was asked; a bit set behind the cursor makes it
//! come back; identifiers and "inconsistent" are durable before the first resync write, "up to date" before the peer is
//! told. Answers are taken only for what was asked, acknowledgements only for what was answered.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::connection::AfterPing;
use crate::engine::event::Timer;
use crate::engine::md::MdDone;
use crate::engine::progress::Progress;
use crate::engine::rate::{Denied, Pacer};
use crate::engine::state::{ChangeMode, StateChange};
use crate::limits::{BM_BLOCK_BYTES, LAZY_BITMAP_DELAY_MS, RESYNC_IN_FLIGHT_BYTES, RESYNC_REQUEST_BYTES};
use crate::meta::MdFlags;
use crate::units::{BlockId, BmBit, GenId, Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::resync::{BlockDesc, BlockReq};
use crate::wire::state::{ConnState, DiskState, Role};

/// Marks the keys of resync requests in the range registry.
const RANGE_KEY: u64 = 1 << 62;

/// One resync.
#[derive(Debug)]
pub(crate) struct Resync {
    /// This node has the good data.
    pub source: bool,
    /// Next bit to look at (target).
    cursor: u64,
    /// Lowest bit that was set behind the cursor.
    rewind: Option<u64>,
    /// Requests not yet on disk: first sector to range; asked for, or answered and being written.
    in_flight: BTreeMap<u64, InFlight>,
    pacer: Pacer,
    progress: Progress,
    /// Blocks that could not be read or written.
    failed: u64,
    /// The superblock allows resync writes.
    ready: bool,
    /// The end was begun.
    finishing: bool,
    /// The target said that it is done (source).
    pub peer_finished: bool,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    range: SectorRange,
    answered: bool,
}

impl Resync {
    fn new(now: Timestamp, source: bool, bits: u64, rate: Option<u64>) -> Self {
        let pacer = match rate {
            Some(rate) => Pacer::fixed(now, rate, (rate / 10).max(RESYNC_REQUEST_BYTES), RESYNC_IN_FLIGHT_BYTES),
            None => Pacer::unlimited(RESYNC_IN_FLIGHT_BYTES),
        };
        Self {
            source,
            cursor: 0,
            rewind: None,
            in_flight: BTreeMap::new(),
            pacer,
            progress: Progress::start(now, bits),
            failed: 0,
            ready: source,
            finishing: false,
            peer_finished: false,
        }
    }

    /// A bit was set: the cursor must see it again.
    pub(crate) fn note_set(&mut self, bit: u64) {
        if bit < self.cursor {
            self.rewind = Some(self.rewind.map_or(bit, |r| r.min(bit)));
        }
    }

    /// Blocks that could not be synced.
    pub(crate) const fn failed(&self) -> u64 {
        self.failed
    }

    /// Paused.
    pub(crate) fn suspend(&mut self, now: Timestamp) {
        self.progress.pause(now);
    }

    /// Goes on.
    pub(crate) fn resume(&mut self, now: Timestamp) {
        self.progress.resume(now);
    }

    /// Progress so far.
    pub(crate) const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A new fixed rate, or none.
    pub(crate) fn set_rate(&mut self, now: Timestamp, rate: Option<u64>) {
        self.pacer.set_rate(now, rate, rate.map_or(0, |r| (r / 10).max(RESYNC_REQUEST_BYTES)));
    }
}

impl Engine {
    // --- start ---

    /// Becomes the source: after the bitmap exchange, a full-sync request, or online growth.
    pub(crate) fn start_source(&mut self, v: VolumeNr) {
        if self.volumes.get(&v).is_some_and(|vol| !vol.resync_unacked.is_empty()) {
            // Acknowledgements of an aborted resync may still be on their way, and some never come. When the peer has
            // answered a ping there are none left that could be taken for those of the new one.
            return self.ping_then(AfterPing::SourceStart(v));
        }
        let change = StateChange::NONE.conn(ConnState::SyncSource).pdsk(DiskState::Inconsistent);
        if let Err(code) = self.change(v, &change, ChangeMode::Soft) {
            self.log(Level::Error, Some(v), format!("cannot start the resync: {}", code.text()));
            return self.drop_link(ConnState::NetworkFailure);
        }
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let bits = vol.out_of_sync_bits();
        vol.resync = Some(Resync::new(now, true, bits, None));
        self.log_begin(v, bits, "SyncSource");
        if self.conn.version < 96 {
            self.make_sync_uuid(v);
        }
    }

    /// A new bitmap identifier for this resync; it goes to the peer when it is durable, and nothing overtakes it.
    pub(crate) fn make_sync_uuid(&mut self, v: VolumeNr) {
        let random = self.rng.gen_id();
        let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
        let ids = disk.ids();
        let uuid = ids.sync_uuid(random.0);
        let ids = ids.start_as_source(uuid);
        disk.set_ids(ids);
        self.log(Level::Info, Some(v), format!("updated sync UUID {ids}"));
        self.hold_data();
        self.md_superblock(v, Some(MdDone::SyncUuid(uuid)));
    }

    /// The sync identifier is durable.
    pub(crate) fn on_sync_uuid_durable(&mut self, v: VolumeNr, uuid: GenId) {
        if matches!(self.state(v).conn, ConnState::SyncSource | ConnState::PausedSyncS) {
            self.send_data_now(v, Packet::SyncUuid(uuid));
        }
        self.release_data();
    }

    /// The source announced the resync. It may come before this node is ready for it.
    pub(crate) fn on_sync_uuid(&mut self, v: VolumeNr, uuid: GenId) {
        let conn = self.state(v).conn;
        match conn {
            ConnState::WfSyncUuid | ConnState::Behind => self.start_target(v, uuid),
            ConnState::StartingSyncT | ConnState::WfBitMapT => {
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.early_sync_uuid = Some(uuid);
                }
            }
            _ => self.peer_error("P_SYNC_UUID", format!("not expected in state {conn}")),
        }
    }

    /// Waits for the source's announcement, or starts at once if it came early.
    pub(crate) fn wait_sync_uuid(&mut self, v: VolumeNr) {
        self.force(v, &StateChange::NONE.conn(ConnState::WfSyncUuid));
        if let Some(uuid) = self.volumes.get_mut(&v).and_then(|vol| vol.early_sync_uuid.take()) {
            self.start_target(v, uuid);
        }
    }

    fn start_target(&mut self, v: VolumeNr, uuid: GenId) {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let primary = vol.state.role == Role::Primary;
        let rate = vol.opts.resync_rate;
        let Some(disk) = vol.disk.as_mut() else { return };
        let ids = disk.ids().start_as_target(uuid, primary);
        disk.set_ids(ids);
        let bits = disk.bitmap.count();
        vol.exposed = ids.current;
        self.log(Level::Info, Some(v), format!("updated sync uuid {ids}"));
        let change = StateChange::NONE.conn(ConnState::SyncTarget).disk(DiskState::Inconsistent);
        if let Err(code) = self.change(v, &change, ChangeMode::Soft) {
            self.log(Level::Error, Some(v), format!("cannot start the resync: {}", code.text()));
            return self.drop_link(ConnState::NetworkFailure);
        }
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.resync = Some(Resync::new(now, false, bits, rate));
        }
        self.log_begin(v, bits, "SyncTarget");
        // The bits first: the source forgets a block when this node has written it, flushed or not. After a power cut
        // only this bitmap can know of it.
        self.md_bitmap(v, true, Some(MdDone::TargetStarted));
    }

    fn log_begin(&mut self, v: VolumeNr, bits: u64, role: &str) {
        let text = format!("Began resync as {role} (will sync {} KB [{bits} bits set]).", bits * 4);
        self.log(Level::Info, Some(v), text);
    }

    /// The target's superblock is durable.
    pub(crate) fn on_target_started(&mut self, v: VolumeNr, ok: bool) {
        if let Some(resync) = self.volumes.get_mut(&v).and_then(|vol| vol.resync.as_mut()) {
            resync.ready = ok;
            self.resync_kick.insert(v);
        }
    }

    /// A full sync by request: all bits, durably.
    pub(crate) fn start_full_sync(&mut self, v: VolumeNr) {
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.sb.flags = disk.sb.flags.with(MdFlags::FULL_SYNC);
            disk.sb_dirty = true;
        }
        self.md_superblock(v, None);
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.bitmap.set_all();
        }
        self.md_bitmap(v, false, Some(MdDone::FullSync));
    }

    /// All bits are on disk.
    pub(crate) fn on_full_sync_written(&mut self, v: VolumeNr, ok: bool) {
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.sb.flags = disk.sb.flags.without(MdFlags::FULL_SYNC);
            disk.sb_dirty = true;
        }
        self.md_superblock(v, None);
        match self.state(v).conn {
            conn @ (ConnState::StartingSyncT | ConnState::StartingSyncS) if !ok => {
                self.log(Level::Error, Some(v), format!("Writing the bitmap failed not starting resync ({conn})."));
                self.force(v, &StateChange::NONE.conn(ConnState::Connected));
            }
            ConnState::StartingSyncT => self.wait_sync_uuid(v),
            ConnState::StartingSyncS => self.start_source(v),
            _ => {}
        }
    }

    // --- target ---

    /// Asks for as much as the pace allows.
    pub(crate) fn pump_resync(&mut self, v: VolumeNr) {
        let bytes_max = u64::from(self.request_bytes_max()).min(RESYNC_REQUEST_BYTES);
        let now = self.now;
        if self.state(v).conn != ConnState::SyncTarget {
            return;
        }
        let mut wrapped = false;
        loop {
            let Some(vol) = self.volumes.get_mut(&v) else { return };
            let (Some(resync), Some(disk)) = (vol.resync.as_mut(), vol.disk.as_ref()) else { return };
            if !resync.ready || resync.finishing {
                return;
            }
            let Some(first) = disk.bitmap.find_first_set_from(BmBit(resync.cursor)) else {
                match resync.rewind.take() {
                    Some(bit) if !wrapped => {
                        wrapped = true;
                        resync.cursor = bit;
                        continue;
                    }
                    Some(bit) => resync.rewind = Some(bit),
                    None if resync.in_flight.is_empty() => {
                        resync.cursor = disk.bitmap.bits();
                        resync.finishing = true;
                        return self.ping_then(AfterPing::TargetFinish(v));
                    }
                    None => {}
                }
                return;
            };
            let most = bytes_max / BM_BLOCK_BYTES;
            let run_end = disk.bitmap.find_first_clear_from(first).map_or(disk.bitmap.bits(), |b| b.0);
            // A boundary of the request size keeps later requests aligned.
            let boundary = (first.0 / most + 1) * most;
            let end = run_end.min(boundary);
            let start = first.sector();
            let stop = Sector((end * 8).min(vol.size.0));
            let range = SectorRange { start, count: Sectors(stop.0 - start.0) };
            if vol.active.overlaps(range) || vol.resync_ranges.overlaps(range) {
                // An application write or an earlier request holds a part of it: skip one block, come back later.
                resync.cursor = first.0 + 1;
                let block = SectorRange { start, count: Sectors(8) };
                if vol.active.overlaps(range) && !vol.resync_ranges.overlaps(block) {
                    resync.note_set(first.0);
                }
                continue;
            }
            match resync.pacer.take(now, range.bytes()) {
                Ok(()) => {}
                Err(Denied::InFlight) => return,
                Err(Denied::For(wait)) => {
                    self.out.push(Action::SetTimer { timer: Timer::Resync(v), at: now.after(wait) });
                    return;
                }
            }
            resync.cursor = end;
            resync.in_flight.insert(range.start.0, InFlight { range, answered: false });
            vol.resync_ranges.insert(range, RANGE_KEY | range.start.0);
            vol.counters.pending += 1;
            let blksize = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            self.send_data(v, Packet::RsDataRequest(BlockReq { sector: start, block_id: BlockId::SYNCER, blksize }));
        }
    }

    /// Finds the request that an answer belongs to; complains if there is none while a resync runs.
    fn take_answer(&mut self, v: VolumeNr, sector: Sector, bytes: u64, name: &'static str) -> Option<SectorRange> {
        let vol = self.volumes.get_mut(&v)?;
        let resync = vol.resync.as_mut().filter(|r| !r.source)?;
        let known = resync.in_flight.get_mut(&sector.0).filter(|f| !f.answered && f.range.bytes() == bytes);
        let Some(known) = known else {
            self.peer_error(name, format!("{bytes} bytes at sector {sector} were not asked for"));
            return None;
        };
        known.answered = true;
        let range = known.range;
        vol.counters.pending = vol.counters.pending.saturating_sub(1);
        Some(range)
    }

    /// The request is done with, one way or the other.
    fn drop_request(&mut self, v: VolumeNr, range: SectorRange) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.resync_ranges.remove(range, RANGE_KEY | range.start.0);
            if let Some(resync) = vol.resync.as_mut()
                && resync.in_flight.remove(&range.start.0).is_some()
            {
                resync.pacer.answered(range.bytes());
            }
        }
        self.retry_blocked(v);
        self.resync_kick.insert(v);
    }

    /// Resync data arrived.
    pub(crate) fn on_rs_data(&mut self, v: VolumeNr, sector: Sector, data: Bytes, digest: crate::wire::digest::Digest) {
        if let Some(alg) = self.conn.peer_integrity
            && alg.digest(&[&data]) != digest
        {
            return self.peer_error("P_RS_DATA_REPLY", format!("Digest integrity check FAILED: {sector}s +{}", data.len()));
        }
        let Some(range) = self.take_answer(v, sector, data.len() as u64, "P_RS_DATA_REPLY") else { return };
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.received += range.count.0;
        }
        self.accept_resync_write(v, range, Some(data));
    }

    /// The range is all zeroes on the source.
    pub(crate) fn on_rs_deallocated(&mut self, v: VolumeNr, p: &BlockDesc) {
        if let Some(range) = self.take_answer(v, p.sector, u64::from(p.blksize), "P_RS_DEALLOCATED") {
            self.accept_resync_write(v, range, None);
        }
    }

    /// The source could not read the range.
    pub(crate) fn on_rs_negative(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        if let Some(range) = self.take_answer(v, sector, u64::from(blksize), "P_NEG_RS_DREPLY") {
            self.resync_failed(v, range);
            self.drop_request(v, range);
        }
    }

    /// The source dropped the request.
    pub(crate) fn on_rs_cancel(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        if let Some(range) = self.take_answer(v, sector, u64::from(blksize), "P_RS_CANCEL") {
            if let Some(resync) = self.volumes.get_mut(&v).and_then(|vol| vol.resync.as_mut()) {
                resync.note_set(range.start.bm_bit().0);
            }
            self.drop_request(v, range);
        }
    }

    /// Resync data reached the disk (or did not).
    pub(crate) fn resync_written(&mut self, v: VolumeNr, range: SectorRange, ok: bool, stale: bool) {
        let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
        if ok {
            if !stale {
                self.clear_bits(v, range);
            }
            self.send_ack(v, range.start, BlockId::SYNCER, size, Packet::RsWriteAck);
        } else {
            self.resync_failed(v, range);
            self.send_ack(v, range.start, BlockId::SYNCER, size, Packet::NegAck);
        }
        self.drop_request(v, range);
    }

    /// Counts blocks that stay out of sync.
    pub(crate) fn resync_failed(&mut self, v: VolumeNr, range: SectorRange) {
        let bits = range.bits_touched();
        if let Some(resync) = self.volumes.get_mut(&v).and_then(|vol| vol.resync.as_mut()) {
            resync.failed += bits.end - bits.start;
        }
    }

    /// The source has seen every acknowledgement: the target is done.
    pub(crate) fn finish_target(&mut self, v: VolumeNr) {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if !matches!(vol.state.conn, ConnState::SyncTarget | ConnState::PausedSyncT) {
            return;
        }
        let (Some(resync), Some(disk)) = (vol.resync.as_mut(), vol.disk.as_mut()) else { return };
        let left = disk.bitmap.count();
        if left > resync.failed {
            // Bits were set while the ping was under way.
            resync.finishing = false;
            resync.cursor = 0;
            self.resync_kick.insert(v);
            return;
        }
        let text = done_text(resync.progress(), now);
        let failed = resync.failed;
        let primary = vol.state.role == Role::Primary;
        let mut change = StateChange::NONE.conn(ConnState::Connected);
        if failed == 0 {
            if let Some(uuids) = vol.peer.uuids.as_mut() {
                let ids = disk.ids().finish_as_target(&uuids.ids, primary);
                disk.set_ids(ids);
                uuids.ids = ids;
            }
            change = change.disk(DiskState::UpToDate).pdsk(DiskState::UpToDate);
        }
        vol.resync = None;
        self.log(Level::Info, Some(v), text);
        if failed > 0 {
            self.log(Level::Warn, Some(v), format!("{failed} failed blocks"));
        } else if let Some(ids) = self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()).map(super::volume::LocalDisk::ids) {
            self.log(Level::Info, Some(v), format!("updated UUIDs {ids}"));
        }
        // The source is told only when the superblock says so too.
        self.hold_data();
        self.force(v, &change);
        self.md_superblock(v, Some(MdDone::TargetFinished));
    }

    /// "Up to date" is durable.
    pub(crate) fn on_target_finished(&mut self, _v: VolumeNr, _ok: bool) {
        self.release_data();
    }

    // --- source ---

    /// An answer with data (or zeroes) is on its way: its acknowledgement is expected.
    pub(crate) fn expect_resync_ack(&mut self, v: VolumeNr, range: SectorRange) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            vol.resync_unacked.entry((range.start.0, size)).or_default().count += 1;
            vol.counters.pending += 1;
        }
    }

    /// The range of an expected acknowledgement, and whether newer data made it worthless.
    fn take_resync_ack(&mut self, v: VolumeNr, sector: Sector, blksize: u32, name: &'static str) -> Option<(SectorRange, bool)> {
        let vol = self.volumes.get_mut(&v)?;
        let key = (sector.0, blksize);
        let Some(unacked) = vol.resync_unacked.get_mut(&key) else {
            self.peer_error(name, format!("{blksize} bytes at sector {sector} were not sent for resync"));
            return None;
        };
        unacked.count -= 1;
        let stale = unacked.stale;
        if unacked.count == 0 {
            vol.resync_unacked.remove(&key);
        }
        vol.counters.pending = vol.counters.pending.saturating_sub(1);
        SectorRange::from_bytes(sector, u64::from(blksize)).map(|range| (range, stale))
    }

    /// The target has written an answer.
    pub(crate) fn on_rs_write_ack(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        if let Some((range, false)) = self.take_resync_ack(v, sector, blksize, "P_RS_WRITE_ACK") {
            self.clear_bits(v, range);
        }
    }

    /// The target could not write an answer.
    pub(crate) fn on_rs_neg_ack(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        if let Some((range, _)) = self.take_resync_ack(v, sector, blksize, "P_NEG_ACK") {
            self.resync_failed(v, range);
        }
    }

    /// The target has seen everything: the source is done.
    pub(crate) fn finish_source(&mut self, v: VolumeNr) {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if !matches!(vol.state.conn, ConnState::SyncSource | ConnState::PausedSyncS) {
            return;
        }
        let Some(resync) = vol.resync.as_ref() else { return };
        let (text, failed) = (done_text(resync.progress(), now), resync.failed);
        let mut change = StateChange::NONE.conn(ConnState::Connected);
        if failed == 0 {
            if let Some(disk) = vol.disk.as_mut() {
                let ids = disk.ids().finish_as_source();
                disk.set_ids(ids);
                if let Some(uuids) = vol.peer.uuids.as_mut() {
                    uuids.ids = ids;
                }
            }
            change = change.pdsk(DiskState::UpToDate);
        }
        vol.resync = None;
        self.log(Level::Info, Some(v), text);
        if failed > 0 {
            self.log(Level::Warn, Some(v), format!("{failed} failed blocks"));
        }
        self.force(v, &change);
        self.md_superblock(v, None);
    }

    // --- both ---

    /// Bits were cleared: progress, lazy write-out, and the end of a source that only waited for them.
    pub(crate) fn on_bits_cleared(&mut self, v: VolumeNr) {
        let now = self.now;
        let version = self.conn.version;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let left = vol.out_of_sync_bits();
        if !vol.lazy_timer {
            vol.lazy_timer = true;
            let at = now.after(std::time::Duration::from_millis(LAZY_BITMAP_DELAY_MS));
            self.out.push(Action::SetTimer { timer: Timer::LazyBitmap(v), at });
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(resync) = vol.resync.as_mut() else { return };
        resync.progress.advance(now, left);
        let done = left <= resync.failed;
        // Up to version 95 each side finishes by its own count.
        if done && resync.source && !resync.finishing && (resync.peer_finished || version < 96) {
            resync.finishing = true;
            self.ping_then(AfterPing::SourceFinish(v));
        }
    }

    /// Changed bitmap pages are written out.
    pub(crate) fn on_lazy_bitmap(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.lazy_timer = false;
            if vol.disk.as_ref().is_some_and(|d| d.bitmap.changed_pages() > 0) && vol.state.disk >= DiskState::Inconsistent {
                self.md_bitmap(v, false, None);
            }
        }
    }

    /// The resync of a volume is over or aborted: forgets requests and their ranges. Bits stay.
    pub(crate) fn forget_resync(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.early_sync_uuid = None;
        let Some(resync) = vol.resync.take() else { return };
        for (_, request) in resync.in_flight {
            vol.resync_ranges.remove(request.range, RANGE_KEY | request.range.start.0);
        }
        self.out.push(Action::CancelTimer(Timer::Resync(v)));
        self.retry_blocked(v);
    }
}

fn done_text(progress: &Progress, now: Timestamp) -> String {
    let total = progress.elapsed(now).as_secs();
    let paused = progress.paused(now).as_secs();
    let active = total.saturating_sub(paused).max(1);
    format!("Resync done (total {total} sec; paused {paused} sec; {} K/sec)", progress.total() * 4 / active)
}
