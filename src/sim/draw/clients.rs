//! What the clients ask for: bursts of overlapping requests on a few hot places, so that they meet each other and the faults.

use super::{Draft, MIB, MS, SECOND};
use crate::sim::plan::{ClientOp, Happening, Params};

/// Sectors of an activity-log extent.
const EXTENT: u64 = 8192;

/// What the clients of a run are like.
struct Habits {
    reads: u64,
    flushes: u64,
    /// Percent of bursts that a flush follows.
    syncs: u64,
    discards: u64,
    zeroes: u64,
    fua: u64,
    /// Whole blocks only.
    aligned: bool,
    /// Sectors around a place.
    width: u64,
    places: Vec<(usize, u64)>,
}

impl Draft {
    pub(super) fn clients(&mut self, params: &Params, end: u64) {
        let total = self.rng.within(650, 1100);
        let large = is_large(params);
        let rng = &mut self.rng;
        // Large enough to fill the activity log at once.
        let burst_max = if large { rng.pick(&[16, 40, 300]) } else { rng.pick(&[4, 16, 40, 120]) };
        let mut habits = Habits {
            reads: rng.within(10, 40),
            // Where extents are forgotten, what was written there is still in a cache.
            flushes: if large { rng.pick(&[0, 0, 1, 5]) } else { rng.pick(&[0, 1, 5, 15]) },
            syncs: if large { 0 } else { rng.pick(&[0, 30, 100]) },
            discards: rng.pick(&[0, 0, 4]),
            zeroes: rng.pick(&[0, 0, 4]),
            fua: rng.pick(&[0, 0, 10]),
            aligned: rng.coin(),
            width: rng.pick(&[8, 64, 256, 1024]),
            places: Vec::new(),
        };
        habits.places = self.places(params);
        let mut made = 0;
        while made < total {
            let burst = self.rng.within(1, burst_max);
            let begin = if !self.storms.is_empty() && self.rng.percent(40) {
                self.rng.pick(&self.storms) + self.rng.below(2 * SECOND)
            } else {
                SECOND + self.rng.below(end - SECOND)
            };
            let spread = self.rng.pick(&[MS / 10, 5 * MS, 200 * MS, 2 * SECOND]);
            for _ in 0..burst {
                made += 1;
                let at = begin + self.rng.below(spread);
                let what = self.request(params, &habits);
                self.add(at, what);
            }
            if self.rng.percent(habits.syncs) {
                made += 1;
                let (volume, _) = self.rng.pick(&habits.places);
                let at = begin + spread + self.rng.around(MS);
                let node = usize::from(self.rng.coin());
                self.add(at, Happening::Client { op: ClientOp::Flush, volume, start: 0, count: 0, node });
            }
        }
    }

    fn request(&mut self, params: &Params, habits: &Habits) -> Happening {
        let (volume, place) = self.rng.pick(&habits.places);
        let mut count: u64 = self.rng.pick(&[1, 8, 8, 8, 16, 3, 32]);
        if self.rng.below(300) == 0 {
            count = self.rng.pick(&[256, 1024, 2048]);
        }
        let mut start = place + self.rng.below(habits.width);
        if habits.aligned {
            start = start / 8 * 8;
            count = count.div_ceil(8) * 8;
        }
        let mut kind = self.rng.below(100);
        let mut is = |share: u64| {
            let hit = kind < share;
            kind = kind.wrapping_sub(share);
            hit
        };
        let op = if is(habits.reads) {
            ClientOp::Read
        } else if is(habits.flushes) {
            ClientOp::Flush
        } else if is(habits.discards) {
            ClientOp::Discard
        } else if is(habits.zeroes) {
            ClientOp::Zeroes { fua: self.rng.percent(20), unmap: self.rng.coin() }
        } else {
            ClientOp::Write { fua: self.rng.percent(habits.fua) }
        };
        if matches!(op, ClientOp::Discard | ClientOp::Zeroes { .. }) && self.rng.percent(20) {
            count *= 40;
        }
        let limit = sectors(params, volume);
        start = start.min(limit - 1);
        count = count.min(limit - start);
        Happening::Client { op, volume, start, count, node: usize::from(self.rng.coin()) }
    }

    /// Where requests go. On a large device to more extents than the activity log has slots, else to a few hot ones.
    fn places(&mut self, params: &Params) -> Vec<(usize, u64)> {
        if is_large(params) {
            let limit = sectors(params, 0);
            let mut places: Vec<_> =
                (0..limit / EXTENT).map(|extent| (0, extent * EXTENT + self.rng.below(7000))).collect();
            places.extend((0..5).map(|_| self.place(params)));
            return places;
        }
        let places = self.rng.within(2, 14);
        (0..places).map(|_| self.place(params)).collect()
    }

    fn place(&mut self, params: &Params) -> (usize, u64) {
        let volume = if self.rng.percent(75) { 0 } else { params.volumes.len() - 1 };
        // Near the borders of activity-log extents, at both ends of the device, or anywhere.
        let sectors = sectors(params, volume);
        let extents = sectors / EXTENT;
        let place = match self.rng.below(6) {
            0 => 0,
            1 => sectors.saturating_sub(512),
            2 => (self.rng.below(extents) + 1) * EXTENT - 32,
            _ => self.rng.below(extents) * EXTENT + self.rng.below(7000),
        };
        (volume, place.min(sectors - 1))
    }
}

/// Whether the first volume has more extents than the activity log has slots.
fn is_large(params: &Params) -> bool {
    params.volumes[0][0] > 100 * MIB
}

/// Sectors of a volume that clients use.
fn sectors(params: &Params, volume: usize) -> u64 {
    let [a, b] = params.volumes[volume];
    // Internal metadata take less than 1 MiB of devices of this size.
    (a.min(b) - MIB) / 512
}
