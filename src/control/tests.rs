//! The protocol over a real socket, with a handler that answers from a script.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use proptest::prelude::*;
use tokio::sync::{broadcast, oneshot};

use super::client::{Client, ClientError};
use super::error::{ErrorReply, code_text};
use super::proto::{
    Event, Message, PROTOCOL_VERSION, REQUEST_BYTES_MAX, Reply, ReplyLine, Request, RequestLine, Version,
    decode_request, encode,
};
use super::server::{Handler, Peer, Server};
use super::status::{Resource, Status, Suspended};
use crate::config::model::{MetaDisk, NetOptions, Secret};
use crate::units::VolumeNr;
use crate::wire::state::{ConnState, Role, StateResult};

fn resource(name: &str, role: Role) -> Resource {
    Resource {
        name: name.to_owned(),
        role,
        suspended: Suspended::default(),
        write_ordering: "flush".to_owned(),
        connection_state: ConnState::StandAlone,
        connection: None,
        problem: None,
        volumes: Vec::new(),
        warnings: Vec::new(),
    }
}

struct Fake {
    asked: Mutex<Vec<(Request, Peer)>>,
    events: broadcast::Sender<Event>,
}

impl Handler for Fake {
    async fn handle(&self, request: Request, peer: Peer) -> Reply {
        self.asked.lock().expect("not poisoned").push((request.clone(), peer));
        match request {
            Request::Status { resource: only } => {
                let both = ["r1", "r0"].into_iter().filter(|name| only.as_deref().is_none_or(|only| only == *name));
                Reply::Status(Status::new(both.map(|name| resource(name, Role::Secondary)).collect()))
            }
            Request::Primary { .. } => ErrorReply::state(StateResult::NoUpToDateDisk).into(),
            Request::Version => Reply::Version(Version::this(&["nbd"])),
            _ => Reply::Done,
        }
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

/// A server in a thread of its own, until dropped.
struct Daemon {
    fake: Arc<Fake>,
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    fn start(events_behind: usize) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("control.sock");
        let fake = Arc::new(Fake { asked: Mutex::default(), events: broadcast::channel(events_behind).0 });
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (fake, path) = (Arc::clone(&fake), path.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                runtime.block_on(async {
                    let server = Server::bind(&path).await.expect("bound");
                    ready.send(()).expect("waited for");
                    tokio::select! {
                        () = server.run(fake) => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        is_ready.recv().expect("ready");
        Self { fake, path, stop: Some(stop), thread: Some(thread), _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).expect("connected")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
        assert!(!self.path.exists(), "the socket's file goes with the server");
    }
}

#[test]
fn requests_are_answered_in_turn() {
    let daemon = Daemon::start(16);
    let mut client = daemon.client();
    let mut options = NetOptions::default();
    options.set("shared-secret", "hush").expect("valid");
    let request = Request::NetOptions { resource: "r0".into(), options: Box::new(options), set_defaults: true };
    assert_eq!(client.call(request.clone()).expect("answered"), Reply::Done);
    let refused = client.call(Request::Primary { resource: "r0".into(), volume: VolumeNr(1), force: false });
    let Reply::Error(error) = refused.expect("answered") else { panic!("refused") };
    assert_eq!(
        (error.exit_code(), error.message("0").as_str()),
        (17, "0: State change failed: (-2) Need access to UpToDate data")
    );
    let status = client.status(None).expect("answered");
    assert_eq!(status.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["r0", "r1"], "sorted");
    assert_eq!(client.status(Some("r1")).expect("answered").resources.len(), 1);
    let asked = daemon.fake.asked.lock().expect("not poisoned");
    assert_eq!(asked[0].0, request);
    assert_eq!(asked[0].1.uid, rustix::process::geteuid().as_raw());
    assert_eq!(asked[0].1.pid, i32::try_from(std::process::id()).ok());
}

#[test]
fn a_watcher_gets_a_snapshot_and_then_its_events() {
    let daemon = Daemon::start(16);
    let (status, mut watcher) = daemon.client().watch(Some("r0")).expect("answered");
    assert_eq!(status.resources.len(), 1);
    for event in [
        Event::Resource(Box::new(resource("r1", Role::Primary))),
        Event::Resource(Box::new(resource("r0", Role::Primary))),
        Event::Removed { resource: "r0".into() },
    ] {
        daemon.fake.events.send(event).expect("somebody listens");
    }
    let first = watcher.next(None).expect("connected").expect("an event");
    assert_eq!(first, Event::Resource(Box::new(resource("r0", Role::Primary))));
    assert_eq!(watcher.next(None).expect("connected"), Some(Event::Removed { resource: "r0".into() }));
    assert_eq!(watcher.next(Some(Instant::now())).expect("connected"), None);
}

#[test]
fn a_slow_watcher_is_told_what_it_lost() {
    let daemon = Daemon::start(2);
    let (_, mut watcher) = daemon.client().watch(None).expect("answered");
    // One thread serves everything: nothing is received while these are sent, once the first wakes it.
    for _ in 0..5000 {
        let event = Event::Resource(Box::new(resource("r0", Role::Primary)));
        daemon.fake.events.send(event).expect("somebody listens");
    }
    let mut seen = 0;
    let lost = loop {
        match watcher.next(None).expect("connected").expect("an event") {
            Event::Skipped { count } => break count,
            Event::Resource(_) => seen += 1,
            other => panic!("{other:?}"),
        }
    };
    assert!(lost > 0 && seen + lost <= 5000, "{seen} seen, {lost} lost");
    // What is, follows: both resources, as the handler has them.
    let Some(Event::Resource(next)) = watcher.next(None).expect("connected") else { panic!("a resource") };
    assert_eq!(*next, resource("r0", Role::Secondary));
}

fn raw(daemon: &Daemon, bytes: &[u8]) -> ReplyLine {
    let mut stream = UnixStream::connect(&daemon.path).expect("connected");
    stream.write_all(bytes).expect("sent");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("answered");
    serde_json::from_str(&line).expect("a reply")
}

#[test]
fn what_makes_no_sense_is_refused() {
    let daemon = Daemon::start(2);
    let refusal = |bytes: &[u8]| match raw(&daemon, bytes) {
        ReplyLine { id, message: Message::Reply(Reply::Error(error)) } => (id, error),
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(b"rubbish\n").0, 0);
    assert_eq!(refusal(b"{\"v\":1,\"id\":7,\"request\":{\"command\":\"fly\"}}\n").0, 7);
    let (id, error) = refusal(b"{\"v\":2,\"id\":8,\"request\":{\"command\":\"status\"}}\n");
    assert_eq!((id, error.text.as_str()), (8, "protocol version 2 is not 1"));
    let (_, error) = refusal(&vec![b'x'; REQUEST_BYTES_MAX]);
    assert!(error.text.contains("longer than"), "{error}");
    let version = raw(&daemon, b"{\"v\":99,\"id\":3,\"request\":{\"command\":\"version\"},\"new\":1}\n");
    assert_eq!(version, ReplyLine { id: 3, message: Message::Reply(Reply::Version(Version::this(&["nbd"]))) });
    assert_eq!(daemon.fake.asked.lock().expect("not poisoned").len(), 1, "only what makes sense gets through");
}

#[test]
fn the_socket_is_private_and_not_taken_from_a_running_daemon() {
    let daemon = Daemon::start(2);
    let mode = std::os::unix::fs::PermissionsExt::mode(&daemon.path.metadata().expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let bind = |path: &PathBuf| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(Server::bind(path)).map(|server| {
            let _guard = runtime.enter();
            drop(server);
        })
    };
    assert_eq!(bind(&daemon.path).expect_err("taken").kind(), std::io::ErrorKind::AddrInUse);
    let dir = tempfile::tempdir().expect("temporary directory");
    let left_over = dir.path().join("left-over.sock");
    drop(std::os::unix::net::UnixListener::bind(&left_over).expect("bound"));
    bind(&left_over).expect("the file of a dead daemon is replaced");
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").expect("written");
    assert!(bind(&file).is_err());
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    match Client::connect(&dir.path().join("none")) {
        Err(error @ ClientError::NotRunning { .. }) => {
            assert!(error.to_string().contains("udrbd does not run: nobody answers at"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_have_the_documented_form() {
    let request = Request::Attach {
        resource: "r0".into(),
        volume: VolumeNr(1),
        backing: "/dev/sdb".into(),
        meta_disk: MetaDisk::Flexible { dev: "/dev/sdc".into() },
        options: crate::config::model::DiskOptions::default(),
    };
    let line = RequestLine { v: PROTOCOL_VERSION, id: 4, request };
    assert_eq!(
        String::from_utf8(encode(&line)).expect("text"),
        "{\"v\":1,\"id\":4,\"request\":{\"command\":\"attach\",\"resource\":\"r0\",\"volume\":1,\"backing\":\"/dev/sdb\",\
         \"meta_disk\":{\"flexible\":{\"dev\":\"/dev/sdc\"}},\"options\":{}}}\n"
    );
    assert_eq!(decode_request(&encode(&line)).expect("valid"), line);
    let reply = ReplyLine { id: 4, message: Message::Reply(ErrorReply::code(124).into()) };
    assert_eq!(
        String::from_utf8(encode(&reply)).expect("text"),
        "{\"id\":4,\"reply\":{\"result\":\"error\",\"kind\":\"err\",\"code\":124,\
         \"text\":\"Device is attached to a disk (use detach first)\"}}\n"
    );
}

#[test]
fn errors_read_and_exit_as_drbdsetups() {
    for (error, exit, text) in [
        (
            ErrorReply::state(StateResult::TwoPrimaries),
            11,
            "0: State change failed: (-1) Multiple primaries not allowed by config",
        ),
        (
            ErrorReply::state(StateResult::LowerThanOutdated),
            5,
            "0: State change failed: (-16) Disk state is lower than outdated",
        ),
        (
            ErrorReply::state(StateResult::NoLocalDisk),
            16,
            "0: State change failed: (-4) Can not resync without local disk",
        ),
        (
            ErrorReply::code(127).detail("unknown minor"),
            10,
            "0: Failure: (127) Device minor not allocated\nadditional info from kernel:\nunknown minor",
        ),
        (ErrorReply::code(199), 20, "0: Error code 199 unknown.\nYou should update the drbd userland tools."),
        (ErrorReply::usage("no").detail("yes"), 20, "0: no; yes"),
    ] {
        assert_eq!((error.exit_code(), error.message("0").as_str()), (exit, text));
    }
    assert_eq!((101..=170).filter(|&code| code_text(code).is_none()).collect::<Vec<_>>(), [117]);
}

#[test]
fn secrets_are_not_shown_by_debug() {
    let options = NetOptions { shared_secret: Some(Secret::new("hush".into())), ..NetOptions::default() };
    let request = Request::NetOptions { resource: "r0".into(), options: Box::new(options), set_defaults: false };
    assert!(!format!("{request:?}").contains("hush"));
}

proptest! {
    #[test]
    fn any_line_is_understood_or_refused(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_request(&line);
        let _ = serde_json::from_slice::<ReplyLine>(&line);
    }

    #[test]
    fn any_json_is_understood_or_refused(id in any::<u64>(), command in "[a-z-]{0,20}", name in ".{0,20}", nr in any::<i64>()) {
        let line = serde_json::json!({"v": 1, "id": id, "request": {"command": command, "resource": name, "volume": nr}});
        if let Err((answered, _)) = decode_request(line.to_string().as_bytes()) {
            prop_assert_eq!(answered, id);
        }
    }
}
