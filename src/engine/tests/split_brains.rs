//! Split brains of two engines: found, left alone, resolved by hand, and the undo file that a resolution waits for.

use super::net;
use super::pair::{A, B, Pair, V};
use crate::engine::event::Command;
use crate::engine::options::NetOptions;
use crate::wire::params::ReplProtocol;

#[test]
fn two_sides_that_both_went_on_are_a_split_brain_and_stand_alone() {
    let mut p = Pair::ready(4, &net(ReplProtocol::C));
    p.cut();
    p.settle();
    p.write(A, 0, 8, 1);
    p.ok(B, Command::Primary { force: false });
    p.write(B, 8, 8, 2);
    p.settle();
    p.ok(B, Command::Secondary);
    p.join();
    p.settle();
    let stands = |n: usize| p.nodes[n].text().starts_with("StandAlone");
    assert!(stands(A) || stands(B), "{} | {}", p.nodes[A].text(), p.nodes[B].text());
    assert!(p.nodes.iter().any(|n| n.log.iter().any(|l| l.contains("Split-Brain detected but unresolved"))));
}

/// Both went on alone; B's data are to go.
fn split_and_decided(p: &mut Pair) {
    let n = net(ReplProtocol::C);
    p.cut();
    p.settle();
    p.write(A, 0, 8, 1);
    p.ok(B, Command::Primary { force: false });
    p.write(B, 80, 8, 2);
    p.settle();
    p.ok(B, Command::Secondary);
    let _ = p.run(B, Command::Disconnect { force: false });
    let _ = p.run(A, Command::Disconnect { force: false });
    p.join();
    p.ok(A, Command::Connect(Box::new(n.clone())));
    p.ok(B, Command::Connect(Box::new(NetOptions { discard_my_data: true, ..n })));
}

#[test]
fn a_resolution_does_not_wait_for_ever_for_its_undo_file_and_destroys_nothing_without() {
    let mut p = Pair::ready(6, &net(ReplProtocol::C));
    p.nodes[B].keeper_hangs = true;
    split_and_decided(&mut p);
    p.settle_for(20_000_000_000);
    assert_eq!(p.nodes[B].text(), "WFBitMapT Secondary/Primary Outdated/UpToDate", "{:#?}", p.nodes[B].log);
    p.settle_for(12_000_000_000);
    assert!(p.nodes[B].text().starts_with("StandAlone"), "{:#?}", p.nodes[B].log);
    assert!(p.nodes[B].log.iter().any(|line| line.contains("no undo file after 30 s")));
    assert_eq!(p.data(B, V)[80 * 512], 2);
}

#[test]
fn a_split_brain_is_resolved_by_discarding_one_side_by_hand() {
    let mut p = Pair::ready(5, &net(ReplProtocol::C));
    split_and_decided(&mut p);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    assert_eq!(p.data(B, V)[80 * 512], 0);
    p.same_data();
}
