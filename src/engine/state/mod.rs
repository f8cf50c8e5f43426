//! The state machine of a volume, as pure functions over values.
//!
//! Owns: the typed state ([`VolumeState`]), changes to it ([`StateChange`]), the rules that coerce and refuse a change
//! ([`plan`]) and what follows from one ([`after_effects`], [`side_effects`], [`connection_effects`]).
//! Takes in: the current state, a change, and a [`StateContext`] that names everything else the rules look at.
//! Gives out: the new state or a refusal; effects as data, in the order in which they have to happen.
//! Invariants: nothing here has an effect of its own. Source: behaviour.md 1, 2, 6.1, 6.3; wire.md 4.9, 11.

mod attach;
mod check;
mod effects;
mod received;
mod sanitize;
mod transition;
mod volume_state;

pub use attach::{AttachStates, attach_states, crashed_primary_at_attach, may_attach_generation};
pub use check::{
    ChangeMode, PlannedChange, check_soft_transition, check_state, check_transition, is_cluster_wide, plan,
    plan_cluster_wide,
};
pub use effects::{
    Effect, RestartHow, SideEffect, after_effects, connection_effects, lost_contact_to_peer_data, side_effects,
};
pub use received::{PeerView, Received, ReceivedContext, read_peer_state};
pub use sanitize::sanitize;
pub use transition::{StateChange, is_acceptable_peer_request, is_legal_peer_word};
pub use volume_state::{
    MdFlags, VolumeState, admits_io, changes_text, md_flags, replicates, sends_out_of_sync, susp_text, writes_locally,
};

use crate::wire::state::DiskState;

/// The `fencing` policy of a disk; the order is the strictness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fencing {
    /// No fencing.
    #[default]
    DontCare,
    /// A disconnected Primary runs fence-peer.
    ResourceOnly,
    /// The same, with I/O frozen until fencing succeeded.
    ResourceAndStonith,
}

/// What the rules look at besides the state of the volume itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateContext {
    /// The connection has a network configuration.
    pub has_net_config: bool,
    /// allow-two-primaries.
    pub allow_two_primaries: bool,
    /// The peer is Primary on another volume of the connection.
    pub peer_primary_on_other_volume: bool,
    /// Configured fencing policy of the volume's disk; counts only while that disk is usable.
    pub fencing: Fencing,
    /// on-no-data-accessible is suspend-io.
    pub on_no_data_suspend: bool,
    /// Number of clients that hold the volume open.
    pub open_count: u32,
    /// verify-alg is set.
    pub verify_alg: bool,
    /// Agreed protocol version, 86..=101; without a connection the last one or 101.
    pub version: u32,
    /// The parameters have been sent and some volume is still in WFReportParams.
    pub state_sent: bool,
    /// The data generation that clients have seen is the disk's current one.
    pub exposed_is_current: bool,
    /// Disk state found at attach, while the disk is Negotiating.
    pub attach_disk: DiskState,
    /// Peer disk state found at attach, while the disk is Negotiating.
    pub attach_pdsk: DiskState,
    /// The bitmap slot of the own identifiers is 0, or counts as 0 because the end of a resync was missed.
    pub bitmap_uuid_unset: bool,
    /// The peer's disk may hold the own generation or a later one, whatever the bitmap slot says.
    pub generation_shared: bool,
    /// Every other volume of the connection is Connected or better (true without another volume).
    pub others_connected: bool,
    /// Every other volume's disk is UpToDate (true without another volume).
    pub others_up_to_date: bool,
    /// Highest peer disk state of the other volumes; Diskless without another volume.
    pub others_highest_pdsk: DiskState,
    /// Every other volume has left WFReportParams (true without another volume).
    pub others_left_report_params: bool,
    /// A size change waits for the end of the negotiation and wants a resync.
    pub resync_after_negotiation: bool,
    /// The disk fails because of an I/O error and on-io-error is call-local-io-error.
    pub call_local_io_error: bool,
    /// The disk fails by force (detach --force, disk-timeout): pending local I/O is aborted.
    pub forced_detach: bool,
}

impl Default for StateContext {
    /// A lone volume without options.
    fn default() -> Self {
        Self {
            has_net_config: false,
            allow_two_primaries: false,
            peer_primary_on_other_volume: false,
            fencing: Fencing::DontCare,
            on_no_data_suspend: false,
            open_count: 0,
            verify_alg: false,
            version: 101,
            state_sent: false,
            exposed_is_current: false,
            attach_disk: DiskState::Diskless,
            attach_pdsk: DiskState::DUnknown,
            bitmap_uuid_unset: true,
            generation_shared: false,
            others_connected: true,
            others_up_to_date: true,
            others_highest_pdsk: DiskState::Diskless,
            others_left_report_params: true,
            resync_after_negotiation: false,
            call_local_io_error: false,
            forced_detach: false,
        }
    }
}

impl StateContext {
    /// The policy that counts: that of the disk if one is usable.
    #[must_use]
    pub fn effective_fencing(&self, disk: DiskState) -> Fencing {
        if disk >= DiskState::Inconsistent { self.fencing } else { Fencing::DontCare }
    }

    /// Whether the agreed version knows stop sectors of an online verify.
    #[must_use]
    pub const fn stop_sector_supported(&self) -> bool {
        self.version >= 97 && self.version != 100
    }
}
