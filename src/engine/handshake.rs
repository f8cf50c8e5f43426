//! From the comparison of identifiers to the decision whether and in which direction to resync.
//!
//! Takes in: both nodes' identifiers, roles, disk states and flags, and the local policies. Gives out: the decision with
//! everything that led to it: comparison, helpers to run, log lines, in order. Invariants: pure; both nodes compute it on
//! their own from mirrored inputs. Source: behaviour.md 3.5, wire.md 4.10.
//!
//! Stricter than 8.4 in one place: a split brain whose bitmaps do not describe the divergence (rules 41 and 100) and
//! that is resolved by hand resyncs all blocks, as one that a policy resolves; the kernel resyncs what the bitmaps name. The peer needs no knowledge of
//! it, because the bitmaps are or-ed.
//!
//! And in another: an Inconsistent disk that holds the newer generation (its read errors were passed on while the peer
//! had no disk), or one that diverged, is not overwritten by the older data because those are consistent. Nobody would be
//! told that acknowledged writes are gone; the connection is refused until somebody decides ([`Run::disks_contradict`]).

use super::action::Fact;
use super::gi::{Comparison, GenIds, GiInput, PeerUuids, UuidFlags, Verdict, compare};
use super::handler::Handler;
use super::split_brain::{AfterSb, AfterSbPolicies, SbDecision, SbInput, primaries, recover};
use crate::wire::state::{DiskState, Role};

/// rr-conflict: what a Primary does that must become the target of a resync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RrConflict {
    /// Drop the connection.
    #[default]
    Disconnect,
    /// Run pri-lost, then the same.
    CallPriLost,
    /// Become target while Primary.
    Violently,
}

/// What [`decide`] looks at.
#[derive(Clone, Debug)]
pub struct HandshakeInput<'a> {
    /// Own identifiers.
    pub own: &'a GenIds,
    /// Bits set in the own bitmap at this moment.
    pub own_bits_set: u64,
    /// Bits set in the own bitmap as announced in the last `P_UUIDS`: the own count of changes.
    pub own_changes: u64,
    /// Bits that the own bitmap has, set or not. As many announced as set: the disk was invalidated.
    pub all_bits: u64,
    /// Own crashed-primary flag.
    pub own_crashed_primary: bool,
    /// Own role.
    pub own_role: Role,
    /// Own disk, as it is.
    pub disk: DiskState,
    /// Own disk as found at attach; counts while `disk` is Negotiating.
    pub negotiation_disk: DiskState,
    /// The peer's identifiers, change count and flags.
    pub peer: &'a PeerUuids,
    /// The peer's role.
    pub peer_role: Role,
    /// The real state of the peer's disk ([`real_peer_disk`]).
    pub peer_disk: DiskState,
    /// The tie breaker: set on exactly one node of a connection.
    pub resolve_conflicts: bool,
    /// Agreed protocol version.
    pub version: u32,
    /// Whether the feature write-same (0x4) was agreed.
    pub wsame: bool,
    /// The after-sb policies.
    pub policies: AfterSbPolicies,
    /// always-asbp: the policies also count where the bitmaps do not describe the divergence.
    pub always_asbp: bool,
    /// A change of the own role to Secondary would succeed at this moment.
    pub can_demote: bool,
    /// rr-conflict.
    pub rr_conflict: RrConflict,
    /// The own data are to be discarded (`connect --discard-my-data`).
    pub discard_my_data: bool,
    /// Only say what would happen (`connect --tentative`).
    pub dry_run: bool,
    /// The peer asked for the same.
    pub peer_dry_run: bool,
}

/// Why there is no way. What it means depends on the connection: a new one is dropped, an attach fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
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
    /// Unresolved split brain.
    SplitBrain,
    /// The newer or diverged data are on the one disk that is Inconsistent.
    NewerInconsistent,
    /// This node should be the source, but its data are not consistent.
    SourceInconsistent,
    /// This node should be the target, but is Primary.
    TargetIsPrimary,
    /// The peer should be the target of this node, which attaches, but is Primary.
    PeerIsPrimary,
    /// Dry run.
    DryRun,
}

/// The direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No resync.
    Connected,
    /// WFBitMapS.
    Source {
        /// Set all bits and write the bitmap first; a failure of that is "no way".
        full: bool,
    },
    /// WFBitMapT.
    Target {
        /// Set all bits and write the bitmap first; a failure of that is "no way".
        full: bool,
    },
    /// No way.
    Refuse(RefuseReason),
}

/// Outcome of [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The comparison; its correction is to be applied and stored whatever the decision is.
    pub comparison: Comparison,
    /// The decision.
    pub decision: Decision,
    /// This node has to become Secondary before the decision is carried out.
    pub demote: bool,
    /// Helpers to run, in order, before the decision is carried out; their exit codes do not matter.
    pub handlers: Vec<Handler>,
    /// DRBD's log lines, without prefix, in order.
    pub log: Vec<String>,
}

impl Outcome {
    /// What it comes to, for the last line of the log.
    #[must_use]
    pub fn fact(&self) -> Fact {
        let refused = match self.decision {
            Decision::Refuse(reason) => Some(reason),
            Decision::Connected | Decision::Source { .. } | Decision::Target { .. } => None,
        };
        let split_brain = self.handlers.contains(&Handler::InitialSplitBrain);
        Fact::Handshake { rule: self.comparison.rule, split_brain, refused }
    }
}

/// The peer's disk as the handshake sees it: a Negotiating one counts as what its identifiers' flags say.
#[must_use]
pub const fn real_peer_disk(announced: DiskState, peer_flags: UuidFlags) -> DiskState {
    match announced {
        DiskState::Negotiating if peer_flags.has(UuidFlags::INCONSISTENT) => DiskState::Inconsistent,
        DiskState::Negotiating => DiskState::Consistent,
        other => other,
    }
}

/// Decides. To be called only when the peer sent identifiers and both disks are Negotiating or better.
#[must_use]
pub fn decide(input: &HandshakeInput<'_>) -> Outcome {
    let comparison = compare(&GiInput {
        own: input.own,
        own_crashed_primary: input.own_crashed_primary,
        own_role: input.own_role,
        peer: input.peer,
        peer_role: input.peer_role,
        resolve_conflicts: input.resolve_conflicts,
        version: input.version,
        wsame: input.wsame,
    });
    let mut run = Run { input, comparison, demote: false, handlers: Vec::new(), log: Vec::new() };
    run.log_comparison();
    let decision = match run.direction() {
        Ok(decision) => decision,
        Err(reason) => Decision::Refuse(reason),
    };
    Outcome { comparison, decision, demote: run.demote, handlers: run.handlers, log: run.log }
}

struct Run<'a> {
    input: &'a HandshakeInput<'a>,
    comparison: Comparison,
    demote: bool,
    handlers: Vec<Handler>,
    log: Vec<String>,
}

impl Run<'_> {
    fn say(&mut self, line: &str) {
        self.log.push(line.to_owned());
    }

    fn log_comparison(&mut self) {
        let (own, peer) = (self.input.own, self.input.peer);
        self.say("drbd_sync_handshake:");
        self.say_dump("self", own, self.input.own_changes, 0);
        self.say_dump("peer", &peer.ids, peer.bits_set, peer.flags.0);
        if !self.comparison.log.is_empty() {
            self.say(self.comparison.log);
        }
        let (own_after, peer_after) = self.comparison.correction.apply(*own, peer.ids);
        if own_after != *own {
            self.say_dump("self", &own_after, self.input.own_bits_set, 0);
        }
        if peer_after != peer.ids {
            self.say_dump("peer", &peer_after, peer.bits_set, peer.flags.0);
        }
        let line = format!("uuid_compare()={} by rule {}", self.comparison.verdict.code(), self.comparison.rule);
        self.log.push(line);
    }

    fn say_dump(&mut self, who: &str, ids: &GenIds, bits: u64, flags: u64) {
        self.log.push(format!("{who} {ids} bits:{bits} flags:{flags:X}"));
    }

    fn direction(&mut self) -> Result<Decision, RefuseReason> {
        let verdict = self.comparable()?;
        let verdict = self.override_by_disks(verdict)?;
        let verdict = match verdict {
            Verdict::SplitBrain { auto } => self.resolve_split_brain(auto)?,
            other => other,
        };
        let decision = match verdict {
            Verdict::Source { full } => Decision::Source { full },
            Verdict::Target { full } => Decision::Target { full },
            _ => Decision::Connected,
        };
        self.check_roles(decision)?;
        self.check_dry_run(decision)?;
        match decision {
            Decision::Source { full: true } | Decision::Target { full: true } => {
                self.say("Writing the whole bitmap, full sync required after drbd_sync_handshake.");
            }
            Decision::Connected if self.input.own_bits_set > 0 => {
                let line = format!("No resync, but {} bits in bitmap!", self.input.own_bits_set);
                self.log.push(line);
            }
            _ => {}
        }
        Ok(decision)
    }

    fn comparable(&mut self) -> Result<Verdict, RefuseReason> {
        match self.comparison.verdict {
            Verdict::Unrelated => {
                self.say("Unrelated data, aborting!");
                Err(RefuseReason::Unrelated)
            }
            Verdict::NeedsVersion(version) => {
                let line = format!("To resolve this both sides have to support at least protocol {version}");
                self.log.push(line);
                Err(RefuseReason::NeedsVersion(version))
            }
            Verdict::NeedsFeature { version, feature } => {
                let line = format!(
                    "To resolve this both sides have to support at least protocol {version} and feature flags {feature:#x}"
                );
                self.log.push(line);
                Err(RefuseReason::NeedsFeature { version, feature })
            }
            verdict => Ok(verdict),
        }
    }

    fn own_disk(&self) -> DiskState {
        if self.input.disk == DiskState::Negotiating { self.input.negotiation_disk } else { self.input.disk }
    }

    /// Whether the data that would be overwritten because their disk is Inconsistent hold what the other side's do not,
    /// and nobody gave them up: neither by invalidating them nor by discarding them at connect.
    fn disks_contradict(&self, verdict: Verdict, own_better: bool) -> bool {
        let input = self.input;
        let loser_leads = match verdict {
            Verdict::Source { .. } => !own_better,
            Verdict::Target { .. } => own_better,
            Verdict::SplitBrain { .. } => true,
            _ => false,
        };
        let (changes, discards) = if own_better {
            (input.peer.bits_set, input.peer.flags.has(UuidFlags::DISCARD_MY_DATA))
        } else {
            (input.own_changes, input.discard_my_data)
        };
        loser_leads && !discards && changes < input.all_bits
    }

    /// Exactly one Inconsistent side never wins, whatever the identifiers say; see [`Run::disks_contradict`] for when it
    /// does not lose either.
    fn override_by_disks(&mut self, verdict: Verdict) -> Result<Verdict, RefuseReason> {
        let (own, peer) = (self.own_disk(), self.input.peer_disk);
        let own_better = peer == DiskState::Inconsistent && own > DiskState::Inconsistent;
        let peer_better = own == DiskState::Inconsistent && peer > DiskState::Inconsistent;
        let full = matches!(
            verdict,
            Verdict::SplitBrain { auto: false } | Verdict::Source { full: true } | Verdict::Target { full: true }
        );
        if (own_better || peer_better) && self.disks_contradict(verdict, own_better) {
            let (whose, other) = if own_better { ("the peer's", "this node's") } else { ("this node's", "the peer's") };
            self.log.push(format!(
                "Only {whose} data hold the latest writes, but they are inconsistent; {other} older data do not replace them \
                 unasked. To go on with the older ones: connect --discard-my-data (or invalidate) where the data are \
                 inconsistent; to go on with the newer ones: primary --force there"
            ));
            self.handlers.push(Handler::SplitBrain);
            return Err(RefuseReason::NewerInconsistent);
        }
        if own_better {
            self.say("Becoming sync source due to disk states.");
            Ok(Verdict::Source { full })
        } else if peer_better {
            self.say("Becoming sync target due to disk states.");
            Ok(Verdict::Target { full })
        } else {
            Ok(verdict)
        }
    }

    fn resolve_split_brain(&mut self, auto: bool) -> Result<Verdict, RefuseReason> {
        self.handlers.push(Handler::InitialSplitBrain);
        let mut direction = SbDecision::Undecided;
        if auto || self.input.always_asbp {
            direction = self.recover_automatically();
        }
        let peer_discards = self.input.peer.flags.has(UuidFlags::DISCARD_MY_DATA);
        let by_hand = match (self.input.discard_my_data, peer_discards) {
            (true, false) => SbDecision::Target,
            (false, true) => SbDecision::Source,
            _ => SbDecision::Undecided,
        };
        let stubborn = by_hand != SbDecision::Undecided && self.peer_stays_primary(direction);
        if direction == SbDecision::Undecided || stubborn {
            direction = by_hand;
            self.say_solved(direction, "Split-Brain detected, manually solved.");
        }
        let full = !auto;
        let verdict = match direction {
            SbDecision::Source => Verdict::Source { full },
            SbDecision::Target => Verdict::Target { full },
            SbDecision::Undecided => {
                self.say("Split-Brain detected but unresolved, dropping connection!");
                self.handlers.push(Handler::SplitBrain);
                return Err(RefuseReason::SplitBrain);
            }
        };
        if full {
            self.say("Doing a full sync, since UUIDs where ambiguous.");
        }
        Ok(verdict)
    }

    /// A peer that lost the vote under call-pri-lost-after-sb cannot be demoted while the nodes meet: for it nothing is decided,
    /// and it goes by what was said by hand. So does this node then, or both would be the source (8.4's are).
    fn peer_stays_primary(&self, direction: SbDecision) -> bool {
        let policies = &self.input.policies;
        let policy = if self.input.own_role == Role::Primary { policies.two } else { policies.one };
        direction == SbDecision::Source
            && self.input.peer_role == Role::Primary
            && policy == AfterSb::CallPriLostAfterSb
    }

    fn recover_automatically(&mut self) -> SbDecision {
        let input = self.input;
        let outcome = recover(
            &input.policies,
            &SbInput {
                own_bitmap: input.own.bitmap,
                peer_bitmap: input.peer.ids.bitmap,
                own_changes: input.own_changes,
                peer_changes: input.peer.bits_set,
                own_role: input.own_role,
                peer_role: input.peer_role,
                resolve_conflicts: input.resolve_conflicts,
                can_demote: input.can_demote,
            },
        );
        self.demote = outcome.demote;
        self.handlers.extend(outcome.handler);
        self.log.extend(outcome.log.iter().map(|line| (*line).to_owned()));
        let count = primaries(input.own_role, input.peer_role);
        let line = format!("Split-Brain detected, {count} primaries, automatically solved.");
        self.say_solved(outcome.decision, &line);
        outcome.decision
    }

    fn say_solved(&mut self, direction: SbDecision, how: &str) {
        let from = match direction {
            SbDecision::Source => "this",
            SbDecision::Target => "peer",
            SbDecision::Undecided => return,
        };
        self.log.push(format!("{how} Sync from {from} node"));
    }

    fn check_roles(&mut self, decision: Decision) -> Result<(), RefuseReason> {
        self.check_peer_of_attach(decision)?;
        match decision {
            Decision::Source { .. } if self.own_disk() <= DiskState::Inconsistent => {
                self.say("I shall become SyncSource, but I am inconsistent!");
                Err(RefuseReason::SourceInconsistent)
            }
            Decision::Target { .. }
                if self.input.own_role == Role::Primary && !self.demote && self.input.disk >= DiskState::Consistent =>
            {
                if self.input.rr_conflict == RrConflict::Violently {
                    self.say("Becoming SyncTarget, violating the stable-dataassumption");
                    return Ok(());
                }
                if self.input.rr_conflict == RrConflict::CallPriLost {
                    self.handlers.push(Handler::PriLost);
                }
                self.say("I shall become SyncTarget, but I am primary!");
                Err(RefuseReason::TargetIsPrimary)
            }
            _ => Ok(()),
        }
    }

    /// What the peer refuses while this node attaches, this node refuses as well: nothing would tell it, and it must not
    /// wait for a resync that never comes.
    fn check_peer_of_attach(&mut self, decision: Decision) -> Result<(), RefuseReason> {
        let input = self.input;
        if input.disk != DiskState::Negotiating {
            return Ok(());
        }
        match decision {
            Decision::Target { .. } if input.peer_disk <= DiskState::Inconsistent => {
                self.say("The peer shall become SyncSource, but it is inconsistent!");
                Err(RefuseReason::SourceInconsistent)
            }
            Decision::Source { .. }
                if input.peer_role == Role::Primary
                    && input.peer_disk >= DiskState::Consistent
                    && input.rr_conflict != RrConflict::Violently =>
            {
                self.say("The peer shall become SyncTarget, but it is primary!");
                Err(RefuseReason::PeerIsPrimary)
            }
            _ => Ok(()),
        }
    }

    fn check_dry_run(&mut self, decision: Decision) -> Result<(), RefuseReason> {
        if !self.input.dry_run && !self.input.peer_dry_run {
            return Ok(());
        }
        let (state, full) = match decision {
            Decision::Source { full } => ("SyncSource", full),
            Decision::Target { full } => ("SyncTarget", full),
            Decision::Connected | Decision::Refuse(_) => {
                self.say("dry-run connect: No resync, would become Connected immediately.");
                return Err(RefuseReason::DryRun);
            }
        };
        let kind = if full { "full" } else { "bit-map based" };
        self.log.push(format!("dry-run connect: Would become {state}, doing a {kind} resync."));
        Err(RefuseReason::DryRun)
    }
}

#[cfg(test)]
mod tests;
