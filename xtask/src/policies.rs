//! `cargo xtask policies` and `cargo xtask handshake`: the tables of `tests/policies`, against kernels in the lab.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::test::{prepared, tallied};

/// Plays every `step`-th split brain from `from` on with every pair of nodes; writes the table to `write`.
pub fn run(install: bool, from: u64, step: u64, write: Option<&Path>) -> ExitCode {
    play("policies", install, write, |command| {
        command
            .env("UDRBD_POLICIES", "1")
            .env("UDRBD_POLICIES_FROM", from.to_string())
            .env("UDRBD_POLICIES_STEP", step.to_string());
    })
}

/// Lets every pair of nodes meet by every rule of the handshake; writes the table to `write`.
pub fn handshake(install: bool, write: Option<&Path>) -> ExitCode {
    play("handshake", install, write, |command| {
        command.env("UDRBD_HANDSHAKE", "1");
    })
}

fn play(name: &str, install: bool, write: Option<&Path>, ask: impl FnOnce(&mut Command)) -> ExitCode {
    let begin = Instant::now();
    let Some(mut command) = prepared(install) else { return ExitCode::FAILURE };
    command.args(["test", "--quiet", "--package", "udrbd", "--test", "policies"]);
    ask(&mut command);
    // The test runs in the root of the tree, whoever calls.
    match write.map(std::path::absolute).transpose() {
        Ok(path) => {
            let path: Option<PathBuf> = path;
            command.envs(path.map(|path| (format!("UDRBD_{}_WRITE", name.to_uppercase()), path)));
        }
        Err(error) => {
            eprintln!("{name}: {}: {error}", write.map_or_else(String::new, |path| path.display().to_string()));
            return ExitCode::from(2);
        }
    }
    let (success, tally) = match tallied(&mut command, |line| print!("{line}")) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("{name}: cannot run cargo: {error}");
            return ExitCode::from(2);
        }
    };
    let (verdict, code) = match (success, tally.passed) {
        (true, 1) => ("all pairs decide alike", ExitCode::SUCCESS),
        // Where the lab cannot run that is no success either.
        (true, _) => ("nothing was compared", ExitCode::FAILURE),
        _ => ("NOT all pairs decide alike", ExitCode::FAILURE),
    };
    println!("{name}: {verdict}; {} s", begin.elapsed().as_secs());
    code
}
