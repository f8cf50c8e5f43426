//! The handshake of one volume with what the engine knows: identifiers, roles, disks, options; and what it does to the identifiers.
//!
//! Takes in the peer's state; gives out the decision of [`super::handshake`], which the caller carries out.

use crate::engine::Engine;
use crate::engine::fault::Fault;
use crate::engine::gi::{Correction, UuidFlags};
use crate::engine::handler::Handler;
use crate::engine::handshake::{Decision, HandshakeInput, Outcome, RefuseReason, RrConflict, decide};
use crate::engine::split_brain::AfterSbPolicies;
use crate::engine::state::VolumeState;
use crate::units::VolumeNr;
use crate::wire::feature::FeatureFlags;
use crate::wire::params::AfterSb;
use crate::wire::state::DiskState;

impl Engine {
    /// Compares both nodes' data and decides.
    pub(crate) fn handshake(&mut self, v: VolumeNr, ps: &VolumeState, real_peer_disk: DiskState) -> Outcome {
        let wsame = FeatureFlags(self.conn.features).has(FeatureFlags::WSAME);
        let opts = self.conn.opts.as_ref();
        let mut policies = opts.map_or_else(AfterSbPolicies::default, |o| AfterSbPolicies {
            none: o.after_sb_0p,
            one: o.after_sb_1p,
            two: o.after_sb_2p,
        });
        if self.faulty(Fault::YoungerForOlder) {
            policies.none = match policies.none {
                AfterSb::DiscardYoungerPrimary => AfterSb::DiscardOlderPrimary,
                AfterSb::DiscardOlderPrimary => AfterSb::DiscardYoungerPrimary,
                other => other,
            };
        }
        let vol = self.volumes.get(&v);
        let own = vol.and_then(|vol| vol.disk.as_ref()).map(super::volume::LocalDisk::ids).unwrap_or_default();
        let mut peer = vol.and_then(|vol| vol.peer.uuids).unwrap_or_default();
        let blind = self.faulty(Fault::CrashRuleIgnored);
        if blind {
            peer.flags = peer.flags.with(UuidFlags::CRASHED_PRIMARY, false);
        }
        let state = self.state(v);
        let mut own_changes = vol.map_or(0, |vol| vol.bits_sent);
        if self.faulty(Fault::ChangesSwapped) {
            std::mem::swap(&mut own_changes, &mut peer.bits_set);
        }
        let input = HandshakeInput {
            own: &own,
            own_bits_set: vol.map_or(0, super::volume::Volume::out_of_sync_bits),
            own_changes,
            all_bits: vol.and_then(|vol| vol.disk.as_ref()).map_or(u64::MAX, |disk| disk.bitmap.bits()),
            own_crashed_primary: vol.is_some_and(|vol| vol.crashed_primary) && !blind,
            own_role: state.role,
            disk: state.disk,
            negotiation_disk: vol.map_or(DiskState::Diskless, |vol| vol.attach_disk),
            peer: &peer,
            peer_role: ps.role,
            peer_disk: real_peer_disk,
            resolve_conflicts: self.conn.resolve_conflicts != self.faulty(Fault::TieBreakerSwapped),
            version: self.conn.version,
            wsame,
            policies,
            always_asbp: opts.is_some_and(|o| o.always_asbp) || self.faulty(Fault::AmbiguousByPolicy),
            // As in 8.4, where a role cannot change while the nodes meet: a Primary that lost the vote calls for help.
            can_demote: self.faulty(Fault::PrimaryGivesWay),
            rr_conflict: opts.map_or(RrConflict::Disconnect, |o| o.rr_conflict),
            discard_my_data: vol.is_some_and(|vol| vol.discard_my_data),
            dry_run: opts.is_some_and(|o| o.tentative),
            peer_dry_run: self.conn.peer_dry_run,
        };
        let mut outcome = decide(&input);
        self.note_divergence(v, &input, &outcome);
        if self.faulty(Fault::SplitBrainIgnored) && outcome.decision == Decision::Refuse(RefuseReason::SplitBrain) {
            let target = self.conn.resolve_conflicts;
            outcome.decision = if target { Decision::Target { full: false } } else { Decision::Source { full: false } };
        }
        if self.faulty(Fault::ShortResolution) && outcome.handlers.contains(&Handler::InitialSplitBrain) {
            outcome.decision = match outcome.decision {
                Decision::Source { .. } => Decision::Source { full: false },
                Decision::Target { .. } => Decision::Target { full: false },
                other => other,
            };
        }
        let (own_after, peer_after) = outcome.comparison.correction.apply(own, peer.ids);
        if let Some(vol) = self.volumes.get_mut(&v) {
            vol.missed_end = outcome.comparison.correction == Correction::RotateOwn;
            if let Some(uuids) = vol.peer.uuids.as_mut() {
                uuids.ids = peer_after;
            }
            // Rule 34's waits for the start of the resync, which makes the same history of it: without the bitmap identifier
            // nobody would know of the bits if it does not come to that.
            if own_after != own
                && outcome.comparison.correction != Correction::RotateOwn
                && let Some(disk) = vol.disk.as_mut()
            {
                disk.set_ids(own_after);
            }
        }
        outcome
    }
}
