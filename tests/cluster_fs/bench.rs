//! Two guests without DRBD, two udrbd nodes on the host side that are both Primary, and a device in each guest.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use xtask::harness::Verdict;
use xtask::lab::drbd::{Conf, Host, compare_replicas};
use xtask::lab::{Guest, GuestOptions, HOST_ADDR, Lab, LabError, check_available, wait_until};

use crate::udrbd_node::UdrbdNode;

pub type Outcome = Result<(), Verdict>;

/// Size of each backing file: two journals of 8 MiB and some files.
const DISK_BYTES: u64 = 256 << 20;
/// The device in the guests.
pub const DEVICE: &str = "/dev/nbd0";
/// Our host names; guest N is served by node N.
const NAMES: [&str; 2] = ["u1", "u2"];
/// How much both guests write side by side, each to files of its own and to one that they share.
const FILES: u32 = 40;

/// The lab with its guests, which stay booted.
pub struct Bench {
    // Dropped in this order.
    guests: [Guest; 2],
    lab: Lab,
}

/// Both nodes Primary, and the device there in both guests.
pub struct Cluster<'a> {
    guests: &'a [Guest; 2],
    lab: &'a Lab,
    nodes: [UdrbdNode; 2],
}

impl Bench {
    pub fn new() -> Result<Self, String> {
        if std::env::var_os("UDRBD_CLUSTER_FS").is_none() {
            return Err(String::from("played by `cargo xtask cluster-fs` only"));
        }
        check_available().map_err(|why| why.to_string())?;
        if let Some(reason) = UdrbdNode::missing() {
            return Err(reason);
        }
        let make = || -> Result<Self, LabError> {
            let lab = Lab::new(2)?;
            let boot = |nr: u8| lab.boot(nr, &GuestOptions::with_disks([]));
            let (one, two) = std::thread::scope(|scope| {
                let other = scope.spawn(|| boot(2));
                (boot(1), other.join())
            });
            let two = two.map_err(|_panic| LabError::new("the thread that booted node 2 panicked"))?;
            Ok(Self { guests: [one?, two?], lab })
        };
        make().map_err(|why| why.to_string())
    }

    /// What is worth reading after a failure.
    pub fn after_failure(&mut self) -> String {
        let mut text = String::new();
        for guest in &self.guests {
            let log = guest.sh("dmesg | tail -40").unwrap_or_default();
            let _ = write!(text, "---- n{}\n{}\n{log}", guest.nr(), guest.console());
        }
        for name in NAMES {
            let _ = write!(text, "---- {name}\n{}\n", UdrbdNode::log_tail_of(&self.lab, name));
        }
        text
    }

    /// Skips unless the host has these programs: the guests see its files.
    pub fn need(&self, programs: &[&str]) -> Outcome {
        for program in programs {
            let there = ["/sbin", "/usr/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
            if !there {
                return Err(Verdict::Skipped(format!("{program} is missing (cargo xtask cluster-fs installs it)")));
            }
        }
        Ok(())
    }

    /// Blank disks, a skipped first sync, both nodes Primary, and their devices in the guests.
    pub fn cluster(&mut self) -> Result<Cluster<'_>, Verdict> {
        let (lab, guests) = (&self.lab, &self.guests);
        let host = |nr: usize| -> Result<Host, LabError> {
            let disk = lab.blank_image(&format!("udrbd-{nr}.img"), DISK_BYTES)?;
            // Both are in one network namespace: each has ports of its own.
            let addr = format!("{HOST_ADDR}:{}", 7791 + nr);
            Ok(Host { name: NAMES[nr].to_owned(), addr, disks: vec![disk.display().to_string()] })
        };
        let mut conf = Conf::new([host(0)?, host(1)?]);
        conf.net.push(String::from("allow-two-primaries yes;"));
        let start = |nr: usize| {
            let listen = format!("{HOST_ADDR}:{}", nbd_port(nr));
            UdrbdNode::start_with(lab, NAMES[nr], &conf, &["--nbd-listen", &listen, "--nbd-allow", "10.99.0.0/24"])
        };
        let nodes = [start(0)?, start(1)?];
        for node in &nodes {
            node.drbdctl("create-md --force r0")?;
            node.drbdctl("up r0")?;
        }
        for node in &nodes {
            node.wait("cstate", "Connected", 1)?;
        }
        nodes[0].drbdctl("new-current-uuid --clear-bitmap r0/0")?;
        for node in &nodes {
            node.wait("dstate", "UpToDate/UpToDate", 1)?;
            node.drbdctl("primary r0")?;
        }
        let cluster = Cluster { guests, lab, nodes };
        for nr in 0..2 {
            let port = nbd_port(nr);
            cluster.guest(nr).sh(&format!(
                "modprobe -q nbd nbds_max=2 || true\nnbd-client {HOST_ADDR} {port} {DEVICE} -N r0 -b 4096 >/dev/null"
            ))?;
        }
        Ok(cluster)
    }
}

fn nbd_port(nr: usize) -> usize {
    10_811 + nr
}

impl Drop for Cluster<'_> {
    /// A case that failed leaves a file system and devices behind, which the next one could not use.
    fn drop(&mut self) {
        let busy =
            format!("for m in $(grep ^{DEVICE} /proc/mounts | cut -d' ' -f2); do umount -f $m || umount -l $m; done");
        // What cannot be undone here the next case will say.
        let _ = self.both(&busy, Duration::from_secs(30)).and_then(|()| self.part());
    }
}

impl Cluster<'_> {
    pub fn guest(&self, nr: usize) -> &Guest {
        &self.guests[nr]
    }

    /// The same script in both guests at the same time, which must succeed in both.
    pub fn both(&self, script: &str, limit: Duration) -> Outcome {
        self.each([script, script], limit)
    }

    /// A script for each guest, at the same time.
    pub fn each(&self, scripts: [&str; 2], limit: Duration) -> Outcome {
        let begun = [self.guests[0].begin(scripts[0])?, self.guests[1].begin(scripts[1])?];
        for (nr, id) in begun.iter().enumerate() {
            let output = self.guests[nr].finish(id, limit)?;
            if output.code != 0 {
                let text = format!("node {}: `{}` ended with {}:\n{}", nr + 1, scripts[nr], output.code, output.text);
                return Err(Verdict::Failed(text));
            }
        }
        Ok(())
    }

    /// What the file system at `dir`, mounted in both guests, must be able to do.
    pub fn use_by_both(&self, dir: &str) -> Outcome {
        let limit = Duration::from_secs(120);
        let [one, two] = [self.guest(0), self.guest(1)];
        // Written here, read there, both ways.
        for (writer, reader, name) in [(one, two, "first"), (two, one, "second")] {
            writer.sh(&format!("head -c 6000000 /dev/urandom >{dir}/{name} && sync"))?;
            let sums = [writer, reader].map(|guest| guest.sh(&format!("sha256sum <{dir}/{name}")));
            let [there, here] = sums;
            if there? != here? {
                return Err(Verdict::Failed(format!("{dir}/{name} reads differently on the other node")));
            }
        }
        // Both at the same time: files of their own in one directory, and lines of one file, each at its place, so that both
        // write to the same blocks. (Not at the end of the file: OCFS2 takes the end that its own node knows, also on one disk.)
        let script = |nr: u32| {
            format!(
                "set -e\nmkdir -p {dir}/both\nfor i in $(seq {FILES}); do\n\
                 head -c 30000 /dev/urandom >{dir}/both/{nr}-$i\n\
                 printf '%15s\\n' {nr}-$i |\n\
                 dd of={dir}/lines bs=16 seek=$((2 * i + {nr} - 3)) conv=notrunc status=none\ndone\nsync"
            )
        };
        self.each([&script(1), &script(2)], limit)?;
        for (nr, guest) in [one, two].into_iter().enumerate() {
            let count = |what: &str| guest.sh(what).map(|text| text.trim().to_owned());
            let files = count(&format!("ls {dir}/both | wc -l"))?;
            let lines = count(&format!("sort -u {dir}/lines | wc -l"))?;
            let want = (2 * FILES).to_string();
            if files != want || lines != want {
                return Err(Verdict::Failed(format!(
                    "node {}: {files} files and {lines} lines, should be {want}",
                    nr + 1
                )));
            }
        }
        let sums = [one, two].map(|guest| guest.sh(&format!("cat {dir}/both/* {dir}/lines | sha256sum")));
        let [here, there] = sums;
        if here? != there? {
            return Err(Verdict::Failed(String::from("the nodes read different contents after both had written")));
        }
        Ok(())
    }

    /// Takes the devices away, also those of a case that failed.
    fn part(&self) -> Outcome {
        self.both(&format!("nbd-client -d {DEVICE} >/dev/null"), Duration::from_secs(60))
    }

    /// Takes the devices away, ends both nodes in good order, and compares their disks.
    pub fn finish(self) -> Outcome {
        self.part()?;
        for node in &self.nodes {
            // The guests' sessions end a moment after their devices.
            wait_until("Secondary", Duration::from_secs(30), || {
                Ok(node.drbdctl("secondary r0").map(drop).map_err(|err| err.to_string()))
            })?;
            node.wait("cstate", "Connected", 1)?;
            node.wait("dstate", "UpToDate/UpToDate", 1)?;
        }
        for node in &self.nodes {
            node.drbdctl("down r0")?;
        }
        let image = |nr: usize| self.lab.dir().join(format!("udrbd-{nr}.img"));
        compare_replicas(&image(0), &image(1))?;
        Ok(())
    }
}
