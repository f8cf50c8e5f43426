//! Block devices: a loop device where we may make one.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::claims::Holder;
use super::*;
use crate::disk::sys::{RangeLock, lock_range};
use crate::disk::{ClaimScope, DiskErrorKind};

/// One at a time: another test's losetup may look at a device exclusively, or keep its descriptors until it has started.
static LOSETUP: Mutex<()> = Mutex::new(());

/// A loop device on a temporary file. It vanishes when this value is dropped, or this process dies.
struct LoopDevice {
    path: PathBuf,
    // The kernel detaches the device when the last user closes it, and this is the last.
    _user: File,
    _file: NamedTempFile,
    // Goes last.
    _alone: MutexGuard<'static, ()>,
}

impl LoopDevice {
    fn new(bytes: u64, sector: u32) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("not root".to_owned());
        }
        let file = file(bytes);
        let losetup = |args: &[&str]| match Command::new("losetup").args(args).output() {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("losetup: {error}")),
        };
        let alone = LOSETUP.lock().unwrap_or_else(PoisonError::into_inner);
        let sector = sector.to_string();
        let path = losetup(&["--show", "--find", "--sector-size", &sector, file.path().to_str().unwrap()])?;
        let user = File::open(&path).map_err(|error| error.to_string());
        // In use, so this only says: when the last user is gone.
        let detached = losetup(&["--detach", &path]);
        let user = user?;
        detached?;
        Ok(Self { path: path.into(), _user: user, _file: file, _alone: alone })
    }
}

macro_rules! loop_or_skip {
    ($bytes:expr, $sector:expr) => {
        match LoopDevice::new($bytes, $sector) {
            Ok(device) => device,
            Err(reason) => {
                println!("skipped: no loop device: {reason}");
                return;
            }
        }
    };
}

#[test]
fn a_block_device_transfers_discards_and_zeroes() {
    let device = loop_or_skip!(8 << 20, 512);
    with_rings(16, 4 * MIB, async |ring| {
        let dev = BackingDevice::open(&device.path, &OpenOptions::default()).unwrap();
        let geometry = dev.geometry();
        assert!(geometry.block_device && geometry.direct);
        assert_eq!((geometry.size_bytes, geometry.logical_block_bytes), (8 << 20, 512));
        let data = pattern(1, 2 * MIB);
        write(&ring, &dev, 512, data.clone()).await;
        run(&ring, DiskOp::Flush { dev: dev.clone() }).await.result.unwrap();
        assert!(read(&ring, &dev, 512, MIB).await[..] == data[..MIB]);
        for may_unmap in [false, true] {
            write(&ring, &dev, 0, data.clone()).await;
            let op = DiskOp::WriteZeroes { dev: dev.clone(), offset: 512, len: 1024, may_unmap };
            run(&ring, op).await.result.unwrap();
            let now = read(&ring, &dev, 0, 4096).await;
            assert!(now[..512] == data[..512] && now[1536..] == data[1536..4096]);
            assert!(now[512..1536].iter().all(|&b| b == 0));
        }
        let op = DiskOp::Discard { dev: dev.clone(), offset: 4096, len: 1 << 20 };
        let discard = run(&ring, op).await.result;
        match geometry.discard {
            Some(limits) => {
                assert!(limits.granularity_bytes >= 512);
                discard.unwrap();
                // Ours is backed by a file, so this holds although a block device does not promise it.
                assert!(read(&ring, &dev, 4096, MIB).await.iter().all(|&b| b == 0));
            }
            None => assert_eq!(discard.unwrap_err().kind(), DiskErrorKind::Unsupported),
        }
    });
}

#[test]
fn a_discard_beside_the_granules_zeroes() {
    let device = loop_or_skip!(8 << 20, 512);
    with_rings(16, 4 * MIB, async |ring| {
        let dev = BackingDevice::open(&device.path, &OpenOptions::default()).unwrap();
        let Some(limits) = dev.geometry().discard else { return };
        let unit = usize::try_from(limits.granularity_bytes).unwrap();
        if unit * 4 > MIB {
            return;
        }
        let data = pattern(5, MIB);
        // Head, granules and tail; a head only; less than a granule.
        for (start, len) in [(512, 3 * unit), (unit - 512, 1024), (512, 512)] {
            write(&ring, &dev, 0, data.clone()).await;
            let (offset, bytes) = (start as u64, len as u64);
            run(&ring, DiskOp::Discard { dev: dev.clone(), offset, len: bytes }).await.result.unwrap();
            let now = read(&ring, &dev, 0, MIB).await;
            assert!(now[..start] == data[..start] && now[start + len..] == data[start + len..], "{start}+{len}");
            assert!(now[start..start + len].iter().all(|&b| b == 0), "{start}+{len}");
        }
    });
}

#[test]
fn a_device_with_4k_blocks_refuses_smaller_ones() {
    let device = loop_or_skip!(8 << 20, 4096);
    with_rings(16, 4 * MIB, async |ring| {
        let dev = BackingDevice::open(&device.path, &OpenOptions::default()).unwrap();
        assert_eq!(dev.geometry().logical_block_bytes, 4096);
        write(&ring, &dev, 4096, pattern(3, 8192)).await;
        let op = DiskOp::Read { dev: dev.clone(), offset: 512, len: 4096, buf: None };
        let error = run(&ring, op).await.result.unwrap_err();
        assert_eq!(error.kind(), DiskErrorKind::Misaligned);
        assert!(error.to_string().ends_with("multiples of the logical block size of 4096 bytes"), "{error}");
    });
}

#[test]
fn a_block_device_is_claimed_exclusively_and_slots_are_shared() {
    let device = loop_or_skip!(8 << 20, 512);
    let slot = |start| OpenOptions { claim: ClaimScope::Range { start, len: 4096 }, ..Default::default() };
    let a = BackingDevice::open(&device.path, &slot(0)).unwrap();
    let b = BackingDevice::open(&device.path, &slot(4096)).unwrap();
    assert_eq!(BackingDevice::open(&device.path, &slot(0)).unwrap_err().kind(), DiskErrorKind::InUse);
    drop(a);
    assert!(Holder::start(&device.path).is_none(), "the other slot still holds the device");
    drop(b);
    let holder = Holder::start(&device.path).unwrap();
    let error = BackingDevice::open(&device.path, &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::InUse);
    assert!(error.to_string().contains(&format!("(process {})", holder.id())), "{error}");
}

#[test]
fn the_descriptor_of_the_io_is_locked_itself() {
    let device = loop_or_skip!(8 << 20, 512);
    // As a killed daemon leaves it while its last writes are in flight: no O_EXCL, the lock still held.
    let left = File::options().read(true).write(true).open(&device.path).unwrap();
    assert!(lock_range(left.as_fd(), RangeLock::Exclusive, 0, 0).unwrap());
    let error = BackingDevice::open(&device.path, &OpenOptions::default()).unwrap_err();
    assert!(matches!(error.kind(), DiskErrorKind::InUse | DiskErrorKind::InUseUnseen), "{error}");
    assert!(lock_range(left.as_fd(), RangeLock::Release, 0, 0).unwrap());
    let dev = BackingDevice::open(&device.path, &OpenOptions::default()).unwrap();
    assert!(!lock_range(left.as_fd(), RangeLock::Exclusive, 0, 0).unwrap());
    drop(dev);
    assert!(lock_range(left.as_fd(), RangeLock::Exclusive, 0, 0).unwrap());
}
