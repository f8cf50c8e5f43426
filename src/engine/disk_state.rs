//! The local disk's life: attach and detach (behaviour.md 10.3 to 10.5, 11.2, 11.3; metadata.md 8). What makes a disk go by
//! itself is in `io_error`.

use crate::engine::Engine;
use crate::engine::action::{Action, CommandError, Level};
use crate::engine::al::{ActivityLog, AlLayout};
use crate::engine::event::{AttachedDisk, CommandId};
use crate::engine::fault::Fault;
use crate::engine::md::MdDone;
use crate::engine::options::DiskOptions;
use crate::engine::peer_state::new_size;
use crate::engine::state::{
    ChangeMode, MdFlags as StateMdFlags, StateChange, attach_states, crashed_primary_at_attach, may_attach_generation,
};
use crate::engine::volume::LocalDisk;
use crate::meta::MdFlags;
use crate::units::{AlExtent, Sectors, VolumeNr};
use crate::wire::state::{ConnState, DiskState, Role};

fn code(code: u16, detail: impl Into<String>) -> CommandError {
    CommandError::Code { code, detail: detail.into() }
}

impl LocalDisk {
    /// Encodes changed bitmap pages (all, or those of `extents` in which bits were set), at most `max`: their offsets
    /// and bytes, whether one carries cleared bits, and whether there are more.
    pub(crate) fn take_changed_pages(
        &mut self,
        extents: Option<&[AlExtent]>,
        max: usize,
    ) -> (Vec<(u64, bytes::Bytes)>, bool, bool) {
        use crate::engine::dirty::{PageFilter, PageNr};
        let pages: Vec<PageNr> = match extents {
            Some(extents) => self.bitmap.unwritten_pages(extents),
            None => self.bitmap.dirty_pages(PageNr(0), PageFilter::Changed, max + 1),
        };
        let more = pages.len() > max;
        let mut cleared = false;
        let mut writes = Vec::with_capacity(pages.len().min(max));
        for page in pages.into_iter().take(max) {
            let Some(offset) = self.layout.bm_page_byte(u64::from(page.0)) else { continue };
            let Some((change, bytes)) = self.bitmap.start_page_write(page) else { continue };
            cleared |= change.cleared;
            writes.push((offset, bytes::Bytes::copy_from_slice(&bytes[..])));
            // Jobs are serial: no second write of the page starts before this one is done; a failed one marks all pages.
            self.bitmap.page_written(page, true);
        }
        (writes, cleared, more)
    }
}

impl Engine {
    /// Attaches an opened disk; the command's result follows when the superblock is durable.
    pub(crate) fn attach(
        &mut self,
        id: CommandId,
        v: VolumeNr,
        new: AttachedDisk,
        opts: DiskOptions,
    ) -> Result<(), CommandError> {
        let stonith_with_a = self.stonith_with_a(opts.fencing, None);
        let Some(vol) = self.volumes.get_mut(&v) else { return Err(code(127, "")) };
        if vol.disk.is_some() || vol.state.disk != DiskState::Diskless {
            return Err(code(124, ""));
        }
        if stonith_with_a {
            return Err(code(154, ""));
        }
        if opts.size > new.capacity {
            return Err(code(
                111,
                format!("{} has {} sectors for data, {} are configured", new.path, new.capacity, opts.size),
            ));
        }
        if vol.size > new.capacity {
            return Err(code(
                111,
                format!("{} has {} sectors for data, the device in use has {}", new.path, new.capacity, vol.size),
            ));
        }
        let was_behind = vol.behind;
        let behind = vol.behind && vol.state.pdsk != DiskState::UpToDate;
        if behind || !may_attach_generation(&vol.state, vol.exposed, new.superblock.current) {
            return Err(code(150, format!("Can only attach to data with current UUID={}", vol.exposed)));
        }
        let AttachedDisk {
            mut superblock,
            layout,
            mut bitmap,
            al_slots,
            al_next_transaction,
            capacity,
            sizes,
            geometry,
            shared_device,
            path,
            undo,
        } = new;
        let md = superblock.flags;
        let agreed = superblock.effective_size;
        let peer_size = if vol.state.conn >= ConnState::Connected { vol.peer.disk_size } else { Sectors(0) };
        let size = new_size(capacity, peer_size, agreed, opts.size);
        if md.contains(MdFlags::CONSISTENT) && size < agreed && size != opts.size {
            return Err(code(
                170,
                format!("refusing to truncate a consistent device ({size} < {agreed}); {path} stays as it is"),
            ));
        }
        let Some(al_layout) = AlLayout::new(u32::from(opts.al_extents), layout.al.blocks()) else {
            return Err(code(119, "the activity log's shape in the superblock is not valid"));
        };
        let state_md = StateMdFlags {
            consistent: md.contains(MdFlags::CONSISTENT),
            primary_indicated: md.contains(MdFlags::PRIMARY_IND),
            connected_indicated: md.contains(MdFlags::CONNECTED_IND),
            was_up_to_date: md.contains(MdFlags::WAS_UP_TO_DATE),
            peer_outdated: md.contains(MdFlags::PEER_OUT_DATED),
            crashed_primary: md.contains(MdFlags::CRASHED_PRIMARY),
        };
        let before = vol.state;
        let crashed = crashed_primary_at_attach(&before, &state_md);
        let full_sync = md.contains(MdFlags::FULL_SYNC) || (crashed && md.contains(MdFlags::AL_DISABLED));
        let resized = size != agreed || bitmap.bits() != size.bm_bits();
        if bitmap.bits() != size.bm_bits()
            && let Err(error) = bitmap.resize(size.bm_bits(), true)
        {
            return Err(code(140, error.to_string()));
        }
        if full_sync {
            bitmap.set_all();
            self.log(Level::Warn, Some(v), "Assuming that all blocks are out of sync (aka FullSync)");
        }
        if let Err(refused) = self.change(v, &StateChange::NONE.disk(DiskState::Attaching), ChangeMode::Soft) {
            return Err(CommandError::State(refused));
        }
        let mut al = ActivityLog::new(al_layout, al_next_transaction);
        for extent in al.load_recovered(al_slots) {
            let first = u64::from(extent.0) * 1024;
            bitmap.set_range(first..first + 1024);
        }
        let al_updates = opts.al_updates;
        if resized {
            al.rewrite_ring(al_layout.blocks());
        }
        let primary = before.role == Role::Primary;
        superblock.effective_size = size;
        superblock.current = superblock.current.with_primary_bit(primary);
        superblock.unclean_magic = true;
        superblock.flags = superblock.flags.without(MdFlags::AL_CLEAN).set_to(MdFlags::FULL_SYNC, full_sync);
        superblock.al_extents = u32::from(al_layout.slots());
        let all_set = bitmap.count() == bitmap.bits() && bitmap.bits() > 0;
        if (all_set || self.faulty(Fault::AlSuspendedEarly)) && before.conn < ConnState::Connected {
            let _ = al.suspend();
            self.log(Level::Info, Some(v), "Suspended AL updates");
        }
        let marked = bitmap.count();
        let states = attach_states(&before, &state_md, opts.fencing);
        let forgets_crash = self.faulty(Fault::CrashedPrimaryEarly);
        let Some(vol) = self.volumes.get_mut(&v) else { return Err(code(127, "")) };
        vol.opts = opts;
        vol.crashed_primary = crashed && !forgets_crash;
        // What the peer has on top of it only a handshake brings: should that not come about this disk serves nobody.
        vol.attach_disk = if was_behind { states.attach_disk.min(DiskState::Outdated) } else { states.attach_disk };
        vol.attach_pdsk = states.attach_pdsk;
        vol.degraded_wait = !primary && state_md.primary_indicated && !state_md.connected_indicated;
        vol.forced_detach = false;
        vol.stuck = 0;
        vol.disk_suspect = None;
        vol.closing = false;
        vol.counters.disk_read = 0;
        vol.counters.disk_written = 0;
        vol.counters.al_writes = 0;
        vol.counters.bm_writes = 0;
        if states.disk == DiskState::Negotiating {
            vol.peer.uuids = None;
        }
        vol.target_maybe_done = false;
        vol.missed_end = false;
        vol.resize = super::resize::Resizing::default();
        vol.disk = Some(LocalDisk {
            sb_written_flags: superblock.flags,
            sb_durable_flags: superblock.flags,
            sb_written_size: agreed,
            sb: superblock,
            layout,
            bitmap,
            al,
            capacity,
            sizes,
            moving: false,
            geometry,
            shared_device,
            // What a process before this one wrote may be in the device's cache.
            unflushed: true,
            flushing: 0,
            path,
            sb_dirty: true,
        });
        vol.target_unknown = vol.disk.as_ref().is_some_and(|disk| disk.ids().resync_begun());
        let grew = vol.size != size;
        vol.size = size;
        if let Some(saved) = undo {
            self.undo_resume(v, &saved, md.contains(MdFlags::CONSISTENT));
        }
        self.log(
            Level::Info,
            Some(v),
            format!("{} KB ({marked} bits) marked out-of-sync by on disk bit-map.", marked * 4),
        );
        if grew {
            self.log(Level::Info, Some(v), format!("size = {} KB", size.0 / 2));
            self.out.push(Action::Notice(super::action::Notice::Size { volume: v, size }));
        }
        if let Err(refused) = self.change(v, &StateChange::NONE.disk(states.disk).pdsk(states.pdsk), ChangeMode::Soft) {
            self.force(v, &StateChange::NONE.disk(DiskState::Failed));
            return Err(CommandError::State(refused));
        }
        let due = self.volumes.get(&v).is_some_and(super::volume::Volume::lonely_writes_need_generation);
        if primary && before.conn < ConnState::Connected && due {
            // As at a promotion without a peer: what is written from here on, the peer does not have.
            self.new_current_uuid(v);
        }
        if resized || full_sync {
            self.pump_al(v);
            self.md_bitmap(v, false, None);
            if full_sync && let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
                disk.sb.flags = disk.sb.flags.without(MdFlags::FULL_SYNC);
                disk.sb_dirty = true;
            }
        }
        if !al_updates {
            self.md_superblock(v, Some(MdDone::AlUpdates));
        }
        self.md_superblock(v, Some(MdDone::Command(id)));
        Ok(())
    }

    /// Goes on with a detach as far as the operations in flight allow: Failed, then Diskless, then closed.
    pub(crate) fn finish_detach(&mut self, v: VolumeNr) {
        let references_stay = self.faulty(Fault::AlReferencesSurvive);
        if !self.disk_is_idle(v) {
            return;
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        match vol.state.disk {
            DiskState::Failed if !vol.closing && vol.error_helper.is_none() => {
                vol.closing = true;
                self.flush_before_close(v);
                self.md_bitmap(v, true, Some(MdDone::Detached));
            }
            // Straight to Diskless: the link broke before the peer could confirm an attach.
            DiskState::Diskless if !vol.closing && vol.disk.is_some() => {
                vol.closing = true;
                self.flush_before_close(v);
                self.md_bitmap(v, true, Some(MdDone::Detached));
            }
            DiskState::Diskless if vol.closing && vol.disk.is_some() => {
                let waiting = vol.disk.as_mut().map(|d| d.al.drain_waiting()).unwrap_or_default();
                vol.disk = None;
                self.undo_detached(v);
                let keys: Vec<u64> = self.requests.iter().filter(|(_, r)| r.volume == v).map(|(key, _)| key).collect();
                for key in keys {
                    if let Some(request) = self.requests.get_mut(key)
                        && !references_stay
                    {
                        request.al = None;
                    }
                }
                self.peer_requests_drop_al(v);
                for key in waiting {
                    self.al_bypassed(key);
                }
                self.out.push(Action::CloseDisk { volume: v });
            }
            _ => {}
        }
    }

    /// A disk that is given up leaves nothing behind in its cache that was called done.
    fn flush_before_close(&mut self, v: VolumeNr) {
        if !self.faulty(Fault::DetachWithoutFlush) {
            self.md_flush_data(v);
        }
    }

    /// Everything of the failed disk is written, as far as that was possible.
    pub(crate) fn on_detached(&mut self, v: VolumeNr) {
        self.force(v, &StateChange::NONE.disk(DiskState::Diskless));
    }

    /// The driver has closed the devices.
    pub(crate) fn on_disk_closed(&mut self, v: VolumeNr) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.closing = false;
            vol.forced_detach = false;
        }
        self.recheck_commands = true;
    }
}
