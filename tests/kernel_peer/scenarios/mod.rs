//! The scenarios, by what they are about.

mod congestion;
mod crash;
mod disk_loss;
mod fencing;
mod io_errors;
mod metadata;
mod refusals;
mod resize;
mod resync;
mod split_brain;
mod sync;
mod two_primaries;

use xtask::harness::{Case, Verdict};
use xtask::lab::{Kernel, selftest};

use crate::bench::{Bench, Outcome};

/// In the order in which they run: those that leave the kernel node running first.
pub const ALL: &[Case<Bench>] = &[
    Case { name: "lab::two_kernel_nodes", run: two_kernel_nodes },
    Case { name: "lab::newer_kernel", run: newer_kernel },
    Case { name: "sync::first_sync_from_the_kernel", run: sync::first_sync_from_the_kernel },
    Case { name: "sync::first_sync_from_udrbd", run: sync::first_sync_from_udrbd },
    Case { name: "sync::first_sync_at_a_regulated_rate", run: sync::first_sync_at_a_regulated_rate },
    Case { name: "sync::protocol_a", run: sync::protocol_a },
    Case { name: "sync::protocol_b", run: sync::protocol_b },
    Case { name: "sync::protocol_c", run: sync::protocol_c },
    Case { name: "sync::two_volumes", run: sync::two_volumes },
    Case { name: "sync::discards_and_zeroes", run: sync::discards_and_zeroes },
    Case { name: "resync::kernel_is_source_after_a_cut", run: resync::kernel_is_source_after_a_cut },
    Case { name: "resync::udrbd_is_source_after_a_cut", run: resync::udrbd_is_source_after_a_cut },
    Case { name: "resync::disconnect_and_connect_both_ways", run: resync::disconnect_and_connect_both_ways },
    Case { name: "resync::verify_finds_nothing", run: resync::verify_finds_nothing },
    Case { name: "resync::verify_finds_what_changed_underneath", run: resync::verify_finds_what_changed_underneath },
    Case {
        name: "disk_loss::udrbd_primary_goes_on_over_the_peer",
        run: disk_loss::udrbd_primary_goes_on_over_the_peer,
    },
    Case { name: "disk_loss::kernel_primary_goes_on_over_udrbd", run: disk_loss::kernel_primary_goes_on_over_udrbd },
    Case { name: "disk_loss::inconsistent_udrbd_primary_reads", run: disk_loss::inconsistent_udrbd_primary_reads },
    Case { name: "disk_loss::inconsistent_kernel_primary_reads", run: disk_loss::inconsistent_kernel_primary_reads },
    Case { name: "io_errors::udrbd_primary_write_error", run: io_errors::udrbd_primary_write_error },
    Case { name: "io_errors::udrbd_secondary_write_error", run: io_errors::udrbd_secondary_write_error },
    Case { name: "io_errors::kernel_primary_read_error", run: io_errors::kernel_primary_read_error },
    Case { name: "io_errors::kernel_secondary_write_error", run: io_errors::kernel_secondary_write_error },
    Case { name: "congestion::udrbd_pulls_ahead", run: congestion::udrbd_pulls_ahead },
    Case { name: "congestion::kernel_pulls_ahead", run: congestion::kernel_pulls_ahead },
    Case { name: "congestion::udrbd_disconnects", run: congestion::udrbd_disconnects },
    Case { name: "two_primaries::concurrent_writers", run: two_primaries::concurrent_writers },
    Case { name: "two_primaries::cut_and_resolved", run: two_primaries::cut_and_resolved },
    Case { name: "two_primaries::both_freeze_and_go_on", run: two_primaries::both_freeze_and_go_on },
    Case { name: "fencing::suspended_by_the_administrator", run: fencing::suspended_by_the_administrator },
    Case {
        name: "fencing::a_diskless_udrbd_primary_waits_for_the_kernel",
        run: fencing::a_diskless_udrbd_primary_waits_for_the_kernel,
    },
    Case {
        name: "fencing::the_secondary_is_outdated_by_a_disconnect",
        run: fencing::the_secondary_is_outdated_by_a_disconnect,
    },
    Case { name: "fencing::exit_codes_under_resource_only", run: fencing::exit_codes_under_resource_only },
    Case { name: "fencing::exit_codes_under_stonith", run: fencing::exit_codes_under_stonith },
    Case { name: "fencing::a_promotion_asks_the_helper", run: fencing::a_promotion_asks_the_helper },
    Case { name: "split_brain::the_victims_data_come_back", run: split_brain::the_victims_data_come_back },
    Case { name: "metadata::kernel_disk_to_udrbd_and_back", run: metadata::kernel_disk_to_udrbd_and_back },
    Case { name: "metadata::dumps_are_equal", run: metadata::dumps_are_equal },
    Case { name: "refusals::of_udrbd", run: refusals::of_udrbd },
    Case { name: "refusals::of_the_kernel", run: refusals::of_the_kernel },
    Case { name: "refusals::settings_that_differ", run: refusals::settings_that_differ },
    Case { name: "resize::by_udrbd", run: resize::by_udrbd },
    Case { name: "resize::by_the_kernel", run: resize::by_the_kernel },
    Case { name: "resize::the_kernel_takes_a_moved_disk_over", run: resize::the_kernel_takes_a_moved_disk_over },
    Case { name: "crash::udrbd_killed_as_primary_under_load", run: crash::udrbd_killed_as_primary_under_load },
    Case { name: "crash::udrbd_killed_as_secondary_under_load", run: crash::udrbd_killed_as_secondary_under_load },
    Case { name: "crash::kernel_killed_and_udrbd_takes_over", run: crash::kernel_killed_and_udrbd_takes_over },
];

/// The lab itself: kernel against kernel, so that a failure elsewhere is ours.
fn two_kernel_nodes(_: &mut Bench) -> Outcome {
    selftest::run(&Kernel::debian(), &mut |_| {})?;
    Ok(())
}

/// The same with the newer kernel that the environment names.
fn newer_kernel(_: &mut Bench) -> Outcome {
    let Some(kernel) = Kernel::from_environment() else {
        return Err(Verdict::Skipped(format!("{} names no kernel", xtask::lab::KERNEL_VARIABLE)));
    };
    selftest::run(&kernel, &mut |_| {})?;
    Ok(())
}

/// Fails with `complaint` unless `holds`.
fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Verdict::Failed(complaint())) }
}
