//! Metadata made by `drbdctl` under the real `drbdmeta`, and the other way round. Skipped where drbdmeta is missing.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::Place;

struct Bench {
    tool: PathBuf,
    minor: u32,
    place: Place,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for trace in [
            format!("/var/lib/drbd/drbd-minor-{}.lkbd", self.minor),
            format!("/var/lock/drbd-147-{}", self.minor),
            format!("/run/lock/drbd-147-{}", self.minor),
        ] {
            let _ = fs::remove_file(trace);
        }
    }
}

impl Bench {
    /// `nr` tells the tests of this file apart.
    #[expect(clippy::print_stdout, reason = "says why the test does nothing")]
    fn new(nr: u32) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let Some(tool) = places.map(|dir| dir.join("drbdmeta")).find(|tool| tool.exists()) else {
            println!("skipped: drbdmeta is not installed");
            return None;
        };
        // Between the numbers that anybody uses and those of the library's tests.
        let minor = 200_000 + std::process::id() % 60_000 * 3 + nr;
        Some(Self { tool, minor, place: Place::new(minor) })
    }

    fn drbdmeta(&self, device: &str, index: &str, words: &[&str]) -> String {
        let mut command = Command::new(&self.tool);
        command.args(["--force", &self.minor.to_string(), "v08"]).arg(self.place.path(device)).arg(index).args(words);
        let output = command.output().expect("drbdmeta runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn assert_same(&self, resource: &str, device: &str, index: &str) {
        let ours = self.place.run(&format!("dump-md {resource}")).ok();
        assert_eq!(comparable(&ours), comparable(&self.drbdmeta(device, index, &["dump-md"])));
        for word in ["get-gi", "show-gi", "dstate"] {
            assert_eq!(self.place.run(&format!("{word} {resource}")).ok(), self.drbdmeta(device, index, &[word]));
        }
    }
}

/// A dump without time, host and command line, and without the flags, which drbdmeta 9.22 always shows as 0.
fn comparable(dump: &str) -> String {
    let lines =
        dump.lines().enumerate().filter(|(nr, line)| !(1..=2).contains(nr) && !line.starts_with("    flags 0x"));
    lines.map(|(_, line)| format!("{line}\n")).collect()
}

#[test]
fn what_drbdctl_makes_drbdmeta_reads() {
    let Some(bench) = Bench::new(0) else { return };
    bench.place.run("create-md all").ok();
    bench.assert_same("r0", "disk0", "internal");
    bench.assert_same("r1", "meta1", "flex-external");
    bench.place.run("create-md --force --al-stripes=2 --al-stripe-size-kB=64 r1").ok();
    bench.assert_same("r1", "meta1", "flex-external");
    bench.place.run("invalidate all").ok();
    bench.assert_same("r0", "disk0", "internal");
}

#[test]
fn what_drbdmeta_makes_drbdctl_reads_and_keeps_its_label() {
    let Some(bench) = Bench::new(1) else { return };
    bench.drbdmeta("disk0", "internal", &["create-md"]);
    bench.drbdmeta("disk0", "internal", &["write-dev-uuid", "0123456789ABCDEF"]);
    bench.drbdmeta("disk0", "internal", &["set-gi", "1234567890ABCDEF:2:3:4:1:1:0:1"]);
    bench.assert_same("r0", "disk0", "internal");
    bench.place.run("apply-al r0").ok();
    bench.place.run("outdate r0").ok();
    bench.assert_same("r0", "disk0", "internal");
    bench.place.run("create-md --force r0").ok();
    assert_eq!(bench.drbdmeta("disk0", "internal", &["read-dev-uuid"]), "0123456789ABCDEF\n");
    bench.place.run("wipe-md --force r0").ok();
    assert_eq!(bench.place.run("get-gi r0").code, 1);
}
