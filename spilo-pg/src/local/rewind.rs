//! Returning a diverged server to another one's history.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spilo_core::History;
use spilo_core::pg::{ControlState, PgError, PgErrorKind, PgOpKind, Progress, Upstream};
use spilo_core::wal::{Lsn, WalPosition};

use crate::LocalOptions;
use crate::guard::Role;

use super::child::Program;
use super::conninfo::{self, Endpoint};
use super::controldata::ControlData;
use super::files::{self, Mark, Marker};
use super::observe::Alive;
use super::settings::{Settings, Wiring};
use super::start::write_signal;
use super::{LocalPostgres, disk, failed_io, refused, retry};

impl LocalPostgres {
    /// Makes the stopped data directory a prefix of `from`'s history again.
    pub(super) async fn rewind(&self, from: &Upstream, progress: &Progress) -> Result<(), PgError> {
        let action = format!("rewind to {}", from.name);
        let cannot = |problem| PgError::new(PgErrorKind::CannotRewind, &action, problem);
        let (marked, control, earlier) = self.what_is_there(&action).await?;
        let (system, history) = Box::pin(self.remote_history(from)).await?;
        if system != control.system_id {
            let own = control.system_id;
            let problem = format!("it is of the database cluster {system}, not of {own}");
            return Err(refused(&action, problem));
        }
        let again = marked == Some(Mark::Unfinished(PgOpKind::Rewind));
        let timeline = control.position().timeline;
        let level = timeline == history.timeline();
        // pg_rewind would find nothing to do, after its recovery has written a log of its own on
        // the timeline that both have.
        if !again && level {
            let problem = format!("the data directory is on its timeline {timeline} already");
            return Err(retry(&action, problem));
        }
        let config = self.config().await?;
        self.state().config.get_or_insert(config);
        let wiring = self.standby_of(Some(from))?;
        let source = source_line(from, &history);
        if !again {
            self.record(&control, Some(&history), from, "rewind").await;
        } else if earlier.is_done(&source).map_err(cannot)? {
            return self.finish_rewind(&action, &wiring).await;
        } else if level {
            return Err(cannot(INTERRUPTED_LATE.to_owned()));
        }
        let begun = source.clone();
        let standby = self
            .blocking(&action, move |options| {
                let standby = options.data_dir.join("standby.signal").exists();
                Earlier::write(options, &begun, false)?;
                Marker::new(&options.state_dir()).set(PgOpKind::Rewind, options.uid_gid)?;
                // The crash recovery that pg_rewind does first refuses a standby's directory.
                write_signal(options, Role::Primary)?;
                Ok(standby)
            })
            .await?;
        // The recovery needs files that fit this server, after a broken-off rewind too.
        Box::pin(self.write_files(&Wiring::Primary, Some(&control))).await?;
        match self.run_rewind(&action, from, progress).await? {
            Outcome::Done => {
                self.blocking(&action, move |options| {
                    Earlier::write(options, &source, true)
                })
                .await?;
                self.finish_rewind(&action, &wiring).await
            }
            Outcome::Failed { error, touched } => {
                if !touched && !again {
                    self.undo(&action, standby).await?;
                }
                Err(error)
            }
        }
    }

    /// Reads what there is to rewind, when nobody is at work on it any more.
    async fn what_is_there(
        &self,
        action: &str,
    ) -> Result<(Option<Mark>, ControlData, Earlier), PgError> {
        if self.eye.alive(&self.guard()).await? != Alive::Nobody {
            return Err(retry(
                action,
                "processes of a server are alive in the data directory",
            ));
        }
        // One that outlives its agent may still be at work on what is read here.
        self.prepare().await?;
        self.end_leftovers(action).await?;
        let marker = self.marker();
        let at = marker.path().display().to_string();
        let (marked, control, earlier, empty) = self
            .blocking(action, move |options| {
                let earlier = Earlier::read(options)?;
                let empty = files::is_empty(&options.data_dir)?;
                let control = disk::read_control(options);
                Ok((marker.read()?, control, earlier, empty))
            })
            .await?;
        if empty {
            let problem = format!(
                "the data directory is empty: mount its volume; or, if it was moved away to have it \
                 copied anew, remove {at}, which tells of its rewind"
            );
            return Err(refused(action, problem));
        }
        if let Some(Mark::Unfinished(kind @ (PgOpKind::Clone | PgOpKind::Bootstrap))) = marked {
            let problem = format!("the data directory is half made by {kind}");
            return Err(PgError::new(PgErrorKind::CannotRewind, action, problem));
        }
        let control = control.map_err(|problem| match problem {
            disk::Problem::Data(problem) => refused(action, problem),
            disk::Problem::Machine(problem) => retry(action, problem),
        })?;
        if !control.rewindable {
            let problem = "neither checksums nor wal_log_hints are on";
            return Err(PgError::new(PgErrorKind::CannotRewind, action, problem));
        }
        Ok((marked, control, earlier))
    }

    /// Makes the directory what it was, when pg_rewind gave up before it changed anything.
    async fn undo(&self, action: &str, standby: bool) -> Result<(), PgError> {
        let role = if standby {
            Role::Standby
        } else {
            Role::Primary
        };
        let marker = self.marker();
        self.blocking(action, move |options| {
            write_signal(options, role)?;
            marker.clear()
        })
        .await
    }

    async fn run_rewind(
        &self,
        action: &str,
        from: &Upstream,
        progress: &Progress,
    ) -> Result<Outcome, PgError> {
        let endpoint =
            Endpoint::parse(&from.conn_url).map_err(|problem| refused(action, problem))?;
        let options = &self.options;
        let source = conninfo::for_program(&conninfo::write(&[
            ("dbname", &options.database),
            ("user", &options.rewinder().username),
            ("passfile", &options.passfile().display().to_string()),
            ("host", &endpoint.host),
            ("port", &endpoint.port.to_string()),
            ("sslmode", "prefer"),
            ("target_session_attrs", "read-write"),
        ]));
        let mut program = Program::new(options, "pg_rewind")
            .arg("-D")
            .arg(&options.data_dir)
            .arg(format!("--source-server={source}"))
            .arg("--progress");
        let version = self
            .blocking(action, |options| disk::data_version(&options.data_dir))
            .await?;
        let takes_file = version.parse::<u32>().is_ok_and(|major| major >= 15);
        if options.config_dir.is_some() && takes_file {
            let file = super::configure::conf_file(options);
            program = program.arg(format!("--config-file={}", file.display()));
        }
        let settings = self.checked_settings();
        let command = settings.as_ref().and_then(Settings::restore_command);
        // It looks for the command in the files, and before 15 in the data directory only.
        if command.is_some() && (options.config_dir.is_none() || takes_file) {
            program = program.arg("--restore-target-wal");
        }
        let ended = program
            .run(|line| progress.say(line))
            .await
            .map_err(|error| failed_io(action, error))?;
        // Said just before the first block is copied.
        let touched = ended
            .stderr
            .contains("rewinding from last common checkpoint");
        match ended.success() {
            Ok(_) => Ok(Outcome::Done),
            Err(problem) => {
                // A source that went away in the middle can be returned to; anything else that
                // stops pg_rewind while its source is well stops it again.
                let well = Box::pin(self.remote_history(from)).await.is_ok();
                let kind = match well && !is_passing(&problem) {
                    _ if is_denied(&problem) => PgErrorKind::Refused,
                    true => PgErrorKind::CannotRewind,
                    false => PgErrorKind::Retry,
                };
                Ok(Outcome::Failed {
                    error: PgError::new(kind, action, problem),
                    touched,
                })
            }
        }
    }

    async fn finish_rewind(&self, action: &str, wiring: &Wiring) -> Result<(), PgError> {
        self.blocking(action, |options| write_signal(options, Role::Standby))
            .await?;
        let control = self
            .blocking(action, |options| Ok(disk::read_control(options)))
            .await?;
        let control = control.map_err(|problem| retry(action, problem.to_string()))?;
        // The configuration files are the source's now.
        Box::pin(self.write_files(wiring, Some(&control))).await?;
        let marker = self.marker();
        self.blocking(action, move |_| marker.clear()).await
    }

    /// Records what of the local log is not in the history of `from`, before it is thrown away.
    pub(super) async fn record(
        &self,
        control: &ControlData,
        theirs: Option<&History>,
        from: &Upstream,
        by: &str,
    ) {
        let end = self.local_end(control).await;
        let fork = match (theirs, self.history_at(end).await) {
            (Some(theirs), Ok(own)) => own.fork_from(theirs),
            _ => None,
        };
        let begins = fork.map(|fork| WalPosition {
            lsn: fork.lsn.min(end.lsn),
            ..fork
        });
        let lost = begins.map(|begins| end.lsn.bytes_past(begins.lsn));
        if lost == Some(0) {
            return;
        }
        let fork = begins.map_or_else(|| "an unknown position".to_owned(), |fork| fork.to_string());
        let bytes = lost.map_or_else(|| "?".to_owned(), |lost| lost.to_string());
        let (system, name) = (control.system_id, &from.name);
        tracing::warn!(%system, %fork, %end, bytes, by, upstream = %name, "throwing diverged log away");
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |span| span.as_secs());
        let line = format!(
            "at={seconds} system={system} fork={fork:?} end={:?} bytes={bytes} by={by:?} upstream={name:?}\n",
            end.to_string()
        );
        let written = self.blocking("record the diverged log", move |options| {
            let path = options.state_dir().join("diverged.log");
            // One that is tried again throws no more away.
            let after_time = |line: &str| line.split_once(' ').map(|(_, rest)| rest.to_owned());
            let said = fs::read_to_string(&path).unwrap_or_default();
            if said.lines().last().and_then(after_time) == after_time(line.trim_end()) {
                return Ok(());
            }
            let mut file = if path.exists() {
                files::open_own(&path, OpenOptions::new().append(true), options.uid_gid)?
            } else {
                files::create(&path, options.uid_gid)?
            };
            file.write_all(line.as_bytes())?;
            file.sync_all()
        });
        if let Err(error) = written.await {
            tracing::warn!(%error, "the range of the diverged log is in this log only");
        }
    }

    /// Returns how far the local log really reaches: behind a crash the control file tells only
    /// the last checkpoint, and pg_waldump finds the end.
    async fn local_end(&self, control: &ControlData) -> WalPosition {
        let proven = control.position();
        if matches!(
            control.state,
            ControlState::ShutDown | ControlState::ShutDownInRecovery
        ) {
            return proven;
        }
        let ended = Program::new(&self.options, "pg_waldump")
            .args(["--quiet", "--path"])
            .arg(self.options.data_dir.join("pg_wal"))
            .arg(format!("--timeline={}", proven.timeline))
            .arg(format!("--start={}", control.redo))
            .within(WALDUMP_LIMIT)
            .run(|_| {})
            .await;
        let found = ended.ok().and_then(|ended| end_of_log(&ended.stderr));
        WalPosition {
            lsn: found.unwrap_or(proven.lsn).max(proven.lsn),
            ..proven
        }
    }
}

/// What is known of the rewind that the marker in the data directory tells of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Earlier {
    /// From whom it copied, and along which history.
    source: String,
    /// Whether pg_rewind ended well, and only files of ours are missing.
    done: bool,
    /// Whether pg_rewind has put its label there, the last thing but the control file.
    labelled: bool,
}

impl Earlier {
    fn read(options: &LocalOptions) -> io::Result<Self> {
        let text = match fs::read_to_string(Self::path(options)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result?,
        };
        let (source, rest) = text.split_once('\n').unwrap_or_default();
        Ok(Self {
            source: source.to_owned(),
            done: rest == DONE,
            labelled: options.data_dir.join("backup_label").exists(),
        })
    }

    fn write(options: &LocalOptions, source: &str, done: bool) -> io::Result<()> {
        let rest = if done { DONE } else { "" };
        let text = format!("{source}\n{rest}");
        files::replace(&Self::path(options), &text, options.uid_gid).map(drop)
    }

    fn path(options: &LocalOptions) -> PathBuf {
        options.state_dir().join("rewind")
    }

    /// Returns whether nothing is left to copy; if there is, pg_rewind may run again.
    ///
    /// # Errors
    /// Why it must not. It would find nothing wrong, and leave a mixture behind: what it copied of
    /// a server that was deposed since may have changes that the cluster lost; and once the label
    /// is there, the recovery that it begins with writes a log of its own on the new timeline.
    fn is_done(&self, source: &str) -> Result<bool, String> {
        if self.done {
            return Ok(true);
        }
        if self.source != source {
            let before = &self.source;
            return Err(format!(
                "it was interrupted while it copied from another source: {before:?}, now {source:?}"
            ));
        }
        if self.labelled {
            return Err(INTERRUPTED_LATE.to_owned());
        }
        Ok(false)
    }
}

/// Tells a server on one timeline from the same server on another.
fn source_line(from: &Upstream, history: &History) -> String {
    let ancestors = history.ancestors().iter();
    let line: String = ancestors
        .map(|a| format!("{}@{} ", a.timeline, a.end))
        .collect();
    format!("{} {line}{}", from.name, history.timeline())
}

/// What became of a run of pg_rewind.
enum Outcome {
    Done,
    Failed {
        error: PgError,
        /// Whether it had begun to change the directory.
        touched: bool,
    },
}

/// Finds in what pg_waldump says where the last record ended.
fn end_of_log(said: &str) -> Option<Lsn> {
    let mark = "error in WAL record at ";
    let (_, rest) = said.lines().rev().find_map(|line| line.split_once(mark))?;
    let (record, why) = rest.split_once(':')?;
    // `…: invalid record length at 0/3000188: wanted 24, got 0`
    let next = why
        .split_once(" at ")
        .and_then(|(_, at)| at.split([':', ' ', ',']).next());
    next.and_then(|at| at.parse().ok())
        .or_else(|| record.trim().parse().ok())
}

/// Returns whether a failure is of the connection or the machine, and not of the data.
fn is_passing(problem: &str) -> bool {
    [
        "could not connect",
        "connection to server",
        "server closed the connection",
        "the database system is",
        "must not be in recovery mode",
        "session is read-only",
        "No space left on device",
        "too many clients",
    ]
    .iter()
    .any(|sign| problem.contains(sign))
}

/// Returns whether the source does not let pg_rewind in, or not read what it has to.
fn is_denied(problem: &str) -> bool {
    [
        "password authentication failed",
        "no pg_hba.conf entry",
        "permission denied",
    ]
    .iter()
    .any(|sign| problem.contains(sign))
}

/// Reading the log since the last checkpoint; the record is for people, and is not waited for.
const WALDUMP_LIMIT: Duration = Duration::from_secs(20);

const DONE: &str = "done\n";

const INTERRUPTED_LATE: &str = "it was interrupted when all was copied, and may not be on disk";

#[cfg(test)]
mod tests {
    use spilo_core::wal::Timeline;

    use super::*;

    #[test]
    fn an_interrupted_rewind_goes_on_only_from_where_it_came() {
        let from = |name: &str| Upstream {
            name: spilo_core::ids::MemberName::new(name).unwrap(),
            conn_url: String::new(),
        };
        let two = History::root(Timeline(1)).promoted(Timeline(2), Lsn(900));
        let source = source_line(&from("b"), &two);
        assert_eq!(source, "b 1@0/384 2");
        let later = two.promoted(Timeline(3), Lsn(950));
        let elsewhere = History::root(Timeline(1)).promoted(Timeline(2), Lsn(800));

        let dir = tempfile::tempdir().unwrap();
        let scope = spilo_core::ids::Scope::new("demo").unwrap();
        let data_dir = dir.path().join("a");
        let options = LocalOptions::new(scope, from("a").name, &data_dir, 5432);
        for path in [&options.state_dir(), &data_dir] {
            fs::create_dir(path).unwrap();
        }
        let done = |source: &str| Earlier::read(&options).unwrap().is_done(source);
        done(&source).unwrap_err();
        Earlier::write(&options, &source, false).unwrap();
        assert_eq!(done(&source), Ok(false));
        for (name, history) in [("b", &later), ("b", &elsewhere), ("c", &two)] {
            done(&source_line(&from(name), history)).unwrap_err();
        }
        fs::write(data_dir.join("backup_label"), "").unwrap();
        done(&source).unwrap_err();
        // A whole directory is one, whoever leads now: whether it has diverged is asked anew.
        Earlier::write(&options, &source, true).unwrap();
        assert_eq!(done(&source), Ok(true));
        assert_eq!(done(&source_line(&from("c"), &later)), Ok(true));
    }

    #[test]
    fn the_end_of_the_log_is_where_no_record_begins() {
        for (said, end) in [
            (
                "pg_waldump: error: error in WAL record at 0/3000150: invalid record length at \
                 0/3000188: wanted 24, got 0",
                Some("0/3000188"),
            ),
            (
                "pg_waldump: error: error in WAL record at 0/3000150: invalid record length at \
                 0/3000188: expected at least 24, got 0",
                Some("0/3000188"),
            ),
            (
                "pg_waldump: error: error in WAL record at 0/3000150: something",
                Some("0/3000150"),
            ),
            ("", None),
        ] {
            assert_eq!(
                end_of_log(said),
                end.map(|text| text.parse().unwrap()),
                "{said}"
            );
        }
    }
}
