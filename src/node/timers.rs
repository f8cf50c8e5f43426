//! The engine's timers of one resource: a handful of one-shot deadlines, and one sleep for the earliest.
//!
//! Setting a timer later than the sleep costs nothing but the entry; the sleep then ends early and finds nothing due.

use std::collections::BTreeMap;

use crate::engine::event::Timer;
use crate::units::Timestamp;

/// Deadlines.
#[derive(Debug, Default)]
pub struct Timers {
    due: BTreeMap<Timer, Timestamp>,
    /// What the sleep waits for.
    armed: Option<Timestamp>,
}

impl Timers {
    /// Sets or moves a timer; true when the sleep must be shortened.
    pub fn set(&mut self, timer: Timer, at: Timestamp) -> bool {
        self.due.insert(timer, at);
        self.armed.is_none_or(|armed| at < armed)
    }

    /// Takes a timer back.
    pub fn cancel(&mut self, timer: Timer) {
        self.due.remove(&timer);
    }

    /// The earliest deadline, which the caller goes to sleep for.
    pub fn arm(&mut self) -> Option<Timestamp> {
        self.armed = self.due.values().min().copied();
        self.armed
    }

    /// Takes one timer whose time has come.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        let timer = self.due.iter().find(|(_, at)| **at <= now).map(|(timer, _)| *timer)?;
        self.due.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_deadline_shortens_the_sleep() {
        let mut timers = Timers::default();
        assert_eq!(timers.arm(), None);
        assert!(timers.set(Timer::Ping, Timestamp(100)));
        assert_eq!(timers.arm(), Some(Timestamp(100)));
        assert!(!timers.set(Timer::EpochFlush, Timestamp(200)));
        assert!(timers.set(Timer::EpochFlush, Timestamp(50)));
        assert_eq!(timers.arm(), Some(Timestamp(50)));
        assert_eq!(timers.pop_due(Timestamp(49)), None);
        assert_eq!(timers.pop_due(Timestamp(100)), Some(Timer::Ping));
        timers.cancel(Timer::EpochFlush);
        assert_eq!(timers.pop_due(Timestamp(1000)), None);
    }
}
