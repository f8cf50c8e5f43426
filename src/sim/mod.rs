//! The simulator: the real engines of two nodes in a simulated world, played from one seed.

pub mod crash_states;
