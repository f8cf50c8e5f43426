//! Tests of the room as a whole, on temporary files (and a loop device where that is possible), with both rings.

mod block;
mod claims;
mod io;
mod model;

use std::future::Future;

use bytes::Bytes;
use tempfile::NamedTempFile;

use super::{BackingDevice, Completion, DiskOp, OpenOptions, Pool, PoolBuf, Ring, RingChoice, RingKind, RingOptions};

const MIB: usize = 1 << 20;

/// A temporary file of `bytes` zeroes; removed when dropped.
fn file(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn open(file: &NamedTempFile) -> BackingDevice {
    BackingDevice::open(file.path(), &OpenOptions { owner: "test".to_owned(), ..Default::default() }).unwrap()
}

/// Runs `body` with every kind of ring that this host allows.
fn with_rings<F: Future<Output = ()>>(depth: u32, pool_bytes: usize, body: impl Fn(Ring) -> F) {
    for choice in [RingChoice::Portable, RingChoice::Uring] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let options = RingOptions { choice, depth, threads: 3 };
            match Ring::new(&options, Pool::new(pool_bytes).unwrap()) {
                Ok(ring) => {
                    assert_eq!(ring.kind() == RingKind::Uring, choice == RingChoice::Uring);
                    body(ring).await;
                }
                Err(error) if choice == RingChoice::Uring => println!("skipped with io_uring: {error}"),
                Err(error) => panic!("{error}"),
            }
        });
    }
}

/// Submits `op` alone and waits for it.
async fn run(ring: &Ring, op: DiskOp) -> Completion {
    let mut out = Vec::new();
    ring.submit(op, 4711);
    ring.flush_submissions();
    while out.is_empty() {
        ring.wait().await.unwrap();
        ring.drain(&mut out);
    }
    assert_eq!(out.len(), 1);
    let completion = out.remove(0);
    assert_eq!(completion.token, 4711);
    completion
}

async fn read(ring: &Ring, dev: &BackingDevice, offset: u64, len: usize) -> PoolBuf {
    let completion = run(ring, DiskOp::Read { dev: dev.clone(), offset, len, buf: None }).await;
    completion.result.unwrap();
    completion.buf.unwrap()
}

async fn write(ring: &Ring, dev: &BackingDevice, offset: u64, data: Vec<u8>) {
    let op = DiskOp::Write { dev: dev.clone(), offset, data: Bytes::from(data).into(), fua: false };
    run(ring, op).await.result.unwrap();
}

/// Bytes that differ from position to position and from seed to seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}
