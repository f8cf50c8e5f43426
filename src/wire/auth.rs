//! Mutual authentication by challenge and response, CRAM-HMAC (wire.md 4.3).
//!
//! Takes in the shared secret and 64 random bytes; gives out the response to the peer's challenge and the verdict on
//! the peer's. Authenticates the start of a connection only. The secret is wiped from memory when dropped and never
//! printed; comparisons take constant time.

use std::fmt;

use bytes::Bytes;
use hmac::{EagerHash, Hmac, KeyInit, Mac};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::digest::{Digest, DigestAlg};
use super::error::{Fault, Place, WireError};
use super::kind::{Kind, Phase, Socket};

/// Length of this node's challenge in bytes.
pub const CHALLENGE_LEN: usize = 64;

/// Longest shared secret in bytes. drbd.conf: shorter than 64.
pub const SECRET_LEN_MAX: usize = 63;

/// A shared secret.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The secret with these bytes; `None` when it is longer than 63.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= SECRET_LEN_MAX).then(|| Self(Zeroizing::new(bytes.to_vec())))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A hash algorithm that an HMAC can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HmacAlg(DigestAlg);

impl HmacAlg {
    /// The algorithm with this kernel name (`cram-hmac-alg`). The checksums are no hashes and refused, as by the
    /// kernel.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match DigestAlg::from_name(name)? {
            DigestAlg::Crc32c | DigestAlg::Crc32 | DigestAlg::CrcT10Dif => None,
            hash => Some(Self(hash)),
        }
    }

    /// Length of a response in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the length of a digest is never 0")]
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// The HMAC of `message` under `secret`.
    #[must_use]
    pub fn sign(self, secret: &Secret, message: &[u8]) -> Digest {
        match self.0 {
            DigestAlg::Sha1 => hmac::<sha1::Sha1>(secret, message),
            DigestAlg::Sha224 => hmac::<sha2::Sha224>(secret, message),
            DigestAlg::Sha256 => hmac::<sha2::Sha256>(secret, message),
            DigestAlg::Sha384 => hmac::<sha2::Sha384>(secret, message),
            DigestAlg::Sha512 => hmac::<sha2::Sha512>(secret, message),
            DigestAlg::Md5 | DigestAlg::Crc32c | DigestAlg::Crc32 | DigestAlg::CrcT10Dif => {
                hmac::<md5::Md5>(secret, message)
            }
        }
    }
}

fn hmac<D: EagerHash>(secret: &Secret, message: &[u8]) -> Digest
where
    Hmac<D>: KeyInit + Mac,
{
    // An HMAC takes a key of any length, and no digest is longer than 64 bytes: the fallbacks are never reached.
    let Ok(mut mac) = <Hmac<D> as KeyInit>::new_from_slice(&secret.0) else { return Digest::EMPTY };
    mac.update(message);
    Digest::new(&mac.finalize().into_bytes()).unwrap_or_default()
}

/// One authentication, from this node's side.
#[derive(Clone)]
pub struct Authentication {
    alg: HmacAlg,
    secret: Secret,
    own: [u8; CHALLENGE_LEN],
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authentication").field("alg", &self.alg.0).finish_non_exhaustive()
    }
}

impl Authentication {
    /// An authentication with `own` fresh random bytes.
    #[must_use]
    pub const fn new(alg: HmacAlg, secret: Secret, own: [u8; CHALLENGE_LEN]) -> Self {
        Self { alg, secret, own }
    }

    /// What to send as `P_AUTH_CHALLENGE`.
    #[must_use]
    pub fn challenge(&self) -> Bytes {
        Bytes::copy_from_slice(&self.own)
    }

    /// What to answer as `P_AUTH_RESPONSE` to the peer's challenge. A challenge that begins with our own is refused:
    /// the peer would have us sign it for it. So is one of illegal length.
    pub fn respond(&self, challenge: &[u8]) -> Result<Bytes, WireError> {
        let fail = |fault| WireError {
            place: Place { socket: Socket::Data, phase: Phase::AuthChallenge },
            packet: Some(Kind::AuthChallenge),
            fault,
        };
        if challenge.len() < CHALLENGE_LEN || challenge.len() > 2 * CHALLENGE_LEN {
            return Err(fail(Fault::Length { got: challenge.len() as u64, min: 64, max: 128 }));
        }
        if bool::from(challenge[..CHALLENGE_LEN].ct_eq(&self.own)) {
            return Err(fail(Fault::Reflection));
        }
        Ok(Bytes::copy_from_slice(self.alg.sign(&self.secret, challenge).as_bytes()))
    }

    /// Whether the peer's `P_AUTH_RESPONSE` shows that it knows the secret. One of another length means another
    /// algorithm: the kernel tries again.
    pub fn verify(&self, response: &[u8]) -> Result<(), WireError> {
        let fail = |fault| WireError {
            place: Place { socket: Socket::Data, phase: Phase::AuthResponse },
            packet: Some(Kind::AuthResponse),
            fault,
        };
        let want = self.alg.sign(&self.secret, &self.own);
        if response.len() != want.len() {
            let len = u32::try_from(want.len()).unwrap_or(0);
            return Err(fail(Fault::Length { got: response.len() as u64, min: len, max: len }));
        }
        if bool::from(want.as_bytes().ct_eq(response)) { Ok(()) } else { Err(fail(Fault::WrongResponse)) }
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::super::error::Reaction;
    use super::*;

    const NODE2: [u8; 64] = hex!(
        "00c00fa1aa3752e13ac17099e226e09d b8c0060c187edda39e52d936baec8066"
        "dd59701894193 41c1123d8af4f2e62a1 849d431569b0629cb2437be8cf1cf174"
    );
    const NODE1: [u8; 64] = hex!(
        "2b8f47cb4574097761 6693f9137ca176197bd75c50aa1d323412418afc593bb6"
        "a5bb066ddbe0f083c632957834918 9a4472ee6c1c05f9ff70753c391cd c39f9a"
    );
    const RESPONSE1: [u8; 20] = hex!("909f67482cfa830f3f98c9e4503585bb8b6b0b76");
    const RESPONSE2: [u8; 20] = hex!("1c9fec912dd378f480c84041469a459cb3f0be02");

    fn node(own: [u8; 64], secret: &str) -> Authentication {
        Authentication::new(HmacAlg::from_name("sha1").unwrap(), Secret::new(secret.as_bytes()).unwrap(), own)
    }

    #[test]
    fn captured_exchange() {
        let (node1, node2) = (node(NODE1, "my-secret"), node(NODE2, "my-secret"));
        assert_eq!(node1.respond(&node2.challenge()).unwrap(), RESPONSE1.as_slice());
        assert_eq!(node2.respond(&node1.challenge()).unwrap(), RESPONSE2.as_slice());
        assert_eq!(node2.verify(&RESPONSE1), Ok(()));
        assert_eq!(node1.verify(&RESPONSE2), Ok(()));
    }

    #[test]
    fn another_secret_ends_the_attempt_and_another_length_does_not() {
        let e = node(NODE2, "your-secret").verify(&RESPONSE1).unwrap_err();
        assert_eq!((e.fault.clone(), e.reaction()), (Fault::WrongResponse, Reaction::StandAlone));
        let e = node(NODE2, "my-secret").verify(&[0; 32]).unwrap_err();
        assert_eq!(e.reaction(), Reaction::Reconnect);
        let mut wrong = RESPONSE1;
        wrong[19] ^= 1;
        assert!(node(NODE2, "my-secret").verify(&wrong).is_err());
    }

    #[test]
    fn our_own_challenge_is_not_signed_even_with_a_tail() {
        let us = node(NODE1, "my-secret");
        for tail in [0, 1, 64] {
            let mut reflected = NODE1.to_vec();
            reflected.resize(64 + tail, 7);
            let e = us.respond(&reflected).unwrap_err();
            assert_eq!((e.fault.clone(), e.reaction()), (Fault::Reflection, Reaction::StandAlone));
        }
        for len in [0, 63, 129] {
            assert_eq!(us.respond(&vec![9; len]).unwrap_err().reaction(), Reaction::StandAlone);
        }
    }

    #[test]
    fn published_hmac_vector_for_every_hash() {
        // RFC 2202 and 4231, test case 2: key "Jefe".
        let message = b"what do ya want for nothing?";
        for (name, want) in [
            ("md5", "750c783e6ab0b503eaa86e310a5db738"),
            ("sha1", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            ("sha224", "a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44"),
            ("sha256", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        ] {
            let got = HmacAlg::from_name(name).unwrap().sign(&Secret::new(b"Jefe").unwrap(), message);
            assert_eq!(format!("{got:?}"), want, "{name}");
        }
        for name in ["sha384", "sha512-avx2"] {
            let alg = HmacAlg::from_name(name).unwrap();
            assert_eq!(alg.sign(&Secret::new(b"Jefe").unwrap(), message).len(), alg.len());
        }
        assert_eq!(HmacAlg::from_name("crc32c"), None);
        assert!(Secret::new(&[0; 64]).is_none());
        assert_eq!(format!("{:?}", node(NODE1, "my-secret")), "Authentication { alg: Sha1, .. }");
    }
}
