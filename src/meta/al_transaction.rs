//! Blocks of the activity log: a transaction says which slots of the active set changed, and repeats a part of the set.
//!
//! Takes in and gives out 4096 big-endian bytes. Invariants: decoding checks magic, checksum and type; the checksum is
//! CRC-32C with initial value 0 and no final inversion. Spec: metadata.md 4.2.

use super::layout::BLOCK_BYTES;
use super::superblock::Block;
use crate::units::{AlExtent, AlSlot};

/// Magic of a transaction block.
pub const AL_MAGIC: u32 = 0x69cb_65a2;
/// Most changed slots that one transaction can say.
pub const UPDATES_MAX: usize = 64;
/// Slots of the active set that one transaction repeats.
pub const CONTEXT_LEN: usize = 919;
/// Extent number of a free slot.
pub const FREE: u32 = 0xffff_ffff;

const SLOTS_AT: usize = 36;
const EXTENTS_AT: usize = SLOTS_AT + 2 * UPDATES_MAX;
const CONTEXT_AT: usize = EXTENTS_AT + 4 * UPDATES_MAX;
const _: () = assert!(CONTEXT_AT + 4 * CONTEXT_LEN == BLOCK_BYTES);

const TYPE_UPDATE: u16 = 0;
const TYPE_INITIALIZED: u16 = 0xffff;
const NO_SLOT: u16 = 0xffff;

/// A valid block of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlBlock {
    /// Written by create-md and apply-al; says nothing.
    Initialized,
    /// Written by an attached node.
    Update(AlTransaction),
}

/// A transaction: the active set changes in `updates`; before that, slots from `context_start` on held `context`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlTransaction {
    /// Transaction number, one more than that of the transaction before, wrapping around.
    pub tr_number: u32,
    /// Slots that change and the extents they hold afterwards; at most [`UPDATES_MAX`], further ones are not encoded.
    /// Extent [`FREE`] frees the slot (nobody writes that).
    pub updates: Vec<(AlSlot, AlExtent)>,
    /// Number of slots of the active set ("al-extents").
    pub context_size: u16,
    /// Slot of `context[0]`.
    pub context_start: AlSlot,
    /// What the slots from `context_start` on held before this transaction; at most [`CONTEXT_LEN`], further ones are not
    /// encoded. Slots that it does not name but a block could are encoded as free.
    pub context: Vec<Option<AlExtent>>,
}

/// Why a block of the ring is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlBlockError {
    /// Not an activity-log block of DRBD 8.4.
    #[error("activity log block: magic {found:#010x} instead of 0x69cb65a2")]
    Magic {
        /// The word found.
        found: u32,
    },
    /// Torn or damaged.
    #[error("activity log block: checksum {found:#010x} instead of {expected:#010x}")]
    Checksum {
        /// Checksum in the block.
        found: u32,
        /// Checksum of its bytes.
        expected: u32,
    },
    /// Neither an update nor an initialised block.
    #[error("activity log block: unknown transaction type {found:#06x}")]
    Type {
        /// The type found.
        found: u16,
    },
}

/// The checksum of a block, whatever its checksum field holds.
#[must_use]
pub fn checksum(block: &Block) -> u32 {
    // The library inverts on the way in and on the way out; DRBD does neither.
    let (head, tail) = block.split_at(8);
    let crc = crc32c::crc32c_append(u32::MAX, head);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    !crc32c::crc32c_append(crc, tail.get(4..).unwrap_or_default())
}

fn be16(block: &Block, at: usize) -> u16 {
    block.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn be32(block: &Block, at: usize) -> u32 {
    block.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    if let Some(room) = block.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

fn seal(block: &mut Block) {
    let crc = checksum(block);
    put(block, 8, &crc.to_be_bytes());
}

fn extent(number: u32) -> Option<AlExtent> {
    (number != FREE).then_some(AlExtent(number))
}

fn number(extent: Option<AlExtent>) -> u32 {
    extent.map_or(FREE, |e| e.0)
}

/// An initialised block; create-md and apply-al fill the ring with it.
#[must_use]
pub fn initialized_block() -> Block {
    let mut block = [0; BLOCK_BYTES];
    put(&mut block, 0, &AL_MAGIC.to_be_bytes());
    put(&mut block, 12, &TYPE_INITIALIZED.to_be_bytes());
    seal(&mut block);
    block
}

impl AlBlock {
    /// Reads a block of the ring.
    ///
    /// # Errors
    /// [`AlBlockError`] when the block carries no information; whoever scans the ring counts and skips it.
    pub fn decode(block: &Block) -> Result<Self, AlBlockError> {
        let magic = be32(block, 0);
        if magic != AL_MAGIC {
            return Err(AlBlockError::Magic { found: magic });
        }
        let (found, expected) = (be32(block, 8), checksum(block));
        if found != expected {
            return Err(AlBlockError::Checksum { found, expected });
        }
        match be16(block, 12) {
            TYPE_INITIALIZED => Ok(Self::Initialized),
            TYPE_UPDATE => Ok(Self::Update(AlTransaction::decode_fields(block))),
            found => Err(AlBlockError::Type { found }),
        }
    }
}

impl AlTransaction {
    /// The context window that starts at `start` in an active set of `size` slots: its length.
    #[must_use]
    pub fn window_len(start: AlSlot, size: u16) -> usize {
        usize::from(size.saturating_sub(start.0)).min(CONTEXT_LEN)
    }

    /// Start of the window that the next transaction repeats, in an active set of `size` slots.
    #[must_use]
    pub fn next_window(start: AlSlot, size: u16) -> AlSlot {
        let next = usize::from(start.0) + CONTEXT_LEN;
        AlSlot(u16::try_from(next).ok().filter(|&slot| slot < size).unwrap_or(0))
    }

    fn decode_fields(block: &Block) -> Self {
        let update_count = usize::from(be16(block, 14));
        let context_size = be16(block, 16);
        let context_start = AlSlot(be16(block, 18));
        let updates = (0..UPDATES_MAX)
            .map(|i| (i, be16(block, SLOTS_AT + 2 * i), be32(block, EXTENTS_AT + 4 * i)))
            // Entries behind the count are padding, unless they name a slot: then a replay takes them too.
            .filter(|&(i, slot, _)| i < update_count || slot != NO_SLOT)
            .map(|(_, slot, number)| (AlSlot(slot), AlExtent(number)))
            .collect();
        let mut context: Vec<_> = (0..CONTEXT_LEN).map(|i| extent(be32(block, CONTEXT_AT + 4 * i))).collect();
        // Free entries behind the end of the set are padding, occupied ones are not.
        let used = context.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        context.truncate(used.max(Self::window_len(context_start, context_size)));
        Self { tr_number: be32(block, 4), updates, context_size, context_start, context }
    }

    /// The block to write.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_BYTES];
        let update_count = u16::try_from(self.updates.len().min(UPDATES_MAX)).unwrap_or(0);
        put(&mut block, 0, &AL_MAGIC.to_be_bytes());
        put(&mut block, 4, &self.tr_number.to_be_bytes());
        put(&mut block, 12, &TYPE_UPDATE.to_be_bytes());
        put(&mut block, 14, &update_count.to_be_bytes());
        put(&mut block, 16, &self.context_size.to_be_bytes());
        put(&mut block, 18, &self.context_start.0.to_be_bytes());
        if let Some(arrays) = block.get_mut(SLOTS_AT..) {
            arrays.fill(0xff);
        }
        for (i, (slot, extent)) in self.updates.iter().take(UPDATES_MAX).enumerate() {
            put(&mut block, SLOTS_AT + 2 * i, &slot.0.to_be_bytes());
            put(&mut block, EXTENTS_AT + 4 * i, &extent.0.to_be_bytes());
        }
        for (i, extent) in self.context.iter().take(CONTEXT_LEN).enumerate() {
            put(&mut block, CONTEXT_AT + 4 * i, &number(*extent).to_be_bytes());
        }
        seal(&mut block);
        block
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn empty(tr_number: u32) -> AlTransaction {
        AlTransaction { tr_number, context_size: 67, context: vec![None; 67], ..AlTransaction::default() }
    }

    fn stored_checksum(block: &Block) -> u32 {
        be32(block, 8)
    }

    /// metadata.md 17: written by the tool and by the kernel.
    #[test]
    fn checksums_are_drbds() {
        assert_eq!(stored_checksum(&initialized_block()), 0x709c_c651);
        assert_eq!(stored_checksum(&empty(0).encode()), 0x3ef8_578b);
        assert_eq!(stored_checksum(&empty(1).encode()), 0x9b28_9ff1);
        assert_eq!(stored_checksum(&empty(2).encode()), 0x70b5_b18e);
    }

    #[test]
    fn damage_is_found() {
        let good = empty(5).encode();
        for at in [4, 8, 12, 100, 4095] {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert!(matches!(AlBlock::decode(&bad), Err(AlBlockError::Checksum { .. })), "byte {at}");
        }
        assert_eq!(AlBlock::decode(&[0; BLOCK_BYTES]), Err(AlBlockError::Magic { found: 0 }));
        let mut odd = good;
        odd[13] = 7;
        seal(&mut odd);
        assert_eq!(AlBlock::decode(&odd), Err(AlBlockError::Type { found: 7 }));
        assert_eq!(AlBlock::decode(&initialized_block()), Ok(AlBlock::Initialized));
    }

    #[test]
    fn windows_cycle_through_the_set() {
        let starts = |size, n| {
            std::iter::successors(Some(AlSlot(0)), move |&s| Some(AlTransaction::next_window(s, size)))
                .take(n)
                .map(|s| s.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(starts(67, 3), [0, 0, 0]);
        assert_eq!(starts(919, 3), [0, 0, 0]);
        assert_eq!(starts(1237, 4), [0, 919, 0, 919]);
        assert_eq!(AlTransaction::window_len(AlSlot(919), 1237), 318);
        assert_eq!(AlTransaction::window_len(AlSlot(919), 200), 0);
        assert_eq!(AlTransaction::next_window(AlSlot(u16::MAX), u16::MAX), AlSlot(0));
    }

    prop_compose! {
        fn transaction()(
            tr_number in any::<u32>(),
            updates in prop::collection::vec((0_u16..65534, any::<u32>()), 0..=UPDATES_MAX),
            context_size in 0_u16..65534,
            start in any::<u16>(),
            fill in prop::collection::vec(any::<u32>(), CONTEXT_LEN),
        ) -> AlTransaction {
            let context_start = AlSlot(if context_size == 0 { 0 } else { start % context_size });
            let len = AlTransaction::window_len(context_start, context_size);
            AlTransaction {
                tr_number,
                updates: updates.into_iter().map(|(s, e)| (AlSlot(s), AlExtent(e))).collect(),
                context_size,
                context_start,
                context: fill.into_iter().take(len).map(|e| if e % 3 == 0 { None } else { extent(e) }).collect(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_encoded_decodes(transaction in transaction()) {
            prop_assert_eq!(AlBlock::decode(&transaction.encode()), Ok(AlBlock::Update(transaction)));
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            let mut block = Block::try_from(bytes).expect("4096 bytes");
            prop_assert!(AlBlock::decode(&block).is_err());
            put(&mut block, 0, &AL_MAGIC.to_be_bytes());
            put(&mut block, 12, &TYPE_UPDATE.to_be_bytes());
            seal(&mut block);
            prop_assert!(AlBlock::decode(&block).is_ok());
        }
    }
}
