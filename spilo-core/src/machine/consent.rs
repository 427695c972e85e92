//! Consent: the permission to write that all members give while the store is away.

use std::collections::BTreeMap;

use super::absorb::take;
use super::duties::RETRY;
use super::facts::Sent;
use super::lease::{Consent, Holding, Promise, renew_every};
use super::lock::electorate;
use super::{Command, LeaseRequest, Machine, Ticket};
use crate::ids::MemberName;
use crate::mutant::{Mutant, planted};
use crate::peer::{ConsentAnswer, ConsentRequest};
use crate::pg::Running;
use crate::wal::Lsn;

impl Machine {
    pub(super) fn consent(&mut self, commands: &mut Vec<Command>) {
        let facts = &self.facts;
        let view = self.view();
        let ttl = facts.ttl_in_force();
        let permitted_at = facts.consent.as_ref().map(|c| c.asked);
        let wanted = facts.config.failsafe_mode
            && facts.lanes.consent.is_none()
            && facts.ago(facts.lanes.consent_at) >= RETRY
            && facts.fencing.is_none()
            && !self.is_left_unfenced()
            && view.may_write()
            && facts.last_lease.is_some()
            && (view.leadership().is_some())
            && match &facts.holding {
                Some(held) => {
                    facts.now.since(held.base()) >= renew_every(ttl) * 3 / 2
                        && (held.failing
                            || facts.store_failing.is_some()
                            || facts.now.since(held.base()) >= ttl / 2)
                }
                None => facts.consent.is_some(),
            }
            && permitted_at.is_none_or(|at| facts.now.since(at) >= renew_every(ttl));
        if !wanted {
            return;
        }
        let Some(cluster) = &facts.cluster else {
            return;
        };
        let Some(list) = &cluster.value.failsafe else {
            return;
        };
        if !list.contains_key(&self.identity.name) {
            return;
        }
        // What an earlier holding of this node sent shows only in what was read in this one.
        let earlier = |held: &Holding| cluster.value.revision.0 < held.lease.epoch.0;
        if facts.holding.as_ref().is_some_and(earlier) {
            return;
        }
        // A member that has just come goes into the list with the next write, which may have been
        // done although nothing was heard of it, or of the member, since.
        let mut others = electorate(&self.identity.name, &cluster.value);
        for (name, url) in facts.written.listed.members() {
            if !planted(Mutant::SentListForgotten) {
                others.entry(name.clone()).or_insert_with(|| url.clone());
            }
        }
        if planted(Mutant::UnreadListForgotten) {
            others.retain(|name, _| list.contains_key(name));
        }
        let request = ConsentRequest {
            scope: Some(self.identity.scope.to_string()),
            name: self.identity.name.clone(),
            conn_url: self.identity.conn_url.clone(),
            api_url: self.identity.api_url.clone(),
            slots: BTreeMap::new(),
        };
        let ticket = self.facts.ticket();
        let what = others.keys().cloned().collect();
        self.facts.lanes.consent = Some(Sent {
            ticket,
            at: self.facts.now,
            what,
        });
        commands.push(Command::AskConsent(ticket, others, request));
    }

    pub(super) fn consent_answered(
        &mut self,
        ticket: Ticket,
        accepted: &BTreeMap<MemberName, Option<Lsn>>,
    ) {
        let facts = &mut self.facts;
        let Some(sent) = take(&mut facts.lanes.consent, ticket) else {
            return;
        };
        facts.lanes.consent_at = Some(facts.now);
        let all = if planted(Mutant::ConsentByMajority) {
            (accepted.len() + 1) * 2 > sent.what.len() + 1
        } else {
            sent.what.iter().all(|member| accepted.contains_key(member))
        };
        if all && let Some(lease) = facts.last_lease.clone() {
            facts.consent = Some(Consent {
                lease,
                asked: sent.at,
            });
        }
    }

    pub(super) fn consent_asked(&mut self, request: &ConsentRequest) -> ConsentAnswer {
        let ours = self.identity.scope.as_str();
        let stranger = request.scope.as_ref().is_some_and(|scope| *scope != ours);
        if stranger && !planted(Mutant::StrangersConsent) {
            return ConsentAnswer::Stranger;
        }
        let facts = &mut self.facts;
        let running = facts.pg.as_ref().and_then(|seen| seen.value.running());
        if running.is_some_and(Running::is_primary) || facts.holding.is_some() {
            return ConsentAnswer::RunningAsLeader;
        }
        if !facts.config.failsafe_mode {
            return ConsentAnswer::Off;
        }
        let acquiring = matches!(
            facts.lanes.lease.as_ref().map(|sent| &sent.what),
            Some(LeaseRequest::Acquire(_) | LeaseRequest::Succeed(..))
        );
        if (acquiring || facts.unsettled) && !planted(Mutant::ConsentWhileAcquiring) {
            return ConsentAnswer::Busy;
        }
        // The primary that asks may hold a lease from before the ttl was lowered.
        let held = facts.predecessor.as_ref().and_then(|p| p.ttl);
        let until = facts.now + held.map_or(facts.config.ttl, |ttl| ttl.max(facts.config.ttl));
        facts.promise = (!planted(Mutant::PromiseForgotten)).then(|| Promise {
            to: request.name.clone(),
            until,
        });
        ConsentAnswer::Accepted(running.map(|r| r.position().lsn))
    }
}
