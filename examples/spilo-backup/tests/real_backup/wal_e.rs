//! Stock WAL-E reads what spilo wrote, and spilo what WAL-E wrote, on moto's S3.

use std::path::{Path, PathBuf};

use crate::server::{Place, Server, Version};

/// The command, and the directories that it looks for its helpers in.
fn wal_e(version: &Version) -> (PathBuf, String) {
    let bin = std::env::var_os("SPILO_WAL_E_BIN").expect("SPILO_WAL_E_BIN: cargo xtask setup");
    let program = Path::new(&bin).join("wal-e");
    assert!(program.is_file(), "WAL-E is not in {}", program.display());
    let psql = version.program("psql");
    let psql = psql.parent().unwrap().display().to_string();
    (program, format!("{psql}:/usr/bin:/bin"))
}

/// Runs WAL-E against a server, or without one.
fn run(place: &Place, version: &Version, server: Option<&Server<'_>>, arguments: &[&str]) {
    let (program, path) = wal_e(version);
    let mut command = place.run(&program);
    command.args(arguments).env("PATH", path);
    if let Some(server) = server {
        command
            .env("PGHOST", server.socket())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wal-e {arguments:?}: {told}");
}

fn command_line(version: &Version, arguments: &str) -> String {
    let (program, path) = wal_e(version);
    format!("PATH={path} {} {arguments}", program.display())
}

fn fill(server: &Server<'_>) {
    server.sql("CREATE TABLE rows (n int PRIMARY KEY, text text)");
    server.sql("INSERT INTO rows SELECT n, repeat('x', n % 500) FROM generate_series(1, 20000) n");
}

/// Writes more, archives all of it, and returns what the server held at its end.
fn finish(mut server: Server<'_>) -> String {
    server.sql("INSERT INTO rows SELECT n, 'after' FROM generate_series(20001, 30000) n");
    server.sql("DELETE FROM rows WHERE n > 25000; SELECT pg_switch_wal()");
    let dump = server.dump();
    server.stop();
    assert_eq!(server.left_to_archive(), Vec::<String>::new());
    dump
}

/// WAL-E's base backups end with version 13: it calls functions that later ones do not have.
#[test]
fn real_wal_e_restores_what_spilo_wrote() {
    let Some(version) = Version::find("13") else {
        return;
    };
    let place = Place::moto();
    let push = place.command_line("--codec lzo wal-push %p");
    let source = Server::create(&place, &version, "source", &push);
    fill(&source);
    let (data, conninfo) = (source.data(), source.conninfo());
    let push = [
        "--codec",
        "lzo",
        "backup-push",
        &data,
        "--conninfo",
        &conninfo,
    ];
    place.backup(&push);
    let dump = finish(source);

    let folder = place.folder("restored");
    let into = folder.display().to_string();
    let fetch = ["backup-fetch", "--blind-restore", &into, "LATEST"];
    run(&place, &version, None, &fetch);
    let fetch = command_line(&version, "wal-fetch --prefetch=0 %f %p");
    let mut restored = Server::restored(&place, &version, "restored", &fetch);
    assert!(
        restored.dump() == dump,
        "the restored server holds something else"
    );
    restored.stop();
    restored.check();
}

#[test]
fn real_spilo_restores_what_wal_e_wrote() {
    let Some(version) = Version::find("13") else {
        return;
    };
    let place = Place::moto();
    let push = command_line(&version, "wal-push %p");
    let source = Server::create(&place, &version, "source", &push);
    fill(&source);
    let fast = place.folder("fast");
    source.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        fast.display()
    ));
    source.sql("CREATE TABLE elsewhere TABLESPACE fast AS SELECT generate_series(1, 1000) AS n");
    // WAL-E's own takes its time for as long as there is something to write.
    source.sql("CHECKPOINT");
    let data = source.data();
    run(&place, &version, Some(&source), &["backup-push", &data]);
    let dump = finish(source);

    let listed = place.backup(&["backup-list"]);
    assert!(listed.contains("base_0000000100000000"), "{listed}");
    let verified = place.backup(&["wal-verify"]);
    assert!(verified.contains("nothing is missing"), "{verified}");
    place.empty("fast");
    let mut restored = Server::restore(&place, &version, "restored", "");
    assert!(
        restored.dump() == dump,
        "the restored server holds something else"
    );
    restored.stop();
    restored.check();
}
