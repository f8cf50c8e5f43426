//! What a backing file would hold after a power cut, and the faults that are drawn for it.
//!
//! Owns: the durable contents (a copy in memory), the writes that are not durable yet, the registry of media by file. Takes
//! in: operations with their beginnings and ends. Gives out: the file's contents after a crash. Rules: a write is durable when
//! it was durable itself and ended well, or when a flush that was submitted after its completion was delivered has ended
//! well; of the rest a power cut keeps any subset, torn at 512 bytes except in the block that is declared whole. A sector
//! never goes back behind a newer durable version of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::disk::error::{DiskAction, DiskError};
use crate::disk::op::Completion;
use crate::engine::rng::Rng;

const SECTOR: usize = 512;

/// Device and inode.
type Key = (u64, u64);

static MEDIA: Mutex<BTreeMap<Key, Weak<Medium>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The faults to draw from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// One in so many operations is held back before it begins, and one in so many after its end; 0: none.
    pub hold_one_in: u64,
    /// The longest that it is held back, each way.
    pub hold_max: Duration,
    /// One in so many reads, writes and flushes fails; 0: none.
    pub fail_one_in: u64,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes, discards and zeroings.
    pub writes: u64,
    /// Of these, writes that were durable themselves.
    pub durable: u64,
    /// Flushes that ended well.
    pub flushes: u64,
    /// Operations that were held back, either way.
    pub held: u64,
    /// Operations that failed as drawn.
    pub failed: u64,
    /// Writes that a power cut took back as a whole.
    pub lost: u64,
    /// Writes that a power cut took back in part.
    pub torn: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.durable += other.durable;
        self.flushes += other.flushes;
        self.held += other.held;
        self.failed += other.failed;
        self.lost += other.lost;
        self.torn += other.torn;
    }
}

/// A write that is not durable.
#[derive(Debug)]
struct Cached {
    offset: usize,
    /// `None`: zeroes.
    data: Option<Bytes>,
    len: usize,
    /// Its completion was delivered.
    delivered: bool,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    durable: Vec<u8>,
    /// By sector: the newest write that is durable.
    versions: Vec<u64>,
    cached: BTreeMap<u64, Cached>,
    next: u64,
    faults: Faults,
    open: usize,
    violations: Vec<String>,
    counts: Counts,
}

/// The medium behind one file.
#[derive(Debug)]
pub struct Medium {
    path: PathBuf,
    key: Key,
    /// Bytes that are never torn.
    whole: Range<usize>,
    state: Mutex<State>,
    closed: Condvar,
}

/// What is to happen to an operation.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::disk) struct Fate {
    /// Held back so long before it begins.
    pub before: Option<Duration>,
    /// Held back so long after its end.
    pub after: Option<Duration>,
    /// Fails; with `Some(true)` after it was executed.
    pub fails: Option<bool>,
}

impl Medium {
    /// A medium for the file at `path`, all of whose contents are durable. `whole`: the bytes that are never torn (of the
    /// superblock).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn install(path: &Path, seed: u64, whole: Range<u64>) -> io::Result<Arc<Self>> {
        let durable = std::fs::read(path)?;
        let file = std::fs::metadata(path)?;
        let state = State {
            rng: Rng::new(seed),
            versions: vec![0; durable.len() / SECTOR],
            durable,
            cached: BTreeMap::new(),
            next: 1,
            faults: Faults::default(),
            open: 0,
            violations: Vec::new(),
            counts: Counts::default(),
        };
        let medium = Arc::new(Self {
            path: path.to_owned(),
            key: (file.dev(), file.ino()),
            whole: index(whole.start)..index(whole.end),
            state: Mutex::new(state),
            closed: Condvar::new(),
        });
        lock(&MEDIA).insert(medium.key, Arc::downgrade(&medium));
        Ok(medium)
    }

    /// Other faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    /// Waits until no device is open on the file, and so no operation under way; false at the deadline.
    #[must_use]
    pub fn wait_closed(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while state.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.closed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The process that had the device open is gone: operations without an end have ended as the file shows.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn process_died(&self) -> io::Result<()> {
        let file = File::open(&self.path)?;
        let mut state = lock(&self.state);
        let unfinished: Vec<u64> = state.cached.iter().filter(|(_, c)| !c.delivered).map(|(nr, _)| *nr).collect();
        for nr in unfinished {
            let Some(cached) = state.cached.remove(&nr) else { continue };
            let mut found = vec![0; cached.len];
            file.read_exact_at(&mut found, cached.offset as u64)?;
            let cached = Cached { data: Some(found.into()), delivered: true, ..cached };
            let nr = state.take_number();
            state.cached.insert(nr, cached);
        }
        Ok(())
    }

    /// The power failed while, or after, the device was open: the file gets what the medium happens to hold.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn power_failed(&self) -> io::Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        let mut state = lock(&self.state);
        let cached = std::mem::take(&mut state.cached);
        for (nr, write) in &cached {
            match state.rng.next_u64() % 5 {
                0 | 1 => state.apply(*nr, write, |_| true),
                2 | 3 => state.counts.lost += 1,
                _ => {
                    let mut rng = Rng::new(state.rng.next_u64());
                    let whole = rng.next_u64().is_multiple_of(2);
                    let kept =
                        |at: usize| if self.whole.contains(&at) { whole } else { rng.next_u64().is_multiple_of(2) };
                    state.apply(*nr, write, kept);
                    state.counts.torn += 1;
                }
            }
        }
        for write in cached.values() {
            let range = write.offset..write.offset + write.len;
            file.write_all_at(state.durable.get(range).unwrap_or_default(), write.offset as u64)?;
        }
        Ok(())
    }

    /// What should never have happened, in words.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        lock(&self.state).violations.clone()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.state).counts
    }

    /// A write was submitted; its number. `pieces` empty: zeroes.
    pub(super) fn write_submitted(&self, offset: u64, len: u64, pieces: &[Bytes], fua: bool) -> u64 {
        let data = (!pieces.is_empty()).then(|| Bytes::from(pieces.concat()));
        let (offset, len) = (index(offset), index(len));
        let mut state = lock(&self.state);
        state.counts.writes += 1;
        state.counts.durable += u64::from(fua);
        let other = state
            .cached
            .values()
            .find(|c| !c.delivered && c.offset < offset + len && offset < c.offset + c.len)
            .map(|c| (c.offset, c.len));
        if let Some((start, count)) = other {
            let text = format!("write of {len} bytes at {offset} while one of {count} at {start} is under way");
            state.violation(&self.path, &text);
        }
        let nr = state.take_number();
        state.cached.insert(nr, Cached { offset, data, len, delivered: false });
        nr
    }

    /// The bytes of a write are about to go to the back end: they must be those that were submitted.
    pub(super) fn write_begins(&self, nr: u64, pieces: &[Bytes]) {
        let mut state = lock(&self.state);
        let Some(data) = state.cached.get(&nr).and_then(|cached| cached.data.clone()) else { return };
        let mut rest = &data[..];
        let same = pieces.iter().all(|piece| {
            let (head, tail) = rest.split_at(piece.len().min(rest.len()));
            rest = tail;
            head == &piece[..]
        });
        if !same {
            state.violation(&self.path, "the memory of a write changed before the write began");
        }
    }

    pub(super) fn write_ended(&self, nr: u64, fua: bool) {
        if fua {
            lock(&self.state).make_durable(nr);
        }
    }

    pub(super) fn write_delivered(&self, nr: u64) {
        if let Some(cached) = lock(&self.state).cached.get_mut(&nr) {
            cached.delivered = true;
        }
    }

    /// A flush was submitted; the writes that it covers.
    pub(super) fn flush_submitted(&self) -> Vec<u64> {
        lock(&self.state).cached.iter().filter(|(_, cached)| cached.delivered).map(|(nr, _)| *nr).collect()
    }

    pub(super) fn flush_ended(&self, covered: &[u64]) {
        let mut state = lock(&self.state);
        state.counts.flushes += 1;
        for nr in covered {
            state.make_durable(*nr);
        }
    }

    /// The completion of an operation that failed as drawn.
    pub(super) fn failed(&self, token: u64) -> Completion {
        let error = io::Error::from_raw_os_error(libc::EIO);
        Completion { token, result: Err(DiskError::new(DiskAction::Write, &self.path, error)), buf: None }
    }

    pub(super) fn note_violation(&self, text: &str) {
        lock(&self.state).violation(&self.path, text);
    }

    /// Draws what happens to the next operation.
    pub(super) fn fate(&self) -> Fate {
        let mut state = lock(&self.state);
        let Faults { hold_one_in, hold_max, fail_one_in } = state.faults;
        let mut hold = || {
            let held = hold_one_in > 0 && state.rng.next_u64().is_multiple_of(hold_one_in);
            let micros = u64::try_from(hold_max.as_micros()).unwrap_or(u64::MAX).max(1);
            // Mostly short ones.
            let span = [micros, micros / 10, micros / 100][usize::try_from(state.rng.next_u64() % 3).unwrap_or(0)];
            held.then(|| Duration::from_micros(state.rng.next_u64() % span.max(1)))
        };
        let (before, after) = (hold(), hold());
        let fails = fail_one_in > 0 && state.rng.next_u64().is_multiple_of(fail_one_in);
        let fails = fails.then(|| state.rng.next_u64().is_multiple_of(2));
        state.counts.held += u64::from(before.is_some()) + u64::from(after.is_some());
        state.counts.failed += u64::from(fails.is_some());
        Fate { before, after, fails }
    }

    pub(super) fn coin(&self) -> bool {
        lock(&self.state).rng.next_u64().is_multiple_of(2)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        lock(&MEDIA).remove(&self.key);
    }
}

impl State {
    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn violation(&mut self, path: &Path, text: &str) {
        if self.violations.len() < 5 {
            self.violations.push(format!("{}: {text}", path.display()));
        }
    }

    fn make_durable(&mut self, nr: u64) {
        if let Some(write) = self.cached.remove(&nr) {
            self.apply(nr, &write, |_| true);
        }
    }

    /// Puts the sectors of a write that `kept` (by position in bytes) says yes to on the medium.
    fn apply(&mut self, nr: u64, write: &Cached, mut kept: impl FnMut(usize) -> bool) {
        for at in (0..write.len).step_by(SECTOR) {
            let place = write.offset + at;
            let Some(version) = self.versions.get_mut(place / SECTOR) else { return };
            if *version > nr || !kept(place) {
                continue;
            }
            *version = nr;
            let len = SECTOR.min(write.len - at);
            let Some(to) = self.durable.get_mut(place..place + len) else { return };
            match write.data.as_ref().and_then(|data| data.get(at..at + len)) {
                Some(from) => to.copy_from_slice(from),
                None => to.fill(0),
            }
        }
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A device that is open on a medium.
#[derive(Debug)]
pub(in crate::disk) struct OpenMedium(Arc<Medium>);

impl OpenMedium {
    pub(in crate::disk) fn medium(&self) -> &Arc<Medium> {
        &self.0
    }
}

impl Drop for OpenMedium {
    fn drop(&mut self) {
        lock(&self.0.state).open -= 1;
        self.0.closed.notify_all();
    }
}

fn find(dev: u64, ino: u64) -> Option<Arc<Medium>> {
    lock(&MEDIA).get(&(dev, ino)).and_then(Weak::upgrade)
}

/// The medium of a file that is being opened, if one was installed.
pub(in crate::disk) fn medium_of(stat: &rustix::fs::Stat) -> Option<OpenMedium> {
    let medium = find(stat.st_dev, stat.st_ino)?;
    lock(&medium.state).open += 1;
    Some(OpenMedium(medium))
}

/// Bytes that were written past the ring (before an attach); `None`: everything so far was flushed.
pub(in crate::disk) fn written_outside(file: &File, written: Option<(u64, &[u8])>) {
    let Some(medium) = file.metadata().ok().and_then(|meta| find(meta.dev(), meta.ino())) else { return };
    match written {
        Some((offset, data)) => {
            let data = Bytes::copy_from_slice(data);
            let nr = medium.write_submitted(offset, data.len() as u64, std::slice::from_ref(&data), false);
            medium.write_delivered(nr);
        }
        None => medium.flush_ended(&medium.flush_submitted()),
    }
}
