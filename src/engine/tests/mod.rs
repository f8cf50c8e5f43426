//! Two engines back to back: the handshake, writes under every protocol, cuts, crashes and resyncs.

mod bad_disks;
mod bitmaps;
mod congested;
mod crash;
mod fencing;
mod hung_disks;
mod io_errors;
mod lost_link;
mod pair;
mod regressions;
mod split_brains;
mod storm;
mod suspend;
mod two_primaries;

use crash::range;
use pair::{A, B, MIB, Pair, V};

use crate::engine::action::{ClientError, CommandError};
use crate::engine::event::{ClientRequest, Command};
use crate::engine::options::NetOptions;
use crate::units::VolumeNr;
use crate::wire::params::ReplProtocol;
use crate::wire::state::StateResult;

fn net(protocol: ReplProtocol) -> NetOptions {
    NetOptions { protocol, ..NetOptions::default() }
}

const PROTOCOLS: [ReplProtocol; 3] = [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C];

#[test]
fn fresh_nodes_meet_inconsistent_and_a_forced_primary_syncs_the_peer() {
    let mut p = Pair::new(1);
    p.up(&[16 * MIB], &net(ReplProtocol::C));
    assert_eq!(p.nodes[A].text(), "Connected Secondary/Secondary Inconsistent/Inconsistent");
    assert_eq!(p.run(A, Command::Primary { force: false }), Err(CommandError::State(StateResult::NoUpToDateDisk)));
    p.ok(A, Command::Primary { force: true });
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate");
    p.same_data();
}

#[test]
fn writes_reach_both_disks_under_every_protocol() {
    for protocol in PROTOCOLS {
        for relaxed in [false, true] {
            let mut p = Pair::ready(2, &net(protocol));
            p.relaxed = relaxed;
            let ids: Vec<_> =
                (0u8..60).map(|i| p.write(A, u64::from(i) * 37 % 1000, 8 + u64::from(i % 5) * 3, i + 1)).collect();
            p.settle();
            assert!(ids.iter().all(|id| p.done(A, *id)), "{protocol:?}");
            p.same_data();
            assert_eq!(p.nodes[A].out_of_sync(), 0);
        }
    }
}

#[test]
fn a_cut_marks_what_the_peer_may_miss_and_a_join_syncs_exactly_that() {
    for protocol in PROTOCOLS {
        for seed in 0..20 {
            let mut p = Pair::ready(seed, &net(protocol));
            for i in 0u8..10 {
                p.write(A, u64::from(i) * 8, 8, 1);
            }
            for _ in 0..seed {
                p.step();
            }
            p.cut();
            let id = p.write(A, 4096, 16, 9);
            p.settle();
            assert!(p.done(A, id));
            assert_eq!(p.nodes[A].text(), "WFConnection Primary/Unknown UpToDate/DUnknown");
            assert!(p.nodes[A].out_of_sync() >= 2 && p.nodes[A].out_of_sync() <= 12);
            p.join();
            p.settle();
            assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
            assert_eq!(p.nodes[A].out_of_sync(), 0);
            assert_eq!(p.nodes[B].out_of_sync(), 0);
            p.same_data();
        }
    }
}

#[test]
fn roles_swap() {
    let mut p = Pair::ready(3, &net(ReplProtocol::C));
    p.write(A, 0, 8, 1);
    p.settle();
    assert_eq!(p.run(B, Command::Primary { force: false }), Err(CommandError::State(StateResult::TwoPrimaries)));
    p.ok(A, Command::Secondary);
    p.ok(B, Command::Primary { force: false });
    let id = p.write(A, 0, 8, 2);
    p.settle();
    assert_eq!(p.nodes[A].completed.remove(&id), Some(Err(ClientError::NotPrimary)));
    p.write(B, 8, 8, 3);
    p.settle();
    p.same_data();
}

#[test]
fn a_killed_primary_comes_back_and_resyncs_its_hot_extents() {
    for seed in 0..20 {
        let n = net(ReplProtocol::C);
        let mut p = Pair::ready(100 + seed, &n);
        for i in 0u8..30 {
            p.write(A, u64::from(i) * 16, 8, i);
        }
        for _ in 0..seed * 5 {
            p.step();
        }
        p.crash(A);
        p.settle();
        assert_eq!(p.nodes[B].text(), "WFConnection Secondary/Unknown UpToDate/DUnknown");
        p.restart(A, &n);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Secondary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
    }
}

#[test]
fn the_peer_takes_over_from_a_killed_primary_which_comes_back_as_target() {
    for seed in 0..20 {
        let n = net(ReplProtocol::C);
        let mut p = Pair::ready(200 + seed, &n);
        for i in 0u8..30 {
            p.write(A, u64::from(i) * 16, 8, i);
        }
        for _ in 0..seed * 5 {
            p.step();
        }
        p.crash(A);
        p.ok(B, Command::Primary { force: false });
        let id = p.write(B, 0, 64, 77);
        p.settle();
        assert!(p.done(B, id));
        p.restart(A, &n);
        p.settle();
        assert_eq!(p.nodes[B].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[B].log);
        assert_eq!(p.nodes[A].text(), "Connected Secondary/Primary UpToDate/UpToDate");
        assert_eq!(p.data(A, V)[0], 77);
        p.same_data();
    }
}

#[test]
fn a_detached_primary_goes_on_over_the_peer_and_resyncs_at_attach() {
    for seed in 0..10 {
        let mut p = Pair::ready(300 + seed, &net(ReplProtocol::C));
        p.write(A, 0, 8, 1);
        p.settle();
        p.write(A, 64, 8, 5);
        p.ok(A, Command::Detach { force: false });
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Diskless/UpToDate");
        p.write(A, 8, 8, 2);
        p.settle();
        assert_eq!(p.read(A, 0, 16), [vec![1; 4096], vec![2; 4096]].concat());
        p.attach(A, V);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[A].out_of_sync(), 0);
        p.same_data();
    }
}

#[test]
fn the_last_good_disk_cannot_be_detached() {
    let mut p = Pair::ready(6, &net(ReplProtocol::C));
    p.ok(A, Command::Detach { force: false });
    assert_eq!(p.run(B, Command::Detach { force: false }), Err(CommandError::State(StateResult::CwFailedByPeer)));
}

#[test]
fn a_failing_disk_on_the_primary_is_detached_and_nothing_is_lost() {
    let mut p = Pair::ready(7, &net(ReplProtocol::C));
    p.nodes[A].fail_writes = true;
    let id = p.write(A, 0, 8, 1);
    p.settle();
    assert_eq!(p.nodes[A].completed.get(&id), Some(&Ok(smallvec::SmallVec::new())));
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Diskless/UpToDate");
    assert_eq!(p.read(A, 0, 8), vec![1; 4096]);
    p.nodes[A].fail_writes = false;
    p.attach(A, V);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

#[test]
fn a_failing_disk_on_the_secondary_is_marked_under_every_protocol() {
    for protocol in PROTOCOLS {
        let mut p = Pair::ready(8, &net(protocol));
        p.nodes[B].fail_writes = true;
        let id = p.write(A, 0, 8, 1);
        p.settle();
        assert!(p.done(A, id));
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/Diskless");
        assert_eq!(p.nodes[A].out_of_sync(), 1, "{protocol:?}");
        p.nodes[B].fail_writes = false;
        p.attach(B, V);
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        p.same_data();
    }
}

#[test]
fn a_failed_local_read_is_served_by_the_peer() {
    let mut p = Pair::ready(9, &net(ReplProtocol::C));
    p.write(A, 0, 8, 3);
    p.settle();
    p.nodes[A].fail_reads = true;
    assert_eq!(p.read(A, 0, 8), vec![3; 4096]);
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary Diskless/UpToDate");
}

#[test]
fn invalidate_resyncs_everything_in_either_direction() {
    let mut p = Pair::ready(10, &net(ReplProtocol::C));
    p.write(A, 0, 800, 3);
    p.settle();
    p.ok(B, Command::Invalidate);
    p.settle();
    assert_eq!(p.nodes[B].text(), "Connected Secondary/Primary UpToDate/UpToDate", "{:#?}", p.nodes[B].log);
    p.ok(A, Command::InvalidateRemote);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    assert!(p.nodes[B].packets["P_RS_DATA_REQUEST"] >= 2 * 31);
    p.same_data();
}

#[test]
fn a_paused_resync_waits_and_goes_on() {
    let mut p = Pair::ready(11, &net(ReplProtocol::C));
    p.ok(A, Command::PauseSync);
    p.ok(A, Command::InvalidateRemote);
    p.settle();
    assert_eq!(p.nodes[A].text(), "PausedSyncS Primary/Secondary UpToDate/Inconsistent");
    assert_eq!(p.nodes[B].text(), "PausedSyncT Secondary/Primary Inconsistent/UpToDate");
    assert_eq!(p.nodes[B].packets.get("P_RS_DATA_REQUEST"), None);
    assert_eq!(p.run(A, Command::PauseSync), Err(CommandError::Code { code: 134, detail: String::new() }));
    p.ok(A, Command::ResumeSync);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

#[test]
fn writes_go_on_during_a_resync_and_everything_ends_equal() {
    for protocol in PROTOCOLS {
        for seed in 0..10 {
            let mut p = Pair::ready(400 + seed, &net(protocol));
            p.relaxed = seed % 2 == 0;
            p.command(A, V, Command::InvalidateRemote);
            for i in 0u8..200 {
                p.write(A, u64::from(i) * 149 % 30000, 1 + u64::from(i) % 40, i);
                for _ in 0..4 {
                    p.step();
                }
            }
            p.settle();
            assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
            assert_eq!((p.nodes[A].out_of_sync(), p.nodes[B].out_of_sync()), (0, 0));
            p.same_data();
        }
    }
}

#[test]
fn an_inconsistent_primary_reads_the_source_and_writes_both() {
    let mut p = Pair::ready(12, &net(ReplProtocol::C));
    p.write(A, 0, 64, 7);
    p.settle();
    p.ok(A, Command::PauseSync);
    p.ok(A, Command::Invalidate);
    p.settle();
    assert_eq!(p.nodes[A].text(), "PausedSyncT Primary/Secondary Inconsistent/UpToDate");
    assert_eq!(p.read(A, 0, 8), vec![7; 4096]);
    assert!(p.nodes[A].packets["P_DATA_REQUEST"] >= 1);
    p.write(A, 8, 8, 9);
    p.settle();
    assert_eq!(p.read(A, 8, 8), vec![9; 4096]);
    p.ok(A, Command::ResumeSync);
    for i in 0u8..50 {
        p.write(A, u64::from(i) * 77 % 3000, 8, i);
        p.step();
    }
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

#[test]
fn an_interrupted_resync_goes_on_where_the_bitmap_says() {
    for seed in 0..30 {
        let mut p = Pair::ready(500 + seed, &net(ReplProtocol::C));
        p.write(A, 0, 2000, 3);
        p.settle();
        p.command(A, V, Command::InvalidateRemote);
        for _ in 0..seed * 8 {
            p.step();
        }
        p.cut();
        p.write(A, 5000, 8, 4);
        for _ in 0..seed {
            p.step();
        }
        p.join();
        p.settle();
        assert_eq!(
            p.nodes[A].text(),
            "Connected Primary/Secondary UpToDate/UpToDate",
            "seed {seed} {:#?}",
            p.nodes[A].log
        );
        p.same_data();
    }
}

#[test]
fn a_crashed_target_or_source_recovers() {
    let n = net(ReplProtocol::C);
    for seed in 0..30 {
        let mut p = Pair::ready(600 + seed, &n);
        p.write(A, 0, 2000, 3);
        p.settle();
        p.command(A, V, Command::InvalidateRemote);
        for _ in 0..seed * 8 {
            p.step();
        }
        let victim = usize::from(seed % 3 != 0);
        p.crash(victim);
        p.restart(victim, &n);
        p.settle();
        assert!(
            p.nodes[A].text().ends_with("UpToDate/UpToDate"),
            "seed {seed} {} {:#?}",
            p.nodes[A].text(),
            p.nodes[A].log
        );
        p.same_data();
    }
}

#[test]
fn disconnect_is_graceful_and_can_be_undone() {
    let n = net(ReplProtocol::C);
    let mut p = Pair::ready(13, &n);
    p.ok(A, Command::Disconnect { force: false });
    assert_eq!(p.nodes[A].text(), "StandAlone Primary/Unknown UpToDate/DUnknown");
    assert_eq!(p.nodes[B].text(), "WFConnection Secondary/Unknown UpToDate/DUnknown");
    let unknown = CommandError::Code { code: 162, detail: String::from("unknown connection") };
    assert_eq!(p.run(A, Command::Disconnect { force: false }), Err(unknown));
    p.write(A, 0, 8, 1);
    p.ok(A, Command::Connect(Box::new(n)));
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
    p.same_data();
}

#[test]
fn differing_settings_end_stand_alone() {
    let mut p = Pair::new(14);
    for n in [A, B] {
        p.create(n, V, 16 * MIB);
        p.command(n, V, Command::NewVolume(crate::engine::options::DiskOptions::default()));
        p.attach(n, V);
    }
    p.command(A, V, Command::Connect(Box::new(net(ReplProtocol::C))));
    p.command(B, V, Command::Connect(Box::new(net(ReplProtocol::A))));
    p.settle();
    assert!(p.nodes.iter().any(|n| n.text().starts_with("StandAlone")));
    assert!(p.nodes.iter().any(|n| n.log.iter().any(|l| l.contains("incompatible protocol settings"))));
}

#[test]
fn two_volumes_share_epochs_and_resync_on_their_own() {
    let (v0, v1) = (VolumeNr(0), VolumeNr(1));
    for seed in 0..10 {
        let mut p = Pair::new(700 + seed);
        p.up(&[16 * MIB, 8 * MIB], &net(ReplProtocol::C));
        for v in [v0, v1] {
            p.command(A, v, Command::NewCurrentUuid { clear_bitmap: true });
            p.settle();
            p.command(A, v, Command::Primary { force: false });
            p.settle();
        }
        for i in 0u8..20 {
            p.write_to(A, VolumeNr(u16::from(i % 2)), u64::from(i) * 8, 8, i);
        }
        for _ in 0..seed * 3 {
            p.step();
        }
        p.cut();
        p.write_to(A, v1, 800, 8, 99);
        p.settle();
        p.join();
        p.settle();
        assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate", "{:#?}", p.nodes[A].log);
        assert_eq!(p.nodes[A].state(v1).pdsk, crate::wire::state::DiskState::UpToDate);
        p.same_data();
    }
}

#[test]
fn old_protocol_versions_replicate_and_resync() {
    for version in [86, 88, 90, 91, 94, 95, 96, 97, 100, 101] {
        for features in [0, 3, 0xf] {
            let n = net(ReplProtocol::C);
            let mut p = Pair::new(15);
            p.version = version;
            p.features = features;
            p.up(&[16 * MIB], &n);
            p.ok(A, Command::Primary { force: true });
            p.settle();
            p.write(A, 0, 300, 4);
            p.client(A, V, ClientRequest::Discard(range(100, 100)));
            p.client(A, V, ClientRequest::WriteZeroes { range: range(0, 8), may_unmap: false, fua: false });
            p.settle();
            assert_eq!(
                p.nodes[A].text(),
                "Connected Primary/Secondary UpToDate/UpToDate",
                "v{version} {:#?}",
                p.nodes[A].log
            );
            if version >= 91 {
                p.cut();
                p.write(A, 800, 16, 5);
                p.settle();
                p.join();
                p.settle();
                assert_eq!(
                    p.nodes[A].text(),
                    "Connected Primary/Secondary UpToDate/UpToDate",
                    "v{version} {:#?}",
                    p.nodes[A].log
                );
            }
            p.same_data();
        }
    }
}

#[test]
fn a_flush_waits_for_both_replicas_under_protocol_c() {
    for relaxed in [false, true] {
        let mut p = Pair::ready(16, &net(ReplProtocol::C));
        p.cut();
        p.settle();
        p.relaxed = relaxed;
        p.join();
        p.settle();
        p.write(A, 0, 8, 1);
        let flush = p.client(A, V, ClientRequest::Flush);
        p.settle_for(0);
        assert!(p.done(A, flush), "relaxed {relaxed}");
    }
}

#[test]
fn a_silent_peer_is_dropped_by_the_ping() {
    let mut p = Pair::ready(17, &net(ReplProtocol::C));
    // Nothing of B is delivered any more, and nothing is closed: a frozen machine.
    let id = p.write(A, 0, 8, 1);
    for _ in 0..200 {
        p.now = crate::units::Timestamp(p.now.0 + 500_000_000);
        p.event(A, crate::engine::event::Event::Timer(crate::engine::event::Timer::Ping));
        if p.nodes[A].text().starts_with("WFConnection") {
            break;
        }
    }
    assert_eq!(p.nodes[A].text(), "WFConnection Primary/Unknown UpToDate/DUnknown");
    p.cut();
    p.settle();
    assert!(p.done(A, id));
}
