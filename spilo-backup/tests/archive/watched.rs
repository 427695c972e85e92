//! A store that is watched, held up and made to fail, and a server beside which an archiver stays.

use std::fmt;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spilo_backup::{Archive, ArchiveOptions, Archiver, ArchiverOptions, Body, Object, Objects};
use spilo_core::async_trait;
use spilo_core::backup::{BackupError, BackupErrorKind};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Place, segment};

/// What the store was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Put,
    Get,
    List,
}

/// A store between an archive and another store.
pub(crate) struct Watched {
    store: Arc<dyn Objects>,
    asked: Mutex<Vec<(Verb, String, Instant)>>,
    fails: AtomicBool,
    puts_go: watch::Sender<bool>,
    held: watch::Sender<Option<String>>,
}

impl Watched {
    pub(crate) fn before(store: Arc<dyn Objects>) -> Arc<Self> {
        Arc::new(Self {
            store,
            asked: Mutex::default(),
            fails: AtomicBool::new(false),
            puts_go: watch::channel(true).0,
            held: watch::channel(None).0,
        })
    }

    pub(crate) fn archive(self: &Arc<Self>) -> Archive {
        Archive::new(self.clone(), ArchiveOptions::default())
    }

    /// Whether puts go on. Those that do not have arrived, and nothing is stored.
    pub(crate) fn let_puts(&self, go: bool) {
        self.puts_go.send_replace(go);
    }

    /// Holds up the objects with this in their names, once they have given half of what they are.
    pub(crate) fn hold(&self, part: Option<&str>) {
        self.held.send_replace(part.map(str::to_owned));
    }

    /// Whether every request fails.
    pub(crate) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    /// Returns the keys that were asked for so, in order.
    pub(crate) fn asked(&self, verb: Verb) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let asked = asked.iter().filter(|(asked, ..)| *asked == verb);
        asked.map(|(_, key, _)| key.clone()).collect()
    }

    /// Returns when it was asked for anything.
    pub(crate) fn times(&self) -> Vec<Instant> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(.., at)| *at).collect()
    }

    pub(crate) fn forget(&self) {
        self.asked.lock().unwrap().clear();
    }

    fn take_note(&self, verb: Verb, key: &str) -> Result<(), BackupError> {
        let asked = (verb, key.to_owned(), Instant::now());
        self.asked.lock().unwrap().push(asked);
        if self.fails.load(Ordering::Relaxed) {
            let kind = BackupErrorKind::Unavailable;
            return Err(BackupError::new("watched", kind, "answer", "on purpose"));
        }
        Ok(())
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

#[async_trait]
impl Objects for Watched {
    fn kind(&self) -> &'static str {
        "watched"
    }

    fn place(&self, key: &str) -> String {
        self.store.place(key)
    }

    async fn put(&self, key: &str, body: Body) -> Result<(), BackupError> {
        self.take_note(Verb::Put, key)?;
        self.puts_go.subscribe().wait_for(|go| *go).await.unwrap();
        self.store.put(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Body, BackupError> {
        self.take_note(Verb::Get, key)?;
        let bytes = self.store.get(key).await?.all(1 << 30).await?;
        let (mut held, key) = (self.held.subscribe(), key.to_owned());
        Ok(Body::made_by(move |sender| async move {
            let half = bytes.len() / 2;
            sender.send(bytes.slice(..half)).await;
            let goes = |held: &Option<String>| !held.as_ref().is_some_and(|it| key.contains(it));
            held.wait_for(goes).await.ok();
            sender.send(bytes.slice(half..)).await;
            Ok(())
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, BackupError> {
        self.take_note(Verb::List, prefix)?;
        self.store.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), BackupError> {
        self.store.delete(key).await
    }
}

/// A server that writes files of the log of 1 MiB, and its archiver's directory.
pub(crate) struct Beside {
    pub(crate) place: Place,
    pub(crate) store: Arc<Watched>,
}

impl Beside {
    pub(crate) fn on(place: Place) -> Self {
        let status = place.scratch().join("data/pg_wal/archive_status");
        fs::create_dir_all(status).unwrap();
        let store = Watched::before(Arc::clone(&place.objects));
        Self { place, store }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.place.scratch().join("data")
    }

    pub(crate) fn work_dir(&self) -> PathBuf {
        self.place.scratch().join("work")
    }

    pub(crate) fn options(&self) -> ArchiverOptions {
        ArchiverOptions::new(self.data_dir(), self.work_dir())
    }

    pub(crate) fn archiver(&self) -> Archiver {
        Archiver::open(self.store.archive(), self.options()).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.data_dir().join("pg_wal").join(name)
    }

    /// Writes a file of the log that is complete.
    pub(crate) fn ready(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        fs::write(self.marker(name), "").unwrap();
    }

    /// Writes files of the log that are complete, from one on.
    pub(crate) fn ready_from(&self, first: u32, count: u32) -> Vec<String> {
        let names: Vec<String> = (first..first + count).map(|n| named(1, n)).collect();
        for name in &names {
            self.ready(name, &whole(name));
        }
        names
    }

    /// Does what a server does with a file that is archived.
    pub(crate) fn done(&self, name: &str) {
        fs::remove_file(self.marker(name)).unwrap();
    }

    /// Puts a file into the archive, behind the back of the archiver.
    pub(crate) async fn archived(&self, name: &str) {
        let path = self.place.file(name, &whole(name));
        let archive = Archive::new(Arc::clone(&self.place.objects), ArchiveOptions::default());
        archive.push_wal(&path).await.unwrap();
        fs::remove_file(path).unwrap();
    }

    /// Returns the files of the log that are in the archive.
    pub(crate) async fn names(&self) -> Vec<String> {
        let listed = self.place.objects.list("wal_005/").await.unwrap();
        let names = listed.into_iter().map(|object| object.key);
        let names = names.map(|key| key["wal_005/".len()..].trim_end_matches(".zst").to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Returns how many files lie in the working directory, whole or not.
    pub(crate) fn kept(&self) -> usize {
        fs::read_dir(self.work_dir().join("fetched"))
            .unwrap()
            .count()
    }

    fn marker(&self, name: &str) -> PathBuf {
        self.path("archive_status").join(format!("{name}.ready"))
    }
}

/// Returns the name of the nth file of a log of files of 1 MiB.
pub(crate) fn named(timeline: u32, n: u32) -> String {
    format!("{timeline:08X}{:08X}{:08X}", n / 4096, n % 4096)
}

/// Returns what a file of the log holds.
pub(crate) fn whole(name: &str) -> Vec<u8> {
    let fill = u8::from_str_radix(&name[22..24], 16).unwrap();
    segment(name, 7, 1 << 20, fill)
}

/// Waits until something holds, which others bring about.
#[expect(clippy::future_not_send, reason = "a test waits for it where it is")]
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("it does not come: {what}"));
}

/// Makes a directory that nobody else may look into.
pub(crate) fn private(path: &Path) {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).unwrap();
}
