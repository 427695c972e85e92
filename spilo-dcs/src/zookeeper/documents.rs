//! What stands in the nodes: snapshots of all, and writes of one.

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Entry, Expect, Key, LeaderRecord, RawSnapshot};
use spilo_core::{DcsError, Epoch, Revision};
use tokio::time::Instant;
use zookeeper_client::{Acls, Client, CreateMode, Error, Stat};

use super::failure::{Effect, Failure, Verdict};
use super::link::{Node, Op, Outcome, PAUSE};
use super::{NAME, ZooKeeper, held};

/// How a holding of the lock is told from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    /// The transaction that made the leader node, which no transaction can compare.
    pub(super) epoch: Epoch,
    /// The version of the leader node.
    pub(super) leader: i32,
    /// The version of the `epoch` node.
    pub(super) version: i32,
    /// The session that the leader node hangs on, and with it a node of its own below `epoch`.
    pub(super) session: i64,
}

impl ZooKeeper {
    pub(super) async fn read_snapshot(&self) -> Result<RawSnapshot, DcsError> {
        let failed = |failure: Failure| failure.while_about_to("read the cluster", Effect::Read);
        let until = self.link.deadline();
        let mut result = self.try_to_read(until).await;
        // A connection that has just been lost is made anew, to another server.
        while let Err(failure) = &result
            && failure.verdict != Verdict::Refused
            && Instant::now() + PAUSE < until
        {
            tokio::time::sleep(PAUSE).await;
            result = self.try_to_read(until).await;
        }
        result.map_err(failed)
    }

    async fn try_to_read(&self, until: Instant) -> Result<RawSnapshot, Failure> {
        let client = self.link.client(until).await?;
        let (base, directory) = (self.base(), self.members_path());
        // A server that has lost its leader answers pings, and nothing else; there are others.
        let share = Instant::now() + until.saturating_duration_since(Instant::now()) / 3;
        let (caught_up, names) = tokio::join!(
            self.link.catch_up(&client, &base, share),
            self.link.children(&client, &directory, share),
        );
        if caught_up.is_err() || names.is_err() {
            self.link.abandon(&client).await;
        }
        caught_up?;
        let mut names = sorted(names?);
        for _ in 0..TRIES {
            let (snapshot, there) = self.read_at_once(&client, &names, until).await?;
            let there = sorted(there);
            if there == names {
                return Ok(snapshot);
            }
            names = there;
        }
        let problem = "members come and go all the time";
        Err(Failure::new(Verdict::NotDone, problem))
    }

    /// Reads everything with the records of these members, and who the members are.
    async fn read_at_once(
        &self,
        client: &Client,
        names: &[String],
        until: Instant,
    ) -> Result<(RawSnapshot, Vec<String>), Failure> {
        let directory = self.members_path();
        let mut paths = self.directories();
        let above = paths.len() - OWN_DIRECTORIES;
        paths.push(self.epoch_path());
        let beside = paths.len();
        paths.push(self.keys.leader());
        paths.extend(Key::ALL.map(|key| self.keys.document(key)));
        paths.extend(names.iter().map(|name| self.keys.member(name)));
        let (nodes, there) = self
            .link
            .nodes(client, &paths, above, Some(&directory), until)
            .await?;
        // The latest transaction that changed a node, or made or deleted one below it.
        let latest = |node: &Node| node.stat.mzxid.max(node.stat.pzxid);
        let revision = nodes.iter().flatten().map(latest).max().unwrap_or(0);
        let mut snapshot = RawSnapshot {
            revision: Revision(revision.cast_unsigned()),
            ..RawSnapshot::default()
        };
        let holding = beside.checked_sub(1).and_then(|at| nodes.get(at)).cloned();
        let mut nodes = nodes.into_iter().skip(beside);
        let leader = nodes.next().flatten();
        *held(&self.seen) = match (&leader, holding.flatten()) {
            (Some(leader), Some(holding)) => Some(Holding {
                epoch: epoch_of(&leader.stat),
                leader: leader.stat.version,
                version: holding.stat.version,
                session: leader.stat.ephemeral_owner,
            }),
            _ => None,
        };
        snapshot.leader = leader.map(|node| LeaderRecord {
            epoch: epoch_of(&node.stat),
            name: node.value,
            lease_id: None,
        });
        for key in Key::ALL {
            let node = nodes.next().flatten();
            snapshot
                .documents
                .extend(node.map(|node| (key, entry(node))));
        }
        for name in names {
            let node = nodes.next().flatten();
            snapshot
                .members
                .extend(node.map(|node| (name.clone(), entry(node))));
        }
        Ok((snapshot, there))
    }

    pub(super) async fn put_document(
        &self,
        key: Key,
        value: Bytes,
        expect: Expect,
    ) -> Result<Revision, DcsError> {
        let action = format!("write {}", key.path());
        let path = self.keys.document(key);
        let ops = |found: Option<&Stat>| match found {
            None => vec![
                Op::Create(path.clone(), Bytes::new(), CreateMode::Persistent),
                Op::Set(path.clone(), value.clone(), Some(0)),
            ],
            // A claim goes with its session, and so would what is written over it.
            Some(stat) if stat.ephemeral_owner != 0 => vec![
                Op::Delete(path.clone(), Some(stat.version)),
                Op::Create(path.clone(), Bytes::new(), CreateMode::Persistent),
                Op::Set(path.clone(), value.clone(), Some(0)),
            ],
            Some(stat) => vec![Op::Set(path.clone(), value.clone(), Some(stat.version))],
        };
        match self.change(&action, &path, expect, ops).await? {
            Some(stat) => Ok(Revision(stat.mzxid.cast_unsigned())),
            None => {
                let problem = "the answer does not say which transaction it is of";
                let kind = DcsErrorKind::Indeterminate;
                Err(DcsError::new(NAME, kind, action, problem))
            }
        }
    }

    pub(super) async fn delete_document(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let action = format!("delete {}", key.path());
        let path = self.keys.document(key);
        let ops = |found: Option<&Stat>| {
            let delete = |stat: &Stat| Op::Delete(path.clone(), Some(stat.version));
            found.map(delete).into_iter().collect()
        };
        self.change(&action, &path, expect, ops).await.map(drop)
    }

    /// Does what `ops` says for the node as it is found, if it is as expected, and returns the
    /// state of the node that was written.
    async fn change(
        &self,
        action: &str,
        path: &str,
        expect: Expect,
        ops: impl Fn(Option<&Stat>) -> Vec<Op>,
    ) -> Result<Option<Stat>, DcsError> {
        let failed = |effect| move |failure: Failure| failure.while_about_to(action, effect);
        let error = |kind, problem: &str| Err(DcsError::new(NAME, kind, action, problem));
        let until = self.link.deadline();
        let client = self
            .link
            .client(until)
            .await
            .map_err(failed(Effect::Read))?;
        let mut checks = Vec::new();
        if let Expect::Leader(epoch) = expect {
            let holding = self.holding(&client, epoch, until).await;
            let Some(holding) = holding.map_err(failed(Effect::Read))? else {
                return error(DcsErrorKind::Conflict, "the lock is not held in this epoch");
            };
            checks.extend(self.conditions(&holding));
        }
        // The first look may be at a server that lags behind: what it shows is not refused by.
        for again in 0..TRIES {
            if again > 0 || matches!(expect, Expect::Revision(_)) {
                let caught_up = self.link.catch_up(&client, &self.base(), until).await;
                caught_up.map_err(failed(Effect::Read))?;
            }
            let paths = [path.to_owned()];
            let read = self.link.nodes(&client, &paths, 0, None, until).await;
            let (mut nodes, _) = read.map_err(failed(Effect::Read))?;
            let found = nodes.pop().flatten().map(|node| node.stat);
            let is_expected = match expect {
                Expect::Anything | Expect::Leader(_) => true,
                Expect::Absent => found.is_none(),
                Expect::Revision(revision) => found
                    .as_ref()
                    .is_some_and(|stat| stat.mzxid.cast_unsigned() == revision.0),
            };
            if !is_expected && again == 0 {
                continue;
            }
            if !is_expected {
                return error(DcsErrorKind::Conflict, "it is not what was expected");
            }
            let ops = ops(found.as_ref());
            if ops.is_empty() && again == 0 {
                continue;
            }
            let mut all = checks.clone();
            all.extend(ops);
            if all.is_empty() {
                return Ok(None);
            }
            let outcome = self.link.transact(&client, &all, until).await;
            match outcome.map_err(failed(Effect::Write))? {
                Outcome::Done(written) => return Ok(written.last().copied()),
                Outcome::Refused(at, _) if at < checks.len() => {
                    return error(DcsErrorKind::Conflict, "the lock is not held in this epoch");
                }
                Outcome::Refused(_, Error::NoNode) if found.is_none() => {
                    let (directory, _) = path.rsplit_once('/').unwrap_or_default();
                    let made = self.make_directory(&client, directory, until).await;
                    made.map_err(failed(Effect::Write))?;
                }
                // Somebody wrote it in this moment.
                Outcome::Refused(..) => {}
            }
        }
        error(DcsErrorKind::Unavailable, "others write it all the time")
    }

    /// Returns how the holding of an epoch is told from others; none if the lock is not held in it.
    async fn holding(
        &self,
        client: &Client,
        epoch: Epoch,
        until: Instant,
    ) -> Result<Option<Holding>, Failure> {
        let seen = held(&self.seen).filter(|seen| seen.epoch == epoch);
        if seen.is_some() {
            return Ok(seen);
        }
        self.link.catch_up(client, &self.base(), until).await?;
        let paths = [self.keys.leader(), self.epoch_path()];
        let (nodes, _) = self.link.nodes(client, &paths, 0, None, until).await?;
        let [Some(leader), Some(holding)] = nodes.as_slice() else {
            return Ok(None);
        };
        let found = Holding {
            epoch: epoch_of(&leader.stat),
            leader: leader.stat.version,
            version: holding.stat.version,
            session: leader.stat.ephemeral_owner,
        };
        Ok(Some(found).filter(|found| found.epoch == epoch))
    }

    /// Returns the conditions that the lock is held in this way.
    pub(super) fn conditions(&self, holding: &Holding) -> [Op; CHECKS] {
        [
            Op::Check(self.keys.leader(), holding.leader),
            Op::Check(self.epoch_path(), holding.version),
            Op::Check(self.fence_path(holding.session), -1),
        ]
    }

    /// Returns the node that a holding has to itself. Whoever wipes the store, so that versions
    /// begin anew, takes it away.
    pub(super) fn fence_path(&self, session: i64) -> String {
        format!("{}/{:x}", self.epoch_path(), session.cast_unsigned())
    }

    /// Makes a node and all above it, for other nodes to stand below. What clusters have in common
    /// is for everybody.
    pub(super) async fn make_directory(
        &self,
        client: &Client,
        path: &str,
        until: Instant,
    ) -> Result<(), Failure> {
        let base = self.keys.base().trim_end_matches('/');
        if let Some((shared, _)) = base.rsplit_once('/')
            && !shared.is_empty()
        {
            let acls = Acls::anyone_all();
            self.link
                .make_directory(client, shared, acls, until)
                .await?;
        }
        let acls = self.link.acls();
        self.link.make_directory(client, path, acls, until).await
    }

    /// Returns the node that each holding of spilo's writes.
    pub(super) fn epoch_path(&self) -> String {
        format!("{}epoch", self.keys.base())
    }

    /// Returns the node that everything of the cluster stands below.
    pub(super) fn base(&self) -> String {
        self.keys.base().trim_end_matches('/').to_owned()
    }

    pub(super) fn members_path(&self) -> String {
        format!("{}members", self.keys.base())
    }

    /// Returns every node that others stand below, from the root: each keeps the transaction that
    /// made or deleted one of those last.
    fn directories(&self) -> Vec<String> {
        let base = self.base();
        let above = base.match_indices('/').map(|(at, _)| match at {
            0 => "/".to_owned(),
            at => base.get(..at).unwrap_or_default().to_owned(),
        });
        let mut all: Vec<String> = above.collect();
        all.extend([base.clone(), self.members_path(), format!("{base}/optime")]);
        all
    }
}

fn epoch_of(leader: &Stat) -> Epoch {
    Epoch(leader.czxid.cast_unsigned())
}

fn entry(node: Node) -> Entry {
    Entry {
        revision: Revision(node.stat.mzxid.cast_unsigned()),
        value: node.value,
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}

/// How many conditions stand before the rest of a transaction of the holder.
pub(super) const CHECKS: usize = 3;

/// How many of the directories are the cluster's own; what others forbid to look at is theirs.
const OWN_DIRECTORIES: usize = 3;

/// How often something is tried that others come in between of.
const TRIES: usize = 5;
