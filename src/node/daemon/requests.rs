//! What each request of the operator does.

use std::path::PathBuf;
use std::sync::Arc;

use super::Daemon;
use super::registry::{Entry, NetEntry, VolumeEntry};
use crate::config::model::{Address, DiskOptions, MetaDisk, NetOptions, ResourceOptions};
use crate::control::handlers::Handlers;
use crate::control::proto::{Event, Version};
use crate::control::status::{self, Status};
use crate::control::{ErrorKind, ErrorReply, Reply, Request};
use crate::disk::last_known::LastKnownFile;
use crate::engine::event::Command;
use crate::engine::options::ResizeOptions;
use crate::engine::status::ResourceStatus;
use crate::node::options::{engine_disk, engine_net, engine_resource, link_config};
use crate::node::{AttachSpec, MetaPlace, Shard, ShardEnd, ShardOptions};
use crate::units::{Minor, VolumeNr};
use crate::wire::state::StateResult;

/// How often a forced demotion is tried against clients that come back at once; arbitrary.
const FORCED_TRIES: u32 = 3;

/// Kinds of block devices that this build makes.
const FRONTENDS: &[&str] = &["nbd"];

type Done = Result<(), ErrorReply>;

/// A request's name for the log; never its content, which may be secret.
pub fn name(request: &Request) -> &'static str {
    match request {
        Request::NewResource { .. } => "new-resource",
        Request::NewVolume { .. } => "new-volume",
        Request::Attach { .. } => "attach",
        Request::Detach { .. } => "detach",
        Request::Connect { .. } => "connect",
        Request::Disconnect { .. } => "disconnect",
        Request::Primary { .. } => "primary",
        Request::Secondary { .. } => "secondary",
        Request::Outdate { .. } => "outdate",
        Request::Invalidate { .. } => "invalidate",
        Request::InvalidateRemote { .. } => "invalidate-remote",
        Request::NewCurrentUuid { .. } => "new-current-uuid",
        Request::Resize { .. } => "resize",
        Request::PauseSync { .. } => "pause-sync",
        Request::ResumeSync { .. } => "resume-sync",
        Request::SuspendIo { .. } => "suspend-io",
        Request::ResumeIo { .. } => "resume-io",
        Request::DiskOptions { .. } => "disk-options",
        Request::NetOptions { .. } => "net-options",
        Request::ResourceOptions { .. } => "resource-options",
        Request::DelVolume { .. } => "del-volume",
        Request::DelResource { .. } => "del-resource",
        Request::Down { .. } => "down",
        Request::Status { .. } => "status",
        Request::Watch { .. } => "watch",
        Request::SplitBrain { .. } => "split-brain",
        Request::Version => "version",
    }
}

impl Daemon {
    /// Carries a request out.
    pub async fn carry_out(self: &Arc<Self>, request: Request) -> Reply {
        let command = |resource: String, volume: VolumeNr, command: Command| async move {
            self.shard_of(&resource, volume)?.command(volume, command).await
        };
        match request {
            Request::NewResource { resource, options, handlers } => {
                self.new_resource(resource, options, handlers.map(|handlers| *handlers)).await.into()
            }
            Request::NewVolume { resource, volume, minor, device, options } => {
                self.new_volume(&resource, volume, VolumeEntry { minor, device, options, backing: None }).await.into()
            }
            Request::Attach { resource, volume, backing, meta_disk, options } => {
                self.attach(&resource, volume, backing, meta_disk, options).await.into()
            }
            Request::Detach { resource, volume, force } => {
                command(resource, volume, Command::Detach { force }).await.into()
            }
            Request::Connect { resource, local, peer, peer_name, options } => {
                let net = NetEntry { local, peer, peer_name, options: *options, taken: false };
                self.connect(&resource, net).await.into()
            }
            Request::Disconnect { resource, force } => self.disconnect(&resource, force).await.into(),
            Request::Primary { resource, volume, force } => {
                command(resource, volume, Command::Primary { force }).await.into()
            }
            Request::Secondary { resource, volume, force } => self.secondary(&resource, volume, force).await.into(),
            Request::Outdate { resource, volume } => command(resource, volume, Command::Outdate).await.into(),
            Request::Invalidate { resource, volume } => command(resource, volume, Command::Invalidate).await.into(),
            Request::InvalidateRemote { resource, volume } => {
                command(resource, volume, Command::InvalidateRemote).await.into()
            }
            Request::NewCurrentUuid { resource, volume, clear_bitmap } => {
                command(resource, volume, Command::NewCurrentUuid { clear_bitmap }).await.into()
            }
            Request::Resize {
                resource,
                volume,
                size,
                assume_clean,
                assume_peer_has_space,
                al_stripes,
                al_stripe_size_kib: al_stripe_kib,
            } => {
                let options = ResizeOptions { size, assume_clean, assume_peer_has_space, al_stripes, al_stripe_kib };
                self.resize(&resource, volume, options).await.into()
            }
            Request::PauseSync { resource, volume } => command(resource, volume, Command::PauseSync).await.into(),
            Request::ResumeSync { resource, volume } => command(resource, volume, Command::ResumeSync).await.into(),
            Request::SuspendIo { resource, volume } => command(resource, volume, Command::SuspendIo).await.into(),
            Request::ResumeIo { resource, volume } => command(resource, volume, Command::ResumeIo).await.into(),
            Request::DiskOptions { resource, volume, options, set_defaults } => {
                self.disk_options(&resource, volume, options, set_defaults).await.into()
            }
            Request::NetOptions { resource, options, set_defaults } => {
                self.net_options(&resource, &options, set_defaults).await.into()
            }
            Request::ResourceOptions { resource, options, set_defaults } => {
                self.resource_options(&resource, options, set_defaults).await.into()
            }
            Request::DelVolume { resource, volume } => self.del_volume(&resource, volume).await.into(),
            Request::DelResource { resource } => self.del_resource(&resource).await.into(),
            Request::Down { resource, force } => self.down(&resource, force).await.into(),
            Request::Status { resource } | Request::Watch { resource } => {
                Reply::Status(self.status(resource.as_deref()).await)
            }
            Request::SplitBrain { resource, all } => match self.explain(&resource, all).await {
                Ok(explanation) => Reply::SplitBrain(Box::new(explanation)),
                Err(error) => error.into(),
            },
            Request::Version => {
                let state_dir = self.settings.state.as_ref().map(|state| state.path.display().to_string());
                Reply::Version(Version { state_dir, ..Version::this(FRONTENDS) })
            }
        }
    }

    // --- resources and volumes ---

    async fn new_resource(
        self: &Arc<Self>,
        resource: String,
        options: ResourceOptions,
        handlers: Option<Handlers>,
    ) -> Done {
        if resource.is_empty() || resource.contains(['/', '\0']) {
            return Err(ErrorReply::usage(format!("{resource:?} cannot be the name of a resource")));
        }
        let _changing = self.changing.lock().await;
        if let Some(entry) = self.registry.lock().get_mut(&resource) {
            if let Some(handlers) = handlers {
                entry.handlers = handlers;
            }
            return Ok(());
        }
        let (daemon, name) = (Arc::downgrade(self), resource.clone());
        let changed = move |status: ResourceStatus| {
            if let Some(daemon) = daemon.upgrade() {
                daemon.on_change(&name, &status);
            }
        };
        let shard_options = ShardOptions {
            name: resource.clone(),
            ring: self.settings.ring,
            state: self.settings.state.clone(),
            changed: Box::new(changed),
            helper: self.helper_caller(&resource),
        };
        let (shard, end) = Shard::start(shard_options).await?;
        let resource_options = engine_resource(&options);
        let entry = Entry {
            shard: shard.clone(),
            options,
            volumes: [].into(),
            net: None,
            last_peer: None,
            handlers: handlers.unwrap_or_default(),
        };
        self.registry.lock().insert(resource.clone(), entry);
        let (daemon, name) = (Arc::downgrade(self), resource.clone());
        tokio::spawn(async move {
            if let Ok(ShardEnd::Failed(why)) = end.await
                && let Some(daemon) = daemon.upgrade()
            {
                tracing::error!(resource = name, "the resource is gone: {why}");
                daemon.forget(&name);
            }
        });
        shard.command(VolumeNr(0), Command::ResourceOptions(resource_options)).await?;
        if let Some(status) = shard.status().await {
            self.on_change(&resource, &status);
        }
        Ok(())
    }

    /// A resource is gone.
    pub(super) fn forget(&self, resource: &str) {
        if self.registry.lock().remove(resource).is_some() {
            self.emit(Event::Removed { resource: resource.to_owned() });
        }
    }

    /// Something changed; called in the resource's thread.
    fn on_change(&self, resource: &str, status: &ResourceStatus) {
        let mut registry = self.registry.lock();
        let Some(entry) = registry.get_mut(resource) else { return };
        match (status.protocol, &mut entry.net) {
            (Some(_), Some(net)) => net.taken = true,
            (None, net) => {
                net.take_if(|net| net.taken);
            }
            (Some(_), None) => {}
        }
        let extras = entry.extras(resource, &self.settings.nbd_socket);
        drop(registry);
        self.emit(Event::Resource(Box::new(status::resource(status, &extras))));
    }

    async fn new_volume(&self, resource: &str, volume: VolumeNr, new: VolumeEntry) -> Done {
        let _changing = self.changing.lock().await;
        let shard = {
            let registry = self.registry.lock();
            let entry = registry.get(resource).ok_or_else(|| ErrorReply::code(158).detail("unknown resource"))?;
            match entry.volumes.get(&volume) {
                Some(old) if old.minor == new.minor => return Ok(()),
                Some(_) => return Err(ErrorReply::code(161)),
                None => {}
            }
            let taken = |minor: Minor| registry.values().any(|e| e.volumes.values().any(|v| v.minor == minor));
            if taken(new.minor) {
                return Err(ErrorReply::code(161));
            }
            entry.shard.clone()
        };
        let options = engine_disk(&new.options);
        self.registry.with(resource, |entry| {
            entry.volumes.insert(volume, new);
            Ok(())
        })?;
        let created = shard.new_volume(volume, options).await;
        if created.is_err() {
            let _ = self.registry.with(resource, |entry| Ok(entry.volumes.remove(&volume)));
        }
        created
    }

    async fn del_volume(&self, resource: &str, volume: VolumeNr) -> Done {
        let _changing = self.changing.lock().await;
        let shard = self.shard_of(resource, volume)?;
        shard.del_volume(volume).await?;
        self.registry.with(resource, |entry| {
            entry.volumes.remove(&volume);
            Ok(())
        })
    }

    async fn del_resource(&self, resource: &str) -> Done {
        let _changing = self.changing.lock().await;
        let shard = self.registry.with(resource, |entry| {
            if entry.net.is_some() {
                return Err(ErrorReply::code(125));
            }
            if !entry.volumes.is_empty() {
                return Err(ErrorReply::code(159));
            }
            Ok(entry.shard.clone())
        })?;
        shard.stop();
        self.forget(resource);
        Ok(())
    }

    async fn resource_options(&self, resource: &str, options: ResourceOptions, set_defaults: bool) -> Done {
        let (shard, options) = self.registry.with(resource, |entry| {
            if set_defaults {
                entry.options = options;
            } else {
                entry.options.overlay(&options);
            }
            Ok((entry.shard.clone(), entry.options.clone()))
        })?;
        shard.command(VolumeNr(0), Command::ResourceOptions(engine_resource(&options))).await
    }

    // --- disks ---

    async fn attach(
        &self,
        resource: &str,
        volume: VolumeNr,
        backing: String,
        meta_disk: MetaDisk,
        options: DiskOptions,
    ) -> Done {
        let shard = self.shard_of(resource, volume)?;
        self.registry.with(resource, |entry| {
            if let Some(volume) = entry.volumes.get_mut(&volume) {
                volume.backing = Some(backing.clone());
            }
            Ok(())
        })?;
        let meta = match meta_disk {
            MetaDisk::Internal => MetaPlace::Internal,
            MetaDisk::Flexible { dev } => MetaPlace::Flexible(absolute(dev)?),
            MetaDisk::Indexed { dev, idx } => {
                let index = u8::try_from(idx).map_err(|_| {
                    ErrorReply::code(116).detail(format!("the index of the metadata is {idx}, 0 to 255 are possible"))
                })?;
                MetaPlace::Indexed(absolute(dev)?, index)
            }
        };
        let spec = AttachSpec {
            volume,
            backing: absolute(backing)?,
            meta,
            options: engine_disk(&options),
            owner: format!("{resource}/{volume}"),
            last_known: self.registry.with(resource, |entry| {
                let minor = entry.volumes.get(&volume).map(|volume| volume.minor);
                Ok(minor.map(|minor| LastKnownFile::of(&self.settings.state_dir, minor)))
            })?,
        };
        shard.attach(spec).await?;
        self.remember_disk(resource, volume, options)
    }

    fn remember_disk(&self, resource: &str, volume: VolumeNr, options: DiskOptions) -> Done {
        self.registry.with(resource, |entry| {
            if let Some(volume) = entry.volumes.get_mut(&volume) {
                volume.options = options;
            }
            Ok(())
        })
    }

    fn shard_of(&self, resource: &str, volume: VolumeNr) -> Result<Shard, ErrorReply> {
        // drbdsetup names a volume by its minor: without one the resource does not matter.
        let registry = self.registry.lock();
        let entry = registry.get(resource).filter(|entry| entry.volumes.contains_key(&volume));
        entry.map(|entry| entry.shard.clone()).ok_or_else(|| ErrorReply::code(127).detail("unknown minor"))
    }

    fn shard_with_connection(&self, resource: &str) -> Result<Shard, ErrorReply> {
        // As it names a connection by its addresses.
        self.registry.shard(resource).map_err(|_| ErrorReply::code(162).detail("unknown connection"))
    }

    async fn disk_options(&self, resource: &str, volume: VolumeNr, set: DiskOptions, set_defaults: bool) -> Done {
        let shard = self.shard_of(resource, volume)?;
        let options = self.registry.with(resource, |entry| {
            let old = entry.volumes.get(&volume).map(|v| v.options.clone()).filter(|_| !set_defaults);
            let mut options = old.unwrap_or_default();
            options.overlay(&set);
            Ok(options)
        })?;
        shard.command(volume, Command::DiskOptions(engine_disk(&options))).await?;
        self.remember_disk(resource, volume, options)
    }

    async fn resize(&self, resource: &str, volume: VolumeNr, options: ResizeOptions) -> Done {
        self.shard_of(resource, volume)?.resize(volume, options).await?;
        self.registry.with(resource, |entry| {
            if let Some(volume) = entry.volumes.get_mut(&volume) {
                volume.options.size = (options.size.0 > 0).then_some(options.size);
            }
            Ok(())
        })
    }

    // --- connection ---

    async fn connect(&self, resource: &str, net: NetEntry) -> Done {
        let engine = engine_net(&net.options)?;
        let link = link_config(&net.local, &net.peer, &net.options)?;
        let shard = {
            let mut registry = self.registry.lock();
            let used = |of: fn(&NetEntry) -> &Address, address: &Address| {
                registry.iter().find(|(_, entry)| entry.net.as_ref().is_some_and(|net| of(net) == address))
            };
            if let Some((by, _)) = used(|net| &net.local, &net.local) {
                return Err(ErrorReply::code(102).detail(format!("{} is used by resource {by}", net.local)));
            }
            if let Some((by, _)) = used(|net| &net.peer, &net.peer) {
                return Err(ErrorReply::code(103).detail(format!("{} is used by resource {by}", net.peer)));
            }
            let entry = registry.get_mut(resource).ok_or_else(|| ErrorReply::code(158).detail("unknown resource"))?;
            entry.last_peer.clone_from(&net.peer_name);
            entry.net = Some(net);
            entry.shard.clone()
        };
        let connected = shard.connect(link, engine).await;
        if connected.is_err() {
            let _ = self.registry.with(resource, |entry| Ok(entry.net.take_if(|net| !net.taken)));
        }
        connected
    }

    pub(super) async fn disconnect(&self, resource: &str, force: bool) -> Done {
        let shard = self.shard_with_connection(resource)?;
        shard.command(VolumeNr(0), Command::Disconnect { force }).await?;
        self.registry.with(resource, |entry| {
            entry.net = None;
            Ok(())
        })
    }

    async fn net_options(&self, resource: &str, set: &NetOptions, set_defaults: bool) -> Done {
        self.shard_with_connection(resource)?;
        let (shard, net) = self.registry.with(resource, |entry| match &entry.net {
            None => Err(ErrorReply::code(162).detail("unknown connection")),
            Some(net) => {
                let mut net = net.clone();
                if set_defaults {
                    net.options = set.clone();
                } else {
                    net.options.overlay(set);
                }
                Ok((entry.shard.clone(), net))
            }
        })?;
        let engine = engine_net(&net.options)?;
        let link = link_config(&net.local, &net.peer, &net.options)?;
        shard.configure(link, engine).await?;
        self.registry.with(resource, |entry| {
            if let Some(kept) = &mut entry.net {
                kept.options = net.options;
            }
            Ok(())
        })
    }

    // --- roles ---

    pub(super) async fn secondary(&self, resource: &str, volume: VolumeNr, force: bool) -> Done {
        let shard = self.shard_of(resource, volume)?;
        let mut tries = if force { FORCED_TRIES } else { 1 };
        loop {
            if force {
                shard.end_sessions(volume, "demoted by force").await?;
            }
            tries -= 1;
            match shard.command(volume, Command::Secondary).await {
                Err(error) if tries > 0 && is_state(&error, StateResult::DeviceInUse) => {}
                result => return result,
            }
        }
    }

    /// Takes a resource down: demote, disconnect, detach, remove.
    pub(super) async fn down(&self, resource: &str, force: bool) -> Done {
        let Ok(shard) = self.registry.shard(resource) else { return Ok(()) };
        let volumes = self.registry.with(resource, |entry| Ok(entry.volumes.keys().copied().collect::<Vec<_>>()))?;
        for volume in &volumes {
            self.secondary(resource, *volume, force).await?;
        }
        if self.registry.with(resource, |entry| Ok(entry.net.is_some()))? {
            match self.disconnect(resource, false).await {
                // It may have ended by itself meanwhile.
                Err(error) if error.kind == ErrorKind::Err && error.code == 162 => {
                    self.registry.with(resource, |entry| {
                        entry.net = None;
                        Ok(())
                    })?;
                }
                result => result?,
            }
        }
        for volume in &volumes {
            shard.command(*volume, Command::Detach { force: false }).await?;
        }
        for volume in &volumes {
            self.del_volume(resource, *volume).await?;
        }
        self.del_resource(resource).await
    }

    // --- status ---

    async fn status(&self, only: Option<&str>) -> Status {
        let shards: Vec<(String, Shard)> = {
            let registry = self.registry.lock();
            let wanted = registry.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
            wanted.map(|(name, entry)| (name.clone(), entry.shard.clone())).collect()
        };
        let mut resources = Vec::with_capacity(shards.len());
        for (name, shard) in shards {
            let Some(snapshot) = shard.status().await else { continue };
            let extras = self.registry.with(&name, |entry| Ok(entry.extras(&name, &self.settings.nbd_socket)));
            if let Ok(extras) = extras {
                resources.push(status::resource(&snapshot, &extras));
            }
        }
        Status::new(resources)
    }
}

/// Whether the state machine refused for this reason.
fn is_state(error: &ErrorReply, reason: StateResult) -> bool {
    error.kind == ErrorKind::State && error.code == reason.code()
}

fn absolute(path: String) -> Result<PathBuf, ErrorReply> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err(ErrorReply::usage(format!("{} is not absolute", path.display()))) }
}
