//! Stopping the primary so that a standby has everything.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use spilo_core::MemberName;
use spilo_core::pg::{ControlState, PgError, PgErrorKind, Postgres as _, Progress};
use spilo_core::wal::Lsn;
use tokio::time::{Instant, sleep};

use super::disk;
use super::observe::is_primary;
use super::sql::Session;
use super::{LocalPostgres, failed_query, refused, retry};

/// A connection that streams the log, as it was just before the stop.
struct Streamer {
    pid: i32,
    name: String,
    user: String,
    streaming: bool,
    flushed: Lsn,
}

/// Processes whose streams a stop need not wait for.
#[derive(Debug, Default)]
struct Dispensable {
    /// Of programs that take the log, and of members where another one is to have it.
    others: BTreeSet<i32>,
    /// Of members, any of which may yet have it in time.
    laggards: BTreeSet<i32>,
    /// Of the candidate, or without one of those that are level: one of them may be dead and not
    /// have been missed yet.
    level: BTreeSet<i32>,
    /// How long these may take to have the shutdown record.
    patience: Duration,
    /// Since when that record is written.
    recorded: Option<Instant>,
    /// When they were last told to end.
    told: Option<Instant>,
    /// When the archiving that outlasts them was last told to end.
    archiving_told: Option<Instant>,
}

impl LocalPostgres {
    /// Checkpoints while serving, waits until a standby is level, then stops cleanly.
    pub(super) async fn hand_over(
        &self,
        candidate: Option<&MemberName>,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let action = "hand over";
        let session = self.session(action).await?;
        if !is_primary(&session)
            .await
            .map_err(|error| failed_query(action, error))?
        {
            return Err(refused(action, "the server is not a primary"));
        }
        progress.say("checkpoint");
        self.flush().await?;
        progress.say("waiting for a standby to be level");
        let streamers = self.wait_level(action, &session, candidate).await?;
        drop(session);
        progress.say("stopping the server");
        self.signal_stop().await?;
        let streams = Arc::new(Mutex::new(self.dispensable(&streamers, candidate)));
        let since = Instant::now();
        self.wait_for_end(|| async {
            self.release(since, Arc::clone(&streams)).await;
            self.end_archiving(&streams).await;
        })
        .await?;
        let control = self.blocking(action, |options| Ok(disk::read_control(options)));
        match control.await? {
            Ok(control) if control.state == ControlState::ShutDown => Ok(()),
            Ok(control) => {
                let state = control.state;
                Err(retry(
                    action,
                    format!("the server ended and was not shut down: {state:?}"),
                ))
            }
            Err(problem) => Err(retry(action, problem.to_string())),
        }
    }

    /// Waits until the candidate, or any member, has flushed what this server had written a
    /// moment ago.
    async fn wait_level(
        &self,
        action: &str,
        session: &Session,
        candidate: Option<&MemberName>,
    ) -> Result<Vec<Streamer>, PgError> {
        let begun = Instant::now();
        let mut written: VecDeque<(Instant, Lsn)> = VecDeque::new();
        let mut best: Option<(String, Lsn)> = None;
        while begun.elapsed() < LEVEL_LIMIT {
            let (now, streamers) = read(session)
                .await
                .map_err(|problem| retry(action, problem))?;
            written.push_back((Instant::now(), now));
            written.retain(|(at, _)| at.elapsed() <= WINDOW);
            let level = written.front().map_or(now, |(_, lsn)| *lsn);
            let mut able = streamers.iter().filter(|streamer| match candidate {
                Some(candidate) => streamer.name == candidate.as_str(),
                None => self.is_members(streamer),
            });
            if able
                .any(|s| s.streaming && (s.flushed >= level || now.bytes_past(s.flushed) <= CLOSE))
            {
                return Ok(streamers);
            }
            let furthest = streamers.iter().max_by_key(|streamer| streamer.flushed);
            best = furthest.map(|streamer| (streamer.name.clone(), streamer.flushed));
            sleep(POLL).await;
        }
        let who = candidate.map_or_else(|| "a member".to_owned(), ToString::to_string);
        let problem = match best {
            None => format!("{who} is not streaming; nobody is"),
            Some((name, flushed)) => format!(
                "{who} did not get level within {LEVEL_LIMIT:?}; the furthest is {name} at {flushed}"
            ),
        };
        Err(PgError::new(PgErrorKind::NotLevel, action, problem))
    }

    /// Returns whether it can be a member's walreceiver, and not a program that takes the log.
    fn is_members(&self, streamer: &Streamer) -> bool {
        streamer.user == self.options.replication.username
            && !matches!(
                streamer.name.as_str(),
                "pg_basebackup" | "pg_receivewal" | ""
            )
    }

    /// Sorts the streams by how long the stop waits for them: those of programs, and of members
    /// that are not the candidate, or without one lag behind the furthest one, come before those
    /// that are level.
    fn dispensable(&self, streamers: &[Streamer], candidate: Option<&MemberName>) -> Dispensable {
        let members = streamers
            .iter()
            .filter(|streamer| self.is_members(streamer));
        let furthest = members
            .map(|member| member.flushed)
            .max()
            .unwrap_or_default();
        let mut dispensable = Dispensable {
            patience: match candidate {
                Some(_) => CANDIDATE_LIMIT,
                None => RECORD_LIMIT,
            },
            ..Dispensable::default()
        };
        for streamer in streamers {
            let keep = match candidate {
                Some(candidate) => streamer.name == candidate.as_str(),
                None => self.is_members(streamer) && furthest.bytes_past(streamer.flushed) <= CLOSE,
            };
            let among = if keep {
                &mut dispensable.level
            } else if candidate.is_none() && self.is_members(streamer) {
                &mut dispensable.laggards
            } else {
                &mut dispensable.others
            };
            among.insert(streamer.pid);
        }
        dispensable
    }

    /// Ends the streams that the stop need not wait for, once the shutdown record is written, and
    /// after a while all others: who has everything is asked for later.
    ///
    /// A stopping server waits until each of its walsenders has delivered everything, also to a
    /// pg_receivewal that is stuck and to a member whose machine is dead; and before it writes that
    /// record, until each has at least sent what was under way.
    async fn release(&self, since: Instant, streams: Arc<Mutex<Dispensable>>) {
        let is_late = since.elapsed() >= RECORD_LIMIT;
        let locked = || streams.lock().unwrap_or_else(PoisonError::into_inner);
        if locked().told.is_some_and(|at| at.elapsed() < TOLD_AGAIN) {
            return;
        }
        let mut ends = locked().others.clone();
        if is_late {
            ends.extend(&locked().laggards);
        } else if ends.is_empty() {
            return;
        }
        let shut_down = self.blocking("hand over", |options| {
            Ok(disk::read_control(options).is_ok_and(|c| c.state == ControlState::ShutDown))
        });
        if shut_down.await.unwrap_or(false) {
            let mut streams = locked();
            let recorded = *streams.recorded.get_or_insert_with(Instant::now);
            if recorded.elapsed() >= streams.patience {
                ends.extend(&streams.level);
            }
        } else if !is_late {
            return;
        }
        if ends.is_empty() {
            return;
        }
        locked().told = Some(Instant::now());
        let Ok(alive) = self.eye.processes().await else {
            return;
        };
        for pid in ends {
            if alive.contains(&pid.unsigned_abs())
                && let Some(target) = Pid::from_raw(pid)
            {
                // A process that has ended by itself is what was wanted.
                let _gone = kill_process(target, Signal::TERM);
            }
        }
    }
}

impl LocalPostgres {
    /// Ends the archiving that a stopped server goes on with, a file at a time and for as long as
    /// each takes: nothing is written any more, and nobody may lead before the server is gone. What
    /// is left is archived when the server runs again, or by the standbys.
    async fn end_archiving(&self, streams: &Mutex<Dispensable>) {
        let (stopped, streamers) = {
            let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
            if streams
                .archiving_told
                .is_some_and(|at| at.elapsed() < TOLD_AGAIN)
            {
                return;
            }
            streams.archiving_told = Some(Instant::now());
            let all = streams.others.iter().chain(&streams.laggards);
            let all: BTreeSet<i32> = all.chain(&streams.level).copied().collect();
            (streams.recorded, all)
        };
        let Some(stopped) = stopped else { return };
        let Ok(alive) = self.eye.processes().await else {
            return;
        };
        let alive = alive.iter().filter_map(|pid| i32::try_from(*pid).ok());
        let alive: Vec<i32> = alive.collect();
        if alive.is_empty() || alive.iter().any(|pid| streamers.contains(pid)) {
            return;
        }
        if stopped.elapsed() >= ARCHIVE_LIMIT {
            let waited = stopped.elapsed();
            tracing::warn!(
                ?waited,
                "the stopped server still archives and is ended: what it leaves is archived later"
            );
            if let Err(error) = self.fence().await {
                tracing::warn!(%error, "it is not ended");
            }
            return;
        }
        for pid in alive.into_iter().filter(|pid| is_archiver(*pid)) {
            if let Some(target) = Pid::from_raw(pid) {
                // It begins with no other file; one that has ended by itself is what was wanted.
                let _gone = kill_process(target, Signal::TERM);
            }
        }
    }
}

/// Reports whether a process is PostgreSQL's archiver, by the title that it gives itself.
fn is_archiver(pid: i32) -> bool {
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&title);
    title.starts_with("postgres: ") && title.contains("archiver")
}

async fn read(session: &Session) -> Result<(Lsn, Vec<Streamer>), String> {
    let rows = session
        .rows(STREAMS, ANSWER)
        .await
        .map_err(|error| error.to_string())?;
    let mut written = Lsn::default();
    let mut streamers = Vec::new();
    for row in &rows {
        let text = |column: usize| row.get(column).unwrap_or_default();
        written = text(0).parse().map_err(|error| format!("{error}"))?;
        if let Ok(pid) = text(1).parse() {
            streamers.push(Streamer {
                pid,
                name: text(2).to_owned(),
                user: text(3).to_owned(),
                streaming: text(4) == "streaming",
                flushed: text(5).parse().unwrap_or_default(),
            });
        }
    }
    Ok((written, streamers))
}

const STREAMS: &str = "SELECT pg_current_wal_flush_lsn(), s.pid, s.application_name, s.usename, \
     s.state, s.flush_lsn FROM (SELECT 1) AS one LEFT JOIN pg_stat_replication AS s ON true";
const POLL: Duration = Duration::from_millis(10);
/// How long a standby may take to get level before the hand-over is given up.
const LEVEL_LIMIT: Duration = Duration::from_secs(10);
/// A standby that has what was written this long ago needs about as long for the rest.
const WINDOW: Duration = Duration::from_millis(250);
/// What is sent within a few milliseconds over any network that a cluster runs on.
const CLOSE: u64 = 64 << 10;
const ANSWER: Duration = Duration::from_secs(2);
/// How long a server whose clients are gone, and whose pages were written just before, may take to
/// write its shutdown record, and a member to take it.
const RECORD_LIMIT: Duration = Duration::from_secs(1);
/// How long the candidate may take for it: it was level a moment before, and nobody else may lead.
const CANDIDATE_LIMIT: Duration = Duration::from_secs(3);
/// How long after the shutdown record a file that is being archived may take, once no stream is left.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(5);
/// A process that is told to end says goodbye first, and waits for a receiver that is stuck until it
/// is told once more.
const TOLD_AGAIN: Duration = Duration::from_millis(100);
