//! The member record, on a session of its own.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::DcsErrorKind;
use spilo_core::{DcsError, MemberName, Revision};
use tokio::time::Instant;

use super::failure::{Effect, Failure};
use super::txn::{Op, Outcome};
use super::{Consul, NAME, held};

/// What this handle announced last.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    name: MemberName,
    ttl: Duration,
    session: String,
    /// What was written with that session and when; `None` when that is not known.
    written: Option<(Bytes, Revision)>,
}

impl Consul {
    /// Renews the member's session and writes the record, if it is not there as it is to be.
    pub(super) async fn announce_member(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        let failed = |failure: Failure| failure.while_about_to(ACTION, Effect::Write);
        let until = self.http.deadline();
        let known = held(&self.announced).clone();
        let known = known.filter(|known| known.name == *me && known.ttl == ttl);
        let renewed = match known {
            Some(known) => {
                let lives = self.http.renew_session(&known.session, until).await;
                lives.map_err(failed)?.then_some(known)
            }
            None => None,
        };
        let mut announced = match renewed {
            Some(known) => known,
            None => Announced {
                name: me.clone(),
                ttl,
                // The record may be written anew at once: nothing is safer for a delay.
                session: self
                    .http
                    .create_session(me, ttl, Duration::ZERO, until)
                    .await
                    .map_err(failed)?,
                written: None,
            },
        };
        if announced
            .written
            .as_ref()
            .is_some_and(|(bytes, _)| *bytes == record)
        {
            self.register(me, &record, ttl, until).await;
            return Ok(());
        }
        // Until the answer is here, what stands at the key is not known.
        announced.written = None;
        *held(&self.announced) = Some(announced.clone());
        let written = self.write_record(&announced, &record, until).await?;
        announced.written = Some((record.clone(), written));
        *held(&self.announced) = Some(announced);
        self.register(me, &record, ttl, until).await;
        Ok(())
    }

    async fn write_record(
        &self,
        announced: &Announced,
        record: &Bytes,
        until: Instant,
    ) -> Result<Revision, DcsError> {
        let failed = |failure: Failure| failure.while_about_to(ACTION, Effect::Write);
        let error = |kind, problem| Err(DcsError::new(NAME, kind, ACTION, problem));
        let key = self.keys.member(announced.name.as_str());
        let lock = Op::lock(key.clone(), record, &announced.session);
        let mut outcome = self.http.transact(std::slice::from_ref(&lock), until).await;
        if let Ok(Outcome::Refused(_)) = outcome {
            // An earlier incarnation's session holds it.
            let ops = [Op::delete(key.clone()), lock];
            outcome = self.http.transact(&ops, until).await;
        }
        let outcome = outcome.map_err(failed)?;
        match (outcome.index_of(&key), outcome) {
            (Some(index), _) => Ok(Revision(index)),
            (None, Outcome::Done(_)) => error(
                DcsErrorKind::Indeterminate,
                "the answer does not say which revision it is of",
            ),
            (None, Outcome::SessionGone) => {
                // The next announcement gets another.
                *held(&self.announced) = None;
                error(DcsErrorKind::Unavailable, "its session ended")
            }
            (None, Outcome::Refused(_)) => error(
                DcsErrorKind::Unavailable,
                "another session took the record's key at this moment, or Consul keeps it back",
            ),
        }
    }

    /// Returns whose record this handle keeps.
    pub(super) fn announced_as(&self) -> Option<String> {
        held(&self.announced)
            .as_ref()
            .map(|known| known.name.to_string())
    }

    /// Takes note of what a snapshot shows at our own member key: a record that somebody deleted,
    /// or wrote over with another session, is written again by the next announcement.
    pub(super) fn noticed_own_record(&self, read: Revision, session: Option<&str>) {
        if let Some(known) = held(&self.announced).as_mut() {
            let is_lost = session != Some(known.session.as_str());
            let written = known.written.as_ref();
            if is_lost && written.is_some_and(|(_, written)| *written <= read) {
                known.written = None;
            }
        }
    }
}

const ACTION: &str = "announce the member";
