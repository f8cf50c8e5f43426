//! docs/scenarios.md against the tree: every S-number has its row, every test in it exists, and the seeded bugs in it are those that the
//! stories inject.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::fault::Fault;

const TABLE: &str = include_str!("../../../docs/scenarios.md");
const STORIES: [&str; 10] = [
    include_str!("activity_log.rs"),
    include_str!("blocks.rs"),
    include_str!("congestion.rs"),
    include_str!("generations.rs"),
    include_str!("liveness.rs"),
    include_str!("policies.rs"),
    include_str!("resync.rs"),
    include_str!("suspended.rs"),
    include_str!("two_primaries.rs"),
    include_str!("writes.rs"),
];

struct Row {
    nr: u32,
    tests: Vec<String>,
    bugs: BTreeSet<String>,
    waits: String,
}

/// The words in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = String> + '_ {
    cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned)
}

fn rows() -> Vec<Row> {
    let rows = TABLE.lines().filter(|line| line.starts_with("| S") && !line.starts_with("| S |"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [nr, _, tests, bugs, waits] = cells[..] else { panic!("five columns: {line}") };
        Row {
            nr: nr[1..].parse().unwrap(),
            tests: quoted(tests).collect(),
            bugs: quoted(bugs).collect(),
            waits: waits.to_owned(),
        }
    })
    .collect()
}

/// Every story by its name, with the names of the bugs that it injects.
fn stories() -> BTreeMap<String, BTreeSet<String>> {
    let tests = STORIES.iter().flat_map(|file| file.split("#[test]\nfn ").skip(1));
    tests
        .map(|text| {
            let name = text.split('(').next().unwrap().to_owned();
            let bug = |rest: &str| {
                let variant = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap();
                let found = Fault::ALL.iter().find(|fault| format!("{fault:?}") == variant);
                found.unwrap_or_else(|| panic!("{variant} is no fault")).name().to_owned()
            };
            // Not those of the disks.
            let text = text.replace("DiskFault::", "");
            let bugs = text.split("Fault::").skip(1).map(bug).collect();
            (name, bugs)
        })
        .collect()
}

#[test]
fn every_story_has_one_row_with_a_test_or_what_it_waits_for() {
    let rows = rows();
    assert_eq!(rows.iter().map(|row| row.nr).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    for row in rows {
        assert!(!row.tests.is_empty() || !row.waits.is_empty(), "S{} has neither a test nor a reason", row.nr);
    }
}

#[test]
fn every_test_in_the_table_exists() {
    let root = xtask::tidy::root();
    let mut tree = String::new();
    for path in xtask::tidy::files(&root).unwrap() {
        if path.extension().is_some_and(|ext| ext == "rs") {
            tree.push_str(&std::fs::read_to_string(root.join(path)).unwrap());
        }
    }
    for row in rows() {
        for test in row.tests {
            assert!(tree.contains(&format!("fn {test}(")), "S{}: there is no test {test}", row.nr);
        }
    }
}

#[test]
fn every_story_is_in_its_row_with_the_bugs_that_it_notices() {
    let stories = stories();
    for row in rows() {
        let mine: Vec<_> = stories.iter().filter(|(name, _)| name.starts_with(&format!("s{:02}_", row.nr))).collect();
        for (name, _) in &mine {
            assert!(row.tests.contains(name), "S{}: {name} is not in the table", row.nr);
        }
        let bugs: BTreeSet<String> = mine.iter().flat_map(|(_, bugs)| (*bugs).clone()).collect();
        assert_eq!(row.bugs, bugs, "S{}", row.nr);
    }
}

#[test]
fn every_mended_defect_has_a_story_that_notices_it() {
    let root = xtask::tidy::root();
    let stories = xtask::tidy::files(&root).unwrap().into_iter().filter(|path| path.starts_with("src/sim/scenarios"));
    let text: String = stories.map(|path| std::fs::read_to_string(root.join(path)).unwrap()).collect();
    for fault in Fault::MENDED {
        let injects = ["]", ","].iter().any(|end| text.contains(&format!("&[Fault::{fault:?}{end}")));
        assert!(injects, "no story injects {}", fault.name());
    }
}
