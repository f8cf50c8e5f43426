//! Real daemons on loopback: each with a run directory, a file as its disk and a configuration that both sides of a pair
//! share. Everything is in a temporary directory and dies with its owner, also when a test panics.
//!
//! Every site has loopback addresses of its own, so that tests can run side by side on one port.

#![allow(dead_code, reason = "each test uses its share")]

pub mod nbd;

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use udrbd::control::client::Client;
use udrbd::control::status::{Resource, Volume};
use udrbd::control::{ErrorReply, Reply, Request};
use udrbd::disk::meta_file::{Access, MetaFile};
use udrbd::meta::create::{CreateOptions, create_md};
use udrbd::meta::offline::write_superblock;
use udrbd::meta::{AlStripes, MdFlags, Place, Superblock};
use udrbd::node::startup::{self, Which};
use udrbd::units::{GenId, Sectors, VolumeNr};
use udrbd::wire::state::{ConnState, DiskState, Role};
use xtask::lab::{Leash, Scope, Spec};

/// How long anything may take that should happen soon. Generous, because a busy host is no reason to fail.
pub const SOON: Duration = Duration::from_secs(30);

/// Replication port of every site. Below the range that the system picks ports from.
pub const PORT: u16 = 7788;

/// The only resource.
pub const RES: &str = "r0";

/// A generation that both sides of a pair can start with.
pub const GENERATION: GenId = GenId(0x1122_3344_5566_7788);

/// How a site is made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Size of each volume's disk file in MiB, metadata included.
    pub disk_mib: Vec<u64>,
    /// Further statements of the `net` section.
    pub net: String,
    /// Further statements of the `disk` section.
    pub disk: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self { disk_mib: vec![16], net: String::new(), disk: String::new() }
    }
}

/// A directory, a pair of addresses and a configuration for the nodes `alpha` and `bravo`.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    setup: Setup,
    ips: [Ipv4Addr; 2],
    /// Network namespace for the daemons, as `nsenter` takes it.
    netns: Option<PathBuf>,
}

static SITES: AtomicU32 = AtomicU32::new(0);

impl Site {
    pub fn new(setup: Setup) -> Self {
        Self::inside(setup, None)
    }

    /// The same, with the daemons in a network namespace.
    pub fn inside(setup: Setup, netns: Option<PathBuf>) -> Self {
        let dir = tempfile::Builder::new().prefix("udrbd-test-").tempdir().expect("a temporary directory");
        // 127.x.y.z: x and y from the process, z from the site. Not 127.0, where everybody is.
        let [.., hi, lo] = std::process::id().to_be_bytes();
        let nr = SITES.fetch_add(1, Ordering::SeqCst) % 120;
        let host = u8::try_from(nr * 2 + 1).expect("small");
        let net = 64 + hi % 128;
        let ips = [Ipv4Addr::new(127, net, lo, host), Ipv4Addr::new(127, net, lo, host + 1)];
        let site = Self { dir, setup, ips, netns };
        std::fs::write(site.conf(), site.conf_text(&site.setup.net)).expect("the configuration");
        site
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("drbd.conf")
    }

    /// Replication address of node `index`.
    pub fn addr(&self, index: usize) -> SocketAddr {
        SocketAddr::from((self.ips[index], PORT))
    }

    fn conf_text(&self, net: &str) -> String {
        let mut hosts = String::new();
        for (index, name) in ["alpha", "bravo"].iter().enumerate() {
            hosts += &format!("\ton {name} {{\n\t\taddress {}:{PORT};\n", self.ips[index]);
            for volume in 0..self.setup.disk_mib.len() {
                let disk = self.dir.path().join(format!("{name}-{volume}.img"));
                let minor = volume * 2 + index;
                hosts += &format!(
                    "\t\tvolume {volume} {{ device minor {minor}; disk {}; meta-disk internal; }}\n",
                    disk.display()
                );
            }
            hosts += "\t}\n";
        }
        // Short pauses, long limits: a test must neither wait long nor fail on a busy host.
        format!(
            "global {{ disable-ip-verification; }}\nresource {RES} {{\n\
             \tnet {{ connect-int 1; ping-timeout 50; socket-check-timeout 1; {net} }}\n\
             \tdisk {{ resync-rate 4194304; c-plan-ahead 0; {} }}\n{hosts}}}\n",
            self.setup.disk
        )
    }

    /// Node 0 or 1, with fresh disk files and metadata as `prepare` leaves it; not started.
    pub fn node(&self, index: usize, prepare: impl Fn(&mut Superblock)) -> Node {
        let node = self.bare_node(index);
        for (volume, mib) in self.setup.disk_mib.iter().enumerate() {
            make_disk(&node.disk(volume), *mib, &prepare);
        }
        node
    }

    /// Node 0 or 1 without disk files; not started.
    pub fn bare_node(&self, index: usize) -> Node {
        let name = ["alpha", "bravo"][index];
        let run = self.dir.path().join(name);
        std::fs::create_dir_all(&run).expect("a run directory");
        Node {
            name,
            run,
            dir: self.dir.path().to_owned(),
            conf: self.conf(),
            netns: self.netns.clone(),
            daemon: None,
            options: Vec::new(),
        }
    }

    /// Gives node `index` its own configuration with these `net` statements.
    pub fn set_net(&self, node: &mut Node, net: &str) {
        node.conf = node.run.join("drbd.conf");
        std::fs::write(&node.conf, self.conf_text(net)).expect("the configuration");
    }
}

/// Makes a disk file with internal metadata.
pub fn make_disk(path: &Path, mib: u64, prepare: impl Fn(&mut Superblock)) {
    File::create(path).and_then(|file| file.set_len(mib << 20)).expect("a disk file");
    let mut io = MetaFile::open(path, Access::Write, false).expect("the disk file");
    let options =
        CreateOptions { place: Place::INTERNAL, al: AlStripes::DEFAULT, device_uuid: 7, peer_max_bio_size: 0 };
    let (layout, mut superblock) = create_md(&mut io, &options).expect("metadata");
    superblock.effective_size = layout.data_size;
    prepare(&mut superblock);
    write_superblock(&mut io, &layout, &superblock).expect("metadata");
}

/// Size of the data area of such a disk.
pub fn data_size(mib: u64) -> Sectors {
    udrbd::meta::Layout::new(
        udrbd::meta::MetaKind::Internal,
        AlStripes::DEFAULT,
        udrbd::meta::DeviceSizes::one(Sectors(mib * 2048)),
    )
    .expect("a layout")
    .data_size
}

/// UpToDate data of [`GENERATION`]: two such nodes need no resync.
pub fn up_to_date(superblock: &mut Superblock) {
    superblock.current = GENERATION;
    superblock.flags = superblock.flags.with(MdFlags::CONSISTENT).with(MdFlags::WAS_UP_TO_DATE);
}

/// Metadata as `create-md` leaves it.
pub fn just_created(superblock: &mut Superblock) {
    superblock.effective_size = Sectors(0);
}

/// One daemon. Killed when dropped.
pub struct Node {
    pub name: &'static str,
    pub run: PathBuf,
    dir: PathBuf,
    conf: PathBuf,
    netns: Option<PathBuf>,
    daemon: Option<Leash>,
    /// Further options of the daemon.
    pub options: Vec<String>,
}

impl Node {
    pub fn disk(&self, volume: usize) -> PathBuf {
        self.dir.join(format!("{}-{volume}.img", self.name))
    }

    pub fn log_path(&self) -> PathBuf {
        self.run.join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    pub fn nbd_socket(&self) -> PathBuf {
        self.run.join("nbd.sock")
    }

    /// Its NBD address for an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd_socket().display())
    }

    /// Starts the daemon; nothing is configured in it.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, options: &[&str]) {
        let log = File::options().append(true).create(true).open(self.log_path()).expect("the log");
        let mut copy = log.try_clone().expect("the log");
        let mut argv = vec![env!("CARGO_BIN_EXE_udrbd").into(), "--run-dir".into(), self.run.clone().into()];
        argv.extend(["--config".into(), self.conf.clone().into()]);
        argv.extend(["--hostname", self.name, "--frontend", "nbd"].map(Into::into));
        argv.extend(self.options.iter().map(Into::into));
        argv.extend(options.iter().map(Into::into));
        let daemon = Leash::start(
            Spec {
                argv,
                netns: self.netns.clone(),
                env: vec![("RUST_LOG".into(), "debug".into())],
                stderr: log,
                scope: Scope::Process,
                redirections: String::new(),
                dir: self.run.clone(),
            },
            move |line| drop(writeln!(copy, "{line}")),
        )
        .expect("the daemon starts");
        self.daemon = Some(daemon);
        let begin = Instant::now();
        while Client::connect(&self.control()).is_err() {
            assert!(self.is_alive(), "{} ended at once:\n{}", self.name, self.log());
            assert!(begin.elapsed() < SOON, "{} does not answer:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the daemon and brings the resource up.
    pub fn start_up(&mut self) {
        self.start();
        self.up().unwrap_or_else(|error| panic!("{} does not come up: {error}\n{}", self.name, self.log()));
    }

    /// Whether the daemon runs.
    pub fn is_alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Leash::is_alive)
    }

    /// Fails the test if the daemon ended or something in it gave up.
    pub fn assert_sound(&mut self) {
        assert!(self.is_alive(), "{} is dead:\n{}", self.name, self.log());
        let log = self.log();
        for word in ["panicked", "internal error", "assertion"] {
            assert!(!log.contains(word), "{} says {word:?}:\n{log}", self.name);
        }
    }

    /// Process id of the running daemon.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").pid()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.terminate();
        daemon.wait_exit(SOON).unwrap_or_else(|| panic!("{} does not stop:\n{}", self.name, self.log()))
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.control()).unwrap_or_else(|error| panic!("{}: {error}\n{}", self.name, self.log()))
    }

    /// Sends a request; its refusal.
    pub fn call(&self, request: Request) -> Result<(), ErrorReply> {
        let shown = format!("{request:?}");
        match self.client().call(request) {
            Ok(Reply::Done) => Ok(()),
            Ok(Reply::Error(error)) => Err(error),
            other => panic!("{}: {shown} was answered by {other:?}\n{}", self.name, self.log()),
        }
    }

    /// Sends a request that must be carried out.
    pub fn done(&self, request: Request) {
        let shown = format!("{request:?}");
        self.call(request).unwrap_or_else(|error| panic!("{}: {shown}: {error}\n{}", self.name, self.log()));
    }

    /// The requests that bring the resource up.
    pub fn up_requests(&self) -> Vec<Request> {
        let chosen = startup::read(Some(&self.conf), self.name, &Which::One(RES.to_owned())).expect("a configuration");
        let [resource] = chosen.resources.as_slice() else { panic!("one resource") };
        startup::requests(&chosen.file, resource).expect("a peer")
    }

    pub fn up(&self) -> Result<(), ErrorReply> {
        self.up_requests().into_iter().try_for_each(|request| self.call(request))
    }

    /// The request that makes the connection.
    pub fn connect_request(&self) -> Request {
        let is_connect = |request: &Request| matches!(request, Request::Connect { .. });
        self.up_requests().into_iter().find(is_connect).expect("a peer")
    }

    pub fn connect(&self) {
        self.done(self.connect_request());
    }

    pub fn disconnect(&self) {
        self.done(Request::Disconnect { resource: RES.to_owned(), force: false });
    }

    pub fn primary(&self) {
        self.done(Request::Primary { resource: RES.to_owned(), volume: VolumeNr(0), force: false });
    }

    pub fn secondary(&self) {
        self.done(Request::Secondary { resource: RES.to_owned(), volume: VolumeNr(0), force: false });
    }

    /// The resource as it is.
    pub fn resource(&self) -> Resource {
        let status = self.client().status(Some(RES)).expect("a status");
        status.resource(RES).unwrap_or_else(|| panic!("{} has no {RES}", self.name)).clone()
    }

    /// Volume 0 as it is.
    pub fn volume(&self) -> Volume {
        self.resource().volumes.into_iter().next().expect("a volume")
    }

    /// Waits until the resource is as `test` wants it.
    pub fn wait(&self, what: &str, test: impl Fn(&Resource) -> bool) {
        let deadline = Instant::now() + SOON;
        let (status, mut watcher) = self.client().watch(Some(RES)).expect("a watcher");
        let mut last = status.resource(RES).cloned();
        loop {
            if last.as_ref().is_some_and(&test) {
                return;
            }
            match watcher.next(Some(deadline)) {
                Ok(Some(udrbd::control::proto::Event::Resource(resource))) => last = Some(*resource),
                Ok(Some(_)) => {}
                Ok(None) => panic!("{} never was {what}; last {last:#?}\n{}", self.name, self.log()),
                Err(error) => panic!("{}: {error}\n{}", self.name, self.log()),
            }
        }
    }

    /// Waits until volume 0 is as `test` wants it.
    pub fn wait_volume(&self, what: &str, test: impl Fn(&Volume) -> bool) {
        self.wait(what, |resource| resource.volumes.first().is_some_and(&test));
    }

    pub fn wait_conn(&self, state: ConnState) {
        self.wait_volume(state.text(), |volume| volume.state == state);
    }

    /// Waits until both disks are UpToDate and nothing is left to do.
    pub fn wait_in_sync(&self) {
        self.wait("connected and in sync", |resource| {
            resource.volumes.iter().all(|volume| {
                volume.state == ConnState::Connected
                    && (volume.disk, volume.peer_disk) == (DiskState::UpToDate, DiskState::UpToDate)
            })
        });
    }

    /// Waits until the connection is given up.
    pub fn wait_standalone(&self) {
        self.wait("StandAlone", |resource| resource.volumes.iter().all(|volume| volume.state == ConnState::StandAlone));
    }

    pub fn is_primary(&self) -> bool {
        self.resource().role == Role::Primary
    }

    /// Waits until the log has `text` behind byte `from`.
    pub fn wait_log(&self, from: usize, text: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            let log = self.log();
            if log.get(from..).is_some_and(|log| log.contains(text)) {
                return;
            }
            assert!(Instant::now() < deadline, "{} never says {text:?}:\n{log}", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Both data areas are equal. The daemons may still run, if nothing is written.
pub fn assert_replicas_equal(a: &Node, b: &Node, mib: u64) {
    let len = usize::try_from(data_size(mib).bytes()).expect("small");
    let read = |node: &Node| {
        let mut bytes = std::fs::read(node.disk(0)).expect("a disk file");
        bytes.truncate(len);
        bytes
    };
    let (ours, theirs) = (read(a), read(b));
    if let Some(at) = first_difference(&ours, &theirs) {
        panic!("the replicas differ from byte {at} on\n{}\n{}", a.log(), b.log());
    }
}

/// Where two arrays of the same length differ first. Fast when they do not.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) }
}

/// Bytes that repeat nowhere near a block's length.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// Whether `tool` is there; prints the one line that says that a test is skipped.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub fn have(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|dir| dir.join(tool).is_file())
    });
    if !found {
        println!("skipped: {tool} is not installed");
    }
    found
}

/// Runs a program to its end.
pub fn run(tool: &str, args: &[&str]) -> Output {
    Command::new(tool)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {tool}: {error}"))
}

/// Runs a program that must succeed; what it printed.
pub fn succeed(tool: &str, args: &[&str]) -> String {
    let output = run(tool, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {args:?} failed with {}:\n{stdout}\n{stderr}", output.status);
    stdout
}
