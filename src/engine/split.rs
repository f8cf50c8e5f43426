//! Parts of a client request that are too large for the peer are split: when they start, and once more when a link with a
//! smaller limit came up while they waited for their turn or for the activity log.
//!
//! Invariants: the pieces cover what the part covered; a piece of a part that was under way holds the range and the
//! activity-log extents that it needs before the part lets go of them.

use crate::engine::Engine;
use crate::engine::al::ExtentSpan;
use crate::limits::SECTOR_SIZE;
use crate::units::{Sector, SectorRange, Sectors};

impl Engine {
    /// Shortens a part to `max` sectors. Gives the part with the rest, if there is one.
    pub(crate) fn cut_part(&mut self, key: u64, max: u64) -> Option<u64> {
        let request = self.requests.get_mut(key).filter(|request| request.range.count.0 > max)?;
        let (start, count) = (request.range.start.0, request.range.count.0);
        let rest = SectorRange { start: Sector(start + max), count: Sectors(count - max) };
        request.range.count = Sectors(max);
        let bytes = usize::try_from(max * SECTOR_SIZE).unwrap_or(usize::MAX);
        let data = request.data.as_mut().map(|data| data.split_off(bytes.min(data.len())));
        let (master, v, kind) = (request.master, request.volume, request.kind);
        let rest = self.new_part(master, v, kind, rest, data);
        if let Some(master) = self.masters.get_mut(master) {
            master.parts += 1;
        }
        Some(rest)
    }

    /// Shortens a part that is about to be submitted to what the link takes. Gives the part with the rest, which is to
    /// be submitted next.
    pub(crate) fn cut_for_link(&mut self, key: u64) -> Option<u64> {
        self.conn.link?;
        let (v, kind, whole) = self.requests.get(key).map(|r| (r.volume, r.kind, r.range))?;
        let rest = self.cut_part(key, self.part_bytes_max(kind) / SECTOR_SIZE)?;
        let mut freed = false;
        for piece in [key, rest] {
            let now = self.now;
            let Some(request) = self.requests.get_mut(piece) else { continue };
            (request.started, request.registered) = (now, true);
            let range = request.range;
            let Some(vol) = self.volumes.get_mut(&v) else { continue };
            if piece == key {
                vol.active.remove(whole, key);
            }
            vol.active.insert(range, piece);
        }
        let held = self.requests.get(key).and_then(|request| request.al);
        if let (Some(held), Some(disk)) = (held, self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut())) {
            for piece in [key, rest] {
                let Some(request) = self.requests.get_mut(piece) else { continue };
                request.al = ExtentSpan::of(request.range);
                if let Some(span) = request.al {
                    disk.al.share(span);
                }
            }
            freed = disk.al.end(held);
        }
        if freed {
            self.pump_al(v);
        }
        Some(rest)
    }
}
