use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::units::AlExtent;

impl Bitmap {
    /// Every invariant of the module text.
    fn assert_invariants(&self) {
        assert_eq!(self.words.len(), self.page_counts.len() * PAGE_WORDS);
        assert_eq!(self.count, popcount(&self.words));
        for (page, &count) in self.page_counts.iter().enumerate() {
            let words = &self.words[page * PAGE_WORDS..(page + 1) * PAGE_WORDS];
            assert_eq!(u64::from(count), popcount(words), "count of page {page}");
        }
        for word in 0..nr(self.words.len()) {
            let beyond = self.words[at(word)] & !mask(word, &(0..self.bits));
            assert_eq!(beyond, 0, "bits beyond the device end in word {word}");
        }
        let changed = self.page_flags.iter().filter(|&&flags| flags & CHANGED != 0).count();
        assert_eq!(usize::try_from(self.changed_pages).expect("64 bit"), changed);
    }
}

fn bitmap(bits: u64) -> Bitmap {
    Bitmap::new(bits).expect("small")
}

fn naive_runs(set: &BTreeSet<u64>, range: &Range<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &bit in set.range(range.start..range.end.max(range.start)) {
        match runs.last_mut() {
            Some(run) if run.end == bit => run.end = bit + 1,
            _ => runs.push(bit..bit + 1),
        }
    }
    runs
}

#[derive(Clone, Debug)]
enum Op {
    Set(Range<u64>),
    Clear(Range<u64>),
    SetSlice(Range<u64>, u64),
    ClearSlice(Range<u64>, u64),
    Or(u64, Vec<u64>),
    Resize(u64, bool),
    Reload(u32),
}

/// Three pages and a bit, so that page borders, whole pages and a partial last page all occur.
const SPACE: u64 = 3 * PAGE_BITS + 200;

fn range() -> impl Strategy<Value = Range<u64>> {
    let near_border = (0_u64..4, 0_u64..130).prop_map(|(page, off)| (page * PAGE_BITS + off).saturating_sub(65));
    let point = prop_oneof![near_border, 0..SPACE + 100];
    (point.clone(), prop_oneof![point, (0_u64..200).boxed()]).prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => range().prop_map(Op::Set),
        3 => range().prop_map(Op::Clear),
        1 => (range(), 0_u64..700).prop_map(|(range, words)| Op::SetSlice(range, words)),
        1 => (range(), 0_u64..700).prop_map(|(range, words)| Op::ClearSlice(range, words)),
        1 => (0..SPACE / 64 + 4, prop::collection::vec(any::<u64>(), 0..6)).prop_map(|(at, words)| Op::Or(at, words)),
        1 => (0..SPACE, any::<bool>()).prop_map(|(bits, set)| Op::Resize(bits, set)),
        1 => (0_u32..5).prop_map(Op::Reload),
    ]
}

fn apply(map: &mut Bitmap, naive: &mut BTreeSet<u64>, op: Op) {
    let before = naive.len();
    let bits = map.bits();
    let clip = |range: Range<u64>| range.start..range.end.min(bits).max(range.start);
    let in_slices = |map: &mut Bitmap, range: Range<u64>, words: u64, set: bool| {
        let mut rest = Some(range);
        let mut changed = 0;
        while let Some(todo) = rest {
            let slice = if set { map.set_slice(todo, words) } else { map.clear_slice(todo, words) };
            changed += slice.bits;
            rest = slice.rest;
        }
        changed
    };
    let changed = match op {
        Op::Set(range) => {
            naive.extend(clip(range.clone()));
            map.set_range(range)
        }
        Op::Clear(range) => {
            naive.retain(|bit| !range.contains(bit));
            map.clear_range(range)
        }
        Op::SetSlice(range, words) => {
            naive.extend(clip(range.clone()));
            in_slices(map, range, words, true)
        }
        Op::ClearSlice(range, words) => {
            naive.retain(|bit| !range.contains(bit));
            in_slices(map, range, words, false)
        }
        Op::Or(first, words) => {
            for (word, value) in (first..).zip(&words) {
                naive.extend(
                    (0..64).filter(|bit| value >> bit & 1 == 1).map(|bit| word * 64 + bit).filter(|&b| b < bits),
                );
            }
            map.or_words(first, &words)
        }
        Op::Resize(to, set) => {
            naive.retain(|&bit| bit < to);
            if set {
                naive.extend(bits..to);
            }
            map.resize(to, set).expect("small");
            return;
        }
        Op::Reload(page) => {
            if let Some(bytes) = map.page_bytes(PageNr(page)) {
                assert!(map.load_page(PageNr(page), &bytes).is_some());
            }
            0
        }
    };
    assert_eq!(usize::try_from(changed).expect("64 bit"), before.abs_diff(naive.len()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_behaves_as_a_set_of_bits(
        bits in 1..SPACE,
        ops in prop::collection::vec(op(), 1..12),
        probes in prop::collection::vec(range(), 4),
    ) {
        let mut map = bitmap(bits);
        let mut naive = BTreeSet::new();
        for op in ops {
            apply(&mut map, &mut naive, op);
            map.assert_invariants();
            prop_assert_eq!(usize::try_from(map.count()).expect("64 bit"), naive.len());
        }
        prop_assert!(naive.iter().copied().eq(map.as_bits().iter_ones().map(nr)));
        for probe in probes {
            let inside = nr(naive.range(probe.clone()).count());
            prop_assert_eq!(map.count_range(probe.clone()), inside);
            prop_assert_eq!(map.count_slice(probe.clone(), u64::MAX).bits, inside);
            prop_assert_eq!(map.any(probe.clone()), inside > 0);
            prop_assert_eq!(map.runs(probe.clone()).collect::<Vec<_>>(), naive_runs(&naive, &probe));
            let from = probe.start;
            prop_assert_eq!(map.find_first_set_from(BmBit(from)), naive.range(from..).next().copied().map(BmBit));
            let clear = (from..map.bits()).find(|bit| !naive.contains(bit));
            prop_assert_eq!(map.find_first_clear_from(BmBit(from)), clear.map(BmBit));
            prop_assert_eq!(map.test(BmBit(from)), naive.contains(&from));
            let run = (from < map.bits()).then(|| {
                let value = naive.contains(&from);
                let end = (from..map.bits()).find(|bit| naive.contains(bit) != value).unwrap_or_else(|| map.bits());
                (value, BmBit(end))
            });
            prop_assert_eq!(map.run_at(BmBit(from)), run);
        }
    }

    /// A disk that takes page writes, some of which fail or are still under way when power is cut, plus the pages that
    /// the bitmap admits as unwritten, always know every set bit.
    #[test]
    fn no_set_bit_is_lost_by_the_write_out(
        ops in prop::collection::vec((0_u8..5, range(), any::<bool>()), 1..40),
    ) {
        let mut map = bitmap(SPACE);
        let mut disk = bitmap(SPACE);
        let mut under_way: Vec<(PageNr, Box<[u8; PAGE_BYTES]>)> = Vec::new();
        for (what, range, flag) in ops {
            match what {
                0 | 1 => { map.set_range(range); }
                2 => { map.clear_range(range); }
                3 => {
                    let filter = if flag { PageFilter::Changed } else { PageFilter::WithSetBits };
                    for page in map.dirty_pages(PageNr(0), filter, 2) {
                        let (change, bytes) = map.start_page_write(page).expect("not being written");
                        prop_assert!(change.set || (flag && change.cleared));
                        under_way.push((page, bytes));
                    }
                }
                _ => {
                    if let Some((page, bytes)) = under_way.pop() {
                        if flag {
                            disk.load_page(page, &bytes);
                        }
                        map.page_written(page, flag);
                    }
                }
            }
            map.assert_invariants();
            for page in (0..map.page_count()).map(PageNr).filter(|&page| !map.page_unwritten(page)) {
                let words = at(u64::from(page.0)) * PAGE_WORDS..at(u64::from(page.0) + 1) * PAGE_WORDS;
                let lost = map.words[words.clone()].iter().zip(&disk.words[words]).any(|(ours, theirs)| ours & !theirs != 0);
                prop_assert!(!lost, "a bit of {:?} is nowhere", page);
            }
        }
    }
}

#[test]
fn bytes_on_disk_are_a_little_endian_bit_string() {
    let mut map = bitmap(16384);
    for (byte, value) in (1_u64..=8).enumerate() {
        for bit in (0..8).filter(|bit| value >> bit & 1 == 1) {
            map.set_range(nr(byte) * 8 + bit..nr(byte) * 8 + bit + 1);
        }
    }
    assert_eq!(map.words()[0], 0x0807_0605_0403_0201);
    assert_eq!(map.count(), 13);
    let bytes = map.page_bytes(PageNr(0)).expect("exists");
    assert_eq!(bytes[..9], [1, 2, 3, 4, 5, 6, 7, 8, 0]);
    assert!(map.page_bytes(PageNr(1)).is_none());
}

#[test]
fn the_last_word_of_a_whole_number_of_words_is_kept_and_garbage_behind_is_not() {
    let mut page = [0_u8; PAGE_BYTES];
    page[0] = 3;
    page[2040] = 1;
    page[2047] = 0x80;
    page[2048..].fill(0xff);
    let mut map = bitmap(16384);
    assert_eq!(map.load_page(PageNr(0), &page), Some(4));
    map.assert_invariants();
    assert!(map.test(BmBit(16383)) && !map.test(BmBit(16384)));
    let mut map = bitmap(16374);
    assert_eq!(map.load_page(PageNr(0), &[0xff; PAGE_BYTES]), Some(16374));
    map.assert_invariants();
    assert_eq!(map.changed_pages(), 0, "what was just read needs no writing");
}

#[test]
fn words_of_the_peer_are_merged_up_to_the_device_end() {
    let mut map = bitmap(130);
    map.set_range(0..1);
    assert_eq!(map.or_words(1, &[1, u64::MAX, u64::MAX]), 3);
    map.assert_invariants();
    assert_eq!(map.runs(0..u64::MAX).collect::<Vec<_>>(), [0..1, 64..65, 128..130]);
    assert_eq!(map.or_words(u64::MAX, &[1]), 0);
    assert_eq!(map.or_words(0, &[1]), 0);
}

#[test]
fn setting_and_clearing_mark_the_page_differently_and_only_when_bits_change() {
    let mut map = bitmap(2 * PAGE_BITS);
    map.clear_range(0..100);
    assert_eq!(map.changed_pages(), 0);
    map.set_range(5..6);
    map.set_range(5..6);
    assert_eq!(map.page_change(PageNr(0)), PageChange { set: true, cleared: false });
    let (_, bytes) = map.start_page_write(PageNr(0)).expect("free");
    assert_eq!(bytes[0], 0x20);
    assert!(map.start_page_write(PageNr(0)).is_none(), "one write of a page at a time");
    map.clear_range(5..6);
    assert_eq!(map.page_change(PageNr(0)), PageChange { set: false, cleared: true });
    assert!(map.page_unwritten(PageNr(0)), "the set bit is not on disk before its write is done");
    assert!(map.dirty_pages(PageNr(0), PageFilter::Changed, 9).is_empty());
    map.page_written(PageNr(0), true);
    assert!(!map.page_unwritten(PageNr(0)));
    assert!(map.dirty_pages(PageNr(0), PageFilter::WithSetBits, 9).is_empty());
    assert_eq!(map.dirty_pages(PageNr(0), PageFilter::Changed, 9), [PageNr(0)]);
}

#[test]
fn evicted_extents_name_each_unwritten_page_once() {
    let mut map = bitmap(3 * PAGE_BITS);
    map.set_range(PAGE_BITS - 1..PAGE_BITS + 1);
    let evicted = [AlExtent(31), AlExtent(32), AlExtent(30), AlExtent(64), AlExtent(96), AlExtent(u32::MAX)];
    assert_eq!(map.unwritten_pages(&evicted), [PageNr(0), PageNr(1)]);
    assert_eq!(map.page_of_al_extent(AlExtent(95)), Some(PageNr(2)));
    assert_eq!(map.page_of_al_extent(AlExtent(96)), None);
}

#[test]
fn a_resync_extent_counts_its_own_bits_only() {
    let mut map = bitmap(3 * RESYNC_EXTENT_BITS - 10);
    map.set_all();
    assert_eq!(map.count_resync_extent(0), 4096);
    assert_eq!(map.count_resync_extent(2), 4086);
    assert_eq!(map.count_resync_extent(3), 0);
    assert_eq!(map.count_resync_extent(u32::MAX), 0);
}

#[test]
fn sizes_beyond_the_limit_are_refused() {
    assert_eq!(Bitmap::new(BITS_MAX + 1).err(), Some(BitmapError::TooLarge(BITS_MAX + 1)));
    let mut map = bitmap(100);
    map.set_all();
    assert_eq!(map.resize(BITS_MAX + 1, true), Err(BitmapError::TooLarge(BITS_MAX + 1)));
    assert_eq!((map.bits(), map.count()), (100, 100));
    let mut none = bitmap(0);
    assert_eq!((none.set_all(), none.page_count(), none.find_first_set_from(BmBit(0))), (0, 0, None));
}
