//! What a peer can do wrong before it is connected: the daemon drops it and tries again, or gives the connection up, as
//! wire.md 4.2, 4.3, 4.13 say; it lives, and replicates with the next peer that behaves.

use std::io::Write as _;

use bytes::Bytes;
use udrbd::units::{GenId, Sectors};
use udrbd::wire::auth::CHALLENGE_LEN;
use udrbd::wire::{AfterSb, Agreed, AlgName, ConnFlags, Packet, Phase, ReplProtocol, Role, Socket};

use crate::as_primary::{ack_flags, assert_same_as_daemon, expect_ack, send_write_with};
use crate::daemon_common::{Node, Setup, Site, pattern, up_to_date};
use crate::for_each;
use crate::peer::{Peer, Persona, authenticate, uuids};
use crate::sockets::{Dial, Pair, connect, first_packet, raw};

const SECRET: &str = "a secret";

fn site(net: &str) -> (Site, Node) {
    let site = Site::new(Setup { net: net.to_owned(), ..Setup::default() });
    let mut node = site.node(0, up_to_date);
    node.start_up();
    (site, node)
}

/// What the daemon has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Drop the connection and try again.
    Retry,
    /// Give it up; the operator reconnects.
    StandAlone,
}

/// The daemon reacted so, and works with a good peer.
pub fn recovers(site: &Site, node: &mut Node, reaction: Reaction, persona: &Persona) {
    if reaction == Reaction::StandAlone {
        node.wait_standalone();
        node.connect();
    }
    let mut peer = Peer::connect_in_sync(site, Persona { role: Role::Primary, ..persona.clone() });
    let disk = std::fs::read(node.disk(0)).expect("a disk file");
    let len = peer.model.disk.len();
    peer.model.disk.copy_from_slice(&disk[..len]);
    let flags = ack_flags(&peer);
    send_write_with(&mut peer, 2048, 0x77, &pattern(0x77, 4096), flags);
    expect_ack(&mut peer, 2048, 0x77, 4096);
    assert_same_as_daemon(&peer, node);
    node.assert_sound();
}

fn expect_end(pair: &mut Pair) {
    use std::io::Read as _;
    let mut rest = Vec::new();
    // A reset is an end, too.
    match pair.data.read_to_end(&mut rest) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the daemon keeps the connection"),
        _ => {}
    }
}

type Case = (&'static str, Reaction, fn(&mut Pair));

/// Authentication: the daemon has a secret.
const AUTH: &[Case] = &[
    ("another secret", Reaction::StandAlone, |pair| {
        let agreed = pair.features(101, 0xf);
        pair.say(&Packet::AuthChallenge(Bytes::from_static(&[7; CHALLENGE_LEN])), &agreed);
        pair.hear(Phase::AuthChallenge, agreed);
        pair.say(&Packet::AuthResponse(Bytes::from_static(&[7; 20])), &agreed);
        pair.hear(Phase::AuthResponse, agreed);
    }),
    ("our own challenge", Reaction::StandAlone, |pair| {
        let agreed = pair.features(101, 0xf);
        let Packet::AuthChallenge(theirs) = pair.hear(Phase::AuthChallenge, agreed) else { panic!("a challenge") };
        pair.say(&Packet::AuthChallenge(theirs), &agreed);
        assert!(pair.try_hear(Phase::AuthResponse, agreed).is_none(), "the daemon signs its own challenge");
    }),
    ("our own challenge with a tail", Reaction::StandAlone, |pair| {
        let agreed = pair.features(101, 0xf);
        let Packet::AuthChallenge(theirs) = pair.hear(Phase::AuthChallenge, agreed) else { panic!("a challenge") };
        let longer: Vec<u8> = theirs.iter().copied().chain([1; 64]).collect();
        pair.say(&Packet::AuthChallenge(longer.into()), &agreed);
        assert!(pair.try_hear(Phase::AuthResponse, agreed).is_none(), "the daemon signs its own challenge");
    }),
    ("a short challenge", Reaction::StandAlone, |pair| {
        let agreed = pair.features(101, 0xf);
        pair.data.write_all(&raw(&agreed, 0, 0x10, &[1; 63])).expect("the daemon reads");
    }),
    ("no authentication", Reaction::StandAlone, |pair| {
        let agreed = pair.features(101, 0xf);
        pair.data.write_all(&raw(&agreed, 0, 0x0b, &[0; 25])).expect("the daemon reads");
    }),
    ("another hash", Reaction::Retry, |pair| {
        let agreed = pair.features(101, 0xf);
        pair.say(&Packet::AuthChallenge(Bytes::from_static(&[7; CHALLENGE_LEN])), &agreed);
        pair.hear(Phase::AuthChallenge, agreed);
        pair.say(&Packet::AuthResponse(Bytes::from_static(&[7; 32])), &agreed);
    }),
    ("silence instead of a challenge", Reaction::Retry, |pair| {
        pair.features(101, 0xf);
    }),
    ("an end instead of a response", Reaction::Retry, |pair| {
        let agreed = pair.features(101, 0xf);
        pair.say(&Packet::AuthChallenge(Bytes::from_static(&[7; CHALLENGE_LEN])), &agreed);
        let _ = pair.data.shutdown(std::net::Shutdown::Write);
    }),
];

#[test]
fn a_peer_that_cannot_authenticate() {
    for_each(AUTH, |(_, reaction, act)| {
        let (site, mut node) = site("ping-timeout 5; cram-hmac-alg sha1; shared-secret \"a secret\";");
        let mut pair = Pair::open(&site, Dial::Connects);
        act(&mut pair);
        expect_end(&mut pair);
        drop(pair);
        recovers(&site, &mut node, reaction, &Persona { secret: Some(SECRET), ..Persona::new() });
    });
}

fn features(min: u32, max: u32) -> Vec<u8> {
    let mut body = [0; 72];
    body[..4].copy_from_slice(&min.to_be_bytes());
    body[8..12].copy_from_slice(&max.to_be_bytes());
    raw(&Agreed::initial(), 0, 0xfffe, &body)
}

/// Features, and what comes before them.
const FEATURES: &[Case] = &[
    ("versions that are too new", Reaction::StandAlone, |pair| {
        pair.data.write_all(&features(110, 121)).expect("the daemon reads");
    }),
    ("versions that are too old", Reaction::StandAlone, |pair| {
        pair.data.write_all(&features(80, 85)).expect("the daemon reads");
    }),
    ("short features", Reaction::StandAlone, |pair| {
        pair.data.write_all(&raw(&Agreed::initial(), 0, 0xfffe, &[0; 71])).expect("the daemon reads");
    }),
    ("another packet instead of features", Reaction::StandAlone, |pair| {
        pair.data.write_all(&raw(&Agreed::initial(), 0, 0x0b, &[0; 24])).expect("the daemon reads");
    }),
    ("garbage instead of features", Reaction::Retry, |pair| {
        pair.data.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").expect("the daemon reads");
    }),
    ("silence instead of features", Reaction::Retry, |_| {}),
    ("half of the features", Reaction::Retry, |pair| {
        pair.data.write_all(&features(86, 101)[..40]).expect("the daemon reads");
    }),
    ("the end in the middle of the features", Reaction::Retry, |pair| {
        pair.data.write_all(&features(86, 101)[..40]).expect("the daemon reads");
        let _ = pair.data.shutdown(std::net::Shutdown::Write);
    }),
    ("authentication that nobody asked for", Reaction::Retry, |pair| {
        let agreed = pair.features(101, 0xf);
        pair.data.write_all(&raw(&agreed, 0, 0x10, &[1; 64])).expect("the daemon reads");
    }),
    ("the state before anything else", Reaction::Retry, |pair| {
        let agreed = pair.features(101, 0xf);
        // Only after the parameters may it say that it is Primary and reads this.
        pair.data.write_all(&raw(&agreed, 0, 0x08, &[0; 24])).expect("the daemon reads");
    }),
];

#[test]
fn a_peer_that_does_not_agree_on_anything() {
    for_each(FEATURES, |(_, reaction, act)| {
        let (site, mut node) = site("ping-timeout 5;");
        let mut pair = Pair::open(&site, Dial::Connects);
        act(&mut pair);
        expect_end(&mut pair);
        drop(pair);
        recovers(&site, &mut node, reaction, &Persona::new());
    });
}

#[test]
fn first_packets_of_strangers_cost_only_their_own_connection() {
    let (site, mut node) = site("ping-timeout 5;");
    let (own, daemon) = (site.addr(1), site.addr(0));
    let mut wrong = first_packet(Socket::Data);
    wrong[5] = 0xf3;
    let long = [&first_packet(Socket::Data)[..6], &[0, 8], &[0; 8]].concat();
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 8], vec![0xff; 4096], wrong, long] {
        let mut stream = connect(own, daemon);
        stream.write_all(&garbage).expect("the daemon reads");
    }
    // Some who say nothing at all, and one who ends in the middle; they do not keep others out.
    let silent: Vec<_> = (0..3).map(|_| connect(own, daemon)).collect();
    connect(own, daemon).write_all(&first_packet(Socket::Meta)[..3]).expect("the daemon reads");
    recovers(&site, &mut node, Reaction::Retry, &Persona::new());
    drop(silent);
}

/// A persona whose parameters do not fit, and what they cause.
type Mismatch = (&'static str, Reaction, fn(&mut Persona));

const PARAMETERS: &[Mismatch] = &[
    ("another protocol", Reaction::StandAlone, |p| p.protocol = ReplProtocol::A),
    ("another after-sb-0pri", Reaction::StandAlone, |p| p.after_sb_0p = AfterSb::DiscardZeroChanges),
    ("another integrity algorithm", Reaction::StandAlone, |p| p.integrity = "crc32c"),
    ("unrelated data", Reaction::StandAlone, |p| {
        p.uuids = uuids(0x1234_0000_0000_0000, 0);
        p.uuids.history = [GenId(0x2222_0000_0000_0000), GenId(0x3333_0000_0000_0000)];
    }),
    ("a device that is too small", Reaction::StandAlone, |p| p.size = Sectors(4096)),
];

#[test]
fn a_peer_with_other_settings_or_other_data() {
    for_each(PARAMETERS, |(_, reaction, change)| {
        let (site, mut node) = site("");
        let mut persona = Persona::new();
        change(&mut persona);
        let mut peer = Peer::handshake(&site, persona);
        peer.send_parameters();
        peer.expect_close();
        drop(peer);
        recovers(&site, &mut node, reaction, &Persona::new());
    });
}

#[test]
fn parameters_that_are_no_parameters() {
    type Spoil = fn(&mut Packet);
    let cases: [(&str, Reaction, Spoil); 4] = [
        ("both discard their data, only one does", Reaction::Retry, |p| {
            // Legal: one side may. The daemon then is the source of nothing, and both stay connected.
            if let Packet::Protocol(p) = p {
                p.conn_flags = ConnFlags::DRY_RUN;
            }
        }),
        ("two primaries", Reaction::StandAlone, |p| {
            if let Packet::Protocol(p) = p {
                p.two_primaries = true;
            }
        }),
        ("another verify-alg", Reaction::StandAlone, |p| {
            if let Packet::SyncParam(p) = p {
                p.verify_alg = AlgName::parse("sha1");
            }
        }),
        ("a reserved state", Reaction::Retry, |p| {
            if let Packet::State(p) = p {
                p.0 |= 0x1f0;
            }
        }),
    ];
    for_each(&cases, |(_, reaction, spoil)| {
        let (site, mut node) = site("");
        let mut peer = Peer::handshake(&site, Persona::new());
        for mut packet in peer.parameters() {
            spoil(&mut packet);
            if let Packet::State(word) = packet {
                let bytes = raw(&peer.agreed, 0, 0x0e, &word.0.to_be_bytes());
                peer.send_bytes(Socket::Data, &bytes);
            } else {
                peer.send(packet);
            }
        }
        peer.expect_close();
        drop(peer);
        recovers(&site, &mut node, reaction, &Persona::new());
    });
}

#[test]
fn a_reconnect_storm_leaves_a_working_daemon() {
    let (site, mut node) = site("cram-hmac-alg sha1; shared-secret \"a secret\";");
    for round in 0..4 {
        let mut pair = Pair::open(&site, Dial::Connects);
        let agreed = pair.features(101, 0xf);
        authenticate(&mut pair, &agreed, SECRET);
        if round % 2 == 0 {
            let _ = pair.meta.shutdown(std::net::Shutdown::Both);
        }
    }
    recovers(&site, &mut node, Reaction::Retry, &Persona { secret: Some(SECRET), ..Persona::new() });
}
