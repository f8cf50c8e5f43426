//! Daemons that die, and what is left of the data.

use crate::harness::{Pair, in_sync, net};
use crate::load::{Load, check_blocks, check_export};
use crate::model::{Dice, Model, contents};
use udrbd::wire::state::ConnState;

/// A pair with known contents.
fn filled(seed: u64) -> (Pair, Model, Dice) {
    let pair = Pair::synced(&[], &net(&[]));
    let model = Model::new(pair.data_size);
    let mut client = pair.a.open().expect("the export");
    for block in 0..model.blocks() {
        client.send_write((block * 4096) as u64, &contents(block, 0)).expect("sent");
        client.receive().expect("written");
    }
    client.flush().expect("flushed");
    client.close().expect("closed");
    (pair, model, Dice::new(seed))
}

#[test]
fn a_primary_killed_under_load_comes_back_and_both_are_equal() {
    let (mut pair, mut model, mut dice) = filled(10);
    for _ in 0..3 {
        let mut load = Load::new(pair.a.open().expect("the export"));
        load.run(&mut model, &mut dice, 300).expect("writes");
        pair.a.kill();
        assert!(load.run(&mut model, &mut dice, 100).is_err(), "the daemon is gone");
        pair.b.wait("noticing", |v| v.state < ConnState::Connected);
        pair.a.start();
        pair.a.up(&net(&[]));
        pair.wait_in_sync();
        pair.a.ok(pair.a.primary(false));
        check_export(&mut pair.a.open().expect("the export"), &mut model);
        pair.a.wait("the client left", |v| v.open_count == 0);
    }
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}

#[test]
fn the_peer_takes_over_and_the_dead_one_catches_up() {
    let (mut pair, mut model, mut dice) = filled(11);
    let mut load = Load::new(pair.a.open().expect("the export"));
    load.run(&mut model, &mut dice, 300).expect("writes");
    pair.a.kill();
    drop(load);
    pair.b.wait("noticing", |v| v.state < ConnState::Connected);
    pair.b.ok(pair.b.primary(false));
    let mut client = pair.b.open().expect("the export");
    check_export(&mut client, &mut model);
    let mut load = Load::new(client);
    load.run(&mut model, &mut dice, 300).expect("writes");
    pair.a.start();
    pair.a.up(&net(&[]));
    load.run(&mut model, &mut dice, 300).expect("writes during the resync");
    pair.wait_in_sync();
    load.finish(&mut model).expect("flushed");
    pair.b.wait("the client left", |v| v.open_count == 0);
    pair.b.ok(pair.b.secondary(false));
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}

#[test]
fn a_secondary_killed_under_load_catches_up() {
    let (mut pair, mut model, mut dice) = filled(12);
    let mut load = Load::new(pair.a.open().expect("the export"));
    for _ in 0..3 {
        load.run(&mut model, &mut dice, 300).expect("writes");
        pair.b.kill();
        load.run(&mut model, &mut dice, 300).expect("writes without the peer");
        pair.b.start();
        pair.b.up(&net(&[]));
        load.run(&mut model, &mut dice, 100).expect("writes while it comes back");
        pair.a.wait("in sync", in_sync);
    }
    load.finish(&mut model).expect("flushed");
    pair.a.wait("the client left", |v| v.open_count == 0);
    pair.wait_in_sync();
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}

#[test]
fn both_killed_at_once_end_equal() {
    let (mut pair, mut model, mut dice) = filled(13);
    let mut load = Load::new(pair.a.open().expect("the export"));
    load.run(&mut model, &mut dice, 300).expect("writes");
    pair.a.kill();
    pair.b.kill();
    drop(load);
    pair.a.start();
    pair.b.start();
    pair.a.up(&net(&[]));
    pair.b.up(&net(&[]));
    pair.wait_in_sync();
    pair.a.ok(pair.a.primary(false));
    check_export(&mut pair.a.open().expect("the export"), &mut model);
    pair.a.wait("the client left", |v| v.open_count == 0);
    pair.down_and_compare();
    check_blocks(&pair.compare(), 0, &mut model);
}
