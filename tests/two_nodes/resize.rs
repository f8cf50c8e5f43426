//! Backing files that grow while they are in use, and while nobody looks.

use std::fs::{self, File};
use std::path::Path;

use udrbd::control::Request;
use udrbd::units::Sectors;
use udrbd::wire::state::{ConnState, DiskState};

use crate::harness::{DISK_BYTES, Node, Pair, RES, V0, net};
use crate::nbd_client::NbdClient;

const MIB: u64 = 1 << 20;

fn resize(size: Sectors) -> Request {
    Request::Resize {
        resource: RES.to_owned(),
        volume: V0,
        size,
        assume_clean: false,
        assume_peer_has_space: false,
        al_stripes: None,
        al_stripe_size_kib: None,
    }
}

fn grow(path: &Path, bytes: u64) {
    File::options().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("room");
}

/// Usable KiB of a disk of this size with internal metadata.
fn usable_kib(bytes: u64) -> u64 {
    (bytes - 4096 - 32768 - 4096) / 1024
}

fn write(client: &mut NbdClient, offset: u64, data: &[u8]) -> std::io::Result<()> {
    client.send_write(offset, data)?;
    client.flush()
}

fn wait_size(node: &Node, kib: u64) {
    node.wait("the new size", |v| {
        v.size_kib == kib && v.state == ConnState::Connected && v.disk == DiskState::UpToDate
    });
}

#[test]
fn both_disks_grow_under_a_client_and_shrink_again() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let mut client = pair.a.open().expect("the export");
    write(&mut client, 0, &[7; 4096]).expect("written");
    let old = client.size_bytes();
    assert_eq!(old, usable_kib(DISK_BYTES) * 1024);
    let new = DISK_BYTES + 16 * MIB;
    // The peer's disk has not grown yet: the metadata move, and the size stays.
    grow(&pair.a.disk(), new);
    pair.a.ok(resize(Sectors(0)));
    assert_eq!(pair.a.volume().size_kib * 1024, old);
    grow(&pair.b.disk(), new);
    pair.a.ok(resize(Sectors(0)));
    for node in [&pair.a, &pair.b] {
        wait_size(node, usable_kib(new));
    }
    pair.wait_in_sync();
    // Who is connected sees the old end, who comes sees the new one.
    assert_eq!(client.size_bytes(), old);
    let mut later = pair.a.open().expect("the export");
    assert_eq!(later.size_bytes(), usable_kib(new) * 1024);
    write(&mut later, old + 8 * MIB, &[9; 65536]).expect("written in the new part");
    client.close().expect("closed");
    later.close().expect("closed");
    pair.a.wait("the clients left", |v| v.open_count == 0);

    // Both die; where the metadata are now is found.
    pair.a.kill();
    pair.b.kill();
    for node in [&mut pair.a, &mut pair.b] {
        node.start();
        node.up(&net(&[]));
    }
    pair.a.wait("connected", |v| v.state == ConnState::Connected);
    pair.a.ok(pair.a.primary(false));
    pair.wait_in_sync();
    let mut client = pair.a.open().expect("the export");
    assert_eq!(client.read(old + 8 * MIB, 65536).expect("read"), [9; 65536]);
    assert_eq!(client.read(0, 4096).expect("read"), [7; 4096]);
    client.close().expect("closed");
    pair.a.wait("the client left", |v| v.open_count == 0);

    // Smaller, by the Secondary's operator; a client that comes sees it.
    pair.b.ok(resize(Sectors(10 * MIB / 512)));
    for node in [&pair.a, &pair.b] {
        wait_size(node, 10 * 1024);
    }
    let client = pair.a.open().expect("the export");
    assert_eq!(client.size_bytes(), 10 * MIB);
    client.close().expect("closed");
    pair.a.wait("the client left", |v| v.open_count == 0);
    pair.data_size = Sectors(10 * MIB / 512);
    pair.down_and_compare();
}

#[test]
fn a_disk_that_grew_while_nobody_had_it_is_found() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let mut client = pair.a.open().expect("the export");
    write(&mut client, MIB, &[5; 4096]).expect("written");
    client.close().expect("closed");
    let before = pair.b.volume().size_kib;
    pair.b.kill();
    grow(&pair.b.disk(), DISK_BYTES + 4 * MIB);
    pair.b.start();
    pair.b.up(&net(&[]));
    pair.wait_in_sync();
    assert_eq!(pair.b.volume().size_kib, before);
    assert!(pair.b.log_text().contains("Moving the internal meta data to its proper location"));
    let remembered =
        fs::read_to_string(pair.b.disk().with_file_name("state").join("drbd-minor-0.lkbd")).expect("a file");
    assert!(remembered.starts_with(&format!("{}\t", DISK_BYTES + 4 * MIB)), "{remembered}");
    // In use, while it is not attached any more and grows again; the other one grows as well, and then both do.
    pair.b.ok(pair.b.detach());
    grow(&pair.b.disk(), DISK_BYTES + 8 * MIB);
    pair.b.ok(pair.b.attach(&pair.b.disk()));
    pair.wait_in_sync();
    grow(&pair.a.disk(), DISK_BYTES + 8 * MIB);
    pair.b.ok(resize(Sectors(0)));
    // One of both moves its metadata only when it is told.
    pair.a.wait("the new size", |v| v.size_kib == usable_kib(DISK_BYTES + 8 * MIB));
    pair.wait_in_sync();
    pair.data_size = Sectors(usable_kib(DISK_BYTES + 8 * MIB) * 2);
    pair.down_and_compare();
}

#[test]
fn a_resize_that_must_not_be_is_refused_with_drbds_numbers() {
    let pair = Pair::start(&[]);
    let a = &pair.a;
    a.create();
    assert_eq!(a.refused(resize(Sectors(0))).0, 138);
    pair.a.ok(pair.a.attach(&pair.a.disk()));
    pair.a.ok(pair.a.connect(&net(&[])));
    pair.b.up(&net(&[]));
    a.wait("connected", |v| v.state == ConnState::Connected);
    assert_eq!(a.refused(resize(Sectors(0))).0, 131);
    let al = |stripes, kib| {
        let mut request = resize(Sectors(0));
        let Request::Resize { al_stripes, al_stripe_size_kib, .. } = &mut request else { return request };
        (*al_stripes, *al_stripe_size_kib) = (Some(stripes), Some(kib));
        request
    };
    a.ok(a.primary(true));
    pair.wait_in_sync();
    assert_eq!(a.refused(al(1024, 1 << 20)).0, 167);
    assert_eq!(a.refused(al(1, 16)).0, 168);
    assert_eq!(a.refused(al(1, 1 << 20)).0, 169);
    let (code, words) = a.refused(al(4, 32));
    assert_eq!(code, 170);
    assert!(words.starts_with("Implicit shrink not allowed. Use --size="), "{words}");
    a.ok(a.disconnect(false));
    assert_eq!(a.refused(al(4, 32)).0, 166);
}
