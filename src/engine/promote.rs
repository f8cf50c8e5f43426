//! Who serves: promotion and demotion, as far as orders decide them (behaviour.md 4.1, 4.2).
//!
//! Takes in `primary` and `secondary` as pending commands, the peer's answers, the end of the helper that fences the peer. Gives
//! out the change of the role, or the reason why not. Invariants: a write is admitted only when the primary indicator is
//! durable; an answer of the peer is used once, however often the promotion was tried.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, CommandError, Level};
use crate::engine::admin::{Attempt, Job, Pending, Wait};
use crate::engine::event::CommandId;
use crate::engine::fault::Fault;
use crate::engine::fence_peer::Fenced;
use crate::engine::md::MdDone;
use crate::engine::state::{ChangeMode, StateChange, plan};
use crate::units::VolumeNr;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState, Role, StateResult};

impl Engine {
    pub(crate) fn run_primary(&mut self, mut pending: Pending, mut answer: Option<StateResult>) {
        let (id, v) = (pending.id, pending.volume);
        let reckless = self.faulty(Fault::PromotedInconsistent);
        let Job::Primary(p) = &mut pending.job else { return };
        if answer.is_none() && self.orphans_on_their_way(v) {
            return self.wait(pending, Wait::Change);
        }
        loop {
            let mut change = StateChange::NONE.role(Role::Primary);
            // Without the operator's force only what is still Consistent is considered good.
            p.good &= self.state(v).disk == DiskState::Consistent;
            if p.forced || p.good {
                change = change.disk(DiskState::UpToDate);
            }
            if p.against_peer {
                change = change.pdsk(DiskState::Outdated);
            }
            if p.tries >= 4 && answer.is_none() {
                break;
            }
            p.tries += u8::from(answer.is_none());
            let disk = self.state(v).disk;
            match self.attempt(id, v, &change, answer) {
                Attempt::Asked => return self.wait(pending, Wait::Answer),
                Attempt::Done(StateResult::NothingToDo) => return self.command_done(id, Ok(())),
                Attempt::Done(_) => {
                    let forced = p.forced;
                    return self.promoted(id, v, forced);
                }
                Attempt::Refused(StateResult::InTransientState) => {
                    p.tries = p.tries.saturating_sub(1);
                    return self.wait(pending, Wait::Change);
                }
                Attempt::Refused(StateResult::CwFailedByPeer) if p.against_peer => {
                    p.against_peer = false;
                    answer = None;
                }
                Attempt::Refused(StateResult::NoUpToDateDisk)
                    if !p.forced
                        && answer.is_none()
                        && (p.force || reckless)
                        && (DiskState::Inconsistent..DiskState::UpToDate).contains(&disk) =>
                {
                    p.forced = true;
                }
                Attempt::Refused(StateResult::NoUpToDateDisk)
                    if disk == DiskState::Consistent && !p.good && !p.against_peer && answer.is_none() =>
                {
                    match self.fence_peer(Some(id)) {
                        Fenced::Waits => return self.wait(pending, Wait::Helper),
                        Fenced::Done(fenced) => p.good = fenced,
                    }
                }
                Attempt::Refused(StateResult::PrimaryNop) if !p.against_peer && answer.is_none() => {
                    match self.fence_peer(Some(id)) {
                        Fenced::Waits => return self.wait(pending, Wait::Helper),
                        Fenced::Done(false) if p.force => {
                            self.log(Level::Warn, Some(v), "Forced into split brain situation!");
                            p.against_peer = true;
                        }
                        Fenced::Done(_) => {}
                    }
                }
                Attempt::Refused(StateResult::TwoPrimaries) if !p.waited && self.conn.link.is_some() => {
                    p.waited = true;
                    let timeout = self.conn.opts.as_ref().map_or(Duration::ZERO, |o| o.ping_timeout);
                    let at = self.now.after(timeout + Duration::from_millis(100));
                    self.retry_commands(at);
                    return self.wait(pending, Wait::Timer);
                }
                Attempt::Refused(_) if answer == Some(StateResult::ConcurrentStChg) && p.tries < 4 => {
                    // Both are being promoted at the same time: the peer's own change has to be through first.
                    let at = self.now.after(Duration::from_millis(100));
                    self.retry_commands(at);
                    return self.wait(pending, Wait::Timer);
                }
                Attempt::Refused(code) => return self.command_done(id, Err(CommandError::State(code))),
            }
        }
        // One last attempt says why.
        let result = match self.check_cluster_wide(v, &StateChange::NONE.role(Role::Primary)) {
            Err(code) => code,
            Ok(_) => StateResult::NoUpToDateDisk,
        };
        self.command_done(id, Err(CommandError::State(result)));
    }

    /// The helper that fences the peer has ended: the promotion goes on.
    pub(crate) fn promote_after_fencing(&mut self, mut pending: Pending, fenced: bool) {
        let v = pending.volume;
        if let Job::Primary(p) = &mut pending.job {
            if self.state(v).disk == DiskState::Consistent {
                p.good = fenced;
            } else if !fenced && p.force {
                self.log(Level::Warn, Some(v), "Forced into split brain situation!");
                p.against_peer = true;
            }
        }
        self.run(pending, None);
    }

    pub(crate) fn promoted(&mut self, id: CommandId, v: VolumeNr, forced: bool) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.discard_my_data = false;
        let state = vol.state;
        if vol.disk.is_some() {
            let lonely = state.conn < ConnState::Connected || state.pdsk <= DiskState::Failed;
            let fresh = (lonely && vol.lonely_writes_need_generation()) || forced;
            // No write is admitted before the primary indicator is durable.
            vol.promoting = Some(id);
            if forced {
                self.log(Level::Warn, Some(v), "Forced to consider local data as UpToDate!");
            }
            // The generation before the promotion goes into the bitmap slot without the Primary bit.
            if fresh && !self.faulty(Fault::PromotionKeepsUuid) {
                self.new_current_uuid(v);
            }
            if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
                let ids = disk.ids().with_role(true);
                disk.set_ids(ids);
            }
        }
        if let Some(opts) = self.conn.opts.as_mut() {
            opts.discard_my_data = false;
        }
        self.update_md_flags(v);
        if self.conn.state >= ConnState::WfReportParams {
            if forced {
                self.send_uuids_durably(v);
            }
            self.send_state(v);
        }
        if self.volumes.get(&v).is_none_or(|vol| vol.disk.is_none()) {
            return self.command_done(id, Ok(()));
        }
        self.md_superblock(v, Some(MdDone::Command(id)));
        self.wait_md(id, v);
    }

    pub(crate) fn run_secondary(&mut self, mut pending: Pending) {
        let (id, v) = (pending.id, pending.volume);
        let change = StateChange::NONE.role(Role::Secondary);
        let (state, ctx) = (self.state(v), self.state_context(v));
        if state.role == Role::Secondary {
            return self.command_done(id, Ok(()));
        }
        match plan(&state, &change, ChangeMode::Soft, &ctx) {
            Err(StateResult::InTransientState) => return self.wait(pending, Wait::Change),
            Err(code) => return self.command_done(id, Err(CommandError::State(code))),
            Ok(_) => {}
        }
        // The primary indicator may only be cleared when every request is done (metadata.md 9.3).
        self.epochs.close();
        self.send_due_barrier();
        if self.conn.relaxed_epochs
            && let Job::Secondary { hurried, .. } = &mut pending.job
            && !std::mem::replace(hurried, true)
        {
            self.send_data(v, Packet::UnplugRemote);
        }
        let busy = self.requests.iter().any(|(_, r)| r.volume == v)
            || self.flushes.iter().any(|(_, f)| f.volume == v)
            || self.frozen_flushes.iter().any(|(_, of)| *of == v);
        if busy && !self.faulty(Fault::DemotedBusy) {
            if state.is_suspended()
                && let Job::Secondary { told, .. } = &mut pending.job
                && !std::mem::replace(told, true)
            {
                // As in 8.4 it waits; there nobody says for what.
                let text = "I/O is suspended, and requests wait for its end; so does this demotion (see resume-io)";
                self.log(Level::Warn, Some(v), text);
            }
            return self.wait(pending, Wait::Change);
        }
        match self.change(v, &change, ChangeMode::Soft) {
            Err(StateResult::InTransientState) => return self.wait(pending, Wait::Change),
            Err(code) => return self.command_done(id, Err(CommandError::State(code))),
            Ok(_) => {}
        }
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            let ids = disk.ids().with_role(false);
            disk.set_ids(ids);
        }
        if self.conn.state >= ConnState::WfReportParams {
            self.send_state(v);
        }
        // Clients cannot be open here; a session that raced with the demotion is ended.
        self.out.push(Action::EndSessions { volume: v, reason: String::from("this node became Secondary") });
        if self.volumes.get(&v).is_none_or(|vol| vol.disk.is_none()) {
            return self.command_done(id, Ok(()));
        }
        self.md_bitmap(v, true, Some(MdDone::Command(id)));
        self.wait_md(id, v);
    }
}
