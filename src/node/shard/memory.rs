//! What the shard tells its keeper, and what it asks of it.

use std::ops::Range;

use tokio::sync::oneshot;

use super::Core;
use crate::engine::event::Event;
use crate::engine::state::VolumeState;
use crate::engine::undo::{SavedBlocks, UndoAnswer, UndoOrder};
use crate::node::keeper::{Job, Recollection};
use crate::units::{GenId, VolumeNr};
use crate::wire::state::{ConnState, DiskState};

impl Core {
    pub(super) fn tell_keeper(&self, job: impl FnOnce() -> Job) {
        if let Some(keeper) = &self.keeper {
            keeper.tell(job());
        }
    }

    /// A change of state that people may ask about later.
    pub(super) fn note_parting(&self, volume: VolumeNr, old: &VolumeState, new: &VolumeState) {
        if old.conn >= ConnState::Connected && new.conn < ConnState::Connected {
            self.tell_keeper(|| Job::Parted(volume));
        }
        let syncing = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&old.conn);
        if syncing
            && new.conn == ConnState::Connected
            && new.disk == DiskState::UpToDate
            && new.pdsk == DiskState::UpToDate
        {
            self.tell_keeper(|| Job::Equal(volume));
        }
    }

    /// The engine's order for an undo file; without a keeper there is none.
    pub(super) fn undo_order(&self, volume: VolumeNr, order: UndoOrder) {
        match (&self.keeper, order) {
            (Some(keeper), order) => keeper.tell(Job::Undo(volume, order)),
            (None, UndoOrder::Begin(_)) => {
                let answer = UndoAnswer::Ready(false);
                self.queued.borrow_mut().push_back(Event::Undo { volume, answer });
            }
            (None, _) => {}
        }
    }

    /// Which blocks are saved already in the undo file that is being filled for this disk.
    pub async fn resume_undo(&self, volume: VolumeNr, current: GenId) -> Option<SavedBlocks> {
        let keeper = self.keeper.as_ref()?;
        let (answer, reply) = oneshot::channel();
        keeper.tell(Job::Attach(volume, current, answer));
        reply.await.ok().flatten()
    }

    /// What is remembered goes to whoever asks.
    pub fn recollect(&self, answer: oneshot::Sender<Recollection>) {
        match &self.keeper {
            Some(keeper) => keeper.tell(Job::Ask(answer)),
            None => {
                // Whoever asked may be gone.
                let _ = answer.send(Recollection::default());
            }
        }
    }

    /// Runs of blocks that are out of sync.
    pub fn out_of_sync_runs(&self, volume: VolumeNr, most: usize) -> (Vec<Range<u64>>, u64) {
        self.engine.borrow().out_of_sync_runs(volume, most)
    }
}
