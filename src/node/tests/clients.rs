//! Clients of one volume: NBD connections that write, read, zero and flush at random, and check what they read.
//!
//! Each client is two threads on one connection: one sends, one receives the answers. They end when the connection does, or
//! when they are told to and everything is answered. A request that is not answered in [`PATIENCE`] is a failure, unless
//! the connection ended.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::history::{Fill, History, SECTOR};
use crate::engine::rng::Rng;
use crate::frontend::nbd::export::{ExportInfo, Negotiated};
use crate::frontend::nbd::proto::{Cmd, SIMPLE_REPLY_MAGIC, command_flag};
use crate::frontend::nbd::stream::{Connection, Socket};
use crate::frontend::nbd::transmission::RequestHeader;
use crate::node::Shard;
use crate::units::{Sectors, VolumeNr};

/// Sectors of one window that clients work on; there is one in every activity-log extent.
pub const WINDOW: u64 = 256;
/// Distance of the windows: an extent, and a bit so that they begin at different places of it.
pub const WINDOW_STEP: u64 = 8192 + 520;

#[derive(Clone, Debug)]
enum Sent {
    Read { first: u64, len: usize, begin: u64 },
    Write(u32),
    Flush(u64),
}

/// What the clients of a round have in common.
#[derive(Debug)]
pub struct Shared {
    pub history: History,
    stop: AtomicBool,
    answers: AtomicU64,
    answered: Condvar,
    failures: Mutex<Vec<String>>,
    windows: u64,
    depth: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(size: Sectors, depth: usize) -> Arc<Self> {
        Arc::new(Self {
            history: History::default(),
            stop: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            answered: Condvar::new(),
            failures: Mutex::default(),
            windows: (size.0 - WINDOW) / WINDOW_STEP + 1,
            depth,
        })
    }

    /// Waits until so many more requests were answered, or some time has passed: a pace, nothing depends on it.
    pub fn progress(&self, count: u64, at_most: Duration) {
        let goal = self.answers.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + at_most;
        let mut failures = lock(&self.failures);
        while self.answers.load(Ordering::Relaxed) < goal && failures.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            failures = self.answered.wait_timeout(failures, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What went wrong so far.
    pub fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    fn fail(&self, what: String) {
        lock(&self.failures).push(what);
        self.answered.notify_all();
    }
}

#[derive(Debug, Default)]
struct Flight {
    requests: BTreeMap<u64, Sent>,
    gone: bool,
}

#[derive(Debug)]
struct Line {
    shared: Arc<Shared>,
    flight: Mutex<Flight>,
    room: Condvar,
}

/// Running clients.
#[derive(Debug, Default)]
pub struct Clients(Vec<JoinHandle<()>>);

impl Clients {
    /// Starts `count` clients of the volume that `shard` serves.
    pub fn start(shared: &Arc<Shared>, shard: &Shard, size: Sectors, count: usize, rng: &mut Rng) -> Self {
        shared.stop.store(false, Ordering::Relaxed);
        let mut threads = Vec::new();
        for _ in 0..count {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            let export = ExportInfo {
                name: String::from("r0"),
                description: String::new(),
                size,
                read_only: false,
                trim: true,
                multi_conn: true,
            };
            let negotiated = Negotiated { export, flags: u16::MAX, structured: false, base_allocation: false };
            let (socket, peer) = (Socket::Unix(theirs), String::from("test"));
            shard.serve(VolumeNr(0), Connection { socket, negotiated, leftover: Vec::new(), peer });
            let line = Line { shared: Arc::clone(shared), flight: Mutex::default(), room: Condvar::new() };
            let line = Arc::new(line);
            ours.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let (receiving, receiver) = (ours.try_clone().expect("a descriptor"), Arc::clone(&line));
            threads.push(std::thread::spawn(move || receiver.receive(receiving)));
            let rng = Rng::new(rng.next_u64());
            threads.push(std::thread::spawn(move || line.send(ours, rng)));
        }
        Self(threads)
    }

    /// Waits until the clients have ended, because their connections did.
    pub fn join(&mut self) {
        for thread in self.0.drain(..) {
            thread.join().expect("a client does not fail");
        }
    }

    /// Ends the clients when everything that they asked for is answered.
    pub fn finish(&mut self, shared: &Shared) {
        shared.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}

impl Line {
    fn send(&self, mut socket: UnixStream, mut rng: Rng) {
        let mut cookie = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let mut flight = lock(&self.flight);
            while flight.requests.len() >= self.shared.depth && !flight.gone {
                flight = self.room.wait(flight).unwrap_or_else(PoisonError::into_inner);
            }
            if flight.gone {
                return;
            }
            cookie += 1;
            let (header, sent, payload) = self.draw(cookie, &mut rng);
            flight.requests.insert(cookie, sent);
            drop(flight);
            if socket.write_all(&header.encode()).and_then(|()| socket.write_all(&payload)).is_err() {
                return;
            }
        }
        let header = RequestHeader { flags: 0, command: Cmd::DISC, cookie: 0, offset: 0, len: 0 };
        // The server answers what is under way, then closes the connection.
        let _ = socket.write_all(&header.encode());
    }

    fn draw(&self, cookie: u64, rng: &mut Rng) -> (RequestHeader, Sent, Vec<u8>) {
        let history = &self.shared.history;
        let dice = rng.next_u64() % 100;
        let (first, count) = self.draw_range(rng);
        let (offset, len) = (first * SECTOR as u64, u32::try_from(count).expect("small") * 512);
        let header = |command, flags| RequestHeader { flags, command, cookie, offset, len };
        let fua = rng.next_u64().is_multiple_of(8);
        let fua_flag = if fua { command_flag::FUA } else { 0 };
        let sectors = first..first + count;
        match dice {
            0..60 => {
                let nr = history.begin(sectors.clone(), Fill::Stamp, fua);
                (header(Cmd::WRITE, fua_flag), Sent::Write(nr), History::stamp(nr, sectors))
            }
            60..85 => {
                let len = usize::try_from(count).expect("small") * SECTOR;
                (header(Cmd::READ, 0), Sent::Read { first, len, begin: history.now() }, Vec::new())
            }
            85..90 => {
                let nr = history.begin(sectors, Fill::Zero, fua);
                (header(Cmd::WRITE_ZEROES, fua_flag), Sent::Write(nr), Vec::new())
            }
            90..93 => {
                let nr = history.begin(sectors, Fill::Trim, fua);
                (header(Cmd::TRIM, fua_flag), Sent::Write(nr), Vec::new())
            }
            _ => {
                let header = RequestHeader { flags: 0, command: Cmd::FLUSH, cookie, offset: 0, len: 0 };
                (header, Sent::Flush(history.now()), Vec::new())
            }
        }
    }

    /// Mostly small and often in the same few places, so that requests overlap.
    fn draw_range(&self, rng: &mut Rng) -> (u64, u64) {
        let window = rng.next_u64() % self.shared.windows;
        let count = match rng.next_u64() % 8 {
            0..5 => 8,
            5 => 1 + rng.next_u64() % 15,
            6 => 64,
            _ => 1 + rng.next_u64() % WINDOW,
        };
        let align = if count == 8 { 8 } else { 1 };
        let first = rng.next_u64() % ((WINDOW - count) / align + 1) * align;
        (window * WINDOW_STEP + first, count)
    }

    fn receive(&self, mut socket: UnixStream) {
        if let Err(why) = self.receive_all(&mut socket) {
            self.shared.fail(why);
        }
        lock(&self.flight).gone = true;
        self.room.notify_all();
    }

    /// Ends with the connection.
    fn receive_all(&self, socket: &mut UnixStream) -> Result<(), String> {
        let history = &self.shared.history;
        let mut head = [0; 16];
        loop {
            if let Err(error) = socket.read_exact(&mut head) {
                let open = lock(&self.flight).requests.clone();
                return match error.kind() {
                    std::io::ErrorKind::WouldBlock if !open.is_empty() => {
                        Err(format!("{} requests were not answered: {:?}", open.len(), open.values().next()))
                    }
                    std::io::ErrorKind::WouldBlock => continue,
                    _ => Ok(()),
                };
            }
            let word = |range: Range<usize>| u32::from_be_bytes(head[range].try_into().expect("four bytes"));
            if word(0..4) != SIMPLE_REPLY_MAGIC {
                return Err(format!("{head:x?} is not an answer"));
            }
            let cookie = u64::from_be_bytes(head[8..].try_into().expect("eight bytes"));
            let sent = lock(&self.flight).requests.get(&cookie).cloned();
            let ok = word(4..8) == 0;
            match sent {
                None => return Err(format!("answer to {cookie}, which was answered or never asked")),
                Some(Sent::Read { first, len, begin }) => {
                    if ok {
                        let mut data = vec![0; len];
                        if socket.read_exact(&mut data).is_err() {
                            return Ok(());
                        }
                        history.check(first, &data, begin..history.now()).map_err(|why| format!("a read: {why}"))?;
                    }
                    history.read(ok);
                }
                Some(Sent::Write(nr)) => history.end(nr, ok),
                Some(Sent::Flush(begin)) => history.flushed(begin, ok),
            }
            lock(&self.flight).requests.remove(&cookie);
            self.room.notify_all();
            self.shared.answers.fetch_add(1, Ordering::Relaxed);
            self.shared.answered.notify_all();
        }
    }
}
