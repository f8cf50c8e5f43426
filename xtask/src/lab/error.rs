//! The lab's one error type: a sentence that says what could not be done and why.

use std::fmt;

/// What went wrong in the lab, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabError(String);

impl LabError {
    /// An error that reads `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// An error of the operating system while `doing`.
    pub fn io(doing: impl fmt::Display, err: &std::io::Error) -> Self {
        Self(format!("cannot {doing}: {err}"))
    }
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LabError {}

/// Shorthand of this module.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
