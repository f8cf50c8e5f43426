//! Power cuts and killed daemons.

use std::time::Duration;

use xtask::lab::drbd::noise;
use xtask::lab::wait_until;

use super::ensure;
use crate::bench::{Bench, Outcome, Pair, boot_kernel};

/// Writes all over the device, faster than any resync of the moment.
const LOAD: &str = "--rw=randwrite --bsrange=4k-128k --iodepth=16 --size=40M --time_based --runtime=120 --norandommap";

/// Until the other side saw this much of the load (KiB), it has not really begun.
const LOAD_SEEN_KIB: u64 = 2048;

fn wait_for_load(pair: &Pair<'_>) -> Outcome {
    let received = |proc: &str| {
        let counter =
            |name: &str| proc.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
        counter("nr:").unwrap_or(0) + counter("ns:").unwrap_or(0)
    };
    let before = received(&pair.kernel.proc()?);
    wait_until("load on the kernel node", Duration::from_secs(60), || {
        let proc = pair.kernel.proc()?;
        Ok(if received(&proc) >= before + LOAD_SEEN_KIB { Ok(()) } else { Err(proc) })
    })?;
    Ok(())
}

/// The activity log says what may differ after a crash; the resync makes it equal.
pub fn udrbd_killed_as_primary_under_load(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let mut pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    let data = noise(1, 1 << 20);
    pair.udrbd.write(0, 42 << 20, &data, 64 << 10)?;
    let mut load = pair.udrbd.fio(LOAD)?;
    wait_for_load(&pair)?;
    load.assert_running()?;
    pair.udrbd.kill();
    drop(load);
    pair.kernel.wait_proc(1, &["cs:WFConnection"], Duration::from_secs(60))?;
    pair.kernel.guest.sh("dmesg --clear")?;
    pair.udrbd.run_daemon()?;
    pair.udrbd.drbdctl("up r0")?;
    pair.wait_synced()?;
    let bits = pair.last_resync_bits()?;
    ensure(bits > 0, || "nothing was resynced after a crash under load".to_owned())?;
    pair.assert_holds(0, 42 << 20, &data)?;
    pair.compare()
}

/// A Secondary that dies in the middle of writes.
pub fn udrbd_killed_as_secondary_under_load(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let mut pair = bench.synced_pair(&conf)?;
    let load = pair.kernel.guest.begin(&format!(
        "cd /tmp && fio --name=load --filename=/dev/drbd0 --ioengine=libaio --direct=1 --thread {} ",
        LOAD.replace("--runtime=120", "--runtime=12")
    ))?;
    wait_for_load(&pair)?;
    pair.udrbd.kill();
    pair.kernel.wait_proc(1, &["cs:WFConnection"], Duration::from_secs(60))?;
    pair.udrbd.run_daemon()?;
    pair.udrbd.drbdctl("up r0")?;
    let output = pair.kernel.guest.finish(&load, Duration::from_secs(120))?;
    ensure(output.code == 0, || format!("fio on the kernel's device ended with {}:\n{}", output.code, output.text))?;
    pair.wait_synced()?;
    pair.compare()
}

/// Power cut of the kernel node as Primary: what it acknowledged is there, udrbd goes on, and the kernel comes back as target.
pub fn kernel_killed_and_udrbd_takes_over(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    let data = noise(1, 2 << 20);
    pair.kernel.write(0, 0, &data, 64 << 10)?;
    pair.kernel.guest.begin("dd if=/dev/urandom of=/dev/drbd0 oflag=direct bs=64k seek=128 count=2000 status=none")?;
    wait_for_load(&pair)?;
    pair.kernel.guest.crash();
    pair.udrbd.wait("cstate", "WFConnection", 1)?;
    pair.udrbd.drbdctl("primary r0")?;
    let read = pair.udrbd.read(0, 0, data.len() as u64)?;
    ensure(read == data, || "udrbd lost acknowledged writes of the dead kernel".to_owned())?;
    let written = noise(2, 2 << 20);
    pair.udrbd.write(0, 30 << 20, &written, 64 << 10)?;

    let Pair { lab, udrbd, .. } = pair;
    let kernel = boot_kernel(lab)?;
    kernel.configure(&conf)?;
    kernel.drbdadm("up r0")?;
    let pair = Pair { lab, kernel: &kernel, udrbd, volumes: 1 };
    pair.wait_synced()?;
    pair.assert_holds(0, 30 << 20, &written)?;
    pair.compare()
}
