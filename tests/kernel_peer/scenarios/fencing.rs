//! I/O that waits, and nodes that outdate each other: suspend-io, on-no-data-accessible, and disconnects under a fencing policy.

use std::time::Duration;

use xtask::harness::Verdict;
use xtask::lab::Cable;
use xtask::lab::drbd::{Conf, noise};
use xtask::lab::wait_until;

use super::ensure;
use crate::bench::{Bench, Outcome, Pair};

/// Number of the cable between the two sides.
const KERNEL_CABLE: u8 = 1;
const SOON: Duration = Duration::from_secs(60);

fn policy(bench: &Bench, fencing: &str) -> Conf {
    let mut conf = bench.conf(1);
    conf.disk.push(format!("fencing {fencing};"));
    conf
}

/// Waits until udrbd's status has this word.
fn wait_status(pair: &Pair<'_>, word: &str) -> Outcome {
    wait_until(&format!("udrbd: {word}"), SOON, || {
        let text = pair.udrbd.drbdctl("status --verbose r0")?;
        Ok(if text.contains(word) { Ok(()) } else { Err(text) })
    })?;
    Ok(())
}

pub fn suspended_by_the_administrator(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    pair.udrbd.drbdctl("suspend-io r0")?;
    pair.udrbd.drbdctl("suspend-io r0")?;
    wait_status(&pair, "suspended:user")?;
    let proc = pair.udrbd.drbdctl("proc")?;
    ensure(proc.contains(" C s---"), || format!("no flag for suspended I/O:\n{proc}"))?;
    let data = noise(5, 1 << 20);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| pair.udrbd.write(0, 8 << 20, &data, 64 << 10));
        // A whole resync meanwhile.
        pair.udrbd.drbdctl("invalidate-remote r0")?;
        pair.wait_synced()?;
        ensure(!write.is_finished(), || "a write ended while I/O was suspended".to_owned())?;
        pair.udrbd.drbdctl("resume-io r0")?;
        pair.udrbd.drbdctl("resume-io r0")?;
        write.join().map_err(|_panic| Verdict::Failed("the writer panicked".to_owned()))??;
        Ok::<(), Verdict>(())
    })?;
    pair.assert_holds(0, 8 << 20, &data)?;
    pair.compare()
}

pub fn a_diskless_udrbd_primary_waits_for_the_kernel(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.promote_udrbd()?;
    pair.udrbd.drbdctl("resource-options --on-no-data-accessible=suspend-io r0")?;
    pair.udrbd.drbdctl("detach r0")?;
    pair.udrbd.wait("dstate", "Diskless/UpToDate", 1)?;
    let job = "--rw=randrw --bsrange=4k-64k --iodepth=8 --size=12M --verify=crc32c --verify_fatal=1 --do_verify=1 \
               --loops=4 --serialize_overlap=1";
    let mut load = pair.udrbd.fio(job)?;
    pair.lab.cable(KERNEL_CABLE, Cable::Cut)?;
    wait_status(&pair, "suspended:no-data")?;
    load.assert_running()?;
    pair.lab.cable(KERNEL_CABLE, Cable::Plugged)?;
    wait_status(&pair, "suspended:no ")?;
    load.finish()?;
    pair.udrbd.drbdctl("attach r0")?;
    pair.wait_synced()?;
    pair.compare()
}

/// Under a fencing policy whoever disconnects leaves the Secondary outdated, without any helper.
pub fn the_secondary_is_outdated_by_a_disconnect(bench: &mut Bench) -> Outcome {
    let conf = policy(bench, "resource-only");
    let pair = bench.synced_pair(&conf)?;
    for kernel_goes in [false, true] {
        for kernel_is_primary in [true, false] {
            if kernel_is_primary {
                pair.promote_kernel()?
            } else {
                pair.promote_udrbd()?
            }
            if kernel_goes {
                pair.kernel.drbdadm("disconnect r0")?;
            } else {
                pair.udrbd.drbdctl("disconnect r0")?;
            }
            let (kernel, udrbd) = if kernel_is_primary {
                ("ds:UpToDate/Outdated", "Outdated/DUnknown")
            } else {
                ("ds:Outdated/DUnknown", "UpToDate/Outdated")
            };
            pair.kernel.wait_proc(1, &[kernel], SOON)?;
            pair.udrbd.wait("dstate", udrbd, 1)?;
            if kernel_goes {
                pair.kernel.drbdadm("connect r0")?;
            } else {
                pair.udrbd.drbdctl("connect r0")?;
            }
            pair.wait_synced()?;
        }
    }
    pair.compare()
}
