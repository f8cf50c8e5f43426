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

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    /// Empties the queue through writes that take at most so many bytes each.
    fn drain(queue: &mut ReplyQueue, takes: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        for take in takes.iter().cycle() {
            if queue.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = queue.slices(&mut slices);
            let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
            assert!(!bytes.is_empty());
            let len = bytes.len().min(*take);
            out.extend_from_slice(&bytes[..len]);
            queue.sent(len);
        }
        assert_eq!((queue.len(), queue.heads_len()), (0, 0));
        out
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        let mut queue = ReplyQueue::new();
        queue.simple(0x0102, Ok(()));
        queue.simple(0x0103, Err(Errno::NoSpc));
        queue.data_chunk(0x0104, 4096, 3, smallvec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")], true);
        queue.data_chunk(0x0105, 0, 1, smallvec![Bytes::from_static(b"d")], false);
        queue.error_chunk(0x0106, Errno::Inval, "no");
        queue.error_chunk(0x0107, Errno::Io, "");
        queue.block_status(0x0108, 1024);
        let expected = [
            &hex!("67446698 00000000 0000000000000102")[..],
            &hex!("67446698 0000001c 0000000000000103"),
            &hex!("668e33ef 0001 0001 0000000000000104 0000000b 0000000000001000 616263"),
            &hex!("668e33ef 0000 0001 0000000000000105 00000009 0000000000000000 64"),
            &hex!("668e33ef 0001 8001 0000000000000106 00000008 00000016 0002 6e6f"),
            &hex!("668e33ef 0001 8001 0000000000000107 00000006 00000005 0000"),
            &hex!("668e33ef 0001 0005 0000000000000108 0000000c 00000001 00000400 00000000"),
        ];
        assert_eq!(queue.len(), expected.concat().len());
        assert_eq!(drain(&mut queue, &[usize::MAX]), expected.concat());
    }

    #[test]
    fn words_without_payload_share_a_slice() {
        let mut queue = ReplyQueue::new();
        for cookie in 0..100 {
            queue.simple(cookie, Ok(()));
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        assert!(queue.slices(&mut slices) <= 2);
    }

    proptest! {
        /// Whatever the socket takes at a time, and whenever replies come in, the stream is the same.
        #[test]
        fn any_short_write_keeps_the_stream(
            replies in proptest::collection::vec((any::<u64>(), 0_usize..70), 0..200),
            takes in proptest::collection::vec(1_usize..400, 1..10),
            batch in 1_usize..50,
        ) {
            let data = |cookie: u64, len: usize| Bytes::from(vec![cookie.to_be_bytes()[7]; len]);
            let mut whole = ReplyQueue::new();
            let mut cut = ReplyQueue::new();
            let mut cut_bytes = Vec::new();
            for replies in replies.chunks(batch) {
                for (cookie, len) in replies {
                    for queue in [&mut whole, &mut cut] {
                        queue.simple(*cookie, Ok(()));
                        queue.simple_data(smallvec![data(*cookie, *len)]);
                    }
                }
                // One write that leaves a rest, so that the ring wraps around.
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = cut.slices(&mut slices);
                let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
                let len = bytes.len().min(takes[0]);
                cut_bytes.extend_from_slice(&bytes[..len]);
                cut.sent(len);
            }
            cut_bytes.extend(drain(&mut cut, &takes));
            let expected: Vec<u8> = replies
                .iter()
                .flat_map(|(cookie, len)| {
                    [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes(), &data(*cookie, *len)].concat()
                })
                .collect();
            prop_assert_eq!(&cut_bytes, &expected);
            prop_assert_eq!(drain(&mut whole, &[usize::MAX]), expected);
        }
    }
}
