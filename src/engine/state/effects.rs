//! What follows from a committed change, as lists of orders that the engine carries out in order.
//!
//! Three lists: [`side_effects`] belong to the commit itself, [`after_effects`] follow it for a volume,
//! [`connection_effects`] follow it once for the connection. Source: behaviour.md 2.6, 2.7, 2.8.

use super::{StateContext, VolumeState, replicates};
use crate::engine::handler::Handler;
use crate::wire::state::ConnState as C;
use crate::wire::state::DiskState as D;
use crate::wire::state::Role;

/// What happens to the requests of the transfer log when suspended I/O is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartHow {
    /// Sent to the peer again; acknowledged ones count as barrier-acknowledged.
    Resend,
    /// Local parts that had completed are submitted again.
    RestartDiskIo,
}

/// An order that follows from a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// 1: tell the observers.
    Notify,
    /// 2: clear the crashed-primary flag, own and in the stored copy of the peer's flags.
    ClearCrashedPrimary,
    /// 3, 19: run a helper.
    RunHandler(Handler),
    /// 4: restart the transfer log, clear susp_nod.
    ThawNoData(RestartHow),
    /// 5: forget pending new current identifiers of all volumes, resend the transfer log, clear susp_fen.
    ThawReconnected,
    /// 6: make the sync identifier, write metadata, send `P_SYNC_UUID`.
    SendSyncUuid,
    /// 7: reset the resync counters (the peer attached).
    ResetResyncCounters,
    /// 7, 9, 10, 13: send `P_UUIDS`.
    SendUuids,
    /// 13: send `P_SIZES`.
    SendSizes,
    /// 7, 13, 14, 16, 17, 19, 20, 21, 24, 25: send `P_STATE` with the state of this change.
    SendState,
    /// 8: send the bitmap as soon as application I/O has drained.
    QueueSendBitmap,
    /// 9, 10: make a new current identifier.
    NewCurrentUuid,
    /// 9: a new current identifier is due; I/O waits for fencing or data.
    SetNewCurrentUuidPending,
    /// 11, 12: write the changed bitmap pages.
    WriteBitmapPages,
    /// 15: pause dependent volumes.
    PauseDependents,
    /// 18: set and write all bits, then start the resync as source.
    StartFullSyncSource,
    /// 18: set and write all bits, then request WFSyncUUID.
    StartFullSyncTarget,
    /// 19: complete pending local I/O as failed; its buffers stay taken until the disk returns them.
    AbortLocalIo,
    /// 19: forget all resync extents.
    ForgetResyncExtents,
    /// 19: write metadata.
    WriteMetadata,
    /// 19, 20: drop the reference that the commit took; after Failed the last one leads to Diskless.
    DropDiskReference,
    /// 22: clear the mark; if Connected start the resync of the grown part.
    ResyncAfterGrow,
    /// 23, 27: let dependent volumes go on.
    ResumeDependents,
    /// 26: write the bitmap in the background.
    QueueBitmapWrite,
    /// 28: write metadata if it changed.
    WriteMetadataIfDirty,
    /// Connection: start connecting.
    StartReceiver,
    /// Connection: drop the network configuration.
    DiscardNetConfig,
    /// Connection: new current identifier where one is pending, give up on all unacknowledged requests towards the peer,
    /// clear susp_fen.
    ThawFenced,
}

/// What follows from a committed change of a volume.
#[must_use]
pub fn after_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext) -> Vec<Effect> {
    let mut out = vec![Effect::Notify];
    data_effects(old, new, ctx, &mut out);
    contact_effects(old, new, ctx, &mut out);
    report_effects(old, new, &mut out);
    disk_effects(old, new, ctx, &mut out);
    end_effects(old, new, ctx, &mut out);
    out.push(Effect::WriteMetadataIfDirty);
    out
}

/// Numbers 2 to 8.
fn data_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext, out: &mut Vec<Effect>) {
    let both_good = |s: &VolumeState| s.disk == D::UpToDate && s.pdsk == D::UpToDate;
    let no_data = |s: &VolumeState| s.role == Role::Primary && s.disk < D::UpToDate && s.pdsk < D::UpToDate;
    let all_connected = new.conn >= C::Connected && ctx.others_connected;
    let is_source = |c: C| matches!(c, C::SyncSource | C::PausedSyncS);

    if !both_good(old) && both_good(new) {
        out.push(Effect::ClearCrashedPrimary);
    }
    if !no_data(old) && no_data(new) {
        out.push(Effect::RunHandler(Handler::PriOnInconDegr));
    }
    if new.susp_nod {
        let all_good = new.disk == D::UpToDate && ctx.others_up_to_date;
        if matches!(old.disk, D::Attaching | D::Negotiating) && all_good {
            out.push(Effect::ThawNoData(RestartHow::RestartDiskIo));
        } else if old.conn < C::Connected && all_connected {
            out.push(Effect::ThawNoData(RestartHow::Resend));
        }
    }
    if new.susp_fen && all_connected {
        out.push(Effect::ThawReconnected);
    }
    if !is_source(old.conn) && is_source(new.conn) && ctx.version >= 96 {
        out.push(Effect::SendSyncUuid);
    }
    if old.pdsk == D::Diskless && new.pdsk > D::Diskless && new.pdsk != D::DUnknown {
        out.extend([Effect::ResetResyncCounters, Effect::SendUuids, Effect::SendState]);
    }
    if old.conn != C::WfBitMapS && new.conn == C::WfBitMapS {
        out.push(Effect::QueueSendBitmap);
    }
}

/// Numbers 9 to 12.
fn contact_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext, out: &mut Vec<Effect>) {
    let lone_good_copy = ctx.bitmap_uuid_unset && new.disk >= D::UpToDate;
    let in_use = new.role == Role::Primary || new.peer == Role::Primary;
    let mut made = false;

    let parted = lost_contact_to_peer_data(old, new) || parts_from_bad_disk(old, new);
    if parted && in_use && lone_good_copy {
        // Where the administrator suspended I/O, nothing that was under way is kept for the peer: it lacks that from now on.
        if new.susp_nod || new.susp_fen {
            out.push(Effect::SetNewCurrentUuidPending);
        } else {
            out.extend([Effect::NewCurrentUuid, Effect::SendUuids]);
            made = true;
        }
    }
    if new.pdsk < D::Inconsistent && new.has_local_disk() {
        // A new current identifier fills the bitmap slot: number 9 rules out number 10.
        let good = lone_good_copy || (ctx.generation_shared && new.disk >= D::UpToDate);
        if old.peer != Role::Primary && new.peer == Role::Primary && good && !made {
            out.extend([Effect::NewCurrentUuid, Effect::SendUuids]);
        }
        if old.peer == Role::Primary && new.peer == Role::Secondary {
            out.push(Effect::WriteBitmapPages);
        }
    }
    let demoted = old.role == Role::Primary && new.role == Role::Secondary;
    if demoted && new.conn <= C::Connected && new.has_local_disk() {
        out.push(Effect::WriteBitmapPages);
    }
}

/// Numbers 13 to 18.
fn report_effects(old: &VolumeState, new: &VolumeState, out: &mut Vec<Effect>) {
    let connected = new.conn >= C::Connected;
    let enters = |conn: C| old.conn != conn && new.conn == conn;

    if connected && old.disk == D::Attaching && new.disk == D::Negotiating {
        out.extend([Effect::SendSizes, Effect::SendUuids, Effect::SendState]);
    }
    if connected && (old.aftr_isp != new.aftr_isp || old.user_isp != new.user_isp) {
        out.push(Effect::SendState);
    }
    if !old.is_sync_paused() && new.is_sync_paused() {
        out.push(Effect::PauseDependents);
    }
    if old.conn == C::WfReportParams && connected {
        out.push(Effect::SendState);
    }
    if enters(C::Ahead) {
        out.push(Effect::SendState);
    }
    if enters(C::StartingSyncS) {
        out.push(Effect::StartFullSyncSource);
    }
    if enters(C::StartingSyncT) {
        out.push(Effect::StartFullSyncTarget);
    }
}

/// Numbers 19 to 22.
fn disk_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext, out: &mut Vec<Effect>) {
    let connected = new.conn >= C::Connected;

    if old.disk != D::Failed && new.disk == D::Failed {
        if ctx.call_local_io_error {
            out.push(Effect::RunHandler(Handler::LocalIoError));
        }
        if ctx.forced_detach {
            out.push(Effect::AbortLocalIo);
        }
        if connected {
            out.push(Effect::SendState);
        }
        out.extend([Effect::ForgetResyncExtents, Effect::WriteMetadata, Effect::DropDiskReference]);
    }
    if old.disk != D::Diskless && new.disk == D::Diskless {
        if connected {
            out.push(Effect::SendState);
        }
        out.push(Effect::DropDiskReference);
    }
    if old.disk == D::UpToDate && new.disk == D::Inconsistent && connected {
        out.push(Effect::SendState);
    }
    if new.disk > D::Negotiating && new.pdsk > D::Negotiating && ctx.resync_after_negotiation {
        out.push(Effect::ResyncAfterGrow);
    }
}

/// Numbers 23 to 27.
fn end_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext, out: &mut Vec<Effect>) {
    let sync_ended = old.conn > C::Connected && new.conn <= C::Connected;
    let pause_lifted = (old.peer_isp && !new.peer_isp) || (old.user_isp && !new.user_isp);
    if sync_ended || pause_lifted {
        out.push(Effect::ResumeDependents);
    }
    if old.disk < D::UpToDate && old.conn >= C::SyncSource && new.conn == C::Connected {
        out.push(Effect::SendState);
    }
    if old.conn == C::VerifyS && new.conn == C::Connected && ctx.stop_sector_supported() {
        out.push(Effect::SendState);
    }
    let was_busy = old.conn > C::Connected && old.conn < C::Ahead;
    if was_busy && (new.conn == C::Connected || new.conn >= C::Ahead) && new.has_local_disk() {
        out.push(Effect::QueueBitmapWrite);
    }
    if new.is_unconfigured() && old.aftr_isp != new.aftr_isp {
        out.push(Effect::ResumeDependents);
    }
}

/// What follows from a committed change for the connection; once for all volumes that change together.
#[must_use]
pub fn connection_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext) -> Vec<Effect> {
    let mut out = Vec::new();
    if old.conn == C::StandAlone && new.conn == C::Unconnected {
        out.push(Effect::StartReceiver);
    }
    if old.conn == C::Disconnecting && new.conn == C::StandAlone {
        out.push(Effect::DiscardNetConfig);
    }
    if new.susp_fen && new.pdsk.max(ctx.others_highest_pdsk) <= D::Outdated {
        out.push(Effect::ThawFenced);
    }
    out.push(Effect::WriteMetadataIfDirty);
    out
}

/// Whether a change loses sight of the peer's data: the peer may go on without us, or we without it.
#[must_use]
pub const fn lost_contact_to_peer_data(old: &VolumeState, new: &VolumeState) -> bool {
    match old.pdsk {
        D::Inconsistent | D::Consistent | D::UpToDate => {
            matches!(new.pdsk, D::Diskless | D::Attaching | D::Failed | D::Negotiating | D::DUnknown | D::Outdated)
        }
        D::DUnknown => matches!(new.pdsk, D::Diskless | D::Failed | D::Outdated),
        _ => false,
    }
}

/// Whether the link to a peer with a bad disk goes. That the disk is bad the peer may have said before its superblock did:
/// after a power cut it comes back and calls itself good, in the generation that it had.
fn parts_from_bad_disk(old: &VolumeState, new: &VolumeState) -> bool {
    let parts = old.conn >= C::Connected && new.conn < C::Connected;
    parts && new.pdsk == D::Inconsistent
}

/// An order that belongs to the commit of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideEffect {
    /// 2: take a reference to the disk that an after-effect drops.
    TakeDiskReference,
    /// 3: the next end of a resync has not happened yet.
    ClearResyncDone,
    /// 4: close the epoch of the transfer log.
    CloseEpoch,
    /// 5: log `attached to UUIDs ..`.
    LogAttachedUuids,
    /// 6: the parameter exchange is over; delayed changes go on.
    ClearStateSent,
    /// 7: the reached position is where the next verify starts.
    StopVerify,
    /// 8: log `Syncer continues.`, account the pause; restart the request timer if target.
    ContinueSync {
        /// This node is the target.
        target: bool,
    },
    /// 8: log `Resync suspended`, remember when.
    SuspendSync,
    /// 9: initialise position and speed marks.
    StartVerify {
        /// This node drives (VerifyS): log the start, start the timer.
        driver: bool,
    },
    /// 10: recompute the metadata flags.
    UpdateMdFlags,
    /// 10: clients now see the current generation.
    ExposeCurrentUuid,
    /// 11: the next received state runs the handshake.
    SetConsiderResync,
    /// 12: end the connection.
    StopReceiver,
    /// 12: end the link and connect again.
    RestartReceiver,
    /// 13: log activity again (log `Resumed AL updates` if it was off), count the connect.
    ResumeAlAndCountConnect,
    /// 14: remember the time of the attach.
    MarkAttachTime,
}

/// What belongs to the commit of a change, in order.
#[must_use]
pub fn side_effects(old: &VolumeState, new: &VolumeState, ctx: &StateContext) -> Vec<SideEffect> {
    let syncing = |c: C| matches!(c, C::SyncSource | C::SyncTarget | C::PausedSyncS | C::PausedSyncT);
    let verifying = |c: C| matches!(c, C::VerifyS | C::VerifyT);
    let enters = |conn: C| old.conn != conn && new.conn == conn;
    let attaching = matches!(old.disk, D::Attaching | D::Negotiating);
    let mut out = Vec::new();
    let mut when = |condition: bool, effect: SideEffect| {
        if condition {
            out.push(effect);
        }
    };

    let disk_goes = old.disk != new.disk && matches!(new.disk, D::Failed | D::Diskless);
    when(disk_goes, SideEffect::TakeDiskReference);
    when(!syncing(old.conn) && syncing(new.conn), SideEffect::ClearResyncDone);
    when(replicates(old) != replicates(new), SideEffect::CloseEpoch);
    when(old.disk == D::Attaching && new.disk >= D::Negotiating, SideEffect::LogAttachedUuids);
    let exchange_over = old.conn == C::WfReportParams && new.conn != C::WfReportParams && ctx.others_left_report_params;
    when(exchange_over, SideEffect::ClearStateSent);
    when(verifying(old.conn) && new.conn <= C::Connected, SideEffect::StopVerify);
    match (old.conn, new.conn) {
        (C::PausedSyncT, C::SyncTarget) => when(true, SideEffect::ContinueSync { target: true }),
        (C::PausedSyncS, C::SyncSource) => when(true, SideEffect::ContinueSync { target: false }),
        (C::SyncTarget, C::PausedSyncT) | (C::SyncSource, C::PausedSyncS) => when(true, SideEffect::SuspendSync),
        _ => {}
    }
    let verify_starts = old.conn == C::Connected && verifying(new.conn);
    when(verify_starts, SideEffect::StartVerify { driver: new.conn == C::VerifyS });
    when(new.has_local_disk(), SideEffect::UpdateMdFlags);
    when(old.disk < D::Consistent && new.disk >= D::Consistent, SideEffect::ExposeCurrentUuid);
    let both_bad = old.disk == D::Inconsistent && old.pdsk == D::Inconsistent;
    let peer_promoted = old.peer == Role::Secondary && new.peer == Role::Primary;
    when(both_bad && peer_promoted, SideEffect::SetConsiderResync);
    when(enters(C::Disconnecting) || enters(C::StandAlone), SideEffect::StopReceiver);
    let link_lost = old.conn > C::WfConnection && (C::Timeout..=C::TearDown).contains(&new.conn);
    when(link_lost, SideEffect::RestartReceiver);
    when(old.conn < C::Connected && new.conn >= C::Connected, SideEffect::ResumeAlAndCountConnect);
    when(attaching && new.disk > D::Negotiating, SideEffect::MarkAttachTime);
    out
}

#[cfg(test)]
mod tests;
