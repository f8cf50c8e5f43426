//! `cargo xtask policies`: the matrix of `tests/policies`, against kernels in the lab.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::test::tallied;

/// Plays every `step`-th cell from `from` on with every pair of nodes; writes the table to `write`.
pub fn run(from: u64, step: u64, write: Option<&Path>) -> ExitCode {
    let begin = Instant::now();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["test", "--quiet", "--package", "udrbd", "--test", "policies"])
        .env("UDRBD_POLICIES", "1")
        .env("UDRBD_POLICIES_FROM", from.to_string())
        .env("UDRBD_POLICIES_STEP", step.to_string())
        .current_dir(xtask::tidy::root());
    if let Some(path) = write {
        // The test runs in the root of the tree, whoever calls.
        match std::path::absolute(path) {
            Ok(path) => drop(command.env("UDRBD_POLICIES_WRITE", path)),
            Err(error) => {
                eprintln!("policies: {}: {error}", path.display());
                return ExitCode::from(2);
            }
        }
    }
    let (success, tally) = match tallied(&mut command, |line| print!("{line}")) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("policies: cannot run cargo: {error}");
            return ExitCode::from(2);
        }
    };
    // Where the lab cannot run nothing was compared, and that is no success.
    let played = tally.passed == 1;
    let verdict = if success && played { "all pairs decide alike" } else { "NOT all pairs decide alike" };
    println!("policies: {verdict}; {} s", begin.elapsed().as_secs());
    if success && played { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
