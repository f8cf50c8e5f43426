//! Links that are too slow and disks that hang: nothing takes turns for ever, and nothing that comes late does harm.

use super::super::plan::{DiskFault, Order};
use super::super::scenario::{Scenario, regression};
use super::super::world::{A, B};
use super::{primary, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnCongestion;
use crate::units::Sectors;
use crate::wire::params::ReplProtocol;

/// A Primary that pulls ahead when 64 KiB are under way, over a link of 1 MiB/s.
fn congested(scenario: Scenario) -> Scenario {
    let pulls = scenario.protocol(ReplProtocol::A).slow_link(1).nodes(|n| {
        n.net.on_congestion = OnCongestion::PullAhead;
        n.net.congestion_fill = Sectors(128);
    });
    pulls.nodes(|n| n.net.ko_count = 0)
}

fn phases(s: &super::Story) -> usize {
    s.trace().lines().filter(|line| line.contains("conn( Connected -> Ahead )")).count()
}

/// The load swells above the link's rate and falls below it again: one or two times Ahead, and then never again.
#[test]
fn s33_a_load_that_falls_below_the_links_rate_is_in_sync_soon() {
    regression(2, &[], |k, scenario| {
        let mut s = primary(congested(scenario));
        for step in 0..160u64 {
            let busy = (10..30).contains(&step);
            for n in 0..if busy { 32 } else { 4 } {
                s.a().start_write((step * 41 + n * 16 + u64::from(k)) % 12_000, 8);
            }
            s.wait(50);
        }
        assert!((1..=3).contains(&phases(&s)), "{} times Ahead", phases(&s));
        // After three times Ahead it stays there for four seconds.
        s.wait(10_000);
        s.a().is("Connected Primary/Secondary UpToDate/UpToDate");
        s.settle();
        s.same_data();
    });
}

/// The load stays above the link's rate for long.
#[test]
fn s33_ahead_and_behind_do_not_take_turns() {
    regression(2, &[Fault::AheadFlaps], |k, scenario| {
        let mut s = primary(congested(scenario));
        for step in 0..200u64 {
            for n in 0..24 {
                s.a().start_write((step * 8 + n * 16 + u64::from(k)) % 1000, 8);
            }
            s.wait(50);
        }
        assert!(phases(&s) > 1);
        s.settle();
        s.same_data();
    });
}

/// What is written Ahead is announced and arrives.
#[test]
fn s33_what_is_written_ahead_arrives() {
    regression(8, &[Fault::AheadUnmarked], |k, scenario| {
        let mut s = primary(congested(scenario));
        for n in 0..64 {
            s.a().start_write(n * 16 + u64::from(k), 8);
        }
        s.a().becomes("Ahead");
        let write = s.a().write(4096, 8);
        s.a().becomes("Connected");
        s.settle();
        s.both_hold(write);
        s.same_data();
    });
}

/// The disk of a node that is Ahead fails: what the peer has is not shown for what was written.
#[test]
fn s33_old_data_do_not_stand_in_for_a_disk_that_fails_ahead() {
    regression(6, &[], |k, scenario| {
        let mut s = primary(congested(scenario));
        for n in 0..64 {
            s.a().start_write(n * 16, 8);
        }
        s.a().becomes("Ahead");
        let write = s.a().write(4096, 8);
        s.b().becomes("Behind");
        s.a().fail(DiskFault::Write, 1);
        let _ = s.a().try_write(4096 + 64 * u64::from(k + 1), 8);
        s.wait(3000);
        assert_eq!(s.a().try_read(4096, 8), "Io");
        s.recover();
        s.both_hold(write);
    });
}

/// A disk that hangs is given up in time, and is left alone until it has answered everything.
#[test]
fn s37_a_hung_disk_is_left_alone_until_it_has_answered() {
    regression(12, &[Fault::ClosedWithStuckIo], |k, scenario| {
        let node = turn(k, &[A, B]);
        let limit = std::time::Duration::from_millis(300);
        let mut s = primary(scenario.nodes(|n| (n.disk.disk_timeout, n.net.ko_count) = (limit, 0)));
        let old = s.a().write(0, 8);
        s.both_hold(old);
        s.on(node).stall(3000);
        for n in 0..4 {
            s.a().start_write(n * 2048 + 128 + u64::from(k) * 8, 8);
        }
        let write = s.a().write(64, 8);
        s.wait(1000);
        assert_eq!(s.on(node).disk(), crate::wire::state::DiskState::Failed);
        s.on(node).is_refused(Order::Attach);
        s.wait(3000);
        assert_eq!(s.on(node).disk(), crate::wire::state::DiskState::Diskless);
        s.on(node).attach();
        s.settle();
        s.both_hold(write);
        s.same_data();
    });
}
