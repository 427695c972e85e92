//! What a look at a server sees.

use super::{Data, FakeServer, Pending, State};
use crate::pg::{Control, ControlState, DataDir, PgStatus, Role, Running, Server, Walsender};
use crate::wal::Lsn;

impl FakeServer {
    /// Returns what a look at it sees; `followers` stream from it.
    pub(in crate::sim) fn status(
        &self,
        followers: &[(&str, Lsn)],
        address: impl Fn(usize) -> String,
    ) -> PgStatus {
        PgStatus {
            data: self.data_status(),
            server: self.server_status(followers, address),
            configured: self.configured,
            archive: None,
        }
    }

    fn data_status(&self) -> DataDir {
        match &self.data {
            Data::Ready(_) if self.broken => DataDir::Unreadable {
                problem: "its control file is damaged".to_owned(),
            },
            Data::Empty => DataDir::Empty,
            Data::Unfinished(kind) => DataDir::Unfinished(*kind),
            Data::Ready(ready) => DataDir::Ready(Control {
                system_id: ready.log.id,
                state: match (ready.standby, ready.clean) {
                    (false, true) => ControlState::ShutDown,
                    (true, true) => ControlState::ShutDownInRecovery,
                    (false, false) => ControlState::InProduction,
                    (true, false) => ControlState::InArchiveRecovery,
                },
                position: ready.log.at(if ready.standby || ready.clean {
                    ready.log.end
                } else {
                    ready.checkpoint
                }),
                standby: ready.standby,
                rewindable: true,
                provisional: ready.provisional,
            }),
        }
    }

    fn server_status(
        &self,
        followers: &[(&str, Lsn)],
        address: impl Fn(usize) -> String,
    ) -> Server {
        let starting = self
            .under_way
            .as_ref()
            .is_some_and(|u| matches!(u.what, Pending::Start(_)));
        let Some(log) = self.log().filter(|_| self.is_up()) else {
            return if starting {
                Server::Busy {
                    saying: "the database system is starting up".to_owned(),
                    guarded: true,
                }
            } else {
                Server::Down
            };
        };
        if self.is_stalled() {
            return Server::Hung {
                guarded: self.guarded,
            };
        }
        let end = log.position().lsn;
        let role = match &self.state {
            State::Down => return Server::Down,
            State::Primary => Role::Primary { written: end },
            State::Standby {
                upstream,
                streaming,
            } => Role::Standby {
                received: end,
                replayed: end,
                replayed_at: None,
                paused: false,
                streaming: *streaming,
                upstream_end: None,
                upstream: upstream.map(|node| (address(node), 5432)),
            },
        };
        Server::Running(Box::new(Running {
            role,
            timeline: log.history.timeline(),
            guarded: self.guarded,
            version: 150_000,
            started: String::new(),
            pending_restart: Vec::new(),
            walsenders: followers
                .iter()
                .map(|(name, flushed)| walsender(name, *flushed))
                .collect(),
            slots: self.slots.iter().map(|s| (s.clone(), None)).collect(),
        }))
    }
}

fn walsender(name: &str, flushed: Lsn) -> Walsender {
    Walsender {
        user: "replicator".to_owned(),
        application: name.to_owned(),
        client: None,
        state: "streaming".to_owned(),
        sync_state: "async".to_owned(),
        sync_priority: 0,
        flushed: Some(flushed),
    }
}
