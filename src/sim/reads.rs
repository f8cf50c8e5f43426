//! P2: whether what a read returned fits a linear history of the requests. Part of the model.
//!
//! Each value of a sector has a zone in the current era: from the first end to the last beginning of an operation with it. Two zones that
//! no order of operations explains are a violation (Gibbons and Korach).
//!
//! **What a write that is not acknowledged promises.** While it is under way it may be on one disk and not yet on the other, and
//! after an error it may stay so until the next write or resync. A sight of it therefore counts for later reads of the same disk
//! only, and a read that could have been served by either disk (the target of a resync reads marked blocks from the
//! source) leaves none. From the acknowledgement on every read must see it, whoever serves.
//!
//! **What two failures took.** A Primary that lost its disk and reads from the peer may find that the peer does not have
//! acknowledged writes: a power cut took them from its cache, or under protocols A and B they never came there. That begins a new
//! era, in which nothing goes back again.
//!
//! **Two Primaries.** While writes of both nodes meet, each disk shows them in an order of its own until both are acknowledged (a
//! write that is to be sent again is on its node's disk before and after the one that it met). So only reads that begin after the
//! acknowledgement of what they return are put in order.
//!
//! **Does not check**: the order of reads of different disks while a write is under way or after it failed; the reads of two
//! Primaries that are parted, against each other; with two Primaries, of writes that nobody acknowledged; which of several writes of zeroes a zero came from.

use super::model::{INITIAL, Model, NEVER, Tick, Write};
use super::sectors::{Candidate, Sight};
use super::stamp::{Content, WriteId};

/// A read that ended well.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The node that was asked.
    pub node: usize,
    /// Index of the volume.
    pub volume: usize,
    /// When it was asked.
    pub began: Tick,
    /// When it was answered.
    pub now: Tick,
    /// The node whose disk served it, where only one can have.
    pub disk: Option<usize>,
    /// Both nodes are Primary, each with a history of its own.
    pub split: bool,
    /// Both nodes may be Primary at the same time.
    pub two: bool,
}

impl Model {
    /// Whether a read may have returned this. Where only the node's own disk can have served it the node's promises count; else the
    /// peer's do as well.
    ///
    /// # Errors
    /// Words about what is wrong.
    pub fn check_read(&mut self, read: &Read, sector: u64, content: Content) -> Result<(), String> {
        let Read { node, volume, began, now, disk, split, two } = *read;
        let own = disk == Some(node);
        let state = self.volumes[volume].state(sector);
        let mut found = self.matching(state, content);
        found.retain(|id| {
            !self.replaced(state, *id, node, began) || (!own && !self.replaced(state, *id, 1 - node, began))
        });
        let fail = |why: &str| {
            Err(format!(
                "a read of sector {sector} of volume {volume} returned {}, {why}; promised is {}",
                self.tell(content),
                self.promised(state, node)
            ))
        };
        if found.is_empty() {
            return fail("which a later acknowledged write replaced or which was never there");
        }
        let (era, era_start) = (self.volumes[volume].era, self.volumes[volume].era_start);
        if split || found.len() > 1 || began < era_start || self.volumes[volume].is_untouched(sector) {
            return Ok(());
        }
        let id = found[0];
        // What was still under way then, on a node that lives, may come yet; and what a dead one sent to the other Primary, too.
        let settled = |write: &Write| write.invoked < era_start && write.ended <= era_start && (write.acked || !two);
        let is_old = |id: WriteId| settled(&self.writes[Self::at(id)]) || id == INITIAL;
        let firm = |id: WriteId| self.writes[Self::at(id)].acked || is_old(id);
        let old = is_old(id);
        if two && !old && (!firm(id) || self.writes[Self::at(id)].ended >= began) {
            return Ok(());
        }
        if old
            && let Some((seen_in, other)) = state.chosen
            && seen_in == era
            && other != id
        {
            let other = self.tell(Content::Write(other));
            return fail(&format!("but {other} was read before, and both are from before the last crash or failover"));
        }
        let zone = |c: &Candidate| {
            let write = &self.writes[Self::at(c.write)];
            if c.era != era {
                return (NEVER, if write.invoked < era_start { 0 } else { write.invoked });
            }
            match c.sight.filter(|sight| disk == Some(sight.disk)) {
                Some(sight) => (c.first_end.min(sight.first_end), c.last_begin.max(sight.last_begin)),
                None => (c.first_end, c.last_begin),
            }
        };
        let mut mine = state.candidates.iter().find(|c| c.write == id).map_or((NEVER, 0), zone);
        if old {
            mine.0 = mine.0.min(era_start);
        }
        mine = (mine.0.min(now), mine.1.max(began));
        for other in state.candidates.iter().filter(|c| c.write != id && c.era == era) {
            let Some(why) = conflict(mine, zone(other)) else { continue };
            let write = &self.writes[Self::at(other.write)];
            let gone = write.acked && !write.kept[1 - node][0] && (write.lost[1 - node] || !write.protocol_c);
            if gone && !own {
                self.new_era(now, volume);
                return Ok(());
            }
            let other = self.tell(Content::Write(other.write));
            return fail(&format!("{why} {other}"));
        }
        let (firm, invoked) = (firm(id), self.writes[Self::at(id)].invoked);
        let state = self.volumes[volume].state_mut(sector);
        if old {
            state.chosen = Some((era, id));
        }
        let Some(c) = state.candidates.iter_mut().find(|c| c.write == id) else { return Ok(()) };
        if firm {
            (c.first_end, c.last_begin, c.era) = (mine.0, mine.1, era);
        } else if let Some(disk) = disk {
            if c.era != era {
                (c.first_end, c.last_begin, c.era) = (NEVER, invoked, era);
            }
            c.sight = Some(Sight { disk, first_end: mine.0, last_begin: mine.1 });
        }
        Ok(())
    }
}

/// Two values' zones that no order of operations explains.
fn conflict(a: (Tick, Tick), b: (Tick, Tick)) -> Option<&'static str> {
    let forward = |z: (Tick, Tick)| z.0 < z.1;
    let (low, high) = (|z: (Tick, Tick)| z.0.min(z.1), |z: (Tick, Tick)| z.0.max(z.1));
    match (forward(a), forward(b)) {
        (true, true) if low(a) < high(b) && low(b) < high(a) => Some("which takes turns with"),
        (true, false) if low(b) > low(a) && high(b) < high(a) => Some("read before and after the whole of"),
        (false, true) if low(a) > low(b) && high(a) < high(b) => Some("which lies between two sights of"),
        _ => None,
    }
}
