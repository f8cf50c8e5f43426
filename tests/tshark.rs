//! An independent reading of what two daemons say to each other: a whole life of a pair is captured, and Wireshark's DRBD
//! dissector must understand every packet of it. Needs root (a network namespace of its own) and tshark.

#![cfg(feature = "drivers")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod daemon_common;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use daemon_common::nbd::{Command, FUA, NO_HOLE, NbdClient};
use daemon_common::{
    Node, PORT, RES, SOON, Setup, Site, assert_replicas_equal, have, pattern, run, succeed, up_to_date,
};
use udrbd::control::Request;
use udrbd::units::VolumeNr;
use udrbd::wire::state::{ConnState, DiskState};
use xtask::lab::{Leash, Scope, Spec};

/// A network namespace with nothing but a loopback interface; gone when dropped.
struct Netns {
    holder: Leash,
}

impl Netns {
    /// `None`, with a line that says why, where that is not allowed.
    fn new(dir: &Path) -> Option<Self> {
        for tool in ["tshark", "dumpcap", "unshare", "nsenter", "ip"] {
            if !have(tool) {
                return None;
            }
        }
        if !run("unshare", &["--net", "true"]).status.success() {
            println!("skipped: no permission to make a network namespace");
            return None;
        }
        // Its word and nothing else: before it, its process is still in the namespace of everybody.
        let (said, up) = channel();
        let script = "ip link set lo up && echo up && exec sleep infinity";
        let holder =
            leash(&["unshare", "--net", "sh", "-c", script], dir, move |line| drop(said.send(line.to_owned())));
        let said = up.recv_timeout(SOON);
        assert_eq!(said.as_deref(), Ok("up"), "no loopback interface in the namespace");
        Some(Self { holder })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.pid()))
    }

    fn option(&self) -> String {
        format!("--net={}", self.path().display())
    }
}

fn leash(argv: &[&str], dir: &Path, on_line: impl FnMut(&str) + Send + 'static) -> Leash {
    let out = File::options().append(true).create(true).open(dir.join("helpers.log")).expect("a log");
    Leash::start(
        Spec {
            argv: argv.iter().map(Into::into).collect(),
            netns: None,
            env: Vec::new(),
            stderr: out,
            scope: Scope::Process,
            redirections: String::new(),
            dir: dir.to_owned(),
        },
        on_line,
    )
    .expect("a program starts")
}

/// A running capture.
struct Capture {
    dumpcap: Leash,
    file: PathBuf,
    netns: String,
}

impl Capture {
    fn start(netns: &Netns, dir: &Path) -> Self {
        let file = dir.join("capture.pcap");
        let (net, filter) = (netns.option(), format!("tcp port {PORT}"));
        let path = file.display().to_string();
        // Plain pcap; a buffer that holds everything, so that a busy host loses nothing.
        let argv = ["nsenter", &net, "dumpcap", "-i", "lo", "-f", &filter, "-B", "48", "-P", "-w", &path, "-q"];
        let capture = Self { dumpcap: leash(&argv, dir, |_| {}), file, netns: net };
        capture.mark(1);
        capture
    }

    /// Connects to an address where nobody is until that is in the file: so is everything that was sent before.
    fn mark(&self, host: u8) {
        let begin = Instant::now();
        let knock = format!("exec 3<>/dev/tcp/127.0.0.{host}/{PORT}");
        loop {
            run("nsenter", &[&self.netns, "bash", "-c", &knock]);
            let bytes = std::fs::read(&self.file).unwrap_or_default();
            let tail = &bytes[bytes.len().saturating_sub(1000)..];
            if tail.windows(4).any(|window| window == [127, 0, 0, host]) {
                return;
            }
            if begin.elapsed() > SOON {
                let log = self.file.with_file_name("helpers.log");
                let said = std::fs::read_to_string(log).unwrap_or_default();
                panic!("{host} is not among the {} bytes captured; {said}", bytes.len());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn finish(mut self) -> PathBuf {
        self.mark(99);
        self.dumpcap.terminate();
        assert!(self.dumpcap.wait_exit(SOON).is_some(), "dumpcap does not end");
        self.file
    }
}

fn detach_and_attach(node: &Node) {
    node.done(Request::Detach { resource: RES.to_owned(), volume: VolumeNr(0), force: false });
    let attach = node.up_requests().into_iter().find(|r| matches!(r, Request::Attach { .. })).expect("a disk");
    node.done(attach);
}

/// Everything that a pair says in its life, with this `net` section.
fn live(site: &Site, volumes: u64) {
    let (mut a, mut b) = (site.node(0, up_to_date), site.node(1, up_to_date));
    a.start_up();
    b.start_up();
    a.wait_in_sync();
    b.wait_in_sync();
    a.primary();
    let mut nbd = NbdClient::open(&a.nbd_socket(), RES).expect("the export");
    for (nr, bytes) in [512, 4096, 65536, 1 << 20].into_iter().enumerate() {
        nbd.write(nr as u64 * (2 << 20), &pattern(nr as u64, bytes));
    }
    let cookie = nbd.send(Command::Write, FUA, 4096, 4096, &pattern(7, 4096));
    nbd.finish(cookie);
    for (command, flags) in [(Command::Trim, 0), (Command::WriteZeroes, NO_HOLE), (Command::WriteZeroes, 0)] {
        let cookie = nbd.send(command, flags, 8 << 20, 1 << 20, &[]);
        nbd.finish(cookie);
    }
    nbd.flush();
    assert_eq!(nbd.read(6 << 20, 4096), pattern(3, 1 << 20)[..4096]);

    // Without its disk it reads and writes through the peer; then the blocks come back.
    a.done(Request::Detach { resource: RES.to_owned(), volume: VolumeNr(0), force: false });
    nbd.write(9 << 20, &pattern(9, 65536));
    assert_eq!(nbd.read(9 << 20, 65536), pattern(9, 65536));
    let attach = a.up_requests().into_iter().find(|r| matches!(r, Request::Attach { .. })).expect("a disk");
    a.done(attach);
    a.wait_in_sync();

    // A cut, writes, and the resync of what they touched.
    b.disconnect();
    b.wait_standalone();
    for block in 0..300 {
        nbd.write(block * 3 * 4096 % (12 << 20), &pattern(block, 4096));
    }
    b.connect();
    b.wait_in_sync();
    a.wait_in_sync();

    // A full sync, and pausing it.
    b.done(Request::Invalidate { resource: RES.to_owned(), volume: VolumeNr(0) });
    b.wait_in_sync();
    a.wait_in_sync();
    detach_and_attach(&b);
    a.wait_in_sync();
    nbd.flush();
    drop(nbd);
    a.wait_volume("closed", |v| v.open_count == 0);
    a.secondary();
    b.primary();
    b.wait_volume("Primary", |v| v.disk == DiskState::UpToDate);
    assert_replicas_equal(&a, &b, 16);
    b.secondary();
    a.disconnect();
    a.wait_standalone();
    b.wait_conn(ConnState::WfConnection);
    assert_eq!(a.resource().volumes.len() as u64, volumes);
    a.assert_sound();
    b.assert_sound();
    assert!(a.stop().success());
    assert!(b.stop().success());
}

/// The commands that the dissector found, after checking that it understood everything.
fn dissect(file: &Path) -> BTreeSet<String> {
    let file = file.display().to_string();
    // The dissector knows a connection by its first packet, and is off by default.
    let tshark = |args: &[&str]| succeed("tshark", &[&["-r", &file, "--enable-heuristic", "drbd_tcp"], args].concat());
    // "data" is what no dissector wants.
    let broken = "_ws.malformed || _ws.expert.severity == error || data";
    assert_eq!(tshark(&["-Y", broken]), "", "not understood");
    let text = tshark(&["-Y", "drbd", "-O", "drbd"]);
    assert!(!text.contains("Unknown ("), "an unknown command:\n{text}");
    let mut commands = BTreeSet::new();
    for line in tshark(&["-Y", "drbd", "-T", "fields", "-e", "drbd.command"]).lines() {
        commands.extend(line.split(',').map(str::to_owned));
    }
    commands
}

fn captured(net: &str, disk_mib: Vec<u64>) -> Option<BTreeSet<String>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let netns = Netns::new(dir.path())?;
    let capture = Capture::start(&netns, dir.path());
    let volumes = disk_mib.len() as u64;
    let site = Site::inside(Setup { net: net.to_owned(), disk_mib, ..Setup::default() }, Some(netns.path()));
    live(&site, volumes);
    Some(dissect(&capture.finish()))
}

/// Commands by number, as in the packet table.
fn assert_has(commands: &BTreeSet<String>, wanted: &[(u16, &str)]) {
    let number =
        |text: &str| text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u16::from_str_radix(hex, 16).ok());
    let found: BTreeSet<u16> = commands.iter().filter_map(|text| number(text)).collect();
    for (command, name) in wanted {
        assert!(found.contains(command), "no {name} in the capture, only {commands:?}");
    }
}

const ALWAYS: &[(u16, &str)] = &[
    (0x00, "P_DATA"),
    (0x03, "P_BARRIER"),
    (0x1c, "P_BARRIER_ACK"),
    (0x31, "P_TRIM"),
    (0x36, "P_ZEROES"),
    (0x08, "P_DATA_REQUEST"),
    (0x01, "P_DATA_REPLY"),
    (0x0f, "P_SYNC_UUID"),
    (0x09, "P_RS_DATA_REQUEST"),
    (0x02, "P_RS_DATA_REPLY"),
    (0x17, "P_RS_WRITE_ACK"),
    (0x0c, "P_UUIDS"),
    (0x0d, "P_SIZES"),
    (0x0e, "P_STATE"),
    (0x0b, "P_PROTOCOL"),
    (0x12, "P_STATE_CHG_REQ"),
    (0x1d, "P_STATE_CHG_REPLY"),
    (0x2a, "P_CONN_ST_CHG_REQ"),
    (0x2b, "P_CONN_ST_CHG_REPLY"),
    (0x13, "P_PING"),
    (0x14, "P_PING_ACK"),
];

#[test]
fn wireshark_understands_protocol_c_with_authentication_and_coded_bitmaps() {
    let Some(commands) = captured("protocol C; cram-hmac-alg sha1; shared-secret \"a secret\";", vec![16]) else {
        return;
    };
    assert_has(&commands, ALWAYS);
    assert_has(
        &commands,
        &[(0x10, "P_AUTH_CHALLENGE"), (0x11, "P_AUTH_RESPONSE"), (0x16, "P_WRITE_ACK"), (0x24, "P_COMPRESSED_BITMAP")],
    );
}

#[test]
fn wireshark_understands_protocol_b_with_plain_bitmaps_and_digests() {
    let Some(commands) = captured("protocol B; use-rle no; data-integrity-alg crc32c;", vec![16, 8]) else { return };
    assert_has(&commands, &ALWAYS.iter().copied().filter(|(nr, _)| *nr != 0x36).collect::<Vec<_>>());
    assert_has(&commands, &[(0x15, "P_RECV_ACK"), (0x04, "P_BITMAP")]);
}

#[test]
fn wireshark_understands_protocol_a() {
    let Some(commands) = captured("protocol A;", vec![16]) else { return };
    assert_has(&commands, ALWAYS);
}
