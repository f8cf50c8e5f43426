//! What a received `P_STATE` means before it is applied: end of a resync or verify, handshake or not, the change to make.
//!
//! Takes in: the current state, the peer's word and what is known of its identifiers. Gives out: what to do, as data.
//! Source: behaviour.md 2.10 (steps 1 to 8, 10, 11), wire.md 4.9.

use super::{ChangeMode, StateChange, VolumeState};
use crate::engine::gi::UuidFlags;
use crate::engine::handshake::real_peer_disk;
use crate::wire::state::ConnState as C;
use crate::wire::state::DiskState as D;

/// What the reading of a peer's state looks at besides the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedContext {
    /// Flags of the peer's identifiers; `None` if it sent none on this connection.
    pub peer_flags: Option<UuidFlags>,
    /// The mark set when the peer was promoted with force.
    pub consider_resync: bool,
    /// The connection state that this node takes when the peer agrees to what it is being asked. Its answer comes on the meta
    /// socket, and what it begins with that may overtake it on the data socket.
    pub asked: Option<C>,
    /// Own disk state found at attach, while the disk is Negotiating.
    pub attach_disk: D,
    /// The target of our resync may be done: no more bits are set than blocks have failed, or it has asked for some.
    pub may_be_done: bool,
}

/// What a received state asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The connection is being dropped: fail the packet.
    TearingDown,
    /// The target is done: finish the resync, nothing else.
    FinishResync,
    /// The target says it is done, but bits are left here: nothing.
    Ignore,
    /// The driver of the verify is done: finish it, nothing else.
    FinishVerify,
    /// Both nodes wait for the other's bitmap: a disk changed while the two decisions were made. Start over.
    BothTargets,
    /// Apply it.
    Apply(PeerView),
}

/// A peer's state, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Connection state to go to, unless the handshake says otherwise.
    pub conn: C,
    /// The peer's disk to go to.
    pub pdsk: D,
    /// The real state of the peer's disk, for the handshake and the log.
    pub real_disk: D,
    /// The handshake has to run first.
    pub handshake: bool,
    /// How to commit.
    pub mode: ChangeMode,
}

/// Reads the peer's state `ps` in the own state `os`.
#[must_use]
pub fn read_peer_state(os: &VolumeState, ps: &VolumeState, ctx: &ReceivedContext) -> Received {
    let real_disk = real_peer_disk(ps.disk, ctx.peer_flags.unwrap_or_default());
    let mut pdsk = real_disk;
    if os.conn <= C::TearDown {
        return Received::TearingDown;
    }

    let peer_was_bad = matches!(os.pdsk, D::Inconsistent | D::Consistent);
    if peer_was_bad && pdsk == D::UpToDate && os.conn > C::Connected && os.disk == D::UpToDate {
        if ps.conn > C::Connected && ps.conn < C::SyncSource {
            // Its resync has not begun yet.
            pdsk = D::Inconsistent;
        } else if os.conn >= C::SyncSource && ps.conn == C::Connected {
            return if ctx.may_be_done { Received::FinishResync } else { Received::Ignore };
        }
    }
    let is_source = matches!(os.conn, C::SyncSource | C::PausedSyncS);
    if is_source && pdsk == D::Inconsistent && ps.conn == C::Connected && ctx.may_be_done {
        // It ended with failed blocks.
        return Received::FinishResync;
    }
    let both_good = os.disk == D::UpToDate && pdsk == D::UpToDate;
    if os.conn == C::VerifyT && both_good && ps.conn == C::Connected {
        return Received::FinishVerify;
    }
    if os.pdsk == D::UpToDate && pdsk == D::Inconsistent && os.conn == C::Connected && ps.conn > C::SyncSource {
        // A late packet of a resync that is over here.
        pdsk = D::UpToDate;
    }
    let target_before = matches!(ps.conn, C::StartingSyncT | C::WfBitMapT | C::WfSyncUuid);
    if os.disk <= D::Failed && target_before && matches!(pdsk, D::Consistent | D::Outdated) {
        // It is about to be the target of a resync from the disk that was lost here: its data are old, and stay so.
        pdsk = D::Inconsistent;
    }

    if os.conn == C::WfBitMapT && ps.conn == C::WfBitMapT {
        return Received::BothTargets;
    }
    let conn = match (ps.conn, os.conn) {
        (C::Ahead, _) => C::Behind,
        (_, C::WfReportParams) => C::Connected,
        (_, own) => own,
    };
    let negotiating = ps.disk == D::Negotiating || os.disk == D::Negotiating;
    let asked_for = matches!(
        (ctx.asked, ps.conn),
        (Some(C::StartingSyncT), C::StartingSyncS) | (Some(C::StartingSyncS), C::StartingSyncT)
    );
    let peer_starts_sync = (C::StartingSyncS..=C::WfBitMapT).contains(&ps.conn) && !asked_for;
    let wanted =
        os.conn < C::Connected || (os.conn == C::Connected && (negotiating || peer_starts_sync)) || ctx.consider_resync;
    let possible = ctx.peer_flags.is_some() && ps.disk >= D::Negotiating && os.disk >= D::Negotiating;
    let mode = if os.conn < C::Connected { ChangeMode::Soft } else { ChangeMode::Hard };
    Received::Apply(PeerView { conn, pdsk, real_disk, handshake: wanted && possible, mode })
}

impl PeerView {
    /// The change that applies the peer's state `ps` in the own state `os`; `conn` and `pdsk` as left by the handshake.
    #[must_use]
    pub fn change(&self, os: &VolumeState, ps: &VolumeState, ctx: &ReceivedContext) -> StateChange {
        let change =
            StateChange::NONE.conn(self.conn).peer(ps.role).pdsk(self.pdsk).peer_isp(ps.aftr_isp || ps.user_isp);
        // Where the peer has data only the handshake may say that ours are good; a state that crossed our attach does not.
        let judged = self.handshake || ps.disk < D::Negotiating;
        let settled = judged && matches!(self.conn, C::Connected | C::WfBitMapS) && os.disk == D::Negotiating;
        if settled { change.disk(ctx.attach_disk) } else { change }
    }

    /// Whether the peer has to be told (identifiers and state) so that it decides as well: it was promoted with force.
    #[must_use]
    pub fn peer_must_decide(&self, os: &VolumeState, ps: &VolumeState) -> bool {
        os.conn > C::WfReportParams && self.conn > C::Connected && ps.conn <= C::Connected && ps.disk != D::Negotiating
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::state::Role;

    const CTX: ReceivedContext = ReceivedContext {
        peer_flags: Some(UuidFlags(0)),
        consider_resync: false,
        asked: None,
        attach_disk: D::UpToDate,
        may_be_done: true,
    };

    fn state(conn: C, disk: D, pdsk: D) -> VolumeState {
        VolumeState { conn, disk, pdsk, peer: Role::Secondary, ..VolumeState::default() }
    }

    fn view(os: &VolumeState, ps: &VolumeState, ctx: &ReceivedContext) -> PeerView {
        match read_peer_state(os, ps, ctx) {
            Received::Apply(view) => view,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_connection_runs_the_handshake_and_commits_softly() {
        let os = state(C::WfReportParams, D::UpToDate, D::DUnknown);
        let ps = state(C::WfConnection, D::UpToDate, D::DUnknown);
        let got = view(&os, &ps, &CTX);
        assert_eq!(
            got,
            PeerView {
                conn: C::Connected,
                pdsk: D::UpToDate,
                real_disk: D::UpToDate,
                handshake: true,
                mode: ChangeMode::Soft
            }
        );
        assert!(!got.peer_must_decide(&os, &ps));
        let diskless = view(&os, &state(C::WfConnection, D::Diskless, D::DUnknown), &CTX);
        assert!(!diskless.handshake);
        assert!(!view(&os, &ps, &ReceivedContext { peer_flags: None, ..CTX }).handshake);
    }

    #[test]
    fn nothing_is_read_while_the_link_is_torn_down() {
        let ps = state(C::Connected, D::UpToDate, D::UpToDate);
        for conn in C::ALL.iter().filter(|c| **c <= C::TearDown) {
            assert_eq!(read_peer_state(&state(*conn, D::UpToDate, D::DUnknown), &ps, &CTX), Received::TearingDown);
        }
    }

    #[test]
    fn the_target_ends_a_resync() {
        let os = state(C::SyncSource, D::UpToDate, D::Inconsistent);
        let done = state(C::Connected, D::UpToDate, D::UpToDate);
        assert_eq!(read_peer_state(&os, &done, &CTX), Received::FinishResync);
        let left = ReceivedContext { may_be_done: false, ..CTX };
        assert_eq!(read_peer_state(&os, &done, &left), Received::Ignore);
        let early = state(C::WfBitMapT, D::UpToDate, D::UpToDate);
        assert_eq!(view(&os, &early, &CTX).pdsk, D::Inconsistent);
    }

    #[test]
    fn the_target_ends_a_resync_with_failed_blocks() {
        let done = state(C::Connected, D::Inconsistent, D::UpToDate);
        for conn in [C::SyncSource, C::PausedSyncS] {
            let os = state(conn, D::UpToDate, D::Inconsistent);
            assert_eq!(read_peer_state(&os, &done, &CTX), Received::FinishResync);
            // It may also be a state from before the resync.
            let left = ReceivedContext { may_be_done: false, ..CTX };
            assert_eq!(view(&os, &done, &left).conn, conn);
        }
    }

    #[test]
    fn the_target_of_a_lost_source_has_old_data() {
        let os = state(C::Connected, D::Failed, D::Inconsistent);
        for disk in [D::Consistent, D::Outdated] {
            assert_eq!(view(&os, &state(C::WfBitMapT, disk, D::UpToDate), &CTX).pdsk, D::Inconsistent);
            assert_eq!(view(&os, &state(C::Connected, disk, D::UpToDate), &CTX).pdsk, disk);
        }
    }

    #[test]
    fn two_targets_start_over() {
        let ps = state(C::WfBitMapT, D::Inconsistent, D::UpToDate);
        assert_eq!(read_peer_state(&state(C::WfBitMapT, D::Outdated, D::UpToDate), &ps, &CTX), Received::BothTargets);
    }

    #[test]
    fn the_driver_ends_a_verify() {
        let os = state(C::VerifyT, D::UpToDate, D::UpToDate);
        let done = state(C::Connected, D::UpToDate, D::UpToDate);
        assert_eq!(read_peer_state(&os, &done, &CTX), Received::FinishVerify);
    }

    #[test]
    fn a_late_packet_does_not_flap() {
        let os = state(C::Connected, D::UpToDate, D::UpToDate);
        let late = state(C::SyncTarget, D::Inconsistent, D::UpToDate);
        assert_eq!(view(&os, &late, &CTX).pdsk, D::UpToDate);
    }

    #[test]
    fn an_attaching_peer_is_judged_by_its_flags() {
        let os = state(C::Connected, D::UpToDate, D::Diskless);
        let ps = state(C::Connected, D::Negotiating, D::UpToDate);
        let got = view(&os, &ps, &CTX);
        assert_eq!((got.real_disk, got.handshake, got.mode), (D::Consistent, true, ChangeMode::Hard));
        let bad = ReceivedContext { peer_flags: Some(UuidFlags::INCONSISTENT), ..CTX };
        assert_eq!(view(&os, &ps, &bad).real_disk, D::Inconsistent);
    }

    #[test]
    fn a_full_sync_that_was_asked_for_is_not_negotiated_as_well() {
        let os = state(C::Connected, D::UpToDate, D::UpToDate);
        let ps = state(C::StartingSyncS, D::UpToDate, D::Consistent);
        assert!(view(&os, &ps, &CTX).handshake);
        for (asked, handshake) in [(C::StartingSyncT, false), (C::StartingSyncS, true), (C::VerifyS, true)] {
            let ctx = ReceivedContext { asked: Some(asked), ..CTX };
            assert_eq!(view(&os, &ps, &ctx).handshake, handshake, "{asked}");
        }
    }

    #[test]
    fn a_forced_promotion_makes_both_decide() {
        let os = state(C::Connected, D::Inconsistent, D::Inconsistent);
        let ps = VolumeState { role: Role::Primary, ..state(C::Connected, D::UpToDate, D::Inconsistent) };
        let forced = ReceivedContext { consider_resync: true, ..CTX };
        let got = view(&os, &ps, &forced);
        assert!(got.handshake);
        let target = PeerView { conn: C::WfBitMapT, ..got };
        assert!(target.peer_must_decide(&os, &ps));
        assert!(!got.peer_must_decide(&os, &ps));
        assert!(!view(&os, &ps, &CTX).handshake);
    }

    #[test]
    fn an_own_attach_is_settled_by_the_remembered_state() {
        let os = state(C::Connected, D::Negotiating, D::UpToDate);
        let ps = VolumeState { user_isp: true, ..state(C::Connected, D::UpToDate, D::Negotiating) };
        let got = view(&os, &ps, &CTX);
        assert!(got.handshake);
        let change = got.change(&os, &ps, &CTX);
        assert_eq!((change.disk, change.peer_isp), (Some(D::UpToDate), Some(true)));
        let target = PeerView { conn: C::WfBitMapT, ..got };
        assert_eq!(target.change(&os, &ps, &CTX).disk, None);
    }

    #[test]
    fn a_peer_that_is_ahead_puts_us_behind() {
        let os = state(C::Connected, D::UpToDate, D::UpToDate);
        assert_eq!(view(&os, &state(C::Ahead, D::UpToDate, D::Inconsistent), &CTX).conn, C::Behind);
    }
}
