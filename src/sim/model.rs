//! What the clients were promised: for every sector the writes that it may still show, and for every write on which node it
//! must be found, after which kind of fault.
//!
//! Owns the history of all client requests. Takes in: invocations and completions of requests, and the events that
//! change promises (power cuts, crashes, a peer known to be good, a discarded branch). Gives out: whether a sector may
//! hold what it holds, on a node or in a reply to a read.
//!
//! **Promises.** An acknowledged write is *kept* by the node that served it if its disk was good, and under protocol C by a peer
//! that this node called good; under B until the peer's process dies or its disk has it; under A once nothing was under
//! way any more. A flush (or FUA) makes the promise outlive a power cut of that node. A resync gives the target the
//! source's promises; a power cut takes those that were not flushed.
//!
//! **Does not check**: order between different sectors; anything about a node whose disk is not UpToDate; which of several
//! writes of zeroes a zero came from.

use std::collections::BTreeMap;
use std::ops::Range;

use super::sectors::{Candidate, SectorState, VolumeModel};
use super::stamp::{Content, WriteId};

/// A moment: the number of the simulator's step.
pub type Tick = u64;

/// Never.
pub(super) const NEVER: Tick = Tick::MAX;
/// The contents at the beginning (or as adopted from a disk).
pub(super) const INITIAL: WriteId = WriteId(0);

/// Which fault a promise outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The death of the node's process.
    Process,
    /// A power cut of the node.
    Power,
}

/// One client's write, discard or write of zeroes.
#[derive(Clone, Debug)]
pub struct Write {
    /// The node that served it.
    pub node: usize,
    /// Index of the volume.
    pub volume: usize,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub count: u64,
    /// It leaves zeroes.
    pub zero: bool,
    /// Durable at its end.
    pub fua: bool,
    /// The protocol was C.
    pub protocol_c: bool,
    pub(super) invoked: Tick,
    pub(super) ended: Tick,
    pub(super) acked: bool,
    /// By node: kept after a crash of its process, kept after a power cut.
    pub(super) kept: [[bool; 2]; 2],
    /// By node: was kept, and a power cut or crash took it.
    pub(super) lost: [bool; 2],
    /// Protocol B: the peer only said that it has received it.
    received_only: bool,
    powers: [u64; 2],
    failures: [u64; 2],
}

/// What the model has to know about both nodes when a request ends.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// The serving node's own disk is good.
    pub own_good: bool,
    /// The serving node calls the peer connected and good.
    pub peer_good: bool,
    /// The peer has it, and the own disk, which has just been given up, does not: it is not promised, nor that it is gone.
    pub only_on_peer: bool,
    /// Protocol letter, as configured on the serving node.
    pub protocol: char,
    /// The other node is Primary as well.
    pub peer_primary: bool,
    /// So it is, and its end of the link stands: what was sent to it may come there yet, over what its clients write meanwhile.
    pub may_come_late: bool,
    /// Power cuts so far, by node.
    pub powers: [u64; 2],
    /// Failures of the volume's disk so far, by node.
    pub failures: [u64; 2],
}

/// A read that is under way.
#[derive(Clone, Debug)]
struct OpenRead {
    volume: usize,
    sectors: Range<u64>,
    began: Tick,
}

/// The history.
#[derive(Debug)]
pub struct Model {
    pub(super) writes: Vec<Write>,
    pub(super) volumes: Vec<VolumeModel>,
    /// Writes that ended without an acknowledgement, and may be on their way to the other Primary.
    late: Vec<WriteId>,
    /// Reads under way, by the number of their request.
    reads: BTreeMap<u64, OpenRead>,
}

impl Model {
    /// No writes yet; volumes of these sizes in sectors, all zeroes.
    #[must_use]
    pub fn new(sizes: &[u64]) -> Self {
        let initial = Write {
            node: 0,
            volume: 0,
            start: 0,
            count: 0,
            zero: true,
            fua: true,
            protocol_c: true,
            invoked: 0,
            ended: 0,
            acked: true,
            kept: [[true; 2]; 2],
            lost: [false; 2],
            received_only: false,
            powers: [0; 2],
            failures: [0; 2],
        };
        let volume = |size: &u64| VolumeModel {
            index: vec![0; usize::try_from(*size).unwrap_or(0)],
            states: vec![SectorState::default()],
            sectors: Vec::new(),
            writes: Vec::new(),
            era: 0,
            era_start: 0,
        };
        Self {
            writes: vec![initial],
            volumes: sizes.iter().map(volume).collect(),
            late: Vec::new(),
            reads: BTreeMap::new(),
        }
    }

    pub(super) fn at(id: WriteId) -> usize {
        usize::try_from(id.0).unwrap_or(usize::MAX)
    }

    /// The write of this number.
    #[must_use]
    pub fn write(&self, id: WriteId) -> Option<&Write> {
        self.writes.get(Self::at(id))
    }

    /// A client's write begins.
    #[expect(clippy::too_many_arguments, reason = "all of them are what a write is")]
    pub fn invoke(
        &mut self,
        now: Tick,
        node: usize,
        volume: usize,
        start: u64,
        count: u64,
        zero: bool,
        fua: bool,
        scene: &Scene,
    ) -> WriteId {
        let id = WriteId(self.writes.len() as u64);
        self.writes.push(Write {
            node,
            volume,
            start,
            count,
            zero,
            fua,
            protocol_c: scene.protocol == 'C',
            invoked: now,
            ended: NEVER,
            acked: false,
            kept: [[false; 2]; 2],
            lost: [false; 2],
            received_only: false,
            powers: scene.powers,
            failures: scene.failures,
        });
        let vol = &mut self.volumes[volume];
        vol.writes.push(id);
        let era = vol.era;
        for sector in start..start + count {
            let state = vol.state_mut(sector);
            state.candidates.push(Candidate::new(id, now, era));
        }
        id
    }

    /// A client's write ended: acknowledged, or with an error.
    pub fn end_write(&mut self, now: Tick, id: WriteId, ok: bool, scene: &Scene) {
        if !ok {
            return self.abandon(now, id, scene.may_come_late);
        }
        let Some(write) = self.writes.get_mut(Self::at(id)) else { return };
        write.ended = now;
        write.acked = true;
        let (own, peer) = (write.node, 1 - write.node);
        let undisturbed = |n: usize| write.powers[n] == scene.powers[n];
        let local = scene.own_good && undisturbed(own);
        let remote = scene.peer_good
            && undisturbed(peer)
            && scene.protocol != 'A'
            // The word that it was received may come after the failure of the disk that did not take it.
            && (scene.protocol != 'B' || write.failures[peer] == scene.failures[peer])
            && write.protocol_c == (scene.protocol == 'C');
        write.kept[own] = [local, local && write.fua];
        write.kept[peer] = [remote, remote && write.fua && scene.protocol == 'C'];
        // What the peer confirmed went with its power while this node's half was under way.
        write.lost[peer] |= scene.peer_good && !undisturbed(peer);
        write.lost[peer] |= scene.only_on_peer;
        write.received_only = scene.protocol == 'B';
        let (volume, start, count) = (write.volume, write.start, write.count);
        let vol = &mut self.volumes[volume];
        let era = vol.era;
        for sector in start..start + count {
            let state = vol.state_mut(sector);
            if let Some(c) = state.candidates.iter_mut().find(|c| c.write == id && c.era == era) {
                c.first_end = c.first_end.min(now);
            }
            Self::prune(&self.writes, &self.reads, volume, sector, state);
        }
    }

    /// A read begins. Until it ends it may return what was there when it began: a write that is acknowledged meanwhile, durable or
    /// not, was promised to reads that begin after that only.
    pub fn begin_read(&mut self, now: Tick, request: u64, volume: usize, start: u64, count: u64) {
        self.reads.insert(request, OpenRead { volume, sectors: start..start + count, began: now });
    }

    /// A read is over, whatever became of it; does nothing for other requests.
    pub fn end_read(&mut self, request: u64) {
        let Some(OpenRead { volume, sectors, .. }) = self.reads.remove(&request) else { return };
        for sector in sectors {
            let vol = &mut self.volumes[volume];
            if !vol.is_untouched(sector) {
                Self::prune(&self.writes, &self.reads, volume, sector, vol.state_mut(sector));
            }
        }
    }

    /// Forgets values that cannot come back on either node, whatever happens, and that no read under way may have met.
    fn prune(writes: &[Write], reads: &BTreeMap<u64, OpenRead>, volume: usize, sector: u64, state: &mut SectorState) {
        if state.candidates.len() < 2 {
            return;
        }
        let here = reads.values().filter(|read| read.volume == volume && read.sectors.contains(&sector));
        let first_read = here.map(|read| read.began).min().unwrap_or(NEVER);
        let replaced = |old: WriteId, node: usize, list: &[Candidate]| {
            let old = &writes[Self::at(old)];
            list.iter().any(|c| {
                let new = &writes[Self::at(c.write)];
                new.kept[node][1] && old.ended < new.invoked && new.ended < first_read
            })
        };
        let list = state.candidates.clone();
        state.candidates.retain(|c| !(replaced(c.write, 0, &list) && replaced(c.write, 1, &list)));
    }

    /// A flush that began at `began` ended well on `node`.
    pub fn end_flush(&mut self, node: usize, volume: usize, began: Tick, scene: &Scene, powers_then: [u64; 2]) {
        let peer = 1 - node;
        let own_undisturbed = scene.powers[node] == powers_then[node];
        let remote = scene.protocol == 'C' && scene.peer_good && scene.powers[peer] == powers_then[peer];
        for id in &self.volumes[volume].writes {
            let write = &mut self.writes[Self::at(*id)];
            if write.acked && write.ended < began {
                if write.kept[node][0] && scene.own_good && own_undisturbed {
                    write.kept[node][1] = true;
                }
                // A peer that is Primary, too, flushes its own clients' writes for its own clients' flushes.
                let asked = write.node == node || !scene.peer_primary;
                if write.kept[peer][0] && remote && write.protocol_c && asked {
                    write.kept[peer][1] = true;
                }
            }
        }
    }

    /// A write ends with an error, or without an answer because its node died. One that `may_come_late` to the other Primary has not
    /// ended before that node's end of the link has.
    pub fn abandon(&mut self, now: Tick, id: WriteId, may_come_late: bool) {
        if may_come_late {
            self.late.push(id);
        } else if let Some(write) = self.writes.get_mut(Self::at(id)) {
            write.ended = write.ended.min(now);
        }
    }

    /// `node` takes nothing more from the link: what the other node sent has come to it, or never will.
    pub fn link_ended(&mut self, now: Tick, node: usize, volume: usize) {
        let writes = &mut self.writes;
        self.late.retain(|id| match writes.get_mut(Self::at(*id)) {
            Some(write) if write.node != node && write.volume == volume => {
                write.ended = write.ended.min(now);
                false
            }
            _ => true,
        });
    }

    /// Contents may go back to anything that is still promised: begins a new era.
    pub fn new_era(&mut self, now: Tick, volume: usize) {
        let vol = &mut self.volumes[volume];
        vol.era += 1;
        vol.era_start = now;
    }

    /// A node's power failed: what was not flushed there is no longer promised there.
    pub fn power_cut(&mut self, node: usize) {
        for write in &mut self.writes[1..] {
            if write.kept[node][0] && !write.kept[node][1] {
                write.kept[node][0] = false;
                write.lost[node] = true;
            }
        }
    }

    /// A node's disk is known to be bad: nothing is promised on it.
    pub fn gone_bad(&mut self, volume: usize, node: usize) {
        for id in &self.volumes[volume].writes {
            let write = &mut self.writes[Self::at(*id)];
            write.lost[node] |= write.kept[node][0];
            write.kept[node] = [false; 2];
        }
    }

    /// A node's disk failed: under protocol B what it had only received may never have come there.
    pub fn disk_failed(&mut self, volume: usize, node: usize) {
        for id in &self.volumes[volume].writes {
            let write = &mut self.writes[Self::at(*id)];
            if write.received_only && write.node != node && write.kept[node][0] && !write.kept[node][1] {
                write.kept[node][0] = false;
                write.lost[node] = true;
            }
        }
    }

    /// A node's process died: under protocol B what it had only received is gone.
    pub fn process_crash(&mut self, node: usize) {
        for write in &mut self.writes[1..] {
            if write.received_only && write.node != node && write.kept[node][0] && !write.kept[node][1] {
                write.kept[node][0] = false;
                write.lost[node] = true;
            }
        }
    }

    /// Nothing is under way and `from` calls `to` connected and good: what `from` keeps, `to` keeps. Not what is `marked`: a source that
    /// passes write errors on stays UpToDate, and the other node knows by the bits what it lacks. Such blocks are not checked there.
    pub fn drained(&mut self, volume: usize, from: usize, to: usize, marked: impl Fn(Range<u64>) -> bool) {
        for id in &self.volumes[volume].writes {
            let write = &mut self.writes[Self::at(*id)];
            let blocks = write.start / 8..(write.start + write.count).div_ceil(8);
            if write.acked && write.kept[from][0] && !marked(blocks) {
                write.kept[to][0] = true;
                write.received_only = false;
            }
        }
    }

    /// `to` has come to be called good: the resync (or the comparison) gave it everything that `from` keeps. Under A and B only
    /// what ended before `since` (the beginning of the resync) went that way, and nothing that is `marked`. `unflushed` says
    /// whether also promises that a power cut of `to` takes are passed on.
    pub fn peer_is_good(
        &mut self,
        volume: usize,
        (from, to): (usize, usize),
        since: Tick,
        unflushed: bool,
        marked: impl Fn(Range<u64>) -> bool,
    ) {
        for id in &self.volumes[volume].writes {
            let write = &mut self.writes[Self::at(*id)];
            let blocks = write.start / 8..(write.start + write.count).div_ceil(8);
            if write.acked && (write.protocol_c || write.ended < since) && !marked(blocks) {
                write.kept[to][0] |= write.kept[from][0] && unflushed;
                if write.kept[from][1] {
                    write.kept[to] = [true; 2];
                }
            }
        }
    }

    /// `target` begins to take over `source`'s data; what only the target keeps is discarded. Gives the first write that
    /// nobody allowed to be discarded. `held` is what the source's disk shows: a write that reached it is not discarded, though
    /// nobody called it good yet when the write ended.
    pub fn discard(
        &mut self,
        volume: usize,
        target: usize,
        source: usize,
        named: bool,
        held: &BTreeMap<u64, Content>,
    ) -> Option<WriteId> {
        let mut first = None;
        for at in 0..self.volumes[volume].writes.len() {
            let id = self.volumes[volume].writes[at];
            let write = &self.writes[Self::at(id)];
            if !write.kept[target][0] || write.kept[source][0] {
                continue;
            }
            if self.is_held(volume, id, held) {
                let write = &mut self.writes[Self::at(id)];
                write.kept[source][0] = true;
                write.kept[target] = [false; 2];
                continue;
            }
            let excused = named
                || write.lost[source]
                || !write.protocol_c
                || !self.any_sector_visible(volume, id, target, source);
            if !excused && first.is_none() {
                first = Some(id);
            }
            self.writes[Self::at(id)].kept[target] = [false; 2];
        }
        first
    }

    /// Whether these contents show the write, or what did not end before it began, on all its sectors.
    fn is_held(&self, volume: usize, id: WriteId, held: &BTreeMap<u64, Content>) -> bool {
        let write = &self.writes[Self::at(id)];
        (write.start..write.start + write.count).all(|sector| {
            let content = held.get(&sector).copied().unwrap_or(Content::Zero);
            let shown = self.matching(self.volumes[volume].state(sector), content);
            shown.iter().any(|shown| self.writes[Self::at(*shown)].ended > write.invoked)
        })
    }

    /// Whether a sector of the write still shows it on the target, and the source has nothing later.
    fn any_sector_visible(&self, volume: usize, id: WriteId, target: usize, source: usize) -> bool {
        let write = &self.writes[Self::at(id)];
        (write.start..write.start + write.count).any(|sector| {
            let state = self.volumes[volume].state(sector);
            !self.replaced(state, id, target, NEVER) && !self.replaced(state, id, source, NEVER)
        })
    }

    /// Whether a promised write that began after `old` ended replaced it on `node`, acknowledged before `before`.
    pub(super) fn replaced(&self, state: &SectorState, old: WriteId, node: usize, before: Tick) -> bool {
        let old = &self.writes[Self::at(old)];
        state.candidates.iter().any(|c| {
            let new = &self.writes[Self::at(c.write)];
            new.kept[node][0] && new.ended < before && old.ended < new.invoked
        })
    }

    /// The candidates that a sector's contents may stand for.
    pub(super) fn matching(&self, state: &SectorState, content: Content) -> Vec<WriteId> {
        match content {
            Content::Alien => Vec::new(),
            Content::Write(id) => state.candidates.iter().filter(|c| c.write == id).map(|c| c.write).collect(),
            Content::Zero if state.candidates.is_empty() => vec![INITIAL],
            Content::Zero => {
                state.candidates.iter().filter(|c| self.writes[Self::at(c.write)].zero).map(|c| c.write).collect()
            }
        }
    }

    /// Whether `node`'s disk may hold this now.
    ///
    /// # Errors
    /// Words about what is wrong.
    pub fn check_disk(&self, node: usize, volume: usize, sector: u64, content: Content) -> Result<(), String> {
        let state = self.volumes[volume].state(sector);
        let found = self.matching(state, content);
        if found.iter().any(|id| !self.replaced(state, *id, node, NEVER)) {
            return Ok(());
        }
        Err(format!(
            "sector {sector} of volume {volume} holds {}, promised is {}",
            self.tell(content),
            self.promised(state, node)
        ))
    }

    /// A node's contents become the truth, whatever they are: the operator forced an Inconsistent disk to be good. `other` is
    /// what the other node holds: it may be good as well, and win when the two meet; so may what a power cut leaves of it, so values that
    /// no durable write replaced there are not checked any more.
    pub fn adopt(
        &mut self,
        now: Tick,
        node: usize,
        volume: usize,
        contents: &BTreeMap<u64, Content>,
        other: &BTreeMap<u64, Content>,
    ) {
        let touched: Vec<u64> = self.volumes[volume].touched();
        for sector in touched {
            let shown = |contents: &BTreeMap<u64, Content>| match contents.get(&sector) {
                Some(Content::Write(id)) => *id,
                // Zeroes that were written may be the ones; the initial ones do as well.
                Some(Content::Zero | Content::Alien) | None => INITIAL,
            };
            let (write, elsewhere) = (shown(contents), shown(other));
            let era = self.volumes[volume].era;
            let earlier = self.may_come_back(self.volumes[volume].state(sector), 1 - node);
            let state = self.volumes[volume].state_mut(sector);
            // What is still under way may come later.
            let open: Vec<Candidate> =
                state.candidates.iter().filter(|c| self.writes[Self::at(c.write)].ended == NEVER).copied().collect();
            state.candidates = vec![Candidate::new(write, 0, era)];
            if elsewhere != write {
                state.candidates.push(Candidate::new(elsewhere, 0, era));
            }
            state.candidates.extend(open.into_iter().filter(|c| c.write != write && c.write != elsewhere));
            let new: Vec<WriteId> =
                earlier.into_iter().filter(|id| state.candidates.iter().all(|c| c.write != *id)).collect();
            state.candidates.extend(new.into_iter().map(|id| Candidate::new(id, 0, era)));
            state.chosen = None;
        }
        for id in self.volumes[volume].writes.clone() {
            let write = &mut self.writes[Self::at(id)];
            if write.ended <= now {
                // Found or not, nothing of the past is promised any more but what the disk shows.
                write.kept[1 - node] = [false; 2];
                write.kept[node] = [false; 2];
            }
        }
        self.new_era(now, volume);
    }

    /// Values that a power cut of the node may still bring back: no durable write there replaced them.
    fn may_come_back(&self, state: &SectorState, node: usize) -> Vec<WriteId> {
        let durable = |old: WriteId| {
            let ended = self.writes[Self::at(old)].ended;
            state.candidates.iter().any(|c| {
                let new = &self.writes[Self::at(c.write)];
                new.kept[node][1] && ended < new.invoked
            })
        };
        state.candidates.iter().map(|c| c.write).filter(|id| !durable(*id)).collect()
    }

    /// Whether a client ever wrote the sector.
    #[must_use]
    pub fn is_touched(&self, volume: usize, sector: u64) -> bool {
        !self.volumes[volume].is_untouched(sector)
    }

    /// Sectors that clients ever wrote, of a volume.
    #[must_use]
    pub fn touched(&self, volume: usize) -> Vec<u64> {
        self.volumes[volume].touched()
    }

    pub(super) fn tell(&self, content: Content) -> String {
        match content {
            Content::Zero => String::from("zeroes"),
            Content::Alien => String::from("something that nobody wrote there"),
            Content::Write(INITIAL) => String::from("the initial contents"),
            Content::Write(id) => match self.write(id) {
                Some(w) => {
                    format!("write {} ({}+{}{})", id.0, w.start, w.count, if w.acked { ", acknowledged" } else { "" })
                }
                None => format!("write {}, which does not exist", id.0),
            },
        }
    }

    pub(super) fn promised(&self, state: &SectorState, node: usize) -> String {
        let list: Vec<String> = state
            .candidates
            .iter()
            .filter(|c| !self.replaced(state, c.write, node, NEVER))
            .map(|c| self.tell(Content::Write(c.write)))
            .collect();
        if let Some(last) = list.last_chunk::<8>().filter(|_| list.len() > 8) {
            return format!("one of {} older ones or {}", list.len() - 8, last.join(" or "));
        }
        if !list.is_empty() {
            return list.join(" or ");
        }
        let all = state.candidates.iter().map(|c| {
            let write = &self.writes[Self::at(c.write)];
            format!(
                "{} from {} to {} kept {:?}",
                self.tell(Content::Write(c.write)),
                write.invoked,
                write.ended,
                write.kept
            )
        });
        format!("nothing: {}", all.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::reads::Read;
    use super::*;

    const SCENE: Scene = Scene {
        own_good: true,
        peer_good: true,
        only_on_peer: false,
        protocol: 'C',
        peer_primary: false,
        may_come_late: false,
        powers: [0; 2],
        failures: [0; 2],
    };

    fn read(model: &mut Model, began: Tick, now: Tick, write: WriteId) -> Result<(), String> {
        let read = Read { node: 0, volume: 0, began, now, disk: Some(0), split: false, two: false };
        model.check_read(&read, 3, Content::Write(write))
    }

    #[test]
    fn what_is_replaced_durably_under_a_read_may_still_be_returned_by_it_and_by_no_later_one() {
        let mut model = Model::new(&[64]);
        let old = model.invoke(1, 0, 0, 0, 8, false, true, &SCENE);
        model.end_write(2, old, true, &SCENE);
        let new = model.invoke(3, 0, 0, 0, 8, false, true, &SCENE);
        model.begin_read(4, 70, 0, 0, 8);
        model.begin_read(4, 71, 0, 0, 8);
        model.end_write(5, new, true, &SCENE);
        model.begin_read(6, 72, 0, 0, 8);
        assert_eq!(read(&mut model, 4, 7, old), Ok(()));
        model.end_read(70);
        assert!(read(&mut model, 6, 8, old).is_err());
        assert_eq!(read(&mut model, 6, 8, new), Ok(()));
        // The new one was seen by a read that ended before this one began.
        assert!(read(&mut model, 9, 10, old).is_err());
        model.end_read(71);
        model.end_read(72);
        assert!(read(&mut model, 4, 11, old).is_err(), "forgotten when no read is under way that may have met it");
    }
}
