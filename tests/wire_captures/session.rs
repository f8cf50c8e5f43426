//! Decodes both sockets of every connection in a capture, and encodes every packet again.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::BytesMut;
use udrbd::wire::bitmap::{BitSink, BitSource, BitmapReceiver, BitmapSender, Progress, SendStep};
use udrbd::wire::codec::check_digest;
use udrbd::wire::{
    Agreed, Features, Header, Kind, Packet, Phase, Socket, StreamDecoder, WireError, encode, header_len,
};

use crate::pcap::{Event, Flow, read};

/// A decoded packet of a capture.
#[derive(Debug)]
pub struct Seen {
    /// Last number of the sender's address: 1 or 2.
    pub node: u8,
    pub header: Header,
    pub packet: Packet,
    pub agreed: Agreed,
}

/// Everything that a capture holds.
#[derive(Debug, Default)]
pub struct Decoded {
    pub seen: Vec<Seen>,
    /// Streams that could not be decoded to their end: sender and error.
    pub errors: Vec<(u8, WireError)>,
    /// Bytes behind the last packet of a stream.
    pub cut: usize,
    /// Bitmap transfers that were sent again to the same packets.
    pub bitmaps: usize,
}

impl Decoded {
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Seen> + Clone {
        self.seen.iter().filter(move |s| s.header.kind == kind)
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.of(kind).count()
    }
}

struct Stream {
    decoder: StreamDecoder,
    /// All bytes not yet compared with what they encode to.
    bytes: Vec<u8>,
    session: usize,
    features: Option<Features>,
    /// P_SIZES and bitmap chunks by volume.
    sectors: BTreeMap<u16, u64>,
    chunks: BTreeMap<u16, Vec<Packet>>,
    failed: bool,
}

pub fn decode(path: &Path) -> Decoded {
    let mut out = Decoded::default();
    let mut streams: BTreeMap<Flow, Stream> = BTreeMap::new();
    let mut sessions = 0;
    let mut newest: Option<(usize, Agreed)> = None;
    for event in read(path) {
        match event {
            Event::Open(flow) => {
                for (flow, phase) in [(flow, Phase::First), (flow.reverse(), Phase::Features)] {
                    out.cut += streams.insert(flow, stream(phase)).map_or(0, |s| s.bytes.len());
                }
            }
            Event::Bytes(flow, bytes) => {
                let Some(s) = streams.get_mut(&flow) else { continue };
                s.decoder.feed(&bytes);
                s.bytes.extend_from_slice(&bytes);
                while let Some(packet) = next(&mut streams, flow, newest, &mut out) {
                    if matches!(packet, Packet::InitialMeta) {
                        for flow in [flow, flow.reverse()] {
                            let s = streams.get_mut(&flow).unwrap();
                            s.decoder.set_socket(Socket::Meta);
                            s.decoder.set_phase(Phase::Params);
                        }
                    }
                    let features = |f: &Flow| streams[f].features;
                    if let (Packet::ConnectionFeatures(_), Some(a), Some(b)) =
                        (&packet, features(&flow), features(&flow.reverse()))
                    {
                        let Ok(agreed) = Agreed::negotiate(a, b) else { continue };
                        sessions += 1;
                        newest = Some((sessions - 1, agreed));
                        for flow in [flow, flow.reverse()] {
                            let s = streams.get_mut(&flow).unwrap();
                            *s.decoder.agreed_mut() = agreed;
                            s.session = sessions - 1;
                        }
                        // The other stream may have gone ahead and be waiting for this.
                        while next(&mut streams, flow.reverse(), newest, &mut out).is_some() {}
                    }
                }
            }
        }
    }
    out.cut += streams.values().filter(|s| !s.failed).map(|s| s.bytes.len()).sum::<usize>();
    out
}

fn stream(phase: Phase) -> Stream {
    Stream {
        decoder: StreamDecoder::new(Socket::Data, phase, Agreed::initial()),
        bytes: Vec::new(),
        session: usize::MAX,
        features: None,
        sectors: BTreeMap::new(),
        chunks: BTreeMap::new(),
        failed: false,
    }
}

/// The next packet of a stream, checked.
fn next(
    streams: &mut BTreeMap<Flow, Stream>,
    flow: Flow,
    newest: Option<(usize, Agreed)>,
    out: &mut Decoded,
) -> Option<Packet> {
    let reverse_sectors = streams.get(&flow.reverse()).map(|s| s.sectors.clone()).unwrap_or_default();
    let s = streams.get_mut(&flow)?;
    let meta = s.header_is_meta();
    if s.failed || s.bytes.is_empty() || !s.enter_phase(meta, newest) {
        return None;
    }
    let node = flow.from.ip().octets()[3];
    let agreed = *s.decoder.agreed();
    let phase = s.decoder.phase();
    match s.decoder.next_packet() {
        Ok(None) => None,
        Err(e) => {
            s.failed = true;
            out.errors.push((node, e));
            None
        }
        Ok(Some((header, packet))) => {
            s.decoder.agreed_mut().note_received(&packet);
            check_digest(&header, &agreed, &packet).unwrap();
            let len = header_len(phase, &agreed) + header.len();
            let original: Vec<u8> = s.bytes.drain(..len).collect();
            assert_same(&original, &header, &packet, &agreed, len - header.len());
            match &packet {
                Packet::InitialData => s.decoder.set_phase(Phase::Features),
                Packet::ConnectionFeatures(f) => s.features = Some(*f),
                Packet::State(_) => s.decoder.set_phase(Phase::Connected),
                Packet::Sizes(p) => drop(s.sectors.insert(header.volume.0, p.d_size.0)),
                Packet::Bitmap(_) | Packet::CompressedBitmap(_) => {
                    let chunks = s.chunks.entry(header.volume.0).or_default();
                    chunks.push(packet.clone());
                    let volume = &header.volume.0;
                    let sizes = [s.sectors.get(volume), reverse_sectors.get(volume)];
                    let sectors = sizes.into_iter().flatten().copied().filter(|n| *n != 0).min().unwrap();
                    if transfer(chunks, sectors.div_ceil(8), &agreed) {
                        chunks.clear();
                        out.bitmaps += 1;
                    }
                }
                _ => {}
            }
            out.seen.push(Seen { node, header, packet: packet.clone(), agreed });
            Some(packet)
        }
    }
}

impl Stream {
    fn header_is_meta(&self) -> bool {
        self.decoder.socket() == Socket::Meta
    }

    /// Puts the decoder into the phase that the next packet belongs to; false when that is not known yet.
    fn enter_phase(&mut self, meta: bool, newest: Option<(usize, Agreed)>) -> bool {
        if self.decoder.phase() == Phase::First {
            return true;
        }
        if meta {
            if self.session == usize::MAX {
                let Some((session, agreed)) = newest else { return false };
                self.session = session;
                *self.decoder.agreed_mut() = agreed;
            }
            return true;
        }
        if self.features.is_none() {
            return true;
        }
        if self.session == usize::MAX {
            return false;
        }
        if self.decoder.phase() != Phase::Connected {
            let at = if self.decoder.agreed().version.has_volumes() { 6 } else { 4 };
            let Some(command) = self.bytes.get(at..at + 2) else { return false };
            self.decoder.set_phase(match command {
                [0, 0x10] => Phase::AuthChallenge,
                [0, 0x11] => Phase::AuthResponse,
                _ => Phase::Params,
            });
        }
        true
    }
}

/// Encodes the packet again and compares all bytes but the pads.
fn assert_same(original: &[u8], header: &Header, packet: &Packet, agreed: &Agreed, head: usize) {
    let agreed = Agreed { integrity_sent: agreed.integrity_received, ..*agreed };
    let mut again = BytesMut::new();
    encode(header.volume, packet, &agreed, &mut again).unwrap();
    assert_eq!(original.len(), again.len(), "{packet:?}");
    let mut masked = original.to_vec();
    let pad = match header.kind {
        Kind::DataRequest
        | Kind::RsDataRequest
        | Kind::RsThinReq
        | Kind::CsumRsRequest
        | Kind::OvRequest
        | Kind::OvReply => 20..24,
        Kind::OutOfSync | Kind::RsDeallocated => 12..16,
        Kind::Barrier => 4..8,
        _ => 0..0,
    };
    masked[head..][pad].fill(0);
    assert!(masked == again, "{packet:?}\n{masked:02x?}\n{:02x?}", &again[..]);
}

struct Bits {
    bits: u64,
    words: Vec<u64>,
}

impl BitSource for Bits {
    fn bits(&self) -> u64 {
        self.bits
    }
    fn word(&self, index: u64) -> u64 {
        self.words[usize::try_from(index).unwrap()]
    }
}

impl BitSink for Bits {
    fn set_range(&mut self, first: u64, end: u64) {
        (first..end).for_each(|i| self.words[usize::try_from(i / 64).unwrap()] |= 1 << (i % 64));
    }
    fn or_word(&mut self, index: u64, word: u64) {
        self.words[usize::try_from(index).unwrap()] |= word;
    }
}

/// Whether `chunks` are a whole transfer. If so, what they say must be sent as the same packets.
fn transfer(chunks: &[Packet], bits: u64, agreed: &Agreed) -> bool {
    let mut merged = Bits { bits, words: vec![0; usize::try_from(bits.div_ceil(64)).unwrap()] };
    let mut receiver = BitmapReceiver::new(bits, agreed.version);
    let mut progress = Progress::More;
    for chunk in chunks {
        progress = match chunk {
            Packet::Bitmap(b) => receiver.plain(b, &mut merged).unwrap(),
            Packet::CompressedBitmap(b) => receiver.compressed(b.clone(), &mut merged, u64::MAX).unwrap(),
            other => panic!("{other:?}"),
        };
    }
    if progress != Progress::Complete {
        return false;
    }
    let rle = chunks.iter().any(|c| matches!(c, Packet::CompressedBitmap(_)));
    let mut sender = BitmapSender::new(bits, agreed.version, rle);
    for chunk in chunks {
        assert_eq!(sender.step(&merged, u64::MAX), SendStep::Packet(chunk.clone()));
    }
    assert_eq!(sender.step(&merged, u64::MAX), SendStep::Done);
    true
}
