//! A slab whose keys carry a generation, so that a stale key (from a disk, a peer or a timer) finds nothing instead of a
//! stranger. Owns its values; key = generation in the high half, index in the low half. The top bit of a key is always 0.

/// Slab with generation keys. `K` is any `u64` newtype chosen by the caller through plain `u64`.
#[derive(Debug)]
pub struct GenSlab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    next: u32,
    len: usize,
}

impl<T> GenSlab<T> {
    /// An empty slab whose generations start at `seed`.
    #[must_use]
    pub const fn new(seed: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), next: seed & 0x7fff_ffff, len: 0 }
    }

    /// Stores a value and returns its key.
    pub fn insert(&mut self, value: T) -> u64 {
        // 31 bits: the top bit of a key is free for its owner, and no key is all ones (the identifier of resync packets).
        self.next = if self.next >= 0x7fff_fffe { 1 } else { self.next + 1 };
        let generation = self.next;
        let index = if let Some(index) = self.free.pop() {
            self.slots[index as usize] = (generation, Some(value));
            index
        } else {
            let index =
                u32::try_from(self.slots.len()).expect("fewer than 2^32 entries are ever live: limits bound them");
            self.slots.push((generation, Some(value)));
            index
        };
        self.len += 1;
        (u64::from(generation) << 32) | u64::from(index)
    }

    const fn split(key: u64) -> (u32, usize) {
        ((key >> 32) as u32, (key & 0xffff_ffff) as usize)
    }

    /// The value behind `key`, if it is still there.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&T> {
        let (generation, index) = Self::split(key);
        self.slots.get(index).filter(|s| s.0 == generation).and_then(|s| s.1.as_ref())
    }

    /// The value behind `key`, to change.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let (generation, index) = Self::split(key);
        self.slots.get_mut(index).filter(|s| s.0 == generation).and_then(|s| s.1.as_mut())
    }

    /// Takes the value out.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let (generation, index) = Self::split(key);
        let slot = self.slots.get_mut(index).filter(|s| s.0 == generation)?;
        let value = slot.1.take()?;
        self.free.push(u32::try_from(index).ok()?);
        self.len -= 1;
        Some(value)
    }

    /// Number of values.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All values, to change, in index order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|(_, value)| value.as_mut())
    }

    /// All values with their keys, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(i, (generation, v))| v.as_ref().map(|v| ((u64::from(*generation) << 32) | i as u64, v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = GenSlab::new(7);
        let a = slab.insert("a");
        assert_eq!(slab.remove(a), Some("a"));
        let b = slab.insert("b");
        assert_ne!(a, b);
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&"b"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn the_top_bit_stays_free() {
        let mut slab = GenSlab::new(0x7fff_fffc);
        for _ in 0..6 {
            assert_eq!(slab.insert(()) >> 63, 0);
        }
    }
}
