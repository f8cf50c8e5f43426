//! The target's side of a resync: ask, write, clear, finish.

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::{Action, Level};
use crate::engine::admin::{Job, Wait};
use crate::engine::connection::AfterPing;
use crate::engine::event::Timer;
use crate::engine::fault::Fault;
use crate::engine::md::MdDone;
use crate::engine::peer_request::PeerKind;
use crate::engine::rate::Denied;
use crate::engine::resync::{InFlight, RANGE_KEY, Resync, done_text};
use crate::engine::state::{ChangeMode, StateChange};
use crate::limits::{BM_BLOCK_BYTES, RESYNC_REQUEST_BYTES};
use crate::units::{BlockId, BmBit, GenId, Sector, SectorRange, Sectors, VolumeNr};
use crate::wire::kind::Kind;
use crate::wire::packet::Packet;
use crate::wire::resync::{BlockDesc, BlockReq};
use crate::wire::state::{ConnState, DiskState, Role};

impl Engine {
    /// The source announced the resync. It may come before this node is ready for it.
    pub(crate) fn on_sync_uuid(&mut self, v: VolumeNr, uuid: GenId) {
        let conn = self.state(v).conn;
        match conn {
            ConnState::WfSyncUuid if self.volumes.get(&v).is_some_and(|vol| vol.resync_helper.is_none()) => {
                self.start_target(v, uuid);
            }
            ConnState::WfSyncUuid | ConnState::Behind => {
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.early_sync_uuid = Some(uuid);
                }
                self.before_resync(v, false);
            }
            // The data socket may be faster than the answer to an invalidate.
            _ if matches!(conn, ConnState::StartingSyncT | ConnState::WfBitMapT) || self.asked_for_resync(v) => {
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.early_sync_uuid = Some(uuid);
                }
            }
            _ if self.resync_given_up(v) => {}
            _ => self.unexpected(Kind::SyncUuid, conn),
        }
    }

    /// Whether the peer was asked for a full sync to this node, and has not answered.
    fn asked_for_resync(&self, v: VolumeNr) -> bool {
        self.state(v).conn == ConnState::Connected && self.commands.iter().any(|pending| {
            pending.volume == v
                && pending.wait == Wait::Answer
                && matches!(&pending.job, Job::Change { change, .. } if change.conn == Some(ConnState::StartingSyncT))
        })
    }

    /// Waits for the source's announcement, or starts at once if it came early.
    pub(crate) fn wait_sync_uuid(&mut self, v: VolumeNr) {
        self.force(v, &StateChange::NONE.conn(ConnState::WfSyncUuid));
        self.start_if_announced(v);
    }

    /// Starts if the source has announced it already.
    pub(crate) fn start_if_announced(&mut self, v: VolumeNr) {
        if let Some(uuid) = self.volumes.get_mut(&v).and_then(|vol| vol.early_sync_uuid.take()) {
            self.start_target(v, uuid);
        }
    }

    pub(crate) fn start_target(&mut self, v: VolumeNr, uuid: GenId) {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let primary = vol.state.role == Role::Primary;
        let rate = vol.opts.resync_rate;
        let Some(disk) = vol.disk.as_mut() else { return };
        let ids = disk.ids().start_as_target(uuid, primary);
        disk.set_ids(ids);
        let bits = disk.bitmap.count();
        vol.exposed = ids.current;
        vol.missed_end = false;
        vol.target_maybe_done = false;
        vol.target_missed_write = false;
        self.log(Level::Info, Some(v), format!("updated sync uuid {ids}"));
        self.undo_starting(v);
        let change = StateChange::NONE.conn(ConnState::SyncTarget).disk(DiskState::Inconsistent);
        if let Err(code) = self.change(v, &change, ChangeMode::Soft) {
            self.log(Level::Error, Some(v), format!("cannot start the resync: {}", code.text()));
            return self.drop_link(ConnState::NetworkFailure);
        }
        let ready = self.faulty(Fault::ResyncBeforeDurable);
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.resync = Some(Resync { ready, ..Resync::new(now, false, bits, rate) });
        }
        if ready {
            self.resync_kick.insert(v);
        }
        self.log_begin(v, bits, "SyncTarget");
        // The bits first: the source forgets a block when this node has written it, flushed or not. After a power cut
        // only this bitmap can know of it.
        self.md_bitmap(v, true, Some(MdDone::TargetStarted));
    }

    /// The target's superblock is durable.
    pub(crate) fn on_target_started(&mut self, v: VolumeNr, ok: bool) {
        if ok {
            self.undo_start(v);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if ok && vol.resync.is_some() && std::mem::take(&mut vol.refusals_due) {
            return self.ping_then(AfterPing::TargetAsk(v));
        }
        self.target_asks(v, ok);
    }

    /// Nothing stands before the questions any more, or they will never be asked.
    pub(crate) fn target_asks(&mut self, v: VolumeNr, ok: bool) {
        if let Some(resync) = self.volumes.get_mut(&v).and_then(|vol| vol.resync.as_mut()) {
            resync.ready = ok;
            self.resync_kick.insert(v);
        }
    }

    /// Asks for as much as the pace allows.
    pub(crate) fn pump_resync(&mut self, v: VolumeNr) {
        let bytes_max = u64::from(self.request_bytes_max()).min(RESYNC_REQUEST_BYTES);
        let now = self.now;
        if self.state(v).conn != ConnState::SyncTarget {
            return;
        }
        let (never_back, early) = (self.faulty(Fault::CursorNeverBack), self.faulty(Fault::TargetDoneEarly));
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
                    None if resync.in_flight.is_empty() || early => {
                        resync.cursor = disk.bitmap.bits();
                        resync.finishing = true;
                        return self.ping_then(AfterPing::TargetFinish(v));
                    }
                    None => {}
                }
                return;
            };
            let failed = resync.failed.run_from(first.0).unwrap_or(u64::MAX..u64::MAX);
            if failed.contains(&first.0) {
                resync.cursor = failed.end;
                continue;
            }
            let most = bytes_max / BM_BLOCK_BYTES;
            let run_end = disk.bitmap.find_first_clear_from(first).map_or_else(|| disk.bitmap.bits(), |b| b.0);
            let run_end = run_end.min(failed.start);
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
                if vol.active.overlaps(range) && !vol.resync_ranges.overlaps(block) && !never_back {
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
            if self.faulty(Fault::ClearedWhenAsked) {
                self.clear_bits(v, range);
            }
        }
    }

    /// Marks the open question of a running resync to this node that an answer belongs to as answered.
    fn take_question(&mut self, v: VolumeNr, sector: Sector, bytes: u64) -> Option<SectorRange> {
        let vol = self.volumes.get_mut(&v)?;
        let resync = vol.resync.as_mut().filter(|r| !r.source)?;
        let asked = resync.in_flight.get_mut(&sector.0).filter(|f| !f.answered && f.range.bytes() == bytes)?;
        asked.answered = true;
        vol.counters.pending = vol.counters.pending.saturating_sub(1);
        Some(asked.range)
    }

    /// Finds the request that data belong to; complains if there is none while a resync runs.
    pub(crate) fn take_answer(
        &mut self,
        v: VolumeNr,
        sector: Sector,
        bytes: u64,
        name: &'static str,
    ) -> Option<SectorRange> {
        let runs = self.volumes.get(&v)?.resync.as_ref().is_some_and(|resync| !resync.source);
        let range = self.take_question(v, sector, bytes);
        if runs && range.is_none() {
            self.peer_error(name, format!("{bytes} bytes at sector {sector} were not asked for"));
        }
        range
    }

    /// The request is done with, one way or the other.
    pub(crate) fn drop_request(&mut self, v: VolumeNr, range: SectorRange) {
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
    pub(crate) fn on_rs_data(&mut self, v: VolumeNr, sector: Sector, data: Bytes) {
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

    /// The source could not read the range. The meta socket may bring refusals of a resync that was given up when the next
    /// one runs; they say nothing that matters any more.
    pub(crate) fn on_rs_negative(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        if let Some(range) = self.take_question(v, sector, u64::from(blksize)) {
            self.resync_failed(v, range);
            self.drop_request(v, range);
        }
    }

    /// The source dropped the request, or one of a resync that was given up.
    pub(crate) fn on_rs_cancel(&mut self, v: VolumeNr, sector: Sector, blksize: u32) {
        if let Some(range) = self.take_question(v, sector, u64::from(blksize)) {
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

    /// The resync to here is over: data that are still on their way to the disk do not count for the next one.
    pub(crate) fn drop_resync_writes(&mut self, v: VolumeNr) {
        for request in self.peer_requests.values_mut().filter(|request| request.volume == v) {
            request.dropped |= request.kind == PeerKind::ResyncWrite;
        }
    }

    /// Data of a resync that was given up reached the disk (or did not): that clears nothing. The source is told as long as it
    /// cannot take that for an answer of the next resync.
    pub(crate) fn old_resync_written(&mut self, v: VolumeNr, range: SectorRange, ok: bool) {
        if self.state(v).conn == ConnState::Connected {
            let size = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            let kind = if ok { Packet::RsWriteAck } else { Packet::NegAck };
            self.send_ack(v, range.start, BlockId::SYNCER, size, kind);
        }
        self.retry_blocked(v);
    }

    /// The source has seen every acknowledgement: the target is done.
    pub(crate) fn finish_target(&mut self, v: VolumeNr) {
        let now = self.now;
        let blind = self.faulty(Fault::CursorNeverBack) || self.faulty(Fault::TargetDoneEarly);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if !matches!(vol.state.conn, ConnState::SyncTarget | ConnState::PausedSyncT) {
            return;
        }
        let (Some(resync), Some(disk)) = (vol.resync.as_mut(), vol.disk.as_mut()) else { return };
        let left = disk.bitmap.count();
        if left > resync.failed() && !blind {
            // Bits were set while the ping was under way.
            resync.finishing = false;
            resync.cursor = 0;
            self.resync_kick.insert(v);
            return;
        }
        let text = done_text(resync.progress(), now);
        let failed = resync.failed();
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
        } else if let Some(ids) =
            self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()).map(super::volume::LocalDisk::ids)
        {
            self.log(Level::Info, Some(v), format!("updated UUIDs {ids}"));
        }
        // The source is told only when the superblock says so too.
        self.hold_data();
        let link = self.conn.link;
        self.force(v, &change);
        // The cleared bits first: a crash must not leave a good disk with bits that no handshake would look at.
        self.md_bitmap(v, true, Some(MdDone::TargetDone(link)));
    }
}
