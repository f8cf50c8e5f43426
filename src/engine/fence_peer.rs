//! Fencing the peer: when its helper runs, and what becomes of the exit code (behaviour.md 8).
//!
//! Takes in: the end of a link, a promotion that the state refuses, the helper's exit code. Gives out: the run of the helper,
//! the change that the code stands for (rules in `fence`), the answer to the promotion that waits. Invariants: a code of a
//! time before another connection changes nothing; I/O that is frozen goes on only by a change of the state that says so.

use crate::engine::Engine;
use crate::engine::action::Level;
use crate::engine::admin::Wait;
use crate::engine::event::CommandId;
use crate::engine::fault::Fault;
use crate::engine::fence::{FenceStart, interpret, start, succeeded};
use crate::engine::handler::Handler;
use crate::engine::helpers::AfterHelper;
use crate::engine::state::{ChangeMode, Fencing, StateChange, plan};
use crate::engine::suspend::Fate;
use crate::units::VolumeNr;
use crate::wire::state::{ConnState, DiskState, Role};

/// What the attempt to fence the peer has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    /// It is over.
    Done(bool),
    /// The helper runs.
    Waits,
}

impl Engine {
    /// The policy that counts: the strictest of the volumes whose data are Consistent or better.
    fn fencing_policy(&self) -> Option<Fencing> {
        let usable = self.volumes.values().filter(|vol| vol.state.disk >= DiskState::Consistent);
        usable.map(|vol| vol.opts.fencing).max()
    }

    fn highest_pdsk(&self) -> DiskState {
        self.volumes.values().map(|vol| vol.state.pdsk).max().unwrap_or(DiskState::Diskless)
    }

    /// The link is gone: a Primary has the peer fenced, unless it is known to be outdated.
    pub(crate) fn fence_after_loss(&mut self) {
        let primary = self.volumes.values().any(|vol| vol.state.role == Role::Primary);
        if primary && self.highest_pdsk() >= DiskState::DUnknown {
            let _ = self.fence_peer(None);
        }
    }

    /// Begins to fence the peer. `command` waits for the outcome.
    pub(crate) fn fence_peer(&mut self, command: Option<CommandId>) -> Fenced {
        let step = start(self.fencing_policy(), self.conn.state >= ConnState::WfReportParams);
        if !step.log().is_empty() {
            self.log(Level::Warn, None, step.log());
        }
        match step {
            FenceStart::Connected => Fenced::Done(false),
            FenceStart::NotConsistent => {
                if self.volumes.values().any(|vol| vol.state.susp_fen) {
                    let others = self.volumes.values().any(|vol| vol.state.susp || vol.state.susp_nod);
                    let fate = if others { Fate::None } else { Fate::Lost };
                    self.thaw(&StateChange::NONE.susp_fen(false), fate);
                }
                Fenced::Done(false)
            }
            FenceStart::NotWanted => Fenced::Done(true),
            FenceStart::RunHelper => {
                let connects = self.conn.connects;
                self.run_helper(Handler::FencePeer, None, AfterHelper::FencePeer { connects, command });
                Fenced::Waits
            }
        }
    }

    /// The helper has ended.
    pub(crate) fn on_fence_peer_done(&mut self, code: u8, connects: u64, command: Option<CommandId>) {
        let policy = self.fencing_policy().unwrap_or_default();
        let own_disk = self.volumes.values().map(|vol| vol.state.disk).max().unwrap_or(DiskState::Diskless);
        let verdict = interpret(i32::from(code), policy, own_disk);
        for line in verdict.log {
            self.log(Level::Warn, None, line);
        }
        if self.conn.state < ConnState::WfReportParams && !self.conn.state_sent {
            if self.conn.connects != connects && !self.faulty(Fault::StaleFenceCounts) {
                self.log(Level::Info, None, "Ignoring fence-peer exit code");
            } else if let Some(change) = verdict.change {
                self.change_all(&change);
            }
        }
        if self.faulty(Fault::FreezeLiftedEarly) && self.conn.state < ConnState::WfReportParams {
            self.thaw(&StateChange::NONE.susp_fen(false), Fate::Lost);
        }
        let Some(id) = command else { return };
        if let Some(at) = self.commands.iter().position(|c| c.id == id && c.wait == Wait::Helper) {
            let pending = self.commands.remove(at);
            let done = succeeded(self.highest_pdsk());
            self.promote_after_fencing(pending, done);
        }
    }

    /// A wish for all volumes: made if every one of them allows it.
    fn change_all(&mut self, change: &StateChange) {
        let volumes = self.volume_numbers();
        let refused =
            volumes.iter().find_map(|v| plan(&self.state(*v), change, ChangeMode::Soft, &self.state_context(*v)).err());
        if let Some(code) = refused {
            return self.log(Level::Error, None, format!("State change failed: {}", code.text()));
        }
        for v in volumes {
            self.force(v, change);
        }
    }

    /// The source of a resync that is over: once all volumes are good on both nodes, the peer may serve again.
    pub(crate) fn unfence_peer(&mut self, v: VolumeNr) {
        let fences = self.volumes.get(&v).is_some_and(|vol| vol.opts.fencing != Fencing::DontCare);
        let good = |vol: &crate::engine::volume::Volume| {
            vol.state.disk == DiskState::UpToDate && vol.state.pdsk == DiskState::UpToDate
        };
        if fences && self.volumes.values().all(good) {
            self.tell_helper(Handler::UnfencePeer, None);
        }
    }
}
