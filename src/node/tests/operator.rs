//! What happens to a running pair: the network, crashes, disks, and an operator's orders, one at a time.

use std::time::{Duration, Instant};

use super::PATIENCE;
use super::proxy::Cut;
use super::round::{NAMES, Round, is_good};
use crate::disk::fault::Faults;
use crate::engine::event::Command;
use crate::engine::state::VolumeState;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState};

impl Round {
    pub(super) fn step(&mut self) {
        let (p, s) = (self.primary, 1 - self.primary);
        let both = self.nodes[s].is_running();
        self.look_at_primary();
        let end = usize::from(self.coin());
        match self.draw(24) {
            0..4 => self.cut(),
            4 => self.stall(),
            5 => self.blow(),
            6 => {
                let down = self.coin();
                self.note(if down { "network down" } else { "network up" });
                self.proxy.change(|weather| {
                    weather.down = down;
                    weather.cuts += 1;
                });
            }
            7..9 if both => self.crash(s),
            9 | 10 => self.lose_primary(),
            11 => self.lose_both(),
            12 if both => {
                let force = self.coin();
                self.figures.detaches += u64::from(self.order(s, Command::Detach { force }));
            }
            // Under the others an answer does not wait for the peer's disk, and on the loss of the link the peer drops what
            // it has not begun to write.
            13 if self.params.protocol == ReplProtocol::C => self.lose_primary_disk(),
            14 | 15 => {
                if both && self.is_diskless(s) {
                    let _ = self.attach(s);
                }
                if self.is_diskless(p) {
                    self.attach_primary();
                }
            }
            16 if both => {
                let n = [p, s][end];
                let force = self.coin();
                if self.order(n, Command::Disconnect { force }) && self.coin() {
                    self.connect(n);
                }
            }
            17 if both => self.connect(s),
            18 if both => {
                self.order(s, Command::Invalidate);
            }
            19 => self.change_roles(),
            20 => {
                self.order(p, Command::PauseSync);
            }
            21 => {
                self.order(p, Command::ResumeSync);
            }
            22 if both => {
                let fail_one_in = if self.coin() { 20 + self.draw(200) } else { 0 };
                self.note(format!("one in {fail_one_in} disk operations of {} fails", NAMES[s]));
                self.failing[s] |= fail_one_in > 0;
                self.nodes[s].set_faults(Faults { fail_one_in, ..self.params.faults });
            }
            _ if !both => self.start_node(s),
            _ => {}
        }
    }

    /// Whether the peer could do without this node's disk.
    fn peer_is_good(&self, n: usize) -> bool {
        let VolumeState { conn, pdsk, .. } = self.volume(n).state;
        (conn, pdsk) == (ConnState::Connected, DiskState::UpToDate)
    }

    /// The Primary's disk fails or is detached, while the peer has the same data and the network is good.
    ///
    /// Not at any other time, for two things that DRBD does: a node that is about to become the target of a resync is good
    /// again when the source's disk fails; and until the peer's new generation has arrived here, the old disk may be
    /// attached again without the writes that only the peer has.
    fn lose_primary_disk(&mut self) {
        let (p, s) = (self.primary, 1 - self.primary);
        if !self.nodes[s].is_running() || !self.peer_is_good(p) {
            return;
        }
        self.calm_network();
        let end = Instant::now() + Duration::from_millis(500);
        while !(is_good(&self.volume(p)) && is_good(&self.volume(s))) {
            if Instant::now() > end {
                return;
            }
            self.nodes[p].wait_for_news(Duration::from_millis(10));
        }
        let before = self.volume(s).ids.map(|ids| ids.current);
        if self.coin() {
            let force = self.coin();
            if !self.order(p, Command::Detach { force }) {
                return;
            }
        } else {
            self.note("the Primary's disk fails");
            self.nodes[p].set_faults(Faults { fail_one_in: 5, ..self.params.faults });
            self.shared.progress(200, Duration::from_millis(300));
            self.nodes[p].set_faults(self.params.faults);
            if self.volume(p).state.disk == DiskState::UpToDate {
                return;
            }
            self.wait("the disk to be given up", |round| round.volume(p).state.disk == DiskState::Diskless);
        }
        self.figures.detaches += 1;
        self.wait("the peer's new generation", |round| {
            let current = round.volume(s).ids.map(|ids| ids.current);
            let told =
                current != before && current.is_some_and(|current| current.same(round.nodes[p].exposed(&round.rt)));
            told || round.volume(p).state.conn != ConnState::Connected
        });
        self.note("the peer's new generation is known");
    }

    /// The Primary gets its disk back, and is left in peace until it is good: a write that only a disk in the middle of a
    /// resync has, because the link broke, counts as written, and the resync takes it back.
    fn attach_primary(&mut self) {
        let p = self.primary;
        self.calm_network();
        if self.attach(p).is_err() {
            return;
        }
        self.order(p, Command::ResumeSync);
        let settled = |round: &Self| {
            let state = round.volume(p).state;
            matches!(state.disk, DiskState::UpToDate | DiskState::Diskless) || state.conn == ConnState::StandAlone
        };
        let deadline = Instant::now() + PATIENCE;
        while !settled(self) {
            assert!(Instant::now() < deadline, "waiting for the Primary's disk to be good lasts too long");
            if self.is_diskless(1 - p) {
                // The source lost its disk on the way.
                self.nodes[1 - p].set_faults(Faults { fail_one_in: 0, ..self.params.faults });
                let _ = self.attach(1 - p);
            }
            self.nodes[p].wait_for_news(Duration::from_millis(10));
        }
        self.look_at_primary();
    }

    fn is_diskless(&self, n: usize) -> bool {
        let volume = self.volume(n);
        volume.state.disk == DiskState::Diskless && volume.disk_path.is_none()
    }

    fn cut(&mut self) {
        let side = usize::from(self.coin());
        let cut = [Cut::Reset, Cut::ResetOne(side), Cut::HalfOpen(side), Cut::Closed];
        let cut = cut[usize::try_from(self.draw(4)).expect("small")];
        let only = [None, Some(0), Some(1)][usize::try_from(self.draw(3)).expect("small")];
        self.note(format!("cut {cut:?} of {only:?}"));
        self.figures.cuts += 1;
        self.proxy.change(|weather| {
            (weather.cut, weather.only) = (cut, only);
            weather.cuts += 1;
        });
    }

    fn stall(&mut self) {
        let stalled = [[true, true], [true, false], [false, true], [false, false]];
        let stalled = stalled[usize::try_from(self.draw(4)).expect("small")];
        let only = [None, Some(0), Some(1)][usize::try_from(self.draw(3)).expect("small")];
        let time = Duration::from_millis(50 + self.draw(1500));
        self.note(format!("stalled {stalled:?} of {only:?} for {time:?}"));
        let end = tokio::time::Instant::now() + time;
        let stalled = stalled.map(|is| is.then_some(end));
        self.proxy.change(|weather| (weather.stalled, weather.only) = (stalled, only));
    }

    fn blow(&mut self) {
        let delay = Duration::from_micros([0, 0, 300, 3000][usize::try_from(self.draw(4)).expect("small")]);
        let piece = [0, 0, 1, 17, 700][usize::try_from(self.draw(5)).expect("small")];
        let fuse = [0, 0, 3000, 300_000][usize::try_from(self.draw(4)).expect("small")];
        self.note(format!("delay {delay:?}, pieces of {piece}, fuse {fuse}"));
        self.proxy.change(|weather| (weather.delay, weather.piece, weather.fuse) = (delay, piece, fuse));
    }

    fn kill(&mut self, n: usize) -> bool {
        let power = self.params.power && self.coin();
        self.note(format!("crash of {}{}", NAMES[n], if power { ", power cut" } else { "" }));
        self.figures.crashes += 1;
        self.figures.power_cuts += u64::from(power);
        self.nodes[n].crash(&self.rt, power);
        power
    }

    /// The Secondary dies.
    fn crash(&mut self, s: usize) {
        let power = self.kill(s);
        let meta = self.nodes[s].read_meta();
        self.note(format!("{} out-of-sync bits after it", meta.bits.count()));
        if !self.look_at_primary() {
            self.release_only_copy(power);
        }
        if self.coin() {
            self.start_node(s);
        }
    }

    /// Whether the Primary's own disk is good.
    pub(super) fn look_at_primary(&mut self) -> bool {
        let now = self.shared.history.now();
        let good = self.volume(self.primary).state.disk == DiskState::UpToDate;
        if good {
            self.good_until = now;
        }
        good
    }

    /// A node is gone that perhaps had the only copy, or was to send it.
    fn release_only_copy(&self, power: bool) {
        let history = &self.shared.history;
        if self.params.protocol != ReplProtocol::C {
            // Answers did not wait for the peer's disk.
            history.release_since(self.good_until);
        }
        if power {
            history.release_volatile();
        }
    }

    /// The Primary dies. The other node takes over where that is right, else the dead one comes back first.
    fn lose_primary(&mut self) {
        let (p, s) = (self.primary, 1 - self.primary);
        let only_copy = !self.look_at_primary() || self.failing[p];
        let power = self.kill(p);
        self.clients.join();
        let survivor = self.nodes[s].is_running().then(|| self.volume(s));
        let current = self.nodes[p].read_meta().current;
        // Until the end it had answered nothing alone. A new generation would not tell: writes that were under way when the
        // link broke are answered before there is one, as in DRBD.
        let together = self.nodes[p]
            .last_state()
            .is_some_and(|state| (state.conn, state.pdsk) == (ConnState::Connected, DiskState::UpToDate));
        let same = survivor.as_ref().is_some_and(|volume| {
            volume.state.disk == DiskState::UpToDate && volume.ids.is_some_and(|ids| ids.current.same(current))
        });
        let seen = survivor.map(|volume| (volume.state, volume.ids));
        self.note(format!("the dead Primary's data are {current}, of the other node {seen:?}"));
        let take_over = same && together && self.params.protocol == ReplProtocol::C && self.draw(4) > 0;
        if take_over {
            self.note("the other node takes over");
            self.figures.failovers += 1;
            // What the dead node's packets still did is done when the link's end was noticed.
            self.wait("the survivor to notice", |round| round.volume(s).state.conn < ConnState::Connected);
            if self.order(s, Command::Primary { force: false }) {
                self.shared.history.close_open();
                self.primary = s;
                self.failing[s] = false;
                self.nodes[s].set_faults(self.params.faults);
                self.serve();
                if self.coin() {
                    self.start_node(p);
                }
                return;
            }
        }
        if only_copy {
            self.release_only_copy(power);
        } else if power {
            self.shared.history.release_volatile();
        }
        self.come_back();
    }

    fn lose_both(&mut self) {
        let only_copy = !self.look_at_primary() || self.failing[self.primary];
        let first = usize::from(self.coin());
        let mut power = false;
        for n in [first, 1 - first] {
            if self.nodes[n].is_running() {
                power |= self.kill(n);
            }
        }
        self.clients.join();
        if only_copy {
            self.release_only_copy(power);
        } else if power {
            self.shared.history.release_volatile();
        }
        self.check_coverage();
        self.come_back();
    }

    /// All differences of the replicas are covered by bits.
    fn check_coverage(&mut self) {
        let metas = [0, 1].map(|n| self.nodes[n].read_meta());
        let [a, b] = [0, 1].map(|n| self.nodes[n].read_data());
        let mut differing = 0;
        for (block, (x, y)) in a.chunks(4096).zip(b.chunks(4096)).enumerate() {
            if x != y {
                differing += 1;
                let bit = block as u64..block as u64 + 1;
                let covered = metas.iter().any(|meta| meta.bits.any(bit.clone()));
                assert!(covered, "block {block} differs and no bit says so");
            }
        }
        let counts = metas.each_ref().map(|meta| meta.bits.count());
        self.note(format!("{differing} blocks differ, bits: {counts:?}"));
    }
}
