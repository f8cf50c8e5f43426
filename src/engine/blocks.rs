//! A set of blocks as ranges of bitmap bits.
//!
//! Owns disjoint, non-empty ranges that do not touch each other; a run of blocks costs one entry, however long it is.

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks, by bit number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    /// First bit to the bit behind the last one.
    runs: BTreeMap<u64, u64>,
    count: u64,
}

impl BlockSet {
    /// Number of blocks.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of runs, which is what it costs.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Adds blocks.
    pub fn insert(&mut self, bits: Range<u64>) {
        if bits.is_empty() {
            return;
        }
        let (mut start, mut end) = (bits.start, bits.end);
        // Everything that overlaps or touches becomes a part of the new run.
        while let Some((&first, &behind)) = self.runs.range(..=end).next_back().filter(|(_, behind)| **behind >= start)
        {
            self.runs.remove(&first);
            self.count -= behind - first;
            start = start.min(first);
            end = end.max(behind);
        }
        self.runs.insert(start, end);
        self.count += end - start;
    }

    /// Takes blocks out.
    pub fn remove(&mut self, bits: Range<u64>) {
        while let Some((&first, &behind)) =
            self.runs.range(..bits.end).next_back().filter(|(_, behind)| **behind > bits.start && !bits.is_empty())
        {
            self.runs.remove(&first);
            self.count -= behind - first;
            for rest in [first..bits.start, bits.end..behind] {
                if !rest.is_empty() {
                    self.count += rest.end - rest.start;
                    self.runs.insert(rest.start, rest.end);
                }
            }
        }
    }

    /// Whether any of these blocks is in the set.
    #[must_use]
    pub fn touches(&self, bits: &Range<u64>) -> bool {
        self.run_from(bits.start).is_some_and(|run| run.start < bits.end)
    }

    /// The run that holds `bit` or is the next one behind it.
    #[must_use]
    pub fn run_from(&self, bit: u64) -> Option<Range<u64>> {
        let around = self.runs.range(..=bit).next_back().filter(|(_, behind)| **behind > bit);
        around.or_else(|| self.runs.range(bit..).next()).map(|(&first, &behind)| first..behind)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..40), from in 0u64..80) {
            let mut set = BlockSet::default();
            let mut plain = BTreeSet::new();
            for (add, start, len) in steps {
                let bits = start..start + len;
                if add {
                    set.insert(bits.clone());
                    plain.extend(bits);
                } else {
                    set.remove(bits.clone());
                    plain.retain(|bit| !bits.contains(bit));
                }
                prop_assert_eq!(set.count(), plain.len() as u64);
                prop_assert_eq!(set.is_empty(), plain.is_empty());
                let all: Vec<u64> = set.runs.iter().flat_map(|(first, behind)| *first..*behind).collect();
                prop_assert_eq!(&all, &plain.iter().copied().collect::<Vec<_>>());
                let touching = set.runs.iter().zip(set.runs.iter().skip(1)).any(|((_, behind), (first, _))| behind >= first);
                prop_assert!(!touching);
            }
            let next = plain.range(from..).next().copied();
            prop_assert_eq!(set.touches(&(from..from + 5)), next.is_some_and(|bit| bit < from + 5));
            let run = set.run_from(from);
            prop_assert_eq!(run.as_ref().map(|run| run.start.max(from)), next);
            prop_assert!(run.is_none_or(|run| !plain.contains(&run.end) && run.clone().all(|bit| plain.contains(&bit))));
        }
    }
}
