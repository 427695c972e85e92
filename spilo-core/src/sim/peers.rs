//! What nodes ask each other.

use std::collections::{BTreeMap, BTreeSet};

use super::network::End;
use super::queue::Item;
use super::{Sim, as_u64, node_at};
use crate::ids::MemberName;
use crate::machine::{Event, Ticket};
use crate::peer::{ConsentAnswer, ConsentRequest};
use crate::wal::Lsn;

/// A round of questions for consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Round {
    from: usize,
    life: u64,
    ticket: Ticket,
    waits_for: BTreeSet<usize>,
    accepted: BTreeMap<MemberName, Option<Lsn>>,
}

impl Sim {
    pub(super) fn ask_peer(&mut self, n: usize, ticket: Ticket, name: &MemberName, url: &str) {
        let life = self.nodes[n].life;
        let Some(peer) = node_at(url).filter(|peer| *peer < self.nodes.len()) else {
            return self.tell_agent(n, Event::PeerAnswered(ticket, name.clone(), None));
        };
        let there = self.way() + 1;
        let item = Item::PeerAsked {
            from: n,
            life,
            ticket,
            peer,
        };
        self.queue.put(self.now + there, item);
    }

    pub(super) fn peer_asked(&mut self, from: usize, life: u64, ticket: Ticket, peer: usize) {
        let reached = self.network.joins(End::Node(from), End::Node(peer));
        let there = &self.nodes[peer];
        let status = if reached && there.answers() {
            there.status().map(|status| status.as_peer())
        } else {
            None
        };
        let back = match (&status, reached && !there.is_alive()) {
            (Some(_), _) => self.way() + 1,
            // Nobody listens, which is told at once.
            (None, true) => self.way() + 1,
            (None, false) => 1000,
        };
        let name = self.nodes[peer].identity.name.clone();
        self.answer(from, life, back, Event::PeerAnswered(ticket, name, status));
    }

    pub(super) fn ask_consent(
        &mut self,
        n: usize,
        ticket: Ticket,
        members: &BTreeMap<MemberName, String>,
        request: &ConsentRequest,
    ) {
        self.round += 1;
        let round = self.round;
        let peers: BTreeSet<usize> = members
            .values()
            .filter_map(|url| node_at(url))
            .filter(|peer| *peer < self.nodes.len())
            .collect();
        for peer in &peers {
            let there = self.way() + 1;
            let item = Item::ConsentAsked {
                round,
                peer: *peer,
                request: Box::new(request.clone()),
            };
            self.queue.put(self.now + there, item);
        }
        let limit = self
            .limits(n)
            .map_or(1000, |limits| limits.consent.as_millis());
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        self.queue.put(self.now + limit, Item::ConsentOver(round));
        let asked = Round {
            from: n,
            life: self.nodes[n].life,
            ticket,
            waits_for: peers,
            accepted: BTreeMap::new(),
        };
        self.rounds.insert(round, asked);
    }

    pub(super) fn consent_asked(&mut self, round: u64, peer: usize, request: ConsentRequest) {
        let Some(from) = self.rounds.get(&round).map(|round| round.from) else {
            return;
        };
        if self.network.joins(End::Node(from), End::Node(peer)) && self.nodes[peer].answers() {
            let ticket = Ticket(round * MOST_NODES + as_u64(peer));
            let life = self.nodes[peer].life;
            self.deliver(peer, life, Event::ConsentAsked(ticket, request));
        }
    }

    /// A node answers the question with this ticket.
    pub(super) fn answer_consent(&mut self, n: usize, ticket: Ticket, answer: ConsentAnswer) {
        let round = ticket.0 / MOST_NODES;
        let back = self.way() + 1;
        let item = Item::ConsentAnswered {
            round,
            peer: n,
            answer,
        };
        self.queue.put(self.now + back, item);
    }

    pub(super) fn consent_answered(&mut self, number: u64, peer: usize, answer: ConsentAnswer) {
        let Some(round) = self.rounds.get_mut(&number) else {
            return;
        };
        if !self.network.carries(End::Node(peer), End::Node(round.from)) {
            return;
        }
        round.waits_for.remove(&peer);
        if let ConsentAnswer::Accepted(lsn) = answer {
            let name = self.nodes[peer].identity.name.clone();
            round.accepted.insert(name, lsn);
        }
        if round.waits_for.is_empty() {
            self.consent_over(number);
        }
    }

    pub(super) fn consent_over(&mut self, round: u64) {
        if let Some(round) = self.rounds.remove(&round) {
            let event = Event::ConsentAnswered(round.ticket, round.accepted);
            self.answer(round.from, round.life, 0, event);
        }
    }
}

/// More than any cluster here has.
const MOST_NODES: u64 = 64;
