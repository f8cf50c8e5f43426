//! A registry of sector ranges in use, for questions of overlap.
//!
//! Owns `(range, key)` pairs; ranges may overlap each other. A query costs a walk over the entries that begin within the
//! longest registered length before the range's end; with the few hundred entries in flight that is a handful.

use std::collections::BTreeMap;

use crate::units::{Sector, SectorRange, Sectors};

/// Registry of ranges with a key each.
#[derive(Debug, Default)]
pub struct RangeMap {
    by_start: BTreeMap<(u64, u64), u64>,
    longest: u64,
}

impl RangeMap {
    /// Registers `range` under `key`.
    pub fn insert(&mut self, range: SectorRange, key: u64) {
        self.longest = self.longest.max(range.count.0);
        self.by_start.insert((range.start.0, key), range.count.0);
    }

    /// Removes what [`insert`](Self::insert) registered; whether it was there.
    pub fn remove(&mut self, range: SectorRange, key: u64) -> bool {
        let found = self.by_start.remove(&(range.start.0, key)).is_some();
        if self.by_start.is_empty() {
            self.longest = 0;
        }
        found
    }

    /// Keys of all entries that overlap `range`.
    pub fn overlapping(&self, range: SectorRange) -> impl Iterator<Item = u64> {
        let from = range.start.0.saturating_sub(self.longest);
        self.by_start.range((from, 0)..(range.end().0.max(from), 0)).filter_map(move |((start, key), count)| {
            SectorRange { start: Sector(*start), count: Sectors(*count) }.overlaps(range).then_some(*key)
        })
    }

    /// Whether any entry overlaps `range`.
    #[must_use]
    pub fn overlaps(&self, range: SectorRange) -> bool {
        !self.by_start.is_empty() && self.overlapping(range).next().is_some()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether nothing is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn r(start: u64, count: u64) -> SectorRange {
        SectorRange { start: Sector(start), count: Sectors(count) }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(entries in proptest::collection::vec((0u64..200, 1u64..40), 0..30), q in (0u64..220, 0u64..40)) {
            let mut map = RangeMap::default();
            for (i, (s, c)) in entries.iter().enumerate() {
                map.insert(r(*s, *c), i as u64);
            }
            let mut want: Vec<u64> = entries.iter().enumerate().filter(|(_, (s, c))| r(*s, *c).overlaps(r(q.0, q.1))).map(|(i, _)| i as u64).collect();
            let mut got: Vec<u64> = map.overlapping(r(q.0, q.1)).collect();
            want.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, want);
            for (i, (s, c)) in entries.iter().enumerate() {
                prop_assert!(map.remove(r(*s, *c), i as u64));
            }
            prop_assert!(map.is_empty());
        }
    }
}
