//! The kernel lab: real Linux kernels, booted in seconds as ordinary processes (user-mode Linux), to test against.
//!
//! Owns: a temporary directory, a network namespace and the guests in it. The host side of the network is 10.99.0.254, node
//! N is 10.99.0.N and calls itself `nN`. A guest sees the host's files read-only below an overlay in its memory, a directory
//! shared with the host at `/lab`, and disk images as `/dev/ubda`, `/dev/ubdb`, ...
//! Invariants: nothing outlives the [`Lab`], also when the test that owns it panics or is killed; labs never collide, for
//! nothing of theirs has a name on the machine.

pub mod drbd;
mod error;
mod guest;
mod kernel;
mod leash;
mod net;
pub mod selftest;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub use error::{LabError, Result};
pub use guest::{Guest, GuestOptions, Output};
pub use kernel::{KERNEL_VARIABLE, Kernel, check_available};
pub use leash::{Leash, Scope, Spec};
pub use net::{Cable, HOST_ADDR, node_addr};

use net::Net;

/// A lab. Drop it after its guests.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: the namespace's holder before the directory that it would otherwise remove.
    net: Net,
    dir: tempfile::TempDir,
    share: PathBuf,
}

impl Lab {
    /// Makes a lab with room for nodes 1 to `nodes`.
    pub fn new(nodes: u8) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("udrbd-lab-")
            .tempdir()
            .map_err(|err| LabError::io("make a temporary directory", &err))?;
        let share = dir.path().join("share");
        std::fs::create_dir(&share).map_err(|err| LabError::io("make the shared directory", &err))?;
        let net = Net::new(nodes, dir.path())?;
        Ok(Self { net, dir, share })
    }

    /// The lab's directory, removed with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory that guests see at `/lab`.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// A new sparse disk image of `size` bytes, or an old one made new: all zeroes.
    pub fn blank_image(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|err| LabError::io(format_args!("create {}", path.display()), &err))?;
        file.set_len(size).map_err(|err| LabError::io(format_args!("size {}", path.display()), &err))?;
        Ok(path)
    }

    /// Boots node `nr`.
    pub fn boot(&self, nr: u8, options: &GuestOptions) -> Result<Guest> {
        Guest::boot(nr, &self.dir.path().join(format!("n{nr}")), &self.share, self.net.path(), options)
    }

    /// A command on the host side of the network.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.net.command(program)
    }

    /// The network namespace, for [`Spec::netns`].
    pub fn netns(&self) -> &Path {
        self.net.path()
    }

    /// Plugs or cuts the cable of node `nr`.
    pub fn cable(&self, nr: u8, cable: Cable) -> Result<()> {
        self.net.cable(nr, cable)
    }
}

/// Asks `probe` until it answers something, for at most `limit`; the error says what was waited for and, from the probe,
/// what was there instead.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe()? {
            Ok(value) => return Ok(value),
            Err(instead) if Instant::now() > deadline => {
                return Err(LabError::new(format!("{what}: not within {} s; there is:\n{instead}", limit.as_secs())));
            }
            // A condition with a deadline, asked at a pace that leaves the guest its processor.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
