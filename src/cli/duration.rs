//! Durations in and out: Go's `1h30m` on the command line, Kubernetes' short ages in columns.

use std::time::Duration;

use jiff::Timestamp;

/// Reads a Go duration: decimal numbers with a unit, one after the other; `0` needs no unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(|| format!("time: missing unit in duration {text:?}"))?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..letters] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
            };
        rest = &rest[letters..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// A duration as Go prints it: `1h30m0s`, `1.5s`, `250ms`.
pub fn go(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        let ms = duration.as_secs_f64() * 1000.0;
        return if ms == 0.0 { "0s".into() } else { format!("{ms}ms") };
    }
    let fraction = duration.subsec_nanos();
    let mut rest = (seconds % 60).to_string();
    if fraction > 0 {
        rest.push_str(format!(".{fraction:09}").trim_end_matches('0'));
    }
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// Reads a duration that may be negative (`--timeout=-1s` means a week to kubectl's `wait`).
pub fn parse_signed(text: &str) -> Result<Option<Duration>, String> {
    match text.strip_prefix('-') {
        Some(positive) => parse(positive).map(|_| None),
        None => parse(text).map(Some),
    }
}

/// The duration as a flag value parser of clap.
pub fn flag(text: &str) -> Result<Duration, String> {
    parse(text)
}

/// How long something lasts, with the precision people want: `45s`, `3m20s`, `17m`, `5h12m`, `3d4h`, `200d`, `2y30d`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 * 2 {
        return format!("{seconds}s");
    }
    let minutes = seconds / 60;
    if minutes < 10 {
        return with_rest(minutes, "m", seconds % 60, "s");
    }
    if minutes < 60 * 3 {
        return format!("{minutes}m");
    }
    let hours = minutes / 60;
    if hours < 8 {
        return with_rest(hours, "h", minutes % 60, "m");
    }
    if hours < 48 {
        return format!("{hours}h");
    }
    let days = hours / 24;
    if hours < 24 * 8 {
        return with_rest(days, "d", hours % 24, "h");
    }
    if days < 365 * 2 {
        return format!("{days}d");
    }
    let years = days / 365;
    if days < 365 * 8 { with_rest(years, "y", days % 365, "d") } else { format!("{years}y") }
}

fn with_rest(whole: u64, unit: &str, rest: u64, rest_unit: &str) -> String {
    if rest == 0 { format!("{whole}{unit}") } else { format!("{whole}{unit}{rest}{rest_unit}") }
}

/// How long ago an RFC 3339 time was: `<unknown>` if there is none, `<invalid>` if it lies in the future.
pub fn since(time: Option<&str>, now: Timestamp) -> String {
    let Some(time) = time.and_then(|text| text.parse::<Timestamp>().ok()) else { return "<unknown>".into() };
    between(time, now)
}

/// The time between two points, as `since` prints it.
pub fn between(start: Timestamp, end: Timestamp) -> String {
    let seconds = end.as_second() - start.as_second();
    // Clocks of two machines may differ a little: that is not an age of "<invalid>".
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s => human(Duration::from_secs(s.max(0).unsigned_abs())),
    }
}

/// Go's RFC 1123 with a numeric zone, in local time, which `describe` uses: `Fri, 20 Nov 2026 21:00:00 +0000`.
pub fn rfc1123z(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => time.to_zoned(jiff::tz::TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
        Err(_) => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (18_720, "5h12m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (273_600, "3d4h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (65_664_000, "2y30d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn go_durations() {
        for (text, millis) in [("0", 0), ("1s", 1000), ("1h1m", 3_660_000), ("1.5s", 1500), ("250ms", 250)] {
            assert_eq!(parse(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in ["", "5", "s", "1x", "-1s", "1e9h"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_signed("-1s"), Ok(None));
        for text in ["0s", "250ms", "5s", "1.5s", "1m0s", "1h0m3s"] {
            assert_eq!(go(parse(text).unwrap()), text);
        }
    }
}
