//! A resource's payload memory, as the NBD sessions and the link want it.
//!
//! Each user has a pool of its own, so that none can starve another: clients whose writes wait for the peer cannot keep
//! the peer's writes from being received, and neither can keep reads from the disk.

use std::pin::pin;

use bytes::Bytes;

use crate::disk::{Pool, PoolBuf};
use crate::frontend::request::BufferSource;
use crate::link::Buffers;

/// Payload of clients' writes, in bytes. With the two below: the 64 MiB of DESIGN 4.
pub const CLIENT_BYTES: usize = 24 << 20;
/// Payload received from the peer, in bytes.
pub const LINK_BYTES: usize = 24 << 20;
/// Data read from the disk, in bytes.
pub const READ_BYTES: usize = 16 << 20;

/// A handle to one of these pools.
#[derive(Clone, Debug)]
pub struct Payloads(pub Pool);

impl BufferSource for Payloads {
    type Buffer = PoolBuf;

    fn try_alloc(&self, len: usize) -> Option<PoolBuf> {
        self.0.try_alloc(len)
    }

    fn freeze(&self, buffer: PoolBuf) -> Bytes {
        buffer.freeze()
    }

    async fn wait(&self, len: usize) {
        let mut returned = pin!(self.0.returned());
        // Registered before the attempt, so that memory that comes back in between wakes us.
        returned.as_mut().enable();
        if self.0.try_alloc(len).is_none() {
            returned.await;
        }
    }
}

impl Buffers for Payloads {
    type Buf = PoolBuf;

    fn try_alloc(&self, len: usize) -> Option<PoolBuf> {
        self.0.try_alloc(len)
    }

    async fn alloc(&self, len: usize) -> Option<PoolBuf> {
        self.0.alloc(len).await
    }

    fn freeze(buf: PoolBuf) -> Bytes {
        buf.freeze()
    }
}
