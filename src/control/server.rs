//! Driver: the control socket of the daemon.
//!
//! Owns the unix socket and its connections. Takes in a [`Handler`], gives it each request with who asks, sends its
//! replies and, to watchers, its events. Requests of one connection are carried out one after the other; connections are
//! independent. Only root and the daemon's own user get an answer. Invariants: bounded connections and line lengths; a
//! watcher that does not read loses events, never holds up the daemon; the socket's file is removed only while it is ours.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::error::ErrorReply;
use super::proto::{Event, Message, REQUEST_BYTES_MAX, Reply, ReplyLine, Request, RequestLine, decode_request, encode};

/// Connections at the same time; more wait. Arbitrary; scripts and agents use a handful.
const CONNECTIONS_MAX: usize = 256;

/// Events that a watcher may be behind; a suggestion for the channel of [`Handler::subscribe`].
pub const EVENTS_BEHIND_MAX: usize = 1024;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process, if known.
    pub pid: Option<i32>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What carries requests out.
pub trait Handler: Send + Sync + 'static {
    /// Carries a request out and answers it. [`Request::Watch`] never comes here: it comes as [`Request::Status`].
    fn handle(&self, request: Request, peer: Peer) -> impl Future<Output = Reply> + Send;

    /// The events from now on, of all resources.
    fn subscribe(&self) -> broadcast::Receiver<Event>;
}

/// The bound socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
}

impl Server {
    /// Makes the socket at `path`, readable and writable for the owner only. A left-over of a daemon that died is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when a daemon answers there or the path is something else than a socket; those of the
    /// system. Must be called inside a tokio runtime.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        match UnixStream::connect(path).await {
            Ok(_) => {
                let text = format!("another daemon serves {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            // A socket without a listener; anything else is not ours to remove.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot make the control socket {}: {e}", path.display())))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    }

    /// Path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until dropped. Connections that are open then go on until their clients leave or the runtime ends.
    pub async fn run<H: Handler>(&self, handler: Arc<H>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handler = Arc::clone(&handler);
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &*handler).await {
                            debug!("control connection: {error}");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must get a chance to close theirs.
                    warn!("control socket: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            // A file that stays is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

async fn serve<H: Handler>(stream: UnixStream, handler: &H) -> io::Result<()> {
    let cred = stream.peer_cred()?;
    let peer = Peer { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() };
    let (read, mut write) = stream.into_split();
    let mut lines = Lines { read, buf: Zeroizing::new(Vec::new()), taken: 0 };
    if !may_ask(peer.uid, rustix::process::geteuid().as_raw()) {
        let text = format!("user {} may not control this daemon", peer.uid);
        return send(&mut write, 0, Reply::Error(ErrorReply::code(152).detail(text))).await;
    }
    while let Some(line) = lines.next().await? {
        let Some(line) = line else {
            let text = format!("the request is longer than {REQUEST_BYTES_MAX} bytes");
            return send(&mut write, 0, Reply::Error(ErrorReply::usage(text))).await;
        };
        match decode_request(line) {
            Err((id, error)) => send(&mut write, id, Reply::Error(error)).await?,
            Ok(RequestLine { id, request: Request::Watch { resource }, .. }) => {
                return watch(&mut lines, &mut write, handler, peer, id, resource).await;
            }
            Ok(RequestLine { id, request, .. }) => {
                let reply = handler.handle(request, peer).await;
                send(&mut write, id, reply).await?;
            }
        }
    }
    Ok(())
}

const fn may_ask(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

async fn send(write: &mut OwnedWriteHalf, id: u64, reply: Reply) -> io::Result<()> {
    write.write_all(&encode(&ReplyLine { id, message: Message::Reply(reply) })).await
}

/// A snapshot, then events until the client leaves.
async fn watch<H: Handler>(
    lines: &mut Lines,
    write: &mut OwnedWriteHalf,
    handler: &H,
    peer: Peer,
    id: u64,
    resource: Option<String>,
) -> io::Result<()> {
    // Before the snapshot: a change in between is then seen twice and not never.
    let mut events = handler.subscribe();
    let snapshot = || handler.handle(Request::Status { resource: resource.clone() }, peer);
    let reply = snapshot().await;
    send(write, id, reply).await?;
    let wanted = |event: &Event| match (&resource, event.resource()) {
        (Some(wanted), Some(name)) => wanted == name,
        _ => true,
    };
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            line = lines.next() => match line? {
                // A watcher has nothing to say.
                Some(_) => continue,
                None => return Ok(()),
            },
        };
        match event {
            Ok(event) if wanted(&event) => emit(write, id, event).await?,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(count)) => {
                events = handler.subscribe();
                emit(write, id, Event::Skipped { count }).await?;
                if let Reply::Status(status) = snapshot().await {
                    for resource in status.resources {
                        emit(write, id, Event::Resource(Box::new(resource))).await?;
                    }
                }
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn emit(write: &mut OwnedWriteHalf, id: u64, event: Event) -> io::Result<()> {
    write.write_all(&encode(&ReplyLine { id, message: Message::Event(event) })).await
}

/// Reads lines of bounded length. The buffer is wiped: requests carry secrets.
struct Lines {
    read: OwnedReadHalf,
    buf: Zeroizing<Vec<u8>>,
    /// Bytes at the start of the buffer that were given out.
    taken: usize,
}

impl Lines {
    /// The next line without its line feed; `Some(None)` when it is too long, `None` at the end. Cancel safe.
    async fn next(&mut self) -> io::Result<Option<Option<&[u8]>>> {
        self.buf.drain(..self.taken);
        self.taken = 0;
        let mut searched = 0;
        loop {
            if let Some(at) = self.buf[searched..].iter().position(|&b| b == b'\n') {
                let end = searched + at;
                self.taken = end + 1;
                return Ok(Some(Some(&self.buf[..end])));
            }
            searched = self.buf.len();
            if searched >= REQUEST_BYTES_MAX {
                return Ok(Some(None));
            }
            if self.read.read_buf(&mut *self.buf).await? == 0 {
                return Ok(None);
            }
        }
    }
}
