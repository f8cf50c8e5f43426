//! `cargo xtask executor`: many rounds of `src/node/tests`, of which every test run plays a few.

use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::test::tallied;

/// Rounds of the full run.
pub const ROUNDS: u64 = 200;

/// The test that plays rounds.
const TEST: &str = "node::tests::nodes_under_faults_lose_nothing_and_end_equal";

/// Plays rounds; fails unless they were played and all ended well.
pub fn run(rounds: u64, from: u64, tell: bool) -> ExitCode {
    let begin = Instant::now();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["test", "--quiet", "--package", "udrbd", "--lib", "--", "--exact", "--nocapture", TEST])
        .env("UDRBD_EXECUTOR_ROUNDS", rounds.to_string())
        .env("UDRBD_EXECUTOR_FROM", from.to_string())
        .env("UDRBD_EXECUTOR_TELL", u8::from(tell).to_string())
        .current_dir(xtask::tidy::root());
    println!("executor: rounds {from}..{}", from.saturating_add(rounds));
    let (success, tally) = match tallied(&mut command, |line| print!("{line}")) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("executor: cannot run cargo: {error}");
            return ExitCode::from(2);
        }
    };
    // A test that has another name by now would be a success without a round.
    let played = tally.passed == 1;
    let verdict = if success && played { "all ended well" } else { "NOT all ended well" };
    println!("executor: {rounds} rounds, {verdict}; {} s", begin.elapsed().as_secs());
    if success && played { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
