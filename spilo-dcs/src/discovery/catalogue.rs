//! The clusters of a namespace, as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spilo_core::dcs::{Entry, LeaderRecord, RawSnapshot};
use spilo_core::{Cluster, Epoch, Revision};

use super::overview::ClusterOverview;
use super::{Change, Listing};
use crate::place::{Place, place};

/// The clusters of a namespace.
///
/// It reads no clock: the caller says when it hears of a change, as a time since anything it likes.
/// Ages are therefore those of this observer, and begin with what it saw first.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    revision: Revision,
    clusters: BTreeMap<String, Kept>,
    /// The scopes that changed since [`Catalogue::refresh`].
    stale: BTreeSet<String>,
}

/// What is known of one cluster.
#[derive(Clone, Debug, Default)]
struct Kept {
    raw: RawSnapshot,
    /// Keys that belong to no cluster as we know them, such as those of another layout.
    foreign: BTreeSet<String>,
    read: Cluster,
    changed_at: Duration,
    leader: Option<LeaderRecord>,
    led_since: Duration,
}

impl Catalogue {
    /// Returns the revision that it shows.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Takes a listing for everything that there is.
    ///
    /// What is as it was keeps its age.
    pub fn replace(&mut self, listing: Listing, now: Duration) {
        let mut listed: BTreeMap<String, Kept> = BTreeMap::new();
        for change in listing.keys {
            if let Some((scope, path)) = split(&change.key) {
                let kept = listed.entry(scope.to_owned()).or_default();
                kept.apply(path, change.clone());
            }
        }
        for (scope, kept) in &mut listed {
            match self.clusters.remove(scope) {
                Some(old) if old.says_the_same(kept) => *kept = old,
                Some(old) => {
                    kept.read = old.read;
                    kept.leader = old.leader;
                    kept.led_since = old.led_since;
                    kept.changed_at = now;
                    self.stale.insert(scope.clone());
                }
                None => {
                    kept.changed_at = now;
                    kept.led_since = now;
                    self.stale.insert(scope.clone());
                }
            }
        }
        // What is left has gone.
        self.stale
            .extend(std::mem::take(&mut self.clusters).into_keys());
        self.clusters = listed;
        self.revision = self.revision.max(listing.revision);
    }

    /// Takes note of a change. One of the past is no news.
    pub fn apply(&mut self, change: Change, now: Duration) {
        self.revision = self.revision.max(change.revision);
        let Some((scope, path)) = split(&change.key) else {
            return;
        };
        let (scope, path) = (scope.to_owned(), path.to_owned());
        let kept = self.clusters.entry(scope.clone()).or_default();
        kept.apply(&path, change);
        kept.changed_at = now;
        self.stale.insert(scope);
    }

    /// Reads anew what has changed, and returns the scopes of it, those among it that are gone.
    pub fn refresh(&mut self, now: Duration) -> BTreeSet<String> {
        let stale = std::mem::take(&mut self.stale);
        for scope in &stale {
            let Some(kept) = self.clusters.get_mut(scope) else {
                continue;
            };
            if kept.is_empty() {
                self.clusters.remove(scope);
                continue;
            }
            kept.read = Cluster::read(&kept.raw, Some(&kept.read));
            if kept.raw.leader != kept.leader {
                kept.leader.clone_from(&kept.raw.leader);
                kept.led_since = now;
            }
        }
        stale
    }

    /// Returns all clusters as they were read last, in the order of their scopes.
    pub fn overview(&self, now: Duration) -> Vec<ClusterOverview> {
        let each = self.clusters.iter();
        each.map(|(scope, kept)| kept.overview(scope, now))
            .collect()
    }

    /// Returns one cluster as it was read last.
    pub fn cluster(&self, scope: &str, now: Duration) -> Option<ClusterOverview> {
        let kept = self.clusters.get(scope)?;
        Some(kept.overview(scope, now))
    }
}

impl Kept {
    fn apply(&mut self, path: &str, change: Change) {
        self.raw.revision = self.raw.revision.max(change.revision);
        let entry = change.value.map(|value| Entry {
            value,
            revision: change.revision,
        });
        match place(path) {
            Some(Place::Leader) => {
                self.raw.leader = entry.map(|entry| LeaderRecord {
                    name: entry.value,
                    epoch: Epoch(entry.revision.0),
                    lease_id: None,
                });
            }
            Some(Place::Member(name)) => set(&mut self.raw.members, name, entry),
            Some(Place::Document(key)) => set(&mut self.raw.documents, key, entry),
            None => {
                if entry.is_some() {
                    self.foreign.insert(path.to_owned());
                } else {
                    self.foreign.remove(path);
                }
            }
        }
    }

    fn overview(&self, scope: &str, now: Duration) -> ClusterOverview {
        let ages = [self.changed_at, self.led_since].map(|at| now.saturating_sub(at));
        ClusterOverview::of(scope, &self.read, &self.foreign, ages)
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let (a, b) = (&self.raw, &other.raw);
        (&a.leader, &a.members, &a.documents) == (&b.leader, &b.members, &b.documents)
            && self.foreign == other.foreign
    }

    fn is_empty(&self) -> bool {
        self.raw.leader.is_none()
            && self.raw.members.is_empty()
            && self.raw.documents.is_empty()
            && self.foreign.is_empty()
    }
}

fn set<K: Ord>(map: &mut BTreeMap<K, Entry>, key: K, entry: Option<Entry>) {
    match entry {
        Some(entry) => {
            map.insert(key, entry);
        }
        None => {
            map.remove(&key);
        }
    }
}

/// Returns the scope and the path below it; `None` for what is no key of a cluster at all.
fn split(key: &[u8]) -> Option<(&str, &str)> {
    let (scope, path) = std::str::from_utf8(key).ok()?.split_once('/')?;
    (!scope.is_empty() && !path.is_empty()).then_some((scope, path))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::Health;
    use super::*;

    fn put(key: &str, value: &str, revision: u64) -> Change {
        Change {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            revision: Revision(revision),
        }
    }

    fn gone(key: &str, revision: u64) -> Change {
        Change {
            value: None,
            ..put(key, "", revision)
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn healthy() -> Catalogue {
        let primary = r#"{"state":"running","role":"primary","xlog_location":1000,"timeline":1}"#;
        let replica = r#"{"state":"running","role":"replica","xlog_location":900,"timeline":1,
            "replication_state":"streaming"}"#;
        let keys = ["a", "b"].iter().flat_map(|scope| {
            [
                put(&format!("{scope}/initialize"), "7710822623212245678", 1),
                put(&format!("{scope}/leader"), "n1", 2),
                put(&format!("{scope}/members/n1"), primary, 3),
                put(&format!("{scope}/members/n2"), replica, 4),
            ]
        });
        let listing = Listing {
            revision: Revision(4),
            keys: keys.collect(),
        };
        let mut catalogue = Catalogue::default();
        catalogue.replace(listing, s(0));
        catalogue.refresh(s(0));
        catalogue
    }

    #[test]
    fn a_failover_is_one_changed_scope() {
        let mut catalogue = healthy();
        catalogue.apply(gone("b/leader", 5), s(10));
        assert_eq!(catalogue.refresh(s(10)), BTreeSet::from(["b".to_owned()]));
        let b = catalogue.cluster("b", s(11)).unwrap();
        assert_eq!((b.leader, b.led_for), (None, s(1)));
        assert!(matches!(b.health, Health::Leaderless(_)), "{:?}", b.health);
        let a = catalogue.cluster("a", s(11)).unwrap();
        assert_eq!((a.health, a.changed_before), (Health::Healthy, s(11)));
        assert_eq!(a.members[1].lag_bytes, Some(100));
        assert_eq!(catalogue.revision(), Revision(5));
    }

    #[test]
    fn garbage_below_one_scope_hides_no_other() {
        let mut catalogue = healthy();
        for change in [
            put("b/members/n2", "{nonsense", 5),
            put("b/config", "[", 6),
            put("b/0/leader", "n1", 7),
            put("top", "x", 8),
            put("/x", "x", 9),
            Change {
                key: Bytes::from_static(b"\xff/leader"),
                ..put("", "x", 10)
            },
        ] {
            catalogue.apply(change, s(1));
        }
        catalogue.refresh(s(1));
        let all = catalogue.overview(s(1));
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].health, Health::Healthy);
        let problems = all[1].problems.join("\n");
        for part in ["members/n2", "config", "0/leader"] {
            assert!(problems.contains(part), "{problems}");
        }
    }

    #[test]
    fn a_cluster_whose_last_key_is_gone_is_gone() {
        let mut catalogue = healthy();
        for key in ["initialize", "leader", "members/n1", "members/n2"] {
            catalogue.apply(gone(&format!("a/{key}"), 9), s(1));
        }
        catalogue.refresh(s(1));
        let scopes: Vec<_> = catalogue
            .overview(s(1))
            .into_iter()
            .map(|c| c.scope)
            .collect();
        assert_eq!(scopes, ["b"]);
    }

    #[test]
    fn a_second_listing_changes_only_what_differs() {
        let mut catalogue = healthy();
        let primary = r#"{"state":"running","role":"primary","xlog_location":1000,"timeline":1}"#;
        let keys = vec![
            put("b/initialize", "7710822623212245678", 1),
            put("b/leader", "n1", 2),
            put("b/members/n1", primary, 3),
        ];
        let listing = Listing {
            revision: Revision(8),
            keys,
        };
        catalogue.replace(listing, s(5));
        let changed = catalogue.refresh(s(5));
        assert_eq!(changed, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(catalogue.overview(s(5)).len(), 1);
        assert_eq!(catalogue.cluster("b", s(5)).unwrap().led_for, s(5));
    }
}
