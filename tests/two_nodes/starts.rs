//! The daemon's command line, starting from a configuration, and the clean stop.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use udrbd::wire::state::{ConnState, DiskState, Role};

use crate::harness::{Pair, RES, in_sync, net};

fn udrbd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_udrbd")).args(args).env_remove("RUST_LOG").output().expect("the daemon")
}

fn refuses(args: &[&str], words: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let run_dir = dir.path().display().to_string();
    let output = udrbd(&[&["--run-dir", run_dir.as_str()][..], args].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(words), "{text}");
}

#[test]
fn what_is_not_there_is_said() {
    refuses(&["--frontend", "ublk"], "--frontend ublk is not in this version");
    refuses(&["--frontend", "kernel-nbd"], "--frontend kernel-nbd is not in this version");
    refuses(&["--nbd-tls", "require"], "TLS for NBD is not in this version");
    refuses(&["--metrics-listen", "127.0.0.1:0"], "--metrics-listen is not in this version");
    refuses(&["--nbd-listen", "0.0.0.0:0"], "add --nbd-allow");
    refuses(&["--up", "all", "--config", "/nonexistent/drbd.conf"], "Can not open '/nonexistent/drbd.conf'");
    let version = udrbd(&["--version"]);
    assert_eq!(String::from_utf8_lossy(&version.stdout), concat!("udrbd ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_second_daemon_does_not_take_the_sockets_of_the_first() {
    let mut pair = Pair::start(&[]);
    let run_dir = pair.a.nbd_socket().parent().expect("a directory").display().to_string();
    let output = udrbd(&["--run-dir", &run_dir]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another daemon serves"));
    pair.a.create();
    // What a daemon that was killed leaves behind is replaced.
    pair.a.kill();
    pair.a.start();
    assert!(pair.a.terminate().success());
    assert!(!pair.a.nbd_socket().exists(), "sockets are removed in the end");
    drop(UnixListener::bind(pair.a.nbd_socket()).expect("a socket"));
    pair.a.start();
}

/// A configuration for both nodes.
fn config(pair: &Pair, startup: &str) -> String {
    let on = |host: &str, node: &crate::harness::Node| {
        let address = node.address();
        format!(
            "on {host} {{ device minor 0; disk \"{}\"; meta-disk internal; address {}:{}; }}",
            node.disk().display(),
            address.ip,
            address.port
        )
    };
    format!(
        "resource {RES} {{ net {{ ping-int 1; connect-int 1; timeout 9; }} startup {{ {startup} }}\n{}\n{}\n}}\n",
        on("a", &pair.a),
        on("b", &pair.b)
    )
}

#[test]
fn a_start_from_the_configuration_promotes_and_a_stop_is_clean() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let conf = pair.dir.path().join("drbd.conf");
    fs::write(&conf, config(&pair, "become-primary-on a;")).expect("written");
    // The Primary's stop demotes, the peer stays.
    assert!(pair.a.terminate().success());
    pair.b.wait("alone", |v| v.state == ConnState::WfConnection && v.disk == DiskState::UpToDate);
    assert!(pair.b.terminate().success());
    let conf = conf.display().to_string();
    let args = ["--config", conf.as_str(), "--up", "all"];
    pair.a.start_with(&args);
    pair.b.start_with(&args);
    pair.a.wait("promoted", |v| v.role == Role::Primary && in_sync(v));
    // Nothing was left to resync after a clean stop.
    assert!(!pair.a.log_text().contains("Began resync as SyncTarget"), "{}", pair.a.log_text());
    pair.wait_in_sync();
    assert!(pair.a.terminate().success());
    assert!(pair.b.terminate().success());
    pair.compare();
}

#[test]
fn a_wait_for_the_peer_ends_with_its_timeout() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let conf = pair.dir.path().join("drbd.conf");
    fs::write(&conf, config(&pair, "wfc-timeout 1; become-primary-on a;")).expect("written");
    assert!(pair.a.terminate().success());
    pair.b.kill();
    let conf = conf.display().to_string();
    pair.a.start_with(&["--config", conf.as_str(), "--up", RES]);
    pair.a.wait("promoted alone", |v| v.role == Role::Primary && v.state == ConnState::WfConnection);
    assert!(pair.a.log_text().contains("the peer did not come within 1 s"));
}
