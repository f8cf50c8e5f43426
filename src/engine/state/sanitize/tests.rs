use proptest::prelude::*;

use super::*;

fn state(conn: C, disk: D, pdsk: D) -> VolumeState {
    VolumeState { peer: Role::Secondary, conn, disk, pdsk, ..VolumeState::default() }
}

fn primary(conn: C, disk: D, pdsk: D) -> VolumeState {
    VolumeState { role: Role::Primary, ..state(conn, disk, pdsk) }
}

fn clean(new: &VolumeState) -> (VolumeState, Option<&'static str>) {
    sanitize(new, new, &StateContext::default())
}

#[test]
fn without_connection_only_a_bad_peer_disk_is_remembered() {
    let lost = VolumeState { peer_isp: true, user_isp: true, ..state(C::BrokenPipe, D::UpToDate, D::UpToDate) };
    let (got, _) = clean(&lost);
    assert_eq!((got.peer, got.pdsk, got.peer_isp, got.user_isp), (Role::Unknown, D::DUnknown, false, true));
    for (pdsk, want) in [
        (D::Diskless, D::DUnknown),
        (D::Negotiating, D::DUnknown),
        (D::Inconsistent, D::Inconsistent),
        (D::Outdated, D::Outdated),
        (D::DUnknown, D::DUnknown),
        (D::Consistent, D::DUnknown),
    ] {
        assert_eq!(clean(&state(C::WfConnection, D::UpToDate, pdsk)).0.pdsk, want);
    }
}

#[test]
fn an_unconfigured_volume_waits_for_nobody() {
    let new = VolumeState { aftr_isp: true, ..state(C::StandAlone, D::Diskless, D::DUnknown) };
    assert!(!clean(&new).0.aftr_isp);
    assert!(clean(&VolumeState { disk: D::UpToDate, ..new }).0.aftr_isp);
}

#[test]
fn a_lost_disk_aborts_resync_and_verify() {
    let (got, warning) = clean(&state(C::SyncSource, D::UpToDate, D::Failed));
    assert_eq!((got.conn, warning), (C::Connected, Some("Resync aborted.")));
    let (got, warning) = clean(&state(C::VerifyT, D::Diskless, D::UpToDate));
    assert_eq!((got.conn, warning), (C::Connected, Some("Online-verify aborted.")));
}

#[test]
fn a_resync_given_up_before_it_began_leaves_its_target_bad() {
    for conn in [C::StartingSyncS, C::WfBitMapS] {
        for pdsk in [D::Consistent, D::Outdated, D::Inconsistent] {
            let (got, _) = clean(&primary(conn, D::Failed, pdsk));
            assert_eq!((got.conn, got.pdsk), (C::Connected, D::Inconsistent), "{conn} {pdsk}");
        }
    }
    for conn in [C::StartingSyncT, C::WfBitMapT, C::WfSyncUuid] {
        let (got, _) = clean(&state(conn, D::Outdated, D::Failed));
        assert_eq!((got.conn, got.disk), (C::Connected, D::Inconsistent), "{conn}");
    }
}

#[test]
fn a_negotiation_cut_off_keeps_the_data_that_clients_know() {
    let new = state(C::BrokenPipe, D::Negotiating, D::UpToDate);
    let known = StateContext {
        exposed_is_current: true,
        attach_disk: D::Consistent,
        attach_pdsk: D::Outdated,
        ..StateContext::default()
    };
    let (got, warning) = sanitize(&new, &new, &known);
    assert_eq!((got.disk, got.pdsk, warning), (D::Consistent, D::Outdated, None));
    let (got, warning) = clean(&new);
    assert_eq!(
        (got.disk, got.pdsk, warning),
        (D::Diskless, D::DUnknown, Some("Connection lost while negotiating, no data!"))
    );
}

#[test]
fn connecting_ends_being_outdated() {
    let (got, warning) = clean(&state(C::Connected, D::Outdated, D::Consistent));
    assert_eq!((got.disk, got.pdsk, warning), (D::UpToDate, D::UpToDate, None));
    let (got, _) = clean(&state(C::WfReportParams, D::Outdated, D::DUnknown));
    assert_eq!(got.disk, D::Outdated);
    let (got, _) = clean(&state(C::Behind, D::Outdated, D::UpToDate));
    assert_eq!(got.disk, D::Outdated);
}

#[test]
fn connection_states_imply_disk_states() {
    const DISK: &str = "Implicitly upgraded disk";
    const PDSK: &str = "Implicitly upgraded pdsk";
    let good = D::UpToDate;
    for (conn, from, to, warning) in [
        (C::WfBitMapT, (good, good), (D::Outdated, good), None),
        (C::WfBitMapT, (D::Negotiating, good), (D::Inconsistent, good), Some(DISK)),
        (C::WfBitMapT, (D::Inconsistent, D::Inconsistent), (D::Inconsistent, good), Some(PDSK)),
        (C::WfSyncUuid, (good, good), (D::Outdated, good), None),
        (C::StartingSyncT, (good, good), (D::Outdated, good), None),
        (C::Behind, (good, good), (D::Outdated, good), None),
        (C::SyncTarget, (D::Outdated, good), (D::Inconsistent, good), None),
        (C::WfBitMapS, (good, good), (good, D::Consistent), None),
        (C::WfBitMapS, (good, D::Inconsistent), (good, D::Inconsistent), None),
        (C::WfBitMapS, (D::Inconsistent, D::Negotiating), (good, D::Inconsistent), Some(PDSK)),
        (C::StartingSyncS, (good, good), (good, D::Consistent), None),
        (C::Ahead, (good, good), (good, D::Consistent), None),
        (C::Ahead, (good, D::Outdated), (good, D::Outdated), None),
        (C::SyncSource, (good, good), (good, D::Inconsistent), None),
        (C::VerifyS, (D::Inconsistent, good), (good, good), Some(DISK)),
        (C::VerifyT, (good, D::Inconsistent), (good, good), Some(PDSK)),
        (C::Connected, (D::Diskless, good), (D::Diskless, good), None),
        (C::Connected, (D::Inconsistent, D::Inconsistent), (D::Inconsistent, D::Inconsistent), None),
    ] {
        let (got, said) = clean(&state(conn, from.0, from.1));
        assert_eq!(((got.disk, got.pdsk), said), (to, warning), "{conn} {from:?}");
    }
}

#[test]
fn a_fenced_primary_freezes_when_it_loses_the_peer() {
    let up = primary(C::Connected, D::UpToDate, D::UpToDate);
    let lost = VolumeState { conn: C::NetworkFailure, ..up };
    let frozen = |old: &VolumeState, new: &VolumeState, fencing| {
        sanitize(old, new, &StateContext { fencing, ..StateContext::default() }).0.susp_fen
    };
    assert!(frozen(&up, &lost, Fencing::ResourceAndStonith));
    assert!(!frozen(&up, &lost, Fencing::ResourceOnly));
    let (alone, _) = clean(&lost);
    assert!(!frozen(&alone, &VolumeState { conn: C::Unconnected, ..alone }, Fencing::ResourceAndStonith));
    let secondary = |s: VolumeState| VolumeState { role: Role::Secondary, ..s };
    assert!(!frozen(&secondary(up), &secondary(lost), Fencing::ResourceAndStonith));
    let outdated = VolumeState { pdsk: D::Outdated, ..lost };
    assert!(!frozen(&up, &outdated, Fencing::ResourceAndStonith));
    // A policy counts only with a usable disk.
    let diskless = |s: VolumeState| VolumeState { disk: D::Diskless, ..s };
    assert!(!frozen(&diskless(up), &diskless(lost), Fencing::ResourceAndStonith));
}

#[test]
fn a_primary_without_data_freezes_where_it_is_told_to() {
    let up = primary(C::Connected, D::Diskless, D::UpToDate);
    let lost = VolumeState { conn: C::NetworkFailure, ..up };
    let ctx = StateContext { on_no_data_suspend: true, ..StateContext::default() };
    assert!(sanitize(&up, &lost, &ctx).0.susp_nod);
    assert!(!sanitize(&up, &lost, &StateContext::default()).0.susp_nod);
    let (alone, _) = clean(&lost);
    assert!(!sanitize(&alone, &VolumeState { conn: C::Unconnected, ..alone }, &ctx).0.susp_nod);
}

#[test]
fn any_pause_flag_pauses_and_none_resumes() {
    let flags: [fn(VolumeState) -> VolumeState; 3] = [
        |s| VolumeState { aftr_isp: true, ..s },
        |s| VolumeState { peer_isp: true, ..s },
        |s| VolumeState { user_isp: true, ..s },
    ];
    let source = state(C::SyncSource, D::UpToDate, D::Inconsistent);
    let target = state(C::SyncTarget, D::Inconsistent, D::UpToDate);
    for pause in flags {
        assert_eq!(clean(&pause(source)).0.conn, C::PausedSyncS);
        assert_eq!(clean(&pause(target)).0.conn, C::PausedSyncT);
    }
    assert_eq!(clean(&VolumeState { conn: C::PausedSyncS, ..source }).0, source);
    assert_eq!(clean(&VolumeState { conn: C::PausedSyncT, ..target }).0, target);
}

fn any_state() -> impl Strategy<Value = VolumeState> {
    let own_disks: Vec<D> = D::ALL.iter().copied().filter(|d| *d != D::DUnknown).collect();
    let one = |all: &[Role]| prop::sample::select(all.to_vec());
    (
        one(&[Role::Primary, Role::Secondary]),
        one(Role::ALL),
        prop::sample::select(C::ALL.to_vec()),
        prop::sample::select(own_disks),
        prop::sample::select(D::ALL.to_vec()),
        any::<[bool; 6]>(),
    )
        .prop_map(|(role, peer, conn, disk, pdsk, [susp, susp_nod, susp_fen, aftr_isp, peer_isp, user_isp])| {
            VolumeState { role, peer, conn, disk, pdsk, susp, susp_nod, susp_fen, aftr_isp, peer_isp, user_isp }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    #[test]
    fn sanitizing_twice_is_sanitizing_once(
        old in any_state(), new in any_state(),
        fencing in prop::sample::select(vec![Fencing::DontCare, Fencing::ResourceOnly, Fencing::ResourceAndStonith]),
        flags in any::<[bool; 2]>(),
        attached in prop::sample::select(vec![
            (D::Inconsistent, D::DUnknown), (D::Outdated, D::Outdated), (D::Consistent, D::UpToDate), (D::UpToDate, D::Diskless),
        ]),
    ) {
        let ctx = StateContext {
            fencing,
            on_no_data_suspend: flags[0],
            exposed_is_current: flags[1],
            attach_disk: attached.0,
            attach_pdsk: attached.1,
            ..StateContext::default()
        };
        let (once, _) = sanitize(&old, &new, &ctx);
        let (twice, warning) = sanitize(&old, &once, &ctx);
        prop_assert_eq!(once, twice);
        prop_assert_eq!(warning, None);
        let (disk, pdsk) = ranges(once.conn);
        prop_assert!(disk.contains(&once.disk) && pdsk.contains(&once.pdsk));
    }
}
