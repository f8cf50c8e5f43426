//! The house keeps its rules: which room may know which, file lengths, words, a reason for every dependency.

use xtask::tidy;

#[test]
fn the_tree_is_tidy() {
    let findings = tidy::check(&tidy::root()).expect("the tree can be read");
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}
