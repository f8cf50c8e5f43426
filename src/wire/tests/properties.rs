//! Properties over all packets, versions and features.

use super::*;

const PHASES: &[Phase] =
    &[Phase::First, Phase::Features, Phase::AuthChallenge, Phase::AuthResponse, Phase::Params, Phase::Connected];

proptest! {
    #[test]
    fn every_packet_reads_back(
        (agreed, kind, raw) in case(),
        volume in any::<u16>(),
        cuts in prop::collection::vec(1..9000usize, 1..8),
    ) {
        let packet = build(kind, &raw, &agreed);
        prop_assert_eq!(packet.kind(), kind);
        let scoped = agreed.version.has_volumes() && kind.row().scope == Scope::Volume;
        let volume = VolumeNr(if scoped { volume } else { 0 });
        let mut out = BytesMut::from(&b"before"[..]);
        encode_head(volume, &packet, &agreed, &mut out).unwrap();
        let head = out.split_off(6);
        let payload = packet.payload().cloned().unwrap_or_default();

        // In three steps, as the driver does.
        let place = place_of(kind);
        let (head_header, fixed) = head.split_at(header_len(place.phase, &agreed));
        let header = decode_header(head_header, place, &agreed).unwrap();
        prop_assert_eq!((header.kind, header.volume), (kind, volume));
        prop_assert_eq!((header.fixed_len(), header.payload_len()), (fixed.len(), payload.len()));
        prop_assert!(header.fixed_len() <= FIXED_LEN_MAX && head_header.len() <= HEADER_LEN_MAX);
        let decoded = decode_body(&header, &agreed, fixed, payload.clone()).unwrap();
        prop_assert_eq!(&decoded, &packet);
        // No payload was copied.
        prop_assert_eq!(decoded.payload().map(|p| p.as_ptr()), packet.payload().map(|p| p.as_ptr()));
        prop_assert_eq!(check_digest(&header, &agreed, &decoded), Ok(()));

        // As a stream, cut anywhere; twice, so that the end of the first is found.
        let mut stream = [&head[..], &payload].concat();
        stream.extend_from_within(..);
        let mut decoder = StreamDecoder::new(place.socket, place.phase, agreed);
        let (mut rest, mut got) = (&stream[..], Vec::new());
        for cut in cuts.into_iter().cycle() {
            let (chunk, tail) = rest.split_at(cut.min(rest.len()));
            decoder.feed(chunk);
            rest = tail;
            while let Some((h, p)) = decoder.next_packet().unwrap() {
                prop_assert_eq!(h, header);
                got.push(p);
                if got.len() == 2 { break; }
            }
            if rest.is_empty() { break; }
        }
        prop_assert_eq!(got, [packet.clone(), packet]);
        prop_assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn any_body_is_a_packet_or_an_error(
        (agreed, kind, _) in case(),
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        len in any::<u16>(),
    ) {
        let place = place_of(kind);
        let bounds = Bounds::of(kind.row().len, &agreed, agreed.integrity_received).unwrap();
        let span = (bounds.max - bounds.min).min(300) / bounds.unit;
        let len = bounds.min + u32::from(len) % (span + 1) * bounds.unit;
        let header = decode_header(&header_bytes(kind, len, &agreed), place, &agreed).unwrap();
        bytes.resize(header.len(), 0x41);
        let mut body = Bytes::from(bytes);
        let fixed = body.split_to(header.fixed_len());
        if let Ok(packet) = decode_body(&header, &agreed, &fixed, body) {
            // What was accepted can be said again.
            encode(VolumeNr(0), &packet, &agreed, &mut BytesMut::new()).unwrap();
            let line = format!("{packet:?}");
            prop_assert!(line.len() < 2000);
        }
        prop_assert!(decode_body(&header, &agreed, &[0; 500], Bytes::new()).is_err());
    }

    #[test]
    fn any_stream_is_packets_or_an_error(
        agreed in agreed(),
        meta in any::<bool>(),
        phase in prop::sample::select(PHASES),
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        plausible in any::<bool>(),
    ) {
        let socket = if meta { Socket::Meta } else { Socket::Data };
        if plausible && bytes.len() > 4 {
            let magic = if header_len(phase, &agreed) == 16 { 0x8620_ec20_u32 } else { 0x8374_0267 };
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
        }
        let mut decoder = StreamDecoder::new(socket, phase, agreed);
        decoder.feed(&bytes);
        for _ in 0..100 {
            match decoder.next_packet() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => {
                    prop_assert_eq!(decoder.next_packet(), Err(e));
                    break;
                }
            }
        }
        prop_assert!(decoder.pending() <= bytes.len());
    }
}

#[test]
fn a_changed_byte_of_payload_is_noticed() {
    let agreed = full();
    let mut packet = build(Kind::RsDataReply, &sample(), &agreed);
    let header = {
        let mut out = BytesMut::new();
        encode_head(VolumeNr(0), &packet, &agreed, &mut out).unwrap();
        decode_header(&out[..16], place_of(Kind::RsDataReply), &agreed).unwrap()
    };
    assert_eq!(check_digest(&header, &agreed, &packet), Ok(()));
    if let Packet::RsDataReply(p) = &mut packet {
        let mut bytes = p.payload.to_vec();
        bytes[7] ^= 1;
        p.payload = bytes.into();
    }
    let e = check_digest(&header, &agreed, &packet).unwrap_err();
    assert_eq!((e.fault.clone(), e.reaction()), (Fault::DigestMismatch, Reaction::Reconnect));
}

/// Packets that no capture holds, byte by byte.
#[test]
fn packets_as_written_down() {
    let agreed = Agreed::new(Version::MAX, FeatureFlags::KNOWN);
    let ack =
        BlockAck { sector: Sector(16), block_id: BlockId(0xc031_7070_0000_0000), blksize: 1024, seq: SeqNr(0x122) };
    let ack_body = "0000000000000010 c031707000000000 00000400 00000122".replace(' ', "");
    let cases = [
        (Packet::RetryWrite(ack), "002c00000018", ack_body.clone()),
        (Packet::NegAck(ack), "001900000018", ack_body.clone()),
        (Packet::NegDreply(ack), "001a00000018", ack_body.clone()),
        (Packet::NegRsDreply(ack), "001b00000018", ack_body.clone()),
        (Packet::RsCancel(ack), "002900000018", ack_body),
        (
            Packet::OutOfSync(BlockDesc { sector: Sector(264), blksize: 4096 }),
            "002800000010",
            "00000000000001080000100000000000".to_owned(),
        ),
    ];
    for (packet, head, body) in cases {
        let mut out = BytesMut::new();
        encode(VolumeNr(3), &packet, &agreed, &mut out).unwrap();
        let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, format!("8620ec200003{head}00000000{body}"), "{packet:?}");
    }
}

#[test]
fn a_log_line_holds_no_payload() {
    let agreed = full();
    for &kind in KINDS {
        let text = format!("{:?}", build(kind, &sample(), &agreed));
        assert!(text.starts_with(kind.name()) && text.len() < 500, "{text}");
    }
}
