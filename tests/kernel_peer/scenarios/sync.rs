//! First sync and replication of writes, in both directions.

use std::time::Duration;

use xtask::lab::drbd::noise;

use super::ensure;
use crate::bench::{Bench, Outcome, Pair, write_mix};

/// Also: the handshake agrees on protocol 101 with all four features, and on cram-hmac with sha1.
pub fn first_sync_from_the_kernel(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.pair(&conf)?;
    let log = pair.kernel.guest.sh("dmesg")?;
    for line in [
        "Agreed network protocol version 101",
        "Feature flags enabled on protocol level: 0xf TRIM THIN_RESYNC WRITE_SAME WRITE_ZEROES",
        "Peer authenticated using 20 bytes HMAC",
    ] {
        ensure(log.contains(line), || format!("`{line}` is not in the kernel's log:\n{log}"))?;
    }
    pair.kernel.drbdadm("primary --force r0")?;
    pair.wait_synced()?;
    pair.udrbd.wait("role", "Secondary/Primary", 1)?;
    // Blank disks are equal before the sync; only what the kernel writes after it, and the resync scenarios, show more.
    let data = noise(7, 1 << 20);
    pair.kernel.write(0, 4 << 20, &data, 64 << 10)?;
    pair.assert_holds(0, 4 << 20, &data)?;
    pair.compare()
}

/// The disks hold different data first, so that the sync must really move it.
pub fn first_sync_from_udrbd(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.pair(&conf)?;
    fill(&Bench::udrbd_image(pair.lab, 0), 1)?;
    fill(&Bench::kernel_image(pair.lab, 0), 2)?;
    pair.udrbd.drbdctl("primary --force r0")?;
    pair.wait_synced()?;
    pair.kernel.wait_proc(1, &["ro:Secondary/Primary"], Duration::from_secs(30))?;
    pair.assert_holds(0, 0, &noise(1, FILL_BYTES))?;
    pair.compare()
}

/// With DRBD's own resync controller on both sides, the kernel as source, and data to move.
pub fn first_sync_at_a_regulated_rate(bench: &mut Bench) -> Outcome {
    let mut conf = bench.conf(1);
    conf.disk.clear();
    let pair = bench.pair(&conf)?;
    fill(&Bench::udrbd_image(pair.lab, 0), 1)?;
    fill(&Bench::kernel_image(pair.lab, 0), 2)?;
    pair.kernel.drbdadm("primary --force r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 0, &noise(2, FILL_BYTES))?;
    pair.compare()
}

/// How much of a disk [`fill`] fills.
const FILL_BYTES: usize = 24 << 20;

/// Writes noise below DRBD, where nobody has read yet.
fn fill(image: &std::path::Path, seed: u64) -> Outcome {
    let file = std::fs::File::options().write(true).open(image)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(seed, FILL_BYTES), 0)?;
    Ok(())
}

pub fn protocol_a(bench: &mut Bench) -> Outcome {
    writes_both_ways(bench, 'A')
}

pub fn protocol_b(bench: &mut Bench) -> Outcome {
    writes_both_ways(bench, 'B')
}

pub fn protocol_c(bench: &mut Bench) -> Outcome {
    writes_both_ways(bench, 'C')
}

/// Kernel Primary and udrbd Secondary, then the roles swapped, then back.
fn writes_both_ways(bench: &mut Bench, protocol: char) -> Outcome {
    let mut conf = bench.conf(1);
    conf.protocol = protocol;
    let pair = bench.synced_pair(&conf)?;
    let proc = pair.kernel.proc()?;
    ensure(proc.contains(&format!(" {protocol} r-----")), || {
        format!("the kernel does not use protocol {protocol}:\n{proc}")
    })?;

    from_kernel(&pair, 0, 1)?;
    pair.compare()?;

    pair.promote_udrbd()?;
    let (ours, theirs) = (pair.udrbd.size(0)?, pair.device_size()?);
    ensure(ours == theirs, || format!("udrbd's device has {ours} bytes, the kernel's {theirs}"))?;
    from_udrbd(&pair, 0, 2)?;
    pair.compare()?;

    pair.promote_kernel()?;
    from_kernel(&pair, 0, 3)?;
    let oos = xtask::lab::drbd::out_of_sync_kib(&pair.kernel.proc()?);
    ensure(oos == 0, || format!("{oos} KiB out of sync after mere writes"))?;
    pair.compare()
}

/// Two volumes in one resource share the connection and its epochs.
pub fn two_volumes(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(2);
    let pair = bench.synced_pair(&conf)?;
    // Both at once from the kernel.
    let data = [noise(100, 1 << 20), noise(101, 1 << 20)];
    std::fs::write(pair.lab.share().join("v0"), &data[0])?;
    std::fs::write(pair.lab.share().join("v1"), &data[1])?;
    pair.kernel.guest.sh(
        "for nr in 0 1; do dd if=/lab/v$nr of=/dev/drbd$nr oflag=direct bs=16k status=none & jobs=\"$jobs $!\"; done\n\
         for job in $jobs; do wait $job || exit 1; done",
    )?;
    for (nr, data) in data.iter().enumerate() {
        pair.assert_holds(nr, 0, data)?;
    }
    from_kernel(&pair, 1, 1)?;
    pair.compare()?;
    pair.promote_udrbd()?;
    from_udrbd(&pair, 0, 2)?;
    from_udrbd(&pair, 1, 3)?;
    pair.compare()
}

/// What discards leave behind is zero on both sides (both files can punch holes), written zeroes are anyway.
pub fn discards_and_zeroes(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.kernel.write(0, 0, &noise(5, 8 << 20), 1 << 20)?;
    pair.kernel.guest.sh("blkdiscard -z -o 1048576 -l 1048576 /dev/drbd0")?;
    pair.assert_holds(0, 1 << 20, &vec![0; 1 << 20])?;
    pair.compare()?;
    pair.promote_udrbd()?;
    pair.udrbd.zero(0, 4 << 20, 1 << 20)?;
    pair.assert_holds(0, 4 << 20, &vec![0; 1 << 20])?;
    pair.compare()
}

pub fn from_kernel(pair: &Pair<'_>, nr: usize, seed: u64) -> Outcome {
    for (offset, data) in write_mix(seed, |offset, data, request| pair.kernel.write(nr, offset, data, request))? {
        pair.assert_holds(nr, offset, &data)?;
    }
    Ok(())
}

pub fn from_udrbd(pair: &Pair<'_>, nr: usize, seed: u64) -> Outcome {
    for (offset, data) in write_mix(seed, |offset, data, request| pair.udrbd.write(nr, offset, data, request))? {
        pair.assert_holds(nr, offset, &data)?;
        let read = pair.udrbd.read(nr, offset, data.len() as u64)?;
        ensure(read == data, || format!("udrbd reads other data at {offset} than was written"))?;
    }
    Ok(())
}
