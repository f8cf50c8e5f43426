//! The undo files of a resource: the engine's orders carried out on the file system, in their order.
//!
//! Owns the files that are being filled. Invariants: an order is answered only when what it asks for is durable; one sync
//! speaks for all saves that wait; a file that takes no more is marked so, and every later save of it is refused.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::{StateDir, now};
use crate::control::split_brain::{Undo, UndoState};
use crate::engine::undo::{OldBlocks, SavedBlocks, UndoAnswer, UndoHead, UndoOrder};
use crate::node::view::View;
use crate::undo::disk::{DiskFile, UndoPaths};
use crate::undo::file::{Run, UndoFile};
use crate::undo::format::{BLOCK, Head};
use crate::units::{GenId, VolumeNr};

/// Room that is left to others on the file system.
const RESERVE_BYTES: u64 = 64 << 20;

type File = UndoFile<DiskFile>;

/// See the module.
pub struct Undos {
    dir: StateDir,
    resource: String,
    view: Arc<View>,
    answers: UnboundedSender<(VolumeNr, UndoAnswer)>,
    filling: BTreeMap<VolumeNr, File>,
    begun: BTreeMap<VolumeNr, File>,
    /// Saves that are written and not synced.
    unsynced: Vec<(VolumeNr, u64)>,
    known: BTreeMap<VolumeNr, Undo>,
}

impl Undos {
    pub fn new(
        dir: StateDir,
        resource: &str,
        view: Arc<View>,
        answers: UnboundedSender<(VolumeNr, UndoAnswer)>,
    ) -> Self {
        Self {
            dir,
            resource: resource.to_owned(),
            view,
            answers,
            filling: BTreeMap::new(),
            begun: BTreeMap::new(),
            unsynced: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    fn paths(&self, volume: VolumeNr) -> UndoPaths {
        UndoPaths::new(&self.dir.path, &self.resource, volume.0)
    }

    fn answer(&self, volume: VolumeNr, answer: UndoAnswer) {
        // The shard may be gone.
        let _ = self.answers.send((volume, answer));
    }

    /// A disk is about to be attached: which blocks are saved, if a file is being filled for it.
    pub fn attach(&mut self, volume: VolumeNr, current: GenId) -> Option<SavedBlocks> {
        self.filling.remove(&volume);
        self.begun.remove(&volume);
        let found = self.reopen(volume, current).unwrap_or_else(|error| {
            self.complain(volume, &format!("the undo file cannot be used: {error}"));
            None
        })?;
        let saved = SavedBlocks { blocks: found.head().blocks(), runs: found.runs().collect() };
        self.filling.insert(volume, found);
        Some(saved)
    }

    fn reopen(&mut self, volume: VolumeNr, current: GenId) -> io::Result<Option<File>> {
        let paths = self.paths(volume);
        paths.settle(current)?;
        let Some(file) = paths.open(&paths.file, true)? else {
            self.forget(volume);
            return Ok(None);
        };
        self.learn(volume, &file);
        Ok((!file.ended() && !file.incomplete()).then_some(file))
    }

    /// Carries an order out; saves are answered by [`Self::sync`].
    pub fn order(&mut self, volume: VolumeNr, order: UndoOrder) {
        match order {
            UndoOrder::Begin(head) => {
                let begun = self.begin(volume, &head);
                self.answer(volume, UndoAnswer::Ready(begun));
            }
            UndoOrder::Start => self.start(volume),
            UndoOrder::Save { token, blocks, lost } => match self.save(volume, &blocks, &lost) {
                Ok(()) => self.unsynced.push((volume, token)),
                Err(error) => {
                    self.give_up(volume, &error);
                    self.answer(volume, UndoAnswer::Saved { token, ok: false });
                }
            },
            UndoOrder::Cancel => {
                self.begun.remove(&volume);
                let paths = self.paths(volume);
                if let Err(error) = paths.remove(&paths.new) {
                    self.complain(volume, &format!("{}: {error}", paths.new.display()));
                }
            }
            UndoOrder::End => self.end(volume),
        }
    }

    fn begin(&mut self, volume: VolumeNr, head: &UndoHead) -> bool {
        let limit = self.dir.undo_limit;
        if limit == 0 {
            self.complain(volume, "undo is off: the changes that this resync discards are lost");
            return false;
        }
        let needs = head.marked * BLOCK as u64;
        if needs > limit.min(self.free()) {
            self.complain(
                volume,
                &format!(
                    "{needs} bytes of changes are discarded, more than the undo file may take: it will be incomplete"
                ),
            );
        }
        let paths = self.paths(volume);
        let head = Head {
            resource: self.resource.clone(),
            volume: volume.0,
            device: head.device,
            sectors: head.size.0,
            own: head.own.slots().map(GenId),
            peer: head.peer.slots().map(GenId),
            after: head.peer.current,
            made: now(),
            good: head.good,
            up_to_date: head.up_to_date,
            redo: false,
            salt: getrandom::u64().unwrap_or_else(|_| now()),
        };
        match paths.create(&paths.new, head) {
            Ok(file) => {
                self.begun.insert(volume, file);
                tracing::info!(
                    resource = self.resource,
                    %volume,
                    "what this resync overwrites is kept in {}",
                    paths.file.display()
                );
                true
            }
            Err(error) => {
                self.complain(volume, &format!("no undo file, what this resync overwrites is lost: {error}"));
                false
            }
        }
    }

    fn start(&mut self, volume: VolumeNr) {
        let paths = self.paths(volume);
        let Some(file) = self.begun.remove(&volume) else { return };
        if let Err(error) = self.keep_half_undone(volume, &paths) {
            return self.complain(volume, &format!("{}: {error}", paths.redo.display()));
        }
        if paths.file.exists() {
            self.complain(volume, "the undo file of an earlier split brain is replaced");
        }
        match paths.promote(&paths.new, &paths.file) {
            Ok(()) => {
                self.learn(volume, &file);
                self.filling.insert(volume, file);
            }
            // Every save is refused then.
            Err(error) => self.complain(volume, &format!("{}: {error}", paths.file.display())),
        }
    }

    /// An undo that did not come to its end needs both its files: they get names of their own.
    fn keep_half_undone(&self, volume: VolumeNr, paths: &UndoPaths) -> io::Result<()> {
        if !paths.redo.try_exists()? {
            return Ok(());
        }
        for path in [&paths.file, &paths.redo] {
            if let Some(kept) = paths.set_aside(path)? {
                self.complain(volume, &format!("an undo was not completed; its file is kept as {}", kept.display()));
            }
        }
        Ok(())
    }

    fn free(&self) -> u64 {
        self.paths(VolumeNr(0)).free().saturating_sub(RESERVE_BYTES)
    }

    fn save(&mut self, volume: VolumeNr, blocks: &[OldBlocks], lost: &[(u64, u32)]) -> io::Result<()> {
        let free = self.free();
        let limit = self.dir.undo_limit;
        let Some(file) = self.filling.get_mut(&volume) else { return Err(io::ErrorKind::NotFound.into()) };
        let more = blocks.iter().map(|old| old.data.len() as u64 + BLOCK as u64).sum::<u64>();
        if file.bytes() + more > limit {
            return Err(io::Error::other(format!("it has reached its limit of {limit} bytes (--undo-limit)")));
        }
        if more > free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // The last block of a device may not be whole.
        let mut tails: Vec<Vec<u8>> = Vec::new();
        for old in blocks.iter().filter(|old| !old.data.len().is_multiple_of(BLOCK)) {
            let mut data = old.data.to_vec();
            data.resize(data.len().next_multiple_of(BLOCK), 0);
            tails.push(data);
        }
        let mut tails = tails.iter();
        let runs: Vec<Run<'_>> = blocks
            .iter()
            .map(|old| {
                let whole = old.data.len().is_multiple_of(BLOCK);
                let data = if whole { None } else { tails.next() };
                Run { first: old.first, data: data.map_or(&old.data[..], |data| &data[..]) }
            })
            .collect();
        file.append(&runs)?;
        file.lose(lost)
    }

    /// Makes durable what was saved, and answers.
    pub fn sync(&mut self) {
        let waiting = std::mem::take(&mut self.unsynced);
        let mut synced: BTreeMap<VolumeNr, bool> = BTreeMap::new();
        for (volume, _) in &waiting {
            if synced.contains_key(volume) {
                continue;
            }
            let result = self.filling.get_mut(volume).map_or(Ok(()), UndoFile::sync);
            synced.insert(*volume, result.is_ok());
            if let Err(error) = result {
                self.give_up(*volume, &error);
            } else if let Some(file) = self.filling.get(volume) {
                let found = undo(file, &self.paths(*volume));
                self.known.insert(*volume, found);
            }
        }
        for (volume, token) in waiting {
            let ok = synced.get(&volume).copied().unwrap_or(false);
            self.answer(volume, UndoAnswer::Saved { token, ok });
        }
    }

    fn give_up(&mut self, volume: VolumeNr, error: &io::Error) {
        let Some(mut file) = self.filling.remove(&volume) else { return };
        self.complain(volume, &format!("the undo file takes no more: {error}"));
        if let Err(error) = file.give_up() {
            // A later start would take it for one that goes on.
            self.complain(volume, &format!("the undo file cannot be marked as incomplete, it is removed: {error}"));
            let paths = self.paths(volume);
            let _ = paths.remove(&paths.file);
            return self.forget(volume);
        }
        self.learn(volume, &file);
    }

    fn end(&mut self, volume: VolumeNr) {
        let Some(mut file) = self.filling.remove(&volume) else { return };
        if let Err(error) = file.finish() {
            self.complain(volume, &format!("the undo file cannot be completed: {error}"));
        }
        self.learn(volume, &file);
        tracing::info!(
            resource = self.resource,
            %volume,
            "the undo file holds {} blocks: drbdctl split-brain {} says what can be done with it",
            file.blocks(),
            self.resource
        );
    }

    fn complain(&self, volume: VolumeNr, text: &str) {
        tracing::error!(resource = self.resource, %volume, "{text}");
    }

    fn learn(&mut self, volume: VolumeNr, file: &File) {
        let found = undo(file, &self.paths(volume));
        let text =
            "the undo file of the last split brain is incomplete: not everything that was discarded can be restored";
        let warning = (found.state == UndoState::Incomplete).then(|| text.to_owned());
        self.view.update(volume, |view| view.undo_warning.clone_from(&warning));
        self.known.insert(volume, found);
    }

    fn forget(&mut self, volume: VolumeNr) {
        self.known.remove(&volume);
        self.view.update(volume, |view| view.undo_warning = None);
    }

    /// What there is, as far as files are known; those that were removed are not.
    pub fn all(&mut self) -> BTreeMap<VolumeNr, Undo> {
        let gone: Vec<VolumeNr> =
            self.known.keys().copied().filter(|volume| !self.paths(*volume).file.exists()).collect();
        gone.into_iter().for_each(|volume| self.forget(volume));
        self.known.clone()
    }
}

fn undo(file: &File, paths: &UndoPaths) -> Undo {
    let state = match (file.incomplete(), file.ended()) {
        (true, _) => UndoState::Incomplete,
        (false, true) => UndoState::Complete,
        (false, false) => UndoState::Saving,
    };
    Undo {
        path: paths.file.display().to_string(),
        state,
        blocks: file.blocks(),
        bytes: file.bytes(),
        lost_blocks: file.lost().iter().map(|(_, count)| u64::from(*count)).sum(),
        made: file.head().made,
        redo: file.head().redo,
    }
}
