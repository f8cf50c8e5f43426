//! The text of `/proc/drbd` (config-and-commands.md 16, behaviour.md 13.1).

use std::fmt::Write as _;

use crate::control::status::{Resource, Status, Volume};
use crate::engine::state::VolumeState;
use crate::wire::state::ConnState;

/// First line: the version that scripts look for is that of the DRBD whose behaviour this is.
pub const VERSION_LINE: &str = "version: 8.4.11 (api:1/proto:86-101)";

/// All minors in ascending order.
#[must_use]
pub fn proc_drbd(status: &Status) -> String {
    let mut text = format!("{VERSION_LINE}\nsrcversion: udrbd-{} \n", env!("CARGO_PKG_VERSION"));
    let mut volumes: Vec<_> = status.resources.iter().flat_map(|r| r.volumes.iter().map(move |v| (r, v))).collect();
    volumes.sort_by_key(|(_, v)| v.minor);
    let mut expected = 0;
    for (resource, volume) in volumes {
        if volume.minor.0 != expected {
            text.push('\n');
        }
        expected = volume.minor.0.saturating_add(1);
        device(&mut text, resource, volume);
    }
    text
}

fn device(text: &mut String, resource: &Resource, volume: &Volume) {
    let state = VolumeState {
        role: volume.role,
        peer: volume.peer_role,
        conn: volume.state,
        disk: volume.disk,
        pdsk: volume.peer_disk,
        susp: resource.suspended.user,
        susp_nod: resource.suspended.no_data,
        susp_fen: resource.suspended.fencing,
        aftr_isp: volume.resync_suspended.dependency,
        peer_isp: volume.resync_suspended.peer,
        user_isp: volume.resync_suspended.user,
    };
    let configured = resource.connection_state != ConnState::StandAlone;
    let protocol = resource.connection.as_ref().filter(|_| configured).map_or(' ', |c| c.protocol);
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{:>2}: {}", volume.minor, state.proc_text(protocol, volume.al_suspended));
    if state.is_unconfigured() {
        return;
    }
    let c = &volume.counters;
    let ordering = resource.write_ordering.chars().next().unwrap_or('f');
    let _ = writeln!(
        text,
        "    ns:{} nr:{} dw:{} dr:{} al:{} bm:{} lo:{} pe:{} ua:{} ap:{} ep:{} wo:{ordering} oos:{}",
        c.sent_kib,
        c.received_kib,
        c.written_kib,
        c.read_kib,
        c.al_writes,
        c.bm_writes,
        c.lower_pending,
        c.pending,
        c.unacked,
        c.upper_pending,
        // The epoch that the next write will belong to counts.
        volume.epochs.max(1),
        volume.out_of_sync_kib,
    );
    let running =
        matches!(volume.state, ConnState::SyncSource | ConnState::SyncTarget | ConnState::VerifyS | ConnState::VerifyT);
    if let Some(sync) = volume.sync.as_ref().filter(|_| running) {
        text.push_str(&sync.proc_lines);
    }
}
