//! `drbdctl demo`: two nodes on this machine.

use crate::out;

/// Runs the demo; gives the exit code. `once`: unattended; `keep`: leave files and daemons.
pub fn run(once: bool, keep: bool) -> u8 {
    let _ = (once, keep);
    out::say("drbdctl: the demo is not built in");
    1
}

/// Runs this program as one of the demo's helpers if `words` (without the program's name) ask for that.
pub fn run_hidden(words: &[String]) -> Option<u8> {
    let _ = words;
    None
}
