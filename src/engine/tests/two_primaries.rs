//! Two engines, both Primary: promotion, options, and writes of both nodes' clients that meet.

use bytes::Bytes;
use smallvec::SmallVec;

use super::crash::range;
use super::pair::{A, B, Pair, V};
use crate::engine::action::CommandError;
use crate::engine::conflict::Standing;
use crate::engine::event::{ClientRequest, Command, RequestId, Socket};
use crate::engine::fault::Fault;
use crate::engine::handler::Handler;
use crate::engine::options::{DiskOptions, NetOptions};
use crate::engine::rng::Rng;
use crate::engine::state::Fencing;
use crate::wire::params::ReplProtocol;
use crate::wire::state::StateResult;

fn two() -> NetOptions {
    NetOptions { two_primaries: true, ..NetOptions::default() }
}

fn both(seed: u64, relaxed: bool) -> Pair {
    let mut p = Pair::new(seed);
    p.relaxed = relaxed;
    p.up(&[16 * super::MIB], &two());
    p.ok(A, Command::NewCurrentUuid { clear_bitmap: true });
    p.ok(A, Command::Primary { force: false });
    p.ok(B, Command::Primary { force: false });
    for n in [A, B] {
        assert_eq!(p.nodes[n].text(), "Connected Primary/Primary UpToDate/UpToDate", "{:#?}", p.nodes[n].log);
        // Afterwards the extent is hot: a write is submitted at once.
        p.write(n, 512, 8, 0);
        p.settle();
    }
    p
}

fn resolver(p: &Pair) -> usize {
    usize::from(!p.nodes[A].engine.conn.resolve_conflicts)
}

/// Nobody dropped the connection.
fn calm(p: &Pair) {
    for n in [A, B] {
        let odd = p.nodes[n].log.iter().find(|l| l.contains("dropping") || l.contains("disconnecting"));
        assert_eq!(odd, None);
        assert_eq!(p.nodes[n].text(), "Connected Primary/Primary UpToDate/UpToDate", "{:#?}", p.nodes[n].log);
    }
}

#[test]
fn both_nodes_become_primary_also_at_the_same_moment() {
    for seed in 0..20 {
        let mut p = Pair::new(seed);
        p.up(&[16 * super::MIB], &two());
        p.ok(A, Command::NewCurrentUuid { clear_bitmap: true });
        let ids = [A, B].map(|n| p.command(n, V, Command::Primary { force: false }));
        p.settle();
        for n in [A, B] {
            assert_eq!(p.nodes[n].results.remove(&ids[n]), Some(Ok(())), "{:#?}", p.nodes[n].log);
            assert_eq!(p.nodes[n].text(), "Connected Primary/Primary UpToDate/UpToDate");
        }
        p.ok(B, Command::Secondary);
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
    }
}

#[test]
fn options_while_connected() {
    let code = |code| Err(CommandError::Code { code, detail: String::new() });
    let options = |net: NetOptions| Command::NetOptions(Box::new(net));
    let mut p = Pair::ready(1, &NetOptions::default());
    let refused = Err(CommandError::State(StateResult::TwoPrimaries));
    assert_eq!(p.run(B, Command::Primary { force: false }), refused);
    assert_eq!(p.run(B, options(NetOptions { protocol: ReplProtocol::B, ..two() })), code(139));
    // The peer adopts it.
    p.ok(B, options(two()));
    p.ok(B, Command::Primary { force: false });
    assert_eq!(p.nodes[A].text(), "Connected Primary/Primary UpToDate/UpToDate");
    assert_eq!(p.run(A, options(NetOptions::default())), code(164));
    p.ok(A, Command::Secondary);
    p.ok(A, options(NetOptions::default()));
    assert_eq!(p.run(A, Command::Primary { force: false }), refused);
}

#[test]
fn an_old_version_has_one_primary_and_keeps_what_the_peer_was_told() {
    let mut p = Pair::new(3);
    p.version = 99;
    p.up(&[16 * super::MIB], &two());
    p.ok(A, Command::NewCurrentUuid { clear_bitmap: true });
    p.ok(A, Command::Primary { force: false });
    let refused = Err(CommandError::State(StateResult::TwoPrimaries));
    assert_eq!(p.run(B, Command::Primary { force: false }), refused);
    let options = |net: NetOptions| Command::NetOptions(Box::new(net));
    let code = Err(CommandError::Code { code: 163, detail: String::new() });
    assert_eq!(p.run(A, options(NetOptions::default())), code);
    p.ok(A, options(NetOptions { max_buffers: 100, ..two() }));
}

#[test]
fn equal_writes_end_with_the_resolvers_on_both() {
    for relaxed in [false, true] {
        for seed in 0..12 {
            let mut p = both(seed, relaxed);
            let r = resolver(&p);
            let first = p.write(1 - r, 8, 8, 1);
            let second = p.write(r, 8, 8, 2);
            p.settle();
            assert!(p.done(1 - r, first) && p.done(r, second));
            calm(&p);
            p.same_data();
            assert_eq!(p.data(A, V)[8 * 512], 2);
            assert_eq!(p.nodes[r].packets.get("P_SUPERSEDED"), Some(&1));
        }
    }
}

#[test]
fn a_partial_overlap_is_sent_again() {
    for relaxed in [false, true] {
        for seed in 0..12 {
            let mut p = both(seed, relaxed);
            let r = resolver(&p);
            let large = p.write(1 - r, 8, 16, 1);
            let small = p.write(r, 20, 8, 2);
            p.settle();
            assert!(p.done(1 - r, large) && p.done(r, small));
            calm(&p);
            p.same_data();
            let data = p.data(A, V);
            assert_eq!((data[8 * 512], data[23 * 512], data[24 * 512]), (1, 1, 2));
            assert_eq!(p.nodes[r].packets.get("P_RETRY_WRITE"), Some(&1));
        }
    }
}

fn request(rng: &mut Rng, fill: u8) -> ClientRequest {
    let (start, count) = (rng.next_u64() % 40, 1 + rng.next_u64() % 24);
    match rng.next_u64() % 12 {
        0 => ClientRequest::Flush,
        1 => ClientRequest::Discard(range(start, count)),
        2 => ClientRequest::WriteZeroes { range: range(start, count), may_unmap: true, fua: false },
        3 => ClientRequest::Read(range(start, count)),
        n => {
            let data = Bytes::from(vec![fill; usize::try_from(count * 512).unwrap()]);
            ClientRequest::Write { range: range(start, count), data: SmallVec::from_elem(data, 1), fua: n == 4 }
        }
    }
}

/// Both nodes' clients write the same place, at random.
fn storm(seed: u64, inject: Option<Fault>) -> Result<Pair, String> {
    let mut p = both(seed, seed.is_multiple_of(2));
    for n in [A, B] {
        p.nodes[n].engine.inject(inject);
    }
    let mut rng = Rng::new(seed + 1000);
    let mut ids: Vec<(usize, RequestId)> = Vec::new();
    for i in 0u8..80 {
        let n = usize::from(rng.next_u64() & 1 == 0);
        ids.push((n, p.client(n, V, request(&mut rng, i + 1))));
        for _ in 0..rng.next_u64() % 12 {
            p.step();
        }
    }
    p.settle();
    if let Some((n, id)) = ids.iter().find(|(n, id)| !p.nodes[*n].completed.contains_key(id)) {
        return Err(format!("request {id:?} of {n} waits"));
    }
    if p.data(A, V) != p.data(B, V) {
        return Err(String::from("the disks differ"));
    }
    Ok(p)
}

#[test]
fn storms_of_both_nodes_leave_equal_disks_and_nothing_behind() {
    let (mut superseded, mut retried) = (0, 0);
    for seed in 0..80 {
        let p = storm(seed, None).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
        calm(&p);
        for n in [A, B] {
            let engine = &p.nodes[n].engine;
            assert_eq!((engine.requests.len(), engine.peer_requests.len()), (0, 0), "seed {seed}");
            assert_eq!(p.nodes[n].out_of_sync(), 0);
            superseded += p.nodes[n].packets.get("P_SUPERSEDED").copied().unwrap_or(0);
            retried += p.nodes[n].packets.get("P_RETRY_WRITE").copied().unwrap_or(0);
        }
    }
    assert!(superseded > 50 && retried > 100, "{superseded} superseded, {retried} retried");
}

#[test]
fn storms_notice_a_conflict_that_both_decide() {
    assert!((0..20).any(|seed| storm(seed, Some(Fault::ConflictIgnored)).is_err()));
}

#[test]
fn a_superseded_write_is_complete_when_its_successor_is_here() {
    let mut p = both(5, true);
    let r = resolver(&p);
    let own = p.write(1 - r, 8, 8, 1);
    p.write(r, 8, 8, 2);
    while !p.nodes[1 - r].disk_queue.is_empty() {
        p.do_disk(1 - r, 0);
    }
    p.deliver(1 - r, Socket::Data);
    // The resolver answers only when its own write is on its disk, flushed.
    assert!(p.nodes[r].meta.is_empty());
    while !p.nodes[r].disk_queue.is_empty() {
        p.do_disk(r, 0);
    }
    p.deliver(r, Socket::Meta);
    let standing = |p: &Pair| p.nodes[1 - r].engine.requests.iter().map(|(_, r)| r.standing).collect::<Vec<_>>();
    assert_eq!(standing(&p), [Standing::Superseded]);
    assert!(!p.done(1 - r, own));
    p.deliver(r, Socket::Data);
    assert!(!p.done(1 - r, own));
    p.do_disk(1 - r, 0);
    assert!(p.done(1 - r, own));
    p.settle();
    p.same_data();
}

#[test]
fn data_does_not_overtake_the_acknowledgement_before_it() {
    let mut p = both(7, true);
    let r = resolver(&p);
    let other = 1 - r;
    // Numbers wrap.
    for n in [A, B] {
        let vol = p.nodes[n].engine.volumes.get_mut(&V).unwrap();
        (vol.seq.0, vol.peer_seq.0) = (u32::MAX, u32::MAX);
    }
    p.write(r, 8, 8, 1);
    p.deliver(r, Socket::Data);
    while !p.nodes[other].disk_queue.is_empty() {
        p.do_disk(other, 0);
    }
    while !p.nodes[r].disk_queue.is_empty() {
        p.do_disk(r, 0);
    }
    // The peer has it, says so, and goes on with a write of its own, which comes first.
    let own = p.write(other, 8, 8, 2);
    p.deliver(other, Socket::Data);
    assert_eq!(p.nodes[r].engine.conn.stalled.len(), 1);
    p.settle();
    assert!(p.done(other, own));
    assert_eq!(p.nodes[r].packets.get("P_SUPERSEDED"), None);
    assert_eq!(p.data(A, V)[8 * 512], 2);
    p.same_data();
    calm(&p);
}

#[test]
fn missing_acknowledgements_end_the_link_after_the_ping_timeout() {
    let mut p = both(8, true);
    let r = resolver(&p);
    // A number is used for a packet that never comes.
    p.nodes[1 - r].engine.volumes.get_mut(&V).unwrap().next_seq();
    p.write(1 - r, 8, 8, 2);
    p.settle();
    let line = "Timed out waiting for missing ack packets; disconnecting";
    assert!(p.nodes[r].log.iter().any(|l| l == line), "{:#?}", p.nodes[r].log);
}

#[test]
fn a_cut_leaves_two_generations_and_they_do_not_meet_again_unnamed() {
    for seed in 0..16 {
        let mut p = both(seed, seed.is_multiple_of(2));
        let mut rng = Rng::new(seed);
        let mut ids = Vec::new();
        for i in 0u8..20 {
            let n = usize::from(rng.next_u64() & 1 == 0);
            ids.push((n, p.client(n, V, request(&mut rng, i + 1))));
        }
        for _ in 0..rng.next_u64() % 200 {
            p.step();
        }
        p.cut();
        p.settle();
        for (n, id) in ids {
            assert!(p.done(n, id), "seed {seed}");
        }
        let ids = [A, B].map(|n| p.nodes[n].engine.volumes[&V].disk.as_ref().unwrap().ids().current);
        assert!(!ids[A].same(ids[B]));
        p.join();
        p.settle();
        for n in [A, B] {
            assert_eq!(p.nodes[n].text(), "StandAlone Primary/Unknown UpToDate/DUnknown");
        }
        p.ok(B, Command::Secondary);
        p.ok(B, Command::Connect(Box::new(NetOptions { discard_my_data: true, ..two() })));
        p.ok(A, Command::Connect(Box::new(two())));
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
        p.ok(B, Command::Primary { force: false });
    }
}

#[test]
fn writes_of_both_nodes_go_through_a_resync() {
    for seed in 0..16 {
        let mut p = both(seed, seed.is_multiple_of(2));
        p.ok(B, Command::Secondary);
        p.cut();
        p.settle();
        for i in 0..10 {
            p.write(A, i * 16, 8, 9);
        }
        p.settle();
        p.join();
        for _ in 0..1000 {
            if p.nodes[B].text().starts_with("SyncTarget") {
                break;
            }
            p.step();
        }
        let promotion = p.command(B, V, Command::Primary { force: false });
        let mut rng = Rng::new(seed);
        let mut ids = Vec::new();
        for i in 0u8..60 {
            let n = usize::from(rng.next_u64() & 1 == 0);
            if p.nodes[n].text().contains(" Primary/") {
                ids.push((n, p.client(n, V, request(&mut rng, i + 1))));
            }
            for _ in 0..rng.next_u64() % 12 {
                p.step();
            }
        }
        p.settle();
        assert_eq!(p.nodes[B].results.remove(&promotion), Some(Ok(())));
        for (n, id) in ids {
            assert!(p.nodes[n].completed.get(&id).is_some_and(Result::is_ok), "seed {seed}");
        }
        calm(&p);
        p.same_data();
        assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
    }
}

/// Both wait for fencing when the link is lost, and no helper says that the other one is.
fn both_freeze(seed: u64, relaxed: bool) -> Pair {
    let mut p = both(seed, relaxed);
    for n in [A, B] {
        p.nodes[n].exit_codes.insert(Handler::FencePeer, 1);
        p.ok(n, Command::DiskOptions(DiskOptions { fencing: Fencing::ResourceAndStonith, ..DiskOptions::default() }));
    }
    p
}

fn freeze_and_thaw(p: &mut Pair) {
    p.cut();
    p.settle();
    for n in [A, B] {
        assert_eq!(super::suspend::flags(p, n), "fencing", "{:#?}", p.nodes[n].log);
        p.nodes[n].log.clear();
    }
    p.join();
    p.settle();
    calm(p);
    p.same_data();
}

#[test]
fn what_the_other_primary_has_overwritten_is_not_sent_again_after_a_freeze() {
    let mut uncovered = 0;
    for relaxed in [false, true] {
        for seed in 0..6 {
            let mut p = both_freeze(seed, relaxed);
            let first = p.write(A, 8, 8, 1);
            while !p.done(A, first) {
                assert!(p.step());
            }
            let second = p.write(B, 10, 4, 2);
            while !p.done(B, second) {
                assert!(p.step());
            }
            uncovered += u32::from(p.nodes[A].engine.epochs.unanswered().next().is_some());
            freeze_and_thaw(&mut p);
            let data = p.data(A, V);
            assert_eq!((data[8 * 512], data[10 * 512], data[14 * 512]), (1, 2, 1), "seed {seed}, relaxed {relaxed}");
            assert_eq!(p.nodes[A].engine.epochs.unanswered().count(), 0);
            // An end that is clean as well.
            p.ok(A, Command::Secondary);
        }
    }
    assert!(uncovered > 1, "{uncovered}");
}

#[test]
fn an_overwritten_write_is_not_sent_again_to_a_primary_that_has_stepped_down() {
    let mut uncovered = 0;
    for seed in 0..6 {
        let mut p = both_freeze(seed, true);
        p.ok(B, Command::DiskOptions(DiskOptions::default()));
        let first = p.write(A, 8, 8, 1);
        while !p.done(A, first) {
            assert!(p.step());
        }
        let second = p.write(B, 10, 4, 2);
        while !p.done(B, second) {
            assert!(p.step());
        }
        let demotion = p.command(B, V, Command::Secondary);
        while !p.nodes[B].results.contains_key(&demotion) && p.step() {}
        uncovered += u32::from(p.nodes[A].engine.epochs.unanswered().next().is_some());
        p.cut();
        p.settle();
        p.join();
        p.settle();
        p.same_data();
        assert_eq!(p.data(A, V)[10 * 512], 2, "seed {seed}");
    }
    assert!(uncovered > 0);
}

#[test]
fn writes_that_meet_over_a_freeze_end_equal_on_both() {
    let mut refused = 0;
    for relaxed in [false, true] {
        for seed in 0..12 {
            let mut p = both_freeze(seed, relaxed);
            let mut rng = Rng::new(seed);
            let mut ids = Vec::new();
            for i in 0..6 {
                let n = usize::from(i % 2 == 0);
                ids.push((n, p.write(n, rng.next_u64() % 12, 1 + rng.next_u64() % 12, i + 1)));
                for _ in 0..rng.next_u64() % 4 {
                    p.step();
                }
            }
            for _ in 0..rng.next_u64() % 40 {
                p.step();
            }
            let standing =
                |p: &Pair, n: usize| p.nodes[n].engine.requests.iter().any(|(_, r)| r.standing != Standing::Free);
            refused += u32::from(standing(&p, A) || standing(&p, B));
            p.cut();
            p.settle();
            p.join();
            p.settle();
            assert!(
                ids.iter().all(|(n, id)| p.nodes[*n].completed.get(id).is_some_and(Result::is_ok)),
                "seed {seed}, relaxed {relaxed}: {:#?}",
                p.nodes[A].log
            );
            p.same_data();
            calm(&p);
        }
    }
    assert!(refused > 0, "{refused}");
}
