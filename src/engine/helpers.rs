//! Helper programs under way: which of them somebody waits for, and what goes on with the exit code (behaviour.md 8.4).
//!
//! Owns the runs that have not ended. Takes in orders to run a helper and [`Event::HandlerDone`](super::event::Event); gives out
//! [`Action::RunHandler`]. Invariants: every run ends, exactly once; what a run was for may be over by then (the link gone,
//! the volume removed), so whoever goes on looks at the state again.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::engine::action::Action;
use crate::engine::event::{CommandId, HandlerRun};
use crate::engine::handler::Handler;
use crate::units::VolumeNr;

/// What waits for the end of a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterHelper {
    /// Nothing: people are told.
    Nothing,
    /// The resync of a volume, from this node or to it.
    Resync { volume: VolumeNr, source: bool },
    /// The peer is told of this volume's failed disk.
    LocalIoError(VolumeNr),
    /// The peer is fenced or not. `connects`: so often the connection had been there when the helper began; `command`: the
    /// promotion that waits for it.
    FencePeer { connects: u64, command: Option<CommandId> },
}

/// The helpers under way.
#[derive(Debug, Default)]
pub(crate) struct Helpers {
    last: u64,
    running: BTreeMap<HandlerRun, AfterHelper>,
}

impl Engine {
    /// Runs a helper that nobody waits for.
    pub(crate) fn tell_helper(&mut self, handler: Handler, volume: Option<VolumeNr>) {
        self.run_helper(handler, volume, AfterHelper::Nothing);
    }

    /// Runs a helper; `after` says what goes on when it has ended.
    pub(crate) fn run_helper(&mut self, handler: Handler, volume: Option<VolumeNr>, after: AfterHelper) -> HandlerRun {
        self.helpers.last += 1;
        let run = HandlerRun(self.helpers.last);
        self.helpers.running.insert(run, after);
        self.out.push(Action::RunHandler { run, handler, volume });
        run
    }

    /// A helper has ended.
    pub(crate) fn on_handler_done(&mut self, run: HandlerRun, code: u8) {
        match self.helpers.running.remove(&run) {
            None | Some(AfterHelper::Nothing) => {}
            Some(AfterHelper::Resync { volume, source }) => self.on_resync_helper(run, volume, source, code),
            Some(AfterHelper::LocalIoError(v)) => self.on_local_io_error_told(v),
            Some(AfterHelper::FencePeer { connects, command }) => self.on_fence_peer_done(code, connects, command),
        }
    }
}
