//! What reads may show while disks come and go: old data on a disk that nobody marked, and what is no promise.

use super::super::plan::{DiskFault, Order};
use super::super::scenario::regression;
use super::super::world::A;
use super::{primary, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;
use crate::wire::params::ReplProtocol;

/// A Primary without a disk gets its old one back, and the link breaks or the peer's disk fails while bitmaps are exchanged: the
/// source's bits never came, so no bit says which blocks of the old disk are old.
#[test]
fn a_target_without_the_sources_bitmap_read_from_its_old_disk() {
    regression(30, &[Fault::BitsBelievedEarly], |k, scenario| {
        let scenario = scenario.fragments().on_io_error(OnIoError::Detach).node(1, |n| n.disk_ns = 1_000_000);
        let mut s = primary(scenario);
        s.a().write_fua(0, 8);
        s.a().detach();
        // Not an extent that is hot here: the activity log marks all of that.
        s.a().write_fua(9600, 8);
        s.a().start_order(Order::Attach);
        if k % 2 == 0 {
            s.until("A waits for bits or has them", |s| s.state(A, 0).contains("Inconsistent/"));
            s.cut();
            s.a().becomes("WFConnection");
        } else {
            s.events(k);
            s.b().fail(DiskFault::Meta, 5);
        }
        s.wait(300);
        // Words about old data come from the checker.
        s.a().try_read(9600, 8);
        s.a().try_read(9600, 8);
        s.recover();
        s.same_data();
    });
}

/// The disk of a Primary waits for the peer to say what it is, and the peer is silent: an order to outdate it made it UpToDate.
#[test]
fn outdating_a_disk_that_is_not_judged_made_it_good() {
    regression(3, &[], |k, scenario| {
        let protocol = turn(k, &[ReplProtocol::C, ReplProtocol::B, ReplProtocol::A]);
        let mut s = primary(scenario.protocol(protocol));
        s.a().write_fua(0, 8);
        s.a().detach();
        s.a().write_fua(0, 8);
        s.silent_cut();
        s.a().start_order(Order::Attach);
        s.wait(20);
        s.a().is("Connected Primary/Secondary Negotiating/UpToDate");
        let words = s.a().is_refused(Order::Outdate);
        assert!(words.contains("LowerThanOutdated"), "{words}");
        s.a().is("Connected Primary/Secondary Negotiating/UpToDate");
        s.a().try_read(0, 8);
        s.heal();
        s.recover();
        s.same_data();
    });
}

/// The peer's disk fails a write, that is passed on, and the power of the peer fails before its superblock says so: it comes back and
/// calls itself good, in the generation that it had. What this node wrote meanwhile it must not call itself good without.
#[test]
fn a_bad_disk_that_forgot_it_in_a_power_cut_was_good_without_the_writes_it_missed() {
    regression(24, &[Fault::DegradedKeepsUuid], |k, scenario| {
        let protocol = turn(k, &[ReplProtocol::C, ReplProtocol::B, ReplProtocol::A]);
        let scenario = scenario.protocol(protocol).on_io_error(OnIoError::PassOn).external_meta();
        // The superblock takes longer than the word about it.
        let mut s = primary(scenario.node(1, |n| n.meta_ns = Some(20_000_000)));
        s.a().write_fua(0, 64);
        s.b().fail(DiskFault::Write, 1);
        s.a().start_write(0, 8);
        s.a().becomes("Connected Primary/Secondary UpToDate/Inconsistent");
        s.events(k / 3);
        s.b().power_cut();
        s.a().becomes("WFConnection Primary/Unknown UpToDate/Inconsistent");
        let late = s.a().write_fua(16, 8);
        s.b().restart();
        s.settle();
        s.same_data();
        s.both_hold(late);
    });
}
