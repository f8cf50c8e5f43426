//! The activity log's hot path (every write) and miss path (a transaction for one extent, and for a full batch).

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use udrbd::engine::al::{ActivityLog, AlLayout, Begin, ExtentSpan, RequestKey};
use udrbd::units::AlExtent;

fn span(first: u32, last: u32) -> ExtentSpan {
    ExtentSpan::new(AlExtent(first), AlExtent(last)).expect("short")
}

fn free(_: ExtentSpan) -> bool {
    false
}

/// A log whose slots are all taken by idle extents `0..slots`, and the extent after them.
fn full_log(al_extents: u32) -> (ActivityLog, u32) {
    let layout = AlLayout::new(al_extents, 128).expect("valid ring");
    let mut log = ActivityLog::new(layout, 0);
    let slots = u32::from(layout.slots());
    for extent in 0..slots {
        miss(&mut log, extent, extent);
    }
    (log, slots)
}

fn miss(log: &mut ActivityLog, first: u32, last: u32) {
    if log.begin(RequestKey(0), span(first, last), free) == Begin::Pending
        && let Some(transaction) = log.next_transaction(free)
    {
        black_box(log.transaction_done(black_box(&transaction).tr_number));
    }
    log.end(span(first, last));
}

fn activity_log(c: &mut Criterion) {
    let mut group = c.benchmark_group("activity_log");
    group.throughput(Throughput::Elements(1));
    for al_extents in [67, 1237, 65534] {
        let (mut log, slots) = full_log(al_extents);
        let mut extent = 0_u32;
        group.bench_function(BenchmarkId::new("hit", slots), |b| {
            b.iter(|| {
                extent = (extent + 7919) % slots;
                let span = span(extent, extent);
                let _ = black_box(log.begin(RequestKey(1), span, free));
                log.end(span)
            });
        });
        let mut cold = slots;
        group.bench_function(BenchmarkId::new("miss", slots), |b| {
            b.iter(|| {
                miss(&mut log, cold, cold);
                cold += 1;
            });
        });
        group.bench_function(BenchmarkId::new("miss_64", slots), |b| {
            b.iter(|| {
                miss(&mut log, cold, cold + 63);
                cold += 64;
            });
        });
    }
    group.finish();
}

criterion_group!(benches, activity_log);
criterion_main!(benches);
