//! Nothing waits for ever: after the faults, both nodes are good again; every wait ends when what it waits for is gone.

use super::super::plan::{ClientOp, DiskFault, Order};
use super::super::scenario::regression;
use super::super::world::{A, B};
use super::{PROTOCOLS, parted, primary, resyncing, turn};
use crate::engine::fault::Fault;
use crate::engine::options::OnIoError;

/// A resync under load is disturbed in every way that leaves somebody uninformed: both nodes end Connected and UpToDate by
/// themselves.
#[test]
fn s30_everything_ends_connected_and_good() {
    let bugs = [Fault::LostRequestForgotten, Fault::HoldSurvivesLink];
    regression(60, &bugs, |k, scenario| {
        let mut s = resyncing(scenario.protocol(turn(k / 10, &PROTOCOLS)).rate(8), 256);
        s.packets(k / 2);
        for n in 0..12 {
            s.a().start_write(n * 96, 8);
        }
        match k % 10 {
            0 => s.one_way_cut(A),
            1 => s.one_way_cut(B),
            2 => s.silent_cut(),
            3 => s.half_open(A),
            4 => s.half_open(B),
            5 => s.a().freeze(4000),
            6 => s.b().freeze(9000),
            7 => s.b().stall(3000),
            8 => s.a().clock(20_000),
            _ => s.b().clock(20_000),
        }
        s.wait(u64::from(k) * 100);
        s.heal();
        s.settle();
        s.same_data();
    });
}

/// The nodes reconnect again and again, faster than a handshake takes.
#[test]
fn s30_reconnects_during_handshakes_lead_somewhere() {
    regression(40, &[Fault::HoldSurvivesLink], |k, scenario| {
        let mut s = parted(scenario, 8);
        for round in 0..4 {
            s.heal();
            s.a().meets();
            s.packets(k / 2 + round % 2);
            if k % 2 == 0 {
                s.a().start_write(4096 + u64::from(round) * 64, 8);
            }
            s.reset();
            s.a().becomes("WF");
            s.wait(20);
        }
        s.settle();
        s.same_data();
    });
}

/// An idle peer under relaxed epochs flushes by itself.
#[test]
fn s30_the_last_epoch_is_finished_when_all_is_idle() {
    regression(4, &[Fault::EpochTimerForgotten], |k, scenario| {
        let mut s = primary(scenario.nodes(|n| (n.relaxed, n.net.max_epoch_size) = (true, 2)));
        for n in 0..u64::from(k) + 3 {
            s.a().start_write(n * 16, 8);
        }
        s.settle();
        let barriers = s.sent(A, "P_BARRIER");
        assert_eq!(s.sent(B, "P_BARRIER_ACK"), barriers);
        assert!(barriers > 0);
        s.a().demote();
    });
}

/// The only disk fails a read, or a write, and no peer is there: an error, and life goes on.
#[test]
fn s35_a_disk_error_without_a_peer_is_an_error() {
    regression(8, &[Fault::LocalErrorIsSuccess], |k, scenario| {
        let policy = turn(k, &[OnIoError::Detach, OnIoError::PassOn]);
        let mut s = parted(scenario.on_io_error(policy), 4);
        if k / 2 % 2 == 1 {
            s.a().disconnect();
        }
        let answer = if k / 4 == 0 {
            s.a().fail(DiskFault::Read, 1);
            s.a().try_read(0, 8)
        } else {
            s.a().fail(DiskFault::Write, 1);
            s.a().try_write(0, 8).1
        };
        assert_ne!(answer, "ok");
        assert!(s.a().is_up());
        s.calm();
        s.recover();
        s.same_data();
    });
}

/// A read that the peer should serve, and the peer goes: it is answered, by the next link or with an error.
#[test]
fn s38_a_read_does_not_wait_for_a_peer_that_left() {
    regression(12, &[Fault::LostReadForgotten], |k, scenario| {
        let mut s = primary(scenario);
        s.a().write(0, 64);
        s.a().detach();
        s.a().becomes("Connected Primary/Secondary Diskless/UpToDate");
        s.calm();
        s.b().stall(500);
        for n in 0..4 {
            s.a().start(ClientOp::Read, n * 16, 8);
        }
        s.events(k * 2);
        if k % 2 == 0 {
            s.reset();
        } else {
            s.b().crash();
            s.wait(500);
            s.b().restart();
        }
        s.until("every read is answered", |s| s.world.pending.is_empty());
        s.recover();
    });
}

/// A command that needs the peer's word, and the peer goes without one.
#[test]
fn s38_a_command_does_not_wait_for_a_peer_that_left() {
    regression(16, &[Fault::QuestionForgotten], |k, scenario| {
        let mut s = primary(scenario);
        if k % 2 == 0 {
            s.a().demote();
        }
        let order = match k % 4 {
            0 => Order::Primary { force: false },
            1 => Order::InvalidateRemote,
            2 => Order::Disconnect { force: false },
            _ => Order::Detach { force: false },
        };
        s.b().freeze(20_000);
        s.a().start_order(order);
        s.packets(k / 4);
        s.until("the command is answered", |s| s.world.nodes[A].commands.is_empty());
        s.wait(20_000);
        s.recover();
        s.same_data();
    });
}
