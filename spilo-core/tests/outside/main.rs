//! The production driver over the simulator's fakes: lanes, time-outs and cancellation under the
//! faults that bare machines are put to.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod conformance;
mod scenarios;
mod seeds;
mod store;

use std::path::Path;
use std::sync::{Arc, Mutex};

use spilo_core::agent::Agent;
use spilo_core::journal::{Record, Replay, Taken};

/// The lines of all agents of a run, one journal a life.
#[derive(Clone, Debug, Default)]
struct Journals(Arc<Mutex<Vec<(usize, Lines)>>>);

/// The lines of one life.
type Lines = Arc<Mutex<Vec<String>>>;

impl Journals {
    /// Lets the agent of a node keep one.
    fn kept_by(&self, node: usize, agent: Agent) -> Agent {
        let lines = Lines::default();
        self.0.lock().unwrap().push((node, Arc::clone(&lines)));
        agent.with_journal(move |line| {
            lines.lock().unwrap().push(line.to_owned());
            Taken::Kept
        })
    }

    /// Replays all of them; returns how many steps came out the same, or the first that did not.
    fn replay(&self) -> Result<usize, String> {
        let mut steps = 0;
        for (life, (node, lines)) in self.0.lock().unwrap().iter().enumerate() {
            let lines = lines.lock().unwrap();
            for record in Replay::new(lines.iter().map(String::as_str)) {
                match record {
                    Ok(Record::Begin(_)) => {}
                    Ok(Record::Turn(_)) => steps += 1,
                    Err(error) => return Err(format!("journal {life}, node {node}: {error}")),
                }
            }
        }
        Ok(steps)
    }

    /// Writes each to a file of its own.
    fn write_to(&self, directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        for (life, (node, lines)) in self.0.lock().unwrap().iter().enumerate() {
            let text = lines.lock().unwrap().join("\n");
            std::fs::write(directory.join(format!("{life:03}-node-{node}")), text).unwrap();
        }
    }
}
