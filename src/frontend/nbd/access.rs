//! Who may use NBD over TCP: there is no authentication, so the address is all there is.
//!
//! Owns: [`Cidr`] (the argument of `--nbd-allow`) and [`Access`]. Invariant: without a list only loopback gets in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    addr: IpAddr,
    bits: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network: expected ADDRESS or ADDRESS/BITS, e.g. 192.0.2.0/24")]
pub struct BadCidr(String);

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let bad = || BadCidr(text.to_owned());
        let (addr, bits) = text.split_once('/').map_or((text, None), |(addr, bits)| (addr, Some(bits)));
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let most = if addr.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(bad)?,
        };
        Ok(Self { addr, bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

impl Cidr {
    /// Whether `addr` belongs to this network; an IPv4 address inside an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let differ = Ipv4Addr::to_bits(net) ^ Ipv4Addr::to_bits(addr);
                differ.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let differ = Ipv6Addr::to_bits(net) ^ Ipv6Addr::to_bits(addr);
                differ.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// The rule for TCP clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(Vec<Cidr>);

impl Access {
    /// Loopback and these networks.
    #[must_use]
    pub const fn new(allowed: Vec<Cidr>) -> Self {
        Self(allowed)
    }

    /// Whether a client from `addr` may negotiate.
    #[must_use]
    pub fn allows(&self, addr: IpAddr) -> bool {
        addr.to_canonical().is_loopback() || self.0.iter().any(|net| net.contains(addr))
    }

    /// Whether it is safe to listen on `addr`.
    #[must_use]
    pub fn allows_listening(&self, addr: IpAddr) -> bool {
        addr.to_canonical().is_loopback() || !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_compare_their_leading_bits() {
        assert!(net("192.0.2.0/24").contains("192.0.2.200".parse().unwrap()));
        assert!(!net("192.0.2.0/25").contains("192.0.2.200".parse().unwrap()));
        assert!(net("192.0.2.7").contains("::ffff:192.0.2.7".parse().unwrap()));
        assert!(net("0.0.0.0/0").contains("203.0.113.1".parse().unwrap()));
        assert!(!net("0.0.0.0/0").contains("2001:db8::1".parse().unwrap()));
        assert!(net("2001:db8::/32").contains("2001:db8:1::1".parse().unwrap()));
        assert!(net("::/0").contains("2001:db8:1::1".parse().unwrap()));
    }

    #[test]
    fn bad_networks_are_named() {
        for text in ["", "192.0.2.0/33", "192.0.2.0/x", "192.0.2/24", "::/129", "/8"] {
            assert_eq!(text.parse::<Cidr>(), Err(BadCidr(text.to_owned())));
        }
    }

    #[test]
    fn without_a_list_only_loopback_gets_in() {
        let nobody = Access::default();
        assert!(nobody.allows("127.0.0.2".parse().unwrap()));
        assert!(nobody.allows("::1".parse().unwrap()));
        assert!(!nobody.allows("192.0.2.1".parse().unwrap()));
        assert!(!nobody.allows_listening("0.0.0.0".parse().unwrap()));
        let some = Access::new(vec![net("192.0.2.0/24")]);
        assert!(some.allows("192.0.2.1".parse().unwrap()));
        assert!(!some.allows("198.51.100.1".parse().unwrap()));
        assert!(some.allows_listening("0.0.0.0".parse().unwrap()));
    }
}
