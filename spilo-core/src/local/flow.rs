//! Lists and maps in environment variables: one line of YAML flow text, one level deep.
//!
//! Patroni hands these to its YAML parser. The core has none, and what such a variable can hold
//! is small: scalars, quoted or not, between commas. Anything nested is refused by name.

use serde_json::{Map, Value};

/// Reads `a, 'b', "c"` with or without brackets.
pub(super) fn list(text: &str) -> Result<Vec<Value>, String> {
    let inner = unwrapped(text, '[', ']')?;
    let items = split(inner, ',')?;
    items
        .into_iter()
        .map(|item| scalar(item).map(Value::String))
        .collect()
}

/// Reads `a: 1, 'b': "c"` with or without braces.
pub(super) fn map(text: &str) -> Result<Map<String, Value>, String> {
    let inner = unwrapped(text, '{', '}')?;
    let mut map = Map::new();
    for item in split(inner, ',')? {
        // Only the first colon separates: the rest belongs to the value, as in `a: h:1`.
        let Some(colon) = separators(item, ':')?.first().copied() else {
            return Err(format!("{item:?} has no `:` between a key and a value"));
        };
        let (key, value) = (item[..colon].trim(), item[colon + 1..].trim());
        map.insert(scalar(key)?, Value::String(scalar(value)?));
    }
    Ok(map)
}

fn unwrapped(text: &str, open: char, close: char) -> Result<&str, String> {
    let text = text.trim();
    match text.strip_prefix(open) {
        Some(rest) => rest
            .strip_suffix(close)
            .ok_or_else(|| format!("has {open} without {close}")),
        None => Ok(text),
    }
}

/// Splits at `separator` and leaves empty pieces out, so that a trailing comma does no harm.
fn split(text: &str, separator: char) -> Result<Vec<&str>, String> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    for at in separators(text, separator)?.into_iter().chain([text.len()]) {
        pieces.push(text[start..at].trim());
        start = at + separator.len_utf8();
    }
    pieces.retain(|piece| !piece.is_empty());
    Ok(pieces)
}

/// Finds `separator` outside quotes. A quote opens only where a scalar begins, as in YAML.
fn separators(text: &str, separator: char) -> Result<Vec<usize>, String> {
    let (mut found, mut begins, mut quote) = (Vec::new(), true, None);
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if begins && (c == '"' || c == '\'') => quote = Some(c),
            None if c == separator => found.push(at),
            None => {}
        }
        begins = if c.is_whitespace() {
            begins
        } else {
            ",:".contains(c)
        };
    }
    match quote {
        Some(open) => Err(format!("has a {open} that is not closed")),
        None => Ok(found),
    }
}

fn scalar(text: &str) -> Result<String, String> {
    for quote in ['\'', '"'] {
        let inner = text
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner {
            return Ok(inner.to_owned());
        }
    }
    // A member of a nested collection would otherwise be taken for a strange scalar.
    match text.chars().next() {
        Some('[' | '{') => Err(format!(
            "{text:?} is nested, which a variable cannot hold here"
        )),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_come_with_and_without_brackets_and_quotes() {
        for text in [
            "a:1,b:2",
            "['a:1', \"b:2\"]",
            " [a:1, b:2,] ",
            "'a:1','b:2'",
        ] {
            assert_eq!(list(text), Ok(vec![json!("a:1"), json!("b:2")]), "{text}");
        }
        assert_eq!(list("'a,b', c"), Ok(vec![json!("a,b"), json!("c")]));
        assert_eq!(list("[]"), Ok(vec![]));
    }

    #[test]
    fn maps_come_with_and_without_braces() {
        for text in ["a: 1, b: h:2", "{a: 1, 'b': \"h:2\"}"] {
            assert_eq!(
                map(text).map(Value::Object),
                Ok(json!({"a": "1", "b": "h:2"})),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_flow_text_says_what_is_broken() {
        assert_eq!(list("[a"), Err("has [ without ]".to_owned()));
        assert_eq!(list("'a"), Err("has a ' that is not closed".to_owned()));
        assert_eq!(
            list("a, [b]").unwrap_err(),
            "\"[b]\" is nested, which a variable cannot hold here"
        );
        assert_eq!(
            map("a").unwrap_err(),
            "\"a\" has no `:` between a key and a value"
        );
    }
}
