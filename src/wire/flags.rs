//! Sets of bits that keep the bits they do not know.

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($(#[$bdoc:meta])* $bit:ident = $value:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$bdoc])* pub const $bit: Self = Self($value);)*
            /// No bit.
            pub const NONE: Self = Self(0);
            /// All bits with a name.
            pub const KNOWN: Self = Self(0 $(| $value)*);

            /// Whether all bits of `other` are set.
            #[must_use]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// Whether at least one bit of `other` is set.
            #[must_use]
            pub const fn has_any(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }
            /// The bits of both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// `other`'s bits added if `on`.
            #[must_use]
            pub const fn with_if(self, other: Self, on: bool) -> Self {
                if on { self.with(other) } else { self }
            }
            /// The bits that both have.
            #[must_use]
            pub const fn and(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }
            /// The bits that `other` does not have.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut first = true;
                $(if self.has(Self::$bit) {
                    if !first { f.write_str("|")?; }
                    f.write_str(stringify!($bit))?;
                    first = false;
                })*
                let unknown = self.without(Self::KNOWN).0;
                if unknown != 0 || first {
                    if !first { f.write_str("|")?; }
                    write!(f, "{unknown:#x}")?;
                }
                Ok(())
            }
        }
    };
}

pub(super) use flags;

#[cfg(test)]
mod tests {
    flags!(
        /// Test bits.
        Bits(u8) {
            /// One.
            ONE = 1;
            /// Two.
            TWO = 2;
        }
    );

    #[test]
    fn debug_names_known_bits_and_keeps_unknown_ones() {
        assert_eq!(format!("{:?}", Bits(0x13)), "ONE|TWO|0x10");
        assert_eq!(format!("{:?}", Bits::NONE), "0x0");
        assert_eq!(format!("{:?}", Bits::ONE), "ONE");
        assert_eq!(Bits::ONE.with_if(Bits::TWO, true).and(Bits::TWO), Bits::NONE.with(Bits::TWO));
        assert!(Bits(3).has(Bits::TWO) && !Bits(1).has(Bits(3)) && Bits(1).has_any(Bits(3)));
    }
}
