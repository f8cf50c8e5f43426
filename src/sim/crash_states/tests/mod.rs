//! The crash states of every scenario are clean, and what would spoil them is noticed.

mod drbdmeta;
mod sabotage;

use super::record::{Io, SECTOR};
use super::*;
use crate::meta::Place;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Where seeds begin: `cargo xtask test` takes another place with every commit.
fn first_seed() -> u64 {
    number("UDRBD_CRASH_SEED").unwrap_or(0)
}

/// The share of each test run; more with UDRBD_CRASH_STATES in the environment.
fn clean(scenario: Scenario) {
    let few =
        Options { states: 100, exhaustive: 4, random: 1, every_data_mode: false, every: 11, ..Options::default() };
    let all = number("UDRBD_CRASH_STATES").map_or(few, |states| Options { states, ..Options::default() });
    let report = run(&Options { scenarios: vec![scenario], seed: first_seed(), ..all }).expect("played");
    println!(
        "crash states: {scenario:?}: {} states, {} recovered, {} without metadata yet",
        report.states,
        report.recovered(),
        report.blank
    );
    assert!(report.is_clean(), "{report}");
}

#[test]
fn metadata_is_created_whole_or_not_at_all() {
    clean(Scenario::Create);
}

#[test]
fn the_activity_log_forgets_nothing() {
    clean(Scenario::ActivityLog);
}

#[test]
fn the_bitmap_forgets_nothing() {
    clean(Scenario::Bitmap);
}

#[test]
fn identifiers_that_were_relied_on_are_found() {
    clean(Scenario::Identifiers);
}

#[test]
fn no_storm_leaves_a_lie() {
    clean(Scenario::Storm);
}

#[test]
fn a_failed_write_leaves_no_lie() {
    clean(Scenario::Failure);
}

/// The page write of a demotion fails; the detach that follows must not write the superblock of a Secondary without it.
#[test]
fn a_failed_page_is_written_again_before_the_primary_indicator_goes() {
    let options = Options { first_only: true, ..Options::default() };
    let recording = scenarios::play(Scenario::Failure, 11, None).expect("played");
    let mut report = Report::default();
    look_at(&recording, &options, 11, &mut report, |_, _, _| {});
    assert!(report.is_clean(), "{report}");
}

/// A link that comes back at once, while the superblock of the new generation is still being written.
#[test]
fn identifiers_are_not_sent_before_they_are_durable() {
    let effort = Options { exhaustive: 4, random: 1, every_data_mode: false, ..Options::default() };
    let options = Options { first_only: true, ..effort };
    let recording = scenarios::play(Scenario::Bitmap, 0, None).expect("played");
    let mut report = Report::default();
    look_at(&recording, &options, 0, &mut report, |_, _, _| {});
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_device_that_grows_loses_no_bit() {
    clean(Scenario::Grow);
}

#[test]
fn a_device_that_is_resized_loses_nothing() {
    clean(Scenario::Resize);
}

/// The old superblock goes first: a crash before the new one is there finds none (S23).
#[test]
fn metadata_that_are_given_up_too_early_are_noticed() {
    let effort = Options { exhaustive: 8, random: 1, every_data_mode: false, ..Options::default() };
    let options = Options { first_only: true, ..effort };
    let recording = scenarios::play(Scenario::Resize, 3, Some(Fault::OldPlaceGivenUpEarly)).expect("played");
    let mut report = Report::default();
    look_at(&recording, &options, 3, &mut report, |_, _, _| {});
    assert!(!report.is_clean());
}

/// The medium's rules, one by one.
#[test]
fn the_medium_keeps_and_loses_what_it_may() {
    let write = |value: u8, fua| Io::Write { medium: 0, sector: 7, bytes: vec![value; SECTOR].into(), fua, meta: true };
    let mut recording = Recording::new(String::new(), Place::INTERNAL, 1 << 20);
    let key = (0, 7);
    let open = |recording: &Recording| {
        let mut media = Media::new(recording);
        recording.steps.iter().for_each(|step| media.apply(recording, step));
        (media.durable.get(&key).copied(), media.open.get(&key).cloned().unwrap_or_default())
    };
    let first = recording.submit(write(1, false));
    assert_eq!(open(&recording), (None, vec![0]));
    let early = recording.submit(Io::Flush(0));
    recording.complete(first);
    recording.complete(early);
    assert_eq!(open(&recording), (None, vec![0]), "in flight when the flush was submitted");
    let second = recording.submit(write(2, false));
    let flush = recording.submit(Io::Flush(0));
    recording.complete(second);
    recording.complete(flush);
    assert_eq!(open(&recording), (Some(0), vec![2]));
    let other = recording.submit(Io::Flush(1));
    recording.complete(other);
    assert_eq!(open(&recording), (Some(0), vec![2]), "the flush of another medium");
    let durable = recording.submit(write(3, true));
    assert_eq!(open(&recording), (Some(0), vec![2, 5]));
    recording.complete(durable);
    assert_eq!(open(&recording), (Some(5), vec![]), "older values cannot come back");
    let last = recording.submit(write(4, false));
    recording.complete(last);
    let bad = recording.submit(Io::Flush(0));
    recording.failed(bad);
    let good = recording.submit(Io::Flush(0));
    recording.complete(good);
    assert_eq!(open(&recording), (Some(5), vec![6]), "no later flush makes up for a failed one");
}
