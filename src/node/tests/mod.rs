//! Two real nodes in one process: shards with their threads, rings, disks and TCP connections, under faults below the ring,
//! in the network, and by an operator; at the end everything that was promised is there and both nodes are equal.
//!
//! A round is drawn from a seed (`round`): two machines (`machine`) on files with a volatile write cache
//! (`crate::disk::fault`), a network between them (`proxy`), NBD clients (`clients`) who remember what they were promised
//! (`history`). Threads are real, so a seed gives the same parameters and a similar story, not the same one.
//!
//! `UDRBD_EXECUTOR_ROUNDS` says how many rounds to run, `UDRBD_EXECUTOR_FROM` the first seed; with `UDRBD_EXECUTOR_TELL=1`
//! rounds that end well tell their story, too.

mod clients;
mod directed;
mod history;
mod machine;
mod operator;
mod params;
mod proxy;
mod round;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use self::params::{Figures, Params};
use self::round::Round;
use crate::disk::fault::Mistake;
use crate::engine::rng::Rng;

/// The longest that anything may take; generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rounds at the same time: most of a round is waiting.
const AT_A_TIME: usize = 4;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A shard must notice its own panics, and the test's must still be seen.
fn hook_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            super::supervisor::mark_thread(info);
            before(info);
        }));
    });
}

/// Runs one round; the story of a failure.
fn run(seed: u64, change: impl FnOnce(&mut Params)) -> Result<Figures, String> {
    hook_panics();
    let mut params = Params::draw(&mut Rng::new(seed));
    change(&mut params);
    let round = catch_unwind(AssertUnwindSafe(|| Round::new(seed, params)));
    let mut round = round.map_err(|_| format!("round {seed} could not begin"))?;
    let ended = catch_unwind(AssertUnwindSafe(|| round.run()));
    if ended.is_ok() && number("UDRBD_EXECUTOR_TELL", 0) > 0 {
        println!("round {seed}: {}", round.describe(""));
    }
    ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        format!("round {seed} failed: {text}\n{}", round.describe(&text))
    })
}

/// Runs rounds, a few at a time, until `count` are done or one has failed.
fn run_all(from: u64, count: u64, change: impl Fn(&mut Params) + Sync) -> (Figures, Option<(u64, String)>) {
    let next = AtomicU64::new(from);
    let result = Mutex::new((Figures::default(), None));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || result.lock().unwrap_or_else(PoisonError::into_inner).1.is_some() {
                        return;
                    }
                    let ended = run(seed, &change);
                    let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                    match ended {
                        Ok(figures) => result.0 += figures,
                        Err(why) => {
                            result.0.rounds += 1;
                            result.1.get_or_insert((seed, why));
                        }
                    }
                }
            });
        }
    });
    result.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn nodes_under_faults_lose_nothing_and_end_equal() {
    let (from, count) = (number("UDRBD_EXECUTOR_FROM", 0), number("UDRBD_EXECUTOR_ROUNDS", 12));
    let (figures, failure) = run_all(from, count, |_| {});
    println!("{figures:#?}");
    if let Some((_, why)) = failure {
        panic!("{why}");
    }
}

/// Runs rounds with a mistake until one fails, which it must within `count`.
fn notice(mistake: Mistake, count: u64, change: impl Fn(&mut Params) + Sync) {
    let from = number("UDRBD_EXECUTOR_FROM", 0);
    let (figures, failure) = run_all(from, count, |params| {
        params.mistake = Some(mistake);
        change(params);
    });
    let (seed, why) = failure.unwrap_or_else(|| panic!("{mistake:?} was not noticed in {count} rounds"));
    println!(
        "{mistake:?} was noticed after {} rounds, in round {seed}: {}",
        figures.rounds,
        why.lines().next().unwrap_or_default()
    );
}

#[test]
#[ignore = "takes minutes: shows that a seeded mistake of the driver is noticed"]
fn flushes_that_are_answered_early_are_noticed() {
    notice(Mistake::FlushEarly, 200, |params| params.power = true);
}

#[test]
#[ignore = "takes minutes: shows that a seeded mistake of the driver is noticed"]
fn writes_that_are_answered_early_are_noticed() {
    notice(Mistake::WriteEarly, 60, |_| {});
}

#[test]
#[ignore = "takes minutes: shows that a seeded mistake of the driver is noticed"]
fn a_dropped_fua_is_noticed() {
    notice(Mistake::FuaDropped, 60, |params| params.power = true);
}

#[test]
#[ignore = "takes minutes: shows that a seeded mistake of the driver is noticed"]
fn memory_that_is_reused_too_early_is_noticed() {
    notice(Mistake::BufferEarly, 60, |_| {});
}
