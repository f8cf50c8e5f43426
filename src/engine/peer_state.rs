//! What the peer says about itself: settings, sizes, identifiers, state; and the handshake that follows from it.
//!
//! Takes in `P_PROTOCOL`, `P_PROTOCOL_UPDATE`, `P_SYNC_PARAM`, `P_SIZES`, `P_UUIDS`, `P_STATE`. Every mismatch is a
//! clean end of the connection with a named reason. Source: behaviour.md 2.10, 3, 11; wire.md 4.4-4.13.

use crate::engine::Engine;
use crate::engine::action::Level;
use crate::engine::connection::AfterPing;
use crate::engine::gi::{GenIds, PeerUuids, UuidFlags};
use crate::engine::handshake::{Decision, RefuseReason};
use crate::engine::md::MdDone;
use crate::engine::refused::Refused;
use crate::engine::state::{
    PeerView, Received, ReceivedContext, StateChange, VolumeState, may_attach_generation, read_peer_state,
};
use crate::engine::suspend::Fate;
use crate::limits::DEVICE_SECTORS_MAX;
use crate::units::{Sectors, VolumeNr};
use crate::wire::digest::AlgName;
use crate::wire::packet::Packet;
use crate::wire::params::{ConnFlags, Protocol, ReplProtocol, SyncParam};
use crate::wire::sizes::{DdsFlags, Sizes};
use crate::wire::state::{ConnState, DiskState, Role, StateWord};
use crate::wire::uuids::Uuids;

impl Engine {
    /// Compares the peer's settings with ours (behaviour.md 3.2).
    pub(crate) fn on_protocol(&mut self, p: &Protocol) {
        if self.conn.peer_protocol {
            return self.peer_error("P_PROTOCOL", String::from("came a second time"));
        }
        let Some(o) = self.conn.opts.as_ref() else { return };
        let own_discards = self.volumes.values().any(|vol| vol.discard_my_data);
        let mismatch = if p.protocol != o.protocol {
            Some("protocol")
        } else if p.after_sb_0p.mirrored() != o.after_sb_0p {
            Some("after-sb-0pri")
        } else if p.after_sb_1p.mirrored() != o.after_sb_1p {
            Some("after-sb-1pri")
        } else if p.after_sb_2p.mirrored() != o.after_sb_2p {
            Some("after-sb-2pri")
        } else if p.conn_flags.has(ConnFlags::DISCARD_MY_DATA) && own_discards {
            Some("discard-my-data")
        } else if p.two_primaries != o.two_primaries {
            Some("allow-two-primaries")
        } else if p.integrity_alg.as_str() != o.integrity_alg.as_str() {
            Some("data-integrity-alg")
        } else {
            None
        };
        if let Some(what) = mismatch {
            let hint = "make both nodes' configuration agree, then connect again";
            self.log(Level::Error, None, format!("incompatible {what} settings; {hint}"));
            self.refuse(Refused::Settings { what });
            return self.drop_link(ConnState::Disconnecting);
        }
        self.conn.peer_protocol = true;
        self.conn.peer_dry_run = p.conn_flags.has(ConnFlags::DRY_RUN);
    }

    /// The peer changed its settings while connected: adopted, unless they cannot be.
    pub(crate) fn on_protocol_update(&mut self, p: &Protocol) {
        let both = |vol: &super::volume::Volume| vol.state.role == Role::Primary && vol.state.peer == Role::Primary;
        let wrong = if !self.conn.peer_protocol {
            "came before P_PROTOCOL"
        } else if p.two_primaries && p.protocol != ReplProtocol::C {
            "wants two Primaries without protocol C"
        } else if self.volumes.values().any(|vol| self.stonith_with_a(vol.opts.fencing, Some(p.protocol))) {
            "wants protocol A, and I/O here waits for fencing"
        } else {
            ""
        };
        if !wrong.is_empty() {
            return self.peer_error("P_PROTOCOL_UPDATE", wrong);
        }
        self.epochs.close();
        let already = self.two_primaries() && self.volumes.values().any(both);
        if let Some(o) = self.conn.opts.as_mut() {
            o.protocol = if already { ReplProtocol::C } else { p.protocol };
            o.after_sb_0p = p.after_sb_0p.mirrored();
            o.after_sb_1p = p.after_sb_1p.mirrored();
            o.after_sb_2p = p.after_sb_2p.mirrored();
            o.two_primaries = p.two_primaries || already;
        }
        if already && !p.two_primaries {
            // It did not know yet that its consent has made this node Primary.
            self.log(Level::Warn, None, "there are two Primaries; allow-two-primaries stays, and the peer is told");
            self.send_protocol_update();
        }
    }

    /// Resync settings.
    pub(crate) fn on_sync_param(&mut self, v: VolumeNr, p: SyncParam) {
        let starting = self.state(v).conn == ConnState::WfReportParams;
        let Some(o) = self.conn.opts.as_mut() else { return };
        let verify = adopt(&mut o.verify_alg, p.verify_alg, starting);
        let csums = adopt(&mut o.csums_alg, p.csums_alg, starting);
        for (what, differs) in [("verify-alg", verify), ("csums-alg", csums)] {
            if let Some((mine, theirs)) = differs {
                self.log(Level::Error, Some(v), format!("Different {what} settings. me=\"{mine}\" peer=\"{theirs}\""));
                self.refuse(Refused::Settings { what });
                return self.drop_link(ConnState::Disconnecting);
            }
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.opts.announced.resync_rate = p.resync_rate_kib;
        if let Some(c) = p.controller {
            vol.opts.announced.c_plan_ahead = c.plan_ahead_ds;
            vol.opts.announced.c_delay_target = c.delay_target_ds;
            vol.opts.announced.c_fill_target = c.fill_target_sectors;
            vol.opts.announced.c_max_rate = c.max_rate_kib;
        }
    }

    /// Sizes and limits (behaviour.md 11.2, 11.3).
    pub(crate) fn on_sizes(&mut self, v: VolumeNr, p: &Sizes) {
        if let Some(size) = [p.d_size, p.u_size, p.c_size].into_iter().find(|s| s.0 > DEVICE_SECTORS_MAX) {
            return self.peer_error("P_SIZES", format!("{size} sectors are more than a device can have"));
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        vol.peer.disk_size = p.d_size;
        vol.peer.max_bio_bytes = p.max_bio_size;
        let state = vol.state;
        let old_size = vol.size;
        let local = vol
            .disk
            .as_ref()
            .filter(|_| state.disk >= DiskState::Negotiating)
            .map(|d| (d.capacity, d.sb.effective_size, d.geometry.logical_block_size));
        if let (Some((.., own_block)), Some(limits)) = (local, p.limits)
            && limits.logical_block_size != 0
            && limits.logical_block_size != own_block
        {
            let text = format!(
                "logical block sizes do not match (me:{own_block}, peer:{}); this may cause problems.",
                limits.logical_block_size
            );
            self.log(Level::Warn, Some(v), text);
        }
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        match local {
            Some((capacity, agreed, _)) => {
                let configured = if state.conn == ConnState::WfReportParams {
                    smaller_set(vol.opts.size, p.u_size)
                } else {
                    p.u_size
                };
                let handshake = state.conn <= ConnState::WfReportParams;
                // Both nodes reckon with what they told each other.
                let told = handshake && vol.told_capacity.0 > 0;
                let capacity = if told { capacity.min(vol.told_capacity) } else { capacity };
                let size = new_size(capacity, p.d_size, agreed, configured);
                let shrinks = size.0 < vol.size.0;
                let in_use = state.disk >= DiskState::Outdated
                    && (state.conn < ConnState::Connected || state.pdsk == DiskState::Diskless);
                if shrinks && in_use {
                    let text = format!("The peer's disk size is too small! ({} < {} sectors)", size.0, vol.size.0);
                    self.log(Level::Error, Some(v), text);
                    self.refuse(Refused::TooSmall { volume: v });
                    return self.drop_link(ConnState::Disconnecting);
                }
                vol.opts.size = configured;
                // Nobody grows alone: outside the handshake only where the peer has grown, or orders it (0).
                let alone = !handshake && old_size.0 > 0 && size > old_size && p.c_size.0 != 0 && p.c_size < size;
                if !alone {
                    self.set_size(v, size, !p.dds_flags.has(DdsFlags::NO_RESYNC));
                }
            }
            None => {
                let offered = [p.c_size, p.u_size, p.d_size].into_iter().find(|s| s.0 > 0);
                let Some(size) = offered.filter(|s| *s != vol.size) else { return };
                if p.d_size.0 == 0 && vol.size.0 > 0 {
                    let text =
                        format!("Ignored diskless peer device size (peer:{} != me:{} sectors)!", size.0, vol.size.0);
                    return self.log(Level::Warn, Some(v), text);
                }
                if size.0 < vol.size.0 && state.role == Role::Primary {
                    let text = format!(
                        "The peer's device size is too small! ({} < {} sectors); demote me first!",
                        size.0, vol.size.0
                    );
                    self.log(Level::Error, Some(v), text);
                    self.refuse(Refused::TooSmall { volume: v });
                    return self.drop_link(ConnState::Disconnecting);
                }
                self.set_size(v, size, true);
            }
        }
        let size = self.size_of(v);
        if state.conn > ConnState::WfReportParams {
            if size != p.c_size {
                self.send_sizes_with(v, false, p.dds_flags);
            }
            let ordered = p.c_size.0 == 0 || p.c_size > old_size;
            self.follow_resize(v, size > old_size && old_size.0 > 0, ordered, p.dds_flags);
        }
    }

    /// Generation identifiers.
    pub(crate) fn on_uuids(&mut self, v: VolumeNr, p: &Uuids) {
        let version = self.conn.version;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let state = vol.state;
        let uuids = PeerUuids {
            ids: GenIds { current: p.current, bitmap: p.bitmap, history: p.history },
            bits_set: p.bits_set,
            flags: UuidFlags(p.flags.0),
        };
        let without_disk = state.disk < DiskState::Inconsistent;
        let first_sight = state.conn < ConnState::Connected || state.pdsk == DiskState::Diskless;
        if state.role == Role::Primary && without_disk && first_sight && !vol.exposed.same(p.current) {
            let text = format!("Can only connect to data with current UUID={}", vol.exposed);
            self.log(Level::Error, Some(v), text);
            self.refuse(Refused::OtherGeneration { volume: v });
            return self.drop_link(ConnState::Disconnecting);
        }
        vol.peer.uuids = Some(uuids);
        let just_created =
            vol.disk.as_ref().is_some_and(|d| d.sb.current.masked() == crate::units::GenId::JUST_CREATED.0);
        if uuids.flags.has(UuidFlags::SKIP_INITIAL_SYNC)
            && version >= 90
            && state.conn == ConnState::Connected
            && just_created
            && let Some(disk) = vol.disk.as_mut()
        {
            disk.bitmap.clear_all();
            let ids = disk.ids().skip_initial_sync(p.current, state.role == Role::Primary);
            disk.set_ids(ids);
            self.log(Level::Info, Some(v), "Accepted new current UUID, preparing to skip initial sync");
            self.log(Level::Info, Some(v), format!("receiver updated UUIDs to {ids}"));
            self.hold_data();
            let link = self.conn.link;
            self.force(v, &StateChange::NONE.disk(DiskState::UpToDate).pdsk(DiskState::UpToDate));
            // What was said of the disk before may still be on its way to the peer.
            self.send_state(v);
            self.md_bitmap(v, true, Some(MdDone::Release(link)));
        } else if without_disk
            // What a failed disk had last is not what anybody uses.
            && state.pdsk != DiskState::Failed
            && match state.role {
                // Clients have seen nothing of the target of a resync from here: the own disk may come back to them, and only
                // that. A peer that began a generation has one before it, a target has none.
                Role::Primary => state.pdsk != DiskState::Inconsistent || p.bitmap.0 != 0,
                _ => state.conn == ConnState::Connected,
            }
            && vol.exposed != p.current
        {
            vol.exposed = p.current;
            self.log(Level::Info, Some(v), format!("receiver updated UUIDs to effective data uuid: {}", p.current));
        }
    }

    /// The peer's state (behaviour.md 2.10).
    pub(crate) fn on_state(&mut self, v: VolumeNr, word: StateWord) {
        if !self.conn.peer_protocol {
            return self.peer_error("P_STATE", String::from("came before P_PROTOCOL"));
        }
        let Some(ps) = VolumeState::from_word(word) else {
            return self.peer_error("P_STATE", format!("{word:?} names no state"));
        };
        let Some(vol) = self.volumes.get(&v) else { return };
        let os = vol.state;
        let ctx = ReceivedContext {
            peer_flags: vol.peer.uuids.map(|u| u.flags),
            consider_resync: vol.consider_resync,
            asked: self.conn.question.filter(|question| question.volume == v).and_then(|question| question.conn),
            attach_disk: vol.attach_disk,
            may_be_done: vol.resync.as_ref().is_some_and(|resync| resync.asked)
                || vol.out_of_sync_bits() <= vol.resync.as_ref().map_or(0, super::resync::Resync::failed),
        };
        if ps.conn == ConnState::Connected && matches!(ps.disk, DiskState::Inconsistent | DiskState::UpToDate) {
            // The target is done; bits that application writes still hold here are cleared by their last
            // acknowledgements, and the end follows then.
            self.note_peer_finished(v, ps.disk);
        }
        match read_peer_state(&os, &ps, &ctx) {
            Received::TearingDown => {}
            Received::Ignore => self.note_peer_role(v, &ps),
            Received::FinishResync => {
                self.note_peer_role(v, &ps);
                self.check_source_done(v);
            }
            Received::BothTargets => {
                self.log(
                    Level::Error,
                    Some(v),
                    "the peer waits for the bitmap, too: no source; dropping the connection",
                );
                self.drop_link(ConnState::NetworkFailure);
            }
            Received::FinishVerify => {
                self.note_peer_role(v, &ps);
                self.ping_then(AfterPing::VerifyFinish(v));
            }
            Received::Apply(view) => self.apply_peer_state(v, &os, &ps, &ctx, view),
        }
    }

    /// What a state says besides that a resync or verify is over. The peer may have changed its role since, or in the
    /// same breath, and says so only once.
    fn note_peer_role(&mut self, v: VolumeNr, ps: &VolumeState) {
        self.force(v, &StateChange::NONE.peer(ps.role).peer_isp(ps.aftr_isp || ps.user_isp));
    }

    fn apply_peer_state(
        &mut self,
        v: VolumeNr,
        os: &VolumeState,
        ps: &VolumeState,
        ctx: &ReceivedContext,
        mut view: PeerView,
    ) {
        let mut attach_aborted = false;
        let both = os.disk >= DiskState::Negotiating && ps.disk >= DiskState::Negotiating;
        if !view.handshake && both && os.conn == ConnState::WfReportParams {
            return self.peer_error("P_STATE", "came before P_UUIDS");
        }
        let lost = os.role == Role::Primary && os.disk < DiskState::Inconsistent && os.conn < ConnState::Connected;
        if lost
            && ps.disk > DiskState::Negotiating
            && let Some(vol) = self.volumes.get(&v)
            && vol.peer.uuids.is_some_and(|uuids| !vol.exposed.same(uuids.ids.current))
        {
            // The own disk went after the identifiers had come.
            let text = format!("Can only connect to data with current UUID={}", vol.exposed);
            self.log(Level::Error, Some(v), text);
            self.refuse(Refused::OtherGeneration { volume: v });
            return self.drop_link(ConnState::Disconnecting);
        }
        if view.handshake {
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.consider_resync = false;
            }
            let outcome = self.handshake(v, ps, view.real_disk);
            for (line, left) in outcome.log.iter().zip((0..outcome.log.len()).rev()) {
                self.log_fact(Level::Info, Some(v), line.clone(), (left == 0).then(|| outcome.fact()));
            }
            for handler in &outcome.handlers {
                self.tell_helper(*handler, Some(v));
            }
            match outcome.decision {
                Decision::Connected => {}
                Decision::Source { full } => {
                    view.conn = ConnState::WfBitMapS;
                    self.set_all_if(v, full);
                }
                Decision::Target { full } => {
                    view.conn = ConnState::WfBitMapT;
                    self.undo_begin(v, outcome.comparison.verdict);
                    self.set_all_if(v, full);
                }
                Decision::Refuse(reason) => {
                    if os.disk == DiskState::Negotiating {
                        self.log(Level::Error, Some(v), "the peer's data do not fit this disk; attach refused");
                        return self.force(v, &StateChange::NONE.disk(DiskState::Failed));
                    }
                    if ps.disk == DiskState::Negotiating {
                        self.log(Level::Warn, Some(v), "Disk attach process on the peer node was aborted.");
                        view.pdsk = DiskState::Diskless;
                        attach_aborted = true;
                    } else if reason == RefuseReason::DryRun && self.conn.peer_dry_run {
                        return self.drop_link(ConnState::ProtocolError);
                    } else {
                        self.refuse(Refused::Handshake { volume: v, reason });
                        return self.drop_link(ConnState::Disconnecting);
                    }
                }
            }
        }
        if os.conn == ConnState::Behind && view.pdsk <= DiskState::Failed {
            // This disk lacks what that one had, and would pass for good.
            self.log(Level::Error, Some(v), "the peer that is ahead has lost its disk; dropping the connection");
            return self.drop_link(ConnState::NetworkFailure);
        }
        let pending = self.volumes.get(&v).is_some_and(|vol| vol.new_uuid_pending);
        if view.pdsk == DiskState::Consistent
            && view.conn == ConnState::Connected
            && os.conn < ConnState::Connected
            && os.is_suspended()
            && pending
        {
            // It went down meanwhile, and what it had acknowledged may be gone.
            self.log(Level::Error, Some(v), "Aborting Connect, can not thaw IO with an only Consistent peer");
            self.thaw(&StateChange::NONE.susp(false), Fate::Lost);
            return self.drop_link(ConnState::ProtocolError);
        }
        let mut change = view.change(os, ps, ctx);
        if change.disk.is_some() && !view.handshake && !self.may_settle_attach(v, ps.role) {
            change = change.disk(DiskState::Failed);
        }
        if let Err(code) = self.change(v, &change, view.mode) {
            self.log(Level::Error, Some(v), format!("the peer's state is not acceptable: {}", code.text()));
            self.refuse(Refused::State { volume: v, result: code });
            // A peer that has lost its disk: these data stay Outdated until it has it back.
            let lost_source = os.disk == DiskState::Outdated && view.pdsk <= DiskState::Failed;
            return self.drop_link(if lost_source { ConnState::NetworkFailure } else { ConnState::Disconnecting });
        }
        if attach_aborted || view.peer_must_decide(os, ps) {
            // It has to see for itself, or it would wait for ever.
            self.send_uuids_durably(v);
            self.send_state(v);
        } else if self.has_other_view(v, ps) {
            self.send_state(v);
        }
        self.conn.refused = None;
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.discard_my_data = false;
            vol.peer.decided = true;
            if view.handshake {
                vol.target_maybe_done = false;
                vol.target_missed_write = false;
                vol.target_unknown = false;
            }
        }
        if self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()).is_some_and(|d| d.sb_dirty) {
            self.md_superblock(v, None);
        }
    }

    /// A connected peer that has lost its disk judges this node's otherwise than it is: it gave up, for its disk, what this node had
    /// not begun, or had ended. A node without a disk goes by that view, and nothing else would correct it.
    fn has_other_view(&self, v: VolumeNr, ps: &VolumeState) -> bool {
        let own = self.state(v);
        own.conn == ConnState::Connected
            && ps.conn == ConnState::Connected
            && ps.disk <= DiskState::Failed
            && matches!(own.disk, DiskState::Inconsistent | DiskState::UpToDate)
            && ps.pdsk != own.disk
    }

    /// Whether a disk that is being attached may serve without a handshake, because the peer has no data any more: the
    /// same check as at an attach without a good peer, which was left to the handshake.
    fn may_settle_attach(&mut self, v: VolumeNr, peer: Role) -> bool {
        let Some(vol) = self.volumes.get(&v) else { return true };
        let Some(disk) = vol.disk.as_ref() else { return true };
        let alone = VolumeState { peer, pdsk: DiskState::Diskless, ..vol.state };
        let may = !vol.behind && may_attach_generation(&alone, vol.exposed, disk.ids().current);
        if !may {
            let text = format!("Can only attach to data with current UUID={}; the peer's are gone", vol.exposed);
            self.log(Level::Error, Some(v), text);
        }
        may
    }

    fn set_all_if(&mut self, v: VolumeNr, full: bool) {
        if full && let Some(disk) = self.volumes.get_mut(&v).and_then(|vol| vol.disk.as_mut()) {
            disk.bitmap.set_all();
            self.md_bitmap(v, false, None);
        }
    }
}

/// Takes over the peer's algorithm; while the connection starts a difference is an error instead: (mine, theirs).
fn adopt(mine: &mut AlgName, theirs: Option<AlgName>, starting: bool) -> Option<(String, String)> {
    let theirs = theirs.filter(|theirs| theirs.as_str() != mine.as_str())?;
    if starting {
        return Some((mine.as_str().to_owned(), theirs.as_str().to_owned()));
    }
    *mine = theirs;
    None
}

fn smaller_set(a: Sectors, b: Sectors) -> Sectors {
    match (a.0, b.0) {
        (0, _) => b,
        (_, 0) => a,
        _ => a.min(b),
    }
}

/// The size of a volume from the own capacity, the peer's disk size, the last agreed size and the configured size;
/// 0 is "unknown" for each (behaviour.md 11.2).
pub(crate) fn new_size(own: Sectors, peer: Sectors, agreed: Sectors, configured: Sectors) -> Sectors {
    let size = if own.0 > 0 && peer.0 > 0 {
        own.min(peer)
    } else if agreed.0 > 0 {
        let cap = |s: Sectors, limit: Sectors| if limit.0 > 0 { s.min(limit) } else { s };
        cap(cap(agreed, own), peer)
    } else {
        own.max(peer)
    };
    if configured.0 > 0 && configured <= size { configured } else { size }
}

/// Packets that carry parameters of a volume are read and ignored for volumes that are not configured here.
pub(crate) const fn is_parameter(packet: &Packet) -> bool {
    matches!(packet, Packet::SyncParam(_) | Packet::Sizes(_) | Packet::Uuids(_) | Packet::State(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_table() {
        let s = Sectors;
        assert_eq!(new_size(s(100), s(80), s(90), s(0)), s(80));
        assert_eq!(new_size(s(100), s(0), s(90), s(0)), s(90));
        assert_eq!(new_size(s(80), s(0), s(90), s(0)), s(80));
        assert_eq!(new_size(s(100), s(0), s(0), s(0)), s(100));
        assert_eq!(new_size(s(0), s(70), s(0), s(0)), s(70));
        assert_eq!(new_size(s(100), s(80), s(0), s(50)), s(50));
        assert_eq!(new_size(s(100), s(80), s(0), s(90)), s(80));
    }
}
