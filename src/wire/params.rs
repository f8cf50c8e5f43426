//! Connection and resync settings: `P_PROTOCOL`, `P_PROTOCOL_UPDATE`, `P_SYNC_PARAM`, `P_SYNC_PARAM89` (wire.md 4.4,
//! 4.6). Numbers that name no protocol or policy are refused; algorithm names must be on the whitelist.

use super::digest::AlgName;
use super::flags::flags;

/// The replication protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum ReplProtocol {
    /// Asynchronous.
    A = 1,
    /// Received by the peer.
    B = 2,
    /// Written by the peer.
    C = 3,
}

impl ReplProtocol {
    /// The protocol with this number.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}

macro_rules! policies {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)+) => {
        /// After-split-brain policy (wire.md 0.1).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum AfterSb { $($(#[$doc])* $variant = $code,)+ }

        impl AfterSb {
            /// All policies in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The policy with this number.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// DRBD's text.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

policies! {
    /// Disconnect.
    Disconnect = 0, "disconnect";
    /// The younger Primary loses.
    DiscardYoungerPrimary = 1, "discard-younger-primary";
    /// The older Primary loses.
    DiscardOlderPrimary = 2, "discard-older-primary";
    /// The node without changes loses.
    DiscardZeroChanges = 3, "discard-zero-changes";
    /// The node with fewer changes loses.
    DiscardLeastChanges = 4, "discard-least-changes";
    /// This node loses.
    DiscardLocal = 5, "discard-local";
    /// The peer loses.
    DiscardRemote = 6, "discard-remote";
    /// The result without Primaries, if the Secondary loses by it.
    Consensus = 7, "consensus";
    /// The Secondary loses.
    DiscardSecondary = 8, "discard-secondary";
    /// As without Primaries; a Primary that loses calls its handler.
    CallPriLostAfterSb = 9, "call-pri-lost-after-sb";
    /// As without Primaries, whatever the roles.
    ViolentlyAs0p = 10, "violently-as0p";
}

impl AfterSb {
    /// The policy as the other node must have it: `discard-local` pairs with `discard-remote`.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        match self {
            Self::DiscardLocal => Self::DiscardRemote,
            Self::DiscardRemote => Self::DiscardLocal,
            other => other,
        }
    }
}

flags!(
    /// `conn_flags` of `P_PROTOCOL`.
    ConnFlags(u32) {
        /// The sender's data is to be discarded.
        DISCARD_MY_DATA = 1;
        /// Compute the handshake decision, then drop the connection (from version 92 on).
        DRY_RUN = 2;
    }
);

/// `P_PROTOCOL` and `P_PROTOCOL_UPDATE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Replication protocol.
    pub protocol: ReplProtocol,
    /// Policy without Primaries.
    pub after_sb_0p: AfterSb,
    /// Policy with one Primary.
    pub after_sb_1p: AfterSb,
    /// Policy with two Primaries.
    pub after_sb_2p: AfterSb,
    /// Wishes for this handshake.
    pub conn_flags: ConnFlags,
    /// `allow-two-primaries`.
    pub two_primaries: bool,
    /// `data-integrity-alg` of the sender; empty if none. Not carried below version 87 (then empty).
    pub integrity_alg: AlgName,
}

/// `P_SYNC_PARAM` and `P_SYNC_PARAM89`. A field is `None` when the agreed version does not carry it; the encoder leaves
/// out what the version cannot carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncParam {
    /// Fixed resync rate in KiB/s.
    pub resync_rate_kib: u32,
    /// `verify-alg`, empty if none; from version 88 on.
    pub verify_alg: Option<AlgName>,
    /// `csums-alg`, empty if none; from version 89 on.
    pub csums_alg: Option<AlgName>,
    /// Settings of the dynamic controller; from version 95 on.
    pub controller: Option<Controller>,
}

/// Settings of the dynamic resync speed controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    /// In 0.1 s; 0 switches the controller off.
    pub plan_ahead_ds: u32,
    /// In 0.1 s.
    pub delay_target_ds: u32,
    /// In sectors.
    pub fill_target_sectors: u32,
    /// In KiB/s.
    pub max_rate_kib: u32,
}

impl Default for Controller {
    /// DRBD's defaults.
    fn default() -> Self {
        Self { plan_ahead_ds: 20, delay_target_ds: 10, fill_target_sectors: 100, max_rate_kib: 102_400 }
    }
}
