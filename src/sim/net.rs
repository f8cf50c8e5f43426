//! The network: two byte streams each way between two nodes, and what can happen to them.
//!
//! Owns the bytes under way of one link (an established pair of sockets). Takes in packets; gives out packets, after the real
//! encoder and the real decoder, however the bytes were cut into pieces. Invariants: bytes of one socket keep their order; the
//! two sockets are not ordered against each other; what was handed to the stack may still be lost with the link.
//! Does not play: the handshake before the link is up (features, authentication), which is the link driver's.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::device::{is_shared_zero, shared_zeroes};
use crate::engine::event::{LinkNr, Socket};
use crate::units::VolumeNr;
use crate::wire::agreed::Agreed;
use crate::wire::codec::{Header, check_digest, decode_body, decode_header, encode_head, header_len, seal};
use crate::wire::error::{EncodeError, Place, WireError};
use crate::wire::kind::{Phase, Socket as WireSocket};
use crate::wire::packet::Packet;

/// Bytes that the stack takes before the sender has to wait.
const WINDOW: usize = 256 << 10;

/// Index of a socket.
#[must_use]
pub const fn index(socket: Socket) -> usize {
    match socket {
        WireSocket::Data => 0,
        WireSocket::Meta => 1,
    }
}

/// Pieces of bytes in order.
#[derive(Debug, Default)]
struct Chunks {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Chunks {
    fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if !bytes.is_empty() {
            self.pieces.push_back(bytes);
        }
    }

    /// Moves exactly `count` bytes, which must be there, without copying them.
    fn shift(&mut self, to: &mut Self, mut count: usize) {
        self.len -= count;
        while count > 0 {
            let Some(mut front) = self.pieces.pop_front() else { break };
            if front.len() > count {
                let rest = front.split_off(count);
                self.pieces.push_front(rest);
            }
            count -= front.len();
            to.push(front);
        }
    }

    /// Takes exactly `count` bytes, which must be there.
    fn take(&mut self, count: usize) -> Bytes {
        self.len -= count;
        if let Some(front) = self.pieces.front_mut() {
            if front.len() > count {
                return front.split_to(count);
            }
            if front.len() == count {
                return self.pieces.pop_front().unwrap_or_default();
            }
        }
        let mut len = 0;
        let parts = self.pieces.iter().take_while(|piece| {
            len += piece.len();
            len - piece.len() < count
        });
        if let Some(zeroes) = shared_zeroes(count)
            && parts.into_iter().all(is_shared_zero)
        {
            // Pieces of the blank ranges of a disk stay what they are.
            self.len += count;
            self.shift(&mut Self::default(), count);
            return zeroes;
        }
        let mut out = BytesMut::with_capacity(count);
        while out.len() < count {
            let Some(front) = self.pieces.front_mut() else { break };
            let part = front.split_to(front.len().min(count - out.len()));
            out.extend_from_slice(&part);
            if front.is_empty() {
                self.pieces.pop_front();
            }
        }
        out.freeze()
    }
}

/// One direction of one socket.
#[derive(Debug, Default)]
pub struct Pipe {
    /// Queued by the sender, with the lengths of the packets: not yet taken by the stack.
    outbox: Chunks,
    /// Bytes until the end of each queued packet.
    ends: VecDeque<usize>,
    /// Taken by the stack.
    flight: Chunks,
    /// Arrived, not yet decoded.
    inbox: Chunks,
    header: Option<Header>,
    /// Packets handed to the stack since the link came up.
    pub packets: u64,
    /// A hand-over is due.
    pub handing: bool,
    /// A delivery is due.
    pub delivering: bool,
    /// Bytes were lost: nothing that follows can arrive.
    pub broken: bool,
    /// The sender has closed its end; what it queued still comes.
    pub closed: bool,
}

impl Pipe {
    /// Whether something waits for the stack.
    #[must_use]
    pub const fn has_queued(&self) -> bool {
        self.outbox.len > 0
    }

    /// Whether something is on the way.
    #[must_use]
    pub const fn has_flight(&self) -> bool {
        self.flight.len > 0
    }

    /// Whether nothing is in it, not even part of a packet.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.outbox.len == 0 && self.flight.len == 0 && self.inbox.len == 0
    }

    /// The stack takes what its window has room for; true when a packet was completed by it.
    pub fn hand_over(&mut self) -> bool {
        let mut room = WINDOW.saturating_sub(self.flight.len);
        let before = self.packets;
        while room > 0 && self.outbox.len > 0 {
            let part = room.min(self.ends.front().copied().unwrap_or(self.outbox.len)).min(self.outbox.len);
            self.outbox.shift(&mut self.flight, part);
            room -= part;
            if let Some(end) = self.ends.front_mut() {
                *end -= part;
                if *end == 0 {
                    self.ends.pop_front();
                    self.packets += 1;
                }
            }
        }
        self.packets != before
    }

    /// Up to `limit` bytes arrive; how many did.
    pub fn arrive(&mut self, limit: usize) -> usize {
        let count = limit.min(self.flight.len);
        self.flight.shift(&mut self.inbox, count);
        count
    }

    /// Bytes on the way.
    #[must_use]
    pub const fn flight_len(&self) -> usize {
        self.flight.len
    }

    /// Everything on the way is lost.
    pub fn lose(&mut self) {
        self.broken = true;
        self.outbox = Chunks::default();
        self.ends.clear();
        self.flight = Chunks::default();
    }
}

/// One established pair of sockets between the nodes.
#[derive(Debug)]
pub struct Link {
    /// What each node calls it.
    pub nr: [LinkNr; 2],
    /// The node's driver still has it open.
    pub open: [bool; 2],
    /// The node's engine was told that it is up.
    pub up: [bool; 2],
    /// The node will be told that it is lost.
    pub losing: [bool; 2],
    /// By sender, by socket.
    pub pipes: [[Pipe; 2]; 2],
    /// What each node holds for agreed.
    pub agreed: [Agreed; 2],
    phase: [Phase; 2],
    /// Power cuts of both nodes when it came up.
    pub powers: [u64; 2],
    /// When it came up: the simulator's step.
    pub since: u64,
    /// When it came up: virtual nanoseconds.
    pub born: u64,
}

impl Link {
    /// A new link.
    #[must_use]
    pub fn new(nr: [LinkNr; 2], agreed: Agreed, powers: [u64; 2], since: u64) -> Self {
        Self {
            nr,
            open: [true; 2],
            up: [false; 2],
            losing: [false; 2],
            pipes: Default::default(),
            agreed: [agreed; 2],
            phase: [Phase::Params; 2],
            powers,
            since,
            born: 0,
        }
    }

    /// Queues a packet of node `from`.
    ///
    /// # Errors
    /// The packet does not fit what was agreed: the engine's mistake.
    pub fn send(
        &mut self,
        from: usize,
        socket: Socket,
        volume: VolumeNr,
        mut packet: Packet,
    ) -> Result<(), EncodeError> {
        let agreed = &mut self.agreed[from];
        seal(&mut packet, agreed);
        let mut head = BytesMut::new();
        encode_head(volume, &packet, agreed, &mut head)?;
        if socket == Socket::Data {
            agreed.note_sent(&packet);
        }
        let pipe = &mut self.pipes[from][index(socket)];
        if pipe.broken {
            return Ok(());
        }
        let payload = packet.payload().cloned().unwrap_or_default();
        pipe.ends.push_back(head.len() + payload.len());
        pipe.outbox.push(head.freeze());
        pipe.outbox.push(payload);
        Ok(())
    }

    /// The next whole packet that arrived from node `from`.
    ///
    /// # Errors
    /// The bytes are illegal: some engine's mistake.
    pub fn receive(&mut self, from: usize, socket: Socket) -> Result<Option<(VolumeNr, Packet)>, WireError> {
        let to = 1 - from;
        let pipe = &mut self.pipes[from][index(socket)];
        let agreed = &mut self.agreed[to];
        let phase = if socket == Socket::Data { self.phase[to] } else { Phase::Connected };
        let header = match pipe.header {
            Some(header) => header,
            None => {
                let len = header_len(phase, agreed);
                if pipe.inbox.len < len {
                    return Ok(None);
                }
                let bytes = pipe.inbox.take(len);
                let header = decode_header(&bytes, Place { socket, phase }, agreed)?;
                pipe.header = Some(header);
                header
            }
        };
        if pipe.inbox.len < header.len() {
            return Ok(None);
        }
        pipe.header = None;
        let fixed = pipe.inbox.take(header.fixed_len());
        let payload = pipe.inbox.take(header.payload_len());
        let packet = decode_body(&header, agreed, &fixed, payload)?;
        check_digest(&header, agreed, &packet)?;
        if socket == Socket::Data {
            agreed.note_received(&packet);
            if matches!(packet, Packet::State(_)) {
                self.phase[to] = Phase::Connected;
            }
        }
        Ok(Some((header.volume, packet)))
    }

    /// Whether nothing is on the way in either direction.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.pipes.iter().flatten().all(Pipe::is_quiet)
    }
}
