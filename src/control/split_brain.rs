//! What is remembered of split brains, and what `drbdctl split-brain` asks for: plain data.
//!
//! [`Memory`] is kept in the state directory, one file a resource; times are seconds since 1970, stamped by the node because
//! the engine has no clock. Blocks are 4 KiB; identifiers are 16 hexadecimal digits.

use serde::{Deserialize, Serialize};

use crate::engine::divergence::{Divergence, Side as EngineSide};
use crate::engine::split_brain::SbDecision;
use crate::units::{GenId, VolumeNr};
use crate::wire::state::{ConnState, DiskState, Role};

/// Generations that are remembered; arbitrary, more than a history on disk has.
const GENERATIONS_MAX: usize = 32;

/// When a data generation of this node began, that is: when it went on without its peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Which volume.
    pub volume: VolumeNr,
    /// Its identifier.
    pub id: String,
    /// When.
    pub at: u64,
}

/// When the peer was lost last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parted {
    /// Which volume.
    pub volume: VolumeNr,
    /// When.
    pub at: u64,
}

/// Whose data win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Winner {
    /// Those of this node.
    ThisNode,
    /// Those of the peer.
    Peer,
    /// Nobody's: no decision.
    Nobody,
}

impl From<SbDecision> for Winner {
    fn from(decision: SbDecision) -> Self {
        match decision {
            SbDecision::Source => Self::ThisNode,
            SbDecision::Target => Self::Peer,
            SbDecision::Undecided => Self::Nobody,
        }
    }
}

/// One node's side, as it was known when the split brain was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Generation.
    pub current: String,
    /// What it counts its changes from.
    pub bitmap: String,
    /// Earlier generations.
    pub history: [String; 2],
    /// Blocks that it said to have changed.
    pub changed_blocks: u64,
    /// Role.
    pub role: Role,
    /// Disk.
    pub disk: DiskState,
    /// When it went on alone, if that is known here.
    #[serde(default)]
    pub alone_since: Option<u64>,
    /// It cannot have gone on alone before, if that is known here.
    #[serde(default)]
    pub not_before: Option<u64>,
}

/// What one policy would have decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The option of the configuration.
    pub option: String,
    /// The policy.
    pub policy: String,
    /// It is the one that is set.
    pub set: bool,
    /// Whose data win.
    pub winner: Winner,
}

/// A split brain of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitBrain {
    /// Which volume.
    pub volume: VolumeNr,
    /// When it was found first.
    pub found: u64,
    /// When it was found last.
    pub seen: u64,
    /// Rule of the comparison.
    pub rule: u16,
    /// The bitmaps describe what differs; if not, resolving it copies everything.
    pub described: bool,
    /// What came of it.
    pub winner: Winner,
    /// Not by `--discard-my-data`.
    pub automatic: bool,
    /// When the resync that resolved it had ended.
    #[serde(default)]
    pub resolved: Option<u64>,
    /// This node.
    pub own: Side,
    /// The peer.
    pub peer: Side,
    /// Blocks that this node had changed: first and behind the last of each run, as far as remembered.
    pub runs: Vec<[u64; 2]>,
    /// All runs that there were.
    pub runs_total: u64,
    /// What the policies would have decided.
    pub policies: Vec<Policy>,
}

/// What a node remembers of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Beginnings of generations, the oldest first.
    pub generations: Vec<Generation>,
    /// Losses of the peer.
    pub parted: Vec<Parted>,
    /// The last split brain of each volume.
    pub split_brains: Vec<SplitBrain>,
}

/// Identifiers without the bit that says who is Primary.
fn name(id: GenId) -> String {
    GenId(id.masked()).to_string()
}

impl Memory {
    /// A generation begins.
    pub fn generation(&mut self, volume: VolumeNr, current: GenId, at: u64) {
        self.generations.push(Generation { volume, id: name(current), at });
        let surplus = self.generations.len().saturating_sub(GENERATIONS_MAX);
        self.generations.drain(..surplus);
    }

    /// The peer is lost.
    pub fn parted(&mut self, volume: VolumeNr, at: u64) {
        self.parted.retain(|parted| parted.volume != volume);
        self.parted.push(Parted { volume, at });
    }

    /// A split brain is found.
    pub fn split_brain(&mut self, divergence: &Divergence, at: u64) {
        let volume = divergence.volume;
        let parted = self.parted.iter().find(|parted| parted.volume == volume).map(|parted| parted.at);
        let mut own = side(&divergence.own);
        own.alone_since =
            self.generations.iter().rev().find(|g| g.volume == volume && g.id == own.current).map(|g| g.at);
        own.not_before = parted;
        let mut peer = side(&divergence.peer);
        peer.not_before = parted;
        let policies = divergence.policies().into_iter().map(|verdict| Policy {
            option: verdict.option.to_owned(),
            policy: verdict.policy.text().to_owned(),
            set: verdict.set,
            winner: verdict.decision.into(),
        });
        let mut new = SplitBrain {
            volume,
            found: at,
            seen: at,
            rule: divergence.rule,
            described: divergence.described,
            winner: divergence.decision.into(),
            automatic: divergence.automatic,
            resolved: None,
            own,
            peer,
            runs: divergence.runs.iter().map(|run| [run.start, run.end]).collect(),
            runs_total: divergence.runs_total,
            policies: policies.collect(),
        };
        if let Some(old) = self.split_brains.iter().find(|old| old.volume == volume)
            && old.resolved.is_none()
            && (&old.own.current, &old.peer.current) == (&new.own.current, &new.peer.current)
        {
            // The same one, found again: what was known of its beginning holds, the loss since then says nothing.
            new.found = old.found;
            new.own.not_before = old.own.not_before;
            new.peer.not_before = old.peer.not_before;
        }
        self.split_brains.retain(|old| old.volume != volume);
        self.split_brains.push(new);
    }

    /// A resync has made both nodes equal.
    pub fn equal(&mut self, volume: VolumeNr, at: u64) {
        if let Some(found) =
            self.split_brains.iter_mut().find(|found| found.volume == volume && found.resolved.is_none())
        {
            found.resolved = Some(at);
        }
    }

    /// The last split brain of a volume.
    #[must_use]
    pub fn of(&self, volume: VolumeNr) -> Option<&SplitBrain> {
        self.split_brains.iter().find(|found| found.volume == volume)
    }
}

fn side(side: &EngineSide) -> Side {
    Side {
        current: name(side.ids.current),
        bitmap: name(side.ids.bitmap),
        history: side.ids.history.map(name),
        changed_blocks: side.changes,
        role: side.role,
        disk: side.disk,
        alone_since: None,
        not_before: None,
    }
}

/// How far an undo file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UndoState {
    /// The resync is not over.
    Saving,
    /// Everything that the resync overwrote is in it.
    Complete,
    /// It ran out of room, or could not be written.
    Incomplete,
}

/// An undo file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Where it lies.
    pub path: String,
    /// How far it is.
    pub state: UndoState,
    /// Blocks in it.
    pub blocks: u64,
    /// Its length.
    pub bytes: u64,
    /// Blocks that could not be read before they were overwritten.
    pub lost_blocks: u64,
    /// When the resync was decided.
    pub made: u64,
    /// It was made by an undo, and restores what that replaced.
    pub redo: bool,
}

/// What there is to say of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeExplanation {
    /// Which.
    pub volume: VolumeNr,
    /// Size of the device, 0 while unknown.
    pub size_kib: u64,
    /// The last split brain, if there was one.
    pub split_brain: Option<SplitBrain>,
    /// Blocks that are out of sync at this moment: first and behind the last of each run.
    pub runs: Vec<[u64; 2]>,
    /// All runs.
    pub runs_total: u64,
    /// All blocks.
    pub out_of_sync_blocks: u64,
    /// The undo file, if there is one.
    #[serde(default)]
    pub undo: Option<Undo>,
}

/// What there is to say of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Name.
    pub resource: String,
    /// Own role.
    pub role: Role,
    /// Connection state, at most WFReportParams.
    pub connection_state: ConnState,
    /// Volumes in ascending order.
    pub volumes: Vec<VolumeExplanation>,
}

/// As JSON, indented, without a line feed at its end.
#[must_use]
pub fn json(explanations: &[Explanation]) -> String {
    // Plain data with string keys always serializes.
    serde_json::to_string_pretty(explanations).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::gi::GenIds;
    use crate::engine::split_brain::AfterSbPolicies;

    fn divergence(current: u64) -> Divergence {
        let side = |current| EngineSide {
            ids: GenIds::from_slots([current, 0x20, 0, 0]),
            changes: 3,
            role: Role::Secondary,
            disk: DiskState::UpToDate,
        };
        Divergence {
            volume: VolumeNr(0),
            own: side(current),
            peer: side(0x50),
            rule: 90,
            described: true,
            decision: SbDecision::Undecided,
            automatic: false,
            set: AfterSbPolicies::default(),
            always_asbp: false,
            resolve_conflicts: false,
            runs: vec![3..6, 9..10],
            runs_total: 2,
        }
    }

    #[test]
    fn the_beginning_is_kept_when_the_same_one_is_found_again() {
        let mut memory = Memory::default();
        memory.parted(VolumeNr(0), 100);
        memory.generation(VolumeNr(0), GenId(0x31), 101);
        memory.split_brain(&divergence(0x30), 200);
        memory.parted(VolumeNr(0), 201);
        memory.split_brain(&divergence(0x30), 300);
        let found = memory.of(VolumeNr(0)).expect("found");
        assert_eq!((found.found, found.seen, found.own.alone_since), (200, 300, Some(101)));
        assert_eq!((found.own.not_before, found.peer.not_before, found.peer.alone_since), (Some(100), Some(100), None));
        memory.equal(VolumeNr(0), 400);
        assert_eq!(memory.of(VolumeNr(0)).and_then(|found| found.resolved), Some(400));
        memory.split_brain(&divergence(0x40), 500);
        let found = memory.of(VolumeNr(0)).expect("found");
        assert_eq!((found.found, found.resolved, found.own.alone_since), (500, None, None));
        let text = serde_json::to_string(&memory).expect("plain data");
        assert_eq!(serde_json::from_str::<Memory>(&text).expect("the same"), memory);
    }
}
