//! Nothing comes between the packets of a bitmap.

use super::pair::{A, B, MIB, Pair, V};
use super::{PROTOCOLS, net};
use crate::engine::event::{Command, Event, Socket};
use crate::engine::options::NetOptions;
use crate::meta::MetaIo;
use crate::units::{GenId, VolumeNr};
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState};

#[test]
fn nothing_comes_between_the_packets_of_a_bitmap() {
    // The bitmap of the second volume takes so many slices that the first volume's resync starts meanwhile.
    let volumes = [VolumeNr(0), VolumeNr(1)];
    for seed in 0..12 {
        let mut p = Pair::new(9000 + seed);
        let n = NetOptions { use_rle: false, ..net(PROTOCOLS[usize::try_from(seed % 3).unwrap()]) };
        p.up(&[16 * MIB, 8192 * MIB], &n);
        for v in volumes {
            p.command(A, v, Command::NewCurrentUuid { clear_bitmap: true });
            p.settle();
            p.command(A, v, Command::Primary { force: false });
            p.settle();
        }
        p.cut();
        for v in volumes {
            p.write_to(A, v, 800, 8, 99);
        }
        p.settle();
        p.join();
        for i in 0u8..20 {
            p.write_to(A, volumes[usize::from(i % 2)], u64::from(i) * 8, 8, i);
            p.step();
        }
        p.settle();
        for n in [A, B] {
            assert!(!p.nodes[n].log.iter().any(|l| l.contains("in the middle")), "seed {seed}: {:#?}", p.nodes[n].log);
            for v in volumes {
                let state = p.nodes[n].state(v);
                assert_eq!(state.conn, ConnState::Connected, "{:#?}", p.nodes[n].log);
                assert_eq!(state.disk, DiskState::UpToDate);
            }
        }
        for v in volumes {
            // The rest of the large volume was never written.
            let heads = [A, B].map(|n| {
                let mut head = vec![0; 1 << 20];
                p.nodes[n].disks.get_mut(&v).unwrap().read_at(0, &mut head).unwrap();
                head
            });
            assert!(heads[0] == heads[1], "seed {seed}");
        }
    }
}

#[test]
fn a_packet_between_those_of_a_bitmap_ends_the_connection() {
    let mut p = Pair::ready(4, &NetOptions { use_rle: false, ..net(ReplProtocol::C) });
    p.cut();
    p.write(A, 0, 8, 1);
    p.settle();
    p.join();
    while !p.nodes[B].log.iter().any(|l| l.contains("WFBitMapT")) || p.nodes[B].state(V).conn != ConnState::WfBitMapT {
        assert!(p.step());
    }
    // The first chunk without the end, then something else.
    let link = p.nodes[B].link.unwrap();
    let bitmap = Packet::Bitmap(vec![0; 512].into());
    for packet in [bitmap, Packet::SyncUuid(GenId(77))] {
        p.event(B, Event::Packet { link, socket: Socket::Data, volume: V, packet });
    }
    assert!(p.nodes[B].log.iter().any(|l| l.contains("in the middle of a bitmap")), "{:#?}", p.nodes[B].log);
    p.settle();
    assert_eq!(p.nodes[A].text(), "Connected Primary/Secondary UpToDate/UpToDate");
    p.same_data();
}
