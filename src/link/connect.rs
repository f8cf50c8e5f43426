//! How two nodes that both listen and both connect end up with one pair of TCP connections (wire.md 1.2, 1.3).
//!
//! The kernel's algorithm, step by step: whoever opens a connection says what it is to be; crossed attempts may lose both,
//! and coins keep the nodes from doing so again. There is no fixed tie-break, because a kernel peer has none.

use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::config::LinkConfig;
use super::error::LinkError;
use super::handshake::send_first;
use super::listen::Listener;
use super::socket;
use crate::wire::kind::Socket;

/// The two chosen connections.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) data: TcpStream,
    pub(super) meta: TcpStream,
    /// The meta connection was accepted, not opened (wire.md 1.4).
    pub(super) resolve_conflicts: bool,
}

/// What is chosen so far.
#[derive(Debug, Default)]
struct Chosen {
    data: Option<TcpStream>,
    meta: Option<TcpStream>,
    resolve_conflicts: bool,
}

/// Listens and connects until a pair of connections has survived for a while. Only a local address that cannot be
/// listened on is an error; everything else is tried again for ever.
pub(super) async fn connect(config: &Rc<LinkConfig>) -> Result<Pair, LinkError> {
    let mut listener = Listener::open(Rc::clone(config))?;
    let mut chosen = Chosen::default();
    loop {
        if let Some(stream) = try_connect(config).await {
            chosen.opened(stream, config).await;
        }
        if chosen.stays_alive(config).await {
            break;
        }
        accept_some(&mut listener, &mut chosen, config).await;
        if chosen.stays_alive(config).await {
            break;
        }
    }
    match (chosen.data, chosen.meta) {
        (Some(data), Some(meta)) => Ok(Pair { data, meta, resolve_conflicts: chosen.resolve_conflicts }),
        _ => Err(LinkError::Closed { doing: "choosing the sockets" }),
    }
}

/// Step 4 of the algorithm.
async fn accept_some(listener: &mut Listener, chosen: &mut Chosen, config: &LinkConfig) {
    loop {
        let Some(incoming) = listener.next(accept_deadline(config)).await else { return };
        chosen.drop_dead();
        let again = match incoming {
            Ok((stream, socket)) => chosen.accepted(stream, socket) && coin(),
            Err(e) => {
                tracing::debug!(peer = %config.peer, "accepted connection dropped: {e}");
                coin()
            }
        };
        if !again {
            return;
        }
    }
}

/// `connect-int` plus or minus one seventh, so that two nodes do not stay in step.
fn accept_deadline(config: &LinkConfig) -> Instant {
    let seventh = config.connect_int / 7;
    Instant::now() + if coin() { config.connect_int + seventh } else { config.connect_int - seventh }
}

/// A random bit. Without randomness there are only tails, which the other node's coins make up for.
fn coin() -> bool {
    getrandom::u32().is_ok_and(|random| random & 1 == 1)
}

/// Connects once, from this node's own IP, within `connect-int`. A peer that is not there is no error: `None`.
async fn try_connect(config: &LinkConfig) -> Option<TcpStream> {
    let attempt = async {
        let socket = socket::open(config, config.peer)?;
        let mut from = config.local;
        from.set_port(0);
        socket.bind(from)?;
        let stream = socket.connect(config.peer).await?;
        stream.set_nodelay(true)?;
        std::io::Result::Ok(stream)
    };
    match timeout_at(Instant::now() + config.connect_int, attempt).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(e)) => {
            tracing::debug!(peer = %config.peer, "cannot connect: {e}");
            None
        }
        Err(_) => {
            tracing::debug!(peer = %config.peer, "no answer to connect");
            None
        }
    }
}

impl Chosen {
    /// A connection that this node opened becomes the one that is missing.
    async fn opened(&mut self, mut stream: TcpStream, config: &LinkConfig) {
        let socket = if self.data.is_none() { Socket::Data } else { Socket::Meta };
        if socket == Socket::Meta && self.meta.is_some() {
            return;
        }
        if let Err(e) = send_first(&mut stream, socket, config).await {
            tracing::debug!(peer = %config.peer, "{e}");
            return;
        }
        match socket {
            Socket::Data => self.data = Some(stream),
            Socket::Meta => {
                self.resolve_conflicts = false;
                self.meta = Some(stream);
            }
        }
    }

    /// A connection that the peer opened becomes what its first packet said. True when there was one already, which is
    /// given up: the peer has probably given it up, too.
    fn accepted(&mut self, stream: TcpStream, socket: Socket) -> bool {
        match socket {
            Socket::Data => self.data.replace(stream).is_some(),
            Socket::Meta => {
                self.resolve_conflicts = true;
                self.meta.replace(stream).is_some()
            }
        }
    }

    fn drop_dead(&mut self) {
        for slot in [&mut self.data, &mut self.meta] {
            slot.take_if(|stream| !socket::is_alive(stream));
        }
    }

    /// Whether both connections exist, and still do after a while: the peer may just be giving one of them up.
    async fn stays_alive(&mut self, config: &LinkConfig) -> bool {
        if self.data.is_none() || self.meta.is_none() {
            return false;
        }
        sleep(config.settle_time()).await;
        self.drop_dead();
        self.data.is_some() && self.meta.is_some()
    }
}
