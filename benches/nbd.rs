//! The cost of the NBD codec for one batch of a deep queue: 32 writes of 4 KiB received, 32 answers encoded.

use std::hint::black_box;
use std::io::IoSlice;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use udrbd::frontend::nbd::export::{ExportInfo, Negotiated};
use udrbd::frontend::nbd::in_flight::InFlight;
use udrbd::frontend::nbd::proto::Cmd;
use udrbd::frontend::nbd::receive::{Received, Receiver};
use udrbd::frontend::nbd::reply::SLICES_MAX;
use udrbd::frontend::nbd::transmission::{Command, RequestHeader, validate};
use udrbd::frontend::request::{BufferSource, Payload};
use udrbd::units::{Sector, SectorRange, Sectors};

const BATCH: u64 = 32;
const BLOCK: u32 = 4096;

struct Heap;

impl BufferSource for Heap {
    type Buffer = Vec<u8>;

    fn try_alloc(&self, len: usize) -> Option<Vec<u8>> {
        Some(vec![0; len])
    }

    fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from(buffer)
    }

    async fn wait(&self, _len: usize) {}
}

fn negotiated() -> Negotiated {
    let export = ExportInfo {
        name: "r0".to_owned(),
        description: String::new(),
        size: Sectors(1 << 20),
        read_only: false,
        trim: true,
        multi_conn: true,
    };
    Negotiated { export, flags: u16::MAX, structured: true, base_allocation: true }
}

fn header(command: Cmd, cookie: u64) -> RequestHeader {
    RequestHeader { flags: 0, command, cookie, offset: cookie * u64::from(BLOCK), len: BLOCK }
}

fn codec(criterion: &mut Criterion) {
    let negotiated = negotiated();
    let mut group = criterion.benchmark_group("nbd");
    group.throughput(Throughput::Elements(BATCH));

    group.bench_function("decode and validate", |bencher| {
        let bytes: Vec<_> = (0..BATCH).map(|cookie| header(Cmd::READ, cookie).encode()).collect();
        bencher.iter(|| {
            for bytes in &bytes {
                let header = RequestHeader::decode(black_box(bytes)).expect("a good request");
                let command: Command = validate(&header, &negotiated).expect("a good request");
                black_box(command);
            }
        });
    });

    group.bench_function("receive 4 KiB writes", |bencher| {
        let payload = vec![7; BLOCK as usize];
        let bytes: Vec<u8> =
            (0..BATCH).flat_map(|cookie| [&header(Cmd::WRITE, cookie).encode()[..], &payload].concat()).collect();
        let mut receiver = Receiver::new(&[]);
        bencher.iter(|| {
            let [_, mut staging] = receiver.free();
            staging[..bytes.len()].copy_from_slice(&bytes);
            receiver.received(bytes.len());
            while let Ok(Received::WritePiece { data, .. }) = receiver.next(&Heap, &negotiated) {
                black_box(data);
            }
        });
    });

    group.bench_function("answer 4 KiB reads", |bencher| {
        let data = Bytes::from(vec![7; BLOCK as usize]);
        let mut table = InFlight::new(true);
        bencher.iter(|| {
            for cookie in 0..BATCH {
                let range = SectorRange { start: Sector(cookie * 8), count: Sectors(8) };
                for (tag, _) in table.read(cookie, range) {
                    let payload = Payload::from_iter([data.clone()]);
                    table.complete(tag, Ok(payload)).expect("a single piece cannot be cut short");
                }
            }
            while !table.replies.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = table.replies.slices(&mut slices);
                let len = black_box(&slices[..count]).iter().map(|slice| slice.len()).sum();
                table.replies.sent(len);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
