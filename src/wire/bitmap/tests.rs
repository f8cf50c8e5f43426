//! Bitmaps cut into packets and merged again.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Bits {
    bits: u64,
    words: Vec<u64>,
}

impl Bits {
    fn new(bits: u64) -> Self {
        Self { bits, words: vec![0; usize::try_from(bits.div_ceil(64)).unwrap()] }
    }

    fn with(bits: u64, set: impl IntoIterator<Item = u64>) -> Self {
        let mut b = Self::new(bits);
        set.into_iter().for_each(|i| b.set_range(i, i + 1));
        b
    }
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
        assert!(first < end && end <= self.bits);
        for i in first..end {
            self.words[usize::try_from(i / 64).unwrap()] |= 1 << (i % 64);
        }
    }
    fn or_word(&mut self, index: u64, word: u64) {
        assert!(word != 0 && word & !valid_bits(index, self.bits) == 0);
        self.words[usize::try_from(index).unwrap()] |= word;
    }
}

fn v(nr: u32) -> Version {
    Version::new(nr).unwrap()
}

fn packets(source: &Bits, version: Version, rle: bool, slice: u64) -> Vec<Packet> {
    let mut sender = BitmapSender::new(source.bits, version, rle);
    let mut out = Vec::new();
    for _ in 0..100_000_000u64 {
        match sender.step(source, slice) {
            SendStep::Packet(p) => out.push(p),
            SendStep::Again => {}
            SendStep::Done => {
                assert_eq!(sender.progress(), (source.bits, source.bits));
                return out;
            }
        }
    }
    panic!("the sender never ends");
}

fn merge(receiver: &mut BitmapReceiver, packet: &Packet, sink: &mut Bits, slice: u64) -> Result<Progress, BitmapFault> {
    let mut progress = match packet {
        Packet::Bitmap(b) => receiver.plain(b, sink)?,
        Packet::CompressedBitmap(b) => receiver.compressed(b.clone(), sink, slice)?,
        other => panic!("{other:?}"),
    };
    while progress == Progress::Again {
        progress = receiver.step(sink, slice)?;
    }
    Ok(progress)
}

/// Sends `source` and merges it into `sink`; complete with the last packet and not before.
fn transfer(source: &Bits, sink: &mut Bits, version: Version, rle: bool, slice: u64) -> Vec<Packet> {
    let packets = packets(source, version, rle, slice);
    let mut receiver = BitmapReceiver::new(sink.bits, version);
    for (i, packet) in packets.iter().enumerate() {
        let want = if i + 1 == packets.len() { Progress::Complete } else { Progress::More };
        assert_eq!(merge(&mut receiver, packet, sink, slice), Ok(want), "{i} {packet:?}");
    }
    assert_eq!(receiver.progress(), (sink.bits, sink.bits));
    assert_eq!(receiver.plain(&[], sink), Err(BitmapFault::Complete));
    packets
}

#[test]
fn captured_bitmap_encodes_as_the_kernel_does() {
    let set = [0, 8].into_iter().chain(16..24).chain(512..537);
    let source = Bits::with(4086, set);
    let body = Bytes::from_static(&hex_literal::hex!("92 4ce6feb9050ffdb032"));
    assert_eq!(packets(&source, Version::MAX, true, 1 << 20), [Packet::CompressedBitmap(body)]);
}

#[test]
fn plain_chunks_have_the_size_of_the_version_and_an_empty_end() {
    let source = Bits::with(64 * 1200 - 5, (0..64 * 1200 - 5).step_by(3));
    for (nr, first) in [(101, 4080), (100, 4080), (99, 4088), (86, 4088)] {
        let lens: Vec<_> = packets(&source, v(nr), false, 1).iter().map(|p| p.payload().unwrap().len()).collect();
        assert_eq!(lens, [first, first, 1200 * 8 - 2 * first, 0], "v{nr}");
    }
    // Below version 90 there is no code, whatever the option says.
    assert!(packets(&source, v(89), true, 1).iter().all(|p| matches!(p, Packet::Bitmap(_))));
}

#[test]
fn an_incompressible_bitmap_travels_plain_although_rle_is_on() {
    // Runs of 4 cost 3 bits each.
    let even = Bits::with(64 * 600, (0..64 * 600).filter(|i| i / 4 % 2 == 0));
    assert!(packets(&even, Version::MAX, true, 7).iter().all(|p| matches!(p, Packet::CompressedBitmap(_))));
    // Runs of 1 cost 2 bits each.
    let noisy = Bits::with(64 * 600, (0..64 * 600).step_by(2));
    let sent = packets(&noisy, Version::MAX, true, 7);
    let lens: Vec<_> = sent.iter().map(|p| p.payload().unwrap().len()).collect();
    assert_eq!(lens, [4080, 720, 0]);
    assert!(sent.iter().all(|p| matches!(p, Packet::Bitmap(_))));
}

#[test]
fn noise_after_a_long_run_rewinds_to_a_word_boundary() {
    // The first chunk is worth its code; the next begins inside a word, does not pay, and goes plain from that word.
    let source = Bits::with(2_000_000, (1_000_001..1_400_000).step_by(2));
    let mut sink = Bits::new(2_000_000);
    let sent = transfer(&source, &mut sink, Version::MAX, true, 100);
    assert_eq!(sink, source);
    assert!(sent.iter().any(|p| matches!(p, Packet::Bitmap(_))));
    assert!(matches!(sent[0], Packet::CompressedBitmap(_)));
    assert!(matches!(sent.last(), Some(Packet::CompressedBitmap(_))));
}

#[test]
fn a_bitmap_of_no_bits_is_one_empty_packet() {
    let source = Bits::new(0);
    for rle in [false, true] {
        assert_eq!(transfer(&source, &mut Bits::new(0), Version::MAX, rle, 1), [Packet::Bitmap(Bytes::new())]);
    }
}

#[test]
fn one_packet_says_that_a_16_tib_device_is_clean_or_dirty() {
    struct Uniform(u64);
    impl BitSource for Uniform {
        fn bits(&self) -> u64 {
            1 << 32
        }
        fn word(&self, _: u64) -> u64 {
            self.0
        }
    }
    struct Count(u64);
    impl BitSink for Count {
        fn set_range(&mut self, first: u64, end: u64) {
            self.0 += end - first;
        }
        fn or_word(&mut self, _: u64, _: u64) {
            panic!("no plain chunk was sent");
        }
    }
    for (word, want) in [(0, 0), (u64::MAX, 1 << 32)] {
        let mut sender = BitmapSender::new(1 << 32, Version::MAX, true);
        let mut slices = 0;
        let packet = loop {
            match sender.step(&Uniform(word), 1 << 16) {
                SendStep::Packet(p) => break p,
                SendStep::Again => slices += 1,
                SendStep::Done => panic!("nothing was sent"),
            }
        };
        assert_eq!(slices, 1023);
        assert_eq!(sender.step(&Uniform(word), 1), SendStep::Done);
        let (mut receiver, mut sink) = (BitmapReceiver::new(1 << 32, Version::MAX), Count(0));
        let body = packet.payload().unwrap().clone();
        let mut progress = receiver.compressed(body, &mut sink, 1 << 16);
        let mut slices = 1;
        while progress == Ok(Progress::Again) {
            slices += 1;
            progress = receiver.step(&mut sink, 1 << 16);
        }
        assert_eq!((progress, sink.0), (Ok(Progress::Complete), want));
        assert_eq!(slices, if word == 0 { 1 } else { 1024 });
    }
}

#[test]
fn strict_lengths_and_runs() {
    let fresh = || (BitmapReceiver::new(100, Version::MAX), Bits::new(100));
    let (mut r, mut sink) = fresh();
    assert_eq!(r.plain(&[0; 8], &mut sink), Err(BitmapFault::ChunkLength { got: 8, want: 16 }));
    assert_eq!(r.plain(&[], &mut sink), Err(BitmapFault::ChunkLength { got: 0, want: 16 }));
    // Bits behind the last one are ignored, not an error.
    assert_eq!(r.plain(&[0xff; 16], &mut sink), Ok(Progress::More));
    assert_eq!(sink, Bits::with(100, 0..100));
    let run = |run, first_set| {
        let mut w = CodeWriter::new(64);
        assert!(w.push(run));
        w.finish(first_set)
    };
    for set in [true, false] {
        let (mut r, mut sink) = fresh();
        let overflow = BitmapFault::RunOverflow { run: 101, at: 0, bits: 100 };
        assert_eq!(r.compressed(run(101, set), &mut sink, 9), Err(overflow));
        assert_eq!(sink, Bits::new(100));
        let (mut r, mut sink) = fresh();
        let huge = r.compressed(run(crate::wire::bitmap_code::RUN_MAX, set), &mut sink, 9);
        assert!(matches!(huge, Err(BitmapFault::RunOverflow { .. })));
    }
    let (mut r, mut sink) = fresh();
    assert_eq!(r.compressed(run(100, true), &mut sink, 1), Ok(Progress::Again));
    assert_eq!(r.plain(&[], &mut sink), Err(BitmapFault::Unfinished));
    assert_eq!(r.step(&mut sink, 1), Ok(Progress::Complete));
}

/// Stretches of nothing, everything and noise.
fn bitmap() -> impl Strategy<Value = Bits> {
    let stretch = (1u64..5000, 0u8..4, any::<u64>());
    prop::collection::vec(stretch, 0..40).prop_map(|stretches| {
        let bits = stretches.iter().map(|s| s.0).sum();
        let mut b = Bits::new(bits);
        let (mut at, mut noise) = (0, 1u64);
        for (len, kind, seed) in stretches {
            noise ^= seed | 1;
            for i in at..at + len {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let set = match kind {
                    0 => false,
                    1 => true,
                    2 => noise & 1 == 1,
                    _ => noise & 0x3f == 0,
                };
                if set {
                    b.set_range(i, i + 1);
                }
            }
            at += len;
        }
        b
    })
}

fn version() -> impl Strategy<Value = Version> {
    (86..=101u32).prop_map(v)
}

proptest! {
    #[test]
    fn any_bitmap_arrives(source in bitmap(), version in version(), rle in any::<bool>(), slice in 1u64..300) {
        let mut sink = Bits::new(source.bits);
        transfer(&source, &mut sink, version, rle, slice);
        prop_assert_eq!(&sink, &source);
        // The slices change nothing.
        prop_assert_eq!(
            packets(&source, version, rle, slice),
            packets(&source, version, rle, u64::MAX)
        );
    }

    #[test]
    fn merging_is_a_union(a in bitmap(), b in bitmap(), rle in any::<bool>()) {
        let bits = a.bits.min(b.bits);
        let cut = |x: &Bits| Bits::with(bits, (0..bits).filter(|i| x.word(i / 64) >> (i % 64) & 1 == 1));
        let (a, b) = (cut(&a), cut(&b));
        let mut sink = b.clone();
        transfer(&a, &mut sink, Version::MAX, rle, 50);
        let union = a.words.iter().zip(&b.words).map(|(x, y)| x | y).collect::<Vec<_>>();
        prop_assert_eq!(sink.words, union);
    }

    #[test]
    fn plain_and_coded_chunks_may_be_mixed(source in bitmap(), choices in prop::collection::vec(any::<bool>(), 1..50)) {
        // Two senders at the same position, one of which codes: take the next packet of either.
        let mut sink = Bits::new(source.bits);
        let mut sender = BitmapSender::new(source.bits, Version::MAX, true);
        let mut receiver = BitmapReceiver::new(source.bits, Version::MAX);
        let mut progress = Progress::More;
        for choice in choices.into_iter().cycle() {
            sender.rle = choice || sender.coding.is_some();
            match sender.step(&source, 100) {
                SendStep::Packet(p) => progress = merge(&mut receiver, &p, &mut sink, 3).unwrap(),
                SendStep::Again => {}
                SendStep::Done => break,
            }
        }
        prop_assert_eq!(progress, Progress::Complete);
        prop_assert_eq!(sink, source);
    }

    #[test]
    fn any_bytes_are_no_panic(
        bits in 0u64..10_000,
        bodies in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
    ) {
        let (mut r, mut sink) = (BitmapReceiver::new(bits, Version::MAX), Bits::new(bits));
        for (plain, body) in bodies {
            let packet =
                if plain { Packet::Bitmap(body.into()) } else { Packet::CompressedBitmap(body.into()) };
            if merge(&mut r, &packet, &mut sink, 5).is_err() {
                break;
            }
        }
    }
}
