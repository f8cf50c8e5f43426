//! Fencing: what the exit code of the fence-peer helper means.
//!
//! Takes in: policy, exit code, own disk. Gives out: the change to make and the log lines. The procedure around it
//! (when the helper runs, whether the connection came back meanwhile) is the engine's. Source: behaviour.md 8.

use super::state::{Fencing, StateChange};
use crate::wire::state::DiskState;

/// What the fence-peer procedure has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceStart {
    /// The connection is back already: no success.
    Connected,
    /// No volume's disk is Consistent: no success, I/O that waits for fencing goes on.
    NotConsistent,
    /// Success without a helper.
    NotWanted,
    /// Run the helper.
    RunHelper,
}

/// First step of the procedure. `policy` is the strictest over all volumes whose disk is Consistent or better, `None` if
/// there is none; `has_socket`: the connection is WFReportParams or better.
#[must_use]
pub const fn start(policy: Option<Fencing>, has_socket: bool) -> FenceStart {
    match policy {
        _ if has_socket => FenceStart::Connected,
        None => FenceStart::NotConsistent,
        Some(Fencing::DontCare) => FenceStart::NotWanted,
        Some(Fencing::ResourceOnly | Fencing::ResourceAndStonith) => FenceStart::RunHelper,
    }
}

impl FenceStart {
    /// DRBD's log line; empty if it has none.
    #[must_use]
    pub const fn log(self) -> &'static str {
        match self {
            Self::Connected => "Expected cstate < C_WF_REPORT_PARAMS",
            Self::NotConsistent => "Not fencing peer, I'm not even Consistent myself.",
            Self::NotWanted | Self::RunHelper => "",
        }
    }
}

/// What an exit code says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceVerdict {
    /// The change for all volumes of the connection (soft); `None`: no change.
    pub change: Option<StateChange>,
    /// DRBD's log lines.
    pub log: Vec<String>,
}

/// Reads the exit code of fence-peer. `own_disk` is the best of the own disks.
#[must_use]
pub fn interpret(code: i32, policy: Fencing, own_disk: DiskState) -> FenceVerdict {
    let pdsk = |disk: DiskState| Some(StateChange::NONE.pdsk(disk));
    let mut log = Vec::new();
    let (change, text) = match code {
        3 => (pdsk(DiskState::Inconsistent), "peer is inconsistent or worse"),
        4 => (pdsk(DiskState::Outdated), "peer was fenced"),
        5 if own_disk == DiskState::UpToDate => (pdsk(DiskState::Outdated), "peer is unreachable, assumed to be dead"),
        5 => (None, "peer unreachable, doing nothing since disk != UpToDate"),
        6 => {
            log.push(String::from("Peer is primary, outdating myself."));
            (Some(StateChange::NONE.disk(DiskState::Outdated)), "peer is active")
        }
        7 => {
            if policy != Fencing::ResourceAndStonith {
                log.push(String::from("fence-peer() = 7 && fencing != Stonith !!!"));
            }
            (pdsk(DiskState::Outdated), "peer was stonithed")
        }
        _ => {
            log.push(format!("fence-peer helper broken, returned {code}"));
            return FenceVerdict { change: None, log };
        }
    };
    log.push(format!("fence-peer helper returned {code} ({text})"));
    FenceVerdict { change, log }
}

/// Whether the procedure succeeded. `highest_pdsk` is the best of the peer's disks after the change.
#[must_use]
pub fn succeeded(highest_pdsk: DiskState) -> bool {
    highest_pdsk <= DiskState::Outdated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_change_the_right_disk() {
        let change = |code, disk| interpret(code, Fencing::ResourceOnly, disk).change;
        let good = DiskState::UpToDate;
        assert_eq!(change(3, good), Some(StateChange::NONE.pdsk(DiskState::Inconsistent)));
        assert_eq!(change(4, good), Some(StateChange::NONE.pdsk(DiskState::Outdated)));
        assert_eq!(change(5, good), Some(StateChange::NONE.pdsk(DiskState::Outdated)));
        assert_eq!(change(5, DiskState::Consistent), None);
        assert_eq!(change(6, good), Some(StateChange::NONE.disk(DiskState::Outdated)));
        assert_eq!(change(7, good), Some(StateChange::NONE.pdsk(DiskState::Outdated)));
        for broken in [-1, 0, 1, 2, 8, 127] {
            assert_eq!(change(broken, good), None);
        }
    }

    #[test]
    fn log_lines_are_drbds() {
        let log = |code, policy| interpret(code, policy, DiskState::UpToDate).log;
        assert_eq!(log(4, Fencing::ResourceOnly), ["fence-peer helper returned 4 (peer was fenced)"]);
        assert_eq!(
            log(7, Fencing::ResourceOnly),
            ["fence-peer() = 7 && fencing != Stonith !!!", "fence-peer helper returned 7 (peer was stonithed)"]
        );
        assert_eq!(log(7, Fencing::ResourceAndStonith), ["fence-peer helper returned 7 (peer was stonithed)"]);
        assert_eq!(
            log(6, Fencing::ResourceOnly),
            ["Peer is primary, outdating myself.", "fence-peer helper returned 6 (peer is active)"]
        );
        assert_eq!(log(0, Fencing::ResourceOnly), ["fence-peer helper broken, returned 0"]);
    }

    #[test]
    fn the_helper_runs_only_while_disconnected_with_consistent_data_and_a_policy() {
        assert_eq!(start(Some(Fencing::ResourceOnly), true), FenceStart::Connected);
        assert_eq!(start(None, false), FenceStart::NotConsistent);
        assert_eq!(start(Some(Fencing::DontCare), false), FenceStart::NotWanted);
        assert_eq!(start(Some(Fencing::ResourceAndStonith), false), FenceStart::RunHelper);
    }

    #[test]
    fn success_needs_a_peer_that_cannot_serve() {
        assert!(succeeded(DiskState::Outdated));
        assert!(!succeeded(DiskState::DUnknown));
    }
}
