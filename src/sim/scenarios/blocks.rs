//! Pieces of data: discards with edges, requests of any shape, packets in pieces, sizes.

use super::super::plan::DiskFault;
use super::super::scenario::{MIB, regression};
use super::super::stamp::Content;
use super::super::world::{A, B};
use super::{PROTOCOLS, primary, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// Discards and zeroes with every kind of edge, on devices that promise zeroes, that do not, and that cannot discard, mixed: both
/// read as zeroes, whole.
#[test]
fn s10_a_discard_leaves_the_same_on_both_nodes() {
    let kinds = [(true, true), (true, false), (false, false)];
    regression(18, &[Fault::DiscardNotMirrored, Fault::BarrierMiscounted], |k, scenario| {
        let (a, b) = (turn(k, &kinds), turn(k / 3, &kinds));
        let careful = k / 9 == 0;
        let scenario = scenario.node(A, |n| n.discard = a).node(B, |n| n.discard = b);
        let mut s = primary(scenario.nodes(|n| {
            n.disk.discard_zeroes_if_aligned = careful;
            n.net.max_epoch_size = 3;
        }));
        s.a().write(0, 512);
        for (at, (start, count)) in [(1, 3), (7, 2), (9, 30), (40, 8), (63, 130), (256, 255)].into_iter().enumerate() {
            let zeroes = if at % 2 == 0 { s.a().discard(start, count) } else { s.a().zeroes(start, count) };
            s.calm();
            s.both_hold(zeroes);
            assert!(s.a().read(start, count).iter().all(|sector| *sector == Content::Zero));
        }
        s.a().start_write(8, 8);
        s.a().start(super::super::plan::ClientOp::Discard, 12, 40);
        s.a().start_write(48, 8);
        s.settle();
        s.same_data();
        assert!(!s.trace().contains("ProtocolError"));
    });
}

/// Writes and reads that overlap at any sector, cut into packets of a few bytes: what is read is what was written there.
#[test]
fn s11_every_sector_is_found_where_it_was_written() {
    regression(6, &[], |k, scenario| {
        let mut s = primary(scenario.protocol(turn(k, &PROTOCOLS)));
        for n in 0..40 {
            let (start, count) = ((n * 29 + u64::from(k)) % 200, n % 23 + 1);
            let write = s.a().write(start, count);
            s.a().reads(start, count, write);
        }
        if k % 2 == 0 {
            s.a().detach();
        }
        s.a().read(0, 256);
        s.calm();
    });
}

/// A request that the engine carries out in several parts, of which one fails: the request has failed on that disk.
#[test]
fn s17_one_failed_part_is_a_failed_request() {
    regression(8, &[Fault::LocalErrorUnmarked, Fault::PeerErrorUnmarked], |k, scenario| {
        let policy = turn(k / 4, &[OnIoError::Detach, OnIoError::PassOn]);
        let mut s = primary(scenario.on_io_error(policy).nodes(|n| n.discard = (true, false)));
        s.a().write(0, 256);
        let node = turn(k, &[A, B]);
        // The first edge, the middle or the last edge.
        s.on(node).fail(DiskFault::Write, 1);
        let zeroes = s.a().discard(u64::from(k / 2) + 1, 120);
        s.calm();
        if policy == OnIoError::Detach {
            s.on(node).becomes("Connected");
            assert!(s.state(node, 0).contains("Diskless/UpToDate"));
            s.on(node).attach();
        } else {
            assert!(s.state(node, 0).contains("Inconsistent/UpToDate"));
            s.reset();
        }
        s.settle();
        s.same_data();
        s.both_hold(zeroes);
    });
}

/// Every delivery brings a few bytes, cut anywhere, in every framing.
#[test]
fn s21_packets_may_arrive_in_any_pieces() {
    regression(6, &[], |k, scenario| {
        let mut s = super::parted(scenario.version(turn(k, &[101, 100, 97, 96])).fragments(), 32);
        s.heal();
        s.a().becomes("SyncSource");
        let mut writes = Vec::new();
        for n in 0..12 {
            writes.push(s.a().start_write(n * 40, n % 3 * 16 + 1));
        }
        s.settle();
        s.same_data();
    });
}

/// Peers of unequal size meet: the smaller one counts, to its last sector.
#[test]
fn s28_unequal_peers_use_the_smaller_size_to_its_last_sector() {
    let sizes =
        [[8 * MIB, 8 * MIB + 4096], [8 * MIB + 65536, 8 * MIB], [132 * MIB, 128 * MIB], [128 * MIB, 136 * MIB + 4096]];
    regression(4, &[], |k, scenario| {
        let size = turn(k, &sizes);
        let mut s = primary(scenario.external_meta().volumes(&[size]));
        let sectors = size[A].min(size[B]) / 512;
        let last = s.a().write(sectors - 9, 9);
        s.a().reads(sectors - 9, 9, last);
        s.calm();
        s.both_hold(last);
        let (_, answer) = s.a().try_write(sectors - 8, 16);
        assert_ne!(answer, "ok", "a write beyond the end");
    });
}

/// A peer with a smaller disk than the device that is in use is refused: the device does not shrink under its client.
#[test]
fn s28_a_smaller_peer_does_not_truncate_the_device() {
    regression(2, &[], |k, scenario| {
        let mut s = scenario.external_meta().volumes(&[[12 * MIB, 8 * MIB]]).created();
        s.cut();
        s.a().restart();
        s.a().force();
        let last = s.a().write(12 * MIB / 512 - 8, 8);
        if k == 1 {
            s.a().demote();
        }
        s.b().restart();
        s.heal();
        s.wait(3000);
        s.holds(A, last);
        assert!(!s.state(A, 0).contains("SyncSource") && !s.state(A, 0).starts_with("Connected"), "{}", s.state(A, 0));
        if k == 0 {
            s.a().reads(12 * MIB / 512 - 8, 8, last);
        }
    });
}
