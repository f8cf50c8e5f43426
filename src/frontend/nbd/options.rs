//! The data of single options, and the replies to them.
//!
//! Owns: decoding of option data into borrowed requests, encoding of `NBD_REP_*`. Takes in: an option's complete data.
//! Gives out: a request, or the [`Answer`] that tells the client what is wrong with it. Invariants: data is consumed exactly;
//! no string longer than the protocol allows is accepted or sent. Source: proto.md, "Option types", "Option reply types".

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::frontend::nbd::export::{ExportInfo, Refusal};
use crate::frontend::nbd::proto::{BASE_ALLOCATION, CutOff, Info, OPTION_REPLY_MAGIC, Opt, Reader, Rep};
use crate::limits::{NBD_BLOCK_BYTES_MIN, NBD_BLOCK_BYTES_PREFERRED, NBD_PAYLOAD_BYTES_MAX, NBD_STRING_BYTES_MAX};
use crate::units::Sectors;

/// A negative answer to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) rep: Rep,
    pub(super) text: Cow<'static, str>,
}

impl Answer {
    pub(super) fn new(rep: Rep, text: impl Into<Cow<'static, str>>) -> Self {
        Self { rep, text: text.into() }
    }

    fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Rep::ERR_INVALID, text)
    }
}

impl From<CutOff> for Answer {
    fn from(error: CutOff) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown(text) => Self::new(Rep::ERR_UNKNOWN, text),
            Refusal::Policy(text) => Self::new(Rep::ERR_POLICY, text),
            Refusal::Shutdown(text) => Self::new(Rep::ERR_SHUTDOWN, text),
        }
    }
}

/// Checks that an option came without data.
pub(super) fn no_data(data: &[u8]) -> Result<(), Answer> {
    if data.is_empty() { Ok(()) } else { Err(Answer::invalid("this option takes no data")) }
}

/// A string of the protocol.
pub(super) fn string(bytes: &[u8]) -> Result<&str, Answer> {
    if bytes.len() > NBD_STRING_BYTES_MAX {
        return Err(Answer::new(Rep::ERR_TOO_BIG, format!("a string has at most {NBD_STRING_BYTES_MAX} bytes")));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Answer::invalid("a string is not UTF-8 or contains NUL")),
    }
}

fn sized_string<'a>(reader: &mut Reader<'a>, name: &'static str) -> Result<&'a str, Answer> {
    let len = usize::try_from(reader.u32(name)?).map_err(|_| CutOff(name))?;
    string(reader.bytes(len, name)?)
}

fn end(reader: &Reader<'_>) -> Result<(), Answer> {
    if reader.left() == 0 { Ok(()) } else { Err(Answer::invalid("there is data behind the end of the request")) }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportRequest<'a> {
    pub(super) name: &'a str,
    wanted: SmallVec<[Info; 4]>,
}

impl<'a> ExportRequest<'a> {
    pub(super) fn decode(data: &'a [u8]) -> Result<Self, Answer> {
        let mut reader = Reader::new(data);
        let name = sized_string(&mut reader, "export name")?;
        let count = reader.u16("number of information requests")?;
        let wanted = (0..count).map(|_| reader.u16("information request").map(Info)).collect::<Result<_, _>>()?;
        end(&reader)?;
        Ok(Self { name, wanted })
    }

    pub(super) fn wants(&self, info: Info) -> bool {
        self.wanted.contains(&info)
    }
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MetaContextRequest<'a> {
    pub(super) name: &'a str,
    pub(super) queries: Vec<&'a str>,
}

impl<'a> MetaContextRequest<'a> {
    pub(super) fn decode(data: &'a [u8], structured: bool) -> Result<Self, Answer> {
        if !structured {
            return Err(Answer::invalid("metadata contexts need structured replies"));
        }
        let mut reader = Reader::new(data);
        let name = sized_string(&mut reader, "export name")?;
        let count = reader.u32("number of queries")?;
        // Each turn consumes at least four bytes of bounded data or fails, so the count needs no bound.
        let queries = (0..count).map(|_| sized_string(&mut reader, "query")).collect::<Result<Vec<_>, _>>()?;
        end(&reader)?;
        if queries.iter().any(|query| !query.contains(':')) {
            return Err(Answer::invalid("a query needs a namespace and a colon"));
        }
        Ok(Self { name, queries })
    }
}

/// Writes the replies to one option.
#[derive(Debug)]
pub(super) struct Replies<'a> {
    out: &'a mut Vec<u8>,
    option: Opt,
}

impl<'a> Replies<'a> {
    pub(super) const fn new(out: &'a mut Vec<u8>, option: Opt) -> Self {
        Self { out, option }
    }

    pub(super) fn ack(&mut self) {
        self.reply(Rep::ACK, &[]);
    }

    pub(super) fn error(&mut self, rep: Rep, text: &str) {
        self.reply(rep, &[clipped(text).as_bytes()]);
    }

    pub(super) fn server(&mut self, export: &ExportInfo) {
        let name = clipped(&export.name);
        let len = u32::try_from(name.len()).unwrap_or(0);
        self.reply(Rep::SERVER, &[&len.to_be_bytes(), name.as_bytes(), clipped(&export.description).as_bytes()]);
    }

    pub(super) fn info_export(&mut self, size: Sectors, flags: u16) {
        self.info(Info::EXPORT, &[&size.bytes().to_be_bytes(), &flags.to_be_bytes()]);
    }

    pub(super) fn info_block_size(&mut self) {
        let sizes = [NBD_BLOCK_BYTES_MIN, NBD_BLOCK_BYTES_PREFERRED, NBD_PAYLOAD_BYTES_MAX].map(u32::to_be_bytes);
        self.info(Info::BLOCK_SIZE, &[sizes.as_flattened()]);
    }

    pub(super) fn info_text(&mut self, info: Info, text: &str) {
        self.info(info, &[clipped(text).as_bytes()]);
    }

    pub(super) fn meta_context(&mut self, id: u32) {
        self.reply(Rep::META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()]);
    }

    fn info(&mut self, info: Info, parts: &[&[u8]]) {
        let data = [&info.0.to_be_bytes(), parts.concat().as_slice()].concat();
        self.reply(Rep::INFO, &[&data]);
    }

    fn reply(&mut self, rep: Rep, parts: &[&[u8]]) {
        let data = parts.concat();
        let len = u32::try_from(data.len()).unwrap_or(0);
        self.out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.0.to_be_bytes());
        self.out.extend_from_slice(&rep.0.to_be_bytes());
        self.out.extend_from_slice(&len.to_be_bytes());
        self.out.extend_from_slice(&data);
    }
}

/// `text`, cut to the length that the protocol allows.
pub(super) fn clipped(text: &str) -> &str {
    let mut end = text.len().min(NBD_STRING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
