//! What a plain scalar means: kubectl's YAML, which is YAML 1.1 in its booleans and octal numbers.

use serde_json::{Number, Value};

/// Whole numbers up to here are exact as floating point.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// The value of a plain scalar.
pub fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => return true.into(),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => return false.into(),
        _ => {}
    }
    number(text).map_or_else(|| text.into(), Value::Number)
}

/// Whether a string would be read as something else if it stood there plainly.
pub fn is_misread(text: &str) -> bool {
    !resolve(text).is_string() || is_time(text) || is_base_60(text) || matches!(text, "<<" | "=") || is_not_finite(text)
}

fn is_not_finite(text: &str) -> bool {
    matches!(text.trim_start_matches(['+', '-']), ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
}

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if !first.is_ascii_digit() && !matches!(first, b'+' | b'-' | b'.') {
        return None;
    }
    let plain: String = text.chars().filter(|char| *char != '_').collect();
    integer(&plain).or_else(|| float(&plain))
}

fn integer(text: &str) -> Option<Number> {
    let (is_negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let amount = i128::from_str_radix(digits, radix).ok()?;
    let amount = if is_negative { -amount } else { amount };
    i64::try_from(amount).map(Number::from).or_else(|_| u64::try_from(amount).map(Number::from)).ok()
}

fn float(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_mantissa = is_digits(whole) && is_digits(part) && !(whole.is_empty() && part.is_empty());
    if !is_mantissa || exponent.is_some_and(|exponent| exponent.is_empty() || !is_digits(exponent)) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, reason = "whole and within the exact range")]
    if value.fract() == 0.0 && value.abs() <= EXACT_MAX {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

/// A date, alone or with a time: readers of YAML 1.1 take it for one.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_date =
        bytes.len() >= 8 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-' && bytes[5..].contains(&b'-');
    is_date
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b':' | b'.' | b'T' | b't' | b'Z' | b' ' | b'+'))
}

/// `190:20:30`: a number of base 60 to readers of YAML 1.1.
fn is_base_60(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = digits.split(':');
    let first = parts.next().unwrap_or_default();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let mut rest = parts.peekable();
    is_number(first) && rest.peek().is_some() && rest.all(is_number)
}
