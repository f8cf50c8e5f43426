//! Real NBD clients on a mirrored export, and the same content on the other node after a failover. A client that is not
//! installed, or a kernel feature that is not allowed here, is skipped with one line.

#![cfg(feature = "drivers")]

mod daemon_common;

use std::path::Path;

use daemon_common::{
    Node, RES, Setup, Site, assert_replicas_equal, data_size, have, pattern, run, succeed, up_to_date,
};
use udrbd::control::Request;
use udrbd::units::VolumeNr;
use udrbd::wire::state::{ConnState, DiskState, Role};

const MIB: u64 = 24;

struct Mirror {
    a: Node,
    b: Node,
    site: Site,
}

impl Mirror {
    /// In sync, the first node Primary.
    fn new(net: &str) -> Self {
        let site = Site::new(Setup { disk_mib: vec![MIB], net: net.to_owned(), ..Setup::default() });
        let (mut a, mut b) = (site.node(0, up_to_date), site.node(1, up_to_date));
        a.start_up();
        b.start_up();
        a.wait_in_sync();
        b.wait_in_sync();
        a.primary();
        Self { a, b, site }
    }

    fn path(&self, name: &str) -> String {
        self.site.path().join(name).display().to_string()
    }

    /// The export's size.
    fn bytes(&self) -> usize {
        usize::try_from(data_size(MIB).bytes()).expect("small")
    }

    /// A file as long as the export.
    fn image(&self, name: &str, seed: u64) -> String {
        let path = self.path(name);
        std::fs::write(&path, pattern(seed, self.bytes())).expect("a file");
        path
    }

    /// The first node dies, the second takes over.
    fn fail_over(&mut self) {
        self.a.kill();
        self.b.wait_volume("alone", |v| v.state == ConnState::WfConnection);
        self.b.primary();
    }

    /// The first node comes back and learns what it missed.
    fn come_back(&mut self) {
        self.a.start_up();
        self.a.wait_in_sync();
        self.b.wait_in_sync();
        assert_eq!(self.a.volume().role, Role::Secondary);
        assert_replicas_equal(&self.a, &self.b, MIB);
        self.a.assert_sound();
        self.b.assert_sound();
    }
}

fn same(a: &str, b: &str) {
    assert!(std::fs::read(a).expect("a file") == std::fs::read(b).expect("a file"), "{a} and {b} differ");
}

#[test]
fn nbdinfo_says_what_the_mirror_is() {
    if !have("nbdinfo") {
        return;
    }
    let mirror = Mirror::new("");
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&succeed("nbdinfo", &[&["--json"], args].concat())).expect("JSON")
    };
    let info = json(&[&mirror.a.uri(RES)]);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], data_size(MIB).bytes());
    assert_eq!(export["description"], "Primary, UpToDate/UpToDate, Connected");
    for property in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[property], true, "{property}");
    }
    assert_eq!(export["is_read_only"], false);
    let list = json(&["--list", &mirror.a.uri("")]);
    assert_eq!(list["exports"][0]["export-name"], RES);
    // A Secondary is not opened.
    assert!(!run("nbdinfo", &[&mirror.b.uri(RES)]).status.success());
    // The data that this node lost are the peer's.
    mirror.a.done(Request::Detach { resource: RES.to_owned(), volume: VolumeNr(0), force: false });
    mirror.a.wait_volume("Diskless", |v| v.disk == DiskState::Diskless);
    let info = json(&[&mirror.a.uri(RES)]);
    assert_eq!(info["exports"][0]["description"], "Primary, Diskless/UpToDate, Connected");
    assert_eq!(info["exports"][0]["export-size"], data_size(MIB).bytes());
}

#[test]
fn nbdcopy_in_and_out_under_every_protocol() {
    if !have("nbdcopy") {
        return;
    }
    for (seed, protocol) in ["A", "B", "C"].into_iter().enumerate() {
        let mut mirror = Mirror::new(&format!("protocol {protocol};"));
        let source = mirror.image("source", seed as u64 + 1);
        succeed("nbdcopy", &["--flush", &source, &mirror.a.uri(RES)]);
        let back = mirror.path("back");
        succeed("nbdcopy", &[&mirror.a.uri(RES), &back]);
        same(&source, &back);
        // Under A and B the peer may lag behind a flush; a clean leave does not.
        mirror.a.wait_volume("closed", |v| v.open_count == 0);
        mirror.a.secondary();
        mirror.b.primary();
        let there = mirror.path("there");
        succeed("nbdcopy", &[&mirror.b.uri(RES), &there]);
        same(&source, &there);
        assert_replicas_equal(&mirror.a, &mirror.b, MIB);
        mirror.a.assert_sound();
        mirror.b.assert_sound();
    }
}

#[test]
fn qemu_img_converts_and_compares_across_a_failover() {
    if !have("qemu-img") {
        return;
    }
    let mut mirror = Mirror::new("");
    let source = mirror.image("source", 7);
    let uri = mirror.a.uri(RES);
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]);
    assert!(succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]).contains("identical"));
    mirror.fail_over();
    let uri = mirror.b.uri(RES);
    assert!(succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]).contains("identical"));
    let other = mirror.image("other", 8);
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &other, &uri]);
    mirror.come_back();
    let back = mirror.path("back");
    succeed("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, &back]);
    same(&other, &back);
}

#[test]
fn fio_verifies_what_it_wrote_here_and_there() {
    if !have("fio") {
        return;
    }
    let mut mirror = Mirror::new("");
    let state = mirror.site.path().display().to_string();
    let fio = |uri: &str, how: &[&str]| {
        let uri = format!("--uri={uri}");
        let size = format!("--size={}", MIB << 19);
        let aux = format!("--aux-path={state}");
        let job = [
            "--name=mirror",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--bs_unaligned=0",
            "--blockalign=512",
            "--iodepth=16",
            "--randseed=4711",
            "--norandommap=0",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--thread",
            &size,
            &uri,
            &aux,
        ];
        succeed("fio", &[&job[..], how].concat());
    };
    fio(&mirror.a.uri(RES), &["--do_verify=1", "--fsync=64"]);
    mirror.a.wait_in_sync();
    assert_replicas_equal(&mirror.a, &mirror.b, MIB);
    mirror.fail_over();
    fio(&mirror.b.uri(RES), &["--verify_only"]);
    mirror.come_back();
}

/// A file system over FUSE and a loop device. What the script prepares it also takes away, however it ends.
const FILE_SYSTEM: &str = r#"
set -eu
uri=$1 dir=$2 phase=$3
mkdir -p "$dir/fuse" "$dir/mnt"
loop=
cleanup() {
    umount -l "$dir/mnt" 2>/dev/null || true
    [ -z "$loop" ] || losetup -d "$loop" 2>/dev/null || true
    umount -l "$dir/fuse" 2>/dev/null || true
    # Whatever it waits for: it holds the output of this script open.
    [ -z "$fuse" ] || kill -KILL "$fuse" 2>/dev/null || true
}
fuse=
trap cleanup EXIT
nbdfuse --pidfile "$dir/nbdfuse.pid.$phase" "$dir/fuse" "$uri" &
fuse=$!
while [ ! -s "$dir/nbdfuse.pid.$phase" ]; do
    kill -0 "$fuse" || exit 77
    sleep 0.02
done
loop=$(losetup --find --show "$dir/fuse/nbd") || exit 77
case $phase in
write)
    mkfs.ext4 -q -F -b 4096 "$loop"
    mount -t ext4 "$loop" "$dir/mnt" || exit 77
    cp -r "$dir/tree" "$dir/mnt/"
    sync -f "$dir/mnt"
    (cd "$dir/mnt/tree" && sha256sum -- *) > "$dir/sums"
    # The power goes while it is mounted and busy.
    cp -r "$dir/tree" "$dir/mnt/busy" &
    kill -KILL "$4"
    wait $! 2>/dev/null || true
    ;;
check)
    # The journal is replayed, as after any crash; then there must be nothing to repair.
    fsck.ext4 -p "$loop" || [ $? -le 1 ]
    fsck.ext4 -f -n "$loop"
    mount -t ext4 "$loop" "$dir/mnt"
    (cd "$dir/mnt/tree" && sha256sum --quiet --check "$dir/sums")
    umount "$dir/mnt"
    ;;
esac
"#;

#[test]
fn a_file_system_survives_the_death_of_its_primary() {
    for tool in ["nbdfuse", "losetup", "mkfs.ext4", "fsck.ext4", "mount", "sha256sum"] {
        if !have(tool) {
            return;
        }
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("skipped: a file system needs root and /dev/fuse");
        return;
    }
    let mut mirror = Mirror::new("");
    let tree = mirror.site.path().join("tree");
    std::fs::create_dir(&tree).expect("a directory");
    for file in 0..40_u64 {
        let len = usize::try_from(file * file * 97).expect("small");
        std::fs::write(tree.join(format!("file-{file}")), pattern(file, len)).expect("a file");
    }
    let dir = mirror.site.path().display().to_string();
    let script = |uri: &str, phase: &str, pid: &str| {
        // A mount namespace of its own: whatever stays behind goes with it.
        let output = run(
            "timeout",
            &[
                "60",
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                FILE_SYSTEM,
                "fs",
                uri,
                &dir,
                phase,
                pid,
            ],
        );
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), said)
    };
    let (code, said) = script(&mirror.a.uri(RES), "write", &mirror.a.pid().to_string());
    if code == Some(77) {
        let reason = said.lines().last().unwrap_or("the kernel does not allow it");
        println!("skipped: no loop device or file system here: {reason}");
        return;
    }
    assert_eq!(code, Some(0), "{said}\n{}", mirror.a.log());
    mirror.fail_over();
    let (code, said) = script(&mirror.b.uri(RES), "check", "");
    assert_eq!(code, Some(0), "{said}\n{}", mirror.b.log());
    mirror.come_back();
}
