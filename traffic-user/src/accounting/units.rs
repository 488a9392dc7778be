//! Numbers for people, both ways: `1.5 GB`, `1.5 MB/s`, `1.2 M`, and `500M` back to bytes.
//!
//! Bytes go in steps of 1024 and are written B, KB, MB, GB, TB, PB, EB, as the field's tools do.
//! All of it is whole-number arithmetic: what is printed is the exact value, rounded once (half away
//! from zero), for every `u64`.

use std::time::Duration;

use super::{billing::Unit, ident::shown};

const BYTE_STEP: u64 = 1024;
const BYTE_UNITS: [&str; 7] = ["B", "KB", "MB", "GB", "TB", "PB", "EB"];
const BINARY_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const DECIMAL_STEP: u64 = 1000;
const DECIMAL_UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
const COUNT_STEP: u64 = 1000;
const COUNT_UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];

/// Digits after the point that can be other than zero: the largest unit is 2^60 bytes.
const MOST_DIGITS: usize = 60;

/// A number of bytes below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes: a number of bytes cannot be negative")]
pub struct NegativeBytes(pub i64);

/// Why a text is no number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Does not begin with a number, or with a negative one.
    #[error("`{0}` is no number of bytes: write digits and a unit, such as 500M or 1.5 GB")]
    Number(String),
    /// Letters behind the number that are no unit.
    #[error(
        "`{0}` is no unit: write B, KB, MB, GB, TB, PB or EB, in steps of 1024 (K and KiB mean KB)"
    )]
    Unit(String),
    /// A point, but bytes as the unit. Most likely the unit was forgotten.
    #[error("`{0}` is not a whole number of bytes: write a unit, such as 1.5 GB")]
    Fraction(String),
    /// Above [`u64::MAX`] bytes.
    #[error("`{0}` is too large: at most {max} bytes can be counted", max = u64::MAX)]
    TooLarge(String),
}

/// Writes bytes in the largest unit of which there is at least one: the field's API.
///
/// Steps of 1024; `precision` digits after the point, none for plain bytes. See [`human_bytes`].
///
/// # Errors
///
/// [`NegativeBytes`] below zero.
///
/// # Examples
///
/// ```
/// use traffic_user::accounting::units::{NegativeBytes, bytes_2_human_readable};
///
/// assert_eq!(bytes_2_human_readable(1_610_612_736, 1)?, "1.5 GB");
/// assert_eq!(bytes_2_human_readable(-1, 1), Err(NegativeBytes(-1)));
/// # Ok::<(), NegativeBytes>(())
/// ```
pub fn bytes_2_human_readable(bytes: i64, precision: usize) -> Result<String, NegativeBytes> {
    match u64::try_from(bytes) {
        Ok(bytes) => Ok(human_bytes(bytes, precision)),
        Err(_) => Err(NegativeBytes(bytes)),
    }
}

/// Bytes as `512 B`, `1.5 KB`, `16.0 EB`, in steps of 1024.
///
/// A value that rounds up to 1024 of a unit is written as 1 of the next. More than 60 digits are
/// never printed: all further ones are zero.
pub fn human_bytes(bytes: u64, precision: usize) -> String {
    scaled(bytes, BYTE_STEP, &BYTE_UNITS, precision)
}

/// Bytes as a provider's bill writes them: `1.5 GiB` in steps of 1024, or `1.6 GB` in steps of 1000.
///
/// ```
/// use traffic_user::accounting::{billing::Unit, units::bytes_in};
///
/// assert_eq!(bytes_in(Unit::Gib, 1_610_612_736, 2), "1.50 GiB");
/// assert_eq!(bytes_in(Unit::Gb, 1_610_612_736, 2), "1.61 GB");
/// ```
pub fn bytes_in(unit: Unit, bytes: u64, precision: usize) -> String {
    match unit {
        Unit::Gib => scaled(bytes, BYTE_STEP, &BINARY_UNITS, precision),
        Unit::Gb => scaled(bytes, DECIMAL_STEP, &DECIMAL_UNITS, precision),
    }
}

/// Bytes a second as `1.5 MB/s`; `<1 B/s` where something passed, but less than half a byte a
/// second; `-` when no time passed, because then there is no rate.
pub fn human_rate(bytes: u64, elapsed: Duration) -> String {
    match per_second(bytes, elapsed) {
        None => "-".to_owned(),
        Some(0) if bytes != 0 => "<1 B/s".to_owned(),
        Some(rate) => format!("{}/s", human_bytes(rate, 1)),
    }
}

/// Packets and other things as `512`, `1.2 K`, `3.4 M`, in steps of 1000.
pub fn human_count(count: u64) -> String {
    scaled(count, COUNT_STEP, &COUNT_UNITS, 1)
}

/// How many a second, to the nearest whole number; `None` when no time passed.
pub fn per_second(amount: u64, elapsed: Duration) -> Option<u64> {
    let nanos = elapsed.as_nanos();
    // 2^64 * 10^9 is below 2^94, and so is the longest `Duration`.
    let rate = (u128::from(amount) * 1_000_000_000 + nanos / 2).checked_div(nanos)?;
    Some(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Bytes from what a person writes: `512`, `500M`, `1.5 GB`, `10GiB`, in steps of 1024.
///
/// Letters of either case; K, KB and KiB are the same. Never bits. A value between two whole bytes
/// is rounded to the nearer one.
///
/// # Errors
///
/// [`SizeError`], which says what to write instead.
///
/// # Examples
///
/// ```
/// use traffic_user::accounting::units::{SizeError, parse_bytes};
///
/// assert_eq!(parse_bytes("1.5 GB")?, 1_610_612_736);
/// assert_eq!(parse_bytes("500M")?, 500 << 20);
/// # Ok::<(), SizeError>(())
/// ```
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !fraction.is_none_or(digits) {
        return Err(SizeError::Number(shown(text)));
    }
    let unit = unit_of(unit.trim()).ok_or_else(|| SizeError::Unit(shown(unit.trim())))?;
    if fraction.is_some() && unit == 1 {
        return Err(SizeError::Fraction(shown(text)));
    }
    // `parse` fails only when the number is too large: it has nothing but digits.
    whole
        .parse::<u64>()
        .ok()
        .and_then(|whole| whole.checked_mul(unit))
        .and_then(|bytes| bytes.checked_add(fraction.map_or(0, |digits| part_of(digits, unit))))
        .ok_or_else(|| SizeError::TooLarge(shown(text)))
}

/// Bytes of a unit as a person writes it.
fn unit_of(text: &str) -> Option<u64> {
    let text = text.to_ascii_uppercase();
    if text.is_empty() {
        return Some(1);
    }
    BYTE_UNITS
        .iter()
        .zip((0u32..).map(|rank| BYTE_STEP.pow(rank)))
        .find(|(unit, size)| {
            text == **unit
                || *size > 1 && (text == unit[..1] || text == format!("{}IB", &unit[..1]))
        })
        .map(|(_, size)| size)
}

/// `0.digits * unit`, rounded to a whole number; exact for any number of digits.
fn part_of(digits: &str, unit: u64) -> u64 {
    // As on paper, from the right: what stays is the digit at that place of the product, what is
    // carried out of the first place is the whole part. The carry is always below `unit`.
    let mut carry = 0;
    let mut first = 0;
    for digit in digits.bytes().rev() {
        let product = u128::from(digit - b'0') * u128::from(unit) + carry;
        carry = product / 10;
        first = product % 10;
    }
    let rounded = carry + u128::from(first >= 5);
    u64::try_from(rounded).unwrap_or(unit)
}

/// `value` in the largest of `units` of which there is at least one.
fn scaled(value: u64, step: u64, units: &[&str], precision: usize) -> String {
    let mut unit = 1;
    let mut names = units;
    while let [_, larger @ ..] = names
        && !larger.is_empty()
        && value / unit >= step
    {
        unit *= step;
        names = larger;
    }
    let precision = if unit == 1 { 0 } else { precision };
    let (mut whole, fraction) = decimal(value, unit, precision.min(MOST_DIGITS));
    let mut name = names.first().copied().unwrap_or_default();
    if let (true, Some(larger)) = (whole == step, names.get(1)) {
        // Rounded up to one of the next unit; its digits after the point are all zero already.
        (whole, name) = (1, larger);
    }
    let mut text = whole.to_string();
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(&fraction);
    }
    if !name.is_empty() {
        text.push(' ');
        text.push_str(name);
    }
    text
}

/// `value / unit` as its whole part and `digits` digits behind the point, rounded half up.
fn decimal(value: u64, unit: u64, digits: usize) -> (u64, String) {
    let (mut whole, mut rest) = (value / unit, u128::from(value % unit));
    let unit = u128::from(unit);
    let mut fraction = String::with_capacity(digits);
    for _ in 0..digits {
        rest *= 10;
        fraction.push(char::from(b'0' + u8::try_from(rest / unit).unwrap_or(9)));
        rest %= unit;
    }
    if rest * 2 >= unit {
        // Nines at the end become zeros, and the digit before them one more.
        let kept = fraction.trim_end_matches('9').len();
        let zeros = "0".repeat(digits - kept);
        match fraction[..kept].chars().last() {
            Some(digit) => {
                let next = char::from_digit(digit.to_digit(10).unwrap_or(0) + 1, 10);
                fraction.truncate(kept - 1);
                fraction.extend(next);
            }
            None => {
                whole += 1;
                fraction.clear();
            }
        }
        fraction.push_str(&zeros);
    }
    (whole, fraction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KB: u64 = 1 << 10;
    const MB: u64 = 1 << 20;
    const GB: u64 = 1 << 30;
    const EB: u64 = 1 << 60;

    #[test]
    fn bytes_are_written_in_the_largest_unit_that_fits() {
        for (bytes, precision, want) in [
            (0, 2, "0 B"),
            (1023, 2, "1023 B"),
            (KB, 1, "1.0 KB"),
            (KB, 0, "1 KB"),
            (1536, 0, "2 KB"),
            (1536, 2, "1.50 KB"),
            (1_610_612_736, 1, "1.5 GB"),
            (MB - 1, 1, "1.0 MB"),
            (MB - 1, 2, "1.00 MB"),
            (MB - 1, 3, "1023.999 KB"),
            (1023 * KB + 1013, 2, "1023.99 KB"),
            (1023 * KB + 1013, 0, "1 MB"),
            (GB - 1, 4, "1.0000 GB"),
            (10 * GB + 99 * MB, 3, "10.097 GB"),
            (i64::MAX.unsigned_abs(), 2, "8.00 EB"),
            (u64::MAX, 0, "16 EB"),
            (u64::MAX, 1, "16.0 EB"),
            (u64::MAX, 18, "15.999999999999999999 EB"),
        ] {
            assert_eq!(human_bytes(bytes, precision), want, "{bytes}, {precision}");
        }
    }

    #[test]
    fn every_digit_of_the_largest_unit_is_exact() {
        let text = human_bytes(EB + 1, 60);
        // 2^-60, exactly.
        let digits = "000000000000000000867361737988403547205962240695953369140625";
        assert_eq!(text, format!("1.{digits} EB"));
        assert_eq!(human_bytes(EB + 1, usize::MAX), text);
    }

    #[test]
    fn the_fields_api_refuses_negative_numbers() {
        assert_eq!(bytes_2_human_readable(1_610_612_736, 1), Ok("1.5 GB".into()));
        assert_eq!(bytes_2_human_readable(0, 3), Ok("0 B".into()));
        assert_eq!(bytes_2_human_readable(i64::MAX, 0), Ok("8 EB".into()));
        for bytes in [-1, i64::MIN] {
            let error = bytes_2_human_readable(bytes, 1).unwrap_err();
            assert_eq!(error, NegativeBytes(bytes));
            assert!(error.to_string().starts_with(&bytes.to_string()));
        }
    }

    #[test]
    fn the_label_of_a_bill_says_its_step() {
        for (bytes, gib, gb) in [
            (0, "0 B", "0 B"),
            (999, "999 B", "999 B"),
            (1000, "1000 B", "1.0 kB"),
            (1023, "1023 B", "1.0 kB"),
            (1024, "1.0 KiB", "1.0 kB"),
            (999_949, "976.5 KiB", "999.9 kB"),
            (999_950, "976.5 KiB", "1.0 MB"),
            (1 << 30, "1.0 GiB", "1.1 GB"),
            (1_000_000_000, "953.7 MiB", "1.0 GB"),
            (u64::MAX, "16.0 EiB", "18.4 EB"),
        ] {
            assert_eq!(bytes_in(Unit::Gib, bytes, 1), gib, "{bytes}");
            assert_eq!(bytes_in(Unit::Gb, bytes, 1), gb, "{bytes}");
        }
    }

    #[test]
    fn rates_are_bytes_by_time() {
        for (bytes, millis, want) in [
            (3 * MB, 2000, "1.5 MB/s"),
            (MB, 0, "-"),
            (0, 0, "-"),
            (0, 1000, "0 B/s"),
            (4, 10_000, "<1 B/s"),
            (5, 10_000, "1 B/s"),
            (u64::MAX, 1, "16.0 EB/s"),
        ] {
            let rate = human_rate(bytes, Duration::from_millis(millis));
            assert_eq!(rate, want, "{bytes} in {millis} ms");
        }
        assert_eq!(human_rate(u64::MAX, Duration::MAX), "1 B/s");
    }

    #[test]
    fn counts_go_in_steps_of_a_thousand() {
        for (count, want) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0 K"),
            (1_249_999, "1.2 M"),
            (1_250_000, "1.3 M"),
            (999_950, "1.0 M"),
            (u64::MAX, "18.4 E"),
        ] {
            assert_eq!(human_count(count), want, "{count}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, want) in [
            ("0", 0),
            ("512", 512),
            ("512 B", 512),
            (" 1.5 GB ", 1_610_612_736),
            ("500M", 500 * MB),
            ("10GiB", 10 * GB),
            ("10gib", 10 * GB),
            ("1 k", KB),
            ("0.3 KB", 307),
            ("0.0005 KB", 1),
            ("0.99999999999999999999999999 EB", EB),
            ("0007 KB", 7 * KB),
            ("18446744073709551615", u64::MAX),
            ("15.99999999999999999913263826201159645 EB", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        for text in ["", "GB", ".", "1.", ".5 GB", "1.2.3 GB", "-1", "+1", "x", "١ GB"] {
            assert_eq!(parse_bytes(text), Err(SizeError::Number(text.into())));
        }
        for unit in ["GBs", "bit", "Mbit", "iB", "bb", "kk", "ZB", "G B", ",5", "é"] {
            let text = format!("1 {unit}");
            assert_eq!(parse_bytes(&text), Err(SizeError::Unit(unit.into())));
        }
        for text in ["1.5", "1.0 B"] {
            assert_eq!(parse_bytes(text), Err(SizeError::Fraction(text.into())));
        }
        for text in [
            "16 EB",
            "18446744073709551616",
            "15.9999999999999999999999999 EB",
            "99999999999999999999999 KB",
        ] {
            assert_eq!(parse_bytes(text), Err(SizeError::TooLarge(text.into())));
        }
        let long = "9".repeat(100_000);
        let error = parse_bytes(&long).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }

    proptest! {
        #[test]
        fn all_digits_give_the_same_bytes_back(bytes: u64) {
            prop_assert_eq!(parse_bytes(&human_bytes(bytes, MOST_DIGITS)), Ok(bytes));
        }

        /// A text that is read and written again stays as it is.
        #[test]
        fn a_rounded_text_is_read_back_to_itself(shift in 1u32..64, low: u64, precision in 0usize..25) {
            let bytes = low >> shift;
            let text = human_bytes(bytes, precision);
            let read = parse_bytes(&text).unwrap();
            prop_assert_eq!(human_bytes(read, precision), text);
        }

        /// What is printed is off by at most half of its last digit.
        #[test]
        fn rounding_is_once_and_to_the_nearest(bytes in KB..GB * KB, precision in 0u32..6) {
            let text = human_bytes(bytes, precision as usize);
            let (number, name) = text.split_once(' ').unwrap();
            let unit = u128::from(unit_of(name).unwrap());
            let shown: u128 = number.replace('.', "").parse().unwrap();
            let scale = 10u128.pow(precision);
            prop_assert!((shown * unit).abs_diff(u128::from(bytes) * scale) * 2 <= unit);
            prop_assert!(shown < 1024 * scale);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}", number in "[0-9.]{0,40} ?[a-zA-Z]{0,3}") {
            let _ = parse_bytes(&text);
            let _ = parse_bytes(&number);
        }
    }
}
