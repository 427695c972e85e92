//! Integers and text the way Patroni reads them: leniently, and the same in every place.
//!
//! Booleans and spans of time are read by [`crate::config`].

use serde_json::Value;

/// Reads an integer as PostgreSQL does: decimal, `0x` hexadecimal or leading-zero octal; a
/// fraction is rounded.
pub(super) fn integer(value: &Value) -> Option<i64> {
    let text = match value {
        Value::Number(_) | Value::String(_) => text(value)?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = magnitude(digits)?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Renders a scalar as the text that the operator wrote, or `None` for anything that has no one
/// spelling (a boolean, a list, a map).
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Renders any scalar, booleans included, as PostgreSQL takes it in a setting.
pub(super) fn setting(value: &Value) -> Option<String> {
    match value {
        Value::Bool(true) => Some("on".to_owned()),
        Value::Bool(false) => Some("off".to_owned()),
        other => text(other),
    }
}

fn magnitude(digits: &str) -> Option<i128> {
    if let Some(hex) = digits.strip_prefix("0x") {
        return unsigned(hex, 16);
    }
    match digits.split_once('.') {
        Some((whole, fraction)) => {
            let up = match fraction.bytes().next() {
                Some(tenths) if fraction.bytes().all(|b| b.is_ascii_digit()) => tenths >= b'5',
                _ => return None,
            };
            Some(unsigned(whole, 10)? + i128::from(up))
        }
        None if digits.len() > 1 && digits.starts_with('0') => unsigned(digits, 8),
        None => unsigned(digits, 10),
    }
}

fn unsigned(digits: &str, radix: u32) -> Option<i128> {
    // The library's parser takes a sign, which was taken off before.
    digits
        .chars()
        .all(|c| c.is_digit(radix))
        .then(|| i128::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_are_read_as_postgres_reads_them() {
        for (value, expected) in [
            (json!(60), Some(60)),
            (json!("60"), Some(60)),
            (json!(" -1 "), Some(-1)),
            (json!("+1"), Some(1)),
            (json!("0x10"), Some(16)),
            (json!("0644"), Some(0o644)),
            (json!("0"), Some(0)),
            (json!("00"), Some(0)),
            (json!("1.5"), Some(2)),
            (json!(1.4), Some(1)),
            (json!("1.x"), None),
            (json!("2min"), None),
            (json!("--1"), None),
            (json!("ten"), None),
            (json!("0x"), None),
            (json!(""), None),
            (json!(true), None),
            (json!("99999999999999999999999999"), None),
            (json!("999999999999999999999999999999999999999999"), None),
        ] {
            assert_eq!(integer(&value), expected, "{value}");
        }
    }
}
