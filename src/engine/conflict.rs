//! Two Primaries: what becomes of a write of the peer that meets writes of this node's own clients. Pure.
//!
//! **The rule** (behaviour.md 12.3, wire.md 7.3). Of two writes that overlap and of which neither node had the other's when
//! it began its own, exactly one node decides, the *resolver* (it accepted the meta socket): its own write is the last one on
//! both disks. It does not write what the peer sent, but answers "superseded" where its own write covers all of it, else
//! "retry". The other node writes nothing of the resolver's before it has that answer and its own write is on its disk; then
//! it applies the resolver's write over its own, and only then completes a superseded write, or sends one that is to be
//! retried again from the beginning.
//!
//! **Why it is safe.** An incoming write is registered before it is judged, and no own write begins over one that is
//! registered; so the set of own writes that it can meet only shrinks. An own write that the peer has acknowledged is older
//! than any write of the peer that comes after that acknowledgement ([`Engine::receive`] puts the two sockets in order for
//! the resolver): it is waited for, never preferred, also where DRBD 8.4 would. An own write that waits for the activity log
//! is nowhere yet: it begins after the incoming one.
//!
//! **Why nobody waits for ever.** The resolver waits for its own disk only, the other node for the resolver's answer and
//! its own disk.
//!
//! **What clients see.** A superseded write is acknowledged when the write that replaced it is on both disks (the resolver
//! answers when its own is there, flushed; the peer completes when it has applied it). From then on every read, of either
//! node, returns that one or a later one.
//!
//! [`Engine::receive`]: super::Engine::receive

use crate::units::{SectorRange, SeqNr};

/// What the resolver said of an own write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing: no conflict.
    #[default]
    Free,
    /// The resolver's own write, which covers it, is to be the last one.
    Superseded,
    /// It is to be sent again when the resolver's own write is here.
    Postponed,
}

/// An own write as far as it matters for an incoming one that overlaps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnWrite {
    /// It covers all of the incoming one.
    pub covers: bool,
    /// It was sent to a disk or to the peer.
    pub submitted: bool,
    /// The own disk has not ended it.
    pub local_pending: bool,
    /// The peer was sent it, and has not said what became of it.
    pub unanswered: bool,
    /// What the peer said, if it is the resolver.
    pub standing: Standing,
}

/// What to do with an incoming write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Write it.
    Apply,
    /// Look again when something of the own write has ended.
    Wait,
    /// Do not write it; answer that it is to be sent again.
    Retry,
    /// Do not write it; answer that the own write replaces it.
    Supersede,
}

/// The verdict that one own write asks for.
pub(crate) const fn judge(own: OwnWrite, resolver: bool) -> Verdict {
    if !own.submitted {
        return Verdict::Apply;
    }
    match (resolver, own.unanswered, own.standing) {
        (true, true, _) if own.covers => Verdict::Supersede,
        (true, true, _) => Verdict::Retry,
        (false, true, Standing::Free) => Verdict::Wait,
        _ if own.local_pending => Verdict::Wait,
        _ => Verdict::Apply,
    }
}

/// The verdict over all own writes that an incoming one overlaps. One that covers it is the only one.
pub(crate) fn judge_all(own: impl IntoIterator<Item = OwnWrite>, resolver: bool) -> Verdict {
    own.into_iter().map(|own| judge(own, resolver)).max().unwrap_or(Verdict::Apply)
}

/// Whether `a` covers all of `b`.
pub(crate) fn covers(a: SectorRange, b: SectorRange) -> bool {
    a.start <= b.start && a.end() >= b.end()
}

/// Whether `a` comes after `b`, modulo 2^32.
pub(crate) const fn is_after(a: SeqNr, b: SeqNr) -> bool {
    a.0.wrapping_sub(b.0).cast_signed() > 0
}

/// Whether a packet of the data socket has to wait for acknowledgements on the meta socket with lower numbers; `seen` is the
/// highest number seen on either.
pub(crate) const fn overtakes(number: SeqNr, seen: SeqNr) -> bool {
    is_after(SeqNr(number.0.wrapping_sub(1)), seen)
}

/// DRBD's line about a conflict; none where both writes have the same place and size. `verdict` is the resolver's.
pub(crate) fn line(local: SectorRange, remote: SectorRange, verdict: Verdict) -> Option<String> {
    if local == remote {
        return None;
    }
    let assumed = match verdict {
        Verdict::Supersede => ", assuming local came first",
        Verdict::Retry => ", assuming remote came first",
        Verdict::Wait | Verdict::Apply => "",
    };
    Some(format!(
        "Concurrent writes detected: local={}s +{}, remote={}s +{}{assumed}",
        local.start,
        local.bytes(),
        remote.start,
        remote.bytes()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Sector, Sectors};

    fn r(start: u64, count: u64) -> SectorRange {
        SectorRange { start: Sector(start), count: Sectors(count) }
    }

    /// Every kind of overlap, every state of the own write, both nodes.
    #[test]
    fn the_table_of_conflicts() {
        use Standing::{Free, Postponed, Superseded};
        use Verdict::{Apply, Retry, Supersede, Wait};
        // submitted, local pending, unanswered, standing: by the resolver (covering, partial), by the other node.
        let table = [
            ((false, false, false, Free), [Apply, Apply, Apply]),
            ((true, true, true, Free), [Supersede, Retry, Wait]),
            ((true, false, true, Free), [Supersede, Retry, Wait]),
            ((true, true, false, Free), [Wait, Wait, Wait]),
            ((true, false, false, Free), [Apply, Apply, Apply]),
            // The other node's own writes, once the resolver has spoken; its word is no acknowledgement.
            ((true, true, true, Superseded), [Supersede, Retry, Wait]),
            ((true, false, true, Superseded), [Supersede, Retry, Apply]),
            ((true, true, true, Postponed), [Supersede, Retry, Wait]),
            ((true, false, true, Postponed), [Supersede, Retry, Apply]),
        ];
        for ((submitted, local_pending, unanswered, standing), [covering, partial, other]) in table {
            let own = |covers| OwnWrite { covers, submitted, local_pending, unanswered, standing };
            assert_eq!(judge(own(true), true), covering, "{:?}", own(true));
            assert_eq!(judge(own(false), true), partial, "{:?}", own(false));
            for covers in [true, false] {
                assert_eq!(judge(own(covers), false), other, "{:?}", own(covers));
            }
        }
    }

    #[test]
    fn of_several_own_writes_the_strongest_verdict_counts() {
        let done = OwnWrite {
            covers: false,
            submitted: true,
            local_pending: true,
            unanswered: false,
            standing: Standing::Free,
        };
        let open = OwnWrite { unanswered: true, ..done };
        assert_eq!(judge_all([done, open], true), Verdict::Retry);
        assert_eq!(judge_all([done, open], false), Verdict::Wait);
        assert_eq!(judge_all([], true), Verdict::Apply);
    }

    #[test]
    fn covering_and_lines() {
        assert!(covers(r(8, 8), r(8, 8)) && covers(r(8, 8), r(10, 2)));
        assert!(!covers(r(8, 8), r(7, 2)) && !covers(r(8, 8), r(15, 2)));
        assert_eq!(line(r(8, 8), r(8, 8), Verdict::Supersede), None);
        assert_eq!(
            line(r(416, 32), r(416, 8), Verdict::Supersede).unwrap(),
            "Concurrent writes detected: local=416s +16384, remote=416s +4096, assuming local came first"
        );
        assert_eq!(
            line(r(416, 8), r(416, 32), Verdict::Wait).unwrap(),
            "Concurrent writes detected: local=416s +4096, remote=416s +16384"
        );
    }

    #[test]
    fn sequence_numbers_wrap() {
        let s = SeqNr;
        assert!(!overtakes(s(1), s(0)) && overtakes(s(2), s(0)) && !overtakes(s(2), s(7)));
        assert!(!overtakes(s(0), s(u32::MAX)) && overtakes(s(1), s(u32::MAX)) && !overtakes(s(u32::MAX), s(3)));
        assert!(is_after(s(1), s(u32::MAX)) && !is_after(s(u32::MAX), s(1)) && !is_after(s(5), s(5)));
    }
}
