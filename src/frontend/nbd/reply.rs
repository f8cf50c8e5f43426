//! From replies to bytes, without I/O and without copying payload.
//!
//! Owns: the queue of replies that were not sent yet. Takes in: replies; how many bytes the socket took. Gives out: slices
//! for one vectored write. Invariants: bytes leave in the order in which replies came in; payload is held by reference until the
//! socket has it. Source: proto.md, "Simple reply message", "Structured reply types".
//! Hot path: all of it; no allocation once the queues have grown to what a full connection needs.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::frontend::nbd::proto::{
    BASE_ALLOCATION_ID, CHUNK_BYTES, Chunk, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk_flag,
};
use crate::frontend::request::{Errno, Payload};

/// Slices that one vectored write takes at most: 32 replies with payload; headers without payload share a slice.
pub const SLICES_MAX: usize = 64;

#[derive(Debug)]
enum Segment {
    /// This many bytes from the front of `heads`.
    Heads(usize),
    Data(Bytes),
}

/// Replies waiting for the socket.
#[derive(Debug, Default)]
pub struct ReplyQueue {
    /// All headers and other small things, in order.
    heads: VecDeque<u8>,
    segments: VecDeque<Segment>,
    len: usize,
}

impl ReplyQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether everything has been sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes to send.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes of headers and texts among them.
    #[must_use]
    pub fn heads_len(&self) -> usize {
        self.heads.len()
    }

    /// A simple reply: success, or an error.
    pub fn simple(&mut self, cookie: u64, outcome: Result<(), Errno>) {
        let mut head = [0; SIMPLE_REPLY_BYTES];
        head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&outcome.map_or_else(Errno::number, |()| 0).to_be_bytes());
        head[8..].copy_from_slice(&cookie.to_be_bytes());
        self.head(&head);
    }

    /// Payload behind a simple reply's header.
    pub fn simple_data(&mut self, data: Payload) {
        for piece in data {
            self.data(piece);
        }
    }

    /// A chunk of a structured reply to a read. `offset` in bytes, `data_len` what `data` adds up to.
    pub fn data_chunk(&mut self, cookie: u64, offset: u64, data_len: u32, data: Payload, done: bool) {
        let mut head = [0; CHUNK_BYTES + 8];
        head[..CHUNK_BYTES].copy_from_slice(&chunk_head(cookie, Chunk::OFFSET_DATA, data_len + 8, done));
        head[CHUNK_BYTES..].copy_from_slice(&offset.to_be_bytes());
        self.head(&head);
        self.simple_data(data);
    }

    /// The last chunk of a structured reply that failed. `reason` has at most 4096 bytes.
    pub fn error_chunk(&mut self, cookie: u64, errno: Errno, reason: &'static str) {
        let reason_len = u16::try_from(reason.len()).unwrap_or(0);
        let reason = &reason.as_bytes()[..reason_len.into()];
        self.head(&chunk_head(cookie, Chunk::ERROR, 6 + u32::from(reason_len), true));
        self.head(&errno.number().to_be_bytes());
        self.head(&reason_len.to_be_bytes());
        self.head(reason);
    }

    /// The reply to a block status request: `len` bytes of allocated data, which is always a legal answer.
    pub fn block_status(&mut self, cookie: u64, len: u32) {
        self.head(&chunk_head(cookie, Chunk::BLOCK_STATUS, 12, true));
        self.head(&BASE_ALLOCATION_ID.to_be_bytes());
        self.head(&len.to_be_bytes());
        self.head(&0_u32.to_be_bytes());
    }

    fn head(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.heads.extend(bytes);
        self.len += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Heads(len)) => *len += bytes.len(),
            _ => self.segments.push_back(Segment::Heads(bytes.len())),
        }
    }

    fn data(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.segments.push_back(Segment::Data(bytes));
        }
    }

    /// Fills `slices` with what to send next, in order; returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let (mut heads, mut more_heads) = self.heads.as_slices();
        let mut filled = 0;
        let mut push = |slice: &'a [u8]| {
            if let Some(place) = slices.get_mut(filled).filter(|_| !slice.is_empty()) {
                *place = IoSlice::new(slice);
                filled += 1;
            }
        };
        // A run of heads may fill two slices where the ring wraps around; the rest of an overfull batch waits.
        for segment in self.segments.iter().take(SLICES_MAX - 1) {
            match segment {
                Segment::Heads(len) => {
                    let (now, later) = heads.split_at(heads.len().min(*len));
                    push(now);
                    heads = later;
                    if now.len() < *len {
                        let (now, later) = more_heads.split_at((len - now.len()).min(more_heads.len()));
                        push(now);
                        (heads, more_heads) = (later, &[]);
                    }
                }
                Segment::Data(data) => push(data),
            }
        }
        filled
    }

    /// The socket took `len` bytes from the front.
    pub fn sent(&mut self, mut len: usize) {
        self.len = self.len.saturating_sub(len);
        while let Some(segment) = self.segments.front_mut() {
            let segment_len = match segment {
                Segment::Heads(len) => *len,
                Segment::Data(data) => data.len(),
            };
            let gone = len.min(segment_len);
            if let Segment::Heads(_) = segment {
                self.heads.drain(..gone);
            }
            if gone == segment_len {
                len -= gone;
                self.segments.pop_front();
                if len == 0 {
                    return;
                }
                continue;
            }
            match segment {
                Segment::Heads(left) => *left -= gone,
                Segment::Data(data) => data.advance(gone),
            }
            return;
        }
    }
}

fn chunk_head(cookie: u64, kind: Chunk, len: u32, done: bool) -> [u8; CHUNK_BYTES] {
    let mut head = [0; CHUNK_BYTES];
    head[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&(if done { chunk_flag::DONE } else { 0 }).to_be_bytes());
    head[6..8].copy_from_slice(&kind.0.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&len.to_be_bytes());
    head
}
