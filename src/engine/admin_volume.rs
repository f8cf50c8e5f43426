//! Commands for a volume: create, options, resync, generations.

use crate::engine::Engine;
use crate::engine::action::{CommandError, Level};
use crate::engine::admin::{Job, err};
use crate::engine::event::CommandId;
use crate::engine::md::MdDone;
use crate::engine::state::{ChangeMode, StateChange};
use crate::engine::volume::Volume;
use crate::units::{Sectors, VolumeNr};
use crate::wire::state::{ConnState, DiskState, Role};

impl Engine {
    pub(crate) fn new_volume(&mut self, v: VolumeNr, opts: super::options::DiskOptions) -> Result<(), CommandError> {
        if self.volumes.contains_key(&v) {
            return Err(err(161));
        }
        let mut vol = Volume::new(v, opts);
        vol.state.conn = self.conn.state;
        if let Some(other) = self.volumes.values().next() {
            let (from, to) = (&other.state, &mut vol.state);
            (to.susp, to.susp_nod, to.susp_fen) = (from.susp, from.susp_nod, from.susp_fen);
        }
        self.volumes.insert(v, vol);
        if self.conn.link.is_some() {
            self.send_volume_parameters(v);
        }
        Ok(())
    }

    pub(crate) fn del_volume(&mut self, v: VolumeNr) -> Result<(), CommandError> {
        let Some(vol) = self.volumes.get(&v) else { return Err(err(127)) };
        let idle = vol.state.disk == DiskState::Diskless
            && vol.disk.is_none()
            && vol.state.role == Role::Secondary
            && vol.open_count == 0;
        if !idle || self.conn.link.is_some() {
            return Err(err(160));
        }
        self.volumes.remove(&v);
        Ok(())
    }

    pub(crate) fn disk_options(
        &mut self,
        v: VolumeNr,
        mut opts: super::options::DiskOptions,
    ) -> Result<(), CommandError> {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return Err(err(127)) };
        if vol.disk.is_none() {
            return Err(err(138));
        }
        if let Some(resync) = vol.resync.as_mut() {
            resync.set_rate(now, opts.resync_rate);
            self.resync_kick.insert(v);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return Err(err(127)) };
        // The activity log keeps its size until the next attach.
        let al_updates = opts.al_updates;
        // The size is a matter of `resize`.
        opts.size = vol.opts.size;
        vol.opts = opts;
        let resumed = al_updates
            && vol.disk.as_mut().is_some_and(|disk| {
                disk.al.set_updates(true);
                disk.al.ring_is_stale()
            });
        if let Some(vol) = self.volumes.get_mut(&v) {
            // It may be shorter than the one that the timer was set for.
            vol.disk_timer = false;
            vol.disk_suspect = None;
        }
        self.arm_disk_timeout(v);
        self.update_md_flags(v);
        if !al_updates {
            // Transactions are written until the superblock says that there are none.
            self.md_superblock(v, Some(MdDone::AlUpdates));
        } else if resumed {
            // Extents were forgotten without their pages; the flag goes when pages and ring are written.
            self.md_bitmap(v, false, None);
            self.pump_al(v);
        }
        if self.conn.link.is_some() {
            self.send_sync_param(v);
        }
        Ok(())
    }

    pub(crate) fn invalidate(&mut self, id: CommandId, v: VolumeNr) {
        let state = self.state(v);
        if state.conn == ConnState::StandAlone && state.role == Role::Secondary {
            if let Err(code) = self.change(v, &StateChange::NONE.disk(DiskState::Inconsistent), ChangeMode::Soft) {
                return self.command_done(id, Err(CommandError::State(code)));
            }
            return self.set_all_and_write(id, v);
        }
        self.start_command(
            id,
            v,
            Job::Change { change: StateChange::NONE.conn(ConnState::StartingSyncT), retry: true },
        );
    }

    pub(crate) fn invalidate_remote(&mut self, id: CommandId, v: VolumeNr) {
        let state = self.state(v);
        if state.conn == ConnState::StandAlone && state.role == Role::Primary {
            if let Err(code) = self.change(v, &StateChange::NONE.pdsk(DiskState::Inconsistent), ChangeMode::Soft) {
                return self.command_done(id, Err(CommandError::State(code)));
            }
            // The activity log goes on: until all bits are on disk it is what a crash leaves behind.
            return self.set_all_and_write(id, v);
        }
        self.start_command(
            id,
            v,
            Job::Change { change: StateChange::NONE.conn(ConnState::StartingSyncS), retry: true },
        );
    }

    pub(crate) fn set_all_and_write(&mut self, id: CommandId, v: VolumeNr) {
        if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.bitmap.set_all();
        }
        self.md_bitmap(v, true, Some(MdDone::Command(id)));
        self.wait_md(id, v);
    }

    pub(crate) fn pause_sync(&mut self, v: VolumeNr) -> Result<(), CommandError> {
        if self.state(v).user_isp {
            return Err(err(134));
        }
        self.force(v, &StateChange::NONE.user_isp(true));
        Ok(())
    }

    pub(crate) fn resume_sync(&mut self, v: VolumeNr) -> Result<(), CommandError> {
        let state = self.state(v);
        if !state.user_isp {
            let paused = matches!(state.conn, ConnState::PausedSyncS | ConnState::PausedSyncT);
            return Err(err(if paused && state.aftr_isp {
                156
            } else if paused && state.peer_isp {
                157
            } else {
                135
            }));
        }
        self.force(v, &StateChange::NONE.user_isp(false));
        self.resync_kick.insert(v);
        Ok(())
    }

    /// `new-current-uuid` (behaviour.md 4.5).
    pub(crate) fn admin_new_current_uuid(&mut self, v: VolumeNr, clear_bitmap: bool) -> Result<(), CommandError> {
        let version = self.conn.version;
        let random = self.rng.gen_id();
        let Some(vol) = self.volumes.get_mut(&v) else { return Err(err(127)) };
        let state = vol.state;
        let Some(disk) = vol.disk.as_mut().filter(|_| state.disk >= DiskState::Inconsistent) else {
            return Err(err(138));
        };
        let blank = |current: crate::units::GenId| current.masked() == crate::units::GenId::JUST_CREATED.0;
        let just_created = blank(disk.sb.current);
        // Only a disk without a past takes the new generation for its own; a peer without a disk stays without one.
        let peer_has_disk = state.pdsk >= DiskState::Inconsistent;
        let peer_follows = !peer_has_disk || vol.peer.uuids.is_some_and(|uuids| blank(uuids.ids.current));
        let skip_sync =
            state.conn == ConnState::Connected && version >= 90 && just_created && peer_follows && clear_bitmap;
        if state.conn != ConnState::StandAlone && !skip_sync {
            return Err(err(151));
        }
        let ids = disk.ids().admin_new_current(random.0, state.role == Role::Primary);
        disk.set_ids(ids);
        vol.exposed = ids.current;
        vol.target_maybe_done = false;
        vol.target_missed_write = false;
        vol.target_unknown = false;
        vol.missed_end = false;
        if clear_bitmap {
            disk.bitmap.clear_all();
            if disk.al.suspended() {
                disk.al.resume();
            }
        }
        self.log(Level::Info, Some(v), format!("new current UUID {ids}"));
        if skip_sync {
            self.log(Level::Info, Some(v), "Preparing to skip initial sync");
            // The peer makes itself equal on this word alone: it goes out when it is durable here.
            let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) else { return Err(err(138)) };
            let ids = disk.ids().clear_bitmap();
            self.hold_data();
            self.send_uuids_skip_sync(v);
            if let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
                disk.set_ids(ids);
            }
            self.log(Level::Info, Some(v), format!("cleared bitmap UUID {ids}"));
            let pdsk = if peer_has_disk { DiskState::UpToDate } else { state.pdsk };
            self.force(v, &StateChange::NONE.disk(DiskState::UpToDate).pdsk(pdsk));
            // A peer without a disk learns only so that there are good data.
            self.send_state(v);
            let link = self.conn.link;
            self.md_bitmap(v, true, Some(MdDone::Release(link)));
        }
        Ok(())
    }

    /// A client opened a volume.
    pub(crate) fn on_opened(&mut self, v: VolumeNr, open: bool) {
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.open_count = if open { vol.open_count + 1 } else { vol.open_count.saturating_sub(1) };
        }
        self.recheck_commands = true;
    }

    /// The size for a status line.
    pub(crate) fn size_of(&self, v: VolumeNr) -> Sectors {
        self.volumes.get(&v).map_or(Sectors(0), |vol| vol.size)
    }
}
