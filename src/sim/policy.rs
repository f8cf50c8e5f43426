//! Which node's data the policies give up after a split brain: DRBD's rules once more, in terms of both nodes instead of one's own
//! and the other's, from what was configured and what both nodes said on the wire.
//!
//! Takes in: settings, announced identifiers and roles. Gives out: the victim, whose data a resync may discard from then on
//! (P5); any other discarded promise is a violation. Invariant: nothing here asks an engine. Source: behaviour.md 3.6.

use super::node::Reason;
use super::world::{A, World};
use crate::engine::options::{NetOptions, RrConflict};
use crate::units::VolumeNr;
use crate::wire::packet::Packet;
use crate::wire::params::AfterSb;
use crate::wire::state::{DiskState, Role};

/// What a node said last about a volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// Bit 0 of its bitmap identifier: it was Primary when its generation began.
    was_primary: bool,
    /// Bits set.
    changes: u64,
    /// Its role.
    role: Option<Role>,
}

/// A split brain as both nodes see it; the arrays are by node.
struct Meeting<'a> {
    node: usize,
    net: &'a NetOptions,
    said: [Said; 2],
    primary: [bool; 2],
    /// The node that loses what is undecided.
    breaker: usize,
}

impl Meeting<'_> {
    /// The node whose data are given up; `None`: nobody decides.
    fn victim(&self) -> Option<usize> {
        let zero = self.without_primaries(self.net.after_sb_0p);
        match self.primary.iter().filter(|primary| **primary).count() {
            0 => zero,
            1 => match self.net.after_sb_1p {
                AfterSb::ViolentlyAs0p => zero,
                AfterSb::DiscardSecondary => self.primary.iter().position(|primary| !primary),
                // A Primary agrees to no such thing, and cannot be demoted while nodes meet.
                AfterSb::Consensus | AfterSb::CallPriLostAfterSb => zero.filter(|victim| !self.primary[*victim]),
                _ => None,
            },
            _ => zero.filter(|_| self.net.after_sb_2p == AfterSb::ViolentlyAs0p),
        }
    }

    fn without_primaries(&self, policy: AfterSb) -> Option<usize> {
        let was_primary = self.said.map(|said| said.was_primary);
        match policy {
            AfterSb::DiscardLocal => Some(self.node),
            AfterSb::DiscardRemote => Some(1 - self.node),
            // The older one was Primary when they parted.
            AfterSb::DiscardYoungerPrimary if was_primary[0] != was_primary[1] => Some(usize::from(was_primary[0])),
            AfterSb::DiscardOlderPrimary if was_primary[0] != was_primary[1] => Some(usize::from(was_primary[1])),
            AfterSb::DiscardYoungerPrimary | AfterSb::DiscardOlderPrimary | AfterSb::DiscardLeastChanges => {
                let [a, b] = self.said.map(|said| said.changes);
                Some(if a == b { self.breaker } else { usize::from(b < a) })
            }
            AfterSb::DiscardZeroChanges => match self.said.map(|said| said.changes) {
                [0, 0] => Some(self.breaker),
                [0, _] => Some(0),
                [_, 0] => Some(1),
                _ => None,
            },
            _ => None,
        }
    }
}

impl World {
    /// A node says something to the other.
    pub(super) fn note_said(&mut self, node: usize, volume: VolumeNr, packet: &Packet) {
        let Some(vol) = self.nodes[node].volumes.get_mut(usize::from(volume.0)) else { return };
        match packet {
            Packet::Uuids(uuids) => {
                vol.said.was_primary = uuids.bitmap.primary_bit();
                vol.said.changes = uuids.bits_set;
            }
            Packet::State(word) => vol.said.role = word.role(),
            _ => {}
        }
    }

    /// A node found a split brain by this rule and saw a way: whose data may be discarded is known from now on.
    pub(super) fn policy_decides(&mut self, node: usize, volume: usize, rule: u16) {
        let net = self.nodes[node].params.net.clone();
        if rule != 90 && !net.always_asbp {
            return;
        }
        let vols = [0, 1].map(|n| &self.nodes[n].volumes[volume]);
        let said = [vols[0].said, vols[1].said];
        let mut primary = said.map(|said| said.role == Some(Role::Primary));
        primary[node] = vols[node].seen.role == Role::Primary;
        // As the links are given out: the tie breaker takes turns.
        let breaker = if self.links.len().is_multiple_of(2) { 1 - A } else { A };
        let meeting = Meeting { node, net: &net, said, primary, breaker };
        let Some(victim) = meeting.victim() else { return };
        let held = primary[victim] && vols[victim].seen.disk >= DiskState::Consistent;
        if held && self.nodes[victim].params.net.rr_conflict != RrConflict::Violently {
            return;
        }
        self.coverage.count(super::coverage::Group::Fault, &format!("victim of {}", policy_name(&meeting)));
        self.nodes[victim].volumes[volume].named.insert(Reason::Policy);
    }

    /// In peace both nodes have the same settings: those of the first.
    pub(super) fn mend_policies(&mut self) -> bool {
        let [a, b] = [0, 1].map(|n| self.nodes[n].params.net.clone());
        let mut mended = b.clone();
        mended.after_sb_0p = a.after_sb_0p.mirrored();
        (mended.after_sb_1p, mended.after_sb_2p) = (a.after_sb_1p, a.after_sb_2p);
        let differs = mended != b;
        self.nodes[1].params.net = mended;
        differs
    }
}

fn policy_name(meeting: &Meeting<'_>) -> String {
    let net = meeting.net;
    match meeting.primary {
        [false, false] => net.after_sb_0p.text().to_owned(),
        [true, true] => format!("{} with two Primaries", net.after_sb_2p.text()),
        _ => format!("{} with a Primary", net.after_sb_1p.text()),
    }
}
