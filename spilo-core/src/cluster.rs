//! What a snapshot of the store says about the cluster, typed.
//!
//! Reading tolerates everything that Patroni's own readers tolerate. What cannot be read is left
//! out and listed in [`Cluster::malformed`]; a bad `config` leaves the last good one in force,
//! because the settings of a running cluster must not fall back to defaults over a typing error.

mod codec;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::DynamicConfig;
use crate::dcs::{Key, LeaderRecord, RawSnapshot};
use crate::ids::{Epoch, MemberName, Revision, SystemId};
use crate::wal::{Lsn, Timeline};

pub use record::{MemberRecord, NodeState, encode, is_news};

/// Everything about the cluster at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cluster {
    /// The revision it is a picture of.
    pub revision: Revision,
    /// Who holds the lock.
    pub leader: Option<Leader>,
    /// The members that announce themselves.
    pub members: BTreeMap<MemberName, Member>,
    /// Whether the cluster was bootstrapped.
    pub initialize: Initialize,
    /// The dynamic configuration; the last good one if the document is malformed.
    pub config: Option<ConfigDocument>,
    /// The leader's last published position and slots.
    pub status: Option<StatusDocument>,
    /// The switchover or failover that was asked for.
    pub failover: Option<FailoverDocument>,
    /// The state of synchronous replication.
    pub sync: Option<SyncDocument>,
    /// The ends of the timelines so far; `None` when absent or unreadable.
    pub history: Option<Vec<HistoryEntry>>,
    /// The members whose consent keeps a primary, with their API URLs; `None` when absent.
    pub failsafe: Option<BTreeMap<MemberName, String>>,
    /// Who gave the lock up last.
    pub release: Option<ReleaseDocument>,
    /// What could not be read.
    pub malformed: Vec<Malformed>,
}

/// The holder of the lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leader {
    /// Its name; `None` if the key holds something that cannot be one, which still is a held lock.
    pub name: Option<MemberName>,
    /// The key as stored.
    pub record: LeaderRecord,
}

/// The `initialize` key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Initialize {
    /// There is none: nobody has bootstrapped yet, or it was deleted.
    #[default]
    Absent,
    /// Somebody is bootstrapping.
    Claimed,
    /// The cluster exists and this identifies it.
    Known(SystemId),
    /// Something that is no identifier; a leader overwrites it.
    Invalid,
}

/// A member, as it announced itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// Where its PostgreSQL listens.
    pub conn_url: Option<String>,
    /// Where its agent answers, the path `/patroni` included.
    pub api_url: Option<String>,
    /// Its state, as text of the contract.
    pub state: String,
    /// Its role.
    pub role: MemberRole,
    /// How far its log reaches.
    pub xlog_location: Option<Lsn>,
    /// The end of what it received.
    pub receive_lsn: Option<Lsn>,
    /// The end of what it applied.
    pub replay_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    pub replication_state: Option<String>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Whether it is a primary whose checkpoint after the promotion is still to come, so that a
    /// rewind against it would be wrong.
    pub checkpoint_pending: bool,
    /// Its tags.
    #[serde(with = "crate::journal::form::object")]
    pub tags: Map<String, Value>,
    /// The record as stored, unknown fields included.
    #[serde(with = "crate::journal::form::object")]
    pub raw: Map<String, Value>,
    /// When it was written.
    pub revision: Revision,
}

/// The role in a member record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberRole {
    /// `primary`, or `master` of old.
    Primary,
    /// `replica`.
    Replica,
    /// `standby_leader`.
    StandbyLeader,
    /// `promoted`: the promotion was ordered and is not finished.
    Promoted,
    /// `demoted`.
    Demoted,
    /// `uninitialized`, or anything else.
    Uninitialized,
}

/// The `config` key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// The settings.
    pub config: Arc<DynamicConfig>,
    /// When the last good one was written.
    pub revision: Revision,
}

/// The `status` key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StatusDocument {
    /// The leader's position.
    pub optime: Option<Lsn>,
    /// The positions of slots.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots that every node keeps although their member is gone.
    pub retain_slots: BTreeSet<String>,
    /// Fields that are not ours, kept when we write.
    #[serde(with = "crate::journal::form::object")]
    pub other: Map<String, Value>,
}

/// The `failover` key, when it asks for something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FailoverDocument {
    /// The leader to take the lock from; without it, a manual failover.
    pub leader: Option<String>,
    /// The member to promote.
    pub candidate: Option<String>,
    /// When, as text; `None` means now.
    pub scheduled_at: Option<String>,
    /// When it was written.
    pub revision: Revision,
}

/// The `sync` key, when synchronous mode is active.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SyncDocument {
    /// The leader that keeps it.
    pub leader: String,
    /// How many votes a candidate needs.
    pub quorum: u32,
    /// The synchronous standbys.
    pub standbys: BTreeSet<String>,
    /// When it was written.
    pub revision: Revision,
}

/// One entry of the `history` key: how a timeline ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where.
    pub end: Lsn,
    /// Why, as PostgreSQL's history file says.
    pub reason: String,
    /// When, as text.
    pub at: Option<String>,
    /// Who wrote the next timeline.
    pub new_leader: Option<String>,
}

/// The `release` key: who held the lock last, and whether it was given up.
///
/// A holder writes it before it takes writes, and again in the transaction that gives the lock up.
/// So a candidate that missed a whole holding finds it here, although the leader key is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReleaseDocument {
    /// The holding that ended with it.
    pub epoch: Epoch,
    /// Who held it.
    pub name: String,
    /// The time to live of its lease, whatever the configuration says by now.
    pub ttl: Option<Duration>,
    /// Whether it was taken and, as far as this says, not given up.
    pub taken: bool,
    /// The end of its log: the end of the shutdown checkpoint record.
    pub position: Option<(Timeline, Lsn)>,
    /// The candidate it was released for.
    pub candidate: Option<String>,
    /// When it was written.
    pub revision: Revision,
}

/// A key that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Malformed {
    /// Its path below the cluster's.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

impl Cluster {
    /// Reads a snapshot. `last` is what was read before, for what must survive a bad write.
    pub fn read(raw: &RawSnapshot, last: Option<&Self>) -> Self {
        let mut malformed = Vec::new();
        let doc = |key: Key| raw.documents.get(&key);
        let config = codec::config(doc(Key::Config), &mut malformed)
            .or_else(|| last.filter(|_| doc(Key::Config).is_some())?.config.clone());
        Self {
            revision: raw.revision,
            leader: raw
                .leader
                .as_ref()
                .map(|r| codec::leader(r, &mut malformed)),
            members: raw
                .members
                .iter()
                .filter_map(|(name, entry)| codec::member(name, entry, &mut malformed))
                .map(|member| (member.name.clone(), member))
                .collect(),
            initialize: codec::initialize(doc(Key::Initialize), &mut malformed),
            config,
            status: codec::status(doc(Key::Status), doc(Key::LegacyOptime), &mut malformed),
            failover: codec::failover(doc(Key::Failover), &mut malformed),
            sync: codec::sync(doc(Key::Sync), &mut malformed),
            history: codec::history(doc(Key::History), &mut malformed),
            failsafe: codec::failsafe(doc(Key::Failsafe), &mut malformed),
            release: codec::release(doc(Key::Release), &mut malformed),
            malformed,
        }
    }

    /// Returns the member that holds the lock, if it announces itself.
    pub fn leader_member(&self) -> Option<&Member> {
        self.members.get(self.leader.as_ref()?.name.as_ref()?)
    }

    /// Returns the timeline that the cluster is on by its `history`, if that can be known.
    pub fn timeline(&self) -> Option<Timeline> {
        match self.history.as_ref()?.last() {
            Some(last) => Some(Timeline(last.timeline.0.saturating_add(1))),
            None => Some(Timeline(1)),
        }
    }
}

impl Member {
    /// Returns the host and port of its `conn_url`.
    pub fn host_port(&self) -> Option<(String, u16)> {
        codec::host_port(self.conn_url.as_deref()?)
    }

    /// Returns how far its log reaches, as it announced it.
    pub fn position(&self) -> Option<Lsn> {
        self.xlog_location
            .or_else(|| self.receive_lsn.max(self.replay_lsn))
    }

    /// Returns whether a boolean tag is on, by Patroni's rule for booleans.
    pub fn tag(&self, name: &str) -> bool {
        self.tags
            .get(name)
            .and_then(crate::config::boolean)
            .unwrap_or(false)
    }
}

impl MemberRole {
    /// Reads the text of the contract; anything unknown is uninitialized.
    pub fn parse(text: &str) -> Self {
        match text {
            "primary" | "master" => Self::Primary,
            "replica" => Self::Replica,
            "standby_leader" => Self::StandbyLeader,
            "promoted" => Self::Promoted,
            "demoted" => Self::Demoted,
            _ => Self::Uninitialized,
        }
    }

    /// Returns the text of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::StandbyLeader => "standby_leader",
            Self::Promoted => "promoted",
            Self::Demoted => "demoted",
            Self::Uninitialized => "uninitialized",
        }
    }
}

impl StatusDocument {
    /// Returns the bytes to store.
    pub fn to_bytes(&self) -> Bytes {
        let mut map = Map::new();
        if let Some(optime) = self.optime {
            map.insert("optime".to_owned(), optime.0.into());
        }
        if !self.slots.is_empty() {
            let slots = self
                .slots
                .iter()
                .map(|(k, v)| (k.clone(), v.0.into()))
                .collect();
            map.insert("slots".to_owned(), Value::Object(slots));
        }
        if !self.retain_slots.is_empty() {
            let names = self.retain_slots.iter().cloned().map(Value::from).collect();
            map.insert("retain_slots".to_owned(), Value::Array(names));
        }
        map.extend(self.other.clone());
        encode(&Value::Object(map))
    }
}

impl HistoryEntry {
    /// Returns the bytes of a whole history.
    pub fn list_to_bytes(entries: &[Self]) -> Bytes {
        let list = entries.iter().map(|entry| {
            let mut item: Vec<Value> = vec![
                entry.timeline.0.into(),
                entry.end.0.into(),
                entry.reason.clone().into(),
            ];
            if let Some(at) = &entry.at {
                item.push(at.clone().into());
                if let Some(leader) = &entry.new_leader {
                    item.push(leader.clone().into());
                }
            }
            Value::Array(item)
        });
        encode(&Value::Array(list.collect()))
    }
}

impl ReleaseDocument {
    /// Returns the bytes to store.
    pub fn to_bytes(&self) -> Bytes {
        let mut map = Map::new();
        map.insert("epoch".to_owned(), self.epoch.0.into());
        map.insert("name".to_owned(), self.name.clone().into());
        if let Some(ttl) = self.ttl {
            let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            map.insert("ttl_ms".to_owned(), millis.into());
        }
        if self.taken {
            map.insert("taken".to_owned(), true.into());
        }
        if let Some((timeline, lsn)) = self.position {
            map.insert("timeline".to_owned(), timeline.0.into());
            map.insert("lsn".to_owned(), lsn.0.into());
        }
        if let Some(candidate) = &self.candidate {
            map.insert("candidate".to_owned(), candidate.clone().into());
        }
        encode(&Value::Object(map))
    }
}

#[cfg(test)]
mod tests;
