//! Undo files in a directory: `RESOURCE-VOLUME.undo`, and beside it the one of a resync that has not begun.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::UndoIo;
use super::file::{UndoFile, belongs};
use super::format::Head;
use crate::units::GenId;

/// An open file.
#[derive(Debug)]
pub struct DiskFile(File);

impl UndoIo for DiskFile {
    fn len(&mut self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Where the undo files of one volume lie.
#[derive(Clone, Debug)]
pub struct UndoPaths {
    dir: PathBuf,
    /// The file.
    pub file: PathBuf,
    /// The one of a resync that has not begun.
    pub new: PathBuf,
    /// The one that an undo fills for the way back.
    pub redo: PathBuf,
}

impl UndoPaths {
    /// In this directory.
    #[must_use]
    pub fn new(dir: &Path, resource: &str, volume: u16) -> Self {
        let path = |end: &str| dir.join(format!("{resource}-{volume}.{end}"));
        Self { dir: dir.to_owned(), file: path("undo"), new: path("undo.new"), redo: path("undo.redo") }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Bytes that are free there; what the system does not say counts as enough.
    #[must_use]
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    /// Makes a file under one of the names, in place of what is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(&self, path: &Path, head: Head) -> io::Result<UndoFile<DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let made = UndoFile::create(DiskFile(file), head)?;
        self.sync_dir()?;
        Ok(made)
    }

    /// Opens the file at one of the names; `None`: there is none.
    ///
    /// # Errors
    /// Those of the file system; not an undo file.
    pub fn open(&self, path: &Path, write: bool) -> io::Result<Option<UndoFile<DiskFile>>> {
        match OpenOptions::new().read(true).write(write).open(path) {
            Ok(file) => UndoFile::open(DiskFile(file)).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives one of the files the name of another, durably.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn promote(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        self.sync_dir()
    }

    /// Gives a file that nobody may lose a name of its own, durably; `None`: there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        if !path.try_exists()? {
            return Ok(None);
        }
        let kept = |n: u32| PathBuf::from(format!("{}.kept-{n}", path.display()));
        let mut n = 1;
        while kept(n).try_exists()? {
            n += 1;
        }
        self.promote(path, &kept(n))?;
        Ok(Some(kept(n)))
    }

    /// Removes a file; done also if there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_dir(),
        }
    }

    /// What a start finds, for a disk with this current identifier: a new file is the one of the resync that began, or goes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn settle(&self, current: GenId) -> io::Result<()> {
        match self.open(&self.new, false) {
            Ok(None) => Ok(()),
            Ok(Some(file)) if belongs(file.head(), current) => self.promote(&self.new, &self.file),
            // A head that is not whole was never answered for.
            Ok(Some(_)) => self.remove(&self.new),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => self.remove(&self.new),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_file_counts_only_when_its_resync_has_begun() {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = UndoPaths::new(dir.path(), "r0", 0);
        let head = |own: u64| Head {
            resource: "r0".into(),
            volume: 0,
            device: 1,
            sectors: 8,
            own: [GenId(own), GenId(0), GenId(0), GenId(0)],
            peer: [GenId(0x20); 4],
            after: GenId(0x20),
            made: 0,
            good: true,
            redo: false,
            up_to_date: true,
            salt: 1,
        };
        paths.create(&paths.file, head(0x50)).expect("made");
        paths.create(&paths.new, head(0x10)).expect("made");
        let own = |paths: &UndoPaths| paths.open(&paths.file, false).expect("readable").expect("there").head().own[0].0;
        paths.settle(GenId(0x11)).expect("settled");
        assert_eq!((own(&paths), paths.new.exists()), (0x50, false));
        paths.create(&paths.new, head(0x10)).expect("made");
        paths.settle(GenId(0x30)).expect("settled");
        assert_eq!((own(&paths), paths.new.exists()), (0x10, false));
        fs::write(&paths.new, [0; 100]).expect("written");
        paths.settle(GenId(0x30)).expect("settled");
        assert!(!paths.new.exists());
        let kept = [1, 2].map(|n| {
            paths.create(&paths.redo, head(n)).expect("made");
            paths.set_aside(&paths.redo).expect("set aside").expect("it was there")
        });
        assert!(kept[0] != kept[1] && kept.iter().all(|path| path.exists()) && !paths.redo.exists());
        assert!(paths.set_aside(&paths.redo).expect("looked").is_none());
        assert_eq!(fs::metadata(&paths.file).expect("there").permissions().mode() & 0o777, 0o600);
        paths.remove(&paths.file).expect("removed");
        assert!(paths.open(&paths.file, true).expect("readable").is_none());
    }
}
