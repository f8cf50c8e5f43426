//! The `block_ack` family on the meta socket (wire.md 3.1).

use bytes::{BufMut, BytesMut};

use crate::units::{BlockId, Sector, SectorRange, SeqNr};

use super::cursor::Reader;
use super::error::Fault;
use super::resync::check_range;

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

impl BlockAck {
    /// Length on the wire in bytes.
    pub const LEN: usize = 24;

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let ack =
            Self { sector: Sector(r.u64()?), block_id: BlockId(r.u64()?), blksize: r.u32()?, seq: SeqNr(r.u32()?) };
        ack.check()?;
        Ok(ack)
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        check_range(self.sector, self.blksize, "blksize")
    }

    pub(super) fn check_verdict(&self) -> Result<(), Fault> {
        if self.block_id == OV_IN_SYNC || self.block_id == OV_OUT_OF_SYNC {
            return Ok(());
        }
        Err(Fault::Field { field: "block_id", value: self.block_id.0, rule: "must be a verdict, 4711 or 4712" })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.sector.0);
        out.put_u64(self.block_id.0);
        out.put_u32(self.blksize);
        out.put_u32(self.seq.0);
    }

    /// The range acknowledged; may be empty. Decoded acknowledgements are always legal; `None` for an illegal one made
    /// by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.blksize as u64)
    }
}
