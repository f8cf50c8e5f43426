//! From received bytes to requests, without I/O.
//!
//! Owns: the staging buffer, the payload being received. Takes in: bytes, which the driver puts straight into
//! [`Receiver::free`]. Gives out: [`Received`] one at a time. Invariants: a payload is copied at most once, and from
//! [`NBD_COPY_BYTES_MAX`] on only what arrived together with its header; a large write is given out in pieces of at most 1 MiB as
//! they arrive, so that no connection holds more than one incomplete piece (two connections that each wait for the rest of
//! 32 MiB could otherwise wait for each other's memory); whatever comes, there is no panic. Source: proto.md, "Request message".
//! Hot path: all of it; allocates only from the [`BufferSource`].

use std::io::IoSliceMut;

use bytes::Bytes;

use crate::frontend::nbd::export::Negotiated;
use crate::frontend::nbd::proto::{Cmd, REQUEST_BYTES};
use crate::frontend::nbd::transmission::{BadMagic, Command, Invalid, RequestHeader, validate};
use crate::frontend::request::BufferSource;
use crate::limits::{NBD_COPY_BYTES_MAX, NBD_DRAIN_BYTES_MAX, NBD_STAGING_BYTES, REQUEST_BYTES_MAX_V100};
use crate::units::{Sector, SectorRange, Sectors};

/// Bytes taken behind the end of a large payload: some headers, but little of the next payload, which would be copied.
const PEEK_BYTES: usize = 4096;

/// Why the connection cannot go on. The client gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// See [`BadMagic`].
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
    /// Draining it would be a favour to an attacker.
    #[error("the client sent a write of {len} bytes")]
    WriteTooLong {
        /// Its announced length.
        len: u32,
    },
}

/// The next thing that the bytes said.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing complete: fill [`Receiver::free`].
    NeedBytes,
    /// The next payload needs a buffer of this many bytes, and the source has none.
    NeedBuffer(usize),
    /// A request without payload.
    Request {
        /// The client's name for it.
        cookie: u64,
        /// Never a write.
        command: Command,
    },
    /// The next piece of a write; the pieces of one write come in order, nothing between them.
    WritePiece {
        /// The client's name for the write.
        cookie: u64,
        /// The whole write.
        whole: SectorRange,
        /// This piece.
        range: SectorRange,
        /// Exactly the piece's bytes.
        data: Bytes,
        /// Force unit access.
        fua: bool,
    },
    /// A request to be answered with an error; its payload, if any, has been thrown away.
    Refused {
        /// The client's name for it.
        cookie: u64,
        /// Its type.
        command: Cmd,
        /// The error.
        invalid: Invalid,
    },
}

#[derive(Debug)]
struct Filling<B> {
    buffer: B,
    filled: usize,
}

#[derive(Debug)]
struct Write<B> {
    cookie: u64,
    whole: SectorRange,
    fua: bool,
    /// What has not been given out.
    rest: SectorRange,
    /// Present while a piece is received directly; then `staging` is empty until the piece is full.
    filling: Option<Filling<B>>,
}

#[derive(Debug)]
enum State<B> {
    Header,
    Payload(Write<B>),
    Drain { left: usize, cookie: u64, invalid: Invalid },
}

/// Receives one connection's requests.
#[derive(Debug)]
pub struct Receiver<B> {
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    state: State<B>,
    /// The last write was large: do not read far behind the end of one.
    large: bool,
}

impl<B: std::ops::DerefMut<Target = [u8]>> Receiver<B> {
    /// A receiver that begins with what the negotiation left over.
    #[must_use]
    pub fn new(leftover: &[u8]) -> Self {
        let mut staging = vec![0; NBD_STAGING_BYTES.max(leftover.len() + REQUEST_BYTES)].into_boxed_slice();
        staging[..leftover.len()].copy_from_slice(leftover);
        Self { staging, start: 0, end: leftover.len(), state: State::Header, large: false }
    }

    /// Where the next bytes from the socket belong: fill the first slice, then the second, then say [`Self::received`].
    /// Not empty after [`Received::NeedBytes`].
    pub fn free(&mut self) -> [IoSliceMut<'_>; 2] {
        if self.start > 0 {
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let direct = match &mut self.state {
            State::Payload(Write { filling: Some(filling), .. }) => &mut filling.buffer[filling.filled..],
            _ => &mut [],
        };
        let tail = &mut self.staging[self.end..];
        let tail_len = if self.large && !direct.is_empty() { tail.len().min(PEEK_BYTES) } else { tail.len() };
        [IoSliceMut::new(direct), IoSliceMut::new(&mut tail[..tail_len])]
    }

    /// `len` bytes have been put into [`Self::free`].
    pub fn received(&mut self, mut len: usize) {
        if let State::Payload(Write { filling: Some(filling), .. }) = &mut self.state {
            let direct = len.min(filling.buffer.len() - filling.filled);
            filling.filled += direct;
            len -= direct;
        }
        self.end = (self.end + len).min(self.staging.len());
    }

    /// Whether no request has begun: the place where a client may leave.
    #[must_use]
    pub const fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Header) && self.start == self.end
    }

    /// Takes the next request out of the received bytes.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub fn next<S>(&mut self, source: &S, negotiated: &Negotiated) -> Result<Received, ReceiveError>
    where
        S: BufferSource<Buffer = B>,
    {
        loop {
            match &mut self.state {
                State::Header => match self.header(negotiated)? {
                    Some(received) => return Ok(received),
                    None => continue,
                },
                State::Payload(_) => return Ok(self.payload(source)),
                State::Drain { left, cookie, invalid } => {
                    let drained = (*left).min(self.end - self.start);
                    self.start += drained;
                    *left -= drained;
                    if *left > 0 {
                        return Ok(Received::NeedBytes);
                    }
                    let refused = Received::Refused { cookie: *cookie, command: Cmd::WRITE, invalid: *invalid };
                    self.state = State::Header;
                    return Ok(refused);
                }
            }
        }
    }

    /// `None`: the state has changed, look again.
    fn header(&mut self, negotiated: &Negotiated) -> Result<Option<Received>, ReceiveError> {
        let Some(bytes) = self.staging[self.start..self.end].first_chunk() else {
            return Ok(Some(Received::NeedBytes));
        };
        let request = RequestHeader::decode(bytes)?;
        self.start += REQUEST_BYTES;
        let cookie = request.cookie;
        match validate(&request, negotiated) {
            Ok(Command::Write { range, fua }) => {
                self.state = State::Payload(Write { cookie, whole: range, fua, rest: range, filling: None });
                Ok(None)
            }
            Ok(command) => Ok(Some(Received::Request { cookie, command })),
            Err(_) if request.payload_len() > NBD_DRAIN_BYTES_MAX => {
                Err(ReceiveError::WriteTooLong { len: request.len })
            }
            Err(invalid) if request.payload_len() > 0 => {
                let left = usize::try_from(request.len).unwrap_or(usize::MAX);
                self.state = State::Drain { left, cookie, invalid };
                Ok(None)
            }
            Err(invalid) => Ok(Some(Received::Refused { cookie, command: request.command, invalid })),
        }
    }

    fn payload<S: BufferSource<Buffer = B>>(&mut self, source: &S) -> Received {
        let State::Payload(write) = &mut self.state else { return Received::NeedBytes };
        let staged = &self.staging[self.start..self.end];
        let piece = SectorRange {
            start: write.rest.start,
            count: Sectors(write.rest.count.0.min(Sectors::from_bytes_floor(REQUEST_BYTES_MAX_V100.into()).0)),
        };
        let Ok(len) = usize::try_from(piece.bytes()) else { return Received::NeedBytes };
        let mut filling = match write.filling.take() {
            Some(filling) => filling,
            // Small and incomplete: the rest comes into the staging buffer, together with what follows it.
            None if len <= NBD_COPY_BYTES_MAX && staged.len() < len => return Received::NeedBytes,
            None => {
                let Some(mut buffer) = source.try_alloc(len) else { return Received::NeedBuffer(len) };
                debug_assert_eq!(buffer.len(), len, "a buffer source gives what was asked for");
                let filled = staged.len().min(len);
                buffer[..filled].copy_from_slice(&staged[..filled]);
                self.start += filled;
                self.large = len > NBD_COPY_BYTES_MAX;
                Filling { buffer, filled }
            }
        };
        if filling.filled < len {
            write.filling = Some(filling);
            return Received::NeedBytes;
        }
        filling.filled = 0;
        let received = Received::WritePiece {
            cookie: write.cookie,
            whole: write.whole,
            range: piece,
            data: source.freeze(filling.buffer),
            fua: write.fua,
        };
        write.rest = SectorRange { start: Sector(piece.end().0), count: Sectors(write.rest.count.0 - piece.count.0) };
        if write.rest.is_empty() {
            self.state = State::Header;
        }
        received
    }
}

#[cfg(test)]
mod tests;
