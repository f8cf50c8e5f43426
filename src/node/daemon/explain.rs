//! What is known of split brains, for `drbdctl split-brain`.

use super::Daemon;
use crate::control::ErrorReply;
use crate::control::split_brain::{Explanation, VolumeExplanation};
use crate::units::VolumeNr;
use crate::wire::state::ConnState;

/// Runs of blocks in an answer; a reply has room for some 400,000.
const RUNS: usize = 16;
const RUNS_ALL: usize = 100_000;

impl Daemon {
    /// What is remembered, and what differs now.
    pub(super) async fn explain(&self, resource: &str, all: bool) -> Result<Explanation, ErrorReply> {
        let shard = self.registry.shard(resource)?;
        let gone = || ErrorReply::usage("the resource has ended").detail("see the daemon's log");
        let status = shard.status().await.ok_or_else(gone)?;
        let known = shard.recollection().await.ok_or_else(gone)?;
        // Those of now and those of the last split brain, of every volume, go into one answer.
        let most = if all { RUNS_ALL / status.volumes.len().max(1) } else { RUNS };
        let mut volumes = Vec::with_capacity(status.volumes.len());
        for volume in &status.volumes {
            let nr: VolumeNr = volume.nr;
            let (runs, runs_total) = shard.out_of_sync_runs(nr, most).await.ok_or_else(gone)?;
            let mut split_brain = known.memory.of(nr).cloned();
            if let Some(found) = &mut split_brain {
                found.runs.truncate(most);
            }
            volumes.push(VolumeExplanation {
                volume: nr,
                size_kib: volume.size.0 / 2,
                split_brain,
                runs: runs.iter().map(|run| [run.start, run.end]).collect(),
                runs_total,
                out_of_sync_blocks: volume.out_of_sync,
                undo: known.undos.get(&nr).cloned(),
            });
        }
        Ok(Explanation {
            resource: resource.to_owned(),
            role: status.role(),
            connection_state: status.connection.min(ConnState::WfReportParams),
            volumes,
        })
    }
}
