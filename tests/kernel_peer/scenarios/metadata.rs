//! A disk moves between the kernel and udrbd as it is, and both dump its metadata in the same words.

use xtask::harness::Verdict;
use xtask::lab::drbd::{Conf, noise};

use super::ensure;
use crate::bench::{Bench, Outcome};
use crate::udrbd_node::UdrbdNode;

/// udrbd's disk is the kernel's.
fn conf_over_the_same_disk(bench: &Bench) -> Conf {
    let mut conf = bench.conf(1);
    conf.hosts[1].disks = vec![Bench::kernel_image(&bench.lab, 0).display().to_string()];
    conf
}

pub fn kernel_disk_to_udrbd_and_back(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    let from_kernel = noise(1, 2 << 20);
    pair.kernel.write(0, 4 << 20, &from_kernel, 64 << 10)?;
    pair.udrbd.drbdctl("down r0")?;
    // Alone, so that bits are set and an UUID is pushed.
    let alone = noise(2, 1 << 20);
    pair.kernel.write(0, 12 << 20, &alone, 64 << 10)?;
    pair.kernel.drbdadm("down r0")?;
    drop(pair);

    let conf = conf_over_the_same_disk(bench);
    let udrbd = UdrbdNode::start(&bench.lab, &conf)?;
    let before = udrbd.drbdctl("get-gi r0")?;
    udrbd.drbdctl("up r0")?;
    udrbd.drbdctl("primary r0")?;
    ensure(udrbd.read(0, 4 << 20, 2 << 20)? == from_kernel, || {
        "udrbd reads other data than the kernel wrote".to_owned()
    })?;
    ensure(udrbd.read(0, 12 << 20, 1 << 20)? == alone, || {
        "udrbd reads other data than the kernel wrote alone".to_owned()
    })?;
    let from_udrbd = noise(3, 2 << 20);
    udrbd.write(0, 20 << 20, &from_udrbd, 64 << 10)?;
    udrbd.drbdctl("down r0")?;
    let after = udrbd.drbdctl("get-gi r0")?;
    drop(udrbd);

    // The other half of the pair never saw udrbd's writes; the bitmap that went from the kernel to udrbd and back says so.
    let conf = bench.conf(1);
    let kernel = bench.kernel()?;
    kernel.guest.sh("blockdev --flushbufs /dev/ubda")?;
    kernel.configure(&conf)?;
    kernel.drbdadm("up r0")?;
    kernel.drbdadm("primary r0")?;
    for (offset, data) in [(4 << 20, &from_kernel), (12 << 20, &alone), (20 << 20, &from_udrbd)] {
        let read = kernel.read(0, offset, data.len() as u64)?;
        ensure(&read == data, || {
            format!("the kernel reads other data at {offset}; identifiers {before} then {after}")
        })?;
    }
    let oos = xtask::lab::drbd::out_of_sync_kib(&kernel.proc()?);
    ensure(oos >= 3 << 10, || format!("{oos} KiB marked out of sync, should be 3 MiB or more"))?;

    let lab = &bench.lab;
    let udrbd = UdrbdNode::start(lab, &conf)?;
    udrbd.drbdctl("up r0")?;
    udrbd.wait("dstate", "UpToDate/UpToDate", 1)?;
    let (ours, theirs) = (Bench::udrbd_image(lab, 0), Bench::kernel_image(lab, 0));
    xtask::lab::wait_until("equal replicas", std::time::Duration::from_secs(15), || {
        Ok(xtask::lab::drbd::compare_replicas(&ours, &theirs).map_err(|err| err.to_string()))
    })?;
    Ok(())
}

/// What stays of a dump when the comments (date, tool, device) and the flags are gone.
fn facts(dump: &str) -> String {
    let fact = |line: &&str| !line.trim_start().starts_with("flags 0x") && !line.trim_start().starts_with('#');
    let lines = dump.lines().filter(fact).filter(|line| !line.trim().is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

/// drbdmeta in the guest and drbdctl here on the same disk, after the kernel used it and after udrbd did.
pub fn dumps_are_equal(bench: &mut Bench) -> Outcome {
    let conf = bench.conf(1);
    let pair = bench.synced_pair(&conf)?;
    pair.udrbd.drbdctl("down r0")?;
    pair.kernel.write(0, 4 << 20, &noise(1, 2 << 20), 64 << 10)?;
    pair.kernel.drbdadm("down r0")?;
    drop(pair);
    let written_by_kernel = dump_both(bench)?;
    ensure(written_by_kernel.contains("uuid {"), || format!("no identifiers in:\n{written_by_kernel}"))?;

    let conf = conf_over_the_same_disk(bench);
    let udrbd = UdrbdNode::start(&bench.lab, &conf)?;
    udrbd.drbdctl("up r0")?;
    udrbd.drbdctl("primary r0")?;
    udrbd.write(0, 20 << 20, &noise(2, 1 << 20), 64 << 10)?;
    udrbd.drbdctl("down r0")?;
    drop(udrbd);
    let written_by_udrbd = dump_both(bench)?;
    ensure(written_by_udrbd != written_by_kernel, || "udrbd's writes left no trace in the metadata".to_owned())
}

/// Makes the metadata clean with both tools, each on its own copy of the disk (the kernel leaves its metadata marked as in
/// use), and dumps it with both; what they agree on.
fn dump_both(bench: &mut Bench) -> Result<String, Verdict> {
    std::fs::copy(Bench::kernel_image(&bench.lab, 0), Bench::udrbd_image(&bench.lab, 0))?;
    let conf = bench.conf(1);
    let kernel = bench.kernel()?;
    kernel.guest.sh("blockdev --flushbufs /dev/ubda")?;
    kernel.configure(&conf)?;
    kernel.drbdadm("apply-al r0")?;
    let theirs = facts(&kernel.drbdadm("dump-md r0")?);
    let their_gi = kernel.drbdadm("get-gi r0")?;
    let udrbd = UdrbdNode::start(&bench.lab, &conf)?;
    udrbd.drbdctl("apply-al r0")?;
    let ours = facts(&udrbd.drbdctl("dump-md r0")?);
    ensure(theirs == ours, || format!("drbdmeta says\n{theirs}\ndrbdctl says\n{ours}"))?;
    // The flags of a dump are always 0 in drbdmeta 9.22, whatever is on disk; those of get-gi are real.
    let our_gi = udrbd.drbdctl("get-gi r0")?;
    ensure(their_gi.trim() == our_gi.trim(), || format!("drbdmeta says {their_gi}, drbdctl says {our_gi}"))?;
    Ok(ours)
}
