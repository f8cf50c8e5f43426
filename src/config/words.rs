//! The words that options take: enumerations with DRBD's spelling, the same in files, on command lines and in JSON.
//!
//! Source: config-and-commands.md 5.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An enumeration whose variants have DRBD's words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All values in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// DRBD's words in the same order.
            pub const WORDS: &'static [&'static str] = &[$($text,)+];

            /// DRBD's word for this value.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The value of a word; words are case sensitive.
            #[must_use]
            pub fn from_text(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.text() == text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.text())
            }
        }
    };
}

words!(
    /// When a write counts as done.
    Protocol {
        /// Local disk, and the packet is in the send buffer.
        A = "A",
        /// Local disk, and the peer has received it.
        B = "B",
        /// Both disks.
        C = "C",
    }
);
words!(
    /// What to do after a split brain with one Primary at connect time.
    AfterSb1Pri {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// As the 0pri policy says, if that picks the Secondary as victim; else disconnect.
        Consensus = "consensus",
        /// The Secondary is the victim.
        DiscardSecondary = "discard-secondary",
        /// As the 0pri policy; if it picks the Primary, call its handler.
        CallPriLost = "call-pri-lost-after-sb",
        /// As the 0pri policy even if that changes data under the Primary.
        ViolentlyAs0p = "violently-as0p",
    }
);
words!(
    /// What to do after a split brain with two Primaries at connect time.
    AfterSb2Pri {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// As the 0pri policy; the loser's handler is called.
        CallPriLost = "call-pri-lost-after-sb",
        /// As the 0pri policy even if that changes data under a Primary.
        ViolentlyAs0p = "violently-as0p",
    }
);
words!(
    /// What to do when the direction of a resync contradicts the roles.
    RrConflict {
        /// Drop the connection.
        Disconnect = "disconnect",
        /// Call the handler `pri-lost` on the Primary that would become the target.
        CallPriLost = "call-pri-lost",
        /// Sync over a Primary.
        Violently = "violently",
    }
);
words!(
    /// What to do when the send queue is full.
    OnCongestion {
        /// Let writers wait.
        Block = "block",
        /// Stop mirroring for a while (Ahead/Behind).
        PullAhead = "pull-ahead",
        /// Drop the connection.
        Disconnect = "disconnect",
    }
);
words!(
    /// What to do with an error of the backing device.
    OnIoError {
        /// Hand it to the application (writes: mark the blocks out of sync).
        PassOn = "pass_on",
        /// Call the handler `local-io-error`, then detach.
        CallHandler = "call-local-io-error",
        /// Go on without the disk.
        Detach = "detach",
    }
);
words!(
    /// What to do when a Primary loses its peer.
    Fencing {
        /// Nothing.
        DontCare = "dont-care",
        /// Call the handler `fence-peer`.
        ResourceOnly = "resource-only",
        /// Freeze I/O and call the handler `fence-peer`.
        ResourceAndStonith = "resource-and-stonith",
    }
);
words!(
    /// Where a Primary reads.
    ReadBalancing {
        /// The local disk.
        PreferLocal = "prefer-local",
        /// The peer's disk.
        PreferRemote = "prefer-remote",
        /// By turns.
        RoundRobin = "round-robin",
        /// Where fewer requests are in flight.
        LeastPending = "least-pending",
        /// The peer's, when the local disk is congested.
        WhenCongestedRemote = "when-congested-remote",
        /// By turns in chunks of 32 KiB.
        Striping32K = "32K-striping",
        /// By turns in chunks of 64 KiB.
        Striping64K = "64K-striping",
        /// By turns in chunks of 128 KiB.
        Striping128K = "128K-striping",
        /// By turns in chunks of 256 KiB.
        Striping256K = "256K-striping",
        /// By turns in chunks of 512 KiB.
        Striping512K = "512K-striping",
        /// By turns in chunks of 1 MiB.
        Striping1M = "1M-striping",
    }
);
words!(
    /// What requests see when no disk with good data can be reached.
    OnNoData {
        /// An I/O error.
        IoError = "io-error",
        /// They wait.
        SuspendIo = "suspend-io",
    }
);
words!(
    /// Whether this installation may be counted; kept for compatibility, never acted on.
    UsageCount {
        /// Yes.
        Yes = "yes",
        /// No.
        No = "no",
        /// Ask.
        Ask = "ask",
    }
);
words!(
    /// Events that can run a shell command.
    Handler {
        /// A Primary lost its last good data.
        PriOnInconDegr = "pri-on-incon-degr",
        /// A Primary lost the recovery from a split brain.
        PriLostAfterSb = "pri-lost-after-sb",
        /// A Primary should become target of a resync.
        PriLost = "pri-lost",
        /// The connection was lost and `fencing` asks for it.
        FencePeer = "fence-peer",
        /// The resync after fencing is done.
        UnfencePeer = "unfence-peer",
        /// The backing device failed and `on-io-error` asks for it.
        LocalIoError = "local-io-error",
        /// A split brain was seen, before the policies.
        InitialSplitBrain = "initial-split-brain",
        /// A split brain stays unresolved.
        SplitBrain = "split-brain",
        /// Before becoming target of a resync; a failure drops the connection.
        BeforeResyncTarget = "before-resync-target",
        /// A resync to this node is done.
        AfterResyncTarget = "after-resync-target",
        /// Before becoming source of a resync; a failure drops the connection.
        BeforeResyncSource = "before-resync-source",
        /// An online verify found differences.
        OutOfSync = "out-of-sync",
    }
);
words!(
    /// Address family of a replication address.
    Family {
        /// TCP over IPv4.
        Ipv4 = "ipv4",
        /// TCP over IPv6.
        Ipv6 = "ipv6",
        /// Super sockets (Dolphin); parsed and printed only.
        Ssocks = "ssocks",
        /// Sockets direct protocol; parsed and printed only.
        Sdp = "sdp",
    }
);

/// What to do after a split brain without a Primary at connect time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AfterSb0Pri {
    /// Drop the connection.
    Disconnect,
    /// The node that became Primary later is the victim.
    DiscardYoungerPrimary,
    /// The node that became Primary earlier is the victim.
    DiscardOlderPrimary,
    /// A node without changes is the victim; else disconnect.
    DiscardZeroChanges,
    /// The node with fewer changed blocks is the victim.
    DiscardLeastChanges,
    /// This node is the victim.
    DiscardLocal,
    /// The peer is the victim.
    DiscardRemote,
    /// The named host is the victim (only in files: becomes local or remote when a resource is resolved for a host).
    DiscardNode(String),
}

const AFTER_SB_0PRI: &[(&str, AfterSb0Pri)] = &[
    ("disconnect", AfterSb0Pri::Disconnect),
    ("discard-younger-primary", AfterSb0Pri::DiscardYoungerPrimary),
    ("discard-older-primary", AfterSb0Pri::DiscardOlderPrimary),
    ("discard-zero-changes", AfterSb0Pri::DiscardZeroChanges),
    ("discard-least-changes", AfterSb0Pri::DiscardLeastChanges),
    ("discard-local", AfterSb0Pri::DiscardLocal),
    ("discard-remote", AfterSb0Pri::DiscardRemote),
];

impl AfterSb0Pri {
    /// DRBD's words; `discard-node-NAME` stands for one per host.
    pub const WORDS: &'static [&'static str] = &[
        "disconnect",
        "discard-younger-primary",
        "discard-older-primary",
        "discard-zero-changes",
        "discard-least-changes",
        "discard-local",
        "discard-remote",
        "discard-node-NAME",
    ];

    /// The value of a word.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if let Some((_, value)) = AFTER_SB_0PRI.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let name = text.strip_prefix("discard-node-")?;
        (!name.is_empty()).then(|| Self::DiscardNode(name.to_owned()))
    }
}

impl fmt::Display for AfterSb0Pri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiscardNode(name) => write!(f, "discard-node-{name}"),
            other => match AFTER_SB_0PRI.iter().find(|(_, value)| value == other) {
                Some((word, _)) => f.write_str(word),
                None => Ok(()),
            },
        }
    }
}

impl From<AfterSb0Pri> for String {
    fn from(value: AfterSb0Pri) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for AfterSb0Pri {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("'{text}' is no after-sb-0pri policy"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discard_node_needs_a_name() {
        assert_eq!(AfterSb0Pri::from_text("discard-node-n1"), Some(AfterSb0Pri::DiscardNode("n1".to_owned())));
        assert_eq!(AfterSb0Pri::from_text("discard-node-"), None);
        for word in AfterSb0Pri::WORDS {
            assert_eq!(AfterSb0Pri::from_text(word).unwrap().to_string(), **word);
        }
    }

    #[test]
    fn words_go_both_ways() {
        for value in ReadBalancing::ALL {
            assert_eq!(ReadBalancing::from_text(value.text()), Some(*value));
            assert_eq!(serde_json::to_string(value).unwrap(), format!("\"{value}\""));
        }
        assert_eq!(ReadBalancing::from_text("Prefer-Local"), None);
    }
}
