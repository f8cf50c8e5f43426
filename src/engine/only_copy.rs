//! Writes of a peer that has no disk: this node's copy is the only one, and this node keeps the books for both.
//!
//! Takes in: peer writes whose turn has come. Gives out: the same to the disk, marked and in the activity log before.
//! Invariants: none of them reaches the disk before the primary indicator is durable, because only that makes a
//! recovery look at the activity log. Source: metadata.md 4.4, 5.1, 7.

use crate::engine::Engine;
use crate::engine::al::{Begin, ExtentSpan, RequestKey};
use crate::engine::peer_request::{PEER_KEY, PeerKind};
use crate::engine::volume::LocalDisk;
use crate::meta::MdFlags;
use crate::wire::state::DiskState;

impl Engine {
    /// Whether a peer write has to wait for the primary indicator.
    pub(crate) fn awaits_indicator(&self, key: u64) -> bool {
        let Some(request) = self.peer_requests.get(key) else { return false };
        let Some(vol) = self.volumes.get(&request.volume) else { return false };
        let only_copy = matches!(request.kind, PeerKind::Write { .. }) && vol.state.pdsk < DiskState::Inconsistent;
        let due =
            |disk: &LocalDisk| disk.sb.flags.contains(MdFlags::PRIMARY_IND) && !disk.surely_says(MdFlags::PRIMARY_IND);
        only_copy && vol.disk_usable() && vol.disk.as_ref().is_some_and(due)
    }

    pub(crate) fn submit_peer_write(&mut self, key: u64) {
        let Some(request) = self.peer_requests.get(key) else { return };
        let (v, range) = (request.volume, request.range);
        let (replicated, settled) = (matches!(request.kind, PeerKind::Write { .. }), request.al_settled);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let only_copy = replicated && vol.state.pdsk < DiskState::Inconsistent;
        if only_copy && !settled {
            // The sender has no disk and so no bitmap: this node keeps the books for both (metadata.md 4.4).
            let span = ExtentSpan::of(range);
            let begin = match (vol.usable(), span) {
                (Some(disk), Some(span)) => {
                    disk.bitmap.set_range(range.bits_touched());
                    disk.al.begin(RequestKey(key | PEER_KEY), span, |_| false)
                }
                _ => Begin::NotLogged,
            };
            let Some(request) = self.peer_requests.get_mut(key) else { return };
            request.marked = true;
            match begin {
                Begin::Hot => request.al = span,
                Begin::NotLogged => {}
                Begin::Pending | Begin::Blocked => {
                    request.al_pending = true;
                    return self.pump_al(v);
                }
            }
        }
        self.submit_peer_io(key);
    }

    /// The activity log let a peer write go (`with` its references, or without).
    pub(crate) fn peer_al_granted(&mut self, key: u64, with: bool) {
        if let Some(request) = self.peer_requests.get_mut(key) {
            request.al_pending = false;
            request.al_settled = true;
            if with {
                request.al = ExtentSpan::of(request.range);
            }
            if request.orphan {
                return self.finish_peer(key);
            }
            self.submit_peer_io(key);
        }
    }
}
