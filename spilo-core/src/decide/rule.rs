//! The names of everything that a node may decide.

use serde::{Deserialize, Serialize};

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident),* $(,)?) => {
        /// Why a node does what it does: the branch of [`decide`](super::decide) that was taken.
        ///
        /// In order of precedence. The name is the log line, the metric label and the coverage
        /// mark.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Rule {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Rule {
            /// Every rule there is, in order of precedence.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

rules! {
    // Safety.
    /// The server takes writes, or may, without permission: end it.
    WriterWithoutPermission,
    /// An operation would make or keep a primary without permission: stop it, and end the server.
    OperationWithoutPermission,
    /// The guard does not answer while the server takes writes: nothing holds the deadline.
    GuardSilent,
    /// A fence is under way.
    Fencing,
    /// The database cluster on disk is another one than the store's.
    ForeignCluster,
    /// The data directory cannot be read.
    DataUnreadable,
    /// The agent was asked to leave guard and server running.
    Detach,
    /// The agent was asked to stop, and has nothing left to stop.
    Stopped,
    /// The agent was asked to stop while an operation runs: stop that first.
    StopOperation,
    /// An operation is under way.
    Operating,
    /// PostgreSQL of the holder cannot be looked at, or runs without its data: end it, so that another
    /// node can lead.
    FenceBlind,
    /// The server of a holder that cannot be looked at was ended: give the lock up.
    ReleaseBlind,
    /// PostgreSQL has not been looked at yet, or not since the last operation.
    Looking,
    /// The guard has not answered yet.
    GuardUnknown,
    /// The lock is handed over before the agent stops.
    StopHandOver,
    /// The server is stopped before the agent stops.
    StopServer,
    /// The server is not the guard's child: it is stopped, to be started under it.
    Unguarded,
    /// The lock was released for a successor, or is about to be.
    ReleaseHandedOver,
    /// The successor has not yet received the last record.
    AwaitHandOver,
    /// The successor did not receive the last record in time: serve again.
    HandOverFailed,
    /// The store has not answered since the agent started.
    StoreUnknown,
    /// An earlier incarnation of this node holds the lock, and the guard kept its secret.
    Succeed,

    // An empty or unfinished data directory.
    /// The lock is held with nothing to lead with: give it up.
    ReleaseEmpty,
    /// The right to bootstrap is claimed under the lease.
    ClaimInitialize,
    /// A new cluster is made.
    Bootstrap,
    /// Making a new cluster failed; it is tried again after a while.
    BootstrapFailed,
    /// A copy of the leader is made.
    Clone,
    /// Making a copy failed; it is tried again after a while.
    CloneFailed,
    /// The leader cannot be copied yet.
    AwaitSource,
    /// Somebody else makes the new cluster.
    AwaitBootstrap,
    /// The lock is taken to make a new cluster.
    BootstrapRace,

    // Holding the lock.
    /// The promise to another primary forbids to hold.
    PromisedHolder,
    /// The bootstrap is confirmed: the store has the system identifier.
    ConfirmBootstrap,
    /// A switchover cannot be done, and is cleared with the reason.
    SwitchoverRefused,
    /// Candidates of a switchover are asked.
    SwitchoverAsk,
    /// No candidate may take the lock yet, or the store fails: the primary serves until one may.
    SwitchoverWait,
    /// The primary hands over.
    Switchover,
    /// The configuration changed: it is applied.
    Configure,
    /// Slots of members are created or dropped.
    Slots,
    /// The checkpoint after the promotion.
    Checkpoint,
    /// The node leads; nothing is to do.
    Lead,
    /// The permission to write is too short to start anything with.
    PermissionShort,
    /// The guard is not armed yet.
    AwaitGuard,
    /// The standby that holds the lock is promoted.
    Promote,
    /// The promotion failed too often: give the lock up.
    ReleaseUnpromotable,
    /// The primary's server is down: it is started in place.
    StartInPlace,
    /// The primary does not start: give the lock up.
    ReleaseUnstartable,
    /// The standby that holds the lock is down: it is started, to be promoted.
    StartHolder,
    /// The server of the holder does not answer yet.
    AwaitServer,
    /// The server of the holder has hung for too long: end it, to start it anew.
    FenceHung,

    // Following.
    /// A stopped server is no prefix of the leader's history, or was on the way to be one when a
    /// rewind was interrupted: it is rewound.
    Rewind,
    /// Rewind cannot mend it: a new copy is made.
    Reclone,
    /// It cannot be mended by the means allowed, or does not start; nothing is thrown away.
    Stuck,
    /// A diverged standby is stopped, to be rewound.
    StopDiverged,
    /// The leader's history is not known yet, and this server may have diverged.
    AwaitHistory,
    /// The standby is started.
    StartStandby,
    /// Starting the standby failed; it is tried again after a while.
    StartFailed,
    /// The standby is pointed at the leader.
    Follow,
    /// The node follows and streams.
    Following,
    /// The node follows, but does not stream yet.
    Connecting,
    /// The server of a follower does not answer yet.
    AwaitStandby,
    /// The server of a follower has hung for too long: end it, to start it anew.
    FenceHungStandby,

    // The race for a free lock.
    /// The store does not answer: what was known stays.
    StoreSilent,
    /// The own server cannot be looked at: the lock is left to others.
    Blind,
    /// An earlier attempt to take the lock must be settled first.
    Unsettled,
    /// Nobody makes a new cluster: this node may not, or does not know how.
    NoBootstrap,
    /// A setting that is not built decides who may be promoted.
    Unsupported,
    /// The promise to another primary forbids to race.
    Promised,
    /// The agent has just started, and may have promised something before.
    JustStarted,
    /// The last holder of the lock may still write.
    PredecessorMayWrite,
    /// The lock vanished, and this primary may still write: take it back.
    TakeBack,
    /// A server that is down is started as a standby, to know its position.
    StartToRace,
    /// A server does not answer yet, so that its position is unknown.
    AwaitPosition,
    /// The node is not in the list of the failsafe mode, or the list was lost.
    NotInFailsafe,
    /// The position is too far behind the last known one of the leader.
    TooFarBehind,
    /// The node is not on the cluster's latest timeline.
    TimelineBehind,
    /// Peers have not been asked since the lock became free.
    AskPeers,
    /// A peer still is a primary.
    PeerIsPrimary,
    /// A peer is ahead.
    PeerAhead,
    /// The lock was released for another candidate, which is alive.
    AwaitCandidate,
    /// The lock is free and nothing speaks against it: take it.
    Acquire,
}

impl Rule {
    /// Returns whether a node that decides so may not take the lock, for a reason that does not
    /// pass by itself: nobody has to wait for it.
    pub fn bars(self) -> bool {
        matches!(
            self,
            Self::GuardUnknown
                | Self::StoreSilent
                | Self::Blind
                | Self::Unsupported
                | Self::NotInFailsafe
                | Self::TooFarBehind
                | Self::TimelineBehind
        )
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
