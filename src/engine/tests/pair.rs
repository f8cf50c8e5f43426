//! Two engines wired together: simulated disks, sockets and timers, interleaved by a seed.
//!
//! What it does not do: lost or torn unflushed writes, fragmentation, slow disks (the simulator's business).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use smallvec::SmallVec;

use super::crash::{range, read, write};
use crate::engine::Engine;
use crate::engine::action::{Action, ClientResult, CommandError, DiskOp, LinkAction, Notice};
use crate::engine::event::{
    ClientRequest, Command, CommandId, DiskFailure, Event, Geometry, HandlerRun, LinkEvent, LinkNr, OpId, RequestId,
    Socket, Timer,
};
use crate::engine::handler::Handler;
use crate::engine::load::{DiskFacts, load};
use crate::engine::options::{DiskOptions, NetOptions};
use crate::engine::rng::Rng;
use crate::engine::state::VolumeState;
use crate::engine::undo::{UndoAnswer, UndoOrder};
use crate::meta::create::{CreateOptions, create_md};
use crate::meta::{AlStripes, MemIo, MetaIo, Place};
use crate::units::{Sector, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::packet::Packet;

pub(super) const V: VolumeNr = VolumeNr(0);

#[derive(Debug)]
pub(super) struct Node {
    pub engine: Engine,
    pub disks: BTreeMap<VolumeNr, MemIo>,
    pub timers: BTreeMap<Timer, Timestamp>,
    pub completed: BTreeMap<RequestId, ClientResult>,
    pub results: BTreeMap<CommandId, Result<(), CommandError>>,
    pub log: Vec<String>,
    pub packets: BTreeMap<&'static str, u32>,
    pub fail_writes: bool,
    pub fail_reads: bool,
    pub fail_meta: bool,
    pub fail_flushes: bool,
    /// Data and metadata are different devices, each with a cache of its own.
    pub separate: bool,
    /// Blocks written since the last flush (true: of the metadata device) with what they held before, oldest first: the
    /// volatile cache.
    pub cache: Vec<(VolumeNr, bool, u64, Vec<u8>)>,
    pub disk_queue: Vec<(OpId, VolumeNr, DiskOp)>,
    pub data: VecDeque<(VolumeNr, Packet)>,
    pub meta: VecDeque<(VolumeNr, Packet)>,
    pub sent: [u64; 2],
    /// Work in slices is to go on.
    pub goes_on: bool,
    pub wants_link: bool,
    pub link: Option<LinkNr>,
    pub closing: bool,
    /// Helpers that were run, in order, and the exit codes of those that are not to end with 0.
    pub helpers: Vec<Handler>,
    pub exit_codes: BTreeMap<Handler, u8>,
    /// Helpers take their time: those under way, in order, for [`Pair::end_helper`].
    pub slow_helpers: bool,
    pub late: Vec<HandlerRun>,
    /// The disks answer nothing.
    pub hung: bool,
    /// Nor does whoever keeps undo files.
    pub keeper_hangs: bool,
}

impl Node {
    pub(super) fn new(name: &str, seed: u64) -> Self {
        Self {
            engine: Engine::new(name, seed),
            disks: BTreeMap::new(),
            timers: BTreeMap::new(),
            completed: BTreeMap::new(),
            results: BTreeMap::new(),
            log: Vec::new(),
            packets: BTreeMap::new(),
            fail_writes: false,
            fail_reads: false,
            fail_meta: false,
            fail_flushes: false,
            separate: false,
            cache: Vec::new(),
            disk_queue: Vec::new(),
            data: VecDeque::new(),
            meta: VecDeque::new(),
            sent: [0; 2],
            goes_on: false,
            wants_link: false,
            link: None,
            closing: false,
            helpers: Vec::new(),
            exit_codes: BTreeMap::new(),
            slow_helpers: false,
            late: Vec::new(),
            hung: false,
            keeper_hangs: false,
        }
    }

    pub(super) fn state(&self, v: VolumeNr) -> VolumeState {
        self.engine.status(Timestamp(0)).volumes.iter().find(|s| s.nr == v).map(|s| s.state).unwrap_or_default()
    }

    pub(super) fn text(&self) -> String {
        let s = self.state(V);
        format!("{} {}/{} {}/{}", s.conn, s.role, s.peer, s.disk, s.pdsk)
    }

    pub(super) fn out_of_sync(&self) -> u64 {
        self.engine.status(Timestamp(0)).volumes[0].out_of_sync
    }
}

#[derive(Debug)]
pub(super) struct Pair {
    pub nodes: [Node; 2],
    pub now: Timestamp,
    pub rng: Rng,
    pub version: u32,
    pub features: u32,
    pub relaxed: bool,
    pub cut: bool,
    next_id: u64,
    next_link: u64,
}

pub(super) const A: usize = 0;
pub(super) const B: usize = 1;
pub(super) const MIB: u64 = 1 << 20;

impl Pair {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            nodes: [Node::new("r0", seed * 2 + 1), Node::new("r0", seed * 2 + 2)],
            now: Timestamp(1_000_000_000),
            rng: Rng::new(seed),
            version: 101,
            features: 0xf,
            relaxed: false,
            cut: false,
            next_id: 0,
            next_link: 0,
        }
    }

    pub(super) fn event(&mut self, n: usize, event: Event) {
        let mut out = Vec::new();
        self.nodes[n].engine.handle(self.now, event, &mut out);
        self.nodes[n].engine.handle(self.now, Event::BatchEnd, &mut out);
        for action in out {
            self.action(n, action);
        }
    }

    /// With UDRBD_TRACE set: every action of both nodes, for a failing seed.
    fn trace(&self, n: usize, what: &dyn std::fmt::Debug) {
        if std::env::var_os("UDRBD_TRACE").is_some() {
            eprintln!("{} {what:?}", ["A", "B"][n]);
        }
    }

    fn action(&mut self, n: usize, action: Action) {
        self.trace(n, &action);
        let node = &mut self.nodes[n];
        match action {
            Action::Disk { op, volume, io } => node.disk_queue.push((op, volume, io)),
            Action::CloseDisk { volume } => self.event(n, Event::DiskClosed { volume }),
            Action::Send { socket, volume, packet } => {
                *node.packets.entry(packet.kind().name()).or_default() += 1;
                match socket {
                    Socket::Data => node.data.push_back((volume, packet)),
                    Socket::Meta => node.meta.push_back((volume, packet)),
                }
            }
            Action::Link(LinkAction::Start) => node.wants_link = true,
            Action::Link(LinkAction::Stop) => node.wants_link = false,
            Action::Link(LinkAction::Close { nr }) => {
                if node.link == Some(nr) {
                    node.link = None;
                    node.closing = true;
                }
            }
            Action::Complete { id, result } => {
                assert!(node.completed.insert(id, result).is_none(), "request completed twice");
            }
            Action::CommandDone { id, result } => {
                assert!(node.results.insert(id, result).is_none(), "command answered twice");
            }
            Action::Undo { order: UndoOrder::Begin(_), .. } if node.keeper_hangs => {}
            Action::Undo { volume, order: UndoOrder::Begin(_) } => {
                self.event(n, Event::Undo { volume, answer: UndoAnswer::Ready(false) });
            }
            Action::Undo { .. } => {}
            Action::RunHandler { run, handler, .. } => {
                node.helpers.push(handler);
                if node.slow_helpers {
                    return node.late.push(run);
                }
                let code = node.exit_codes.get(&handler).copied().unwrap_or(0);
                self.event(n, Event::HandlerDone { run, code });
            }
            Action::SetTimer { timer, at } => {
                node.timers.insert(timer, at);
            }
            Action::CancelTimer(timer) => {
                node.timers.remove(&timer);
            }
            Action::Notice(Notice::Log { text, .. }) => node.log.push(text),
            Action::Notice(_) | Action::EndSessions { .. } => {}
            Action::Continue => node.goes_on = true,
        }
    }

    pub(super) fn do_disk(&mut self, n: usize, index: usize) {
        let (op, v, io) = self.nodes[n].disk_queue.swap_remove(index);
        self.trace(n, &("executed", op));
        let node = &mut self.nodes[n];
        let failure = || Err(DiskFailure { text: String::from("injected"), unsupported: false });
        let disk = node.disks.get_mut(&v).expect("disk of the volume");
        let touched = match &io {
            DiskOp::Write { range, .. } | DiskOp::Discard(range) | DiskOp::WriteZeroes { range, .. } => {
                (range.start.bytes(), range.end().bytes())
            }
            DiskOp::MetaWrite { offset, data, .. } => (*offset, offset + data.len() as u64),
            DiskOp::Read(_) | DiskOp::Flush | DiskOp::MetaFlush => (0, 0),
        };
        let on_meta = node.separate && matches!(io, DiskOp::MetaWrite { .. } | DiskOp::MetaFlush);
        for block in touched.0 / 4096..touched.1.div_ceil(4096) {
            let mut old = vec![0; 4096];
            disk.read_at(block * 4096, &mut old).unwrap();
            node.cache.push((v, on_meta, block, old));
        }
        match &io {
            DiskOp::Flush | DiskOp::MetaFlush if node.fail_flushes => {}
            DiskOp::Flush | DiskOp::MetaFlush => {
                node.cache.retain(|(cached, meta, ..)| *cached != v || *meta != on_meta);
            }
            DiskOp::Write { fua: true, .. } | DiskOp::MetaWrite { fua: true, .. } => {
                node.cache.retain(|(cached, _, block, _)| {
                    *cached != v || *block < touched.0 / 4096 || *block >= touched.1.div_ceil(4096)
                });
            }
            _ => {}
        }
        let result = match io {
            DiskOp::Read(_) if node.fail_reads => failure(),
            DiskOp::Write { .. } if node.fail_writes => failure(),
            DiskOp::MetaWrite { .. } if node.fail_meta => failure(),
            DiskOp::Flush | DiskOp::MetaFlush if node.fail_flushes => failure(),
            DiskOp::Read(range) => Ok(Some(Bytes::from(read(disk, range)))),
            DiskOp::Write { range, data, .. } => {
                write(disk, range, &data.concat());
                Ok(None)
            }
            DiskOp::Discard(range) | DiskOp::WriteZeroes { range, .. } => {
                write(disk, range, &vec![0; usize::try_from(range.bytes()).unwrap()]);
                Ok(None)
            }
            DiskOp::MetaWrite { offset, data, .. } => {
                disk.write_at(offset, &data).unwrap();
                Ok(None)
            }
            DiskOp::Flush | DiskOp::MetaFlush => Ok(None),
        };
        self.event(n, Event::Disk { op, result });
    }

    pub(super) fn deliver(&mut self, from: usize, socket: Socket) {
        let to = 1 - from;
        let node = &mut self.nodes[from];
        let queue = if socket == Socket::Data { &mut node.data } else { &mut node.meta };
        let Some((volume, packet)) = queue.pop_front() else { return };
        let at = usize::from(socket == Socket::Meta);
        node.sent[at] += 1;
        let packets = node.sent[at];
        if let Some(link) = node.link {
            self.event(from, Event::Sent { link, socket, packets });
        }
        self.trace(to, &("delivered", socket, &packet));
        if let Some(link) = self.nodes[to].link {
            self.event(to, Event::Packet { link, socket, volume, packet });
        }
    }

    /// A helper that takes its time ends.
    pub(super) fn end_helper(&mut self, n: usize, run: HandlerRun, code: u8) {
        self.event(n, Event::HandlerDone { run, code });
    }

    /// Both nodes lose the link; what was under way is gone.
    pub(super) fn cut(&mut self) {
        self.cut = true;
        for n in [A, B] {
            self.nodes[n].data.clear();
            self.nodes[n].meta.clear();
            self.nodes[n].closing = false;
        }
        for n in [A, B] {
            if let Some(nr) = self.nodes[n].link.take() {
                let lost = LinkEvent::Lost {
                    nr,
                    socket: Socket::Data,
                    protocol_error: false,
                    fatal: false,
                    reason: String::from("cut"),
                };
                self.event(n, Event::Link(lost));
                self.nodes[n].closing = false;
            }
        }
    }

    pub(super) fn join(&mut self) {
        self.cut = false;
    }

    fn links(&mut self) -> bool {
        for n in [A, B] {
            let quiet = self.nodes[n].data.is_empty() && self.nodes[n].meta.is_empty();
            if self.nodes[n].closing && quiet {
                self.nodes[n].closing = false;
                self.nodes[n].sent = [0; 2];
                let other = 1 - n;
                self.nodes[other].data.clear();
                self.nodes[other].meta.clear();
                if let Some(nr) = self.nodes[other].link.take() {
                    let lost = LinkEvent::Lost {
                        nr,
                        socket: Socket::Data,
                        protocol_error: false,
                        fatal: false,
                        reason: String::from("closed by peer"),
                    };
                    self.event(other, Event::Link(lost));
                    self.nodes[other].closing = false;
                }
                return true;
            }
        }
        let ready = self.nodes.iter().all(|n| n.wants_link && n.link.is_none() && !n.closing) && !self.cut;
        if ready {
            self.next_link += 1;
            let flag = self.rng.next_u64() & 1 == 0;
            for n in [A, B] {
                let nr = LinkNr(self.next_link);
                let node = &mut self.nodes[n];
                node.wants_link = false;
                node.link = Some(nr);
                node.sent = [0; 2];
                node.data.clear();
                node.meta.clear();
            }
            for n in [A, B] {
                let up = LinkEvent::Up {
                    nr: LinkNr(self.next_link),
                    version: self.version,
                    features: self.features,
                    resolve_conflicts: (n == A) == flag,
                    relaxed_epochs: self.relaxed,
                };
                self.event(n, Event::Link(up));
            }
        }
        ready
    }

    /// One random thing happens; false when nothing but timers is left.
    pub(super) fn step(&mut self) -> bool {
        if self.links() {
            return true;
        }
        let mut choices = Vec::new();
        for n in [A, B] {
            let answers = if self.nodes[n].hung { 0 } else { self.nodes[n].disk_queue.len() };
            choices.extend((0..answers).map(|i| (n, 0, i)));
            if !self.nodes[n].data.is_empty() {
                choices.push((n, 1, 0));
            }
            if !self.nodes[n].meta.is_empty() {
                choices.push((n, 2, 0));
            }
            if self.nodes[n].goes_on {
                choices.push((n, 3, 0));
            }
        }
        if choices.is_empty() {
            return false;
        }
        let pick = usize::try_from(self.rng.next_u64() % choices.len() as u64).unwrap();
        match choices[pick] {
            (n, 0, i) => self.do_disk(n, i),
            (n, 1, _) => self.deliver(n, Socket::Data),
            (n, 2, _) => self.deliver(n, Socket::Meta),
            (n, ..) => {
                self.nodes[n].goes_on = false;
                self.event(n, Event::Continue);
            }
        }
        true
    }

    /// Runs until nothing is under way; timers fire only up to `timer_limit` from now.
    pub(super) fn settle_for(&mut self, nanos: u64) {
        let end = Timestamp(self.now.0 + nanos);
        for _ in 0..2_000_000 {
            if self.step() {
                continue;
            }
            let next = [A, B]
                .into_iter()
                .flat_map(|n| self.nodes[n].timers.iter().map(move |(t, at)| (*at, n, *t)))
                .min()
                .filter(|(at, ..)| *at <= end);
            let Some((at, n, timer)) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            self.nodes[n].timers.remove(&timer);
            self.event(n, Event::Timer(timer));
        }
        panic!("does not settle: {} | {}", self.nodes[A].text(), self.nodes[B].text());
    }

    pub(super) fn settle(&mut self) {
        self.settle_for(4_000_000_000);
    }

    pub(super) fn command(&mut self, n: usize, v: VolumeNr, command: Command) -> CommandId {
        self.next_id += 1;
        let id = CommandId(self.next_id);
        self.event(n, Event::Command { id, volume: v, command });
        id
    }

    /// Runs a command to its end.
    pub(super) fn run(&mut self, n: usize, command: Command) -> Result<(), CommandError> {
        let id = self.command(n, V, command);
        self.settle();
        self.nodes[n].results.remove(&id).unwrap_or_else(|| panic!("no answer; {}", self.nodes[n].text()))
    }

    pub(super) fn ok(&mut self, n: usize, command: Command) {
        let name = format!("{command:?}");
        let result = self.run(n, command);
        assert_eq!(result, Ok(()), "{} on {}", &name[..name.len().min(60)], self.nodes[n].text());
    }

    pub(super) fn create(&mut self, n: usize, v: VolumeNr, bytes: u64) {
        let mut io = MemIo::new(bytes);
        let options =
            CreateOptions { place: Place::INTERNAL, al: AlStripes::DEFAULT, device_uuid: 1, peer_max_bio_size: 0 };
        create_md(&mut io, &options).unwrap();
        self.nodes[n].disks.insert(v, io);
    }

    pub(super) fn attach(&mut self, n: usize, v: VolumeNr) -> CommandId {
        self.attach_with(n, v, DiskOptions::default())
    }

    pub(super) fn attach_with(&mut self, n: usize, v: VolumeNr, opts: DiskOptions) -> CommandId {
        let io = self.nodes[n].disks.get_mut(&v).unwrap();
        let facts = DiskFacts {
            geometry: Geometry {
                logical_block_size: 512,
                physical_block_size: 512,
                discard: true,
                discard_zeroes: true,
            },
            shared_device: !self.nodes[n].separate,
            path: String::from("mem"),
        };
        let loaded = load(io, Place::INTERNAL, facts).unwrap();
        self.command(n, v, Command::Attach(Box::new(loaded.disk), opts))
    }

    /// Volumes on both nodes, attached and connected; nothing synced yet.
    pub(super) fn up(&mut self, bytes: &[u64], net: &NetOptions) {
        for n in [A, B] {
            for (i, bytes) in bytes.iter().enumerate() {
                let v = VolumeNr(u16::try_from(i).unwrap());
                self.create(n, v, *bytes);
                self.command(n, v, Command::NewVolume(DiskOptions::default()));
                let id = self.attach(n, v);
                self.settle();
                assert_eq!(self.nodes[n].results.remove(&id), Some(Ok(())));
            }
        }
        for n in [A, B] {
            self.ok(n, Command::Connect(Box::new(net.clone())));
        }
        self.settle();
    }

    /// A connected, equal pair with A Primary.
    pub(super) fn ready(seed: u64, net: &NetOptions) -> Self {
        let mut p = Self::new(seed);
        p.up(&[16 * MIB], net);
        p.ok(A, Command::NewCurrentUuid { clear_bitmap: true });
        p.ok(A, Command::Primary { force: false });
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
        assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate");
        p
    }

    pub(super) fn client(&mut self, n: usize, v: VolumeNr, request: ClientRequest) -> RequestId {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        self.event(n, Event::Client { id, volume: v, request });
        id
    }

    pub(super) fn write(&mut self, n: usize, start: u64, count: u64, fill: u8) -> RequestId {
        self.write_to(n, V, start, count, fill)
    }

    pub(super) fn write_to(&mut self, n: usize, v: VolumeNr, start: u64, count: u64, fill: u8) -> RequestId {
        let data = Bytes::from(vec![fill; usize::try_from(count * 512).unwrap()]);
        let request =
            ClientRequest::Write { range: range(start, count), data: SmallVec::from_elem(data, 1), fua: false };
        self.client(n, v, request)
    }

    pub(super) fn read(&mut self, n: usize, start: u64, count: u64) -> Vec<u8> {
        let id = self.client(n, V, ClientRequest::Read(range(start, count)));
        self.settle();
        let result = self.nodes[n].completed.remove(&id).expect("read completes");
        result.expect("read succeeds").concat()
    }

    pub(super) fn done(&self, n: usize, id: RequestId) -> bool {
        self.nodes[n].completed.contains_key(&id)
    }

    pub(super) fn data(&mut self, n: usize, v: VolumeNr) -> Vec<u8> {
        let size =
            self.nodes[n].engine.status(Timestamp(0)).volumes.iter().find(|s| s.nr == v).map_or(Sectors(0), |s| s.size);
        read(self.nodes[n].disks.get_mut(&v).unwrap(), SectorRange { start: Sector(0), count: size })
    }

    /// Both data areas are equal, byte for byte.
    pub(super) fn same_data(&mut self) {
        let volumes: Vec<VolumeNr> = self.nodes[A].disks.keys().copied().collect();
        for v in volumes {
            let (a, b) = (self.data(A, v), self.data(B, v));
            assert_eq!(a.len(), b.len());
            // Where is looked for only when there is something: byte by byte takes long in a debug build.
            let differs = (a != b).then(|| a.iter().zip(&b).position(|(x, y)| x != y));
            assert_eq!(differs, None, "volume {v} differs at this byte");
        }
    }
}
