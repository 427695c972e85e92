//! Commands that are killed with -9, wherever they are.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::server::{Place, Server, Version};

/// How often each command is killed.
const TIMES: u32 = 20;

/// Runs a command to its end to learn how long it takes, and then kills it at moments that are
/// spread over that time.
fn kill_everywhere(
    place: &Place,
    arguments: impl Fn(u32) -> Vec<String>,
    mut after: impl FnMut(u32, bool),
) {
    let begun = Instant::now();
    let mut whole = place.spawn(&arguments(0));
    assert!(whole.wait().unwrap().success());
    let took = begun.elapsed();
    after(0, true);
    for n in 1..=TIMES {
        let mut killed = place.spawn(&arguments(n));
        std::thread::sleep(took.mul_f64(f64::from(n) / f64::from(TIMES + 1)));
        killed.kill().unwrap();
        let done = killed.wait().unwrap().success();
        after(n, done);
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments
        .iter()
        .map(|&argument| argument.to_owned())
        .collect()
}

/// A file of the log of a real server, and the server's copies of it under other names.
fn log(server: &Server<'_>) -> (String, Vec<u8>) {
    server.sql("CREATE TABLE filler AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n");
    let name = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.sql("SELECT pg_switch_wal()");
    let path = Path::new(&server.data()).join("pg_wal").join(&name);
    (name, fs::read(path).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn real_f40_a_command_that_is_killed_leaves_nothing_half_done() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::s3().await;
    let server = Server::create(&place, &version, "source", "true");
    let (name, bytes) = log(&server);
    let folder = place.folder("log");
    let file = folder.join(&name);
    fs::write(&file, &bytes).unwrap();
    let into = folder.join("RECOVERYXLOG");

    // A push: the file is in the archive whole or not at all, and the next attempt finds out.
    let key = format!("main/wal_005/{name}.zst");
    let pushed = owned(&["wal-push", &file.display().to_string()]);
    kill_everywhere(
        &place,
        |_| pushed.clone(),
        |n, done| {
            let there = place.bucket().join(&key).is_file();
            assert!(there || !done, "push {n} said that it was done");
            if there {
                place.backup(&["wal-fetch", &name, &into.display().to_string()]);
                assert!(fs::read(&into).unwrap() == bytes, "push {n}");
                fs::remove_file(&into).unwrap();
            }
            if n < TIMES {
                fs::remove_file(place.bucket().join(&key)).ok();
            }
        },
    );
    place.backup(&["wal-push", &file.display().to_string()]);

    // A fetch: nothing at the path, or all of it, and nothing else stays.
    let fetched = owned(&["wal-fetch", &name, &into.display().to_string()]);
    kill_everywhere(
        &place,
        |_| fetched.clone(),
        |n, done| {
            assert!(into.exists() || !done, "fetch {n} said that it was done");
            if into.exists() {
                assert!(fs::read(&into).unwrap() == bytes, "fetch {n}");
                fs::remove_file(&into).unwrap();
            }
        },
    );
    place.backup(&["wal-fetch", &name, &into.display().to_string()]);
    let left = fs::read_dir(&folder).unwrap().flatten();
    let mut left: Vec<_> = left
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [name, "RECOVERYXLOG".to_owned()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_f40_a_backup_or_restore_that_is_killed_is_none() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::s3().await;
    let push = place.command_line("wal-push %p");
    let server = Server::create(&place, &version, "source", &push);
    log(&server);
    let (data, conninfo) = (server.data(), server.conninfo());
    let pushed = owned(&["backup-push", &data, "--conninfo", &conninfo]);
    let mut whole = 0;
    kill_everywhere(
        &place,
        |_| pushed.clone(),
        |n, done| {
            let listed = place.backup(&["--json", "backup-list"]);
            let listed = listed.matches("\"name\"").count();
            assert!(listed == whole || listed == whole + 1, "push {n}");
            assert!(
                listed == whole + 1 || !done,
                "push {n} said that it was done"
            );
            whole = listed;
            // The server ends the backup with the session, as soon as it sees that it is gone.
            let begun = Instant::now();
            while server.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spilo backup'",
            ) != "0"
            {
                assert!(begun.elapsed() < Duration::from_secs(10), "push {n}");
                std::thread::sleep(Duration::from_millis(20));
            }
        },
    );
    place.backup(&["backup-push", &data, "--conninfo", &conninfo]);

    let into = place.home().join("restored");
    let path = into.display().to_string();
    let fetched = owned(&["backup-fetch", "LATEST", &path]);
    kill_everywhere(
        &place,
        |_| fetched.clone(),
        |n, done| {
            let control = into.join("global/pg_control").exists();
            assert!(control || !done, "fetch {n} said that it was done");
            if into.exists() {
                if control {
                    assert!(into.join("backup_label").is_file(), "fetch {n}");
                    assert!(into.join("base/1").is_dir(), "fetch {n}");
                }
                fs::remove_dir_all(&into).unwrap();
            }
        },
    );
    let mut restored = Server::restore(&place, &version, "restored", "");
    assert_eq!(restored.sql("SELECT count(*) FROM filler"), "50000");
    restored.stop();
    restored.check();
}
