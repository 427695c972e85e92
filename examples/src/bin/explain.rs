//! Says why a node did what it did, from the journal that `spilo-agent --journal` keeps.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use spilo_core::journal::{Telling, tell};

/// Replays the journal of a node and says what it decided, and why.
///
/// Each step is taken again by the code of this program. A step that comes out as anything else
/// than the journal says ends the replay: either the journal is of another version of spilo, or
/// the decision was not a function of what the node was told, which is a bug.
#[derive(Debug, Parser)]
#[command(name = "explain", version, after_long_help = MANUAL)]
struct Arguments {
    /// The journal
    file: PathBuf,

    /// Tell every step with the event that led to it, not only what was news
    #[arg(long, conflicts_with = "at")]
    all: bool,

    /// Tell all that the node knew this long after its agent started
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    at: Option<Duration>,
}

const MANUAL: &str = "\
A line has the seconds since the agent started, the node, the rule that decided, why, and after a
`>` what the node then did.

Exit status:
  0  the whole journal was replayed, and every step came out the same
  1  a line cannot be used or its replay differs; the last line says which and how
  2  the command line is wrong

Examples:
  spilo-agent --journal /var/lib/spilo/journal /etc/spilo/agent.yml
  explain /var/lib/spilo/journal                # what it decided
  explain --all /var/lib/spilo/journal          # and what it was told
  explain --at 12.5 /var/lib/spilo/journal      # why it did what it did then

The story of a failover, shortened:
     0.114  n2  Following: n1  > read its own history
     2.446  n2  AwaitHistory: it does not stream  > read the history of n1; ask n1
     3.085  n2  PredecessorMayWrite: n1 may write for 2.889s  > ask whether the lease ended
     3.089  n2  Acquire: the lock is free, and nobody is ahead  > take the lock for 3s
     3.127  n2  Promote: from 0/3000000 on timeline 1  > start operation 2: promote
     3.289  n2  Lead: by Lease of epoch 29, 0 standbys stream
";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let telling = match arguments.at {
        Some(at) => Telling::At(at),
        None if arguments.all => Telling::All,
        None => Telling::News,
    };
    let bytes = match fs::read(&arguments.file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("explain: cannot read {}: {error}", arguments.file.display());
            return ExitCode::FAILURE;
        }
    };
    // A byte that is no text cannot be in a line whose sum is right.
    let text = String::from_utf8_lossy(&bytes);
    let mut out = io::stdout().lock();
    let mut say = |line: &str| {
        // Whoever closes the pipe has seen enough; the replay goes on for its exit status.
        writeln!(out, "{line}").unwrap_or_default();
    };
    match tell(text.lines(), telling, &mut say) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("explain: {}, {error}", arguments.file.display());
            ExitCode::FAILURE
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "wanted a number of seconds")?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
