//! Metadata made by `drbdctl` under the real `drbdmeta`, and the other way round. Skipped where drbdmeta is missing.

mod common;

#[path = "../../tests/drbdmeta_common/mod.rs"]
mod drbdmeta_common;

use common::Place;
use drbdmeta_common::{Tool, comparable};

struct Bench {
    tool: Tool,
    place: Place,
}

impl Bench {
    /// `nr` tells the tests of this file apart.
    fn new(nr: u32) -> Option<Self> {
        let tool = Tool::find(nr)?;
        let place = Place::new(tool.minor);
        Some(Self { tool, place })
    }

    fn drbdmeta(&self, device: &str, index: &str, words: &[&str]) -> String {
        self.tool.text(&self.place.path(device), index, words)
    }

    fn assert_same(&self, resource: &str, device: &str, index: &str) {
        let ours = self.place.run(&format!("dump-md {resource}")).ok();
        assert_eq!(comparable(&ours), comparable(&self.drbdmeta(device, index, &["dump-md"])));
        for word in ["get-gi", "show-gi", "dstate"] {
            assert_eq!(self.place.run(&format!("{word} {resource}")).ok(), self.drbdmeta(device, index, &[word]));
        }
    }
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
