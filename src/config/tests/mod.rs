//! Tests of the room as a whole.

mod corpus;
mod language;
mod properties;
