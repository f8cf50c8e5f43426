//! What the checkers need to know of the simulated world, and where they report.

use super::coverage::Group;
use super::device::PAGE;
use super::model::Scene;
use super::world::{A, B, Checker, NOBODY, Violation, World};
use crate::wire::state::{ConnState, DiskState, Role};

impl World {
    /// What a node says about itself and its peer, for the model.
    pub(super) fn scene(&self, node: usize, volume: usize) -> Scene {
        let state = &self.nodes[node].volumes[volume].seen;
        let told = matches!(
            state.conn,
            ConnState::Connected
                | ConnState::SyncTarget
                | ConnState::PausedSyncT
                | ConnState::VerifyS
                | ConnState::VerifyT
        );
        let peer_primary = self.is_primary(1 - node, volume);
        Scene {
            own_good: state.disk == DiskState::UpToDate,
            peer_good: told && state.pdsk == DiskState::UpToDate,
            only_on_peer: false,
            protocol: match self.params.nodes[node].net.protocol {
                crate::wire::params::ReplProtocol::A => 'A',
                crate::wire::params::ReplProtocol::B => 'B',
                crate::wire::params::ReplProtocol::C => 'C',
            },
            peer_primary,
            may_come_late: peer_primary && self.nodes[1 - node].volumes[volume].seen.conn >= ConnState::WfReportParams,
            powers: [self.nodes[A].powers, self.nodes[B].powers],
            failures: [A, B].map(|n| self.nodes[n].volumes[volume].failures),
        }
    }

    /// Something is wrong: the run ends.
    pub(super) fn fail(&mut self, checker: Checker, text: String) {
        if self.violation.is_none() && self.deaf != Some(checker) {
            self.trace.note(self.now, NOBODY, 3, 0, || format!("VIOLATION {}: {text}", checker.name()));
            self.violation = Some(Violation { checker, text, at: self.now });
        }
    }

    /// Pages of a node's data device changed: are they still equal on both?
    pub(super) fn touched(&mut self, node: usize, volume: usize, start: u64, len: u64) {
        let limit = self.data_bytes(volume);
        let mut at = start / PAGE * PAGE;
        while at < (start + len).min(limit) {
            let page = at / PAGE;
            self.compare_page(volume, page);
            self.unchecked[node][volume].insert(page);
            at += PAGE;
        }
    }

    pub(super) fn compare_page(&mut self, volume: usize, page: u64) {
        let (a, b) = (self.nodes[A].volumes[volume].data.page(page), self.nodes[B].volumes[volume].data.page(page));
        let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let equal = match (a, b) {
            (Some(a), Some(b)) => a == b,
            (Some(only), None) | (None, Some(only)) => zero(only),
            (None, None) => true,
        };
        if equal {
            self.differs[volume].remove(&page);
        } else {
            self.differs[volume].insert(page);
        }
    }

    /// Whether a node is up and Primary.
    pub(super) fn is_primary(&self, node: usize, volume: usize) -> bool {
        self.nodes[node].is_up() && self.nodes[node].volumes[volume].seen.role == Role::Primary
    }

    /// The node where a volume is Primary, if there is exactly one.
    #[must_use]
    pub fn primary(&self, volume: usize) -> Option<usize> {
        match (self.is_primary(A, volume), self.is_primary(B, volume)) {
            (true, false) => Some(A),
            (false, true) => Some(B),
            _ => None,
        }
    }

    /// Counts a fault.
    pub(super) fn fault(&mut self, name: &str) {
        self.stats.faults += 1;
        self.coverage.count(Group::Fault, name);
    }
}
