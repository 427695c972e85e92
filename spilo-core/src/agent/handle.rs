//! How the rest of a program reaches its agent.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::{Backends, Request};
use crate::machine::{Event, Order};
use crate::peer::{ConsentAnswer, ConsentRequest};
use crate::status::Status;
use crate::time::NodeTime;

/// A way to a running agent; cheap to clone.
#[derive(Clone)]
pub struct AgentHandle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<Status>>,
    backends: Backends,
}

impl AgentHandle {
    pub(super) fn new(
        requests: mpsc::Sender<Request>,
        status: watch::Receiver<Arc<Status>>,
        backends: Backends,
    ) -> Self {
        Self {
            requests,
            status,
            backends,
        }
    }

    /// Returns what the node said of itself after its latest step.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Returns once the node says something else of itself: another decision or reason for it,
    /// state, role or hold on the lock; `false` when the agent is gone. Times and positions, which
    /// every step brings, are no news.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn changed(&mut self) -> bool {
        self.status.changed().await.is_ok()
    }

    /// Returns the time on the agent's clock.
    pub fn now(&self) -> NodeTime {
        self.backends.clock.now()
    }

    /// Returns what the agent works with.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Gives the agent an order. It is taken up with the next step; watch the status, or the
    /// agent's own end, for what came of it.
    pub async fn order(&self, order: Order) {
        self.tell(Event::Order(order)).await;
    }

    /// Gives the agent an order without waiting; returns whether it was taken.
    pub fn try_order(&self, order: Order) -> bool {
        self.requests
            .try_send(Request::Event(Event::Order(order)))
            .is_ok()
    }

    /// Hints that the store may have changed, so that the agent looks at once.
    pub fn wake(&self) {
        // A full queue is steps that look anyway.
        self.requests
            .try_send(Request::Event(Event::Changed))
            .unwrap_or_default();
    }

    /// Asks for this node's consent to another primary.
    ///
    /// # Cancellation
    /// A promise that was given stands, also if nobody waited for the answer.
    pub async fn consent(&self, request: ConsentRequest) -> ConsentAnswer {
        let (sender, answer) = oneshot::channel();
        if self
            .requests
            .send(Request::Consent(request, sender))
            .await
            .is_err()
        {
            return ConsentAnswer::Busy;
        }
        answer.await.unwrap_or(ConsentAnswer::Busy)
    }

    async fn tell(&self, event: Event) {
        // An agent that is gone takes no orders.
        self.requests
            .send(Request::Event(event))
            .await
            .unwrap_or_default();
    }
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentHandle")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
