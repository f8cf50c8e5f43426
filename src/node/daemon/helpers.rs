//! Helper programs of the resources: which command an event has, and what it is told.
//!
//! Takes in the engine's orders, in the threads of the resources; the programs are run by the daemon's own runtime. Gives
//! out their exit codes, and an event before and after each. Source: behaviour.md 8.4, config-and-commands.md 19.

use std::sync::Arc;

use super::Daemon;
use super::registry::Entry;
use crate::config::model::Handler as Word;
use crate::control::proto::Event;
use crate::engine::handler::Handler;
use crate::node::helper::{self, HelperSettings, Program};
use crate::node::{HelperCaller, HelperEnd};
use crate::units::VolumeNr;

impl Daemon {
    /// What a resource calls to have a helper program run. To be made in the daemon's runtime.
    pub(super) fn helper_caller(self: &Arc<Self>, resource: &str) -> HelperCaller {
        let (daemon, resource) = (Arc::downgrade(self), resource.to_owned());
        let runtime = tokio::runtime::Handle::current();
        Box::new(move |handler, volume, end| match daemon.upgrade() {
            Some(daemon) => daemon.call_helper(&runtime, &resource, handler, volume, end),
            None => end(0),
        })
    }

    fn call_helper(
        self: Arc<Self>,
        runtime: &tokio::runtime::Handle,
        resource: &str,
        handler: Handler,
        volume: Option<VolumeNr>,
        end: HelperEnd,
    ) {
        // As things are now: the connection may be gone before the program runs.
        let prepared = self.registry.with(resource, |entry| {
            let about = volume.and_then(|nr| Some((nr, entry.volumes.get(&nr)?.minor)));
            Ok((program(resource, handler, volume, entry, &self.settings.helpers), about))
        });
        let Ok(((name, program), about)) = prepared else { return end(0) };
        let (resource, helper) = (resource.to_owned(), handler.name().to_owned());
        self.emit(Event::Helper { resource: resource.clone(), volume: about, helper: helper.clone(), status: None });
        let Some(program) = program else {
            tracing::info!(resource, "helper command: {name}: none is configured");
            self.emit(Event::Helper { resource, volume: about, helper, status: Some(0) });
            return end(0);
        };
        tracing::info!(resource, "helper command: {name}");
        runtime.spawn(async move {
            let code = helper::run(&program).await;
            let raw = u32::from(code) << 8;
            if code == 0 {
                tracing::info!(resource, "helper command: {name} exit code {code} (0x{raw:x})");
            } else {
                tracing::warn!(resource, "helper command: {name} exit code {code} (0x{raw:x})");
            }
            self.emit(Event::Helper { resource, volume: about, helper, status: Some(code) });
            end(code);
        });
    }
}

/// What the log calls it, and the program, if one is configured.
fn program(
    resource: &str,
    handler: Handler,
    volume: Option<VolumeNr>,
    entry: &Entry,
    settings: &HelperSettings,
) -> (String, Option<Program>) {
    let object = match volume.and_then(|nr| entry.volumes.get(&nr)) {
        Some(volume) if !handler.is_connection_event() => format!("minor-{}", volume.minor),
        _ => resource.to_owned(),
    };
    let name = format!("{} {object}", handler.name());
    let command = Word::from_text(handler.name()).and_then(|word| entry.handlers.commands.get(&word)).cloned();
    let program = command.map(|command| Program {
        name: name.clone(),
        resource: resource.to_owned(),
        command,
        env: environment(resource, volume.filter(|_| !handler.is_connection_event()), entry, settings),
        timeout: settings.timeout,
    });
    (name, program)
}

fn environment(
    resource: &str,
    volume: Option<VolumeNr>,
    entry: &Entry,
    settings: &HelperSettings,
) -> Vec<(&'static str, String)> {
    let handlers = &entry.handlers;
    let mut env = vec![("DRBD_RESOURCE", resource.to_owned())];
    match volume.and_then(|nr| Some((nr, entry.volumes.get(&nr)?))) {
        Some((nr, volume)) => {
            env.push(("DRBD_MINOR", volume.minor.to_string()));
            env.push(("DRBD_VOLUME", nr.to_string()));
            env.push(("DRBD_LL_DISK", volume.backing.clone().unwrap_or_else(|| "none".to_owned())));
        }
        None => {
            let minors: Vec<String> = entry.volumes.values().map(|volume| volume.minor.to_string()).collect();
            env.push(("DRBD_MINOR", minors.join(" ")));
        }
    }
    env.extend(handlers.config.clone().map(|path| ("DRBD_CONF", path)));
    let connected = entry.net.as_ref();
    if let Some(address) = handlers.peer_address.as_ref().or_else(|| connected.map(|net| &net.peer)) {
        env.push(("DRBD_PEER_AF", address.family.to_string()));
        env.push(("DRBD_PEER_ADDRESS", address.host_text()));
    }
    let named = connected.and_then(|net| net.peer_name.clone()).map(|name| vec![name]);
    let peers = if handlers.peers.is_empty() { named.unwrap_or_default() } else { handlers.peers.clone() };
    if let Some(first) = peers.first() {
        env.push(("DRBD_PEER", first.clone()));
        env.push(("DRBD_PEERS", peers.join(" ")));
    }
    // Not DRBD's: a program that calls drbdctl speaks to this daemon, as this host.
    env.push(("UDRBD_SOCKET", settings.control_socket.to_string_lossy().into_owned()));
    env.push(("DRBD_HOSTNAME", settings.host.clone()));
    env
}
