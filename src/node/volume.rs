//! The devices of one attached volume, and the engine's disk operations in the disk driver's terms.

use crate::disk::{BackingDevice, Completion, DiskError, DiskErrorKind, DiskOp as RawOp, Payload, PoolBuf};
use crate::engine::action::DiskOp;
use crate::engine::event::{DiskFailure, DiskResult};
use crate::meta::DeviceSizes;
use crate::units::{SectorRange, Sectors};

/// Data and metadata device of a volume; the same one twice for internal metadata.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Data.
    pub data: BackingDevice,
    /// Metadata.
    pub meta: BackingDevice,
}

impl Devices {
    /// The operation as the ring wants it.
    pub fn translate(&self, op: DiskOp) -> RawOp {
        let dev = self.data.clone();
        match op {
            DiskOp::Read(range) => RawOp::Read { dev, offset: range.start.bytes(), len: len_of(range), buf: None },
            DiskOp::Write { range, mut data, fua } => {
                let data = if data.len() == 1 {
                    Payload::One(data.pop().unwrap_or_default())
                } else {
                    Payload::Many(data.into_vec())
                };
                RawOp::Write { dev, offset: range.start.bytes(), data, fua }
            }
            DiskOp::Flush => RawOp::Flush { dev },
            DiskOp::Discard(range) => RawOp::Discard { dev, offset: range.start.bytes(), len: range.bytes() },
            DiskOp::WriteZeroes { range, may_unmap } => {
                RawOp::WriteZeroes { dev, offset: range.start.bytes(), len: range.bytes(), may_unmap }
            }
            DiskOp::MetaWrite { offset, data, fua } => {
                RawOp::Write { dev: self.meta.clone(), offset, data: Payload::One(data), fua }
            }
            DiskOp::MetaFlush => RawOp::Flush { dev: self.meta.clone() },
        }
    }

    /// How large the devices are now.
    ///
    /// # Errors
    /// What kept the system from telling.
    pub fn sizes_now(&self) -> Result<DeviceSizes, DiskError> {
        let data = Sectors::from_bytes_floor(self.data.refresh_size()?);
        let meta = Sectors::from_bytes_floor(self.meta.refresh_size()?);
        Ok(DeviceSizes { meta, data })
    }

    /// Refuses every operation from now on.
    pub fn close(&self) {
        self.data.close();
        self.meta.close();
    }
}

/// A length that does not fit is refused by the ring all the same.
fn len_of(range: SectorRange) -> usize {
    usize::try_from(range.bytes()).unwrap_or(usize::MAX)
}

/// How an operation went, in the engine's terms.
pub fn result_of(completion: Completion) -> DiskResult {
    match completion.result {
        Ok(()) => Ok(completion.buf.map(PoolBuf::freeze)),
        Err(error) => {
            Err(DiskFailure { unsupported: error.kind() == DiskErrorKind::Unsupported, text: error.to_string() })
        }
    }
}
