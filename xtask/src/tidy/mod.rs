//! What a compiler does not check. Every finding is one line: `file:line: what is wrong`.

pub mod deps;
pub mod length;
pub mod rooms;
pub mod words;

use std::path::{Path, PathBuf};

/// The workspace's root directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// All files of the tree that belong to it, as paths relative to `root`, sorted. Build products and what git ignores at the
/// top (`target`, `fuzz/target`, `fuzz/corpus`) are not looked into.
pub fn files(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(root.join(dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let skipped = [".git", "target", "fuzz/target", "fuzz/corpus", "fuzz/artifacts"];
                if !skipped.iter().any(|skipped| path == Path::new(skipped)) {
                    walk(root, &path, found)?;
                }
            } else if kind.is_file() && path != Path::new(".git") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found)?;
    found.sort();
    Ok(found)
}

/// Everything that is wrong with the tree at `root`.
pub fn check(root: &Path) -> std::io::Result<Vec<String>> {
    let mut findings = Vec::new();
    let files = files(root)?;
    let rust = files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    for path in rust {
        let text = std::fs::read_to_string(root.join(path))?;
        findings.extend(rooms::check(path, &text));
    }
    findings.extend(length::check(root, &files)?);
    findings.extend(words::check(root, &files)?);
    findings.extend(deps::check(root)?);
    Ok(findings)
}

/// The part of a Rust file before its tests, line by line with comments blanked, numbered from 1.
pub(crate) fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .map(|(index, line)| (index + 1, line.split_once("//").map_or(line, |(code, _comment)| code)))
}
