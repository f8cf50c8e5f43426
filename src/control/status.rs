//! What there is to see of the daemon's resources: plain data for `status`, `role`, `/proc/drbd`, events and metrics.
//!
//! Independent of how the engine keeps things, so that it can travel and be kept; [`resource`] makes it from the engine's
//! snapshot and what only the node knows. Sizes and byte counters are in KiB, as DRBD shows them; states are DRBD 8.4's.
//! Source: config-and-commands.md 14 to 17, behaviour.md 13.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::problem::{Problem, problem};
use crate::config::model::Address;
use crate::engine::status as snapshot;
use crate::meta::MdFlags;
use crate::units::{GenId, Minor, Sectors, VolumeNr};
use crate::wire::state::{ConnState, DiskState, Role};

/// Version of this model; grows when a field changes its meaning (new fields do not count).
pub const STATUS_VERSION: u32 = 1;

/// Everything there is to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_VERSION`].
    pub version: u32,
    /// Resources sorted by name.
    pub resources: Vec<Resource>,
    /// What is wrong with the daemon as a whole, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Status {
    /// These resources, sorted.
    #[must_use]
    pub fn new(mut resources: Vec<Resource>) -> Self {
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        Self { version: STATUS_VERSION, resources, warnings: Vec::new() }
    }

    /// The resource of that name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == name)
    }

    /// Resource and volume of a minor number.
    #[must_use]
    pub fn minor(&self, minor: Minor) -> Option<(&Resource, &Volume)> {
        self.resources.iter().find_map(|r| Some((r, r.volumes.iter().find(|v| v.minor == minor)?)))
    }
}

/// Reasons for which I/O is frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suspended {
    /// The administrator said so.
    pub user: bool,
    /// No good data in reach.
    pub no_data: bool,
    /// The peer is being fenced.
    pub fencing: bool,
}

/// Reasons for which a resync is paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResyncSuspended {
    /// The administrator of this node said so.
    pub user: bool,
    /// The peer said so.
    pub peer: bool,
    /// Another volume comes first.
    pub dependency: bool,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    /// Name.
    pub name: String,
    /// Primary if any volume is.
    pub role: Role,
    /// Whether I/O is frozen.
    #[serde(default)]
    pub suspended: Suspended,
    /// `none`, `drain`, `flush` or `barrier`.
    pub write_ordering: String,
    /// Connection state, at most WFReportParams.
    pub connection_state: ConnState,
    /// The configured connection; `None` while StandAlone.
    #[serde(default)]
    pub connection: Option<Connection>,
    /// Why there is no connection, if the last attempt said so.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// Volumes in ascending order.
    pub volumes: Vec<Volume>,
    /// What is wrong, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A configured connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Name of the peer, if known.
    #[serde(default)]
    pub peer_name: Option<String>,
    /// Role of the peer.
    pub peer_role: Role,
    /// Replication protocol, A, B or C.
    pub protocol: char,
    /// Writers wait for the network.
    #[serde(default)]
    pub congested: bool,
    /// Own address.
    #[serde(default)]
    pub local: Option<Address>,
    /// Address of the peer.
    #[serde(default)]
    pub peer: Option<Address>,
    /// Agreed protocol version, while connected.
    #[serde(default)]
    pub agreed_version: Option<u32>,
    /// Agreed feature bits, while connected.
    #[serde(default)]
    pub agreed_features: u32,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Number.
    pub volume: VolumeNr,
    /// Minor number.
    pub minor: Minor,
    /// Device path as configured, whether or not there is such a device.
    #[serde(default)]
    pub device: Option<String>,
    /// Own role.
    pub role: Role,
    /// The peer's role.
    pub peer_role: Role,
    /// Connection and replication state.
    pub state: ConnState,
    /// Own disk.
    pub disk: DiskState,
    /// The peer's disk.
    pub peer_disk: DiskState,
    /// Path of the backing device, while attached.
    #[serde(default)]
    pub backing: Option<String>,
    /// Size of the device, 0 while unknown.
    pub size_kib: u64,
    /// Whether the resync is paused.
    #[serde(default)]
    pub resync_suspended: ResyncSuspended,
    /// What keeps I/O from the disk: `no`, `upper`, `lower`, or `upper,lower`.
    pub blocked: String,
    /// Counters since attach or connect.
    pub counters: Counters,
    /// Not equal on both nodes, as far as is known.
    pub out_of_sync_kib: u64,
    /// The activity log is not written at the moment.
    pub al_suspended: bool,
    /// Clients that have it open.
    pub open_count: u32,
    /// Received epochs that are not finished; 1 when idle.
    pub epochs: u64,
    /// A running or paused resync or verify.
    #[serde(default)]
    pub sync: Option<Sync>,
    /// Generation identifiers, while attached.
    #[serde(default)]
    pub uuids: Option<Uuids>,
    /// Which of the start-up timeouts counts.
    pub wait: WaitKind,
    /// Ways to reach the data.
    #[serde(default)]
    pub frontends: Vec<Frontend>,
    /// What is wrong, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Counters of `/proc/drbd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// ns: sent to the peer.
    pub sent_kib: u64,
    /// nr: received from the peer.
    pub received_kib: u64,
    /// dw: written to the disk.
    pub written_kib: u64,
    /// dr: read from the disk.
    pub read_kib: u64,
    /// al: transactions of the activity log.
    pub al_writes: u64,
    /// bm: bitmap pages written.
    pub bm_writes: u64,
    /// lo: local operations in flight.
    pub lower_pending: u64,
    /// pe: packets sent that expect an answer.
    pub pending: u64,
    /// ua: packets received and not answered.
    pub unacked: u64,
    /// ap: application requests in flight.
    pub upper_pending: u64,
}

/// Progress of a resync or verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// To do at its start.
    pub total_kib: u64,
    /// To do now.
    pub left_kib: u64,
    /// Done, 0 to 1000, in DRBD's coarse arithmetic.
    pub permille: u32,
    /// Estimated time to the end.
    pub finish_seconds: u64,
    /// Speed over the last seconds, per second.
    pub speed_kib: u64,
    /// Speed since the start, per second.
    pub average_kib: u64,
    /// The two progress lines of `/proc/drbd`.
    #[serde(default)]
    pub proc_lines: String,
}

/// Generation identifiers and flags, as get-gi shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuids {
    /// Current identifier.
    pub current: GenId,
    /// Bitmap identifier.
    pub bitmap: GenId,
    /// History.
    pub history: [GenId; 2],
    /// Flags of the metadata.
    pub flags: MdFlags,
}

#[derive(Serialize, Deserialize)]
struct UuidsForm {
    current: String,
    bitmap: String,
    history: [String; 2],
    flags: u32,
}

/// Identifiers as 16 hexadecimal digits: most readers of JSON cannot hold 64 bits.
impl Serialize for Uuids {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        UuidsForm {
            current: self.current.to_string(),
            bitmap: self.bitmap.to_string(),
            history: self.history.map(|id| id.to_string()),
            flags: self.flags.bits(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Uuids {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = UuidsForm::deserialize(deserializer)?;
        let id = |text: &str| u64::from_str_radix(text, 16).map(GenId).map_err(serde::de::Error::custom);
        Ok(Self {
            current: id(&form.current)?,
            bitmap: id(&form.bitmap)?,
            history: [id(&form.history[0])?, id(&form.history[1])?],
            flags: MdFlags::from_bits(form.flags),
        })
    }
}

/// Which of the start-up timeouts counts for a volume (behaviour.md 9.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitKind {
    /// `wfc-timeout`.
    #[default]
    Normal,
    /// `degr-wfc-timeout`.
    Degraded,
    /// `outdated-wfc-timeout`.
    PeerOutdated,
}

/// A way to reach the data of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// `nbd`, `ublk` or `kernel-nbd`.
    pub kind: String,
    /// A URI or a device path.
    pub address: String,
}

/// What the node knows of a resource beyond the engine's snapshot.
#[derive(Clone, Debug, Default)]
pub struct ResourceExtras {
    /// Own address of the configured connection.
    pub local: Option<Address>,
    /// The peer's address.
    pub peer: Option<Address>,
    /// The peer's name.
    pub peer_name: Option<String>,
    /// Writers wait for the network.
    pub congested: bool,
    /// What is wrong.
    pub warnings: Vec<String>,
    /// By volume.
    pub volumes: BTreeMap<VolumeNr, VolumeExtras>,
}

/// What the node knows of a volume beyond the engine's snapshot.
#[derive(Clone, Debug, Default)]
pub struct VolumeExtras {
    /// Minor number.
    pub minor: Minor,
    /// Configured device path.
    pub device: Option<String>,
    /// Ways to reach the data.
    pub frontends: Vec<Frontend>,
    /// What is wrong.
    pub warnings: Vec<String>,
}

/// The model of a resource, from the engine's snapshot and what the node adds.
#[must_use]
pub fn resource(engine: &snapshot::ResourceStatus, extras: &ResourceExtras) -> Resource {
    let states = || engine.volumes.iter().map(|v| &v.state);
    let peer_role = states().map(|s| s.peer).max_by_key(|role| match role {
        Role::Unknown => 0,
        Role::Secondary => 1,
        Role::Primary => 2,
    });
    let ordering = engine.volumes.iter().map(|v| v.write_ordering).next().unwrap_or('f');
    Resource {
        name: engine.name.clone(),
        role: engine.role(),
        suspended: Suspended {
            user: states().any(|s| s.susp),
            no_data: states().any(|s| s.susp_nod),
            fencing: states().any(|s| s.susp_fen),
        },
        write_ordering: match ordering {
            'b' => "barrier",
            'd' => "drain",
            'n' => "none",
            _ => "flush",
        }
        .to_owned(),
        connection_state: engine.connection.min(ConnState::WfReportParams),
        connection: engine.protocol.map(|protocol| Connection {
            peer_name: extras.peer_name.clone(),
            peer_role: peer_role.unwrap_or(Role::Unknown),
            protocol,
            congested: extras.congested,
            local: extras.local.clone(),
            peer: extras.peer.clone(),
            agreed_version: engine.agreed.map(|(version, _)| version),
            agreed_features: engine.agreed.map_or(0, |(_, features)| features),
        }),
        problem: engine.refused.as_ref().map(|why| problem(&engine.name, extras.peer_name.as_deref(), why)),
        volumes: engine.volumes.iter().map(|v| volume(v, extras.volumes.get(&v.nr))).collect(),
        warnings: extras.warnings.clone(),
    }
}

const fn kib(sectors: u64) -> u64 {
    sectors / 2
}

fn volume(engine: &snapshot::VolumeStatus, extras: Option<&VolumeExtras>) -> Volume {
    let state = &engine.state;
    let counters = &engine.counters;
    let Sectors(size) = engine.size;
    Volume {
        volume: engine.nr,
        minor: extras.map_or(Minor(0), |e| e.minor),
        device: extras.and_then(|e| e.device.clone()),
        role: state.role,
        peer_role: state.peer,
        state: state.conn,
        disk: state.disk,
        peer_disk: state.pdsk,
        backing: engine.disk_path.clone(),
        size_kib: kib(size),
        resync_suspended: ResyncSuspended { user: state.user_isp, peer: state.peer_isp, dependency: state.aftr_isp },
        blocked: if state.is_suspended() { "upper" } else { "no" }.to_owned(),
        counters: Counters {
            sent_kib: kib(counters.sent),
            received_kib: kib(counters.received),
            written_kib: kib(counters.disk_written),
            read_kib: kib(counters.disk_read),
            al_writes: counters.al_writes,
            bm_writes: counters.bm_writes,
            lower_pending: counters.local,
            pending: counters.pending,
            unacked: counters.unacked,
            upper_pending: counters.application,
        },
        out_of_sync_kib: engine.out_of_sync.saturating_mul(4),
        al_suspended: engine.al_suspended,
        open_count: engine.open_count,
        epochs: u64::try_from(engine.epochs).unwrap_or(u64::MAX),
        sync: engine.sync.as_ref().map(|s| Sync {
            total_kib: s.total.saturating_mul(4),
            left_kib: s.left.saturating_mul(4),
            permille: s.report.permille,
            finish_seconds: s.report.finish.as_secs(),
            speed_kib: s.report.speed_kib,
            average_kib: s.report.average_kib,
            proc_lines: s.proc_lines.clone(),
        }),
        uuids: engine.ids.map(|ids| Uuids {
            current: ids.current,
            bitmap: ids.bitmap,
            history: ids.history,
            flags: MdFlags::from_bits(engine.md_flags),
        }),
        wait: if engine.peer_outdated {
            WaitKind::PeerOutdated
        } else if engine.degraded_wait {
            WaitKind::Degraded
        } else {
            WaitKind::Normal
        },
        frontends: extras.map(|e| e.frontends.clone()).unwrap_or_default(),
        warnings: extras.map(|e| e.warnings.clone()).unwrap_or_default(),
    }
}
