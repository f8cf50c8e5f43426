use proptest::prelude::*;

use super::*;

fn words(change: &StateChange) -> (u32, u32) {
    (change.mask().0, change.val().0)
}

/// The requests of wire.md 11.2 and 11.5.
const REQUESTS: [(u32, u32); 9] = [
    (0x3, 0x1),
    (0x1e03, 0x1001),
    (0x1f0, 0xb0),
    (0x1f0, 0xc0),
    (0x1e00, 0x400),
    (0x1f0, 0x120),
    (0x1f0, 0x010),
    (0x1ff0, 0x0a10),
    (0x1e1f0, 0xa010),
];

#[test]
fn captured_requests_are_these_changes() {
    let leave = StateChange::NONE.conn(ConnState::Disconnecting);
    let changes = [
        StateChange::NONE.role(Role::Primary),
        StateChange::NONE.role(Role::Primary).disk(DiskState::UpToDate),
        StateChange::NONE.conn(ConnState::StartingSyncS),
        StateChange::NONE.conn(ConnState::StartingSyncT),
        StateChange::NONE.disk(DiskState::Failed),
        StateChange::NONE.conn(ConnState::VerifyS),
        leave,
        leave.disk(DiskState::Outdated),
        leave.pdsk(DiskState::Outdated),
    ];
    for (change, (change_mask, val)) in changes.iter().zip(REQUESTS) {
        assert_eq!(words(change), (change_mask, val));
        assert_eq!(StateChange::from_words(StateWord(change_mask), StateWord(val)), Some(*change));
    }
}

#[test]
fn only_known_requests_are_acceptable() {
    let acceptable = |m: u32, v: u32| is_acceptable_peer_request(StateWord(m), StateWord(v));
    for (change_mask, val) in REQUESTS {
        assert!(acceptable(change_mask, val), "{change_mask:#x}/{val:#x}");
        assert!(!acceptable(change_mask, val | 1 << 31));
        assert!(!acceptable(change_mask | mask::SUSP, val | mask::SUSP));
    }
    // Deleting a volume; a promotion that takes the peer for outdated.
    assert!(acceptable(0x1f0, 0x90));
    assert!(acceptable(0x1e003, 0xa001));
    for (change_mask, val) in [
        (0, 0),
        (0x1, 0x1),
        (0x3, 0x2),
        (0x3, 0x3),
        (0x1f0, 0xa0),
        (0x1f0, 0x100),
        (0x1f0, 0x1f0),
        (0x1f0, 0x0),
        (0x1e00, 0x1000),
        (0x1e00, 0x0),
        (0x1f3, 0xb1),
        (0x1fff0, 0xaa10),
        (0x1ff0, 0x1010),
        (u32::MAX, 0x1),
        (u32::MAX, u32::MAX),
    ] {
        assert!(!acceptable(change_mask, val), "{change_mask:#x}/{val:#x}");
    }
}

#[test]
fn the_other_node_sees_the_change_mirrored() {
    for (sent, seen) in [
        (ConnState::WfReportParams, ConnState::WfReportParams),
        (ConnState::Connected, ConnState::Connected),
        (ConnState::StartingSyncS, ConnState::StartingSyncT),
        (ConnState::StartingSyncT, ConnState::StartingSyncS),
        (ConnState::Disconnecting, ConnState::TearDown),
        (ConnState::VerifyS, ConnState::VerifyT),
        (ConnState::VerifyT, ConnState::StandAlone),
        (ConnState::SyncSource, ConnState::StandAlone),
    ] {
        assert_eq!(StateChange::NONE.conn(sent).mirror(), StateChange::NONE.conn(seen));
    }
    let change = StateChange::NONE
        .role(Role::Primary)
        .peer(Role::Secondary)
        .disk(DiskState::UpToDate)
        .pdsk(DiskState::Outdated)
        .user_isp(true)
        .susp(true);
    assert_eq!(
        change.mirror(),
        StateChange::NONE
            .role(Role::Secondary)
            .peer(Role::Primary)
            .disk(DiskState::Outdated)
            .pdsk(DiskState::UpToDate)
            .peer_isp(true)
    );
    assert_eq!(StateChange::NONE.aftr_isp(false).mirror(), StateChange::NONE.peer_isp(false));
    assert_eq!(StateChange::NONE.peer_isp(true).mirror(), StateChange::NONE);
}

#[test]
fn peer_words_name_states_that_exist() {
    for legal in [0x0000_c882, 0x0001_10a9, 0x0001_0ae6, 0x0000_f0d9, 0x0011_0956] {
        assert!(is_legal_peer_word(StateWord(legal)));
    }
    let base = 0x0001_10a9;
    for illegal in [
        base | mask::ROLE,
        base | mask::PEER,
        base & !mask::CONN | 24 << 4,
        base | mask::CONN,
        base & !mask::DISK | 9 << 9,
        base | mask::DISK,
        base & !mask::PDSK | 14 << 13,
    ] {
        assert!(!is_legal_peer_word(StateWord(illegal)), "{illegal:#x}");
    }
}

proptest! {
    #[test]
    fn words_and_changes_are_the_same_thing(change_mask in any::<u32>(), val in any::<u32>(), word in any::<u32>()) {
        if let Some(change) = StateChange::from_words(StateWord(change_mask), StateWord(val)) {
            prop_assert_eq!(words(&change), (change_mask, val));
        }
        _ = is_acceptable_peer_request(StateWord(change_mask), StateWord(val));
        if let Some(state) = VolumeState::from_word(StateWord(word & 0x007f_ffff)) {
            prop_assert_eq!(state.word(), StateWord(word & 0x007f_ffff));
        }
    }

    /// Applying a change is the masked merge of the words.
    #[test]
    fn applying_merges_words(pick in 0..REQUESTS.len(), word in any::<u32>()) {
        let (change_mask, val) = REQUESTS[pick];
        let change = StateChange::from_words(StateWord(change_mask), StateWord(val));
        if let (Some(change), Some(state)) = (change, VolumeState::from_word(StateWord(word))) {
            prop_assert_eq!(change.apply(state).word(), StateWord(state.word().0 & !change_mask | val));
        }
    }
}
