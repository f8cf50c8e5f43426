//! `cargo xtask COMMAND`: the developer commands.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use xtask::lab;

fn main() -> std::process::ExitCode {
    if let Err(e) = lab::check_available() {
        eprintln!("{e}");
        return 2.into();
    }
    match lab::selftest::run(&lab::Kernel::debian(), &mut |line| println!("{line}")) {
        Ok(()) => 0.into(),
        Err(err) => {
            eprintln!("{err}");
            1.into()
        }
    }
}
