//! Images that a crash left behind, under the real `drbdmeta`: the same verdict, bits and identifiers, before and after
//! `apply-al`. Skipped where it is not installed. A few images of every scenario, drawn by the seed of the test run.

#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "../../../../tests/drbdmeta_common/mod.rs"]
mod drbdmeta_common;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use drbdmeta_common::{Tool, comparable};

use super::super::record::SECTOR;
use super::super::{SampledImage, Scenario, sample};
use super::{first_seed, number};
use crate::meta::offline::{self, DumpOptions};
use crate::meta::text::dump::DumpHeader;
use crate::meta::{MemIo, MetaError, MetaIo};

/// Images of each test run; more with UDRBD_CRASH_IMAGES in the environment.
const FEW: usize = 28;

#[derive(Debug, Default)]
struct Told {
    images: usize,
    applied: usize,
}

fn in_memory(image: &SampledImage) -> MemIo {
    let mut io = MemIo::new(image.size_bytes);
    for (sector, bytes) in &image.sectors {
        io.write_at(sector * SECTOR as u64, bytes).expect("inside");
    }
    io
}

fn in_file(image: &SampledImage, path: &Path) {
    let file = File::create(path).expect("file");
    file.set_len(image.size_bytes).expect("sparse");
    for (sector, bytes) in &image.sectors {
        file.write_all_at(bytes, sector * SECTOR as u64).expect("inside");
    }
}

fn our_dump(image: &SampledImage, io: &mut MemIo) -> Result<String, MetaError> {
    let meta = offline::open(io, image.place)?;
    let mut out = Vec::new();
    let header = DumpHeader { time: "TIME", host: "HOST", command: "COMMAND" };
    meta.dump(io, &mut out, &header, DumpOptions { force: true, with_al: false, relocated: None })?;
    Ok(String::from_utf8(out).expect("text"))
}

/// Both sides' dump, or that there is nothing to dump.
fn same(image: &SampledImage, io: &mut MemIo, tool: &Tool, path: &Path) -> bool {
    let theirs = tool.run(path, &image.place.kind.to_string(), &["dump-md"]);
    match our_dump(image, io) {
        Ok(ours) => {
            assert!(theirs.status.success(), "{}: {theirs:?}", image.name);
            let text = String::from_utf8(theirs.stdout).expect("text");
            assert_eq!(comparable(&ours), comparable(&text), "{}", image.name);
            true
        }
        Err(error) => {
            assert!(!theirs.status.success(), "{}: {error}, but drbdmeta: {theirs:?}", image.name);
            false
        }
    }
}

#[test]
fn crash_images_look_the_same_to_drbdmeta() {
    let Some(tool) = Tool::find(7) else { return };
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("disk");
    let count = number("UDRBD_CRASH_IMAGES").and_then(|n| usize::try_from(n).ok()).unwrap_or(FEW);
    let images = sample(first_seed(), count).expect("played");
    let mut told: BTreeMap<Scenario, Told> = BTreeMap::new();
    for image in &images {
        let told = told.entry(image.scenario).or_default();
        told.images += 1;
        in_file(image, &path);
        let mut io = in_memory(image);
        if !same(image, &mut io, &tool, &path) {
            continue;
        }
        let theirs = tool.run(&path, &image.place.kind.to_string(), &["apply-al"]);
        match offline::apply_al(&mut io, image.place) {
            Ok(_) => {
                assert!(theirs.status.success(), "{}: {theirs:?}", image.name);
                told.applied += 1;
            }
            Err(error) => {
                assert_eq!(theirs.status.code(), Some(1), "{}: {error}, but {theirs:?}", image.name);
            }
        }
        same(image, &mut io, &tool, &path);
    }
    for (scenario, Told { images, applied }) in &told {
        println!("crash images: {scenario:?}: {images} the same to drbdmeta, {applied} with apply-al");
    }
    let applied: usize = told.values().map(|told| told.applied).sum();
    assert!(images.len() >= count && applied > count / 2, "{} images, {applied} applied: {told:?}", images.len());
}
