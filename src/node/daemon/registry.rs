//! What is configured: resources, volumes, connections, with the options as they were set.
//!
//! A plain map behind a lock that is never held across an await.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::model::{Address, DiskOptions, NetOptions, ResourceOptions};
use crate::control::ErrorReply;
use crate::control::handlers::Handlers;
use crate::control::status::{Frontend, ResourceExtras, VolumeExtras};
use crate::node::Shard;
use crate::units::{Minor, VolumeNr};

/// One resource.
#[derive(Debug)]
pub struct Entry {
    /// Its thread.
    pub shard: Shard,
    /// As set.
    pub options: ResourceOptions,
    /// Its volumes.
    pub volumes: BTreeMap<VolumeNr, VolumeEntry>,
    /// Its connection, while configured.
    pub net: Option<NetEntry>,
    /// Name of the peer that it was connected to last, for people.
    pub last_peer: Option<String>,
    /// Its helper programs.
    pub handlers: Handlers,
}

/// One volume.
#[derive(Clone, Debug)]
pub struct VolumeEntry {
    /// Minor number.
    pub minor: Minor,
    /// Configured device path.
    pub device: Option<String>,
    /// As set.
    pub options: DiskOptions,
    /// Backing device of the last attach.
    pub backing: Option<String>,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct NetEntry {
    /// Own address.
    pub local: Address,
    /// The peer's address.
    pub peer: Address,
    /// The peer's name.
    pub peer_name: Option<String>,
    /// As set.
    pub options: NetOptions,
    /// The engine has it; it is forgotten when the engine has not any more.
    pub taken: bool,
}

/// All resources by name.
#[derive(Debug, Default)]
pub struct Registry(Mutex<BTreeMap<String, Entry>>);

impl Registry {
    /// The map.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Changes are single assignments, so the map is sound wherever its holder panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread of a resource.
    ///
    /// # Errors
    /// 158 for an unknown one.
    pub fn shard(&self, resource: &str) -> Result<Shard, ErrorReply> {
        self.with(resource, |entry| Ok(entry.shard.clone()))
    }

    /// Looks at, or changes, one resource.
    ///
    /// # Errors
    /// 158 for an unknown one; those of `f`.
    pub fn with<T>(
        &self,
        resource: &str,
        f: impl FnOnce(&mut Entry) -> Result<T, ErrorReply>,
    ) -> Result<T, ErrorReply> {
        match self.lock().get_mut(resource) {
            Some(entry) => f(entry),
            None => Err(ErrorReply::code(158).detail("unknown resource")),
        }
    }
}

impl Entry {
    /// What status shows besides the engine's snapshot.
    pub fn extras(&self, resource: &str, nbd_socket: &Path) -> ResourceExtras {
        let volume = |(nr, volume): (&VolumeNr, &VolumeEntry)| {
            let extras = VolumeExtras {
                minor: volume.minor,
                device: volume.device.clone(),
                frontends: vec![Frontend { kind: "nbd".to_owned(), address: nbd_uri(resource, *nr, nbd_socket) }],
                warnings: self.shard.view().volume(*nr).and_then(|view| view.undo_warning).into_iter().collect(),
            };
            (*nr, extras)
        };
        ResourceExtras {
            local: self.net.as_ref().map(|net| net.local.clone()),
            peer: self.net.as_ref().map(|net| net.peer.clone()),
            peer_name: self.net.as_ref().map_or_else(|| self.last_peer.clone(), |net| net.peer_name.clone()),
            congested: false,
            warnings: Vec::new(),
            volumes: self.volumes.iter().map(volume).collect(),
        }
    }
}

/// Name of a volume's NBD export.
#[must_use]
pub fn export_name(resource: &str, volume: VolumeNr) -> String {
    if volume.0 == 0 { resource.to_owned() } else { format!("{resource}/{volume}") }
}

/// URI of a volume's NBD export.
#[must_use]
pub fn nbd_uri(resource: &str, volume: VolumeNr, socket: &Path) -> String {
    let (name, socket) = (export_name(resource, volume), socket.to_string_lossy());
    format!("nbd+unix:///{}?socket={}", percent(&name), percent(&socket))
}

/// Escapes what has a meaning in a URI.
fn percent(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            _ => {
                // Writing into a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_resource_volume_and_socket() {
        let socket = Path::new("/run/my dir/nbd.sock");
        assert_eq!(nbd_uri("r0", VolumeNr(0), socket), "nbd+unix:///r0?socket=/run/my%20dir/nbd.sock");
        assert_eq!(nbd_uri("a&b", VolumeNr(1), Path::new("/s")), "nbd+unix:///a%26b/1?socket=/s");
    }
}
