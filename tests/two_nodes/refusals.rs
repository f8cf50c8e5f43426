//! What must not work, and must not hurt.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use udrbd::control::Request;
use udrbd::wire::state::{ConnState, DiskState};

use crate::harness::{Pair, RES, V0, create_disk, net};

#[test]
fn a_wrong_secret_keeps_the_nodes_apart() {
    let pair = Pair::start(&[]);
    let with = |secret: &str| net(&[("cram-hmac-alg", "sha256"), ("shared-secret", secret)]);
    pair.a.up(&with("right"));
    pair.b.up(&with("wrong"));
    pair.b.wait("giving up", |v| v.state == ConnState::StandAlone);
    assert_ne!(pair.a.volume().state, ConnState::Connected);
    pair.a.wait("giving up", |v| v.state < ConnState::Connected);
    if pair.a.volume().state != ConnState::StandAlone {
        pair.a.ok(pair.a.disconnect(false));
    }
    pair.a.ok(pair.a.connect(&with("right")));
    pair.b.ok(pair.b.connect(&with("right")));
    for node in [&pair.a, &pair.b] {
        node.wait("connected", |v| v.state == ConnState::Connected);
        assert!(!node.log_text().contains("right"), "a secret in the log");
    }
}

#[test]
fn a_secondary_lets_no_client_in_and_says_why() {
    let pair = Pair::synced(&[], &net(&[]));
    let error = pair.b.open().expect_err("a refusal").to_string();
    assert_eq!(error, "r0 is Secondary on this node; promote it with: drbdctl primary r0");
    let error = crate::nbd_client::NbdClient::open(&pair.a.nbd_socket(), "nothing").expect_err("a refusal");
    assert_eq!(error.to_string(), "there is no export \"nothing\" on this node");
}

#[test]
fn garbage_hurts_nobody() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let mut client = pair.a.open().expect("the export");
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096], &[0; 100_000], b"IHAVEOPT"] {
        let mut stream = UnixStream::connect(pair.a.nbd_socket()).expect("the NBD socket");
        // The server may hang up before it has all.
        let _ = stream.write_all(garbage).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        client.read(0, 4096).expect("others are served");
    }
    // The replication port is open only while a node waits for its peer.
    pair.b.kill();
    pair.a.wait("waiting", |v| v.state == ConnState::WfConnection);
    let port = pair.a.address().port;
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096], &[0; 64], &[]] {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let _ = stream.write_all(garbage);
        }
        client.read(0, 4096).expect("clients are served");
    }
    assert!(pair.a.runs());
    pair.b.start();
    pair.b.up(&net(&[]));
    pair.wait_in_sync();
    client.close().expect("closed");
}

#[test]
fn bad_disks_are_refused_with_drbds_numbers() {
    let pair = Pair::start(&[]);
    let a = &pair.a;
    a.create();
    let path = |name: &str| pair.dir.path().join(name);
    let refused = |name: &str| a.refused(a.attach(&path(name)));

    let (code, words) = refused("missing.img");
    assert_eq!(code, 104);
    assert!(words.contains("missing.img"), "{words}");

    fs::create_dir(path("directory")).expect("a directory");
    assert_eq!(refused("directory").0, 107);

    File::create(path("empty.img")).expect("a file");
    assert_eq!(refused("empty.img").0, 112);

    let blank = File::create(path("blank.img")).expect("a file");
    blank.set_len(8 << 20).expect("room");
    assert_eq!(refused("blank.img").0, 119);

    // A file that shrank has lost its metadata; one that grew without having been attached before has them somewhere.
    create_disk(&path("shrunk.img"), 9 << 20);
    File::options().write(true).open(path("shrunk.img")).and_then(|f| f.set_len(8 << 20)).expect("room");
    assert_eq!(refused("shrunk.img").0, 119);
    create_disk(&path("grown.img"), 8 << 20);
    File::options().write(true).open(path("grown.img")).and_then(|f| f.set_len(9 << 20)).expect("room");
    assert_eq!(refused("grown.img").0, 119);

    // Metadata of DRBD 9 (magic number of v09 where v08 has its own).
    create_disk(&path("foreign.img"), 8 << 20);
    let mut bytes = fs::read(path("foreign.img")).expect("the disk");
    let magic = bytes.windows(4).rposition(|w| w == [0x83, 0x74, 0x02, 0x6b]).expect("a superblock");
    bytes[magic + 3] = 0x6d;
    fs::write(path("foreign.img"), bytes).expect("written");
    assert_eq!(refused("foreign.img").0, 119);

    // The other node has it.
    pair.b.create();
    pair.b.ok(pair.b.attach(&pair.b.disk()));
    let (code, words) = a.refused(a.attach(&pair.b.disk()));
    assert_eq!(code, 114);
    assert!(words.contains("locked by udrbd"), "{words}");

    // After all that a good one is welcome.
    a.ok(a.attach(&a.disk()));
    assert_eq!(a.volume().disk, DiskState::Inconsistent);
    a.ok(Request::Detach { resource: RES.to_owned(), volume: V0, force: false });
    // And free again.
    pair.b.ok(pair.b.detach());
    pair.b.ok(pair.b.attach(&a.disk()));
}
