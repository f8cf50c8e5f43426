use proptest::prelude::*;

use super::*;

const TIE_LOSER: bool = true;

fn input(own_changes: u64, peer_changes: u64) -> SbInput {
    SbInput {
        own_bitmap: GenId(0x10),
        peer_bitmap: GenId(0x10),
        own_changes,
        peer_changes,
        own_role: Role::Secondary,
        peer_role: Role::Secondary,
        resolve_conflicts: false,
        can_demote: false,
    }
}

fn mirrored(input: &SbInput, can_demote: bool) -> SbInput {
    SbInput {
        own_bitmap: input.peer_bitmap,
        peer_bitmap: input.own_bitmap,
        own_changes: input.peer_changes,
        peer_changes: input.own_changes,
        own_role: input.peer_role,
        peer_role: input.own_role,
        resolve_conflicts: !input.resolve_conflicts,
        can_demote,
    }
}

fn none(policy: AfterSb) -> AfterSbPolicies {
    AfterSbPolicies { none: policy, ..AfterSbPolicies::default() }
}

fn decide(policies: AfterSbPolicies, input: &SbInput) -> SbDecision {
    recover(&policies, input).decision
}

use SbDecision::{Source, Target, Undecided};

#[test]
fn policies_without_a_primary() {
    for (policy, own, peer, want) in [
        (AfterSb::Disconnect, 10, 20, Undecided),
        (AfterSb::DiscardZeroChanges, 10, 20, Undecided),
        (AfterSb::DiscardZeroChanges, 10, 0, Source),
        (AfterSb::DiscardZeroChanges, 0, 20, Target),
        (AfterSb::DiscardZeroChanges, 0, 0, Source),
        (AfterSb::DiscardLeastChanges, 10, 20, Target),
        (AfterSb::DiscardLeastChanges, 20, 10, Source),
        (AfterSb::DiscardLeastChanges, 10, 10, Source),
        (AfterSb::DiscardLocal, 10, 0, Target),
        (AfterSb::DiscardRemote, 0, 10, Source),
    ] {
        assert_eq!(decide(none(policy), &input(own, peer)), want, "{policy:?} {own} {peer}");
    }
    let tie =
        |policy, changes| decide(none(policy), &SbInput { resolve_conflicts: TIE_LOSER, ..input(changes, changes) });
    assert_eq!(tie(AfterSb::DiscardZeroChanges, 0), Target);
    assert_eq!(tie(AfterSb::DiscardLeastChanges, 3), Target);
}

#[test]
fn the_bitmap_identifiers_tell_who_was_primary_first() {
    let was_primary = SbInput { own_bitmap: GenId(0x11), ..input(10, 20) };
    assert_eq!(decide(none(AfterSb::DiscardYoungerPrimary), &was_primary), Source);
    assert_eq!(decide(none(AfterSb::DiscardOlderPrimary), &was_primary), Target);
    let was_secondary = SbInput { peer_bitmap: GenId(0x11), ..input(20, 10) };
    assert_eq!(decide(none(AfterSb::DiscardYoungerPrimary), &was_secondary), Target);
    assert_eq!(decide(none(AfterSb::DiscardOlderPrimary), &was_secondary), Source);
}

#[test]
fn younger_and_older_fall_back_to_counting_changes() {
    for policy in [AfterSb::DiscardYoungerPrimary, AfterSb::DiscardOlderPrimary] {
        let outcome = recover(&none(policy), &input(10, 20));
        assert_eq!(outcome.decision, Target);
        assert_eq!(
            outcome.log,
            ["Discard younger/older primary did not find a decision", "Using discard-least-changes instead"]
        );
        assert_eq!(decide(none(policy), &input(10, 0)), Source);
        let tie = SbInput { resolve_conflicts: TIE_LOSER, ..input(0, 0) };
        assert_eq!(decide(none(policy), &tie), Target);
    }
}

#[test]
fn policies_with_one_primary() {
    let one = |none, one| AfterSbPolicies { none, one, two: AfterSb::Disconnect };
    let primary = |own, peer| SbInput { own_role: Role::Primary, ..input(own, peer) };
    let secondary = |own, peer| SbInput { peer_role: Role::Primary, ..input(own, peer) };
    let least = AfterSb::DiscardLeastChanges;

    assert_eq!(decide(one(least, AfterSb::Disconnect), &primary(20, 10)), Undecided);
    assert_eq!(decide(one(least, AfterSb::Consensus), &primary(10, 20)), Undecided);
    assert_eq!(decide(one(least, AfterSb::Consensus), &primary(20, 10)), Source);
    assert_eq!(decide(one(least, AfterSb::Consensus), &secondary(20, 10)), Undecided);
    assert_eq!(decide(one(least, AfterSb::Consensus), &secondary(10, 20)), Target);
    assert_eq!(decide(one(least, AfterSb::ViolentlyAs0p), &primary(10, 20)), Target);
    assert_eq!(decide(one(AfterSb::Disconnect, AfterSb::DiscardSecondary), &primary(10, 20)), Source);
    assert_eq!(decide(one(AfterSb::Disconnect, AfterSb::DiscardSecondary), &secondary(20, 10)), Target);
    assert_eq!(decide(one(least, AfterSb::CallPriLostAfterSb), &primary(20, 10)), Source);
    assert_eq!(decide(one(least, AfterSb::CallPriLostAfterSb), &secondary(10, 20)), Target);
}

#[test]
fn a_primary_that_lost_demotes_itself_or_calls_for_help() {
    for (own_role, peer_role, policies) in [
        (
            Role::Primary,
            Role::Secondary,
            AfterSbPolicies { one: AfterSb::CallPriLostAfterSb, ..none(AfterSb::DiscardLocal) },
        ),
        (
            Role::Primary,
            Role::Primary,
            AfterSbPolicies { two: AfterSb::CallPriLostAfterSb, ..none(AfterSb::DiscardLocal) },
        ),
    ] {
        let loser = SbInput { own_role, peer_role, ..input(10, 20) };
        assert_eq!(
            recover(&policies, &loser),
            SbOutcome { decision: Undecided, demote: false, handler: Some(Handler::PriLostAfterSb), log: vec![] }
        );
        assert_eq!(
            recover(&policies, &SbInput { can_demote: true, ..loser }),
            SbOutcome {
                decision: Target,
                demote: true,
                handler: None,
                log: vec!["Successfully gave up primary role."]
            }
        );
    }
}

#[test]
fn policies_with_two_primaries() {
    let two = |two| AfterSbPolicies { none: AfterSb::DiscardLeastChanges, one: AfterSb::Disconnect, two };
    let primaries = SbInput { own_role: Role::Primary, peer_role: Role::Primary, ..input(10, 20) };
    assert_eq!(decide(two(AfterSb::Disconnect), &primaries), Undecided);
    assert_eq!(decide(two(AfterSb::ViolentlyAs0p), &primaries), Target);
    assert_eq!(decide(two(AfterSb::CallPriLostAfterSb), &SbInput { own_changes: 30, ..primaries }), Source);
}

#[test]
fn policies_in_the_wrong_place_are_configuration_errors() {
    use AfterSb::*;
    let cases: [(u8, &[AfterSb]); 3] = [
        (0, &[Consensus, DiscardSecondary, CallPriLostAfterSb, ViolentlyAs0p]),
        (
            1,
            &[
                DiscardYoungerPrimary,
                DiscardOlderPrimary,
                DiscardZeroChanges,
                DiscardLeastChanges,
                DiscardLocal,
                DiscardRemote,
            ],
        ),
        (
            2,
            &[
                DiscardYoungerPrimary,
                DiscardOlderPrimary,
                DiscardZeroChanges,
                DiscardLeastChanges,
                DiscardLocal,
                DiscardRemote,
                Consensus,
                DiscardSecondary,
            ],
        ),
    ];
    for (count, policies) in cases {
        let role = |primary: bool| if primary { Role::Primary } else { Role::Secondary };
        let input = SbInput { own_role: role(count > 0), peer_role: role(count > 1), ..input(10, 0) };
        for policy in policies {
            let outcome = recover(&AfterSbPolicies { none: *policy, one: *policy, two: *policy }, &input);
            assert_eq!((outcome.decision, outcome.log), (Undecided, vec![CONFIGURATION_ERROR]), "{count} {policy:?}");
        }
    }
}

#[test]
fn numbers_travel() {
    for &policy in AfterSb::ALL {
        assert_eq!(AfterSb::from_code(policy.code()), Some(policy));
        assert_eq!(policy.mirrored().mirrored(), policy);
    }
    assert_eq!(AfterSb::from_code(11), None);
    assert_eq!(AfterSb::DiscardLocal.mirrored(), AfterSb::DiscardRemote);
}

fn any_policy() -> impl Strategy<Value = AfterSb> {
    prop::sample::select(AfterSb::ALL.to_vec())
}

proptest! {
    /// Both nodes decide alike, unless a Primary that cannot demote itself keeps its data.
    #[test]
    fn decisions_mirror_each_other(
        none in any_policy(), one in any_policy(), two in any_policy(),
        bits in any::<[bool; 2]>(), changes in [0..3u64, 0..3u64], primary in any::<[bool; 2]>(), tie in any::<bool>(),
    ) {
        let role = |p: bool| if p { Role::Primary } else { Role::Secondary };
        let first = SbInput {
            own_bitmap: GenId(0x10 | u64::from(bits[0])),
            peer_bitmap: GenId(0x10 | u64::from(bits[1])),
            own_changes: changes[0],
            peer_changes: changes[1],
            own_role: role(primary[0]),
            peer_role: role(primary[1]),
            resolve_conflicts: tie,
            can_demote: true,
        };
        let policies = AfterSbPolicies { none, one, two };
        let mirrored_policies =
            AfterSbPolicies { none: none.mirrored(), one: one.mirrored(), two: two.mirrored() };
        let own = recover(&policies, &first);
        let peer = recover(&mirrored_policies, &mirrored(&first, true));
        prop_assert_eq!(own.decision.mirrored(), peer.decision);

        let helpless = recover(&policies, &SbInput { can_demote: false, ..first });
        if helpless.handler.is_some() {
            prop_assert_eq!(helpless.decision, Undecided);
            prop_assert!(own.demote);
        } else {
            prop_assert_eq!(helpless.decision, own.decision);
        }
    }
}
