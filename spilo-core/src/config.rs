//! The dynamic configuration: what the cluster agreed on, in the store's `config` key.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The settings of a cluster, typed where a decision depends on them.
///
/// A key that is absent has Patroni's meaning, because the document may be a Patroni cluster's;
/// the node that bootstraps a cluster writes spilo's own defaults into it explicitly
/// ([`DynamicConfig::seed`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DynamicConfig {
    /// How long the lock outlives its holder's last renewal. From three seconds to one day; the
    /// other spans are of one year at most.
    pub ttl: Duration,
    /// How often to look around although nothing seems to happen.
    pub loop_wait: Duration,
    /// How long a request to the store may be tried.
    pub retry_timeout: Duration,
    /// How far behind the last known position of the leader a candidate may be, in bytes.
    pub maximum_lag_on_failover_bytes: u64,
    /// How long a primary may take no writes before it fails over; zero fails over at once. So does
    /// one that was started three times without having served for half a minute in between.
    pub primary_start_timeout: Duration,
    /// Whether a primary may stay one without the store, if all members consent.
    pub failsafe_mode: bool,
    /// Whether a candidate must be on the cluster's latest timeline.
    pub check_timeline: bool,
    /// How many entries the `history` key keeps; zero keeps all.
    pub max_timelines_history: usize,
    /// How long the slot of a member that is gone is kept; zero drops it with the member.
    pub member_slots_ttl: Duration,
    /// Whether each member streams from a slot of its own.
    pub use_slots: bool,
    /// Whether a diverged server may be mended with pg_rewind.
    pub use_pg_rewind: bool,
    /// Whether a data directory that rewind cannot mend is replaced by a new copy.
    pub reclone_when_rewind_fails: bool,
    /// Whether a diverged data directory is replaced by a new copy without trying a rewind.
    pub reclone_when_diverged: bool,
    /// Settings that decide who may write or be promoted and that this version does not have.
    /// While any is in force a node does not take the lock.
    pub unsupported: Vec<String>,
    /// Values that had to be changed to be usable, each with why.
    pub adjusted: Vec<String>,
    /// The whole document, unknown keys included.
    #[serde(with = "crate::journal::form::object")]
    pub raw: Map<String, Value>,
}

impl DynamicConfig {
    /// Reads the document.
    ///
    /// # Errors
    /// A value of a wrong type in a key that matters; the text names it. The caller keeps the
    /// last good configuration.
    pub fn parse(raw: Map<String, Value>) -> Result<Self, String> {
        let mut adjusted = Vec::new();
        let keys = Reader {
            map: &raw,
            prefix: "",
        };
        let empty = Map::new();
        let postgresql = match raw.get("postgresql") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(map)) => map,
            Some(other) => return Err(format!("postgresql: wanted an object, found {other}")),
        };
        let pg = Reader {
            map: postgresql,
            prefix: "postgresql.",
        };
        check_shapes(postgresql)?;
        let unsupported = unsupported(&raw, postgresql)?;
        let mut seconds = |names: &[&str], default, bounds: RangeInclusive<Duration>| {
            let value = keys.seconds(names, default)?;
            Ok::<_, String>(within(value, &bounds, names[0], &mut adjusted))
        };
        let second = Duration::from_secs(1);
        let start_timeout = ["primary_start_timeout", "master_start_timeout"];
        let config = Self {
            ttl: seconds(&["ttl"], 30, TTL_FLOOR..=TTL_CEILING)?,
            loop_wait: seconds(&["loop_wait"], 10, second..=SPAN_CEILING)?,
            retry_timeout: seconds(&["retry_timeout"], 10, second..=SPAN_CEILING)?,
            primary_start_timeout: seconds(&start_timeout, 300, Duration::ZERO..=SPAN_CEILING)?,
            member_slots_ttl: seconds(&["member_slots_ttl"], 1800, Duration::ZERO..=SPAN_CEILING)?,
            maximum_lag_on_failover_bytes: keys.integer(&["maximum_lag_on_failover"], 1_048_576)?,
            failsafe_mode: keys.flag(&["failsafe_mode"], false)?,
            check_timeline: keys.flag(&["check_timeline"], false)?,
            max_timelines_history: usize::try_from(keys.integer(&["max_timelines_history"], 0)?)
                .unwrap_or(usize::MAX),
            use_slots: pg.flag(&["use_slots"], true)?,
            use_pg_rewind: pg.flag(&["use_pg_rewind"], false)?,
            reclone_when_rewind_fails: pg
                .flag(&["remove_data_directory_on_rewind_failure"], false)?,
            reclone_when_diverged: pg
                .flag(&["remove_data_directory_on_diverged_timelines"], false)?,
            unsupported,
            adjusted,
            raw: Map::new(),
        };
        Ok(Self { raw, ..config })
    }

    /// Returns the document that a bootstrap starts with: what `bootstrap.dcs` says, and spilo's
    /// defaults for what it does not say.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), of the resulting document.
    pub fn seed(bootstrap: &Map<String, Value>) -> Result<Self, String> {
        let mut raw = match defaults() {
            Value::Object(map) => map,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => Map::new(),
        };
        patch(&mut raw, bootstrap);
        Self::parse(raw)
    }

    /// Returns the `postgresql` section, empty if there is none.
    pub fn postgresql(&self) -> Map<String, Value> {
        self.raw
            .get("postgresql")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    }

    /// Returns the configuration of a cluster whose `config` key is absent.
    pub fn absent() -> Self {
        Self::parse(Map::new()).expect("an empty document has no value of a wrong type")
    }
}

/// Merges `change` into `config`: objects recursively, `null` removes, anything else replaces.
pub fn patch(config: &mut Map<String, Value>, change: &Map<String, Value>) {
    for (key, value) in change {
        match value {
            Value::Null => {
                config.shift_remove(key);
            }
            Value::Object(inner) => {
                if !matches!(config.get(key), Some(Value::Object(_))) {
                    config.insert(key.clone(), Value::Object(Map::new()));
                }
                if let Some(Value::Object(target)) = config.get_mut(key) {
                    patch(target, inner);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                config.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Reads a boolean by Patroni's rule: `on/true/yes/1` and `off/false/no/0` in any case.
pub fn boolean(value: &Value) -> Option<bool> {
    let text = match value {
        Value::Bool(flag) => return Some(*flag),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_ascii_lowercase(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    match text.as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a span of time: a number of seconds, or a number with one of PostgreSQL's units.
pub fn span(value: &Value) -> Option<Duration> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let seconds = match text[digits..].trim() {
        "" | "s" => number,
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// Reads a whole number of zero or more, also as text.
pub fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

struct Reader<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl Reader<'_> {
    fn seconds(&self, names: &[&str], default: u64) -> Result<Duration, String> {
        self.value(
            names,
            span,
            "a number of seconds",
            Duration::from_secs(default),
        )
    }

    fn integer(&self, names: &[&str], default: u64) -> Result<u64, String> {
        self.value(names, whole, "a whole number of zero or more", default)
    }

    fn flag(&self, names: &[&str], default: bool) -> Result<bool, String> {
        self.value(names, boolean, "a boolean", default)
    }

    fn value<T>(
        &self,
        names: &[&str],
        read: impl Fn(&Value) -> Option<T>,
        wanted: &str,
        default: T,
    ) -> Result<T, String> {
        for name in names {
            match self.map.get(*name) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    return read(value).ok_or_else(|| {
                        format!("{}{name}: wanted {wanted}, found {value}", self.prefix)
                    });
                }
            }
        }
        Ok(default)
    }
}

fn within(
    value: Duration,
    bounds: &RangeInclusive<Duration>,
    name: &str,
    adjusted: &mut Vec<String>,
) -> Duration {
    let (floor, ceiling) = (*bounds.start(), *bounds.end());
    if value < floor {
        adjusted.push(format!(
            "{name}: {value:?} is below the least of {floor:?}, which is used"
        ));
    }
    if value > ceiling {
        adjusted.push(format!(
            "{name}: {value:?} is above the most of {ceiling:?}, which is used"
        ));
    }
    value.clamp(floor, ceiling)
}

/// Refuses what the server's configuration would have to be written without: a list that is left
/// out, or a line of it, can be the one that keeps somebody away.
fn check_shapes(postgresql: &Map<String, Value>) -> Result<(), String> {
    let wanted = |name: &str, wanted: &str, found: &Value| {
        Err(format!("postgresql.{name}: wanted {wanted}, found {found}"))
    };
    let given = |name: &str| postgresql.get(name).filter(|value| !is_nothing(value));
    for name in OBJECTS {
        match given(name) {
            None | Some(Value::Object(_)) => {}
            Some(other) => return wanted(name, "an object", other),
        }
    }
    for name in LISTS_OF_LINES {
        match given(name) {
            None => {}
            Some(Value::Array(lines)) => {
                if let Some(line) = lines.iter().find(|line| !line.is_string()) {
                    return wanted(name, "a list of lines of text", line);
                }
            }
            Some(other) => return wanted(name, "a list of lines of text", other),
        }
    }
    Ok(())
}

/// Whether a value stands for none, as Patroni takes it.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn unsupported(
    raw: &Map<String, Value>,
    postgresql: &Map<String, Value>,
) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let on = |value: &Value| !is_nothing(value) && boolean(value) != Some(false);
    for name in UNSUPPORTED {
        if raw.get(*name).is_some_and(on) {
            found.push((*name).to_owned());
        }
    }
    for name in UNSUPPORTED_OF_POSTGRESQL {
        if postgresql.get(*name).is_some_and(on) {
            found.push(format!("postgresql.{name}"));
        }
    }
    for name in UNSUPPORTED_ABOVE_ZERO {
        if let Some(value) = raw.get(*name).filter(|v| !v.is_null()) {
            let span = span(value)
                .ok_or_else(|| format!("{name}: wanted a number of seconds, found {value}"))?;
            if !span.is_zero() {
                found.push((*name).to_owned());
            }
        }
    }
    Ok(found)
}

fn defaults() -> Value {
    json!({
        "ttl": 10,
        "loop_wait": 10,
        "retry_timeout": 3,
        "maximum_lag_on_failover": 1_048_576,
        "failsafe_mode": true,
        "check_timeline": true,
        "postgresql": {
            "use_slots": true,
            "use_pg_rewind": true,
            "remove_data_directory_on_rewind_failure": true,
            "parameters": {
                "wal_log_hints": "on",
                "wal_retrieve_retry_interval": "100ms",
                "password_encryption": "scram-sha-256"
            }
        }
    })
}

/// Below this the margins of the lease leave no time to write in.
const TTL_FLOOR: Duration = Duration::from_secs(3);

/// The longest that every store can keep: Consul's sessions end after a day. Spans are added and
/// multiplied, and a number that somebody mistyped must not overflow anywhere.
/// The longest ttl that there may be.
pub(crate) const TTL_CEILING: Duration = Duration::from_secs(86_400);

/// One year: nobody means more, and no clock or timer of a backend has to cope with it.
const SPAN_CEILING: Duration = Duration::from_secs(365 * 86_400);

/// Settings that change who may write or be promoted. A node that ignored one could promote the
/// wrong server, so it names them instead.
const UNSUPPORTED: &[&str] = &[
    "synchronous_mode",
    "synchronous_mode_strict",
    "pause",
    "standby_cluster",
    "permanent_replication_slots",
    "permanent_slots",
    "slots",
    "ignore_slots",
];

/// The same of its section `postgresql`: what may veto a promotion, and who may connect by role.
const UNSUPPORTED_OF_POSTGRESQL: &[&str] = &[
    "pre_promote",
    "pg_hba_primary",
    "pg_hba_replica",
    "pg_ident_primary",
    "pg_ident_replica",
];

/// What of the section `postgresql` is an object.
const OBJECTS: &[&str] = &[
    "parameters",
    "parameters_primary",
    "parameters_replica",
    "parameters_standby_leader",
    "recovery_conf",
];

/// What of the section `postgresql` is the lines of a file.
const LISTS_OF_LINES: &[&str] = &["pg_hba", "pg_ident"];

const UNSUPPORTED_ABOVE_ZERO: &[&str] = &["primary_race_backoff"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<DynamicConfig, String> {
        match value {
            Value::Object(map) => DynamicConfig::parse(map),
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn an_absent_key_has_patronis_meaning() {
        let config = DynamicConfig::absent();
        assert_eq!(config.ttl, Duration::from_secs(30));
        assert!(!config.failsafe_mode);
        assert!(!config.check_timeline);
        assert!(config.use_slots);
    }

    #[test]
    fn a_seed_writes_our_defaults_out() {
        let Value::Object(bootstrap) =
            json!({"ttl": 5, "postgresql": {"parameters": {"wal_log_hints": null}}})
        else {
            unreachable!()
        };
        let config = DynamicConfig::seed(&bootstrap).unwrap();
        assert_eq!(config.ttl, Duration::from_secs(5));
        assert!(config.failsafe_mode);
        assert_eq!(config.raw["loop_wait"], json!(10));
        assert_eq!(
            config.raw["postgresql"]["parameters"].get("wal_log_hints"),
            None
        );
    }

    #[test]
    fn a_setting_that_is_not_built_is_named() {
        let config = parse(json!({"synchronous_mode": "quorum", "pause": false, "slots": {}, "primary_race_backoff": 5})).unwrap();
        assert_eq!(
            config.unsupported,
            ["synchronous_mode", "primary_race_backoff"]
        );
        let of_postgresql = json!({"postgresql": {
            "pre_promote": "/fence.sh",
            "pg_hba": ["local all all trust"],
            "pg_hba_primary": ["local all all reject"],
            "pg_ident_primary": "",
            "pg_ident_replica": null,
        }});
        assert_eq!(
            parse(of_postgresql).unwrap().unsupported,
            ["postgresql.pre_promote", "postgresql.pg_hba_primary"]
        );
    }

    #[test]
    fn a_wrong_type_is_named_and_refused() {
        for (value, says) in [
            (
                json!({"ttl": "soon"}),
                "ttl: wanted a number of seconds, found \"soon\"",
            ),
            (
                json!({"postgresql": 3}),
                "postgresql: wanted an object, found 3",
            ),
            (
                json!({"postgresql": {"parameters": ["work_mem=8MB"]}}),
                "postgresql.parameters: wanted an object, found [\"work_mem=8MB\"]",
            ),
            (
                json!({"postgresql": {"pg_hba": "local all all trust"}}),
                "postgresql.pg_hba: wanted a list of lines of text, found \"local all all trust\"",
            ),
            (
                json!({"postgresql": {"pg_ident": ["a b c", {"d": "e"}]}}),
                "postgresql.pg_ident: wanted a list of lines of text, found {\"d\":\"e\"}",
            ),
            (
                json!({"postgresql": {"use_slots": "maybe"}}),
                "postgresql.use_slots: wanted a boolean, found \"maybe\"",
            ),
            (
                json!({"maximum_lag_on_failover": -1}),
                "maximum_lag_on_failover: wanted a whole number of zero or more, found -1",
            ),
        ] {
            assert_eq!(parse(value).unwrap_err(), says);
        }
    }

    #[test]
    fn what_stands_for_nothing_is_of_no_wrong_type() {
        let nothing = json!({"postgresql": {
            "parameters": [], "recovery_conf": "", "pg_hba": "", "pg_ident": {},
        }});
        assert_eq!(parse(nothing).unwrap().unsupported, [""; 0]);
    }

    #[test]
    fn a_ttl_below_the_floor_is_raised_and_said() {
        let config = parse(json!({"ttl": 1})).unwrap();
        assert_eq!(config.ttl, Duration::from_secs(3));
        assert_eq!(config.adjusted.len(), 1);
    }

    #[test]
    fn no_number_however_extreme_is_taken_as_it_is() {
        let spans = [
            "ttl",
            "loop_wait",
            "retry_timeout",
            "primary_start_timeout",
            "member_slots_ttl",
        ];
        let length = |config: &DynamicConfig, name| match name {
            "ttl" => config.ttl,
            "loop_wait" => config.loop_wait,
            "retry_timeout" => config.retry_timeout,
            "primary_start_timeout" => config.primary_start_timeout,
            _ => config.member_slots_ttl,
        };
        for name in spans {
            let most = if name == "ttl" {
                TTL_CEILING
            } else {
                SPAN_CEILING
            };
            for value in [
                json!(9_000_000_000_000_000_000_u64),
                json!("9000000000000000000"),
                json!("99999999999999d"),
                json!(31_536_001),
            ] {
                let config = parse(json!({ name: value })).unwrap();
                assert_eq!(length(&config, name), most, "{name}: {value}");
                assert_eq!(config.adjusted.len(), 1, "{:?}", config.adjusted);
            }
            let fraction = parse(json!({ name: 4.5 })).unwrap();
            assert_eq!(
                length(&fraction, name),
                Duration::from_millis(4500),
                "{name}"
            );
            assert_eq!(fraction.adjusted, [""; 0]);
            for value in [
                json!(u64::MAX),
                json!(1e300),
                json!("1e300"),
                json!(-1),
                json!(-1e300),
            ] {
                let refusal = parse(json!({ name: value })).unwrap_err();
                let says = format!("{name}: wanted a number of seconds, found {value}");
                assert_eq!(refusal, says);
            }
        }
        for name in ["maximum_lag_on_failover", "max_timelines_history"] {
            let most = parse(json!({ name: u64::MAX })).unwrap();
            assert_eq!(most.adjusted, [""; 0]);
            for value in [json!(1e300), json!("1e300"), json!(0.5), json!(-1)] {
                let refusal = parse(json!({ name: value })).unwrap_err();
                let says = format!("{name}: wanted a whole number of zero or more, found {value}");
                assert_eq!(refusal, says);
            }
        }
    }

    #[test]
    fn spans_take_postgres_units() {
        for (value, millis) in [
            (json!("30min"), 1_800_000),
            (json!(5), 5000),
            (json!("250ms"), 250),
            (json!("1.5s"), 1500),
        ] {
            assert_eq!(span(&value), Some(Duration::from_millis(millis)), "{value}");
        }
        for value in [json!("5 parsecs"), json!(""), json!(true), json!("-1")] {
            assert_eq!(span(&value), None, "{value}");
        }
    }
}
