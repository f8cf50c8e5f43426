//! Which of the engine's possibilities runs have reached: state transitions, handshake rules, outcomes of requests, packets.
//!
//! Owns counters by name; merging runs adds them up. What exists but was never reached is listed by [`Coverage::unreached`]
//! from tables of the rooms that own the possibilities.

use std::collections::BTreeMap;

use crate::engine::gi::RULES;
use crate::engine::state::VolumeState;
use crate::wire::kind::KINDS;
use crate::wire::state::{ConnState, DiskState, Role};

/// Groups of possibilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A field of a volume's state went from one value to another.
    Transition,
    /// A rule of the comparison of generation identifiers decided.
    Rule,
    /// How a client's request ended.
    Request,
    /// A packet was sent.
    Packet,
    /// What an operator's command came to.
    Command,
    /// What the simulator did.
    Fault,
}

/// Counters.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<(Group, String), u64>,
    packets: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// One more.
    pub fn count(&mut self, group: Group, name: &str) {
        if let Some(count) = self.counts.get_mut(&(group, name.to_owned())) {
            *count += 1;
        } else {
            self.counts.insert((group, name.to_owned()), 1);
        }
    }

    /// One more packet.
    pub fn packet(&mut self, name: &'static str) {
        *self.packets.entry(name).or_default() += 1;
    }

    /// A change of state.
    pub fn transition(&mut self, old: &VolumeState, new: &VolumeState) {
        if old.conn != new.conn {
            self.count(Group::Transition, &format!("conn {} -> {}", old.conn, new.conn));
        }
        if old.disk != new.disk {
            self.count(Group::Transition, &format!("disk {} -> {}", old.disk, new.disk));
        }
        if old.pdsk != new.pdsk {
            self.count(Group::Transition, &format!("pdsk {} -> {}", old.pdsk, new.pdsk));
        }
        if old.role != new.role {
            self.count(Group::Transition, &format!("role {} -> {}", old.role, new.role));
        }
    }

    /// Adds another run's counters.
    pub fn merge(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(key.clone()).or_default() += count;
        }
        for (key, count) in &other.packets {
            *self.packets.entry(key).or_default() += count;
        }
    }

    /// Every counter of a group, by name.
    #[must_use]
    pub fn group(&self, group: Group) -> Vec<(String, u64)> {
        if group == Group::Packet {
            return self.packets.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        }
        self.counts.iter().filter(|((g, _), _)| *g == group).map(|((_, name), count)| (name.clone(), *count)).collect()
    }

    /// What exists in a group and was not reached; empty for groups that are open-ended.
    #[must_use]
    pub fn unreached(&self, group: Group) -> Vec<String> {
        let reached: Vec<String> = self.group(group).into_iter().map(|(name, _)| name).collect();
        existing(group).into_iter().filter(|name| !reached.contains(name)).collect()
    }
}

/// Everything that exists in a group.
#[must_use]
pub fn existing(group: Group) -> Vec<String> {
    match group {
        Group::Rule => RULES.iter().map(ToString::to_string).collect(),
        Group::Packet => KINDS.iter().map(|kind| kind.name().to_owned()).collect(),
        Group::Transition => transitions(),
        Group::Request | Group::Command | Group::Fault => Vec::new(),
    }
}

/// Every change of one field that behaviour.md's tables allow (sections 1, 2 and 9): the connection's life, the disk's, what
/// is known of the peer's disk, the role.
fn transitions() -> Vec<String> {
    use ConnState as C;
    use DiskState as D;
    let mut all = Vec::new();
    let ends = [C::Timeout, C::BrokenPipe, C::NetworkFailure, C::ProtocolError, C::TearDown, C::Disconnecting];
    let up = [
        C::WfReportParams,
        C::Connected,
        C::StartingSyncS,
        C::StartingSyncT,
        C::WfBitMapS,
        C::WfBitMapT,
        C::WfSyncUuid,
        C::SyncSource,
        C::SyncTarget,
        C::VerifyS,
        C::VerifyT,
        C::PausedSyncS,
        C::PausedSyncT,
        C::Ahead,
        C::Behind,
    ];
    let mut conn = |from: C, to: C| all.push(format!("conn {from} -> {to}"));
    for from in up {
        ends.iter().for_each(|to| conn(from, *to));
    }
    for from in ends {
        conn(from, if from == C::Disconnecting { C::StandAlone } else { C::Unconnected });
    }
    for (from, to) in [
        (C::StandAlone, C::Unconnected),
        (C::Unconnected, C::WfConnection),
        (C::Unconnected, C::Disconnecting),
        (C::WfConnection, C::WfReportParams),
        (C::WfConnection, C::Disconnecting),
        (C::WfReportParams, C::Connected),
        (C::WfReportParams, C::WfBitMapS),
        (C::WfReportParams, C::WfBitMapT),
        (C::Connected, C::WfBitMapS),
        (C::Connected, C::WfBitMapT),
        (C::Connected, C::StartingSyncS),
        (C::Connected, C::StartingSyncT),
        (C::Connected, C::VerifyS),
        (C::Connected, C::VerifyT),
        (C::Connected, C::Ahead),
        (C::Connected, C::Behind),
        (C::StartingSyncS, C::WfBitMapS),
        (C::StartingSyncT, C::WfSyncUuid),
        (C::WfBitMapS, C::SyncSource),
        (C::WfBitMapS, C::PausedSyncS),
        (C::WfBitMapT, C::WfSyncUuid),
        (C::WfSyncUuid, C::SyncTarget),
        (C::WfSyncUuid, C::PausedSyncT),
        (C::SyncSource, C::PausedSyncS),
        (C::SyncTarget, C::PausedSyncT),
        (C::PausedSyncS, C::SyncSource),
        (C::PausedSyncT, C::SyncTarget),
        (C::SyncSource, C::Connected),
        (C::SyncTarget, C::Connected),
        (C::PausedSyncS, C::Connected),
        (C::PausedSyncT, C::Connected),
        (C::VerifyS, C::Connected),
        (C::VerifyT, C::Connected),
        (C::Ahead, C::SyncSource),
        (C::Behind, C::SyncTarget),
        (C::WfBitMapS, C::Connected),
        (C::WfBitMapT, C::Connected),
    ] {
        conn(from, to);
    }
    for (from, to) in [
        (D::Diskless, D::Attaching),
        (D::Attaching, D::Negotiating),
        (D::Attaching, D::Inconsistent),
        (D::Attaching, D::Outdated),
        (D::Attaching, D::Consistent),
        (D::Attaching, D::UpToDate),
        (D::Attaching, D::Diskless),
        (D::Negotiating, D::Inconsistent),
        (D::Negotiating, D::Outdated),
        (D::Negotiating, D::Consistent),
        (D::Negotiating, D::UpToDate),
        (D::Negotiating, D::Diskless),
        (D::Inconsistent, D::UpToDate),
        (D::Inconsistent, D::Outdated),
        (D::Outdated, D::Inconsistent),
        (D::Outdated, D::UpToDate),
        (D::Consistent, D::UpToDate),
        (D::Consistent, D::Inconsistent),
        (D::Consistent, D::Outdated),
        (D::UpToDate, D::Inconsistent),
        (D::UpToDate, D::Outdated),
        (D::UpToDate, D::Consistent),
        (D::Inconsistent, D::Failed),
        (D::Outdated, D::Failed),
        (D::Consistent, D::Failed),
        (D::UpToDate, D::Failed),
        (D::Failed, D::Diskless),
    ] {
        all.push(format!("disk {from} -> {to}"));
    }
    for (from, to) in [
        (D::DUnknown, D::Diskless),
        (D::DUnknown, D::Inconsistent),
        (D::DUnknown, D::Outdated),
        (D::DUnknown, D::Consistent),
        (D::DUnknown, D::UpToDate),
        (D::Diskless, D::DUnknown),
        (D::Inconsistent, D::DUnknown),
        (D::Consistent, D::DUnknown),
        (D::UpToDate, D::DUnknown),
        (D::UpToDate, D::Outdated),
        (D::Inconsistent, D::UpToDate),
        (D::UpToDate, D::Inconsistent),
        (D::Outdated, D::Inconsistent),
        (D::Outdated, D::UpToDate),
        (D::Consistent, D::UpToDate),
        (D::Consistent, D::Inconsistent),
        (D::UpToDate, D::Failed),
        (D::Failed, D::Diskless),
        (D::UpToDate, D::Diskless),
        (D::Inconsistent, D::Diskless),
    ] {
        all.push(format!("pdsk {from} -> {to}"));
    }
    all.push(format!("role {} -> {}", Role::Secondary, Role::Primary));
    all.push(format!("role {} -> {}", Role::Primary, Role::Secondary));
    all
}
