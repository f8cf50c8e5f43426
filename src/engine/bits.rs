//! Out-of-sync bits as the engine sets and clears them, with everything that a change of bits touches.

use smallvec::SmallVec;

use crate::engine::Engine;
use crate::engine::fault::Fault;
use crate::engine::request::PART_BYTES_MAX;
use crate::limits::SECTOR_SIZE;
use crate::units::{Sector, SectorRange, Sectors, VolumeNr};
use crate::wire::state::{DiskState, Role};

/// Most blocks that one `P_OUT_OF_SYNC` names: its size in bytes has 32 bits.
const TOLD_BLOCKS_MAX: u64 = 1 << 18;

impl Engine {
    /// Marks every block of a range out of sync; how many were in sync. Whatever resync of the range is under way
    /// carries older data: its end must not clear these bits.
    pub(crate) fn set_bits(&mut self, v: VolumeNr, range: SectorRange) -> u64 {
        let never_back = self.faulty(Fault::CursorNeverBack);
        let Some(vol) = self.volumes.get_mut(&v) else { return 0 };
        let bits = range.bits_touched();
        let newly = vol.disk.as_mut().map_or(0, |disk| disk.bitmap.set_range(bits.clone()));
        if let Some(resync) = vol.resync.as_mut().filter(|_| !never_back) {
            resync.note_set(bits.start);
        }
        if !vol.resync_unacked.is_empty() {
            let from = range.start.0.saturating_sub(PART_BYTES_MAX / SECTOR_SIZE);
            for ((sector, bytes), unacked) in vol.resync_unacked.range_mut((from, 0)..(range.end().0, 0)) {
                let sent = SectorRange { start: Sector(*sector), count: Sectors::from_bytes_floor(u64::from(*bytes)) };
                if sent.overlaps(range) {
                    unacked.stale.insert(bits.clone());
                }
            }
        }
        if !vol.peer_active.is_empty() {
            let writes: SmallVec<[u64; 4]> = vol.peer_active.overlapping(range).collect();
            self.peer_writes_stale(&writes);
        }
        newly
    }

    /// Marks a write that the peer missed although it was sent. If the target of a resync that broke off may hold this
    /// generation, it must not hold this write's as well; while the resync runs, its end tells.
    pub(crate) fn mark_missed(&mut self, v: VolumeNr, range: SectorRange) {
        if range.is_empty() {
            return;
        }
        if let Some(vol) = self.volumes.get_mut(&v)
            && vol.state.role == Role::Primary
            && vol.state.disk == DiskState::UpToDate
            && vol.target_may_be_done()
        {
            vol.target_missed_write = true;
            self.renew_if_missed(v);
        }
        self.set_bits(v, range);
    }

    /// Begins the generation that is due since the target of a resync, now over, missed a write.
    pub(crate) fn renew_if_missed(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v)
            && vol.resync.is_none()
            && std::mem::take(&mut vol.target_missed_write)
        {
            vol.target_maybe_done = true;
            self.new_current_uuid(v);
        }
    }

    /// Marks the whole blocks of a range in sync.
    pub(crate) fn clear_bits(&mut self, v: VolumeNr, range: SectorRange) -> u64 {
        let generous = self.faulty(Fault::PartialBlockCleared);
        let Some(vol) = self.volumes.get_mut(&v) else { return 0 };
        let bits = if generous { range.bits_touched() } else { range.bits_covered(vol.size) };
        let cleared = vol.disk.as_mut().map_or(0, |d| d.bitmap.clear_range(bits.clone()));
        if let Some(resync) = vol.resync.as_mut() {
            resync.failed.remove(bits);
        }
        if cleared > 0 {
            self.on_bits_cleared(v);
        }
        cleared
    }

    /// Tells the peer of all blocks that are marked here, for a resync without an exchange of bitmaps: what only the source
    /// has marked would never be asked for.
    pub(crate) fn tell_marked(&mut self, v: VolumeNr) {
        if self.conn.version < 95 {
            return;
        }
        let Some(vol) = self.volumes.get(&v) else { return };
        let (Some(disk), size) = (vol.disk.as_ref(), vol.size.0) else { return };
        let mut ranges = Vec::new();
        for run in disk.bitmap.runs(0..disk.bitmap.bits()) {
            let mut first = run.start;
            while first < run.end {
                let end = run.end.min(first + TOLD_BLOCKS_MAX);
                let (start, end_sector) = (first * 8, (end * 8).min(size));
                ranges.push(SectorRange { start: Sector(start), count: Sectors(end_sector.saturating_sub(start)) });
                first = end;
            }
        }
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            self.send_out_of_sync(v, range);
        }
    }
}
