//! The values that options take: enumerations with DRBD's words, numbers with a unit, and the shared secret.
//!
//! Owns how one value is read from text and written back as DRBD writes it; serde uses DRBD's words too. Knows nothing of
//! sections, files or positions. Source: config-and-commands.md 2.2 (numbers) and 5 (words).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::units::{Minor, Sectors, VolumeNr};

/// An enumeration whose variants have DRBD's words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All values in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// DRBD's words in the same order.
            pub const WORDS: &'static [&'static str] = &[$($text,)+];

            /// DRBD's word for this value.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The value of a word; words are case sensitive.
            #[must_use]
            pub fn from_text(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.text() == text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.text())
            }
        }
    };
}

words!(
    /// When a write counts as done.
    Protocol {
        /// Local disk, and the packet is in the send buffer.
        A = "A",
        /// Local disk, and the peer has received it.
        B = "B",
        /// Both disks.
        C = "C",
    }
);
words!(
    /// What to do after a split brain with one Primary at connect time.
    AfterSb1Pri {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// As the 0pri policy says, if that picks the Secondary as victim; else disconnect.
        Consensus = "consensus",
        /// The Secondary is the victim.
        DiscardSecondary = "discard-secondary",
        /// As the 0pri policy; if it picks the Primary, call its handler.
        CallPriLost = "call-pri-lost-after-sb",
        /// As the 0pri policy even if that changes data under the Primary.
        ViolentlyAs0p = "violently-as0p",
    }
);
words!(
    /// What to do after a split brain with two Primaries at connect time.
    AfterSb2Pri {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// As the 0pri policy; the loser's handler is called.
        CallPriLost = "call-pri-lost-after-sb",
        /// As the 0pri policy even if that changes data under a Primary.
        ViolentlyAs0p = "violently-as0p",
    }
);
words!(
    /// What to do when the direction of a resync contradicts the roles.
    RrConflict {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// Call the handler `pri-lost` on the Primary that would become the target.
        CallPriLost = "call-pri-lost",
        /// Sync over a Primary.
        Violently = "violently",
    }
);
words!(
    /// What to do when the send queue is full.
    OnCongestion {
        /// Let writers wait.
        Block = "block",
        /// Stop mirroring for a while (Ahead/Behind).
        PullAhead = "pull-ahead",
        /// Drop the connection.
        Disconnect = "disconnect",
    }
);
words!(
    /// What to do with an error of the backing device.
    OnIoError {
        /// Hand it to the application (writes: mark the blocks out of sync).
        PassOn = "pass_on",
        /// Call the handler `local-io-error`, then detach.
        CallHandler = "call-local-io-error",
        /// Go on without the disk.
        Detach = "detach",
    }
);
words!(
    /// What to do when a Primary loses its peer.
    Fencing {
        /// Nothing.
        DontCare = "dont-care",
        /// Call the handler `fence-peer`.
        ResourceOnly = "resource-only",
        /// Freeze I/O and call the handler `fence-peer`.
        ResourceAndStonith = "resource-and-stonith",
    }
);
words!(
    /// Where a Primary reads.
    ReadBalancing {
        /// The local disk.
        PreferLocal = "prefer-local",
        /// The peer's disk.
        PreferRemote = "prefer-remote",
        /// By turns.
        RoundRobin = "round-robin",
        /// Where fewer requests are in flight.
        LeastPending = "least-pending",
        /// The peer's, when the local disk is congested.
        WhenCongestedRemote = "when-congested-remote",
        /// By turns in chunks of 32 KiB.
        Striping32K = "32K-striping",
        /// By turns in chunks of 64 KiB.
        Striping64K = "64K-striping",
        /// By turns in chunks of 128 KiB.
        Striping128K = "128K-striping",
        /// By turns in chunks of 256 KiB.
        Striping256K = "256K-striping",
        /// By turns in chunks of 512 KiB.
        Striping512K = "512K-striping",
        /// By turns in chunks of 1 MiB.
        Striping1M = "1M-striping",
    }
);
words!(
    /// What requests see when no disk with good data can be reached.
    OnNoData {
        /// An I/O error.
        IoError = "io-error",
        /// They wait.
        SuspendIo = "suspend-io",
    }
);
words!(
    /// Whether this installation may be counted; kept for compatibility, never acted on.
    UsageCount {
        /// Yes.
        Yes = "yes",
        /// No.
        No = "no",
        /// Ask.
        Ask = "ask",
    }
);
words!(
    /// Events that can run a shell command.
    Handler {
        /// A Primary lost its last good data.
        PriOnInconDegr = "pri-on-incon-degr",
        /// A Primary lost the recovery from a split brain.
        PriLostAfterSb = "pri-lost-after-sb",
        /// A Primary should become target of a resync.
        PriLost = "pri-lost",
        /// The connection was lost and `fencing` asks for it.
        FencePeer = "fence-peer",
        /// The resync after fencing is done.
        UnfencePeer = "unfence-peer",
        /// The backing device failed and `on-io-error` asks for it.
        LocalIoError = "local-io-error",
        /// A split brain was seen, before the policies.
        InitialSplitBrain = "initial-split-brain",
        /// A split brain stays unresolved.
        SplitBrain = "split-brain",
        /// Before becoming target of a resync; a failure drops the connection.
        BeforeResyncTarget = "before-resync-target",
        /// A resync to this node is done.
        AfterResyncTarget = "after-resync-target",
        /// Before becoming source of a resync; a failure drops the connection.
        BeforeResyncSource = "before-resync-source",
        /// An online verify found differences.
        OutOfSync = "out-of-sync",
    }
);
words!(
    /// Address family of a replication address.
    Family {
        /// TCP over IPv4.
        Ipv4 = "ipv4",
        /// TCP over IPv6.
        Ipv6 = "ipv6",
        /// Super sockets (Dolphin); parsed and printed only.
        Ssocks = "ssocks",
        /// Sockets direct protocol; parsed and printed only.
        Sdp = "sdp",
    }
);

/// What to do after a split brain without a Primary at connect time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AfterSb0Pri {
    /// Drop the connection.
    Disconnect,
    /// The node that became Primary later is the victim.
    DiscardYoungerPrimary,
    /// The node that became Primary earlier is the victim.
    DiscardOlderPrimary,
    /// A node without changes is the victim; else disconnect.
    DiscardZeroChanges,
    /// The node with fewer changed blocks is the victim.
    DiscardLeastChanges,
    /// This node is the victim.
    DiscardLocal,
    /// The peer is the victim.
    DiscardRemote,
    /// The named host is the victim (only in files: becomes local or remote when a resource is resolved for a host).
    DiscardNode(String),
}

const AFTER_SB_0PRI: &[(&str, AfterSb0Pri)] = &[
    ("disconnect", AfterSb0Pri::Disconnect),
    ("discard-younger-primary", AfterSb0Pri::DiscardYoungerPrimary),
    ("discard-older-primary", AfterSb0Pri::DiscardOlderPrimary),
    ("discard-zero-changes", AfterSb0Pri::DiscardZeroChanges),
    ("discard-least-changes", AfterSb0Pri::DiscardLeastChanges),
    ("discard-local", AfterSb0Pri::DiscardLocal),
    ("discard-remote", AfterSb0Pri::DiscardRemote),
];

impl AfterSb0Pri {
    /// DRBD's words; `discard-node-NAME` stands for one per host.
    pub const WORDS: &'static [&'static str] = &[
        "disconnect",
        "discard-younger-primary",
        "discard-older-primary",
        "discard-zero-changes",
        "discard-least-changes",
        "discard-local",
        "discard-remote",
        "discard-node-NAME",
    ];

    /// The value of a word.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if let Some((_, value)) = AFTER_SB_0PRI.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let name = text.strip_prefix("discard-node-")?;
        (!name.is_empty()).then(|| Self::DiscardNode(name.to_owned()))
    }
}

impl fmt::Display for AfterSb0Pri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiscardNode(name) => write!(f, "discard-node-{name}"),
            other => match AFTER_SB_0PRI.iter().find(|(_, value)| value == other) {
                Some((word, _)) => f.write_str(word),
                None => Ok(()),
            },
        }
    }
}

impl From<AfterSb0Pri> for String {
    fn from(value: AfterSb0Pri) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for AfterSb0Pri {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("'{text}' is no after-sb-0pri policy"))
    }
}

/// After which other volume this one may resync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResyncAfter {
    /// No dependency (the number -1).
    Nothing,
    /// A volume by resource name, as files say it; without a number the resource must have one volume.
    Resource {
        /// Name of the resource.
        resource: String,
        /// Number of its volume.
        volume: Option<VolumeNr>,
    },
    /// A device by minor number, as the daemon and `drbdsetup` say it.
    Minor(Minor),
}

impl fmt::Display for ResyncAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("-1"),
            Self::Resource { resource, volume: None } => f.write_str(resource),
            Self::Resource { resource, volume: Some(nr) } => write!(f, "{resource}/{nr}"),
            Self::Minor(minor) => write!(f, "{minor}"),
        }
    }
}

impl ResyncAfter {
    /// Reads `RES`, `RES/VNR` or `-1`. Anything that does not end in `/NUMBER` is wholly a resource name.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        if text == "-1" {
            return Self::Nothing;
        }
        if let Some((name, nr)) = text.rsplit_once('/')
            && let Ok(nr) = nr.parse::<u16>()
        {
            return Self::Resource { resource: name.to_owned(), volume: Some(VolumeNr(nr)) };
        }
        Self::Resource { resource: text.to_owned(), volume: None }
    }
}

/// The shared secret of peer authentication. `Debug` and `Display` never show it; memory is wiped when dropped.
///
/// It does serialize in the clear: the control socket hands it to the daemon.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The secret's bytes, as the HMAC key wants them.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

macro_rules! number_unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_unit!(
    /// A time in tenths of a second.
    DeciSeconds
);
number_unit!(
    /// A time in seconds.
    Seconds
);
number_unit!(
    /// A rate in KiB per second.
    KibPerSecond
);
number_unit!(
    /// A size in bytes.
    Bytes
);

impl DeciSeconds {
    /// The same time for timers.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64 * 100)
    }
}

impl Seconds {
    /// The same time for timers.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl KibPerSecond {
    /// The same rate in bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0 as u64 * 1024
    }

    /// The same rate in sectors per second.
    #[must_use]
    pub const fn sectors_per_second(self) -> u64 {
        self.0 as u64 * 2
    }
}

/// What a number without a unit letter means, and what its limits are printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Plain numbers (counts, seconds, bytes): no letter.
    One,
    /// KiB: `k`.
    Kib,
    /// Sectors of 512 bytes: `s`.
    Sector,
}

impl Scale {
    /// Size of one unit, in bytes (or plain ones).
    #[must_use]
    pub const fn factor(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Kib => 1024,
            Self::Sector => 512,
        }
    }

    /// The letter behind numbers of this scale.
    #[must_use]
    pub const fn letter(self) -> &'static str {
        match self {
            Self::One => "",
            Self::Kib => "k",
            Self::Sector => "s",
        }
    }
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    /// Not DIGITS or DIGITS UNIT with a unit of k, K, m, M, g, G, s.
    NotANumber,
    /// Does not fit 64 bits.
    Overflow,
}

/// Reads DIGITS or DIGITS UNIT into units of `scale`; what does not divide evenly is rounded up.
///
/// # Errors
/// [`NumberError`] if the text is no number or exceeds 64 bits.
pub fn parse_number(text: &str, scale: Scale) -> Result<u64, NumberError> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'0'..=b'9') => (text, scale.factor()),
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
        Some(b's') => (&text[..text.len() - 1], 512),
        _ => return Err(NumberError::NotANumber),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NumberError::NotANumber);
    }
    let number: u64 = digits.parse().map_err(|_| NumberError::Overflow)?;
    let plain = number.checked_mul(unit).ok_or(NumberError::Overflow)?;
    Ok(plain.div_ceil(scale.factor()))
}

/// A number type that options use.
pub trait NumberValue: Copy {
    /// What a number without a letter means.
    const SCALE: Scale;
    /// The unit in words, for messages.
    const UNIT: &'static str;

    /// From units of the scale; saturates (the ranges of the option table fit the types, which a test asserts).
    fn from_units(units: u64) -> Self;
    /// In units of the scale.
    fn units(self) -> u64;
}

macro_rules! number_value {
    ($name:ty, $scale:expr, $unit:literal, $new:expr, $get:expr) => {
        impl NumberValue for $name {
            const SCALE: Scale = $scale;
            const UNIT: &'static str = $unit;

            fn from_units(units: u64) -> Self {
                $new(u32::try_from(units).unwrap_or(u32::MAX))
            }

            fn units(self) -> u64 {
                u64::from($get(self))
            }
        }
    };
}

number_value!(u32, Scale::One, "", std::convert::identity, std::convert::identity);
number_value!(DeciSeconds, Scale::One, "tenths of a second", DeciSeconds, |v: DeciSeconds| v.0);
number_value!(Seconds, Scale::One, "seconds", Seconds, |v: Seconds| v.0);
number_value!(KibPerSecond, Scale::Kib, "KiB per second", KibPerSecond, |v: KibPerSecond| v.0);
number_value!(Bytes, Scale::One, "bytes", Bytes, |v: Bytes| v.0);

impl NumberValue for Sectors {
    const SCALE: Scale = Scale::Sector;
    const UNIT: &'static str = "sectors of 512 bytes";

    fn from_units(units: u64) -> Self {
        Self(units)
    }

    fn units(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_convert_to_the_unit_of_their_option_and_round_up() {
        assert_eq!(parse_number("110M", Scale::Kib), Ok(112_640));
        assert_eq!(parse_number("1s", Scale::Kib), Ok(1));
        assert_eq!(parse_number("3s", Scale::Kib), Ok(2));
        assert_eq!(parse_number("250", Scale::Kib), Ok(250));
        assert_eq!(parse_number("1k", Scale::Sector), Ok(2));
        assert_eq!(parse_number("20971520s", Scale::Sector), Ok(20_971_520));
        assert_eq!(parse_number("512k", Scale::One), Ok(524_288));
        assert_eq!(parse_number("1G", Scale::Kib), Ok(1_048_576));
        assert_eq!(parse_number("2g", Scale::Sector), Ok(4_194_304));
        assert_eq!(parse_number("10m", Scale::One), Ok(10_485_760));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "k", "10T", "5.5", "0x5", "abc", "-1", "+1", "1kk", "10S", " 1", "1 k"] {
            assert_eq!(parse_number(text, Scale::One), Err(NumberError::NotANumber), "{text}");
        }
        assert_eq!(parse_number("99999999999999999999", Scale::One), Err(NumberError::Overflow));
        assert_eq!(parse_number("18446744073709551615k", Scale::One), Err(NumberError::Overflow));
        assert_eq!(parse_number("18446744073709551615", Scale::Kib), Err(NumberError::Overflow));
    }

    #[test]
    fn the_secret_does_not_show() {
        assert_eq!(format!("{:?}", Secret::new("hush".to_owned())), "Secret(***)");
    }

    #[test]
    fn discard_node_needs_a_name() {
        assert_eq!(AfterSb0Pri::from_text("discard-node-n1"), Some(AfterSb0Pri::DiscardNode("n1".to_owned())));
        assert_eq!(AfterSb0Pri::from_text("discard-node-"), None);
        for word in AfterSb0Pri::WORDS {
            assert_eq!(AfterSb0Pri::from_text(word).unwrap().to_string(), **word);
        }
    }
}
