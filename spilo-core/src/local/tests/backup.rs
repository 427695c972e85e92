use super::*;
use crate::backup::{MadeFrom, RecoveryTarget};
use crate::replica::{ReplicaCommand, ReplicaMethod, Thresholds};

#[test]
fn the_store_of_backups_and_the_ways_to_make_a_replica_are_read() {
    let local = with(json!({
        "backup": {
            "archive": "s3://bucket/main",
            "command": "/opt/spilo-backup",
            "env_dir": "/etc/backup.env",
            "options": {"path-style": true, "codec": "lz4"},
            "schedule": "0 1 * * *",
            "retain": "5",
            "made_from": "primary",
            "threshold_megabytes": 100,
            "threshold_backup_size_percentage": "20",
        },
        "postgresql": {
            "create_replica_methods": "mine, backup, basebackup",
            "mine": {"command": "/bin/mine --x", "no_leader": 1, "level": 3, "deep": {"no": 1}},
        },
    }))
    .unwrap()
    .local;
    let thresholds = Thresholds {
        wal: 100 << 20,
        backup_percent: 20,
    };
    let option = |name: &str, value: Option<&str>| ToolOption {
        name: name.to_owned(),
        value: value.map(str::to_owned),
    };
    let wanted = Backup {
        tool: BackupTool::SpiloBackup,
        archive: Some("s3://bucket/main".to_owned()),
        command: Some("/opt/spilo-backup".into()),
        env_dir: Some("/etc/backup.env".into()),
        options: vec![option("path-style", None), option("codec", Some("lz4"))],
        thresholds,
        schedule: Some("0 1 * * *".to_owned()),
        retain: Some(5),
        made_from: MadeFrom::Primary,
    };
    assert_eq!(local.backup, Some(wanted));
    let argument = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mine = ReplicaCommand {
        name: "mine".to_owned(),
        command: "/bin/mine --x".to_owned(),
        arguments: vec![argument("no_leader", "1"), argument("level", "3")],
        no_params: false,
        keep_data: false,
    };
    assert_eq!(
        local.replica_methods,
        [
            ReplicaMethod::Command(mine),
            ReplicaMethod::Backup,
            ReplicaMethod::Basebackup
        ]
    );
}

#[test]
fn without_a_word_a_backup_is_tried_before_a_copy() {
    let local = with(json!({"tags": {}})).unwrap().local;
    assert_eq!(local.backup, None);
    assert_eq!(
        local.replica_methods,
        [ReplicaMethod::Backup, ReplicaMethod::Basebackup]
    );
}

#[test]
fn what_is_wrong_about_backups_is_named_with_the_remedy() {
    for (change, problem) in [
        (
            json!({"backup": {"env_dir": "/etc/x"}}),
            "backup.archive: is missing: `s3://BUCKET/PREFIX`, or an absolute path",
        ),
        (
            json!({"backup": {"store": "wal-e", "schedule": "0 1 * * *"}}),
            "backup.schedule: is for spilo's own backups; with `store: wal-e`, let a timer on the \
             primary run `wal-e backup-push`",
        ),
        (
            json!({"backup": {"archive": "bucket/main"}}),
            "backup.archive: must be `s3://BUCKET/PREFIX` or an absolute path, found \
             \"bucket/main\"",
        ),
        (
            json!({"backup": {"archive": "s3:///main"}}),
            "backup.archive: must be `s3://BUCKET/PREFIX` or an absolute path, found \
             \"s3:///main\"",
        ),
        (
            json!({"backup": {"archive": "/a", "command": "spilo-backup"}}),
            "backup.command: must be an absolute path, found \"spilo-backup\"",
        ),
        (
            json!({"backup": {"archive": "/a", "store": "wal-g"}}),
            "backup.store: must be one of `spilo-backup`, `wal-e`, found \"wal-g\"",
        ),
        (
            json!({"backup": {"archiv": "/a"}}),
            "backup.archiv: unknown key; did you mean `backup.archive`?",
        ),
        (
            json!({"postgresql": {"create_replica_methods": ["backup"]}}),
            "postgresql.create_replica_methods: names `backup`, and there is no section `backup` \
             that says where backups are",
        ),
        (
            json!({"postgresql": {"create_replica_methods": []}}),
            "postgresql.create_replica_methods: names no way to make a replica",
        ),
    ] {
        assert!(
            errors(change.clone()).contains(&problem.to_owned()),
            "{change}: {:?}",
            errors(change.clone())
        );
    }
}

#[test]
fn a_new_cluster_may_be_made_from_a_backup() {
    let recovery = |change: Value| with(change).unwrap().local.bootstrap.recovery;
    let in_place = recovery(json!({
        "backup": {"archive": "s3://bucket/main"},
        "bootstrap": {"method": "backup", "backup": {"target_time": "2026-11-30 03:00:00+00"}},
    }))
    .unwrap();
    assert_eq!(in_place.store.archive.as_deref(), Some("s3://bucket/main"));
    let time = "2026-11-30 03:00:00+00".to_owned();
    assert_eq!(in_place.target, RecoveryTarget::Time(time));
    assert!(in_place.inclusive);
    assert_eq!((in_place.name, &*in_place.timeline), (None, "latest"));

    let copy = recovery(json!({
        "backup": {"archive": "s3://bucket/copy"},
        "bootstrap": {"method": "backup", "backup": {
            "archive": "s3://bucket/main", "name": "base_1", "target_lsn": "0/3000028",
            "target_inclusive": "off", "target_timeline": 3,
        }},
    }))
    .unwrap();
    assert_eq!(copy.store.archive.as_deref(), Some("s3://bucket/main"));
    assert_eq!(copy.target, RecoveryTarget::Lsn(crate::Lsn(0x300_0028)));
    assert!(!copy.inclusive);
    let name = crate::backup::BackupName("base_1".to_owned());
    assert_eq!((copy.name, &*copy.timeline), (Some(name), "3"));
}

#[test]
fn what_is_wrong_about_a_recovery_is_named() {
    for (backup, problem) in [
        (
            json!({}),
            "bootstrap.backup.archive: is missing: `bootstrap.method` is `backup`, and neither this \
             nor a section `backup` says where backups are",
        ),
        (
            json!({"archive": "/a", "target_xid": 7, "target_name": "x"}),
            "bootstrap.backup.target_xid: is a second end of the recovery beside \
             `bootstrap.backup.target_name`",
        ),
        (
            json!({"archive": "/a", "target_timeline": "newest"}),
            "bootstrap.backup.target_timeline: must be `latest`, `current` or a number, found \
             \"newest\"",
        ),
    ] {
        let change = json!({"bootstrap": {"method": "backup", "backup": backup}});
        assert!(
            errors(change.clone()).contains(&problem.to_owned()),
            "{:?}",
            errors(change)
        );
    }
    let unused = with(json!({"bootstrap": {"backup": {"archive": "/a"}}})).unwrap();
    assert_eq!(
        unused.warnings,
        ["bootstrap.backup: has no effect: `bootstrap.method` is not `backup`"]
    );
}
