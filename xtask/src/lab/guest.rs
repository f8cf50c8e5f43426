//! One guest: a user-mode Linux kernel with the host's files, disks, a network interface and an agent for commands.
//!
//! Owns: the guest's process namespace and its control directory. Takes in: [`GuestOptions`] and shell scripts. Gives out:
//! their output and exit codes, and the console for failure reports. Invariants: a dropped guest is dead; commands may run
//! side by side; [`Guest::crash`] is a power cut, nothing in the guest gets to flush anything (what its disks were told to
//! write is in the host's page cache and stays).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::{LabError, Result};
use super::kernel::Kernel;
use super::leash::{Leash, Scope, Spec};
use super::net::{HOST_ADDR, node_addr};

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Which kernel to boot.
    pub kernel: Kernel,
    /// Disk images, `/dev/ubda` first.
    pub disks: Vec<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// How long it may take until it accepts commands.
    pub boot_limit: Duration,
}

impl GuestOptions {
    /// A guest with these disks, the Debian kernel and enough memory for DRBD and file systems.
    pub fn with_disks(disks: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            kernel: Kernel::debian(),
            disks: disks.into_iter().collect(),
            memory_mib: 256,
            boot_limit: Duration::from_secs(120),
        }
    }
}

/// How a command in a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Standard output and error.
    pub text: String,
}

#[derive(Debug, Default)]
struct Mailbox {
    /// Exit codes by command identifier; `ready` is the agent itself.
    codes: BTreeMap<String, i32>,
    next: u64,
}

/// A running guest; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    nr: u8,
    dir: PathBuf,
    leash: Mutex<Leash>,
    commands: Mutex<File>,
    mailbox: Arc<(Mutex<Mailbox>, Condvar)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).map_err(|err| LabError::io(format_args!("write {}", path.display()), &err))
}

impl Guest {
    /// Boots node `nr` with its control directory at `dir` (made anew), and waits until it takes commands.
    pub(super) fn boot(nr: u8, dir: &Path, share: &Path, netns: &Path, options: &GuestOptions) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(|err| LabError::io(format_args!("remove {}", dir.display()), &err))?;
        }
        let ctl = dir.join("ctl");
        fs::create_dir_all(&ctl).map_err(|err| LabError::io(format_args!("make {}", ctl.display()), &err))?;
        write(&ctl.join("share"), share.as_os_str().as_encoded_bytes())?;
        write(
            &ctl.join("env"),
            format!(
                "LAB_NODE={nr}\nLAB_HOST=n{nr}\nLAB_ADDR={}\nLAB_MAC=52:54:00:99:00:{nr:02x}\nLAB_HOST_ADDR={HOST_ADDR}\n\
                 HOME=/root\nUSER=root\nLANG=C.UTF-8\nTERM=dumb\n",
                node_addr(nr)
            ),
        )?;
        let init = dir.join("guest-init");
        write(&init, include_str!("guest-init.sh"))?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&init, executable).map_err(|err| LabError::io("make guest-init executable", &err))?;
        let fifo = dir.join("commands");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .map_err(|err| LabError::io("make a fifo", &err.into()))?;
        let commands =
            File::options().read(true).write(true).open(&fifo).map_err(|err| LabError::io("open a fifo", &err))?;

        let text = |label: &str, path: &Path| {
            let mut argument = OsString::from(label);
            argument.push(path);
            argument
        };
        let mut argv: Vec<OsString> = vec![options.kernel.path().into()];
        argv.push(format!("mem={}M", options.memory_mib).into());
        argv.push(format!("umid=n{nr}").into());
        let mut uml_dir = text("uml_dir=", dir);
        uml_dir.push("/uml/");
        argv.push(uml_dir);
        argv.push(text("init=", &init));
        argv.push(text("UDRBD_LAB_SELF=", &init));
        argv.push(text("UDRBD_LAB_CTL=", &ctl));
        argv.push(format!("vec0:transport=tap,ifname=tap{nr},depth=128,gro=1").into());
        for word in [
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "con=null",
            "con0=null,fd:3",
            "ssl=null",
            "ssl0=null,fd:1",
            "ssl1=fd:4,null",
            "panic=-1",
            "quiet",
            "loglevel=5",
            "log_buf_len=1M",
            "random.trust_cpu=on",
        ] {
            argv.push(word.into());
        }
        for (index, disk) in options.disks.iter().enumerate() {
            argv.push(text(&format!("ubd{index}="), disk));
        }
        let stderr = File::create(dir.join("stderr.log")).map_err(|err| LabError::io("create stderr.log", &err))?;
        let mailbox: Arc<(Mutex<Mailbox>, Condvar)> = Arc::default();
        let reports = Arc::clone(&mailbox);
        let leash = Leash::start(
            Spec {
                argv,
                netns: Some(netns.to_owned()),
                env: vec![("TMPDIR".into(), memory_dir(options.memory_mib, dir).into())],
                stderr,
                scope: Scope::Machine,
                redirections: "3>>console.log 4<>commands".into(),
                dir: dir.to_owned(),
            },
            move |line| {
                if let Some((id, code)) = line.split_once(' ')
                    && let Ok(code) = code.parse()
                {
                    lock(&reports.0).codes.insert(id.to_owned(), code);
                    reports.1.notify_all();
                }
            },
        )?;
        let guest = Self { nr, dir: dir.to_owned(), leash: Mutex::new(leash), commands: Mutex::new(commands), mailbox };
        guest.wait_for("ready", options.boot_limit).map_err(|why| {
            LabError::new(format!("node {nr} did not come up: {why}; the end of its console:\n{}", guest.console()))
        })?;
        Ok(guest)
    }

    /// The node's number; its host name is `nN`.
    pub fn nr(&self) -> u8 {
        self.nr
    }

    /// Whether the machine runs.
    pub fn is_alive(&self) -> bool {
        lock(&self.leash).is_alive()
    }

    fn wait_for(&self, id: &str, limit: Duration) -> Result<i32> {
        let deadline = Instant::now() + limit;
        let mut mailbox = lock(&self.mailbox.0);
        loop {
            if let Some(code) = mailbox.codes.remove(id) {
                return Ok(code);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LabError::new(format!("no end after {} s", limit.as_secs())));
            }
            drop(mailbox);
            if !self.is_alive() {
                return Err(LabError::new("the guest died"));
            }
            mailbox = lock(&self.mailbox.0);
            if !mailbox.codes.contains_key(id) {
                // Bounded, because a guest that dies sends no report.
                mailbox = self
                    .mailbox
                    .1
                    .wait_timeout(mailbox, left.min(Duration::from_millis(200)))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }

    /// Starts a shell command and returns at once; the identifier is for [`Guest::finish`].
    pub fn begin(&self, script: &str) -> Result<String> {
        let id = {
            let mut mailbox = lock(&self.mailbox.0);
            mailbox.next += 1;
            format!("c{}", mailbox.next)
        };
        write(&self.ctl(&id, "sh"), format!("{script}\n"))?;
        lock(&self.commands)
            .write_all(format!("{id}\n").as_bytes())
            .map_err(|err| LabError::io("send a command", &err))?;
        Ok(id)
    }

    /// Waits for a command that [`Guest::begin`] started.
    pub fn finish(&self, id: &str, limit: Duration) -> Result<Output> {
        let result = self.wait_for(id, limit);
        let text = fs::read(self.ctl(id, "out")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let script = fs::read_to_string(self.ctl(id, "sh")).unwrap_or_default();
        let _ = fs::remove_file(self.ctl(id, "sh"));
        let _ = fs::remove_file(self.ctl(id, "out"));
        match result {
            Ok(code) => Ok(Output { code, text }),
            Err(why) => {
                Err(LabError::new(format!("node {}: `{}`: {why}; output so far:\n{text}", self.nr, script.trim())))
            }
        }
    }

    /// Runs a shell command in the guest.
    pub fn exec(&self, script: &str, limit: Duration) -> Result<Output> {
        let id = self.begin(script)?;
        self.finish(&id, limit)
    }

    /// Runs a shell command that must succeed within a minute; its output.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.exec(script, Duration::from_secs(60))?;
        if output.code == 0 {
            Ok(output.text)
        } else {
            Err(LabError::new(format!("node {}: `{script}` ended with {}:\n{}", self.nr, output.code, output.text)))
        }
    }

    /// Powers the machine off in order: file systems synced, no process told.
    pub fn power_off(&self) -> Result<()> {
        lock(&self.commands).write_all(b"off\n").map_err(|err| LabError::io("send the power-off", &err))?;
        let ended = lock(&self.leash).wait_exit(Duration::from_secs(30)).is_some();
        lock(&self.leash).kill();
        if ended { Ok(()) } else { Err(LabError::new(format!("node {} did not power off", self.nr))) }
    }

    /// Cuts the power: every process of the machine is killed, and gone when this returns.
    pub fn crash(&self) {
        lock(&self.leash).kill();
    }

    /// The last lines of the console and the kernel's own complaints.
    pub fn console(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for name in ["stderr.log", "console.log"] {
            let text = fs::read(self.dir.join(name)).unwrap_or_default();
            lines.extend(String::from_utf8_lossy(&text).lines().map(|line| line.trim_end().to_owned()));
        }
        let first = lines.len().saturating_sub(40);
        lines[first..].join("\n")
    }

    fn ctl(&self, id: &str, kind: &str) -> PathBuf {
        self.dir.join("ctl").join(format!("{id}.{kind}"))
    }
}

/// Where the guest's memory file goes: into memory where there is room, else beside its disks.
fn memory_dir(memory_mib: u32, otherwise: &Path) -> PathBuf {
    let shm = Path::new("/dev/shm");
    match rustix::fs::statvfs(shm) {
        Ok(stat) if stat.f_bavail.saturating_mul(stat.f_frsize) >> 20 > u64::from(memory_mib) + 64 => shm.to_owned(),
        _ => otherwise.to_owned(),
    }
}
