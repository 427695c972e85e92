//! The part of an address after the question mark.

/// The parameters of a request, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `key=value&key=value`; parameters without a value are left out, as Patroni does.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=')?;
            (!value.is_empty()).then(|| (decode(key), decode(value)))
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (key, value) in text.unwrap_or_default().split('&').filter_map(pair) {
            if pairs.iter().all(|(known, _)| *known != key) {
                pairs.push((key, value));
            }
        }
        Self(pairs)
    }

    /// Returns the first value of `key`.
    pub(crate) fn first(&self, key: &str) -> Option<&str> {
        self.pairs().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// Returns each parameter once, with its first value.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// Undoes the escapes of a form; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => out.push(b' '),
            b'%' => match tail {
                [high, low, after @ ..] if digit(*high).is_some() && digit(*low).is_some() => {
                    out.push(digit(*high).unwrap_or(0) << 4 | digit(*low).unwrap_or(0));
                    rest = after;
                }
                _ => out.push(b'%'),
            },
            other => out.push(*other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_counts_and_escapes_are_undone() {
        let query = Query::parse(Some("lag=10%4dB&lag=2&empty=&x&tag_a+b=%zz%4&y=%c3%a9%ff"));
        assert_eq!(
            query.pairs().collect::<Vec<_>>(),
            [("lag", "10MB"), ("tag_a b", "%zz%4"), ("y", "é\u{fffd}")]
        );
        assert_eq!(Query::parse(None), Query::default());
    }
}
