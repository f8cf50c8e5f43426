//! Single stories on the same machines, each for one thing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::machine::{Machine, Setup};
use super::proxy::{Addresses, Proxy};
use super::{PATIENCE, hook_panics};
use crate::disk::fault::Mistake;
use crate::disk::{BackingDevice, OpenOptions, RingChoice};
use crate::engine::event::Command;
use crate::engine::options::{DiskOptions, NetOptions};
use crate::frontend::nbd::export::{ExportInfo, Negotiated};
use crate::frontend::nbd::proto::Cmd;
use crate::frontend::nbd::stream::{Connection, Socket};
use crate::frontend::nbd::transmission::RequestHeader;
use crate::link::LinkConfig;
use crate::units::VolumeNr;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState};

const DISK_BYTES: u64 = 16 << 20;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn setup(addresses: Addresses, n: usize, protocol: ReplProtocol) -> Setup {
    let mut link = LinkConfig::new(addresses.nodes[n], addresses.peers[n]);
    link.connect_int = Duration::from_millis(300);
    link.socket_check_timeout = Duration::from_millis(20);
    link.sndbuf_bytes = 64 << 10;
    let net = NetOptions { protocol, ping_timeout: Duration::from_secs(30), ..NetOptions::default() };
    let disk = DiskOptions::default();
    Setup { ring: RingChoice::Auto, external: false, disk, net, link, mistake: None }
}

fn wait(what: &str, nodes: &[Machine], done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waiting for {what} lasts too long");
        nodes[0].wait_for_news(Duration::from_millis(5));
    }
}

/// The link delivers to the core that owns it, so neither went.
#[test]
fn a_shard_that_ended_kept_its_devices_and_its_memory() {
    let (rt, dir) = (runtime(), tempfile::tempdir().expect("a temporary directory"));
    let mut node = Machine::new(dir.path(), "A", DISK_BYTES, setup(Addresses::new(), 0, ReplProtocol::C), 1);
    for life in 0..2 {
        node.start(&rt);
        node.attach(&rt).expect("nobody else has it");
        node.connect(&rt).expect("an address of our own");
        let path = dir.path().join("A-data");
        BackingDevice::open(&path, &OpenOptions::default()).expect_err("the shard has it");
        node.stop(&rt);
        assert!(BackingDevice::open(&path, &OpenOptions::default()).is_ok(), "life {life}");
    }
}

/// Bytes that were answered under protocol A while the network takes nothing and the local disk has everything.
fn answered_without_a_network(mistake: Option<Mistake>) -> usize {
    hook_panics();
    let (rt, dir) = (runtime(), tempfile::tempdir().expect("a temporary directory"));
    let addresses = Addresses::new();
    let proxy = Proxy::start(addresses, 1, Some(64 << 10));
    let mut nodes = [0, 1].map(|n| {
        let mut setup = setup(addresses, n, ReplProtocol::A);
        setup.mistake = mistake;
        Machine::new(dir.path(), ["A", "B"][n], DISK_BYTES, setup, 1)
    });
    for node in &mut nodes {
        node.start(&rt);
        node.attach(&rt).expect("a fresh disk");
        node.connect(&rt).expect("an address of our own");
    }
    let connected = |n: usize| nodes[n].volume(&rt).state.conn == ConnState::Connected;
    wait("connected", &nodes, || connected(0) && connected(1));
    nodes[0].command(&rt, Command::Primary { force: true }).expect("forced");
    let good = |n: usize| {
        let state = nodes[n].volume(&rt).state;
        state.conn == ConnState::Connected && state.disk == DiskState::UpToDate
    };
    wait("the first sync", &nodes, || good(0) && good(1));
    // Longer than the test may take.
    let end = tokio::time::Instant::now() + PATIENCE * 10;
    proxy.change(|weather| weather.stalled = [Some(end); 2]);
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let export = ExportInfo {
        name: String::from("r0"),
        description: String::new(),
        size: nodes[0].size,
        read_only: false,
        trim: true,
        multi_conn: true,
    };
    let negotiated = Negotiated { export, flags: u16::MAX, structured: false, base_allocation: false };
    let (socket, peer) = (Socket::Unix(theirs), String::from("test"));
    nodes[0].shard().serve(VolumeNr(0), Connection { socket, negotiated, leftover: Vec::new(), peer });
    let answers = Arc::new(AtomicUsize::new(0));
    let (counted, mut answering) = (Arc::clone(&answers), ours.try_clone().expect("a descriptor"));
    let receiver = std::thread::spawn(move || {
        let mut reply = [0; 16];
        while answering.read_exact(&mut reply).is_ok() {
            assert_eq!(reply[4..8], [0; 4], "an error");
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let before = nodes[0].volume(&rt).counters.disk_written;
    const LEN: u32 = 128 << 10;
    const COUNT: u64 = 64;
    for cookie in 0..COUNT {
        let header = RequestHeader { flags: 0, command: Cmd::WRITE, cookie, offset: cookie * u64::from(LEN), len: LEN };
        ours.write_all(&header.encode()).and_then(|()| ours.write_all(&[7; LEN as usize])).expect("the server reads");
    }
    let sectors = COUNT * u64::from(LEN) / 512;
    wait("the local disk", &nodes, || nodes[0].volume(&rt).counters.disk_written >= before + sectors);
    // What was answered when this answer comes was answered before.
    let _ = nodes[0].volume(&rt);
    if mistake.is_some() {
        wait("answers", &nodes, || answers.load(Ordering::SeqCst) == usize::try_from(COUNT).expect("small"));
    }
    let answered = answers.load(Ordering::SeqCst);
    assert!(connected(0), "the link is lost, and so is the test");
    proxy.change(|weather| weather.stalled = [None; 2]);
    wait("the rest of the answers", &nodes, || {
        answers.load(Ordering::SeqCst) == usize::try_from(COUNT).expect("small")
    });
    for node in &mut nodes {
        node.crash(&rt, false);
    }
    receiver.join().expect("only good answers");
    answered * usize::try_from(LEN).expect("small")
}

/// What two sockets of 64 KiB, twice that inside, and the packet that is half out can hold.
const SOCKETS_HOLD: usize = 1 << 20;

#[test]
fn under_protocol_a_an_answer_waits_for_the_socket() {
    let answered = answered_without_a_network(None);
    assert!(answered <= SOCKETS_HOLD, "{answered} bytes were answered");
    println!("{answered} bytes were answered while the network took nothing");
}

#[test]
fn packets_that_count_as_sent_too_early_are_noticed() {
    let answered = answered_without_a_network(Some(Mistake::SentEarly));
    assert!(answered > SOCKETS_HOLD, "{answered} bytes were answered: no mistake");
}
