//! `udrbd-sim`: plays seeds of the simulator; what `cargo xtask sim` runs.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let from: u64 = args[1].parse().unwrap_or(0);
    let to: u64 = args[2].parse().unwrap_or(0);
    let lines = args.get(3).is_some_and(|a| a == "trace");
    let mut ops: Vec<u64> = Vec::new();
    let t = std::time::Instant::now();
    let mut virt = 0;
    let mut bad = 0;
    if lines {
        println!("{}", udrbd::sim::draw::plan(from).params);
    }
    for seed in from..to {
        let out = std::panic::catch_unwind(|| udrbd::sim::run::seed(seed, None, lines));
        match out {
            Ok(o) => {
                ops.push(o.stats.operations);
                virt += o.stats.virtual_ns;
                if lines {
                    println!("{}", o.trace.unwrap_or_default());
                    println!("{:?}", o.stats);
                }
                if let Some(v) = o.violation {
                    bad += 1;
                    println!("seed {seed}: {} at {} {}", v.checker.name(), v.at / 1_000_000, v.text);
                }
            }
            Err(_) => {
                bad += 1;
                println!("seed {seed}: PANIC")
            }
        }
    }
    ops.sort_unstable();
    let s = t.elapsed().as_secs_f64();
    println!(
        "{} seeds, {bad} bad, median ops {}, {:.1} s, {:.0}x",
        to - from,
        ops.get(ops.len() / 2).copied().unwrap_or(0),
        s,
        virt as f64 / 1e9 / s
    );
}
