//! Operator commands and the peer's requests for consent (behaviour.md 2.5, 2.9; wire.md 11).
//!
//! Owns the commands that wait: for the peer's answer, for a state change, for a timer, for requests to drain, for
//! metadata to become durable. Each command is run again whenever something it waits for may have happened; its steps
//! are idempotent.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, CommandError, Level};
use crate::engine::connection::PeerQuestion;
use crate::engine::event::{Command, CommandId, Timer};
use crate::engine::md::MdDone;
use crate::engine::options::ResizeOptions;
use crate::engine::resize::ResizeStep;
use crate::engine::state::{ChangeMode, StateChange, is_acceptable_peer_request, is_cluster_wide, plan};
use crate::limits::FORCED_DETACH_MS;
use crate::units::{Timestamp, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState, StateResult, StateWord};

/// A command that is under way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: CommandId,
    pub(crate) volume: VolumeNr,
    pub(crate) job: Job,
    pub(crate) wait: Wait,
}

#[derive(Debug)]
pub(crate) enum Job {
    Primary(Promotion),
    Secondary {
        /// The operator was told what it waits for.
        told: bool,
        /// The peer was asked to acknowledge at once.
        hurried: bool,
    },
    Detach {
        force: bool,
        until: Option<Timestamp>,
    },
    Disconnect {
        force: bool,
        outdates: Outdates,
    },
    Change {
        change: StateChange,
        retry: bool,
    },
    ResumeIo,
    Resize {
        opts: ResizeOptions,
        step: ResizeStep,
    },
    Md,
}

/// How far a promotion has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promotion {
    pub(crate) force: bool,
    /// The own disk counts as good because the operator says so.
    pub(crate) forced: bool,
    /// The own disk, Consistent, counts as good because the peer is fenced.
    pub(crate) good: bool,
    /// The peer counts as outdated because the operator says so.
    pub(crate) against_peer: bool,
    pub(crate) tries: u8,
    pub(crate) waited: bool,
}

/// Whose data are outdated by a disconnect (behaviour.md 2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outdates {
    Nobody,
    /// Those of this node: the peer is a Primary with a fencing policy.
    Own,
    /// The peer's: this node is.
    Peer,
}

/// What a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Anything: run it again after the next change.
    Change,
    /// The peer's answer.
    Answer,
    /// A timer.
    Timer,
    /// Its metadata job.
    Md,
    /// The end of a helper program.
    Helper,
}

/// Outcome of one attempt to change a state.
pub(crate) enum Attempt {
    Done(StateResult),
    Refused(StateResult),
    Asked,
}

pub(crate) const fn err(code: u16) -> CommandError {
    CommandError::Code { code, detail: String::new() }
}

impl Engine {
    /// An operator command.
    pub(crate) fn on_command(&mut self, id: CommandId, v: VolumeNr, command: Command) {
        let connection_wide = matches!(
            command,
            Command::Connect(_)
                | Command::Disconnect { .. }
                | Command::NetOptions(_)
                | Command::ResourceOptions(_)
                | Command::NewVolume(_)
        );
        if !connection_wide && !self.volumes.contains_key(&v) {
            return self.command_done(id, Err(err(127)));
        }
        let result = match command {
            Command::NewVolume(opts) => self.new_volume(v, opts),
            Command::DelVolume => self.del_volume(v),
            Command::Attach(disk, opts) => match self.attach(id, v, *disk, opts) {
                Ok(()) => return self.wait_md(id, v),
                Err(error) => {
                    self.out.push(Action::CloseDisk { volume: v });
                    Err(error)
                }
            },
            Command::Detach { force } => return self.start_command(id, v, Job::Detach { force, until: None }),
            Command::Connect(opts) => self.connect(*opts),
            Command::Disconnect { force } => {
                return self.start_command(id, v, Job::Disconnect { force, outdates: Outdates::Nobody });
            }
            Command::Primary { force } => {
                self.request_ping();
                return self.start_command(id, v, Job::Primary(Promotion { force, ..Promotion::default() }));
            }
            Command::Secondary => return self.start_command(id, v, Job::Secondary { told: false, hurried: false }),
            Command::Outdate => {
                return self.start_command(
                    id,
                    v,
                    Job::Change { change: StateChange::NONE.disk(DiskState::Outdated), retry: true },
                );
            }
            Command::Invalidate => return self.invalidate(id, v),
            Command::InvalidateRemote => return self.invalidate_remote(id, v),
            Command::NewCurrentUuid { clear_bitmap } => match self.admin_new_current_uuid(v, clear_bitmap) {
                Ok(()) => {
                    self.md_bitmap(v, true, Some(MdDone::Command(id)));
                    return self.wait_md(id, v);
                }
                Err(error) => Err(error),
            },
            Command::Resize(opts) => {
                return self.start_command(id, v, Job::Resize { opts, step: ResizeStep::Check });
            }
            Command::PauseSync => self.pause_sync(v),
            Command::ResumeSync => self.resume_sync(v),
            Command::SuspendIo => {
                let job = Job::Change { change: StateChange::NONE.susp(true), retry: true };
                return self.start_command(id, v, job);
            }
            Command::ResumeIo => return self.start_command(id, v, Job::ResumeIo),
            Command::DiskOptions(opts) => self.disk_options(v, opts),
            Command::NetOptions(opts) => self.net_options(*opts),
            Command::ResourceOptions(opts) => {
                self.opts = opts;
                Ok(())
            }
        };
        self.command_done(id, result);
    }

    pub(crate) fn command_done(&mut self, id: CommandId, result: Result<(), CommandError>) {
        self.out.push(Action::CommandDone { id, result });
    }

    pub(crate) fn start_command(&mut self, id: CommandId, v: VolumeNr, job: Job) {
        self.run(Pending { id, volume: v, job, wait: Wait::Change }, None);
    }

    pub(crate) fn wait_md(&mut self, id: CommandId, v: VolumeNr) {
        // The job may have ended within this very call.
        if let Some(at) = self.md_done_early.iter().position(|(done, _)| *done == id) {
            let (_, ok) = self.md_done_early.swap_remove(at);
            return self.command_done(id, if ok { Ok(()) } else { Err(err(118)) });
        }
        self.commands.push(Pending { id, volume: v, job: Job::Md, wait: Wait::Md });
    }

    /// The metadata that a command waited for is durable.
    pub(crate) fn command_md_done(&mut self, id: CommandId, ok: bool) {
        for vol in self.volumes.values_mut() {
            if vol.promoting == Some(id) {
                vol.promoting = None;
            }
        }
        match self.commands.iter().position(|c| c.id == id && c.wait == Wait::Md) {
            Some(at) => {
                let pending = self.commands.remove(at);
                self.command_done(pending.id, if ok { Ok(()) } else { Err(err(118)) });
                self.admit(pending.volume);
            }
            None => self.md_done_early.push((id, ok)),
        }
    }

    /// Runs the commands again that wait for a change.
    pub(crate) fn recheck(&mut self) {
        let (ready, rest) =
            std::mem::take(&mut self.commands).into_iter().partition(|c: &Pending| c.wait == Wait::Change);
        self.commands = rest;
        for pending in ready {
            self.run(pending, None);
        }
    }

    /// Commands are looked at again at this time, whoever else has asked for another one.
    pub(crate) fn retry_commands(&mut self, at: Timestamp) {
        self.retry_at.insert(at);
        if let Some(at) = self.retry_at.first().copied() {
            self.out.push(Action::SetTimer { timer: Timer::CommandRetry, at });
        }
    }

    /// The retry timer of commands fired.
    pub(crate) fn on_command_timer(&mut self) {
        let now = self.now;
        self.retry_at.retain(|at| *at > now);
        if let Some(at) = self.retry_at.first().copied() {
            self.out.push(Action::SetTimer { timer: Timer::CommandRetry, at });
        }
        let (ready, rest) =
            std::mem::take(&mut self.commands).into_iter().partition(|c: &Pending| c.wait == Wait::Timer);
        self.commands = rest;
        self.recheck_commands = true;
        for pending in ready {
            self.run(pending, None);
        }
    }

    pub(crate) fn wait(&mut self, mut pending: Pending, wait: Wait) {
        pending.wait = wait;
        self.commands.push(pending);
    }

    /// Runs a command as far as it gets. `answer` is the peer's, if it came.
    pub(crate) fn run(&mut self, mut pending: Pending, answer: Option<StateResult>) {
        let (id, v) = (pending.id, pending.volume);
        if !self.volumes.contains_key(&v) && !matches!(pending.job, Job::Disconnect { .. }) {
            return self.command_done(id, Err(err(127)));
        }
        match &mut pending.job {
            Job::Md => {}
            Job::Primary(_) => self.run_primary(pending, answer),
            Job::Secondary { .. } => self.run_secondary(pending),
            Job::Resize { .. } => self.run_resize(pending),
            Job::Detach { .. } => self.run_detach(pending, answer),
            Job::Disconnect { .. } => self.run_disconnect(pending, answer),
            Job::ResumeIo => self.run_resume_io(pending),
            Job::Change { change, retry } => {
                let (change, retry) = (*change, *retry);
                match self.attempt(id, v, &change, answer) {
                    Attempt::Asked => self.wait(pending, Wait::Answer),
                    // Who outdates a disk relies on it after a restart as well.
                    Attempt::Done(StateResult::Success) if change.disk == Some(DiskState::Outdated) => {
                        self.md_superblock(v, Some(MdDone::Command(id)));
                        self.wait_md(id, v);
                    }
                    Attempt::Done(_) => self.command_done(id, Ok(())),
                    Attempt::Refused(StateResult::InTransientState) if retry => self.wait(pending, Wait::Change),
                    Attempt::Refused(code) => self.command_done(id, Err(CommandError::State(code))),
                }
            }
        }
    }

    /// One attempt: asks the peer where it must, makes the change where it may.
    pub(crate) fn attempt(
        &mut self,
        id: CommandId,
        v: VolumeNr,
        change: &StateChange,
        answer: Option<StateResult>,
    ) -> Attempt {
        match answer {
            Some(code) if !code.is_success() => {
                let text = format!("Requested state change failed by peer: {} ({})", code.text(), code.code());
                self.log(Level::Warn, Some(v), text);
                return Attempt::Refused(StateResult::CwFailedByPeer);
            }
            Some(_) => {}
            None => {
                let ctx = self.state_context(v);
                let old = self.state(v);
                let wide = plan(&old, change, ChangeMode::Hard, &ctx)
                    .is_ok_and(|p| !p.nothing && is_cluster_wide(&old, &p.new));
                if wide {
                    if let Err(code) = self.check_cluster_wide(v, change) {
                        return Attempt::Refused(code);
                    }
                    if self.conn.question.is_some() {
                        return Attempt::Refused(StateResult::InTransientState);
                    }
                    self.conn.question =
                        Some(PeerQuestion { command: id, volume: v, connection: false, conn: change.conn });
                    self.send_data(v, Packet::StateChgReq { mask: change.mask(), val: change.val() });
                    return Attempt::Asked;
                }
            }
        }
        match self.change(v, change, ChangeMode::Soft) {
            Ok(code) => Attempt::Done(code),
            Err(code) => {
                if answer.is_some() && self.conn.link.is_some() {
                    // The peer takes it for done: it is told how things are.
                    self.send_state(v);
                }
                Attempt::Refused(code)
            }
        }
    }

    /// The peer answered a question.
    pub(crate) fn on_answer(&mut self, v: VolumeNr, connection: bool, code: i32) {
        let Some(question) = self.conn.question.filter(|q| q.connection == connection && (connection || q.volume == v))
        else {
            return self.peer_error("P_STATE_CHG_REPLY", String::from("nothing was asked"));
        };
        self.conn.question = None;
        let answer = StateResult::from_code(code).unwrap_or(StateResult::UnknownError);
        self.resume(question, answer);
        self.recheck_commands = true;
    }

    /// The link ended before the peer answered.
    pub(crate) fn question_failed(&mut self) {
        if let Some(question) = self.conn.question.take() {
            self.resume(question, StateResult::UnknownError);
        }
    }

    pub(crate) fn resume(&mut self, question: PeerQuestion, answer: StateResult) {
        if let Some(at) = self.commands.iter().position(|c| c.id == question.command && c.wait == Wait::Answer) {
            let pending = self.commands.remove(at);
            self.run(pending, Some(answer));
        }
    }

    pub(crate) fn run_detach(&mut self, mut pending: Pending, answer: Option<StateResult>) {
        let (id, v) = (pending.id, pending.volume);
        let Job::Detach { force, until } = &mut pending.job else { return };
        let (force, now) = (*force, self.now);
        let patience = now.after(Duration::from_millis(FORCED_DETACH_MS));
        let first = force && until.is_none();
        let until = *until.get_or_insert(patience);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        match vol.state.disk {
            DiskState::Diskless if vol.disk.is_none() && !vol.closing => return self.command_done(id, Ok(())),
            // It hung only when it was about to be closed.
            DiskState::Failed if force && vol.stuck == 0 && now >= until && vol.disk.is_some() => {
                self.give_up_operations(v);
                // Where nothing is under way a helper is waited for.
                let stuck = self.volumes.get(&v).is_some_and(|vol| vol.stuck > 0);
                return if stuck { self.command_done(id, Ok(())) } else { self.wait(pending, Wait::Change) };
            }
            // It is gone for everybody; the device itself may hang for long.
            DiskState::Diskless | DiskState::Failed if force && vol.stuck > 0 && now >= until => {
                return self.command_done(id, Ok(()));
            }
            DiskState::Diskless | DiskState::Failed if !first => return self.wait(pending, Wait::Change),
            _ => {}
        }
        if force {
            if vol.state.disk > DiskState::Diskless {
                self.force_off(v, None);
            }
            self.retry_commands(until);
            return self.wait(pending, Wait::Change);
        }
        if vol.state.conn == ConnState::Ahead {
            // The peer lacks what was written last.
            return self.command_done(id, Err(CommandError::State(StateResult::NoUpToDateDisk)));
        }
        match self.attempt(id, v, &StateChange::NONE.disk(DiskState::Failed), answer) {
            Attempt::Asked => self.wait(pending, Wait::Answer),
            Attempt::Done(_) | Attempt::Refused(StateResult::InTransientState) => self.wait(pending, Wait::Change),
            Attempt::Refused(code) => self.command_done(id, Err(CommandError::State(code))),
        }
    }

    /// The peer asks for a change of one volume.
    pub(crate) fn on_state_request(&mut self, v: VolumeNr, mask: StateWord, val: StateWord) {
        if self.conn.resolve_conflicts && self.conn.question.is_some() {
            return self.send_meta(v, Packet::StateChgReply(StateResult::ConcurrentStChg.code()));
        }
        let asked = StateChange::from_words(mask, val).filter(|_| is_acceptable_peer_request(mask, val));
        let Some(change) = asked.map(|c| c.mirror()) else {
            return self.send_meta(v, Packet::StateChgReply(StateResult::NotSupported.code()));
        };
        if change.conn == Some(ConnState::TearDown) {
            return self.on_disconnect_request(&change, false, v);
        }
        let code = if change.pdsk == Some(DiskState::Failed) && self.state(v).conn == ConnState::Behind {
            // This disk would pass for good, and lacks what the peer has.
            StateResult::NoUpToDateDisk
        } else {
            match self.change(v, &change, ChangeMode::Soft) {
                Ok(code) | Err(code) => code,
            }
        };
        self.send_meta(v, Packet::StateChgReply(code.code()));
    }
}
