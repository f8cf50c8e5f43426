//! What must be done: orders from the engine to its drivers. Order is kept among packets of one socket only; the driver
//! may batch and reorder the rest (what must wait is ordered by a later event's actions).

use bytes::Bytes;
use smallvec::SmallVec;

use crate::engine::divergence::Divergence;
use crate::engine::event::{CommandId, HandlerRun, LinkNr, OpId, RequestId, Socket, Timer};
use crate::engine::handler::Handler;
use crate::engine::handshake::RefuseReason;
use crate::engine::state::VolumeState;
use crate::engine::undo::UndoOrder;
use crate::units::{GenId, SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::kind::Kind;
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, StateResult};

/// Why a client request failed; frontends map it to their errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientError {
    /// Neither local nor remote data (EIO).
    Io,
    /// The volume is not Primary (EROFS or EPERM).
    NotPrimary,
    /// Beyond the end of the device (EINVAL / ENOSPC).
    OutOfRange,
    /// The device went away (ESHUTDOWN).
    Gone,
    /// Not supported by the volume now (EOPNOTSUPP).
    Unsupported,
}

/// Data of a read, in order; writes complete with an empty list.
pub type ClientResult = Result<SmallVec<[Bytes; 1]>, ClientError>;

/// A disk operation. Data ranges are relative to the data device; metadata offsets are absolute on the metadata device.
#[derive(Clone, Debug, PartialEq)]
pub enum DiskOp {
    /// Read data.
    Read(SectorRange),
    /// Write data; the pieces follow each other.
    Write {
        /// Where.
        range: SectorRange,
        /// Payload.
        data: SmallVec<[Bytes; 1]>,
        /// Durable before completion.
        fua: bool,
    },
    /// Flush the data device.
    Flush,
    /// Discard data.
    Discard(SectorRange),
    /// Write zeroes to the data device.
    WriteZeroes {
        /// Where.
        range: SectorRange,
        /// May be unmapped.
        may_unmap: bool,
    },
    /// Write metadata.
    MetaWrite {
        /// Bytes from the start of the metadata device; a multiple of 4096.
        offset: u64,
        /// A multiple of 4096 bytes.
        data: Bytes,
        /// Durable before completion.
        fua: bool,
    },
    /// Flush the metadata device.
    MetaFlush,
}

/// An error with DRBD's number and text (behaviour.md 14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The state machine refused.
    State(StateResult),
    /// DRBD's `ERR_*` number and more words.
    Code {
        /// Number, 101..=170.
        code: u16,
        /// More for people; may be empty.
        detail: String,
    },
}

/// Orders to the link driver.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkAction {
    /// Listen and connect until both sockets, features and authentication are there, then report `Up`.
    Start,
    /// Send what is queued, then close both sockets of this link.
    Close {
        /// Which link.
        nr: LinkNr,
    },
    /// Stop trying to connect (StandAlone).
    Stop,
}

/// Something that people and event streams want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A state change, old and new.
    State {
        /// Which volume.
        volume: VolumeNr,
        /// Before.
        old: VolumeState,
        /// After.
        new: VolumeState,
    },
    /// The size of a volume changed (0: no size known).
    Size {
        /// Which volume.
        volume: VolumeNr,
        /// New size.
        size: Sectors,
    },
    /// Both nodes have changed their data: what is known of it.
    SplitBrain(Box<Divergence>),
    /// A data generation begins that the peer does not have.
    Generation {
        /// Which volume.
        volume: VolumeNr,
        /// Its identifier.
        current: GenId,
    },
    /// The metadata lie where a device of this size has them: worth remembering, should the device grow while it is not
    /// attached.
    MetaMoved {
        /// Which volume.
        volume: VolumeNr,
        /// Size of the metadata device.
        device: Sectors,
    },
    /// A line for the log.
    Log {
        /// How loud.
        level: Level,
        /// About which volume, if one.
        volume: Option<VolumeNr>,
        /// The text, without prefix.
        text: String,
        /// What it says, for programs.
        fact: Option<Fact>,
    },
}

/// What a line of the log says, as data: nobody has to look for it in a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The identifiers of both nodes were compared; with the last line of it.
    Handshake {
        /// Number of the rule that matched, one of [`RULES`](super::gi::RULES).
        rule: u16,
        /// Both nodes had changed their data, whatever came of it.
        split_brain: bool,
        /// Why there is no way.
        refused: Option<RefuseReason>,
    },
    /// The peer sent what it must not send; the connection is dropped.
    Illegal {
        /// A packet that does not fit the state of the volume, where that is what is wrong.
        unexpected: Option<(Kind, ConnState)>,
    },
}

/// Loudness of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Normal progress.
    Info,
    /// An operator should look.
    Warn,
    /// Data or service are affected.
    Error,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a disk operation.
    Disk {
        /// For its completion.
        op: OpId,
        /// Which volume's disk.
        volume: VolumeNr,
        /// What.
        io: DiskOp,
    },
    /// Close the devices of a volume: no operation is in flight, none will follow; answer with `DiskClosed`.
    CloseDisk {
        /// Which volume.
        volume: VolumeNr,
    },
    /// Queue a packet.
    Send {
        /// On which socket of the current link.
        socket: Socket,
        /// The header's volume.
        volume: VolumeNr,
        /// What.
        packet: Packet,
    },
    /// Something for the link driver.
    Link(LinkAction),
    /// A client request is done.
    Complete {
        /// Which.
        id: RequestId,
        /// How.
        result: ClientResult,
    },
    /// A command is done.
    CommandDone {
        /// Which.
        id: CommandId,
        /// How.
        result: Result<(), CommandError>,
    },
    /// The volume may no longer be used by clients: end their sessions.
    EndSessions {
        /// Which volume.
        volume: VolumeNr,
        /// For people.
        reason: String,
    },
    /// Run a helper program; its end is reported by [`Event::HandlerDone`](super::event::Event::HandlerDone), always.
    RunHandler {
        /// For its end.
        run: HandlerRun,
        /// Which event.
        handler: Handler,
        /// The volume that it is about; `None` for events of the connection.
        volume: Option<VolumeNr>,
    },
    /// Something for the undo file of a volume.
    Undo {
        /// Which volume.
        volume: VolumeNr,
        /// What.
        order: UndoOrder,
    },
    /// Set (or move) a timer.
    SetTimer {
        /// Which.
        timer: Timer,
        /// When it fires.
        at: Timestamp,
    },
    /// Take a timer back.
    CancelTimer(Timer),
    /// Tell people.
    Notice(Notice),
    /// There is more work of one sliced job: call again with [`Event::Continue`](super::event::Event::Continue).
    Continue,
}
