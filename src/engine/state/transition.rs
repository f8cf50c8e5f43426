//! Changes to a state: mask and value with types, the view of the other node, and what a peer may say or ask for.
//!
//! Invariant: a [`StateChange`] names only states that exist, so applying one cannot fail.
//! Source: behaviour.md 2.1, 2.5, 2.9; wire.md 4.9, 11.1, 11.2, 11.5, 13.3 no. 9.

use super::VolumeState;
use crate::wire::state::{ConnState, DiskState, Role, StateWord, mask};

/// A requested change: the fields that are `Some`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateChange {
    /// Own role.
    pub role: Option<Role>,
    /// The peer's role.
    pub peer: Option<Role>,
    /// Connection state.
    pub conn: Option<ConnState>,
    /// Own disk.
    pub disk: Option<DiskState>,
    /// The peer's disk.
    pub pdsk: Option<DiskState>,
    /// I/O suspended by the administrator.
    pub susp: Option<bool>,
    /// I/O suspended: no data.
    pub susp_nod: Option<bool>,
    /// I/O suspended: fencing.
    pub susp_fen: Option<bool>,
    /// Resync paused by a dependency.
    pub aftr_isp: Option<bool>,
    /// Resync paused by the peer.
    pub peer_isp: Option<bool>,
    /// Resync paused by the administrator.
    pub user_isp: Option<bool>,
}

macro_rules! setters {
    ($($field:ident: $kind:ty;)+) => {
        impl StateChange {
            $(
                #[doc = concat!("The change that also sets `", stringify!($field), "`.")]
                #[must_use]
                pub const fn $field(mut self, value: $kind) -> Self {
                    self.$field = Some(value);
                    self
                }
            )+
        }
    };
}

setters! {
    role: Role;
    peer: Role;
    conn: ConnState;
    disk: DiskState;
    pdsk: DiskState;
    susp: bool;
    susp_nod: bool;
    susp_fen: bool;
    aftr_isp: bool;
    peer_isp: bool;
    user_isp: bool;
}

impl StateChange {
    /// The change that changes nothing; start of a chain: `StateChange::NONE.role(Role::Primary)`.
    pub const NONE: Self = Self {
        role: None,
        peer: None,
        conn: None,
        disk: None,
        pdsk: None,
        susp: None,
        susp_nod: None,
        susp_fen: None,
        aftr_isp: None,
        peer_isp: None,
        user_isp: None,
    };

    /// The change in a pair of words. `None` if the mask covers a part of a field or unknown bits, the value has bits
    /// outside the mask, or a field names no state.
    #[must_use]
    pub fn from_words(change_mask: StateWord, val: StateWord) -> Option<Self> {
        const KNOWN: u32 = mask::ROLE
            | mask::PEER
            | mask::CONN
            | mask::DISK
            | mask::PDSK
            | mask::SUSP
            | mask::SUSP_NOD
            | mask::SUSP_FEN
            | mask::AFTR_ISP
            | mask::PEER_ISP
            | mask::USER_ISP;
        if val.0 & !change_mask.0 != 0 || change_mask.0 & !KNOWN != 0 {
            return None;
        }
        // Outer None: refuse; inner None: the field is not part of the change.
        fn field<T>(change_mask: u32, field: u32, value: Option<T>) -> Option<Option<T>> {
            match change_mask & field {
                0 => Some(None),
                covered if covered == field => value.map(Some),
                _ => None,
            }
        }
        let flag = |bit: u32| (change_mask.0 & bit != 0).then_some(val.0 & bit != 0);
        Some(Self {
            role: field(change_mask.0, mask::ROLE, val.role())?,
            peer: field(change_mask.0, mask::PEER, val.peer())?,
            conn: field(change_mask.0, mask::CONN, val.conn())?,
            disk: field(change_mask.0, mask::DISK, val.disk())?,
            pdsk: field(change_mask.0, mask::PDSK, val.pdsk())?,
            susp: flag(mask::SUSP),
            susp_nod: flag(mask::SUSP_NOD),
            susp_fen: flag(mask::SUSP_FEN),
            aftr_isp: flag(mask::AFTR_ISP),
            peer_isp: flag(mask::PEER_ISP),
            user_isp: flag(mask::USER_ISP),
        })
    }

    /// The mask word of a request.
    #[must_use]
    pub fn mask(&self) -> StateWord {
        let covered = |present: bool, bits: u32| if present { bits } else { 0 };
        StateWord(
            covered(self.role.is_some(), mask::ROLE)
                | covered(self.peer.is_some(), mask::PEER)
                | covered(self.conn.is_some(), mask::CONN)
                | covered(self.disk.is_some(), mask::DISK)
                | covered(self.pdsk.is_some(), mask::PDSK)
                | covered(self.susp.is_some(), mask::SUSP)
                | covered(self.susp_nod.is_some(), mask::SUSP_NOD)
                | covered(self.susp_fen.is_some(), mask::SUSP_FEN)
                | covered(self.aftr_isp.is_some(), mask::AFTR_ISP)
                | covered(self.peer_isp.is_some(), mask::PEER_ISP)
                | covered(self.user_isp.is_some(), mask::USER_ISP),
        )
    }

    /// The value word of a request.
    #[must_use]
    pub fn val(&self) -> StateWord {
        let bit = |flag: Option<bool>, bits: u32| if flag == Some(true) { bits } else { 0 };
        let empty = StateWord::default();
        let fields = self
            .role
            .map_or(empty, StateWord::of_role)
            .or(self.peer.map_or(empty, StateWord::of_peer))
            .or(self.conn.map_or(empty, StateWord::of_conn))
            .or(self.disk.map_or(empty, StateWord::of_disk))
            .or(self.pdsk.map_or(empty, StateWord::of_pdsk));
        StateWord(
            fields.0
                | bit(self.susp, mask::SUSP)
                | bit(self.susp_nod, mask::SUSP_NOD)
                | bit(self.susp_fen, mask::SUSP_FEN)
                | bit(self.aftr_isp, mask::AFTR_ISP)
                | bit(self.peer_isp, mask::PEER_ISP)
                | bit(self.user_isp, mask::USER_ISP),
        )
    }

    /// The state with the change made; not sanitized.
    #[must_use]
    pub fn apply(&self, state: VolumeState) -> VolumeState {
        VolumeState {
            role: self.role.unwrap_or(state.role),
            peer: self.peer.unwrap_or(state.peer),
            conn: self.conn.unwrap_or(state.conn),
            disk: self.disk.unwrap_or(state.disk),
            pdsk: self.pdsk.unwrap_or(state.pdsk),
            susp: self.susp.unwrap_or(state.susp),
            susp_nod: self.susp_nod.unwrap_or(state.susp_nod),
            susp_fen: self.susp_fen.unwrap_or(state.susp_fen),
            aftr_isp: self.aftr_isp.unwrap_or(state.aftr_isp),
            peer_isp: self.peer_isp.unwrap_or(state.peer_isp),
            user_isp: self.user_isp.unwrap_or(state.user_isp),
        }
    }

    /// The same change as the other node sees it. Suspension stays with the sender.
    #[must_use]
    pub fn mirror(&self) -> Self {
        let paused = match (self.aftr_isp, self.user_isp) {
            (None, None) => None,
            (a, u) => Some(a == Some(true) || u == Some(true)),
        };
        Self {
            role: self.peer,
            peer: self.role,
            conn: self.conn.map(mirror_conn),
            disk: self.pdsk,
            pdsk: self.disk,
            peer_isp: paused,
            ..Self::NONE
        }
    }
}

/// The connection state that a peer's request asks of this node.
const fn mirror_conn(conn: ConnState) -> ConnState {
    match conn {
        ConnState::WfReportParams => ConnState::WfReportParams,
        ConnState::Connected => ConnState::Connected,
        ConnState::StartingSyncS => ConnState::StartingSyncT,
        ConnState::StartingSyncT => ConnState::StartingSyncS,
        ConnState::Disconnecting => ConnState::TearDown,
        ConnState::VerifyS => ConnState::VerifyT,
        _ => ConnState::StandAlone,
    }
}

/// Whether a peer's `P_STATE` names states that exist. Unknown high bits are ignored.
#[must_use]
pub const fn is_legal_peer_word(word: StateWord) -> bool {
    VolumeState::from_word(word).is_some()
}

/// Whether a peer may ask for this change (both words from the peer's point of view); anything else is answered with
/// "not supported".
#[must_use]
pub fn is_acceptable_peer_request(change_mask: StateWord, val: StateWord) -> bool {
    let Some(change) = StateChange::from_words(change_mask, val) else { return false };
    let promotion = change.role == Some(Role::Primary)
        && matches!(change.disk, None | Some(DiskState::UpToDate))
        && matches!(change.pdsk, None | Some(DiskState::Outdated))
        && StateChange { role: None, disk: None, pdsk: None, ..change } == StateChange::NONE;
    let detach = change == StateChange::NONE.disk(DiskState::Failed);
    let only_conn = StateChange { conn: None, ..change } == StateChange::NONE;
    let conn_change = match change.conn {
        Some(ConnState::StartingSyncS | ConnState::StartingSyncT | ConnState::VerifyS | ConnState::WfReportParams) => {
            only_conn
        }
        Some(ConnState::Disconnecting) => {
            matches!(
                (change.disk, change.pdsk),
                (None | Some(DiskState::Outdated), None) | (None, Some(DiskState::Outdated))
            ) && StateChange { conn: None, disk: None, pdsk: None, ..change } == StateChange::NONE
        }
        _ => false,
    };
    promotion || detach || conn_change
}

#[cfg(test)]
mod tests;
