//! The corpus in tests/data/config against what the real drbdadm 8.4 said about it.

use std::collections::BTreeSet;

use crate::config::load::FsLoader;
use crate::config::{Document, LocalNode, Report, load};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/config");

/// Values that 8.4's parser does not look at (its back end refuses them later); refused here at once.
const REFUSED_HERE: &[&str] = &["34-unknown-enum-values-pass"];
/// Dumps of 8.4 that do not parse again: bare keywords, numbers and addresses; two forms of `disk` in one section.
const DUMPED_BETTER: &[&str] = &["40-quoted-keywords", "41-loopback-pair-and-host-disk-section"];

fn names(sub: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(format!("{DIR}/{sub}")).unwrap();
    entries.filter_map(|e| Some(e.unwrap().file_name().to_str()?.strip_suffix(".conf")?.to_owned())).collect()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(format!("{DIR}/{path}")).unwrap()
}

fn directive(path: &str, name: &str) -> Option<String> {
    let text = text(path);
    text.lines().find_map(|l| l.strip_prefix(&format!("# {name}: "))).map(str::to_owned)
}

fn document(path: &str) -> Result<Document, Box<Report>> {
    load(&mut FsLoader, &format!("{DIR}/{path}"))
}

/// As the recorded files have it: without the corpus directory.
fn relative(text: &str) -> String {
    let canonical = std::fs::canonicalize(DIR).unwrap();
    text.replace(&format!("{}/", canonical.to_str().unwrap()), "").replace(&format!("{DIR}/"), "")
}

#[test]
fn valid_files_dump_as_drbdadm_dumps_them() {
    let names = names("valid");
    assert_eq!(names.len(), 41);
    for name in names {
        if REFUSED_HERE.contains(&name.as_str()) {
            continue;
        }
        let path = format!("valid/{name}.conf");
        let document = document(&path).unwrap_or_else(|report| panic!("{name}: {report}"));
        let node = directive(&path, "node").unwrap();
        let node = LocalNode::named(&node);
        let dump = document.dump(&node, false, false).unwrap();
        if !DUMPED_BETTER.contains(&name.as_str()) {
            assert_eq!(relative(&dump), text(&format!("valid/{name}.dump")), "{name}");
        }
        assert_eq!(relative(&document.dump_xml(&node, false).unwrap()), text(&format!("valid/{name}.xml")), "{name}");
        if let Ok(expected) = std::fs::read_to_string(format!("{DIR}/valid/{name}.dump-expanded")) {
            assert_eq!(relative(&document.dump(&node, true, false).unwrap()), expected, "{name}");
        }
    }
}

#[test]
fn dumps_read_back_to_the_same_dump() {
    for name in names("valid") {
        let path = format!("valid/{name}.conf");
        let Ok(document) = document(&path) else { continue };
        let node = directive(&path, "node").unwrap();
        let node = LocalNode::named(&node);
        for expanded in [false, true] {
            let first = document.dump(&node, expanded, false).unwrap();
            let again =
                crate::config::parse_text("x", &first).unwrap_or_else(|report| panic!("{name}: {report}\n{first}"));
            let second = again.dump(&node, expanded, false).unwrap();
            assert_eq!(without_comments(&first), without_comments(&second), "{name}");
        }
    }
}

fn without_comments(dump: &str) -> Vec<&str> {
    dump.lines().filter(|l| !l.starts_with('#')).collect()
}

#[test]
fn dumps_that_differ_from_8_4_differ_only_where_its_text_does_not_parse() {
    let dump = |name: &str| {
        document(&format!("valid/{name}.conf")).unwrap().dump(&LocalNode::named("alpha"), false, false).unwrap()
    };
    let quoted = dump("40-quoted-keywords");
    let theirs = text("valid/40-quoted-keywords.dump");
    let different: Vec<_> =
        quoted.lines().zip(theirs.lines()).skip(1).filter(|(a, b)| a != b).map(|(a, _)| a.trim()).collect();
    assert_eq!(
        different,
        [
            "# resource \"disk\" on alpha: not ignored, not stacked",
            &format!("# defined at {}/valid/40-quoted-keywords.conf:4", std::fs::canonicalize(DIR).unwrap().display()),
            "resource \"disk\" {",
            "disk             \"net\";",
            "on \"7\" {",
            "disk             \"net\";",
            "shared-secret    \"no\";",
            "cram-hmac-alg    \"10.0.0.1\";",
        ]
    );
    let wrapped = dump("41-loopback-pair-and-host-disk-section");
    assert!(
        wrapped.contains("    on alpha {\n        volume 0 {\n            disk {\n                al-extents 199;"),
        "{wrapped}"
    );
    assert!(wrapped.contains("    on beta {\n        volume 0 {\n            device       minor 81;"), "{wrapped}");
}

/// What our tool would find, for the commands that the corpus uses.
fn refusal(path: &str) -> Option<(Option<Report>, String)> {
    let node = directive(path, "node").unwrap();
    let node = LocalNode::named(&node);
    let report = |report: Box<Report>| Some((Some((*report).clone()), report.to_string()));
    let document = match document(path) {
        Ok(document) => document,
        Err(found) => return report(found),
    };
    let config = document.config();
    let error = |e: crate::config::ResolveError| Some((None, e.to_string()));
    match directive(path, "cmd").as_deref() {
        None => {
            if let Err(found) = document.dump(&node, false, false) {
                return report(found);
            }
            document.verify_addresses(&node).err().and_then(report)
        }
        Some("-d up all") => {
            assert_eq!(config.resolve_all(&node).unwrap(), []);
            Some((None, "nothing for this host".to_owned()))
        }
        Some("-d up s") => config.resolve("s", &node).err().and_then(error),
        Some("connect r") => config.resolve("r", &node).unwrap().peer(None).err().and_then(error),
        Some(other) => panic!("{other}"),
    }
}

#[test]
fn invalid_files_are_refused_on_the_line_that_drbdadm_names() {
    let names = names("invalid");
    assert_eq!(names.len(), 65);
    for name in names {
        let path = format!("invalid/{name}.conf");
        let (report, rendered) = refusal(&path).unwrap_or_else(|| panic!("{name} was accepted"));
        let expected = text(&format!("invalid/{name}.err"));
        let Some(report) = report else { continue };
        let lines: BTreeSet<(String, u32)> = report
            .diagnostics
            .list()
            .iter()
            .filter_map(|d| d.pos)
            .map(|p| (file_name(report.sources.name(p.file)), p.line))
            .collect();
        for (file, line) in expected.lines().filter(|l| !l.contains("first used here")).filter_map(location) {
            assert!(lines.contains(&(file.clone(), line)), "{name}: {file}:{line} not in\n{rendered}");
        }
        // What drbdadm says without a place has one here.
        assert!(!lines.is_empty(), "{name}");
    }
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap().to_owned()
}

/// `FILE:LINE:` at the begin of a recorded message.
fn location(line: &str) -> Option<(String, u32)> {
    let mut parts = line.splitn(3, ':');
    let file = parts.next()?;
    let line = parts.next()?.parse().ok()?;
    parts.next()?;
    Some((file_name(file), line))
}

#[test]
fn error_texts_are_as_recorded() {
    let mut all = String::new();
    for name in names("invalid") {
        let (_, rendered) = refusal(&format!("invalid/{name}.conf")).unwrap();
        all.push_str(&format!("== {name}\n{}\n", relative(&rendered)));
    }
    let path = format!("{DIR}/errors.txt");
    if std::env::var_os("UDRBD_BLESS").is_some() {
        std::fs::write(&path, &all).unwrap();
    }
    assert_eq!(all, text("errors.txt"), "set UDRBD_BLESS=1 to accept the new texts");
}
