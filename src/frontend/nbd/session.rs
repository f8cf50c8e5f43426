//! One NBD connection in its transmission phase, inside its resource's thread.
//!
//! Owns: the socket, the requests in flight, the unsent replies. Takes in: a negotiated [`Connection`], completions from the
//! backend, [`SessionHandle::close`]. Gives out: requests to the [`Backend`], replies to the client, at last a [`SessionEnd`].
//! Invariants: where [`InFlight`] admits no more, the socket is not read; when the client leaves, the session ends after its requests have ended, so that an open session
//! covers every request in flight; after [`SessionHandle::close`] it ends at once and late results are dropped.
//! Hot path: all of it. One task a connection, no spawn, lock or allocation a request (beyond what the backend and the pool do); a turn
//! takes all that is ready, hands it over, and sends all replies with one system call. Guarded by `benches/nbd.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::ops::DerefMut;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::frontend::nbd::export::Negotiated;
use crate::frontend::nbd::in_flight::{InFlight, ReadCutShort};
use crate::frontend::nbd::receive::{ReceiveError, Received, Receiver};
use crate::frontend::nbd::reply::{ReplyQueue, SLICES_MAX};
use crate::frontend::nbd::stream::{Connection, Stream};
use crate::frontend::nbd::transmission::Command;
use crate::frontend::request::{Backend, BufferSource, ClientRequest, Completer, CompletionSink, Outcome};
use crate::limits::NBD_REQUESTS_IN_FLIGHT_MAX;

/// Reads from the socket in one turn, then other tasks of the thread get theirs. A read fills up to 136 KiB, so this is
/// about a millisecond of work.
const READS_PER_TURN_MAX: u32 = 16;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The orderly end.
    #[error("the client disconnected")]
    Disconnected,
    /// Without a word, but between two requests.
    #[error("the client closed the connection")]
    ClientClosed,
    /// In the middle of a request.
    #[error("the client closed the connection in the middle of a request")]
    Truncated,
    /// The client broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ReceiveError),
    /// The last resort to tell the client about an error.
    #[error(transparent)]
    ReadCutShort(#[from] ReadCutShort),
    /// The socket failed.
    #[error("the connection to the client failed: {0}")]
    Socket(#[from] io::Error),
    /// By [`SessionHandle::close`].
    #[error("closed: {0}")]
    Closed(String),
}

/// The node's grip on a running session; cheap to clone.
#[derive(Clone)]
pub struct SessionHandle(Rc<Shared>);

impl SessionHandle {
    /// Ends the session at once: no reply is sent any more, results of requests in flight are dropped.
    pub fn close(&self, reason: impl Into<String>) {
        self.0.closing.borrow_mut().get_or_insert_with(|| reason.into());
        self.0.wake();
    }

    /// Whether the session has not ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.0.ended.get()
    }

    /// The client, for people.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.0.peer
    }

    /// Name of the export.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.0.export
    }

    /// Requests that the client waits for.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.0.in_flight.get()
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle")
            .field("export", &self.export())
            .field("peer", &self.peer())
            .field("requests_in_flight", &self.requests_in_flight())
            .finish_non_exhaustive()
    }
}

/// What the session's task, its handles and its completers share.
struct Shared {
    peer: String,
    export: String,
    completed: RefCell<VecDeque<(u64, Outcome)>>,
    waker: RefCell<Option<Waker>>,
    /// The task runs or is about to: waking it would be in vain.
    awake: Cell<bool>,
    closing: RefCell<Option<String>>,
    ended: Cell<bool>,
    in_flight: Cell<usize>,
}

impl Shared {
    fn wake(&self) {
        if !self.awake.replace(true)
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }
}

impl CompletionSink for Shared {
    fn complete(&self, tag: u64, outcome: Outcome) {
        if !self.ended.get() {
            self.completed.borrow_mut().push_back((tag, outcome));
            self.wake();
        }
    }
}

/// Starts to serve `connection` in the current runtime: returns the handle, and the future to spawn in the thread's
/// `LocalSet`. Dropping the future closes the connection.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub fn start<B, S>(
    connection: Connection,
    backend: B,
    buffers: S,
) -> io::Result<(SessionHandle, impl Future<Output = SessionEnd>)>
where
    B: Backend,
    S: BufferSource,
{
    let Connection { socket, negotiated, leftover, peer } = connection;
    let shared = Rc::new(Shared {
        peer,
        export: negotiated.export.name.clone(),
        completed: RefCell::new(VecDeque::with_capacity(NBD_REQUESTS_IN_FLIGHT_MAX)),
        waker: RefCell::new(None),
        awake: Cell::new(true),
        closing: RefCell::new(None),
        ended: Cell::new(false),
        in_flight: Cell::new(0),
    });
    let session = Session {
        stream: Stream::new(socket)?,
        sink: Rc::clone(&shared) as Rc<dyn CompletionSink>,
        shared: Rc::clone(&shared),
        receiver: Receiver::new(&leftover),
        in_flight: InFlight::new(negotiated.structured),
        negotiated,
        backend,
        leaving: None,
    };
    Ok((SessionHandle(shared), run(session, buffers)))
}

async fn run<B: Backend, S: BufferSource>(mut session: Session<B, S::Buffer>, buffers: S) -> SessionEnd {
    let mut wait = pin!(None);
    poll_fn(|cx| {
        session.shared.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        session.shared.awake.set(true);
        // Twice: once until a buffer is missing, once more while waiting for it.
        for _ in 0..2 {
            let starved = is_pending(wait.as_mut(), cx);
            match session.turn(cx, &buffers, starved) {
                Turn::Ended(end) => return Poll::Ready(end),
                Turn::Starved(len) => wait.set(Some(buffers.wait(len))),
                Turn::Idle => {
                    session.shared.awake.set(false);
                    return Poll::Pending;
                }
                Turn::Busy => break,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Polls an optional future, and drops it when it is ready.
fn is_pending<F: Future>(mut slot: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> bool {
    let pending = slot.as_mut().as_pin_mut().is_some_and(|future| future.poll(cx).is_pending());
    if !pending {
        slot.set(None);
    }
    pending
}

/// How a turn went.
enum Turn {
    /// Everything waits for an event that wakes the task.
    Idle,
    /// There is more to do, but others should have their turn.
    Busy,
    /// As idle, and a buffer of so many bytes is needed to go on receiving.
    Starved(usize),
    Ended(SessionEnd),
}

/// How far receiving got.
enum Receiving {
    /// Nothing more to read, or not allowed to.
    Paused,
    /// Stopped because others wait, not for lack of data.
    Interrupted,
    Starved(usize),
}

struct Session<B, Buffer> {
    stream: Stream,
    shared: Rc<Shared>,
    sink: Rc<dyn CompletionSink>,
    negotiated: Negotiated,
    backend: B,
    receiver: Receiver<Buffer>,
    in_flight: InFlight,
    /// Set when no request comes any more; the session ends when the last one in flight is answered.
    leaving: Option<SessionEnd>,
}

impl<B, Buffer> Drop for Session<B, Buffer> {
    fn drop(&mut self) {
        self.shared.ended.set(true);
        self.shared.completed.borrow_mut().clear();
        self.shared.waker.borrow_mut().take();
        self.shared.in_flight.set(0);
    }
}

impl<B: Backend, Buffer: DerefMut<Target = [u8]>> Session<B, Buffer> {
    fn turn<S: BufferSource<Buffer = Buffer>>(&mut self, cx: &mut Context<'_>, buffers: &S, starved: bool) -> Turn {
        let mut reads_left = READS_PER_TURN_MAX;
        loop {
            if let Some(reason) = self.shared.closing.borrow_mut().take() {
                return Turn::Ended(SessionEnd::Closed(reason));
            }
            if let Err(end) = self.take_completions() {
                return Turn::Ended(end);
            }
            let blocked = self.send(cx).unwrap_or_else(|error| {
                self.leave(SessionEnd::Socket(error));
                // Nobody is left to tell.
                self.in_flight.replies = ReplyQueue::new();
                false
            });
            let receiving = if starved || self.leaving.is_some() {
                Receiving::Paused
            } else {
                self.receive(cx, buffers, &mut reads_left).unwrap_or_else(|end| {
                    self.leave(end);
                    Receiving::Paused
                })
            };
            self.shared.in_flight.set(self.in_flight.count());
            if self.in_flight.count() == 0
                && self.in_flight.replies.is_empty()
                && let Some(end) = self.leaving.take()
            {
                return Turn::Ended(end);
            }
            // The backend may have completed something (or closed the session) while it was being fed, and refusals are
            // answered here.
            let more = !self.shared.completed.borrow().is_empty()
                || self.shared.closing.borrow().is_some()
                || (!self.in_flight.replies.is_empty() && !blocked);
            match receiving {
                _ if more => {}
                Receiving::Starved(len) => return Turn::Starved(len),
                Receiving::Interrupted => return Turn::Busy,
                Receiving::Paused => return Turn::Idle,
            }
        }
    }

    /// Takes no more requests; the first reason counts.
    fn leave(&mut self, end: SessionEnd) {
        self.leaving.get_or_insert(end);
        self.in_flight.abandon_write();
    }

    /// Sends until nothing is left, or until the socket takes no more (then `true`).
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        while !self.in_flight.replies.is_empty() {
            if self.stream.poll_write_ready(cx)?.is_pending() {
                return Ok(true);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.in_flight.replies.slices(&mut slices);
            match self.stream.try_write(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.in_flight.replies.sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn receive<S: BufferSource<Buffer = Buffer>>(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &S,
        reads_left: &mut u32,
    ) -> Result<Receiving, SessionEnd> {
        let mut submitted = false;
        let result = loop {
            if !self.in_flight.admits() {
                break Ok(Receiving::Paused);
            }
            match self.receiver.next(buffers, &self.negotiated) {
                Ok(Received::NeedBytes) => {
                    // Start what is there before fetching more.
                    if std::mem::take(&mut submitted) {
                        self.backend.batch_end();
                    }
                    if *reads_left == 0 {
                        break Ok(Receiving::Interrupted);
                    }
                    *reads_left -= 1;
                    match self.read(cx) {
                        Ok(true) => {}
                        Ok(false) => break Ok(Receiving::Paused),
                        Err(end) => break Err(end),
                    }
                }
                Ok(Received::NeedBuffer(len)) => break Ok(Receiving::Starved(len)),
                Ok(Received::Request { command: Command::Disconnect, .. }) => break Err(SessionEnd::Disconnected),
                Ok(Received::Request { cookie, command }) => {
                    self.request(cookie, command);
                    submitted = true;
                }
                Ok(Received::WritePiece { cookie, whole, range, data, fua }) => {
                    let tag = self.in_flight.write_piece(cookie, whole, range);
                    self.submit(tag, ClientRequest::Write { range, data, fua });
                    submitted = true;
                }
                Ok(Received::Refused { cookie, command, invalid }) => {
                    tracing::debug!(target: "udrbd::nbd", peer = self.shared.peer, %command, %invalid, "request refused");
                    self.in_flight.refuse(cookie, command, invalid);
                }
                Err(error) => break Err(error.into()),
            }
        };
        if submitted {
            self.backend.batch_end();
        }
        result
    }

    /// Reads once; `false` when there is nothing to read.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionEnd> {
        loop {
            if self.stream.poll_read_ready(cx)?.is_pending() {
                return Ok(false);
            }
            match self.stream.try_read(&mut self.receiver.free()) {
                Ok(0) if self.receiver.is_between_requests() => return Err(SessionEnd::ClientClosed),
                Ok(0) => return Err(SessionEnd::Truncated),
                Ok(len) => {
                    self.receiver.received(len);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn request(&mut self, cookie: u64, command: Command) {
        match command {
            Command::Read { range, .. } => {
                for (tag, range) in self.in_flight.read(cookie, range) {
                    self.submit(tag, ClientRequest::Read { range });
                }
            }
            Command::Flush => self.submit_plain(cookie, ClientRequest::Flush),
            Command::Trim { range, fua } => self.submit_plain(cookie, ClientRequest::Trim { range, fua }),
            Command::WriteZeroes { range, no_hole, fua } => {
                self.submit_plain(cookie, ClientRequest::WriteZeroes { range, no_hole, fua });
            }
            Command::BlockStatus { range } => self.in_flight.block_status(cookie, range),
            // The receiver gives writes out in pieces, and its caller handles the disconnect.
            Command::Write { .. } | Command::Disconnect => {}
        }
    }

    fn submit_plain(&mut self, cookie: u64, request: ClientRequest) {
        let tag = self.in_flight.plain(cookie);
        self.submit(tag, request);
    }

    fn submit(&self, tag: u64, request: ClientRequest) {
        self.backend.submit(request, Completer::new(Rc::clone(&self.sink), tag));
    }

    /// Turns completions into replies.
    fn take_completions(&mut self) -> Result<(), SessionEnd> {
        loop {
            let next = self.shared.completed.borrow_mut().pop_front();
            let Some((tag, outcome)) = next else { return Ok(()) };
            self.in_flight.complete(tag, outcome)?;
        }
    }
}

#[cfg(test)]
mod tests;
