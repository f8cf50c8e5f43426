//! Suspended I/O: by the administrator, for want of data, for fencing; and every way out of it.

use super::pair::{A, B, Pair, V};
use super::{ReplProtocol, net};
use crate::engine::event::{ClientRequest, Command};
use crate::engine::options::{NetOptions, ResourceOptions};
use crate::units::VolumeNr;
use crate::wire::state::Role;

pub(super) fn flags(p: &Pair, n: usize) -> String {
    let s = p.nodes[n].state(V);
    let mut text = String::new();
    for (on, word) in [(s.susp, "user "), (s.susp_nod, "no-data "), (s.susp_fen, "fencing ")] {
        text.push_str(if on { word } else { "" });
    }
    text.trim_end().to_owned()
}

#[test]
fn nothing_begins_and_nothing_ends_while_io_is_suspended() {
    for protocol in [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C] {
        for seed in 0..4 {
            let mut p = Pair::ready(4000 + seed, &net(protocol));
            let before = p.write(A, 0, 8, 1);
            for _ in 0..seed {
                p.step();
            }
            let done = p.done(A, before);
            p.ok(A, Command::SuspendIo);
            p.ok(A, Command::SuspendIo);
            assert_eq!(flags(&p, A), "user");
            let write = p.write(A, 8, 8, 2);
            let read = p.client(A, V, ClientRequest::Read(super::crash::range(0, 8)));
            let flush = p.client(A, V, ClientRequest::Flush);
            p.settle();
            assert!(![write, read, flush].iter().any(|id| p.done(A, *id)));
            assert!(done || seed > 0 || !p.done(A, before), "what was under way is not completed either");
            // A resync goes on meanwhile.
            p.ok(A, Command::InvalidateRemote);
            p.settle();
            if done {
                assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
            }
            p.ok(A, Command::ResumeIo);
            p.ok(A, Command::ResumeIo);
            p.settle();
            assert_eq!(flags(&p, A), "");
            assert!([before, write, read, flush].iter().all(|id| p.nodes[A].completed[id].is_ok()));
            assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
            p.same_data();
        }
    }
}

#[test]
fn a_link_that_is_lost_while_the_administrator_suspends_io_leaves_nothing_behind() {
    for seed in 0..12 {
        let mut p = Pair::ready(4100 + seed, &net(ReplProtocol::C));
        let ids: Vec<_> = (0u8..6).map(|i| p.write(A, u64::from(i) * 4, 8, i)).collect();
        for _ in 0..seed * 2 {
            p.step();
        }
        p.command(A, V, Command::SuspendIo);
        for _ in 0..seed {
            p.step();
        }
        p.cut();
        p.settle();
        if seed % 2 == 0 {
            p.join();
            p.settle();
        }
        p.ok(A, Command::ResumeIo);
        p.join();
        p.settle();
        assert!(ids.iter().all(|id| p.nodes[A].completed[id].is_ok()));
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[A].out_of_sync(), 0);
        p.same_data();
    }
}

#[test]
fn a_demotion_waits_for_suspended_requests_and_says_so() {
    let mut p = Pair::ready(4200, &net(ReplProtocol::C));
    p.ok(A, Command::SuspendIo);
    p.write(A, 0, 8, 1);
    p.settle();
    let id = p.command(A, V, Command::Secondary);
    p.settle();
    assert!(!p.nodes[A].results.contains_key(&id));
    assert_eq!(p.nodes[A].log.iter().filter(|l| l.contains("so does this demotion")).count(), 1);
    p.ok(A, Command::ResumeIo);
    p.settle();
    assert_eq!(p.nodes[A].results.get(&id), Some(&Ok(())));
    // Without requests nothing waits.
    p.ok(A, Command::Primary { force: false });
    p.ok(A, Command::SuspendIo);
    p.ok(A, Command::Secondary);
    p.ok(A, Command::Detach { force: false });
}

/// A pair whose node A suspends I/O rather than failing it.
fn patient(seed: u64, protocol: ReplProtocol) -> (Pair, NetOptions) {
    let n = net(protocol);
    let mut p = Pair::ready(seed, &n);
    p.ok(A, Command::ResourceOptions(ResourceOptions { suspend_without_data: true }));
    (p, n)
}

#[test]
fn a_diskless_primary_waits_for_its_peer_and_sends_again() {
    for protocol in [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C] {
        for seed in [0, 1, 3, 6, 10, 14, 20, 27] {
            let (mut p, _) = patient(4300 + seed, protocol);
            p.ok(A, Command::Detach { force: false });
            let ids: Vec<_> = (0u8..9).map(|i| p.write(A, u64::from(i) * 4, 8, i)).collect();
            let flush = p.client(A, V, ClientRequest::Flush);
            let read = p.client(A, V, ClientRequest::Read(super::crash::range(0, 8)));
            for _ in 0..seed {
                p.step();
            }
            p.cut();
            p.settle();
            assert_eq!(flags(&p, A), "no-data");
            assert_eq!(p.nodes[A].text(), "WFConnection Primary/Unknown Diskless/DUnknown");
            let open: Vec<_> = ids.iter().filter(|id| !p.done(A, **id)).copied().collect();
            let late = p.write(A, 100, 8, 77);
            p.settle();
            assert!(open.iter().all(|id| !p.done(A, *id)) && !p.done(A, late));
            p.join();
            p.settle();
            assert_eq!(flags(&p, A), "", "{protocol:?} {seed} {:#?} {:#?}", p.nodes[A].log, p.nodes[B].log);
            assert!(ids.iter().chain([&late, &flush, &read]).all(|id| p.nodes[A].completed[id].is_ok()), "{seed}");
            assert_eq!(p.read(A, 0, 4), vec![0; 2048]);
            assert_eq!(p.read(A, 32, 8), vec![8; 4096]);
            assert_eq!(p.read(A, 100, 8), vec![77; 4096]);
        }
    }
}

#[test]
fn a_primary_without_any_disk_waits_for_its_own_and_writes_there() {
    for seed in 0..8 {
        let (mut p, _) = patient(4400 + seed, ReplProtocol::C);
        p.cut();
        p.settle();
        p.write(A, 0, 8, 1);
        p.settle();
        p.nodes[A].fail_writes = true;
        let ids: Vec<_> = (0u8..5).map(|i| p.write(A, 16 + u64::from(i) * 4, 8, 10 + i)).collect();
        for _ in 0..seed {
            p.step();
        }
        p.settle();
        assert_eq!(flags(&p, A), "no-data");
        assert!(ids.iter().all(|id| !p.done(A, *id)));
        p.nodes[A].fail_writes = false;
        let id = p.attach(A, V);
        p.settle();
        assert_eq!(p.nodes[A].results.get(&id), Some(&Ok(())), "{:#?}", p.nodes[A].log);
        assert_eq!(flags(&p, A), "");
        assert!(ids.iter().all(|id| p.nodes[A].completed[id].is_ok()), "seed {seed}");
        assert_eq!(p.read(A, 32, 8), vec![14; 4096]);
        p.join();
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
    }
}

#[test]
fn resume_io_without_data_fails_what_waits() {
    let (mut p, _) = patient(4500, ReplProtocol::C);
    p.ok(A, Command::Detach { force: false });
    let id = p.write(A, 0, 8, 1);
    p.cut();
    p.settle();
    assert!(!p.done(A, id));
    p.ok(A, Command::ResumeIo);
    p.settle();
    assert!(p.nodes[A].completed[&id].is_err());
}

#[test]
fn the_flags_are_those_of_the_resource() {
    let mut p = Pair::new(4600);
    p.up(&[16 << 20, 8 << 20], &net(ReplProtocol::C));
    for v in [VolumeNr(0), VolumeNr(1)] {
        p.command(A, v, Command::NewCurrentUuid { clear_bitmap: true });
        p.settle();
        p.command(A, v, Command::Primary { force: false });
        p.settle();
    }
    p.ok(A, Command::ResourceOptions(ResourceOptions { suspend_without_data: true }));
    p.command(A, VolumeNr(1), Command::Detach { force: false });
    p.settle();
    let (bad, good) = (p.write_to(A, VolumeNr(1), 0, 8, 1), p.write_to(A, VolumeNr(0), 0, 8, 2));
    p.cut();
    p.settle();
    assert!(p.nodes[A].state(VolumeNr(0)).susp_nod && p.nodes[A].state(VolumeNr(1)).susp_nod);
    assert_eq!(p.nodes[A].state(VolumeNr(0)).role, Role::Primary);
    assert!(!p.done(A, bad) && !p.done(A, good));
    assert_eq!(p.nodes[A].log.iter().filter(|l| l.contains("susp( 0 -> 1 )")).count(), 1);
    p.join();
    p.settle();
    assert!(p.nodes[A].completed[&bad].is_ok() && p.nodes[A].completed[&good].is_ok());
    p.command(A, VolumeNr(1), Command::Secondary);
    p.attach(A, VolumeNr(1));
    p.settle();
    assert_eq!(p.nodes[B].state(VolumeNr(1)).pdsk, crate::wire::state::DiskState::UpToDate);
    p.same_data();
}
