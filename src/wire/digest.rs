//! Digests: their values inline, the algorithms by kernel name, and the names as they travel (wire.md 5.11, 4.4, 4.6).

use std::fmt;

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

/// The name of a digest algorithm as it is configured and travels: empty for none, or a name on the whitelist
/// ([`DigestAlg::from_name`]), shorter than 64 bytes. Names are compared as text, as the kernel does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlgName(Box<str>);
