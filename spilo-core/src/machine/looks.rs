//! What a look at PostgreSQL tells.

use super::facts::{Facts, Seen, Sent};
use super::{Failure, Machine, Ticket};
use crate::history::History;
use crate::mutant::{Mutant, planted};
use crate::pg::{Control, PgErrorKind, PgStatus, Role, Running, Server};

impl Machine {
    pub(super) fn observed(
        &mut self,
        sent: &Sent<()>,
        result: Result<PgStatus, Failure<PgErrorKind>>,
    ) {
        let facts = &mut self.facts;
        let current = sent.ticket >= facts.settled;
        let status = match result {
            Ok(status) => status,
            Err(failure) => {
                let since = facts
                    .pg_failing
                    .as_ref()
                    .map_or(facts.now, |(since, _)| *since);
                facts.pg_failing = Some((since, failure.text));
                facts.lanes.observe_failed = Some(facts.now);
                return;
            }
        };
        facts.pg_failing = None;
        facts.lanes.observe_failed = None;
        let before = facts.pg.as_ref().map(|seen| kind_of(&seen.value.server));
        if before != Some(kind_of(&status.server)) {
            facts.server_since = facts.now;
        }
        if let Some(control) = status.control() {
            facts.system_id = Some(control.system_id);
            // Others may have copied what was begun here, before the store knows of it.
            facts.existed = true;
        }
        let idle_standby = matches!(
            status.running().map(|r| &r.role),
            Some(Role::Standby {
                streaming: false,
                ..
            })
        );
        facts.not_streaming_since = if idle_standby {
            facts.not_streaming_since.or(Some(facts.now))
        } else {
            None
        };
        let timeline = status.position().map(|p| p.timeline);
        if status.running().is_some_and(Running::is_primary) {
            facts.led = timeline;
        }
        facts.moved = facts.pg.as_ref().and_then(|seen| seen.value.position()) != status.position();
        let last = facts.pg.as_ref().and_then(|seen| seen.value.position());
        if last.map(|position| position.timeline) != timeline {
            facts.lanes.history_failed = None;
        }
        if facts.own_history.as_ref().map(History::timeline) != timeline {
            facts.own_history = None;
        }
        // The guard drops its deadline when no process is left; so must we, once.
        if status.server == Server::Down && before != Some(kind_of(&Server::Down)) {
            facts.armed = None;
        }
        if current {
            facts.see_settled(&status);
        }
        facts.see_outage(&status);
        facts.looked = sent.ticket;
        facts.pg = Some(Seen {
            at: sent.at,
            value: status,
        });
    }
}

impl Facts {
    /// Notes that an operation or a fence has ended: what was seen before is out of date.
    pub(super) fn settle(&mut self) {
        let under_way = self.lanes.observe.as_ref();
        let counts = under_way.filter(|sent| sent.at == self.now && planted(Mutant::OldLookCounts));
        let next = Ticket(self.lanes.ticket.0 + 1);
        self.settled = counts.map_or(next, |sent| sent.ticket);
        self.lanes.observe_wanted = true;
    }

    /// Takes in what only a look shows that began after the latest operation or fence ended: a
    /// server that was down before may have been started since.
    fn see_settled(&mut self, status: &PgStatus) {
        if matches!(status.server, Server::Down | Server::Running(_)) {
            (self.fence_failing, self.unburied) = (None, None);
        } else if self.unburied.is_some() {
            // Killing it once more would come to the same.
            self.lanes.fence_failed = Some(self.now);
        }
        let down = status.server == Server::Down;
        let led = |control: &&Control| !control.standby && !control.provisional;
        // What the server was is forgotten once it is started as a standby.
        if let Some(control) = status.control().filter(led)
            && down
        {
            self.led = Some(control.position.timeline);
        }
        let promoted = status.running().is_some_and(Running::is_primary);
        if down || promoted {
            self.promotion_ordered = false;
        }
        if self.op.is_none() {
            if promoted {
                self.handed_over = None;
            } else {
                self.checkpoint_pending = false;
            }
        }
    }
}

fn kind_of(server: &Server) -> u8 {
    match server {
        Server::Down => 0,
        Server::Busy { .. } => 1,
        Server::Hung { .. } => 2,
        Server::Running(running) if running.is_primary() => 3,
        Server::Running(_) => 4,
        Server::Closed { .. } => 5,
    }
}
