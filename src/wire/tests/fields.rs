//! Fields out of bounds, received and to be sent.

use super::*;

/// Decodes `body` behind a header of its length.
fn decode(kind: Kind, body: &[u8], agreed: &Agreed) -> Result<Packet, Fault> {
    let place = place_of(kind);
    let len = u32::try_from(body.len()).unwrap();
    let header = decode_header(&header_bytes(kind, len, agreed), place, agreed).map_err(|e| e.fault)?;
    let (fixed, payload) = body.split_at(header.fixed_len());
    decode_body(&header, agreed, fixed, Bytes::copy_from_slice(payload)).map_err(|e| e.fault)
}

fn field(result: Result<Packet, Fault>) -> &'static str {
    match result {
        Err(Fault::Field { field, .. } | Fault::UnknownAlgorithm { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn fields_out_of_bounds_are_named() {
    let agreed = Agreed::new(Version::MAX, FeatureFlags::KNOWN);
    let req =
        |sector: u64, blksize: u32| [&sector.to_be_bytes()[..], &[0xff; 8], &blksize.to_be_bytes(), &[0; 4]].concat();
    let device_end = crate::limits::DEVICE_SECTORS_MAX;
    assert!(decode(Kind::RsDataRequest, &req(device_end - 1, 512), &agreed).is_ok());
    for (sector, blksize, want) in [
        (device_end, 512, "sector"),
        (u64::MAX, 4096, "sector"),
        (0, 0, "blksize"),
        (0, 513, "blksize"),
        (0, (1 << 20) + 512, "blksize"),
    ] {
        assert_eq!(field(decode(Kind::RsDataRequest, &req(sector, blksize), &agreed)), want);
        if blksize % 512 != 0 || sector != 0 {
            assert_eq!(field(decode(Kind::WriteAck, &req(sector, blksize), &agreed)), want);
        }
    }
    let v94 = Agreed::new(v(94), FeatureFlags::NONE);
    assert_eq!(field(decode(Kind::DataRequest, &req(0, 32768 + 512), &v94)), "blksize");

    let trim = |flags: u32, size: u32| [&[0; 20][..], &flags.to_be_bytes(), &size.to_be_bytes()].concat();
    let small = Agreed::new(Version::MAX, FeatureFlags::TRIM);
    assert!(decode(Kind::Trim, &trim(0x40, 128 << 20), &agreed).is_ok());
    assert_eq!(field(decode(Kind::Trim, &trim(0x40, (128 << 20) + 512), &agreed)), "size");
    assert_eq!(field(decode(Kind::Trim, &trim(0x40, (4 << 20) + 512), &small)), "size");
    assert_eq!(field(decode(Kind::Trim, &trim(0x40, 0), &agreed)), "size");
    assert_eq!(field(decode(Kind::Trim, &trim(0x400, 512), &agreed)), "dp_flags");
    assert_eq!(field(decode(Kind::Zeroes, &trim(0x40, 512), &agreed)), "dp_flags");

    let data = |flags: u32, len: usize| [&[0; 20][..], &flags.to_be_bytes(), &vec![0; len]].concat();
    assert!(decode(Kind::Data, &data(0x20, 0), &agreed).is_ok());
    assert_eq!(field(decode(Kind::Data, &data(0x2, 0), &agreed)), "dp_flags");
    assert_eq!(field(decode(Kind::Data, &data(0x40, 512), &agreed)), "dp_flags");
    assert!(decode(Kind::Data, &data(0x40, 512), &v94).is_ok(), "no information below 95");

    for (word, want) in
        [(3, "role"), (0xc, "peer"), (24 << 4, "conn"), (0x1f0, "conn"), (9 << 9, "disk"), (15 << 13, "pdsk")]
    {
        assert_eq!(field(decode(Kind::State, &u32::to_be_bytes(word), &agreed)), want);
    }
    let protocol = |words: [u32; 6], name: &[u8]| [words.map(u32::to_be_bytes).concat(), name.to_vec()].concat();
    assert!(decode(Kind::Protocol, &protocol([3, 0, 0, 0, 0, 0], b""), &agreed).is_ok());
    assert!(decode(Kind::Protocol, &protocol([3, 5, 6, 10, 3, 1], b"sha1\0\0junk"), &agreed).is_ok());
    for (words, name, want) in [
        ([0, 0, 0, 0, 0, 0], &b"\0"[..], "protocol"),
        ([1, 11, 0, 0, 0, 0], b"\0", "after_sb_0p"),
        ([1, 0, 11, 0, 0, 0], b"\0", "after_sb_1p"),
        ([1, 0, 0, 11, 0, 0], b"\0", "after_sb_2p"),
        ([1, 0, 0, 0, 0, 2], b"\0", "two_primaries"),
        ([1, 0, 0, 0, 0, 0], b"rot13\0", "integrity_alg"),
        ([1, 0, 0, 0, 0, 0], b"\xff\xfe", "integrity_alg"),
    ] {
        assert_eq!(field(decode(Kind::Protocol, &protocol(words, name), &agreed)), want);
    }
    let mut sizes = [0; 56];
    sizes[0] = 1;
    assert_eq!(field(decode(Kind::Sizes, &sizes, &agreed)), "d_size");
    let mut sizes = [0; 56];
    sizes[39] = 1;
    assert_eq!(field(decode(Kind::Sizes, &sizes, &agreed)), "logical_block_size");
    let mut verdict = req(0, 4096);
    verdict[8..16].copy_from_slice(&4710u64.to_be_bytes());
    assert_eq!(field(decode(Kind::OvResult, &verdict, &agreed)), "block_id");
}

#[test]
fn illegal_packets_are_not_sent() {
    let agreed = Agreed::new(v(96), FeatureFlags::NONE);
    let mut out = BytesMut::from(&b"kept"[..]);
    let mut fault = |volume, packet: &Packet| {
        let e = encode_head(VolumeNr(volume), packet, &agreed, &mut out).unwrap_err();
        assert_eq!(&out[..], b"kept");
        e.fault
    };
    let req = BlockReq { sector: Sector(0), block_id: BlockId(1), blksize: 4096 };
    let (mask, val) = (StateWord(0), StateWord(0));
    assert!(matches!(fault(0, &Packet::ConnStChgReq { mask, val }), Fault::Version { .. }));
    assert!(matches!(fault(0, &Packet::RsThinReq(req)), Fault::Feature { .. }));
    assert!(matches!(fault(1, &Packet::DataRequest(req)), Fault::Field { field: "volume", .. }));
    assert!(matches!(fault(0, &Packet::OvReply { req, digest: Digest::EMPTY }), Fault::NoAlgorithm { .. }));
    assert!(matches!(fault(0, &Packet::Bitmap(Bytes::from(vec![0; 4096]))), Fault::Length { .. }));
    let data = |digest, len: usize| {
        let (sector, block_id, flags) = (Sector(0), BlockId(1), DpFlags::NONE);
        Packet::Data(Data { sector, block_id, seq: SeqNr(1), flags, digest, payload: vec![0; len].into() })
    };
    assert!(matches!(fault(0, &data(Digest::EMPTY, (128 << 10) + 512)), Fault::Length { .. }));
    assert!(matches!(fault(0, &data(Digest::EMPTY, 513)), Fault::Field { .. }));
    let digest = DigestAlg::Sha512.digest(&[b""]);
    assert!(matches!(fault(0, &data(digest, 512)), Fault::Field { field: "digest", .. }));
}
