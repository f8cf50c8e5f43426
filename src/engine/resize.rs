//! Another size while the disk is attached: `resize` here, and what follows from it on the peer (behaviour.md 11,
//! metadata.md 12).
//!
//! Owns the order of the steps: requests beyond a smaller end are done before the bitmap ends there; metadata that have to
//! move are at their new place, durably, before the place they leave belongs to the data; the bits of a new part are on
//! disk before the superblock that has it (`md`). Takes in device sizes that the driver has looked at; gives out metadata
//! jobs, `P_SIZES`, and the resync of what is new. Unlike 8.4 requests go on meanwhile, and a peer that has to move
//! metadata answers twice: with what it has room for now, and again when they have moved.

use crate::engine::Engine;
use crate::engine::action::{Action, CommandError, Level, Notice};
use crate::engine::admin::{Job, Pending, Wait, err};
use crate::engine::al::AlLayout;
use crate::engine::fault::Fault;
use crate::engine::md::MdDone;
use crate::engine::options::ResizeOptions;
use crate::engine::peer_state::new_size;
use crate::engine::state::VolumeState;
use crate::engine::volume::LocalDisk;
use crate::meta::{AlStripes, DeviceSizes, Layout, LayoutError};
use crate::units::{Sectors, VolumeNr};
use crate::wire::sizes::DdsFlags;
use crate::wire::state::{ConnState, DiskState, Role};

/// Largest ring that `resize` makes, in KiB. DRBD 8.4.
const AL_KIB_MAX: u64 = 16 << 20;
/// Smallest ring, in KiB. DRBD 8.4.
const AL_KIB_MIN: u64 = 32;

/// How far a `resize` has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResizeStep {
    /// Nothing is done.
    Check,
    /// Nothing new reaches beyond the new end.
    Drain,
    /// The metadata are on their way, or are where they belong.
    Move,
}

/// What is going on with a volume's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resizing {
    /// The metadata move.
    moving: bool,
    /// This node has grown by an order: the peer's sizes begin the resync of the new part.
    pub(crate) pending: bool,
    /// The peer wants this node to grow: when the metadata have moved, with these flags.
    follow: Option<DdsFlags>,
    /// The new part is resynced when both disks are known to be good.
    pub(crate) after_negotiation: bool,
}

/// What a `resize` comes to.
struct Plan {
    layout: Layout,
    size: Sectors,
    configured: Sectors,
    too_big: bool,
}

fn detailed(code: u16, detail: String) -> CommandError {
    CommandError::Code { code, detail }
}

/// Whether anything but the room for data differs.
fn moves(old: &Layout, new: &Layout) -> bool {
    let place = |l: &Layout| (l.md_offset, l.al, l.al_offset, l.bm_offset);
    place(old) != place(new)
}

impl LocalDisk {
    fn layout_with(&self, al: AlStripes) -> Result<Layout, LayoutError> {
        Layout::new(self.layout.kind, al, self.sizes)
    }

    /// Takes over a layout that only has more room.
    fn adopt(&mut self, layout: Layout) {
        self.sb.set_layout(&layout);
        self.sb_dirty = true;
        self.capacity = layout.data_size;
        self.layout = layout;
    }
}

impl Engine {
    /// The driver has looked at the devices.
    pub(crate) fn on_disk_size(&mut self, v: VolumeNr, sizes: DeviceSizes) {
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.sizes = sizes;
        }
    }

    /// What a `resize` would do now, or why not (behaviour.md 11.4, in that order).
    fn plan_resize(&self, v: VolumeNr, opts: &ResizeOptions) -> Result<Plan, CommandError> {
        let Some(vol) = self.volumes.get(&v) else { return Err(err(127)) };
        let state = vol.state;
        if state.conn > ConnState::Connected {
            return Err(err(130));
        }
        if state.role == Role::Secondary && state.peer == Role::Secondary {
            return Err(err(131));
        }
        let Some(disk) = vol.disk.as_ref().filter(|_| state.disk >= DiskState::Inconsistent) else {
            return Err(err(138));
        };
        if opts.assume_clean && self.conn.version < 93 {
            return Err(err(153));
        }
        let al = self.wanted_ring(disk, opts, state.conn)?;
        let other_ring = al != disk.layout.al;
        let layout = disk.layout_with(al).map_err(|e| detailed(if other_ring { 169 } else { 111 }, e.to_string()))?;
        let agreed = disk.sb.effective_size;
        let peer = if state.conn >= ConnState::Connected {
            vol.peer.disk_size
        } else if opts.assume_peer_has_space {
            layout.data_size
        } else {
            Sectors(0)
        };
        let room = new_size(layout.data_size, peer, agreed, Sectors(0));
        let too_big = opts.size > room;
        let configured = if too_big { Sectors(0) } else { opts.size };
        let size = if configured.0 > 0 { configured } else { room };
        if size < agreed {
            if other_ring && opts.size.0 == 0 {
                let text = format!("Implicit shrink not allowed. Use --size={size}s for explicit shrink.");
                return Err(detailed(170, text));
            }
            if too_big {
                return Err(err(169));
            }
            if configured.0 == 0 {
                return Err(detailed(
                    170,
                    format!("{} has room for {size} sectors only, {agreed} are in use", disk.path),
                ));
            }
        }
        Ok(Plan { layout, size, configured, too_big })
    }

    fn wanted_ring(&self, disk: &LocalDisk, opts: &ResizeOptions, conn: ConnState) -> Result<AlStripes, CommandError> {
        let now = disk.layout.al;
        let is = (now.stripes(), now.stripe_size_4k().saturating_mul(4));
        let (stripes, kib) = (opts.al_stripes.unwrap_or(is.0), opts.al_stripe_kib.unwrap_or(is.1));
        if (stripes, kib) == is {
            return Ok(now);
        }
        let total = u64::from(stripes) * u64::from(kib);
        if total > AL_KIB_MAX {
            return Err(err(167));
        }
        if total < AL_KIB_MIN {
            return Err(err(168));
        }
        if conn != ConnState::Connected && !opts.assume_peer_has_space {
            return Err(err(166));
        }
        let al = AlStripes::from_disk(stripes, kib / 4).map_err(|error| detailed(168, error.to_string()))?;
        let slots = disk.al.layout().slots();
        if AlLayout::new(u32::from(slots), al.blocks()).is_none_or(|layout| layout.slots() < slots) {
            return Err(detailed(
                168,
                format!("the {slots} extents in use do not fit; attach with fewer al-extents first"),
            ));
        }
        Ok(al)
    }

    pub(crate) fn run_resize(&mut self, mut pending: Pending) {
        let (id, v) = (pending.id, pending.volume);
        let Job::Resize { opts, step } = &mut pending.job else { return };
        let opts = *opts;
        if self.volumes.get(&v).is_some_and(|vol| vol.resize.moving) {
            return self.wait(pending, Wait::Change);
        }
        let plan = match self.plan_resize(v, &opts) {
            Ok(plan) => plan,
            Err(error) => {
                self.keep_size(v);
                return self.command_done(id, Err(error));
            }
        };
        if *step == ResizeStep::Check {
            *step = ResizeStep::Drain;
            if plan.too_big {
                let text = format!("Requested disk size is too big ({} > {})", opts.size.0 / 2, plan.size.0 / 2);
                self.log(Level::Error, Some(v), text);
            }
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.opts.size = plan.configured;
                if plan.size < vol.size {
                    vol.size = plan.size;
                    self.out.push(Action::Notice(Notice::Size { volume: v, size: plan.size }));
                }
            }
        }
        if *step == ResizeStep::Drain {
            if self.reaches_beyond(v, plan.size) {
                return self.wait(pending, Wait::Change);
            }
            let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return };
            let moves = moves(&disk.layout, &plan.layout);
            if plan.size < disk.sb.effective_size {
                self.set_size(v, plan.size, true);
            }
            *step = ResizeStep::Move;
            if moves {
                self.start_move(v, plan.layout);
                return self.wait(pending, Wait::Change);
            }
            if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut())
                && disk.layout != plan.layout
            {
                disk.adopt(plan.layout);
            }
        }
        self.finish_resize(&pending, &plan, &opts);
    }

    /// A smaller size that did not come about is taken back.
    fn keep_size(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(agreed) = vol.disk.as_ref().map(|disk| disk.sb.effective_size) else { return };
        if vol.size < agreed && vol.state.disk >= DiskState::Inconsistent {
            vol.size = agreed;
            self.out.push(Action::Notice(Notice::Size { volume: v, size: agreed }));
        }
    }

    /// Everything is where it belongs: takes over the size and tells the peer.
    fn finish_resize(&mut self, pending: &Pending, plan: &Plan, opts: &ResizeOptions) {
        let (id, v) = (pending.id, pending.volume);
        let Some(vol) = self.volumes.get(&v) else { return };
        if let Some(disk) = vol.disk.as_ref().filter(|disk| moves(&disk.layout, &plan.layout)) {
            // The metadata could not be moved, or the device has grown once more.
            let text = format!("the metadata of {} could not be moved", disk.path);
            return self.command_done(id, Err(detailed(118, text)));
        }
        let (connected, grew) = (vol.state.conn == ConnState::Connected, plan.size > vol.size && vol.size.0 > 0);
        if plan.size != vol.size {
            self.set_size(v, plan.size, !opts.assume_clean);
        }
        if connected {
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.resize.pending |= grew;
            }
            let flags = DdsFlags::NONE
                .with_if(DdsFlags::FORCED, opts.assume_peer_has_space)
                .with_if(DdsFlags::NO_RESYNC, opts.assume_clean);
            self.send_uuids_durably(v);
            self.send_sizes_with(v, true, flags);
        }
        self.md_bitmap(v, true, Some(MdDone::Command(id)));
        self.wait_md(id, v);
    }

    /// Whether something that is under way lies beyond this size.
    fn reaches_beyond(&self, v: VolumeNr, size: Sectors) -> bool {
        self.requests.iter().any(|(_, r)| r.volume == v && r.range.end().0 > size.0)
            || self.peer_requests.iter().any(|(_, r)| r.volume == v && r.range.end().0 > size.0)
    }

    fn start_move(&mut self, v: VolumeNr, layout: Layout) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(disk) = vol.disk.as_mut() else { return };
        disk.capacity = disk.capacity.min(layout.data_size);
        vol.resize.moving = true;
        self.log(Level::Info, Some(v), "Writing the whole bitmap, md moved");
        self.md_move(v, layout);
    }

    /// The metadata are at their new place, or the disk is failing.
    pub(crate) fn on_moved(&mut self, v: VolumeNr, ok: bool) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.resize.moving = false;
        self.recheck_commands = true;
        let Some(disk) = vol.disk.as_mut().filter(|_| ok) else { return };
        disk.capacity = disk.layout.data_size;
        let device = disk.sizes.meta;
        self.out.push(Action::Notice(Notice::MetaMoved { volume: v, device }));
        self.pump_al(v);
        self.grow_if_due(v);
    }

    /// Sizes came from a peer that is connected. `grew`: this node has grown by them; `ordered`: the peer has grown or wants it,
    /// and this node follows as far as it can, now or when its metadata have moved.
    pub(crate) fn follow_resize(&mut self, v: VolumeNr, grew: bool, ordered: bool, flags: DdsFlags) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let conn = vol.state.conn;
        if std::mem::take(&mut vol.resize.pending) || (grew && conn == ConnState::Connected) {
            self.after_growth(v, flags);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(disk) = vol.disk.as_mut().filter(|_| vol.state.disk >= DiskState::Inconsistent) else { return };
        let Ok(layout) = disk.layout_with(disk.layout.al) else { return };
        if !ordered || vol.resize.moving || layout.data_size <= disk.capacity {
            return;
        }
        vol.resize.follow = Some(flags);
        if moves(&disk.layout, &layout) {
            self.start_move(v, layout);
        } else {
            disk.adopt(layout);
            self.grow_if_due(v);
        }
    }

    /// Grows as the peer wants. Where a resync began meanwhile the next `resize` takes the room: the peer, told of it now,
    /// would grow alone, in the middle of the bitmaps; and at the end of that resync it may not know yet that it is over.
    fn grow_if_due(&mut self, v: VolumeNr) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let Some(flags) = vol.resize.follow.take() else { return };
        if vol.state.conn > ConnState::Connected {
            let text = "there is room to grow; `drbdctl resize` takes it when the resync is over";
            return self.log(Level::Warn, Some(v), text);
        }
        if vol.state.conn < ConnState::Connected {
            return;
        }
        let Some(disk) = vol.disk.as_ref().filter(|_| vol.state.disk >= DiskState::Inconsistent) else { return };
        let size = new_size(disk.capacity, vol.peer.disk_size, disk.sb.effective_size, vol.opts.size);
        let grows = size > vol.size;
        if grows {
            self.set_size(v, size, !flags.has(DdsFlags::NO_RESYNC));
        }
        self.send_sizes_with(v, false, flags);
        if grows {
            self.after_growth(v, flags);
        }
    }

    /// What was agreed with a peer that is gone does not hold with the next one.
    pub(crate) fn resize_link_lost(&mut self, v: VolumeNr, old: &VolumeState, new: &VolumeState) {
        if old.conn >= ConnState::Connected
            && new.conn < ConnState::Connected
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.resize = Resizing { moving: vol.resize.moving, ..Resizing::default() };
        }
    }

    fn after_growth(&mut self, v: VolumeNr, flags: DdsFlags) {
        let state = self.state(v);
        if state.disk.min(state.pdsk) < DiskState::Inconsistent {
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.resize.after_negotiation = true;
            }
        } else if flags.has(DdsFlags::NO_RESYNC) {
            self.log(Level::Info, Some(v), "Resync of new storage suppressed with --assume-clean");
        } else {
            self.resync_after_grow(v);
        }
    }

    /// Both disks are known to be good by now.
    pub(crate) fn resync_after_negotiation(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.resize.after_negotiation = false;
        }
        self.resync_after_grow(v);
    }

    fn resync_after_grow(&mut self, v: VolumeNr) {
        let state = self.state(v);
        if state.conn != ConnState::Connected {
            // Another one begins or runs, and finds the new bits.
            return;
        }
        self.log(Level::Info, Some(v), "Resync of new storage after online grow");
        let source = if state.role == state.peer { self.conn.resolve_conflicts } else { state.role == Role::Primary };
        if source {
            self.start_source(v);
        } else {
            self.start_growth_target(v);
        }
    }

    /// New blocks differ from the peer's until they are synced.
    pub(crate) fn new_bits(&self, wanted: bool) -> bool {
        wanted && !self.faulty(Fault::NewBitsForgotten)
    }
}
