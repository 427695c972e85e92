//! JSON as Patroni's server writes it: `", "` and `": "` between things, nothing but ASCII.

use std::io;

use serde::Serialize as _;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// Returns `value` as text.
pub(crate) fn to_text(value: &Value) -> String {
    let mut out = Vec::with_capacity(512);
    // Writing a `Value` into memory cannot fail: there is no io and every key is a string.
    value
        .serialize(&mut Serializer::with_formatter(&mut out, Python))
        .and_then(|()| String::from_utf8(out).map_err(serde::ser::Error::custom))
        .unwrap_or_else(|_| value.to_string())
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        for c in text.chars() {
            if c.is_ascii() {
                write!(out, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_reads_like_pythons() {
        let value = json!({"a": [1, 2, {}], "b": {"c": null, "d": "é😀\"\n"}, "e": true});
        assert_eq!(
            to_text(&value),
            r#"{"a": [1, 2, {}], "b": {"c": null, "d": "\u00e9\ud83d\ude00\"\n"}, "e": true}"#
        );
    }
}
