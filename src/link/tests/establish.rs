//! How a link comes up, or does not.

use std::sync::{Barrier, Mutex};

use super::*;
use crate::wire::auth::{Authentication, CHALLENGE_LEN, HmacAlg, Secret};

fn secret(alg: &str, secret: &str) -> Option<(HmacAlg, Secret)> {
    Some((HmacAlg::from_name(alg).unwrap(), Secret::new(secret.as_bytes()).unwrap()))
}

fn versions(protocol_min: u32, protocol_max: u32) -> Features {
    Features { protocol_min, protocol_max, ..Features::own() }
}

async fn exchange(a: &Node, b: &Node) {
    for (from, to) in [(a, b), (b, a)] {
        from.send(Socket::Data, protocol(""));
        assert_eq!(to.packet().await, (Socket::Data, VolumeNr(0), protocol("")));
        from.send(Socket::Meta, Packet::Ping);
        assert_eq!(to.packet().await, (Socket::Meta, VolumeNr(0), Packet::Ping));
    }
}

#[test]
fn two_nodes_meet_in_either_order() {
    shard(async {
        for first in 0..2 {
            let (x, y) = addresses();
            let configs = [config(x, y), config(y, x)];
            let one = Node::started(configs[first].clone());
            // The second node comes only after the first one is there.
            drop(dial(configs[1 - first].local, configs[first].local).await);
            let two = Node::started(configs[1 - first].clone());
            let _guard = Guard(vec![one.clone(), two.clone()]);
            let (a, b) = (one.up().await, two.up().await);
            assert_eq!((a.nr, a.version, a.features, a.relaxed_epochs), (LinkNr(1), 101, 0xf, true));
            assert_eq!((b.nr, b.version, b.features, b.relaxed_epochs), (LinkNr(1), 101, 0xf, true));
            assert_ne!(a.resolve_conflicts, b.resolve_conflicts, "exactly one accepted the meta socket");
            exchange(&one, &two).await;
        }
    });
}

#[test]
fn nodes_that_start_together_converge_again_and_again() {
    shard(async {
        let (x, y) = addresses();
        let (a, b) = (Node::new(config(x, y)), Node::new(config(y, x)));
        let _guard = Guard(vec![a.clone(), b.clone()]);
        for node in [&a, &b] {
            node.0.reconnect.set(true);
            node.0.on_up.borrow_mut().push((Socket::Meta, Packet::Ping));
        }
        for round in 1..=20 {
            a.act(&LinkAction::Start);
            b.act(&LinkAction::Start);
            // Crossed attempts may let a node see a link that the other one has given up already.
            let ups = loop {
                for node in [&a, &b] {
                    node.until(|inner| (!inner.packets.borrow().is_empty()).then_some(())).await;
                }
                if let [(1.., Some(up)), (1.., Some(other))] = [&a, &b].map(|n| (n.has_packets(), n.current())) {
                    break [up, other];
                }
            };
            assert_ne!(ups[0].resolve_conflicts, ups[1].resolve_conflicts, "round {round}");
            for (node, up) in [&a, &b].into_iter().zip(ups) {
                assert_eq!(node.packet().await.2, Packet::Ping);
                node.act(&LinkAction::Close { nr: up.nr });
            }
        }
    });
}

/// What two machines believe, and how many rounds ended with the same belief.
#[derive(Default)]
struct Beliefs {
    resolves: [Option<bool>; 2],
    rounds: usize,
}

/// One of two machines that start their links at the same moment, round after round.
async fn machine(index: usize, config: LinkConfig, beliefs: &Mutex<Beliefs>, start: &Barrier) {
    let node = Node::new(config);
    let _guard = Guard(vec![node.clone()]);
    node.0.reconnect.set(true);
    for round in 0..CROSSED_ROUNDS {
        beliefs.lock().unwrap().resolves[index] = None;
        // Blocks the thread, so that both leave at the same instant.
        start.wait();
        node.act(&LinkAction::Start);
        // A node may see a link that the other one has given up already, but not for ever.
        loop {
            {
                let mut beliefs = beliefs.lock().unwrap();
                beliefs.resolves[index] = node.current().map(|up| up.resolve_conflicts);
                if matches!(beliefs.resolves, [Some(x), Some(y)] if x != y) {
                    beliefs.rounds = round + 1;
                }
                if beliefs.rounds > round {
                    break;
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        start.wait();
        if let Some(up) = node.current() {
            node.act(&LinkAction::Close { nr: up.nr });
        }
        node.act(&LinkAction::Stop);
        node.0.current.take();
    }
}

const CROSSED_ROUNDS: usize = 20;

#[test]
fn crossed_attempts_of_two_machines_converge() {
    let (x, y) = addresses();
    let (beliefs, start) = (Mutex::default(), Barrier::new(2));
    std::thread::scope(|scope| {
        for (index, config) in [config(x, y), config(y, x)].into_iter().enumerate() {
            let (beliefs, start) = (&beliefs, &start);
            scope.spawn(move || shard(machine(index, config, beliefs, start)));
        }
    });
}

#[test]
fn the_lower_maximum_wins_for_every_version() {
    shard(async {
        let (x, y) = addresses();
        for version in Version::all() {
            let old = LinkConfig { announce: versions(86, version.nr()), ..config(x, y) };
            let (a, b) = (Node::started(old), Node::started(config(y, x)));
            let _guard = Guard(vec![a.clone(), b.clone()]);
            assert_eq!((a.up().await.version, b.up().await.version), (version.nr(), version.nr()));
            let tail = if version.nr() < 87 { "" } else { "sha1" };
            for (from, to) in [(&a, &b), (&b, &a)] {
                from.send(Socket::Data, protocol(tail));
                assert_eq!(to.packet().await.2, protocol(tail));
            }
        }
    });
}

#[test]
fn features_are_those_of_both_and_the_own_bit_is_no_feature() {
    shard(async {
        for (mine, theirs, want) in [(true, true, true), (true, false, false), (false, true, false)] {
            let (x, y) = addresses();
            let few = Features { flags: FeatureFlags(0x5 | FeatureFlags::RELAXED_EPOCHS.0), ..Features::own() };
            let a = Node::started(LinkConfig { announce: few, relaxed_epochs: mine, ..config(x, y) });
            let b = Node::started(LinkConfig { relaxed_epochs: theirs, ..config(y, x) });
            let _guard = Guard(vec![a.clone(), b.clone()]);
            for up in [a.up().await, b.up().await] {
                assert_eq!((up.features, up.relaxed_epochs), (0x5, want));
            }
        }
    });
}

#[test]
fn versions_that_do_not_meet_are_refused() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(LinkConfig { announce: versions(86, 90), ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::open(y, x).await;
        put(&mut peer.data, &Packet::ConnectionFeatures(versions(95, 121)), &Agreed::initial()).await;
        let reason = a.refused().await;
        assert!(reason.contains("86 to 90 here, 95 to 121 there"), "{reason}");
        closed(&mut peer.data).await;
    });
}

#[test]
fn something_else_than_features_is_refused() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::open(y, x).await;
        put(&mut peer.data, &Packet::InitialData, &Agreed::initial()).await;
        let reason = a.refused().await;
        assert!(reason.contains("P_INITIAL_DATA on the data socket: not expected in phase Features"), "{reason}");
    });
}

#[test]
fn nodes_with_the_same_secret_meet() {
    shard(async {
        for alg in ["md5", "sha1", "sha256", "sha512"] {
            let (x, y) = addresses();
            let a = Node::started(LinkConfig { auth: secret(alg, "my-secret"), ..config(x, y) });
            let b = Node::started(LinkConfig { auth: secret(alg, "my-secret"), ..config(y, x) });
            let _guard = Guard(vec![a.clone(), b.clone()]);
            assert_ne!(a.up().await.resolve_conflicts, b.up().await.resolve_conflicts);
            exchange(&a, &b).await;
        }
    });
}

#[test]
fn nodes_with_different_secrets_do_not() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(LinkConfig { auth: secret("sha1", "my-secret"), ..config(x, y) });
        let mut peer = Script::open(y, x).await;
        let _guard = Guard(vec![a.clone()]);
        assert!(peer.features(Features::own()).await);
        authenticate(&mut peer, "sha1", "your-secret").await;
        let reason = a.refused().await;
        assert!(reason.contains("the shared secrets differ"), "{reason}");
        closed(&mut peer.data).await;
    });
}

/// The peer's side of the authentication.
async fn authenticate(peer: &mut Script, alg: &str, text: &str) {
    let (alg, secret) = secret(alg, text).unwrap();
    let own = Authentication::new(alg, secret, [7; CHALLENGE_LEN]);
    peer.data_in.set_phase(Phase::AuthChallenge);
    peer.put_data(&Packet::AuthChallenge(own.challenge())).await;
    let Some((_, Packet::AuthChallenge(challenge))) = get(&mut peer.data, &mut peer.data_in).await else {
        panic!("no challenge");
    };
    peer.data_in.set_phase(Phase::AuthResponse);
    peer.put_data(&Packet::AuthResponse(own.respond(&challenge).unwrap())).await;
}

#[test]
fn a_node_with_a_secret_refuses_one_without_and_its_own_echo() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::new(LinkConfig { auth: secret("sha1", "my-secret"), ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        a.act(&LinkAction::Start);
        let mut peer = Script::open(y, x).await;
        assert!(peer.features(Features::own()).await);
        peer.put_data(&protocol("")).await;
        let reason = a.refused().await;
        assert!(reason.contains("P_PROTOCOL on the data socket: not expected in phase AuthChallenge"), "{reason}");
        a.act(&LinkAction::Start);
        let mut peer = Script::open(y, x).await;
        assert!(peer.features(Features::own()).await);
        peer.data_in.set_phase(Phase::AuthChallenge);
        let (_, echo) = get(&mut peer.data, &mut peer.data_in).await.unwrap();
        peer.put_data(&echo).await;
        let reason = a.refused().await;
        assert!(reason.contains("our own challenge"), "{reason}");
    });
}

#[test]
fn a_node_without_a_secret_loses_a_link_to_one_with() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        peer.put_data(&Packet::AuthChallenge(Bytes::from_static(&[9; 64]))).await;
        let lost = a.lost().await;
        assert_eq!((lost.socket, lost.protocol_error, lost.fatal), (Socket::Data, true, false));
        assert!(lost.reason.contains("P_AUTH_CHALLENGE on the data socket"), "{}", lost.reason);
    });
}

#[test]
fn another_algorithm_is_tried_again() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(LinkConfig { auth: secret("sha1", "my-secret"), ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::open(y, x).await;
        assert!(peer.features(Features::own()).await);
        authenticate(&mut peer, "sha256", "my-secret").await;
        closed(&mut peer.data).await;
        let mut peer = Script::open(y, x).await;
        assert!(peer.features(Features::own()).await);
        authenticate(&mut peer, "sha1", "my-secret").await;
        assert_eq!(a.up().await.nr, LinkNr(1), "no event before");
    });
}

#[test]
fn a_peer_that_only_listens_is_connected_to_and_resolves_conflicts() {
    shard(async {
        let (x, y) = addresses();
        let listener = TcpListener::bind(y).await.unwrap();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut streams = Vec::new();
        for (socket, want) in [(Socket::Data, Packet::InitialData), (Socket::Meta, Packet::InitialMeta)] {
            let (mut stream, from) = listener.accept().await.unwrap();
            assert_eq!(from.ip(), x.ip(), "from its own address");
            let mut decoder = StreamDecoder::new(socket, Phase::First, Agreed::initial());
            assert_eq!(get(&mut stream, &mut decoder).await.unwrap().1, want);
            streams.push(stream);
        }
        let meta = streams.pop().unwrap();
        let mut peer = Script::over(streams.pop().unwrap(), meta);
        assert!(peer.features(Features::own()).await);
        assert!(!a.up().await.resolve_conflicts);
    });
}

#[test]
fn a_peer_that_only_connects_leaves_conflicts_to_this_node_and_may_open_meta_first() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut meta = dial(y, x).await;
        put(&mut meta, &Packet::InitialMeta, &Agreed::initial()).await;
        let mut data = dial(y, x).await;
        put(&mut data, &Packet::InitialData, &Agreed::initial()).await;
        assert!(Script::over(data, meta).features(Features::own()).await);
        assert!(a.up().await.resolve_conflicts);
    });
}

#[test]
fn while_a_link_is_up_nobody_listens() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let _peer = Script::up(y, &a, x).await;
        let refused = TcpStream::connect(x).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn garbage_and_silent_connections_do_not_keep_the_peer_out() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut silent = Vec::new();
        for _ in 0..HALF_OPEN_MAX - 2 {
            silent.push(dial(y, x).await);
        }
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 8], b"\x83\x74\x02\x67\xff\xf2\x00\x01"] {
            let mut stream = dial(y, x).await;
            stream.write_all(garbage).await.unwrap();
            closed(&mut stream).await;
        }
        let mut peer = Script::open(y, x).await;
        assert!(peer.features(Features::own()).await);
        a.up().await;
        for mut stream in silent {
            closed(&mut stream).await;
        }
    });
}

#[test]
fn strangers_are_closed_unless_the_check_is_off() {
    shard(async {
        let (x, y) = addresses();
        let stranger = addresses().0;
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut streams = Vec::new();
        for first in [Packet::InitialData, Packet::InitialMeta] {
            let mut stream = dial(stranger, x).await;
            let mut bytes = BytesMut::new();
            encode(VolumeNr(0), &first, &Agreed::initial(), &mut bytes).unwrap();
            // It may be closed already.
            let _ = stream.write_all(&bytes).await;
            streams.push(stream);
        }
        let mut decoder = StreamDecoder::new(Socket::Data, Phase::Features, Agreed::initial());
        assert!(get(&mut streams[0], &mut decoder).await.is_none(), "no pair with a stranger");
        closed(&mut streams[1]).await;
        let mut peer = Script::open(y, x).await;
        assert!(peer.features(Features::own()).await);
        a.up().await;
        let (x, y) = addresses();
        let b = Node::started(LinkConfig { check_peer_address: false, ..config(x, y) });
        let _guard = Guard(vec![b.clone()]);
        let mut peer = Script::open(stranger, x).await;
        assert!(peer.features(Features::own()).await);
        b.up().await;
    });
}

#[test]
fn a_peer_that_stalls_in_the_handshake_is_given_up() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(LinkConfig { ping_timeout: Duration::from_millis(50), ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        let mut stalled = Script::open(y, x).await;
        closed(&mut stalled.data).await;
        closed(&mut stalled.meta).await;
        // The next one may be too slow for so short a limit, but not for ever.
        loop {
            let mut peer = Script::open(y, x).await;
            if peer.features(Features::own()).await {
                break;
            }
        }
    });
}

#[test]
fn a_pair_that_dies_before_it_counts_is_replaced() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        for _ in 0..3 {
            drop(Script::open(y, x).await);
        }
        loop {
            let mut peer = Script::open(y, x).await;
            if peer.features(Features::own()).await {
                break;
            }
        }
        a.up().await;
    });
}

#[test]
fn a_dead_meta_socket_does_not_count() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let Script { data, meta, .. } = Script::open(y, x).await;
        drop(meta);
        let mut meta = dial(y, x).await;
        put(&mut meta, &Packet::InitialMeta, &Agreed::initial()).await;
        let mut peer = Script::over(data, meta);
        assert!(peer.features(Features::own()).await);
        a.up().await;
        peer.put_meta(&Packet::Ping).await;
        assert_eq!(a.packet().await.2, Packet::Ping);
    });
}

#[test]
fn an_address_in_use_is_error_102() {
    shard(async {
        let (x, y) = addresses();
        let other = TcpListener::bind(x).await.unwrap();
        let e = check_local_address(&config(x, y)).unwrap_err();
        assert_eq!((e.code(), e.is_fatal()), (Some(ERR_LOCAL_ADDR), true));
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        assert_eq!(a.refused().await, format!("local address {x} is in use"));
        drop(other);
        check_local_address(&config(x, y)).unwrap();
        a.act(&LinkAction::Start);
        Script::up(y, &a, x).await;
    });
}

#[test]
fn an_address_of_another_machine_is_refused() {
    shard(async {
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], PORT));
        let a = Node::started(config(elsewhere, addresses().1));
        let _guard = Guard(vec![a.clone()]);
        let reason = a.refused().await;
        assert!(reason.contains("cannot listen on 192.0.2.1:7788"), "{reason}");
    });
}

#[test]
fn stop_stops_and_start_starts_again() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        drop(dial(y, x).await);
        a.act(&LinkAction::Stop);
        // The listener goes with the attempt.
        while TcpStream::connect(x).await.is_ok() {}
        check_local_address(&config(x, y)).unwrap();
        a.act(&LinkAction::Start);
        a.act(&LinkAction::Stop);
        a.act(&LinkAction::Start);
        a.act(&LinkAction::Start);
        let _peer = Script::up(y, &a, x).await;
        a.act(&LinkAction::Start);
        assert!(a.0.events.borrow().is_empty());
    });
}
