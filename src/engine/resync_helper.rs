//! The helpers before a resync: it begins only when they have ended well (behaviour.md 7.1, 8.5).
//!
//! The source runs `before-resync-source` when both bitmaps are there. The target runs `before-resync-target` when it has the
//! source's bitmap and before it answers with its own: until then the source cannot begin, so nothing arrives that would have
//! to wait. Where no bitmaps are exchanged (a target that was Behind, what a device grew by) the source's announcement waits for
//! the helper; writes that arrive meanwhile are written, and their blocks are synced once more. Invariants: a run counts only while the volume is where it was when the run began (any change of the
//! connection's state forgets it), so that nothing waits for a helper when the link goes, and none is taken for that of the next
//! resync.

use crate::engine::Engine;
use crate::engine::action::Level;
use crate::engine::connection::AfterPing;
use crate::engine::event::HandlerRun;
use crate::engine::fault::Fault;
use crate::engine::handler::Handler;
use crate::engine::helpers::AfterHelper;
use crate::engine::state::StateChange;
use crate::units::VolumeNr;
use crate::wire::state::ConnState;

/// What very old tools answer where they do not know the event.
const UNKNOWN_TO_OLD_TOOLS: u8 = 3;

impl Engine {
    /// Becomes the source: after the bitmap exchange, a full-sync request, or online growth.
    pub(crate) fn start_source(&mut self, v: VolumeNr) {
        if self.volumes.get(&v).is_some_and(|vol| !vol.resync_unacked.is_empty()) {
            // Acknowledgements of an aborted resync may still be on their way, and some never come. When the peer has
            // answered a ping there are none left that could be taken for those of the new one.
            return self.ping_then(AfterPing::SourceStart(v));
        }
        self.before_resync(v, true);
    }

    /// Answers the source with the own bitmap, or waits for the beginning of the full sync that was asked for.
    pub(crate) fn start_answer(&mut self, v: VolumeNr) {
        self.before_resync(v, false);
    }

    /// Waits for the source's announcement of a resync of what the device grew by, which begins without bitmaps.
    pub(crate) fn start_growth_target(&mut self, v: VolumeNr) {
        self.force(v, &StateChange::NONE.conn(ConnState::WfSyncUuid));
        if self.state(v).conn == ConnState::WfSyncUuid {
            self.before_resync(v, false);
        }
    }

    /// Runs the helper unless it runs already; the resync goes on when it has ended well.
    pub(crate) fn before_resync(&mut self, volume: VolumeNr, source: bool) {
        let handler = if source { Handler::BeforeResyncSource } else { Handler::BeforeResyncTarget };
        let Some(vol) = self.volumes.get(&volume) else { return };
        if vol.resync_helper.is_some() {
            return;
        }
        if self.faulty(Fault::HelperNotAwaited) {
            self.tell_helper(handler, Some(volume));
            return self.go_on(volume, source);
        }
        let run = self.run_helper(handler, Some(volume), AfterHelper::Resync { volume, source });
        if let Some(vol) = self.volumes.get_mut(&volume) {
            vol.resync_helper = Some(run);
        }
    }

    /// The helper has ended; what it was run for may be over.
    pub(crate) fn on_resync_helper(&mut self, run: HandlerRun, v: VolumeNr, source: bool, code: u8) {
        let Some(vol) = self.volumes.get_mut(&v).filter(|vol| vol.resync_helper == Some(run)) else { return };
        vol.resync_helper = None;
        let name = if source { Handler::BeforeResyncSource } else { Handler::BeforeResyncTarget }.name();
        if source && code == UNKNOWN_TO_OLD_TOOLS {
            self.log(Level::Warn, Some(v), format!("{name} handler returned {code}, ignoring. Old userland tools?"));
        } else if code > 0 && !self.faulty(Fault::HelperCodeIgnored) {
            self.log(Level::Error, Some(v), format!("{name} handler returned {code}, dropping connection."));
            return self.drop_link(ConnState::Disconnecting);
        }
        self.go_on(v, source);
    }

    fn go_on(&mut self, v: VolumeNr, source: bool) {
        match self.state(v).conn {
            _ if source => self.begin_source(v),
            ConnState::StartingSyncT => self.wait_sync_uuid(v),
            ConnState::WfSyncUuid | ConnState::Behind => self.start_if_announced(v),
            _ => self.start_bitmap(v),
        }
    }
}
