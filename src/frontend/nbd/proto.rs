//! The numbers of the NBD protocol, each in one table with its name.
//!
//! Owns: magics, flags, options, option replies, commands, reply types, and [`Reader`], a cursor that cannot over-read.
//! Invariants: a number from outside stays representable; an unknown one is data, not an error of decoding.
//! Source: proto.md of the NBD reference implementation, "Values". Everything is big-endian.

use std::fmt;

/// `NBDMAGIC`, the first eight bytes of every server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before the handshake flags and before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of an option's header: magic, option, length.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of the header of a structured reply chunk.
pub const CHUNK_BYTES: usize = 20;
/// Zeros behind the answer to `NBD_OPT_EXPORT_NAME`, unless the client asked to leave them out.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Handshake flags (16 bits, server) and client flags (32 bits): the bits mean the same.
pub mod handshake_flag {
    /// Options get replies.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding behind the answer to `NBD_OPT_EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do.
pub mod flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_CMD_FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_FUA` works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `NBD_CMD_TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_CMD_WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_CMD_FLAG_DF` works; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// Flush and FUA act across connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `NBD_CMD_FLAG_FAST_ZERO` is understood (and may always be refused).
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Command flags of a request.
pub mod command_flag {
    /// Force unit access; legal with every command.
    pub const FUA: u16 = 1 << 0;
    /// Write zeroes: keep the space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Read: one content chunk.
    pub const DF: u16 = 1 << 2;
    /// Block status: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Write zeroes: fail unless it is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Flags of a structured reply chunk.
pub mod chunk_flag {
    /// The last chunk of its reply.
    pub const DONE: u16 = 1 << 0;
}

/// Name of the one metadata context that this server knows.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number on the wire; arbitrary.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Defines a number of the wire with names for the known values; any other value stays representable.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty) { $($(#[$vdoc:meta])* $value:ident = $number:expr, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$vdoc])* pub const $value: Self = Self($number);)*

            /// Every known value.
            pub const KNOWN: &[Self] = &[$(Self::$value),*];

            /// The name in proto.md; `None` for an unknown number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some($text),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{} {:#x}", stringify!($name), self.0),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// An option of the negotiation.
    Opt(u32) {
        /// Choose an export, no error reply possible.
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        /// End the negotiation.
        ABORT = 2, "NBD_OPT_ABORT";
        /// List the exports.
        LIST = 3, "NBD_OPT_LIST";
        /// Withdrawn.
        PEEK_EXPORT = 4, "NBD_OPT_PEEK_EXPORT";
        /// Start TLS.
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        /// Describe an export.
        INFO = 6, "NBD_OPT_INFO";
        /// Choose an export.
        GO = 7, "NBD_OPT_GO";
        /// Use structured replies.
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        /// List metadata contexts.
        LIST_META_CONTEXT = 9, "NBD_OPT_LIST_META_CONTEXT";
        /// Select metadata contexts.
        SET_META_CONTEXT = 10, "NBD_OPT_SET_META_CONTEXT";
        /// Use 64-bit headers.
        EXTENDED_HEADERS = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
);

number!(
    /// Type of a reply to an option. Bit 31 marks errors.
    Rep(u32) {
        /// Success, the last reply.
        ACK = 1, "NBD_REP_ACK";
        /// One export of a list.
        SERVER = 2, "NBD_REP_SERVER";
        /// One piece of information about an export.
        INFO = 3, "NBD_REP_INFO";
        /// One metadata context.
        META_CONTEXT = 4, "NBD_REP_META_CONTEXT";
        /// Unknown option.
        ERR_UNSUP = (1 << 31) | 1, "NBD_REP_ERR_UNSUP";
        /// Forbidden.
        ERR_POLICY = (1 << 31) | 2, "NBD_REP_ERR_POLICY";
        /// Malformed.
        ERR_INVALID = (1 << 31) | 3, "NBD_REP_ERR_INVALID";
        /// No such export.
        ERR_UNKNOWN = (1 << 31) | 6, "NBD_REP_ERR_UNKNOWN";
        /// The server is being stopped.
        ERR_SHUTDOWN = (1 << 31) | 7, "NBD_REP_ERR_SHUTDOWN";
        /// The request is too large.
        ERR_TOO_BIG = (1 << 31) | 9, "NBD_REP_ERR_TOO_BIG";
    }
);

number!(
    /// Kind of information in `NBD_REP_INFO`.
    Info(u16) {
        /// Size and transmission flags.
        EXPORT = 0, "NBD_INFO_EXPORT";
        /// Canonical name.
        NAME = 1, "NBD_INFO_NAME";
        /// Description for people.
        DESCRIPTION = 2, "NBD_INFO_DESCRIPTION";
        /// Size constraints.
        BLOCK_SIZE = 3, "NBD_INFO_BLOCK_SIZE";
    }
);

number!(
    /// Type of a request.
    Cmd(u16) {
        /// Read.
        READ = 0, "NBD_CMD_READ";
        /// Write; the only one with a payload.
        WRITE = 1, "NBD_CMD_WRITE";
        /// Disconnect.
        DISC = 2, "NBD_CMD_DISC";
        /// Flush.
        FLUSH = 3, "NBD_CMD_FLUSH";
        /// Trim.
        TRIM = 4, "NBD_CMD_TRIM";
        /// Cache.
        CACHE = 5, "NBD_CMD_CACHE";
        /// Write zeroes.
        WRITE_ZEROES = 6, "NBD_CMD_WRITE_ZEROES";
        /// Block status.
        BLOCK_STATUS = 7, "NBD_CMD_BLOCK_STATUS";
    }
);

number!(
    /// Type of a structured reply chunk. Bit 15 marks errors.
    Chunk(u16) {
        /// Nothing more.
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        /// Data at an offset.
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        /// Extents of a metadata context.
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// An error with a text.
        ERROR = (1 << 15) | 1, "NBD_REPLY_TYPE_ERROR";
    }
);

/// The data ended before the field that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is cut off")]
pub struct CutOff(pub &'static str);

/// A cursor over received bytes that cannot read beyond them.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes` from the front.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`CutOff`] with the field's name.
    pub fn bytes(&mut self, len: usize, name: &'static str) -> Result<&'a [u8], CutOff> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(CutOff(name))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], CutOff> {
        let (head, tail) = self.0.split_first_chunk().ok_or(CutOff(name))?;
        self.0 = tail;
        Ok(*head)
    }

    /// The next 16 bits.
    ///
    /// # Errors
    /// [`CutOff`] with the field's name.
    pub fn u16(&mut self, name: &'static str) -> Result<u16, CutOff> {
        self.array(name).map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    ///
    /// # Errors
    /// [`CutOff`] with the field's name.
    pub fn u32(&mut self, name: &'static str) -> Result<u32, CutOff> {
        self.array(name).map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    ///
    /// # Errors
    /// [`CutOff`] with the field's name.
    pub fn u64(&mut self, name: &'static str) -> Result<u64, CutOff> {
        self.array(name).map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_distinct_numbers_and_names() {
        fn distinct<T: Ord + Copy + fmt::Display>(known: &[T]) {
            let numbers: std::collections::BTreeSet<T> = known.iter().copied().collect();
            let names: std::collections::BTreeSet<String> = known.iter().map(ToString::to_string).collect();
            assert_eq!(numbers.len(), known.len());
            assert_eq!(names.len(), known.len());
        }
        distinct(Opt::KNOWN);
        distinct(Rep::KNOWN);
        distinct(Info::KNOWN);
        distinct(Cmd::KNOWN);
        distinct(Chunk::KNOWN);
    }

    #[test]
    fn unknown_numbers_are_shown_in_hex() {
        assert_eq!(Cmd(0x1234).to_string(), "Cmd 0x1234");
        assert_eq!(Cmd::TRIM.to_string(), "NBD_CMD_TRIM");
    }

    #[test]
    fn a_reader_names_the_field_that_is_missing() {
        let mut reader = Reader::new(&[0, 1, 2]);
        assert_eq!(reader.u16("count"), Ok(1));
        assert_eq!(reader.u32("length"), Err(CutOff("length")));
        assert_eq!(reader.left(), 1);
    }
}
