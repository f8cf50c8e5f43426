//! Which changes are refused, and the path of a change from request to new state.
//!
//! Takes in: old state, change, [`StateContext`]. Gives out: the sanitized new state or the reason for the refusal.
//! Source: behaviour.md 2.1, 2.3, 2.5.

use super::{Fencing, StateChange, StateContext, VolumeState, sanitize};
use crate::wire::state::ConnState as C;
use crate::wire::state::DiskState as D;
use crate::wire::state::{Role, StateResult as R};

/// How much of the checking a change goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeMode {
    /// A fact (link lost, I/O error, forced detach, most received states): only the transition check.
    Hard,
    /// A wish: all checks; what is wrong already in the old state does not stand in the way.
    Soft,
}

/// A change that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    /// The sanitized new state.
    pub new: VolumeState,
    /// Warning to log.
    pub warning: Option<&'static str>,
    /// Nothing differs from the old state: no effect at all.
    pub nothing: bool,
}

/// Sanitizes and checks a change. The error is the code for the requester; `InTransientState` means "wait for the next
/// state change and try again".
///
/// # Errors
/// The first check that fails.
pub fn plan(old: &VolumeState, change: &StateChange, mode: ChangeMode, ctx: &StateContext) -> Result<PlannedChange, R> {
    let planned = plan_transition(old, change, ctx)?;
    if planned.nothing || mode == ChangeMode::Hard {
        return Ok(planned);
    }
    if let Err(code) = check_state(&planned.new, old, ctx)
        && check_state(old, old, ctx) != Err(code)
    {
        return Err(code);
    }
    check_soft_transition(old, &planned.new, ctx)?;
    Ok(planned)
}

/// Sanitizes and checks a change that the peer is asked for first ([`is_cluster_wide`]): as a soft change, but a state
/// that is wrong already is an error.
///
/// # Errors
/// The first check that fails.
pub fn plan_cluster_wide(old: &VolumeState, change: &StateChange, ctx: &StateContext) -> Result<PlannedChange, R> {
    let planned = plan_transition(old, change, ctx)?;
    if !planned.nothing {
        check_state(&planned.new, old, ctx)?;
        check_soft_transition(old, &planned.new, ctx)?;
    }
    Ok(planned)
}

fn plan_transition(old: &VolumeState, change: &StateChange, ctx: &StateContext) -> Result<PlannedChange, R> {
    let (new, warning) = sanitize(old, &change.apply(*old), ctx);
    if is_made_good(old, &new, change) {
        let outdates = matches!(change.disk, Some(D::Outdated | D::Consistent));
        return Err(if outdates { R::LowerThanOutdated } else { R::NoUpToDateDisk });
    }
    let planned = PlannedChange { new, warning, nothing: new == *old };
    if !planned.nothing {
        check_transition(old, &new)?;
    }
    Ok(planned)
}

/// Whether a disk that is not good becomes so only because the rest of the state implies it (a connected disk is not
/// Outdated, that of a source is good): nothing but the end of a resync or an order that says so may do that.
fn is_made_good(old: &VolumeState, new: &VolumeState, change: &StateChange) -> bool {
    match old.disk {
        // It is going, and comes back only by an attach.
        D::Failed => new.disk > D::Failed,
        D::Inconsistent => new.disk > D::Inconsistent && change.disk != Some(D::UpToDate),
        // Only a handshake settles it, an order to outdate it does not. (Without a connection it becomes what was found at
        // attach.)
        D::Negotiating => {
            let outdates = change.disk == Some(D::Outdated) && change.conn.is_none();
            new.disk == D::UpToDate && new.conn >= C::Connected && (change.disk.is_none() || outdates)
        }
        D::Outdated => {
            // A resync that never began, for its source lost the data; or a Primary without data to compare with.
            let unbegun = matches!(old.conn, C::WfBitMapT | C::StartingSyncT | C::WfSyncUuid | C::PausedSyncT);
            let unjudged = old.conn == C::WfReportParams && new.peer == Role::Primary && new.pdsk <= D::Failed;
            (unbegun || unjudged) && new.disk == D::UpToDate && new.conn == C::Connected && change.disk.is_none()
        }
        _ => false,
    }
}

/// Whether the step itself is possible; applies to facts too. No change of the connection state is no error.
///
/// # Errors
/// The code for the requester.
pub fn check_transition(old: &VolumeState, new: &VolumeState) -> Result<(), R> {
    if new.disk == D::Failed && old.disk == D::Diskless {
        return Err(R::IsDiskless);
    }
    let (oc, nc) = (old.conn, new.conn);
    if oc == nc {
        Ok(())
    } else if oc == C::StandAlone && nc == C::Disconnecting {
        Err(R::AlreadyStandalone)
    } else if (oc == C::StandAlone && nc != C::Unconnected) || (oc < C::WfReportParams && nc >= C::Connected) {
        Err(R::NeedConnection)
    } else if ((C::Timeout..=C::TearDown).contains(&oc) && nc != C::Unconnected && nc != C::Disconnecting)
        || (oc == C::Disconnecting && nc != C::StandAlone)
    {
        // The first reason for losing the link sticks.
        Err(R::InTransientState)
    } else {
        Ok(())
    }
}

/// Whether `new` is a state to be in. `old` only says whether a local disk is usable and its fencing policy counts.
///
/// # Errors
/// The code for the requester.
pub fn check_state(new: &VolumeState, old: &VolumeState, ctx: &StateContext) -> Result<(), R> {
    let primary = new.role == Role::Primary;
    let one_primary_only = ctx.has_net_config && !ctx.allow_two_primaries;
    let fencing = ctx.effective_fencing(old.disk);
    let verify = matches!(new.conn, C::VerifyS | C::VerifyT);
    let no_good_data = new.disk < D::UpToDate && new.pdsk < D::UpToDate;

    if one_primary_only && primary && new.peer == Role::Primary {
        Err(R::TwoPrimaries)
    } else if one_primary_only && primary && ctx.peer_primary_on_other_volume {
        Err(R::OVolPeerPri)
    } else if new.role == Role::Secondary && ctx.open_count > 0 {
        Err(R::DeviceInUse)
    } else if primary && new.conn < C::Connected && new.disk < D::UpToDate {
        Err(R::NoUpToDateDisk)
    } else if fencing >= Fencing::ResourceOnly && primary && new.conn < C::Connected && new.pdsk >= D::DUnknown {
        Err(R::PrimaryNop)
    } else if primary && new.disk <= D::Inconsistent && new.pdsk <= D::Inconsistent {
        Err(R::NoUpToDateDisk)
    } else if new.conn > C::Connected && new.disk < D::Inconsistent {
        Err(R::NoLocalDisk)
    } else if new.conn > C::Connected && new.pdsk < D::Inconsistent {
        Err(R::NoRemoteDisk)
    } else if new.conn > C::Connected && no_good_data {
        Err(R::NoUpToDateDisk)
    } else if matches!(new.conn, C::Connected | C::WfBitMapS | C::SyncSource | C::PausedSyncS)
        && new.disk == D::Outdated
    {
        Err(R::ConnectedOutdates)
    } else if verify && !ctx.verify_alg {
        Err(R::NoVerifyAlg)
    } else if verify && ctx.version < 88 {
        Err(R::NotSupported)
    } else if primary && no_good_data {
        Err(R::NoUpToDateDisk)
    } else if matches!(new.conn, C::StartingSyncS | C::StartingSyncT) && new.pdsk == D::DUnknown {
        Err(R::NeedConnection)
    } else if new.conn >= C::Connected && new.pdsk == D::DUnknown {
        Err(R::ConnectedOutdates)
    } else {
        Ok(())
    }
}

/// Whether a wished step is allowed. Of several reasons the last one counts.
///
/// # Errors
/// The code for the requester.
pub fn check_soft_transition(old: &VolumeState, new: &VolumeState, ctx: &StateContext) -> Result<(), R> {
    let starting_sync = matches!(new.conn, C::StartingSyncS | C::StartingSyncT);
    let verify = matches!(new.conn, C::VerifyS | C::VerifyT);
    let conn_changes = new.conn != old.conn;
    let exchange_goes_on = (old.conn == C::WfConnection && new.conn == C::WfReportParams)
        || (old.conn == C::WfReportParams && new.conn >= C::Connected);
    // The peer was promoted with force and the resync towards this node has not begun yet.
    let promotion_before_resync = old.role != Role::Primary
        && new.role == Role::Primary
        && new.pdsk == D::UpToDate
        && new.disk != D::UpToDate
        && new.disk != D::Diskless
        && (new.conn <= C::WfSyncUuid || conn_changes);

    let rules = [
        (starting_sync && old.conn > C::Connected, R::ResyncRunning),
        (new.conn == C::Disconnecting && old.conn == C::StandAlone, R::AlreadyStandalone),
        (new.disk > D::Attaching && old.disk == D::Diskless, R::IsDiskless),
        (new.conn == C::WfConnection && old.conn < C::Unconnected, R::NoNetConfig),
        (new.disk == D::Outdated && old.disk < D::Outdated && old.disk != D::Attaching, R::LowerThanOutdated),
        (new.conn == C::Disconnecting && old.conn == C::Unconnected, R::InTransientState),
        (ctx.state_sent && !exchange_goes_on, R::InTransientState),
        (promotion_before_resync, R::InTransientState),
        (verify && old.conn < C::Connected, R::NeedConnection),
        (verify && conn_changes && old.conn > C::Connected, R::ResyncRunning),
        (starting_sync && old.conn < C::Connected, R::NeedConnection),
        (matches!(new.conn, C::SyncTarget | C::SyncSource) && old.conn < C::WfReportParams, R::NeedConnection),
        (
            new.conn == C::Disconnecting
                && new.pdsk == D::Outdated
                && old.conn < C::Connected
                && old.pdsk > D::Outdated,
            R::OutdateWoConn,
        ),
    ];
    rules.iter().rev().find(|(broken, _)| *broken).map_or(Ok(()), |(_, code)| Err(*code))
}

/// Whether a wished change needs the peer's consent first. Demotion does not.
#[must_use]
pub fn is_cluster_wide(old: &VolumeState, new: &VolumeState) -> bool {
    let enters = |conn: C| old.conn != conn && new.conn == conn;
    let promotes = old.role != Role::Primary && new.role == Role::Primary;
    let detaches = old.disk != D::Failed && new.disk == D::Failed;

    (old.conn >= C::Connected
        && new.conn >= C::Connected
        && (promotes || enters(C::StartingSyncT) || enters(C::StartingSyncS) || detaches))
        || (old.conn >= C::Connected && new.conn == C::Disconnecting)
        || (old.conn == C::Connected && matches!(new.conn, C::VerifyS | C::WfReportParams))
}

#[cfg(test)]
mod tests;
