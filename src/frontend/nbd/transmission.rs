//! Requests of the transmission phase: decoding, and the one place that judges them.
//!
//! Owns: [`RequestHeader`], [`Command`], [`validate`]. Takes in: 28 bytes, and what was negotiated. Gives out: a command that
//! needs no further check, or the error that the client gets. Invariants: every range in a [`Command`] is not empty,
//! sector-aligned and inside the export; payloads are within limits; only what was offered is accepted.
//! Source: proto.md, "Request types", "Error values".
//! Hot path: runs once per request; no allocation, no formatting.

use crate::frontend::nbd::export::Negotiated;
use crate::frontend::nbd::proto::{Cmd, REQUEST_BYTES, REQUEST_MAGIC, command_flag, flag};
use crate::frontend::request::Errno;
use crate::limits::{NBD_PAYLOAD_BYTES_MAX, REQUEST_BYTES_MAX_V100, SECTOR_SIZE};
use crate::units::{Sector, SectorRange, Sectors};

/// A request as it came, nothing checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Request type; may be unknown.
    pub command: Cmd,
    /// The client's name for the request; opaque.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes; for a write also the length of the payload that follows.
    pub len: u32,
}

/// The client is out of step or no NBD client: the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent {0:#010x} where a request begins")]
pub struct BadMagic(pub u32);

impl RequestHeader {
    /// Splits a header into its fields.
    ///
    /// # Errors
    /// [`BadMagic`].
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        // The layout is fixed: 4 + 2 + 2 + 8 + 8 + 4 bytes.
        let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *bytes;
        let [k0, k1, k2, k3, k4, k5, k6, k7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(BadMagic(magic));
        }
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: Cmd(u16::from_be_bytes([c0, c1])),
            cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// The bytes of this header; what a client would send.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Bytes of payload behind this header, whatever else is wrong with it.
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        if self.command.0 == Cmd::WRITE.0 { self.len } else { 0 }
    }
}

/// A request that was found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// At most [`NBD_PAYLOAD_BYTES_MAX`]; with `single_chunk` at most 1 MiB.
    Read {
        /// What to read.
        range: SectorRange,
        /// The answer must not be split.
        single_chunk: bool,
    },
    /// At most [`NBD_PAYLOAD_BYTES_MAX`]; the payload follows.
    Write {
        /// Where to write.
        range: SectorRange,
        /// Force unit access.
        fua: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Forget data.
    Trim {
        /// Where.
        range: SectorRange,
        /// Force unit access.
        fua: bool,
    },
    /// Write zeros without payload.
    WriteZeroes {
        /// Where.
        range: SectorRange,
        /// Keep space allocated.
        no_hole: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Describe the range in the context `base:allocation`.
    BlockStatus {
        /// What to describe.
        range: SectorRange,
    },
    /// Finish what is in flight, then close.
    Disconnect,
}

/// Why a request is refused: the number and the words for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({errno})")]
pub struct Invalid {
    /// The error number.
    pub errno: Errno,
    /// For people.
    pub reason: &'static str,
}

const fn invalid<T>(errno: Errno, reason: &'static str) -> Result<T, Invalid> {
    Err(Invalid { errno, reason })
}

/// Judges a request against what was negotiated. Everything behind this function relies on it.
///
/// # Errors
/// [`Invalid`]; a write's payload follows all the same.
pub fn validate(request: &RequestHeader, negotiated: &Negotiated) -> Result<Command, Invalid> {
    let offered = |bit: u16| negotiated.flags & bit != 0;
    let fua = request.flags & command_flag::FUA != 0;
    let (offered, allowed_flags) = match request.command {
        Cmd::READ if offered(flag::SEND_DF) => (true, command_flag::DF),
        Cmd::READ | Cmd::WRITE => (true, 0),
        // Flags, offset and length mean nothing here, and there is no reply that could complain.
        Cmd::DISC => return Ok(Command::Disconnect),
        Cmd::FLUSH => (offered(flag::SEND_FLUSH), 0),
        Cmd::TRIM => (offered(flag::SEND_TRIM), 0),
        Cmd::WRITE_ZEROES => (offered(flag::SEND_WRITE_ZEROES), command_flag::NO_HOLE | command_flag::FAST_ZERO),
        Cmd::BLOCK_STATUS => (negotiated.base_allocation, command_flag::REQ_ONE),
        Cmd::CACHE => (false, 0),
        _ => return invalid(Errno::Inval, "unknown command"),
    };
    if !offered {
        return invalid(Errno::Inval, "the command was not offered or not negotiated");
    }
    // FUA is legal with every command; existing clients set it on reads.
    if request.flags & !(allowed_flags | command_flag::FUA) != 0 {
        return invalid(Errno::Inval, "unknown flag, or a flag of another command");
    }
    let writes = matches!(request.command, Cmd::WRITE | Cmd::TRIM | Cmd::WRITE_ZEROES);
    if writes && negotiated.export.read_only {
        return invalid(Errno::Perm, "the export is read-only");
    }
    if request.command == Cmd::FLUSH {
        if request.offset != 0 || request.len != 0 {
            return invalid(Errno::Inval, "a flush has neither offset nor length");
        }
        return Ok(Command::Flush);
    }
    let range = range_of(request, negotiated.export.size)?;
    match request.command {
        Cmd::READ => {
            let single_chunk = request.flags & command_flag::DF != 0;
            // With structured replies proto.md names EOVERFLOW for this, without them it forbids it.
            let errno = if negotiated.structured { Errno::Overflow } else { Errno::Inval };
            if request.len > NBD_PAYLOAD_BYTES_MAX {
                return invalid(errno, "a read has at most 32 MiB");
            }
            if single_chunk && request.len > REQUEST_BYTES_MAX_V100 {
                return invalid(errno, "an unfragmented read has at most 1 MiB");
            }
            Ok(Command::Read { range, single_chunk })
        }
        Cmd::WRITE if request.len > NBD_PAYLOAD_BYTES_MAX => invalid(Errno::Inval, "a write has at most 32 MiB"),
        Cmd::WRITE => Ok(Command::Write { range, fua }),
        Cmd::TRIM => Ok(Command::Trim { range, fua }),
        // Whether zeroing is fast depends on two disks and a link, and is not known beforehand.
        Cmd::WRITE_ZEROES if request.flags & command_flag::FAST_ZERO != 0 => {
            invalid(Errno::NotSup, "zeroing is not known to be fast")
        }
        Cmd::WRITE_ZEROES => {
            Ok(Command::WriteZeroes { range, no_hole: request.flags & command_flag::NO_HOLE != 0, fua })
        }
        _ => Ok(Command::BlockStatus { range }),
    }
}

fn range_of(request: &RequestHeader, size: Sectors) -> Result<SectorRange, Invalid> {
    if request.len == 0 {
        return invalid(Errno::Inval, "the length is zero");
    }
    let len = u64::from(request.len);
    if !request.offset.is_multiple_of(SECTOR_SIZE) || !len.is_multiple_of(SECTOR_SIZE) {
        return invalid(Errno::Inval, "the request is not aligned to 512 bytes");
    }
    let start = Sector(request.offset / SECTOR_SIZE);
    let inside = SectorRange::from_bytes(start, len).filter(|range| range.end().0 <= size.0);
    match (inside, request.command) {
        (Some(range), _) => Ok(range),
        (None, Cmd::WRITE | Cmd::WRITE_ZEROES) => invalid(Errno::NoSpc, "the request ends behind the export"),
        (None, _) => invalid(Errno::Inval, "the request ends behind the export"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frontend::nbd::export::ExportInfo;

    const SIZE: u64 = 1 << 30;

    fn negotiated(structured: bool) -> Negotiated {
        Negotiated {
            export: ExportInfo {
                name: "r0".to_owned(),
                description: String::new(),
                size: Sectors::from_bytes_floor(SIZE),
                read_only: false,
                trim: true,
                multi_conn: true,
            },
            flags: flag::HAS_FLAGS
                | flag::SEND_FLUSH
                | flag::SEND_FUA
                | flag::SEND_TRIM
                | flag::SEND_WRITE_ZEROES
                | flag::SEND_FAST_ZERO
                | if structured { flag::SEND_DF } else { 0 },
            structured,
            base_allocation: structured,
        }
    }

    fn request(command: Cmd, flags: u16, offset: u64, len: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 7, offset, len }
    }

    fn errno(request: &RequestHeader, negotiated: &Negotiated) -> Option<Errno> {
        validate(request, negotiated).err().map(|invalid| invalid.errno)
    }

    #[test]
    fn every_rule_has_its_errno() {
        use command_flag as f;
        let modern = negotiated(true);
        let simple = negotiated(false);
        let mut read_only = negotiated(true);
        read_only.export.read_only = true;
        let mut no_trim = negotiated(true);
        no_trim.flags &= !flag::SEND_TRIM;
        let rows = [
            (&modern, Cmd::READ, 0, 0, 512, None),
            (&modern, Cmd::READ, f::FUA, 0, 512, None),
            (&modern, Cmd::READ, f::DF, 0, 1 << 20, None),
            (&modern, Cmd::READ, f::DF, 0, (1 << 20) + 512, Some(Errno::Overflow)),
            (&modern, Cmd::READ, 0, 0, 32 << 20, None),
            (&modern, Cmd::READ, 0, 0, (32 << 20) + 512, Some(Errno::Overflow)),
            (&simple, Cmd::READ, 0, 0, (32 << 20) + 512, Some(Errno::Inval)),
            (&simple, Cmd::READ, f::DF, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::READ, f::NO_HOLE, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::READ, 1 << 15, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::READ, 0, 1, 512, Some(Errno::Inval)),
            (&modern, Cmd::READ, 0, 0, 511, Some(Errno::Inval)),
            (&modern, Cmd::READ, 0, 0, 0, Some(Errno::Inval)),
            (&modern, Cmd::READ, 0, SIZE - 512, 512, None),
            (&modern, Cmd::READ, 0, SIZE - 512, 1024, Some(Errno::Inval)),
            (&modern, Cmd::READ, 0, u64::MAX - 511, 512, Some(Errno::Inval)),
            (&modern, Cmd::WRITE, f::FUA, SIZE - 512, 512, None),
            (&modern, Cmd::WRITE, 0, SIZE, 512, Some(Errno::NoSpc)),
            (&modern, Cmd::WRITE, 0, u64::MAX - 511, 512, Some(Errno::NoSpc)),
            (&modern, Cmd::WRITE, 0, 0, (32 << 20) + 512, Some(Errno::Inval)),
            (&modern, Cmd::WRITE, f::DF, 0, 512, Some(Errno::Inval)),
            (&read_only, Cmd::WRITE, 0, 0, 512, Some(Errno::Perm)),
            (&read_only, Cmd::TRIM, 0, 0, 512, Some(Errno::Perm)),
            (&read_only, Cmd::WRITE_ZEROES, 0, 0, 512, Some(Errno::Perm)),
            (&read_only, Cmd::FLUSH, 0, 0, 0, None),
            (&modern, Cmd::FLUSH, 0, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::FLUSH, 0, 512, 0, Some(Errno::Inval)),
            (&modern, Cmd::FLUSH, f::FUA, 0, 0, None),
            (&modern, Cmd::TRIM, f::FUA, 0, 1 << 30, None),
            (&modern, Cmd::TRIM, 0, SIZE, 512, Some(Errno::Inval)),
            (&no_trim, Cmd::TRIM, 0, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::WRITE_ZEROES, f::FUA | f::NO_HOLE, 0, 1 << 30, None),
            (&modern, Cmd::WRITE_ZEROES, f::FAST_ZERO, 0, 512, Some(Errno::NotSup)),
            (&modern, Cmd::WRITE_ZEROES, 0, SIZE, 512, Some(Errno::NoSpc)),
            (&modern, Cmd::CACHE, 0, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::BLOCK_STATUS, f::REQ_ONE, 0, 1 << 30, None),
            (&modern, Cmd::BLOCK_STATUS, 0, SIZE, 512, Some(Errno::Inval)),
            (&simple, Cmd::BLOCK_STATUS, 0, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd(99), 0, 0, 512, Some(Errno::Inval)),
            (&modern, Cmd::DISC, 0xffff, 1, 1, None),
        ];
        for (negotiated, command, flags, offset, len, expected) in rows {
            let request = request(command, flags, offset, len);
            assert_eq!(errno(&request, negotiated), expected, "{request:?}");
        }
    }

    #[test]
    fn flags_and_ranges_arrive() {
        let flags = command_flag::FUA | command_flag::NO_HOLE;
        let command = validate(&request(Cmd::WRITE_ZEROES, flags, 4096, 1024), &negotiated(true));
        let range = SectorRange { start: Sector(8), count: Sectors(2) };
        assert_eq!(command, Ok(Command::WriteZeroes { range, no_hole: true, fua: true }));
    }

    proptest! {
        #[test]
        fn a_header_survives_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
            let header = RequestHeader { flags, command: Cmd(command), cookie, offset, len };
            prop_assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_header_is_judged(bytes: [u8; REQUEST_BYTES], command in 0_u16..9, offset: u64, len: u32, keep: bool) {
            let negotiated = negotiated(true);
            if let Ok(header) = RequestHeader::decode(&bytes) {
                let _ = validate(&header, &negotiated);
            }
            let offset = if keep { offset } else { (offset % (2 * SIZE)) & !511 };
            let judged = validate(&request(Cmd(command), 0, offset, len & !511), &negotiated);
            if let Ok(Command::Read { range, .. } | Command::Write { range, .. } | Command::Trim { range, .. }) = judged {
                prop_assert!(!range.is_empty() && range.end().0 <= negotiated.export.size.0);
            }
        }
    }
}
