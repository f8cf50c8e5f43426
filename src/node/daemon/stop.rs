//! The clean stop: every resource goes down, as far as that works within a limit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Daemon;
use crate::engine::event::Command;
use crate::units::VolumeNr;

/// How long the resources may take to go down. Below systemd's own limit of 90 s; arbitrary.
const DOWN_MAX: Duration = Duration::from_secs(20);
/// How long a resource that does not go down by consent may take to be closed.
const CLOSE_MAX: Duration = Duration::from_secs(5);

impl Daemon {
    /// Takes all resources down. What does not go down in time is closed as in a crash: its metadata says so, and the next
    /// start recovers.
    pub async fn stop(self: &Arc<Self>) {
        self.stopping.store(true, Ordering::Relaxed);
        let names: Vec<String> = self.registry.lock().keys().cloned().collect();
        let mut stops = tokio::task::JoinSet::new();
        for name in names {
            let daemon = Arc::clone(self);
            stops.spawn(async move { daemon.stop_resource(&name).await });
        }
        while stops.join_next().await.is_some() {}
    }

    async fn stop_resource(&self, name: &str) {
        match tokio::time::timeout(DOWN_MAX, self.down(name, true)).await {
            Ok(Ok(())) => return tracing::info!(resource = name, "down"),
            Ok(Err(error)) => tracing::warn!(resource = name, "cannot go down by consent: {error}"),
            Err(_) => tracing::warn!(resource = name, "does not go down within {} s", DOWN_MAX.as_secs()),
        }
        // The peer refuses, because it needs this node's data: it has to do without them now.
        let Ok(shard) = self.registry.shard(name) else { return };
        let volumes: Vec<VolumeNr> = shard.view().volumes().into_iter().map(|(nr, _)| nr).collect();
        let close = async {
            for volume in &volumes {
                let _ = self.secondary(name, *volume, true).await;
            }
            let _ = self.disconnect(name, true).await;
            for volume in &volumes {
                let _ = shard.command(*volume, Command::Detach { force: false }).await;
            }
        };
        if tokio::time::timeout(CLOSE_MAX, close).await.is_err() {
            tracing::warn!(resource = name, "closed as in a crash");
        }
        shard.stop();
        self.forget(name);
    }
}
