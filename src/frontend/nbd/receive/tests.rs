//! Streams of requests, cut anywhere, against a source that has memory or has none.

#![expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::frontend::nbd::export::ExportInfo;
use crate::frontend::request::Errno;

/// Gives out at most `credit` bytes until it is refilled.
struct Source {
    credit: Cell<usize>,
}

impl BufferSource for Source {
    type Buffer = Vec<u8>;

    fn try_alloc(&self, len: usize) -> Option<Vec<u8>> {
        self.credit.set(self.credit.get().checked_sub(len)?);
        Some(vec![0xee; len])
    }

    fn freeze(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from(buffer)
    }

    async fn wait(&self, _len: usize) {}
}

fn negotiated() -> Negotiated {
    Negotiated {
        export: ExportInfo {
            name: "r0".to_owned(),
            description: String::new(),
            size: Sectors(1 << 20),
            read_only: false,
            trim: true,
            multi_conn: true,
        },
        flags: u16::MAX,
        structured: true,
        base_allocation: true,
    }
}

fn header(command: Cmd, offset: u64, len: u32, cookie: u64) -> RequestHeader {
    RequestHeader { flags: 0, command, cookie, offset, len }
}

/// A header with the payload that belongs to it, if any.
fn message(header: &RequestHeader) -> Vec<u8> {
    let mut bytes = header.encode().to_vec();
    bytes.extend((0..header.payload_len()).map(|n| (n / 512 + n) as u8 ^ header.cookie as u8));
    bytes
}

/// What a stream meant: writes put together again.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Request(u64, Command),
    Write(u64, SectorRange, Vec<u8>),
    Refused(u64, Errno),
}

/// Feeds `bytes` in cuts of the given sizes.
fn feed(bytes: &[u8], cuts: &[usize]) -> (Vec<Meaning>, Option<ReceiveError>, bool) {
    let negotiated = negotiated();
    let source = Source { credit: Cell::new(0) };
    let (mut meanings, mut rest) = (Vec::new(), bytes);
    let mut receiver = Receiver::new(&[]);
    let mut write: Option<(SectorRange, Vec<u8>)> = None;
    let mut cuts = cuts.iter().cycle();
    loop {
        match receiver.next(&source, &negotiated) {
            Err(error) => return (meanings, Some(error), false),
            // Memory comes when it is asked for, and not before.
            Ok(Received::NeedBuffer(len)) => {
                assert!(len <= 1 << 20);
                source.credit.set(len);
            }
            Ok(Received::NeedBytes) => {
                if rest.is_empty() {
                    assert!(write.is_none() || !receiver.is_between_requests());
                    return (meanings, None, receiver.is_between_requests());
                }
                let mut room = *cuts.next().unwrap();
                let mut received = 0;
                for mut slice in receiver.free() {
                    let len = slice.len().min(room).min(rest.len());
                    slice[..len].copy_from_slice(&rest[..len]);
                    rest = &rest[len..];
                    room -= len;
                    received += len;
                }
                assert!(received > 0, "there is room for bytes");
                receiver.received(received);
            }
            Ok(Received::Request { cookie, command }) => meanings.push(Meaning::Request(cookie, command)),
            Ok(Received::Refused { cookie, invalid, .. }) => meanings.push(Meaning::Refused(cookie, invalid.errno)),
            Ok(Received::WritePiece { cookie, whole, range, data, .. }) => {
                assert_eq!(range.bytes(), data.len() as u64);
                assert!(data.len() <= 1 << 20);
                let (next, mut bytes) =
                    write.take().unwrap_or((SectorRange { count: Sectors(0), ..whole }, Vec::new()));
                assert_eq!(next.end(), range.start, "pieces follow each other");
                bytes.extend_from_slice(&data);
                if bytes.len() as u64 == whole.bytes() {
                    meanings.push(Meaning::Write(cookie, whole, bytes));
                } else {
                    write = Some((SectorRange { start: whole.start, count: Sectors(bytes.len() as u64 / 512) }, bytes));
                }
            }
        }
    }
}

fn meaning(header: &RequestHeader) -> Meaning {
    match validate(header, &negotiated()) {
        Ok(Command::Write { range, .. }) => {
            Meaning::Write(header.cookie, range, message(header)[REQUEST_BYTES..].to_vec())
        }
        Ok(command) => Meaning::Request(header.cookie, command),
        Err(invalid) => Meaning::Refused(header.cookie, invalid.errno),
    }
}

#[test]
fn large_writes_come_in_pieces_of_a_mebibyte() {
    let write = header(Cmd::WRITE, 512, (3 << 20) + 512, 9);
    for cut in [1 << 12, 300_000, usize::MAX] {
        let (meanings, error, between) = feed(&message(&write), &[cut]);
        assert_eq!((meanings, error, between), (vec![meaning(&write)], None, true));
    }
}

#[test]
fn a_refused_write_is_drained_and_a_huge_one_is_fatal() {
    let unaligned = header(Cmd::WRITE, 1, 70_000, 1);
    let read = header(Cmd::READ, 0, 512, 2);
    let bytes = [message(&unaligned), message(&read)].concat();
    let (meanings, error, between) = feed(&bytes, &[1000]);
    assert_eq!((meanings, error, between), (vec![Meaning::Refused(1, Errno::Inval), meaning(&read)], None, true));
    let huge = header(Cmd::WRITE, 0, NBD_DRAIN_BYTES_MAX + 1, 3);
    let (meanings, error, _) = feed(&huge.encode(), &[28]);
    assert_eq!((meanings, error), (vec![], Some(ReceiveError::WriteTooLong { len: huge.len })));
}

#[test]
fn leftover_bytes_come_first() {
    let write = header(Cmd::WRITE, 0, 4096, 5);
    let bytes = message(&write);
    let source = Source { credit: Cell::new(1 << 20) };
    let mut receiver = Receiver::new(&bytes[..100]);
    assert_eq!(receiver.next(&source, &negotiated()), Ok(Received::NeedBytes));
    let [direct, mut staging] = receiver.free();
    assert!(direct.is_empty());
    staging[..bytes.len() - 100].copy_from_slice(&bytes[100..]);
    receiver.received(bytes.len() - 100);
    let Ok(Received::WritePiece { data, .. }) = receiver.next(&source, &negotiated()) else { panic!("no write") };
    assert_eq!(data, bytes[REQUEST_BYTES..]);
    assert!(receiver.is_between_requests());
}

#[test]
fn the_payload_of_a_large_write_is_not_copied() {
    let write = header(Cmd::WRITE, 0, 1 << 20, 5);
    let source = Source { credit: Cell::new(1 << 20) };
    let mut receiver = Receiver::new(&write.encode());
    assert_eq!(receiver.next(&source, &negotiated()), Ok(Received::NeedBytes));
    let [direct, staging] = receiver.free();
    assert_eq!((direct.len(), staging.len()), (1 << 20, PEEK_BYTES));
}

fn any_header() -> impl Strategy<Value = RequestHeader> {
    let len = prop_oneof![
        8 => (0_u32..16).prop_map(|n| n * 512),
        4 => Just(NBD_COPY_BYTES_MAX as u32),
        2 => (60_u32..300).prop_map(|n| n * 512),
        1 => 0_u32..100_000,
    ];
    let command = prop_oneof![4 => Just(1_u16), 1 => 0_u16..9];
    (command, 0_u64..(1 << 20) + 1000, len, any::<u64>())
        .prop_map(|(command, sector, len, cookie)| header(Cmd(command), sector * 512, len, cookie))
}

proptest! {
    /// However the stream is cut, every request arrives once, in order, with its own bytes.
    #[test]
    fn any_fragmentation_means_the_same(
        headers in proptest::collection::vec(any_header(), 0..8),
        cuts in proptest::collection::vec(prop_oneof![1_usize..60, 1_usize..200_000], 1..10),
    ) {
        let bytes: Vec<u8> = headers.iter().flat_map(message).collect();
        let (meanings, error, between) = feed(&bytes, &cuts);
        prop_assert_eq!(meanings, headers.iter().map(meaning).collect::<Vec<_>>());
        prop_assert_eq!((error, between), (None, true));
    }

    /// Noise ends the connection or waits, it never panics.
    #[test]
    fn any_bytes_are_survived(
        headers in proptest::collection::vec(any_header(), 0..3),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 1_usize..300,
    ) {
        let bytes = [headers.iter().flat_map(message).collect(), noise].concat();
        let (meanings, _, _) = feed(&bytes, &[cut]);
        prop_assert!(meanings.len() >= headers.len());
    }
}
