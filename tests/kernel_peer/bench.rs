//! What the scenarios share: a lab, a kernel node that stays booted, and the two sets of disks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::harness::Verdict;
use xtask::lab::drbd::{Conf, Host, KernelNode, compare_replicas, data_size, noise};
use xtask::lab::{GuestOptions, HOST_ADDR, Lab, LabError, check_available, wait_until};

use crate::udrbd_node::UdrbdNode;

/// Size of each backing file. Small, so that a first sync is quick; several activity-log extents and bitmap words.
pub const DISK_BYTES: u64 = 48 << 20;
/// How many volumes there is a disk for.
const VOLUMES_MAX: u8 = 2;
/// The kernel's node number.
const NODE: u8 = 1;

pub type Outcome = Result<(), Verdict>;

/// Shared between the scenarios.
pub struct Bench {
    // Dropped in this order.
    kernel: Option<KernelNode>,
    pub lab: Lab,
    /// Why scenarios with udrbd cannot run, if they cannot.
    udrbd_missing: Option<String>,
}

/// Both nodes, configured and connected.
pub struct Pair<'a> {
    pub lab: &'a Lab,
    pub kernel: &'a KernelNode,
    pub udrbd: UdrbdNode,
    pub volumes: usize,
}

impl Bench {
    pub fn new() -> Result<Self, String> {
        check_available().map_err(|why| why.to_string())?;
        let lab = Lab::new(2).map_err(|why| why.to_string())?;
        Ok(Self { kernel: None, lab, udrbd_missing: UdrbdNode::missing() })
    }

    /// Backing file of the kernel's volume `nr`.
    pub fn kernel_image(lab: &Lab, nr: usize) -> PathBuf {
        lab.dir().join(format!("kernel-{nr}.img"))
    }

    /// Backing file of udrbd's volume `nr`.
    pub fn udrbd_image(lab: &Lab, nr: usize) -> PathBuf {
        lab.dir().join(format!("udrbd-{nr}.img"))
    }

    /// Whether the scenario can run at all; to be asked first.
    pub fn need_udrbd(&self) -> Outcome {
        match &self.udrbd_missing {
            Some(reason) => Err(Verdict::Skipped(reason.clone())),
            None => Ok(()),
        }
    }

    /// The kernel node with nothing configured, booted if it does not run.
    pub fn kernel(&mut self) -> Result<&KernelNode, Verdict> {
        let reusable = self.kernel.take().filter(|node| node.guest.is_alive() && node.down().is_ok());
        let node = match reusable {
            Some(node) => node,
            None => boot_kernel(&self.lab)?,
        };
        Ok(self.kernel.insert(node))
    }

    /// Configuration for one kernel and one udrbd node.
    pub fn conf(&self, volumes: u8) -> Conf {
        let disks =
            (0..usize::from(volumes)).map(|nr| Self::udrbd_image(&self.lab, nr).display().to_string()).collect();
        let ours = Host { name: UdrbdNode::NAME.to_owned(), addr: HOST_ADDR.to_owned(), disks };
        Conf::new([Host::guest(NODE, volumes), ours])
    }

    /// Blank disks on both sides, fresh metadata, both up and connected, both Secondary and Inconsistent.
    pub fn pair(&mut self, conf: &Conf) -> Result<Pair<'_>, Verdict> {
        self.need_udrbd()?;
        let volumes = conf.hosts[0].disks.len();
        self.kernel()?;
        blank_images(&self.lab)?;
        let kernel = self.kernel.as_ref().ok_or_else(|| LabError::new("no kernel node"))?;
        kernel.guest.sh("blockdev --flushbufs /dev/ubda; blockdev --flushbufs /dev/ubdb")?;
        kernel.configure(conf)?;
        kernel.guest.sh("dmesg --clear")?;
        kernel.create_and_up()?;
        let udrbd = UdrbdNode::start(&self.lab, conf)?;
        udrbd.drbdctl("create-md --force r0")?;
        udrbd.drbdctl("up r0")?;
        let pair = Pair { lab: &self.lab, kernel, udrbd, volumes };
        pair.kernel.wait_proc(volumes, &["cs:Connected"], Duration::from_secs(60))?;
        Ok(pair)
    }

    /// [`Bench::pair`] after a first sync from the kernel, the kernel Primary.
    pub fn synced_pair(&mut self, conf: &Conf) -> Result<Pair<'_>, Verdict> {
        let pair = self.pair(conf)?;
        pair.kernel.drbdadm("primary --force r0")?;
        pair.wait_synced()?;
        Ok(pair)
    }

    /// Says what is worth reading after a failure, and makes sure that the next scenario starts from a fresh boot.
    pub fn after_failure(&mut self) -> String {
        let mut text = String::from("---- kernel node\n");
        if let Some(node) = self.kernel.take() {
            text.push_str(&node.report());
        }
        text.push_str("\n---- udrbd\n");
        text.push_str(&UdrbdNode::log_tail(&self.lab));
        text
    }
}

/// Boots the kernel node over the images as they are.
pub fn boot_kernel(lab: &Lab) -> Result<KernelNode, LabError> {
    let disks: Vec<PathBuf> = (0..usize::from(VOLUMES_MAX)).map(|nr| Bench::kernel_image(lab, nr)).collect();
    for disk in disks.iter().filter(|disk| !disk.exists()) {
        blank(disk)?;
    }
    KernelNode::new(lab, lab.boot(NODE, &GuestOptions::with_disks(disks))?)
}

fn blank_images(lab: &Lab) -> Result<(), LabError> {
    for nr in 0..usize::from(VOLUMES_MAX) {
        blank(&Bench::kernel_image(lab, nr))?;
        blank(&Bench::udrbd_image(lab, nr))?;
    }
    Ok(())
}

fn blank(path: &Path) -> Result<(), LabError> {
    let make = || {
        let file = std::fs::File::options().write(true).create(true).truncate(true).open(path)?;
        file.set_len(DISK_BYTES)
    };
    make().map_err(|err| LabError::io(format_args!("make {}", path.display()), &err))
}

impl Pair<'_> {
    /// Waits until both sides say that both are up to date.
    pub fn wait_synced(&self) -> Outcome {
        self.kernel.wait_synced(self.volumes)?;
        self.udrbd.wait("dstate", "UpToDate/UpToDate", self.volumes)?;
        self.udrbd.wait("cstate", "Connected", self.volumes)?;
        Ok(())
    }

    /// Waits until both sides noticed that they are alone.
    pub fn wait_apart(&self) -> Outcome {
        self.kernel.wait_proc(self.volumes, &["cs:WFConnection"], Duration::from_secs(60))?;
        self.udrbd.wait("cstate", "WFConnection", self.volumes)?;
        Ok(())
    }

    /// Makes the kernel Secondary and udrbd Primary.
    pub fn promote_udrbd(&self) -> Outcome {
        self.kernel.drbdadm("secondary r0")?;
        self.udrbd.drbdctl("primary r0")?;
        Ok(())
    }

    /// Makes udrbd Secondary and the kernel Primary.
    pub fn promote_kernel(&self) -> Outcome {
        self.udrbd.drbdctl("secondary r0")?;
        self.kernel.drbdadm("primary r0")?;
        Ok(())
    }

    /// Compares the data areas of all volumes byte for byte. Under protocols A and B the last writes may still be on their
    /// way to the other disk, so equality is waited for.
    pub fn compare(&self) -> Outcome {
        for nr in 0..self.volumes {
            let (kernel, udrbd) = (Bench::kernel_image(self.lab, nr), Bench::udrbd_image(self.lab, nr));
            wait_until("equal replicas", Duration::from_secs(15), || {
                Ok(compare_replicas(&kernel, &udrbd).map_err(|err| err.to_string()))
            })?;
        }
        Ok(())
    }

    /// Asserts that volume `nr` holds `data` at `offset`, on both backing files.
    pub fn assert_holds(&self, nr: usize, offset: u64, data: &[u8]) -> Outcome {
        for image in [Bench::kernel_image(self.lab, nr), Bench::udrbd_image(self.lab, nr)] {
            wait_until("written data on a backing file", Duration::from_secs(15), || {
                let mut found = vec![0; data.len()];
                let read = std::fs::File::open(&image)
                    .and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, offset));
                read.map_err(|err| LabError::io(format_args!("read {}", image.display()), &err))?;
                Ok(if found == data { Ok(()) } else { Err(format!("other data in {}", image.display())) })
            })?;
        }
        Ok(())
    }

    /// Size of the replicated device.
    pub fn device_size(&self) -> Result<u64, Verdict> {
        Ok(data_size(&Bench::kernel_image(self.lab, 0))?)
    }

    /// Bits that the kernel's last resync started with, from its log.
    pub fn last_resync_bits(&self) -> Result<u64, Verdict> {
        let log = self.kernel.guest.sh("dmesg")?;
        let line = log.lines().rev().find(|line| line.contains("Began resync as"));
        let bits = line.and_then(|line| line.rsplit_once('[')?.1.split_once(" bits set")?.0.parse().ok());
        bits.ok_or_else(|| Verdict::Failed(format!("no resync in the kernel's log:\n{log}")))
    }
}

/// A mix of request sizes over 3 MiB of volume `nr`, written by `write(offset, data, request bytes)`; returns what was written
/// where.
pub fn write_mix(
    seed: u64,
    mut write: impl FnMut(u64, &[u8], u32) -> Result<(), LabError>,
) -> Result<Vec<(u64, Vec<u8>)>, Verdict> {
    let mut written = Vec::new();
    for (index, (request, len)) in
        [(512, 8 << 10), (4096, 64 << 10), (64 << 10, 1 << 20), (1 << 20, 2 << 20)].into_iter().enumerate()
    {
        let offset = (seed % 4 + 1) * (8 << 20) + index as u64 * (2 << 20);
        let data = noise(seed * 16 + index as u64, len);
        write(offset, &data, request)?;
        written.push((offset, data));
    }
    Ok(written)
}
