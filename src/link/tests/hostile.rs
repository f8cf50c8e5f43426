//! Peers that break the rules, or just break (wire.md 13.2).

use super::*;
use crate::wire::codec::encode;
use crate::wire::resync::BlockReq;

/// A header of version 100 and later.
fn header(command: u16, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x86, 0x20, 0xec, 0x20, 0, 0];
    bytes.extend(command.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// What the node makes of these bytes.
async fn reaction(socket: Socket, bytes: &[u8]) -> Lost {
    let (x, y) = addresses();
    let a = Node::started(config(x, y));
    let _guard = Guard(vec![a.clone()]);
    let mut peer = Script::up(y, &a, x).await;
    peer.put_data(&state()).await;
    a.packet().await;
    let stream = match socket {
        Socket::Data => &mut peer.data,
        Socket::Meta => &mut peer.meta,
    };
    stream.write_all(bytes).await.unwrap();
    let lost = a.lost().await;
    a.act(&LinkAction::Close { nr: LinkNr(1) });
    closed(&mut peer.data).await;
    closed(&mut peer.meta).await;
    assert!(a.0.events.borrow().is_empty(), "a link is lost once");
    assert_eq!(a.has_packets(), 0);
    lost
}

#[test]
fn illegal_packets_end_the_link_as_the_kernel_does() {
    shard(async {
        let magic = [0x11; 16];
        let mut pad = header(0x13, 0);
        pad[15] = 1;
        for (socket, bytes, fatal, text) in [
            (Socket::Data, &header(0x05, 0), false, "unknown command 0x0005"),
            (Socket::Data, &header(0x105, 0), false, "unknown command 0x0105"),
            (Socket::Meta, &header(0x35, 0), true, "unknown command 0x0035"),
            (Socket::Data, &header(0x0e, 5), false, "P_STATE on the data socket: length 5, must be 4 to 4"),
            (Socket::Meta, &header(0x16, 8), false, "P_WRITE_ACK on the meta socket: length 8, must be 24 to 24"),
            (Socket::Data, &header(0x00, u32::MAX), false, "P_DATA on the data socket: length 4294967295"),
            (Socket::Data, &header(0x00, 24 + (1 << 20) + 512), false, "P_DATA on the data socket: length 1049112"),
            (Socket::Data, &header(0x16, 24), false, "P_WRITE_ACK on the data socket: belongs on the other socket"),
            (Socket::Meta, &header(0x00, 536), true, "P_DATA on the meta socket: belongs on the other socket"),
            (Socket::Data, &header(0xfffe, 72), false, "not expected in phase Connected"),
            (Socket::Data, &magic.to_vec(), false, "wrong magic 0x11111111"),
            (Socket::Meta, &magic.to_vec(), false, "wrong magic 0x11111111"),
            (Socket::Meta, &pad, false, "header pad is 0x1"),
        ] {
            let lost = reaction(socket, bytes).await;
            assert_eq!((lost.socket, lost.protocol_error, lost.fatal), (socket, true, fatal), "{text}");
            assert!(lost.reason.contains(text), "{} / {text}", lost.reason);
        }
    });
}

#[test]
fn a_field_is_named_with_its_value() {
    shard(async {
        let mut bytes = header(0x0e, 4);
        bytes.extend(0x0000_01ff_u32.to_be_bytes());
        let lost = reaction(Socket::Data, &bytes).await;
        assert!(lost.reason.starts_with("P_STATE on the data socket: "), "{}", lost.reason);
    });
}

#[test]
fn data_before_the_first_state_is_illegal() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        peer.put_data(&protocol("")).await;
        peer.put_data(&write(1, 512)).await;
        let lost = a.lost().await;
        assert_eq!(lost.reason, "P_DATA on the data socket: not expected in phase Params");
    });
}

#[test]
fn a_wrong_digest_ends_the_link() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        peer.put_data(&protocol("crc32c")).await;
        peer.put_data(&state()).await;
        a.packet().await;
        a.packet().await;
        let Packet::Data(mut data) = write(1, 512) else { unreachable!() };
        data.digest = Digest::new(&[0; 4]).unwrap();
        let agreed = Agreed { integrity_sent: Some(DigestAlg::Crc32c), ..peer.agreed };
        let mut bytes = BytesMut::new();
        encode(VolumeNr(0), &Packet::Data(data), &agreed, &mut bytes).unwrap();
        peer.data.write_all(&bytes).await.unwrap();
        let lost = a.lost().await;
        assert_eq!((lost.protocol_error, lost.fatal), (true, false));
        assert_eq!(lost.reason, "P_DATA on the data socket: payload does not match its digest");
    });
}

#[test]
fn a_close_in_the_middle_of_a_packet_is_seen() {
    shard(async {
        for (len, cut) in [(512, 20), (512, 100), (65536, 100), (65536, 60_000), (4096, 3)] {
            let (x, y) = addresses();
            let a = Node::started(config(x, y));
            let _guard = Guard(vec![a.clone()]);
            let mut peer = Script::up(y, &a, x).await;
            let bytes = peer.encoded(&[state(), write(1, len)]);
            let first = peer.encoded(&[state()]).len();
            peer.data.write_all(&bytes[..first + cut]).await.unwrap();
            drop(peer.data);
            assert_eq!(
                a.lost().await,
                Lost {
                    socket: Socket::Data,
                    protocol_error: false,
                    fatal: false,
                    reason: "the peer closed the data socket in the middle of a packet".to_owned(),
                }
            );
            assert_eq!(a.has_packets(), 1, "the whole packet before it");
        }
    });
}

#[test]
fn the_last_words_on_one_socket_come_before_the_end_of_the_other() {
    shard(async {
        for _ in 0..20 {
            let (x, y) = (LAST.0, LAST.1);
            let a = Node::started(config(x, y));
            let _guard = Guard(vec![a.clone()]);
            let mut peer = Script::up(y, &a, x).await;
            peer.put_data(&state()).await;
            a.packet().await;
            for _ in 0..1000 {
                peer.put_meta(&Packet::Ping).await;
            }
            peer.put_meta(&Packet::ConnStChgReply(1)).await;
            drop(peer);
            a.lost().await;
            assert_eq!(a.0.packets.borrow().back().unwrap().2, Packet::ConnStChgReply(1));
        }
    });
}

static LAST: std::sync::LazyLock<(SocketAddr, SocketAddr)> = std::sync::LazyLock::new(addresses);

#[test]
fn a_reset_is_a_loss_and_the_link_can_be_had_again() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        for nr in 1..=3 {
            let peer = Script::up(y, &a, x).await;
            // Closing with unread bytes resets.
            a.send(Socket::Data, protocol(""));
            while !socket::has_input(&peer.data) {
                tokio::task::yield_now().await;
            }
            drop(peer);
            let lost = a.lost().await;
            assert!(!lost.protocol_error && !lost.fatal, "{lost:?}");
            a.act(&LinkAction::Close { nr: LinkNr(nr) });
            a.act(&LinkAction::Start);
        }
    });
}

#[test]
fn sending_into_a_closed_link_is_a_loss() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let peer = Script::up(y, &a, x).await;
        a.0.wants_data.set(false);
        drop(peer);
        while a.0.events.borrow().is_empty() {
            a.send(Socket::Data, write(1, 4096));
            a.send(Socket::Meta, Packet::Ping);
            tokio::task::yield_now().await;
        }
        let lost = a.lost().await;
        assert!(!lost.protocol_error && !lost.fatal, "{lost:?}");
    });
}

#[test]
fn nothing_is_delivered_after_a_close_from_inside_a_batch() {
    shard(async {
        let (x, y) = addresses();
        let a = Node::started(config(x, y));
        let _guard = Guard(vec![a.clone()]);
        let mut peer = Script::up(y, &a, x).await;
        a.0.close_at.set(Some(2));
        let req = BlockReq { sector: Sector(0), block_id: BlockId(1), blksize: 4096 };
        let bytes = peer.encoded(&[state(), Packet::DataRequest(req), Packet::UnplugRemote, Packet::UnplugRemote]);
        peer.data.write_all(&bytes).await.unwrap();
        closed(&mut peer.data).await;
        assert_eq!(a.has_packets(), 2);
        assert!(a.0.events.borrow().is_empty());
    });
}
