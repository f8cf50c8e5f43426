//! Automatic recovery from split brain: the after-sb policies as a decision table.
//!
//! Takes in: the policies, both bitmap identifiers, both change counts, the roles. Gives out: whose data win, or none,
//! with log lines and the helper to run. Invariants: pure; with mirrored inputs and equal policies both nodes come to
//! mirrored decisions (`discard-local` and `discard-remote` are mirrored by configuration; demotion is one-sided).
//! Source: behaviour.md 3.2, 3.6; wire.md 4.12.

use super::handler::Handler;
use crate::units::GenId;
pub use crate::wire::params::AfterSb;
use crate::wire::state::Role;

/// The three policies, by number of Primaries at the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AfterSbPolicies {
    /// after-sb-0pri.
    pub none: AfterSb,
    /// after-sb-1pri.
    pub one: AfterSb,
    /// after-sb-2pri.
    pub two: AfterSb,
}

/// What the policies look at.
#[derive(Clone, Copy, Debug)]
pub struct SbInput {
    /// Own bitmap identifier; bit 0: was Primary before the split.
    pub own_bitmap: GenId,
    /// The peer's bitmap identifier.
    pub peer_bitmap: GenId,
    /// Blocks of 4 KiB that this node announced as changed.
    pub own_changes: u64,
    /// Blocks of 4 KiB that the peer announced as changed.
    pub peer_changes: u64,
    /// Own role.
    pub own_role: Role,
    /// The peer's role.
    pub peer_role: Role,
    /// The tie breaker: set on exactly one node of a connection.
    pub resolve_conflicts: bool,
    /// A change of the own role to Secondary would succeed at this moment.
    pub can_demote: bool,
}

/// Whose data win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SbDecision {
    /// This node's.
    Source,
    /// The peer's.
    Target,
    /// No decision.
    Undecided,
}

impl SbDecision {
    /// What the peer should decide.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
            Self::Undecided => Self::Undecided,
        }
    }
}

/// Outcome of [`recover`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SbOutcome {
    /// The decision.
    pub decision: SbDecision,
    /// This node has to become Secondary first.
    pub demote: bool,
    /// The helper to run.
    pub handler: Option<Handler>,
    /// DRBD's log lines.
    pub log: Vec<&'static str>,
}

const CONFIGURATION_ERROR: &str = "Configuration error.";

/// Number of Primaries among both nodes.
#[must_use]
pub fn primaries(own: Role, peer: Role) -> u8 {
    u8::from(own == Role::Primary) + u8::from(peer == Role::Primary)
}

/// Applies the policy for the number of Primaries.
#[must_use]
pub fn recover(policies: &AfterSbPolicies, input: &SbInput) -> SbOutcome {
    let mut log = Vec::new();
    match primaries(input.own_role, input.peer_role) {
        0 => {
            let decision = recover_0pri(policies.none, input, &mut log);
            SbOutcome { decision, demote: false, handler: None, log }
        }
        1 => recover_1pri(policies, input, log),
        _ => recover_2pri(policies, input, log),
    }
}

fn recover_0pri(policy: AfterSb, input: &SbInput, log: &mut Vec<&'static str>) -> SbDecision {
    let own_was_primary = input.own_bitmap.primary_bit();
    let peer_was_primary = input.peer_bitmap.primary_bit();
    match policy {
        AfterSb::Disconnect => SbDecision::Undecided,
        AfterSb::DiscardYoungerPrimary | AfterSb::DiscardOlderPrimary => {
            if own_was_primary != peer_was_primary {
                let own_is_older = own_was_primary;
                let own_wins = own_is_older == (policy == AfterSb::DiscardYoungerPrimary);
                return if own_wins { SbDecision::Source } else { SbDecision::Target };
            }
            log.push("Discard younger/older primary did not find a decision");
            log.push("Using discard-least-changes instead");
            match zero_changes(input) {
                SbDecision::Undecided => least_changes(input),
                decided => decided,
            }
        }
        AfterSb::DiscardZeroChanges => zero_changes(input),
        AfterSb::DiscardLeastChanges => least_changes(input),
        AfterSb::DiscardLocal => SbDecision::Target,
        AfterSb::DiscardRemote => SbDecision::Source,
        AfterSb::Consensus | AfterSb::DiscardSecondary | AfterSb::CallPriLostAfterSb | AfterSb::ViolentlyAs0p => {
            log.push(CONFIGURATION_ERROR);
            SbDecision::Undecided
        }
    }
}

const fn tie_breaker(input: &SbInput) -> SbDecision {
    if input.resolve_conflicts { SbDecision::Target } else { SbDecision::Source }
}

const fn zero_changes(input: &SbInput) -> SbDecision {
    match (input.own_changes, input.peer_changes) {
        (0, 0) => tie_breaker(input),
        (_, 0) => SbDecision::Source,
        (0, _) => SbDecision::Target,
        _ => SbDecision::Undecided,
    }
}

const fn least_changes(input: &SbInput) -> SbDecision {
    if input.own_changes < input.peer_changes {
        SbDecision::Target
    } else if input.own_changes > input.peer_changes {
        SbDecision::Source
    } else {
        tie_breaker(input)
    }
}

fn recover_1pri(policies: &AfterSbPolicies, input: &SbInput, mut log: Vec<&'static str>) -> SbOutcome {
    let own_primary = input.own_role == Role::Primary;
    let decision = match policies.one {
        AfterSb::Disconnect => SbDecision::Undecided,
        AfterSb::Consensus => match recover_0pri(policies.none, input, &mut log) {
            SbDecision::Target if !own_primary => SbDecision::Target,
            SbDecision::Source if own_primary => SbDecision::Source,
            _ => SbDecision::Undecided,
        },
        AfterSb::ViolentlyAs0p => recover_0pri(policies.none, input, &mut log),
        AfterSb::DiscardSecondary if own_primary => SbDecision::Source,
        AfterSb::DiscardSecondary => SbDecision::Target,
        AfterSb::CallPriLostAfterSb => {
            let decision = recover_0pri(policies.none, input, &mut log);
            if own_primary {
                return give_up_primary(decision, input, log);
            }
            decision
        }
        _ => {
            log.push(CONFIGURATION_ERROR);
            SbDecision::Undecided
        }
    };
    SbOutcome { decision, demote: false, handler: None, log }
}

fn recover_2pri(policies: &AfterSbPolicies, input: &SbInput, mut log: Vec<&'static str>) -> SbOutcome {
    let decision = match policies.two {
        AfterSb::Disconnect => SbDecision::Undecided,
        AfterSb::ViolentlyAs0p => recover_0pri(policies.none, input, &mut log),
        AfterSb::CallPriLostAfterSb => {
            let decision = recover_0pri(policies.none, input, &mut log);
            return give_up_primary(decision, input, log);
        }
        _ => {
            log.push(CONFIGURATION_ERROR);
            SbDecision::Undecided
        }
    };
    SbOutcome { decision, demote: false, handler: None, log }
}

/// A Primary whose data lose must become Secondary first; one that cannot calls for help and keeps its data.
fn give_up_primary(decision: SbDecision, input: &SbInput, mut log: Vec<&'static str>) -> SbOutcome {
    if decision != SbDecision::Target {
        return SbOutcome { decision, demote: false, handler: None, log };
    }
    if input.can_demote {
        log.push("Successfully gave up primary role.");
        SbOutcome { decision, demote: true, handler: None, log }
    } else {
        SbOutcome { decision: SbDecision::Undecided, demote: false, handler: Some(Handler::PriLostAfterSb), log }
    }
}

#[cfg(test)]
mod tests;
