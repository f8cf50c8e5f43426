//! Captures of kernel DRBD 8.4.11 nodes: every byte of both sockets decodes, and encodes to the same bytes again (pads
//! apart, where kernels leave stale bytes). Then the facts that each capture was made to show.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

mod pcap;
mod session;

use std::collections::BTreeSet;
use std::path::Path;

use udrbd::units::{BlockId, GenId, Sector, SeqNr};
use udrbd::wire::ack::{OV_IN_SYNC, OV_OUT_OF_SYNC};
use udrbd::wire::auth::{Authentication, HmacAlg, Secret};
use udrbd::wire::{
    BlockReq, ConnState, DigestAlg, DiskState, DpFlags, Features, Kind, Packet, Reaction, ReplProtocol, Role,
    StateResult, UuidFlags, Version,
};

use session::{Decoded, decode};

fn capture(name: &str) -> Decoded {
    decode(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/wire/{name}.pcap")))
}

fn packets(decoded: &Decoded, kind: Kind) -> Vec<&Packet> {
    decoded.of(kind).map(|s| &s.packet).collect()
}

macro_rules! pick {
    ($decoded:expr, $kind:ident) => {
        $decoded.of(Kind::$kind).map(|s| match &s.packet {
            Packet::$kind(p) => p,
            other => panic!("{other:?}"),
        })
    };
}

#[test]
fn every_byte_of_the_whole_captures_decodes_and_encodes_again() {
    let counts = [
        ("basic", 51),
        ("protoA", 69),
        ("protoB", 78),
        ("multivol", 104),
        ("csums", 90),
        ("discard", 203),
        ("integrity", 181),
        ("integrity-zeroes", 64),
        ("update", 51),
        ("versions", 341),
        ("resyncs", 174),
    ];
    for (name, count) in counts {
        let decoded = capture(name);
        assert_eq!(decoded.errors, [], "{name}");
        assert_eq!((decoded.seen.len(), decoded.cut), (count, 0), "{name}: packets, bytes left over");
    }
}

#[test]
fn captures_that_end_early_decode_up_to_their_end() {
    for (name, at_least) in [("norle", 48), ("thin", 39), ("verify", 195), ("dualpri", 782), ("diskless", 71)] {
        let decoded = capture(name);
        assert_eq!(decoded.errors, [], "{name}");
        assert!(decoded.seen.len() >= at_least, "{name}: {} packets", decoded.seen.len());
    }
}

#[test]
fn handshake_authentication_and_a_write() {
    let d = capture("basic");
    assert!(pick!(d, ConnectionFeatures).eq([&Features::own(); 2]));
    let challenges: Vec<_> = d.of(Kind::AuthChallenge).collect();
    let responses: Vec<_> = d.of(Kind::AuthResponse).collect();
    for challenge in &challenges {
        let Packet::AuthChallenge(own) = &challenge.packet else { panic!() };
        let alg = HmacAlg::from_name("sha1").unwrap();
        let node =
            |secret: &[u8]| Authentication::new(alg, Secret::new(secret).unwrap(), own.as_ref().try_into().unwrap());
        let Packet::AuthResponse(answer) = &responses.iter().find(|r| r.node != challenge.node).unwrap().packet else {
            panic!()
        };
        assert_eq!(node(b"my-secret").verify(answer), Ok(()));
        assert!(node(b"your-secret").verify(answer).is_err());
    }
    assert_eq!(challenges.len(), 2);
    assert!(pick!(d, Protocol).all(|p| p.protocol == ReplProtocol::C && p.integrity_alg.as_str().is_empty()));
    let first = pick!(d, State).next().unwrap();
    assert_eq!((first.role(), first.conn()), (Some(Role::Secondary), Some(ConnState::WfConnection)));
    assert_eq!(first.disk(), Some(DiskState::Inconsistent));
    let skip = pick!(d, Uuids).find(|u| u.flags == UuidFlags::SKIP_INITIAL_SYNC).unwrap();
    assert_eq!((skip.current, skip.bitmap), (GenId(0x3601_4f94_134e_ebfe), GenId::JUST_CREATED));

    let data = pick!(d, Data).next().unwrap();
    assert_eq!(
        (data.sector, data.block_id, data.seq, data.payload.len()),
        (Sector(0), BlockId(0xc031_7070_0000_0000), SeqNr(1), 512)
    );
    assert_eq!(data.flags, DpFlags::SEND_WRITE_ACK.with(DpFlags::RW_SYNC));
    let ack = pick!(d, WriteAck).next().unwrap();
    assert_eq!((ack.sector, ack.block_id, ack.blksize, ack.seq), (data.sector, data.block_id, 512, SeqNr(1)));
    assert_eq!(
        packets(&d, Kind::Barrier)[..2],
        [&Packet::Barrier { barrier: 0 }, &Packet::Barrier { barrier: 1 << 24 }]
    );
    assert_eq!(*packets(&d, Kind::BarrierAck)[0], Packet::BarrierAck { barrier: 0, set_size: 1 });
    assert!(d.count(Kind::Ping) > 0 && d.count(Kind::Ping) == d.count(Kind::PingAck));
    assert_eq!(packets(&d, Kind::ConnStChgReply), [&Packet::ConnStChgReply(StateResult::Success.code())]);
}

#[test]
fn the_flags_of_a_write_say_which_acknowledgement_is_due() {
    let a = capture("protoA");
    assert!(pick!(a, Data).all(|p| !p.flags.has_any(DpFlags::SEND_WRITE_ACK.with(DpFlags::SEND_RECEIVE_ACK))));
    assert_eq!((a.count(Kind::WriteAck), a.count(Kind::RecvAck)), (0, 0));
    assert!(a.count(Kind::Data) > 0 && a.count(Kind::BarrierAck) == a.count(Kind::Barrier));
    let b = capture("protoB");
    assert!(pick!(b, Data).all(|p| p.flags == DpFlags::SEND_RECEIVE_ACK.with(DpFlags::RW_SYNC)));
    assert_eq!((b.count(Kind::WriteAck), b.count(Kind::RecvAck)), (0, b.count(Kind::Data)));
}

#[test]
fn an_epoch_counts_the_writes_of_all_volumes() {
    let d = capture("multivol");
    let volumes: BTreeSet<u16> = d.of(Kind::Data).map(|s| s.header.volume.0).collect();
    assert_eq!(volumes, BTreeSet::from([0, 1]));
    assert!(d.of(Kind::Barrier).all(|s| s.header.volume.0 == 0));
    let sizes = d.of(Kind::BarrierAck).map(|s| match s.packet {
        Packet::BarrierAck { set_size, .. } => set_size,
        _ => 0,
    });
    assert!(sizes.clone().any(|n| n == 2));
    assert_eq!(sizes.sum::<u32>() as usize, d.count(Kind::Data));
}

#[test]
fn checksum_based_resync_after_a_coded_bitmap() {
    let d = capture("csums");
    assert_eq!((d.bitmaps, d.count(Kind::CompressedBitmap)), (2, 2));
    assert!(pick!(d, CompressedBitmap).all(|b| b[..] == hex_literal::hex!("92 4ce6feb9050ffdb032")));
    let source = pick!(d, Uuids).find(|u| u.bits_set == 0x23).unwrap();
    assert_eq!(packets(&d, Kind::SyncUuid), [&Packet::SyncUuid(GenId(source.bitmap.0 + GenId::SYNC_STEP))]);
    let first = packets(&d, Kind::CsumRsRequest)[0];
    let req = BlockReq { sector: Sector(0), block_id: BlockId::SYNCER, blksize: 4096 };
    assert_eq!(*first, Packet::CsumRsRequest { req, digest: DigestAlg::Md5.digest(&[&[0x41; 4096]]) });
    assert!(pick!(d, RsIsInSync).all(|ack| ack.block_id != BlockId::SYNCER), "kernels send garbage here");
    assert!(pick!(d, RsWriteAck).all(|ack| ack.block_id == BlockId::SYNCER));
}

#[test]
fn discards_and_zeroes() {
    let d = capture("discard");
    assert!(pick!(d, Trim).all(|p| p.flags == DpFlags(0x142) && p.size <= 32768));
    let flags: BTreeSet<u32> = pick!(d, Zeroes).map(|p| p.flags.0).collect();
    assert_eq!(flags, BTreeSet::from([0x502, 0x542]));
}

#[test]
fn data_carries_the_integrity_digest_and_zeroes_do_not() {
    let d = capture("integrity");
    let digests = |kind| d.of(kind).filter(|s| s.agreed.integrity_received == Some(DigestAlg::Crc32c)).count();
    assert_eq!((digests(Kind::Data), digests(Kind::DataReply)), (d.count(Kind::Data), d.count(Kind::DataReply)));
    assert_eq!(pick!(d, Data).next().unwrap().digest.as_bytes(), hex_literal::hex!("e9517205"));
    assert!(d.count(Kind::Zeroes) > 0);
}

#[test]
fn settings_change_between_two_packets() {
    let d = capture("update");
    let names: Vec<_> = pick!(d, ProtocolUpdate).map(|p| (p.protocol, p.integrity_alg.as_str())).collect();
    assert!(!names.is_empty());
    let changed = d.of(Kind::Data).any(|s| s.agreed.integrity_received.is_some());
    assert!(changed && d.of(Kind::Data).any(|s| s.agreed.integrity_received.is_none()), "{names:?}");
    assert!(d.of(Kind::Sizes).any(|s| matches!(&s.packet, Packet::Sizes(p) if p.c_size.0 == 0)));
}

#[test]
fn formats_of_every_version() {
    let d = capture("versions");
    let versions: BTreeSet<u32> = d.seen.iter().map(|s| s.agreed.version.nr()).collect();
    assert!(versions.is_superset(&BTreeSet::from([86, 87, 88, 89, 90, 91, 94, 95, 99, 100, 101])), "{versions:?}");
    for s in d.of(Kind::Protocol) {
        assert_eq!(s.header.len() > 24, s.agreed.version.nr() >= 87);
    }
    for s in d.of(Kind::Data) {
        assert!(s.header.payload_len() <= s.agreed.version.request_bytes_max() as usize);
    }
    let volumes = d.seen.iter().filter(|s| s.agreed.version < Version::new(100).unwrap());
    assert!(volumes.clone().count() > 0 && volumes.clone().all(|s| s.header.volume.0 == 0));
    let r = capture("resyncs");
    assert_eq!(r.bitmaps, 10);
    assert!(r.count(Kind::Bitmap) > 0 && r.count(Kind::CompressedBitmap) > 0);
    assert!(r.of(Kind::CompressedBitmap).all(|s| s.agreed.version.nr() >= 90));
}

#[test]
fn a_plain_bitmap_ends_with_an_empty_packet() {
    let d = capture("norle");
    let lens: Vec<_> = pick!(d, Bitmap).map(bytes::Bytes::len).collect();
    assert_eq!((lens, d.bitmaps), (vec![512, 0, 512, 0], 2));
    let bits = pick!(d, Bitmap).next().unwrap();
    assert_eq!((bits[0], bits[12], bits[37], bits[38]), (0x55, 0x05, 0xf0, 0xff));
}

#[test]
fn verify_and_thin_resync_and_remote_reads_and_conflicts() {
    let d = capture("verify");
    assert!(pick!(d, OvResult).all(|ack| [OV_IN_SYNC, OV_OUT_OF_SYNC].contains(&ack.block_id)));
    let zeros = DigestAlg::Sha1.digest(&[&[0x41; 4096]]);
    assert!(matches!(packets(&d, Kind::OvReply)[0], Packet::OvReply { digest, .. } if *digest == zeros));

    let d = capture("thin");
    assert!(d.count(Kind::RsThinReq) > 0 && d.count(Kind::RsDeallocated) > 0);
    let deallocated = pick!(d, RsDeallocated).next().unwrap();
    assert!(pick!(d, RsThinReq).any(|r| (r.sector, r.blksize) == (deallocated.sector, deallocated.blksize)));

    let d = capture("diskless");
    for reply in pick!(d, DataReply) {
        let asked = pick!(d, DataRequest)
            .any(|r| (r.sector, r.block_id, r.blksize as usize) == (reply.sector, reply.block_id, reply.payload.len()));
        assert!(asked, "{reply:?}");
    }
    assert!(d.count(Kind::DataReply) > 0);

    let d = capture("dualpri");
    assert!(d.count(Kind::Superseded) > 0);
    // Both sockets of a node share one counter, so no number comes twice.
    for node in [1, 2] {
        let mut seen = BTreeSet::new();
        for s in d.seen.iter().filter(|s| s.node == node) {
            let seq = match &s.packet {
                Packet::Data(p) => p.seq,
                Packet::WriteAck(p) | Packet::Superseded(p) => p.seq,
                _ => continue,
            };
            assert!(seen.insert(seq.0), "node {node}: {seq} comes twice");
        }
    }
}

#[test]
fn malformed_packets_are_refused_by_name() {
    let d = capture("robust");
    let texts: Vec<_> = d.errors.iter().map(|(node, e)| (*node, e.to_string(), e.reaction())).collect();
    let want = [
        ("packet on the data socket: unknown command 0x0105", Reaction::Reconnect),
        ("packet on the data socket: unknown command 0x0035", Reaction::Reconnect),
        ("packet on the data socket: unknown command 0x0005", Reaction::Reconnect),
        ("packet on the data socket: header pad is 0x1, not 0", Reaction::Reconnect),
        ("P_DATA on the data socket: length is 0x2bc: must be a multiple of 512", Reaction::Reconnect),
        ("P_DATA on the data socket: length 2097176, must be 24 to 1048600", Reaction::Reconnect),
        ("P_UNPLUG_REMOTE on the data socket: length 4, must be 0 to 0", Reaction::Reconnect),
        ("packet on the meta socket: unknown command 0x0030", Reaction::StandAlone),
        ("P_PING on the meta socket: length 4, must be 0 to 0", Reaction::NetworkFailure),
        (
            "P_RS_DATA_REQUEST on the data socket: blksize is 0x101000: is larger than the agreed limit",
            Reaction::Reconnect,
        ),
        ("P_PING on the data socket: not expected in phase First", Reaction::CloseSocket),
    ];
    let want: Vec<_> = want.into_iter().map(|(text, reaction)| (2, text.to_owned(), reaction)).collect();
    assert_eq!(texts, want);
}
