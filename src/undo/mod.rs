//! The undo file: what the victim of a split brain held before the resync that resolved it overwrote it.
//!
//! One file a volume. It holds the old contents of every block that the resync (or a write of the peer's applications while
//! it ran) has changed; with the blocks of the disk that are not in it they are the whole device as it was when the resync
//! began ([`file::UndoFile::blocks`]). This room knows the format ([`format`]) and what can be done with a file over a
//! small trait ([`UndoIo`]), so that the daemon, the admin tool and the simulator take the same path; `disk` is the driver
//! for files.
//!
//! **Format.** Little endian, in units of 4096 bytes. Block 0 is the head: what it belongs to, with a checksum, written and
//! synced before anything else and never changed. Behind it records, each with a head of one block (a number that counts
//! from 1, a list of runs of blocks, checksums of head and payload) and the contents of its runs. The first record of a
//! block counts, later ones say nothing. A record that is torn, or does not continue the numbers, ends the file: it was
//! not synced, so nothing that it should have saved was overwritten. Records without payload say that the resync has ended,
//! that the file is incomplete from there on, or which blocks could not be read.
//!
//! **What a restart makes of it.** A file is made under the name of a new one and takes its place when the resync begins, that
//! is when the superblock with the resync's identifier is durable. A new one whose own generation is still that of the disk
//! belongs to a resync that never began ([`file::belongs`]).

#[cfg(feature = "drivers")]
pub mod disk;
pub mod file;
pub mod format;
pub mod restore;

use std::io;

/// A file that can grow.
pub trait UndoIo {
    /// Length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&mut self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn is_empty(&mut self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// Those of the file system; reading beyond the end is one.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at byte `offset`, beyond the end too.
    ///
    /// # Errors
    /// Those of the file system; no room is one.
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes everything written durable.
    ///
    /// # Errors
    /// Those of the file system; what was written is then of unknown durability.
    fn sync(&mut self) -> io::Result<()>;
}

impl<T: UndoIo + ?Sized> UndoIo for &mut T {
    fn len(&mut self) -> io::Result<u64> {
        (**self).len()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, buf)
    }

    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }
}

/// A file in memory, for tests.
#[derive(Clone, Debug, Default)]
pub struct MemFile(pub Vec<u8>);

impl UndoIo for MemFile {
    fn len(&mut self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.0.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[at..end].copy_from_slice(buf);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
