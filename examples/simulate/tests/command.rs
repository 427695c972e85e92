//! The command line of the simulator.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    let mut simulate = Command::new(env!("CARGO_BIN_EXE_simulate"));
    simulate.args(arguments).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn seeds_that_break_nothing_are_counted() {
    let output = simulate(&["--from", "7", "--seeds", "3", "--threads", "1"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("3 seeds from 7: "), "{said}");
    assert!(said.contains(", 0 violations"), "{said}");
}

#[test]
fn what_it_cannot_do_is_an_error_that_names_it() {
    let output = simulate(&["--sedes", "3"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--sedes") && said.contains("--seeds"),
        "{said}"
    );
}
