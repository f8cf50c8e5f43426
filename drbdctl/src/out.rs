//! The only way to stdout and stderr.
//!
//! Invariants: a closed pipe is no error (`drbdctl status | head`), except for endless streams, which end.

use std::io::{self, BufWriter, IsTerminal, Write};

/// Writes `text` to stdout as it is.
pub fn print(text: &str) {
    // Nobody is left to tell.
    let _ = stream(text);
}

/// Writes `text` to stdout at once.
///
/// # Errors
/// Those of stdout: an endless stream ends then.
pub fn stream(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes `text` and a line feed to stdout.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Writes `text` and a line feed to stderr.
pub fn say(text: &str) {
    hint(&format!("{text}\n"));
}

/// Writes `text` to stderr as it is.
pub fn hint(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Buffered stdout for long texts; the caller flushes.
pub fn writer() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Whether stdout is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Columns of the terminal; 80 if stdout is none.
pub fn width() -> usize {
    let size = is_terminal().then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten();
    size.map(|size| usize::from(size.ws_col)).filter(|&width| width > 0).unwrap_or(80)
}
