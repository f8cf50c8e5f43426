//! Disks that refuse writes and reads under each `on-io-error` policy: a kernel node and udrbd see each other as two kernel nodes do.
//!
//! udrbd's backing file lies on a small file system of its own: where its blocks were given back and the rest was taken by
//! somebody else, a write fails. The kernel's disk fails by DRBD's own fault injection.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use xtask::lab::LabError;
use xtask::lab::drbd::noise;

use super::ensure;
use crate::bench::{Bench, DISK_BYTES, Outcome, Pair};

const SOON: Duration = Duration::from_secs(30);
/// Where the blocks are given back, in MiB.
const HOLE: u64 = 24;

/// A file system in memory, gone when dropped.
struct Small(PathBuf);

impl Small {
    fn new(bench: &Bench) -> Result<Self, LabError> {
        let dir = bench.lab.dir().join("small");
        std::fs::create_dir_all(&dir).map_err(|err| LabError::io("make a mount point", &err))?;
        run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={}", DISK_BYTES + (1 << 20)), "small", &dir.to_string_lossy()],
        )?;
        Ok(Self(dir))
    }

    fn image(&self) -> PathBuf {
        self.0.join("disk.img")
    }

    /// From now on no block of the hole can be written.
    fn fail_writes(&self) -> Result<(), LabError> {
        let image = self.image();
        let hole = format!("{HOLE}M");
        run("fallocate", &["--punch-hole", "--offset", &hole, "--length", "1M", &image.to_string_lossy()])?;
        let fill = || -> std::io::Result<()> {
            let file = File::create(self.0.join("ballast"))?;
            let mut at = 0;
            while file.write_at(&[1; 4096], at)? > 0 {
                at += 4096;
            }
            Ok(())
        };
        match fill() {
            Err(err) if err.kind() == std::io::ErrorKind::StorageFull => Ok(()),
            other => Err(LabError::new(format!("the small file system does not fill up: {other:?}"))),
        }
    }

    fn mend(&self) -> Result<(), LabError> {
        std::fs::remove_file(self.0.join("ballast")).map_err(|err| LabError::io("remove the ballast", &err))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", &self.0.to_string_lossy()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), LabError> {
    let out =
        Command::new(program).args(args).output().map_err(|err| LabError::io(format_args!("run {program}"), &err))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(LabError::new(format!("{program} {args:?}: {}", said.trim()))) }
}

/// Each policy with the disk states that follow for the node with the error, and the peer's view of it.
const POLICIES: [(&str, &str); 3] =
    [("detach", "Diskless"), ("call-local-io-error", "Diskless"), ("pass_on", "Inconsistent")];

/// Both nodes good again, equal, and nothing of `data` lost.
fn recovered(pair: &Pair<'_>, small: Option<&Small>, data: &[u8]) -> Outcome {
    pair.wait_synced()?;
    let image = small.map_or_else(|| Bench::udrbd_image(pair.lab, 0), Small::image);
    let kernel = Bench::kernel_image(pair.lab, 0);
    xtask::lab::wait_until("equal replicas", SOON, || {
        Ok(xtask::lab::drbd::compare_replicas(&kernel, &image).map_err(|err| err.to_string()))
    })?;
    let mut found = vec![0; data.len()];
    File::open(&kernel)?.read_exact_at(&mut found, HOLE << 20)?;
    ensure(found == data, || "what was written is not there".to_owned())
}

fn each_policy_on_udrbd(bench: &mut Bench, primary: bool) -> Outcome {
    for (round, (policy, fate)) in (1..).zip(POLICIES) {
        let small = Small::new(bench)?;
        File::create(small.image())?.set_len(DISK_BYTES)?;
        let mut conf = bench.conf(1);
        conf.hosts[1].disks = vec![small.image().display().to_string()];
        conf.disk.push(format!("on-io-error {policy};"));
        let pair = bench.synced_pair(&conf)?;
        if primary {
            pair.promote_udrbd()?;
        }
        small.fail_writes()?;
        let data = noise(round, 64 << 10);
        // The application sees a success.
        if primary {
            pair.udrbd.write(0, HOLE << 20, &data, 4096)?;
        } else {
            pair.kernel.write(0, HOLE << 20, &data, 4096)?;
        }
        pair.udrbd.wait("dstate", &format!("{fate}/UpToDate"), 1)?;
        pair.kernel.wait_proc(1, &["cs:Connected", &format!("ds:UpToDate/{fate}")], SOON)?;
        if primary {
            let read = pair.udrbd.read(0, HOLE << 20, data.len() as u64)?;
            ensure(read == data, || format!("{policy}: udrbd reads other data than was written"))?;
        }
        small.mend()?;
        if fate == "Diskless" {
            pair.udrbd.drbdctl("attach r0")?;
        } else if primary {
            // Its clients live on the peer's data: the peer must not go, and refuses to.
            pair.udrbd.drbdctl("invalidate r0")?;
        } else {
            pair.kernel.drbdadm("disconnect r0")?;
            pair.kernel.drbdadm("connect r0")?;
        }
        recovered(&pair, Some(&small), &data)?;
        pair.udrbd.drbdctl("down r0")?;
    }
    Ok(())
}

pub fn udrbd_primary_write_error(bench: &mut Bench) -> Outcome {
    each_policy_on_udrbd(bench, true)
}

pub fn udrbd_secondary_write_error(bench: &mut Bench) -> Outcome {
    each_policy_on_udrbd(bench, false)
}

/// Bits of the module parameter `enable_faults`.
const DATA_WRITES: u32 = 1 << 4;
const DATA_READS: u32 = 1 << 5;

fn inject(pair: &Pair<'_>, faults: u32) -> Outcome {
    let dir = "/sys/module/drbd/parameters";
    pair.kernel
        .guest
        .sh(&format!("echo 100 >{dir}/fault_rate; echo 0 >{dir}/fault_devs; echo {faults} >{dir}/enable_faults"))?;
    Ok(())
}

fn each_policy_on_the_kernel(bench: &mut Bench, faults: u32, primary: bool) -> Outcome {
    for (round, (policy, fate)) in (1..).zip(POLICIES) {
        let mut conf = bench.conf(1);
        conf.disk.push(format!("on-io-error {policy};"));
        let pair = bench.synced_pair(&conf)?;
        if pair.kernel.guest.sh("test -w /sys/module/drbd/parameters/enable_faults").is_err() {
            return Err(xtask::harness::Verdict::Skipped("this kernel's DRBD injects no faults".to_owned()));
        }
        let data = noise(round, 64 << 10);
        let offset = HOLE << 20;
        if primary {
            pair.kernel.write(0, offset, &data, 4096)?;
        } else {
            pair.promote_udrbd()?;
        }
        inject(&pair, faults)?;
        let used = if primary {
            pair.kernel.read(0, offset, data.len() as u64).map(|read| read == data)
        } else {
            pair.udrbd.write(0, offset, &data, 4096).map(|()| true)
        };
        inject(&pair, 0)?;
        ensure(used?, || format!("{policy}: the kernel reads other data than was written"))?;
        pair.kernel.wait_proc(1, &["cs:Connected", &format!("ds:{fate}/UpToDate")], SOON)?;
        pair.udrbd.wait("dstate", &format!("UpToDate/{fate}"), 1)?;
        if fate == "Diskless" {
            pair.kernel.drbdadm("attach r0")?;
        } else if primary {
            pair.kernel.drbdadm("invalidate r0")?;
        } else {
            pair.udrbd.drbdctl("disconnect r0")?;
            pair.udrbd.drbdctl("connect r0")?;
        }
        recovered(&pair, None, &data)?;
    }
    Ok(())
}

pub fn kernel_primary_read_error(bench: &mut Bench) -> Outcome {
    each_policy_on_the_kernel(bench, DATA_READS, true)
}

pub fn kernel_secondary_write_error(bench: &mut Bench) -> Outcome {
    each_policy_on_the_kernel(bench, DATA_WRITES, false)
}
