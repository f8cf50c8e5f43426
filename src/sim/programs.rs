//! Helper programs of both nodes: how long they take, how they end, and that a resync begins only after the one before it.

use super::coverage::Group;
use super::world::{Checker, Due, World};
use crate::engine::event::{Event, HandlerRun};
use crate::engine::handler::Handler;
use crate::units::VolumeNr;

impl World {
    /// A node starts a helper program.
    pub(super) fn program_starts(&mut self, node: usize, run: HandlerRun, handler: Handler, volume: Option<VolumeNr>) {
        self.nodes[node].helpers.insert(run);
        if handler == Handler::BeforeResyncTarget
            && let Some(vol) = volume.and_then(|v| self.nodes[node].volumes.get_mut(usize::from(v.0)))
        {
            (vol.helper_run, vol.helper_ended) = (Some(run), None);
        }
        let dice = &mut self.dice.helpers;
        let fails = !self.peace && dice.percent(self.params.helper_fails);
        let code = if fails { u8::try_from(dice.within(1, 9)).unwrap_or(1) } else { 0 };
        self.coverage.count(Group::Fault, &format!("helper {}{}", handler.name(), if fails { " fails" } else { "" }));
        self.trace
            .note(self.now, node, 24, run.0, || format!("helper {} {run:?} will end with {code}", handler.name()));
        if self.params.helper_ns == 0 {
            self.note_helper(node, run, code);
            return self.nodes[node].queued.push_back(Event::HandlerDone { run, code });
        }
        let (wait, life) = (self.dice.helpers.around(self.params.helper_ns), self.nodes[node].life);
        self.after(wait, Due::Program { node, life, run, code });
    }

    pub(super) fn program_ends(&mut self, node: usize, run: HandlerRun, code: u8) {
        self.trace.note(self.now, node, 25, run.0, || format!("helper {run:?} ends"));
        self.note_helper(node, run, code);
        self.event(node, Event::HandlerDone { run, code });
    }

    fn note_helper(&mut self, node: usize, run: HandlerRun, code: u8) {
        self.nodes[node].helpers.remove(&run);
        // Only the one that was started last counts.
        for vol in self.nodes[node].volumes.iter_mut().filter(|vol| vol.helper_run == Some(run)) {
            vol.helper_ended = Some(code);
        }
    }

    /// A resync towards a node begins: its helper must have ended well, on this link.
    pub(super) fn check_helper(&mut self, node: usize, volume: usize) {
        let ended = self.nodes[node].volumes[volume].helper_ended.take();
        if ended != Some(0) {
            let name = ["A", "B"][node];
            let how = ended.map_or_else(|| "has not ended".to_owned(), |code| format!("ended with {code}"));
            let text = format!("a resync to node {name} of volume {volume} begins, and the helper before it {how}");
            self.fail(Checker::Status, text);
        }
    }
}
