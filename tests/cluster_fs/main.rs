//! Cluster file systems over two Primaries: two guests mount one file system, each through its kernel's NBD client and an
//! udrbd node of its own.
//!
//! `cargo xtask cluster-fs` plays the cases; ordinary runs of the tests play none, because the tools bring services along.
//! Where the lab cannot run, or a tool is missing, everything is skipped and says why.

mod bench;
mod gfs2;
mod ocfs2;
#[path = "../kernel_peer/udrbd_node.rs"]
#[expect(dead_code, reason = "shared with the scenarios, which use all of it")]
mod udrbd_node;

use std::process::ExitCode;

use xtask::harness::Case;

const CASES: &[Case<bench::Bench>] = &[
    Case { name: "cluster_fs::ocfs2_on_both_nodes", run: ocfs2::on_both_nodes },
    Case { name: "cluster_fs::gfs2_on_both_nodes", run: gfs2::on_both_nodes },
];

fn main() -> ExitCode {
    xtask::harness::main(CASES, bench::Bench::new, bench::Bench::after_failure)
}
