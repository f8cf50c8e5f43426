//! Requests and range descriptors: application reads, resync, verify, out-of-sync marks (wire.md 3.1). The `pad` fields
//! hold stale bytes from kernels: ignored when read, 0 when written.

use bytes::{BufMut, BytesMut};

use crate::limits::{DEVICE_SECTORS_MAX, SECTOR_SIZE};
use crate::units::{BlockId, Sector, SectorRange};

use super::cursor::Reader;
use super::error::Fault;
use super::feature::Version;

/// `block_req`: a request for a block or for its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReq {
    /// First sector.
    pub sector: Sector,
    /// Opaque; [`BlockId::SYNCER`] for resync and verify.
    pub block_id: BlockId,
    /// Bytes: a multiple of 512, not 0, within the agreed request limit.
    pub blksize: u32,
}

/// `block_desc`: a range without an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDesc {
    /// First sector.
    pub sector: Sector,
    /// Bytes: a multiple of 512, not 0.
    pub blksize: u32,
}

/// No legal position on a device is beyond this sector, so byte offsets of legal ranges cannot overflow.
const SECTOR_END_MAX: u64 = DEVICE_SECTORS_MAX;

/// Checks a range: `bytes` a multiple of 512 (the field `field`), its end on a device of legal size.
pub(super) fn check_range(sector: Sector, bytes: u32, field: &'static str) -> Result<(), Fault> {
    let Some(range) = SectorRange::from_bytes(sector, bytes.into()) else {
        return Err(if u64::from(bytes).is_multiple_of(SECTOR_SIZE) {
            Fault::Field { field: "sector", value: sector.0, rule: "the range ends beyond any device" }
        } else {
            Fault::Field { field, value: bytes.into(), rule: "must be a multiple of 512" }
        });
    };
    if range.end().0 > SECTOR_END_MAX {
        return Err(Fault::Field { field: "sector", value: sector.0, rule: "the range ends beyond any device" });
    }
    Ok(())
}

/// Checks that `bytes` is 1 to `max`.
pub(super) fn check_size(bytes: u32, max: u32, field: &'static str) -> Result<(), Fault> {
    match bytes {
        0 => Err(Fault::Field { field, value: 0, rule: "must not be 0" }),
        b if b > max => Err(Fault::Field { field, value: b.into(), rule: "is larger than the agreed limit" }),
        _ => Ok(()),
    }
}

impl BlockReq {
    /// Length on the wire in bytes.
    pub const LEN: usize = 24;

    pub(super) fn decode(r: &mut Reader<'_>, version: Version) -> Result<Self, Fault> {
        let req = Self { sector: Sector(r.u64()?), block_id: BlockId(r.u64()?), blksize: r.u32()? };
        r.u32()?;
        req.check(version)?;
        Ok(req)
    }

    pub(super) fn check(&self, version: Version) -> Result<(), Fault> {
        check_size(self.blksize, version.request_bytes_max(), "blksize")?;
        check_range(self.sector, self.blksize, "blksize")
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.sector.0);
        out.put_u64(self.block_id.0);
        out.put_u32(self.blksize);
        out.put_u32(0);
    }

    /// The range asked for. Decoded requests are always legal; `None` for an illegal one made by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.blksize as u64)
    }
}

impl BlockDesc {
    /// Length on the wire in bytes.
    pub const LEN: usize = 16;

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let desc = Self { sector: Sector(r.u64()?), blksize: r.u32()? };
        r.u32()?;
        desc.check()?;
        Ok(desc)
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        check_size(self.blksize, u32::MAX, "blksize")?;
        check_range(self.sector, self.blksize, "blksize")
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.sector.0);
        out.put_u32(self.blksize);
        out.put_u32(0);
    }

    /// The range described. Decoded descriptors are always legal; `None` for an illegal one made by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.blksize as u64)
    }
}
