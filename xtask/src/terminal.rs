//! What this program says, and the only place that prints.

use std::io::Write as _;

/// Writes a line that was asked for to the standard output.
#[expect(
    clippy::print_stdout,
    reason = "a command line tool's answer belongs there"
)]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Writes a line about the progress to the standard error output.
///
/// Cargo and nextest write there too, so the order of the lines is kept when the output is piped.
/// A terminal that went away is no reason to stop the work.
pub(crate) fn warn(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
