//! Snapshots and documents.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::StatusCode;
use serde::Deserialize;
use spilo_core::dcs::{DcsErrorKind, Entry, Expect, Key, LeaderRecord, RawSnapshot};
use spilo_core::{DcsError, Epoch, Revision};
use tokio::time::Instant;

use super::failure::{Effect, Failure, Verdict};
use super::http::{Http, Request};
use super::txn::{Op, Outcome};
use super::{Consul, NAME, held};
use crate::keys::Keys;
use crate::place::Place;

/// All keys of a cluster, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) index: u64,
    pub(super) keys: Vec<Listed>,
}

/// A key as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) place: Place,
    pub(super) value: Bytes,
    pub(super) index: u64,
    pub(super) session: Option<String>,
}

/// The last listing that was read: its revision, and the revisions of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) revision: u64,
    pub(super) print: Print,
    pub(super) at: Option<Instant>,
}

/// What tells one state of the keys from another.
pub(super) type Print = BTreeMap<Place, u64>;

/// How a listing is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// As it is when the request arrives, and not before.
    Now,
    /// Once it is newer than this revision, or after some time.
    After(u64, Duration),
}

impl Consul {
    pub(super) async fn read_snapshot(&self) -> Result<RawSnapshot, DcsError> {
        let floor = held(&self.seen).clone();
        let listing = self.listing().await;
        let now = Instant::now();
        let listing = listing
            .and_then(|listing| floor.check(listing, now))
            .map_err(|failure| failure.while_about_to("read the cluster", Effect::Read))?;
        {
            let mut seen = held(&self.seen);
            if seen.revision <= listing.index {
                *seen = Seen {
                    revision: listing.index,
                    print: listing.print(),
                    at: Some(now),
                };
            }
        }
        let mut snapshot = RawSnapshot {
            revision: Revision(listing.index),
            ..RawSnapshot::default()
        };
        let mut own = None;
        let announced = self.announced_as();
        for listed in listing.keys {
            let entry = Entry {
                value: listed.value,
                revision: Revision(listed.index),
            };
            match listed.place {
                Place::Leader => {
                    snapshot.leader = Some(LeaderRecord {
                        name: entry.value,
                        epoch: Epoch(listed.index),
                        // A session that is gone may have been destroyed before its time.
                        lease_id: None,
                    });
                }
                Place::Member(name) => {
                    if announced.as_ref() == Some(&name) {
                        own = listed.session;
                    }
                    snapshot.members.insert(name, entry);
                }
                Place::Document(key) => {
                    snapshot.documents.insert(key, entry);
                }
            }
        }
        self.noticed_own_record(snapshot.revision, own.as_deref());
        Ok(snapshot)
    }

    /// Lists the keys; an empty list only where there are none.
    async fn listing(&self) -> Result<Listing, Failure> {
        let until = self.http.deadline();
        let listing = self.http.list(&self.keys, Ask::Now, until).await?;
        if listing.keys.is_empty() {
            // Keys that the token may not read are left out of a list without a word. Of a single
            // key Consul says so, and there is none that could be of revision 0.
            let may_read = [Op::at(self.keys.leader(), 0)];
            self.http.transact(&may_read, until).await?;
        }
        Ok(listing)
    }

    pub(super) async fn put_document(
        &self,
        key: Key,
        value: Bytes,
        expect: Expect,
    ) -> Result<Revision, DcsError> {
        let action = format!("write {}", key.path());
        let path = self.keys.document(key);
        let mut ops = self.compares(key, expect);
        if key == Key::Initialize {
            // It may hang on the session of the lock, and a write alone would leave it there.
            ops.push(Op::delete(path.clone()));
        }
        ops.push(Op::set(path.clone(), &value));
        let outcome = self.write(&action, &ops, expect).await?;
        match outcome.index_of(&path) {
            Some(index) => Ok(Revision(index)),
            None => {
                let problem = "the answer does not say which revision it is of";
                let kind = DcsErrorKind::Indeterminate;
                Err(DcsError::new(NAME, kind, action, problem))
            }
        }
    }

    pub(super) async fn delete_document(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let action = format!("delete {}", key.path());
        let mut ops = self.compares(key, expect);
        ops.push(Op::delete(self.keys.document(key)));
        self.write(&action, &ops, expect).await.map(|_| ())
    }

    async fn write(&self, action: &str, ops: &[Op], expect: Expect) -> Result<Outcome, DcsError> {
        let outcome = self.http.transact(ops, self.http.deadline()).await;
        let outcome = outcome.map_err(|failure| failure.while_about_to(action, Effect::Write))?;
        match outcome {
            Outcome::Done(_) => Ok(outcome),
            Outcome::Refused(_) | Outcome::SessionGone => {
                let problem = match expect {
                    Expect::Anything => {
                        "Consul refused a transaction without a condition".to_owned()
                    }
                    Expect::Absent => "the key exists".to_owned(),
                    Expect::Revision(revision) => {
                        format!("the key is not at revision {revision}")
                    }
                    Expect::Leader(epoch) => format!("the lock is not held in epoch {epoch}"),
                };
                Err(DcsError::new(NAME, DcsErrorKind::Conflict, action, problem))
            }
        }
    }

    fn compares(&self, key: Key, expect: Expect) -> Vec<Op> {
        match expect {
            Expect::Anything => Vec::new(),
            Expect::Absent => vec![Op::absent(self.keys.document(key))],
            Expect::Revision(revision) => vec![Op::at(self.keys.document(key), revision.0)],
            Expect::Leader(epoch) => vec![Op::at(self.keys.leader(), epoch.0)],
        }
    }
}

impl Http {
    /// Lists all keys of a cluster.
    pub(super) async fn list(
        &self,
        keys: &Keys,
        ask: Ask,
        until: Instant,
    ) -> Result<Listing, Failure> {
        let path = ["kv"].into_iter().chain(keys.base().split('/'));
        let request = Request::get(path)
            .with("recurse", "true")
            .expecting(&[StatusCode::NOT_FOUND]);
        let request = match ask {
            // The leader makes sure that it still is before it answers.
            Ask::Now => request.with("consistent", ""),
            Ask::After(index, patience) => request
                .with("index", index.to_string())
                .with("wait", format!("{}s", patience.as_secs())),
        };
        let answer = self.send(request, until).await?;
        let broken = |problem: String| Failure::new(Verdict::Unknown, problem);
        let index = answer
            .index
            .ok_or_else(|| broken("the answer says no X-Consul-Index: is this Consul?".into()))?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(Listing {
                index,
                keys: Vec::new(),
            });
        }
        let pairs: Vec<Pair> = serde_json::from_slice(&answer.body)
            .map_err(|error| broken(format!("the answer is no list of keys: {error}")))?;
        let listed = pairs.into_iter().filter_map(|pair| pair.listed(keys));
        Ok(Listing {
            index,
            keys: listed.collect::<Result<_, _>>().map_err(broken)?,
        })
    }
}

impl Listing {
    pub(super) fn print(&self) -> Print {
        let each = self.keys.iter();
        each.map(|listed| (listed.place.clone(), listed.index))
            .collect()
    }
}

impl Seen {
    /// Checks a listing that was asked for after this state was seen, and gives it a revision that
    /// does not go back.
    ///
    /// Consul's own goes back when it forgets deletions, after a quarter of an hour. The keys are
    /// then as they were, or, where nobody looked meanwhile, some of them are missing. Where they
    /// differ otherwise, the servers have been restored from a backup.
    ///
    /// # Errors
    /// The listing is of the past.
    fn check(&self, mut listing: Listing, now: Instant) -> Result<Listing, Failure> {
        if listing.index > self.revision {
            return Ok(listing);
        }
        let print = listing.print();
        if print == self.print {
            listing.index = self.revision;
            return Ok(listing);
        }
        let is_missing = print
            .iter()
            .all(|(place, index)| self.print.get(place) == Some(index));
        let nobody_looked = self.at.is_some_and(|at| now - at > FORGETS_AFTER / 2);
        if is_missing && nobody_looked {
            // The deletion was a later revision than any that was seen.
            listing.index = self.revision + 1;
            return Ok(listing);
        }
        let problem = format!(
            "the answer is behind: revision {} after {} was seen; a Consul that was restored from \
             a snapshot takes a restart",
            listing.index, self.revision
        );
        Err(Failure::new(Verdict::Unknown, problem))
    }
}

/// A key as Consul tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    value: Option<String>,
    modify_index: u64,
    session: Option<String>,
}

impl Pair {
    /// Returns what it is to us; `None` where it is nothing.
    fn listed(self, keys: &Keys) -> Option<Result<Listed, String>> {
        let place = keys.place(self.key.as_bytes())?;
        let value = match STANDARD.decode(self.value.unwrap_or_default()) {
            Ok(value) => value,
            Err(error) => return Some(Err(format!("the value of {}: {error}", self.key))),
        };
        Some(Ok(Listed {
            place,
            value: value.into(),
            index: self.modify_index,
            session: self.session,
        }))
    }
}

/// How long Consul remembers deletions at least (`tombstone_ttl` in its sources).
const FORGETS_AFTER: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(index: u64, keys: &[(Place, u64)]) -> Listing {
        let listed = keys.iter().map(|(place, index)| Listed {
            place: place.clone(),
            value: Bytes::new(),
            index: *index,
            session: None,
        });
        Listing {
            index,
            keys: listed.collect(),
        }
    }

    #[test]
    fn f15_a_revision_goes_back_only_where_deletions_were_forgotten() {
        let keys = [(Place::Leader, 40), (Place::Document(Key::Config), 7)];
        let newest = listing(50, &keys);
        let now = Instant::now();
        let seen = Seen {
            revision: 50,
            print: newest.print(),
            at: Some(now),
        };
        let check = |listing| seen.check(listing, now);
        assert_eq!(check(newest.clone()).unwrap(), newest);
        assert_eq!(check(listing(51, &keys[1..])).unwrap().index, 51);
        assert_eq!(
            check(listing(40, &keys)).unwrap(),
            newest,
            "the deletion at 50 is forgotten"
        );
        for index in [7, 50] {
            let past = check(listing(index, &keys[1..])).unwrap_err();
            let text = format!("revision {index} after 50");
            assert!(past.problem.contains(&text), "{past:?}");
        }
        let later = now + FORGETS_AFTER;
        let missing = seen.check(listing(7, &keys[1..]), later).unwrap();
        assert_eq!(missing.index, 51, "a deletion that nobody saw is forgotten");
        let other = [(Place::Leader, 39), (Place::Document(Key::Config), 7)];
        assert!(seen.check(listing(39, &other), later).is_err());
        let first = Seen::default().check(newest.clone(), now).unwrap();
        assert_eq!(first, newest);
    }
}
