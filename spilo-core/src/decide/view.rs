//! The facts, as the rules ask for them.

use std::time::Duration;

use crate::cluster::{Cluster, FailoverDocument, Member, MemberRole};
use crate::config::DynamicConfig;
use crate::dcs::Lease;
use crate::history::{End, History};
use crate::ids::{Epoch, MemberName};
use crate::machine::Identity;
use crate::machine::facts::{Facts, OpFailure};
use crate::machine::lease::{Predecessor, hard};
use crate::mutant::{Mutant, planted};
use crate::pg::{
    Control, ControlState, DataDir, PgOpKind, PgStatus, Role, Running, Server, Upstream,
};
use crate::status::{Leadership, PermittedBy};
use crate::time::NodeTime;
use crate::wal::WalPosition;

/// What `decide` looks at: who the node is and what it knows.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Who the node is.
    pub me: &'a Identity,
    /// What it knows.
    pub facts: &'a Facts,
}

impl<'a> View<'a> {
    /// Creates a view.
    pub fn new(me: &'a Identity, facts: &'a Facts) -> Self {
        Self { me, facts }
    }

    /// Returns the time.
    pub fn now(&self) -> NodeTime {
        self.facts.now
    }

    /// Returns the configuration in force.
    pub fn config(&self) -> &'a DynamicConfig {
        &self.facts.config
    }

    /// Returns what the store said last.
    pub fn cluster(&self) -> Option<&'a Cluster> {
        self.facts.cluster.as_ref().map(|seen| seen.value.as_ref())
    }

    /// Returns what PostgreSQL was when it was looked at last.
    pub fn pg(&self) -> Option<&'a PgStatus> {
        self.facts.pg.as_ref().map(|seen| &seen.value)
    }

    /// Returns the running server.
    pub fn running(&self) -> Option<&'a Running> {
        self.pg().and_then(PgStatus::running)
    }

    /// Returns the control data.
    pub fn control(&self) -> Option<&'a Control> {
        self.pg().and_then(PgStatus::control)
    }

    /// Returns whether every process of the server is known to be gone.
    pub fn is_down(&self) -> bool {
        self.pg().is_some_and(|pg| pg.server == Server::Down)
    }

    /// Returns whether the server takes writes, or may do so without our seeing it: one that does
    /// not answer counts as a primary unless it was last stopped, or started, as a standby, and one
    /// that was told to become a primary may be one in the next moment. So may one that the guard
    /// keeps a deadline for and nobody could look at.
    pub fn may_write(&self) -> bool {
        let Some(pg) = self.pg() else {
            return self.facts.has_unseen_writer() && !planted(Mutant::UnseenTrusted);
        };
        // What was seen before a fence that proved every process gone.
        if self.facts.pg.as_ref().map(|seen| seen.at) < self.facts.fenced_at {
            return false;
        }
        if self.facts.promotion_ordered {
            return true;
        }
        match &pg.server {
            Server::Down => false,
            Server::Running(running) => running.is_primary(),
            Server::Busy { .. } | Server::Closed { .. } | Server::Hung { .. } => match &pg.data {
                DataDir::Ready(control) => !control.standby,
                DataDir::Unfinished(op) => *op == PgOpKind::Bootstrap,
                DataDir::Empty | DataDir::Unreadable { .. } => true,
            },
        }
    }

    /// Returns whether the server is the guard's child; a server that is down is nobody's.
    pub fn is_guarded(&self) -> bool {
        match self.pg().map(|pg| &pg.server) {
            Some(
                Server::Busy { guarded, .. }
                | Server::Closed { guarded, .. }
                | Server::Hung { guarded },
            ) => *guarded,
            Some(Server::Running(running)) => running.guarded,
            Some(Server::Down) | None => true,
        }
    }

    /// Returns whether this node holds the lock, as far as it knows.
    pub fn is_holder(&self) -> bool {
        self.facts.holding.is_some()
    }

    /// Returns the lease, if this node holds the lock.
    pub fn lease(&self) -> Option<&'a Lease> {
        self.facts.holding.as_ref().map(|held| &held.lease)
    }

    /// Returns whether the store last said that somebody else holds the lock.
    pub fn leader_is_other(&self) -> bool {
        !self.is_holder()
            && self.cluster().is_some_and(|c| {
                c.leader.as_ref().is_some_and(|leader| {
                    Some(leader.record.epoch) > self.facts.given_up
                        || leader.name.as_ref() != Some(&self.me.name)
                })
            })
    }

    /// Returns the permission to write, whether or not it has run out.
    pub fn last_leadership(&self) -> Option<Leadership> {
        let budget = self.me.fence_budget;
        let stands = |epoch: Epoch| Some(epoch) > self.facts.released;
        let lease = self
            .facts
            .holding
            .as_ref()
            .filter(|held| held.recorded && stands(held.lease.epoch))
            .map(|held| {
                let whole = held.leadership(budget);
                let end = self.end_of_succession().unwrap_or(whole.until);
                let until = whole.until.min(end);
                Leadership { until, ..whole }
            });
        // It continues a lease, and ends with it when that is given up for a successor.
        let consent = self
            .facts
            .consent
            .as_ref()
            .filter(|c| stands(c.lease.epoch) || planted(Mutant::ConsentOutlivesRelease))
            .map(|consent| consent.leadership(budget));
        // A deadline that the guard keeps was granted and stands: one that the last incarnation of
        // this agent left, or one of a lock that vanished. Nobody can take the lock before it ends.
        let kept = self.facts.kept().map(|d| Leadership {
            epoch: d.epoch,
            until: self
                .end_of_succession()
                .map_or(d.hard, |end| d.hard.min(end)),
            by: PermittedBy::Lease,
        });
        let latest = |a: Leadership, b: Leadership| if b.until > a.until { b } else { a };
        lease.or(kept).into_iter().chain(consent).reduce(latest)
    }

    /// Returns when the lease ends, by the laws of a deadline, that this node passed its lock to, or
    /// may have: the one before it, by which the guard still goes, is ended then.
    fn end_of_succession(&self) -> Option<NodeTime> {
        if planted(Mutant::SuccessionIgnored) {
            return None;
        }
        let budget = self.me.fence_budget;
        let asked = self.facts.succeeding;
        let held = self.facts.holding.as_ref();
        asked
            .map(|(at, ttl)| hard(at, ttl, budget))
            .or_else(|| held.map(|held| held.leadership(budget).until))
    }

    /// Returns the permission to write, if there is one now.
    ///
    /// While another node holds the lock there is none, whatever our own clock says.
    pub fn leadership(&self) -> Option<Leadership> {
        let deposed = self.leader_is_other()
            && self
                .cluster()
                .and_then(|c| c.leader.as_ref())
                .is_some_and(|leader| leader.name.as_ref() != Some(&self.me.name));
        self.last_leadership()
            .filter(|l| self.now() < l.until && !deposed)
    }

    /// Returns whether the guard holds a deadline for the permission of now, with at least `left`
    /// of it to come.
    pub fn is_armed_for(&self, left: Duration) -> bool {
        let Some(permission) = self.leadership() else {
            return false;
        };
        self.facts
            .armed
            .as_ref()
            .is_some_and(|d| d.epoch == permission.epoch && self.now() + left <= d.soft)
    }

    /// Returns the member that holds the lock, if it is another one and announces itself.
    pub fn leader_member(&self) -> Option<&'a Member> {
        self.cluster()?
            .leader_member()
            .filter(|m| m.name != self.me.name)
    }

    /// Returns where to stream from: the leader.
    pub fn upstream(&self) -> Option<Upstream> {
        let leader = self.leader_member()?;
        let conn_url = leader.conn_url.clone()?;
        Some(Upstream {
            name: leader.name.clone(),
            conn_url,
        })
    }

    /// Returns whether the leader announces itself as a primary that answers.
    pub fn leader_serves(&self) -> bool {
        self.leader_member()
            .is_some_and(|m| m.role == MemberRole::Primary && m.state == "running")
    }

    /// Returns the name of whoever holds the lock, for the log.
    pub fn leader_name(&self) -> String {
        match self.cluster().and_then(|c| c.leader.as_ref()) {
            Some(leader) => leader
                .name
                .as_ref()
                .map_or_else(|| "somebody unknown".to_owned(), MemberName::to_string),
            None => "nobody".to_owned(),
        }
    }

    /// Returns the leader's history, if it was asked in the epoch that is now and is of the
    /// timeline that the leader says it is on: a holder that had to step down to a standby and
    /// kept its lease is promoted again within one epoch.
    pub fn leader_history(&self) -> Option<&'a History> {
        let known = self.facts.leader_history.as_ref()?;
        let leader = self.cluster()?.leader.as_ref()?;
        let current =
            Some(&known.name) == leader.name.as_ref() && known.epoch == Some(leader.record.epoch);
        let told = self.leader_member().and_then(|member| member.timeline);
        known
            .answer
            .as_ref()
            .ok()
            .filter(|_| current)
            .map(|(_, history)| history)
            .filter(|history| told.is_none_or(|told| told == history.timeline()))
    }

    /// Returns how far this node's log reaches.
    pub fn position(&self) -> Option<WalPosition> {
        self.pg().and_then(PgStatus::position)
    }

    /// Returns whether this node's log is no prefix of the leader's history, if that is known.
    ///
    /// A running standby is judged by what it has replayed: what it has received may end within a
    /// record that the leader never finished. The control file of a server that crashed as a
    /// primary does not say how far it wrote, so such a server counts as diverged wherever the
    /// leader has left its timeline.
    pub fn is_diverged(&self) -> Option<bool> {
        let history = self.leader_history()?;
        if self.is_other_branch(history)? {
            return Some(true);
        }
        if let Some(Running {
            role: Role::Standby { replayed, .. },
            timeline,
            ..
        }) = self.running()
        {
            return Some(!history.contains(WalPosition {
                timeline: *timeline,
                lsn: *replayed,
            }));
        }
        let control = self.control()?;
        let crashed = !control.standby && control.state != ControlState::ShutDown;
        let left = history.end_of(control.position.timeline) != Some(End::Open);
        Some((crashed && left) || !history.contains(control.position))
    }

    /// Returns whether this server's timeline is another than the leader's of the same number.
    ///
    /// The number is no identity: two servers that were cut off from each other may both have been
    /// promoted to it. A server that led it is no follower of another that does, and timelines
    /// that came along different ways are different ones.
    fn is_other_branch(&self, theirs: &History) -> Option<bool> {
        let mine = self.position()?.timeline;
        let led =
            self.control().is_some_and(|control| !control.standby) || self.facts.led == Some(mine);
        let own = self.facts.own_history.as_ref();
        if own.is_none() && self.facts.lanes.history_failed.is_none() {
            return None;
        }
        let other_way = own
            .filter(|own| own.timeline() == mine)
            .is_some_and(|own| !theirs.came_through(own));
        Some((led && mine == theirs.timeline()) || other_way)
    }

    /// Returns the failure of an operation that is too recent to try it again: one second after
    /// the first, and up to ten after more.
    pub fn backing_off(&self, kind: PgOpKind) -> Option<&'a OpFailure> {
        let failure = self.facts.failures.get(&kind)?;
        let pause = Duration::from_secs(u64::from(failure.times.min(10)));
        (self.now().since(failure.at) < pause).then_some(failure)
    }

    /// Returns how often an operation has failed since it last succeeded.
    pub fn failed(&self, kind: PgOpKind) -> u32 {
        self.facts
            .failures
            .get(&kind)
            .map_or(0, |failure| failure.times)
    }

    /// Returns the switchover or failover that was asked for and not refused.
    pub fn failover(&self) -> Option<&'a FailoverDocument> {
        let document = self.cluster()?.failover.as_ref()?;
        let refused = self
            .facts
            .refused_failover
            .as_ref()
            .is_some_and(|(r, _)| *r == document.revision);
        (!refused).then_some(document)
    }

    /// Returns who held the lock before.
    pub fn predecessor(&self) -> Option<&'a Predecessor> {
        self.facts.predecessor.as_ref()
    }
}
