//! Online verify, the side that the peer drives (VerifyT): read, digest, and mark what the peer found different.
//! Source: wire.md 10, behaviour.md 7.8. Driving a verify (VerifyS) is not part of this version.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::engine::action::Level;
use crate::engine::connection::AfterPing;
use crate::engine::handler::Handler;
use crate::engine::progress::Progress;
use crate::engine::state::StateChange;
use crate::limits::RESYNC_UNACKED_MAX;
use crate::units::{SectorRange, Sectors, Timestamp, VolumeNr};
use crate::wire::ack::{BlockAck, OV_IN_SYNC, OV_OUT_OF_SYNC};
use crate::wire::digest::Digest;
use crate::wire::state::ConnState;

/// A verify that the peer drives.
#[derive(Debug)]
pub(crate) struct VerifyTarget {
    size: Sectors,
    started: bool,
    /// Sectors not yet judged.
    left: u64,
    /// Blocks digested and not judged: first sector to sectors.
    open: BTreeMap<u64, u64>,
    finishing: bool,
    progress: Progress,
}

impl VerifyTarget {
    pub(crate) const fn new(now: Timestamp, size: Sectors) -> Self {
        let progress = Progress::start(now, size.bm_bits());
        Self { size, started: false, left: size.0, open: BTreeMap::new(), finishing: false, progress }
    }

    /// Progress so far.
    pub(crate) const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Sectors left, for progress.
    pub(crate) const fn left(&self) -> Sectors {
        Sectors(self.left)
    }
}

impl Engine {
    /// The peer asks for a digest; whether a verify is on.
    pub(crate) fn verify_requested(&mut self, v: VolumeNr, range: SectorRange) -> bool {
        let Some(vol) = self.volumes.get_mut(&v) else { return false };
        if vol.state.conn != ConnState::VerifyT {
            return false;
        }
        let Some(verify) = vol.verify.as_mut() else { return false };
        let first = !verify.started;
        if first {
            verify.started = true;
            verify.left = verify.size.0.saturating_sub(range.start.0);
        }
        if verify.open.len() >= RESYNC_UNACKED_MAX {
            return false;
        }
        verify.open.insert(range.start.0, range.count.0);
        if first {
            self.log(Level::Info, Some(v), format!("Online Verify start sector: {}", range.start));
        }
        true
    }

    /// The digest of a block, or zeroes for a block that could not be read.
    pub(crate) fn verify_digest(&self, data: Option<&[u8]>) -> Digest {
        let alg = self.conn.opts.as_ref().and_then(|o| o.verify_alg.alg());
        match (alg, data) {
            (Some(alg), Some(data)) => alg.digest(&[data]),
            (Some(alg), None) => Digest::new(&vec![0; alg.len()]).unwrap_or_default(),
            (None, _) => Digest::EMPTY,
        }
    }

    /// The peer's verdict on a block.
    pub(crate) fn on_ov_result(&mut self, v: VolumeNr, p: &BlockAck) {
        let Some(vol) = self.volumes.get_mut(&v) else { return };
        let known = vol
            .verify
            .as_mut()
            .and_then(|verify| verify.open.remove(&p.sector.0).filter(|count| *count * 512 == u64::from(p.blksize)));
        let Some(count) = known else {
            return self.peer_error("P_OV_RESULT", format!("no verify of sector {} is open", p.sector));
        };
        let different = match p.block_id {
            OV_IN_SYNC => false,
            OV_OUT_OF_SYNC => true,
            other => return self.peer_error("P_OV_RESULT", format!("unknown verdict {:#x}", other.0)),
        };
        let range = SectorRange { start: p.sector, count: Sectors(count) };
        if different {
            self.set_bits(v, range);
            self.log(Level::Warn, Some(v), format!("Out of sync: start={}, size={count} (sectors)", p.sector));
        }
        let now = self.now;
        let Some(verify) = self.volumes.get_mut(&v).and_then(|vol| vol.verify.as_mut()) else { return };
        verify.left = verify.left.saturating_sub(count);
        verify.progress.advance(now, Sectors(verify.left).bm_bits());
        if verify.left == 0 && !verify.finishing {
            verify.finishing = true;
            self.ping_then(AfterPing::VerifyFinish(v));
        }
    }

    /// Every verdict has been exchanged.
    pub(crate) fn finish_verify(&mut self, v: VolumeNr) {
        if !matches!(self.state(v).conn, ConnState::VerifyT | ConnState::VerifyS) {
            return;
        }
        let found = self.volumes.get(&v).map_or(0, super::volume::Volume::out_of_sync_bits);
        if found > 0 {
            self.log(Level::Warn, Some(v), format!("Online verify found {found} 4k block out of sync!"));
            self.tell_helper(Handler::OutOfSync, Some(v));
        } else {
            self.log(Level::Info, Some(v), "Online verify done");
        }
        self.force(v, &StateChange::NONE.conn(ConnState::Connected));
    }
}
