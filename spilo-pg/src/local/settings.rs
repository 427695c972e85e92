//! Which parameters the server gets, and the text of its configuration files.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};
use spilo_core::config::{DynamicConfig, boolean, whole};

use crate::LocalOptions;

use super::controldata::ControlData;
use super::libraries;

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
    /// A primary, once it has recovered by these settings.
    Recovery(Vec<(&'static str, String)>),
}

impl Wiring {
    /// Returns whether a server that is so wired replays what another one has written, and needs
    /// what its control file demands.
    pub(crate) fn replays(&self) -> bool {
        match self {
            Self::Primary => false,
            Self::Standby { .. } | Self::Recovery(_) => true,
        }
    }
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
            Wiring::Primary | Wiring::Recovery(_) => "parameters_primary",
            Wiring::Standby { .. } => "parameters_replica",
        };
        let mut settings = Self::default();
        let mut dynamic = BTreeMap::new();
        for key in ["parameters", by_role] {
            settings.read(map(key), key, not_dynamic, &mut dynamic);
        }
        settings.control(options, &dynamic, wiring, control);
        let mut others = dynamic;
        others.retain(|name, _| !is_controlled(name));
        let local = Some(&options.parameters);
        settings.read(local, "local parameters", not_local, &mut others);
        settings.others = others;
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
        for (section, name) in [
            (map("recovery_conf"), "recovery_conf"),
            (Some(&options.recovery_conf), "local recovery_conf"),
        ] {
            settings.read(section, name, not_recovery, &mut recovery);
        }
        settings.recovery = recovery;
        settings.archive(options);
        settings
    }

    /// Leaves the log where it is for now: of what may be thrown away again nothing is archived.
    pub(crate) fn hold_archive(&mut self) {
        let nothing = String::new();
        self.others.insert("archive_command".to_owned(), nothing);
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

    /// Does without a value that the server's program refuses: leaves the parameter out, or goes
    /// back to the value that a controlled one had `before`, or to its default. Returns whether
    /// that was possible.
    pub(crate) fn refuse(
        &mut self,
        name: &str,
        why: &str,
        before: Option<&str>,
        floors: Option<&ControlData>,
    ) -> bool {
        let name = name.to_ascii_lowercase();
        let Some((known, default, kind)) = CONTROLLED.iter().find(|(known, _, _)| *known == name)
        else {
            return self.drop_parameter(&name, why);
        };
        let Some((_, value)) = self.controlled.iter_mut().find(|(name, _)| name == known) else {
            return false;
        };
        let floor = floors.and_then(|control| control.floor(known));
        let default = lift((*default).to_owned(), floor);
        // A default that is refused has been fallen back to already.
        if *value == default {
            return false;
        }
        let before = before
            .and_then(|before| kind.check(before))
            .map(|before| lift(before, floor))
            .filter(|before| before != value);
        let used = before.unwrap_or(default);
        let refused = std::mem::replace(value, used.clone());
        self.warnings.push(format!(
            "postgresql parameter {known}={refused} failed validation, going on with {used}: {why}"
        ));
        true
    }

    /// Leaves out of the lists of libraries to load those that are not `present`. The server does
    /// not start without one of the first list, and lets nobody in without one of the second.
    pub(crate) fn keep_libraries(&mut self, present: impl Fn(&str) -> bool) {
        for parameter in ["shared_preload_libraries", "session_preload_libraries"] {
            let Some(list) = self.others.get_mut(parameter) else {
                continue;
            };
            let Some(missing) = libraries::take_out(list, &present) else {
                continue;
            };
            self.warnings.push(format!(
                "parameter {parameter}: {missing} left out, because no such library is installed \
                 on this machine; install it and reload the agent"
            ));
        }
    }

    /// Leaves out what would reserve every connection, which the server's program notices only
    /// when it starts.
    pub(crate) fn keep_connections(&mut self) {
        let number = |name: &str, default: u64| match self.value(name) {
            None => Some(default),
            Some(text) => text.parse::<u64>().ok(),
        };
        let reserved = [
            ("superuser_reserved_connections", 3),
            ("reserved_connections", 0),
        ]
        .map(|(name, default)| number(name, default).unwrap_or(default));
        let Some(most) = number("max_connections", 100) else {
            return;
        };
        if reserved
            .iter()
            .fold(0, |sum: u64, number| sum.saturating_add(*number))
            < most
        {
            return;
        }
        for name in ["superuser_reserved_connections", "reserved_connections"] {
            let why = format!("it would leave none of max_connections={most} to clients");
            self.drop_parameter(name, &why);
        }
    }

    fn drop_parameter(&mut self, name: &str, why: &str) -> bool {
        let found = self
            .others
            .remove(name)
            .or_else(|| self.recovery.remove(name))
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
        // No primary reads it, but `pg_rewind --restore-target-wal` does.
        if let (Wiring::Primary, Some(command)) = (wiring, self.restore_command()) {
            text.push_str("\n# recovery.conf\n");
            setting(&mut text, "restore_command", command);
        }
        if let Wiring::Recovery(settings) = wiring {
            text.push_str("\n# Recovery\n");
            // What the backup's own files say must go first: the server takes the first target that
            // it reads, and no second one, not even an empty one.
            for target in TARGETS {
                if !settings.iter().any(|(name, _)| name == target) {
                    setting(&mut text, target, "");
                }
            }
            for (name, value) in settings {
                setting(&mut text, name, value);
            }
        }
        text
    }

    fn read(
        &mut self,
        map: Option<&Map<String, Value>>,
        section: &str,
        objection: impl Fn(&str) -> Option<String>,
        into: &mut BTreeMap<String, String>,
    ) {
        for (name, value) in map.into_iter().flatten() {
            let key = name.to_ascii_lowercase();
            let word = |why: &str| Err(why.to_owned());
            let usable = match text(value) {
                _ if !is_name(&key) => word("that cannot be a parameter's name"),
                _ if OURS.contains(&key.as_str()) => word("it is not for a configuration to set"),
                _ if INCLUDES.contains(&key.as_str()) => word(
                    "that includes a file and is no parameter; custom_conf names a file to include",
                ),
                text => match (objection(&key), text) {
                    (Some(why), _) => Err(why),
                    (None, None) if value.is_null() => Ok(None),
                    (None, None) => word("its value is neither text nor number nor boolean"),
                    (None, Some(text)) if text.contains('\0') => word("its value has a NUL"),
                    (None, Some(text)) => Ok(Some(text)),
                },
            };
            match usable {
                Ok(Some(text)) => {
                    into.insert(key, text);
                }
                // Takes away what a section before this one has set.
                Ok(None) => {
                    into.remove(&key);
                }
                Err(why) => {
                    self.warnings
                        .push(format!("{section}: {name:?}: left out, because {why}"));
                }
            }
        }
    }

    /// Takes the commands of the store of backups, if there is one.
    ///
    /// Where the store bears it every member archives: what a primary that is lost has not archived
    /// a standby still has.
    fn archive(&mut self, options: &LocalOptions) {
        let Some(backups) = &options.backups else {
            // What the files of a backup name is the archive of the cluster that it was made of.
            if options.recovery.is_some() {
                let archive = self.others.entry("archive_command".to_owned());
                archive.or_default();
            }
            return;
        };
        let archive = backups.store.archive_command();
        let archive = archive.as_deref();
        let restore = backups.store.restore_command();
        let restore = restore.as_deref();
        let mode = match backups.store.keeps_what_is_there() {
            true => "always",
            false => "on",
        };
        let ours = [
            ("archive_mode", archive.map(|_| mode)),
            ("archive_command", archive),
            ("archive_library", archive.map(|_| "")),
            ("restore_command", restore),
        ];
        for (name, value) in ours {
            let Some(value) = value else {
                continue;
            };
            let others = self.others.remove(name);
            if others.or_else(|| self.recovery.remove(name)).is_some() {
                self.warnings.push(format!(
                    "parameter {name}: left out, because the store of backups decides it"
                ));
            }
            let into = match name {
                "restore_command" => &mut self.recovery,
                // Versions before 15 do not know it.
                "archive_library" => continue,
                _ => &mut self.others,
            };
            into.insert(name.to_owned(), value.to_owned());
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
            if wiring.replays() {
                value = lift(value, control.and_then(|control| control.floor(name)));
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

/// Returns a value that is as high as a standby's control file demands.
fn lift(value: String, floor: Option<u64>) -> String {
    match floor {
        Some(floor) if value.parse::<u64>().is_ok_and(|wanted| wanted < floor) => floor.to_string(),
        _ => value,
    }
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

/// Returns whether `postgresql.conf` reads it as a name: it knows one dot, and no more signs.
fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match name.split_once('.') {
        None => is_word(name),
        Some((class, name)) => is_word(class) && is_word(name),
    }
}

fn is_controlled(name: &str) -> bool {
    not_dynamic(name).is_some() || CONTROLLED.iter().any(|(known, _, _)| *known == name)
}

/// Returns why the dynamic configuration cannot set a parameter, and what does.
fn not_dynamic(name: &str) -> Option<String> {
    let instead = match name {
        "listen_addresses" | "port" => "postgresql.listen in the local configuration",
        "cluster_name" => "scope in the local configuration",
        _ => return None,
    };
    Some(format!("it is set by {instead}"))
}

/// Returns why the local `parameters` cannot set a parameter, and what does.
fn not_local(name: &str) -> Option<String> {
    let controlled = CONTROLLED.iter().any(|(known, _, _)| *known == name);
    not_dynamic(name).or_else(|| {
        controlled.then(|| {
            "it has to be the same on every member; set it in postgresql.parameters of the dynamic \
             configuration"
                .to_owned()
        })
    })
}

/// Returns why a recovery_conf section cannot set a parameter, and what does.
fn not_recovery(name: &str) -> Option<String> {
    (!RECOVERY.contains(&name)).then(|| {
        let known = RECOVERY.join(", ");
        format!("only {known} belong there; set it in postgresql.parameters")
    })
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

/// What stands in a configuration file like a parameter and is none.
const INCLUDES: &[&str] = &["include", "include_dir", "include_if_exists"];

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
mod tests;
