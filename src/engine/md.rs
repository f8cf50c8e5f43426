//! Metadata writes of one volume, strictly one job after the other.
//!
//! Owns the queue of jobs; a job is a list of stages, a stage a set of operations that may run side by side. Takes in jobs
//! and the completions of their operations; gives out disk operations, and says which continuation of a job is due.
//! Orders that the stages keep (metadata.md 9.3): bitmap pages of evicted extents before the transaction that forgets
//! them; the data device flushed before a bitmap page with cleared bits, before the primary indicator is cleared and
//! before a superblock that calls a resynced disk good; everything plain before it is relied on flushed.
//! The superblock and bitmap pages are encoded when their stage starts; a page is encoded before the data flush that
//! covers its cleared bits, so that a bit cleared meanwhile is not in it.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::action::DiskOp;
use crate::engine::al::{FlushMark, Transaction};
use crate::engine::event::{CommandId, DiskFailure, LinkNr};
use crate::engine::fault::Fault;
use crate::engine::io_error::Failed;
use crate::engine::ops::Op;
use crate::engine::volume::LocalDisk;
use crate::meta::{self, Layout, MdFlags, Superblock};
use crate::units::{AlExtent, AlSlot, GenId, VolumeNr};

/// Bitmap pages in one stage: 1 MiB of writes, so that other jobs wait little.
const PAGES_PER_STAGE: usize = 256;

/// What follows when a job is on stable storage (or failed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MdDone {
    /// An activity-log transaction.
    Al(u32),
    /// A new generation is durable: held completions may go.
    Gate,
    /// A command waits for this.
    Command(CommandId),
    /// The source's sync identifier is durable: announce it.
    SyncUuid(GenId, Option<LinkNr>),
    /// The target's identifiers and "inconsistent" are durable: resync writes may begin.
    TargetStarted,
    /// The identifiers (or a target's "up to date") are durable: what was held for that goes to the peer.
    Release(Option<LinkNr>),
    /// A target's end is durable: as `Release`, and the helper is told.
    TargetDone(Option<LinkNr>),
    /// A new generation is durable: send it to the peer (and the state after it, if asked).
    SendUuids(Option<LinkNr>),
    /// The superblock says how the activity log is kept.
    AlUpdates,
    /// All bits are set and written: go on with the full sync.
    FullSync,
    /// Everything of a detaching disk is written.
    Detached,
    /// The metadata are at their new place, and nothing of them is left at the old one.
    Moved,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    FlushData,
    FlushMeta,
    /// Changed pages: of these extents, or all.
    Pages(Option<Vec<AlExtent>>),
    Writes(Vec<(u64, Bytes)>),
    /// One durable write.
    Durable(u64, Bytes),
    /// The transaction with this number.
    Transaction(u32, Bytes),
    /// From here on everything belongs to another place.
    Relocate(Box<Layout>),
    /// Everything but the ring is at the new place.
    Arrived,
    /// With the reasons for which changed pages were written before it.
    Superblock(Reasons),
    /// The superblock that says so is durable.
    Said(MdFlags),
}

/// Why a superblock relies on the bitmap: what stood for bits that are not on disk goes with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reasons {
    flags: MdFlags,
    grows: bool,
}

impl Reasons {
    fn of(disk: &LocalDisk) -> Self {
        let mut flags = MdFlags::NONE;
        for flag in [MdFlags::PRIMARY_IND, MdFlags::FULL_SYNC, MdFlags::AL_DISABLED] {
            if disk.may_say(flag) && !disk.flags_to_say().contains(flag) {
                flags = flags.with(flag);
            }
        }
        Self { flags, grows: disk.sb.effective_size > disk.sb_written_size }
    }

    /// A superblock that says that all blocks are out of sync relies on no page.
    fn none() -> Self {
        let flags = MdFlags::PRIMARY_IND.with(MdFlags::FULL_SYNC).with(MdFlags::AL_DISABLED);
        Self { flags, grows: true }
    }

    const fn covers(self, other: Self) -> bool {
        self.flags.contains(other.flags) && (self.grows || !other.grows)
    }
}

#[derive(Clone, Debug)]
struct Job {
    stages: VecDeque<Stage>,
    done: Vec<MdDone>,
    superblock_only: bool,
}

/// Jobs of a volume.
#[derive(Debug, Default)]
pub(crate) struct MdQueue {
    jobs: VecDeque<Job>,
    active: Option<Job>,
    outstanding: u32,
    failed: bool,
}

impl MdQueue {
    /// Whether nothing is queued or running.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_none() && self.jobs.is_empty()
    }
}

impl Engine {
    /// Queues a superblock write; joins one that has not started yet.
    pub(crate) fn md_superblock(&mut self, v: VolumeNr, done: Option<MdDone>) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.disk.is_none() {
            if let Some(done) = done {
                self.md_continue(v, &done, false);
            }
            return;
        }
        if let Some(job) = vol.md.jobs.back_mut().filter(|j| j.superblock_only) {
            job.done.extend(done);
            return;
        }
        self.md_push(
            v,
            Job {
                stages: [Stage::Superblock(Reasons::default())].into(),
                done: done.into_iter().collect(),
                superblock_only: true,
            },
        );
    }

    /// Queues the write-out of all changed bitmap pages, then (if anything must follow) a superblock.
    pub(crate) fn md_bitmap(&mut self, v: VolumeNr, superblock: bool, done: Option<MdDone>) {
        let mut stages = VecDeque::from([Stage::Pages(None)]);
        if superblock {
            stages.push_back(Stage::Superblock(Reasons::default()));
        }
        // A link that comes and goes must not pile up jobs: one that has not started yet writes what is there by then.
        let waits = self.volumes.get_mut(&v).and_then(|vol| vol.md.jobs.back_mut()).filter(|job| job.stages == stages);
        if let Some(job) = waits {
            return job.done.extend(done);
        }
        self.md_push(v, Job { stages, done: done.into_iter().collect(), superblock_only: false });
    }

    /// Queues a flush of the data device, if something may have been written since the last one.
    pub(crate) fn md_flush_data(&mut self, v: VolumeNr) {
        if self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()).is_some_and(LocalDisk::has_unflushed) {
            self.md_push(v, Job { stages: [Stage::FlushData].into(), done: Vec::new(), superblock_only: false });
        }
    }

    /// Queues an activity-log transaction with what must precede it.
    pub(crate) fn md_transaction(&mut self, v: VolumeNr, transaction: &Transaction) {
        let Some(disk) = self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()) else { return };
        let block = meta::AlTransaction {
            tr_number: transaction.tr_number,
            updates: transaction.updates.clone(),
            context_size: transaction.context_size,
            context_start: AlSlot(transaction.context_start),
            context: transaction
                .context
                .iter()
                .map(|e| (*e != crate::engine::al::AL_FREE).then_some(AlExtent(*e)))
                .collect(),
        }
        .encode();
        let mut stages = VecDeque::new();
        if !transaction.evicted.is_empty() && !self.faulty(Fault::EvictionWithoutPages) {
            stages.push_back(Stage::Pages(Some(transaction.evicted.clone())));
        }
        if transaction.evicts_unflushed && !disk.shared_device && !self.faulty(Fault::EvictionWithoutFlush) {
            stages.push_back(Stage::FlushData);
        }
        if !transaction.evicted.is_empty() {
            stages.push_back(Stage::FlushMeta);
        }
        let block = Bytes::copy_from_slice(&block);
        stages.push_back(Stage::Transaction(transaction.tr_number, block));
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.counters.al_writes += 1;
        }
        let early = self.faulty(Fault::WriteBeforeAl);
        let done = if early { Vec::new() } else { vec![MdDone::Al(transaction.tr_number)] };
        self.md_push(v, Job { stages, done, superblock_only: false });
        if early {
            self.on_al_written(v, transaction.tr_number, true);
        }
    }

    /// Queues the move of the metadata to where `layout` says. The superblock at the new place is the turning point: before
    /// it everything is untouched at the old place, from it on a crash finds the new one, which says that every block is
    /// out of sync until bitmap and ring are there as well. The old superblock goes before anything else is written.
    pub(crate) fn md_move(&mut self, v: VolumeNr, layout: Layout) {
        let Some(disk) = self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()) else { return };
        let old = disk.layout.superblock_byte();
        let wipe = Stage::Durable(old, Bytes::from_static(&[0; meta::layout::BLOCK_BYTES]));
        let (start, len) = layout.area();
        let mut stages = VecDeque::from([Stage::Relocate(Box::new(layout)), Stage::Superblock(Reasons::none())]);
        if self.faulty(Fault::OldPlaceGivenUpEarly) {
            stages.push_front(wipe);
        } else if !(start..start + len).contains(&old) {
            stages.push_back(wipe);
        }
        stages.extend([Stage::Pages(None), Stage::Arrived, Stage::Superblock(Reasons::default())]);
        self.md_push(v, Job { stages, done: vec![MdDone::Moved], superblock_only: false });
    }

    fn md_push(&mut self, v: VolumeNr, job: Job) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.md.jobs.push_back(job);
            self.md_run(v);
        }
    }

    /// Starts stages until one has to wait.
    fn md_run(&mut self, v: VolumeNr) {
        loop {
            let Some(vol) = self.volumes.get_mut(&v) else { return };
            if vol.md.outstanding > 0 {
                return;
            }
            if vol.md.active.is_none() {
                let Some(job) = vol.md.jobs.pop_front() else { return };
                vol.md.active = Some(job);
                // Nothing is written to a disk that was given up before it has come back.
                vol.md.failed = vol.disk.is_none() || vol.stuck > 0;
            }
            let failed = vol.md.failed;
            let stage = vol.md.active.as_mut().and_then(|job| if failed { None } else { job.stages.pop_front() });
            let Some(stage) = stage else {
                let done = vol.md.active.take().map_or_else(Vec::new, |job| job.done);
                for done in done {
                    self.md_continue(v, &done, !failed);
                }
                continue;
            };
            self.md_stage(v, stage);
        }
    }

    fn md_stage(&mut self, v: VolumeNr, stage: Stage) {
        let (al_not_durable, no_flush_at_demotion, no_flush_at_end, no_flush_for_pages, not_durable) = (
            self.faulty(Fault::AlNotDurable),
            self.faulty(Fault::PrimaryIndWithoutFlush),
            self.faulty(Fault::GoodWithoutFlush),
            self.faulty(Fault::ClearedPageWithoutFlush),
            self.faulty(Fault::SuperblockNotDurable),
        );
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let flushes = vol.opts.md_flushes;
        let Some(disk) = vol.disk.as_mut() else { return };
        // What an older write of the superblock promised about the data must still hold when a newer one is read after a
        // crash.
        let new = disk.flags_to_say();
        let gains = |f| new.contains(f) && !disk.surely_says(f);
        let loses = |f| disk.may_say(f) && !new.contains(f);
        let becomes_good = gains(MdFlags::CONSISTENT) || gains(MdFlags::WAS_UP_TO_DATE);
        match stage {
            Stage::FlushData if no_flush_at_end && becomes_good => {}
            Stage::FlushData => {
                let mark = disk.al.data_flush_started();
                disk.unflushed = false;
                self.md_op(v, DiskOp::Flush, Some(mark));
            }
            Stage::FlushMeta if !flushes => {}
            Stage::FlushMeta => {
                let mark = disk.shared_device.then(|| {
                    disk.unflushed = false;
                    disk.al.data_flush_started()
                });
                self.md_op(v, DiskOp::MetaFlush, mark);
            }
            Stage::Pages(which) => {
                let (pages, cleared, more) = disk.take_changed_pages(which.as_deref(), PAGES_PER_STAGE);
                let Some(job) = vol.md.active.as_mut() else { return };
                if more {
                    job.stages.push_front(Stage::Pages(which));
                }
                if pages.is_empty() {
                    return;
                }
                vol.counters.bm_writes += pages.len() as u64;
                job.stages.push_front(Stage::Writes(pages));
                if cleared && !no_flush_for_pages {
                    job.stages.push_front(Stage::FlushData);
                }
            }
            Stage::Writes(writes) => {
                for (offset, data) in writes {
                    self.md_op(v, DiskOp::MetaWrite { offset, data, fua: false }, None);
                }
            }
            Stage::Durable(offset, data) => {
                self.md_op(v, DiskOp::MetaWrite { offset, data, fua: flushes }, None);
            }
            Stage::Transaction(tr_number, data) => {
                let offset = disk.layout.al_block_byte(tr_number);
                let fua = flushes && !al_not_durable;
                self.md_op(v, DiskOp::MetaWrite { offset, data, fua }, None);
            }
            Stage::Relocate(layout) => {
                disk.sb.set_layout(&layout);
                disk.al.move_ring(layout.al.blocks());
                disk.sb.flags = disk.sb.flags.with(MdFlags::AL_DISABLED);
                disk.layout = *layout;
                disk.bitmap.mark_all_changed();
                disk.moving = true;
            }
            Stage::Arrived => disk.moving = false,
            Stage::Said(flags) => {
                disk.sb_durable_flags = flags;
                self.wake_peer_requests(v);
            }
            // A job that was queued earlier must not say what relies on pages that a later one is to write.
            Stage::Superblock(done) if disk.bitmap.changed_pages() > 0 && !done.covers(Reasons::of(disk)) => {
                let reasons = Reasons::of(disk);
                let flags = done.flags.with(reasons.flags);
                let Some(job) = vol.md.active.as_mut() else { return };
                job.stages.push_front(Stage::Superblock(Reasons { flags, grows: done.grows || reasons.grows }));
                job.stages.push_front(Stage::Pages(None));
            }
            Stage::Superblock(_) => {
                let promises = (loses(MdFlags::PRIMARY_IND) && !no_flush_at_demotion)
                    || loses(MdFlags::CRASHED_PRIMARY)
                    || (becomes_good && !no_flush_at_end);
                let need_data = promises && disk.has_unflushed() && !disk.shared_device;
                disk.sb_dirty = false;
                disk.sb_written_flags = new;
                disk.sb_written_size = disk.sb.effective_size;
                let sb = Superblock { flags: new, ..disk.sb.clone() };
                let write = (disk.layout.superblock_byte(), Bytes::copy_from_slice(&sb.encode()));
                let Some(job) = vol.md.active.as_mut() else { return };
                job.stages.push_front(Stage::Said(new));
                job.stages.push_front(if not_durable {
                    Stage::Writes(vec![write])
                } else {
                    Stage::Durable(write.0, write.1)
                });
                job.stages.push_front(Stage::FlushMeta);
                if need_data {
                    job.stages.push_front(Stage::FlushData);
                }
            }
        }
    }

    fn md_op(&mut self, v: VolumeNr, io: DiskOp, mark: Option<FlushMark>) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.md.outstanding += 1;
        }
        self.submit(v, io, Op::Md { mark });
    }

    /// One operation of the running stage ended.
    pub(crate) fn on_md_op(&mut self, v: VolumeNr, mark: Option<FlushMark>, result: Result<(), DiskFailure>) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.md.outstanding = vol.md.outstanding.saturating_sub(1);
        match result {
            Ok(()) => {
                if let (Some(mark), Some(disk)) = (mark, vol.disk.as_mut()) {
                    disk.al.note_data_flush(mark);
                }
            }
            Err(_) if self.faulty(Fault::MetaErrorIgnored) => {}
            Err(failure) => {
                let Some(vol) = self.volumes.get_mut(&v) else { return };
                vol.md.failed = true;
                // A page of this job may not be there, failed or never begun: no later superblock may rely on it, that of
                // the detach neither.
                if let Some(disk) = vol.disk.as_mut() {
                    disk.bitmap.mark_all_changed();
                }
                if mark.is_some() && !failure.unsupported {
                    self.data_flush_failed(v);
                }
                self.log_error(v, format!("meta data update failed: {}", failure.text));
                self.on_io_error(v, Failed::Meta);
            }
        }
        self.md_run(v);
    }
}
