//! What an attach makes of the metadata: disk states, the generation check, the crashed-primary flag.
//!
//! Source: behaviour.md 10.5.

use super::{Fencing, MdFlags, VolumeState};
use crate::units::GenId;
use crate::wire::state::{ConnState, DiskState, Role};

/// Disk states that an attach leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachStates {
    /// Own disk as the metadata say; remembered while `disk` is Negotiating.
    pub attach_disk: DiskState,
    /// Peer's disk as the metadata say; remembered likewise.
    pub attach_pdsk: DiskState,
    /// Own disk to go to.
    pub disk: DiskState,
    /// Peer's disk to go to.
    pub pdsk: DiskState,
}

/// Disk states after an attach in `state` with the metadata flags `md`. While connected the peer's identifiers decide:
/// the disk becomes Negotiating, and the peer's identifiers known so far are to be forgotten.
#[must_use]
pub fn attach_states(state: &VolumeState, md: &MdFlags, fencing: Fencing) -> AttachStates {
    let attach_pdsk = if md.peer_outdated { DiskState::Outdated } else { state.pdsk };
    let attach_disk = if !md.consistent {
        DiskState::Inconsistent
    } else if !md.was_up_to_date {
        DiskState::Outdated
    } else if attach_pdsk == DiskState::Outdated || fencing == Fencing::DontCare {
        DiskState::UpToDate
    } else {
        DiskState::Consistent
    };
    if state.conn == ConnState::Connected {
        AttachStates { attach_disk, attach_pdsk, disk: DiskState::Negotiating, pdsk: state.pdsk }
    } else {
        AttachStates { attach_disk, attach_pdsk, disk: attach_disk, pdsk: attach_pdsk }
    }
}

/// Whether these metadata may be attached: clients that have seen a generation must not find another one. `exposed` is
/// the generation they have seen, 0 if none.
#[must_use]
pub fn may_attach_generation(state: &VolumeState, exposed: GenId, on_disk: GenId) -> bool {
    let in_use = state.role == Role::Primary || state.peer == Role::Primary;
    state.pdsk == DiskState::UpToDate || exposed == GenId::UNSET || !in_use || exposed.same(on_disk)
}

/// The crashed-primary flag after an attach. A Primary that froze its I/O for want of data and gets its disk back did
/// not crash.
#[must_use]
pub fn crashed_primary_at_attach(state: &VolumeState, md: &MdFlags) -> bool {
    md.crashed_primary || (md.primary_indicated && !(state.role == Role::Primary && state.susp_nod))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: MdFlags = MdFlags {
        consistent: true,
        primary_indicated: false,
        connected_indicated: false,
        was_up_to_date: true,
        peer_outdated: false,
        crashed_primary: false,
    };

    fn disk(md: MdFlags, fencing: Fencing) -> DiskState {
        attach_states(&VolumeState::default(), &md, fencing).disk
    }

    #[test]
    fn metadata_flags_give_the_disk_state() {
        assert_eq!(disk(MdFlags::default(), Fencing::DontCare), DiskState::Inconsistent);
        assert_eq!(disk(MdFlags { was_up_to_date: false, ..CLEAN }, Fencing::DontCare), DiskState::Outdated);
        assert_eq!(disk(CLEAN, Fencing::DontCare), DiskState::UpToDate);
        assert_eq!(disk(CLEAN, Fencing::ResourceOnly), DiskState::Consistent);
        assert_eq!(disk(MdFlags { peer_outdated: true, ..CLEAN }, Fencing::ResourceOnly), DiskState::UpToDate);
    }

    #[test]
    fn a_connected_attach_negotiates_and_remembers() {
        let state = VolumeState { conn: ConnState::Connected, pdsk: DiskState::UpToDate, ..VolumeState::default() };
        assert_eq!(
            attach_states(&state, &CLEAN, Fencing::DontCare),
            AttachStates {
                attach_disk: DiskState::UpToDate,
                attach_pdsk: DiskState::UpToDate,
                disk: DiskState::Negotiating,
                pdsk: DiskState::UpToDate
            }
        );
    }

    #[test]
    fn clients_never_find_other_data() {
        let primary = VolumeState { role: Role::Primary, ..VolumeState::default() };
        assert!(!may_attach_generation(&primary, GenId(0x10), GenId(0x20)));
        assert!(may_attach_generation(&primary, GenId(0x10), GenId(0x11)));
        assert!(may_attach_generation(&primary, GenId::UNSET, GenId(0x20)));
        assert!(may_attach_generation(&VolumeState::default(), GenId(0x10), GenId(0x20)));
        let with_peer = VolumeState { pdsk: DiskState::UpToDate, ..primary };
        assert!(may_attach_generation(&with_peer, GenId(0x10), GenId(0x20)));
    }

    #[test]
    fn a_crash_is_seen_in_the_primary_indicator() {
        let md = MdFlags { primary_indicated: true, ..CLEAN };
        let frozen = VolumeState { role: Role::Primary, susp_nod: true, ..VolumeState::default() };
        assert!(crashed_primary_at_attach(&VolumeState::default(), &md));
        assert!(!crashed_primary_at_attach(&frozen, &md));
        assert!(crashed_primary_at_attach(&frozen, &MdFlags { crashed_primary: true, ..md }));
        assert!(!crashed_primary_at_attach(&VolumeState::default(), &CLEAN));
    }
}
