//! What can go wrong.

use bytes::Bytes;

use super::Sim;
use super::network::End;
use super::node::{FakeGuard, Mind};
use super::queue::Item;
use super::server::Disk;
use crate::dcs::{Expect, Key};
use crate::machine::{Event, Order};
use crate::time::NodeTime;

/// A fault. Nodes are numbered in the order in which the cluster was given its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The server dies; its agent and guard live.
    CrashServer(usize),
    /// The agent dies; guard and server live.
    KillAgent(usize),
    /// The guard dies, and the server with it.
    KillGuard(usize),
    /// Agent, guard and server die.
    KillNode(usize),
    /// The agent stands still, and its server does not.
    PauseAgent(usize),
    /// The guard stands still. With an agent that stands still as well nothing would end the
    /// server's writes, so the agent goes on.
    FreezeGuard(usize),
    /// Fences that the agent asks for fail at once. With a guard that stands still nothing would end
    /// the server's writes, so it goes on.
    BreakFence(usize),
    /// The disk answers nothing.
    StallDisk(usize),
    /// Nothing more fits on the disk.
    FillDisk(usize),
    /// The server's processes stand still.
    FreezeServer(usize),
    /// Nobody can look at the data directory; the server lives.
    HideData(usize),
    /// The control file cannot be read.
    BreakData(usize),
    /// Somebody removes the data directory, of which another node has all but the last moments.
    RemoveData(usize),
    /// Somebody starts a standby that is down, without the guard.
    StartByHand(usize),
    /// Somebody writes the identifier of another cluster into the store.
    ForeignCluster,
    /// A node reaches nobody.
    CutOff(usize),
    /// A node reaches the others, but not the store.
    CutFromStore(usize),
    /// What a node sends to the store arrives, and no answer comes back.
    DeafToStore(usize),
    /// What the first node sends does not arrive at the second.
    CutOneWay(usize, usize),
    /// No node reaches another, and all reach the store.
    Scatter,
    /// The store refuses connections.
    StopStore,
    /// The store takes requests and answers none.
    SilenceStore,
    /// Every other time, what a node reads of the store is what was there when this began: some
    /// member of the store has heard of nothing since. The trait promises better, and a backend
    /// has to refuse such answers; plans do not choose this one.
    StaleReads(usize),
    /// The store elects a leader: it is silent, and all leases begin anew.
    StoreElection,
    /// Somebody deletes the leader key.
    DeleteLeader,
    /// Somebody deletes every key.
    Wipe,
    /// Somebody deletes some documents: those whose bit is set.
    WipeSome(u16),
    /// Somebody writes nonsense into a document.
    Garbage(Key, u8),
    /// Somebody asks the first node to hand over to the second.
    Switchover(usize, usize),
    /// The agent is told to stop.
    Shutdown(usize),
    /// The agent is told to leave guard and server running.
    Detach(usize),
}

macro_rules! kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// The kinds of [`Fault`], by which plans choose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FaultKind {
            $(#[doc = concat!("[`Fault::", stringify!($kind), "`].")] $kind,)*
        }

        impl FaultKind {
            /// Every kind.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$kind),*];

            /// Returns its name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    CrashServer = "crash-server",
    KillAgent = "kill-agent",
    KillGuard = "kill-guard",
    KillNode = "kill-node",
    PauseAgent = "pause-agent",
    FreezeGuard = "freeze-guard",
    BreakFence = "break-fence",
    StallDisk = "stall-disk",
    FillDisk = "fill-disk",
    FreezeServer = "freeze-server",
    HideData = "hide-data",
    BreakData = "break-data",
    RemoveData = "remove-data",
    StartByHand = "start-by-hand",
    ForeignCluster = "foreign-cluster",
    CutOff = "cut-off",
    CutFromStore = "cut-from-store",
    DeafToStore = "deaf-to-store",
    CutOneWay = "cut-one-way",
    Scatter = "scatter",
    StopStore = "stop-store",
    SilenceStore = "silence-store",
    StoreElection = "store-election",
    DeleteLeader = "delete-leader",
    Wipe = "wipe",
    WipeSome = "wipe-some",
    Garbage = "garbage",
    Switchover = "switchover",
    Shutdown = "shutdown",
    Detach = "detach",
}

impl Fault {
    /// Returns whether it ends by itself, or is over as soon as it has struck.
    pub fn lasts(self) -> bool {
        !matches!(
            self,
            Self::CrashServer(_)
                | Self::KillGuard(_)
                | Self::RemoveData(_)
                | Self::StartByHand(_)
                | Self::DeleteLeader
                | Self::Wipe
                | Self::WipeSome(_)
                | Self::Garbage(..)
                | Self::Switchover(..)
        )
    }
}

impl Sim {
    /// Lets a fault strike, which ends after `lasts_ms` if it is one that lasts.
    pub fn strike(&mut self, fault: Fault, lasts_ms: u64) {
        self.note(format_args!("-- {fault:?} for {lasts_ms} ms"));
        self.begin(fault);
        if fault.lasts() {
            self.queue
                .put(self.now.saturating_add(lasts_ms), Item::Over(fault));
        }
    }

    /// Begins a fault, which lasts until [`end`](Self::end).
    pub fn begin(&mut self, fault: Fault) {
        let all = self.nodes.len();
        let now = NodeTime(self.now);
        match fault {
            Fault::CrashServer(n) => {
                self.nodes[n].server.crash();
                self.tell_agent(n, Event::ServerChanged);
            }
            Fault::KillAgent(n) => self.end_agent(n),
            Fault::KillGuard(n) => {
                self.nodes[n].server.crash();
                self.nodes[n].guard = FakeGuard::default();
                self.tell_agent(n, Event::ServerChanged);
            }
            Fault::KillNode(n) => {
                self.end_agent(n);
                self.nodes[n].server.crash();
                self.nodes[n].guard = FakeGuard::default();
            }
            Fault::PauseAgent(n) => {
                self.nodes[n].guard.frozen = false;
                self.nodes[n].paused = true;
            }
            Fault::FreezeGuard(n) => {
                let node = &mut self.nodes[n];
                node.guard.frozen = node.answers() && !node.fence_fails;
            }
            Fault::BreakFence(n) => {
                self.nodes[n].guard.frozen = false;
                self.nodes[n].fence_fails = true;
            }
            Fault::StallDisk(n) => self.nodes[n].server.set_disk(Disk::Stalled),
            Fault::FillDisk(n) => {
                self.nodes[n].server.set_disk(Disk::Full);
                self.tell_agent(n, Event::ServerChanged);
            }
            Fault::FreezeServer(n) => self.nodes[n].server.freeze(true),
            Fault::HideData(n) => self.nodes[n].server.hide(true),
            Fault::BreakData(n) => self.nodes[n].server.break_data(true),
            Fault::RemoveData(n) => {
                if self.is_spare(n) {
                    self.nodes[n].server.wipe();
                    self.tell_agent(n, Event::ServerChanged);
                }
            }
            Fault::StartByHand(n) => self.nodes[n].server.start_by_hand(),
            Fault::ForeignCluster => self.write(Key::Initialize, Bytes::from_static(FOREIGN)),
            Fault::CutOff(n) => self.network.isolate(End::Node(n), all, false),
            Fault::CutFromStore(n) => self.link_to_store(n, false),
            Fault::DeafToStore(n) => self.network.set(End::Store, End::Node(n), false),
            Fault::CutOneWay(a, b) => self.network.set(End::Node(a), End::Node(b), false),
            Fault::Scatter => self.scatter(false),
            Fault::StopStore => self.store.refuses = true,
            Fault::SilenceStore | Fault::StoreElection => self.store.silent = true,
            Fault::StaleReads(n) => self.store.leave_behind(n, now),
            Fault::DeleteLeader => self.store.keys.delete_leader(now),
            Fault::Wipe => self.store.keys.wipe(now),
            Fault::WipeSome(which) => self.wipe_some(which),
            Fault::Garbage(key, n) => self.write_nonsense(key, n),
            Fault::Switchover(from, to) => {
                self.asked_for.insert(to);
                let (from, to) = (self.nodes[from].name(), self.nodes[to].name());
                let asked = format!(r#"{{"leader":"{from}","member":"{to}"}}"#);
                self.write(Key::Failover, Bytes::from(asked));
            }
            Fault::Shutdown(n) => self.tell_agent(n, Event::Order(Order::Shutdown)),
            Fault::Detach(n) => self.tell_agent(n, Event::Order(Order::Detach)),
        }
    }

    fn wipe_some(&mut self, which: u16) {
        let now = NodeTime(self.now);
        for (n, key) in Key::ALL.into_iter().enumerate() {
            if which & (1 << n) != 0 {
                let deleted = self.store.keys.delete(now, key, Expect::Anything);
                debug_assert!(deleted.is_ok());
            }
        }
    }

    fn write_nonsense(&mut self, key: Key, n: u8) {
        let bytes = GARBAGE[usize::from(n) % GARBAGE.len()];
        // An empty list is no nonsense: with it people say that nobody lives by consent.
        if (key, bytes) != (Key::Failsafe, b"{}") {
            self.write(key, Bytes::from_static(bytes));
        }
    }

    /// Ends a fault that lasts.
    pub fn end(&mut self, fault: Fault) {
        let all = self.nodes.len();
        match fault {
            Fault::KillAgent(n) | Fault::KillNode(n) | Fault::Shutdown(n) | Fault::Detach(n) => {
                self.start_agent(n);
            }
            Fault::PauseAgent(n) => self.resume_agent(n),
            Fault::FreezeGuard(n) => self.nodes[n].guard.frozen = false,
            Fault::BreakFence(n) => self.nodes[n].fence_fails = false,
            Fault::StallDisk(n) | Fault::FillDisk(n) => self.nodes[n].server.set_disk(Disk::Well),
            Fault::FreezeServer(n) => self.nodes[n].server.freeze(false),
            Fault::HideData(n) => self.nodes[n].server.hide(false),
            Fault::BreakData(n) => {
                self.nodes[n].server.break_data(false);
                self.start_agent(n);
            }
            Fault::ForeignCluster => self.mend_initialize(),
            Fault::CutOff(n) => self.network.isolate(End::Node(n), all, true),
            Fault::CutFromStore(n) | Fault::DeafToStore(n) => self.link_to_store(n, true),
            Fault::CutOneWay(a, b) => self.network.set(End::Node(a), End::Node(b), true),
            Fault::Scatter => self.scatter(true),
            Fault::StopStore => self.store.refuses = false,
            Fault::SilenceStore => self.store.silent = false,
            Fault::StaleReads(n) => {
                self.store.past.remove(&n);
            }
            Fault::StoreElection => {
                self.store.silent = false;
                self.store.keys.begin_leases_anew(NodeTime(self.now));
            }
            Fault::CrashServer(_)
            | Fault::KillGuard(_)
            | Fault::RemoveData(_)
            | Fault::StartByHand(_)
            | Fault::DeleteLeader
            | Fault::Wipe
            | Fault::WipeSome(_)
            | Fault::Garbage(..)
            | Fault::Switchover(..) => {}
        }
    }

    /// Ends every fault: all links carry, all disks are well, all agents run.
    pub fn end_all(&mut self) {
        self.queue.remove(|item| matches!(item, Item::Over(_)));
        self.network.mend();
        (self.store.refuses, self.store.silent) = (false, false);
        self.store.past.clear();
        self.mend_initialize();
        for n in 0..self.nodes.len() {
            self.nodes[n].guard.frozen = false;
            self.nodes[n].fence_fails = false;
            let server = &mut self.nodes[n].server;
            server.set_disk(Disk::Well);
            server.freeze(false);
            server.hide(false);
            server.break_data(false);
            self.resume_agent(n);
            self.start_agent(n);
        }
    }

    /// Whether another node streams that has all but the last moments of what this one has.
    fn is_spare(&self, n: usize) -> bool {
        let Some(mine) = self.nodes[n].server.log() else {
            return false;
        };
        let has = |server: &super::server::FakeServer| {
            let near = |log: &super::log::Log| {
                log.history == mine.history && log.end + SPARE_BYTES >= mine.end
            };
            (server.is_streaming() || server.takes_writes()) && server.log().is_some_and(near)
        };
        (0..self.nodes.len()).any(|other| other != n && has(&self.nodes[other].server))
    }

    /// Puts the identifier of the cluster back that somebody replaced, and starts who gave up.
    fn mend_initialize(&mut self) {
        let now = NodeTime(self.now);
        let snapshot = self.store.keys.snapshot(now);
        let there = snapshot.documents.get(&Key::Initialize);
        if there.is_some_and(|entry| entry.value == Bytes::from_static(FOREIGN)) {
            let log = self.nodes.iter().find_map(|node| node.server.log());
            match log.map(|log| log.id.to_string()) {
                Some(id) => self.write(Key::Initialize, Bytes::from(id)),
                None => {
                    let deleted = self
                        .store
                        .keys
                        .delete(now, Key::Initialize, Expect::Anything);
                    debug_assert!(deleted.is_ok());
                    // They take what they saw for a cluster that was lost, and say so.
                    for n in 0..self.nodes.len() {
                        self.end_agent(n);
                        self.start_agent(n);
                    }
                }
            }
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].exit.is_some() {
                self.start_agent(n);
            }
        }
    }

    fn link_to_store(&mut self, n: usize, open: bool) {
        self.network.set(End::Node(n), End::Store, open);
        self.network.set(End::Store, End::Node(n), open);
    }

    fn scatter(&mut self, open: bool) {
        for a in 0..self.nodes.len() {
            for b in (0..self.nodes.len()).filter(|b| *b != a) {
                self.network.set(End::Node(a), End::Node(b), open);
            }
        }
    }

    fn end_agent(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.guard.frozen = false;
        node.mind = Mind::None;
        node.life += 1;
        node.op = None;
        node.held.clear();
        node.attempts.clear();
        node.paused = false;
        node.wake_at = u64::MAX;
        node.server.cancel();
    }

    /// The agent ends by itself.
    pub(super) fn agent_exits(&mut self, n: usize) {
        self.end_agent(n);
    }

    fn resume_agent(&mut self, n: usize) {
        self.nodes[n].paused = false;
        for event in std::mem::take(&mut self.nodes[n].held) {
            self.deliver_in(n, 0, event);
        }
    }
}

/// What people and broken programs write.
const GARBAGE: [&[u8]; 6] = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[[1,2],{\"a\":-1}]",
    b"{}",
    b"{\"ttl\":5,\"synchronous_mode\":true}",
];

/// The system identifier of another cluster.
const FOREIGN: &[u8] = b"7999999999999999999";

/// Half of the lag that a standby may have to be promoted.
const SPARE_BYTES: u64 = 500_000;
