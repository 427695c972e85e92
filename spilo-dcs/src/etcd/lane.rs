//! One stream of requests, over whichever endpoint answers.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, Error, GetResponse, LeaseGrantResponse, ResponseHeader, TxnResponse};
use spilo_core::DcsError;
use spilo_core::dcs::DcsErrorKind;
use tokio::time::Instant;

use super::NAME;
use super::connect::Connector;
use super::endpoints::Known;
use super::failure::{Verdict, judge, judge_connecting, text};
use super::seen::Seen;

/// A connection of its own to each endpoint, used one at a time.
///
/// The endpoint that answered last is asked first. One that did not answer is connected to anew
/// the next time, since a connection to a host that vanished looks alive for minutes.
pub(super) struct Lane {
    connector: Arc<Connector>,
    seen: Arc<Seen>,
    /// By URL.
    clients: Mutex<HashMap<String, Client>>,
    preferred: Mutex<Option<String>>,
}

/// A request in words and in time.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// What it is to do, in the infinitive.
    pub(super) action: String,
    /// When it must be over, all endpoints together.
    pub(super) deadline: Instant,
    pub(super) effect: Effect,
}

/// What a request does when it is sent again after its outcome was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changes nothing.
    Read,
    /// Sent twice, it does what it does once, and its answer tells so.
    Repeatable,
    /// Sent twice, its second answer may hide what the first one did.
    Once,
}

/// An answer that may say which state of etcd it comes from.
pub(super) trait Answer {
    /// Returns the state, if it must not be older than what was seen before.
    fn header(&self) -> Option<&ResponseHeader>;

    /// Returns whether its revision must not be older either. Of what no key is read or written
    /// for, a member may answer before it has caught up.
    fn is_of_keys(&self) -> bool {
        true
    }
}

/// A call in flight.
pub(super) type Sent<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// A request that failed at one endpoint.
struct Failed {
    verdict: Verdict,
    problem: String,
    source: Option<Error>,
}

impl Lane {
    pub(super) fn new(connector: Arc<Connector>, seen: Arc<Seen>) -> Self {
        Self {
            connector,
            seen,
            clients: Mutex::default(),
            preferred: Mutex::default(),
        }
    }

    /// Sends a request to one endpoint after another until one answers, or none is left, or it
    /// must not be sent again.
    ///
    /// # Errors
    /// `Conflict` only where the request names a lease that does not exist.
    ///
    /// # Cancellation
    /// Safe; what was sent may be done.
    pub(super) async fn call<'a, T: Answer>(
        &'a self,
        request: &Request,
        send: impl Fn(Client) -> Sent<'a, T> + Send + Sync,
    ) -> Result<T, DcsError> {
        let endpoints = self.connector.endpoints();
        let may_probe = request.effect == Effect::Read;
        let known = endpoints.known(request.deadline, may_probe).await;
        let known = known.map_err(|problem| request.error(DcsErrorKind::Unavailable, problem))?;
        self.forget_others(&known);
        let mut maybe_done = false;
        let mut only_not_here = true;
        let mut last = None;
        let preferred = held(&self.preferred).clone();
        for (n, url) in known.in_order(preferred.as_deref()).enumerate() {
            let left = request.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // A frozen endpoint must leave time for another; a third, since a quorum of etcd
            // seldom has more than two members in trouble.
            let untried = u32::try_from(known.urls.len() - n)
                .unwrap_or(u32::MAX)
                .min(3);
            let share = left / untried;
            let times = match request.effect {
                // As long as nothing is sent, another endpoint may do it; after that, none may.
                Effect::Once => (share, left),
                Effect::Read | Effect::Repeatable => (share, share),
            };
            let mut trial = Trial {
                lane: self,
                then: known.after(url),
            };
            let failed = match self.attempt(url, times, &send).await {
                Ok(answer) => {
                    trial.then = url;
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            drop(trial);
            endpoints.failed();
            let verdict = failed.verdict;
            tracing::debug!(action = request.action, ?verdict, problem = failed.problem);
            let lost = matches!(verdict, Verdict::Unknown | Verdict::Foreign);
            maybe_done |= lost && request.effect != Effect::Read;
            let stop = match verdict {
                Verdict::Refused | Verdict::StaleToken | Verdict::LeaseGone => true,
                Verdict::Unknown | Verdict::Foreign => request.effect == Effect::Once,
                Verdict::NotDone | Verdict::NotHere => false,
            };
            only_not_here &= verdict == Verdict::NotHere;
            last = Some(failed);
            if stop {
                break;
            }
        }
        if let Some(last) = last.as_mut().filter(|_| !only_not_here) {
            // Another endpoint may do it soon.
            last.verdict = match last.verdict {
                Verdict::NotHere => Verdict::NotDone,
                verdict => verdict,
            };
        }
        Err(request.failed(last, maybe_done))
    }

    /// Sends a request to one endpoint; a second time with a new login, if only that was wrong.
    async fn attempt<'a, T: Answer>(
        &'a self,
        url: &str,
        (connecting, all): (Duration, Duration),
        send: &(impl Fn(Client) -> Sent<'a, T> + Sync),
    ) -> Result<T, Failed> {
        let deadline = Instant::now() + all;
        match self.attempt_once(url, connecting, deadline, send).await {
            Err(failed) if failed.verdict == Verdict::StaleToken => {
                let connecting = connecting.min(deadline.saturating_duration_since(Instant::now()));
                self.attempt_once(url, connecting, deadline, send).await
            }
            result => result,
        }
    }

    async fn attempt_once<'a, T: Answer>(
        &'a self,
        url: &str,
        connecting: Duration,
        deadline: Instant,
        send: &(impl Fn(Client) -> Sent<'a, T> + Sync),
    ) -> Result<T, Failed> {
        let connected = tokio::time::timeout(connecting, self.client(url, connecting)).await;
        let client = match connected {
            Ok(Ok(client)) => client,
            Ok(Err(failed)) => return Err(failed),
            Err(_) => return Err(silent(url, Verdict::NotDone, connecting)),
        };
        let floor = self.seen.floor();
        let time = deadline.saturating_duration_since(Instant::now());
        let answer = match tokio::time::timeout_at(deadline, send(client)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let mut verdict = judge(&error);
                if verdict == Verdict::LeaseGone {
                    // A kept client connects again by itself, to whoever is there by now, and who
                    // knows no lease of ours may know none because of that.
                    let asked = tokio::time::timeout_at(deadline, Box::pin(self.check_kept(url)));
                    verdict = match asked.await {
                        Ok(Ok(())) => Verdict::LeaseGone,
                        Ok(Err(failed)) if failed.verdict == Verdict::NotHere => Verdict::Foreign,
                        _ => Verdict::Unknown,
                    };
                }
                if verdict != Verdict::LeaseGone {
                    held(&self.clients).remove(url);
                }
                return Err(failed(url, verdict, error));
            }
            Err(_) => {
                held(&self.clients).remove(url);
                return Err(silent(url, Verdict::Unknown, time));
            }
        };
        if let Err((verdict, problem)) = self.seen.check_answer(floor, &answer) {
            let problem = format!("{url}: {problem}");
            return Err(Failed {
                verdict,
                problem,
                source: None,
            });
        }
        // What says nothing of itself may be anybody's.
        if answer.header().is_some() {
            self.connector.endpoints().answered(url);
        }
        Ok(answer)
    }

    /// Lets go of the connections: the next request logs in anew.
    ///
    /// Etcd refuses a watch with a token that it does not know any more by cancelling it, and not by
    /// an error of the request.
    pub(super) fn disconnect(&self) {
        held(&self.clients).clear();
    }

    async fn client(&self, url: &str, time: Duration) -> Result<Client, Failed> {
        let kept = held(&self.clients).get(url).cloned();
        if let Some(client) = kept {
            return Ok(client);
        }
        // On the heap: it takes 16 KiB, which no renewal should carry along.
        let connected = Box::pin(self.connector.connect(url, time)).await;
        let client = connected.map_err(|error| failed(url, judge_connecting(&error), error))?;
        // Before a request is sent that another etcd might do.
        Box::pin(self.check_who(url, &client)).await?;
        held(&self.clients).insert(url.to_owned(), client.clone());
        Ok(client)
    }

    async fn check_kept(&self, url: &str) -> Result<(), Failed> {
        let kept = held(&self.clients).get(url).cloned();
        match kept {
            Some(client) => self.check_who(url, &client).await,
            None => Ok(()),
        }
    }

    /// Checks that the etcd at the other end is the one that all earlier answers came from.
    async fn check_who(&self, url: &str, client: &Client) -> Result<(), Failed> {
        if self.seen.is_new() {
            return Ok(());
        }
        let asked = self.connector.who(client).await;
        let header = asked.map_err(|error| failed(url, judge_connecting(&error), error))?;
        if header.is_some_and(|header| self.seen.is_foreign(&header)) {
            return Err(Failed {
                verdict: Verdict::NotHere,
                problem: format!("{url}: it belongs to another etcd cluster"),
                source: None,
            });
        }
        Ok(())
    }

    fn prefer(&self, url: &str) {
        let mut preferred = held(&self.preferred);
        if preferred.as_deref() != Some(url) {
            *preferred = Some(url.to_owned());
        }
    }

    /// Closes connections to what is not known as an endpoint any more.
    fn forget_others(&self, known: &Known) {
        held(&self.clients).retain(|url, _| known.urls.contains(url));
    }
}

/// A request to an endpoint; where it is dropped without an answer the next request goes to another
/// one: a caller who waits for a shorter time than the endpoint may take would ask it for ever.
struct Trial<'a> {
    lane: &'a Lane,
    then: &'a str,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.lane.prefer(self.then);
    }
}

fn failed(url: &str, verdict: Verdict, error: Error) -> Failed {
    Failed {
        verdict,
        problem: format!("{url}: {}", text(&error)),
        source: Some(error),
    }
}

fn silent(url: &str, verdict: Verdict, time: Duration) -> Failed {
    Failed {
        verdict,
        problem: format!("{url}: no answer within {time:?}"),
        source: None,
    }
}

impl Request {
    /// Returns what is left of the request's time to do something else.
    pub(super) fn then(&self, action: impl Into<String>, effect: Effect) -> Self {
        Self {
            action: action.into(),
            deadline: self.deadline,
            effect,
        }
    }

    pub(super) fn error(&self, kind: DcsErrorKind, problem: impl Into<String>) -> DcsError {
        DcsError::new(NAME, kind, &self.action, problem)
    }

    fn failed(&self, last: Option<Failed>, maybe_done: bool) -> DcsError {
        let Some(Failed {
            verdict,
            problem,
            source,
        }) = last
        else {
            return self.error(DcsErrorKind::Unavailable, "there was no time left");
        };
        let kind = match verdict {
            // Whatever an earlier try did has gone with the lease.
            Verdict::LeaseGone => DcsErrorKind::Conflict,
            _ if maybe_done => DcsErrorKind::Indeterminate,
            Verdict::Refused | Verdict::StaleToken | Verdict::NotHere | Verdict::Foreign => {
                DcsErrorKind::Refused
            }
            Verdict::NotDone | Verdict::Unknown => DcsErrorKind::Unavailable,
        };
        let error = self.error(kind, problem);
        match source {
            Some(source) => error.because(source),
            None => error,
        }
    }
}

impl Answer for GetResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        Self::header(self)
    }
}

impl Answer for TxnResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        Self::header(self)
    }
}

impl Answer for LeaseGrantResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        Self::header(self)
    }
}

/// Locks, and goes on after a panic elsewhere: each change under these locks is whole.
pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
