//! What one row of the option table says, and how a value is read by it.
//!
//! Owns [`OptionSpec`] and [`OptionValue`]; the rows are in [`super::options`]. Source: config-and-commands.md 5.

use std::fmt;

use super::values::{
    AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Fencing, NumberError, NumberValue, OnCongestion, OnIoError, OnNoData,
    Protocol, ReadBalancing, ResyncAfter, RrConflict, Scale, Secret, parse_number,
};

/// A section of the language that holds options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `net { }`
    Net,
    /// `disk { }`
    Disk,
    /// `options { }`
    Options,
    /// `startup { }`
    Startup,
    /// `handlers { }`
    Handlers,
    /// `proxy { }`
    Proxy,
}

impl Section {
    /// The word that opens the section.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Disk => "disk",
            Self::Options => "options",
            Self::Startup => "startup",
            Self::Handlers => "handlers",
            Self::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

/// What values an option takes, and its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `yes` or `no`; the bare name means yes.
    Flag {
        /// Value when not set.
        default: bool,
    },
    /// A number.
    Number {
        /// Meaning of a number without a letter; `min`, `max` and `default` are in it.
        scale: Scale,
        /// The unit in words; empty for counts.
        unit: &'static str,
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
        /// Value when not set.
        default: u64,
    },
    /// One of a few words.
    Word {
        /// The words.
        words: &'static [&'static str],
        /// Value when not set.
        default: &'static str,
    },
    /// Free text; empty means off.
    Text {
        /// Largest length in bytes.
        max_len: usize,
    },
    /// Another volume: `RES` or `RES/VNR`; -1 for none.
    Volume,
}

/// When a running device takes a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Online {
    /// At once, through the `*-options` commands and `adjust`.
    Now,
    /// With the next connection.
    Reconnect,
    /// With the next attach.
    Reattach,
    /// Through `resize`.
    Resize,
    /// Read by tools when they start.
    Tools,
}

/// Why setting an option has no effect in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Values (as [`OptionValue::text`] prints them) that nevertheless mean what they say.
    pub effective: &'static [&'static str],
    /// What happens instead.
    pub why: &'static str,
}

/// One row of the option table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Name in files and, behind `--`, on command lines.
    pub name: &'static str,
    /// The section it belongs to.
    pub section: Section,
    /// Type, range and default.
    pub kind: Kind,
    /// Older name that is accepted too (`rate` for `resync-rate`).
    pub alias: Option<&'static str>,
    /// Older spelling that switches a flag off (`no-tcp-cork`).
    pub negated: Option<&'static str>,
    /// Whether 8.3's `syncer { }` takes it.
    pub in_syncer: bool,
    /// Whether it may stand in a file; else it is an option of commands only.
    pub in_file: bool,
    /// When a running device takes a new value.
    pub online: Online,
    /// Whether numbers outside the range are moved into it with a warning instead of being refused.
    pub clamps: bool,
    /// Set when this version does not act on the option.
    pub pending: Option<Pending>,
}

/// The columns of a row that most options leave alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) alias: Option<&'static str>,
    pub(super) negated: Option<&'static str>,
    pub(super) in_syncer: bool,
    pub(super) in_file: bool,
    pub(super) online: Online,
    pub(super) clamps: bool,
    pub(super) pending: Option<Pending>,
}

impl Traits {
    pub(super) const PLAIN: Self = Self {
        alias: None,
        negated: None,
        in_syncer: false,
        in_file: true,
        online: Online::Now,
        clamps: false,
        pending: None,
    };

    pub(super) const fn clamps(mut self) -> Self {
        self.clamps = true;
        self
    }

    pub(super) const fn syncer(mut self) -> Self {
        self.in_syncer = true;
        self
    }

    pub(super) const fn alias(mut self, name: &'static str) -> Self {
        self.alias = Some(name);
        self
    }

    pub(super) const fn negated(mut self, name: &'static str) -> Self {
        self.negated = Some(name);
        self
    }

    pub(super) const fn online(mut self, online: Online) -> Self {
        self.online = online;
        self
    }

    pub(super) const fn command_only(mut self) -> Self {
        self.in_file = false;
        self
    }

    pub(super) const fn pending(mut self, effective: &'static [&'static str], why: &'static str) -> Self {
        self.pending = Some(Pending { effective, why });
        self
    }
}

/// Why a value is refused. Displays as what is wrong; `help` says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ValueError {
    /// What is wrong, with the option's name and the value.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

impl OptionSpec {
    /// The default as a file would say it; empty when the default is "off" or "none".
    #[must_use]
    pub fn default_text(&self) -> String {
        match self.kind {
            Kind::Flag { default } => OptionValue::text(&default),
            Kind::Number { default, .. } => default.to_string(),
            Kind::Word { default, .. } => default.to_owned(),
            Kind::Text { .. } | Kind::Volume => String::new(),
        }
    }

    /// Allowed values in words, for messages: `1..600, in tenths of a second`.
    #[must_use]
    pub fn range_text(&self) -> String {
        match self.kind {
            Kind::Flag { .. } => "yes or no".to_owned(),
            Kind::Number { scale, unit, min, max, .. } => {
                let letter = scale.letter();
                let unit = if unit.is_empty() { String::new() } else { format!(", in {unit}") };
                format!("{min}{letter}..{max}{letter}{unit}")
            }
            Kind::Word { words, .. } => format!("one of {}", words.join(", ")),
            Kind::Text { max_len } => format!("text of at most {max_len} characters"),
            Kind::Volume => "RESOURCE or RESOURCE/VOLUME".to_owned(),
        }
    }

    /// Whether `text` is an allowed value.
    ///
    /// # Errors
    /// What is wrong with it, and the allowed values.
    pub fn check(&self, text: &str) -> Result<(), ValueError> {
        match self.kind {
            Kind::Flag { .. } => bool::parse(self, text).map(drop),
            Kind::Number { .. } => self.number(text).map(drop),
            Kind::Word { words, .. } => {
                // Only the protocol letter is case-insensitive; `discard-node-NAME` stands for any name.
                let known = words.contains(&text)
                    || (self.name == "protocol" && words.contains(&text.to_ascii_uppercase().as_str()))
                    || (self.name == "after-sb-0pri" && AfterSb0Pri::from_text(text).is_some());
                if known { Ok(()) } else { Err(self.refuse(text, "is no known value")) }
            }
            Kind::Text { max_len } if text.len() > max_len => {
                Err(self.error(format!("the value of {} has {} characters", self.name, text.len())))
            }
            Kind::Text { .. } => Ok(()),
            Kind::Volume if text.is_empty() => Err(self.refuse(text, "names no resource")),
            Kind::Volume => Ok(()),
        }
    }

    /// The value that is used in place of `text`, if this option moves numbers into its range and has to here.
    #[must_use]
    pub fn clamped(&self, text: &str) -> Option<String> {
        let Kind::Number { scale, min, max, .. } = self.kind else { return None };
        let units = parse_number(text, scale).ok().filter(|units| self.clamps && !(min..=max).contains(units))?;
        Some(units.clamp(min, max).to_string())
    }

    fn number(&self, text: &str) -> Result<u64, ValueError> {
        let Kind::Number { scale, min, max, .. } = self.kind else {
            return Err(self.refuse(text, "is no number option"));
        };
        match parse_number(text, scale) {
            Ok(units) if (min..=max).contains(&units) => Ok(units),
            Ok(units) if self.clamps => Ok(units.clamp(min, max)),
            Ok(units) => Err(self.error(format!(
                "{} {text} => {units}{letter} out of range [{min}..{max}]{letter}",
                self.name,
                letter = scale.letter()
            ))),
            Err(NumberError::NotANumber) => {
                let mut error = self.refuse(text, "is not a valid number");
                error.help.push_str("; units: none, k, M, G, or s for sectors of 512 bytes");
                Err(error)
            }
            Err(NumberError::Overflow) => Err(self.refuse(text, "is out of range")),
        }
    }

    fn refuse(&self, text: &str, what: &str) -> ValueError {
        self.error(format!("{}: '{text}' {what}", self.name))
    }

    fn error(&self, message: String) -> ValueError {
        ValueError { message, help: format!("{} takes {}", self.name, self.range_text()) }
    }
}

/// A value that an option can hold.
pub trait OptionValue: Sized {
    /// Reads a value as files and command lines give it.
    ///
    /// # Errors
    /// The value is not one that `spec` allows.
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError>;

    /// The value as a file would say it. A shared secret comes out in the clear.
    fn text(&self) -> String;
}

impl OptionValue for bool {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        match text {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err(spec.refuse(text, "is neither yes nor no")),
        }
    }

    fn text(&self) -> String {
        if *self { "yes".to_owned() } else { "no".to_owned() }
    }
}

impl<T: NumberValue> OptionValue for T {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        spec.number(text).map(T::from_units)
    }

    fn text(&self) -> String {
        self.units().to_string()
    }
}

impl OptionValue for String {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        spec.check(text)?;
        Ok(text.to_owned())
    }

    fn text(&self) -> String {
        self.clone()
    }
}

impl OptionValue for Secret {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        spec.check(text)?;
        Ok(Self::new(text.to_owned()))
    }

    fn text(&self) -> String {
        self.expose().to_owned()
    }
}

impl OptionValue for ResyncAfter {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        spec.check(text)?;
        Ok(Self::from_text(text))
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl OptionValue for Protocol {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        Self::from_text(&text.to_ascii_uppercase()).ok_or_else(|| spec.refuse(text, "is no protocol"))
    }

    fn text(&self) -> String {
        Self::text(*self).to_owned()
    }
}

impl OptionValue for AfterSb0Pri {
    fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
        Self::from_text(text).ok_or_else(|| spec.refuse(text, "is no known value"))
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

macro_rules! word_values {
    ($($name:ty),+ $(,)?) => {$(
        impl OptionValue for $name {
            fn parse(spec: &OptionSpec, text: &str) -> Result<Self, ValueError> {
                <$name>::from_text(text).ok_or_else(|| spec.refuse(text, "is no known value"))
            }

            fn text(&self) -> String {
                <$name>::text(*self).to_owned()
            }
        }
    )+};
}

word_values!(AfterSb1Pri, AfterSb2Pri, RrConflict, OnCongestion, OnIoError, Fencing, ReadBalancing, OnNoData);
