//! One story at many moments: it must hold as the engine is, and must not with a seeded bug.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Scenario;
use crate::engine::fault::Fault;

/// Plays a story at every moment `k` below `moments` as it is; then with each of `bugs` until it fails at
/// some moment.
///
/// # Panics
/// The story does not hold without a bug, or does not notice one of them.
pub fn regression(moments: u32, bugs: &[Fault], story: impl Fn(u32, Scenario)) {
    let play = |k: u32, inject: Option<Fault>| {
        let scenario = Scenario::new().seed(u64::from(k) + 1).inject(inject);
        catch_unwind(AssertUnwindSafe(|| story(k, scenario))).map_err(|panic| {
            let owned = panic.downcast_ref::<String>().cloned();
            owned.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        })
    };
    for k in 0..moments {
        if let Err(words) = play(k, None) {
            panic!("at moment {k}: {words}");
        }
    }
    for bug in bugs {
        assert!((0..moments).any(|k| play(k, Some(*bug)).is_err()), "the story does not notice {}", bug.name());
    }
}
