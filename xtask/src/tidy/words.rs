//! Words that do not belong into the tree: marks of unfinished work, of a merge, and paths of somebody's machine.

use std::path::{Path, PathBuf};

/// Spelled in two halves, so that this file does not find itself.
const BANNED: &[(&str, &str, &str)] = &[
    ("TO", "DO", "unfinished work is not merged"),
    ("FIX", "ME", "unfinished work is not merged"),
    ("X", "XX", "unfinished work is not merged"),
    ("<<<<", "<<< ", "a merge conflict"),
    (">>>>", ">>> ", "a merge conflict"),
    ("/wo", "rk/", "a path of one machine"),
    ("/ho", "me/", "a path of one machine"),
];

/// Where foreign text lies that may contain anything.
const EXEMPT: &[&str] = &["tests/data", "Cargo.lock", "fuzz/Cargo.lock", "LICENSE-APACHE"];

/// Findings in all text files; what is not UTF-8 is not text.
pub fn check(root: &Path, files: &[PathBuf]) -> std::io::Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files.iter().filter(|path| !EXEMPT.iter().any(|exempt| path.starts_with(exempt))) {
        if let Ok(text) = String::from_utf8(std::fs::read(root.join(path))?) {
            findings.extend(in_text(&path.display().to_string(), &text));
        }
    }
    Ok(findings)
}

fn in_text(place: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for (head, tail, why) in BANNED {
            let word = format!("{head}{tail}");
            let is_mark = word.chars().all(|character| character.is_ascii_uppercase());
            let found = line.match_indices(&word).any(|(at, _)| {
                // A mark is a word of its own; `mktemp XXXXXX` is none.
                let alone = |neighbour: Option<char>| !neighbour.is_some_and(char::is_alphanumeric);
                !is_mark || (alone(line[..at].chars().next_back()) && alone(line[at + word.len()..].chars().next()))
            });
            if found {
                findings.push(format!("{place}:{}: `{word}`: {why}", index + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_as_words_only() {
        let mark = format!("{}{}", "TO", "DO");
        assert_eq!(in_text("a", &format!("x\n// {mark}: later\n")).len(), 1);
        assert_eq!(in_text("a", &format!("fn {mark}S() mktemp {}\n", "X".repeat(6))), [""; 0]);
    }
}
