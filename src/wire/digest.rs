//! Digests: their values inline, the algorithms by kernel name, and the names as they travel (wire.md 5.11, 4.4, 4.6).

use std::fmt;

use super::cursor::until_nul;
use super::error::Fault;

/// Longest digest in bytes (sha512).
pub const DIGEST_LEN_MAX: usize = 64;

/// A digest of 0 to 64 bytes, inline. Empty means "none".
#[derive(Clone, Copy)]
pub struct Digest {
    len: u8,
    bytes: [u8; DIGEST_LEN_MAX],
}

impl Digest {
    /// No digest.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; DIGEST_LEN_MAX] };

    /// The digest with these bytes; `None` when there are more than 64.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut d = Self::EMPTY;
        d.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        d.len = u8::try_from(bytes.len()).ok()?;
        Some(d)
    }

    /// The digest with these bytes, which are known to be at most 64.
    fn of(bytes: &[u8]) -> Self {
        Self::new(bytes).unwrap_or(Self::EMPTY)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Digest {}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

macro_rules! algs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $len:literal;)+) => {
        /// A digest algorithm, by the kernel's name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DigestAlg { $($(#[$doc])* $variant,)+ }

        impl DigestAlg {
            /// All algorithms.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The kernel's generic name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Length of a digest in bytes.
            #[must_use]
            #[expect(clippy::len_without_is_empty, reason = "the length of a digest is never 0")]
            pub const fn len(self) -> usize {
                match self { $(Self::$variant => $len,)+ }
            }
        }
    };
}

algs! {
    /// CRC-32C, initial value and final xor all ones, stored little-endian.
    Crc32c = "crc32c", 4;
    /// CRC-32, initial value 0 and no final xor (as in the kernel), stored little-endian.
    Crc32 = "crc32", 4;
    /// CRC-16/T10-DIF, stored in the byte order of the host, which is taken to be little-endian.
    CrcT10Dif = "crct10dif", 2;
    /// MD5.
    Md5 = "md5", 16;
    /// SHA-1.
    Sha1 = "sha1", 20;
    /// SHA-224.
    Sha224 = "sha224", 28;
    /// SHA-256.
    Sha256 = "sha256", 32;
    /// SHA-384.
    Sha384 = "sha384", 48;
    /// SHA-512.
    Sha512 = "sha512", 64;
}

impl DigestAlg {
    /// The algorithm with this kernel name: a generic name, or that of a driver (`sha1-ni`, `crc32c-intel`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let (base, driver) = name.split_once('-').unwrap_or((name, "generic"));
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if driver.is_empty() || !driver.bytes().all(legal) || name.len() >= ALG_NAME_LEN {
            return None;
        }
        Self::ALL.iter().copied().find(|a| a.name() == base)
    }

    /// The digest of the concatenation of `parts`.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Digest {
        match self {
            Self::Crc32c => {
                let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
                Digest::of(&crc.to_le_bytes())
            }
            Self::Crc32 => {
                // The crate inverts before and after; the kernel's "crc32" does neither.
                let mut hasher = crc32fast::Hasher::new_with_initial(u32::MAX);
                parts.iter().for_each(|part| hasher.update(part));
                Digest::of(&(!hasher.finalize()).to_le_bytes())
            }
            Self::CrcT10Dif => {
                let crc = parts.iter().fold(0, |crc, part| t10dif_append(crc, part));
                Digest::of(&crc.to_le_bytes())
            }
            Self::Md5 => hash::<md5::Md5>(parts),
            Self::Sha1 => hash::<sha1::Sha1>(parts),
            Self::Sha224 => hash::<sha2::Sha224>(parts),
            Self::Sha256 => hash::<sha2::Sha256>(parts),
            Self::Sha384 => hash::<sha2::Sha384>(parts),
            Self::Sha512 => hash::<sha2::Sha512>(parts),
        }
    }
}

impl fmt::Display for DigestAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn hash<D: hmac::digest::Digest>(parts: &[&[u8]]) -> Digest {
    let mut d = D::new();
    parts.iter().for_each(|part| d.update(part));
    Digest::of(&d.finalize())
}

/// Polynomial 0x8bb7, not reflected, initial value 0.
fn t10dif_append(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        let [high, low] = crc.to_be_bytes();
        u16::from_be_bytes([low, 0]) ^ T10DIF[usize::from(high ^ byte)]
    })
}

static T10DIF: [u16; 256] = t10dif_table();

const fn t10dif_table() -> [u16; 256] {
    let mut table = [0u16; 256];
    let mut byte: u16 = 0;
    while byte < 256 {
        let mut crc = byte << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x8bb7 } else { crc << 1 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
}

/// Longest algorithm name with its NUL, in bytes.
pub const ALG_NAME_LEN: usize = 64;

/// The name of a digest algorithm as it is configured and travels: empty for none, or a name on the whitelist
/// ([`DigestAlg::from_name`]), shorter than 64 bytes. Names are compared as text, as the kernel does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlgName(Option<(DigestAlg, Box<str>)>);

impl AlgName {
    /// No algorithm: the empty name.
    pub const NONE: Self = Self(None);

    /// The name `text`; `None` when it is not on the whitelist.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::NONE);
        }
        Some(Self(Some((DigestAlg::from_name(text)?, text.into()))))
    }

    /// The name; empty for none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_ref().map_or("", |(_, text)| text)
    }

    /// The algorithm.
    #[must_use]
    pub fn alg(&self) -> Option<DigestAlg> {
        self.0.as_ref().map(|(alg, _)| *alg)
    }

    /// The name in `bytes` up to its NUL. `field` is for the error.
    pub(super) fn decode(bytes: &[u8], field: &'static str) -> Result<Self, Fault> {
        let bytes = until_nul(bytes);
        std::str::from_utf8(bytes)
            .ok()
            .and_then(Self::parse)
            .ok_or_else(|| Fault::UnknownAlgorithm { field, name: String::from_utf8_lossy(bytes).into() })
    }
}

impl From<DigestAlg> for AlgName {
    fn from(alg: DigestAlg) -> Self {
        Self(Some((alg, alg.name().into())))
    }
}

impl fmt::Display for AlgName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    #[test]
    fn captured_digests() {
        let block = [0x41; 4096];
        assert_eq!(DigestAlg::Crc32c.digest(&[&block]).as_bytes(), hex!("e9517205"));
        assert_eq!(DigestAlg::Md5.digest(&[&block]).as_bytes(), hex!("82a7348c2e03731109d0cf45a7325b88"));
        let sha1 = hex!("608cabc0f2fa18c260cafd97451686 5c772363d5");
        assert_eq!(DigestAlg::Sha1.digest(&[&block[..1000], &block[1000..]]).as_bytes(), sha1);
    }

    #[test]
    fn published_check_values() {
        let check = b"123456789";
        assert_eq!(DigestAlg::CrcT10Dif.digest(&[check]).as_bytes(), 0xd0db_u16.to_le_bytes());
        // CRC-32 without inversions: linear, so crc(m) = crc_std(m) ^ crc_std(zeros) for messages of equal length.
        let zeros = [0u8; 9];
        let want = crc32fast::hash(check) ^ crc32fast::hash(&zeros);
        assert_eq!(DigestAlg::Crc32.digest(&[check]).as_bytes(), want.to_le_bytes());
        assert_eq!(
            DigestAlg::Sha224.digest(&[b"abc"]).as_bytes(),
            hex!("23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7")
        );
    }

    #[test]
    fn every_digest_has_the_length_of_its_algorithm() {
        for alg in DigestAlg::ALL {
            assert_eq!(alg.digest(&[b"x"]).len(), alg.len());
            assert_eq!(DigestAlg::from_name(alg.name()), Some(*alg));
            assert_eq!(alg.digest(&[b"ab", b"", b"c"]), alg.digest(&[b"abc"]));
            assert!(alg.len() <= DIGEST_LEN_MAX);
        }
    }

    #[test]
    fn names_of_drivers_and_unknown_names() {
        assert_eq!(DigestAlg::from_name("crc32c-intel"), Some(DigestAlg::Crc32c));
        assert_eq!(DigestAlg::from_name("crc32c-arm64-ce"), Some(DigestAlg::Crc32c));
        assert_eq!(DigestAlg::from_name("sha1-ni"), Some(DigestAlg::Sha1));
        let long = format!("md5-{}", "x".repeat(60));
        for name in ["", "sha1-", "SHA1", "sha3-256", "sha1 ", "sha1-a/b", "hmac(sha1)", &long] {
            assert_eq!(DigestAlg::from_name(name), None, "{name:?}");
        }
        assert_eq!(AlgName::parse(""), Some(AlgName::NONE));
        assert_eq!(AlgName::parse("sha1-ni").unwrap().as_str(), "sha1-ni");
    }

    #[test]
    fn a_digest_compares_by_its_bytes() {
        assert_eq!(Digest::new(&[0; 65]), None);
        assert_ne!(Digest::new(&[0; 4]), Digest::new(&[0; 5]));
        assert_eq!(format!("{:?}", Digest::new(&[1, 0xab]).unwrap()), "01ab");
    }
}
