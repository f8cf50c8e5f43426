//! Properties over generated text: nothing panics, errors have places inside the text, dumps read back.

use proptest::prelude::*;

use crate::config::lexer::{Kind, Lexer};
use crate::config::{LocalNode, parse_text};

/// Words that make the generated text go deep.
const WORDS: &[&str] = &[
    "global",
    "common",
    "resource",
    "skip",
    "include",
    "on",
    "floating",
    "stacked-on-top-of",
    "net",
    "disk",
    "syncer",
    "startup",
    "handlers",
    "options",
    "proxy",
    "volume",
    "device",
    "minor",
    "meta-disk",
    "address",
    "ipv6",
    "protocol",
    "become-primary-on",
    "both",
    "inside",
    "plugin",
    "{",
    "}",
    ";",
    "[",
    "]",
    ":",
    "yes",
    "no",
    "C",
    "5",
    "10M",
    "timeout",
    "rate",
    "after",
    "no-tcp-cork",
    "allow-two-primaries",
    "10.0.0.1",
    "::1",
    "\"",
    "\"x\"",
    "#",
    "\n",
    "r0",
    "alpha",
    "/dev/drbd1",
    "/dev/sdb",
    "internal",
    "=",
    "ä",
    "\\",
    "99999999",
    "usage-count",
    "ask",
    "flexible-meta-disk",
];

/// Statements that are valid where they are put.
fn net() -> impl Strategy<Value = Vec<String>> {
    let option = prop_oneof![
        (1..=600_u32).prop_map(|n| format!("timeout {n};")),
        (1..=9_u32).prop_map(|n| format!("sndbuf-size {n}M;")),
        any::<bool>().prop_map(|b| format!("use-rle {};", if b { "yes" } else { "no" })),
        Just("always-asbp;".to_owned()),
        "[ -~]{0,40}".prop_map(|s| format!("shared-secret \"{}\";", s.replace('\\', "\\\\").replace('"', "\\\""))),
        "[a-zA-Z0-9./_-]{0,90}".prop_map(|s| format!("verify-alg \"{}\";", &s[..s.len().min(63)])),
        Just("after-sb-0pri discard-node-alpha;".to_owned()),
        Just("ko-count 7;".to_owned()),
    ];
    proptest::collection::vec(option, 0..5)
}

fn disk() -> impl Strategy<Value = Vec<String>> {
    let option = prop_oneof![
        (1..=4000_u32).prop_map(|n| format!("resync-rate {n}k;")),
        Just("rate 3M;".to_owned()),
        (67..=65534_u32).prop_map(|n| format!("al-extents {n};")),
        Just("no-disk-flushes;".to_owned()),
        Just("read-balancing 32K-striping;".to_owned()),
    ];
    proptest::collection::vec(option, 0..4)
}

prop_compose! {
    fn resource(index: usize)(
        net in net(),
        disk in disk(),
        volume_disk in disk(),
        host_disk in disk(),
        name in "[ -.0-~]{1,20}",
        handler in "[ -~]{0,30}",
        explicit in any::<bool>(),
        index_slot in proptest::option::of(0..100_u32),
        floating in any::<bool>(),
    ) -> String {
        let quote = |s: &str| format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\""));
        let meta = match index_slot { Some(slot) => format!("/dev/md{index}[{slot}]"), None => "internal".to_owned() };
        let volume = format!("device minor {index}; disk \"/dev/x {index}\"; meta-disk {meta};");
        let volume = if explicit { format!("volume 3 {{ {volume} disk {{ {} }} }}", volume_disk.join(" ")) } else { volume };
        let host_disk = if explicit { format!("volume 3 {{ disk {{ {} }} }}", host_disk.join(" ")) } else { format!("disk {{ {} }}", host_disk.join(" ")) };
        let hosts = if floating {
            format!("floating 10.0.0.1:{0} {{ {host_disk} }} floating ipv6 [2001:db8::2]:{0};", 7000 + index)
        } else {
            format!("on alpha {{ address 10.0.0.1:{0}; {host_disk} }} on \"be ta\" gamma {{ address 10.0.0.2:{0}; }}", 7000 + index)
        };
        format!("resource {} {{ net {{ {} }} disk {{ {} }} handlers {{ pri-lost {}; }} {volume} {hosts} }}\n",
            quote(&format!("{name}{index}")), net.join(" "), disk.join(" "), quote(&handler))
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_with_places_inside_it(text in "\\PC{0,200}") {
        no_panic(&text);
    }

    #[test]
    fn any_sequence_of_words_is_parsed_or_refused(words in proptest::collection::vec(proptest::sample::select(WORDS), 0..120)) {
        no_panic(&words.join(" "));
    }

    #[test]
    fn any_words_inside_a_resource(words in proptest::collection::vec(proptest::sample::select(WORDS), 0..60)) {
        no_panic(&format!("resource r {{ {} }} resource s {{ on alpha {{ {} }} }}", words.join(" "), words.join(" ")));
    }

    #[test]
    fn tokens_cover_the_text_in_order(text in "[ -~\\n\\tä]{0,100}") {
        let mut lexer = Lexer::new(&text, 0);
        let mut last = (1, 0);
        loop {
            let token = lexer.next_token();
            prop_assert!((token.pos.line, token.pos.col) > last);
            last = (token.pos.line, token.pos.col);
            if token.kind == Kind::End {
                break;
            }
        }
    }

    #[test]
    fn a_valid_text_dumps_to_one_that_dumps_to_the_same(first in resource(1), second in resource(2), common in net()) {
        let text = format!("common {{ net {{ {} }} }}\n{first}{second}", common.join(" "));
        let document = parse_text("a", &text).map_err(|r| TestCaseError::fail(format!("{r}\n{text}")))?;
        let node = LocalNode::named("alpha");
        for expanded in [false, true] {
            let dump = document.dump(&node, expanded, false).unwrap();
            let again = parse_text("a", &dump).map_err(|r| TestCaseError::fail(format!("{r}\n{dump}")))?;
            let second = again.dump(&node, expanded, false).unwrap();
            let plain = |s: &str| s.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(plain(&dump), plain(&second));
            if expanded {
                let mut theirs = again.config().clone();
                for (ours, theirs) in document.config().resources.iter().zip(&mut theirs.resources) {
                    theirs.place = ours.place.clone();
                    for (a, b) in ours.hosts.iter().zip(&mut theirs.hosts) {
                        for (a, b) in a.volumes.iter().zip(&mut b.volumes) {
                            b.implicit = a.implicit;
                        }
                    }
                }
                prop_assert_eq!(document.config(), &theirs);
            }
        }
        let json = serde_json::to_string(document.config()).unwrap();
        prop_assert_eq!(&serde_json::from_str::<crate::config::Config>(&json).unwrap(), document.config());
    }
}

fn no_panic(text: &str) {
    match parse_text("a", text) {
        Ok(document) => {
            let node = LocalNode::named("alpha");
            let _ = document.dump(&node, false, true);
            let _ = document.dump(&node, true, false);
            let _ = document.config().resolve_all(&node);
            let _ = document.config().not_yet_effective();
        }
        Err(report) => {
            assert!(report.diagnostics.errors() > 0);
            let lines = u32::try_from(text.lines().count()).unwrap() + 1;
            for pos in report.diagnostics.list().iter().filter_map(|d| d.pos) {
                assert!((1..=lines).contains(&pos.line), "{pos:?} in {text}");
            }
            assert!(!report.to_string().is_empty());
        }
    }
}
