//! The leader lock.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Key, Lease, LeaseSecret};
use spilo_core::{DcsError, Epoch, MemberName};
use tokio::time::Instant;
use zookeeper_client::{Client, CreateMode, Error};

use super::documents::{CHECKS, Holding};
use super::failure::{Effect, Failure, Verdict};
use super::link::{Op, Outcome};
use super::session::{Quiet, Secret};
use super::{NAME, ZooKeeper};

impl ZooKeeper {
    pub(super) async fn acquire_lock(
        &self,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let action = "acquire the lock";
        let until = self.link.deadline();
        let lease = self.take(action, Vec::new(), None, me, ttl, until).await?;
        self.settled(&lease);
        Ok(lease)
    }

    pub(super) async fn succeed_lock(
        &self,
        old: &LeaseSecret,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let action = "take the lock over";
        let Some(old) = Secret::parse(old) else {
            let problem = "the lease is not one of ZooKeeper's";
            return Err(DcsError::new(NAME, DcsErrorKind::Conflict, action, problem));
        };
        let until = self.link.deadline();
        let before = vec![
            Op::Delete(self.fence_path(old.session), None),
            Op::Delete(self.keys.leader(), Some(HELD)),
        ];
        let lease = self
            .take(action, before, Some(old.holding), me, ttl, until)
            .await?;
        // An earlier incarnation's session ends by itself: nobody attaches to it any more.
        if let Some(session) = self.leases.get(old.session) {
            self.end_if_time(session, until).await;
        }
        // Not before the last await point: the caller has not got the lease yet, and whoever drops
        // this future must be able to settle it.
        self.leases.forget(old.session);
        self.settled(&lease);
        Ok(lease)
    }

    pub(super) async fn settle_sessions(&self) -> Result<(), DcsError> {
        let failed =
            |failure: Failure| failure.while_about_to("settle an abandoned lease", Effect::Write);
        let until = self.link.deadline();
        for session in self.unsettled.all() {
            let id = session.info.id().0;
            let ended = self.link.end(session.info, session.ttl, until).await;
            ended.map_err(failed)?;
            self.unsettled.forget(id);
        }
        Ok(())
    }

    pub(super) async fn renew_lease(&self, lease: &Lease) -> Result<(), DcsError> {
        let action = "renew the lease";
        let conflict = |problem: &str| DcsError::new(NAME, DcsErrorKind::Conflict, action, problem);
        let secret = Secret::parse(&lease.secret);
        let secret = secret.ok_or_else(|| conflict("it is not one of ZooKeeper's"))?;
        let until = self.link.deadline();
        let held = self.held_by(&secret);
        let half = Instant::now() + self.link.options().request_timeout / 2;
        // A server that attaches us may have lost its leader since; there are others.
        let mut result = self.try_to_renew(&secret, &held, action, half).await;
        if result
            .as_ref()
            .is_err_and(|error| error.kind() == DcsErrorKind::Indeterminate)
        {
            result = self.try_to_renew(&secret, &held, action, until).await;
        }
        if result? {
            return Ok(());
        }
        self.leases.forget(secret.session);
        Err(conflict("the lock is not held by it any more"))
    }

    /// Attaches to the session of a lease, and asks the quorum whether it holds the lock.
    async fn try_to_renew(
        &self,
        secret: &Secret,
        held: &[Op],
        action: &str,
        until: Instant,
    ) -> Result<bool, DcsError> {
        let failed = |failure: Failure| failure.while_about_to(action, Effect::Write);
        if self.leases.get(secret.session).is_none() {
            return Ok(false);
        }
        // A server attaches nobody without its leader's word. That this is the leader still is what
        // only a quorum can tell, as well as that the session has ended.
        let attached = self.attach_to(secret, until, action).await?;
        let client = match &attached {
            Some(client) => client.clone(),
            None => self.link.client(until).await.map_err(failed)?,
        };
        match self
            .link
            .transact(&client, held, until)
            .await
            .map_err(failed)?
        {
            Outcome::Refused(..) => Ok(false),
            Outcome::Done(_) if attached.is_some() => Ok(true),
            Outcome::Done(_) => {
                let problem = "a server takes its session for ended that is not";
                let kind = DcsErrorKind::Indeterminate;
                Err(DcsError::new(NAME, kind, action, problem))
            }
        }
    }

    pub(super) async fn release_lock(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        let action = "release the lock";
        let conflict = || {
            let problem = "it is not held by this lease";
            DcsError::new(NAME, DcsErrorKind::Conflict, action, problem)
        };
        let failed = |failure: Failure| failure.while_about_to(action, Effect::Write);
        let secret = Secret::parse(&lease.secret).ok_or_else(conflict)?;
        let until = self.link.deadline();
        let client = self.link.client(until).await.map_err(failed)?;
        let paths = [
            self.keys.document(Key::Release),
            self.keys.document(Key::Initialize),
        ];
        let done = 'tried: {
            for _ in 0..TRIES {
                let read = self.link.nodes(&client, &paths, 0, None, until).await;
                let (nodes, _) =
                    read.map_err(|failure| failure.while_about_to(action, Effect::Read))?;
                let mut ops = self.held_by(&secret);
                ops.push(Op::Delete(self.fence_path(secret.session), None));
                ops.push(Op::Delete(self.keys.leader(), Some(HELD)));
                let [release, initialize] = &paths;
                match nodes.first() {
                    Some(Some(_)) => ops.push(Op::Set(release.clone(), record.clone(), None)),
                    _ => ops.push(create(release, &record, CreateMode::Persistent)),
                }
                // The claim goes with the lock, and not only with the session.
                let claim = nodes.get(1).cloned().flatten();
                let claim = claim.filter(|node| node.stat.ephemeral_owner == secret.session);
                ops.extend(
                    claim.map(|node| Op::Delete(initialize.clone(), Some(node.stat.version))),
                );
                match self
                    .link
                    .transact(&client, &ops, until)
                    .await
                    .map_err(failed)?
                {
                    Outcome::Done(_) => break 'tried true,
                    Outcome::Refused(at, _) if at <= CHECKS + 1 => return Err(conflict()),
                    // Somebody wrote one of the others in this moment.
                    Outcome::Refused(..) => {}
                }
            }
            false
        };
        if !done {
            let problem = "others write the record all the time";
            return Err(DcsError::new(
                NAME,
                DcsErrorKind::Unavailable,
                action,
                problem,
            ));
        }
        if let Some(session) = self.leases.get(secret.session) {
            self.end_if_time(session, until).await;
        }
        self.leases.forget(secret.session);
        Ok(())
    }

    pub(super) async fn claim(&self, lease: &Lease) -> Result<(), DcsError> {
        let action = "claim the initialize key";
        let conflict = |problem: &str| DcsError::new(NAME, DcsErrorKind::Conflict, action, problem);
        let Some(secret) = Secret::parse(&lease.secret) else {
            return Err(conflict("the lease is not one of ZooKeeper's"));
        };
        let until = self.link.deadline();
        let Some(client) = self.attach_to(&secret, until, action).await? else {
            return Err(conflict("the lease has ended"));
        };
        let mut ops = self.held_by(&secret);
        let initialize = self.keys.document(Key::Initialize);
        ops.push(create(&initialize, &Bytes::new(), CreateMode::Ephemeral));
        match self.link.transact(&client, &ops, until).await {
            Ok(Outcome::Done(_)) => Ok(()),
            Ok(Outcome::Refused(..)) => Err(conflict(
                "the key exists, or the lock is not held by this lease",
            )),
            Err(failure) => Err(failure.while_about_to(action, Effect::Write)),
        }
    }

    /// Makes the leader node in a session of its own, if the conditions hold: after `before`, and
    /// if the `epoch` node is of the version `holding`.
    async fn take(
        &self,
        action: &str,
        before: Vec<Op>,
        holding: Option<i32>,
        me: &MemberName,
        ttl: Duration,
        until: Instant,
    ) -> Result<Lease, DcsError> {
        let error = |kind, problem: &str| DcsError::new(NAME, kind, action, problem);
        // Without its id, nobody can use a new session.
        let client = self.link.attach(None, ttl, until).await;
        let client = client.map_err(|failure| failure.while_about_to(action, Effect::Read))?;
        let session = Quiet {
            info: client.session().clone(),
            ttl,
        };
        let id = session.info.id().0;
        if client.session_timeout() < ttl {
            let problem = too_short(client.session_timeout(), ttl);
            drop(client);
            self.end_if_time(session, until).await;
            return Err(error(DcsErrorKind::Refused, &problem));
        }
        self.unsettled.remember(session.clone());
        let name = Bytes::copy_from_slice(me.as_str().as_bytes());
        let leader = self.keys.leader();
        let mut ops = vec![Op::Set(self.epoch_path(), Bytes::new(), holding)];
        ops.extend(before);
        ops.push(create(&leader, &name, CreateMode::Ephemeral));
        let fence = self.fence_path(id);
        ops.push(create(&fence, &Bytes::new(), CreateMode::Ephemeral));
        // Patroni's are of version 0, and one that is made anew is no longer ours.
        ops.push(Op::Set(leader, name, Some(0)));
        let mut outcome = self.link.transact(&client, &ops, until).await;
        if let Ok(Outcome::Refused(0, Error::NoNode)) = outcome
            && holding.is_none()
        {
            outcome = match self.make_epoch(&client, until).await {
                Ok(()) => self.link.transact(&client, &ops, until).await,
                Err(failure) => Err(failure),
            };
        }
        let problem = match outcome {
            Ok(Outcome::Done(written)) => {
                let (Some(holding), Some(leader)) = (written.first(), written.last()) else {
                    let problem = "the answer does not say which transaction it is of";
                    return Err(error(DcsErrorKind::Indeterminate, problem));
                };
                let secret = Secret {
                    session: id,
                    epoch: Epoch(leader.czxid.cast_unsigned()),
                    holding: holding.version,
                };
                self.leases.remember(session);
                return Ok(Lease {
                    epoch: secret.epoch,
                    secret: secret.write(),
                    ttl,
                });
            }
            Ok(Outcome::Refused(..)) if holding.is_some() => {
                "it is not held by the lease that it is to be taken over from"
            }
            Ok(Outcome::Refused(..)) => "somebody holds it",
            Err(failure) => {
                if failure.verdict != Verdict::Unknown {
                    drop(client);
                    self.end_if_time(session, until).await;
                    self.unsettled.forget(id);
                }
                return Err(failure.while_about_to(action, Effect::Write));
            }
        };
        drop(client);
        Err(self.give_up(session, action, problem, until).await)
    }

    /// Ends a session that the lock was refused to; returns what the caller is told. It holds
    /// nothing; that it ends now and not of age only spares the servers.
    async fn give_up(
        &self,
        session: Quiet,
        action: &str,
        problem: &str,
        until: Instant,
    ) -> DcsError {
        let id = session.info.id().0;
        let (kind, problem) = match self.link.end(session.info, session.ttl, until).await {
            Ok(()) => {
                self.unsettled.forget(id);
                (DcsErrorKind::Conflict, problem.to_owned())
            }
            Err(failure) => (DcsErrorKind::Indeterminate, failure.problem),
        };
        DcsError::new(NAME, kind, action, problem)
    }

    /// Attaches to the session of a lease; none if it has ended.
    async fn attach_to(
        &self,
        secret: &Secret,
        until: Instant,
        action: &str,
    ) -> Result<Option<Client>, DcsError> {
        let Some(session) = self.leases.get(secret.session) else {
            return Ok(None);
        };
        match self
            .link
            .attach(Some(session.info), session.ttl, until)
            .await
        {
            // It is for this short time now; the next renewal may find another server.
            Ok(client) if client.session_timeout() < session.ttl => {
                let problem = too_short(client.session_timeout(), session.ttl);
                Err(DcsError::new(NAME, DcsErrorKind::Refused, action, problem))
            }
            Ok(client) => Ok(Some(client)),
            Err(failure) if failure.is_expired() => Ok(None),
            Err(failure) => Err(failure.while_about_to(action, Effect::Write)),
        }
    }

    /// Returns the conditions that the lock is held by this lease: as many as `CHECKS`.
    fn held_by(&self, secret: &Secret) -> Vec<Op> {
        let holding = Holding {
            epoch: secret.epoch,
            leader: HELD,
            version: secret.holding,
            session: secret.session,
        };
        self.conditions(&holding).into()
    }

    async fn make_epoch(&self, client: &Client, until: Instant) -> Result<(), Failure> {
        self.make_directory(client, &self.epoch_path(), until).await
    }

    async fn end_if_time(&self, session: Quiet, until: Instant) {
        let ended = self.link.end(session.info, session.ttl, until).await;
        if let Err(Failure { problem, .. }) = ended {
            tracing::debug!(problem, "a session is left to end by itself");
        }
    }

    /// Forgets that a lease may need settling: its caller has it.
    fn settled(&self, lease: &Lease) {
        if let Some(secret) = Secret::parse(&lease.secret) {
            self.unsettled.forget(secret.session);
        }
    }
}

fn create(path: &str, value: &Bytes, mode: CreateMode) -> Op {
    Op::Create(path.to_owned(), value.clone(), mode)
}

/// The version of a leader node that is held: it is written once after it was made.
const HELD: i32 = 1;

fn too_short(granted: Duration, ttl: Duration) -> String {
    format!(
        "the server grants sessions of {granted:?} at most, and the ttl is {ttl:?}; lower the ttl, or \
         raise the maxSessionTimeout of all servers"
    )
}

/// How often a transaction is tried that others come in between of.
const TRIES: usize = 5;
