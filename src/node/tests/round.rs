//! One round: a pair of nodes, a network, clients, and an operator who does things at random, then peace and the checks.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::PATIENCE;
use super::clients::{Clients, Shared};
use super::machine::Machine;
use super::params::{Figures, Params, setup};
use super::proxy::{Addresses, Proxy, Weather};
use crate::control::ErrorReply;
use crate::disk::fault::Faults;
use crate::engine::event::Command;
use crate::engine::rng::Rng;
use crate::engine::state::VolumeState;
use crate::engine::status::VolumeStatus;
use crate::wire::state::{ConnState, DiskState};

/// Eleven activity-log extents, of which seven may be hot.
const DISK_BYTES: u64 = 44 << 20;
const STEPS: u64 = 14;

/// A running round.
pub struct Round {
    pub(super) rng: Rng,
    pub(super) params: Params,
    pub(super) rt: Runtime,
    pub(super) nodes: [Machine; 2],
    pub(super) proxy: Proxy,
    pub(super) shared: std::sync::Arc<Shared>,
    pub(super) clients: Clients,
    pub(super) primary: usize,
    /// When the Primary's own disk was last seen to be good.
    pub(super) good_until: u64,
    /// Whose disk fails at times.
    pub(super) failing: [bool; 2],
    pub(super) log: Vec<String>,
    pub(super) began: Instant,
    pub(super) figures: Figures,
    // The files, which go last.
    _dir: tempfile::TempDir,
}

pub(super) const NAMES: [&str; 2] = ["A", "B"];

impl Round {
    /// A pair in sync with A Primary and clients at work.
    pub fn new(seed: u64, params: Params) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let addresses = Addresses::new();
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let nodes = [0, 1].map(|n| {
            let setup = setup(&params, n, addresses);
            Machine::new(dir.path(), NAMES[n], DISK_BYTES, setup, rng.next_u64() >> 1)
        });
        let size = nodes[0].size.min(nodes[1].size);
        let shared = Shared::new(size, params.depth);
        let proxy = Proxy::start(addresses, rng.next_u64() >> 1, params.receive_buffer);
        let clients = Clients::default();
        let (log, figures, began) = (Vec::new(), Figures { rounds: 1, ..Figures::default() }, Instant::now());
        let (primary, good_until, failing) = (0, 0, [false; 2]);
        Self {
            rng,
            params,
            rt,
            nodes,
            proxy,
            shared,
            clients,
            primary,
            good_until,
            failing,
            log,
            began,
            figures,
            _dir: dir,
        }
    }

    /// The whole story. Panics where something is wrong.
    pub fn run(&mut self) -> Figures {
        self.bring_up();
        for _ in 0..STEPS {
            let count = 1 + self.draw(60);
            self.shared.progress(count, Duration::from_millis(150));
            self.look_for_failures();
            self.step();
        }
        self.end();
        let counts = self.shared.history.counts();
        self.figures.answered = counts.answered;
        self.figures.failed = counts.failed;
        self.figures.unanswered = counts.unanswered;
        self.figures.released = counts.released;
        self.figures.connections = self.proxy.connections();
        for node in &self.nodes {
            self.figures.resyncs += node.resyncs();
            self.figures.disks += node.disk_counts();
        }
        self.figures
    }

    /// Everything that may help to understand a failure that said this.
    pub fn describe(&self, failure: &str) -> String {
        let mut text = format!("parameters: {:?}\nwhat was done:\n", self.params);
        for line in &self.log {
            let _ = writeln!(text, "  {line}");
        }
        let sectors = failure.split("sector ").skip(1).filter_map(|rest| rest.split(':').next()?.parse::<u64>().ok());
        for sector in sectors.take(3) {
            for (n, node) in self.nodes.iter().enumerate() {
                let data = node.read_data();
                let at = usize::try_from(sector).expect("small") * 512;
                let told = data.get(at..at + 512).map(|found| self.shared.history.tell(sector, found));
                let _ = writeln!(text, "sector {sector} on {} {}", NAMES[n], told.unwrap_or_default());
            }
        }
        for node in &self.nodes {
            let _ = writeln!(text, "{}", node.describe(&self.rt));
        }
        text
    }

    pub(super) fn draw(&mut self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    pub(super) fn coin(&mut self) -> bool {
        self.draw(2) == 0
    }

    pub(super) fn note(&mut self, what: impl std::fmt::Display) {
        self.log.push(format!("{:>6} ms {what}", self.began.elapsed().as_millis()));
    }

    fn told(&mut self, n: usize, what: &str, result: &Result<(), ErrorReply>) {
        let how = match result {
            Ok(()) => String::from("done"),
            Err(error) => format!("{error:?}"),
        };
        self.note(format!("{what} on {}: {how}", NAMES[n]));
    }

    pub(super) fn order(&mut self, n: usize, command: Command) -> bool {
        let mut name = format!("{command:?}");
        name.truncate(30);
        let result = self.nodes[n].command(&self.rt, command);
        self.told(n, &name, &result);
        result.is_ok()
    }

    pub(super) fn attach(&mut self, n: usize) -> Result<(), ErrorReply> {
        let result = self.nodes[n].attach(&self.rt);
        self.told(n, "attach", &result);
        result
    }

    pub(super) fn connect(&mut self, n: usize) {
        let result = self.nodes[n].connect(&self.rt);
        self.told(n, "connect", &result);
    }

    pub(super) fn start_node(&mut self, n: usize) {
        self.nodes[n].start(&self.rt);
        self.note(format!("start of {}", NAMES[n]));
        // With a failing disk there is an error; then somebody attaches it later.
        let _ = self.attach(n);
        self.connect(n);
    }

    pub(super) fn volume(&self, n: usize) -> VolumeStatus {
        self.nodes[n].volume(&self.rt)
    }

    fn look_for_failures(&self) {
        let mut failures = self.shared.failures();
        for node in &self.nodes {
            failures.extend(node.violations());
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    // --- the story ---

    fn bring_up(&mut self) {
        for n in [0, 1] {
            self.nodes[n].start(&self.rt);
            self.attach(n).expect("a fresh disk");
            self.connect(n);
        }
        self.wait("connected", |round| [0, 1].iter().all(|n| round.volume(*n).state.conn == ConnState::Connected));
        assert!(self.order(0, Command::NewCurrentUuid { clear_bitmap: true }));
        // As in DRBD: the peer's word about its state at the connect may arrive after the command and win for good.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.in_sync() {
            self.nodes[1].wait_for_news(Duration::from_millis(20));
            if Instant::now() > deadline {
                self.order(1, Command::Disconnect { force: false });
                break;
            }
        }
        self.settle();
        self.promote(0);
        self.resume_faults();
    }

    /// After peace: disks are as slow as before, but fail no more.
    fn resume_faults(&mut self) {
        self.failing = [false; 2];
        for node in &self.nodes {
            node.set_faults(self.params.faults);
        }
    }

    /// Takes a node that is in sync into service.
    fn promote(&mut self, n: usize) {
        assert!(self.order(n, Command::Primary { force: false }), "a node in sync can be Primary");
        self.primary = n;
        self.serve();
    }

    pub(super) fn serve(&mut self) {
        let shard = self.nodes[self.primary].shard();
        let size = self.nodes[0].size.min(self.nodes[1].size);
        self.clients = Clients::start(&self.shared, shard, size, self.params.clients, &mut self.rng);
    }

    /// After a crash of the Primary: both nodes in sync, then one of them is Primary again.
    pub(super) fn come_back(&mut self) {
        self.shared.history.close_open();
        self.settle();
        let n = usize::from(self.coin());
        self.promote(n);
        self.resume_faults();
    }

    pub(super) fn change_roles(&mut self) {
        self.settle();
        self.clients.finish(&self.shared);
        self.look_for_failures();
        let p = self.primary;
        // The server sees the end of a session a moment later.
        self.wait("the clients to leave", |round| round.volume(p).open_count == 0);
        assert!(self.order(p, Command::Secondary), "nobody has it open");
        // Once more: the link may have broken while the last requests were answered.
        self.settle();
        self.promote(1 - p);
        self.resume_faults();
    }

    fn end(&mut self) {
        self.settle();
        self.clients.finish(&self.shared);
        self.look_for_failures();
        let p = self.primary;
        self.wait("the clients to leave", |round| round.volume(p).open_count == 0);
        assert!(self.order(p, Command::Secondary), "nobody has it open");
        self.settle();
        self.look_for_failures();
        for n in [0, 1] {
            self.order(n, Command::Disconnect { force: false });
        }
        for n in [0, 1] {
            assert!(self.order(n, Command::Detach { force: false }), "a Secondary can be detached");
            self.nodes[n].crash(&self.rt, self.params.power);
            assert_eq!(self.nodes[n].read_meta().bits.count(), 0, "bits of {}", NAMES[n]);
        }
        let [a, b] = [0, 1].map(|n| self.nodes[n].read_data());
        let differ = a.iter().zip(&b).position(|(x, y)| x != y);
        assert_eq!(differ, None, "first byte that differs");
        let history = &self.shared.history;
        history.close_open();
        let now = history.now();
        for sector in history.touched() {
            let at = usize::try_from(sector).expect("small") * 512;
            if let Err(why) = history.check(sector, &a[at..at + 512], now..u64::MAX) {
                panic!("at the end: {why}");
            }
        }
    }

    // --- peace ---

    pub(super) fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waiting for {what} lasts too long");
            self.nodes[self.primary].wait_for_news(Duration::from_millis(10));
        }
    }

    /// The source of a resync that dies before it has written down that this ended takes itself for the source again, as
    /// in DRBD, whatever the other one has become in the meantime.
    fn wait_for_superblocks(&mut self) {
        self.wait("the superblocks", |round| {
            round.nodes.iter().all(|node| {
                let ids = node.volume(&round.rt).ids;
                let (current, bitmap) = node.ids_on_disk();
                ids.is_some_and(|ids| (ids.current.masked(), ids.bitmap) == (current.masked(), bitmap))
            })
        });
        self.note("and written down");
    }

    pub(super) fn calm_network(&self) {
        self.proxy.change(|weather| *weather = Weather { cuts: weather.cuts, ..Weather::default() });
    }

    fn in_sync(&self) -> bool {
        [0, 1].iter().all(|n| is_good(&self.volume(*n)))
    }

    /// Gives up what a node alone has, after a split brain.
    fn discard(&mut self, n: usize) {
        if self.volume(n).state.conn != ConnState::StandAlone {
            self.order(n, Command::Disconnect { force: true });
        }
        self.figures.split_brains += 1;
        let result = self.nodes[n].connect_discarding(&self.rt);
        self.told(n, "connect --discard-my-data", &result);
    }

    /// Faults end; both nodes run, are connected, and good.
    pub(super) fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.note("peace");
        self.calm_network();
        for node in &self.nodes {
            node.set_faults(Faults { fail_one_in: 0, hold_one_in: 8, hold_max: Duration::from_millis(1) });
        }
        for n in [0, 1] {
            if !self.nodes[n].is_running() {
                self.start_node(n);
            }
        }
        let mut attempts = 0_u32;
        loop {
            self.look_for_failures();
            if self.in_sync() {
                self.note("in sync");
                return self.wait_for_superblocks();
            }
            let volumes = [0, 1].map(|n| self.volume(n));
            assert!(Instant::now() < deadline, "the nodes do not come to rest");
            for n in [0, 1] {
                let state = volumes[n].state;
                if state.disk == DiskState::Diskless && volumes[n].disk_path.is_none() {
                    let _ = self.attach(n);
                } else if state.conn == ConnState::StandAlone {
                    attempts += 1;
                    if attempts.is_multiple_of(10) {
                        // Both made a new generation while they could not hear each other: the one that served clients
                        // last is right.
                        self.discard(1 - self.primary);
                    }
                    self.connect(n);
                } else if state.user_isp {
                    self.order(n, Command::ResumeSync);
                }
            }
            let slow = usize::from(is_good(&volumes[0]));
            self.nodes[slow].wait_for_news(Duration::from_millis(50));
        }
    }
}

pub(super) fn is_good(v: &VolumeStatus) -> bool {
    let VolumeState { conn, disk, pdsk, .. } = v.state;
    (conn, disk, pdsk) == (ConnState::Connected, DiskState::UpToDate, DiskState::UpToDate) && v.out_of_sync == 0
}
