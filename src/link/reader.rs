//! The receiving half of one socket of an established link.
//!
//! Owns the socket's read half and a staging buffer. Takes in bytes in batches, gives out packets in order, each as soon
//! as it is complete and checked. Payloads up to [`COPY_BYTES_MAX`] are copied once, from the staging buffer into a granted
//! buffer; of larger ones the rest is received straight into it, together with what follows. Nothing is allocated per
//! packet but that. A header is checked before its body is waited for; no buffer is asked for beyond the packet table's
//! bounds. While the engine does not want data, or no buffer is free, the data socket is not read and TCP slows the peer
//! down; the meta socket has its own reader and never waits (wire.md 13.3, 13.4).

use std::io::{self, IoSliceMut};
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::yield_now;

use super::session::Session;
use super::{Buffers, Sink};
use crate::wire::codec::{FIXED_LEN_MAX, Header, check_digest, decode_body, decode_header, header_len};
use crate::wire::error::{Fault, Place, WireError};
use crate::wire::header::HEADER_LEN_MAX;
use crate::wire::kind::{Phase, Socket};
use crate::wire::packet::Packet;

/// Payloads up to this size are copied from the staging buffer; larger ones are received in place. Measured: for a batch
/// of smaller requests one copy each costs a third of a receive each.
pub const COPY_BYTES_MAX: usize = 32 << 10;

/// Size of the staging buffer of the data socket.
const STAGING_BYTES_DATA: usize = 256 << 10;
/// Size of the staging buffer of the meta socket, whose packets have no payload.
const STAGING_BYTES_META: usize = 16 << 10;

/// Packets after which the other tasks of the shard get their turn. Arbitrary: well below a millisecond of decoding.
const TURN_PACKETS: usize = 128;
/// Payload after which they get it.
const TURN_BYTES: usize = 1 << 20;

const _: () = assert!(
    HEADER_LEN_MAX + FIXED_LEN_MAX + COPY_BYTES_MAX <= STAGING_BYTES_DATA / 2,
    "a copied packet fits behind the start of another"
);

/// Why a reader ended.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed the socket; in the middle of a packet or not.
    Closed { mid_packet: bool },
    /// The socket broke.
    Io(io::Error),
    /// The peer sent something illegal.
    Wire(WireError),
    /// There is no buffer of this size.
    TooLarge(usize),
    /// The link was closed from this side.
    Stopped,
}

impl From<WireError> for End {
    fn from(e: WireError) -> Self {
        Self::Wire(e)
    }
}

/// Bytes received and not consumed: `bytes[start..end]`.
#[derive(Debug)]
struct Staging {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    fn new(len: usize) -> Self {
        Self { bytes: vec![0; len].into_boxed_slice(), start: 0, end: 0 }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// The free end, after making it large enough to be worth a receive. Only the part of one packet is ever moved.
    fn room(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.end < self.bytes.len() / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }
}

/// The receiving half of one socket.
pub(super) struct Reader<S, B> {
    session: Rc<Session>,
    socket: Socket,
    half: OwnedReadHalf,
    sink: S,
    buffers: B,
    staging: Staging,
    phase: Phase,
    /// Packets were delivered since the last end of a batch.
    in_batch: bool,
    turn_packets: usize,
    turn_bytes: usize,
}

impl<S: Sink, B: Buffers> Reader<S, B> {
    pub(super) fn new(session: Rc<Session>, socket: Socket, half: OwnedReadHalf, sink: S, buffers: B) -> Self {
        // The meta socket is not ordered against the data socket: the peer may be connected before its P_STATE is read.
        let (staging, phase) = match socket {
            Socket::Data => (STAGING_BYTES_DATA, Phase::Params),
            Socket::Meta => (STAGING_BYTES_META, Phase::Connected),
        };
        Self {
            session,
            socket,
            half,
            sink,
            buffers,
            staging: Staging::new(staging),
            phase,
            in_batch: false,
            turn_packets: 0,
            turn_bytes: 0,
        }
    }

    /// Delivers packets until there are no more.
    pub(super) async fn run(mut self) -> End {
        loop {
            if let Err(end) = self.next().await {
                self.end_batch();
                return end;
            }
        }
    }

    async fn next(&mut self) -> Result<(), End> {
        let head_len = header_len(self.phase, &self.session.agreed.get());
        self.stage(head_len).await?;
        if self.socket == Socket::Data && !self.sink.wants_data() {
            self.end_batch();
            self.sink.until_wanted().await;
            // It may have ended early, even at once.
            yield_now().await;
            return self.check_alive();
        }
        // What this node sends may have changed the agreement meanwhile.
        let agreed = self.session.agreed.get();
        let place = Place { socket: self.socket, phase: self.phase };
        let header = decode_header(&self.staging.filled()[..head_len], place, &agreed)?;
        let packet = if header.payload_len() > COPY_BYTES_MAX {
            self.large(head_len, &header).await?
        } else {
            self.small(head_len, &header).await?
        };
        let agreed = &self.session.agreed;
        check_digest(&header, &agreed.get(), &packet)?;
        if self.socket == Socket::Data {
            let mut after = agreed.get();
            after.note_received(&packet);
            agreed.set(after);
            if matches!(packet, Packet::State(_)) {
                self.phase = Phase::Connected;
            }
        }
        self.in_batch = true;
        self.sink.packet(self.session.nr, self.socket, header.volume, packet);
        self.check_alive()?;
        self.take_turns(header.payload_len()).await
    }

    /// A packet that is staged completely before it is decoded.
    async fn small(&mut self, head_len: usize, header: &Header) -> Result<Packet, End> {
        let fixed_end = head_len + header.fixed_len();
        let end = head_len + header.len();
        self.stage(end).await?;
        let payload = match header.payload_len() {
            0 => Bytes::new(),
            len => {
                let mut buf = self.buffer(header, len).await?;
                buf.copy_from_slice(&self.staging.filled()[fixed_end..end]);
                B::freeze(buf)
            }
        };
        let fixed = &self.staging.filled()[head_len..fixed_end];
        let packet = decode_body(header, &self.session.agreed.get(), fixed, payload)?;
        self.staging.consume(end);
        Ok(packet)
    }

    /// A packet whose payload goes past the staging buffer, as far as it is not there already.
    async fn large(&mut self, head_len: usize, header: &Header) -> Result<Packet, End> {
        let fixed_end = head_len + header.fixed_len();
        self.stage(fixed_end).await?;
        let mut buf = self.buffer(header, header.payload_len()).await?;
        let mut fixed = [0; FIXED_LEN_MAX];
        let fixed = fixed.get_mut(..header.fixed_len()).ok_or_else(|| truncated(header))?;
        fixed.copy_from_slice(&self.staging.filled()[head_len..fixed_end]);
        self.staging.consume(fixed_end);
        let mut have = self.staging.len().min(buf.len());
        buf[..have].copy_from_slice(&self.staging.filled()[..have]);
        self.staging.consume(have);
        while have < buf.len() {
            have += self.receive_into(&mut buf[have..]).await?;
        }
        Ok(decode_body(header, &self.session.agreed.get(), fixed, B::freeze(buf))?)
    }

    /// Receives into `payload`, and what follows it into the staging buffer, which is empty. Bytes put into `payload`.
    async fn receive_into(&mut self, payload: &mut [u8]) -> Result<usize, End> {
        debug_assert_eq!(self.staging.len(), 0, "what is staged comes before what is received");
        loop {
            let mut parts = [IoSliceMut::new(payload), IoSliceMut::new(self.staging.room())];
            match self.half.try_read_vectored(&mut parts) {
                Ok(0) => return Err(End::Closed { mid_packet: true }),
                Ok(count) => {
                    let taken = count.min(payload.len());
                    self.staging.end += count - taken;
                    return Ok(taken);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.end_batch();
                    self.half.readable().await.map_err(End::Io)?;
                }
                Err(e) => return Err(End::Io(e)),
            }
        }
    }

    /// Waits until at least `count` bytes are staged. Everything delivered so far is a batch.
    async fn stage(&mut self, count: usize) -> Result<(), End> {
        while self.staging.len() < count {
            self.end_batch();
            self.check_alive()?;
            let mid_packet = self.staging.len() != 0;
            match self.half.read(self.staging.room()).await {
                Ok(0) => return Err(End::Closed { mid_packet }),
                Ok(received) => self.staging.end += received,
                Err(e) => return Err(End::Io(e)),
            }
        }
        Ok(())
    }

    async fn buffer(&mut self, header: &Header, len: usize) -> Result<B::Buf, End> {
        let buf = match self.buffers.try_alloc(len) {
            Some(buf) => buf,
            None => {
                self.end_batch();
                self.buffers.alloc(len).await.ok_or(End::TooLarge(len))?
            }
        };
        // The buffer is filled by its own length: a supplier that rounds up would make this reader take in what follows.
        if buf.len() == len { Ok(buf) } else { Err(truncated(header)) }
    }

    /// Lets the shard's other tasks run now and then, however fast the peer is.
    async fn take_turns(&mut self, payload: usize) -> Result<(), End> {
        self.turn_packets += 1;
        self.turn_bytes += payload;
        if self.turn_packets >= TURN_PACKETS || self.turn_bytes >= TURN_BYTES {
            (self.turn_packets, self.turn_bytes) = (0, 0);
            self.end_batch();
            self.session.behind(self.socket).set(self.staging.len() != 0);
            yield_now().await;
            self.session.behind(self.socket).set(false);
        }
        self.check_alive()
    }

    fn end_batch(&mut self) {
        if std::mem::take(&mut self.in_batch) {
            self.sink.batch_end();
        }
    }

    fn check_alive(&self) -> Result<(), End> {
        if self.session.is_alive() { Ok(()) } else { Err(End::Stopped) }
    }
}

fn truncated(header: &Header) -> End {
    End::Wire(WireError { place: header.place, packet: Some(header.kind), fault: Fault::Truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_batch_moves_to_the_front_when_room_gets_short() {
        let mut staging = Staging::new(8);
        staging.room().copy_from_slice(b"abcdefgh");
        staging.end = 8;
        staging.consume(5);
        assert_eq!(staging.filled(), b"fgh");
        assert_eq!(staging.room().len(), 5);
        assert_eq!(staging.filled(), b"fgh");
        staging.room()[0] = b'i';
        staging.end += 1;
        assert_eq!(staging.filled(), b"fghi");
        staging.consume(4);
        assert_eq!((staging.len(), staging.room().len()), (0, 8));
    }
}
