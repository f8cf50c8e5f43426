//! A walk over the packet table.

use super::*;

#[test]
fn the_table_is_consistent() {
    let commands: BTreeSet<u16> = KINDS.iter().map(|k| k.command()).collect();
    let names: BTreeSet<&str> = KINDS.iter().map(|k| k.name()).collect();
    assert_eq!((commands.len(), names.len()), (KINDS.len(), KINDS.len()));
    for &kind in KINDS {
        let row = kind.row();
        assert_eq!((row.kind, row.command, row.name), (kind, kind.command(), kind.name()));
        assert_eq!(Kind::from_command(row.command), Some(kind));
        assert!(row.name.starts_with("P_") && row.since >= 86 && row.since <= row.until && row.until <= 101);
    }
    for command in (0..=u16::MAX).filter(|c| !commands.contains(c)) {
        assert_eq!(Kind::from_command(command), None);
    }
    for obsolete in [0x05, 0x06, 0x25, 0x26, 0x2e, 0x2f, 0x30, 0x35, 0x40, 0x48, 0x101] {
        assert!(!commands.contains(&obsolete));
    }
}

/// Every way in which a header can be illegal, for every packet.
#[test]
fn headers_are_refused_before_the_body() {
    let fault = |kind: Kind, len, place, agreed: &Agreed| {
        decode_header(&header_bytes(kind, len, agreed), place, agreed).map(|_| ()).map_err(|e| e.fault)
    };
    for &kind in KINDS {
        let (row, place) = (kind.row(), place_of(kind));
        for version in Version::all() {
            let agreed = Agreed { version, ..full() };
            let bounds = Bounds::of(row.len, &agreed, agreed.integrity_received).unwrap();
            let got = fault(kind, bounds.min, place, &agreed);
            if (row.since..=row.until).contains(&version.nr()) {
                assert_eq!(got, Ok(()), "{kind:?} {version}");
                assert_eq!(fault(kind, bounds.max, place, &agreed), Ok(()), "{kind:?} {version}");
                let too_long = fault(kind, bounds.max + 1, place, &agreed);
                assert!(matches!(too_long, Err(Fault::Length { .. })), "{kind:?} {version} {too_long:?}");
                if bounds.min > 0 {
                    let too_short = fault(kind, bounds.min - 1, place, &agreed);
                    assert!(matches!(too_short, Err(Fault::Length { .. })), "{kind:?} {version} {too_short:?}");
                }
                if bounds.unit > 1 {
                    let odd = fault(kind, bounds.min + 1, place, &agreed);
                    assert!(matches!(odd, Err(Fault::Field { field: "length", .. })), "{kind:?} {odd:?}");
                }
            } else {
                assert!(matches!(got, Err(Fault::Version { .. })), "{kind:?} {version}");
            }
        }
        let agreed = Agreed { version: v(row.until), ..full() };
        let len = Bounds::of(row.len, &agreed, agreed.integrity_received).unwrap().min;
        if row.feature != FeatureFlags::NONE {
            let without = Agreed { features: FeatureFlags::KNOWN.without(row.feature), ..agreed };
            assert_eq!(fault(kind, len, place, &without), Err(Fault::Feature { missing: row.feature }));
        }
        if row.sockets != Sockets::Both && row.phase != Phase::First {
            let other = if place.socket == Socket::Data { Socket::Meta } else { Socket::Data };
            assert_eq!(fault(kind, len, Place { socket: other, ..place }, &agreed), Err(Fault::WrongSocket));
        }
        if matches!(row.phase, Phase::Params | Phase::Connected) {
            for phase in [Phase::AuthChallenge, Phase::AuthResponse] {
                assert_eq!(fault(kind, len, Place { phase, ..place }, &agreed), Err(Fault::WrongPhase { phase }));
            }
            assert_eq!(fault(kind, len, Place { phase: Phase::Connected, ..place }, &agreed), Ok(()));
        } else if !matches!(row.phase, Phase::First | Phase::Features) {
            let phase = Phase::Connected;
            assert_eq!(fault(kind, len, Place { phase, ..place }, &agreed), Err(Fault::WrongPhase { phase }));
        }
    }
    // Before the parameters are through, only the meta socket may run ahead.
    let early = |kind| fault(kind, 24, Place { phase: Phase::Params, ..place_of(kind) }, &full());
    assert_eq!(early(Kind::DataRequest), Err(Fault::WrongPhase { phase: Phase::Params }));
    assert_eq!(early(Kind::WriteAck), Ok(()));
}

#[test]
fn digests_need_an_algorithm() {
    let agreed = Agreed { verify: None, csums: None, ..full() };
    for (kind, option) in [(Kind::OvReply, "verify-alg"), (Kind::CsumRsRequest, "csums-alg")] {
        let e = decode_header(&header_bytes(kind, 44, &agreed), place_of(kind), &agreed).unwrap_err();
        assert_eq!((e.fault.clone(), e.reaction()), (Fault::NoAlgorithm { option }, Reaction::Reconnect));
    }
}
