//! The cluster manager of the simulated world: what software and people do about what is not as it should be.
//!
//! Looks only at what a node's status says. Where DRBD leaves people alone it decides as an administrator would, and names whose
//! data are given up, which the checkers remember.

use super::coverage::Group;
use super::node::Reason;
use super::plan::Order;
use super::world::{A, B, Checker, World};
use crate::engine::event::Command;
use crate::wire::state::{ConnState, DiskState, Role};

impl World {
    /// Looks after whatever is not as it should be. `bold`: promotes although the other node cannot be asked, and so
    /// may make a split brain.
    pub(super) fn manage(&mut self, bold: bool) {
        if self.peace {
            for node in [A, B] {
                self.restart(node, None, false);
            }
        }
        if self.nodes.iter().any(|n| n.split_brain) {
            self.resolve();
        }
        if self.nodes.iter().any(|n| n.newer_inconsistent) {
            self.give_up_or_force();
        }
        if self.peace && self.nodes.iter().any(|n| n.unresolvable) {
            self.choose_for_them();
        }
        if self.peace && self.mend_policies() && self.nodes[B].is_up() && self.nodes[B].conn != ConnState::StandAlone {
            let net = self.nodes[B].params.net.clone();
            self.command(B, 0, Order::Net(net.max_buffers), Command::NetOptions(Box::new(net)));
        }
        for node in [A, B] {
            if !self.nodes[node].is_up() {
                continue;
            }
            for volume in 0..self.differs.len() {
                let vol = &self.nodes[node].volumes[volume];
                if vol.seen.disk == DiskState::Diskless
                    && !vol.open
                    && (self.peace || bold || self.now.is_multiple_of(3))
                {
                    self.attach(node, volume, None);
                }
            }
            if self.peace && self.nodes[node].refused_attach >= 3 {
                // The disk is refused for what the node has seen in this life: as an operator does, down and up.
                self.nodes[node].refused_attach = 0;
                self.crash(node, false);
                self.restart(node, None, false);
                continue;
            }
            if self.nodes[node].conn == ConnState::StandAlone {
                self.connect_command(node, false);
            }
            if self.peace {
                self.soothe(node);
                if std::mem::take(&mut self.nodes[node].must_demote) {
                    for volume in 0..self.differs.len() {
                        self.order(node, volume, Order::Secondary { close: true });
                    }
                }
            }
        }
        self.lift_constraints(false);
        for volume in 0..self.differs.len() {
            self.promote(volume, bold);
        }
        if self.peace {
            self.last_resort();
        }
    }

    /// Two nodes of which one is too old for the question who is right: somebody says it.
    fn choose_for_them(&mut self) {
        let victim = 1 - self.prefer;
        for node in &mut self.nodes {
            node.unresolvable = false;
        }
        for volume in 0..self.differs.len() {
            self.order(victim, volume, Order::Secondary { close: true });
            self.order(victim, volume, Order::Invalidate);
        }
    }

    /// Where DRBD leaves people alone: two Primaries that meet, or no good disk on either node.
    fn last_resort(&mut self) {
        self.rounds += 1;
        // Blocks that could not be written wait for the next handshake: connected, no resync, and not good.
        let stuck = (0..self.differs.len()).any(|volume| {
            [A, B].iter().all(|n| self.nodes[*n].volumes[volume].seen.conn == ConnState::Connected)
                && [A, B].iter().any(|n| self.nodes[*n].volumes[volume].seen.disk != DiskState::UpToDate)
        });
        if stuck && self.rounds.is_multiple_of(4) {
            self.coverage.count(Group::Fault, "reconnected by hand");
            self.order(1 - self.prefer, 0, Order::Disconnect { force: true });
        }
        if !self.rounds.is_multiple_of(8) {
            return;
        }
        for volume in 0..self.differs.len() {
            let seen = |n: &usize| self.nodes[*n].volumes[volume].seen;
            if [A, B].iter().map(seen).all(|s| s.role == Role::Primary && s.conn < ConnState::Connected) {
                self.order(1 - self.prefer, volume, Order::Secondary { close: true });
            }
        }
        self.renew_unrelated();
        // Every other time: what keeps the nodes apart may be that there are no good data for another volume.
        if self.rounds.is_multiple_of(16) && self.renew_oversized() {
            return;
        }
        let no_good = |world: &Self, volume: usize| {
            [A, B].iter().all(|n| world.nodes[*n].volumes[volume].seen.disk < DiskState::Outdated)
        };
        if !(0..self.differs.len()).any(|volume| no_good(self, volume)) {
            return;
        }
        self.lift_constraints(true);
        self.coverage.count(Group::Fault, "last resort");
        for node in [A, B] {
            self.crash(node, false);
            self.start(node, None);
            for volume in 0..self.differs.len() {
                self.attach(node, volume, None);
            }
        }
        self.settle_down(1);
        for volume in 0..self.differs.len() {
            if no_good(self, volume) {
                self.order(self.prefer, volume, Order::Primary { force: true });
            }
        }
        self.settle_down(1);
        for node in [A, B] {
            self.connect_command(node, false);
        }
    }

    /// In peace nothing is paused, and nobody keeps an odd option.
    fn soothe(&mut self, node: usize) {
        if self.params.two_primaries() && !self.nodes[node].params.net.two_primaries {
            self.order(node, 0, Order::TwoPrimaries(true));
        }
        for volume in 0..self.differs.len() {
            if self.nodes[node].volumes[volume].seen.user_isp {
                self.order(node, volume, Order::ResumeSync);
            }
            let seen = self.nodes[node].volumes[volume].seen;
            if seen.susp || (seen.is_suspended() && self.rounds.is_multiple_of(6)) {
                self.order(node, volume, Order::ResumeIo);
            }
        }
        if self.nodes[node].params.disk.resync_rate.is_some() {
            for volume in 0..self.differs.len() {
                self.order(node, volume, Order::Rate(0));
            }
        }
    }

    /// Data without a common past: the operator gives one node up and creates its metadata again.
    fn renew_unrelated(&mut self) {
        if !self.nodes.iter().any(|n| n.unrelated) {
            return;
        }
        let victim = 1 - self.prefer;
        for node in &mut self.nodes {
            node.unrelated = false;
        }
        self.crash(victim, false);
        for volume in 0..self.differs.len() {
            self.nodes[victim].volumes[volume].named.insert(Reason::Metadata);
            let label = self.dice.engine.next_u64() | 1;
            if let Err(error) = self.nodes[victim].create_md(volume, label) {
                self.fail(Checker::Metadata, format!("create-md: {error}"));
            }
        }
    }

    /// A disk that went on alone at its full size, which the peer's does not have: nothing shrinks it but new metadata.
    fn renew_oversized(&mut self) -> bool {
        let mut renewed = false;
        for volume in 0..self.differs.len() {
            let vols = [A, B].map(|n| &self.nodes[n].volumes[volume]);
            let parted = vols.iter().all(|vol| vol.open && vol.seen.conn < ConnState::Connected);
            if !parted || vols[A].size == vols[B].size {
                continue;
            }
            let larger = if vols[A].size > vols[B].size { A } else { B };
            renewed = true;
            self.crash(larger, false);
            self.nodes[larger].volumes[volume].named.insert(Reason::Metadata);
            let label = self.dice.engine.next_u64() | 1;
            if let Err(error) = self.nodes[larger].create_md(volume, label) {
                self.fail(Checker::Metadata, format!("create-md: {error}"));
            }
            // It finds its peer before anybody forces it.
            self.restart(larger, None, false);
        }
        renewed
    }

    fn promote(&mut self, volume: usize, bold: bool) {
        let up = [A, B].map(|n| self.nodes[n].is_up());
        let is = |n: usize| self.nodes[n].volumes[volume].seen.role == Role::Primary;
        if is(A) || is(B) {
            return self.promote_second(volume);
        }
        let may = [A, B].map(|n| up[n] && !self.is_constrained(n));
        let prefer = if may[self.prefer] { self.prefer } else { 1 - self.prefer };
        if !may[prefer] {
            return;
        }
        let seen = self.nodes[prefer].volumes[volume].seen;
        let together = seen.conn >= ConnState::Connected;
        let alone = !up[1 - prefer];
        // Without the other node's word only when it is surely dead, or when somebody is bold.
        if together || alone || bold {
            self.order(prefer, volume, Order::Primary { force: false });
        }
        let both_bad = (0..2).all(|n| up[n] && self.nodes[n].volumes[volume].seen.disk == DiskState::Inconsistent);
        if both_bad && (self.peace || seen.conn == ConnState::Connected) {
            self.order(prefer, volume, Order::Primary { force: true });
        }
    }

    /// Where two Primaries are wanted the other node follows as soon as it is connected.
    fn promote_second(&mut self, volume: usize) {
        let wanted = self.nodes.iter().all(|node| node.params.net.two_primaries);
        for node in [A, B] {
            let seen = self.nodes[node].volumes[volume].seen;
            if wanted && self.nodes[node].is_up() && seen.role == Role::Secondary && seen.conn >= ConnState::Connected {
                self.order(node, volume, Order::Primary { force: false });
            }
        }
    }

    /// The latest writes are on an Inconsistent disk: the operator gives them up, or makes do with them.
    fn give_up_or_force(&mut self) {
        if !self.nodes.iter().all(super::node::Node::is_up) {
            return;
        }
        for node in &mut self.nodes {
            node.newer_inconsistent = false;
        }
        for volume in 0..self.differs.len() {
            let seen = [A, B].map(|n| self.nodes[n].volumes[volume].seen);
            let free = seen.iter().all(|s| s.role == Role::Secondary);
            let parted = seen.iter().all(|s| s.conn < ConnState::Connected);
            for node in [A, B] {
                if parted && seen[node].disk == DiskState::Inconsistent && seen[1 - node].disk > DiskState::Inconsistent
                {
                    let force = free && self.now.is_multiple_of(2) && !self.is_constrained(node);
                    if seen[node].role == Role::Primary {
                        self.order(node, volume, Order::Secondary { close: true });
                        self.nodes[node].newer_inconsistent = true;
                    } else {
                        self.order(node, volume, if force { Order::Primary { force } } else { Order::Invalidate });
                    }
                }
            }
        }
    }

    /// A split brain was found: the operator decides for the node that the manager prefers.
    fn resolve(&mut self) {
        if !self.nodes.iter().all(super::node::Node::is_up) {
            return;
        }
        let (survivor, victim) = (self.prefer, 1 - self.prefer);
        let together = |n: &super::node::Node| n.volumes.iter().all(|vol| vol.seen.conn >= ConnState::Connected);
        if self.params.two_primaries() && self.nodes.iter().all(together) {
            // That one is over, and disconnecting two Primaries would make the next one.
            for node in &mut self.nodes {
                node.split_brain = false;
            }
            return;
        }
        for volume in 0..self.differs.len() {
            self.order(victim, volume, Order::Secondary { close: true });
        }
        for node in [survivor, victim] {
            self.order(node, 0, Order::Disconnect { force: false });
            self.nodes[node].split_brain = false;
        }
        self.connect_command(victim, true);
        self.connect_command(survivor, false);
    }
}
