//! The programs of the section `handlers`, run by the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use udrbd::config::model::{Handler, NetOptions};
use udrbd::control::Request;
use udrbd::control::client::Client;
use udrbd::control::handlers::Handlers;
use udrbd::control::proto::Event;
use udrbd::units::{Minor, VolumeNr};
use udrbd::wire::state::ConnState;

use crate::harness::{Node, PATIENCE, Pair, RES, net};

/// Each program leaves its environment in a file of its own.
fn handlers(dir: &Path, events: &[(Handler, &str)]) -> Handlers {
    let command = |(event, then): &(Handler, &str)| {
        let file = dir.join(event.text()).display().to_string();
        (*event, format!("env > '{file}.new' && mv '{file}.new' '{file}'; echo 'a line'; {then}"))
    };
    Handlers {
        commands: events.iter().map(command).collect(),
        config: Some("/etc/some.conf".to_owned()),
        peers: vec!["bravo".to_owned(), "bravo-alias".to_owned()],
        peer_address: None,
    }
}

fn tell(node: &Node, handlers: Handlers) {
    let handlers = Some(Box::new(handlers));
    node.ok(Request::NewResource { resource: RES.to_owned(), options: Default::default(), handlers });
}

/// What helpers were started and ended, until one of this name has ended.
fn until_ended(node: &Node, name: &str, cause: impl FnOnce()) -> Vec<(String, Option<u8>)> {
    let client = Client::connect(&node.control_socket()).expect("the daemon");
    let (_, mut watcher) = client.watch(Some(RES)).expect("events");
    cause();
    let deadline = Instant::now() + PATIENCE;
    let mut heard = Vec::new();
    loop {
        match watcher.next(Some(deadline)).expect("an event") {
            Some(Event::Helper { volume, helper, status, .. }) => {
                assert_eq!(volume, Some((VolumeNr(0), Minor(0))));
                heard.push((helper.clone(), status));
                if helper == name && status.is_some() {
                    return heard;
                }
            }
            Some(_) => {}
            None => panic!("{name} did not end: {heard:?}\n{}", node.log_text()),
        }
    }
}

/// Both nodes were Primary without each other, one after the other.
fn part(pair: &Pair, net: &NetOptions) {
    for node in [&pair.a, &pair.b] {
        node.wait("in sync", crate::harness::in_sync);
    }
    pair.a.ok(pair.a.secondary(false));
    pair.a.ok(pair.a.disconnect(false));
    pair.b.ok(pair.b.disconnect(false));
    for node in [&pair.a, &pair.b] {
        node.ok(node.primary(false));
        node.ok(node.secondary(false));
    }
    pair.b.ok(pair.b.connect(net));
}

#[test]
fn a_split_brain_runs_its_programs_with_drbds_variables() {
    let options = net(&[]);
    let pair = Pair::synced(&[], &options);
    let dir = tempfile::tempdir().expect("a directory");
    tell(&pair.a, handlers(dir.path(), &[(Handler::SplitBrain, "exit 7")]));
    part(&pair, &options);
    let heard = until_ended(&pair.a, "split-brain", || pair.a.ok(pair.a.connect(&options)));
    // No program is configured for the first: it counts as run.
    for event in [("initial-split-brain", None), ("initial-split-brain", Some(0)), ("split-brain", None)] {
        assert!(heard.iter().any(|(name, status)| (name.as_str(), *status) == event), "{heard:?}");
    }
    assert_eq!(heard.last(), Some(&("split-brain".to_owned(), Some(7))));
    pair.a.wait("given up", |v| v.state < ConnState::Connected);
    let text = fs::read_to_string(dir.path().join("split-brain")).expect("what the program wrote");
    let env: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let disk = pair.a.disk().display().to_string();
    for (name, value) in [
        ("DRBD_RESOURCE", RES),
        ("DRBD_MINOR", "0"),
        ("DRBD_VOLUME", "0"),
        ("DRBD_LL_DISK", disk.as_str()),
        ("DRBD_CONF", "/etc/some.conf"),
        ("DRBD_PEER", "bravo"),
        ("DRBD_PEERS", "bravo bravo-alias"),
        ("DRBD_PEER_AF", "ipv4"),
        ("DRBD_PEER_ADDRESS", "127.0.0.2"),
        ("PATH", "/sbin:/usr/sbin:/bin:/usr/bin"),
        ("HOME", "/"),
        ("TERM", "linux"),
    ] {
        assert_eq!(env.get(name), Some(&value), "{name} in {env:?}");
    }
    assert!(!env.contains_key("CARGO_PKG_NAME"));
    let log = pair.a.log_text();
    for line in ["helper command: split-brain minor-0 exit code 7 (0x700)", "split-brain minor-0: a line"] {
        assert!(log.contains(line), "{line} is not in\n{log}");
    }
}
