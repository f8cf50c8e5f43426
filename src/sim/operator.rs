//! Whoever looks after the cluster: commands of an operator, the cluster manager, crashes and restarts.

use super::coverage::Group;
use super::node::{DeviceIo, Reason, nr};
use super::plan::Order;
use super::world::{Checker, World};
use crate::engine::Engine;
use crate::engine::action::CommandError;
use crate::engine::event::{Command, CommandId, Event};
use crate::engine::load::{LoadError, load_moved};
use crate::engine::options::{NetOptions, ResizeOptions, ResourceOptions};
use crate::meta::MetaError;
use crate::meta::relocate::LastKnown;
use crate::wire::state::{ConnState, Role};

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
                let late = self.scene(node, pending.volume).may_come_late;
                self.model.abandon(self.tick, write, late);
            }
        }
        for volume in 0..self.differs.len() {
            self.model.link_ended(self.tick, node, volume);
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
    pub(super) fn start(&mut self, node: usize, fuse: Option<u32>) -> bool {
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
