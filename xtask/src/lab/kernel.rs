//! Which kernels there are to boot, and whether a lab can run here at all.

use std::path::{Path, PathBuf};

use super::error::{LabError, Result};

/// Where Debian's package user-mode-linux puts its kernel.
const DEBIAN_KERNEL: &str = "/usr/bin/linux.uml";

/// Environment variable that names a newer user-mode kernel (with ublk).
pub const KERNEL_VARIABLE: &str = "UDRBD_LAB_KERNEL";

/// A user-mode Linux kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel(PathBuf);

impl Kernel {
    /// Debian's (6.1): DRBD, nbd and device mapper as modules.
    pub fn debian() -> Self {
        Self(PathBuf::from(DEBIAN_KERNEL))
    }

    /// The one that `UDRBD_LAB_KERNEL` names, if it names one.
    pub fn from_environment() -> Option<Self> {
        let path = PathBuf::from(std::env::var_os(KERNEL_VARIABLE)?);
        path.is_file().then_some(Self(path))
    }

    /// A kernel at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The executable.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Whether a lab can run here; the error is the reason why not, in one line.
pub fn check_available() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::new("the kernel lab needs root"));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(LabError::new("the kernel lab needs /dev/net/tun"));
    }
    if !Path::new(DEBIAN_KERNEL).exists() {
        return Err(LabError::new(format!("the kernel lab needs {DEBIAN_KERNEL} (package user-mode-linux)")));
    }
    let unshare = std::process::Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child=SIGKILL", "true"])
        .output()
        .map_err(|err| LabError::io("run unshare (package util-linux)", &err))?;
    if !unshare.status.success() {
        let said = String::from_utf8_lossy(&unshare.stderr);
        return Err(LabError::new(format!("the kernel lab needs network and process namespaces: {}", said.trim())));
    }
    Ok(())
}
