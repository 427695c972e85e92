//! Who holds the lock, who held it before, and from when on that one cannot write any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Machine;
use super::facts::Facts;
use super::lease::{Earlier, Holding, Predecessor, Proof};
use super::listed::Listed;
use crate::cluster::{Cluster, Initialize, Leader, MemberRole, ReleaseDocument};
use crate::dcs::{LeaderRecord, Lease, LeaseSecret};
use crate::ids::{Epoch, MemberName};
use crate::mutant::{Mutant, planted};
use crate::pg::{PgOpKind, PgStatus};
use crate::time::NodeTime;

impl Machine {
    /// The store says that the lease of the last holder has ended. That alone is no proof: an old
    /// leader of the store may have revoked it early. It is one if our own clock agrees with what
    /// the store had told of it.
    pub(super) fn lease_ended(&mut self, record: &LeaderRecord) {
        let now = self.facts.now;
        if let Some(before) = self.facts.predecessor.as_mut()
            && before.record.as_ref() == Some(record)
            && before.went_in_time(now)
        {
            before.proof = before.proof.or(Some(Proof::Aged));
        }
    }

    /// Notes a lease that was granted, which counts from `from`.
    pub(super) fn lock_is_ours(&mut self, lease: Lease, from: NodeTime) {
        let facts = &mut self.facts;
        // An epoch once given up is never held again, whatever the store says.
        if Some(lease.epoch) <= facts.given_up && !planted(Mutant::GivenUpEpochHeld) {
            facts.unsettled = true;
            return;
        }
        facts.last_lease = Some(lease.clone());
        facts.succeeding = None;
        // It was for the lease before.
        facts.consent = None;
        // A server that could not be promoted under an older holding is tried again.
        facts.failures.remove(&PgOpKind::Promote);
        facts.holding = Some(Holding::new(lease, from));
        // The store refuses what was sent in an earlier one.
        facts.written.listed = Listed::default();
        facts.lanes.read_wanted = true;
    }

    /// What a snapshot means for our own holding, and for who held the lock before.
    pub(super) fn note_lock(&mut self, at: NodeTime, cluster: &Cluster) {
        let ours = self.facts.holding.as_ref().map(|held| held.lease.epoch);
        let there = cluster.leader.as_ref().map(|leader| leader.record.epoch);
        match (ours, there) {
            (Some(ours), Some(there)) if ours == there => {
                if self
                    .facts
                    .holding
                    .as_ref()
                    .is_some_and(|held| held.clear.is_none())
                {
                    self.facts.others_until = self
                        .facts
                        .others_until
                        .max(Some(self.clear_of_others(cluster)));
                }
                // It was not passed on, and nothing is under way that could.
                if !self.facts.unsettled && self.facts.lanes.lease.is_none() {
                    self.facts.succeeding = None;
                }
                if let Some(held) = self.facts.holding.as_mut() {
                    held.confirmed = held.confirmed.max(at);
                    held.clear = held.clear.or(self.facts.others_until);
                }
            }
            // A snapshot from before our acquisition says nothing about it.
            (Some(ours), _) if cluster.revision.0 < ours.0 => return,
            (Some(_), _) => self.facts.give_up(),
            (None, _) => {}
        }
        if planted(Mutant::AdoptByName) {
            self.adopt_by_name(at, cluster);
        }
        let facts = &mut self.facts;
        let me = &self.identity.name;
        if let Some(leader) = &cluster.leader {
            // A fresh leader key settles any consent of before: somebody holds the lock.
            if leader.name.as_ref() != Some(me) {
                facts.consent = None;
            }
            let same =
                |p: &Predecessor| p.record.as_ref().map(|r| r.epoch) == Some(leader.record.epoch);
            let last = facts.predecessor.as_ref().filter(|p| same(p));
            if last.is_none() {
                facts.leader_since = facts.now;
                // What could not be rewound to one server may be to another.
                facts.failures.remove(&PgOpKind::Rewind);
            }
            let left = last.and_then(|p| p.left);
            let longest = last
                .and_then(|p| p.ttl)
                .max(told_by(cluster.release.as_ref(), leader))
                .max(ttl_of(cluster));
            let older = Older::of(facts, cluster, leader, longest);
            if is_recorded(cluster, Some(leader.record.epoch)) {
                facts.earlier = None;
            } else if last.is_none() {
                facts.earlier = Some(Earlier::of(facts, cluster, me));
            }
            facts.predecessor = Some(Predecessor {
                name: leader.name.clone(),
                record: Some(leader.record.clone()),
                told: None,
                ttl: longest.max(older.ttl),
                gone: None,
                gone_revision: None,
                left,
                older_until: older.until,
                proof: None,
            });
            return;
        }
        self.lock_is_free(cluster);
    }

    /// The mistake of a node that takes a key with its name for its own.
    fn adopt_by_name(&mut self, at: NodeTime, cluster: &Cluster) {
        let facts = &mut self.facts;
        if let Some(leader) = &cluster.leader
            && leader.name.as_ref() == Some(&self.identity.name)
            && facts.holding.is_none()
            && let Some(id) = leader.record.lease_id
        {
            let epoch = leader.record.epoch;
            let lease = Lease {
                epoch,
                secret: LeaseSecret(format!("{id}@{epoch}")),
                ttl: facts.config.ttl,
            };
            facts.holding = Some(Holding::new(lease, at));
        }
    }

    /// What it means that nobody has the key, for the last one that is known to have had it.
    fn lock_is_free(&mut self, cluster: &Cluster) {
        let now = self.facts.now;
        let facts = &mut self.facts;
        let me = &self.identity.name;
        let config_ttl = cluster.config.as_ref().map(|document| document.config.ttl);
        let before = facts.predecessor.get_or_insert_with(|| Predecessor {
            name: None,
            record: None,
            told: None,
            ttl: config_ttl,
            gone: None,
            gone_revision: None,
            left: None,
            older_until: None,
            proof: is_new(cluster).then_some(Proof::NewCluster),
        });
        // A whole holding that this agent never saw the key of.
        if let Some(record) = &cluster.release
            && Some(record.epoch) > before.epoch()
        {
            *before = Predecessor {
                name: MemberName::new(record.name.clone()).ok(),
                record: None,
                told: Some(record.epoch),
                ttl: before.ttl.max(config_ttl).max(record.ttl),
                gone: None,
                gone_revision: None,
                left: None,
                older_until: before.older_until,
                proof: None,
            };
        }
        if is_recorded(cluster, before.epoch()) {
            facts.earlier = None;
        }
        before.gone = before.gone.or(Some(now));
        before.gone_revision = before.gone_revision.or(Some(cluster.revision));
        if before.name.as_ref() == Some(me) && Some(before.epoch()) == Some(facts.given_up) {
            before.proof = before.proof.or(Some(Proof::Own));
        }
        if let Some(release) = &cluster.release
            && before.epoch() == Some(release.epoch)
        {
            before.ttl = before.ttl.max(release.ttl);
            let released = (!release.taken).then_some(Proof::Released);
            before.proof = before.proof.or(released);
        }
        vouched_by_record(before, cluster);
    }

    /// Whether the data directory has a cluster that others may know of.
    fn has_data(&self) -> bool {
        let status = self.facts.pg.as_ref().map(|seen| &seen.value);
        status
            .and_then(PgStatus::control)
            .is_some_and(|control| !control.provisional)
    }

    /// Returns when all who may have held the lock before this holding cannot write any more.
    ///
    /// What was waited for or proven before the lock was taken was about the last holder that this
    /// agent knew. Another may have taken the lock since and lost its key while nobody looked, and
    /// may be writing; its record is in the store, unless that was wiped as well.
    fn clear_of_others(&self, cluster: &Cluster) -> NodeTime {
        let facts = &self.facts;
        // Nobody can have taken the lock before our own permission ends.
        let kept = facts.kept().is_some_and(|d| facts.now < d.hard);
        if kept || planted(Mutant::OthersNotAwaited) {
            return facts.now;
        }
        // The predecessor too may be another than when the lock was asked for.
        let earlier = Earlier::of(facts, cluster, &self.identity.name).until;
        // Every holder leaves a record before it writes. A node with data that finds none looks at
        // a store that was wiped, and whoever held the lock before that may be writing.
        let wiped = cluster.release.is_none()
            && (facts.record_seen || (self.has_data() && !planted(Mutant::WipeForgotten)));
        if !wiped {
            return earlier;
        }
        let before = facts.predecessor.as_ref();
        let longest = before.map_or(Duration::ZERO, Predecessor::longest);
        earlier.max(facts.now + longest.max(facts.config.ttl))
    }
}

/// Whether the latest record is that of this holding, which therefore waited for all before it.
fn is_recorded(cluster: &Cluster, epoch: Option<Epoch>) -> bool {
    let record = cluster.release.as_ref();
    record.is_some_and(|record| Some(record.epoch) == epoch)
}

impl Earlier {
    /// Those who held the lock before somebody took it who has no record yet: the predecessor that
    /// was known, those before it, and whose record is in the store.
    fn of(facts: &Facts, cluster: &Cluster, me: &MemberName) -> Self {
        let now = facts.now;
        let record = cluster.release.as_ref();
        let last = facts.earlier;
        let before = facts.predecessor.as_ref();
        let known = before.and_then(Predecessor::epoch);
        let mut until = last.map_or(now, |earlier| earlier.until.max(now));
        if let Some(before) = before.filter(|before| before.name.as_ref() != Some(me)) {
            let released = record.is_some_and(|r| Some(r.epoch) == known && !r.taken);
            // One without an end held the lock when it was last looked at, and has lost it since.
            let end = before.may_write_until().unwrap_or_else(|| {
                (now + before.longest()).max(before.older_until.unwrap_or_default())
            });
            if !released && before.proof.is_none() {
                until = until.max(end);
            }
        }
        let ours = facts.holding.as_ref().map(|held| held.lease.epoch);
        let accounted = last.and_then(|earlier| earlier.record);
        if let Some(record) = record
            && record.taken
            && ![ours, known, accounted].contains(&Some(record.epoch))
        {
            let longest = before.map_or(Duration::ZERO, Predecessor::longest);
            let told = record.ttl.unwrap_or_default();
            until = until.max(now + longest.max(facts.config.ttl).max(told));
        }
        if planted(Mutant::EarlierForgotten) {
            until = now;
        }
        Self {
            record: record.map(|record| record.epoch),
            until,
        }
    }
}

/// What an earlier holding of the node that holds the lock means for others.
struct Older {
    until: Option<NodeTime>,
    ttl: Option<Duration>,
}

impl Older {
    /// A node takes its own lock over when its ttl changes or its agent was restarted. Until the
    /// store has the record of the new holding, nothing shows that it knows of that: its guard may
    /// go by the deadline of the old one, and its consent last for the old ttl.
    fn of(facts: &Facts, cluster: &Cluster, leader: &Leader, ttl: Option<Duration>) -> Self {
        let epoch = Some(leader.record.epoch);
        let known = facts.predecessor.as_ref();
        let known = known.filter(|p| p.name == leader.name && p.gone.is_none());
        let of_before = known.filter(|p| p.epoch() < epoch).and_then(|p| p.ttl);
        let recorded = cluster.release.as_ref().filter(|record| {
            let same = leader.name.as_ref().map(MemberName::as_str) == Some(&record.name);
            same && record.taken && Some(record.epoch) < epoch
        });
        let older = of_before.max(recorded.and_then(|record| record.ttl));
        if planted(Mutant::OlderLeaseForgotten) {
            return Self {
                until: None,
                ttl: None,
            };
        }
        let carried = known.and_then(|p| p.older_until);
        let longer = older.filter(|older| Some(*older) > ttl);
        let unknown = told_by(cluster.release.as_ref(), leader).is_none();
        Self {
            until: carried.max(longer.map(|older| facts.now + older)),
            ttl: longer.filter(|_| unknown),
        }
    }
}

/// Returns the ttl that the record of the leader's own holding names.
fn told_by(record: Option<&ReleaseDocument>, leader: &Leader) -> Option<Duration> {
    record
        .filter(|record| record.epoch == leader.record.epoch)?
        .ttl
}

/// A cluster that nobody can have written in: there was no bootstrap, and no member has a log.
fn is_new(cluster: &Cluster) -> bool {
    cluster.initialize == Initialize::Absent
        && cluster.config.is_none()
        && cluster.status.is_none()
        && cluster.history.is_none()
        && cluster.release.is_none()
        && cluster
            .members
            .values()
            .all(|m| m.position().is_none() && m.timeline.is_none())
}

/// A Patroni peer releases the lock without a record of ours, and then says in its member record
/// that its server is down or a standby. A record that is newer than the deletion is its word.
fn vouched_by_record(before: &mut Predecessor, cluster: &Cluster) {
    let Some(gone) = before.gone_revision else {
        return;
    };
    let Some(member) = before
        .name
        .as_ref()
        .and_then(|name| cluster.members.get(name))
    else {
        return;
    };
    // One of ours may have written it before it saw that the key is gone, and promote still. It
    // says over HTTP what it knows, and releases with a record.
    if member.raw.contains_key("spilo_version") {
        return;
    }
    let standby = matches!(member.role, MemberRole::Replica | MemberRole::Demoted);
    let down = matches!(
        member.state.as_str(),
        "stopped" | "crashed" | "start failed"
    );
    if member.revision > gone && member.role != MemberRole::Promoted && (standby || down) {
        before.proof = before.proof.or(Some(Proof::Vouched));
    }
}

pub(super) fn electorate(me: &MemberName, cluster: &Cluster) -> BTreeMap<MemberName, String> {
    let members = cluster
        .members
        .values()
        .filter_map(|m| Some((m.name.clone(), m.api_url.clone()?)));
    let failsafe = cluster
        .failsafe
        .iter()
        .flatten()
        .map(|(n, u)| (n.clone(), u.clone()));
    failsafe
        .chain(members)
        .filter(|(name, _)| name != me)
        .collect()
}

/// Returns the ttl of the leader's lease, once its kind and the configuration are known: Patroni
/// nodes raise a ttl below 20 s to that, whatever the configuration says.
fn ttl_of(cluster: &Cluster) -> Option<Duration> {
    let config = cluster.config.as_ref()?.config.ttl;
    let ours = cluster.leader_member()?.raw.contains_key("spilo_version");
    Some(if ours {
        config
    } else {
        config.max(Duration::from_secs(20))
    })
}
