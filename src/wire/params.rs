//! Connection and resync settings: `P_PROTOCOL`, `P_PROTOCOL_UPDATE`, `P_SYNC_PARAM`, `P_SYNC_PARAM89` (wire.md 4.4,
//! 4.6). Numbers that name no protocol or policy are refused; algorithm names must be on the whitelist.

use bytes::{BufMut, BytesMut};

use super::cursor::Reader;
use super::digest::{ALG_NAME_LEN, AlgName};
use super::error::Fault;
use super::feature::Version;
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
    ($($(#[$attr:meta])* $variant:ident = $code:literal, $text:literal;)+) => {
        /// After-split-brain policy (wire.md 0.1).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum AfterSb { $($(#[$attr])* $variant = $code,)+ }

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
    #[default]
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

/// Longest text behind the numbers of `P_PROTOCOL` and of the `P_SYNC_PARAM` of version 88, with its NUL, in bytes.
pub(super) const TEXT_LEN_MAX: u32 = 64;

fn policy(r: &mut Reader<'_>, field: &'static str) -> Result<AfterSb, Fault> {
    let value = r.u32()?;
    AfterSb::from_code(value).ok_or_else(|| Fault::Field { field, value: value.into(), rule: "names no policy" })
}

fn put_text(name: &AlgName, out: &mut BytesMut) {
    out.put_slice(name.as_str().as_bytes());
    out.put_u8(0);
}

fn put_padded(name: Option<&AlgName>, out: &mut BytesMut) {
    let text = name.map_or("", AlgName::as_str).as_bytes();
    out.put_slice(text);
    out.put_bytes(0, ALG_NAME_LEN.saturating_sub(text.len()));
}

impl Protocol {
    /// Length on the wire without the name, in bytes.
    pub const LEN: usize = 24;

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let protocol = r.u32()?;
        Ok(Self {
            protocol: ReplProtocol::from_code(protocol).ok_or_else(|| Fault::Field {
                field: "protocol",
                value: protocol.into(),
                rule: "must be 1, 2 or 3",
            })?,
            after_sb_0p: policy(r, "after_sb_0p")?,
            after_sb_1p: policy(r, "after_sb_1p")?,
            after_sb_2p: policy(r, "after_sb_2p")?,
            conn_flags: ConnFlags(r.u32()?),
            two_primaries: match r.u32()? {
                0 => false,
                1 => true,
                value => {
                    return Err(Fault::Field { field: "two_primaries", value: value.into(), rule: "must be 0 or 1" });
                }
            },
            integrity_alg: AlgName::decode(r.take_rest(), "integrity_alg")?,
        })
    }

    pub(super) fn encode(&self, version: Version, out: &mut BytesMut) {
        out.put_u32(self.protocol.code());
        for policy in [self.after_sb_0p, self.after_sb_1p, self.after_sb_2p] {
            out.put_u32(policy.code());
        }
        out.put_u32(self.conn_flags.0);
        out.put_u32(self.two_primaries.into());
        if version.nr() >= 87 {
            put_text(&self.integrity_alg, out);
        }
    }
}

impl SyncParam {
    pub(super) fn decode(r: &mut Reader<'_>, version: Version) -> Result<Self, Fault> {
        let mut param = Self { resync_rate_kib: r.u32()?, verify_alg: None, csums_alg: None, controller: None };
        if version.nr() == 88 {
            param.verify_alg = Some(AlgName::decode(r.take_rest(), "verify_alg")?);
        }
        if version.nr() >= 89 {
            param.verify_alg = Some(AlgName::decode(r.take(ALG_NAME_LEN)?, "verify_alg")?);
            param.csums_alg = Some(AlgName::decode(r.take(ALG_NAME_LEN)?, "csums_alg")?);
        }
        if version.nr() >= 95 {
            param.controller = Some(Controller {
                plan_ahead_ds: r.u32()?,
                delay_target_ds: r.u32()?,
                fill_target_sectors: r.u32()?,
                max_rate_kib: r.u32()?,
            });
        }
        Ok(param)
    }

    pub(super) fn encode(&self, version: Version, out: &mut BytesMut) {
        out.put_u32(self.resync_rate_kib);
        if version.nr() == 88 {
            put_text(self.verify_alg.as_ref().unwrap_or(&AlgName::NONE), out);
        }
        if version.nr() >= 89 {
            put_padded(self.verify_alg.as_ref(), out);
            put_padded(self.csums_alg.as_ref(), out);
        }
        if version.nr() >= 95 {
            let c = self.controller.unwrap_or_default();
            for value in [c.plan_ahead_ds, c.delay_target_ds, c.fill_target_sectors, c.max_rate_kib] {
                out.put_u32(value);
            }
        }
    }

    /// The same settings with exactly the fields that `version` carries; missing ones get DRBD's defaults.
    #[must_use]
    pub fn shaped_for(&self, version: Version) -> Self {
        Self {
            resync_rate_kib: self.resync_rate_kib,
            verify_alg: (version.nr() >= 88).then(|| self.verify_alg.clone().unwrap_or_default()),
            csums_alg: (version.nr() >= 89).then(|| self.csums_alg.clone().unwrap_or_default()),
            controller: (version.nr() >= 95).then(|| self.controller.unwrap_or_default()),
        }
    }
}
