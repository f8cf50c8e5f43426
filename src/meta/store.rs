//! The device under the operations of this room: a trait, and a sparse device in memory for tests and simulation.
//!
//! Invariant of every caller here: positions and lengths are multiples of 4096 and lie inside the device, whatever its
//! size, so that an implementation may use direct I/O.

use std::collections::BTreeMap;
use std::io;

use super::layout::BLOCK_BYTES;
use super::superblock::Block;

/// A device of fixed size that can be read, written and flushed.
pub trait MetaIo {
    /// Size, in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// Those of the device; reading beyond its end is one.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at byte `offset`.
    ///
    /// # Errors
    /// Those of the device; writing beyond its end is one.
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes everything written durable.
    ///
    /// # Errors
    /// Those of the device; what was written is then of unknown durability.
    fn flush(&mut self) -> io::Result<()>;
}

impl<T: MetaIo + ?Sized> MetaIo for &mut T {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        (**self).flush()
    }
}

/// Reads one block.
pub(super) fn read_block(io: &mut dyn MetaIo, offset: u64) -> io::Result<Block> {
    let mut block = [0; BLOCK_BYTES];
    io.read_at(offset, &mut block)?;
    Ok(block)
}

/// A device in memory that keeps only blocks that were written; any size, unwritten bytes are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemIo {
    size_bytes: u64,
    blocks: BTreeMap<u64, Box<Block>>,
}

impl MemIo {
    /// An empty device.
    #[must_use]
    pub const fn new(size_bytes: u64) -> Self {
        Self { size_bytes, blocks: BTreeMap::new() }
    }

    /// Changes the size; what lies behind a new end is forgotten.
    pub fn resize(&mut self, size_bytes: u64) {
        let len = BLOCK_BYTES as u64;
        self.size_bytes = size_bytes;
        self.blocks.retain(|block, _| block * len < size_bytes);
        let (last, inside) = (size_bytes / len, usize::try_from(size_bytes % len).unwrap_or(0));
        if let Some(tail) = self.blocks.get_mut(&last).and_then(|block| block.get_mut(inside..)) {
            tail.fill(0);
        }
    }

    /// The blocks that were written: number and bytes. Their number is the position divided by 4096.
    pub fn written(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(&number, block)| (number, &**block))
    }

    /// Calls `f` with block number, range inside the block and range inside the request for every block of a request.
    fn walk(
        &self,
        offset: u64,
        len: usize,
        mut f: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>),
    ) -> io::Result<()> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let block_len = BLOCK_BYTES as u64;
        let (mut number, mut inside) = (offset / block_len, usize::try_from(offset % block_len).unwrap_or(0));
        let mut done = 0;
        while done < len {
            let chunk = (BLOCK_BYTES - inside).min(len - done);
            f(number, inside..inside + chunk, done..done + chunk);
            done += chunk;
            (number, inside) = (number + 1, 0);
        }
        Ok(())
    }
}

impl MetaIo for MemIo {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.walk(offset, buf.len(), |number, inside, part| {
            let Some(to) = buf.get_mut(part) else { return };
            match self.blocks.get(&number).and_then(|block| block.get(inside)) {
                Some(from) => to.copy_from_slice(from),
                None => to.fill(0),
            }
        })
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut blocks = std::mem::take(&mut self.blocks);
        let result = self.walk(offset, buf.len(), |number, inside, part| {
            let block = blocks.entry(number).or_insert_with(|| Box::new([0; BLOCK_BYTES]));
            if let (Some(to), Some(from)) = (block.get_mut(inside), buf.get(part)) {
                to.copy_from_slice(from);
            }
        });
        self.blocks = blocks;
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_behaves_like_a_device() {
        let mut io = MemIo::new(10_000);
        io.write_at(4000, &[7; 200]).expect("inside");
        let mut buf = [1; 300];
        io.read_at(3950, &mut buf).expect("inside");
        assert_eq!((buf[49], buf[50], buf[249], buf[250]), (0, 7, 7, 0));
        assert!(io.write_at(9_990, &[0; 11]).is_err());
        assert!(io.read_at(u64::MAX, &mut buf).is_err());
        io.resize(4100);
        io.resize(10_000);
        io.read_at(3950, &mut buf).expect("inside");
        assert_eq!((buf[149], buf[150]), (7, 0));
        assert_eq!(io.written().count(), 2);
    }
}
