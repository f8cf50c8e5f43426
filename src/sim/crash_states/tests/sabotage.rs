//! Recordings are spoilt as a wrong node would spoil them: each way must be noticed.

use super::super::record::{Io, OpNr, Step};
use super::super::*;

/// Looks at a recording after `spoil` had its way; the report.
fn spoilt(scenario: Scenario, seed: u64, spoil: impl Fn(&mut Recording)) -> Report {
    let effort = Options { exhaustive: 8, random: 1, every_data_mode: false, ..Options::default() };
    let options = Options { first_only: true, ..effort };
    let mut recording = scenarios::play(scenario, seed, None).expect("played");
    spoil(&mut recording);
    let mut report = Report::default();
    look_at(&recording, &options, seed, &mut report, |_, _, _| {});
    report
}

fn without(recording: &mut Recording, gone: impl Fn(&Io) -> bool) {
    let gone: Vec<OpNr> = (0..).zip(&recording.ops).filter(|(_, io)| gone(io)).map(|(nr, _)| nr).collect();
    assert!(!gone.is_empty(), "nothing to take away");
    let start = recording.start;
    let mut nr = 0;
    recording.steps.retain(|step| {
        nr += 1;
        nr <= start || !matches!(step, Step::Submit(op) | Step::Complete(op) if gone.contains(op))
    });
}

/// The step at which an operation was submitted.
fn step_of(recording: &Recording, op: OpNr) -> usize {
    recording.steps.iter().position(|step| matches!(step, Step::Submit(nr) if *nr == op)).expect("submitted")
}

fn without_fua(recording: &mut Recording) {
    for io in &mut recording.ops {
        if let Io::Write { meta: true, fua, .. } = io {
            *fua = false;
        }
    }
}

#[test]
fn a_missing_metadata_flush_is_noticed() {
    let report = spoilt(Scenario::ActivityLog, 0, |r| without(r, |io| matches!(io, Io::Flush(_))));
    assert!(!report.is_clean());
}

#[test]
fn metadata_writes_without_fua_are_noticed() {
    let report = spoilt(Scenario::ActivityLog, 0, without_fua);
    assert!(!report.is_clean());
}

#[test]
fn a_missing_data_flush_is_noticed() {
    // Of the seeds with a medium of its own for metadata.
    let report = spoilt(Scenario::Bitmap, 3, |r| without(r, |io| matches!(io, Io::Flush(0))));
    assert!(!report.is_clean());
}

#[test]
fn missing_bitmap_pages_are_noticed() {
    let report = spoilt(Scenario::ActivityLog, 1, |recording| {
        // Pages are the metadata writes without FUA. Those before the first write of data stay: they clear all bits.
        let data = |op: &OpNr| matches!(recording.ops[*op as usize], Io::Write { meta: false, .. });
        let first = (0..).zip(&recording.ops).map(|(nr, _)| nr).find(data).expect("data is written");
        recording.start = step_of(recording, first);
        without(recording, |io| matches!(io, Io::Write { meta: true, fua: false, .. }));
    });
    assert!(!report.is_clean());
}

#[test]
fn create_md_without_its_first_flush_is_noticed() {
    let report = spoilt(Scenario::Create, 0, |recording| {
        // The second creation begins after the peer was named; its first flush orders the disowning.
        let first = recording.steps.iter().position(|step| matches!(step, Step::Fact(Fact::Peer(_))));
        let from = first.expect("in use");
        let flush = recording.steps.iter().skip(from).find_map(|step| match step {
            Step::Submit(op) if matches!(recording.ops[*op as usize], Io::Flush(_)) => Some(*op),
            _ => None,
        });
        let flush = flush.expect("a flush");
        recording.steps.retain(|step| !matches!(step, Step::Submit(op) | Step::Complete(op) if *op == flush));
    });
    assert!(!report.is_clean());
}
