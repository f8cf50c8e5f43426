//! What happens on one node: its clients, its operator, its faults, its state.
//!
//! A step that needs an answer waits for it in virtual time and ends the story if none comes.

use super::Story;
use crate::engine::event::{Command, CommandId, RequestId};
use crate::sim::plan::{ClientOp, DiskFault, Happening, Order};
use crate::sim::stamp::{Content, WriteId};
use crate::sim::world::Asked;
use crate::wire::state::{ConnState, DiskState, Role};

/// What happens on one node, and one volume of it.
#[derive(Debug)]
pub struct On<'a> {
    pub(super) story: &'a mut Story,
    pub(super) node: usize,
    pub(super) volume: usize,
}

impl On<'_> {
    /// Another volume than the first.
    #[must_use]
    pub const fn vol(mut self, volume: usize) -> Self {
        self.volume = volume;
        self
    }

    // --- clients ---

    fn ask(&mut self, op: ClientOp, start: u64, count: u64) -> (RequestId, Option<WriteId>) {
        let before = self.story.world.next_id;
        self.story.world.client(op, self.volume, start, count, self.node);
        self.story.look();
        let asked = self.story.world.answers.as_ref().and_then(|answers| answers.asked);
        match asked {
            Some((id, Asked::Write(write))) if id.0 > before => (id, Some(write)),
            Some((id, _)) if id.0 > before => (id, None),
            _ => self.story.stop(&format!(
                "there is no client for {op:?}: Primary is {:?}",
                self.story.world.primary(self.volume)
            )),
        }
    }

    fn answer(&mut self, id: RequestId) -> String {
        let answer = |s: &Story| s.world.answers.as_ref().and_then(|answers| answers.ended.get(&id).cloned());
        self.story.until("a client's request is answered", |s| answer(s).is_some());
        answer(self.story).unwrap_or_default()
    }

    fn insist(&mut self, op: ClientOp, start: u64, count: u64) -> Option<WriteId> {
        let (id, write) = self.ask(op, start, count);
        let answer = self.answer(id);
        if answer != "ok" {
            self.story.stop(&format!("{op:?} {start}+{count} was answered with {answer}"));
        }
        write
    }

    /// A client writes and is told that it worked.
    pub fn write(&mut self, start: u64, count: u64) -> WriteId {
        self.insist(ClientOp::Write { fua: false }, start, count).unwrap_or(WriteId(0))
    }

    /// A client writes with force unit access and is told that it worked.
    pub fn write_fua(&mut self, start: u64, count: u64) -> WriteId {
        self.insist(ClientOp::Write { fua: true }, start, count).unwrap_or(WriteId(0))
    }

    /// A client writes; what is answered.
    pub fn try_write(&mut self, start: u64, count: u64) -> (WriteId, String) {
        let (id, write) = self.ask(ClientOp::Write { fua: false }, start, count);
        (write.unwrap_or(WriteId(0)), self.answer(id))
    }

    /// A client asks for something and nobody waits for the answer.
    pub fn start(&mut self, op: ClientOp, start: u64, count: u64) -> WriteId {
        self.ask(op, start, count).1.unwrap_or(WriteId(0))
    }

    /// A client writes and nobody waits for the answer.
    pub fn start_write(&mut self, start: u64, count: u64) -> WriteId {
        self.start(ClientOp::Write { fua: false }, start, count)
    }

    /// A client flushes and is told that it worked.
    pub fn flush(&mut self) {
        self.insist(ClientOp::Flush, 0, 0);
    }

    /// A client discards and is told that it worked.
    pub fn discard(&mut self, start: u64, count: u64) -> WriteId {
        self.insist(ClientOp::Discard, start, count).unwrap_or(WriteId(0))
    }

    /// A client writes zeroes and is told that it worked.
    pub fn zeroes(&mut self, start: u64, count: u64) -> WriteId {
        self.insist(ClientOp::Zeroes { fua: false, unmap: true }, start, count).unwrap_or(WriteId(0))
    }

    /// What a client reads, sector by sector; it is also compared with the history.
    pub fn read(&mut self, start: u64, count: u64) -> Vec<Content> {
        self.insist(ClientOp::Read, start, count);
        self.story.world.answers.as_ref().map(|answers| answers.read.clone()).unwrap_or_default()
    }

    /// A client reads nothing but this write.
    pub fn reads(&mut self, start: u64, count: u64, write: WriteId) {
        let found = self.read(start, count);
        if found.iter().any(|content| *content != Content::Write(write)) {
            self.story.stop(&format!("a read of {start}+{count} returned {found:?}, expected was {write:?}"));
        }
    }

    /// A client reads; what is answered.
    pub fn try_read(&mut self, start: u64, count: u64) -> String {
        let (id, _) = self.ask(ClientOp::Read, start, count);
        self.answer(id)
    }

    // --- the operator ---

    /// Commands something; what it comes to, as the trace says it: the error's words.
    ///
    /// # Errors
    /// The engine refused.
    pub fn order(&mut self, order: Order) -> Result<(), String> {
        let before = self.story.world.next_id;
        self.story.world.order(self.node, self.volume, order);
        let last = self.story.world.next_id;
        let node = self.node;
        let ids = (before + 1..=last).rev().map(CommandId);
        let given = |id: &_| {
            let it = &self.story.world.nodes[node];
            it.commands.contains_key(id) || it.results.contains_key(id)
        };
        let Some(id) = ids.into_iter().find(given) else {
            self.story.look();
            return Err(format!("nothing was commanded by {order:?} on volume {}", self.volume));
        };
        self.story.until("a command is answered", |s| s.world.nodes[node].results.contains_key(&id));
        match self.story.world.nodes[node].results.get(&id) {
            Some(Err(error)) => Err(format!("{error:?}")),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Commands something and nobody waits for the answer.
    pub fn start_order(&mut self, order: Order) {
        self.story.world.order(self.node, self.volume, order);
        self.story.look();
    }

    /// Commands something that must work.
    pub fn orders(&mut self, order: Order) {
        if let Err(error) = self.order(order) {
            self.story.stop(&format!("{order:?} came to {error}"));
        }
    }

    /// Commands something that must be refused; in which words.
    pub fn is_refused(&mut self, order: Order) -> String {
        match self.order(order) {
            Err(error) => error,
            Ok(()) => self.story.stop(&format!("{order:?} was not refused")),
        }
    }

    /// primary.
    pub fn promote(&mut self) {
        self.orders(Order::Primary { force: false });
    }

    /// primary --force.
    pub fn force(&mut self) {
        self.orders(Order::Primary { force: true });
    }

    /// secondary, after the clients closed the device.
    pub fn demote(&mut self) {
        self.orders(Order::Secondary { close: true });
    }

    /// attach.
    pub fn attach(&mut self) {
        self.orders(Order::Attach);
    }

    /// detach.
    pub fn detach(&mut self) {
        self.orders(Order::Detach { force: false });
    }

    /// new-current-uuid --clear-bitmap: the disks are blank, and there is nothing to sync.
    pub fn skip_sync(&mut self) {
        let clear = Command::NewCurrentUuid { clear_bitmap: true };
        let world = &mut self.story.world;
        world.skipping = true;
        world.command(self.node, self.volume, Order::NewUuid, clear);
        self.story.look();
    }

    /// connect.
    pub fn connect(&mut self) {
        self.orders(Order::Connect { discard: false });
    }

    /// connect --discard-my-data.
    pub fn connect_discarding(&mut self) {
        self.orders(Order::Connect { discard: true });
    }

    /// disconnect.
    pub fn disconnect(&mut self) {
        self.orders(Order::Disconnect { force: false });
    }

    // --- faults ---

    /// The process dies now.
    pub fn crash(&mut self) {
        self.dies(0, false);
    }

    /// The power fails now.
    pub fn power_cut(&mut self) {
        self.dies(0, true);
    }

    /// The node dies after so many of its next actions.
    pub fn dies(&mut self, after: u32, power: bool) {
        let node = self.node;
        self.story.play(Happening::Crash { node, power, after });
    }

    /// The node starts: volumes, disks, connection.
    pub fn restart(&mut self) {
        let node = self.node;
        self.story.play(Happening::Restart { node, fuse: None, connect_first: false });
    }

    /// The node starts, and its power fails after so many writes of its recovery.
    pub fn restart_fused(&mut self, writes: u32) {
        let node = self.node;
        self.story.play(Happening::Restart { node, fuse: Some(writes), connect_first: false });
    }

    /// The next operations of a kind fail.
    pub fn fail(&mut self, kind: DiskFault, count: u32) {
        let (node, volume) = (self.node, self.volume);
        self.story.play(Happening::DiskFault { node, volume, kind, count });
    }

    /// The disks answer nothing for so many milliseconds.
    pub fn stall(&mut self, ms: u64) {
        let node = self.node;
        self.story.play(Happening::DiskStall { node, ms });
    }

    /// The process stands still for so many milliseconds.
    pub fn freeze(&mut self, ms: u64) {
        let node = self.node;
        self.story.play(Happening::Freeze { node, ms });
    }

    /// The node's clock jumps ahead by so many milliseconds.
    pub fn clock(&mut self, ms: u64) {
        let node = self.node;
        self.story.play(Happening::Clock { node, ms });
    }

    // --- what is so ---

    /// The state in words: connection, roles, disks.
    #[must_use]
    pub fn state(&self) -> String {
        self.story.state(self.node, self.volume)
    }

    /// The state is this one.
    pub fn is(&mut self, state: &str) {
        let found = self.state();
        if found != state {
            self.story.stop(&format!("{} is {found}, expected was {state}", ["A", "B"][self.node]));
        }
    }

    /// Until the state begins with these words.
    pub fn becomes(&mut self, state: &str) {
        let (node, volume) = (self.node, self.volume);
        let what = format!("{} becomes {state}", ["A", "B"][node]);
        self.story.until(&what, |s| s.state(node, volume).starts_with(state));
    }

    /// Until the handshake of a new link has begun.
    pub fn meets(&mut self) {
        let node = self.node;
        self.story.until("the nodes meet", |s| s.world.nodes[node].conn >= ConnState::WfReportParams);
    }

    /// The own disk.
    #[must_use]
    pub fn disk(&self) -> DiskState {
        self.story.world.nodes[self.node].volumes[self.volume].seen.disk
    }

    /// The connection.
    #[must_use]
    pub fn conn(&self) -> ConnState {
        self.story.world.nodes[self.node].volumes[self.volume].seen.conn
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.story.world.nodes[self.node].volumes[self.volume].seen.role
    }

    /// Whether the process runs.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.story.world.nodes[self.node].is_up()
    }

    /// Blocks that are out of sync; 0 without a disk.
    #[must_use]
    pub fn bits(&self) -> u64 {
        self.story.bits(self.node, self.volume)
    }

    /// Whether the block of this sector is out of sync.
    #[must_use]
    pub fn bit(&self, sector: u64) -> bool {
        self.story.bit(self.node, self.volume, sector)
    }
}
