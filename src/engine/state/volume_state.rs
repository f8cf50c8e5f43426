//! The typed state of one volume, its texts, and what follows from a state alone.
//!
//! Takes in: nothing but states. Gives out: the state word, DRBD's texts, metadata flags, where I/O goes.
//! Source: behaviour.md 1.2, 2.1, 2.6, 6.1, 6.3, 13.1.

use std::fmt::Write as _;

use crate::wire::state::{ConnState, DiskState, Role, StateWord, mask};

/// State of a volume. The three `susp` flags belong to the resource; every volume of it carries the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VolumeState {
    /// Own role.
    pub role: Role,
    /// The peer's role.
    pub peer: Role,
    /// Connection and replication state.
    pub conn: ConnState,
    /// Own disk.
    pub disk: DiskState,
    /// The peer's disk.
    pub pdsk: DiskState,
    /// I/O suspended by the administrator.
    pub susp: bool,
    /// I/O suspended: no data accessible.
    pub susp_nod: bool,
    /// I/O suspended: the peer is being fenced.
    pub susp_fen: bool,
    /// Resync paused by a dependency on another volume.
    pub aftr_isp: bool,
    /// Resync paused by the peer.
    pub peer_isp: bool,
    /// Resync paused by the administrator.
    pub user_isp: bool,
}

impl Default for VolumeState {
    /// A new volume: Secondary, StandAlone, Diskless.
    fn default() -> Self {
        Self {
            role: Role::Secondary,
            peer: Role::Unknown,
            conn: ConnState::StandAlone,
            disk: DiskState::Diskless,
            pdsk: DiskState::DUnknown,
            susp: false,
            susp_nod: false,
            susp_fen: false,
            aftr_isp: false,
            peer_isp: false,
            user_isp: false,
        }
    }
}

impl VolumeState {
    /// The full state word, `susp` flags included. What `P_STATE` carries of them does not matter to a receiver.
    #[must_use]
    pub const fn word(&self) -> StateWord {
        let mut bits = StateWord::of_role(self.role).0
            | StateWord::of_peer(self.peer).0
            | StateWord::of_conn(self.conn).0
            | StateWord::of_disk(self.disk).0
            | StateWord::of_pdsk(self.pdsk).0;
        if self.susp {
            bits |= mask::SUSP;
        }
        if self.susp_nod {
            bits |= mask::SUSP_NOD;
        }
        if self.susp_fen {
            bits |= mask::SUSP_FEN;
        }
        if self.aftr_isp {
            bits |= mask::AFTR_ISP;
        }
        if self.peer_isp {
            bits |= mask::PEER_ISP;
        }
        if self.user_isp {
            bits |= mask::USER_ISP;
        }
        StateWord(bits)
    }

    /// The state in a word; `None` if a field names no state.
    #[must_use]
    pub const fn from_word(word: StateWord) -> Option<Self> {
        match (word.role(), word.peer(), word.conn(), word.disk(), word.pdsk()) {
            (Some(role), Some(peer), Some(conn), Some(disk), Some(pdsk)) => Some(Self {
                role,
                peer,
                conn,
                disk,
                pdsk,
                susp: word.has(mask::SUSP),
                susp_nod: word.has(mask::SUSP_NOD),
                susp_fen: word.has(mask::SUSP_FEN),
                aftr_isp: word.has(mask::AFTR_ISP),
                peer_isp: word.has(mask::PEER_ISP),
                user_isp: word.has(mask::USER_ISP),
            }),
            _ => None,
        }
    }

    /// Whether application I/O is suspended for any reason.
    #[must_use]
    pub const fn is_suspended(&self) -> bool {
        self.susp || self.susp_nod || self.susp_fen
    }

    /// Whether any pause flag of a resync is set.
    #[must_use]
    pub const fn is_sync_paused(&self) -> bool {
        self.aftr_isp || self.peer_isp || self.user_isp
    }

    /// Whether the own disk can be read and written (not whether its data are good).
    #[must_use]
    pub fn has_local_disk(&self) -> bool {
        self.disk >= DiskState::Inconsistent
    }

    /// StandAlone, Diskless and Secondary: nothing is configured.
    #[must_use]
    pub fn is_unconfigured(&self) -> bool {
        self.conn == ConnState::StandAlone && self.disk == DiskState::Diskless && self.role == Role::Secondary
    }

    /// The state as the log prints it: `cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate r-----`, the last column
    /// being run/suspended and the flags aftr_isp `a`, peer_isp `p`, user_isp `u`, susp_fen `F`, susp_nod `N`.
    #[must_use]
    pub fn log_text(&self) -> String {
        let mut text = self.states_text();
        text.push(' ');
        text.push_str(&self.pause_columns());
        text.push(if self.susp_fen { 'F' } else { '-' });
        text.push(if self.susp_nod { 'N' } else { '-' });
        text
    }

    /// The state as `/proc/drbd` prints it behind the minor number: `cs:.. ro:../.. ds:../.. C r-----`. `protocol` is
    /// the wire protocol's letter, a blank without network configuration; the fifth column (congestion) is never set.
    #[must_use]
    pub fn proc_text(&self, protocol: char, al_suspended: bool) -> String {
        if self.is_unconfigured() {
            return String::from("cs:Unconfigured");
        }
        let mut text = self.states_text();
        text.push(' ');
        text.push(protocol);
        text.push(' ');
        text.push_str(&self.pause_columns());
        text.push('-');
        text.push(if al_suspended { 's' } else { '-' });
        text
    }

    fn states_text(&self) -> String {
        format!("cs:{} ro:{}/{} ds:{}/{}", self.conn, self.role, self.peer, self.disk, self.pdsk)
    }

    fn pause_columns(&self) -> String {
        let column = |on: bool, letter: char| if on { letter } else { '-' };
        [
            if self.is_suspended() { 's' } else { 'r' },
            column(self.aftr_isp, 'a'),
            column(self.peer_isp, 'p'),
            column(self.user_isp, 'u'),
        ]
        .iter()
        .collect()
    }
}

/// The parts of a volume that changed, in the log's form: `role( Secondary -> Primary ) conn( .. -> .. ) `, each part
/// with a blank behind it; empty if nothing changed. Suspension has its own line ([`susp_text`]).
#[must_use]
pub fn changes_text(old: &VolumeState, new: &VolumeState) -> String {
    let mut text = String::new();
    let mut part = |name: &str, from: &str, to: &str| {
        if from != to {
            // Writing to a String cannot fail.
            _ = write!(text, "{name}( {from} -> {to} ) ");
        }
    };
    let bit = |on: bool| if on { "1" } else { "0" };
    part("role", old.role.text(), new.role.text());
    part("peer", old.peer.text(), new.peer.text());
    part("conn", old.conn.text(), new.conn.text());
    part("disk", old.disk.text(), new.disk.text());
    part("pdsk", old.pdsk.text(), new.pdsk.text());
    part("aftr_isp", bit(old.aftr_isp), bit(new.aftr_isp));
    part("peer_isp", bit(old.peer_isp), bit(new.peer_isp));
    part("user_isp", bit(old.user_isp), bit(new.user_isp));
    text
}

/// `susp( 0 -> 1 ) ` if suspension as a whole changed, else empty.
#[must_use]
pub fn susp_text(old: &VolumeState, new: &VolumeState) -> String {
    if old.is_suspended() == new.is_suspended() {
        return String::new();
    }
    format!("susp( {} -> {} ) ", u8::from(old.is_suspended()), u8::from(new.is_suspended()))
}

/// The metadata flags that follow from a state; the others are kept, AL-clean is cleared while attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MdFlags {
    /// Bit 0: the data are consistent.
    pub consistent: bool,
    /// Bit 1: this node is Primary, or keeps the only copy of a Primary peer.
    pub primary_indicated: bool,
    /// Bit 2: connected.
    pub connected_indicated: bool,
    /// Bit 4: the data were UpToDate or Consistent.
    pub was_up_to_date: bool,
    /// Bit 5: the peer's data are known to be outdated or worse.
    pub peer_outdated: bool,
    /// Bit 6: went down while Primary.
    pub crashed_primary: bool,
}

/// Metadata flags of a state. Only with a usable local disk; `crashed_primary` is the volume's flag.
#[must_use]
pub fn md_flags(state: &VolumeState, crashed_primary: bool) -> MdFlags {
    MdFlags {
        consistent: state.disk > DiskState::Inconsistent,
        primary_indicated: state.role == Role::Primary
            || (state.pdsk < DiskState::Inconsistent && state.peer == Role::Primary),
        connected_indicated: state.conn > ConnState::WfReportParams,
        was_up_to_date: state.disk > DiskState::Outdated,
        peer_outdated: (DiskState::Inconsistent..=DiskState::Outdated).contains(&state.pdsk),
        crashed_primary,
    }
}

/// Whether a write is mirrored to the peer.
#[must_use]
pub fn replicates(state: &VolumeState) -> bool {
    state.pdsk == DiskState::UpToDate
        || (state.pdsk >= DiskState::Inconsistent
            && state.conn >= ConnState::WfBitMapT
            && state.conn < ConnState::Ahead)
}

/// Whether a write is only announced to the peer as out of sync. A write is mirrored or announced, never both.
#[must_use]
pub fn sends_out_of_sync(state: &VolumeState) -> bool {
    matches!(state.conn, ConnState::Ahead | ConnState::WfBitMapS)
}

/// Whether a write goes to the own disk: only where good data exist on either node.
#[must_use]
pub fn writes_locally(state: &VolumeState) -> bool {
    state.has_local_disk() && (state.disk == DiskState::UpToDate || state.pdsk == DiskState::UpToDate)
}

/// Whether the state lets a new application request in: not suspended, and no step under way that fixes where requests
/// go. `version` is the agreed protocol version.
#[must_use]
pub fn admits_io(state: &VolumeState, version: u32) -> bool {
    let conn_stable = match state.conn {
        ConnState::WfBitMapT | ConnState::WfSyncUuid => false,
        ConnState::WfBitMapS => version >= 96,
        _ => true,
    };
    let disk_stable = !matches!(state.disk, DiskState::Attaching | DiskState::Negotiating | DiskState::DUnknown);
    !state.is_suspended() && conn_stable && disk_stable
}

#[cfg(test)]
mod tests;
