//! Requests and range descriptors: application reads, resync, verify, out-of-sync marks (wire.md 3.1). The `pad` fields
//! hold stale bytes from kernels: ignored when read, 0 when written.

use crate::units::{BlockId, Sector};

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
