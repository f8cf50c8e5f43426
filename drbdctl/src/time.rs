//! Moments as text, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds and microseconds since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Year, month and day of a day number since 1970-01-01, in the Gregorian calendar.
const fn civil(days: u64) -> (u64, u64, u64) {
    // Years that start in March: leap days then come last. Day 0 is 0000-03-01.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

fn date_and_time(at: Duration, separator: char) -> String {
    let secs = at.as_secs();
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}{separator}{hour:02}:{minute:02}:{second:02}")
}

/// As the head of a dump has it: `2026-11-20 07:16:52 +0000 [1795159012]`.
pub fn dump_stamp() -> String {
    let at = now();
    format!("{} +0000 [{}]", date_and_time(at, ' '), at.as_secs())
}

/// A moment, seconds since 1970: `2026-11-20 07:16:52 UTC`.
pub fn date(secs: u64) -> String {
    format!("{} UTC", date_and_time(Duration::from_secs(secs), ' '))
}

/// As events2 has it: `2026-11-20T07:16:52.000123+00:00`.
pub fn event_stamp() -> String {
    let at = now();
    format!("{}.{:06}+00:00", date_and_time(at, 'T'), at.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        let text = |secs| date_and_time(Duration::from_secs(secs), ' ');
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(1_795_159_012), "2026-11-20 07:16:52");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(text(4_107_542_399), "2100-02-28 23:59:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00");
    }
}
