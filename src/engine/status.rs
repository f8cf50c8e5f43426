//! A snapshot of a resource for status, `/proc` text and metrics: plain values, taken between events.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::gi::GenIds;
pub use crate::engine::progress::Report;
use crate::engine::refused::Refused;
use crate::engine::state::VolumeState;
pub use crate::engine::volume::Counters;
use crate::units::{Sectors, Timestamp, VolumeNr};
use crate::wire::params::ReplProtocol;
use crate::wire::state::{ConnState, DiskState, Role};

/// A running or paused resync, or a verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncStatus {
    /// Blocks (4 KiB) to do at its start.
    pub total: u64,
    /// Blocks left.
    pub left: u64,
    /// Speed and remaining time.
    pub report: Report,
    /// The two lines of `/proc/drbd`.
    pub proc_lines: String,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Number.
    pub nr: VolumeNr,
    /// State.
    pub state: VolumeState,
    /// Exported size.
    pub size: Sectors,
    /// Identifiers of the local disk.
    pub ids: Option<GenIds>,
    /// Flag bits of the superblock.
    pub md_flags: u32,
    /// Counters since attach or connect.
    pub counters: Counters,
    /// Blocks out of sync.
    pub out_of_sync: u64,
    /// Clients that have it open.
    pub open_count: u32,
    /// Activity-log updates are suspended.
    pub al_suspended: bool,
    /// Path of the backing device.
    pub disk_path: Option<String>,
    /// Resync or verify under way.
    pub sync: Option<SyncStatus>,
    /// The start-up wait is the one for degraded clusters.
    pub degraded_wait: bool,
    /// The peer's disk is known to be outdated.
    pub peer_outdated: bool,
    /// Write-ordering letter: f, d or n.
    pub write_ordering: char,
    /// Received epochs not finished.
    pub epochs: usize,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceStatus {
    /// Name.
    pub name: String,
    /// Connection state, at most WFReportParams.
    pub connection: ConnState,
    /// Protocol letter, if a connection is configured.
    pub protocol: Option<char>,
    /// Agreed version and features while connected.
    pub agreed: Option<(u32, u32)>,
    /// Why there is no connection, if the last attempt said so.
    pub refused: Option<Refused>,
    /// Volumes in ascending order.
    pub volumes: Vec<VolumeStatus>,
}

impl ResourceStatus {
    /// Role of the resource as a whole: Primary if any volume is.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.volumes.iter().any(|v| v.state.role == Role::Primary) { Role::Primary } else { Role::Secondary }
    }
}

impl Engine {
    /// What there is to see at `now`.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> ResourceStatus {
        ResourceStatus {
            name: self.name.clone(),
            connection: self.conn.state,
            protocol: self.conn.opts.as_ref().map(|o| match o.protocol {
                ReplProtocol::A => 'A',
                ReplProtocol::B => 'B',
                ReplProtocol::C => 'C',
            }),
            refused: self.conn.refused.clone(),
            agreed: self.conn.link.map(|_| (self.conn.version, self.conn.features)),
            volumes: self.volumes.values().map(|vol| self.volume_status(vol, now)).collect(),
        }
    }

    fn volume_status(&self, vol: &super::volume::Volume, now: Timestamp) -> VolumeStatus {
        let sync = vol.resync.as_ref().map(|r| {
            let left = vol.out_of_sync_bits().saturating_sub(r.failed());
            let want = None;
            SyncStatus {
                total: r.progress().total(),
                left: left.min(r.progress().total()),
                report: r.progress().report(now, left),
                proc_lines: r.progress().render(now, left, false, want),
            }
        });
        let verify = vol.verify.as_ref().map(|v| {
            let (total, left) = (vol.size.bm_bits(), v.left().bm_bits());
            let report = v.progress().report(now, left);
            SyncStatus { total, left, report, proc_lines: v.progress().render(now, left, true, None) }
        });
        VolumeStatus {
            nr: vol.nr,
            state: vol.state,
            size: vol.size,
            ids: vol.disk.as_ref().map(super::volume::LocalDisk::ids),
            md_flags: vol.disk.as_ref().map_or(0, |d| d.sb.flags.bits()),
            counters: vol.counters,
            out_of_sync: vol.out_of_sync_bits(),
            open_count: vol.open_count,
            al_suspended: vol.disk.as_ref().is_some_and(|d| d.al.suspended()),
            disk_path: vol.disk.as_ref().map(|d| d.path.clone()),
            sync: sync.or(verify),
            degraded_wait: vol.degraded_wait,
            peer_outdated: vol.state.pdsk == DiskState::Outdated,
            write_ordering: match (vol.opts.disk_flushes && !self.rx.drain_only(), vol.opts.disk_drain) {
                (true, _) => 'f',
                (false, true) => 'd',
                (false, false) => 'n',
            },
            epochs: self.rx.count(),
        }
    }

    /// Time until a volume's resync ends, as far as it can be told.
    #[must_use]
    pub fn resync_eta(&self, v: VolumeNr, now: Timestamp) -> Option<Duration> {
        let vol = self.volumes.get(&v)?;
        let resync = vol.resync.as_ref()?;
        Some(resync.progress().report(now, vol.out_of_sync_bits()).finish)
    }
}

#[cfg(any(test, feature = "sim"))]
impl Engine {
    /// Blocks (bits of the bitmap) of a volume that a resync would cover if the link broke now: set bits, and writes whose
    /// fate is not known. Not sorted.
    #[must_use]
    pub fn covered_after_loss(&self, v: VolumeNr) -> Vec<std::ops::Range<u64>> {
        let Some(vol) = self.volumes.get(&v) else { return Vec::new() };
        let bits = vol.disk.iter().flat_map(|disk| disk.bitmap.runs(0..disk.bitmap.bits()));
        let writes = self.requests.iter().filter(|(_, r)| r.volume == v && r.kind != super::request::Kind::Read);
        bits.chain(writes.map(|(_, r)| r.range.bits_touched())).collect()
    }
}
