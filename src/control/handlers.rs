//! What a daemon has to know to run the helper programs of a resource.
//!
//! drbdadm reads all of it in the configuration each time that the kernel calls it; here it travels with the resource, and a
//! repeated `up` brings it up to date.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ResolvedResource;
use crate::config::model::{Address, Handler, HostKind};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handlers {
    /// Shell commands of the section `handlers`, by event.
    pub commands: BTreeMap<Handler, String>,
    /// Absolute path of the configuration file.
    pub config: Option<String>,
    /// All host names of the peer's section; empty when the peer is not known.
    pub peers: Vec<String>,
    /// The peer's address in its section.
    pub peer_address: Option<Address>,
}

impl Handlers {
    /// Those of a resource in this configuration file; `peer` picks the peer where there are several.
    #[must_use]
    pub fn of(resource: &ResolvedResource, peer: Option<&str>, config: Option<String>) -> Self {
        let peer = resource.peer(peer).ok();
        let names = peer.map(|host| match &host.kind {
            HostKind::On(names) | HostKind::Stacked { hosts: names, .. } => names.clone(),
            HostKind::Floating => vec![host.name()],
        });
        Self {
            commands: resource.handlers.clone(),
            config,
            peers: names.unwrap_or_default(),
            peer_address: peer.map(|host| host.address.clone()),
        }
    }
}
