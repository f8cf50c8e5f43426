//! Fencing: policies, exit codes, frozen I/O and how it thaws (the observed table of behaviour.md 8.3).

use super::net;
use super::pair::{A, B, Pair, V};
use super::suspend::flags;
use crate::engine::action::CommandError;
use crate::engine::event::{ClientRequest, Command};
use crate::engine::handler::Handler;
use crate::engine::options::DiskOptions;
use crate::engine::state::Fencing;
use crate::wire::params::ReplProtocol;
use crate::wire::state::StateResult;

const NONE: &str = "";

fn policy(fencing: Fencing) -> DiskOptions {
    DiskOptions { fencing, ..DiskOptions::default() }
}

/// A connected, equal pair with A Primary, both with this policy, and A's helper with this exit code.
fn fenced(seed: u64, fencing: Fencing, code: u8) -> Pair {
    let mut p = Pair::ready(seed, &net(ReplProtocol::C));
    for n in [A, B] {
        p.ok(n, Command::DiskOptions(policy(fencing)));
    }
    p.nodes[A].exit_codes.insert(Handler::FencePeer, code);
    p.nodes[A].log.clear();
    p
}

fn uuid(p: &Pair, n: usize) -> u64 {
    p.nodes[n].engine.status(crate::units::Timestamp(0)).volumes[0].ids.map_or(0, |ids| ids.current.0 | 1)
}

fn said(p: &Pair, n: usize, text: &str) -> usize {
    p.nodes[n].log.iter().filter(|l| l.contains(text)).count()
}

#[test]
fn resource_only_goes_on_at_once_and_learns_of_the_peer() {
    for (code, pdsk) in [(3, "Inconsistent"), (4, "Outdated"), (5, "Outdated"), (7, "Outdated"), (1, "DUnknown")] {
        let mut p = fenced(5000 + u64::from(code), Fencing::ResourceOnly, code);
        let old = uuid(&p, A);
        p.cut();
        let id = p.write(A, 0, 8, 1);
        p.settle();
        assert_eq!(p.nodes[A].helpers, [Handler::FencePeer]);
        assert!(p.done(A, id) && uuid(&p, A) != old);
        assert_eq!(p.nodes[A].text(), format!("WFConnection Primary/Unknown UpToDate/{pdsk}"));
        assert_eq!(said(&p, A, "new current UUID"), 1);
        p.join();
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[A].helpers, [Handler::FencePeer, Handler::BeforeResyncSource, Handler::UnfencePeer]);
        assert!(!p.nodes[B].helpers.iter().any(|h| matches!(h, Handler::FencePeer | Handler::UnfencePeer)));
        p.same_data();
    }
}

#[test]
fn a_primary_does_not_outdate_itself() {
    let mut p = fenced(5020, Fencing::ResourceOnly, 6);
    p.cut();
    p.settle();
    assert_eq!(p.nodes[A].text(), "WFConnection Primary/Unknown UpToDate/DUnknown");
    assert_eq!(said(&p, A, "State change failed: Need access to UpToDate data"), 1);
}

#[test]
fn stonith_freezes_until_the_peer_is_fenced() {
    for code in [4, 5, 7] {
        for seed in 0..8 {
            let mut p = fenced(5100 + seed, Fencing::ResourceAndStonith, code);
            let old = uuid(&p, A);
            let ids: Vec<_> = (0u8..6).map(|i| p.write(A, u64::from(i) * 4, 8, i)).collect();
            for _ in 0..seed {
                p.step();
            }
            p.cut();
            p.settle();
            assert_eq!(flags(&p, A), NONE);
            assert_eq!(p.nodes[A].text(), "WFConnection Primary/Unknown UpToDate/Outdated");
            assert!(ids.iter().all(|id| p.nodes[A].completed[id].is_ok()));
            assert!(uuid(&p, A) != old && said(&p, A, "new current UUID") == 1);
            let order = |text: &str| p.nodes[A].log.iter().position(|l| l.contains(text));
            let (frozen, fenced) = (order("susp( 0 -> 1 )"), order("pdsk( DUnknown -> Outdated )"));
            let (fresh, thawed) = (order("new current UUID"), order("susp( 1 -> 0 )"));
            assert!(frozen < fenced && fenced < fresh && fresh < thawed, "{:#?}", p.nodes[A].log);
            p.join();
            p.settle();
            assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
            assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
            p.same_data();
        }
    }
}

#[test]
fn a_broken_helper_leaves_io_frozen_until_somebody_says_so() {
    for code in [0, 1, 127] {
        let mut p = fenced(5200 + u64::from(code), Fencing::ResourceAndStonith, code);
        let old = uuid(&p, A);
        p.cut();
        let (write, read) = (p.write(A, 0, 8, 1), p.client(A, V, ClientRequest::Read(super::range(0, 8))));
        p.settle();
        assert_eq!((flags(&p, A).as_str(), uuid(&p, A)), ("fencing", old));
        assert!(!p.done(A, write) && !p.done(A, read));
        assert_eq!(said(&p, A, &format!("fence-peer helper broken, returned {code}")), 1);
        p.ok(A, Command::ResumeIo);
        p.settle();
        assert!(p.done(A, write) && p.done(A, read) && uuid(&p, A) != old);
        assert_eq!(flags(&p, A), NONE);
    }
}

#[test]
fn a_peer_that_comes_back_in_time_gets_what_was_frozen_and_no_new_generation() {
    for seed in 0..24 {
        let mut p = fenced(5300 + seed, Fencing::ResourceAndStonith, 1);
        p.relaxed = seed % 2 == 0;
        let old = uuid(&p, A);
        let ids: Vec<_> = (0u8..12).map(|i| p.write(A, u64::from(i) * 4, 8, i)).collect();
        for _ in 0..seed * 2 {
            p.step();
        }
        p.cut();
        p.write(A, 20, 8, 50);
        p.settle();
        assert_eq!(flags(&p, A), "fencing");
        let open = ids.iter().filter(|id| !p.done(A, **id)).count();
        if seed % 3 == 0 {
            // It is lost again just when everything is sent once more.
            p.join();
            for _ in 0..seed {
                p.step();
            }
            p.cut();
            p.settle();
        }
        p.join();
        p.settle();
        assert_eq!(flags(&p, A), NONE, "{open} {:#?}", p.nodes[A].log);
        assert!(ids.iter().all(|id| p.nodes[A].completed[id].is_ok()));
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!((uuid(&p, A), uuid(&p, B)), (old, old));
        assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
        p.same_data();
    }
}

#[test]
fn frozen_writes_are_not_sent_to_a_peer_that_went_down() {
    let mut p = fenced(5400, Fencing::ResourceAndStonith, 1);
    let id = p.write(A, 0, 8, 1);
    p.crash(B);
    p.settle();
    assert_eq!(flags(&p, A), "fencing");
    p.command(B, V, Command::NewVolume(policy(Fencing::ResourceAndStonith)));
    p.attach_with(B, V, policy(Fencing::ResourceAndStonith));
    p.settle();
    assert_eq!(p.nodes[B].text(), "StandAlone Secondary/Unknown Consistent/DUnknown");
    p.ok(B, Command::Connect(Box::new(net(ReplProtocol::C))));
    p.settle();
    assert_eq!(said(&p, A, "Aborting Connect, can not thaw IO with an only Consistent peer"), 1);
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    assert!(p.done(A, id) && flags(&p, A).is_empty());
    p.same_data();
}

#[test]
fn an_exit_code_of_before_the_connection_counts_for_nothing() {
    let mut p = fenced(5500, Fencing::ResourceAndStonith, 4);
    p.nodes[A].slow_helpers = true;
    p.cut();
    p.settle();
    assert_eq!(flags(&p, A), "fencing");
    p.join();
    p.settle();
    assert_eq!(flags(&p, A), NONE);
    p.cut();
    p.settle();
    let first = p.nodes[A].late.remove(0);
    p.end_helper(A, first, 4);
    p.settle();
    assert_eq!((flags(&p, A).as_str(), said(&p, A, "Ignoring fence-peer exit code")), ("fencing", 1));
    let second = p.nodes[A].late.remove(0);
    p.end_helper(A, second, 4);
    p.settle();
    assert_eq!(flags(&p, A), NONE);
}

#[test]
fn a_promotion_without_the_peer_fences_it_first() {
    for code in [4, 5] {
        let mut p = fenced(5600, Fencing::ResourceOnly, 1);
        p.cut();
        p.settle();
        p.nodes[B].exit_codes.insert(Handler::FencePeer, code);
        let old = uuid(&p, B);
        p.ok(B, Command::Primary { force: false });
        assert_eq!(p.nodes[B].text(), "WFConnection Primary/Unknown UpToDate/Outdated");
        assert!(uuid(&p, B) != old);
    }
    let refused = |code: u8| {
        let mut p = fenced(5610, Fencing::ResourceOnly, 1);
        p.cut();
        p.settle();
        p.nodes[B].exit_codes.insert(Handler::FencePeer, code);
        let result = p.run(B, Command::Primary { force: false });
        (result, p.nodes[B].text(), p.nodes[B].helpers.len())
    };
    let state = |code| Err(CommandError::State(code));
    let (result, text, _) = refused(6);
    assert_eq!(
        (result, text.as_str()),
        (state(StateResult::NoUpToDateDisk), "WFConnection Secondary/Unknown Outdated/DUnknown")
    );
    let (result, text, tries) = refused(1);
    assert_eq!(
        (result, text.as_str()),
        (state(StateResult::PrimaryNop), "WFConnection Secondary/Unknown UpToDate/DUnknown")
    );
    assert_eq!(tries, 4);
    // By force, against everything.
    let mut p = fenced(5620, Fencing::ResourceOnly, 1);
    p.cut();
    p.settle();
    p.nodes[B].exit_codes.insert(Handler::FencePeer, 1);
    p.ok(B, Command::Primary { force: true });
    assert_eq!(said(&p, B, "Forced into split brain situation!"), 1);
    assert_eq!(p.nodes[B].text(), "WFConnection Primary/Unknown UpToDate/Outdated");
}

#[test]
fn a_restarted_node_is_only_consistent_until_the_peer_is_fenced() {
    for (code, text) in
        [(4, "StandAlone Primary/Unknown UpToDate/Outdated"), (1, "StandAlone Secondary/Unknown Consistent/DUnknown")]
    {
        let mut p = fenced(5700, Fencing::ResourceOnly, 1);
        p.crash(B);
        p.command(B, V, Command::NewVolume(policy(Fencing::ResourceOnly)));
        p.attach_with(B, V, policy(Fencing::ResourceOnly));
        p.settle();
        p.nodes[B].exit_codes.insert(Handler::FencePeer, code);
        let result = p.run(B, Command::Primary { force: false });
        assert_eq!((result.is_ok(), p.nodes[B].text().as_str()), (code == 4, text));
        assert_eq!(said(&p, B, "Forced to consider"), 0);
    }
}

#[test]
fn whoever_disconnects_leaves_the_secondary_outdated() {
    for who in [A, B] {
        let mut p = fenced(5800, Fencing::ResourceOnly, 1);
        p.ok(who, Command::Disconnect { force: false });
        p.settle();
        assert_eq!(p.nodes[A].helpers, [], "nobody needs to be fenced");
        let (a, b) = (p.nodes[A].text(), p.nodes[B].text());
        assert!(a.ends_with("Primary/Unknown UpToDate/Outdated"), "{a}");
        assert!(b.ends_with("Secondary/Unknown Outdated/DUnknown"), "{b}");
        assert_eq!(said(&p, A, "new current UUID"), 1);
        p.ok(who, Command::Connect(Box::new(net(ReplProtocol::C))));
        p.settle();
        assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate", "{:#?}", p.nodes[B].log);
    }
}

#[test]
fn without_consistent_data_nothing_waits_for_fencing() {
    let mut p = fenced(5900, Fencing::ResourceAndStonith, 1);
    p.ok(A, Command::Detach { force: false });
    let id = p.write(A, 0, 8, 1);
    p.cut();
    p.settle();
    assert_eq!(p.nodes[A].helpers, [Handler::PriOnInconDegr]);
    assert_eq!(said(&p, A, "Not fencing peer, I'm not even Consistent myself."), 1);
    assert!(flags(&p, A).is_empty() && p.nodes[A].completed[&id].is_err());
}

#[test]
fn stonith_and_protocol_a_do_not_go_together() {
    let refused = Err(CommandError::Code { code: 154, detail: String::new() });
    // 8.4 looks at it when a disk is attached and when `net` is set, not when the options of a disk change.
    let mut p = Pair::ready(5910, &net(ReplProtocol::A));
    p.ok(A, Command::DiskOptions(policy(Fencing::ResourceAndStonith)));
    let mut p = fenced(5911, Fencing::ResourceAndStonith, 1);
    assert_eq!(p.run(A, Command::NetOptions(Box::new(net(ReplProtocol::A)))), refused);
}
