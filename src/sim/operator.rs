//! Whoever looks after the cluster: commands of an operator, the cluster manager, crashes and restarts.

use super::coverage::Group;
use super::node::{DeviceIo, Reason, nr};
use super::plan::Order;
use super::world::{A, B, Checker, World};
use crate::engine::Engine;
use crate::engine::action::CommandError;
use crate::engine::event::{Command, CommandId, Event};
use crate::engine::load::{LoadError, load_moved};
use crate::engine::options::{NetOptions, ResizeOptions, ResourceOptions};
use crate::meta::MetaError;
use crate::meta::relocate::LastKnown;
use crate::wire::state::{ConnState, DiskState, Role};

impl World {
    // --- life and death ---

    /// A node dies now.
    pub(super) fn crash(&mut self, node: usize, power: bool) {
        self.fault(if power { "power cut" } else { "process crash" });
        self.stats.crashes += 1;
        self.trace.note(self.now, node, 20, u64::from(power), || format!("DIES, power {power}"));
        self.links_of_the_dead(node, power);
        self.forget_freeze(node);
        let was_primary = (0..self.differs.len()).filter(|v| self.nodes[node].volumes[*v].seen.role == Role::Primary);
        let eras: Vec<usize> = was_primary.collect();
        let changed = self.nodes[node].die(power);
        let lost: Vec<_> = self.pending.iter().filter(|(_, p)| p.node == node).map(|(id, _)| *id).collect();
        for id in lost {
            self.model.end_read(id.0);
            if let Some(pending) = self.pending.remove(&id)
                && let super::world::Asked::Write(write) = pending.what
            {
                self.model.abandon(self.tick, write);
            }
        }
        if power {
            self.model.power_cut(node);
        } else {
            self.model.process_crash(node);
        }
        for volume in eras {
            self.model.new_era(self.tick, volume);
        }
        for (volume, start, len) in changed {
            self.touched(node, volume, start, len);
        }
    }

    /// A node that is down starts: volumes, disks, connection.
    pub(super) fn restart(&mut self, node: usize, fuse: Option<u32>, connect_first: bool) {
        if !self.start(node, fuse) {
            return;
        }
        if connect_first {
            self.connect_command(node, false);
        }
        for volume in 0..self.differs.len() {
            if !self.attach(node, volume, fuse) {
                // Its power failed again in the middle of the recovery.
                return self.crash(node, true);
            }
        }
        if !connect_first {
            self.connect_command(node, false);
        }
    }

    /// The process of a node that is down starts, with its volumes; false when it was up.
    fn start(&mut self, node: usize, fuse: Option<u32>) -> bool {
        if self.nodes[node].is_up() {
            return false;
        }
        self.trace.note(self.now, node, 21, 0, || format!("starts, fuse {fuse:?}"));
        let seed = self.dice.engine.next_u64();
        let mut engine = Engine::new("r0", seed);
        engine.inject(self.inject);
        let it = &mut self.nodes[node];
        it.engine = Some(engine);
        it.life += 1;
        it.split_brain = false;
        self.refuse_old_links(node);
        let opts = self.nodes[node].params.disk.clone();
        let resource = self.nodes[node].params.resource;
        if resource != ResourceOptions::default() {
            self.command(node, 0, Order::Recycle, Command::ResourceOptions(resource));
        }
        for volume in 0..self.differs.len() {
            self.nodes[node].volumes[volume].configured = true;
            self.command(node, volume, Order::Recycle, Command::NewVolume(opts.clone()));
        }
        true
    }

    /// Reads a volume's metadata and attaches it; false when the node died over it.
    pub(super) fn attach(&mut self, node: usize, volume: usize, fuse: Option<u32>) -> bool {
        let it = &mut self.nodes[node];
        let vol = &mut it.volumes[volume];
        if vol.open || !vol.configured || it.engine.is_none() {
            return true;
        }
        let (place, facts) = (vol.place(), vol.facts(&it.params));
        let known = LastKnown { size_bytes: vol.known_bytes, device: None, device_uuid: None };
        let mut io = DeviceIo { device: vol.meta_device(), fuse };
        match load_moved(&mut io, place, facts, Some(&known)) {
            Ok(mut loaded) => {
                vol.open = true;
                vol.known_bytes = vol.meta_device().len();
                loaded.disk.undo = vol.undo.resume(loaded.disk.superblock.current, &vol.data);
                self.check_undo(node, volume, "when it is attached");
                let it = &mut self.nodes[node];
                let opts = it.params.disk.clone();
                self.command(node, volume, Order::Attach, Command::Attach(Box::new(loaded.disk), opts));
                true
            }
            Err(LoadError::Meta(MetaError::Io { .. })) if fuse.is_some() => false,
            Err(error) => {
                self.fail(Checker::Metadata, format!("volume {volume} cannot be attached: {error}"));
                true
            }
        }
    }

    pub(super) fn clock(&mut self, node: usize, ms: u64) {
        self.fault("clock jump");
        self.nodes[node].clock += ms * 1_000_000;
        let timers: Vec<_> = self.nodes[node].timers.iter().map(|(timer, at)| (*timer, *at)).collect();
        let life = self.nodes[node].life;
        for (timer, at) in timers {
            let due = self.global(node, at);
            self.at(due, super::world::Due::Timer { node, life, timer });
        }
    }

    // --- commands ---

    pub(super) fn command(&mut self, node: usize, volume: usize, order: Order, command: Command) -> CommandId {
        self.next_id += 1;
        let id = CommandId(self.next_id);
        if !self.nodes[node].is_up() {
            // It died over the command before.
            return id;
        }
        self.trace.note(self.now, node, 23, id.0, || format!("vol {volume} command {}: {order:?}", id.0));
        self.name(node, volume, order, Reason::Command(id));
        self.nodes[node].commands.insert(id, (volume, order));
        self.event(node, Event::Command { id, volume: nr(volume), command });
        id
    }

    /// An order that gives data up names whose: from the moment it is given, because a node may act on it before it answers.
    fn name(&mut self, node: usize, volume: usize, order: Order, reason: Reason) {
        match order {
            Order::Connect { discard: true } => {
                for vol in &mut self.nodes[node].volumes {
                    vol.named.insert(reason);
                }
            }
            Order::Invalidate => {
                self.nodes[node].volumes[volume].named.insert(reason);
            }
            Order::InvalidateRemote => {
                self.nodes[1 - node].volumes[volume].named.insert(reason);
            }
            _ => {}
        }
    }

    pub(super) fn command_done(&mut self, node: usize, id: CommandId, result: Result<(), CommandError>) {
        let Some((volume, order)) = self.nodes[node].commands.remove(&id) else {
            return self.fail(Checker::Requests, format!("command {} was answered twice, or was never given", id.0));
        };
        let outcome = match &result {
            Ok(()) => String::from("ok"),
            Err(CommandError::State(result)) => format!("{result:?}"),
            Err(CommandError::Code { code, .. }) => format!("error {code}"),
        };
        self.trace.note(self.now, node, 22, id.0, || format!("vol {volume} command {} ends: {outcome}", id.0));
        let name = match order {
            Order::Primary { force: true } => "primary --force",
            Order::Primary { .. } => "primary",
            Order::Secondary { .. } => "secondary",
            Order::Detach { .. } => "detach",
            Order::Attach => "attach",
            Order::Connect { .. } => "connect",
            Order::Disconnect { .. } => "disconnect",
            Order::Invalidate => "invalidate",
            Order::InvalidateRemote => "invalidate-remote",
            Order::Outdate => "outdate",
            Order::PauseSync => "pause-sync",
            Order::ResumeSync => "resume-sync",
            Order::SuspendIo => "suspend-io",
            Order::ResumeIo => "resume-io",
            Order::AlUpdates(_) | Order::Rate(_) => "disk-options",
            Order::Net(_) => "net-options",
            Order::TwoPrimaries(_) => "net-options allow-two-primaries",
            Order::NewUuid => "new-current-uuid",
            Order::Resize => "resize",
            Order::Recycle => "new-minor",
        };
        self.coverage.count(Group::Command, &format!("{name}: {outcome}"));
        if result.is_err() {
            for vol in self.nodes.iter_mut().flat_map(|n| &mut n.volumes) {
                vol.named.remove(&Reason::Command(id));
            }
        }
        let vol = &mut self.nodes[node].volumes[volume];
        match order {
            Order::Primary { force: true } => {
                vol.forcing = vol.forcing.saturating_sub(1);
                if result.is_ok() {
                    // The peer's data are what this order gives up, if they are not the same.
                    self.nodes[1 - node].volumes[volume].named.insert(Reason::Command(id));
                }
            }
            // The engine closes the device, at once or when what hangs on it has ended.
            Order::Attach if result.is_err() => self.nodes[node].refused_attach += 1,
            Order::Disconnect { .. } if result.is_ok() => self.nodes[node].conn = ConnState::StandAlone,
            Order::TwoPrimaries(on) if result.is_ok() => {
                // The other node follows now, or when somebody connects it.
                for node in &mut self.nodes {
                    node.params.net.two_primaries = on;
                }
            }
            Order::ResumeIo if result.is_ok() => self.forget_freeze(node),
            _ => {}
        }
        self.nodes[node].results.insert(id, result);
    }

    pub(super) fn connect_command(&mut self, node: usize, discard: bool) -> CommandId {
        let net = NetOptions { discard_my_data: discard, ..self.nodes[node].params.net.clone() };
        self.command(node, 0, Order::Connect { discard }, Command::Connect(Box::new(net)))
    }

    /// The operator's order, as far as it makes sense on a node that is up.
    pub(super) fn order(&mut self, node: usize, volume: usize, order: Order) {
        if !self.nodes[node].is_up() || volume >= self.differs.len() {
            return;
        }
        let command = match order {
            Order::Primary { .. } if self.is_constrained(node) => {
                return self.coverage.count(Group::Fault, "a fenced node is not promoted");
            }
            Order::Primary { force } => {
                self.nodes[node].volumes[volume].forcing += u32::from(force);
                Command::Primary { force }
            }
            Order::Secondary { close } => {
                if close {
                    self.close_clients(node, volume);
                    if self.peace && self.nodes[node].volumes[volume].seen.is_suspended() {
                        // What waits would wait for ever, and the demotion with it.
                        self.order(node, volume, Order::ResumeIo);
                    }
                }
                Command::Secondary
            }
            Order::Detach { force } => Command::Detach { force },
            Order::Attach => {
                self.attach(node, volume, None);
                return;
            }
            Order::Connect { discard } => {
                self.connect_command(node, discard);
                return;
            }
            Order::Disconnect { force } => Command::Disconnect { force },
            Order::Invalidate => Command::Invalidate,
            Order::InvalidateRemote => Command::InvalidateRemote,
            Order::Outdate => Command::Outdate,
            Order::PauseSync => Command::PauseSync,
            Order::ResumeSync => Command::ResumeSync,
            Order::SuspendIo => Command::SuspendIo,
            Order::ResumeIo => {
                self.forget_freeze(node);
                Command::ResumeIo
            }
            Order::AlUpdates(al_updates) => {
                self.nodes[node].params.disk.al_updates = al_updates;
                Command::DiskOptions(self.nodes[node].params.disk.clone())
            }
            Order::Rate(mib) => {
                self.nodes[node].params.disk.resync_rate = (mib > 0).then(|| u64::from(mib) << 20);
                Command::DiskOptions(self.nodes[node].params.disk.clone())
            }
            Order::Net(max) => {
                let net = &mut self.nodes[node].params.net;
                (net.max_epoch_size, net.max_buffers) = (max, max);
                self.nodes[node].max_buffers = max.max(self.nodes[node].max_buffers);
                let net = &self.nodes[node].params.net;
                Command::NetOptions(Box::new(net.clone()))
            }
            Order::TwoPrimaries(two_primaries) => {
                if self.nodes.iter().any(|n| n.conn == ConnState::StandAlone) {
                    // There are only the files of both nodes to change.
                    for node in &mut self.nodes {
                        node.params.net.two_primaries = two_primaries;
                    }
                    return;
                }
                let net = NetOptions { two_primaries, ..self.nodes[node].params.net.clone() };
                Command::NetOptions(Box::new(net))
            }
            Order::Resize => {
                self.look_at_sizes(node, volume);
                Command::Resize(ResizeOptions::default())
            }
            Order::NewUuid => Command::NewCurrentUuid { clear_bitmap: false },
            Order::Recycle => {
                // Everything is taken down in order, as far as it can be; the manager brings it up again.
                for volume in 0..self.differs.len() {
                    self.close_clients(node, volume);
                    self.command(node, volume, Order::Secondary { close: true }, Command::Secondary);
                }
                let force = Order::Disconnect { force: false };
                self.command(node, 0, force, Command::Disconnect { force: false });
                for volume in 0..self.differs.len() {
                    self.command(node, volume, Order::Detach { force: false }, Command::Detach { force: false });
                }
                return;
            }
        };
        self.command(node, volume, order, command);
    }

    fn close_clients(&mut self, node: usize, volume: usize) {
        if std::mem::take(&mut self.nodes[node].volumes[volume].opened) {
            self.event(node, Event::Closed { volume: nr(volume) });
        }
    }

    pub(super) fn switch_over(&mut self) {
        self.prefer = 1 - self.prefer;
        self.coverage.count(Group::Fault, "switch-over");
        for volume in 0..self.differs.len() {
            let both = self.params.two_primaries() && self.is_primary(1 - self.prefer, volume);
            if both || self.primary(volume) == Some(1 - self.prefer) {
                self.order(1 - self.prefer, volume, Order::Secondary { close: true });
            }
        }
    }

    // --- the cluster manager ---

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
        if self.renew_oversized() {
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

    /// Virtual seconds pass.
    pub fn settle_down(&mut self, seconds: u64) {
        let end = self.now + seconds * 1_000_000_000;
        self.run_until(end);
    }

    /// Whether the initial sync was skipped by the operator, and only now a slow peer hears of it: its disk has no past.
    pub(super) const fn skips_late(&self) -> bool {
        self.links.len() == self.skipped_on
    }
}
