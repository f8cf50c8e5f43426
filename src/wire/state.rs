//! Roles, disk states, connection states and the 32-bit state word, as they travel in `P_STATE` and `P_STATE_CHG_REQ`
//! (wire.md 0.1 and 4.9), and the result codes of state changes (wire.md 11.4).
//!
//! One table per number space: number, name, DRBD's text. Numeric order of disk and connection states is meaningful.

use std::fmt;

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $code,)+
        }

        impl $name {
            /// All states in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The state with this number, if there is one.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// DRBD's text.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The state with DRBD's text `text`, if there is one.
            #[must_use]
            pub fn from_text(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|s| s.text() == text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.text())
            }
        }

        /// As DRBD's text.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.text())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::from_text(&text).ok_or_else(|| serde::de::Error::unknown_variant(&text, &[$($text),+]))
            }
        }
    };
}

states!(
    /// Role of a node for a volume. The numeric order means nothing.
    Role {
        /// Not connected: the peer's role is not known.
        Unknown = 0, "Unknown";
        /// May be opened for reading and writing.
        Primary = 1, "Primary";
        /// May not be opened.
        Secondary = 2, "Secondary";
    }
);

states!(
    /// State of a backing disk; the numeric order is used in comparisons.
    DiskState {
        /// No backing device.
        Diskless = 0, "Diskless";
        /// Metadata is being read.
        Attaching = 1, "Attaching";
        /// I/O error or detach in progress.
        Failed = 2, "Failed";
        /// Attached while connected; the peer's identifiers decide.
        Negotiating = 3, "Negotiating";
        /// Not usable without a resync.
        Inconsistent = 4, "Inconsistent";
        /// Consistent but known to be older than the peer's data.
        Outdated = 5, "Outdated";
        /// Peer disk only: not connected.
        DUnknown = 6, "DUnknown";
        /// Consistent; not known whether outdated.
        Consistent = 7, "Consistent";
        /// Serves application I/O.
        UpToDate = 8, "UpToDate";
    }
);

states!(
    /// Connection (and replication) state of a volume; the numeric order is used in comparisons.
    ConnState {
        /// No network configuration in use.
        StandAlone = 0, "StandAlone";
        /// On the way to StandAlone.
        Disconnecting = 1, "Disconnecting";
        /// About to connect.
        Unconnected = 2, "Unconnected";
        /// Peer too slow.
        Timeout = 3, "Timeout";
        /// Data socket lost.
        BrokenPipe = 4, "BrokenPipe";
        /// Meta socket lost or ping unanswered.
        NetworkFailure = 5, "NetworkFailure";
        /// Peer sent something illegal.
        ProtocolError = 6, "ProtocolError";
        /// Peer announced a graceful disconnect.
        TearDown = 7, "TearDown";
        /// Listening and connecting.
        WfConnection = 8, "WFConnection";
        /// Parameters are being exchanged.
        WfReportParams = 9, "WFReportParams";
        /// Replicating, no resync.
        Connected = 10, "Connected";
        /// Full sync as source: bitmap being set.
        StartingSyncS = 11, "StartingSyncS";
        /// Full sync as target: bitmap being set.
        StartingSyncT = 12, "StartingSyncT";
        /// Bitmap exchange as future source.
        WfBitMapS = 13, "WFBitMapS";
        /// Bitmap exchange as future target.
        WfBitMapT = 14, "WFBitMapT";
        /// Target waits for `P_SYNC_UUID`.
        WfSyncUuid = 15, "WFSyncUUID";
        /// Resync running, this node has the good data.
        SyncSource = 16, "SyncSource";
        /// Resync running towards this node.
        SyncTarget = 17, "SyncTarget";
        /// Online verify driven by this node.
        VerifyS = 18, "VerifyS";
        /// Online verify driven by the peer.
        VerifyT = 19, "VerifyT";
        /// Resync paused, source.
        PausedSyncS = 20, "PausedSyncS";
        /// Resync paused, target.
        PausedSyncT = 21, "PausedSyncT";
        /// Congested: only dirty marks are sent.
        Ahead = 22, "Ahead";
        /// Peer is Ahead.
        Behind = 23, "Behind";
    }
);

/// Masks and shifts of the state word (wire.md 4.9).
pub mod mask {
    /// Sender's role.
    pub const ROLE: u32 = 0x3;
    /// Sender's view of the receiver's role.
    pub const PEER: u32 = 0xc;
    /// Sender's connection state.
    pub const CONN: u32 = 0x1f0;
    /// Sender's disk state.
    pub const DISK: u32 = 0x1e00;
    /// Sender's view of the receiver's disk.
    pub const PDSK: u32 = 0x1_e000;
    /// I/O suspended by the administrator.
    pub const SUSP: u32 = 1 << 17;
    /// Resync paused by a dependency.
    pub const AFTR_ISP: u32 = 1 << 18;
    /// Resync paused by the receiver.
    pub const PEER_ISP: u32 = 1 << 19;
    /// Resync paused by the sender's administrator.
    pub const USER_ISP: u32 = 1 << 20;
    /// I/O suspended: no data.
    pub const SUSP_NOD: u32 = 1 << 21;
    /// I/O suspended: fencing.
    pub const SUSP_FEN: u32 = 1 << 22;
}

/// The raw 32-bit state word. Any value is representable; accessors return `None` for numbers that name no state.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StateWord(pub u32);

impl StateWord {
    /// Sender's role.
    #[must_use]
    pub const fn role(self) -> Option<Role> {
        Role::from_code(self.0 & mask::ROLE)
    }
    /// Sender's view of the receiver's role.
    #[must_use]
    pub const fn peer(self) -> Option<Role> {
        Role::from_code((self.0 & mask::PEER) >> 2)
    }
    /// Sender's connection state.
    #[must_use]
    pub const fn conn(self) -> Option<ConnState> {
        ConnState::from_code((self.0 & mask::CONN) >> 4)
    }
    /// Sender's disk state.
    #[must_use]
    pub const fn disk(self) -> Option<DiskState> {
        DiskState::from_code((self.0 & mask::DISK) >> 9)
    }
    /// Sender's view of the receiver's disk.
    #[must_use]
    pub const fn pdsk(self) -> Option<DiskState> {
        DiskState::from_code((self.0 & mask::PDSK) >> 13)
    }
    /// Whether all bits of `flag` (one of [`mask`]) are set.
    #[must_use]
    pub const fn has(self, flag: u32) -> bool {
        self.0 & flag == flag
    }
    /// Bits of the role field.
    #[must_use]
    pub const fn of_role(role: Role) -> Self {
        Self(role as u32)
    }
    /// Bits of the peer-role field.
    #[must_use]
    pub const fn of_peer(peer: Role) -> Self {
        Self((peer as u32) << 2)
    }
    /// Bits of the connection field.
    #[must_use]
    pub const fn of_conn(conn: ConnState) -> Self {
        Self((conn as u32) << 4)
    }
    /// Bits of the disk field.
    #[must_use]
    pub const fn of_disk(disk: DiskState) -> Self {
        Self((disk as u32) << 9)
    }
    /// Bits of the peer-disk field.
    #[must_use]
    pub const fn of_pdsk(pdsk: DiskState) -> Self {
        Self((pdsk as u32) << 13)
    }
    /// Both words' bits.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for StateWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateWord({:#010x})", self.0)
    }
}

macro_rules! results {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)+) => {
        /// Result of a state change (`SS_*`). Codes from 1 on are success.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum StateResult {
            $($(#[$doc])* $variant,)+
        }

        impl StateResult {
            /// All results.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> i32 {
                match self { $(Self::$variant => $code,)+ }
            }

            /// DRBD's text; empty for successes.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The result with this number, if there is one.
            #[must_use]
            pub const fn from_code(code: i32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// Whether the change was made (or was not needed).
            #[must_use]
            pub const fn is_success(self) -> bool {
                self.code() >= 1
            }
        }
    };
}

results! {
    /// The peer's answer is no longer needed.
    CwNoNeed = 4, "";
    /// The peer agreed.
    CwSuccess = 3, "";
    /// The state is already so.
    NothingToDo = 2, "";
    /// Done.
    Success = 1, "";
    /// Not decided.
    UnknownError = 0, "Unknown error";
    /// A second Primary is not allowed.
    TwoPrimaries = -1, "Multiple primaries not allowed by config";
    /// No good data in reach.
    NoUpToDateDisk = -2, "Need access to UpToDate data";
    /// Resync needs a local disk.
    NoLocalDisk = -4, "Can not resync without local disk";
    /// Resync needs the peer's disk.
    NoRemoteDisk = -5, "Can not resync without remote disk";
    /// Outdate is refused while connected.
    ConnectedOutdates = -6, "Refusing to be Outdated while Connected";
    /// Fencing: the peer is not known to be outdated.
    PrimaryNop = -7, "Refusing to be Primary while peer is not outdated";
    /// A resync or verify runs.
    ResyncRunning = -8, "Can not start OV/resync since it is already active";
    /// Nothing to disconnect.
    AlreadyStandalone = -9, "Can not disconnect a StandAlone device";
    /// The peer refused.
    CwFailedByPeer = -10, "State change was refused by peer node";
    /// A disk is needed.
    IsDiskless = -11, "Device is diskless, the requested operation requires a disk";
    /// Open by a client.
    DeviceInUse = -12, "Device is held open by someone";
    /// No network configuration.
    NoNetConfig = -13, "Have no net/connection configuration";
    /// verify-alg is not set.
    NoVerifyAlg = -14, "Need a verify algorithm to start online verify";
    /// Needs a connection.
    NeedConnection = -15, "Need a connection to start verify or resync";
    /// Disk is worse than outdated.
    LowerThanOutdated = -16, "Disk state is lower than outdated";
    /// The peer's protocol cannot do it.
    NotSupported = -17, "Peer does not support protocol";
    /// Try again after the next state change.
    InTransientState = -18, "In transient state, retry after next state change";
    /// Both nodes asked at once.
    ConcurrentStChg = -19, "Concurrent state changes detected and aborted";
    /// The peer is Primary on another volume.
    OVolPeerPri = -20, "Other vol primary on peer not allowed by config";
    /// Needs a connection to outdate the peer.
    OutdateWoConn = -21, "Need a connection for a graceful disconnect/outdate peer";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_words_decode() {
        let w = StateWord(0x0000_c882);
        assert_eq!(
            (w.role(), w.peer(), w.conn(), w.disk(), w.pdsk()),
            (
                Some(Role::Secondary),
                Some(Role::Unknown),
                Some(ConnState::WfConnection),
                Some(DiskState::Inconsistent),
                Some(DiskState::DUnknown)
            )
        );
        let built = StateWord::of_role(Role::Primary)
            .or(StateWord::of_peer(Role::Secondary))
            .or(StateWord::of_conn(ConnState::Connected))
            .or(StateWord::of_disk(DiskState::UpToDate))
            .or(StateWord::of_pdsk(DiskState::UpToDate));
        assert_eq!(built, StateWord(0x0001_10a9));
    }

    #[test]
    fn numbers_without_a_name_are_none() {
        assert_eq!(StateWord(3).role(), None);
        assert_eq!(StateWord(24 << 4).conn(), None);
        assert_eq!(StateWord(9 << 9).disk(), None);
    }

    #[test]
    fn every_code_maps_back() {
        for r in StateResult::ALL {
            assert_eq!(StateResult::from_code(r.code()), Some(*r));
        }
        for c in ConnState::ALL {
            assert_eq!(ConnState::from_code(c.code()), Some(*c));
            assert_eq!(ConnState::from_text(c.text()), Some(*c));
        }
    }
}
