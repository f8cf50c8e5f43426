//! What a connected peer must not send (wire.md 13.2), row by row: the daemon drops the connection and tries again, gives it
//! up, or ignores it; in every case it lives, nothing of the data changes, and a good peer is welcome afterwards.

use bytes::Bytes;
use udrbd::units::{BlockId, GenId, Sector, SeqNr};
use udrbd::wire::{BlockAck, BlockReq, ConnState, DiskState, Packet, Role, Socket, StateResult, StateWord};

use crate::as_primary::ack_flags;
use crate::bad_handshake::{Reaction, recovers};
use crate::daemon_common::{GENERATION, Node, Setup, Site, pattern, up_to_date};
use crate::for_each;
use crate::peer::{Peer, Persona, uuids};
use crate::sockets::{raw, raw_header};

type Case = (&'static str, Option<Reaction>, fn(&mut Peer));

fn send(peer: &Peer, socket: Socket, command: u16, body: &[u8]) {
    peer.send_bytes(socket, &raw(&peer.agreed, 0, command, body));
}

/// `p_data` of a write.
fn p_data(peer: &mut Peer, sector: u64, id: u64) -> Vec<u8> {
    let (seq, flags) = (peer.next_seq(), ack_flags(peer));
    let mut body = sector.to_be_bytes().to_vec();
    body.extend(id.to_be_bytes());
    body.extend(seq.0.to_be_bytes());
    body.extend(flags.0.to_be_bytes());
    body
}

fn data(peer: &mut Peer, sector: u64, payload: &[u8]) {
    let body = [&p_data(peer, sector, 0x1234)[..], payload].concat();
    send(peer, Data, 0x00, &body);
}

/// `block_req` or `block_ack`: the same layout.
fn block(sector: u64, id: u64, bytes: u32, last: u32) -> Vec<u8> {
    let mut body = sector.to_be_bytes().to_vec();
    body.extend(id.to_be_bytes());
    body.extend(bytes.to_be_bytes());
    body.extend(last.to_be_bytes());
    body
}

fn with_pad(peer: &Peer, command: u16) -> Vec<u8> {
    let mut bytes = raw(&peer.agreed, 0, command, &[]);
    bytes[15] = 1;
    bytes
}

const DEVICE_SECTORS: u64 = 32688;

use Reaction::{Retry, StandAlone};
use Socket::{Data, Meta};

const HEADERS: &[Case] = &[
    ("obsolete command on the data socket", Some(Retry), |p| send(p, Data, 0x05, &[])),
    ("command of newer versions on the data socket", Some(Retry), |p| send(p, Data, 0x35, &[])),
    ("unknown command on the data socket", Some(Retry), |p| send(p, Data, 0x105, &[])),
    ("packet of the meta socket on the data socket", Some(Retry), |p| send(p, Data, 0x13, &[])),
    ("unknown command on the meta socket", Some(StandAlone), |p| send(p, Meta, 0x35, &[])),
    ("packet of the data socket on the meta socket", Some(StandAlone), |p| send(p, Meta, 0x07, &[])),
    ("short packet on the data socket", Some(Retry), |p| send(p, Data, 0x0e, &[0; 3])),
    ("long packet on the data socket", Some(Retry), |p| send(p, Data, 0x03, &[0; 12])),
    ("short packet on the meta socket", Some(Retry), |p| send(p, Meta, 0x16, &[0; 20])),
    ("long packet on the meta socket", Some(Retry), |p| send(p, Meta, 0x13, &[0; 4])),
    ("length of 4 GiB", Some(Retry), |p| p.send_bytes(Data, &raw_header(&p.agreed, 0, 0x00, u32::MAX))),
    ("pad on the data socket", Some(Retry), |p| p.send_bytes(Data, &with_pad(p, 0x07))),
    ("pad on the meta socket", Some(Retry), |p| p.send_bytes(Meta, &with_pad(p, 0x13))),
    ("wrong magic on the data socket", Some(Retry), |p| p.send_bytes(Data, &[0x83, 0x74, 2, 0x67].repeat(8))),
    ("wrong magic on the meta socket", Some(Retry), |p| p.send_bytes(Meta, &[0; 64])),
    ("first packet again", Some(Retry), |p| send(p, Data, 0xfff2, &[])),
    ("features again", Some(Retry), |p| send(p, Data, 0xfffe, &[0; 72])),
    ("write-same, which was agreed but is not for kernels", Some(Retry), |p| {
        let mut body = p_data(p, 0, 9);
        body.extend(512_u32.to_be_bytes());
        body.extend([0; 512]);
        let flags = 0x202_u32.to_be_bytes();
        body[20..24].copy_from_slice(&flags);
        // Too long by a byte, so that nobody has to carry it out.
        body.push(0);
        send(p, Data, 0x34, &body);
    }),
    ("unknown volume", Some(Retry), |p| p.send_bytes(Data, &raw(&p.agreed, 7, 0x08, &block(0, 1, 512, 0)))),
    ("acknowledgement for an unknown volume", Some(Retry), |p| {
        p.send_bytes(Meta, &raw(&p.agreed, 7, 0x16, &block(0, 1, 512, 1)));
    }),
    ("parameters of an unknown volume", None, |p| {
        p.send_bytes(Data, &raw(&p.agreed, 7, 0x0e, &0xc882_u32.to_be_bytes()));
    }),
    ("delay probes", None, |p| {
        send(p, Data, 0x27, &[0; 8]);
        send(p, Meta, 0x27, &[0; 8]);
    }),
    ("stale bytes in pads of structures", None, |p| {
        send(p, Data, 0x08, &block(8, 5, 512, 0x142));
        p.expect("P_DATA_REPLY", |p| matches!(p, Packet::DataReply(_)).then_some(()));
    }),
    ("the end in the middle of a header", Some(Retry), |p| {
        let bytes = raw(&p.agreed, 0, 0x07, &[]);
        p.send_bytes(Data, &bytes[..9]);
        p.hang_up();
    }),
    ("the end in the middle of a write", Some(Retry), |p| {
        let body = [&p_data(p, 0, 1)[..], &[0x55; 2000]].concat();
        p.send_bytes(Data, &raw_header(&p.agreed, 0, 0x00, 24 + 4096));
        p.send_bytes(Data, &body);
        p.hang_up();
    }),
];

const REQUESTS: &[Case] = &[
    ("write behind the end", Some(Retry), |p| data(p, DEVICE_SECTORS, &[1; 512])),
    ("write over the end", Some(Retry), |p| data(p, DEVICE_SECTORS - 1, &[1; 1024])),
    ("write at the highest sector number", Some(Retry), |p| data(p, u64::MAX, &[1; 512])),
    ("write whose end overflows", Some(Retry), |p| data(p, (1 << 55) - 1, &[1; 1024])),
    ("write of half a sector", Some(Retry), |p| data(p, 0, &[1; 700])),
    ("write of nothing", Some(Retry), |p| data(p, 0, &[])),
    ("write of more than 1 MiB", Some(Retry), |p| {
        p.send_bytes(Data, &raw_header(&p.agreed, 0, 0x00, 24 + (1 << 20) + 512));
    }),
    ("discard of nothing", Some(Retry), |p| trim(p, 0x31, 0, 0, 0x142)),
    ("discard over the end", Some(Retry), |p| trim(p, 0x31, DEVICE_SECTORS - 8, 8192, 0x142)),
    ("discard beyond the limit", Some(Retry), |p| trim(p, 0x31, 0, (128 << 20) + 512, 0x142)),
    ("discard of half a sector", Some(Retry), |p| trim(p, 0x31, 0, 700, 0x142)),
    ("zeroes without their flag", Some(Retry), |p| trim(p, 0x36, 0, 4096, 0x142)),
    ("read behind the end", Some(Retry), |p| send(p, Data, 0x08, &block(DEVICE_SECTORS, 1, 512, 0))),
    ("read of nothing", Some(Retry), |p| send(p, Data, 0x08, &block(0, 1, 0, 0))),
    ("read of more than 1 MiB", Some(Retry), |p| send(p, Data, 0x08, &block(0, 1, (1 << 20) + 512, 0))),
    ("resync read over the end", Some(Retry), |p| {
        send(p, Data, 0x09, &block(DEVICE_SECTORS - 1, u64::MAX, 1024, 0));
    }),
    ("resync read of more than 1 MiB", Some(Retry), |p| send(p, Data, 0x09, &block(0, u64::MAX, 1 << 21, 0))),
    ("checksum request without csums-alg", Some(Retry), |p| send(p, Data, 0x21, &[0; 40])),
    ("verify request without verify-alg", Some(Retry), |p| send(p, Data, 0x1f, &[0; 44])),
    ("plain bitmap of a wrong length", Some(Retry), |p| send(p, Data, 0x04, &[0; 13])),
    ("bitmap in state Connected", Some(Retry), |p| send(p, Data, 0x04, &[0xff; 512])),
    ("coded bitmap in state Connected", Some(Retry), |p| send(p, Data, 0x24, &[0x92, 0x4c])),
    // As the kernel takes it: an aborted resync leaves answers under way. It is not written, which is looked at below.
    ("resync data that nobody asked for", None, |p| {
        let body = [&p_data(p, 0, u64::MAX)[..], &[3; 4096]].concat();
        send(p, Data, 0x02, &body);
    }),
    ("read data that nobody asked for", Some(Retry), |p| {
        let body = [&p_data(p, 0, 1)[..], &[3; 4096]].concat();
        send(p, Data, 0x01, &body);
    }),
    ("reserved bits in a state", Some(Retry), |p| send(p, Data, 0x0e, &0x1ff_u32.to_be_bytes())),
];

fn trim(peer: &mut Peer, command: u16, sector: u64, size: u32, flags: u32) {
    let mut body = p_data(peer, sector, 3);
    body[20..24].copy_from_slice(&flags.to_be_bytes());
    body.extend(size.to_be_bytes());
    send(peer, Data, command, &body);
}

const ANSWERS: &[Case] = &[
    ("write acknowledged that was never sent", Some(Retry), |p| send(p, Meta, 0x16, &block(0, 0x1234, 4096, 1))),
    ("receipt that was never due", Some(Retry), |p| send(p, Meta, 0x15, &block(0, 0x1234, 4096, 1))),
    ("superseded write that was never sent", Some(Retry), |p| send(p, Meta, 0x18, &block(0, 1, 4096, 1))),
    ("retry of a write that was never sent", Some(Retry), |p| send(p, Meta, 0x2c, &block(0, 1, 4096, 1))),
    ("failed read that was never asked for", Some(Retry), |p| send(p, Meta, 0x1a, &block(0, 1, 4096, 1))),
    ("resync acknowledgement that was never due", Some(Retry), |p| {
        send(p, Meta, 0x17, &block(0, u64::MAX, 4096, 1));
    }),
    ("acknowledgement behind the end", Some(Retry), |p| {
        send(p, Meta, 0x17, &block(DEVICE_SECTORS, u64::MAX, 4096, 1));
    }),
    ("barrier acknowledged that was never sent", Some(Retry), |p| {
        p.send(Packet::BarrierAck { barrier: 5, set_size: 1 });
    }),
    ("verdict without a verify", Some(Retry), |p| send(p, Meta, 0x20, &block(0, 4712, 4096, 1))),
    ("in sync, without a checksum request", Some(Retry), |p| send(p, Meta, 0x22, &block(0, u64::MAX, 4096, 1))),
    ("answer to a question that was never asked", Some(Retry), |p| p.send(Packet::StateChgReply(1))),
    ("barrier of an empty epoch", None, |p| p.send(Packet::Barrier { barrier: 99 })),
    ("state change that is none of a peer's", None, |p| {
        // Bits outside the mask: "not supported", and nothing happens.
        p.send(Packet::StateChgReq { mask: StateWord(0x3), val: StateWord(0x1e03) });
        let code = p.expect("an answer", |p| if let Packet::StateChgReply(code) = p { Some(*code) } else { None });
        assert!(code < StateResult::Success.code(), "{code}");
    }),
];

fn run(cases: &[Case]) {
    for_each(cases, |(_, reaction, act)| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona { role: Role::Primary, ..Persona::new() });
        act(&mut peer);
        match reaction {
            Some(reaction) => {
                peer.expect_close();
                drop(peer);
                recovers(&site, &mut node, reaction, &Persona::new());
            }
            None => {
                peer.ping();
                assert_eq!(node.volume().state, ConnState::Connected);
                drop(peer);
                recovers(&site, &mut node, Retry, &Persona::new());
            }
        }
        let disk = std::fs::read(node.disk(0)).expect("a disk file");
        assert!(disk[..1 << 20] == [0; 1 << 20], "something was written that should not have been");
    });
}

#[test]
fn bad_headers() {
    run(HEADERS);
}

#[test]
fn bad_requests() {
    run(REQUESTS);
}

#[test]
fn bad_answers() {
    run(ANSWERS);
}

/// Answers to a write that is really in flight, but not the right ones.
#[test]
fn wrong_answers_to_writes_in_flight() {
    use crate::as_secondary::{open, promote};
    type Answer = fn(&mut Peer, BlockAck);
    let cases: [(&str, Answer); 3] = [
        ("another sector", |p, ack| p.send(Packet::WriteAck(BlockAck { sector: Sector(ack.sector.0 + 8), ..ack }))),
        ("another size", |p, ack| p.send(Packet::WriteAck(BlockAck { blksize: 512, ..ack }))),
        ("another number", |p, ack| p.send(Packet::WriteAck(BlockAck { block_id: BlockId(!ack.block_id.0), ..ack }))),
    ];
    for_each(&cases, |(_, answer)| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::new());
        promote(&node, &mut peer);
        let mut nbd = open(&node);
        peer.model.silent = true;
        let cookie = nbd.send_write(8192, &pattern(1, 4096));
        let (sector, block_id) = peer.expect("P_DATA", |p| match p {
            Packet::Data(p) => Some((p.sector, p.block_id)),
            _ => None,
        });
        answer(&mut peer, BlockAck { sector, block_id, blksize: 4096, seq: SeqNr(1) });
        peer.expect_close();
        drop(peer);
        // The client's write is safe here, and remembered as out of sync.
        nbd.finish(cookie);
        node.wait_volume("disconnected", |v| v.state < ConnState::WfReportParams);
        assert_eq!(node.volume().out_of_sync_kib, 4);
        assert_eq!(nbd.read(8192, 4096), pattern(1, 4096));
        node.assert_sound();
    });
}

/// A receipt does not complete a write of protocol C, and a second acknowledgement changes nothing.
#[test]
fn acknowledgements_that_say_too_little_or_too_much() {
    use crate::as_secondary::{open, promote};
    let site = Site::new(Setup::default());
    let mut node = site.node(0, up_to_date);
    node.start_up();
    let mut peer = Peer::connect_in_sync(&site, Persona::new());
    promote(&node, &mut peer);
    let mut nbd = open(&node);
    peer.model.silent = true;
    let cookie = nbd.send_write(8192, &pattern(1, 4096));
    let (sector, block_id) = peer.expect("P_DATA", |p| match p {
        Packet::Data(p) => Some((p.sector, p.block_id)),
        _ => None,
    });
    let ack = BlockAck { sector, block_id, blksize: 4096, seq: SeqNr(1) };
    peer.send(Packet::RecvAck(ack));
    peer.ping();
    assert!(!nbd.has_answer());
    peer.send(Packet::WriteAck(BlockAck { seq: SeqNr(2), ..ack }));
    peer.send(Packet::WriteAck(BlockAck { seq: SeqNr(3), ..ack }));
    nbd.finish(cookie);
    peer.ping();
    assert_eq!(node.volume().state, ConnState::Connected);
    node.assert_sound();
}

#[test]
fn wrong_barrier_answers() {
    use crate::as_secondary::{open, promote};
    type Answer = fn(u32) -> Packet;
    let cases: [(&str, Answer); 2] = [
        ("another number", |barrier| Packet::BarrierAck { barrier: barrier ^ 1, set_size: 1 }),
        ("another count", |barrier| Packet::BarrierAck { barrier, set_size: 2 }),
    ];
    for_each(&cases, |(_, answer)| {
        let site = Site::new(Setup { net: "protocol A;".to_owned(), ..Setup::default() });
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let persona = Persona { protocol: udrbd::wire::ReplProtocol::A, ..Persona::new() };
        let mut peer = Peer::connect_in_sync(&site, persona);
        promote(&node, &mut peer);
        let mut nbd = open(&node);
        peer.model.silent = true;
        nbd.write(0, &pattern(1, 4096));
        nbd.flush();
        let barrier =
            peer.expect("P_BARRIER", |p| if let Packet::Barrier { barrier } = p { Some(*barrier) } else { None });
        peer.send(answer(barrier));
        peer.expect_close();
        drop(peer);
        node.wait_volume("disconnected", |v| v.state < ConnState::WfReportParams);
        assert_eq!(node.volume().out_of_sync_kib, 4, "a write without its barrier may be lost over there");
        node.assert_sound();
    });
}

/// A resync target must not trust its source with bits and blocks.
#[test]
fn bad_bitmaps_and_resync_data() {
    type Act = fn(&mut Peer);
    let start = |p: &mut Peer| {
        for packet in p.model.bitmap_packets(p, true) {
            p.send(packet);
        }
        p.serve_until("the bitmap", |p| p.model.bitmaps == 1);
    };
    let cases: [(&str, bool, Act); 7] = [
        ("a run behind the last bit", false, |p| {
            p.send(Packet::CompressedBitmap(Bytes::from_static(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])));
        }),
        ("an unknown code", false, |p| p.send(Packet::CompressedBitmap(Bytes::from_static(&[0x03, 0x4c])))),
        ("a plain chunk of a wrong size", false, |p| p.send(Packet::Bitmap(Bytes::from_static(&[0; 504])))),
        ("something else in between", false, |p| {
            p.send(Packet::Bitmap(Bytes::from_static(&[0; 512])));
            p.send(Packet::SyncUuid(GenId(1)));
        }),
        ("data for a block that was not asked for", true, |p| {
            let body = [&p_data(p, 4096, u64::MAX)[..], &[3; 4096]].concat();
            send(p, Data, 0x02, &body);
        }),
        ("data of another size", true, |p| {
            let req: BlockReq =
                p.expect("a request", |p| if let Packet::RsDataRequest(r) = p { Some(*r) } else { None });
            let body = [&p_data(p, req.sector.0, u64::MAX)[..], &[3; 512]].concat();
            send(p, Data, 0x02, &body);
        }),
        ("a second bitmap", true, |p| p.send(Packet::Bitmap(Bytes::from_static(&[0; 512])))),
    ];
    for_each(&cases, |(_, begun, act)| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let persona = |bitmap: u64| Persona {
            uuids: uuids(0x99aa_bbcc_ddee_ff00, bitmap),
            role: Role::Primary,
            ..Persona::new()
        };
        let (mut peer, _, state) = Peer::connect(&site, persona(GENERATION.0));
        assert_eq!(state.conn(), Some(ConnState::WfBitMapT));
        peer.send_state(ConnState::WfBitMapS, DiskState::UpToDate);
        peer.model.deaf = true;
        peer.model.bits = (0..16).collect();
        if begun {
            start(&mut peer);
            peer.send(Packet::SyncUuid(GenId(GENERATION.0 + GenId::SYNC_STEP)));
        }
        act(&mut peer);
        peer.expect_close();
        drop(peer);
        // A source announces a resync when its own bitmap slot has the identifier.
        let step = if begun { GenId::SYNC_STEP } else { 0 };
        resync_after(&site, &node, persona(GENERATION.0 + step), begun);
        node.assert_sound();
    });
}

/// The same peer, now honest: everything that was marked is still marked, and repaired.
fn resync_after(site: &Site, node: &Node, persona: Persona, begun: bool) {
    let (mut peer, _, state) = Peer::connect(site, persona);
    assert_eq!(state.conn(), Some(ConnState::WfBitMapT));
    peer.model.disk[..65536].copy_from_slice(&pattern(8, 65536));
    peer.model.bits = (0..16).collect();
    peer.send_state(ConnState::WfBitMapS, DiskState::UpToDate);
    for packet in peer.model.bitmap_packets(&peer, false) {
        peer.send(packet);
    }
    peer.serve_until("the bitmap", |p| p.model.bitmaps == 1);
    let step = if begun { 2 } else { 1 };
    peer.send(Packet::SyncUuid(GenId(GENERATION.0 + step * GenId::SYNC_STEP)));
    peer.serve_until("all blocks", |p| p.model.bits.is_empty());
    node.wait_in_sync();
    crate::as_primary::assert_same_as_daemon(&peer, node);
}
