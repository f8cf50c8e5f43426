//! The Debian packages that tests use, and how to get them.

use std::process::{Command, Stdio};

/// Name and what needs it.
const PACKAGES: &[(&str, &str)] = &[
    ("user-mode-linux", "kernel lab: the kernel with DRBD, nbd and device mapper"),
    ("drbd-utils", "kernel lab and differential tests: drbdadm, drbdsetup, drbdmeta"),
    ("iproute2", "kernel lab: the network"),
    ("kmod", "kernel lab: loading modules"),
    ("util-linux", "kernel lab: namespaces; blkdiscard, blockdev"),
    ("e2fsprogs", "file systems on our devices"),
    ("xfsprogs", "file systems on our devices"),
    ("lvm2", "physical volumes on our devices"),
    ("dmsetup", "failing and slow disks"),
    ("fio", "load with verification"),
    ("libnbd-bin", "NBD clients: nbdcopy, nbdinfo, nbdfuse"),
    ("python3-libnbd", "NBD client: nbdsh"),
    ("nbd-client", "the kernel's NBD client"),
    ("nbdkit", "NBD server to compare with"),
    ("qemu-utils", "NBD clients: qemu-img, qemu-io"),
    ("tshark", "the DRBD dissector"),
];

/// What cluster file systems need besides; the packages bring services, so only who asks for those tests gets them.
const CLUSTER: &[(&str, &str)] = &[
    ("ocfs2-tools", "cluster file systems: OCFS2"),
    ("gfs2-utils", "cluster file systems: GFS2"),
    ("corosync", "cluster file systems: membership for GFS2's locks"),
    ("dlm-controld", "cluster file systems: GFS2's locks"),
];

/// Packages of `packages` that are not installed, of those that `wanted` names; all of these where there is no dpkg.
fn missing(packages: &[(&'static str, &str)], wanted: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let installed = |name: &str| {
        let query = Command::new("dpkg-query").args(["-W", "-f", "${Status}", name]).stderr(Stdio::null()).output();
        query.is_ok_and(|out| out.stdout.ends_with(b"ok installed"))
    };
    packages.iter().map(|(name, _)| *name).filter(|name| wanted(name) && !installed(name)).collect()
}

/// Installs what is missing where that is possible (root, apt-get); the error is a hint in one line. Tests that need a tool
/// which is not there skip themselves.
pub fn ensure() -> Result<(), String> {
    ensure_those(|_| true)
}

/// The same for those packages that `wanted` names.
pub fn ensure_those(wanted: impl Fn(&str) -> bool) -> Result<(), String> {
    install(&missing(PACKAGES, wanted))
}

/// The same for what cluster file systems need besides.
pub fn ensure_cluster() -> Result<(), String> {
    install(&missing(CLUSTER, |_| true))
}

fn install(missing: &[&str]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        return Err(format!("some tests will be skipped; as root: {by_hand}"));
    }
    let apt = |arguments: &[&str]| {
        let status = Command::new("apt-get")
            .args(["-o", "DPkg::Lock::Timeout=120", "-q", "-y"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    // Without a network the lists may still be good enough.
    apt(&["update"]);
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(missing);
    if apt(&install) {
        Ok(())
    } else {
        Err(format!("cannot install test tools, so some tests will be skipped: {by_hand}"))
    }
}
