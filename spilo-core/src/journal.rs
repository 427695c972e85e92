//! The journal: what a machine was told and what it made of it, to be replayed and explained.
//!
//! A [`Machine`] is a function of what it was told, so a record of that is all it takes to see
//! again, bit for bit, why a node did what it did. A journal is lines of JSON. The first is a
//! header: the format's version and the whole machine as it stood, so that a journal may begin at
//! any moment. Each further line is one [`Turn`]: the time, the event, and the step that came of
//! it. A header alone is a *snapshot* of a machine ([`snapshot`]).
//!
//! [`Recorder`] writes one, [`Reader`] reads it, [`Replay`] runs a copy of the machine over it and
//! compares, and [`tell`] says in words what happened. Nothing here opens a file.
//!
//! A journal holds what the machine holds: **the secrets of leases**, with which anybody who
//! reaches the store can take the lock away, and the addresses of all members. Keep it as secret
//! as the credentials of the store. What [`tell`] says leaves the secrets out.
//!
//! # Examples
//! ```
//! use std::sync::{Arc, Mutex};
//! use spilo_core::NodeTime;
//! use spilo_core::journal::{Recorder, Replay, Taken};
//! use spilo_core::machine::{Event, Machine};
//!
//! # let identity = spilo_core::machine::Identity {
//! #     scope: spilo_core::Scope::new("demo")?,
//! #     name: spilo_core::MemberName::new("a")?,
//! #     conn_url: "postgres://127.0.0.1:5432/postgres".to_owned(),
//! #     api_url: "http://127.0.0.1:8008/patroni".to_owned(),
//! #     proxy_url: None,
//! #     tags: serde_json::Map::new(),
//! #     bootstrap: None,
//! #     fence_budget: std::time::Duration::from_millis(250),
//! # };
//! let mut machine = Machine::new(identity, NodeTime(1_000));
//! let lines = Arc::new(Mutex::new(Vec::new()));
//! let sink = Arc::clone(&lines);
//! let mut recorder = Recorder::new(move |line| match sink.lock() {
//!     Ok(mut lines) => {
//!         lines.push(line.to_owned());
//!         Taken::Kept
//!     }
//!     Err(_) => Taken::Lost,
//! });
//! recorder.step(&mut machine, NodeTime(1_000), Event::Tick);
//! recorder.step(&mut machine, NodeTime(1_200), Event::Changed);
//!
//! let lines = lines.lock().map_err(|_| "poisoned")?;
//! let mut replay = Replay::new(lines.iter().map(String::as_str));
//! for record in &mut replay {
//!     record?; // The header, then two turns that came out the same again.
//! }
//! assert_eq!(replay.machine(), Some(&machine));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod facts;
pub(crate) mod form;
mod line;
mod read;
mod replay;
mod story;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::dcs::RawSnapshot;
use crate::machine::{Event, Machine, Step};
use crate::time::NodeTime;

pub use read::{Begin, Fault, JournalError, Reader, Record, Turn};
pub use replay::Replay;
pub use story::{Telling, tell};

/// Steps a machine and offers a line about each step to a sink.
///
/// # Contract of the sink
/// It is called within the step and must not block: a node that waits for a disk does not renew
/// its lease. Where it cannot keep a line at once it says [`Taken::Lost`], and the journal begins
/// anew with a header that tells how many steps are missing. A line has no line break in it and
/// none at its end.
pub struct Recorder {
    sink: Box<dyn FnMut(&str) -> Taken + Send>,
    /// Whether the next line must be a header.
    due: bool,
    /// Steps without a line since the last one that was kept.
    lost: u64,
    /// Before this time no header is tried: a sink that keeps losing lines must not cost a whole
    /// machine for each of them.
    not_before: NodeTime,
    /// The number of the last turn since the header.
    number: u64,
    /// The last snapshot of the store in this journal: the next one repeats nothing of it.
    snapshot: Option<RawSnapshot>,
}

impl Recorder {
    /// Creates a recorder that offers its lines to `sink`, a header first.
    pub fn new(sink: impl FnMut(&str) -> Taken + Send + 'static) -> Self {
        Self {
            sink: Box::new(sink),
            due: true,
            lost: 0,
            not_before: NodeTime::default(),
            number: 0,
            snapshot: None,
        }
    }

    /// Takes one step of `machine`, as [`Machine::step`] does, and offers its line.
    ///
    /// One recorder goes with one machine: a step that was taken without it is missing in the
    /// journal, and the replay will differ.
    pub fn step(&mut self, machine: &mut Machine, now: NodeTime, event: Event) -> Step {
        if self.due && now >= self.not_before {
            self.begin(machine, now);
        }
        if self.due {
            self.lost += 1;
            return machine.step(now, event);
        }
        // The step takes the event, so that half of the line is written before.
        let told = line::told(self.number + 1, now, &event, self.snapshot.as_ref());
        if let Some(raw) = line::snapshot_in(&event) {
            self.snapshot = Some(raw.clone());
        }
        let step = machine.step(now, event);
        self.number += 1;
        let line = told.and_then(|told| line::finished(told, &step));
        if !self.offer(line.as_deref()) {
            self.lost += 1;
        }
        step
    }

    fn begin(&mut self, machine: &Machine, now: NodeTime) {
        self.due = false;
        self.not_before = now + RETRY;
        if self.offer(line::header(machine, self.lost).as_deref()) {
            // A header is never enough by itself: it would be followed by headers for ever.
            self.due = false;
            self.number = 0;
            self.lost = 0;
            self.snapshot = None;
        }
    }

    /// Returns whether the line, if there is one, was kept.
    fn offer(&mut self, line: Option<&str>) -> bool {
        let taken = line.map_or(Taken::Lost, |line| (self.sink)(line));
        match taken {
            Taken::Kept => true,
            Taken::Full => {
                self.due = true;
                self.not_before = NodeTime::default();
                true
            }
            Taken::Lost => {
                self.due = true;
                false
            }
        }
    }
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is kept, or will be.
    Kept,
    /// It is kept, and is enough for one journal: the next line is to be a header.
    Full,
    /// It is not kept: the next line is to be a header that says so.
    Lost,
}

/// Returns the header of a journal that begins with `machine` as it stands.
///
/// By itself it is a snapshot, which [`tell`] gives the decision for.
///
/// # Panics
/// Never: every key of every map in a machine can be written as text.
pub fn snapshot(machine: &Machine) -> String {
    line::header(machine, 0).expect("every key of every map in a machine can be written as text")
}

/// Returns whether a line that a sink is offered is a header.
pub fn is_header(line: &str) -> bool {
    line.starts_with(line::HEADER)
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("number", &self.number)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// Often enough that little is missing, and seldom enough that the cost is not felt.
const RETRY: Duration = Duration::from_secs(10);
