//! The lock and its lease.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, Error, KeyValue, LeaseGrantOptions, LeaseGrantResponse,
    LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveResponse, PutOptions, ResponseHeader, Txn,
    TxnOp, TxnOpResponse, TxnResponse,
};
use spilo_core::dcs::{DcsErrorKind, Key, LeaderRecord, Lease, LeaseSecret};
use spilo_core::{DcsError, Epoch, MemberName};
use tokio::time::timeout;

use super::Etcd;
use super::documents::{revision, transact};
use super::failure::LEASE_NOT_FOUND;
use super::lane::{Answer, Effect, Lane, Request, held};

/// Ids of leases, and which of them nobody may know of.
#[derive(Debug)]
pub(super) struct LeaseIds {
    chance: RandomState,
    count: AtomicU64,
    /// Ids of leases that a leader key may hang on and that the caller does not know of. An id is in
    /// here before the key is sent, so that it is known even when the future that sent it is
    /// dropped.
    unsettled: Mutex<BTreeSet<i64>>,
}

/// The stream that a lease is renewed on.
pub(super) struct KeepAlive {
    lease_id: i64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    /// What the latest answer came with. A leader of etcd that was deposed and does not know goes
    /// on renewing leases, which end all the same; its term gives it away.
    header: Option<ResponseHeader>,
}

/// A [`LeaseSecret`] in etcd's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secret {
    pub(super) lease_id: i64,
    pub(super) epoch: Epoch,
}

/// What an answer is when its state of etcd does not matter.
pub(super) struct Unchecked<T>(pub(super) T);

/// What an answer is of which only the etcd matters that it comes from.
struct Of<T>(Option<ResponseHeader>, T);

impl Etcd {
    pub(super) async fn acquire_lock(
        &self,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let request = self.request("acquire the lock", Effect::Repeatable);
        let free = Compare::create_revision(self.keys.leader(), CompareOp::Equal, 0);
        let lease = self
            .take(&request, vec![free], me, ttl, "somebody holds it")
            .await?;
        self.ids.settled(&lease);
        Ok(lease)
    }

    pub(super) async fn succeed_lock(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let request = self.request("take the lock over", Effect::Repeatable);
        let problem = "it is not held by the lease that it is to be taken over from";
        let Some(old) = Secret::parse(old) else {
            return Err(request.error(DcsErrorKind::Conflict, problem));
        };
        let lease = self
            .take(&request, self.held_by(old), me, ttl, problem)
            .await?;
        // The key hangs on the new lease now, so this takes along only what is left of the old
        // one: a claim to initialize. It ends by itself if this fails.
        let revoke = request.then("revoke the old lease", Effect::Repeatable);
        // A caller that gives up meanwhile would have the new one revoked as well.
        let tidying = timeout(TIDYING, self.revoke(&revoke, old.lease_id));
        if !matches!(tidying.await, Ok(Ok(()))) {
            tracing::debug!("the old lease is left to end by itself");
        }
        // Not before the last await point: the caller has not got the lease yet, and whoever drops
        // this future must be able to settle it.
        self.ids.settled(&lease);
        Ok(lease)
    }

    pub(super) async fn settle_leases(&self) -> Result<(), DcsError> {
        let request = self.request("settle an abandoned lease", Effect::Repeatable);
        for id in self.ids.unsettled() {
            self.revoke(&request, id).await?;
            self.ids.forget(id);
        }
        Ok(())
    }

    pub(super) async fn renew_lease(&self, lease: &Lease) -> Result<(), DcsError> {
        let request = self.request("renew the lease", Effect::Repeatable);
        let Some(secret) = Secret::parse(&lease.secret) else {
            return Err(request.error(DcsErrorKind::Conflict, "the lease is not one of etcd"));
        };
        match self.renew_once(&request, secret.lease_id).await {
            Err(ended) if ended.kind() == DcsErrorKind::Conflict => {
                // A leader of etcd that has not applied a grant yet says so of the new lease.
                let id = secret.lease_id;
                match self.look_up_lease(id, secret.epoch).await? {
                    Some(lease) if lease.granted_ttl() > 0 => {
                        let problem = "etcd said that the lease has ended, and it has not";
                        Err(request.error(DcsErrorKind::Indeterminate, problem))
                    }
                    Some(_) | None => Err(ended),
                }
            }
            renewed => renewed,
        }
    }

    async fn renew_once(&self, request: &Request, lease_id: i64) -> Result<(), DcsError> {
        // Taken out while it is in use: a renewal that is dropped half-way takes the stream with
        // it, so an answer can never be taken for that of a later request.
        let kept = held(&self.keep_alive)
            .take()
            .filter(|kept| kept.lease_id == lease_id);
        if let Some(kept) = kept {
            // A frozen endpoint must leave time for the others.
            let share = self.connector.request_timeout() / 3;
            let floor = self.seen.floor();
            match timeout(share, kept.renew()).await {
                Ok(Ok(Some(kept))) => match self.seen.check_answer(floor, &kept) {
                    Ok(()) => {
                        *held(&self.keep_alive) = Some(kept);
                        return Ok(());
                    }
                    Err((_, problem)) => tracing::debug!(problem, "the renewal does not count"),
                },
                Ok(Ok(None)) => {
                    return Err(request.error(DcsErrorKind::Conflict, "the lease has ended"));
                }
                Ok(Err(error)) => tracing::debug!(%error, "the stream of renewals broke"),
                Err(_) => tracing::debug!("the stream of renewals is silent"),
            }
        }
        let kept = self
            .lease_lane
            .call(request, |client| {
                Box::pin(KeepAlive::begin(client, lease_id))
            })
            .await?;
        *held(&self.keep_alive) = Some(kept);
        Ok(())
    }

    pub(super) async fn release_lock(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        let request = self.request("release the lock", Effect::Repeatable);
        let problem = "it is not held by this lease";
        let Some(secret) = Secret::parse(&lease.secret) else {
            return Err(request.error(DcsErrorKind::Conflict, problem));
        };
        let key = self.keys.document(Key::Release);
        let txn = Txn::new()
            .when(self.held_by(secret))
            .and_then([
                TxnOp::delete(self.keys.leader(), None),
                TxnOp::put(key.as_str(), Vec::from(record.clone()), None),
            ])
            .or_else([TxnOp::get(key, None)]);
        let answer = transact(&self.lease_lane, &request, txn).await?;
        if !answer.succeeded() {
            // An earlier try of this very request may have done it.
            let done = found(&answer, |kv| {
                kv.value() == record && revision(kv.mod_revision()).0 > secret.epoch.0
            });
            if done.is_none() {
                return Err(request.error(DcsErrorKind::Conflict, problem));
            }
        }
        *held(&self.keep_alive) = None;
        let revoke = request.then("revoke the lease", Effect::Repeatable);
        if let Err(error) = self.revoke(&revoke, secret.lease_id).await {
            tracing::debug!(%error, "the lease is left to end by itself");
        }
        Ok(())
    }

    pub(super) async fn has_lease_ended(&self, holder: &LeaderRecord) -> Result<bool, DcsError> {
        // A lease that has run out and is not yet revoked still has the time that it was granted
        // for, and its keys.
        let looked_up = self.look_up(holder).await?;
        Ok(looked_up.is_some_and(|lease| lease.ttl() < 0 && lease.granted_ttl() == 0))
    }

    pub(super) async fn time_left(
        &self,
        holder: &LeaderRecord,
    ) -> Result<Option<Duration>, DcsError> {
        let looked_up = self.look_up(holder).await?;
        let lives = looked_up.filter(|lease| lease.granted_ttl() > 0);
        Ok(lives.map(|lease| Duration::from_secs(u64::try_from(lease.ttl()).unwrap_or(0))))
    }

    async fn look_up(
        &self,
        holder: &LeaderRecord,
    ) -> Result<Option<LeaseTimeToLiveResponse>, DcsError> {
        match holder.lease_id.and_then(|id| i64::try_from(id).ok()) {
            Some(id) => self.look_up_lease(id, holder.epoch).await,
            None => Ok(None),
        }
    }

    /// Asks for a lease that the lock hung on in an epoch.
    async fn look_up_lease(
        &self,
        id: i64,
        epoch: Epoch,
    ) -> Result<Option<LeaseTimeToLiveResponse>, DcsError> {
        let request = self.request("look a lease up", Effect::Read);
        let leader = self.keys.leader();
        let key = leader.as_str();
        let Of(_, lease) = self
            .read_lane
            .call(&request, |client| {
                Box::pin(look_up_at(client, key, epoch, id))
            })
            .await?;
        Ok(lease)
    }

    /// Returns the conditions that hold while exactly this lease holds the lock.
    pub(super) fn held_by(&self, secret: Secret) -> Vec<Compare> {
        let key = self.keys.leader();
        let epoch = i64::try_from(secret.epoch.0).unwrap_or(i64::MAX);
        vec![
            Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
            Compare::mod_revision(key.as_str(), CompareOp::Equal, epoch),
            Compare::lease(key, CompareOp::Equal, secret.lease_id),
        ]
    }

    /// Ends a lease; one that does not exist has ended.
    pub(super) async fn revoke(&self, request: &Request, id: i64) -> Result<(), DcsError> {
        let revoked: Result<Of<()>, _> = self
            .lease_lane
            .call(request, |client| {
                Box::pin(async move {
                    let mut answer = client.lease_client().revoke(id).await?;
                    Ok(Of(answer.take_header(), ()))
                })
            })
            .await;
        match revoked {
            Err(error) if error.kind() != DcsErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the leader key on a new lease, if the conditions hold.
    async fn take(
        &self,
        request: &Request,
        when: Vec<Compare>,
        me: &MemberName,
        ttl: Duration,
        problem: &str,
    ) -> Result<Lease, DcsError> {
        let grant = request.then(format!("{}: get a lease", request.action), request.effect);
        // A grant without an answer leaves no doubt about the lock: no key was sent, and nothing
        // hangs on the lease.
        let granted = self.lease_lane.grant(&grant, ttl, || self.ids.next()).await;
        let id = granted.map_err(|error| match error.kind() {
            DcsErrorKind::Indeterminate => grant
                .error(DcsErrorKind::Unavailable, "no lease was granted")
                .because(error),
            _ => error,
        })?;
        self.ids.remember(id);
        let key = self.keys.leader();
        let txn = Txn::new()
            .when(when)
            .and_then([lease_put(key.as_str(), me.as_str(), id)])
            .or_else([TxnOp::get(key, None)]);
        let answer = transact(&self.lease_lane, request, txn)
            .await
            .map_err(|error| match error.kind() {
                DcsErrorKind::Conflict => request
                    .error(DcsErrorKind::Unavailable, "its new lease ended")
                    .because(error),
                _ => error,
            })?;
        let epoch = if answer.succeeded() {
            answer.header().map(|header| header.revision())
        } else {
            // An earlier try may have written it: a lease id is ours and nobody else's.
            found(&answer, |kv| kv.lease() == id).map(|kv| kv.mod_revision())
        };
        let Some(epoch) = epoch else {
            let revoke = request.then("give the lease back", Effect::Repeatable);
            // While the lease lives, a try that is still under way could take the lock.
            self.revoke(&revoke, id).await.map_err(|error| {
                request
                    .error(DcsErrorKind::Indeterminate, problem)
                    .because(error)
            })?;
            self.ids.forget(id);
            return Err(request.error(DcsErrorKind::Conflict, problem));
        };
        let epoch = Epoch(revision(epoch).0);
        let secret = Secret {
            lease_id: id,
            epoch,
        }
        .write();
        Ok(Lease { epoch, secret, ttl })
    }
}

impl Lane {
    /// Grants a lease of an id that nobody used before; asked again, it grants another.
    pub(super) async fn grant(
        &self,
        request: &Request,
        ttl: Duration,
        new_id: impl Fn() -> i64 + Send + Sync,
    ) -> Result<i64, DcsError> {
        let seconds = seconds(ttl);
        let answer: LeaseGrantResponse = self
            .call(request, |client| {
                // Each try has an id of its own: etcd refuses one that it has seen, and a try
                // without an answer leaves a lease that nothing hangs on.
                let options = LeaseGrantOptions::new().with_id(new_id());
                Box::pin(async move { client.lease_client().grant(seconds, Some(options)).await })
            })
            .await?;
        if answer.ttl() < seconds {
            let problem = format!("etcd granted {} s instead of {seconds} s", answer.ttl());
            return Err(request.error(DcsErrorKind::Refused, problem));
        }
        Ok(answer.id())
    }

    /// Renews a lease by one message; returns whether it still exists.
    pub(super) async fn renewed(&self, request: &Request, lease_id: i64) -> Result<bool, DcsError> {
        let renewed: Result<Unchecked<()>, _> = self
            .call(request, |client| {
                Box::pin(async move {
                    // One message and no open stream: it is needed once in many seconds.
                    client.lease_client().keep_alive(lease_id).await?;
                    Ok::<_, Error>(Unchecked(()))
                })
            })
            .await;
        match renewed {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == DcsErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl KeepAlive {
    /// Renews a lease for the first time, on a stream that stays open.
    async fn begin(client: Client, lease_id: i64) -> Result<Self, Error> {
        let (keeper, answers) = client.lease_client().keep_alive(lease_id).await?;
        let opened = Self {
            lease_id,
            keeper,
            answers,
            header: None,
        };
        // Of the answer that opens the stream, nobody tells which state of etcd it comes from.
        let ended = || Error::LeaseKeepAliveError(LEASE_NOT_FOUND.to_owned());
        opened.renew().await?.ok_or_else(ended)
    }

    /// Renews the lease; returns `None` if it has ended.
    async fn renew(mut self) -> Result<Option<Self>, Error> {
        self.keeper.keep_alive().await?;
        match self.answers.message().await? {
            Some(answer) if answer.id() != self.lease_id => Err(Error::LeaseKeepAliveError(
                "the answer is for another lease".to_owned(),
            )),
            Some(mut answer) => {
                self.header = answer.take_header();
                Ok((answer.ttl() > 0).then_some(self))
            }
            None => Err(Error::LeaseKeepAliveError("the stream ended".to_owned())),
        }
    }
}

impl Answer for KeepAlive {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }

    fn is_of_keys(&self) -> bool {
        false
    }
}

impl LeaseIds {
    /// Returns an id that no other process chooses either.
    pub(super) fn next(&self) -> i64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        // The keys of a `RandomState` come from the operating system. Not 0, which is etcd's
        // way to ask for an id, and not negative, as etcd's own never are.
        let id = self.chance.hash_one(count) & (u64::MAX >> 1);
        i64::try_from(id.max(1)).unwrap_or(1)
    }

    /// Takes note of an id that a key is about to hang on.
    fn remember(&self, id: i64) {
        held(&self.unsettled).insert(id);
    }

    /// Takes note that the caller knows of this lease.
    fn settled(&self, lease: &Lease) {
        if let Some(secret) = Secret::parse(&lease.secret) {
            self.forget(secret.lease_id);
        }
    }

    fn forget(&self, id: i64) {
        held(&self.unsettled).remove(&id);
    }

    fn unsettled(&self) -> BTreeSet<i64> {
        held(&self.unsettled).clone()
    }
}

impl Default for LeaseIds {
    fn default() -> Self {
        Self {
            chance: RandomState::new(),
            count: AtomicU64::new(0),
            unsettled: Mutex::default(),
        }
    }
}

impl Secret {
    /// Reads a secret; `None` if it is not one of etcd's.
    pub(super) fn parse(secret: &LeaseSecret) -> Option<Self> {
        let (id, epoch) = secret.0.split_once('@')?;
        let lease_id = i64::from_str_radix(id, 16).ok().filter(|id| *id > 0)?;
        Some(Self {
            lease_id,
            epoch: Epoch(epoch.parse().ok()?),
        })
    }

    /// Writes a secret; the lease id as `etcdctl lease list` shows it.
    fn write(self) -> LeaseSecret {
        LeaseSecret(format!("{:x}@{}", self.lease_id, self.epoch))
    }
}

impl<T> Answer for Of<T> {
    fn header(&self) -> Option<&ResponseHeader> {
        self.0.as_ref()
    }

    fn is_of_keys(&self) -> bool {
        false
    }
}

impl<T> Answer for Unchecked<T> {
    fn header(&self) -> Option<&ResponseHeader> {
        None
    }
}

/// Returns the operation that writes a key on a lease.
pub(super) fn lease_put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, id: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(id)))
}

/// Asks one member what it knows of a lease; `None` if it may never have known it.
///
/// Only a member that has applied the write of the key that hung on the lease has known it; so a
/// linearizable read at that member comes first.
async fn look_up_at(
    client: Client,
    key: &str,
    epoch: Epoch,
    id: i64,
) -> Result<Of<Option<LeaseTimeToLiveResponse>>, Error> {
    let mut read = client.kv_client().get(key, None).await?;
    let applied = read.header().map_or(0, |header| header.revision());
    if revision(applied).0 < epoch.0 {
        return Ok(Of(read.take_header(), None));
    }
    let lease = client.lease_client().time_to_live(id, None).await?;
    Ok(Of(read.take_header(), Some(lease)))
}

/// Returns the key that a refused transaction read, if it is as wanted.
fn found(answer: &TxnResponse, wanted: impl Fn(&KeyValue) -> bool) -> Option<KeyValue> {
    answer.op_responses().into_iter().find_map(|op| match op {
        TxnOpResponse::Get(got) => got.kvs().iter().find(|kv| wanted(kv)).cloned(),
        _ => None,
    })
}

/// Returns a time to live in etcd's whole seconds, never a shorter one.
pub(super) fn seconds(ttl: Duration) -> i64 {
    let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(whole.max(1)).unwrap_or(i64::MAX)
}

/// Long enough for an etcd that is well, and little of the time that a lease has.
const TIDYING: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_never_shorter_than_asked_for() {
        for (ttl, whole) in [
            (0, 1),
            (1, 1),
            (1_000, 1),
            (1_001, 2),
            (9_500, 10),
            (10_000, 10),
        ] {
            assert_eq!(seconds(Duration::from_millis(ttl)), whole, "{ttl} ms");
        }
    }

    #[test]
    fn a_secret_is_read_as_it_was_written() {
        let secret = Secret {
            lease_id: 0x1234_5678_9abc,
            epoch: Epoch(42),
        };
        assert_eq!(secret.write(), LeaseSecret("123456789abc@42".to_owned()));
        assert_eq!(Secret::parse(&secret.write()), Some(secret));
        for text in [
            "",
            "@",
            "1",
            "1@",
            "@1",
            "0@1",
            "-1@1",
            "8000000000000000@1",
            "x@1",
            "1@-1",
        ] {
            assert_eq!(Secret::parse(&LeaseSecret(text.to_owned())), None, "{text}");
        }
    }

    #[test]
    fn lease_ids_are_positive_and_differ_between_processes() {
        let (a, b) = (LeaseIds::default(), LeaseIds::default());
        let ids: BTreeSet<i64> = (0..100).flat_map(|_| [a.next(), b.next()]).collect();
        assert_eq!(ids.len(), 200);
        assert!(ids.iter().all(|id| *id > 0));
    }

    #[test]
    fn an_id_is_remembered_until_it_is_settled() {
        let ids = LeaseIds::default();
        let [first, second, _] = [(); 3].map(|()| ids.next());
        ids.remember(first);
        ids.remember(second);
        assert_eq!(ids.unsettled(), BTreeSet::from([first, second]));
        let secret = Secret {
            lease_id: first,
            epoch: Epoch(1),
        }
        .write();
        ids.settled(&Lease {
            epoch: Epoch(1),
            secret,
            ttl: Duration::from_secs(1),
        });
        assert_eq!(ids.unsettled(), BTreeSet::from([second]));
    }
}
