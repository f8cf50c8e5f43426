//! The medium: what each sector may hold at a power cut (docs/metadata.md, "What we assume of a medium").
//!
//! Owns, per sector, the last durable value and the values written since. Takes in the steps of a recording; gives out
//! those sectors whose value is open, and [`Image`]s for a choice of values. Values are numbers of the operations that
//! wrote them, so that an image of a large device costs nothing.

use std::collections::BTreeMap;
use std::io;

use super::record::{Io, Key, Medium, OpNr, Recording, SECTOR, Step};
use crate::meta::MetaIo;

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    submitted: usize,
    /// Ended without error at this step.
    completed: Option<usize>,
    failed: Option<usize>,
}

/// State of the media after some steps.
#[derive(Clone, Debug)]
pub(super) struct Media {
    /// Last durable value; absent: zeroes.
    pub durable: BTreeMap<Key, OpNr>,
    /// Values written since, oldest first.
    pub open: BTreeMap<Key, Vec<OpNr>>,
    times: Vec<Times>,
    step: usize,
}

/// First and last-plus-one sector of a write.
fn sectors(io: &Io) -> impl Iterator<Item = Key> + use<> {
    let (medium, first, count) = match io {
        Io::Write { medium, sector, bytes, .. } => (*medium, *sector, (bytes.len() / SECTOR) as u64),
        Io::Flush(medium) => (*medium, 0, 0),
    };
    (first..first + count).map(move |sector| (medium, sector))
}

impl Media {
    pub(super) fn new(recording: &Recording) -> Self {
        let times = vec![Times::default(); recording.ops.len()];
        Self { durable: BTreeMap::new(), open: BTreeMap::new(), times, step: 0 }
    }

    /// Carries a step out.
    pub(super) fn apply(&mut self, recording: &Recording, step: &Step) {
        self.step += 1;
        match *step {
            Step::Submit(op) => {
                let Some(io) = recording.ops.get(op as usize) else { return };
                self.time(op).submitted = self.step;
                for key in sectors(io) {
                    self.open.entry(key).or_default().push(op);
                }
            }
            Step::Complete(op) => {
                self.time(op).completed = Some(self.step);
                match recording.ops.get(op as usize) {
                    Some(io @ Io::Write { fua: true, .. }) => sectors(io).for_each(|key| self.settle(key, op)),
                    Some(Io::Flush(medium)) => self.flushed(*medium, op),
                    _ => {}
                }
            }
            Step::Failed(op) => {
                self.time(op).failed = Some(self.step);
                if let Some(Io::Flush(medium)) = recording.ops.get(op as usize) {
                    self.flush_failed(*medium);
                }
            }
            Step::Fact(_) => {}
        }
    }

    fn time(&mut self, op: OpNr) -> &mut Times {
        let index = op as usize;
        if index >= self.times.len() {
            self.times.resize(index + 1, Times::default());
        }
        &mut self.times[index]
    }

    fn at(&self, op: OpNr) -> Times {
        self.times.get(op as usize).copied().unwrap_or_default()
    }

    /// Everything of `medium` that completed before flush `op` was submitted is durable.
    fn flushed(&mut self, medium: Medium, op: OpNr) {
        let began = self.at(op).submitted;
        let covered: Vec<(Key, OpNr)> = self
            .open
            .range((medium, 0)..=(medium, u64::MAX))
            .filter_map(|(key, ops)| {
                let is_covered = |op: &&OpNr| self.at(**op).completed.is_some_and(|completed| completed < began);
                Some((*key, *ops.iter().rev().find(is_covered)?))
            })
            .collect();
        for (key, op) in covered {
            self.settle(key, op);
        }
    }

    /// What the failed flush was to cover no later one makes durable.
    fn flush_failed(&mut self, medium: Medium) {
        let ops: Vec<OpNr> =
            self.open.range((medium, 0)..=(medium, u64::MAX)).flat_map(|(_, ops)| ops).copied().collect();
        for op in ops {
            let times = self.time(op);
            times.failed = times.failed.or_else(|| times.completed.take());
        }
    }

    /// The value `op` of a sector is durable: what was older cannot come back.
    fn settle(&mut self, key: Key, op: OpNr) {
        self.durable.insert(key, op);
        let since = self.at(op).submitted;
        let Some(ops) = self.open.remove(&key) else { return };
        let older = |other: OpNr| {
            let times = self.at(other);
            times.completed.or(times.failed).is_some_and(|ended| ended < since)
        };
        let left: Vec<OpNr> = ops.into_iter().filter(|other| *other != op && !older(*other)).collect();
        if !left.is_empty() {
            self.open.insert(key, left);
        }
    }
}

/// What is found after a crash, and what was written to it since.
#[derive(Clone, Debug)]
pub(super) struct Image<'a> {
    recording: &'a Recording,
    durable: &'a BTreeMap<Key, OpNr>,
    /// Values that are not the durable ones.
    chosen: BTreeMap<Key, OpNr>,
    rewritten: BTreeMap<Key, [u8; SECTOR]>,
}

/// The bytes of a sector as an operation wrote it.
pub(super) fn value(recording: &Recording, key: Key, op: OpNr) -> Option<&[u8]> {
    let Some(Io::Write { sector, bytes, .. }) = recording.ops.get(op as usize) else { return None };
    let at = usize::try_from(key.1.checked_sub(*sector)?).ok()? * SECTOR;
    bytes.get(at..at + SECTOR)
}

impl<'a> Image<'a> {
    pub(super) fn new(recording: &'a Recording, media: &'a Media, chosen: BTreeMap<Key, OpNr>) -> Self {
        Self { recording, durable: &media.durable, chosen, rewritten: BTreeMap::new() }
    }

    /// Which operation the sector's value is of; `None` for one that was never written.
    pub(super) fn source(&self, key: Key) -> Option<OpNr> {
        self.chosen.get(&key).or_else(|| self.durable.get(&key)).copied()
    }

    /// The sectors that do not have their durable values.
    pub(super) fn chosen(&self) -> impl Iterator<Item = Key> + '_ {
        self.chosen.keys().copied()
    }

    /// Those sectors and the operations that wrote their values, for people.
    pub(super) fn describe(&self) -> String {
        self.chosen.iter().map(|((m, s), op)| format!("{m}:{s}={op}")).collect::<Vec<_>>().join(" ")
    }

    /// Whether the sector's value is of a metadata write.
    pub(super) fn is_meta(&self, key: Key) -> bool {
        let op = self.source(key).and_then(|op| self.recording.ops.get(op as usize));
        matches!(op, Some(Io::Write { meta: true, .. }))
    }

    /// A sector's bytes; `None` for zeroes.
    pub(super) fn sector(&self, key: Key) -> Option<&[u8]> {
        if let Some(bytes) = self.rewritten.get(&key) {
            return Some(bytes);
        }
        value(self.recording, key, self.source(key)?)
    }

    /// The first eight bytes of a sector.
    pub(super) fn tag(&self, key: Key) -> u64 {
        self.sector(key).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Every sector of a medium that was ever written.
    pub(super) fn content(&self, medium: Medium) -> BTreeMap<u64, [u8; SECTOR]> {
        self.content_where(medium, |_| true)
    }

    /// Every sector of the metadata that was ever written.
    pub(super) fn metadata(&self) -> BTreeMap<u64, [u8; SECTOR]> {
        self.content_where(self.recording.meta_medium, |key| self.is_meta(key))
    }

    fn content_where(&self, medium: Medium, wanted: impl Fn(Key) -> bool) -> BTreeMap<u64, [u8; SECTOR]> {
        let range = (medium, 0)..=(medium, u64::MAX);
        let chosen = self.chosen.range(range.clone()).map(|(key, _)| *key);
        let keys = self.durable.range(range).map(|(key, _)| *key).chain(chosen).filter(|key| wanted(*key));
        keys.filter_map(|key| Some((key.1, *self.sector(key)?.first_chunk()?))).collect()
    }
}

/// The metadata device of an image.
impl MetaIo for Image<'_> {
    fn size_bytes(&self) -> u64 {
        self.recording.meta_bytes
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (medium, first) = (self.recording.meta_medium, offset / SECTOR as u64);
        let range = (medium, first)..(medium, first + buf.len().div_ceil(SECTOR) as u64);
        buf.fill(0);
        let mut put = |key: &Key, bytes: &[u8]| {
            let at = usize::try_from(key.1 - first).unwrap_or(usize::MAX) * SECTOR;
            let to = buf.get_mut(at..).unwrap_or_default();
            let len = to.len().min(bytes.len());
            to[..len].copy_from_slice(&bytes[..len]);
        };
        for map in [self.durable, &self.chosen] {
            for (key, op) in map.range(range.clone()) {
                put(key, value(self.recording, *key, *op).unwrap_or_default());
            }
        }
        for (key, bytes) in self.rewritten.range(range) {
            put(key, bytes);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let first = offset / SECTOR as u64;
        for (sector, from) in (first..).zip(buf.as_chunks::<SECTOR>().0) {
            self.rewritten.insert((self.recording.meta_medium, sector), *from);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
