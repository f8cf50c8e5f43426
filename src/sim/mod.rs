//! The simulator: the real engines of two nodes in a simulated world, played from one seed.
//!
//! Nothing that decides is a mock: engines, metadata reader, packet encoder and decoder are those of the daemon. What surrounds
//! them is played in virtual time: disks that lose what was not flushed, a network of bytes, clients, an operator, crashes.
//! Pure: no clock, thread, file or randomness from outside; the same plan gives the same run.
//!
//! **Reading order.** [`plan`] (what a run consists of), [`draw`] (from a seed); [`world`] (time and queue), [`node`],
//! [`device`] (the medium), [`net`] (the bytes); `act`, `links`, `clients`, `operator` (what happens); [`model`] (what was
//! promised), `check`; [`run`](mod@run), [`shrink`](mod@shrink); [`scenario`] (told step by step, for named tests). Apart from
//! those: [`crash_states`], every power cut of recorded metadata writes.

pub mod coverage;
pub mod crash_states;
pub mod device;
pub mod draw;
mod fencing;
pub mod model;
pub mod net;
pub mod node;
pub mod plan;
mod policy;
mod programs;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod stamp;
pub mod trace;
mod undo;
pub mod world;

mod act;
mod begin;
mod check;
mod clients;
mod growth;
mod links;
mod look;
mod manager;
mod operator;
mod reads;
mod sectors;
#[cfg(test)]
mod tests;

#[cfg(test)]
mod scenarios;
