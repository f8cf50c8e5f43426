//! Backing devices: opening, claiming, and asynchronous I/O on them, inside a shard (one thread, one tokio
//! current-thread runtime, one resource).
//!
//! * [`BackingDevice`] (`open`, with `probe` for the geometry and `claim` for who may use what): a block device or file.
//! * [`Pool`], [`PoolBuf`] (`pool`): bounded, aligned memory for payloads and metadata blocks.
//! * [`DiskOp`], [`Completion`] (`op`): what to do, and how it went.
//! * [`Ring`] (`ring`): takes operations in batches, gives completions by token; over io_uring (`uring`) or, where that is
//!   forbidden, over threads (`portable`). Metadata goes the same way.
//!
//! * `fault`: in tests, faults between ring and back end.
//!
//! Takes in: operations of the engine, as the node translates them. Gives out: completions. Invariants: memory that the
//! kernel may write to is never freed; an operation is complete only when all of it is; nothing is retried that the
//! device refused, except interrupted and short transfers.

mod claim;
mod erase;
mod error;
#[cfg(any(test, feature = "sim"))]
pub mod fault;
pub mod last_known;
pub mod meta_file;
mod op;
mod open;
mod pool;
mod portable;
mod probe;
mod ring;
mod sys;
mod uring;

#[cfg(test)]
mod tests;

pub use claim::ClaimScope;
pub use error::{DiskAction, DiskError, DiskErrorKind};
pub use op::{Completion, DiskOp, Payload, WRITE_BYTES_MAX};
pub use open::{BackingDevice, OpenOptions};
pub use pool::{BUF_ALIGN, BUF_LEN_MAX, POOL_BYTES_DEFAULT, POOL_BYTES_MAX, Pool, PoolBuf};
pub use probe::{BLOCK_BYTES_MIN, DiscardLimits, Geometry};
pub use ring::{DEPTH_DEFAULT, DEPTH_MAX, Ring, RingChoice, RingKind, RingOptions, THREADS_DEFAULT, run_blocking};
