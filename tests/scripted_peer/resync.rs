//! Resync between the daemon and the scripted peer, in both directions: bitmaps plain and coded, the start, the end by the
//! rules of the version, and writes meanwhile.

use bytes::Bytes;
use udrbd::units::{BlockId, GenId, Sector, SectorRange, VolumeNr};
use udrbd::wire::state::mask;
use udrbd::wire::{BlockAck, BlockReq, ConnState, DiskState, DpFlags, Packet, Role};

use crate::as_primary::{ack_flags, assert_same_as_daemon, barrier, expect_ack, send_write, send_write_with};
use crate::as_secondary::open;
use crate::daemon_common::{GENERATION, Node, Setup, Site, pattern, up_to_date};
use crate::for_each;
use crate::peer::{Peer, Persona, uuids};

/// A data generation that came after [`GENERATION`].
const NEWER: u64 = 0x99aa_bbcc_ddee_ff00;

/// Version, and whether bitmaps are coded where the version can.
const CASES: [(u32, bool); 9] =
    [(86, true), (90, true), (95, true), (95, false), (96, true), (96, false), (100, true), (101, true), (101, false)];

fn site(rle: bool) -> Site {
    let rle = if rle { "yes" } else { "no" };
    Site::new(Setup { net: format!("use-rle {rle};"), ..Setup::default() })
}

/// Bits of every shape: single ones, runs over words and over 4 MiB, the last one.
fn dirty(size_bits: u64) -> Vec<u64> {
    let singles = (0..200).step_by(2);
    let runs = (300..360).chain(1000..2300).chain(3000..3001);
    singles.chain(runs).chain([size_bits - 1]).collect()
}

/// The peer as target of a resync: takes the daemon's bitmap and answers with its own, coded.
fn exchange_bitmaps(peer: &mut Peer) {
    peer.send_state(ConnState::WfBitMapT, DiskState::Outdated);
    peer.serve_until("the bitmap", |peer| peer.model.bitmaps == 1);
    for packet in peer.model.bitmap_packets(peer, true) {
        peer.send(packet);
    }
}

fn dirty_peer(peer: &mut Peer) {
    let size = peer.persona.size;
    for bit in dirty(size.bm_bits()) {
        peer.model.bits.insert(bit);
        let sectors = (size.0 - bit * 8).min(8);
        let range = SectorRange::from_bytes(Sector(bit * 8), sectors * 512).expect("legal");
        peer.model.write(range, &pattern(bit, usize::try_from(sectors * 512).expect("small")));
    }
}

#[test]
fn the_daemon_is_synced_by_the_peer() {
    for_each(&CASES, |(version, rle)| {
        let site = site(rle);
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut ours = uuids(NEWER, GENERATION.0);
        ours.bits_set = dirty(Persona::new().size.bm_bits()).len() as u64;
        let persona = Persona { uuids: ours, role: Role::Primary, ..Persona::speaking(version, 3) };
        let (mut peer, _, state) = Peer::connect(&site, persona);
        assert_eq!(state.conn(), Some(ConnState::WfBitMapT));
        dirty_peer(&mut peer);
        peer.send_state(ConnState::WfBitMapS, DiskState::UpToDate);
        for packet in peer.model.bitmap_packets(&peer, rle) {
            peer.send(packet);
        }
        let all = peer.model.bits.clone();
        peer.serve_until("the bitmap", |peer| peer.model.bitmaps == 1);
        assert_eq!(peer.model.bits, all, "the daemon had no bits of its own");
        assert_eq!(peer.model.coded_chunks > 0, rle && version >= 90);
        peer.send(Packet::SyncUuid(GenId(GENERATION.0 + GenId::SYNC_STEP)));
        // A write while it goes on, into blocks that are out of sync and into some that are not.
        peer.model.syncing = true;
        let flags = ack_flags(&peer).with(DpFlags::MAY_SET_IN_SYNC);
        send_write_with(&mut peer, 1200 * 8, 1, &pattern(77, 16384), flags);
        send_write_with(&mut peer, 400 * 8, 2, &pattern(78, 16384), flags);
        for id in [1, 2] {
            peer.expect("an acknowledgement as in sync", |p| match p {
                Packet::RsWriteAck(ack) | Packet::WriteAck(ack) if ack.block_id == BlockId(id) => Some(()),
                _ => None,
            });
        }
        peer.send(Packet::Barrier { barrier: 0 });
        peer.serve_until("all blocks", |peer| peer.model.bits.is_empty());
        if version >= 95 {
            peer.expect("the end of the resync", |p| match p {
                Packet::State(w) if (w.conn(), w.disk()) == (Some(ConnState::Connected), Some(DiskState::UpToDate)) => {
                    Some(())
                }
                _ => None,
            });
        }
        peer.expect_packet(&Packet::BarrierAck { barrier: 0, set_size: 2 });
        node.wait_in_sync();
        let ids = node.volume().uuids.expect("a disk");
        assert!(ids.current.same(GenId(NEWER)) && ids.bitmap == GenId::UNSET, "{ids:?}");
        // It replicates on.
        peer.model.syncing = false;
        send_write(&mut peer, 64, 3, &pattern(79, 4096));
        expect_ack(&mut peer, 64, 3, 4096);
        barrier(&mut peer, 1, 1);
        assert_same_as_daemon(&peer, &node);
        node.assert_sound();
    });
}

/// Makes the peer request everything that it has marked, and write it.
fn request_everything(peer: &mut Peer) {
    let size = peer.persona.size;
    let bits: Vec<u64> = peer.model.bits.iter().copied().collect();
    for bit in &bits {
        let blksize = u32::try_from((size.0 - bit * 8).min(8) * 512).expect("small");
        peer.send(Packet::RsDataRequest(BlockReq { sector: Sector(bit * 8), block_id: BlockId::SYNCER, blksize }));
    }
    for _ in &bits {
        let reply = peer.expect("P_RS_DATA_REPLY", |p| match p {
            Packet::RsDataReply(reply) => Some(reply.clone()),
            _ => None,
        });
        assert_eq!(reply.block_id, BlockId::SYNCER);
        let range = reply.range().expect("legal");
        assert!(peer.model.bits.remove(&(range.start.0 / 8)), "answered twice or never asked for: {range:?}");
        peer.model.write(range, &reply.payload);
        let seq = peer.next_seq();
        let blksize = u32::try_from(reply.payload.len()).expect("small");
        peer.send(Packet::RsWriteAck(BlockAck { sector: reply.sector, block_id: BlockId::SYNCER, blksize, seq }));
    }
}

/// A daemon that wrote while its peer was away.
fn dirty_daemon(site: &Site) -> Node {
    let mut node = site.node(0, up_to_date);
    node.start_up();
    node.primary();
    let mut nbd = open(&node);
    for bit in dirty(nbd.size_bytes.div_ceil(4096)) {
        let len = (nbd.size_bytes - bit * 4096).min(4096);
        nbd.write(bit * 4096, &pattern(bit, usize::try_from(len).expect("small")));
    }
    nbd.flush();
    node
}

#[test]
fn the_peer_is_synced_by_the_daemon() {
    for_each(&CASES, |(version, rle)| {
        let site = site(rle);
        let mut node = dirty_daemon(&site);
        let (mut peer, greeting, state) = Peer::connect(&site, Persona::speaking(version, 3));
        let bits = dirty(peer.persona.size.bm_bits());
        assert!(greeting.uuids.bitmap.same(GENERATION), "{greeting:?}");
        assert_eq!(greeting.uuids.bits_set, bits.len() as u64);
        assert_eq!(state.conn(), Some(ConnState::WfBitMapS));
        peer.send_state(ConnState::WfBitMapT, DiskState::Outdated);
        peer.serve_until("the bitmap", |peer| peer.model.bitmaps == 1);
        assert_eq!(peer.model.bits.iter().copied().collect::<Vec<_>>(), bits);
        assert_eq!(peer.model.coded_chunks > 0, rle && version >= 90);
        assert_eq!(peer.model.plain_chunks > 0, !rle || version < 90);
        for packet in peer.model.bitmap_packets(&peer, rle) {
            peer.send(packet);
        }
        let sync = peer.expect("P_SYNC_UUID", |p| if let Packet::SyncUuid(id) = p { Some(*id) } else { None });
        assert!(sync.same(GenId(GENERATION.0 + GenId::SYNC_STEP)), "{sync:?}");
        node.wait_conn(ConnState::SyncSource);
        // A client writes meanwhile; the peer clears what the write covers.
        peer.model.syncing = true;
        let mut nbd = open(&node);
        let cookie = nbd.send_write(1100 * 4096, &pattern(5, 32768));
        peer.serve_until("the write", |peer| {
            peer.model.writes.iter().map(|(range, _)| range.bytes()).sum::<u64>() == 32768
        });
        nbd.finish(cookie);
        peer.model.syncing = false;
        request_everything(&mut peer);
        if version >= 95 {
            peer.ping();
            peer.send_state(ConnState::Connected, DiskState::UpToDate);
        }
        node.wait_in_sync();
        assert_eq!(node.volume().out_of_sync_kib, 0);
        let ids = node.volume().uuids.expect("a disk");
        assert_eq!(ids.bitmap, GenId::UNSET, "{ids:?}");
        let cookie = nbd.send_write(0, &pattern(6, 4096));
        peer.serve_until("a write after it", |peer| peer.model.disk[..4096] == pattern(6, 4096));
        nbd.finish(cookie);
        assert_same_as_daemon(&peer, &node);
        node.assert_sound();
    });
}

#[test]
fn a_source_of_96_and_later_waits_for_the_targets_word() {
    for_each(&[96, 100, 101], |version| {
        let site = site(true);
        let mut node = dirty_daemon(&site);
        let (mut peer, _, _) = Peer::connect(&site, Persona::speaking(version, 0));
        exchange_bitmaps(&mut peer);
        peer.expect("P_SYNC_UUID", |p| if let Packet::SyncUuid(_) = p { Some(()) } else { None });
        request_everything(&mut peer);
        // Behind all acknowledgements: they were counted, and still the source does not say that it is over.
        peer.ping();
        assert_eq!(node.volume().state, ConnState::SyncSource);
        assert!(node.volume().uuids.expect("a disk").bitmap != GenId::UNSET);
        peer.send_state(ConnState::Connected, DiskState::UpToDate);
        node.wait_in_sync();
        node.assert_sound();
    });
}

#[test]
fn a_resync_that_is_cut_off_goes_on_where_it_was() {
    for_each(&[86, 95, 101], |version| {
        let site = site(true);
        let mut node = dirty_daemon(&site);
        let (mut peer, _, _) = Peer::connect(&site, Persona::speaking(version, 0));
        exchange_bitmaps(&mut peer);
        let sync = peer.expect("P_SYNC_UUID", |p| if let Packet::SyncUuid(id) = p { Some(*id) } else { None });
        // Half of it, then the cable.
        let all = std::mem::take(&mut peer.model.bits);
        let half = all.len() / 2;
        peer.model.bits = all.iter().take(half).copied().collect();
        request_everything(&mut peer);
        peer.ping();
        let mut model = std::mem::take(&mut peer.model);
        drop(peer);
        node.wait_volume("disconnected", |v| v.state < ConnState::WfReportParams);
        let left = (all.len() - half) as u64;
        assert_eq!(node.volume().out_of_sync_kib, left * 4);
        // The target remembers the sync identifier as its current one.
        let persona =
            Persona { uuids: uuids(sync.0, 0), disk: DiskState::Inconsistent, ..Persona::speaking(version, 0) };
        let (mut peer, _, state) = Peer::connect(&site, persona);
        assert_eq!(state.conn(), Some(ConnState::WfBitMapS));
        model.bitmaps = 0;
        peer.model = model;
        peer.send_state(ConnState::WfBitMapT, DiskState::Inconsistent);
        peer.serve_until("the bitmap", |peer| peer.model.bitmaps == 1);
        assert_eq!(peer.model.bits.len() as u64, left);
        for packet in peer.model.bitmap_packets(&peer, false) {
            peer.send(packet);
        }
        peer.expect("P_SYNC_UUID", |p| if let Packet::SyncUuid(_) = p { Some(()) } else { None });
        request_everything(&mut peer);
        if version >= 95 {
            peer.ping();
            peer.send_state(ConnState::Connected, DiskState::UpToDate);
        }
        node.wait_in_sync();
        assert_same_as_daemon(&peer, &node);
        node.assert_sound();
    });
}

#[test]
fn a_full_sync_that_the_peer_asks_for() {
    for_each(&[86, 101], |version| {
        let site = site(true);
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0));
        // The peer wants to be the target: StartingSyncT in its own words.
        use udrbd::units::Sectors;
        use udrbd::wire::{StateResult, StateWord};
        peer.send(Packet::StateChgReq {
            mask: StateWord(mask::CONN),
            val: StateWord::of_conn(ConnState::StartingSyncT),
        });
        peer.expect_packet(&Packet::StateChgReply(StateResult::Success.code()));
        peer.expect("P_SYNC_UUID", |p| if let Packet::SyncUuid(_) = p { Some(()) } else { None });
        assert_eq!(peer.model.bitmaps, 0, "no bitmaps are exchanged");
        let Sectors(size) = peer.persona.size;
        assert_eq!(node.volume().out_of_sync_kib, size.div_ceil(8) * 4);
        peer.model.bits = (0..size.div_ceil(8)).collect();
        request_everything(&mut peer);
        if version >= 95 {
            peer.ping();
            peer.send_state(ConnState::Connected, DiskState::UpToDate);
        }
        node.wait_in_sync();
        assert_same_as_daemon(&peer, &node);
        node.assert_sound();
    });
}

#[test]
fn resync_requests_of_any_size_are_served() {
    let site = site(true);
    let mut node = dirty_daemon(&site);
    let (mut peer, _, _) = Peer::connect(&site, Persona::new());
    exchange_bitmaps(&mut peer);
    peer.expect("P_SYNC_UUID", |p| if let Packet::SyncUuid(_) = p { Some(()) } else { None });
    let mut nbd = open(&node);
    for (sector, blksize) in [(8_000, 512), (8_003, 13 * 512), (8_192, 1 << 20), (0, 65536)] {
        peer.send(Packet::RsDataRequest(BlockReq { sector: Sector(sector), block_id: BlockId::SYNCER, blksize }));
        let payload: Bytes = peer.expect("P_RS_DATA_REPLY", |p| match p {
            Packet::RsDataReply(reply) if reply.sector == Sector(sector) => Some(reply.payload.clone()),
            _ => None,
        });
        assert_eq!(payload, nbd.read(sector * 512, blksize));
    }
    peer.send_for(VolumeNr(0), Packet::UnplugRemote);
    peer.ping();
    node.assert_sound();
}
