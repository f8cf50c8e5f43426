//! A link that is too slow: Ahead and Behind, and what must not happen meanwhile.

use super::bad_disks::fail_next;
use super::pair::{A, B, Pair, V};
use super::{PROTOCOLS, net};
use crate::engine::action::{ClientError, CommandError};
use crate::engine::event::{ClientRequest, Command, RequestId, Socket};
use crate::engine::options::{DiskOptions, NetOptions, OnCongestion, OnIoError};
use crate::units::Sectors;
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState, StateResult};

fn congestion(protocol: ReplProtocol, on_congestion: OnCongestion) -> NetOptions {
    NetOptions { on_congestion, congestion_fill: Sectors(64), ..net(protocol) }
}

/// Everything but the network: disks, and what the stack takes.
fn disks(p: &mut Pair, n: usize) {
    while !p.nodes[n].disk_queue.is_empty() {
        p.do_disk(n, 0);
    }
}

/// A has written 12 blocks (8 of them fill the link), and nothing has arrived.
fn ahead(seed: u64, options: DiskOptions) -> (Pair, Vec<RequestId>) {
    let mut p = Pair::ready(seed, &congestion(ReplProtocol::A, OnCongestion::PullAhead));
    p.ok(A, Command::DiskOptions(options));
    p.write(A, 0, 8, 9);
    p.settle();
    let ids = (0u8..12).map(|n| p.write(A, u64::from(n) * 8, 8, n + 1)).collect();
    disks(&mut p, A);
    assert_eq!(p.nodes[A].text(), "Ahead Primary/Secondary UpToDate/Consistent", "{:#?}", p.nodes[A].log);
    (p, ids)
}

#[test]
fn a_congested_primary_pulls_ahead_and_comes_back() {
    for seed in 0..8 {
        let (mut p, ids) = ahead(100 + seed, DiskOptions::default());
        assert!(p.nodes[A].log.iter().any(|line| line == "Congestion-fill threshold reached"));
        let kinds: Vec<_> = p.nodes[A].data.iter().map(|(_, packet)| packet.kind().name()).collect();
        let state = kinds.iter().position(|kind| *kind == "P_STATE").expect("it says that it is Ahead");
        assert_eq!(kinds.iter().filter(|kind| **kind == "P_DATA").count(), 8);
        assert!(kinds[..state].iter().all(|kind| *kind != "P_OUT_OF_SYNC"), "{kinds:?}");
        assert_eq!(kinds[state..].iter().filter(|kind| **kind == "P_OUT_OF_SYNC").count(), 4, "{kinds:?}");
        assert!(p.nodes[A].data.iter().any(|(_, packet)| matches!(packet, Packet::Uuids(_))));
        p.settle_for(900_000_000);
        assert!(ids[8..].iter().all(|id| p.nodes[A].completed[id].is_ok()));
        assert_eq!(p.nodes[B].text(), "Behind Secondary/Primary Outdated/UpToDate", "{:#?}", p.nodes[B].log);
        assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (4, 4));
        let before = p.nodes[B].packets.get("P_BITMAP").copied();
        p.settle_for(2_000_000_000);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate");
        assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
        assert_eq!(p.nodes[B].packets.get("P_BITMAP").copied(), before, "no bitmap goes over");
        p.same_data();
        // Both are in one generation: the next handshake finds nothing to do.
        p.cut();
        p.settle();
        p.join();
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    }
}

#[test]
fn hot_extents_count_as_congestion() {
    let opts = NetOptions {
        congestion_fill: Sectors(0),
        congestion_extents: 3,
        ..congestion(ReplProtocol::A, OnCongestion::PullAhead)
    };
    let mut p = Pair::ready(110, &opts);
    for n in 0u8..6 {
        p.write(A, u64::from(n) * 8192 % 24576, 8, n + 1);
        disks(&mut p, A);
    }
    assert!(p.nodes[A].log.iter().any(|line| line == "Congestion-extents threshold reached"), "{:#?}", p.nodes[A].log);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

#[test]
fn the_other_policies() {
    for protocol in PROTOCOLS {
        for policy in [OnCongestion::Block, OnCongestion::PullAhead, OnCongestion::Disconnect] {
            let mut p = Pair::ready(111, &congestion(protocol, policy));
            for n in 0u8..12 {
                p.write(A, u64::from(n) * 8, 8, n + 1);
            }
            disks(&mut p, A);
            let conn = match policy {
                OnCongestion::PullAhead if protocol == ReplProtocol::A => ConnState::Ahead,
                OnCongestion::Disconnect => ConnState::StandAlone,
                _ => ConnState::Connected,
            };
            assert_eq!(p.nodes[A].state(V).conn, conn, "{protocol:?} {policy:?}");
            p.settle();
            if policy == OnCongestion::Disconnect {
                assert!(p.nodes[A].completed.values().all(Result::is_ok));
                p.ok(A, Command::Connect(Box::new(net(protocol))));
            }
            p.settle();
            assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
            p.same_data();
        }
    }
}

#[test]
fn a_resync_is_not_left_for_ahead() {
    let (mut p, _) = ahead(112, DiskOptions::default());
    p.ok(B, Command::DiskOptions(DiskOptions { resync_rate: Some(1 << 20), ..DiskOptions::default() }));
    while p.nodes[A].state(V).conn != ConnState::SyncSource {
        p.settle_for(100_000_000);
        if p.nodes[A].state(V).conn == ConnState::Connected {
            return;
        }
    }
    for n in 0u8..40 {
        p.write(A, 4096 + u64::from(n) * 8, 8, n);
        disks(&mut p, A);
        assert_eq!(p.nodes[A].state(V).conn, ConnState::SyncSource);
    }
    p.settle_for(20_000_000_000);
    p.same_data();
}

#[test]
fn the_second_time_lasts_longer() {
    let (mut p, _) = ahead(113, DiskOptions::default());
    p.settle_for(3_000_000_000);
    assert_eq!(p.nodes[A].state(V).conn, ConnState::Connected);
    for n in 0u8..12 {
        p.write(A, u64::from(n) * 8, 8, n + 1);
    }
    disks(&mut p, A);
    assert_eq!(p.nodes[A].state(V).conn, ConnState::Ahead);
    p.settle_for(1_800_000_000);
    assert_eq!(p.nodes[A].state(V).conn, ConnState::Ahead);
    p.settle_for(1_000_000_000);
    assert_eq!(p.nodes[A].state(V).conn, ConnState::Connected, "{:#?}", p.nodes[A].log);
    p.same_data();
}

/// Under `pass_on` the disk of a node that is Ahead stays the source.
#[test]
fn a_disk_that_goes_while_the_peer_is_behind_leaves_no_old_data() {
    for (seed, by_order) in [(114, false), (115, true)] {
        let (mut p, _) = ahead(seed, DiskOptions::default());
        p.settle_for(500_000_000);
        assert_eq!(p.nodes[B].state(V).conn, ConnState::Behind);
        if by_order {
            let refused = p.command(A, V, Command::Detach { force: false });
            assert_eq!(
                p.nodes[A].results.remove(&refused),
                Some(Err(CommandError::State(StateResult::NoUpToDateDisk)))
            );
            p.command(A, V, Command::Detach { force: true });
        } else {
            p.write(A, 0, 8, 50);
            fail_next(&mut p, A, true, 0);
        }
        p.settle_for(20_000_000_000);
        assert_eq!(p.nodes[B].state(V).disk, DiskState::Outdated, "{:#?}", p.nodes[B].log);
        let read = p.client(A, V, ClientRequest::Read(super::crash::range(88, 8)));
        p.settle();
        assert_eq!(p.nodes[A].completed[&read], Err(ClientError::Io), "{:#?}", p.nodes[A].log);
        p.attach(A, V);
        p.settle();
        if p.nodes[A].state(V).conn == ConnState::StandAlone {
            p.ok(A, Command::Connect(Box::new(congestion(ReplProtocol::A, OnCongestion::PullAhead))));
        }
        if p.nodes[B].state(V).conn == ConnState::StandAlone {
            p.ok(B, Command::Connect(Box::new(congestion(ReplProtocol::A, OnCongestion::PullAhead))));
        }
        p.settle_for(20_000_000_000);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.read(A, 88, 8)[0], 12);
        p.same_data();
    }
}

#[test]
fn a_block_that_failed_ahead_is_known_to_the_target() {
    let options = DiskOptions { on_io_error: OnIoError::PassOn, ..DiskOptions::default() };
    let (mut p, _) = ahead(116, options);
    let read = p.client(A, V, ClientRequest::Read(super::crash::range(800, 8)));
    fail_next(&mut p, A, false, 800);
    assert_eq!(p.nodes[A].completed[&read], Err(ClientError::Io));
    p.settle_for(30_000_000_000);
    assert_eq!(p.nodes[A].state(V).conn, ConnState::Connected, "{:#?}", p.nodes[A].log);
}

#[test]
fn a_link_that_breaks_while_ahead_is_followed_by_an_ordinary_resync() {
    for seed in 0..6 {
        let (mut p, _) = ahead(120 + seed, DiskOptions::default());
        for _ in 0..seed * 5 {
            p.deliver(A, Socket::Data);
        }
        p.cut();
        p.settle();
        p.join();
        p.settle_for(20_000_000_000);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
    }
}
