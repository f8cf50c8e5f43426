//! The lines of `events2` (config-and-commands.md 15): a first dump, then what differs between two snapshots of a resource.

use std::fmt::Write as _;

use super::{connection_word, is_stand_alone, replication_word, resync_suspended, suspended, yes_no};
use crate::control::status::{Resource, Status, Volume};
use crate::wire::state::{ConnState, DiskState, Role};

/// Key and value.
type Field = (&'static str, String);

/// One object at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    kind: &'static str,
    identity: Vec<Field>,
    /// Shown when they changed.
    state: Vec<Field>,
    /// Shown when they changed, and only with statistics.
    settled: Vec<Field>,
    /// Always shown with statistics.
    volatile: Vec<Field>,
}

impl Object {
    fn is_of_connection(&self) -> bool {
        matches!(self.kind, "connection" | "peer-device")
    }

    fn line(&self, action: &str, state: &[Field], statistics: &[Field]) -> String {
        let mut line = format!("{action} {}", self.kind);
        for (key, value) in self.identity.iter().chain(state).chain(statistics) {
            // Writing into a String cannot fail.
            let _ = write!(line, " {key}:{value}");
        }
        line
    }
}

/// The dump at the start, without the end marker `exists -`.
#[must_use]
pub fn exists(status: &Status, statistics: bool) -> Vec<String> {
    status
        .resources
        .iter()
        .flat_map(|r| objects(r, !is_stand_alone(r)))
        .map(|o| whole(&o, "exists", statistics))
        .collect()
}

fn whole(object: &Object, action: &str, statistics: bool) -> String {
    let mut more = Vec::new();
    if statistics {
        // drbdsetup's order: the device's settled fields come behind its counters, the others have none.
        more.extend(object.volatile.iter().cloned());
        more.extend(object.settled.iter().cloned());
    }
    object.line(action, &object.state, &more)
}

/// What happened to a resource between two snapshots; `None` is "not there". A connection comes into being and goes in the
/// state StandAlone, as in the kernel; while it is StandAlone it is not there.
#[must_use]
pub fn changes(old: Option<&Resource>, new: Option<&Resource>, statistics: bool) -> Vec<String> {
    let is_linked = |r: Option<&Resource>| r.is_some_and(|r| !is_stand_alone(r));
    let mut before = old.map(|r| objects(r, true)).unwrap_or_default();
    let mut after = new.map(|r| objects(r, true)).unwrap_or_default();
    let mut lines = Vec::new();
    if !is_linked(old) {
        before.retain(|o| !o.is_of_connection());
    }
    if !is_linked(new) {
        let alone = old.filter(|r| !is_stand_alone(r)).map(|r| stand_alone(new.unwrap_or(r))).unwrap_or_default();
        lines.extend(alone.iter().filter_map(|o| change(before.iter().find(|old| same(old, o))?, o, statistics)));
        after.retain(|o| !o.is_of_connection());
    }
    for object in &after {
        let old = match before.iter().find(|o| same(o, object)) {
            Some(old) => Some(old.clone()),
            None if object.is_of_connection() => {
                let alone = new.map(stand_alone).unwrap_or_default().into_iter().find(|o| same(o, object));
                lines.extend(alone.as_ref().map(|o| whole(o, "create", statistics)));
                alone
            }
            None => {
                lines.push(whole(object, "create", statistics));
                None
            }
        };
        lines.extend(old.and_then(|old| change(&old, object, statistics)));
    }
    // Inner objects go first.
    for object in before.iter().rev() {
        if !after.iter().any(|o| same(o, object)) {
            lines.push(object.line("destroy", &[], &[]));
        }
    }
    lines
}

/// The connection of a resource and its peer devices as they would be without network configuration.
fn stand_alone(resource: &Resource) -> Vec<Object> {
    let mut alone = resource.clone();
    alone.connection_state = ConnState::StandAlone;
    alone.connection = None;
    for volume in &mut alone.volumes {
        volume.state = ConnState::StandAlone;
        volume.peer_disk = DiskState::DUnknown;
    }
    objects(&alone, true).into_iter().filter(Object::is_of_connection).collect()
}

fn same(a: &Object, b: &Object) -> bool {
    a.kind == b.kind && a.identity == b.identity
}

fn change(old: &Object, new: &Object, statistics: bool) -> Option<String> {
    let differing =
        |old: &[Field], new: &[Field]| new.iter().filter(|field| !old.contains(field)).cloned().collect::<Vec<_>>();
    let state = differing(&old.state, &new.state);
    let mut more = Vec::new();
    if statistics {
        let settled = differing(&old.settled, &new.settled);
        if state.is_empty() && settled.is_empty() {
            return None;
        }
        more.extend(new.volatile.iter().cloned());
        more.extend(settled);
    } else if state.is_empty() {
        return None;
    }
    Some(new.line("change", &state, &more))
}

/// A handler was started or ended.
#[must_use]
pub fn helper(resource: &str, volume: Option<(u16, u32)>, helper: &str, status: Option<u8>) -> String {
    let action = if status.is_some() { "response" } else { "call" };
    let mut line = format!("{action} helper name:{resource} peer-node-id:0 conn-name:peer");
    if let Some((volume, minor)) = volume {
        let _ = write!(line, " volume:{volume} minor:{minor}");
    }
    let _ = write!(line, " helper:{helper}");
    if let Some(status) = status {
        let _ = write!(line, " status:{status}");
    }
    line
}

/// The objects of a resource in drbdsetup's order; `named`: the connection has a name.
fn objects(resource: &Resource, named: bool) -> Vec<Object> {
    let name = || ("name", resource.name.clone());
    let connection_identity = || {
        let mut identity = vec![name(), ("peer-node-id", "0".to_owned())];
        if named {
            identity.push(("conn-name", "peer".to_owned()));
        }
        identity
    };
    let (peer_role, congested) =
        resource.connection.as_ref().map_or((Role::Unknown, false), |c| (c.peer_role, c.congested));
    let mut objects = vec![
        Object {
            kind: "resource",
            identity: vec![name()],
            state: vec![("role", resource.role.to_string()), ("suspended", suspended(resource.suspended))],
            settled: vec![("write-ordering", resource.write_ordering.clone())],
            volatile: Vec::new(),
        },
        Object {
            kind: "connection",
            identity: connection_identity(),
            state: vec![("connection", connection_word(resource).to_owned()), ("role", peer_role.to_string())],
            settled: vec![("congested", yes_no(congested).to_owned())],
            volatile: Vec::new(),
        },
    ];
    objects.extend(resource.volumes.iter().map(|v| device(resource, v)));
    objects.extend(resource.volumes.iter().map(|v| {
        let mut identity = connection_identity();
        identity.push(("volume", v.volume.to_string()));
        peer_device(v, identity)
    }));
    objects
}

fn device(resource: &Resource, volume: &Volume) -> Object {
    let c = &volume.counters;
    Object {
        kind: "device",
        identity: vec![
            ("name", resource.name.clone()),
            ("volume", volume.volume.to_string()),
            ("minor", volume.minor.to_string()),
        ],
        state: vec![("disk", volume.disk.to_string())],
        settled: vec![("al-suspended", yes_no(volume.al_suspended).to_owned()), ("blocked", volume.blocked.clone())],
        volatile: vec![
            ("size", volume.size_kib.to_string()),
            ("read", c.read_kib.to_string()),
            ("written", c.written_kib.to_string()),
            ("al-writes", c.al_writes.to_string()),
            ("bm-writes", c.bm_writes.to_string()),
            ("upper-pending", c.upper_pending.to_string()),
            ("lower-pending", c.lower_pending.to_string()),
        ],
    }
}

fn peer_device(volume: &Volume, identity: Vec<Field>) -> Object {
    let c = &volume.counters;
    Object {
        kind: "peer-device",
        identity,
        state: vec![
            ("replication", replication_word(volume).to_owned()),
            ("peer-disk", volume.peer_disk.to_string()),
            ("resync-suspended", resync_suspended(volume.resync_suspended)),
        ],
        settled: Vec::new(),
        volatile: vec![
            ("received", c.received_kib.to_string()),
            ("sent", c.sent_kib.to_string()),
            ("out-of-sync", volume.out_of_sync_kib.to_string()),
            ("pending", c.pending.to_string()),
            ("unacked", c.unacked.to_string()),
        ],
    }
}
