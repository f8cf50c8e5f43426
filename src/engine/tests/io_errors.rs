//! `on-io-error`, case by case: what a kernel node was seen to do with an error of either node's disk (behaviour.md 10.1).

use super::bad_disks::fail_next;
use super::net;
use super::pair::{A, B, Pair, V};
use crate::engine::action::ClientError;
use crate::engine::event::{Command, Event};
use crate::engine::handler::Handler;
use crate::engine::options::{DiskOptions, OnIoError};
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState};

const POLICIES: [OnIoError; 3] = [OnIoError::PassOn, OnIoError::CallLocalIoError, OnIoError::Detach];

/// A Primary, both good, under this policy.
fn ready(seed: u64, protocol: ReplProtocol, on_io_error: OnIoError) -> Pair {
    let mut p = Pair::ready(seed, &net(protocol));
    for n in [A, B] {
        p.ok(n, Command::DiskOptions(DiskOptions { on_io_error, ..DiskOptions::default() }));
    }
    p.write(A, 0, 64, 1);
    p.settle();
    p
}

fn says(p: &Pair, n: usize, line: &str) {
    assert!(p.nodes[n].log.iter().any(|said| said.contains(line)), "{line}: {:#?}", p.nodes[n].log);
}

/// How the Primary and its peer see the Primary's disk when it is through.
fn fate_of_own_disk(policy: OnIoError) -> [&'static str; 2] {
    match policy {
        OnIoError::PassOn => {
            ["Connected Primary/Secondary Inconsistent/UpToDate", "Connected Secondary/Primary UpToDate/Inconsistent"]
        }
        _ => ["Connected Primary/Secondary Diskless/UpToDate", "Connected Secondary/Primary UpToDate/Diskless"],
    }
}

#[test]
fn a_primarys_write_error_is_a_success_through_the_peer() {
    for policy in POLICIES {
        let mut p = ready(60, ReplProtocol::C, policy);
        let id = p.write(A, 80, 8, 2);
        fail_next(&mut p, A, true, 80);
        p.settle_for(100_000_000);
        assert_eq!(p.nodes[A].completed.get(&id), Some(&Ok(smallvec::SmallVec::new())), "{policy:?}");
        assert_eq!([p.nodes[A].text(), p.nodes[B].text()], fate_of_own_disk(policy), "{policy:?}");
        says(&p, A, "local WRITE IO error sector 80+8");
        let helpers = matches!(policy, OnIoError::CallLocalIoError).then_some(Handler::LocalIoError);
        assert_eq!(p.nodes[A].helpers.clone(), Vec::from_iter(helpers), "{policy:?}");
        assert_eq!(p.read(A, 80, 8)[0], 2, "{policy:?}");
        let id = p.write(A, 160, 8, 3);
        p.settle_for(100_000_000);
        assert!(p.nodes[A].completed[&id].is_ok());
        if policy == OnIoError::PassOn {
            says(&p, A, "Local IO failed in a write.");
            assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (1, 0));
        } else {
            says(&p, A, "Local IO failed in a write. Detaching...");
            assert_eq!(p.nodes[B].out_of_sync(), 1, "the peer keeps the books: {:#?}", p.nodes[B].log);
        }
    }
}

#[test]
fn a_primarys_read_error_is_served_by_the_peer() {
    for policy in POLICIES {
        let mut p = ready(61, ReplProtocol::C, policy);
        let id = p.client(A, V, crate::engine::event::ClientRequest::Read(super::crash::range(0, 8)));
        fail_next(&mut p, A, false, 0);
        p.settle_for(100_000_000);
        let data = p.nodes[A].completed.remove(&id).expect("answered").expect("from the peer").concat();
        assert_eq!(data, vec![1; 4096], "{policy:?}");
        assert_eq!([p.nodes[A].text(), p.nodes[B].text()], fate_of_own_disk(policy), "{policy:?}");
        says(&p, A, "local READ IO error sector 0+8");
        if policy == OnIoError::PassOn {
            assert_eq!(p.nodes[A].out_of_sync(), 1);
            // Blocks that are not marked stay local; a second bad one is read here first, as in 8.4.
            let requests = p.nodes[A].packets.get("P_DATA_REQUEST").copied();
            p.nodes[A].completed.clear();
            assert_eq!(p.read(A, 8, 8)[0], 1);
            assert_eq!(p.nodes[A].packets.get("P_DATA_REQUEST").copied(), requests);
        }
    }
}

#[test]
fn the_helper_ends_before_the_peer_hears_of_the_disk_and_before_it_goes() {
    for protocol in super::PROTOCOLS {
        let mut p = ready(62, protocol, OnIoError::CallLocalIoError);
        p.nodes[A].slow_helpers = true;
        let first = p.write(A, 80, 8, 2);
        fail_next(&mut p, A, true, 80);
        let second = p.write(A, 160, 8, 3);
        p.settle_for(1_000_000_000);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Failed/UpToDate", "{protocol:?}");
        assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate", "{protocol:?}");
        assert_eq!(p.nodes[A].helpers, [Handler::LocalIoError]);
        assert!(!p.done(A, second), "{protocol:?}: it has nobody but a peer that does not know");
        let runs = std::mem::take(&mut p.nodes[A].late);
        for run in runs {
            p.event(A, Event::HandlerDone { run, code: 1 });
        }
        p.settle_for(1_000_000_000);
        assert_eq!([p.nodes[A].text(), p.nodes[B].text()], fate_of_own_disk(OnIoError::CallLocalIoError));
        for id in [first, second] {
            assert!(p.nodes[A].completed[&id].is_ok(), "{protocol:?}");
        }
        assert_eq!(p.read(A, 160, 8)[0], 3);
    }
}

#[test]
fn a_helper_that_outlives_the_link_lets_nothing_go_on_the_next_one() {
    let mut p = ready(63, ReplProtocol::C, OnIoError::CallLocalIoError);
    p.nodes[B].slow_helpers = true;
    p.write(A, 80, 8, 2);
    fail_next(&mut p, B, true, 80);
    p.settle_for(500_000_000);
    p.cut();
    p.settle_for(500_000_000);
    assert_eq!(p.nodes[B].state(V).disk, DiskState::Failed);
    p.join();
    p.settle_for(500_000_000);
    let runs = std::mem::take(&mut p.nodes[B].late);
    for run in runs {
        p.event(B, Event::HandlerDone { run, code: 0 });
    }
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Diskless", "{:#?}", p.nodes[A].log);
    p.nodes[B].slow_helpers = false;
    p.attach(B, V);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

#[test]
fn a_secondarys_write_error_is_marked_on_the_primary() {
    for protocol in [ReplProtocol::A, ReplProtocol::C] {
        for policy in POLICIES {
            let mut p = ready(64, protocol, policy);
            let before = p.nodes[A].engine.exposed(V);
            let id = p.write(A, 80, 8, 2);
            fail_next(&mut p, B, true, 80);
            p.settle_for(100_000_000);
            assert!(p.nodes[A].completed[&id].is_ok(), "{protocol:?} {policy:?}");
            let same_generation = p.nodes[A].engine.exposed(V) == before;
            if policy == OnIoError::PassOn {
                assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Inconsistent");
                assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary Inconsistent/UpToDate");
                assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (1, 1));
            } else {
                assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Diskless");
                assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary Diskless/UpToDate");
                assert!(!same_generation, "{protocol:?} {policy:?}");
                assert_eq!(p.nodes[A].out_of_sync(), 1);
            }
            let ran = p.nodes[B].helpers.contains(&Handler::LocalIoError);
            assert_eq!(ran, policy == OnIoError::CallLocalIoError, "{policy:?}");
        }
    }
}

#[test]
fn a_primary_that_is_a_target_loses_its_source() {
    for policy in [OnIoError::Detach, OnIoError::CallLocalIoError] {
        let mut p = ready(65, ReplProtocol::C, policy);
        p.ok(B, Command::DiskOptions(DiskOptions { on_io_error: policy, ..DiskOptions::default() }));
        let slow = DiskOptions { on_io_error: policy, resync_rate: Some(1 << 20), ..DiskOptions::default() };
        p.ok(A, Command::DiskOptions(slow));
        let invalidate = p.command(A, V, Command::Invalidate);
        while p.nodes[A].state(V).conn != ConnState::SyncTarget {
            assert!(p.step());
        }
        // A block that is not synced yet is read from the source, whose disk fails.
        let read = p.client(A, V, crate::engine::event::ClientRequest::Read(super::crash::range(24000, 8)));
        fail_next(&mut p, B, false, 24000);
        p.settle_for(100_000_000);
        assert_eq!(p.nodes[A].completed[&read], Err(ClientError::Io), "{policy:?}");
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Inconsistent/Diskless", "{:#?}", p.nodes[A].log);
        says(&p, A, "Resync aborted.");
        assert!(p.nodes[A].helpers.contains(&Handler::PriOnInconDegr));
        let write = p.write(A, 0, 8, 9);
        p.settle_for(100_000_000);
        assert_eq!(p.nodes[A].completed[&write], Err(ClientError::Io));
        says(&p, A, "IO ERROR: neither local nor remote data");
        let _ = invalidate;
    }
}

#[test]
fn metadata_that_cannot_be_written_end_the_disk_whatever_the_policy() {
    for policy in POLICIES {
        let mut p = ready(66, ReplProtocol::C, policy);
        p.nodes[A].fail_meta = true;
        // A cold extent: its transaction fails, and the write that waits for it goes to the peer alone.
        let id = p.write(A, 16384, 8, 2);
        p.settle_for(100_000_000);
        p.nodes[A].fail_meta = false;
        assert!(p.nodes[A].completed[&id].is_ok(), "{policy:?}");
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless, "{policy:?}");
        says(&p, A, "Local IO failed in a meta data update. Detaching...");
        assert_eq!(p.nodes[A].helpers.contains(&Handler::LocalIoError), policy == OnIoError::CallLocalIoError);
        let mut data = vec![0; 4096];
        crate::meta::MetaIo::read_at(p.nodes[A].disks.get_mut(&V).unwrap(), 16384 * 512, &mut data).unwrap();
        assert_eq!(data, vec![0; 4096], "it was not submitted here");
        assert_eq!(p.read(A, 16384, 8)[0], 2);
    }
}

#[test]
fn a_diskless_primary_without_its_peer_has_nothing() {
    let mut p = ready(67, ReplProtocol::C, OnIoError::CallLocalIoError);
    p.write(A, 80, 8, 2);
    fail_next(&mut p, A, true, 80);
    p.settle_for(100_000_000);
    p.cut();
    p.settle_for(100_000_000);
    assert!(p.nodes[A].helpers.ends_with(&[Handler::PriOnInconDegr]), "{:?}", p.nodes[A].helpers);
    let read = p.client(A, V, crate::engine::event::ClientRequest::Read(super::crash::range(0, 8)));
    p.settle_for(100_000_000);
    assert_eq!(p.nodes[A].completed[&read], Err(ClientError::Io));
}

#[test]
fn an_order_to_detach_by_force_is_no_error() {
    let mut p = ready(68, ReplProtocol::C, OnIoError::CallLocalIoError);
    p.ok(A, Command::Detach { force: true });
    assert_eq!(p.nodes[A].helpers, []);
}
