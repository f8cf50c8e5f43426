//! One value per packet of protocols 86 to 101. What may be sent when is in the table of [`super::kind`].

use std::fmt;

use bytes::Bytes;

use crate::units::GenId;

use super::ack::BlockAck;
use super::data::{Data, DataReply, Trim, WriteSame};
use super::digest::Digest;
use super::feature::Features;
use super::kind::Kind;
use super::params::{Protocol, SyncParam};
use super::resync::{BlockDesc, BlockReq};
use super::sizes::Sizes;
use super::state::StateWord;
use super::uuids::Uuids;

/// A packet without its header. The volume is in the header.
#[derive(Clone, PartialEq, Eq)]
pub enum Packet {
    /// First packet of the data socket.
    InitialData,
    /// First packet of the meta socket.
    InitialMeta,
    /// Versions and features offered.
    ConnectionFeatures(Features),
    /// Random bytes to be signed: 64 to 128.
    AuthChallenge(Bytes),
    /// HMAC of the peer's challenge.
    AuthResponse(Bytes),
    /// Connection settings.
    Protocol(Protocol),
    /// Connection settings changed while connected.
    ProtocolUpdate(Protocol),
    /// Resync settings (both commands).
    SyncParam(SyncParam),
    /// Device sizes and limits.
    Sizes(Sizes),
    /// Generation identifiers.
    Uuids(Uuids),
    /// The sender's state.
    State(StateWord),
    /// A resync starts; the new bitmap identifier of the source.
    SyncUuid(GenId),
    /// May this volume's state change so? In the sender's view.
    StateChgReq {
        /// Bits to change.
        mask: StateWord,
        /// Their new value.
        val: StateWord,
    },
    /// Answer to [`Packet::StateChgReq`]: a code of [`super::state::StateResult`].
    StateChgReply(i32),
    /// May the connection's state change so (disconnect)?
    ConnStChgReq {
        /// Bits to change.
        mask: StateWord,
        /// Their new value.
        val: StateWord,
    },
    /// Answer to [`Packet::ConnStChgReq`].
    ConnStChgReply(i32),
    /// A replicated write.
    Data(Data),
    /// A discard.
    Trim(Trim),
    /// Write zeroes.
    Zeroes(Trim),
    /// Write one block repeatedly.
    WriteSame(WriteSame),
    /// End of an epoch.
    Barrier {
        /// Opaque number of the epoch; to be echoed.
        barrier: u32,
    },
    /// All writes of an epoch are on stable storage.
    BarrierAck {
        /// Echo of the number.
        barrier: u32,
        /// Writes of the epoch, over all volumes.
        set_size: u32,
    },
    /// Hint: submit queued I/O.
    UnplugRemote,
    /// Protocol B: received.
    RecvAck(BlockAck),
    /// Protocol C: written.
    WriteAck(BlockAck),
    /// Written, and in sync.
    RsWriteAck(BlockAck),
    /// Dual primary: the write lost and counts as done.
    Superseded(BlockAck),
    /// Dual primary: postpone and submit again.
    RetryWrite(BlockAck),
    /// A write failed.
    NegAck(BlockAck),
    /// Application read.
    DataRequest(BlockReq),
    /// Data of an application read.
    DataReply(DataReply),
    /// An application read failed.
    NegDreply(BlockAck),
    /// Resync read.
    RsDataRequest(BlockReq),
    /// Resync read; zeroes may be answered without data.
    RsThinReq(BlockReq),
    /// Resync read if the digest differs.
    CsumRsRequest {
        /// The block.
        req: BlockReq,
        /// The requester's digest of it.
        digest: Digest,
    },
    /// Data of a resync read.
    RsDataReply(DataReply),
    /// The range is all zeroes.
    RsDeallocated(BlockDesc),
    /// The digest was equal: in sync.
    RsIsInSync(BlockAck),
    /// A resync read failed.
    NegRsDreply(BlockAck),
    /// The source went Ahead: request dropped.
    RsCancel(BlockAck),
    /// Mark the range dirty; no data follows.
    OutOfSync(BlockDesc),
    /// Chunk of a plain bitmap; empty at its end.
    Bitmap(Bytes),
    /// Chunk of a run-length coded bitmap: encoding byte and code.
    CompressedBitmap(Bytes),
    /// Verify: send the digest of this block.
    OvRequest(BlockReq),
    /// Digest of a block.
    OvReply {
        /// The block.
        req: BlockReq,
        /// The sender's digest of it; all zeroes after a read error.
        digest: Digest,
    },
    /// Verdict of a verify: `block_id` is [`super::ack::OV_IN_SYNC`] or [`super::ack::OV_OUT_OF_SYNC`].
    OvResult(BlockAck),
    /// Are you alive?
    Ping,
    /// Yes.
    PingAck,
    /// Legacy; read and ignored on both sockets.
    DelayProbe {
        /// Number of the probe.
        seq: u32,
        /// Its offset.
        offset: u32,
    },
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind().name();
        match self {
            Self::InitialData | Self::InitialMeta | Self::UnplugRemote | Self::Ping | Self::PingAck => {
                f.write_str(name)
            }
            Self::Data(p) => write!(f, "{name} {p:?}"),
            Self::Trim(p) | Self::Zeroes(p) => write!(f, "{name} {p:?}"),
            Self::WriteSame(p) => write!(f, "{name} {p:?}"),
            Self::DataReply(p) | Self::RsDataReply(p) => write!(f, "{name} {p:?}"),
            Self::AuthChallenge(b) | Self::AuthResponse(b) | Self::Bitmap(b) | Self::CompressedBitmap(b) => {
                write!(f, "{name} ({} bytes)", b.len())
            }
            Self::ConnectionFeatures(p) => write!(f, "{name} {p:?}"),
            Self::Protocol(p) | Self::ProtocolUpdate(p) => write!(f, "{name} {p:?}"),
            Self::SyncParam(p) => write!(f, "{name} {p:?}"),
            Self::Sizes(p) => write!(f, "{name} {p:?}"),
            Self::Uuids(p) => write!(f, "{name} {p:?}"),
            Self::State(p) => write!(f, "{name} {p:?}"),
            Self::SyncUuid(p) => write!(f, "{name} {p:?}"),
            Self::StateChgReq { mask, val } | Self::ConnStChgReq { mask, val } => {
                write!(f, "{name} {{ mask: {mask:?}, val: {val:?} }}")
            }
            Self::StateChgReply(code) | Self::ConnStChgReply(code) => write!(f, "{name} {code}"),
            Self::Barrier { barrier } => write!(f, "{name} {{ barrier: {barrier:#x} }}"),
            Self::BarrierAck { barrier, set_size } => {
                write!(f, "{name} {{ barrier: {barrier:#x}, set_size: {set_size} }}")
            }
            Self::RecvAck(p)
            | Self::WriteAck(p)
            | Self::RsWriteAck(p)
            | Self::Superseded(p)
            | Self::RetryWrite(p)
            | Self::NegAck(p)
            | Self::NegDreply(p)
            | Self::RsIsInSync(p)
            | Self::NegRsDreply(p)
            | Self::RsCancel(p)
            | Self::OvResult(p) => write!(f, "{name} {p:?}"),
            Self::DataRequest(p) | Self::RsDataRequest(p) | Self::RsThinReq(p) | Self::OvRequest(p) => {
                write!(f, "{name} {p:?}")
            }
            Self::CsumRsRequest { req, digest } | Self::OvReply { req, digest } => {
                write!(f, "{name} {req:?} digest {digest:?}")
            }
            Self::RsDeallocated(p) | Self::OutOfSync(p) => write!(f, "{name} {p:?}"),
            Self::DelayProbe { seq, offset } => write!(f, "{name} {{ seq: {seq}, offset: {offset} }}"),
        }
    }
}

impl Packet {
    /// The packet's row in the table. Resync settings without a `csums_alg` field count as the older command.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::InitialData => Kind::InitialData,
            Self::InitialMeta => Kind::InitialMeta,
            Self::ConnectionFeatures(_) => Kind::ConnectionFeatures,
            Self::AuthChallenge(_) => Kind::AuthChallenge,
            Self::AuthResponse(_) => Kind::AuthResponse,
            Self::Protocol(_) => Kind::Protocol,
            Self::ProtocolUpdate(_) => Kind::ProtocolUpdate,
            Self::SyncParam(p) if p.csums_alg.is_none() => Kind::SyncParam,
            Self::SyncParam(_) => Kind::SyncParam89,
            Self::Sizes(_) => Kind::Sizes,
            Self::Uuids(_) => Kind::Uuids,
            Self::State(_) => Kind::State,
            Self::SyncUuid(_) => Kind::SyncUuid,
            Self::StateChgReq { .. } => Kind::StateChgReq,
            Self::StateChgReply(_) => Kind::StateChgReply,
            Self::ConnStChgReq { .. } => Kind::ConnStChgReq,
            Self::ConnStChgReply(_) => Kind::ConnStChgReply,
            Self::Data(_) => Kind::Data,
            Self::Trim(_) => Kind::Trim,
            Self::Zeroes(_) => Kind::Zeroes,
            Self::WriteSame(_) => Kind::WriteSame,
            Self::Barrier { .. } => Kind::Barrier,
            Self::BarrierAck { .. } => Kind::BarrierAck,
            Self::UnplugRemote => Kind::UnplugRemote,
            Self::RecvAck(_) => Kind::RecvAck,
            Self::WriteAck(_) => Kind::WriteAck,
            Self::RsWriteAck(_) => Kind::RsWriteAck,
            Self::Superseded(_) => Kind::Superseded,
            Self::RetryWrite(_) => Kind::RetryWrite,
            Self::NegAck(_) => Kind::NegAck,
            Self::DataRequest(_) => Kind::DataRequest,
            Self::DataReply(_) => Kind::DataReply,
            Self::NegDreply(_) => Kind::NegDreply,
            Self::RsDataRequest(_) => Kind::RsDataRequest,
            Self::RsThinReq(_) => Kind::RsThinReq,
            Self::CsumRsRequest { .. } => Kind::CsumRsRequest,
            Self::RsDataReply(_) => Kind::RsDataReply,
            Self::RsDeallocated(_) => Kind::RsDeallocated,
            Self::RsIsInSync(_) => Kind::RsIsInSync,
            Self::NegRsDreply(_) => Kind::NegRsDreply,
            Self::RsCancel(_) => Kind::RsCancel,
            Self::OutOfSync(_) => Kind::OutOfSync,
            Self::Bitmap(_) => Kind::Bitmap,
            Self::CompressedBitmap(_) => Kind::CompressedBitmap,
            Self::OvRequest(_) => Kind::OvRequest,
            Self::OvReply { .. } => Kind::OvReply,
            Self::OvResult(_) => Kind::OvResult,
            Self::Ping => Kind::Ping,
            Self::PingAck => Kind::PingAck,
            Self::DelayProbe { .. } => Kind::DelayProbe,
        }
    }

    /// The bulk payload, sent right behind what [`super::codec::encode_head`] wrote.
    #[must_use]
    pub const fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Data(p) => Some(&p.payload),
            Self::WriteSame(p) => Some(&p.payload),
            Self::DataReply(p) | Self::RsDataReply(p) => Some(&p.payload),
            Self::Bitmap(b) | Self::CompressedBitmap(b) => Some(b),
            _ => None,
        }
    }
}
