//! One volume: its state, its disk, what is known of the peer's side, and everything in flight on it.
//!
//! Owns data only; the decisions are in the modules beside this one. Invariants: `disk` is there exactly while the disk
//! state is above Diskless or a detach is not finished; `active` holds every started application write until its local and
//! its network part are done; `peer_active` every write that is to reach the disk on the peer's behalf.

use std::collections::{BTreeMap, VecDeque};

use crate::engine::al::ActivityLog;
use crate::engine::dirty::Bitmap;
use crate::engine::event::{Geometry, LinkNr};
use crate::engine::gi::{GenIds, PeerUuids};
use crate::engine::md::MdQueue;
use crate::engine::options::DiskOptions;
use crate::engine::ranges::RangeMap;
use crate::engine::resync::Resync;
use crate::engine::state::VolumeState;
use crate::meta::{DeviceSizes, Layout, MdFlags, Superblock};
use crate::units::{GenId, Sectors, SeqNr, VolumeNr};
use crate::wire::state::DiskState;

/// An attached disk.
#[derive(Debug)]
pub(crate) struct LocalDisk {
    /// The superblock as it is to be; written by the metadata queue.
    pub sb: Superblock,
    /// Flags as last written, to know what a write changes.
    pub sb_written_flags: MdFlags,
    /// Flags that are on stable storage.
    pub sb_durable_flags: MdFlags,
    /// Agreed size as last written.
    pub sb_written_size: Sectors,
    /// Where everything is.
    pub layout: Layout,
    /// Out-of-sync bits.
    pub bitmap: Bitmap,
    /// The activity log.
    pub al: ActivityLog,
    /// Largest usable data size.
    pub capacity: Sectors,
    /// Sizes of the devices as last looked at; the layout may be that of smaller ones.
    pub sizes: DeviceSizes,
    /// Bitmap and activity log are not all at their place yet: the superblock says that every block counts as out of sync.
    pub moving: bool,
    /// What the device can do.
    pub geometry: Geometry,
    /// Data and metadata share a device.
    pub shared_device: bool,
    /// Data writes completed since the last data flush began.
    pub unflushed: bool,
    /// Data flushes under way, which cover nothing before they end.
    pub flushing: u32,
    /// For messages.
    pub path: String,
    /// The superblock must be written.
    pub sb_dirty: bool,
}

impl LocalDisk {
    /// Whether the superblock on the medium may have this flag: a write of it that failed may have happened or not.
    pub(crate) const fn may_say(&self, flag: MdFlags) -> bool {
        self.sb_written_flags.contains(flag) || self.sb_durable_flags.contains(flag)
    }

    /// Whether the superblock on the medium has this flag, whatever became of a write that failed.
    pub(crate) const fn surely_says(&self, flag: MdFlags) -> bool {
        self.sb_written_flags.contains(flag) && self.sb_durable_flags.contains(flag)
    }

    /// What a superblock that is written now says.
    pub(crate) fn flags_to_say(&self) -> MdFlags {
        let flags = self.sb.flags;
        if self.moving { flags.with(MdFlags::FULL_SYNC).with(MdFlags::AL_DISABLED) } else { flags }
    }

    /// Whether something was written that no finished flush of the data device covers.
    pub(crate) const fn has_unflushed(&self) -> bool {
        self.unflushed || self.flushing > 0
    }

    /// The generation identifiers of the superblock.
    pub(crate) fn ids(&self) -> GenIds {
        GenIds { current: self.sb.current, bitmap: self.sb.bitmap, history: self.sb.history }
    }

    /// Stores identifiers and marks the superblock for writing.
    pub(crate) fn set_ids(&mut self, ids: GenIds) {
        self.sb.current = ids.current;
        self.sb.bitmap = ids.bitmap;
        self.sb.history = ids.history;
        self.sb_dirty = true;
    }
}

/// Counters of `/proc/drbd` and `status --statistics`. Byte counters are in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent on the data socket, sectors.
    pub sent: u64,
    /// Received on the data socket, sectors.
    pub received: u64,
    /// Written to the local disk, sectors.
    pub disk_written: u64,
    /// Read from the local disk, sectors.
    pub disk_read: u64,
    /// Activity-log transactions written.
    pub al_writes: u64,
    /// Bitmap pages written.
    pub bm_writes: u64,
    /// Local operations in flight.
    pub local: u64,
    /// Packets sent that expect an answer.
    pub pending: u64,
    /// Packets received and not answered.
    pub unacked: u64,
    /// Application requests accepted and not completed.
    pub application: u64,
}

/// What the peer said about its side of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerSide {
    /// Identifiers, if any were received on this connection.
    pub uuids: Option<PeerUuids>,
    /// Size of the peer's disk, 0 when unknown or diskless.
    pub disk_size: Sectors,
    /// `max_bio_size` from `P_SIZES`, bytes.
    pub max_bio_bytes: u32,
    /// The handshake of this connection is done: what the peer writes is meant for these data.
    pub decided: bool,
}

/// Resync replies of one range that are not acknowledged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unacked {
    /// How many.
    pub count: u32,
    /// Blocks that were marked since: the acknowledgement does not cover their newest data.
    pub stale: super::blocks::BlockSet,
}

/// A volume.
#[derive(Debug)]
pub(crate) struct Volume {
    pub nr: VolumeNr,
    pub state: VolumeState,
    pub opts: DiskOptions,
    pub disk: Option<LocalDisk>,
    /// Exported size; 0 when none is known.
    pub size: Sectors,
    /// The data generation that was last shown to applications.
    pub exposed: GenId,
    /// This Primary lost its disk and goes on with the peer's: the old disk misses writes, whatever its identifiers say
    /// before the peer has made a new generation.
    pub behind: bool,
    pub peer: PeerSide,
    pub open_count: u32,
    /// Started application writes.
    pub active: RangeMap,
    /// Application writes that wait for an overlapping range, oldest first.
    pub blocked: VecDeque<u64>,
    /// Application requests that wait for admission, oldest first.
    pub waiting: VecDeque<u64>,
    /// Writes that wait for a state in which they may be submitted.
    pub held_back: Vec<u64>,
    /// Writes for the peer that were accepted and are not on disk.
    pub peer_active: RangeMap,
    /// Peer requests that wait for an overlapping range, oldest first.
    pub peer_waiting: VecDeque<u64>,
    /// Ranges that resync holds against application writes: requests in flight (target), reads (source).
    pub resync_ranges: RangeMap,
    pub resync: Option<Resync>,
    /// Resync replies sent and not acknowledged (source), by first sector and bytes.
    pub resync_unacked: BTreeMap<(u64, u32), Unacked>,
    /// Those of a resync that was given up on this link: an acknowledgement may still come while the next one runs.
    pub resync_abandoned: BTreeMap<(u64, u32), u32>,
    /// Questions of a resync that was given up may yet be refused, on the meta socket: nothing is asked before.
    pub refusals_due: bool,
    /// A resync from here broke off when the target may have held this generation (see [`Volume::target_may_be_done`]), and
    /// the bitmap identifier says the contrary. The first write without the peer begins a new one.
    pub target_maybe_done: bool,
    /// The target, which may already hold this generation, missed a write while the resync ran.
    pub target_missed_write: bool,
    /// The disk was attached with the identifiers of a resync from here whose end this node has not seen, or it was
    /// Outdated and is good again only because the peer has no disk at hand; and the peer has not been asked since: a
    /// promotion without it, or of a peer without that disk, begins a new generation.
    pub target_unknown: bool,
    /// Rule 34 found that the target of the last resync holds this generation; the bitmap identifier goes to the history
    /// with the next resync, or with the next generation.
    pub missed_end: bool,
    pub seq: SeqNr,
    /// Highest sequence number of the peer, on either socket.
    pub peer_seq: SeqNr,
    /// Writes of the peer that were refused for own ones and are not forgotten yet.
    pub refused: Vec<u64>,
    pub counters: Counters,
    pub crashed_primary: bool,
    /// The peer is being promoted with force: the next state packet triggers a handshake.
    pub consider_resync: bool,
    /// A new current identifier is due but I/O is suspended.
    pub new_uuid_pending: bool,
    pub discard_my_data: bool,
    /// Disk and peer-disk states remembered at attach for the handshake.
    pub attach_disk: DiskState,
    pub attach_pdsk: DiskState,
    /// Bits announced in the last `P_UUIDS`.
    pub bits_sent: u64,
    pub degraded_wait: bool,
    pub md: MdQueue,
    /// While above 0, write completions are held: a new generation must be durable first.
    pub gate: u32,
    /// The new generation is for a write that the peer, though it is good, does not have.
    pub gate_peer_lacks: bool,
    pub held: Vec<(crate::engine::event::RequestId, crate::engine::action::ClientResult)>,
    pub bitmap_rx: Option<crate::engine::bitmap_xfer::Incoming>,
    /// The bitmap is to be sent, as soon as this epoch is retired.
    pub send_bitmap: bool,
    pub bitmap_after: Option<u32>,
    /// The target's answer came before the own bitmap went out (see `bitmap_xfer`): the resync starts behind that.
    pub bitmap_answered: bool,
    /// Blocks that failed here while bitmaps were exchanged: the target may not know that they are marked.
    pub failed_early: super::blocks::BlockSet,
    /// The bits say which blocks of an Inconsistent disk are old: it was good, or has seen the source's bitmap since it was
    /// attached. Before, a block without a bit may be old as well.
    pub bits_known: bool,
    /// The helper that the next resync waits for.
    pub resync_helper: Option<crate::engine::event::HandlerRun>,
    /// The peer's generation when writes froze, until they were sent again.
    pub frozen_from: Option<GenId>,
    /// Sectors for data that the peer was told of last.
    pub told_capacity: Sectors,
    /// Position of an online verify that the peer drives, in sectors, and blocks left.
    pub verify: Option<crate::engine::verify::VerifyTarget>,
    /// A detach was forced: by an order, or because the disk does not answer.
    pub forced_detach: bool,
    /// How full the link to the peer is.
    pub congestion: super::congestion::Congestion,
    /// Operations that were given up and have not ended.
    pub stuck: u64,
    /// The disk's timer runs.
    pub disk_timer: bool,
    /// The operation that was overdue at the last look.
    pub disk_suspect: Option<u64>,
    /// The helper `local-io-error` is to run or runs, and what is to be sent on this link waits for its end.
    pub error_helper: Option<Option<LinkNr>>,
    /// `CloseDisk` was ordered.
    pub closing: bool,
    /// `P_SYNC_UUID` that came before this node was ready for it.
    pub early_sync_uuid: Option<GenId>,
    /// The lazy bitmap timer runs.
    pub lazy_timer: bool,
    /// The resync to this node replaces data that diverged: they are saved.
    pub undo: Option<Box<crate::engine::undo::Undo>>,
    /// Growing and shrinking.
    pub resize: crate::engine::resize::Resizing,
    /// A promotion whose superblock is not durable yet: no request is admitted.
    pub promoting: Option<crate::engine::event::CommandId>,
}

impl Volume {
    /// Whether the target of a resync from here may call itself UpToDate under this generation: every block that is left
    /// was sent, and only its acknowledgement is missing; or it had this generation before, and did not begin yet.
    pub(crate) fn target_may_be_done(&self) -> bool {
        let source = self.resync.as_ref().filter(|resync| resync.source);
        let under_way: u64 = self.resync_unacked.keys().map(|(_, bytes)| u64::from(*bytes).div_ceil(4096)).sum();
        let from_current = self.disk.as_ref().is_some_and(|disk| disk.ids().target_begins_from_current());
        let may = |resync: &Resync| self.out_of_sync_bits() <= under_way || (from_current && !resync.asked);
        self.target_maybe_done || self.missed_end || source.is_some_and(may)
    }

    /// Whether a Primary without its peer has to begin a new generation: the peer has the current one, or may have it.
    pub(crate) fn lonely_writes_need_generation(&self) -> bool {
        let unmarked = self.disk.as_ref().is_some_and(|disk| disk.sb.bitmap.0 == 0);
        unmarked || self.target_unknown || self.target_may_be_done()
    }

    pub(crate) fn new(nr: VolumeNr, opts: DiskOptions) -> Self {
        Self {
            nr,
            state: VolumeState::default(),
            opts,
            disk: None,
            size: Sectors(0),
            exposed: GenId::UNSET,
            behind: false,
            peer: PeerSide::default(),
            open_count: 0,
            active: RangeMap::default(),
            blocked: VecDeque::new(),
            waiting: VecDeque::new(),
            peer_active: RangeMap::default(),
            held_back: Vec::new(),
            peer_waiting: VecDeque::new(),
            resync_ranges: RangeMap::default(),
            resync: None,
            resync_unacked: BTreeMap::new(),
            resync_abandoned: BTreeMap::new(),
            refusals_due: false,
            target_maybe_done: false,
            target_missed_write: false,
            target_unknown: false,
            missed_end: false,
            seq: SeqNr(0),
            peer_seq: SeqNr(0),
            refused: Vec::new(),
            counters: Counters::default(),
            crashed_primary: false,
            consider_resync: false,
            new_uuid_pending: false,
            discard_my_data: false,
            attach_disk: DiskState::Diskless,
            attach_pdsk: DiskState::DUnknown,
            bits_sent: 0,
            degraded_wait: false,
            md: MdQueue::default(),
            gate: 0,
            gate_peer_lacks: false,
            held: Vec::new(),
            bitmap_rx: None,
            send_bitmap: false,
            bitmap_after: None,
            bitmap_answered: false,
            failed_early: super::blocks::BlockSet::default(),
            bits_known: false,
            resync_helper: None,
            frozen_from: None,
            told_capacity: Sectors(0),
            verify: None,
            forced_detach: false,
            congestion: super::congestion::Congestion::default(),
            stuck: 0,
            disk_timer: false,
            disk_suspect: None,
            error_helper: None,
            closing: false,
            early_sync_uuid: None,
            lazy_timer: false,
            undo: None,
            resize: crate::engine::resize::Resizing::default(),
            promoting: None,
        }
    }

    /// The next packet sequence number (wire.md 7.2: the first is 1).
    pub(crate) const fn next_seq(&mut self) -> SeqNr {
        self.seq = SeqNr(self.seq.0.wrapping_add(1));
        self.seq
    }

    /// Whether local I/O may be started (behaviour.md 1.4: disk at least Inconsistent).
    pub(crate) fn disk_usable(&self) -> bool {
        self.disk.is_some() && self.state.disk >= DiskState::Inconsistent
    }

    /// The disk, if local I/O may be started.
    pub(crate) fn usable(&mut self) -> Option<&mut LocalDisk> {
        if self.state.disk >= DiskState::Inconsistent { self.disk.as_mut() } else { None }
    }

    /// Set bits, 0 without a disk.
    pub(crate) fn out_of_sync_bits(&self) -> u64 {
        self.disk.as_ref().map_or(0, |d| d.bitmap.count())
    }
}
