//! What the two nodes say before the link is up: first packets, features, authentication (wire.md 1.2, 4.2, 4.3).
//!
//! Takes in a fresh TCP connection and gives out what was agreed. Every packet has a limit of four times `ping-timeout`;
//! lengths are checked against the packet table before a body is read.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::config::LinkConfig;
use super::error::LinkError;
use crate::units::VolumeNr;
use crate::wire::agreed::Agreed;
use crate::wire::auth::{Authentication, CHALLENGE_LEN};
use crate::wire::codec::{FIXED_LEN_MAX, decode_body, decode_header, encode, header_len};
use crate::wire::error::{Fault, Place, WireError};
use crate::wire::feature::FeatureFlags;
use crate::wire::header::HEADER_LEN_MAX;
use crate::wire::kind::{Kind, Phase, Socket};
use crate::wire::packet::Packet;

const FEATURES: &str = "exchanging features";
const AUTHENTICATION: &str = "authenticating";

/// What was agreed before the link is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    /// Version and DRBD's features.
    pub(super) agreed: Agreed,
    /// Both nodes announced relaxed epochs.
    pub(super) relaxed_epochs: bool,
}

/// Says which socket this connection is going to be.
pub(super) async fn send_first(stream: &mut TcpStream, socket: Socket, config: &LinkConfig) -> Result<(), LinkError> {
    let packet = match socket {
        Socket::Data => Packet::InitialData,
        Socket::Meta => Packet::InitialMeta,
    };
    send(stream, &packet, &Agreed::initial(), config, "sending the first packet").await
}

/// Reads the first packet of an accepted connection: which socket the peer wants it to be.
pub(super) async fn receive_first(stream: &mut TcpStream, config: &LinkConfig) -> Result<Socket, LinkError> {
    // Which socket it is does not matter to the decoder in this phase.
    let place = Place { socket: Socket::Data, phase: Phase::First };
    match receive(stream, place, &Agreed::initial(), config, "reading the first packet").await? {
        Packet::InitialMeta => Ok(Socket::Meta),
        _ => Ok(Socket::Data),
    }
}

/// Agrees with the peer on version and features, and authenticates both nodes to each other where a secret is configured.
pub(super) async fn negotiate(data: &mut TcpStream, config: &LinkConfig) -> Result<Agreement, LinkError> {
    let own = config.offer();
    let place = Place { socket: Socket::Data, phase: Phase::Features };
    send(data, &Packet::ConnectionFeatures(own), &Agreed::initial(), config, FEATURES).await?;
    let Packet::ConnectionFeatures(peer) = receive(data, place, &Agreed::initial(), config, FEATURES).await? else {
        return Err(unexpected(place, Kind::ConnectionFeatures).into());
    };
    let mut agreed = Agreed::negotiate(own, peer).map_err(|fault| WireError {
        place,
        packet: Some(Kind::ConnectionFeatures),
        fault,
    })?;
    let relaxed_epochs = agreed.features.has(FeatureFlags::RELAXED_EPOCHS);
    agreed.features = agreed.features.without(FeatureFlags::RELAXED_EPOCHS);
    if let Some((alg, secret)) = &config.auth {
        let mut own = [0; CHALLENGE_LEN];
        getrandom::fill(&mut own).map_err(LinkError::Random)?;
        authenticate(data, &Authentication::new(*alg, secret.clone(), own), &agreed, config).await?;
    }
    Ok(Agreement { agreed, relaxed_epochs })
}

async fn authenticate(
    data: &mut TcpStream,
    auth: &Authentication,
    agreed: &Agreed,
    config: &LinkConfig,
) -> Result<(), LinkError> {
    send(data, &Packet::AuthChallenge(auth.challenge()), agreed, config, AUTHENTICATION).await?;
    let place = Place { socket: Socket::Data, phase: Phase::AuthChallenge };
    let Packet::AuthChallenge(challenge) = receive(data, place, agreed, config, AUTHENTICATION).await? else {
        return Err(unexpected(place, Kind::AuthChallenge).into());
    };
    send(data, &Packet::AuthResponse(auth.respond(&challenge)?), agreed, config, AUTHENTICATION).await?;
    let place = Place { socket: Socket::Data, phase: Phase::AuthResponse };
    let Packet::AuthResponse(response) = receive(data, place, agreed, config, AUTHENTICATION).await? else {
        return Err(unexpected(place, Kind::AuthResponse).into());
    };
    Ok(auth.verify(&response)?)
}

/// The packet table lets only one packet pass in each of these phases, so this is for the compiler.
fn unexpected(place: Place, wanted: Kind) -> WireError {
    WireError { place, packet: Some(wanted), fault: Fault::WrongPhase { phase: place.phase } }
}

async fn send(
    stream: &mut TcpStream,
    packet: &Packet,
    agreed: &Agreed,
    config: &LinkConfig,
    doing: &'static str,
) -> Result<(), LinkError> {
    let mut bytes = BytesMut::new();
    encode(VolumeNr(0), packet, agreed, &mut bytes)
        .map_err(|e| LinkError::Io { doing, source: std::io::Error::other(e) })?;
    let deadline = Instant::now() + config.handshake_timeout();
    timeout_at(deadline, stream.write_all(&bytes))
        .await
        .map_err(|_| LinkError::TimedOut { doing })?
        .map_err(LinkError::io(doing))
}

async fn receive(
    stream: &mut TcpStream,
    place: Place,
    agreed: &Agreed,
    config: &LinkConfig,
    doing: &'static str,
) -> Result<Packet, LinkError> {
    // One limit for the whole packet: a peer that sends a byte now and then gains nothing.
    let deadline = Instant::now() + config.handshake_timeout();
    let mut bytes = [0; HEADER_LEN_MAX + FIXED_LEN_MAX];
    let (head, body) = bytes.split_at_mut(header_len(place.phase, agreed));
    read_exact(stream, head, deadline, doing).await?;
    let header = decode_header(head, place, agreed)?;
    let body =
        body.get_mut(..header.len()).ok_or(WireError { place, packet: Some(header.kind), fault: Fault::Truncated })?;
    read_exact(stream, body, deadline, doing).await?;
    Ok(decode_body(&header, agreed, body, Bytes::new())?)
}

async fn read_exact(
    stream: &mut TcpStream,
    out: &mut [u8],
    deadline: Instant,
    doing: &'static str,
) -> Result<(), LinkError> {
    timeout_at(deadline, stream.read_exact(out))
        .await
        .map_err(|_| LinkError::TimedOut { doing })?
        .map(drop)
        .map_err(LinkError::io(doing))
}
