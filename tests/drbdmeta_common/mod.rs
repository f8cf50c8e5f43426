//! The real `drbdmeta` for tests that compare with it: found, run under a minor number of its own, traces removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// drbdmeta with a minor number that nobody uses.
#[derive(Debug)]
pub struct Tool {
    program: PathBuf,
    /// The minor number.
    pub minor: u32,
}

impl Drop for Tool {
    fn drop(&mut self) {
        for trace in [
            format!("/var/lib/drbd/drbd-minor-{}.lkbd", self.minor),
            format!("/var/lock/drbd-147-{}", self.minor),
            format!("/run/lock/drbd-147-{}", self.minor),
        ] {
            let _ = fs::remove_file(trace);
        }
    }
}

impl Tool {
    /// `nr`, below 10, tells the tests of one process apart. `None`, with a line that says so, where it is not installed.
    #[allow(clippy::print_stdout, reason = "says why the test does nothing")]
    pub fn find(nr: u32) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let Some(program) = places.map(|dir| dir.join("drbdmeta")).find(|tool| tool.exists()) else {
            println!("skipped: drbdmeta is not installed");
            return None;
        };
        // Below 2^20, where minor numbers end; far above those that anybody uses.
        Some(Self { program, minor: 400_000 + std::process::id() % 60_000 * 10 + nr })
    }

    /// Runs it with `args` behind the device and drbdmeta's INDEX.
    pub fn run(&self, device: &Path, index: &str, args: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(["--force", &self.minor.to_string(), "v08"]).arg(device).arg(index).args(args);
        command.output().expect("drbdmeta runs")
    }

    /// What it prints when it succeeds.
    pub fn text(&self, device: &Path, index: &str, args: &[&str]) -> String {
        let output = self.run(device, index, args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// A dump without time, host and command line, and without the flags, which drbdmeta 9.22 always shows as 0. Comments
/// may come before it.
pub fn comparable(dump: &str) -> String {
    let mut lines: Vec<_> = dump.lines().collect();
    let title = lines.iter().position(|line| *line == "# DRBD meta data dump").expect("a dump");
    lines.drain(title + 1..title + 3);
    lines.retain(|line| !line.starts_with("    flags 0x"));
    lines.join("\n")
}
