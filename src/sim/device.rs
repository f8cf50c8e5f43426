//! A simulated device: exactly the medium that docs/metadata.md ("What we assume of a medium") describes, no kinder and no
//! crueller.
//!
//! Owns what is on the medium (`durable`), what readers see (`current`), and the volatile cache in between: every write
//! since the flush that covered it. Takes in operations ([`Device::submit`]), their ends ([`Device::complete`]), power cuts and
//! process crashes. Invariants: a sector of 512 bytes is never torn; a completed flush covers what was completed when it was
//! submitted; FUA covers its own write only; after a power cut every sector has one of the values written since the last
//! flush that covered it, or that one. [`Defect`]s break one of these on purpose, to see that the checkers notice.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::rng::Rng;
use super::stamp::SECTOR;

/// Bytes of a page of the device's image.
pub const PAGE: u64 = 4096;
const SECTOR_BYTES: u64 = SECTOR as u64;

/// An operation; offsets and lengths in bytes, multiples of 512.
#[derive(Clone, Debug)]
pub enum Io {
    /// Read.
    Read {
        /// From here.
        start: u64,
        /// So many bytes.
        len: u64,
    },
    /// Write.
    Write {
        /// From here.
        start: u64,
        /// What.
        data: SmallVec<[Bytes; 1]>,
        /// Durable at completion.
        fua: bool,
    },
    /// Write zeroes, or discard.
    Zero {
        /// From here.
        start: u64,
        /// So many bytes.
        len: u64,
        /// A discard on a device that does not promise zeroes: each page becomes zero or stays.
        loose: bool,
    },
    /// Flush.
    Flush,
}

/// Kinds of operations, as far as errors are injected by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Read.
    Read,
    /// Write, zeroes or discard.
    Write,
    /// Flush.
    Flush,
}

/// A defect of the device, for tests of the checkers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Flushes are answered, and nothing happens.
    LyingFlush,
    /// One write in 40 is answered, and nothing happens.
    LostWrite,
    /// One write in 40 lands one page further.
    Misdirected,
    /// One write in 40 tears a sector.
    TornSector,
}

/// Zeroes that are shared: most of a large device is blank.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// So many zeroes that are shared, unless those are too many.
pub(super) fn shared_zeroes(len: usize) -> Option<Bytes> {
    ZEROES.get(..len).map(Bytes::from_static)
}

/// Whether it is a slice of the shared zeroes.
pub(super) fn is_shared_zero(data: &Bytes) -> bool {
    ZEROES.as_ptr_range().contains(&data.as_ptr())
}

/// Pages that were ever written; the others are zeroes. Pages are shared between images until one of them is written.
#[derive(Clone, Debug)]
struct Image(Vec<Option<Rc<[u8; 4096]>>>);

impl Image {
    fn new(bytes: u64) -> Self {
        Self(vec![None; usize::try_from(bytes.div_ceil(PAGE)).unwrap_or(0)])
    }

    fn page(&self, page: u64) -> Option<&[u8]> {
        self.0.get(usize::try_from(page).ok()?)?.as_ref().map(|page| page.as_slice())
    }

    /// Calls `f` with each piece of the range that lies in one page: page, first byte in it, offset in the range, length.
    fn pieces(start: u64, len: u64, mut f: impl FnMut(u64, usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = start + done;
            let inside = at % PAGE;
            let part = (PAGE - inside).min(len - done);
            let small = |n: u64| usize::try_from(n).unwrap_or(0);
            f(at / PAGE, small(inside), small(done), small(part));
            done += part;
        }
    }

    fn read(&self, start: u64, out: &mut [u8]) {
        Self::pieces(start, out.len() as u64, |page, inside, done, part| match self.page(page) {
            Some(bytes) => out[done..done + part].copy_from_slice(&bytes[inside..inside + part]),
            None => out[done..done + part].fill(0),
        });
    }

    fn write(&mut self, start: u64, data: &[u8]) {
        Self::pieces(start, data.len() as u64, |page, inside, done, part| {
            let Some(slot) = usize::try_from(page).ok().and_then(|page| self.0.get_mut(page)) else { return };
            if slot.is_none() && data[done..done + part] == ZEROES[..part] {
                return;
            }
            let bytes = Rc::make_mut(slot.get_or_insert_with(|| Rc::new([0; 4096])));
            bytes[inside..inside + part].copy_from_slice(&data[done..done + part]);
        });
    }

    /// Takes over the pages of a range.
    fn share(&mut self, other: &Self, start: u64, len: u64) {
        for page in start / PAGE..(start + len).div_ceil(PAGE) {
            let Ok(at) = usize::try_from(page) else { continue };
            if let (Some(mine), Some(theirs)) = (self.0.get_mut(at), other.0.get(at)) {
                mine.clone_from(theirs);
            }
        }
    }

    /// Whether nothing but blank pages lie in the range.
    fn is_blank(&self, start: u64, len: u64) -> bool {
        let page = |at: u64| usize::try_from(at / PAGE).unwrap_or(usize::MAX);
        let last = page(start + len.max(1) - 1);
        self.0.get(page(start)..=last).is_some_and(|pages| pages.iter().all(Option::is_none))
    }

    fn zero(&mut self, start: u64, len: u64) {
        Self::pieces(start, len, |page, inside, _, part| {
            let Some(slot) = usize::try_from(page).ok().and_then(|page| self.0.get_mut(page)) else { return };
            if part as u64 == PAGE {
                *slot = None;
            } else if let Some(bytes) = slot.as_mut() {
                Rc::make_mut(bytes)[inside..inside + part].fill(0);
            }
        });
    }
}

/// What a write brings.
#[derive(Clone, Debug)]
enum Payload {
    Data(Bytes),
    Zeroes(u64),
}

impl Payload {
    const fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) => *len,
        }
    }
}

/// A write in the cache.
#[derive(Clone, Debug)]
struct Cached {
    start: u64,
    payload: Payload,
    /// Completions counted when it was complete.
    done: u64,
    /// Sectors that a later write made durable, or that another write in flight took first.
    gone: SmallVec<[u64; 2]>,
}

impl Cached {
    fn sectors(&self) -> std::ops::Range<u64> {
        self.start / SECTOR_BYTES..(self.start + self.payload.len()) / SECTOR_BYTES
    }

    fn apply(&self, image: &mut Image, mut keep: impl FnMut(u64) -> bool) {
        if self.gone.is_empty() && matches!(self.payload, Payload::Zeroes(_)) && self.payload.len() > PAGE {
            // Large zeroes are lost or kept page by page.
            let mut at = self.start;
            while at < self.start + self.payload.len() {
                let part = (PAGE - at % PAGE).min(self.start + self.payload.len() - at);
                if keep(at / SECTOR_BYTES) {
                    image.zero(at, part);
                }
                at += part;
            }
            return;
        }
        let mut run: Option<(u64, u64)> = None;
        let first = self.start / SECTOR_BYTES;
        for sector in self.sectors() {
            let kept = !self.gone.contains(&sector) && keep(sector);
            match (&mut run, kept) {
                (Some((_, count)), true) => *count += 1,
                (None, true) => run = Some((sector, 1)),
                (Some((from, count)), false) => {
                    self.put(image, first, *from, *count);
                    run = None;
                }
                (None, false) => {}
            }
        }
        if let Some((from, count)) = run {
            self.put(image, first, from, count);
        }
    }

    fn put(&self, image: &mut Image, first: u64, from: u64, count: u64) {
        match &self.payload {
            Payload::Zeroes(_) => image.zero(from * SECTOR_BYTES, count * SECTOR_BYTES),
            Payload::Data(data) => {
                let at = usize::try_from((from - first) * SECTOR_BYTES).unwrap_or(0);
                let len = usize::try_from(count * SECTOR_BYTES).unwrap_or(0);
                image.write(from * SECTOR_BYTES, &data[at..at + len]);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Running {
    io: Io,
    /// Completions counted when it was submitted.
    horizon: u64,
    /// Sectors whose place in the order was taken by a write that ended later in time but earlier in effect.
    skip: SmallVec<[u64; 2]>,
    /// Sectors that a reader has seen before the end: no later reader sees the old ones.
    seen: SmallVec<[u64; 2]>,
}

/// Names an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What an ended operation brought and touched.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Data of a read.
    pub data: Option<Bytes>,
    /// Bytes of the image that may have changed: start and length.
    pub touched: Option<(u64, u64)>,
}

/// One device.
#[derive(Clone, Debug)]
pub struct Device {
    bytes: u64,
    current: Image,
    durable: Image,
    cache: Vec<Cached>,
    running: BTreeMap<Ticket, Running>,
    next: u64,
    completions: u64,
    rng: Rng,
    defect: Option<Defect>,
}

/// A device as readers saw it once.
#[derive(Clone, Debug)]
pub struct Snapshot(Image);

impl Snapshot {
    /// Whether a page was the same; `None`: zeroes.
    #[must_use]
    pub fn same(&self, page: u64, now: Option<&[u8]>) -> bool {
        match (self.0.page(page), now) {
            (Some(a), Some(b)) => a == b,
            (Some(only), None) | (None, Some(only)) => only.iter().all(|byte| *byte == 0),
            (None, None) => true,
        }
    }
}

impl Device {
    /// What readers see now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.current.clone())
    }

    /// A device of zeroes, `bytes` long (a multiple of 4096).
    #[must_use]
    pub fn new(bytes: u64, rng: Rng) -> Self {
        Self {
            bytes,
            current: Image::new(bytes),
            durable: Image::new(bytes),
            cache: Vec::new(),
            running: BTreeMap::new(),
            next: 0,
            completions: 0,
            rng,
            defect: None,
        }
    }

    /// The device has `bytes` more (a multiple of 4096).
    pub fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        for image in [&mut self.current, &mut self.durable] {
            image.0.resize(usize::try_from(self.bytes.div_ceil(PAGE)).unwrap_or(0), None);
        }
    }

    /// Breaks the device.
    pub const fn break_it(&mut self, defect: Defect) {
        self.defect = Some(defect);
    }

    /// Size in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// A page as readers see it; `None`: zeroes.
    #[must_use]
    pub fn page(&self, page: u64) -> Option<&[u8]> {
        self.current.page(page)
    }

    /// What an operation in flight is; a flush when it is not there.
    #[must_use]
    pub fn kind(&self, ticket: Ticket) -> OpKind {
        match self.running.get(&ticket).map(|op| &op.io) {
            Some(Io::Read { .. }) => OpKind::Read,
            Some(Io::Write { .. } | Io::Zero { .. }) => OpKind::Write,
            Some(Io::Flush) | None => OpKind::Flush,
        }
    }

    /// Starts an operation.
    pub fn submit(&mut self, io: Io) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.running
            .insert(ticket, Running { io, horizon: self.completions, skip: SmallVec::new(), seen: SmallVec::new() });
        ticket
    }

    /// Ends an operation well. An unknown ticket (of before a crash) does nothing.
    pub fn complete(&mut self, ticket: Ticket) -> Ended {
        let Some(op) = self.running.remove(&ticket) else { return Ended::default() };
        match op.io {
            Io::Read { start, len } => {
                let size = usize::try_from(len).unwrap_or(0);
                let busy = self.running.values().any(|op| matches!(op.io, Io::Write { .. }));
                if !busy
                    && let Some(zeroes) = shared_zeroes(size)
                    && self.current.is_blank(start, len)
                {
                    return Ended { data: Some(zeroes), touched: None };
                }
                let mut out = vec![0; size];
                self.current.read(start, &mut out);
                self.mix_in_flight(start, &mut out);
                Ended { data: Some(Bytes::from(out)), touched: None }
            }
            Io::Flush => {
                let covers_more = self.rng.coin();
                let horizon = if covers_more { self.completions } else { op.horizon };
                if self.defect != Some(Defect::LyingFlush) {
                    self.make_durable(horizon);
                }
                Ended::default()
            }
            Io::Write { .. } | Io::Zero { .. } => {
                let fua = matches!(op.io, Io::Write { fua: true, .. });
                self.reorder_overlapping(&op.io);
                let touched = self.take_effect(op.io, op.skip, fua);
                Ended { data: None, touched }
            }
        }
    }

    /// Ends an operation with an error: a write may have happened in part, and nothing can be said about a flush.
    pub fn fail(&mut self, ticket: Ticket) -> Ended {
        let Some(op) = self.running.remove(&ticket) else { return Ended::default() };
        match op.io {
            Io::Read { .. } => Ended::default(),
            Io::Flush => {
                if self.rng.coin() {
                    self.make_durable(op.horizon);
                }
                Ended::default()
            }
            io => {
                let mut skip = op.skip;
                if let Some((start, len)) = range(&io) {
                    for sector in start / SECTOR_BYTES..(start + len) / SECTOR_BYTES {
                        // What a read has seen stays.
                        if self.rng.coin() && !op.seen.contains(&sector) {
                            skip.push(sector);
                        }
                    }
                }
                let touched = self.take_effect(io, skip, false);
                Ended { data: None, touched }
            }
        }
    }

    /// A read that overlaps a write in flight sees old or new, sector by sector.
    fn mix_in_flight(&mut self, start: u64, out: &mut [u8]) {
        let end = start + out.len() as u64;
        for op in self.running.values_mut() {
            let Io::Write { start: from, data, .. } = &op.io else { continue };
            let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
            let mut sector = (*from).max(start) / SECTOR_BYTES;
            while sector * SECTOR_BYTES < (from + len).min(end) {
                let seen = op.seen.contains(&sector);
                if !op.skip.contains(&sector) && (seen || self.rng.coin()) {
                    if !seen {
                        op.seen.push(sector);
                    }
                    let to = usize::try_from(sector * SECTOR_BYTES - start).unwrap_or(0);
                    if let Some(bytes) = sector_of(data, sector * SECTOR_BYTES - from) {
                        out[to..to + SECTOR].copy_from_slice(bytes);
                    }
                }
                sector += 1;
            }
        }
    }

    /// Of two writes in flight to the same sector either may come last, whichever is reported first.
    fn reorder_overlapping(&mut self, io: &Io) {
        let Some((start, len)) = range(io) else { return };
        for other in self.running.values_mut() {
            let Some((from, other_len)) = range(&other.io) else { continue };
            let (first, end) = (start.max(from), (start + len).min(from + other_len));
            let mut at = first;
            while at < end {
                let sector = at / SECTOR_BYTES;
                if !other.seen.contains(&sector) && self.rng.coin() {
                    other.skip.push(sector);
                }
                at += SECTOR_BYTES;
            }
        }
    }

    fn take_effect(&mut self, io: Io, skip: SmallVec<[u64; 2]>, fua: bool) -> Option<(u64, u64)> {
        self.completions += 1;
        let done = self.completions;
        let mut touched = range(&io);
        match io {
            Io::Write { mut start, data, .. } => {
                if self.defect.is_some() && self.rng.below(40) == 0 {
                    match self.defect {
                        Some(Defect::LostWrite) => return None,
                        Some(Defect::Misdirected) if start + 3 * PAGE < self.bytes => start += PAGE,
                        Some(Defect::TornSector) => return self.tear(start, &data),
                        _ => {}
                    }
                    touched = touched.map(|(_, len)| (start, len));
                }
                let mut at = start;
                for piece in data {
                    let len = piece.len() as u64;
                    let payload = if is_shared_zero(&piece) { Payload::Zeroes(len) } else { Payload::Data(piece) };
                    self.cached(Cached { start: at, payload, done, gone: skip.clone() }, fua);
                    at += len;
                }
            }
            Io::Zero { start, len, loose } => {
                let mut gone = skip;
                if loose {
                    for page in start / PAGE..(start + len).div_ceil(PAGE) {
                        if self.rng.coin() {
                            gone.extend((0..8).map(|i| page * 8 + i));
                        }
                    }
                }
                self.cached(Cached { start, payload: Payload::Zeroes(len), done, gone }, fua);
            }
            Io::Read { .. } | Io::Flush => {}
        }
        touched
    }

    fn tear(&mut self, start: u64, data: &[Bytes]) -> Option<(u64, u64)> {
        let half = data.first()?.slice(..SECTOR / 2);
        self.current.write(start, &half);
        self.durable.write(start, &half);
        Some((start, SECTOR_BYTES))
    }

    fn cached(&mut self, write: Cached, fua: bool) {
        write.apply(&mut self.current, |_| true);
        if fua {
            self.settle_older(&write);
            write.apply(&mut self.durable, |_| true);
        } else {
            self.cache.push(write);
        }
    }

    /// What came before a write that is durable now cannot come back.
    fn settle_older(&mut self, write: &Cached) {
        let sectors = write.sectors();
        for older in &mut self.cache {
            let (first, end) = (older.sectors().start.max(sectors.start), older.sectors().end.min(sectors.end));
            older.gone.extend((first..end).filter(|sector| !write.gone.contains(sector)));
        }
    }

    fn make_durable(&mut self, horizon: u64) {
        for write in std::mem::take(&mut self.cache) {
            if write.done <= horizon {
                // In the cache by now: what came before and is not covered.
                self.settle_older(&write);
                write.apply(&mut self.durable, |_| true);
            } else {
                self.cache.push(write);
            }
        }
    }

    /// The process that used the device dies: the kernel carries out what was submitted. Gives the ranges that may have
    /// changed.
    pub fn process_crash(&mut self) -> Vec<(u64, u64)> {
        let mut changed = Vec::new();
        while !self.running.is_empty() {
            let at = usize::try_from(self.rng.below(self.running.len() as u64)).unwrap_or(0);
            let Some(ticket) = self.running.keys().nth(at).copied() else { break };
            changed.extend(self.complete(ticket).touched);
        }
        changed
    }

    /// Power fails: the cache and what is in flight are kept or lost, sector by sector. Gives the ranges that may have changed.
    pub fn power_cut(&mut self) -> Vec<(u64, u64)> {
        let flights: Vec<Running> = std::mem::take(&mut self.running).into_values().collect();
        for op in flights {
            if !matches!(op.io, Io::Read { .. } | Io::Flush) {
                self.take_effect(op.io, op.skip, false);
            }
        }
        // All, none, write by write or sector by sector: each finds other mistakes.
        let style = self.rng.below(4);
        let mut changed = Vec::new();
        for write in std::mem::take(&mut self.cache) {
            changed.push((write.start, write.payload.len()));
            let whole = self.rng.coin();
            let rng = &mut self.rng;
            write.apply(&mut self.durable, |_| match style {
                0 => false,
                1 => whole,
                2 => rng.below(8) != 0,
                _ => rng.coin(),
            });
        }
        for (start, len) in &changed {
            self.current.share(&self.durable, *start, *len);
        }
        changed
    }

    /// Reads what a reader would see now, outside of the queue (metadata at attach, checkers).
    pub fn read_now(&self, start: u64, out: &mut [u8]) {
        self.current.read(start, out);
    }

    /// Writes through the cache, outside of the queue (metadata tools).
    pub fn write_now(&mut self, start: u64, data: &[u8]) {
        self.completions += 1;
        let (payload, done) = (Payload::Data(Bytes::copy_from_slice(data)), self.completions);
        self.cached(Cached { start, payload, done, gone: SmallVec::new() }, false);
    }

    /// Flushes, outside of the queue.
    pub fn flush_now(&mut self) {
        if self.defect != Some(Defect::LyingFlush) {
            self.make_durable(self.completions);
        }
    }
}

fn range(io: &Io) -> Option<(u64, u64)> {
    match io {
        Io::Write { start, data, .. } => Some((*start, data.iter().map(|piece| piece.len() as u64).sum())),
        Io::Zero { start, len, .. } => Some((*start, *len)),
        Io::Read { .. } | Io::Flush => None,
    }
}

fn sector_of(pieces: &[Bytes], offset: u64) -> Option<&[u8]> {
    let mut left = usize::try_from(offset).ok()?;
    for piece in pieces {
        if left < piece.len() {
            return piece.get(left..left + SECTOR);
        }
        left -= piece.len();
    }
    None
}
