//! The last events of a resource, for the log when its engine fails: names and one number each, cheap enough to be always on.

use std::fmt;

use crate::engine::event::{Event, LinkEvent};
use crate::units::Timestamp;

/// Events remembered; arbitrary, about what led to a failure and a screenful of log.
const LEN: usize = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    at: Timestamp,
    what: &'static str,
    number: u64,
}

/// The last [`LEN`] events.
#[derive(Debug)]
pub struct Trace {
    entries: [Entry; LEN],
    next: usize,
}

impl Default for Trace {
    fn default() -> Self {
        Self { entries: [Entry::default(); LEN], next: 0 }
    }
}

impl Trace {
    /// Remembers an event.
    pub fn record(&mut self, at: Timestamp, event: &Event) {
        let (what, number) = match event {
            Event::Command { id, .. } => ("Command", id.0),
            Event::Client { id, .. } => ("Client", id.0),
            Event::Opened { volume } => ("Opened", u64::from(volume.0)),
            Event::Closed { volume } => ("Closed", u64::from(volume.0)),
            Event::Disk { op, result: Ok(_) } => ("Disk", op.0),
            Event::Disk { op, result: Err(_) } => ("Disk failed", op.0),
            Event::DiskSize { sizes, .. } => ("DiskSize", sizes.data.0),
            Event::DiskClosed { volume } => ("DiskClosed", u64::from(volume.0)),
            Event::Link(LinkEvent::Up { nr, .. }) => ("Link up", nr.0),
            Event::Link(LinkEvent::Refused { .. }) => ("Link refused", 0),
            Event::Link(LinkEvent::Lost { nr, .. }) => ("Link lost", nr.0),
            Event::Packet { packet, volume, .. } => (packet.kind().name(), u64::from(volume.0)),
            Event::Sent { packets, .. } => ("Sent", *packets),
            Event::Timer(_) => ("Timer", 0),
            Event::Continue => ("Continue", 0),
            Event::Undo { volume, .. } => ("undo", u64::from(volume.0)),
            Event::HandlerDone { run, .. } => ("HandlerDone", run.0),
            Event::BatchEnd => return,
        };
        self.entries[self.next % LEN] = Entry { at, what, number };
        self.next = (self.next + 1) % LEN;
    }
}

/// Oldest first, with the time before the last event.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.entries.iter().map(|entry| entry.at).max().unwrap_or_default();
        let (newer, older) = self.entries.split_at(self.next);
        let mut separator = "";
        for entry in older.iter().chain(newer).filter(|entry| !entry.what.is_empty()) {
            write!(f, "{separator}-{}us {} {:#x}", last.since(entry.at).as_micros(), entry.what, entry.number)?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VolumeNr;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut trace = Trace::default();
        for nr in 0..70_u16 {
            trace.record(Timestamp(u64::from(nr) * 1000), &Event::Opened { volume: VolumeNr(nr) });
            trace.record(Timestamp(u64::from(nr) * 1000), &Event::BatchEnd);
        }
        let text = trace.to_string();
        assert!(text.starts_with("-63us Opened 0x6, -62us Opened 0x7"), "{text}");
        assert!(text.ends_with("-0us Opened 0x45"), "{text}");
    }
}
