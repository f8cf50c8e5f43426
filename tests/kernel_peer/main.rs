//! The judge is the kernel: scenarios with DRBD 8.4 of a real Linux kernel on one side and udrbd on the other.
//!
//! Every scenario starts from blank disks and ends with a comparison of both backing files, byte for byte. The kernel is a
//! user-mode Linux guest (Debian package user-mode-linux); one boot serves many scenarios. Where the lab cannot run, or
//! `udrbd` and `drbdctl` are not built, the scenarios are skipped and say why.

mod bench;
mod scenarios;
#[expect(dead_code, reason = "shared with the policies' matrix, which needs more")]
mod udrbd_node;

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::harness::main(scenarios::ALL, bench::Bench::new, bench::Bench::after_failure)
}
