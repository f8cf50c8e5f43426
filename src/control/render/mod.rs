//! The status model as texts: what `drbdsetup` and `/proc/drbd` of DRBD 8.4 print, so that scripts read it unchanged.
//!
//! Takes in [`Status`](super::status::Status), gives out strings; knows no terminal (its width and the wish for colours
//! come in). Source: config-and-commands.md 14 to 17, behaviour.md 13.

pub mod events;
pub mod json;
pub mod proc;
#[cfg(test)]
mod tests;
pub mod text;
pub mod words;

use super::status::{Resource, ResyncSuspended, Suspended, Volume};
use crate::wire::state::ConnState;

/// `no`, or the reasons, separated by commas.
fn list(reasons: &[(bool, &'static str)]) -> String {
    let set: Vec<_> = reasons.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
    if set.is_empty() { "no".to_owned() } else { set.join(",") }
}

fn suspended(s: Suspended) -> String {
    list(&[(s.user, "user"), (s.no_data, "no-data"), (s.fencing, "fencing")])
}

fn resync_suspended(s: ResyncSuspended) -> String {
    list(&[(s.user, "user"), (s.peer, "peer"), (s.dependency, "dependency")])
}

const fn yes_no(on: bool) -> &'static str {
    if on { "yes" } else { "no" }
}

/// The connection state as `status` and `events2` call it.
fn connection_word(resource: &Resource) -> &'static str {
    match resource.connection_state {
        ConnState::WfConnection => "Connecting",
        state if state >= ConnState::WfReportParams => "Connected",
        state => state.text(),
    }
}

fn is_connected(resource: &Resource) -> bool {
    resource.connection_state >= ConnState::WfReportParams
}

fn is_stand_alone(resource: &Resource) -> bool {
    resource.connection_state == ConnState::StandAlone
}

/// The replication state as `status` and `events2` call it.
fn replication_word(volume: &Volume) -> &'static str {
    match volume.state {
        ConnState::Connected => "Established",
        state if state > ConnState::Connected => state.text(),
        _ => "Off",
    }
}

/// Part of the device that is in sync, in percent; only in states of a resync or verify, as 8.4 shows it.
fn done_percent(volume: &Volume) -> Option<f64> {
    let syncing = (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&volume.state);
    syncing.then(|| {
        if volume.size_kib == 0 {
            return 100.0;
        }
        // 2^53 KiB are far beyond any device.
        #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
        let part = volume.out_of_sync_kib.min(volume.size_kib) as f64 / volume.size_kib as f64;
        100.0 * (1.0 - part)
    })
}
