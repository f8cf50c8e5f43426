//! Links against each other and against scripted peers, over loopback. Every test has its own addresses, so that tests run
//! side by side; nothing depends on time but a generous limit.

mod establish;
mod hostile;
mod traffic;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;
use crate::units::{BlockId, Sector, SeqNr};
use crate::wire::agreed::Agreed;
use crate::wire::codec::{Header, encode};
use crate::wire::data::{Data, DpFlags};
use crate::wire::decoder::StreamDecoder;
use crate::wire::digest::{AlgName, Digest, DigestAlg};
use crate::wire::feature::{FeatureFlags, Features, Version};
use crate::wire::kind::Phase;
use crate::wire::params::{AfterSb, ConnFlags, Protocol, ReplProtocol};
use crate::wire::state::StateWord;

/// Limit of a whole test; only reached when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const PORT: u16 = 7788;

/// Runs a test in a shard's surroundings.
fn shard<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async { timeout(PATIENCE, test).await.expect("the test hangs") }));
}

/// Two addresses that no other test uses, not even one of another process.
fn addresses() -> (SocketAddr, SocketAddr) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let nr = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).ok().filter(|nr| *nr < 126).expect("too many tests");
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = |last| Ipv4Addr::new(127, high % 250 + 2, low, nr * 2 + last);
    (SocketAddr::from((ip(1), PORT)), SocketAddr::from((ip(2), PORT)))
}

fn config(local: SocketAddr, peer: SocketAddr) -> LinkConfig {
    LinkConfig {
        connect_int: Duration::from_millis(200),
        ping_timeout: Duration::from_secs(5),
        socket_check_timeout: Duration::from_millis(10),
        ..LinkConfig::new(local, peer)
    }
}

// --- a node that only remembers ---

#[derive(Clone)]
struct Node(Rc<Inner>);

struct Inner {
    link: RefCell<Option<Link<Node, Pool>>>,
    events: RefCell<VecDeque<LinkEvent>>,
    packets: RefCell<VecDeque<(Socket, VolumeNr, Packet)>>,
    sent: RefCell<[u64; 2]>,
    batches: Cell<usize>,
    in_batch: Cell<usize>,
    on_up: RefCell<Vec<(Socket, Packet)>>,
    /// Do as an engine does when a link is lost: close it and start over.
    reconnect: Cell<bool>,
    current: RefCell<Option<Up>>,
    /// Close the link when so many packets have come.
    close_at: Cell<Option<usize>>,
    wants_data: Cell<bool>,
    changed: Notify,
}

impl Node {
    fn new(config: LinkConfig) -> Self {
        Self::with_pool(config, &Pool::new(64 << 20))
    }

    fn with_pool(config: LinkConfig, pool: &Pool) -> Self {
        let node = Self(Rc::new(Inner {
            link: RefCell::default(),
            events: RefCell::default(),
            packets: RefCell::default(),
            sent: RefCell::default(),
            batches: Cell::default(),
            in_batch: Cell::default(),
            on_up: RefCell::default(),
            reconnect: Cell::default(),
            current: RefCell::default(),
            close_at: Cell::default(),
            wants_data: Cell::new(true),
            changed: Notify::new(),
        }));
        *node.0.link.borrow_mut() = Some(Link::new(config, node.clone(), pool.clone()));
        node
    }

    fn started(config: LinkConfig) -> Self {
        let node = Self::new(config);
        node.act(&LinkAction::Start);
        node
    }

    fn act(&self, action: &LinkAction) {
        self.link(|link| link.action(action));
    }

    fn link<R>(&self, f: impl FnOnce(&Link<Self, Pool>) -> R) -> R {
        f(self.0.link.borrow().as_ref().expect("the link lives until the end of the test"))
    }

    /// Queues and flushes.
    fn send(&self, socket: Socket, packet: Packet) {
        self.link(|link| link.send(socket, VolumeNr(0), packet)).unwrap();
        self.flush();
    }

    fn flush(&self) {
        let flushed = self.link(Link::flush);
        for (slot, sent) in self.0.sent.borrow_mut().iter_mut().zip([flushed.data, flushed.meta]) {
            *slot = (*slot).max(sent.unwrap_or(0));
        }
    }

    fn sent(&self, socket: Socket) -> u64 {
        self.0.sent.borrow()[socket as usize]
    }

    /// Waits until `f` has something.
    async fn until<T>(&self, mut f: impl FnMut(&Inner) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            if let Some(found) = f(&self.0) {
                return found;
            }
            changed.await;
        }
    }

    async fn event(&self) -> LinkEvent {
        self.until(|inner| inner.events.borrow_mut().pop_front()).await
    }

    async fn up(&self) -> Up {
        let event = self.event().await;
        Up::of(&event).unwrap_or_else(|| panic!("not up: {event:?}"))
    }

    async fn refused(&self) -> String {
        match self.event().await {
            LinkEvent::Refused { reason } => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn lost(&self) -> Lost {
        match self.event().await {
            LinkEvent::Lost { socket, protocol_error, fatal, reason, .. } => {
                Lost { socket, protocol_error, fatal, reason }
            }
            other => panic!("not lost: {other:?}"),
        }
    }

    async fn packet(&self) -> (Socket, VolumeNr, Packet) {
        self.until(|inner| inner.packets.borrow_mut().pop_front()).await
    }

    fn current(&self) -> Option<Up> {
        self.0.current.borrow().clone()
    }

    fn has_packets(&self) -> usize {
        self.0.packets.borrow().len()
    }
}

/// Ends the link with the test: node and link know each other.
struct Guard(Vec<Node>);

impl Drop for Guard {
    fn drop(&mut self) {
        for node in &self.0 {
            let link = node.0.link.borrow_mut().take();
            drop(link);
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Up {
    nr: LinkNr,
    version: u32,
    features: u32,
    resolve_conflicts: bool,
    relaxed_epochs: bool,
}

impl Up {
    fn of(event: &LinkEvent) -> Option<Self> {
        match *event {
            LinkEvent::Up { nr, version, features, resolve_conflicts, relaxed_epochs } => {
                Some(Self { nr, version, features, resolve_conflicts, relaxed_epochs })
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Lost {
    socket: Socket,
    protocol_error: bool,
    fatal: bool,
    reason: String,
}

impl Sink for Node {
    fn packet(&mut self, nr: LinkNr, socket: Socket, volume: VolumeNr, packet: Packet) {
        self.0.packets.borrow_mut().push_back((socket, volume, packet));
        if self.0.close_at.get() == Some(self.has_packets()) {
            self.act(&LinkAction::Close { nr });
        }
        self.0.in_batch.set(self.0.in_batch.get() + 1);
    }

    fn event(&mut self, event: LinkEvent) {
        self.0.current.replace(Up::of(&event));
        match &event {
            LinkEvent::Up { .. } => {
                *self.0.sent.borrow_mut() = [0; 2];
                for (socket, packet) in self.0.on_up.borrow().iter() {
                    self.send(*socket, packet.clone());
                }
            }
            LinkEvent::Lost { nr, .. } if self.0.reconnect.get() => {
                self.0.packets.borrow_mut().clear();
                self.act(&LinkAction::Close { nr: *nr });
                self.act(&LinkAction::Start);
            }
            _ => {}
        }
        self.0.events.borrow_mut().push_back(event);
        self.0.in_batch.set(self.0.in_batch.get() + 1);
    }

    fn sent(&mut self, _: LinkNr, socket: Socket, packets: u64) {
        let sent = &mut self.0.sent.borrow_mut()[socket as usize];
        assert!(packets > *sent, "only progress is reported");
        *sent = packets;
        self.0.in_batch.set(self.0.in_batch.get() + 1);
    }

    fn batch_end(&mut self) {
        assert_ne!(self.0.in_batch.take(), 0, "no batch is empty");
        self.0.batches.set(self.0.batches.get() + 1);
        self.0.changed.notify_waiters();
    }

    fn wants_data(&self) -> bool {
        self.0.wants_data.get()
    }

    async fn until_wanted(&self) {
        self.until(|inner| inner.wants_data.get().then_some(())).await;
    }
}

// --- buffers with a budget ---

#[derive(Clone)]
struct Pool(Arc<Budget>);

struct Budget {
    free: AtomicUsize,
    returned: Notify,
}

struct Buf {
    bytes: Vec<u8>,
    budget: Arc<Budget>,
}

impl Pool {
    fn new(bytes: usize) -> Self {
        Self(Arc::new(Budget { free: AtomicUsize::new(bytes), returned: Notify::new() }))
    }

    fn free(&self) -> usize {
        self.0.free.load(Ordering::Relaxed)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.budget.free.fetch_add(self.bytes.len(), Ordering::Relaxed);
        self.budget.returned.notify_waiters();
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Buffers for Pool {
    type Buf = Buf;

    fn try_alloc(&self, len: usize) -> Option<Buf> {
        let free = &self.0.free;
        free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(len)).ok()?;
        Some(Buf { bytes: vec![0xee; len], budget: Arc::clone(&self.0) })
    }

    async fn alloc(&self, len: usize) -> Option<Buf> {
        loop {
            let returned = self.0.returned.notified();
            if let Some(buf) = self.try_alloc(len) {
                return Some(buf);
            }
            returned.await;
        }
    }

    fn freeze(buf: Buf) -> Bytes {
        Bytes::from_owner(buf)
    }
}

// --- a peer that does what the test says ---

struct Script {
    data: TcpStream,
    meta: TcpStream,
    data_in: StreamDecoder,
    meta_in: StreamDecoder,
    agreed: Agreed,
}

/// A connection as the peer opens it; again until the node listens.
async fn dial(from: SocketAddr, to: SocketAddr) -> TcpStream {
    dial_with(from, to, None).await
}

/// The same, with a receive buffer of so many bytes.
async fn dial_with(from: SocketAddr, to: SocketAddr, rcvbuf: Option<u32>) -> TcpStream {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = rcvbuf {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.bind(SocketAddr::new(from.ip(), 0)).unwrap();
        if let Ok(stream) = socket.connect(to).await {
            stream.set_nodelay(true).unwrap();
            return stream;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn put(stream: &mut TcpStream, packet: &Packet, agreed: &Agreed) {
    let mut bytes = BytesMut::new();
    encode(VolumeNr(0), packet, agreed, &mut bytes).unwrap();
    stream.write_all(&bytes).await.unwrap();
}

/// The next packet, or `None` when the node has closed the connection.
async fn get(stream: &mut TcpStream, decoder: &mut StreamDecoder) -> Option<(Header, Packet)> {
    let mut bytes = vec![0; 65536];
    loop {
        if let Some(packet) = decoder.next_packet().unwrap() {
            return Some(packet);
        }
        match stream.read(&mut bytes).await {
            Ok(count) if count > 0 => decoder.feed(&bytes[..count]),
            _ => return None,
        }
    }
}

/// Waits until the node has closed this connection.
async fn closed(stream: &mut TcpStream) {
    let mut bytes = vec![0; 65536];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}

impl Script {
    /// Opens both sockets towards `node`, without a listener of its own. The features are still to come.
    async fn open(own: SocketAddr, node: SocketAddr) -> Self {
        Self::open_with(own, node, None).await
    }

    async fn open_with(own: SocketAddr, node: SocketAddr, rcvbuf: Option<u32>) -> Self {
        let mut data = dial_with(own, node, rcvbuf).await;
        put(&mut data, &Packet::InitialData, &Agreed::initial()).await;
        let mut meta = dial(own, node).await;
        put(&mut meta, &Packet::InitialMeta, &Agreed::initial()).await;
        Self::over(data, meta)
    }

    fn over(data: TcpStream, meta: TcpStream) -> Self {
        Self {
            data,
            meta,
            data_in: StreamDecoder::new(Socket::Data, Phase::Features, Agreed::initial()),
            meta_in: StreamDecoder::new(Socket::Meta, Phase::Connected, Agreed::initial()),
            agreed: Agreed::initial(),
        }
    }

    /// Exchanges features; false when the node closes the connection instead.
    async fn features(&mut self, own: Features) -> bool {
        put(&mut self.data, &Packet::ConnectionFeatures(own), &Agreed::initial()).await;
        let Some((_, Packet::ConnectionFeatures(peer))) = get(&mut self.data, &mut self.data_in).await else {
            return false;
        };
        self.agreed = Agreed::negotiate(own, peer).unwrap();
        for decoder in [&mut self.data_in, &mut self.meta_in] {
            *decoder.agreed_mut() = self.agreed;
            decoder.set_phase(Phase::Connected);
        }
        true
    }

    /// Up to the established link.
    async fn up(own: SocketAddr, node: &Node, node_addr: SocketAddr) -> Self {
        let mut script = Self::open(own, node_addr).await;
        assert!(script.features(Features::own()).await);
        node.up().await;
        script
    }

    /// The same; the peer's system takes in little before it is read.
    async fn up_slow(own: SocketAddr, node: &Node, node_addr: SocketAddr) -> Self {
        let mut script = Self::open_with(own, node_addr, Some(16 << 10)).await;
        assert!(script.features(Features::own()).await);
        node.up().await;
        script
    }

    async fn put_data(&mut self, packet: &Packet) {
        put(&mut self.data, packet, &self.agreed).await;
    }

    async fn put_meta(&mut self, packet: &Packet) {
        put(&mut self.meta, packet, &self.agreed).await;
    }

    /// As encoded for the data socket.
    fn encoded(&self, packets: &[Packet]) -> BytesMut {
        let mut bytes = BytesMut::new();
        for packet in packets {
            encode(VolumeNr(0), packet, &self.agreed, &mut bytes).unwrap();
        }
        bytes
    }
}

fn protocol(integrity: &str) -> Packet {
    Packet::Protocol(Protocol {
        protocol: ReplProtocol::C,
        after_sb_0p: AfterSb::Disconnect,
        after_sb_1p: AfterSb::Disconnect,
        after_sb_2p: AfterSb::Disconnect,
        conn_flags: ConnFlags::NONE,
        two_primaries: false,
        integrity_alg: AlgName::parse(integrity).unwrap(),
    })
}

/// Secondary, connected, both disks up to date: opens the connected phase.
fn state() -> Packet {
    Packet::State(StateWord(0x0000_88aa))
}

fn write(nr: u32, len: usize) -> Packet {
    let [low, ..] = nr.to_le_bytes();
    let bytes: Vec<u8> = (0..251).cycle().map(|byte: u8| byte ^ low).take(len).collect();
    Packet::Data(Data {
        sector: Sector(u64::from(nr) * 2048),
        block_id: BlockId(u64::from(nr)),
        seq: SeqNr(nr),
        flags: DpFlags::SEND_WRITE_ACK,
        digest: Digest::EMPTY,
        payload: Bytes::from(bytes),
    })
}
