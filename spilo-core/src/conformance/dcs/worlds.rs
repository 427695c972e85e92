//! Random requests over a bad line, next to the reference store.
//!
//! After a request of which the outcome is not known there are two worlds: one in which it was
//! done, and one in which it was not, or not yet. Each is kept as a
//! [reference store](crate::store::Store) until a snapshot or an answer rules it out. What fits
//! none of them is a third world, and a mistake of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::bad_line::{BadLine, Chance};
use super::{Laboratory, STEP, bytes, kind, name};
use crate::dcs::{Dcs, DcsErrorKind, Expect, Key, Lease, RawSnapshot};
use crate::ids::{Epoch, Revision};
use crate::store::{Conflict, Store};
use crate::time::NodeTime;

/// A request without an answer was done, or not; when it was settled, no attempt of it survives;
/// and one that was refused was not done.
pub async fn an_unknown_outcome_is_one_of_two_worlds(laboratory: &dyn Laboratory) {
    walk(laboratory, 1, 200).await;
}

/// Makes so many requests, of two nodes over a [`BadLine`] each, as the seed draws them, in an
/// empty store; returns how many of them had an unknown outcome.
///
/// # Panics
/// If the store comes to a state that no sequence of outcomes explains; with all requests.
pub async fn walk(laboratory: &dyn Laboratory, seed: u64, requests: u32) -> u32 {
    let mut walk = Walk::begin(laboratory, seed).await;
    for n in 1..=requests {
        walk.step().await;
        walk.look().await;
        // Not too seldom: each request that may still be done doubles the worlds.
        if n % 6 == 0 {
            walk.let_all_arrive().await;
        }
    }
    walk.settle_all().await;
    walk.let_all_arrive().await;
    walk.unknown
}

/// What a node wishes for, in words that mean the same in every world.
#[derive(Clone, Debug)]
enum Wish {
    Acquire,
    /// By its last lease.
    Succeed,
    Settle,
    Renew,
    Release(String),
    Announce(String),
    Put(Key, String, Expected),
    Delete(Key, Expected),
}

/// An [`Expect`] in words that mean the same in every world.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Anything,
    Absent,
    /// What stood there when the node last cared to look.
    AsKnown,
    /// The epoch of its last lease.
    Leader,
}

/// A wish in one world.
#[derive(Clone, Debug, PartialEq)]
enum Request {
    Acquire(usize, u64),
    Succeed(usize, u64, Lease),
    Renew(Lease),
    Release(Lease, String),
    Announce(usize, String),
    Put(Key, String, Expect),
    Delete(Key, Expect),
}

/// What may be so.
#[derive(Clone, Debug, PartialEq)]
struct World {
    store: Store,
    /// The last lease of each node, as far as it has heard of it.
    leases: [Option<Lease>; 2],
    /// The ids of leases that each node has not heard of.
    attempts: [Vec<u64>; 2],
    under_way: Vec<Request>,
    known: BTreeMap<Key, Revision>,
    /// The epochs that were seen, here and in the real store.
    epochs: Vec<(Epoch, Epoch)>,
}

struct Walk<'l> {
    laboratory: &'l dyn Laboratory,
    observer: Arc<dyn Dcs>,
    seed: u64,
    chance: Chance,
    lines: [BadLine; 2],
    leases: [Option<Lease>; 2],
    /// Whether a node has an attempt to settle.
    doubts: [bool; 2],
    known: BTreeMap<Key, Revision>,
    worlds: Vec<World>,
    texts: u32,
    unknown: u32,
    story: Vec<String>,
}

type Answer = Result<Option<Lease>, DcsErrorKind>;

impl<'l> Walk<'l> {
    async fn begin(laboratory: &'l dyn Laboratory, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let mut line = |store| BadLine::new(store, chance.below(u64::MAX));
        let lines = [line(laboratory.node().await), line(laboratory.node().await)];
        let world = World {
            store: Store::default(),
            leases: [None, None],
            attempts: [Vec::new(), Vec::new()],
            under_way: Vec::new(),
            known: BTreeMap::new(),
            epochs: Vec::new(),
        };
        Self {
            laboratory,
            observer: laboratory.node().await,
            seed,
            chance,
            lines,
            leases: [None, None],
            doubts: [false, false],
            known: BTreeMap::new(),
            worlds: vec![world],
            texts: 0,
            unknown: 0,
            story: Vec::new(),
        }
    }

    /// Lets a node make a request.
    async fn step(&mut self) {
        let node = self.chance.pick(&[0, 1]);
        let wish = self.wish(node);
        self.make(node, wish).await;
    }

    fn wish(&mut self, node: usize) -> Wish {
        self.texts += 1;
        let text = self.texts.to_string();
        let key = self.chance.pick(&KEYS);
        let has_lease = self.leases[node].is_some();
        let expected = match self.chance.below(6) {
            0 => Expected::Anything,
            1 => Expected::Absent,
            2 | 3 => Expected::AsKnown,
            _ if has_lease => Expected::Leader,
            _ => Expected::Anything,
        };
        let is_locking = self.chance.below(2) == 0;
        match self.chance.below(6) {
            0..3 if is_locking && self.doubts[node] => Wish::Settle,
            0 if is_locking && has_lease => Wish::Succeed,
            1 if is_locking && has_lease => Wish::Renew,
            2 if is_locking && has_lease => Wish::Release(text),
            3 if is_locking => Wish::Announce(text),
            _ if is_locking && self.doubts[node] => Wish::Settle,
            _ if is_locking => Wish::Acquire,
            0 => Wish::Delete(key, expected),
            _ => Wish::Put(key, text, expected),
        }
    }

    async fn make(&mut self, node: usize, wish: Wish) {
        let answer = self.ask(node, &wish).await;
        let me = NAMES[node];
        self.story.push(match &answer {
            Ok(_) => format!("{me} {wish:?}: done"),
            Err(kind) => format!("{me} {wish:?}: {kind:?}"),
        });
        self.unknown += u32::from(answer == Err(DcsErrorKind::Indeterminate));
        self.let_some_be_done();
        let worlds = std::mem::take(&mut self.worlds);
        for world in worlds {
            self.worlds.extend(world.after(node, &wish, &answer));
        }
        self.assert_possible("an answer");
        self.take_down(node, &wish, answer);
    }

    /// Makes the request in the real store.
    async fn ask(&self, node: usize, wish: &Wish) -> Answer {
        let (line, me) = (&self.lines[node], name(NAMES[node]));
        let lease = || self.leases[node].as_ref().expect("it was asked about");
        let expect = |key, expected| match expected {
            Expected::Anything => Expect::Anything,
            Expected::Absent => Expect::Absent,
            Expected::AsKnown => as_known(&self.known, key),
            Expected::Leader => Expect::Leader(lease().epoch),
        };
        let done = match wish {
            Wish::Acquire => return kind(line.acquire(&me, LONG).await).map(Some),
            Wish::Succeed => {
                let old = &lease().secret;
                return kind(line.succeed(old, &me, LONG).await).map(Some);
            }
            Wish::Settle => line.settle().await,
            Wish::Renew => line.renew(lease()).await,
            Wish::Release(text) => line.release(lease(), bytes(text)).await,
            Wish::Announce(text) => line.announce(&me, bytes(text), LONG).await,
            Wish::Put(key, text, expected) => {
                let put = line.put(*key, bytes(text), expect(*key, *expected)).await;
                put.map(|_| ())
            }
            Wish::Delete(key, expected) => line.delete(*key, expect(*key, *expected)).await,
        };
        kind(done).map(|()| None)
    }

    /// Remembers what a node has learnt.
    fn take_down(&mut self, node: usize, wish: &Wish, answer: Answer) {
        let is_unknown = answer == Err(DcsErrorKind::Indeterminate);
        match wish {
            Wish::Acquire => self.doubts[node] |= is_unknown,
            Wish::Succeed => {
                self.doubts[node] |= is_unknown;
                if is_unknown {
                    // Whether the old lease lives on without its key is the store's own affair.
                    self.leases[node] = None;
                }
            }
            Wish::Settle => self.doubts[node] &= answer.is_err(),
            _ => {}
        }
        if let Ok(Some(lease)) = answer {
            self.leases[node] = Some(lease);
        }
    }

    /// Looks at the real store, and drops the worlds that it is not.
    async fn look(&mut self) {
        let seen = self.snapshot().await;
        self.let_some_be_done();
        self.worlds.retain_mut(|world| world.is(&seen));
        self.assert_possible(&format!("{seen:?}"));
        if self.chance.below(2) == 0 {
            self.known = revisions(&seen);
            for world in &mut self.worlds {
                world.known = revisions(&world.store.snapshot(NOW));
            }
        }
    }

    /// Reads over a good line, but of a store that may have faults of its own.
    async fn snapshot(&self) -> RawSnapshot {
        for _ in 0..100 {
            match self.observer.read().await {
                Ok(seen) => return seen,
                Err(_) => self.laboratory.sleep(STEP).await,
            }
        }
        panic!("the store cannot be read");
    }

    /// Lets everything be done that is late, but for attempts: those are settled.
    async fn let_all_arrive(&mut self) {
        for line in &self.lines {
            line.arrive().await;
        }
        self.story.push("all arrives".to_owned());
        self.let_some_be_done();
        for world in &mut self.worlds {
            world
                .under_way
                .retain(|request| request.attempt().is_some());
        }
        self.look().await;
    }

    async fn settle_all(&mut self) {
        for node in [0, 1] {
            while self.doubts[node] {
                self.make(node, Wish::Settle).await;
                self.look().await;
            }
        }
    }

    /// Adds the worlds in which some of what is under way has been done.
    fn let_some_be_done(&mut self) {
        let mut worlds = Vec::new();
        let mut met = BTreeSet::new();
        let mut left = std::mem::take(&mut self.worlds);
        while let Some(mut world) = left.pop() {
            // Otherwise there would be more worlds with each request, and soon too many.
            if !met.insert(world.prospects()) {
                continue;
            }
            for n in 0..world.under_way.len() {
                let mut next = world.clone();
                let request = next.under_way.remove(n);
                // Refused in that world, it is done with as well.
                let _refused = next.make(&request).is_err();
                left.push(next);
            }
            worlds.push(world);
        }
        self.worlds = worlds;
    }

    fn assert_possible(&self, what: &str) {
        assert!(
            !self.worlds.is_empty(),
            "seed {}: neither done nor not done explains {what}, after\n{}",
            self.seed,
            self.story.join("\n")
        );
    }
}

impl World {
    /// Returns what may be so after an answer: nothing, if it cannot come in this world.
    fn after(mut self, node: usize, wish: &Wish, answer: &Answer) -> Vec<Self> {
        use DcsErrorKind::{Conflict, Indeterminate, Refused, Unavailable};
        let request = self.request(node, wish);
        match (request, answer) {
            (_, Err(Unavailable)) => vec![self],
            (_, Err(Refused)) => Vec::new(),
            (None, Err(Conflict)) => Vec::new(),
            (None, Ok(_)) => vec![self.settled(node)],
            (None, Err(Indeterminate)) => vec![self.clone(), self.settled(node)],
            (Some(request), Ok(_)) => match self.make(&request) {
                Ok(None) => vec![self],
                Ok(lease) => {
                    self.leases[node] = lease;
                    vec![self]
                }
                Err(_) => Vec::new(),
            },
            (Some(request), Err(Conflict)) => match self.clone().make(&request) {
                Ok(_) => Vec::new(),
                Err(_) => vec![self],
            },
            (Some(request), Err(Indeterminate)) => {
                self.attempts[node].extend(request.attempt());
                if matches!(wish, Wish::Succeed) {
                    self.leases[node] = None;
                }
                // A renewal shows nowhere: time stands still in here.
                if !matches!(wish, Wish::Renew) {
                    self.under_way.push(request);
                }
                vec![self]
            }
        }
    }

    /// Returns a wish as it is in this world; `None` for settling.
    fn request(&mut self, node: usize, wish: &Wish) -> Option<Request> {
        let lease = || self.leases[node].clone().expect("as in the real store");
        let expect = |key, expected| match expected {
            Expected::Anything => Expect::Anything,
            Expected::Absent => Expect::Absent,
            Expected::AsKnown => as_known(&self.known, key),
            Expected::Leader => Expect::Leader(lease().epoch),
        };
        Some(match wish {
            Wish::Settle => return None,
            Wish::Acquire => Request::Acquire(node, self.store.new_lease_id()),
            Wish::Succeed => {
                let old = lease();
                Request::Succeed(node, self.store.new_lease_id(), old)
            }
            Wish::Renew => Request::Renew(lease()),
            Wish::Release(text) => Request::Release(lease(), text.clone()),
            Wish::Announce(text) => Request::Announce(node, text.clone()),
            Wish::Put(key, text, expected) => {
                Request::Put(*key, text.clone(), expect(*key, *expected))
            }
            Wish::Delete(key, expected) => Request::Delete(*key, expect(*key, *expected)),
        })
    }

    fn make(&mut self, request: &Request) -> Result<Option<Lease>, Conflict> {
        let store = &mut self.store;
        match request {
            Request::Acquire(node, id) => {
                let lease = store.acquire(NOW, *id, &name(NAMES[*node]), LONG);
                return lease.map(Some);
            }
            Request::Succeed(node, id, old) => {
                let lease = store.succeed(NOW, *id, &old.secret, &name(NAMES[*node]), LONG);
                return lease.map(Some);
            }
            Request::Renew(lease) => store.renew(NOW, lease)?,
            Request::Release(lease, text) => store.release(NOW, lease, bytes(text))?,
            Request::Announce(node, text) => {
                store.announce(NOW, &name(NAMES[*node]), bytes(text), LONG);
            }
            Request::Put(key, text, expect) => {
                store.put(NOW, *key, bytes(text), *expect)?;
            }
            Request::Delete(key, expect) => store.delete(NOW, *key, *expect)?,
        }
        Ok(None)
    }

    fn settled(mut self, node: usize) -> Self {
        for id in std::mem::take(&mut self.attempts[node]) {
            self.store.revoke(NOW, id);
            self.under_way
                .retain(|request| request.attempt() != Some(id));
        }
        self
    }

    /// Returns all that the future depends on: worlds in which it is the same need not be told
    /// apart, whatever their numbers are and their past was.
    fn prospects(&mut self) -> String {
        let here = self.store.snapshot(NOW);
        let leader = here.leader.as_ref();
        let holds = |lease: &Option<Lease>| lease.as_ref().map(|l| l.epoch) == epoch(&here);
        let seen = self
            .epochs
            .iter()
            .find(|(ours, _)| Some(*ours) == epoch(&here));
        let attempted = |ids: &Vec<u64>| {
            let id = leader.and_then(|leader| leader.lease_id);
            id.is_some_and(|id| ids.contains(&id))
        };
        let current = |key: &Key| here.documents.get(key).map(|entry| entry.revision);
        let known: Vec<_> = self
            .known
            .iter()
            .map(|(key, revision)| (*key, current(key) == Some(*revision)))
            .collect();
        let mut under_way: Vec<String> = self
            .under_way
            .iter()
            .filter_map(|request| request.prospects(&here))
            .collect();
        under_way.sort_unstable();
        format!(
            "{:?}",
            (
                leader.map(|leader| &leader.name),
                seen.map(|(_, theirs)| *theirs),
                contents(&here),
                self.leases.each_ref().map(holds),
                self.attempts.each_ref().map(attempted),
                known,
                under_way,
            )
        )
    }

    /// Returns whether this is what was seen, all but the numbers of revisions.
    fn is(&mut self, seen: &RawSnapshot) -> bool {
        let here = self.store.snapshot(NOW);
        let same = contents(&here) == contents(seen);
        let (Some(ours), Some(theirs)) = (here.leader, &seen.leader) else {
            return same && seen.leader.is_none();
        };
        let pair = (ours.epoch, theirs.epoch);
        if !self.epochs.contains(&pair) {
            let is_new = |(here, there): &(Epoch, Epoch)| *here < pair.0 && *there < pair.1;
            if !self.epochs.iter().all(is_new) {
                return false;
            }
            self.epochs.push(pair);
        }
        same && ours.name == theirs.name
    }
}

impl Request {
    /// Returns the id of the lease that it takes the lock with.
    fn attempt(&self) -> Option<u64> {
        match self {
            Self::Acquire(_, id) | Self::Succeed(_, id, _) => Some(*id),
            _ => None,
        }
    }

    /// Returns what may yet come of it; `None` if nothing, because a revision or an epoch that is
    /// over does not come back.
    fn prospects(&self, here: &RawSnapshot) -> Option<String> {
        let holds = |lease: &Lease| (Some(lease.epoch) == epoch(here)).then_some(());
        let may_hold = |key: &Key, expect: &Expect| {
            let current = here.documents.get(key).map(|entry| entry.revision);
            match expect {
                Expect::Anything => Some("anything"),
                Expect::Absent => Some("absent"),
                Expect::Revision(revision) => (Some(*revision) == current).then_some("revision"),
                Expect::Leader(of) => (Some(*of) == epoch(here)).then_some("leader"),
            }
        };
        Some(match self {
            Self::Acquire(node, _) => format!("acquire {node}"),
            Self::Succeed(node, _, old) => holds(old).map(|()| format!("succeed {node}"))?,
            Self::Renew(lease) => holds(lease).map(|()| "renew".to_owned())?,
            Self::Release(lease, text) => holds(lease).map(|()| format!("release {text}"))?,
            Self::Announce(node, text) => format!("announce {node} {text}"),
            Self::Put(key, text, expect) => {
                format!("put {key:?} {text} {}", may_hold(key, expect)?)
            }
            Self::Delete(key, expect) => format!("delete {key:?} {}", may_hold(key, expect)?),
        })
    }
}

/// Returns the epoch in which the lock is held.
fn epoch(here: &RawSnapshot) -> Option<Epoch> {
    here.leader.as_ref().map(|leader| leader.epoch)
}

fn as_known(known: &BTreeMap<Key, Revision>, key: Key) -> Expect {
    known
        .get(&key)
        .map_or(Expect::Absent, |revision| Expect::Revision(*revision))
}

fn revisions(seen: &RawSnapshot) -> BTreeMap<Key, Revision> {
    let documents = seen.documents.iter();
    documents
        .map(|(key, entry)| (*key, entry.revision))
        .collect()
}

type Contents<'s> = (bool, Vec<(&'s str, &'s [u8])>, Vec<(Key, &'s [u8])>);

/// Returns who holds the lock, the member records, and the documents.
fn contents(seen: &RawSnapshot) -> Contents<'_> {
    let members = seen.members.iter();
    let documents = seen.documents.iter();
    (
        seen.leader.is_some(),
        members.map(|(n, e)| (n.as_str(), &*e.value)).collect(),
        documents.map(|(k, e)| (*k, &*e.value)).collect(),
    )
}

const NAMES: [&str; 2] = ["a", "b"];

/// Few, so that requests meet. Not those that the lock writes.
const KEYS: [Key; 3] = [Key::Config, Key::Status, Key::Sync];

/// Longer than any test, whatever the faults of the store under it.
const LONG: Duration = Duration::from_secs(3600);

const NOW: NodeTime = NodeTime(0);
