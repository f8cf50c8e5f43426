//! One resource's loop: every source of events ends in [`Core::event`], every batch of them in [`Core::batch_end`].
//!
//! Owns the engine, the ring, the devices, the link, the sessions, the timers; everything in one thread. Takes in events of
//! the link's tasks, the sessions, the ring, the timers and the operator. Invariants: the engine is only ever called
//! here, never from inside itself (an event that an action causes is queued and handled next); actions are carried out
//! in the engine's order at once, but nothing reaches the kernel before the end of the batch; after a panic the engine
//! is never called again.
//!
//! Hot path: all of it. At queue depth 1 a write costs one receive, one send to the peer, one `io_uring_enter`, and when the
//! acknowledgement and the completion are there one send to the client; no task is spawned and none is woken but the
//! one that waits for the socket or the ring.

mod link_sink;
mod memory;
mod sessions;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;
use tokio::sync::{Notify, oneshot};

pub use self::link_sink::LinkSink;
use self::sessions::OpenSession;
use super::buffers::Payloads;
use super::client::{Split, Waiter, complete};
use super::keeper::{Job, Keeper};
use super::timers::Timers;
use super::trace::Trace;
use super::view::View;
use super::volume::{Devices, result_of};
use crate::control::ErrorReply;
use crate::disk::last_known::LastKnownFile;
use crate::disk::{Completion, Ring};
use crate::engine::Engine;
use crate::engine::action::{Action, CommandError, Level, LinkAction, Notice};
use crate::engine::event::{
    ClientRequest, Command, CommandId, DiskFailure, Event, HandlerRun, LinkEvent, LinkNr, OpId, RequestId, Socket,
    Timer,
};
use crate::engine::handler::Handler;
use crate::engine::options::DiskOptions;
use crate::engine::status::ResourceStatus;
use crate::link::Link;
use crate::units::{Timestamp, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::state::{Role, StateResult};

/// Rounds of one batch: what the kernel finished while it was being handed work is taken along, but others get their turn.
const ROUNDS_MAX: usize = 8;

/// Told about every change, with what there is to see after it; in the shard's thread, must not block.
pub type Watcher = Box<dyn Fn(ResourceStatus)>;

/// Starts a helper program, whose end comes as an event; must not block.
pub type HelperStarter = Box<dyn Fn(HandlerRun, Handler, Option<VolumeNr>)>;

/// The link of a resource.
pub type ResourceLink = Link<LinkSink, Payloads>;

/// Everything of one resource at run time.
pub struct Core {
    /// Name of the resource.
    pub name: String,
    engine: RefCell<Engine>,
    started: Instant,
    busy: Cell<bool>,
    queued: RefCell<VecDeque<Event>>,
    actions: RefCell<Vec<Action>>,
    completions: RefCell<Vec<Completion>>,
    in_batch: Cell<bool>,
    /// Disk I/O.
    pub ring: Ring,
    /// Memory of clients' writes.
    pub client_memory: Payloads,
    /// Memory of what the peer sends.
    pub link_memory: Payloads,
    link: RefCell<Option<Rc<ResourceLink>>>,
    link_nr: Cell<LinkNr>,
    devices: RefCell<BTreeMap<VolumeNr, Devices>>,
    last_known: RefCell<BTreeMap<VolumeNr, LastKnownFile>>,
    clients: RefCell<Slab<Waiter>>,
    /// Requests that were cut up.
    pub splits: RefCell<Slab<Split>>,
    commands: RefCell<BTreeMap<CommandId, oneshot::Sender<Result<(), CommandError>>>>,
    next_command: Cell<u64>,
    timers: RefCell<Timers>,
    /// A timer was set that is due before the sleep ends.
    pub timer_set: Notify,
    /// The loop's own task has something to do.
    pub kick: Notify,
    continue_due: Cell<bool>,
    data_unwanted: Cell<bool>,
    wanted: Notify,
    sessions: RefCell<Slab<OpenSession>>,
    /// A session ended.
    pub session_ended: Notify,
    changed: Cell<bool>,
    view: Arc<View>,
    keeper: Option<Keeper>,
    watcher: Watcher,
    helper: HelperStarter,
    trace: RefCell<Trace>,
    /// What was logged, for a failed test.
    #[cfg(any(test, feature = "sim"))]
    logged: RefCell<VecDeque<String>>,
}

/// What a new [`Core`] is made of.
pub struct Parts {
    /// Name of the resource.
    pub name: String,
    /// Of the engine's random numbers.
    pub seed: u64,
    /// Disk I/O.
    pub ring: Ring,
    /// Memory of clients' writes.
    pub client_memory: Payloads,
    /// Memory of what the peer sends.
    pub link_memory: Payloads,
    /// For other threads.
    pub view: Arc<View>,
    /// Keeps what must survive a restart.
    pub keeper: Option<Keeper>,
    /// Told about changes.
    pub watcher: Watcher,
    /// Starts helper programs.
    pub helper: HelperStarter,
}

impl Core {
    /// A resource without volumes.
    pub fn new(parts: Parts) -> Rc<Self> {
        let Parts { name, seed, ring, client_memory, link_memory, view, keeper, watcher, helper } = parts;
        Rc::new(Self {
            engine: RefCell::new(Engine::new(&name, seed)),
            name,
            started: Instant::now(),
            busy: Cell::new(false),
            queued: RefCell::default(),
            actions: RefCell::default(),
            completions: RefCell::default(),
            in_batch: Cell::new(false),
            ring,
            client_memory,
            link_memory,
            link: RefCell::default(),
            link_nr: Cell::default(),
            devices: RefCell::default(),
            last_known: RefCell::default(),
            clients: RefCell::default(),
            splits: RefCell::default(),
            commands: RefCell::default(),
            next_command: Cell::new(1),
            timers: RefCell::default(),
            timer_set: Notify::new(),
            kick: Notify::new(),
            continue_due: Cell::new(false),
            data_unwanted: Cell::new(false),
            wanted: Notify::new(),
            sessions: RefCell::default(),
            session_ended: Notify::new(),
            changed: Cell::new(false),
            view,
            keeper,
            watcher,
            helper,
            trace: RefCell::default(),
            #[cfg(any(test, feature = "sim"))]
            logged: RefCell::default(),
        })
    }

    /// The time on the shard's clock.
    pub fn now(&self) -> Timestamp {
        Timestamp::default().after(self.started.elapsed())
    }

    /// The moment that a time on the shard's clock stands for.
    pub fn instant(&self, at: Timestamp) -> Instant {
        self.started + at.since(Timestamp::default())
    }

    /// Something happened. From inside an action it is handled when the actions before it are done.
    pub fn event(&self, event: Event) {
        if self.busy.replace(true) {
            return self.queued.borrow_mut().push_back(event);
        }
        self.step(event);
        loop {
            let next = self.queued.borrow_mut().pop_front();
            let Some(event) = next else { break };
            self.step(event);
        }
        self.busy.set(false);
    }

    fn step(&self, event: Event) {
        let now = self.now();
        self.trace.borrow_mut().record(now, &event);
        let mut actions = self.actions.take();
        self.engine.borrow_mut().handle(now, event, &mut actions);
        for action in actions.drain(..) {
            self.carry_out(action);
        }
        self.actions.replace(actions);
    }

    /// All that was ready has been handed over: put-off decisions are made, and disks and peer get their work with one
    /// system call each. What is finished by then is taken along.
    pub fn batch_end(&self) {
        if self.in_batch.replace(true) {
            return;
        }
        let mut rounds = 0;
        loop {
            self.event(Event::BatchEnd);
            // The peer first: its answer takes longest.
            let sent = self.flush_link();
            let finished = self.take_completions();
            rounds += 1;
            if !sent && !finished {
                break;
            }
            if rounds == ROUNDS_MAX {
                self.kick.notify_one();
                break;
            }
        }
        self.resume_data();
        if self.changed.replace(false) {
            (self.watcher)(self.status());
        }
        self.in_batch.set(false);
    }

    fn flush_link(&self) -> bool {
        let Some(link) = self.link.borrow().clone() else { return false };
        let flushed = link.flush();
        #[cfg(any(test, feature = "sim"))]
        let flushed = if self.ring.mistake() == Some(crate::disk::fault::Mistake::SentEarly) {
            link.claim_all_sent(flushed)
        } else {
            flushed
        };
        // Nothing depends on how much of the meta socket's queue is gone.
        let Some(packets) = flushed.data else { return false };
        self.event(Event::Sent { link: flushed.link, socket: Socket::Data, packets });
        true
    }

    fn take_completions(&self) -> bool {
        let mut completions = self.completions.take();
        self.ring.drain(&mut completions);
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            let op = OpId(completion.token);
            self.event(Event::Disk { op, result: result_of(completion) });
        }
        self.completions.replace(completions);
        any
    }

    fn carry_out(&self, action: Action) {
        match action {
            Action::Disk { op, volume, io } => match self.devices.borrow().get(&volume) {
                Some(devices) => {
                    let raw = devices.translate(io);
                    #[cfg(any(test, feature = "sim"))]
                    let raw = crate::disk::fault::mistaken(raw, self.ring.mistake());
                    self.ring.submit(raw, op.0);
                }
                None => {
                    let text = format!("volume {volume} has no disk");
                    let result = Err(DiskFailure { text, unsupported: false });
                    self.queued.borrow_mut().push_back(Event::Disk { op, result });
                }
            },
            Action::CloseDisk { volume } => {
                if let Some(devices) = self.devices.borrow_mut().remove(&volume) {
                    devices.close();
                }
                self.view.update(volume, |view| view.discard = false);
                self.queued.borrow_mut().push_back(Event::DiskClosed { volume });
            }
            Action::Send { socket, volume, packet } => self.send(socket, volume, packet),
            Action::Link(action) => self.link_action(&action),
            Action::Complete { id, result } => {
                let waiter = usize::try_from(id.0).ok().and_then(|key| self.clients.borrow_mut().try_remove(key));
                if let Some(waiter) = waiter {
                    complete(self, waiter, result);
                }
            }
            Action::CommandDone { id, result } => {
                if let Some(reply) = self.commands.borrow_mut().remove(&id) {
                    // Whoever asked may be gone.
                    let _ = reply.send(result);
                }
            }
            Action::EndSessions { volume, reason } => self.close_sessions(volume, &reason),
            Action::Undo { volume, order } => self.undo_order(volume, order),
            Action::RunHandler { run, handler, volume } => (self.helper)(run, handler, volume),
            Action::SetTimer { timer, at } => {
                if self.timers.borrow_mut().set(timer, at) {
                    self.timer_set.notify_one();
                }
            }
            Action::CancelTimer(timer) => self.timers.borrow_mut().cancel(timer),
            Action::Notice(notice) => self.notice(&notice),
            Action::Continue => {
                self.continue_due.set(true);
                self.kick.notify_one();
            }
        }
    }

    fn send(&self, socket: Socket, volume: VolumeNr, packet: Packet) {
        let Some(link) = self.link.borrow().clone() else { return };
        let name = packet.kind().name();
        if let Err(error) = link.send(socket, volume, packet) {
            // The engine and the link disagree about what was negotiated. Without the packet the peer waits for ever.
            tracing::error!(resource = self.name, %volume, "cannot send {name}: {error}; dropping the connection");
            let lost = LinkEvent::Lost {
                nr: self.link_nr.get(),
                socket,
                protocol_error: false,
                fatal: false,
                reason: format!("cannot send {name}: {error}"),
            };
            self.queued.borrow_mut().push_back(Event::Link(lost));
        }
    }

    fn link_action(&self, action: &LinkAction) {
        if let Some(link) = self.link.borrow().clone() {
            link.action(action);
        }
    }

    fn notice(&self, notice: &Notice) {
        let resource = self.name.as_str();
        #[cfg(any(test, feature = "sim"))]
        self.remember(notice);
        match notice {
            // The engine has put a line into the log, too.
            Notice::State { volume, old, new } => {
                self.note_parting(*volume, old, new);
                self.view.update(*volume, |view| view.state = *new);
                // The engine is already where its last change led; watchers see each change.
                let mut status = self.status();
                if let Some(seen) = status.volumes.iter_mut().find(|seen| seen.nr == *volume) {
                    seen.state = *new;
                }
                (self.watcher)(status);
            }
            Notice::Size { volume, size } => {
                self.changed.set(true);
                self.view.update(*volume, |view| view.size = *size);
            }
            Notice::SplitBrain(divergence) => self.tell_keeper(|| Job::SplitBrain(divergence.clone())),
            Notice::Generation { volume, current } => self.tell_keeper(|| Job::Generation(*volume, *current)),
            Notice::MetaMoved { volume, device } => {
                if let Some(known) = self.last_known.borrow().get(volume).cloned() {
                    let bytes = device.bytes();
                    // Not awaited: until it is written the metadata are found without it.
                    drop(tokio::task::spawn_blocking(move || known.write(bytes)));
                }
            }
            Notice::Log { level, volume, text, fact: _ } => {
                let volume = volume.map(|v| v.0);
                match level {
                    Level::Info => tracing::info!(resource, volume, "{text}"),
                    Level::Warn => tracing::warn!(resource, volume, "{text}"),
                    Level::Error => tracing::error!(resource, volume, "{text}"),
                }
            }
        }
    }

    // --- clients ---

    /// A client's request for the engine.
    pub fn client_request(&self, volume: VolumeNr, request: ClientRequest, waiter: Waiter) {
        let key = self.clients.borrow_mut().insert(waiter);
        // A slab cannot hold more than memory can.
        let id = RequestId(u64::try_from(key).unwrap_or(u64::MAX));
        self.event(Event::Client { id, volume, request });
    }

    // --- disks and link ---

    /// Devices for an attach that is about to be asked of the engine; false when the volume has some.
    pub fn install_devices(&self, volume: VolumeNr, devices: Devices, known: Option<LastKnownFile>) -> bool {
        let mut all = self.devices.borrow_mut();
        if all.contains_key(&volume) {
            return false;
        }
        let discard = devices.data.geometry().discard.is_some();
        all.insert(volume, devices);
        self.view.update(volume, |view| view.discard = discard);
        match known {
            Some(known) => self.last_known.borrow_mut().insert(volume, known),
            None => self.last_known.borrow_mut().remove(&volume),
        };
        true
    }

    /// Looks at the sizes of a volume's devices again and tells the engine.
    pub fn look_at_sizes(&self, volume: VolumeNr) {
        let sizes = self.devices.borrow().get(&volume).map(Devices::sizes_now);
        match sizes {
            Some(Ok(sizes)) => self.event(Event::DiskSize { volume, sizes }),
            Some(Err(error)) => tracing::error!(resource = self.name, %volume, "{error}"),
            None => {}
        }
    }

    /// Whether the volume has open devices.
    pub fn has_devices(&self, volume: VolumeNr) -> bool {
        self.devices.borrow().contains_key(&volume)
    }

    /// The link, once there is one.
    pub fn link(&self) -> Option<Rc<ResourceLink>> {
        self.link.borrow().clone()
    }

    /// The first configuration of the connection.
    pub fn set_link(&self, link: Rc<ResourceLink>) {
        *self.link.borrow_mut() = Some(link);
    }

    /// Takes the link out, for the end.
    pub fn take_link(&self) -> Option<Rc<ResourceLink>> {
        self.link.borrow_mut().take()
    }

    /// The role of a volume.
    pub fn volume_role(&self, volume: VolumeNr) -> Option<Role> {
        self.view.volume(volume).map(|view| view.state.role)
    }

    // --- the operator ---

    /// Creates a volume.
    pub async fn new_volume(&self, volume: VolumeNr, options: DiskOptions) -> Result<(), ErrorReply> {
        self.command(volume, Command::NewVolume(options)).await?;
        self.view.insert(volume);
        self.see_all();
        Ok(())
    }

    /// Removes a volume.
    pub async fn del_volume(&self, volume: VolumeNr) -> Result<(), ErrorReply> {
        self.command(volume, Command::DelVolume).await?;
        self.view.remove(volume);
        self.see_all();
        Ok(())
    }

    /// Brings the view and the watchers up to date after a change that the engine has no notice for.
    fn see_all(&self) {
        let status = self.status();
        for seen in &status.volumes {
            self.view.update(seen.nr, |view| (view.state, view.size) = (seen.state, seen.size));
        }
        (self.watcher)(status);
    }

    /// Hands a command to the engine and waits for its end.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn command(&self, volume: VolumeNr, command: Command) -> Result<(), ErrorReply> {
        let (reply, done) = oneshot::channel();
        let id = CommandId(self.next_command.get());
        self.next_command.set(id.0 + 1);
        self.commands.borrow_mut().insert(id, reply);
        self.event(Event::Command { id, volume, command });
        self.batch_end();
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.refusal(volume, error)),
            Err(_) => Err(ErrorReply::usage("the resource ended before the command did")),
        }
    }

    fn refusal(&self, volume: VolumeNr, error: CommandError) -> ErrorReply {
        let in_use = matches!(error, CommandError::State(StateResult::DeviceInUse));
        let reply = ErrorReply::from(error);
        let names = self.session_names(volume);
        if in_use && !names.is_empty() {
            return reply.detail(format!("opened over NBD by {}", names.join(", ")));
        }
        reply
    }

    /// What there is to see.
    pub fn status(&self) -> ResourceStatus {
        self.engine.borrow().status(self.now())
    }

    // --- the loop's own tasks ---

    /// The next slice of a long job, if one is due.
    pub fn continue_slice(&self) {
        if self.continue_due.replace(false) {
            self.event(Event::Continue);
        }
        self.batch_end();
    }

    /// The moment to wake up for the earliest timer.
    pub fn arm_timers(&self) -> Option<Timestamp> {
        self.timers.borrow_mut().arm()
    }

    /// Fires the timers that are due.
    pub fn fire_timers(&self) {
        let now = self.now();
        let mut any = false;
        loop {
            let due: Option<Timer> = self.timers.borrow_mut().pop_due(now);
            let Some(timer) = due else { break };
            any = true;
            self.event(Event::Timer(timer));
        }
        if any {
            self.batch_end();
        }
    }

    /// The last lines of the log and the last events, for a failed test.
    #[cfg(any(test, feature = "sim"))]
    pub fn story(&self) -> String {
        let lines: Vec<String> = self.logged.borrow().iter().cloned().collect();
        format!("{}\n  last events: {}", lines.join("\n"), self.last_events())
    }

    /// The generation that the clients of a volume have seen.
    #[cfg(any(test, feature = "sim"))]
    pub fn exposed(&self, volume: VolumeNr) -> crate::units::GenId {
        self.engine.borrow().exposed(volume)
    }

    #[cfg(any(test, feature = "sim"))]
    fn remember(&self, notice: &Notice) {
        if let Notice::Log { text, .. } = notice {
            let mut logged = self.logged.borrow_mut();
            if logged.len() == 100 {
                logged.pop_front();
            }
            logged.push_back(format!("  {:>6} ms {text}", self.started.elapsed().as_millis()));
        }
    }

    /// The last events, for the log.
    pub fn last_events(&self) -> String {
        self.trace.borrow().to_string()
    }
}
