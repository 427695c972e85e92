//! Real servers, backed up with the command and restored with it.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

mod killed;
mod resident;
#[path = "../../../../spilo-backup/tests/s3/s3.rs"]
mod s3;
mod server;
mod wal_e;

use std::fs;

use server::{Place, Server, Version};

/// A base backup while rows are written, log archived by the server itself, and a server restored
/// from both: to the end, and to a point that was named in between.
async fn a_server_comes_back(number: &str) {
    let Some(version) = Version::find(number) else {
        return;
    };
    let place = Place::s3().await;
    let push = place.command_line("wal-push %p");
    let mut source = Server::create(&place, &version, "source", &push);
    source.sql("CREATE TABLE rows (n int PRIMARY KEY, text text)");
    source.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        place.folder("fast").display()
    ));
    source.sql("CREATE TABLE elsewhere TABLESPACE fast AS SELECT generate_series(1, 1000) AS n");
    source.sql("INSERT INTO rows SELECT n, repeat('x', n % 500) FROM generate_series(1, 20000) n");
    let name = place.backup(&[
        "backup-push",
        &source.data(),
        "--conninfo",
        &source.conninfo(),
    ]);
    assert!(name.starts_with("base_0000000100000000"), "{name}");
    source.sql("INSERT INTO rows SELECT n, 'after' FROM generate_series(20001, 30000) n");
    source.sql("SELECT pg_create_restore_point('named')");
    source.sql("DELETE FROM rows WHERE n > 25000; SELECT pg_switch_wal()");
    let dump = source.dump();
    source.stop();
    assert_eq!(source.left_to_archive(), Vec::<String>::new());

    let listed = place.backup(&["backup-list"]);
    assert!(listed.contains(name.trim()), "{listed}");
    let verified = place.backup(&["wal-verify"]);
    assert!(verified.contains("nothing is missing"), "{verified}");

    // The tablespace goes where it was, which has to be empty.
    place.empty("fast");
    let mut whole = Server::restore(&place, &version, "whole", "");
    assert!(
        whole.dump() == dump,
        "the restored server holds something else"
    );
    // The others are built here without what PostgreSQL contributes.
    if ["13", "15"].contains(&number) {
        let checked = whole.check_relations();
        assert!(checked > 50, "only {checked} relations were checked");
    }
    whole.stop();
    whole.check();

    place.empty("fast");
    let target = "recovery_target_name = 'named'\nrecovery_target_action = promote\n";
    let mut named = Server::restore(&place, &version, "named", target);
    assert_eq!(named.sql("SELECT count(*) FROM rows"), "30000");
    assert_eq!(named.sql("SELECT count(*) FROM elsewhere"), "1000");
    named.stop();
    named.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn real_postgresql_13_comes_back() {
    a_server_comes_back("13").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_postgresql_15_comes_back() {
    a_server_comes_back("15").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_postgresql_16_comes_back() {
    a_server_comes_back("16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_postgresql_18_comes_back() {
    a_server_comes_back("18").await;
}

/// Backups of a standby need a log that is archived on both sides, and end somewhere in a file that
/// only the primary ends.
#[tokio::test(flavor = "multi_thread")]
async fn real_standby_is_backed_up() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::s3().await;
    let push = place.command_line("wal-push %p");
    let mut primary = Server::create(&place, &version, "primary", &push);
    primary.sql("CREATE TABLE rows AS SELECT n FROM generate_series(1, 10000) n");
    let mut standby = Server::standby(&place, &version, "standby", &primary, &push);
    let (data, conninfo) = (standby.data(), standby.conninfo());
    let arguments = ["backup-push", &data, "--conninfo", &conninfo].map(str::to_owned);
    let mut pushing = place.spawn(&arguments);
    while pushing.try_wait().unwrap().is_none() {
        primary.sql("INSERT INTO rows VALUES (0); SELECT pg_switch_wal()");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert!(pushing.wait().unwrap().success());
    primary.sql("INSERT INTO rows VALUES (-1); SELECT pg_switch_wal()");
    let rows = primary.sql("SELECT count(*), min(n) FROM rows");
    standby.stop();
    primary.stop();
    assert_eq!(primary.left_to_archive(), Vec::<String>::new());
    let verified = place.backup(&["wal-verify"]);
    assert!(verified.contains("nothing is missing"), "{verified}");
    let mut restored = Server::restore(&place, &version, "restored", "");
    assert_eq!(restored.sql("SELECT count(*), min(n) FROM rows"), rows);
    restored.stop();
    restored.check();
}

/// What a backup of ours is made of is known, and compared.
#[test]
fn real_backup_that_was_spoilt_is_not_restored() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::directory();
    let push = place.command_line("wal-push %p");
    let server = Server::create(&place, &version, "source", &push);
    let (data, conninfo) = (server.data(), server.conninfo());
    // Nothing but spilo's own sums would notice.
    let push = [
        "--codec",
        "none",
        "backup-push",
        &data,
        "--conninfo",
        &conninfo,
    ];
    let name = place.backup(&push);
    let parts = place
        .home()
        .join("archive/basebackups_005")
        .join(name.trim());
    let part = |number: usize| parts.join(format!("tar_partitions/part_{number:08}.tar"));
    let into = place.home().join("restored");
    let fails = |said: &str| {
        let path = into.display().to_string();
        let (status, text) = place.fails(&["backup-fetch", "LATEST", &path], &[]);
        assert_eq!(status, 1);
        assert!(text.contains(said), "{text}");
        assert!(!into.join("global/pg_control").exists());
        fs::remove_dir_all(&into).ok();
    };
    let first = fs::read(part(0)).unwrap();
    let mut changed = first.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    fs::write(part(0), &changed).unwrap();
    fails("with the checksum");
    fs::remove_file(part(0)).unwrap();
    fails("its part part_00000000.tar is not in the archive");
    fs::write(part(0), &first).unwrap();
    // What is left of another attempt is not part of it.
    fs::write(part(7), b"something").unwrap();
    let path = into.display().to_string();
    place.backup(&["backup-fetch", name.trim(), &path]);
    assert!(into.join("global/pg_control").is_file());

    // The archive of one cluster is none for another.
    let mut stranger = Server::create(&place, &version, "stranger", "true");
    let (data, conninfo) = (stranger.data(), stranger.conninfo());
    let push = ["backup-push", &data, "--conninfo", &conninfo];
    let (_, text) = place.fails(&push, &[]);
    assert!(
        text.contains("each cluster needs an archive of its own"),
        "{text}"
    );
    let (_, text) = place.fails(
        &["backup-push", &data, "--conninfo", &server.conninfo()],
        &[],
    );
    assert!(text.contains("the server's data directory is"), "{text}");
    stranger.stop();
    let away = place.home().join("away");
    fs::rename(place.home().join("archive"), away).unwrap();
    let (_, text) = place.fails(&["backup-list"], &[]);
    assert!(
        text.contains("make it, or mount what belongs there"),
        "{text}"
    );
}

/// Whatever is wrong: one error that names the thing and the remedy, and the status that
/// PostgreSQL understands.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let place = Place::s3().await;
    let said = |arguments: &[&str], variables: &[(&str, &str)]| place.fails(arguments, variables);
    let (status, text) = said(&["wal-fetch", "000000010000000000000001", "x"], &[]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("it is not there"), "{text}");

    let (status, text) = said(
        &["backup-list"],
        &[("SPILO_ARCHIVE", "s3://no-such-bucket/x")],
    );
    assert_eq!(status, 1);
    assert!(
        text.contains("there is no bucket no-such-bucket; create it"),
        "{text}"
    );

    let (_, text) = said(&["backup-list"], &[("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert!(text.contains("the server forbids it"), "{text}");

    let (_, text) = said(&["backup-list"], &[("SPILO_ARCHIVE", "backups")]);
    assert!(
        text.contains("neither s3://BUCKET/PREFIX nor the absolute path"),
        "{text}"
    );

    let (_, text) = said(
        &[
            "backup-push",
            "/nonexistent",
            "--conninfo",
            "host=/nonexistent",
        ],
        &[],
    );
    assert!(
        text.contains("cannot connect to the server that is backed up"),
        "{text}"
    );

    // A recovery to a moment must not take a store that is away for the end of the log.
    let away = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ];
    let fetch = ["wal-fetch", "000000010000000000000001", "x"];
    assert_eq!(said(&fetch, &away).0, 1);
    fs::write(place.home().join("recovery.signal"), "").unwrap();
    assert_eq!(said(&fetch, &away).0, 255);
    assert_eq!(said(&fetch, &[]).0, 1, "it is known not to be there");
    fs::write(place.home().join("standby.signal"), "").unwrap();
    assert_eq!(said(&fetch, &away).0, 1, "a standby asks again");
}
