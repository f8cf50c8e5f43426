//! Seeded bugs: mistakes that the engine can be told to make, so that the simulator's checkers can prove that they notice.
//!
//! Owns the list of faults with their names. A fault is one wrong decision at one place of the engine, guarded by
//! [`Engine::faulty`]; none is ever on unless the simulator calls [`Engine::inject`], and without the feature `sim` the
//! guard is the constant `false`, so that the daemon's code does not contain them.

use crate::engine::Engine;
use crate::engine::peer_request::PeerKind;
#[cfg(any(test, feature = "sim"))]
use crate::units::{GenId, VolumeNr};
use crate::wire::data::DpFlags;

/// Declares the faults once: variant, name on the command line, what goes wrong.
macro_rules! faults {
    (drawn { $($variant:ident, $name:literal, $text:literal;)* }
     mended { $($mended:ident, $mended_name:literal, $mended_text:literal;)* }) => {
        /// One seeded bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $(#[doc = $text] $variant,)*
            $(#[doc = $mended_text] $mended,)*
        }

        impl Fault {
            /// Every fault that drawn runs are to find.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Defects that this engine had, each found by one run of many thousands: a story notices each of them.
            pub const MENDED: &'static [Self] = &[$(Self::$mended,)*];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    $(Self::$mended => $mended_name,)*
                }
            }

            /// What it does wrong, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    $(Self::$mended => $mended_text,)*
                }
            }
        }
    };
}

faults! {
    drawn {
        // Writes and the activity log.
        AckBeforePeer, "ack-before-peer",
            "A write is completed when the local disk has it, before the peer's acknowledgement.";
        AlTransactionSkipped, "al-transaction-skipped",
            "Writes to cold extents go without an activity-log transaction.";
        WriteBeforeAl, "write-before-al",
            "Data is written while its activity-log transaction is still on its way to the disk.";
        AlNotDurable, "al-not-durable",
            "An activity-log transaction is written without FUA and without a flush behind it.";
        AlDisabledUnmarked, "al-disabled-unmarked",
            "The superblock does not say that the activity log is not kept: no full sync after a crash.";
        AlSuspendedEarly, "al-suspended-early",
            "The activity log is suspended at an attach without a peer although bits are clear.";
        AlNotResumed, "al-not-resumed",
            "The activity log stays suspended when the peer is back.";
        AlReferencesSurvive, "al-references-survive",
            "Requests keep their activity-log references when the disk and its log go (S25).";
        AlWaitersNotWoken, "al-waiters-not-woken",
            "Writes that wait for a slot of the activity log are not woken when one gets free.";
        EvictionWithoutPages, "eviction-without-pages",
            "Bitmap pages of an evicted extent are not written before its slot is reused (S4).";
        OverlapsNotSerialised, "overlaps-not-serialised",
            "A write does not wait for an earlier one of the same blocks (S26).";
        FuaIgnored, "fua-ignored",
            "A FUA write goes to the disk without FUA, on both nodes.";
        MaxBuffersIgnored, "max-buffers-ignored",
            "More writes than max-buffers are let in.";
        LocalErrorUnmarked, "local-error-unmarked",
            "A failed local write sets no bit.";
        LocalErrorIsSuccess, "local-error-is-success",
            "A failed local write is a success although no peer has it.";
        MetaErrorIgnored, "meta-error-ignored",
            "A failed metadata write counts as done (S4).";
        CompletedTwice, "completed-twice",
            "A completion that waits for a new generation is given at once and again afterwards.";
        ReadInconsistent, "read-inconsistent",
            "A target reads blocks locally that are not synced yet.";
        ClosedWithStuckIo, "closed-with-stuck-io",
            "A disk that was given up is closed, and may be attached again, before its last operation has ended (S37).";
        // Replication.
        BarrierNotSent, "barrier-not-sent",
            "An epoch's barrier counts as sent, but is not.";
        BarrierMiscounted, "barrier-miscounted",
            "Discards are not counted among the writes of their epoch.";
        BarrierAckBeforeFlush, "barrier-ack-before-flush",
            "An epoch is acknowledged before the flush that covers it.";
        EpochsNotReset, "epochs-not-reset",
            "Epochs received on the last link are counted on the next one (S12).";
        EpochTimerForgotten, "epoch-timer-forgotten",
            "Under relaxed epochs nothing flushes when the peer is idle.";
        WriteAckAtReceipt, "write-ack-at-receipt",
            "A protocol C write is acknowledged to the peer when it arrives, not when it is on disk.";
        LostRequestForgotten, "lost-request-forgotten",
            "A write that waits for the peer when the link is lost is never completed.";
        LostRequestUnmarked, "lost-request-unmarked",
            "Writes in flight when the link is lost set no bits.";
        AckedEpochUnmarked, "acked-epoch-unmarked",
            "Writes that are acknowledged but in no acknowledged epoch set no bits when the link is lost.";
        LostReadForgotten, "lost-read-forgotten",
            "A read that waits for the peer when the link is lost is never answered.";
        StaleLinkAccepted, "stale-link-accepted",
            "Packets of an earlier link are taken for the present one's.";
        OrphanAnswered, "orphan-answered",
            "A link starts while writes of the last one are on their way, and what that brought is answered on it.";
        HoldSurvivesLink, "hold-survives-link",
            "What held packets back on the last link holds them back on the next one (S38).";
        QuestionForgotten, "question-forgotten",
            "A command that waits for the peer's answer is not told that the link is gone (S38).";
        PeerErrorUnmarked, "peer-error-unmarked",
            "Neither node sets a bit when the peer's disk write failed (S1).";
        NoNegativeAck, "no-negative-ack",
            "A failed write of protocol A or B is neither reported nor marked (S1).";
        PeerOverlapsNotSerialised, "peer-overlaps-not-serialised",
            "The peer's writes of the same blocks are on their way to the disk together (S26).";
        DiscardNotMirrored, "discard-not-mirrored",
            "The peer's discards are acknowledged and not carried out (S10).";
        FlushBeforeLocal, "flush-before-local",
            "A flush is completed before the local disk's flush.";
        FlushIgnoresPeer, "flush-ignores-peer",
            "A flush under protocol C does not wait for the barrier acknowledgements.";
        AheadUnmarked, "ahead-unmarked",
            "A write of a node that is Ahead is neither marked nor announced.";
        AheadFlaps, "ahead-flaps",
            "A node leaves Ahead at once, however often it went there (S33).";
        // Two Primaries.
        ConflictIgnored, "conflict-ignored",
            "The node that decides applies the peer's write over its own: each node keeps the other's (S34).";
        SupersededEarly, "superseded-early",
            "A superseded write is acknowledged before the write that replaces it is here.";
        SupersededUnwritten, "superseded-unwritten",
            "The peer's write is called superseded before the own one is on the disk.";
        SequenceIgnored, "sequence-ignored",
            "A write of the peer does not wait for the acknowledgement that was sent before it.";
        RetryForgotten, "retry-forgotten",
            "A write that is to be sent again counts as done.";
        UndecidedEpochAcked, "undecided-epoch-acked",
            "A barrier is acknowledged before a waiting write of its epoch is decided (S13).";
        BitsBelievedUntold, "bits-believed-untold",
            "A Primary whose disk is bad reads blocks from it that the other Primary has written alone.";
        OwnWriteOvertakes, "own-write-overtakes",
            "An own write begins over one of the peer that waits.";
        // Suspended I/O and fencing.
        CompletedSuspended, "completed-suspended",
            "Requests are completed though I/O is suspended.";
        ResendForgotten, "resend-forgotten",
            "Frozen writes are not sent again when the peer is back, and not marked.";
        ThawKeepsUuid, "thaw-keeps-uuid",
            "I/O goes on after the peer was fenced, without the generation that was put off.";
        StaleFenceCounts, "stale-fence-counts",
            "The exit code of fence-peer counts although the peer was connected again meanwhile.";
        FreezeLiftedEarly, "freeze-lifted-early",
            "Frozen I/O goes on when the fence-peer helper has ended, whatever it says.";
        AckedNotResent, "acked-not-resent",
            "A frozen write that the peer had acknowledged is not sent again, though no barrier acknowledgement covers it.";
        AckedResent, "acked-resent",
            "A frozen write that the other Primary had acknowledged is sent again, over what that one has written there since.";
        // Volatile caches.
        SuperblockNotDurable, "superblock-not-durable",
            "The superblock is written without FUA and without a flush behind it.";
        EvictionWithoutFlush, "eviction-without-flush",
            "No data flush before a transaction that evicts an extent with unflushed writes.";
        PrimaryIndWithoutFlush, "primary-ind-without-flush",
            "No data flush before the primary indicator is cleared.";
        ClearedPageWithoutFlush, "cleared-page-without-flush",
            "No data flush before a bitmap page with cleared bits.";
        GoodWithoutFlush, "good-without-flush",
            "No data flush before the superblock that calls a synced disk UpToDate.";
        DetachWithoutFlush, "detach-without-flush",
            "A disk is given up with writes of acknowledged epochs in its cache.";
        // Flags, generations and roles.
        PrimaryIndEarly, "primary-ind-early",
            "The primary indicator is cleared when both disks are good, though writes go on (S6).";
        CrashedPrimaryEarly, "crashed-primary-early",
            "The crash of a Primary is forgotten when the activity log is applied, before the peer knows (S6).";
        CrashedPrimaryNotKept, "crashed-primary-not-kept",
            "The crash of a Primary is not written down again: a second crash before the handshake hides it (S6).";
        ConsistentEarly, "consistent-early",
            "The superblock of a resync's target says from the start that its data is good.";
        DegradedKeepsUuid, "degraded-keeps-uuid",
            "A Primary that loses its peer makes no new generation (S9, S24).";
        PromotionKeepsUuid, "promotion-keeps-uuid",
            "A node that is promoted without its peer makes no new generation (S24).";
        CrashRuleIgnored, "crash-rule-ignored",
            "Rules 40 and 41 of the comparison do not look at the crashed-primary flags.";
        SplitBrainIgnored, "split-brain-ignored",
            "A split brain that no policy resolves is resolved by the tie breaker.";
        PromotedInconsistent, "promoted-inconsistent",
            "A node with inconsistent data is promoted without force (S9).";
        DemotedBusy, "demoted-busy",
            "A demotion does not wait for the requests in flight.";
        // Split brains and helpers.
        TieBreakerSwapped, "tie-breaker-swapped",
            "The node that loses ties wins them.";
        ChangesSwapped, "changes-swapped",
            "The policies take each node's changes for the other's.";
        YoungerForOlder, "younger-for-older",
            "The policies discard the younger Primary's data instead of the older one's, and the other way round.";
        AmbiguousByPolicy, "ambiguous-by-policy",
            "A split brain whose bitmaps do not describe it is resolved by a policy without always-asbp.";
        PrimaryGivesWay, "primary-gives-way",
            "A Primary that cannot be demoted becomes the target under call-pri-lost-after-sb.";
        ShortResolution, "short-resolution",
            "The resolution of a split brain whose bitmaps do not describe it is no full sync (S20).";
        HelperNotAwaited, "helper-not-awaited",
            "A resync begins while the helper before it still runs.";
        HelperCodeIgnored, "helper-code-ignored",
            "A resync begins although the helper before it has failed.";
        // Bitmap and resync.
        PartialBlockCleared, "partial-block-cleared",
            "A synced part of a block clears the whole block's bit.";
        ClearedWhenAsked, "cleared-when-asked",
            "The target clears bits when it asks for the blocks, not when they are written.";
        BitmapReplaced, "bitmap-replaced",
            "The peer's bitmap replaces the own one instead of being merged.";
        OutOfSyncNotSent, "out-of-sync-not-sent",
            "A write during the bitmap exchange is not announced to the peer (S2, S14).";
        ResyncReadOvertakes, "resync-read-overtakes",
            "The source reads for a resync what an application write is changing (S26).";
        WriteIgnoresResync, "write-ignores-resync",
            "An application write does not wait for a resync of its range (S26).";
        ResyncBeforeDurable, "resync-before-durable",
            "The target writes before its superblock says Inconsistent and its bitmap is written.";
        CursorNeverBack, "cursor-never-back",
            "A bit set behind the resync's cursor is never asked for (S31).";
        TargetDoneEarly, "target-done-early",
            "The target calls itself UpToDate while the last blocks are on their way.";
        OldResyncReadsSent, "old-resync-reads-sent",
            "What the source still read for a resync that is over is sent into the next one.";
        // Undo of a resolved split brain.
        UndoNotAwaited, "undo-not-awaited",
            "A block of a split brain's victim is overwritten before its old contents are saved.";
        UndoMirroredUnsaved, "undo-mirrored-unsaved",
            "What the peer's applications overwrite during the resync of a split brain is not saved.";
        UndoForgotten, "undo-forgotten",
            "After a restart the rest of a split brain's resync overwrites without saving.";
        NewBitsForgotten, "new-bits-forgotten",
            "A node that has grown does not mark the new part.";
        OldPlaceGivenUpEarly, "old-place-given-up-early",
            "The old superblock of metadata that move is wiped before the new one is written (S23).";
        SourceDoneEarly, "source-done-early",
            "The source clears bits when it answers, and finishes without the target's word.";
    }
    mended {
        UnwrittenGenerationCounts, "unwritten-generation-counts",
            "What waited for a new generation is acknowledged though the superblock could not be written.";
        OldRefusalsCount, "old-refusals-count",
            "Refusals of a resync that was given up are taken for answers of the next one.";
        RoomForgotten, "room-forgotten",
            "A failed write that makes room lets no waiting one in.";
        WaitersOutliveLink, "waiters-outlive-link",
            "What waited behind a peer's write is started when the link's end drops that one.";
        BitsBelievedEarly, "bits-believed-early",
            "A block without a bit is read from an Inconsistent disk before the source's bits came.";
    }
}

impl Fault {
    /// The fault of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().chain(Self::MENDED).copied().find(|fault| fault.name() == name)
    }
}

impl Engine {
    /// The generation that the clients of a volume have seen.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub fn exposed(&self, volume: VolumeNr) -> GenId {
        self.volumes.get(&volume).map_or(GenId::UNSET, |volume| volume.exposed)
    }

    /// Makes the engine commit this mistake from now on; `None`: none.
    #[cfg(any(test, feature = "sim"))]
    pub fn inject(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// Whether this mistake is to be made.
    #[cfg(any(test, feature = "sim"))]
    #[inline]
    pub(crate) fn faulty(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether this mistake is to be made: never.
    #[cfg(not(any(test, feature = "sim")))]
    #[inline]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(crate) const fn faulty(&self, _: Fault) -> bool {
        false
    }

    /// Whether nobody is told that a write without acknowledgement failed: only by mistake.
    pub(crate) fn error_kept_quiet(&self, key: u64) -> bool {
        self.faulty(Fault::NoNegativeAck)
            && self.peer_requests.get(key).is_some_and(
                |r| matches!(&r.kind, PeerKind::Write { flags } if !self.wants_ack(*flags, DpFlags::SEND_WRITE_ACK)),
            )
    }
}
