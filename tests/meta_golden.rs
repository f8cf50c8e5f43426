//! Metadata that the kernel and `drbdmeta` wrote, with what `drbdmeta` says about it (`tests/data/meta`).
//!
//! An `.image` lists the 16-byte rows of a device that are not zero: position, repetitions, bytes. The dumps show flags 0
//! whatever the flags are (a defect of drbdmeta 9.22), so that line is checked against the `get-gi` line instead.

use std::path::PathBuf;

use udrbd::engine::dirty::{Bitmap, PageNr};
use udrbd::meta::offline::{self, DumpOptions, FullSyncReason};
use udrbd::meta::text::dump::DumpHeader;
use udrbd::meta::text::restore;
use udrbd::meta::{AttachBits, MemIo, MetaError, MetaIo, MetaKind, OpenMeta, Place, SuperblockError};
use udrbd::units::{AlExtent, BmBit, Sectors};

const HEADER: DumpHeader<'_> = DumpHeader { time: "TIME", host: "HOST", command: "COMMAND" };

fn data(name: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/meta").join(name);
    std::fs::read_to_string(path).ok()
}

fn hex_row(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
}

fn device(name: &str) -> (MemIo, Place) {
    let image = data(&format!("{name}.image")).expect("image");
    let mut lines = image.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let size = lines.next().expect("size")[1].parse().expect("number");
    let kind = MetaKind::from_text(lines.next().expect("format")[2]).expect("kind");
    let mut io = MemIo::new(size);
    for line in lines {
        let [offset, count, hex] = line[..] else { panic!("three words") };
        let bytes = hex_row(hex).repeat(count.parse().expect("number"));
        io.write_at(offset.parse().expect("number"), &bytes).expect("inside");
    }
    (io, Place { kind, data: None })
}

fn dump(meta: &OpenMeta, io: &mut MemIo, with_al: bool) -> String {
    let mut out = Vec::new();
    let options = DumpOptions { force: true, with_al, relocated: None };
    meta.dump(io, &mut out, &HEADER, options).expect("memory");
    String::from_utf8(out).expect("text")
}

/// The text with the flags that drbdmeta 9.22 shows.
fn without_flags(text: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("    flags 0x") { "    flags 0x00000000;".to_owned() } else { line.to_owned() }
    };
    text.lines().map(|l| line(l) + "\n").collect()
}

const V08: [&str; 15] = [
    "01-fresh-internal-64M",
    "02-crashed-primary-connected",
    "03-survivor-secondary-down",
    "04-degraded-primary-crashed-bits-in-core-only",
    "05-demoted-disconnected-bitmap",
    "06-syncsource-killed",
    "07-synctarget-killed",
    "08-striped-al-3x16k-512M-crashed",
    "09-multi-update-degraded-primary-crashed",
    "10-al-updates-no-primary-crashed",
    "11-al-extents-changed-crashed",
    "12-online-relayout-grown-syncsource",
    "13-flex-external-fresh-al-4x64k",
    "14-flex-external-kernel-used",
    "15-indexed-external-slot1",
];

#[test]
fn every_image_reads_and_dumps_as_drbdmeta_does() {
    for name in V08 {
        let (mut io, place) = device(name);
        let meta = offline::open(&mut io, place).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(Some(without_flags(&dump(&meta, &mut io, false))), data(&format!("{name}.dump")), "{name}");
        assert_eq!(Some(meta.get_gi()), data(&format!("{name}.gi")), "{name}");
        let al = dump(&meta, &mut io, true);
        let al: String = al[al.find("# al {").expect("listing")..]
            .lines()
            .filter(|line| !line.ends_with(" 4294967295"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(Some(al), data(&format!("{name}.al")), "{name}");
    }
}

#[test]
fn superblocks_survive_decoding_and_encoding() {
    for name in V08 {
        let (mut io, place) = device(name);
        let meta = offline::open(&mut io, place).expect("valid");
        let mut block = [0; 4096];
        io.read_at(meta.layout.superblock_byte(), &mut block).expect("inside");
        assert_eq!(meta.superblock.encode(), block, "{name}");
    }
}

#[test]
fn applying_the_log_gives_what_drbdmeta_gives() {
    let mut applied = 0;
    for name in V08 {
        let Some(expected) = data(&format!("{name}.applied.dump")) else { continue };
        let (mut io, place) = device(name);
        let flags = offline::open(&mut io, place).expect("valid").superblock.flags;
        let (meta, report) = offline::apply_al(&mut io, place).unwrap_or_else(|error| panic!("{name}: {error}"));
        let words = format!("{}exit 0\n", report.stderr_text());
        assert_eq!(Some(words), data(&format!("{name}.apply-al")), "{name}");
        assert_eq!(without_flags(&dump(&meta, &mut io, false)), expected, "{name}");
        assert_eq!(meta.superblock.flags.bits(), flags.bits() | 0x80, "{name}");

        let (again, report) = offline::apply_al(&mut io, place).expect("twice");
        assert_eq!((again, report.stderr_text()), (meta, String::new()), "{name}");
        applied += 1;
    }
    assert_eq!(applied, 11);
}

#[test]
fn an_attach_finds_the_hot_extents() {
    let range = |range: std::ops::RangeInclusive<u32>| range.map(AlExtent).collect::<Vec<_>>();
    for (name, hot) in [
        ("02-crashed-primary-connected", [1, 5, 9, 13].map(AlExtent).to_vec()),
        ("03-survivor-secondary-down", vec![]),
        ("04-degraded-primary-crashed-bits-in-core-only", range(0..=6)),
        ("07-synctarget-killed", vec![]),
        ("08-striped-al-3x16k-512M-crashed", [range(34..=99), vec![AlExtent(110)]].concat()),
        ("09-multi-update-degraded-primary-crashed", range(0..=11)),
        ("11-al-extents-changed-crashed", vec![AlExtent(5), AlExtent(7)]),
    ] {
        let (mut io, place) = device(name);
        let before = io.clone();
        let attach = offline::read_for_attach(&mut io, place).expect("valid");
        assert_eq!(attach.hot.into_iter().collect::<Vec<_>>(), hot, "{name}");
        assert_eq!(attach.bits, AttachBits::FromDisk, "{name}");
        assert_eq!(io, before, "nothing is written");
    }
    let bits = |name| {
        let (mut io, place) = device(name);
        offline::read_for_attach(&mut io, place).expect("valid").bits
    };
    let all_set = AttachBits::AllSet(FullSyncReason::AlDisabled);
    assert_eq!(bits("10-al-updates-no-primary-crashed"), all_set);
    assert_eq!(bits("01-fresh-internal-64M"), AttachBits::AllSet(FullSyncReason::JustCreated));
}

/// The kernel drops the last word of a bitmap that ends with it; we must not.
#[test]
fn the_last_word_of_the_bitmap_counts() {
    let (mut io, place) = device("14-flex-external-kernel-used");
    let meta = offline::open(&mut io, place).expect("valid");
    assert_eq!(meta.superblock.effective_size, Sectors(131_072));
    let mut bitmap = Bitmap::new(meta.superblock.effective_size.bm_bits()).expect("small");
    for page in 0..bitmap.page_count() {
        let mut block = [0; 4096];
        io.read_at(meta.layout.bm_page_byte(u64::from(page)).expect("inside"), &mut block).expect("inside");
        bitmap.load_page(PageNr(page), &block);
    }
    let set: Vec<_> = (0..bitmap.bits()).filter(|&bit| bitmap.test(BmBit(bit))).collect();
    assert_eq!(set, [0, 1, 16_383]);
}

#[test]
fn metadata_of_drbd_9_is_recognised_and_refused() {
    for name in ["16-v09-internal-1peer", "17-v09-internal-3peers"] {
        let (mut io, place) = device(name);
        let error = offline::open(&mut io, place).expect_err("not ours");
        assert!(matches!(error, MetaError::NoMetadata(SuperblockError::V09)), "{name}");
    }
}

#[test]
fn clean_dumps_restore_to_the_same_metadata() {
    for name in V08 {
        let (mut io, place) = device(name);
        let meta = offline::open(&mut io, place).expect("valid");
        let text = dump(&meta, &mut io, false);
        if !meta.superblock.is_clean() {
            assert!(restore::parse(&text).is_err(), "{name}: the dump of unclean metadata must not be restored");
            continue;
        }
        let parsed = restore::parse(&text).expect("our own dump");
        let mut copy = MemIo::new(io.size_bytes());
        let report = udrbd::meta::create::restore_md(&mut copy, place, &parsed, parsed.al).expect("fits");
        assert_eq!((report.claimed_size, report.bitmap_truncated), (None, false));
        let restored = offline::open(&mut copy, place).expect("valid");
        // The number of slots is not in the grammar: it becomes that of fresh metadata.
        assert_eq!(
            dump(&restored, &mut copy, false),
            text.replacen("# al-extents 1237;", "# al-extents 257;", 1),
            "{name}"
        );
    }
}
