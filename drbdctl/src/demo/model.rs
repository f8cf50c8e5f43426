//! What every block of the demo's device must hold: a version a block, and contents that follow from both.
//!
//! Invariant: a write that was acknowledged is the only answer; one that was not may have happened or not.

use udrbd::units::{Sector, Sectors};

/// Bytes of a block, as a bitmap bit covers.
pub const BLOCK_BYTES: usize = 4096;

/// Versions of all blocks.
#[derive(Debug)]
pub struct Model {
    versions: Vec<u32>,
    /// Versions that a block may have instead.
    maybe: Vec<Option<u32>>,
    last: u32,
}

/// Deterministic numbers (SplitMix64), so that a run can be understood afterwards.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// A sequence of its own for every seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Contents of a block in a version.
pub fn contents(block: usize, version: u32) -> Vec<u8> {
    let mut dice = Dice::new(((block as u64) << 32) | u64::from(version));
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    while bytes.len() < BLOCK_BYTES {
        bytes.extend_from_slice(&dice.roll().to_le_bytes());
    }
    bytes
}

/// A write that is not acknowledged yet.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Which block.
    pub block: usize,
    /// Its new version.
    pub version: u32,
}

impl Write {
    /// Position on the device in bytes.
    pub const fn offset(self) -> u64 {
        (self.block * BLOCK_BYTES) as u64
    }

    /// What is written.
    pub fn contents(self) -> Vec<u8> {
        contents(self.block, self.version)
    }
}

impl Model {
    /// A device of this size whose blocks all have version 0.
    pub fn new(size: Sectors) -> Self {
        let blocks = usize::try_from(Sector(size.0).bytes()).unwrap_or(0) / BLOCK_BYTES;
        Self { versions: vec![0; blocks], maybe: vec![None; blocks], last: 0 }
    }

    /// Number of whole blocks.
    pub fn blocks(&self) -> usize {
        self.versions.len()
    }

    /// A block is about to be written.
    pub fn begin(&mut self, block: usize) -> Write {
        self.last += 1;
        if let Some(maybe) = self.maybe.get_mut(block) {
            *maybe = Some(self.last);
        }
        Write { block, version: self.last }
    }

    /// The write is acknowledged.
    pub fn acknowledged(&mut self, write: Write) {
        if let (Some(version), Some(maybe)) = (self.versions.get_mut(write.block), self.maybe.get_mut(write.block)) {
            *version = write.version;
            *maybe = None;
        }
    }

    /// Compares what was read from a block; what it turned out to be is what it has to stay.
    pub fn check(&mut self, block: usize, bytes: &[u8]) -> Result<(), String> {
        let Some(&version) = self.versions.get(block) else { return Err(format!("there is no block {block}")) };
        if bytes == contents(block, version) {
            self.maybe[block] = None;
            return Ok(());
        }
        match self.maybe[block].take() {
            Some(maybe) if bytes == contents(block, maybe) => {
                self.versions[block] = maybe;
                Ok(())
            }
            _ => Err(format!("block {block} does not hold version {version}, which was acknowledged")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_write_is_the_only_answer() {
        let mut model = Model::new(Sectors(16));
        assert_eq!(model.blocks(), 2);
        let first = model.begin(1);
        assert!(model.check(1, &contents(1, 0)).is_ok(), "not acknowledged: may be missing");
        let second = model.begin(1);
        model.acknowledged(second);
        assert!(model.check(1, &first.contents()).is_err());
        assert!(model.check(1, &second.contents()).is_ok());
        assert!(model.check(0, &contents(1, 0)).is_err(), "another block's contents");
    }

    #[test]
    fn what_was_seen_once_stays() {
        let mut model = Model::new(Sectors(8));
        let write = model.begin(0);
        assert!(model.check(0, &write.contents()).is_ok());
        assert!(model.check(0, &contents(0, 0)).is_err());
    }
}
