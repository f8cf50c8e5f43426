//! The demo's unattended story holds, and it can tell when it does not.

use std::process::{Command, Output};

fn demo(corrupt: bool) -> Output {
    // What a failed demo leaves behind goes with this directory.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_drbdctl"));
    command.args(["demo", "--once"]).env("TMPDIR", dir.path()).env_remove("RUST_LOG");
    if corrupt {
        command.env("UDRBD_DEMO_CORRUPT", "1");
    }
    let output = command.output().expect("the demo");
    if !corrupt {
        let left: Vec<_> = dir.path().read_dir().expect("readable").collect();
        assert!(left.is_empty(), "{left:?}");
    }
    output
}

#[test]
fn the_story_holds() {
    let output = demo(false);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("all of it held"), "{out}");
}

#[test]
fn one_changed_byte_is_found() {
    let output = demo(true);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the replicas differ at byte "));
}
