//! Seeded bugs: mistakes that the engine can be told to make, so that the simulator's checkers can prove that they notice.
//!
//! Owns the list of faults with their names. A fault is one wrong decision at one place of the engine, guarded by
//! [`Engine::faulty`]; none is ever on unless the simulator calls [`Engine::inject`], and without the feature `sim` the
//! guard is the constant `false`, so that the daemon's code does not contain them.

use crate::engine::Engine;
#[cfg(any(test, feature = "sim"))]
use crate::units::{GenId, VolumeNr};

/// Declares the faults once: variant, name on the command line, what goes wrong.
macro_rules! faults {
    ($($variant:ident, $name:literal, $text:literal;)*) => {
        /// One seeded bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $(#[doc = $text] $variant,)*
        }

        impl Fault {
            /// Every fault there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it does wrong, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

faults! {
    AckBeforePeer, "ack-before-peer", "A protocol C write is completed when the local disk has it, before the peer's acknowledgement.";
}

impl Fault {
    /// The fault of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|fault| fault.name() == name)
    }
}

impl Engine {
    /// The generation that the clients of a volume have seen.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub fn exposed(&self, volume: VolumeNr) -> GenId {
        self.volumes.get(&volume).map_or(GenId::UNSET, |volume| volume.exposed)
    }

    /// Makes the engine commit this mistake from now on; `None`: none.
    #[cfg(any(test, feature = "sim"))]
    pub fn inject(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// Whether this mistake is to be made.
    #[cfg(any(test, feature = "sim"))]
    #[inline]
    pub(crate) fn faulty(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether this mistake is to be made: never.
    #[cfg(not(any(test, feature = "sim")))]
    #[inline]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(crate) const fn faulty(&self, _: Fault) -> bool {
        false
    }
}
