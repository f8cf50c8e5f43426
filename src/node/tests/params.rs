//! What is drawn for a round, what it means for a node, and what rounds are counted by.

use std::time::Duration;

use super::machine::Setup;
use super::proxy::Addresses;
use crate::disk::RingChoice;
use crate::disk::fault::{Counts as DiskCounts, Faults, Mistake};
use crate::engine::options::{DiskOptions, NetOptions};
use crate::engine::rng::Rng;
use crate::link::LinkConfig;
use crate::wire::digest::AlgName;
use crate::wire::params::ReplProtocol;

/// What is drawn for a round.
#[derive(Clone, Debug)]
pub struct Params {
    pub protocol: ReplProtocol,
    /// Crashes are power cuts, too.
    pub power: bool,
    pub relaxed_epochs: bool,
    pub version_max: u32,
    pub integrity: bool,
    pub rings: [RingChoice; 2],
    pub external: [bool; 2],
    pub send_buffer: u32,
    pub receive_buffer: Option<u32>,
    pub faults: Faults,
    pub max_buffers: u32,
    pub clients: usize,
    pub depth: usize,
    pub mistake: Option<Mistake>,
}

impl Params {
    pub fn draw(rng: &mut Rng) -> Self {
        let mut one_of = |n: u64| rng.next_u64() % n;
        let protocol = [ReplProtocol::C, ReplProtocol::C, ReplProtocol::A, ReplProtocol::B];
        let ring = [RingChoice::Auto, RingChoice::Auto, RingChoice::Portable];
        let hold_max = [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(80)];
        let pick = |n: u64| usize::try_from(n).expect("small");
        Self {
            protocol: protocol[pick(one_of(4))],
            power: one_of(2) == 0,
            relaxed_epochs: one_of(3) > 0,
            version_max: [101, 101, 100, 97][pick(one_of(4))],
            integrity: one_of(4) == 0,
            rings: [ring[pick(one_of(3))], ring[pick(one_of(3))]],
            external: [one_of(3) == 0, one_of(3) == 0],
            send_buffer: [0, 0, 128 << 10][pick(one_of(3))],
            receive_buffer: [None, None, Some(64 << 10)][pick(one_of(3))],
            faults: Faults { hold_one_in: 2 + one_of(8), hold_max: hold_max[pick(one_of(3))], fail_one_in: 0 },
            max_buffers: [2048, 2048, 32][pick(one_of(3))],
            clients: 1 + pick(one_of(3)),
            depth: 1 + pick(one_of(24)),
            mistake: None,
        }
    }
}

/// What a round, or many, did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub rounds: u64,
    pub answered: u64,
    pub failed: u64,
    pub unanswered: u64,
    pub released: u64,
    pub crashes: u64,
    pub power_cuts: u64,
    pub failovers: u64,
    pub split_brains: u64,
    pub cuts: u64,
    pub connections: u64,
    pub resyncs: u64,
    pub detaches: u64,
    pub disks: DiskCounts,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.answered += other.answered;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.released += other.released;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.failovers += other.failovers;
        self.split_brains += other.split_brains;
        self.cuts += other.cuts;
        self.connections += other.connections;
        self.resyncs += other.resyncs;
        self.detaches += other.detaches;
        self.disks += other.disks;
    }
}

/// How node `n` is set up.
pub fn setup(params: &Params, n: usize, addresses: Addresses) -> Setup {
    let mut link = LinkConfig::new(addresses.nodes[n], addresses.peers[n]);
    link.connect_int = Duration::from_millis(300);
    link.ping_timeout = Duration::from_millis(500);
    link.socket_check_timeout = Duration::from_millis(20);
    link.timeout = Duration::from_secs(1);
    link.sndbuf_bytes = params.send_buffer;
    link.announce.protocol_max = params.version_max;
    link.relaxed_epochs = params.relaxed_epochs;
    let digest = if params.integrity { AlgName::parse("crc32c") } else { None };
    let net = NetOptions {
        protocol: params.protocol,
        timeout: link.timeout,
        ko_count: 2,
        ping_int: Duration::from_secs(1),
        ping_timeout: link.ping_timeout,
        max_buffers: params.max_buffers,
        integrity_alg: digest.unwrap_or(AlgName::NONE),
        ..NetOptions::default()
    };
    let disk = DiskOptions { al_extents: 7, ..DiskOptions::default() };
    let mistake = params.mistake;
    Setup { ring: params.rings[n], external: params.external[n], disk, net, link, mistake }
}
