//! Stories for named tests: a small world with fixed parameters, told step by step.
//!
//! [`Scenario`] says what the world is like; [`Scenario::ready`] brings both nodes up, connected and good, and gives a [`Story`],
//! whose steps read like prose. A step that names a node goes through [`Story::a`] or [`Story::b`]. A thin layer over
//! [`World`]: what happens is played by the same code as drawn runs, and the same checkers look after every step.
//! Invariants: the same steps give the same run; whatever is not as a story or a checker expects is a panic that ends with the last
//! lines of the trace.
//!
//! [`regression`] plays one story at many moments, and again with seeded bugs that it must notice.

mod on;
mod regression;

use std::time::Duration;

use super::node::Node;
use super::plan::{Cut, Happening, NodeParams, Params, Plan, Start};
use super::stamp::{Content, WriteId};
use super::world::{A, Answers, B, World};
use crate::engine::dirty::Bitmap;
use crate::engine::fault::Fault;
use crate::engine::options::{DiskOptions, NetOptions, OnIoError, ResourceOptions};
use crate::units::BmBit;
use crate::wire::params::ReplProtocol;
use crate::wire::state::ConnState;

pub use on::On;
pub use regression::regression;

/// Bytes of a MiB, for the sizes of devices.
pub const MIB: u64 = 1 << 20;
/// Sectors of an activity-log extent.
pub const EXTENT: u64 = 8192;
/// Longest time that any single step waits for what it expects, virtual nanoseconds.
const PATIENCE_NS: u64 = 120_000_000_000;
/// Lines of the trace that a failure shows.
const TAIL: usize = 60;

/// What the world of a story is like.
#[derive(Clone, Debug)]
pub struct Scenario {
    params: Params,
    inject: Option<Fault>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self::new()
    }
}

impl Scenario {
    /// One volume of 8 MiB, protocol C, fast disks, a fast network, internal metadata, the smallest activity log.
    #[must_use]
    pub fn new() -> Self {
        let node = NodeParams {
            net: NetOptions {
                timeout: Duration::from_secs(2),
                ping_int: Duration::from_secs(1),
                ko_count: 2,
                ..NetOptions::default()
            },
            disk: DiskOptions { al_extents: 67, ..DiskOptions::default() },
            resource: ResourceOptions::default(),
            helper_ns: 20_000_000,
            helper_broken: 0,
            helper_shoots: 0,
            external_meta: false,
            al_stripes: (1, 8),
            version: 101,
            features: 0xf,
            relaxed: false,
            discard: (true, true),
            disk_ns: 100_000,
            meta_ns: None,
            eager_batches: 50,
        };
        let params = Params {
            seed: 1,
            dice: 1,
            nodes: [node.clone(), node],
            volumes: vec![[8 * MIB; 2]],
            start: Start::Skipped,
            net_ns: 100_000,
            link_rate: 0,
            fragments: 0,
            skewed_sockets: false,
            failed_connects: 0,
            helper_ns: 0,
            helper_fails: 0,
            faults_until: 0,
        };
        Self { params, inject: None }
    }

    /// Other dice: the order of what happens at the same time, delays, what a power cut takes.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        (self.params.seed, self.params.dice) = (seed, seed);
        self
    }

    /// Replication protocol of both nodes.
    #[must_use]
    pub fn protocol(self, protocol: ReplProtocol) -> Self {
        self.nodes(|n| n.net.protocol = protocol)
    }

    /// Newest protocol version that both nodes offer.
    #[must_use]
    pub fn version(self, version: u32) -> Self {
        self.nodes(|n| n.version = version)
    }

    /// Helper programs take about this long, and so many percent of them fail.
    #[must_use]
    pub const fn helpers(mut self, ms: u64, fails: u64) -> Self {
        (self.params.helper_ns, self.params.helper_fails) = (ms * 1_000_000, fails);
        self
    }

    /// What both nodes do when their disk fails.
    #[must_use]
    pub fn on_io_error(self, policy: OnIoError) -> Self {
        self.nodes(|n| n.disk.on_io_error = policy)
    }

    /// The data socket carries so many MiB/s.
    #[must_use]
    pub const fn slow_link(mut self, mib: u64) -> Self {
        self.params.link_rate = mib * MIB;
        self
    }

    /// Metadata on devices of their own.
    #[must_use]
    pub fn external_meta(self) -> Self {
        self.nodes(|n| n.external_meta = true)
    }

    /// A fixed resync rate in MiB/s on both nodes, so that there is time to disturb a resync.
    #[must_use]
    pub fn rate(self, mib: u64) -> Self {
        self.nodes(|n| n.disk.resync_rate = Some(mib * MIB))
    }

    /// Any setting of both nodes.
    #[must_use]
    pub fn nodes(mut self, set: impl Fn(&mut NodeParams)) -> Self {
        self.params.nodes.iter_mut().for_each(set);
        self
    }

    /// Any setting of one node.
    #[must_use]
    pub fn node(mut self, node: usize, set: impl FnOnce(&mut NodeParams)) -> Self {
        set(&mut self.params.nodes[node]);
        self
    }

    /// Data devices, bytes by volume and node.
    #[must_use]
    pub fn volumes(mut self, sizes: &[[u64; 2]]) -> Self {
        self.params.volumes = sizes.to_vec();
        self
    }

    /// Every delivery brings only a few bytes.
    #[must_use]
    pub const fn fragments(mut self) -> Self {
        self.params.fragments = 100;
        self
    }

    /// The meta socket is much slower than the data socket.
    #[must_use]
    pub const fn skewed_sockets(mut self) -> Self {
        self.params.skewed_sockets = true;
        self
    }

    /// Both engines commit a mistake.
    #[must_use]
    pub const fn inject(mut self, fault: Option<Fault>) -> Self {
        self.inject = fault;
        self
    }

    fn story(self) -> Story {
        let plan = Plan { params: self.params, steps: Vec::new() };
        let mut world = World::new(&plan, self.inject, true);
        world.answers = Some(Answers::default());
        Story { world }
    }

    /// Both nodes up, connected and good on every volume, Secondary, the initial sync skipped.
    #[must_use]
    pub fn ready(self) -> Story {
        let mut story = self.story();
        story.world.begin();
        story.look();
        story.settle();
        story
    }

    /// Both nodes up with metadata just created: connected, Inconsistent, every bit set.
    #[must_use]
    pub fn fresh(self) -> Story {
        let mut story = self.created();
        story.a().restart();
        story.b().restart();
        story.until("both nodes are connected", |s| {
            [A, B].iter().all(|n| s.world.nodes[*n].volumes.iter().all(|v| v.seen.conn == ConnState::Connected))
        });
        story.calm();
        story
    }

    /// Both nodes down, with metadata just created.
    #[must_use]
    pub fn created(self) -> Story {
        let mut story = self.story();
        for node in [A, B] {
            for volume in 0..story.world.params.volumes.len() {
                let label = story.world.dice.engine.next_u64() | 1;
                if let Err(error) = story.world.nodes[node].create_md(volume, label) {
                    story.stop(&format!("create-md: {error}"));
                }
            }
        }
        story
    }
}

/// A world in which something happens.
#[derive(Debug)]
pub struct Story {
    pub(super) world: World,
}

impl Story {
    /// Node A, where most stories have their clients.
    pub const fn a(&mut self) -> On<'_> {
        self.on(A)
    }

    /// Node B.
    pub const fn b(&mut self) -> On<'_> {
        self.on(B)
    }

    /// A node, and volume 0 of it.
    pub const fn on(&mut self, node: usize) -> On<'_> {
        On { story: self, node, volume: 0 }
    }

    /// Ends the story as a failure.
    pub(super) fn stop(&self, why: &str) -> ! {
        let idle = |line: &&str| !line.contains("P_PING") && !line.ends_with("timer Ping");
        let lines: Vec<&str> = self.trace().lines().filter(idle).collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        panic!("{why}\n{}\n{tail}", self.world.describe());
    }

    /// What the checkers say now.
    pub(super) fn look(&mut self) {
        if self.world.violation.is_none() {
            self.world.check();
        }
        if let Some(violation) = &self.world.violation {
            self.stop(&format!("{}: {}", violation.checker.name(), violation.text));
        }
    }

    // --- time ---

    /// Virtual milliseconds pass.
    pub fn wait(&mut self, ms: u64) {
        let end = self.world.now + ms * 1_000_000;
        self.world.run_until(end);
        self.look();
    }

    /// So many things happen.
    pub fn events(&mut self, count: u32) {
        for _ in 0..count {
            self.world.play_next(u64::MAX);
        }
        self.look();
    }

    /// Until something is so; at once if it is so already.
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let end = self.world.now + PATIENCE_NS;
        while !so(self) {
            if !self.world.play_next(end) {
                self.look();
                self.stop(&format!("waited in vain: {what}"));
            }
        }
        self.look();
    }

    /// Until a new line of the trace is what somebody waits for.
    pub fn until_line(&mut self, what: &str, mut is: impl FnMut(&str) -> bool) {
        let end = self.world.now + PATIENCE_NS;
        let mut seen = self.trace().len();
        while self.world.play_next(end) {
            let found = self.trace().get(seen..).unwrap_or_default().lines().any(&mut is);
            seen = self.trace().len();
            if found {
                return self.look();
            }
        }
        self.look();
        self.stop(&format!("waited in vain: {what}"));
    }

    /// Until a node has sent a packet of this name.
    pub fn until_sent(&mut self, node: usize, packet: &str) {
        let start = format!(" {} sends ", ["A", "B"][node]);
        self.until_line(packet, |line| line.contains(&start) && names(line, packet));
    }

    /// Until a node has received a packet of this name.
    pub fn until_got(&mut self, node: usize, packet: &str) {
        let start = format!(" {} gets ", ["A", "B"][node]);
        self.until_line(packet, |line| line.contains(&start) && names(line, packet));
    }

    /// Until so many more packets have arrived; at most two seconds.
    pub fn packets(&mut self, count: u32) {
        let end = self.world.now + 2_000_000_000;
        let (mut seen, mut arrived) = (self.trace().len(), 0);
        while arrived < count && self.world.play_next(end) {
            let new = self.trace().get(seen..).unwrap_or_default();
            let gets = new.lines().filter(|line| line.contains(" gets "));
            arrived += u32::try_from(gets.count()).unwrap_or(0);
            seen = self.trace().len();
        }
        self.look();
    }

    /// Until nothing is under way on the network, on the disks and for the clients.
    pub fn calm(&mut self) {
        self.until("nothing is under way", Self::is_calm);
        self.world.check_replicas();
        self.world.check_promises();
        self.look();
    }

    /// As [`World::is_quiet`]; what is left of a link that both nodes have given up does not count.
    fn is_calm(&self) -> bool {
        let parted = self.world.links.last().is_none_or(|link| link.open == [false; 2]);
        let idle = |n: &Node| n.volumes.iter().all(|vol| vol.ops.is_empty()) && !n.batch && n.queued.is_empty();
        self.world.is_quiet() || parted && self.world.nodes.iter().all(idle) && self.world.pending.is_empty()
    }

    /// Until both nodes are Connected and UpToDate on every volume and nothing is under way; then everything is
    /// compared with what was promised.
    pub fn settle(&mut self) {
        self.until("both nodes are Connected and UpToDate", |s| s.world.is_settled());
        self.wait(1500);
        self.until("both nodes stay Connected and UpToDate", |s| s.world.is_settled());
        self.world.check_settled();
        self.look();
    }

    /// The faults cease and the cluster manager does all it can, until [`Story::settle`] can.
    pub fn recover(&mut self) {
        self.world.make_peace();
        for _ in 0..100 {
            self.world.manage(false);
            self.wait(2000);
            if self.world.is_settled() {
                break;
            }
        }
        self.settle();
    }

    // --- the network ---

    /// The link breaks, both nodes learn it, and there is no other until [`Story::heal`].
    pub fn cut(&mut self) {
        self.reset();
        self.world.blocked = [true; 2];
    }

    /// The link breaks; the nodes find each other again.
    pub fn reset(&mut self) {
        self.play(Happening::Cut(Cut::Reset));
    }

    /// Nothing passes any more until [`Story::heal`], and nobody is told.
    pub fn silent_cut(&mut self) {
        self.play(Happening::Cut(Cut::Silent));
    }

    /// Nothing passes from this node to the other until [`Story::heal`].
    pub fn one_way_cut(&mut self, from: usize) {
        self.play(Happening::Cut(Cut::OneWay(from)));
    }

    /// The link breaks; only this node is told.
    pub fn half_open(&mut self, told: usize) {
        self.play(Happening::Cut(Cut::HalfOpen(told)));
    }

    /// The network works again.
    pub fn heal(&mut self) {
        self.play(Happening::Heal);
    }

    /// The power of both nodes fails.
    pub fn blackout(&mut self) {
        self.play(Happening::Blackout);
    }

    pub(super) fn play(&mut self, what: Happening) {
        self.world.play(what);
        self.look();
    }

    // --- what is so ---

    /// What happened so far, line by line.
    #[must_use]
    pub fn trace(&self) -> &str {
        self.world.trace.lines().unwrap_or_default()
    }

    /// How often a packet of this name was sent by a node.
    #[must_use]
    pub fn sent(&self, node: usize, packet: &str) -> usize {
        let start = format!(" {} sends ", ["A", "B"][node]);
        self.trace().lines().filter(|line| line.contains(&start) && names(line, packet)).count()
    }

    /// A volume's state on a node, in words: connection, roles, disks.
    #[must_use]
    pub fn state(&self, node: usize, volume: usize) -> String {
        let s = self.world.nodes[node].volumes[volume].seen;
        format!("{} {}/{} {}/{}", s.conn, s.role, s.peer, s.disk, s.pdsk)
    }

    /// Whether a node has closed a volume's devices: it says Diskless a moment earlier.
    #[must_use]
    pub fn has_closed(&self, node: usize, volume: usize) -> bool {
        !self.world.nodes[node].volumes[volume].open
    }

    fn bitmap(&self, node: usize, volume: usize) -> Option<&Bitmap> {
        self.world.nodes[node].engine.as_ref()?.bitmap(World::volume_nr(volume))
    }

    /// Blocks that are out of sync on a node; 0 without a disk.
    #[must_use]
    pub fn bits(&self, node: usize, volume: usize) -> u64 {
        self.bitmap(node, volume).map_or(0, Bitmap::count)
    }

    /// Whether the block of this sector is out of sync on a node.
    #[must_use]
    pub fn bit(&self, node: usize, volume: usize, sector: u64) -> bool {
        self.bitmap(node, volume).is_some_and(|bitmap| bitmap.test(BmBit(sector / 8)))
    }

    /// Both disks are the same.
    pub fn same_data(&self) {
        let differing: Vec<_> =
            self.world.differs.iter().map(|pages| pages.iter().take(8).collect::<Vec<_>>()).collect();
        if differing.iter().any(|pages| !pages.is_empty()) {
            self.stop(&format!("blocks that differ, by volume: {differing:?}"));
        }
    }

    /// A node's disk holds this write, whole.
    pub fn holds(&self, node: usize, write: WriteId) {
        let Some(w) = self.world.model.write(write) else { self.stop("no such write") };
        let expected = if w.zero { Content::Zero } else { Content::Write(write) };
        for sector in w.start..w.start + w.count {
            let found = self.world.content(node, w.volume, sector);
            if found != expected {
                let name = ["A", "B"][node];
                self.stop(&format!("sector {sector} of {name} holds {found:?}, expected was {expected:?}"));
            }
        }
    }

    /// Both disks hold this write.
    pub fn both_hold(&self, write: WriteId) {
        self.holds(A, write);
        self.holds(B, write);
    }

    /// Resyncs that began so far.
    #[must_use]
    pub const fn resyncs(&self) -> u64 {
        self.world.stats.resyncs
    }

    /// Split brains found so far.
    #[must_use]
    pub const fn split_brains(&self) -> u64 {
        self.world.stats.split_brains
    }
}

/// Whether a line of the trace tells of this packet.
fn names(line: &str, packet: &str) -> bool {
    line.split(' ').any(|word| word == packet)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_story_reads_like_prose_and_gives_the_same_run_again() {
        let play = || {
            let mut s = Scenario::new().protocol(ReplProtocol::C).ready();
            s.a().promote();
            let first = s.a().write(0, 8);
            s.cut();
            let second = s.a().write(64, 8);
            assert!(s.a().bit(64) && !s.a().bit(128));
            s.a().crash();
            s.b().is("WFConnection Secondary/Unknown UpToDate/DUnknown");
            s.heal();
            s.a().restart();
            s.settle();
            s.same_data();
            s.both_hold(first);
            s.both_hold(second);
            s.b().promote();
            s.b().reads(64, 8, second);
            s.world.trace.digest()
        };
        assert_eq!(play(), play());
    }

    #[test]
    fn a_story_that_a_checker_objects_to_ends_with_the_trace() {
        let said = catch_unwind(|| {
            let mut s = Scenario::new().inject(Some(Fault::DiscardNotMirrored)).ready();
            s.a().promote();
            s.a().write(0, 64);
            s.a().discard(0, 64);
            s.settle();
        });
        let words = said.unwrap_err().downcast_ref::<String>().cloned().unwrap();
        assert!(words.contains("A sends Data vol 0 P_TRIM"), "{words}");
    }
}
