//! What happens to a resource: facts, in the past tense. The driver (or the simulator) hands each to
//! [`Engine::handle`](super::Engine::handle).

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::dirty::Bitmap;
use crate::engine::options::{DiskOptions, NetOptions, ResizeOptions, ResourceOptions};
use crate::engine::undo::{SavedBlocks, UndoAnswer};
use crate::meta::{DeviceSizes, Layout, Superblock};
use crate::units::{AlExtent, AlSlot, SectorRange, Sectors, VolumeNr};
pub use crate::wire::kind::Socket;
use crate::wire::packet::Packet;

/// Identifies a client request for its completion; chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Identifies an operator command for its result; chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// Identifies a disk operation: slab index and generation, so that a late completion is never mistaken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Identifies a run of a helper program for its exit code; chosen by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerRun(pub u64);

/// Counts the established links of a resource; events of an older link are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkNr(pub u64);

/// What a client asks for. Ranges are checked by the engine against the device size.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientRequest {
    /// Read a range, at most [`CLIENT_REQUEST_BYTES_MAX`](crate::limits::CLIENT_REQUEST_BYTES_MAX).
    Read(SectorRange),
    /// Write; the pieces follow each other and add up to the range.
    Write {
        /// Where.
        range: SectorRange,
        /// Payload in pieces of at most 1 MiB, each a multiple of 512 bytes.
        data: SmallVec<[Bytes; 1]>,
        /// Durable before completion.
        fua: bool,
    },
    /// Make everything completed so far durable.
    Flush,
    /// Discard: contents read as zeroes afterwards.
    Discard(SectorRange),
    /// Write zeroes.
    WriteZeroes {
        /// Where.
        range: SectorRange,
        /// The range may be unmapped.
        may_unmap: bool,
        /// Durable before completion.
        fua: bool,
    },
}

/// Why a disk operation failed, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFailure {
    /// Text with path, offset and cause, for the log.
    pub text: String,
    /// The device does not support the operation (only discards and zeroes).
    pub unsupported: bool,
}

/// Result of a disk operation; reads bring their data.
pub type DiskResult = Result<Option<Bytes>, DiskFailure>;

/// Everything about the link to the peer that is not a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEvent {
    /// Both sockets are chosen, features agreed, authentication passed.
    Up {
        /// Number of this link, larger than all before.
        nr: LinkNr,
        /// Agreed protocol version.
        version: u32,
        /// Agreed feature bits.
        features: u32,
        /// This node accepted the meta socket (wire.md 1.4).
        resolve_conflicts: bool,
        /// The peer is a udrbd that negotiated relaxed epochs.
        relaxed_epochs: bool,
    },
    /// The attempt ended for a reason that retrying does not mend; the driver has stopped trying.
    Refused {
        /// For people.
        reason: String,
    },
    /// A socket of the link broke.
    Lost {
        /// Which link.
        nr: LinkNr,
        /// On which socket it was seen.
        socket: Socket,
        /// The bytes were at fault, not the transport.
        protocol_error: bool,
        /// The connection must not be retried (wire.md 13.2: unknown command on the meta socket).
        fatal: bool,
        /// For people.
        reason: String,
    },
}

/// A disk that the driver opened and read, ready to attach.
#[derive(Debug)]
pub struct AttachedDisk {
    /// Verified superblock.
    pub superblock: Superblock,
    /// Where everything is.
    pub layout: Layout,
    /// Bitmap as read from disk (sized to the superblock's size), or empty when a full sync is due.
    pub bitmap: Bitmap,
    /// Slots of the activity log as found (after a clean `apply-al`: empty).
    pub al_slots: Vec<(AlSlot, AlExtent)>,
    /// Transaction number to use next.
    pub al_next_transaction: u32,
    /// Largest usable data size.
    pub capacity: Sectors,
    /// Sizes of the devices when they were opened.
    pub sizes: DeviceSizes,
    /// Capabilities of the data device.
    pub geometry: Geometry,
    /// Data and metadata share one device (a metadata flush covers both).
    pub shared_device: bool,
    /// Path of the data device, for messages.
    pub path: String,
    /// An undo file is being filled: what is in it.
    pub undo: Option<SavedBlocks>,
}

/// What a data device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes.
    pub logical_block_size: u32,
    /// Bytes.
    pub physical_block_size: u32,
    /// Discards work.
    pub discard: bool,
    /// Discarded ranges read as zeroes.
    pub discard_zeroes: bool,
}

/// Operator commands, like those that drbdsetup sends to the kernel.
#[derive(Debug)]
pub enum Command {
    /// Create a volume.
    NewVolume(DiskOptions),
    /// Remove an unconfigured volume.
    DelVolume,
    /// Attach an opened disk with these options.
    Attach(Box<AttachedDisk>, DiskOptions),
    /// Give the disk up.
    Detach {
        /// Do not ask the peer and do not wait for local I/O.
        force: bool,
    },
    /// Configure the connection and start connecting.
    Connect(Box<NetOptions>),
    /// Drop the connection and forget its configuration.
    Disconnect {
        /// Do not ask the peer.
        force: bool,
    },
    /// Become Primary.
    Primary {
        /// Consider the local data good.
        force: bool,
    },
    /// Become Secondary.
    Secondary,
    /// Mark the local disk Outdated.
    Outdate,
    /// Full sync towards this node.
    Invalidate,
    /// Full sync towards the peer.
    InvalidateRemote,
    /// New data generation.
    NewCurrentUuid {
        /// Clear the bitmap (skips the first sync).
        clear_bitmap: bool,
    },
    /// Take over another size: the devices have grown, or the administrator wants less than there is.
    Resize(ResizeOptions),
    /// Pause resync.
    PauseSync,
    /// Resume resync.
    ResumeSync,
    /// Suspend the applications' I/O, on all volumes.
    SuspendIo,
    /// Let it go on, whatever suspended it.
    ResumeIo,
    /// Change options of a volume.
    DiskOptions(DiskOptions),
    /// Change options of the connection.
    NetOptions(Box<NetOptions>),
    /// Change options of the resource.
    ResourceOptions(ResourceOptions),
}

/// Timers that the engine sets; each is one shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Meta socket idle: send a ping, or the ping stayed unanswered.
    Ping,
    /// The oldest unanswered request or barrier is checked.
    RequestTimeout,
    /// The next resync requests of a volume are due.
    Resync(VolumeNr),
    /// Received epochs wait for one flush.
    EpochFlush,
    /// The barrier of a closed epoch goes out though no write follows.
    Barrier,
    /// Changed bitmap pages of a volume are written.
    LazyBitmap(VolumeNr),
    /// The oldest disk operation of a volume is checked.
    DiskTimeout(VolumeNr),
    /// A volume has been Ahead long enough.
    LeaveAhead(VolumeNr),
    /// A command retries after a transient state.
    CommandRetry,
    /// Acknowledgements that a packet of the data socket waits for did not come.
    MissingAcks,
    /// Own writes that the peer refused are looked at.
    Conflict,
    /// The undo file of a volume was asked for long ago.
    UndoFile(VolumeNr),
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// An operator command for a volume (or for the connection: any volume).
    Command {
        /// For the result.
        id: CommandId,
        /// Which volume; ignored by connection commands.
        volume: VolumeNr,
        /// What is asked.
        command: Command,
    },
    /// A client request arrived.
    Client {
        /// For the completion.
        id: RequestId,
        /// Which volume.
        volume: VolumeNr,
        /// What is asked.
        request: ClientRequest,
    },
    /// A client opened the volume; counts as an open until [`Event::Closed`].
    Opened {
        /// Which volume.
        volume: VolumeNr,
    },
    /// A client closed the volume.
    Closed {
        /// Which volume.
        volume: VolumeNr,
    },
    /// A disk operation ended.
    Disk {
        /// Which operation.
        op: OpId,
        /// How.
        result: DiskResult,
    },
    /// The sizes of an attached volume's devices, looked at again: before [`Command::Resize`] and before every `P_SIZES`.
    DiskSize {
        /// Which volume.
        volume: VolumeNr,
        /// The sizes.
        sizes: DeviceSizes,
    },
    /// The driver has closed the devices of a volume after [`Action::CloseDisk`](super::action::Action::CloseDisk).
    DiskClosed {
        /// Which volume.
        volume: VolumeNr,
    },
    /// Something happened to the link.
    Link(LinkEvent),
    /// A packet arrived.
    Packet {
        /// On which link.
        link: LinkNr,
        /// On which socket.
        socket: Socket,
        /// The header's volume; 0 below version 100.
        volume: VolumeNr,
        /// Decoded and checked against the packet table.
        packet: Packet,
    },
    /// Packets were handed to the TCP stack completely.
    Sent {
        /// On which link.
        link: LinkNr,
        /// On which socket.
        socket: Socket,
        /// Packets since the link came up.
        packets: u64,
    },
    /// A helper program that [`Action::RunHandler`](super::action::Action::RunHandler) asked for has ended.
    HandlerDone {
        /// Which run.
        run: HandlerRun,
        /// Its exit code, 0..=255; 0 also where no program is configured or it could not be started.
        code: u8,
    },
    /// An answer to [`Action::Undo`](super::action::Action::Undo).
    Undo {
        /// Which volume.
        volume: VolumeNr,
        /// What it says.
        answer: UndoAnswer,
    },
    /// A timer fired.
    Timer(Timer),
    /// The driver answers [`Action::Continue`](super::action::Action::Continue).
    Continue,
    /// The driver has handed over everything that was ready: what was put off until now is done.
    BatchEnd,
}
