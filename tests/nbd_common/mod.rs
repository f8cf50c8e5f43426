//! An NBD server inside the test process: a disk in memory behind the real server and session.
//!
//! The control side and the shard each have a thread and a runtime, as in the daemon.

#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::LocalSet;
use udrbd::frontend::nbd::export::{ExportHandle, ExportInfo, Exports, Refusal};
use udrbd::frontend::nbd::server::{HandOver, Listen, Server};
use udrbd::frontend::nbd::session;
use udrbd::frontend::nbd::stream::Connection;
use udrbd::frontend::request::{Backend, BufferSource, ClientRequest, Completer, Errno, Payload};
use udrbd::units::{SectorRange, Sectors};

/// How the memory disk answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Inside `submit`.
    AtOnce,
    /// After the batch, in reverse order.
    LaterReversed,
}

/// What to serve.
#[derive(Clone, Debug)]
pub struct Setup {
    pub exports: Vec<ExportInfo>,
    pub pace: Pace,
    /// Budget for payload of writes.
    pub pool_bytes: usize,
    /// Reads of this sector fail.
    pub bad_sector: Option<u64>,
}

/// An export of `mib` MiB with everything switched on.
pub fn export(name: &str, mib: u64) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: format!("{name}: Primary, UpToDate"),
        size: Sectors(mib * 2048),
        read_only: false,
        trim: true,
        multi_conn: true,
    }
}

impl Setup {
    pub fn one(mib: u64) -> Self {
        Self { exports: vec![export("r0", mib)], pace: Pace::AtOnce, pool_bytes: 64 << 20, bad_sector: None }
    }
}

/// A running server; stops when dropped.
pub struct TestServer {
    pub dir: tempfile::TempDir,
    pub tcp_port: u16,
    /// Sessions that have not ended.
    pub sessions: Arc<AtomicUsize>,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

struct Table {
    infos: Vec<ExportInfo>,
    shard: mpsc::UnboundedSender<(usize, Connection)>,
}

impl Exports for Table {
    type HandOver = HandOver;

    fn list(&self) -> Vec<ExportInfo> {
        self.infos.clone()
    }

    fn open(&self, name: &str) -> Result<ExportHandle<HandOver>, Refusal> {
        if name.starts_with("secondary") {
            return Err(Refusal::Policy(format!(
                "{name} is Secondary on this node; promote it with: drbdctl primary {name}"
            )));
        }
        let Some(index) = self.infos.iter().position(|info| info.name == name) else {
            return Err(Refusal::Unknown(format!("there is no export {name:?} on this node")));
        };
        let shard = self.shard.clone();
        let hand_over: HandOver = Box::new(move |connection| {
            // The shard's end is the test's end.
            let _ = shard.send((index, connection));
        });
        Ok(ExportHandle { info: self.infos[index].clone(), hand_over })
    }
}

impl TestServer {
    pub fn start(setup: Setup) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (to_shard, from_control) = mpsc::unbounded_channel();
        let sessions = Arc::new(AtomicUsize::new(0));
        let table = Arc::new(Table { infos: setup.exports.clone(), shard: to_shard });
        let listen = Listen {
            unix: Some(dir.path().join("nbd.sock")),
            tcp: Some("127.0.0.1:0".parse().expect("an address")),
            access: Default::default(),
        };
        let (ready, is_ready) = std::sync::mpsc::channel();
        let control = spawn(|| async move {
            let server = Server::bind(listen, table).await.expect("listening");
            ready.send(server.tcp_addr().expect("TCP").port()).expect("the test waits");
            server.run().await;
        });
        let open = Arc::clone(&sessions);
        let shard = spawn(|| serve_shard(setup, from_control, open));
        let tcp_port = is_ready.recv().expect("the server starts");
        Self { dir, tcp_port, sessions, threads: vec![control, shard] }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Waits until no session is left.
    pub fn wait_idle(&self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while self.sessions.load(Ordering::SeqCst) > 0 {
            assert!(std::time::Instant::now() < deadline, "a session does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        for (stop, thread) in self.threads.drain(..) {
            drop(stop);
            // A panic in there must fail the test.
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Runs what `main` makes in a thread and runtime of its own, until told to stop.
fn spawn<F: Future<Output = ()>>(main: impl FnOnce() -> F + Send + 'static) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            tokio::select! {
                () = main() => {}
                _ = stopped => {}
            }
        });
    });
    (stop, thread)
}

async fn serve_shard(
    setup: Setup,
    mut connections: mpsc::UnboundedReceiver<(usize, Connection)>,
    open: Arc<AtomicUsize>,
) {
    let disks: Vec<Rc<MemoryDisk>> =
        setup.exports.iter().map(|info| Rc::new(MemoryDisk::new(info.size, &setup))).collect();
    let pool = Arc::new(Pool { left: AtomicUsize::new(setup.pool_bytes), freed: Notify::new() });
    while let Some((index, connection)) = connections.recv().await {
        open.fetch_add(1, Ordering::SeqCst);
        let disk = Disk(Rc::clone(&disks[index]));
        let (_, session) = session::start(connection, disk, Source(Arc::clone(&pool))).expect("a session starts");
        let open = Arc::clone(&open);
        tokio::task::spawn_local(async move {
            session.await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// A disk in memory.
pub struct MemoryDisk {
    bytes: RefCell<Vec<u8>>,
    pace: Pace,
    bad_sector: Option<u64>,
    later: RefCell<Vec<(ClientRequest, Completer)>>,
}

impl MemoryDisk {
    fn new(size: Sectors, setup: &Setup) -> Self {
        Self {
            bytes: RefCell::new(vec![0; usize::try_from(size.bytes()).expect("a small disk")]),
            pace: setup.pace,
            bad_sector: setup.bad_sector,
            later: RefCell::default(),
        }
    }

    fn run(&self, request: ClientRequest) -> Result<Payload, Errno> {
        let byte = |bytes: u64| usize::try_from(bytes).expect("a small disk");
        let place = |range: SectorRange| byte(range.start.bytes())..byte(range.end().bytes());
        match request {
            ClientRequest::Read { range } => {
                if self.bad_sector.is_some_and(|bad| range.start.0 <= bad && bad < range.end().0) {
                    return Err(Errno::Io);
                }
                let bytes = Bytes::copy_from_slice(&self.bytes.borrow()[place(range)]);
                // In two pieces now and then, as a mirror may do.
                let middle = if bytes.len() > 4096 { 4096 } else { 0 };
                let pieces = [bytes.slice(..middle), bytes.slice(middle..)];
                Ok(pieces.into_iter().filter(|piece| !piece.is_empty()).collect())
            }
            ClientRequest::Write { range, data, .. } => {
                self.bytes.borrow_mut()[place(range)].copy_from_slice(&data);
                Ok(Payload::new())
            }
            ClientRequest::Trim { range, .. } | ClientRequest::WriteZeroes { range, .. } => {
                self.bytes.borrow_mut()[place(range)].fill(0);
                Ok(Payload::new())
            }
            ClientRequest::Flush => Ok(Payload::new()),
        }
    }
}

/// What the session gets: a reference, so that requests can be finished later.
struct Disk(Rc<MemoryDisk>);

impl Backend for Disk {
    fn submit(&self, request: ClientRequest, done: Completer) {
        match self.0.pace {
            Pace::AtOnce => done.complete(self.0.run(request)),
            Pace::LaterReversed => self.0.later.borrow_mut().push((request, done)),
        }
    }

    fn batch_end(&self) {
        if self.0.pace == Pace::LaterReversed {
            let disk = Rc::clone(&self.0);
            tokio::task::spawn_local(async move {
                tokio::task::yield_now().await;
                let batch = std::mem::take(&mut *disk.later.borrow_mut());
                for (request, done) in batch.into_iter().rev() {
                    done.complete(disk.run(request));
                }
            });
        }
    }
}

struct Pool {
    left: AtomicUsize,
    freed: Notify,
}

struct Source(Arc<Pool>);

/// Memory that counts against the pool until it is dropped.
struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.left.fetch_add(self.bytes.len(), Ordering::SeqCst);
        self.pool.freed.notify_waiters();
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::Deref for Pooled {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl BufferSource for Source {
    type Buffer = Pooled;

    fn try_alloc(&self, len: usize) -> Option<Pooled> {
        let left = &self.0.left;
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(len)).ok()?;
        Some(Pooled { bytes: vec![0; len], pool: Arc::clone(&self.0) })
    }

    fn freeze(&self, buffer: Pooled) -> Bytes {
        Bytes::from_owner(buffer)
    }

    async fn wait(&self, len: usize) {
        loop {
            let freed = self.0.freed.notified();
            if self.0.left.load(Ordering::SeqCst) >= len {
                return;
            }
            freed.await;
        }
    }
}

/// Whether `tool` is there; prints the one line that says that a test is skipped.
pub fn have(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]).any(|dir| dir.join(tool).is_file())
    });
    if !found {
        println!("skipped: {tool} is not installed");
    }
    found
}

/// Runs a client to its end.
pub fn run(tool: &str, args: &[&str]) -> Output {
    Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("cannot start {tool}: {error}"))
}

/// Runs a client that must succeed; returns what it printed.
pub fn succeed(tool: &str, args: &[&str]) -> String {
    let output = run(tool, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {args:?} failed with {}:\n{stdout}\n{stderr}", output.status);
    stdout
}
