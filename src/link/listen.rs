//! The listening socket, open only while the node is in WFConnection, and the connections on it that have not said yet
//! what they are (wire.md 1.2).
//!
//! At most [`HALF_OPEN_MAX`] connections wait for their first packet, each no longer than four times `ping-timeout`;
//! while there are so many, no more are accepted. Connections from elsewhere than the peer are closed at once.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::config::LinkConfig;
use super::error::LinkError;
use super::handshake::receive_first;
use super::socket;
use crate::wire::kind::Socket;

/// Most accepted connections whose first packet is awaited. Arbitrary: a peer needs two, crossed attempts a few more.
pub const HALF_OPEN_MAX: usize = 8;

/// Connections that wait in the kernel until they are accepted. wire.md 1.2.
const BACKLOG: u32 = 5;

/// Pause after a failed accept, which has no cause that goes away at once (no descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// An accepted connection and what it wants to be, or why that is unknown.
pub(super) type Incoming = Result<(TcpStream, Socket), LinkError>;

/// The listening socket of one attempt.
#[derive(Debug)]
pub(super) struct Listener {
    config: Rc<LinkConfig>,
    listener: TcpListener,
    half_open: JoinSet<Incoming>,
    stranger_seen: bool,
}

impl Listener {
    pub(super) fn open(config: Rc<LinkConfig>) -> Result<Self, LinkError> {
        let listener = listen(&config)?;
        Ok(Self { config, listener, half_open: JoinSet::new(), stranger_seen: false })
    }

    /// The next connection that has said what it is, or failed to; `None` at the deadline. Connections that have not got
    /// so far stay for the next call.
    pub(super) async fn next(&mut self, deadline: Instant) -> Option<Incoming> {
        loop {
            let full = self.half_open.len() >= HALF_OPEN_MAX;
            tokio::select! {
                biased;
                Some(done) = self.half_open.join_next() => {
                    // A task that was cancelled or panicked leaves no connection behind.
                    if let Ok(incoming) = done {
                        return Some(incoming);
                    }
                }
                accepted = self.listener.accept(), if !full => match accepted {
                    Ok((stream, from)) => self.admit(stream, from),
                    Err(e) => {
                        tracing::warn!(local = %self.config.local, "cannot accept: {e}");
                        sleep_until(deadline.min(Instant::now() + ACCEPT_RETRY)).await;
                    }
                },
                () = sleep_until(deadline) => return None,
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, from: SocketAddr) {
        let (from, peer) = (from.ip().to_canonical(), self.config.peer.ip().to_canonical());
        if self.config.check_peer_address && from != peer {
            // Whoever scans ports must not fill the log.
            if !std::mem::replace(&mut self.stranger_seen, true) {
                tracing::warn!(local = %self.config.local, "connection from {from} refused, the peer is {peer}");
            }
            return;
        }
        if let Err(e) = stream.set_nodelay(true) {
            tracing::warn!(local = %self.config.local, "cannot set TCP_NODELAY: {e}");
        }
        let config = Rc::clone(&self.config);
        self.half_open.spawn_local(async move {
            let socket = receive_first(&mut stream, &config).await?;
            Ok((stream, socket))
        });
    }
}

/// Opens the listening socket of `config`.
fn listen(config: &LinkConfig) -> Result<TcpListener, LinkError> {
    let addr = config.local;
    let open = || {
        let socket = socket::open(config, addr)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => LinkError::AddressInUse { addr },
        _ => LinkError::Listen { addr, source },
    })
}

/// Whether the local address can be listened on now; for the answer to a `connect` command (error 102). The socket is
/// closed again.
pub fn check_local_address(config: &LinkConfig) -> Result<(), LinkError> {
    listen(config).map(drop)
}
