//! The data family: replicated writes, discards, zeroes, write-same and the two kinds of data replies (wire.md 3.1, 5.1,
//! 5.2). Payload is carried as [`Bytes`], never copied here, and never printed.

use std::fmt;

use bytes::Bytes;

use crate::units::{BlockId, Sector, SeqNr};

use super::digest::Digest;
use super::flags::flags;

flags!(
    /// `dp_flags` of the data family (wire.md 5.2). Below version 95 only [`DpFlags::RW_SYNC`] and
    /// [`DpFlags::MAY_SET_IN_SYNC`] carry information. Unknown bits are kept and mean nothing.
    DpFlags(u32) {
        /// Obsolete, never sent, ignored.
        HARDBARRIER = 0x001;
        /// The application waits for this write.
        RW_SYNC = 0x002;
        /// The sender is in a sync state: acknowledge with `P_RS_WRITE_ACK` if the receiver is too.
        MAY_SET_IN_SYNC = 0x004;
        /// Flush the request queue after this (old kernels).
        UNPLUG = 0x008;
        /// Must be on stable storage before it is acknowledged as written.
        FUA = 0x010;
        /// Flush the volatile cache before this write.
        FLUSH = 0x020;
        /// Discard; in `P_ZEROES`: may unmap.
        DISCARD = 0x040;
        /// Send `P_RECV_ACK` (protocol B; from version 100 on).
        SEND_RECEIVE_ACK = 0x080;
        /// Send `P_WRITE_ACK` (protocol C; from version 100 on).
        SEND_WRITE_ACK = 0x100;
        /// Write same.
        WSAME = 0x200;
        /// Write zeroes.
        ZEROES = 0x400;
    }
);

/// `P_DATA`: a replicated write.
#[derive(Clone, PartialEq, Eq)]
pub struct Data {
    /// First sector.
    pub sector: Sector,
    /// The sender's opaque name of the request.
    pub block_id: BlockId,
    /// The sender's packet sequence number of this volume.
    pub seq: SeqNr,
    /// What is asked of the receiver.
    pub flags: DpFlags,
    /// Integrity digest of the payload; empty if the sender has no integrity algorithm.
    pub digest: Digest,
    /// The data; a multiple of 512 bytes; empty only with [`DpFlags::FLUSH`].
    pub payload: Bytes,
}

/// `P_TRIM` (with [`DpFlags::DISCARD`]) and `P_ZEROES` (with [`DpFlags::ZEROES`]): a range without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// First sector.
    pub sector: Sector,
    /// The sender's opaque name of the request.
    pub block_id: BlockId,
    /// The sender's packet sequence number of this volume.
    pub seq: SeqNr,
    /// What is asked of the receiver.
    pub flags: DpFlags,
    /// Bytes affected: a multiple of 512, not 0, within the agreed discard limit.
    pub size: u32,
}

/// `P_WSAME`: one logical block, repeated. Received from old kernels only; never sent to a kernel.
#[derive(Clone, PartialEq, Eq)]
pub struct WriteSame {
    /// First sector.
    pub sector: Sector,
    /// The sender's opaque name of the request.
    pub block_id: BlockId,
    /// The sender's packet sequence number of this volume.
    pub seq: SeqNr,
    /// What is asked of the receiver.
    pub flags: DpFlags,
    /// Bytes affected: a multiple of the payload's length.
    pub size: u32,
    /// Integrity digest of the payload; empty if the sender has no integrity algorithm.
    pub digest: Digest,
    /// The logical block to repeat, 512 to 4096 bytes.
    pub payload: Bytes,
}

/// `P_DATA_REPLY` (application read) and `P_RS_DATA_REPLY` (resync). The sequence number and the flags of the wire
/// structure are 0 in replies and ignored.
#[derive(Clone, PartialEq, Eq)]
pub struct DataReply {
    /// First sector, as requested.
    pub sector: Sector,
    /// Echo of the request; [`BlockId::SYNCER`] for resync.
    pub block_id: BlockId,
    /// Integrity digest of the payload; empty if the sender has no integrity algorithm.
    pub digest: Digest,
    /// The data; a multiple of 512 bytes, not empty.
    pub payload: Bytes,
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data")
            .field("sector", &self.sector.0)
            .field("block_id", &format_args!("{:#x}", self.block_id.0))
            .field("seq", &self.seq.0)
            .field("flags", &self.flags)
            .field("digest", &self.digest)
            .field("payload_len", &self.payload.len())
            .finish()
    }
}

impl fmt::Debug for WriteSame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteSame")
            .field("sector", &self.sector.0)
            .field("block_id", &format_args!("{:#x}", self.block_id.0))
            .field("seq", &self.seq.0)
            .field("flags", &self.flags)
            .field("size", &self.size)
            .field("digest", &self.digest)
            .field("payload_len", &self.payload.len())
            .finish()
    }
}

impl fmt::Debug for DataReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataReply")
            .field("sector", &self.sector.0)
            .field("block_id", &format_args!("{:#x}", self.block_id.0))
            .field("digest", &self.digest)
            .field("payload_len", &self.payload.len())
            .finish()
    }
}
