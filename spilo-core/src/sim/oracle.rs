//! What must never be, and must always come.

use std::collections::BTreeMap;
use std::fmt;

use super::log::Log;
use super::node::{Mind, Node};
use super::{START, Sim, n_name};
use crate::dcs::Key;
use crate::machine::Command;
use crate::pg::PgOp;

/// An invariant that was broken, with the story of how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was broken.
    pub what: String,
    /// What led to it.
    pub story: String,
}

impl Sim {
    /// Looks at what must hold at any instant.
    pub(super) fn look_on(&mut self) {
        let mut writers = self.nodes.iter().filter(|node| node.server.takes_writes());
        if let (Some(a), Some(b)) = (writers.next(), writers.next()) {
            let what = format!(
                "two writers: {}, {}, and {}, {}",
                a.name(),
                picture(a, self.now),
                b.name(),
                picture(b, self.now)
            );
            self.break_with(what);
        }
        if self.queue.len() > MOST_QUEUED {
            let what = format!("{} things are under way at once", self.queue.len());
            self.break_with(what);
        }
    }

    /// Notes what a node wants done, which must not be too much.
    pub(super) fn count_work(&mut self, n: usize, commands: &[Command]) {
        let second = self.now / 1000;
        let work = &mut self.nodes[n].work;
        if work.0 != second {
            *work = (second, BTreeMap::new());
        }
        for command in commands {
            *work.1.entry(kind(command)).or_default() += 1;
        }
        if commands.len() > MOST_AT_ONCE || work.1.values().sum::<u32>() > MOST_A_SECOND {
            let (name, work) = (n_name(&self.nodes, n), &self.nodes[n].work.1);
            let what = format!("{name}: {work:?} within a second, the last {commands:?}");
            self.break_with(what);
        }
    }

    /// Looks at a promotion: what the new branch leaves behind of acknowledged rows must be within
    /// the lag that the configuration allows behind the position that the store has.
    pub(super) fn promoted(&mut self, n: usize, forked_at: u64) {
        self.promotions += 1;
        let Some(log) = self.nodes[n].server.log() else {
            return;
        };
        let (rows, bytes) = self.clients.branched(log, forked_at);
        if rows > 0 {
            self.note(format_args!(
                "{} leaves {rows} rows behind, {bytes} bytes",
                self.nodes[n].name().to_owned()
            ));
        }
        let Some(told) = self.position_in_store() else {
            return;
        };
        let allowed = self.lag_allowed();
        // Whoever asks for a failover to a node by name takes what it has.
        let named = self.asked_for.contains(&n);
        self.asked_for.retain(|asked| *asked != n);
        if bytes > 0 && !named && forked_at.saturating_add(allowed) < told {
            let name = n_name(&self.nodes, n);
            let what = format!(
                "{name} was promoted at {forked_at}, more than {allowed} bytes behind {told}"
            );
            self.break_with(what);
        }
    }

    /// Looks at an agent that points its standby at another server: PostgreSQL trusts in timelines,
    /// and would take what is not its own.
    pub(super) fn look_at_upstream(&mut self, n: usize, op: &PgOp, source: Option<&Log>) {
        let points = matches!(op, PgOp::Follow { .. } | PgOp::Start { .. });
        let Some((mine, source)) = self.nodes[n].server.log().zip(source) else {
            return;
        };
        if points && mine.seems_prefix_of(source) && !source.has_all_of(mine) {
            let name = n_name(&self.nodes, n);
            let what = format!("{name} is to follow what is not its own: {mine:?}, {source:?}");
            self.break_with(what);
        }
    }

    fn position_in_store(&mut self) -> Option<u64> {
        let snapshot = self.store.keys.snapshot(crate::NodeTime(self.now));
        let entry = snapshot.documents.get(&Key::Status)?;
        let value: serde_json::Value = serde_json::from_slice(&entry.value).ok()?;
        value.get("optime")?.as_u64()
    }

    fn lag_allowed(&self) -> u64 {
        let allowed = |node: &Node| match &node.mind {
            Mind::Machine(machine) => Some(machine.facts().config.maximum_lag_on_failover_bytes),
            Mind::Outside { status, .. } => status
                .as_ref()
                .map(|status| status.config.maximum_lag_on_failover_bytes),
            Mind::None => None,
        };
        self.nodes
            .iter()
            .filter_map(allowed)
            .max()
            .unwrap_or(u64::MAX)
    }

    /// Returns what is wrong with a cluster that was left in peace: nothing may be.
    pub(super) fn unsound_in_peace(&self) -> Option<String> {
        let Some(primary) = self.primary() else {
            return Some("nobody is primary".to_owned());
        };
        let log = self.nodes[primary].server.log()?;
        match self.clients.missing_from(log) {
            0 => None,
            rows => Some(format!(
                "{rows} acknowledged rows are gone that no promotion left behind"
            )),
        }
    }

    /// Ends the run.
    pub(super) fn break_with(&mut self, what: String) {
        self.note(format_args!("## {what}"));
        self.violation.get_or_insert(what);
    }

    /// Returns the invariant that was broken, if one was.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.as_ref().map(|what| Violation {
            what: what.clone(),
            story: self.to_string(),
        })
    }

    pub(super) fn assert_sound(&self) {
        if let Some(violation) = self.violation() {
            panic!("{violation}");
        }
    }
}

fn kind(command: &Command) -> &'static str {
    match command {
        Command::Lease(..) => "lease",
        Command::Read(..) => "read",
        Command::Write(..) => "write",
        Command::Observe(_) => "observe",
        Command::ReadHistory(..) => "read history",
        Command::StartOp(..) => "start operation",
        Command::CancelOp(_) => "cancel operation",
        Command::Fence => "fence",
        Command::Guard(..) => "guard",
        Command::AskPeer(..) => "ask peer",
        Command::AskConsent(..) => "ask for consent",
        Command::AnswerConsent(..) => "answer",
        Command::Exit(_) => "exit",
    }
}

/// Describes a node in a line.
pub(super) fn picture(node: &Node, now: u64) -> String {
    let agent = match (&node.mind, node.paused) {
        (Mind::None, _) => "no agent",
        (_, true) => "agent paused",
        (Mind::Machine(_) | Mind::Outside { .. }, false) => "agent runs",
    };
    let server = match (node.server.takes_writes(), node.server.is_up()) {
        (true, _) => "a primary",
        (false, true) if node.server.is_streaming() => "a streaming standby",
        (false, true) => "a server",
        (false, false) => "down",
    };
    let position = node.server.log().map(|log| log.position());
    let deadline = node.guard.deadline.as_ref().map(|d| {
        let left = |at| node.clock.true_time(at).saturating_sub(START);
        format!("epoch {} to {}/{} ms", d.epoch, left(d.soft), left(d.hard))
    });
    let decision = match &node.mind {
        Mind::Machine(machine) => machine
            .decision()
            .map(|decision| format!("{}: {}", decision.rule, decision.why)),
        Mind::None | Mind::Outside { .. } => None,
    };
    let decision = decision.unwrap_or_default();
    format!(
        "{agent}, {server}, at {position:?}, guard {deadline:?}, now {}; {decision}",
        now - START
    )
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        f.write_str(&self.story)
    }
}

/// A machine that wants more at once has lost its way.
const MOST_AT_ONCE: usize = 16;

/// Ten steps a second, each with something on most lanes.
const MOST_A_SECOND: u32 = 250;

/// Requests, answers and hints of a cluster in trouble; more would be an avalanche.
const MOST_QUEUED: usize = 2000;
