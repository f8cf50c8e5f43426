//! The judge is the kernel: what two nodes decide after a split brain, for every policy, roles and changes.
//!
//! Each cell of the matrix is played by four pairs: kernel and kernel (the reference), kernel and udrbd, udrbd and kernel, udrbd
//! and udrbd. All must end in the same states, with the same survivor and the same relation of generation identifiers. `cargo
//! xtask policies` plays them and writes the table; ordinary runs of the tests play none. Where the lab cannot run, everything is
//! skipped and says why.

mod cells;
mod play;
mod side;
#[path = "../kernel_peer/udrbd_node.rs"]
#[expect(dead_code, reason = "shared with the scenarios, which use all of it")]
mod udrbd_node;

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::harness::main(play::CASES, play::Bench::new, play::Bench::after_failure)
}
