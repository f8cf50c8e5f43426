//! `udrbd-sim`: plays runs of the simulator; `cargo xtask sim` builds it and hands its arguments on.
//!
//! Exit code 0 when every run was sound (with `--mutants`: when every seeded bug was found), 1 when not, 2 for wrong arguments.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod figures;
mod known;
mod many;
mod mutants;
mod one;

use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;
use udrbd::engine::fault::Fault;

/// Plays runs of the simulator.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", about = "The simulator: every fault, from one seed, on the real engine")]
struct Args {
    /// Seeds to play, FROM..TO
    #[arg(long, value_parser = parse_range, default_value = "0..1000", conflicts_with = "seed")]
    seeds: Range<u64>,
    /// One seed
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Reduce the failing schedule of --seed to the fewest steps
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Make both engines commit this mistake; "list" lists them
    #[arg(long)]
    inject: Option<String>,
    /// Look for every seeded bug (with --inject: for that one) in these seeds
    #[arg(long, num_args = 0..=1, default_missing_value = "0..2000", value_name = "FROM..TO", value_parser = parse_range,
          conflicts_with_all = ["seed", "seeds"])]
    mutants: Option<Range<u64>>,
    /// With --mutants: also shrink what finds each bug
    #[arg(long, requires = "mutants")]
    shrink_all: bool,
    /// Threads; by default as many as there are processors
    #[arg(long)]
    jobs: Option<usize>,
    /// Play seeds from the start of --seeds on for so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Play every seed twice and compare the traces
    #[arg(long)]
    twice: bool,
    /// Print which transitions, rules, outcomes and packets were reached, and which were not
    #[arg(long)]
    coverage: bool,
    /// Also write what is printed to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    write: Option<std::path::PathBuf>,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected FROM..TO")?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text}: {e}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err(String::from("the range is empty")) } else { Ok(range) }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let inject = match args.inject.as_deref() {
        None => None,
        Some("list") => {
            for fault in Fault::ALL.iter().chain(Fault::MENDED) {
                println!("{:32} {}", fault.name(), fault.text());
            }
            return ExitCode::SUCCESS;
        }
        Some(name) => match Fault::from_name(name) {
            Some(fault) => Some(fault),
            None => {
                eprintln!("no seeded bug is called {name:?}; --inject list lists them");
                return ExitCode::from(2);
            }
        },
    };
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    // Panics of an engine are findings; their text is in the report.
    std::panic::set_hook(Box::new(|_| {}));
    let (sound, report) = if let Some(seeds) = &args.mutants {
        mutants::run(seeds, inject, jobs, args.shrink_all)
    } else if let Some(seed) = args.seed {
        one::run(seed, inject, args.trace, args.shrink)
    } else {
        many::run(&many::Order {
            seeds: args.seeds,
            inject,
            jobs,
            minutes: args.minutes,
            twice: args.twice,
            coverage: args.coverage,
        })
    };
    print!("{report}");
    if let Some(path) = &args.write
        && let Err(error) = std::fs::write(path, &report)
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::from(2);
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
