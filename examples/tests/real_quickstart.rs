//! The demonstration, on real PostgreSQL: it tells the truth, and leaves nothing behind.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is a test: only functions marked so are exempt"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spilo_benches::procs;

#[test]
fn real_quickstart_fails_over_and_counts_every_row() {
    let mut show = Show::start(&[]);
    let lines = show.until_its_end();
    let text = lines.join("\n");
    assert!(show.process.wait().unwrap().success(), "{text}");
    for told in [
        "KILLED node-",
        "decides Acquire: the lock is free",
        "in doubt ",
    ] {
        assert!(flowing(&text).contains(told), "{told:?} is not in:\n{text}");
    }
    let done = Done::read(lines.last().unwrap());
    assert!(done.acknowledged > 20, "{text}");
    assert_eq!(done.survived + done.lost, done.acknowledged, "{text}");
    // Less than any failover takes with a lease of 3 s, and more than any that went well.
    assert!((500..30_000).contains(&done.gap_ms), "{text}");
    assert_ne!(done.new, done.old, "{text}");
    assert_eq!(show.left_behind(), Vec::<String>::new());
}

#[test]
fn real_quickstart_fails_over_on_etcd_too() {
    let mut show = Show::start(&["--etcd"]);
    let lines = show.until_its_end();
    let text = lines.join("\n");
    assert!(show.process.wait().unwrap().success(), "{text}");
    assert!(flowing(&text).contains("on etcd at 127.0.0.1:"), "{text}");
    let done = Done::read(lines.last().unwrap());
    assert_eq!(done.survived + done.lost, done.acknowledged, "{text}");
    assert_eq!(show.left_behind(), Vec::<String>::new());
}

#[test]
fn real_quickstart_makes_replicas_both_ways_and_undoes_an_accident() {
    let mut show = Show::start(&["--backup"]);
    let lines = show.until_its_end();
    let text = lines.join("\n");
    assert!(show.process.wait().unwrap().success(), "{text}");
    for told in [
        "node-2 decides Clone: from the backup base_",
        "less than 10.0 GiB and than 30 % of its",
        "node-3 decides Clone: not from a backup: ",
        "not less than 30 % of its",
        "rows 0 are left",
    ] {
        assert!(flowing(&text).contains(told), "{told:?} is not in:\n{text}");
    }
    let last = lines.last().unwrap();
    assert!(last.starts_with("done: "), "{text}");
    assert_eq!(show.left_behind(), Vec::<String>::new());
}

#[test]
fn real_quickstart_leaves_nothing_behind_when_interrupted_amid_a_clone() {
    interrupted_at("decides Clone", Signal::SIGINT, Some(130));
}

#[test]
fn real_quickstart_leaves_nothing_behind_when_interrupted_after_the_kill() {
    // The killed server's shared memory is there still, and nobody's.
    interrupted_at("KILLED", Signal::SIGINT, Some(130));
}

#[test]
fn real_quickstart_leaves_nothing_behind_when_it_is_killed_itself() {
    interrupted_at("the cluster is complete", Signal::SIGKILL, None);
}

fn interrupted_at(moment: &str, signal: Signal, status: Option<i32>) {
    let mut show = Show::start(&["--hold"]);
    show.until(moment);
    // Something runs that could stay: else the rest would show nothing.
    assert_ne!(show.processes(), Vec::<String>::new());
    let segments = show.segments();
    assert_ne!(segments, Vec::<String>::new());
    kill(Pid::from_raw(show.process.id().cast_signed()), signal).unwrap();
    assert_eq!(show.process.wait().unwrap().code(), status);
    // One that was killed itself leaves the clearing to another process, which takes a while.
    let end = Instant::now() + Duration::from_secs(30);
    while status.is_none() && !show.left_behind().is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(show.left_behind(), Vec::<String>::new());
    let memory = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let kept: Vec<&str> = memory
        .lines()
        .filter(|line| {
            let id = line.split_whitespace().nth(1).unwrap_or_default();
            segments.iter().any(|segment| segment == id)
        })
        .collect();
    assert_eq!(kept, Vec::<&str>::new());
}

/// Returns the text without its line breaks.
fn flowing(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A running demonstration.
struct Show {
    process: Child,
    output: BufReader<ChildStdout>,
    lines: Vec<String>,
}

impl Show {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_quickstart"))
            .args(["--ttl", "3", "--seconds", "1"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            output,
            lines: Vec::new(),
        }
    }

    /// Reads on until a line has this text.
    fn until(&mut self, text: &str) {
        loop {
            let line = self.line();
            let line =
                line.unwrap_or_else(|| panic!("never told: {text}\n{}", self.lines.join("\n")));
            if line.contains(text) {
                return;
            }
        }
    }

    fn until_its_end(&mut self) -> Vec<String> {
        while self.line().is_some() {}
        self.lines.clone()
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).unwrap();
        (length > 0).then(|| {
            let line = line.trim_end().to_owned();
            self.lines.push(line.clone());
            line
        })
    }

    /// Returns the directory, as the demonstration has told it.
    fn dir(&self) -> PathBuf {
        let text = self.lines.join(" ");
        let begin = text.find("/spilo-demo-").expect("it says where it works");
        let begin = text[..begin].rfind(' ').unwrap() + 1;
        let end = text[begin..].find(';').unwrap();
        PathBuf::from(&text[begin..begin + end])
    }

    fn processes(&self) -> Vec<String> {
        let dir = self.dir();
        let works_there = |directory: &Path| directory.starts_with(&dir);
        procs::all()
            .into_iter()
            .filter(|process| {
                process.directory.as_deref().is_some_and(works_there)
                    || process.command.contains(&dir.display().to_string())
            })
            .map(|process| process.command)
            .collect()
    }

    /// Returns the ids of the servers' shared memory.
    fn segments(&self) -> Vec<String> {
        let nodes = std::fs::read_dir(self.dir()).unwrap().flatten();
        nodes
            .filter_map(|node| {
                let file = node.path().join("data/postmaster.pid");
                let text = std::fs::read_to_string(file).ok()?;
                let id = text.lines().nth(6)?.split_whitespace().nth(1)?;
                Some(id.to_owned())
            })
            .collect()
    }

    /// Returns what is left of it: processes, and the directory.
    fn left_behind(&self) -> Vec<String> {
        let mut left = self.processes();
        if self.dir().exists() {
            left.push(self.dir().display().to_string());
        }
        left
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        // Its own process for clearing up does the rest, whatever the test came to.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The last line, as numbers.
#[derive(Debug)]
struct Done {
    acknowledged: usize,
    survived: usize,
    lost: usize,
    gap_ms: u64,
    new: String,
    old: String,
}

impl Done {
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line
            .split([' ', ',', ';'])
            .filter(|word| !word.is_empty())
            .collect();
        let [
            "done:",
            acknowledged,
            "rows",
            "acknowledged",
            survived,
            "survived",
            lost,
            "lost",
            gap_ms,
            "ms",
            "without",
            "a",
            "write",
            new,
            "took",
            "over",
            "from",
            old,
        ] = words[..]
        else {
            panic!("not the last line: {line:?}");
        };
        Self {
            acknowledged: acknowledged.parse().unwrap(),
            survived: survived.parse().unwrap(),
            lost: lost.parse().unwrap(),
            gap_ms: gap_ms.parse().unwrap(),
            new: new.to_owned(),
            old: old.to_owned(),
        }
    }
}
