//! Numbers that may be said as a share: `3` or `25%`.

use crate::field::{At, FieldError};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
    regex used for validation is '[0-9]+%')";

/// What a number or share comes to, of `total`; shares are rounded up or down. `None` for text that is no share.
pub fn int_or_percent(value: &IntOrString, total: i32, is_rounded_up: bool) -> Option<i32> {
    let text = match value {
        IntOrString::Int(number) => return Some(*number),
        IntOrString::String(text) => text,
    };
    let share = share(text)? * i64::from(total);
    i32::try_from(if is_rounded_up { (share + 99).div_euclid(100) } else { share.div_euclid(100) }).ok()
}

fn share(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse::<i32>().ok()).flatten().map(i64::from)
}

/// The share that a value says, if it says one.
pub(crate) fn percent(value: &Value) -> Option<i64> {
    share(value.as_str()?)
}

/// Whether a number or share is nothing.
pub(crate) fn is_zero(at: &At<'_>) -> bool {
    at.int() == Some(0) || percent(at.value) == Some(0)
}

/// What is wrong with a number or share that may not be negative.
pub(crate) fn positive_int_or_percent(at: &At<'_>) -> Option<FieldError> {
    match at.value {
        Value::String(_) if percent(at.value).is_none() => Some(at.invalid(PERCENT)),
        _ => at.non_negative(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_as_told() {
        let of = |text: &str, up| int_or_percent(&IntOrString::String(text.into()), 3, up);
        assert_eq!(
            [of("25%", true), of("25%", false), of("100%", true), of("0%", true)],
            [Some(1), Some(0), Some(3), Some(0)]
        );
        assert_eq!([of("25", true), of("%", true), of("-1%", true), of("99999999999%", true)], [None; 4]);
        assert_eq!(int_or_percent(&IntOrString::Int(2), 3, true), Some(2));
    }
}
