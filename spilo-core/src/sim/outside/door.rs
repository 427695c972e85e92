//! What a node works with: each call becomes a command, and its outcome the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::Shared;
use super::live::Live;
use crate::agent::Backends;
use crate::dcs::{
    Capabilities, Dcs, DcsError, DcsErrorKind, Expect, Key, LeaderRecord, Lease, LeaseSecret,
    RawSnapshot,
};
use crate::guard::{Deadline, Guard, GuardError, GuardErrorKind, GuardStatus};
use crate::history::History;
use crate::ids::{MemberName, OpId, Revision, SystemId};
use crate::machine::{
    Command, Event, Failure, GuardRequest, LeaseAnswer, LeaseRequest, ReadAnswer, ReadRequest,
    Ticket, WriteRequest,
};
use crate::peer::{ConsentRequest, PeerError, PeerStatus, Peers};
use crate::pg::{PgError, PgErrorKind, PgOp, PgStatus, Postgres, Progress, Upstream};
use crate::time::{Clock, NodeTime};
use crate::wal::Lsn;

/// What one life of a node's agent reaches the simulation by.
#[derive(Clone)]
pub(super) struct Door {
    shared: Arc<Shared>,
    node: usize,
    life: u64,
    me: MemberName,
}

impl Door {
    /// Opens a door for the present agent of a node.
    pub(super) fn new(shared: &Arc<Shared>, node: usize) -> Self {
        let live = shared.live();
        Self {
            shared: Arc::clone(shared),
            node,
            life: live.sim.nodes[node].life,
            me: live.sim.nodes[node].identity.name.clone(),
        }
    }

    pub(super) fn backends(&self) -> Backends {
        let door = Arc::new(self.clone());
        Backends {
            dcs: Arc::clone(&door) as _,
            postgres: Arc::clone(&door) as _,
            guard: Arc::clone(&door) as _,
            peers: Arc::clone(&door) as _,
            clock: door,
        }
    }

    /// Gives a command and returns what comes of it: nothing, ever, once this life is over.
    async fn ask(&self, command: impl FnOnce(Ticket) -> Command + Send) -> Event {
        let (_, outcome) = self.send(|number| command(Ticket(number))).await;
        Self::outcome(outcome).await
    }

    async fn send(
        &self,
        command: impl FnOnce(u64) -> Command + Send,
    ) -> (u64, oneshot::Receiver<Event>) {
        self.until_it_may_go_on().await;
        let sent = self.shared.live().send((self.node, self.life), command);
        match sent {
            Some(sent) => {
                self.shared.changed.notify_one();
                sent
            }
            None => pending().await,
        }
    }

    async fn outcome(outcome: oneshot::Receiver<Event>) -> Event {
        match outcome.await {
            Ok(event) => event,
            Err(_) => pending().await,
        }
    }

    /// The tasks of an agent that stands still do so too.
    async fn until_it_may_go_on(&self) {
        let mut paused = {
            let live = self.shared.live();
            if !live.is_paused(self.node) {
                return;
            }
            live.paused(self.node)
        };
        if paused.wait_for(|paused| !*paused).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Does something at once, unless this life is over.
    fn while_alive<T>(&self, work: impl FnOnce(&mut Live) -> T) -> Option<T> {
        let mut live = self.shared.live();
        (live.life(self.node) == Some(self.life)).then(|| work(&mut live))
    }

    async fn lease(&self, request: LeaseRequest) -> Result<LeaseAnswer, DcsError> {
        let action = match &request {
            LeaseRequest::Acquire(_) => "acquire the lock",
            LeaseRequest::Succeed(..) => "take the lock over",
            LeaseRequest::Settle => "settle",
            LeaseRequest::Renew(_) => "renew the lease",
            LeaseRequest::Release(..) => "release the lock",
            LeaseRequest::Claim(_) => "claim the initialize key",
        };
        match self.ask(|ticket| Command::Lease(ticket, request)).await {
            Event::Lease(_, result) => result.map_err(|failure| dcs_error(action, failure)),
            other => unreachable!("a request for the lease is answered by one, not by {other:?}"),
        }
    }

    async fn held(&self, request: LeaseRequest) -> Result<Lease, DcsError> {
        match self.lease(request).await? {
            LeaseAnswer::Held(lease) => {
                // Only now that it is about to be in the caller's hands does it need no settling.
                self.while_alive(|live| live.sim.nodes[self.node].forget_attempt(&lease));
                Ok(lease)
            }
            LeaseAnswer::Done => unreachable!("what takes the lock gives a lease"),
        }
    }

    async fn done(&self, request: LeaseRequest) -> Result<(), DcsError> {
        self.lease(request).await.map(|_| ())
    }

    async fn look_up(&self, request: ReadRequest) -> Result<ReadAnswer, DcsError> {
        match self.ask(|ticket| Command::Read(ticket, request)).await {
            Event::Read(_, result) => result.map_err(|failure| dcs_error("read", failure)),
            other => unreachable!("a read is answered by one, not by {other:?}"),
        }
    }

    async fn write(&self, action: &str, request: WriteRequest) -> Result<(), DcsError> {
        match self.ask(|ticket| Command::Write(ticket, request)).await {
            Event::Written(_, result) => result.map_err(|failure| dcs_error(action, failure)),
            other => unreachable!("a write is answered by one, not by {other:?}"),
        }
    }

    async fn past(&self, of: Option<Upstream>) -> Result<(SystemId, History), PgError> {
        match self.ask(|ticket| Command::ReadHistory(ticket, of)).await {
            Event::HistoryRead(_, result) => result.map_err(|f| pg_error("read the history", f)),
            other => unreachable!("a history is answered by one, not by {other:?}"),
        }
    }

    async fn guard(&self, action: &str, request: GuardRequest) -> Result<GuardStatus, GuardError> {
        match self.ask(|ticket| Command::Guard(ticket, request)).await {
            Event::Guard(_, result) => {
                let error = |f: Failure<GuardErrorKind>| GuardError::new(f.kind, action, f.text);
                result.map_err(error)
            }
            other => unreachable!("the guard answers, not {other:?}"),
        }
    }
}

#[async_trait]
impl Dcs for Door {
    fn capabilities(&self) -> Capabilities {
        let watches = self.shared.live().sim.conditions.hints;
        Capabilities {
            watches,
            ..Capabilities::new(NAME)
        }
    }

    async fn read(&self) -> Result<RawSnapshot, DcsError> {
        match self.look_up(ReadRequest::Snapshot).await? {
            ReadAnswer::Snapshot(snapshot) => Ok(*snapshot),
            other => unreachable!("a snapshot was asked for, not {other:?}"),
        }
    }

    /// The name is this node's own, whatever `_me` says.
    async fn acquire(&self, _me: &MemberName, ttl: Duration) -> Result<Lease, DcsError> {
        self.held(LeaseRequest::Acquire(ttl)).await
    }

    async fn succeed(
        &self,
        old: &LeaseSecret,
        _me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        self.held(LeaseRequest::Succeed(old.clone(), ttl)).await
    }

    async fn settle(&self) -> Result<(), DcsError> {
        self.done(LeaseRequest::Settle).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), DcsError> {
        self.done(LeaseRequest::Renew(lease.clone())).await
    }

    async fn release(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        self.done(LeaseRequest::Release(lease.clone(), record))
            .await
    }

    async fn claim_initialize(&self, lease: &Lease) -> Result<(), DcsError> {
        self.done(LeaseRequest::Claim(lease.clone())).await
    }

    async fn announce(
        &self,
        _me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        let request = WriteRequest::Announce(record, ttl);
        self.write("announce the member", request).await
    }

    /// The revision is that of the document, if nobody wrote it again before the answer came, and
    /// one that no document has otherwise.
    async fn put(&self, key: Key, value: Bytes, expect: Expect) -> Result<Revision, DcsError> {
        let request = WriteRequest::Put(key, value.clone(), expect);
        self.write("write a document", request).await?;
        let mut live = self.shared.live();
        let now = NodeTime(live.sim.now);
        let entry = live.sim.store.keys.snapshot(now).documents.remove(&key);
        let entry = entry.filter(|entry| entry.value == value);
        Ok(entry.map_or_else(Revision::default, |entry| entry.revision))
    }

    /// Nothing that a machine commands deletes a document, and so nothing here can.
    async fn delete(&self, key: Key, _expect: Expect) -> Result<(), DcsError> {
        let problem = format!("{} cannot be deleted by a node", key.path());
        let (kind, action) = (DcsErrorKind::Refused, "delete a document");
        Err(DcsError::new(NAME, kind, action, problem))
    }

    async fn lease_ended(&self, holder: &LeaderRecord) -> Result<bool, DcsError> {
        match self
            .look_up(ReadRequest::LeaseEnded(holder.clone()))
            .await?
        {
            ReadAnswer::LeaseEnded(ended) => Ok(ended),
            other => unreachable!("the end of a lease was asked for, not {other:?}"),
        }
    }

    async fn lease_left(&self, holder: &LeaderRecord) -> Result<Option<Duration>, DcsError> {
        match self.look_up(ReadRequest::LeaseLeft(holder.clone())).await? {
            ReadAnswer::LeaseLeft(left) => Ok(left),
            other => unreachable!("what is left of a lease was asked for, not {other:?}"),
        }
    }

    async fn changed(&self, since: Revision) -> Result<(), DcsError> {
        let Some(mut hints) = self.while_alive(|live| live.hints(self.node)) else {
            return pending().await;
        };
        let is_over = hints.wait_for(|told| *told > since.0).await.is_err();
        if is_over {
            return pending().await;
        }
        Ok(())
    }
}

#[async_trait]
impl Postgres for Door {
    async fn observe(&self) -> Result<PgStatus, PgError> {
        match self.ask(Command::Observe).await {
            Event::Observed(_, result) => result.map_err(|f| pg_error("look at the server", f)),
            other => unreachable!("a look is answered by one, not by {other:?}"),
        }
    }

    async fn run(&self, op: PgOp, progress: Progress) -> Result<(), PgError> {
        let kind = op.kind();
        let (number, outcome) = self.send(|number| Command::StartOp(OpId(number), op)).await;
        let _under_way = UnderWay { door: self, number };
        progress.say("it is under way");
        match Self::outcome(outcome).await {
            Event::OpEnded(_, result) => result.map_err(|f| pg_error(kind.as_str(), f)),
            other => unreachable!("an operation ends, not {other:?}"),
        }
    }

    async fn fence(&self) -> Result<(), PgError> {
        match self.ask(|_| Command::Fence).await {
            Event::Fenced(result) => result.map_err(|f| pg_error("end the server", f)),
            other => unreachable!("a fence ends, not {other:?}"),
        }
    }

    async fn history(&self) -> Result<History, PgError> {
        self.past(None).await.map(|(_, history)| history)
    }

    async fn history_of(&self, upstream: &Upstream) -> Result<(SystemId, History), PgError> {
        self.past(Some(upstream.clone())).await
    }
}

#[async_trait]
impl Guard for Door {
    async fn arm(&self, deadline: Deadline) -> Result<GuardStatus, GuardError> {
        self.guard("arm", GuardRequest::Arm(deadline)).await
    }

    async fn disarm(&self) -> Result<GuardStatus, GuardError> {
        self.guard("disarm", GuardRequest::Disarm).await
    }

    async fn status(&self) -> Result<GuardStatus, GuardError> {
        self.guard("look", GuardRequest::Look).await
    }

    async fn changed(&self) -> Result<(), GuardError> {
        let Some(stirred) = self.while_alive(|live| live.stirred(self.node)) else {
            return pending().await;
        };
        stirred.notified().await;
        Ok(())
    }
}

#[async_trait]
impl Peers for Door {
    async fn ask(&self, api_url: &str) -> Result<PeerStatus, PeerError> {
        let (me, url) = (self.me.clone(), api_url.to_owned());
        let asked = Self::ask(self, |ticket| Command::AskPeer(ticket, me, url));
        match asked.await {
            Event::PeerAnswered(_, _, answer) => {
                answer.ok_or_else(|| PeerError::new(api_url, "no answer"))
            }
            other => unreachable!("a peer answers or does not, not {other:?}"),
        }
    }

    async fn ask_consent(
        &self,
        api_url: &str,
        request: &ConsentRequest,
    ) -> Result<Option<Lsn>, PeerError> {
        let members = BTreeMap::from([(self.me.clone(), api_url.to_owned())]);
        let request = request.clone();
        let asked = Self::ask(self, |ticket| Command::AskConsent(ticket, members, request));
        match asked.await {
            Event::ConsentAnswered(_, accepted) => accepted
                .into_values()
                .next()
                .ok_or_else(|| PeerError::new(api_url, "it does not consent, or does not answer")),
            other => unreachable!("a round of questions ends, not {other:?}"),
        }
    }
}

#[async_trait]
impl Clock for Door {
    fn now(&self) -> NodeTime {
        self.shared.live().node_time(self.node)
    }

    async fn sleep_until(&self, at: NodeTime) {
        tokio::time::sleep(at.since(self.now())).await;
    }
}

/// An operation that is cancelled when nobody waits for it any more.
struct UnderWay<'a> {
    door: &'a Door,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let (node, life) = (self.door.node, self.door.life);
        let goes_on = self.door.while_alive(|live| live.forget(node, self.number));
        if goes_on == Some(true) {
            let command = Command::CancelOp(OpId(self.number));
            self.door.shared.carry_out(node, life, command);
        }
    }
}

fn dcs_error(action: &str, failure: Failure<DcsErrorKind>) -> DcsError {
    DcsError::new(NAME, failure.kind, action, failure.text)
}

fn pg_error(action: &str, failure: Failure<PgErrorKind>) -> PgError {
    PgError::new(failure.kind, action, failure.text)
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("node", &self.me)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

/// The name of the store, as it stands in messages.
const NAME: &str = "simulation";
