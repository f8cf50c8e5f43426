//! A small blocking NBD client over a unix socket: the demo's application.
//!
//! Fixed newstyle negotiation with NBD_OPT_GO, simple replies, several requests in flight. Source: proto.md of the NBD
//! project.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
/// Longest text that a server may send with a refusal; it is for people.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// How long an answer may take. Longer than any of the demo's timeouts.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// An open export.
#[derive(Debug)]
pub struct NbdClient {
    reader: BufReader<UnixStream>,
    writer: BufWriter<UnixStream>,
    size_bytes: u64,
    next_cookie: u64,
    /// Requests in flight: length of the data that the reply brings.
    in_flight: BTreeMap<u64, usize>,
}

/// An answered request.
#[derive(Debug)]
pub struct Answer {
    /// What [`NbdClient::send_read`] and the like gave out.
    pub cookie: u64,
    /// Data of a read.
    pub data: Vec<u8>,
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl NbdClient {
    /// Opens `export` of the server behind `socket`.
    ///
    /// # Errors
    /// The system's, or what the server said.
    pub fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut client = Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: BufWriter::new(stream),
            size_bytes: 0,
            next_cookie: 1,
            in_flight: BTreeMap::new(),
        };
        client.negotiate(export)?;
        Ok(client)
    }

    /// Size of the export in bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Requests that are not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn negotiate(&mut self, export: &str) -> io::Result<()> {
        if self.read_u64()? != MAGIC || self.read_u64()? != OPTION_MAGIC {
            return Err(bad("no newstyle NBD server"));
        }
        let flags = self.read_u16()? & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.writer.write_all(&u32::from(flags).to_be_bytes())?;
        let name_len = u32::try_from(export.len()).map_err(|_| bad("the name of the export is too long"))?;
        self.writer.write_all(&OPTION_MAGIC.to_be_bytes())?;
        self.writer.write_all(&OPT_GO.to_be_bytes())?;
        self.writer.write_all(&(name_len + 6).to_be_bytes())?;
        self.writer.write_all(&name_len.to_be_bytes())?;
        self.writer.write_all(export.as_bytes())?;
        self.writer.write_all(&0_u16.to_be_bytes())?;
        self.writer.flush()?;
        loop {
            if self.read_u64()? != OPTION_REPLY_MAGIC || self.read_u32()? != OPT_GO {
                return Err(bad("the server's answer to GO makes no sense"));
            }
            let (kind, len) = (self.read_u32()?, self.read_u32()?);
            let len = usize::try_from(len).ok().filter(|len| *len <= TEXT_BYTES_MAX);
            let mut data = vec![0; len.ok_or_else(|| bad("the server's answer to GO is too long"))?];
            self.reader.read_exact(&mut data)?;
            match kind {
                REP_ACK => return Ok(()),
                REP_INFO => {
                    if let Some((INFO_EXPORT, rest)) = split_u16(&data)
                        && let Some((size, _)) = rest.split_first_chunk()
                    {
                        self.size_bytes = u64::from_be_bytes(*size);
                    }
                }
                _ => return Err(io::Error::other(String::from_utf8_lossy(&data).into_owned())),
            }
        }
    }

    fn send(&mut self, command: u16, offset: u64, len: usize, data: &[u8], answer: usize) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let len = u32::try_from(len).map_err(|_| bad("the request is too long"))?;
        self.writer.write_all(&REQUEST_MAGIC.to_be_bytes())?;
        self.writer.write_all(&0_u16.to_be_bytes())?;
        self.writer.write_all(&command.to_be_bytes())?;
        self.writer.write_all(&cookie.to_be_bytes())?;
        self.writer.write_all(&offset.to_be_bytes())?;
        self.writer.write_all(&len.to_be_bytes())?;
        self.writer.write_all(data)?;
        self.in_flight.insert(cookie, answer);
        Ok(cookie)
    }

    /// Starts a write; gives the cookie of its answer.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<u64> {
        self.send(CMD_WRITE, offset, data.len(), data, 0)
    }

    /// Starts a read.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send_read(&mut self, offset: u64, len: usize) -> io::Result<u64> {
        self.send(CMD_READ, offset, len, &[], len)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// Those of the socket, or the request's.
    pub fn receive(&mut self) -> io::Result<Answer> {
        self.writer.flush()?;
        if self.read_u32()? != REPLY_MAGIC {
            return Err(bad("no simple reply"));
        }
        let (error, cookie) = (self.read_u32()?, self.read_u64()?);
        let len = self.in_flight.remove(&cookie).ok_or_else(|| bad("an answer to nothing"))?;
        if error != 0 {
            return Err(i32::try_from(error).map_or_else(|_| bad("unknown error"), io::Error::from_raw_os_error));
        }
        let mut data = vec![0; len];
        self.reader.read_exact(&mut data)?;
        Ok(Answer { cookie, data })
    }

    /// Reads and waits.
    ///
    /// # Errors
    /// Those of the socket, or the request's.
    pub fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.send_read(offset, len)?;
        Ok(self.receive()?.data)
    }

    /// Makes every answered write durable.
    ///
    /// # Errors
    /// Those of the socket, or the request's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.send(CMD_FLUSH, 0, 0, &[], 0)?;
        while self.in_flight() > 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// The orderly end.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn close(mut self) -> io::Result<()> {
        self.send(CMD_DISC, 0, 0, &[], 0)?;
        self.writer.flush()
    }

    fn read_u16(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.reader.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn read_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.reader.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn read_u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

fn split_u16(data: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = data.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}
