//! The judge is the kernel: what two nodes decide when they meet, by their generation identifiers, and after a split brain by every
//! policy, roles and changes.
//!
//! Each cell of the matrix is played by four pairs: kernel and kernel (the reference), kernel and udrbd, udrbd and kernel, udrbd
//! and udrbd. All must end in the same states, with the same survivor and the same relation of generation identifiers. `cargo
//! xtask policies` and `cargo xtask handshake` play them and write the tables; ordinary runs of the tests play none. Where the lab cannot run, everything is
//! skipped and says why.

mod bench;
mod cells;
mod handshake;
mod play;
mod side;
#[path = "../kernel_peer/udrbd_node.rs"]
#[expect(dead_code, reason = "shared with the scenarios, which use all of it")]
mod udrbd_node;

use std::process::ExitCode;

use bench::Bench;
use xtask::harness::Case;

const CASES: &[Case<Bench>] = &[
    Case { name: "policies::all_pairs_decide_alike", run: play::matrix },
    Case { name: "handshake::all_pairs_compare_alike", run: handshake::rules },
];

fn main() -> ExitCode {
    xtask::harness::main(CASES, Bench::new, Bench::after_failure)
}
