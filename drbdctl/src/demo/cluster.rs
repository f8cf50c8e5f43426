//! Two nodes: disks, configuration, child processes, and their control sockets.
//!
//! Invariants: everything lives in one temporary directory; children die with this process; nothing but loopback is used.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use udrbd::control::client::{Client, Watcher};
use udrbd::control::proto::Event;
use udrbd::control::status::{Resource, Volume};
use udrbd::control::{Reply, Request};
use udrbd::disk::RingChoice;
use udrbd::disk::meta_file::{Access, MetaFile};
use udrbd::frontend::nbd::server::Listen;
use udrbd::meta::create::{CreateOptions, create_md};
use udrbd::meta::{AlStripes, Place};
use udrbd::node::run::{RunOptions, run};
use udrbd::node::startup::Which;
use udrbd::units::{Sectors, VolumeNr};

use super::model::{BLOCK_BYTES, contents};
use super::{Failure, NODE_WORD, fail};
use crate::out;

/// Name of the resource.
pub const RESOURCE: &str = "demo";
/// Size of each backing file.
pub const DISK_BYTES: u64 = 128 << 20;
/// The nodes.
pub const HOSTS: [&str; 2] = ["alpha", "beta"];
const ADDRESSES: [&str; 2] = ["127.0.0.1", "127.0.0.2"];
const CONFIG_FILE: &str = "demo.conf";
/// The longest that anything in the demo may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a node's log that are shown after a failure.
const LOG_LINES: usize = 20;

/// One node.
#[derive(Debug)]
struct Node {
    child: Option<Child>,
}

/// Both nodes.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    nodes: [Node; 2],
    /// Size of the replicated data.
    pub data_size: Sectors,
}

impl Cluster {
    /// Disks with metadata and a configuration; no node runs. The first disk has the contents of the model's version 0, the
    /// second one is empty.
    pub fn create() -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("udrbd-demo-").tempdir()?;
        let mut cluster = Self { dir, nodes: [Node { child: None }, Node { child: None }], data_size: Sectors(0) };
        for node in 0..2 {
            fs::create_dir(cluster.run_dir(node))?;
            let path = cluster.disk(node);
            let mut file = File::create(&path)?;
            if node == 0 {
                fill(&mut file)?;
            }
            file.set_len(DISK_BYTES)?;
            let options =
                CreateOptions { place: Place::INTERNAL, al: AlStripes::DEFAULT, device_uuid: 0, peer_max_bio_size: 0 };
            let (layout, _) = create_md(&mut MetaFile::open(&path, Access::Write, false)?, &options)?;
            cluster.data_size = layout.data_size;
        }
        fs::write(cluster.config(), cluster.config_text(free_port()?))?;
        Ok(cluster)
    }

    fn config_text(&self, port: u16) -> String {
        let mut text = format!(
            "resource {RESOURCE} {{\n  net {{ protocol C; ping-int 1; ping-timeout 5; timeout 9; connect-int 1; }}\n"
        );
        for (node, (host, address)) in HOSTS.iter().zip(ADDRESSES).enumerate() {
            let disk = self.disk(node);
            text.push_str(&format!(
                "  on {host} {{ device minor 0; disk \"{}\"; meta-disk internal; address {address}:{port}; }}\n",
                disk.display()
            ));
        }
        text + "}\n"
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Path of the configuration.
    pub fn config(&self) -> PathBuf {
        self.dir().join(CONFIG_FILE)
    }

    /// Path of a backing file.
    pub fn disk(&self, node: usize) -> PathBuf {
        self.dir().join(format!("{}.img", HOSTS[node]))
    }

    fn run_dir(&self, node: usize) -> PathBuf {
        self.dir().join(HOSTS[node])
    }

    fn log(&self, node: usize) -> PathBuf {
        self.dir().join(format!("{}.log", HOSTS[node]))
    }

    /// Path of a node's control socket.
    pub fn control_socket(&self, node: usize) -> PathBuf {
        self.run_dir(node).join("control.sock")
    }

    /// Path of a node's NBD socket.
    pub fn nbd_socket(&self, node: usize) -> PathBuf {
        self.run_dir(node).join("nbd.sock")
    }

    /// Starts a node, which brings the resource up, and waits until it answers.
    pub fn start(&mut self, node: usize) -> Result<(), Failure> {
        let log = File::options().create(true).append(true).open(self.log(node))?;
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg(NODE_WORD).arg(self.dir()).arg(HOSTS[node]);
        // A group of its own: Ctrl-C is for the demo, which then ends its nodes.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        self.nodes[node].child = Some(command.spawn()?);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(child) = &mut self.nodes[node].child
                && let Some(status) = child.try_wait()?
            {
                return fail(format!("{} ended at once: {status}", HOSTS[node]));
            }
            if let Ok(mut client) = Client::connect(&self.control_socket(node))
                && let Ok(status) = client.status(Some(RESOURCE))
                && status.resource(RESOURCE).is_some_and(|r| r.connection.is_some())
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return fail(format!("{} does not come up", HOSTS[node]));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn pid(&self, node: usize) -> Result<Pid, Failure> {
        let child = self.nodes[node].child.as_ref();
        match child.and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw) {
            Some(pid) => Ok(pid),
            None => fail(format!("{} does not run", HOSTS[node])),
        }
    }

    /// Stops a node's process where it is: neither it nor its sockets answer.
    pub fn freeze(&self, node: usize) -> Result<(), Failure> {
        Ok(kill_process(self.pid(node)?, Signal::STOP)?)
    }

    /// Lets it go on.
    pub fn thaw(&self, node: usize) -> Result<(), Failure> {
        Ok(kill_process(self.pid(node)?, Signal::CONT)?)
    }

    /// Ends a node's process at once, as a crash would.
    pub fn crash(&mut self, node: usize) -> Result<(), Failure> {
        kill_process(self.pid(node)?, Signal::KILL)?;
        if let Some(mut child) = self.nodes[node].child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Ends a node's process in an orderly way.
    pub fn stop(&mut self, node: usize) -> Result<(), Failure> {
        let pid = self.pid(node)?;
        kill_process(pid, Signal::TERM)?;
        let Some(mut child) = self.nodes[node].child.take() else { return Ok(()) };
        let status = child.wait()?;
        if status.success() { Ok(()) } else { fail(format!("{} ended with {status}", HOSTS[node])) }
    }

    /// Sends a node a command.
    pub fn call(&self, node: usize, request: Request) -> Result<(), Failure> {
        match Client::connect(&self.control_socket(node))?.call(request)? {
            Reply::Done => Ok(()),
            Reply::Error(error) => fail(format!("{}: {error}", HOSTS[node])),
            other => fail(format!("{}: unexpected answer {other:?}", HOSTS[node])),
        }
    }

    /// Makes a node Primary.
    pub fn promote(&self, node: usize, force: bool) -> Result<(), Failure> {
        self.call(node, Request::Primary { resource: RESOURCE.to_owned(), volume: VolumeNr(0), force })
    }

    /// Makes a node Secondary.
    pub fn demote(&self, node: usize) -> Result<(), Failure> {
        self.call(node, Request::Secondary { resource: RESOURCE.to_owned(), volume: VolumeNr(0), force: false })
    }

    /// What a node sees of its volume now.
    pub fn volume(&self, node: usize) -> Result<Volume, Failure> {
        let status = Client::connect(&self.control_socket(node))?.status(Some(RESOURCE))?;
        match status.resource(RESOURCE).and_then(|resource| resource.volumes.first()) {
            Some(volume) => Ok(volume.clone()),
            None => fail(format!("{} has no volume", HOSTS[node])),
        }
    }

    /// Follows what happens on a node.
    pub fn watch(&self, node: usize) -> Result<Watch, Failure> {
        let (status, watcher) = Client::connect(&self.control_socket(node))?.watch(Some(RESOURCE))?;
        let now = status.resource(RESOURCE).and_then(|resource| resource.volumes.first()).cloned();
        Ok(Watch { host: HOSTS[node], watcher, now })
    }

    /// Waits until what a node sees satisfies `good`; gives what it saw.
    pub fn wait(&self, node: usize, what: &str, good: impl FnMut(&Volume) -> bool) -> Result<Volume, Failure> {
        self.watch(node)?.until(what, good)
    }

    /// The last lines of both logs.
    pub fn show_logs(&self) {
        for (node, host) in HOSTS.iter().enumerate() {
            let text = fs::read_to_string(self.log(node)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
                out::say(&format!("  {host}: {line}"));
            }
        }
    }

    /// Ends what still runs, and removes the directory unless it is to be kept.
    pub fn end(mut self, keep: bool) {
        for node in 0..2 {
            // A stopped process would never see the signal to end.
            let _ = self.thaw(node);
            let _ = self.stop(node);
        }
        if keep {
            out::line(&format!("files stay in {}", self.dir.keep().display()));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What happens on a node, as it happens.
#[derive(Debug)]
pub struct Watch {
    host: &'static str,
    watcher: Watcher,
    now: Option<Volume>,
}

impl Watch {
    /// Waits until the volume satisfies `good`; every state on the way is shown to it.
    pub fn until(&mut self, what: &str, mut good: impl FnMut(&Volume) -> bool) -> Result<Volume, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(volume) = self.now.take_if(|volume| good(volume)) {
                self.now = Some(volume.clone());
                return Ok(volume);
            }
            match self.watcher.next(Some(deadline))? {
                Some(Event::Resource(resource)) => self.now = first_volume(*resource),
                Some(_) => {}
                None => {
                    let seen = self.now.as_ref().map(|v| format!("{} {}/{}", v.state, v.disk, v.peer_disk));
                    let seen = seen.unwrap_or_default();
                    return fail(format!("{}: {what} did not happen; it is {seen}", self.host));
                }
            }
        }
    }
}

fn first_volume(resource: Resource) -> Option<Volume> {
    resource.volumes.into_iter().next()
}

/// Version 0 of every block.
fn fill(file: &mut File) -> io::Result<()> {
    let blocks = usize::try_from(DISK_BYTES).unwrap_or(0) / BLOCK_BYTES;
    let mut writer = io::BufWriter::with_capacity(1 << 20, file);
    for block in 0..blocks {
        io::Write::write_all(&mut writer, &contents(block, 0))?;
    }
    io::Write::flush(&mut writer)
}

/// A port that is free on both addresses.
fn free_port() -> Result<u16, Failure> {
    for _ in 0..100 {
        let first = TcpListener::bind((ADDRESSES[0], 0))?;
        let port = first.local_addr()?.port();
        if TcpListener::bind((ADDRESSES[1], port)).is_ok() {
            return Ok(port);
        }
    }
    fail("no TCP port is free on 127.0.0.1 and 127.0.0.2")
}

/// The child's side: a daemon for `host`, with everything in `dir`.
pub fn run_node(dir: &Path, host: &str) -> u8 {
    // Without this a demo that is killed would leave its nodes behind.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    log.with_writer(io::stderr).init();
    let run_dir = dir.join(host);
    let options = RunOptions {
        control_socket: None,
        state_dir: run_dir.join("state"),
        run_dir,
        undo_limit: 1 << 30,
        config: Some(dir.join(CONFIG_FILE)),
        hostname: host.to_owned(),
        up: Some(Which::All),
        nbd: Listen::default(),
        ring: RingChoice::Auto,
        handler_timeout: None,
        lock_memory: false,
    };
    match run(options) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error}");
            1
        }
    }
}
