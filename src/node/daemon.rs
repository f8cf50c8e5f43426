//! All resources of this node, and the operator's commands on them.
//!
//! Owns: the registry of resources with what was configured, the channel of events. Takes in [`Request`]s (from the control
//! socket and from start-up), gives out replies and events. Invariants: a minor and an address belong to one resource;
//! nothing here waits while it holds the registry's lock; creating and removing is done one at a time.

mod explain;
mod helpers;
mod registry;
mod requests;
mod stop;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::broadcast;

pub use self::registry::{export_name, nbd_uri};

use self::registry::Registry;
use crate::control::proto::Event;
use crate::control::server::{EVENTS_BEHIND_MAX, Handler, Peer};
use crate::control::{ErrorReply, Reply, Request};
use crate::disk::RingChoice;
use crate::node::Shard;
use crate::node::helper::HelperSettings;
use crate::node::keeper::StateDir;

/// What a daemon needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Path of the NBD socket, for the URIs in status.
    pub nbd_socket: PathBuf,
    /// For what outlives the daemon.
    pub state_dir: PathBuf,
    /// Which ring the disks use.
    pub ring: RingChoice,
    /// Where what must survive a restart is kept.
    pub state: Option<StateDir>,
    /// How helper programs are run.
    pub helpers: HelperSettings,
}

/// All resources of this node.
#[derive(Debug)]
pub struct Daemon {
    settings: Settings,
    registry: Registry,
    events: broadcast::Sender<Event>,
    /// Creating and removing, one at a time.
    changing: tokio::sync::Mutex<()>,
    stopping: AtomicBool,
}

impl Daemon {
    /// Without resources.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        let (events, _) = broadcast::channel(EVENTS_BEHIND_MAX);
        Arc::new(Self {
            settings,
            registry: Registry::default(),
            events,
            changing: tokio::sync::Mutex::new(()),
            stopping: AtomicBool::new(false),
        })
    }

    /// Whether a clean stop has begun: nothing new is taken on.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The thread of a resource.
    #[must_use]
    pub fn shard(&self, resource: &str) -> Option<Shard> {
        self.registry.lock().get(resource).map(|entry| entry.shard.clone())
    }

    /// All resources with their threads, by name.
    #[must_use]
    pub fn shards(&self) -> Vec<(String, Shard)> {
        self.registry.lock().iter().map(|(name, entry)| (name.clone(), entry.shard.clone())).collect()
    }

    fn emit(&self, event: Event) {
        // Without watchers it is lost, as it should be.
        let _ = self.events.send(event);
    }
}

impl Handler for Arc<Daemon> {
    async fn handle(&self, request: Request, peer: Peer) -> Reply {
        if !request.is_query() {
            tracing::debug!(
                pid = peer.pid,
                uid = peer.uid,
                resource = request.resource(),
                "{}",
                requests::name(&request)
            );
        }
        if self.is_stopping() && !request.is_query() {
            return ErrorReply::usage("the daemon is stopping").into();
        }
        self.carry_out(request).await
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
