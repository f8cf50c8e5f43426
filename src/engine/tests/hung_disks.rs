//! Disks that do not answer: disk-timeout, a forced detach, and what the peer's ko-count does where there is neither.

use std::time::Duration;

use super::pair::{A, B, Pair, V};
use super::{PROTOCOLS, net};
use crate::engine::action::ClientError;
use crate::engine::event::{ClientRequest, Command};
use crate::engine::options::{DiskOptions, NetOptions, OnIoError};
use crate::wire::params::ReplProtocol;
use crate::wire::state::DiskState;

const SECOND: u64 = 1_000_000_000;

fn ready(seed: u64, protocol: ReplProtocol, timeout: u64) -> Pair {
    let mut p = Pair::ready(seed, &net(protocol));
    for n in [A, B] {
        let opts = DiskOptions { disk_timeout: Duration::from_secs(timeout), ..DiskOptions::default() };
        p.ok(n, Command::DiskOptions(opts));
    }
    p.write(A, 0, 64, 1);
    p.settle();
    p
}

fn says(p: &Pair, n: usize, line: &str) {
    assert!(p.nodes[n].log.iter().any(|said| said.contains(line)), "{line}: {:#?}", p.nodes[n].log);
}

fn local(p: &Pair, n: usize) -> u64 {
    p.nodes[n].engine.volumes[&V].counters.local
}

#[test]
fn a_primarys_hung_disk_is_given_up_and_stays_failed_until_it_answers() {
    for protocol in PROTOCOLS {
        let mut p = ready(80, protocol, 2);
        p.nodes[A].hung = true;
        let write = p.write(A, 80, 8, 2);
        let read = p.client(A, V, ClientRequest::Read(super::crash::range(0, 8)));
        p.settle_for(SECOND);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{protocol:?}");
        assert!(!p.done(A, write) && !p.done(A, read));
        p.settle_for(2 * SECOND);
        says(&p, A, "Local backing device failed to meet the disk-timeout");
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Failed/UpToDate", "{protocol:?}");
        assert!(p.nodes[A].completed[&write].is_ok(), "{protocol:?}: the peer has it");
        assert_eq!(p.nodes[A].completed[&read].as_ref().unwrap().concat()[0], 1);
        assert_eq!(local(&p, A), 2, "lo:2");
        let later = p.write(A, 80, 8, 3);
        let flush = p.client(A, V, ClientRequest::Flush);
        p.settle_for(30 * SECOND);
        assert!(p.nodes[A].completed[&later].is_ok() && p.nodes[A].completed[&flush].is_ok());
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Failed);
        // What ends now, and well, decides nothing any more.
        p.nodes[A].hung = false;
        p.settle_for(SECOND);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Diskless/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.read(A, 80, 8)[0], 3);
        p.attach(A, V);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
        assert_eq!(p.read(A, 80, 8)[0], 3);
    }
}

#[test]
fn hung_metadata_let_the_waiting_write_go_to_the_peer() {
    let mut p = ready(81, ReplProtocol::C, 2);
    p.nodes[A].hung = true;
    let write = p.write(A, 16384, 8, 2);
    p.settle_for(3 * SECOND);
    says(&p, A, "meta-data IO operation timed out");
    assert!(p.nodes[A].completed[&write].is_ok(), "{:#?}", p.nodes[A].log);
    p.nodes[A].hung = false;
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Diskless/UpToDate");
    p.attach(A, V);
    p.settle();
    p.same_data();
}

#[test]
fn without_a_peer_a_hung_disk_is_an_error() {
    let mut p = ready(82, ReplProtocol::C, 2);
    p.cut();
    p.settle();
    p.nodes[A].hung = true;
    let write = p.write(A, 80, 8, 2);
    let cold = p.write(A, 16384, 8, 2);
    let read = p.client(A, V, ClientRequest::Read(super::crash::range(0, 8)));
    let flush = p.client(A, V, ClientRequest::Flush);
    p.settle_for(3 * SECOND);
    for id in [write, cold, read, flush] {
        assert_eq!(p.nodes[A].completed.get(&id), Some(&Err(ClientError::Io)));
    }
    p.nodes[A].hung = false;
    p.settle();
    assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless);
}

#[test]
fn a_secondarys_hung_disk_holds_nobody_up() {
    for protocol in PROTOCOLS {
        let mut p = ready(83, protocol, 2);
        p.nodes[B].hung = true;
        let write = p.write(A, 80, 8, 2);
        p.settle_for(5 * SECOND);
        assert!(p.nodes[A].completed[&write].is_ok(), "{protocol:?}");
        says(&p, B, "Local backing device failed to meet the disk-timeout");
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Failed", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[A].out_of_sync(), 1, "{protocol:?}");
        let write = p.write(A, 160, 8, 3);
        p.settle_for(60 * SECOND);
        assert!(p.nodes[A].completed[&write].is_ok(), "{protocol:?}");
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Failed", "{:#?}", p.nodes[A].log);
        p.nodes[B].hung = false;
        p.settle();
        p.attach(B, V);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
    }
}

#[test]
fn a_forced_detach_does_not_wait_for_a_hung_disk() {
    for policy in [OnIoError::Detach, OnIoError::PassOn] {
        let mut p = ready(84, ReplProtocol::C, 0);
        p.ok(A, Command::DiskOptions(DiskOptions { on_io_error: policy, ..DiskOptions::default() }));
        p.nodes[A].hung = true;
        let write = p.write(A, 80, 8, 2);
        p.settle_for(30 * SECOND);
        assert!(!p.done(A, write));
        let detach = p.command(A, V, Command::Detach { force: true });
        p.settle_for(2 * SECOND);
        assert_eq!(p.nodes[A].results.remove(&detach), Some(Ok(())));
        assert!(p.nodes[A].completed[&write].is_ok());
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Failed);
        let attach = p.attach(A, V);
        p.settle();
        assert!(p.nodes[A].results[&attach].is_err(), "it is still there");
        p.nodes[A].hung = false;
        p.settle();
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless);
    }
}

#[test]
fn a_forced_detach_writes_what_a_disk_that_is_well_still_takes() {
    let mut p = ready(87, ReplProtocol::C, 0);
    let detach = p.command(A, V, Command::Detach { force: true });
    p.settle();
    assert_eq!(p.nodes[A].results.remove(&detach), Some(Ok(())));
    assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless);
    assert!(!p.nodes[A].log.iter().any(|said| said.contains("given up")), "{:#?}", p.nodes[A].log);
}

#[test]
fn a_forced_detach_ends_where_the_disk_hangs_only_when_it_is_closed() {
    for timeout in [0, 2] {
        let mut p = ready(88, ReplProtocol::C, timeout);
        p.nodes[A].hung = true;
        let detach = p.command(A, V, Command::Detach { force: true });
        p.settle_for(6 * SECOND);
        assert_eq!(p.nodes[A].results.remove(&detach), Some(Ok(())), "{:#?}", p.nodes[A].log);
        // A second order does not wait for the first one's time.
        let again = p.command(A, V, Command::Detach { force: true });
        p.settle_for(6 * SECOND);
        assert_eq!(p.nodes[A].results.remove(&again), Some(Ok(())));
        p.nodes[A].hung = false;
        p.settle();
        assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless);
    }
}

#[test]
fn a_forced_detach_waits_for_the_helper_that_the_policy_wants() {
    let mut p = ready(91, ReplProtocol::C, 0);
    let opts = DiskOptions { on_io_error: OnIoError::CallLocalIoError, ..DiskOptions::default() };
    p.ok(A, Command::DiskOptions(opts));
    p.nodes[A].slow_helpers = true;
    p.nodes[A].fail_writes = true;
    p.write(A, 80, 8, 2);
    p.settle();
    assert_eq!((p.nodes[A].state(V).disk, p.nodes[A].late.len()), (DiskState::Failed, 1));
    let detach = p.command(A, V, Command::Detach { force: true });
    p.settle_for(20 * SECOND);
    let runs = std::mem::take(&mut p.nodes[A].late);
    for run in runs {
        p.end_helper(A, run, 0);
    }
    p.settle();
    assert_eq!(p.nodes[A].results.remove(&detach), Some(Ok(())));
    assert_eq!(p.nodes[A].state(V).disk, DiskState::Diskless);
}

#[test]
fn a_shorter_disk_timeout_counts_for_what_is_under_way() {
    let mut p = ready(89, ReplProtocol::C, 600);
    p.nodes[A].hung = true;
    let write = p.write(A, 80, 8, 2);
    p.settle_for(SECOND);
    p.ok(A, Command::DiskOptions(DiskOptions { disk_timeout: Duration::from_secs(2), ..DiskOptions::default() }));
    p.settle_for(4 * SECOND);
    says(&p, A, "Local backing device failed to meet the disk-timeout");
    assert!(p.nodes[A].completed[&write].is_ok());
}

#[test]
fn a_node_that_stood_still_does_not_blame_its_disk() {
    let mut p = ready(85, ReplProtocol::C, 2);
    let write = p.write(A, 80, 8, 2);
    // The timer comes first; the completions were there before it.
    p.now = p.now.after(Duration::from_secs(5));
    p.event(A, crate::engine::event::Event::Timer(crate::engine::event::Timer::DiskTimeout(V)));
    p.settle();
    assert!(p.nodes[A].completed[&write].is_ok());
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
}

#[test]
fn a_peer_that_does_not_finish_is_dropped_after_ko_count_times_timeout() {
    let opts = NetOptions { timeout: Duration::from_secs(1), ko_count: 3, ..net(ReplProtocol::C) };
    let mut p = Pair::ready(86, &opts);
    p.write(A, 0, 8, 1);
    p.settle();
    let before = p.nodes[A].engine.exposed(V);
    p.nodes[B].hung = true;
    let write = p.write(A, 80, 8, 2);
    p.settle_for(2_900_000_000);
    assert!(!p.done(A, write));
    p.settle_for(SECOND);
    says(&p, A, "Remote failed to finish a request within 3000ms > ko-count (3) * timeout (10 * 0.1s)");
    says(&p, A, "conn( Connected -> Timeout )");
    assert!(p.nodes[A].completed[&write].is_ok());
    assert_eq!(p.nodes[A].out_of_sync(), 1);
    assert_ne!(p.nodes[A].engine.exposed(V), before);
    p.nodes[B].hung = false;
    p.settle_for(20 * SECOND);
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}
