//! An archiver and those that ask it, over its socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use spilo_backup::{Archiver, Heard, Resident};
use spilo_core::backup::{BackupError, BackupErrorKind};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::Place;
use crate::watched::{Beside, Verb, named, private, until, whole};

/// An archiver that answers until it is dropped.
struct Answering {
    stop: Option<oneshot::Sender<()>>,
    serving: JoinSet<Result<(), BackupError>>,
}

impl Answering {
    async fn start(archiver: Archiver, work_dir: &Path) -> Self {
        let (stop, stopped) = oneshot::channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let stopped = async { drop(stopped.await) };
            archiver.serve(stopped).await
        });
        let socket = work_dir.join("socket");
        until("it listens", async || socket.exists()).await;
        let stop = Some(stop);
        Self { stop, serving }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.serving.join_next().await.unwrap().unwrap().unwrap();
    }
}

/// Asks in a thread, as a command would.
async fn ask<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn what_is_asked_over_the_socket_is_done() {
    let beside = Beside::on(Place::directory());
    let name = beside.ready_from(3, 1).remove(0);
    let resident = Resident::new(beside.work_dir());
    let (path, into) = (beside.path(&name), beside.data_dir().join("with a space"));
    let push = || {
        let (resident, path) = (resident.clone(), path.clone());
        ask(move || resident.push(&path))
    };
    let fetch = |name: &str| {
        let (resident, name, into) = (resident.clone(), name.to_owned(), into.clone());
        ask(move || resident.fetch(&name, &into))
    };
    assert_eq!(push().await.unwrap(), Heard::Nobody);
    assert_eq!(fetch(&name).await.unwrap(), Heard::Nobody);

    let answering = Answering::start(beside.archiver(), &beside.work_dir()).await;
    assert_eq!(push().await.unwrap(), Heard::Done);
    assert_eq!(beside.names().await, [name.as_str()]);
    assert_eq!(fetch(&name).await.unwrap(), Heard::Done);
    assert!(fs::read(&into).unwrap() == whole(&name));
    let error = fetch(&named(1, 9)).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::NotFound, "{error}");
    let error = fetch("x").await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");

    // The log of another server is not taken for that of this one.
    let strange = beside.place.file(&name, &whole(&name));
    let other = resident.clone();
    let error = ask(move || other.push(&strange)).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("it is no file of the server in"),
        "{error}"
    );

    let asking = resident.clone();
    let status = ask(move || asking.status()).await.unwrap().unwrap();
    assert!(
        status.contains(&format!("\"last_archived\":\"{name}\"")),
        "{status}"
    );
    answering.stop().await;
    assert_eq!(push().await.unwrap(), Heard::Nobody);
    assert!(!beside.work_dir().join("socket").exists());
}

#[tokio::test]
async fn who_waits_at_the_end_is_told_that_nothing_was_done() {
    let beside = Beside::on(Place::directory());
    let name = beside.ready_from(3, 1).remove(0);
    beside.store.let_puts(false);
    let answering = Answering::start(beside.archiver(), &beside.work_dir()).await;
    let mut stream = UnixStream::connect(beside.work_dir().join("socket")).unwrap();
    let line = format!("push {name}\n");
    stream.write_all(line.as_bytes()).unwrap();
    let (resident, path) = (Resident::new(beside.work_dir()), beside.path(&name));
    let mut heard = JoinSet::new();
    heard.spawn_blocking(move || resident.push(&path));
    // Connections are taken in their order: whoever made it ask, the first one waits.
    until("it is asked for", async || {
        beside.store.asked(Verb::Put).len() == 1
    })
    .await;
    let mut told = JoinSet::new();
    told.spawn_blocking(move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    answering.stop().await;
    assert_eq!(told.join_next().await.unwrap().unwrap(), "stopping\n");
    let heard = heard.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(heard, Heard::Nobody, "who asked may do it");
    assert_eq!(beside.names().await, Vec::<String>::new());
}

/// A server that is killed and started again asks for another file at the same path.
#[tokio::test]
async fn what_nobody_waits_for_any_more_does_not_appear() {
    let beside = Beside::on(Place::directory());
    let name = named(1, 3);
    beside.archived(&name).await;
    beside.store.hold(Some(&name));
    let answering = Answering::start(beside.archiver(), &beside.work_dir()).await;
    let into = beside.path("RECOVERYXLOG");
    let line = format!("fetch {name} {}\n", into.display());
    let mut stream = UnixStream::connect(beside.work_dir().join("socket")).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    until("it is on its way", async || beside.kept() == 1).await;
    drop(stream);
    until("it is given up", async || beside.kept() == 0).await;
    beside.store.hold(None);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!into.exists());
    answering.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let beside = Beside::on(Place::directory());
    let answering = Answering::start(beside.archiver(), &beside.work_dir()).await;
    let long = format!("push {}\n", "x".repeat(1 << 20));
    for (line, expected) in [
        ("\n", "error refused "),
        ("delete everything\n", "error refused "),
        ("push ../../etc/passwd\n", "error refused "),
        (
            "fetch 000000010000000000000003 pg_wal/x\n",
            "error refused ",
        ),
        (&long[..], ""),
    ] {
        let (socket, sent) = (beside.work_dir().join("socket"), line.to_owned());
        let answer = ask(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.write_all(sent.as_bytes()).ok();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok();
            answer
        });
        let answer = answer.await;
        assert!(answer.starts_with(expected), "{answer}");
        assert_eq!(answer.is_empty(), expected.is_empty(), "{answer}");
    }
    answering.stop().await;
}

#[tokio::test]
async fn one_directory_has_one_archiver_and_may_be_deep() {
    let beside = Beside::on(Place::directory());
    let name = beside.ready_from(3, 1).remove(0);
    let deep = beside
        .place
        .scratch()
        .join("d".repeat(100))
        .join("e".repeat(100));
    private(&deep);
    let mut options = beside.options();
    options.work_dir = deep.join("work");
    let open = || Archiver::open(beside.store.archive(), options.clone());
    let first = open().unwrap();
    let error = open().unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("another archiver works in it"),
        "{error}"
    );
    drop(first);

    // One that was killed leaves its socket.
    let answering = Answering::start(open().unwrap(), &options.work_dir).await;
    drop(answering);
    tokio::task::yield_now().await;
    assert!(options.work_dir.join("socket").exists());
    let push = || {
        let (resident, path) = (Resident::new(&options.work_dir), beside.path(&name));
        ask(move || resident.push(&path))
    };
    assert_eq!(push().await.unwrap(), Heard::Nobody);
    let archiver = open().unwrap();
    let answering = Answering::start(archiver, &options.work_dir).await;
    until("the new one answers", async || {
        push().await.unwrap() == Heard::Done
    })
    .await;
    answering.stop().await;
}

#[test]
fn a_directory_that_others_see_or_that_is_copied_is_refused() {
    let beside = Beside::on(Place::directory());
    let open = |work_dir: &Path| {
        let mut options = beside.options();
        options.work_dir = work_dir.to_owned();
        let error = Archiver::open(beside.store.archive(), options).unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
        error.to_string()
    };
    for inside in ["data/work", "data/pg_wal/work"] {
        let text = open(&beside.place.scratch().join(inside));
        assert!(text.contains("it lies in "), "{text}");
    }
    let public = beside.place.scratch().join("public");
    fs::create_dir(&public).unwrap();
    fs::set_permissions(&public, fs::Permissions::from_mode(0o755)).unwrap();
    let text = open(&public);
    assert!(text.contains("chmod 700"), "{text}");
    let text = open(&beside.place.scratch().join("not/there"));
    assert!(text.contains("No such file"), "{text}");
    // Nor is one made for a server that is not there.
    let mut options = beside.options();
    options.data_dir = beside.place.scratch().join("nowhere");
    let error = Archiver::open(beside.store.archive(), options).unwrap_err();
    assert!(error.to_string().contains("there is no "), "{error}");
}
