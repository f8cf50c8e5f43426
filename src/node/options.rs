//! From drbd.conf's options to the engine's and the link's.
//!
//! What is not set means our own rule where the engine has one (the resync rate), else DRBD's default; what travels to the
//! peer is what was set or DRBD's default. Algorithms are checked here, with DRBD's error numbers (behaviour.md 14.2).

use std::net::SocketAddr;

use crate::config::model::{self, Address};
use crate::config::values::{self, Family, Fencing as FencingWord, OnIoError as OnIoErrorWord, Protocol};
use crate::control::ErrorReply;
use crate::engine::options::{
    AnnouncedRates, DiskOptions, NetOptions, OnCongestion, OnIoError, ResourceOptions, RrConflict,
};
use crate::engine::state::Fencing;
use crate::link::LinkConfig;
use crate::wire::auth::{HmacAlg, Secret};
use crate::wire::digest::AlgName;
use crate::wire::params::{AfterSb, ReplProtocol};

/// The connection's options for the engine.
///
/// # Errors
/// DRBD's numbers: 139, 141, 144, 146, 155.
pub fn engine_net(options: &model::NetOptions) -> Result<NetOptions, ErrorReply> {
    let protocol = match options.protocol() {
        Protocol::A => ReplProtocol::A,
        Protocol::B => ReplProtocol::B,
        Protocol::C => ReplProtocol::C,
    };
    if options.allow_two_primaries() && protocol != ReplProtocol::C {
        return Err(ErrorReply::code(139));
    }
    if options.on_congestion() != values::OnCongestion::Block && protocol != ReplProtocol::A {
        return Err(ErrorReply::code(155));
    }
    Ok(NetOptions {
        protocol,
        timeout: options.timeout().duration(),
        ko_count: options.ko_count(),
        ping_int: options.ping_int().duration(),
        ping_timeout: options.ping_timeout().duration(),
        max_epoch_size: options.max_epoch_size(),
        max_buffers: options.max_buffers(),
        after_sb_0p: policy(&options.after_sb_0pri().to_string())?,
        after_sb_1p: policy(options.after_sb_1pri().text())?,
        after_sb_2p: policy(options.after_sb_2pri().text())?,
        two_primaries: options.allow_two_primaries(),
        always_asbp: options.always_asbp(),
        discard_my_data: options.discard_my_data(),
        tentative: options.tentative(),
        csums_alg: algorithm(options.csums_alg(), 144)?,
        verify_alg: algorithm(options.verify_alg(), 146)?,
        integrity_alg: algorithm(options.data_integrity_alg(), 141)?,
        use_rle: options.use_rle(),
        rr_conflict: match options.rr_conflict() {
            values::RrConflict::Disconnect => RrConflict::Disconnect,
            values::RrConflict::CallPriLost => RrConflict::CallPriLost,
            values::RrConflict::Violently => RrConflict::Violently,
        },
        on_congestion: match options.on_congestion() {
            values::OnCongestion::Block => OnCongestion::Block,
            values::OnCongestion::PullAhead => OnCongestion::PullAhead,
            values::OnCongestion::Disconnect => OnCongestion::Disconnect,
        },
        congestion_fill: options.congestion_fill(),
        congestion_extents: options.congestion_extents(),
    })
}

fn policy(text: &str) -> Result<AfterSb, ErrorReply> {
    let found = AfterSb::ALL.iter().copied().find(|policy| policy.text() == text);
    found.ok_or_else(|| ErrorReply::code(162).detail(format!("unknown after-sb policy {text}")))
}

fn algorithm(name: Option<&String>, code: u16) -> Result<AlgName, ErrorReply> {
    let Some(name) = name else { return Ok(AlgName::NONE) };
    AlgName::parse(name).ok_or_else(|| ErrorReply::code(code).detail(format!("{name} is not known")))
}

/// A volume's options for the engine.
#[must_use]
pub fn engine_disk(options: &model::DiskOptions) -> DiskOptions {
    DiskOptions {
        on_io_error: match options.on_io_error() {
            OnIoErrorWord::PassOn => OnIoError::PassOn,
            OnIoErrorWord::CallHandler => OnIoError::CallLocalIoError,
            OnIoErrorWord::Detach => OnIoError::Detach,
        },
        fencing: match options.fencing() {
            FencingWord::DontCare => Fencing::DontCare,
            FencingWord::ResourceOnly => Fencing::ResourceOnly,
            FencingWord::ResourceAndStonith => Fencing::ResourceAndStonith,
        },
        disk_flushes: options.disk_flushes(),
        disk_drain: options.disk_drain(),
        md_flushes: options.md_flushes(),
        // The range of the option fits.
        al_extents: u16::try_from(options.al_extents()).unwrap_or(u16::MAX),
        al_updates: options.al_updates(),
        resync_rate: options.resync_rate.map(model::KibPerSecond::bytes_per_second),
        announced: AnnouncedRates {
            resync_rate: options.resync_rate().0,
            c_plan_ahead: options.c_plan_ahead().0,
            c_delay_target: options.c_delay_target().0,
            c_fill_target: u32::try_from(options.c_fill_target().0).unwrap_or(u32::MAX),
            c_max_rate: options.c_max_rate().0,
        },
        size: options.size(),
        discard_zeroes_if_aligned: options.discard_zeroes_if_aligned(),
        disk_timeout: options.disk_timeout().duration(),
    }
}

/// A resource's options for the engine.
#[must_use]
pub fn engine_resource(options: &model::ResourceOptions) -> ResourceOptions {
    ResourceOptions { suspend_without_data: options.on_no_data_accessible() == values::OnNoData::SuspendIo }
}

/// The link's settings between these two addresses.
///
/// # Errors
/// 120 for an unknown `cram-hmac-alg`, 162 for an address that cannot be used here or a secret that is too long.
pub fn link_config(local: &Address, peer: &Address, options: &model::NetOptions) -> Result<LinkConfig, ErrorReply> {
    let mut config = LinkConfig::new(socket_addr(local)?, socket_addr(peer)?);
    config.connect_int = options.connect_int().duration();
    config.ping_timeout = options.ping_timeout().duration();
    config.socket_check_timeout = options.socket_check_timeout().duration();
    config.timeout = options.timeout().duration();
    config.sndbuf_bytes = options.sndbuf_size().0;
    config.rcvbuf_bytes = options.rcvbuf_size().0;
    config.auth = match (options.cram_hmac_alg(), options.shared_secret()) {
        (None, _) => None,
        (Some(name), secret) => {
            let unknown = || ErrorReply::code(120).detail(format!("{name} is not known"));
            let alg = HmacAlg::from_name(name).ok_or_else(unknown)?;
            let bytes = secret.map_or(&[][..], |secret| secret.expose_bytes());
            let too_long = || ErrorReply::code(162).detail("the shared secret is too long");
            Some((alg, Secret::new(bytes).ok_or_else(too_long)?))
        }
    };
    Ok(config)
}

fn socket_addr(address: &Address) -> Result<SocketAddr, ErrorReply> {
    if !matches!(address.family, Family::Ipv4 | Family::Ipv6) {
        let text = format!("addresses of the family {} cannot be used here: {address}", address.family);
        return Err(ErrorReply::code(162).detail(text));
    }
    let scope = match &address.zone {
        None => 0,
        Some(zone) => scope_id(zone).ok_or_else(|| {
            ErrorReply::code(162).detail(format!("there is no network interface {zone}, which {address} names"))
        })?,
    };
    Ok(address.socket_addr(scope))
}

fn scope_id(zone: &str) -> Option<u32> {
    if let Ok(number) = zone.parse() {
        return Some(number);
    }
    if zone.contains('/') {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{zone}/ifindex")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn unset_rates_are_unlimited_here_and_defaults_for_the_peer() {
        let unset = engine_disk(&model::DiskOptions::default());
        assert_eq!((unset.resync_rate, unset.announced.resync_rate), (None, 250));
        let mut options = model::DiskOptions::default();
        options.set("resync-rate", "10M").unwrap();
        let set = engine_disk(&options);
        assert_eq!((set.resync_rate, set.announced.resync_rate), (Some(10 << 20), 10_240));
    }

    #[test]
    fn defaults_are_the_engines() {
        assert_eq!(engine_net(&model::NetOptions::default()).unwrap(), NetOptions::default());
        assert_eq!(engine_disk(&model::DiskOptions::default()), DiskOptions::default());
    }

    #[test]
    fn refusals_have_drbds_numbers() {
        let refused = |name: &str, value: &str| {
            let mut options = model::NetOptions::default();
            options.set(name, value).unwrap();
            engine_net(&options).unwrap_err().code
        };
        assert_eq!(refused("verify-alg", "rot13"), 146);
        assert_eq!(refused("csums-alg", "rot13"), 144);
        assert_eq!(refused("data-integrity-alg", "rot13"), 141);
        assert_eq!(refused("on-congestion", "pull-ahead"), 155);
    }

    #[test]
    fn every_policy_has_a_number() {
        for word in model::AfterSb1Pri::WORDS.iter().chain(model::AfterSb2Pri::WORDS) {
            assert!(policy(word).is_ok(), "{word}");
        }
        for word in model::AfterSb0Pri::WORDS.iter().filter(|word| !word.starts_with("discard-node")) {
            assert!(policy(word).is_ok(), "{word}");
        }
    }

    #[test]
    fn the_link_gets_addresses_times_and_secret() {
        let local = Address::new("127.0.0.1".parse().unwrap(), 7789);
        let peer = Address::new("127.0.0.2".parse().unwrap(), 7790);
        let mut options = model::NetOptions::default();
        options.set("cram-hmac-alg", "sha1").unwrap();
        options.set("shared-secret", "hush").unwrap();
        options.set("timeout", "30").unwrap();
        let config = link_config(&local, &peer, &options).unwrap();
        assert_eq!(
            (config.local.to_string(), config.peer.to_string()),
            ("127.0.0.1:7789".into(), "127.0.0.2:7790".into())
        );
        assert_eq!(config.timeout, Duration::from_secs(3));
        assert!(config.auth.is_some());
        options.set("cram-hmac-alg", "crc32c").unwrap();
        assert_eq!(link_config(&local, &peer, &options).unwrap_err().code, 120);
    }
}
