//! Driver: the client's end of the control socket, blocking.
//!
//! Takes in requests, gives out replies and, after [`Client::watch`], events. One connection, one request at a time.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::proto::{Event, Message, PROTOCOL_VERSION, REPLY_BYTES_MAX, Reply, ReplyLine, Request, RequestLine, encode};
use super::status::Status;

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens at the socket.
    NotRunning {
        /// Path of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    Io(io::Error),
    /// The answer makes no sense.
    Protocol(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning { path, source } => {
                let (path, why) = (path.display(), source.to_string());
                let why = why.split(" (os error").next().unwrap_or_default();
                if source.kind() == io::ErrorKind::PermissionDenied {
                    return write!(f, "cannot talk to udrbd at {path}: {why}; run this as root or as udrbd's user");
                }
                write!(
                    f,
                    "udrbd does not run: nobody answers at {path} ({why}); start udrbd, or name its socket with --socket"
                )
            }
            Self::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => f.write_str("udrbd closed the connection"),
            Self::Io(e) => write!(f, "the connection to udrbd broke: {e}"),
            Self::Protocol(text) => write!(f, "the answer of udrbd cannot be understood: {text}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotRunning { source, .. } | Self::Io(source) => Some(source),
            Self::Protocol(_) => None,
        }
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    buf: Vec<u8>,
    next_id: u64,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`]
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        UnixStream::connect(path)
            .map(Self::over)
            .map_err(|source| ClientError::NotRunning { path: path.to_owned(), source })
    }

    /// Speaks over a connected socket.
    #[must_use]
    pub const fn over(stream: UnixStream) -> Self {
        Self { stream, buf: Vec::new(), next_id: 1 }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`ClientError::Io`], [`ClientError::Protocol`]; a refusal is a reply.
    pub fn call(&mut self, request: Request) -> Result<Reply, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = zeroize::Zeroizing::new(encode(&RequestLine { v: PROTOCOL_VERSION, id, request }));
        self.stream.write_all(&line).map_err(ClientError::Io)?;
        match self.receive(None)? {
            // Identifier 0: the daemon could not read ours, or does not want to talk to us at all.
            Some(ReplyLine { id: answered, message: Message::Reply(reply) }) if answered == id || answered == 0 => {
                Ok(reply)
            }
            other => Err(ClientError::Protocol(format!("request {id} was answered by {other:?}"))),
        }
    }

    /// What there is to see, of all resources or of one.
    ///
    /// # Errors
    /// As [`Self::call`]; a refusal is a [`ClientError::Protocol`].
    pub fn status(&mut self, resource: Option<&str>) -> Result<Status, ClientError> {
        let reply = self.call(Request::Status { resource: resource.map(str::to_owned) })?;
        expect_status(reply)
    }

    /// What there is to see, and every change from then on.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn watch(mut self, resource: Option<&str>) -> Result<(Status, Watcher), ClientError> {
        let reply = self.call(Request::Watch { resource: resource.map(str::to_owned) })?;
        Ok((expect_status(reply)?, Watcher { client: self }))
    }

    /// The next line; `None` if none came until `deadline`.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<ReplyLine>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buf[searched..].iter().position(|&b| b == b'\n') {
                let end = searched + at;
                let line = serde_json::from_slice(&self.buf[..end]).map_err(|e| ClientError::Protocol(e.to_string()));
                self.buf.drain(..=end);
                return line.map(Some);
            }
            searched = self.buf.len();
            if searched > REPLY_BYTES_MAX {
                return Err(ClientError::Protocol(format!("a line of more than {REPLY_BYTES_MAX} bytes")));
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.stream.set_read_timeout(left).map_err(ClientError::Io)?;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The deadline is looked at above.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(ClientError::Io(e)),
            }
        }
    }
}

fn expect_status(reply: Reply) -> Result<Status, ClientError> {
    match reply {
        Reply::Status(status) => Ok(status),
        Reply::Error(error) => Err(ClientError::Protocol(error.to_string())),
        other => Err(ClientError::Protocol(format!("{other:?}"))),
    }
}

/// A connection that events come over.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
}

impl Watcher {
    /// The next event; `None` if none came until `deadline` (without one: waits for ever).
    ///
    /// # Errors
    /// [`ClientError::Io`] also when the daemon ended, [`ClientError::Protocol`].
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, ClientError> {
        match self.client.receive(deadline)? {
            None => Ok(None),
            Some(ReplyLine { message: Message::Event(event), .. }) => Ok(Some(event)),
            Some(ReplyLine { message: Message::Reply(reply), .. }) => Err(ClientError::Protocol(format!("{reply:?}"))),
        }
    }
}
