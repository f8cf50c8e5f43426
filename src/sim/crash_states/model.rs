//! What must hold of whatever is found after a crash at some step.
//!
//! Owns the promises made so far: the list of superblocks written, which of them is the oldest that may be found, what
//! each vouches for, and the peer. Takes in steps (before the media do); [`Judge`] looks at images through the real reader,
//! [`load`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use super::medium::{Image, Media, value};
use super::record::{Fact, Io, Key, OpNr, PeerView, Recording, SECTOR, Step};
use crate::engine::event::Geometry;
use crate::engine::load::{DiskFacts, LoadError, Loaded, load_moved};
use crate::meta::{AlStripes, Block, DeviceSizes, Layout, MdFlags, MetaError, Superblock, Unverified};
use crate::units::{BmBit, Sectors};

/// Flags whose gain or loss says something about the data (src/engine/md.rs).
const GAIN: [MdFlags; 2] = [MdFlags::CONSISTENT, MdFlags::WAS_UP_TO_DATE];
const LOSS: [MdFlags; 2] = [MdFlags::PRIMARY_IND, MdFlags::CRASHED_PRIMARY];

/// A superblock that was written, in order.
#[derive(Debug)]
struct Written {
    op: OpNr,
    superblock: Superblock,
    /// Data sectors with the write that must be there, or a later one, when this superblock is.
    vouched: Option<Rc<BTreeMap<u64, OpNr>>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Model {
    superblock_key: Key,
    /// Where it was before the device grew, and the data sectors that were metadata then.
    old_place: Option<(Key, Range<u64>)>,
    attachable: bool,
    superblocks: Vec<Written>,
    /// Index of the oldest superblock that may be found.
    floor: usize,
    /// Who relied on it.
    why: &'static str,
    peer: Rc<PeerView>,
    /// Newest completed write of each data sector.
    newest: BTreeMap<u64, OpNr>,
    /// The next write is a resync's.
    resyncs: bool,
    /// Writes of clients that began after the last flush did. Where a resync ends they are on no disk's promise yet: the peer marks
    /// them if it loses this node before it has heard of a flush.
    unpromised: BTreeSet<OpNr>,
    /// Data sectors that were ever written, here or at the peer.
    touched: BTreeSet<u64>,
    /// A promise that was broken the moment it was made.
    broken: Option<String>,
}

/// Where the superblock's fields are on a device of this size.
fn superblock_key(recording: &Recording, meta_bytes: u64) -> Key {
    let meta = Sectors::from_bytes_floor(meta_bytes);
    let sizes = DeviceSizes { meta, data: recording.place.data.unwrap_or(meta) };
    let layout = Layout::new(recording.place.kind, AlStripes::DEFAULT, sizes);
    (recording.meta_medium, layout.map_or(0, |layout| layout.md_offset.0))
}

/// Most sectors that the internal metadata of these runs take.
const METADATA_SECTORS_MAX: u64 = 2048;

impl Model {
    pub(super) fn new(recording: &Recording) -> Self {
        Self {
            superblock_key: superblock_key(recording, recording.meta_bytes),
            old_place: recording.known_bytes.map(|bytes| {
                let key = superblock_key(recording, bytes);
                (key, key.1.saturating_sub(METADATA_SECTORS_MAX)..bytes.div_ceil(SECTOR as u64))
            }),
            attachable: false,
            superblocks: Vec::new(),
            floor: 0,
            why: "",
            peer: Rc::default(),
            newest: BTreeMap::new(),
            resyncs: false,
            unpromised: BTreeSet::new(),
            touched: BTreeSet::new(),
            broken: None,
        }
    }

    /// Takes a step into account; `media` is the state before it. Whether crashes after it can differ from those before.
    pub(super) fn apply(&mut self, recording: &Recording, media: &Media, step: &Step) -> bool {
        match step {
            Step::Submit(op) => match recording.ops.get(*op as usize) {
                Some(Io::Write { meta: true, .. }) => {
                    self.superblock_written(recording, *op);
                    true
                }
                Some(Io::Write { sector, bytes, .. }) => {
                    self.touched.extend(*sector..*sector + (bytes.len() / SECTOR) as u64);
                    if !std::mem::take(&mut self.resyncs) {
                        self.unpromised.insert(*op);
                    }
                    true
                }
                Some(Io::Flush(_)) => {
                    self.unpromised.clear();
                    false
                }
                None => false,
            },
            Step::Complete(op) => {
                if let Some(Io::Write { sector, bytes, meta: false, .. }) = recording.ops.get(*op as usize) {
                    self.newest.extend((*sector..*sector + (bytes.len() / SECTOR) as u64).map(|sector| (sector, *op)));
                }
                match recording.ops.get(*op as usize) {
                    Some(Io::Write { fua, .. }) => *fua,
                    // A flush without anything to flush changes nothing.
                    Some(Io::Flush(_)) => !media.open.is_empty(),
                    None => false,
                }
            }
            Step::Failed(_) => true,
            Step::Fact(fact) => self.fact(fact),
        }
    }

    /// The peer as it is now.
    pub(super) fn peer(&self) -> Fact {
        Fact::Peer(Rc::clone(&self.peer))
    }

    fn fact(&mut self, fact: &Fact) -> bool {
        let before = self.floor;
        match fact {
            Fact::Attachable => self.attachable = true,
            Fact::Current(id, why) => self.raise(why, fact, |sb| sb.current.same(*id)),
            Fact::BitmapId(id, why) => self.raise(why, fact, |sb| sb.bitmap.same(*id)),
            Fact::Flag(MdFlags::CONSISTENT, false, why) => {
                self.resyncs = true;
                self.raise(why, fact, |sb| !sb.flags.contains(MdFlags::CONSISTENT));
            }
            Fact::Flag(flag, on, why) => self.raise(why, fact, |sb| sb.flags.contains(*flag) == *on),
            Fact::Peer(view) => {
                // Most changes of the peer are to its bitmap.
                if !Rc::ptr_eq(&self.peer.content, &view.content) {
                    self.touched.extend(view.content.keys());
                }
                self.peer = Rc::clone(view);
                return true;
            }
        }
        self.floor != before || self.broken.is_some() || matches!(fact, Fact::Attachable)
    }

    /// From now on only superblocks from the last run of those that satisfy `good` may be found.
    fn raise(&mut self, why: &'static str, fact: &Fact, good: impl Fn(&Superblock) -> bool) {
        let Some(last) = self.superblocks.iter().rposition(|w| good(&w.superblock)) else {
            self.broken = Some(format!("{why}, but no superblock says so: {fact:?}"));
            return;
        };
        let run = self.superblocks.iter().take(last + 1).rposition(|w| !good(&w.superblock)).map_or(0, |bad| bad + 1);
        if run > self.floor {
            (self.floor, self.why) = (run, why);
        }
    }

    fn superblock_written(&mut self, recording: &Recording, op: OpNr) {
        let old = self.old_place.as_ref().and_then(|(key, _)| value(recording, *key, op));
        let Some(first) = value(recording, self.superblock_key, op).or(old) else { return };
        let mut block: Block = [0; crate::meta::layout::BLOCK_BYTES];
        block[..SECTOR].copy_from_slice(first);
        let Ok(superblock) = Unverified::decode(&block).check() else {
            // Zeroes: what was there is disowned, unless it is only the place.
            self.attachable &= old.is_some();
            return;
        };
        let old = self.superblocks.last().map_or(MdFlags::NONE, |w| w.superblock.flags);
        let new = superblock.flags;
        let loses = LOSS.iter().any(|f| old.contains(*f) && !new.contains(*f));
        let gains = GAIN.iter().any(|f| new.contains(*f) && !old.contains(*f));
        let vouched = if loses {
            Some(Rc::new(self.newest.clone()))
        } else if gains {
            let promised = self.newest.iter().filter(|(_, op)| !self.unpromised.contains(op));
            Some(Rc::new(promised.map(|(sector, op)| (*sector, *op)).collect()))
        } else {
            self.superblocks.last().and_then(|w| w.vouched.clone())
        };
        self.superblocks.push(Written { op, superblock, vouched });
    }

    /// Gets ready to judge images of the media as they are now.
    pub(super) fn judge<'a>(&'a self, recording: &'a Recording, media: &'a Media) -> Judge<'a> {
        let here = |sector: u64| media.durable.get(&(0, sector)).and_then(|op| value(recording, (0, sector), *op));
        let differs = |sector: &u64| tag(here(*sector)) != self.peer_tag(*sector);
        let suspects = self.touched.iter().copied().filter(differs).collect();
        Judge { model: self, recording, media, suspects, weak: BTreeMap::new() }
    }

    fn peer_tag(&self, sector: u64) -> u64 {
        self.peer.content.get(&sector).copied().unwrap_or(0)
    }
}

/// What an image that must be as it is holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Metadata that were attached.
    Metadata,
    /// None, and nobody was promised any yet.
    Nothing,
}

/// Judges images of one step.
pub(super) struct Judge<'a> {
    model: &'a Model,
    recording: &'a Recording,
    media: &'a Media,
    /// Data sectors whose durable value is not the peer's.
    suspects: Vec<u64>,
    /// For superblocks that were found: what they vouch for and is not durable.
    weak: BTreeMap<usize, Vec<(u64, OpNr)>>,
}

impl Judge<'_> {
    /// Reads the image as an attach would; says what is wrong. The image is recovered by it.
    pub(super) fn check(&mut self, image: &mut Image<'_>) -> Result<Found, String> {
        let model = self.model;
        if let Some(broken) = &model.broken {
            return Err(broken.clone());
        }
        let keys = std::iter::once(model.superblock_key).chain(model.old_place.as_ref().map(|(key, _)| *key));
        let found = keys.filter_map(|key| image.source(key)).find_map(|op| {
            // Elsewhere it may be anything, also the zeroes behind a superblock that has moved.
            model.superblocks.iter().rposition(|w| w.op == op)
        });
        let known = self.recording.last_known();
        let loaded = match load_moved(image, self.recording.place, facts(self.recording), known.as_ref()) {
            Ok(loaded) => loaded,
            Err(LoadError::Meta(MetaError::NoMetadata(_))) if !model.attachable && found.is_none() => {
                return Ok(Found::Nothing);
            }
            Err(error) => return Err(format!("not attachable: {error}")),
        };
        let Some(found) = found else { return Err(String::from("attachable without a superblock of this node's")) };
        model.check_superblock(found, &loaded)?;
        self.check_vouched(found, image)?;
        self.check_covered(image, &loaded)?;
        Ok(Found::Metadata)
    }

    /// What the superblock says of the data is so.
    fn check_vouched(&mut self, found: usize, image: &Image<'_>) -> Result<(), String> {
        let Some(vouched) = self.model.superblocks.get(found).and_then(|w| w.vouched.as_ref()) else { return Ok(()) };
        // Numbers of operations grow with time, and two writes of a sector are never in flight together.
        let durable = &self.media.durable;
        let weak = self.weak.entry(found).or_insert_with(|| {
            let is_weak = |(sector, op): &(&u64, &OpNr)| durable.get(&(0, **sector)).is_none_or(|there| there < *op);
            vouched.iter().filter(is_weak).map(|(sector, op)| (*sector, *op)).collect()
        });
        match weak.iter().find(|(sector, op)| image.source((0, *sector)).is_none_or(|there| there < *op)) {
            Some((sector, op)) => {
                Err(format!("superblock {found} vouches for data that is lost: sector {sector}, operation {op}"))
            }
            None => Ok(()),
        }
    }

    /// Where the replicas differ somebody knows it.
    fn check_covered(&self, image: &Image<'_>, loaded: &Loaded) -> Result<(), String> {
        let bitmap = &loaded.disk.bitmap;
        let chosen = image.chosen().filter(|(medium, sector)| *medium == 0 && self.model.touched.contains(sector));
        for sector in self.suspects.iter().copied().chain(chosen.map(|(_, sector)| sector)) {
            let block = sector / 8;
            let own = block >= bitmap.bits() || bitmap.test(BmBit(block));
            if own || is_inside(&self.model.peer.covered, block) {
                continue;
            }
            // Data of the first resync lie there in the end; which of them a sector shows, this model does not know.
            let was_metadata = self.model.old_place.as_ref().is_some_and(|(_, sectors)| sectors.contains(&sector));
            let (here, there) = (image.tag((0, sector)), self.model.peer_tag(sector));
            if here != there && !was_metadata {
                return Err(format!("sector {sector} is {here} here and {there} at the peer, and no bit says so"));
            }
        }
        Ok(())
    }
}

impl Model {
    fn check_superblock(&self, found: usize, loaded: &Loaded) -> Result<(), String> {
        let Some(written) = self.superblocks.get(found) else { return Err(String::from("no such superblock")) };
        let (got, want) = (&loaded.disk.superblock, &written.superblock);
        if got.uuids() != want.uuids() {
            return Err(format!("identifiers {:?} instead of {:?}", got.uuids(), want.uuids()));
        }
        // The recovery cleans up and may ask for a full sync; everything else stays as it was.
        let kept = |flags: MdFlags| flags.without(MdFlags::AL_CLEAN).without(MdFlags::FULL_SYNC);
        if kept(got.flags) != kept(want.flags) {
            return Err(format!("flags {:?} instead of {:?}", got.flags, want.flags));
        }
        if found < self.floor {
            return Err(format!(
                "superblock {found} was found, but {} with superblock {}: {:?} {:?}",
                self.why,
                self.floor,
                want.flags,
                want.uuids()
            ));
        }
        Ok(())
    }
}

fn tag(sector: Option<&[u8]>) -> u64 {
    sector.and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn is_inside(ranges: &[Range<u64>], block: u64) -> bool {
    let next = ranges.partition_point(|range| range.start <= block);
    next.checked_sub(1).and_then(|i| ranges.get(i)).is_some_and(|range| range.contains(&block))
}

/// What an attach of this disk says about it.
pub(super) fn facts(recording: &Recording) -> DiskFacts {
    DiskFacts {
        geometry: Geometry { logical_block_size: 512, physical_block_size: 512, discard: true, discard_zeroes: true },
        shared_device: recording.meta_medium == 0,
        path: String::from("mem"),
    }
}
