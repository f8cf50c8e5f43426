//! Saving what a split brain's victim has, before the resync that resolves it overwrites it.
//!
//! Takes in: the decision to become the target of a peer whose data have diverged from these, every write to the own disk
//! from the beginning of that resync to its end, the driver's answers. Gives out: orders to keep old contents
//! ([`UndoOrder`]). Invariants: the driver has an undo file before the source can begin; while blocks are saved, no write
//! reaches one that is not saved before the driver says that its old contents are durable (or that it gave up); a block
//! that a write leaves as it is needs no saving. So the saved blocks and, where there are none, the disk are together the
//! device as it was when the resync began, at every moment until it has ended, over crashes and new links. Blocks that are
//! written later, when both nodes are equal again, are not saved: normal operation costs nothing.
//!
//! A file that cannot take more is given up with a loud word, and the resync goes on: the operator (or the policy) has said
//! that these data go. Nothing of this is seen by the peer.

mod blocks;

use std::time::Duration;

use bytes::Bytes;

use self::blocks::{changed_blocks, of_blocks, runs_of, whole_blocks};
use crate::engine::Engine;
use crate::engine::action::{Action, DiskOp, Level};
use crate::engine::dirty::Bitmap;
use crate::engine::event::{DiskFailure, Timer};
use crate::engine::fault::Fault;
use crate::engine::gi::{GenIds, Verdict};
use crate::engine::ops::Op;
use crate::engine::peer_request::{PeerKind, WriteIo};
use crate::engine::refused::Refused;
use crate::limits::{BM_BLOCK_BYTES, UNDO_FILE_MS};
use crate::meta::MdFlags;
use crate::units::{BmBit, Sector, SectorRange, Sectors, VolumeNr};
use crate::wire::state::{ConnState, DiskState};

/// Blocks that one step of a save reads: 1 MiB.
const STEP_BLOCKS: u64 = 256;

/// What the undo file of a volume is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UndoHead {
    /// Identifiers of the data that are about to be replaced.
    pub own: GenIds,
    /// Those of the data that replace them.
    pub peer: GenIds,
    /// Size of the device.
    pub size: Sectors,
    /// The disk, by the `device-uuid` of its metadata.
    pub device: u64,
    /// The disk is consistent.
    pub good: bool,
    /// It is up to date.
    pub up_to_date: bool,
    /// Blocks that are marked here; the peer's come on top.
    pub marked: u64,
}

/// What is in an undo file that is being filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedBlocks {
    /// Blocks of the device when it was begun; what it has grown by since was never the victim's.
    pub blocks: u64,
    /// Those that are in it.
    pub runs: Vec<std::ops::Range<u64>>,
}

/// Old contents of consecutive blocks; the last one is cut where the device ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldBlocks {
    /// First block.
    pub first: u64,
    /// Contents.
    pub data: Bytes,
}

/// An order to whoever keeps undo files. Carried out in the order in which they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UndoOrder {
    /// A resync will replace these data: make a file, beside the one that may be there. Answered by [`UndoAnswer::Ready`].
    Begin(Box<UndoHead>),
    /// The resync begins: the new file takes the place of the old one, durably before the next save is answered.
    Start,
    /// Make these durable. Answered by [`UndoAnswer::Saved`].
    Save {
        /// For the answer.
        token: u64,
        /// Old contents.
        blocks: Vec<OldBlocks>,
        /// Runs of blocks that cannot be read any more: first and number.
        lost: Vec<(u64, u32)>,
    },
    /// The resync came to nothing before it began: the new file goes.
    Cancel,
    /// The resync has ended: the file is complete.
    End,
}

/// What whoever keeps undo files answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UndoAnswer {
    /// There is a file, or there will be none.
    Ready(bool),
    /// The old contents are durable, or the file was given up.
    Saved {
        /// Of the order.
        token: u64,
        /// They are durable.
        ok: bool,
    },
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// A file was asked for.
    Asked,
    /// It is there; the resync has not begun.
    Armed,
    /// The superblock that begins the resync is on its way.
    Starting,
    /// Everything is saved before it is overwritten.
    Saving,
}

/// Saving on one volume.
#[derive(Debug)]
pub(crate) struct Undo {
    phase: Phase,
    saved: Bitmap,
    /// Writes of applications of this node that wait for the beginning.
    held: Vec<u64>,
}

/// Who waits for a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Peer(u64),
    Own(u64),
}

/// A write that waits until what it overwrites is saved.
#[derive(Debug)]
pub(crate) struct UndoJob {
    volume: VolumeNr,
    who: Who,
    /// Blocks that it touches.
    blocks: std::ops::Range<u64>,
    /// The step under way.
    step: std::ops::Range<u64>,
    saving: Vec<std::ops::Range<u64>>,
}

impl Engine {
    fn order_undo(&mut self, v: VolumeNr, order: UndoOrder) {
        self.out.push(Action::Undo { volume: v, order });
    }

    /// This node becomes the target of a resync: if its data have diverged, an undo file is wanted before the source can
    /// begin. One that is being filled goes on: what it saved is older, and is what people miss.
    pub(crate) fn undo_begin(&mut self, v: VolumeNr, verdict: Verdict) {
        if !matches!(verdict, Verdict::SplitBrain { .. }) {
            return;
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.undo.as_ref().is_some_and(|undo| undo.phase >= Phase::Starting) {
            return;
        }
        let (Some(disk), Some(peer)) = (vol.disk.as_ref(), vol.peer.uuids) else { return };
        let Ok(saved) = Bitmap::new(disk.bitmap.bits()) else { return };
        let disk_state = if vol.state.disk == DiskState::Negotiating { vol.attach_disk } else { vol.state.disk };
        let head = UndoHead {
            own: disk.ids(),
            peer: peer.ids,
            size: vol.size,
            device: disk.sb.device_uuid,
            good: disk_state > DiskState::Inconsistent,
            up_to_date: disk.sb.flags.contains(MdFlags::WAS_UP_TO_DATE),
            marked: disk.bitmap.count(),
        };
        vol.undo = Some(Box::new(Undo { phase: Phase::Asked, saved, held: Vec::new() }));
        self.order_undo(v, UndoOrder::Begin(Box::new(head)));
        let at = self.now.after(Duration::from_millis(UNDO_FILE_MS));
        self.out.push(Action::SetTimer { timer: Timer::UndoFile(v), at });
    }

    /// Whoever keeps undo files has not answered for long. The nodes part: waiting has no end, and nobody has said that these data
    /// may go without a trace.
    pub(crate) fn on_undo_timer(&mut self, v: VolumeNr) {
        let asked =
            self.volumes.get(&v).and_then(|vol| vol.undo.as_ref()).is_some_and(|undo| undo.phase == Phase::Asked);
        if !asked || self.conn.link.is_none() {
            return;
        }
        let reason = String::from(
            "no undo file after 30 s, the state directory does not answer; what the resolution of the split brain discards would be \
             lost. Mend the directory, or start udrbd with --undo-limit 0, then connect again",
        );
        self.log(Level::Error, Some(v), reason.clone());
        self.refuse(Refused::Link { reason });
        self.drop_link(ConnState::Disconnecting);
    }

    /// Whoever keeps undo files has answered.
    pub(crate) fn on_undo(&mut self, v: VolumeNr, answer: UndoAnswer) {
        match answer {
            UndoAnswer::Ready(ok) => {
                let Some(vol) = self.volumes.get_mut(&v) else { return };
                match vol.undo.as_mut().filter(|undo| undo.phase == Phase::Asked) {
                    Some(undo) if ok => undo.phase = Phase::Armed,
                    Some(_) => vol.undo = None,
                    None => {}
                }
            }
            UndoAnswer::Saved { token, ok } => self.undo_saved(v, token, ok),
        }
    }

    /// Whether the own bitmap must not go out yet, because the source begins when it has it.
    pub(crate) fn undo_not_ready(vol: &super::volume::Volume) -> bool {
        vol.undo.as_ref().is_some_and(|undo| undo.phase == Phase::Asked)
    }

    /// The resync begins: its superblock is on its way.
    pub(crate) fn undo_starting(&mut self, v: VolumeNr) {
        if let Some(undo) = self.volumes.get_mut(&v).and_then(|vol| vol.undo.as_mut())
            && undo.phase == Phase::Armed
        {
            undo.phase = Phase::Starting;
            // What is about to be saved must not go back to something older by a power cut.
            self.md_flush_data(v);
        }
    }

    /// That superblock is durable: from here on everything is saved before it is overwritten.
    pub(crate) fn undo_start(&mut self, v: VolumeNr) {
        let Some(undo) = self.volumes.get_mut(&v).and_then(|vol| vol.undo.as_mut()) else { return };
        if undo.phase == Phase::Starting {
            undo.phase = Phase::Saving;
            let held = std::mem::take(&mut undo.held);
            self.order_undo(v, UndoOrder::Start);
            self.wake_peer_requests(v);
            held.into_iter().for_each(|key| self.submit_part(key));
        }
    }

    /// Whether writes of the peer have to wait: a crash now would find the data in their old generation, and the new
    /// undo file would not count.
    pub(crate) fn undo_holds_writes(vol: &super::volume::Volume) -> bool {
        vol.undo.as_ref().is_some_and(|undo| undo.phase == Phase::Starting) && vol.disk_usable()
    }

    /// The range that must be free of other writes before a write may start: whole blocks while blocks are saved.
    pub(crate) fn undo_range(vol: &super::volume::Volume, range: SectorRange) -> SectorRange {
        if vol.undo.is_some() { whole_blocks(range, vol.size) } else { range }
    }

    /// The link is gone: a resync that has not begun will not. The next handshake asks again.
    pub(crate) fn undo_cancel(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.undo.as_ref().is_some_and(|undo| undo.phase < Phase::Starting) {
            vol.undo = None;
            self.order_undo(v, UndoOrder::Cancel);
        }
    }

    /// The disk goes: a file that is being filled waits for it to come back.
    pub(crate) fn undo_detached(&mut self, v: VolumeNr) {
        self.undo_cancel(v);
        let undo = self.volumes.get_mut(&v).and_then(|vol| vol.undo.take());
        undo.into_iter().flat_map(|undo| undo.held).for_each(|key| self.submit_part(key));
    }

    /// A disk is attached whose resync was under way: what is saved already.
    pub(crate) fn undo_resume(&mut self, v: VolumeNr, saved: &SavedBlocks, consistent: bool) {
        if self.faulty(Fault::UndoForgotten) {
            return;
        }
        if consistent {
            return self.order_undo(v, UndoOrder::End);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(Ok(mut bits)) = vol.disk.as_ref().map(|disk| Bitmap::new(disk.bitmap.bits().min(saved.blocks))) else {
            return;
        };
        for run in &saved.runs {
            bits.set_range(run.start.min(bits.bits())..run.end.min(bits.bits()));
        }
        vol.undo = Some(Box::new(Undo { phase: Phase::Saving, saved: bits, held: Vec::new() }));
    }

    /// The disk is good: nothing more is saved.
    pub(crate) fn undo_end(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v)
            && vol.undo.as_ref().is_some_and(|undo| undo.phase == Phase::Saving)
        {
            vol.undo = None;
            self.order_undo(v, UndoOrder::End);
        }
    }

    /// Whether a write of the peer has to wait until what it overwrites is saved; begins that.
    pub(crate) fn undo_before_peer(&mut self, key: u64) -> bool {
        let skips = self.faulty(Fault::UndoMirroredUnsaved);
        let Some(request) = self.peer_requests.get(key) else { return false };
        let (v, range) = (request.volume, request.range);
        if request.undo_settled || (skips && request.kind != PeerKind::ResyncWrite) || !self.undo_unsaved(v, range) {
            return false;
        }
        if let Some(request) = self.peer_requests.get_mut(key) {
            request.undo_pending = true;
        }
        self.undo_job(v, Who::Peer(key), range);
        !self.faulty(Fault::UndoNotAwaited)
    }

    /// The same for a write of an application of this node.
    pub(crate) fn undo_before_own(&mut self, key: u64) -> bool {
        let Some(request) = self.requests.get(key) else { return false };
        let (v, range, settled) = (request.volume, request.range, request.undo_settled);
        if let Some(undo) = self.volumes.get_mut(&v).and_then(|vol| vol.undo.as_mut())
            && undo.phase == Phase::Starting
        {
            undo.held.push(key);
            return true;
        }
        if settled || !self.undo_unsaved(v, range) {
            return false;
        }
        self.undo_job(v, Who::Own(key), range);
        true
    }

    fn undo_unsaved(&self, v: VolumeNr, range: SectorRange) -> bool {
        let Some(vol) = self.volumes.get(&v).filter(|vol| vol.disk_usable()) else { return false };
        let Some(undo) = vol.undo.as_ref().filter(|undo| undo.phase == Phase::Saving) else { return false };
        let bits = range.bits_touched();
        let inside = bits.start..bits.end.min(undo.saved.bits());
        undo.saved.count_range(inside.clone()) < inside.end.saturating_sub(inside.start)
    }

    fn undo_job(&mut self, v: VolumeNr, who: Who, range: SectorRange) {
        let blocks = range.bits_touched();
        let step = blocks.start..blocks.start;
        let job = self.undo_jobs.insert(UndoJob { volume: v, who, blocks, step, saving: Vec::new() });
        self.undo_step(job);
    }

    /// Reads the next blocks that a write overwrites and that are not saved, or lets it go.
    fn undo_step(&mut self, token: u64) {
        let Some(job) = self.undo_jobs.get(token) else { return };
        let (v, from, end) = (job.volume, job.step.end, job.blocks.end);
        let next = self.volumes.get(&v).and_then(|vol| {
            let undo = vol.undo.as_ref().filter(|undo| undo.phase == Phase::Saving && vol.disk_usable())?;
            // A device that has grown since has blocks that the victim did not have.
            let end = end.min(undo.saved.bits());
            let first = undo.saved.find_first_clear_from(BmBit(from))?.0;
            (first < end).then(|| (first..end.min(first + STEP_BLOCKS), vol.size))
        });
        match next {
            Some((step, size)) if self.undo_wanted(token) => {
                if let Some(job) = self.undo_jobs.get_mut(token) {
                    job.step = step.clone();
                }
                self.submit(v, DiskOp::Read(of_blocks(&step, size)), Op::UndoRead(token));
            }
            _ => self.undo_release(token),
        }
    }

    /// Whether the write that a job is for is still to be made.
    fn undo_wanted(&self, token: u64) -> bool {
        match self.undo_jobs.get(token).map(|job| job.who) {
            Some(Who::Peer(key)) => self.peer_requests.get(key).is_some(),
            Some(Who::Own(key)) => self.requests.get(key).is_some(),
            None => false,
        }
    }

    /// The write goes on.
    fn undo_release(&mut self, token: u64) {
        let Some(job) = self.undo_jobs.remove(token) else { return };
        match job.who {
            Who::Peer(key) => {
                let Some(request) = self.peer_requests.get_mut(key) else { return };
                request.undo_pending = false;
                request.undo_settled = true;
                if !request.submitted {
                    self.submit_peer_io(key);
                }
            }
            Who::Own(key) => {
                let Some(request) = self.requests.get_mut(key) else { return };
                request.undo_settled = true;
                self.submit_part(key);
            }
        }
    }

    /// The old contents were read.
    pub(crate) fn on_undo_read(&mut self, token: u64, result: Result<Bytes, DiskFailure>) {
        let Some(job) = self.undo_jobs.get(token) else { return };
        let (v, step, who) = (job.volume, job.step.clone(), job.who);
        let Some(vol) = self.volumes.get(&v) else { return };
        let saved = vol.undo.as_ref().map(|undo| &undo.saved);
        let Some(saved) = saved.filter(|_| self.undo_wanted(token)) else { return self.undo_release(token) };
        let expected = of_blocks(&step, vol.size).bytes();
        let (mut blocks, mut lost) = (Vec::new(), Vec::new());
        let mut saving = Vec::new();
        match result.ok().filter(|old| old.len() as u64 == expected) {
            Some(old) => {
                let changed = self.undo_changed(who, step.start, &old);
                let unsaved: Vec<u64> = changed.into_iter().filter(|block| !saved.test(BmBit(*block))).collect();
                for run in runs_of(&unsaved) {
                    let at = |block: u64| usize::try_from((block - step.start) * BM_BLOCK_BYTES).unwrap_or(usize::MAX);
                    let data = old.slice(at(run.start)..at(run.end).min(old.len()));
                    blocks.push(OldBlocks { first: run.start, data });
                    saving.push(run);
                }
            }
            None => {
                // What cannot be read is lost whether it is overwritten or not.
                let unsaved: Vec<u64> = step.clone().filter(|block| !saved.test(BmBit(*block))).collect();
                for run in runs_of(&unsaved) {
                    lost.push((run.start, u32::try_from(run.end - run.start).unwrap_or(u32::MAX)));
                    saving.push(run);
                }
                let text = format!(
                    "blocks {} to {} cannot be read: they are not in the undo file",
                    step.start,
                    step.end.saturating_sub(1)
                );
                self.log(Level::Error, Some(v), text);
            }
        }
        if saving.is_empty() {
            return self.undo_step(token);
        }
        if let Some(job) = self.undo_jobs.get_mut(token) {
            job.saving = saving;
        }
        self.order_undo(v, UndoOrder::Save { token, blocks, lost });
    }

    /// Which of the blocks that were read the write changes.
    fn undo_changed(&self, who: Who, first: u64, old: &[u8]) -> Vec<u64> {
        let bytes = |range: SectorRange| (Sector::bytes(range.start), range.bytes());
        match who {
            Who::Peer(key) => {
                let Some(request) = self.peer_requests.get(key) else { return Vec::new() };
                let (at, len) = bytes(request.range);
                match request.io.as_ref() {
                    Some(WriteIo::Data(data)) => changed_blocks(first, old, at, len, Some(data)),
                    _ => changed_blocks(first, old, at, len, None),
                }
            }
            Who::Own(key) => {
                let Some(request) = self.requests.get(key) else { return Vec::new() };
                let (at, len) = bytes(request.range);
                changed_blocks(first, old, at, len, request.data.as_deref())
            }
        }
    }

    /// Old contents are durable, or never will be.
    fn undo_saved(&mut self, v: VolumeNr, token: u64, ok: bool) {
        let saving = self.undo_jobs.get_mut(token).map(|job| std::mem::take(&mut job.saving)).unwrap_or_default();
        if let Some(vol) = self.volumes.get_mut(&v) {
            match vol.undo.as_mut() {
                Some(undo) if ok => {
                    for run in saving {
                        undo.saved.set_range(run);
                    }
                }
                Some(_) => {
                    vol.undo = None;
                    let text =
                        "the undo file takes no more: from here on the old contents of what is overwritten are lost";
                    self.log(Level::Error, Some(v), text);
                }
                None => {}
            }
        }
        self.undo_step(token);
    }
}
