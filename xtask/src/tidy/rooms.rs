//! Which room of the house may know which (ARCHITECTURE.md), read from the `crate::` paths of the source.
//!
//! Invariants: pure rooms name nothing that reaches outside (sockets, files, clock, threads) and nothing whose order differs
//! between two runs (`HashMap`), for that would break replay. Test code may know everything.

use std::path::Path;

use super::code_lines;

/// Every room with the rooms that it may use besides itself. A room that is not listed may be used by [`UNBOUND`] only.
const ROOMS: &[(&str, &[&str])] = &[
    ("units", &["limits"]),
    ("limits", &["units"]),
    ("wire", &["units", "limits"]),
    ("meta", &["units", "limits"]),
    ("config", &["units", "limits"]),
    ("undo", &["units", "limits", "meta"]),
    ("engine", &["units", "limits", "wire", "meta"]),
    ("sim", &["units", "limits", "wire", "meta", "undo", "engine"]),
    ("control", &["units", "limits", "wire", "meta", "config", "engine"]),
    ("disk", &["units", "limits", "wire", "meta", "engine"]),
    ("link", &["units", "limits", "wire", "engine"]),
    ("frontend", &["units", "limits", "engine"]),
    ("metrics", &["units", "limits", "control", "engine"]),
];

/// Rooms that wire the others together.
const UNBOUND: &[&str] = &["node", "main", "lib", "bin"];

/// Files that must stay pure: whole rooms, and single files of mixed ones (path prefixes below `src`).
const PURE: &[&str] = &[
    "units",
    "limits",
    "wire",
    "meta",
    "config",
    "undo",
    "engine",
    "sim",
    "control",
    "frontend/nbd/proto",
    "frontend/nbd/handshake",
    "frontend/nbd/transmission",
];

/// Driver files inside pure rooms.
const IMPURE: &[&str] = &["config/load", "undo/disk", "control/server", "control/client"];

/// What pure code must not name, and why.
const OUTSIDE: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("io_uring", "I/O"),
    ("rustix", "system calls"),
    ("libc", "system calls"),
    ("getrandom", "randomness"),
    ("std::fs", "files"),
    ("std::env", "the environment"),
    ("std::process", "processes"),
    ("std::thread", "threads"),
    ("std::os", "the operating system"),
    ("Instant::now", "a clock"),
    ("SystemTime", "a clock"),
    ("TcpStream", "sockets"),
    ("TcpListener", "sockets"),
    ("UdpSocket", "sockets"),
    ("UnixStream", "sockets"),
    ("UnixListener", "sockets"),
    ("HashMap", "an order that differs between runs"),
    ("HashSet", "an order that differs between runs"),
];

/// Rooms of the library that the admin tool may use: `disk` to work on metadata without the daemon, `node` only below
/// `demo`.
const ADMIN_TOOL: &[&str] = &["undo", "config", "meta", "wire", "control", "disk", "units", "limits"];

/// Findings for one Rust file, whose path is relative to the workspace's root.
pub fn check(path: &Path, text: &str) -> Vec<String> {
    let Some(place) = path.to_str() else {
        return vec![format!("{}: the name is not UTF-8", path.display())];
    };
    if let Some(inside) = place.strip_prefix("src/") {
        library(place, inside, text)
    } else if place.starts_with("drbdctl/src/") && !place.contains("/demo") {
        admin_tool(place, text)
    } else {
        Vec::new()
    }
}

fn library(place: &str, inside: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if inside.ends_with("/tests.rs") || inside.contains("/tests/") {
        return findings;
    }
    let room = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let allowed = ROOMS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
    if allowed.is_none() && !UNBOUND.contains(&room) {
        findings.push(format!("{place}:1: room `{room}` has no rule; add it to ROOMS in xtask/src/tidy/rooms.rs"));
    }
    if let Some(allowed) = allowed {
        for (line, used) in named_after("crate", text) {
            let known = ROOMS.iter().any(|(name, _)| *name == used) || UNBOUND.contains(&used.as_str());
            if known && used != room && !allowed.contains(&used.as_str()) {
                findings.push(format!("{place}:{line}: room `{room}` may not know `{used}`"));
            }
        }
    }
    let starts = |list: &[&str]| list.iter().any(|start| is_below(inside, start));
    if starts(PURE) && !starts(IMPURE) {
        for (line, code) in code_lines(text) {
            for (word, what) in OUTSIDE {
                if has_word(code, word) {
                    findings.push(format!("{place}:{line}: pure code names `{word}` ({what})"));
                }
            }
        }
    }
    findings
}

fn admin_tool(place: &str, text: &str) -> Vec<String> {
    let used = named_after("udrbd", text);
    let foreign = used.into_iter().filter(|(_, room)| {
        (ROOMS.iter().any(|(name, _)| name == room) || room == "node") && !ADMIN_TOOL.contains(&room.as_str())
    });
    foreign.map(|(line, room)| format!("{place}:{line}: the admin tool may not know `{room}`")).collect()
}

/// Whether `path` is the file or directory `start`, or something in it.
fn is_below(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.starts_with(['/', '.']))
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

/// The names that directly follow `root::` in the code, with their lines: one for `root::a::b`, several for
/// `root::{a::b, c}`.
fn named_after(root: &str, text: &str) -> Vec<(usize, String)> {
    // One string, so that a group may span lines.
    let mut code = String::new();
    let mut line_starts = Vec::new();
    for (_, line) in code_lines(text) {
        line_starts.push(code.len());
        code.push_str(line);
        code.push('\n');
    }
    let line_of = |at: usize| line_starts.partition_point(|start| *start <= at);
    let prefix = format!("{root}::");
    let mut names = Vec::new();
    for (at, _) in code.match_indices(&prefix) {
        if code[..at].chars().next_back().is_some_and(|before| is_name(before) || before == ':' || before == '$') {
            continue;
        }
        let start = at + prefix.len();
        let rest = &code[start..];
        if !rest.starts_with('{') {
            let name: String = rest.chars().take_while(|character| is_name(*character)).collect();
            names.push((line_of(at), name));
            continue;
        }
        let (mut depth, mut expecting, mut name, mut name_at) = (0_usize, false, String::new(), 0);
        for (offset, character) in rest.char_indices() {
            match character {
                '{' => {
                    depth += 1;
                    expecting = depth == 1;
                }
                '}' => depth -= 1,
                ',' => expecting = depth == 1,
                _ => {}
            }
            if depth == 1 && expecting && is_name(character) {
                if name.is_empty() {
                    name_at = start + offset;
                }
                name.push(character);
            } else if !name.is_empty() {
                names.push((line_of(name_at), std::mem::take(&mut name)));
                expecting = depth == 1 && character == ',';
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text)
    }

    #[test]
    fn use_groups_are_read() {
        let text =
            "use crate::{\n    engine::event::{Event, wire},\n    units::Sector,\n};\nfn f() { crate::disk::g() }\n";
        let names: Vec<_> = named_after("crate", text);
        let expected = [(2, "engine"), (3, "units"), (5, "disk")].map(|(line, name)| (line, name.to_owned()));
        assert_eq!(names, expected);
    }

    #[test]
    fn a_room_may_not_look_upwards() {
        assert_eq!(findings("src/wire/a.rs", "use crate::units::Sector;\nuse crate::limits;\n"), [""; 0]);
        assert_eq!(
            findings("src/wire/a.rs", "use crate::units::Sector;\nuse crate::engine::Event;\n"),
            ["src/wire/a.rs:2: room `wire` may not know `engine`"]
        );
        assert_eq!(findings("src/node/a.rs", "use crate::engine::Event;\n"), [""; 0]);
        assert_eq!(findings("src/disk/a.rs", "use crate::link::Link;\n").len(), 1);
    }

    #[test]
    fn a_new_room_needs_a_rule() {
        assert_eq!(findings("src/cellar/mod.rs", "").len(), 1);
    }

    #[test]
    fn pure_code_stays_inside() {
        assert_eq!(
            findings("src/engine/a.rs", "use std::collections::HashMap;\n"),
            ["src/engine/a.rs:1: pure code names `HashMap` (an order that differs between runs)"]
        );
        assert_eq!(findings("src/engine/a.rs", "// a HashMap would be wrong\nstruct MyHashMaps;\n"), [""; 0]);
        assert_eq!(findings("src/engine/a.rs", "#[cfg(test)]\nmod tests { use std::fs; }\n"), [""; 0]);
        assert_eq!(findings("src/control/server.rs", "use tokio::net::UnixListener;\n"), [""; 0]);
        assert_eq!(findings("src/frontend/nbd/proto.rs", "use tokio::io;\n").len(), 1);
        assert_eq!(findings("src/frontend/nbd/server.rs", "use tokio::io;\n"), [""; 0]);
    }

    #[test]
    fn the_admin_tool_runs_nodes_only_in_its_demo() {
        assert_eq!(findings("drbdctl/src/cmd/up.rs", "use udrbd::node::Node;\n").len(), 1);
        assert_eq!(findings("drbdctl/src/demo/mod.rs", "use udrbd::node::Node;\n"), [""; 0]);
        assert_eq!(findings("drbdctl/src/cmd/up.rs", "use udrbd::config::Model;\n"), [""; 0]);
    }
}
