//! DRBD's v08 on-disk metadata: layout arithmetic, superblock, activity-log transactions, crash recovery, bitmap,
//! the text formats of `drbdmeta`, and the operations of an administrator on an unattached device (pure).
//!
//! Bytes come in and go out through slices or through [`MetaIo`]; nothing here opens a file, asks a person, or knows
//! the time. Spec: metadata.md.
//!
//! * Formats: [`layout`], [`superblock`], [`al_transaction`], [`bitmap`], [`text`].
//! * For an attached node: [`recover`] (what the activity log says).
//! * For an unattached device: [`offline`], [`create`], [`probe`], [`relocate`] over [`store`].

pub mod al_transaction;
pub mod bitmap;
pub mod create;
pub mod error;
pub mod layout;
pub mod offline;
pub mod probe;
pub mod recover;
pub mod relocate;
pub mod store;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod text;

pub use al_transaction::{AlBlock, AlBlockError, AlTransaction};
pub use error::MetaError;
pub use layout::{AlStripes, DeviceSizes, Layout, LayoutError, MetaKind};
pub use offline::{AttachBits, AttachMeta, OpenMeta, Place};
pub use probe::{Finding, Verdict};
pub use recover::RingState;
pub use store::{MemIo, MetaIo};
pub use superblock::{Block, MdFlags, Superblock, SuperblockError, Unverified};
