//! The connection to the peer: its settings and phases, sending, liveness, and what its end does.
//!
//! Owns the link's counters, pings and timeouts, and the hold-back queue of the data socket (nothing may come between
//! the packets of a bitmap, and nothing may overtake an identifier that is still being written to disk).
//! Takes in link events; gives out packets and link orders. Source: behaviour.md 3.1, 6.6, 10.6; wire.md 1.7, 1.8, 4.1.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::Engine;
use crate::engine::action::{Action, Fact, Level, LinkAction};
use crate::engine::event::{LinkEvent, LinkNr, Socket, Timer};
use crate::engine::fault::Fault;
use crate::engine::options::NetOptions;
use crate::engine::refused::Refused;
use crate::engine::state::{StateChange, VolumeState};
use crate::limits::SECTOR_SIZE;
use crate::units::{SeqNr, Timestamp, VolumeNr};
use crate::wire::data::DpFlags;
use crate::wire::kind::Kind;
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::state::ConnState;

/// How a link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// Connect again.
    Restart,
    /// Go StandAlone.
    Stop,
}

/// What waits until the peer has answered a ping, that is: has seen everything sent on the meta socket before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPing {
    /// The target's resync is over.
    TargetFinish(VolumeNr),
    /// Nothing of an earlier resync is on its way any more: the source starts.
    SourceStart(VolumeNr),
    /// No refusal of an earlier resync's questions is on its way any more: the target asks.
    TargetAsk(VolumeNr),
    /// The source's resync is over.
    SourceFinish(VolumeNr),
    /// The verify is over.
    VerifyFinish(VolumeNr),
}

/// A state change that the peer was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerQuestion {
    /// Which command asked.
    pub command: crate::engine::event::CommandId,
    pub volume: VolumeNr,
    /// Of the whole connection (`P_CONN_ST_CHG_REQ`).
    pub connection: bool,
    /// The connection state that this node is to take.
    pub conn: Option<ConnState>,
}

/// A packet that waits for the data socket.
#[derive(Debug)]
pub(crate) struct Held {
    volume: VolumeNr,
    /// None keeps the place of one that waits for the metadata.
    packet: Option<Packet>,
    /// The write that completes when the TCP stack has taken the packet.
    awaited: Option<u64>,
}

/// The connection of a resource.
#[derive(Debug)]
pub(crate) struct Connection {
    pub state: ConnState,
    pub opts: Option<NetOptions>,
    pub link: Option<LinkNr>,
    pub version: u32,
    pub features: u32,
    pub resolve_conflicts: bool,
    pub relaxed_epochs: bool,
    /// The peer's `P_PROTOCOL` was accepted.
    pub peer_protocol: bool,
    pub peer_dry_run: bool,
    pub state_sent: bool,
    pub disconnect_expected: bool,
    /// How often volumes got connected.
    pub connects: u64,
    pub end: Option<LinkEnd>,
    /// A link is wanted and not ordered yet.
    pub start_due: bool,
    pub question: Option<PeerQuestion>,
    /// Packets queued on the data socket of this link, and how many of them the TCP stack took.
    pub data_queued: u64,
    pub data_sent: u64,
    pub(crate) sent_progress: Timestamp,
    pub(crate) awaiting_sent: VecDeque<(u64, u64)>,
    pub(crate) hold: u32,
    pub(crate) held: VecDeque<Held>,
    /// Packets that go before all held ones, as soon as the bitmap that is being sent is complete.
    pub(crate) urgent: VecDeque<(VolumeNr, Packet)>,
    pub(crate) pings_sent: u64,
    pub(crate) pings_answered: u64,
    pub(crate) ping_at: Option<Timestamp>,
    pub(crate) meta_received: Timestamp,
    pub(crate) data_received: Timestamp,
    pub(crate) ping_waiters: VecDeque<(u64, AfterPing)>,
    pub(crate) since: Timestamp,
    pub(crate) request_timer: bool,
    pub(crate) barrier_timer: bool,
    /// Packets of the data socket that wait for acknowledgements on the meta socket, and how long they may.
    pub(crate) stalled: VecDeque<(VolumeNr, Packet)>,
    pub(crate) stalled_until: Timestamp,
    /// Why there is no connection, if the last attempt said so.
    pub(crate) refused: Option<Refused>,
}

impl Connection {
    pub(crate) const fn new() -> Self {
        Self {
            state: ConnState::StandAlone,
            opts: None,
            link: None,
            version: crate::limits::PROTOCOL_VERSION_MAX,
            features: 0,
            resolve_conflicts: false,
            relaxed_epochs: false,
            peer_protocol: false,
            peer_dry_run: false,
            state_sent: false,
            disconnect_expected: false,
            connects: 0,
            end: None,
            start_due: false,
            question: None,
            data_queued: 0,
            data_sent: 0,
            sent_progress: Timestamp(0),
            awaiting_sent: VecDeque::new(),
            hold: 0,
            held: VecDeque::new(),
            urgent: VecDeque::new(),
            pings_sent: 0,
            pings_answered: 0,
            ping_at: None,
            meta_received: Timestamp(0),
            data_received: Timestamp(0),
            ping_waiters: VecDeque::new(),
            since: Timestamp(0),
            request_timer: false,
            barrier_timer: false,
            stalled: VecDeque::new(),
            stalled_until: Timestamp(0),
            refused: None,
        }
    }

    /// The replication protocol in effect.
    pub(crate) fn protocol(&self) -> ReplProtocol {
        self.opts.as_ref().map_or(ReplProtocol::C, |o| o.protocol)
    }

    /// The write that was queued last completes when the TCP stack has taken it.
    pub(crate) fn await_sent(&mut self, key: u64) {
        match self.held.back_mut() {
            Some(held) => held.awaited = Some(key),
            None => self.awaiting_sent.push_back((self.data_queued, key)),
        }
    }

    /// The next write whose packet the TCP stack has taken.
    pub(crate) fn next_sent(&mut self) -> Option<u64> {
        if self.awaiting_sent.front().is_some_and(|(packet, _)| *packet <= self.data_sent) {
            self.awaiting_sent.pop_front().map(|(_, key)| key)
        } else {
            None
        }
    }
}

impl Engine {
    /// Queues a packet on the data socket; dropped when there is no link.
    pub(crate) fn send_data(&mut self, v: VolumeNr, packet: Packet) {
        if self.conn.link.is_none() {
            return;
        }
        if self.conn.hold > 0 {
            self.conn.held.push_back(Held { volume: v, packet: Some(packet), awaited: None });
        } else {
            self.send_data_now(v, packet);
        }
    }

    /// Queues a packet now, whatever is held back.
    pub(crate) fn send_data_now(&mut self, v: VolumeNr, packet: Packet) {
        if self.conn.link.is_none() {
            return;
        }
        if self.conn.data_queued == self.conn.data_sent {
            self.conn.sent_progress = self.now;
        }
        self.conn.data_queued += 1;
        self.out.push(Action::Send { socket: Socket::Data, volume: v, packet });
    }

    /// Queues a packet ahead of what is held back, but never between the packets of a bitmap.
    pub(crate) fn send_data_first(&mut self, v: VolumeNr, packet: Packet) {
        if self.bitmap_tx.is_some() {
            self.conn.urgent.push_back((v, packet));
        } else {
            self.send_data_now(v, packet);
        }
    }

    /// The bitmap is complete: what could not wait for anything else goes out.
    pub(crate) fn send_urgent(&mut self) {
        for (v, packet) in std::mem::take(&mut self.conn.urgent) {
            self.send_data_now(v, packet);
        }
    }

    /// Queues a packet on the meta socket; dropped when there is no link.
    pub(crate) fn send_meta(&mut self, v: VolumeNr, packet: Packet) {
        if self.conn.link.is_some() {
            self.out.push(Action::Send { socket: Socket::Meta, volume: v, packet });
        }
    }

    /// From here on packets for the data socket wait until `release_data`.
    pub(crate) const fn hold_data(&mut self) {
        self.conn.hold += 1;
    }

    /// The same, and keeps a place for a packet: behind what is queued by now, before everything else.
    pub(crate) fn hold_place(&mut self, v: VolumeNr) {
        self.hold_data();
        if self.conn.link.is_some() {
            self.conn.held.push_back(Held { volume: v, packet: None, awaited: None });
        }
    }

    /// Puts a packet into the oldest place that is kept for this volume, or gives the place up.
    pub(crate) fn fill_place(&mut self, v: VolumeNr, packet: Option<Packet>) {
        if let Some(at) = self.conn.held.iter().position(|held| held.volume == v && held.packet.is_none()) {
            match packet {
                Some(packet) => self.conn.held[at].packet = Some(packet),
                None => {
                    self.conn.held.remove(at);
                }
            }
        }
    }

    /// Lets the held packets go when the last reason is gone.
    pub(crate) fn release_data(&mut self) {
        self.conn.hold = self.conn.hold.saturating_sub(1);
        if self.conn.hold == 0 {
            for Held { volume, packet, awaited } in std::mem::take(&mut self.conn.held) {
                let Some(packet) = packet else { continue };
                self.send_data_now(volume, packet);
                if let Some(key) = awaited {
                    self.conn.awaiting_sent.push_back((self.conn.data_queued, key));
                }
            }
        }
    }

    /// Something happened to the link.
    pub(crate) fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { nr, version, features, resolve_conflicts, relaxed_epochs } => {
                if self.conn.state != ConnState::WfConnection || self.conn.link.is_some() || self.conn.opts.is_none() {
                    self.out.push(Action::Link(LinkAction::Close { nr }));
                    return;
                }
                self.conn.link = Some(nr);
                self.conn.version = version;
                self.conn.features = features;
                self.conn.resolve_conflicts = resolve_conflicts;
                self.conn.relaxed_epochs = relaxed_epochs;
                self.on_link_up();
            }
            LinkEvent::Refused { reason } => {
                self.log(Level::Error, None, format!("{reason}; discarding network configuration"));
                self.refuse(Refused::Link { reason });
                self.drop_link(ConnState::Disconnecting);
            }
            LinkEvent::Lost { nr, socket, protocol_error, fatal, reason } => {
                if self.conn.link != Some(nr) {
                    return;
                }
                if !self.conn.disconnect_expected {
                    self.log(Level::Warn, None, reason);
                }
                self.drop_link(match (fatal, protocol_error, socket) {
                    (true, ..) => ConnState::Disconnecting,
                    (false, true, Socket::Data) => ConnState::ProtocolError,
                    (false, false, Socket::Data) => ConnState::BrokenPipe,
                    (false, _, Socket::Meta) => ConnState::NetworkFailure,
                });
            }
        }
    }

    pub(crate) fn on_link_up(&mut self) {
        let now = self.now;
        let conn = &mut self.conn;
        conn.since = now;
        conn.meta_received = now;
        conn.data_received = now;
        conn.sent_progress = now;
        conn.data_queued = 0;
        conn.data_sent = 0;
        conn.pings_sent = 0;
        conn.pings_answered = 0;
        conn.ping_at = None;
        conn.peer_protocol = false;
        conn.peer_dry_run = false;
        conn.state_sent = true;
        conn.disconnect_expected = false;
        let (version, features) = (conn.version, conn.features);
        self.log(Level::Info, None, format!("Handshake successful: Agreed network protocol version {version}"));
        self.log(Level::Info, None, format!("Feature flags enabled on protocol level: {features:#x}"));
        let discard_my_data = self.conn.opts.as_mut().is_some_and(|o| std::mem::take(&mut o.discard_my_data));
        let Some(protocol) = self.protocol_packet(discard_my_data) else { return };
        let ping_int = self.conn.opts.as_ref().map_or(Duration::from_secs(10), |o| o.ping_int);
        self.send_data(VolumeNr(0), Packet::Protocol(protocol));
        for v in self.volume_numbers() {
            if let Some(vol) = self.volumes.get_mut(&v) {
                vol.seq = SeqNr(0);
                vol.peer_seq = SeqNr(0);
                vol.discard_my_data = discard_my_data;
                vol.counters.sent = 0;
                vol.counters.received = 0;
            }
            self.send_volume_parameters(v);
        }
        self.set_conn_all(ConnState::WfReportParams);
        self.out.push(Action::SetTimer { timer: Timer::Ping, at: now.after(ping_int) });
        self.admit_all();
    }

    /// Whether packets for the data socket are held back.
    pub(crate) const fn data_held(&self) -> bool {
        self.conn.hold > 0
    }

    /// Brings all volumes and the connection to a connection state as a fact.
    pub(crate) fn set_conn_all(&mut self, conn: ConnState) {
        self.conn.state = conn;
        for v in self.volume_numbers() {
            self.force(v, &StateChange::NONE.conn(conn));
        }
    }

    /// Ends the link with this state as the reason. The first reason stays.
    pub(crate) fn drop_link(&mut self, reason: ConnState) {
        let ended = (ConnState::Timeout..=ConnState::TearDown).contains(&self.conn.state);
        if self.conn.state <= ConnState::Disconnecting || (ended && reason != ConnState::Disconnecting) {
            return;
        }
        if reason != ConnState::Disconnecting && self.conn.state < ConnState::WfReportParams {
            return;
        }
        self.set_conn_all(reason);
        let end = if reason == ConnState::Disconnecting { LinkEnd::Stop } else { LinkEnd::Restart };
        if self.conn.end != Some(LinkEnd::Stop) {
            self.conn.end = Some(end);
        }
    }

    /// The peer sent something that it must not send.
    pub(crate) fn peer_error(&mut self, packet: &'static str, text: impl std::fmt::Display) {
        self.illegal(packet, text, None);
    }

    /// The peer sent a packet that does not fit the state of the volume.
    pub(crate) fn unexpected(&mut self, packet: Kind, conn: ConnState) {
        self.illegal(packet.name(), format!("not expected in state {conn}"), Some((packet, conn)));
    }

    fn illegal(&mut self, packet: &str, text: impl std::fmt::Display, unexpected: Option<(Kind, ConnState)>) {
        let line = format!("{packet}: {text}; dropping the connection");
        self.log_fact(Level::Error, None, line, Some(Fact::Illegal { unexpected }));
        self.drop_link(ConnState::ProtocolError);
    }

    /// Cleans up after a link, whatever ended it (behaviour.md 6.6), and starts over or stops.
    pub(crate) fn end_link(&mut self, end: LinkEnd) {
        if self.conn.state == ConnState::StandAlone
            || (end == LinkEnd::Restart && self.conn.state == ConnState::WfConnection)
        {
            return;
        }
        let had_link = self.conn.link.take();
        if let Some(nr) = had_link {
            self.out.push(Action::Link(LinkAction::Close { nr }));
        }
        self.out.push(Action::CancelTimer(Timer::Ping));
        self.out.push(Action::CancelTimer(Timer::RequestTimeout));
        if !self.faulty(Fault::HoldSurvivesLink) {
            self.conn.hold = 0;
        }
        let conn = &mut self.conn;
        conn.request_timer = false;
        conn.state_sent = false;
        conn.held.clear();
        conn.urgent.clear();
        conn.stalled.clear();
        conn.awaiting_sent.clear();
        conn.ping_waiters.clear();
        conn.ping_at = None;
        self.bitmap_tx = None;
        self.peer_requests_orphaned();
        let freezes = self.freezes_requests();
        for v in self.volume_numbers() {
            self.forget_resync(v);
            self.undo_cancel(v);
            if let Some(vol) = self.volumes.get_mut(&v) {
                if freezes {
                    vol.frozen_from = vol.frozen_from.or_else(|| vol.peer.uuids.map(|uuids| uuids.ids.current));
                }
                vol.peer = super::volume::PeerSide::default();
                vol.bitmap_rx = None;
                vol.send_bitmap = false;
                vol.early_sync_uuid = None;
                vol.verify = None;
                vol.consider_resync = false;
                vol.resync_unacked.clear();
                vol.resync_abandoned.clear();
                vol.refusals_due = false;
                vol.counters.unacked = 0;
                vol.congestion.in_flight = 0;
            }
        }
        self.requests_end();
        for v in self.volume_numbers() {
            if self.volumes.get(&v).is_some_and(|vol| vol.disk.is_some()) {
                self.md_bitmap(v, true, None);
            }
        }
        if !self.faulty(Fault::QuestionForgotten) {
            self.question_failed();
        }
        if had_link.is_some() {
            self.log(Level::Info, None, "Connection closed");
            self.fence_after_loss();
        }
        if end == LinkEnd::Stop || self.conn.state == ConnState::Disconnecting {
            self.set_conn_all(ConnState::StandAlone);
            self.conn.opts = None;
            self.conn.version = crate::limits::PROTOCOL_VERSION_MAX;
            self.conn.features = 0;
            self.conn.start_due = false;
            self.out.push(Action::Link(LinkAction::Stop));
        } else {
            self.set_conn_all(ConnState::Unconnected);
            self.set_conn_all(ConnState::WfConnection);
            self.conn.start_due = true;
        }
        self.recheck_commands = true;
        self.admit_all();
    }

    /// Orders the next link, as soon as everything that the last one brought is on the disks.
    pub(crate) fn start_link(&mut self) {
        let hasty = self.faulty(Fault::OrphanAnswered);
        if self.conn.start_due && (hasty || !self.volumes.keys().any(|v| self.orphans_on_their_way(*v))) {
            self.conn.start_due = false;
            self.out.push(Action::Link(LinkAction::Start));
        }
    }

    pub(crate) fn admit_all(&mut self) {
        for v in self.volume_numbers() {
            self.retry_blocked(v);
            self.admit(v);
        }
    }

    /// Sectors of a payload, for the counters.
    pub(crate) const fn sectors_of(bytes: usize) -> u64 {
        bytes as u64 / SECTOR_SIZE
    }

    /// The volumes in ascending order.
    pub(crate) fn volume_numbers(&self) -> Vec<VolumeNr> {
        self.volumes.keys().copied().collect()
    }

    /// The state of a volume; the default one if it does not exist.
    pub(crate) fn state(&self, v: VolumeNr) -> VolumeState {
        self.volumes.get(&v).map_or_else(VolumeState::default, |vol| vol.state)
    }

    /// Whether a received write wants a positive acknowledgement of this kind (wire.md 5.3).
    pub(crate) fn wants_ack(&self, flags: DpFlags, kind: DpFlags) -> bool {
        if self.conn.version >= 100 {
            return flags.has(kind);
        }
        match self.conn.protocol() {
            ReplProtocol::A => false,
            ReplProtocol::B => kind == DpFlags::SEND_RECEIVE_ACK,
            ReplProtocol::C => kind == DpFlags::SEND_WRITE_ACK,
        }
    }
}
