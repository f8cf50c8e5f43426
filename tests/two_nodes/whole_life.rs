//! What nodes do all day: sync, replicate, lose a disk, change roles.

use udrbd::config::model::{DiskOptions, MetaDisk};
use udrbd::control::Request;
use udrbd::units::{Minor, VolumeNr};
use udrbd::wire::state::{ConnState, DiskState, Role};

use crate::harness::{Pair, RES, V0, create_disk, in_sync, net};
use crate::load::{Load, check_blocks, check_export};
use crate::model::{Dice, Model, contents};
use crate::nbd_client::NbdClient;

/// Writes version 0 of every block.
fn fill(pair: &Pair, model: &Model) {
    let mut client = pair.a.open().expect("the export");
    for block in 0..model.blocks() {
        client.send_write((block * 4096) as u64, &contents(block, 0)).expect("sent");
        client.receive().expect("written");
    }
    // Until then the peer has not said that it has them on disk.
    client.flush().expect("flushed");
    client.close().expect("closed");
}

fn replicates(args: &[&str], protocol: &str) {
    let mut pair = Pair::synced(args, &net(&[("protocol", protocol)]));
    let mut model = Model::new(pair.data_size);
    fill(&pair, &model);
    let mut load = Load::new(pair.a.open().expect("the export"));
    load.run(&mut model, &mut Dice::new(1), 2000).expect("writes");
    load.finish(&mut model).expect("flushed");
    check_export(&mut pair.a.open().expect("the export"), &mut model);
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}

#[test]
fn protocol_a_replicates() {
    replicates(&[], "A");
}

#[test]
fn protocol_b_replicates() {
    replicates(&[], "B");
}

#[test]
fn protocol_c_replicates() {
    replicates(&[], "C");
}

#[test]
fn without_io_uring_it_works_too() {
    replicates(&["--disk-io", "portable"], "C");
}

#[test]
fn a_primary_goes_on_without_its_disk_and_gets_it_back_under_load() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let mut model = Model::new(pair.data_size);
    fill(&pair, &model);
    let mut dice = Dice::new(2);
    let mut load = Load::new(pair.a.open().expect("the export"));
    load.run(&mut model, &mut dice, 500).expect("writes");
    std::thread::scope(|scope| {
        let (a, b) = (&pair.a, &pair.b);
        let operator = scope.spawn(move || {
            a.ok(a.detach());
            assert_eq!(a.volume().disk, DiskState::Diskless);
            // The news may be a moment behind the command's answer.
            b.wait("the peer without a disk", |v| v.peer_disk == DiskState::Diskless);
            // The last good copy may not go.
            assert!(b.call(b.detach()).is_err());
            a.ok(a.attach(&a.disk()));
            a.wait("in sync again", in_sync);
        });
        while !operator.is_finished() {
            load.run(&mut model, &mut dice, 50).expect("writes during the operator's work");
        }
        operator.join().expect("the operator's work");
    });
    load.finish(&mut model).expect("flushed");
    check_export(&mut pair.a.open().expect("the export"), &mut model);
    pair.wait_in_sync();
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}

#[test]
fn roles_change_hands() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let mut model = Model::new(pair.data_size);
    fill(&pair, &model);
    let mut dice = Dice::new(3);
    for round in 0..3 {
        let (primary, secondary) = if round % 2 == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        let (code, _) = secondary.refused(secondary.primary(false));
        assert_eq!(code, -1, "Multiple primaries not allowed by config");
        let mut load = Load::new(primary.open().expect("the export"));
        load.run(&mut model, &mut dice, 100).expect("writes");
        load.finish(&mut model).expect("flushed");
        primary.wait("the client left", |v| v.open_count == 0);
        primary.ok(primary.secondary(false));
        secondary.ok(secondary.primary(false));
        check_export(&mut secondary.open().expect("the export"), &mut model);
        secondary.wait("the client left", |v| v.open_count == 0);
    }
    pair.down_and_compare();
}

#[test]
fn an_open_session_keeps_the_role_and_force_ends_it() {
    let pair = Pair::synced(&[], &net(&[]));
    let mut client = pair.a.open().expect("the export");
    client.read(0, 4096).expect("data");
    pair.a.wait("the session counts", |v| v.open_count == 1);
    let me = format!("pid {}", std::process::id());
    for request in [pair.a.secondary(false), Request::Down { resource: RES.to_owned(), force: false }] {
        let (code, words) = pair.a.refused(request);
        assert_eq!(code, -12);
        assert!(words.contains("opened over NBD by") && words.contains(&me), "{words}");
    }
    client.read(0, 4096).expect("still served");
    pair.a.ok(pair.a.secondary(true));
    assert_eq!(pair.a.volume().role, Role::Secondary);
    assert!(client.read(0, 4096).is_err(), "the session has ended");
}

#[test]
fn a_resync_sends_only_what_changed() {
    let mut pair = Pair::synced(&[], &net(&[]));
    let mut model = Model::new(pair.data_size);
    fill(&pair, &model);
    pair.a.ok(pair.a.disconnect(false));
    let mut client = pair.a.open().expect("the export");
    for block in [0, 1, 700, model.blocks() - 1] {
        let write = model.begin(block);
        client.send_write(write.offset(), &write.contents()).expect("sent");
        client.receive().expect("written");
        model.acknowledged(write);
    }
    assert_eq!(pair.a.volume().out_of_sync_kib, 16);
    pair.b.wait("waiting", |v| v.state == ConnState::WfConnection);
    pair.a.ok(pair.a.connect(&net(&[])));
    let mut total = 0;
    pair.a.wait("in sync", |v| {
        total = total.max(v.sync.as_ref().map_or(0, |sync| sync.total_kib));
        in_sync(v)
    });
    assert_eq!(total, 16);
    client.close().expect("closed");
    pair.a.wait("the client left", |v| v.open_count == 0);
    pair.wait_in_sync();
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}

#[test]
fn everything_comes_and_goes() {
    let pair = Pair::start(&[]);
    pair.a.create();
    // Doing it again is no mistake.
    pair.a.create();
    let (code, _) = pair.a.refused(Request::DelResource { resource: RES.to_owned() });
    assert_eq!(code, 159);
    pair.a.ok(pair.a.attach(&pair.a.disk()));
    let (code, _) = pair.a.refused(pair.a.attach(&pair.a.disk()));
    assert_eq!(code, 124);
    let (code, _) = pair.a.refused(Request::DelVolume { resource: RES.to_owned(), volume: V0 });
    assert_eq!(code, 160);
    pair.a.ok(pair.a.connect(&net(&[])));
    let (code, _) = pair.a.refused(pair.a.connect(&net(&[])));
    assert_eq!(code, 102);
    pair.a.ok(pair.a.disconnect(false));
    let (code, _) = pair.a.refused(pair.a.disconnect(false));
    assert_eq!(code, 162);
    pair.a.ok(Request::Down { resource: RES.to_owned(), force: false });
    // Also done when there is none.
    pair.a.ok(Request::Down { resource: RES.to_owned(), force: false });
    let (code, _) = pair.a.refused(pair.a.primary(false));
    assert_eq!(code, 127);
    pair.a.up(&net(&[]));
}

#[test]
fn volumes_have_exports_of_their_own() {
    let pair = Pair::start(&[]);
    for node in [&pair.a, &pair.b] {
        node.create();
        node.ok(node.attach(&node.disk()));
        let path = node.disk().with_file_name("second.img");
        create_disk(&path, 8 << 20);
        node.ok(Request::NewVolume {
            resource: RES.to_owned(),
            volume: VolumeNr(7),
            minor: Minor(7),
            device: None,
            options: DiskOptions::default(),
        });
        node.ok(Request::Attach {
            resource: RES.to_owned(),
            volume: VolumeNr(7),
            backing: path.display().to_string(),
            meta_disk: MetaDisk::Internal,
            options: DiskOptions::default(),
        });
        let (code, _) = node.refused(Request::NewVolume {
            resource: RES.to_owned(),
            volume: VolumeNr(8),
            minor: Minor(7),
            device: None,
            options: DiskOptions::default(),
        });
        assert_eq!(code, 161, "the minor is taken");
        node.ok(node.connect(&net(&[])));
    }
    pair.a.wait("connected", |v| v.state == ConnState::Connected);
    for volume in [V0, VolumeNr(7)] {
        pair.a.ok(Request::Primary { resource: RES.to_owned(), volume, force: true });
    }
    pair.wait_in_sync();
    let mut first = NbdClient::open(&pair.a.nbd_socket(), "r0").expect("volume 0");
    let mut second = NbdClient::open(&pair.a.nbd_socket(), "r0/7").expect("volume 7");
    assert!(first.size_bytes() > second.size_bytes());
    for (client, version) in [(&mut first, 1), (&mut second, 2)] {
        client.send_write(4096, &contents(1, version)).expect("sent");
        client.receive().expect("written");
    }
    assert_eq!(first.read(4096, 4096).expect("data"), contents(1, 1));
    assert_eq!(second.read(4096, 4096).expect("data"), contents(1, 2));
    assert!(NbdClient::open(&pair.a.nbd_socket(), "r0/8").is_err());
}
