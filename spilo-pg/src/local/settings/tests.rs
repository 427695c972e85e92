//! Which parameters the server gets, and how they are written.

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

fn map(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else {
        panic!("{value} is no object")
    };
    map
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
fn what_is_set_in_the_wrong_place_is_said_once_with_the_right_one() {
    let mut options = options();
    options.parameters = map(json!({"max_connections": 300, "port": 1}));
    options.recovery_conf = map(json!({"work_mem": "8MB", "restore_command": "cp"}));
    let mut raw = map(json!({"postgresql": {"recovery_conf": {"standby": 1}}}));
    spilo_core::config::patch(&mut raw, &config(json!({"cluster_name": "x"})).raw);
    let config = DynamicConfig::parse(raw).unwrap();
    let settings = Settings::decide(&options, &config, &Wiring::Primary, None);
    let recovery = "only archive_cleanup_command, recovery_end_command, \
                    recovery_min_apply_delay, restore_command belong there; set it in \
                    postgresql.parameters";
    assert_eq!(
        settings.warnings,
        [
            "parameters: \"cluster_name\": left out, because it is set by scope in the local \
             configuration"
                .to_owned(),
            "local parameters: \"max_connections\": left out, because it has to be the same on \
             every member; set it in postgresql.parameters of the dynamic configuration"
                .to_owned(),
            "local parameters: \"port\": left out, because it is set by postgresql.listen in \
             the local configuration"
                .to_owned(),
            format!("recovery_conf: \"standby\": left out, because {recovery}"),
            format!("local recovery_conf: \"work_mem\": left out, because {recovery}"),
        ]
    );
    assert_eq!(settings.restore_command(), Some("cp"));
}

#[test]
fn a_local_null_takes_a_dynamic_value_away() {
    let mut options = options();
    options.parameters = map(json!({"work_mem": null, "wal_keep_size": null, "x.y": null}));
    let config = config(json!({"work_mem": "4MB", "wal_keep_size": "1GB"}));
    let settings = Settings::decide(&options, &config, &Wiring::Primary, None);
    assert_eq!(settings.value("work_mem"), None);
    assert_eq!(settings.value("wal_keep_size"), Some("128MB"));
    assert_eq!(settings.warnings, [""; 0]);
}

#[test]
fn a_refused_controlled_value_falls_back_to_the_one_before_and_to_the_default() {
    for (before, used) in [
        (None, vec!["100"]),
        (Some("250"), vec!["250", "100"]),
        (Some("999999"), vec!["100"]),
        (Some("3"), vec!["100"]),
        (Some("100"), vec!["100"]),
    ] {
        let mut settings = decide(json!({"max_connections": 999_999}));
        for used in &used {
            assert!(settings.refuse("max_connections", "it is too big", before, None));
            assert_eq!(settings.value("max_connections"), Some(*used), "{before:?}");
        }
        assert!(!settings.refuse("max_connections", "it is too big", before, None));
        assert_eq!(settings.warnings.len(), used.len());
        assert_eq!(
            settings.warnings[0],
            format!(
                "postgresql parameter max_connections=999999 failed validation, going on with \
                 {}: it is too big",
                used[0]
            )
        );
    }
    assert!(!decide(json!({})).refuse("port", "it is taken", Some("1"), None));
}

#[test]
fn connections_are_left_to_clients() {
    for (reserved, kept) in [(24, true), (25, false)] {
        let mut settings = decide(json!({
            "max_connections": 25, "superuser_reserved_connections": reserved,
        }));
        settings.keep_connections();
        let found = settings.value("superuser_reserved_connections");
        assert_eq!(found.is_some(), kept, "{reserved}");
        assert_eq!(settings.warnings.is_empty(), kept, "{reserved}");
    }
}

#[test]
fn libraries_that_are_missing_are_left_out() {
    let mut settings = decide(json!({
        "shared_preload_libraries": "there, gone", "session_preload_libraries": "there",
    }));
    settings.keep_libraries(|name| name == "there");
    assert_eq!(settings.value("shared_preload_libraries"), Some("there"));
    assert_eq!(settings.value("session_preload_libraries"), Some("there"));
    assert_eq!(
        settings.warnings,
        [
            "parameter shared_preload_libraries: gone left out, because no such library is \
          installed on this machine; install it and reload the agent"
        ]
    );
}

#[test]
fn what_is_no_parameters_name_reaches_no_file() {
    let settings = decide(json!({
        "include": "x", "Include_Dir": "x", "include_if_exists": "x", "a.b.c": 1, "a$": 1,
        ".a": 1, "a.": 1, "1a": 1, "_a.b1": 1,
    }));
    assert_eq!(settings.warnings.len(), 8, "{:?}", settings.warnings);
    let names: Vec<_> = settings.others.keys().collect();
    assert_eq!(names, ["_a.b1", "wal_keep_size"]);
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
