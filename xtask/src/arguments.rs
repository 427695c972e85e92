//! The command line.

/// What the user asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Explain the commands, or one of them.
    Help { about: Option<String> },
    /// Install what is missing.
    Setup { full: bool },
    /// Show a cluster that fails over.
    Demo { arguments: Vec<String> },
    /// Check everything, or run the tests that match.
    Test { filter: Vec<String> },
    /// Run the repetitions that are too many for `test`.
    Chaos { arguments: Vec<String> },
    /// Run simulated clusters under fire.
    Sim { arguments: Vec<String> },
    /// Plant bugs, and see what sees them.
    Mutants,
    /// Measure.
    Bench {
        name: String,
        arguments: Vec<String>,
    },
}

/// Reads the command line, without the program's name.
///
/// # Errors
/// A sentence that names the argument that is not understood.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Task, String> {
    let mut arguments = arguments.into_iter();
    let Some(command) = arguments.next() else {
        return Ok(Task::Help { about: None });
    };
    let rest: Vec<String> = arguments.collect();
    if is_help(&command) || command == "help" {
        let about = rest.first().filter(|name| !is_help(name)).cloned();
        return match about {
            Some(name) if !COMMANDS.contains(&name.as_str()) => Err(unknown_command(&name)),
            about => Ok(Task::Help { about }),
        };
    }
    if !COMMANDS.contains(&command.as_str()) {
        return Err(unknown_command(&command));
    }
    // What follows `--` belongs to the program that is run, its own `--help` too.
    if rest
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| is_help(argument))
    {
        return Ok(Task::Help {
            about: Some(command),
        });
    }
    match command.as_str() {
        "setup" => parse_setup(&rest),
        "demo" => Ok(Task::Demo {
            arguments: passed_on(rest),
        }),
        "chaos" => Ok(Task::Chaos {
            arguments: passed_on(rest),
        }),
        "sim" => Ok(Task::Sim {
            arguments: passed_on(rest),
        }),
        "mutants" => match rest.first() {
            None => Ok(Task::Mutants),
            Some(other) => Err(format!("`mutants` does not know `{other}`")),
        },
        "bench" => parse_bench(rest),
        _ => Ok(Task::Test {
            filter: passed_on(rest),
        }),
    }
}

/// Returns the explanation of a command, or of all of them.
pub(crate) fn help(about: Option<&str>) -> &'static str {
    match about {
        Some("setup") => SETUP_HELP,
        Some("demo") => DEMO_HELP,
        Some("test" | "ci") => TEST_HELP,
        Some("chaos") => CHAOS_HELP,
        Some("sim") => SIM_HELP,
        Some("mutants") => MUTANTS_HELP,
        Some("bench") => BENCH_HELP,
        _ => HELP,
    }
}

fn parse_setup(rest: &[String]) -> Result<Task, String> {
    let mut full = false;
    for argument in rest {
        match argument.as_str() {
            "--full" => full = true,
            other => return Err(format!("`setup` does not know `{other}`, only `--full`")),
        }
    }
    Ok(Task::Setup { full })
}

fn parse_bench(rest: Vec<String>) -> Result<Task, String> {
    let mut rest = rest.into_iter();
    match rest.next() {
        Some(name) if BENCHES.contains(&name.as_str()) => Ok(Task::Bench {
            name,
            arguments: passed_on(rest.collect()),
        }),
        Some(name) => Err(format!(
            "no bench is named `{name}`, only: {}",
            BENCHES.join(", ")
        )),
        None => Err(format!("`bench` needs a name: {}", BENCHES.join(", "))),
    }
}

/// Drops the first `--`, which only says where our own arguments end.
fn passed_on(mut rest: Vec<String>) -> Vec<String> {
    if rest.first().is_some_and(|argument| argument == "--") {
        rest.remove(0);
    }
    rest
}

fn is_help(argument: &str) -> bool {
    matches!(argument, "-h" | "--help")
}

fn unknown_command(name: &str) -> String {
    format!(
        "no command is named `{name}`, only: {}",
        COMMANDS.join(", ")
    )
}

const COMMANDS: [&str; 8] = [
    "setup", "demo", "test", "ci", "chaos", "sim", "mutants", "bench",
];

const BENCHES: [&str; 3] = ["backup", "failover", "sim"];

const HELP: &str = "\
The commands of this project.

Usage: cargo xtask <COMMAND> [ARGUMENTS]

Commands:
  demo            Show three PostgreSQL nodes that fail over, and count the rows that survive
  test            Check everything: format, lints, documentation, tests on real servers
  ci              The same as `test`
  chaos           Run the faults with the full number of repetitions
  sim             Run simulated clusters under faults that are drawn from seeds
  mutants         Plant bugs in the core one by one, and show which test sees each
  bench backup    Measure how fast log and base backups are archived, next to peers if asked
  bench failover  Measure how long a fail-over takes, next to its peers if asked
  bench sim       Measure how long a fail-over takes in the simulator, by its seeds
  setup           Install what the commands above need; they all do so by themselves

`cargo xtask <COMMAND> --help` says more about a command.";

const SETUP_HELP: &str = "\
Install what is missing, and say so. Silent when nothing is.

Usage: cargo xtask setup [--full]

Without options, what the demo needs, from the system's packages (as root, or through sudo):
PostgreSQL 15, etcd and protoc. No service is started and no database cluster is created. Where
the system is not Debian 12, PostgreSQL 15 goes beside the system's own version.

  --full  Also what the tests, `chaos` and `bench` need: haproxy, dnsmasq, iproute2, lzop, pv,
          pgBackRest, ZooKeeper (with Java), cargo-nextest, PostgreSQL 13, 16 and 18 and Consul
          beside the system's, stock Patroni, WAL-E and moto.

What is installed beside the system goes to /var/cache/spilo-tools, because servers that are
started by root run as the user postgres, who must be able to read it; without root it goes to
target/spilo-tools. SPILO_TOOLS_DIR names another place. Where everything is gets written to
target/spilo-tools.env, and is in the environment of every command that xtask runs.";

const DEMO_HELP: &str = "\
Show three PostgreSQL nodes that fail over.

Usage: cargo xtask demo [--etcd | --backup] [--hold] [ARGUMENTS]

Installs what is missing, builds the programs, and runs `quickstart`: a live table of the members,
rows written all the time, the primary killed, who took over and why, and in the end how many
acknowledged rows survived.

  --etcd    Keep the cluster's state in a real etcd, not in the embedded store
  --backup  Show backups instead: log and a base backup go to an S3 server in the program, a replica
            is made from them and another as a copy, each with the reason, and the rows that an
            accident has deleted come back
  --hold    Leave the cluster running, and print how to connect

All arguments go to `quickstart`: `cargo xtask demo -- --help` lists them.";

const TEST_HELP: &str = "\
Check everything.

Usage: cargo xtask test [-- FILTER...]

Installs what is missing, then: the purity of the core's dependencies and the format; then the tests
(on real servers too) and the examples in the documentation, and beside them, in what processor time
they leave: the lints of the whole workspace and of every feature alone, the documentation, and the
simulator. Says at once what failed, and names the command that repeats it.

With a filter, or any other arguments of `cargo nextest run`, runs only the tests:

  cargo xtask test -- guard
  cargo xtask test -- -p spilo-core --no-capture

A test whose server is absent fails; it is never skipped.";

const CHAOS_HELP: &str = "\
Run the faults with the full number of repetitions, at the default ttl.

Usage: cargo xtask chaos [ARGUMENTS]

Installs what is missing and builds in release mode. All arguments go to the program:
`cargo xtask chaos -- --help` lists them.";

const MUTANTS_HELP: &str = "\
Plants bugs in the core, one after the other, and shows what sees each: the simulator, after how
many simulated clusters, or a test of its own. Fails if one survives. Needs no server.

Usage: cargo xtask mutants
";

const SIM_HELP: &str = "\
Runs simulated clusters under faults that are drawn from seeds, and looks for two writers, lost
data and clusters that do not mend themselves. Needs no server. `cargo xtask sim -- --help` lists
what it can be asked.

Usage: cargo xtask sim [ARGUMENTS]

  cargo xtask sim --seeds 20000              the seeds 0 to 19999
  cargo xtask sim --seeds 20000 --from 8000  goes on at 8000
  cargo xtask sim --seed 4711                one seed, with its story if it breaks something
";

const BENCH_HELP: &str = "\
Measure.

Usage: cargo xtask bench backup [--vs wal-e,pgbackrest] [ARGUMENTS]
       cargo xtask bench failover [--vs patroni] [ARGUMENTS]
       cargo xtask bench sim [ARGUMENTS]

Installs what is missing and builds in release mode. All arguments go to the program:
`cargo xtask bench backup -- --help` lists them.";

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Task, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn no_command_and_every_spelling_of_help_explain() {
        for line in ["", "--help", "-h", "help", "help --help"] {
            assert_eq!(parsed(line), Ok(Task::Help { about: None }), "{line}");
        }
        for line in ["help setup", "setup --help", "setup --full -h"] {
            let about = Some("setup".to_owned());
            assert_eq!(parsed(line), Ok(Task::Help { about }), "{line}");
        }
    }

    #[test]
    fn every_command_has_its_own_help() {
        for command in COMMANDS {
            assert_ne!(help(Some(command)), HELP, "{command}");
            assert!(HELP.contains(&format!("\n  {command} ")), "{command}");
        }
    }

    #[test]
    fn arguments_of_the_programs_pass_through_unread() {
        let arguments = strings(&["--etcd", "--hold"]);
        assert_eq!(parsed("demo --etcd --hold"), Ok(Task::Demo { arguments }));
        let arguments = strings(&["--help"]);
        assert_eq!(parsed("chaos -- --help"), Ok(Task::Chaos { arguments }));
        let (name, arguments) = ("failover".to_owned(), strings(&["--vs", "patroni"]));
        assert_eq!(
            parsed("bench failover --vs patroni"),
            Ok(Task::Bench { name, arguments })
        );
        let (name, arguments) = ("backup".to_owned(), strings(&["--vs", "wal-e,pgbackrest"]));
        assert_eq!(
            parsed("bench backup --vs wal-e,pgbackrest"),
            Ok(Task::Bench { name, arguments })
        );
    }

    #[test]
    fn ci_is_test_and_a_filter_follows_the_dashes() {
        assert_eq!(parsed("ci"), Ok(Task::Test { filter: Vec::new() }));
        let filter = strings(&["-p", "spilo-core", "--", "--exact"]);
        assert_eq!(
            parsed("test -- -p spilo-core -- --exact"),
            Ok(Task::Test { filter })
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, word) in [
            ("tset", "tset"),
            ("help tset", "tset"),
            ("setup --ful", "--ful"),
            ("bench latency", "latency"),
            ("bench", "failover"),
        ] {
            let mistake = parsed(line).unwrap_err();
            assert!(mistake.contains(word), "{line}: {mistake}");
        }
    }
}
