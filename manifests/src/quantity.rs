//! Kubernetes quantities: `100m`, `1.5Gi`, `2e3`, exactly.
//!
//! An [`Amount`] is a number of nano-units, as precise as Kubernetes keeps one, and the suffix style it was written in.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::cmp::Ordering;
use std::fmt;

/// Most digits a number may have before its suffix; more than any real amount needs.
const DIGITS_MAX: usize = 24;
/// Kubernetes caps amounts at 2^63-1 units.
const UNITS_MAX: i128 = i64::MAX as i128;
/// Nano-units in a unit.
const NANO: i128 = 1_000_000_000;

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A number, but its suffix is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// A number that is none.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

/// How the suffix was written, and is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Decimal,
    Binary,
    Exponent,
}

/// A parsed quantity. Equal and ordered by amount, whatever the suffix.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    nano: i128,
    style: Style,
}

impl Amount {
    /// Whole units, written with decimal suffixes.
    pub fn units(units: i64) -> Self {
        Self { nano: i128::from(units) * NANO, style: Style::Decimal }
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether it is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// In thousand-millionths: exact, so sums of it are.
    pub fn nano(&self) -> i128 {
        self.nano
    }

    /// In thousandths, rounded up.
    pub fn milli(&self) -> i128 {
        ceil(self.nano, NANO / 1000)
    }

    /// In whole units, rounded up.
    pub fn value(&self) -> i128 {
        ceil(self.nano, NANO)
    }

    /// Whether it has no fraction.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Amount {}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl fmt::Display for Amount {
    /// The canonical form: no fraction, the largest suffix, no precision lost.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.nano == 0 {
            return f.write_str("0");
        }
        let is_binary = self.style == Style::Binary && self.nano % NANO == 0 && (self.nano / NANO).abs() >= 1024;
        if is_binary {
            let (mut number, mut power) = (self.nano / NANO, 0);
            while number % 1024 == 0 && power + 1 < BINARY.len() {
                (number, power) = (number / 1024, power + 1);
            }
            return write!(f, "{number}{}", BINARY[power]);
        }
        let (mut number, mut power) = (self.nano, 0);
        while number % 1000 == 0 && power + 1 < DECIMAL.len() {
            (number, power) = (number / 1000, power + 1);
        }
        match (self.style, i32::try_from(power).unwrap_or(0) * 3 - 9) {
            (Style::Exponent, 0) => write!(f, "{number}"),
            (Style::Exponent, exponent) => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{}", DECIMAL[power]),
        }
    }
}

fn ceil(nano: i128, unit: i128) -> i128 {
    nano.div_euclid(unit) + i128::from(nano.rem_euclid(unit) != 0)
}

/// Reads a quantity. Too precise is rounded up, too large is capped, as Kubernetes does.
///
/// # Errors
/// When the text is no quantity.
pub fn parse(text: &str) -> Result<Amount, QuantityError> {
    let (is_negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
        None => return Err(QuantityError::Format),
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') || number.len() > DIGITS_MAX {
        return Err(QuantityError::Format);
    }
    let (factor, ten, style) = suffix_of(suffix).ok_or(QuantityError::Suffix)?;
    let digits: i128 = [whole, part].concat().parse().map_err(|_| QuantityError::Number)?;
    // nano-units: digits * factor * 10^(ten + 9 - places after the point)
    let ten = ten + 9 - i32::try_from(part.len()).map_err(|_| QuantityError::Number)?;
    let cap = UNITS_MAX * NANO;
    let power = 10_i128.checked_pow(ten.unsigned_abs());
    let nano = match (digits.checked_mul(factor), power) {
        (Some(0), _) => 0,
        (Some(scaled), Some(power)) if ten >= 0 => scaled.checked_mul(power).map_or(cap, |nano| nano.min(cap)),
        (Some(scaled), Some(power)) => ceil(scaled, power).min(cap),
        (Some(_), None) if ten < 0 => 1,
        _ => cap,
    };
    Ok(Amount { nano: if is_negative { -nano } else { nano }, style })
}

/// A suffix as a factor, a power of ten and a style.
fn suffix_of(suffix: &str) -> Option<(i128, i32, Style)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(at) = (0_u32..).zip(BINARY).find_map(|(at, known)| (known == suffix).then_some(at)) {
        return Some((1024_i128.pow(at + 1), 0, Style::Binary));
    }
    if let Some(at) = (0_i32..).zip(DECIMAL).find_map(|(at, known)| (known == suffix).then_some(at)) {
        return Some((1, at * 3 - 9, Style::Decimal));
    }
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-60..=60).contains(&power).then_some((1, power, Style::Exponent))
}

/// The amount in thousandths, rounded up; `None` when it is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    parse(&quantity.0).ok().map(|amount| amount.milli())
}

/// The amount in whole units, rounded up; `None` when it is no quantity.
pub fn bytes(quantity: &Quantity) -> Option<i128> {
    parse(&quantity.0).ok().map(|amount| amount.value())
}

/// The canonical form of a quantity: `1000m` is `1`, `0.5Gi` is `512Mi`. `None` when it is none.
pub fn canonical(text: &str) -> Option<String> {
    parse(text).ok().map(|amount| amount.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_are_exact() {
        let cases = [
            ("100m", 100, "100m"),
            ("1", 1000, "1"),
            ("1.5", 1500, "1500m"),
            ("1000m", 1000, "1"),
            ("1Ki", 1_024_000, "1Ki"),
            ("0.5Gi", 536_870_912_000, "512Mi"),
            ("1.5Gi", 1_610_612_736_000, "1536Mi"),
            ("1000Ki", 1_024_000_000, "1000Ki"),
            ("128974848", 128_974_848_000, "128974848"),
            ("129e6", 129_000_000_000, "129e6"),
            ("1500k", 1_500_000_000, "1500k"),
            ("2e3", 2_000_000, "2e3"),
            ("1u", 1, "1u"),
            ("0.1n", 1, "1n"),
            ("-1", -1000, "-1"),
            (".5", 500, "500m"),
            ("5.", 5000, "5"),
            ("0", 0, "0"),
            ("512", 512_000, "512"),
        ];
        for (text, milli, canonical) in cases {
            let amount = parse(text).unwrap();
            assert_eq!((amount.milli(), amount.to_string().as_str()), (milli, canonical), "{text}");
        }
        for text in ["", "m", "1.2.3", "1KiB", "1e99", "--1", "1 Gi", "Gi", ".", "1e", "0x10", "1K"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("100E").unwrap().value(), UNITS_MAX);
    }

    proptest! {
        #[test]
        fn canonical_form_keeps_the_amount(number in 0_i64..1_000_000_000, places in 0_usize..6, suffix in "(m|k|M|G|Ki|Mi|Gi|e3|)") {
            let text = match places {
                0 => format!("{number}{suffix}"),
                _ => format!("{}.{:0places$}{suffix}", number / 1000, number % 1000),
            };
            let amount = parse(&text).unwrap();
            let again = parse(&amount.to_string()).unwrap();
            prop_assert_eq!(amount, again);
            prop_assert_eq!(amount.to_string(), again.to_string());
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            let _ = parse(&text).map(|amount| amount.to_string());
        }
    }
}
