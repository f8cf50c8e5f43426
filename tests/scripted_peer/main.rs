//! The daemon against a scripted DRBD peer: a test that speaks the wire protocol itself, in every version that changes
//! something, as Primary and as Secondary, as source and as target, and with everything that a peer should never send.
//! Facts: wire.md 4 to 13.

#![cfg(feature = "drivers")]

#[path = "../daemon_common/mod.rs"]
mod daemon_common;

mod as_primary;
mod as_secondary;
mod bad_handshake;
mod bad_packets;
mod leaving;
mod model;
mod peer;
mod resync;
mod sockets;

/// Versions that differ in format or behaviour, with the feature sets that releases had.
const VERSIONS: [u32; 5] = [86, 95, 96, 100, 101];
const FEATURES: [u32; 3] = [0, 3, 0xf];

/// Runs `scenario` for every item, as many at the same time as makes sense here. A failure names its item.
fn for_each<T: Copy + Send + Sync + std::fmt::Debug>(items: &[T], scenario: impl Fn(T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
            let named = Named(item);
            scenario(*item);
            std::mem::forget(named);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        let mut failures = workers.into_iter().filter_map(|worker| worker.join().err());
        if let Some(panic) = failures.next() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Says which item failed, when a panic passes by.
struct Named<'a, T: std::fmt::Debug>(&'a T);

impl<T: std::fmt::Debug> Drop for Named<'_, T> {
    #[expect(clippy::print_stderr, reason = "the reason of a failed test")]
    fn drop(&mut self) {
        eprintln!("failed with {:?}", self.0);
    }
}

/// Every version with every feature set.
fn combinations() -> Vec<(u32, u32)> {
    VERSIONS.iter().flat_map(|version| FEATURES.iter().map(|features| (*version, *features))).collect()
}
