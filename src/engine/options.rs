//! What the administrator may set, as the engine needs it: plain numbers with units, no configuration-file types.
//!
//! Defaults are those of DRBD 8.4 (behaviour.md 15), except where a field says "unset": then the engine's own rule applies.

use std::time::Duration;

pub use crate::engine::handshake::RrConflict;
use crate::engine::state::Fencing;
use crate::units::Sectors;
use crate::wire::digest::AlgName;
use crate::wire::params::{AfterSb, ReplProtocol};

/// What `resize` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResizeOptions {
    /// Wanted size; 0: the largest that both nodes have room for.
    pub size: Sectors,
    /// The new part needs no resync: it is the same on both nodes, or nobody cares.
    pub assume_clean: bool,
    /// Grow without a connection as well.
    pub assume_peer_has_space: bool,
    /// Another number of stripes of the activity log's ring.
    pub al_stripes: Option<u32>,
    /// Another size of a stripe, in KiB.
    pub al_stripe_kib: Option<u32>,
}

/// Settings of the connection (`net`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// Replication protocol.
    pub protocol: ReplProtocol,
    /// Base of the request and send timeouts.
    pub timeout: Duration,
    /// Multiple of `timeout` after which a peer that does not answer is dropped; 0 means never.
    pub ko_count: u32,
    /// Idle time on the meta socket until a ping is sent.
    pub ping_int: Duration,
    /// How long a ping may stay unanswered.
    pub ping_timeout: Duration,
    /// Most writes in one epoch.
    pub max_epoch_size: u32,
    /// Most application requests in flight while a connection is configured, in requests.
    pub max_buffers: u32,
    /// `after-sb-0pri`.
    pub after_sb_0p: AfterSb,
    /// `after-sb-1pri`.
    pub after_sb_1p: AfterSb,
    /// `after-sb-2pri`.
    pub after_sb_2p: AfterSb,
    /// `allow-two-primaries`, compared with the peer's.
    pub two_primaries: bool,
    /// `always-asbp`.
    pub always_asbp: bool,
    /// Discard the data of this node if the handshake finds a split brain; valid for one handshake.
    pub discard_my_data: bool,
    /// Only compute and log the handshake decision, then drop the connection.
    pub tentative: bool,
    /// Digest over replicated data, if any; peers compare the names.
    pub integrity_alg: AlgName,
    /// Digest of the online verify.
    pub verify_alg: AlgName,
    /// Digest of the checksum-based resync.
    pub csums_alg: AlgName,
    /// Send the bitmap run-length coded where that is shorter.
    pub use_rle: bool,
    /// `rr-conflict`: what a Primary does that has to become the target of a resync.
    pub rr_conflict: RrConflict,
    /// `on-congestion`; anything but `Block` needs protocol A.
    pub on_congestion: OnCongestion,
    /// Sectors under way to the peer from which on the link counts as congested; 0: never for that reason.
    pub congestion_fill: Sectors,
    /// Referenced activity-log extents from which on the link counts as congested.
    pub congestion_extents: u32,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            protocol: ReplProtocol::C,
            timeout: Duration::from_secs(6),
            ko_count: 7,
            ping_int: Duration::from_secs(10),
            ping_timeout: Duration::from_millis(500),
            max_epoch_size: 2048,
            max_buffers: 2048,
            after_sb_0p: AfterSb::Disconnect,
            after_sb_1p: AfterSb::Disconnect,
            after_sb_2p: AfterSb::Disconnect,
            two_primaries: false,
            always_asbp: false,
            discard_my_data: false,
            tentative: false,
            integrity_alg: AlgName::NONE,
            verify_alg: AlgName::NONE,
            csums_alg: AlgName::NONE,
            use_rle: true,
            rr_conflict: RrConflict::Disconnect,
            on_congestion: OnCongestion::Block,
            congestion_fill: Sectors(0),
            congestion_extents: 1237,
        }
    }
}

/// What a Primary does when the link is congested (`on-congestion`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCongestion {
    /// Its writes wait.
    #[default]
    Block,
    /// It goes Ahead: only marks what it writes, and resyncs later.
    PullAhead,
    /// It disconnects.
    Disconnect,
}

/// Settings of the resource (`options`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceOptions {
    /// `on-no-data-accessible suspend-io`: without good data in reach I/O waits instead of failing.
    pub suspend_without_data: bool,
}

/// What to do when the backing disk fails (`on-io-error`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnIoError {
    /// Stay attached, become Inconsistent.
    PassOn,
    /// Run the helper `local-io-error`, then detach.
    CallLocalIoError,
    /// Detach and go on over the peer.
    #[default]
    Detach,
}

/// Settings of a volume (`disk`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Policy for I/O errors.
    pub on_io_error: OnIoError,
    /// Fencing policy.
    pub fencing: Fencing,
    /// Order epochs by flushing the disk.
    pub disk_flushes: bool,
    /// Order epochs by waiting for the writes of the epoch before.
    pub disk_drain: bool,
    /// Make metadata writes durable by flush and FUA.
    pub md_flushes: bool,
    /// Slots of the activity log.
    pub al_extents: u16,
    /// Keep the activity log.
    pub al_updates: bool,
    /// Fixed resync rate in bytes per second; unset: no limit.
    pub resync_rate: Option<u64>,
    /// What `P_SYNC_PARAM` announces (KiB/s and DRBD's units), set values or DRBD's defaults.
    pub announced: AnnouncedRates,
    /// Configured size limit, 0 = none.
    pub size: Sectors,
    /// Discard aligned granules and zero the rest where the disk does not promise zeroes.
    pub discard_zeroes_if_aligned: bool,
    /// `disk-timeout`: a local operation that takes longer gives the disk up; zero: never.
    pub disk_timeout: Duration,
}

/// The resync numbers of `P_SYNC_PARAM`, in DRBD's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncedRates {
    /// KiB/s.
    pub resync_rate: u32,
    /// 0.1 s.
    pub c_plan_ahead: u32,
    /// 0.1 s.
    pub c_delay_target: u32,
    /// Sectors.
    pub c_fill_target: u32,
    /// KiB/s.
    pub c_max_rate: u32,
}

impl Default for AnnouncedRates {
    fn default() -> Self {
        Self { resync_rate: 250, c_plan_ahead: 20, c_delay_target: 10, c_fill_target: 100, c_max_rate: 102_400 }
    }
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            on_io_error: OnIoError::Detach,
            fencing: Fencing::DontCare,
            disk_flushes: true,
            disk_drain: true,
            md_flushes: true,
            al_extents: 1237,
            al_updates: true,
            resync_rate: None,
            announced: AnnouncedRates::default(),
            size: Sectors(0),
            discard_zeroes_if_aligned: true,
            disk_timeout: Duration::ZERO,
        }
    }
}
