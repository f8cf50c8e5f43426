//! The NBD sessions of a resource: each counts as an open of its volume while it lasts.

use super::Core;
use crate::engine::event::Event;
use crate::frontend::nbd::session::SessionHandle;
use crate::units::VolumeNr;

/// A client's session.
#[derive(Debug)]
pub struct OpenSession {
    /// The volume that it uses.
    pub volume: VolumeNr,
    /// Its grip.
    pub handle: SessionHandle,
}

impl Core {
    /// A session starts; its number is for [`Self::session_closed`].
    pub fn session_opened(&self, volume: VolumeNr, handle: SessionHandle) -> usize {
        tracing::info!(resource = self.name, %volume, client = handle.peer(), "NBD client connected");
        let key = self.sessions.borrow_mut().insert(OpenSession { volume, handle });
        self.event(Event::Opened { volume });
        self.changed.set(true);
        self.batch_end();
        key
    }

    /// A session is over.
    pub fn session_closed(&self, key: usize, why: &str) {
        let Some(session) = self.sessions.borrow_mut().try_remove(key) else { return };
        let volume = session.volume;
        tracing::info!(resource = self.name, %volume, client = session.handle.peer(), "NBD client gone: {why}");
        self.event(Event::Closed { volume });
        self.changed.set(true);
        self.batch_end();
        self.session_ended.notify_waiters();
    }

    /// Ends all sessions of a volume.
    pub fn close_sessions(&self, volume: VolumeNr, reason: &str) {
        for (_, session) in self.sessions.borrow().iter().filter(|(_, session)| session.volume == volume) {
            session.handle.close(reason);
        }
    }

    /// The clients of a volume, for people.
    pub fn session_names(&self, volume: VolumeNr) -> Vec<String> {
        let sessions = self.sessions.borrow();
        sessions.iter().filter(|(_, s)| s.volume == volume).map(|(_, s)| s.handle.peer().to_owned()).collect()
    }

    /// Ends all sessions; false when there is none.
    pub fn end_all_sessions(&self, reason: &str) -> bool {
        let sessions = self.sessions.borrow();
        sessions.iter().for_each(|(_, session)| session.handle.close(reason));
        !sessions.is_empty()
    }
}
