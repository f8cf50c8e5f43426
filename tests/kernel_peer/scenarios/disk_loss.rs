//! A Primary without a good disk of its own works over the peer.

use std::time::Duration;

use xtask::lab::drbd::noise;

use super::ensure;
use crate::bench::{Bench, Outcome};

/// What fio writes and reads back, in both directions: 12 MiB of 4 to 64 KiB blocks, each checked with a CRC, over and over
/// for 15 s.
const JOB: &str = "--rw=randrw --bsrange=4k-64k --iodepth=8 --size=12M --verify=crc32c --verify_fatal=1 --do_verify=1 \
                   --time_based --runtime=15 --serialize_overlap=1";

/// Long enough for requests in flight to meet the change; nothing depends on how many do.
const UNDER_LOAD: Duration = Duration::from_secs(3);

pub fn udrbd_primary_goes_on_over_the_peer(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    let mut load = pair.udrbd.fio(JOB)?;
    std::thread::sleep(UNDER_LOAD);
    load.assert_running()?;
    pair.udrbd.drbdctl("detach r0")?;
    pair.udrbd.wait("dstate", "Diskless/UpToDate", 1)?;
    std::thread::sleep(UNDER_LOAD);
    load.assert_running()?;
    pair.udrbd.drbdctl("attach r0")?;
    load.finish()?;
    pair.wait_synced()?;
    let data = noise(9, 1 << 20);
    pair.udrbd.write(0, 32 << 20, &data, 64 << 10)?;
    pair.assert_holds(0, 32 << 20, &data)?;
    pair.compare()
}

pub fn kernel_primary_goes_on_over_udrbd(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    let load = pair.kernel.guest.begin(&format!(
        "cd /tmp && fio --name=load --filename=/dev/drbd0 --ioengine=libaio --direct=1 --thread --group_reporting {JOB}"
    ))?;
    std::thread::sleep(UNDER_LOAD);
    pair.kernel.drbdadm("detach r0")?;
    pair.kernel.wait_proc(1, &["ds:Diskless/UpToDate"], Duration::from_secs(30))?;
    std::thread::sleep(UNDER_LOAD);
    pair.kernel.drbdadm("attach r0")?;
    let output = pair.kernel.guest.finish(&load, Duration::from_secs(180))?;
    ensure(output.code == 0, || format!("fio on the kernel's device ended with {}:\n{}", output.code, output.text))?;
    pair.wait_synced()?;
    pair.compare()
}

/// A resync slow enough to read everything while it runs.
fn slow(bench: &Bench) -> xtask::lab::drbd::Conf {
    let mut conf = bench.conf(1);
    conf.disk = ["c-plan-ahead 0;", "resync-rate 500K;"].map(str::to_owned).to_vec();
    conf
}

pub fn inconsistent_udrbd_primary_reads(bench: &mut Bench) -> Outcome {
    let conf = slow(bench);
    let pair = bench.pair(&conf)?;
    // The kernel's disk alone holds the data.
    let data = noise(3, 8 << 20);
    let image = std::fs::File::options().write(true).open(Bench::kernel_image(pair.lab, 0))?;
    std::os::unix::fs::FileExt::write_all_at(&image, &data, 24 << 20)?;
    pair.kernel.drbdadm("primary --force r0")?;
    pair.udrbd.wait("dstate", "Inconsistent/UpToDate", 1)?;
    pair.promote_udrbd()?;
    let read = pair.udrbd.read(0, 24 << 20, data.len() as u64)?;
    ensure(read == data, || "an inconsistent Primary reads other data than its peer has".to_owned())?;
    let state = pair.udrbd.drbdctl("dstate r0")?;
    ensure(state.trim() == "Inconsistent/UpToDate", || format!("the resync ended before the read did: {state}"))?;
    // A write in the part that is not synced yet.
    let written = noise(4, 1 << 20);
    pair.udrbd.write(0, 40 << 20, &written, 64 << 10)?;
    pair.kernel.drbdadm("disk-options --resync-rate=200M r0")?;
    pair.udrbd.drbdctl("disk-options --resync-rate=200M r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 24 << 20, &data)?;
    pair.assert_holds(0, 40 << 20, &written)?;
    pair.compare()
}

pub fn inconsistent_kernel_primary_reads(bench: &mut Bench) -> Outcome {
    let conf = slow(bench);
    let pair = bench.pair(&conf)?;
    let data = noise(3, 8 << 20);
    let image = std::fs::File::options().write(true).open(Bench::udrbd_image(pair.lab, 0))?;
    std::os::unix::fs::FileExt::write_all_at(&image, &data, 24 << 20)?;
    pair.udrbd.drbdctl("primary --force r0")?;
    pair.kernel.wait_proc(1, &["ds:Inconsistent/UpToDate"], Duration::from_secs(30))?;
    pair.promote_kernel()?;
    let read = pair.kernel.read(0, 24 << 20, data.len() as u64)?;
    ensure(read == data, || "the inconsistent kernel reads other data than udrbd has".to_owned())?;
    let state = pair.kernel.query("dstate")?;
    ensure(state == "Inconsistent/UpToDate", || format!("the resync ended before the read did: {state}"))?;
    let written = noise(4, 1 << 20);
    pair.kernel.write(0, 40 << 20, &written, 64 << 10)?;
    pair.kernel.drbdadm("disk-options --resync-rate=200M r0")?;
    pair.udrbd.drbdctl("disk-options --resync-rate=200M r0")?;
    pair.wait_synced()?;
    pair.assert_holds(0, 24 << 20, &data)?;
    pair.assert_holds(0, 40 << 20, &written)?;
    pair.compare()
}
