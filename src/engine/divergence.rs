//! A split brain as it was found: everything that both nodes knew of each other at that moment, kept for people.
//!
//! Takes in what the handshake looked at and what came of it. Gives out plain data ([`Divergence`]), and what every policy
//! would have decided over it ([`Divergence::policies`]). Invariants: pure; nothing here decides anything.

use std::ops::Range;

use super::Engine;
use super::action::{Action, Notice};
use super::gi::{GenIds, Verdict};
use super::handshake::{Decision, HandshakeInput, Outcome};
use super::split_brain::{AfterSb, AfterSbPolicies, SbDecision, SbInput, primaries, recover};
use crate::units::VolumeNr;
use crate::wire::state::{DiskState, Role};

/// Most runs of changed blocks that are remembered with a split brain; arbitrary, more than anybody reads.
const RUNS_MAX: usize = 256;

/// One node's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Identifiers.
    pub ids: GenIds,
    /// Blocks of 4 KiB that it said to have changed.
    pub changes: u64,
    /// Role.
    pub role: Role,
    /// Disk.
    pub disk: DiskState,
}

/// A split brain of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Which volume.
    pub volume: VolumeNr,
    /// This node.
    pub own: Side,
    /// The peer.
    pub peer: Side,
    /// The rule that found it.
    pub rule: u16,
    /// The bitmaps describe what differs (rule 90).
    pub described: bool,
    /// What came of it: whose data win.
    pub decision: SbDecision,
    /// Decided by a policy or by the disks' states, not by `--discard-my-data`.
    pub automatic: bool,
    /// The policies of this node.
    pub set: AfterSbPolicies,
    /// `always-asbp`.
    pub always_asbp: bool,
    /// The tie breaker.
    pub resolve_conflicts: bool,
    /// Runs of blocks that were changed here, in order, as far as they are remembered.
    pub runs: Vec<Range<u64>>,
    /// All there were.
    pub runs_total: u64,
}

/// What one policy makes of a split brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// `after-sb-0pri`, `after-sb-1pri` or `after-sb-2pri`.
    pub option: &'static str,
    /// The policy.
    pub policy: AfterSb,
    /// It is the one that is set.
    pub set: bool,
    /// Whose data win.
    pub decision: SbDecision,
}

impl Divergence {
    /// What each policy that is possible for the number of Primaries would have decided.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyVerdict> {
        use AfterSb as P;
        let (option, possible, set): (_, &[P], _) = match primaries(self.own.role, self.peer.role) {
            0 => (
                "after-sb-0pri",
                &[
                    P::Disconnect,
                    P::DiscardYoungerPrimary,
                    P::DiscardOlderPrimary,
                    P::DiscardZeroChanges,
                    P::DiscardLeastChanges,
                    P::DiscardLocal,
                    P::DiscardRemote,
                ],
                self.set.none,
            ),
            1 => (
                "after-sb-1pri",
                &[P::Disconnect, P::Consensus, P::ViolentlyAs0p, P::DiscardSecondary, P::CallPriLostAfterSb],
                self.set.one,
            ),
            _ => ("after-sb-2pri", &[P::Disconnect, P::ViolentlyAs0p, P::CallPriLostAfterSb], self.set.two),
        };
        let input = SbInput {
            own_bitmap: self.own.ids.bitmap,
            peer_bitmap: self.peer.ids.bitmap,
            own_changes: self.own.changes,
            peer_changes: self.peer.changes,
            own_role: self.own.role,
            peer_role: self.peer.role,
            resolve_conflicts: self.resolve_conflicts,
            // A demotion never succeeds while the nodes meet.
            can_demote: false,
        };
        let verdict = |policy: &P| {
            let mut policies = self.set;
            match option {
                "after-sb-0pri" => policies.none = *policy,
                "after-sb-1pri" => policies.one = *policy,
                _ => policies.two = *policy,
            }
            let counts = self.described || self.always_asbp;
            let decision = if counts { recover(&policies, &input).decision } else { SbDecision::Undecided };
            PolicyVerdict { option, policy: *policy, set: *policy == set, decision }
        };
        possible.iter().map(verdict).collect()
    }
}

impl Engine {
    /// Tells people of a split brain with all that is known of it.
    pub(crate) fn note_divergence(&mut self, v: VolumeNr, input: &HandshakeInput<'_>, outcome: &Outcome) {
        let Verdict::SplitBrain { auto } = outcome.comparison.verdict else { return };
        let decision = match outcome.decision {
            Decision::Source { .. } => SbDecision::Source,
            Decision::Target { .. } => SbDecision::Target,
            Decision::Connected | Decision::Refuse(_) => SbDecision::Undecided,
        };
        let peer_discards = input.peer.flags.has(super::gi::UuidFlags::DISCARD_MY_DATA);
        let manual = match decision {
            SbDecision::Source => peer_discards && !input.discard_my_data,
            SbDecision::Target => input.discard_my_data && !peer_discards,
            SbDecision::Undecided => false,
        };
        let (runs, runs_total) = self.out_of_sync_runs(v, RUNS_MAX);
        let divergence = Divergence {
            volume: v,
            own: Side {
                ids: *input.own,
                changes: input.own_changes,
                role: input.own_role,
                disk: if input.disk == DiskState::Negotiating { input.negotiation_disk } else { input.disk },
            },
            peer: Side {
                ids: input.peer.ids,
                changes: input.peer.bits_set,
                role: input.peer_role,
                disk: input.peer_disk,
            },
            rule: outcome.comparison.rule,
            described: auto,
            decision,
            automatic: decision != SbDecision::Undecided && !manual,
            set: input.policies,
            always_asbp: input.always_asbp,
            resolve_conflicts: input.resolve_conflicts,
            runs,
            runs_total,
        };
        self.out.push(Action::Notice(Notice::SplitBrain(Box::new(divergence))));
    }

    /// Runs of blocks of a volume that are out of sync, at most `most`, and how many there are.
    #[must_use]
    pub fn out_of_sync_runs(&self, v: VolumeNr, most: usize) -> (Vec<Range<u64>>, u64) {
        let Some(disk) = self.volumes.get(&v).and_then(|vol| vol.disk.as_ref()) else { return (Vec::new(), 0) };
        let mut total = 0;
        let mut runs = Vec::new();
        for run in disk.bitmap.runs(0..disk.bitmap.bits()) {
            total += 1;
            if runs.len() < most {
                runs.push(run);
            }
        }
        (runs, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divergence(roles: (Role, Role), changes: (u64, u64)) -> Divergence {
        let side = |role, changes| Side {
            ids: GenIds::from_slots([4 * changes + 16, 2, 0, 0]),
            changes,
            role,
            disk: DiskState::UpToDate,
        };
        Divergence {
            volume: VolumeNr(0),
            own: side(roles.0, changes.0),
            peer: side(roles.1, changes.1),
            rule: 90,
            described: true,
            decision: SbDecision::Undecided,
            automatic: false,
            set: AfterSbPolicies { none: AfterSb::DiscardLeastChanges, ..AfterSbPolicies::default() },
            always_asbp: false,
            resolve_conflicts: false,
            runs: Vec::new(),
            runs_total: 0,
        }
    }

    #[test]
    fn every_policy_of_the_number_of_primaries_is_asked() {
        let of = |d: &Divergence, policy| d.policies().into_iter().find(|v| v.policy == policy).expect("possible");
        let nobody = divergence((Role::Secondary, Role::Secondary), (10, 20));
        assert_eq!(of(&nobody, AfterSb::Disconnect).decision, SbDecision::Undecided);
        assert_eq!(of(&nobody, AfterSb::DiscardLocal).decision, SbDecision::Target);
        let least = of(&nobody, AfterSb::DiscardLeastChanges);
        assert_eq!((least.decision, least.set, least.option), (SbDecision::Target, true, "after-sb-0pri"));
        let one = divergence((Role::Primary, Role::Secondary), (10, 20));
        assert_eq!(of(&one, AfterSb::DiscardSecondary).decision, SbDecision::Source);
        assert_eq!(of(&one, AfterSb::Consensus).decision, SbDecision::Undecided);
        assert_eq!(of(&one, AfterSb::ViolentlyAs0p).decision, SbDecision::Target);
        let two = divergence((Role::Primary, Role::Primary), (30, 20));
        assert_eq!(of(&two, AfterSb::ViolentlyAs0p).decision, SbDecision::Source);
        let ambiguous = Divergence { described: false, ..nobody };
        assert!(ambiguous.policies().iter().all(|v| v.decision == SbDecision::Undecided));
    }
}
