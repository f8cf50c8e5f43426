//! What a node says of itself only once, at the end of a resync or beside it: the other node must not miss it.

use super::super::plan::{DiskFault, Order};
use super::super::scenario::regression;
use super::{parted, resyncing};
use crate::engine::options::OnIoError;

/// The target of a resync is demoted just when it is done: the source, which waits for the last acknowledgements, learns the end and
/// the role from the same word.
#[test]
fn the_role_that_came_with_the_end_of_a_resync_was_not_known() {
    regression(40, &[], |k, scenario| {
        let mut s = resyncing(scenario.rate(1), 1024);
        s.a().demote();
        s.b().promote();
        s.b().becomes("SyncTarget Primary/Secondary");
        s.until_line("B is done", |line| line.contains(" B vol 0 log: Resync done"));
        s.events(k);
        s.b().start_order(Order::Secondary { close: true });
        s.calm();
        s.wait(500);
        s.a().is("Connected Secondary/Secondary UpToDate/UpToDate");
        s.b().is("Connected Secondary/Secondary UpToDate/UpToDate");
    });
}

/// The source's disk fails just when the target says that it is done: the word went with the resync, and a Primary whose only data
/// were the peer's took those for bad. What it writes from here on, its own disk misses.
#[test]
fn a_good_peer_was_bad_for_a_source_that_lost_its_disk() {
    regression(60, &[], |k, scenario| {
        let mut s = resyncing(scenario.nodes(|n| n.disk_ns = 100_000), 8);
        s.until_line("B is done", |line| line.contains(" B vol 0 log: Resync done"));
        s.events(k);
        s.a().fail(DiskFault::Write, 1);
        let write = s.a().start_write(8000, 8);
        s.wait(200);
        s.b().is("Connected Secondary/Primary UpToDate/Diskless");
        s.a().is("Connected Primary/Secondary Diskless/UpToDate");
        s.a().reads(8000, 8, write);
        s.recover();
        s.same_data();
        s.both_hold(write);
    });
}

/// The initial sync is skipped where the peer has no disk to follow: it is Diskless after as before, and is synced when it attaches.
#[test]
fn skipping_the_initial_sync_gave_a_diskless_peer_a_disk() {
    regression(2, &[], |k, scenario| {
        let mut s = scenario.fresh();
        s.b().detach();
        s.calm();
        s.a().skip_sync();
        s.wait(200);
        s.a().is("Connected Secondary/Secondary UpToDate/Diskless");
        s.b().is("Connected Secondary/Secondary Diskless/UpToDate");
        let write = (k == 1).then(|| {
            s.a().promote();
            s.a().write(0, 8)
        });
        s.b().attach();
        s.settle();
        s.same_data();
        if let Some(write) = write {
            s.both_hold(write);
        }
    });
}

/// The initial sync is skipped while the peer's word of the connect, that its disk is Inconsistent, is still on its way.
#[test]
fn an_older_word_of_a_disk_that_skipped_the_initial_sync_was_the_last_one() {
    regression(40, &[], |k, scenario| {
        let mut s = scenario.created();
        s.a().restart();
        s.b().restart();
        s.a().becomes("Connected");
        s.events(k);
        s.a().skip_sync();
        s.calm();
        s.wait(200);
        s.a().is("Connected Secondary/Secondary UpToDate/UpToDate");
        s.b().is("Connected Secondary/Secondary UpToDate/UpToDate");
    });
}

/// A write that fails on the target falls into a reply that is under way: the source keeps only what that write touched, and the
/// target, which gave up with a bad disk, is not waited for.
#[test]
fn a_source_waited_for_a_target_that_had_given_up() {
    regression(80, &[], |k, scenario| {
        let scenario = scenario.on_io_error(OnIoError::PassOn).nodes(|n| n.disk_ns = 300_000);
        let mut s = parted(scenario, 1024);
        s.heal();
        s.b().becomes("SyncTarget");
        s.b().fail(DiskFault::Write, 2);
        s.events(k % 40);
        for n in 0..3 {
            s.a().start_write(800 + n * 1024 + u64::from(k / 40) * 8, 8);
        }
        s.wait(8000);
        s.reset();
        s.recover();
        s.same_data();
    });
}

/// The same on the source: its disk fails a write that the target has, in the midst of a range that is on its way to the target.
#[test]
fn the_blocks_around_a_write_that_failed_on_the_source_kept_it_waiting() {
    regression(60, &[], |k, scenario| {
        let scenario = scenario.on_io_error(OnIoError::PassOn).nodes(|n| n.disk_ns = 300_000);
        let mut s = parted(scenario, 512);
        s.heal();
        s.a().becomes("SyncSource");
        s.events(k);
        s.a().fail(DiskFault::Write, 1);
        s.a().start_write(800, 8);
        s.wait(8000);
        s.a().is("Connected Primary/Secondary UpToDate/UpToDate");
        s.b().is("Connected Secondary/Primary UpToDate/UpToDate");
    });
}
