//! What a packet and a bitmap cost: encode and decode of a 4 KiB write and its acknowledgement, run-length coding of
//! bitmaps of a 1 TiB device.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use udrbd::units::{BlockId, Sector, SeqNr, VolumeNr};
use udrbd::wire::bitmap::{BitSink, BitSource, BitmapReceiver, BitmapSender, Progress, SendStep};
use udrbd::wire::{
    Agreed, BlockAck, Data, Digest, DpFlags, FeatureFlags, Packet, Phase, Place, Socket, Version, decode_body,
    decode_header, encode_head,
};

fn agreed() -> Agreed {
    Agreed::new(Version::MAX, FeatureFlags::KNOWN)
}

fn packets(c: &mut Criterion) {
    let data = Packet::Data(Data {
        sector: Sector(8),
        block_id: BlockId(0x1234),
        seq: SeqNr(1),
        flags: DpFlags::SEND_WRITE_ACK,
        digest: Digest::EMPTY,
        payload: Bytes::from(vec![0x41; 4096]),
    });
    let ack = Packet::WriteAck(BlockAck { sector: Sector(8), block_id: BlockId(0x1234), blksize: 4096, seq: SeqNr(2) });
    let agreed = agreed();
    for (name, packet, socket) in [("P_DATA 4 KiB", data, Socket::Data), ("P_WRITE_ACK", ack, Socket::Meta)] {
        let mut out = BytesMut::with_capacity(256);
        c.bench_function(&format!("encode {name}"), |b| {
            b.iter(|| {
                out.clear();
                encode_head(VolumeNr(0), black_box(&packet), &agreed, &mut out).is_ok()
            });
        });
        let payload = packet.payload().cloned().unwrap_or_default();
        let place = Place { socket, phase: Phase::Connected };
        c.bench_function(&format!("decode {name}"), |b| {
            b.iter(|| {
                let (header, fixed) = black_box(&out[..]).split_at(16);
                let header = decode_header(header, place, &agreed).ok()?;
                decode_body(&header, &agreed, fixed, payload.clone()).ok()
            });
        });
    }
}

struct Bits(Vec<u64>);

impl BitSource for Bits {
    fn bits(&self) -> u64 {
        self.0.len() as u64 * 64
    }
    fn word(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|i| self.0.get(i)).copied().unwrap_or(0)
    }
}

impl BitSink for Bits {
    fn set_range(&mut self, first: u64, end: u64) {
        for i in first..end {
            self.or_word(i / 64, 1 << (i % 64));
        }
    }
    fn or_word(&mut self, index: u64, word: u64) {
        if let Some(w) = usize::try_from(index).ok().and_then(|i| self.0.get_mut(i)) {
            *w |= word;
        }
    }
}

fn send(bits: &Bits) -> Vec<Packet> {
    let mut sender = BitmapSender::new(bits.bits(), Version::MAX, true);
    let mut out = Vec::new();
    loop {
        match sender.step(bits, u64::MAX) {
            SendStep::Packet(p) => out.push(p),
            SendStep::Again => {}
            SendStep::Done => return out,
        }
    }
}

fn merge(packets: &[Packet], sink: &mut Bits) -> Option<Progress> {
    let mut receiver = BitmapReceiver::new(sink.bits(), Version::MAX);
    let mut last = None;
    for packet in packets {
        last = match packet {
            Packet::Bitmap(body) => receiver.plain(body, sink).ok(),
            Packet::CompressedBitmap(body) => receiver.compressed(body.clone(), sink, u64::MAX).ok(),
            _ => None,
        };
    }
    last
}

fn bitmaps(c: &mut Criterion) {
    /// Words of the bitmap of a 1 TiB device.
    const WORDS: usize = 1 << 22;
    let mut noise = 1u64;
    let mut random = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise
    };
    let clean = Bits(vec![0; WORDS]);
    // One dirty stretch in a thousand words, as after a minute of scattered writes.
    let sparse = Bits((0..WORDS).map(|_| if random() % 1000 == 0 { random() & random() } else { 0 }).collect());
    let noisy = Bits((0..WORDS).map(|_| random()).collect());
    let mut group = c.benchmark_group("bitmap of 1 TiB");
    group.sample_size(10).throughput(Throughput::Elements(WORDS as u64 * 64));
    for (name, bits) in [("clean", &clean), ("sparse", &sparse), ("random", &noisy)] {
        group.bench_function(format!("encode {name}"), |b| b.iter(|| send(black_box(bits)).len()));
        let packets = send(bits);
        group.bench_function(format!("merge {name}"), |b| {
            b.iter_batched_ref(|| Bits(vec![0; WORDS]), |sink| merge(black_box(&packets), sink), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group! {
    name = codec;
    config = Criterion::default();
    targets = packets, bitmaps
}
criterion_main!(codec);
