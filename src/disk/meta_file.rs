//! A file or block device as the [`MetaIo`] of the offline metadata commands.
//!
//! Owns the open file. Plain buffered I/O: direct I/O of an earlier user of the device is coherent with it, and
//! [`MetaIo::flush`] makes writes durable. Whether somebody else uses the device is asked with `exclusive` (block
//! devices only: claimed until dropped) or is the caller's business (regular files).

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::meta::MetaIo;

/// What a command may do with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look only.
    Read,
    /// Change it.
    Write,
}

/// An open device.
#[derive(Debug)]
pub struct MetaFile {
    file: File,
    size_bytes: u64,
}

impl MetaFile {
    /// Opens the block device or regular file `path`, never creates it.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::ResourceBusy`] when `exclusive` and somebody else has claimed the block
    /// device; [`io::ErrorKind::InvalidInput`] when it is neither a block device nor a regular file.
    pub fn open(path: &Path, access: Access, exclusive: bool) -> io::Result<Self> {
        let kind = path.metadata()?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a regular file"));
        }
        // For a regular file the flag would mean "create", which is not asked for.
        let flags = if exclusive && kind.is_block_device() { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new().read(true).write(access == Access::Write).custom_flags(flags).open(path)?;
        Self::from_file(file)
    }

    /// Takes over an open file.
    ///
    /// # Errors
    /// When its size cannot be found.
    pub fn from_file(mut file: File) -> io::Result<Self> {
        // The length in a block device's metadata is 0.
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size_bytes })
    }
}

impl MetaIo for MetaFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let end = u64::try_from(buf.len()).ok().and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > self.size_bytes) {
            // A regular file would grow.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.write_all_at(buf, offset)?;
        #[cfg(any(test, feature = "sim"))]
        super::fault::written_outside(&self.file, Some((offset, buf)));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        #[cfg(any(test, feature = "sim"))]
        super::fault::written_outside(&self.file, None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_device_of_fixed_size() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        File::create(&path).and_then(|file| file.set_len(8192)).expect("file");
        let mut io = MetaFile::open(&path, Access::Write, true).expect("regular file");
        assert_eq!(io.size_bytes(), 8192);
        io.write_at(4096, &[7; 4096]).expect("inside");
        assert!(io.write_at(4097, &[7; 4096]).is_err());
        io.flush().expect("flush");
        let mut buf = [0; 4096];
        MetaFile::open(&path, Access::Read, false).expect("again").read_at(4096, &mut buf).expect("inside");
        assert_eq!(buf, [7; 4096]);
        assert_eq!(path.metadata().expect("still there").len(), 8192);
        let mut reader = MetaFile::open(&path, Access::Read, false).expect("again");
        assert!(reader.write_at(0, &buf).is_err());
        assert!(reader.read_at(4097, &mut buf).is_err());
        assert!(MetaFile::open(dir.path(), Access::Read, false).is_err());
        assert!(MetaFile::open(&dir.path().join("none"), Access::Read, false).is_err());
    }
}
