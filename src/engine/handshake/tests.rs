use proptest::prelude::*;

use super::*;
use crate::engine::split_brain::AfterSb;
use crate::units::GenId;

const A: u64 = 0xA1A1_0000_1111_2220;
const B: u64 = 0xB2B2_0000_3333_4440;
const D: u64 = 0xD4D4_0000_5555_6660;
const E: u64 = 0xE5E5_0000_7777_8880;

const ALL_BITS: u64 = 1000;

/// One node of a connection: what it knows of itself.
#[derive(Clone, Debug)]
struct Node {
    ids: GenIds,
    bits: u64,
    crashed: bool,
    role: Role,
    disk: DiskState,
    attach_disk: DiskState,
    policies: AfterSbPolicies,
    always_asbp: bool,
    rr_conflict: RrConflict,
    discard: bool,
    dry_run: bool,
}

fn node(slots: [u64; 4]) -> Node {
    Node {
        ids: GenIds::from_slots(slots),
        bits: 0,
        crashed: false,
        role: Role::Secondary,
        disk: DiskState::UpToDate,
        attach_disk: DiskState::UpToDate,
        policies: AfterSbPolicies::default(),
        always_asbp: false,
        rr_conflict: RrConflict::Disconnect,
        discard: false,
        dry_run: false,
    }
}

impl Node {
    fn announced(&self) -> PeerUuids {
        let flags = UuidFlags::default()
            .with(UuidFlags::DISCARD_MY_DATA, self.discard)
            .with(UuidFlags::CRASHED_PRIMARY, self.crashed)
            .with(UuidFlags::INCONSISTENT, self.attach_disk == DiskState::Inconsistent);
        PeerUuids { ids: self.ids, bits_set: self.bits, flags }
    }

    fn meets(&self, other: &Self) -> Outcome {
        self.meets_with(other, false)
    }

    fn meets_with(&self, other: &Self, resolve_conflicts: bool) -> Outcome {
        let peer = other.announced();
        decide(&HandshakeInput {
            own: &self.ids,
            own_bits_set: self.bits,
            own_changes: self.bits,
            all_bits: ALL_BITS,
            own_crashed_primary: self.crashed,
            own_role: self.role,
            disk: self.disk,
            negotiation_disk: self.attach_disk,
            peer: &peer,
            peer_role: other.role,
            peer_disk: real_peer_disk(other.disk, peer.flags),
            resolve_conflicts,
            version: 101,
            wsame: true,
            policies: self.policies,
            always_asbp: self.always_asbp,
            can_demote: false,
            rr_conflict: self.rr_conflict,
            discard_my_data: self.discard,
            dry_run: self.dry_run,
            peer_dry_run: other.dry_run,
        })
    }

    fn disk(self, disk: DiskState) -> Self {
        Self { disk, ..self }
    }

    fn primary(self) -> Self {
        Self { role: Role::Primary, ..self }
    }

    fn policy(self, policy: AfterSb) -> Self {
        Self { policies: AfterSbPolicies { none: policy, one: policy, two: policy }, ..self }
    }

    fn discarding(self) -> Self {
        Self { discard: true, ..self }
    }
}

const SOURCE: Decision = Decision::Source { full: false };
const TARGET: Decision = Decision::Target { full: false };
const FULL_SOURCE: Decision = Decision::Source { full: true };
const FULL_TARGET: Decision = Decision::Target { full: true };
const SPLIT_BRAIN: Decision = Decision::Refuse(RefuseReason::SplitBrain);

fn decisions(n1: &Node, n2: &Node) -> (Decision, Decision) {
    (n1.meets(n2).decision, n2.meets_with(n1, true).decision)
}

fn says(outcome: &Outcome, line: &str) -> bool {
    outcome.log.iter().any(|l| l == line)
}

/// Rule 90 on both nodes.
fn split() -> (Node, Node) {
    (Node { bits: 10, ..node([A, D, 0, 0]) }, Node { bits: 20, ..node([B, D, 0, 0]) })
}

/// Rule 100 on both nodes.
fn ambiguous() -> (Node, Node) {
    (Node { bits: 10, ..node([A, 0, 0, 0]) }, Node { bits: 20, ..node([B, 0, 0, 0]) })
}

#[test]
fn identifiers_decide_between_equal_disks() {
    assert_eq!(decisions(&node([A, 0, 0, 0]), &node([B, A, 0, 0])), (TARGET, SOURCE));
    assert_eq!(decisions(&node([4, 0, 0, 0]), &node([A, 0, 0, 0])), (FULL_TARGET, FULL_SOURCE));
    assert_eq!(decisions(&node([A, 0, 0, 0]), &node([A, 0, 0, 0])), (Decision::Connected, Decision::Connected));
}

#[test]
fn the_log_is_drbds() {
    let fresh = Node { bits: 16374, ..node([4, 0, 0, 0]).disk(DiskState::Inconsistent) };
    assert_eq!(
        fresh.meets(&fresh).log,
        [
            "drbd_sync_handshake:",
            "self 0000000000000004:0000000000000000:0000000000000000:0000000000000000 bits:16374 flags:0",
            "peer 0000000000000004:0000000000000000:0000000000000000:0000000000000000 bits:16374 flags:0",
            "uuid_compare()=0 by rule 10",
            "No resync, but 16374 bits in bitmap!",
        ]
    );
    let corrected = node([A, B, D, 0]).meets(&node([A, 0, B, D])).log;
    assert_eq!(
        corrected.get(3..6).map(<[String]>::to_vec),
        Some(vec![
            String::from("was SyncSource, missed the resync finished event, corrected myself:"),
            format!("self {} bits:0 flags:0", GenIds::from_slots([A, 0, B, D])),
            String::from("uuid_compare()=1 by rule 34"),
        ])
    );
}

#[test]
fn one_inconsistent_disk_never_wins() {
    let bad = |slots| node(slots).disk(DiskState::Inconsistent);
    assert_eq!(decisions(&bad([A, 0, 0, 0]), &node([A, 0, 0, 0])), (TARGET, SOURCE));
    let invalidated = |slots| Node { bits: ALL_BITS, ..bad(slots) };
    assert_eq!(decisions(&invalidated([B, A, 0, 0]), &node([A, 0, 0, 0])), (TARGET, SOURCE));
    assert_eq!(decisions(&bad([A, 0, 0, 0]), &node([B, A, 0, 0])), (TARGET, SOURCE));
    assert_eq!(decisions(&bad([A, 0, 0, 0]), &node([B, D, A, 0])), (FULL_TARGET, FULL_SOURCE));
    assert_eq!(decisions(&invalidated([A, D, 0, 0]), &node([B, D, 0, 0])), (TARGET, SOURCE));
    let outcome = bad([A, 0, 0, 0]).meets(&node([A, 0, 0, 0]));
    assert!(outcome.handlers.is_empty());
    assert!(says(&outcome, "Becoming sync target due to disk states."));
    assert!(says(&node([A, 0, 0, 0]).meets(&bad([A, 0, 0, 0])), "Becoming sync source due to disk states."));
}

#[test]
fn an_inconsistent_disk_with_the_latest_writes_is_not_overwritten_unasked() {
    let bad = |slots| Node { bits: ALL_BITS - 1, ..node(slots).disk(DiskState::Inconsistent) };
    let refused =
        (Decision::Refuse(RefuseReason::NewerInconsistent), Decision::Refuse(RefuseReason::NewerInconsistent));
    for (newer, older) in [([B, A, 0, 0], [A, 0, 0, 0]), ([B, D, A, 0], [A, 0, 0, 0]), ([A, D, 0, 0], [B, D, 0, 0])] {
        assert_eq!(decisions(&bad(newer), &node(older)), refused);
        let said = bad(newer).meets(&node(older)).log;
        assert!(said.iter().any(|line| line.starts_with("Only this node's data hold the latest writes")), "{said:?}");
        let given_up = Node { discard: true, ..bad(newer) };
        let (own, peer) = decisions(&given_up, &node(older));
        assert!(matches!((own, peer), (Decision::Target { .. }, Decision::Source { .. })), "{own:?} {peer:?}");
    }
    assert_eq!(decisions(&bad([A, 0, 0, 0]), &node([A, 0, 0, 0])), (TARGET, SOURCE), "one generation");
}

#[test]
fn a_negotiating_disk_counts_as_it_was_found() {
    let attaching = Node { attach_disk: DiskState::Inconsistent, ..node([A, 0, 0, 0]).disk(DiskState::Negotiating) };
    assert_eq!(decisions(&attaching, &node([A, 0, 0, 0])), (TARGET, SOURCE));
    let good = node([A, 0, 0, 0]).disk(DiskState::Negotiating);
    assert_eq!(decisions(&good, &node([A, 0, 0, 0])), (Decision::Connected, Decision::Connected));
}

#[test]
fn unrelated_data_are_refused() {
    let outcome = node([A, D, 6, E]).meets(&node([B, 0, 8, 0]));
    assert_eq!(outcome.decision, Decision::Refuse(RefuseReason::Unrelated));
    assert_eq!(outcome.log.last().map(String::as_str), Some("Unrelated data, aborting!"));
    assert!(outcome.handlers.is_empty());
}

#[test]
fn an_unresolved_split_brain_calls_both_helpers() {
    for (n1, n2) in [split(), ambiguous()] {
        for outcome in [n1.meets(&n2), n2.meets_with(&n1, true)] {
            assert_eq!(outcome.decision, SPLIT_BRAIN);
            assert_eq!(outcome.handlers, [Handler::InitialSplitBrain, Handler::SplitBrain]);
            assert!(says(&outcome, "Split-Brain detected but unresolved, dropping connection!"));
        }
    }
}

#[test]
fn policies_resolve_a_split_brain() {
    let (n1, n2) = split();
    let (n1, n2) = (n1.policy(AfterSb::DiscardLeastChanges), n2.policy(AfterSb::DiscardLeastChanges));
    assert_eq!(decisions(&n1, &n2), (TARGET, SOURCE));
    let outcome = n1.meets(&n2);
    assert_eq!(outcome.handlers, [Handler::InitialSplitBrain]);
    assert!(says(&outcome, "Split-Brain detected, 0 primaries, automatically solved. Sync from peer node"));
    assert!(says(&n2.meets(&n1), "Split-Brain detected, 0 primaries, automatically solved. Sync from this node"));
}

#[test]
fn policies_switched_off_do_not_count() {
    let (n1, n2) = split();
    let off = |n: Node| n.policy(AfterSb::Disconnect);
    let (n1, n2) = (off(n1), off(n2));
    assert_eq!(decisions(&n1, &n2), (SPLIT_BRAIN, SPLIT_BRAIN));
    assert_eq!(decisions(&n1.clone().discarding(), &n2), (TARGET, SOURCE));
}

#[test]
fn ambiguous_identifiers_need_always_asbp_and_resync_all() {
    let (n1, n2) = ambiguous();
    let (n1, n2) = (n1.policy(AfterSb::DiscardLeastChanges), n2.policy(AfterSb::DiscardLeastChanges));
    assert_eq!(decisions(&n1, &n2), (SPLIT_BRAIN, SPLIT_BRAIN));
    let always = |n: Node| Node { always_asbp: true, ..n };
    let (n1, n2) = (always(n1), always(n2));
    assert_eq!(decisions(&n1, &n2), (FULL_TARGET, FULL_SOURCE));
    assert!(says(&n1.meets(&n2), "Doing a full sync, since UUIDs where ambiguous."));
    assert!(says(&n1.meets(&n2), "Writing the whole bitmap, full sync required after drbd_sync_handshake."));
}

#[test]
fn discard_my_data_on_exactly_one_node_decides() {
    let (n1, n2) = split();
    assert_eq!(decisions(&n1.clone().discarding(), &n2), (TARGET, SOURCE));
    assert_eq!(decisions(&n1, &n2.clone().discarding()), (SOURCE, TARGET));
    assert_eq!(decisions(&n1.clone().discarding(), &n2.clone().discarding()), (SPLIT_BRAIN, SPLIT_BRAIN));
    let outcome = n1.clone().discarding().meets(&n2);
    assert!(says(&outcome, "Split-Brain detected, manually solved. Sync from peer node"));
    assert_eq!(outcome.handlers, [Handler::InitialSplitBrain]);
    // Without a split brain it means nothing.
    assert_eq!(decisions(&node([B, A, 0, 0]).discarding(), &node([A, 0, 0, 0])), (SOURCE, TARGET));
}

/// The bitmaps of nodes that share only old history do not describe how they differ.
#[test]
fn a_split_brain_without_common_bitmap_resyncs_all_when_solved_by_hand() {
    let (n1, n2) = ambiguous();
    assert_eq!(decisions(&n1.discarding(), &n2), (FULL_TARGET, FULL_SOURCE));
}

#[test]
fn a_primary_does_not_become_target_unless_told() {
    let (winner, loser) = (node([B, A, 0, 0]), node([A, 0, 0, 0]).primary());
    let refused = loser.meets(&winner);
    assert_eq!(refused.decision, Decision::Refuse(RefuseReason::TargetIsPrimary));
    assert!(refused.handlers.is_empty());
    assert!(says(&refused, "I shall become SyncTarget, but I am primary!"));
    assert_eq!(winner.meets(&loser).decision, SOURCE);

    let call = Node { rr_conflict: RrConflict::CallPriLost, ..loser.clone() }.meets(&winner);
    assert_eq!(call.decision, refused.decision);
    assert_eq!(call.handlers, [Handler::PriLost]);

    let violent = Node { rr_conflict: RrConflict::Violently, ..loser.clone() }.meets(&winner);
    assert_eq!(violent.decision, TARGET);
    assert!(says(&violent, "Becoming SyncTarget, violating the stable-dataassumption"));

    // A diskless Primary that attaches an old disk may take the peer's data.
    assert_eq!(loser.disk(DiskState::Negotiating).meets(&winner).decision, TARGET);
}

#[test]
fn the_log_says_it_as_data_too() {
    let fact = |rule, split_brain, refused| Fact::Handshake { rule, split_brain, refused };
    let (winner, loser) = (node([B, A, 0, 0]), node([A, 0, 0, 0]).primary());
    let refused = Some(RefuseReason::TargetIsPrimary);
    let met = loser.meets(&winner);
    assert_eq!(met.fact(), fact(met.comparison.rule, false, refused));
    // The other way round it is no reason for this node to be demoted.
    let met = winner.clone().disk(DiskState::Negotiating).meets(&loser);
    assert_eq!(met.fact(), fact(met.comparison.rule, false, Some(RefuseReason::PeerIsPrimary)));
    let met = winner.meets(&node([A, 0, 0, 0]));
    assert_eq!(met.fact(), fact(met.comparison.rule, false, None));

    let (n1, n2) = split();
    let met = n1.meets(&n2);
    assert_eq!(met.fact(), fact(met.comparison.rule, true, Some(RefuseReason::SplitBrain)));
    let solved = n1.discarding().meets(&n2);
    assert_eq!(solved.fact(), fact(met.comparison.rule, true, None));
}

#[test]
fn inconsistent_data_are_no_source() {
    let bad = |slots| node(slots).disk(DiskState::Inconsistent);
    let outcome = bad([B, A, 0, 0]).meets(&bad([A, 0, 0, 0]));
    assert_eq!(outcome.decision, Decision::Refuse(RefuseReason::SourceInconsistent));
    assert!(says(&outcome, "I shall become SyncSource, but I am inconsistent!"));
}

#[test]
fn a_dry_run_only_says_what_would_happen() {
    let dry = |slots| Node { dry_run: true, ..node(slots) };
    for (n1, n2, line) in [
        (dry([A, 0, 0, 0]), node([A, 0, 0, 0]), "dry-run connect: No resync, would become Connected immediately."),
        (
            dry([B, A, 0, 0]),
            node([A, 0, 0, 0]),
            "dry-run connect: Would become SyncSource, doing a bit-map based resync.",
        ),
        (node([4, 0, 0, 0]), dry([A, 0, 0, 0]), "dry-run connect: Would become SyncTarget, doing a full resync."),
    ] {
        let outcome = n1.meets(&n2);
        assert_eq!(outcome.decision, Decision::Refuse(RefuseReason::DryRun));
        assert_eq!(outcome.log.last().map(String::as_str), Some(line));
    }
}

#[test]
fn what_needs_a_feature_is_refused_by_name() {
    let n1 = node([A, 0, 0, 0]).primary();
    let n2 = Node { crashed: true, ..node([A, 0, 0, 0]) };
    let peer = n2.announced();
    let outcome = decide(&HandshakeInput {
        own: &n1.ids,
        own_bits_set: 0,
        own_changes: 0,
        all_bits: ALL_BITS,
        own_crashed_primary: false,
        own_role: Role::Primary,
        disk: DiskState::UpToDate,
        negotiation_disk: DiskState::UpToDate,
        peer: &peer,
        peer_role: Role::Secondary,
        peer_disk: DiskState::UpToDate,
        resolve_conflicts: false,
        version: 101,
        wsame: false,
        policies: AfterSbPolicies::default(),
        always_asbp: false,
        can_demote: false,
        rr_conflict: RrConflict::Disconnect,
        discard_my_data: false,
        dry_run: false,
        peer_dry_run: false,
    });
    assert_eq!(outcome.decision, Decision::Refuse(RefuseReason::NeedsFeature { version: 101, feature: 4 }));
    let line = "To resolve this both sides have to support at least protocol 101 and feature flags 0x4";
    assert_eq!(outcome.log.last().map(String::as_str), Some(line));
    assert!(says(&outcome, "Equivalent unrotated UUIDs, but current primary present."));
}

#[test]
fn two_primaries_with_one_generation_after_a_crash_are_a_split_brain() {
    let n1 = node([A, 0, 0, 0]).primary();
    let n2 = Node { crashed: true, ..n1.clone() };
    assert_eq!(decisions(&n1, &n2), (SPLIT_BRAIN, SPLIT_BRAIN));
}

#[test]
fn losing_the_vote_as_primary_calls_for_help() {
    let (n1, n2) = split();
    let n1 = n1.policy(AfterSb::CallPriLostAfterSb).primary();
    let n1 = Node { policies: AfterSbPolicies { none: AfterSb::DiscardLeastChanges, ..n1.policies }, ..n1 };
    let outcome = n1.meets(&n2);
    assert_eq!(outcome.decision, SPLIT_BRAIN);
    assert_eq!(outcome.handlers, [Handler::InitialSplitBrain, Handler::PriLostAfterSb, Handler::SplitBrain]);
}

fn any_node() -> impl Strategy<Value = Node> {
    let id = || prop::sample::select(vec![0, 4, A, A | 1, A.wrapping_add(GenId::SYNC_STEP), B, D, E]);
    let disk = prop::sample::select(vec![
        DiskState::Negotiating,
        DiskState::Inconsistent,
        DiskState::Outdated,
        DiskState::Consistent,
        DiskState::UpToDate,
    ]);
    let found = prop::sample::select(vec![DiskState::Inconsistent, DiskState::Consistent]);
    let flags = any::<[bool; 5]>();
    let policy = prop::sample::select(AfterSb::ALL.to_vec());
    ([id(), id(), id(), id()], 0..3u64, disk, found, flags, policy).prop_map(
        |(slots, bits, disk, attach_disk, [crashed, primary, auto, always_asbp, discard], policy)| Node {
            bits,
            attach_disk,
            crashed,
            always_asbp,
            discard,
            role: if primary { Role::Primary } else { Role::Secondary },
            ..node(slots).disk(disk).policy(if auto { policy } else { AfterSb::Disconnect })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Never two sources; data are never discarded by a node whose peer does not agree to be the source or gave up.
    #[test]
    fn the_nodes_never_both_become_source(n1 in any_node(), n2 in any_node()) {
        let n2 = Node { always_asbp: n1.always_asbp, policies: n1.policies, ..n2 };
        let mirror = |p: AfterSb| p.mirrored();
        let p = n2.policies;
        let n2 = Node { policies: AfterSbPolicies { none: mirror(p.none), one: mirror(p.one), two: mirror(p.two) }, ..n2 };
        let (first, second) = (n1.meets(&n2), n2.meets_with(&n1, true));
        // Identifiers that no history produces; see `compare`.
        prop_assume!(first.comparison.verdict.mirrored() == second.comparison.verdict);
        let (first, second) = (first.decision, second.decision);
        match (first, second) {
            (Decision::Source { .. }, Decision::Source { .. } | Decision::Connected)
            | (Decision::Connected, Decision::Source { .. } | Decision::Target { .. })
            | (Decision::Target { .. }, Decision::Connected) => {
                prop_assert!(false, "{first:?} {second:?}");
            }
            (Decision::Source { full: a }, Decision::Target { full: b })
            | (Decision::Target { full: a }, Decision::Source { full: b }) => prop_assert_eq!(a, b),
            _ => {}
        }
    }

    #[test]
    fn without_policies_only_discard_my_data_ends_a_split_brain(n1 in any_node(), n2 in any_node()) {
        let n1 = n1.policy(AfterSb::Disconnect);
        let outcome = n1.meets(&n2);
        if outcome.handlers.contains(&Handler::InitialSplitBrain) && n1.discard == n2.discard {
            prop_assert_eq!(outcome.decision, SPLIT_BRAIN);
        }
    }
}
