//! What is going to happen, in the order in which it does.

use std::collections::BTreeMap;

use super::faults::Fault;
use crate::ids::{MemberName, OpId};
use crate::machine::{Event, LeaseRequest, ReadRequest, Ticket, WriteRequest};
use crate::peer::{ConsentAnswer, ConsentRequest};

/// The future. Two things at the same moment happen in the order in which they were foreseen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Queue {
    items: BTreeMap<(u64, u64), Item>,
    order: u64,
}

/// Something that happens at a moment. All of it is data, so that a simulation can be cloned with
/// everything that is under way in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// An event reaches the agent of a node, if that life of it still lasts.
    Deliver(usize, u64, Event),
    /// A request reaches the store.
    AtStore(Box<StoreCall>),
    /// A look at the server of a node, whose result then takes so long to come back.
    Look(usize, u64, Ticket, u64),
    /// A question for a history reaches the node that it is about.
    HistoryAsked {
        from: usize,
        life: u64,
        ticket: Ticket,
        of: usize,
    },
    /// An operation takes effect on the server of a node, and is reported after that.
    Effect {
        node: usize,
        life: u64,
        op: OpId,
        serial: u64,
        breaks: bool,
    },
    /// The agent of a node kills the server's processes, and has tried since then.
    Fence { node: usize, life: u64, since: u64 },
    /// A question reaches a peer.
    PeerAsked {
        from: usize,
        life: u64,
        ticket: Ticket,
        peer: usize,
    },
    /// A question for consent reaches a peer.
    ConsentAsked {
        round: u64,
        peer: usize,
        request: Box<ConsentRequest>,
    },
    /// An answer to it comes back.
    ConsentAnswered {
        round: u64,
        peer: usize,
        answer: ConsentAnswer,
    },
    /// The time of a round of consent is over.
    ConsentOver(u64),
    /// The store hints at a change to a node.
    Hint(usize),
    /// A standby receives what its upstream has.
    Receive(usize),
    /// The clients write and read.
    Clients,
    /// A fault ends.
    Over(Fault),
}

/// A request to the store on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoreCall {
    pub(super) from: usize,
    pub(super) life: u64,
    pub(super) ticket: Ticket,
    pub(super) body: StoreBody,
    /// How long the answer takes; `None` if it is lost.
    pub(super) back: Option<u64>,
    /// How long its sender still waits once it is there.
    pub(super) patience: u64,
}

/// What is asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoreBody {
    /// With the id for the lease that it may take, and the ids of attempts to be undone.
    Lease(LeaseRequest, u64, Vec<u64>),
    Read(ReadRequest),
    Write(MemberName, WriteRequest),
}

impl Queue {
    pub(super) fn put(&mut self, at: u64, item: Item) {
        self.order += 1;
        self.items.insert((at, self.order), item);
    }

    /// Returns when the next item happens.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.items.keys().next().map(|(at, _)| *at)
    }

    /// Returns when the next item happens that somebody may hear of: not what goes on all the time
    /// between servers and clients.
    #[cfg(feature = "agent")]
    pub(super) fn next_heard_of_at(&self) -> Option<u64> {
        let is_quiet = |item: &Item| matches!(item, Item::Receive(_) | Item::Clients);
        self.items
            .iter()
            .find(|(_, item)| !is_quiet(item))
            .map(|((at, _), _)| *at)
    }

    /// Takes the next item out if it happens by `now`.
    pub(super) fn take(&mut self, now: u64) -> Option<Item> {
        let first = self.items.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Removes what `gone` says of.
    pub(super) fn remove(&mut self, gone: impl Fn(&Item) -> bool) {
        self.items.retain(|_, item| !gone(item));
    }
}
