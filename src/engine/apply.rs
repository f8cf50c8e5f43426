//! The one place where states change: plan, commit, then what follows.
//!
//! A commit carries out its own side effects at once and queues the rest; `run_effects` works the queue off before
//! `handle` returns, so that effects see the state they belong to and never nest.

use crate::engine::Engine;
use crate::engine::action::{Action, ClientError, Level, Notice};
use crate::engine::connection::LinkEnd;
use crate::engine::fault::Fault;
use crate::engine::handler::Handler;
use crate::engine::md::MdDone;
use crate::engine::state::{
    ChangeMode, Effect, Fencing, SideEffect, StateChange, StateContext, VolumeState, after_effects, changes_text,
    connection_effects, md_flags, plan, plan_cluster_wide, side_effects,
};
use crate::meta::MdFlags;
use crate::units::{GenId, Sectors, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::state::{ConnState, DiskState, Role, StateResult};

impl Engine {
    /// Everything that the rules look at besides the state itself.
    pub(crate) fn state_context(&self, v: VolumeNr) -> StateContext {
        let others = || self.volumes.values().filter(move |o| o.nr != v);
        let vol = self.volumes.get(&v);
        let ids = vol.and_then(|vol| vol.disk.as_ref()).map(super::volume::LocalDisk::ids);
        StateContext {
            has_net_config: self.conn.opts.is_some(),
            allow_two_primaries: self.two_primaries(),
            peer_primary_on_other_volume: others().any(|o| o.state.peer == Role::Primary),
            fencing: vol.map_or(Fencing::DontCare, |vol| vol.opts.fencing),
            on_no_data_suspend: self.opts.suspend_without_data,
            open_count: vol.map_or(0, |vol| vol.open_count),
            verify_alg: self.conn.opts.as_ref().is_some_and(|o| o.verify_alg.alg().is_some()),
            version: self.conn.version,
            state_sent: self.conn.state_sent,
            exposed_is_current: vol.zip(ids).is_some_and(|(vol, ids)| !vol.behind && vol.exposed.same(ids.current)),
            attach_disk: vol.map_or(DiskState::Diskless, |vol| vol.attach_disk),
            attach_pdsk: vol.map_or(DiskState::DUnknown, |vol| vol.attach_pdsk),
            bitmap_uuid_unset: ids.is_some_and(|ids| ids.bitmap.0 == 0) || vol.is_some_and(|vol| vol.missed_end),
            generation_shared: vol.is_some_and(|vol| vol.target_unknown),
            others_connected: others().all(|o| o.state.conn >= ConnState::Connected),
            others_up_to_date: others().all(|o| o.state.disk == DiskState::UpToDate),
            others_highest_pdsk: others().map(|o| o.state.pdsk).max().unwrap_or(DiskState::Diskless),
            others_left_report_params: others().all(|o| o.state.conn != ConnState::WfReportParams),
            resync_after_negotiation: vol.is_some_and(|vol| vol.resize.after_negotiation),
            call_local_io_error: vol.is_some_and(|vol| vol.error_helper.is_some()),
            forced_detach: vol.is_some_and(|vol| vol.forced_detach),
        }
    }

    /// Plans and makes a change of one volume.
    pub(crate) fn change(
        &mut self,
        v: VolumeNr,
        change: &StateChange,
        mode: ChangeMode,
    ) -> Result<StateResult, StateResult> {
        let Some(vol) = self.volumes.get(&v) else { return Err(StateResult::UnknownError) };
        let planned = plan(&vol.state, change, mode, &self.state_context(v))?;
        if planned.nothing {
            return Ok(StateResult::NothingToDo);
        }
        if let Some(warning) = planned.warning {
            self.log(Level::Warn, Some(v), warning);
        }
        let old = self.state(v);
        self.commit(v, planned.new);
        self.share_suspension(v, &old);
        Ok(StateResult::Success)
    }

    /// Checks a change that needs the peer's consent, without making it.
    pub(crate) fn check_cluster_wide(&self, v: VolumeNr, change: &StateChange) -> Result<VolumeState, StateResult> {
        let Some(vol) = self.volumes.get(&v) else { return Err(StateResult::UnknownError) };
        plan_cluster_wide(&vol.state, change, &self.state_context(v)).map(|p| p.new)
    }

    /// A change that is a fact; what the transition rules forbid is left as it is.
    pub(crate) fn force(&mut self, v: VolumeNr, change: &StateChange) {
        // A refused hard change means that a stronger state (such as the first reason of a link's end) already holds.
        let _ = self.change(v, change, ChangeMode::Hard);
    }

    fn commit(&mut self, v: VolumeNr, mut new: VolumeState) {
        let ctx = self.state_context(v);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let old = vol.state;
        // A resync that ends here otherwise than by its end: what the target said of its disk holds, for it says so once.
        let told = vol.resync.as_ref().and_then(|resync| resync.peer_finished);
        let cut_short = old.conn > ConnState::Connected && new.conn == ConnState::Connected;
        if let Some(disk) = told.filter(|_| cut_short && new.pdsk == DiskState::Inconsistent) {
            new.pdsk = disk;
        }
        vol.state = new;
        let text = changes_text(&old, &new);
        if !text.is_empty() {
            self.log(Level::Info, Some(v), text.trim_end());
        }
        self.out.push(Action::Notice(Notice::State { volume: v, old, new }));
        for effect in side_effects(&old, &new, &ctx) {
            self.side_effect(v, effect);
        }
        let known = VolumeState { pdsk: told.unwrap_or(old.pdsk), ..old };
        self.note_data_in_use(v, &known, &new);
        let exchanging =
            |c: ConnState| matches!(c, ConnState::WfBitMapS | ConnState::WfBitMapT | ConnState::WfSyncUuid);
        if exchanging(old.conn)
            && !exchanging(new.conn)
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            // The next exchange starts from the first bit.
            vol.bitmap_rx = None;
            vol.send_bitmap = false;
            vol.bitmap_answered = false;
            vol.failed_early = super::blocks::BlockSet::default();
            if new.conn <= ConnState::Connected {
                vol.early_sync_uuid = None;
            }
        }
        if old.conn != ConnState::WfBitMapT
            && new.conn == ConnState::WfBitMapT
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.early_sync_uuid = None;
        }
        let untold = self.faulty(Fault::BitsBelievedUntold);
        if let Some(vol) = self.volumes.get_mut(&v) {
            let exchanged = matches!(new.conn, ConnState::SyncTarget | ConnState::PausedSyncT);
            if new.disk == DiskState::UpToDate || exchanged {
                vol.bits_known = true;
            } else if new.disk < DiskState::Inconsistent || new.conn == ConnState::WfBitMapT {
                vol.bits_known = false;
            } else if new.disk == DiskState::Inconsistent
                && new.peer == Role::Primary
                && new.conn == ConnState::Connected
                && !untold
            {
                // Its writes stay over there, and nobody tells this node which.
                vol.bits_known = false;
            }
        }
        let now = self.now;
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.congestion.note(old.conn, new.conn, now);
        }
        if new.disk == DiskState::UpToDate && old.disk != DiskState::UpToDate {
            self.undo_end(v);
        }
        let syncing = |c: ConnState| (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&c);
        if syncing(old.conn) && !syncing(new.conn) {
            self.forget_resync(v);
        }
        if old.conn != new.conn
            && let Some(vol) = self.volumes.get_mut(&v)
        {
            vol.resync_helper = None;
            if new.conn < ConnState::Connected {
                vol.early_sync_uuid = None;
            }
        }
        self.effects.push_back((v, old, new));
        self.recheck_commands = true;
        if cut_short && new.has_local_disk() && new.disk < DiskState::UpToDate {
            // A peer that loses its disk in the middle of the bitmaps would take this one for good.
            self.send_state(v);
        }
    }

    /// Which data the applications use now: those of the peer where there is no own disk; and whether the own disk, when
    /// it comes back, can be those.
    fn note_data_in_use(&mut self, v: VolumeNr, old: &VolumeState, new: &VolumeState) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let connects = old.conn < ConnState::Connected && new.conn >= ConnState::Connected;
        let promoted = old.role != Role::Primary && new.role == Role::Primary;
        if (connects || promoted)
            && !new.has_local_disk()
            && new.conn >= ConnState::Connected
            && new.pdsk == DiskState::UpToDate
            && let Some(uuids) = vol.peer.uuids
            && !vol.exposed.same(uuids.ids.current)
        {
            vol.exposed = uuids.ids.current;
            let text = format!("receiver updated UUIDs to effective data uuid: {}", uuids.ids.current);
            self.log(Level::Info, Some(v), text);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        // Newer data were known to exist, and nobody has them at hand.
        vol.target_unknown |= old.disk == DiskState::Outdated && new.disk == DiskState::UpToDate;
        let goes = old.has_local_disk() && !new.has_local_disk();
        // A peer that is only now taken for good has nothing that this disk lacked.
        let peer_was_good = old.pdsk == DiskState::UpToDate && new.pdsk == DiskState::UpToDate;
        let next = vol.peer.uuids.map(|uuids| uuids.ids).filter(|ids| ids.bitmap.same(vol.exposed));
        if goes
            && new.role == Role::Primary
            && peer_was_good
            && new.conn >= ConnState::Connected
            && let Some(ids) = next
        {
            // The peer, asked before the disk went, has begun the generation without it already.
            vol.exposed = ids.current;
            let text = format!("receiver updated UUIDs to effective data uuid: {}", ids.current);
            self.log(Level::Info, Some(v), text);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        // A node that is promoted without a disk writes where the good data are, too.
        let serves_from_peer = promoted && !new.has_local_disk() && new.pdsk == DiskState::UpToDate;
        if (goes && new.role == Role::Primary && peer_was_good) || serves_from_peer {
            vol.behind = true;
        } else if new.has_local_disk() || new.role != Role::Primary {
            vol.behind = false;
        }
    }

    fn side_effect(&mut self, v: VolumeNr, effect: SideEffect) {
        let now = self.now;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        match effect {
            SideEffect::TakeDiskReference | SideEffect::ClearResyncDone | SideEffect::MarkAttachTime => {}
            SideEffect::CloseEpoch => self.epochs.close(),
            SideEffect::LogAttachedUuids => {
                if let Some(ids) = vol.disk.as_ref().map(super::volume::LocalDisk::ids) {
                    self.log(Level::Info, Some(v), format!("attached to UUIDs {ids}"));
                }
            }
            SideEffect::ClearStateSent => self.conn.state_sent = false,
            SideEffect::StopVerify => vol.verify = None,
            SideEffect::ContinueSync { target } => {
                if let Some(resync) = vol.resync.as_mut() {
                    resync.resume(now);
                }
                self.log(Level::Info, Some(v), "Syncer continues.");
                if target {
                    self.resync_kick.insert(v);
                }
            }
            SideEffect::SuspendSync => {
                if let Some(resync) = vol.resync.as_mut() {
                    resync.suspend(now);
                }
                self.log(Level::Info, Some(v), "Resync suspended");
            }
            SideEffect::StartVerify { driver } => {
                if !driver {
                    vol.verify = Some(crate::engine::verify::VerifyTarget::new(now, vol.size));
                }
            }
            SideEffect::UpdateMdFlags => self.update_md_flags(v),
            SideEffect::ExposeCurrentUuid => {
                if let Some(ids) = vol.disk.as_ref().map(super::volume::LocalDisk::ids) {
                    vol.exposed = ids.current;
                }
            }
            SideEffect::SetConsiderResync => vol.consider_resync = true,
            SideEffect::StopReceiver => self.conn.end = Some(LinkEnd::Stop),
            SideEffect::RestartReceiver => {
                if self.conn.end.is_none() {
                    self.conn.end = Some(LinkEnd::Restart);
                }
            }
            SideEffect::ResumeAlAndCountConnect => {
                vol.degraded_wait = false;
                self.conn.connects += 1;
                if !self.faulty(Fault::AlNotResumed)
                    && let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut())
                    && disk.al.suspended()
                {
                    disk.al.resume();
                    self.log(Level::Info, Some(v), "Resumed AL updates");
                }
            }
        }
    }

    /// Recomputes the superblock's flags from the state (behaviour.md 2.6).
    pub(crate) fn update_md_flags(&mut self, v: VolumeNr) {
        let (careless_primary, forgets_crash, hopeful, hides_al) = (
            self.faulty(Fault::PrimaryIndEarly),
            self.faulty(Fault::CrashedPrimaryNotKept),
            self.faulty(Fault::ConsistentEarly),
            self.faulty(Fault::AlDisabledUnmarked),
        );
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let mut flags = md_flags(&vol.state, vol.crashed_primary);
        let both_good =
            vol.state.disk.min(vol.state.pdsk) == DiskState::UpToDate && vol.state.conn >= ConnState::Connected;
        let target = vol.state.conn == ConnState::SyncTarget;
        flags.primary_indicated &= !(careless_primary && both_good);
        flags.crashed_primary &= !forgets_crash;
        flags.consistent |= hopeful && target;
        flags.was_up_to_date |= hopeful && target;
        let al_updates = vol.opts.al_updates;
        let Some(disk) = vol.disk.as_mut() else { return };
        let al_disabled = (!al_updates || disk.al.ring_is_stale()) && !hides_al;
        let updated = disk
            .sb
            .flags
            .set_to(MdFlags::CONSISTENT, flags.consistent)
            .set_to(MdFlags::PRIMARY_IND, flags.primary_indicated)
            .set_to(MdFlags::CONNECTED_IND, flags.connected_indicated)
            .set_to(MdFlags::WAS_UP_TO_DATE, flags.was_up_to_date)
            .set_to(MdFlags::PEER_OUT_DATED, flags.peer_outdated)
            .set_to(MdFlags::CRASHED_PRIMARY, flags.crashed_primary)
            .set_to(MdFlags::AL_DISABLED, al_disabled)
            .without(MdFlags::AL_CLEAN);
        if updated != disk.sb.flags {
            disk.sb.flags = updated;
            disk.sb_dirty = true;
        }
    }

    /// Carries out what follows from the changes made so far, then ends the link if one of them asked for it.
    pub(crate) fn run_effects(&mut self) {
        loop {
            while let Some((v, old, new)) = self.effects.pop_front() {
                // I/O may have been suspended, or have gone on, because of another volume.
                let VolumeState { susp, susp_nod, susp_fen, .. } = self.state(v);
                let new = VolumeState { susp, susp_nod, susp_fen, ..new };
                let ctx = self.state_context(v);
                let effects = after_effects(&old, &new, &ctx).into_iter().chain(connection_effects(&old, &new, &ctx));
                for effect in effects {
                    if matches!(effect, Effect::WriteMetadata | Effect::DropDiskReference) {
                        // What hangs is given up, not what is written of a disk before it is closed.
                        self.give_up_what_is_due();
                    }
                    self.effect(v, effect, &new);
                }
                self.give_up_what_is_due();
                if old.pdsk == DiskState::UpToDate && new.pdsk != DiskState::UpToDate {
                    self.release_denied(v);
                }
                self.resize_link_lost(v, &old, &new);
                self.submit_held_back(v);
                self.admit(v);
                self.retry_blocked(v);
                self.wake_peer_requests(v);
            }
            if let Some(end) = self.conn.end.take() {
                self.end_link(end);
            } else if self.unannounced.is_empty() {
                return self.pump_resend();
            }
            if self.effects.is_empty() {
                self.pump_resend();
                for key in std::mem::take(&mut self.unannounced) {
                    self.submit_write(key);
                }
            }
        }
    }

    fn effect(&mut self, v: VolumeNr, effect: Effect, new: &VolumeState) {
        match effect {
            Effect::Notify
            | Effect::ResetResyncCounters
            | Effect::PauseDependents
            | Effect::ResumeDependents
            | Effect::StartReceiver
            | Effect::DiscardNetConfig => {}
            Effect::ClearCrashedPrimary => {
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.crashed_primary = false;
                    if let Some(uuids) = vol.peer.uuids.as_mut() {
                        uuids.flags = uuids.flags.with(super::gi::UuidFlags::CRASHED_PRIMARY, false);
                    }
                }
                self.update_md_flags(v);
            }
            Effect::ResyncAfterGrow => self.resync_after_negotiation(v),
            Effect::RunHandler(Handler::LocalIoError) => self.tell_local_io_error(v),
            Effect::RunHandler(handler) => self.tell_helper(handler, Some(v)),
            Effect::ThawNoData(_) | Effect::ThawReconnected | Effect::ThawFenced => self.thaw_by(effect),
            Effect::SetNewCurrentUuidPending if self.freezes_requests() => {
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.new_uuid_pending = true;
                }
            }
            // An effect before this one has let I/O go on: nothing is put off any more.
            Effect::SetNewCurrentUuidPending => {
                if self.state_context(v).bitmap_uuid_unset {
                    self.new_current_uuid(v);
                    self.send_uuids_durably(v);
                }
            }
            Effect::SendSyncUuid => self.make_sync_uuid(v),
            Effect::SendUuids => self.send_uuids_durably(v),
            Effect::SendSizes => self.send_sizes(v),
            Effect::SendState => self.send_data(v, Packet::State(new.word())),
            Effect::QueueSendBitmap => self.start_bitmap(v),
            Effect::NewCurrentUuid if self.faulty(Fault::DegradedKeepsUuid) => {}
            Effect::NewCurrentUuid => self.new_current_uuid(v),
            Effect::WriteBitmapPages | Effect::QueueBitmapWrite => self.md_bitmap(v, false, None),
            Effect::StartFullSyncSource | Effect::StartFullSyncTarget => self.start_full_sync(v),
            // After the peer was told: what goes to it alone follows that.
            Effect::AbortLocalIo => self.give_up_due.push(v),
            Effect::ForgetResyncExtents => self.forget_resync(v),
            Effect::WriteMetadata | Effect::WriteMetadataIfDirty => {
                if self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()).is_some_and(|d| d.sb_dirty) {
                    self.md_superblock(v, None);
                }
            }
            Effect::DropDiskReference => self.finish_detach(v),
        }
    }

    /// A new data generation; completions wait until it is durable, so that no write that the peer missed is
    /// acknowledged under the old one.
    pub(crate) fn new_current_uuid(&mut self, v: VolumeNr) {
        let random = self.rng.gen_id();
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let primary = vol.state.role == Role::Primary;
        let alone = vol.state.conn < ConnState::Connected;
        let may_be_done = vol.target_may_be_done();
        let held = vol.peer.uuids.map_or(GenId::UNSET, |uuids| uuids.ids.current);
        let Some(disk) = vol.disk.as_mut() else { return };
        let before = disk.ids();
        let ids = match before {
            // As if the end of the resync had been seen. If it had not come to that, the next handshake finds the
            // target's identifier in the history and starts over.
            ids if may_be_done => ids.finish_as_source().new_current(random.0, primary),
            // Also when it is forced: the bitmap goes on to count from what the peer has.
            ids if ids.bitmap.0 != 0 && (vol.target_unknown || alone) => ids.new_current_beside(random.0, primary),
            ids => ids.new_current(random.0, primary),
        }
        .keeping(&before, held);
        disk.set_ids(ids);
        vol.target_maybe_done = false;
        vol.target_unknown = false;
        vol.missed_end = false;
        vol.exposed = ids.current;
        vol.gate += 1;
        self.log(Level::Info, Some(v), format!("new current UUID {ids}"));
        self.out.push(Action::Notice(Notice::Generation { volume: v, current: ids.current }));
        self.md_superblock(v, Some(MdDone::Gate));
    }

    /// A metadata job is done: go on with what waited for it.
    pub(crate) fn md_continue(&mut self, v: VolumeNr, done: &MdDone, ok: bool) {
        match *done {
            MdDone::Al(tr_number) => self.on_al_written(v, tr_number, ok),
            MdDone::Gate => {
                let ok = ok || self.faulty(Fault::UnwrittenGenerationCounts);
                if let Some(vol) = self.volumes.get_mut(&v) {
                    vol.gate = vol.gate.saturating_sub(1);
                    if !ok && (vol.gate_peer_lacks || vol.state.pdsk != DiskState::UpToDate) {
                        // The peer's old copy passes for the newest: nothing was written, as far as anybody can tell.
                        for (_, result) in &mut vol.held {
                            if matches!(result, Ok(data) if data.is_empty()) {
                                *result = Err(ClientError::Io);
                            }
                        }
                    }
                    if vol.gate == 0 && !vol.state.is_suspended() {
                        vol.gate_peer_lacks = false;
                        for (id, result) in std::mem::take(&mut vol.held) {
                            self.out.push(Action::Complete { id, result });
                        }
                    }
                }
            }
            MdDone::Command(id) => self.command_md_done(id, ok),
            // Whoever waited on a link that is gone holds nothing on the next one.
            MdDone::SyncUuid(_, link) | MdDone::Release(link) | MdDone::SendUuids(link)
                if link.is_none() || link != self.conn.link => {}
            MdDone::SyncUuid(uuid, _) => self.on_sync_uuid_durable(v, uuid),
            MdDone::TargetStarted => self.on_target_started(v, ok),
            MdDone::Release(_) => self.release_data(),
            MdDone::TargetDone(link) => {
                if link.is_some() && link == self.conn.link {
                    self.release_data();
                }
                self.tell_helper(Handler::AfterResyncTarget, Some(v));
            }
            MdDone::AlUpdates => self.on_al_updates_durable(v, ok),
            MdDone::SendUuids(_) => {
                self.send_uuids_now(v);
                self.release_data();
            }
            MdDone::FullSync => self.on_full_sync_written(v, ok),
            MdDone::Detached => self.on_detached(v),
            MdDone::Moved => self.on_moved(v, ok),
        }
    }

    /// Takes over a size: the exported one, the bitmap's and the superblock's.
    pub(crate) fn set_size(&mut self, v: VolumeNr, size: Sectors, set_new_bits: bool) {
        let new_bits = self.new_bits(set_new_bits);
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let grew = vol.size != size;
        vol.size = size;
        if let Some(disk) = vol.disk.as_mut()
            && (disk.sb.effective_size != size || disk.bitmap.bits() != size.bm_bits())
        {
            if let Err(error) = disk.bitmap.resize(size.bm_bits(), new_bits) {
                self.log_error(v, format!("cannot size the bitmap for {size} sectors: {error}"));
                self.force(v, &StateChange::NONE.disk(DiskState::Failed));
                return;
            }
            if !new_bits {
                // Nothing was ever written where the new pages are.
                disk.bitmap.mark_all_changed();
            }
            disk.sb.effective_size = size;
            disk.sb_dirty = true;
            let blocks = disk.al.layout().blocks();
            disk.al.rewrite_ring(blocks);
            self.pump_al(v);
            self.md_bitmap(v, true, None);
        }
        if grew {
            self.log(Level::Info, Some(v), format!("size = {} KB", size.0 / 2));
            self.out.push(Action::Notice(Notice::Size { volume: v, size }));
        }
    }
}
