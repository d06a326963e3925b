//! Durations as Kubernetes' tables print them: `5s`, `3m20s`, `2d4h`.

use jiff::Timestamp;
use serde_json::Value;

/// What a table prints where a time is not known.
pub const UNKNOWN: &str = "<unknown>";

/// Kubernetes' `duration.HumanDuration`, of whole seconds.
pub fn duration(seconds: i64) -> String {
    let two = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(hours / 24, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// The time a field says.
pub fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// How long ago a field's time is.
pub fn since(value: &Value, now: Timestamp) -> String {
    time(value).map_or_else(|| UNKNOWN.into(), |then| duration(now.as_second() - then.as_second()))
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_read_as_kubernetes_prints_them() {
        let hour = 3600;
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (600, "10m"),
            (179 * 60, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 60, "3h1m"),
            (8 * hour, "8h"),
            (47 * hour, "47h"),
            (49 * hour, "2d1h"),
            (8 * 24 * hour, "8d"),
            (365 * 24 * hour, "365d"),
            (731 * 24 * hour, "2y1d"),
            (9 * 365 * 24 * hour, "9y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }
}
