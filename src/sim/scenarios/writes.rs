//! Writes: mirrored, announced or marked, never none of it; epochs; the order of writes to one block.

use super::super::plan::{DiskFault, Order};
use super::super::scenario::regression;
use super::super::world::{A, B};
use super::{PROTOCOLS, parted, primary, resyncing, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// A Secondary's disk fails a write, under every protocol: the Primary marks the block before the disk comes back, and nothing
/// diverges.
#[test]
fn s01_a_write_that_fails_on_the_secondary_is_marked() {
    regression(6, &[Fault::PeerErrorUnmarked, Fault::NoNegativeAck], |k, scenario| {
        let policy = turn(k / 3, &[OnIoError::Detach, OnIoError::PassOn]);
        let mut s = primary(scenario.protocol(turn(k, &PROTOCOLS)).on_io_error(policy));
        s.b().fail(DiskFault::Write, 1);
        let write = s.a().write(0, 8);
        s.until("A learns that B's disk is not good any more", |s| !s.state(A, 0).ends_with("/UpToDate"));
        s.calm();
        assert!(s.bit(A, 0, 0), "the peer's disk is known to be bad, its missing block is not");
        if policy == OnIoError::Detach {
            s.b().becomes("Connected Secondary/Primary Diskless/UpToDate");
            s.b().attach();
        } else {
            s.reset();
        }
        s.settle();
        s.same_data();
        s.both_hold(write);
    });
}

/// A write during the handshake, at any moment: it is mirrored or announced, never both, and never neither.
#[test]
fn s02_every_write_is_mirrored_or_announced_exactly_once() {
    regression(50, &[Fault::OutOfSyncNotSent], |k, scenario| {
        let mut s = parted(scenario, 1);
        s.heal();
        s.a().meets();
        let before = (s.sent(A, "P_DATA"), s.sent(A, "P_OUT_OF_SYNC"));
        s.events(k);
        let write = s.a().start_write(4096, 8);
        s.settle();
        let ways = s.sent(A, "P_DATA") - before.0 + s.sent(A, "P_OUT_OF_SYNC") - before.1;
        assert!(ways <= 1, "the write was mirrored and announced");
        s.same_data();
        s.both_hold(write);
    });
}

/// Writes while the bitmaps are exchanged and the target's disk is slow: everything announced is announced before the new
/// generation of the resync.
#[test]
fn s03_the_resync_uuid_does_not_overtake_announcements() {
    regression(16, &[Fault::OutOfSyncNotSent], |k, scenario| {
        let mut s = parted(scenario.skewed_sockets().nodes(|n| n.eager_batches = u64::from(k % 2) * 100), 1);
        s.heal();
        s.b().stall(u64::from(k) * 5);
        s.a().becomes("WFBitMapS");
        let mut writes = Vec::new();
        for n in 0..8 {
            writes.push(s.a().start_write(1024 + 64 * n, 8));
            s.events(k);
        }
        s.settle();
        let sent: Vec<&str> = s.trace().lines().filter(|line| line.contains(" A sends ")).collect();
        let uuid = sent.iter().rposition(|line| line.contains("P_SYNC_UUID")).expect("there was a resync");
        assert!(sent[uuid..].iter().all(|line| !line.contains("P_OUT_OF_SYNC")), "announced after the generation");
        s.same_data();
        for write in writes {
            s.both_hold(write);
        }
    });
}

/// The link breaks at every packet of a stream of small epochs, and the next link carries more of them: no epoch of the old
/// link counts on the new one.
#[test]
fn s12_epochs_begin_anew_with_every_link() {
    let bugs = [Fault::EpochsNotReset, Fault::LostRequestUnmarked, Fault::LostRequestForgotten];
    regression(36, &bugs, |k, scenario| {
        let slow = turn(k / 3, &[100_000, 5_000_000]);
        let scenario = scenario.protocol(turn(k, &PROTOCOLS)).node(B, |n| n.disk_ns = slow);
        let scenario = scenario.nodes(|n| n.net.max_epoch_size = 2);
        let mut s = primary(scenario);
        let mut writes = Vec::new();
        for n in 0..12 {
            writes.push(s.a().start_write(n * 16, 8));
            s.events(2);
        }
        s.packets(k);
        s.reset();
        for n in 12..18 {
            writes.push(s.a().start_write(n * 16, 8));
        }
        s.a().becomes("WF");
        s.a().meets();
        for n in 18..24 {
            writes.push(s.a().start_write(n * 16, 8));
        }
        s.settle();
        for n in 24..28 {
            writes.push(s.a().write(n * 16, 8));
        }
        s.a().flush();
        // Only when the peer has acknowledged every epoch.
        s.a().demote();
        s.settle();
        assert!(!s.trace().contains("ProtocolError"), "a packet was not understood");
        s.same_data();
        for write in writes {
            s.both_hold(write);
        }
    });
}

/// A barrier is acknowledged: every write of its epoch is on the disk, in its order, also if the power fails at once.
#[test]
fn s13_an_acknowledged_epoch_is_on_disk_in_order() {
    let bugs = [Fault::BarrierAckBeforeFlush];
    regression(40, &bugs, |k, scenario| {
        let mut s = primary(scenario.nodes(|n| n.net.max_epoch_size = 4).node(B, |n| n.disk_ns = 5_000_000));
        for n in 0..6 {
            s.a().start_write(n / 2 * 64, 8);
            s.a().start_write(n / 2 * 64 + 4, 8);
        }
        if k % 2 == 0 {
            s.calm();
            s.a().flush();
        } else {
            s.until_got(A, "P_BARRIER_ACK");
            s.events(k);
        }
        s.b().power_cut();
        s.b().restart();
        s.settle();
        s.same_data();
    });
}

/// A paused resync, and an outdated target: what is not mirrored is announced, whatever the peer's disk is.
#[test]
fn s14_a_paused_resync_skips_nothing() {
    regression(32, &[Fault::OutOfSyncNotSent], |k, scenario| {
        let mut s = parted(scenario, 20);
        match k % 4 {
            0 => s.a().orders(Order::PauseSync),
            1 => s.b().orders(Order::PauseSync),
            2 => s.b().orders(Order::Outdate),
            _ => {}
        }
        s.heal();
        s.a().meets();
        s.events(k * 2);
        let inside = s.a().start_write(64, 8);
        let outside = s.a().start_write(2048, 8);
        s.wait(50);
        if k % 4 == 3 {
            s.a().start_order(Order::PauseSync);
        }
        let later = s.a().start_write(4096, 8);
        s.wait(1000);
        s.a().start_order(Order::ResumeSync);
        s.b().start_order(Order::ResumeSync);
        s.settle();
        s.same_data();
        for write in [inside, outside, later] {
            s.both_hold(write);
        }
    });
}

/// The link breaks right after a block was announced as out of sync: the own bit was there before.
#[test]
fn s19_the_own_bit_is_set_before_the_peer_is_told() {
    regression(24, &[Fault::OutOfSyncNotSent], |k, scenario| {
        let mut s = parted(scenario, 1);
        s.heal();
        s.b().stall(50);
        s.a().becomes("WFBitMapS");
        let write = s.a().start_write(4096, 8);
        s.until("the write is announced", |s| s.sent(A, "P_OUT_OF_SYNC") > 0);
        assert!(s.bit(A, 0, 4096), "told the peer, not itself");
        s.events(k);
        match k % 3 {
            0 => s.cut(),
            1 => s.b().power_cut(),
            _ => s.b().crash(),
        }
        s.wait(100);
        s.heal();
        s.b().restart();
        s.settle();
        s.same_data();
        s.both_hold(write);
    });
}

/// Application writes to the very blocks that are being synced, on disks that reorder what is in flight.
#[test]
fn s26_one_block_is_never_written_twice_at_a_time() {
    let bugs = [Fault::ResyncReadOvertakes, Fault::WriteIgnoresResync];
    regression(40, &bugs, |k, scenario| {
        let mut s = resyncing(scenario.nodes(|n| n.disk_ns = 1_000_000), 256);
        s.events(k * 3);
        for n in 0..24 {
            s.a().start_write((n * 37 + u64::from(k)) % 240 * 8, 8);
            s.events(2);
        }
        s.settle();
        s.same_data();
    });
}

/// Two clients write the same blocks in every interleaving: both replicas end with the same.
#[test]
fn s34_two_writers_of_one_block_leave_the_same_on_both_nodes() {
    let bugs = [Fault::OverlapsNotSerialised, Fault::PeerOverlapsNotSerialised];
    regression(36, &bugs, |k, scenario| {
        let slow = turn(k / 3, &[100_000, 5_000_000]);
        let scenario = scenario.protocol(turn(k, &PROTOCOLS)).nodes(|n| n.relaxed = k % 4 < 2);
        let mut s = primary(scenario.node(B, |n| n.disk_ns = slow));
        let first = s.a().start_write(0, 16);
        s.events(k / 3);
        let second = s.a().start_write(8, 16);
        s.events(k / 6);
        let third = s.a().start_write(4, 8);
        s.calm();
        s.settle();
        s.same_data();
        s.a().read(0, 24);
        assert!(first < second && second < third);
        assert_eq!(s.bits(A, 0) + s.bits(B, 0), 0);
    });
}

/// Under protocol C a flush speaks for both disks: what was flushed is on the peer's, whose power fails when the flush is answered, also
/// where that one is all that is left.
#[test]
fn s13_a_flush_makes_both_copies_durable() {
    regression(24, &[Fault::FlushIgnoresPeer], |k, scenario| {
        let mut s = primary(scenario.nodes(|n| n.relaxed = k % 2 == 0));
        s.a().write(0, 8);
        s.wait(100);
        let last = s.a().write(8 * u64::from(k), 8);
        s.a().flush();
        s.b().power_cut();
        s.a().power_cut();
        s.b().restart();
        s.b().becomes("WFConnection");
        s.b().force();
        s.b().reads(8 * u64::from(k), 8, last);
    });
}
