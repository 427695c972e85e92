//! Files that are pushed, some of them before PostgreSQL asks for them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spilo_core::backup::BackupErrorKind;
use spilo_core::segment::ArchiveFile;
use tokio::sync::watch;

use crate::archiver::{ArchiverStatus, Inner, locked};
use crate::blocking;

/// What is known of the files that PostgreSQL wants to be archived.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    /// Those that are on their way, each once.
    under_way: BTreeMap<String, watch::Receiver<Option<Pushed>>>,
    /// Those that are durable, the last one last.
    durable: VecDeque<(String, Identity)>,
    /// Those that PostgreSQL will ask for next, as far as that was looked up.
    queue: VecDeque<String>,
    /// Whether the last push failed. Until one succeeds, nothing is pushed that is not asked for.
    troubled: bool,
    last_archived: Option<String>,
    last_error: Option<String>,
}

/// What became of a push.
pub(crate) type Outcome = Result<(), (BackupErrorKind, String)>;

/// What became of a push, for all that wait for it: which file it was that is durable, unless that
/// changed on the way.
type Pushed = Result<Option<Identity>, (BackupErrorKind, String)>;

/// Which file it was: another one may have its name after a server was rewound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// Why a file is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Asked,
    Ahead,
}

/// How often a file is pushed that was another one when that had ended.
const ATTEMPTS: u32 = 3;

/// How many durable files are remembered. PostgreSQL asks for one within a window of a few.
const REMEMBERED: usize = 256;

/// How many names are looked up at once: a folder with very many takes long to read.
const QUEUED: usize = 1024;

impl Inner {
    /// Archives a file, unless that is done.
    pub(crate) async fn push(this: &Arc<Self>, name: &str) -> Outcome {
        let file = this.file(&format!("archive {name}"), name);
        file.map_err(|error| (error.kind(), error.to_string()))?;
        for _ in 0..ATTEMPTS {
            let path = this.options.pg_wal().join(name);
            let identity = blocking(move || Ok(Identity::of(&path))).await;
            let identity = identity.ok().flatten();
            let pushed = {
                let mut pushes = locked(&this.pushes);
                let is_durable = pushes.durable.iter().any(|(durable, file)| {
                    // A file that was replaced is compared with what is archived.
                    durable == name && Some(*file) == identity
                });
                (!is_durable).then(|| Self::start(this, &mut pushes, name, Reason::Asked))
            };
            this.spawn(Self::go_ahead(Arc::clone(this), name.to_owned()));
            let Some(mut pushed) = pushed else {
                return Ok(());
            };
            let pushed = pushed.wait_for(Option::is_some).await;
            let pushed = pushed.ok().and_then(|pushed| pushed.clone());
            let Some(pushed) = pushed else {
                let problem = "the archiver is being stopped".to_owned();
                return Err((BackupErrorKind::Unavailable, problem));
            };
            // What was under way already may have been another file of this name.
            if pushed?.is_some_and(|pushed| Some(pushed) == identity) {
                return Ok(());
            }
        }
        let problem = format!("archive {name}: the file is another one each time");
        Err((BackupErrorKind::Unavailable, problem))
    }

    pub(crate) async fn status(&self) -> ArchiverStatus {
        let status = self.options.pg_wal().join("archive_status");
        let ready = blocking(move || ready(&status)).await;
        let fetched = locked(&self.held).names();
        let pushes = locked(&self.pushes);
        ArchiverStatus {
            pushing: pushes.under_way.keys().cloned().collect(),
            last_archived: pushes.last_archived.clone(),
            last_error: pushes.last_error.clone(),
            ready: ready.ok().map(|names| names.len()),
            fetched,
        }
    }

    /// Starts a push, unless it is under way.
    fn start(
        this: &Arc<Self>,
        pushes: &mut Pushes,
        name: &str,
        reason: Reason,
    ) -> watch::Receiver<Option<Pushed>> {
        let lives = |push: &&watch::Receiver<_>| push.has_changed().is_ok();
        if let Some(push) = pushes.under_way.get(name).filter(lives) {
            return push.clone();
        }
        let (sender, outcome) = watch::channel(None);
        pushes.under_way.insert(name.to_owned(), outcome.clone());
        let (inner, name) = (Arc::clone(this), name.to_owned());
        this.spawn(async move {
            let done = inner.carry_out(&name, reason).await;
            sender.send_replace(Some(done));
        });
        outcome
    }

    /// Pushes a file, and takes note of what came of it.
    async fn carry_out(&self, name: &str, reason: Reason) -> Pushed {
        let path = self.options.pg_wal().join(name);
        let look = |path: PathBuf| async { blocking(move || Ok(Identity::of(&path))).await };
        let before = look(path.clone()).await.ok().flatten();
        let action = format!("archive {name}");
        let done = self.in_time(&action, self.archive.push_wal(&path)).await;
        let after = look(path).await.ok().flatten();
        let mut pushes = locked(&self.pushes);
        pushes.under_way.remove(name);
        match done {
            Ok(_) => {
                pushes.troubled = false;
                pushes.last_error = None;
                pushes.last_archived = Some(name.to_owned());
                let same = before.filter(|_| before == after);
                if let Some(identity) = same {
                    pushes.remember(name, identity);
                }
                drop(pushes);
                locked(&self.absent).forget(name);
                Ok(same)
            }
            Err(error) => {
                // What PostgreSQL took away in the meantime it does not want to be archived.
                if reason == Reason::Asked || after.is_some() {
                    pushes.troubled = true;
                    pushes.last_error = Some(error.to_string());
                }
                Err((error.kind(), error.to_string()))
            }
        }
    }

    /// Starts to push what PostgreSQL will ask for after a file.
    async fn go_ahead(this: Arc<Self>, asked: String) {
        let ahead = this.options.ahead;
        let is_short = {
            let mut pushes = locked(&this.pushes);
            pushes.queue.retain(|name| *name != asked);
            if pushes.troubled || ahead == 0 {
                return;
            }
            pushes.queue.len() < ahead
        };
        let status = this.options.pg_wal().join("archive_status");
        if is_short {
            let status = status.clone();
            let Ok(mut names) = blocking(move || ready(&status)).await else {
                return;
            };
            names.retain(|name| *name != asked);
            names.truncate(QUEUED);
            locked(&this.pushes).queue = names.into();
        }
        let window: Vec<String> = {
            let pushes = locked(&this.pushes);
            pushes.queue.iter().take(ahead).cloned().collect()
        };
        let checked = blocking(move || {
            let is_ready = |name: &String| status.join(format!("{name}.ready")).exists();
            Ok(window.into_iter().partition::<Vec<_>, _>(is_ready))
        });
        let Ok((window, gone)) = checked.await else {
            return;
        };
        let mut pushes = locked(&this.pushes);
        pushes.queue.retain(|name| !gone.contains(name));
        if pushes.troubled {
            return;
        }
        for name in window {
            let is_durable = pushes.durable.iter().any(|(durable, _)| *durable == name);
            if !is_durable && pushes.under_way.len() <= ahead {
                drop(Self::start(&this, &mut pushes, &name, Reason::Ahead));
            }
        }
    }
}

impl Pushes {
    fn remember(&mut self, name: &str, identity: Identity) {
        self.durable.retain(|(durable, _)| durable != name);
        self.durable.push_back((name.to_owned(), identity));
        while self.durable.len() > REMEMBERED {
            self.durable.pop_front();
        }
    }
}

impl Identity {
    /// Returns that of a file, if it is there.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            changed: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// Returns the files that PostgreSQL wants to be archived, in the order in which it asks for them:
/// histories, and then by name.
fn ready(status: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(status)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        let Some(name) = name else {
            continue;
        };
        let Ok(file) = name.parse::<ArchiveFile>() else {
            continue;
        };
        let is_history = matches!(file, ArchiveFile::History(_));
        names.push((!is_history, name.to_owned()));
    }
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}
