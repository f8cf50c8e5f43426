use super::*;

fn state(conn: ConnState, disk: DiskState, pdsk: DiskState) -> VolumeState {
    VolumeState { conn, disk, pdsk, ..VolumeState::default() }
}

#[test]
fn a_new_volume_is_unconfigured() {
    let new = VolumeState::default();
    assert!(new.is_unconfigured());
    assert_eq!(new.proc_text(' ', false), "cs:Unconfigured");
    assert_eq!(new.log_text(), "cs:StandAlone ro:Secondary/Unknown ds:Diskless/DUnknown r-----");
}

#[test]
fn states_print_as_in_proc_and_in_the_log() {
    let source = VolumeState {
        role: Role::Primary,
        peer: Role::Secondary,
        ..state(ConnState::SyncSource, DiskState::UpToDate, DiskState::Inconsistent)
    };
    assert_eq!(source.proc_text('C', false), "cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----");
    assert_eq!(source.proc_text('C', true), "cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r----s");
    let paused = VolumeState { aftr_isp: true, peer_isp: true, user_isp: true, susp: true, ..source };
    assert!(paused.proc_text('A', false).ends_with(" A sapu--"));
    let frozen = VolumeState { susp_fen: true, susp_nod: true, ..source };
    assert!(frozen.log_text().ends_with(" s---FN"));
    assert!(frozen.proc_text('C', false).ends_with(" C s-----"));
}

#[test]
fn changes_print_only_what_changed() {
    let old = state(ConnState::WfReportParams, DiskState::UpToDate, DiskState::DUnknown);
    let new = VolumeState {
        role: Role::Primary,
        peer: Role::Secondary,
        user_isp: true,
        susp_fen: true,
        ..state(ConnState::WfBitMapS, DiskState::UpToDate, DiskState::Consistent)
    };
    assert_eq!(
        changes_text(&old, &new),
        "role( Secondary -> Primary ) peer( Unknown -> Secondary ) conn( WFReportParams -> WFBitMapS ) \
         pdsk( DUnknown -> Consistent ) user_isp( 0 -> 1 ) "
    );
    assert_eq!(changes_text(&new, &new), "");
    assert_eq!(susp_text(&old, &new), "susp( 0 -> 1 ) ");
    assert_eq!(susp_text(&new, &VolumeState { susp: true, susp_fen: false, ..new }), "");
}

#[test]
fn metadata_flags_follow_the_state() {
    let flags = |s: &VolumeState| md_flags(s, false);
    let up = VolumeState {
        role: Role::Primary,
        peer: Role::Secondary,
        ..state(ConnState::Connected, DiskState::UpToDate, DiskState::UpToDate)
    };
    let want = MdFlags {
        consistent: true,
        primary_indicated: true,
        connected_indicated: true,
        was_up_to_date: true,
        peer_outdated: false,
        crashed_primary: false,
    };
    assert_eq!(flags(&up), want);
    assert_eq!(md_flags(&up, true), MdFlags { crashed_primary: true, ..want });

    let alone = state(ConnState::WfReportParams, DiskState::Outdated, DiskState::Outdated);
    assert_eq!(flags(&alone), MdFlags { consistent: true, peer_outdated: true, ..MdFlags::default() });
    let bad = state(ConnState::StandAlone, DiskState::Inconsistent, DiskState::Inconsistent);
    assert_eq!(flags(&bad), MdFlags { peer_outdated: true, ..MdFlags::default() });
    let was = state(ConnState::StandAlone, DiskState::Consistent, DiskState::DUnknown);
    assert_eq!(flags(&was), MdFlags { consistent: true, was_up_to_date: true, ..MdFlags::default() });

    // The only copy of a diskless Primary peer counts as that Primary's.
    let keeper = VolumeState { role: Role::Secondary, peer: Role::Primary, pdsk: DiskState::Diskless, ..up };
    assert!(flags(&keeper).primary_indicated);
    assert!(!flags(&VolumeState { pdsk: DiskState::Inconsistent, ..keeper }).primary_indicated);
}

/// A write to a connected peer with a disk is mirrored, or announced, or the peer takes nothing; never two of these.
#[test]
fn a_write_is_mirrored_or_announced_never_both() {
    for conn in ConnState::ALL.iter().copied() {
        for disk in DiskState::ALL.iter().copied() {
            for pdsk in DiskState::ALL.iter().copied() {
                let (clean, _) = super::super::sanitize(
                    &state(conn, disk, pdsk),
                    &state(conn, disk, pdsk),
                    &super::super::StateContext::default(),
                );
                assert!(!(replicates(&clean) && sends_out_of_sync(&clean)), "{}", clean.log_text());
                // A peer with a good disk misses nothing while connected.
                if clean.conn >= ConnState::Connected && clean.pdsk == DiskState::UpToDate {
                    assert!(replicates(&clean));
                }
            }
        }
    }
    let at = |conn, pdsk| state(conn, DiskState::UpToDate, pdsk);
    assert!(replicates(&at(ConnState::SyncSource, DiskState::Inconsistent)));
    assert!(replicates(&at(ConnState::PausedSyncS, DiskState::Consistent)));
    assert!(!replicates(&at(ConnState::WfBitMapS, DiskState::Consistent)));
    assert!(!replicates(&at(ConnState::Connected, DiskState::Inconsistent)));
    assert!(!replicates(&at(ConnState::Ahead, DiskState::Inconsistent)));
    assert!(!replicates(&at(ConnState::SyncSource, DiskState::Failed)));
    assert!(sends_out_of_sync(&at(ConnState::Ahead, DiskState::Consistent)));
    assert!(sends_out_of_sync(&at(ConnState::WfBitMapS, DiskState::Consistent)));
}

#[test]
fn writes_need_good_data_somewhere() {
    let at = |disk, pdsk| writes_locally(&state(ConnState::Connected, disk, pdsk));
    assert!(at(DiskState::UpToDate, DiskState::DUnknown));
    assert!(at(DiskState::Inconsistent, DiskState::UpToDate));
    assert!(!at(DiskState::Inconsistent, DiskState::Inconsistent));
    assert!(!at(DiskState::Outdated, DiskState::DUnknown));
    assert!(!at(DiskState::Negotiating, DiskState::UpToDate));
}

#[test]
fn requests_wait_while_their_way_is_open() {
    let at = |conn, disk| state(conn, disk, DiskState::UpToDate);
    for conn in ConnState::ALL.iter().copied() {
        let want = !matches!(conn, ConnState::WfBitMapT | ConnState::WfSyncUuid);
        assert_eq!(admits_io(&at(conn, DiskState::UpToDate), 101), want, "{conn}");
    }
    assert!(!admits_io(&at(ConnState::WfBitMapS, DiskState::UpToDate), 95));
    assert!(!admits_io(&at(ConnState::Connected, DiskState::Attaching), 101));
    assert!(!admits_io(&at(ConnState::Connected, DiskState::Negotiating), 101));
    assert!(admits_io(&at(ConnState::Connected, DiskState::Failed), 101));
    let up = at(ConnState::Connected, DiskState::UpToDate);
    assert!(!admits_io(&VolumeState { susp: true, ..up }, 101));
    assert!(!admits_io(&VolumeState { susp_nod: true, ..up }, 101));
    assert!(!admits_io(&VolumeState { susp_fen: true, ..up }, 101));
}
