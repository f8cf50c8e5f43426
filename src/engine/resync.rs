//! Resync: the target asks for what its bitmap marks, the source answers, both clear bits (wire.md 9, behaviour.md 7).
//!
//! Owns the run of one resync: cursor, requests in flight, pace and progress. Rules: the target asks only for ranges that no
//! application write of its own touches, and such writes wait for what was asked; a bit set behind the cursor makes it
//! come back; identifiers and "inconsistent" are durable before the first resync write, "up to date" before the peer is
//! told. Answers are taken only for what was asked, acknowledgements only for what was answered.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::blocks::BlockSet;
use crate::engine::connection::AfterPing;
use crate::engine::event::Timer;
use crate::engine::fault::Fault;
use crate::engine::md::MdDone;
use crate::engine::progress::Progress;
use crate::engine::rate::Pacer;
use crate::engine::state::{ChangeMode, StateChange};
use crate::limits::{
    BM_BLOCK_SECTORS, FAILED_EARLY_MAX, LAZY_BITMAP_DELAY_MS, RESYNC_IN_FLIGHT_BYTES, RESYNC_REQUEST_BYTES,
    RESYNC_UNACKED_MAX,
};
use crate::meta::MdFlags;
use crate::units::{GenId, Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState};

/// Marks the keys of resync requests in the range registry.
pub(crate) const RANGE_KEY: u64 = 1 << 62;

/// One resync.
#[derive(Debug)]
pub(crate) struct Resync {
    /// This node has the good data.
    pub source: bool,
    /// Next bit to look at (target).
    pub(crate) cursor: u64,
    /// Lowest bit that was set behind the cursor.
    pub(crate) rewind: Option<u64>,
    /// Requests not yet on disk: first sector to range; asked for, or answered and being written.
    pub(crate) in_flight: BTreeMap<u64, InFlight>,
    pub(crate) pacer: Pacer,
    pub(crate) progress: Progress,
    /// Blocks that could not be read or written: marked, and not asked for again by this resync.
    pub(crate) failed: BlockSet,
    /// The superblock allows resync writes.
    pub(crate) ready: bool,
    /// The end was begun.
    pub(crate) finishing: bool,
    /// The target has asked for something: it has begun, durably, and a state that comes later is not from before (source).
    pub(crate) asked: bool,
    /// The target said that it is done, with this disk (source).
    pub peer_finished: Option<DiskState>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) range: SectorRange,
    pub(crate) answered: bool,
}

impl Resync {
    pub(crate) fn new(now: Timestamp, source: bool, bits: u64, rate: Option<u64>) -> Self {
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
            failed: BlockSet::default(),
            ready: source,
            finishing: false,
            asked: false,
            peer_finished: None,
        }
    }

    /// A bit was set: the cursor must see it again.
    pub(crate) fn note_set(&mut self, bit: u64) {
        if bit < self.cursor {
            self.rewind = Some(self.rewind.map_or(bit, |r| r.min(bit)));
        }
    }

    /// Number of blocks that could not be synced.
    pub(crate) const fn failed(&self) -> u64 {
        self.failed.count()
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
    /// The source begins.
    pub(crate) fn begin_source(&mut self, v: VolumeNr) {
        let failed = self.volumes.get_mut(&v).map(|vol| std::mem::take(&mut vol.failed_early)).unwrap_or_default();
        if self.state(v).conn == ConnState::Connected {
            // No bitmaps were exchanged.
            self.tell_marked(v);
        }
        let change = StateChange::NONE.conn(ConnState::SyncSource).pdsk(DiskState::Inconsistent);
        if let Err(code) = self.change(v, &change, ChangeMode::Soft) {
            self.log(Level::Error, Some(v), format!("cannot start the resync: {}", code.text()));
            return self.drop_link(ConnState::NetworkFailure);
        }
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let bits = vol.out_of_sync_bits();
        vol.resync = Some(Resync { failed, ..Resync::new(now, true, bits, None) });
        self.log_begin(v, bits, "SyncSource");
        if self.conn.version < 96 {
            self.make_sync_uuid(v);
        }
    }

    /// A new bitmap identifier for this resync; it goes to the peer when it is durable, and nothing overtakes it.
    pub(crate) fn make_sync_uuid(&mut self, v: VolumeNr) {
        let random = self.rng.gen_id();
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let held = vol.peer.uuids.map_or(GenId::UNSET, |uuids| uuids.ids.current);
        let Some(disk) = vol.disk.as_mut() else { return };
        let ids = disk.ids();
        let uuid = ids.sync_uuid(random.0);
        let ids = ids.start_as_source(uuid).keeping(&ids, held);
        disk.set_ids(ids);
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.missed_end = false;
        }
        self.log(Level::Info, Some(v), format!("updated sync UUID {ids}"));
        self.hold_place(v);
        let link = self.conn.link;
        // What goes over has to stay here as well: both nodes forget that a block differed when the target has it, and
        // writes of a peer that is gone may still be in this disk's cache, known to no activity log any more.
        self.md_flush_data(v);
        self.md_superblock(v, Some(MdDone::SyncUuid(uuid, link)));
    }

    /// The sync identifier is durable.
    pub(crate) fn on_sync_uuid_durable(&mut self, v: VolumeNr, uuid: GenId) {
        let goes = matches!(self.state(v).conn, ConnState::SyncSource | ConnState::PausedSyncS);
        self.fill_place(v, goes.then_some(Packet::SyncUuid(uuid)));
        self.release_data();
    }

    pub(crate) fn log_begin(&mut self, v: VolumeNr, bits: u64, role: &str) {
        let text = format!("Began resync as {role} (will sync {} KB [{bits} bits set]).", bits * 4);
        self.log(Level::Info, Some(v), text);
    }

    /// A full sync by request: all bits, durably.
    pub(crate) fn start_full_sync(&mut self, v: VolumeNr) {
        if self.state(v).conn == ConnState::StartingSyncT {
            // These data are given up from here on. The identifiers are equal: should the resync not come to its beginning,
            // only this tells both nodes at the next handshake that there has to be one.
            self.force(v, &StateChange::NONE.disk(DiskState::Inconsistent));
        }
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
            ConnState::StartingSyncT => self.start_answer(v),
            ConnState::StartingSyncS => self.start_source(v),
            _ => {}
        }
    }

    /// Blocks that could not be synced: those that are marked stay so until another resync.
    pub(crate) fn resync_failed(&mut self, v: VolumeNr, range: SectorRange) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if let (Some(resync), Some(disk)) = (vol.resync.as_mut(), vol.disk.as_ref()) {
            for run in disk.bitmap.runs(range.bits_touched()) {
                resync.failed.insert(run);
            }
            self.check_source_done(v);
        }
    }

    /// An answer with data (or zeroes) is on its way: its acknowledgement is expected.
    pub(crate) fn expect_resync_ack(&mut self, v: VolumeNr, range: SectorRange) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            vol.resync_unacked.entry((range.start.0, size)).or_default().count += 1;
            vol.counters.pending += 1;
            if vol.resync_unacked.len() > RESYNC_UNACKED_MAX {
                self.peer_error("P_RS_DATA_REQUEST", "too many resync answers are not acknowledged");
            }
        }
    }

    /// The range of an expected acknowledgement, and the blocks for which newer data made it worthless.
    pub(crate) fn take_resync_ack(
        &mut self,
        v: VolumeNr,
        sector: Sector,
        blksize: u32,
        name: &'static str,
    ) -> Option<(SectorRange, BlockSet)> {
        let vol = self.volumes.get_mut(&v)?;
        let key = (sector.0, blksize);
        let Some(unacked) = vol.resync_unacked.get_mut(&key) else {
            if let Some(left) = vol.resync_abandoned.get_mut(&key).filter(|left| **left > 0) {
                *left -= 1;
                return None;
            }
            self.peer_error(name, format!("{blksize} bytes at sector {sector} were not sent for resync"));
            return None;
        };
        unacked.count -= 1;
        let stale = unacked.stale.clone();
        if unacked.count == 0 {
            vol.resync_unacked.remove(&key);
        }
        vol.counters.pending = vol.counters.pending.saturating_sub(1);
        SectorRange::from_bytes(sector, u64::from(blksize)).map(|range| (range, stale))
    }

    /// The target has written an answer.
    pub(crate) fn on_rs_write_ack(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        let Some((range, stale)) = self.take_resync_ack(v, sector, blksize, "P_RS_WRITE_ACK") else { return };
        // The target has all of it and does not ask for the blocks around a stale one again.
        let (mut from, end) = (range.start.0, range.end().0);
        while from < end {
            let (fresh_to, on) = match stale.run_from(Sector(from).bm_bit().0) {
                Some(run) => (run.start * BM_BLOCK_SECTORS, run.end * BM_BLOCK_SECTORS),
                None => (end, end),
            };
            let fresh_to = fresh_to.clamp(from, end);
            if fresh_to > from {
                self.clear_bits(v, SectorRange { start: Sector(from), count: Sectors(fresh_to - from) });
            }
            from = on.max(fresh_to);
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
        let (text, failed) = (done_text(resync.progress(), now), resync.failed());
        // Up to version 95 nobody says so: each node counts for itself.
        let pdsk =
            resync.peer_finished.unwrap_or(if failed == 0 { DiskState::UpToDate } else { DiskState::Inconsistent });
        // The target has moved its identifiers when it calls its data good: only equal ones see the next divergence.
        if pdsk == DiskState::UpToDate
            && let Some(disk) = vol.disk.as_mut()
        {
            let ids = disk.ids().finish_as_source();
            disk.set_ids(ids);
            if let Some(uuids) = vol.peer.uuids.as_mut() {
                uuids.ids = ids;
            }
        }
        vol.target_maybe_done = false;
        vol.target_missed_write = false;
        vol.resync = None;
        self.log(Level::Info, Some(v), text);
        if failed > 0 {
            self.log(Level::Warn, Some(v), format!("{failed} failed blocks"));
        }
        self.force(v, &StateChange::NONE.conn(ConnState::Connected).pdsk(pdsk));
        self.md_bitmap(v, true, None);
        self.unfence_peer(v);
    }

    /// The target says that it is done; its disk is what it became. With a bad disk it can only be done after it asked
    /// for something, or after failures: otherwise its state is one from before the resync.
    pub(crate) fn note_peer_finished(&mut self, v: VolumeNr, disk: DiskState) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let bits = vol.out_of_sync_bits();
        if let Some(resync) = vol.resync.as_mut().filter(|r| r.source)
            && (disk == DiskState::UpToDate || bits == 0 || resync.asked || !resync.failed.is_empty())
        {
            resync.peer_finished = Some(disk);
        }
    }

    /// A write failed on one of the nodes, or an application's read here. A source does not wait for its blocks: the
    /// target asks for what it misses, and does not know of what only this node marked.
    pub(crate) fn source_failed(&mut self, v: VolumeNr, range: SectorRange) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.resync.as_ref().is_some_and(|r| r.source) {
            self.resync_failed(v, range);
        } else if matches!(vol.state.conn, ConnState::WfBitMapS | ConnState::Ahead) {
            vol.failed_early.insert(range.bits_touched());
            if vol.failed_early.runs() > FAILED_EARLY_MAX {
                self.log(
                    Level::Error,
                    Some(v),
                    "too many blocks failed before the resync began; dropping the connection",
                );
                self.drop_link(ConnState::NetworkFailure);
            }
        }
    }

    /// Bits were cleared: progress, lazy write-out, and the end of a source that only waited for them.
    pub(crate) fn on_bits_cleared(&mut self, v: VolumeNr) {
        let now = self.now;
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
        self.check_source_done(v);
    }

    /// A source ends when only failed blocks are left and the target has ended. A target that ended with a bad disk asks
    /// for nothing more, whatever this node has marked besides. Up to version 95 each side finishes by its own count.
    pub(crate) fn check_source_done(&mut self, v: VolumeNr) {
        let own_count = self.conn.version < 96 || self.faulty(Fault::SourceDoneEarly);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let left = vol.out_of_sync_bits();
        let Some(resync) = vol.resync.as_mut().filter(|r| r.source && !r.finishing) else { return };
        let given_up = resync.asked && resync.peer_finished == Some(DiskState::Inconsistent);
        if given_up || (left <= resync.failed() && (resync.peer_finished.is_some() || own_count)) {
            resync.finishing = true;
            self.ping_then(AfterPing::SourceFinish(v));
        }
    }

    /// Changed bitmap pages are written out.
    pub(crate) fn on_lazy_bitmap(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.lazy_timer = false;
            if vol.disk.as_ref().is_some_and(|d| d.bitmap.changed_pages() > 0)
                && vol.state.disk >= DiskState::Inconsistent
            {
                self.md_bitmap(v, false, None);
            }
        }
    }

    /// The resync of a volume is over or aborted: forgets requests and their ranges. Bits stay.
    pub(crate) fn forget_resync(&mut self, v: VolumeNr) {
        let careless = self.faulty(Fault::OldRefusalsCount);
        // Nor must a ping of its end be taken for one of the next resync's.
        let asks = self.conn.ping_waiters.iter().any(|(_, then)| *then == AfterPing::TargetAsk(v));
        self.conn.ping_waiters.retain(|(_, then)| {
            !matches!(then, AfterPing::TargetFinish(w) | AfterPing::SourceFinish(w) | AfterPing::TargetAsk(w) if *w == v)
        });
        let asks = asks && !careless;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.refusals_due |= asks;
        vol.early_sync_uuid = None;
        vol.target_maybe_done = vol.target_may_be_done();
        let Some(resync) = vol.resync.take() else { return };
        vol.refusals_due |= !careless && resync.in_flight.values().any(|request| !request.answered);
        for (_, request) in resync.in_flight {
            vol.resync_ranges.remove(request.range, RANGE_KEY | request.range.start.0);
        }
        self.out.push(Action::CancelTimer(Timer::Resync(v)));
        // Only a target that has given up does not wait for the rest; what the own disk no longer gives is refused.
        if resync.source && vol.state.disk > DiskState::Failed && !self.faulty(Fault::OldResyncReadsSent) {
            self.drop_resync_reads(v);
        } else if !resync.source {
            self.drop_resync_writes(v);
        }
        self.renew_if_missed(v);
        self.retry_blocked(v);
    }
}

pub(crate) fn done_text(progress: &Progress, now: Timestamp) -> String {
    let total = progress.elapsed(now).as_secs();
    let paused = progress.paused(now).as_secs();
    let active = total.saturating_sub(paused).max(1);
    format!("Resync done (total {total} sec; paused {paused} sec; {} K/sec)", progress.total() * 4 / active)
}
