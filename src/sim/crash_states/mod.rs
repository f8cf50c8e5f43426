//! Every crash of a run that writes metadata: what may be on the medium then, read by the real reader.
//!
//! A scenario is played once and recorded ([`record`]). For every prefix of its steps the medium says which sectors are
//! open ([`medium`], after docs/metadata.md, "What we assume of a medium"); a choice of values ([`choose`]) makes an image,
//! and the model ([`model`]) says whether it is one that the node may leave behind: it can be attached, identifiers and
//! flags are those that were relied on or later ones, what a superblock vouches for is there, and where the replicas differ
//! a bit or a hot extent says so. Takes in [`Options`]; gives out a [`Report`]. Deterministic.

mod choose;
mod medium;
mod model;
mod record;
mod sample;
mod scenarios;
mod shape;
#[cfg(test)]
mod tests;
mod world;

use std::collections::BTreeMap;
use std::fmt;

use choose::{Effort, choices};
use medium::{Image, Media};
use model::{Found, Model};
use record::{Fact, Recording};
pub use sample::{SampledImage, sample};

use crate::engine::fault::Fault;
use crate::engine::load::LoadError;
use crate::engine::rng::Rng;
use crate::meta::MetaError;

/// Most violations that a report lists.
const LISTED_MAX: usize = 20;

/// A kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// `create-md` on an empty device and over metadata in use.
    Create,
    /// A Primary alone: the activity log's ring wraps, extents are evicted.
    ActivityLog,
    /// Bitmap write-out and resync, as source and as target.
    Bitmap,
    /// Generations and roles, full syncs, `al-updates`.
    Identifiers,
    /// Anything in any order.
    Storm,
    /// A metadata write fails.
    Failure,
    /// The agreed size grows.
    Grow,
    /// The devices grow, and the metadata move.
    Resize,
}

impl Scenario {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Create,
        Self::ActivityLog,
        Self::Bitmap,
        Self::Identifiers,
        Self::Storm,
        Self::Failure,
        Self::Grow,
        Self::Resize,
    ];
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Scenarios are played with growing seeds until so many states with metadata were looked at.
    pub states: u64,
    /// First seed.
    pub seed: u64,
    /// Which runs.
    pub scenarios: Vec<Scenario>,
    /// Up to this many combinations of open metadata sectors of one step all are taken.
    pub exhaustive: usize,
    /// Random ones where there are more.
    pub random: usize,
    /// Each of them is joined with data writes that are all lost, all kept, and something in between; otherwise with one of
    /// these.
    pub every_data_mode: bool,
    /// Only each so many-th crash point is looked at; 1 for all.
    pub every: usize,
    /// The first violation of a run ends it.
    pub first_only: bool,
    /// Mistake that the engines make, to prove that it is noticed.
    pub fault: Option<Fault>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            states: 100_000,
            seed: 0,
            scenarios: Scenario::ALL.to_vec(),
            exhaustive: 64,
            random: 8,
            every_data_mode: true,
            every: 1,
            first_only: false,
            fault: None,
        }
    }
}

/// A crash that must not leave what it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Scenario and seed.
    pub run: String,
    /// Steps that were carried out.
    pub step: usize,
    /// Which values the open sectors had, as "medium:sector=operation".
    pub image: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, step {}: {} [{}]", self.run, self.step, self.what, self.image)
    }
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Runs played, recoveries among them.
    pub runs: u64,
    /// Crash points.
    pub steps: u64,
    /// Crash points of which every combination of metadata sectors was looked at.
    pub exhaustive: u64,
    /// Images read.
    pub states: u64,
    /// Images without metadata, where there need not be any yet; all others are attached.
    pub blank: u64,
    /// Images by scenario.
    pub by_scenario: BTreeMap<Scenario, u64>,
    /// Number of violations.
    pub violations: u64,
    /// The first of them.
    pub listed: Vec<Violation>,
}

impl Report {
    /// Whether nothing was wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violations == 0
    }

    /// Images that were attached and satisfy everything that must hold of them.
    #[must_use]
    pub const fn recovered(&self) -> u64 {
        self.states - self.blank - self.violations
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} crash states ({} recovered, {} without metadata) at {} steps ({} exhaustively) of {} runs, {} violations",
            self.states,
            self.recovered(),
            self.blank,
            self.steps,
            self.exhaustive,
            self.runs,
            self.violations
        )?;
        for (scenario, states) in &self.by_scenario {
            writeln!(f, "  {scenario:?}: {states}")?;
        }
        self.listed.iter().try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

/// Why a run could not be played: its metadata cannot be created or read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// While it was created.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// At an attach.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Looks at crash states until there were as many as asked for.
///
/// # Errors
/// [`Error`] when a run cannot be played.
pub fn run(options: &Options) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut seed = options.seed;
    while report.states - report.blank < options.states && !options.scenarios.is_empty() {
        for scenario in &options.scenarios {
            let recording = scenarios::play(*scenario, seed, options.fault)?;
            let before = report.states;
            let mut again = Vec::new();
            look_at(&recording, options, seed, &mut report, |image, peer, turn| {
                // Crashes of a few recoveries, too.
                if turn % 997 == 500 && again.len() < 4 {
                    again.extend(scenarios::recovery(&recording, image, peer.clone()).ok());
                }
            });
            for recording in again {
                look_at(&recording, options, seed, &mut report, |_, _, _| {});
            }
            *report.by_scenario.entry(*scenario).or_default() += report.states - before;
        }
        seed += 1;
    }
    Ok(report)
}

/// Every crash of one recording. `each` sees the images before they are recovered, with the peer and a running number.
fn look_at(
    recording: &Recording,
    options: &Options,
    seed: u64,
    report: &mut Report,
    mut each: impl FnMut(&Image<'_>, &Fact, u64),
) {
    let effort =
        Effort { exhaustive: options.exhaustive, random: options.random, every_data_mode: options.every_data_mode };
    let (mut media, mut model, mut rng) = (Media::new(recording), Model::new(recording), Rng::new(seed));
    report.runs += 1;
    let (mut turn, mut point) = (0, usize::try_from(seed % 1024).unwrap_or(0));
    for (nr, step) in recording.steps.iter().enumerate() {
        let matters = model.apply(recording, &media, step);
        media.apply(recording, step);
        if nr < recording.start || !matters {
            continue;
        }
        point += 1;
        if point % options.every.max(1) != 0 {
            continue;
        }
        if options.first_only && report.violations > 0 {
            return;
        }
        report.steps += 1;
        let peer = model.peer();
        let mut judge = model.judge(recording, &media);
        let all = choices(recording, &media, effort, &mut rng, |choice| {
            let mut image = Image::new(recording, &media, choice);
            each(&image, &peer, turn);
            turn += 1;
            report.states += 1;
            match judge.check(&mut image) {
                Ok(Found::Metadata) => {}
                Ok(Found::Nothing) => report.blank += 1,
                Err(what) => {
                    report.violations += 1;
                    if report.listed.len() < LISTED_MAX {
                        let run = recording.name.clone();
                        report.listed.push(Violation { run, step: nr + 1, image: image.describe(), what });
                    }
                }
            }
        });
        report.exhaustive += u64::from(all);
    }
}
