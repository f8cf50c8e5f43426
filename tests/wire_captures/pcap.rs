//! Reads capture files (classic pcap, Ethernet, IPv4, TCP) and puts the TCP byte streams together.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

/// One direction of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
}

impl Flow {
    pub fn reverse(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

/// What the capture shows, in order.
#[derive(Debug)]
pub enum Event {
    /// A connection request.
    Open(Flow),
    /// The next bytes of a stream.
    Bytes(Flow, Vec<u8>),
}

#[derive(Debug)]
struct Stream {
    next: u32,
    /// Segments that arrived before the bytes in front of them.
    early: BTreeMap<u32, Vec<u8>>,
}

/// Reads a capture into events; retransmitted bytes come once.
pub fn read(path: &Path) -> Vec<Event> {
    let file = std::fs::read(path).unwrap();
    assert_eq!(le32(&file, 0), 0xa1b2_c3d4, "{}: not a little-endian pcap file", path.display());
    assert_eq!(le32(&file, 20), 1, "not Ethernet");
    let mut streams: BTreeMap<Flow, Stream> = BTreeMap::new();
    let mut events = Vec::new();
    let mut at = 24;
    while at + 16 <= file.len() {
        let len = le32(&file, at + 8) as usize;
        assert_eq!(len, le32(&file, at + 12) as usize, "frame was cut by the capture");
        frame(&file[at + 16..at + 16 + len], &mut streams, &mut events);
        at += 16 + len;
    }
    events
}

fn frame(frame: &[u8], streams: &mut BTreeMap<Flow, Stream>, events: &mut Vec<Event>) {
    if be16(frame, 12) != 0x0800 || frame[23] != 6 {
        return;
    }
    let ip = &frame[14..14 + usize::from(be16(frame, 16))];
    let tcp = &ip[usize::from(ip[0] & 0xf) * 4..];
    let addr = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let flow = Flow { from: SocketAddrV4::new(addr(12), be16(tcp, 0)), to: SocketAddrV4::new(addr(16), be16(tcp, 2)) };
    let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    let (syn, ack) = (tcp[13] & 2 != 0, tcp[13] & 0x10 != 0);
    let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
    if syn {
        streams.insert(flow, Stream { next: seq.wrapping_add(1), early: BTreeMap::new() });
        if !ack {
            events.push(Event::Open(flow));
        }
        return;
    }
    let Some(stream) = streams.get_mut(&flow) else { return };
    if payload.is_empty() {
        return;
    }
    stream.early.insert(seq, payload.to_vec());
    while let Some((seq, bytes)) = stream.early.pop_first() {
        let old = stream.next.wrapping_sub(seq) as usize;
        if stream.next.wrapping_sub(seq) > u32::MAX / 2 {
            stream.early.insert(seq, bytes);
            return;
        }
        if old < bytes.len() {
            stream.next = stream.next.wrapping_add(u32::try_from(bytes.len() - old).unwrap());
            events.push(Event::Bytes(flow, bytes[old..].to_vec()));
        }
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}
