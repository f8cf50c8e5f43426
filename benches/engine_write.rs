//! The engine's share of a replicated 4 KiB write: what one request costs in the engine of a connected Primary (client
//! request, packet out, local completion, acknowledgement, barrier and its acknowledgement), and of its peer.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use smallvec::SmallVec;
use udrbd::engine::Engine;
use udrbd::engine::action::{Action, LinkAction};
use udrbd::engine::event::{ClientRequest, Command, CommandId, Event, Geometry, LinkEvent, LinkNr, RequestId};
use udrbd::engine::load::{DiskFacts, load};
use udrbd::engine::options::DiskOptions;
use udrbd::meta::create::{CreateOptions, create_md};
use udrbd::meta::{AlStripes, MemIo, Place};
use udrbd::units::{Sector, SectorRange, Sectors, Timestamp, VolumeNr};

const V: VolumeNr = VolumeNr(0);

/// Two engines whose disks complete at once and keep nothing, and whose packets arrive at once.
struct World {
    engines: [Engine; 2],
    queue: Vec<(usize, Event)>,
    out: Vec<Action>,
    now: u64,
    completed: u64,
    started: u8,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            engines: [Engine::new("bench", 1), Engine::new("bench", 2)],
            queue: Vec::new(),
            out: Vec::new(),
            now: 0,
            completed: 0,
            started: 0,
        };
        for n in 0..2 {
            let mut io = MemIo::new(1 << 30);
            let options =
                CreateOptions { place: Place::INTERNAL, al: AlStripes::DEFAULT, device_uuid: 1, peer_max_bio_size: 0 };
            create_md(&mut io, &options).expect("fits");
            let geometry =
                Geometry { logical_block_size: 512, physical_block_size: 512, discard: true, discard_zeroes: true };
            let facts = DiskFacts { geometry, shared_device: true, path: String::new() };
            let disk = load(&mut io, Place::INTERNAL, facts).expect("just created").disk;
            world.command(n, Command::NewVolume(DiskOptions::default()));
            world.command(n, Command::Attach(Box::new(disk), DiskOptions::default()));
            world.command(n, Command::Connect(Box::default()));
        }
        world.command(0, Command::NewCurrentUuid { clear_bitmap: true });
        world.command(0, Command::Primary { force: false });
        world
    }

    fn command(&mut self, n: usize, command: Command) {
        self.queue.push((n, Event::Command { id: CommandId(0), volume: V, command }));
        self.run();
    }

    fn run(&mut self) {
        while !self.queue.is_empty() {
            for (n, event) in std::mem::take(&mut self.queue) {
                self.now += 1000;
                let mut out = std::mem::take(&mut self.out);
                self.engines[n].handle(Timestamp(self.now), event, &mut out);
                self.engines[n].handle(Timestamp(self.now), Event::BatchEnd, &mut out);
                for action in out.drain(..) {
                    self.act(n, action);
                }
                self.out = out;
            }
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Disk { op, .. } => self.queue.push((n, Event::Disk { op, result: Ok(None) })),
            Action::Send { socket, volume, packet } => {
                self.queue.push((1 - n, Event::Packet { link: LinkNr(1), socket, volume, packet }));
            }
            Action::Link(LinkAction::Start) => {
                self.started += 1;
                if self.started == 2 {
                    for n in 0..2 {
                        let up = LinkEvent::Up {
                            nr: LinkNr(1),
                            version: 101,
                            features: 0xf,
                            resolve_conflicts: n == 0,
                            relaxed_epochs: false,
                        };
                        self.queue.push((n, Event::Link(up)));
                    }
                }
            }
            Action::Complete { result, .. } => {
                self.completed += 1;
                drop(black_box(result));
            }
            _ => {}
        }
    }

    fn write(&mut self, sector: u64, data: &Bytes) {
        let range = SectorRange { start: Sector(sector), count: Sectors(8) };
        let request = ClientRequest::Write { range, data: SmallVec::from_elem(data.clone(), 1), fua: false };
        self.queue.push((0, Event::Client { id: RequestId(sector), volume: V, request }));
    }
}

fn engine_write(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine_write_4k_both_nodes");
    let data = Bytes::from(vec![7; 4096]);
    for depth in [1_u64, 32] {
        group.throughput(Throughput::Elements(depth));
        group.bench_function(format!("depth_{depth}"), |b| {
            let mut world = World::new();
            let mut at = 0;
            b.iter(|| {
                let before = world.completed;
                for _ in 0..depth {
                    at = (at + 8) % 1_000_000;
                    world.write(at, &data);
                }
                world.run();
                assert_eq!(world.completed - before, depth);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine_write);
criterion_main!(benches);
