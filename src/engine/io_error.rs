//! A backing device that fails: what `on-io-error` says (behaviour.md 8.5, 10.1, 10.3).
//!
//! Takes in the failures that the request rooms found, after they have marked what is lost. Gives out the change of the disk's
//! state, and before anything else the helper `local-io-error` where the policy names it. Invariants: until that helper has
//! ended nothing leaves on the data socket, so that the peer does not hear of the disk before the helper did; the disk is
//! not given up meanwhile; and what the helper has to wait for, clients of the other copy wait for as well (as in 8.4).

use crate::engine::Engine;
use crate::engine::action::Level;
use crate::engine::event::LinkNr;
use crate::engine::handler::Handler;
use crate::engine::helpers::AfterHelper;
use crate::engine::options::OnIoError;
use crate::engine::state::StateChange;
use crate::units::VolumeNr;
use crate::wire::state::DiskState;

/// What failed, for the log: it stands where 8.4 names a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// A write, discard or write-zeroes of an application.
    Write,
    /// An application's read.
    Read,
    /// A flush.
    Flush,
    /// A write for the peer, replicated or of a resync.
    PeerWrite,
    /// A read for the peer.
    PeerRead,
    /// A write of metadata.
    Meta,
    /// An operation that does not end.
    Timeout,
}

impl Failed {
    const fn text(self) -> &'static str {
        match self {
            Self::Write => "a write",
            Self::Read => "a read",
            Self::Flush => "a flush",
            Self::PeerWrite => "a write for the peer",
            Self::PeerRead => "a read for the peer",
            Self::Meta => "a meta data update",
            Self::Timeout => "an operation that took too long",
        }
    }
}

impl Engine {
    /// The backing device failed. Metadata that cannot be written, and what does not end, end the disk whatever the policy.
    pub(crate) fn on_io_error(&mut self, v: VolumeNr, what: Failed) {
        let link = self.conn.link;
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        if vol.state.disk <= DiskState::Failed {
            return;
        }
        let what_text = what.text();
        if vol.opts.on_io_error == OnIoError::PassOn && !matches!(what, Failed::Meta | Failed::Timeout) {
            self.log(Level::Error, Some(v), format!("Local IO failed in {what_text}."));
            if self.state(v).disk > DiskState::Inconsistent {
                self.force(v, &StateChange::NONE.disk(DiskState::Inconsistent));
            }
        } else {
            if vol.opts.on_io_error == OnIoError::CallLocalIoError {
                vol.error_helper = Some(link);
            }
            self.log(Level::Error, Some(v), format!("Local IO failed in {what_text}. Detaching..."));
            self.part_if_ahead(v);
            self.force(v, &StateChange::NONE.disk(DiskState::Failed));
        }
    }

    /// Runs `local-io-error`: what is to be sent from here on, the disk's new state first of all, waits for its end.
    pub(crate) fn tell_local_io_error(&mut self, v: VolumeNr) {
        let link = self.conn.link;
        if link.is_some() && self.volumes.get(&v).is_some_and(|vol| vol.error_helper == Some(link)) {
            self.hold_data();
        }
        self.run_helper(Handler::LocalIoError, Some(v), AfterHelper::LocalIoError(v));
    }

    /// The helper `local-io-error` has ended: the peer may know, and the disk may go.
    pub(crate) fn on_local_io_error_told(&mut self, v: VolumeNr) {
        let waited = self.volumes.get_mut(&v).and_then(|vol| vol.error_helper.take());
        let same = |link: Option<LinkNr>| link.is_some() && link == self.conn.link;
        if waited.is_some_and(same) {
            self.release_data();
        }
        self.finish_detach(v);
    }
}
