//! How far a resync or verify is, how fast, and when it ends: DRBD's marks and formulas.
//!
//! Owns eight marks (time, blocks left). Takes in the time and the blocks left, gives out numbers and the two progress lines
//! of `/proc/drbd`. All counts are 4 KiB blocks, all speeds KiB/s. Source: behaviour.md 7.7, 13.2, 13.3.

use std::fmt::Write as _;
use std::time::Duration;

use crate::units::Timestamp;

const MARKS: usize = 8;
const MARK_STEP: Duration = Duration::from_secs(3);
const STALLED_SECS: u64 = 180;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    at: Timestamp,
    left: u64,
}

/// The numbers shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Part done, 0..=1000, in DRBD's coarse arithmetic.
    pub permille: u32,
    /// Estimated time to the end, whole seconds.
    pub finish: Duration,
    /// Speed over about the last 18 s, KiB/s.
    pub speed_kib: u64,
    /// Speed since the start without pauses, KiB/s.
    pub average_kib: u64,
    /// No mark for more than 180 s.
    pub stalled: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    total: u64,
    started: Timestamp,
    paused: Duration,
    paused_since: Option<Timestamp>,
    marks: [Mark; MARKS],
    last: usize,
}

impl Progress {
    /// A run over `total` blocks starts.
    #[must_use]
    pub const fn start(now: Timestamp, total: u64) -> Self {
        Self {
            total,
            started: now,
            paused: Duration::ZERO,
            paused_since: None,
            marks: [Mark { at: now, left: total }; MARKS],
            last: 0,
        }
    }

    /// Blocks to do at the start.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Blocks were done: stores a mark if one is due.
    pub fn advance(&mut self, now: Timestamp, left: u64) {
        let last = self.marks[self.last];
        if self.paused_since.is_none() && now.since(last.at) >= MARK_STEP && left != last.left {
            self.last = (self.last + 1) % MARKS;
            self.marks[self.last] = Mark { at: now, left };
        }
    }

    /// The run is paused; a second call does nothing.
    pub fn pause(&mut self, now: Timestamp) {
        self.paused_since.get_or_insert(now);
    }

    /// The run goes on. The pause counts neither for the average nor for the marks.
    pub fn resume(&mut self, now: Timestamp) {
        if let Some(since) = self.paused_since.take() {
            let pause = now.since(since);
            self.paused = self.paused.saturating_add(pause);
            for mark in &mut self.marks {
                mark.at = mark.at.after(pause);
            }
        }
    }

    /// Time spent paused so far.
    #[must_use]
    pub fn paused(&self, now: Timestamp) -> Duration {
        self.paused.saturating_add(self.paused_since.map_or(Duration::ZERO, |since| now.since(since)))
    }

    /// Time since the start, pauses included.
    #[must_use]
    pub const fn elapsed(&self, now: Timestamp) -> Duration {
        now.since(self.started)
    }

    /// Speed since the mark before the last one, KiB/s: what the c-min-rate throttle looks at.
    #[must_use]
    pub fn recent_kib(&self, now: Timestamp, left: u64) -> u64 {
        let mark = self.marks[(self.last + MARKS - 1) % MARKS];
        kib_per_s(mark.left.saturating_sub(left), now.since(mark.at).as_secs())
    }

    /// The numbers for `left` blocks still to do.
    #[must_use]
    pub fn report(&self, now: Timestamp, left: u64) -> Report {
        let permille = self.permille(left);
        let left = left.min(self.total);
        let mark = self.marks[(self.last + 2) % MARKS];
        let secs = now.since(mark.at).as_secs();
        let done = mark.left.saturating_sub(left);
        let finish = secs.max(1).saturating_mul(left / (done / 100 + 1)) / 100;
        let active = self.elapsed(now).saturating_sub(self.paused(now)).as_secs();
        Report {
            permille,
            finish: Duration::from_secs(finish),
            speed_kib: kib_per_s(done, secs),
            average_kib: kib_per_s(self.total - left, active),
            stalled: secs > STALLED_SECS,
        }
    }

    /// The two progress lines of `/proc/drbd`, each tab-indented and ended by a line feed. `want_kib`: the current
    /// target rate (SyncTarget and VerifyS only).
    #[must_use]
    pub fn render(&self, now: Timestamp, left: u64, verify: bool, want_kib: Option<u64>) -> String {
        let report = self.report(now, left);
        let left = left.min(self.total);
        let cells = usize::try_from(report.permille / 50).unwrap_or(0).min(20);
        let label = if verify { "verified" } else { "sync'ed" };
        let (shown_left, shown_total, unit) = if self.total > 1 << 20 {
            ((left >> 10) * 4, (self.total >> 10) * 4, 'M')
        } else {
            (left * 4, self.total * 4, 'K')
        };
        let mut text = format!(
            "\t[{}>{}] {label}:{:>3}.{}% ({shown_left}/{shown_total}){unit}\n",
            "=".repeat(cells.saturating_sub(1)),
            ".".repeat(20 - cells),
            report.permille / 10,
            report.permille % 10,
        );
        let finish = report.finish.as_secs();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\tfinish: {}:{:02}:{:02} speed: {} ({})",
            finish / 3600,
            finish % 3600 / 60,
            finish % 60,
            thousands(report.speed_kib),
            thousands(report.average_kib),
        );
        if let Some(want) = want_kib {
            let _ = write!(text, " want: {}", thousands(want));
        }
        text.push_str(if report.stalled { " K/sec (stalled)\n" } else { " K/sec\n" });
        text
    }

    fn permille(&self, left: u64) -> u32 {
        if left > self.total {
            return if self.total == 0 { 1000 } else { 0 };
        }
        let shift = if self.total > u64::from(u32::MAX) { 16 } else { 10 };
        let part = (left >> shift) * 1000 / (1 + (self.total >> shift));
        1000 - u32::try_from(part).unwrap_or(1000).min(1000)
    }
}

const fn kib_per_s(blocks: u64, secs: u64) -> u64 {
    blocks / if secs == 0 { 1 } else { secs } * 4
}

/// A number with a comma between groups of three digits.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Timestamp {
        Timestamp(secs * 1_000_000_000)
    }

    #[test]
    fn the_first_second_of_a_small_sync_looks_as_the_kernel_shows_it() {
        let progress = Progress::start(secs(100), 65496 / 4);
        assert_eq!(
            progress.render(secs(101), 64508 / 4, false, None),
            "\t[>...................] sync'ed:  6.3% (64508/65496)K\n\tfinish: 0:00:53 speed: 988 (988) K/sec\n"
        );
    }

    #[test]
    fn large_runs_are_shown_in_mebibytes_with_grouped_digits() {
        let total = 3 << 20;
        let progress = Progress::start(secs(0), total);
        let text = progress.render(secs(600), total / 4, true, Some(1480));
        assert_eq!(
            text,
            "\t[==============>.....] verified: 75.1% (3072/12288)M\n\
             \tfinish: 0:03:18 speed: 15,728 (15,728) want: 1,480 K/sec (stalled)\n"
        );
    }

    #[test]
    fn marks_are_at_least_three_seconds_apart_and_the_short_average_spans_six_of_them() {
        let mut progress = Progress::start(secs(0), 100_000);
        for second in 1..=60 {
            progress.advance(secs(second), 100_000 - second * 100);
            progress.advance(secs(second), 100_000 - second * 100);
        }
        // The last mark is at 60 s, the seventh before it at 39, the second oldest at 42.
        let report = progress.report(secs(60), 90_000);
        assert_eq!(report.speed_kib, (100_000 - 4200 - 90_000) / 18 * 4);
        assert_eq!(report.average_kib, 10_000 / 60 * 4);
        assert_eq!(progress.recent_kib(secs(60), 94_000), 400);
        assert_eq!(progress.recent_kib(secs(60), 99_000), 0, "bits that were set meanwhile are no speed");
    }

    #[test]
    fn a_pause_counts_for_nothing() {
        let mut progress = Progress::start(secs(0), 1000);
        progress.advance(secs(10), 500);
        progress.pause(secs(10));
        progress.pause(secs(15));
        progress.advance(secs(400), 400);
        assert_eq!(progress.paused(secs(20)), Duration::from_secs(10));
        progress.resume(secs(1010));
        progress.resume(secs(1011));
        assert_eq!(progress.paused(secs(2000)), Duration::from_secs(1000));
        let report = progress.report(secs(1010), 500);
        assert_eq!((report.average_kib, report.speed_kib, report.stalled), (200, 200, false));
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let progress = Progress::start(secs(5), 0);
        assert_eq!(progress.report(secs(0), 0).permille, 1000);
        assert_eq!(progress.report(secs(9), 7).permille, 1000);
        let progress = Progress::start(secs(5), u64::MAX >> 20);
        assert_eq!(progress.report(secs(5), u64::MAX).permille, 0);
        assert_eq!(progress.report(secs(5), 0).permille, 1000);
        assert!(progress.render(Timestamp(u64::MAX), 1, false, None).contains("sync'ed:100.0% "));
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
