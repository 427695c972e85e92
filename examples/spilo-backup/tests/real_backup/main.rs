//! Real servers, backed up with the command and restored with it.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

mod killed;
#[path = "../../../../spilo-backup/tests/s3/s3.rs"]
mod s3;
mod server;
mod wal_e;

use std::fs;

use server::{Place, Server, Version};

/// A base backup while rows are written, log archived by the server itself, and a server restored
/// from both: to the end, and to a point that was named in between.
async fn a_server_comes_back(version: &str) {
    let Some(version) = Version::find(version) else {
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
