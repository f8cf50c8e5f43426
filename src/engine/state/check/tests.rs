use super::*;

fn state(role: Role, conn: C, disk: D, pdsk: D) -> VolumeState {
    let peer = if conn >= C::Connected { Role::Secondary } else { Role::Unknown };
    VolumeState { role, peer, conn, disk, pdsk, ..VolumeState::default() }
}

fn primary(conn: C, disk: D, pdsk: D) -> VolumeState {
    state(Role::Primary, conn, disk, pdsk)
}

fn secondary(conn: C, disk: D, pdsk: D) -> VolumeState {
    state(Role::Secondary, conn, disk, pdsk)
}

fn net() -> StateContext {
    StateContext { has_net_config: true, verify_alg: true, ..StateContext::default() }
}

#[test]
fn every_step_of_the_connection_is_judged_by_the_table() {
    for oc in C::ALL.iter().copied() {
        for nc in C::ALL.iter().copied() {
            let conn = |conn| VolumeState { conn, ..VolumeState::default() };
            // The table of behaviour.md 2.3.1 in the numbers of the ABI.
            let want = match (oc.code(), nc.code()) {
                (o, n) if o == n => Ok(()),
                (0, 1) => Err(R::AlreadyStandalone),
                (0, n) if n != 2 => Err(R::NeedConnection),
                (o, n) if o < 9 && n >= 10 => Err(R::NeedConnection),
                (3..=7, n) if n != 2 && n != 1 => Err(R::InTransientState),
                (1, n) if n != 0 => Err(R::InTransientState),
                _ => Ok(()),
            };
            assert_eq!(check_transition(&conn(oc), &conn(nc)), want, "{oc} -> {nc}");
        }
    }
}

#[test]
fn a_detached_disk_does_not_fail_again() {
    let diskless = secondary(C::StandAlone, D::Diskless, D::DUnknown);
    let failed = VolumeState { disk: D::Failed, conn: C::Connected, ..diskless };
    assert_eq!(check_transition(&diskless, &failed), Err(R::IsDiskless));
    assert_eq!(check_transition(&VolumeState { disk: D::UpToDate, ..failed }, &failed), Ok(()));
}

#[test]
fn every_row_of_the_state_check() {
    let two = |s: VolumeState| VolumeState { peer: Role::Primary, ..s };
    let good = D::UpToDate;
    let fencing = |fencing| StateContext { fencing, ..net() };
    let rows: Vec<(VolumeState, StateContext, R)> = vec![
        (two(primary(C::Connected, good, good)), net(), R::TwoPrimaries),
        (
            primary(C::Connected, good, good),
            StateContext { peer_primary_on_other_volume: true, ..net() },
            R::OVolPeerPri,
        ),
        (secondary(C::Connected, good, good), StateContext { open_count: 1, ..net() }, R::DeviceInUse),
        (primary(C::WfConnection, D::Consistent, D::DUnknown), net(), R::NoUpToDateDisk),
        (primary(C::WfConnection, good, D::DUnknown), fencing(Fencing::ResourceOnly), R::PrimaryNop),
        (primary(C::WfConnection, good, D::DUnknown), fencing(Fencing::ResourceAndStonith), R::PrimaryNop),
        (primary(C::Connected, D::Inconsistent, D::Inconsistent), net(), R::NoUpToDateDisk),
        (secondary(C::WfBitMapS, D::Negotiating, good), net(), R::NoLocalDisk),
        (secondary(C::WfBitMapS, good, D::Negotiating), net(), R::NoRemoteDisk),
        (secondary(C::WfBitMapS, D::Consistent, D::Consistent), net(), R::NoUpToDateDisk),
        (secondary(C::Connected, D::Outdated, good), net(), R::ConnectedOutdates),
        (secondary(C::WfBitMapS, D::Outdated, good), net(), R::ConnectedOutdates),
        (secondary(C::SyncSource, D::Outdated, good), net(), R::ConnectedOutdates),
        (secondary(C::PausedSyncS, D::Outdated, good), net(), R::ConnectedOutdates),
        (secondary(C::VerifyS, good, good), StateContext { verify_alg: false, ..net() }, R::NoVerifyAlg),
        (secondary(C::VerifyT, good, good), StateContext { verify_alg: false, ..net() }, R::NoVerifyAlg),
        (secondary(C::VerifyS, good, good), StateContext { version: 87, ..net() }, R::NotSupported),
        (primary(C::Connected, D::Consistent, D::Consistent), net(), R::NoUpToDateDisk),
        (secondary(C::StartingSyncS, good, D::DUnknown), net(), R::NeedConnection),
        (secondary(C::StartingSyncT, good, D::DUnknown), net(), R::NeedConnection),
        (secondary(C::Connected, good, D::DUnknown), net(), R::ConnectedOutdates),
    ];
    for (new, ctx, want) in rows {
        assert_eq!(check_state(&new, &new, &ctx), Err(want), "{}", new.log_text());
    }
}

#[test]
fn good_states_pass_the_state_check() {
    let good = D::UpToDate;
    let both = VolumeState { peer: Role::Primary, ..primary(C::Connected, good, good) };
    let fenced = StateContext { fencing: Fencing::ResourceOnly, ..net() };
    for (new, ctx) in [
        (both, StateContext { allow_two_primaries: true, ..net() }),
        (both, StateContext { has_net_config: false, ..net() }),
        (primary(C::Connected, good, good), StateContext { open_count: 1, ..net() }),
        (primary(C::WfConnection, good, D::Outdated), fenced),
        (primary(C::Connected, good, D::DUnknown).with_conn(C::WfConnection), net()),
        (primary(C::Connected, D::Diskless, good), fenced),
        (primary(C::SyncTarget, D::Inconsistent, good), net()),
        (secondary(C::WfBitMapT, D::Outdated, good), net()),
        (secondary(C::VerifyS, good, good), StateContext { version: 88, ..net() }),
        (secondary(C::Connected, D::Inconsistent, D::Inconsistent), net()),
        (secondary(C::StandAlone, D::Diskless, D::DUnknown), StateContext::default()),
    ] {
        assert_eq!(check_state(&new, &new, &ctx), Ok(()), "{}", new.log_text());
    }
    // The policy of a disk that is not usable does not count.
    let new = primary(C::WfConnection, good, D::DUnknown);
    assert_eq!(check_state(&new, &VolumeState { disk: D::Attaching, ..new }, &fenced), Ok(()));
}

trait WithConn {
    fn with_conn(self, conn: C) -> Self;
}

impl WithConn for VolumeState {
    fn with_conn(self, conn: C) -> Self {
        Self { conn, ..self }
    }
}

#[test]
fn every_row_of_the_soft_transition_check() {
    let good = D::UpToDate;
    let up = secondary(C::Connected, good, good);
    let alone = secondary(C::StandAlone, good, D::DUnknown);
    let waiting = secondary(C::WfConnection, good, D::DUnknown);
    let sent = StateContext { state_sent: true, ..net() };
    let rows: Vec<(VolumeState, VolumeState, StateContext, R)> = vec![
        (up.with_conn(C::SyncSource), up.with_conn(C::StartingSyncS), net(), R::ResyncRunning),
        (up.with_conn(C::VerifyS), up.with_conn(C::StartingSyncT), net(), R::ResyncRunning),
        (alone, alone.with_conn(C::Disconnecting), net(), R::AlreadyStandalone),
        (VolumeState { disk: D::Diskless, ..alone }, alone, net(), R::IsDiskless),
        (alone, waiting, net(), R::NoNetConfig),
        (
            VolumeState { disk: D::Inconsistent, ..waiting },
            VolumeState { disk: D::Outdated, ..waiting },
            net(),
            R::LowerThanOutdated,
        ),
        (alone.with_conn(C::Unconnected), alone.with_conn(C::Disconnecting), net(), R::InTransientState),
        (waiting, VolumeState { role: Role::Primary, ..waiting }, sent, R::InTransientState),
        (
            VolumeState { disk: D::Inconsistent, ..up },
            VolumeState { role: Role::Primary, disk: D::Inconsistent, ..up },
            net(),
            R::InTransientState,
        ),
        (
            VolumeState { disk: D::Inconsistent, conn: C::WfSyncUuid, ..up },
            VolumeState { role: Role::Primary, disk: D::Inconsistent, conn: C::SyncTarget, ..up },
            net(),
            R::InTransientState,
        ),
        (waiting, waiting.with_conn(C::VerifyS), net(), R::NeedConnection),
        (up.with_conn(C::SyncSource), up.with_conn(C::VerifyT), net(), R::ResyncRunning),
        (waiting, waiting.with_conn(C::StartingSyncS), net(), R::NeedConnection),
        (waiting, waiting.with_conn(C::SyncTarget), net(), R::NeedConnection),
        (waiting, VolumeState { conn: C::Disconnecting, pdsk: D::Outdated, ..waiting }, net(), R::OutdateWoConn),
    ];
    for (old, new, ctx, want) in rows {
        assert_eq!(check_soft_transition(&old, &new, &ctx), Err(want), "{} => {}", old.log_text(), new.log_text());
    }
}

#[test]
fn allowed_soft_transitions() {
    let good = D::UpToDate;
    let up = secondary(C::Connected, good, good);
    let waiting = secondary(C::WfConnection, good, D::DUnknown);
    let sent = StateContext { state_sent: true, ..net() };
    let exchange = waiting.with_conn(C::WfReportParams);
    for (old, new, ctx) in [
        (waiting, exchange, sent),
        (exchange, up, sent),
        (up, up.with_conn(C::StartingSyncS), net()),
        (up, up.with_conn(C::VerifyS), net()),
        (up.with_conn(C::VerifyS), VolumeState { user_isp: true, ..up.with_conn(C::VerifyS) }, net()),
        (VolumeState { disk: D::Attaching, ..waiting }, VolumeState { disk: D::Outdated, ..waiting }, net()),
        (VolumeState { disk: D::Diskless, ..waiting }, VolumeState { disk: D::Attaching, ..waiting }, net()),
        (up, VolumeState { conn: C::Disconnecting, pdsk: D::Outdated, ..up }, net()),
        (
            VolumeState { disk: D::Inconsistent, conn: C::SyncTarget, ..up },
            VolumeState { role: Role::Primary, disk: D::Inconsistent, conn: C::SyncTarget, ..up },
            net(),
        ),
        (VolumeState { disk: D::Diskless, ..up }, VolumeState { role: Role::Primary, disk: D::Diskless, ..up }, net()),
    ] {
        assert_eq!(check_soft_transition(&old, &new, &ctx), Ok(()), "{} => {}", old.log_text(), new.log_text());
    }
}

#[test]
fn of_several_reasons_the_last_counts() {
    // Rules 1 and 7.
    let old = secondary(C::SyncSource, D::UpToDate, D::Inconsistent);
    let sent = StateContext { state_sent: true, ..net() };
    assert_eq!(check_soft_transition(&old, &old.with_conn(C::StartingSyncS), &sent), Err(R::InTransientState));
    // Rules 6 and 13.
    let old = secondary(C::Unconnected, D::UpToDate, D::DUnknown);
    let new = VolumeState { conn: C::Disconnecting, pdsk: D::Outdated, ..old };
    assert_eq!(check_soft_transition(&old, &new, &net()), Err(R::OutdateWoConn));
}

#[test]
fn the_peer_is_asked_only_for_what_needs_consent() {
    let up = secondary(C::Connected, D::UpToDate, D::UpToDate);
    let syncing = up.with_conn(C::SyncSource);
    let waiting = secondary(C::WfConnection, D::UpToDate, D::DUnknown);
    let promoted = |s: VolumeState| VolumeState { role: Role::Primary, ..s };
    let failed = |s: VolumeState| VolumeState { disk: D::Failed, ..s };
    for (old, new, want) in [
        (up, promoted(up), true),
        (syncing, promoted(syncing), true),
        (up, up.with_conn(C::StartingSyncS), true),
        (up, up.with_conn(C::StartingSyncT), true),
        (up, failed(up), true),
        (up, up.with_conn(C::Disconnecting), true),
        (syncing, syncing.with_conn(C::Disconnecting), true),
        (up, up.with_conn(C::VerifyS), true),
        (up, up.with_conn(C::WfReportParams), true),
        (syncing, syncing.with_conn(C::WfReportParams), false),
        (promoted(up), up, false),
        (waiting, promoted(waiting), false),
        (waiting, failed(waiting), false),
        (waiting, waiting.with_conn(C::Disconnecting), false),
        (up, up.with_conn(C::VerifyT), false),
        (up.with_conn(C::StartingSyncS), up.with_conn(C::StartingSyncS), false),
        (up, VolumeState { user_isp: true, ..up }, false),
    ] {
        assert_eq!(is_cluster_wide(&old, &new), want, "{} => {}", old.log_text(), new.log_text());
    }
}

#[test]
fn a_change_is_planned_step_by_step() {
    let up = secondary(C::Connected, D::UpToDate, D::UpToDate);
    let soft = |old: &VolumeState, change: StateChange| plan(old, &change, ChangeMode::Soft, &net());
    let promote = StateChange::NONE.role(Role::Primary);

    let planned = soft(&up, promote).expect("promotion of a good disk");
    assert_eq!((planned.new.role, planned.nothing, planned.warning), (Role::Primary, false, None));
    assert!(soft(&planned.new, promote).expect("a second promotion").nothing);
    // Outdate while connected is undone before it is looked at.
    assert!(soft(&up, StateChange::NONE.disk(D::Outdated)).expect("outdate while connected").nothing);

    let peer_is_primary = VolumeState { peer: Role::Primary, ..up };
    assert_eq!(soft(&peer_is_primary, promote), Err(R::TwoPrimaries));
    let hard = plan(&peer_is_primary, &promote, ChangeMode::Hard, &net()).expect("facts are not refused");
    assert_eq!(hard.new.role, Role::Primary);

    let dying = up.with_conn(C::BrokenPipe);
    let again = StateChange::NONE.conn(C::NetworkFailure);
    assert_eq!(plan(&dying, &again, ChangeMode::Hard, &net()), Err(R::InTransientState));
}

#[test]
fn what_is_wrong_already_does_not_stand_in_the_way() {
    let no_data = primary(C::WfConnection, D::Inconsistent, D::DUnknown);
    let pause = StateChange::NONE.user_isp(true);
    assert!(plan(&no_data, &pause, ChangeMode::Soft, &net()).is_ok());
    assert_eq!(plan_cluster_wide(&no_data, &pause, &net()), Err(R::NoUpToDateDisk));
    // Another defect than before is refused.
    let opened = StateContext { open_count: 1, ..net() };
    let demote = StateChange::NONE.role(Role::Secondary);
    assert_eq!(plan(&no_data, &demote, ChangeMode::Soft, &opened), Err(R::DeviceInUse));
}

/// Results that administrators saw on a kernel node.
#[test]
fn observed_commands() {
    let soft = |old: &VolumeState, change: StateChange, ctx: &StateContext| plan(old, &change, ChangeMode::Soft, ctx);
    let waiting = secondary(C::WfConnection, D::UpToDate, D::DUnknown);
    let outdate = StateChange::NONE.disk(D::Outdated);

    assert_eq!(soft(&waiting, outdate, &net()).map(|p| p.new.disk), Ok(D::Outdated));
    let working = VolumeState { role: Role::Primary, ..waiting };
    assert_eq!(soft(&working, outdate, &net()), Err(R::NoUpToDateDisk));
    let bad = VolumeState { disk: D::Inconsistent, ..waiting };
    assert_eq!(soft(&bad, outdate, &net()), Err(R::LowerThanOutdated));
    assert_eq!(soft(&waiting, StateChange::NONE.conn(C::StartingSyncT), &net()), Err(R::NeedConnection));

    let syncing = primary(C::SyncSource, D::UpToDate, D::Inconsistent);
    assert_eq!(soft(&syncing, StateChange::NONE.conn(C::StartingSyncT), &net()), Err(R::ResyncRunning));
    let no_alg = StateContext { verify_alg: false, ..net() };
    assert_eq!(soft(&waiting, StateChange::NONE.conn(C::VerifyS), &no_alg), Err(R::NeedConnection));

    let fencing = StateContext { fencing: Fencing::ResourceOnly, ..net() };
    let up = primary(C::Connected, D::UpToDate, D::UpToDate);
    let leave = StateChange::NONE.conn(C::Disconnecting);
    assert_eq!(soft(&up, leave, &fencing), Err(R::PrimaryNop));
    assert!(soft(&up, leave.pdsk(D::Outdated), &fencing).is_ok());
}

#[test]
fn no_order_makes_inconsistent_data_good_by_the_way() {
    let ctx = net();
    let blank = secondary(C::Connected, D::Inconsistent, D::Inconsistent);
    let attaching = secondary(C::Connected, D::Negotiating, D::UpToDate);
    for mode in [ChangeMode::Soft, ChangeMode::Hard] {
        let outdate = StateChange::NONE.disk(D::Outdated);
        assert_eq!(plan(&blank, &outdate, mode, &ctx), Err(R::LowerThanOutdated));
        assert_eq!(plan(&VolumeState { pdsk: D::UpToDate, ..blank }, &outdate, mode, &ctx), Err(R::LowerThanOutdated));
        for conn in [C::StartingSyncS, C::WfBitMapS, C::VerifyS, C::VerifyT] {
            for old in [&blank, &attaching] {
                assert_eq!(plan(old, &StateChange::NONE.conn(conn), mode, &ctx), Err(R::NoUpToDateDisk), "{conn}");
            }
        }
    }
    let forced = StateChange::NONE.role(Role::Primary).disk(D::UpToDate);
    assert_eq!(plan_cluster_wide(&blank, &forced, &ctx).map(|p| p.new.disk), Ok(D::UpToDate));
    let settled = StateChange::NONE.disk(D::Outdated);
    assert_eq!(plan(&attaching, &settled, ChangeMode::Hard, &ctx), Err(R::LowerThanOutdated), "it was not judged yet");
}
