//! What a device is and can: size, block sizes, discard, write-zeroes, caches.
//!
//! Takes in: an open descriptor. Gives out: [`Geometry`]. Sources: the descriptor itself (lseek, BLKSSZGET, statx) and
//! the block layer's attributes in sysfs; what cannot be known is `None`, never a guess.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::pool::{BUF_ALIGN, BUF_LEN_MAX, Pool};

/// Smallest block that anything here deals with, in bytes.
pub const BLOCK_BYTES_MIN: u32 = 512;

/// How discards work on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Smallest unit that is really freed, in bytes; at least the logical block size.
    pub granularity_bytes: u64,
    /// Where the first such unit starts, in bytes from the start of the device; 0 as a rule.
    pub alignment_bytes: u64,
    /// Largest discard that the device does in one go, in bytes; larger ones are cut up by the kernel. `None`: no limit.
    pub max_bytes: Option<u64>,
    /// Whether a discarded range is known to read as zeroes.
    pub reads_zeroes: bool,
}

/// What a backing device is and can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Usable size in bytes: a multiple of the logical block size.
    pub size_bytes: u64,
    /// Unit and alignment of every request, in bytes: a power of two from 512 to 64 KiB.
    pub logical_block_bytes: u32,
    /// Unit that the medium writes without a read-modify-write, in bytes; at least the logical block size.
    pub physical_block_bytes: u32,
    /// Alignment of payload memory that spares a copy, in bytes; 1 without direct I/O.
    pub memory_align_bytes: u32,
    /// Whether transfers bypass the page cache.
    pub direct: bool,
    /// Whether this is a block device (else a regular file).
    pub block_device: bool,
    /// Whether it is a file in memory (tmpfs, ramfs): a transfer is a copy and never waits for a device.
    pub in_memory: bool,
    /// Whether seeks are expensive; of the disk below for a file.
    pub rotational: Option<bool>,
    /// Whether the device has a volatile write cache; of the disk below for a file.
    pub volatile_cache: Option<bool>,
    /// Discard limits; `None` when the device or file system cannot discard, or is open read-only.
    pub discard: Option<DiscardLimits>,
    /// Whether zeroes can be written without transferring them. Write-zeroes works in any case.
    pub zeroes_offload: bool,
}

/// The part of [`Geometry`] that concerns transfers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) direct: bool,
    pub(super) block_bytes: u32,
    pub(super) memory_align_bytes: u32,
}

/// The block layer's attributes of the disk with device number `dev`; for a partition those of its disk.
struct Queue {
    /// Of the device itself.
    device: String,
    /// Of the queue, which a partition shares with its disk.
    queue: String,
}

impl Queue {
    fn of(dev: u64) -> Self {
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        let base = format!("/sys/dev/block/{major}:{minor}");
        let partition = fs::exists(format!("{base}/partition")).unwrap_or(false);
        let queue = if partition { format!("{base}/../queue") } else { format!("{base}/queue") };
        Self { device: base, queue }
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(format!("{}/{name}", self.queue)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    fn discard_alignment(&self) -> u64 {
        let text = fs::read_to_string(format!("{}/discard_alignment", self.device)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn rotational(&self) -> Option<bool> {
        self.number("rotational").map(|n| n != 0)
    }

    fn volatile_cache(&self) -> Option<bool> {
        self.text("write_cache").map(|mode| mode == "write back")
    }
}

/// Size of the device or file in bytes as it is now, not rounded.
pub(super) fn size_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // Works for files and block devices alike; nothing here uses the file position.
    Ok(rustix::fs::seek(fd, SeekFrom::End(0))?)
}

fn dio_align(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let known = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let usable = |n: u32| n.is_power_of_two() && n as usize <= BUF_LEN_MAX;
    (known && usable(stat.stx_dio_mem_align) && usable(stat.stx_dio_offset_align))
        .then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

fn set_direct(fd: BorrowedFd<'_>, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(fd, flags)?)
}

/// Switches `fd` to direct I/O where the kernel and a real aligned read say that it works; finds the alignment rules.
pub(super) fn negotiate_direct(fd: BorrowedFd<'_>, block_device: bool, wanted: bool) -> io::Result<Transfer> {
    let hard_block = if block_device { rustix::fs::ioctl_blksszget(fd)?.max(BLOCK_BYTES_MIN) } else { BLOCK_BYTES_MIN };
    let buffered = Transfer { direct: false, block_bytes: hard_block, memory_align_bytes: 1 };
    if !wanted || set_direct(fd, true).is_err() {
        return Ok(buffered);
    }
    let stated = dio_align(fd);
    let pool = Pool::new(BUF_LEN_MAX)?;
    let mut block_bytes = stated.map_or(hard_block, |(_, offset)| offset.max(hard_block));
    while block_bytes as usize <= BUF_ALIGN.max(hard_block as usize) {
        let Some(mut buf) = pool.try_alloc(block_bytes as usize) else { break };
        match rustix::io::pread(fd, &mut *buf, 0) {
            Ok(_) => {
                let memory_align_bytes = stated.map_or(block_bytes, |(memory, _)| memory);
                return Ok(Transfer { direct: true, block_bytes, memory_align_bytes });
            }
            Err(Errno::INTR) => {}
            Err(Errno::INVAL) => block_bytes *= 2,
            // A bad sector is not a reason to go through the page cache.
            Err(Errno::IO) => {
                return Ok(Transfer { direct: true, block_bytes, memory_align_bytes: block_bytes });
            }
            Err(_) => break,
        }
    }
    set_direct(fd, false)?;
    Ok(buffered)
}

/// The whole geometry. `rdev` is the device number of a block device, `None` for a file on device `st_dev` with the
/// preferred block size `st_blksize`.
pub(super) fn probe(
    fd: BorrowedFd<'_>,
    rdev: Option<u64>,
    stat: &rustix::fs::Stat,
    read_only: bool,
    transfer: Transfer,
) -> io::Result<Geometry> {
    let block = u64::from(transfer.block_bytes);
    let raw_size = size_bytes(fd)?;
    let queue = Queue::of(rdev.unwrap_or(stat.st_dev));
    let mut geometry = Geometry {
        size_bytes: raw_size - raw_size % block,
        logical_block_bytes: transfer.block_bytes,
        physical_block_bytes: transfer.block_bytes,
        memory_align_bytes: transfer.memory_align_bytes,
        direct: transfer.direct,
        block_device: rdev.is_some(),
        in_memory: rdev.is_none() && is_in_memory(fd),
        rotational: queue.rotational(),
        volatile_cache: queue.volatile_cache(),
        discard: None,
        zeroes_offload: false,
    };
    if rdev.is_some() {
        geometry.physical_block_bytes = rustix::fs::ioctl_blkpbszget(fd)?.max(transfer.block_bytes);
        let max = queue.number("discard_max_bytes").unwrap_or(0);
        if max > 0 && !read_only {
            let granularity_bytes = queue.number("discard_granularity").unwrap_or(0).max(block);
            geometry.discard = Some(DiscardLimits {
                granularity_bytes,
                alignment_bytes: queue.discard_alignment(),
                max_bytes: Some(max),
                reads_zeroes: false,
            });
        }
        geometry.zeroes_offload = queue.number("write_zeroes_max_bytes").unwrap_or(0) > 0;
    } else {
        let fs_block = u64::try_from(stat.st_blksize).unwrap_or(0).clamp(block, 1 << 20);
        geometry.physical_block_bytes = u32::try_from(fs_block).unwrap_or(transfer.block_bytes);
        if !read_only && can_punch(fd, raw_size) {
            geometry.discard = Some(DiscardLimits {
                granularity_bytes: fs_block,
                alignment_bytes: 0,
                max_bytes: None,
                reads_zeroes: true,
            });
            geometry.zeroes_offload = true;
        }
    }
    Ok(geometry)
}

/// Whether the file lives in memory. The file system's number says so (statfs(2): tmpfs, ramfs).
fn is_in_memory(fd: BorrowedFd<'_>) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    rustix::fs::fstatfs(fd).is_ok_and(|fs| matches!(fs.f_type, TMPFS | RAMFS))
}

/// Whether the file system punches holes: asked behind the end of the file, where there is nothing to lose.
fn can_punch(fd: BorrowedFd<'_>, size: u64) -> bool {
    let behind = size.next_multiple_of(BUF_ALIGN as u64);
    rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, behind, BUF_ALIGN as u64).is_ok()
}
