//! The lab's network: a namespace without a name, a bridge with the host side's address, one tap per node.
//!
//! Owns: the process that holds the namespace open. Nothing is named on the machine, so labs cannot collide, and the
//! kernel removes bridge and taps with the namespace when the last process in it is gone.
//! A cut link is a tap taken off the bridge: the guest notices nothing but silence, and a user-mode kernel never uses a
//! tap again that was once set down.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::error::{LabError, Result};
use super::leash::{Leash, Scope, Spec};

/// The host side's address, on the bridge.
pub const HOST_ADDR: &str = "10.99.0.254";

/// Node `nr`'s address.
pub fn node_addr(nr: u8) -> String {
    format!("10.99.0.{nr}")
}

/// A node's cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Packets pass.
    Plugged,
    /// Nothing passes, and nobody is told.
    Cut,
}

/// The namespace; gone when dropped and no guest is left in it.
#[derive(Debug)]
pub struct Net {
    holder: Leash,
    path: PathBuf,
}

impl Net {
    /// Makes the namespace with taps for nodes 1 to `nodes`. `dir` is the lab's directory: if this process is killed the
    /// holder removes it.
    pub fn new(nodes: u8, dir: &Path) -> Result<Self> {
        let mut script = String::from(
            "set -e\n\
             ip link set lo up\n\
             ip link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             ip link set br0 up\n",
        );
        script.push_str(&format!("ip addr add {HOST_ADDR}/24 dev br0\n"));
        for nr in 1..=nodes {
            script.push_str(&format!(
                "ip tuntap add dev tap{nr} mode tap\n\
                 ip link set tap{nr} txqueuelen 4000 master br0 up\n"
            ));
        }
        // The lab's directory is passed as $1. Twice, because a dying guest may still write while the first one runs.
        script.push_str("echo ready\ncat <&5 >/dev/null\nrm -rf -- \"$1\" || rm -rf -- \"$1\"\n");
        let log = dir.join("net.log");
        let stderr = File::create(&log).map_err(|err| LabError::io(format_args!("create {}", log.display()), &err))?;
        let (sender, ready) = channel();
        let holder = Leash::start(
            Spec {
                // The holder reads the lifeline itself, so that it can clean up before it goes.
                argv: vec![
                    "unshare".into(),
                    "--net".into(),
                    "sh".into(),
                    "-c".into(),
                    script.into(),
                    "net".into(),
                    dir.into(),
                ],
                netns: None,
                env: Vec::new(),
                stderr,
                scope: Scope::Cooperative,
                redirections: String::new(),
                dir: PathBuf::from("/"),
            },
            move |line| {
                let _ = sender.send(line == "ready");
            },
        )?;
        if !matches!(ready.recv_timeout(Duration::from_secs(30)), Ok(true)) {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(LabError::new(format!("cannot make the lab's network namespace: {}", said.trim())));
        }
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.pid()));
        Ok(Self { holder, path })
    }

    /// The namespace as a path for `nsenter --net=`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs on the host side of the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut option = OsString::from("--net=");
        option.push(&self.path);
        let mut command = Command::new("nsenter");
        command.arg(option).arg("--").arg(program);
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Plugs or cuts the cable of node `nr`.
    pub fn cable(&self, nr: u8, cable: Cable) -> Result<()> {
        let tap = format!("tap{nr}");
        let mut command = self.command("ip");
        command.args(["link", "set", &tap]);
        match cable {
            Cable::Plugged => command.args(["master", "br0"]),
            Cable::Cut => command.arg("nomaster"),
        };
        let out = command.output().map_err(|err| LabError::io("run ip", &err))?;
        if out.status.success() {
            Ok(())
        } else {
            Err(LabError::new(format!("cannot switch {tap}: {}", String::from_utf8_lossy(&out.stderr).trim())))
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.holder.kill();
    }
}
