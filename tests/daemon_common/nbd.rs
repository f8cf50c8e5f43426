//! A small blocking NBD client: one request is sent, its answer is read when the test wants it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::SOON;

const MAGIC_INIT: u64 = 0x4e42_444d_4147_4943;
const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const MAGIC_REQUEST: u32 = 0x2560_9513;
const MAGIC_REPLY: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    Read = 0,
    Write = 1,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// Force unit access.
pub const FUA: u16 = 1;
/// Write zeroes: keep the range allocated.
pub const NO_HOLE: u16 = 2;

/// A connection in transmission.
pub struct NbdClient {
    stream: UnixStream,
    pub size_bytes: u64,
    next: u64,
}

impl NbdClient {
    /// Opens an export; `Err` is the server's refusal.
    pub fn open(socket: &Path, export: &str) -> Result<Self, String> {
        let mut stream = UnixStream::connect(socket).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(SOON)).map_err(|e| e.to_string())?;
        let hello: [u8; 18] = read(&mut stream);
        assert_eq!(hello[..8], MAGIC_INIT.to_be_bytes());
        assert_eq!(hello[8..16], MAGIC_OPTION.to_be_bytes());
        // Fixed newstyle, no zeroes.
        let mut out = 3_u32.to_be_bytes().to_vec();
        out.extend(MAGIC_OPTION.to_be_bytes());
        out.extend(OPTION_GO.to_be_bytes());
        let name = u32::try_from(export.len()).expect("a short name");
        out.extend((name + 6).to_be_bytes());
        out.extend(name.to_be_bytes());
        out.extend(export.as_bytes());
        out.extend(0_u16.to_be_bytes());
        stream.write_all(&out).map_err(|e| e.to_string())?;
        let mut size_bytes = 0;
        loop {
            let head: [u8; 20] = read(&mut stream);
            assert_eq!(head[..8], MAGIC_OPTION_REPLY.to_be_bytes());
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
            let mut body = vec![0; word(16) as usize];
            stream.read_exact(&mut body).map_err(|e| e.to_string())?;
            match word(12) {
                REPLY_ACK => return Ok(Self { stream, size_bytes, next: 1 }),
                REPLY_INFO if body[..2] == [0, 0] => {
                    size_bytes = u64::from_be_bytes(body[2..10].try_into().expect("eight bytes"));
                }
                REPLY_INFO => {}
                _ => return Err(String::from_utf8_lossy(&body).into_owned()),
            }
        }
    }

    /// Sends a request; its cookie.
    pub fn send(&mut self, command: Command, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let mut out = MAGIC_REQUEST.to_be_bytes().to_vec();
        out.extend(flags.to_be_bytes());
        out.extend((command as u16).to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        out.extend(data);
        self.stream.write_all(&out).expect("the server reads");
        cookie
    }

    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> u64 {
        self.send(Command::Write, 0, offset, u32::try_from(data.len()).expect("a request"), data)
    }

    /// The next answer: which request, and its error number (0: none). Only without data.
    pub fn answer(&mut self) -> (u64, u32) {
        let head: [u8; 16] = read(&mut self.stream);
        assert_eq!(head[..4], MAGIC_REPLY.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().expect("four bytes"));
        (u64::from_be_bytes(head[8..].try_into().expect("eight bytes")), error)
    }

    /// Whether an answer can be read.
    pub fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let mut flags = rustix::net::RecvFlags::PEEK;
        flags |= rustix::net::RecvFlags::DONTWAIT;
        let got = rustix::net::recv(&self.stream, &mut [0_u8; 1][..], flags);
        self.stream.set_nonblocking(false).expect("a socket");
        got.is_ok()
    }

    pub fn finish(&mut self, cookie: u64) {
        assert_eq!(self.answer(), (cookie, 0), "answer to request {cookie}");
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let cookie = self.send_write(offset, data);
        self.finish(cookie);
    }

    pub fn flush(&mut self) {
        let cookie = self.send(Command::Flush, 0, 0, 0, &[]);
        self.finish(cookie);
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let cookie = self.send(Command::Read, 0, offset, len, &[]);
        self.finish_read(cookie, len)
    }

    pub fn finish_read(&mut self, cookie: u64, len: u32) -> Vec<u8> {
        self.finish(cookie);
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).expect("the data");
        data
    }
}

fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("the server answers");
    bytes
}
