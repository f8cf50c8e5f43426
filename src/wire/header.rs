//! The three header formats and which one is used when (wire.md 2). The first packet of a TCP connection and the
//! feature packets always have the oldest one.

use bytes::BufMut;

use crate::units::VolumeNr;

use super::cursor::Reader;
use super::error::Fault;
use super::feature::Version;

/// Magic of the oldest header.
const MAGIC_80: u32 = 0x8374_0267;
/// Magic of the "big" header.
const MAGIC_95: u16 = 0x835a;
/// Magic of the header with a volume.
const MAGIC_100: u32 = 0x8620_ec20;

/// Length of the longest header in bytes.
pub const HEADER_LEN_MAX: usize = 16;

/// Up to this body length versions 95 to 99 use the oldest header.
const LEN_MAX_80: u32 = 32768;

/// A header format, named after the version that introduced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderFormat {
    /// 8 bytes: magic, command, 16-bit length.
    H80,
    /// 8 bytes: short magic, command, 32-bit length.
    H95,
    /// 16 bytes: magic, volume, command, 32-bit length, pad.
    H100,
}

impl HeaderFormat {
    /// The format that a sender uses for a body of `len` bytes.
    #[must_use]
    pub const fn for_sending(version: Version, len: u32) -> Self {
        match version.nr() {
            100.. => Self::H100,
            95..=99 if len > LEN_MAX_80 => Self::H95,
            _ => Self::H80,
        }
    }

    /// Length of the header in bytes.
    #[must_use]
    pub const fn byte_count(self) -> usize {
        match self {
            Self::H80 | Self::H95 => 8,
            Self::H100 => HEADER_LEN_MAX,
        }
    }
}

impl Version {
    /// Length of every header of this version, in bytes.
    #[must_use]
    pub const fn header_len(self) -> usize {
        HeaderFormat::for_sending(self, 0).byte_count()
    }
}

/// The fields of a header, as they are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawHeader {
    /// Its format.
    pub format: HeaderFormat,
    /// Volume; 0 in the short formats.
    pub volume: VolumeNr,
    /// Command number.
    pub command: u16,
    /// Bytes that follow the header.
    pub len: u32,
}

impl RawHeader {
    /// Reads a header. `version` is `None` before the features are known. Checks magic and pad, nothing else.
    pub fn decode(bytes: &[u8], version: Option<Version>) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        let magic = r.u32()?;
        let [high, low, c0, c1] = magic.to_be_bytes();
        let newest = version.map_or(80, Version::nr);
        if newest >= 100 {
            if magic != MAGIC_100 {
                return Err(Fault::Magic { got: magic });
            }
            let header =
                Self { format: HeaderFormat::H100, volume: VolumeNr(r.u16()?), command: r.u16()?, len: r.u32()? };
            match r.u32()? {
                0 => Ok(header),
                value => Err(Fault::Pad { value }),
            }
        } else if magic == MAGIC_80 {
            let (command, len) = (r.u16()?, u32::from(r.u16()?));
            Ok(Self { format: HeaderFormat::H80, volume: VolumeNr(0), command, len })
        } else if newest >= 95 && u16::from_be_bytes([high, low]) == MAGIC_95 {
            let command = u16::from_be_bytes([c0, c1]);
            Ok(Self { format: HeaderFormat::H95, volume: VolumeNr(0), command, len: r.u32()? })
        } else {
            Err(Fault::Magic { got: magic })
        }
    }

    /// Writes the header over the start of `out`, which must have room for it. A length that the oldest format cannot
    /// express is a [`Fault::Length`].
    pub fn encode(self, mut out: &mut [u8]) -> Result<(), Fault> {
        if out.len() < self.format.byte_count() {
            return Err(Fault::Truncated);
        }
        match self.format {
            HeaderFormat::H80 => {
                let max = u16::MAX;
                let len = u16::try_from(self.len).map_err(|_| Fault::Length {
                    got: self.len.into(),
                    min: 0,
                    max: max.into(),
                })?;
                out.put_u32(MAGIC_80);
                out.put_u16(self.command);
                out.put_u16(len);
            }
            HeaderFormat::H95 => {
                out.put_u16(MAGIC_95);
                out.put_u16(self.command);
                out.put_u32(self.len);
            }
            HeaderFormat::H100 => {
                out.put_u32(MAGIC_100);
                out.put_u16(self.volume.0);
                out.put_u16(self.command);
                out.put_u32(self.len);
                out.put_u32(0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(nr: u32) -> Version {
        Version::new(nr).unwrap()
    }

    #[test]
    fn the_sender_chooses_by_version_and_length() {
        for (nr, len, want) in [
            (86, 65_000, HeaderFormat::H80),
            (94, 32_792, HeaderFormat::H80),
            (95, 32_768, HeaderFormat::H80),
            (95, 32_769, HeaderFormat::H95),
            (99, 32_792, HeaderFormat::H95),
            (100, 0, HeaderFormat::H100),
            (101, 1 << 20, HeaderFormat::H100),
        ] {
            assert_eq!(HeaderFormat::for_sending(v(nr), len), want, "v{nr} {len}");
        }
    }

    #[test]
    fn every_format_reads_back_and_a_receiver_of_95_takes_both_short_ones() {
        for (format, readers) in
            [(HeaderFormat::H80, 80..=99), (HeaderFormat::H95, 95..=99), (HeaderFormat::H100, 100..=101)]
        {
            let volume = VolumeNr(if format == HeaderFormat::H100 { 7 } else { 0 });
            let header = RawHeader { format, volume, command: 0x16, len: 24 };
            let mut out = vec![0; format.byte_count()];
            header.encode(&mut out).unwrap();
            assert_eq!(header.encode(&mut out[1..]), Err(Fault::Truncated));
            // Before the features are known a node counts as version 80.
            for version in std::iter::once(None).chain(Version::all().map(Some)) {
                let got = RawHeader::decode(&out, version);
                if readers.contains(&version.map_or(80, Version::nr)) {
                    assert_eq!(got, Ok(header));
                } else {
                    assert!(matches!(got, Err(Fault::Magic { .. })), "{format:?} {version:?}");
                }
            }
        }
    }

    #[test]
    fn pad_must_be_zero_and_short_input_is_no_panic() {
        let bytes = hex_literal::hex!("8620ec20 0000 0016 00000018 00000001");
        assert_eq!(RawHeader::decode(&bytes, Some(Version::MAX)), Err(Fault::Pad { value: 1 }));
        for n in 0..16 {
            assert_eq!(RawHeader::decode(&bytes[..n], Some(Version::MAX)), Err(Fault::Truncated));
        }
    }

    #[test]
    fn the_oldest_format_cannot_say_64_kib() {
        let header = RawHeader { format: HeaderFormat::H80, volume: VolumeNr(0), command: 0, len: 65_536 };
        assert!(matches!(header.encode(&mut [0; 8]), Err(Fault::Length { .. })));
    }
}
