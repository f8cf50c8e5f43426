//! Defects that were found by reading, each as the scenario that showed it.

use bytes::Bytes;
use smallvec::SmallVec;

use super::crash::range;
use super::net;
use super::pair::{A, B, Pair, V};
use crate::engine::action::DiskOp;
use crate::engine::event::{ClientRequest, Command, Socket};
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState, Role};

/// Executes the first queued disk operation of a node that `which` picks; whether there was one.
fn one_disk_op(p: &mut Pair, n: usize, which: impl Fn(&DiskOp) -> bool) -> bool {
    let found = p.nodes[n].disk_queue.iter().position(|(.., io)| which(io));
    if let Some(index) = found {
        p.do_disk(n, index);
    }
    found.is_some()
}

/// A write that ends after a flush began is not covered by it.
#[test]
fn a_flush_that_began_before_a_write_ended_counted_for_it() {
    let mut p = Pair::ready(1, &net(ReplProtocol::C));
    p.write(A, 0, 8, 1);
    p.settle();
    p.write(A, 0, 8, 2);
    p.client(A, V, ClientRequest::Flush);
    assert!(one_disk_op(&mut p, A, |io| matches!(io, DiskOp::Flush)));
    assert!(one_disk_op(&mut p, A, |io| matches!(io, DiskOp::Write { .. })));
    let disk = p.nodes[A].engine.volumes.get(&V).and_then(|vol| vol.disk.as_ref()).unwrap();
    assert!(disk.unflushed, "the write is in the cache");
}

#[test]
fn durable_zeroes_were_complete_without_a_flush() {
    for protocol in [ReplProtocol::A, ReplProtocol::C] {
        let mut p = Pair::ready(2, &net(protocol));
        p.settle();
        for n in [A, B] {
            p.nodes[n].cache.clear();
        }
        let request = ClientRequest::WriteZeroes { range: range(8, 8), may_unmap: false, fua: true };
        let id = p.client(A, V, request);
        while !p.done(A, id) {
            assert!(p.step());
        }
        let cached = |p: &Pair, n: usize| p.nodes[n].cache.iter().any(|(_, _, block, _)| *block == 1);
        assert!(!cached(&p, A), "{protocol:?}");
        assert!(protocol == ReplProtocol::A || !cached(&p, B), "{protocol:?}");
    }
}

#[test]
fn a_flush_failed_locally_and_the_peers_half_was_not_waited_for() {
    let mut p = Pair::ready(3, &net(ReplProtocol::A));
    p.write(A, 0, 8, 1);
    p.settle();
    p.write(A, 0, 8, 2);
    while one_disk_op(&mut p, A, |io| matches!(io, DiskOp::Write { .. })) {}
    let id = p.client(A, V, ClientRequest::Flush);
    p.nodes[A].fail_flushes = true;
    assert!(one_disk_op(&mut p, A, |io| matches!(io, DiskOp::Flush)));
    assert!(!p.done(A, id), "nothing has reached the peer yet");
    p.settle();
    assert!(p.done(A, id));
}

#[test]
fn a_secondary_acknowledged_an_epoch_whose_flush_failed() {
    for relaxed in [false, true] {
        let mut p = Pair::ready(4, &net(ReplProtocol::C));
        for n in [A, B] {
            p.nodes[n].engine.conn.relaxed_epochs = relaxed;
        }
        p.nodes[B].fail_flushes = true;
        p.write(A, 0, 8, 1);
        p.client(A, V, ClientRequest::Flush);
        p.settle();
        assert_eq!(p.nodes[B].state(V).disk, DiskState::Diskless, "{:#?}", p.nodes[B].log);
        assert!(p.nodes[A].out_of_sync() >= 1, "the peer may have lost the write");
        p.nodes[B].fail_flushes = false;
        p.attach(B, V);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
        assert!(!p.nodes[B].engine.rx.drain_only(), "flushes go on with the new disk");
        p.same_data();
    }
}

#[test]
fn a_state_that_crossed_an_attach_settled_it_without_a_handshake() {
    let mut p = Pair::ready(5, &net(ReplProtocol::C));
    p.ok(B, Command::Detach { force: false });
    p.write(A, 0, 8, 1);
    p.settle();
    p.attach(B, V);
    // Nothing of it reaches the peer; the peer says something else meanwhile.
    while one_disk_op(&mut p, B, |_| true) {}
    assert_eq!(p.nodes[B].state(V).disk, DiskState::Negotiating);
    p.command(A, V, Command::PauseSync);
    while !p.nodes[A].data.is_empty() {
        p.deliver(A, Socket::Data);
    }
    assert_ne!(p.nodes[B].state(V).disk, DiskState::UpToDate, "its data are old");
    p.command(A, V, Command::ResumeSync);
    p.settle();
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate", "{:#?}", p.nodes[B].log);
    p.same_data();
}

#[test]
fn roles_change_without_a_disk() {
    let mut p = Pair::ready(6, &net(ReplProtocol::C));
    p.ok(A, Command::Detach { force: false });
    p.ok(A, Command::Secondary);
    p.ok(A, Command::Primary { force: false });
    assert_eq!(p.nodes[A].state(V).role, Role::Primary);
    let data = Bytes::from(vec![7; 4096]);
    let id = p.client(A, V, ClientRequest::Write { range: range(0, 8), data: SmallVec::from_elem(data, 1), fua: true });
    p.settle();
    assert_eq!(p.nodes[A].completed.get(&id), Some(&Ok(SmallVec::new())));
    assert_eq!(p.read(A, 0, 8)[0], 7);
}

#[test]
fn what_waited_on_a_lost_link_let_the_next_links_packets_go() {
    let mut p = Pair::ready(7, &net(ReplProtocol::C));
    // The peer's disk goes: a new generation, which is announced when it is durable.
    p.command(B, V, Command::Detach { force: true });
    while p.nodes[A].engine.conn.hold == 0 {
        if !one_disk_op(&mut p, B, |_| true) {
            p.deliver(B, Socket::Data);
        }
    }
    p.cut();
    p.join();
    assert_eq!(p.nodes[A].engine.conn.hold, 0);
    // The next link comes up and holds packets for a reason of its own, while the old write is still under way.
    while p.nodes[A].link.is_none() {
        let disk = std::mem::take(&mut p.nodes[A].disk_queue);
        assert!(p.step());
        p.nodes[A].disk_queue.extend(disk);
    }
    p.nodes[A].engine.hold_data();
    while one_disk_op(&mut p, A, |_| true) {}
    assert_eq!(p.nodes[A].engine.conn.hold, 1);
    p.nodes[A].engine.release_data();
}

#[test]
fn a_read_of_the_peer_waited_for_a_write_that_never_reached_the_disk() {
    let mut p = Pair::ready(8, &net(ReplProtocol::C));
    let id = p.write(A, 0, 8, 1);
    assert!(!p.done(A, id), "it waits for the activity log");
    let request = crate::wire::resync::BlockReq {
        sector: crate::units::Sector(0),
        block_id: crate::units::BlockId::SYNCER,
        blksize: 4096,
    };
    let link = p.nodes[A].link.unwrap();
    let packet = crate::wire::packet::Packet::RsDataRequest(request);
    p.event(A, crate::engine::event::Event::Packet { link, socket: Socket::Data, volume: V, packet });
    p.nodes[A].fail_meta = true;
    p.settle();
    assert!(p.done(A, id), "the peer has it");
    let later = p.write(A, 0, 8, 2);
    p.settle();
    assert!(p.done(A, later), "{}", p.nodes[A].text());
}

/// The bits of a node's volume as its disk alone would say them after a crash.
fn bits_after_a_crash(p: &mut Pair, n: usize) -> u64 {
    p.crash(n);
    p.command(n, V, Command::NewVolume(crate::engine::options::DiskOptions::default()));
    p.attach(n, V);
    p.settle_for(0);
    p.nodes[n].out_of_sync()
}

#[test]
fn switching_the_activity_log_on_again_forgot_what_was_hot_meanwhile() {
    use crate::engine::options::DiskOptions;
    for seed in 0..10 {
        for on in [false, true] {
            let mut p = Pair::ready(900 + seed, &net(ReplProtocol::C));
            if on {
                p.ok(A, Command::DiskOptions(DiskOptions { al_updates: false, ..DiskOptions::default() }));
                p.write(A, 16384, 8, 1);
                p.settle();
            }
            p.command(A, V, Command::DiskOptions(DiskOptions { al_updates: on, ..DiskOptions::default() }));
            p.write(A, 16384, 8, 2);
            let written = |p: &Pair| !p.nodes[A].disk_queue.iter().any(|(.., io)| matches!(io, DiskOp::Write { .. }));
            // Data may be on the disk as soon as they are handed to it.
            for _ in 0..200 {
                if !written(&p) {
                    break;
                }
                p.step();
            }
            assert!(!written(&p));
            while one_disk_op(&mut p, A, |io| matches!(io, DiskOp::Write { .. })) {}
            assert!(bits_after_a_crash(&mut p, A) > 0, "seed {seed} on {on}");
        }
    }
}

#[test]
fn invalidate_remote_alone_suspended_the_activity_log_before_the_bits_were_on_disk() {
    let mut p = Pair::ready(10, &net(ReplProtocol::C));
    p.ok(A, Command::Disconnect { force: false });
    p.ok(B, Command::Disconnect { force: false });
    p.command(A, V, Command::InvalidateRemote);
    p.write(A, 16384, 8, 1);
    while one_disk_op(&mut p, A, |io| matches!(io, DiskOp::Write { .. })) {}
    let written = p.data(A, V)[16384 * 512] == 1;
    assert!(!written || bits_after_a_crash(&mut p, A) > 0);
}

#[test]
fn a_bitmap_that_broke_off_was_continued_by_the_next_one() {
    let mut p = Pair::ready(11, &net(ReplProtocol::C));
    p.cut();
    p.write(A, 0, 8, 1);
    p.settle();
    p.join();
    while p.nodes[B].state(V).conn != ConnState::WfBitMapT {
        assert!(p.step());
    }
    let vol = p.nodes[B].engine.volumes.get_mut(&V).unwrap();
    vol.bitmap_rx = Some(crate::wire::bitmap::BitmapReceiver::new(4086, crate::wire::feature::Version::MAX));
    p.command(B, V, Command::Detach { force: true });
    assert!(p.nodes[B].engine.volumes[&V].bitmap_rx.is_none());
}

/// A fresh link whose handshake has not happened: node and the link's number.
fn before_the_handshake() -> (Pair, crate::engine::event::LinkNr) {
    let mut p = Pair::ready(12, &net(ReplProtocol::C));
    p.cut();
    p.join();
    while p.nodes[B].link.is_none() {
        assert!(p.step());
    }
    let link = p.nodes[B].link.unwrap();
    (p, link)
}

#[test]
fn data_before_the_handshake_reached_the_disk() {
    let (mut p, link) = before_the_handshake();
    let packet = crate::wire::packet::Packet::Data(crate::wire::data::Data {
        sector: crate::units::Sector(0),
        block_id: crate::units::BlockId(1),
        seq: crate::units::SeqNr(1),
        flags: crate::wire::data::DpFlags::NONE,
        digest: crate::wire::digest::Digest::EMPTY,
        payload: Bytes::from(vec![9; 4096]),
    });
    p.nodes[B].disk_queue.clear();
    p.event(B, crate::engine::event::Event::Packet { link, socket: Socket::Data, volume: V, packet });
    assert!(!p.nodes[B].disk_queue.iter().any(|(.., io)| matches!(io, DiskOp::Write { .. })));
    assert_eq!(p.nodes[B].link, None);
}

#[test]
fn a_state_without_identifiers_connected_without_a_handshake() {
    let (mut p, link) = before_the_handshake();
    while let Some((volume, packet)) = p.nodes[A].data.pop_front() {
        if !matches!(packet, crate::wire::packet::Packet::Uuids(_)) {
            p.event(B, crate::engine::event::Event::Packet { link, socket: Socket::Data, volume, packet });
        }
    }
    assert!(p.nodes[B].state(V).conn < ConnState::Connected);
}

/// While the own data are behind, the peer's copy is the one that counts: a flush under A or B has to wait for it.
#[test]
fn a_flush_of_an_inconsistent_primary_did_not_wait_for_the_good_copy() {
    for protocol in [ReplProtocol::A, ReplProtocol::B] {
        let mut p = Pair::ready(21, &net(protocol));
        p.ok(A, Command::PauseSync);
        p.ok(A, Command::Invalidate);
        p.settle();
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Inconsistent);
        p.write(A, 0, 8, 1);
        while one_disk_op(&mut p, A, |_| true) {}
        let flush = p.client(A, V, ClientRequest::Flush);
        while one_disk_op(&mut p, A, |_| true) {}
        assert!(!p.done(A, flush), "{protocol:?}: nothing has reached the peer yet");
        p.settle();
        assert!(p.done(A, flush));
    }
}

/// A write whose activity-log transaction fails goes to the peer only, which has to mark it: told before, not after it.
#[test]
fn a_write_past_the_failed_disk_overtook_the_news_of_it() {
    let mut p = Pair::ready(8, &net(ReplProtocol::C));
    p.nodes[A].fail_meta = true;
    let id = p.write(A, 0, 8, 1);
    p.settle();
    assert!(p.done(A, id));
    assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless);
    assert!(p.nodes[B].out_of_sync() >= 1, "nobody else knows what the failed disk lacks");
    p.nodes[A].fail_meta = false;
    p.attach(A, V);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

/// The source has sent everything, and the link goes before it hears that the target is done: what it writes then is not in
/// the generation that the target now has as well.
#[test]
fn a_source_that_missed_the_end_of_a_resync_wrote_on_under_the_same_generation() {
    let mut p = Pair::ready(9, &net(ReplProtocol::C));
    p.cut();
    p.settle();
    p.write(A, 0, 8, 1);
    p.settle();
    p.join();
    while p.nodes[B].state(V).conn != ConnState::SyncTarget {
        assert!(p.step());
    }
    while p.nodes[B].state(V).disk != DiskState::UpToDate {
        assert!(p.step());
    }
    assert_eq!(p.nodes[A].state(V).conn, ConnState::SyncSource);
    p.cut();
    let id = p.write(A, 80, 8, 2);
    p.settle();
    assert!(p.done(A, id));
    p.crash(A);
    p.ok(B, Command::Primary { force: false });
    p.write(B, 160, 8, 3);
    p.settle();
    p.ok(B, Command::Secondary);
    p.join();
    p.restart(A, &net(ReplProtocol::C));
    p.settle();
    let split = |n: usize| p.nodes[n].log.iter().any(|l| l.contains("Split-Brain detected"));
    assert!(split(A) || split(B), "{:#?}", p.nodes[A].log);
    assert_eq!(p.data(A, V)[80 * 512], 2, "given up without a word");
}

#[test]
fn a_source_that_failed_before_the_resync_began_left_old_data_called_good() {
    for seed in 10..16 {
        let options = net(ReplProtocol::C);
        let mut p = Pair::ready(seed, &options);
        p.cut();
        p.settle();
        p.write(A, 0, 8, 1);
        p.settle();
        p.join();
        while !matches!(p.nodes[B].state(V).conn, ConnState::WfBitMapT | ConnState::WfSyncUuid) {
            assert!(p.step());
        }
        assert_eq!(p.nodes[B].state(V).disk, DiskState::Outdated);
        p.command(A, V, Command::Detach { force: true });
        p.settle();
        assert_ne!(p.nodes[B].state(V).disk, DiskState::UpToDate, "its data are old: {:#?}", p.nodes[B].log);
        p.attach(A, V);
        p.settle();
        p.command(A, V, Command::Connect(Box::new(options)));
        p.settle();
        assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.data(A, V)[0], 1);
        p.same_data();
    }
}
