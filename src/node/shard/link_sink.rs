//! What the link's tasks deliver, as events of the shard, and whether they may go on delivering data.

use std::rc::Rc;

use super::Core;
use crate::engine::event::{Event, LinkEvent, LinkNr, Socket};
use crate::link::Sink;
use crate::units::VolumeNr;
use crate::wire::packet::Packet;

/// The handle that the link's tasks deliver to.
#[derive(Clone)]
pub struct LinkSink(pub Rc<Core>);

impl Core {
    /// Data is wanted again: the reader of the data socket goes on.
    pub(super) fn resume_data(&self) {
        if self.data_unwanted.get() && self.wants_data() {
            self.data_unwanted.set(false);
            self.wanted.notify_waiters();
        }
    }

    fn wants_data(&self) -> bool {
        // Called by the link between its deliveries, never from inside the engine.
        self.engine.borrow().accepts_peer_requests()
    }
}

impl Sink for LinkSink {
    fn packet(&mut self, link: LinkNr, socket: Socket, volume: VolumeNr, packet: Packet) {
        if matches!(packet, Packet::Sizes(_)) {
            self.0.look_at_sizes(volume);
        }
        self.0.event(Event::Packet { link, socket, volume, packet });
    }

    fn event(&mut self, event: LinkEvent) {
        if let LinkEvent::Up { nr, .. } = event {
            self.0.link_nr.set(nr);
        }
        self.0.event(Event::Link(event));
    }

    fn sent(&mut self, link: LinkNr, socket: Socket, packets: u64) {
        if socket == Socket::Data {
            self.0.event(Event::Sent { link, socket, packets });
        }
    }

    fn batch_end(&mut self) {
        self.0.batch_end();
    }

    fn wants_data(&self) -> bool {
        let wants = self.0.wants_data();
        if !wants {
            self.0.data_unwanted.set(true);
        }
        wants
    }

    async fn until_wanted(&self) {
        let mut notified = std::pin::pin!(self.0.wanted.notified());
        loop {
            notified.as_mut().enable();
            if self.wants_data() {
                return;
            }
            notified.as_mut().await;
            notified.set(self.0.wanted.notified());
        }
    }
}
