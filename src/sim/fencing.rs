//! Fencing and suspended I/O in the simulated world: what the fence-peer helper does there, and P7, the check that frozen I/O is
//! frozen.
//!
//! **The helper is honest.** An exit code that says that the peer is outdated, down or shot is given only when that is so: the peer
//! outdated itself on the helper's word, or it is dead; and from then on neither the cluster manager nor an operator promotes
//! it before it is unfenced or known to be good (a cluster's location constraint). A lying helper voids every promise. Some runs of
//! it are broken, some take long.
//!
//! **P7.** From the moment when a Primary with the policy resource-and-stonith loses its peer, nothing is acknowledged to its
//! clients: until a helper that began after that moment said that the peer is fenced, until the peer is connected again (or is
//! known, connected with one volume, to have no good disk for any), until an operator orders resume-io, or until no disk of
//! the node is Consistent. The check looks at states, orders and exit codes, not at the engine's flags. It does not look at
//! what fails.

use super::coverage::Group;
use super::plan::Order;
use super::world::{A, B, Checker, Due, World};
use crate::engine::event::{Command, Event, HandlerRun};
use crate::engine::handler::Handler;
use crate::engine::state::{Fencing, VolumeState};
use crate::wire::state::{ConnState, DiskState, Role};

/// What is known of fencing on one node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fence {
    /// Its I/O has to be frozen; since the so-manieth loss.
    frozen: Option<u64>,
    /// Losses of the peer so far.
    losses: u64,
    /// The other node had it fenced: nobody promotes it.
    pub(super) constrained: bool,
}

impl World {
    // --- the helper ---

    /// A node runs a helper program.
    pub(super) fn run_helper(&mut self, node: usize, run: HandlerRun, handler: Handler) {
        match handler {
            Handler::FencePeer => {
                let typical = self.params.nodes[node].helper_ns;
                // The daemon ends what takes too long.
                let wait = self.dice.helper.around(typical).min(typical.saturating_mul(4));
                let (life, losses) = (self.nodes[node].life, self.fences[node].losses);
                self.after(wait, Due::Helper { node, life, run, losses });
            }
            Handler::UnfencePeer => {
                self.fences[1 - node].constrained = false;
                self.coverage.count(Group::Fault, "unfence-peer");
                self.nodes[node].queued.push_back(Event::HandlerDone { run, code: 0 });
            }
            _ => self.nodes[node].queued.push_back(Event::HandlerDone { run, code: 0 }),
        }
    }

    /// The fence-peer helper does its work, and ends.
    pub(super) fn helper_ends(&mut self, node: usize, run: HandlerRun, losses: u64) {
        let code = self.fence(node);
        self.coverage.count(Group::Fault, &format!("fence-peer: {code}"));
        self.trace.note(self.now, node, 40, u64::from(code), || format!("fence-peer ends with {code}"));
        let own_good = self.nodes[node].volumes.iter().any(|vol| vol.seen.disk == DiskState::UpToDate);
        let fenced = matches!(code, 3 | 4 | 7) || (code == 5 && own_good);
        if fenced && losses == self.fences[node].losses {
            self.fences[node].frozen = None;
        }
        self.event(node, Event::HandlerDone { run, code });
    }

    fn fence(&mut self, node: usize) -> u8 {
        let peer = 1 - node;
        if self.dice.helper.percent(self.params.nodes[node].helper_broken) {
            return self.dice.helper.pick(&[0, 1, 2, 8, 127]);
        }
        if !self.nodes[peer].is_up() {
            self.fences[peer].constrained = true;
            return self.dice.helper.pick(&[5, 7]);
        }
        let shoots = self.dice.helper.percent(self.params.nodes[node].helper_shoots);
        let seen: Vec<VolumeState> = self.nodes[peer].volumes.iter().map(|vol| vol.seen).collect();
        let primary = seen.iter().any(|s| s.role == Role::Primary);
        if shoots {
            self.crash(peer, true);
            self.fences[peer].constrained = true;
            let back = self.dice.helper.around(2_000_000_000);
            self.after(back, Due::Back { node: peer });
            return 7;
        }
        if primary {
            return 6;
        }
        if self.nodes[peer].frozen_until > self.now || seen.iter().any(|s| s.conn >= ConnState::WfReportParams) {
            return 1;
        }
        for volume in 0..seen.len() {
            self.command(peer, volume, Order::Outdate, Command::Outdate);
        }
        // Its word counts when it is on its disk; until then a restart would forget it.
        self.fences[peer].constrained = true;
        let disks: Vec<DiskState> = self.nodes[peer].volumes.iter().map(|vol| vol.seen.disk).collect();
        match disks.iter().max() {
            _ if !self.nodes[peer].is_up() => 5,
            Some(disk) if *disk < DiskState::Outdated => 3,
            Some(DiskState::Outdated) => 4,
            _ => {
                self.fences[peer].constrained = false;
                1
            }
        }
    }

    /// Whether the cluster's constraint keeps a node from being promoted.
    pub(super) const fn is_constrained(&self, node: usize) -> bool {
        self.fences[node].constrained
    }

    /// Both nodes are connected and good: the constraints go, as an administrator clears them.
    pub(super) fn lift_constraints(&mut self, all: bool) {
        let good = |world: &Self, n: usize| {
            world.nodes[n].volumes.iter().all(|vol| {
                let s = vol.seen;
                s.conn == ConnState::Connected && s.disk == DiskState::UpToDate && s.pdsk == DiskState::UpToDate
            })
        };
        if all || (good(self, A) && good(self, B)) {
            for fence in &mut self.fences {
                fence.constrained = false;
            }
        }
    }

    // --- P7 ---

    /// A state was announced: does it begin or end the time in which I/O has to be frozen?
    pub(super) fn note_freeze(&mut self, node: usize, old: &VolumeState, new: &VolumeState) {
        let policy = self.nodes[node].params.disk.fencing == Fencing::ResourceAndStonith;
        let lost =
            |s: &VolumeState| s.role == Role::Primary && s.conn < ConnState::Connected && s.pdsk > DiskState::Outdated;
        if old.conn >= ConnState::Connected && new.conn < ConnState::Connected {
            self.fences[node].losses += 1;
        }
        if policy && old.disk >= DiskState::Inconsistent && lost(new) && !lost(old) {
            self.fences[node].frozen = Some(self.fences[node].losses);
            self.coverage.count(Group::Fault, "frozen for fencing");
        }
        let volumes = || self.nodes[node].volumes.iter().map(|vol| vol.seen);
        let back = volumes().all(|s| s.conn >= ConnState::Connected);
        let worthless = volumes().all(|s| s.disk < DiskState::Consistent);
        let nobodys = volumes().all(|s| s.role == Role::Secondary);
        // The volumes report one by one, and what is known of the others already suffices.
        let heard =
            volumes().any(|s| s.conn >= ConnState::Connected) && volumes().all(|s| s.pdsk <= DiskState::Outdated);
        if back || worthless || nobodys || heard {
            self.fences[node].frozen = None;
        }
        for (on, name) in [
            (!old.susp && new.susp, "suspended: user"),
            (!old.susp_nod && new.susp_nod, "suspended: no data"),
            (!old.susp_fen && new.susp_fen, "suspended: fencing"),
            (old.is_suspended() && !new.is_suspended(), "resumed"),
        ] {
            if on {
                self.coverage.count(Group::Fault, name);
            }
        }
    }

    /// An operator, or the death of the process, ends it.
    pub(super) fn forget_freeze(&mut self, node: usize) {
        self.fences[node].frozen = None;
    }

    /// P7: something was acknowledged to a client.
    pub(super) fn check_freeze(&mut self, node: usize, request: u64) {
        // An order that was given before the loss may be carried out after it.
        let resuming = self.nodes[node].commands.values().any(|(_, order)| *order == Order::ResumeIo);
        if let Some(loss) = self.fences[node].frozen.filter(|_| !resuming) {
            let text = format!("request {request} ended well after loss {loss} of the peer, which is not fenced");
            self.fail(Checker::Frozen, text);
        }
    }
}
