//! Defects that were found by reading, each as the scenario that showed it.

use bytes::Bytes;
use smallvec::SmallVec;

use super::crash::range;
use super::net;
use super::pair::{A, B, Pair, V};
use crate::engine::action::DiskOp;
use crate::engine::event::{ClientRequest, Command, Socket};
use crate::wire::params::ReplProtocol;
use crate::wire::state::{DiskState, Role};

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
