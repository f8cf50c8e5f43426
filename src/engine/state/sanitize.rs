//! Coerces a wished state into one that fits together.
//!
//! Takes in: the current state, the wished one, the context. Gives out: the state to check and commit, and at most one
//! warning. Invariant: idempotent (for the same current state). Source: behaviour.md 2.4.

use std::ops::RangeInclusive;

use super::{Fencing, StateContext, VolumeState};
use crate::wire::state::ConnState as C;
use crate::wire::state::DiskState as D;
use crate::wire::state::Role;

const WARN_VERIFY_ABORTED: &str = "Online-verify aborted.";
const WARN_RESYNC_ABORTED: &str = "Resync aborted.";
const WARN_NO_DATA: &str = "Connection lost while negotiating, no data!";
const WARN_DISK_RAISED: &str = "Implicitly upgraded disk";
const WARN_PDSK_RAISED: &str = "Implicitly upgraded pdsk";

/// The state that results from the wish `new`; of several warnings the last one.
#[must_use]
pub fn sanitize(old: &VolumeState, new: &VolumeState, ctx: &StateContext) -> (VolumeState, Option<&'static str>) {
    let mut ns = *new;
    let mut warning = None;

    if ns.conn < C::Connected {
        forget_peer(&mut ns);
    }
    if ns.conn > C::Connected && (ns.disk <= D::Failed || ns.pdsk <= D::Failed) {
        let verify = matches!(ns.conn, C::VerifyS | C::VerifyT);
        lacks_data(&mut ns);
        warning = Some(if verify { WARN_VERIFY_ABORTED } else { WARN_RESYNC_ABORTED });
        ns.conn = C::Connected;
    }
    if ns.conn < C::Connected && ns.disk == D::Negotiating {
        if ctx.exposed_is_current {
            ns.disk = ctx.attach_disk;
            ns.pdsk = ctx.attach_pdsk;
        } else {
            warning = Some(WARN_NO_DATA);
            ns.disk = D::Diskless;
            ns.pdsk = D::DUnknown;
        }
    }
    if ns.is_unconfigured() {
        ns.aftr_isp = false;
    }
    if (C::Connected..C::Ahead).contains(&ns.conn) {
        ns.disk = un_outdated(ns.disk);
        ns.pdsk = un_outdated(ns.pdsk);
    }
    warning = clamp(&mut ns).or(warning);
    suspend(old, &mut ns, ctx);
    warning = pause(&mut ns).or(warning);
    (ns, warning)
}

/// Rule 1: without a connection nothing is known of the peer but that its disk was bad.
fn forget_peer(ns: &mut VolumeState) {
    ns.peer_isp = false;
    ns.peer = Role::Unknown;
    if ns.pdsk > D::DUnknown || ns.pdsk < D::Inconsistent {
        ns.pdsk = D::DUnknown;
    }
}

/// A resync is given up before it began, for want of a disk on one side. The target's data are those of an older generation,
/// and do not become good by that (a kernel node calls them UpToDate then).
const fn lacks_data(ns: &mut VolumeState) {
    let target = match ns.conn {
        C::StartingSyncS | C::WfBitMapS => &mut ns.pdsk,
        C::StartingSyncT | C::WfBitMapT | C::WfSyncUuid => &mut ns.disk,
        _ => return,
    };
    if matches!(target, D::Consistent | D::Outdated) {
        *target = D::Inconsistent;
    }
}

/// Rule 5: connected nodes of the same generation have no outdated data.
const fn un_outdated(disk: D) -> D {
    match disk {
        D::Consistent | D::Outdated => D::UpToDate,
        other => other,
    }
}

/// Rule 6: the disk states that a connection state implies, own and peer's.
fn ranges(conn: C) -> (RangeInclusive<D>, RangeInclusive<D>) {
    const GOOD: RangeInclusive<D> = D::UpToDate..=D::UpToDate;
    const BAD: RangeInclusive<D> = D::Inconsistent..=D::Inconsistent;
    match conn {
        C::StandAlone
        | C::Disconnecting
        | C::Unconnected
        | C::Timeout
        | C::BrokenPipe
        | C::NetworkFailure
        | C::ProtocolError
        | C::TearDown
        | C::WfConnection
        | C::WfReportParams => (D::Diskless..=D::UpToDate, D::Inconsistent..=D::DUnknown),
        C::Connected => (D::Diskless..=D::UpToDate, D::Diskless..=D::UpToDate),
        C::WfBitMapT | C::PausedSyncT | C::StartingSyncT | C::WfSyncUuid | C::Behind => {
            (D::Inconsistent..=D::Outdated, GOOD)
        }
        C::SyncTarget => (BAD, GOOD),
        C::WfBitMapS | C::PausedSyncS | C::StartingSyncS | C::Ahead => (GOOD, D::Inconsistent..=D::Consistent),
        C::SyncSource => (GOOD, BAD),
        C::VerifyS | C::VerifyT => (GOOD, GOOD),
    }
}

fn clamp(ns: &mut VolumeState) -> Option<&'static str> {
    let (disk, pdsk) = ranges(ns.conn);
    let mut warning = None;
    if ns.disk < *disk.start() {
        warning = Some(WARN_DISK_RAISED);
    }
    if ns.pdsk < *pdsk.start() {
        warning = Some(WARN_PDSK_RAISED);
    }
    ns.disk = ns.disk.clamp(*disk.start(), *disk.end());
    ns.pdsk = ns.pdsk.clamp(*pdsk.start(), *pdsk.end());
    warning
}

/// Rules 7 and 8: I/O is frozen the moment its precondition gets lost; a freeze that was lifted is not renewed.
fn suspend(old: &VolumeState, ns: &mut VolumeState, ctx: &StateContext) {
    let peer_lost = |s: &VolumeState| s.role == Role::Primary && s.conn < C::Connected && s.pdsk > D::Outdated;
    let no_data = |s: &VolumeState| s.role == Role::Primary && s.disk < D::UpToDate && s.pdsk < D::UpToDate;
    if ctx.effective_fencing(old.disk) == Fencing::ResourceAndStonith && peer_lost(ns) && !peer_lost(old) {
        ns.susp_fen = true;
    }
    if ctx.on_no_data_suspend && no_data(ns) && !no_data(old) {
        ns.susp_nod = true;
    }
}

/// Rules 9 and 10: any pause flag pauses a resync, none lets it run. A running resync implies narrower disk states than
/// a paused one, so these are clamped again.
fn pause(ns: &mut VolumeState) -> Option<&'static str> {
    let conn = match (ns.conn, ns.is_sync_paused()) {
        (C::SyncSource, true) => C::PausedSyncS,
        (C::SyncTarget, true) => C::PausedSyncT,
        (C::PausedSyncS, false) => C::SyncSource,
        (C::PausedSyncT, false) => C::SyncTarget,
        (other, _) => other,
    };
    if conn == ns.conn {
        return None;
    }
    ns.conn = conn;
    clamp(ns)
}

#[cfg(test)]
mod tests;
