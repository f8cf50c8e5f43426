//! Tests of the room as a whole.

#[cfg(feature = "drivers")]
mod corpus;
mod language;
mod properties;
