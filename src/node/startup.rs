//! `udrbd --up`: brings resources up from the configuration, waits for their peers, promotes where the file says so.
//!
//! Takes in: a file, a host name, which resources. Waiting follows behaviour.md 9.1 (three timeouts, corrected against each
//! other) and happens beside the daemon's work: the control socket answers, devices exist. Invariant: a resource that
//! fails to come up is reported and does not keep the others from it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::daemon::Daemon;
use crate::config::load::{FsLoader, default_file, has_address};
use crate::config::{self, LocalNode, ResolvedResource};
use crate::control::handlers::Handlers;
use crate::control::server::Handler as _;
use crate::control::status::WaitKind;
use crate::control::{ErrorReply, Reply, Request};
use crate::units::VolumeNr;
use crate::wire::state::ConnState;

/// How often a promotion at start is tried, and the pause between two tries: as DRBD's init script (behaviour.md 9.2).
const PROMOTE_TRIES: u32 = 5;
const PROMOTE_PAUSE: Duration = Duration::from_secs(1);

/// Which resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that have a section for this host.
    All,
    /// One.
    One(String),
}

/// Why nothing could be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// There is no configuration file.
    #[error("no configuration file found; name one with --config")]
    NoFile,
    /// The configuration is wrong; the text has places.
    #[error("{0}")]
    Config(String),
    /// No such resource for this host.
    #[error("resource {resource} is not defined for host {host} in {file}")]
    Unknown {
        /// Name asked for.
        resource: String,
        /// This host.
        host: String,
        /// The file.
        file: String,
    },
}

/// Resources to bring up.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The configuration file that they are from.
    pub file: String,
    /// In the order of the file.
    pub resources: Vec<ResolvedResource>,
}

/// Reads the resources to bring up.
///
/// # Errors
/// [`StartupError`]
pub fn read(file: Option<&Path>, host: &str, which: &Which) -> Result<Chosen, StartupError> {
    let file = match file {
        Some(path) => path.to_string_lossy().into_owned(),
        None => default_file().ok_or(StartupError::NoFile)?.to_owned(),
    };
    let document = config::load(&mut FsLoader, &file).map_err(|report| StartupError::Config(report.to_string()))?;
    for warning in document.warnings() {
        tracing::warn!("{warning}");
    }
    let node = LocalNode { name: host, has_address: &has_address };
    let all = document.resolve_all(&node).map_err(|report| StartupError::Config(report.to_string()))?;
    match which {
        Which::All => Ok(Chosen { file, resources: all }),
        Which::One(name) => match all.into_iter().find(|resource| resource.name == *name) {
            Some(resource) => Ok(Chosen { file, resources: vec![resource] }),
            None => Err(StartupError::Unknown { resource: name.clone(), host: host.to_owned(), file }),
        },
    }
}

/// The requests that bring a resource of this configuration file up, in order, as drbdadm would send them.
///
/// # Errors
/// There is no peer to connect to.
pub fn requests(file: &str, resource: &ResolvedResource) -> Result<Vec<Request>, ErrorReply> {
    let name = &resource.name;
    let config = std::path::absolute(file).map_or_else(|_| file.to_owned(), |path| path.to_string_lossy().into_owned());
    let mut requests = vec![Request::NewResource {
        resource: name.clone(),
        options: resource.options.clone(),
        handlers: Some(Box::new(Handlers::of(resource, None, Some(config)))),
    }];
    for volume in &resource.me.volumes {
        requests.push(Request::NewVolume {
            resource: name.clone(),
            volume: volume.vnr,
            minor: volume.minor,
            device: Some(volume.device.clone()),
            options: volume.disk.clone(),
        });
    }
    for volume in &resource.me.volumes {
        requests.push(Request::Attach {
            resource: name.clone(),
            volume: volume.vnr,
            backing: volume.backing_disk.clone(),
            meta_disk: volume.meta_disk.clone(),
            options: volume.disk.clone(),
        });
    }
    let no_peer = |error: config::ResolveError| ErrorReply::usage(error.to_string());
    let link = resource.link(None).map_err(no_peer)?;
    requests.push(Request::Connect {
        resource: name.clone(),
        local: link.local,
        peer: link.peer,
        peer_name: Some(resource.peer(None).map_err(no_peer)?.name()),
        options: Box::new(resource.net.clone()),
    });
    Ok(requests)
}

/// Brings resources up. Those that came up are given back.
pub async fn up(daemon: &Arc<Daemon>, chosen: Chosen) -> Vec<ResolvedResource> {
    let mut came_up = Vec::new();
    for resource in chosen.resources {
        match up_one(daemon, &chosen.file, &resource).await {
            Ok(()) => came_up.push(resource),
            Err(error) => tracing::error!(resource = resource.name, "cannot bring the resource up: {error}"),
        }
    }
    came_up
}

async fn up_one(daemon: &Arc<Daemon>, file: &str, resource: &ResolvedResource) -> Result<(), ErrorReply> {
    let mut first_error = Ok(());
    for request in requests(file, resource)? {
        let attach = matches!(request, Request::Attach { .. });
        match daemon.carry_out(request).await {
            Reply::Error(error) if attach => {
                // Without its disk the node can still serve the peer's data.
                tracing::error!(resource = resource.name, "cannot attach a disk: {error}");
                if first_error.is_ok() {
                    first_error = Err(error);
                }
            }
            Reply::Error(error) => return Err(error),
            _ => {}
        }
    }
    first_error
}

/// Waits for the peers and promotes, all resources at the same time. Ends when that is done.
pub async fn wait_and_promote(daemon: Arc<Daemon>, resources: Vec<ResolvedResource>, host: String) {
    let mut all = JoinSet::new();
    for resource in resources {
        let (daemon, host) = (Arc::clone(&daemon), host.clone());
        all.spawn(async move {
            let timeouts = Timeouts::of(&resource);
            let begin = Instant::now();
            for volume in &resource.me.volumes {
                wait(&daemon, &resource.name, volume.vnr, &timeouts, begin).await;
            }
            let names = &resource.startup.become_primary_on;
            if names.iter().any(|name| name == "both" || *name == host) {
                for volume in &resource.me.volumes {
                    promote(&daemon, &resource.name, volume.vnr).await;
                }
            }
        });
    }
    while all.join_next().await.is_some() {}
}

/// The start-up timeouts in seconds, 0 for ever, corrected as drbdadm does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timeouts {
    wfc: u32,
    degraded: u32,
    outdated: u32,
    after_sb: bool,
}

impl Timeouts {
    fn of(resource: &ResolvedResource) -> Self {
        let startup = &resource.startup;
        if resource.stacked && !startup.stacked_timeouts {
            let wfc = resource.net.connect_int().0 * 2;
            return Self { wfc, degraded: wfc, outdated: wfc, after_sb: startup.wait_after_sb() };
        }
        let (wfc, degraded) = (startup.wfc_timeout().0, startup.degr_wfc_timeout().0);
        Self::corrected(&resource.name, wfc, degraded, startup.outdated_wfc_timeout().0, startup.wait_after_sb())
    }

    fn corrected(resource: &str, wfc: u32, mut degraded: u32, mut outdated: u32, after_sb: bool) -> Self {
        if wfc > 0 && (wfc < degraded || degraded == 0) {
            degraded = wfc;
            tracing::warn!(resource, "degr-wfc-timeout has to be shorter than wfc-timeout");
            tracing::warn!(resource, "degr-wfc-timeout implicitly set to wfc-timeout ({wfc}s)");
        }
        if degraded > 0 && (degraded < outdated || outdated == 0) {
            outdated = wfc;
            tracing::warn!(resource, "outdated-wfc-timeout has to be shorter than degr-wfc-timeout");
            tracing::warn!(resource, "outdated-wfc-timeout implicitly set to degr-wfc-timeout ({degraded}s)");
        }
        Self { wfc, degraded, outdated, after_sb }
    }

    fn limit(&self, kind: WaitKind) -> Option<Duration> {
        let seconds = match kind {
            WaitKind::Normal => self.wfc,
            WaitKind::Degraded => self.degraded,
            WaitKind::PeerOutdated => self.outdated,
        };
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }
}

/// Waits until a volume is connected, has given up, or the time that counts for it is over.
async fn wait(daemon: &Arc<Daemon>, resource: &str, volume: VolumeNr, timeouts: &Timeouts, begin: Instant) {
    let mut events = daemon.subscribe();
    loop {
        let Some((state, kind)) = look(daemon, resource, volume).await else { return };
        if state >= ConnState::Connected || (state < ConnState::Unconnected && !timeouts.after_sb) {
            return;
        }
        let changed = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.resource().is_none_or(|name| name == resource) => return true,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return true,
                    Err(broadcast::error::RecvError::Closed) => return false,
                }
            }
        };
        let go_on = match timeouts.limit(kind) {
            None => changed.await,
            Some(limit) => match timeout_at(begin + limit, changed).await {
                Ok(go_on) => go_on,
                Err(_) => {
                    return tracing::warn!(resource, %volume, "the peer did not come within {} s", limit.as_secs());
                }
            },
        };
        if !go_on {
            return;
        }
    }
}

async fn look(daemon: &Arc<Daemon>, resource: &str, volume: VolumeNr) -> Option<(ConnState, WaitKind)> {
    let Reply::Status(status) = daemon.carry_out(Request::Status { resource: Some(resource.to_owned()) }).await else {
        return None;
    };
    let found = status.resource(resource)?.volumes.iter().find(|v| v.volume == volume)?;
    Some((found.state, found.wait))
}

async fn promote(daemon: &Arc<Daemon>, resource: &str, volume: VolumeNr) {
    for left in (0..PROMOTE_TRIES).rev() {
        let request = Request::Primary { resource: resource.to_owned(), volume, force: false };
        let Reply::Error(error) = daemon.carry_out(request).await else { return };
        tracing::warn!(resource, %volume, "cannot become Primary at start: {error}; {left} tries left");
        if daemon.is_stopping() {
            return;
        }
        tokio::time::sleep(PROMOTE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_corrected_as_drbdadm_does() {
        let of = |wfc, degraded, outdated| {
            let t = Timeouts::corrected("r0", wfc, degraded, outdated, false);
            (t.wfc, t.degraded, t.outdated)
        };
        assert_eq!(of(0, 0, 0), (0, 0, 0));
        assert_eq!(of(9, 2, 1), (9, 2, 1));
        assert_eq!(of(9, 0, 1), (9, 9, 1));
        assert_eq!(of(9, 20, 0), (9, 9, 9));
        // Not degraded, although drbdadm's message says so.
        assert_eq!(of(9, 5, 7), (9, 5, 9));
        assert_eq!(of(0, 5, 0), (0, 5, 0));
    }

    #[test]
    fn each_kind_of_wait_has_its_limit() {
        let t = Timeouts { wfc: 0, degraded: 5, outdated: 1, after_sb: false };
        assert_eq!(t.limit(WaitKind::Normal), None);
        assert_eq!(t.limit(WaitKind::Degraded), Some(Duration::from_secs(5)));
        assert_eq!(t.limit(WaitKind::PeerOutdated), Some(Duration::from_secs(1)));
    }
}
