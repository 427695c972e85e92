//! YAML, as the configuration is written, into the values that the library reads.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Number, Value};
use serde_yaml_ng::Value as Yaml;

/// Reads one YAML document; `source` is what errors call it.
pub(crate) fn parse(source: &str, text: &str) -> Result<Value> {
    let mut yaml: Yaml = serde_yaml_ng::from_str(text).with_context(|| source.to_owned())?;
    yaml.apply_merge().with_context(|| source.to_owned())?;
    convert(&yaml).with_context(|| source.to_owned())
}

/// Writes `value` as YAML.
pub(crate) fn write(value: &Value) -> Result<String> {
    serde_yaml_ng::to_string(value).context("cannot write the configuration as YAML")
}

fn convert(yaml: &Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => Value::Bool(*flag),
        Yaml::Number(number) => Value::Number(numeral(number)?),
        Yaml::String(text) => Value::String(text.clone()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(convert).collect::<Result<_>>()?),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let key = name(key)?;
                let value = convert(value).with_context(|| format!("in `{key}`"))?;
                // Two keys can be one as text: `1` and `"1"`.
                if map.insert(key.clone(), value).is_some() {
                    bail!("`{key}` stands twice in one section");
                }
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => bail!("the tag {} has no meaning here", tagged.tag),
    })
}

/// Keys are text in every document of the contract; YAML makes numbers and booleans of some.
fn name(key: &Yaml) -> Result<String> {
    match key {
        Yaml::String(text) => Ok(text.clone()),
        Yaml::Number(number) => Ok(number.to_string()),
        Yaml::Bool(flag) => Ok(flag.to_string()),
        Yaml::Null | Yaml::Sequence(_) | Yaml::Mapping(_) | Yaml::Tagged(_) => {
            bail!("a key must be text")
        }
    }
}

fn numeral(number: &serde_yaml_ng::Number) -> Result<Number> {
    if let Some(whole) = number.as_i64() {
        return Ok(whole.into());
    }
    if let Some(whole) = number.as_u64() {
        return Ok(whole.into());
    }
    let fraction = number.as_f64().and_then(Number::from_f64);
    fraction.with_context(|| format!("{number} is not a finite number"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_and_the_types_of_the_file_are_kept() {
        let text = "z: 1\na: [on, true, '1', 1.5, null]\n5432: x\nm: &m {k: 1}\nn: {<<: *m, l: 2}";
        let value = parse("f", text).unwrap();
        let expected =
            r#"{"z":1,"a":["on",true,"1",1.5,null],"5432":"x","m":{"k":1},"n":{"l":2,"k":1}}"#;
        assert_eq!(value.to_string(), expected);
        assert_eq!(parse("f", "").unwrap(), json!(null));
    }

    #[test]
    fn what_is_broken_is_said_with_its_place() {
        for (text, message) in [
            (
                "a: [1",
                "f: did not find expected ',' or ']' at line 2 column 1, while parsing a flow sequence at line 1 column 4",
            ),
            ("a: 1\na: 2", "f: duplicate entry with key \"a\""),
            ("1: 1\n'1': 2", "f: `1` stands twice in one section"),
            ("a: !x 1", "f: in `a`: the tag !x has no meaning here"),
            ("a: .nan", "f: in `a`: .nan is not a finite number"),
            ("[1]: 2", "f: a key must be text"),
            (
                "a: 1\n\tb: 2",
                "f: found a tab character that violates indentation at line 2 column 1, while scanning a plain scalar at line 1 column 4",
            ),
        ] {
            assert_eq!(
                format!("{:#}", parse("f", text).unwrap_err()),
                message,
                "{text:?}"
            );
        }
    }
}
