//! An archiver that stays beside a real server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use spilo_backup::Resident;

use crate::server::{Place, Server, Version};

/// An archiver. It is killed when it is dropped.
struct Beside {
    process: Child,
    work_dir: PathBuf,
}

impl Beside {
    fn start(place: &Place, data: &str, work_dir: &Path) -> Self {
        let work = work_dir.display().to_string();
        let arguments = ["archiver", "--data-dir", data, "--work-dir", &work];
        let process = place.spawn(&arguments.map(str::to_owned));
        let work_dir = work_dir.to_owned();
        let mut this = Self { process, work_dir };
        this.wait("it answers", |this| this.status().is_some());
        this
    }

    fn status(&self) -> Option<serde_json::Value> {
        let status = Resident::new(&self.work_dir).status().unwrap()?;
        Some(serde_json::from_str(&status).unwrap())
    }

    fn last_archived(&self) -> String {
        let status = self.status().unwrap();
        status["last_archived"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: {ended:?}");
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends it as a service manager does.
    fn terminate(mut self) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(sent.success());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A server whose log waits until a file is there.
struct Waiting<'a> {
    server: Server<'a>,
    go: PathBuf,
    work_dir: PathBuf,
}

impl<'a> Waiting<'a> {
    fn create(place: &'a Place, version: &Version) -> Self {
        let go = place.home().join("go");
        let work_dir = place.home().join("work");
        let push = format!("wal-push %p --resident {}", work_dir.display());
        let push = place.command_line(&push);
        let push = format!("test -e {} && {push}", go.display());
        let server = Server::create(place, version, "source", &push);
        server.sql("CREATE TABLE rows (n int)");
        Self {
            server,
            go,
            work_dir,
        }
    }

    fn write(&self, segments: u32) {
        for n in 0..segments {
            let rows = format!("INSERT INTO rows SELECT {n} FROM generate_series(1, 1000)");
            self.server.sql(&rows);
            self.server.sql("SELECT pg_switch_wal()");
        }
    }

    /// Lets it archive, and waits until so many files or fewer are left.
    fn archive(&self, left: usize, mut meanwhile: impl FnMut()) {
        fs::write(&self.go, "").unwrap();
        // It waits for a minute after it has failed, or until there is something new.
        self.write(1);
        let begun = Instant::now();
        while self.server.left_to_archive().len() > left {
            assert!(
                begun.elapsed() < Duration::from_secs(50),
                "it does not go on"
            );
            meanwhile();
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn whole(place: &Place) {
    let verified = place.backup(&["wal-verify"]);
    assert!(verified.contains("nothing is missing"), "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_log_that_waited_is_archived_several_at_once() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::s3().await;
    let waiting = Waiting::create(&place, &version);
    waiting.write(30);
    assert!(waiting.server.left_to_archive().len() >= 30);
    let beside = Beside::start(&place, &waiting.server.data(), &waiting.work_dir);
    let mut most = 0;
    waiting.archive(0, || {
        let status = beside.status().unwrap();
        most = most.max(status["pushing"].as_array().unwrap().len());
    });
    assert!(most > 2, "{most} at the same time");
    whole(&place);
    // Which of those that went at once was the last is not the server's order.
    assert!(!beside.last_archived().is_empty());
    beside.terminate();

    // Without one, the command does it.
    waiting.write(2);
    waiting.archive(0, || {});
    whole(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_f40_archiving_goes_on_when_the_resident_is_killed() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::s3().await;
    let waiting = Waiting::create(&place, &version);
    let data = waiting.server.data();
    for round in 0..3 {
        waiting.write(10);
        let beside = Beside::start(&place, &data, &waiting.work_dir);
        waiting.archive(8 - round, || {});
        beside.kill();
        waiting.archive(0, || {});
        whole(&place);
        fs::remove_file(&waiting.go).unwrap();
    }
    let beside = Beside::start(&place, &data, &waiting.work_dir);
    waiting.archive(0, || {});
    assert!(!beside.last_archived().is_empty(), "it is asked again");
}

/// A base backup, and the log after it through the resident, which is killed in the second round.
#[tokio::test(flavor = "multi_thread")]
async fn real_recovery_goes_through_the_resident() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let place = Place::s3().await;
    let mut waiting = Waiting::create(&place, &version);
    fs::write(&waiting.go, "").unwrap();
    let (data, conninfo) = (waiting.server.data(), waiting.server.conninfo());
    place.backup(&["backup-push", &data, "--conninfo", &conninfo]);
    // So much that it is seen at it.
    waiting.write(60);
    let rows = waiting.server.sql("SELECT count(*), sum(n) FROM rows");
    waiting.server.stop();
    assert_eq!(waiting.server.left_to_archive(), Vec::<String>::new());
    for (name, killed) in [("whole", false), ("killed", true)] {
        let restored = place.home().join(name).display().to_string();
        place.backup(&["backup-fetch", "LATEST", &restored]);
        let work_dir = place.home().join(format!("{name}.work"));
        let beside = Beside::start(&place, &restored, &work_dir);
        let fetch = format!("wal-fetch %f %p --resident {}", work_dir.display());
        let fetch = place.command_line(&fetch);
        let mut server = std::thread::scope(|scope| {
            let recovering = scope.spawn(|| Server::restored(&place, &version, name, &fetch));
            let mut beside = beside;
            if killed {
                beside.wait("it has fetched something", |beside| {
                    let status = beside.status().unwrap();
                    !status["fetched"].as_array().unwrap().is_empty()
                });
                beside.kill();
            } else {
                beside.wait("it fetches what follows", |beside| {
                    let status = beside.status().unwrap();
                    status["fetched"].as_array().unwrap().len() > 2
                });
                let server = recovering.join().unwrap();
                let left = fs::read_dir(work_dir.join("fetched")).unwrap().count();
                assert!(left <= 8, "{left}");
                return server;
            }
            recovering.join().unwrap()
        });
        assert_eq!(server.sql("SELECT count(*), sum(n) FROM rows"), rows);
        server.stop();
        server.check();
    }
}

/// The statuses that PostgreSQL understands are the same with a resident.
#[test]
fn a_resident_answers_with_the_same_statuses() {
    let place = Place::directory();
    let data = place.folder("data");
    place.folder("data/pg_wal");
    let (data, work_dir) = (data.display().to_string(), place.home().join("work"));
    let work = work_dir.display().to_string();
    let _beside = Beside::start(&place, &data, &work_dir);
    let name = "000000010000000000000001";
    let fetch = ["wal-fetch", name, "data/x", "--resident", &work];
    let (status, text) = place.fails(&fetch, &[("SPILO_ARCHIVE", "/nonexistent")]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("archiver: cannot fetch"), "{text}");
    fs::write(place.home().join("recovery.signal"), "").unwrap();
    let (status, _) = place.fails(&fetch, &[]);
    assert_eq!(status, 1, "it is known not to be there");
    fs::rename(place.home().join("archive"), place.home().join("away")).unwrap();
    let fetch = [
        "wal-fetch",
        "00000002.history",
        "data/x",
        "--resident",
        &work,
    ];
    let (status, text) = place.fails(&fetch, &[]);
    assert_eq!(status, 255, "{text}");
    let push = [
        "wal-push",
        "data/pg_wal/000000010000000000000001",
        "--resident",
        &work,
    ];
    let (status, text) = place.fails(&push, &[]);
    assert_eq!(status, 1, "{text}");
}

/// How long a server takes to archive files one after the other, as PostgreSQL asks for them.
#[tokio::test(flavor = "multi_thread")]
async fn real_alone_archiving_is_faster_with_a_resident() {
    let Some(version) = Version::find("15") else {
        return;
    };
    let mut faster = Vec::new();
    for place in [Place::directory(), Place::s3().await] {
        let mut server = Server::create(&place, &version, "source", "true");
        server
            .sql("CREATE TABLE filler AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n");
        let first = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        server.sql("SELECT pg_switch_wal()");
        let full = u32::from_str_radix(&first[16..], 16).unwrap() - 1;
        let full = Path::new(&server.data()).join(format!("pg_wal/{}{full:08X}", &first[..16]));
        let bytes = fs::read(full).unwrap();
        server.stop();
        let alone = serial(&place, &bytes, "alone", 0x100, false);
        let resident = serial(&place, &bytes, "resident", 0x200, true);
        let (alone_each, resident_each) = (alone / FILES, resident / FILES);
        eprintln!("a file takes {alone_each:?} alone and {resident_each:?} with a resident");
        faster.push((alone, resident));
    }
    for (alone, resident) in faster {
        assert!(resident < alone, "{resident:?} and {alone:?}");
    }
}

const FILES: u32 = 40;

/// Pushes files that hold the same, one after the other.
fn serial(place: &Place, bytes: &[u8], name: &str, from: u64, resident: bool) -> Duration {
    let data = place.folder(name);
    let wal = place.folder(&format!("{name}/pg_wal"));
    let status = place.folder(&format!("{name}/pg_wal/archive_status"));
    let work_dir = place.home().join(format!("{name}.work"));
    let names: Vec<String> = (from..from + u64::from(FILES))
        // Files of 16 MiB have 256 numbers in each 4 GiB.
        .map(|n| format!("00000001{:08X}{:08X}", n >> 8, n & 0xFF))
        .collect();
    for (n, name) in (from..).zip(&names) {
        let mut own = bytes.to_vec();
        own[8..16].copy_from_slice(&(n << 24).to_ne_bytes());
        fs::write(wal.join(name), own).unwrap();
        fs::write(status.join(format!("{name}.ready")), "").unwrap();
    }
    let beside = resident.then(|| Beside::start(place, &data.display().to_string(), &work_dir));
    let begun = Instant::now();
    for name in &names {
        let path = wal.join(name).display().to_string();
        let work = work_dir.display().to_string();
        place.backup(&["wal-push", &path, "--resident", &work]);
        let done = status.join(format!("{name}.done"));
        fs::rename(status.join(format!("{name}.ready")), done).unwrap();
    }
    let took = begun.elapsed();
    drop(beside);
    took
}
