//! Two daemons as child processes, each with a control socket, over loopback; waiting is for states, with a deadline.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use udrbd::config::model::{Address, DiskOptions, MetaDisk, NetOptions, ResourceOptions};
use udrbd::control::client::Client;
use udrbd::control::proto::Event;
use udrbd::control::status::{Resource, Volume};
use udrbd::control::{ErrorReply, Reply, Request};
use udrbd::disk::meta_file::{Access, MetaFile};
use udrbd::meta::create::{CreateOptions, create_md};
use udrbd::meta::{AlStripes, Place};
use udrbd::units::{Minor, Sectors, VolumeNr};
use udrbd::wire::state::{ConnState, DiskState};

use crate::nbd_client::NbdClient;

/// The longest that anything may take; generous, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the resource.
pub const RES: &str = "r0";
/// The only volume, where there is one.
pub const V0: VolumeNr = VolumeNr(0);
/// Size of a backing file unless a test wants another one.
pub const DISK_BYTES: u64 = 24 << 20;

const ADDRESSES: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

/// One node: its files, and its daemon while it runs.
pub struct Node {
    dir: PathBuf,
    index: usize,
    port: u16,
    args: Vec<String>,
    child: Option<Child>,
}

/// Two nodes and the directory they live in.
pub struct Pair {
    pub a: Node,
    pub b: Node,
    pub dir: tempfile::TempDir,
    pub data_size: Sectors,
}

/// A port that is free on both addresses.
pub fn free_port() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind((ADDRESSES[0], 0)).expect("a port");
        let port = first.local_addr().expect("bound").port();
        if TcpListener::bind((ADDRESSES[1], port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free on both addresses");
}

/// Puts fresh internal metadata on a file of this size.
pub fn create_disk(path: &Path, bytes: u64) -> Sectors {
    let file = File::options().create(true).truncate(false).write(true).open(path).expect("a file");
    file.set_len(bytes).expect("room");
    let options =
        CreateOptions { place: Place::INTERNAL, al: AlStripes::DEFAULT, device_uuid: 0, peer_max_bio_size: 0 };
    let mut io = MetaFile::open(path, Access::Write, false).expect("the file");
    create_md(&mut io, &options).expect("metadata").0.data_size
}

impl Pair {
    /// Running daemons with fresh disks; nothing is configured in them.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let node = |index: usize| {
            let node = Node {
                dir: dir.path().join(["a", "b"][index]),
                index,
                port,
                args: args.iter().map(|&arg| arg.to_owned()).collect(),
                child: None,
            };
            fs::create_dir(&node.dir).expect("a directory");
            node
        };
        let (mut a, mut b) = (node(0), node(1));
        let data_size = create_disk(&a.disk(), DISK_BYTES);
        create_disk(&b.disk(), DISK_BYTES);
        a.start();
        b.start();
        Self { a, b, dir, data_size }
    }

    /// Connected, in sync, node a Primary.
    pub fn synced(args: &[&str], net: &NetOptions) -> Self {
        let pair = Self::start(args);
        pair.a.up(net);
        pair.b.up(net);
        pair.a.wait("connected", |v| v.state >= ConnState::Connected);
        pair.b.wait("connected", |v| v.state >= ConnState::Connected);
        pair.a.ok(pair.a.primary(true));
        pair.wait_in_sync();
        pair
    }

    /// Waits until both nodes see both disks UpToDate.
    pub fn wait_in_sync(&self) {
        for node in [&self.a, &self.b] {
            node.wait("in sync", in_sync);
        }
    }

    /// Takes both nodes down and compares the data.
    pub fn down_and_compare(&mut self) {
        self.a.ok(Request::Down { resource: RES.to_owned(), force: false });
        self.b.ok(Request::Down { resource: RES.to_owned(), force: false });
        self.compare();
    }

    /// Compares the data of both disks, and gives them.
    pub fn compare(&self) -> Vec<u8> {
        let len = usize::try_from(self.data_size.bytes()).expect("small");
        let mut disks = [self.a.disk(), self.b.disk()].map(|path| fs::read(path).expect("the disk"));
        disks.iter_mut().for_each(|disk| disk.truncate(len));
        let [a, b] = disks;
        let differ = a.iter().zip(&b).position(|(a, b)| a != b);
        assert_eq!(differ, None, "first byte that differs");
        a
    }
}

/// Connected with two good disks.
pub fn in_sync(v: &Volume) -> bool {
    v.state == ConnState::Connected && v.disk == DiskState::UpToDate && v.peer_disk == DiskState::UpToDate
}

/// Options by name.
pub fn net(options: &[(&str, &str)]) -> NetOptions {
    let mut net = NetOptions::default();
    // Cuts are noticed soon.
    for (name, value) in [("ping-int", "1"), ("connect-int", "1"), ("timeout", "9")].iter().chain(options) {
        net.set(name, value).expect("an option");
    }
    net
}

impl Node {
    /// Path of the backing file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// Path of the NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// Path of the control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What the daemon has logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Replication address of this node.
    pub fn address(&self) -> Address {
        Address::new(ADDRESSES[self.index].parse().expect("an address"), self.port)
    }

    fn peer_address(&self) -> Address {
        Address::new(ADDRESSES[1 - self.index].parse().expect("an address"), self.port)
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, with more arguments.
    pub fn start_with(&mut self, args: &[&str]) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_udrbd"))
            .arg("--run-dir")
            .arg(&self.dir)
            .args(["--frontend", "nbd", "--hostname", ["a", "b"][self.index]])
            .args(&self.args)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon");
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while Client::connect(&self.control_socket()).is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert_eq!(ended, None, "the daemon ended:\n{}", self.log_text());
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the daemon as a crash would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    /// Ends the daemon in an orderly way.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running daemon");
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        child.wait().expect("ended")
    }

    /// Whether the daemon runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child").is_none())
    }

    /// Sends a request.
    pub fn call(&self, request: Request) -> Result<(), ErrorReply> {
        let mut client = Client::connect(&self.control_socket()).expect("the daemon");
        match client.call(request).expect("an answer") {
            Reply::Done => Ok(()),
            Reply::Error(error) => Err(error),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    /// Sends a request that must succeed.
    pub fn ok(&self, request: Request) {
        let what = format!("{request:?}");
        if let Err(error) = self.call(request) {
            panic!("{what}: {error}\n{}", self.log_text());
        }
    }

    /// Sends a request that must be refused; gives number and words.
    pub fn refused(&self, request: Request) -> (i32, String) {
        let error = self.call(request).expect_err("a refusal");
        (error.code, error.detail)
    }

    pub fn primary(&self, force: bool) -> Request {
        Request::Primary { resource: RES.to_owned(), volume: V0, force }
    }

    pub fn secondary(&self, force: bool) -> Request {
        Request::Secondary { resource: RES.to_owned(), volume: V0, force }
    }

    pub fn attach(&self, path: &Path) -> Request {
        Request::Attach {
            resource: RES.to_owned(),
            volume: V0,
            backing: path.display().to_string(),
            meta_disk: MetaDisk::Internal,
            options: DiskOptions::default(),
        }
    }

    pub fn connect(&self, net: &NetOptions) -> Request {
        Request::Connect {
            resource: RES.to_owned(),
            local: self.address(),
            peer: self.peer_address(),
            peer_name: None,
            options: Box::new(net.clone()),
        }
    }

    pub fn disconnect(&self, force: bool) -> Request {
        Request::Disconnect { resource: RES.to_owned(), force }
    }

    pub fn detach(&self) -> Request {
        Request::Detach { resource: RES.to_owned(), volume: V0, force: false }
    }

    /// Creates the resource and its volume.
    pub fn create(&self) {
        self.ok(Request::NewResource { resource: RES.to_owned(), options: ResourceOptions::default(), handlers: None });
        self.ok(Request::NewVolume {
            resource: RES.to_owned(),
            volume: V0,
            minor: Minor(0),
            device: None,
            options: DiskOptions::default(),
        });
    }

    /// Creates, attaches, connects.
    pub fn up(&self, net: &NetOptions) {
        self.create();
        self.ok(self.attach(&self.disk()));
        self.ok(self.connect(net));
    }

    /// What the node sees now.
    pub fn volume(&self) -> Volume {
        let mut client = Client::connect(&self.control_socket()).expect("the daemon");
        let status = client.status(Some(RES)).expect("a status");
        status.resource(RES).and_then(first_volume).expect("a volume")
    }

    /// Waits until the volume satisfies `good`.
    pub fn wait(&self, what: &str, mut good: impl FnMut(&Volume) -> bool) -> Volume {
        let client = Client::connect(&self.control_socket()).expect("the daemon");
        let (status, mut watcher) = client.watch(Some(RES)).expect("events");
        let mut now = status.resource(RES).and_then(first_volume);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(volume) = now.take_if(|volume| good(volume)) {
                return volume;
            }
            match watcher.next(Some(deadline)).expect("an event") {
                Some(Event::Resource(resource)) => now = first_volume(&resource),
                Some(_) => {}
                None => panic!("{what}: did not happen; {:?}\n{}", self.volume(), self.log_text()),
            }
        }
    }

    /// Opens the export of the volume.
    pub fn open(&self) -> std::io::Result<NbdClient> {
        NbdClient::open(&self.nbd_socket(), RES)
    }
}

fn first_volume(resource: &Resource) -> Option<Volume> {
    resource.volumes.first().cloned()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
