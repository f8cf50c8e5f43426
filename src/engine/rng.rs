//! The engine's only source of randomness: a SplitMix64 sequence from a seed that the driver takes from the operating
//! system (and the simulator from its seed). Used for generation identifiers and slab generations, never for secrets.

use crate::units::GenId;

/// Seeded sequence.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence that is fully determined by `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A fresh generation identifier: never 0 or "just created", with or without the Primary bit.
    pub const fn gen_id(&mut self) -> GenId {
        loop {
            let id = GenId(self.next_u64() & !1);
            if id.0 > GenId::JUST_CREATED.0 {
                return id;
            }
        }
    }
}

/// Spreads the bits of a number (SplitMix64's last step).
#[must_use]
pub(crate) const fn mix(seed: u64) -> u64 {
    let mut z = seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
