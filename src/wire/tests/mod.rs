//! Tests over all packets: a generator of every legal packet under any agreement, and what the tests share.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::units::{BlockId, GenId, Sector, Sectors, SeqNr, VolumeNr};

use super::ack::{OV_IN_SYNC, OV_OUT_OF_SYNC};
use super::codec::{Bounds, FIXED_LEN_MAX, check_digest, seal};
use super::error::{Fault, Reaction};
use super::header::{HEADER_LEN_MAX, HeaderFormat, RawHeader};
use super::kind::{KINDS, Scope, Sockets};
use super::*;

mod fields;
mod properties;
mod table;

fn v(nr: u32) -> Version {
    Version::new(nr).unwrap()
}

/// All features, the newest version, every digest.
fn full() -> Agreed {
    Agreed {
        integrity_sent: Some(DigestAlg::Crc32c),
        integrity_received: Some(DigestAlg::Crc32c),
        verify: Some(DigestAlg::Sha1),
        csums: Some(DigestAlg::Md5),
        ..Agreed::new(Version::MAX, FeatureFlags::KNOWN)
    }
}

fn place_of(kind: Kind) -> Place {
    let row = kind.row();
    let socket = if row.sockets.contains(Socket::Data) { Socket::Data } else { Socket::Meta };
    Place { socket, phase: row.phase }
}

fn legal(kind: Kind, agreed: &Agreed) -> bool {
    let row = kind.row();
    (row.since..=row.until).contains(&agreed.version.nr())
        && agreed.features.has(row.feature)
        && Bounds::of(row.len, agreed, agreed.integrity_received).is_ok()
}

fn header_bytes(kind: Kind, len: u32, agreed: &Agreed) -> Vec<u8> {
    let format = match kind.row().phase {
        Phase::First | Phase::Features => HeaderFormat::H80,
        _ => HeaderFormat::for_sending(agreed.version, len),
    };
    let mut out = vec![0; format.byte_count()];
    RawHeader { format, volume: VolumeNr(0), command: kind.command(), len }.encode(&mut out).unwrap();
    out
}

/// Raw material of a packet.
#[derive(Clone, Debug)]
struct Raw {
    sector: u64,
    id: u64,
    size: u32,
    words: [u64; 4],
    small: [u8; 8],
    bytes: Vec<u8>,
    alg: Option<DigestAlg>,
}

fn raw() -> impl Strategy<Value = Raw> {
    (
        0..1u64 << 40,
        any::<u64>(),
        1..1u32 << 16,
        any::<[u64; 4]>(),
        any::<[u8; 8]>(),
        prop::collection::vec(any::<u8>(), 64..=128),
        prop::option::of(prop::sample::select(DigestAlg::ALL)),
    )
        .prop_map(|(sector, id, size, words, small, bytes, alg)| Raw {
            sector,
            id,
            size,
            words,
            small,
            bytes,
            alg,
        })
}

fn low(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap()
}

/// A legal packet of this kind.
fn build(kind: Kind, raw: &Raw, agreed: &Agreed) -> Packet {
    let [w0, w1, w2, w3] = raw.words;
    let (sector, block_id) = (Sector(raw.sector), BlockId(raw.id));
    let seq = SeqNr(low(w0));
    let request = raw.size % (agreed.version.request_bytes_max() / 512) * 512;
    let request = if request == 0 { 512 } else { request };
    let discard = (raw.size * 512).min(agreed.features.discard_bytes_max());
    let ack = BlockAck { sector, block_id, blksize: raw.size * 512, seq };
    let req = BlockReq { sector, block_id, blksize: request };
    let desc = BlockDesc { sector, blksize: raw.size * 512 };
    let other = DpFlags::DISCARD.with(DpFlags::ZEROES).with(DpFlags::WSAME);
    let flags = DpFlags(low(w1)).without(other);
    let payload = |len: u32| raw.bytes.iter().copied().cycle().take(len as usize).collect::<Bytes>();
    let digest = |alg: Option<DigestAlg>| alg.map_or(Digest::EMPTY, |a| a.digest(&[&raw.bytes]));
    let name = raw.alg.map(AlgName::from).unwrap_or_default();
    let trim = |needed| Trim { sector, block_id, seq, flags: flags.with(needed), size: discard };
    let policy = |i: usize| AfterSb::ALL[usize::from(raw.small[i]) % AfterSb::ALL.len()];
    let reply = || DataReply { sector, block_id, digest: Digest::EMPTY, payload: payload(request) };
    let (mask, val) = (StateWord(low(w2)), StateWord(low(w3)));
    let verdict = if w3 % 2 == 0 { OV_IN_SYNC } else { OV_OUT_OF_SYNC };
    let protocol = || Protocol {
        protocol: [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C][usize::from(raw.small[0] % 3)],
        after_sb_0p: policy(1),
        after_sb_1p: policy(2),
        after_sb_2p: policy(3),
        conn_flags: ConnFlags(low(w1)),
        two_primaries: raw.small[4] % 2 == 1,
        integrity_alg: if agreed.version.nr() >= 87 { name.clone() } else { AlgName::NONE },
    };
    let bitmap_words = raw.size % u32::try_from((4096 - agreed.version.header_len()) / 8 + 1).unwrap();
    let mut packet = match kind {
        Kind::InitialData => Packet::InitialData,
        Kind::InitialMeta => Packet::InitialMeta,
        Kind::ConnectionFeatures => Packet::ConnectionFeatures(Features {
            protocol_min: low(w0),
            protocol_max: low(w1),
            flags: FeatureFlags(low(w2)),
        }),
        Kind::AuthChallenge => Packet::AuthChallenge(raw.bytes.clone().into()),
        Kind::AuthResponse => Packet::AuthResponse(raw.bytes[..raw.alg.map_or(1, DigestAlg::len)].to_vec().into()),
        Kind::Protocol => Packet::Protocol(protocol()),
        Kind::ProtocolUpdate => Packet::ProtocolUpdate(protocol()),
        Kind::SyncParam | Kind::SyncParam89 => Packet::SyncParam(
            SyncParam {
                resync_rate_kib: low(w0),
                verify_alg: Some(name),
                csums_alg: Some(AlgName::from(DigestAlg::Md5)),
                controller: Some(Controller {
                    plan_ahead_ds: low(w0),
                    delay_target_ds: low(w1),
                    fill_target_sectors: low(w2),
                    max_rate_kib: low(w3),
                }),
            }
            .shaped_for(agreed.version),
        ),
        Kind::Sizes => Packet::Sizes(Sizes {
            d_size: Sectors(w0 >> 10),
            u_size: Sectors(w1 >> 10),
            c_size: Sectors(w2 >> 10),
            max_bio_size: low(w3),
            queue_order_type: u16::from(raw.small[0]),
            dds_flags: DdsFlags(u16::from(raw.small[1])),
            limits: agreed.features.has(FeatureFlags::WSAME).then(|| QueueLimits {
                physical_block_size: low(w0),
                logical_block_size: [0, 512, 4096, 1 << 31][usize::from(raw.small[2] % 4)],
                alignment_offset: low(w1),
                io_min: low(w2),
                io_opt: low(w3),
                discard_enabled: raw.small[3].is_multiple_of(2),
                discard_zeroes_data: raw.small[4].is_multiple_of(2),
                write_same_capable: raw.small[5].is_multiple_of(2),
            }),
        }),
        Kind::Uuids => Packet::Uuids(Uuids {
            current: GenId(w0),
            bitmap: GenId(w1),
            history: [GenId(w2), GenId(w3)],
            bits_set: raw.sector,
            flags: UuidFlags(raw.id),
        }),
        Kind::State => {
            let role = |i: usize| Role::ALL[usize::from(raw.small[i]) % Role::ALL.len()];
            let disk = |i: usize| DiskState::ALL[usize::from(raw.small[i]) % DiskState::ALL.len()];
            let conn = ConnState::ALL[usize::from(raw.small[4]) % ConnState::ALL.len()];
            Packet::State(
                StateWord::of_role(role(0))
                    .or(StateWord::of_peer(role(1)))
                    .or(StateWord::of_conn(conn))
                    .or(StateWord::of_disk(disk(2)))
                    .or(StateWord::of_pdsk(disk(3)))
                    .or(StateWord(low(w0) & 0xfffe_0000)),
            )
        }
        Kind::SyncUuid => Packet::SyncUuid(GenId(w0)),
        Kind::StateChgReq => Packet::StateChgReq { mask, val },
        Kind::StateChgReply => Packet::StateChgReply(low(w0).cast_signed()),
        Kind::ConnStChgReq => Packet::ConnStChgReq { mask, val },
        Kind::ConnStChgReply => Packet::ConnStChgReply(low(w0).cast_signed()),
        Kind::Data => {
            let flush = w2 % 8 == 0;
            let flags = if flush { flags.with(DpFlags::FLUSH) } else { flags };
            let payload = if flush { Bytes::new() } else { payload(request) };
            Packet::Data(Data { sector, block_id, seq, flags, digest: Digest::EMPTY, payload })
        }
        Kind::Trim => Packet::Trim(trim(DpFlags::DISCARD)),
        Kind::Zeroes => Packet::Zeroes(trim(DpFlags::ZEROES)),
        Kind::WriteSame => {
            let block = 512 << (raw.small[0] % 4);
            let (flags, size) = (flags.with(DpFlags::WSAME), (discard / block).max(1) * block);
            Packet::WriteSame(WriteSame {
                sector,
                block_id,
                seq,
                flags,
                size,
                digest: Digest::EMPTY,
                payload: payload(block),
            })
        }
        Kind::Barrier => Packet::Barrier { barrier: low(w0) },
        Kind::BarrierAck => Packet::BarrierAck { barrier: low(w0), set_size: low(w1) },
        Kind::UnplugRemote => Packet::UnplugRemote,
        Kind::RecvAck => Packet::RecvAck(ack),
        Kind::WriteAck => Packet::WriteAck(ack),
        Kind::RsWriteAck => Packet::RsWriteAck(ack),
        Kind::Superseded => Packet::Superseded(ack),
        Kind::RetryWrite => Packet::RetryWrite(ack),
        Kind::NegAck => Packet::NegAck(BlockAck { blksize: 0, ..ack }),
        Kind::DataRequest => Packet::DataRequest(req),
        Kind::DataReply => Packet::DataReply(reply()),
        Kind::NegDreply => Packet::NegDreply(ack),
        Kind::RsDataRequest => Packet::RsDataRequest(req),
        Kind::RsThinReq => Packet::RsThinReq(req),
        Kind::CsumRsRequest => Packet::CsumRsRequest { req, digest: digest(agreed.csums) },
        Kind::RsDataReply => Packet::RsDataReply(reply()),
        Kind::RsDeallocated => Packet::RsDeallocated(desc),
        Kind::RsIsInSync => Packet::RsIsInSync(ack),
        Kind::NegRsDreply => Packet::NegRsDreply(ack),
        Kind::RsCancel => Packet::RsCancel(ack),
        Kind::OutOfSync => Packet::OutOfSync(desc),
        Kind::Bitmap => Packet::Bitmap(payload(bitmap_words * 8)),
        Kind::CompressedBitmap => Packet::CompressedBitmap(raw.bytes.clone().into()),
        Kind::OvRequest => Packet::OvRequest(req),
        Kind::OvReply => Packet::OvReply { req, digest: digest(agreed.verify) },
        Kind::OvResult => Packet::OvResult(BlockAck { block_id: verdict, ..ack }),
        Kind::Ping => Packet::Ping,
        Kind::PingAck => Packet::PingAck,
        Kind::DelayProbe => Packet::DelayProbe { seq: low(w0), offset: low(w1) },
    };
    seal(&mut packet, agreed);
    packet
}

fn agreed() -> impl Strategy<Value = Agreed> {
    let alg = || prop::option::of(prop::sample::select(DigestAlg::ALL));
    (86..=101u32, 0..16u32, alg(), alg(), alg()).prop_map(|(nr, features, integrity, verify, csums)| Agreed {
        integrity_sent: integrity,
        integrity_received: integrity,
        verify,
        csums,
        ..Agreed::new(v(nr), FeatureFlags(features))
    })
}

fn case() -> impl Strategy<Value = (Agreed, Kind, Raw)> {
    agreed().prop_flat_map(|agreed| {
        let kinds: Vec<Kind> = KINDS.iter().copied().filter(|k| legal(*k, &agreed)).collect();
        (Just(agreed), prop::sample::select(kinds), raw())
    })
}

fn sample() -> Raw {
    Raw { sector: 8, id: 1, size: 8, words: [1, 2, 3, 4], small: [0; 8], bytes: (0..=127).collect(), alg: None }
}
