//! The forms that values take in a journal where the one that serde would give them does not do:
//! bytes as text, and objects of any depth.

use std::collections::BTreeMap;
use std::fmt;

use ::bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes: a string where they are UTF-8, which what people look for is, and otherwise an array.
pub(crate) mod bytes {
    use super::{Bytes, Deserialize as _, Deserializer, Owned, Serialize as _, Serializer, Text};

    pub(crate) fn serialize<S: Serializer>(value: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        Text(value).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        Owned::deserialize(from).map(|owned| owned.0)
    }
}

/// Documents by their key, each with the time of something.
pub(crate) mod dated_documents {
    use super::{BTreeMap, Bytes, Deserialize as _, Deserializer, Owned, Serializer, Text};
    use crate::dcs::Key;
    use crate::time::NodeTime;

    pub(crate) fn serialize<S: Serializer>(
        value: &BTreeMap<Key, (NodeTime, Bytes)>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(
            value
                .iter()
                .map(|(key, (at, value))| (key, (at, Text(value)))),
        )
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Key, (NodeTime, Bytes)>, D::Error> {
        let read = BTreeMap::<Key, (NodeTime, Owned)>::deserialize(from)?;
        Ok(read
            .into_iter()
            .map(|(key, (at, owned))| (key, (at, owned.0)))
            .collect())
    }
}

/// An object that somebody else wrote: as it is, or as text where it is nested so deep that it
/// could not be read back from within a journal, whose reader bounds the depth of a line.
pub(crate) mod object {
    use serde_json::{Map, Value};

    use super::{DEEP, Deserializer, ObjectVisitor, Serialize as _, Serializer, is_deep};

    pub(crate) fn serialize<S: Serializer>(
        value: &Map<String, Value>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        if value.values().any(|inner| is_deep(inner, DEEP)) {
            let text = serde_json::to_string(value).map_err(serde::ser::Error::custom)?;
            return to.serialize_str(&text);
        }
        value.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Map<String, Value>, D::Error> {
        from.deserialize_any(ObjectVisitor)
    }
}

struct Text<'a>(&'a Bytes);

struct Owned(Bytes);

struct BytesVisitor;

struct ObjectVisitor;

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => to.collect_seq(self.0.iter()),
        }
    }
}

impl<'de> Deserialize<'de> for Owned {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(BytesVisitor).map(Self)
    }
}

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, or an array of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Bytes, E> {
        Ok(Bytes::from(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element::<u8>()? {
            bytes.push(byte);
        }
        Ok(Bytes::from(bytes))
    }
}

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = serde_json::Map<String, serde_json::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, or the text of one")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        serde_json::from_str(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Self::Value::deserialize(MapAccessDeserializer::new(map))
    }
}

fn is_deep(value: &serde_json::Value, left: usize) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        Value::Array(items) => left == 0 || items.iter().any(|item| is_deep(item, left - 1)),
        Value::Object(map) => left == 0 || map.values().any(|item| is_deep(item, left - 1)),
    }
}

/// `serde_json` reads to a depth of 128, of which a journal's own values take less than twenty.
const DEEP: usize = 64;
