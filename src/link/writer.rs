//! The sending half of one socket: packets queued as a contiguous run of heads and the payloads between them, written in
//! as few vectored writes as possible.
//!
//! Owns the queue and the socket's write half. Takes in packets, gives out how many of them the TCP stack has taken
//! completely. [`Channel::flush`] writes at once, without waking a task; when the socket is full, [`Channel::run`] goes on as
//! soon as it is writable. Payloads are never copied. The two sockets have nothing in common here, so that a full data
//! socket cannot delay an acknowledgement (wire.md 13.4). The queue is bounded by what the engine lets be in flight.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::units::VolumeNr;
use crate::wire::agreed::Agreed;
use crate::wire::codec::encode_head;
use crate::wire::error::EncodeError;
use crate::wire::kind::Socket;
use crate::wire::packet::Packet;

/// Most pieces of one write. The system's limit is 1024; beyond 64 there is nothing to gain, arbitrary.
const PIECES_MAX: usize = 64;

/// Part of the queue, in sending order.
#[derive(Debug)]
enum Piece {
    /// So many bytes of `heads`.
    Heads(usize),
    /// A payload.
    Payload(Bytes),
}

/// Packets that the TCP stack has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Headers and structures of queued packets, back to back.
    heads: BytesMut,
    pieces: VecDeque<Piece>,
    /// Position in the stream behind each queued packet.
    ends: VecDeque<u64>,
    queued_bytes: u64,
    written_bytes: u64,
    written_packets: u64,
}

impl Outbox {
    /// Queues a packet. On error nothing is queued.
    fn push(&mut self, volume: VolumeNr, packet: &Packet, agreed: &Agreed) -> Result<(), EncodeError> {
        let before = self.heads.len();
        encode_head(volume, packet, agreed, &mut self.heads)?;
        let head = self.heads.len() - before;
        match self.pieces.back_mut() {
            Some(Piece::Heads(len)) => *len += head,
            _ => self.pieces.push_back(Piece::Heads(head)),
        }
        self.queued_bytes += head as u64;
        if let Some(payload) = packet.payload().filter(|p| !p.is_empty()) {
            self.queued_bytes += payload.len() as u64;
            self.pieces.push_back(Piece::Payload(payload.clone()));
        }
        self.ends.push_back(self.queued_bytes);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The start of the queue.
    fn slices(&self) -> SmallVec<[IoSlice<'_>; PIECES_MAX]> {
        let mut heads = &self.heads[..];
        let slice = |piece| match piece {
            &Piece::Heads(len) => {
                let (run, rest) = heads.split_at(len);
                heads = rest;
                IoSlice::new(run)
            }
            Piece::Payload(payload) => IoSlice::new(payload),
        };
        self.pieces.iter().take(PIECES_MAX).map(slice).collect()
    }

    /// The TCP stack has taken this many bytes.
    fn take(&mut self, mut count: usize) {
        self.written_bytes += count as u64;
        while let Some(piece) = self.pieces.front_mut() {
            let rest = match piece {
                Piece::Heads(len) => {
                    let taken = count.min(*len);
                    self.heads.advance(taken);
                    *len -= taken;
                    count -= taken;
                    *len
                }
                Piece::Payload(payload) => {
                    let taken = count.min(payload.len());
                    payload.advance(taken);
                    count -= taken;
                    payload.len()
                }
            };
            if rest != 0 {
                break;
            }
            self.pieces.pop_front();
        }
        while self.ends.front().is_some_and(|end| *end <= self.written_bytes) {
            self.ends.pop_front();
            self.written_packets += 1;
        }
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.pieces.clear();
        self.ends.clear();
        self.queued_bytes = self.written_bytes;
    }
}

/// The sending half of one socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    half: OwnedWriteHalf,
    outbox: RefCell<Outbox>,
    /// The socket was full: only [`Channel::run`] writes until it is writable again.
    full: Cell<bool>,
    error: RefCell<Option<io::Error>>,
    wake: Notify,
}

impl Channel {
    pub(super) fn new(socket: Socket, half: OwnedWriteHalf) -> Self {
        Self {
            socket,
            half,
            outbox: RefCell::default(),
            full: Cell::new(false),
            error: RefCell::default(),
            wake: Notify::new(),
        }
    }

    /// The connection, to look at.
    pub(super) fn stream(&self) -> &TcpStream {
        self.half.as_ref()
    }

    /// Queues a packet; [`Self::flush`] sends it.
    pub(super) fn push(&self, volume: VolumeNr, packet: &Packet, agreed: &Agreed) -> Result<(), EncodeError> {
        self.outbox.borrow_mut().push(volume, packet, agreed)
    }

    /// Bytes queued and not taken by the TCP stack.
    pub(super) fn queued_bytes(&self) -> u64 {
        let outbox = self.outbox.borrow();
        outbox.queued_bytes - outbox.written_bytes
    }

    /// Packets queued since the link came up.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn queued_packets(&self) -> u64 {
        let outbox = self.outbox.borrow();
        outbox.written_packets + outbox.ends.len() as u64
    }

    /// Writes what is queued until the socket is full. The number of packets that the TCP stack has taken completely since
    /// the link came up, if it has grown. What is left, and errors, are the business of [`Self::run`].
    pub(super) fn flush(&self) -> Option<u64> {
        let mut outbox = self.outbox.borrow_mut();
        let before = outbox.written_packets;
        while !outbox.is_empty() && !self.full.get() {
            let written = self.half.try_write_vectored(&outbox.slices());
            match written {
                Ok(count) => outbox.take(count),
                Err(e) => {
                    if e.kind() != io::ErrorKind::WouldBlock {
                        outbox.clear();
                        *self.error.borrow_mut() = Some(e);
                    }
                    self.full.set(true);
                    self.wake.notify_one();
                }
            }
        }
        (outbox.written_packets != before).then_some(outbox.written_packets)
    }

    /// Goes on writing whenever the socket was full; `sent` hears how many packets the TCP stack has taken since the link
    /// came up, and says whether to go on. Ends with the socket's error. With a limit, a socket that takes no byte for so
    /// long is broken.
    pub(super) async fn run(&self, limit: Option<Duration>, mut sent: impl FnMut(u64) -> bool) -> Option<io::Error> {
        loop {
            self.wake.notified().await;
            while self.full.get() {
                if let Err(e) = self.writable(limit).await {
                    return Some(e);
                }
                self.full.set(false);
                if self.flush().is_some_and(|packets| !sent(packets)) {
                    return None;
                }
            }
        }
    }

    /// Writes everything that is queued.
    pub(super) async fn drain(&self) -> io::Result<()> {
        loop {
            self.flush();
            if !self.full.get() {
                return Ok(());
            }
            self.writable(None).await?;
            self.full.set(false);
        }
    }

    async fn writable(&self, limit: Option<Duration>) -> io::Result<()> {
        if let Some(e) = self.error.borrow_mut().take() {
            return Err(e);
        }
        match limit {
            None => self.half.writable().await,
            Some(limit) => timeout(limit, self.half.writable()).await.unwrap_or_else(|_| {
                let text = format!("{} socket took no byte for {} ms", self.socket, limit.as_millis());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }),
        }
    }
}
