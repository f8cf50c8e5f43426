//! The requests of one connection that wait for their completion, and how completions become replies.
//!
//! Owns: the table of requests in flight, their budget, the queue of replies. Takes in: requests and pieces of requests, which get a
//! tag; completions by tag. Gives out: replies. Invariants: every request is answered once, after its last piece; a
//! tag is not used again before it was completed; data that came back short or long never reaches the client.
//! Hot path: all of it but large reads without structured replies; no allocation.

use std::collections::BTreeMap;

use bytes::Bytes;
use slab::Slab;

use crate::frontend::nbd::proto::Cmd;
use crate::frontend::nbd::reply::ReplyQueue;
use crate::frontend::nbd::transmission::Invalid;
use crate::frontend::request::{Errno, Outcome, Payload};
use crate::limits::{
    NBD_BYTES_IN_FLIGHT_MAX, NBD_REPLY_HEAD_BYTES_MAX, NBD_REQUESTS_IN_FLIGHT_MAX, REQUEST_BYTES_MAX_V100, SECTOR_SIZE,
};
use crate::units::{Sector, SectorRange, Sectors};

/// Sectors of the pieces into which large reads and writes are split.
const PIECE_SECTORS: u64 = REQUEST_BYTES_MAX_V100 as u64 / SECTOR_SIZE;

/// Without structured replies, only the end of the connection can tell a client about an error in the middle of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a read failed after the first part of its data had been sent")]
pub struct ReadCutShort;

#[derive(Debug)]
struct Request {
    cookie: u64,
    whole: SectorRange,
    /// Pieces that have not completed, submitted or not.
    pieces_left: u64,
    error: Option<Errno>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Answered by a word.
    Plain,
    /// The same, but its pieces count as payload.
    Write,
    Read,
    /// A large read without structured replies: its pieces must leave in order.
    ReadInOrder(Box<InOrder>),
}

#[derive(Debug, Default)]
struct InOrder {
    next: u64,
    early: BTreeMap<u64, Payload>,
}

/// A write of which pieces are still to come.
#[derive(Debug)]
struct CurrentWrite {
    key: usize,
    pieces_to_come: u64,
}

/// See the module.
#[derive(Debug)]
pub struct InFlight {
    /// Replies that the socket has not taken.
    pub replies: ReplyQueue,
    structured: bool,
    requests: Slab<Request>,
    /// Payload of requests in flight; what has moved on to `replies` is counted there.
    bytes: usize,
    current_write: Option<CurrentWrite>,
}

impl InFlight {
    /// An empty table, for a client with or without structured replies.
    #[must_use]
    pub fn new(structured: bool) -> Self {
        Self {
            replies: ReplyQueue::new(),
            structured,
            requests: Slab::with_capacity(NBD_REQUESTS_IN_FLIGHT_MAX),
            bytes: 0,
            current_write: None,
        }
    }

    /// Requests that wait for a completion.
    #[must_use]
    pub fn count(&self) -> usize {
        self.requests.len()
    }

    /// Whether one more request, or piece of a write, may come in. One is always admitted.
    #[must_use]
    pub fn admits(&self) -> bool {
        (self.requests.len() < NBD_REQUESTS_IN_FLIGHT_MAX || self.current_write.is_some())
            && self.bytes + self.replies.len() < NBD_BYTES_IN_FLIGHT_MAX
            && self.replies.heads_len() < NBD_REPLY_HEAD_BYTES_MAX
    }

    /// Enters a request that is answered by a word. Returns its tag.
    pub fn plain(&mut self, cookie: u64) -> u64 {
        tag(self.insert(cookie, SectorRange::default(), 1, Kind::Plain), 0)
    }

    /// Enters a read. Returns its pieces with their tags.
    pub fn read(&mut self, cookie: u64, whole: SectorRange) -> impl Iterator<Item = (u64, SectorRange)> + use<> {
        let pieces = piece_count(whole);
        let in_order = pieces > 1 && !self.structured;
        let kind = if in_order { Kind::ReadInOrder(Box::default()) } else { Kind::Read };
        self.bytes += len_usize(whole);
        let key = self.insert(cookie, whole, pieces, kind);
        (0..pieces).map(move |piece| (tag(key, piece), piece_of(whole, piece)))
    }

    /// Enters the next piece of a write. Returns the piece's tag.
    pub fn write_piece(&mut self, cookie: u64, whole: SectorRange, range: SectorRange) -> u64 {
        let pieces = piece_count(whole);
        let CurrentWrite { key, pieces_to_come } = match self.current_write.take() {
            Some(write) => write,
            None => CurrentWrite { key: self.insert(cookie, whole, pieces, Kind::Write), pieces_to_come: pieces },
        };
        let piece = pieces - pieces_to_come;
        debug_assert_eq!(piece_of(whole, piece), range, "pieces come in order");
        if pieces_to_come > 1 {
            self.current_write = Some(CurrentWrite { key, pieces_to_come: pieces_to_come - 1 });
        }
        self.bytes += len_usize(range);
        tag(key, piece)
    }

    /// The missing pieces of a write will never come, and nobody waits for its reply.
    pub fn abandon_write(&mut self) {
        if let Some(write) = self.current_write.take()
            && let Some(request) = self.requests.get_mut(write.key)
        {
            request.pieces_left -= write.pieces_to_come;
            if request.pieces_left == 0 {
                self.requests.remove(write.key);
            }
        }
    }

    /// Answers a request that was not entered.
    pub fn refuse(&mut self, cookie: u64, command: Cmd, invalid: Invalid) {
        self.reply_error(cookie, command == Cmd::READ, invalid.errno, invalid.reason);
    }

    /// Answers a block status request: allocated data.
    pub fn block_status(&mut self, cookie: u64, range: SectorRange) {
        self.replies.block_status(cookie, len_u32(range));
    }

    /// The request or piece with this tag has ended.
    ///
    /// # Errors
    /// [`ReadCutShort`]: the connection has to be closed without another byte.
    pub fn complete(&mut self, tag: u64, outcome: Outcome) -> Result<(), ReadCutShort> {
        let (key, piece) = untag(tag);
        let Some(request) = self.requests.get_mut(key) else { return Ok(()) };
        request.pieces_left -= 1;
        let last = request.pieces_left == 0;
        let cookie = request.cookie;
        let range = piece_of(request.whole, piece);
        let outcome = request.checked(range, outcome);
        let failed = request.error.is_some();
        if let Err(errno) = outcome {
            request.error.get_or_insert(errno);
        }
        let (is_read, answered) = match (&mut request.kind, outcome) {
            (Kind::Plain, _) => (false, false),
            (Kind::Write, _) => {
                self.bytes -= len_usize(range);
                (false, false)
            }
            (Kind::Read, outcome) => {
                self.bytes -= len_usize(range);
                let data = outcome.ok().filter(|_| !failed);
                let answered = data.is_some();
                match data {
                    Some(data) if self.structured => {
                        self.replies.data_chunk(cookie, range.start.bytes(), len_u32(range), data, last);
                    }
                    Some(data) => {
                        self.replies.simple(cookie, Ok(()));
                        self.replies.simple_data(data);
                    }
                    None => {}
                }
                (true, answered)
            }
            (Kind::ReadInOrder(order), Ok(data)) if !failed => {
                order.early.insert(piece, data);
                self.bytes -= order.send(cookie, &mut self.replies);
                (true, true)
            }
            (Kind::ReadInOrder(order), _) => {
                if order.next > 0 {
                    return Err(ReadCutShort);
                }
                order.early.clear();
                if last {
                    self.bytes -= len_usize(request.whole);
                }
                (true, false)
            }
        };
        if last {
            let error = request.error;
            self.requests.remove(key);
            match error {
                Some(errno) => self.reply_error(cookie, is_read, errno, ""),
                None if answered => {}
                None => self.replies.simple(cookie, Ok(())),
            }
        }
        Ok(())
    }

    fn insert(&mut self, cookie: u64, whole: SectorRange, pieces_left: u64, kind: Kind) -> usize {
        self.requests.insert(Request { cookie, whole, pieces_left, error: None, kind })
    }

    /// Answers with an error. Without structured replies the words are lost.
    fn reply_error(&mut self, cookie: u64, is_read: bool, errno: Errno, reason: &'static str) {
        // A read must be answered in structure once that is negotiated; the rest only if there is something to say.
        if self.structured && (is_read || !reason.is_empty()) {
            self.replies.error_chunk(cookie, errno, reason);
        } else {
            self.replies.simple(cookie, Err(errno));
        }
    }
}

impl Request {
    /// A backend that returns the wrong amount of data must not put the client out of step.
    fn checked(&self, range: SectorRange, outcome: Outcome) -> Outcome {
        let data = outcome?;
        let expected = match self.kind {
            Kind::Plain | Kind::Write => 0,
            Kind::Read | Kind::ReadInOrder(_) => len_usize(range),
        };
        let len: usize = data.iter().map(Bytes::len).sum();
        if len == expected {
            return Ok(data);
        }
        tracing::error!(target: "udrbd::nbd", len, expected, "a request was completed with the wrong amount of data");
        Err(Errno::Io)
    }
}

impl InOrder {
    /// Moves what has its turn to `replies`; returns its bytes.
    fn send(&mut self, cookie: u64, replies: &mut ReplyQueue) -> usize {
        let mut sent = 0;
        while let Some(data) = self.early.remove(&self.next) {
            if self.next == 0 {
                replies.simple(cookie, Ok(()));
            }
            self.next += 1;
            sent += data.iter().map(Bytes::len).sum::<usize>();
            replies.simple_data(data);
        }
        sent
    }
}

const fn piece_count(whole: SectorRange) -> u64 {
    whole.count.0.div_ceil(PIECE_SECTORS)
}

fn piece_of(whole: SectorRange, piece: u64) -> SectorRange {
    let begin = piece * PIECE_SECTORS;
    SectorRange {
        start: Sector(whole.start.0 + begin),
        count: Sectors(whole.count.0.saturating_sub(begin).min(PIECE_SECTORS)),
    }
}

/// Slot and piece of a request in one number.
const fn tag(key: usize, piece: u64) -> u64 {
    const { assert!(NBD_REQUESTS_IN_FLIGHT_MAX < 1 << 16, "a slot number fits into the upper half") };
    (key as u64) << 32 | piece
}

fn untag(tag: u64) -> (usize, u64) {
    (usize::try_from(tag >> 32).unwrap_or(usize::MAX), tag & u64::from(u32::MAX))
}

/// Bytes of a range that came from a 32-bit length.
fn len_u32(range: SectorRange) -> u32 {
    u32::try_from(range.bytes()).unwrap_or(u32::MAX)
}

fn len_usize(range: SectorRange) -> usize {
    usize::try_from(range.bytes()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
