//! Graceful disconnects in both directions: the request by version, its answer, and what each side is afterwards.

use udrbd::wire::state::mask;
use udrbd::wire::{ConnState, DiskState, Packet, Role, StateResult, StateWord};

use crate::daemon_common::{Setup, Site, up_to_date};
use crate::peer::{Peer, Persona};
use crate::{VERSIONS, for_each};

#[test]
fn the_daemon_takes_its_leave() {
    for_each(&VERSIONS, |version| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0xf));
        std::thread::scope(|scope| {
            let done = scope.spawn(|| node.disconnect());
            // The model agrees, in the way of the version.
            let word = peer.expect("a request to disconnect", |p| match p {
                Packet::StateChgReq { mask: m, val } if m.0 == mask::CONN && version < 100 => Some(*val),
                Packet::ConnStChgReq { mask: m, val } if m.0 == mask::CONN && version >= 100 => Some(*val),
                _ => None,
            });
            assert_eq!(word, StateWord::of_conn(ConnState::Disconnecting));
            drop(peer);
            done.join().expect("the disconnect");
        });
        node.wait_standalone();
        assert_eq!(node.volume().disk, DiskState::UpToDate);
        // And comes back when told to.
        node.connect();
        Peer::connect_in_sync(&site, Persona::speaking(version, 0xf)).ping();
        node.assert_sound();
    });
}

#[test]
fn the_peer_takes_its_leave() {
    for_each(&VERSIONS, |version| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0xf));
        let (mask, val) = (StateWord(mask::CONN), StateWord::of_conn(ConnState::Disconnecting));
        if version < 100 {
            peer.send(Packet::StateChgReq { mask, val });
            peer.expect_packet(&Packet::StateChgReply(StateResult::Success.code()));
        } else {
            peer.send(Packet::ConnStChgReq { mask, val });
            peer.expect_packet(&Packet::ConnStChgReply(StateResult::Success.code()));
        }
        peer.expect_close();
        // A Secondary without its peer goes on waiting for it.
        node.wait_conn(ConnState::WfConnection);
        drop(peer);
        Peer::connect_in_sync(&site, Persona::speaking(version, 0xf)).ping();
        node.assert_sound();
    });
}

#[test]
fn a_primary_is_outdated_by_a_leaving_peer_only_in_words() {
    // A Secondary that leaves with "my disk is Outdated" lets a Primary know that it may go on.
    for_each(&[86, 101], |version| {
        let site = Site::new(Setup::default());
        let mut node = site.node(0, up_to_date);
        node.start_up();
        let mut peer = Peer::connect_in_sync(&site, Persona::speaking(version, 0));
        crate::as_secondary::promote(&node, &mut peer);
        let mask = StateWord(mask::CONN | mask::DISK);
        let val = StateWord::of_conn(ConnState::Disconnecting).or(StateWord::of_disk(DiskState::Outdated));
        if version < 100 {
            peer.send(Packet::StateChgReq { mask, val });
            peer.expect_packet(&Packet::StateChgReply(StateResult::Success.code()));
        } else {
            peer.send(Packet::ConnStChgReq { mask, val });
            peer.expect_packet(&Packet::ConnStChgReply(StateResult::Success.code()));
        }
        peer.expect_close();
        node.wait_volume("alone with an outdated peer", |v| {
            v.state <= ConnState::WfConnection && v.peer_disk == DiskState::Outdated
        });
        let volume = node.volume();
        assert_eq!((volume.role, volume.disk), (Role::Primary, DiskState::UpToDate));
        node.assert_sound();
    });
}
