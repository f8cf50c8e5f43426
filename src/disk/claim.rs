//! Who uses what: claims on devices, in this process and against others.
//!
//! Owns: the process-wide registry of claimed devices. Gives out: [`ClaimGuard`], held by an open device. Invariants: two
//! claims of this process never overlap (data, internal and flexible metadata claim the whole device, indexed metadata
//! its slot); a claimed block device is held with O_EXCL exactly once, however many slots are claimed on it; every claimed
//! range is locked (open file description lock). The registry is only touched at attach and detach.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::{DiskAction, DiskError, DiskErrorKind};
use super::sys::{RangeLock, lock_range};

/// Which part of a device a user wants for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimScope {
    /// Everything: data devices, internal and flexible metadata.
    Whole,
    /// `len` bytes from `start`: one slot of an indexed metadata device. Other slots may have other users.
    Range {
        /// First byte.
        start: u64,
        /// Number of bytes; at least 1.
        len: u64,
    },
    /// Nothing: a look at a device that others may be using. Only together with read-only.
    Nothing,
}

impl ClaimScope {
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => false,
            (Self::Whole, _) | (_, Self::Whole) => true,
            (Self::Range { start: a, len: a_len }, Self::Range { start: b, len: b_len }) => {
                a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
            }
        }
    }

    /// As the kernel wants it for a lock: start and length, length 0 for "to the end".
    fn lock_range(self) -> (u64, u64) {
        match self {
            Self::Range { start, len } => (start, len),
            Self::Whole | Self::Nothing => (0, 0),
        }
    }
}

/// What makes two paths the same device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeviceKey {
    /// A block device by its number.
    Block { rdev: u64 },
    /// A file by its file system and inode.
    File { dev: u64, ino: u64 },
}

struct Claimed {
    users: Vec<User>,
    /// Holds a block device against others; closed with the last user.
    exclusive: Option<OwnedFd>,
}

struct User {
    id: u64,
    scope: ClaimScope,
    owner: String,
}

struct Registry {
    next_id: u64,
    devices: BTreeMap<DeviceKey, Claimed>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { next_id: 0, devices: BTreeMap::new() });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A claim; dropping it gives the device back. Must be dropped after the descriptor that carries a file's lock.
#[derive(Debug)]
pub(super) struct ClaimGuard {
    key: DeviceKey,
    id: u64,
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        let mut registry = registry();
        if let Some(claimed) = registry.devices.get_mut(&self.key) {
            claimed.users.retain(|user| user.id != self.id);
            if claimed.users.is_empty() {
                registry.devices.remove(&self.key);
            }
        }
    }
}

/// Claims `scope` of the device that `fd` (opened at `path`) refers to, for `owner` (a label for people, such as
/// `r0/0 (data)`). `None` for [`ClaimScope::Nothing`].
pub(super) fn claim(
    fd: BorrowedFd<'_>,
    path: &Path,
    key: DeviceKey,
    scope: ClaimScope,
    owner: &str,
    read_only: bool,
) -> Result<Option<ClaimGuard>, DiskError> {
    if scope == ClaimScope::Nothing {
        return Ok(None);
    }
    let in_use = |who: String| DiskError::refused(DiskAction::Claim, path, DiskErrorKind::InUse, who);
    let mut registry = registry();
    if let Some(claimed) = registry.devices.get(&key)
        && let Some(user) = claimed.users.iter().find(|user| user.scope.overlaps(scope))
    {
        return Err(in_use(format!("in use by {} of this daemon", user.owner)));
    }
    let mut exclusive = None;
    match key {
        DeviceKey::Block { rdev } if !registry.devices.contains_key(&key) => {
            match rustix::fs::open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) if rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_rdev == rdev) => exclusive = Some(fd),
                Ok(_) => return Err(in_use("the path changed its meaning while it was being opened".to_owned())),
                Err(Errno::BUSY) => return Err(in_use(users_of_block_device(rdev))),
                Err(error) => return Err(DiskError::new(DiskAction::Claim, path, error.into())),
            }
        }
        DeviceKey::Block { .. } | DeviceKey::File { .. } => {}
    }
    lock(fd, path, scope, read_only)?;
    let id = registry.next_id;
    registry.next_id += 1;
    let claimed = registry.devices.entry(key).or_insert_with(|| Claimed { users: Vec::new(), exclusive });
    debug_assert_eq!(claimed.exclusive.is_some(), matches!(key, DeviceKey::Block { .. }));
    claimed.users.push(User { id, scope, owner: owner.to_owned() });
    Ok(Some(ClaimGuard { key, id }))
}

/// Locks the descriptor that the I/O goes through. On a block device too: unlike O_EXCL, which ends with the process,
/// this lock lasts until the last write of a killed daemon has left the kernel, so that its successor cannot be overtaken.
fn lock(fd: BorrowedFd<'_>, path: &Path, scope: ClaimScope, read_only: bool) -> Result<(), DiskError> {
    let lock = if read_only { RangeLock::Shared } else { RangeLock::Exclusive };
    let (start, len) = scope.lock_range();
    match lock_range(fd, lock, start, len) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let seen = rustix::fs::fstat(fd).ok().and_then(|stat| lockers(stat.st_dev, stat.st_ino));
            let (kind, who) = match seen {
                Some(who) => (DiskErrorKind::InUse, who),
                None => (DiskErrorKind::InUseUnseen, "locked by a process that cannot be seen".to_owned()),
            };
            Err(DiskError::refused(DiskAction::Claim, path, kind, who))
        }
        Err(error) => Err(DiskError::new(DiskAction::Claim, path, error)),
    }
}

/// Gives the kernel's lock back at once, even if a child process that is just being started still has a copy of the
/// descriptor.
pub(super) fn release(fd: BorrowedFd<'_>, scope: ClaimScope) {
    if scope != ClaimScope::Nothing {
        let (start, len) = scope.lock_range();
        // Closing the descriptor releases it all the same.
        let _ = lock_range(fd, RangeLock::Release, start, len);
    }
}

/// Text about the processes that hold locks on an inode, from /proc/PID/fdinfo; `None` if there is none to be seen.
fn lockers(dev: u64, ino: u64) -> Option<String> {
    let suffix = format!("{:02x}:{:02x}:{ino}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let holds = |process: &Path| {
        let Ok(entries) = fs::read_dir(process.join("fdinfo")) else { return false };
        entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(|info| {
            info.lines()
                .filter(|line| line.starts_with("lock:"))
                .any(|line| line.split_whitespace().any(|word| word == suffix))
        })
    };
    describe("locked by", &processes(holds))
}

/// Text about the users of a busy block device: file systems, swap, stacked devices, processes.
fn users_of_block_device(rdev: u64) -> String {
    let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(2);
        if fields.next() == Some(&number) {
            return format!("mounted on {}", fields.nth(1).unwrap_or("?"));
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let is_this =
        |path: &str| fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device() && meta.rdev() == rdev);
    if swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).any(is_this) {
        return "in use as swap".to_owned();
    }
    if let Ok(holders) = fs::read_dir(format!("/sys/dev/block/{number}/holders")) {
        let names: Vec<_> = holders.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        if let Some(text) = describe("in use below", &names) {
            return text;
        }
    }
    let holds = |process: &Path| {
        let Ok(entries) = fs::read_dir(process.join("fd")) else { return false };
        entries
            .flatten()
            .filter_map(|entry| fs::metadata(entry.path()).ok())
            .any(|meta| meta.file_type().is_block_device() && meta.rdev() == rdev)
    };
    describe("held open by", &processes(holds))
        .unwrap_or_else(|| "in use (mounted, or part of another device)".to_owned())
}

/// Names of the other processes for which `matches` says yes, given their directory in /proc.
fn processes(matches: impl Fn(&Path) -> bool) -> Vec<String> {
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Ok(pid) = entry.file_name().into_string() else { continue };
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) || !matches(&entry.path()) {
            continue;
        }
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        found.push(format!("{} (process {pid})", name.trim()));
    }
    found
}

fn describe(verb: &str, names: &[String]) -> Option<String> {
    let mut text = format!("{verb} {}", names.first()?);
    for name in &names[1..] {
        // Writing into a String cannot fail.
        let _ = write!(text, ", {name}");
    }
    Some(text)
}
