//! 4 KiB random writes to a temporary file: io_uring against threads, one and 32 at a time.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use udrbd::disk::{BackingDevice, DiskOp, OpenOptions, Pool, Ring, RingChoice, RingOptions};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 16 << 10;

struct Bench {
    ring: Ring,
    dev: BackingDevice,
    payload: Bytes,
    state: u64,
}

impl Bench {
    fn submit(&mut self) {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let offset = self.state % BLOCKS * BLOCK;
        let (dev, data) = (self.dev.clone(), self.payload.clone().into());
        self.ring.submit(DiskOp::Write { dev, offset, data, fua: false }, offset);
    }

    /// Time for `count` writes, `depth` at a time.
    async fn run(&mut self, count: u64, depth: u64) -> Duration {
        let start = Instant::now();
        let (mut submitted, mut done, mut out) = (0, 0, Vec::new());
        while done < count {
            while submitted < count && submitted - done < depth {
                self.submit();
                submitted += 1;
            }
            self.ring.wait().await.unwrap();
            self.ring.drain(&mut out);
            done += out.len() as u64;
            for completion in out.drain(..) {
                black_box(completion).result.unwrap();
            }
        }
        start.elapsed()
    }
}

fn random_writes(c: &mut Criterion) {
    // Beside the build products: the default place for temporary files is often memory.
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dev = {
        // Allocated and written once, so that the file system has nothing left to decide.
        let zeroes = vec![1; usize::try_from(BLOCKS * BLOCK).unwrap()];
        std::fs::write(file.path(), zeroes).unwrap();
        file.as_file().sync_all().unwrap();
        BackingDevice::open(file.path(), &OpenOptions::default()).unwrap()
    };
    let mut group = c.benchmark_group("disk random 4 KiB writes");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(3));
    for (name, choice) in [("io_uring", RingChoice::Uring), ("threads", RingChoice::Portable)] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let pool = Pool::new(64 << 20).unwrap();
        let mut payload = pool.try_alloc(usize::try_from(BLOCK).unwrap()).unwrap();
        payload.fill(0x5a);
        let ring = runtime.block_on(async { Ring::new(&RingOptions { choice, ..Default::default() }, pool) });
        let Ok(ring) = ring else {
            continue;
        };
        let mut bench = Bench { ring, dev: dev.clone(), payload: payload.freeze(), state: 88_172_645_463_325_252 };
        for depth in [1, 32] {
            group.bench_function(format!("{name}, {depth} at a time"), |b| {
                b.iter_custom(|count| runtime.block_on(bench.run(count, depth)));
            });
        }
    }
    group.finish();
}

fn pool(c: &mut Criterion) {
    let pool = Pool::new(64 << 20).unwrap();
    c.bench_function("pool: take and return 4 KiB", |b| b.iter(|| black_box(pool.try_alloc(4096))));
    c.bench_function("pool: take, freeze and drop 4 KiB", |b| {
        b.iter(|| black_box(pool.try_alloc(4096).unwrap().freeze()));
    });
}

criterion_group!(benches, random_writes, pool);
criterion_main!(benches);
