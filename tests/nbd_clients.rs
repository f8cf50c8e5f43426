//! Real NBD clients against the server: what they negotiate, copy and complain about. A client that is not installed is
//! skipped with one line.

#![cfg(feature = "drivers")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod nbd_common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nbd_common::{Pace, Setup, TestServer, export, have, run, succeed};

/// Bytes that repeat nowhere near a block's length.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

fn image(dir: &Path, name: &str, len: usize) -> String {
    let path = dir.join(name);
    std::fs::write(&path, pattern(len)).expect("a file");
    path.display().to_string()
}

fn same(a: &str, b: &str) {
    assert!(std::fs::read(a).expect("a file") == std::fs::read(b).expect("a file"), "{a} and {b} differ");
}

#[test]
fn nbdinfo_lists_every_export_with_its_properties() {
    if !have("nbdinfo") {
        return;
    }
    let mut setup = Setup::one(16);
    setup.exports.push(export("r0/1", 8));
    let server = TestServer::start(setup);
    let text = succeed("nbdinfo", &["--json", &server.uri("r0/1")]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    let export = &json["exports"][0];
    assert_eq!(export["export-name"], "r0/1");
    assert_eq!(export["description"], "r0/1: Primary, UpToDate");
    assert_eq!(export["export-size"], 8 << 20);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for property in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[property], true, "{property}");
    }
    assert_eq!(export["can_cache"], false);
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 << 20);

    let list = succeed("nbdinfo", &["--list", "--json", &server.uri("")]);
    let json: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let names: Vec<_> = json["exports"].as_array().expect("a list").iter().map(|e| &e["export-name"]).collect();
    assert_eq!(names, ["r0", "r0/1"]);

    let map = succeed("nbdinfo", &["--map", &server.uri("r0")]);
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "16777216", "0", "data"]);
}

#[test]
fn many_exports_can_be_listed() {
    if !have("nbdinfo") {
        return;
    }
    let exports = (0..300).map(|n| export(&format!("resource-{n}"), 1)).collect();
    let server = TestServer::start(Setup { exports, ..Setup::one(1) });
    let json: serde_json::Value =
        serde_json::from_str(&succeed("nbdinfo", &["--list", "--json", &server.uri("")])).expect("JSON");
    assert_eq!(json["exports"].as_array().expect("a list").len(), 300);
}

#[test]
fn a_secondary_refuses_in_words_that_the_client_shows() {
    if !have("qemu-img") {
        return;
    }
    let mut setup = Setup::one(1);
    setup.exports.push(export("secondary", 1));
    let server = TestServer::start(setup);
    for (name, text) in [
        ("secondary", "secondary is Secondary on this node; promote it with: drbdctl primary secondary"),
        ("nope", "there is no export"),
        ("", "there are 2 exports on this node, so name one, e.g. r0"),
    ] {
        let output = run("qemu-img", &["info", &server.uri(name)]);
        assert!(!output.status.success());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(text), "{stderr}");
    }
}

#[test]
fn nbdcopy_copies_both_ways_whatever_the_pace_of_the_disk() {
    if !have("nbdcopy") {
        return;
    }
    for pace in [Pace::AtOnce, Pace::LaterReversed] {
        let server = TestServer::start(Setup { pace, ..Setup::one(24) });
        let source = image(server.dir.path(), "source", 24 << 20);
        let back = server.dir.path().join("back").display().to_string();
        // The default, then large requests that are split into pieces, then one request at a time without extensions.
        for options in [&[][..], &["--request-size=16777216"], &["--synchronous", "--connections=1"]] {
            let uri = server.uri("");
            succeed("nbdcopy", &[options, &[&source, &uri]].concat());
            succeed("nbdcopy", &[options, &[&uri, &back]].concat());
            same(&source, &back);
            std::fs::remove_file(&back).expect("a file");
        }
        let uri = format!("nbd://127.0.0.1:{}/r0", server.tcp_port);
        succeed("nbdcopy", &[&uri, &back]);
        same(&source, &back);
        server.wait_idle();
    }
}

#[test]
fn a_pool_smaller_than_the_requests_in_flight_only_slows_clients_down() {
    if !have("nbdcopy") {
        return;
    }
    let server = TestServer::start(Setup { pool_bytes: 1 << 20, ..Setup::one(24) });
    let source = image(server.dir.path(), "source", 24 << 20);
    let back = server.dir.path().join("back").display().to_string();
    succeed("nbdcopy", &["--connections=4", "--request-size=4194304", &source, &server.uri("")]);
    succeed("nbdcopy", &["--connections=4", &server.uri(""), &back]);
    same(&source, &back);
}

#[test]
fn qemu_img_converts_and_compares() {
    if !have("qemu-img") {
        return;
    }
    let server = TestServer::start(Setup { pace: Pace::LaterReversed, ..Setup::one(32) });
    let source = image(server.dir.path(), "source", 32 << 20);
    let back = server.dir.path().join("back").display().to_string();
    let uri = server.uri("r0");
    assert!(succeed("qemu-img", &["info", &uri]).contains("virtual size: 32 MiB"));
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]);
    assert!(succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]).contains("identical"));
    succeed("qemu-img", &["convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", &uri, &back]);
    same(&source, &back);
}

#[test]
fn fio_verifies_what_it_wrote_at_depth_1_and_32() {
    if !have("fio") {
        return;
    }
    if !succeed("fio", &["--enghelp"]).contains("nbd") {
        println!("skipped: fio has no nbd engine");
        return;
    }
    let server = TestServer::start(Setup { pace: Pace::LaterReversed, ..Setup::one(32) });
    let uri = format!("--uri={}", server.uri("r0"));
    for (depth, range) in [(1, "4k-4k"), (32, "4k-4k"), (32, "512-1536k")] {
        let depth = format!("--iodepth={depth}");
        let range = format!("--bsrange={range}");
        let mut args = vec!["--name=t", "--ioengine=nbd", "--rw=randwrite", "--size=32m", "--io_size=16m"];
        args.extend([uri.as_str(), &depth, &range, "--verify=crc32c", "--verify_fatal=1", "--randseed=7"]);
        args.push("--output-format=terse");
        let output =
            std::process::Command::new("fio").args(&args).current_dir(server.dir.path()).output().expect("fio starts");
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    server.wait_idle();
}

/// Runs nbdsh with the system's Python: that of another installation does not know libnbd.
fn nbdsh_output(args: &[&str]) -> std::process::Output {
    let path = format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default());
    std::process::Command::new("nbdsh").args(args).env("PATH", path).output().expect("nbdsh starts")
}

fn have_nbdsh() -> bool {
    if !have("nbdsh") {
        return false;
    }
    let works = nbdsh_output(&["-c", "pass"]).status.success();
    if !works {
        println!("skipped: nbdsh does not find its Python module");
    }
    works
}

/// Runs a script with the handle `h` and the URI of r0 as `uri`.
fn nbdsh(server: &TestServer, script: &str) {
    let output = nbdsh_output(&["-c", &format!("uri = '{}'", server.uri("r0")), "-c", script]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nbdsh_sees_the_errors_that_the_protocol_names() {
    if !have_nbdsh() {
        return;
    }
    let mut setup = Setup::one(64);
    setup.exports.push(export("ro", 1));
    setup.exports[1].read_only = true;
    setup.bad_sector = Some(5000);
    let server = TestServer::start(setup);
    nbdsh(
        &server,
        r#"
import errno
h.set_strict_mode(0)
h.connect_uri(uri)
size = h.get_size()
def fails(number, call, *args, **kw):
    try:
        call(*args, **kw)
    except nbd.Error as ex:
        assert ex.errnum == number, (ex.errnum, number, args)
        return
    raise AssertionError('no error: %r' % (args,))
fails(errno.EINVAL, h.pread, 512, 1)
fails(errno.EINVAL, h.pread, 100, 0)
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 1024, size - 512)
fails(errno.EINVAL, h.pread, 512, 2**63 + 512 - 2**63 + size)
fails(errno.ENOSPC, h.pwrite, bytes(1024), size - 512)
fails(errno.EINVAL, h.pwrite, bytes(513), 0)
fails(errno.ENOSPC, h.zero, 1024, size - 512)
fails(errno.EINVAL, h.trim, 1024, size - 512)
fails(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.cache, 512, 0)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.block_status, 512, 0, lambda *a: 0)
fails(errno.EOVERFLOW, h.pread_structured, 2 << 20, 0, lambda *a: 0, nbd.CMD_FLAG_DF)
fails(errno.EIO, h.pread, 512, 5000 * 512)
fails(errno.EIO, h.pread, 4 << 20, 0)
# A refused write leaves the connection in step.
fails(errno.EINVAL, h.pwrite, bytes(33 << 20), 0)
h.pwrite(b'x' * 512, 1024, nbd.CMD_FLAG_FUA)
assert h.pread(512, 1024) == b'x' * 512
h.pwrite(b'y' * (3 << 20), 4 << 20)
assert h.pread(3 << 20, 4 << 20) == b'y' * (3 << 20)
assert h.pread(512, 1024, nbd.CMD_FLAG_FUA) == b'x' * 512
h.zero(512, 1024)
assert h.pread(512, 1024) == bytes(512)
h.trim(512, 1024)
h.flush()
chunks = []
h.pread_structured(1 << 20, 8 << 20, lambda data, offset, kind, err: chunks.append(offset), nbd.CMD_FLAG_DF)
assert chunks == [8 << 20], chunks
h.shutdown()
r = nbd.NBD()
r.set_strict_mode(0)
r.connect_uri(uri.replace('r0', 'ro'))
assert r.is_read_only()
fails(errno.EPERM, r.pwrite, bytes(512), 0)
fails(errno.EPERM, r.zero, 512, 0)
fails(errno.EPERM, r.trim, 512, 0)
assert r.pread(512, 0) == bytes(512)
"#,
    );
    server.wait_idle();
}

#[test]
fn nbdsh_negotiates_step_by_step() {
    if !have_nbdsh() {
        return;
    }
    let server = TestServer::start(Setup::one(16));
    nbdsh(
        &server,
        r#"
h.set_opt_mode(True)
newer = hasattr(h, 'opt_structured_reply')
if newer:
    h.set_request_structured_replies(False)
h.connect_uri(uri)
def refused(call, *args):
    try:
        call(*args)
    except nbd.Error:
        return
    raise AssertionError('not refused')
names = []
h.opt_list(lambda name, description: names.append((name, description)))
assert names == [('r0', 'r0: Primary, UpToDate')], names
h.add_meta_context('base:allocation')
if newer:
    refused(h.opt_set_meta_context, lambda name: 0)
    assert h.opt_structured_reply()
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ['base:allocation'], contexts
h.clear_meta_contexts()
h.add_meta_context('other:thing')
if newer:
    assert h.opt_set_meta_context(lambda name: 0) == 0
h.set_export_name('nope')
refused(h.opt_info)
h.set_export_name('')
h.set_full_info(True)
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.opt_info()
assert h.get_canonical_export_name() == 'r0'
assert h.get_export_description() == 'r0: Primary, UpToDate'
h.opt_go()
assert h.can_meta_context('base:allocation')
extents = []
h.block_status(1 << 20, 512, lambda context, offset, entries, err: extents.extend(entries))
assert extents == [1 << 20, 0], extents
h.shutdown()
old = nbd.NBD()
old.set_handshake_flags(0)
old.connect_uri(uri)
assert old.get_protocol() == 'newstyle', old.get_protocol()
assert old.get_size() == 16 << 20
old.pwrite(b'z' * 512, 0)
assert old.pread(4 << 20, 0)[:512] == b'z' * 512
old.shutdown()
"#,
    );
    server.wait_idle();
}

#[test]
fn without_structured_replies_large_reads_arrive_in_order_or_not_at_all() {
    if !have_nbdsh() {
        return;
    }
    let server = TestServer::start(Setup { pace: Pace::LaterReversed, bad_sector: Some(40000), ..Setup::one(32) });
    nbdsh(
        &server,
        r#"
h.set_request_structured_replies(False)
h.connect_uri(uri)
data = b''.join(bytes([n]) * 65536 for n in range(160))
h.pwrite(data, 0)
assert h.pread(len(data), 0) == data
# With the disk's pace the last piece completes first, so the error comes before any data.
try:
    h.pread(8 << 20, 16 << 20)
    raise AssertionError('no error')
except nbd.Error as ex:
    assert ex.errno == 'EIO', ex
assert h.pread(len(data), 0) == data
"#,
    );
}

#[test]
fn garbage_is_answered_by_a_closed_connection_and_hurts_nobody_else() {
    let server = TestServer::start(Setup::one(1));
    let greeting = 18;
    let options = [
        // Not even client flags that exist.
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        // Good flags, then noise.
        [&[0, 0, 0, 3][..], &[0x55; 64]].concat(),
        // An option of 4 GiB.
        [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat(),
        // The export by its old name, then a request with a bad magic.
        [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 2], b"r0", &[0xaa; 28]].concat(),
        // A write of 4 GiB.
        [
            &[0, 0, 0, 3][..],
            b"IHAVEOPT",
            &[0, 0, 0, 1, 0, 0, 0, 2],
            b"r0",
            &[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xff; 4],
        ]
        .concat(),
    ];
    for bytes in options {
        let mut client = UnixStream::connect(server.socket()).expect("a connection");
        client.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a timeout");
        client.write_all(&bytes).expect("the server listens");
        let mut answer = Vec::new();
        // Closed with data unread may be a reset.
        match client.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{bytes:?}"),
        }
        assert!(answer.is_empty() || answer.len() >= greeting);
    }
    // A client that leaves in the middle of its payload.
    let mut client = UnixStream::connect(server.socket()).expect("a connection");
    client.write_all(&[0, 0, 0, 3]).expect("flags");
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x02r0").expect("an option");
    client
        .write_all(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0])
        .expect("a header");
    client.write_all(&[7; 1000]).expect("a piece");
    drop(client);
    server.wait_idle();
    if have("nbdinfo") {
        assert_eq!(succeed("nbdinfo", &["--size", &server.uri("")]).trim(), "1048576");
    }
}

#[test]
fn nbdfuse_shows_the_export_as_a_file() {
    if !have("nbdfuse") || !have("fusermount3") {
        return;
    }
    let server = TestServer::start(Setup::one(8));
    let mount = server.dir.path().join("mnt");
    std::fs::create_dir(&mount).expect("a directory");
    let file = mount.join("nbd");
    let mut nbdfuse = std::process::Command::new("nbdfuse")
        .args(["--pidfile", &server.dir.path().join("pid").display().to_string()])
        .args([&mount.display().to_string(), &server.uri("r0")])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("nbdfuse starts");
    loop {
        if server.dir.path().join("pid").exists() {
            break;
        }
        if nbdfuse.try_wait().expect("a child").is_some() {
            let mut text = String::new();
            nbdfuse.stderr.take().expect("a pipe").read_to_string(&mut text).expect("text");
            println!("skipped: nbdfuse cannot mount here: {}", text.trim());
            return;
        }
        std::thread::yield_now();
    }
    let data = pattern(1 << 20);
    let mut handle = std::fs::OpenOptions::new().read(true).write(true).open(&file).expect("the file");
    handle.write_all(&data).expect("writing");
    handle.sync_all().expect("flushing");
    drop(handle);
    let read = std::fs::read(&file).expect("reading");
    let unmounted = run("fusermount3", &["-u", &mount.display().to_string()]);
    nbdfuse.wait().expect("a child");
    assert!(unmounted.status.success());
    assert_eq!(read.len(), 8 << 20);
    assert!(read[..data.len()] == data[..] && read[data.len()..].iter().all(|byte| *byte == 0));
}
