//! A few images out of all, for a reader that takes long: the real `drbdmeta`.
//!
//! Takes in a number and a seed; gives out images from every scenario, from runs with metadata inside and outside, drawn
//! from all crash points alike. Nothing is judged here.

use std::collections::BTreeMap;

use super::choose::any_metadata;
use super::medium::{Image, Media};
use super::model::Model;
use super::record::{Recording, SECTOR};
use super::{Error, Scenario, scenarios};
use crate::engine::rng::Rng;
use crate::meta::Place;

/// A run is expensive where few images are wanted, and all look alike where they are many.
const IMAGES_PER_RUN: usize = 4;

/// Sectors of a device that a crash left behind.
#[derive(Clone, Debug)]
pub struct SampledImage {
    /// Which kind of run.
    pub scenario: Scenario,
    /// Scenario, seed and step.
    pub name: String,
    /// Where the metadata are.
    pub place: Place,
    /// Size of the device with the metadata, in bytes.
    pub size_bytes: u64,
    /// The sectors of the metadata that were ever written, by number.
    pub sectors: BTreeMap<u64, [u8; SECTOR]>,
}

/// `count` images from all scenarios (rounded up to as many from each), of runs from `seed` on.
///
/// # Errors
/// [`Error`] when a run cannot be played.
pub fn sample(seed: u64, count: usize) -> Result<Vec<SampledImage>, Error> {
    let mut images = Vec::new();
    let share = count.div_ceil(Scenario::ALL.len() - 1);
    let runs = share.div_ceil(IMAGES_PER_RUN);
    // Seeds with an odd number have external metadata: every other scenario begins with one.
    // Where metadata are in the middle of a move, drbdmeta needs its own file to find them.
    for (first, scenario) in (seed..).zip(Scenario::ALL.iter().filter(|scenario| **scenario != Scenario::Resize)) {
        let mut left = share;
        for (seed, runs_left) in (first..).zip((1..=runs).rev()) {
            let recording = scenarios::play(*scenario, seed, None)?;
            let drawn = draw(*scenario, &recording, left.div_ceil(runs_left), &mut Rng::new(seed));
            left -= drawn.len();
            images.extend(drawn);
        }
    }
    Ok(images)
}

/// At most `count` images of one recording; each crash point is as likely as the others.
fn draw(scenario: Scenario, recording: &Recording, count: usize, rng: &mut Rng) -> Vec<SampledImage> {
    let (mut media, mut model) = (Media::new(recording), Model::new(recording));
    let mut drawn: Vec<SampledImage> = Vec::new();
    let mut points = 0_u64;
    for (nr, step) in recording.steps.iter().enumerate() {
        let matters = model.apply(recording, &media, step);
        media.apply(recording, step);
        if nr < recording.start || !matters {
            continue;
        }
        points += 1;
        // The first ones are taken; a later one takes the place of one of them with a falling chance.
        let slot = usize::try_from(rng.next_u64() % points).unwrap_or(usize::MAX);
        if drawn.len() >= count && slot >= count {
            continue;
        }
        let image = Image::new(recording, &media, any_metadata(recording, &media, rng));
        let taken = SampledImage {
            scenario,
            name: format!("{}, step {}", recording.name, nr + 1),
            place: recording.place,
            size_bytes: recording.meta_bytes,
            sectors: image.metadata(),
        };
        if drawn.len() < count {
            drawn.push(taken);
        } else if let Some(old) = drawn.get_mut(slot) {
            *old = taken;
        }
    }
    drawn
}
