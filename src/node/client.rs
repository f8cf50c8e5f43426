//! An NBD client's requests on their way to the engine.
//!
//! Large discards and zeroings are cut at the borders of activity-log extents and fed in a few at a time: one request of a
//! client must not make the whole activity log hot, nor occupy the shard for long.

use std::rc::Rc;

use smallvec::SmallVec;

use super::shard::Core;
use crate::engine::action::{ClientError, ClientResult};
use crate::engine::event::ClientRequest as EngineRequest;
use crate::frontend::request::{Backend, ClientRequest, Completer, Errno};
use crate::limits::AL_EXTENT_SECTORS;
use crate::units::{Sector, SectorRange, Sectors, VolumeNr};

/// Parts of one discard or zeroing that are under way at a time; arbitrary: 32 MiB.
const PARTS_MAX: usize = 8;

/// One volume as its NBD sessions see it.
#[derive(Clone)]
pub struct Client {
    /// The resource.
    pub core: Rc<Core>,
    /// Which volume.
    pub volume: VolumeNr,
}

/// Who waits for an engine request.
#[derive(Debug)]
pub enum Waiter {
    /// A client.
    Client(Completer),
    /// Part of a request that was cut up: index of its [`Split`].
    Part(usize),
}

/// A discard or zeroing under way.
#[derive(Debug)]
pub struct Split {
    volume: VolumeNr,
    rest: SectorRange,
    under_way: usize,
    error: Option<Errno>,
    work: Work,
    done: Option<Completer>,
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Discard { fua: bool },
    Zeroes { may_unmap: bool, fua: bool },
}

impl Backend for Client {
    fn submit(&self, request: ClientRequest, done: Completer) {
        let (core, volume) = (&self.core, self.volume);
        match request {
            ClientRequest::Read { range } => {
                core.client_request(volume, EngineRequest::Read(range), Waiter::Client(done));
            }
            ClientRequest::Write { range, data, fua } => {
                let data = SmallVec::from_buf([data]);
                core.client_request(volume, EngineRequest::Write { range, data, fua }, Waiter::Client(done));
            }
            ClientRequest::Flush => core.client_request(volume, EngineRequest::Flush, Waiter::Client(done)),
            ClientRequest::Trim { range, fua } => self.split(range, Work::Discard { fua }, done),
            ClientRequest::WriteZeroes { range, no_hole, fua } => {
                self.split(range, Work::Zeroes { may_unmap: !no_hole, fua }, done);
            }
        }
    }

    fn batch_end(&self) {
        self.core.batch_end();
    }
}

impl Client {
    fn split(&self, range: SectorRange, work: Work, done: Completer) {
        let split = Split { volume: self.volume, rest: range, under_way: 0, error: None, work, done: Some(done) };
        let index = self.core.splits.borrow_mut().insert(split);
        feed(&self.core, index);
    }
}

/// Starts parts of a split request, and ends it when the last one is done.
fn feed(core: &Core, index: usize) {
    loop {
        let mut splits = core.splits.borrow_mut();
        let Some(split) = splits.get_mut(index) else { return };
        if split.error.is_some() {
            split.rest.count = Sectors(0);
        }
        if split.rest.is_empty() {
            if split.under_way > 0 {
                return;
            }
            let split = splits.remove(index);
            drop(splits);
            return finish(core, split);
        }
        if split.under_way == PARTS_MAX {
            return;
        }
        let part = first_part(split.rest);
        split.rest = SectorRange { start: part.end(), count: Sectors(split.rest.count.0 - part.count.0) };
        split.under_way += 1;
        let request = match split.work {
            Work::Discard { .. } => EngineRequest::Discard(part),
            Work::Zeroes { may_unmap, fua } => EngineRequest::WriteZeroes { range: part, may_unmap, fua },
        };
        let volume = split.volume;
        drop(splits);
        core.client_request(volume, request, Waiter::Part(index));
    }
}

/// What lies in the first activity-log extent.
fn first_part(range: SectorRange) -> SectorRange {
    let border = (range.start.0 / AL_EXTENT_SECTORS + 1) * AL_EXTENT_SECTORS;
    let end = border.min(range.end().0);
    SectorRange { start: Sector(range.start.0), count: Sectors(end - range.start.0) }
}

fn finish(core: &Core, mut split: Split) {
    let Some(done) = split.done.take() else { return };
    match (split.error, split.work) {
        (Some(errno), _) => done.fail(errno),
        // The engine knows no durable discard.
        (None, Work::Discard { fua: true }) => {
            core.client_request(split.volume, EngineRequest::Flush, Waiter::Client(done));
        }
        (None, _) => done.done(),
    }
}

/// The engine has finished a request.
pub fn complete(core: &Core, waiter: Waiter, result: ClientResult) {
    match waiter {
        Waiter::Client(done) => done.complete(result.map_err(errno_of)),
        Waiter::Part(index) => {
            if let Some(split) = core.splits.borrow_mut().get_mut(index) {
                split.under_way -= 1;
                if let Err(error) = result {
                    split.error.get_or_insert_with(|| errno_of(error));
                }
            }
            feed(core, index);
        }
    }
}

const fn errno_of(error: ClientError) -> Errno {
    match error {
        ClientError::Io => Errno::Io,
        ClientError::NotPrimary => Errno::Perm,
        ClientError::OutOfRange => Errno::Inval,
        ClientError::Gone => Errno::Shutdown,
        ClientError::Unsupported => Errno::NotSup,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_extent_borders() {
        let range = |start, count| SectorRange { start: Sector(start), count: Sectors(count) };
        assert_eq!(first_part(range(0, 8192)), range(0, 8192));
        assert_eq!(first_part(range(8191, 10_000)), range(8191, 1));
        assert_eq!(first_part(range(8192, 20_000)), range(8192, 8192));
        assert_eq!(first_part(range(8200, 3)), range(8200, 3));
    }
}
