//! Looks into a running engine for the simulator's checkers; nothing here changes anything.

use crate::engine::Engine;
use crate::engine::dirty::Bitmap;
use crate::engine::state::VolumeState;
use crate::units::{SectorRange, VolumeNr};

/// How much the engine's collections hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct HighWater {
    /// Writes and reads on the peer's behalf.
    pub peer_requests: usize,
    /// Resync replies without acknowledgement, of the volume that has most.
    pub resync_unacked: usize,
    /// Epochs received and not finished.
    pub received_epochs: usize,
    /// Application writes started, of the volume that has most.
    pub started: usize,
    /// Application writes that wait for a range, of the volume that has most.
    pub blocked: usize,
}

impl Engine {
    /// The out-of-sync bits of a volume with a disk.
    #[must_use]
    pub fn bitmap(&self, v: VolumeNr) -> Option<&Bitmap> {
        Some(&self.volumes.get(&v)?.disk.as_ref()?.bitmap)
    }

    /// The state of a volume.
    #[must_use]
    pub fn volume_state(&self, v: VolumeNr) -> Option<VolumeState> {
        self.volumes.get(&v).map(|vol| vol.state)
    }

    /// Where writes are frozen: acknowledged by nobody's barrier, and to be sent again.
    #[must_use]
    pub fn frozen_writes(&self, v: VolumeNr) -> Vec<SectorRange> {
        let frozen = self.epochs.frozen().filter_map(|key| self.requests.get(key));
        frozen.filter(|request| request.volume == v).map(|request| request.range).collect()
    }

    /// How much is held now.
    #[must_use]
    pub fn high_water(&self) -> HighWater {
        HighWater {
            peer_requests: self.peer_requests.len(),
            resync_unacked: self.volumes.values().map(|vol| vol.resync_unacked.len()).max().unwrap_or(0),
            received_epochs: self.rx.count(),
            started: self.volumes.values().map(|vol| vol.active.len()).max().unwrap_or(0),
            blocked: self.volumes.values().map(|vol| vol.blocked.len()).max().unwrap_or(0),
        }
    }
}
