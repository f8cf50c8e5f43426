//! The daemon is Primary: what NBD clients write goes to the scripted peer in the packets of its version and features.

use udrbd::wire::{DpFlags, FeatureFlags, Packet, ReplProtocol, Role};

use crate::as_primary::assert_same_as_daemon;
use crate::daemon_common::nbd::{Command, FUA, NO_HOLE, NbdClient};
use crate::daemon_common::{Node, RES, Setup, Site, pattern, up_to_date};
use crate::peer::{Peer, Persona};
use crate::{combinations, for_each};

/// Promotes the daemon, which asks the peer.
pub fn promote(node: &Node, peer: &mut Peer) {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| node.primary());
        peer.expect("P_STATE Primary", |p| match p {
            Packet::State(word) if word.role() == Some(Role::Primary) => Some(()),
            _ => None,
        });
        done.join().expect("the promotion");
    });
}

pub fn open(node: &Node) -> NbdClient {
    NbdClient::open(&node.nbd_socket(), RES).expect("a Primary is served")
}

fn received(peer: &Peer) -> u64 {
    peer.model.writes.iter().map(|(range, _)| range.bytes()).sum()
}

/// One client request that the peer has to see completely.
fn through(peer: &mut Peer, nbd: &mut NbdClient, bytes: u64, send: impl FnOnce(&mut NbdClient) -> u64) {
    let before = received(peer);
    let cookie = send(nbd);
    peer.serve_until("a write", |peer| received(peer) >= before + bytes);
    assert_eq!(received(peer), before + bytes);
    nbd.finish(cookie);
}

/// A flush that waits for the barrier, where the protocol has it so.
fn flush(peer: &mut Peer, nbd: &mut NbdClient, protocol: ReplProtocol) {
    let cookie = nbd.send(Command::Flush, 0, 0, 0, &[]);
    if protocol == ReplProtocol::C {
        peer.serve_until("the barriers", |peer| peer.model.open_epoch() == 0);
    }
    nbd.finish(cookie);
}

fn writes(persona: Persona) {
    let protocol = persona.protocol;
    let site = Site::new(Setup { net: format!("protocol {protocol:?};"), ..Setup::default() });
    let mut node = site.node(0, up_to_date);
    node.start_up();
    let mut peer = Peer::connect_in_sync(&site, persona);
    promote(&node, &mut peer);
    let mut nbd = open(&node);
    assert_eq!(nbd.size_bytes, peer.persona.size.bytes());
    let max = u64::from(peer.agreed.version.request_bytes_max());
    let mut at = 512;
    for (nr, bytes) in [512, 4096, 65536, 1 << 20, 3 << 20].into_iter().enumerate() {
        let data = pattern(nr as u64 + 50, bytes);
        through(&mut peer, &mut nbd, bytes as u64, |nbd| nbd.send_write(at, &data));
        assert_eq!(nbd.read(at, u32::try_from(bytes).expect("small")), data);
        at += bytes as u64 + 512;
    }
    for (range, flags) in &peer.model.writes {
        assert!(range.bytes() <= max, "{range:?} in one packet");
        let due = flags.and(DpFlags::SEND_RECEIVE_ACK.with(DpFlags::SEND_WRITE_ACK));
        let want = match protocol {
            _ if peer.persona.version < 100 => DpFlags::NONE,
            ReplProtocol::A => DpFlags::NONE,
            ReplProtocol::B => DpFlags::SEND_RECEIVE_ACK,
            ReplProtocol::C => DpFlags::SEND_WRITE_ACK,
        };
        assert_eq!(due, want);
    }
    flush(&mut peer, &mut nbd, protocol);
    // Forced unit access goes along, where the version can say it.
    through(&mut peer, &mut nbd, 4096, |nbd| nbd.send(Command::Write, FUA, 0, 4096, &pattern(3, 4096)));
    let (_, flags) = peer.model.writes.last().expect("a write");
    assert_eq!(flags.has(DpFlags::FUA), peer.persona.version >= 95, "{flags:?}");

    without_data(&mut peer, &mut nbd);
    flush(&mut peer, &mut nbd, protocol);
    if protocol == ReplProtocol::C {
        assert_same_as_daemon(&peer, &node);
    }
    node.assert_sound();
}

/// Zeroes always reach the peer, in whatever form; discards in the form that was agreed, if at all.
fn without_data(peer: &mut Peer, nbd: &mut NbdClient) {
    let features = peer.agreed.features;
    through(peer, nbd, 128 << 10, |nbd| nbd.send(Command::WriteZeroes, NO_HOLE, 1 << 20, 128 << 10, &[]));
    through(peer, nbd, 5120, |nbd| nbd.send(Command::WriteZeroes, 0, (2 << 20) + 512, 5120, &[]));
    let zeroes: Vec<bool> = peer.model.writes.iter().map(|(_, flags)| flags.has(DpFlags::ZEROES)).collect();
    assert_eq!(zeroes.contains(&true), features.has(FeatureFlags::WZEROES), "{:?}", peer.model.writes);
    if features.has(FeatureFlags::TRIM) {
        through(peer, nbd, 256 << 10, |nbd| nbd.send(Command::Trim, 0, 3 << 20, 256 << 10, &[]));
        assert!(peer.model.writes.last().is_some_and(|(_, flags)| flags.has(DpFlags::DISCARD)));
    }
    for (at, bytes) in [(1 << 20, 128 << 10), ((2 << 20) + 512, 5120)] {
        assert_eq!(nbd.read(at, bytes), vec![0; bytes as usize]);
    }
}

#[test]
fn writes_of_the_daemon_in_every_version() {
    for_each(&combinations(), |(version, features)| writes(Persona::speaking(version, features)));
}

#[test]
fn writes_under_every_protocol() {
    let cases: Vec<_> = [ReplProtocol::A, ReplProtocol::B].iter().flat_map(|p| [86, 101].map(|v| (*p, v))).collect();
    for_each(&cases, |(protocol, version)| writes(Persona { protocol, ..Persona::speaking(version, 0xf) }));
}

#[test]
fn what_a_peer_did_not_confirm_is_out_of_sync_when_it_goes() {
    for_each(&[86, 101], |version| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0));
        promote(&node, &mut peer);
        let mut nbd = open(&node);
        peer.model.silent = true;
        let first = nbd.send_write(0, &pattern(1, 4096));
        let second = nbd.send_write(1 << 20, &pattern(2, 8192));
        peer.serve_until("both writes", |peer| received(peer) == 3 * 4096);
        assert!(!nbd.has_answer(), "an unconfirmed write of protocol C is not complete");
        drop(peer);
        let mut answers = [nbd.answer(), nbd.answer()];
        answers.sort_unstable();
        assert_eq!(answers, [(first, 0), (second, 0)]);
        node.wait_volume("disconnected", |v| v.state < udrbd::wire::ConnState::WfReportParams);
        assert_eq!(node.volume().out_of_sync_kib, 12);
        node.assert_sound();
    });
}

#[test]
fn a_diskless_daemon_reads_and_writes_through_its_peer() {
    use udrbd::control::Request;
    use udrbd::units::{GenId, VolumeNr};
    use udrbd::wire::{ConnState, DiskState};
    for_each(&[86, 96, 101], |version| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0xf));
        promote(&node, &mut peer);
        let mut nbd = open(&node);
        through(&mut peer, &mut nbd, 65536, |nbd| nbd.send_write(0, &pattern(1, 65536)));
        // The peer agrees, and from then on has the only data.
        std::thread::scope(|scope| {
            let done = scope.spawn(|| {
                node.done(Request::Detach { resource: RES.to_owned(), volume: VolumeNr(0), force: false });
            });
            peer.expect("P_STATE Diskless", |p| match p {
                Packet::State(word) if word.disk() == Some(DiskState::Diskless) => Some(()),
                _ => None,
            });
            done.join().expect("the detach");
        });
        peer.persona.uuids.current = GenId(0x5555_6666_7777_8888);
        let uuids = peer.persona.uuids;
        peer.send(Packet::Uuids(uuids));
        peer.send_state(ConnState::Connected, DiskState::UpToDate);
        node.wait_volume("Diskless", |v| v.disk == DiskState::Diskless);
        let cookie = nbd.send(Command::Read, 0, 4096, 40960, &[]);
        peer.expect("P_DATA_REQUEST", |p| matches!(p, Packet::DataRequest(_)).then_some(()));
        // The rest of the pieces, if the version cuts it.
        let max = peer.agreed.version.request_bytes_max();
        for _ in 1..40960_u32.div_ceil(max) {
            peer.expect("P_DATA_REQUEST", |p| matches!(p, Packet::DataRequest(_)).then_some(()));
        }
        assert_eq!(nbd.finish_read(cookie, 40960), pattern(1, 65536)[4096..4096 + 40960]);
        through(&mut peer, &mut nbd, 4096, |nbd| nbd.send_write(8192, &pattern(6, 4096)));
        assert_eq!(peer.model.disk[8192..8192 + 4096], pattern(6, 4096));
        node.assert_sound();
    });
}
