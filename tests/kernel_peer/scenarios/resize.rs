//! Another size while both nodes are up: asked for on either side, with the kernel as source and as target of what is new.
//!
//! The kernel's disks cannot grow while its guest runs, so its size changes by the option `size`; udrbd's file grows.

use std::time::Duration;

use xtask::lab::drbd::{data_size, noise};
use xtask::lab::{LabError, wait_until};

use super::ensure;
use crate::bench::{Bench, DISK_BYTES, Outcome, Pair};

const MIB: u64 = 1 << 20;

fn kernel_bytes(pair: &Pair<'_>) -> Result<u64, LabError> {
    let text = pair.kernel.guest.sh("cat /sys/block/drbd0/size")?;
    let sectors: u64 = text.trim().parse().map_err(|_err| LabError::new(format!("no size: {text}")))?;
    Ok(sectors * 512)
}

/// Both have this size, and all of it is synced.
fn agreed(pair: &Pair<'_>, bytes: u64) -> Outcome {
    wait_until(&format!("{bytes} bytes on the kernel's side"), Duration::from_secs(60), || {
        let is = kernel_bytes(pair)?;
        Ok(if is == bytes { Ok(()) } else { Err(is.to_string()) })
    })?;
    pair.wait_synced()?;
    wait_until(&format!("{bytes} bytes in udrbd's metadata"), Duration::from_secs(60), || {
        let is = data_size(&Bench::udrbd_image(pair.lab, 0))?;
        Ok(if is == bytes { Ok(()) } else { Err(is.to_string()) })
    })?;
    pair.compare()
}

fn grow_udrbd(pair: &Pair<'_>, bytes: u64) -> Outcome {
    let file = std::fs::File::options().write(true).open(Bench::udrbd_image(pair.lab, 0))?;
    Ok(file.set_len(bytes)?)
}

/// Smaller, larger, and with metadata that move, all by commands of udrbd.
pub fn by_udrbd(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    let full = kernel_bytes(&pair)?;
    // The kernel is Primary, and follows.
    pair.udrbd.drbdctl("resize --size=20M r0")?;
    agreed(&pair, 20 * MIB)?;
    pair.udrbd.drbdctl("resize --size=24M r0")?;
    agreed(&pair, 24 * MIB)?;
    ensure(pair.last_resync_bits()? == 1024, || "the kernel did not sync just the new 4 MiB".to_owned())?;
    let data = noise(1, 2 << 20);
    pair.kernel.write(0, 21 << 20, &data, 64 << 10)?;
    pair.assert_holds(0, 21 << 20, &data)?;
    // udrbd is Primary and source, its metadata move, and the kernel's device limits the size.
    pair.promote_udrbd()?;
    grow_udrbd(&pair, DISK_BYTES + 8 * MIB)?;
    pair.udrbd.drbdctl("resize r0")?;
    agreed(&pair, full)?;
    ensure(pair.udrbd.size(0)? == full, || "an NBD client sees another size".to_owned())?;
    let data = noise(2, 2 << 20);
    pair.udrbd.write(0, 40 << 20, &data, 64 << 10)?;
    pair.assert_holds(0, 40 << 20, &data)?;
    pair.compare()
}

/// The same by commands of the kernel.
pub fn by_the_kernel(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    let full = kernel_bytes(&pair)?;
    pair.kernel.guest.sh("drbdsetup resize 0 --size=20M")?;
    agreed(&pair, 20 * MIB)?;
    pair.kernel.guest.sh("drbdsetup resize 0 --size=24M")?;
    agreed(&pair, 24 * MIB)?;
    ensure(pair.last_resync_bits()? == 1024, || "the kernel did not sync just the new 4 MiB".to_owned())?;
    pair.promote_udrbd()?;
    // The file of udrbd has grown meanwhile; its metadata move while the new part is synced from here.
    grow_udrbd(&pair, DISK_BYTES + 8 * MIB)?;
    pair.kernel.guest.sh("drbdsetup resize 0")?;
    agreed(&pair, full)?;
    let data = noise(3, 2 << 20);
    pair.udrbd.write(0, 40 << 20, &data, 64 << 10)?;
    pair.assert_holds(0, 40 << 20, &data)?;
    pair.kernel.guest.sh("drbdsetup resize 0 --size=24M --al-stripes=2 --al-stripe-size-kB=32")?;
    agreed(&pair, 24 * MIB)
}

/// udrbd's disk, whose metadata have moved and whose ring has changed, as the kernel sees it afterwards.
pub fn the_kernel_takes_a_moved_disk_over(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    let before = noise(4, 2 << 20);
    pair.udrbd.write(0, 4 << 20, &before, 64 << 10)?;
    grow_udrbd(&pair, DISK_BYTES + 8 * MIB)?;
    pair.udrbd.drbdctl("resize --size=30M --al-stripes=2 --al-stripe-size-kB=32 r0")?;
    agreed(&pair, 30 * MIB)?;
    // Alone, so that bits are set in the bitmap at its new place.
    pair.kernel.drbdadm("down r0")?;
    let alone = noise(5, 1 << 20);
    pair.udrbd.write(0, 12 << 20, &alone, 64 << 10)?;
    pair.udrbd.drbdctl("down r0")?;
    pair.udrbd.drbdctl("apply-al r0")?;
    let ours = pair.udrbd.drbdctl("dump-md r0")?;
    drop(pair);

    let shared = bench.lab.share().join("moved.img");
    std::fs::copy(Bench::udrbd_image(&bench.lab, 0), &shared)?;
    let mut conf = bench.conf(1);
    conf.hosts[0].disks = vec!["/dev/loop0".to_owned()];
    let kernel = bench.kernel()?;
    // A loop device of the kernel node, over a copy in its memory.
    kernel.guest.sh("modprobe -q loop || true; test -e /dev/loop0 || mknod /dev/loop0 b 7 0\n\
         cp /lab/moved.img /tmp/moved.img && losetup /dev/loop0 /tmp/moved.img")?;
    std::fs::remove_file(&shared)?;
    kernel.configure(&conf)?;
    let theirs = kernel.drbdadm("dump-md r0")?;
    let words = |text: &str| {
        let wanted = ["la-size-sect", "al-stripes", "al-stripe-size-4k", "uuid", "0x"];
        let lines = text.lines().filter(|line| wanted.iter().any(|word| line.trim_start().starts_with(word)));
        lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    ensure(words(&theirs) == words(&ours), || format!("drbdmeta says\n{theirs}\ndrbdctl says\n{ours}"))?;
    kernel.drbdadm("up r0")?;
    kernel.drbdadm("primary r0")?;
    for (offset, data) in [(4 << 20, &before), (12 << 20, &alone)] {
        let read = kernel.read(0, offset, data.len() as u64)?;
        ensure(&read == data, || format!("the kernel reads other data at {offset}"))?;
    }
    let oos = xtask::lab::drbd::out_of_sync_kib(&kernel.proc()?);
    kernel.down()?;
    kernel.guest.sh("losetup -d /dev/loop0; rm /tmp/moved.img")?;
    ensure(oos == 1024, || format!("{oos} KiB marked out of sync, should be 1 MiB"))
}
