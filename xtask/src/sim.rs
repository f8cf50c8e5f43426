//! `cargo xtask sim`: builds the simulator's tool, fast and with every assertion, and hands the arguments on to it.
//!
//! The share of it that `cargo xtask test` plays is a window of the seeds that the full run covers, drawn by commit.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// Seeds of which every finding is known; the window is drawn from them.
const FULL: u64 = 20_000;
/// Seeds of continuous integration; each is played twice.
const SHARE: u64 = 500;

/// Runs the tool with these arguments.
pub fn run(args: &[OsString]) -> ExitCode {
    match tool() {
        Ok(tool) => match Command::new(tool).args(args).stdin(Stdio::null()).status() {
            Ok(status) => {
                status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
            Err(error) => {
                eprintln!("sim: cannot run the tool: {error}");
                ExitCode::from(2)
            }
        },
        Err(text) => {
            eprintln!("sim: {text}");
            ExitCode::from(2)
        }
    }
}

/// Plays the share of this commit; `None` when it could not be played, else whether it was sound.
pub fn share() -> Option<bool> {
    // Another window with every commit, always inside of what the full run covers.
    let from = drawn(FULL - SHARE);
    let seeds = format!("{from}..{}", from + SHARE);
    println!("simulator: seeds {seeds}, each twice");
    let tool = match tool() {
        Ok(tool) => tool,
        Err(text) => {
            println!("simulator: {text}");
            return None;
        }
    };
    let status = Command::new(tool).args(["--seeds", &seeds, "--twice"]).stdin(Stdio::null()).status().ok()?;
    Some(status.success())
}

/// Another number below `end` with every commit.
pub fn drawn(end: u64) -> u64 {
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(xtask::tidy::root()).output();
    let text = head.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    let number = u64::from_str_radix(text.get(..8).unwrap_or_default(), 16).unwrap_or(0);
    number % end
}

fn tool() -> Result<PathBuf, String> {
    let root = xtask::tidy::root();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "udrbd", "--profile", "sim", "--no-default-features"])
        .args(["--features", "sim", "--bin", "udrbd-sim"])
        .current_dir(&root)
        .stdin(Stdio::null())
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(String::from("the build failed"));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("sim").join("udrbd-sim"))
}
