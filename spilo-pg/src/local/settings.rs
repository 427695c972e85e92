//! Which parameters the server gets, and the text of its configuration files.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};
use spilo_core::config::{DynamicConfig, boolean, whole};

use crate::LocalOptions;

use super::controldata::ControlData;

/// The parameters of a server, decided.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    /// What is passed on the command line, in Patroni's order, and written to the file as well.
    pub(crate) controlled: Vec<(&'static str, String)>,
    /// Everything else.
    pub(crate) others: BTreeMap<String, String>,
    /// The recovery settings that come from the configuration: `restore_command` and its like.
    pub(crate) recovery: BTreeMap<String, String>,
    /// What was left out or changed, each with why.
    pub(crate) warnings: Vec<String>,
}

/// Whether a server writes or follows, as far as its configuration files go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// A primary.
    Primary,
    /// A standby, with the primary_conninfo and primary_slot_name that it streams by.
    Standby {
        conninfo: Option<String>,
        slot: Option<String>,
    },
}

impl Settings {
    /// Decides the parameters from the dynamic and the local configuration, and for a standby
    /// from the values that its control file demands at least.
    pub(crate) fn decide(
        options: &LocalOptions,
        config: &DynamicConfig,
        wiring: &Wiring,
        control: Option<&ControlData>,
    ) -> Self {
        let section = config.postgresql();
        let map = |key: &str| section.get(key).and_then(Value::as_object);
        let by_role = match wiring {
            Wiring::Primary => "parameters_primary",
            Wiring::Standby { .. } => "parameters_replica",
        };
        let mut settings = Self::default();
        let mut dynamic = BTreeMap::new();
        for key in ["parameters", by_role] {
            settings.read(map(key), key, &mut dynamic);
        }
        let mut local = BTreeMap::new();
        settings.read(Some(&options.parameters), "local parameters", &mut local);
        settings.control(options, &dynamic, wiring, control);
        local.retain(|name, _| !is_controlled(name));
        settings.others = dynamic
            .into_iter()
            .filter(|(name, _)| !is_controlled(name))
            .collect();
        settings.others.extend(local);
        settings
            .others
            .entry("wal_keep_size".to_owned())
            .or_insert_with(|| "128MB".to_owned());
        if let Some(segments) = settings.others.remove("wal_keep_segments") {
            let megabytes = segments.parse::<u64>().unwrap_or(8).saturating_mul(16);
            settings
                .others
                .insert("wal_keep_size".to_owned(), format!("{megabytes}MB"));
        }
        let mut recovery = BTreeMap::new();
        settings.read(map("recovery_conf"), "recovery_conf", &mut recovery);
        settings.read(
            Some(&options.recovery_conf),
            "local recovery_conf",
            &mut recovery,
        );
        recovery.retain(|name, _| RECOVERY.contains(&name.as_str()));
        settings.recovery = recovery;
        settings
    }

    /// Returns the value of a parameter.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let controlled = self.controlled.iter().find(|(known, _)| *known == name);
        controlled
            .map(|(_, value)| value)
            .or_else(|| self.others.get(name))
            .or_else(|| self.recovery.get(name))
            .map(String::as_str)
    }

    /// Returns the command by which a missing segment of the log is fetched, if there is one.
    pub(crate) fn restore_command(&self) -> Option<&str> {
        self.value("restore_command")
            .filter(|command| !command.trim().is_empty())
    }

    /// Leaves a parameter out, because the server would not start with it.
    pub(crate) fn drop_parameter(&mut self, name: &str, why: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let found = self
            .others
            .remove(&name)
            .or_else(|| self.recovery.remove(&name))
            .is_some();
        if found {
            self.warnings
                .push(format!("parameter {name}: left out, because {why}"));
        }
        found
    }

    /// Returns the text of `postgresql.conf`.
    pub(crate) fn render(
        &self,
        include: &str,
        hba_file: &str,
        ident_file: &str,
        wiring: &Wiring,
    ) -> String {
        let mut text = format!("{HEADER}include {}\n\n", quote(include));
        let mut all: BTreeMap<&str, &str> = BTreeMap::new();
        all.extend(
            self.controlled
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        all.extend(
            self.others
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        for (name, file) in [("hba_file", hba_file), ("ident_file", ident_file)] {
            all.entry(name).or_insert(file);
        }
        for (name, value) in all {
            setting(&mut text, name, value);
        }
        if let Wiring::Standby { conninfo, slot } = wiring {
            text.push_str("\n# recovery.conf\n");
            for (name, value) in [("primary_conninfo", conninfo), ("primary_slot_name", slot)] {
                setting(&mut text, name, value.as_deref().unwrap_or_default());
            }
            for name in TARGETS {
                setting(&mut text, name, "");
            }
            setting(&mut text, "recovery_target_timeline", "latest");
            for (name, value) in &self.recovery {
                setting(&mut text, name, value);
            }
        }
        text
    }

    fn read(
        &mut self,
        map: Option<&Map<String, Value>>,
        section: &str,
        into: &mut BTreeMap<String, String>,
    ) {
        for (name, value) in map.into_iter().flatten() {
            let key = name.to_ascii_lowercase();
            let usable = match text(value) {
                _ if !is_name(&key) => Err("that cannot be a parameter's name"),
                _ if OURS.contains(&key.as_str()) => Err("it is not for a configuration to set"),
                None => Err("its value is neither text nor number nor boolean"),
                Some(text) if text.contains('\0') => Err("its value has a NUL"),
                Some(text) => Ok(text),
            };
            match usable {
                Ok(text) => {
                    into.insert(key, text);
                }
                Err(why) => {
                    self.warnings
                        .push(format!("{section}: {name:?}: left out, because {why}"));
                }
            }
        }
    }

    /// Decides the parameters that must agree between primary and standbys.
    fn control(
        &mut self,
        options: &LocalOptions,
        dynamic: &BTreeMap<String, String>,
        wiring: &Wiring,
        control: Option<&ControlData>,
    ) {
        self.controlled
            .push(("listen_addresses", options.listen_addresses.clone()));
        self.controlled.push(("port", options.port.to_string()));
        self.controlled
            .push(("cluster_name", options.scope.to_string()));
        for (name, default, kind) in CONTROLLED {
            let mut value = match dynamic.get(*name) {
                None => (*default).to_owned(),
                Some(wanted) => kind.check(wanted).unwrap_or_else(|| {
                    self.warnings.push(format!(
                        "postgresql parameter {name}={wanted} failed validation, defaulting to {default}"
                    ));
                    (*default).to_owned()
                }),
            };
            let floor = control.and_then(|control| control.floor(name));
            if let (Wiring::Standby { .. }, Some(floor)) = (wiring, floor)
                && value.parse::<u64>().is_ok_and(|wanted| wanted < floor)
            {
                value = floor.to_string();
            }
            self.controlled.push((name, value));
        }
    }
}

/// Returns the text of a file of lines, such as `pg_hba.conf`.
pub(crate) fn lines(lines: &[String]) -> String {
    let mut text = HEADER.to_owned();
    for line in lines {
        // A line break inside an entry would begin an entry that nobody wrote.
        text.push_str(&line.replace(['\n', '\r', '\0'], " "));
        text.push('\n');
    }
    text
}

/// Returns the value of a parameter in the text of a `postgresql.conf` that [`Settings::render`]
/// or Patroni wrote.
pub(crate) fn find(conf: &str, name: &str) -> Option<String> {
    let line = conf.lines().rev().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then_some(value.trim())
    })?;
    let quoted = line.strip_prefix('\'')?.strip_suffix('\'')?;
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    Some(value)
}

/// Writes a value the way `postgresql.conf` reads it.
fn quote(value: &str) -> String {
    let mut text = String::from("'");
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}

fn setting(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name} = {}", quote(value));
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Bool(true) => Some("on".to_owned()),
        Value::Bool(false) => Some("off".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))
}

fn is_controlled(name: &str) -> bool {
    matches!(name, "listen_addresses" | "port" | "cluster_name")
        || CONTROLLED.iter().any(|(known, _, _)| *known == name)
}

/// What values a controlled parameter may have.
#[derive(Clone, Copy, Debug)]
enum Kind {
    AtLeast(u64),
    Flag,
    On,
    WalLevel,
}

impl Kind {
    fn check(self, value: &str) -> Option<String> {
        let json = Value::String(value.to_owned());
        match self {
            Self::AtLeast(least) => whole(&json)
                .filter(|number| *number >= least)
                .map(|number| number.to_string()),
            Self::Flag => boolean(&json).map(|on| if on { "on" } else { "off" }.to_owned()),
            Self::On => boolean(&json).filter(|on| *on).map(|_| "on".to_owned()),
            Self::WalLevel => match value {
                "hot_standby" | "replica" => Some("replica".to_owned()),
                "logical" => Some("logical".to_owned()),
                _ => None,
            },
        }
    }
}

/// The parameters that only the dynamic configuration sets, in Patroni's order on the command
/// line, with their defaults.
const CONTROLLED: &[(&str, &str, Kind)] = &[
    ("wal_level", "replica", Kind::WalLevel),
    ("hot_standby", "on", Kind::On),
    ("max_connections", "100", Kind::AtLeast(25)),
    ("max_wal_senders", "10", Kind::AtLeast(3)),
    ("max_prepared_transactions", "0", Kind::AtLeast(0)),
    ("max_locks_per_transaction", "64", Kind::AtLeast(32)),
    ("track_commit_timestamp", "off", Kind::Flag),
    ("max_replication_slots", "10", Kind::AtLeast(4)),
    ("max_worker_processes", "8", Kind::AtLeast(2)),
    ("wal_log_hints", "on", Kind::Flag),
];

/// What decides where the server is, what it follows and when it is promoted.
const OURS: &[&str] = &[
    "config_file",
    "data_directory",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "standby_mode",
    "trigger_file",
];

/// The targets at which a standby would stop following; none may be in force.
const TARGETS: &[&str] = &[
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// What a recovery_conf section may set.
const RECOVERY: &[&str] = &[
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "restore_command",
];

const HEADER: &str = "# This file is written by spilo: what is edited here is lost.\n";

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spilo_core::ids::{MemberName, Scope};

    use super::*;

    fn options() -> LocalOptions {
        let name = MemberName::new("pg-1").unwrap();
        LocalOptions::new(Scope::new("o'scope").unwrap(), name, "/d", 5433)
    }

    fn config(parameters: Value) -> DynamicConfig {
        let mut raw = Map::new();
        raw.insert("postgresql".to_owned(), json!({ "parameters": parameters }));
        DynamicConfig::parse(raw).unwrap()
    }

    fn decide(parameters: Value) -> Settings {
        Settings::decide(&options(), &config(parameters), &Wiring::Primary, None)
    }

    #[test]
    fn controlled_parameters_have_patronis_defaults_and_order() {
        let settings = decide(json!({}));
        let args: Vec<_> = settings
            .controlled
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            args,
            [
                "listen_addresses=127.0.0.1",
                "port=5433",
                "cluster_name=o'scope",
                "wal_level=replica",
                "hot_standby=on",
                "max_connections=100",
                "max_wal_senders=10",
                "max_prepared_transactions=0",
                "max_locks_per_transaction=64",
                "track_commit_timestamp=off",
                "max_replication_slots=10",
                "max_worker_processes=8",
                "wal_log_hints=on",
            ]
        );
        assert_eq!(settings.warnings, [""; 0]);
    }

    #[test]
    fn an_impossible_controlled_value_falls_back_to_the_default() {
        for (name, value, used) in [
            ("max_connections", json!(3), "100"),
            ("max_connections", json!("many"), "100"),
            ("hot_standby", json!(false), "on"),
            ("wal_level", json!("minimal"), "replica"),
            ("wal_level", json!("logical"), "logical"),
            ("wal_log_hints", json!("off"), "off"),
            ("port", json!(1), "5433"),
        ] {
            let settings = decide(json!({ name: value }));
            assert_eq!(settings.value(name), Some(used), "{name}={value}");
        }
    }

    #[test]
    fn local_parameters_override_dynamic_ones_but_not_controlled_ones() {
        let mut options = options();
        let Value::Object(local) = json!({"work_mem": "8MB", "max_connections": 300}) else {
            unreachable!()
        };
        options.parameters = local;
        let config = config(json!({"work_mem": "4MB", "max_connections": 200}));
        let settings = Settings::decide(&options, &config, &Wiring::Primary, None);
        assert_eq!(settings.value("work_mem"), Some("8MB"));
        assert_eq!(settings.value("max_connections"), Some("200"));
    }

    #[test]
    fn what_would_promote_or_move_the_server_is_left_out() {
        let settings = decide(json!({
            "promote_trigger_file": "/tmp/x", "PRIMARY_CONNINFO": "host=x", "data_directory": "/",
            "a\nb": 1, "work_mem": {}, "x.y": "z",
        }));
        assert_eq!(settings.warnings.len(), 5, "{:?}", settings.warnings);
        assert_eq!(settings.value("x.y"), Some("z"));
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        let value = "a'b\\c\nd";
        let settings = decide(json!({ "x.y": value, "wal_keep_segments": 4 }));
        let text = settings.render(
            "postgresql.base.conf",
            "/d/pg_hba.conf",
            "/d/i",
            &Wiring::Primary,
        );
        assert!(text.contains("x.y = 'a''b\\\\c\\nd'\n"), "{text}");
        assert!(text.contains("wal_keep_size = '64MB'\n"), "{text}");
        assert!(text.contains("hba_file = '/d/pg_hba.conf'\n"), "{text}");
        assert!(!text.contains("recovery.conf"), "{text}");
    }

    #[test]
    fn a_standby_gets_its_recovery_settings_and_they_are_read_back() {
        let conninfo = r"host=h application_name=a\ b";
        let wiring = Wiring::Standby {
            conninfo: Some(conninfo.to_owned()),
            slot: Some("pg_1".to_owned()),
        };
        let text = decide(json!({})).render("b", "h", "i", &wiring);
        assert!(
            text.contains("\n# recovery.conf\nprimary_conninfo = "),
            "{text}"
        );
        assert_eq!(find(&text, "primary_conninfo").as_deref(), Some(conninfo));
        assert_eq!(find(&text, "primary_slot_name").as_deref(), Some("pg_1"));
        assert_eq!(
            find(&text, "recovery_target_timeline").as_deref(),
            Some("latest")
        );
        assert_eq!(find(&text, "restore_command"), None);
    }

    #[test]
    fn lines_stay_lines() {
        let text = lines(&["local all all trust\nhost all all all trust".to_owned()]);
        assert_eq!(text.lines().count(), 2);
    }
}
