use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const A: u64 = 0xA1A1_0000_1111_2220;
const B: u64 = 0xB2B2_0000_3333_4440;
const D: u64 = 0xD4D4_0000_5555_6660;
const E: u64 = 0xE5E5_0000_7777_8880;
const G: u64 = 0x1212_0000_9999_AAA0;
const H: u64 = 0x3434_0000_BBBB_CCC0;
const STEP: u64 = GenId::SYNC_STEP;

/// One node of a connection.
#[derive(Clone, Copy, Debug)]
struct Node {
    ids: GenIds,
    crashed: bool,
    role: Role,
}

fn node(slots: [u64; 4]) -> Node {
    Node { ids: GenIds::from_slots(slots), crashed: false, role: Role::Secondary }
}

impl Node {
    fn crashed(self) -> Self {
        Self { crashed: true, ..self }
    }

    fn primary(self) -> Self {
        Self { role: Role::Primary, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    version: u32,
    wsame: bool,
    /// Node 1 has the tie breaker.
    first_resolves: bool,
}

const LINK: Link = Link { version: 101, wsame: true, first_resolves: false };

fn evaluate(own: &Node, peer: &Node, link: Link, resolve_conflicts: bool) -> Comparison {
    let flags = UuidFlags::default().with(UuidFlags::CRASHED_PRIMARY, peer.crashed);
    compare(&GiInput {
        own: &own.ids,
        own_crashed_primary: own.crashed,
        own_role: own.role,
        peer: &PeerUuids { ids: peer.ids, bits_set: 0, flags },
        peer_role: peer.role,
        resolve_conflicts,
        version: link.version,
        wsame: link.wsame,
    })
}

fn both(n1: &Node, n2: &Node, link: Link) -> (Comparison, Comparison) {
    (evaluate(n1, n2, link, link.first_resolves), evaluate(n2, n1, link, !link.first_resolves))
}

struct Row {
    n1: Node,
    n2: Node,
    link: Link,
    /// Rule and DRBD's number on node 1, node 2.
    want: [(u16, i64); 2],
}

fn row(n1: Node, n2: Node, want: [(u16, i64); 2]) -> Row {
    Row { n1, n2, link: LINK, want }
}

/// Setups whose results were seen on two kernel nodes, plus one for every rule and branch that was not.
fn table() -> Vec<Row> {
    let equal = [A, 0, D, E];
    let old = |version| Link { version, ..LINK };
    let tie = Link { first_resolves: true, ..LINK };
    let no_feature = Link { wsame: false, ..LINK };
    vec![
        row(node([4, 0, 0, 0]), node([4, 0, 0, 0]), [(10, 0), (10, 0)]),
        row(node([5, 0, 0, 0]), node([4, 0, 0, 0]), [(10, 0), (10, 0)]),
        row(node([4, 0, 0, 0]), node([A, 0, 0, 0]), [(20, -2), (30, 2)]),
        row(node([0, 0, 0, 0]), node([A, 0, 0, 0]), [(20, -2), (30, 2)]),
        row(node([4, 0, 0, 0]), node([0, 0, 0, 0]), [(20, -2), (30, 2)]),
        row(node([0, 0, 0, 0]), node([0, 0, 0, 0]), [(20, -2), (20, -2)]),
        row(node(equal), node(equal), [(40, 0), (40, 0)]),
        row(node([A | 1, 0, D, E]), node(equal), [(40, 0), (40, 0)]),
        row(node([A, B, D, E]), node([A, B, D, E]), [(40, 0), (40, 0)]),
        row(node(equal).crashed(), node(equal), [(40, 1), (40, -1)]),
        row(node(equal), node(equal).crashed(), [(40, -1), (40, 1)]),
        row(node(equal).crashed(), node(equal).crashed(), [(40, 1), (40, -1)]),
        Row { link: tie, ..row(node(equal).crashed(), node(equal).crashed(), [(40, -1), (40, 1)]) },
        row(node([A, B, D, 0]), node([A, 0, B, D]), [(34, 1), (35, -1)]),
        row(node([A, B | 1, D | 1, 0]), node([A, 0, B, D]), [(34, 1), (35, -1)]),
        row(node([A, B, D, 0]), node([A, 0, E, 0]), [(36, 1), (37, -1)]),
        row(node([A, B, D, 0]), node([A, 0, B, E]), [(36, 1), (37, -1)]),
        Row { link: old(90), ..row(node([A, B, D, 0]), node([A, 0, B, D]), [(34, -1091), (35, -1091)]) },
        Row { link: old(90), ..row(node([A, B, D, 0]), node([A, 0, E, 0]), [(36, -1091), (37, -1091)]) },
        row(node(equal).primary(), node(equal).crashed(), [(41, 1), (41, -1)]),
        row(node(equal).primary().crashed(), node(equal), [(41, 1), (41, -1)]),
        row(node(equal).primary(), node(equal).primary().crashed(), [(41, -100), (41, -100)]),
        Row { link: no_feature, ..row(node(equal).primary(), node(equal).crashed(), [(41, -66661), (41, -66661)]) },
        row(node(equal).primary(), node(equal), [(40, 0), (40, 0)]),
        row(node([A, 0, 0, 0]), node([B, A, 0, 0]), [(50, -1), (70, 1)]),
        row(node([A | 1, 0, 0, 0]), node([B, A, 0, 0]), [(50, -1), (70, 1)]),
        row(node([A, 0, 0, 0]), node([B, A.wrapping_add(STEP), A, 0]), [(51, -1), (71, 1)]),
        row(node([!1, 0, 0, 0]), node([B, (!1u64).wrapping_add(STEP), u64::MAX, 0]), [(51, -1), (71, 1)]),
        Row { link: old(95), ..row(node([A, D, E, 0]), node([B, G, A, E]), [(51, -1), (71, 1)]) },
        Row { link: old(95), ..row(node([A, D, E, 0]), node([B, A + STEP, A, H]), [(60, -2), (80, 2)]) },
        Row { link: old(90), ..row(node([A, D, E, 0]), node([B, G, A, E]), [(51, -1091), (71, -1091)]) },
        row(node([A, 0, 0, 0]), node([B, D, A, 0]), [(60, -2), (80, 2)]),
        row(node([A, 0, 0, 0]), node([B, D, E, A]), [(60, -2), (80, 2)]),
        row(node([A, D, 0, 0]), node([B, D, 0, 0]), [(90, 100), (90, 100)]),
        row(node([A, D | 1, G, 0]), node([B, D, E, H]), [(90, 100), (90, 100)]),
        row(node([A, D, G, 0]), node([B, E, G, H]), [(100, -100), (100, -100)]),
        row(node([A, 0, 0, 0]), node([B, 0, 0, 0]), [(100, -100), (100, -100)]),
        row(node([A, D, G, E]), node([B, 0, H, 0]), [(100, -1000), (100, -1000)]),
    ]
}

#[test]
fn every_setup_gives_its_rule_and_result_on_both_nodes() {
    for Row { n1, n2, link, want } in table() {
        let (first, second) = both(&n1, &n2, link);
        let got = [(first.rule, first.verdict.code()), (second.rule, second.verdict.code())];
        assert_eq!(got, want, "{} against {}", n1.ids, n2.ids);
        // The same setup with the nodes exchanged.
        let swapped = both(&n2, &n1, Link { first_resolves: !link.first_resolves, ..link });
        assert_eq!(swapped, (second, first));
    }
}

#[test]
fn every_rule_is_reached() {
    let mut reached = BTreeSet::new();
    for Row { n1, n2, link, .. } in table() {
        let (first, second) = both(&n1, &n2, link);
        reached.extend([first.rule, second.rule]);
    }
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), RULES);
}

#[test]
fn rules_say_what_drbd_says() {
    let log = |n1: [u64; 4], n2: [u64; 4]| {
        let (first, second) = both(&node(n1), &node(n2), LINK);
        (first.log, second.log)
    };
    assert_eq!(
        log([A, B, D, 0], [A, 0, B, D]),
        (
            "was SyncSource, missed the resync finished event, corrected myself:",
            "was SyncTarget, peer missed the resync finished event, corrected peer:"
        )
    );
    assert_eq!(
        log([A, B, D, 0], [A, 0, E, 0]),
        ("was SyncSource (peer failed to write sync_uuid)", "was SyncTarget (failed to write sync_uuid)")
    );
    assert_eq!(
        log([A, 0, 0, 0], [B, A + STEP, A, 0]),
        ("Lost last syncUUID packet, corrected:", "Last syncUUID did not get through, corrected:")
    );
}

#[test]
fn corrections_repair_the_right_copy() {
    let apply = |n1: [u64; 4], n2: [u64; 4]| {
        let (first, second) = both(&node(n1), &node(n2), LINK);
        let (own, peer) = (GenIds::from_slots(n1), GenIds::from_slots(n2));
        let (own_1, peer_1) = first.correction.apply(own, peer);
        let (own_2, peer_2) = second.correction.apply(peer, own);
        [own_1.slots(), peer_1.slots(), own_2.slots(), peer_2.slots()]
    };
    let rotated = [A, 0, B, D];
    assert_eq!(apply([A, B, D, 0], rotated), [rotated, rotated, rotated, rotated]);
    let (lone, undone) = ([A, 0, 0, 0], [B, A, G, G]);
    assert_eq!(apply(lone, [B, A + STEP, A, G]), [lone, undone, undone, lone]);
}

#[test]
fn unusual_version_numbers_read_back() {
    assert_eq!(Verdict::NeedsVersion(91).code(), -1091);
    let code = -Verdict::NeedsFeature { version: 101, feature: 4 }.code();
    assert_eq!((code & 0xff, code >> 8 & 0xff, code > 0x1_0000), (101, 4, true));
}

#[test]
fn a_new_generation_keeps_what_the_peer_has() {
    let ids = GenIds::from_slots([A | 1, 0, D, E]).new_current(B, true);
    assert_eq!(ids.slots(), [B | 1, A | 1, D, E]);
    let again = ids.new_current(G | 1, false);
    assert_eq!(again.slots(), [G, B | 1, D, E]);
    assert_eq!(GenIds::JUST_CREATED.new_current(A, true).slots(), [A | 1, 4, 0, 0]);
}

#[test]
fn the_bitmap_slot_rotates_into_the_history() {
    let ids = GenIds::from_slots([A, B, D, E]);
    assert_eq!(ids.set_bitmap(GenId::UNSET).slots(), [A, 0, B, D]);
    assert_eq!(ids.set_bitmap(GenId(G | 1)).slots(), [A, G, D, E]);
    assert_eq!(ids.rotate_bitmap(GenId(G)).slots(), [A, G, B, D]);
    let empty = GenIds::from_slots([A, 0, D, E]);
    assert_eq!(empty.set_bitmap(GenId::UNSET), empty);
    assert_eq!(empty.rotate_bitmap(GenId(G)).slots(), [A, G, D, E]);
}

#[test]
fn the_sync_identifier_counts_starts() {
    let captured = GenIds::from_slots([A, 0xbbb1_8bf6_3f1b_8d6d, 0, 0]);
    assert_eq!(captured.sync_uuid(7), GenId(0xbbb2_8bf6_3f1b_8d6d));
    let wrapping = GenIds::from_slots([A, u64::MAX, 0, 0]);
    assert_eq!(wrapping.sync_uuid(7), GenId(0x0000_ffff_ffff_ffff));
    for unset in [0, 4] {
        let ids = GenIds::from_slots([A | 1, unset, 0, 0]);
        let drawn = ids.sync_uuid(0x1234_5678_9abc_def1);
        assert_eq!((drawn.0 >> 48, drawn.0 << 16), (0x1234, (A & !1) << 16), "drawn above, the generation's below");
        assert_ne!(ids.sync_uuid(A).masked(), ids.current.masked(), "never the generation itself");
    }

    let before = GenIds::from_slots([A, 0x2D33_6433_BC1D_6E8C, 0, 0]);
    let after = before.start_as_source(before.sync_uuid(0));
    assert_eq!(after.slots(), [A, 0x2D34_6433_BC1D_6E8C, 0x2D33_6433_BC1D_6E8C, 0]);
}

#[test]
fn the_slots_tell_that_a_resync_of_this_generation_began() {
    for bitmap in [0, 4, B | 1] {
        let degraded = GenIds::from_slots([A | 1, bitmap, D, E]);
        assert!(!degraded.resync_begun());
        let mut begun = degraded;
        for random in 1..4 {
            begun = begun.start_as_source(begun.sync_uuid(random << 50));
            assert!(begun.resync_begun(), "start {random} from bitmap slot {bitmap:x}: {begun}");
        }
        assert!(!begun.finish_as_source().resync_begun());
        assert!(!begun.finish_as_source().new_current(G, true).resync_begun());
        let beside = begun.new_current_beside(G, true);
        assert_eq!(beside.slots(), [G | 1, begun.bitmap.0, A, begun.history[0].0]);
        assert!(!beside.resync_begun(), "nobody can have it yet");
        assert!(beside.start_as_source(beside.sync_uuid(0)).resync_begun());
    }
}

/// Both nodes equal; the link breaks under a Primary; resync after the reconnect.
#[test]
fn a_resync_ends_with_equal_identifiers() {
    let target_before = GenIds::from_slots([A, 0, D, E]);
    let source_before = GenIds::from_slots([A | 1, 0, D, E]).new_current(B, true);
    let n1 = Node { ids: source_before, crashed: false, role: Role::Primary };
    let n2 = Node { ids: target_before, crashed: false, role: Role::Secondary };
    let (first, second) = both(&n1, &n2, LINK);
    assert_eq!((first.rule, second.rule), (70, 50));

    let sync = source_before.sync_uuid(0);
    let source = source_before.start_as_source(sync);
    let target = target_before.start_as_target(sync, false);
    assert_eq!(target.slots(), [A.wrapping_add(STEP) & !1, 0, D, E]);

    let (source, target) = (source.finish_as_source(), target.finish_as_target(&source_before, false));
    assert_eq!(source.slots(), [B | 1, 0, (A | 1) + STEP, A | 1]);
    for (s, t) in [
        (source.current, target.current),
        (source.bitmap, target.bitmap),
        (source.history[0], target.history[0]),
        (source.history[1], target.history[1]),
    ] {
        assert!(s.same(t), "{source} {target}");
    }
}

/// The target dies each time before the resync has begun on its disk, and at last the source begins a generation of its own. (A
/// history of two entries loses count of the starts.)
#[test]
fn a_target_whose_resync_never_begins_is_known_however_often_it_starts() {
    let target = node([B, 0, 0, 0]);
    let mut source = GenIds::from_slots([A | 1, B, D, E]);
    for start in 0..8 {
        let (first, second) = both(&Node { ids: source, ..node([0; 4]).primary() }, &target, LINK);
        let agreed =
            matches!(first.verdict, Verdict::Source { .. }) && matches!(second.verdict, Verdict::Target { .. });
        assert!(agreed, "start {start}: {first:?} {second:?} {source}");
        source = source.start_as_source(source.sync_uuid(0)).keeping(&source, GenId(B));
        assert!(source.resync_begun());
        if start == 3 {
            source = source.finish_as_source().new_current(G, true).keeping(&source, GenId(B));
        }
    }
    let kept = source;
    assert_eq!(kept.keeping(&kept, GenId(H)), kept, "what the slots never named is not theirs");
}

#[test]
fn a_full_sync_without_bitmap_identifier_takes_the_older_history_along() {
    let peer = GenIds::from_slots([B, 0, D, E]);
    let target = GenIds::JUST_CREATED.start_as_target(GenId(G), false).finish_as_target(&peer, true);
    assert_eq!(target.slots(), [B | 1, 0, G, D]);
}

#[test]
fn the_initial_sync_can_be_skipped() {
    let sender = GenIds::JUST_CREATED.admin_new_current(A, false);
    assert_eq!(sender.slots(), [A, 4, 0, 0]);
    assert_eq!(sender.clear_bitmap().slots(), [A, 0, 0, 0]);
    assert_eq!(GenIds::JUST_CREATED.skip_initial_sync(GenId(A | 1), false).slots(), [A, 0, 0, 0]);
    assert_eq!(GenIds::from_slots([A, B, D, E]).admin_new_current(G, false).slots(), [G, A, B, D]);
}

#[test]
fn bit_0_follows_the_role() {
    let ids = GenIds::from_slots([A, 0, 0, 0]);
    assert_eq!(ids.with_role(true).current, GenId(A | 1));
    assert_eq!(ids.with_role(true).with_role(false), ids);
}

#[test]
fn identifiers_print_as_drbd_prints_them() {
    assert_eq!(
        GenIds::from_slots([0xab, 4, 0, 1]).to_string(),
        "00000000000000AB:0000000000000004:0000000000000000:0000000000000001"
    );
}

fn any_id() -> impl Strategy<Value = u64> {
    let base = prop::sample::select(vec![0, 4, A, A.wrapping_add(STEP), B, B.wrapping_add(STEP), D, u64::MAX, 1 << 63]);
    (base, 0..2u64).prop_map(|(id, bit)| id | bit)
}

fn any_node() -> impl Strategy<Value = Node> {
    ([any_id(), any_id(), any_id(), any_id()], any::<bool>(), any::<bool>()).prop_map(|(slots, crashed, primary)| {
        Node { ids: GenIds::from_slots(slots), crashed, role: if primary { Role::Primary } else { Role::Secondary } }
    })
}

fn any_link() -> impl Strategy<Value = Link> {
    (86..=101u32, any::<bool>(), any::<bool>()).prop_map(|(version, wsame, first_resolves)| Link {
        version,
        wsame,
        first_resolves,
    })
}

/// The exceptions that [`compare`] documents.
fn both_become_target(n1: &GenIds, n2: &GenIds) -> bool {
    let finds_itself = |own: &GenIds, other: &GenIds| {
        own.current.same(other.bitmap) || other.history.iter().any(|h| own.current.same(*h))
    };
    let fresh = |id: GenId| matches!(id.masked(), 0 | 4);
    let both_unset = n1.current.masked() == 0 && n2.current.masked() == 0;
    let crossed = !fresh(n1.current)
        && !fresh(n2.current)
        && !n1.current.same(n2.current)
        && finds_itself(n1, n2)
        && finds_itself(n2, n1);
    both_unset || crossed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn verdicts_mirror_each_other(n1 in any_node(), n2 in any_node(), link in any_link()) {
        let (first, second) = both(&n1, &n2, link);
        prop_assert!(RULES.contains(&first.rule));
        if both_become_target(&n1.ids, &n2.ids) {
            for verdict in [first.verdict, second.verdict] {
                prop_assert!(matches!(verdict, Verdict::Target { .. } | Verdict::NeedsVersion(_)), "{verdict:?}");
            }
        } else {
            prop_assert_eq!(first.verdict.mirrored(), second.verdict);
            let (own_1, peer_1) = first.correction.apply(n1.ids, n2.ids);
            let (own_2, peer_2) = second.correction.apply(n2.ids, n1.ids);
            prop_assert_eq!((own_1, peer_1), (peer_2, own_2));
        }
    }

    #[test]
    fn bit_0_of_the_current_slot_decides_nothing(n1 in any_node(), n2 in any_node(), link in any_link()) {
        let flip = |n: Node| Node { ids: n.ids.with_current(n.ids.current, !n.ids.current.primary_bit()), ..n };
        prop_assert_eq!(both(&n1, &n2, link), both(&flip(n1), &flip(n2), link));
    }

    #[test]
    fn rotations_lose_only_the_oldest(slots in [any_id(), any_id(), any_id(), any_id()], id in any::<u64>()) {
        let ids = GenIds::from_slots(slots);
        let rotated = ids.rotate_bitmap(GenId(id));
        if slots[1] == 0 {
            prop_assert_eq!(rotated.history, ids.history);
        } else {
            prop_assert_eq!(rotated.history, [ids.bitmap, ids.history[0]]);
        }
        prop_assert_eq!(ids.finish_as_source().bitmap, GenId::UNSET);
        prop_assert_eq!(ids.finish_as_target(&rotated, false).bitmap, GenId::UNSET);
    }
}
