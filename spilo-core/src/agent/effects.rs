//! One function an effect: does what a command says and returns what came of it as an event.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Request;
use crate::dcs::{Dcs, DcsError, DcsErrorKind};
use crate::guard::{Guard, GuardError, GuardErrorKind, GuardStatus};
use crate::ids::{MemberName, OpId, Revision, SystemId};
use crate::machine::{
    Event, Failure, GuardRequest, LeaseAnswer, LeaseRequest, ReadAnswer, ReadRequest, Ticket,
    WriteRequest,
};
use crate::peer::{ConsentRequest, PeerError, Peers};
use crate::pg::{PgError, PgErrorKind, PgOp, PgOpKind, Postgres, Progress, Upstream};

pub(super) async fn lease(
    dcs: Arc<dyn Dcs>,
    me: MemberName,
    ticket: Ticket,
    request: LeaseRequest,
    limit: Duration,
) -> Event {
    let work = async {
        match &request {
            LeaseRequest::Acquire(ttl) => dcs.acquire(&me, *ttl).await.map(LeaseAnswer::Held),
            LeaseRequest::Succeed(old, ttl) => {
                dcs.succeed(old, &me, *ttl).await.map(LeaseAnswer::Held)
            }
            LeaseRequest::Settle => dcs.settle().await.map(|()| LeaseAnswer::Done),
            LeaseRequest::Renew(lease) => dcs.renew(lease).await.map(|()| LeaseAnswer::Done),
            LeaseRequest::Release(lease, record) => dcs
                .release(lease, record.clone())
                .await
                .map(|()| LeaseAnswer::Done),
            LeaseRequest::Claim(lease) => dcs
                .claim_initialize(lease)
                .await
                .map(|()| LeaseAnswer::Done),
        }
    };
    let result = store(work, limit, DcsErrorKind::Indeterminate).await;
    if let Err(failure) = &result
        && failure.kind != DcsErrorKind::Conflict
    {
        tracing::warn!("{}", failure.text);
    }
    Event::Lease(ticket, result)
}

pub(super) async fn read(
    dcs: Arc<dyn Dcs>,
    ticket: Ticket,
    request: ReadRequest,
    limit: Duration,
) -> Event {
    let work = async {
        match &request {
            ReadRequest::Snapshot => dcs.read().await.map(|s| ReadAnswer::Snapshot(Box::new(s))),
            ReadRequest::LeaseLeft(holder) => {
                dcs.lease_left(holder).await.map(ReadAnswer::LeaseLeft)
            }
            ReadRequest::LeaseEnded(holder) => {
                dcs.lease_ended(holder).await.map(ReadAnswer::LeaseEnded)
            }
        }
    };
    Event::Read(ticket, store(work, limit, DcsErrorKind::Unavailable).await)
}

pub(super) async fn write(
    dcs: Arc<dyn Dcs>,
    me: MemberName,
    ticket: Ticket,
    request: WriteRequest,
    limit: Duration,
) -> Event {
    let work = async {
        match request {
            WriteRequest::Announce(record, ttl) => dcs.announce(&me, record, ttl).await,
            WriteRequest::Put(key, value, expect) => dcs.put(key, value, expect).await.map(|_| ()),
        }
    };
    Event::Written(
        ticket,
        store(work, limit, DcsErrorKind::Indeterminate).await,
    )
}

pub(super) async fn observe(postgres: Arc<dyn Postgres>, ticket: Ticket) -> Event {
    let result = match timeout(OBSERVE, postgres.observe()).await {
        Ok(result) => result.map_err(|error| pg_failure(&error)),
        Err(_) => Err(Failure::new(
            PgErrorKind::Retry,
            "looking at PostgreSQL took too long",
        )),
    };
    Event::Observed(ticket, result)
}

pub(super) async fn history(
    postgres: Arc<dyn Postgres>,
    ticket: Ticket,
    of: Option<Upstream>,
    own: Option<SystemId>,
) -> Event {
    let work = async {
        match &of {
            Some(upstream) => postgres.history_of(upstream).await,
            None => postgres
                .history()
                .await
                .map(|h| (own.unwrap_or(SystemId(0)), h)),
        }
    };
    let result = match timeout(HISTORY, work).await {
        Ok(result) => result.map_err(|error| pg_failure(&error)),
        Err(_) => Err(Failure::new(
            PgErrorKind::Retry,
            "reading the history took too long",
        )),
    };
    Event::HistoryRead(ticket, result)
}

pub(super) async fn operation(
    postgres: Arc<dyn Postgres>,
    id: OpId,
    op: PgOp,
    stopped: oneshot::Receiver<()>,
) -> Event {
    let kind: PgOpKind = op.kind();
    let progress = Progress::to(move |line| tracing::info!("{kind}: {line}"));
    // What has ended ended as it did, although somebody stops it in the same moment.
    let result = tokio::select! {
        biased;
        result = postgres.run(op, progress) => result.map_err(|error| pg_failure(&error)),
        Ok(()) = stopped => Err(Failure::new(PgErrorKind::Retry, format!("{kind} was stopped"))),
    };
    match &result {
        Ok(()) => tracing::info!("{kind} is done"),
        Err(failure) => tracing::warn!("{}", failure.text),
    }
    Event::OpEnded(id, result)
}

pub(super) async fn fence(postgres: Arc<dyn Postgres>) -> Event {
    let result = postgres.fence().await.map_err(|error| pg_failure(&error));
    match &result {
        Ok(()) => tracing::warn!("the server was ended: no process of it is left"),
        Err(failure) => tracing::error!("{}", failure.text),
    }
    Event::Fenced(result)
}

pub(super) async fn guard(guard: Arc<dyn Guard>, ticket: Ticket, request: GuardRequest) -> Event {
    let work = async {
        match request {
            GuardRequest::Arm(deadline) => guard.arm(deadline).await,
            GuardRequest::Disarm => guard.disarm().await,
            GuardRequest::Look => guard.status().await,
        }
    };
    let result: Result<GuardStatus, GuardError> = match timeout(GUARD, work).await {
        Ok(result) => result,
        Err(_) => Err(GuardError::new(
            GuardErrorKind::Silent,
            "answer",
            "it did not in two seconds",
        )),
    };
    if let Err(error) = &result {
        tracing::warn!("{error}");
    }
    Event::Guard(
        ticket,
        result.map_err(|error| Failure::new(error.kind(), error.to_string())),
    )
}

/// Why each member that did not answer when it was last asked did not.
pub(super) type Silences = Arc<Mutex<BTreeMap<MemberName, String>>>;

pub(super) async fn ask(
    peers: Arc<dyn Peers>,
    silences: Silences,
    ticket: Ticket,
    name: MemberName,
    url: String,
) -> Event {
    let answer = match timeout(PEER, peers.ask(&url)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(PeerError::new(url, format!("no answer within {PEER:?}")).to_string()),
    };
    let mut silences = silences.lock().unwrap_or_else(PoisonError::into_inner);
    match &answer {
        Ok(_) => drop(silences.remove(&name)),
        // It is asked again and again, and the reason said when it is another one.
        Err(why) if silences.get(&name) != Some(why) => {
            tracing::warn!("{name} does not answer: {why}");
            silences.insert(name.clone(), why.clone());
        }
        Err(_) => {}
    }
    Event::PeerAnswered(ticket, name, answer.ok())
}

pub(super) async fn consent(
    peers: Arc<dyn Peers>,
    ticket: Ticket,
    members: BTreeMap<MemberName, String>,
    request: ConsentRequest,
    limit: Duration,
) -> Event {
    let mut questions = JoinSet::new();
    for (name, url) in members {
        let (peers, request) = (Arc::clone(&peers), request.clone());
        questions.spawn(async move {
            let answer = timeout(limit, peers.ask_consent(&url, &request)).await;
            (name, answer)
        });
    }
    let mut accepted = BTreeMap::new();
    while let Some(answer) = questions.join_next().await {
        match answer {
            Ok((name, Ok(Ok(lsn)))) => {
                accepted.insert(name, lsn);
            }
            Ok((name, Ok(Err(error)))) => tracing::warn!("{name} does not consent: {error}"),
            Ok((name, Err(_))) => tracing::warn!("{name} does not answer the question for consent"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Event::ConsentAnswered(ticket, accepted)
}

/// Passes hints of the store on, for as long as the agent runs.
pub(super) async fn watch_store(
    dcs: Arc<dyn Dcs>,
    mut revision: watch::Receiver<Revision>,
    events: mpsc::Sender<Request>,
) {
    loop {
        let since = *revision.borrow_and_update();
        if dcs.changed(since).await.is_err() {
            sleep(HINT_PAUSE).await;
            continue;
        }
        if events.send(Request::Event(Event::Changed)).await.is_err() {
            return;
        }
        // The next hint is worth waiting for only from the revision that this one leads to; one
        // that leads nowhere must not spin.
        if let Ok(Err(_)) = timeout(HINT_PAUSE, revision.changed()).await {
            return;
        }
    }
}

/// Passes hints of the guard on, for as long as the agent runs.
pub(super) async fn watch_guard(guard: Arc<dyn Guard>, events: mpsc::Sender<Request>) {
    loop {
        let failed = guard.changed().await.is_err();
        if events
            .send(Request::Event(Event::ServerChanged))
            .await
            .is_err()
        {
            return;
        }
        sleep(if failed {
            HINT_PAUSE
        } else {
            Duration::from_millis(5)
        })
        .await;
    }
}

async fn store<T>(
    work: impl Future<Output = Result<T, DcsError>>,
    limit: Duration,
    when_late: DcsErrorKind,
) -> Result<T, Failure<DcsErrorKind>> {
    match timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::new(error.kind(), told(&error))),
        Err(_) => {
            let text = format!("the store did not answer within {limit:?}");
            Err(Failure::new(when_late, text))
        }
    }
}

fn pg_failure(error: &PgError) -> Failure<PgErrorKind> {
    Failure::new(error.kind(), told(error))
}

/// The error with its causes, as one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// More than an observation may take by its contract.
const OBSERVE: Duration = Duration::from_secs(4);

const HISTORY: Duration = Duration::from_secs(5);

/// Twice what a guard may take for one request: a dead one may have to be replaced first.
const GUARD: Duration = Duration::from_secs(2);

const PEER: Duration = Duration::from_secs(2);

const HINT_PAUSE: Duration = Duration::from_millis(300);
