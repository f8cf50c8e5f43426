//! Bitmap operations on a device of 1 TiB at several densities of set bits.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use udrbd::engine::dirty::{Bitmap, PageNr};
use udrbd::units::BmBit;

const BITS: u64 = (1 << 40) / 4096;
/// The longest slice that the engine should do in one call.
const SLICE_WORDS: u64 = 64 * 512;
const DENSITIES: [(&str, u64); 5] = [("0", 0), ("0.01%", 1), ("1%", 100), ("50%", 5_000), ("100%", 10_000)];

/// Small, repeatable, good enough to scatter bits.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }
}

/// A bitmap in which `per_10000` of ten thousand bits are set, scattered.
fn bitmap(per_10000: u64) -> Bitmap {
    let mut map = Bitmap::new(BITS).expect("32 MiB are to be had");
    let mut random = Lcg(1);
    match per_10000 {
        0 => {}
        10_000 => {
            map.set_all();
        }
        _ => {
            for word in 0..BITS / 64 {
                let bits = (0..64).filter(|_| random.next() % 10_000 < per_10000).fold(0, |word, bit| word | 1 << bit);
                map.or_words(word, &[bits]);
            }
        }
    }
    map
}

fn by_density(c: &mut Criterion) {
    for (name, per_10000) in DENSITIES {
        let map = bitmap(per_10000);
        let mut group = c.benchmark_group("bitmap_1TiB");
        group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));

        group.throughput(Throughput::Elements(BITS));
        group.bench_function(BenchmarkId::new("scan_runs", name), |b| {
            b.iter(|| map.runs(0..BITS).map(|run| run.end - run.start).sum::<u64>());
        });
        group.bench_function(BenchmarkId::new("count_words", name), |b| {
            b.iter(|| map.count_slice(0..BITS, u64::MAX).bits);
        });
        group.bench_function(BenchmarkId::new("count_by_page", name), |b| b.iter(|| map.count_range(1..BITS - 1)));

        group.throughput(Throughput::Elements(1));
        let mut random = Lcg(2);
        group.bench_function(BenchmarkId::new("find_first_set", name), |b| {
            b.iter(|| map.find_first_set_from(BmBit(random.next() % BITS)));
        });
        let mut random = Lcg(3);
        group.bench_function(BenchmarkId::new("count_resync_extent", name), |b| {
            b.iter(|| map.count_resync_extent(u32::try_from(random.next() % (BITS / 4096)).unwrap_or(0)));
        });

        let mut work = map.clone();
        let mut random = Lcg(4);
        group.bench_function(BenchmarkId::new("set_and_clear_64KiB", name), |b| {
            b.iter(|| {
                let bit = random.next() % BITS;
                work.set_range(bit..bit + 16) + work.clear_range(bit..bit + 16)
            });
        });

        group.throughput(Throughput::Elements(SLICE_WORDS * 64));
        group.bench_function(BenchmarkId::new("set_slice", name), |b| {
            b.iter_batched_ref(
                || map.clone(),
                |map| map.set_slice(black_box(0..BITS), SLICE_WORDS).bits,
                BatchSize::PerIteration,
            );
        });
        let theirs = bitmap(100).words()[..usize::try_from(SLICE_WORDS).expect("small")].to_vec();
        group.bench_function(BenchmarkId::new("merge_slice", name), |b| {
            b.iter_batched_ref(|| map.clone(), |map| map.or_words(0, black_box(&theirs)), BatchSize::PerIteration);
        });
        group.throughput(Throughput::Bytes(4096));
        group.bench_function(BenchmarkId::new("page_bytes", name), |b| b.iter(|| map.page_bytes(PageNr(77))));
        group.finish();
    }
}

criterion_group!(benches, by_density);
criterion_main!(benches);
