//! Settings of the link: plain numbers with units, made by whoever knows the configuration file.

use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::auth::{HmacAlg, Secret};
use crate::wire::feature::{FeatureFlags, Features};

/// Settings of the link to one peer (wire.md 1.5). Defaults of the durations are DRBD's.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Where this node listens; outgoing connections start from its IP with a port of the system's choice.
    pub local: SocketAddr,
    /// Where the peer listens.
    pub peer: SocketAddr,
    /// `connect-int`: limit of one connect, and of one wait for the peer's (then plus or minus a seventh).
    pub connect_int: Duration,
    /// `ping-timeout`: four times this limits each packet of the handshake.
    pub ping_timeout: Duration,
    /// `socket-check-timeout`: how long a chosen pair must stay alive; zero: `ping_timeout`.
    pub socket_check_timeout: Duration,
    /// `timeout`: how long the meta socket may not take a byte, and how long a closed link may go on sending.
    pub timeout: Duration,
    /// `sndbuf-size` in bytes; 0: the system's.
    pub sndbuf_bytes: u32,
    /// `rcvbuf-size` in bytes; 0: the system's.
    pub rcvbuf_bytes: u32,
    /// `cram-hmac-alg` and `shared-secret`.
    pub auth: Option<(HmacAlg, Secret)>,
    /// Versions and features to offer.
    pub announce: Features,
    /// Offer [`FeatureFlags::RELAXED_EPOCHS`] besides.
    pub relaxed_epochs: bool,
    /// Accept connections from the peer's configured IP only. Off behind an address translation.
    pub check_peer_address: bool,
}

impl LinkConfig {
    /// DRBD's defaults between these two addresses.
    #[must_use]
    pub const fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        Self {
            local,
            peer,
            connect_int: Duration::from_secs(10),
            ping_timeout: Duration::from_millis(500),
            socket_check_timeout: Duration::ZERO,
            timeout: Duration::from_secs(6),
            sndbuf_bytes: 0,
            rcvbuf_bytes: 0,
            auth: None,
            announce: Features::own(),
            relaxed_epochs: true,
            check_peer_address: true,
        }
    }

    /// How long a chosen pair must stay alive before it counts.
    pub(super) const fn settle_time(&self) -> Duration {
        if self.socket_check_timeout.is_zero() { self.ping_timeout } else { self.socket_check_timeout }
    }

    /// Limit of one packet before the link is up.
    pub(super) fn handshake_timeout(&self) -> Duration {
        self.ping_timeout.saturating_mul(4)
    }

    /// What this node puts into `P_CONNECTION_FEATURES`.
    pub(super) const fn offer(&self) -> Features {
        let flags = self.announce.flags.without(FeatureFlags::RELAXED_EPOCHS);
        let flags = flags.with_if(FeatureFlags::RELAXED_EPOCHS, self.relaxed_epochs);
        Features { flags, ..self.announce }
    }
}
