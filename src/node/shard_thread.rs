//! The thread of a resource: its runtime, its tasks, its messages from the control side, and its end.
//!
//! Gives out: [`Shard`], the control side's handle. Invariants: the thread ends when told to, or when anything in it panics;
//! then the link is closed, devices are given back as after a crash, and [`ShardEnd`] says so.

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

use super::attach::{AttachSpec, Opened, open};
use super::buffers::{CLIENT_BYTES, LINK_BYTES, Payloads, READ_BYTES};
use super::client::Client;
use super::keeper::{Keeper, Recollection, StateDir};
use super::shard::{Core, LinkSink, Parts};
use super::supervisor::Poison;
use super::view::View;
use crate::control::ErrorReply;
use crate::disk::{Pool, Ring, RingChoice, RingOptions};
use crate::engine::event::{Command, Event, HandlerRun};
use crate::engine::handler::Handler;
use crate::engine::options::{DiskOptions, NetOptions, ResizeOptions};
use crate::engine::status::ResourceStatus;
use crate::engine::undo::UndoAnswer;
use crate::frontend::nbd::session;
use crate::frontend::nbd::stream::Connection;
use crate::link::{Link, LinkConfig, check_local_address};
use crate::units::VolumeNr;
use crate::wire::state::Role;

/// How long a shard that was told to end waits for its sessions.
const SESSIONS_END: std::time::Duration = std::time::Duration::from_secs(2);

/// A refusal.
pub type CommandFailure = ErrorReply;

type Answer<T = ()> = oneshot::Sender<Result<T, ErrorReply>>;

/// What a new shard needs.
#[expect(missing_debug_implementations, reason = "holds a function")]
pub struct ShardOptions {
    /// Name of the resource.
    pub name: String,
    /// Which ring to use.
    pub ring: RingChoice,
    /// Where what must survive a restart is kept.
    pub state: Option<StateDir>,
    /// Told about every change with what there is to see after it, from the shard's thread; must not block.
    pub changed: Box<dyn Fn(ResourceStatus) + Send>,
    /// Runs a helper program, and calls the function with its exit code; called from the shard's thread, must not block.
    pub helper: HelperCaller,
}

/// Runs the helper program of an event, for a volume or the connection.
pub type HelperCaller = Box<dyn Fn(Handler, Option<VolumeNr>, HelperEnd) + Send>;

/// Takes the exit code of a helper program, in any thread.
pub type HelperEnd = Box<dyn FnOnce(u8) + Send>;

/// How a shard ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardEnd {
    /// As it was told.
    Stopped,
    /// By an internal error.
    Failed(String),
}

enum Message {
    NewVolume {
        volume: VolumeNr,
        options: DiskOptions,
        answer: Answer,
    },
    DelVolume {
        volume: VolumeNr,
        answer: Answer,
    },
    Command {
        volume: VolumeNr,
        command: Command,
        answer: Answer,
    },
    Attach {
        spec: Box<AttachSpec>,
        answer: Answer,
    },
    Resize {
        volume: VolumeNr,
        options: ResizeOptions,
        answer: Answer,
    },
    Connect {
        link: Box<LinkConfig>,
        options: Box<NetOptions>,
        answer: Answer,
    },
    Configure {
        link: Box<LinkConfig>,
        options: Box<NetOptions>,
        answer: Answer,
    },
    EndSessions {
        volume: VolumeNr,
        reason: String,
        answer: Answer,
    },
    HelperDone {
        run: HandlerRun,
        code: u8,
    },
    Status {
        answer: oneshot::Sender<ResourceStatus>,
    },
    Recollection {
        answer: oneshot::Sender<Recollection>,
    },
    OutOfSync {
        volume: VolumeNr,
        most: usize,
        answer: oneshot::Sender<(Vec<Range<u64>>, u64)>,
    },
    Session {
        volume: VolumeNr,
        connection: Connection,
    },
    Stop,
    #[cfg(any(test, feature = "sim"))]
    Crash,
    #[cfg(any(test, feature = "sim"))]
    Mistake(crate::disk::fault::Mistake),
    #[cfg(any(test, feature = "sim"))]
    Story {
        answer: oneshot::Sender<String>,
    },
    #[cfg(any(test, feature = "sim"))]
    Exposed {
        volume: VolumeNr,
        answer: oneshot::Sender<crate::units::GenId>,
    },
}

/// The control side's handle to a resource's thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shard {
    messages: mpsc::UnboundedSender<Message>,
    view: Arc<View>,
}

fn gone() -> ErrorReply {
    ErrorReply::usage("the resource has ended").detail("see the daemon's log")
}

impl Shard {
    /// Starts the thread. The receiver hears of its end.
    ///
    /// # Errors
    /// The thread, its runtime, its ring or its memory cannot be made.
    pub async fn start(options: ShardOptions) -> Result<(Self, oneshot::Receiver<ShardEnd>), ErrorReply> {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let view = Arc::new(View::default());
        let shard = Self { messages, view: Arc::clone(&view) };
        let own = shard.messages.downgrade();
        let name = options.name.clone();
        thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let run = AssertUnwindSafe(|| run(options, view, own, inbox, ready));
                let end = catch_unwind(run).unwrap_or_else(|_| ShardEnd::Failed("see the log".to_owned()));
                // The daemon may be gone.
                let _ = ended.send(end);
            })
            .map_err(|error| ErrorReply::io(format!("cannot start a thread for {name}"), &error))?;
        match is_ready.await {
            Ok(Ok(())) => Ok((shard, end)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(gone()),
        }
    }

    /// Roles, states and sizes without asking the shard.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    async fn ask<T>(&self, message: impl FnOnce(Answer<T>) -> Message) -> Result<T, ErrorReply> {
        let (answer, wait) = oneshot::channel();
        self.messages.send(message(answer)).map_err(|_| gone())?;
        wait.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Creates a volume.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn new_volume(&self, volume: VolumeNr, options: DiskOptions) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::NewVolume { volume, options, answer }).await
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn del_volume(&self, volume: VolumeNr) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::DelVolume { volume, answer }).await
    }

    /// Any other command of the engine.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn command(&self, volume: VolumeNr, command: Command) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::Command { volume, command, answer }).await
    }

    /// Opens and attaches a disk.
    ///
    /// # Errors
    /// What is wrong with the devices, or the engine's refusal.
    pub async fn attach(&self, spec: AttachSpec) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::Attach { spec: Box::new(spec), answer }).await
    }

    /// Takes over the sizes that the devices have now.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn resize(&self, volume: VolumeNr, options: ResizeOptions) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::Resize { volume, options, answer }).await
    }

    /// Configures the connection and starts connecting.
    ///
    /// # Errors
    /// 102 when the local address cannot be listened on, or the engine's refusal.
    pub async fn connect(&self, link: LinkConfig, options: NetOptions) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::Connect { link: Box::new(link), options: Box::new(options), answer }).await
    }

    /// Changes options of the connection.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn configure(&self, link: LinkConfig, options: NetOptions) -> Result<(), ErrorReply> {
        self.ask(|answer| Message::Configure { link: Box::new(link), options: Box::new(options), answer }).await
    }

    /// Ends all sessions of a volume and waits until they are gone.
    ///
    /// # Errors
    /// The shard is gone.
    pub async fn end_sessions(&self, volume: VolumeNr, reason: &str) -> Result<(), ErrorReply> {
        let reason = reason.to_owned();
        self.ask(|answer| Message::EndSessions { volume, reason, answer }).await
    }

    /// What there is to see; `None` when the shard is gone.
    pub async fn status(&self) -> Option<ResourceStatus> {
        let (answer, wait) = oneshot::channel();
        self.messages.send(Message::Status { answer }).ok()?;
        wait.await.ok()
    }

    /// What is remembered of split brains; `None` when the shard is gone.
    pub async fn recollection(&self) -> Option<Recollection> {
        let (answer, wait) = oneshot::channel();
        self.messages.send(Message::Recollection { answer }).ok()?;
        wait.await.ok()
    }

    /// Runs of blocks that are out of sync, at most `most`, and how many there are; `None` when the shard is gone.
    pub async fn out_of_sync_runs(&self, volume: VolumeNr, most: usize) -> Option<(Vec<Range<u64>>, u64)> {
        let (answer, wait) = oneshot::channel();
        self.messages.send(Message::OutOfSync { volume, most, answer }).ok()?;
        wait.await.ok()
    }

    /// A negotiated NBD connection.
    pub fn serve(&self, volume: VolumeNr, connection: Connection) {
        // Without a shard the connection is closed.
        let _ = self.messages.send(Message::Session { volume, connection });
    }

    /// Ends the thread. The resource should be down: what is open is closed as in a crash.
    pub fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
    }

    /// Ends the thread as if the process were killed: nothing is told to anybody, nothing is waited for.
    #[cfg(any(test, feature = "sim"))]
    pub fn crash(&self) {
        let _ = self.messages.send(Message::Crash);
    }

    /// Makes the drivers commit this mistake from now on.
    #[cfg(any(test, feature = "sim"))]
    pub fn make_mistake(&self, mistake: crate::disk::fault::Mistake) {
        let _ = self.messages.send(Message::Mistake(mistake));
    }

    /// The last log lines and events, for a failed test.
    #[cfg(any(test, feature = "sim"))]
    pub async fn story(&self) -> Option<String> {
        let (answer, wait) = oneshot::channel();
        self.messages.send(Message::Story { answer }).ok()?;
        wait.await.ok()
    }

    /// The generation that the clients of a volume have seen.
    #[cfg(any(test, feature = "sim"))]
    pub async fn exposed(&self, volume: VolumeNr) -> Option<crate::units::GenId> {
        let (answer, wait) = oneshot::channel();
        self.messages.send(Message::Exposed { volume, answer }).ok()?;
        wait.await.ok()
    }
}

fn run(
    options: ShardOptions,
    view: Arc<View>,
    own: mpsc::WeakUnboundedSender<Message>,
    inbox: mpsc::UnboundedReceiver<Message>,
    ready: oneshot::Sender<Result<(), ErrorReply>>,
) -> ShardEnd {
    // Needs a capability; without it only the protection against a loop through our own dirty pages is missing.
    let _ = rustix::process::configure_io_flusher_behavior(true);
    let name = options.name.clone();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(ErrorReply::io(format!("cannot start a runtime for {name}"), &error)));
            return ShardEnd::Stopped;
        }
    };
    let poison = Poison::of_this_thread();
    let local = LocalSet::new();
    let end = local.block_on(&runtime, async {
        let (core, undo_answers) = match build(options, view, own) {
            Ok(built) => built,
            Err(error) => {
                let _ = ready.send(Err(error));
                return ShardEnd::Stopped;
            }
        };
        let _ = ready.send(Ok(()));
        spawn_local(serve_ring(Rc::clone(&core)));
        spawn_local(serve_timers(Rc::clone(&core)));
        spawn_local(serve_kicks(Rc::clone(&core)));
        spawn_local(serve_undo(Rc::clone(&core), undo_answers));
        let end = tokio::select! {
            biased;
            text = poison.panicked() => {
                let events = core.last_events();
                tracing::error!(resource = core.name, "the resource ends after an internal error; last events: {events}");
                ShardEnd::Failed(text)
            }
            () = serve_messages(Rc::clone(&core), inbox) => ShardEnd::Stopped,
        };
        // The link delivers to the core that owns it: neither would go before the other.
        drop(core.take_link());
        end
    });
    // Drops the tasks and with them sockets, devices and at last the ring, which waits for what is in flight.
    drop(local);
    drop(runtime);
    end
}

type UndoAnswers = mpsc::UnboundedReceiver<(VolumeNr, UndoAnswer)>;

fn build(
    options: ShardOptions,
    view: Arc<View>,
    own: mpsc::WeakUnboundedSender<Message>,
) -> Result<(Rc<Core>, UndoAnswers), ErrorReply> {
    let pool =
        |bytes| Pool::new(bytes).map_err(|error| ErrorReply::io(format!("no memory for {}", options.name), &error));
    let (clients, link, reads) = (pool(CLIENT_BYTES)?, pool(LINK_BYTES)?, pool(READ_BYTES)?);
    let ring_options = RingOptions { choice: options.ring, ..RingOptions::default() };
    let ring = Ring::new(&ring_options, reads).map_err(|error| ErrorReply::io(error.to_string(), error.io_error()))?;
    tracing::info!(resource = options.name, "disk I/O: {:?} ({})", ring.kind(), ring.reason());
    let seed = getrandom::u64().map_err(|error| ErrorReply::usage(format!("no random numbers: {error}")))?;
    let (answers, undo_answers) = mpsc::unbounded_channel();
    let start = |dir: &StateDir| Keeper::start(dir, &options.name, Arc::clone(&view), answers);
    let keeper = match options.state.as_ref().map(start).transpose() {
        Ok(keeper) => keeper,
        Err(error) => return Err(ErrorReply::io(format!("cannot start a thread for {}", options.name), &error)),
    };
    let call = options.helper;
    let helper = move |run: HandlerRun, handler: Handler, volume: Option<VolumeNr>| {
        let own = own.clone();
        // Whoever waits for it may be gone by then.
        let end = move |code| {
            if let Some(own) = own.upgrade() {
                let _ = own.send(Message::HelperDone { run, code });
            }
        };
        call(handler, volume, Box::new(end));
    };
    let core = Core::new(Parts {
        name: options.name,
        seed,
        ring,
        client_memory: Payloads(clients),
        link_memory: Payloads(link),
        view,
        keeper,
        watcher: options.changed,
        helper: Box::new(helper),
    });
    Ok((core, undo_answers))
}

async fn serve_ring(core: Rc<Core>) {
    // An error means that the runtime is going away.
    while core.ring.wait().await.is_ok() {
        core.batch_end();
    }
}

async fn serve_timers(core: Rc<Core>) {
    let mut sleep = pin!(tokio::time::sleep(std::time::Duration::ZERO));
    loop {
        let at = core.arm_timers();
        if let Some(at) = at {
            sleep.as_mut().reset(core.instant(at).into());
        }
        tokio::select! {
            () = sleep.as_mut(), if at.is_some() => core.fire_timers(),
            () = core.timer_set.notified() => {}
        }
    }
}

async fn serve_undo(core: Rc<Core>, mut answers: UndoAnswers) {
    while let Some((volume, answer)) = answers.recv().await {
        core.event(Event::Undo { volume, answer });
        while let Ok((volume, answer)) = answers.try_recv() {
            core.event(Event::Undo { volume, answer });
        }
        core.batch_end();
    }
}

async fn serve_kicks(core: Rc<Core>) {
    loop {
        core.kick.notified().await;
        // Between two slices the sockets get their turn.
        tokio::task::yield_now().await;
        core.continue_slice();
    }
}

async fn serve_messages(core: Rc<Core>, mut inbox: mpsc::UnboundedReceiver<Message>) {
    while let Some(message) = inbox.recv().await {
        match message {
            Message::NewVolume { volume, options, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move { core.new_volume(volume, options).await });
            }
            Message::DelVolume { volume, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move { core.del_volume(volume).await });
            }
            Message::Command { volume, command, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move { core.command(volume, command).await });
            }
            Message::Attach { spec, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move { attach(&core, *spec).await });
            }
            Message::Resize { volume, options, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move {
                    core.look_at_sizes(volume);
                    core.command(volume, Command::Resize(options)).await
                });
            }
            Message::Connect { link, options, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move { connect(&core, *link, options).await });
            }
            Message::Configure { link, options, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move {
                    core.command(VolumeNr(0), Command::NetOptions(options)).await?;
                    if let Some(old) = core.link() {
                        old.configure(*link);
                    }
                    Ok(())
                });
            }
            Message::EndSessions { volume, reason, answer } => {
                let core = Rc::clone(&core);
                reply(answer, async move {
                    core.close_sessions(volume, &reason);
                    while !core.session_names(volume).is_empty() {
                        core.session_ended.notified().await;
                    }
                    Ok(())
                });
            }
            Message::HelperDone { run, code } => {
                core.event(Event::HandlerDone { run, code });
                core.batch_end();
            }
            Message::Status { answer } => {
                let _ = answer.send(core.status());
            }
            Message::Recollection { answer } => core.recollect(answer),
            Message::OutOfSync { volume, most, answer } => {
                let _ = answer.send(core.out_of_sync_runs(volume, most));
            }
            Message::Session { volume, connection } => serve_session(&core, volume, connection),
            Message::Stop => break,
            #[cfg(any(test, feature = "sim"))]
            Message::Crash => return,
            #[cfg(any(test, feature = "sim"))]
            Message::Mistake(mistake) => core.ring.make_mistake(Some(mistake)),
            #[cfg(any(test, feature = "sim"))]
            Message::Story { answer } => {
                let _ = answer.send(core.story());
            }
            #[cfg(any(test, feature = "sim"))]
            Message::Exposed { volume, answer } => {
                let _ = answer.send(core.exposed(volume));
            }
        }
    }
    let ended = async {
        while core.end_all_sessions("the resource is going down") {
            core.session_ended.notified().await;
        }
    };
    // Sessions end at once; the limit is for the case that they do not.
    let _ = tokio::time::timeout(SESSIONS_END, ended).await;
}

/// Runs one command beside the others.
fn reply<T: 'static>(answer: Answer<T>, work: impl Future<Output = Result<T, ErrorReply>> + 'static) {
    spawn_local(async move {
        let result = work.await;
        // Whoever asked may be gone.
        let _ = answer.send(result);
    });
}

async fn attach(core: &Rc<Core>, spec: AttachSpec) -> Result<(), ErrorReply> {
    let volume = spec.volume;
    if core.has_devices(volume) {
        return Err(ErrorReply::code(124));
    }
    let (options, owner) = (spec.options.clone(), spec.owner.clone());
    let opened = tokio::task::spawn_blocking(move || open(&spec)).await;
    let Opened { devices, mut disk, recovery, last_known } =
        opened.map_err(|_| ErrorReply::usage("attaching failed, see the log"))??;
    for line in recovery.lines() {
        tracing::info!(resource = core.name, %volume, "{owner}: {line}");
    }
    disk.undo = core.resume_undo(volume, disk.superblock.current).await;
    if !core.install_devices(volume, devices, last_known) {
        return Err(ErrorReply::code(124));
    }
    core.command(volume, Command::Attach(Box::new(disk), options)).await
}

async fn connect(core: &Rc<Core>, config: LinkConfig, options: Box<NetOptions>) -> Result<(), ErrorReply> {
    check_local_address(&config).map_err(|error| match error.code() {
        Some(code) => ErrorReply::code(code).detail(error.to_string()),
        None => ErrorReply::usage(error.to_string()),
    })?;
    match core.link() {
        Some(link) => link.configure(config),
        None => {
            let link = Link::new(config, LinkSink(Rc::clone(core)), core.link_memory.clone());
            core.set_link(Rc::new(link));
        }
    }
    core.command(VolumeNr(0), Command::Connect(options)).await
}

fn serve_session(core: &Rc<Core>, volume: VolumeNr, connection: Connection) {
    let status = core.volume_role(volume);
    if status != Some(Role::Primary) {
        tracing::info!(resource = core.name, %volume, client = connection.peer, "NBD client sent away: not Primary any more");
        return;
    }
    let backend = Client { core: Rc::clone(core), volume };
    match session::start(connection, backend, core.client_memory.clone()) {
        Ok((handle, serve)) => {
            let key = core.session_opened(volume, handle);
            let core = Rc::clone(core);
            spawn_local(async move {
                let end = serve.await;
                core.session_closed(key, &end.to_string());
            });
        }
        Err(error) => tracing::warn!(resource = core.name, %volume, "cannot serve an NBD client: {error}"),
    }
}
