//! `cargo xtask COMMAND`: the developer commands.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod cluster_fs;
mod crash_states;
mod executor;
mod lab_command;
mod packages;
mod policies;
mod sim;
mod test;

use std::process::ExitCode;

use clap::Parser;
use xtask::tidy;

#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask", about = "Developer commands of udrbd")]
enum Command {
    /// Install what tests need (root on Debian), then run all of them; the last line counts
    Test {
        /// Do not install anything
        #[arg(long)]
        no_install: bool,
        /// Run only tests whose name contains one of these
        filter: Vec<String>,
    },
    /// The kernel lab: boots real kernels to test against
    #[command(subcommand)]
    Lab(lab_command::LabCommand),
    /// The simulator: every fault, from one seed, on the real engine; `sim --help` lists what it can do
    #[command(disable_help_flag = true)]
    Sim {
        /// For the simulator's tool
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Every crash state of recorded metadata writes: attached, and a part through the real drbdmeta (root on Debian: installed)
    CrashStates {
        /// Crash states of each scenario that must be attached
        #[arg(long, default_value_t = crash_states::STATES)]
        states: u64,
        /// Images of all scenarios that the real drbdmeta reads and recovers, too
        #[arg(long, default_value_t = crash_states::IMAGES)]
        images: u64,
        /// First seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Do not install anything
        #[arg(long)]
        no_install: bool,
    },
    /// Rounds of two nodes with the production executor: real threads, disks and sockets that fail
    Executor {
        /// How many
        #[arg(long, default_value_t = executor::ROUNDS)]
        rounds: u64,
        /// Seed of the first
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Rounds that end well tell their story, too
        #[arg(long)]
        tell: bool,
    },
    /// Split brains under every policy, played by pairs of kernels and udrbd, which must decide alike
    Policies {
        /// First cell of the matrix
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Play every so-manyth cell only
        #[arg(long, default_value_t = 1)]
        step: u64,
        /// Write the table to this file
        #[arg(long)]
        write: Option<std::path::PathBuf>,
        /// Do not install anything
        #[arg(long)]
        no_install: bool,
    },
    /// Every rule of the handshake, played by pairs of kernels and udrbd, which must compare alike
    Handshake {
        /// Write the table to this file
        #[arg(long)]
        write: Option<std::path::PathBuf>,
        /// Do not install anything
        #[arg(long)]
        no_install: bool,
    },
    /// Cluster file systems on both nodes of two Primaries, each guest through its kernel's NBD client
    ClusterFs {
        /// Do not install anything
        #[arg(long)]
        no_install: bool,
        /// Play only cases whose name contains one of these
        filter: Vec<String>,
    },
    /// Check what the compiler does not: rooms, file lengths, words, reasons for dependencies
    Tidy {
        /// Shrink the list of long files to what is there
        #[arg(long)]
        bless: bool,
        /// With --bless: admit longer and new files too
        #[arg(long, requires = "bless")]
        admit: bool,
    },
}

fn main() -> ExitCode {
    match Command::parse() {
        Command::Test { no_install, filter } => test::run(!no_install, &filter),
        Command::Sim { args } => sim::run(&args),
        Command::CrashStates { states, images, seed, no_install } => {
            crash_states::run(&crash_states::Order { states, images, seed, install: !no_install })
        }
        Command::Policies { from, step, write, no_install } => policies::run(!no_install, from, step, write.as_deref()),
        Command::Handshake { write, no_install } => policies::handshake(!no_install, write.as_deref()),
        Command::ClusterFs { no_install, filter } => cluster_fs::run(!no_install, &filter),
        Command::Executor { rounds, from, tell } => executor::run(rounds, from, tell),
        Command::Lab(command) => lab_command::run(command).unwrap_or_else(|err| {
            eprintln!("lab: {err}");
            ExitCode::from(2)
        }),
        Command::Tidy { bless, admit } => run_tidy(bless, admit).unwrap_or_else(|err| {
            eprintln!("tidy: cannot read the tree: {err}");
            ExitCode::from(2)
        }),
    }
}

fn run_tidy(bless: bool, admit: bool) -> std::io::Result<ExitCode> {
    let root = tidy::root();
    if bless {
        tidy::length::bless(&root, &tidy::files(&root)?, admit)?;
    }
    let findings = tidy::check(&root)?;
    for finding in &findings {
        println!("{finding}");
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
