//! What the activity log says after a crash: which ring blocks to replay, and which extents were hot.
//!
//! Takes in the ring's blocks, twice: once to find the oldest and the newest transaction, then those between them.
//! Gives out the set of hot extents and what `apply-al` has to do. A ring may be gigabytes, so it is never held as a
//! whole. Spec: metadata.md 5.

use std::collections::BTreeSet;

use super::al_transaction::{AlBlock, AlTransaction};
use super::bitmap::{self, AL_EXTENT_BITS, PAGE_AL_EXTENTS};
use super::layout::{AL_EXTENTS_MAX, AlStripes};
use super::superblock::{Block, MdFlags, Superblock};
use crate::units::{AlExtent, AlSlot};

/// Result of looking at every block of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// No block is valid: there is no activity log.
    Missing,
    /// Nothing was ever written since initialisation; at most the very first transaction is torn.
    Initialized {
        /// Whether the block at position 0 is not valid.
        first_torn: bool,
    },
    /// Some blocks are initialised, others not valid, none is an update.
    Damaged {
        /// Blocks that were not valid.
        corrupt: u32,
    },
    /// There are transactions.
    Updates(ReplayRange),
}

/// The ring positions to replay, oldest first, wrapping around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayRange {
    blocks: u32,
    first: u32,
    count: u32,
    /// Blocks of the whole ring that were not valid.
    pub corrupt: u32,
    /// Number of the newest transaction; a node that goes on without a fresh ring continues with the next.
    pub newest_tr: u32,
}

impl ReplayRange {
    /// The ring positions ("k" in the spec), each below the number of blocks.
    pub fn positions(self) -> impl Iterator<Item = u32> {
        let blocks = u64::from(self.blocks).max(1);
        (0..self.count).map(move |i| {
            let position = (u64::from(self.first) + u64::from(i)) % blocks;
            u32::try_from(position).unwrap_or(0)
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    position: u32,
    tr_number: u32,
}

/// First pass over the ring.
#[derive(Clone, Copy, Debug)]
pub struct RingScan {
    blocks: u32,
    position: u32,
    initialized: u32,
    corrupt: u32,
    first_torn: bool,
    oldest: Option<Seen>,
    newest: Option<Seen>,
}

/// Signed distance between transaction numbers, which wrap around.
const fn is_newer(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

impl RingScan {
    /// A scan of ring `al`.
    #[must_use]
    pub const fn new(al: AlStripes) -> Self {
        Self {
            blocks: al.blocks(),
            position: 0,
            initialized: 0,
            corrupt: 0,
            first_torn: false,
            oldest: None,
            newest: None,
        }
    }

    /// Looks at the block of the next ring position, from 0 (find it with [`super::Layout::al_block_byte`]).
    pub fn push(&mut self, block: &Block) {
        let position = self.position;
        self.position += 1;
        match AlBlock::decode(block) {
            Ok(AlBlock::Initialized) => self.initialized += 1,
            Ok(AlBlock::Update(AlTransaction { tr_number, .. })) => {
                let seen = Seen { position, tr_number };
                if self.newest.is_none_or(|newest| is_newer(tr_number, newest.tr_number)) {
                    self.newest = Some(seen);
                }
                if self.oldest.is_none_or(|oldest| is_newer(oldest.tr_number, tr_number)) {
                    self.oldest = Some(seen);
                }
            }
            Err(_) => {
                self.corrupt += 1;
                self.first_torn |= position == 0;
            }
        }
    }

    /// What was found, after all blocks were pushed.
    #[must_use]
    pub fn finish(self) -> RingState {
        if let (Some(oldest), Some(newest)) = (self.oldest, self.newest) {
            let blocks = u64::from(self.blocks);
            let distance = (u64::from(newest.position) + blocks - u64::from(oldest.position)) % blocks;
            return RingState::Updates(ReplayRange {
                blocks: self.blocks,
                first: oldest.position,
                count: u32::try_from(distance).unwrap_or(u32::MAX - 1) + 1,
                corrupt: self.corrupt,
                newest_tr: newest.tr_number,
            });
        }
        match (self.initialized, self.corrupt) {
            (0, _) => RingState::Missing,
            (_, 0) => RingState::Initialized { first_torn: false },
            (_, 1) if self.first_torn => RingState::Initialized { first_torn: true },
            (_, corrupt) => RingState::Damaged { corrupt },
        }
    }
}

/// A slot number that no active set can have, found in a transaction; it is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot number out of range: tr:{tr_number} slot:{slot}")]
pub struct SlotOutOfRange {
    /// The transaction.
    pub tr_number: u32,
    /// The slot.
    pub slot: u32,
}

/// The active set, rebuilt by replaying transactions.
#[derive(Clone, Debug)]
pub struct ActiveSet {
    slots: Vec<Option<AlExtent>>,
}

impl Default for ActiveSet {
    fn default() -> Self {
        Self { slots: vec![None; usize::from(AL_EXTENTS_MAX)] }
    }
}

impl ActiveSet {
    /// Replays one transaction: its context, then its updates. Gives back the slot numbers that were skipped.
    pub fn replay(&mut self, transaction: &AlTransaction) -> Vec<SlotOutOfRange> {
        let mut skipped = Vec::new();
        let size = u32::from(transaction.context_size);
        let start = u32::from(transaction.context_start.0);
        let context = (start..).zip(&transaction.context).filter(|&(slot, extent)| extent.is_some() || slot < size);
        let updates = transaction.updates.iter();
        let entries = context.map(|(slot, &extent)| (slot, extent)).chain(updates.map(|&(AlSlot(slot), extent)| {
            (u32::from(slot), (extent.0 != super::al_transaction::FREE).then_some(extent))
        }));
        for (slot, extent) in entries {
            match usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot)) {
                Some(place) => *place = extent,
                None => skipped.push(SlotOutOfRange { tr_number: transaction.tr_number, slot }),
            }
        }
        skipped
    }

    /// The hot extents.
    #[must_use]
    pub fn extents(&self) -> BTreeSet<AlExtent> {
        self.slots.iter().flatten().copied().collect()
    }
}

/// What `apply-al` has to do, decided from superblock and ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyPlan {
    /// Transactions to replay into the bitmap, if any.
    pub replay: Option<ReplayRange>,
    /// Whether the whole ring is to be rewritten with initialised blocks.
    pub reset_ring: bool,
    /// Whether the superblock is to be written as clean. All its other flags stay as they are.
    pub write_superblock: bool,
    /// Why the ring could not be used though it should have been, if so; it was not needed.
    pub ignored: Option<NoUsableLog>,
}

/// The activity log is needed but cannot be read: only a full sync is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUsableLog {
    /// Not one block is valid.
    #[error("No usable activity log found. Do you need to create-md?")]
    Missing,
    /// There are damaged blocks and no transaction.
    #[error("No valid AL update transaction found.")]
    Damaged,
}

/// Decides what `apply-al` does. Only the primary indicator makes a replay necessary; whether the superblock is
/// clean plays no part in that.
///
/// # Errors
/// [`NoUsableLog`] when the node was Primary and the ring says nothing.
pub fn plan(superblock: &Superblock, ring: RingState) -> Result<ApplyPlan, NoUsableLog> {
    let was_primary = superblock.flags.contains(MdFlags::PRIMARY_IND);
    let write_superblock = !superblock.is_clean();
    let unusable = |reason| {
        if was_primary {
            return Err(reason);
        }
        Ok(ApplyPlan { replay: None, reset_ring: true, write_superblock: true, ignored: Some(reason) })
    };
    match ring {
        RingState::Missing => unusable(NoUsableLog::Missing),
        RingState::Damaged { .. } => unusable(NoUsableLog::Damaged),
        RingState::Initialized { first_torn } => {
            Ok(ApplyPlan { replay: None, reset_ring: first_torn, write_superblock, ignored: None })
        }
        RingState::Updates(range) => Ok(ApplyPlan {
            replay: was_primary.then_some(range),
            reset_ring: true,
            write_superblock: write_superblock || was_primary,
            ignored: None,
        }),
    }
}

/// Sets the bits of those of `extents` that lie in bitmap page `page`; says how many bits were clear before.
pub fn mark_page(page: u64, bytes: &mut Block, extents: &BTreeSet<AlExtent>) -> u64 {
    let first = page.saturating_mul(PAGE_AL_EXTENTS);
    let bound = |extent: u64| u32::try_from(extent).unwrap_or(u32::MAX);
    let mut changed = 0;
    for &extent in extents.range(AlExtent(bound(first))..AlExtent(bound(first.saturating_add(PAGE_AL_EXTENTS)))) {
        let bits = bitmap::bits_of_extent(AlExtent(extent.0 % bound(PAGE_AL_EXTENTS)));
        let bytes_of = |bit: u64| usize::try_from(bit / 8).unwrap_or(usize::MAX);
        if let Some(run) = bytes.get_mut(bytes_of(bits.start)..bytes_of(bits.end)) {
            changed += AL_EXTENT_BITS - run.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            run.fill(0xff);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::meta::al_transaction::initialized_block;
    use crate::meta::layout::BLOCK_BYTES;
    use crate::meta::{DeviceSizes, Layout, MetaKind};
    use crate::units::Sectors;

    const RUBBISH: Block = [0x5a; BLOCK_BYTES];

    fn update(tr_number: u32, updates: &[(u16, u32)], context: &[Option<u32>]) -> AlTransaction {
        AlTransaction {
            tr_number,
            updates: updates.iter().map(|&(slot, extent)| (AlSlot(slot), AlExtent(extent))).collect(),
            context_size: 67,
            context_start: AlSlot(0),
            context: context.iter().map(|extent| extent.map(AlExtent)).collect(),
        }
    }

    fn scan(blocks: &[Block]) -> RingState {
        let mut scan = RingScan::new(AlStripes::new(1, u32::try_from(blocks.len()).expect("few")).expect("valid"));
        blocks.iter().for_each(|block| scan.push(block));
        scan.finish()
    }

    fn superblock(flags: MdFlags) -> Superblock {
        let sizes = DeviceSizes::one(Sectors(131_072));
        let layout = Layout::new(MetaKind::Internal, AlStripes::DEFAULT, sizes).expect("fits");
        Superblock { flags, ..Superblock::create(&layout, 0) }
    }

    #[test]
    fn rings_without_updates_are_told_apart() {
        let fresh = [initialized_block(); 8];
        assert_eq!(scan(&fresh), RingState::Initialized { first_torn: false });
        let mut ring = fresh;
        ring[0] = RUBBISH;
        assert_eq!(scan(&ring), RingState::Initialized { first_torn: true });
        ring[5] = RUBBISH;
        assert_eq!(scan(&ring), RingState::Damaged { corrupt: 2 });
        let mut ring = fresh;
        ring[1] = RUBBISH;
        assert_eq!(scan(&ring), RingState::Damaged { corrupt: 1 });
        assert_eq!(scan(&[RUBBISH; 8]), RingState::Missing);
    }

    #[test]
    fn the_replay_goes_from_oldest_to_newest_around_the_end_of_ring_and_numbers() {
        let newest = 3_u32;
        let mut ring = [RUBBISH; 8];
        for back in 0..8 {
            let tr = newest.wrapping_sub(back);
            ring[usize::try_from(tr % 8).expect("small")] = update(tr, &[], &[]).encode();
        }
        ring[0] = RUBBISH;
        let RingState::Updates(range) = scan(&ring) else { panic!("no updates") };
        assert_eq!((range.corrupt, range.newest_tr), (1, 3));
        assert_eq!(range.positions().collect::<Vec<_>>(), [4, 5, 6, 7, 0, 1, 2, 3]);
    }

    #[test]
    fn context_comes_before_updates_and_free_entries_overwrite_inside_the_set() {
        let mut set = ActiveSet::default();
        set.replay(&update(0, &[(66, 1), (3, 9)], &[None, Some(4)]));
        assert_eq!(set.extents(), [1, 4, 9].map(AlExtent).into());
        let mut freed = update(1, &[(1, 5)], &[None, Some(4), None, None]);
        freed.context_size = 3;
        set.replay(&freed);
        assert_eq!(set.extents(), [1, 5, 9].map(AlExtent).into());
        let skipped = set.replay(&update(2, &[(65_534, 8)], &[]));
        assert_eq!(skipped, [SlotOutOfRange { tr_number: 2, slot: 65_534 }]);
        assert_eq!(set.extents().len(), 3);
    }

    #[test]
    fn only_the_primary_indicator_asks_for_a_replay() {
        let updates = scan(&[update(0, &[], &[]).encode(); 8]);
        let crashed = superblock(MdFlags::CRASHED_PRIMARY | MdFlags::AL_CLEAN);
        let done = plan(&crashed, updates).expect("a plan");
        assert_eq!((done.replay.is_some(), done.reset_ring, done.write_superblock), (false, true, false));
        let primary = superblock(MdFlags::PRIMARY_IND | MdFlags::AL_CLEAN);
        let done = plan(&primary, updates).expect("a plan");
        assert_eq!((done.replay.is_some(), done.reset_ring, done.write_superblock), (true, true, true));
        assert_eq!(plan(&primary, RingState::Missing), Err(NoUsableLog::Missing));
        assert_eq!(plan(&primary, RingState::Damaged { corrupt: 1 }), Err(NoUsableLog::Damaged));
        let ignored = plan(&crashed, RingState::Missing).expect("not needed");
        assert_eq!((ignored.ignored, ignored.reset_ring), (Some(NoUsableLog::Missing), true));
        let clean = plan(&primary, RingState::Initialized { first_torn: false }).expect("a plan");
        assert_eq!((clean.reset_ring, clean.write_superblock), (false, false));
    }

    #[test]
    fn marking_counts_new_bits_only() {
        let mut page = [0; BLOCK_BYTES];
        page[128] = 1;
        let extents = BTreeSet::from([1, 31, 32, u32::MAX].map(AlExtent));
        assert_eq!(mark_page(0, &mut page, &extents), 2047);
        assert_eq!(mark_page(0, &mut page, &extents), 0);
        assert_eq!((page[127], page[128], page[255], page[256], page[4095]), (0, 0xff, 0xff, 0, 0xff));
        assert_eq!(mark_page(1, &mut page, &extents), 1024);
        assert_eq!(mark_page(u64::MAX, &mut page, &extents), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_ring_panics(
            blocks in prop::collection::vec(prop_oneof![
                Just(None), (any::<u32>(), any::<[u16; 4]>(), any::<[u32; 8]>()).prop_map(Some)
            ], 8..20),
        ) {
            let transactions: Vec<_> = blocks.iter().flatten().map(|(tr, small, wide)| AlTransaction {
                tr_number: *tr,
                updates: vec![(AlSlot(small[0]), AlExtent(wide[0]))],
                context_size: small[1],
                context_start: AlSlot(small[2]),
                context: wide.iter().map(|&e| Some(AlExtent(e))).collect(),
            }).collect();
            let mut ring: Vec<_> = transactions.iter().map(AlTransaction::encode).collect();
            ring.resize(blocks.len(), RUBBISH);
            let state = scan(&ring);
            let mut set = ActiveSet::default();
            for transaction in &transactions {
                set.replay(transaction);
            }
            if let RingState::Updates(range) = state {
                prop_assert!(range.positions().all(|k| (k as usize) < blocks.len()));
                prop_assert!(range.positions().count() <= blocks.len());
            }
            for flags in [MdFlags::NONE, MdFlags::PRIMARY_IND] {
                let _ = plan(&superblock(flags), state);
            }
        }
    }
}
