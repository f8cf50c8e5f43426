//! Placeholder entry point.
mod demo;
mod out;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if let Some(code) = demo::run_hidden(&words) {
        return ExitCode::from(code);
    }
    ExitCode::from(demo::run(words.iter().any(|w| w == "--once"), words.iter().any(|w| w == "--keep")))
}
