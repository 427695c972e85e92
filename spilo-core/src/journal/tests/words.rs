//! What a journal sounds like.

use super::*;

fn told(lines: &[String], telling: Telling) -> (Vec<String>, Result<(), JournalError>) {
    let mut said = Vec::new();
    let result = tell(lines.iter().map(String::as_str), telling, &mut |line| {
        said.push(line.to_owned());
    });
    (said, result)
}

#[test]
fn news_are_one_line_a_decision() {
    let lines = recorded();
    let (said, result) = told(&lines, Telling::News);
    assert_eq!(result, Ok(()));
    assert_eq!(
        said[0],
        format!(
            "# line 1: node a of cluster demo, 0.000 s after its agent started, as spilo {} wrote it",
            env!("CARGO_PKG_VERSION")
        )
    );
    let bootstrap = said.iter().find(|line| line.contains("  a  Bootstrap: "));
    let bootstrap = bootstrap.expect("it makes a cluster");
    assert!(
        bootstrap.contains("> start operation 1: bootstrap"),
        "{bootstrap}"
    );
    assert!(said.len() < lines.len() / 2, "{}", said.len());
}

#[test]
fn all_is_every_step_with_its_event() {
    let lines = recorded();
    let (said, result) = told(&lines, Telling::All);
    assert_eq!(result, Ok(()));
    assert_eq!(said.len(), 1 + 2 * (lines.len() - 1));
    let secret = lines.iter().any(|line| line.contains("\"secret\":\"1@"));
    assert!(secret, "the journal has the secret of the lease");
    assert!(
        !said.iter().any(|line| line.contains("1@")),
        "and what is told has not"
    );
}

#[test]
fn a_moment_is_told_with_all_that_the_machine_knew() {
    let lines = recorded();
    let (said, result) = told(&lines, Telling::At(Duration::from_secs(30)));
    assert_eq!(result, Ok(()));
    let text = said.join("\n");
    for part in [
        "\n  lock          held by a in epoch ",
        "\n  server        a primary at 0/3000028 on timeline 1, looked at ",
        "\n  guard         armed to ",
        "\n  settings      ttl 10s, ",
    ] {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
}

#[test]
fn a_snapshot_is_told_with_the_decision_for_it() {
    let mut machine = world::machine();
    machine.step(NodeTime(2_000), Event::Tick);
    let (said, result) = told(&[snapshot(&machine)], Telling::News);
    assert_eq!(result, Ok(()));
    assert_eq!(said.len(), 2);
    assert!(
        said[1].starts_with("a step now decides Looking: "),
        "{}",
        said[1]
    );
}

#[test]
fn a_cut_is_told_and_a_difference_ends_the_story() {
    let mut lines = recorded();
    let last = lines.len();
    lines[last - 1].truncate(30);
    let (said, result) = told(&lines, Telling::News);
    assert_eq!(result, Ok(()));
    assert_eq!(
        said.last().unwrap(),
        &format!("line {last}: cut off; what stands before it counts")
    );
    lines.remove(10);
    let (_, result) = told(&lines, Telling::News);
    let missing = Fault::Missing { missing: 1 };
    assert_eq!(result.map_err(|e| (e.line, e.fault)), Err((11, missing)));
}
