//! The two TCP connections to the peer, inside a shard: one thread, a current-thread runtime and a `LocalSet`, no locks.
//!
//! Owns listening, connecting, the handshake up to authentication, and the sockets of the established link. Takes in the
//! engine's [`LinkAction`]s and packets to send, gives out [`LinkEvent`]s, packets in the order of each socket, and how many
//! packets the TCP stack has taken ([`Sink`]). Does not know what packets mean beyond what changes the bytes of later ones;
//! timers (ping, request timeouts) are the engine's. Source: wire.md 1 to 4.3, 12, 13.3; DESIGN 5 and 7.
//!
//! ```text
//! start -> connect (listen + connect, coins)  -> handshake -> Up -> readers, writers -> Lost -> (engine) close, start
//!             ^                                      |
//!             +--- 1 s <--- not fatal ---------------+--- fatal ---> Refused
//! ```
//!
//! **How a node drives it.** It implements [`Sink`] on a cheap handle to itself and [`Buffers`] on its pool, makes one
//! [`Link`] per peer, hands every [`LinkAction`] to [`Link::action`] and every packet to [`Link::send`], and calls
//! [`Link::flush`] once after each turn of its loop, that is at the end of [`Sink::batch_end`] and of every other source of
//! events. Calls into the sink never happen inside a call of the node into the link, so the node may hold its own borrow
//! while it calls, and may call the link from inside the sink.
//!
//! ```ignore
//! impl Sink for NodeHandle {
//!     fn packet(&mut self, link: LinkNr, socket: Socket, volume: VolumeNr, packet: Packet) {
//!         self.handle(Event::Packet { link, socket, volume, packet });
//!     }
//!     fn event(&mut self, event: LinkEvent) { self.handle(Event::Link(event)); }
//!     fn sent(&mut self, link: LinkNr, socket: Socket, packets: u64) { self.handle(Event::Sent { link, socket, packets }); }
//!     fn batch_end(&mut self) {
//!         self.handle(Event::BatchEnd);      // executes actions: Action::Send => link.send(..), Action::Link => link.action(..)
//!         let flushed = link.flush();        // one vectored write per socket
//!         // feed flushed.data / flushed.meta back as Event::Sent, and repeat while that gives new actions
//!     }
//!     ..
//! }
//! ```

mod config;
mod connect;
mod error;
mod handshake;
mod listen;
mod reader;
mod session;
mod socket;
mod writer;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::ops::DerefMut;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use self::session::Session;
use crate::engine::action::LinkAction;
use crate::engine::event::{LinkEvent, LinkNr, Socket};
use crate::units::VolumeNr;
use crate::wire::error::EncodeError;
use crate::wire::packet::Packet;

pub use config::LinkConfig;
pub use error::{ERR_LOCAL_ADDR, LinkError};
pub use listen::{HALF_OPEN_MAX, check_local_address};
pub use reader::COPY_BYTES_MAX;

/// Pause after a failed attempt, and at least between two attempts around a link that ended by a protocol error. The
/// kernel waits as long.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Where a link delivers to. A clone is a handle to the same receiver; every task of the link has one. All calls are
/// synchronous and must not block; every group of calls ends with [`Sink::batch_end`].
pub trait Sink: Clone + 'static {
    /// A packet arrived; payload digests are already compared.
    fn packet(&mut self, link: LinkNr, socket: Socket, volume: VolumeNr, packet: Packet);

    /// The link came up, broke, or cannot be established.
    fn event(&mut self, event: LinkEvent);

    /// The TCP stack has completely taken so many packets of this socket since the link came up. Only for progress that
    /// [`Link::flush`] did not report itself.
    fn sent(&mut self, link: LinkNr, socket: Socket, packets: u64);

    /// Everything that was ready has been delivered.
    fn batch_end(&mut self);

    /// Whether packets of the data socket are to be delivered now. The meta socket is always read.
    fn wants_data(&self) -> bool;

    /// Ends when [`Sink::wants_data`] is true (again). May end early; is dropped when the link ends.
    fn until_wanted(&self) -> impl Future<Output = ()>;
}

/// Where received payloads go: a supply of buffers with a budget. A clone is a handle to the same supply.
pub trait Buffers: Clone + 'static {
    /// A buffer that this reader alone may write to.
    type Buf: DerefMut<Target = [u8]>;

    /// A buffer of exactly `len` bytes (1 to 1 MiB), with any content; `None` when the budget is spent.
    fn try_alloc(&self, len: usize) -> Option<Self::Buf>;

    /// The same, but waits until the budget allows it. `None` when there never is one of this size: the link is dropped.
    fn alloc(&self, len: usize) -> impl Future<Output = Option<Self::Buf>>;

    /// The filled buffer as a cheap-to-clone handle.
    fn freeze(buf: Self::Buf) -> Bytes;
}

/// How many packets the TCP stack has taken, since the link came up, where [`Link::flush`] made progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// The link.
    pub link: LinkNr,
    /// Of the data socket.
    pub data: Option<u64>,
    /// Of the meta socket.
    pub meta: Option<u64>,
}

/// The link to one peer, for as long as there is an engine: [`Link::configure`] changes its settings, and link numbers go
/// on. All methods but [`Link::new`] must be called inside the shard's `LocalSet`. Dropping it closes everything at once,
/// except links that are still sending after [`LinkAction::Close`]. It keeps a clone of the sink: a node whose handle owns
/// the link must take the link out to end both.
pub struct Link<S: Sink, B: Buffers> {
    shared: Rc<Shared<S, B>>,
}

struct Shared<S, B> {
    config: RefCell<Rc<LinkConfig>>,
    sink: S,
    buffers: B,
    attempt: RefCell<Option<JoinHandle<()>>>,
    /// An attempt that was stopped and may still hold the local address.
    stopped: RefCell<Option<JoinHandle<()>>>,
    session: RefCell<Option<Rc<Session>>>,
    last_nr: Cell<LinkNr>,
    not_before: Cell<Option<Instant>>,
}

impl<S: Sink, B: Buffers> fmt::Debug for Link<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("session", &self.shared.session).finish_non_exhaustive()
    }
}

impl<S: Sink, B: Buffers> Link<S, B> {
    /// A link that does nothing before [`LinkAction::Start`].
    #[must_use]
    pub fn new(config: LinkConfig, sink: S, buffers: B) -> Self {
        let shared = Shared {
            config: RefCell::new(Rc::new(config)),
            sink,
            buffers,
            attempt: RefCell::default(),
            stopped: RefCell::default(),
            session: RefCell::default(),
            last_nr: Cell::default(),
            not_before: Cell::default(),
        };
        Self { shared: Rc::new(shared) }
    }

    /// Other settings, from the next attempt on; `timeout` of an established link changes with its close.
    pub fn configure(&self, config: LinkConfig) {
        *self.shared.config.borrow_mut() = Rc::new(config);
    }

    /// Does what the engine orders.
    pub fn action(&self, action: &LinkAction) {
        match *action {
            LinkAction::Start => self.start(),
            LinkAction::Close { nr } => self.close(nr),
            LinkAction::Stop => self.stop(),
        }
    }

    /// Tries to establish a link until it is there, is refused, or [`Link::stop`]. Nothing when that is already going on,
    /// or when there is a link.
    pub fn start(&self) {
        let mut attempt = self.shared.attempt.borrow_mut();
        if attempt.is_none() && self.shared.session().is_none() {
            let (shared, before) = (Rc::clone(&self.shared), self.shared.stopped.take());
            *attempt = Some(spawn_local(async move {
                if let Some(before) = before {
                    // How it ended does not matter.
                    let _ = before.await;
                }
                shared.establish().await;
            }));
        }
    }

    /// Stops trying. An established link stays.
    pub fn stop(&self) {
        if let Some(attempt) = self.shared.attempt.borrow_mut().take() {
            attempt.abort();
            self.shared.stopped.replace(Some(attempt));
        }
    }

    /// Sends what is queued, for at most `timeout`, then closes both sockets. Nothing when the current link is another.
    pub fn close(&self, nr: LinkNr) {
        let session = self.shared.session.borrow_mut().take_if(|session| session.nr == nr);
        if let Some(session) = session {
            if session.had_protocol_error() {
                self.shared.not_before.set(Some(Instant::now() + RETRY_DELAY));
            }
            session.close(self.shared.config.borrow().timeout);
        }
    }

    /// Queues a packet of the current link for [`Link::flush`]; fills in its payload's digest. Dropped when there is no link,
    /// because its loss may be known here before the engine hears of it.
    ///
    /// # Errors
    /// The packet is illegal under what was agreed: an error of this node, never of the peer. Nothing is queued.
    pub fn send(&self, socket: Socket, volume: VolumeNr, packet: Packet) -> Result<(), EncodeError> {
        match self.shared.session() {
            Some(session) => session.send(socket, volume, packet),
            None => Ok(()),
        }
    }

    /// Writes what is queued on both sockets, as far as they take it; the rest follows by itself. Progress that is reported
    /// here is not reported to the sink.
    pub fn flush(&self) -> Flushed {
        let Some(session) = self.shared.session() else { return Flushed::default() };
        // Acknowledgements first: the peer may be waiting for them to send on.
        let meta = session.channel(Socket::Meta).flush();
        Flushed { link: session.nr, data: session.channel(Socket::Data).flush(), meta }
    }

    /// The report of a mistaken driver: all that is queued on the data socket counts as taken.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub fn claim_all_sent(&self, flushed: Flushed) -> Flushed {
        match self.shared.session() {
            Some(session) if flushed.data.is_some() || session.channel(Socket::Data).queued_bytes() > 0 => {
                Flushed { link: session.nr, data: Some(session.channel(Socket::Data).queued_packets()), ..flushed }
            }
            _ => flushed,
        }
    }

    /// Bytes queued on this socket and not taken by the TCP stack.
    #[must_use]
    pub fn queued_bytes(&self, socket: Socket) -> u64 {
        self.shared.session().map_or(0, |session| session.channel(socket).queued_bytes())
    }
}

impl<S: Sink, B: Buffers> Drop for Link<S, B> {
    fn drop(&mut self) {
        self.stop();
        if let Some(session) = self.shared.session.borrow_mut().take() {
            session.kill();
        }
    }
}

impl<S: Sink, B: Buffers> Shared<S, B> {
    /// The current link, if it lives.
    fn session(&self) -> Option<Rc<Session>> {
        self.session.borrow().clone().filter(|session| session.is_alive())
    }

    async fn establish(self: Rc<Self>) {
        if let Some(at) = self.not_before.take() {
            sleep_until(at).await;
        }
        let mut sink = self.sink.clone();
        loop {
            let config = Rc::clone(&self.config.borrow());
            match self.attempt(&config).await {
                Ok(()) => return,
                Err(e) if e.is_fatal() => {
                    self.attempt.take();
                    sink.event(LinkEvent::Refused { reason: e.to_string() });
                    return sink.batch_end();
                }
                Err(e) => {
                    tracing::warn!(peer = %config.peer, "{e}; trying again");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn attempt(&self, config: &Rc<LinkConfig>) -> Result<(), LinkError> {
        let mut pair = connect::connect(config).await?;
        let agreement = handshake::negotiate(&mut pair.data, config).await?;
        let nr = LinkNr(self.last_nr.get().0 + 1);
        self.last_nr.set(nr);
        let resolve_conflicts = pair.resolve_conflicts;
        let (session, halves) = Session::new(nr, pair, &agreement);
        if let Some(old) = self.session.borrow_mut().replace(Rc::clone(&session)) {
            old.kill();
        }
        self.attempt.take();
        let mut sink = self.sink.clone();
        sink.event(LinkEvent::Up {
            nr,
            version: agreement.agreed.version.nr(),
            features: agreement.agreed.features.0,
            resolve_conflicts,
            relaxed_epochs: agreement.relaxed_epochs,
        });
        sink.batch_end();
        // The engine may have closed it at once.
        if session.is_alive() {
            session.start(halves, config.timeout, &self.sink, &self.buffers);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
