//! One or two engines on simulated disks, interleaved by a seed; everything that one node does to its disk is recorded.
//!
//! Owns engines, disks, sockets and timers. Data are kept as one number for each sector, the first eight bytes of what was
//! written. Gives out the [`Recording`] with the facts that follow from what the node tells clients, commands and peer.
//! Disk operations of one node end in any order; links lose nothing but what is under way when they are cut.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::model::facts;
use super::record::{Fact, Io, OpNr, PeerView, RecordIo, Recording, SECTOR};
pub(super) use super::shape::Shape;
use crate::engine::Engine;
use crate::engine::action::{Action, CommandError, DiskOp, LinkAction};
use crate::engine::event::{
    ClientRequest, Command, CommandId, DiskFailure, Event, LinkEvent, LinkNr, OpId, RequestId, Socket, Timer,
};
use crate::engine::fault::Fault;
use crate::engine::load::{LoadError, load_moved};
use crate::engine::options::{DiskOptions, NetOptions};
use crate::engine::rng::Rng;
use crate::engine::status::VolumeStatus;
use crate::engine::undo::{UndoAnswer, UndoOrder};
use crate::meta::create::create_md;
use crate::meta::{DeviceSizes, MdFlags, MemIo, MetaError, MetaIo};
use crate::units::{Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, Role};

const V: VolumeNr = VolumeNr(0);
/// Most things that happen until a world must be quiet.
const STEPS_MAX: usize = 400_000;

#[derive(Debug)]
struct Node {
    engine: Engine,
    meta: MemIo,
    data: Rc<BTreeMap<u64, u64>>,
    timers: BTreeMap<Timer, Timestamp>,
    results: BTreeMap<CommandId, Result<(), CommandError>>,
    /// Operations under way; the number is that of the recorded node's recording.
    disk: Vec<(OpId, DiskOp, Option<OpNr>)>,
    sockets: [VecDeque<Packet>; 2],
    sent: [u64; 2],
    goes_on: bool,
    wants_link: bool,
    link: Option<LinkNr>,
    closing: bool,
    /// Client writes under way.
    writes: BTreeSet<RequestId>,
}

impl Node {
    fn new(seed: u64, bytes: u64) -> Self {
        Self {
            engine: Engine::new("r0", seed),
            meta: MemIo::new(bytes),
            data: Rc::default(),
            timers: BTreeMap::new(),
            results: BTreeMap::new(),
            disk: Vec::new(),
            sockets: [VecDeque::new(), VecDeque::new()],
            sent: [0; 2],
            goes_on: false,
            wants_link: false,
            link: None,
            closing: false,
            writes: BTreeSet::new(),
        }
    }

    fn status(&self) -> Option<VolumeStatus> {
        self.engine.status(Timestamp(0)).volumes.into_iter().find(|v| v.nr == V)
    }

    fn drop_packets(&mut self) {
        self.sockets.iter_mut().for_each(VecDeque::clear);
        self.closing = false;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    nodes: Vec<Node>,
    shape: Shape,
    now: Timestamp,
    pub rng: Rng,
    /// Which node is recorded.
    recorded: usize,
    pub recording: Recording,
    peer: PeerView,
    /// First sectors of resync data that came to the recorded node.
    resync: BTreeSet<u64>,
    cut: bool,
    next_id: u64,
    next_link: u64,
    next_tag: u64,
    /// The next metadata write of the recorded node fails.
    pub fail_meta_write: bool,
}

pub(super) const A: usize = 0;
pub(super) const B: usize = 1;

impl World {
    /// `nodes` is 1 or 2. The metadata of all are created; recorded is that of node `recorded`.
    pub(super) fn new(name: &str, seed: u64, shape: Shape, nodes: usize, recorded: usize) -> Result<Self, MetaError> {
        let mut recording = Recording::new(format!("{name} seed {seed}"), shape.place(), shape.meta_bytes());
        let mut all = Vec::new();
        for n in 0..nodes {
            let mut node = Node::new(seed.wrapping_mul(7).wrapping_add(n as u64), shape.meta_bytes());
            if n == recorded {
                create_md(&mut RecordIo { io: &mut node.meta, recording: &mut recording }, &shape.create_options())?;
                recording.fact(Fact::Attachable);
            } else {
                create_md(&mut node.meta, &shape.create_options())?;
            }
            all.push(node);
        }
        Ok(Self {
            nodes: all,
            shape,
            now: Timestamp(1_000_000_000),
            rng: Rng::new(seed),
            recorded,
            recording,
            peer: PeerView::default(),
            resync: BTreeSet::new(),
            cut: false,
            next_id: 0,
            next_link: 0,
            next_tag: 0,
            fail_meta_write: false,
        })
    }

    /// Makes every engine commit this mistake.
    pub(super) fn inject(&mut self, fault: Option<Fault>) {
        self.nodes.iter_mut().for_each(|node| node.engine.inject(fault));
    }

    /// Crashes are looked at from here on.
    pub(super) fn start_here(&mut self) {
        self.recording.start = self.recording.steps.len();
    }

    fn event(&mut self, n: usize, event: Event) {
        let mut out = Vec::new();
        if let Some(node) = self.nodes.get_mut(n) {
            node.engine.handle(self.now, event, &mut out);
            node.engine.handle(self.now, Event::BatchEnd, &mut out);
        }
        for action in out {
            self.action(n, action);
        }
        if n != self.recorded {
            self.look_at_peer();
        }
    }

    /// Notes what the peer has and knows, if that changed.
    fn look_at_peer(&mut self) {
        let Some(node) = self.nodes.get(1 - self.recorded) else { return };
        let mut covered: Vec<Range<u64>> = Vec::new();
        let mut ranges = node.engine.covered_after_loss(V);
        ranges.sort_unstable_by_key(|range| range.start);
        for range in ranges {
            match covered.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => covered.push(range),
            }
        }
        if covered != self.peer.covered || !Rc::ptr_eq(&node.data, &self.peer.content) {
            self.peer = PeerView { content: Rc::clone(&node.data), covered };
            self.recording.fact(Fact::Peer(Rc::new(self.peer.clone())));
        }
    }

    fn action(&mut self, n: usize, action: Action) {
        let recorded = n == self.recorded;
        if recorded {
            self.note_promises(&action);
        }
        let Some(node) = self.nodes.get_mut(n) else { return };
        match action {
            Action::Disk { op, io, .. } => {
                let nr = if recorded { self.record(&io) } else { None };
                if !recorded {
                    // What the peer has started it will finish.
                    self.apply_data(n, &io);
                }
                if let Some(node) = self.nodes.get_mut(n) {
                    node.disk.push((op, io, nr));
                }
            }
            Action::CloseDisk { .. } => self.event(n, Event::DiskClosed { volume: V }),
            Action::Send { socket, packet, .. } => node.sockets[usize::from(socket == Socket::Meta)].push_back(packet),
            Action::Link(LinkAction::Start) => node.wants_link = true,
            Action::Link(LinkAction::Stop) => node.wants_link = false,
            Action::Link(LinkAction::Close { nr }) => {
                if node.link == Some(nr) {
                    node.link = None;
                    node.closing = true;
                }
            }
            Action::Complete { id, .. } => {
                node.writes.remove(&id);
            }
            Action::CommandDone { id, result } => {
                node.results.insert(id, result);
            }
            Action::Undo { volume, order: UndoOrder::Begin(_) } => {
                self.event(n, Event::Undo { volume, answer: UndoAnswer::Ready(false) });
            }
            Action::Undo { .. } => {}
            Action::RunHandler { run, .. } => self.event(n, Event::HandlerDone { run, code: 0 }),
            Action::SetTimer { timer, at } => {
                node.timers.insert(timer, at);
            }
            Action::CancelTimer(timer) => {
                node.timers.remove(&timer);
            }
            Action::Continue => node.goes_on = true,
            Action::Notice(_) | Action::EndSessions { .. } => {}
        }
    }

    /// What the node's word makes a promise about its metadata.
    fn note_promises(&mut self, action: &Action) {
        let word = match action {
            Action::Send { packet, .. } => matches!(packet, Packet::Uuids(_) | Packet::SyncUuid(_)),
            Action::Disk { io, .. } => matches!(io, DiskOp::Write { .. }),
            Action::Complete { .. } => true,
            _ => false,
        };
        let Some(node) = self.nodes.get(self.recorded).filter(|_| word) else { return };
        let Some(status) = node.status() else { return };
        let current = status.ids.map(|ids| ids.current);
        let fact = match action {
            Action::Send { packet: Packet::Uuids(uuids), .. } if current.is_some() => {
                Fact::Current(uuids.current, "identifiers were sent")
            }
            Action::Send { packet: Packet::SyncUuid(uuid), .. } => Fact::BitmapId(*uuid, "a sync identifier was sent"),
            // A write that no peer has is acknowledged: under the newest generation.
            Action::Complete { id, result: Ok(_) } if node.writes.contains(id) && node.link.is_none() => {
                match current {
                    Some(current) => Fact::Current(current, "a write that no peer has was acknowledged"),
                    None => return,
                }
            }
            Action::Disk { io: DiskOp::Write { range, .. }, .. } => {
                let target = matches!(status.state.conn, ConnState::SyncTarget | ConnState::PausedSyncT);
                match (self.resync.remove(&range.start.0), status.state.role) {
                    (true, _) if target => Fact::Flag(MdFlags::CONSISTENT, false, "a resync write was begun"),
                    (false, Role::Primary) => Fact::Flag(MdFlags::PRIMARY_IND, true, "a Primary's write was begun"),
                    _ => return,
                }
            }
            _ => return,
        };
        self.recording.fact(fact);
    }

    /// Notes that an operation was submitted.
    fn record(&mut self, io: &DiskOp) -> Option<OpNr> {
        let meta_medium = self.recording.meta_medium;
        let io = match io {
            DiskOp::Write { range, data, fua } => {
                Io::Write { medium: 0, sector: range.start.0, bytes: data.concat().into(), fua: *fua, meta: false }
            }
            DiskOp::MetaWrite { offset, data, fua } => Io::Write {
                medium: meta_medium,
                sector: offset / SECTOR as u64,
                bytes: data.clone(),
                fua: *fua,
                meta: true,
            },
            DiskOp::Flush => Io::Flush(0),
            DiskOp::MetaFlush => Io::Flush(meta_medium),
            // Nothing here discards.
            DiskOp::Read(_) | DiskOp::Discard(_) | DiskOp::WriteZeroes { .. } => return None,
        };
        Some(self.recording.submit(io))
    }

    fn apply_data(&mut self, n: usize, io: &DiskOp) {
        let DiskOp::Write { range, data, .. } = io else { return };
        let bytes = data.concat();
        let sectors = (range.start.0..).zip(bytes.as_chunks::<SECTOR>().0);
        if let Some(node) = self.nodes.get_mut(n) {
            Rc::make_mut(&mut node.data).extend(sectors.map(|(sector, bytes)| (sector, first_number(bytes))));
        }
    }

    /// An operation ends.
    fn do_disk(&mut self, n: usize, index: usize) {
        let Some(node) = self.nodes.get_mut(n) else { return };
        let (op, io, nr) = node.disk.swap_remove(index);
        if let (true, DiskOp::MetaWrite { .. }, Some(nr)) = (self.fail_meta_write, &io, nr) {
            self.fail_meta_write = false;
            self.recording.failed(nr);
            let failure = DiskFailure { text: String::from("injected"), unsupported: false };
            return self.event(n, Event::Disk { op, result: Err(failure) });
        }
        let result = match &io {
            DiskOp::Read(range) => {
                let tags = (range.start.0..range.end().0).map(|s| node.data.get(&s).copied().unwrap_or(0));
                Some(Bytes::from(tags.flat_map(sector_of).collect::<Vec<u8>>()))
            }
            DiskOp::MetaWrite { offset, data, .. } => {
                // Positions come from a layout of this device.
                let _ = MetaIo::write_at(&mut node.meta, *offset, data);
                None
            }
            _ => None,
        };
        if n == self.recorded {
            self.apply_data(n, &io);
        }
        if let Some(nr) = nr {
            self.recording.complete(nr);
        }
        self.event(n, Event::Disk { op, result: Ok(result) });
    }

    fn deliver(&mut self, from: usize, at: usize) {
        let (to, socket) = (1 - from, [Socket::Data, Socket::Meta][at]);
        let Some(node) = self.nodes.get_mut(from) else { return };
        let Some(packet) = node.sockets[at].pop_front() else { return };
        node.sent[at] += 1;
        let packets = node.sent[at];
        if let Some(link) = node.link {
            self.event(from, Event::Sent { link, socket, packets });
        }
        if let (true, Packet::RsDataReply(reply)) = (to == self.recorded, &packet) {
            self.resync.insert(reply.sector.0);
        }
        if let Some(link) = self.nodes.get(to).and_then(|node| node.link) {
            self.event(to, Event::Packet { link, socket, volume: V, packet });
        }
    }

    fn lose(&mut self, n: usize) {
        let Some(node) = self.nodes.get_mut(n) else { return };
        node.drop_packets();
        if let Some(nr) = node.link.take() {
            let reason = String::from("cut");
            let lost = LinkEvent::Lost { nr, socket: Socket::Data, protocol_error: false, fatal: false, reason };
            self.event(n, Event::Link(lost));
            if let Some(node) = self.nodes.get_mut(n) {
                node.closing = false;
            }
        }
    }

    /// The link breaks; what was under way is gone.
    pub(super) fn cut(&mut self) {
        self.cut = true;
        (0..self.nodes.len()).for_each(|n| {
            if let Some(node) = self.nodes.get_mut(n) {
                node.drop_packets();
            }
        });
        (0..self.nodes.len()).for_each(|n| self.lose(n));
    }

    pub(super) fn join(&mut self) {
        self.cut = false;
    }

    /// Ends and makes links.
    fn links(&mut self) -> bool {
        for n in 0..self.nodes.len() {
            let Some(node) = self.nodes.get_mut(n) else { continue };
            if node.closing && node.sockets.iter().all(VecDeque::is_empty) {
                node.closing = false;
                self.lose(1 - n);
                return true;
            }
        }
        let free = |node: &Node| node.wants_link && node.link.is_none() && !node.closing;
        if self.cut || self.nodes.len() < 2 || !self.nodes.iter().all(free) {
            return false;
        }
        self.next_link += 1;
        let nr = LinkNr(self.next_link);
        for node in &mut self.nodes {
            (node.wants_link, node.link, node.sent) = (false, Some(nr), [0; 2]);
            node.drop_packets();
        }
        for n in [A, B] {
            let up =
                LinkEvent::Up { nr, version: 101, features: 0xf, resolve_conflicts: n == A, relaxed_epochs: false };
            self.event(n, Event::Link(up));
        }
        true
    }

    /// One random thing happens; false when nothing but timers is left.
    pub(super) fn step(&mut self) -> bool {
        if self.links() {
            return true;
        }
        let mut choices = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            choices.extend((0..node.disk.len()).map(|i| (n, 0, i)));
            choices.extend((0..2).filter(|at| !node.sockets[*at].is_empty()).map(|at| (n, 1, at)));
            choices.extend(node.goes_on.then_some((n, 2, 0)));
        }
        let pick = self.below(choices.len());
        match choices.get(pick) {
            None => return false,
            Some(&(n, 0, i)) => self.do_disk(n, i),
            Some(&(n, 1, at)) => self.deliver(n, at),
            Some(&(n, ..)) => {
                if let Some(node) = self.nodes.get_mut(n) {
                    node.goes_on = false;
                }
                self.event(n, Event::Continue);
            }
        }
        true
    }

    /// A random number below `end`; 0 for 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.rng.next_u64() >> 1).unwrap_or(0).checked_rem(end).unwrap_or(0)
    }

    pub(super) fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Runs until nothing is under way and no timer is due within `nanos`.
    pub(super) fn settle_for(&mut self, nanos: u64) {
        let end = Timestamp(self.now.0 + nanos);
        for _ in 0..STEPS_MAX {
            if self.step() {
                continue;
            }
            let timers =
                self.nodes.iter().enumerate().flat_map(|(n, node)| node.timers.iter().map(move |(t, at)| (*at, n, *t)));
            let Some((at, n, timer)) = timers.min().filter(|(at, ..)| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            if let Some(node) = self.nodes.get_mut(n) {
                node.timers.remove(&timer);
            }
            self.event(n, Event::Timer(timer));
        }
        panic!("{} does not settle", self.recording.name);
    }

    pub(super) fn settle(&mut self) {
        self.settle_for(4_000_000_000);
    }

    /// Starts a command.
    pub(super) fn command(&mut self, n: usize, command: Command) -> CommandId {
        self.next_id += 1;
        let id = CommandId(self.next_id);
        self.event(n, Event::Command { id, volume: V, command });
        id
    }

    /// Runs a command to its end; whether it succeeded.
    pub(super) fn run(&mut self, n: usize, command: Command) -> bool {
        let id = self.command(n, command);
        self.settle();
        self.nodes.get_mut(n).and_then(|node| node.results.remove(&id)).is_some_and(|result| result.is_ok())
    }

    /// Runs a command that a correct engine carries out here.
    pub(super) fn must(&mut self, n: usize, command: Command) {
        let text = format!("{command:?}");
        assert!(self.run(n, command), "{}: {} failed", self.recording.name, text.get(..60).unwrap_or(&text));
    }

    /// The device of every node has so many KiB more, and the drivers have seen it.
    pub(super) fn grow(&mut self, kib: u64) {
        self.recording.grow(kib);
        let sizes = DeviceSizes::one(Sectors::from_bytes_floor(self.recording.meta_bytes));
        for n in 0..self.nodes.len() {
            self.nodes[n].meta.resize(self.recording.meta_bytes);
            self.event(n, Event::DiskSize { volume: V, sizes });
        }
    }

    /// Reads the disk of a node, after recovering it, and attaches it.
    pub(super) fn attach(&mut self, n: usize, opts: DiskOptions) -> Result<bool, LoadError> {
        let (place, facts) = (self.shape.place(), facts(&self.recording));
        let Some(node) = self.nodes.get_mut(n) else { return Ok(false) };
        let known = self.recording.last_known();
        let mut recorded = RecordIo { io: &mut node.meta, recording: &mut self.recording };
        let io: &mut dyn MetaIo = if n == self.recorded { &mut recorded } else { recorded.io };
        let loaded = load_moved(io, place, facts, known.as_ref())?;
        Ok(self.run(n, Command::Attach(Box::new(loaded.disk), opts)))
    }

    /// Volumes on all nodes with their disks attached.
    pub(super) fn attach_all(&mut self, opts: &DiskOptions) -> Result<(), LoadError> {
        for n in 0..self.nodes.len() {
            self.must(n, Command::NewVolume(opts.clone()));
            assert!(self.attach(n, opts.clone())?, "{}: a fresh disk attaches", self.recording.name);
        }
        Ok(())
    }

    pub(super) fn connect_all(&mut self, net: &NetOptions) {
        for n in 0..self.nodes.len() {
            self.must(n, Command::Connect(Box::new(net.clone())));
        }
        self.settle();
    }

    /// A client writes, all sectors with a number of their own.
    pub(super) fn write(&mut self, n: usize, start: u64, count: u64, fua: bool) {
        self.next_id += 1;
        self.next_tag += 1;
        let id = RequestId(self.next_id);
        let data: Vec<u8> = (0..count).flat_map(|_| sector_of(self.next_tag)).collect();
        let range = SectorRange { start: Sector(start), count: Sectors(count) };
        if let Some(node) = self.nodes.get_mut(n) {
            node.writes.insert(id);
        }
        let request = ClientRequest::Write { range, data: SmallVec::from_elem(Bytes::from(data), 1), fua };
        self.event(n, Event::Client { id, volume: V, request });
    }

    pub(super) fn flush(&mut self, n: usize) {
        self.next_id += 1;
        self.event(n, Event::Client { id: RequestId(self.next_id), volume: V, request: ClientRequest::Flush });
    }

    /// Status of a node's volume.
    pub(super) fn status(&self, n: usize) -> Option<VolumeStatus> {
        self.nodes.get(n)?.status()
    }

    /// Which node is Primary.
    pub(super) fn primary(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| self.status(*n).is_some_and(|s| s.state.role == Role::Primary))
    }
}

fn sector_of(tag: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector.as_chunks_mut::<8>().0.fill(tag.to_le_bytes());
    sector
}

fn first_number(sector: &[u8; SECTOR]) -> u64 {
    sector.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
