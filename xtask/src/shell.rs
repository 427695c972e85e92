//! Running other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Returns a command that reads nothing, so that no question can hang an unattended run.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Returns the cargo that runs us, so that the toolchain stays the same.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns a command that runs as root, through sudo where we are not.
///
/// # Errors
/// When there is neither.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(command(program));
    }
    if find_program("sudo").is_none() {
        bail!("we are not root, and there is no sudo");
    }
    // The standard input stays open: sudo may have to ask for a password.
    let mut sudo = Command::new("sudo");
    sudo.arg("--").arg(program);
    Ok(sudo)
}

/// Returns a command that runs as the user that servers run as: `postgres` for root, else ourselves.
pub(crate) fn as_server_user(program: &Path) -> Command {
    if !is_root() {
        return command(program);
    }
    let mut runuser = command("runuser");
    runuser.args(["-u", "postgres", "--"]).arg(program);
    runuser
}

/// Returns whether this process is root's.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // Without `unsafe` or another crate, the owner of our own entry is how to learn who we are.
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Runs a command whose output is of interest only when it fails, and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; with the end of what it wrote.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        bail!(
            "{} failed, {}:\n{}",
            shown(command),
            output.status,
            last_lines(&all, 30)
        );
    }
    Ok(text)
}

/// Runs a command that writes to our terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn loudly(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed, {status}", shown(command));
    }
    Ok(())
}

/// Returns where a program is, on the path or among the system's own programs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An ordinary user's path leaves out the places of haproxy and `ip`.
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_program(candidate))
}

/// Returns whether a path names a file that may be executed.
pub(crate) fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Returns a command the way that one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    // The other variables that we set are places, and only the harness of the tests needs them.
    let flags = command
        .get_envs()
        .filter(|(name, _)| *name == "RUSTDOCFLAGS");
    let mut words: Vec<String> = flags
        .filter_map(|(name, value)| Some((name.to_string_lossy(), value?.to_string_lossy())))
        .map(|(name, value)| format!("{name}={}", quoted(&value)))
        .collect();
    words.push(quoted(&program.to_string_lossy()));
    words.extend(
        command
            .get_args()
            .map(|argument| quoted(&argument.to_string_lossy())),
    );
    words.join(" ")
}

/// Returns a word as a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = command("/some/where/cargo");
        command.args(["test", "-p", "spilo-core", "--", "a b", "it's", ""]);
        assert_eq!(
            shown(&command),
            r"cargo test -p spilo-core -- 'a b' 'it'\''s' ''"
        );
    }

    #[test]
    fn a_failure_carries_the_end_of_the_output() {
        let script = "seq 100; echo oops >&2; exit 3";
        let failure = quietly(command("sh").args(["-c", script]))
            .unwrap_err()
            .to_string();
        assert!(failure.ends_with("100\noops"), "{failure}");
        assert!(!failure.contains("\n70\n"), "{failure}");
        assert!(failure.contains("exit status: 3"), "{failure}");
    }

    #[test]
    fn a_program_is_found_and_a_missing_one_is_not() {
        assert!(find_program("sh").is_some_and(|path| is_program(&path)));
        assert_eq!(find_program("spilo-no-such-program"), None);
        assert!(!is_program(Path::new("/etc/passwd")));
    }
}
