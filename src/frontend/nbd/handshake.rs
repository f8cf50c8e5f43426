//! The negotiation, without I/O: bytes in, bytes out, and in the end an opened export.
//!
//! Owns: the framing of options, the state of one client's negotiation, its budgets. Takes in: bytes from the client
//! ([`Handshake::receive`]) and the table of exports ([`Handshake::step`]). Gives out: replies, and [`Agreed`] or [`HandshakeEnd`].
//! Invariants: at most one option's data plus one read is buffered; an export is opened only to answer `NBD_OPT_INFO`,
//! `NBD_OPT_GO` or `NBD_OPT_EXPORT_NAME`, and given back at once unless the client enters the transmission phase; whatever a client
//! sends, the end is a reply or a closed connection. Source: proto.md, "Handshake".
//!
//! ```text
//! ClientFlags -> Option -> Option ... -> Agreed
//!                  |  ^
//!                  v  |
//!                  Skip (an option that is too long)
//! ```

use crate::frontend::nbd::export::{ExportInfo, Exports, Negotiated, Refusal};
use crate::frontend::nbd::options::{self, Answer, ExportRequest, MetaContextRequest, Replies};
use crate::frontend::nbd::proto::{
    BASE_ALLOCATION, EXPORT_NAME_PADDING_BYTES, INIT_MAGIC, Info, OPTION_HEADER_BYTES, OPTION_MAGIC, Opt, Reader, Rep,
    flag, handshake_flag,
};
use crate::limits::{NBD_NEGOTIATION_BYTES_MAX, NBD_OPTION_BYTES_MAX, NBD_OPTION_COUNT_MAX};

/// Why a negotiation ended without a transmission phase. Nothing can be told to the client any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeEnd {
    /// The orderly end, after e.g. a listing.
    #[error("the client ended the negotiation")]
    Aborted,
    /// `NBD_OPT_EXPORT_NAME` has no error reply.
    #[error("the client asked for an export with NBD_OPT_EXPORT_NAME: {0}")]
    Refused(Refusal),
    /// Flags that were not offered.
    #[error("the client set unknown handshake flags {0:#x}")]
    ClientFlags(u32),
    /// Not an NBD client, or out of step.
    #[error("the client sent {0:#018x} where an option begins")]
    OptionMagic(u64),
    /// Without fixed newstyle only `NBD_OPT_EXPORT_NAME` exists.
    #[error("the client sent {0} without fixed newstyle")]
    NotFixedNewstyle(Opt),
    /// More data than any budget allows.
    #[error("the client sent {option} with {len} bytes of data")]
    OptionTooLong {
        /// Which option.
        option: Opt,
        /// Its announced length.
        len: u32,
    },
    /// Budget of options used up.
    #[error("the client sent more than {NBD_OPTION_COUNT_MAX} options")]
    TooManyOptions,
    /// Budget of bytes used up.
    #[error("the client sent more than {NBD_NEGOTIATION_BYTES_MAX} bytes without starting to use an export")]
    TooManyBytes,
}

/// What a negotiation ended with.
#[derive(Debug)]
pub struct Agreed<H> {
    /// The parameters of the transmission phase.
    pub negotiated: Negotiated,
    /// The opened export.
    pub hand_over: H,
    /// What the client sent already of the transmission phase.
    pub leftover: Vec<u8>,
}

/// What to do after a step.
#[derive(Debug)]
pub enum Step<H> {
    /// Send the replies; nothing more can be done without more bytes.
    NeedBytes,
    /// Send the replies, then step again: bounds the replies that are held in memory.
    Again,
    /// Send the replies; the transmission phase has begun. The handshake must not be used any more.
    Agreed(Box<Agreed<H>>),
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Option,
    Skip { option: Opt, left: usize },
}

/// One client's negotiation.
#[derive(Debug)]
pub struct Handshake {
    received: Vec<u8>,
    /// How much of `received` is consumed.
    used: usize,
    state: State,
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` is selected.
    base_allocation_of: Option<String>,
    option_count: u32,
    bytes_left: u32,
}

impl Handshake {
    /// Begins a negotiation: writes the greeting to `out`.
    pub fn start(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&INIT_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Self {
            received: Vec::new(),
            used: 0,
            state: State::ClientFlags,
            fixed_newstyle: false,
            no_zeroes: false,
            structured: false,
            base_allocation_of: None,
            option_count: 0,
            bytes_left: NBD_NEGOTIATION_BYTES_MAX,
        }
    }

    /// Takes in bytes from the client; call [`Self::step`] until it needs more before calling this again.
    ///
    /// # Errors
    /// When the client has used up its budget.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), HandshakeEnd> {
        let len = u32::try_from(bytes.len()).map_err(|_| HandshakeEnd::TooManyBytes)?;
        self.bytes_left = self.bytes_left.checked_sub(len).ok_or(HandshakeEnd::TooManyBytes)?;
        self.received.drain(..self.used);
        self.used = 0;
        self.received.extend_from_slice(bytes);
        Ok(())
    }

    /// Handles at most one option. Replies are appended to `out`, also when the result is an error.
    ///
    /// # Errors
    /// [`HandshakeEnd`]: send what is in `out`, then close the connection.
    pub fn step<E: Exports>(&mut self, exports: &E, out: &mut Vec<u8>) -> Result<Step<E::HandOver>, HandshakeEnd> {
        match self.state {
            State::ClientFlags => self.client_flags(),
            State::Option => self.option(exports, out),
            State::Skip { option, left } => Ok(self.skip(option, left, out)),
        }
    }

    fn unused(&self) -> Reader<'_> {
        Reader::new(self.received.get(self.used..).unwrap_or_default())
    }

    fn client_flags<H>(&mut self) -> Result<Step<H>, HandshakeEnd> {
        let Ok(flags) = self.unused().u32("client flags") else { return Ok(Step::NeedBytes) };
        self.used += 4;
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Err(HandshakeEnd::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.state = State::Option;
        Ok(Step::Again)
    }

    fn skip<H>(&mut self, option: Opt, left: usize, out: &mut Vec<u8>) -> Step<H> {
        let skipped = left.min(self.unused().left());
        self.used += skipped;
        if skipped < left {
            self.state = State::Skip { option, left: left - skipped };
            return Step::NeedBytes;
        }
        let text = format!("at most {NBD_OPTION_BYTES_MAX} bytes of data are accepted");
        Replies::new(out, option).error(Rep::ERR_TOO_BIG, &text);
        self.state = State::Option;
        Step::Again
    }

    fn option<E: Exports>(&mut self, exports: &E, out: &mut Vec<u8>) -> Result<Step<E::HandOver>, HandshakeEnd> {
        let mut reader = self.unused();
        let (Ok(magic), Ok(option), Ok(len)) = (reader.u64("magic"), reader.u32("option"), reader.u32("length")) else {
            return Ok(Step::NeedBytes);
        };
        let option = Opt(option);
        if magic != OPTION_MAGIC {
            return Err(HandshakeEnd::OptionMagic(magic));
        }
        if !self.fixed_newstyle && option != Opt::EXPORT_NAME {
            return Err(HandshakeEnd::NotFixedNewstyle(option));
        }
        let too_long = HandshakeEnd::OptionTooLong { option, len };
        let Ok(data_len) = usize::try_from(len) else { return Err(too_long) };
        if len > NBD_OPTION_BYTES_MAX {
            if len > NBD_NEGOTIATION_BYTES_MAX || option == Opt::EXPORT_NAME {
                return Err(too_long);
            }
            self.count_option()?;
            self.used += OPTION_HEADER_BYTES;
            self.state = State::Skip { option, left: data_len };
            return Ok(Step::Again);
        }
        let Ok(data) = reader.bytes(data_len, "option data") else { return Ok(Step::NeedBytes) };
        let data = data.to_vec();
        self.count_option()?;
        self.used += OPTION_HEADER_BYTES + data_len;
        self.answer(option, &data, exports, out)
    }

    fn count_option(&mut self) -> Result<(), HandshakeEnd> {
        self.option_count += 1;
        if self.option_count > NBD_OPTION_COUNT_MAX { Err(HandshakeEnd::TooManyOptions) } else { Ok(()) }
    }

    fn answer<E: Exports>(
        &mut self,
        option: Opt,
        data: &[u8],
        exports: &E,
        out: &mut Vec<u8>,
    ) -> Result<Step<E::HandOver>, HandshakeEnd> {
        if option == Opt::EXPORT_NAME {
            return self.export_name(data, exports, out);
        }
        let mut replies = Replies::new(out, option);
        let answer = match option {
            Opt::ABORT => {
                replies.ack();
                return Err(HandshakeEnd::Aborted);
            }
            Opt::LIST => options::no_data(data).map(|()| {
                for export in exports.list() {
                    replies.server(&export);
                }
            }),
            Opt::STRUCTURED_REPLY => options::no_data(data).map(|()| self.structured = true),
            Opt::INFO | Opt::GO => match self.info(data, exports, &mut replies) {
                Ok(agreed) if option == Opt::GO => {
                    replies.ack();
                    return Ok(Step::Agreed(Box::new(agreed)));
                }
                Ok(_) => Ok(()),
                Err(answer) => Err(answer),
            },
            Opt::LIST_META_CONTEXT => self.list_meta_context(data, exports, &mut replies),
            Opt::SET_META_CONTEXT => self.set_meta_context(data, exports, &mut replies),
            Opt::STARTTLS => Err(Answer::new(Rep::ERR_UNSUP, "this server has no TLS configured")),
            _ => Err(Answer::new(Rep::ERR_UNSUP, "this server does not know the option")),
        };
        match answer {
            Ok(()) => replies.ack(),
            Err(error) => replies.error(error.rep, &error.text),
        }
        Ok(Step::Again)
    }

    fn export_name<E: Exports>(
        &mut self,
        data: &[u8],
        exports: &E,
        out: &mut Vec<u8>,
    ) -> Result<Step<E::HandOver>, HandshakeEnd> {
        let name = options::string(data)
            .map_err(|answer| HandshakeEnd::Refused(Refusal::Unknown(answer.text.into_owned())))?;
        let agreed = self.open(name, exports).map_err(HandshakeEnd::Refused)?;
        out.extend_from_slice(&agreed.negotiated.export.size.bytes().to_be_bytes());
        out.extend_from_slice(&agreed.negotiated.flags.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Ok(Step::Agreed(Box::new(agreed)))
    }

    fn info<E: Exports>(
        &self,
        data: &[u8],
        exports: &E,
        replies: &mut Replies<'_>,
    ) -> Result<Agreed<E::HandOver>, Answer> {
        let request = ExportRequest::decode(data)?;
        let agreed = self.open(request.name, exports)?;
        let export = &agreed.negotiated.export;
        replies.info_export(export.size, agreed.negotiated.flags);
        // Also unasked: a client that ignores it gets EINVAL for what it does against it.
        replies.info_block_size();
        if request.wants(Info::NAME) {
            replies.info_text(Info::NAME, &export.name);
        }
        if request.wants(Info::DESCRIPTION) && !export.description.is_empty() {
            replies.info_text(Info::DESCRIPTION, &export.description);
        }
        Ok(agreed)
    }

    fn list_meta_context<E: Exports>(&self, data: &[u8], exports: &E, replies: &mut Replies<'_>) -> Result<(), Answer> {
        let request = MetaContextRequest::decode(data, self.structured)?;
        let _: String = known(request.name, exports)?;
        if request.queries.is_empty() || request.queries.iter().any(|q| *q == BASE_ALLOCATION || *q == "base:") {
            replies.meta_context(0);
        }
        Ok(())
    }

    fn set_meta_context<E: Exports>(
        &mut self,
        data: &[u8],
        exports: &E,
        replies: &mut Replies<'_>,
    ) -> Result<(), Answer> {
        // Also a failed attempt replaces the selection.
        self.base_allocation_of = None;
        let request = MetaContextRequest::decode(data, self.structured)?;
        let name = known(request.name, exports)?;
        if request.queries.contains(&BASE_ALLOCATION) {
            replies.meta_context(crate::frontend::nbd::proto::BASE_ALLOCATION_ID);
            self.base_allocation_of = Some(name);
        }
        Ok(())
    }

    fn open<E: Exports>(&self, name: &str, exports: &E) -> Result<Agreed<E::HandOver>, Refusal> {
        let name = resolve(name, exports)?;
        let handle = exports.open(&name)?;
        let negotiated = Negotiated {
            flags: transmission_flags(&handle.info, self.structured),
            structured: self.structured,
            base_allocation: self.base_allocation_of.as_ref() == Some(&name),
            export: handle.info,
        };
        let leftover = self.received.get(self.used..).unwrap_or_default().to_vec();
        Ok(Agreed { negotiated, hand_over: handle.hand_over, leftover })
    }
}

/// The name of an export, with the empty name replaced by that of the only export.
fn resolve<E: Exports>(name: &str, exports: &E) -> Result<String, Refusal> {
    if !name.is_empty() {
        return Ok(name.to_owned());
    }
    let list = exports.list();
    match list.as_slice() {
        [only] => Ok(only.name.clone()),
        [] => Err(Refusal::Unknown("there is no export on this node".to_owned())),
        [first, ..] => Err(Refusal::Unknown(format!(
            "there are {} exports on this node, so name one, e.g. {}",
            list.len(),
            first.name
        ))),
    }
}

/// The resolved name of an export that exists, whether it can be opened or not.
fn known<E: Exports>(name: &str, exports: &E) -> Result<String, Refusal> {
    let name = resolve(name, exports)?;
    if exports.list().iter().any(|export| export.name == name) {
        Ok(name)
    } else {
        Err(Refusal::Unknown(format!("there is no export {name:?} on this node")))
    }
}

/// What an export can do, as the client is told.
fn transmission_flags(export: &ExportInfo, structured: bool) -> u16 {
    let optional = [
        (export.read_only, flag::READ_ONLY),
        (export.trim, flag::SEND_TRIM),
        (export.multi_conn, flag::CAN_MULTI_CONN),
        (structured, flag::SEND_DF),
    ];
    let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    optional.into_iter().filter(|(set, _)| *set).fold(always, |flags, (_, bit)| flags | bit)
}

#[cfg(test)]
mod tests;
