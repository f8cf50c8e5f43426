//! The decisions: one resource, its volumes and its connection. Pure: no I/O, clock, threads or randomness of its own.
//!
//! **Contract.** A driver calls [`Engine::handle`] with the time and one [`Event`]; the engine appends [`Action`]s. Events
//! are facts, actions are orders. The same events give the same actions. Order is guaranteed only among packets of one
//! socket; whatever must wait for something is emitted by the handler of the completion that it waits for. After a batch of
//! events the driver hands over [`Event::BatchEnd`]. Time only comes in through `now`; timers are data ([`Timer`]).
//!
//! **Reading order.** `event`, `action`; `state` (rules as pure functions), `apply` (the one place where states change);
//! `request` (application I/O), `suspend` (when it waits), `epoch` (barriers sent), `peer_request` (the peer's I/O, barriers
//! received), `conflict`, `two_primaries` and `postponed` (where the two meet); `al`, `dirty`
//! (what is hot, what is out of sync), `md` (metadata writes and their order); `connection`, `peer_state`, `gi`,
//! `handshake`, `meeting` (how two nodes meet); `bitmap_xfer`, `resync_helper`, `resync`, `verify`; `disk_state`, `admin`.

pub mod action;
pub mod al;
pub mod dirty;
pub mod divergence;
pub mod event;
pub mod fault;
pub mod fence;
pub mod gi;
pub mod handler;
pub mod handshake;
pub mod load;
pub mod lru;
pub mod options;
pub mod progress;
pub mod rate;
pub mod refused;
pub mod split_brain;
pub mod state;
pub mod status;
pub mod undo;

mod admin;
mod admin_connection;
mod admin_volume;
mod apply;
mod bitmap_xfer;
mod bits;
mod blocks;
mod conflict;
mod congestion;
mod connection;
mod disk_state;
mod epoch;
mod fence_peer;
mod flush;
mod give_up;
mod helpers;
#[cfg(any(test, feature = "sim"))]
mod inspect;
mod io_error;
mod liveness;
mod md;
mod meeting;
mod only_copy;
mod ops;
mod parameters;
mod peer_read;
mod peer_request;
mod peer_state;
mod peer_write;
mod postponed;
mod promote;
mod ranges;
mod read;
mod received_epochs;
mod request;
mod resize;
mod resync;
mod resync_helper;
mod resync_target;
pub(crate) mod rng;
mod slab;
mod split;
mod suspend;
mod two_primaries;
mod verify;
mod volume;
mod write;
mod write_ack;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::units::{Timestamp, VolumeNr};
use crate::wire::kind::Scope;
use crate::wire::packet::Packet;
use crate::wire::state::ConnState;
use action::{Action, Fact, Level, Notice};
use event::{CommandId, Event, Socket, Timer};
use peer_request::PeerKind;
use request::AckKind;
use slab::GenSlab;
use state::VolumeState;
use volume::Volume;

/// Everything there is to decide about one resource.
#[derive(Debug)]
pub struct Engine {
    name: String,
    now: Timestamp,
    out: Vec<Action>,
    rng: rng::Rng,
    volumes: BTreeMap<VolumeNr, Volume>,
    conn: connection::Connection,
    masters: GenSlab<request::Master>,
    requests: GenSlab<request::Request>,
    flushes: GenSlab<request::Flush>,
    peer_requests: GenSlab<peer_request::PeerRequest>,
    ops: GenSlab<ops::PendingOp>,
    epochs: epoch::SendEpochs,
    rx: peer_request::ReceivedEpochs,
    bitmap_tx: Option<bitmap_xfer::Outgoing>,
    effects: VecDeque<(VolumeNr, VolumeState, VolumeState)>,
    /// Writes for the peer alone that wait until it was told the state that makes them so.
    unannounced: Vec<u64>,
    /// Volumes whose disk goes by force, until the peer was told.
    give_up_due: Vec<VolumeNr>,
    commands: Vec<admin::Pending>,
    /// When commands are looked at again that wait for a time.
    retry_at: BTreeSet<Timestamp>,
    md_done_early: Vec<(CommandId, bool)>,
    recheck_commands: bool,
    resync_kick: BTreeSet<VolumeNr>,
    /// Volumes where there is room for waiting requests.
    admit_due: BTreeSet<VolumeNr>,
    /// Flushes that came while I/O was suspended.
    frozen_flushes: Vec<(event::RequestId, VolumeNr)>,
    /// What is frozen is to be sent again, as soon as every state on the way allows it.
    resend_due: bool,
    opts: options::ResourceOptions,
    helpers: helpers::Helpers,
    undo_jobs: GenSlab<undo::UndoJob>,
    #[cfg(any(test, feature = "sim"))]
    fault: Option<fault::Fault>,
}

impl Engine {
    /// An engine without volumes, StandAlone. `seed` determines its generation identifiers.
    #[must_use]
    pub fn new(name: &str, seed: u64) -> Self {
        let mut rng = rng::Rng::new(seed);
        let mut generation = || u32::try_from(rng.next_u64() >> 33).unwrap_or(1);
        Self {
            name: name.to_owned(),
            now: Timestamp(0),
            out: Vec::new(),
            volumes: BTreeMap::new(),
            conn: connection::Connection::new(),
            masters: GenSlab::new(generation()),
            requests: GenSlab::new(generation()),
            flushes: GenSlab::new(generation()),
            peer_requests: GenSlab::new(generation()),
            ops: GenSlab::new(generation()),
            epochs: epoch::SendEpochs::default(),
            rx: peer_request::ReceivedEpochs::default(),
            bitmap_tx: None,
            effects: VecDeque::new(),
            unannounced: Vec::new(),
            give_up_due: Vec::new(),
            commands: Vec::new(),
            retry_at: BTreeSet::new(),
            md_done_early: Vec::new(),
            recheck_commands: false,
            resync_kick: BTreeSet::new(),
            admit_due: BTreeSet::new(),
            frozen_flushes: Vec::new(),
            resend_due: false,
            opts: options::ResourceOptions::default(),
            helpers: helpers::Helpers::default(),
            undo_jobs: GenSlab::new(generation()),
            #[cfg(any(test, feature = "sim"))]
            fault: None,
            rng,
        }
    }

    /// The resource's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes in one event at time `now`, appends what must be done to `out`.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, out);
        match event {
            Event::Command { id, volume, command } => self.on_command(id, volume, command),
            Event::Client { id, volume, request } => self.on_client(id, volume, request),
            Event::Opened { volume } => self.on_opened(volume, true),
            Event::Closed { volume } => self.on_opened(volume, false),
            Event::Disk { op, result } => self.on_disk(op, result),
            Event::DiskSize { volume, sizes } => self.on_disk_size(volume, sizes),
            Event::DiskClosed { volume } => self.on_disk_closed(volume),
            Event::Link(event) => self.on_link(event),
            Event::Packet { link, socket, volume, packet } => {
                let stale = self.conn.link.is_some() && self.faulty(fault::Fault::StaleLinkAccepted);
                if self.conn.link == Some(link) || stale {
                    self.note_received(socket);
                    self.receive(socket, volume, packet);
                }
            }
            Event::Sent { link, socket, packets } => {
                if self.conn.link == Some(link) {
                    self.on_sent(socket, packets);
                }
            }
            Event::HandlerDone { run, code } => self.on_handler_done(run, code),
            Event::Undo { volume, answer } => self.on_undo(volume, answer),
            Event::Timer(timer) => self.on_timer(timer),
            Event::Continue => {}
            Event::BatchEnd => self.end_batch(),
        }
        self.settle();
        std::mem::swap(&mut self.out, out);
    }

    /// Brings the machine to a known state after an event; running it again changes nothing.
    fn settle(&mut self) {
        // Each round may give the next one work; the limit only guards against a rule that feeds itself.
        for _ in 0..64 {
            self.run_effects();
            for v in std::mem::take(&mut self.admit_due) {
                self.admit(v);
            }
            for v in std::mem::take(&mut self.resync_kick) {
                self.pump_resync(v);
            }
            if std::mem::take(&mut self.recheck_commands) && !self.commands.is_empty() {
                self.recheck();
            }
            if self.effects.is_empty()
                && self.admit_due.is_empty()
                && self.resync_kick.is_empty()
                && !self.recheck_commands
                && self.conn.end.is_none()
            {
                break;
            }
        }
        self.pump_bitmap();
        if !self.effects.is_empty() {
            self.run_effects();
        }
        self.start_link();
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Ping => self.on_ping_timer(),
            Timer::RequestTimeout => self.on_request_timeout(),
            Timer::Resync(v) => {
                self.resync_kick.insert(v);
            }
            Timer::EpochFlush => self.on_epoch_timer(),
            Timer::Barrier => self.on_barrier_timer(),
            Timer::LazyBitmap(v) => self.on_lazy_bitmap(v),
            Timer::DiskTimeout(v) => self.on_disk_timeout(v),
            Timer::LeaveAhead(v) => self.on_leave_ahead(v),
            Timer::CommandRetry => self.on_command_timer(),
            Timer::MissingAcks => self.on_missing_acks(),
            Timer::Conflict => self.on_conflict_timer(),
            Timer::UndoFile(v) => self.on_undo_timer(v),
        }
    }

    fn on_packet(&mut self, socket: Socket, v: VolumeNr, packet: Packet) {
        let kind = packet.kind();
        if kind.row().scope == Scope::Volume && !self.volumes.contains_key(&v) {
            if peer_state::is_parameter(&packet) {
                return self.log(
                    Level::Warn,
                    None,
                    format!("{} for volume {v}, which is not configured here; ignored", kind.name()),
                );
            }
            return self.peer_error(kind.name(), format!("for volume {v}, which is not configured here"));
        }
        if self.conn.state < ConnState::WfReportParams {
            return;
        }
        if self.interrupts_bitmap(socket, v, &packet) {
            return self.peer_error(kind.name(), "in the middle of a bitmap");
        }
        match packet {
            Packet::Protocol(p) => self.on_protocol(&p),
            Packet::ProtocolUpdate(p) => self.on_protocol_update(&p),
            Packet::SyncParam(p) => self.on_sync_param(v, p),
            Packet::Sizes(p) => self.on_sizes(v, &p),
            Packet::Uuids(p) => self.on_uuids(v, &p),
            Packet::State(word) => self.on_state(v, word),
            Packet::SyncUuid(uuid) => self.on_sync_uuid(v, uuid),
            Packet::StateChgReq { mask, val } => self.on_state_request(v, mask, val),
            Packet::StateChgReply(code) => self.on_answer(v, false, code),
            Packet::ConnStChgReq { mask, val } => self.on_connection_request(mask, val),
            Packet::ConnStChgReply(code) => self.on_answer(v, true, code),
            Packet::Data(p) => self.on_data(v, p),
            Packet::Trim(p) => self.on_trim(v, &p, false),
            Packet::Zeroes(p) => self.on_trim(v, &p, true),
            Packet::Barrier { barrier } => self.on_barrier(barrier),
            Packet::BarrierAck { barrier, set_size } => self.on_barrier_ack(barrier, set_size),
            Packet::UnplugRemote => self.on_unplug(),
            Packet::RecvAck(p) => self.on_write_ack(v, &p, "P_RECV_ACK", AckKind::Received),
            Packet::WriteAck(p) => self.on_write_ack(v, &p, "P_WRITE_ACK", AckKind::Written),
            Packet::RsWriteAck(p) if p.block_id == crate::units::BlockId::SYNCER => {
                self.on_rs_write_ack(v, p.sector, p.blksize);
            }
            Packet::RsWriteAck(p) => self.on_write_ack(v, &p, "P_RS_WRITE_ACK", AckKind::InSync),
            Packet::NegAck(p) if p.block_id == crate::units::BlockId::SYNCER => {
                self.on_rs_neg_ack(v, p.sector, p.blksize);
            }
            Packet::NegAck(p) => self.on_write_ack(v, &p, "P_NEG_ACK", AckKind::Negative),
            Packet::DataRequest(p) => self.on_data_request(v, &p),
            Packet::DataReply(p) => self.on_read_reply(v, p.sector, p.block_id, Some(p.payload)),
            Packet::NegDreply(p) => self.on_read_reply(v, p.sector, p.block_id, None),
            Packet::RsDataRequest(p) => self.on_resync_request(v, &p, PeerKind::ResyncRead { thin: false }),
            Packet::RsThinReq(p) => self.on_resync_request(v, &p, PeerKind::ResyncRead { thin: true }),
            Packet::CsumRsRequest { req, digest } => self.on_resync_request(v, &req, PeerKind::ChecksumRead { digest }),
            Packet::OvRequest(p) => self.on_resync_request(v, &p, PeerKind::VerifyRead),
            Packet::RsDataReply(p) => self.on_rs_data(v, p.sector, p.payload),
            Packet::RsDeallocated(p) => self.on_rs_deallocated(v, &p),
            Packet::NegRsDreply(p) => self.on_rs_negative(v, p.sector, p.blksize),
            Packet::RsCancel(p) => self.on_rs_cancel(v, p.sector, p.blksize),
            Packet::OutOfSync(p) => self.on_out_of_sync(v, &p),
            Packet::Bitmap(body) => self.on_bitmap(v, body, false),
            Packet::CompressedBitmap(body) => self.on_bitmap(v, body, true),
            Packet::OvResult(p) => self.on_ov_result(v, &p),
            Packet::Ping => self.send_meta(VolumeNr(0), Packet::PingAck),
            Packet::PingAck => self.on_ping_ack(),
            Packet::DelayProbe { .. } => {}
            Packet::Superseded(p) => self.on_write_ack(v, &p, "P_SUPERSEDED", AckKind::Superseded),
            Packet::RetryWrite(p) => self.on_write_ack(v, &p, "P_RETRY_WRITE", AckKind::Retry),
            // Checksum requests and verify requests are not sent, P_WSAME was not offered.
            Packet::RsIsInSync(_)
            | Packet::OvReply { .. }
            | Packet::WriteSame(_)
            | Packet::InitialData
            | Packet::InitialMeta
            | Packet::ConnectionFeatures(_)
            | Packet::AuthChallenge(_)
            | Packet::AuthResponse(_) => {
                self.peer_error(kind.name(), format!("not expected on the {socket:?} socket now"));
            }
        }
    }

    fn on_out_of_sync(&mut self, v: VolumeNr, p: &crate::wire::resync::BlockDesc) {
        match crate::units::SectorRange::from_bytes(p.sector, u64::from(p.blksize)) {
            Some(range) if range.end().0 <= self.size_of(v).0 => {
                self.set_bits(v, range);
            }
            _ => self.peer_error(
                "P_OUT_OF_SYNC",
                format!("sector {}+{} bytes is not inside the device", p.sector, p.blksize),
            ),
        }
    }

    pub(crate) fn log(&mut self, level: Level, volume: Option<VolumeNr>, text: impl Into<String>) {
        self.log_fact(level, volume, text, None);
    }

    /// The same for a line that says something to programs, too.
    pub(crate) fn log_fact(
        &mut self,
        level: Level,
        volume: Option<VolumeNr>,
        text: impl Into<String>,
        fact: Option<Fact>,
    ) {
        self.out.push(Action::Notice(Notice::Log { level, volume, text: text.into(), fact }));
    }

    pub(crate) fn log_error(&mut self, v: VolumeNr, text: String) {
        self.log(Level::Error, Some(v), text);
    }
}
