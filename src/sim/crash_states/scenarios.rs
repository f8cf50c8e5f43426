//! The runs whose crashes are looked at: each writes much metadata in a way of its own.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::medium::Image;
use super::model::facts;
use super::record::{Fact, Io, PeerView, RecordIo, Recording, SECTOR};
use super::world::{A, B, Shape, World};
use super::{Error, Scenario};
use crate::engine::event::Command;
use crate::engine::fault::Fault;
use crate::engine::load::load_moved;
use crate::engine::options::{DiskOptions, NetOptions, ResizeOptions};
use crate::meta::create::create_md;
use crate::meta::layout::BLOCK_BYTES;
use crate::meta::{AlStripes, MdFlags, MemIo, MetaError, MetaIo, offline};
use crate::units::{GenId, Sectors};
use crate::wire::params::ReplProtocol;

/// Slots of the activity log: the fewest that there may be.
const SLOTS: u16 = crate::engine::al::AL_EXTENTS_MIN;
/// Extents of the device of the runs that are about the activity log: more than slots, so that it evicts.
const EXTENTS: u64 = 110;
const EXTENT: u64 = crate::limits::AL_EXTENT_SECTORS;

const STRIPED: (u32, u32) = (3, 4);
/// The block that is out of sync before metadata in use are created anew.
const USED_BIT: u64 = 77;

fn shape(extents: u64, external: bool, striped: bool) -> Result<Shape, Error> {
    let al = if striped { AlStripes::new(STRIPED.0, STRIPED.1).map_err(MetaError::from)? } else { AlStripes::DEFAULT };
    // Not a whole number of extents, nor of blocks.
    Ok(Shape { data: Sectors(extents * EXTENT - 1000 - 5), external, al })
}

fn options() -> DiskOptions {
    DiskOptions { al_extents: SLOTS, ..DiskOptions::default() }
}

fn net(protocol: ReplProtocol) -> NetOptions {
    NetOptions { protocol, ..NetOptions::default() }
}

/// Plays a scenario.
pub(super) fn play(scenario: Scenario, seed: u64, fault: Option<Fault>) -> Result<Recording, Error> {
    let external = seed % 2 == 1;
    match scenario {
        Scenario::Create => create(seed, external),
        Scenario::ActivityLog => activity_log(seed, external, fault),
        Scenario::Bitmap => bitmap(seed, external, fault),
        Scenario::Identifiers => identifiers(seed, external, fault),
        Scenario::Storm => storm(seed, external, fault),
        Scenario::Failure => failure(seed, external, fault),
        Scenario::Grow => grow(seed, external, fault),
        Scenario::Resize => resize(seed, fault),
    }
}

/// create-md on an empty device, then again over metadata in use.
fn create(seed: u64, external: bool) -> Result<Recording, Error> {
    let shape = shape(40, external, seed % 4 >= 2)?;
    let mut recording = Recording::new(format!("create seed {seed}"), shape.place(), shape.meta_bytes());
    let mut io = MemIo::new(shape.meta_bytes());
    for round in 0..2 {
        // What lies there may be anything that is no metadata.
        if round == 0 && seed % 8 >= 4 {
            let layout = shape.layout().map_err(MetaError::from)?;
            let (start, len) = layout.area();
            for block in 0..len / 4096 {
                let rubbish = [u8::try_from(block % 251).unwrap_or(1) | 1; 4096];
                recording.written(recording.meta_medium, start + block * 4096, &rubbish);
            }
            recording.flushed(recording.meta_medium);
            recording.start = recording.steps.len();
        }
        create_md(&mut RecordIo { io: &mut io, recording: &mut recording }, &shape.create_options())?;
        recording.fact(Fact::Attachable);
        if round == 0 {
            put_in_use(shape, &mut RecordIo { io: &mut io, recording: &mut recording })?;
            let content = Rc::new(BTreeMap::from([(USED_BIT * 8, 5)]));
            recording.fact(Fact::Peer(Rc::new(PeerView { content, covered: Vec::new() })));
        }
    }
    Ok(recording)
}

/// Metadata of a node that was in use: consistent data, one block out of sync.
fn put_in_use(shape: Shape, io: &mut dyn MetaIo) -> Result<(), Error> {
    let layout = shape.layout().map_err(MetaError::from)?;
    let mut superblock = offline::open(io, shape.place())?.superblock;
    let mut page = [0; BLOCK_BYTES];
    page[usize::try_from(USED_BIT / 8).unwrap_or(0)] = 1 << (USED_BIT % 8);
    let offset = layout.bm_page_byte(0).unwrap_or(0);
    io.write_at(offset, &page).map_err(|source| MetaError::Io { what: "write bitmap", offset, source })?;
    superblock.effective_size = layout.data_size;
    superblock.current = GenId(0x1234_5678_9abc_def0);
    superblock.flags = MdFlags::CONSISTENT | MdFlags::WAS_UP_TO_DATE | MdFlags::AL_CLEAN;
    offline::write_superblock(io, &layout, &superblock)?;
    Ok(())
}

/// A Primary on its own writes everywhere: the ring wraps several times, extents are evicted, pages and superblocks are
/// written in between.
fn activity_log(seed: u64, external: bool, fault: Option<Fault>) -> Result<Recording, Error> {
    let mut w = World::new("activity-log", seed, shape(EXTENTS, external, seed % 4 >= 2)?, 1, A)?;
    w.inject(fault);
    w.attach_all(&options())?;
    w.start_here();
    w.must(A, Command::NewCurrentUuid { clear_bitmap: true });
    w.must(A, Command::Primary { force: true });
    let extents = usize::try_from(EXTENTS).unwrap_or(1);
    for round in 0..3 {
        for i in 0..100 {
            // A part hits, a part misses.
            let extent = if i % 3 == 0 { w.below(extents / 4) } else { w.below(extents) } as u64;
            let block = w.below(4) as u64;
            let fua = w.below(8) == 0;
            w.write(A, extent * EXTENT + block * 8 + 3, 1, fua);
            if w.below(20) == 0 {
                w.flush(A);
            }
            let pause = w.below(12);
            w.steps(pause);
        }
        if round < 2 {
            w.settle();
            // Right after a change that writes the superblock anyway.
            w.must(A, Command::Secondary);
            if round == 0 {
                w.must(A, Command::Detach { force: false });
                assert!(w.attach(A, options())?, "attaches again");
            }
            w.must(A, Command::Primary { force: false });
        }
    }
    w.command(A, Command::Secondary);
    w.settle();
    w.must(A, Command::Detach { force: false });
    Ok(w.recording)
}

/// A connected, equal pair with A Primary.
fn pair(
    name: &str,
    seed: u64,
    shape: Shape,
    recorded: usize,
    protocol: ReplProtocol,
    fault: Option<Fault>,
) -> Result<World, Error> {
    let mut w = World::new(name, seed, shape, 2, recorded)?;
    w.inject(fault);
    w.attach_all(&options())?;
    w.connect_all(&net(protocol));
    w.start_here();
    w.must(A, Command::NewCurrentUuid { clear_bitmap: true });
    w.must(A, Command::Primary { force: false });
    Ok(w)
}

fn some_writes(w: &mut World, n: usize, count: usize, extents: u64) {
    for _ in 0..count {
        let extent = w.below(usize::try_from(extents).unwrap_or(1)) as u64;
        let block = w.below(6) as u64;
        let sectors = [1, 1, 2, 9][w.below(4)];
        let fua = w.below(8) == 0;
        w.write(n, extent * EXTENT + block * 8, sectors, fua);
        if w.below(12) == 0 {
            w.flush(n);
        }
        let pause = w.below(10);
        w.steps(pause);
    }
}

fn protocol(seed: u64) -> ReplProtocol {
    [ReplProtocol::A, ReplProtocol::B, ReplProtocol::C][usize::try_from(seed / 4 % 3).unwrap_or(0)]
}

/// Bits that are set while the peer is away, cleared by a resync as source (even seeds halved) or target, and written out by
/// disconnect, detach and demotion.
fn bitmap(seed: u64, external: bool, fault: Option<Fault>) -> Result<Recording, Error> {
    let recorded = usize::from(seed / 2 % 2 == 1);
    let mut w = pair("bitmap", seed, shape(6, external, false)?, recorded, protocol(seed), fault)?;
    for round in 0..3 {
        some_writes(&mut w, A, 12, 6);
        w.cut();
        some_writes(&mut w, A, 12, 6);
        w.settle_for(0);
        w.join();
        // The resync goes on beside new writes, and is cut short once.
        let pause = w.below(200);
        w.steps(pause);
        some_writes(&mut w, A, 4, 6);
        if round == 1 {
            w.cut();
            w.join();
        }
        w.settle();
    }
    w.must(recorded, Command::Detach { force: false });
    some_writes(&mut w, A, 5, 6);
    w.settle();
    let _ = w.attach(recorded, options())?;
    w.settle();
    w.command(A, Command::Secondary);
    w.settle();
    w.command(A, Command::Disconnect { force: false });
    w.settle();
    Ok(w.recording)
}

/// Generations: roles change, the peer is lost and taken over from, new ones are made by hand, full syncs are asked for.
fn identifiers(seed: u64, external: bool, fault: Option<Fault>) -> Result<Recording, Error> {
    let recorded = usize::from(seed / 2 % 2 == 1);
    let mut w = pair("identifiers", seed, shape(12, external, false)?, recorded, protocol(seed), fault)?;
    some_writes(&mut w, A, 3, 12);
    w.settle();
    for n in [A, B] {
        let other = 1 - n;
        // The peer goes while writes are under way, and comes back.
        some_writes(&mut w, n, 3, 12);
        w.cut();
        some_writes(&mut w, n, 3, 12);
        w.settle();
        w.join();
        w.settle();
        // The other one takes over, while this one is away.
        w.must(n, Command::Secondary);
        w.cut();
        w.settle();
        w.must(other, Command::Primary { force: false });
        some_writes(&mut w, other, 3, 12);
        w.settle();
        w.join();
        w.settle();
    }
    w.command(A, Command::InvalidateRemote);
    let pause = w.below(60);
    w.steps(pause);
    w.settle();
    w.command(A, Command::DiskOptions(DiskOptions { al_updates: false, ..options() }));
    some_writes(&mut w, A, 4, 12);
    w.command(A, Command::DiskOptions(options()));
    some_writes(&mut w, A, 4, 12);
    w.settle();
    w.command(A, Command::Disconnect { force: false });
    w.settle();
    // By hand and alone: writes before its end belong to the old generation.
    let _ = w.run(A, Command::NewCurrentUuid { clear_bitmap: false });
    some_writes(&mut w, A, 3, 12);
    w.settle();
    w.command(A, Command::Secondary);
    w.settle();
    w.command(A, Command::Invalidate);
    w.settle();
    Ok(w.recording)
}

/// Commands, cuts and writes in any order, without waiting for each other.
fn storm(seed: u64, external: bool, fault: Option<Fault>) -> Result<Recording, Error> {
    let recorded = usize::from(seed / 2 % 2 == 1);
    // A Primary that loses its disk and gets it back syncs all its hot extents: only where those are few. Where they are
    // many, they are evicted.
    let (extents, detaches) = if (seed / 12).is_multiple_of(2) { (75, false) } else { (6, true) };
    let mut w = pair("storm", seed, shape(extents, external, false)?, recorded, protocol(seed), fault)?;
    for _ in 0..30 {
        let primary = w.primary();
        match w.below(12) {
            0 => w.cut(),
            1 | 2 => w.join(),
            3 => {
                if let Some(n) = primary {
                    w.command(n, Command::Secondary);
                }
            }
            4 | 5 => {
                if primary.is_none() {
                    let n = w.below(2);
                    w.command(n, Command::Primary { force: false });
                }
            }
            6 => {
                if detaches && w.run(recorded, Command::Detach { force: false }) {
                    let _ = w.attach(recorded, options())?;
                }
            }
            7 => {
                w.command(recorded, Command::Disconnect { force: false });
                let pause = w.below(50);
                w.steps(pause);
                w.command(recorded, Command::Connect(Box::new(net(protocol(seed)))));
            }
            8 => w.settle(),
            9 => w.settle_for(300_000_000),
            _ => {
                if let Some(n) = primary {
                    let count = 1 + w.below(if detaches { 6 } else { 40 });
                    some_writes(&mut w, n, count, extents);
                }
            }
        }
        let pause = w.below(60);
        w.steps(pause);
    }
    w.join();
    w.settle();
    Ok(w.recording)
}

/// A metadata write fails in the middle: the disk is given up, and what is on it still tells the truth.
fn failure(seed: u64, external: bool, fault: Option<Fault>) -> Result<Recording, Error> {
    let mut w = World::new("failure", seed, shape(EXTENTS, external, false)?, 1, A)?;
    w.inject(fault);
    w.attach_all(&options())?;
    w.start_here();
    w.must(A, Command::NewCurrentUuid { clear_bitmap: true });
    w.must(A, Command::Primary { force: true });
    let at = w.below(60);
    for i in 0..80 {
        if i == at {
            w.fail_meta_write = true;
        }
        let extent = w.below(90) as u64;
        w.write(A, extent * EXTENT + 8, 1, false);
        let pause = w.below(12);
        w.steps(pause);
        if i == at && seed % 4 >= 2 {
            w.settle();
            break;
        }
    }
    w.fail_meta_write |= seed % 4 < 2;
    w.command(A, Command::Secondary);
    w.settle();
    Ok(w.recording)
}

/// The agreed size grows at a connect: limits that held it down are gone.
fn grow(seed: u64, external: bool, fault: Option<Fault>) -> Result<Recording, Error> {
    let recorded = usize::from(seed / 2 % 2 == 1);
    let shape = shape(40, external, false)?;
    let mut w = World::new("grow", seed, shape, 2, recorded)?;
    w.inject(fault);
    let small = DiskOptions { size: Sectors(10 * EXTENT), ..options() };
    w.attach_all(&small)?;
    w.connect_all(&net(ReplProtocol::C));
    w.must(A, Command::NewCurrentUuid { clear_bitmap: true });
    w.must(A, Command::Primary { force: false });
    some_writes(&mut w, A, 6, 9);
    w.settle();
    w.must(A, Command::Secondary);
    for n in [A, B] {
        w.must(n, Command::Disconnect { force: true });
        w.must(n, Command::Detach { force: false });
        assert!(w.attach(n, options())?, "attaches with its old size");
    }
    w.start_here();
    w.connect_all(&net(ReplProtocol::C));
    w.command(A, Command::Primary { force: false });
    w.settle();
    some_writes(&mut w, A, 10, 39);
    w.settle();
    Ok(w.recording)
}

/// The devices of both nodes grow while they are in use, by less than the metadata need or by more; the metadata move, the
/// new part is synced and written, the ring changes, and the device is made smaller again.
fn resize(seed: u64, fault: Option<Fault>) -> Result<Recording, Error> {
    let recorded = usize::from(seed / 2 % 2 == 1);
    let mut w = pair("resize", seed, shape(6, false, seed % 4 >= 2)?, recorded, protocol(seed), fault)?;
    some_writes(&mut w, A, 6, 6);
    w.settle();
    w.grow([4, 36, 64, 2 * EXTENT / 2][usize::try_from(seed % 4).unwrap_or(0)]);
    let by = w.below(2);
    w.command(by, Command::Resize(ResizeOptions::default()));
    some_writes(&mut w, A, 6, 6);
    w.settle();
    if seed % 4 == 3 {
        some_writes(&mut w, A, 6, 8);
    }
    w.settle();
    let ring = ResizeOptions { al_stripes: Some(2), al_stripe_kib: Some(32), ..ResizeOptions::default() };
    w.command(recorded, Command::Resize(ResizeOptions { size: Sectors(5 * EXTENT), ..ring }));
    some_writes(&mut w, A, 6, 4);
    w.settle();
    w.must(A, Command::Secondary);
    w.must(recorded, Command::Detach { force: false });
    assert!(w.attach(recorded, options())?, "attaches where the metadata are now");
    Ok(w.recording)
}

/// The recovery of a crash image, as a recording: crashes in it can be looked at like all others.
pub(super) fn recovery(of: &Recording, image: &Image<'_>, fact: Fact) -> Result<Recording, Error> {
    let mut recording = Recording::new(format!("recovery of {}", of.name), of.place, of.meta_bytes);
    recording.known_bytes = of.known_bytes;
    let mut io = MemIo::new(of.meta_bytes);
    let meta = image.content(of.meta_medium);
    let media = [0, of.meta_medium];
    for medium in media.iter().take(1 + usize::from(of.meta_medium != 0)) {
        for (sector, bytes) in image.content(*medium) {
            let is_meta = *medium == of.meta_medium && image.is_meta((*medium, sector));
            let offset = sector * SECTOR as u64;
            if is_meta {
                recording.written(*medium, offset, &bytes);
            } else {
                let op = recording.submit(Io::Write {
                    medium: *medium,
                    sector,
                    bytes: bytes.to_vec().into(),
                    fua: false,
                    meta: false,
                });
                recording.complete(op);
            }
        }
        recording.flushed(*medium);
    }
    for (sector, bytes) in meta {
        // The memory device takes single sectors.
        let _ = io.write_at(sector * SECTOR as u64, &bytes);
    }
    recording.fact(Fact::Attachable);
    recording.fact(fact);
    recording.start = recording.steps.len();
    let known = of.last_known();
    load_moved(&mut RecordIo { io: &mut io, recording: &mut recording }, of.place, facts(of), known.as_ref())?;
    Ok(recording)
}
