//! Disks that fail, go and come back: what a resync leaves undone, which copy a success stands for, which data may return.

use super::net;
use super::pair::{A, B, Pair, V};
use crate::engine::action::{ClientError, CommandError, DiskOp};
use crate::engine::event::{ClientRequest, Command, Event, Socket};
use crate::engine::options::{DiskOptions, OnIoError};
use crate::units::{GenId, Sector};
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState, Role};
use crate::wire::uuids::{UuidFlags, Uuids};

fn pass_on() -> DiskOptions {
    DiskOptions { on_io_error: OnIoError::PassOn, ..DiskOptions::default() }
}

fn starts_at(io: &DiskOp, write: bool, sector: u64) -> bool {
    match io {
        DiskOp::Write { range, .. } | DiskOp::WriteZeroes { range, .. } => write && range.start == Sector(sector),
        DiskOp::Read(range) => !write && range.start == Sector(sector),
        _ => false,
    }
}

/// Runs until the next read or write of this sector is queued on a node, and lets it fail.
pub(super) fn fail_next(p: &mut Pair, n: usize, write: bool, sector: u64) {
    let at = |p: &Pair| p.nodes[n].disk_queue.iter().position(|(.., io)| starts_at(io, write, sector));
    for _ in 0..100_000 {
        if let Some(index) = at(p) {
            p.nodes[n].fail_writes = write;
            p.nodes[n].fail_reads = !write;
            p.do_disk(n, index);
            p.nodes[n].fail_writes = false;
            p.nodes[n].fail_reads = false;
            return;
        }
        assert!(p.step(), "sector {sector} is never touched");
    }
    panic!("sector {sector} is never touched");
}

fn reconnect(p: &mut Pair) {
    p.cut();
    p.settle();
    p.join();
    p.settle();
}

/// A pair with A Primary, cut, in which blocks 0, 1 and 100 of B are old.
fn outdated(seed: u64) -> Pair {
    let mut p = Pair::ready(seed, &net(ReplProtocol::C));
    for n in [A, B] {
        p.ok(n, Command::DiskOptions(pass_on()));
    }
    p.cut();
    p.write(A, 0, 16, 1);
    p.write(A, 800, 8, 2);
    p.settle();
    p
}

#[test]
fn a_block_that_failed_once_in_a_resync_was_lost_from_sight() {
    for seed in 0..10 {
        let mut p = outdated(30 + seed);
        p.join();
        fail_next(&mut p, B, true, 0);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Inconsistent", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary Inconsistent/UpToDate", "{:#?}", p.nodes[B].log);
        assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (2, 2), "one request of two blocks");
        assert!(p.nodes[B].log.iter().any(|line| line == "2 failed blocks"));
        reconnect(&mut p);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
        p.same_data();
    }
}

#[test]
fn a_primary_without_a_disk_follows_only_a_generation_that_was_made_for_it() {
    let mut p = outdated(44);
    p.ok(B, Command::DiskOptions(DiskOptions { resync_rate: Some(1 << 20), ..pass_on() }));
    p.join();
    while p.nodes[B].state(V).conn != ConnState::SyncTarget {
        assert!(p.step());
    }
    let own = p.nodes[A].engine.exposed(V);
    p.ok(A, Command::Detach { force: true });
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Diskless/Inconsistent", "{:#?}", p.nodes[A].log);
    assert_eq!(p.nodes[A].engine.exposed(V), own, "{:#?}", p.nodes[A].log);
    let link = p.nodes[A].link.unwrap();
    let mut tell = |current: u64, bitmap: u64| {
        let packet = Packet::Uuids(Uuids {
            current: GenId(current),
            bitmap: GenId(bitmap),
            history: [GenId::UNSET; 2],
            bits_set: 1,
            flags: UuidFlags::default(),
        });
        p.event(A, Event::Packet { link, socket: Socket::Data, volume: V, packet });
        p.nodes[A].engine.exposed(V)
    };
    assert_eq!(tell(0x1110, 0), own, "a target's own");
    // The resync did not come about after all, and the peer went on for a Primary without a disk.
    assert_eq!(tell(0x2220, own.0), GenId(0x2220));
}

#[test]
fn a_disk_that_keeps_failing_was_asked_for_ever() {
    let mut p = outdated(40);
    p.nodes[B].fail_writes = true;
    p.join();
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Inconsistent");
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary Inconsistent/UpToDate");
    assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (3, 3));
    let requests = p.nodes[B].packets["P_RS_DATA_REQUEST"];
    assert_eq!(requests, 2, "each run once");
    p.nodes[B].fail_writes = false;
    reconnect(&mut p);
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate");
    p.same_data();
}

#[test]
fn a_block_that_the_source_could_not_read_ended_no_resync() {
    let mut p = outdated(41);
    p.join();
    fail_next(&mut p, A, false, 800);
    p.settle();
    assert_eq!(p.nodes[A].state(V).conn, ConnState::Connected, "{:#?}", p.nodes[A].log);
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary Inconsistent/UpToDate", "{:#?}", p.nodes[B].log);
    assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (1, 1));
    reconnect(&mut p);
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate");
    p.same_data();
}

#[test]
fn a_failed_block_that_an_application_write_repairs_does_not_count() {
    let mut p = outdated(42);
    p.ok(B, Command::DiskOptions(DiskOptions { resync_rate: Some(1 << 20), ..pass_on() }));
    p.write(A, 8192, 8192, 3);
    p.settle();
    p.join();
    fail_next(&mut p, B, true, 0);
    p.write(A, 0, 16, 4);
    p.settle_for(20_000_000_000);
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate");
    assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
    p.same_data();
}

#[test]
fn a_write_that_only_a_sync_target_has_was_a_success() {
    for protocol in [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C] {
        for policy in [OnIoError::Detach, OnIoError::PassOn] {
            let mut p = Pair::ready(43, &net(protocol));
            for n in [A, B] {
                let opts = DiskOptions { on_io_error: policy, resync_rate: Some(1 << 20), ..DiskOptions::default() };
                p.ok(n, Command::DiskOptions(opts));
            }
            p.cut();
            p.write(A, 0, 8192, 1);
            p.settle();
            p.join();
            while p.nodes[B].state(V).conn != ConnState::SyncTarget {
                assert!(p.step());
            }
            let id = p.write(A, 16384, 8, 2);
            fail_next(&mut p, A, true, 16384);
            p.settle_for(20_000_000_000);
            assert_eq!(p.nodes[A].completed.get(&id), Some(&Err(ClientError::Io)), "{protocol:?} {policy:?}");
        }
    }
}

#[test]
fn a_primary_without_a_disk_needs_the_peers_word_that_a_write_is_written() {
    for version in [95, 101] {
        for protocol in [ReplProtocol::A, ReplProtocol::B] {
            let mut p = Pair::new(44);
            p.version = version;
            p.up(&[16 << 20], &net(protocol));
            p.ok(A, Command::NewCurrentUuid { clear_bitmap: true });
            p.ok(A, Command::Primary { force: false });
            p.ok(A, Command::Detach { force: false });
            let id = p.write(A, 0, 8, 1);
            while !p.nodes[A].data.is_empty() {
                p.deliver(A, Socket::Data);
            }
            while !p.nodes[B].meta.is_empty() {
                p.deliver(B, Socket::Meta);
            }
            assert!(!p.done(A, id), "{protocol:?} {version}: it is on no disk");
            p.settle();
            assert!(p.nodes[A].completed[&id].is_ok(), "{protocol:?} {version}");
            assert_eq!(p.read(A, 0, 8)[0], 1);
            // What is under way when the link goes is no success.
            let id = p.write(A, 0, 8, 2);
            while !p.nodes[A].data.is_empty() {
                p.deliver(A, Socket::Data);
            }
            p.cut();
            p.settle();
            assert_eq!(p.nodes[A].completed.get(&id), Some(&Err(ClientError::Io)), "{protocol:?} {version}");
        }
    }
}

#[test]
fn a_disk_that_failed_under_a_sent_write_left_the_success_to_the_socket() {
    for (seed, protocol) in [ReplProtocol::A, ReplProtocol::B].into_iter().enumerate() {
        let mut p = Pair::ready(45 + seed as u64, &net(protocol));
        p.write(A, 0, 8, 1);
        p.settle();
        let id = p.write(A, 0, 8, 2);
        while !p.nodes[A].data.is_empty() {
            p.deliver(A, Socket::Data);
        }
        while !p.nodes[B].meta.is_empty() {
            p.deliver(B, Socket::Meta);
        }
        fail_next(&mut p, A, true, 0);
        assert!(!p.done(A, id), "{protocol:?}: the peer has not written it yet");
        let flush = p.client(A, V, ClientRequest::Flush);
        p.settle();
        assert!(p.nodes[A].completed[&id].is_ok() && p.nodes[A].completed[&flush].is_ok(), "{protocol:?}");
        assert_eq!(p.read(A, 0, 8)[0], 2);
        let pending = p.nodes[A].engine.volumes[&V].counters.pending;
        assert_eq!(pending, 0, "{protocol:?}");
    }
}

/// A Secondary without its disk, and data on the disk that is not attached that the peer's have left behind: rule 90.
fn split(seed: u64) -> Pair {
    let mut p = Pair::ready(seed, &net(ReplProtocol::C));
    p.cut();
    p.write(A, 0, 8, 1);
    p.settle();
    p.ok(A, Command::Secondary);
    p.ok(B, Command::Primary { force: false });
    p.write(B, 0, 8, 2);
    p.settle();
    p.ok(B, Command::Secondary);
    p.ok(A, Command::Detach { force: false });
    p.join();
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Secondary/Secondary Diskless/UpToDate", "{:#?}", p.nodes[A].log);
    p
}

#[test]
fn a_disk_with_other_data_came_back_under_a_diskless_primary() {
    let mut p = split(50);
    p.ok(A, Command::Primary { force: false });
    p.write(A, 0, 8, 3);
    p.settle();
    p.attach(A, V);
    while p.nodes[A].state(V).disk != DiskState::Negotiating {
        assert!(p.step());
    }
    p.cut();
    p.settle();
    assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless, "{:#?}", p.nodes[A].log);
    let id = p.attach(A, V);
    p.settle();
    let refused = p.nodes[A].results.remove(&id);
    assert!(matches!(refused, Some(Err(CommandError::Code { code: 150, .. }))), "{refused:?}");
    p.join();
    p.settle();
    assert_eq!(p.read(A, 0, 8)[0], 3);
}

#[test]
fn a_refused_attach_stayed_negotiating() {
    for promote in [false, true] {
        let mut p = split(51);
        if promote {
            p.ok(A, Command::Primary { force: false });
        }
        p.attach(A, V);
        p.settle();
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless, "{:#?}", p.nodes[A].log);
        assert!(p.nodes[A].log.iter().any(|line| line.contains("attach refused")));
        assert!(p.nodes[B].log.iter().any(|line| line == "Disk attach process on the peer node was aborted."));
        assert_eq!(p.nodes[A].state(V).conn, ConnState::Connected);
        if promote {
            p.write(A, 0, 8, 3);
            p.settle();
            assert_eq!(p.read(A, 0, 8)[0], 3);
        }
    }
}

#[test]
fn an_inconsistent_peer_cannot_be_the_source_of_an_attach() {
    let mut p = outdated(52);
    p.join();
    while p.nodes[B].state(V).conn != ConnState::SyncTarget {
        assert!(p.step());
    }
    // In the middle of a resync: Inconsistent.
    p.ok(B, Command::Detach { force: true });
    // The Primary's disk gets a bad block: Inconsistent on both nodes.
    p.write(A, 0, 8, 5);
    fail_next(&mut p, A, true, 0);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Inconsistent/Diskless");
    p.ok(A, Command::Secondary);
    p.attach(B, V);
    p.settle();
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Secondary Diskless/Inconsistent", "{:#?}", p.nodes[B].log);
    assert_eq!(p.nodes[A].text(), "Connected Secondary/Secondary Inconsistent/Diskless", "{:#?}", p.nodes[A].log);
}

#[test]
fn a_disk_that_failed_came_back_without_what_the_peer_alone_has() {
    let mut p = Pair::ready(53, &net(ReplProtocol::C));
    p.write(A, 0, 8, 1);
    p.settle();
    let id = p.write(A, 0, 8, 2);
    fail_next(&mut p, A, true, 0);
    // The peer acknowledges, and does not hear of the failure.
    while !p.done(A, id) {
        if !p.nodes[A].data.is_empty() && p.nodes[B].disk_queue.is_empty() && p.nodes[B].meta.is_empty() {
            p.deliver(A, Socket::Data);
        } else if p.nodes[B].meta.is_empty() {
            p.do_disk(B, 0);
        } else {
            p.deliver(B, Socket::Meta);
        }
    }
    assert!(p.nodes[A].completed[&id].is_ok());
    p.cut();
    p.settle();
    assert_eq!(p.nodes[A].text(), "WFConnection Primary/Unknown Diskless/DUnknown");
    let attach = p.attach(A, V);
    p.settle();
    assert!(p.nodes[A].results[&attach].is_err(), "{}", p.nodes[A].text());
    p.join();
    p.settle();
    assert_eq!(p.nodes[A].state(V).role, Role::Primary);
    assert_eq!(p.read(A, 0, 8)[0], 2);
    p.attach(A, V);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    assert_eq!(p.read(A, 0, 8)[0], 2);
    p.same_data();
}
