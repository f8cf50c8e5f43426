//! The two TCP connections of the scripted peer: how they come about, and a reader for each.
//!
//! The reader of the meta socket answers pings, as every peer must, whatever the script is doing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use udrbd::units::VolumeNr;
use udrbd::wire::decoder::StreamDecoder;
use udrbd::wire::header::{HeaderFormat, RawHeader};
use udrbd::wire::{Agreed, FeatureFlags, Features, Packet, Phase, Socket, codec};

use crate::daemon_common::{SOON, Site};

/// Who opens which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// The peer opens both; the daemon then resolves conflicts.
    Connects,
    /// The daemon opens both.
    Listens,
    /// The daemon opens data, the peer meta.
    DataIn,
    /// The peer opens data, the daemon meta.
    DataOut,
}

/// Connects from `from`'s address, as often as it takes.
pub fn connect(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + SOON;
    loop {
        match try_connect(from, to) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "cannot connect to the daemon: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn try_connect(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(from.ip(), 0))?;
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// A fresh pair that nothing but first packets went over.
pub struct Pair {
    pub data: TcpStream,
    pub meta: TcpStream,
}

impl Pair {
    /// Opens the pair between the peer (node 1 of `site`) and the daemon (node 0).
    pub fn open(site: &Site, dial: Dial) -> Self {
        let (own, daemon) = (site.addr(1), site.addr(0));
        let out = |socket| {
            let mut stream = connect(own, daemon);
            stream.write_all(&first_packet(socket)).expect("the first packet is sent");
            stream
        };
        let listen = || TcpListener::bind(own).expect("the peer's address is free");
        let (data, meta) = match dial {
            Dial::Connects => (out(Socket::Data), out(Socket::Meta)),
            Dial::Listens => {
                let listener = listen();
                (accept(&listener, Socket::Data), accept(&listener, Socket::Meta))
            }
            Dial::DataIn => {
                let data = accept(&listen(), Socket::Data);
                (data, out(Socket::Meta))
            }
            Dial::DataOut => {
                let data = out(Socket::Data);
                (data, accept(&listen(), Socket::Meta))
            }
        };
        for stream in [&data, &meta] {
            stream.set_nodelay(true).expect("a socket");
            stream.set_read_timeout(Some(SOON)).expect("a socket");
            stream.set_write_timeout(Some(SOON)).expect("a socket");
        }
        Self { data, meta }
    }

    /// Agrees on a version and features. The daemon must be willing.
    pub fn features(&mut self, version: u32, features: u32) -> Agreed {
        let own = Features { protocol_min: 86, protocol_max: version, flags: FeatureFlags(features) };
        self.say(&Packet::ConnectionFeatures(own), &Agreed::initial());
        let Packet::ConnectionFeatures(theirs) = self.hear(Phase::Features, Agreed::initial()) else {
            panic!("no features")
        };
        assert_eq!((theirs.protocol_min, theirs.protocol_max), (86, 101));
        Agreed::negotiate(own, theirs).expect("the ranges meet")
    }

    /// Sends a packet of the handshake.
    pub fn say(&mut self, packet: &Packet, agreed: &Agreed) {
        let mut bytes = BytesMut::new();
        codec::encode(VolumeNr(0), packet, agreed, &mut bytes).expect("a legal packet");
        self.data.write_all(&bytes).expect("the daemon reads");
    }

    /// The next packet of the handshake.
    pub fn hear(&mut self, phase: Phase, agreed: Agreed) -> Packet {
        self.try_hear(phase, agreed).expect("the daemon goes on with the handshake")
    }

    /// The same; `None` when the daemon closes the connection instead.
    pub fn try_hear(&mut self, phase: Phase, agreed: Agreed) -> Option<Packet> {
        let mut decoder = StreamDecoder::new(Socket::Data, phase, agreed);
        loop {
            // Byte by byte, so that nothing of what follows is swallowed.
            match decoder.next_packet().expect("the daemon sends legal packets") {
                Some((_, packet)) => return Some(packet),
                None => {
                    let mut byte = [0];
                    match self.data.read(&mut byte) {
                        Ok(1) => decoder.feed(&byte),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            panic!("the daemon neither answers nor closes")
                        }
                        _ => return None,
                    }
                }
            }
        }
    }

    /// Starts the readers: from now on the handshake is over.
    pub fn run(self, agreed: Agreed) -> Channels {
        let (to, events) = channel();
        let meta_out = Arc::new(Mutex::new(self.meta.try_clone().expect("a socket")));
        for (socket, stream) in [(Socket::Data, &self.data), (Socket::Meta, &self.meta)] {
            let reader = Reader {
                stream: stream.try_clone().expect("a socket"),
                decoder: StreamDecoder::new(socket, Phase::Params, agreed),
                pings: Arc::clone(&meta_out),
                to: to.clone(),
            };
            reader.stream.set_read_timeout(None).expect("a socket");
            std::thread::spawn(move || reader.run(socket));
        }
        Channels { data: self.data, meta: meta_out, events }
    }
}

pub fn first_packet(socket: Socket) -> Vec<u8> {
    let packet = if socket == Socket::Data { Packet::InitialData } else { Packet::InitialMeta };
    let mut bytes = BytesMut::new();
    codec::encode(VolumeNr(0), &packet, &Agreed::initial(), &mut bytes).expect("a legal packet");
    bytes.to_vec()
}

/// Accepts the connection that the daemon opens as `socket`.
fn accept(listener: &TcpListener, socket: Socket) -> TcpStream {
    listener.set_nonblocking(true).expect("a socket");
    let deadline = Instant::now() + SOON;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "the daemon does not connect: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_nonblocking(false).expect("a socket");
    let mut first = [0; 8];
    stream.read_exact(&mut first).expect("the first packet");
    assert_eq!(first.as_slice(), first_packet(socket), "the first packet of the {} socket", socket.text());
    stream
}

/// What a reader found.
#[derive(Debug)]
pub enum Event {
    Packet(Packet),
    /// By the daemon; one of the two sockets.
    Closed,
}

/// A running pair.
pub struct Channels {
    pub data: TcpStream,
    pub meta: Arc<Mutex<TcpStream>>,
    events: Receiver<Event>,
}

impl Channels {
    /// The next thing that happens; `None` if nothing does until `deadline`.
    pub fn next(&self, deadline: Instant) -> Option<Event> {
        match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Closed),
        }
    }

    /// Sends bytes. A daemon that has closed the connection is noticed when reading.
    pub fn send(&self, socket: Socket, bytes: &[u8]) {
        let _ = match socket {
            Socket::Data => (&self.data).write_all(bytes),
            Socket::Meta => self.meta.lock().expect("no writer panics").write_all(bytes),
        };
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        // The readers hold copies of the descriptors.
        let _ = self.data.shutdown(Shutdown::Both);
        if let Ok(meta) = self.meta.lock() {
            let _ = meta.shutdown(Shutdown::Both);
        }
    }
}

struct Reader {
    stream: TcpStream,
    decoder: StreamDecoder,
    pings: Arc<Mutex<TcpStream>>,
    to: Sender<Event>,
}

impl Reader {
    fn run(mut self, socket: Socket) {
        let mut bytes = vec![0; 64 << 10];
        loop {
            while let Some((_, packet)) = self.decoder.next_packet().expect("the daemon sends legal packets") {
                if socket == Socket::Data {
                    self.decoder.agreed_mut().note_received(&packet);
                    if matches!(packet, Packet::State(_)) {
                        self.decoder.set_phase(Phase::Connected);
                    }
                }
                if packet == Packet::Ping {
                    let mut answer = BytesMut::new();
                    codec::encode(VolumeNr(0), &Packet::PingAck, self.decoder.agreed(), &mut answer)
                        .expect("a legal packet");
                    let _ = self.pings.lock().expect("no writer panics").write_all(&answer);
                }
                if self.to.send(Event::Packet(packet)).is_err() {
                    return;
                }
            }
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => {
                    let _ = self.to.send(Event::Closed);
                    return;
                }
                Ok(count) => self.decoder.feed(&bytes[..count]),
            }
        }
    }
}

/// A packet with any command and body, in the header format of the agreed version.
pub fn raw(agreed: &Agreed, volume: u16, command: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a small body");
    raw_header(agreed, volume, command, len).into_iter().chain(body.iter().copied()).collect()
}

/// Its header alone.
pub fn raw_header(agreed: &Agreed, volume: u16, command: u16, len: u32) -> Vec<u8> {
    let format = HeaderFormat::for_sending(agreed.version, len);
    let mut bytes = vec![0; format.byte_count()];
    RawHeader { format, volume: VolumeNr(volume), command, len }.encode(&mut bytes).expect("a header");
    bytes
}
