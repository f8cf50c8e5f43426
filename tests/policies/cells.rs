//! The matrix: which split brains there are, and which policies meet them.

use std::fmt;

/// One split brain, and what both nodes are told to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// after-sb-0pri.
    pub zero: &'static str,
    /// after-sb-1pri.
    pub one: &'static str,
    /// after-sb-2pri.
    pub two: &'static str,
    /// Which node wrote while it was alone. Both were Primary, the first node first.
    pub changed: [bool; 2],
    /// Which node is Primary when they meet.
    pub primary: [bool; 2],
}

const ZERO: [&str; 7] = [
    "disconnect",
    "discard-younger-primary",
    "discard-older-primary",
    "discard-zero-changes",
    "discard-least-changes",
    // `discard-node-NAME` of that node.
    "discard-first",
    "discard-second",
];
const ONE: [&str; 5] = ["disconnect", "consensus", "violently-as0p", "discard-secondary", "call-pri-lost-after-sb"];
const TWO: [&str; 3] = ["disconnect", "violently-as0p", "call-pri-lost-after-sb"];
/// Policies without a Primary that those with one fall back on: one that looks at changes, one that always decides, one that
/// looks at the past.
const BELOW: [&str; 3] = ["discard-zero-changes", "discard-least-changes", "discard-younger-primary"];
const CHANGED: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];

/// All cells.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    let none =
        Cell { zero: "disconnect", one: "disconnect", two: "disconnect", changed: [true; 2], primary: [false; 2] };
    for zero in ZERO {
        cells.extend(CHANGED.map(|changed| Cell { zero, changed, ..none }));
    }
    for one in ONE {
        for zero in below(one == "disconnect" || one == "discard-secondary") {
            for primary in [[true, false], [false, true]] {
                cells.extend(CHANGED.map(|changed| Cell { zero, one, changed, primary, ..none }));
            }
        }
    }
    for two in TWO {
        for zero in below(two == "disconnect") {
            cells.extend(CHANGED.map(|changed| Cell { zero, two, changed, primary: [true; 2], ..none }));
        }
    }
    cells
}

/// A policy that never asks the one below needs only one of them.
fn below(ignored: bool) -> impl Iterator<Item = &'static str> {
    BELOW.into_iter().take(if ignored { 1 } else { BELOW.len() })
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = |which: [bool; 2]| match which {
            [true, true] => "both",
            [true, false] => "first",
            [false, true] => "second",
            [false, false] => "none",
        };
        let policies = match self.primary.iter().filter(|primary| **primary).count() {
            0 => self.zero.to_owned(),
            1 => format!("{} / {}", self.one, self.zero),
            _ => format!("{} / {}", self.two, self.zero),
        };
        write!(f, "{policies} | {} | {}", nodes(self.primary), nodes(self.changed))
    }
}
