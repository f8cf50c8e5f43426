//! Our metadata under the real `drbdmeta`, and its metadata under ours. Skipped where drbdmeta is not installed.
//!
//! Differences that are ours on purpose, and left out of the comparison: the flags in a dump (drbdmeta 9.22 always shows
//! 0), a ring whose first block alone is torn (we initialise it again), a restored ring (we initialise it).

#![cfg(feature = "drivers")]

mod drbdmeta_common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;

use drbdmeta_common::{Tool, comparable};
use proptest::prelude::*;
use udrbd::disk::meta_file::{Access, MetaFile};
use udrbd::engine::dirty::{Bitmap, PageNr};
use udrbd::meta::al_transaction::initialized_block;
use udrbd::meta::create::{self, CreateOptions};
use udrbd::meta::offline::{self, DumpOptions};
use udrbd::meta::text::dump::DumpHeader;
use udrbd::meta::text::{gi, restore};
use udrbd::meta::{AlStripes, AlTransaction, Finding, Layout, MdFlags, MetaError, MetaIo, MetaKind, Place, Verdict};
use udrbd::units::{AlExtent, AlSlot, GenId, Sectors};

const MIB: u64 = 1 << 20;

/// A device in a file, and drbdmeta.
struct Bench {
    tool: Tool,
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Bench {
    /// `nr` tells the tests of this file apart.
    fn new(nr: u32) -> Option<Self> {
        let tool = Tool::find(nr)?;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("disk");
        Some(Self { tool, path, _dir: dir })
    }

    fn blank(&self, size: u64) {
        let _ = fs::remove_file(&self.path);
        File::create(&self.path).and_then(|file| file.set_len(size)).expect("file");
    }

    fn open(&self) -> MetaFile {
        MetaFile::open(&self.path, Access::Write, false).expect("file")
    }

    /// Runs drbdmeta with `args` behind the device.
    fn run(&self, kind: MetaKind, args: &[&str]) -> Output {
        self.tool.run(&self.path, &kind.to_string(), args)
    }

    fn text(&self, kind: MetaKind, args: &[&str]) -> String {
        self.tool.text(&self.path, &kind.to_string(), args)
    }

    fn our_dump(&self, place: Place, with_al: bool) -> String {
        let mut io = self.open();
        let meta = offline::open(&mut io, place).expect("valid");
        let header = DumpHeader { time: "TIME", host: "HOST", command: "COMMAND" };
        let mut out = Vec::new();
        let options = DumpOptions { force: true, with_al, relocated: None };
        meta.dump(&mut io, &mut out, &header, options).expect("readable");
        String::from_utf8(out).expect("text")
    }

    /// Both dumps, both displays of the identifiers.
    fn assert_same(&self, place: Place) {
        assert_eq!(comparable(&self.our_dump(place, false)), comparable(&self.text(place.kind, &["dump-md"])));
        let meta = offline::open(&mut self.open(), place).expect("valid");
        assert_eq!(meta.excess_comment() + &meta.get_gi(), self.text(place.kind, &["get-gi"]));
        assert_eq!(meta.excess_comment() + &meta.show_gi(), self.text(place.kind, &["show-gi"]));
        let dstate = format!("{}\n", gi::dstate(meta.superblock.flags));
        assert_eq!(meta.excess_comment() + &dstate, self.text(place.kind, &["dstate"]));
    }
}

/// Writes page `page` of `bitmap` where it belongs.
fn write_page(io: &mut dyn MetaIo, layout: &Layout, bitmap: &Bitmap, page: u32) {
    let offset = layout.bm_page_byte(u64::from(page)).expect("inside");
    io.write_at(offset, &*bitmap.page_bytes(PageNr(page)).expect("a page")).expect("inside");
}

fn options(kind: MetaKind, al: AlStripes) -> CreateOptions {
    let place = Place { kind, data: None };
    CreateOptions { place, al, device_uuid: 0, peer_max_bio_size: 131_072 }
}

fn layouts() -> Vec<(MetaKind, u64, (u32, u32))> {
    let internal = MetaKind::Internal;
    vec![
        (internal, 69_632, (1, 8)),
        (internal, 70_144, (1, 8)),
        (internal, 64 * MIB, (1, 8)),
        (internal, 64 * MIB + 512, (2, 8)),
        (internal, 64 * MIB + 4095, (3, 5)),
        (internal, 128 * MIB, (1, 8)),
        (internal, 1024 * MIB + 4096, (4, 16)),
        (internal, 10_240 * MIB, (1, 8)),
        (internal, 64 * MIB, (1024, 8)),
        (MetaKind::FlexExternal, 69_632, (1, 8)),
        (MetaKind::FlexExternal, 70_144, (1, 8)),
        (MetaKind::FlexExternal, 2 * MIB, (4, 16)),
        (MetaKind::FlexExternal, 300 * MIB, (1, 8)),
        (MetaKind::Indexed(0), 128 * MIB, (1, 8)),
        (MetaKind::Indexed(2), 400 * MIB, (1, 8)),
    ]
}

/// The bytes of the metadata area.
fn area(bench: &Bench, place: Place) -> Vec<u8> {
    let mut io = bench.open();
    let meta = offline::open(&mut io, place).expect("valid");
    let (start, len) = meta.layout.area();
    // The bitmap of a large external area is all zero in every test here.
    let mut bytes = vec![0; usize::try_from(len.min(2 * MIB)).expect("small")];
    io.read_at(start, &mut bytes).expect("inside");
    bytes
}

#[test]
fn both_create_the_same_bytes() {
    let Some(bench) = Bench::new(0) else { return };
    for (kind, size, (stripes, stripe_size)) in layouts() {
        let al = AlStripes::new(stripes, stripe_size).expect("valid");
        let options = options(kind, al);
        let what = format!("{kind} on {size} with {al:?}");

        bench.blank(size);
        assert_eq!(create::check_create(&mut bench.open(), &options).expect("readable"), [], "{what}");
        create::create_md(&mut bench.open(), &options).expect("fits");
        bench.assert_same(options.place);
        let ours = area(&bench, options.place);

        bench.blank(size);
        let (stripes, kib) = (stripes.to_string(), (stripe_size * 4).to_string());
        let args =
            ["create-md", "--al-stripes", &stripes, "--al-stripe-size-kB", &kib, "--peer-max-bio-size", "131072"];
        bench.text(kind, &args);
        bench.assert_same(options.place);
        assert_eq!(area(&bench, options.place), ours, "{what}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_both() {
    let Some(bench) = Bench::new(1) else { return };
    for (kind, size, (stripes, stripe_size)) in [
        (MetaKind::Internal, 69_120, (1, 8)),
        (MetaKind::Internal, 100_000, (4, 8)),
        (MetaKind::FlexExternal, 69_120, (1, 8)),
        (MetaKind::FlexExternal, 100_000, (4, 8)),
        (MetaKind::Indexed(1), 128 * MIB, (1, 8)),
    ] {
        bench.blank(size);
        let al = AlStripes::new(stripes, stripe_size).expect("valid");
        let error = create::create_md(&mut bench.open(), &options(kind, al)).expect_err("too small");
        let (stripes, kib) = (stripes.to_string(), (stripe_size * 4).to_string());
        let output = bench.run(kind, &["create-md", "--al-stripes", &stripes, "--al-stripe-size-kB", &kib]);
        assert_eq!(output.status.code(), Some(i32::from(error.exit_code())), "{kind} {size}");
    }
}

/// Sizes, identifiers, flags and bits of a device in use, with every flag set once.
#[test]
fn used_metadata_looks_the_same() {
    let Some(bench) = Bench::new(2) else { return };
    for (kind, size, al) in layouts().into_iter().filter(|(_, size, _)| *size >= 2 * MIB) {
        let options = options(kind, AlStripes::new(al.0, al.1).expect("valid"));
        for bit in 0..9 {
            bench.blank(size);
            let mut io = bench.open();
            let (layout, mut superblock) = create::create_md(&mut io, &options).expect("fits");
            let sizes = [layout.data_size.0.min(1 << 22), 8 * 64, 32_768 * 8, 1, layout.data_size.0.min(1 << 20) - 1];
            superblock.effective_size = Sectors(sizes[bit % sizes.len()]);
            superblock.flags =
                MdFlags::from_bits(1 << bit | u32::try_from(bit & 3).expect("small")).with(MdFlags::AL_CLEAN);
            superblock.history = [GenId(u64::MAX), GenId(bit as u64)];
            superblock.device_uuid = 0x0123_4567_89AB_CDEF;
            superblock.al_extents = 6433;
            let mut bitmap = Bitmap::new(superblock.effective_size.bm_bits()).expect("small");
            bitmap.set_range(3..5);
            bitmap.set_range(64 * 200..64 * 777);
            bitmap.set_range(bitmap.bits() - 1..bitmap.bits());
            for page in 0..bitmap.page_count() {
                write_page(&mut io, &layout, &bitmap, page);
            }
            offline::write_superblock(&mut io, &layout, &superblock).expect("writable");
            bench.assert_same(options.place);
        }
        // An agreed size that does not fit.
        let mut io = bench.open();
        let meta = offline::open(&mut io, options.place).expect("valid");
        if kind.is_internal() {
            let superblock =
                udrbd::meta::Superblock { effective_size: Sectors(meta.layout.data_size.0 + 9), ..meta.superblock };
            offline::write_superblock(&mut io, &meta.layout, &superblock).expect("writable");
            bench.assert_same(options.place);
        }
    }
}

#[derive(Clone, Debug)]
enum Slot {
    Update(AlTransaction),
    Initialized,
    Rubbish,
}

prop_compose! {
    /// A ring as a node would leave it, with some blocks damaged or never written.
    fn ring()(
        stripes in 1_u32..5, size in 8_u32..12,
        newest in prop_oneof![0_u32..200, Just(u32::MAX), Just(3), any::<u32>()],
        count in 0_u32..40, slots in prop_oneof![Just(67_u16), Just(1237)], extents in 1_u32..40,
    )(
        damage in prop::collection::vec(0_u8..12, (stripes * size) as usize),
        steps in prop::collection::vec((0..slots, 0..extents, 0_usize..5), count.min(stripes * size) as usize),
        stripes in Just(stripes), size in Just(size), newest in Just(newest), slots in Just(slots),
        clean in any::<bool>(), primary in prop::bool::weighted(0.8), bits in 0_u64..3000,
    ) -> (AlStripes, Vec<Slot>, bool, bool, u64) {
        let al = AlStripes::new(stripes, size).expect("valid");
        let mut ring = vec![Slot::Initialized; al.blocks() as usize];
        let mut set = vec![None; usize::from(slots)];
        let mut start = AlSlot(0);
        let first = newest.wrapping_sub(u32::try_from(steps.len()).expect("few")).wrapping_add(1);
        for (i, (slot, extent, updates)) in (0_u32..).zip(steps) {
            let tr_number = first.wrapping_add(i);
            let from = usize::from(start.0);
            let len = AlTransaction::window_len(start, slots);
            let updates: Vec<_> = (0..updates)
                .map(|n| (AlSlot((slot + u16::try_from(n).expect("small") * 7) % slots), AlExtent(extent + u32::try_from(n).expect("small"))))
                .collect();
            let context = set[from..from + len].to_vec();
            for &(slot, extent) in &updates {
                set[usize::from(slot.0)] = Some(extent);
            }
            let transaction = AlTransaction { tr_number, updates, context_size: slots, context_start: start, context };
            ring[(tr_number % al.blocks()) as usize] = Slot::Update(transaction);
            start = AlTransaction::next_window(start, slots);
        }
        for (slot, damage) in ring.iter_mut().zip(damage) {
            match damage {
                0 => *slot = Slot::Rubbish,
                1 => *slot = Slot::Initialized,
                _ => {}
            }
        }
        (al, ring, clean, primary, bits)
    }
}

/// Lays out metadata with this ring in the file; says whether its first block alone is damaged.
fn lay_out(bench: &Bench, al: AlStripes, ring: &[Slot], flags: MdFlags, clean: bool, bits: u64) -> bool {
    let options = options(MetaKind::Internal, al);
    bench.blank(96 * MIB);
    let mut io = bench.open();
    let (layout, mut superblock) = create::create_md(&mut io, &options).expect("fits");
    for (position, slot) in (0_u32..).zip(ring) {
        let block = match slot {
            Slot::Update(transaction) => transaction.encode(),
            Slot::Rubbish => {
                let mut block = initialized_block();
                block[99] ^= 1;
                block
            }
            Slot::Initialized => initialized_block(),
        };
        io.write_at(layout.al_block_byte(position), &block).expect("inside");
    }
    // 100 MB of extents may be hot on 96 MiB: some lie behind the end.
    superblock.effective_size = Sectors(layout.data_size.0 - bits);
    superblock.flags = flags;
    if clean {
        superblock.set_clean();
    } else {
        superblock.set_unclean();
    }
    let mut bitmap = Bitmap::new(superblock.effective_size.bm_bits()).expect("small");
    bitmap.set_range(bits..bits * 2);
    write_page(&mut io, &layout, &bitmap, 0);
    offline::write_superblock(&mut io, &layout, &superblock).expect("writable");
    let rubbish = ring.iter().filter(|slot| matches!(slot, Slot::Rubbish)).count();
    let updates = ring.iter().any(|slot| matches!(slot, Slot::Update(_)));
    !updates && rubbish == 1 && matches!(ring[0], Slot::Rubbish)
}

fn check_ring(bench: &Bench, al: AlStripes, ring: &[Slot], clean: bool, primary: bool, bits: u64) {
    let place = Place::INTERNAL;
    let flags = MdFlags::CONSISTENT.set_to(MdFlags::PRIMARY_IND, primary).set_to(MdFlags::CRASHED_PRIMARY, !primary);
    let first_torn = lay_out(bench, al, ring, flags, clean, bits);
    let listing = |with_al: bool| bench.our_dump(place, with_al);
    let verbose =
        bench.text(MetaKind::Internal, &["dump-md", "-v", "-v", "-v", "-v", "-v", "-v", "-v", "-v", "-v", "-v"]);
    let ours = listing(true);
    let tail = |text: &str| {
        let lines = text.lines().skip_while(|line| *line != "# al {");
        lines.filter(|line| !line.starts_with(" printf_al")).collect::<Vec<_>>().join("\n")
    };
    let (ours, theirs) = (tail(&ours), tail(&verbose));
    let difference = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!((difference, ours.lines().count()), (None, theirs.lines().count()));

    let result = offline::apply_al(&mut bench.open(), place);
    let ours = area(bench, place);
    lay_out(bench, al, ring, flags, clean, bits);
    let output = bench.run(MetaKind::Internal, &["apply-al"]);
    let said: String = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| !line.contains("BLKSSZGET") && !line.contains("ASSERT("))
        .map(|line| format!("{line}\n"))
        .collect();
    match result {
        Ok((_, report)) => {
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert_eq!(report.stderr_text(), without_order_notes(&said));
        }
        Err(MetaError::NoUsableLog(reason)) => {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.ends_with(&format!("{reason}\n")), "{said}");
        }
        Err(error) => panic!("{error}"),
    }
    if !first_torn {
        assert!(ours == area(bench, place), "different bytes");
    }
}

/// Without drbdmeta's remarks about gaps in the numbers, and with each extent that a damaged ring names twice said once.
fn without_order_notes(said: &str) -> String {
    let mut lines: Vec<_> = said.lines().filter(|line| !line.contains("tr_number")).collect();
    lines.dedup();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn rings_are_replayed_to_the_same_bytes() {
    let Some(bench) = Bench::new(3) else { return };
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&ring(), |(al, ring, clean, primary, bits)| {
        check_ring(&bench, al, &ring, clean, primary, bits);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn dumps_go_both_ways() {
    let Some(bench) = Bench::new(4) else { return };
    let place = Place::INTERNAL;
    let al = AlStripes::new(2, 8).expect("valid");
    lay_out(&bench, al, &vec![Slot::Initialized; 16], MdFlags::CONSISTENT, true, 999);
    let ours = bench.our_dump(place, false);
    let file = bench.path.with_extension("dump");
    fs::write(&file, &ours).expect("temporary file");
    let name = |path: &Path| path.to_str().expect("text").to_owned();

    assert!(bench.text(MetaKind::Internal, &["verify-dump", &name(&file)]).contains("input file parsed ok"));
    bench.blank(96 * MIB);
    bench.text(MetaKind::Internal, &["restore-md", &name(&file)]);
    bench.assert_same(place);
    assert_eq!(bench.our_dump(place, false), ours);

    let theirs = bench.text(MetaKind::Internal, &["dump-md"]);
    let parsed = restore::parse(&theirs).expect("a real dump");
    bench.blank(96 * MIB);
    create::restore_md(&mut bench.open(), place, &parsed, parsed.al).expect("fits");
    bench.assert_same(place);
    assert_eq!(comparable(&bench.our_dump(place, false)), comparable(&ours));
}

/// Gives the texts of one finding in the order of drbdmeta's streams, as if `--force` were given.
fn forced_texts(findings: &[Finding], device: &str) -> (String, String, Option<u8>) {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    for finding in findings {
        stdout += &finding.stdout_text();
        stderr += &finding.stderr_text(device);
        let question = |question: &str| format!("\n{question}\n*** confirmation forced via --force option ***\n");
        match finding.verdict() {
            Verdict::Ask { question: text, .. } => stderr += &question(text),
            Verdict::AskToStop { question: text, refusal, exit_code } => {
                stderr += &question(text);
                return (stdout, stderr + refusal, Some(exit_code));
            }
            Verdict::Refuse { exit_code } => return (stdout, stderr, Some(exit_code)),
        }
    }
    (stdout, stderr, None)
}

#[test]
fn what_is_in_the_way_is_found_by_both() {
    let Some(bench) = Bench::new(5) else { return };
    let ext = |kib: u32| {
        let blocks = (kib / 4).to_le_bytes();
        vec![(0x438, vec![0x53, 0xef]), (0x404, blocks.to_vec()), (0x418, vec![2]), (0x45c, vec![4])]
    };
    let xfs = |blocks: u64| vec![(0, [b"XFSB\0\0\x10\0".to_vec(), blocks.to_be_bytes().to_vec()].concat())];
    let cases: Vec<Vec<(u64, Vec<u8>)>> = vec![
        vec![],
        vec![(4086, b"SWAPSPACE2".to_vec())],
        ext(1000),
        ext(65_536),
        xfs(16_250),
        xfs(16_375),
        vec![(0x8000, b"JFS1".to_vec()), (0x8008, vec![5]), (0x8019, vec![2])],
        vec![(0x10034, b"ReIsEr2Fs".to_vec()), (0x10000, vec![3]), (0x1002d, vec![0x10])],
        vec![(69_631, vec![1])],
        vec![(69_632, vec![1])],
    ];
    let device = bench.path.to_str().expect("text").to_owned();
    for (parts, kind, existing) in cases.iter().flat_map(|parts| {
        [MetaKind::Internal, MetaKind::FlexExternal]
            .into_iter()
            .flat_map(move |kind| [None, Some((1, 8)), Some((2, 8))].map(|existing| (parts, kind, existing)))
    }) {
        bench.blank(64 * MIB);
        let options = options(kind, AlStripes::DEFAULT);
        if let Some((stripes, size)) = existing {
            let other = CreateOptions { al: AlStripes::new(stripes, size).expect("valid"), ..options };
            create::create_md(&mut bench.open(), &other).expect("fits");
        }
        let file = OpenWrite(&bench.path);
        parts.iter().for_each(|(offset, bytes)| file.write(*offset, bytes));
        let findings = create::check_create(&mut bench.open(), &options).expect("readable");
        let (stdout, stderr, exit) = forced_texts(&findings, &device);
        let output = bench.run(kind, &["create-md"]);
        let theirs = |bytes: &[u8]| {
            let noise = [
                "# la-size-sect was too big",
                "BLKSSZGET",
                "BLKZEROOUT",
                "initializing",
                "Writing meta",
                "New drbd",
                "not a block device",
            ];
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.lines()
                .filter(|line| !noise.iter().any(|noise| line.contains(noise)))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        let what = format!("{parts:?} {kind} {existing:?}");
        assert_eq!(output.status.code(), Some(i32::from(exit.unwrap_or(0))), "{what} {output:?}");
        assert_eq!(stdout, theirs(&output.stdout), "{what}");
        assert_eq!(stderr, theirs(&output.stderr), "{what}");
    }
}

/// Writes single bytes to the file, unaligned.
struct OpenWrite<'a>(&'a Path);

impl OpenWrite<'_> {
    fn write(&self, offset: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = File::options().write(true).open(self.0).expect("file");
        file.write_all_at(bytes, offset).expect("inside");
    }
}

#[test]
fn edits_leave_the_same_bytes() {
    let Some(bench) = Bench::new(6) else { return };
    let place = Place::INTERNAL;
    type Edit = fn(&mut offline::OpenMeta);
    let edits: [(&[&str], Edit); 4] = [
        (&["outdate"], |meta| meta.outdate().expect("consistent")),
        (&["invalidate"], offline::OpenMeta::invalidate),
        (&["write-dev-uuid", "1234"], |meta| meta.superblock.device_uuid = 0x1234),
        (&["set-gi", "A:B::C:0:1"], |meta| gi::set_gi(&mut meta.superblock, "A:B::C:0:1").expect("valid")),
    ];
    for clean in [false, true] {
        for (args, edit) in edits {
            let set_up = || {
                let flags = MdFlags::CONSISTENT | MdFlags::WAS_UP_TO_DATE | MdFlags::PEER_OUT_DATED;
                lay_out(&bench, AlStripes::DEFAULT, &vec![Slot::Initialized; 8], flags, clean, 5);
            };
            set_up();
            let mut io = bench.open();
            let mut meta = offline::open(&mut io, place).expect("valid");
            edit(&mut meta);
            offline::write_superblock(&mut io, &meta.layout, &meta.superblock).expect("writable");
            let ours = area(&bench, place);
            set_up();
            bench.text(MetaKind::Internal, args);
            assert!(ours == area(&bench, place), "{args:?} {clean}");
        }
    }
    offline::wipe_md(&mut bench.open(), place).expect("there is some");
    assert_eq!(bench.run(MetaKind::Internal, &["dump-md"]).status.code(), Some(1));
    assert!(matches!(offline::wipe_md(&mut bench.open(), place), Err(MetaError::NoMetadata(_))));
}
