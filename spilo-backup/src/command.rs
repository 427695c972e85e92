//! Programs of backups, in processes of their own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use spilo_core::backup::{BackupError, BackupErrorKind};
use spilo_core::local::Secret;
use spilo_core::pg::Progress;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// How a program of backups is run: by the agent, and by the server in its `archive_command` and
/// `restore_command`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommandOptions {
    /// The program, with its path: a server may have another `PATH`.
    pub program: PathBuf,
    /// What it is given before the name of what it is to do.
    pub arguments: Vec<String>,
    /// A directory with a file for each variable of its environment, named for the variable, whose
    /// first line is the value: as `envdir` reads it. The server's user must be able to read it.
    pub env_dir: Option<PathBuf>,
    /// Where it runs; that of this process if not given.
    pub working_dir: Option<PathBuf>,
    /// The user and group that it runs as, when this process is root.
    pub user: Option<(u32, u32)>,
    /// What starts it in this process's place, so that it does not outlive this process.
    pub tether: Option<Tether>,
}

/// A program that runs another one, and ends it when the process that started both has ended.
#[derive(Clone, Debug)]
pub struct Tether {
    /// The program.
    pub program: PathBuf,
    /// What it is called.
    pub name: OsString,
    /// Its arguments, behind which the other program and its arguments come.
    pub arguments: Vec<OsString>,
}

/// A program of backups, for one kind of store.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) kind: &'static str,
    pub(crate) options: CommandOptions,
    /// What it finds in its environment; what the directory of these has is put over it.
    pub(crate) variables: Vec<(&'static str, Secret)>,
}

impl CommandOptions {
    /// Takes the program; everything else is as usual.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            env_dir: None,
            working_dir: None,
            user: None,
            tether: None,
        }
    }
}

impl Program {
    pub(crate) fn new(kind: &'static str, options: CommandOptions) -> Self {
        Self {
            kind,
            options,
            variables: Vec::new(),
        }
    }

    /// Returns the line by which a server's shell runs it. Placeholders of the server are not
    /// quoted, and everything else is.
    pub(crate) fn line(&self, words: &[&str]) -> String {
        let mut line = String::new();
        if let Some(directory) = &self.options.env_dir {
            // By the shell alone: this is run for each file of the log.
            line = format!(
                "for f in {}/*; do n=\"${{f##*/}}\"; case \"$n\" in *[!A-Za-z0-9_]*|[0-9]*) continue;; \
                 esac; [ -f \"$f\" ] || continue; v=; IFS= read -r v < \"$f\"; export \"$n=$v\"; done; ",
                quoted(&directory.to_string_lossy())
            );
        }
        line.push_str("exec ");
        line.push_str(&quoted(&self.options.program.to_string_lossy()));
        for argument in &self.options.arguments {
            line.push(' ');
            line.push_str(&quoted(argument));
        }
        for word in words {
            line.push(' ');
            match *word {
                "%f" | "%p" => line.push_str(&format!("\"{word}\"")),
                word => line.push_str(&quoted(word)),
            }
        }
        line
    }

    /// Runs it to its end, and returns what it printed. What it says on the way is shown.
    ///
    /// # Errors
    /// It could not be started, or failed: with the last that it said.
    ///
    /// # Cancellation
    /// Dropping the future kills it and what it started.
    pub(crate) async fn run(
        &self,
        action: &str,
        arguments: &[&str],
        progress: &Progress,
    ) -> Result<String, BackupError> {
        let mut command = self.command().map_err(|error| {
            let directory = self.options.env_dir.as_deref();
            let directory = directory.unwrap_or_else(|| Path::new(""));
            let problem = format!("the environment in {}: {error}", directory.display());
            self.error(BackupErrorKind::Refused, action, problem)
        })?;
        command.args(arguments);
        let spawned = command.spawn();
        let child = spawned.map_err(|error| {
            let program = self.options.program.display();
            let problem = format!("cannot start {program}: {error}; install it, or name its path");
            let kind = BackupErrorKind::Refused;
            self.error(kind, action, problem).because(error)
        })?;
        let ended = attend(child, progress).await;
        let (succeeded, printed, said) = ended.map_err(|error| {
            let kind = BackupErrorKind::Unavailable;
            let problem = format!("it cannot be read from: {error}");
            self.error(kind, action, problem).because(error)
        })?;
        if succeeded {
            return Ok(printed);
        }
        let program = self.options.program.display();
        let problem = format!("{program} failed: {said}");
        Err(self.error(BackupErrorKind::Unavailable, action, problem))
    }

    fn command(&self) -> io::Result<Command> {
        let options = &self.options;
        let mut command = match &options.tether {
            None => Command::new(&options.program),
            Some(tether) => {
                let mut command = Command::new(&tether.program);
                command.arg0(&tether.name).args(&tether.arguments);
                command.arg(&options.program);
                command
            }
        };
        command
            .args(&options.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (name, value) in &self.variables {
            command.env(name, value.expose());
        }
        if let Some(directory) = &options.env_dir {
            command.envs(environment(directory)?);
        }
        if let Some(directory) = &options.working_dir {
            command.current_dir(directory);
        }
        if let Some((user, group)) = options.user {
            command.uid(user).gid(group);
        }
        Ok(command)
    }

    pub(crate) fn error(
        &self,
        kind: BackupErrorKind,
        action: &str,
        problem: impl Into<String>,
    ) -> BackupError {
        BackupError::new(self.kind, kind, action, problem)
    }
}

/// Kills a process group when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // One that is gone already needs no kill.
            kill_process_group(leader, Signal::KILL).unwrap_or_default();
        }
    }
}

/// Waits for the end of a program. Returns whether it succeeded, what it printed and what it said
/// last.
async fn attend(mut child: Child, progress: &Progress) -> io::Result<(bool, String, String)> {
    let leader = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(leader.and_then(Pid::from_raw));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let printed = async {
        let mut text = Vec::new();
        if let Some(out) = out {
            out.take(PRINTED).read_to_end(&mut text).await?;
        }
        io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let said = async {
        let mut last: Vec<String> = Vec::new();
        if let Some(err) = err {
            let mut lines = BufReader::new(err).split(b'\n');
            while let Some(line) = lines.next_segment().await? {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if line.is_empty() {
                    continue;
                }
                progress.say(&line);
                if last.len() == SAID {
                    last.remove(0);
                }
                last.push(line);
            }
        }
        io::Result::Ok(last.join("; "))
    };
    let (printed, said) = tokio::try_join!(printed, said)?;
    let status = child.wait().await?;
    // Its number may be given to another.
    group.0 = None;
    let said = if said.is_empty() {
        status.to_string()
    } else {
        said
    };
    Ok((status.success(), printed, said))
}

/// Reads an environment as `envdir` does.
fn environment(directory: &Path) -> io::Result<Vec<(OsString, String)>> {
    let mut variables = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // What an editor left behind is no variable, for the server's shell neither.
        if !entry.path().is_file() || !is_variable(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        let value = text.split('\n').next().unwrap_or_default().to_owned();
        variables.push((entry.file_name(), value));
    }
    Ok(variables)
}

fn is_variable(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(fine) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Returns a word as a shell wants it, in a setting in which the server replaces what has a percent
/// sign.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('%', "%%").replace('\'', r"'\''"))
}

/// The most that is taken of what a program prints: a list of some ten thousand backups.
const PRINTED: u64 = 16 << 20;

/// How many of the last lines of a program are part of an error.
const SAID: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Program {
        let mut options = CommandOptions::new("/bin/sh");
        options.arguments = vec!["-c".to_owned(), script.to_owned()];
        Program::new("test", options)
    }

    #[tokio::test]
    async fn what_it_prints_is_returned_and_what_it_says_is_shown() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let progress = Progress::to(move |line| sink.lock().unwrap().push(line.to_owned()));
        let script = "echo out; echo one >&2; echo two >&2; echo $1; exit $0";
        let done = shell(script).run("try", &["0", "x"], &progress).await;
        assert_eq!(done.unwrap(), "out\nx\n");
        assert_eq!(*seen.lock().unwrap(), ["one", "two"]);
        let failed = shell(script).run("try", &["7"], &progress).await;
        let error = failed.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Unavailable);
        assert_eq!(
            error.to_string(),
            "test: cannot try: /bin/sh failed: one; two"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let program = Program::new("test", CommandOptions::new("/no/such/program"));
        let error = program.run("try", &[], &Progress::default()).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused);
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }

    #[tokio::test]
    async fn it_dies_with_its_future_and_so_does_what_it_started() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let (program, progress) = (shell(&script), Progress::default());
        let run = program.run("wait", &[], &progress);
        let late = tokio::time::timeout(Duration::from_millis(500), run).await;
        assert!(late.is_err());
        let pid = fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..200 {
            match fs::read_to_string(&stat) {
                Ok(text) if !text.contains(") Z ") => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                _ => return,
            }
        }
        panic!("what the program started is alive");
    }

    #[test]
    fn a_servers_shell_gets_the_words_and_the_environment() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("it's an env");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("SECRET"), "a 'b' $c\nsecond line\n").unwrap();
        fs::write(directory.join("BARE"), "  no newline").unwrap();
        for left in ["BARE~", "README.md", "1ST"] {
            fs::write(directory.join(left), "x").unwrap();
        }
        let read = environment(&directory).unwrap();
        let mut read: Vec<_> = read.iter().map(|(_, value)| &**value).collect();
        read.sort_unstable();
        assert_eq!(read, ["  no newline", "a 'b' $c"]);
        let mut options = CommandOptions::new("/usr/bin/printenv");
        options.env_dir = Some(directory);
        let program = Program::new("test", options);
        let line = program.line(&["SECRET", "BARE"]);
        let mut bare = std::process::Command::new("/bin/sh");
        let output = bare.args(["-c", &line]).env_clear().output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "a 'b' $c\n  no newline\n");

        let mut options = CommandOptions::new("/opt/my tools/wal");
        options.arguments = vec!["--what=100%".to_owned()];
        let program = Program::new("test", options);
        assert_eq!(
            program.line(&["wal-push", "%p"]),
            "exec '/opt/my tools/wal' '--what=100%%' wal-push \"%p\""
        );
    }
}
