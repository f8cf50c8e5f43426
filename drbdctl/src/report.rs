//! Refusals for people: drbdsetup's own lines first, then what failed, why, and what to do.

use udrbd::control::{ErrorKind, ErrorReply};

use crate::out;

/// An exit code whose reason has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

/// Result of a command; an error has been told already.
pub type Done<T = ()> = Result<T, Exit>;

/// What was tried.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// As drbdsetup calls the object: a minor, a resource, or `??`.
    pub object: String,
    /// As people call it: `r0` or `r0/0`.
    pub label: String,
    /// The command word.
    pub word: &'static str,
}

/// Tells a refusal and gives its exit code.
pub fn refused(attempt: &Attempt, error: &ErrorReply) -> Exit {
    let Attempt { object, label, word } = attempt;
    out::say(&error.message(object));
    if let Some(next) = next_step(word, label, error) {
        let why = error.text.lines().find(|line| !line.is_empty()).unwrap_or("refused").trim_end_matches('.');
        out::say(&format!("{label}: {word} failed: {why}; {next}"));
    }
    Exit(error.exit_code())
}

/// What to do about a refusal, where that can be said.
fn next_step(word: &str, label: &str, error: &ErrorReply) -> Option<String> {
    let resource = label.split('/').next().unwrap_or(label);
    Some(match (error.kind, error.code) {
        (ErrorKind::State, -1) => {
            "make the peer Secondary first; two Primaries at a time need allow-two-primaries".to_owned()
        }
        (ErrorKind::State, -2) if word == "primary" => format!(
            "attach a disk with good data or connect to a peer that has one; if the data of this node are the ones to \
             keep: drbdctl primary --force {label}"
        ),
        (ErrorKind::State, -2) if word == "detach" => {
            format!("this is the last good copy in reach; to detach all the same: drbdctl detach --force {label}")
        }
        (ErrorKind::State, -2) => "attach a disk with good data, or connect to a peer that has one".to_owned(),
        (ErrorKind::State, -7) => "see that the peer is stopped or outdated, then try again".to_owned(),
        (ErrorKind::State, -8) => format!("wait for its end with drbdctl wait-sync {label}"),
        (ErrorKind::State, -10) => "the log of the peer says why".to_owned(),
        (ErrorKind::State, -12) => "end the programs and mounts that use it, then try again".to_owned(),
        (ErrorKind::State, -13 | -15 | -21) => format!("connect first: drbdctl connect {resource}"),
        (ErrorKind::State, -11) => format!("attach a disk first: drbdctl attach {label}"),
        (ErrorKind::State, -18 | -19) => "try again in a moment".to_owned(),
        (ErrorKind::Err, 102) => {
            format!("{resource} is connected or connecting already, or another resource uses its address")
        }
        (ErrorKind::Err, 103) => "another resource is connected to that address".to_owned(),
        (ErrorKind::Err, 104 | 105) => "check the path and the permissions".to_owned(),
        (ErrorKind::Err, 106 | 114 | 115) => "find out who uses the device, and end that".to_owned(),
        (ErrorKind::Err, 111 | 112) => "use a larger device".to_owned(),
        (ErrorKind::Err, 119) => format!("drbdctl create-md {label}"),
        (ErrorKind::Err, 123) => "make it Secondary first".to_owned(),
        (ErrorKind::Err, 124) => format!("drbdctl detach {label}"),
        (ErrorKind::Err, 125) => format!("drbdctl disconnect {resource}"),
        (ErrorKind::Err, 127 | 158) => format!("drbdctl up {resource}"),
        (ErrorKind::Err, 162) if word == "disconnect" => format!("{resource} has no connection; nothing to do"),
        (ErrorKind::Err, 138) => format!("drbdctl attach {label}"),
        (ErrorKind::Err, 151) => format!("drbdctl disconnect {resource}"),
        (ErrorKind::Err, 159 | 160) => format!("drbdctl down {resource}"),
        (ErrorKind::Err, 165) => format!("drbdctl apply-al {label}"),
        (ErrorKind::Err, 170) => "use the device at its former size, or invalidate its data first".to_owned(),
        _ => return None,
    })
}
