//! What one cluster looks like from outside.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use spilo_core::Cluster;
use spilo_core::cluster::{Initialize, Member, MemberRole};

/// A cluster in a few words and numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ClusterOverview {
    /// Its name.
    pub scope: String,
    /// How it is doing.
    pub health: Health,
    /// Who holds the lock, as the key says.
    pub leader: Option<String>,
    /// The timeline of the leader, or the one that the cluster's history ends on.
    pub timeline: Option<u32>,
    /// Its members, in the order of their names.
    pub members: Vec<MemberOverview>,
    /// How long the leader key has been as it is, as far as the observer knows.
    #[serde(serialize_with = "seconds")]
    pub led_for: Duration,
    /// How long ago anything changed, as far as the observer knows.
    #[serde(serialize_with = "seconds")]
    pub changed_before: Duration,
    /// What could not be read, a line each.
    pub problems: Vec<String>,
}

/// A member in a few words and numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemberOverview {
    /// Its name.
    pub name: String,
    /// Its role, in the words of the contract.
    pub role: String,
    /// Its state, in the words of the contract.
    pub state: String,
    /// Where its PostgreSQL listens.
    pub host: Option<String>,
    /// The port there.
    pub port: Option<u16>,
    /// Where its agent answers, the path `/patroni` included.
    pub api_url: Option<String>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// How far its log reaches, as PostgreSQL writes positions.
    pub position: Option<String>,
    /// How far that is behind the leader's, in bytes.
    pub lag_bytes: Option<u64>,
}

/// How a cluster is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
pub enum Health {
    /// A leader that runs, and every other member follows it.
    Healthy,
    /// A leader that runs, and something that does not.
    Degraded(String),
    /// Nobody takes writes, as far as the store tells.
    Leaderless(String),
    /// It is being made.
    Bootstrapping,
}

impl ClusterOverview {
    /// Describes a cluster as it was read; `ages` are those of the last change and of the leader key.
    pub(super) fn of(
        scope: &str,
        cluster: &Cluster,
        foreign: &BTreeSet<String>,
        ages: [Duration; 2],
    ) -> Self {
        let leader = cluster.leader_member();
        let end = leader.and_then(Member::position);
        let end = end.max(cluster.status.as_ref().and_then(|status| status.optime));
        let timeline = leader.and_then(|leader| leader.timeline);
        let members = cluster.members.values().map(|member| MemberOverview {
            name: member.name.to_string(),
            role: member.role.as_str().to_owned(),
            state: state(member),
            host: member.host_port().map(|(host, _)| host),
            port: member.host_port().map(|(_, port)| port),
            api_url: member.api_url.clone(),
            timeline: member.timeline.map(|timeline| timeline.0),
            position: member.position().map(|position| position.to_string()),
            lag_bytes: end.and_then(|end| Some(end.bytes_past(member.position()?))),
        });
        let malformed = cluster.malformed.iter();
        let problems = malformed
            .map(|malformed| format!("{}: {}", malformed.path, malformed.problem))
            .chain(
                foreign
                    .iter()
                    .map(|path| format!("{path}: is no key of ours")),
            );
        let key = cluster.leader.as_ref().map(|leader| &leader.record.name);
        Self {
            scope: scope.to_owned(),
            health: health(cluster, leader),
            leader: key.map(|name| String::from_utf8_lossy(name).into_owned()),
            timeline: timeline.or_else(|| cluster.timeline()).map(|t| t.0),
            members: members.collect(),
            led_for: ages[1],
            changed_before: ages[0],
            problems: problems.collect(),
        }
    }

    /// Returns the member that holds the lock, if it announces itself.
    pub fn leader_member(&self) -> Option<&MemberOverview> {
        let leader = self.leader.as_ref()?;
        self.members.iter().find(|member| member.name == *leader)
    }

    /// Returns the same some time later, if nothing has been heard since.
    #[must_use]
    pub fn aged(&self, by: Duration) -> Self {
        let mut later = self.clone();
        later.led_for += by;
        later.changed_before += by;
        later
    }

    /// Returns the same without positions and ages, whose change alone is no news: what is worth
    /// publishing.
    #[must_use]
    pub fn still(&self) -> Self {
        let mut still = self.clone();
        (still.led_for, still.changed_before) = (Duration::ZERO, Duration::ZERO);
        for member in &mut still.members {
            (member.position, member.lag_bytes) = (None, None);
        }
        still
    }
}

fn health(cluster: &Cluster, leader: Option<&Member>) -> Health {
    let Some(holder) = &cluster.leader else {
        return match cluster.initialize {
            Initialize::Claimed => Health::Bootstrapping,
            Initialize::Absent if cluster.history.is_none() => Health::Bootstrapping,
            _ => Health::Leaderless("nobody holds the lock".to_owned()),
        };
    };
    let Some(leader) = leader else {
        let name = String::from_utf8_lossy(&holder.record.name);
        return Health::Leaderless(format!(
            "{name} holds the lock and does not announce itself"
        ));
    };
    if cluster.initialize == Initialize::Claimed {
        return Health::Bootstrapping;
    }
    let is_writing = matches!(leader.role, MemberRole::Primary | MemberRole::StandbyLeader);
    if !is_writing || leader.state != "running" {
        return Health::Leaderless(format!(
            "{} holds the lock and is {}, {}",
            leader.name,
            leader.role.as_str(),
            leader.state
        ));
    }
    let others = cluster.members.values().filter(|m| m.name != leader.name);
    let wrong = others.filter_map(|member| {
        let follows = member.state == "running"
            && member.role == MemberRole::Replica
            && member.replication_state.is_some()
            && member.timeline == leader.timeline;
        let why = || match member.timeline {
            Some(timeline) if member.timeline != leader.timeline => {
                format!("{} is on timeline {}", member.name, timeline.0)
            }
            _ => format!(
                "{} is {}, {}",
                member.name,
                member.role.as_str(),
                state(member)
            ),
        };
        (!follows).then(why)
    });
    let wrong: Vec<_> = wrong.collect();
    if !wrong.is_empty() {
        return Health::Degraded(wrong.join("; "));
    }
    Health::Healthy
}

/// Returns the state as `patronictl list` shows it.
fn state(member: &Member) -> String {
    match &member.replication_state {
        Some(replication) if member.state == "running" && member.role == MemberRole::Replica => {
            replication.clone()
        }
        _ => member.state.clone(),
    }
}

fn seconds<S: serde::Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(span.as_secs())
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy"),
            Self::Degraded(why) => write!(f, "degraded: {why}"),
            Self::Leaderless(why) => write!(f, "leaderless: {why}"),
            Self::Bootstrapping => f.write_str("bootstrapping"),
        }
    }
}
