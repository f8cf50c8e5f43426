//! Names of the helper programs' events (behaviour.md 8.5). Who runs them, and what an exit code means, is decided elsewhere.

/// An event that a helper program is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Handler {
    /// Make the peer unable to serve; the exit code decides (see [`super::fence`]).
    FencePeer,
    /// The peer is UpToDate again.
    UnfencePeer,
    /// The handshake found a split brain.
    InitialSplitBrain,
    /// A split brain stays unresolved; the connection is about to be dropped.
    SplitBrain,
    /// This Primary must become the target of a resync.
    PriLost,
    /// This Primary lost the vote of a split brain and could not demote itself.
    PriLostAfterSb,
    /// Primary without good data in reach.
    PriOnInconDegr,
    /// The local disk failed.
    LocalIoError,
    /// About to become SyncTarget; an exit code above 0 drops the connection.
    BeforeResyncTarget,
    /// A resync towards this node ended.
    AfterResyncTarget,
    /// About to become SyncSource; an exit code above 0 other than 3 drops the connection.
    BeforeResyncSource,
    /// An online verify found differences.
    OutOfSync,
}

impl Handler {
    /// All events.
    pub const ALL: &'static [Self] = &[
        Self::FencePeer,
        Self::UnfencePeer,
        Self::InitialSplitBrain,
        Self::SplitBrain,
        Self::PriLost,
        Self::PriLostAfterSb,
        Self::PriOnInconDegr,
        Self::LocalIoError,
        Self::BeforeResyncTarget,
        Self::AfterResyncTarget,
        Self::BeforeResyncSource,
        Self::OutOfSync,
    ];

    /// DRBD's name of the event, first argument of the helper and option in the handlers section.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FencePeer => "fence-peer",
            Self::UnfencePeer => "unfence-peer",
            Self::InitialSplitBrain => "initial-split-brain",
            Self::SplitBrain => "split-brain",
            Self::PriLost => "pri-lost",
            Self::PriLostAfterSb => "pri-lost-after-sb",
            Self::PriOnInconDegr => "pri-on-incon-degr",
            Self::LocalIoError => "local-io-error",
            Self::BeforeResyncTarget => "before-resync-target",
            Self::AfterResyncTarget => "after-resync-target",
            Self::BeforeResyncSource => "before-resync-source",
            Self::OutOfSync => "out-of-sync",
        }
    }

    /// Whether the event concerns the connection (argument: the resource) instead of a volume (argument: the minor).
    #[must_use]
    pub const fn is_connection_event(self) -> bool {
        matches!(self, Self::FencePeer | Self::UnfencePeer)
    }
}
