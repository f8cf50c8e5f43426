//! Why two nodes do not connect, in plain words with the next command: for `status`, in text and as data.
//!
//! Takes in the engine's reason ([`Refused`]), gives out a [`Problem`]. The words speak of "this node" and "the peer"; its
//! name is used where it is known.

use serde::{Deserialize, Serialize};

use crate::engine::handshake::RefuseReason;
use crate::engine::refused::Refused;

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A word for programs; a word, once it has a meaning, keeps it.
    pub kind: String,
    /// A sentence for people.
    pub text: String,
    /// What to type next, in order; those that belong on the peer say so.
    #[serde(default)]
    pub next: Vec<String>,
}

impl Problem {
    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        if self.next.is_empty() {
            self.text.clone()
        } else {
            format!("{}; next: {}", self.text, self.next.join(", then "))
        }
    }
}

/// The problem behind a reason.
#[must_use]
pub fn problem(resource: &str, peer: Option<&str>, refused: &Refused) -> Problem {
    let peer = peer.map_or_else(|| "the peer".to_owned(), |name| format!("the peer {name}"));
    let connect = format!("drbdctl connect {resource}");
    let make = |kind: &str, text: String, next: Vec<String>| Problem { kind: kind.to_owned(), text, next };
    match refused {
        Refused::Handshake { volume, reason } => handshake(resource, &format!("{resource}/{volume}"), &peer, *reason),
        Refused::Settings { what } => make(
            "settings",
            format!("the setting {what} is not the same on this node and on {peer}"),
            vec!["make the two configurations agree".to_owned(), connect],
        ),
        Refused::TooSmall { volume } => make(
            "too-small",
            format!("the disk of {peer} is too small for the data of {resource}/{volume}"),
            vec!["give that node a disk that is large enough".to_owned(), connect],
        ),
        Refused::OtherGeneration { volume } => make(
            "other-generation",
            format!(
                "this node is Primary without a disk of {resource}/{volume}, and {peer} does not have the data that its \
                 applications have seen"
            ),
            vec!["attach the disk of this node, or end its applications and make it Secondary".to_owned(), connect],
        ),
        Refused::State { volume, result } => make(
            "state",
            format!("the states of {resource}/{volume} on both nodes do not go together: {}", result.text()),
            vec![connect],
        ),
        Refused::Link { reason } => make("link", format!("{peer} and this node do not talk: {reason}"), vec![connect]),
    }
}

fn handshake(resource: &str, volume: &str, peer: &str, reason: RefuseReason) -> Problem {
    let connect = format!("drbdctl connect {resource}");
    let (kind, text, next) = match reason {
        RefuseReason::SplitBrain => (
            "split-brain",
            format!(
                "split brain: this node and {peer} have both changed {volume} without each other, and nothing is \
                 overwritten until you say whose changes are to go"
            ),
            vec![format!("drbdctl split-brain {resource}")],
        ),
        RefuseReason::Unrelated => (
            "unrelated",
            format!("the data of {volume} here and those of {peer} have no common past"),
            vec![format!(
                "where the data are to be replaced: drbdctl down {resource}, drbdctl create-md {resource}, drbdctl up \
                 {resource}"
            )],
        ),
        RefuseReason::NeedsVersion(version) => (
            "needs-version",
            format!("only protocol {version} or a newer one can tell whether {volume} here or that of {peer} is newer"),
            vec!["update the older node".to_owned()],
        ),
        RefuseReason::NeedsFeature { version, feature } => (
            "needs-feature",
            format!(
                "only protocol {version} with the features {feature:#x} can tell whether {volume} here or that of {peer} \
                 is newer"
            ),
            vec!["update the older node".to_owned()],
        ),
        RefuseReason::NewerInconsistent => (
            "newer-inconsistent",
            format!(
                "the latest writes of {volume} are on the node whose disk is Inconsistent; the older data of the other one \
                 do not replace them unasked"
            ),
            vec![format!(
                "to go on with the older data, where the disk is Inconsistent: drbdctl connect --discard-my-data \
                 {resource}; to go on with the newer ones, there: drbdctl primary --force {resource}"
            )],
        ),
        RefuseReason::SourceInconsistent => (
            "source-inconsistent",
            format!("the node that would have to send {volume} has no consistent data itself"),
            vec![format!("where the better data are: drbdctl primary --force {resource}"), connect],
        ),
        RefuseReason::TargetIsPrimary => (
            "target-is-primary",
            format!("this node would have to take over the data of {peer} on {volume}, but is Primary"),
            vec![format!("drbdctl secondary {resource}"), connect],
        ),
        RefuseReason::PeerIsPrimary => (
            "peer-is-primary",
            format!("{peer} would have to take over the data of this node on {volume}, but is Primary"),
            vec![format!("on {peer}: drbdctl secondary {resource}"), connect],
        ),
        RefuseReason::DryRun => (
            "tentative",
            format!("the last connect of {resource} was tentative: it only computed what would happen (see the log)"),
            vec![connect],
        ),
    };
    Problem { kind: kind.to_owned(), text, next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VolumeNr;

    #[test]
    fn a_split_brain_names_the_command_that_explains_it() {
        let refused = Refused::Handshake { volume: VolumeNr(0), reason: RefuseReason::SplitBrain };
        let told = problem("r0", Some("n2"), &refused);
        assert_eq!(told.kind, "split-brain");
        assert!(told.line().contains("this node and the peer n2"), "{}", told.line());
        assert!(told.line().ends_with("next: drbdctl split-brain r0"), "{}", told.line());
    }

    #[test]
    fn settings_name_the_one_that_differs() {
        let told = problem("r0", None, &Refused::Settings { what: "protocol" });
        assert!(told.text.contains("the setting protocol"), "{}", told.text);
        assert_eq!(told.next.last().map(String::as_str), Some("drbdctl connect r0"));
    }
}
