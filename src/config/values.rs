//! The values that options take besides words: numbers with a unit, the shared secret, references to volumes.
//!
//! Owns how one value is read from text and written back as DRBD writes it; serde uses DRBD's words too. Knows nothing of
//! sections, files or positions. Source: config-and-commands.md 2.2.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

pub use super::words::{
    AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Family, Fencing, Handler, OnCongestion, OnIoError, OnNoData, Protocol,
    ReadBalancing, RrConflict, UsageCount,
};
use crate::units::{Minor, Sectors, VolumeNr};

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
}
