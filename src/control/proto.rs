//! Requests and replies, and the lines that carry them.
//!
//! The client sends [`RequestLine`]s, the daemon answers each in turn with one [`ReplyLine`] of the same `id`; after
//! [`Request::Watch`] its reply (a snapshot) is followed by any number of events with that `id`. Requests are primitives
//! like those that drbdsetup sends to the kernel; what is made of several of them (`up`) is the client's business, except
//! [`Request::Down`], which the kernel knows too. Paths are absolute: the daemon has another working directory.
//! Unknown fields are ignored, so that a newer client can talk to an older daemon.

use serde::{Deserialize, Serialize};

use super::error::ErrorReply;
use super::handlers::Handlers;
use super::split_brain::Explanation;
use super::status::{Resource, Status};
use crate::config::model::{Address, DiskOptions, MetaDisk, NetOptions, ResourceOptions};
use crate::units::{Minor, Sectors, VolumeNr};

/// Version of the protocol; both sides refuse another one.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest request line in bytes, line feed included. Arbitrary; 20 times the longest that a configuration can cause.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;

/// Longest line from the daemon in bytes, line feed included. Arbitrary; room for the status of some 10,000 volumes.
pub const REPLY_BYTES_MAX: usize = 16 << 20;

/// What is asked of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// Create a resource; done also if it exists (its options stay then, its handlers are those of this request).
    NewResource {
        /// Name.
        resource: String,
        /// Its options.
        #[serde(default)]
        options: ResourceOptions,
        /// Its helper programs; none are run for a resource that was never told any.
        #[serde(default)]
        handlers: Option<Box<Handlers>>,
    },
    /// Create a volume; done also if it exists with the same minor.
    NewVolume {
        /// Name of an existing resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// Minor number, unique in the daemon.
        minor: Minor,
        /// Configured device path, for links and messages.
        #[serde(default)]
        device: Option<String>,
        /// Options until a disk is attached.
        #[serde(default)]
        options: DiskOptions,
    },
    /// Attach the backing device; its metadata must be clean (`apply-al` comes before).
    Attach {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// Absolute path of the backing device or file.
        backing: String,
        /// Where the metadata are; absolute paths.
        meta_disk: MetaDisk,
        /// All options of the disk.
        #[serde(default)]
        options: DiskOptions,
    },
    /// Give the backing device up.
    Detach {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// Do not ask the peer and do not wait for local I/O.
        #[serde(default)]
        force: bool,
    },
    /// Configure the connection and start connecting.
    Connect {
        /// Name of the resource.
        resource: String,
        /// Address of this side.
        local: Address,
        /// Address to connect to.
        peer: Address,
        /// Name of the peer, for people.
        #[serde(default)]
        peer_name: Option<String>,
        /// All options of the connection: algorithms, secret, `discard-my-data` and `tentative` too.
        #[serde(default)]
        options: Box<NetOptions>,
    },
    /// Drop the connection and forget its configuration.
    Disconnect {
        /// Name of the resource.
        resource: String,
        /// Do not ask the peer.
        #[serde(default)]
        force: bool,
    },
    /// Become Primary.
    Primary {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// Consider the local data good.
        #[serde(default)]
        force: bool,
    },
    /// Become Secondary.
    Secondary {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// End the sessions of clients that hold it open.
        #[serde(default)]
        force: bool,
    },
    /// Mark the local disk Outdated.
    Outdate {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Full sync towards this node.
    Invalidate {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Full sync towards the peer.
    InvalidateRemote {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Start a new data generation.
    NewCurrentUuid {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// Clear the bitmap: on a fresh, connected pair this skips the first sync.
        #[serde(default)]
        clear_bitmap: bool,
    },
    /// Take over another size: the devices have grown, or less is wanted than there is.
    Resize {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// Wanted size; 0: the largest that both nodes have room for.
        #[serde(default)]
        size: Sectors,
        /// The new part needs no resync.
        #[serde(default)]
        assume_clean: bool,
        /// Grow without a connection as well.
        #[serde(default)]
        assume_peer_has_space: bool,
        /// Another number of stripes of the activity log.
        #[serde(default)]
        al_stripes: Option<u32>,
        /// Another size of a stripe, in KiB.
        #[serde(default)]
        al_stripe_size_kib: Option<u32>,
    },
    /// Pause resync.
    PauseSync {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Resume resync.
    ResumeSync {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Suspend the applications' I/O on all volumes of the resource.
    SuspendIo {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Let it go on, whatever suspended it.
    ResumeIo {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Change options of a volume with a disk.
    DiskOptions {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
        /// The options to change.
        options: DiskOptions,
        /// Options that are not named fall back to their defaults.
        #[serde(default)]
        set_defaults: bool,
    },
    /// Change options of a configured connection.
    NetOptions {
        /// Name of the resource.
        resource: String,
        /// The options to change.
        options: Box<NetOptions>,
        /// Options that are not named fall back to their defaults.
        #[serde(default)]
        set_defaults: bool,
    },
    /// Change options of a resource.
    ResourceOptions {
        /// Name of the resource.
        resource: String,
        /// The options to change.
        options: ResourceOptions,
        /// Options that are not named fall back to their defaults.
        #[serde(default)]
        set_defaults: bool,
    },
    /// Remove a volume that has no disk and no role.
    DelVolume {
        /// Name of the resource.
        resource: String,
        /// Number of the volume.
        volume: VolumeNr,
    },
    /// Remove a resource that has no volumes and no connection.
    DelResource {
        /// Name of the resource.
        resource: String,
    },
    /// Take a resource down: demote, disconnect, detach, remove volumes and resource. Done also if there is none.
    Down {
        /// Name of the resource.
        resource: String,
        /// End the sessions of clients that hold its volumes open.
        #[serde(default)]
        force: bool,
    },
    /// What there is to see; answered by [`Reply::Status`], without resources if the named one is unknown.
    Status {
        /// Only this resource.
        #[serde(default)]
        resource: Option<String>,
    },
    /// As `Status`, and from then on an event for every change.
    Watch {
        /// Only this resource.
        #[serde(default)]
        resource: Option<String>,
    },
    /// What is known of the last split brains of a resource; answered by [`Reply::SplitBrain`].
    SplitBrain {
        /// Name of the resource.
        resource: String,
        /// As many runs of blocks as fit into a reply, not only the first ones.
        #[serde(default)]
        all: bool,
    },
    /// Who answers; works with every version of the protocol.
    Version,
}

impl Request {
    /// Name of the resource that it is about.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        match self {
            Self::NewResource { resource, .. }
            | Self::NewVolume { resource, .. }
            | Self::Attach { resource, .. }
            | Self::Detach { resource, .. }
            | Self::Connect { resource, .. }
            | Self::Disconnect { resource, .. }
            | Self::Primary { resource, .. }
            | Self::Secondary { resource, .. }
            | Self::Outdate { resource, .. }
            | Self::Invalidate { resource, .. }
            | Self::InvalidateRemote { resource, .. }
            | Self::NewCurrentUuid { resource, .. }
            | Self::Resize { resource, .. }
            | Self::PauseSync { resource, .. }
            | Self::ResumeSync { resource, .. }
            | Self::SuspendIo { resource, .. }
            | Self::ResumeIo { resource, .. }
            | Self::DiskOptions { resource, .. }
            | Self::NetOptions { resource, .. }
            | Self::ResourceOptions { resource, .. }
            | Self::DelVolume { resource, .. }
            | Self::DelResource { resource }
            | Self::SplitBrain { resource, .. }
            | Self::Down { resource, .. } => Some(resource),
            Self::Status { resource } | Self::Watch { resource } => resource.as_deref(),
            Self::Version => None,
        }
    }

    /// Number of the volume that it is about.
    #[must_use]
    pub const fn volume(&self) -> Option<VolumeNr> {
        match self {
            Self::NewVolume { volume, .. }
            | Self::Attach { volume, .. }
            | Self::Detach { volume, .. }
            | Self::Primary { volume, .. }
            | Self::Secondary { volume, .. }
            | Self::Outdate { volume, .. }
            | Self::Invalidate { volume, .. }
            | Self::InvalidateRemote { volume, .. }
            | Self::NewCurrentUuid { volume, .. }
            | Self::Resize { volume, .. }
            | Self::PauseSync { volume, .. }
            | Self::ResumeSync { volume, .. }
            | Self::SuspendIo { volume, .. }
            | Self::ResumeIo { volume, .. }
            | Self::DiskOptions { volume, .. }
            | Self::DelVolume { volume, .. } => Some(*volume),
            _ => None,
        }
    }

    /// Whether it only looks.
    #[must_use]
    pub const fn is_query(&self) -> bool {
        matches!(self, Self::Status { .. } | Self::Watch { .. } | Self::SplitBrain { .. } | Self::Version)
    }
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// It was not done.
    Error(ErrorReply),
    /// What there is to see.
    Status(Status),
    /// What is known of split brains.
    SplitBrain(Box<Explanation>),
    /// Who answers.
    Version(Version),
}

impl From<ErrorReply> for Reply {
    fn from(error: ErrorReply) -> Self {
        Self::Error(error)
    }
}

impl<E: Into<ErrorReply>> From<Result<(), E>> for Reply {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(|error| Self::Error(error.into()), |()| Self::Done)
    }
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Program and its version: `udrbd 0.1.0`.
    pub daemon: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol: u32,
    /// Kinds of block devices that this build can make: `ublk`, `kernel-nbd`, `nbd`.
    #[serde(default)]
    pub frontends: Vec<String>,
    /// Directory of what survives a restart.
    #[serde(default)]
    pub state_dir: Option<String>,
}

impl Version {
    /// This build, with these frontends.
    #[must_use]
    pub fn this(frontends: &[&str]) -> Self {
        Self {
            daemon: concat!("udrbd ", env!("CARGO_PKG_VERSION")).to_owned(),
            protocol: PROTOCOL_VERSION,
            frontends: frontends.iter().map(|&f| f.to_owned()).collect(),
            state_dir: None,
        }
    }
}

/// What a watcher hears. Each change of state is one event with the state after it, in order; counters travel along but
/// cause no event of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    /// A resource came into being or changed.
    Resource(Box<Resource>),
    /// A resource is gone.
    Removed {
        /// Its name.
        resource: String,
    },
    /// A handler program was started (`status` is `None`) or ended.
    Helper {
        /// Name of the resource.
        resource: String,
        /// Volume and minor, for handlers of one volume.
        #[serde(default)]
        volume: Option<(VolumeNr, Minor)>,
        /// Name of the handler.
        helper: String,
        /// Its exit code.
        #[serde(default)]
        status: Option<u8>,
    },
    /// The watcher was too slow: this many events are lost; those of every resource as it is follow.
    Skipped {
        /// Lost events.
        count: u64,
    },
}

impl Event {
    /// Name of the resource that it is about.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        match self {
            Self::Resource(resource) => Some(&resource.name),
            Self::Removed { resource } | Self::Helper { resource, .. } => Some(resource),
            Self::Skipped { .. } => None,
        }
    }
}

/// A line of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLine {
    /// [`PROTOCOL_VERSION`].
    pub v: u32,
    /// Chosen by the client; comes back with the answer.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What can be read from a request line whose request is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestEnvelope {
    /// Protocol version of the client.
    #[serde(default)]
    pub v: u32,
    /// Identifier of the request.
    #[serde(default)]
    pub id: u64,
}

/// A line of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplyLine {
    /// The request that it belongs to.
    pub id: u64,
    /// Answer or event.
    #[serde(flatten)]
    pub message: Message,
}

/// What a line of the daemon carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The answer.
    Reply(Reply),
    /// Something happened; only after [`Request::Watch`].
    Event(Event),
}

/// A line as bytes, line feed included.
#[must_use]
pub fn encode<T: Serialize>(line: &T) -> Vec<u8> {
    // These types hold no maps with keys that JSON cannot write.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads a request line.
///
/// # Errors
/// What to answer, and with which identifier.
pub fn decode_request(line: &[u8]) -> Result<RequestLine, (u64, ErrorReply)> {
    let envelope: RequestEnvelope = serde_json::from_slice(line)
        .map_err(|e| (0, ErrorReply::usage(format!("the request is not a JSON object of this protocol: {e}"))))?;
    let parsed = serde_json::from_slice::<RequestLine>(line);
    let version_only = matches!(parsed, Ok(RequestLine { request: Request::Version, .. }));
    if envelope.v != PROTOCOL_VERSION && !version_only {
        let text = format!("protocol version {} is not {PROTOCOL_VERSION}", envelope.v);
        return Err((envelope.id, ErrorReply::usage(text).detail("update drbdctl and udrbd together")));
    }
    parsed.map_err(|e| (envelope.id, ErrorReply::usage(format!("the request cannot be understood: {e}"))))
}
