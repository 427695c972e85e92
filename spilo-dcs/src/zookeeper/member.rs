//! The member record, in a session of its own.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::DcsErrorKind;
use spilo_core::{DcsError, MemberName};
use tokio::time::Instant;
use zookeeper_client::{Client, CreateMode, Error};

use super::failure::{Effect, Failure};
use super::link::{Op, Outcome};
use super::session::Quiet;
use super::{NAME, ZooKeeper, held};

/// What this handle announced last.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    name: MemberName,
    session: Quiet,
}

impl ZooKeeper {
    /// Attaches to the member's session and writes the record, if it is not there as it is to be.
    pub(super) async fn announce_member(
        &self,
        me: &MemberName,
        record: Bytes,
        ttl: Duration,
    ) -> Result<(), DcsError> {
        let failed = |failure: Failure| failure.while_about_to(ACTION, Effect::Write);
        let until = self.link.deadline();
        let client = self.member_client(me, ttl, until).await.map_err(failed)?;
        *held(&self.announced) = Some(Announced {
            name: me.clone(),
            session: Quiet {
                info: client.session().clone(),
                ttl,
            },
        });
        let path = self.keys.member(me.as_str());
        for _ in 0..TRIES {
            let paths = [path.clone()];
            let read = self.link.nodes(&client, &paths, 0, None, until).await;
            let (mut nodes, _) = read.map_err(failed)?;
            let found = nodes.pop().flatten();
            let is_ours = found
                .as_ref()
                .is_some_and(|node| node.stat.ephemeral_owner == client.session_id().0);
            let ops = match found {
                // A write of the same would only wake everybody.
                Some(node) if is_ours && node.value == record => return Ok(()),
                Some(node) if is_ours => {
                    vec![Op::Set(
                        path.clone(),
                        record.clone(),
                        Some(node.stat.version),
                    )]
                }
                // An earlier incarnation's session holds it.
                Some(node) => vec![
                    Op::Delete(path.clone(), Some(node.stat.version)),
                    Op::Create(path.clone(), record.clone(), CreateMode::Ephemeral),
                ],
                None => vec![Op::Create(
                    path.clone(),
                    record.clone(),
                    CreateMode::Ephemeral,
                )],
            };
            let outcome = self.link.transact(&client, &ops, until).await;
            match outcome.map_err(failed)? {
                Outcome::Done(_) => return Ok(()),
                Outcome::Refused(_, Error::NoNode) => {
                    let directory = self.members_path();
                    let made = self.make_directory(&client, &directory, until).await;
                    made.map_err(failed)?;
                }
                Outcome::Refused(..) => {}
            }
        }
        let problem = "others write the record all the time";
        Err(DcsError::new(
            NAME,
            DcsErrorKind::Unavailable,
            ACTION,
            problem,
        ))
    }

    /// Returns a connection in the member's session, a new one if the last has ended.
    async fn member_client(
        &self,
        me: &MemberName,
        ttl: Duration,
        until: Instant,
    ) -> Result<Client, Failure> {
        let known = held(&self.announced).clone();
        let known = known.filter(|known| known.name == *me && known.session.ttl == ttl);
        let Some(Announced { session, .. }) = known else {
            return self.link.attach(None, ttl, until).await;
        };
        match self.link.attach(Some(session.info), ttl, until).await {
            Err(failure) if failure.is_expired() => self.link.attach(None, ttl, until).await,
            client => client,
        }
    }
}

const ACTION: &str = "announce the member";

/// How often a transaction is tried that others come in between of.
const TRIES: usize = 5;
