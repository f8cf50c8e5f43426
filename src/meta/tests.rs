//! Operations under crashes, failing devices and rubbish.

use std::io;

use proptest::prelude::*;

use super::create::{CreateOptions, check_create, create_md, restore_md};
use super::offline::{self, DumpOptions, apply_al, open, read_for_attach, wipe_md, write_superblock};
use super::relocate::{move_internal, open_at_old_size};
use super::store::read_block;
use super::text::dump::DumpHeader;
use super::text::restore::Dump;
use super::*;
use crate::engine::dirty::{Bitmap, PageNr};
use crate::units::{AlExtent, AlSlot, GenId, Sectors};

const MIB: u64 = 1 << 20;

/// A device with a volatile cache that loses power: after `left` operations everything fails, and of the writes since the
/// last flush only those of `kept` (a bit each, from the oldest) reached the medium.
struct CrashIo {
    medium: MemIo,
    cache: MemIo,
    unflushed: Vec<(u64, Vec<u8>)>,
    left: usize,
    kept: u64,
}

impl CrashIo {
    fn new(medium: MemIo, left: usize, kept: u64) -> Self {
        Self { cache: medium.clone(), medium, unflushed: Vec::new(), left, kept }
    }

    fn step(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::Other)?;
        Ok(())
    }

    fn after_crash(mut self) -> MemIo {
        for (i, (offset, bytes)) in self.unflushed.iter().enumerate() {
            if self.kept >> (i % 64) & 1 == 1 {
                self.medium.write_at(*offset, bytes).expect("inside");
            }
        }
        self.medium
    }
}

impl MetaIo for CrashIo {
    fn size_bytes(&self) -> u64 {
        self.medium.size_bytes()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.cache.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.step()?;
        self.cache.write_at(offset, buf)?;
        self.unflushed.push((offset, buf.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.step()?;
        self.unflushed.clear();
        self.medium = self.cache.clone();
        Ok(())
    }
}

fn options(al: AlStripes) -> CreateOptions {
    CreateOptions { place: Place::INTERNAL, al, device_uuid: 1, peer_max_bio_size: 0 }
}

/// A crashed Primary on 300 MiB: some bits set, hot extents 0, 1, 40 and 70 in three bitmap pages.
fn crashed() -> MemIo {
    let mut io = MemIo::new(300 * MIB);
    let (layout, superblock) = create_md(&mut io, &options(AlStripes::DEFAULT)).expect("fits");
    for (tr_number, extent) in (0..).zip([0, 1, 40, 70]) {
        let slot = AlSlot(u16::try_from(tr_number).expect("few"));
        let transaction = AlTransaction {
            tr_number,
            updates: vec![(slot, AlExtent(extent))],
            context_size: 67,
            ..AlTransaction::default()
        };
        // Only updates are replayed into one set: the contexts say what the updates said.
        let context = [0, 1, 40].into_iter().take(usize::from(slot.0)).map(|extent| Some(AlExtent(extent))).collect();
        let block = AlTransaction { context, ..transaction }.encode();
        io.write_at(layout.al_block_byte(tr_number), &block).expect("inside");
    }
    let mut superblock = Superblock { effective_size: layout.data_size, current: GenId(9), ..superblock };
    superblock.flags = MdFlags::CONSISTENT | MdFlags::PRIMARY_IND;
    superblock.set_unclean();
    let mut bitmap = Bitmap::new(layout.data_size.bm_bits()).expect("small");
    bitmap.set_range(5..10);
    bitmap.set_range(60_000..61_000);
    store(&mut io, &layout, &bitmap);
    write_superblock(&mut io, &layout, &superblock).expect("memory");
    io
}

fn store(io: &mut dyn MetaIo, layout: &Layout, bitmap: &Bitmap) {
    for page in 0..bitmap.page_count() {
        let offset = layout.bm_page_byte(u64::from(page)).expect("inside");
        io.write_at(offset, &*bitmap.page_bytes(PageNr(page)).expect("a page")).expect("inside");
    }
}

fn load(io: &mut dyn MetaIo, meta: &OpenMeta) -> Bitmap {
    let mut bitmap = Bitmap::new(meta.superblock.effective_size.bm_bits()).expect("small");
    for page in 0..bitmap.page_count() {
        let offset = meta.layout.bm_page_byte(u64::from(page)).expect("inside");
        bitmap.load_page(PageNr(page), &read_block(io, offset).expect("inside"));
    }
    bitmap
}

/// Runs `operation` with a crash after every number of steps, until it comes through.
fn crash_everywhere(medium: &MemIo, operation: impl Fn(&mut CrashIo) -> bool, check: impl Fn(MemIo, &str)) {
    for left in 0.. {
        let mut through = false;
        for kept in [0, u64::MAX, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa, 0x8421_0fa3_97bd_1e65] {
            let mut io = CrashIo::new(medium.clone(), left, kept);
            through = operation(&mut io);
            check(io.after_crash(), &format!("crash after {left} steps, kept {kept:x}"));
        }
        if through {
            assert!(left > 2, "the operation does something");
            return;
        }
    }
}

#[test]
fn a_crash_while_the_log_is_applied_loses_no_bit() {
    let medium = crashed();
    let mut reference = medium.clone();
    let (meta, report) = apply_al(&mut reference, Place::INTERNAL).expect("valid");
    assert_eq!(report.stderr_text(), "Marked additional 16 MB as out-of-sync based on AL.\n");
    let expected = load(&mut reference, &meta);
    assert_eq!(expected.count(), 4 * 1024 + 1000);
    crash_everywhere(
        &medium,
        |io| apply_al(io, Place::INTERNAL).is_ok(),
        |mut after, what| {
            let attach = read_for_attach(&mut after, Place::INTERNAL).expect(what);
            let (meta, _) = apply_al(&mut after, Place::INTERNAL).expect(what);
            assert_eq!(load(&mut after, &meta).words(), expected.words(), "{what}");
            assert!(meta.superblock.is_clean());
            // An attach that replays itself finds the same.
            let mut bitmap = load(&mut after, &meta);
            for extent in attach.hot {
                assert_eq!(bitmap.set_range(bitmap::bits_of_extent(extent)), 0, "{what}");
            }
        },
    );
}

#[test]
fn a_crash_while_metadata_is_replaced_leaves_none_or_whole_one() {
    let medium = crashed();
    let (old, _) = apply_al(&mut medium.clone(), Place::INTERNAL).expect("valid");
    let old_bitmap = load(&mut medium.clone(), &old);
    let dump = Dump {
        uuids: [GenId(1), GenId(2), GenId(3), GenId(4)],
        flags: MdFlags::CONSISTENT,
        effective_size: Sectors(100_000),
        device_uuid: 0,
        la_peer_max_bio_size: 0,
        al: AlStripes::DEFAULT,
        runs: vec![(100, 7)],
    };
    let check = |mut after: MemIo, what: &str| match open(&mut after, Place::INTERNAL) {
        Err(MetaError::NoMetadata(_)) => {}
        Err(error) => panic!("{what}: {error}"),
        Ok(meta) if meta.superblock.current == GenId(9) => {
            assert_eq!(load(&mut after, &meta).words(), old_bitmap.words(), "{what}");
        }
        Ok(meta) if meta.superblock.current == GenId(1) => assert_eq!(load(&mut after, &meta).count(), 300, "{what}"),
        Ok(meta) => assert_eq!(meta.superblock.current, GenId::JUST_CREATED),
    };
    crash_everywhere(&medium, |io| create_md(io, &options(AlStripes::DEFAULT)).is_ok(), check);
    crash_everywhere(&medium, |io| restore_md(io, Place::INTERNAL, &dump, AlStripes::DEFAULT).is_ok(), check);
}

#[test]
fn a_crash_while_metadata_moves_leaves_it_at_one_of_both_places() {
    let mut medium = crashed();
    let before = open(&mut medium, Place::INTERNAL).expect("valid");
    let bitmap = load(&mut medium, &before);
    let ring = before.scan_ring(&mut medium).expect("readable");
    medium.resize(600 * MIB);
    crash_everywhere(
        &medium,
        |io| {
            let old = open_at_old_size(io, 300 * MIB).expect("there");
            move_internal(io, &old).is_ok()
        },
        |mut after, what| {
            let meta = open(&mut after, Place::INTERNAL)
                .or_else(|_| open_at_old_size(&mut after, 300 * MIB))
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(load(&mut after, &meta).words(), bitmap.words(), "{what}");
            assert_eq!(meta.scan_ring(&mut after).expect("readable"), ring, "{what}");
        },
    );
}

#[test]
fn an_attach_knows_why_the_bitmap_says_nothing() {
    use offline::FullSyncReason as Reason;
    let bits_with = |flags: MdFlags, ring_ok: bool| {
        let mut io = crashed();
        let meta = open(&mut io, Place::INTERNAL).expect("valid");
        write_superblock(&mut io, &meta.layout, &Superblock { flags, ..meta.superblock }).expect("memory");
        if !ring_ok {
            io.write_at(meta.layout.al_offset.bytes(), &[0; 8 * 4096]).expect("inside");
        }
        read_for_attach(&mut io, Place::INTERNAL).expect("valid")
    };
    let primary = MdFlags::PRIMARY_IND;
    let attach = bits_with(primary, true);
    assert_eq!((attach.bits, attach.hot.len(), attach.crashed_primary), (AttachBits::FromDisk, 4, true));
    let attach = bits_with(MdFlags::CRASHED_PRIMARY, true);
    assert_eq!((attach.bits, attach.hot.len(), attach.crashed_primary), (AttachBits::FromDisk, 0, true));
    assert_eq!(bits_with(MdFlags::NONE, false).bits, AttachBits::FromDisk);
    assert_eq!(bits_with(primary, false).bits, AttachBits::AllSet(Reason::NoUsableLog(recover::NoUsableLog::Missing)));
    assert_eq!(bits_with(primary | MdFlags::AL_DISABLED, false).bits, AttachBits::AllSet(Reason::AlDisabled));
    assert_eq!(bits_with(MdFlags::AL_DISABLED, true).bits, AttachBits::FromDisk);
    assert_eq!(bits_with(MdFlags::FULL_SYNC, true).bits, AttachBits::AllSet(Reason::Flag));
}

#[test]
fn the_agreed_size_on_disk_is_not_hidden_from_an_attach() {
    let mut io = crashed();
    let meta = open(&mut io, Place::INTERNAL).expect("valid");
    let effective_size = Sectors(meta.layout.data_size.0 + 8);
    write_superblock(&mut io, &meta.layout, &Superblock { effective_size, ..meta.superblock }).expect("memory");
    let attach = read_for_attach(&mut io, Place::INTERNAL).expect("valid");
    assert_eq!(attach.superblock.effective_size, effective_size);
    let meta = open(&mut io, Place::INTERNAL).expect("valid");
    assert_eq!(meta.excess_comment(), "# la-size-sect was too big (614312), truncated (614304)!\n");
    assert_eq!(meta.superblock.effective_size, meta.layout.data_size);
}

#[test]
fn a_device_below_the_kernels_minimum_is_not_attached() {
    let mut io = MemIo::new(MIB - 512);
    create_md(&mut io, &options(AlStripes::DEFAULT)).expect("enough for the tool");
    assert!(matches!(
        read_for_attach(&mut io, Place::INTERNAL),
        Err(MetaError::Layout(LayoutError::TooSmall { needs: Sectors(2048), .. }))
    ));
}

#[test]
fn indexed_slots_do_not_touch_each_other() {
    let mut io = MemIo::new(384 * MIB);
    let slot = |index| CreateOptions {
        place: Place { kind: MetaKind::Indexed(index), data: Some(Sectors(1 << 20)) },
        ..options(AlStripes::DEFAULT)
    };
    for index in 0..3 {
        create_md(&mut io, &slot(index)).expect("fits");
    }
    let before: Vec<_> = (0..3).map(|index| open(&mut io, slot(index).place).expect("valid")).collect();
    assert_eq!(before[2].layout.data_size, Sectors(1 << 20));
    wipe_md(&mut io, slot(1).place).expect("there");
    assert!(open(&mut io, slot(1).place).is_err());
    for index in [0, 2] {
        assert_eq!(open(&mut io, slot(index).place).expect("valid"), before[usize::from(index)]);
    }
    assert_eq!(
        check_create(&mut io, &slot(2)).expect("readable")[0],
        Finding::ExternalMeta { version: probe::FoundVersion::V08(AlStripes::DEFAULT) }
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever lies where metadata would be, every operation gives a result and stays inside the device.
    #[test]
    fn rubbish_never_panics(
        size in 0_u64..200_000,
        blocks in prop::collection::vec((0_u64..50, any::<[u8; 32]>(), any::<bool>()), 0..20),
        superblock in prop::option::of((any::<[u32; 8]>(), any::<u64>(), any::<bool>())),
    ) {
        let mut io = MemIo::new(size);
        for (block, bytes, valid_log) in blocks {
            let bytes = if valid_log {
                let number = |i: usize| u32::from_be_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
                let transaction = AlTransaction {
                    tr_number: number(0),
                    updates: vec![(AlSlot(u16::from(bytes[4]) * 257), AlExtent(number(5)))],
                    context_size: u16::from(bytes[9]) * 257,
                    context_start: AlSlot(u16::from(bytes[10]) * 257),
                    context: (11..28).map(|i| Some(AlExtent(number(i)))).collect(),
                };
                transaction.encode().to_vec()
            } else {
                bytes.repeat(128)
            };
            let _ = io.write_at(block * 4096, &bytes);
        }
        if let (Some((words, agreed, fits)), Ok(layout)) = (superblock, options(AlStripes::DEFAULT).layout(&io)) {
            let mut superblock = Superblock::create(&layout, agreed);
            superblock.effective_size = Sectors(agreed);
            superblock.flags = MdFlags::from_bits(words[0]);
            superblock.unclean_magic = words[1] & 1 == 1;
            superblock.al_extents = words[2];
            if !fits {
                superblock.al_offset = words[3].cast_signed();
                superblock.al_stripes = words[4] % 64;
                superblock.al_stripe_size_4k = words[5] % 64;
            }
            write_superblock(&mut io, &layout, &superblock).expect("inside");
        }
        let header = DumpHeader { time: "", host: "", command: "" };
        for kind in [MetaKind::Internal, MetaKind::FlexExternal, MetaKind::Indexed(0)] {
            let place = Place { kind, data: None };
            if let Ok(meta) = open(&mut io, place) {
                let options = DumpOptions { force: true, with_al: true, relocated: None };
                meta.dump(&mut io, &mut Vec::new(), &header, options).expect("readable");
                let _ = (meta.show_gi(), meta.get_gi());
            }
            let _ = read_for_attach(&mut io, place);
            let _ = check_create(&mut io, &CreateOptions { place, ..options(AlStripes::DEFAULT) });
            let _ = apply_al(&mut io, place).map(|(_, report)| report.stderr_text());
            let _ = open_at_old_size(&mut io, size / 2);
        }
    }
}
