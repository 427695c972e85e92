//! What is done to a store, and what that takes.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::store::StoreKind;

/// What is done to the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFault {
    /// The store is stopped for 5 s.
    Stopped,
    /// The store is killed with -9 and started again at once.
    Killed,
    /// One of three members is killed with -9: the one that leads in odd runs, another in even ones.
    OneOfThree,
    /// One of three members is cut off from everybody for two ttls, which is a minority: the one
    /// that leads in odd runs, another in even ones.
    MinorityCut,
    /// One of three members that does not lead loses all packets to the others for two ttls, and
    /// goes on being reached by clients; another one with each run: ZooKeeper.
    FollowerCut,
    /// DNS names two of three members, another two with each run, and the third is killed with -9:
    /// etcd.
    RecordsChanged,
    /// DNS denies that there is such a domain for as long as an outage is, and one of three members
    /// is killed with -9 in the middle of it: etcd.
    DomainGone,
    /// The store stands still (SIGSTOP) for half a ttl.
    FrozenBriefly,
    /// The store stands still for three ttls: the primary goes on by consent.
    FrozenLong,
    /// The session of the lock is ended while its holder writes: Consul.
    SessionDestroyed,
    /// All of the store is gone for a minute, with all agents alive: the primary goes on by consent.
    AllGone,
    /// All of the store is gone and a standby's agent is dead: the primary steps down in time.
    AllGoneStandbyDead,
    /// The leader key is deleted by hand.
    LeaderKeyDeleted,
    /// Every key of the cluster is deleted.
    PrefixDeleted,
    /// The node that bootstraps is killed with -9, a little later each time.
    BootstrapKilled,
}

impl StoreFault {
    /// Returns the store that has this fault, or etcd if all have it.
    pub(super) fn own_store(self) -> StoreKind {
        match self {
            Self::SessionDestroyed => StoreKind::Consul,
            Self::FollowerCut => StoreKind::ZooKeeper,
            Self::RecordsChanged | Self::DomainGone => StoreKind::EtcdDns,
            _ => StoreKind::Etcd,
        }
    }

    /// Returns whether it is done to one of three members.
    pub fn takes_three(self) -> bool {
        matches!(
            self,
            Self::OneOfThree | Self::RecordsChanged | Self::DomainGone
        ) || self.takes_namespaces()
    }

    /// Returns whether packets are dropped, which takes network namespaces.
    pub fn takes_namespaces(self) -> bool {
        matches!(self, Self::MinorityCut | Self::FollowerCut)
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "store stopped for 5 s",
            Self::Killed => "store killed and restarted",
            Self::OneOfThree => "one of the store's three members killed",
            Self::MinorityCut => "one of the store's three members cut off",
            Self::FollowerCut => "a follower of the store cut off from the others",
            Self::RecordsChanged => "DNS names two of three members, the third killed",
            Self::DomainGone => "DNS denies the domain, one of three members killed",
            Self::FrozenBriefly => "store frozen for half a ttl",
            Self::FrozenLong => "store frozen for three ttls",
            Self::SessionDestroyed => "session destroyed",
            Self::AllGone => "all of the store gone",
            Self::AllGoneStandbyDead => "all of the store gone, a standby's agent dead",
            Self::LeaderKeyDeleted => "leader key deleted",
            Self::PrefixDeleted => "all keys deleted",
            Self::BootstrapKilled => "bootstrap killed",
        })
    }
}

/// Returns the shortest lease of a store, in seconds.
pub(super) fn shortest(store: StoreKind) -> u64 {
    match store {
        StoreKind::Consul | StoreKind::ZooKeeper => 10,
        _ => 2,
    }
}
