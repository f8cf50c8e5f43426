//! Files stay short. A file that is longer than the limit is listed with its length in `xtask/length-ratchet.txt`; it may
//! shrink, but not grow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::code_lines;

/// Most lines of code (without blank lines, comments and the tests at its end) that a file has without being listed.
pub const LINES_MAX: usize = 500;

/// The list, relative to the workspace's root.
pub const RATCHET: &str = "xtask/length-ratchet.txt";

fn long_files(root: &Path, files: &[PathBuf]) -> std::io::Result<BTreeMap<String, usize>> {
    let mut long = BTreeMap::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs")) {
        let text = std::fs::read_to_string(root.join(path))?;
        let count = code_lines(&text).filter(|(_, code)| !code.trim().is_empty()).count();
        if count > LINES_MAX {
            long.insert(path.display().to_string(), count);
        }
    }
    Ok(long)
}

fn listed(root: &Path) -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(root.join(RATCHET)).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(count, path)| Some((path.to_owned(), count.parse().ok()?)))
        .collect()
}

/// Files that grew beyond what they may have, and list entries that allow more than is there.
pub fn check(root: &Path, files: &[PathBuf]) -> std::io::Result<Vec<String>> {
    let (long, listed) = (long_files(root, files)?, listed(root));
    let mut findings = Vec::new();
    for (path, count) in &long {
        let limit = listed.get(path).copied().unwrap_or(LINES_MAX);
        if *count > limit {
            findings.push(format!("{path}:1: {count} lines of code, the limit is {limit}: split it by concern"));
        }
    }
    for path in listed.keys().filter(|path| !long.contains_key(*path)) {
        findings.push(format!("{RATCHET}:1: {path} is short enough: run `cargo xtask tidy --bless`"));
    }
    Ok(findings)
}

/// Writes the list anew. Entries only shrink: a file that grew keeps its old number, and a new one is listed only with
/// `admit`.
pub fn bless(root: &Path, files: &[PathBuf], admit: bool) -> std::io::Result<()> {
    let old = listed(root);
    let mut text = String::new();
    for (path, count) in long_files(root, files)? {
        let limit = match old.get(&path) {
            Some(limit) if !admit => count.min(*limit),
            None if !admit => continue,
            _ => count,
        };
        let _ = writeln!(text, "{limit} {path}");
    }
    if text.is_empty() {
        match std::fs::remove_file(root.join(RATCHET)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    } else {
        std::fs::write(root.join(RATCHET), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_only_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("xtask")).unwrap();
        let files = [PathBuf::from("a.rs")];
        let put =
            |lines: usize| std::fs::write(dir.path().join("a.rs"), "let x = 1;\n\n// why\n".repeat(lines)).unwrap();
        put(500);
        assert_eq!(check(dir.path(), &files).unwrap(), [""; 0]);
        put(501);
        assert_eq!(check(dir.path(), &files).unwrap().len(), 1);
        bless(dir.path(), &files, false).unwrap();
        assert_eq!(check(dir.path(), &files).unwrap().len(), 1);
        bless(dir.path(), &files, true).unwrap();
        assert_eq!(check(dir.path(), &files).unwrap(), [""; 0]);
        put(502);
        bless(dir.path(), &files, false).unwrap();
        assert_eq!(check(dir.path(), &files).unwrap().len(), 1);
        put(100);
        assert_eq!(check(dir.path(), &files).unwrap().len(), 1);
        bless(dir.path(), &files, false).unwrap();
        assert!(!dir.path().join(RATCHET).exists());
        assert_eq!(check(dir.path(), &files).unwrap(), [""; 0]);
    }
}
