//! A daemon from start to stop: sockets, resources at start, signals.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, getrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::daemon::{Daemon, Settings};
use super::exports::Table;
use super::helper::HelperSettings;
use super::keeper::StateDir;
use super::startup::{self, StartupError, Which};
use super::supervisor::install_panic_hook;
use crate::control::server::Server as ControlServer;
use crate::disk::RingChoice;
use crate::frontend::nbd::server::{Listen, ListenError, Server as NbdServer};

/// How to run a daemon.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Directory of the sockets; made if it does not exist.
    pub run_dir: PathBuf,
    /// Path of the control socket; `None`: `control.sock` in the run directory.
    pub control_socket: Option<PathBuf>,
    /// Directory for what must survive a restart; made if it does not exist.
    pub state_dir: PathBuf,
    /// Most bytes of an undo file; 0: there are none.
    pub undo_limit: u64,
    /// Configuration file; `None`: DRBD's places.
    pub config: Option<PathBuf>,
    /// Name of this host in the configuration.
    pub hostname: String,
    /// What to bring up.
    pub up: Option<Which>,
    /// Where NBD clients come from over TCP, and who may; the unix socket is always there.
    pub nbd: Listen,
    /// Which ring the disks use.
    pub ring: RingChoice,
    /// How long a helper program may take; `None`: for ever.
    pub handler_timeout: Option<Duration>,
    /// Lock the process into memory, where that is allowed.
    pub lock_memory: bool,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory cannot be made.
    #[error("cannot make the directory {path}: {source}")]
    Directory {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error("{0}")]
    Control(io::Error),
    /// The NBD sockets cannot be made.
    #[error(transparent)]
    Nbd(#[from] ListenError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// The runtime or its signals.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

/// Runs a daemon in this thread until SIGTERM or SIGINT, then stops it cleanly.
///
/// # Errors
/// [`RunError`] when it cannot start.
pub fn run(options: RunOptions) -> Result<(), RunError> {
    install_panic_hook();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(serve(options))
}

async fn serve(options: RunOptions) -> Result<(), RunError> {
    make_dir(&options.run_dir, 0o755)?;
    // Old blocks of volumes lie there.
    make_dir(&options.state_dir, 0o700)?;
    let chosen = match &options.up {
        None => None,
        Some(which) => Some(startup::read(options.config.as_deref(), &options.hostname, which)?),
    };
    let nbd_socket = absolute(&options.run_dir).join("nbd.sock");
    let control_socket = options.control_socket.unwrap_or_else(|| options.run_dir.join("control.sock"));
    let daemon = Daemon::new(Settings {
        nbd_socket: nbd_socket.clone(),
        state_dir: absolute(&options.state_dir),
        ring: options.ring,
        state: Some(StateDir { path: absolute(&options.state_dir), undo_limit: options.undo_limit }),
        helpers: HelperSettings {
            timeout: options.handler_timeout,
            control_socket: absolute(&control_socket),
            host: options.hostname.clone(),
        },
    });
    // Before anything that a signal could cut short.
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Runtime)?;
    let control = ControlServer::bind(&control_socket).await.map_err(RunError::Control)?;
    let listen = Listen { unix: Some(nbd_socket.clone()), ..options.nbd };
    let nbd = NbdServer::bind(listen, Arc::new(Table(Arc::clone(&daemon)))).await?;
    if options.lock_memory {
        lock_memory();
    }
    if let Some(addr) = nbd.tcp_addr() {
        tracing::info!("NBD on {addr}");
    }
    tracing::info!(
        "udrbd {} ready: control on {}, NBD on {}",
        env!("CARGO_PKG_VERSION"),
        control_socket.display(),
        nbd_socket.display()
    );
    let nbd = tokio::spawn(nbd.run());
    let handler = Arc::new(Arc::clone(&daemon));
    let control = tokio::spawn(async move { control.run(handler).await });
    let start = tokio::spawn(start(Arc::clone(&daemon), chosen, options.hostname));
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{signal}: stopping");
    notify(&[sd_notify::NotifyState::Stopping]);
    start.abort();
    nbd.abort();
    daemon.stop().await;
    // Only now, so that status can be asked for while the resources go down.
    control.abort();
    let _ = control.await;
    tracing::info!("stopped");
    Ok(())
}

async fn start(daemon: Arc<Daemon>, chosen: Option<startup::Chosen>, host: String) {
    let resources = match chosen {
        None => Vec::new(),
        Some(chosen) => startup::up(&daemon, chosen).await,
    };
    // Waiting for a peer may take for ever; the devices are there.
    notify(&[sd_notify::NotifyState::Ready]);
    startup::wait_and_promote(daemon, resources, host).await;
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!("systemd was not told: {error}");
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), RunError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| RunError::Directory { path: path.to_owned(), source })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Memory that is written out to a device that waits for us would never come back.
fn lock_memory() {
    // With a limit, later mappings would fail instead of being left unlocked.
    let limited = getrlimit(Resource::Memlock).current.is_some();
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let locked = if limited && !rustix::process::geteuid().is_root() {
        Err(rustix::io::Errno::PERM)
    } else {
        rustix::mm::mlockall(flags)
    };
    if let Err(error) = locked {
        tracing::warn!("memory is not locked ({error}); swapping to a device that this daemon serves can hang");
    }
}
