use super::*;

const GOOD: D = D::UpToDate;

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

/// The after-effects between the two that always come.
fn after(old: &VolumeState, new: &VolumeState, ctx: &StateContext) -> Vec<Effect> {
    let effects = after_effects(old, new, ctx);
    assert_eq!(effects.first(), Some(&Effect::Notify));
    assert_eq!(effects.last(), Some(&Effect::WriteMetadataIfDirty));
    effects.get(1..effects.len() - 1).unwrap_or_default().to_vec()
}

fn plain(old: &VolumeState, new: &VolumeState) -> Vec<Effect> {
    after(old, new, &StateContext { bitmap_uuid_unset: false, ..StateContext::default() })
}

#[test]
fn nothing_follows_from_nothing() {
    let up = primary(C::Connected, GOOD, GOOD);
    assert_eq!(plain(&up, &up), []);
    assert_eq!(connection_effects(&up, &up, &StateContext::default()), [Effect::WriteMetadataIfDirty]);
}

#[test]
fn no_2_the_crash_is_over_when_both_are_good() {
    let old = secondary(C::Connected, GOOD, D::Inconsistent);
    assert_eq!(plain(&old, &VolumeState { pdsk: GOOD, ..old }), [Effect::ClearCrashedPrimary]);
}

#[test]
fn no_3_a_primary_without_data_calls_for_help() {
    let old = primary(C::Connected, D::Diskless, GOOD);
    let new = VolumeState { conn: C::BrokenPipe, pdsk: D::DUnknown, peer: Role::Unknown, ..old };
    assert_eq!(plain(&old, &new), [Effect::RunHandler(Handler::PriOnInconDegr)]);
}

#[test]
fn no_4_io_without_data_thaws() {
    let frozen = VolumeState { susp_nod: true, ..primary(C::WfReportParams, D::Diskless, D::DUnknown) };
    let back = VolumeState { conn: C::Connected, pdsk: GOOD, peer: Role::Secondary, ..frozen };
    assert!(plain(&frozen, &back).contains(&Effect::ThawNoData(RestartHow::Resend)));
    assert_eq!(plain(&back, &VolumeState { user_isp: true, ..back }), [Effect::SendState, Effect::PauseDependents]);
    let others_missing = StateContext { others_connected: false, ..StateContext::default() };
    assert!(!after(&frozen, &back, &others_missing).contains(&Effect::ThawNoData(RestartHow::Resend)));

    let attaching = VolumeState { disk: D::Attaching, conn: C::WfConnection, ..frozen };
    let attached = VolumeState { disk: GOOD, ..attaching };
    assert!(plain(&attaching, &attached).contains(&Effect::ThawNoData(RestartHow::RestartDiskIo)));
    let others_bad = StateContext { others_up_to_date: false, ..StateContext::default() };
    assert!(!after(&attaching, &attached, &others_bad).contains(&Effect::ThawNoData(RestartHow::RestartDiskIo)));
}

#[test]
fn no_5_io_that_waits_for_fencing_thaws_on_reconnect() {
    let frozen = VolumeState { susp_fen: true, ..primary(C::WfReportParams, GOOD, D::DUnknown) };
    let back = VolumeState { conn: C::Connected, pdsk: GOOD, peer: Role::Secondary, ..frozen };
    let ctx = StateContext { bitmap_uuid_unset: false, ..StateContext::default() };
    assert_eq!(after(&frozen, &back, &ctx), [Effect::ClearCrashedPrimary, Effect::ThawReconnected, Effect::SendState]);
    let others_missing = StateContext { others_connected: false, ..ctx };
    assert_eq!(after(&frozen, &back, &others_missing), [Effect::ClearCrashedPrimary, Effect::SendState]);
}

#[test]
fn no_6_a_source_announces_the_resync() {
    let old = primary(C::WfBitMapS, GOOD, D::Consistent);
    let new = VolumeState { conn: C::SyncSource, pdsk: D::Inconsistent, ..old };
    assert_eq!(plain(&old, &new), [Effect::SendSyncUuid]);
    let paused = VolumeState { conn: C::PausedSyncS, user_isp: true, ..new };
    assert!(plain(&old, &paused).contains(&Effect::SendSyncUuid));
    assert!(!plain(&paused, &new).contains(&Effect::SendSyncUuid));
    let old_protocol = StateContext { version: 95, bitmap_uuid_unset: false, ..StateContext::default() };
    assert_eq!(after(&old, &new, &old_protocol), []);
}

#[test]
fn no_7_a_peer_that_attached_gets_identifiers_and_state() {
    let old = secondary(C::Connected, GOOD, D::Diskless);
    let want = [Effect::ResetResyncCounters, Effect::SendUuids, Effect::SendState];
    assert_eq!(plain(&old, &VolumeState { pdsk: D::Inconsistent, ..old }), want);
    assert_eq!(plain(&old, &VolumeState { pdsk: D::DUnknown, conn: C::BrokenPipe, ..old }), []);
}

#[test]
fn no_8_a_source_sends_its_bitmap() {
    let old = secondary(C::WfReportParams, GOOD, D::DUnknown);
    let new = VolumeState { conn: C::WfBitMapS, pdsk: D::Consistent, peer: Role::Secondary, ..old };
    assert_eq!(plain(&old, &new), [Effect::QueueSendBitmap, Effect::SendState]);
}

#[test]
fn no_9_losing_the_peers_data_starts_a_generation() {
    let ctx = StateContext::default();
    let old = primary(C::Connected, GOOD, GOOD);
    let lost = VolumeState { conn: C::BrokenPipe, pdsk: D::DUnknown, peer: Role::Unknown, ..old };
    assert_eq!(after(&old, &lost, &ctx), [Effect::NewCurrentUuid, Effect::SendUuids]);
    let frozen = VolumeState { susp_fen: true, ..lost };
    assert_eq!(after(&old, &frozen, &ctx), [Effect::SetNewCurrentUuidPending]);

    let none = [
        (old, lost, StateContext { bitmap_uuid_unset: false, ..ctx }),
        (VolumeState { role: Role::Secondary, ..old }, VolumeState { role: Role::Secondary, ..lost }, ctx),
    ];
    for (old, new, ctx) in none {
        assert_eq!(after(&old, &new, &ctx), []);
    }
    // The peer's disk was bad, and its superblock may not know it yet; without a link nothing new is to be lost.
    let bad_peer = |s: VolumeState| VolumeState { pdsk: D::Inconsistent, ..s };
    assert_eq!(after(&bad_peer(old), &bad_peer(lost), &ctx), [Effect::NewCurrentUuid, Effect::SendUuids]);
    let waiting = VolumeState { conn: C::WfConnection, ..bad_peer(lost) };
    assert_eq!(after(&bad_peer(lost), &waiting, &ctx), []);
    assert_eq!(plain(&bad_peer(old), &bad_peer(lost)), []);
    let bad = |s: VolumeState| VolumeState { disk: D::Inconsistent, ..s };
    assert!(!after(&bad(old), &bad(lost), &ctx).contains(&Effect::NewCurrentUuid));
}

#[test]
fn no_10_a_promoted_diskless_peer_starts_a_generation_once() {
    let ctx = StateContext::default();
    let old = secondary(C::Connected, GOOD, D::Diskless);
    let new = VolumeState { peer: Role::Primary, ..old };
    assert_eq!(after(&old, &new, &ctx), [Effect::NewCurrentUuid, Effect::SendUuids]);
    // Numbers 9 and 10 at once.
    let both = secondary(C::Connected, GOOD, GOOD);
    assert_eq!(after(&both, &new, &ctx), [Effect::NewCurrentUuid, Effect::SendUuids]);
    assert_eq!(plain(&old, &new), []);
}

#[test]
fn no_11_and_12_demotions_write_the_bitmap() {
    let old = VolumeState { peer: Role::Primary, ..secondary(C::Connected, GOOD, D::Diskless) };
    assert_eq!(plain(&old, &VolumeState { peer: Role::Secondary, ..old }), [Effect::WriteBitmapPages]);
    assert_eq!(
        plain(&VolumeState { pdsk: GOOD, ..old }, &VolumeState { peer: Role::Secondary, pdsk: GOOD, ..old }),
        []
    );

    let own = primary(C::Connected, GOOD, GOOD);
    assert_eq!(plain(&own, &VolumeState { role: Role::Secondary, ..own }), [Effect::WriteBitmapPages]);
    let syncing = primary(C::SyncSource, GOOD, D::Inconsistent);
    assert_eq!(plain(&syncing, &VolumeState { role: Role::Secondary, ..syncing }), []);
}

#[test]
fn no_13_a_late_attach_is_announced() {
    let old = secondary(C::Connected, D::Attaching, GOOD);
    let new = VolumeState { disk: D::Negotiating, ..old };
    assert_eq!(plain(&old, &new), [Effect::SendSizes, Effect::SendUuids, Effect::SendState]);
}

#[test]
fn no_14_and_15_pauses_are_announced_and_passed_on() {
    let old = primary(C::SyncSource, GOOD, D::Inconsistent);
    let user = VolumeState { conn: C::PausedSyncS, user_isp: true, ..old };
    assert_eq!(plain(&old, &user), [Effect::SendState, Effect::PauseDependents]);
    let more = VolumeState { aftr_isp: true, ..user };
    assert_eq!(plain(&user, &more), [Effect::SendState]);
    let peer = VolumeState { conn: C::PausedSyncS, peer_isp: true, ..old };
    assert_eq!(plain(&old, &peer), [Effect::PauseDependents]);
    assert_eq!(plain(&user, &old), [Effect::SendState, Effect::ResumeDependents]);
}

#[test]
fn no_17_being_ahead_is_announced() {
    let old = primary(C::Connected, GOOD, GOOD);
    let new = VolumeState { conn: C::Ahead, pdsk: D::Consistent, ..old };
    assert_eq!(plain(&old, &new), [Effect::SendState]);
}

#[test]
fn no_18_a_full_sync_sets_all_bits_first() {
    let old = secondary(C::Connected, GOOD, GOOD);
    let source = VolumeState { conn: C::StartingSyncS, pdsk: D::Consistent, ..old };
    let target = VolumeState { conn: C::StartingSyncT, disk: D::Outdated, ..old };
    assert_eq!(plain(&old, &source), [Effect::StartFullSyncSource]);
    assert_eq!(plain(&old, &target), [Effect::StartFullSyncTarget]);
}

#[test]
fn no_19_and_20_a_failing_disk_is_announced_twice() {
    let old = secondary(C::Connected, GOOD, GOOD);
    let failed = VolumeState { disk: D::Failed, ..old };
    let end = [Effect::ForgetResyncExtents, Effect::WriteMetadata, Effect::DropDiskReference];
    assert_eq!(plain(&old, &failed), [&[Effect::SendState], &end[..]].concat());
    let worst = StateContext { call_local_io_error: true, forced_detach: true, ..StateContext::default() };
    assert_eq!(
        after(&old, &failed, &worst),
        [&[Effect::RunHandler(Handler::LocalIoError), Effect::AbortLocalIo, Effect::SendState], &end[..]].concat()
    );
    let alone = |s: VolumeState| VolumeState { conn: C::StandAlone, pdsk: D::DUnknown, ..s };
    assert_eq!(plain(&alone(old), &alone(failed)), end);

    let diskless = VolumeState { disk: D::Diskless, ..old };
    assert_eq!(plain(&failed, &diskless), [Effect::SendState, Effect::DropDiskReference]);
    assert_eq!(plain(&alone(failed), &alone(diskless)), [Effect::DropDiskReference]);
}

#[test]
fn no_21_a_disk_that_turned_bad_is_announced() {
    let old = secondary(C::Connected, GOOD, GOOD);
    assert_eq!(plain(&old, &VolumeState { disk: D::Inconsistent, ..old }), [Effect::SendState]);
    let alone = secondary(C::StandAlone, GOOD, D::DUnknown);
    assert_eq!(plain(&alone, &VolumeState { disk: D::Inconsistent, ..alone }), []);
}

#[test]
fn no_22_a_grown_device_resyncs_after_the_negotiation() {
    let old = secondary(C::Connected, D::Negotiating, GOOD);
    let ctx = StateContext { resync_after_negotiation: true, bitmap_uuid_unset: false, ..StateContext::default() };
    let new = VolumeState { disk: GOOD, ..old };
    assert_eq!(after(&old, &new, &ctx), [Effect::ClearCrashedPrimary, Effect::ResyncAfterGrow]);
    assert_eq!(after(&old, &old, &ctx), []);
}

#[test]
fn no_23_to_26_the_end_of_a_resync() {
    let target = secondary(C::SyncTarget, D::Inconsistent, GOOD);
    let done = VolumeState { conn: C::Connected, disk: GOOD, ..target };
    assert_eq!(
        plain(&target, &done),
        [Effect::ClearCrashedPrimary, Effect::ResumeDependents, Effect::SendState, Effect::QueueBitmapWrite]
    );
    let source = secondary(C::SyncSource, GOOD, D::Inconsistent);
    let done = VolumeState { conn: C::Connected, pdsk: GOOD, ..source };
    assert_eq!(
        plain(&source, &done),
        [Effect::ClearCrashedPrimary, Effect::ResumeDependents, Effect::QueueBitmapWrite]
    );
}

#[test]
fn no_25_the_driver_of_a_verify_announces_its_end() {
    let driver = secondary(C::VerifyS, GOOD, GOOD);
    let done = VolumeState { conn: C::Connected, ..driver };
    let end = |version| {
        let ctx = StateContext { version, bitmap_uuid_unset: false, ..StateContext::default() };
        after(&driver, &done, &ctx).contains(&Effect::SendState)
    };
    assert_eq!([96, 97, 99, 100, 101].map(end), [false, true, true, false, true]);
    let passive = VolumeState { conn: C::VerifyT, ..driver };
    assert_eq!(plain(&passive, &done), [Effect::ResumeDependents, Effect::QueueBitmapWrite]);
}

#[test]
fn no_27_an_unconfigured_volume_lets_others_go_on() {
    let old = VolumeState { aftr_isp: true, ..secondary(C::StandAlone, D::Failed, D::DUnknown) };
    let new = VolumeState { aftr_isp: false, disk: D::Diskless, ..old };
    assert_eq!(plain(&old, &new), [Effect::DropDiskReference, Effect::ResumeDependents]);
}

#[test]
fn connections_start_and_end() {
    let ctx = StateContext::default();
    let alone = secondary(C::StandAlone, GOOD, D::DUnknown);
    let at = |conn| VolumeState { conn, ..alone };
    let dirty = Effect::WriteMetadataIfDirty;
    assert_eq!(connection_effects(&alone, &at(C::Unconnected), &ctx), [Effect::StartReceiver, dirty]);
    assert_eq!(connection_effects(&at(C::Disconnecting), &alone, &ctx), [Effect::DiscardNetConfig, dirty]);
    assert_eq!(connection_effects(&at(C::BrokenPipe), &at(C::Unconnected), &ctx), [dirty]);

    let frozen = VolumeState { susp_fen: true, ..primary(C::WfConnection, GOOD, D::DUnknown) };
    let fenced = VolumeState { pdsk: D::Outdated, ..frozen };
    assert_eq!(connection_effects(&frozen, &fenced, &ctx), [Effect::ThawFenced, dirty]);
    assert_eq!(connection_effects(&frozen, &frozen, &ctx), [dirty]);
    let other_unknown = StateContext { others_highest_pdsk: D::DUnknown, ..ctx };
    assert_eq!(connection_effects(&frozen, &fenced, &other_unknown), [dirty]);
}

#[test]
fn contact_is_lost_by_the_table() {
    for (from, to, want) in [
        (GOOD, D::DUnknown, true),
        (GOOD, D::Outdated, true),
        (GOOD, D::Diskless, true),
        (GOOD, D::Failed, true),
        (GOOD, D::Negotiating, true),
        (D::Consistent, D::DUnknown, true),
        (D::Inconsistent, D::DUnknown, true),
        (GOOD, D::Inconsistent, false),
        (GOOD, D::Consistent, false),
        (D::DUnknown, D::Outdated, true),
        (D::DUnknown, D::Diskless, true),
        (D::DUnknown, D::Failed, true),
        (D::DUnknown, D::Inconsistent, false),
        (D::DUnknown, GOOD, false),
        (D::Outdated, D::DUnknown, false),
        (D::Diskless, D::DUnknown, false),
    ] {
        let at = |pdsk| secondary(C::WfConnection, GOOD, pdsk);
        assert_eq!(lost_contact_to_peer_data(&at(from), &at(to)), want, "{from} -> {to}");
    }
}

#[test]
fn every_side_effect_has_its_condition() {
    let ctx = StateContext::default();
    let side = |old: &VolumeState, new: &VolumeState| side_effects(old, new, &ctx);
    let up = secondary(C::Connected, GOOD, GOOD);
    let conn = |conn| VolumeState { conn, ..up };
    use SideEffect as S;

    assert_eq!(side(&up, &VolumeState { disk: D::Failed, ..up }), [S::TakeDiskReference]);
    assert_eq!(
        side(&VolumeState { disk: D::Failed, ..up }, &VolumeState { disk: D::Diskless, ..up }),
        [S::TakeDiskReference]
    );
    let starts = VolumeState { conn: C::WfBitMapS, pdsk: D::Consistent, ..up };
    let syncs = VolumeState { conn: C::SyncSource, pdsk: D::Inconsistent, ..up };
    assert_eq!(side(&up, &starts), [S::CloseEpoch, S::UpdateMdFlags]);
    assert_eq!(side(&starts, &syncs), [S::ClearResyncDone, S::CloseEpoch, S::UpdateMdFlags]);
    let paused = VolumeState { conn: C::PausedSyncS, ..syncs };
    assert_eq!(side(&syncs, &paused), [S::SuspendSync, S::UpdateMdFlags]);
    assert_eq!(side(&paused, &syncs), [S::ContinueSync { target: false }, S::UpdateMdFlags]);
    assert_eq!(side(&conn(C::PausedSyncT), &conn(C::SyncTarget)), [S::ContinueSync { target: true }, S::UpdateMdFlags]);
    assert_eq!(side(&up, &conn(C::VerifyS)), [S::StartVerify { driver: true }, S::UpdateMdFlags]);
    assert_eq!(side(&up, &conn(C::VerifyT)), [S::StartVerify { driver: false }, S::UpdateMdFlags]);
    assert_eq!(side(&conn(C::VerifyS), &up), [S::StopVerify, S::UpdateMdFlags]);

    let attaching = secondary(C::StandAlone, D::Attaching, D::DUnknown);
    assert_eq!(
        side(&attaching, &VolumeState { disk: GOOD, ..attaching }),
        [S::LogAttachedUuids, S::UpdateMdFlags, S::ExposeCurrentUuid, S::MarkAttachTime]
    );
    let params = secondary(C::WfReportParams, GOOD, D::DUnknown);
    assert_eq!(side(&params, &up), [S::CloseEpoch, S::ClearStateSent, S::UpdateMdFlags, S::ResumeAlAndCountConnect]);
    let others = StateContext { others_left_report_params: false, ..ctx };
    assert!(!side_effects(&params, &up, &others).contains(&S::ClearStateSent));

    let bad = secondary(C::Connected, D::Inconsistent, D::Inconsistent);
    let forced = VolumeState { peer: Role::Primary, pdsk: GOOD, ..bad };
    assert_eq!(side(&bad, &forced), [S::CloseEpoch, S::UpdateMdFlags, S::SetConsiderResync]);

    let lost = VolumeState { pdsk: D::DUnknown, peer: Role::Unknown, ..conn(C::BrokenPipe) };
    assert_eq!(side(&up, &lost), [S::CloseEpoch, S::UpdateMdFlags, S::RestartReceiver]);
    let leaving = VolumeState { conn: C::Disconnecting, ..lost };
    assert_eq!(side(&lost, &leaving), [S::UpdateMdFlags, S::StopReceiver]);
    assert_eq!(side(&leaving, &VolumeState { conn: C::StandAlone, ..lost }), [S::UpdateMdFlags, S::StopReceiver]);
}
