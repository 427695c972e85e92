//! `explain` and `own_loop`, as somebody runs them.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spilo_core::journal::{Recorder, Taken, snapshot};
use spilo_core::machine::{Event, Identity, Machine};
use spilo_core::{DynamicConfig, MemberName, NodeTime, Scope};

#[test]
fn a_journal_is_told_and_a_damaged_one_fails_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("journal");
    let lines = recorded(5);
    fs::write(&file, lines.join("\n")).unwrap();
    let told = explain(&["--all"], &file);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert_eq!(text(&told.stdout).lines().count(), 1 + 2 * 5);

    let mut damaged = lines.clone();
    damaged[3] = damaged[3].replacen("Tick", "Tock", 1);
    fs::write(&file, damaged.join("\n")).unwrap();
    let told = explain(&[], &file);
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    let why = "line 4: damaged: its sum is another one\n";
    assert!(text(&told.stderr).ends_with(why), "{told:?}");

    fs::write(&file, &lines.join("\n").as_bytes()[..lines[0].len() + 50]).unwrap();
    let told = explain(&[], &file);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert!(text(&told.stdout).contains("line 2: cut off; "), "{told:?}");
}

#[test]
fn a_snapshot_is_told_with_the_decision_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    fs::write(&file, snapshot(&machine())).unwrap();
    let told = explain(&[], &file);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert!(text(&told.stdout).contains("a step now decides Looking: "));
}

#[test]
fn what_is_no_journal_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other");
    for (bytes, why) in [
        (&b""[..], "line 1: a journal begins with a header"),
        (b"\x00\xff\xfe", "line 1: a journal begins with a header"),
        (b"hello\nworld\n", "line 1: a journal begins with a header"),
        (b"{\"journal\":1,\"spi", "line 1: cut off"),
        (b"{\"journal\":7}\n", "line 1: format 7, "),
    ] {
        fs::write(&file, bytes).unwrap();
        let told = explain(&[], &file);
        assert_eq!(told.status.code(), Some(1), "{told:?}");
        assert!(text(&told.stderr).contains(why), "{told:?}");
    }
    let told = explain(&[], &dir.path().join("missing"));
    assert_eq!(told.status.code(), Some(1));
    assert!(text(&told.stderr).contains("cannot read"), "{told:?}");
}

#[test]
fn a_node_on_its_own_loop_leads_and_ends() {
    let output = Command::new(env!("CARGO_BIN_EXE_own_loop"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    for rule in ["Bootstrap", "Lead", "Stopped"] {
        assert!(
            text(&output.stdout).contains(&format!(" {rule}: ")),
            "{output:?}"
        );
    }
}

fn recorded(steps: u64) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let mut recorder = Recorder::new(move |line| {
        sink.lock().unwrap().push(line.to_owned());
        Taken::Kept
    });
    let mut machine = machine();
    for step in 0..steps {
        recorder.step(&mut machine, NodeTime(1_000 + 100 * step), Event::Tick);
    }
    let lines = lines.lock().unwrap();
    lines.clone()
}

fn machine() -> Machine {
    let identity = Identity {
        scope: Scope::new("demo").unwrap(),
        name: MemberName::new("a").unwrap(),
        conn_url: "postgres://127.0.0.1:5432/postgres".to_owned(),
        api_url: "http://127.0.0.1:8008/patroni".to_owned(),
        proxy_url: None,
        tags: serde_json::Map::new(),
        bootstrap: Some(Arc::new(DynamicConfig::absent())),
        fence_budget: Duration::from_millis(250),
    };
    Machine::new(identity, NodeTime(1_000))
}

fn explain(arguments: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_explain"))
        .args(arguments)
        .arg(file)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
