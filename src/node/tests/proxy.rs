//! A network between two nodes that misbehaves as told: a TCP proxy with an address for each of them.
//!
//! Each node connects to an address of the proxy and is connected to from that address, so that both believe that it is the
//! peer's. Every connection passes bytes on in both directions, subject to the [`Weather`] and to its own drawn fate.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::rng::Rng;

/// What the network is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Connections are accepted and closed at once.
    pub down: bool,
    /// Every increment ends all connections.
    pub cuts: u64,
    /// How the next cut looks.
    pub cut: Cut,
    /// Until when nothing passes from A to B, from B to A. Not for ever: a data socket that is silent while the other one
    /// is not holds an operator's command up for as long.
    pub stalled: [Option<Instant>; 2],
    /// Only connections with an even (`Some(0)`) or odd number are stalled or cut.
    pub only: Option<u64>,
    /// Longest delay of a piece.
    pub delay: Duration,
    /// Pieces of so many bytes; 0: as they come.
    pub piece: usize,
    /// A new connection is reset after less than so many bytes in one direction; 0: never.
    pub fuse: u64,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Reset on both sides.
    #[default]
    Reset,
    /// Reset for one side (0: A), closed for the other.
    ResetOne(usize),
    /// Reset for one side, while the other one hears nothing until the weather changes.
    HalfOpen(usize),
    /// Closed on both sides.
    Closed,
}

/// The addresses of one pair of nodes.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Where the nodes listen.
    pub nodes: [SocketAddr; 2],
    /// Where each node finds its peer: the proxy.
    pub peers: [SocketAddr; 2],
}

const PORT: u16 = 7789;

impl Addresses {
    /// Addresses that no other pair of this process uses, nor one of a process with another number (as far as that goes).
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let [.., high, low] = std::process::id().to_be_bytes();
        let slot = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed) % 60).expect("small");
        let addr = |n: u8| SocketAddrV4::new(Ipv4Addr::new(127, high | 0x80, low, slot * 4 + n), PORT).into();
        Self { nodes: [addr(1), addr(2)], peers: [addr(3), addr(4)] }
    }
}

/// The running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    weather: watch::Sender<Weather>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    connections: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(addresses: Addresses, seed: u64, receive_buffer: Option<u32>) -> Self {
        let (weather, watching) = watch::channel(Weather::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let mut faces = Vec::new();
                for side in [0, 1] {
                    let socket = TcpSocket::new_v4().expect("a socket");
                    socket.set_reuseaddr(true).expect("an option");
                    if let Some(bytes) = receive_buffer {
                        socket.set_recv_buffer_size(bytes).expect("an option");
                    }
                    socket.bind(addresses.peers[side]).expect("an address of our own");
                    let listener = socket.listen(16).expect("a listener");
                    let rng = Rng::new(seed + side as u64);
                    let face = Face { side, addresses, receive_buffer };
                    faces.push(face.serve(listener, watching.clone(), rng, &count));
                }
                ready.send(()).expect("somebody waits");
                let [a, b] = <[_; 2]>::try_from(faces).unwrap_or_else(|_| unreachable!("two"));
                tokio::select! {
                    () = async { tokio::join!(a, b); } => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().expect("the proxy starts");
        Self { weather, stop: Some(stop), thread: Some(thread), connections }
    }

    /// Changes the weather.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the proxy failed");
        }
    }
}

/// One node's side of the proxy.
#[derive(Clone, Copy)]
struct Face {
    side: usize,
    addresses: Addresses,
    receive_buffer: Option<u32>,
}

impl Face {
    /// Serves the connections that the node opens.
    async fn serve(self, listener: TcpListener, weather: watch::Receiver<Weather>, mut rng: Rng, count: &AtomicU64) {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let Ok((from, _)) = accepted else { continue };
            if weather.borrow().down {
                continue;
            }
            let number = count.fetch_add(1, Ordering::Relaxed);
            let (rng, weather) = (Rng::new(rng.next_u64()), weather.clone());
            tasks.spawn(async move {
                let to = self.open().await?;
                from.set_nodelay(true)?;
                to.set_nodelay(true)?;
                let ends = if self.side == 0 { [from, to] } else { [to, from] };
                carry(ends, number, weather, rng).await;
                std::io::Result::Ok(())
            });
        }
    }

    /// Connects to the other node, from the address that it knows its peer by.
    async fn open(self) -> std::io::Result<TcpStream> {
        let other = 1 - self.side;
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let mut source = self.addresses.peers[other];
        source.set_port(0);
        socket.bind(source)?;
        socket.connect(self.addresses.nodes[other]).await
    }
}

/// Carries bytes both ways until the end of the connection, whichever that is.
async fn carry(ends: [TcpStream; 2], number: u64, mut weather: watch::Receiver<Weather>, mut rng: Rng) {
    let fuse = weather.borrow_and_update().fuse;
    let budget = |rng: &mut Rng| if fuse == 0 { u64::MAX } else { rng.next_u64() % fuse };
    let budgets =
        if rng.next_u64().is_multiple_of(2) { [budget(&mut rng), u64::MAX] } else { [u64::MAX, budget(&mut rng)] };
    let before = weather.borrow().cuts;
    let mut watching = weather.clone();
    let cut = async {
        let cut = |w: &Weather| w.cuts != before && w.only.is_none_or(|only| number % 2 == only);
        // The sender lives as long as the proxy does.
        watching.wait_for(cut).await.map_or(Cut::Reset, |w| w.cut)
    };
    let [a, b] = &ends;
    let seeds = [rng.next_u64(), rng.next_u64()];
    let how = tokio::select! {
        cut = cut => cut,
        // A closed direction stays so until the other one is closed, too.
        () = async {
            tokio::join!(
                pump(0, [a, b], number, weather.clone(), budgets[0], Rng::new(seeds[0])),
                pump(1, [b, a], number, weather.clone(), budgets[1], Rng::new(seeds[1])),
            );
        } => Cut::Closed,
    };
    let reset = |end: &TcpStream| {
        let _ = rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO));
    };
    match how {
        Cut::Closed => {}
        Cut::Reset => ends.iter().for_each(reset),
        Cut::ResetOne(side) => reset(&ends[side % 2]),
        Cut::HalfOpen(side) => {
            let [a, b] = ends;
            let (lost, kept) = if side == 0 { (a, b) } else { (b, a) };
            reset(&lost);
            drop(lost);
            // Until something else happens.
            weather.borrow_and_update();
            let _ = weather.changed().await;
            drop(kept);
        }
    }
}

/// Passes bytes on in one direction (0: from A to B) until its end, or until `budget` bytes have passed.
async fn pump(
    direction: usize,
    [from, to]: [&TcpStream; 2],
    number: u64,
    mut weather: watch::Receiver<Weather>,
    mut budget: u64,
    mut rng: Rng,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let now = *weather.borrow_and_update();
        if let Some(end) = now.stalled[direction].filter(|end| *end > Instant::now())
            && now.only.is_none_or(|only| number % 2 == only)
        {
            tokio::select! {
                () = tokio::time::sleep_until(end) => {}
                changed = weather.changed() => if changed.is_err() { return },
            }
            continue;
        }
        // Small pieces for a while, or nothing would ever get through.
        let piece = if now.piece > 0 && !rng.next_u64().is_multiple_of(4) { now.piece } else { buffer.len() };
        let room = piece.min(usize::try_from(budget).unwrap_or(usize::MAX)).max(1);
        let ready = tokio::select! {
            ready = from.readable() => ready,
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let count = match ready.and_then(|()| from.try_read(&mut buffer[..room])) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        if !now.delay.is_zero() {
            let micros = u64::try_from(now.delay.as_micros()).expect("short").max(1);
            tokio::time::sleep(Duration::from_micros(rng.next_u64() % micros)).await;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match to.writable().await.and_then(|()| to.try_write(rest)) {
                Ok(count) => rest = &rest[count..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return reset_both(from, to),
            }
        }
        budget = budget.saturating_sub(count as u64);
        if budget == 0 {
            return reset_both(from, to);
        }
    }
    // Half closed: what the other direction still carries arrives.
    let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
}

/// Both ends see a reset; the pump of the other direction notices, too.
fn reset_both(from: &TcpStream, to: &TcpStream) {
    for end in [from, to] {
        let _ = rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO));
        let _ = rustix::net::shutdown(end, rustix::net::Shutdown::Both);
    }
}
