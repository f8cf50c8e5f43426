//! The `block_ack` family on the meta socket (wire.md 3.1).

use crate::units::{BlockId, Sector, SeqNr};

/// Answer to one write, read, resync or verify packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockAck {
    /// Echo of the request.
    pub sector: Sector,
    /// Echo of the request; [`BlockId::SYNCER`] for resync; a verdict ([`OV_IN_SYNC`], [`OV_OUT_OF_SYNC`]) in
    /// `P_OV_RESULT`; meaningless in `P_RS_IS_IN_SYNC` from a kernel.
    pub block_id: BlockId,
    /// Bytes, a multiple of 512; 0 for a flush and for a drained discard.
    pub blksize: u32,
    /// The sender's packet sequence number of this volume.
    pub seq: SeqNr,
}

/// `block_id` of a `P_OV_RESULT` whose block is equal on both nodes.
pub const OV_IN_SYNC: BlockId = BlockId(4711);
/// `block_id` of a `P_OV_RESULT` whose block differs.
pub const OV_OUT_OF_SYNC: BlockId = BlockId(4712);
