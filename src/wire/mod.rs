//! DRBD's network protocol, versions 86 to 101 (pure).
//!
//! Owns every byte format of the two peer sockets. Takes in bytes that nobody trusts and gives out typed [`Packet`]s or
//! a [`WireError`] that names packet, field, value and the reaction it deserves; takes in packets and gives out bytes.
//! Invariants: no length is believed before it is compared with the packet table ([`kind`]); nothing is allocated
//! beyond those bounds; opaque fields (`block_id`, barrier numbers) stay opaque; payload is never copied.
//! Source: wire.md.

pub mod ack;
pub mod agreed;
pub mod auth;
pub mod bitmap;
pub mod bitmap_code;
pub mod codec;
mod cursor;
pub mod data;
pub mod decoder;
pub mod digest;
pub mod error;
pub mod feature;
mod flags;
pub mod header;
pub mod kind;
pub mod packet;
pub mod params;
pub mod resync;
pub mod sizes;
pub mod state;
pub mod uuids;

pub use ack::BlockAck;
pub use agreed::Agreed;
pub use codec::{Header, decode_body, decode_header, encode, encode_head, header_len};
pub use data::{Data, DataReply, DpFlags, Trim, WriteSame};
pub use decoder::StreamDecoder;
pub use digest::{AlgName, Digest, DigestAlg};
pub use error::{EncodeError, Fault, Place, Reaction, WireError};
pub use feature::{FeatureFlags, Features, Version};
pub use kind::{Kind, Phase, Socket};
pub use packet::Packet;
pub use params::{AfterSb, ConnFlags, Controller, Protocol, ReplProtocol, SyncParam};
pub use resync::{BlockDesc, BlockReq};
pub use sizes::{DdsFlags, QueueLimits, Sizes};
pub use state::{ConnState, DiskState, Role, StateResult, StateWord};
pub use uuids::{UuidFlags, Uuids};

#[cfg(test)]
mod tests;
