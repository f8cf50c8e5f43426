//! Listens for NBD clients, negotiates, and hands each connection over to its resource's thread.
//!
//! Owns: the listening sockets (and the unix socket's file), the negotiations in progress. Takes in: connections, the node's table
//! of exports. Gives out: [`Connection`]s through [`HandOver`]. Invariants: a negotiation has a deadline and a byte budget;
//! at most [`NBD_NEGOTIATIONS_MAX`] run at a time, so that clients that only connect cannot use up memory; TCP beyond loopback
//! needs an explicit list of networks. Runs in the control runtime, never in a resource's thread.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::frontend::nbd::access::Access;
use crate::frontend::nbd::export::Exports;
use crate::frontend::nbd::handshake::{Agreed, Handshake, HandshakeEnd, Step};
use crate::frontend::nbd::stream::{Connection, Socket, Stream};
use crate::limits::{NBD_NEGOTIATION_MS_MAX, NBD_NEGOTIATIONS_MAX};

/// How a negotiated connection reaches its resource: called once, from the control runtime; must not block. Dropping it
/// unused gives the opening of the export back.
pub type HandOver = Box<dyn FnOnce(Connection) + Send>;

/// Replies are sent when they add up to this many bytes, or when the client has to speak.
const REPLY_BATCH_BYTES: usize = 16 << 10;
/// Received at once while negotiating.
const RECEIVE_BYTES: usize = 4096;
/// How long accepting pauses when the process has no descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Idle time after which the kernel asks whether a TCP client still lives, and the interval and number of its questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// Where to listen.
#[derive(Clone, Debug, Default)]
pub struct Listen {
    /// Path of the unix socket (`nbd.sock`); its directory must exist.
    pub unix: Option<PathBuf>,
    /// `--nbd-listen`.
    pub tcp: Option<SocketAddr>,
    /// `--nbd-allow`.
    pub access: Access,
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A socket cannot be made.
    #[error("cannot listen for NBD on {place}: {source}")]
    Listen {
        /// Address or path.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another process answers there.
    #[error("cannot listen for NBD on {0}: another process does")]
    InUse(PathBuf),
    /// There is no authentication.
    #[error("refusing to listen for NBD on {0}: anybody who reaches it could use the exports; add --nbd-allow")]
    Open(SocketAddr),
}

/// Why a connection was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum NegotiationError {
    /// The protocol's end, orderly or not.
    #[error(transparent)]
    Handshake(#[from] HandshakeEnd),
    /// The client went away.
    #[error("the client closed the connection while negotiating")]
    Closed,
    /// The client was too slow.
    #[error("the client did not finish negotiating within {} s", NBD_NEGOTIATION_MS_MAX / 1000)]
    Deadline,
    /// The socket failed.
    #[error("the connection failed while negotiating: {0}")]
    Socket(#[from] io::Error),
}

/// The listening sockets.
pub struct Server<E> {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<TcpListener>,
    access: Access,
    exports: Arc<E>,
}

impl<E> fmt::Debug for Server<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("unix", &self.unix).field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

/// Removes the socket's file in the end.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing depends on it: the next start replaces a file that nobody listens on.
        let _: io::Result<()> = std::fs::remove_file(&self.0);
    }
}

impl<E> Server<E>
where
    E: Exports<HandOver = HandOver> + Send + Sync + 'static,
{
    /// Starts to listen; call it inside the control runtime.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn bind(listen: Listen, exports: Arc<E>) -> Result<Self, ListenError> {
        let unix = match listen.unix {
            None => None,
            Some(path) => Some(bind_unix(path).await?),
        };
        let tcp = match listen.tcp {
            None => None,
            Some(addr) if !listen.access.allows_listening(addr.ip()) => return Err(ListenError::Open(addr)),
            Some(addr) => Some(
                TcpListener::bind(addr)
                    .await
                    .map_err(|source| ListenError::Listen { place: addr.to_string(), source })?,
            ),
        };
        Ok(Self { unix, tcp, access: listen.access, exports })
    }

    /// The TCP address, with the port that the kernel chose if port 0 was asked for.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Accepts and negotiates for ever. Dropping the future ends the negotiations and stops listening; sessions that were
    /// handed over go on.
    pub async fn run(self) {
        let permits = Arc::new(Semaphore::new(NBD_NEGOTIATIONS_MAX));
        let mut negotiations = JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            tokio::select! {
                // Collects what has ended, so that the set does not grow.
                Some(_) = negotiations.join_next() => {}
                accepted = self.accept() => match accepted {
                    Ok((stream, peer)) => {
                        negotiations.spawn(negotiate_and_hand_over(stream, peer, Arc::clone(&self.exports), permit));
                    }
                    Err(error) => {
                        tracing::warn!(target: "udrbd::nbd", %error, "cannot accept an NBD client");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    async fn accept(&self) -> io::Result<(Stream, String)> {
        loop {
            let accepted = tokio::select! {
                accepted = accept_unix(self.unix.as_ref().map(|(listener, _)| listener)) => return accepted,
                accepted = accept_tcp(self.tcp.as_ref()) => accepted,
            };
            let (stream, peer) = accepted?;
            if self.access.allows(peer.ip()) {
                return Ok((Stream::Tcp(stream), peer.to_string()));
            }
            tracing::warn!(target: "udrbd::nbd", %peer, "NBD client refused: its address is not in --nbd-allow");
        }
    }
}

async fn bind_unix(path: PathBuf) -> Result<(UnixListener, SocketFile), ListenError> {
    if UnixStream::connect(&path).await.is_ok() {
        return Err(ListenError::InUse(path));
    }
    let failed = |source| ListenError::Listen { place: path.display().to_string(), source };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    rustix::fs::chmod(&path, Mode::from_raw_mode(0o660)).map_err(|errno| failed(errno.into()))?;
    Ok((listener, SocketFile(path)))
}

async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<(Stream, String)> {
    let Some(listener) = listener else { return std::future::pending().await };
    let (stream, _) = listener.accept().await?;
    let peer = local_peer(&stream);
    Ok((Stream::Unix(stream), peer))
}

async fn accept_tcp(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    let Some(listener) = listener else { return std::future::pending().await };
    let (stream, peer) = listener.accept().await?;
    if let Err(error) = tune(&stream) {
        // It is slower, or stays open longer, but it works; most likely the client is gone already.
        tracing::debug!(target: "udrbd::nbd", %peer, %error, "cannot set the options of a TCP socket");
    }
    Ok((stream, peer))
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A client's host that vanished must not keep an export open for ever.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    Ok(())
}

/// A local client for people: command, process and user.
fn local_peer(stream: &UnixStream) -> String {
    let Ok(cred) = stream.peer_cred() else { return "a local process".to_owned() };
    let Some(pid) = cred.pid() else { return format!("a local process (uid {})", cred.uid()) };
    let comm = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm"));
    let name = comm.as_deref().map_or("process", str::trim_end);
    format!("{} (pid {pid}, uid {})", name.escape_debug(), cred.uid())
}

async fn negotiate_and_hand_over<E: Exports<HandOver = HandOver>>(
    stream: Stream,
    peer: String,
    exports: Arc<E>,
    permit: OwnedSemaphorePermit,
) {
    let ended = serve(stream, &peer, exports.as_ref()).await;
    drop(permit);
    match ended {
        Ok(()) => {}
        Err(NegotiationError::Handshake(HandshakeEnd::Aborted) | NegotiationError::Closed) => {
            tracing::debug!(target: "udrbd::nbd", peer, "NBD client left without opening an export");
        }
        Err(error) => tracing::info!(target: "udrbd::nbd", peer, %error, "NBD negotiation failed"),
    }
}

/// Serves one socket that was made elsewhere (inherited, or one end of a pair): negotiates within the deadline and hands over.
///
/// # Errors
/// [`NegotiationError`]: the connection is closed.
pub async fn serve_socket<E: Exports<HandOver = HandOver>>(
    socket: Socket,
    peer: &str,
    exports: &E,
) -> Result<(), NegotiationError> {
    serve(Stream::new(socket)?, peer, exports).await
}

async fn serve<E: Exports<HandOver = HandOver>>(
    stream: Stream,
    peer: &str,
    exports: &E,
) -> Result<(), NegotiationError> {
    let deadline = Duration::from_millis(NBD_NEGOTIATION_MS_MAX);
    let agreed =
        tokio::time::timeout(deadline, negotiate(&stream, exports)).await.unwrap_or(Err(NegotiationError::Deadline))?;
    let Agreed { negotiated, hand_over, leftover } = agreed;
    tracing::debug!(target: "udrbd::nbd", peer, export = negotiated.export.name, "NBD client opened an export");
    hand_over(Connection { socket: stream.into_socket()?, negotiated, leftover, peer: peer.to_owned() });
    Ok(())
}

async fn negotiate<E: Exports>(stream: &Stream, exports: &E) -> Result<Agreed<E::HandOver>, NegotiationError> {
    let mut replies = Vec::new();
    let mut handshake = Handshake::start(&mut replies);
    let mut received = [0; RECEIVE_BYTES];
    loop {
        let step = match handshake.step(exports, &mut replies) {
            Ok(step) => step,
            Err(end) => {
                // The last word, where there is one: the client may be gone already.
                let _: io::Result<()> = send(stream, &mut replies).await;
                return Err(end.into());
            }
        };
        match step {
            Step::Again if replies.len() < REPLY_BATCH_BYTES => {}
            Step::Again => send(stream, &mut replies).await?,
            Step::Agreed(agreed) => {
                send(stream, &mut replies).await?;
                return Ok(*agreed);
            }
            Step::NeedBytes => {
                send(stream, &mut replies).await?;
                let len = receive(stream, &mut received).await?;
                if len == 0 {
                    return Err(NegotiationError::Closed);
                }
                handshake.receive(received.get(..len).unwrap_or_default())?;
            }
        }
    }
}

async fn send(stream: &Stream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        poll_fn(|cx| stream.poll_write_ready(cx)).await?;
        match stream.try_write(&[IoSlice::new(rest)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => sent += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    bytes.clear();
    Ok(())
}

async fn receive(stream: &Stream, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        poll_fn(|cx| stream.poll_read_ready(cx)).await?;
        match stream.try_read(&mut [IoSliceMut::new(bytes)]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::frontend::nbd::export::{ExportHandle, ExportInfo, Refusal};

    struct Nothing;

    impl Exports for Nothing {
        type HandOver = HandOver;

        fn list(&self) -> Vec<ExportInfo> {
            Vec::new()
        }

        fn open(&self, name: &str) -> Result<ExportHandle<HandOver>, Refusal> {
            Err(Refusal::Unknown(name.to_owned()))
        }
    }

    async fn bind(unix: Option<PathBuf>, tcp: Option<&str>) -> Result<Server<Nothing>, ListenError> {
        let tcp = tcp.map(|addr| addr.parse().unwrap());
        Server::bind(Listen { unix, tcp, access: Access::default() }, Arc::new(Nothing)).await
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        drop(UnixListener::bind(&path).unwrap());
        let server = bind(Some(path.clone()), None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let second = bind(Some(path.clone()), None).await.unwrap_err();
        assert!(second.to_string().ends_with("another process does"), "{second}");
        drop(server);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn tcp_for_everybody_is_refused() {
        let error = bind(None, Some("0.0.0.0:0")).await.unwrap_err();
        assert!(error.to_string().contains("add --nbd-allow"), "{error}");
        assert!(bind(None, Some("127.0.0.1:0")).await.unwrap().tcp_addr().unwrap().port() > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_sent_away() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let socket = Stream::Unix(server).into_socket().unwrap();
        let begin = tokio::time::Instant::now();
        let error = serve_socket(socket, "test", &Nothing).await.unwrap_err();
        assert_eq!(error.to_string(), "the client did not finish negotiating within 5 s");
        assert_eq!(begin.elapsed(), Duration::from_millis(NBD_NEGOTIATION_MS_MAX));
        let mut greeting = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut client, &mut greeting).await.unwrap();
        assert_eq!(greeting.len(), 18);
    }
}
