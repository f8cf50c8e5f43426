//! The undo files of simulated nodes, and the checker that proves what they promise.
//!
//! Owns, for each volume of a node, a file and one that has not taken its place yet, on devices with a volatile cache of their own:
//! what was not synced is lost or kept sector by sector at a power cut. The files are those of [`crate::undo`], byte for byte.
//! The checker keeps the device as it was when a resync began ([`Device::snapshot`](super::device::Device)) and compares at every look, after
//! every crash and at the end of the resync: each block is in the file as it was, or on the disk as it was.
//!
//! **Does not check**: files that were given up; blocks that could not be read; blocks that the victim's own applications were writing at that
//! moment; what happens to a disk after the resync has ended.

use std::collections::BTreeSet;
use std::io;

use super::coverage::Group;
use super::device::{Device, PAGE, Snapshot};
use super::node::nr;
use super::rng::Rng;
use super::world::{A, Asked, B, Checker, Due, World};
use crate::engine::event::Event;
use crate::engine::undo::{OldBlocks, SavedBlocks, UndoAnswer, UndoHead, UndoOrder};
use crate::undo::UndoIo;
use crate::undo::file::{Run, UndoFile, belongs};
use crate::undo::format::{BLOCK, Head};
use crate::units::{GenId, Sectors};

impl UndoIo for Device {
    fn len(&mut self) -> io::Result<u64> {
        Ok(Self::len(self))
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > Self::len(self) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_now(offset, buf);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > Self::len(self) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.write_now(offset, buf);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush_now();
        Ok(())
    }
}

/// The undo files of one volume.
#[derive(Debug, Default)]
pub struct SimUndo {
    file: Option<UndoFile<Device>>,
    new: Option<UndoFile<Device>>,
    /// The device when the resync of `file` began.
    was: Option<Snapshot>,
    /// Pages that nobody can say anything about.
    excused: BTreeSet<u64>,
    /// Nothing is promised any more.
    given_up: bool,
    /// Still being filled.
    saving: bool,
    /// Orders that are not answered.
    waiting: u32,
}

impl SimUndo {
    /// The node dies; true: by a power cut.
    pub fn die(&mut self, power: bool) {
        self.waiting = 0;
        for slot in [&mut self.file, &mut self.new] {
            let Some(file) = slot.take() else { continue };
            let mut device = file.into_io();
            let _ = if power { device.power_cut() } else { device.process_crash() };
            // As after any start: what was not whole is not there.
            *slot = UndoFile::open(device).ok();
        }
    }

    /// The device has this size now: what lies behind its end is nobody's.
    pub fn resized(&mut self, size: Sectors) {
        let blocks = self.file.as_ref().map_or(0, |file| file.head().blocks());
        if size.0 > 0 {
            self.excused.extend(size.0 / 8..blocks);
        }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.waiting == 0
    }

    /// A disk with this current identifier is attached: what is saved, if saving goes on.
    pub fn resume(&mut self, current: GenId, data: &Device) -> Option<SavedBlocks> {
        match self.new.take() {
            Some(new) if belongs(new.head(), current) => {
                // It died before it could say that the resync begins; nothing was overwritten.
                let was = Some(data.snapshot());
                *self = Self { file: Some(new), was, saving: true, ..Self::default() };
            }
            _ => {}
        }
        let file = self.file.as_ref().filter(|file| self.saving && !file.ended() && !file.incomplete())?;
        Some(SavedBlocks { blocks: file.head().blocks(), runs: file.runs().collect() })
    }
}

impl World {
    fn undo_files(&mut self, node: usize, volume: usize) -> &mut SimUndo {
        &mut self.nodes[node].volumes[volume].undo
    }

    fn undo_answer(&mut self, node: usize, volume: usize, answer: UndoAnswer) {
        self.undo_files(node, volume).waiting += 1;
        let (life, wait) = (self.nodes[node].life, self.dice.undo.around(self.params.nodes[node].disk_ns));
        self.after(wait, Due::Undo { node, life, volume, answer });
    }

    /// The engine's order.
    pub(super) fn undo_order(&mut self, node: usize, volume: usize, order: UndoOrder) {
        self.trace.note(self.now, node, 24, volume as u64, || format!("vol {volume} undo {}", words(&order)));
        match order {
            UndoOrder::Begin(head) => {
                let made = self.undo_make(&head, volume);
                let ok = made.is_some();
                self.undo_files(node, volume).new = made;
                self.coverage.count(Group::Fault, if ok { "undo file" } else { "no undo file" });
                self.undo_answer(node, volume, UndoAnswer::Ready(ok));
            }
            UndoOrder::Start => self.undo_starts(node, volume),
            UndoOrder::Save { token, blocks, lost } => {
                let files = self.undo_files(node, volume);
                let ok = files.file.as_mut().is_some_and(|file| save(file, &blocks, &lost).is_ok());
                for (first, count) in lost {
                    files.excused.extend(first..first + u64::from(count));
                }
                if !ok {
                    files.given_up = true;
                    files.saving = false;
                    let _ = files.file.as_mut().map(UndoFile::give_up);
                    self.coverage.count(Group::Fault, "undo file full");
                }
                self.undo_answer(node, volume, UndoAnswer::Saved { token, ok });
            }
            UndoOrder::Cancel => self.undo_files(node, volume).new = None,
            UndoOrder::End => {
                self.check_undo(node, volume, "at the end of the resync");
                let files = self.undo_files(node, volume);
                files.saving = false;
                let ended = files.file.as_mut().map(UndoFile::finish);
                self.coverage.count(
                    Group::Fault,
                    if matches!(ended, Some(Ok(()))) { "undo file complete" } else { "undo file lost" },
                );
            }
        }
    }

    fn undo_make(&mut self, head: &UndoHead, volume: usize) -> Option<UndoFile<Device>> {
        let seed = self.dice.undo.next_u64();
        if self.dice.undo.below(12) == 0 {
            return None;
        }
        let full = head.size.bytes() * 2 + (1 << 20);
        let limit = if self.dice.undo.below(8) == 0 { PAGE * (1 + self.dice.undo.below(64)) } else { full };
        let head = Head {
            resource: String::from("r0"),
            volume: nr(volume).0,
            device: head.device,
            sectors: head.size.0,
            own: head.own.slots().map(GenId),
            peer: head.peer.slots().map(GenId),
            after: head.peer.current,
            made: self.now,
            good: head.good,
            up_to_date: head.up_to_date,
            redo: false,
            salt: seed,
        };
        UndoFile::create(Device::new(limit / PAGE * PAGE, Rng::new(seed)), head).ok()
    }

    fn undo_starts(&mut self, node: usize, volume: usize) {
        let writing: Vec<_> = self
            .pending
            .values()
            .filter(|p| p.node == node && p.volume == volume)
            .filter_map(|p| if let Asked::Write(id) = p.what { self.model.write(id) } else { None })
            .flat_map(|write| write.start / 8..(write.start + write.count).div_ceil(8))
            .collect();
        let vol = &mut self.nodes[node].volumes[volume];
        let was = vol.data.snapshot();
        vol.undo = SimUndo {
            file: vol.undo.new.take(),
            new: None,
            was: Some(was),
            excused: writing.into_iter().collect(),
            given_up: false,
            saving: true,
            waiting: vol.undo.waiting,
        };
    }

    /// An order was carried out.
    pub(super) fn undo_done(&mut self, node: usize, volume: usize, answer: UndoAnswer) {
        let files = self.undo_files(node, volume);
        files.waiting = files.waiting.saturating_sub(1);
        if matches!(answer, UndoAnswer::Saved { ok: true, .. })
            && let Some(file) = files.file.as_mut()
        {
            // A device of the simulator never fails to flush.
            let _ = file.sync();
        }
        self.event(node, Event::Undo { volume: nr(volume), answer });
    }

    /// What the victim had is there, in the file or on the disk.
    pub(super) fn check_undo(&mut self, node: usize, volume: usize, when: &str) {
        let vol = &mut self.nodes[node].volumes[volume];
        let SimUndo { file, was, excused, given_up, saving, .. } = &mut vol.undo;
        let (Some(was), false) = (was, *given_up) else { return };
        let Some(file) = file else {
            let text = format!("node {}: the undo file of volume {volume} is gone {when}", ["A", "B"][node]);
            return self.fail(Checker::Undo, text);
        };
        let mut old = [0; BLOCK];
        for page in (0..file.head().blocks()).filter(|page| !excused.contains(page)) {
            let saved = file.has(page);
            if saved && file.read(page, &mut old).is_err() {
                old = [0xaa; BLOCK];
            }
            let whole = was.same(page, if saved { Some(&old) } else { vol.data.page(page) });
            if !whole && (saved || *saving) {
                let text = format!(
                    "node {}: block {page} of volume {volume} is not what the victim had {when} ({})",
                    ["A", "B"][node],
                    if saved { "in the undo file" } else { "on the disk, and not in the undo file" }
                );
                return self.fail(Checker::Undo, text);
            }
        }
    }

    /// Looks at all undo files.
    pub(super) fn check_undos(&mut self) {
        for node in [A, B] {
            for volume in 0..self.differs.len() {
                self.check_undo(node, volume, "at a look");
            }
        }
    }
}

fn save(file: &mut UndoFile<Device>, blocks: &[OldBlocks], lost: &[(u64, u32)]) -> io::Result<()> {
    // The last block of a device may not be whole.
    let padded: Vec<(u64, Vec<u8>)> = blocks
        .iter()
        .map(|old| {
            let mut data = old.data.to_vec();
            data.resize(data.len().next_multiple_of(BLOCK), 0);
            (old.first, data)
        })
        .collect();
    let runs: Vec<Run<'_>> = padded.iter().map(|(first, data)| Run { first: *first, data }).collect();
    file.append(&runs)?;
    file.lose(lost)
}

fn words(order: &UndoOrder) -> String {
    match order {
        UndoOrder::Begin(_) => String::from("begin"),
        UndoOrder::Start => String::from("start"),
        UndoOrder::Save { token, blocks, lost } => {
            let runs: Vec<String> =
                blocks.iter().map(|old| format!("{}+{}", old.first, old.data.len().div_ceil(BLOCK))).collect();
            format!("save {token:x}: {} lost {lost:?}", runs.join(" "))
        }
        UndoOrder::Cancel => String::from("cancel"),
        UndoOrder::End => String::from("end"),
    }
}
