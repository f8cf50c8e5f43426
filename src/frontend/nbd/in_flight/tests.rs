//! Completions in every order, and what the client gets to read.

#![expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::io::IoSlice;

use proptest::prelude::*;
use smallvec::smallvec;

use super::*;
use crate::frontend::nbd::proto::{Chunk, Reader, SIMPLE_REPLY_MAGIC, chunk_flag};
use crate::frontend::nbd::reply::SLICES_MAX;

const MIB: u64 = 2048;

fn range(start: u64, count: u64) -> SectorRange {
    SectorRange { start: Sector(start), count: Sectors(count) }
}

/// Data that tells where it belongs.
fn data(range: SectorRange) -> Payload {
    let mut bytes = vec![0; len_usize(range)];
    for (sector, bytes) in (range.start.0..).zip(bytes.chunks_mut(512)) {
        bytes[..8].copy_from_slice(&sector.to_be_bytes());
    }
    smallvec![Bytes::from(bytes)]
}

fn sent(table: &mut InFlight) -> Vec<u8> {
    let mut out = Vec::new();
    while !table.replies.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = table.replies.slices(&mut slices);
        let before = out.len();
        slices[..count].iter().for_each(|slice| out.extend_from_slice(slice));
        let len = out.len() - before;
        table.replies.sent(len);
    }
    out
}

fn simple(errno: u32, cookie: u64) -> Vec<u8> {
    [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

/// Chunks of a structured reply: type, done, payload.
fn chunks(bytes: &[u8]) -> Vec<(Chunk, bool, Vec<u8>)> {
    let mut reader = Reader::new(bytes);
    let mut chunks = Vec::new();
    while reader.left() > 0 {
        reader.u32("magic").unwrap();
        let flags = reader.u16("flags").unwrap();
        let kind = Chunk(reader.u16("type").unwrap());
        reader.u64("cookie").unwrap();
        let len = reader.u32("length").unwrap() as usize;
        chunks.push((kind, flags & chunk_flag::DONE != 0, reader.bytes(len, "payload").unwrap().to_vec()));
    }
    chunks
}

#[test]
fn a_write_in_pieces_is_answered_once_with_its_first_error() {
    let mut table = InFlight::new(true);
    let whole = range(0, 2 * MIB + 1);
    let tags = [range(0, MIB), range(MIB, MIB), range(2 * MIB, 1)].map(|piece| table.write_piece(7, whole, piece));
    assert_eq!(table.count(), 1);
    table.complete(tags[2], Err(Errno::NoSpc)).unwrap();
    table.complete(tags[0], Err(Errno::Io)).unwrap();
    assert!(table.replies.is_empty());
    table.complete(tags[1], Ok(Payload::new())).unwrap();
    assert_eq!(sent(&mut table), simple(28, 7));
    assert_eq!((table.count(), table.bytes), (0, 0));
}

#[test]
fn an_abandoned_write_waits_only_for_what_was_submitted() {
    let mut table = InFlight::new(true);
    let whole = range(0, 3 * MIB);
    let tag = table.write_piece(7, whole, range(0, MIB));
    table.abandon_write();
    assert_eq!(table.count(), 1);
    table.complete(tag, Ok(Payload::new())).unwrap();
    assert_eq!((table.count(), table.bytes), (0, 0));
    let tag = table.write_piece(8, whole, range(0, MIB));
    table.complete(tag, Ok(Payload::new())).unwrap();
    assert_eq!(table.count(), 1);
    table.abandon_write();
    assert_eq!((table.count(), table.bytes), (0, 0));
}

#[test]
fn data_of_the_wrong_length_is_an_error() {
    for structured in [false, true] {
        let mut table = InFlight::new(structured);
        let [(tag, _)] = table.read(7, range(0, 8)).collect::<Vec<_>>()[..] else { panic!("one piece") };
        table.complete(tag, Ok(data(range(0, 7)))).unwrap();
        let bytes = sent(&mut table);
        if structured {
            assert_eq!(chunks(&bytes), [(Chunk::ERROR, true, vec![0, 0, 0, 5, 0, 0])]);
        } else {
            assert_eq!(bytes, simple(5, 7));
        }
    }
}

#[test]
fn the_budget_admits_one_request_of_any_size_and_then_no_more() {
    let mut table = InFlight::new(true);
    assert!(table.admits());
    let tags: Vec<_> = table.read(7, range(0, 32 * MIB)).collect();
    assert_eq!(tags.len(), 32);
    assert!(!table.admits());
    for (tag, piece) in tags {
        table.complete(tag, Ok(data(piece))).unwrap();
    }
    // All of it waits for the socket.
    assert!(!table.admits());
    sent(&mut table);
    assert!(table.admits());
    for cookie in 0..NBD_REQUESTS_IN_FLIGHT_MAX {
        assert!(table.admits());
        table.plain(cookie as u64);
    }
    assert!(!table.admits());
}

#[test]
fn refusals_that_nobody_reads_stop_the_reading() {
    let mut table = InFlight::new(true);
    let invalid = Invalid { errno: Errno::Inval, reason: "the request is not aligned to 512 bytes" };
    let mut count = 0;
    while table.admits() {
        table.refuse(1, Cmd::WRITE, invalid);
        count += 1;
        assert!(count < 2000);
    }
}

#[test]
fn an_error_in_the_middle_of_a_simple_reply_ends_the_connection() {
    let mut table = InFlight::new(false);
    let tags: Vec<_> = table.read(7, range(0, 3 * MIB)).collect();
    table.complete(tags[0].0, Ok(data(tags[0].1))).unwrap();
    assert_eq!(table.complete(tags[1].0, Err(Errno::Io)), Err(ReadCutShort));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In whatever order the pieces of a read complete, and whichever fail, the client can read the answer.
    #[test]
    fn reads_complete_in_any_order(
        structured: bool,
        sectors in 1_u64..5 * MIB,
        order in Just((0_usize..5).collect::<Vec<_>>()).prop_shuffle(),
        fails in proptest::collection::vec(proptest::bool::weighted(0.1), 5),
    ) {
        let mut table = InFlight::new(structured);
        let whole = range(99, sectors);
        let pieces: Vec<_> = table.read(7, whole).collect();
        let mut cut_short = false;
        for index in order.into_iter().filter(|index| *index < pieces.len()) {
            let (tag, piece) = pieces[index];
            let outcome = if fails[index] { Err(Errno::Io) } else { Ok(data(piece)) };
            if table.complete(tag, outcome).is_err() {
                cut_short = true;
                break;
            }
        }
        let failed = fails[..pieces.len()].contains(&true);
        if cut_short {
            prop_assert!(failed && !structured);
            return Ok(());
        }
        prop_assert_eq!((table.count(), table.bytes), (0, 0));
        let bytes = sent(&mut table);
        let expected = data(whole).concat();
        if !structured {
            let reply = if failed { simple(5, 7) } else { [simple(0, 7), expected].concat() };
            prop_assert!(bytes == reply);
            return Ok(());
        }
        let chunks = chunks(&bytes);
        let (last, rest) = chunks.split_last().unwrap();
        prop_assert!(last.1 && rest.iter().all(|(_, done, _)| !done));
        prop_assert_eq!(last.0 == Chunk::ERROR, failed);
        let mut got = vec![0; expected.len()];
        let mut covered = 0;
        for (_, _, payload) in chunks.iter().filter(|(kind, _, _)| *kind == Chunk::OFFSET_DATA) {
            let (offset, data) = payload.split_first_chunk().unwrap();
            let at = (u64::from_be_bytes(*offset) - whole.start.bytes()) as usize;
            got[at..at + data.len()].copy_from_slice(data);
            covered += data.len();
        }
        prop_assert!(failed || (got == expected && covered == expected.len()));
    }
}
