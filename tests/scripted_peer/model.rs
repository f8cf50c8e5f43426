//! The node behind the scripted peer: a disk in memory, and the answers that an honest node owes.

use std::collections::BTreeSet;

use bytes::Bytes;
use udrbd::units::{Sector, SectorRange, Sectors};
use udrbd::wire::bitmap::{BitSink, BitSource, BitmapReceiver, BitmapSender, Progress, SendStep};
use udrbd::wire::{BlockAck, ConnState, DataReply, DpFlags, Packet, ReplProtocol, StateResult};

use crate::peer::Peer;

#[derive(Default)]
pub struct Model {
    pub disk: Vec<u8>,
    size: Sectors,
    /// Bits that are set.
    pub bits: BTreeSet<u64>,
    /// Writes since the last barrier.
    epoch: u32,
    /// Writes that were received.
    pub writes: Vec<(SectorRange, DpFlags)>,
    /// Barriers that were acknowledged.
    pub barriers: usize,
    /// Blocks that this side gave in a resync.
    pub resynced: usize,
    /// Acknowledgements are held back while this is set.
    pub silent: bool,
    /// Resync requests are left to the script while this is set.
    pub deaf: bool,
    /// In a sync state: writes are acknowledged as in sync.
    pub syncing: bool,
    receiving: Option<BitmapReceiver>,
    /// Whole bitmaps that came in.
    pub bitmaps: usize,
    /// Of these packets, how many were run-length coded.
    pub coded_chunks: usize,
    pub plain_chunks: usize,
}

impl Model {
    pub fn new(size: Sectors) -> Self {
        Self { disk: vec![0; usize::try_from(size.bytes()).expect("a small disk")], size, ..Self::default() }
    }

    fn place(range: SectorRange) -> std::ops::Range<usize> {
        let byte = |sector: Sector| usize::try_from(sector.bytes()).expect("a small disk");
        byte(range.start)..byte(range.end())
    }

    pub fn read(&self, range: SectorRange) -> &[u8] {
        &self.disk[Self::place(range)]
    }

    pub fn write(&mut self, range: SectorRange, data: &[u8]) {
        self.disk[Self::place(range)].copy_from_slice(data);
    }

    /// Writes that no barrier covers yet.
    pub const fn open_epoch(&self) -> u32 {
        self.epoch
    }

    /// What an honest node does with `packet`.
    pub fn answer(&mut self, peer: &mut Peer, packet: &Packet) {
        match packet {
            Packet::Data(p) => {
                let range = p.range().expect("a legal range");
                self.write(range, &p.payload);
                self.written(
                    peer,
                    range,
                    p.flags,
                    BlockAck {
                        sector: p.sector,
                        block_id: p.block_id,
                        blksize: u32::try_from(p.payload.len()).expect("a request"),
                        seq: Default::default(),
                    },
                );
            }
            Packet::Trim(p) | Packet::Zeroes(p) => {
                let range = p.range().expect("a legal range");
                self.disk[Self::place(range)].fill(0);
                let ack = BlockAck { sector: p.sector, block_id: p.block_id, blksize: p.size, seq: Default::default() };
                self.written(peer, range, p.flags, ack);
            }
            Packet::Barrier { barrier } => {
                let set_size = std::mem::take(&mut self.epoch);
                if set_size > 0 && !self.silent {
                    self.barriers += 1;
                    peer.send(Packet::BarrierAck { barrier: *barrier, set_size });
                }
            }
            Packet::DataRequest(p) => {
                let payload = Bytes::copy_from_slice(self.read(p.range().expect("a legal range")));
                peer.send(Packet::DataReply(DataReply {
                    sector: p.sector,
                    block_id: p.block_id,
                    digest: Default::default(),
                    payload,
                }));
            }
            Packet::RsDataRequest(p) if !self.deaf => {
                self.resynced += 1;
                let payload = Bytes::copy_from_slice(self.read(p.range().expect("a legal range")));
                peer.send(Packet::RsDataReply(DataReply {
                    sector: p.sector,
                    block_id: p.block_id,
                    digest: Default::default(),
                    payload,
                }));
            }
            Packet::RsWriteAck(p) => self.clear(p.range().expect("a legal range")),
            Packet::OutOfSync(p) => self.bits.extend(p.range().expect("a legal range").bits_touched()),
            Packet::Bitmap(body) => {
                self.plain_chunks += 1;
                let mut receiver = self.receiver(peer);
                let progress = receiver.plain(body, &mut Bits(&mut self.bits)).expect("a legal bitmap");
                self.received(receiver, progress);
            }
            Packet::CompressedBitmap(body) => {
                self.coded_chunks += 1;
                let mut receiver = self.receiver(peer);
                let progress = receiver
                    .compressed(body.clone(), &mut Bits(&mut self.bits), u64::MAX >> 8)
                    .expect("a legal bitmap");
                self.received(receiver, progress);
            }
            Packet::StateChgReq { val, .. } => {
                let leaving = val.conn() == Some(ConnState::Disconnecting);
                assert!(!leaving || peer.persona.version < 100, "a disconnect is asked for the old way");
                peer.send(Packet::StateChgReply(StateResult::Success.code()));
            }
            Packet::ConnStChgReq { .. } => peer.send(Packet::ConnStChgReply(StateResult::Success.code())),
            _ => {}
        }
    }

    fn written(&mut self, peer: &mut Peer, range: SectorRange, flags: DpFlags, ack: BlockAck) {
        self.epoch += 1;
        self.writes.push((range, flags));
        if self.silent {
            return;
        }
        let (received, written) = if peer.agreed.version.has_ack_flags() {
            (flags.has(DpFlags::SEND_RECEIVE_ACK), flags.has(DpFlags::SEND_WRITE_ACK))
        } else {
            (peer.persona.protocol == ReplProtocol::B, peer.persona.protocol == ReplProtocol::C)
        };
        let in_sync = self.syncing && flags.has(DpFlags::MAY_SET_IN_SYNC);
        if received {
            let seq = peer.next_seq();
            peer.send(Packet::RecvAck(BlockAck { seq, ..ack }));
        }
        if written {
            let seq = peer.next_seq();
            let ack = BlockAck { seq, ..ack };
            peer.send(if in_sync { Packet::RsWriteAck(ack) } else { Packet::WriteAck(ack) });
        }
        if in_sync {
            self.clear(range);
        }
    }

    fn clear(&mut self, range: SectorRange) {
        for bit in range.bits_covered(self.size) {
            self.bits.remove(&bit);
        }
    }

    fn receiver(&mut self, peer: &Peer) -> BitmapReceiver {
        let fresh = || BitmapReceiver::new(self.size.bm_bits(), peer.agreed.version);
        self.receiving.take().unwrap_or_else(fresh)
    }

    fn received(&mut self, receiver: BitmapReceiver, progress: Progress) {
        match progress {
            Progress::Complete => self.bitmaps += 1,
            Progress::More => self.receiving = Some(receiver),
            Progress::Again => panic!("the whole chunk was to be merged"),
        }
    }

    /// The packets of this side's bitmap.
    pub fn bitmap_packets(&self, peer: &Peer, rle: bool) -> Vec<Packet> {
        let mut sender = BitmapSender::new(self.size.bm_bits(), peer.agreed.version, rle);
        let source = Source { bits: &self.bits, len: self.size.bm_bits() };
        let mut packets = Vec::new();
        loop {
            match sender.step(&source, 1 << 20) {
                SendStep::Packet(packet) => packets.push(packet),
                SendStep::Again => {}
                SendStep::Done => return packets,
            }
        }
    }
}

struct Bits<'a>(&'a mut BTreeSet<u64>);

impl BitSink for Bits<'_> {
    fn set_range(&mut self, first: u64, end: u64) {
        self.0.extend(first..end);
    }

    fn or_word(&mut self, index: u64, word: u64) {
        self.0.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| index * 64 + bit));
    }
}

struct Source<'a> {
    bits: &'a BTreeSet<u64>,
    len: u64,
}

impl BitSource for Source<'_> {
    fn bits(&self) -> u64 {
        self.len
    }

    fn word(&self, index: u64) -> u64 {
        self.bits.range(index * 64..(index + 1) * 64).fold(0, |word, bit| word | 1 << (bit % 64))
    }
}
