//! What happened, in order: a running digest of every run, and the lines themselves when asked for.
//!
//! Two runs of one seed must have the same digest; with lines, the same bytes.

use std::fmt::Write as _;

use super::plan::Seconds;
use crate::engine::rng::mix;

/// The record of a run.
#[derive(Debug, Default)]
pub struct Trace {
    digest: u64,
    lines: Option<String>,
}

impl Trace {
    /// A record; with lines or only the digest.
    #[must_use]
    pub fn new(lines: bool) -> Self {
        Self { digest: 0, lines: lines.then(String::new) }
    }

    /// Something happened: what kind, where, which, and words that are made only if lines are kept.
    pub fn note(&mut self, now: u64, node: usize, kind: u64, which: u64, words: impl FnOnce() -> String) {
        self.digest = mix(self.digest.rotate_left(7)
            ^ now
            ^ (kind << 56)
            ^ (node as u64) << 48
            ^ which.wrapping_mul(0x9e37_79b9));
        if let Some(lines) = &mut self.lines {
            let name = ["A", "B", "-"].get(node).copied().unwrap_or("?");
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{:>12} {name} {}", Seconds(now), words());
        }
    }

    /// The digest so far.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// The lines, if they were kept.
    #[must_use]
    pub fn lines(&self) -> Option<&str> {
        self.lines.as_deref()
    }
}
