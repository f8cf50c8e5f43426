//! Random numbers of the simulator: one seed, many independent streams.
//!
//! Every part of the world has a stream of its own (disks, network, clients, operator), so that taking one event out of a
//! plan does not change the dice of all the others; shrinking depends on that.

use crate::engine::rng;

/// A stream: the engine's generator, with what a simulator asks of it.
#[derive(Clone, Debug)]
pub struct Rng(rng::Rng);

impl Rng {
    /// The stream of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(rng::Rng::new(seed))
    }

    /// A stream of its own for `part` of the world.
    #[must_use]
    pub const fn stream(seed: u64, part: u64) -> Self {
        let mut rng = Self::new(seed ^ part.wrapping_mul(0xa076_1d64_78bd_642f));
        rng.next_u64();
        rng
    }

    /// The next number.
    pub const fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`; 0 when `end` is 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next_u64() % end }
    }

    /// A number of `range`, both ends included.
    pub const fn within(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True in `percent` of 100 cases.
    pub const fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Either.
    pub const fn coin(&mut self) -> bool {
        self.next_u64() & 1 == 1
    }

    /// One of a list that is not empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap_or(0)]
    }

    /// A number around `typical`: mostly within a factor of four, rarely up to 64 times larger.
    pub const fn around(&mut self, typical: u64) -> u64 {
        let base = typical / 4 + self.below(typical.saturating_mul(2) + 1);
        if self.below(50) == 0 { base.saturating_mul(1 + self.below(32)) } else { base }
    }
}
