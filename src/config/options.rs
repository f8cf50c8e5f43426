//! The option table: every option of `net`, `disk`, `options` and `startup`, once, with type, range, default, 8.3 spelling
//! and whether this version acts on it. The typed sections are made from the same rows.
//!
//! Source: config-and-commands.md 5 (numbers from the 8.4 tools' own tables) and 8.1 (8.3 spellings).

use serde::{Deserialize, Serialize};

use super::section::option_section;
use super::spec::{Kind, Online, OptionSpec, OptionValue, Section, Traits, ValueError};
use super::values::{
    AfterSb0Pri, AfterSb1Pri, AfterSb2Pri, Bytes, DeciSeconds, Fencing, KibPerSecond, NumberValue, OnCongestion,
    OnIoError, OnNoData, Protocol, ReadBalancing, ResyncAfter, RrConflict, Seconds, Secret,
};
use crate::limits::DEVICE_SECTORS_MAX;
use crate::units::Sectors;

/// Largest length of algorithm names and of the shared secret, in bytes. DRBD 8.4: SHARED_SECRET_MAX - 1.
pub const TEXT_LEN_MAX: usize = 63;
/// Largest length of a CPU mask, in bytes. DRBD 8.4: DRBD_CPU_MASK_SIZE - 1.
pub const CPU_MASK_LEN_MAX: usize = 31;

/// Options of 8.3 that are read and thrown away in every option section.
pub const DEAD_OPTIONS: &[&str] =
    &["delay-probe-volume", "delay-probe-interval", "throttle-threshold", "hold-off-threshold"];

/// Options of `proxy { }`; kept as text, since the proxy is not ours.
pub const PROXY_OPTIONS: &[&str] =
    &["memlimit", "read-loops", "compression", "bwlimit", "sndbuf-size", "rcvbuf-size", "ping-timeout"];

const PLAIN: Traits = Traits::PLAIN;
const WHY_CONTROLLER: &str = "resync runs at a fixed or unlimited rate for now, without the dynamic controller";
const WHY_BUFFERS: &str = "socket buffers are left to the kernel's autotuning for now";

option_section!(
    /// `net { }`: the connection. Every field is `None` unless set.
    NetOptions = Section::Net;
    /// When a write counts as done.
    "protocol" protocol: Protocol = word(Protocol::C), PLAIN;
    /// The peer must answer a request within this time.
    "timeout" timeout: DeciSeconds = num(1, 600, 60), PLAIN;
    /// Most writes between two barriers.
    "max-epoch-size" max_epoch_size: u32 = num(1, 20000, 2048), PLAIN;
    /// Receive and resync buffers, in pages of 4 KiB.
    "max-buffers" max_buffers: u32 = num(32, 131_072, 2048), PLAIN;
    /// Gone with Linux 2.6.39.
    "unplug-watermark" unplug_watermark: u32 = num(1, 131_072, 128),
        PLAIN.pending(&[], "no kernel since 2.6.39 has plugging that this could steer");
    /// Pause between two attempts to connect.
    "connect-int" connect_int: Seconds = num(1, 120, 10), PLAIN;
    /// Idle time before a keep-alive.
    "ping-int" ping_int: Seconds = num(1, 120, 10), PLAIN;
    /// The peer must answer a keep-alive within this time.
    "ping-timeout" ping_timeout: DeciSeconds = num(1, 300, 5), PLAIN;
    /// TCP send buffer; 0 = the kernel's choice.
    "sndbuf-size" sndbuf_size: Bytes = num(0, 10_485_760, 0), PLAIN.pending(&["0"], WHY_BUFFERS);
    /// TCP receive buffer; 0 = the kernel's choice.
    "rcvbuf-size" rcvbuf_size: Bytes = num(0, 10_485_760, 0), PLAIN.pending(&["0"], WHY_BUFFERS);
    /// Drop a peer that does not finish one write in this many timeouts; 0 = never.
    "ko-count" ko_count: u32 = num(0, 200, 7), PLAIN;
    /// Both nodes may be Primary.
    "allow-two-primaries" allow_two_primaries: bool = flag(false), PLAIN;
    /// Digest for peer authentication (HMAC).
    "cram-hmac-alg" cram_hmac_alg: String = text(TEXT_LEN_MAX), PLAIN.online(Online::Reconnect);
    /// Key for peer authentication.
    "shared-secret" shared_secret: Secret = text(TEXT_LEN_MAX), PLAIN.online(Online::Reconnect);
    /// Split brain, no Primary.
    "after-sb-0pri" after_sb_0pri: AfterSb0Pri = other(
        Kind::Word { words: AfterSb0Pri::WORDS, default: "disconnect" }, AfterSb0Pri::Disconnect), PLAIN;
    /// Split brain, one Primary.
    "after-sb-1pri" after_sb_1pri: AfterSb1Pri = word(AfterSb1Pri::Disconnect), PLAIN;
    /// Split brain, two Primaries.
    "after-sb-2pri" after_sb_2pri: AfterSb2Pri = word(AfterSb2Pri::Disconnect), PLAIN;
    /// Apply the after-sb policies even if a third node may be involved.
    "always-asbp" always_asbp: bool = flag(false), PLAIN;
    /// Resync direction contradicts the roles.
    "rr-conflict" rr_conflict: RrConflict = word(RrConflict::Disconnect), PLAIN;
    /// Digest on every data packet.
    "data-integrity-alg" data_integrity_alg: String = text(TEXT_LEN_MAX), PLAIN;
    /// Let TCP collect small packets.
    "tcp-cork" tcp_cork: bool = flag(true), PLAIN.negated("no-tcp-cork");
    /// Full send queue.
    "on-congestion" on_congestion: OnCongestion = word(OnCongestion::Block), PLAIN;
    /// Data in flight that counts as congestion; 0 = off.
    "congestion-fill" congestion_fill: Sectors = num(0, 20_971_520, 0), PLAIN;
    /// Active AL extents that count as congestion.
    "congestion-extents" congestion_extents: u32 = num(67, 65_534, 1237), PLAIN;
    /// Digest for checksum-based resync.
    "csums-alg" csums_alg: String = text(TEXT_LEN_MAX),
        PLAIN.syncer().pending(&[""], "resync sends every block that is out of sync, for now");
    /// Checksum-based resync only after a crashed Primary.
    "csums-after-crash-only" csums_after_crash_only: bool = flag(false),
        PLAIN.pending(&["no"], "resync sends every block that is out of sync, for now");
    /// Digest for online verify.
    "verify-alg" verify_alg: String = text(TEXT_LEN_MAX),
        PLAIN.syncer().pending(&[""], "online verify is not available for now");
    /// Send bitmaps run-length coded.
    "use-rle" use_rle: bool = flag(true), PLAIN.syncer();
    /// Answer time when checking a fresh socket; 0 = ping-timeout.
    "socket-check-timeout" socket_check_timeout: DeciSeconds = num(0, 300, 0), PLAIN;
    /// Be the victim of a split brain (option of `connect` only).
    "discard-my-data" discard_my_data: bool = flag(false), PLAIN.command_only().online(Online::Reconnect);
    /// Only find out what would happen (option of `connect` only).
    "tentative" tentative: bool = flag(false), PLAIN.command_only().online(Online::Reconnect);
);

option_section!(
    /// `disk { }`: the backing device and resync of one volume. Every field is `None` unless set.
    DiskOptions = Section::Disk;
    /// Use only this much of the backing device; 0 = all.
    "size" size: Sectors = num(0, DEVICE_SECTORS_MAX, 0), PLAIN.online(Online::Resize);
    /// Gone: segments of a request.
    "max-bio-bvecs" max_bio_bvecs: u32 = num(0, 128, 0),
        PLAIN.online(Online::Reattach).pending(&["0"], "there are no kernel bios to limit here");
    /// Error of the backing device.
    "on-io-error" on_io_error: OnIoError = word(OnIoError::Detach), PLAIN;
    /// Primary without its peer.
    "fencing" fencing: Fencing = word(Fencing::DontCare), PLAIN;
    /// Order writes with barriers.
    "disk-barrier" disk_barrier: bool = flag(false), PLAIN.negated("no-disk-barrier");
    /// Order writes with flushes.
    "disk-flushes" disk_flushes: bool = flag(true), PLAIN.negated("no-disk-flushes");
    /// Order writes by waiting.
    "disk-drain" disk_drain: bool = flag(true), PLAIN.negated("no-disk-drain");
    /// Flush the metadata device.
    "md-flushes" md_flushes: bool = flag(true), PLAIN.negated("no-md-flushes");
    /// Fixed resync rate.
    "resync-rate" resync_rate: KibPerSecond = num(1, 4_194_304, 250), PLAIN.alias("rate").syncer();
    /// Resync only when that volume is done.
    "resync-after" resync_after: ResyncAfter = other(Kind::Volume, ResyncAfter::Nothing),
        PLAIN.alias("after").syncer().pending(&["-1"], "all volumes resync at the same time for now");
    /// Hot extents (4 MiB each) of the activity log.
    "al-extents" al_extents: u32 = num(67, 65_534, 1237), PLAIN.syncer().clamps();
    /// Keep the activity log.
    "al-updates" al_updates: bool = flag(true), PLAIN;
    /// Treat discards as writes of zeroes where that is aligned.
    "discard-zeroes-if-aligned" discard_zeroes_if_aligned: bool = flag(true), PLAIN;
    /// Never send write-same.
    "disable-write-same" disable_write_same: bool = flag(false), PLAIN;
    /// Look-ahead of the resync controller; 0 = off.
    "c-plan-ahead" c_plan_ahead: DeciSeconds = num(0, 300, 20), PLAIN.syncer().pending(&["0"], WHY_CONTROLLER);
    /// Delay that the controller aims at.
    "c-delay-target" c_delay_target: DeciSeconds = num(1, 100, 10), PLAIN.syncer().pending(&[], WHY_CONTROLLER);
    /// Data in flight that the controller aims at.
    "c-fill-target" c_fill_target: Sectors = num(0, 1_048_576, 100), PLAIN.syncer().pending(&[], WHY_CONTROLLER);
    /// Fastest rate of the controller.
    "c-max-rate" c_max_rate: KibPerSecond = num(250, 4_194_304, 102_400), PLAIN.syncer().pending(&[], WHY_CONTROLLER);
    /// Rate that resync may use in spite of application I/O; 0 = do not throttle.
    "c-min-rate" c_min_rate: KibPerSecond = num(0, 4_194_304, 250), PLAIN.syncer().pending(&[], WHY_CONTROLLER);
    /// Detach when the backing device does not answer for this time; 0 = never.
    "disk-timeout" disk_timeout: DeciSeconds = num(0, 6000, 0), PLAIN;
    /// Where a Primary reads.
    "read-balancing" read_balancing: ReadBalancing = word(ReadBalancing::PreferLocal),
        PLAIN.pending(&["prefer-local"], "reads prefer the local disk for now");
    /// Resync zero blocks as discards of this size; 0 = off.
    "rs-discard-granularity" rs_discard_granularity: Bytes = num(0, 1_048_576, 0),
        PLAIN.pending(&["0"], "resync does not discard for now");
    /// Gone with 8.4.
    "use-bmbv" use_bmbv: bool = flag(false), PLAIN.pending(&["no"], "8.4 has no such option any more; remove it");
);

option_section!(
    /// `options { }`: the resource. Every field is `None` unless set.
    ResourceOptions = Section::Options;
    /// CPUs of the worker threads, as a hexadecimal mask.
    "cpu-mask" cpu_mask: String = text(CPU_MASK_LEN_MAX),
        PLAIN.syncer().pending(&[""], "threads run on any processor for now");
    /// No disk with good data can be reached.
    "on-no-data-accessible" on_no_data_accessible: OnNoData = word(OnNoData::IoError), PLAIN.syncer();
);

option_section!(
    /// `startup { }`: read by tools when they start a resource. Every field is `None` (or empty) unless set.
    StartupOptions = Section::Startup;
    /// Wait for the peer at most this long; 0 = for ever.
    "wfc-timeout" wfc_timeout: Seconds = num(0, 300_000, 0), PLAIN.online(Online::Tools);
    /// The same, when this node was degraded before.
    "degr-wfc-timeout" degr_wfc_timeout: Seconds = num(0, 300_000, 0), PLAIN.online(Online::Tools);
    /// The same, when the peer's data are known to be outdated.
    "outdated-wfc-timeout" outdated_wfc_timeout: Seconds = num(0, 300_000, 0), PLAIN.online(Online::Tools);
    /// Go on waiting after a split brain.
    "wait-after-sb" wait_after_sb: bool = flag(false), PLAIN.online(Online::Tools);
    extra {
        /// Use these timeouts for stacked resources too.
        stacked_timeouts: bool,
        /// Hosts that become Primary at start; the single word `both` means every host.
        become_primary_on: Vec<String>,
    }
);

/// The rows of a section; empty for `handlers` and `proxy`, whose values are plain text.
#[must_use]
pub const fn specs(section: Section) -> &'static [OptionSpec] {
    match section {
        Section::Net => NetOptions::SPECS,
        Section::Disk => DiskOptions::SPECS,
        Section::Options => ResourceOptions::SPECS,
        Section::Startup => StartupOptions::SPECS,
        Section::Handlers | Section::Proxy => &[],
    }
}

/// All rows of the table.
pub fn all() -> impl Iterator<Item = &'static OptionSpec> {
    [Section::Net, Section::Disk, Section::Options, Section::Startup].into_iter().flat_map(specs)
}

/// The row of an option by its name (no alias).
#[must_use]
pub fn find(section: Section, name: &str) -> Option<&'static OptionSpec> {
    specs(section).iter().find(|s| s.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_consistent() {
        for spec in all() {
            if let Kind::Number { scale, min, max, default, .. } = spec.kind {
                assert!(min <= default && default <= max, "{}: default in range", spec.name);
                assert!(max <= u64::from(u32::MAX) || scale.letter() == "s", "{}: fits its type", spec.name);
            }
            if !spec.default_text().is_empty() {
                spec.check(&spec.default_text()).unwrap();
            }
            if let Some(pending) = spec.pending {
                for text in pending.effective {
                    assert!(*text == "-1" || spec.check(text).is_ok(), "{}: {text}", spec.name);
                }
            }
        }
        let mut names: Vec<_> = all().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count(), "names are unique");
    }

    #[test]
    fn set_values_and_overlay_go_by_name() {
        let mut low = NetOptions::default();
        low.set("timeout", "50").unwrap();
        low.set("ping-int", "5").unwrap();
        let mut high = NetOptions::default();
        high.set("timeout", "70").unwrap();
        low.overlay(&high);
        let values: Vec<_> = low.values().into_iter().map(|(s, v)| (s.name, v)).collect();
        assert_eq!(values, [("timeout", "70".to_owned()), ("ping-int", "5".to_owned())]);
        low.unset("ping-int");
        assert_eq!(low.ping_int(), Seconds(10));
        assert!(low.set("no-such", "1").is_err());
    }

    #[test]
    fn getters_fill_in_the_defaults() {
        let disk = DiskOptions::default();
        assert_eq!(disk.al_extents(), 1237);
        assert_eq!(disk.resync_rate(), KibPerSecond(250));
        assert!(disk.disk_flushes() && !disk.disk_barrier());
        let net = NetOptions::default();
        assert_eq!((net.protocol(), net.timeout(), net.ko_count()), (Protocol::C, DeciSeconds(60), 7));
        assert_eq!(net.cram_hmac_alg(), None);
    }

    #[test]
    fn sections_survive_json_with_the_names_of_the_language() {
        let mut net = NetOptions::default();
        net.set("shared-secret", "hush").unwrap();
        net.set("after-sb-0pri", "discard-node-n1").unwrap();
        net.set("protocol", "b").unwrap();
        let json = serde_json::to_string(&net).unwrap();
        assert_eq!(json, r#"{"protocol":"B","shared-secret":"hush","after-sb-0pri":"discard-node-n1"}"#);
        assert_eq!(serde_json::from_str::<NetOptions>(&json).unwrap(), net);
        assert!(!format!("{net:?}").contains("hush"));
    }

    #[test]
    fn refusals_name_the_range_and_the_unit() {
        let spec = find(Section::Net, "timeout").unwrap();
        let error = spec.check("0").unwrap_err();
        assert_eq!(error.message, "timeout 0 => 0 out of range [1..600]");
        assert!(error.help.contains("1..600, in tenths of a second"), "{}", error.help);
        let spec = find(Section::Disk, "resync-rate").unwrap();
        assert_eq!(spec.check("5G").unwrap_err().message, "resync-rate 5G => 5242880k out of range [1..4194304]k");
    }
}
