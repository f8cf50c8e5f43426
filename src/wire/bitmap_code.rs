//! The variable-length code of run lengths in `P_COMPRESSED_BITMAP` (wire.md 8.3): ten ranges, each with a prefix and a
//! number of data bits, in a bit stream whose first bit is the lowest bit of the first byte. The code is complete:
//! every bit string decodes. A run of length 0 cannot be said.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::BitmapFault;

/// One range of run lengths.
#[derive(Clone, Copy)]
struct Range {
    /// Prefix as a number; the first bit of the stream is the lowest.
    prefix: u64,
    prefix_bits: u32,
    data_bits: u32,
    /// The shortest run of the range.
    first: u64,
}

const fn range(prefix: u64, prefix_bits: u32, data_bits: u32, first: u64) -> Range {
    Range { prefix, prefix_bits, data_bits, first }
}

const RANGES: [Range; 10] = [
    range(0x00, 1, 1, 1),
    range(0x01, 2, 1, 3),
    range(0x03, 3, 2, 5),
    range(0x07, 4, 3, 9),
    range(0x0f, 5, 5, 17),
    range(0x1f, 6, 8, 49),
    range(0x3f, 8, 13, 305),
    range(0x7f, 8, 21, 8497),
    range(0xbf, 8, 34, 2_105_649),
    range(0xff, 8, 56, 17_181_974_833),
];

/// The longest run that the code can say.
pub const RUN_MAX: u64 = 72_057_611_219_902_768;

const _: () = {
    let mut i = 0;
    while i < 10 {
        let r = RANGES[i];
        let next = if i < 9 { RANGES[i + 1].first } else { RUN_MAX + 1 };
        assert!(r.first + (1 << r.data_bits) == next, "the ranges follow each other without a gap");
        assert!(r.prefix_bits + r.data_bits <= 64, "a code word fits into 64 bits");
        i += 1;
    }
};

/// Runs below this have their code words in a table: noisy bitmaps are made of them, and a search per run would cost
/// several times the rest.
const SHORT_END: usize = 305;

static SHORT: [(u16, u8); SHORT_END] = short_codes();

#[expect(clippy::cast_possible_truncation, reason = "the code words of these runs have at most 14 bits")]
const fn short_codes() -> [(u16, u8); SHORT_END] {
    let mut table = [(0, 0); SHORT_END];
    let mut i = 0;
    while RANGES[i].first < SHORT_END as u64 {
        let r = RANGES[i];
        let mut data = 0;
        while data < 1 << r.data_bits {
            let run = (r.first + data) as usize;
            table[run] = ((r.prefix | data << r.prefix_bits) as u16, (r.prefix_bits + r.data_bits) as u8);
            data += 1;
        }
        i += 1;
    }
    table
}

/// The code word of a run: bits (first one lowest) and their number. A run of 0 has none.
fn code_of(run: u64) -> Option<(u64, u32)> {
    if let Some(&(code, bits)) = usize::try_from(run).ok().and_then(|run| SHORT.get(run)) {
        return (bits != 0).then_some((code.into(), bits.into()));
    }
    let r = RANGES.iter().find(|r| run < r.first + (1 << r.data_bits))?;
    Some((r.prefix | (run - r.first) << r.prefix_bits, r.prefix_bits + r.data_bits))
}

/// The range whose prefix `bits` begins with.
fn range_of(bits: u64) -> Range {
    let index = match bits.trailing_ones() {
        ones @ 0..=5 => ones as usize,
        6 if bits & 0x80 == 0 => 6,
        6 => 8,
        7 => 7,
        _ => 9,
    };
    RANGES[index]
}

/// Writes code words into a buffer of limited length.
#[derive(Debug)]
pub(super) struct CodeWriter {
    out: BytesMut,
    /// Bits that are not in `out` yet, and their number (below 64).
    bits: u64,
    count: u32,
    capacity: u64,
    used: u64,
}

impl CodeWriter {
    /// A writer of at most `bytes_max` bytes, behind a first byte that [`Self::finish`] sets.
    pub(super) fn new(bytes_max: usize) -> Self {
        let mut out = BytesMut::with_capacity(bytes_max + 1);
        out.put_u8(0);
        Self { out, bits: 0, count: 0, capacity: bytes_max as u64 * 8, used: 0 }
    }

    /// Appends a run; false (and nothing appended) when it does not fit.
    pub(super) fn push(&mut self, run: u64) -> bool {
        let Some((code, len)) = code_of(run) else { return false };
        if self.used + u64::from(len) > self.capacity {
            return false;
        }
        self.used += u64::from(len);
        self.bits |= code << self.count;
        if self.count + len < 64 {
            self.count += len;
        } else {
            self.out.put_u64_le(self.bits);
            let written = 64 - self.count;
            self.bits = code.checked_shr(written).unwrap_or(0);
            self.count = len - written;
        }
        true
    }

    /// Bytes used for code words.
    pub(super) fn byte_count(&self) -> u64 {
        self.used.div_ceil(8)
    }

    /// The body of the packet: encoding byte and code.
    pub(super) fn finish(mut self, first_set: bool) -> Bytes {
        let rest = usize::try_from(self.count.div_ceil(8)).unwrap_or(0);
        self.out.put_slice(&self.bits.to_le_bytes()[..rest]);
        let pad = u8::try_from(self.byte_count() * 8 - self.used).unwrap_or(0);
        self.out[0] = ENCODING | pad << 4 | if first_set { FIRST_SET } else { 0 };
        self.out.freeze()
    }
}

/// The only encoding.
const ENCODING: u8 = 2;
/// Flag in the encoding byte: the first run is one of set bits.
const FIRST_SET: u8 = 0x80;

/// Reads code words.
#[derive(Debug)]
pub(super) struct CodeReader {
    code: Bytes,
    /// Next bit, and the end, in bits from the start of `code`.
    at: u64,
    end: u64,
}

impl CodeReader {
    /// A reader of a packet's body; with it, whether the first run is one of set bits.
    pub(super) fn new(mut body: Bytes) -> Result<(Self, bool), BitmapFault> {
        if body.is_empty() {
            return Err(BitmapFault::CodeTruncated);
        }
        let code = body.split_off(1);
        let head = body[0];
        if head & 0x0f != ENCODING {
            return Err(BitmapFault::Encoding(head & 0x0f));
        }
        let pad = u64::from(head >> 4 & 0x7);
        let end = (code.len() as u64 * 8).checked_sub(pad).filter(|end| *end > 0).ok_or(BitmapFault::CodeTruncated)?;
        Ok((Self { code, at: 0, end }, head & FIRST_SET != 0))
    }

    /// The next run; `None` at the end of the code.
    pub(super) fn next_run(&mut self) -> Result<Option<u64>, BitmapFault> {
        let left = self.end - self.at;
        if left == 0 {
            return Ok(None);
        }
        let bits = self.peek();
        let r = range_of(bits);
        let len = r.prefix_bits + r.data_bits;
        if u64::from(len) > left {
            return Err(BitmapFault::CodeTruncated);
        }
        self.at += u64::from(len);
        Ok(Some(r.first + (bits >> r.prefix_bits & ((1 << r.data_bits) - 1))))
    }

    /// The next 64 bits; zeroes behind the end of the code.
    fn peek(&self) -> u64 {
        let start = usize::try_from(self.at / 8).unwrap_or(usize::MAX);
        let shift = u32::try_from(self.at % 8).unwrap_or(0);
        let rest = self.code.get(start..).unwrap_or_default();
        let mut window = [0; 16];
        let len = rest.len().min(9);
        window[..len].copy_from_slice(&rest[..len]);
        let wide = u128::from_le_bytes(window) >> shift;
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
        let low = wide as u64;
        low
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(body: Bytes) -> Result<(bool, Vec<u64>), BitmapFault> {
        let (mut reader, first) = CodeReader::new(body)?;
        let mut runs = Vec::new();
        while let Some(run) = reader.next_run()? {
            runs.push(run);
        }
        Ok((first, runs))
    }

    #[test]
    fn captured_packet_reads_as_its_runs_and_back() {
        let body = Bytes::from_static(&hex_literal::hex!("92 4ce6feb9050ffdb032"));
        let runs = vec![1, 7, 1, 7, 8, 488, 25, 3549];
        assert_eq!(read_all(body.clone()), Ok((true, runs.clone())));
        let mut writer = CodeWriter::new(4079);
        assert!(runs.iter().all(|run| writer.push(*run)));
        assert_eq!(writer.finish(true), body);
    }

    #[test]
    fn table_of_ranges() {
        for (run, bits) in [
            (1, 2),
            (2, 2),
            (3, 3),
            (4, 3),
            (5, 5),
            (8, 5),
            (9, 7),
            (16, 7),
            (17, 10),
            (48, 10),
            (49, 14),
            (304, 14),
            (305, 21),
            (8496, 21),
            (8497, 29),
            (2_105_648, 29),
            (2_105_649, 42),
            (17_181_974_832, 42),
            (17_181_974_833, 64),
            (RUN_MAX, 64),
        ] {
            let (code, len) = code_of(run).unwrap();
            assert_eq!(len, bits, "{run}");
            assert_eq!(range_of(code).prefix_bits + range_of(code).data_bits, bits, "{run}");
        }
        assert_eq!(code_of(0), None);
        assert_eq!(code_of(RUN_MAX + 1), None);
    }

    #[test]
    fn a_full_writer_takes_nothing_more() {
        let mut writer = CodeWriter::new(2);
        assert!((0..8).all(|_| writer.push(1)));
        assert!(!writer.push(1));
        assert_eq!(writer.finish(false).len(), 3);
    }

    #[test]
    fn bad_bodies() {
        assert_eq!(read_all(Bytes::new()), Err(BitmapFault::CodeTruncated));
        assert_eq!(read_all(Bytes::from_static(&[2])), Err(BitmapFault::CodeTruncated));
        assert_eq!(read_all(Bytes::from_static(&[3, 0])), Err(BitmapFault::Encoding(3)));
        // One bit left: no code word is that short.
        assert_eq!(read_all(Bytes::from_static(&[0x72, 0])), Err(BitmapFault::CodeTruncated));
        assert_eq!(read_all(Bytes::from_static(&[2, 0xff])), Err(BitmapFault::CodeTruncated));
    }

    fn run() -> impl Strategy<Value = u64> {
        (0..10usize).prop_flat_map(|i| {
            let end = RANGES.get(i + 1).map_or(RUN_MAX + 1, |r| r.first);
            RANGES[i].first..end
        })
    }

    proptest! {
        #[test]
        fn runs_read_back(runs in prop::collection::vec(run(), 1..200), first in any::<bool>()) {
            let mut writer = CodeWriter::new(4079);
            prop_assert!(runs.iter().all(|run| writer.push(*run)));
            prop_assert_eq!(read_all(writer.finish(first)), Ok((first, runs)));
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read_all(bytes.into());
        }
    }
}
