//! Bytes to packets and back, by the packet table.
//!
//! Reading goes in three steps, so that a payload can be received straight into its final buffer: [`decode_header`]
//! (checks command, socket, phase, version, feature and length before anything of the body is read), then
//! [`Header::fixed_len`] bytes, then [`Header::payload_len`] bytes, then [`decode_body`]. Writing goes in two:
//! [`encode_head`], and the bytes of [`Packet::payload`] right behind it.

use bytes::{BufMut, Bytes, BytesMut};

use crate::units::{GenId, VolumeNr};

use super::ack::BlockAck;
use super::agreed::Agreed;
use super::cursor::Reader;
use super::data::{Data, DataReply, DpFlags, P_DATA_LEN, P_TRIM_LEN, Trim, WSAME_BLOCK_MAX, WriteSame};
use super::digest::{Digest, DigestAlg};
use super::error::{EncodeError, Fault, Place, WireError};
use super::feature::Features;
use super::header::{HeaderFormat, RawHeader};
use super::kind::{Kind, LenRule, Phase, Row, Scope, Socket};
use super::packet::Packet;
use super::params::{Protocol, SyncParam, TEXT_LEN_MAX};
use super::resync::{BlockDesc, BlockReq};
use super::sizes::Sizes;
use super::state::StateWord;
use super::uuids::Uuids;

/// The largest [`Header::fixed_len`] in bytes.
pub const FIXED_LEN_MAX: usize = 148;

/// A packet with header and body structure is never longer than a page in bitmap transfers.
const BITMAP_PACKET_MAX: u32 = 4096;

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The packet.
    pub kind: Kind,
    /// Its volume; 0 for packets about the connection.
    pub volume: VolumeNr,
    /// Where it was read.
    pub place: Place,
    /// Bytes that follow the header.
    len: u32,
    /// Of these, bytes before the bulk payload.
    fixed: u32,
}

impl Header {
    /// Bytes that follow the header.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing follows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of structure and digest that follow the header; at most [`FIXED_LEN_MAX`].
    #[must_use]
    pub const fn fixed_len(&self) -> usize {
        self.fixed as usize
    }

    /// Bytes of bulk payload that follow those.
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        (self.len - self.fixed) as usize
    }

    fn fail(&self, fault: Fault) -> WireError {
        WireError { place: self.place, packet: Some(self.kind), fault }
    }
}

/// Number of bytes to read for [`decode_header`].
#[must_use]
pub const fn header_len(phase: Phase, agreed: &Agreed) -> usize {
    match phase {
        Phase::First | Phase::Features => HeaderFormat::H80.byte_count(),
        _ => agreed.version.header_len(),
    }
}

/// Reads and checks a header of [`header_len`] bytes.
pub fn decode_header(bytes: &[u8], place: Place, agreed: &Agreed) -> Result<Header, WireError> {
    let version = match place.phase {
        Phase::First | Phase::Features => None,
        _ => Some(agreed.version),
    };
    let raw = RawHeader::decode(bytes, version).map_err(|fault| WireError { place, packet: None, fault })?;
    let kind = Kind::from_command(raw.command).ok_or(WireError {
        place,
        packet: None,
        fault: Fault::UnknownCommand { command: raw.command },
    })?;
    let row = kind.row();
    let fail = |fault| WireError { place, packet: Some(kind), fault };
    if place.phase != Phase::First && !row.sockets.contains(place.socket) {
        return Err(fail(Fault::WrongSocket));
    }
    check_phase(row, place).map_err(fail)?;
    check_agreed(row, agreed).map_err(fail)?;
    let bounds = Bounds::of(row.len, agreed, agreed.integrity_received).map_err(fail)?;
    bounds.check(raw.len.into()).map_err(fail)?;
    let volume = match row.scope {
        Scope::Connection => VolumeNr(0),
        Scope::Volume => raw.volume,
    };
    Ok(Header { kind, volume, place, len: raw.len, fixed: bounds.fixed.unwrap_or(raw.len) })
}

fn check_phase(row: &Row, place: Place) -> Result<(), Fault> {
    let legal = match place.phase {
        Phase::Connected => matches!(row.phase, Phase::Params | Phase::Connected),
        // The meta socket is not ordered against the data socket: the peer may already be connected.
        Phase::Params => row.phase == Phase::Params || (place.socket == Socket::Meta && row.phase == Phase::Connected),
        early => row.phase == early,
    };
    if legal { Ok(()) } else { Err(Fault::WrongPhase { phase: place.phase }) }
}

fn check_agreed(row: &Row, agreed: &Agreed) -> Result<(), Fault> {
    let nr = agreed.version.nr();
    if nr < row.since || nr > row.until {
        return Err(Fault::Version { agreed: agreed.version, since: row.since, until: row.until });
    }
    if !agreed.features.has(row.feature) {
        return Err(Fault::Feature { missing: row.feature.without(agreed.features) });
    }
    Ok(())
}

/// The legal lengths of a packet under an agreement, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Smallest legal length.
    pub min: u32,
    /// Largest legal length.
    pub max: u32,
    /// Bytes before the bulk payload; `None` when there is none.
    pub fixed: Option<u32>,
    /// What the payload (or, without one, the whole) must be a multiple of.
    pub unit: u32,
}

impl Bounds {
    /// The bounds by `rule`; `integrity` is the algorithm of the direction in question.
    pub fn of(rule: LenRule, agreed: &Agreed, integrity: Option<DigestAlg>) -> Result<Self, Fault> {
        let version = agreed.version;
        let digest = |alg: Option<DigestAlg>| alg.map_or(0, |a| u32::try_from(a.len()).unwrap_or(0));
        let header = u32::try_from(version.header_len()).unwrap_or(0);
        let exact = |len| Self { min: len, max: len, fixed: None, unit: 1 };
        let between = |min, max| Self { min, max, fixed: None, unit: 1 };
        let required = |alg: Option<DigestAlg>, option| alg.map(|_| digest(alg)).ok_or(Fault::NoAlgorithm { option });
        Ok(match rule {
            LenRule::Exact(len) => exact(len),
            LenRule::Between(min, max) => between(min, max),
            LenRule::Payload { empty_ok } => {
                let fixed = P_DATA_LEN + digest(integrity);
                let min = if empty_ok { fixed } else { fixed + 512 };
                Self { min, max: fixed + version.request_bytes_max(), fixed: Some(fixed), unit: 512 }
            }
            LenRule::WriteSame => {
                let fixed = P_TRIM_LEN + digest(integrity);
                Self { min: fixed + 512, max: fixed + WSAME_BLOCK_MAX, fixed: Some(fixed), unit: 512 }
            }
            LenRule::CsumDigest => exact(24 + required(agreed.csums, "csums-alg")?),
            LenRule::VerifyDigest => exact(24 + required(agreed.verify, "verify-alg")?),
            LenRule::Protocol if version.nr() < 87 => exact(24),
            LenRule::Protocol => between(24, 24 + TEXT_LEN_MAX),
            LenRule::SyncParam if version.nr() < 88 => exact(4),
            LenRule::SyncParam => between(4, 4 + TEXT_LEN_MAX),
            LenRule::SyncParam89 => exact(if version.nr() < 95 { 132 } else { 148 }),
            LenRule::Sizes if agreed.features.has(super::FeatureFlags::WSAME) => exact(56),
            LenRule::Sizes => exact(32),
            LenRule::Bitmap => Self { min: 0, max: (BITMAP_PACKET_MAX - header) / 8 * 8, fixed: Some(0), unit: 8 },
            LenRule::CompressedBitmap => Self { min: 2, max: BITMAP_PACKET_MAX - header, fixed: Some(0), unit: 1 },
        })
    }

    /// Whether `len` is legal.
    pub fn check(&self, len: u64) -> Result<(), Fault> {
        if len < self.min.into() || len > self.max.into() {
            return Err(Fault::Length { got: len, min: self.min, max: self.max });
        }
        let payload = len - u64::from(self.fixed.unwrap_or(0));
        if !payload.is_multiple_of(self.unit.into()) {
            let rule = if self.unit == 8 { "must be whole words of 8 bytes" } else { "must be a multiple of 512" };
            return Err(Fault::Field { field: "length", value: payload, rule });
        }
        Ok(())
    }
}

/// Makes the packet from the body: `fixed` are [`Header::fixed_len`] bytes, `payload` are [`Header::payload_len`]. Does
/// not compare the payload with its digest: [`check_digest`] does.
pub fn decode_body(header: &Header, agreed: &Agreed, fixed: &[u8], payload: Bytes) -> Result<Packet, WireError> {
    if fixed.len() != header.fixed_len() || payload.len() != header.payload_len() {
        return Err(header.fail(Fault::Truncated));
    }
    body(header.kind, agreed, fixed, payload).map_err(|fault| header.fail(fault))
}

fn body(kind: Kind, agreed: &Agreed, fixed: &[u8], payload: Bytes) -> Result<Packet, Fault> {
    let r = &mut Reader::new(fixed);
    let version = agreed.version;
    Ok(match kind {
        Kind::InitialData => Packet::InitialData,
        Kind::InitialMeta => Packet::InitialMeta,
        Kind::ConnectionFeatures => Packet::ConnectionFeatures(Features::decode(r)?),
        Kind::AuthChallenge => Packet::AuthChallenge(Bytes::copy_from_slice(fixed)),
        Kind::AuthResponse => Packet::AuthResponse(Bytes::copy_from_slice(fixed)),
        Kind::Protocol => Packet::Protocol(Protocol::decode(r)?),
        Kind::ProtocolUpdate => Packet::ProtocolUpdate(Protocol::decode(r)?),
        Kind::SyncParam | Kind::SyncParam89 => Packet::SyncParam(SyncParam::decode(r, version)?),
        Kind::Sizes => Packet::Sizes(Sizes::decode(r, agreed.features)?),
        Kind::Uuids => Packet::Uuids(Uuids::decode(r)?),
        Kind::State => Packet::State(state(StateWord(r.u32()?))?),
        Kind::SyncUuid => Packet::SyncUuid(GenId(r.u64()?)),
        Kind::StateChgReq => Packet::StateChgReq { mask: StateWord(r.u32()?), val: StateWord(r.u32()?) },
        Kind::StateChgReply => Packet::StateChgReply(r.i32()?),
        Kind::ConnStChgReq => Packet::ConnStChgReq { mask: StateWord(r.u32()?), val: StateWord(r.u32()?) },
        Kind::ConnStChgReply => Packet::ConnStChgReply(r.i32()?),
        Kind::Data => Packet::Data(Data::decode(r, version, payload)?),
        Kind::Trim => Packet::Trim(trim(r, agreed, DpFlags::DISCARD)?),
        Kind::Zeroes => Packet::Zeroes(trim(r, agreed, DpFlags::ZEROES)?),
        Kind::WriteSame => Packet::WriteSame(WriteSame::decode(r, agreed.features, payload)?),
        Kind::Barrier => Packet::Barrier { barrier: r.u32()? },
        Kind::BarrierAck => Packet::BarrierAck { barrier: r.u32()?, set_size: r.u32()? },
        Kind::UnplugRemote => Packet::UnplugRemote,
        Kind::RecvAck => Packet::RecvAck(BlockAck::decode(r)?),
        Kind::WriteAck => Packet::WriteAck(BlockAck::decode(r)?),
        Kind::RsWriteAck => Packet::RsWriteAck(BlockAck::decode(r)?),
        Kind::Superseded => Packet::Superseded(BlockAck::decode(r)?),
        Kind::RetryWrite => Packet::RetryWrite(BlockAck::decode(r)?),
        Kind::NegAck => Packet::NegAck(BlockAck::decode(r)?),
        Kind::DataRequest => Packet::DataRequest(BlockReq::decode(r, version)?),
        Kind::DataReply => Packet::DataReply(DataReply::decode(r, payload)?),
        Kind::NegDreply => Packet::NegDreply(BlockAck::decode(r)?),
        Kind::RsDataRequest => Packet::RsDataRequest(BlockReq::decode(r, version)?),
        Kind::RsThinReq => Packet::RsThinReq(BlockReq::decode(r, version)?),
        Kind::CsumRsRequest => Packet::CsumRsRequest { req: BlockReq::decode(r, version)?, digest: rest(r)? },
        Kind::RsDataReply => Packet::RsDataReply(DataReply::decode(r, payload)?),
        Kind::RsDeallocated => Packet::RsDeallocated(BlockDesc::decode(r)?),
        Kind::RsIsInSync => Packet::RsIsInSync(BlockAck::decode(r)?),
        Kind::NegRsDreply => Packet::NegRsDreply(BlockAck::decode(r)?),
        Kind::RsCancel => Packet::RsCancel(BlockAck::decode(r)?),
        Kind::OutOfSync => Packet::OutOfSync(BlockDesc::decode(r)?),
        Kind::Bitmap => Packet::Bitmap(payload),
        Kind::CompressedBitmap => Packet::CompressedBitmap(payload),
        Kind::OvRequest => Packet::OvRequest(BlockReq::decode(r, version)?),
        Kind::OvReply => Packet::OvReply { req: BlockReq::decode(r, version)?, digest: rest(r)? },
        Kind::OvResult => {
            let ack = BlockAck::decode(r)?;
            ack.check_verdict()?;
            Packet::OvResult(ack)
        }
        Kind::Ping => Packet::Ping,
        Kind::PingAck => Packet::PingAck,
        Kind::DelayProbe => Packet::DelayProbe { seq: r.u32()?, offset: r.u32()? },
    })
}

fn trim(r: &mut Reader<'_>, agreed: &Agreed, needed: DpFlags) -> Result<Trim, Fault> {
    let trim = Trim::decode(r)?;
    trim.check(agreed.features, needed)?;
    Ok(trim)
}

fn rest(r: &mut Reader<'_>) -> Result<Digest, Fault> {
    Digest::new(r.take_rest()).ok_or(Fault::Truncated)
}

/// Numbers without a name would later be taken for some state.
fn state(word: StateWord) -> Result<StateWord, Fault> {
    let fields = [
        ("role", word.role().is_some()),
        ("peer", word.peer().is_some()),
        ("conn", word.conn().is_some()),
        ("disk", word.disk().is_some()),
        ("pdsk", word.pdsk().is_some()),
    ];
    match fields.into_iter().find(|(_, named)| !named) {
        None => Ok(word),
        Some((field, _)) => Err(Fault::Field { field, value: word.0.into(), rule: "names no state" }),
    }
}

/// Compares the payload of a received packet with the digest that came with it. Packets without one pass.
pub fn check_digest(header: &Header, agreed: &Agreed, packet: &Packet) -> Result<(), WireError> {
    let digest = match packet {
        Packet::Data(p) => p.digest,
        Packet::WriteSame(p) => p.digest,
        Packet::DataReply(p) | Packet::RsDataReply(p) => p.digest,
        _ => return Ok(()),
    };
    match (agreed.integrity_received, packet.payload()) {
        (Some(alg), Some(payload)) if alg.digest(&[payload]) != digest => Err(header.fail(Fault::DigestMismatch)),
        _ => Ok(()),
    }
}

/// Puts the digest of the payload into a packet to be sent, as the agreed algorithm wants it.
pub fn seal(packet: &mut Packet, agreed: &Agreed) {
    let of = |payload: &Bytes| agreed.integrity_sent.map_or(Digest::EMPTY, |alg| alg.digest(&[payload]));
    match packet {
        Packet::Data(p) => p.digest = of(&p.payload),
        Packet::WriteSame(p) => p.digest = of(&p.payload),
        Packet::DataReply(p) | Packet::RsDataReply(p) => p.digest = of(&p.payload),
        _ => {}
    }
}

/// Appends header, structure and digest of `packet`. Its [`Packet::payload`] must be sent right behind. On error
/// nothing is appended.
pub fn encode_head(volume: VolumeNr, packet: &Packet, agreed: &Agreed, out: &mut BytesMut) -> Result<(), EncodeError> {
    let kind = match packet {
        Packet::SyncParam(_) => Kind::sync_param(agreed.version),
        other => other.kind(),
    };
    let start = out.len();
    head(kind, volume, packet, agreed, out).map_err(|fault| {
        out.truncate(start);
        EncodeError { packet: kind, fault }
    })
}

/// Appends the whole packet, with a copy of its payload. For tests and small packets.
pub fn encode(volume: VolumeNr, packet: &Packet, agreed: &Agreed, out: &mut BytesMut) -> Result<(), EncodeError> {
    encode_head(volume, packet, agreed, out)?;
    out.extend_from_slice(packet.payload().map_or(&[], |p| p));
    Ok(())
}

fn head(kind: Kind, volume: VolumeNr, packet: &Packet, agreed: &Agreed, out: &mut BytesMut) -> Result<(), Fault> {
    let row = kind.row();
    let negotiated = !matches!(row.phase, Phase::First | Phase::Features);
    if negotiated {
        check_agreed(row, agreed)?;
    }
    let volume = if row.scope == Scope::Connection { VolumeNr(0) } else { volume };
    if !agreed.version.has_volumes() && volume.0 != 0 {
        let rule = "the agreed version has only volume 0";
        return Err(Fault::Field { field: "volume", value: volume.0.into(), rule });
    }
    let start = out.len();
    let header_len = if negotiated { agreed.version.header_len() } else { HeaderFormat::H80.byte_count() };
    // The header's format depends on the length, its size does not: the body goes first.
    out.put_bytes(0, header_len);
    structure(packet, agreed, out)?;
    let payload = packet.payload().map_or(0, Bytes::len);
    let len = out.len() - start - header_len + payload;
    let bounds = Bounds::of(row.len, agreed, agreed.integrity_sent)?;
    if let Some(fixed) = bounds.fixed
        && len - payload != fixed as usize
    {
        let rule = "is not as long as the agreed algorithm's digests";
        return Err(Fault::Field { field: "digest", value: (len - payload) as u64, rule });
    }
    bounds.check(len as u64)?;
    let len = u32::try_from(len).map_err(|_| Fault::Length { got: len as u64, min: bounds.min, max: bounds.max })?;
    let format = if negotiated { HeaderFormat::for_sending(agreed.version, len) } else { HeaderFormat::H80 };
    RawHeader { format, volume, command: kind.command(), len }.encode(&mut out[start..])
}

/// Checks `packet` and appends its structure and digest.
fn structure(packet: &Packet, agreed: &Agreed, out: &mut BytesMut) -> Result<(), Fault> {
    let version = agreed.version;
    match packet {
        Packet::InitialData | Packet::InitialMeta | Packet::UnplugRemote | Packet::Ping | Packet::PingAck => {}
        Packet::Bitmap(_) | Packet::CompressedBitmap(_) => {}
        Packet::ConnectionFeatures(p) => p.encode(out),
        Packet::AuthChallenge(b) | Packet::AuthResponse(b) => out.put_slice(b),
        Packet::Protocol(p) | Packet::ProtocolUpdate(p) => p.encode(version, out),
        Packet::SyncParam(p) => p.encode(version, out),
        Packet::Sizes(p) => {
            p.check()?;
            p.encode(agreed.features, out);
        }
        Packet::Uuids(p) => p.encode(out),
        Packet::State(word) => out.put_u32(state(*word)?.0),
        Packet::SyncUuid(id) => out.put_u64(id.0),
        Packet::StateChgReq { mask, val } | Packet::ConnStChgReq { mask, val } => {
            out.put_u32(mask.0);
            out.put_u32(val.0);
        }
        Packet::StateChgReply(code) | Packet::ConnStChgReply(code) => out.put_i32(*code),
        Packet::Data(p) => {
            p.check(version)?;
            p.encode(out);
        }
        Packet::Trim(p) => {
            p.check(agreed.features, DpFlags::DISCARD)?;
            p.encode(out);
        }
        Packet::Zeroes(p) => {
            p.check(agreed.features, DpFlags::ZEROES)?;
            p.encode(out);
        }
        Packet::WriteSame(p) => {
            p.check(agreed.features)?;
            p.encode(out);
        }
        Packet::DataReply(p) | Packet::RsDataReply(p) => {
            p.check()?;
            p.encode(out);
        }
        Packet::Barrier { barrier } => {
            out.put_u32(*barrier);
            out.put_u32(0);
        }
        Packet::BarrierAck { barrier, set_size } => {
            out.put_u32(*barrier);
            out.put_u32(*set_size);
        }
        Packet::RecvAck(p)
        | Packet::WriteAck(p)
        | Packet::RsWriteAck(p)
        | Packet::Superseded(p)
        | Packet::RetryWrite(p)
        | Packet::NegAck(p)
        | Packet::NegDreply(p)
        | Packet::RsIsInSync(p)
        | Packet::NegRsDreply(p)
        | Packet::RsCancel(p) => {
            p.check()?;
            p.encode(out);
        }
        Packet::OvResult(p) => {
            p.check()?;
            p.check_verdict()?;
            p.encode(out);
        }
        Packet::DataRequest(p) | Packet::RsDataRequest(p) | Packet::RsThinReq(p) | Packet::OvRequest(p) => {
            p.check(version)?;
            p.encode(out);
        }
        Packet::CsumRsRequest { req, digest } | Packet::OvReply { req, digest } => {
            req.check(version)?;
            req.encode(out);
            out.put_slice(digest.as_bytes());
        }
        Packet::RsDeallocated(p) | Packet::OutOfSync(p) => {
            p.check()?;
            p.encode(out);
        }
        Packet::DelayProbe { seq, offset } => {
            out.put_u32(*seq);
            out.put_u32(*offset);
        }
    }
    Ok(())
}
