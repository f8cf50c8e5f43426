//! What both nodes agreed on, as far as it changes bytes on the wire: version, features and digest algorithms.
//!
//! The encoder and the decoder take it by reference; whoever drives them keeps one per connection and lets it follow
//! the packets that go by ([`Agreed::note_sent`], [`Agreed::note_received`]), because a change takes effect exactly
//! between two packets of the data socket (wire.md 4.4).

use super::digest::DigestAlg;
use super::error::Fault;
use super::feature::{FeatureFlags, Features, Version};
use super::packet::Packet;

/// The settings that both nodes agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Protocol version.
    pub version: Version,
    /// Features that both announced.
    pub features: FeatureFlags,
    /// Integrity algorithm of the data that this node sends: its own `data-integrity-alg`.
    pub integrity_sent: Option<DigestAlg>,
    /// Integrity algorithm of the data that the peer sends, as it announced.
    pub integrity_received: Option<DigestAlg>,
    /// Algorithm of online verify.
    pub verify: Option<DigestAlg>,
    /// Algorithm of the checksum based resync.
    pub csums: Option<DigestAlg>,
}

impl Agreed {
    /// Before the features are known: the oldest version, no features, no digests.
    #[must_use]
    pub const fn initial() -> Self {
        Self::new(Version::MIN, FeatureFlags::NONE)
    }

    /// Version and features, no digests.
    #[must_use]
    pub const fn new(version: Version, features: FeatureFlags) -> Self {
        Self { version, features, integrity_sent: None, integrity_received: None, verify: None, csums: None }
    }

    /// The outcome of two offers; [`Fault::Versions`] when their ranges do not meet.
    pub fn negotiate(own: Features, peer: Features) -> Result<Self, Fault> {
        let fault = || Fault::Versions { own, peer };
        let newest = |f: Features| if f.protocol_max == 0 { f.protocol_min } else { f.protocol_max };
        let (own_max, peer_max) = (newest(own), newest(peer));
        if own_max < peer.protocol_min || own.protocol_min > peer_max || peer.protocol_min > peer_max {
            return Err(fault());
        }
        let version = Version::new(own_max.min(peer_max)).ok_or_else(fault)?;
        Ok(Self::new(version, own.flags.and(peer.flags)))
    }

    /// Follows a packet that this node puts into its data socket: packets behind it have the new digests.
    pub fn note_sent(&mut self, packet: &Packet) {
        match packet {
            Packet::Protocol(p) | Packet::ProtocolUpdate(p) => self.integrity_sent = p.integrity_alg.alg(),
            _ => self.note_sync_param(packet),
        }
    }

    /// Follows a packet that came in on the data socket: packets behind it have the new digests.
    pub fn note_received(&mut self, packet: &Packet) {
        match packet {
            Packet::Protocol(p) | Packet::ProtocolUpdate(p) => self.integrity_received = p.integrity_alg.alg(),
            _ => self.note_sync_param(packet),
        }
    }

    /// Both nodes use the same algorithms for verify and checksums; the last sender of settings wins.
    fn note_sync_param(&mut self, packet: &Packet) {
        if let Packet::SyncParam(p) = packet {
            if let Some(name) = &p.verify_alg {
                self.verify = name.alg();
            }
            if let Some(name) = &p.csums_alg {
                self.csums = name.alg();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(protocol_min: u32, protocol_max: u32, flags: u32) -> Features {
        Features { protocol_min, protocol_max, flags: FeatureFlags(flags) }
    }

    #[test]
    fn the_lower_maximum_and_the_common_features_win() {
        let own = Features::own();
        let agreed = Agreed::negotiate(own, offer(86, 96, 0xff)).unwrap();
        assert_eq!((agreed.version.nr(), agreed.features), (96, FeatureFlags(0xf)));
        let agreed = Agreed::negotiate(own, offer(90, 0, 3)).unwrap();
        assert_eq!((agreed.version.nr(), agreed.features), (90, FeatureFlags(3)));
        let agreed = Agreed::negotiate(own, offer(80, 121, 0)).unwrap();
        assert_eq!(agreed.version, Version::MAX);
    }

    #[test]
    fn ranges_that_do_not_meet_are_refused() {
        for peer in [offer(102, 121, 0xf), offer(80, 85, 0), offer(85, 0, 0), offer(101, 86, 0), offer(0, 0, 0)] {
            assert!(matches!(Agreed::negotiate(Features::own(), peer), Err(Fault::Versions { .. })), "{peer:?}");
        }
    }
}
