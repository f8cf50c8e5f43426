//! Heads and records as bytes. Nothing here reads or writes; see the room for what the format promises.

use crate::limits::DEVICE_SECTORS_MAX;
use crate::units::GenId;

/// Bytes of a block, of the head and of a record's head.
pub const BLOCK: usize = 4096;

const HEAD_MAGIC: [u8; 8] = *b"UDRBDUN2";
const RECORD_MAGIC: [u8; 8] = *b"UDRBDrec";

/// Runs that fit into one record.
pub const RUNS_MAX: usize = 250;
/// Payload of one record in blocks: a bound for readers, and less than a second of a slow disk.
pub const RECORD_BLOCKS_MAX: u64 = 2048;

/// What a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Name of the resource.
    pub resource: String,
    /// Number of the volume.
    pub volume: u16,
    /// The disk, by the `device-uuid` of its metadata.
    pub device: u64,
    /// Size of the device in sectors.
    pub sectors: u64,
    /// Identifiers of the data that it restores: current, bitmap, history.
    pub own: [GenId; 4],
    /// Identifiers of the data that replaced them.
    pub peer: [GenId; 4],
    /// The current identifier that the disk has when the file is complete.
    pub after: GenId,
    /// When it was begun, seconds since 1970.
    pub made: u64,
    /// The disk was consistent.
    pub good: bool,
    /// It was up to date.
    pub up_to_date: bool,
    /// Made by an undo: restores what that replaced.
    pub redo: bool,
    /// Differs between two files of the same name: records of one are none of the other's.
    pub salt: u64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Old contents.
    Data,
    /// These blocks could not be read before they were overwritten.
    Lost,
    /// The resync has ended: nothing more follows.
    End,
    /// From here on blocks were overwritten without being saved.
    Incomplete,
}

impl Kind {
    const fn code(self) -> u32 {
        match self {
            Self::Data => 1,
            Self::Lost => 2,
            Self::End => 3,
            Self::Incomplete => 4,
        }
    }

    const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Lost),
            3 => Some(Self::End),
            4 => Some(Self::Incomplete),
            _ => None,
        }
    }
}

/// Head of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: Kind,
    /// Counts from 1.
    pub number: u64,
    /// Every record up to this number was durable when this one was written: one of those that is not whole was damaged since.
    pub durable: u64,
    /// First block and number of blocks of each run, in the order of the payload.
    pub runs: Vec<(u64, u32)>,
    /// CRC32C of the payload.
    pub payload: u32,
}

impl Record {
    /// Blocks of all runs.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Bytes behind its head.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        if self.kind == Kind::Data { self.blocks() * BLOCK as u64 } else { 0 }
    }
}

struct Writer {
    out: [u8; BLOCK],
    at: usize,
}

impl Writer {
    const fn new() -> Self {
        Self { out: [0; BLOCK], at: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let end = (self.at + bytes.len()).min(BLOCK);
        self.out[self.at..end].copy_from_slice(&bytes[..end - self.at]);
        self.at = end;
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        let crc = crc32c::crc32c(&self.out[..BLOCK - 4]);
        self.out[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        self.out
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
}

fn opened(block: &[u8; BLOCK], magic: [u8; 8]) -> Option<Reader<'_>> {
    let (body, crc) = block.split_at(BLOCK - 4);
    let mut reader = Reader(body);
    let sound = reader.take(8)? == magic && crc32c::crc32c(body).to_le_bytes() == *crc;
    sound.then_some(reader)
}

/// Longest name of a resource in a head.
const NAME_MAX: usize = 1024;

impl Head {
    /// As bytes; a name that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut writer = Writer::new();
        writer.bytes(&HEAD_MAGIC);
        writer.u64(self.salt);
        writer.u64(self.device);
        writer.u64(self.sectors);
        writer.u64(self.made);
        for id in self.own.iter().chain(&self.peer).chain([&self.after]) {
            writer.u64(id.0);
        }
        writer.u32(u32::from(self.volume));
        writer.u32(u32::from(self.good) | u32::from(self.redo) << 1 | u32::from(self.up_to_date) << 2);
        let name = &self.resource.as_bytes()[..self.resource.len().min(NAME_MAX)];
        writer.u32(u32::try_from(name.len()).unwrap_or(0));
        writer.bytes(name);
        writer.sealed()
    }

    /// From bytes; `None`: not a head, or torn, or of a device that cannot be.
    #[must_use]
    pub fn decode(block: &[u8; BLOCK]) -> Option<Self> {
        let mut reader = opened(block, HEAD_MAGIC)?;
        let (salt, device, sectors, made) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        if sectors > DEVICE_SECTORS_MAX {
            return None;
        }
        let mut ids = [GenId(0); 9];
        for id in &mut ids {
            *id = GenId(reader.u64()?);
        }
        let [c, b, h0, h1, pc, pb, ph0, ph1, after] = ids;
        let volume = u16::try_from(reader.u32()?).ok()?;
        let flags = reader.u32()?;
        let len = usize::try_from(reader.u32()?).ok()?;
        let resource = String::from_utf8_lossy(reader.take(len)?).into_owned();
        Some(Self {
            resource,
            volume,
            device,
            sectors,
            own: [c, b, h0, h1],
            peer: [pc, pb, ph0, ph1],
            after,
            made,
            good: flags & 1 != 0,
            redo: flags & 2 != 0,
            up_to_date: flags & 4 != 0,
            salt,
        })
    }

    /// Blocks of the device, the last one perhaps not whole.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.sectors.div_ceil(8)
    }
}

impl Record {
    /// As bytes, for the file with this salt.
    #[must_use]
    pub fn encode(&self, salt: u64) -> [u8; BLOCK] {
        let mut writer = Writer::new();
        writer.bytes(&RECORD_MAGIC);
        writer.u64(salt);
        writer.u64(self.number);
        writer.u64(self.durable);
        writer.u32(self.kind.code());
        writer.u32(self.payload);
        writer.u32(u32::try_from(self.runs.len()).unwrap_or(u32::MAX));
        for (first, count) in &self.runs {
            writer.u64(*first);
            writer.u32(*count);
        }
        writer.sealed()
    }

    /// From bytes; `None`: not a record of that file, or torn.
    #[must_use]
    pub fn decode(block: &[u8; BLOCK], salt: u64) -> Option<Self> {
        let mut reader = opened(block, RECORD_MAGIC)?;
        if reader.u64()? != salt {
            return None;
        }
        let (number, durable) = (reader.u64()?, reader.u64()?);
        let kind = Kind::from_code(reader.u32()?)?;
        let payload = reader.u32()?;
        let len = usize::try_from(reader.u32()?).ok().filter(|len| *len <= RUNS_MAX)?;
        let mut runs = Vec::with_capacity(len);
        for _ in 0..len {
            runs.push((reader.u64()?, reader.u32()?));
        }
        let record = Self { kind, number, durable, runs, payload };
        (record.blocks() <= RECORD_BLOCKS_MAX || kind != Kind::Data).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_records_are_read_back_and_a_flipped_bit_is_noticed() {
        let id = |n: u64| GenId(n * 16);
        let head = Head {
            resource: "r0".into(),
            volume: 3,
            device: 0xd15c,
            sectors: 1234,
            own: [id(1), id(2), id(3), id(4)],
            peer: [id(5), id(6), id(7), id(8)],
            after: id(9),
            made: 99,
            good: true,
            redo: false,
            up_to_date: true,
            salt: 77,
        };
        let mut bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        bytes[100] ^= 1;
        assert_eq!(Head::decode(&bytes), None);
        let runs = (0..RUNS_MAX as u64).map(|n| (n * 3, 2)).collect();
        let record = Record { kind: Kind::Data, number: 5, durable: 3, runs, payload: 42 };
        let mut bytes = record.encode(77);
        assert_eq!(Record::decode(&bytes, 78), None);
        assert_eq!(Record::decode(&bytes, 77), Some(record));
        bytes[4000] ^= 1;
        assert_eq!(Record::decode(&bytes, 77), None);
    }
}
