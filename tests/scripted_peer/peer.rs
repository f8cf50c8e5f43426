//! The scripted peer: handshake and parameters as a kernel node sends them, then a conversation in which the script decides
//! what is said, and what an honest node would answer is answered by itself (`model`).

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use udrbd::units::{GenId, Sectors, SeqNr, VolumeNr};
use udrbd::wire::auth::{Authentication, CHALLENGE_LEN, HmacAlg, Secret};
use udrbd::wire::{
    AfterSb, Agreed, AlgName, ConnFlags, ConnState, Controller, DdsFlags, DiskState, FeatureFlags, Packet, Phase,
    Protocol, QueueLimits, ReplProtocol, Role, Sizes, Socket, StateWord, SyncParam, UuidFlags, Uuids, codec,
};

use crate::daemon_common::{GENERATION, SOON, Site, data_size};
use crate::model::Model;
use crate::sockets::{Channels, Dial, Event, Pair};

/// Who the peer is.
#[derive(Clone, Debug)]
pub struct Persona {
    pub version: u32,
    pub features: u32,
    pub dial: Dial,
    pub secret: Option<&'static str>,
    pub protocol: ReplProtocol,
    pub after_sb_0p: AfterSb,
    pub integrity: &'static str,
    pub size: Sectors,
    pub uuids: Uuids,
    pub role: Role,
    pub disk: DiskState,
}

impl Persona {
    /// A Secondary of the newest version, in sync with a node that was prepared with `up_to_date`.
    pub fn new() -> Self {
        Self {
            version: 101,
            features: 0xf,
            dial: Dial::Connects,
            secret: None,
            protocol: ReplProtocol::C,
            after_sb_0p: AfterSb::Disconnect,
            integrity: "",
            size: data_size(16),
            uuids: uuids(GENERATION.0, 0),
            role: Role::Secondary,
            disk: DiskState::UpToDate,
        }
    }

    pub fn speaking(version: u32, features: u32) -> Self {
        Self { version, features, ..Self::new() }
    }
}

pub fn uuids(current: u64, bitmap: u64) -> Uuids {
    Uuids {
        current: GenId(current),
        bitmap: GenId(bitmap),
        history: [GenId::UNSET; 2],
        bits_set: 0,
        flags: UuidFlags::NONE,
    }
}

/// What the daemon said of itself before it was connected.
#[derive(Clone, Debug)]
pub struct Greeting {
    pub uuids: Uuids,
}

pub struct Peer {
    pub agreed: Agreed,
    pub persona: Persona,
    pub model: Model,
    channels: Channels,
    /// Packets that nobody asked for yet.
    unread: VecDeque<Packet>,
    /// Sockets that the daemon closed. They are not ordered: what it said on one counts after the end of the other.
    closed: usize,
    seq: u32,
}

impl Peer {
    /// Handshake up to authentication; nothing of the parameters is sent.
    pub fn handshake(site: &Site, persona: Persona) -> Self {
        let mut pair = Pair::open(site, persona.dial);
        let agreed = pair.features(persona.version, persona.features);
        assert_eq!((agreed.version.nr(), agreed.features.0), (persona.version, persona.features));
        if let Some(secret) = persona.secret {
            authenticate(&mut pair, &agreed, secret);
        }
        let model = Model::new(persona.size);
        Self { agreed, model, channels: pair.run(agreed), persona, unread: VecDeque::new(), closed: 0, seq: 0 }
    }

    /// Handshake and parameters, up to what both nodes decide by them: the daemon's state then.
    pub fn connect(site: &Site, persona: Persona) -> (Self, Greeting, StateWord) {
        let mut peer = Self::handshake(site, persona);
        peer.send_parameters();
        let greeting = peer.greeting();
        let state = peer.decided();
        (peer, greeting, state)
    }

    /// The same, where no resync is needed.
    pub fn connect_in_sync(site: &Site, persona: Persona) -> Self {
        let (mut peer, _, state) = Self::connect(site, persona);
        assert_eq!((state.conn(), state.disk()), (Some(ConnState::Connected), Some(DiskState::UpToDate)));
        peer.send_state(ConnState::Connected, DiskState::UpToDate);
        peer
    }

    /// P_PROTOCOL, P_SYNC_PARAM, P_SIZES, P_UUIDS, P_STATE in one go.
    pub fn send_parameters(&mut self) {
        for packet in self.parameters() {
            self.send(packet);
        }
    }

    pub fn parameters(&self) -> Vec<Packet> {
        let persona = &self.persona;
        let name = |text| AlgName::parse(text).expect("a known name");
        let protocol = Protocol {
            protocol: persona.protocol,
            after_sb_0p: persona.after_sb_0p,
            after_sb_1p: AfterSb::Disconnect,
            after_sb_2p: AfterSb::Disconnect,
            conn_flags: ConnFlags::NONE,
            two_primaries: false,
            integrity_alg: name(persona.integrity),
        };
        let sync_param = SyncParam {
            resync_rate_kib: 250,
            verify_alg: Some(AlgName::NONE),
            csums_alg: Some(AlgName::NONE),
            controller: Some(Controller::default()),
        };
        let word = StateWord::of_role(persona.role)
            .or(StateWord::of_conn(ConnState::WfConnection))
            .or(StateWord::of_disk(persona.disk))
            .or(StateWord::of_pdsk(DiskState::DUnknown));
        let mut packets =
            vec![Packet::Protocol(protocol), Packet::SyncParam(sync_param.shaped_for(self.agreed.version))];
        packets.push(Packet::Sizes(self.sizes()));
        if persona.disk != DiskState::Diskless {
            packets.push(Packet::Uuids(persona.uuids));
        }
        packets.push(Packet::State(word));
        packets
    }

    pub fn sizes(&self) -> Sizes {
        let size = self.persona.size;
        let limits = QueueLimits {
            physical_block_size: 512,
            logical_block_size: 512,
            alignment_offset: 0,
            io_min: 512,
            io_opt: 0,
            discard_enabled: true,
            discard_zeroes_data: false,
            write_same_capable: false,
        };
        Sizes {
            d_size: if self.persona.disk == DiskState::Diskless { Sectors(0) } else { size },
            u_size: Sectors(0),
            c_size: size,
            max_bio_size: self.agreed.version.request_bytes_max(),
            queue_order_type: 0,
            dds_flags: DdsFlags::NONE,
            limits: self.agreed.features.has(FeatureFlags::WSAME).then_some(limits),
        }
    }

    /// What the daemon says of itself first.
    pub fn greeting(&mut self) -> Greeting {
        let protocol = self.expect("P_PROTOCOL", |p| if let Packet::Protocol(p) = p { Some(p.clone()) } else { None });
        assert_eq!((protocol.protocol, protocol.integrity_alg.as_str()), {
            (self.persona.protocol, if self.persona.version < 87 { "" } else { self.persona.integrity })
        });
        self.expect("P_SYNC_PARAM", |p| if let Packet::SyncParam(_) = p { Some(()) } else { None });
        let sizes = self.expect("P_SIZES", |p| if let Packet::Sizes(p) = p { Some(*p) } else { None });
        assert_eq!(sizes.d_size, self.persona.size);
        assert!(sizes.max_bio_size <= self.agreed.version.request_bytes_max(), "{sizes:?}");
        let uuids = self.expect("P_UUIDS", |p| if let Packet::Uuids(p) = p { Some(*p) } else { None });
        let state = self.expect("P_STATE", |p| if let Packet::State(p) = p { Some(*p) } else { None });
        assert_eq!(state.conn(), Some(ConnState::WfConnection), "the state before the decision");
        Greeting { uuids }
    }

    /// The state that the daemon announces when it has decided.
    pub fn decided(&mut self) -> StateWord {
        self.expect("P_STATE with the decision", |p| match p {
            Packet::State(word) if word.conn().is_some_and(|c| c >= ConnState::Connected) => Some(*word),
            _ => None,
        })
    }

    /// Announces a state of this side, with the disks as they are known.
    pub fn send_state(&mut self, conn: ConnState, own: DiskState) {
        self.send_state_as(self.persona.role, conn, own);
    }

    pub fn send_state_as(&mut self, role: Role, conn: ConnState, own: DiskState) {
        let word = StateWord::of_role(role)
            .or(StateWord::of_peer(Role::Secondary))
            .or(StateWord::of_conn(conn))
            .or(StateWord::of_disk(own))
            .or(StateWord::of_pdsk(DiskState::UpToDate));
        self.send(Packet::State(word));
    }

    /// The next number of the sequence that both sockets share.
    pub fn next_seq(&mut self) -> SeqNr {
        self.seq += 1;
        SeqNr(self.seq)
    }

    pub fn send(&mut self, packet: Packet) {
        self.send_for(VolumeNr(0), packet);
    }

    pub fn send_for(&mut self, volume: VolumeNr, mut packet: Packet) {
        codec::seal(&mut packet, &self.agreed);
        let mut bytes = BytesMut::new();
        codec::encode(volume, &packet, &self.agreed, &mut bytes).expect("a legal packet");
        let socket = if packet.kind().row().sockets.contains(Socket::Data) { Socket::Data } else { Socket::Meta };
        if socket == Socket::Data {
            self.agreed.note_sent(&packet);
        }
        self.send_bytes(socket, &bytes);
    }

    pub fn send_bytes(&self, socket: Socket, bytes: &[u8]) {
        self.channels.send(socket, bytes);
    }

    /// Ends the data socket's stream towards the daemon.
    pub fn hang_up(&self) {
        let _ = self.channels.data.shutdown(std::net::Shutdown::Write);
    }

    /// Reads one packet and answers it as an honest node does. `None`: the daemon closed the connection.
    pub fn step(&mut self, deadline: Instant) -> Option<Packet> {
        loop {
            if self.closed == 2 {
                return None;
            }
            match self.channels.next(deadline) {
                None => panic!("the daemon is silent; unread: {:#?}", self.unread),
                Some(Event::Closed) => self.closed += 1,
                Some(Event::Packet(packet)) => {
                    let mut model = std::mem::take(&mut self.model);
                    model.answer(self, &packet);
                    self.model = model;
                    return Some(packet);
                }
            }
        }
    }

    /// Waits for a packet that `pick` wants; others are kept for later calls, in order.
    pub fn expect<T>(&mut self, what: &str, pick: impl Fn(&Packet) -> Option<T>) -> T {
        if let Some((index, found)) = self.unread.iter().enumerate().find_map(|(i, p)| pick(p).map(|found| (i, found)))
        {
            self.unread.remove(index);
            return found;
        }
        let deadline = Instant::now() + SOON;
        loop {
            match self.step(deadline) {
                None => panic!("the daemon closed the connection instead of {what}; unread: {:#?}", self.unread),
                Some(packet) => match pick(&packet) {
                    Some(found) => return found,
                    None => self.unread.push_back(packet),
                },
            }
        }
    }

    /// Waits for exactly this packet.
    pub fn expect_packet(&mut self, packet: &Packet) {
        self.expect(&format!("{packet:?}"), |p| (p == packet).then_some(()));
    }

    /// Answers what comes until `done`.
    pub fn serve_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !done(self) {
            let packet = self.step(deadline);
            assert!(packet.is_some(), "the daemon closed the connection instead of {what}");
            self.unread.extend(packet);
        }
    }

    /// Waits until the daemon closes the connection.
    pub fn expect_close(&mut self) {
        let deadline = Instant::now() + SOON;
        while self.step(deadline).is_some() {}
    }

    /// A ping that was answered: everything that the daemon said before has arrived.
    pub fn ping(&mut self) {
        self.send(Packet::Ping);
        self.expect("P_PING_ACK", |p| (*p == Packet::PingAck).then_some(()));
    }

    /// Whether such a packet came and was not asked for.
    pub fn has_unread(&self, test: impl Fn(&Packet) -> bool) -> bool {
        self.unread.iter().any(test)
    }
}

/// Both sides show that they know the secret.
pub fn authenticate(pair: &mut Pair, agreed: &Agreed, secret: &str) {
    let own = [0x5a; CHALLENGE_LEN];
    let secret = Secret::new(secret.as_bytes()).expect("a short secret");
    let auth = Authentication::new(HmacAlg::from_name("sha1").expect("a hash"), secret, own);
    pair.say(&Packet::AuthChallenge(Bytes::copy_from_slice(&own)), agreed);
    let Packet::AuthChallenge(theirs) = pair.hear(Phase::AuthChallenge, *agreed) else { panic!("no challenge") };
    pair.say(&Packet::AuthResponse(auth.respond(&theirs).expect("not ours")), agreed);
    let Packet::AuthResponse(response) = pair.hear(Phase::AuthResponse, *agreed) else { panic!("no response") };
    auth.verify(&response).expect("the daemon knows the secret");
}
