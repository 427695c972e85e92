mod backup;
mod stores;

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::config::patch;

const NO_ENV: BTreeMap<String, String> = BTreeMap::new();

/// A configuration that has nothing wrong with it and nothing in it that would be warned of.
fn base() -> Map<String, Value> {
    object(json!({
        "scope": "demo",
        "name": "a",
        "restapi": {"listen": "127.0.0.1:8008", "connect_address": "10.0.0.1:8008"},
        "etcd3": {"hosts": ["127.0.0.1:2379", "etcd-2"]},
        "postgresql": {
            "listen": "*:5432",
            "connect_address": "10.0.0.1:5432",
            "data_dir": "/srv/pg",
            "authentication": {
                "superuser": {"username": "postgres", "password": "one"},
                "replication": {"username": "replicator", "password": "two"},
            },
        },
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no map"),
    }
}

fn with(change: Value) -> Result<Parsed, Vec<ConfigError>> {
    let mut document = base();
    patch(&mut document, &object(change));
    Local::parse(Value::Object(document), &NO_ENV)
}

fn errors(change: Value) -> Vec<String> {
    with(change)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn patroni_file() -> Local {
    let parsed = with(json!({
        "namespace": "/db/",
        "log": {"level": "warning", "type": "json", "dir": "/log", "mode": "0640", "file_num": 2},
        "restapi": {
            "authentication": {"username": "u", "password": "p"},
            "certfile": "/c", "cafile": "/ca", "verify_client": "optional",
            "allowlist": "10.0.0.0/8, 127.0.0.1", "http_extra_headers": {"X-A": "b"},
        },
        "etcd3": {"protocol": "https", "username": "root", "password": 42, "cacert": "/ca"},
        "bootstrap": {
            "dcs": {"ttl": 20},
            "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            "post_init": "/bin/true",
            "pg_hba": ["host all all all scram-sha-256"],
        },
        "postgresql": {
            "authentication": {"rewind": {"username": "w", "password": "s", "sslmode": "prefer"}},
            "use_unix_socket": "on", "pg_ctl_timeout": "2min",
            "parameters": {"unix_socket_directories": "/run/pg, /tmp", "work_mem": 4096, "fsync": true},
            "basebackup": {"max-rate": "100M", "checkpoint": "fast"},
        },
        "tags": {"nofailover": "off", "zone": "x", "noloadbalance": true},
        "watchdog": {"mode": "off"},
    }))
    .unwrap();
    assert_eq!(parsed.warnings, [""; 0]);
    parsed.local
}

#[test]
fn the_services_of_a_patroni_file_are_read() {
    let local = patroni_file();
    assert_eq!(local.namespace, "/db");
    assert_eq!(
        local.log,
        Log {
            format: LogFormat::Json,
            level: LogLevel::Warn,
            dir: Some("/log".into()),
            file_mode: Some(0o640),
            file_count: 2,
            file_bytes: 25_000_000,
        }
    );
    assert_eq!(local.restapi.allowlist, ["10.0.0.0/8", "127.0.0.1"]);
    assert_eq!(
        local.restapi.http_headers,
        [("X-A".to_owned(), "b".to_owned())]
    );
    assert_eq!(
        local.restapi.tls.unwrap().verify_client,
        VerifyClient::Optional
    );
    let etcd = local.etcd3.unwrap();
    assert_eq!(
        etcd.endpoints,
        ["https://127.0.0.1:2379", "https://etcd-2:2379"]
    );
    assert_eq!(etcd.credentials.unwrap().password, Secret::new("42"));
}

#[test]
fn the_server_of_a_patroni_file_is_read() {
    let local = patroni_file();
    let arguments: Vec<_> = local
        .bootstrap
        .initdb
        .iter()
        .map(ToolOption::argument)
        .collect();
    assert_eq!(arguments, ["--encoding=UTF8", "--data-checksums"]);
    assert_eq!(local.bootstrap.post_bootstrap.as_deref(), Some("/bin/true"));
    let postgresql = local.postgresql;
    assert_eq!(postgresql.pg_ctl_timeout.as_secs(), 120);
    assert_eq!(postgresql.unix_socket_dir, Some("/run/pg".into()));
    assert_eq!(postgresql.rewind.unwrap().username, "w");
    assert_eq!(postgresql.listen.to_string(), "*:5432");
    assert_eq!(postgresql.connect.to_string(), "10.0.0.1:5432");
    assert_eq!(
        Value::Object(local.tags),
        json!({"zone": "x", "noloadbalance": true})
    );
}

#[test]
fn an_unknown_or_bad_name_is_an_error() {
    for (change, expected) in [
        (
            json!({"postgresql": {"lisen": "x"}}),
            "postgresql.lisen: unknown key; did you mean `postgresql.listen`?",
        ),
        (
            json!({"scop": "x"}),
            "scop: unknown key; did you mean `scope`?",
        ),
        (json!({"scope": null}), "scope: is missing"),
        (
            json!({"scope": "a/b"}),
            "scope: scope \"a/b\": has a slash, which separates keys in the store",
        ),
        (
            json!({"name": true}),
            "name: must be text (in quotes, if YAML takes it for something else), found the \
             boolean true",
        ),
    ] {
        assert_eq!(errors(change), [expected]);
    }
}

#[test]
fn a_value_of_a_wrong_kind_is_an_error_that_says_what_is_wanted() {
    for (change, expected) in [
        (
            json!({"restapi": "127.0.0.1:8008"}),
            "restapi: must be a section, found \"127.0.0.1:8008\"",
        ),
        (
            json!({"log": {"type": "xml"}}),
            "log.type: must be one of `plain`, `json`, found \"xml\"",
        ),
        (
            json!({"log": {"level": "LOUD"}}),
            "log.level: must be one of `CRITICAL`, `ERROR`, `WARNING`, `INFO`, `DEBUG` or `TRACE`, \
             found \"LOUD\"",
        ),
        (
            json!({"log": {"file_num": "many"}}),
            "log.file_num: must be an integer from 0 to 2147483647, found \"many\"",
        ),
        (
            json!({"postgresql": {"use_unix_socket": "sometimes"}}),
            "postgresql.use_unix_socket: must be a boolean (on or off, true or false, yes or no), \
             found \"sometimes\"",
        ),
        (
            json!({"postgresql": {"pg_hba": "host all all all trust"}}),
            "postgresql.pg_hba: must be a list of lines, found \"host all all all trust\"",
        ),
        (
            json!({"postgresql": {"pg_hba": [{"host": 1}]}}),
            "postgresql.pg_hba: must be a list of text, found a map in it",
        ),
        (
            json!({"postgresql": {"parameters": {"work_mem": [1]}}}),
            "postgresql.parameters.work_mem: must be a scalar, found a list",
        ),
    ] {
        assert_eq!(errors(change), [expected]);
    }
}

#[test]
fn a_value_that_cannot_work_is_an_error_that_says_why() {
    for (change, expected) in [
        (
            json!({"postgresql": {"data_dir": "pg"}}),
            "postgresql.data_dir: must be an absolute path, found \"pg\"",
        ),
        (
            json!({"postgresql": {"data_dir": "/srv/pg/.."}}),
            "postgresql.data_dir: must end in the name of a directory, found \"/srv/pg/..\"",
        ),
        (
            json!({"postgresql": {"connect_address": null}}),
            "postgresql.connect_address: is missing: others cannot reach this node at *:5432",
        ),
        (
            json!({"postgresql": {"connect_address": "db"}}),
            "postgresql.connect_address: must be HOST:PORT, found \"db\"",
        ),
        (
            json!({"postgresql": {"basebackup": [{"pgdata": "/x"}]}}),
            "postgresql.basebackup: `pgdata` is not the operator's to choose here",
        ),
        (
            json!({"postgresql": {"authentication": {"superuser": {"password": ["s3cret"]}}}}),
            "postgresql.authentication.superuser.password: must be text, in quotes",
        ),
    ] {
        assert_eq!(errors(change), [expected]);
    }
}

#[test]
fn a_data_directory_is_the_same_however_its_path_is_written() {
    for text in ["/srv/pg", "/srv/pg/", "/srv//./pg//"] {
        let parsed = with(json!({"postgresql": {"data_dir": text}})).unwrap();
        // Paths compare by their parts, and names are made of the text.
        let written = parsed.local.postgresql.data_dir.into_os_string();
        assert_eq!(written, "/srv/pg", "{text}");
    }
}

#[test]
fn what_another_setting_needs_is_missed() {
    for (change, expected) in [
        (
            json!({"restapi": {"verify_client": "required"}}),
            "restapi.cafile: is missing, and `restapi.verify_client` needs it",
        ),
        (
            json!({"restapi": {"verify_client": "required", "cafile": "/ca"}}),
            "restapi.certfile: is missing, and `restapi.verify_client` needs it",
        ),
        (
            json!({"restapi": {"authentication": {"username": "u"}}}),
            "restapi.authentication.password: is missing, and `restapi.authentication.username` \
             needs it",
        ),
        (
            json!({"etcd3": {"hosts": null}}),
            "etcd3.hosts: is missing: no endpoint of the store is named",
        ),
        (
            json!({"etcd3": {"hosts": "ftp://a:1"}}),
            "etcd3.hosts: has the scheme \"ftp\", not http or https",
        ),
        (
            json!({"etcd3": {"protocol": "https"}}),
            "etcd3.cacert: is missing, and https needs it: the authorities of the system are not \
             asked",
        ),
        (
            json!({"etcd3": null, "consul": {"url": "https://consul:8501"}}),
            "consul.cacert: is missing, and https needs it: the authorities of the system are not \
             asked",
        ),
        (
            json!({"etcd3": null, "consul": {"host": "http://me@consul"}}),
            "consul.host: has a user in it, which an address may not have",
        ),
        (
            json!({"consul": {"host": "localhost"}}),
            "consul: is a second store beside `etcd3`: a cluster agrees through one",
        ),
        (
            json!({"postgresql": {"use_unix_socket": true}}),
            "postgresql.parameters.unix_socket_directories: must name a directory, since \
             `postgresql.use_unix_socket` needs one",
        ),
        (
            json!({"bootstrap": {"dcs": {"ttl": "long"}}}),
            "bootstrap.dcs.ttl: wanted a number of seconds, found \"long\"",
        ),
    ] {
        assert_eq!(errors(change), [expected]);
    }
}

#[test]
fn what_decides_who_may_write_and_is_not_built_is_refused() {
    for (change, path) in [
        (json!({"tags": {"nofailover": true}}), "tags.nofailover"),
        (json!({"tags": {"nofailover": "yes"}}), "tags.nofailover"),
        (
            json!({"tags": {"failover_priority": 2}}),
            "tags.failover_priority",
        ),
        (json!({"tags": {"nosync": true}}), "tags.nosync"),
        (json!({"tags": {"sync_priority": 0}}), "tags.sync_priority"),
        (json!({"tags": {"nostream": true}}), "tags.nostream"),
        (
            json!({"tags": {"replicatefrom": "b"}}),
            "tags.replicatefrom",
        ),
        (json!({"watchdog": {"mode": "required"}}), "watchdog.mode"),
        (json!({"watchdog": {"mode": "maybe"}}), "watchdog.mode"),
        (json!({"etcd": {"host": "a:1"}}), "etcd"),
        (json!({"exhibitor": {}}), "exhibitor"),
        (json!({"kubernetes": {}}), "kubernetes"),
        (json!({"citus": {"group": 0}}), "citus"),
        (
            json!({"bootstrap": {"method": "my_own"}}),
            "bootstrap.method",
        ),
        (
            json!({"bootstrap": {"users": {"a": {}}}}),
            "bootstrap.users",
        ),
        (
            json!({"bootstrap": {"dcs": {"synchronous_mode": true}}}),
            "bootstrap.dcs.synchronous_mode",
        ),
        (
            json!({"postgresql": {"pre_promote": "/bin/false"}}),
            "postgresql.pre_promote",
        ),
        (
            json!({"postgresql": {"bin_name": {"postgres": "postgres15"}}}),
            "postgresql.bin_name.postgres",
        ),
        (
            json!({"postgresql": {"remove_data_directory_on_rewind_failure": false}}),
            "postgresql.remove_data_directory_on_rewind_failure",
        ),
        (
            json!({"postgresql": {"authentication": {"superuser": {"sslmode": "verify-full"}}}}),
            "postgresql.authentication.superuser.sslmode",
        ),
        (
            json!({"restapi": {"keyfile_password": "x"}}),
            "restapi.keyfile_password",
        ),
        (
            json!({"postgresql": {"pg_hba_replica": []}}),
            "postgresql.pg_hba_replica",
        ),
        (
            json!({"backup": {"archive": "/srv/archive", "options": {"archive": "/other"}}}),
            "backup.options",
        ),
    ] {
        let found = with(change.clone()).unwrap_err();
        let found: Vec<_> = found.iter().map(|e| (e.path.as_str(), e.kind())).collect();
        assert_eq!(found, [(path, ConfigErrorKind::Refused)], "{change}");
    }
}

#[test]
fn what_asks_for_what_happens_anyway_is_fine() {
    for change in [
        json!({"tags": {"nofailover": false, "failover_priority": 1, "nosync": "no"}}),
        json!({"watchdog": {"mode": false}}),
        json!({"bootstrap": {"method": "initdb"}}),
        json!({"postgresql": {"create_replica_methods": ["basebackup"]}}),
        json!({"postgresql": {
            "create_replica_methods": ["mine", "basebackup"],
            "mine": {"command": "/bin/true", "anything": 1, "keep_data": "yes"},
        }}),
        json!({"backup": {"archive": "s3://bucket/main", "env_dir": "/etc/backup.env"}}),
        json!({"backup": {"store": "wal-e", "env_dir": "/etc/wal-e.d/env"}}),
        json!({"tags": null, "log": null, "citus": null}),
    ] {
        assert_eq!(with(change.clone()).unwrap().warnings, [""; 0], "{change}");
    }
}

#[test]
fn what_is_not_built_and_harmless_gives_one_warning_each() {
    let parsed = with(json!({
        "thread_pool_size": 5,
        "log": {"format": "%(message)s"},
        "watchdog": {"mode": "automatic"},
        "postgresql": {
            "callbacks": {"on_start": "/bin/true"},
            "my_method": {"command": "/bin/true"},
            "authentication": {"superuser": {"password": null}},
        },
    }))
    .unwrap();
    let warned: Vec<_> = parsed
        .warnings
        .iter()
        .filter_map(|w| w.split(": ").next())
        .collect();
    assert_eq!(
        warned,
        [
            "postgresql.callbacks.on_start",
            "postgresql.my_method",
            "thread_pool_size",
            "log.format",
            "watchdog.mode",
            "postgresql.authentication.superuser.password",
        ]
    );
}

#[test]
fn all_errors_come_at_once_and_none_twice() {
    let change = json!({
        "scope": ["x"], "nam": "a", "log": {"level": {}}, "tags": {"nofailover": true},
        "restapi": {"listen": null, "connect_address": "x"},
    });
    let found = with(change).unwrap_err();
    let paths: Vec<_> = found.iter().map(|error| error.path.as_str()).collect();
    let expected = [
        "scope",
        "restapi.listen",
        "restapi.connect_address",
        "nam",
        "log.level",
        "tags.nofailover",
    ];
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    assert_eq!(
        sorted(paths.iter().map(ToString::to_string).collect()),
        sorted(expected.iter().map(ToString::to_string).collect())
    );
}

#[test]
fn a_document_that_is_no_map_is_one_error() {
    for document in [json!([]), json!("x"), json!(1)] {
        assert_eq!(Local::parse(document, &NO_ENV).unwrap_err().len(), 1);
    }
    // No file at all: everything is missing, nothing is wrong.
    let found = Local::parse(Value::Null, &NO_ENV).unwrap_err();
    assert!(
        found
            .iter()
            .all(|error| error.kind() == ConfigErrorKind::Missing),
        "{found:?}"
    );
}

#[test]
fn the_environment_alone_is_enough() {
    let env = [
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_NAME", "a"),
        ("PATRONI_RESTAPI_LISTEN", "127.0.0.1:8008"),
        ("PATRONI_ETCD3_HOSTS", "a:2379,b:2379"),
        ("PATRONI_POSTGRESQL_LISTEN", "127.0.0.1:5432"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/srv/pg"),
        ("PATRONI_SUPERUSER_PASSWORD", "one"),
        ("PATRONI_REPLICATION_PASSWORD", "two"),
    ];
    let env = env.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let parsed = Local::parse(Value::Null, &env.into()).unwrap();
    assert_eq!(
        parsed.local.etcd3.unwrap().endpoints,
        ["http://a:2379", "http://b:2379"]
    );
    assert_eq!(
        parsed.local.postgresql.replication.password,
        Some(Secret::new("two"))
    );
    assert_eq!(parsed.warnings, [""; 0]);
}

#[test]
fn an_error_in_a_variable_names_the_variable() {
    let env = BTreeMap::from([
        ("PATRONI_LOG_FILE_NUM".to_owned(), "x".to_owned()),
        ("PATRONI_EXHIBITOR_HOSTS".to_owned(), "x".to_owned()),
    ]);
    let found = Local::parse(Value::Object(base()), &env).unwrap_err();
    let text: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "exhibitor: is not a store that is built in: use `etcd3`, `consul` or `zookeeper` (from \
             PATRONI_EXHIBITOR_HOSTS)",
            "log.file_num: must be an integer from 0 to 2147483647, found \"x\" (from \
             PATRONI_LOG_FILE_NUM)",
        ]
    );
}

#[test]
fn no_password_is_shown_in_debug_output() {
    let shown = format!("{:?}", with(json!({})).unwrap());
    assert!(
        !shown.contains("one\"") && !shown.contains("two\""),
        "{shown}"
    );
    assert!(shown.contains("***"));
}
