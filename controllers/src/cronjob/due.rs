//! When a schedule was due last, and how often since.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use manifests::schedule::Schedule;

/// So many missed times are counted.
pub(super) const MISSED_MAX: usize = 100;

/// What was due in some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// The last time.
    pub at: Timestamp,
    /// How many there were, counted up to one more than [`MISSED_MAX`].
    pub count: usize,
}

/// What was due after one moment and not after another.
pub(super) fn between(schedule: &Schedule, zone: &TimeZone, after: Timestamp, until: Timestamp) -> Option<Due> {
    if let Schedule::Every(period) = schedule {
        let count = until.duration_since(after).as_secs().checked_div(period.as_secs())?;
        let at = after.checked_add(SignedDuration::from_secs(count.checked_mul(period.as_secs())?)).ok()?;
        let whole = usize::try_from(count).ok().filter(|count| *count > 0)?;
        return Some(Due { at, count: whole.min(MISSED_MAX + 1) });
    }
    let next = |at| schedule.next(at, zone).filter(|at| *at <= until);
    let first = next(after)?;
    let mut times = std::iter::successors(Some(first), |at| next(*at));
    let count = times.by_ref().take(MISSED_MAX + 1).count();
    // the last one lies where nothing more comes after: halving finds it, however many there are
    let (mut early, mut late) = (first.as_second() - 1, until.as_second());
    while late - early > 1 {
        let middle = early + (late - early) / 2;
        match Timestamp::from_second(middle).ok().and_then(next) {
            Some(_) => early = middle,
            None => late = middle,
        }
    }
    let at = Timestamp::from_second(early).ok().and_then(next).unwrap_or(first);
    Some(Due { at, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_time_is_found_and_the_others_are_counted() {
        let cases = [
            ("*/10 * * * *", "2026-01-01T00:09:59Z", None),
            ("*/10 * * * *", "2026-01-01T00:10:00Z", Some(("2026-01-01T00:10:00Z", 1))),
            ("*/10 * * * *", "2026-01-01T00:59:59Z", Some(("2026-01-01T00:50:00Z", 5))),
            ("* * * * *", "2026-12-24T18:30:30Z", Some(("2026-12-24T18:30:00Z", 101))),
            // every minute of January, seen in December
            ("* * * 1 *", "2026-12-01T00:00:00Z", Some(("2026-01-31T23:59:00Z", 101))),
            ("0 0 30 2 *", "2026-12-01T00:00:00Z", None),
            ("@every 1h", "2026-01-01T00:59:59Z", None),
            ("@every 1h", "2026-01-01T05:20:00Z", Some(("2026-01-01T05:00:00Z", 5))),
        ];
        for (schedule, until, expected) in cases {
            let schedule_read = Schedule::parse(schedule).unwrap();
            let start = "2026-01-01T00:00:00Z".parse().unwrap();
            let due = between(&schedule_read, &TimeZone::UTC, start, until.parse().unwrap());
            let expected = expected.map(|(at, count)| Due { at: at.parse().unwrap(), count });
            assert_eq!(due, expected, "{schedule} until {until}");
        }
    }
}
