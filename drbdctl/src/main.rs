//! `drbdctl`: the admin tool of udrbd, with the command words of drbdadm and drbdsetup.
//!
//! Reads drbd.conf, composes the daemon's primitives, and works on metadata of unattached disks by itself. Owns no state.
//! Exit codes are those of drbdadm (config-and-commands.md 9.1).
//!
//! * [`args`]: the command line. [`cmd`]: one file per group of commands. [`offline`]: metadata without the daemon.
//! * [`context`]: configuration and connection of one run; [`target`]: which resources and volumes are meant.
//! * [`report`]: refusals for people; [`out`]: the only way to stdout and stderr; [`ask`]: questions.
//! * [`demo`]: two nodes on this machine.

mod args;
mod ask;
mod cmd;
mod context;
mod demo;
mod offline;
mod out;
mod report;
mod target;
mod time;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    ExitCode::from(run(&words))
}

fn run(words: &[String]) -> u8 {
    if let Some(code) = demo::run_hidden(words) {
        return code;
    }
    match args::parse(words) {
        Ok(call) => (call.row.run)(&mut context::Context::new(&call), &call).map_or_else(|exit| exit.0, |()| 0),
        Err(refusal) => refusal.say(),
    }
}
