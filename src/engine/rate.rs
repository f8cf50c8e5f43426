//! How fast resync and verify requests may go out: a token bucket for a fixed rate, or a cap on what is in flight.
//!
//! Owns tokens and the bytes in flight. Takes in the time, gives out "now" or "not before". Exact: in any interval at most
//! `burst + rate * time` bytes are granted (plus the excess of one request larger than the burst), and no credit is lost to
//! rounding, whatever the pattern of calls.
//! Source: behaviour.md 7.3 (fixed rate), DESIGN section on options that are not set (no maximum, requests in flight).

use std::time::Duration;

use crate::units::Timestamp;

const NANOS: i128 = 1_000_000_000;

/// Tokens that come in at a fixed rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    bytes_per_s: u64,
    burst: u64,
    /// Bytes times nanoseconds per second; negative after a request larger than the burst.
    credit: i128,
    at: Timestamp,
}

impl TokenBucket {
    /// A full bucket. `burst` (bytes) is at least 1.
    #[must_use]
    pub fn new(now: Timestamp, bytes_per_s: u64, burst: u64) -> Self {
        let burst = burst.max(1);
        Self { bytes_per_s, burst, credit: i128::from(burst) * NANOS, at: now }
    }

    /// Takes `bytes`. A request larger than the burst goes when the bucket is full and leaves a debt.
    ///
    /// # Errors
    /// The time until the same call can succeed; `Duration::MAX` with a rate of 0.
    pub fn take(&mut self, now: Timestamp, bytes: u64) -> Result<(), Duration> {
        self.settle(now);
        let missing = i128::from(bytes.min(self.burst)) * NANOS - self.credit;
        if missing <= 0 {
            self.credit -= i128::from(bytes) * NANOS;
            return Ok(());
        }
        if self.bytes_per_s == 0 {
            return Err(Duration::MAX);
        }
        let rate = i128::from(self.bytes_per_s);
        Err(Duration::from_nanos(u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX)))
    }

    /// Changes the rate from now on.
    pub fn set_rate(&mut self, now: Timestamp, bytes_per_s: u64) {
        self.settle(now);
        self.bytes_per_s = bytes_per_s;
    }

    /// The rate, in bytes per second.
    #[must_use]
    pub const fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    fn settle(&mut self, now: Timestamp) {
        // u64 nanoseconds times u64 bytes fits into 127 bits.
        let passed = i128::from(now.0.saturating_sub(self.at.0)) * i128::from(self.bytes_per_s);
        self.credit = self.credit.saturating_add(passed).min(i128::from(self.burst) * NANOS);
        self.at = self.at.max(now);
    }
}

/// Why a request may not go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Too fast: not before this time has passed.
    For(Duration),
    /// Too much in flight: wait for an answer.
    InFlight,
}

/// Pace of one resync: an optional fixed rate, and always a cap on the bytes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacer {
    bucket: Option<TokenBucket>,
    in_flight: u64,
    in_flight_max: u64,
}

impl Pacer {
    /// As fast as answers come, with at most `in_flight_max` bytes in flight.
    #[must_use]
    pub const fn unlimited(in_flight_max: u64) -> Self {
        Self { bucket: None, in_flight: 0, in_flight_max }
    }

    /// A fixed rate in bytes per second, with at most `in_flight_max` bytes in flight.
    #[must_use]
    pub fn fixed(now: Timestamp, bytes_per_s: u64, burst: u64, in_flight_max: u64) -> Self {
        Self { bucket: Some(TokenBucket::new(now, bytes_per_s, burst)), in_flight: 0, in_flight_max }
    }

    /// Asks to send a request for `bytes`. A single request larger than the cap goes when nothing else is in flight.
    ///
    /// # Errors
    /// What to wait for.
    pub fn take(&mut self, now: Timestamp, bytes: u64) -> Result<(), Denied> {
        if self.in_flight > 0 && self.in_flight.saturating_add(bytes) > self.in_flight_max {
            return Err(Denied::InFlight);
        }
        if let Some(bucket) = &mut self.bucket {
            bucket.take(now, bytes).map_err(Denied::For)?;
        }
        self.in_flight = self.in_flight.saturating_add(bytes);
        Ok(())
    }

    /// A request for `bytes` was answered or is lost.
    pub const fn answered(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// Bytes in flight.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Changes the cap; what is in flight already stays.
    pub const fn set_in_flight_max(&mut self, bytes: u64) {
        self.in_flight_max = bytes;
    }

    /// Changes the rate; `None` is unlimited. `burst` counts only where there was no fixed rate before.
    pub fn set_rate(&mut self, now: Timestamp, bytes_per_s: Option<u64>, burst: u64) {
        match (&mut self.bucket, bytes_per_s) {
            (Some(bucket), Some(rate)) => bucket.set_rate(now, rate),
            (None, Some(rate)) => self.bucket = Some(TokenBucket::new(now, rate, burst)),
            (_, None) => self.bucket = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Timestamp {
        Timestamp(ms * 1_000_000)
    }

    #[test]
    fn it_says_exactly_when_the_next_request_may_go() {
        let mut bucket = TokenBucket::new(ms(0), 1000, 100);
        assert_eq!(bucket.take(ms(0), 60), Ok(()));
        assert_eq!(bucket.take(ms(0), 60), Err(Duration::from_millis(20)));
        assert_eq!(bucket.take(ms(19), 60), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(ms(20), 60), Ok(()));
        bucket.set_rate(ms(20), 3);
        assert_eq!(bucket.take(ms(20), 1), Err(Duration::from_nanos(333_333_334)));
        bucket.set_rate(ms(20), 0);
        assert_eq!(bucket.take(ms(99), 1), Err(Duration::MAX));
    }

    #[test]
    fn a_long_rest_saves_up_no_more_than_the_burst() {
        let mut bucket = TokenBucket::new(ms(0), 1000, 100);
        assert_eq!(bucket.take(ms(0), 100), Ok(()));
        assert_eq!(bucket.take(ms(1_000_000), 100), Ok(()));
        assert_eq!(bucket.take(ms(1_000_000), 100), Err(Duration::from_millis(100)));
    }

    #[test]
    fn a_request_larger_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
        let mut bucket = TokenBucket::new(ms(0), 1000, 100);
        assert_eq!(bucket.take(ms(0), 300), Ok(()));
        assert_eq!(bucket.take(ms(0), 300), Err(Duration::from_millis(300)));
        assert_eq!(bucket.take(ms(0), 1), Err(Duration::from_millis(201)));
        assert_eq!(bucket.take(ms(300), 300), Ok(()));
    }

    #[test]
    fn the_cap_on_what_is_in_flight_holds_with_and_without_a_rate() {
        let mut pacer = Pacer::unlimited(100);
        assert_eq!(pacer.take(ms(0), 500), Ok(()), "alone it may be larger than the cap");
        assert_eq!(pacer.take(ms(0), 1), Err(Denied::InFlight));
        pacer.answered(450);
        assert_eq!(pacer.take(ms(0), 50), Ok(()));
        pacer.answered(100);
        pacer.set_rate(ms(0), Some(1000), 10);
        assert_eq!(pacer.take(ms(0), 10), Ok(()));
        assert_eq!(pacer.take(ms(0), 10), Err(Denied::For(Duration::from_millis(10))));
        assert_eq!(pacer.in_flight(), 10, "a refused request does not count");
        pacer.set_rate(ms(0), None, 10);
        assert_eq!(pacer.take(ms(0), 90), Ok(()));
        assert_eq!(pacer.take(ms(0), 1), Err(Denied::InFlight));
    }

    proptest! {
        /// Whatever the pattern of calls: who comes at the time told gets through, and in sum neither more nor less than
        /// the rate is granted.
        #[test]
        fn it_is_exact(
            rate in 1_u64..1 << 40,
            burst in 1_u64..1 << 30,
            takes in prop::collection::vec((1_u64..1 << 22, 0_u64..3_000_000), 1..60),
        ) {
            let mut bucket = TokenBucket::new(Timestamp(5), rate, burst);
            let (mut now, mut granted) = (Timestamp(5), 0_u128);
            for (bytes, pause) in takes {
                now = Timestamp(now.0 + pause);
                let bytes = bytes.min(burst);
                if let Err(wait) = bucket.take(now, bytes) {
                    prop_assert!(!wait.is_zero());
                    let just_before = Timestamp(now.after(wait).0 - 1);
                    prop_assert!(bucket.take(just_before, bytes).is_err());
                    now = now.after(wait);
                    prop_assert_eq!(bucket.take(now, bytes), Ok(()));
                }
                granted += u128::from(bytes);
                let allowed = u128::from(burst) * 1_000_000_000 + u128::from(rate) * u128::from(now.0 - 5);
                prop_assert!(granted * 1_000_000_000 <= allowed);
            }
        }
    }
}
