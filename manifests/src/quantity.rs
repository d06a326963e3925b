//! Kubernetes quantities: `100m`, `1.5Gi`, `2e3`, exactly.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Most digits a number may have before its suffix; more than any real amount needs.
const DIGITS_MAX: usize = 24;

/// The amount in thousandths, rounded up; `None` when it is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    parse(&quantity.0)
}

/// The amount in whole units, rounded up; `None` when it is no quantity.
pub fn bytes(quantity: &Quantity) -> Option<i128> {
    let milli = parse(&quantity.0)?;
    Some(milli.div_euclid(1000) + i128::from(milli.rem_euclid(1000) != 0))
}

fn parse(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (factor, ten) = factor(suffix)?;
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, part].concat();
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits: i128 = digits.parse().ok()?;
    // thousandths: digits * factor * 10^(ten + 3 - places after the point)
    let ten = ten + 3 - i32::try_from(part.len()).ok()?;
    let scaled = digits.checked_mul(factor)?;
    let power = 10_i128.checked_pow(ten.unsigned_abs())?;
    let milli = if ten >= 0 { scaled.checked_mul(power)? } else { (scaled + power - 1) / power };
    Some(if negative { -milli } else { milli })
}

/// A suffix as a factor and a power of ten.
fn factor(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1024_i128.pow(power), 0));
    let decimal = |power: i32| Some((1, power));
    match suffix {
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            decimal(power).filter(|_| (-18..=18).contains(&power))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        let cases = [
            ("100m", 100),
            ("1", 1000),
            ("1.5", 1500),
            ("1Ki", 1_024_000),
            ("2e3", 2_000_000),
            ("1u", 1),
            ("-1", -1000),
        ];
        for (text, milli) in cases {
            assert_eq!(super::milli(&Quantity(text.into())), Some(milli), "{text}");
        }
        for text in ["", "m", "1.2.3", "1KiB", "1e99", "--1"] {
            assert_eq!(super::milli(&Quantity(text.into())), None, "{text}");
        }
    }
}
