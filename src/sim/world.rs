//! The world: two nodes, the network between them, the clients and the operator, in virtual time.
//!
//! Owns everything of one run, and the queue of what happens next. Takes in a plan; gives out what became of it. Invariants:
//! everything random comes from streams of the plan's seed; the queue is in order of time, then of entry; an engine is only
//! called from [`World::event`]; after the first violation nothing more is played.
//!
//! Actions of one call other than packets of a socket have no order: disk operations end at times of their own, a
//! completion may come before a packet leaves, a crash may come between any two actions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::coverage::Coverage;
use super::fencing::Fence;
use super::model::{Model, Tick};
use super::net::Link;
use super::node::{Ambush, Node};
use super::plan::{Happening, Params, Plan, Step};
use super::rng::Rng;
use super::stamp::{Content, WriteId};
use super::trace::Trace;
use crate::engine::event::{Event, HandlerRun, OpId, RequestId, Socket, Timer};
use crate::engine::fault::Fault;
use crate::engine::undo::UndoAnswer;
use crate::units::Timestamp;

/// Node numbers.
pub const A: usize = 0;
/// The other one.
pub const B: usize = 1;
/// In traces: neither.
pub const NOBODY: usize = 2;

/// Time that a daemon's batch of events takes at most, nanoseconds.
const BATCH_NS: u64 = 50_000;

/// What is due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// A disk operation ends.
    Disk { node: usize, life: u64, volume: usize, op: OpId },
    /// The stack takes bytes.
    Handover { link: usize, from: usize, socket: Socket },
    /// Bytes arrive.
    Deliver { link: usize, from: usize, socket: Socket },
    /// A timer of an engine.
    Timer { node: usize, life: u64, timer: Timer },
    /// Both sockets are there.
    Up { link: usize, node: usize },
    /// A node learns that its link is gone.
    Lost { link: usize, node: usize, reason: &'static str },
    /// The next slice of a long job.
    Continue { node: usize, life: u64 },
    /// The driver's batch ends.
    Batch { node: usize, life: u64 },
    /// The nodes try to connect.
    Connect,
    /// What the driver had taken from a link before it learned of the end reaches the engine.
    Late { link: usize, node: usize, life: u64 },
    /// A helper program ends.
    Program { node: usize, life: u64, run: HandlerRun, code: u8 },
    /// Whoever keeps a node's undo files answers.
    Undo { node: usize, life: u64, volume: usize, answer: UndoAnswer },
    /// A node that an ambush hit starts again.
    Back { node: usize },
    /// A fence-peer helper ends; `losses` of the peer so far when it began.
    Helper { node: usize, life: u64, run: HandlerRun, losses: u64 },
    /// A step of the plan.
    Step(usize),
}

impl Due {
    const fn node(&self) -> Option<usize> {
        match self {
            Self::Disk { node, .. }
            | Self::Timer { node, .. }
            | Self::Up { node, .. }
            | Self::Lost { node, .. }
            | Self::Continue { node, .. }
            | Self::Late { node, .. }
            | Self::Helper { node, .. }
            | Self::Program { node, .. }
            | Self::Undo { node, .. }
            | Self::Batch { node, .. } => Some(*node),
            Self::Deliver { from, .. } => Some(1 - *from),
            Self::Handover { from, .. } => Some(*from),
            Self::Connect | Self::Back { .. } | Self::Step(_) => None,
        }
    }
}

/// What was found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which checker.
    pub checker: Checker,
    /// What it says.
    pub text: String,
    /// When, nanoseconds.
    pub at: u64,
}

/// The checkers; what each of them does not check is said in [`super::check`] and [`super::model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checker {
    /// P1: acknowledged writes are there.
    Lost,
    /// P2: reads return what a linear history allows.
    Read,
    /// P3: UpToDate, connected, clean: equal.
    Equal,
    /// P4: differences are covered.
    Covered,
    /// P5: nothing is discarded that nobody named.
    Discarded,
    /// P6: settles after the faults.
    Settles,
    /// Ahead and Behind do not take turns.
    Flapping,
    /// Metadata can be attached after every crash.
    Metadata,
    /// Collections stay within their limits.
    Memory,
    /// Every request is answered once.
    Requests,
    /// P7: nothing is acknowledged while I/O has to be frozen.
    Frozen,
    /// Status tells the truth.
    Status,
    /// What a split brain's victim had can be restored.
    Undo,
    /// Nobody panics, packets are legal.
    Sanity,
}

impl Checker {
    /// For tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "P1 lost write",
            Self::Read => "P2 read",
            Self::Equal => "P3 equal",
            Self::Covered => "P4 covered",
            Self::Discarded => "P5 discarded",
            Self::Settles => "P6 settles",
            Self::Flapping => "flapping",
            Self::Frozen => "P7 frozen",
            Self::Metadata => "metadata",
            Self::Memory => "memory",
            Self::Requests => "requests",
            Self::Status => "status",
            Self::Undo => "undo",
            Self::Sanity => "sanity",
        }
    }
}

/// A client's request under way.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub node: usize,
    pub volume: usize,
    pub began: Tick,
    pub what: Asked,
    pub powers: [u64; 2],
    /// The node whose disk had to serve a read when it began.
    pub disk: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Read { start: u64, count: u64 },
    Write(WriteId),
    Flush,
}

/// What clients asked and were told, for stories; drawn runs do not keep it.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The request that was handed over last.
    pub asked: Option<(RequestId, Asked)>,
    /// How requests ended: `ok`, or the error.
    pub ended: BTreeMap<RequestId, String>,
    /// What the read that ended last returned, sector by sector.
    pub read: Vec<Content>,
}

/// Numbers of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Client requests that were accepted and completed well.
    pub operations: u64,
    /// Client requests handed to an engine.
    pub requests: u64,
    /// Faults of all kinds.
    pub faults: u64,
    /// Processes killed and power cuts.
    pub crashes: u64,
    /// Links cut.
    pub cuts: u64,
    /// Resyncs that began.
    pub resyncs: u64,
    /// Split brains found.
    pub split_brains: u64,
    /// Virtual nanoseconds.
    pub virtual_ns: u64,
    /// Things that happened.
    pub events: u64,
}

/// One run.
#[derive(Debug)]
pub struct World {
    /// What was drawn.
    pub params: Params,
    pub(super) steps: Vec<Step>,
    /// Virtual time, nanoseconds.
    pub now: u64,
    pub(super) tick: Tick,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    dues: Vec<Option<Due>>,
    free: Vec<usize>,
    order: u64,
    pub(super) nodes: [Node; 2],
    pub(super) links: Vec<Link>,
    /// Nothing passes from this node.
    pub(super) blocked: [bool; 2],
    pub(super) connecting: bool,
    pub(super) model: Model,
    pub(super) pending: BTreeMap<RequestId, Pending>,
    pub(super) next_id: u64,
    /// Pages of the data areas that differ between the nodes, by volume.
    pub(super) differs: Vec<BTreeSet<u64>>,
    /// A device of the volume has grown.
    pub(super) grown: Vec<bool>,
    /// Bytes of a volume that has grown which both nodes had as data at some time.
    pub(super) compared: Vec<u64>,
    /// Pages whose contents or promises changed since they were last compared with the promises, by node and volume.
    pub(super) unchecked: [Vec<BTreeSet<u64>>; 2],
    /// Volumes of which everything is to be compared.
    pub(super) unchecked_all: Vec<bool>,
    /// The oldest request at the last look, if nothing was under way for it.
    pub(super) idle: Option<RequestId>,
    /// When the last resync of a volume began.
    pub(super) resync_since: Vec<Tick>,
    pub(super) dice: Dice,
    pub(super) fences: [Fence; 2],
    pub(super) trace: Trace,
    pub(super) coverage: Coverage,
    pub(super) stats: Stats,
    pub(super) violation: Option<Violation>,
    pub(super) inject: Option<Fault>,
    /// A checker that finds nothing, for tests.
    pub(super) deaf: Option<Checker>,
    /// Answers to clients, if somebody wants to know them.
    pub(super) answers: Option<Answers>,
    pub(super) prefer: usize,
    /// The operator is skipping the initial sync of blank disks.
    pub(super) skipping: bool,
    /// How many links there were when that was over for the operator. A peer that is slow may follow later, on the last one.
    pub(super) skipped_on: usize,
    /// Rounds of the manager in peace.
    pub(super) rounds: u32,
    /// No more faults: the cluster manager does all it can.
    pub(super) peace: bool,
}

/// Streams of random numbers, one for each part.
#[derive(Debug)]
pub(super) struct Dice {
    pub disk: Rng,
    pub net: Rng,
    pub driver: Rng,
    pub engine: Rng,
    pub helpers: Rng,
    pub helper: Rng,
    pub undo: Rng,
}

impl World {
    /// The world of a plan, before anything happened. `inject` makes both engines commit a mistake.
    #[must_use]
    pub fn new(plan: &Plan, inject: Option<Fault>, lines: bool) -> Self {
        let params = plan.params.clone();
        let seed = params.dice;
        let mut disks = Rng::stream(seed, 3);
        let sizes = |n: usize| params.volumes.iter().map(|size| size[n]).collect::<Vec<_>>();
        let nodes = [0, 1].map(|n| Node::new(params.nodes[n].clone(), &sizes(n), &mut disks));
        let sectors = super::growth::sectors(plan);
        let count = params.volumes.len();
        let mut world = Self {
            params,
            steps: plan.steps.clone(),
            now: 0,
            tick: 1,
            queue: BinaryHeap::new(),
            dues: Vec::new(),
            free: Vec::new(),
            order: 0,
            nodes,
            links: Vec::new(),
            blocked: [false; 2],
            connecting: false,
            model: Model::new(&sectors),
            pending: BTreeMap::new(),
            next_id: 0,
            differs: vec![BTreeSet::new(); count],
            grown: vec![false; count],
            compared: vec![0; count],
            unchecked: [vec![BTreeSet::new(); count], vec![BTreeSet::new(); count]],
            unchecked_all: vec![false; count],
            resync_since: vec![0; count],
            idle: None,
            dice: Dice {
                disk: Rng::stream(seed, 4),
                net: Rng::stream(seed, 5),
                driver: Rng::stream(seed, 6),
                engine: Rng::stream(seed, 7),
                helpers: Rng::stream(seed, 22),
                helper: Rng::stream(seed, 21),
                undo: Rng::stream(seed, 8),
            },
            fences: [Fence::default(); 2],
            trace: Trace::new(lines),
            coverage: Coverage::default(),
            stats: Stats::default(),
            violation: None,
            inject,
            deaf: None,
            answers: None,
            prefer: A,
            skipping: false,
            skipped_on: 0,
            rounds: 0,
            peace: false,
        };
        for at in 0..world.steps.len() {
            world.at(world.steps[at].at, Due::Step(at));
        }
        world
    }

    // --- time ---

    /// Queues something for a moment.
    pub(super) fn at(&mut self, at: u64, due: Due) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.dues[slot] = Some(due);
                slot
            }
            None => {
                self.dues.push(Some(due));
                self.dues.len() - 1
            }
        };
        self.order += 1;
        self.queue.push(Reverse((at.max(self.now), self.order, slot)));
    }

    /// Queues something for `ns` from now.
    pub(super) fn after(&mut self, ns: u64, due: Due) {
        self.at(self.now + ns, due);
    }

    /// Plays what is due until `end`.
    pub fn run_until(&mut self, end: u64) {
        while self.play_next(end) {}
        if self.violation.is_none() {
            self.now = self.now.max(end);
        }
    }

    /// Plays the next thing that is due until `end`; false when there is none, or something is wrong.
    pub(super) fn play_next(&mut self, end: u64) -> bool {
        while self.violation.is_none() {
            let Some(Reverse((at, _, slot))) = self.queue.peek().copied() else { break };
            if at > end {
                break;
            }
            self.queue.pop();
            let Some(due) = self.dues[slot].take() else { continue };
            self.free.push(slot);
            self.now = self.now.max(at);
            if let Some(node) = due.node()
                && self.nodes[node].frozen_until > self.now
            {
                let until = self.nodes[node].frozen_until;
                self.at(until, due);
                continue;
            }
            self.tick += 1;
            self.stats.events += 1;
            if self.stats.events.is_multiple_of(64) {
                self.check_memory();
            }
            self.happen(due);
            return true;
        }
        false
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Disk { node, life, volume, op } if self.nodes[node].life == life => self.disk_ends(node, volume, op),
            Due::Timer { node, life, timer } if self.nodes[node].life == life => self.timer(node, timer),
            Due::Continue { node, life } if self.nodes[node].life == life => self.event(node, Event::Continue),
            Due::Batch { node, life } if self.nodes[node].life == life => {
                self.nodes[node].batch = false;
                self.event(node, Event::BatchEnd);
            }
            Due::Handover { link, from, socket } => self.hand_over(link, from, socket),
            Due::Deliver { link, from, socket } => self.deliver(link, from, socket),
            Due::Up { link, node } => self.link_up(link, node),
            Due::Lost { link, node, reason } => self.link_lost(link, node, reason),
            Due::Connect => self.connect(),
            Due::Late { link, node, life } if self.nodes[node].life == life => self.late_packets(link, node),
            Due::Program { node, life, run, code } if self.nodes[node].life == life => {
                self.program_ends(node, run, code);
            }
            Due::Undo { node, life, volume, answer } if self.nodes[node].life == life => {
                self.undo_done(node, volume, answer);
            }
            Due::Back { node } => {
                self.nodes[node].doomed = None;
                self.restart(node, None, false);
            }
            Due::Helper { node, life, run, losses } if self.nodes[node].life == life => {
                self.helper_ends(node, run, losses);
            }
            Due::Step(at) => {
                let step = self.steps[at];
                self.trace.note(self.now, NOBODY, 1, at as u64, || format!("step {at}: {:?}", step.what));
                self.play(step.what);
            }
            Due::Disk { .. }
            | Due::Timer { .. }
            | Due::Continue { .. }
            | Due::Batch { .. }
            | Due::Helper { .. }
            | Due::Program { .. }
            | Due::Late { .. }
            | Due::Undo { .. } => {}
        }
    }

    fn timer(&mut self, node: usize, timer: Timer) {
        let local = self.local(node);
        match self.nodes[node].timers.get(&timer) {
            Some(at) if *at <= local => {
                self.nodes[node].timers.remove(&timer);
                self.trace.note(self.now, node, 2, 0, || format!("timer {timer:?}"));
                self.event(node, Event::Timer(timer));
            }
            _ => {}
        }
    }

    /// A node's own time.
    pub(super) fn local(&self, node: usize) -> Timestamp {
        Timestamp(self.now + self.nodes[node].clock + 1_000_000_000)
    }

    /// When a moment of a node's own time comes.
    pub(super) fn global(&self, node: usize, at: Timestamp) -> u64 {
        at.0.saturating_sub(self.nodes[node].clock + 1_000_000_000)
    }

    // --- engines ---

    /// Hands an event to a node's engine and carries out what follows.
    pub(super) fn event(&mut self, node: usize, event: Event) {
        if self.nodes[node].busy {
            return self.nodes[node].queued.push_back(event);
        }
        let batch_end = matches!(event, Event::BatchEnd);
        self.calls(node, event);
        if batch_end || !self.nodes[node].is_up() || self.nodes[node].batch {
            return;
        }
        if self.dice.driver.percent(self.nodes[node].params.eager_batches) {
            self.calls(node, Event::BatchEnd);
        } else {
            self.nodes[node].batch = true;
            let wait = self.dice.driver.below(BATCH_NS);
            let life = self.nodes[node].life;
            self.after(wait, Due::Batch { node, life });
        }
    }

    /// As in the daemon: what an action causes is handled when the actions before it are done.
    fn calls(&mut self, node: usize, event: Event) {
        self.nodes[node].busy = true;
        self.call(node, event);
        while let Some(event) = self.nodes[node].queued.pop_front() {
            self.call(node, event);
        }
        self.nodes[node].busy = false;
    }

    fn call(&mut self, node: usize, event: Event) {
        let now = self.local(node);
        let mut actions = std::mem::take(&mut self.nodes[node].actions);
        let Some(engine) = self.nodes[node].engine.as_mut() else { return };
        let called = catch_unwind(AssertUnwindSafe(|| engine.handle(now, event, &mut actions)));
        if let Err(panic) = called {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            return self.fail(Checker::Sanity, format!("an engine panicked: {}", text.unwrap_or_default()));
        }
        let life = self.nodes[node].life;
        for action in actions.drain(..) {
            // The process may have died between two actions.
            if self.nodes[node].life != life || self.violation.is_some() {
                break;
            }
            self.act(node, action);
            self.approach_doom(node);
        }
        if self.nodes[node].life == life {
            self.nodes[node].actions = actions;
        }
    }

    fn approach_doom(&mut self, node: usize) {
        match &mut self.nodes[node].doomed {
            Some((0, power)) => {
                let power = *power;
                self.crash(node, power);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    /// Plays one step now.
    pub(super) fn play(&mut self, what: Happening) {
        match what {
            Happening::Client { op, volume, start, count, node } => self.client(op, volume, start, count, node),
            Happening::Cut(cut) => self.cut(cut),
            Happening::Heal => self.heal(),
            Happening::Crash { node, power, after } => {
                if self.nodes[node].is_up() {
                    if after == 0 {
                        self.crash(node, power);
                    } else {
                        self.nodes[node].doomed = Some((after, power));
                    }
                }
            }
            Happening::Ambush { node, moment, victims, power, after, back } => {
                if self.nodes[node].is_up() {
                    self.nodes[node].ambush = Some(Ambush { moment, victims, power, after, back });
                }
            }
            Happening::Blackout => {
                self.fault("blackout");
                for node in [A, B] {
                    if self.nodes[node].is_up() {
                        self.crash(node, true);
                    }
                }
            }
            Happening::Restart { node, fuse, connect_first } => self.restart(node, fuse, connect_first),
            Happening::DiskFault { node, volume, kind, count } => self.disk_fault(node, volume, kind, count),
            Happening::Grow { node, volume, kib } => self.grow(node, volume, kib),
            Happening::DiskStall { node, ms } => {
                self.fault("disk stall");
                self.nodes[node].stalled_until = self.now + ms * 1_000_000;
            }
            Happening::Freeze { node, ms } => {
                if self.nodes[node].is_up() {
                    self.fault("frozen process");
                    self.nodes[node].frozen_until = self.now + ms * 1_000_000;
                }
            }
            Happening::Clock { node, ms } => self.clock(node, ms),
            Happening::Order { node, volume, order } => self.order(node, volume, order),
            Happening::Manage { prefer, bold } => {
                self.prefer = prefer;
                self.manage(bold);
            }
            Happening::SwitchOver => self.switch_over(),
        }
    }
}
