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
