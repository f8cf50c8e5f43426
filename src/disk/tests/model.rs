//! Random operations, many in flight, against an array in memory.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;

use super::*;

const SECTORS: usize = 1024;
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Plan {
    Read,
    Write { seed: u64, skew: usize, split: usize, fua: bool },
    Flush,
    Discard,
    WriteZeroes { may_unmap: bool },
}

fn plan() -> impl Strategy<Value = (Plan, usize, usize)> {
    let plan = prop_oneof![
        4 => Just(Plan::Read),
        6 => (any::<u64>(), prop_oneof![Just(0), 0usize..64], 0usize..8192, any::<bool>())
            .prop_map(|(seed, skew, split, fua)| Plan::Write { seed, skew, split, fua }),
        1 => Just(Plan::Flush),
        1 => Just(Plan::Discard),
        1 => any::<bool>().prop_map(|may_unmap| Plan::WriteZeroes { may_unmap }),
    ];
    (plan, 0..SECTORS, 1usize..40)
}

struct Run {
    ring: Ring,
    dev: BackingDevice,
    model: Vec<u8>,
    busy: BTreeMap<u64, Busy>,
}

/// An operation in flight.
struct Busy {
    range: Range<usize>,
    changes: bool,
    /// What a read must return.
    expected: Option<Vec<u8>>,
}

impl Run {
    fn collect(&mut self) {
        let mut out = Vec::new();
        self.ring.drain(&mut out);
        for completion in out {
            completion.result.unwrap();
            let Busy { range, expected, .. } = self.busy.remove(&completion.token).unwrap();
            assert_eq!(completion.buf.is_some(), expected.is_some());
            if let (Some(buf), Some(expected)) = (completion.buf, expected) {
                assert!(buf[..] == expected[..], "read of {range:?}");
            }
        }
    }

    /// Waits until nothing in flight conflicts with an operation on `range`.
    async fn make_way(&mut self, range: &Range<usize>, changes: bool) {
        while self
            .busy
            .values()
            .any(|other| (changes || other.changes) && other.range.start < range.end && range.start < other.range.end)
        {
            self.ring.wait().await.unwrap();
            self.collect();
        }
    }

    async fn start(&mut self, token: u64, plan: Plan, first: usize, count: usize) {
        let range = first * SECTOR..(first + count).min(SECTORS) * SECTOR;
        let (offset, len) = (range.start as u64, range.len() as u64);
        let dev = self.dev.clone();
        let changes = !matches!(plan, Plan::Read | Plan::Flush);
        let touched = if matches!(plan, Plan::Flush) { 0..0 } else { range.clone() };
        self.make_way(&touched, changes).await;
        let mut expected = None;
        let op = match plan {
            Plan::Read => {
                expected = Some(self.model[range.clone()].to_vec());
                DiskOp::Read { dev, offset, len: range.len(), buf: None }
            }
            Plan::Write { seed, skew, split, fua } => {
                let data = pattern(seed, range.len());
                self.model[range.clone()].copy_from_slice(&data);
                let mut skewed = vec![0; skew];
                skewed.extend_from_slice(&data);
                let bytes = Bytes::from(skewed).slice(skew..);
                let split = split.min(bytes.len());
                let pieces = vec![bytes.slice(..split), bytes.slice(split..)];
                DiskOp::Write { dev, offset, data: pieces.into(), fua }
            }
            Plan::Flush => DiskOp::Flush { dev },
            Plan::Discard if self.dev.geometry().discard.is_some_and(|d| d.reads_zeroes) => {
                self.model[range.clone()].fill(0);
                DiskOp::Discard { dev, offset, len }
            }
            Plan::Discard => {
                self.model[range.clone()].fill(0);
                DiskOp::WriteZeroes { dev, offset, len, may_unmap: true }
            }
            Plan::WriteZeroes { may_unmap } => {
                self.model[range.clone()].fill(0);
                DiskOp::WriteZeroes { dev, offset, len, may_unmap }
            }
        };
        self.busy.insert(token, Busy { range: touched, changes, expected });
        self.ring.submit(op, token);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_device_behaves_like_an_array(
        plans in prop::collection::vec(plan(), 1..300),
        depth in 1u32..40,
        batch in 1usize..20,
    ) {
        let file = file((SECTORS * SECTOR) as u64);
        with_rings(depth, 2 * MIB, async |ring| {
            // The first ring leaves its bytes to the second.
            let model = std::fs::read(file.path()).unwrap();
            let mut run = Run { ring, dev: open(&file), model, busy: BTreeMap::new() };
            for (index, (plan, first, count)) in plans.iter().cloned().enumerate() {
                run.start(index as u64, plan, first, count).await;
                if index % batch == 0 {
                    run.ring.flush_submissions();
                    run.collect();
                }
            }
            while !run.busy.is_empty() {
                run.ring.wait().await.unwrap();
                run.collect();
            }
            assert_eq!((run.ring.pending(), run.ring.pool().free_bytes()), (0, 2 * MIB));
            assert!(std::fs::read(file.path()).unwrap() == run.model);
        });
    }
}
