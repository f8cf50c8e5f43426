//! Questions, as drbdmeta asks them.

use std::io::{self, IsTerminal};

use crate::out;

/// Asks; only the word `yes` on a terminal, or `force`, means yes.
pub fn confirm(question: &str, force: bool) -> bool {
    out::say(&format!("\n{question}"));
    if force {
        out::say("*** confirmation forced via --force option ***");
        return true;
    }
    if !io::stdin().is_terminal() {
        out::say("stdin not a TTY, not waiting for confirmation");
        return false;
    }
    out::hint("[need to type 'yes' to confirm] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && answer.trim_end_matches(['\r', '\n']) == "yes"
}
