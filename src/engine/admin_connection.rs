//! Commands for the connection, and the peer's request to disconnect.

use crate::engine::Engine;
use crate::engine::action::{CommandError, Level};
use crate::engine::admin::{Job, Outdates, Pending, Wait, err};
use crate::engine::connection::{LinkEnd, PeerQuestion};
use crate::engine::options::NetOptions;
use crate::engine::state::{ChangeMode, Fencing, StateChange, is_acceptable_peer_request, plan};
use crate::units::VolumeNr;
use crate::wire::packet::Packet;
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState, Role, StateResult, StateWord};

impl Engine {
    pub(crate) fn connect(&mut self, opts: NetOptions) -> Result<(), CommandError> {
        if self.conn.opts.is_some() || self.conn.state != ConnState::StandAlone {
            return Err(err(125));
        }
        if opts.two_primaries && opts.protocol != ReplProtocol::C {
            return Err(err(139));
        }
        if self.volumes.values().any(|vol| self.stonith_with_a(vol.opts.fencing, Some(opts.protocol))) {
            return Err(err(154));
        }
        if opts.discard_my_data && self.volumes.values().any(|vol| vol.state.role == Role::Primary) {
            return Err(err(123));
        }
        self.conn.opts = Some(opts);
        self.set_conn_all(ConnState::Unconnected);
        self.set_conn_all(ConnState::WfConnection);
        self.conn.start_due = true;
        Ok(())
    }

    pub(crate) fn run_disconnect(&mut self, mut pending: Pending, answer: Option<StateResult>) {
        let id = pending.id;
        let Job::Disconnect { force, outdates } = &mut pending.job else { return };
        if self.conn.opts.is_none() && self.conn.state == ConnState::StandAlone {
            // Done, if it was this command's doing; else there was nothing to disconnect.
            let result = if self.conn.disconnect_expected {
                Ok(())
            } else {
                Err(CommandError::Code { code: 162, detail: String::from("unknown connection") })
            };
            self.conn.disconnect_expected = false;
            return self.command_done(id, result);
        }
        let connected = self.conn.link.is_some() && self.conn.state == ConnState::WfReportParams;
        let change = StateChange::NONE.conn(ConnState::Disconnecting);
        if !*force && answer.is_none() {
            for v in self.volume_numbers() {
                if let Err(code) = plan(&self.state(v), &change, ChangeMode::Soft, &self.state_context(v)) {
                    if code == StateResult::InTransientState && self.conn.link.is_some() {
                        return self.wait(pending, Wait::Change);
                    }
                    if code == StateResult::PrimaryNop && connected && *outdates != Outdates::Own {
                        // The own state wants to see the peer outdated before it goes.
                        *outdates = Outdates::Peer;
                    } else if !matches!(code, StateResult::AlreadyStandalone | StateResult::InTransientState) {
                        return self.command_done(id, Err(CommandError::State(code)));
                    }
                }
            }
        }
        if connected && !*force {
            match answer {
                None if self.conn.question.is_some() => return self.wait(pending, Wait::Change),
                None => {
                    let outdates = *outdates;
                    return self.ask_disconnect(pending, outdates);
                }
                Some(code) if code.is_success() => {
                    let outdates = *outdates;
                    for v in self.volume_numbers() {
                        let state = self.state(v);
                        let change = match outdates {
                            Outdates::Own if state.disk > DiskState::Outdated => change.disk(DiskState::Outdated),
                            Outdates::Peer if state.pdsk > DiskState::Outdated => change.pdsk(DiskState::Outdated),
                            _ => continue,
                        };
                        self.force(v, &change);
                    }
                }
                // A Primary with a fencing policy wants to see this node outdated before it goes.
                Some(code) if code == StateResult::PrimaryNop && *outdates == Outdates::Nobody => {
                    *outdates = Outdates::Own;
                    return self.ask_disconnect(pending, Outdates::Own);
                }
                Some(StateResult::UnknownError) => {}
                Some(code) => {
                    let text = format!("Requested state change failed by peer: {} ({})", code.text(), code.code());
                    self.log(Level::Warn, None, text);
                    return self.command_done(id, Err(CommandError::State(StateResult::CwFailedByPeer)));
                }
            }
        }
        self.conn.disconnect_expected = true;
        self.drop_link(ConnState::Disconnecting);
        self.wait(pending, Wait::Change);
    }

    pub(crate) fn ask_disconnect(&mut self, pending: Pending, outdates: Outdates) {
        let change = StateChange::NONE.conn(ConnState::Disconnecting);
        let change = match outdates {
            Outdates::Nobody => change,
            Outdates::Own => change.disk(DiskState::Outdated),
            Outdates::Peer => change.pdsk(DiskState::Outdated),
        };
        let connection = self.conn.version >= 100;
        let v = self.volumes.keys().next().copied().unwrap_or_default();
        self.conn.question = Some(PeerQuestion { command: pending.id, volume: v, connection, conn: change.conn });
        self.conn.disconnect_expected = true;
        let (mask, val) = (change.mask(), change.val());
        self.send_data(
            v,
            if connection { Packet::ConnStChgReq { mask, val } } else { Packet::StateChgReq { mask, val } },
        );
        self.wait(pending, Wait::Answer);
    }

    pub(crate) fn net_options(&mut self, opts: NetOptions) -> Result<(), CommandError> {
        if self.conn.opts.is_none() {
            return Err(CommandError::Code { code: 162, detail: String::from("unknown connection") });
        }
        let connected = self.conn.state >= ConnState::WfReportParams;
        let told = |o: &NetOptions| (o.protocol, o.two_primaries, o.integrity_alg.as_str().to_owned());
        let told_differs = self.conn.opts.as_ref().is_some_and(|old| told(old) != told(&opts));
        if connected && self.conn.version < 100 && told_differs {
            return Err(err(163));
        }
        let both_primary =
            |vol: &super::volume::Volume| vol.state.role == Role::Primary && vol.state.peer == Role::Primary;
        if !opts.two_primaries && self.two_primaries() && self.volumes.values().any(both_primary) {
            return Err(err(164));
        }
        if opts.two_primaries && opts.protocol != ReplProtocol::C {
            return Err(err(139));
        }
        if self.volumes.values().any(|vol| self.stonith_with_a(vol.opts.fencing, Some(opts.protocol))) {
            return Err(err(154));
        }
        self.epochs.close();
        self.send_due_barrier();
        self.conn.opts = Some(opts);
        if connected && self.conn.version >= 100 {
            self.send_protocol_update();
            for v in self.volume_numbers() {
                self.send_sync_param(v);
            }
        }
        Ok(())
    }

    /// Whether I/O would have to freeze for a peer that is behind anyhow. `protocol`: the one that is to be, else the present.
    pub(crate) fn stonith_with_a(&self, fencing: Fencing, protocol: Option<ReplProtocol>) -> bool {
        let protocol = protocol.or_else(|| self.conn.opts.as_ref().map(|o| o.protocol));
        fencing == Fencing::ResourceAndStonith && protocol == Some(ReplProtocol::A)
    }

    /// The peer asks for a change of the connection: to disconnect.
    pub(crate) fn on_connection_request(&mut self, mask: StateWord, val: StateWord) {
        let v = VolumeNr(0);
        if self.conn.resolve_conflicts && self.conn.question.is_some() {
            return self.send_meta(v, Packet::ConnStChgReply(StateResult::ConcurrentStChg.code()));
        }
        let asked = StateChange::from_words(mask, val).filter(|_| is_acceptable_peer_request(mask, val));
        match asked.map(|c| c.mirror()) {
            Some(change) if change.conn == Some(ConnState::TearDown) => self.on_disconnect_request(&change, true, v),
            _ => self.send_meta(v, Packet::ConnStChgReply(StateResult::NotSupported.code())),
        }
    }

    pub(crate) fn on_disconnect_request(&mut self, change: &StateChange, connection: bool, v: VolumeNr) {
        let reply = |code: StateResult| {
            if connection { Packet::ConnStChgReply(code.code()) } else { Packet::StateChgReply(code.code()) }
        };
        // "Outdate yourself" must not lift a disk that is worse than that.
        let for_volume = |engine: &Self, v: VolumeNr| {
            let mut change = *change;
            if change.disk == Some(DiskState::Outdated) && engine.state(v).disk < DiskState::Outdated {
                change.disk = None;
            }
            change
        };
        for each in self.volume_numbers() {
            let change = for_volume(self, each);
            if let Err(code) = plan(&self.state(each), &change, ChangeMode::Soft, &self.state_context(each)) {
                return self.send_meta(v, reply(code));
            }
        }
        self.send_meta(v, reply(StateResult::Success));
        for each in self.volume_numbers() {
            let change = for_volume(self, each);
            self.force(each, &change);
        }
        self.log(Level::Info, None, "the peer disconnects");
        self.conn.disconnect_expected = true;
        self.conn.state = ConnState::TearDown;
        if self.conn.end.is_none() {
            self.conn.end = Some(LinkEnd::Restart);
        }
    }
}
