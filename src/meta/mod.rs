//! DRBD's v08 on-disk metadata: layout arithmetic, superblock, activity-log transactions, crash recovery, bitmap,
//! the text formats of `drbdmeta`, and the operations of an administrator on an unattached device (pure).
//!
//! Bytes come in and go out through slices or through [`MetaIo`]; nothing here opens a file, asks a person, or knows
//! the time. Spec: metadata.md.

pub mod al_transaction;
pub mod layout;
pub mod superblock;

pub use al_transaction::{AlBlock, AlBlockError, AlTransaction};
pub use layout::{AlStripes, DeviceSizes, Layout, LayoutError, MetaKind};
pub use superblock::{MdFlags, Superblock, SuperblockError, Unverified};
