//! Every dependency has its reason: each name in `[workspace.dependencies]` stands in ARCHITECTURE.md, in backquotes.

use std::path::Path;

/// Dependencies without a reason.
pub fn check(root: &Path) -> std::io::Result<Vec<String>> {
    let manifest = std::fs::read_to_string(root.join("Cargo.toml"))?;
    let reasons = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    Ok(without_reason(&manifest, &reasons)
        .into_iter()
        .map(|name| format!("ARCHITECTURE.md:1: dependency `{name}` of Cargo.toml has no reason here"))
        .collect())
}

fn without_reason(manifest: &str, reasons: &str) -> Vec<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path ="))
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.trim().to_owned()))
        .filter(|name| !name.starts_with('#') && !reasons.contains(&format!("`{name}`")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dependency_needs_its_name_in_the_text() {
        let manifest = "[workspace.dependencies]\nown = { path = \".\" }\na = \"1\"\nb = \"2\"\n\n[package]\nc = 1\n";
        assert_eq!(without_reason(manifest, "* `a`: because\n"), ["b"]);
    }
}
