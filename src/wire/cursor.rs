//! Big-endian reading of a byte slice, and of NUL-terminated text. Never panics: too few bytes are a [`Fault`].

use super::error::Fault;

/// A position in a byte slice.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// All bytes left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 32 bits, signed.
    pub fn i32(&mut self) -> Result<i32, Fault> {
        self.array().map(i32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_be_bytes)
    }
}

/// The bytes before the first NUL; all of them if there is none.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_big_endian_and_stops_at_the_end() {
        let mut r = Reader::new(&[1, 0, 2, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff, 9]);
        assert_eq!((r.u8(), r.u16(), r.u32(), r.i32()), (Ok(1), Ok(2), Ok(3), Ok(-1)));
        assert_eq!(r.u64(), Err(Fault::Truncated));
        assert_eq!(r.take(2), Err(Fault::Truncated));
        assert_eq!(r.take_rest(), [9]);
        assert_eq!(r.u8(), Err(Fault::Truncated));
    }

    #[test]
    fn text_ends_at_the_first_nul() {
        assert_eq!(until_nul(b"md5\0\0x"), b"md5");
        assert_eq!(until_nul(b"md5"), b"md5");
        assert_eq!(until_nul(b""), b"");
    }
}
