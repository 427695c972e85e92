//! Looking at the data directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use spilo_core::pg::{Control, DataDir, PgError, PgErrorKind};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::LocalOptions;

use super::child::environment;
use super::controldata::ControlData;
use super::files::{self, Mark, Marker};

/// What the data directory was seen to be.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) data: DataDir,
    pub(crate) control: Option<ControlData>,
}

/// A look at the data directory that cannot hang its caller.
///
/// One look at a time: on a disk that hangs there is one thread that hangs, not one for each look.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    memory: Arc<Mutex<Memory>>,
}

/// What was read before and need not be read again.
#[derive(Debug, Default)]
struct Memory {
    control: Option<Cached>,
    /// The major version of the programs.
    programs: Option<String>,
}

/// A control file that was read, and what the file was like then.
#[derive(Clone, Debug)]
struct Cached {
    stamp: Stamp,
    control: ControlData,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    device: u64,
    modified: (i64, i64),
}

impl Disk {
    /// Looks, on a thread of its own.
    ///
    /// # Errors
    /// When the disk does not answer in time, now or since an earlier look.
    pub(crate) async fn look(
        &self,
        options: &Arc<LocalOptions>,
        limit: Duration,
    ) -> Result<Seen, PgError> {
        let silent = |problem: &str| {
            let action = format!("look at {}", options.data_dir.display());
            PgError::new(PgErrorKind::Retry, action, problem)
        };
        let until = Instant::now() + limit;
        let lock = timeout_at(until, Arc::clone(&self.memory).lock_owned()).await;
        let mut memory = lock.map_err(|_| silent("the disk has not answered an earlier look"))?;
        let options_there = Arc::clone(options);
        let thread = tokio::task::spawn_blocking(move || look(&options_there, &mut memory));
        match timeout_at(until, thread).await {
            Ok(Ok(Ok(seen))) => Ok(seen),
            Ok(Ok(Err(problem))) => Err(silent(&problem)),
            Ok(Err(error)) => Err(silent("the look was broken off").because(error)),
            Err(_) => Err(silent("the disk does not answer in time")),
        }
    }
}

/// Reads the control file with `pg_controldata`.
///
/// # Errors
/// What the program says, or what is missing of its output.
pub(crate) fn read_control(options: &LocalOptions) -> Result<ControlData, Problem> {
    let mut problem = String::new();
    // The file is read while the server may write it, so a wrong checksum is looked at again.
    for _ in 0..CONTROL_TRIES {
        let mut command = Command::new(options.program("pg_controldata"));
        command.arg("-D").arg(&options.data_dir);
        let output = output(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(judged(output.status, said.trim()));
        }
        let warning = text
            .lines()
            .chain(said.lines())
            .find(|line| line.contains("WARNING"));
        match warning {
            None => return ControlData::parse(&text).map_err(Problem::Data),
            Some(line) => problem = format!("pg_controldata: {}", line.trim()),
        }
        std::thread::sleep(CONTROL_PAUSE);
    }
    Err(Problem::Data(problem))
}

/// Reads the failure of `pg_controldata`: one that was killed, or could not load what it needs, has
/// judged nothing.
fn judged(status: ExitStatus, said: &str) -> Problem {
    if status.code() == Some(1) && said.starts_with("pg_controldata:") {
        return Problem::Data(said.to_owned());
    }
    let problem = [&format!("pg_controldata: {status}"), said].map(String::from);
    let problem: Vec<String> = problem
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    Problem::Machine(problem.join(": "))
}

/// Why a data directory could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// What is in it is no database cluster for these programs, and will not become one.
    #[error("{0}")]
    Data(String),
    /// The machine did not let it be read, this time.
    #[error("{0}")]
    Machine(String),
}

impl Problem {
    /// Reads the failure to open or read a file of the directory.
    fn reading(path: &Path, error: &io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidData => Self::Data(text),
            _ => Self::Machine(text),
        }
    }
}

/// Runs a short program.
fn output(command: &mut Command) -> Result<Output, Problem> {
    let result = command
        .env_clear()
        .envs(environment())
        .stdin(Stdio::null())
        .output();
    result.map_err(|error| Problem::Machine(format!("cannot start {command:?}: {error}")))
}

/// Returns the major version that a data directory was made by, as `PG_VERSION` has it.
pub(crate) fn data_version(data_dir: &Path) -> io::Result<String> {
    fs::read_to_string(data_dir.join("PG_VERSION")).map(|text| text.trim().to_owned())
}

/// Looks. What is wrong with the data is an answer; what is wrong with the machine is not, since
/// nobody may conclude from it that there is nothing to lose.
fn look(options: &LocalOptions, memory: &mut Memory) -> Result<Seen, String> {
    let data_dir = &options.data_dir;
    let nothing = |data| {
        Ok(Seen {
            data,
            control: None,
        })
    };
    let judge = |problem| match problem {
        Problem::Data(problem) => nothing(DataDir::Unreadable { problem }),
        Problem::Machine(problem) => Err(problem),
    };
    let provisional = match Marker::new(&options.state_dir()).read() {
        Ok(None) => false,
        Ok(Some(Mark::Provisional)) => true,
        Ok(Some(Mark::Unfinished(kind))) => return nothing(DataDir::Unfinished(kind)),
        Err(error) => return judge(Problem::reading(&options.state_dir(), &error)),
    };
    match version(options, memory).and_then(|()| control(options, &mut memory.control)) {
        Ok(control) => {
            let standby = ["standby.signal", "recovery.signal"]
                .iter()
                .any(|name| data_dir.join(name).exists());
            let data = DataDir::Ready(Control {
                system_id: control.system_id,
                state: control.state,
                position: control.position(),
                standby,
                rewindable: control.rewindable,
                provisional,
            });
            Ok(Seen {
                data,
                control: Some(control),
            })
        }
        // Only what cannot be read may be nothing at all.
        Err(problem) => match files::is_empty(data_dir) {
            Ok(true) => nothing(DataDir::Empty),
            Ok(false) => judge(problem),
            Err(error) => judge(Problem::reading(data_dir, &error)),
        },
    }
}

/// Returns the control file's content, from the cache if it has not been written since.
///
/// The server writes it at checkpoints and a standby whenever its minimum recovery point moves;
/// a process for each look would be most of what an idle agent costs.
fn control(options: &LocalOptions, cache: &mut Option<Cached>) -> Result<ControlData, Problem> {
    let path = options.data_dir.join("global/pg_control");
    let metadata = fs::metadata(&path).map_err(|error| Problem::reading(&path, &error))?;
    let stamp = Stamp {
        inode: metadata.ino(),
        device: metadata.dev(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    // Two writes within one tick of the file system's clock have the same time.
    let settled = metadata
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok())
        .is_some_and(|age| age > TICK);
    if let Some(cached) = cache.as_ref().filter(|cached| cached.stamp == stamp) {
        return Ok(cached.control.clone());
    }
    let control = read_control(options)?;
    *cache = settled.then(|| Cached {
        stamp,
        control: control.clone(),
    });
    Ok(control)
}

/// Checks that the programs are of the version that made the data directory. The control file of
/// another version may look right.
fn version(options: &LocalOptions, memory: &mut Memory) -> Result<(), Problem> {
    let path = options.data_dir.join("PG_VERSION");
    let data = data_version(&options.data_dir).map_err(|error| Problem::reading(&path, &error))?;
    let programs = match memory.programs.take() {
        Some(version) => version,
        None => program_version(options)?,
    };
    let fits = data == programs;
    let problem = format!(
        "{} says version {data}, the programs are of {programs}",
        path.display()
    );
    memory.programs = Some(programs);
    if fits {
        Ok(())
    } else {
        Err(Problem::Data(problem))
    }
}

/// Asks the server's program for its major version.
fn program_version(options: &LocalOptions) -> Result<String, Problem> {
    let program = options.program("postgres");
    let output = output(Command::new(&program).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().find_map(major).ok_or_else(|| {
        Problem::Machine(format!(
            "{} does not tell its version: {text:?}",
            program.display()
        ))
    })
}

/// Returns the major version of a word like `15.4` or `16beta1`.
fn major(word: &str) -> Option<String> {
    let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// Ten times the tick of a kernel's coarse clock.
const TICK: Duration = Duration::from_millis(100);
/// A torn read of one sector that lasts this often is no torn read.
const CONTROL_TRIES: u32 = 5;
const CONTROL_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_program_that_could_not_run_has_judged_nothing() {
        let (one, killed) = (ExitStatus::from_raw(1 << 8), ExitStatus::from_raw(9));
        let said = "pg_controldata: error: could not open file";
        assert_eq!(judged(one, said), Problem::Data(said.to_owned()));
        let no_library = "postgres/pg_controldata: cannot open shared object file";
        for (status, said, problem) in [
            (killed, "", "pg_controldata: signal: 9 (SIGKILL)"),
            (
                ExitStatus::from_raw(127 << 8),
                no_library,
                "pg_controldata: exit status: 127: \
                 postgres/pg_controldata: cannot open shared object file",
            ),
        ] {
            assert_eq!(judged(status, said), Problem::Machine(problem.to_owned()));
        }
    }

    #[test]
    fn versions_are_read() {
        let words = [
            ("15.4", Some("15")),
            ("18beta1", Some("18")),
            ("(PostgreSQL)", None),
        ];
        for (word, version) in words {
            assert_eq!(major(word).as_deref(), version);
        }
    }
}
