//! Generation identifiers: the comparison of two nodes' identifiers, and how identifiers rotate.
//!
//! Owns: [`GenIds`] (the four slots) and the decision table [`compare`]. Takes in: both nodes' identifiers, roles and
//! flags. Gives out: a verdict with its rule number, and a correction as data; the comparison changes nothing itself.
//! Invariants: pure; bit 0 of an identifier never takes part except where a rule says so; verdicts of the two nodes
//! mirror each other (exceptions: [`compare`]). Source: behaviour.md 3.3, 3.4, 4; wire.md 4.8, 4.11, 9.3, 9.6.

use std::fmt;

use crate::units::GenId;
use crate::wire::state::Role;

/// The four generation identifiers of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenIds {
    /// Names the data generation. Bit 0 says that this node is Primary.
    pub current: GenId,
    /// Generation that the bitmap counts from: what the peer has had since contact was lost. 0: none.
    pub bitmap: GenId,
    /// Earlier generations, the younger first. 0: none.
    pub history: [GenId; 2],
}

impl GenIds {
    /// What create-md writes.
    pub const JUST_CREATED: Self =
        Self { current: GenId::JUST_CREATED, bitmap: GenId::UNSET, history: [GenId::UNSET; 2] };

    /// From current, bitmap and the two history slots.
    #[must_use]
    pub const fn from_slots(slots: [u64; 4]) -> Self {
        let [c, b, h0, h1] = slots;
        Self { current: GenId(c), bitmap: GenId(b), history: [GenId(h0), GenId(h1)] }
    }

    /// Current, bitmap and the two history slots.
    #[must_use]
    pub const fn slots(&self) -> [u64; 4] {
        [self.current.0, self.bitmap.0, self.history[0].0, self.history[1].0]
    }

    /// The current slot written with `id`; bit 0 follows the role.
    #[must_use]
    pub const fn with_current(mut self, id: GenId, primary: bool) -> Self {
        self.current = id.with_primary_bit(primary);
        self
    }

    /// Bit 0 of the current slot set to the role (promotion, demotion, attach).
    #[must_use]
    pub const fn with_role(self, primary: bool) -> Self {
        self.with_current(self.current, primary)
    }

    /// A new data generation: the bitmap slot takes the old current, the current slot `random`. A bitmap identifier that
    /// was set is lost; a caller warns about it (`bm UUID was already set`).
    #[must_use]
    pub const fn new_current(mut self, random: u64, primary: bool) -> Self {
        self.bitmap = self.current;
        self.with_current(GenId(random), primary)
    }

    /// The bitmap slot written with `id` ("set bitmap"): 0 moves the old one to the history, any other value replaces it
    /// with bit 0 cleared.
    #[must_use]
    pub const fn set_bitmap(mut self, id: GenId) -> Self {
        if id.0 == 0 {
            if self.bitmap.0 != 0 {
                self = self.rotate_bitmap(GenId::UNSET);
            }
        } else {
            self.bitmap = id.with_primary_bit(false);
        }
        self
    }

    /// The bitmap slot written with `id` ("rotate-set"): an old value that is not 0 goes to the history.
    #[must_use]
    pub const fn rotate_bitmap(mut self, id: GenId) -> Self {
        if self.bitmap.0 != 0 {
            self.history = [self.bitmap, self.history[0]];
        }
        self.bitmap = id;
        self
    }

    /// Keeps the name of the generation that the peer is known to hold where it was in the slots `before` and has dropped out
    /// of the history: a target whose resync is broken off again and again, each time before it has begun there, would come
    /// to hold data that no slot here knows. Of the older entries nobody holds any.
    #[must_use]
    pub const fn keeping(mut self, before: &Self, held: GenId) -> Self {
        if before.remembers(held) && !self.remembers(held) && !self.current.same(held) {
            self.history[1] = held.with_primary_bit(false);
        }
        self
    }

    const fn remembers(&self, id: GenId) -> bool {
        let [a, b] = self.history;
        id.0 != 0 && (self.bitmap.same(id) || a.same(id) || b.same(id))
    }

    /// A new data generation of which it is not known whether the target of a resync has the old one: the bitmap slot
    /// stays (it tracks what a target that was not done needs), and the history remembers the old current (for a target
    /// that was done).
    #[must_use]
    pub const fn new_current_beside(mut self, random: u64, primary: bool) -> Self {
        self.history = [self.current.with_primary_bit(false), self.history[0]];
        self.with_current(GenId(random), primary)
    }

    /// The identifier that a source announces at the start of a resync (`P_SYNC_UUID`). When the bitmap slot names no
    /// generation it is drawn; 48 bits are then those of the current identifier, so that the slots tell for ever that
    /// they are of a resync of this very generation ([`GenIds::resync_begun`]).
    #[must_use]
    pub const fn sync_uuid(&self, random: u64) -> GenId {
        match self.bitmap {
            GenId::UNSET | GenId::JUST_CREATED => {
                let drawn = random & !STEPPED_BITS | self.current.0 & STEPPED_BITS & !1;
                GenId(if (drawn ^ self.current.0) & !STEPPED_BITS == 0 { drawn ^ 1 << 63 } else { drawn })
            }
            GenId(b) => GenId(b.wrapping_add(GenId::SYNC_STEP)),
        }
    }

    /// Whether a resync from here of the current generation has begun, and its end was not seen: the target may have
    /// come to hold this generation, although the bitmap slot names an older one. (A drawn identifier that a kernel node
    /// wrote cannot be told.)
    #[must_use]
    pub const fn resync_begun(&self) -> bool {
        if self.bitmap.0 == 0 {
            return false;
        }
        let stepped = self.bitmap.0.wrapping_sub(GenId::SYNC_STEP) | 1 == self.history[0].0 | 1;
        stepped || self.target_begins_from_current()
    }

    /// Whether the resync from here that has begun found both nodes in this generation: the target holds it until it has
    /// begun, too.
    #[must_use]
    pub const fn target_begins_from_current(&self) -> bool {
        self.bitmap.0 != 0 && (self.bitmap.0 ^ self.current.0) & STEPPED_BITS & !1 == 0
    }

    /// Start of a resync on the source, with the value of [`GenIds::sync_uuid`].
    #[must_use]
    pub const fn start_as_source(self, sync: GenId) -> Self {
        self.rotate_bitmap(sync)
    }

    /// Start of a resync on the target, on `P_SYNC_UUID`. The history stays.
    #[must_use]
    pub const fn start_as_target(mut self, sync: GenId, primary: bool) -> Self {
        self.bitmap = GenId::UNSET;
        self.with_current(sync, primary)
    }

    /// End of a resync without failed blocks on the source.
    #[must_use]
    pub const fn finish_as_source(self) -> Self {
        self.set_bitmap(GenId::UNSET)
    }

    /// End of a resync without failed blocks on the target: the source's generation, with our sync identifier and the
    /// source's old bitmap identifier as history. `peer` is what the source announced last.
    #[must_use]
    pub const fn finish_as_target(self, peer: &Self, primary: bool) -> Self {
        Self { current: self.current, bitmap: peer.bitmap, history: peer.history }
            .rotate_bitmap(self.current)
            .with_current(peer.current, primary)
            .set_bitmap(GenId::UNSET)
    }

    /// The receiver of "skip initial sync": takes over the peer's current identifier, drops the bitmap identifier.
    #[must_use]
    pub const fn skip_initial_sync(mut self, peer_current: GenId, primary: bool) -> Self {
        self.bitmap = GenId::UNSET;
        self.with_current(peer_current, primary)
    }

    /// The bitmap slot written with 0, nothing moved to the history (the sender of "skip initial sync").
    #[must_use]
    pub const fn clear_bitmap(mut self) -> Self {
        self.bitmap = GenId::UNSET;
        self
    }

    /// The administrator's new-current-uuid.
    #[must_use]
    pub const fn admin_new_current(self, random: u64, primary: bool) -> Self {
        self.rotate_bitmap(GenId::UNSET).new_current(random, primary)
    }

    /// Unconditional shift of the bitmap slot into the history (corrections 34 and 35).
    const fn shift(self) -> Self {
        Self { current: self.current, bitmap: GenId::UNSET, history: [self.bitmap, self.history[0]] }
    }

    /// Undoes the last start of a resync (corrections 51 and 71); the older history slot stays.
    const fn unshift(self) -> Self {
        Self { current: self.current, bitmap: self.history[0], history: [self.history[1], self.history[1]] }
    }
}

/// The bits of an identifier that [`GenId::SYNC_STEP`] leaves alone.
const STEPPED_BITS: u64 = GenId::SYNC_STEP - 1;

impl fmt::Display for GenIds {
    /// `current:bitmap:history0:history1`, 16 upper-case hexadecimal digits each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.current, self.bitmap, self.history[0], self.history[1])
    }
}

/// The flags of `P_UUIDS`. Unknown bits are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UuidFlags(pub u64);

impl UuidFlags {
    /// The sender was asked to discard its data.
    pub const DISCARD_MY_DATA: Self = Self(1);
    /// The sender was Primary when it went down.
    pub const CRASHED_PRIMARY: Self = Self(2);
    /// The sender's disk, as remembered for the negotiation, is Inconsistent.
    pub const INCONSISTENT: Self = Self(4);
    /// Treat both as UpToDate (new-current-uuid --clear-bitmap).
    pub const SKIP_INITIAL_SYNC: Self = Self(8);

    /// Whether all bits of `flag` are set.
    #[must_use]
    pub const fn has(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    /// Both sets' bits.
    #[must_use]
    pub const fn with(self, flag: Self, on: bool) -> Self {
        if on { Self(self.0 | flag.0) } else { Self(self.0 & !flag.0) }
    }
}

/// What the peer's `P_UUIDS` said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerUuids {
    /// The peer's identifiers.
    pub ids: GenIds,
    /// Number of bits set in the peer's bitmap when it sent them.
    pub bits_set: u64,
    /// The peer's flags.
    pub flags: UuidFlags,
}

/// What [`compare`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct GiInput<'a> {
    /// Own identifiers.
    pub own: &'a GenIds,
    /// Own crashed-primary flag.
    pub own_crashed_primary: bool,
    /// Own role.
    pub own_role: Role,
    /// The peer's identifiers and flags.
    pub peer: &'a PeerUuids,
    /// The peer's role.
    pub peer_role: Role,
    /// The tie breaker: set on exactly one node of a connection.
    pub resolve_conflicts: bool,
    /// Agreed protocol version, 86..=101.
    pub version: u32,
    /// Whether the feature write-same (0x4) was agreed.
    pub wsame: bool,
}

/// Result of a comparison, from this node's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Same data, no resync.
    NoSync,
    /// This node has the good data.
    Source {
        /// All blocks instead of those of the bitmap.
        full: bool,
    },
    /// The peer has the good data.
    Target {
        /// All blocks instead of those of the bitmap.
        full: bool,
    },
    /// Both nodes changed their data.
    SplitBrain {
        /// Automatic recovery may be tried: the bitmaps describe the divergence.
        auto: bool,
    },
    /// The data have nothing in common.
    Unrelated,
    /// Only this protocol version or a newer one can resolve it.
    NeedsVersion(u32),
    /// Only this version together with these feature bits can resolve it.
    NeedsFeature {
        /// Least protocol version.
        version: u32,
        /// Feature bits.
        feature: u32,
    },
}

impl Verdict {
    /// DRBD's number, as logged in `uuid_compare()=N`.
    #[must_use]
    pub fn code(self) -> i64 {
        match self {
            Self::NoSync => 0,
            Self::Source { full } => 1 + i64::from(full),
            Self::Target { full } => -1 - i64::from(full),
            Self::SplitBrain { auto: true } => 100,
            Self::SplitBrain { auto: false } => -100,
            Self::Unrelated => -1000,
            Self::NeedsVersion(v) => -1000 - i64::from(v),
            Self::NeedsFeature { version, feature } => -(0x1_0000 | i64::from(version) | i64::from(feature) << 8),
        }
    }

    /// What the peer should find.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        match self {
            Self::Source { full } => Self::Target { full },
            Self::Target { full } => Self::Source { full },
            other => other,
        }
    }
}

/// A repair of identifiers that a rule asks for; the caller applies it before it acts on the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Correction {
    /// Nothing to repair.
    #[default]
    None,
    /// Rule 34: the own end of a resync was missed; own bitmap identifier goes to the history.
    RotateOwn,
    /// Rule 35: the peer missed the end of a resync; the same in the stored copy of the peer's identifiers.
    PeerRotate,
    /// Rule 51: the peer's start of a resync never reached us; undone in the stored copy.
    PeerLostSync,
    /// Rule 71: the own start of a resync never reached the peer; undone here.
    OwnUndoSyncStart,
}

impl Correction {
    /// Own and peer's identifiers after the repair.
    #[must_use]
    pub const fn apply(self, own: GenIds, peer: GenIds) -> (GenIds, GenIds) {
        match self {
            Self::None => (own, peer),
            Self::RotateOwn => (own.shift(), peer),
            Self::PeerRotate => (own, peer.shift()),
            Self::PeerLostSync => (own, peer.unshift()),
            Self::OwnUndoSyncStart => (own.unshift(), peer),
        }
    }
}

/// Outcome of [`compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Number of the rule that matched.
    pub rule: u16,
    /// The decision.
    pub verdict: Verdict,
    /// What to repair.
    pub correction: Correction,
    /// DRBD's log line of the rule, without prefix; empty if it has none.
    pub log: &'static str,
}

/// Every rule number that [`compare`] can give.
pub const RULES: [u16; 17] = [10, 20, 30, 34, 35, 36, 37, 40, 41, 50, 51, 60, 70, 71, 80, 90, 100];

const SOURCE: Verdict = Verdict::Source { full: false };
const TARGET: Verdict = Verdict::Target { full: false };
/// Version from which missed resync ends and starts can be repaired.
const VERSION_CORRECTIONS: u32 = 91;
/// Version from which the bitmap identifier counts resync starts.
const VERSION_SYNC_STEP: u32 = 96;

/// Compares the identifiers of the two nodes; the first rule that matches wins.
///
/// Both nodes compute this on their own and must come to mirrored verdicts. They do, except for identifiers that no
/// history of two nodes produces: both current identifiers 0 (both become target), and sets where each node finds its
/// current identifier among the other's older ones (both become target). These follow the kernel.
#[must_use]
pub fn compare(input: &GiInput<'_>) -> Comparison {
    let (own, peer) = (input.own, &input.peer.ids);
    let fresh = |id: GenId| id.masked() == GenId::JUST_CREATED.0;
    let unset = |id: GenId| id.masked() == 0;

    if fresh(own.current) && fresh(peer.current) {
        return plain(10, Verdict::NoSync);
    }
    if (fresh(own.current) || unset(own.current)) && !fresh(peer.current) {
        return plain(20, Verdict::Target { full: true });
    }
    if fresh(peer.current) || unset(peer.current) {
        return plain(30, Verdict::Source { full: true });
    }
    if own.current.same(peer.current) { compare_same_generation(input) } else { compare_lineage(input) }
}

const fn plain(rule: u16, verdict: Verdict) -> Comparison {
    Comparison { rule, verdict, correction: Correction::None, log: "" }
}

/// Rules 34 to 41: both hold the same generation.
fn compare_same_generation(input: &GiInput<'_>) -> Comparison {
    let (own, peer) = (input.own, &input.peer.ids);
    let outcome = |rule, verdict, correction, log| {
        if input.version < VERSION_CORRECTIONS {
            plain(rule, Verdict::NeedsVersion(VERSION_CORRECTIONS))
        } else {
            Comparison { rule, verdict, correction, log }
        }
    };

    // Zero tests of the bitmap slots look at bit 0 too.
    if own.bitmap.0 != 0 && peer.bitmap.0 == 0 {
        return if own.bitmap.same(peer.history[0]) && own.history[0].same(peer.history[1]) {
            let log = "was SyncSource, missed the resync finished event, corrected myself:";
            outcome(34, SOURCE, Correction::RotateOwn, log)
        } else {
            outcome(36, SOURCE, Correction::None, "was SyncSource (peer failed to write sync_uuid)")
        };
    }
    if own.bitmap.0 == 0 && peer.bitmap.0 != 0 {
        return if own.history[0].same(peer.bitmap) && own.history[1].same(peer.history[0]) {
            let log = "was SyncTarget, peer missed the resync finished event, corrected peer:";
            outcome(35, TARGET, Correction::PeerRotate, log)
        } else {
            outcome(37, TARGET, Correction::None, "was SyncTarget (failed to write sync_uuid)")
        };
    }
    compare_crashed(input)
}

/// Rules 40 and 41: same generation, no resync under way; who may have writes in flight that the other lacks.
fn compare_crashed(input: &GiInput<'_>) -> Comparison {
    let own_crashed = input.own_crashed_primary;
    let peer_crashed = input.peer.flags.has(UuidFlags::CRASHED_PRIMARY);
    if !own_crashed && !peer_crashed {
        return plain(40, Verdict::NoSync);
    }

    let own_primary = input.own_role == Role::Primary;
    let peer_primary = input.peer_role == Role::Primary;
    if own_primary || peer_primary {
        if !input.wsame {
            return Comparison {
                rule: 41,
                verdict: Verdict::NeedsFeature { version: 101, feature: 4 },
                correction: Correction::None,
                log: "Equivalent unrotated UUIDs, but current primary present.",
            };
        }
        if own_primary && peer_primary {
            return Comparison {
                rule: 41,
                verdict: Verdict::SplitBrain { auto: false },
                correction: Correction::None,
                log: "Equivalent unrotated UUIDs, but both are primary. Can not resolve this.",
            };
        }
        return plain(41, if own_primary { SOURCE } else { TARGET });
    }

    let own_wins = match (own_crashed, peer_crashed) {
        (true, true) => !input.resolve_conflicts,
        (own_only, _) => own_only,
    };
    plain(40, if own_wins { SOURCE } else { TARGET })
}

/// Rules 50 to 100: different generations; which one descends from which.
fn compare_lineage(input: &GiInput<'_>) -> Comparison {
    let (own, peer) = (input.own, &input.peer.ids);
    let stepped = |before: GenId, after: GenId| before.masked().wrapping_add(GenId::SYNC_STEP) == after.masked();
    let corrected = |rule, verdict, correction, log| {
        if input.version < VERSION_CORRECTIONS {
            plain(rule, Verdict::NeedsVersion(VERSION_CORRECTIONS))
        } else {
            Comparison { rule, verdict, correction, log }
        }
    };

    if own.current.same(peer.bitmap) {
        return plain(50, TARGET);
    }
    if own.current.same(peer.history[0]) {
        let sync_lost = if input.version < VERSION_SYNC_STEP {
            own.history[0].same(peer.history[1])
        } else {
            stepped(peer.history[0], peer.bitmap)
        };
        if sync_lost {
            return corrected(51, TARGET, Correction::PeerLostSync, "Lost last syncUUID packet, corrected:");
        }
    }
    if peer.history.iter().any(|h| own.current.same(*h)) {
        return plain(60, Verdict::Target { full: true });
    }
    if own.bitmap.same(peer.current) {
        return plain(70, SOURCE);
    }
    if own.history[0].same(peer.current) {
        let sync_lost = if input.version < VERSION_SYNC_STEP {
            own.history[1].same(peer.history[0])
        } else {
            stepped(own.history[0], own.bitmap)
        };
        if sync_lost {
            let log = "Last syncUUID did not get through, corrected:";
            return corrected(71, SOURCE, Correction::OwnUndoSyncStart, log);
        }
    }
    if own.history.iter().any(|h| h.same(peer.current)) {
        return plain(80, Verdict::Source { full: true });
    }
    if own.bitmap.same(peer.bitmap) && own.bitmap.masked() != 0 {
        return plain(90, Verdict::SplitBrain { auto: true });
    }
    // Two unused slots count as equal.
    if own.history.iter().any(|h| peer.history.iter().any(|p| h.same(*p))) {
        return plain(100, Verdict::SplitBrain { auto: false });
    }
    plain(100, Verdict::Unrelated)
}

#[cfg(test)]
mod tests;
