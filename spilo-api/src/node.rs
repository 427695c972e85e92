//! What the server needs from the agent that it speaks for.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use spilo_core::agent::AgentHandle;
use spilo_core::machine::Order;
use spilo_core::peer::{ConsentAnswer, ConsentRequest};
use spilo_core::status::Status;
use spilo_core::{Dcs, NodeTime, Peers};

/// The agent, as the HTTP server sees it.
///
/// # Contract
/// - Every method but [`consent`](Self::consent) returns at once; health checks call them.
/// - [`now`](Self::now) is the clock that the times in [`status`](Self::status) were taken on.
/// - A status may be a little old, but its `leadership` is never longer than what was granted:
///   the server compares it with `now` again for each answer.
#[async_trait]
pub trait Node: Send + Sync {
    /// Returns the latest status.
    fn status(&self) -> Arc<Status>;

    /// Returns the time on the node's own clock.
    fn now(&self) -> NodeTime;

    /// Answers a primary that asks whether it may stay one without the store.
    ///
    /// # Cancellation
    /// Dropping the future is safe: a promise that was made and never delivered binds this node
    /// and grants nothing.
    async fn consent(&self, request: ConsentRequest) -> ConsentAnswer;

    /// Tells the agent that something in the store was changed through this server.
    fn wake(&self);

    /// Asks the agent to leave its server to the guard and to end. Returns whether it took the
    /// order; if not, it may be asked again.
    fn detach(&self) -> bool;

    /// Returns the store of the cluster.
    fn dcs(&self) -> Arc<dyn Dcs>;

    /// Returns the way to ask other members.
    fn peers(&self) -> Arc<dyn Peers>;

    /// Returns the time of day, for answers that carry one; nothing is decided by it.
    fn wall_clock(&self) -> SystemTime;
}

#[async_trait]
impl Node for AgentHandle {
    fn status(&self) -> Arc<Status> {
        Self::status(self)
    }

    fn now(&self) -> NodeTime {
        Self::now(self)
    }

    async fn consent(&self, request: ConsentRequest) -> ConsentAnswer {
        Self::consent(self, request).await
    }

    fn wake(&self) {
        Self::wake(self);
    }

    fn detach(&self) -> bool {
        self.try_order(Order::Detach)
    }

    fn dcs(&self) -> Arc<dyn Dcs> {
        Arc::clone(&self.backends().dcs)
    }

    fn peers(&self) -> Arc<dyn Peers> {
        Arc::clone(&self.backends().peers)
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
}
