//! One established link: both sockets, what was agreed, and its end.
//!
//! Invariants: at most one loss is reported; nothing is delivered after a loss or a close. A closed link goes on sending
//! what is queued for at most `timeout`, so that an answer reaches the peer before the end of the stream does.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::tcp::OwnedReadHalf;
use tokio::task::{AbortHandle, spawn_local, yield_now};
use tokio::time::timeout;

use super::connect::Pair;
use super::handshake::Agreement;
use super::reader::{End, Reader};
use super::socket::has_input;
use super::writer::Channel;
use super::{Buffers, Sink};
use crate::engine::event::{LinkEvent, LinkNr};
use crate::units::VolumeNr;
use crate::wire::agreed::Agreed;
use crate::wire::codec::seal;
use crate::wire::error::{EncodeError, Reaction};
use crate::wire::kind::Socket;
use crate::wire::packet::Packet;

/// Turns that the reader of the other socket gets to deliver what arrived before the end of this one. Arbitrary: enough
/// for what a socket holds, and a few milliseconds where that reader has to wait.
const LAST_TURNS: usize = 256;

/// Bytes read and dropped before a socket is closed. Closing with unread bytes would reset the connection under what was
/// sent last.
const DISCARD_BYTES_MAX: usize = 1 << 20;

/// One established link.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) nr: LinkNr,
    pub(super) agreed: Cell<Agreed>,
    data: Channel,
    meta: Channel,
    alive: Cell<bool>,
    broken: Cell<bool>,
    protocol_error: Cell<bool>,
    /// The reader of the data socket, or of the meta socket, has bytes that it did not get round to.
    behind: [Cell<bool>; 2],
    tasks: RefCell<Vec<AbortHandle>>,
}

/// The receiving halves, until the readers start.
#[derive(Debug)]
pub(super) struct ReadHalves {
    data: OwnedReadHalf,
    meta: OwnedReadHalf,
}

impl Session {
    pub(super) fn new(nr: LinkNr, pair: Pair, agreement: &Agreement) -> (Rc<Self>, ReadHalves) {
        let (data_read, data_write) = pair.data.into_split();
        let (meta_read, meta_write) = pair.meta.into_split();
        let session = Self {
            nr,
            agreed: Cell::new(agreement.agreed),
            data: Channel::new(Socket::Data, data_write),
            meta: Channel::new(Socket::Meta, meta_write),
            alive: Cell::new(true),
            broken: Cell::new(false),
            protocol_error: Cell::new(false),
            behind: Default::default(),
            tasks: RefCell::default(),
        };
        (Rc::new(session), ReadHalves { data: data_read, meta: meta_read })
    }

    /// Starts the readers and the writers.
    pub(super) fn start<S: Sink, B: Buffers>(
        self: &Rc<Self>,
        halves: ReadHalves,
        meta_limit: Duration,
        sink: &S,
        buffers: &B,
    ) {
        let mut tasks = self.tasks.borrow_mut();
        for (socket, half, limit) in [(Socket::Meta, halves.meta, Some(meta_limit)), (Socket::Data, halves.data, None)]
        {
            let reader = Reader::new(Rc::clone(self), socket, half, sink.clone(), buffers.clone());
            let (session, mut to) = (Rc::clone(self), sink.clone());
            let read = async move {
                let end = reader.run().await;
                session.reader_ended(socket, end, &mut to).await;
            };
            tasks.push(spawn_local(read).abort_handle());
            let (session, mut to) = (Rc::clone(self), sink.clone());
            let write = async move { session.write(socket, limit, &mut to).await };
            tasks.push(spawn_local(write).abort_handle());
        }
    }

    /// Whether the link is neither lost nor closed.
    pub(super) fn is_alive(&self) -> bool {
        self.alive.get()
    }

    /// Whether it was lost because the peer sent something illegal.
    pub(super) fn had_protocol_error(&self) -> bool {
        self.protocol_error.get()
    }

    pub(super) fn channel(&self, socket: Socket) -> &Channel {
        match socket {
            Socket::Data => &self.data,
            Socket::Meta => &self.meta,
        }
    }

    /// Queues a packet, with the digest that was agreed.
    pub(super) fn send(&self, socket: Socket, volume: VolumeNr, mut packet: Packet) -> Result<(), EncodeError> {
        let mut agreed = self.agreed.get();
        seal(&mut packet, &agreed);
        self.channel(socket).push(volume, &packet, &agreed)?;
        if socket == Socket::Data {
            agreed.note_sent(&packet);
            self.agreed.set(agreed);
        }
        Ok(())
    }

    async fn write<S: Sink>(&self, socket: Socket, limit: Option<Duration>, sink: &mut S) {
        let sent = |packets| {
            sink.sent(self.nr, socket, packets);
            sink.batch_end();
            self.is_alive()
        };
        if let Some(e) = self.channel(socket).run(limit, sent).await {
            // The peer may have said why before it closed the socket.
            self.let_readers_finish(&[Socket::Data, Socket::Meta]).await;
            self.lose(socket, false, false, format!("sending on the {socket} socket: {e}"), sink);
        }
    }

    async fn reader_ended<S: Sink>(&self, socket: Socket, end: End, sink: &mut S) {
        let other = match socket {
            Socket::Data => Socket::Meta,
            Socket::Meta => Socket::Data,
        };
        match end {
            End::Stopped => {}
            End::Wire(e) => {
                let fatal = e.reaction() == Reaction::StandAlone;
                self.lose(socket, true, fatal, e.to_string(), sink);
            }
            End::TooLarge(len) => {
                self.lose(socket, true, false, format!("{socket} socket: no buffer can hold {len} bytes"), sink);
            }
            End::Closed { mid_packet } => {
                self.let_readers_finish(&[other]).await;
                let text = if mid_packet { " in the middle of a packet" } else { "" };
                self.lose(socket, false, false, format!("the peer closed the {socket} socket{text}"), sink);
            }
            End::Io(e) => {
                self.let_readers_finish(&[other]).await;
                self.lose(socket, false, false, format!("receiving on the {socket} socket: {e}"), sink);
            }
        }
    }

    /// Whether the reader of this socket gave way to others before it was through with what it had received.
    pub(super) const fn behind(&self, socket: Socket) -> &Cell<bool> {
        match socket {
            Socket::Data => &self.behind[0],
            Socket::Meta => &self.behind[1],
        }
    }

    /// The sockets are not ordered: what arrived on another one counts as said before the end of this one.
    async fn let_readers_finish(&self, sockets: &[Socket]) {
        let unread = |socket: &Socket| self.behind(*socket).get() || has_input(self.channel(*socket).stream());
        for _ in 0..LAST_TURNS {
            if !sockets.iter().any(unread) {
                return;
            }
            yield_now().await;
        }
    }

    fn lose<S: Sink>(&self, socket: Socket, protocol_error: bool, fatal: bool, reason: String, sink: &mut S) {
        if self.alive.replace(false) {
            self.broken.set(true);
            self.protocol_error.set(protocol_error);
            self.abort_tasks();
            sink.event(LinkEvent::Lost { nr: self.nr, socket, protocol_error, fatal, reason });
            sink.batch_end();
        }
    }

    /// Stops delivering. The task that calls this goes on to its next await.
    fn abort_tasks(&self) {
        self.tasks.borrow_mut().drain(..).for_each(|task| task.abort());
    }

    /// Ends the link: what is queued is sent within `limit`, then both sockets are closed.
    pub(super) fn close(self: Rc<Self>, limit: Duration) {
        self.alive.set(false);
        self.abort_tasks();
        if self.broken.get() {
            return;
        }
        spawn_local(async move {
            let both = async { tokio::join!(self.meta.drain(), self.data.drain()) };
            match timeout(limit, both).await {
                Ok((Ok(()), Ok(()))) => {}
                Ok((Err(e), _) | (_, Err(e))) => tracing::debug!("closing the link: {e}"),
                Err(_) => tracing::debug!("closing the link: the peer did not take what was left to send"),
            }
            discard(&self.meta);
            discard(&self.data);
        });
    }

    /// Ends the link at once.
    pub(super) fn kill(&self) {
        self.alive.set(false);
        self.broken.set(true);
        self.abort_tasks();
    }
}

fn discard(channel: &Channel) {
    let mut bytes = [0; 4096];
    let mut left = DISCARD_BYTES_MAX;
    while left > 0 {
        match channel.stream().try_read(&mut bytes) {
            Ok(count) if count > 0 => left = left.saturating_sub(count),
            _ => return,
        }
    }
}
