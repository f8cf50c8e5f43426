//! Resyncs: what they may forget, how they end, how often they may begin again.

use super::super::plan::{DiskFault, Order};
use super::super::scenario::{MIB, Scenario, regression};
use super::super::world::{A, B};
use super::{parted, primary, resyncing, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// A block is written while it is being synced, and the link breaks: the acknowledgement of the older data has not cleared the
/// bit of the newer.
#[test]
fn s15_an_acknowledgement_clears_no_newer_bit() {
    let bugs = [Fault::PartialBlockCleared];
    regression(40, &bugs, |k, scenario| {
        let mut s = resyncing(scenario.rate(2), 512);
        s.events(k * 4);
        for n in 0..16 {
            s.a().start_write((n * 37 + u64::from(k)) % 512 * 8 + 3, 1);
            s.events(2);
        }
        if k % 2 == 0 {
            s.wait(100);
        }
        s.reset();
        s.settle();
        s.same_data();
    });
}

/// The link was cut and nothing was written: the resync is over before it began, and a write comes in at any moment of it.
#[test]
fn s18_a_write_during_an_empty_resync_arrives() {
    regression(60, &[Fault::OutOfSyncNotSent], |k, scenario| {
        let mut s = parted(scenario, 0);
        s.heal();
        s.a().meets();
        s.events(k);
        let write = s.a().start_write(64, 8);
        s.settle();
        s.same_data();
        s.both_hold(write);
    });
}

/// The link breaks, or either node dies, at every packet of a resync's end: what is synced again is no more than what was dirty
/// (and the hot extents, after a crash of the Primary).
#[test]
fn s27_no_full_resync_when_the_end_is_disturbed() {
    let bugs = [Fault::SourceDoneEarly, Fault::TargetDoneEarly];
    regression(60, &bugs, |k, scenario| {
        let mut s = resyncing(scenario, 16);
        s.packets(k / 3);
        let limit = match k % 3 {
            0 => {
                s.reset();
                16
            }
            1 => {
                s.b().crash();
                s.b().restart();
                16
            }
            _ => {
                s.a().crash();
                s.a().restart();
                16 + 1024
            }
        };
        let mut most = 0;
        s.until("the resync is over", |s| {
            most = most.max(s.bits(A, 0)).max(s.bits(B, 0));
            s.state(A, 0).starts_with("Connected") && s.state(B, 0) == "Connected Secondary/Primary UpToDate/UpToDate"
                || s.state(B, 0) == "Connected Secondary/Secondary UpToDate/UpToDate"
        });
        assert!(most <= limit, "{most} blocks were to be synced, {limit} were dirty");
        s.settle();
        s.same_data();
    });
}

/// A block goes bad behind the resync's cursor: it is asked for again before the resync ends.
#[test]
fn s31_a_bit_set_behind_the_cursor_is_asked_for() {
    regression(30, &[Fault::CursorNeverBack], |k, scenario| {
        let mut s = resyncing(scenario.on_io_error(OnIoError::PassOn).rate(1), 512);
        s.wait(60 + u64::from(k) * 30);
        s.b().fail(DiskFault::Write, 1);
        let behind = s.a().start_write(0, 8);
        s.wait(4000);
        assert!(!s.bit(B, 0, 0) || !s.state(B, 0).contains("UpToDate/UpToDate"), "good, and yet a bit is set");
        s.recover();
        s.same_data();
        s.both_hold(behind);
    });
}

/// A full sync is interrupted after every share of it, by the link or either node, with and without power: it goes on where the
/// bitmap says, and the target is not called good before it is done.
#[test]
fn s32_an_interrupted_full_sync_goes_on() {
    let bugs = [Fault::ConsistentEarly, Fault::ClearedPageWithoutFlush];
    regression(54, &bugs, |k, scenario| {
        let mut s = full_sync(if k % 2 == 0 { scenario.external_meta() } else { scenario });
        s.wait(u64::from(k) * 80);
        let before = s.bits(A, 0);
        let mut slack = 0;
        match k % 6 {
            0 => s.reset(),
            // Bits that were cleared in memory only come back, whichever node forgets them.
            1 => {
                s.b().crash();
                s.b().restart();
                slack = u64::MAX;
            }
            2 => {
                s.b().power_cut();
                s.b().restart();
                slack = u64::MAX;
            }
            3 => {
                s.a().crash();
                s.a().restart();
                slack = u64::MAX;
            }
            4 => {
                s.blackout();
                s.b().restart();
                s.a().restart();
                slack = u64::MAX;
            }
            _ => {
                s.cut();
                let done = s.state(B, 0).contains("UpToDate/");
                s.b().power_cut();
                s.b().restart();
                s.wait(50);
                if !done {
                    s.b().is_refused(Order::Primary { force: false });
                }
                s.heal();
                slack = u64::MAX;
            }
        }
        if !s.state(B, 0).contains("UpToDate/UpToDate") {
            s.until("B is connected again", |s| {
                s.state(B, 0).starts_with("Sync") || s.state(B, 0).starts_with("Connected")
            });
            assert!(s.bits(B, 0) <= before.saturating_add(slack), "{} bits now, {before} then", s.bits(B, 0));
        }
        s.settle();
        s.same_data();
    });
}

/// Data on A, metadata just created: A is forced and everything goes over.
fn full_sync(scenario: Scenario) -> super::Story {
    let mut s = scenario.rate(2).fresh();
    s.cut();
    s.a().becomes("WFConnection");
    s.a().force();
    for n in 0..6 {
        s.a().write(n * 2048, 512);
    }
    s.heal();
    s.a().becomes("SyncSource");
    s
}

/// The source cannot read what it should send: the target does not get zeroes, and is not called good without the block.
#[test]
fn s40_a_read_error_of_the_source_leaves_the_block_out_of_sync() {
    regression(24, &[Fault::ClearedWhenAsked, Fault::TargetDoneEarly], |k, scenario| {
        let policy = turn(k, &[OnIoError::PassOn, OnIoError::Detach]);
        let mut s = resyncing(scenario.on_io_error(policy).rate(1), 512);
        s.wait(u64::from(k) * 60);
        s.a().fail(DiskFault::Read, 1);
        s.wait(3000);
        let failed = s.trace().contains("FAILS");
        assert!(!failed || !s.state(B, 0).contains("Secondary/Primary UpToDate"), "B {}", s.state(B, 0));
        s.reset();
        s.recover();
        s.same_data();
    });
}

/// The same, and nobody helps with a reconnect: the source, too, notices that the resync is over.
#[test]
fn s40_a_resync_with_failed_blocks_ends_on_both_nodes() {
    regression(1, &[Fault::ClearedWhenAsked], |_, scenario| {
        let mut s = resyncing(scenario.on_io_error(OnIoError::PassOn).rate(4), 256);
        s.a().fail(DiskFault::Read, 1);
        s.b().becomes("Connected Secondary/Primary Inconsistent/UpToDate");
        s.wait(3000);
        s.a().is("Connected Primary/Secondary UpToDate/Inconsistent");
    });
}

/// A full sync of a Primary that goes on writing, ordered from either side.
#[test]
fn s32_an_ordered_full_sync_that_is_interrupted_goes_on() {
    regression(24, &[], |k, scenario| {
        let mut s = primary(scenario.rate(8).volumes(&[[12 * MIB; 2]]).nodes(|n| n.disk_ns = 1_000_000));
        for n in 0..8 {
            s.a().write(n * 2048, 256);
        }
        if k % 2 == 0 {
            s.b().orders(Order::Invalidate);
        } else {
            s.a().orders(Order::InvalidateRemote);
        }
        s.b().becomes("SyncTarget");
        s.wait(u64::from(k) * 60);
        for n in 0..40 {
            s.a().start_write((n * 61 + u64::from(k)) % 1900 * 8, 8);
            s.events(3);
        }
        match k / 2 % 3 {
            0 => s.reset(),
            1 => {
                s.b().power_cut();
                s.b().restart();
            }
            _ => s.wait(100),
        }
        s.settle();
        s.same_data();
    });
}
