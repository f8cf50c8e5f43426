//! Does the lab work on this machine? Two kernel nodes: first sync, writes, a cut cable, resync, a crash, verify, and equal
//! replicas at the end of each.

use std::time::Duration;

use super::drbd::{Conf, Host, KernelNode, compare_replicas, noise};
use super::error::{LabError, Result};
use super::{Cable, GuestOptions, Kernel, Lab, wait_until};

/// Size of the nodes' disks.
const DISK_BYTES: u64 = 64 << 20;
const MIB: usize = 1 << 20;

/// Runs all of it with `kernel`; `say` gets a line for every step that held.
pub fn run(kernel: &Kernel, say: &mut dyn FnMut(&str)) -> Result<()> {
    let lab = Lab::new(2)?;
    let disks = [lab.blank_image("d1", DISK_BYTES)?, lab.blank_image("d2", DISK_BYTES)?];
    let boot = |nr: u8| {
        let disk = disks[usize::from(nr) - 1].clone();
        let options = GuestOptions { kernel: kernel.clone(), ..GuestOptions::with_disks([disk]) };
        KernelNode::new(&lab, lab.boot(nr, &options)?)
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| boot(2));
        (boot(1), other.join())
    });
    let one = one?;
    let two = two.map_err(|_panic| LabError::new("the thread that booted node 2 panicked"))??;
    say(&format!("two guests up: {}", one.guest.sh("uname -r; head -1 /proc/drbd")?.trim().replace('\n', ", ")));

    let conf = Conf::new([Host::guest(1, 1), Host::guest(2, 1)]);
    for node in [&one, &two] {
        node.configure(&conf)?;
        node.create_and_up()?;
    }
    one.wait_proc(1, &["cs:Connected"], Duration::from_secs(60))?;
    one.drbdadm("primary --force r0")?;
    one.wait_synced(1)?;
    expect("role", &one.query("role")?, "Primary/Secondary")?;
    expect("dstate", &one.query("dstate")?, "UpToDate/UpToDate")?;
    let equal = |step: &str, say: &mut dyn FnMut(&str)| {
        let size = compare_replicas(&disks[0], &disks[1])?;
        say(&format!("{step}: {size} bytes equal"));
        Ok(())
    };
    equal("first sync", say)?;

    let data = noise(1, 4 * MIB);
    one.write(0, 0, &data, 64 << 10)?;
    if one.read(0, 0, 4 << 20)? != data {
        return Err(LabError::new("a read does not return what was written"));
    }
    equal("writes", say)?;

    lab.cable(2, Cable::Cut)?;
    one.wait_proc(1, &["cs:WFConnection"], Duration::from_secs(60))?;
    one.write(0, 8 << 20, &noise(2, 4 * MIB), 64 << 10)?;
    if compare_replicas(&disks[0], &disks[1]).is_ok() {
        return Err(LabError::new("replicas are equal although the cable is cut: the comparison is blind"));
    }
    lab.cable(2, Cable::Plugged)?;
    one.wait_synced(1)?;
    equal("cut cable and resync", say)?;

    two.guest.crash();
    one.wait_proc(1, &["cs:WFConnection"], Duration::from_secs(60))?;
    one.write(0, 16 << 20, &noise(3, 4 * MIB), 64 << 10)?;
    drop(two);
    let two = boot(2)?;
    two.configure(&conf)?;
    two.drbdadm("up r0")?;
    one.wait_synced(1)?;
    equal("power cut of the Secondary and resync", say)?;

    let found = one.verify(1, || one.drbdadm("verify r0").map(drop))?;
    expect("out-of-sync KiB found by verify", &found.to_string(), "0")?;
    say("verify: nothing out of sync");
    for node in [&one, &two] {
        node.guest.sh("cat /proc/drbd")?;
    }
    one.drbdadm("secondary r0")?;
    wait_until("both nodes Secondary", Duration::from_secs(20), || {
        let role = two.query("role")?;
        Ok(if role == "Secondary/Secondary" { Ok(()) } else { Err(role) })
    })?;
    two.guest.power_off()?;
    one.guest.power_off()?;
    equal("power off", say)
}

fn expect(what: &str, is: &str, should: &str) -> Result<()> {
    if is == should { Ok(()) } else { Err(LabError::new(format!("{what} is {is}, should be {should}"))) }
}
