//! What clients wrote and were promised, and whether what is found now agrees with it.
//!
//! Every sector of a write says which write it belongs to and which sector it is. Time is a counter. A write binds from its
//! acknowledgement on, until a crash releases it (a power cut, for what was neither flushed nor durable itself). A value may
//! be found if no write that binds began after that value's own write had ended. A write without an answer may have
//! happened or not; it ends when the node that served it is gone, or is at rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub const SECTOR: usize = 512;

/// What a write leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Its stamp.
    Stamp,
    /// Zeroes.
    Zero,
    /// Zeroes, or what was there.
    Trim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Acknowledged,
    Failed,
    Unknown,
}

#[derive(Clone, Debug)]
struct Write {
    fill: Fill,
    fua: bool,
    begin: u64,
    /// `u64::MAX` while it is open.
    end: u64,
    fate: Fate,
    /// Beginning and end in milliseconds of the round, for people.
    ms: [u128; 2],
    flushed: bool,
    released: bool,
}

impl Write {
    fn binds(&self) -> bool {
        self.fate == Fate::Acknowledged && self.fill != Fill::Trim && !self.released
    }
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    clock: u64,
    writes: Vec<Write>,
    /// Which writes touched a sector.
    sectors: BTreeMap<u64, Vec<u32>>,
    open: BTreeSet<u32>,
    /// Acknowledged and not known to be durable.
    volatile: BTreeSet<u32>,
    counts: Counts,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            clock: 0,
            writes: Vec::new(),
            sectors: BTreeMap::new(),
            open: BTreeSet::new(),
            volatile: BTreeSet::new(),
            counts: Counts::default(),
        }
    }
}

/// Requests that were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub answered: u64,
    pub failed: u64,
    pub unanswered: u64,
    pub released: u64,
}

/// The history of one device.
#[derive(Debug, Default)]
pub struct History(Mutex<Inner>);

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time now.
    pub fn now(&self) -> u64 {
        self.lock().tick()
    }

    /// A write is about to be sent; its number.
    pub fn begin(&self, sectors: Range<u64>, fill: Fill, fua: bool) -> u32 {
        let mut inner = self.lock();
        let begin = inner.tick();
        let nr = u32::try_from(inner.writes.len()).expect("few writes");
        let ms = [inner.started.elapsed().as_millis(), 0];
        let (end, fate) = (u64::MAX, Fate::Open);
        inner.writes.push(Write { fill, fua, begin, end, fate, ms, flushed: false, released: false });
        inner.open.insert(nr);
        for sector in sectors {
            inner.sectors.entry(sector).or_default().push(nr);
        }
        nr
    }

    /// A write was answered.
    pub fn end(&self, nr: u32, ok: bool) {
        let mut inner = self.lock();
        let (now, ms) = (inner.tick(), inner.started.elapsed().as_millis());
        inner.open.remove(&nr);
        let write = &mut inner.writes[nr as usize];
        write.end = now;
        write.ms[1] = ms;
        write.fate = if ok { Fate::Acknowledged } else { Fate::Failed };
        if ok && !write.fua {
            inner.volatile.insert(nr);
        }
        inner.count(ok);
    }

    /// A flush that began at `begin` was answered.
    pub fn flushed(&self, begin: u64, ok: bool) {
        let mut inner = self.lock();
        inner.count(ok);
        if ok {
            let Inner { writes, volatile, .. } = &mut *inner;
            volatile.retain(|nr| {
                let write = &mut writes[*nr as usize];
                write.flushed |= write.end < begin;
                !write.flushed
            });
        }
    }

    /// A read was answered.
    pub fn read(&self, ok: bool) {
        self.lock().count(ok);
    }

    /// Whoever served the open requests is gone, or at rest: nothing of them happens from now on.
    pub fn close_open(&self) {
        let mut inner = self.lock();
        let now = inner.tick();
        for nr in std::mem::take(&mut inner.open) {
            let write = &mut inner.writes[nr as usize];
            (write.end, write.fate) = (now, Fate::Unknown);
            inner.counts.unanswered += 1;
        }
    }

    /// A power cut: what was acknowledged but not made durable may be lost.
    pub fn release_volatile(&self) {
        let mut inner = self.lock();
        for nr in std::mem::take(&mut inner.volatile) {
            inner.writes[nr as usize].released = true;
            inner.counts.released += 1;
        }
    }

    /// The only copy is gone, and it may never have been complete: what was acknowledged after `since` and not flushed may
    /// be lost, durable or not.
    pub fn release_since(&self, since: u64) {
        let mut inner = self.lock();
        let Inner { writes, volatile, counts, .. } = &mut *inner;
        let late = |write: &Write| write.fate == Fate::Acknowledged && write.end > since && !write.flushed;
        for write in writes.iter_mut().filter(|write| late(write) && !write.released) {
            write.released = true;
            counts.released += 1;
        }
        volatile.retain(|nr| !writes[*nr as usize].released);
    }

    /// How many requests were answered, and how.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// The bytes of a write.
    pub fn stamp(nr: u32, sectors: Range<u64>) -> Vec<u8> {
        let mut data = Vec::new();
        for sector in sectors {
            for _ in 0..SECTOR / 16 {
                data.extend((u64::from(nr) + 1).to_le_bytes());
                data.extend(sector.to_le_bytes());
            }
        }
        data
    }

    /// Checks what a read that lasted over `time` found, or what is found after everything.
    pub fn check(&self, first: u64, data: &[u8], time: Range<u64>) -> Result<(), String> {
        let inner = self.lock();
        for (sector, found) in (first..).zip(data.chunks(SECTOR)) {
            inner.check_sector(sector, found, &time).map_err(|why| format!("sector {sector}: {why}"))?;
        }
        Ok(())
    }

    /// What is known about a sector whose bytes are these, for people.
    pub fn tell(&self, sector: u64, found: &[u8]) -> String {
        let inner = self.lock();
        let nr = u64::from_le_bytes(found[..8].try_into().expect("eight bytes"));
        let touched = inner.sectors.get(&sector).cloned().unwrap_or_default();
        let writes: Vec<String> =
            touched.iter().rev().take(8).map(|nr| format!("    {nr}: {:?}", inner.writes[*nr as usize])).collect();
        format!("holds write {} (-1: zeroes); the last ones were\n{}", i128::from(nr) - 1, writes.join("\n"))
    }

    /// All sectors that were ever written to.
    pub fn touched(&self) -> Vec<u64> {
        self.lock().sectors.keys().copied().collect()
    }
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn count(&mut self, ok: bool) {
        self.counts.answered += 1;
        self.counts.failed += u64::from(!ok);
    }

    fn check_sector(&self, sector: u64, found: &[u8], time: &Range<u64>) -> Result<(), String> {
        let none = Vec::new();
        let touched = self.sectors.get(&sector).unwrap_or(&none);
        // The newest beginning of a write that binds and was over when the look at it began.
        let binding = touched
            .iter()
            .map(|nr| (nr, &self.writes[*nr as usize]))
            .filter(|(_, write)| write.binds() && write.end < time.start)
            .max_by_key(|(_, write)| write.begin);
        let limit = binding.map_or(0, |(_, write)| write.begin);
        let is_zero = found.iter().all(|byte| *byte == 0);
        let fits = |nr: &u32, zero: bool| {
            let write = &self.writes[*nr as usize];
            (write.fill != Fill::Stamp) == zero && write.end >= limit && write.begin < time.end
        };
        let told = || match binding {
            None => String::from("nothing is promised"),
            Some((nr, write)) => format!("write {nr} is promised: {write:?}"),
        };
        if is_zero {
            // Never written, or zeroed.
            if limit == 0 || touched.iter().any(|nr| fits(nr, true)) {
                return Ok(());
            }
            return Err(format!("found zeroes, {}", told()));
        }
        let (units, _) = found.as_chunks::<16>();
        let first = units[0];
        let nr = u64::from_le_bytes(first[..8].try_into().expect("eight bytes"));
        let place = u64::from_le_bytes(first[8..].try_into().expect("eight bytes"));
        if units.iter().any(|unit| *unit != first) {
            return Err(format!("found a mixture that starts with write {nr} at {place}"));
        }
        let Some(nr) = nr.checked_sub(1).and_then(|nr| u32::try_from(nr).ok()).filter(|nr| touched.contains(nr)) else {
            return Err(format!("found something foreign, {nr:#x} at {place}, {}", told()));
        };
        if place != sector {
            return Err(format!("found sector {place} of write {nr}"));
        }
        if fits(&nr, false) {
            return Ok(());
        }
        Err(format!("found write {nr}: {:?}, but {}", self.writes[nr as usize], told()))
    }
}

#[test]
fn a_promise_is_kept_or_its_breach_is_noticed() {
    let history = History::default();
    let one = history.begin(0..2, Fill::Stamp, false);
    let open = history.begin(0..1, Fill::Stamp, false);
    let later = u64::MAX - 1..u64::MAX;
    history.end(one, true);
    let two = history.begin(1..2, Fill::Stamp, true);
    history.end(two, true);
    let data = |first: u32, second: u32| [History::stamp(first, 0..1), History::stamp(second, 1..2)].concat();
    assert_eq!(history.check(0, &data(one, two), later.clone()), Ok(()));
    assert_eq!(history.check(0, &data(open, two), later.clone()), Ok(()));
    for wrong in
        [data(one, one), vec![0; 1024], History::stamp(one, 1..3), [History::stamp(one, 0..1), vec![7; 512]].concat()]
    {
        history.check(0, &wrong, later.clone()).unwrap_err();
    }
    history.release_volatile();
    assert_eq!(history.check(0, &[vec![0; 512], History::stamp(two, 1..2)].concat(), later.clone()), Ok(()));
    history.check(0, &data(one, one), later.clone()).unwrap_err();
    history.close_open();
    let three = history.begin(0..1, Fill::Zero, false);
    history.end(three, true);
    history.flushed(history.now(), true);
    history.check(0, &data(open, two), later.clone()).unwrap_err();
    assert_eq!(history.check(0, &[vec![0; 512], History::stamp(two, 1..2)].concat(), later), Ok(()));
}
