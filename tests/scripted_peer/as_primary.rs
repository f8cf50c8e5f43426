//! The peer is Primary: its writes arrive, are acknowledged as its protocol and version want it, and can be read back.

use bytes::Bytes;
use udrbd::units::{BlockId, Sector, SectorRange, VolumeNr};
use udrbd::wire::{
    BlockAck, BlockReq, Data, DpFlags, FeatureFlags, Packet, ReplProtocol, Role, StateResult, StateWord, Trim,
};

use crate::daemon_common::{Node, Setup, Site, pattern, up_to_date};
use crate::peer::{Peer, Persona};
use crate::{combinations, for_each};

/// The `dp_flags` of a write: what kind of acknowledgement is due is in them from version 100 on.
pub fn ack_flags(peer: &Peer) -> DpFlags {
    let flags = DpFlags::RW_SYNC;
    match peer.persona.protocol {
        _ if !peer.agreed.version.has_ack_flags() => flags,
        ReplProtocol::A => flags,
        ReplProtocol::B => flags.with(DpFlags::SEND_RECEIVE_ACK),
        ReplProtocol::C => flags.with(DpFlags::SEND_WRITE_ACK),
    }
}

/// Sends a write and keeps it on the peer's own disk.
pub fn send_write(peer: &mut Peer, sector: u64, id: u64, data: &[u8]) {
    let flags = ack_flags(peer);
    send_write_with(peer, sector, id, data, flags);
}

pub fn send_write_with(peer: &mut Peer, sector: u64, id: u64, data: &[u8], flags: DpFlags) {
    let range = SectorRange::from_bytes(Sector(sector), data.len() as u64).expect("a legal range");
    peer.model.write(range, data);
    let seq = peer.next_seq();
    peer.send(Packet::Data(Data {
        sector: Sector(sector),
        block_id: BlockId(id),
        seq,
        flags,
        digest: Default::default(),
        payload: Bytes::copy_from_slice(data),
    }));
}

/// Waits for the acknowledgement of a write and checks that it is the one that is due.
pub fn expect_ack(peer: &mut Peer, sector: u64, id: u64, bytes: u32) {
    let protocol = peer.persona.protocol;
    if protocol == ReplProtocol::A {
        return;
    }
    let (kind, ack): (ReplProtocol, BlockAck) = peer.expect("an acknowledgement", |p| match p {
        Packet::RecvAck(ack) if ack.block_id == BlockId(id) => Some((ReplProtocol::B, *ack)),
        Packet::WriteAck(ack) if ack.block_id == BlockId(id) => Some((ReplProtocol::C, *ack)),
        _ => None,
    });
    assert_eq!((kind, ack.sector, ack.blksize), (protocol, Sector(sector), bytes));
}

/// Ends the epoch, whose writes must be as many.
pub fn barrier(peer: &mut Peer, number: u32, set_size: u32) {
    peer.send(Packet::Barrier { barrier: number });
    peer.expect_packet(&Packet::BarrierAck { barrier: number, set_size });
}

/// Reads from the daemon's disk over the wire.
pub fn read_back(peer: &mut Peer, sector: u64, bytes: u32) -> Bytes {
    let block_id = BlockId(0xabcd_0000_0000_0001 + sector);
    peer.send(Packet::DataRequest(BlockReq { sector: Sector(sector), block_id, blksize: bytes }));
    let reply = peer.expect("P_DATA_REPLY", |p| match p {
        Packet::DataReply(reply) if reply.block_id == block_id => Some(reply.clone()),
        _ => None,
    });
    assert_eq!(reply.sector, Sector(sector));
    reply.payload
}

/// A daemon and a Primary peer that is in sync with it.
pub fn pair(persona: &Persona, net: &str) -> (Site, Node, Peer) {
    let protocol = persona.protocol;
    let integrity = match persona.integrity {
        "" => String::new(),
        name => format!("data-integrity-alg {name};"),
    };
    let setup = Setup { net: format!("protocol {protocol:?}; {integrity} {net}"), ..Setup::default() };
    let site = Site::new(setup);
    let mut node = site.node(0, up_to_date);
    node.start_up();
    let peer = Peer::connect_in_sync(&site, Persona { role: Role::Primary, ..persona.clone() });
    (site, node, peer)
}

/// Every byte on the daemon's disk is the peer's.
pub fn assert_same_as_daemon(peer: &Peer, node: &Node) {
    let disk = std::fs::read(node.disk(0)).expect("a disk file");
    let ours = &peer.model.disk;
    if let Some(at) = ours.iter().zip(&disk).position(|(a, b)| a != b) {
        panic!("the replicas differ from byte {at} on\n{}", node.log());
    }
}

fn writes(persona: &Persona) {
    let (_site, mut node, mut peer) = pair(persona, "");
    let max = peer.agreed.version.request_bytes_max();
    let mut at = 8;
    for (nr, bytes) in [512, 4096, 32768, 65536, 131_072, 1 << 20].into_iter().filter(|b| *b <= max).enumerate() {
        let nr = nr as u64;
        let data = pattern(nr + 1, bytes as usize);
        send_write(&mut peer, at, 0xc031_7070_0000_0000 + nr, &data);
        expect_ack(&mut peer, at, 0xc031_7070_0000_0000 + nr, bytes);
        let number = u32::try_from(nr).expect("small").swap_bytes();
        barrier(&mut peer, number, 1);
        assert_eq!(read_back(&mut peer, at, bytes), data, "{bytes} bytes at sector {at}");
        at += u64::from(bytes / 512) + 3;
    }
    // A larger epoch, whose writes touch each other.
    for nr in 0..40 {
        send_write(&mut peer, 9000 + nr * 8, 100 + nr, &pattern(nr, 4096));
    }
    peer.send(Packet::UnplugRemote);
    for nr in 0..40 {
        expect_ack(&mut peer, 9000 + nr * 8, 100 + nr, 4096);
    }
    barrier(&mut peer, 77, 40);
    // An epoch without writes is not acknowledged; nothing else comes in between.
    peer.send(Packet::Barrier { barrier: 78 });
    peer.ping();
    assert!(!peer.has_unread(|p| matches!(p, Packet::BarrierAck { .. })));
    ranges_without_data(&mut peer);
    assert_same_as_daemon(&peer, &node);
    node.assert_sound();
}

/// Discards and zeroes, as far as they were agreed.
fn ranges_without_data(peer: &mut Peer) {
    let features = peer.agreed.features;
    let due = ack_flags(peer);
    let base = Trim { sector: Sector(9000), block_id: BlockId(500), seq: peer.next_seq(), flags: due, size: 8192 };
    let mut sent = 0;
    if features.has(FeatureFlags::TRIM) {
        // With zeroes agreed a discard promises nothing of what is read there, but files read zeroes.
        peer.send(Packet::Trim(Trim { flags: due.with(DpFlags::DISCARD), ..base }));
        expect_ack(peer, 9000, 500, 8192);
        sent += 1;
        assert_eq!(read_back(peer, 9000, 8192), vec![0; 8192]);
        peer.model.write(base.range().expect("legal"), &[0; 8192]);
    }
    if features.has(FeatureFlags::WZEROES) {
        for (nr, flags) in [DpFlags::ZEROES, DpFlags::ZEROES.with(DpFlags::DISCARD)].into_iter().enumerate() {
            let nr = nr as u64;
            let seq = peer.next_seq();
            // Neither end on a block boundary.
            let (sector, id) = (9033 + nr * 32, 501 + nr);
            let zeroes =
                Trim { sector: Sector(sector), block_id: BlockId(id), seq, flags: due.with(flags), size: 5120 };
            peer.send(Packet::Zeroes(zeroes));
            expect_ack(peer, sector, id, 5120);
            sent += 1;
            assert_eq!(read_back(peer, sector, 5120), vec![0; 5120]);
            peer.model.write(zeroes.range().expect("legal"), &[0; 5120]);
        }
    }
    if sent > 0 {
        barrier(peer, 79, sent);
    }
}

#[test]
fn writes_of_a_primary_peer_in_every_version() {
    for_each(&combinations(), |(version, features)| writes(&Persona::speaking(version, features)));
}

#[test]
fn acknowledgements_follow_the_protocol() {
    let cases: Vec<_> =
        [ReplProtocol::A, ReplProtocol::B].iter().flat_map(|p| [86, 96, 100, 101].map(|v| (*p, v))).collect();
    for_each(&cases, |(protocol, version)| writes(&Persona { protocol, ..Persona::speaking(version, 3) }));
}

#[test]
fn the_order_of_connecting_does_not_matter() {
    use crate::sockets::Dial;
    let cases = [Dial::Connects, Dial::Listens, Dial::DataIn, Dial::DataOut];
    for_each(&cases, |dial| {
        let persona = Persona { dial, secret: Some("my-secret"), ..Persona::new() };
        let (_site, node, mut peer) = pair(&persona, "cram-hmac-alg sha1; shared-secret my-secret;");
        send_write(&mut peer, 0, 9, &pattern(4, 4096));
        expect_ack(&mut peer, 0, 9, 4096);
        assert_same_as_daemon(&peer, &node);
    });
}

#[test]
fn integrity_digests_are_checked_and_sent() {
    for_each(&[(87, "crc32c"), (96, "md5"), (101, "sha1"), (101, "crc32c")], |(version, integrity)| {
        let persona = Persona { integrity, ..Persona::speaking(version, 3) };
        let (site, mut node, mut peer) = pair(&persona, "");
        let data = pattern(9, 8192);
        send_write(&mut peer, 16, 1, &data);
        expect_ack(&mut peer, 16, 1, 8192);
        // The digest of the reply was compared by length only; compare it by value.
        peer.send(Packet::DataRequest(BlockReq { sector: Sector(16), block_id: BlockId(5), blksize: 8192 }));
        let digest = peer.expect("P_DATA_REPLY", |p| if let Packet::DataReply(p) = p { Some(p.digest) } else { None });
        let alg = udrbd::wire::DigestAlg::from_name(integrity).expect("a hash");
        assert_eq!(digest, alg.digest(&[&data]));
        // One wrong bit: the connection is dropped, nothing is written, and the next one works.
        let mut bytes = bytes::BytesMut::new();
        let seq = peer.next_seq();
        let mut packet = Packet::Data(Data {
            sector: Sector(16),
            block_id: BlockId(2),
            seq,
            flags: ack_flags(&peer),
            digest: Default::default(),
            payload: Bytes::from(pattern(10, 4096)),
        });
        udrbd::wire::codec::seal(&mut packet, &peer.agreed);
        udrbd::wire::codec::encode(VolumeNr(0), &packet, &peer.agreed, &mut bytes).expect("a legal packet");
        *bytes.last_mut().expect("bytes") ^= 1;
        peer.send_bytes(udrbd::wire::Socket::Data, &bytes);
        peer.expect_close();
        let kept = std::mem::take(&mut peer.model);
        drop(peer);
        let mut peer = Peer::connect_in_sync(&site, Persona { role: Role::Primary, ..persona });
        assert_eq!(read_back(&mut peer, 16, 8192), data);
        peer.model = kept;
        assert_same_as_daemon(&peer, &node);
        node.assert_sound();
    });
}

#[test]
fn a_peer_is_promoted_when_it_asks_and_refused_when_we_are_primary() {
    for_each(&[86, 101], |version| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0));
        let ask = Packet::StateChgReq {
            mask: StateWord(udrbd::wire::state::mask::ROLE),
            val: StateWord::of_role(Role::Primary),
        };
        peer.send(ask.clone());
        peer.expect_packet(&Packet::StateChgReply(StateResult::Success.code()));
        node.wait_volume("peer Primary", |v| v.peer_role == Role::Primary);
        let error = node
            .call(udrbd::control::Request::Primary { resource: "r0".to_owned(), volume: VolumeNr(0), force: false })
            .expect_err("only one Primary");
        assert!(error.text.contains("Multiple primaries not allowed"), "{error}");
        // Demoted again, it makes room.
        use udrbd::wire::{ConnState, DiskState};
        peer.send_state_as(Role::Secondary, ConnState::Connected, DiskState::UpToDate);
        node.wait_volume("peer Secondary", |v| v.peer_role == Role::Secondary);
        crate::as_secondary::promote(&node, &mut peer);
        peer.send(ask);
        peer.expect_packet(&Packet::StateChgReply(StateResult::TwoPrimaries.code()));
        peer.ping();
        node.assert_sound();
    });
}
