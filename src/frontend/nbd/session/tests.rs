//! A session against a client made of bytes and a backend that holds requests until told otherwise.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

use super::*;
use crate::frontend::nbd::export::ExportInfo;
use crate::frontend::nbd::proto::{Cmd, SIMPLE_REPLY_MAGIC};
use crate::frontend::nbd::stream::Socket;
use crate::frontend::nbd::transmission::RequestHeader;
use crate::frontend::request::Errno;
use crate::units::Sectors;

#[derive(Clone, Default)]
struct Held {
    requests: Rc<RefCell<VecDeque<(ClientRequest, Completer)>>>,
    batches: Rc<Cell<u32>>,
}

impl Backend for Held {
    fn submit(&self, request: ClientRequest, done: Completer) {
        self.requests.borrow_mut().push_back((request, done));
    }

    fn batch_end(&self) {
        self.batches.set(self.batches.get() + 1);
    }
}

impl Held {
    fn count(&self) -> usize {
        self.requests.borrow().len()
    }

    fn take(&self) -> (ClientRequest, Completer) {
        self.requests.borrow_mut().pop_front().expect("a request is held")
    }
}

/// Memory in whole buffers.
#[derive(Clone, Default)]
struct Buffers {
    left: Rc<Cell<usize>>,
    freed: Rc<Notify>,
}

impl BufferSource for Buffers {
    type Buffer = Vec<u8>;

    fn try_alloc(&self, len: usize) -> Option<Vec<u8>> {
        self.left.set(self.left.get().checked_sub(1)?);
        Some(vec![0; len])
    }

    fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from(buffer)
    }

    async fn wait(&self, _len: usize) {
        self.freed.notified().await;
    }
}

fn negotiated() -> Negotiated {
    let export = ExportInfo {
        name: "r0".to_owned(),
        description: String::new(),
        size: Sectors(1 << 20),
        read_only: false,
        trim: true,
        multi_conn: true,
    };
    Negotiated { export, flags: u16::MAX, structured: false, base_allocation: false }
}

struct Fixture {
    client: UnixStream,
    backend: Held,
    buffers: Buffers,
    handle: SessionHandle,
    session: JoinHandle<SessionEnd>,
}

impl Fixture {
    /// Must run inside a `LocalSet`.
    fn new() -> Self {
        let (client, server) = UnixStream::pair().unwrap();
        let connection = Connection {
            socket: Socket::Unix(server),
            negotiated: negotiated(),
            leftover: Vec::new(),
            peer: "test".to_owned(),
        };
        let backend = Held::default();
        let buffers = Buffers::default();
        buffers.left.set(usize::MAX);
        let (handle, session) = start(connection, backend.clone(), buffers.clone()).unwrap();
        Self { client, backend, buffers, handle, session: spawn_local(session) }
    }

    fn send(&mut self, command: Cmd, cookie: u64, len: u32) {
        let header = RequestHeader { flags: 0, command, cookie, offset: 0, len };
        self.client.write_all(&header.encode()).unwrap();
        let payload = vec![7; usize::try_from(header.payload_len()).unwrap()];
        self.client.write_all(&payload).unwrap();
    }

    async fn held(&self, count: usize) {
        while self.backend.count() != count {
            yield_now().await;
        }
    }

    /// Everything that is left until the server closes.
    fn received(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.client.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// Long enough for everything that is ready to happen.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn reply(errno: u32, cookie: u64) -> Vec<u8> {
    [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

#[test]
fn a_disconnect_waits_for_what_is_in_flight_and_answers_it() {
    run(async {
        let mut f = Fixture::new();
        f.send(Cmd::READ, 1, 512);
        f.send(Cmd::FLUSH, 2, 0);
        f.send(Cmd::DISC, 0, 0);
        f.send(Cmd::FLUSH, 3, 0);
        f.held(2).await;
        settle().await;
        assert!(!f.session.is_finished());
        assert_eq!(f.handle.requests_in_flight(), 2);
        let ((_, read), (_, flush)) = (f.backend.take(), f.backend.take());
        flush.done();
        read.complete(Ok(smallvec![Bytes::from(vec![9; 512])]));
        assert!(matches!((&mut f.session).await.unwrap(), SessionEnd::Disconnected));
        assert_eq!(f.received(), [reply(0, 2), reply(0, 1), vec![9; 512]].concat());
        assert!(!f.handle.is_open());
        assert_eq!(f.backend.count(), 0);
    });
}

#[test]
fn closing_ends_at_once_and_late_results_are_dropped() {
    run(async {
        let mut f = Fixture::new();
        f.send(Cmd::WRITE, 1, 4096);
        f.held(1).await;
        f.handle.close("r0 is demoted by force");
        let end = (&mut f.session).await.unwrap();
        assert_eq!(end.to_string(), "closed: r0 is demoted by force");
        assert_eq!(f.received(), b"");
        f.backend.take().1.done();
        f.handle.close("again");
    });
}

/// A backend that gives up when it is asked.
#[derive(Clone, Default)]
struct Closing {
    handle: Rc<RefCell<Option<SessionHandle>>>,
    held: Held,
}

impl Backend for Closing {
    fn submit(&self, request: ClientRequest, done: Completer) {
        self.handle.borrow().as_ref().unwrap().close("the disk was detached");
        self.held.submit(request, done);
    }
}

#[test]
fn closing_from_inside_a_request_is_noticed() {
    run(async {
        let (mut client, server) = UnixStream::pair().unwrap();
        let connection = Connection {
            socket: Socket::Unix(server),
            negotiated: negotiated(),
            leftover: RequestHeader { flags: 0, command: Cmd::READ, cookie: 1, offset: 0, len: 512 }.encode().to_vec(),
            peer: "test".to_owned(),
        };
        let backend = Closing::default();
        let (handle, session) = start(connection, backend.clone(), Buffers::default()).unwrap();
        *backend.handle.borrow_mut() = Some(handle);
        assert_eq!(session.await.to_string(), "closed: the disk was detached");
        assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    });
}

#[test]
fn a_client_that_vanishes_keeps_the_session_until_its_requests_have_ended() {
    run(async {
        let mut f = Fixture::new();
        f.send(Cmd::WRITE, 1, 4096);
        f.held(1).await;
        drop(f.client);
        settle().await;
        assert!(!f.session.is_finished());
        // The last word fails to reach anybody.
        drop(f.backend.take());
        assert!(matches!(f.session.await.unwrap(), SessionEnd::ClientClosed));
    });
}

#[test]
fn a_client_that_vanishes_inside_a_large_write_leaves_no_open_request() {
    run(async {
        let mut f = Fixture::new();
        let header = RequestHeader { flags: 0, command: Cmd::WRITE, cookie: 1, offset: 0, len: 4 << 20 };
        f.client.write_all(&header.encode()).unwrap();
        f.client.set_nonblocking(true).unwrap();
        let payload = vec![7; (1 << 20) + 512];
        let mut sent = 0;
        while sent < payload.len() {
            match f.client.write(&payload[sent..]) {
                Ok(len) => sent += len,
                Err(_) => yield_now().await,
            }
        }
        f.held(1).await;
        drop(f.client);
        settle().await;
        assert!(!f.session.is_finished());
        f.backend.take().1.done();
        assert!(matches!(f.session.await.unwrap(), SessionEnd::Truncated));
    });
}

#[test]
fn a_full_connection_is_not_read() {
    run(async {
        let mut f = Fixture::new();
        for cookie in 0..200 {
            f.send(Cmd::FLUSH, cookie, 0);
        }
        f.held(NBD_REQUESTS_IN_FLIGHT_MAX).await;
        settle().await;
        assert_eq!(f.backend.count(), NBD_REQUESTS_IN_FLIGHT_MAX);
        // All that was ready was one batch.
        assert_eq!(f.backend.batches.get(), 1);
        for _ in 0..NBD_REQUESTS_IN_FLIGHT_MAX {
            f.backend.take().1.done();
        }
        f.held(200 - NBD_REQUESTS_IN_FLIGHT_MAX).await;
    });
}

#[test]
fn without_memory_only_writes_wait() {
    run(async {
        let mut f = Fixture::new();
        f.send(Cmd::READ, 1, 512);
        f.held(1).await;
        f.buffers.left.set(0);
        f.send(Cmd::WRITE, 2, 4096);
        f.send(Cmd::FLUSH, 3, 0);
        settle().await;
        assert_eq!(f.backend.count(), 1);
        // What was in flight is answered meanwhile.
        f.backend.take().1.fail(Errno::Io);
        let mut answer = [0; 16];
        f.client.set_nonblocking(true).unwrap();
        while f.client.read_exact(&mut answer).is_err() {
            yield_now().await;
        }
        assert_eq!(answer[..], reply(5, 1));
        // Woken in vain: somebody else took it.
        f.buffers.freed.notify_one();
        settle().await;
        assert_eq!(f.backend.count(), 0);
        f.buffers.left.set(1);
        f.buffers.freed.notify_one();
        f.held(2).await;
        let (ClientRequest::Write { data, .. }, done) = f.backend.take() else { panic!("no write") };
        assert_eq!(data, vec![7; 4096]);
        done.done();
    });
}

#[test]
fn a_forgotten_request_is_an_error_for_the_client() {
    run(async {
        let mut f = Fixture::new();
        f.send(Cmd::FLUSH, 1, 0);
        f.held(1).await;
        drop(f.backend.take());
        f.send(Cmd::DISC, 0, 0);
        (&mut f.session).await.unwrap();
        assert_eq!(f.received(), reply(5, 1));
    });
}

#[test]
fn garbage_ends_the_session_with_a_reason() {
    run(async {
        let mut f = Fixture::new();
        f.client.write_all(&[0xaa; 28]).unwrap();
        let end = (&mut f.session).await.unwrap();
        assert_eq!(end.to_string(), "the client sent 0xaaaaaaaa where a request begins");
    });
}
