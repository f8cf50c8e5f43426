//! Two daemons that both change their data: the split brain is explained, resolved, exported and undone, byte for byte.

#[allow(dead_code, reason = "the demo uses more of it")]
#[path = "../src/demo/nbd_client.rs"]
mod nbd_client;

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nbd_client::NbdClient;

const HOSTS: [&str; 2] = ["alpha", "beta"];
const A: usize = 0;
const B: usize = 1;
const DISK_BYTES: u64 = 12 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

struct Nodes {
    dir: tempfile::TempDir,
    children: Vec<Child>,
    data_bytes: u64,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    let on = |host: &str, port| TcpListener::bind((host, port));
    loop {
        let first = on("127.0.0.1", 0).expect("a port");
        let port = first.local_addr().expect("bound").port();
        if on("127.0.0.2", port).is_ok() {
            return port;
        }
    }
}

impl Nodes {
    /// Both nodes run, equal and connected; nobody is Primary.
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let mut config = String::from("resource r0 {\n  device minor 0; meta-disk internal;\n");
        for (n, host) in HOSTS.iter().enumerate() {
            let disk = dir.path().join(format!("{host}.img"));
            File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a file");
            config += &format!("  on {host} {{ disk {}; address 127.0.0.{}:{port}; }}\n", disk.display(), n + 1);
        }
        std::fs::write(dir.path().join("demo.conf"), config + "}\n").expect("written");
        let mut nodes = Self { dir, children: Vec::new(), data_bytes: 0 };
        for (n, host) in HOSTS.iter().enumerate() {
            nodes.ok(n, "create-md --force r0");
            std::fs::create_dir(nodes.dir.path().join(host)).expect("a directory");
            let log = File::create(nodes.dir.path().join(format!("{host}.log"))).expect("a file");
            let child = Command::new(env!("CARGO_BIN_EXE_drbdctl"))
                .args(["demo-node".as_ref(), nodes.dir.path().as_os_str(), host.as_ref()])
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("a node");
            nodes.children.push(child);
        }
        nodes.wait(A, "cstate r0", "Connected");
        nodes.ok(A, "primary --force r0");
        nodes.wait(A, "dstate r0", "UpToDate/UpToDate");
        nodes.ok(A, "secondary r0");
        let status = nodes.ok(A, "status r0 --json");
        let size = status.split("\"size\": ").nth(1).and_then(|rest| rest.split(',').next()).expect("a size");
        nodes.data_bytes = size.trim().parse::<u64>().expect("a number") * 1024;
        nodes
    }

    fn run(&self, n: usize, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drbdctl"));
        command.args(["-c", "demo.conf", "--hostname", HOSTS[n], "--socket"]);
        command.arg(self.dir.path().join(HOSTS[n]).join("control.sock")).args(words.split_whitespace());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        for variable in ["DRBD_CONF", "DRBD_HOSTNAME", "__DRBD_NODE__", "UDRBD_SOCKET"] {
            command.env_remove(variable);
        }
        command.output().expect("drbdctl runs")
    }

    fn ok(&self, n: usize, words: &str) -> String {
        let output = self.run(n, words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {words}: {text}{errors}{}", HOSTS[n], self.logs());
        text
    }

    fn logs(&self) -> String {
        let log = |host| std::fs::read_to_string(self.dir.path().join(format!("{host}.log"))).unwrap_or_default();
        HOSTS.iter().map(|host| format!("\n--- {host}\n{}", log(host))).collect()
    }

    fn wait(&self, n: usize, words: &str, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run(n, words);
            if String::from_utf8_lossy(&output.stdout).trim() == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{}: {words} is not {wanted}: {output:?}{}", HOSTS[n], self.logs());
            std::thread::yield_now();
        }
    }

    /// Writes blocks as an application; the node is Primary for that long.
    fn write(&mut self, n: usize, seed: u64, count: u64) {
        self.ok(n, "primary r0");
        let socket = self.dir.path().join(HOSTS[n]).join("nbd.sock");
        let mut client = NbdClient::open(&socket, "r0").expect("the export");
        let mut dice = seed;
        for _ in 0..count {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sector = (dice >> 20) % (self.data_bytes / 512 - 16);
            let data: Vec<u8> =
                (0..512 * (1 + (dice >> 60) % 16)).map(|at| (at ^ (dice >> 30)).to_le_bytes()[0]).collect();
            client.send_write(sector * 512, &data).expect("sent");
            client.receive().expect("written");
        }
        client.flush().expect("flushed");
        client.close().expect("closed");
        self.wait_closed(n);
        self.ok(n, "secondary r0");
    }

    fn wait_closed(&self, n: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.ok(n, "status r0 --json").contains("\"open\": true") {
            assert!(Instant::now() < deadline, "the client does not leave");
            std::thread::yield_now();
        }
    }

    /// The data area of a node's backing file.
    fn data(&self, n: usize) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(self.data_bytes).expect("small")];
        let file = File::open(self.dir.path().join(format!("{}.img", HOSTS[n]))).expect("the disk");
        file.read_exact_at(&mut data, 0).expect("whole");
        data
    }

    fn part(&self) {
        for n in [A, B] {
            // The other one may have asked for it already.
            let _ = self.run(n, "disconnect r0");
            self.wait(n, "cstate r0", "StandAlone");
        }
    }

    /// Both connect, and at least one of them finds the split brain; then nobody tries any more.
    fn meet_in_vain(&self) {
        self.ok(A, "connect r0");
        self.ok(B, "connect r0");
        let deadline = Instant::now() + PATIENCE;
        let told = |n: usize| self.ok(n, "status r0 --json").contains("\"kind\": \"split-brain\"");
        while !told(A) && !told(B) {
            assert!(Instant::now() < deadline, "no split brain is told of{}", self.logs());
            std::thread::yield_now();
        }
        self.part();
    }

    fn discard(&self, n: usize) {
        self.ok(n, "connect --discard-my-data r0");
        self.ok(1 - n, "connect r0");
        for n in [A, B] {
            self.wait(n, "dstate r0", "UpToDate/UpToDate");
        }
    }

    fn undo_file(&self, n: usize) -> PathBuf {
        self.dir.path().join(HOSTS[n]).join("state/r0-0.undo")
    }
}

fn same(what: &str, left: &[u8], right: &[u8]) {
    let first = left.iter().zip(right).position(|(l, r)| l != r);
    assert_eq!((left.len(), first), (right.len(), None), "{what}");
}

#[test]
fn a_split_brain_is_explained_resolved_exported_and_undone() {
    let mut nodes = Nodes::start();
    nodes.write(A, 1, 400);
    nodes.wait(B, "dstate r0", "UpToDate/UpToDate");
    let none = nodes.ok(B, "split-brain r0");
    assert_eq!(none, "r0/0: no split brain is known.\n");
    nodes.part();
    nodes.write(A, 2, 60);
    nodes.write(B, 3, 90);
    let (survivor, victim) = (nodes.data(A), nodes.data(B));
    nodes.meet_in_vain();

    for n in [A, B] {
        same("nothing was overwritten", &nodes.data(n), if n == A { &survivor } else { &victim });
    }
    let text =
        [A, B].map(|n| nodes.ok(n, "split-brain r0")).into_iter().find(|text| text.contains("split brain, found"));
    let text = text.expect("one of them knows");
    for words in ["It is not resolved", "alone since", "What after-sb-0pri would do:", "connect --discard-my-data r0"] {
        assert!(text.contains(words), "{words}: {text}");
    }

    nodes.discard(B);
    same("resolved", &nodes.data(B), &survivor);
    nodes.ok(B, "split-brain export r0 old.img");
    same("exported", &std::fs::read(nodes.dir.path().join("old.img")).expect("an image"), &victim);
    let refused = nodes.run(B, "split-brain undo r0");
    assert_eq!(refused.status.code(), Some(10), "{refused:?}");
    let told = nodes.ok(B, "split-brain r0");
    assert!(told.contains("the data of alpha were kept") && told.contains("it is complete"), "{told}");

    nodes.part();
    nodes.ok(B, "split-brain undo r0");
    same("undone", &nodes.data(B), &victim);
    nodes.wait(B, "dstate r0", "UpToDate/DUnknown");
    nodes.meet_in_vain();
    same("and nothing overwritten", &nodes.data(B), &victim);
    same("nor on the other node", &nodes.data(A), &survivor);

    nodes.ok(B, "split-brain undo r0");
    same("the way back", &nodes.data(B), &survivor);
    nodes.ok(B, "split-brain undo r0");
    same("and again", &nodes.data(B), &victim);
    nodes.discard(A);
    same("the victim has become the survivor", &nodes.data(A), &victim);
    assert!(nodes.undo_file(A).exists());
    nodes.ok(A, "split-brain forget r0");
    assert!(!nodes.undo_file(A).exists());
}
