//! What the engine orders, carried out: disk operations, completions, timers, announcements.

use super::coverage::Group;
use super::device::{Io, OpKind};
use super::node::{Illegal, Reason, nr};
use super::plan::{DiskFault, Moment, Victims};
use super::world::{A, Asked, B, Checker, Due, World};
use crate::engine::action::{Action, ClientResult, DiskOp, Fact, LinkAction, Notice};
use crate::engine::event::{DiskFailure, Event, OpId, RequestId};
use crate::engine::handler::Handler;
use crate::engine::handshake::RefuseReason;
use crate::engine::state::VolumeState;
use crate::units::{SectorRange, VolumeNr};
use crate::wire::kind::Kind;
use crate::wire::state::{ConnState, DiskState, Role};

impl World {
    pub(super) fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Disk { op, volume, io } => self.submit(node, usize::from(volume.0), op, io),
            Action::CloseDisk { volume } => {
                let vol = &mut self.nodes[node].volumes[usize::from(volume.0)];
                vol.open = false;
                let busy = !vol.ops.is_empty();
                if busy {
                    self.fail(Checker::Sanity, format!("volume {volume} was closed with operations in flight"));
                }
                self.event(node, Event::DiskClosed { volume });
            }
            Action::Send { socket, volume, packet } => self.send(node, socket, volume, packet),
            Action::Link(LinkAction::Start) => {
                self.nodes[node].wants_link = true;
                self.try_connect();
            }
            Action::Link(LinkAction::Stop) => self.nodes[node].wants_link = false,
            Action::Link(LinkAction::Close { nr }) => self.close_link(node, nr),
            Action::Complete { id, result } => self.complete(node, id, result),
            Action::CommandDone { id, result } => self.command_done(node, id, result),
            Action::EndSessions { volume, .. } => {
                if std::mem::take(&mut self.nodes[node].volumes[usize::from(volume.0)].opened) {
                    self.event(node, Event::Closed { volume });
                }
            }
            Action::Undo { volume, order } => self.undo_order(node, usize::from(volume.0), order),
            Action::RunHandler { run, handler: handler @ (Handler::FencePeer | Handler::UnfencePeer), .. } => {
                self.run_helper(node, run, handler);
            }
            Action::RunHandler { run, handler, volume } => self.program_starts(node, run, handler, volume),
            Action::SetTimer { timer, at } => {
                self.nodes[node].timers.insert(timer, at);
                let (due, life) = (self.global(node, at), self.nodes[node].life);
                self.at(due, Due::Timer { node, life, timer });
            }
            Action::CancelTimer(timer) => {
                self.nodes[node].timers.remove(&timer);
            }
            Action::Notice(notice) => self.notice(node, notice),
            Action::Continue => {
                let (wait, life) = (self.dice.driver.below(20_000), self.nodes[node].life);
                self.after(wait, Due::Continue { node, life });
            }
        }
    }

    // --- disks ---

    fn submit(&mut self, node: usize, volume: usize, op: OpId, io: DiskOp) {
        let words = |io: &DiskOp| match io {
            DiskOp::Read(r) => format!("read {}+{}", r.start, r.count),
            DiskOp::Write { range, fua, .. } => format!("write {}+{} fua {fua}", range.start, range.count),
            DiskOp::Flush => String::from("flush"),
            DiskOp::Discard(r) => format!("discard {}+{}", r.start, r.count),
            DiskOp::WriteZeroes { range, .. } => format!("zeroes {}+{}", range.start, range.count),
            DiskOp::MetaWrite { offset, data, fua } => format!("meta write {offset}+{} fua {fua}", data.len()),
            DiskOp::MetaFlush => String::from("meta flush"),
        };
        self.trace.note(self.now, node, 4, op.0, || format!("vol {volume} op {:x}: {}", op.0, words(&io)));
        // With discard-zeroes-if-aligned the administrator says that whole granules read as zeroes.
        let params = &self.nodes[node].params;
        let loose = !params.discard.1 && !params.disk.discard_zeroes_if_aligned;
        let vol = &mut self.nodes[node].volumes[volume];
        if !vol.open {
            let text = String::from("no disk");
            return self.event(node, Event::Disk { op, result: Err(DiskFailure { text, unsupported: false }) });
        }
        let bytes = |r: SectorRange| (r.start.bytes(), r.bytes());
        let (on_meta, io) = match io {
            DiskOp::Read(range) => (false, Io::Read { start: bytes(range).0, len: bytes(range).1 }),
            DiskOp::Write { range, data, fua } => (false, Io::Write { start: bytes(range).0, data, fua }),
            DiskOp::Flush => (false, Io::Flush),
            DiskOp::Discard(range) => (false, Io::Zero { start: bytes(range).0, len: bytes(range).1, loose }),
            DiskOp::WriteZeroes { range, .. } => {
                (false, Io::Zero { start: bytes(range).0, len: bytes(range).1, loose: false })
            }
            DiskOp::MetaWrite { offset, data, fua } => {
                (true, Io::Write { start: offset, data: smallvec::SmallVec::from_elem(data, 1), fua })
            }
            DiskOp::MetaFlush => (true, Io::Flush),
        };
        let external = on_meta && vol.meta.is_some();
        let device = if on_meta { vol.meta_device() } else { &mut vol.data };
        let ticket = device.submit(io);
        vol.ops.insert(op, (ticket, on_meta));
        let params = &self.nodes[node].params;
        let typical = params.meta_ns.filter(|_| external).unwrap_or(params.disk_ns);
        let stall = self.nodes[node].stalled_until.saturating_sub(self.now);
        let wait = stall + self.dice.disk.around(typical);
        let life = self.nodes[node].life;
        self.after(wait, Due::Disk { node, life, volume, op });
    }

    pub(super) fn disk_ends(&mut self, node: usize, volume: usize, op: OpId) {
        let stalled = self.nodes[node].stalled_until;
        if stalled > self.now {
            let life = self.nodes[node].life;
            return self.at(stalled, Due::Disk { node, life, volume, op });
        }
        let vol = &mut self.nodes[node].volumes[volume];
        let Some((ticket, on_meta)) = vol.ops.remove(&op) else { return };
        let failing = vol.failing_op(ticket, on_meta);
        let kind = if on_meta { vol.meta_device().kind(ticket) } else { vol.data.kind(ticket) };
        if failing && kind == OpKind::Write {
            vol.write_failed = self.tick;
        }
        let shared = vol.meta.is_none();
        let device = if on_meta { vol.meta_device() } else { &mut vol.data };
        let ended = if failing { device.fail(ticket) } else { device.complete(ticket) };
        self.trace.note(self.now, node, 5, op.0, || {
            format!("vol {volume} op {:x} {}", op.0, if failing { "FAILS" } else { "ends" })
        });
        if let Some((start, len)) = ended.touched
            && (!on_meta || shared)
        {
            self.touched(node, volume, start, len);
        }
        let result = if failing {
            Err(DiskFailure { text: String::from("injected"), unsupported: false })
        } else {
            Ok(ended.data)
        };
        self.event(node, Event::Disk { op, result });
    }

    pub(super) fn disk_fault(&mut self, node: usize, volume: usize, kind: DiskFault, count: u32) {
        let Some(vol) = self.nodes[node].volumes.get_mut(volume) else { return };
        let slot = match kind {
            DiskFault::Read => &mut vol.failing.reads,
            DiskFault::Write => &mut vol.failing.writes,
            DiskFault::Flush => &mut vol.failing.flushes,
            DiskFault::Meta => &mut vol.failing.meta,
        };
        *slot = count;
        self.fault(match kind {
            DiskFault::Read => "read errors",
            DiskFault::Write => "write errors",
            DiskFault::Flush => "flush errors",
            DiskFault::Meta => "metadata write errors",
        });
    }

    // --- clients' completions ---

    fn complete(&mut self, node: usize, id: RequestId, result: ClientResult) {
        let Some(pending) = self.pending.remove(&id) else {
            return self.fail(Checker::Requests, format!("request {} was completed twice, or was never made", id.0));
        };
        let now = self.tick;
        let mut scene = self.scene(node, pending.volume);
        if let Asked::Write(write) = pending.what
            && let Some(w) = self.model.write(write)
            && let Some(bits) = self.bits(node, pending.volume)
        {
            // What this node has marked it does not claim to be on the peer: also where its own disk is the one that lacks it, because
            // that disk may come back after a crash of both nodes, before the peer has begun a generation without it.
            let marked = bits.any(w.start / 8..(w.start + w.count).div_ceil(8));
            scene.only_on_peer = marked && scene.peer_good && !scene.own_good;
            scene.peer_good &= !marked;
        }
        let outcome = match &result {
            Ok(_) => String::from("ok"),
            Err(error) => format!("{error:?}"),
        };
        self.trace.note(self.now, node, 6, id.0, || format!("request {} ends: {outcome}", id.0));
        let kind = match pending.what {
            Asked::Read { .. } => "read",
            Asked::Write(_) => "write",
            Asked::Flush => "flush",
        };
        self.coverage.count(Group::Request, &format!("{kind} {outcome}"));
        self.stats.operations += u64::from(result.is_ok());
        if let Some(answers) = &mut self.answers {
            answers.ended.insert(id, outcome);
        }
        if result.is_ok() {
            self.check_freeze(node, id.0);
        }
        let vol = &self.nodes[node].volumes[pending.volume];
        let there = vol.seen.conn >= ConnState::Connected && vol.seen.pdsk == DiskState::UpToDate;
        let failed = vol.write_failed == now;
        if result.is_ok() && failed && matches!(pending.what, Asked::Write(_)) && !scene.own_good && !there {
            let text =
                format!("request {} ended well, a write has failed and no good disk has it: {}", id.0, self.describe());
            self.fail(Checker::Lost, text);
        }
        match (pending.what, result) {
            (Asked::Write(write), result) => {
                self.model.end_write(now, write, result.is_ok(), &scene);
                if let Some(w) = self.model.write(write) {
                    let pages = w.start / 8..(w.start + w.count).div_ceil(8);
                    for list in &mut self.unchecked {
                        list[pending.volume].extend(pages.clone());
                    }
                }
            }
            (Asked::Flush, Ok(_)) => {
                self.model.end_flush(node, pending.volume, pending.began, &scene, pending.powers);
                self.moment(node, Moment::Flushed);
            }
            (Asked::Read { start, count }, Ok(data)) => {
                let disk = pending.disk.filter(|disk| self.serving_disk(node, pending.volume) == Some(*disk));
                self.check_reply(node, &pending, start, count, &data, disk);
            }
            (Asked::Flush | Asked::Read { .. }, Err(_)) => {}
        }
        self.model.end_read(id.0);
    }

    // --- announcements ---

    fn notice(&mut self, node: usize, notice: Notice) {
        match notice {
            Notice::State { volume, old, new } => self.state_changed(node, volume, &old, &new),
            Notice::Size { volume, size } => {
                self.trace.note(self.now, node, 7, size.0, || format!("vol {volume} size {}", size.0));
                let vol = &mut self.nodes[node].volumes[usize::from(volume.0)];
                vol.size = size.0;
                vol.undo.resized(size);
                self.size_announced(usize::from(volume.0));
            }
            Notice::MetaMoved { volume, device } => {
                self.trace.note(self.now, node, 25, device.0, || format!("vol {volume} metadata moved"));
                self.nodes[node].volumes[usize::from(volume.0)].known_bytes = device.bytes();
            }
            Notice::SplitBrain(_) | Notice::Generation { .. } => {}
            Notice::Log { text, volume, fact, level: _ } => {
                self.trace.note(self.now, node, 8, text.len() as u64, || match volume {
                    Some(volume) => format!("vol {volume} log: {text}"),
                    None => format!("log: {text}"),
                });
                match fact {
                    Some(Fact::Handshake { rule, split_brain, refused }) => {
                        if let Some(volume) = volume.map(|v| usize::from(v.0)).filter(|_| split_brain) {
                            if refused.is_none() {
                                self.policy_decides(node, volume, rule);
                            }
                            if [A, B].iter().any(|n| self.is_primary(*n, volume)) {
                                // Its clients may find other data from here on.
                                self.model.new_era(self.tick, volume);
                            }
                        }
                        self.coverage.count(Group::Rule, &rule.to_string());
                        self.stats.split_brains += u64::from(split_brain);
                        let it = &mut self.nodes[node];
                        it.split_brain |= refused == Some(RefuseReason::SplitBrain);
                        it.must_demote |= refused == Some(RefuseReason::TargetIsPrimary);
                        it.unrelated |= refused == Some(RefuseReason::Unrelated);
                        it.unresolvable |=
                            matches!(refused, Some(RefuseReason::NeedsVersion(_) | RefuseReason::NeedsFeature { .. }));
                        it.newer_inconsistent |= refused == Some(RefuseReason::NewerInconsistent);
                    }
                    Some(Fact::Illegal { unexpected }) => {
                        self.nodes[node].illegal = Some(Illegal { unexpected, text });
                    }
                    None => {}
                }
            }
        }
    }

    fn state_changed(&mut self, node: usize, v: VolumeNr, old: &VolumeState, new: &VolumeState) {
        let volume = usize::from(v.0);
        self.trace.note(self.now, node, 9, u64::from(new.word().0), || {
            format!("vol {v} {} {}/{} {}/{}", new.conn, new.role, new.peer, new.disk, new.pdsk)
        });
        self.coverage.transition(old, new);
        self.nodes[node].volumes[volume].seen = *new;
        self.nodes[node].conn = new.conn;
        self.note_freeze(node, old, new);
        if new.conn == ConnState::StandAlone || old.conn == ConnState::StandAlone {
            self.nodes[node].unlimited = true;
        }
        let target = |conn| matches!(conn, ConnState::SyncTarget | ConnState::PausedSyncT);
        let source = |conn| matches!(conn, ConnState::SyncSource | ConnState::PausedSyncS);
        if !source(old.conn) && source(new.conn) {
            self.resync_since[volume] = self.tick;
        }
        if new.conn < ConnState::WfReportParams && old.conn >= ConnState::WfReportParams {
            self.model.link_ended(self.tick, node, volume);
        }
        if new.conn < ConnState::Connected {
            let vol = &mut self.nodes[node].volumes[volume];
            vol.named.remove(&Reason::Policy);
            vol.helper_ended = None;
        }
        if !target(old.conn) && target(new.conn) {
            self.stats.resyncs += 1;
            self.check_helper(node, volume);
            self.resync_begins(node, volume);
        }
        if old.disk == DiskState::Inconsistent && new.disk == DiskState::UpToDate && !target(old.conn) {
            self.declared_good(node, volume);
        }
        if old.disk != DiskState::Inconsistent && new.disk == DiskState::Inconsistent && !target(new.conn) {
            // An I/O error passed on, or an order: whatever is on it is not good any more.
            self.model.gone_bad(volume, node);
        }
        if old.disk > DiskState::Failed && new.disk <= DiskState::Failed {
            self.nodes[node].volumes[volume].failures += 1;
            self.model.disk_failed(volume, node);
        }
        if new.disk == DiskState::UpToDate && new.conn == ConnState::Connected {
            self.nodes[node].volumes[volume].named.clear();
        }
        let good = |s: &VolumeState| {
            s.conn == ConnState::Connected && s.disk == DiskState::UpToDate && s.pdsk == DiskState::UpToDate
        };
        if !good(old) && good(new) {
            self.called_equal(node, 1 - node, volume);
            if target(old.conn) {
                // What the source keeps went over here.
                self.called_equal(1 - node, node, volume);
            }
        }
        if new.disk == DiskState::Diskless {
            self.nodes[node].volumes[volume].aheads.clear();
        }
        if old.conn != ConnState::Ahead && new.conn == ConnState::Ahead {
            self.went_ahead(node, volume);
        }
        for moment in moments(old, new) {
            self.moment(node, moment);
        }
        if old.role != new.role {
            self.unchecked_all[volume] = true;
            self.model.new_era(self.tick, volume);
        }
        if new.conn == ConnState::WfReportParams {
            self.nodes[node].illegal = None;
        }
        if new.conn == ConnState::ProtocolError {
            let Some(illegal) = self.nodes[node].illegal.clone() else {
                // The engine's own decision: frozen writes are not for this peer, or its acknowledgements did not come.
                return self.coverage.count(Group::Fault, "aborted connect");
            };
            // The rules for a missed end of a resync do not mirror each other when one node corrects its identifiers before
            // the other compares them: both take themselves for the source, or only one sees a need for a resync. They find
            // out before a block moved, and start over.
            match illegal.unexpected {
                Some((Kind::Bitmap | Kind::CompressedBitmap, ConnState::Connected)) => {
                    return self.coverage.count(Group::Fault, "a source without a target");
                }
                // So do two nodes of which only one has always-asbp, when the other goes by what was said by hand.
                Some((Kind::SyncUuid, ConnState::SyncSource | ConnState::WfBitMapS)) => {
                    return self.coverage.count(Group::Fault, "two sources");
                }
                _ => {}
            }
            let why = illegal.text;
            self.fail(
                Checker::Sanity,
                format!("node {} takes the other engine's packets for illegal: {why}", ["A", "B"][node]),
            );
        }
    }

    /// Springs the ambush that waits for this.
    fn moment(&mut self, node: usize, moment: Moment) {
        let Some(ambush) = self.nodes[node].ambush.filter(|ambush| ambush.moment == moment) else { return };
        self.nodes[node].ambush = None;
        self.coverage.count(Group::Fault, &format!("ambush: {moment:?}"));
        for victim in [A, B] {
            let hit = match ambush.victims {
                Victims::Own => victim == node,
                Victims::Other => victim != node,
                Victims::Both => true,
            };
            if hit && self.nodes[victim].is_up() {
                self.nodes[victim].doomed = Some((ambush.after, ambush.power));
                self.after(u64::from(ambush.back[victim]) * 1_000_000, Due::Back { node: victim });
            }
        }
    }

    /// A node calls both disks good and connected: promises go over.
    fn called_equal(&mut self, from: usize, to: usize, volume: usize) {
        let Some(link) = self.links.last() else { return };
        let powers = [self.nodes[0].powers, self.nodes[1].powers];
        let unflushed = link.powers[to] == powers[to];
        self.unchecked_all[volume] = true;
        let since = self.resync_since[volume].max(link.since);
        // A target may be done when its source has lost the link already, and has written alone since.
        let it = &self.nodes[from];
        let parted = it.volumes[volume].seen.conn < ConnState::Connected;
        let bits = it.engine.as_ref().filter(|_| parted).and_then(|engine| engine.bitmap(Self::volume_nr(volume)));
        let frozen = self.frozen_blocks(from, volume);
        self.model.peer_is_good(volume, (from, to), since, unflushed, |blocks| {
            frozen.iter().any(|f| f.start < blocks.end && blocks.start < f.end)
                || bits.is_some_and(|bits| bits.any(blocks))
        });
    }

    /// A node's data begin to be replaced by the peer's.
    fn resync_begins(&mut self, node: usize, volume: usize) {
        let peer = 1 - node;
        let named = !self.nodes[node].volumes[volume].named.is_empty();
        let held = self.contents(peer, volume);
        if let Some(write) = self.model.discard(volume, node, peer, named, &held) {
            let name = ["A", "B"][node];
            let text = format!(
                "node {name} becomes target on volume {volume}, and write {} that it promised is discarded; nobody allowed that",
                write.0
            );
            self.fail(Checker::Discarded, text);
        }
        if self.is_primary(node, volume) {
            self.model.new_era(self.tick, volume);
        }
    }

    /// An Inconsistent disk became UpToDate without a resync.
    fn declared_good(&mut self, node: usize, volume: usize) {
        let vol = &self.nodes[node].volumes[volume];
        if vol.forcing == 0 && !self.skipping {
            if self.skips_late() {
                return;
            }
            let text = format!("the Inconsistent disk of volume {volume} became UpToDate, and nobody forced it");
            return self.fail(Checker::Status, text);
        }
        self.adopt(node, volume);
    }

    /// The volume's number for the engine.
    pub(super) fn volume_nr(volume: usize) -> VolumeNr {
        nr(volume)
    }
}

/// What an ambush may wait for in this change.
fn moments(old: &VolumeState, new: &VolumeState) -> impl Iterator<Item = Moment> {
    let syncing = |s: &VolumeState| (ConnState::SyncSource..=ConnState::PausedSyncT).contains(&s.conn);
    let there = |s: &VolumeState| s.conn >= ConnState::Connected;
    let disk = |s: &VolumeState| s.disk > DiskState::Failed;
    let primary = |s: &VolumeState| s.role == Role::Primary;
    [
        (!syncing(old) && syncing(new), Moment::ResyncBegins),
        (syncing(old) && !syncing(new) && there(new), Moment::ResyncEnds),
        (!there(old) && there(new), Moment::Connects),
        (there(old) && !there(new), Moment::Disconnects),
        (disk(old) && !disk(new), Moment::DiskGone),
        (!primary(old) && primary(new), Moment::Promoted),
        (primary(old) && !primary(new), Moment::Demoted),
    ]
    .into_iter()
    .filter_map(|(comes, moment)| comes.then_some(moment))
}
