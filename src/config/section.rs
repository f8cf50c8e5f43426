//! The macro that turns rows of the option table into a typed section: fields, getters, access by name, and the rows.
//!
//! One place for each option is the point: a name, range or default is written once, in [`super::options`].

/// Turns rows into a typed section: a struct of `Option`s (`None` = not set), getters with the same names that fill in the
/// defaults, access by name, and the rows as `OptionSpec`s.
macro_rules! option_section {
    (
        $(#[$doc:meta])* $name:ident = $section:expr;
        $($(#[$fdoc:meta])* $text:literal $field:ident: $ty:ty = $kind:ident($($arg:expr),*), $traits:expr;)+
        $(extra { $($(#[$xdoc:meta])* $xfield:ident: $xty:ty,)+ })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, rename_all = "kebab-case")]
        pub struct $name {
            $($(#[$fdoc])* #[serde(rename = $text, skip_serializing_if = "Option::is_none")] pub $field: Option<$ty>,)+
            $($($(#[$xdoc])* pub $xfield: $xty,)+)?
        }

        impl $name {
            /// The rows of the option table, in the order of the documentation.
            pub const SPECS: &'static [OptionSpec] = &[$({
                let traits: Traits = $traits;
                OptionSpec {
                    name: $text,
                    section: $section,
                    kind: option_section!(@kind $kind $ty, $($arg),*),
                    alias: traits.alias,
                    negated: traits.negated,
                    in_syncer: traits.in_syncer,
                    in_file: traits.in_file,
                    online: traits.online,
                    clamps: traits.clamps,
                    pending: traits.pending,
                }
            },)+];

            $(option_section!(@getter $kind $field, $ty, $text, $($arg),*);)+

            /// Sets the option `name` (the current name, no alias) from text.
            ///
            /// # Errors
            /// The section has no such option, or the value is not allowed.
            pub fn set(&mut self, name: &str, text: &str) -> Result<(), ValueError> {
                let spec = Self::SPECS.iter().find(|s| s.name == name).ok_or_else(|| ValueError {
                    message: format!("{} has no option '{name}'", $section),
                    help: format!("options of {}: {}", $section, Self::SPECS.iter().map(|s| s.name).collect::<Vec<_>>().join(", ")),
                })?;
                match name {
                    $($text => self.$field = Some(OptionValue::parse(spec, text)?),)+
                    _ => {}
                }
                Ok(())
            }

            /// Back to "not set".
            pub fn unset(&mut self, name: &str) {
                match name {
                    $($text => self.$field = None,)+
                    _ => {}
                }
            }

            /// Every option that is set, in table order, with its value as a file would say it in the option's own unit.
            #[must_use]
            pub fn values(&self) -> Vec<(&'static OptionSpec, String)> {
                let texts = [$(self.$field.as_ref().map(OptionValue::text),)+];
                Self::SPECS.iter().zip(texts).filter_map(|(spec, text)| Some((spec, text?))).collect()
            }

            /// Takes over every option that `over` sets.
            pub fn overlay(&mut self, over: &Self) {
                $(if over.$field.is_some() {
                    self.$field.clone_from(&over.$field);
                })+
            }
        }
    };

    (@kind num $ty:ty, $min:expr, $max:expr, $default:expr) => {
        Kind::Number {
            scale: <$ty as NumberValue>::SCALE,
            unit: <$ty as NumberValue>::UNIT,
            min: $min,
            max: $max,
            default: $default,
        }
    };
    (@kind flag $ty:ty, $default:expr) => { Kind::Flag { default: $default } };
    (@kind word $ty:ty, $default:expr) => { Kind::Word { words: <$ty>::WORDS, default: $default.text() } };
    (@kind other $ty:ty, $kind:expr, $default:expr) => { $kind };
    (@kind text $ty:ty, $max_len:expr) => { Kind::Text { max_len: $max_len } };

    (@getter num $field:ident, $ty:ty, $text:literal, $min:expr, $max:expr, $default:expr) => {
        #[doc = concat!("Effective `", $text, "`: the value that is set, or the default.")]
        #[must_use]
        pub fn $field(&self) -> $ty {
            self.$field.unwrap_or(<$ty as NumberValue>::from_units($default))
        }
    };
    (@getter flag $field:ident, $ty:ty, $text:literal, $default:expr) => {
        #[doc = concat!("Effective `", $text, "`: the value that is set, or the default.")]
        #[must_use]
        pub fn $field(&self) -> bool {
            self.$field.unwrap_or($default)
        }
    };
    (@getter word $field:ident, $ty:ty, $text:literal, $default:expr) => {
        #[doc = concat!("Effective `", $text, "`: the value that is set, or the default.")]
        #[must_use]
        pub fn $field(&self) -> $ty {
            self.$field.unwrap_or($default)
        }
    };
    (@getter other $field:ident, $ty:ty, $text:literal, $kind:expr, $default:expr) => {
        #[doc = concat!("Effective `", $text, "`: the value that is set, or the default.")]
        #[must_use]
        pub fn $field(&self) -> $ty {
            self.$field.clone().unwrap_or($default)
        }
    };
    (@getter text $field:ident, $ty:ty, $text:literal, $max_len:expr) => {
        #[doc = concat!("Effective `", $text, "`: `None` when off (not set, or set to the empty text).")]
        #[must_use]
        pub fn $field(&self) -> Option<&$ty> {
            self.$field.as_ref().filter(|v| !OptionValue::text(*v).is_empty())
        }
    };
}

pub(super) use option_section;
