//! `cargo xtask cluster-fs`: the file systems of `tests/cluster_fs`, in guests of the lab.

use std::process::ExitCode;
use std::time::Instant;

use crate::packages;
use crate::test::{prepared, tallied};

/// Plays all cases, or those whose name contains one of `filter`. Installs the file systems' tools if it is asked to.
pub fn run(install: bool, filter: &[String]) -> ExitCode {
    let begin = Instant::now();
    if install && let Err(hint) = packages::ensure_cluster() {
        println!("xtask: {hint}");
    }
    let Some(mut command) = prepared(install) else { return ExitCode::FAILURE };
    command.args(["test", "--quiet", "--package", "udrbd", "--test", "cluster_fs", "--"]).args(filter);
    command.env("UDRBD_CLUSTER_FS", "1");
    let (success, tally) = match tallied(&mut command, |line| print!("{line}")) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("cluster-fs: cannot run cargo: {error}");
            return ExitCode::from(2);
        }
    };
    println!("cluster-fs: {} passed, {} failed; {} s", tally.passed, tally.failed, begin.elapsed().as_secs());
    // Where nothing can be played that is no success either.
    if success && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
