//! What can be wrong with bytes from the peer, and what to do about it (wire.md 4.13, 13.2, 13.3).
//!
//! A [`WireError`] names the place, the packet and the fault; [`WireError::reaction`] is one table for all of them.

use std::fmt;

use super::feature::{FeatureFlags, Features, Version};
use super::kind::{Kind, Phase, Socket};

/// Where a packet is read: which socket, and how far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The socket. In [`Phase::First`] it is not known yet and does not matter.
    pub socket: Socket,
    /// How far the connection is.
    pub phase: Phase,
}

/// What to do with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reaction {
    /// Close this TCP connection only: it is not yet one of the pair.
    CloseSocket,
    /// Close both sockets, state ProtocolError, connect again with back-off.
    Reconnect,
    /// Close both sockets, state NetworkFailure, connect again with back-off.
    NetworkFailure,
    /// Close both sockets and stay StandAlone: trying again is pointless.
    StandAlone,
}

/// The peer sent something illegal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} on the {} socket: {fault}", name(*.packet), .place.socket.text())]
pub struct WireError {
    /// Where it was read.
    pub place: Place,
    /// The packet, if its command is known.
    pub packet: Option<Kind>,
    /// What is wrong with it.
    pub fault: Fault,
}

fn name(packet: Option<Kind>) -> &'static str {
    packet.map_or("packet", Kind::name)
}

/// What is wrong with a packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The header's magic is not the one of the agreed version. Values: what the header starts with.
    #[error("wrong magic {got:#010x}")]
    Magic {
        /// First 32 bits of the header.
        got: u32,
    },
    /// The pad of a 16-byte header is not 0.
    #[error("header pad is {value:#x}, not 0")]
    Pad {
        /// Its value.
        value: u32,
    },
    /// No packet of protocols 86 to 101 has this command.
    #[error("unknown command {command:#06x}")]
    UnknownCommand {
        /// Command number.
        command: u16,
    },
    /// The packet belongs on the other socket.
    #[error("belongs on the other socket")]
    WrongSocket,
    /// The packet may not come in this phase.
    #[error("not expected in phase {phase:?}")]
    WrongPhase {
        /// The connection's phase.
        phase: Phase,
    },
    /// The agreed version does not have this packet.
    #[error("not part of protocol {agreed}, only of {since} to {until}")]
    Version {
        /// Agreed version.
        agreed: Version,
        /// First version that has it.
        since: u32,
        /// Last version that has it.
        until: u32,
    },
    /// The feature that this packet needs was not agreed.
    #[error("feature {missing:?} was not agreed")]
    Feature {
        /// The feature.
        missing: FeatureFlags,
    },
    /// The length is out of bounds.
    #[error("length {got}, must be {min} to {max}")]
    Length {
        /// Length in the header (or to be sent), in bytes.
        got: u64,
        /// Smallest legal length.
        min: u32,
        /// Largest legal length.
        max: u32,
    },
    /// A digest arrives, or is to be sent, but no algorithm is agreed.
    #[error("{option} is not set")]
    NoAlgorithm {
        /// The option that names the algorithm.
        option: &'static str,
    },
    /// A field has an illegal value.
    #[error("{field} is {value:#x}: {rule}")]
    Field {
        /// Name of the field, as in wire.md.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// A digest algorithm that this node does not know.
    #[error("{field} names unknown algorithm {name:?}")]
    UnknownAlgorithm {
        /// Name of the field, as in wire.md.
        field: &'static str,
        /// The name, at most 64 characters.
        name: Box<str>,
    },
    /// The version ranges of the nodes do not meet.
    #[error("versions do not meet: {} to {} here, {} to {} there",
        .own.protocol_min, .own.protocol_max, .peer.protocol_min, .peer.protocol_max)]
    Versions {
        /// This node's offer.
        own: Features,
        /// The peer's offer.
        peer: Features,
    },
    /// The payload does not have the digest that the packet says.
    #[error("payload does not match its digest")]
    DigestMismatch,
    /// The peer returned this node's own challenge.
    #[error("the peer sent our own challenge back")]
    Reflection,
    /// The peer does not know the secret.
    #[error("wrong answer to the challenge: the shared secrets differ")]
    WrongResponse,
    /// A bitmap packet does not fit to the transfer.
    #[error("{0}")]
    Bitmap(BitmapFault),
    /// A structure is longer than the bytes at hand: the caller passed less than the header says.
    #[error("structure is cut short")]
    Truncated,
}

/// What is wrong with a bitmap packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapFault {
    /// The transfer is over.
    #[error("bitmap is already complete")]
    Complete,
    /// The packet before is not merged yet, or was illegal.
    #[error("the chunk before is not merged yet")]
    Unfinished,
    /// A plain chunk must carry exactly as many bytes as fit or are left.
    #[error("plain chunk of {got} bytes, must be {want}")]
    ChunkLength {
        /// Bytes in the packet.
        got: usize,
        /// Bytes that it must have.
        want: usize,
    },
    /// Only encoding 2 exists.
    #[error("unknown encoding {0}")]
    Encoding(u8),
    /// A run reaches beyond the last bit.
    #[error("run of {run} bits at bit {at} of {bits}")]
    RunOverflow {
        /// Length of the run.
        run: u64,
        /// Where it starts.
        at: u64,
        /// Bits of the bitmap.
        bits: u64,
    },
    /// A code word is longer than the bits left, or there is none.
    #[error("code word is cut short")]
    CodeTruncated,
}

impl WireError {
    /// What the connection deserves. Follows the kernel, so that both ends of a mixed pair behave alike.
    #[must_use]
    pub const fn reaction(&self) -> Reaction {
        match self.place.phase {
            Phase::First => return Reaction::CloseSocket,
            Phase::Features => {
                return match self.fault {
                    Fault::Magic { .. } | Fault::Pad { .. } | Fault::Truncated => Reaction::Reconnect,
                    _ => Reaction::StandAlone,
                };
            }
            Phase::AuthChallenge => {
                return match self.fault {
                    Fault::Magic { .. } | Fault::Pad { .. } | Fault::Truncated => Reaction::Reconnect,
                    _ => Reaction::StandAlone,
                };
            }
            Phase::AuthResponse => {
                return match self.fault {
                    Fault::WrongResponse => Reaction::StandAlone,
                    _ => Reaction::Reconnect,
                };
            }
            Phase::Params | Phase::Connected => {}
        }
        match (self.place.socket, &self.fault) {
            // The hash must be available: trying again will not make it so.
            (_, Fault::UnknownAlgorithm { .. }) => Reaction::StandAlone,
            (Socket::Data, _) => Reaction::Reconnect,
            (Socket::Meta, Fault::UnknownCommand { .. } | Fault::WrongSocket) => Reaction::StandAlone,
            (Socket::Meta, _) => Reaction::NetworkFailure,
        }
    }
}

/// This node tried to send something illegal: a packet that the agreed version or features do not have, or a value out
/// of its bounds. Never caused by the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot send {}: {fault}", .packet.name())]
pub struct EncodeError {
    /// The packet.
    pub packet: Kind,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(socket: Socket, phase: Phase, fault: Fault) -> Reaction {
        WireError { place: Place { socket, phase }, packet: Some(Kind::State), fault }.reaction()
    }

    #[test]
    fn reactions_are_those_of_the_kernel() {
        use Phase::*;
        use Socket::*;
        let unknown = || Fault::UnknownCommand { command: 5 };
        let length = || Fault::Length { got: 1, min: 2, max: 3 };
        let magic = || Fault::Magic { got: 0 };
        assert_eq!(at(Data, First, unknown()), Reaction::CloseSocket);
        assert_eq!(at(Data, Features, length()), Reaction::StandAlone);
        assert_eq!(at(Data, Features, magic()), Reaction::Reconnect);
        assert_eq!(at(Data, AuthChallenge, Fault::Reflection), Reaction::StandAlone);
        assert_eq!(at(Data, AuthChallenge, Fault::WrongPhase { phase: AuthChallenge }), Reaction::StandAlone);
        assert_eq!(at(Data, AuthResponse, Fault::WrongPhase { phase: AuthResponse }), Reaction::Reconnect);
        assert_eq!(at(Data, AuthResponse, length()), Reaction::Reconnect);
        assert_eq!(at(Data, AuthResponse, Fault::WrongResponse), Reaction::StandAlone);
        assert_eq!(at(Data, Connected, unknown()), Reaction::Reconnect);
        assert_eq!(at(Meta, Connected, unknown()), Reaction::StandAlone);
        assert_eq!(at(Meta, Connected, length()), Reaction::NetworkFailure);
        assert_eq!(at(Meta, Connected, magic()), Reaction::NetworkFailure);
        let alg = Fault::UnknownAlgorithm { field: "verify_alg", name: "rot13".into() };
        assert_eq!(at(Data, Params, alg), Reaction::StandAlone);
    }

    #[test]
    fn an_error_reads_as_a_sentence() {
        let e = WireError {
            place: Place { socket: Socket::Data, phase: Phase::Connected },
            packet: Some(Kind::Trim),
            fault: Fault::Field { field: "size", value: 513, rule: "must be a multiple of 512" },
        };
        assert_eq!(e.to_string(), "P_TRIM on the data socket: size is 0x201: must be a multiple of 512");
    }
}
