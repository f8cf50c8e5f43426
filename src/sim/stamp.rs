//! What the simulated clients write: every sector says which write it belongs to and where it should be.
//!
//! A stamp fills the whole sector and depends on the write and the sector's number, so a piece that came from a wrong
//! offset, a wrong write or two writes at once is recognised ([`Content::Alien`]). Zeroes are their own content: they may
//! be the initial contents, a discard or written zeroes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::engine::rng::mix;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
const WORDS: u64 = 64;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Number of a client's write, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub u64);

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeroes.
    Zero,
    /// The data of this write for this sector, whole.
    Write(WriteId),
    /// Anything else.
    Alien,
}

fn base(write: WriteId, sector: u64) -> u64 {
    mix(write.0.wrapping_mul(0x1_0000_0001) ^ sector.wrapping_mul(0xd6e8_feb8_6659_fd93))
}

/// The data of a write of `count` sectors from `start`.
#[must_use]
pub fn data(write: WriteId, start: u64, count: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(usize::try_from(count).unwrap_or(0) * SECTOR);
    for sector in start..start + count {
        let base = base(write, sector);
        out.put_u64_le(write.0);
        out.put_u64_le(sector);
        for word in 2..WORDS {
            out.put_u64_le(base.wrapping_add(word.wrapping_mul(STEP)));
        }
    }
    out.freeze()
}

/// Reads the stamp of one sector.
#[must_use]
pub fn content(bytes: &[u8], sector: u64) -> Content {
    let mut words = bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
    let (Some(write), Some(at)) = (words.next(), words.next()) else { return Content::Alien };
    if write == 0 {
        return if at == 0 && words.all(|w| w == 0) { Content::Zero } else { Content::Alien };
    }
    let base = base(WriteId(write), sector);
    let whole = at == sector && (2..WORDS).zip(words).all(|(i, w)| w == base.wrapping_add(i.wrapping_mul(STEP)));
    if whole { Content::Write(WriteId(write)) } else { Content::Alien }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_only_where_it_belongs_and_only_whole() {
        let data = data(WriteId(7), 100, 3);
        for i in 0..3 {
            let at = i * SECTOR;
            assert_eq!(content(&data[at..at + SECTOR], 100 + i as u64), Content::Write(WriteId(7)));
            assert_eq!(content(&data[at..at + SECTOR], 101 + i as u64), Content::Alien);
        }
        let mut torn = data[..SECTOR].to_vec();
        torn[511] ^= 1;
        assert_eq!(content(&torn, 100), Content::Alien);
        assert_eq!(content(&[0; SECTOR], 5), Content::Zero);
    }
}
