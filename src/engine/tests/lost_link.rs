//! What a lost link leaves on its way to the disk, and who waits for it.

use super::net;
use super::pair::{A, B, Pair, V};
use crate::engine::event::{ClientRequest, Command, Socket};
use crate::units::Timestamp;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{DiskState, Role, StateResult};

/// Everything happens but operations of B's disk.
fn run_without_the_disk_of_b(p: &mut Pair) {
    loop {
        if !p.nodes[A].disk_queue.is_empty() {
            p.do_disk(A, 0);
        } else if let Some((n, socket)) = [(A, Socket::Data), (A, Socket::Meta), (B, Socket::Data), (B, Socket::Meta)]
            .into_iter()
            .find(|(n, s)| !if *s == Socket::Data { &p.nodes[*n].data } else { &p.nodes[*n].meta }.is_empty())
        {
            p.deliver(n, socket);
        } else {
            return;
        }
    }
}

#[test]
fn a_write_acknowledged_on_receipt_was_dropped_with_the_link() {
    // The second write waits for the same blocks, or for the flush of the epoch before.
    for second in [0, 64] {
        let mut p = Pair::ready(1, &net(ReplProtocol::B));
        let first = p.write(A, 0, 8, 1);
        run_without_the_disk_of_b(&mut p);
        assert!(p.done(A, first), "received is enough under protocol B");
        p.client(A, V, ClientRequest::Flush);
        let id = p.write(A, second, 8, 2);
        run_without_the_disk_of_b(&mut p);
        let promised = p.done(A, id);
        p.cut();
        assert!(!p.nodes[B].wants_link, "what came is not on the disk yet");
        let promotion = p.command(B, V, Command::Primary { force: false });
        assert_eq!(p.nodes[B].state(V).role, Role::Secondary);
        while !p.nodes[B].disk_queue.is_empty() {
            p.do_disk(B, 0);
        }
        assert!(p.nodes[B].wants_link);
        assert_eq!(p.nodes[B].results.remove(&promotion), Some(Ok(())));
        if second == 64 {
            assert_eq!(p.read(B, 0, 8)[0], 1);
        }
        assert!(!promised || p.read(B, second, 8)[0] == 2, "acknowledged, and gone");
        assert_eq!(p.nodes[B].engine.rx.count(), 1);
    }
}

#[test]
fn a_failed_disk_keeps_nobody_waiting_for_what_was_received() {
    let mut p = Pair::ready(2, &net(ReplProtocol::B));
    p.write(A, 0, 8, 1);
    run_without_the_disk_of_b(&mut p);
    assert!(!p.nodes[B].disk_queue.is_empty());
    p.cut();
    p.command(B, V, Command::Detach { force: true });
    assert!(p.nodes[B].wants_link, "there is no good disk that could be late");
    p.settle();
    assert_eq!(p.nodes[B].state(V).disk, DiskState::Diskless);
    p.attach(B, V);
    p.join();
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[B].log);
    p.same_data();
}

#[test]
fn the_next_links_epochs_know_nothing_of_the_last_ones() {
    let mut p = Pair::ready(3, &net(ReplProtocol::B));
    p.write(A, 0, 8, 1);
    p.client(A, V, ClientRequest::Flush);
    p.write(A, 64, 8, 2);
    run_without_the_disk_of_b(&mut p);
    p.cut();
    p.join();
    p.settle();
    p.write(A, 128, 8, 3);
    let flush = p.client(A, V, ClientRequest::Flush);
    p.settle();
    assert!(p.done(A, flush));
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
    assert_eq!(p.nodes[B].engine.rx.count(), 1);
    assert_eq!(p.nodes[B].engine.status(Timestamp(0)).volumes[0].counters.unacked, 0);
    p.same_data();
}

#[test]
fn outdate_made_blank_disks_good() {
    let mut p = Pair::new(4);
    p.up(&[super::pair::MIB], &net(ReplProtocol::C));
    assert_eq!(p.nodes[A].text(), "Connected Secondary/Secondary Inconsistent/Inconsistent");
    let refused = Err(crate::engine::action::CommandError::State(StateResult::LowerThanOutdated));
    assert_eq!(p.run(A, Command::Outdate), refused);
    assert!(p.run(A, Command::InvalidateRemote).is_err(), "blank data are no source");
    assert_eq!(p.nodes[A].text(), "Connected Secondary/Secondary Inconsistent/Inconsistent");
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Secondary Inconsistent/Inconsistent");
}

#[test]
fn the_only_copy_was_acknowledged_before_it_existed() {
    for protocol in [ReplProtocol::A, ReplProtocol::B] {
        let mut p = Pair::ready(5, &net(protocol));
        p.ok(A, Command::Detach { force: false });
        let written = p.write(A, 0, 8, 1);
        run_without_the_disk_of_b(&mut p);
        assert!(!p.done(A, written), "{protocol:?}: it is on no disk");
        p.settle();
        assert_eq!(p.nodes[A].completed.remove(&written).map(|r| r.is_ok()), Some(true), "{protocol:?}");
        let lost = p.write(A, 0, 8, 2);
        p.cut();
        p.settle();
        assert_eq!(p.nodes[A].completed.remove(&lost).map(|r| r.is_ok()), Some(false), "{protocol:?}");
        p.join();
        p.settle();
        assert_eq!(p.read(A, 0, 8)[0], 1, "{protocol:?}");
    }
}
