//! `cargo xtask test`: everything that is tested, and one line at the end that says how it went.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use xtask::harness::SHARE_VARIABLE;
use xtask::lab::KERNEL_VARIABLE;

use crate::{crash_states, packages};

/// Continuous integration plays one of so many shares of the kernel lab's cases, another one with every commit.
const LAB_SHARES: u64 = 3;

/// Sums of the `test result:` lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    skipped: u64,
    /// Why cases were skipped, each reason once.
    reasons: Vec<String>,
}

impl Tally {
    fn line(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix("test ").and_then(|rest| Some(rest.split_once(" ... ignored, ")?.1)) {
            if !self.reasons.iter().any(|known| known == reason) {
                self.reasons.push(reason.to_owned());
            }
            return;
        }
        let Some((_verdict, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            let (number, kind) = count.split_once(' ').unwrap_or_default();
            let number: u64 = number.parse().unwrap_or(0);
            match kind {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Runs `cargo test` as `command` says; `each` gets every line of it. Its success, and the sums.
pub fn tallied(command: &mut Command, mut each: impl FnMut(&str)) -> std::io::Result<(bool, Tally)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line);
            each(&text);
            tally.line(text.trim_end());
            line.clear();
        }
    }
    let success = child.wait().is_ok_and(|status| status.success());
    Ok((success, tally))
}

/// Installs what tests need if it is asked to, and builds the programs that they start. Gives cargo, to be told what to test;
/// `None`: the build failed.
pub fn prepared(install: bool) -> Option<Command> {
    if install && let Err(hint) = packages::ensure() {
        println!("xtask: {hint}");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = xtask::tidy::root();
    // `cargo test` builds only the binaries of packages that have integration tests; ours run each other's.
    let built =
        Command::new(&cargo).args(["build", "--workspace", "--bins"]).current_dir(&root).stdin(Stdio::null()).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("xtask: the build failed");
        return None;
    }
    let mut command = Command::new(&cargo);
    command.current_dir(&root);
    if let Some(kernel) = std::env::var_os(KERNEL_VARIABLE) {
        // Named relative to the caller's directory, perhaps; tests run elsewhere.
        command.env(KERNEL_VARIABLE, std::path::absolute(&kernel).unwrap_or_else(|_| PathBuf::from(kernel)));
    }
    Some(command)
}

/// Runs the tests; `filter` goes to every test binary.
pub fn run(install: bool, filter: &[String]) -> ExitCode {
    let Some(mut command) = prepared(install) else { return ExitCode::FAILURE };
    command.args(["test", "--workspace", "--no-fail-fast", "--"]).args(filter);
    if std::env::var_os("CI").is_some() {
        command.env(SHARE_VARIABLE, format!("{}/{LAB_SHARES}", crate::sim::drawn(LAB_SHARES)));
    }
    command.env(crash_states::SEED_VARIABLE, crate::sim::drawn(crash_states::SEEDS).to_string());
    let (success, tally) = match tallied(&mut command, |line| print!("{line}")) {
        Ok(done) => done,
        Err(err) => {
            println!("xtask: cannot run cargo: {err}");
            return ExitCode::FAILURE;
        }
    };
    // A filter names tests; seeds have no names.
    let sound = !filter.is_empty() || crate::sim::share().unwrap_or(false);
    for reason in &tally.reasons {
        println!("skipped: {reason}");
    }
    if !success && tally.failed == 0 {
        println!("xtask: cargo test failed although no test did (a test binary died, or did not build)");
    }
    if !sound {
        println!("xtask: the simulator found something, see above");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    if sound && success && tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test b ... ignored, the kernel lab needs root",
            "test c ... ignored, the kernel lab needs root",
            "test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s",
        ] {
            tally.line(line);
        }
        let reasons = vec!["the kernel lab needs root".to_owned()];
        assert_eq!(tally, Tally { passed: 13, failed: 3, skipped: 2, reasons });
    }
}
