//! What may be found where: for every sector that clients wrote, the writes that it may still show. Part of the model.

use super::model::{INITIAL, NEVER, Tick};
use super::stamp::WriteId;

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) write: WriteId,
    /// Zone of this value in `era`: first end and last beginning of an operation with it.
    pub(super) first_end: Tick,
    pub(super) last_begin: Tick,
    pub(super) era: u64,
    /// Where it was seen while it was not acknowledged.
    pub(super) sight: Option<Sight>,
}

/// Reads of one disk that returned a write which was not acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The node whose disk it was.
    pub(super) disk: usize,
    /// First end and last beginning of such a read.
    pub(super) first_end: Tick,
    pub(super) last_begin: Tick,
}

impl Candidate {
    /// A value that nobody has seen in this era.
    pub(super) const fn new(write: WriteId, last_begin: Tick, era: u64) -> Self {
        Self { write, first_end: NEVER, last_begin, era, sight: None }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct SectorState {
    pub(super) candidates: Vec<Candidate>,
    /// The value from before the era that was seen in it.
    pub(super) chosen: Option<(u64, WriteId)>,
}

#[derive(Debug)]
pub(super) struct VolumeModel {
    /// Index into `states`, by sector; 0: only the initial zeroes were ever there.
    pub(super) index: Vec<u32>,
    pub(super) states: Vec<SectorState>,
    /// Sectors that clients wrote, in the order of `states`, which has one more at its front.
    pub(super) sectors: Vec<u64>,
    pub(super) writes: Vec<WriteId>,
    /// Counts the moments at which contents may go back: crashes, failovers, resolutions.
    pub(super) era: u64,
    pub(super) era_start: Tick,
}

impl VolumeModel {
    pub(super) fn position(sector: u64) -> usize {
        usize::try_from(sector).unwrap_or(usize::MAX)
    }

    pub(super) fn state(&self, sector: u64) -> &SectorState {
        let index = self.index.get(Self::position(sector)).copied().unwrap_or(0);
        &self.states[index as usize]
    }

    /// Only the initial zeroes were ever there.
    pub(super) fn is_untouched(&self, sector: u64) -> bool {
        self.index.get(Self::position(sector)).copied().unwrap_or(0) == 0
    }

    pub(super) fn state_mut(&mut self, sector: u64) -> &mut SectorState {
        let slot = &mut self.index[Self::position(sector)];
        if *slot == 0 {
            *slot = u32::try_from(self.states.len()).unwrap_or(0);
            let candidates = vec![Candidate::new(INITIAL, 0, 0)];
            self.states.push(SectorState { candidates, chosen: None });
            self.sectors.push(sector);
        }
        &mut self.states[*slot as usize]
    }

    /// Sectors that clients wrote, in ascending order.
    pub(super) fn touched(&self) -> Vec<u64> {
        let mut sectors = self.sectors.clone();
        sectors.sort_unstable();
        sectors
    }
}
