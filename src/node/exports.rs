//! What NBD clients find: the volumes that can be opened, that is those that are Primary and have a size. The others are
//! refused by name with a reason; in a list they would make `nbdinfo --list` fail as a whole.

use std::sync::Arc;

use super::daemon::{Daemon, export_name};
use super::view::VolumeView;
use crate::frontend::nbd::export::{ExportHandle, ExportInfo, Exports, Refusal};
use crate::frontend::nbd::server::HandOver;
use crate::units::VolumeNr;
use crate::wire::state::Role;

/// The table of exports.
#[derive(Debug)]
pub struct Table(pub Arc<Daemon>);

impl Exports for Table {
    type HandOver = HandOver;

    fn list(&self) -> Vec<ExportInfo> {
        let mut all = Vec::new();
        for (resource, shard) in self.0.shards() {
            for (nr, view) in shard.view().volumes() {
                if view.state.role == Role::Primary && view.size.0 > 0 {
                    all.push(info(&resource, nr, &view));
                }
            }
        }
        all
    }

    fn open(&self, name: &str) -> Result<ExportHandle<HandOver>, Refusal> {
        if self.0.is_stopping() {
            return Err(Refusal::Shutdown("the daemon is stopping".to_owned()));
        }
        let unknown = || Refusal::Unknown(format!("there is no export {name:?} on this node"));
        let (resource, nr) = match name.split_once('/') {
            None => (name, VolumeNr(0)),
            Some((resource, nr)) => (resource, VolumeNr(nr.parse().map_err(|_| unknown())?)),
        };
        let shard = self.0.shard(resource).ok_or_else(unknown)?;
        let view = shard.view().volume(nr).ok_or_else(unknown)?;
        if view.state.role != Role::Primary {
            let text = format!("{name} is Secondary on this node; promote it with: drbdctl primary {name}");
            return Err(Refusal::Policy(text));
        }
        if view.size.0 == 0 {
            return Err(Refusal::Policy(format!("{name} has no size yet: no disk was ever in reach")));
        }
        let info = info(resource, nr, &view);
        Ok(ExportHandle { info, hand_over: Box::new(move |connection| shard.serve(nr, connection)) })
    }
}

fn info(resource: &str, nr: VolumeNr, view: &VolumeView) -> ExportInfo {
    let state = &view.state;
    ExportInfo {
        name: export_name(resource, nr),
        description: format!("{}, {}/{}, {}", state.role, state.disk, state.pdsk, state.conn),
        size: view.size,
        read_only: false,
        trim: view.discard,
        multi_conn: true,
    }
}
