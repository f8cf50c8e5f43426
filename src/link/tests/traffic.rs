//! Packets over an established link.

use super::*;
use crate::wire::ack::BlockAck;
use crate::wire::data::DataReply;

fn ack(nr: u32) -> Packet {
    Packet::WriteAck(BlockAck {
        sector: Sector(u64::from(nr) * 2048),
        block_id: BlockId(u64::from(nr)),
        blksize: 4096,
        seq: SeqNr(nr),
    })
}

/// Two nodes with a link.
async fn pair(a: LinkConfig, b: LinkConfig, pool: &Pool) -> (Node, Node, Guard) {
    let (a, b) = (Node::with_pool(a, pool), Node::with_pool(b, pool));
    let guard = Guard(vec![a.clone(), b.clone()]);
    a.act(&LinkAction::Start);
    b.act(&LinkAction::Start);
    a.up().await;
    b.up().await;
    (a, b, guard)
}

async fn expect(node: &Node, want: &Packet) {
    let (_, _, got) = node.packet().await;
    // Not assert_eq: the text of a megabyte helps nobody.
    assert!(got == *want, "{got:?} instead of {want:?}");
}

#[test]
fn packets_of_every_size_arrive_in_order() {
    shard(async {
        let (x, y) = addresses();
        let pool = Pool::new(64 << 20);
        let (a, b, _guard) = pair(config(x, y), config(y, x), &pool).await;
        let sizes = [0, 512, 4096, 32256, 32768, 33280, 65536, 262_144, 262_656, 1 << 20];
        let mut packets = vec![protocol(""), state()];
        for (nr, len) in (1_u32..).zip(sizes.into_iter().chain([512; 300]).chain(sizes)) {
            packets.push(if len == 0 { Packet::UnplugRemote } else { write(nr, len) });
            packets.push(Packet::Barrier { barrier: nr });
        }
        for packet in &packets {
            a.link(|link| link.send(Socket::Data, VolumeNr(0), packet.clone())).unwrap();
        }
        assert_ne!(a.link(|link| link.queued_bytes(Socket::Data)), 0);
        a.flush();
        for packet in &packets {
            expect(&b, packet).await;
        }
        let count = packets.len() as u64;
        a.until(|inner| (inner.sent.borrow()[0] == count).then_some(())).await;
        assert_eq!(a.link(|link| link.queued_bytes(Socket::Data)), 0);
        assert_eq!(pool.free(), 64 << 20, "every buffer came back");
        assert!(b.0.batches.get() < packets.len(), "packets were delivered in batches");
    });
}

#[test]
fn volumes_travel_in_the_header() {
    shard(async {
        let (x, y) = addresses();
        let (a, b, _guard) = pair(config(x, y), config(y, x), &Pool::new(1 << 20)).await;
        for volume in [0, 1, 65535] {
            a.link(|link| link.send(Socket::Data, VolumeNr(volume), state())).unwrap();
            a.flush();
            assert_eq!(b.packet().await, (Socket::Data, VolumeNr(volume), state()));
        }
    });
}

#[test]
fn a_packet_that_was_not_agreed_is_not_sent() {
    shard(async {
        let (x, y) = addresses();
        let old = Features { protocol_max: 94, ..Features::own() };
        let (a, b, _guard) =
            pair(LinkConfig { announce: old, ..config(x, y) }, config(y, x), &Pool::new(1 << 20)).await;
        let request = Packet::ConnStChgReq { mask: StateWord(0x1f0), val: StateWord(0x10) };
        for (volume, packet) in [(0, request), (1, state()), (0, write(1, 65536))] {
            a.link(|link| link.send(Socket::Data, VolumeNr(volume), packet)).unwrap_err();
        }
        a.send(Socket::Data, protocol(""));
        expect(&b, &protocol("")).await;
        assert_eq!(a.sent(Socket::Data), 1);
    });
}

#[test]
fn every_cut_of_the_stream_gives_the_same_packets() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        let packets = [protocol(""), state(), write(1, 512), Packet::UnplugRemote, write(2, 1024), state()];
        let bytes = peer.encoded(&packets);
        for byte in &bytes {
            peer.data.write_all(&[*byte]).await.unwrap();
            // The reader takes each byte before the next one is written.
            tokio::task::yield_now().await;
        }
        for packet in &packets {
            expect(&a, packet).await;
        }
        for cut in 1..bytes.len() {
            peer.data.write_all(&bytes[..cut]).await.unwrap();
            let whole = (1..=packets.len()).filter(|n| peer.encoded(&packets[..*n]).len() <= cut).count();
            for packet in &packets[..whole] {
                expect(&a, packet).await;
            }
            peer.data.write_all(&bytes[cut..]).await.unwrap();
            for packet in &packets[whole..] {
                expect(&a, packet).await;
            }
        }
    });
}

#[test]
fn a_large_payload_may_be_cut_anywhere_too() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        peer.put_data(&state()).await;
        expect(&a, &state()).await;
        let packets = [write(1, 512), write(2, 40 << 10), write(3, 512), write(4, 300 << 10), write(5, 512)];
        let bytes = peer.encoded(&packets);
        for step in [1000, 7919, 32768, 65537, 262_144, bytes.len()] {
            for part in bytes.chunks(step) {
                peer.data.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            for packet in &packets {
                expect(&a, packet).await;
            }
        }
    });
}

#[test]
fn digests_follow_the_settings_of_each_sender() {
    shard(async {
        let (x, y) = addresses();
        let (a, b, _guard) = pair(config(x, y), config(y, x), &Pool::new(1 << 20)).await;
        a.send(Socket::Data, protocol("crc32c"));
        a.send(Socket::Data, state());
        a.send(Socket::Data, write(1, 4096));
        b.send(Socket::Data, state());
        b.send(Socket::Data, write(2, 4096));
        for want in [protocol("crc32c"), state()] {
            expect(&b, &want).await;
        }
        let (_, _, Packet::Data(got)) = b.packet().await else { panic!("not the write") };
        assert_eq!(got.digest, DigestAlg::Crc32c.digest(&[&got.payload]));
        expect(&a, &state()).await;
        expect(&a, &write(2, 4096)).await;
    });
}

#[test]
fn a_spent_budget_stops_the_data_socket_only() {
    shard(async {
        const WRITE: usize = 64 << 10;
        let (x, y) = addresses();
        let pool = Pool::new(4 * WRITE);
        let a = Node::with_pool(config(x, y), &pool);
        let _guard = Guard(vec![a.clone()]);
        a.act(&LinkAction::Start);
        let peer = Script::up(y, &a, x).await;
        let mut packets = vec![state()];
        packets.extend((1..=40).map(|nr| write(nr, WRITE)));
        packets.extend((41..=50).map(|nr| write(nr, 4096)));
        let bytes = peer.encoded(&packets);
        let Script { mut data, mut meta, agreed, .. } = peer;
        let sender = spawn_local(async move {
            data.write_all(&bytes).await.unwrap();
            data
        });
        let held = |inner: &Inner| (inner.packets.borrow().len() == 5).then_some(());
        a.until(held).await;
        assert_eq!(pool.free(), 0);
        for _ in 0..10 {
            put(&mut meta, &Packet::Ping, &agreed).await;
            a.until(|inner| inner.packets.borrow_mut().pop_back_if(|p| p.0 == Socket::Meta)).await;
        }
        assert_eq!(a.has_packets(), 5, "no buffer, no packet");
        for packet in &packets {
            expect(&a, packet).await;
        }
        assert_eq!(pool.free(), 4 * WRITE);
        drop(sender.await.unwrap());
        assert_eq!(a.lost().await.reason, "the peer closed the data socket");
    });
}

#[test]
fn unwanted_data_waits_while_meta_goes_on() {
    shard(async {
        let (x, y) = addresses();
        let (a, b, _guard) = pair(config(x, y), config(y, x), &Pool::new(1 << 20)).await;
        b.0.wants_data.set(false);
        a.send(Socket::Data, protocol(""));
        for nr in 0..10 {
            a.send(Socket::Meta, ack(nr));
            assert_eq!(b.packet().await, (Socket::Meta, VolumeNr(0), ack(nr)));
        }
        b.0.wants_data.set(true);
        b.0.changed.notify_waiters();
        expect(&b, &protocol("")).await;
    });
}

#[test]
fn sent_counts_what_the_stack_has_taken_and_meta_overtakes_data() {
    shard(async {
        const COUNT: u64 = 200;
        let (x, y) = addresses();
        let small = LinkConfig { sndbuf_bytes: 64 << 10, rcvbuf_bytes: 64 << 10, ..config(x, y) };
        let a = Node::started(small);
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        for nr in 0..COUNT {
            a.send(Socket::Data, write(u32::try_from(nr).unwrap(), 128 << 10));
        }
        let stuck = a.sent(Socket::Data);
        assert!(stuck < COUNT, "25 MiB fit into no socket");
        assert!(a.link(|link| link.queued_bytes(Socket::Data)) > 1 << 20);
        a.send(Socket::Meta, Packet::PingAck);
        assert_eq!(get(&mut peer.meta, &mut peer.meta_in).await.unwrap().1, Packet::PingAck);
        assert_eq!(a.sent(Socket::Meta), 1);
        for nr in 0..COUNT {
            let (_, got) = get(&mut peer.data, &mut peer.data_in).await.unwrap();
            assert!(got == write(u32::try_from(nr).unwrap(), 128 << 10), "{got:?}");
        }
        a.until(|inner| (inner.sent.borrow()[0] == COUNT).then_some(())).await;
    });
}

#[test]
fn what_is_queued_is_sent_before_a_close() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(LinkConfig { sndbuf_bytes: 64 << 10, timeout: PATIENCE, ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up_slow(y, &a, x).await;
        // What nobody reads, more than the reader stages, must not reset the connection under the last words.
        a.0.wants_data.set(false);
        peer.put_data(&state()).await;
        peer.put_data(&write(1, 512 << 10)).await;
        for nr in 0..100 {
            a.link(|link| link.send(Socket::Data, VolumeNr(0), write(nr, 128 << 10))).unwrap();
        }
        a.act(&LinkAction::Close { nr: LinkNr(99) });
        a.link(|link| link.send(Socket::Meta, VolumeNr(0), Packet::ConnStChgReply(1))).unwrap();
        a.act(&LinkAction::Close { nr: LinkNr(1) });
        a.send(Socket::Meta, Packet::Ping);
        for nr in 0..100 {
            let (_, got) = get(&mut peer.data, &mut peer.data_in).await.expect("sent before the close");
            assert!(got == write(nr, 128 << 10), "{got:?}");
        }
        assert!(get(&mut peer.data, &mut peer.data_in).await.is_none());
        assert_eq!(get(&mut peer.meta, &mut peer.meta_in).await.unwrap().1, Packet::ConnStChgReply(1));
        assert!(get(&mut peer.meta, &mut peer.meta_in).await.is_none(), "nothing is queued after the close");
        assert!(a.0.events.borrow().is_empty(), "a close from this side is no loss");
    });
}

#[test]
fn a_peer_that_does_not_read_cannot_hold_a_closed_link() {
    shard(async {
        let (x, y) = addresses();
        let limit = Duration::from_millis(50);
        let a = Node::started(LinkConfig { sndbuf_bytes: 64 << 10, timeout: limit, ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        for nr in 0..200 {
            a.link(|link| link.send(Socket::Data, VolumeNr(0), write(nr, 128 << 10))).unwrap();
        }
        a.act(&LinkAction::Close { nr: LinkNr(1) });
        closed(&mut peer.meta).await;
    });
}

#[test]
fn a_meta_socket_that_takes_nothing_is_lost() {
    shard(async {
        let (x, y) = addresses();
        let limit = Duration::from_millis(50);
        let a = Node::started(LinkConfig { sndbuf_bytes: 4096, timeout: limit, ..config(x, y) });
        let _guard = Guard(vec![a.clone()]);
        let _peer = Script::up(y, &a, x).await;
        // Not more than necessary: what the socket takes depends on the system.
        while a.0.events.borrow().is_empty() {
            for nr in 0..1000 {
                a.link(|link| link.send(Socket::Meta, VolumeNr(0), ack(nr))).unwrap();
            }
            a.flush();
            tokio::task::yield_now().await;
        }
        let lost = a.lost().await;
        assert_eq!((lost.socket, lost.protocol_error, lost.fatal), (Socket::Meta, false, false));
        assert!(lost.reason.contains("meta socket took no byte for 50 ms"), "{}", lost.reason);
    });
}

#[test]
fn a_link_can_be_closed_and_started_from_inside_the_sink() {
    shard(async {
        let (x, y) = addresses();
        let (a, b) = (Node::new(config(x, y)), Node::new(config(y, x)));
        let _guard = Guard(vec![a.clone(), b.clone()]);
        for node in [&a, &b] {
            node.0.reconnect.set(true);
            node.act(&LinkAction::Start);
        }
        let first = a.up().await;
        b.up().await;
        a.act(&LinkAction::Close { nr: first.nr });
        a.act(&LinkAction::Start);
        // The other one starts over by itself.
        let second = a.up().await;
        assert_eq!(second.nr, LinkNr(2));
        b.lost().await;
        b.up().await;
    });
}

#[test]
fn replies_of_a_resync_use_granted_buffers() {
    shard(async {
        let (x, y) = addresses();
        let pool = Pool::new(1 << 20);
        let a = Node::with_pool(config(x, y), &pool);
        let _guard = Guard(vec![a.clone()]);
        a.act(&LinkAction::Start);
        let mut peer = Script::up(y, &a, x).await;
        let reply = Packet::RsDataReply(DataReply {
            sector: Sector(8),
            block_id: BlockId::SYNCER,
            digest: Digest::EMPTY,
            payload: Bytes::from(vec![5; 4096]),
        });
        peer.put_data(&state()).await;
        peer.put_data(&reply).await;
        expect(&a, &state()).await;
        let got = a.packet().await;
        assert!(got.2 == reply);
        assert_eq!(pool.free(), (1 << 20) - 4096);
        drop(got);
        assert_eq!(pool.free(), 1 << 20);
    });
}
