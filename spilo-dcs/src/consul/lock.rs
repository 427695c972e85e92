//! The leader lock.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Key, Lease, LeaseSecret};
use spilo_core::{DcsError, Epoch, MemberName};
use tokio::time::Instant;

use super::failure::{Effect, Failure};
use super::session::{Secret, Spare};
use super::txn::{Op, Outcome};
use super::{Consul, NAME, held};

impl Consul {
    pub(super) async fn acquire_lock(
        &self,
        me: &MemberName,
        ttl: Duration,
    ) -> Result<Lease, DcsError> {
        let action = "acquire the lock";
        let free = vec![Op::absent(self.keys.leader())];
        let until = self.http.deadline();
        let lease = self
            .take(
                action,
                free,
                me,
                ttl,
                "somebody holds it, or held it a moment ago",
                until,
            )
            .await?;
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
        let problem = "it is not held by the lease that it is to be taken over from";
        let Some(old) = Secret::parse(old) else {
            return Err(DcsError::new(NAME, DcsErrorKind::Conflict, action, problem));
        };
        let mut when = self.held_by(&old);
        // A session cannot lock what another holds; gone and written anew in one transaction, the
        // key is never seen to be gone.
        when.push(Op::delete(self.keys.leader()));
        let until = self.http.deadline();
        let lease = self.take(action, when, me, ttl, problem, until).await?;
        self.end(&old.session, Self::half_of(until)).await;
        // Not before the last await point: the caller has not got the lease yet, and whoever drops
        // this future must be able to settle it.
        self.settled(&lease);
        Ok(lease)
    }

    pub(super) async fn settle_sessions(&self) -> Result<(), DcsError> {
        let failed =
            |failure: Failure| failure.while_about_to("settle an abandoned lease", Effect::Write);
        let until = self.http.deadline();
        for session in self.unsettled.all() {
            // To end a session that holds the lock would keep the lock back for all others.
            let leader = self.keys.leader();
            let give_up = [Op::held_by(leader.clone(), &session), Op::delete(leader)];
            let given_up = self.http.transact(&give_up, until).await;
            given_up.map_err(failed)?;
            let ended = self.http.destroy_session(&session, until).await;
            ended.map_err(failed)?;
            self.unsettled.forget(&session);
        }
        Ok(())
    }

    pub(super) async fn renew_lease(&self, lease: &Lease) -> Result<(), DcsError> {
        let action = "renew the lease";
        let ended = || DcsError::new(NAME, DcsErrorKind::Conflict, action, "it has ended");
        let secret = Secret::parse(&lease.secret).ok_or_else(ended)?;
        let until = self.http.deadline();
        match self.http.renew_session(&secret.session, until).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ended()),
            Err(failure) => Err(failure.while_about_to(action, Effect::Write)),
        }
    }

    pub(super) async fn release_lock(&self, lease: &Lease, record: Bytes) -> Result<(), DcsError> {
        let action = "release the lock";
        let conflict = || {
            let problem = "it is not held by this lease";
            DcsError::new(NAME, DcsErrorKind::Conflict, action, problem)
        };
        let secret = Secret::parse(&lease.secret).ok_or_else(conflict)?;
        let mut ops = self.held_by(&secret);
        ops.push(Op::delete(self.keys.leader()));
        ops.push(Op::set(self.keys.document(Key::Release), &record));
        let until = self.http.deadline();
        match self.http.transact(&ops, until).await {
            Ok(Outcome::Done(_)) => {}
            Ok(Outcome::Refused(_) | Outcome::SessionGone) => return Err(conflict()),
            Err(failure) => return Err(failure.while_about_to(action, Effect::Write)),
        }
        self.end(&secret.session, Self::half_of(until)).await;
        Ok(())
    }

    pub(super) async fn claim(&self, lease: &Lease) -> Result<(), DcsError> {
        let action = "claim the initialize key";
        let conflict = |problem: &str| DcsError::new(NAME, DcsErrorKind::Conflict, action, problem);
        let Some(secret) = Secret::parse(&lease.secret) else {
            return Err(conflict("the lease is not one of Consul's"));
        };
        let key = self.keys.document(Key::Initialize);
        let mut ops = self.held_by(&secret);
        ops.push(Op::absent(key.clone()));
        ops.push(Op::lock(key, b"", &secret.session));
        match self.http.transact(&ops, self.http.deadline()).await {
            Ok(Outcome::Done(_)) => Ok(()),
            Ok(Outcome::Refused(_) | Outcome::SessionGone) => Err(conflict(
                "the key exists, or the lock is not held by this lease",
            )),
            Err(failure) => Err(failure.while_about_to(action, Effect::Write)),
        }
    }

    /// Writes the leader key with a session of its own, if the conditions hold.
    async fn take(
        &self,
        action: &str,
        mut ops: Vec<Op>,
        me: &MemberName,
        ttl: Duration,
        problem: &str,
        until: Instant,
    ) -> Result<Lease, DcsError> {
        let error = |kind, problem: &str| DcsError::new(NAME, kind, action, problem);
        let session = self.session(me, ttl, until).await;
        // Without its id, nobody can use a new one.
        let session = session.map_err(|failure| failure.while_about_to(action, Effect::Read))?;
        self.unsettled.remember(&session);
        let leader = self.keys.leader();
        ops.push(Op::lock(leader.clone(), me.as_str().as_bytes(), &session));
        let outcome = self.http.transact(&ops, until).await;
        let spare = Spare {
            session: session.clone(),
            me: me.clone(),
            ttl,
        };
        // What was refused is not sent again: the session holds nothing.
        let keep = || {
            self.unsettled.forget(&session);
            *held(&self.spare) = Some(spare);
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(failure) => {
                let error = failure.while_about_to(action, Effect::Write);
                if error.kind() != DcsErrorKind::Indeterminate {
                    keep();
                }
                return Err(error);
            }
        };
        if let Some(epoch) = outcome.index_of(&leader) {
            let epoch = Epoch(epoch);
            let secret = Secret { session, epoch }.write();
            return Ok(Lease { epoch, secret, ttl });
        }
        Err(match outcome {
            Outcome::Refused(why) => {
                keep();
                error(DcsErrorKind::Conflict, &format!("{problem} ({why})"))
            }
            Outcome::SessionGone => {
                self.unsettled.forget(&session);
                error(DcsErrorKind::Unavailable, "its new session has ended")
            }
            Outcome::Done(_) => {
                let problem = "the answer does not say which revision the lock is of";
                error(DcsErrorKind::Indeterminate, problem)
            }
        })
    }

    /// Returns a session that holds nothing and has its whole time before it.
    async fn session(
        &self,
        me: &MemberName,
        ttl: Duration,
        until: Instant,
    ) -> Result<String, Failure> {
        let spare = held(&self.spare).take();
        let fitting = spare.filter(|spare| spare.me == *me && spare.ttl == ttl);
        if let Some(Spare { session, .. }) = fitting
            && self.http.renew_session(&session, until).await?
        {
            return Ok(session);
        }
        let lock_delay = ttl.min(LONGEST_LOCK_DELAY);
        self.http.create_session(me, ttl, lock_delay, until).await
    }

    /// Ends a session that does not hold the lock any more, or leaves it to end by itself.
    async fn end(&self, session: &str, until: Instant) {
        // A claim to initialize goes too; ended together with its session, the key would be kept
        // back from the next one who claims it.
        let initialize = self.keys.document(Key::Initialize);
        let give_up = [
            Op::held_by(initialize.clone(), session),
            Op::delete(initialize),
        ];
        let ended = match self.http.transact(&give_up, until).await {
            Ok(_) => self.http.destroy_session(session, until).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            let problem = failure.problem;
            tracing::debug!(problem, "a session is left to end by itself");
        }
    }

    /// Returns half of the time that is left: what only tidies up must not make the call late.
    fn half_of(until: Instant) -> Instant {
        let now = Instant::now();
        now + until.saturating_duration_since(now) / 2
    }

    /// Returns the conditions that hold while exactly this lease holds the lock.
    fn held_by(&self, secret: &Secret) -> Vec<Op> {
        let leader = self.keys.leader();
        vec![
            Op::held_by(leader.clone(), &secret.session),
            Op::at(leader, secret.epoch.0),
        ]
    }

    /// Takes note that the caller knows of this lease.
    fn settled(&self, lease: &Lease) {
        if let Some(secret) = Secret::parse(&lease.secret) {
            self.unsettled.forget(&secret.session);
        }
    }
}

/// What Consul takes as lock delay at most.
pub(super) const LONGEST_LOCK_DELAY: Duration = Duration::from_secs(60);
