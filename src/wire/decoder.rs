//! A stream of bytes, cut anywhere, to packets. For whoever has no better place to receive a payload into: the
//! simulator, tests, scripted peers. The payload of a packet shares the memory that the bytes were collected in.
//!
//! Never holds more than what was fed; a header is checked before its body is waited for.

use bytes::BytesMut;

use super::agreed::Agreed;
use super::codec::{Header, decode_body, decode_header, header_len};
use super::error::{Place, WireError};
use super::kind::{Phase, Socket};
use super::packet::Packet;

/// Decoder of one direction of one socket.
#[derive(Debug)]
pub struct StreamDecoder {
    place: Place,
    agreed: Agreed,
    bytes: BytesMut,
    header: Option<Header>,
    failed: Option<WireError>,
}

impl StreamDecoder {
    /// A decoder at the start of `phase`.
    #[must_use]
    pub fn new(socket: Socket, phase: Phase, agreed: Agreed) -> Self {
        Self { place: Place { socket, phase }, agreed, bytes: BytesMut::new(), header: None, failed: None }
    }

    /// Adds bytes that came in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next packet; `None` when more bytes are needed. After an error the stream is lost: every further call
    /// returns the same error. Set what a packet changes ([`Self::set_phase`], [`Self::agreed_mut`]) before the next
    /// call.
    pub fn next_packet(&mut self) -> Result<Option<(Header, Packet)>, WireError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let header = match self.header {
            Some(header) => header,
            None => {
                let len = header_len(self.place.phase, &self.agreed);
                let Some(bytes) = self.bytes.get(..len) else { return Ok(None) };
                let header =
                    decode_header(bytes, self.place, &self.agreed).inspect_err(|e| self.failed = Some(e.clone()))?;
                drop(self.bytes.split_to(len));
                *self.header.insert(header)
            }
        };
        if self.bytes.len() < header.len() {
            return Ok(None);
        }
        self.header = None;
        let mut body = self.bytes.split_to(header.len()).freeze();
        let fixed = body.split_to(header.fixed_len());
        decode_body(&header, &self.agreed, &fixed, body)
            .map(|packet| Some((header, packet)))
            .inspect_err(|e| self.failed = Some(e.clone()))
    }

    /// The connection is now in `phase`.
    pub fn set_phase(&mut self, phase: Phase) {
        self.place.phase = phase;
    }

    /// The socket turned out to be this one.
    pub fn set_socket(&mut self, socket: Socket) {
        self.place.socket = socket;
    }

    /// Which socket this is.
    #[must_use]
    pub const fn socket(&self) -> Socket {
        self.place.socket
    }

    /// How far the connection is.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.place.phase
    }

    /// What both nodes agreed on.
    #[must_use]
    pub const fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// The same, to be changed between two packets.
    pub const fn agreed_mut(&mut self) -> &mut Agreed {
        &mut self.agreed
    }

    /// Bytes that were fed and belong to no packet yet; 0 at the clean end of a stream.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bytes.len() + self.header.map_or(0, |_| 1)
    }
}
