//! `cargo xtask policies`: the matrix of `tests/policies`, against kernels in the lab.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::test::{prepared, tallied};

/// Plays every `step`-th cell from `from` on with every pair of nodes; writes the table to `write`.
pub fn run(install: bool, from: u64, step: u64, write: Option<&Path>) -> ExitCode {
    let begin = Instant::now();
    let Some(mut command) = prepared(install) else { return ExitCode::FAILURE };
    command
        .args(["test", "--quiet", "--package", "udrbd", "--test", "policies"])
        .env("UDRBD_POLICIES", "1")
        .env("UDRBD_POLICIES_FROM", from.to_string())
        .env("UDRBD_POLICIES_STEP", step.to_string());
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
    let (verdict, code) = match (success, tally.passed) {
        (true, 1) => ("all pairs decide alike", ExitCode::SUCCESS),
        // Where the lab cannot run that is no success either.
        (true, _) => ("nothing was compared", ExitCode::FAILURE),
        _ => ("NOT all pairs decide alike", ExitCode::FAILURE),
    };
    println!("policies: {verdict}; {} s", begin.elapsed().as_secs());
    code
}
