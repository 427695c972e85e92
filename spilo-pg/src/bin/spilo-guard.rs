//! The guard as a program of its own, for embedders that do not call
//! [`spilo_pg::guard::run_if_guard`] in their `main`.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    spilo_pg::guard::run_if_guard();
    let mut stderr = std::io::stderr();
    let _usage = writeln!(
        stderr,
        "usage: spilo-guard serve DIRECTORY (an agent starts it)"
    );
    ExitCode::from(2)
}
