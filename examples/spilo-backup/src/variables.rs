//! Variables of the environment, in a file.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Starts this program again in its own place, with the variables of a file.
///
/// A program cannot safely set variables of its own while others may read them.
pub(crate) fn start_again_with(file: &Path) -> Result<Infallible> {
    let place = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {place}"))?;
    let variables = parse(&text).with_context(|| format!("cannot use {place}"))?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "spilo-backup".into());
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(without_option(arguments));
    Err(command.envs(variables).exec()).context("cannot start again with the variables of a file")
}

/// Reads lines KEY=VALUE.
fn parse(text: &str) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split('=').next().unwrap_or_default();
        let value = line
            .strip_prefix(key)
            .and_then(|rest| rest.strip_prefix('='));
        let begins = key.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        match value {
            Some(value) if begins && key.chars().all(plain) => {
                variables.push((key.to_owned(), unquoted(value).to_owned()));
            }
            // What stands there may be a secret.
            _ => bail!("line {} is not KEY=VALUE", number + 1),
        }
    }
    Ok(variables)
}

fn unquoted(value: &str) -> &str {
    let within = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\'')).unwrap_or(value)
}

/// Returns the arguments without the option and its file.
fn without_option(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut left = Vec::new();
    let mut arguments = arguments.fuse();
    while let Some(argument) = arguments.next() {
        if argument == OPTION {
            arguments.next();
        } else if argument == "--" {
            left.push(argument);
            left.extend(arguments.by_ref());
        } else if !is_option_with_file(&argument) {
            left.push(argument);
        }
    }
    left
}

fn is_option_with_file(argument: &OsStr) -> bool {
    let rest = argument.as_bytes().strip_prefix(OPTION.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"="))
}

const OPTION: &str = "--env-file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_it_is_written() {
        let text = "# the store\n\nAWS_REGION=eu-west-1\n  SPILO_ARCHIVE = \nA=\"x # y=z\"\r\nB=\n";
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), "line 4 is not KEY=VALUE");
        let read = parse(&text.replace("  SPILO_ARCHIVE = \n", "SPILO_ARCHIVE='s3://b/x'\n"));
        let expected = [
            ("AWS_REGION", "eu-west-1"),
            ("SPILO_ARCHIVE", "s3://b/x"),
            ("A", "x # y=z"),
            ("B", ""),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(read.unwrap(), expected);
        for line in ["x", "=x", "1X=y", "export X=y"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_option_is_left_out_wherever_it_stands() {
        for arguments in [
            "--env-file /f wal-push x",
            "wal-push --env-file=/f x",
            "wal-push x --env-file /f",
        ] {
            let arguments = arguments.split(' ').map(OsString::from);
            assert_eq!(without_option(arguments), ["wal-push", "x"]);
        }
        let kept = ["wal-push", "--", "--env-file", "x"];
        assert_eq!(without_option(kept.into_iter().map(OsString::from)), kept);
    }
}
