//! Input that is wrong: settings that do not fit, disks that are not what they should be, requests that make no sense, noise
//! on every socket. Each is refused in words that help, and a mirror that was there before is there afterwards.

#![cfg(feature = "drivers")]

mod daemon_common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use daemon_common::nbd::NbdClient;
use daemon_common::{GENERATION, Node, RES, SOON, Setup, Site, assert_replicas_equal, make_disk, pattern, up_to_date};
use udrbd::config::model::{DiskOptions, MetaDisk};
use udrbd::control::{ErrorReply, Request};
use udrbd::units::{Minor, VolumeNr};
use udrbd::wire::state::{ConnState, DiskState};

const V0: VolumeNr = VolumeNr(0);

/// A connected pair in sync, with the first node Primary.
fn mirror(site: &Site) -> (Node, Node) {
    let (mut a, mut b) = (site.node(0, up_to_date), site.node(1, up_to_date));
    a.start_up();
    b.start_up();
    a.wait_in_sync();
    b.wait_in_sync();
    a.primary();
    (a, b)
}

/// Writes something and finds it on both disks.
fn still_mirrors(a: &mut Node, b: &mut Node, seed: u64) {
    let mut nbd = NbdClient::open(&a.nbd_socket(), RES).expect("the export");
    let data = pattern(seed, 128 << 10);
    nbd.write(seed * 4096, &data);
    nbd.flush();
    assert_eq!(nbd.read(seed * 4096, 128 << 10), data);
    a.wait_in_sync();
    assert_replicas_equal(a, b, 16);
    a.assert_sound();
    b.assert_sound();
}

fn assert_words(error: &ErrorReply, code: i32, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.code, code, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn nodes_with_other_settings_part_and_say_which() {
    let cases = [
        ("protocol C;", "protocol A;", "protocol"),
        ("after-sb-0pri discard-zero-changes;", "", "after-sb-0pri"),
        ("after-sb-1pri consensus;", "", "after-sb-1pri"),
        ("data-integrity-alg crc32c;", "", "data-integrity-alg"),
        ("verify-alg sha1;", "", "verify-alg"),
    ];
    for (index, (ours, theirs, word)) in cases.into_iter().enumerate() {
        let site = Site::new(Setup::default());
        let (mut a, mut b) = (site.node(0, up_to_date), site.node(1, up_to_date));
        site.set_net(&mut a, ours);
        site.set_net(&mut b, theirs);
        a.start_up();
        b.start_up();
        // One of them notices first and closes; the other one may only see that.
        let gave_up = |node: &Node| node.volume().state == ConnState::StandAlone;
        let deadline = std::time::Instant::now() + SOON;
        while !gave_up(&a) && !gave_up(&b) {
            assert!(std::time::Instant::now() < deadline, "neither gives up\n{}\n{}", a.log(), b.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let logs = a.log() + &b.log();
        assert!(logs.contains(word), "nobody says {word:?}:\n{logs}");
        // With the same settings they find each other.
        for node in [&a, &b] {
            if !gave_up(node) {
                node.done(Request::Disconnect { resource: RES.to_owned(), force: true });
            }
        }
        site.set_net(&mut b, ours);
        b.connect();
        a.connect();
        a.wait_in_sync();
        b.wait_in_sync();
        a.primary();
        still_mirrors(&mut a, &mut b, index as u64 + 1);
    }
}

fn attach(node: &Node, backing: &Path, meta_disk: MetaDisk, options: DiskOptions) -> Result<(), ErrorReply> {
    node.call(Request::Attach {
        resource: RES.to_owned(),
        volume: V0,
        backing: backing.display().to_string(),
        meta_disk,
        options,
    })
}

/// Overwrites four bytes of the superblock, counted from its start.
fn damage(disk: &Path, at: u64, bytes: [u8; 4]) {
    let file = OpenOptions::new().write(true).open(disk).expect("a disk");
    let len = file.metadata().expect("a size").len();
    file.write_all_at(&bytes, len - 4096 + at).expect("a write");
}

#[test]
fn disks_that_are_not_what_they_should_be() {
    let site = Site::new(Setup::default());
    let mut node = site.node(0, up_to_date);
    node.start();
    for request in node.up_requests().into_iter().take(2) {
        node.done(request);
    }
    let path = |name: &str| site.path().join(name);
    let fresh = |name: &str| {
        make_disk(&path(name), 8, up_to_date);
        path(name)
    };
    let internal = |disk: &Path| attach(&node, disk, MetaDisk::Internal, DiskOptions::default());

    // Damaged superblocks: each field that a position depends on.
    let bits = fresh("bits.img");
    damage(&bits, 80, 8192_u32.to_be_bytes());
    assert_words(&internal(&bits).expect_err("bits of 8 KiB"), 119, &["bits.img", "bm_bytes_per_bit", "4096"]);
    let stripes = fresh("stripes.img");
    damage(&stripes, 88, u32::MAX.to_be_bytes());
    assert_words(&internal(&stripes).expect_err("a damaged stripe count"), 119, &["stripes.img", "striping"]);
    let offset = fresh("offset.img");
    damage(&offset, 76, [0; 4]);
    assert_words(&internal(&offset).expect_err("a bitmap in the superblock"), 119, &["offset.img"]);
    let old = fresh("old.img");
    damage(&old, 60, 0x8374_026d_u32.to_be_bytes());
    assert_words(&internal(&old).expect_err("DRBD 9"), 119, &["old.img", "v09"]);

    // Metadata of their own, too small for the data.
    let data = path("data.img");
    File::create(&data).and_then(|file| file.set_len(512 << 20)).expect("a disk");
    let meta = path("meta.img");
    File::create(&meta).and_then(|file| file.set_len(64 << 10)).expect("a disk");
    let flexible = MetaDisk::Flexible { dev: meta.display().to_string() };
    let error = attach(&node, &data, flexible, DiskOptions::default()).expect_err("too small");
    assert_words(&error, 112, &["meta.img"]);
    let indexed = MetaDisk::Indexed { dev: meta.display().to_string(), idx: 3 };
    let error = attach(&node, &data, indexed, DiskOptions::default()).expect_err("too small");
    assert_words(&error, error.code, &["meta.img"]);
    assert!([105, 112, 119].contains(&error.code), "{error}");
    let missing = MetaDisk::Flexible { dev: path("nowhere.img").display().to_string() };
    assert_words(&attach(&node, &data, missing, DiskOptions::default()).expect_err("no file"), 105, &["nowhere.img"]);

    // More asked for than there is.
    let small = fresh("small.img");
    let wanted = DiskOptions { size: Some(udrbd::units::Sectors(1 << 20)), ..DiskOptions::default() };
    let error = attach(&node, &small, MetaDisk::Internal, wanted).expect_err("8 MiB are no 512 MiB");
    assert_words(&error, 111, &[]);

    // The log of the activities says where the last owner was; without it everything may differ.
    let crashed = path("crashed.img");
    make_disk(&crashed, 8, |superblock| {
        up_to_date(superblock);
        superblock.flags = superblock.flags.without(udrbd::meta::MdFlags::AL_CLEAN);
        superblock.flags = superblock.flags.with(udrbd::meta::MdFlags::PRIMARY_IND);
    });
    let (layout, len) = (daemon_common::data_size(8), 8_u64 << 20);
    let ring = len - 4096 - 32768;
    assert!(ring >= layout.bytes());
    OpenOptions::new().write(true).open(&crashed).and_then(|f| f.write_all_at(&[0xee; 32768], ring)).expect("a write");
    match internal(&crashed) {
        Ok(()) => {
            let found = node.volume();
            assert!(found.out_of_sync_kib > 0, "a lost log means a full sync: {found:?}");
            node.done(Request::Detach { resource: RES.to_owned(), volume: V0, force: false });
        }
        Err(error) => assert_words(&error, 165, &["apply-al"]),
    }

    // The daemon's own disk, twice: another volume may not have it.
    internal(&node.disk(0)).expect("a good disk");
    assert_eq!(node.volume().disk, DiskState::UpToDate);
    node.done(Request::NewVolume {
        resource: RES.to_owned(),
        volume: VolumeNr(1),
        minor: Minor(7),
        device: None,
        options: DiskOptions::default(),
    });
    let twice = Request::Attach {
        resource: RES.to_owned(),
        volume: VolumeNr(1),
        backing: node.disk(0).display().to_string(),
        meta_disk: MetaDisk::Internal,
        options: DiskOptions::default(),
    };
    assert_words(&node.call(twice).expect_err("in use"), 114, &["alpha-0.img", "in use by r0/0"]);
    node.assert_sound();
}

#[test]
fn a_disk_that_is_smaller_than_what_was_agreed() {
    let site = Site::new(Setup::default());
    let mut node = site.node(0, up_to_date);
    // The metadata move along to the end of a smaller file: such a disk lost data.
    let small = site.path().join("smaller.img");
    make_disk(&small, 8, |superblock| {
        superblock.current = GENERATION;
        superblock.effective_size = daemon_common::data_size(16);
        superblock.flags = superblock.flags.with(udrbd::meta::MdFlags::CONSISTENT);
    });
    node.start();
    for request in node.up_requests().into_iter().take(2) {
        node.done(request);
    }
    if let Ok(()) = attach(&node, &small, MetaDisk::Internal, DiskOptions::default()) {
        let volume = node.volume();
        assert!(volume.size_kib <= 8 << 10, "{volume:?}");
        assert!(node.log().contains("size"), "nothing is said of the size:\n{}", node.log());
    }
    node.assert_sound();
}

#[test]
fn requests_for_what_is_not_there() {
    let site = Site::new(Setup::default());
    let (mut a, mut b) = mirror(&site);
    let nowhere = || "nowhere".to_owned();
    let unknown = [
        Request::Primary { resource: nowhere(), volume: V0, force: true },
        Request::Secondary { resource: nowhere(), volume: V0, force: true },
        Request::Detach { resource: nowhere(), volume: V0, force: true },
        Request::Disconnect { resource: nowhere(), force: true },
        Request::Invalidate { resource: nowhere(), volume: V0 },
        Request::PauseSync { resource: nowhere(), volume: V0 },
        Request::NewCurrentUuid { resource: nowhere(), volume: V0, clear_bitmap: true },
        Request::DelResource { resource: nowhere() },
    ];
    for request in unknown {
        let code = match &request {
            Request::Disconnect { .. } => 162,
            Request::DelResource { .. } => 158,
            _ => 127,
        };
        assert_words(&a.call(request).expect_err("no such resource"), code, &["unknown"]);
    }
    let v9 = VolumeNr(9);
    for request in [
        Request::Primary { resource: RES.to_owned(), volume: v9, force: true },
        Request::Detach { resource: RES.to_owned(), volume: v9, force: false },
        Request::Invalidate { resource: RES.to_owned(), volume: v9 },
    ] {
        assert_words(&a.call(request).expect_err("no such volume"), 127, &["not allocated"]);
    }
    // What would hurt is refused with its reason.
    let primary_b = Request::Primary { resource: RES.to_owned(), volume: V0, force: false };
    assert_words(&b.call(primary_b).expect_err("two Primaries"), -1, &["Multiple primaries not allowed"]);
    let twice = a.connect_request();
    assert_words(&a.call(twice).expect_err("connected"), 102, &["already in use", "r0"]);
    let taken = Request::NewVolume {
        resource: RES.to_owned(),
        volume: VolumeNr(1),
        minor: Minor(0),
        device: None,
        options: DiskOptions::default(),
    };
    assert_words(&a.call(taken).expect_err("the minor is taken"), 161, &["exists already"]);
    for name in ["", "a/b", "..", "x\n", &"n".repeat(4096)] {
        let odd = Request::NewResource { resource: name.to_owned(), options: Default::default(), handlers: None };
        if a.call(odd).is_ok() {
            a.done(Request::DelResource { resource: name.to_owned() });
        }
    }
    still_mirrors(&mut a, &mut b, 1);
}

/// Sends `bytes` to the control socket and reads what comes back until the daemon hangs up or `lines` were read.
fn say(node: &Node, bytes: &[u8], lines: usize) -> Vec<String> {
    let mut stream = UnixStream::connect(node.control()).expect("the control socket");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    // It may hang up before it has all.
    let _ = stream.write_all(bytes);
    if lines == 0 {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answers = Vec::new();
    for line in BufReader::new(stream).lines() {
        match line {
            Ok(line) => answers.push(line),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer to {bytes:.60?}"),
            Err(_) => break,
        }
        if answers.len() == lines {
            break;
        }
    }
    answers
}

#[test]
fn noise_on_the_control_socket() {
    let site = Site::new(Setup::default());
    let (mut a, mut b) = mirror(&site);
    let answered: &[(&[u8], &str)] = &[
        (b"status\n", "not a JSON object"),
        (b"\n", "not a JSON object"),
        (b"[1,2,3]\n", "not a JSON object"),
        (b"{}\n", "protocol version 0 is not 1"),
        (b"{\"v\":99,\"id\":5,\"request\":{\"command\":\"status\"}}\n", "update drbdctl and udrbd together"),
        (b"{\"v\":1,\"id\":5,\"request\":{\"command\":\"explode\"}}\n", "explode"),
        (b"{\"v\":1,\"id\":5,\"request\":{\"command\":\"primary\"}}\n", "resource"),
        (b"{\"v\":1,\"id\":5,\"request\":{\"command\":\"primary\",\"resource\":7,\"volume\":0}}\n", "string"),
        (b"{\"v\":1,\"id\":-5,\"request\":{\"command\":\"status\"}}\n", "error"),
        (b"\xff\xfe\x00garbage\n", "not a JSON object"),
    ];
    for (bytes, words) in answered {
        let answers = say(&a, bytes, 1);
        assert!(answers.len() == 1 && answers[0].contains(words), "{bytes:?} was answered by {answers:?}");
        assert!(answers[0].contains("\"result\":\"error\""), "{answers:?}");
    }
    let nested = [b"{\"v\":1,\"id\":1,\"request\":".to_vec(), vec![b'['; 100_000], b"\n".to_vec()].concat();
    assert!(say(&a, &nested, 1)[0].contains("error"));
    // A line without an end, longer than any request; half a line; nothing.
    for bytes in [vec![b'x'; 1 << 20], b"{\"v\":1,".to_vec(), Vec::new()] {
        say(&a, &bytes, 0);
    }
    // Many that say nothing keep nobody out for ever: they leave, and the next request is answered.
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(a.control()).expect("the control socket")).collect();
    a.client().status(None).expect("a status beside them");
    drop(silent);
    still_mirrors(&mut a, &mut b, 2);
}

#[test]
fn noise_on_the_nbd_socket() {
    let site = Site::new(Setup::default());
    let (mut a, mut b) = mirror(&site);
    let option = |option: u32, len: u32| {
        [&3_u32.to_be_bytes()[..], b"IHAVEOPT", &option.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let go = [&option(7, 8)[..], &2_u32.to_be_bytes(), b"r0", &[0, 0]].concat();
    let request = |command: u16, offset: u64, len: u32| {
        let mut bytes = go.clone();
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    };
    let noise = [
        b"SSH-2.0-OpenSSH_9.7\r\n".to_vec(),
        option(7, u32::MAX),
        option(0xdead, 100),
        [&option(1, 4096)[..], &[b'n'; 4096]].concat(),
        [&go[..], b"not a request at all, but long enough"].concat(),
        request(1, u64::MAX - 511, 512),
        request(1, 0, u32::MAX),
        request(77, 0, 512),
        request(4, 1 << 62, 1 << 20),
        // A write whose data never come.
        request(1, 0, 1 << 20),
    ];
    let before = fs::read(a.disk(0)).expect("the disk");
    for bytes in noise {
        let mut stream = UnixStream::connect(a.nbd_socket()).expect("the NBD socket");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{bytes:.60?} is not answered and not hung up");
        }
    }
    let len = usize::try_from(daemon_common::data_size(16).bytes()).expect("small");
    assert!(before[..len] == fs::read(a.disk(0)).expect("the disk")[..len], "noise was written to the disk");
    still_mirrors(&mut a, &mut b, 3);
}

#[test]
fn a_resource_that_cannot_come_up_at_start_does_not_keep_the_daemon_down() {
    let site = Site::new(Setup { disk_mib: vec![16, 16], ..Setup::default() });
    let mut node = site.node(0, up_to_date);
    fs::remove_file(node.disk(1)).expect("a disk");
    node.start_with(&["--up", "all"]);
    node.wait("attached where it can", |r| r.volumes.first().is_some_and(|v| v.disk == DiskState::UpToDate));
    node.wait_log(0, "alpha-1.img");
    assert_eq!(node.resource().volumes[1].disk, DiskState::Diskless);
    node.assert_sound();
    assert!(node.stop().success());
}

#[test]
fn two_resources_on_one_address() {
    let site = Site::new(Setup::default());
    let mut node = site.node(0, up_to_date);
    node.start_up();
    let Request::Connect { local, peer, peer_name, options, .. } = node.connect_request() else {
        panic!("a connection")
    };
    node.done(Request::NewResource { resource: "r1".to_owned(), options: Default::default(), handlers: None });
    let again = Request::Connect { resource: "r1".to_owned(), local, peer, peer_name, options };
    let error = node.call(again).expect_err("the address is in use");
    assert_words(&error, 102, &["already in use"]);
    node.assert_sound();
}
