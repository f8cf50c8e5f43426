//! Faults below the ring, for tests: a volatile write cache, late and reordered completions, errors, power cuts. Never in a
//! daemon that is shipped (feature `sim`, and this crate's own tests).
//!
//! * [`Medium`] (`medium`): what one backing file would hold after a power cut, and the faults that are drawn for it.
//! * `gate`: stands between a ring and its back ends. Operations on a device with a medium are held back and reordered on
//!   both ways, fail as drawn, and are written down; they are executed by the real back end, on the real file.
//!
//! A medium that is installed for a file takes effect for every device that is opened on it afterwards. The file holds what
//! readers see; the medium remembers what of it is durable (docs/differences.md, "What is assumed of a medium").
//! Invariant: nothing here changes an operation, except when told to make a [`Mistake`].

mod gate;
mod medium;

pub use medium::{Counts, Faults, Medium};

use super::op::DiskOp;

pub(super) use gate::Gate;
pub(super) use medium::{OpenMedium, medium_of, written_outside};

/// A mistake that the driver can be told to make, to show that it would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A flush is complete as soon as the batch that it came with is.
    FlushEarly,
    /// A write is complete as soon as the batch that it came with is.
    WriteEarly,
    /// Durable writes are ordered as plain ones.
    FuaDropped,
    /// The memory of a write goes back to its pool when the write is handed over.
    BufferEarly,
    /// Packets count as sent when they are queued.
    SentEarly,
}

/// The operation as a mistaken driver orders it.
#[must_use]
pub fn mistaken(op: DiskOp, mistake: Option<Mistake>) -> DiskOp {
    match op {
        DiskOp::Write { dev, offset, data, fua: true } if mistake == Some(Mistake::FuaDropped) => {
            DiskOp::Write { dev, offset, data, fua: false }
        }
        op => op,
    }
}
