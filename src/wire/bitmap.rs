//! Bitmap transfer (wire.md 8): a sender that cuts a bitmap into packets and a receiver that merges them.
//!
//! Bit `i` is bit `i % 64` of word `i / 64`, lowest first; bits behind the last one are ignored. Both sides work in
//! slices, because a bitmap of a 16 TiB device has 2^32 bits and the caller must answer pings meanwhile. Both keep a
//! position in bits (for coded chunks) and one in words (for plain chunks), which follow each other by the rule of 8.4.

use bytes::{BufMut, Bytes, BytesMut};

use super::bitmap_code::{CodeReader, CodeWriter};
use super::error::BitmapFault;
use super::feature::Version;
use super::packet::Packet;

/// A bitmap to be sent. Bits may be set (never cleared) between two slices; whether those are sent is open.
pub trait BitSource {
    /// Number of bits.
    fn bits(&self) -> u64;
    /// Word `index`, for every index below `bits / 64` rounded up.
    fn word(&self, index: u64) -> u64;
}

/// A bitmap to be merged into.
pub trait BitSink {
    /// Sets the bits from `first` up to, not including, `end`.
    fn set_range(&mut self, first: u64, end: u64);
    /// Sets the bits of `word` in word `index`; `word` is never 0.
    fn or_word(&mut self, index: u64, word: u64);
}

/// A body never exceeds what fits into 4096 bytes with its header.
const fn body_max(version: Version) -> usize {
    4096 - version.header_len()
}

/// What a slice of sending gave.
#[derive(Debug, PartialEq, Eq)]
pub enum SendStep {
    /// Send this, then call again.
    Packet(Packet),
    /// The slice was used up; call again.
    Again,
    /// Everything was sent.
    Done,
}

/// Cuts a bitmap into packets.
#[derive(Debug)]
pub struct BitmapSender {
    bits: u64,
    /// Everything before this bit was sent.
    bit: u64,
    /// Everything before this word was sent.
    word: u64,
    body_max: usize,
    rle: bool,
    coding: Option<Coding>,
    done: bool,
}

/// A coded chunk in the making.
#[derive(Debug)]
struct Coding {
    writer: CodeWriter,
    /// First bit of the chunk.
    start: u64,
    /// First bit of the run that is being measured; all before are in the code.
    run_start: u64,
    /// Bits from `run_start` up to here are known to belong to the run.
    scanned: u64,
    /// Whether the run is one of set bits.
    set: bool,
    /// Whether the first run of the chunk is one of set bits.
    first_set: bool,
}

impl BitmapSender {
    /// A sender for a bitmap of `bits` bits. `use_rle` is the option of that name; versions below 90 send plain chunks.
    #[must_use]
    pub fn new(bits: u64, version: Version, use_rle: bool) -> Self {
        let rle = use_rle && version.nr() >= 90;
        Self { bits, bit: 0, word: 0, body_max: body_max(version), rle, coding: None, done: false }
    }

    /// Works through at most `words` words of the bitmap, and gives out at most one packet.
    pub fn step(&mut self, source: &impl BitSource, words: u64) -> SendStep {
        if self.done {
            return SendStep::Done;
        }
        if self.rle && self.bit < self.bits {
            match self.code(source, words) {
                CodeStep::Again => SendStep::Again,
                CodeStep::Packet(body) => SendStep::Packet(Packet::CompressedBitmap(body)),
                CodeStep::Incompressible => SendStep::Packet(self.plain(source)),
            }
        } else {
            SendStep::Packet(self.plain(source))
        }
    }

    /// Share of the bitmap that was sent, in bits: (sent, all).
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        (self.bit, self.bits)
    }

    fn code(&mut self, source: &impl BitSource, words: u64) -> CodeStep {
        let mut c = self.coding.take().unwrap_or_else(|| {
            let set = source.word(self.bit / 64) >> (self.bit % 64) & 1 == 1;
            Coding {
                writer: CodeWriter::new(self.body_max - 1),
                start: self.bit,
                run_start: self.bit,
                scanned: self.bit,
                set,
                first_set: set,
            }
        });
        let mut words_left = words.max(1);
        while c.run_start < self.bits {
            let Some(end) = self.run_end(source, &mut c, &mut words_left) else {
                self.coding = Some(c);
                return CodeStep::Again;
            };
            if !c.writer.push(end - c.run_start) {
                break;
            }
            (c.run_start, c.scanned, c.set) = (end, end, !c.set);
        }
        if c.run_start - c.start < c.writer.byte_count() * 8 {
            self.word = c.start / 64;
            return CodeStep::Incompressible;
        }
        self.bit = c.run_start;
        self.word = self.bit / 64;
        self.done = self.bit == self.bits;
        CodeStep::Packet(c.writer.finish(c.first_set))
    }

    /// The end of the current run; `None` when the words of this slice were used up before.
    fn run_end(&self, source: &impl BitSource, c: &mut Coding, words_left: &mut u64) -> Option<u64> {
        let flip = if c.set { u64::MAX } else { 0 };
        let mut word = c.scanned / 64;
        let mut others = (source.word(word) ^ flip) & (u64::MAX << (c.scanned % 64));
        while others == 0 {
            word += 1;
            c.scanned = word * 64;
            if c.scanned >= self.bits {
                return Some(self.bits);
            }
            *words_left -= 1;
            if *words_left == 0 {
                *words_left = 1;
                return None;
            }
            others = source.word(word) ^ flip;
        }
        Some((word * 64 + u64::from(others.trailing_zeros())).min(self.bits))
    }

    fn plain(&mut self, source: &impl BitSource) -> Packet {
        let words = self.bits.div_ceil(64);
        let end = words.min(self.word + self.body_max as u64 / 8);
        let mut body = BytesMut::with_capacity(self.body_max);
        for index in self.word..end {
            body.put_u64_le(source.word(index) & valid_bits(index, self.bits));
        }
        // An empty chunk is the end of the transfer.
        self.done = end == self.word;
        self.word = end;
        self.bit = (end * 64).min(self.bits);
        Packet::Bitmap(body.freeze())
    }
}

enum CodeStep {
    Packet(Bytes),
    Incompressible,
    Again,
}

/// The bits of word `index` that exist.
const fn valid_bits(index: u64, bits: u64) -> u64 {
    let left = bits.saturating_sub(index * 64);
    if left >= 64 { u64::MAX } else { (1 << left) - 1 }
}

/// How far a receiver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The slice was used up; call [`BitmapReceiver::step`] again before the next packet.
    Again,
    /// The next packet is wanted.
    More,
    /// The bitmap is complete.
    Complete,
}

/// Merges the packets of one transfer into a bitmap.
#[derive(Debug)]
pub struct BitmapReceiver {
    bits: u64,
    /// Everything before this bit was received.
    bit: u64,
    /// Everything before this word was received.
    word: u64,
    body_max: usize,
    coding: Option<Decoding>,
    complete: bool,
}

/// A coded chunk being merged.
#[derive(Debug)]
struct Decoding {
    reader: CodeReader,
    /// Whether the next run is one of set bits.
    set: bool,
    /// End of the run of set bits that is being merged from the receiver's position on.
    filling: Option<u64>,
}

impl BitmapReceiver {
    /// A receiver for a bitmap of `bits` bits.
    #[must_use]
    pub const fn new(bits: u64, version: Version) -> Self {
        Self { bits, bit: 0, word: 0, body_max: body_max(version), coding: None, complete: false }
    }

    /// Merges a `P_BITMAP`. Never [`Progress::Again`].
    pub fn plain(&mut self, body: &[u8], sink: &mut impl BitSink) -> Result<Progress, BitmapFault> {
        self.check_expecting()?;
        let words = (self.bits.div_ceil(64) - self.word).min(self.body_max as u64 / 8);
        let want = usize::try_from(words).unwrap_or(usize::MAX) * 8;
        if body.len() != want {
            return Err(BitmapFault::ChunkLength { got: body.len(), want });
        }
        let (chunks, _) = body.as_chunks::<8>();
        for (index, bytes) in (self.word..).zip(chunks) {
            let word = u64::from_le_bytes(*bytes) & valid_bits(index, self.bits);
            if word != 0 {
                sink.or_word(index, word);
            }
        }
        self.word += words;
        self.bit = (self.word * 64).min(self.bits);
        self.complete = words == 0;
        Ok(if self.complete { Progress::Complete } else { Progress::More })
    }

    /// Takes a `P_COMPRESSED_BITMAP` and merges at most `words` words of it.
    pub fn compressed(&mut self, body: Bytes, sink: &mut impl BitSink, words: u64) -> Result<Progress, BitmapFault> {
        self.check_expecting()?;
        let (reader, set) = CodeReader::new(body)?;
        self.coding = Some(Decoding { reader, set, filling: None });
        self.step(sink, words)
    }

    /// Goes on merging.
    pub fn step(&mut self, sink: &mut impl BitSink, words: u64) -> Result<Progress, BitmapFault> {
        let mut bits_left = words.max(1).saturating_mul(64);
        while let Some(c) = &mut self.coding {
            if let Some(end) = c.filling {
                let part = end.min(self.bit.saturating_add(bits_left));
                if part > self.bit {
                    bits_left -= part - self.bit;
                    sink.set_range(self.bit, part);
                    self.bit = part;
                }
                if part < end {
                    return Ok(Progress::Again);
                }
                c.filling = None;
            }
            let Some(run) = c.reader.next_run()? else {
                self.coding = None;
                self.word = self.bit / 64;
                self.complete = self.bit == self.bits;
                break;
            };
            let end = self.bit.checked_add(run).filter(|end| *end <= self.bits);
            let end = end.ok_or(BitmapFault::RunOverflow { run, at: self.bit, bits: self.bits })?;
            if c.set {
                c.filling = Some(end);
            } else {
                self.bit = end;
            }
            c.set = !c.set;
        }
        Ok(if self.complete { Progress::Complete } else { Progress::More })
    }

    /// Share of the bitmap that was received, in bits: (received, all).
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        (self.bit, self.bits)
    }

    const fn check_expecting(&self) -> Result<(), BitmapFault> {
        if self.complete {
            return Err(BitmapFault::Complete);
        }
        if self.coding.is_some() {
            return Err(BitmapFault::Unfinished);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
