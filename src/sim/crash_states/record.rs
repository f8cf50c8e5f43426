//! What a node did to its disk, as a list of steps that can be cut off anywhere.
//!
//! Owns operations with their bytes, and the order in which they were submitted and ended, interleaved with [`Fact`]s:
//! what the node had promised by then. Gives out the list; [`RecordIo`] records synchronous users of a [`MetaIo`].

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use crate::meta::relocate::LastKnown;
use crate::meta::{MdFlags, MetaIo, Place};
use crate::units::GenId;

/// Bytes of a sector, the unit of atomicity.
pub(super) const SECTOR: usize = 512;

/// Which cache an operation goes through: 0 is the data device, 1 a metadata device of its own.
pub(super) type Medium = u8;

/// A sector of a medium.
pub(super) type Key = (Medium, u64);

/// Index of an operation in [`Recording::ops`].
pub(super) type OpNr = u32;

/// An operation.
#[derive(Clone, Debug)]
pub(super) enum Io {
    /// Whole sectors.
    Write {
        medium: Medium,
        sector: u64,
        bytes: Bytes,
        fua: bool,
        meta: bool,
    },
    Flush(Medium),
}

/// What the peer has: the other half of "the replicas differ only where somebody knows it".
#[derive(Clone, Debug, Default)]
pub(super) struct PeerView {
    /// What its sectors hold, where they were ever written: the first eight bytes of each.
    pub content: Rc<BTreeMap<u64, u64>>,
    /// Blocks (bitmap bits) that it would have synced after a loss of the link, ascending.
    pub covered: Vec<Range<u64>>,
}

/// Something that holds from a step on.
#[derive(Clone, Debug)]
pub(super) enum Fact {
    /// The metadata can be attached after any crash.
    Attachable,
    /// A superblock with this current identifier is durable, or a later one; why that matters.
    Current(GenId, &'static str),
    /// The same for the bitmap identifier.
    BitmapId(GenId, &'static str),
    /// The same for flags, set or clear.
    Flag(MdFlags, bool, &'static str),
    /// The peer changed.
    Peer(Rc<PeerView>),
}

/// One step.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Submit(OpNr),
    Complete(OpNr),
    /// Ended with an error.
    Failed(OpNr),
    Fact(Fact),
}

/// A run of one node.
#[derive(Clone, Debug)]
pub(super) struct Recording {
    /// Name of the scenario and its seed.
    pub name: String,
    /// Size of the device with the metadata, in bytes.
    pub meta_bytes: u64,
    /// Size that the device had when it was last remembered, if it has grown since.
    pub known_bytes: Option<u64>,
    /// Medium of the metadata.
    pub meta_medium: Medium,
    /// Where the metadata are.
    pub place: Place,
    pub ops: Vec<Io>,
    pub steps: Vec<Step>,
    /// Crashes before this step are not looked at.
    pub start: usize,
}

impl Recording {
    pub(super) fn new(name: String, place: Place, meta_bytes: u64) -> Self {
        let meta_medium = u8::from(!place.kind.is_internal());
        Self { name, meta_bytes, known_bytes: None, meta_medium, place, ops: Vec::new(), steps: Vec::new(), start: 0 }
    }

    /// The device has so many KiB more, and nobody has remembered that yet.
    pub(super) const fn grow(&mut self, kib: u64) {
        self.known_bytes = Some(self.meta_bytes);
        self.meta_bytes += kib << 10;
    }

    /// What the daemon remembers of the device.
    pub(super) fn last_known(&self) -> Option<LastKnown> {
        self.known_bytes.map(|size_bytes| LastKnown { size_bytes, device: None, device_uuid: None })
    }

    pub(super) fn submit(&mut self, io: Io) -> OpNr {
        let nr = OpNr::try_from(self.ops.len()).unwrap_or(OpNr::MAX);
        self.ops.push(io);
        self.steps.push(Step::Submit(nr));
        nr
    }

    pub(super) fn complete(&mut self, op: OpNr) {
        self.steps.push(Step::Complete(op));
    }

    pub(super) fn failed(&mut self, op: OpNr) {
        self.steps.push(Step::Failed(op));
    }

    pub(super) fn fact(&mut self, fact: Fact) {
        self.steps.push(Step::Fact(fact));
    }

    /// A write that is over.
    pub(super) fn written(&mut self, medium: Medium, offset: u64, data: &[u8]) {
        let (sector, bytes) = (offset / SECTOR as u64, Bytes::copy_from_slice(data));
        let op = self.submit(Io::Write { medium, sector, bytes, fua: false, meta: true });
        self.complete(op);
    }

    pub(super) fn flushed(&mut self, medium: Medium) {
        let op = self.submit(Io::Flush(medium));
        self.complete(op);
    }
}

/// Lets a synchronous user of a device be recorded; each call is over before the next.
pub(super) struct RecordIo<'a, T: MetaIo> {
    pub io: &'a mut T,
    pub recording: &'a mut Recording,
}

impl<T: MetaIo> MetaIo for RecordIo<'_, T> {
    fn size_bytes(&self) -> u64 {
        self.io.size_bytes()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.io.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.io.write_at(offset, buf)?;
        self.recording.written(self.recording.meta_medium, offset, buf);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.io.flush()?;
        self.recording.flushed(self.recording.meta_medium);
        Ok(())
    }
}
