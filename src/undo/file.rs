//! One undo file: made, continued after a crash, read.
//!
//! Owns the position of the next record and the set of blocks that are saved. Invariants: what [`UndoFile::append`] wrote is
//! relied on only after [`UndoFile::sync`]; a block is saved once; a record that was durable and is not whole any more makes
//! the file one that is not complete, and costs nothing but its own blocks.

use std::collections::BTreeMap;
use std::io;

use super::UndoIo;
use super::format::{BLOCK, Head, Kind, RECORD_BLOCKS_MAX, RUNS_MAX, Record};
use crate::units::GenId;

/// Old contents of consecutive blocks.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// First block.
    pub first: u64,
    /// Whole blocks; one that the device's end cuts is filled up.
    pub data: &'a [u8],
}

/// An open undo file.
#[derive(Debug)]
pub struct UndoFile<I> {
    io: I,
    head: Head,
    end: u64,
    number: u64,
    /// Saved runs: first block to the block behind, and where the contents lie.
    saved: BTreeMap<u64, (u64, u64)>,
    blocks: u64,
    lost: Vec<(u64, u32)>,
    ended: bool,
    incomplete: bool,
    damaged: bool,
    /// Number of the last record that is durable.
    durable: u64,
}

/// Whether a file that was made for a resync belongs to the disk with this current identifier: a new one is for a resync that
/// has not begun while the disk has the generation that it is to save.
#[must_use]
pub fn belongs(head: &Head, current: GenId) -> bool {
    head.own[0].masked() != current.masked()
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl<I: UndoIo> UndoFile<I> {
    /// Begins a file; durable when this returns.
    ///
    /// # Errors
    /// Those of the file.
    pub fn create(mut io: I, head: Head) -> io::Result<Self> {
        io.write_at(0, &head.encode())?;
        io.sync()?;
        Ok(Self {
            io,
            head,
            end: BLOCK as u64,
            number: 0,
            saved: BTreeMap::new(),
            blocks: 0,
            lost: Vec::new(),
            ended: false,
            incomplete: false,
            damaged: false,
            durable: 0,
        })
    }

    /// Opens a file and reads what it saved, payloads included. Ends before the first record that is not whole, unless a later one
    /// says that it was.
    ///
    /// # Errors
    /// Those of the file; not an undo file.
    pub fn open(mut io: I) -> io::Result<Self> {
        let mut block = [0; BLOCK];
        if io.len()? < BLOCK as u64 {
            return Err(invalid("not an undo file: too short"));
        }
        io.read_at(0, &mut block)?;
        let head = Head::decode(&block).ok_or_else(|| invalid("not an undo file, or its head is damaged"))?;
        let mut file = Self {
            io,
            head,
            end: BLOCK as u64,
            number: 0,
            saved: BTreeMap::new(),
            blocks: 0,
            lost: Vec::new(),
            ended: false,
            incomplete: false,
            damaged: false,
            durable: 0,
        };
        let len = file.io.len()?;
        loop {
            if let Some(record) = file.next_record(len)? {
                let at = file.end + BLOCK as u64;
                file.take(&record, at);
                file.number = record.number;
                file.durable = file.durable.max(record.durable);
                file.end = at + record.payload_bytes();
            } else if let Some((at, number)) = file.record_behind(len)? {
                file.incomplete = true;
                file.damaged = true;
                (file.end, file.number) = (at, number - 1);
            } else {
                return Ok(file);
            }
        }
    }

    /// Where the next one lies, and its number, behind a record that was durable and is damaged; or a word that says that something is
    /// missing, whatever became of what was written before it.
    fn record_behind(&mut self, len: u64) -> io::Result<Option<(u64, u64)>> {
        let mut block = [0; BLOCK];
        let mut at = self.end;
        while at + 2 * BLOCK as u64 <= len {
            at += BLOCK as u64;
            self.io.read_at(at, &mut block)?;
            let behind = Record::decode(&block, self.head.salt).filter(|record| record.number > self.number);
            if let Some(record) = behind
                && (record.durable > self.number || record.kind == Kind::Incomplete)
            {
                return Ok(Some((at, record.number)));
            }
        }
        Ok(None)
    }

    fn next_record(&mut self, len: u64) -> io::Result<Option<Record>> {
        let mut block = [0; BLOCK];
        if self.end + BLOCK as u64 > len {
            return Ok(None);
        }
        self.io.read_at(self.end, &mut block)?;
        let Some(record) = Record::decode(&block, self.head.salt).filter(|r| r.number == self.number + 1) else {
            return Ok(None);
        };
        let at = self.end + BLOCK as u64;
        if at.checked_add(record.payload_bytes()).is_none_or(|end| end > len) {
            return Ok(None);
        }
        let mut crc = 0;
        for n in 0..record.payload_bytes() / BLOCK as u64 {
            self.io.read_at(at + n * BLOCK as u64, &mut block)?;
            crc = crc32c::crc32c_append(crc, &block);
        }
        let blocks = self.head.blocks();
        let inside =
            record.runs.iter().all(|(first, n)| first.checked_add(u64::from(*n)).is_some_and(|end| end <= blocks));
        Ok((crc == record.payload && inside).then_some(record))
    }

    fn take(&mut self, record: &Record, payload_at: u64) {
        match record.kind {
            Kind::End => self.ended = true,
            Kind::Incomplete => self.incomplete = true,
            Kind::Lost => self.lost.extend(&record.runs),
            Kind::Data => {
                let mut at = payload_at;
                for (first, count) in &record.runs {
                    for block in *first..first + u64::from(*count) {
                        self.keep(block, at);
                        at += BLOCK as u64;
                    }
                }
            }
        }
    }

    /// Remembers where a block lies, unless it is known; joins it to the run before it.
    fn keep(&mut self, block: u64, at: u64) {
        let before = self.saved.range_mut(..=block).next_back();
        if let Some((first, (behind, start))) = before {
            if *behind > block {
                return;
            }
            if *behind == block && *start + (block - first) * BLOCK as u64 == at {
                *behind += 1;
                self.blocks += 1;
                return;
            }
        }
        self.saved.insert(block, (block + 1, at));
        self.blocks += 1;
    }

    /// What it belongs to.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The file itself.
    pub fn into_io(self) -> I {
        self.io
    }

    /// Bytes of all records and the head.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end
    }

    /// Saved blocks.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Saved runs of blocks, in order; neighbours may be separate runs.
    pub fn runs(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        self.saved.iter().map(|(first, (behind, _))| *first..*behind)
    }

    /// Blocks whose old contents could not be read.
    #[must_use]
    pub fn lost(&self) -> &[(u64, u32)] {
        &self.lost
    }

    /// Whether the block is saved.
    #[must_use]
    pub fn has(&self, block: u64) -> bool {
        self.saved.range(..=block).next_back().is_some_and(|(_, (behind, _))| *behind > block)
    }

    /// The resync has ended.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Blocks were overwritten without being saved.
    #[must_use]
    pub const fn incomplete(&self) -> bool {
        self.incomplete
    }

    /// A record that was durable is not whole any more.
    #[must_use]
    pub const fn damaged(&self) -> bool {
        self.damaged
    }

    /// Appends old contents; blocks that are saved already are skipped when the file is read. Not durable before
    /// [`Self::sync`].
    ///
    /// # Errors
    /// Those of the file; what was written is not counted then.
    pub fn append(&mut self, runs: &[Run<'_>]) -> io::Result<()> {
        let mut pending: Vec<(u64, &[u8])> = Vec::new();
        let mut blocks = 0;
        let most = usize::try_from(RECORD_BLOCKS_MAX).unwrap_or(usize::MAX) * BLOCK;
        for run in runs {
            let mut first = run.first;
            for piece in run.data.chunks(most) {
                let count = (piece.len() / BLOCK) as u64;
                if pending.len() == RUNS_MAX || blocks + count > RECORD_BLOCKS_MAX {
                    self.record(Kind::Data, &std::mem::take(&mut pending))?;
                    blocks = 0;
                }
                pending.push((first, piece));
                (blocks, first) = (blocks + count, first + count);
            }
        }
        if pending.is_empty() { Ok(()) } else { self.record(Kind::Data, &pending) }
    }

    fn record(&mut self, kind: Kind, runs: &[(u64, &[u8])]) -> io::Result<()> {
        let crc = runs.iter().fold(0, |crc, (_, data)| crc32c::crc32c_append(crc, data));
        let count = |data: &[u8]| u32::try_from(data.len() / BLOCK).unwrap_or(u32::MAX);
        let record = Record {
            kind,
            number: self.number + 1,
            durable: self.durable,
            runs: runs.iter().map(|(first, data)| (*first, count(data))).collect(),
            payload: crc,
        };
        let mut at = self.end + BLOCK as u64;
        for (_, data) in runs {
            self.io.write_at(at, data)?;
            at += data.len() as u64;
        }
        self.io.write_at(self.end, &record.encode(self.head.salt))?;
        self.take(&record, self.end + BLOCK as u64);
        self.number = record.number;
        self.end = at;
        Ok(())
    }

    fn word(&mut self, kind: Kind, runs: &[(u64, u32)]) -> io::Result<()> {
        let record = Record { kind, number: self.number + 1, durable: self.durable, runs: runs.to_vec(), payload: 0 };
        self.io.write_at(self.end, &record.encode(self.head.salt))?;
        self.take(&record, self.end);
        self.number = record.number;
        self.end += BLOCK as u64;
        Ok(())
    }

    /// Writes down that these blocks could not be read.
    ///
    /// # Errors
    /// Those of the file.
    pub fn lose(&mut self, runs: &[(u64, u32)]) -> io::Result<()> {
        runs.chunks(RUNS_MAX).try_for_each(|runs| self.word(Kind::Lost, runs))
    }

    /// Writes down that the resync has ended; durable when this returns.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(&mut self) -> io::Result<()> {
        self.word(Kind::End, &[])?;
        self.sync()
    }

    /// Writes down that not everything is saved; durable when this returns.
    ///
    /// # Errors
    /// Those of the file.
    pub fn give_up(&mut self) -> io::Result<()> {
        self.incomplete = true;
        self.word(Kind::Incomplete, &[])?;
        self.sync()
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// Those of the file.
    pub fn sync(&mut self) -> io::Result<()> {
        self.io.sync()?;
        self.durable = self.number;
        Ok(())
    }

    /// Reads the old contents of a saved block.
    ///
    /// # Errors
    /// Those of the file; a block that is not saved.
    pub fn read(&mut self, block: u64, out: &mut [u8; BLOCK]) -> io::Result<()> {
        let found = self.saved.range(..=block).next_back().filter(|(_, (behind, _))| *behind > block);
        let Some((first, (_, start))) = found else { return Err(invalid("the block is not in the undo file")) };
        let at = start + (block - first) * BLOCK as u64;
        self.io.read_at(at, out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemFile;
    use super::*;

    fn head() -> Head {
        Head {
            resource: "r0".into(),
            volume: 0,
            device: 7,
            sectors: 8 * 4096,
            own: [GenId(0x10), GenId(2), GenId(0), GenId(0)],
            peer: [GenId(0x20), GenId(2), GenId(0), GenId(0)],
            after: GenId(0x20),
            made: 1,
            good: true,
            redo: false,
            up_to_date: true,
            salt: 5,
        }
    }

    fn block(byte: u8) -> [u8; BLOCK] {
        [byte; BLOCK]
    }

    #[test]
    fn the_first_record_of_a_block_counts_and_a_torn_one_ends_the_file() {
        let mut io = MemFile::default();
        let mut file = UndoFile::create(&mut io, head()).expect("memory");
        let two = [block(1), block(2)].concat();
        file.append(&[Run { first: 10, data: &two }, Run { first: 30, data: &block(3) }]).expect("memory");
        file.append(&[Run { first: 11, data: &[block(8), block(9)].concat() }]).expect("memory");
        file.lose(&[(40, 2)]).expect("memory");
        let whole = file.bytes();
        file.append(&[Run { first: 50, data: &block(7) }]).expect("memory");
        let check = |io: &mut MemFile, last: bool| {
            let mut file = UndoFile::open(io).expect("a file");
            let mut out = block(0);
            for (at, byte) in [(10, 1), (11, 2), (12, 9), (30, 3)] {
                file.read(at, &mut out).expect("saved");
                assert_eq!(out, block(byte), "block {at}");
            }
            assert_eq!((file.has(50), file.has(13), file.lost()), (last, false, &[(40, 2)][..]));
            assert_eq!(file.blocks(), 4 + u64::from(last));
            assert!(!file.ended());
        };
        check(&mut io.clone(), true);
        let mut torn = io.clone();
        *torn.0.last_mut().expect("bytes") ^= 1;
        check(&mut torn, false);
        io.0.truncate(io.0.len() - 1);
        check(&mut io, false);
        // What follows the torn one is written over it.
        let mut file = UndoFile::open(&mut io).expect("a file");
        assert_eq!(file.bytes(), whole);
        file.append(&[Run { first: 50, data: &block(6) }]).expect("memory");
        file.finish().expect("memory");
        assert!(UndoFile::open(&mut io).expect("a file").ended());
    }

    #[test]
    fn damage_to_what_was_durable_is_noticed_and_costs_only_that() {
        for synced in [true, false] {
            let mut io = MemFile::default();
            let mut file = UndoFile::create(&mut io, head()).expect("memory");
            for n in 1..4u8 {
                file.append(&[Run { first: u64::from(n) * 10, data: &block(n) }]).expect("memory");
                if synced {
                    file.sync().expect("memory");
                }
            }
            let third = usize::try_from(file.bytes()).expect("small") - 2 * BLOCK;
            file.finish().expect("memory");
            // One bit of the second record's contents.
            io.0[third - 100] ^= 1;
            let mut file = UndoFile::open(&mut io).expect("a file");
            // What was not synced together with it, and nobody relied on, says nothing of damage.
            assert_eq!((file.damaged(), file.incomplete(), file.ended()), (synced, synced, synced), "{synced}");
            assert_eq!((file.has(10), file.has(20), file.has(30)), (true, false, synced));
            let mut out = block(0);
            if synced {
                file.read(30, &mut out).expect("saved");
                assert_eq!(out, block(3));
            }
        }
    }

    #[test]
    fn a_file_that_was_given_up_after_a_failed_sync_does_not_pass_for_one_that_goes_on() {
        let mut io = MemFile::default();
        let mut file = UndoFile::create(&mut io, head()).expect("memory");
        file.append(&[Run { first: 10, data: &block(1) }]).expect("memory");
        let torn = usize::try_from(file.bytes()).expect("small") - 1;
        file.give_up().expect("memory");
        // The sync before had failed: nobody knows what of it is there.
        io.0[torn] ^= 1;
        let file = UndoFile::open(&mut io).expect("a file");
        assert!(file.incomplete() && !file.has(10));
    }

    #[test]
    fn heads_and_runs_that_cannot_be_are_refused() {
        let mut io = MemFile::default();
        UndoFile::create(&mut io, Head { sectors: u64::MAX, ..head() }).expect("memory");
        assert!(UndoFile::open(&mut io).is_err());
        let mut file = UndoFile::create(MemFile::default(), head()).expect("memory");
        file.lose(&[(u64::MAX, 7)]).expect("memory");
        assert_eq!(UndoFile::open(file.into_io()).expect("a file").lost(), &[]);
    }

    #[test]
    fn long_runs_are_cut_into_records() {
        let mut io = MemFile::default();
        let mut file = UndoFile::create(&mut io, head()).expect("memory");
        let data: Vec<u8> = (0..3000u32).flat_map(|n| [u8::try_from(n % 251).unwrap_or(0); BLOCK]).collect();
        file.append(&[Run { first: 0, data: &data }]).expect("memory");
        let mut file = UndoFile::open(&mut io).expect("a file");
        assert_eq!((file.blocks(), file.runs().count()), (3000, 2));
        let mut out = block(0);
        file.read(2999, &mut out).expect("saved");
        assert_eq!(out[0], u8::try_from(2999 % 251).unwrap_or(0));
    }
}
