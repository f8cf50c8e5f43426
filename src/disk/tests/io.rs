//! Transfers, refusals, memory.

use std::sync::atomic::Ordering;

use super::*;
use crate::disk::{BUF_LEN_MAX, DiskErrorKind, Payload, run_blocking};

#[test]
fn what_was_written_is_read_back() {
    let file = file(4 << 20);
    with_rings(16, 4 * MIB, async |ring| {
        let dev = open(&file);
        let data = pattern(1, 256 << 10);
        write(&ring, &dev, 8192, data.clone()).await;
        run(&ring, DiskOp::Flush { dev: dev.clone() }).await.result.unwrap();
        assert_eq!(&read(&ring, &dev, 8192, data.len()).await[..], &data[..]);
        assert_eq!(&std::fs::read(file.path()).unwrap()[8192..8192 + data.len()], &data[..]);
    });
}

#[test]
fn payloads_may_be_scattered_unaligned_and_durable() {
    let file = file(4 << 20);
    with_rings(4, 4 * MIB, async |ring| {
        let dev = open(&file);
        let data = Bytes::from(pattern(2, 3 * MIB + 512));
        // One odd piece, then odd pieces that end between sectors, then more pieces than a call may have.
        let odd = data.slice(1..1 + 4096);
        let pieces = vec![data.slice(3..1000), Bytes::new(), data.slice(1000..4096 + 3)];
        let many: Vec<_> = (0..2048).map(|i| data.slice(i * 512..(i + 1) * 512)).collect();
        // Longer than the memory for copies.
        let long = data.slice(512..512 + 3 * MIB);
        let cases: [(Payload, &[u8]); 4] = [
            (odd.into(), &data[1..1 + 4096]),
            (pieces.into(), &data[3..4096 + 3]),
            (many.into(), &data[..MIB]),
            (long.clone().into(), &long),
        ];
        for (payload, expected) in cases {
            let op = DiskOp::Write { dev: dev.clone(), offset: 4096, data: payload, fua: true };
            run(&ring, op).await.result.unwrap();
            let on_disk = std::fs::read(file.path()).unwrap();
            assert!(on_disk[4096..4096 + expected.len()] == *expected);
        }
    });
}

#[test]
fn aligned_pieces_of_pool_memory_are_written_in_order() {
    let file = file(1 << 20);
    with_rings(4, 4 * MIB, async |ring| {
        let dev = open(&file);
        let pieces: Vec<_> = (0..5u64)
            .map(|i| {
                let mut buf = ring.pool().try_alloc(8192).unwrap();
                buf.copy_from_slice(&pattern(i, 8192));
                buf.freeze()
            })
            .collect();
        let expected: Vec<u8> = pieces.iter().flatten().copied().collect();
        let op = DiskOp::Write { dev: dev.clone(), offset: 0, data: pieces.into(), fua: false };
        run(&ring, op).await.result.unwrap();
        assert!(read(&ring, &dev, 0, expected.len()).await[..] == expected[..]);
    });
}

#[test]
fn many_more_operations_than_the_depth_all_complete_once() {
    let file = file(4 << 20);
    with_rings(4, 8 * MIB, async |ring| {
        let dev = open(&file);
        for i in 0..1000u64 {
            let data = Bytes::from(vec![u8::try_from(i % 251).unwrap(); 4096]);
            ring.submit(DiskOp::Write { dev: dev.clone(), offset: i * 4096, data: data.into(), fua: false }, i);
        }
        assert!(ring.queued() >= 900);
        let mut out = Vec::new();
        ring.quiesce(&mut out).await.unwrap();
        let mut tokens: Vec<_> = out.iter().map(|c| c.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..1000).collect::<Vec<_>>());
        assert!(out.iter().all(|c| c.result.is_ok() && c.buf.is_none()));
        assert_eq!(ring.pending(), 0);
        let on_disk = std::fs::read(file.path()).unwrap();
        assert!((0..1000usize).all(|i| on_disk[i * 4096] == u8::try_from(i % 251).unwrap()));
    });
}

#[test]
fn refusals_say_why() {
    let file = file(1 << 20);
    with_rings(4, 2 * MIB, async |ring| {
        let dev = open(&file);
        let kind_of = async |op| run(&ring, op).await.result.unwrap_err().kind();
        let read = |offset, len| DiskOp::Read { dev: dev.clone(), offset, len, buf: None };
        assert_eq!(kind_of(read(100, 512)).await, DiskErrorKind::Misaligned);
        assert_eq!(kind_of(read(0, 100)).await, DiskErrorKind::Misaligned);
        assert_eq!(kind_of(read(0, 0)).await, DiskErrorKind::Misaligned);
        assert_eq!(kind_of(read(1 << 20, 4096)).await, DiskErrorKind::OutOfRange);
        assert_eq!(kind_of(read(u64::MAX - 511, 512)).await, DiskErrorKind::OutOfRange);
        let small = ring.pool().try_alloc(4096);
        let op = DiskOp::Read { dev: dev.clone(), offset: 0, len: 8192, buf: small };
        assert_eq!(kind_of(op).await, DiskErrorKind::OutOfRange);
        let data = Bytes::from(vec![1; 8192]);
        let op = DiskOp::Write { dev: dev.clone(), offset: (1 << 20) - 4096, data: data.clone().into(), fua: false };
        let error = run(&ring, op).await.result.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "write of 8192 bytes at offset 1044480 on {} failed: beyond the end of the device at 1048576 bytes",
                file.path().display()
            )
        );
        assert_eq!((error.offset(), error.len_bytes()), (Some(1_044_480), Some(8192)));
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20, "a refused write does not grow the file");
    });
}

#[test]
fn a_read_behind_the_end_of_a_shrunk_file_fails() {
    with_rings(4, 2 * MIB, async |ring| {
        let file = file(1 << 20);
        let dev = open(&file);
        file.as_file().set_len(512 << 10).unwrap();
        for offset in [768 << 10, (512 << 10) - 4096] {
            let op = DiskOp::Read { dev: dev.clone(), offset, len: 8192, buf: None };
            assert_eq!(run(&ring, op).await.result.unwrap_err().kind(), DiskErrorKind::UnexpectedEof);
        }
        assert_eq!(dev.size_bytes(), 1 << 20);
        assert_eq!(dev.refresh_size().unwrap(), 512 << 10);
        let op = DiskOp::Read { dev: dev.clone(), offset: 768 << 10, len: 8192, buf: None };
        assert_eq!(run(&ring, op).await.result.unwrap_err().kind(), DiskErrorKind::OutOfRange);
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_in_every_way() {
    let file = file(4 << 20);
    with_rings(8, 4 * MIB, async |ring| {
        let dev = open(&file);
        let limits = dev.geometry().discard;
        let whole = vec![0xa5; 4 << 20];
        // The abilities only ever shrink: first as the file system has them, then without each way in turn.
        for refused in 0..3 {
            match refused {
                1 => dev.abilities().no_punch.store(true, Ordering::Relaxed),
                2 => dev.abilities().no_zero_range.store(true, Ordering::Relaxed),
                _ => {}
            }
            for may_unmap in [false, true] {
                write(&ring, &dev, 0, whole.clone()).await;
                let (offset, len) = (1536, (2 << 20) + 512);
                run(&ring, DiskOp::WriteZeroes { dev: dev.clone(), offset, len, may_unmap }).await.result.unwrap();
                let on_disk = std::fs::read(file.path()).unwrap();
                let (start, end) = (1536, 1536 + (2 << 20) + 512);
                assert!(on_disk[..start].iter().chain(&on_disk[end..]).all(|&b| b == 0xa5));
                assert!(on_disk[start..end].iter().all(|&b| b == 0));
                assert_eq!(on_disk.len(), 4 << 20);
            }
        }
        let op = DiskOp::Discard { dev: dev.clone(), offset: 3 << 20, len: 1 << 20 };
        match (run(&ring, op).await.result, limits) {
            (Ok(()), Some(limits)) => {
                assert!(limits.reads_zeroes);
                assert!(read(&ring, &dev, 3 << 20, MIB).await.iter().all(|&b| b == 0));
            }
            (Err(error), None) => assert_eq!(error.kind(), DiskErrorKind::Unsupported),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_closed_device_refuses_and_finishes_what_it_has() {
    let file = file(1 << 20);
    with_rings(4, 2 * MIB, async |ring| {
        let dev = open(&file);
        let data = Bytes::from(vec![9; 4096]);
        ring.submit(DiskOp::Write { dev: dev.clone(), offset: 0, data: data.into(), fua: false }, 1);
        dev.close();
        ring.submit(DiskOp::Flush { dev: dev.clone() }, 2);
        ring.submit(DiskOp::Read { dev: dev.clone(), offset: 0, len: 4096, buf: None }, 3);
        let mut out = Vec::new();
        ring.quiesce(&mut out).await.unwrap();
        out.sort_by_key(|c| c.token);
        assert!(out[0].result.is_ok());
        for completion in &out[1..] {
            assert_eq!(completion.result.as_ref().unwrap_err().kind(), DiskErrorKind::Closed);
        }
        drop(dev);
        drop(out);
        // The last handle is gone, so is the claim.
        open(&file);
    });
}

#[test]
fn a_read_only_device_reads_and_nothing_else() {
    let file = file(1 << 20);
    with_rings(4, 2 * MIB, async |ring| {
        let dev = BackingDevice::open(file.path(), &OpenOptions { read_only: true, ..Default::default() }).unwrap();
        assert!(dev.is_read_only());
        read(&ring, &dev, 0, 4096).await;
        let data = Payload::from(Bytes::from(vec![9; 4096]));
        let ops = [
            DiskOp::Write { dev: dev.clone(), offset: 0, data, fua: false },
            DiskOp::Discard { dev: dev.clone(), offset: 0, len: 4096 },
            DiskOp::WriteZeroes { dev: dev.clone(), offset: 0, len: 4096, may_unmap: true },
        ];
        for op in ops {
            assert_eq!(run(&ring, op).await.result.unwrap_err().kind(), DiskErrorKind::ReadOnly);
        }
    });
}

#[test]
fn reads_wait_for_memory_and_others_pass_them() {
    let file = file(4 << 20);
    with_rings(8, MIB, async |ring| {
        let dev = open(&file);
        let held = ring.pool().try_alloc(BUF_LEN_MAX).unwrap();
        for token in [1, 2] {
            ring.submit(DiskOp::Read { dev: dev.clone(), offset: 0, len: MIB, buf: None }, token);
        }
        let data = Bytes::from(vec![3; 512]);
        ring.submit(DiskOp::Write { dev: dev.clone(), offset: 0, data: data.into(), fua: false }, 3);
        let mut out = Vec::new();
        ring.wait().await.unwrap();
        ring.drain(&mut out);
        assert_eq!(out.iter().map(|c| c.token).collect::<Vec<_>>(), [3]);
        assert_eq!((ring.pending(), ring.queued()), (2, 2));
        // The memory comes back on another thread while this one waits.
        let thread = std::thread::spawn(move || drop(held));
        for token in [1, 2] {
            out.clear();
            while out.is_empty() {
                ring.wait().await.unwrap();
                ring.drain(&mut out);
            }
            assert_eq!(out.iter().map(|c| c.token).collect::<Vec<_>>(), [token]);
            assert_eq!(out[0].buf.as_ref().unwrap().len(), MIB);
        }
        thread.join().unwrap();
    });
}

#[test]
fn a_small_read_does_not_overtake_a_large_one_that_waits_for_memory() {
    let file = file(4 << 20);
    with_rings(8, MIB, async |ring| {
        let dev = open(&file);
        let held = ring.pool().try_alloc(MIB / 2).unwrap();
        for (token, len) in [(1, MIB), (2, 4096)] {
            ring.submit(DiskOp::Read { dev: dev.clone(), offset: 0, len, buf: None }, token);
        }
        assert_eq!(ring.queued(), 2);
        drop(held);
        for token in [1, 2] {
            let mut out = Vec::new();
            while out.is_empty() {
                ring.wait().await.unwrap();
                ring.drain(&mut out);
            }
            assert_eq!(out.iter().map(|c| c.token).collect::<Vec<_>>(), [token]);
        }
    });
}

#[test]
fn a_caller_may_bring_its_own_buffer() {
    let file = file(1 << 20);
    with_rings(4, MIB, async |ring| {
        let dev = open(&file);
        let metadata = Pool::new(MIB).unwrap();
        let _exhausted = ring.pool().try_alloc(MIB).unwrap();
        let buf = metadata.try_alloc(4096);
        let completion = run(&ring, DiskOp::Read { dev: dev.clone(), offset: 4096, len: 4096, buf }).await;
        assert_eq!(completion.buf.unwrap().len(), 4096);
        assert_eq!(metadata.free_bytes(), MIB);
    });
}

#[test]
fn buffers_outlive_ring_device_and_pool() {
    let file = file(1 << 20);
    let data = pattern(5, 64 << 10);
    std::fs::write(file.path(), &data).unwrap();
    let kept = std::cell::RefCell::new(Vec::new());
    with_rings(4, 2 * MIB, async |ring| {
        let dev = open(&file);
        let bytes = read(&ring, &dev, 0, data.len()).await.freeze();
        kept.borrow_mut().push(bytes);
    });
    assert!(!kept.borrow().is_empty());
    assert!(kept.borrow().iter().all(|bytes| bytes[..] == data[..]));
}

#[test]
fn dropping_a_busy_ring_returns_or_keeps_memory_but_never_frees_it_early() {
    let file = file(8 << 20);
    with_rings(4, 8 * MIB, async |ring| {
        let dev = open(&file);
        for token in 0..64 {
            ring.submit(DiskOp::Read { dev: dev.clone(), offset: token * 65536, len: 65536, buf: None }, token);
        }
        ring.flush_submissions();
        let pool = ring.pool().clone();
        let kind = ring.kind();
        drop(ring);
        if kind == RingKind::Uring {
            // Drained before the drop returned; a thread may still hold a buffer for a moment.
            assert_eq!(pool.free_bytes(), pool.budget_bytes());
        } else {
            assert!(pool.alloc(MIB).await.is_some());
        }
    });
}

#[test]
fn a_panicking_shard_leaves_the_memory_of_its_operations_alone() {
    let file = file(8 << 20);
    let pool = Pool::new(8 * MIB).unwrap();
    let shard = std::thread::spawn({
        let (pool, dev) = (pool.clone(), open(&file));
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let ring = Ring::new(&RingOptions::default(), pool).unwrap();
                for token in 0..64 {
                    ring.submit(DiskOp::Read { dev: dev.clone(), offset: token * 65536, len: 65536, buf: None }, token);
                }
                ring.flush_submissions();
                std::panic::resume_unwind(Box::new("a failed assertion"));
            });
        }
    });
    assert!(shard.join().is_err());
    // What was leaked stays taken; the rest of the pool works.
    let used = pool.budget_bytes() - pool.free_bytes();
    assert!(used <= 64 * 65536, "{used}");
    assert!(pool.try_alloc(MIB).is_some());
}

#[test]
fn waiting_is_cancelled_without_loss() {
    let file = file(1 << 20);
    with_rings(4, 2 * MIB, async |ring| {
        let dev = open(&file);
        let mut out = Vec::new();
        for token in 0..50 {
            ring.submit(DiskOp::Flush { dev: dev.clone() }, token);
            tokio::select! {
                biased;
                result = ring.wait() => result.unwrap(),
                () = std::future::ready(()) => {}
            }
        }
        ring.quiesce(&mut out).await.unwrap();
        assert_eq!(out.len(), 50);
    });
}

#[test]
fn a_submission_wakes_a_waiter_that_is_already_asleep() {
    let file = file(1 << 20);
    with_rings(4, 2 * MIB, async |ring| {
        let dev = open(&file);
        for good in [true, false] {
            let waiter = async { ring.wait().await.unwrap() };
            let submitter = async {
                tokio::task::yield_now().await;
                let len = if good { 4096 } else { 1 };
                ring.submit(DiskOp::Read { dev: dev.clone(), offset: 0, len, buf: None }, 1);
                ring.flush_submissions();
            };
            tokio::join!(biased; waiter, submitter);
            let mut out = Vec::new();
            ring.quiesce(&mut out).await.unwrap();
            assert_eq!((out.len(), out[0].result.is_ok()), (1, good));
        }
    });
}

#[test]
fn buffered_and_blocking_access_work_too() {
    let file = file((1 << 20) + 100);
    let pool = Pool::new(2 * MIB).unwrap();
    let options = OpenOptions { direct: false, ..Default::default() };
    let dev = BackingDevice::open(file.path(), &options).unwrap();
    let geometry = dev.geometry();
    assert!(!geometry.direct && !geometry.block_device);
    assert_eq!((geometry.size_bytes, geometry.logical_block_bytes), (1 << 20, 512));
    let data = Bytes::from(pattern(6, 1024));
    let op = DiskOp::Write { dev: dev.clone(), offset: 512, data: data.clone().into(), fua: true };
    run_blocking(op, &pool).result.unwrap();
    let completion = run_blocking(DiskOp::Read { dev, offset: 512, len: 1024, buf: None }, &pool);
    assert_eq!(&completion.buf.unwrap()[..], &data[..]);
}

#[test]
fn auto_finds_a_ring_and_says_why_it_is_that_one() {
    let file = file(1 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let ring = Ring::new(&RingOptions::default(), Pool::new(MIB).unwrap()).unwrap();
        println!("{ring:?}");
        let unavailable = ring.reason().starts_with("io_uring is not available: ");
        assert_eq!(ring.kind() == RingKind::Portable, unavailable);
        assert!(!ring.reason().is_empty());
        read(&ring, &open(&file), 0, 4096).await;
    });
}

#[test]
fn impossible_rings_are_refused() {
    let pool = Pool::new(MIB).unwrap();
    let error = Ring::new(&RingOptions::default(), pool.clone()).unwrap_err();
    assert_eq!(error.kind(), DiskErrorKind::Unsupported);
    let error = Ring::new(&RingOptions { depth: 0, ..Default::default() }, pool).unwrap_err();
    assert_eq!(error.to_string(), "set-up of disk ring failed: the depth must be 1 to 4096");
}
