//! The data family: replicated writes, discards, zeroes, write-same and the two kinds of data replies (wire.md 3.1,
//! 5.1, 5.2). Payload is carried as [`Bytes`], never copied here, and never printed.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::units::{BlockId, Sector, SectorRange, SeqNr};

use super::cursor::Reader;
use super::digest::Digest;
use super::error::Fault;
use super::feature::{FeatureFlags, Version};
use super::flags::flags;
use super::resync::{check_range, check_size};

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

/// Length of the common fixed structure of the family, in bytes.
pub(super) const P_DATA_LEN: u32 = 24;
/// Length with the size field of the packets about a range without data, in bytes.
pub(super) const P_TRIM_LEN: u32 = 28;
/// Largest block of a write-same: no kernel that sends one has larger logical blocks than its pages.
pub(super) const WSAME_BLOCK_MAX: u32 = 4096;

/// The common fixed structure.
struct Head {
    sector: Sector,
    block_id: BlockId,
    seq: SeqNr,
    flags: DpFlags,
}

impl Head {
    fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            sector: Sector(r.u64()?),
            block_id: BlockId(r.u64()?),
            seq: SeqNr(r.u32()?),
            flags: DpFlags(r.u32()?),
        })
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.sector.0);
        out.put_u64(self.block_id.0);
        out.put_u32(self.seq.0);
        out.put_u32(self.flags.0);
    }
}

/// A digest may be missing (no algorithm), so "too long" is the only fault.
fn digest(r: &mut Reader<'_>) -> Result<Digest, Fault> {
    Digest::new(r.take_rest()).ok_or(Fault::Truncated)
}

fn payload_len(payload: &Bytes) -> Result<u32, Fault> {
    u32::try_from(payload.len()).map_err(|_| Fault::Length { got: payload.len() as u64, min: 0, max: u32::MAX })
}

fn require(flags: DpFlags, needed: DpFlags, rule: &'static str) -> Result<(), Fault> {
    if flags.has(needed) {
        return Ok(());
    }
    Err(Fault::Field { field: "dp_flags", value: flags.0.into(), rule })
}

impl Data {
    pub(super) fn decode(r: &mut Reader<'_>, version: Version, payload: Bytes) -> Result<Self, Fault> {
        let Head { sector, block_id, seq, flags } = Head::decode(r)?;
        let data = Self { sector, block_id, seq, flags, digest: digest(r)?, payload };
        data.check(version)?;
        Ok(data)
    }

    pub(super) fn check(&self, version: Version) -> Result<(), Fault> {
        check_range(self.sector, payload_len(&self.payload)?, "length")?;
        if self.payload.is_empty() {
            require(self.flags, DpFlags::FLUSH, "a write without data must be a flush")?;
        }
        // Below version 95 these bits carry no information.
        let other = DpFlags::DISCARD.with(DpFlags::ZEROES).with(DpFlags::WSAME);
        if version.nr() >= 95 && self.flags.has_any(other) {
            let rule = "says that this is no plain write";
            return Err(Fault::Field { field: "dp_flags", value: self.flags.0.into(), rule });
        }
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let Self { sector, block_id, seq, flags, .. } = *self;
        Head { sector, block_id, seq, flags }.encode(out);
        out.put_slice(self.digest.as_bytes());
    }

    /// The range written; empty for a flush. `None` for an illegal packet made by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.payload.len() as u64)
    }
}

impl Trim {
    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let Head { sector, block_id, seq, flags } = Head::decode(r)?;
        Ok(Self { sector, block_id, seq, flags, size: r.u32()? })
    }

    /// `needed` is the flag that fits to the command.
    pub(super) fn check(&self, features: FeatureFlags, needed: DpFlags) -> Result<(), Fault> {
        check_size(self.size, features.discard_bytes_max(), "size")?;
        check_range(self.sector, self.size, "size")?;
        require(self.flags, needed, "does not fit to the command")
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let Self { sector, block_id, seq, flags, size } = *self;
        Head { sector, block_id, seq, flags }.encode(out);
        out.put_u32(size);
    }

    /// The range affected. `None` for an illegal packet made by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.size as u64)
    }
}

impl WriteSame {
    pub(super) fn decode(r: &mut Reader<'_>, features: FeatureFlags, payload: Bytes) -> Result<Self, Fault> {
        let Head { sector, block_id, seq, flags } = Head::decode(r)?;
        let same = Self { sector, block_id, seq, flags, size: r.u32()?, digest: digest(r)?, payload };
        same.check(features)?;
        Ok(same)
    }

    pub(super) fn check(&self, features: FeatureFlags) -> Result<(), Fault> {
        check_size(self.size, features.discard_bytes_max(), "size")?;
        check_range(self.sector, self.size, "size")?;
        let block = payload_len(&self.payload)?;
        if !block.is_power_of_two() || !self.size.is_multiple_of(block) {
            let rule = "must be a multiple of the block that follows";
            return Err(Fault::Field { field: "size", value: self.size.into(), rule });
        }
        require(self.flags, DpFlags::WSAME, "does not fit to the command")
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let Self { sector, block_id, seq, flags, .. } = *self;
        Head { sector, block_id, seq, flags }.encode(out);
        out.put_u32(self.size);
        out.put_slice(self.digest.as_bytes());
    }

    /// The range affected. `None` for an illegal packet made by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.size as u64)
    }
}

impl DataReply {
    pub(super) fn decode(r: &mut Reader<'_>, payload: Bytes) -> Result<Self, Fault> {
        let Head { sector, block_id, .. } = Head::decode(r)?;
        let reply = Self { sector, block_id, digest: digest(r)?, payload };
        reply.check()?;
        Ok(reply)
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        check_range(self.sector, payload_len(&self.payload)?, "length")
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let Self { sector, block_id, .. } = *self;
        Head { sector, block_id, seq: SeqNr(0), flags: DpFlags::NONE }.encode(out);
        out.put_slice(self.digest.as_bytes());
    }

    /// The range that the data belongs to. `None` for an illegal packet made by hand.
    #[must_use]
    pub const fn range(&self) -> Option<SectorRange> {
        SectorRange::from_bytes(self.sector, self.payload.len() as u64)
    }
}
