//! What other threads may see of a resource without asking its shard: roles, states and sizes.
//!
//! Written by the shard when something changes, never on the way of a request.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::state::VolumeState;
use crate::units::{Sectors, VolumeNr};

/// One volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeView {
    /// State.
    pub state: VolumeState,
    /// Exported size; 0 while none is known.
    pub size: Sectors,
    /// The local disk can discard.
    pub discard: bool,
    /// What is wrong with the undo file, for people.
    pub undo_warning: Option<String>,
}

/// All volumes of a resource.
#[derive(Debug, Default)]
pub struct View(Mutex<BTreeMap<VolumeNr, VolumeView>>);

impl View {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeNr, VolumeView>> {
        // A map of plain values is sound wherever its writer panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One volume, if it exists.
    #[must_use]
    pub fn volume(&self, nr: VolumeNr) -> Option<VolumeView> {
        self.lock().get(&nr).cloned()
    }

    /// All volumes in ascending order.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeNr, VolumeView)> {
        self.lock().iter().map(|(nr, view)| (*nr, view.clone())).collect()
    }

    /// Changes one volume.
    pub(super) fn update(&self, nr: VolumeNr, change: impl FnOnce(&mut VolumeView)) {
        if let Some(view) = self.lock().get_mut(&nr) {
            change(view);
        }
    }

    pub(super) fn insert(&self, nr: VolumeNr) {
        self.lock().entry(nr).or_default();
    }

    pub(super) fn remove(&self, nr: VolumeNr) {
        self.lock().remove(&nr);
    }
}
