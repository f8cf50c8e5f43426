//! A test binary's `main` (`harness = false`) for cases that share something expensive, like a booted kernel.
//!
//! Takes the arguments of the standard harness that matter (a filter, `--exact`, `--skip`, `--list`, `--ignored`) and prints
//! what that would print, so that `cargo test`, cargo-nextest and `cargo xtask test` understand it. Cases run in order, one
//! at a time; a panicking case fails alone.

#![expect(clippy::print_stdout, reason = "a test harness talks on standard output")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something does not hold.
    Failed(String),
    /// It cannot run here, for this reason (one line).
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Verdict {
    fn from(err: E) -> Self {
        Self::Failed(err.to_string())
    }
}

/// A case, given what all cases share.
pub struct Case<S> {
    /// Its name.
    pub name: &'static str,
    /// What it does; panics or returns an error if something does not hold.
    pub run: fn(&mut S) -> Result<(), Verdict>,
}

impl<S> std::fmt::Debug for Case<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--exact" => arguments.exact = true,
                "--list" => arguments.list = true,
                "--ignored" => arguments.ignored = true,
                "--skip" => arguments.skip.extend(words.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(words.next()),
                _ if word.starts_with('-') => {}
                _ => arguments.filters.push(word),
            }
        }
        arguments
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skip.iter().any(matches)
    }
}

/// Names the variable that holds `K/N`: of the cases that no filter names every Nth is played, from the Kth on.
pub const SHARE_VARIABLE: &str = "UDRBD_LAB_SHARE";
/// Fewer cases than this are always played.
const SHARED_FROM: usize = 12;

/// Whether a share holds the case with this index.
fn in_share(share: &str, index: usize) -> bool {
    let numbers = share.split_once('/').and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    numbers.filter(|(_, n)| *n > 0).is_none_or(|(k, n)| index % n == k % n)
}

/// Runs the selected cases. `prepare` makes what they share, or says in one line why they cannot run here: then they count
/// as ignored. After a failed case `after_failure` gets the shared thing (and says what is worth reading); what it leaves is
/// what the next case gets.
pub fn main<S>(
    cases: &[Case<S>],
    prepare: impl FnOnce() -> Result<S, String>,
    after_failure: impl Fn(&mut S) -> String,
) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let mut selected: Vec<&Case<S>> = cases.iter().filter(|case| arguments.selects(case.name)).collect();
    if let Ok(share) = std::env::var(SHARE_VARIABLE)
        && arguments.filters.is_empty()
        && !arguments.list
        && selected.len() >= SHARED_FROM
    {
        selected =
            selected.into_iter().enumerate().filter(|(i, _)| in_share(&share, *i)).map(|(_, case)| case).collect();
        println!("share {share}: {} of {} cases", selected.len(), cases.len());
    }
    if arguments.list {
        // No case is ignored beforehand, so a list of the ignored ones is empty.
        for case in selected.iter().filter(|_| !arguments.ignored) {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    let filtered_out = cases.len() - selected.len();
    let begin = Instant::now();
    println!("\nrunning {} tests", selected.len());
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    if !selected.is_empty() && !arguments.ignored {
        match prepare() {
            Err(reason) => {
                println!("skipped: {reason}");
                for case in &selected {
                    println!("test {} ... ignored, {reason}", case.name);
                }
                ignored = selected.len();
            }
            Ok(mut shared) => {
                for case in &selected {
                    let start = Instant::now();
                    let verdict = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut shared)));
                    let seconds = start.elapsed().as_secs_f32();
                    let complaint = match verdict {
                        Ok(Ok(())) => {
                            println!("test {} ... ok ({seconds:.1} s)", case.name);
                            passed += 1;
                            continue;
                        }
                        Ok(Err(Verdict::Skipped(reason))) => {
                            println!("test {} ... ignored, {reason}", case.name);
                            ignored += 1;
                            continue;
                        }
                        Ok(Err(Verdict::Failed(complaint))) => complaint,
                        Err(_panic) => "panicked, see above".to_owned(),
                    };
                    println!("test {} ... FAILED ({seconds:.1} s)\n{complaint}", case.name);
                    println!("{}", after_failure(&mut shared));
                    failed += 1;
                }
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered_out} filtered \
         out; finished in {:.2}s\n",
        begin.elapsed().as_secs_f32()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_the_standard_harness_are_understood() {
        let parse = |line: &str| Arguments::parse(line.split_whitespace().map(str::to_owned));
        assert!(parse("").selects("anything"));
        assert!(parse("--nocapture sync --test-threads 1").selects("first_sync"));
        assert!(!parse("--exact sync").selects("first_sync"));
        assert!(!parse("sync --skip first").selects("first_sync"));
        assert!(parse("--list --format terse").list);
    }

    #[test]
    fn shares_are_disjoint_and_complete() {
        for index in 0..20 {
            assert_eq!((0..3).filter(|k| in_share(&format!("{k}/3"), index)).count(), 1);
        }
        assert!(in_share("7/3", 1) && in_share("nonsense", 5) && in_share("1/0", 5));
    }
}
