//! One node of a pair: a kernel in a guest, or udrbd. Both take DRBD's words.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use xtask::lab::drbd::{Conf, Host, KernelNode};
use xtask::lab::{HOST_ADDR, Lab, LabError};

use crate::udrbd_node::UdrbdNode;

/// Size of each backing file: nothing takes long.
pub const DISK_BYTES: u64 = 16 << 20;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Connection state.
    pub cstate: String,
    /// Own role, the peer's.
    pub role: String,
    /// Own disk, the peer's.
    pub dstate: String,
}

/// A node.
pub enum Side<'a> {
    /// The kernel's DRBD; its backing file.
    Kernel(&'a KernelNode, PathBuf),
    /// udrbd; its backing file.
    Udrbd(Box<UdrbdNode>, PathBuf),
}

/// What a node is called in the configuration, and where it is.
pub fn host(kernel: bool, place: usize, lab: &Lab) -> Host {
    let nr = if place == 0 { 1 } else { 2 };
    if kernel {
        return Host::guest(nr, 1);
    }
    // Both can be in one network namespace: each has a port of its own.
    let addr = format!("{HOST_ADDR}:{}", 7790 + usize::from(nr));
    Host { name: format!("u{nr}"), addr, disks: vec![udrbd_image(lab, place).display().to_string()] }
}

/// Backing file of the kernel node at this place.
pub fn kernel_image(lab: &Lab, place: usize) -> PathBuf {
    lab.dir().join(format!("kernel-{place}.img"))
}

/// Backing file of the udrbd node at this place.
pub fn udrbd_image(lab: &Lab, place: usize) -> PathBuf {
    lab.dir().join(format!("udrbd-{place}.img"))
}

impl Side<'_> {
    /// The backing file.
    pub fn image(&self) -> &Path {
        let (Self::Kernel(_, image) | Self::Udrbd(_, image)) = self;
        image
    }

    /// Makes this the node's drbd.conf.
    pub fn configure(&self, conf: &Conf) -> Result<(), LabError> {
        match self {
            Self::Kernel(node, _) => node.configure(conf),
            Self::Udrbd(node, _) => node.configure(conf),
        }
    }

    /// An administrator's command, which must succeed.
    pub fn admin(&self, words: &str) -> Result<String, LabError> {
        match self {
            Self::Kernel(node, _) => node.drbdadm(words),
            Self::Udrbd(node, _) => node.drbdctl(words),
        }
    }

    /// Several, one after the other.
    pub fn admin_all(&self, commands: &[&str]) -> Result<(), LabError> {
        match self {
            Self::Kernel(node, _) => {
                let script: Vec<String> = commands.iter().map(|words| format!("drbdadm {words}")).collect();
                node.guest.sh(&format!("set -e\n{}", script.join("\n"))).map(drop)
            }
            Self::Udrbd(node, _) => commands.iter().try_for_each(|words| node.drbdctl(words).map(drop)),
        }
    }

    /// The node as Primary takes `data` at `offset` bytes.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), LabError> {
        match self {
            Self::Kernel(node, _) => node.write(0, offset, data, 4096),
            Self::Udrbd(node, _) => node.write(0, offset, data, 4096),
        }
    }

    /// The states of both nodes as this one sees them.
    pub fn told(&self) -> Result<Told, LabError> {
        // One command: three would show three moments.
        let text = match self {
            Self::Kernel(node, _) => node.proc()?,
            Self::Udrbd(node, _) => node.drbdctl("proc")?,
        };
        let [cstate, role, dstate] = ["cs:", "ro:", "ds:"].map(|name| {
            text.split_whitespace().find_map(|word| word.strip_prefix(name)).unwrap_or_default().to_owned()
        });
        Ok(Told { cstate, role, dstate })
    }

    /// Generation identifiers: current, bitmap, two of the history, without bit 0.
    pub fn generations(&self) -> Result<[u64; 4], LabError> {
        let text = self.admin("get-gi r0")?;
        let line = text.lines().find(|line| line.contains(':')).unwrap_or_default();
        let mut words = line.trim().split(':').map(|word| u64::from_str_radix(word, 16));
        let mut word = || words.next().and_then(Result::ok).map(|id| id & !1);
        match [word(), word(), word(), word()] {
            [Some(current), Some(bitmap), Some(young), Some(old)] => Ok([current, bitmap, young, old]),
            _ => Err(LabError::new(format!("get-gi says {text:?}"))),
        }
    }

    /// A command of drbdmeta on the backing file, while the node is down.
    pub fn drbdmeta(&self, words: &str) -> Result<(), LabError> {
        match self {
            Self::Kernel(node, _) => {
                node.guest.sh(&format!("drbdmeta --force 0 v08 /dev/ubda internal {words}")).map(drop)
            }
            Self::Udrbd(_, image) => {
                let mut command = Command::new("drbdmeta");
                command.args(["--force", "-", "v08"]).arg(image).arg("internal").args(words.split_whitespace());
                let out = command.stdin(Stdio::null()).output().map_err(|err| LabError::io("run drbdmeta", &err))?;
                let said = String::from_utf8_lossy(&out.stderr);
                if out.status.success() { Ok(()) } else { Err(LabError::new(format!("drbdmeta {words}: {said}"))) }
            }
        }
    }

    /// What was logged so far does not count.
    pub fn forget_log(&self) -> Result<(), LabError> {
        match self {
            Self::Kernel(node, _) => node.guest.sh("dmesg --clear").map(drop),
            Self::Udrbd(node, _) => {
                node.forget_log();
                Ok(())
            }
        }
    }

    /// Rule and result of the first comparison since [`Side::forget_log`], if there was one.
    pub fn verdict(&self) -> Result<Option<(String, i32)>, LabError> {
        let log = match self {
            Self::Kernel(node, _) => node.guest.sh("dmesg")?,
            Self::Udrbd(node, _) => node.log_since(),
        };
        let told = log.lines().find_map(|line| line.split_once("uuid_compare()="));
        Ok(told.and_then(|(_, rest)| {
            let (result, rest) = rest.split_once(" by rule ")?;
            let rule: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Some((rule, result.trim().parse().ok()?))
        }))
    }
}
