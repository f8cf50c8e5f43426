//! Why a request was refused: DRBD's numbers with DRBD's texts, and the exit codes that the tools make of them.
//!
//! Source: config-and-commands.md 12.3, behaviour.md 2.2 and 14.1.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::engine::action::CommandError;
use crate::wire::state::StateResult;

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The state machine refused; the code is DRBD's `SS_*` number, 0 or below.
    State,
    /// The request cannot be carried out; the code is DRBD's `ERR_*` number, 101 to 170.
    Err,
    /// The request makes no sense; the code is 0.
    Usage,
    /// The outside world failed (a socket, a file, a thread); the code is the errno, or 0.
    Io,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What kind.
    pub kind: ErrorKind,
    /// The number, see [`ErrorKind`].
    pub code: i32,
    /// DRBD's text, or what happened. May have several lines.
    pub text: String,
    /// More for people: cause and next step; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl ErrorReply {
    /// The state machine refused.
    #[must_use]
    pub fn state(result: StateResult) -> Self {
        Self { kind: ErrorKind::State, code: result.code(), text: result.text().to_owned(), detail: String::new() }
    }

    /// An `ERR_*` number.
    #[must_use]
    pub fn code(code: u16) -> Self {
        let text = code_text(code).unwrap_or_default().to_owned();
        Self { kind: ErrorKind::Err, code: i32::from(code), text, detail: String::new() }
    }

    /// A request that makes no sense.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, code: 0, text: text.into(), detail: String::new() }
    }

    /// The outside world failed.
    #[must_use]
    pub fn io(text: impl Into<String>, error: &std::io::Error) -> Self {
        let text = format!("{}: {error}", text.into());
        Self { kind: ErrorKind::Io, code: error.raw_os_error().unwrap_or(0), text, detail: String::new() }
    }

    /// With more words.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The exit code of drbdsetup.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match (self.kind, self.code) {
            (ErrorKind::State, -2) => 17,
            (ErrorKind::State, -4) => 16,
            (ErrorKind::State, -16) => 5,
            (ErrorKind::State, _) => 11,
            (ErrorKind::Err, 101..=170) => 10,
            (ErrorKind::Err | ErrorKind::Usage | ErrorKind::Io, _) => 20,
        }
    }

    /// The lines that drbdsetup prints on stderr about `object` (a minor, a resource, or `??`); the last one ends without
    /// a line feed.
    #[must_use]
    pub fn message(&self, object: &str) -> String {
        let mut text = match self.kind {
            ErrorKind::State => format!("{object}: State change failed: ({}) {}", self.code, self.text),
            ErrorKind::Err if self.text.is_empty() => {
                let code = self.code;
                format!("{object}: Error code {code} unknown.\nYou should update the drbd userland tools.")
            }
            ErrorKind::Err => format!("{object}: Failure: ({}) {}", self.code, self.text),
            ErrorKind::Usage | ErrorKind::Io => format!("{object}: {}", self.text),
        };
        if !self.detail.is_empty() {
            let separator = match self.kind {
                ErrorKind::State | ErrorKind::Err => "\nadditional info from kernel:\n",
                ErrorKind::Usage | ErrorKind::Io => "; ",
            };
            text.push_str(separator);
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ErrorKind::State | ErrorKind::Err => write!(f, "({}) {}", self.code, self.text)?,
            ErrorKind::Usage | ErrorKind::Io => f.write_str(&self.text)?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, "; {}", self.detail) }
    }
}

impl std::error::Error for ErrorReply {}

impl From<CommandError> for ErrorReply {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::State(result) => Self::state(result),
            CommandError::Code { code, detail } => Self::code(code).detail(detail),
        }
    }
}

/// DRBD's text for an `ERR_*` number; a line feed where the tools break the line.
#[must_use]
pub const fn code_text(code: u16) -> Option<&'static str> {
    Some(match code {
        101 => "No further Information available.",
        102 => "Local address(port) already in use.",
        103 => "Remote address(port) already in use.",
        104 => "Can not open backing device.",
        105 => "Can not open meta device.",
        106 => "Lower device already in use.",
        107 => "Lower device is not a block device.",
        108 => "Meta device is not a block device.",
        109 => "Open of lower device failed.",
        110 => "Open of meta device failed.",
        111 => "Low.dev. smaller than requested DRBD-dev. size.",
        112 => "Meta device too small.",
        113 => "You have to use the disk command first.",
        114 => "Lower device is already claimed. This usually means it is mounted.",
        115 => "Meta device is already claimed. This usually means it is mounted.",
        116 => "Lower device / meta device / index combination invalid.",
        118 => "IO error(s) occurred during initial access to meta-data.\n",
        119 => {
            "No valid meta-data signature found.\n\n\t==> Use 'drbdadm create-md res' to initialize meta-data area. <==\n"
        }
        120 => {
            "The 'cram-hmac-alg' you specified is not known in the kernel. \
             (Maybe you need to modprobe it, or modprobe hmac?)"
        }
        121 => "The 'cram-hmac-alg' you specified is not a digest.",
        122 => "kmalloc() failed. Out of memory?",
        123 => "--discard-my-data not allowed when primary.",
        124 => "Device is attached to a disk (use detach first)",
        125 => "Device has a net-config (use disconnect first)",
        126 => "UnknownMandatoryTag",
        127 => "Device minor not allocated",
        128 => "Resulting device state would be invalid",
        129 => "Interrupted by Signal",
        130 => "Resize not allowed during resync.",
        131 => "Need one Primary node to resize.",
        132 => "The resync-after minor number is invalid",
        133 => "This would cause a resync-after dependency cycle",
        134 => "Sync-pause flag is already set",
        135 => "Sync-pause flag is already cleared",
        136 => "Disk state is lower than outdated",
        137 => "Kernel does not know how to handle your request.\nMaybe API_VERSION mismatch?",
        138 => "Device does not have a disk-config",
        139 => "Protocol C required",
        140 => "vmalloc() failed. Out of memory?",
        141 => {
            "The 'data-integrity-alg' you specified is not known in the kernel. \
             (Maybe you need to modprobe it, or modprobe hmac?)"
        }
        142 => "The 'data-integrity-alg' you specified is not a digest.",
        143 => "Invalid cpu-mask.",
        144 => "CSUMSAlgNotAvail",
        145 => "CSUMSAlgNotDigest",
        146 => "VERIFYAlgNotAvail",
        147 => "VERIFYAlgNotDigest",
        148 => "Can not change csums-alg while resync is in progress",
        149 => "Can not change verify-alg while online verify runs",
        150 => "Can only attach to the data we lost last (see kernel log).",
        151 => "Need to be StandAlone",
        152 => "Permission denied. CAP_SYS_ADMIN necessary",
        153 => "Protocol version 93 required to use --assume-clean",
        154 => "Fencing policy resource-and-stonith only with prot B or C allowed",
        155 => "on-congestion policy pull-ahead only with prot A allowed",
        156 => "Sync-pause flag is already cleared.\nNote: Resync pause caused by a local resync-after dependency.",
        157 => "Sync-pause flag is already cleared.\nNote: Resync pause caused by the peer node.",
        158 => "Unknown resource",
        159 => "Resource still in use (delete all minors first)",
        160 => "Minor still configured (down it first)",
        161 => "Minor or volume exists already (delete it first)",
        162 => "Invalid configuration request",
        163 => "Prot version 100 required in order to change\nthese network options while connected",
        164 => "Can not clear allow_two_primaries as long as\nthere a primaries on both sides",
        165 => "Unclean meta-data found.\nYou need to 'drbdadm apply-al res'\n",
        166 => "DRBD need to be connected for online MD layout change",
        167 => "Resulting AL area too big",
        168 => "Resulting AL are too small",
        169 => "Resulting AL does not fit into available meta data space",
        170 => "Implicit device shrinking not allowed. See kernel log.",
        _ => return None,
    })
}
