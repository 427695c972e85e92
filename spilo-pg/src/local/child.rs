//! PostgreSQL's programs as children that die with the future that runs them.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use crate::LocalOptions;
use crate::guard::tethered;

/// A program to run, as the server's user, in a process group of its own, with an environment
/// that has nothing of the agent's but where programs and libraries are.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    command: Command,
    limit: Option<Duration>,
}

/// How a program ended, and what it said at the end.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Returns the command that starts `program`, tied to this process if that is possible.
fn start(options: &LocalOptions, program: &Path) -> Command {
    let Some(tether) = &options.tether else {
        return Command::new(program);
    };
    let (tether, name, args) = tethered(tether);
    let mut command = Command::new(tether);
    command.arg0(name).args(args).arg(program);
    command
}

impl Program {
    /// Prepares one of PostgreSQL's programs.
    pub(crate) fn new(options: &LocalOptions, name: &str) -> Self {
        Self::prepare(options, name, start(options, &options.program(name)))
    }

    /// Prepares a command line of the configuration, to be taken apart by the shell.
    pub(crate) fn shell(options: &LocalOptions, line: &str) -> Self {
        let mut command = start(options, Path::new("/bin/sh"));
        command.arg("-c").arg(format!("{line} \"$@\"")).arg("sh");
        Self::prepare(options, line, command)
    }

    fn prepare(options: &LocalOptions, name: &str, mut command: Command) -> Self {
        command
            .env_clear()
            .envs(environment())
            .env("PGPASSFILE", options.passfile())
            .env("PGCONNECT_TIMEOUT", "5")
            .env("PGAPPNAME", options.name.as_str())
            // By its working directory a program is found that outlived a killed agent.
            .current_dir(options.state_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some((uid, gid)) = options.uid_gid {
            command.uid(uid).gid(gid);
        }
        Self {
            name: name.to_owned(),
            command,
            limit: None,
        }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<T: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = T>,
    ) -> Self {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Bounds how long it may take; it is killed then.
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Runs it to its end and shows each line of its standard error to `see`.
    ///
    /// # Errors
    /// When it could not be started, or took too long. A program that failed is no error here.
    ///
    /// # Cancellation
    /// Dropping the future kills the program and what it started.
    pub(crate) async fn run(mut self, see: impl Fn(&str) + Send + Sync) -> io::Result<Ended> {
        let mut child = self.command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", self.name))
        })?;
        let mut group = Group::of(child.id());
        let out = child.stdout.take();
        let err = child.stderr.take();
        let work = async {
            let (mut stdout, mut stderr) = (Tail::default(), Tail::default());
            let reading = async {
                let quiet = |_: &str| {};
                tokio::join!(stdout.read(out, &quiet), stderr.read(err, &see));
            };
            let status = {
                tokio::pin!(reading);
                let mut read = false;
                let status = loop {
                    tokio::select! {
                        status = child.wait() => break status?,
                        () = &mut reading, if !read => read = true,
                    }
                };
                if !read && tokio::time::timeout(LINGER, reading).await.is_err() {
                    tracing::debug!("{} left a process behind that holds its output", self.name);
                }
                status
            };
            Ok(Ended {
                status,
                stdout: stdout.text(),
                stderr: stderr.text(),
            })
        };
        let ended = match self.limit {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                let problem = format!("{} did not end within {limit:?}", self.name);
                Err(io::Error::new(io::ErrorKind::TimedOut, problem))
            }),
        }?;
        group.release();
        Ok(ended)
    }
}

impl Ended {
    /// Returns the output of a program that succeeded.
    ///
    /// # Errors
    /// What it said last, of one that failed.
    pub(crate) fn success(self) -> Result<String, String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let said = self.stderr.trim();
        let lines: Vec<&str> = said.lines().rev().take(8).collect();
        let last: Vec<&str> = lines.into_iter().rev().collect();
        Err(format!("{}: {}", self.status, last.join("; ")))
    }
}

/// Kills a process group when it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        let raw = leader.and_then(|id| i32::try_from(id).ok());
        Self(raw.and_then(Pid::from_raw))
    }

    /// Forgets the group, whose leader has ended: its number may be given to another.
    fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // A group that is gone already needs no kill.
            let _gone = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// What children and the server inherit.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    let mut kept: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            name == "PATH" || name == "TZ" || name.starts_with("LD_LIBRARY_PATH")
        })
        .collect();
    kept.push(("LC_ALL".into(), "C".into()));
    kept
}

/// Returns the environment of the server.
pub(crate) fn server_environment() -> Vec<(String, String)> {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own = own.ok().and_then(|text| text.trim().parse().ok());
    let mut variables = environment();
    variables.extend(oom_variables(own, |name| std::env::var_os(name)));
    let text = |value: OsString| value.to_string_lossy().into_owned();
    variables
        .into_iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

/// Returns the variables by which the postmaster gives its children another score for the
/// out-of-memory killer than its own.
///
/// Without them a backend that takes all memory is as safe from the killer as the postmaster,
/// where the agent was started with a score that protects it.
fn oom_variables(
    own: Option<i32>,
    given: impl Fn(&str) -> Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let [file, value] = ["PG_OOM_ADJUST_FILE", "PG_OOM_ADJUST_VALUE"];
    let wanted: Vec<_> = [file, value]
        .into_iter()
        .filter_map(|name| Some((name.into(), given(name)?)))
        .collect();
    if wanted.is_empty() && own.is_some_and(|own| own < 0) {
        return vec![
            (file.into(), "/proc/self/oom_score_adj".into()),
            (value.into(), "0".into()),
        ];
    }
    wanted
}

/// The path of a file that holds a secret for a program, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct SecretFile(PathBuf);

impl SecretFile {
    /// Writes the secret.
    pub(crate) fn write(
        path: PathBuf,
        secret: &str,
        owner: super::files::Owner,
    ) -> io::Result<Self> {
        super::files::replace(&path, secret, owner)?;
        Ok(Self(path))
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a file with a password");
        }
    }
}

/// The last of what a stream brought.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Reads a stream to its end, and shows its lines.
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>, see: &(impl Fn(&str) + Sync)) {
        let Some(mut stream) = stream else {
            return;
        };
        let Self(kept) = self;
        let mut line: Vec<u8> = Vec::new();
        let mut buffer = [0_u8; 4096];
        loop {
            let count = match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            for &byte in &buffer[..count] {
                match byte {
                    // Progress is written over itself with carriage returns.
                    b'\n' | b'\r' => {
                        let text = String::from_utf8_lossy(&line);
                        if !text.trim().is_empty() {
                            see(text.trim());
                        }
                        line.clear();
                    }
                    byte if line.len() < LINE_LIMIT => line.push(byte),
                    _ => {}
                }
            }
            kept.extend_from_slice(&buffer[..count]);
            if kept.len() > KEPT * 2 {
                kept.drain(..kept.len() - KEPT);
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// How long the output of a program is read on when it has ended, and what it started has not.
const LINGER: Duration = Duration::from_secs(1);
/// How much of an output is kept: a history file of five thousand timelines fits.
const KEPT: usize = 1 << 20;
const LINE_LIMIT: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rustix::process::kill_process;
    use spilo_core::ids::{MemberName, Scope};

    use super::*;

    fn options(dir: &tempfile::TempDir) -> LocalOptions {
        let name = MemberName::new("a").unwrap();
        let mut options = LocalOptions::new(Scope::new("s").unwrap(), name, dir.path(), 1);
        options.state_dir = Some(dir.path().to_owned());
        options
    }

    #[test]
    fn backends_do_not_inherit_a_protection_from_the_out_of_memory_killer() {
        let none = |_: &str| None;
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let exempt = [
            pair("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj"),
            pair("PG_OOM_ADJUST_VALUE", "0"),
        ];
        assert_eq!(oom_variables(Some(-900), none), exempt);
        for own in [None, Some(0), Some(300)] {
            assert_eq!(oom_variables(own, none), []);
        }
        let given = |name: &str| (name == "PG_OOM_ADJUST_FILE").then(|| OsString::from("/x"));
        assert_eq!(
            oom_variables(Some(-900), given),
            [pair("PG_OOM_ADJUST_FILE", "/x")]
        );
    }

    #[tokio::test]
    async fn lines_are_shown_and_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Mutex::new(Vec::new());
        let ended = Program::shell(&options(&dir), "printf 'a\\rb\\n' >&2; echo $#; exit 3; :")
            .arg("x")
            .run(|line| seen.lock().unwrap().push(line.to_owned()))
            .await
            .unwrap();
        assert_eq!(*seen.lock().unwrap(), ["a", "b"]);
        assert_eq!(ended.stdout, "1\n");
        assert!(ended.success().unwrap_err().contains("exit status: 3"));
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let line = "echo done; sleep 600 & echo $! >&2; :";
        let ended = Program::shell(&options(&dir), line)
            .within(Duration::from_secs(20))
            .run(|_| {})
            .await
            .unwrap();
        let left: i32 = ended.stderr.trim().parse().unwrap();
        assert_eq!(ended.success().unwrap(), "done\n");
        // It was meant to stay: what is set up may well be a service.
        kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_program_dies_with_its_future_and_so_does_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let started = dir.path().join("pid");
        let line = format!("sleep 600 & echo $! > {}; wait; :", started.display());
        let result = Program::shell(&options(&dir), &line)
            .within(Duration::from_millis(500))
            .run(|_| {})
            .await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let pid = std::fs::read_to_string(started).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..200 {
            match std::fs::read_to_string(&stat) {
                Ok(text) if !text.contains(") Z ") => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                _ => return,
            }
        }
        panic!("the child of the program is alive");
    }
}
