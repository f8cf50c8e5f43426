//! Draws a run from a seed: swarm style, each run with a few kinds of faults of its own.
//!
//! Invariants: the same seed gives the same plan; nothing here looks at a running engine. Every run has client load, crashes and
//! what it takes to bring the nodes back; which of the other faults exist at all is drawn.

use std::time::Duration;

use super::plan::{ClientOp, Cut, DiskFault, Happening, Moment, NodeParams, Order, Params, Plan, Start, Step, Victims};
use super::rng::Rng;
use crate::engine::options::{DiskOptions, NetOptions, OnCongestion, OnIoError, ResourceOptions};
use crate::units::Sectors;
use crate::wire::digest::AlgName;
use crate::wire::params::ReplProtocol;

mod clients;
mod policies;
mod suspension;

const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Percent of runs with two Primaries.
const TWO_PRIMARIES: u64 = 12;
/// Percent of these in which I/O may be suspended as well.
const TWO_THAT_WAIT: u64 = 50;

/// The plan of a seed.
#[must_use]
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::stream(seed, 1);
    let mut params = params(seed, &mut rng);
    policies::draw(seed, &mut params);
    // Streams of their own, so that the other runs stay what they are.
    let (mut two, mut waits) = (Rng::stream(seed, 8), Rng::stream(seed, 20));
    let both = two.percent(TWO_PRIMARIES);
    if both {
        two_primaries(&mut params);
    }
    let suspends = !both || Rng::stream(seed, 24).percent(TWO_THAT_WAIT);
    if suspends {
        suspension::draw(&mut params, &mut waits);
    }
    let mut rng = Rng::stream(seed, 2);
    let favourite = any_moment(&mut rng);
    let mut steps = Draft { rng, steps: Vec::new(), favourite, storms: Vec::new() }.draw(&params);
    if both {
        meetings(&mut two, &mut steps, &params);
    }
    if suspends {
        suspension::orders(&params, &mut waits, &mut steps);
    }
    Plan { params, steps }
}

/// Both nodes are Primary: protocol C, and a version that knows how to resolve conflicts.
fn two_primaries(params: &mut Params) {
    for node in &mut params.nodes {
        node.net.two_primaries = true;
        node.net.protocol = ReplProtocol::C;
        // Only protocol A knows congestion.
        node.net.on_congestion = OnCongestion::Block;
        node.version = node.version.max(100);
    }
}

/// What only runs with two Primaries have: writers on both nodes that meet at one place, in the midst of everything else, and the
/// option that goes off and on again.
fn meetings(rng: &mut Rng, steps: &mut Vec<Step>, params: &Params) {
    let end = params.faults_until;
    for _ in 0..rng.within(10, 60) {
        let busy =
            steps.get(usize::try_from(rng.below(steps.len() as u64)).unwrap_or(0)).map_or(SECOND, |step| step.at);
        let begin = if rng.coin() { busy.max(SECOND) } else { SECOND + rng.below(end - SECOND) };
        let volume = usize::try_from(rng.below(params.volumes.len() as u64)).unwrap_or(0);
        let place = rng.pick(&[0, 64, 8192 - 16]);
        let (width, spread) = (rng.pick(&[1, 4, 16, 64]), rng.pick(&[0, MS / 10, MS, 20 * MS]));
        for _ in 0..rng.within(2, 8) {
            let at = begin + rng.below(spread + 1);
            let (start, count) = (place + rng.below(width), rng.pick(&[1, 2, 8, 8, 16, 40]));
            let op = match rng.below(10) {
                0 => ClientOp::Read,
                1 => ClientOp::Zeroes { fua: rng.coin(), unmap: rng.coin() },
                2 => ClientOp::Discard,
                3 => ClientOp::Flush,
                _ => ClientOp::Write { fua: rng.percent(20) },
            };
            let node = usize::from(rng.coin());
            steps.push(Step { at, what: Happening::Client { op, volume, start, count, node } });
        }
    }
    for _ in 0..rng.pick(&[0, 0, 1, 4]) {
        let (at, node) = (2 * SECOND + rng.below(end - 2 * SECOND), usize::from(rng.coin()));
        let mut order = |at, on| {
            steps.push(Step { at, what: Happening::Order { node, volume: 0, order: Order::TwoPrimaries(on) } });
        };
        order(at, false);
        order(at + rng.around(3 * SECOND), true);
    }
    steps.sort_by_key(|step| step.at);
}

fn params(seed: u64, rng: &mut Rng) -> Params {
    let protocol = rng.pick(&[ReplProtocol::A, ReplProtocol::B, ReplProtocol::C, ReplProtocol::C, ReplProtocol::C]);
    let start = match rng.below(20) {
        0 => Start::SplitBrain,
        1 => Start::Recreated,
        2 => Start::OddFlags,
        3..6 => Start::FullSync,
        _ => Start::Skipped,
    };
    // Only a device of more extents than the smallest activity log has slots (67) makes the log forget some.
    let base = rng.pick(&[36, 36, 40, 40, 44, 520, 540, 560]) * MIB;
    let uneven = rng.percent(10);
    let size = |rng: &mut Rng, base: u64| {
        let more = if uneven { rng.below(64) * 4096 } else { 0 };
        [base, base + more]
    };
    let mut volumes = vec![size(rng, base)];
    if rng.coin() {
        volumes.push(size(rng, 8 * MIB));
    }
    let integrity = rng.percent(10).then(|| AlgName::parse("crc32c")).flatten().unwrap_or(AlgName::NONE);
    let template = NetOptions { protocol, integrity_alg: integrity, ..NetOptions::default() };
    let mut nodes = [node(rng, &template), node(rng, &template)];
    if volumes.len() > 1 {
        // Before version 100 a connection has one volume.
        for node in &mut nodes {
            node.version = node.version.max(100);
        }
    }
    // What came later is drawn from a stream of its own: the runs before it stay what they were.
    let mut later = Rng::stream(seed, 9);
    let link_rate = if protocol == ReplProtocol::A { later.pick(&[0, 0, 2 * MIB, 8 * MIB]) } else { 0 };
    for node in &mut nodes {
        failing(&mut later, node);
    }
    Params {
        seed,
        dice: seed,
        nodes,
        volumes,
        start,
        net_ns: rng.pick(&[20_000, 100_000, 1_000_000, 10_000_000]),
        link_rate,
        fragments: rng.pick(&[0, 0, 5, 50]),
        skewed_sockets: rng.coin(),
        failed_connects: rng.pick(&[0, 0, 0, 20]),
        helper_ns: 0,
        helper_fails: 0,
        faults_until: rng.within(30, 90) * SECOND,
    }
}

fn node(rng: &mut Rng, net: &NetOptions) -> NodeParams {
    let discard = rng.pick(&[(true, true), (true, true), (true, false), (false, false)]);
    let net = NetOptions {
        max_epoch_size: rng.pick(&[1, 4, 20, 2048]),
        max_buffers: rng.pick(&[32, 128, 2048]),
        ping_int: Duration::from_secs(rng.pick(&[1, 3, 10])),
        ping_timeout: Duration::from_millis(rng.pick(&[200, 500, 2000])),
        timeout: Duration::from_millis(rng.pick(&[600, 2000, 6000])),
        ko_count: rng.pick(&[0, 2, 7]),
        use_rle: rng.coin(),
        ..net.clone()
    };
    let disk = DiskOptions {
        on_io_error: rng.pick(&[OnIoError::Detach, OnIoError::Detach, OnIoError::PassOn]),
        al_extents: rng.pick(&[67, 67, 67, 67, 1237]),
        al_updates: !rng.percent(4),
        disk_flushes: true,
        resync_rate: rng.pick(&[None, None, Some(MIB), Some(4 * MIB), Some(40 * MIB)]),
        discard_zeroes_if_aligned: rng.coin(),
        ..DiskOptions::default()
    };
    NodeParams {
        net,
        disk,
        resource: ResourceOptions::default(),
        helper_ns: 20 * MS,
        helper_broken: 0,
        helper_shoots: 0,
        external_meta: rng.percent(60),
        al_stripes: rng.pick(&[(1, 8), (1, 8), (1, 8), (2, 4), (4, 8)]),
        version: rng.pick(&[101, 101, 101, 100, 99, 98, 97, 96]),
        features: rng.pick(&[0xf, 0xf, 0xf, 0x9, 0x3, 0x0]),
        relaxed: rng.coin(),
        discard,
        disk_ns: rng.pick(&[20_000, 200_000, 2_000_000]),
        meta_ns: rng.pick(&[None, Some(20_000), Some(2_000_000), Some(10_000_000)]),
        eager_batches: rng.pick(&[100, 50, 0]),
    }
}

/// What a node does with a disk that fails or hangs, and with a link that is too slow.
fn failing(rng: &mut Rng, node: &mut NodeParams) {
    if node.disk.on_io_error == OnIoError::Detach && rng.coin() {
        node.disk.on_io_error = OnIoError::CallLocalIoError;
    }
    node.disk.disk_timeout = Duration::from_millis(rng.pick(&[0, 0, 300, 1000, 3000]));
    let congestion = rng.pick(&[
        OnCongestion::Block,
        OnCongestion::PullAhead,
        OnCongestion::PullAhead,
        OnCongestion::PullAhead,
        OnCongestion::Disconnect,
    ]);
    let possible = match congestion {
        OnCongestion::Block => false,
        OnCongestion::PullAhead => node.net.protocol == ReplProtocol::A,
        OnCongestion::Disconnect => rng.percent(20),
    };
    if possible {
        node.net.on_congestion = congestion;
        node.net.congestion_fill = Sectors(rng.pick(&[0, 16, 128, 128, 1024]));
        node.net.congestion_extents = rng.pick(&[67, 67, 1237]);
    }
}

/// How often each kind of fault happens in a run, per 100 s.
struct Swarm {
    crashes: u64,
    power: u64,
    cuts: u64,
    disk: u64,
    orders: u64,
    stalls: u64,
    clock: u64,
    blackouts: u64,
    switch_overs: u64,
    bold: u64,
    double_crashes: u64,
    late_crash: u64,
    ambushes: u64,
    pulls: u64,
    growths: u64,
}

fn swarm(rng: &mut Rng) -> Swarm {
    let mut often = |list: &[u64]| rng.pick(list);
    Swarm {
        crashes: often(&[4, 8, 8, 14]),
        power: often(&[0, 30, 60, 100]),
        cuts: often(&[0, 6, 12, 20]),
        disk: often(&[0, 0, 3, 8]),
        orders: often(&[0, 5, 15, 40]),
        stalls: often(&[0, 0, 4, 10]),
        clock: often(&[0, 0, 0, 4]),
        blackouts: often(&[0, 0, 1, 3]),
        switch_overs: often(&[0, 3, 8]),
        bold: often(&[0, 0, 0, 20]),
        double_crashes: often(&[0, 10, 30]),
        late_crash: often(&[0, 50, 100]),
        ambushes: often(&[0, 6, 12, 20]),
        pulls: often(&[0, 0, 4, 10]),
        growths: often(&[0, 0, 0, 6]),
    }
}

/// What an ambush waits for.
fn any_moment(rng: &mut Rng) -> Moment {
    rng.pick(&[
        Moment::ResyncBegins,
        Moment::ResyncBegins,
        Moment::ResyncEnds,
        Moment::Connects,
        Moment::Disconnects,
        Moment::DiskGone,
        Moment::Promoted,
        Moment::Demoted,
        Moment::Flushed,
        Moment::Flushed,
    ])
}

struct Draft {
    rng: Rng,
    steps: Vec<Step>,
    /// What most ambushes of the run wait for.
    favourite: Moment,
    /// Moments around which most faults and requests of the run come together.
    storms: Vec<u64>,
}

impl Draft {
    fn add(&mut self, at: u64, what: Happening) {
        self.steps.push(Step { at, what });
    }

    fn draw(mut self, params: &Params) -> Vec<Step> {
        let end = params.faults_until;
        let mut swarm = swarm(&mut self.rng);
        if policies::drawn(params) {
            // Split brains are what they are for.
            (swarm.bold, swarm.cuts) = (swarm.bold.max(30), swarm.cuts.max(12));
        }
        if self.rng.percent(60) {
            let count = self.rng.within(2, 8);
            self.storms = (0..count).map(|_| 2 * SECOND + self.rng.below(end - 4 * SECOND)).collect();
        }
        self.clients(params, end);
        self.faults(&swarm, params, end);
        self.manager(&swarm, end);
        self.steps.sort_by_key(|step| step.at);
        self.steps
    }

    /// Moments of a kind of event that happens `per_100s` times in 100 s on average.
    fn moments(&mut self, per_100s: u64, end: u64) -> Vec<u64> {
        let expected = per_100s * end * 100 / (100 * SECOND);
        let count = expected / 100 + u64::from(self.rng.below(100) < expected % 100);
        (0..count).map(|_| self.moment(end)).collect()
    }

    /// Some moment: anywhere, in a storm, or just when clients are busy.
    fn moment(&mut self, end: u64) -> u64 {
        let any = 2 * SECOND + self.rng.below(end - 2 * SECOND);
        let step = self.rng.below(self.steps.len() as u64);
        let near = self.rng.pick(&[MS / 5, 3 * MS, 30 * MS]);
        match self.rng.below(10) {
            0..3 if !self.storms.is_empty() => self.rng.pick(&self.storms) + self.rng.below(2 * SECOND),
            3..7 => {
                let busy = usize::try_from(step).ok().and_then(|step| self.steps.get(step)).map_or(any, |step| step.at);
                busy.max(2 * SECOND) + self.rng.below(near)
            }
            _ => any,
        }
    }

    fn faults(&mut self, swarm: &Swarm, params: &Params, end: u64) {
        for at in self.moments(swarm.crashes, end) {
            self.crash(swarm, at);
        }
        for at in self.moments(swarm.ambushes, end) {
            self.ambush(swarm, at);
        }
        for at in self.moments(swarm.blackouts, end) {
            self.add(at, Happening::Blackout);
            self.restart(swarm, at, 0);
            self.restart(swarm, at, 1);
        }
        for at in self.moments(swarm.cuts, end) {
            let node = usize::from(self.rng.coin());
            let cut = self.rng.pick(&[Cut::Reset, Cut::Reset, Cut::Silent, Cut::OneWay(node), Cut::HalfOpen(node)]);
            self.add(at, Happening::Cut(cut));
            let heal = at + self.rng.around(2 * SECOND);
            self.add(heal, Happening::Heal);
        }
        for at in self.moments(swarm.disk, end) {
            let (node, volume) = self.where_to(params);
            let kind = self.rng.pick(&[
                DiskFault::Read,
                DiskFault::Write,
                DiskFault::Write,
                DiskFault::Flush,
                DiskFault::Meta,
            ]);
            let count = self.rng.pick(&[1, 1, 5]);
            self.add(at, Happening::DiskFault { node, volume, kind, count });
        }
        for at in self.moments(swarm.stalls, end) {
            let node = usize::from(self.rng.coin());
            let ms = self.rng.around(1000);
            let what = if self.rng.coin() { Happening::DiskStall { node, ms } } else { Happening::Freeze { node, ms } };
            self.add(at, what);
        }
        for at in self.moments(swarm.clock, end) {
            let node = usize::from(self.rng.coin());
            let ms = self.rng.around(3000);
            self.add(at, Happening::Clock { node, ms });
        }
        for at in self.moments(swarm.orders, end) {
            let (node, volume) = self.where_to(params);
            let order = self.order();
            self.add(at, Happening::Order { node, volume, order });
            if matches!(order, Order::Detach { .. }) && self.rng.coin() {
                let again = at + self.rng.around(300 * MS);
                self.add(again, Happening::Order { node, volume, order: Order::Attach });
            }
        }
        for at in self.moments(swarm.pulls, end) {
            self.pull(params, at);
        }
        for at in self.moments(swarm.growths, end).into_iter().take(1) {
            self.growth(params, at);
        }
        for at in self.moments(swarm.switch_overs, end) {
            self.add(at, Happening::SwitchOver);
        }
    }

    /// The devices of a volume grow, the operator says so, and clients use the new part. One of them may come late, or not.
    fn growth(&mut self, params: &Params, at: u64) {
        let (node, volume) = self.where_to(params);
        let old: u64 = params.volumes[volume].iter().max().copied().unwrap_or(0);
        // Less than the metadata have, or much more.
        let kib = self.rng.pick(&[4, 36, 40, 1024, 6 * 1024, 6 * 1024]);
        let mut ready = at;
        for which in [node, 1 - node] {
            let when = at + self.rng.below(20 * MS);
            let late = which != node && self.rng.percent(20);
            let when = if late { when + self.rng.around(SECOND) } else { when };
            self.add(when, Happening::Grow { node: which, volume, kib });
            ready = ready.max(if late { ready } else { when });
        }
        for _ in 0..self.rng.pick(&[1, 1, 2]) {
            let when = ready + self.rng.around(20 * MS);
            let node = usize::from(self.rng.coin());
            self.add(when, Happening::Order { node, volume, order: Order::Resize });
            if self.rng.percent(50) {
                // In the middle of the move, on either side of it.
                let node = if self.rng.percent(70) { node } else { 1 - node };
                let after = u32::try_from(self.rng.pick(&[1, 1, 2, 3, 5, 10, 25])).unwrap_or(1);
                let power = self.rng.coin();
                self.add(when + 1, Happening::Crash { node, power, after });
                let again = when + self.rng.around(SECOND);
                self.add(again, Happening::Restart { node, fuse: None, connect_first: false });
            }
        }
        if kib < 2 * 1024 {
            return;
        }
        // The metadata of before are not data that anybody wrote.
        let (first, last) = (old / 512, (old + (kib << 10) - MIB) / 512 - 64);
        for _ in 0..self.rng.within(2, 12) {
            let when = ready + self.rng.around(300 * MS);
            let start = first + self.rng.below(last - first);
            let op = self.rng.pick(&[
                ClientOp::Write { fua: false },
                ClientOp::Write { fua: false },
                ClientOp::Write { fua: true },
                ClientOp::Read,
                ClientOp::Flush,
            ]);
            let count = self.rng.within(1, 40);
            self.add(when, Happening::Client { op, volume, start, count, node });
        }
    }

    /// A disk is taken out under load: detached, the clients want everything on disk, and the node's power goes.
    fn pull(&mut self, params: &Params, at: u64) {
        let (node, volume) = self.where_to(params);
        let order = Order::Detach { force: false };
        self.add(at, Happening::Order { node, volume, order });
        let flushed = at + self.rng.around(10 * MS);
        self.add(flushed, Happening::Client { op: ClientOp::Flush, volume, start: 0, count: 0, node: 1 - node });
        let off = flushed + self.rng.around(100 * MS);
        self.add(off, Happening::Crash { node, power: true, after: 0 });
        let again = off + self.rng.around(SECOND);
        self.add(again, Happening::Restart { node, fuse: None, connect_first: false });
    }

    /// A node dies just when something happened: on the way into it, or soon after.
    fn ambush(&mut self, swarm: &Swarm, at: u64) {
        // Most wait for the same: what a run waits for often is hit at every step of it.
        let moment = if self.rng.percent(70) { self.favourite } else { any_moment(&mut self.rng) };
        let victims = self.rng.pick(&[Victims::Own, Victims::Other, Victims::Both, Victims::Both]);
        let after = self.rng.pick(&[0, 4, 20, 100]);
        let after = u32::try_from(self.rng.within(0, after)).unwrap_or(0);
        let mut back = || u32::try_from(self.rng.within(300, 6000)).unwrap_or(300);
        let back = [back(), back()];
        let power = self.rng.percent(swarm.power.max(50));
        let node = usize::from(self.rng.coin());
        self.add(at, Happening::Ambush { node, moment, victims, power, after, back });
    }

    fn crash(&mut self, swarm: &Swarm, at: u64) {
        let node = usize::from(self.rng.coin());
        let power = self.rng.percent(swarm.power);
        let after = if self.rng.percent(swarm.late_crash) { u32::try_from(self.rng.below(60)).unwrap_or(0) } else { 0 };
        self.add(at, Happening::Crash { node, power, after });
        self.restart(swarm, at, node);
    }

    fn restart(&mut self, swarm: &Swarm, at: u64, node: usize) {
        let mut again = at + self.rng.around(2 * SECOND);
        let connect_first = self.rng.percent(20);
        if self.rng.percent(swarm.double_crashes) {
            let fuse = Some(u32::try_from(self.rng.below(12)).unwrap_or(0));
            self.add(again, Happening::Restart { node, fuse, connect_first });
            again += self.rng.around(SECOND);
        }
        self.add(again, Happening::Restart { node, fuse: None, connect_first });
    }

    fn where_to(&mut self, params: &Params) -> (usize, usize) {
        let volume = usize::try_from(self.rng.below(params.volumes.len() as u64)).unwrap_or(0);
        (usize::from(self.rng.coin()), volume)
    }

    fn order(&mut self) -> Order {
        match self.rng.below(40) {
            0..4 => Order::Primary { force: false },
            4 => Order::Primary { force: self.rng.percent(20) },
            5..8 => Order::Secondary { close: self.rng.coin() },
            8..11 => Order::Detach { force: self.rng.percent(20) },
            11..15 => Order::Attach,
            15..18 => Order::Connect { discard: false },
            18..21 => Order::Disconnect { force: self.rng.percent(20) },
            21..24 => Order::Invalidate,
            24 => Order::InvalidateRemote,
            25 => Order::Outdate,
            26..29 => Order::PauseSync,
            29..32 => Order::ResumeSync,
            32 => Order::AlUpdates(false),
            33 => Order::AlUpdates(true),
            34 => Order::Rate(u32::try_from(self.rng.pick(&[0, 1, 20])).unwrap_or(0)),
            35 | 36 => Order::Net(u32::try_from(self.rng.within(32, 200)).unwrap_or(32)),
            37 => Order::NewUuid,
            38 if self.rng.percent(30) => Order::Resize,
            _ => Order::Recycle,
        }
    }

    fn manager(&mut self, swarm: &Swarm, end: u64) {
        let pace = self.rng.pick(&[500 * MS, 1500 * MS]);
        let mut at = 0;
        let mut prefer = 0;
        while at < end {
            if self.rng.percent(3) {
                prefer = 1 - prefer;
            }
            let bold = self.rng.percent(swarm.bold);
            self.add(at, Happening::Manage { prefer, bold });
            at += pace / 2 + self.rng.below(pace);
        }
    }
}
