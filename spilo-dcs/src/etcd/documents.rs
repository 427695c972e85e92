//! Snapshots and documents.

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, GetResponse, KeyValue, Txn, TxnOp, TxnResponse};
use spilo_core::dcs::{DcsErrorKind, Entry, Expect, Key, LeaderRecord, Lease, RawSnapshot};
use spilo_core::{DcsError, Epoch, Revision};

use super::Etcd;
use super::lane::{Effect, Lane, Request};
use super::lease::{Secret, lease_put};
use crate::place::Place;

impl Etcd {
    pub(super) async fn read_snapshot(&self) -> Result<RawSnapshot, DcsError> {
        let request = self.request("read the cluster", Effect::Read);
        let base = self.keys.base();
        let answer: GetResponse = self
            .read_lane
            .call(&request, |client| {
                Box::pin(async move {
                    let mut kv = client
                        .kv_client()
                        .max_decoding_message_size(LARGEST_SNAPSHOT);
                    kv.get(base, Some(GetOptions::new().with_prefix())).await
                })
            })
            .await?;
        let revision = revision(answer.header().map_or(0, |header| header.revision()));
        let mut snapshot = RawSnapshot {
            revision,
            ..RawSnapshot::default()
        };
        let mut own_lease = None;
        let own = self.announced_as();
        for kv in answer.kvs() {
            match self.keys.place(kv.key()) {
                Some(Place::Leader) => snapshot.leader = Some(leader(kv)),
                Some(Place::Member(name)) => {
                    if own.as_deref() == Some(name.as_str()) {
                        own_lease = Some(kv.lease());
                    }
                    snapshot.members.insert(name, entry(kv));
                }
                Some(Place::Document(key)) => {
                    snapshot.documents.insert(key, entry(kv));
                }
                None => {}
            }
        }
        self.noticed_own_record(snapshot.revision, own_lease);
        Ok(snapshot)
    }

    pub(super) async fn put_document(
        &self,
        key: Key,
        value: Bytes,
        expect: Expect,
    ) -> Result<Revision, DcsError> {
        let request = self.request(format!("write {}", key.path()), Effect::Once);
        let put = TxnOp::put(self.keys.document(key), Vec::from(value), None);
        let txn = Txn::new().when(self.compares(key, expect)).and_then([put]);
        let answer = transact(&self.write_lane, &request, txn).await?;
        expected(&request, expect, &answer)?;
        Ok(revision(
            answer.header().map_or(0, |header| header.revision()),
        ))
    }

    pub(super) async fn delete_document(&self, key: Key, expect: Expect) -> Result<(), DcsError> {
        let request = self.request(format!("delete {}", key.path()), Effect::Once);
        let delete = TxnOp::delete(self.keys.document(key), None);
        let txn = Txn::new()
            .when(self.compares(key, expect))
            .and_then([delete]);
        expected(
            &request,
            expect,
            &transact(&self.write_lane, &request, txn).await?,
        )
    }

    /// Writes the empty `initialize` key on the lock's lease.
    ///
    /// Not repeated: a second answer could not tell our own claim from an earlier one of the same
    /// holding.
    pub(super) async fn claim(&self, lease: &Lease) -> Result<(), DcsError> {
        let request = self.request("claim the initialize key", Effect::Once);
        let Some(secret) = Secret::parse(&lease.secret) else {
            return Err(request.error(DcsErrorKind::Conflict, "the lease is not one of etcd"));
        };
        let key = self.keys.document(Key::Initialize);
        let mut when = self.held_by(secret);
        when.push(Compare::create_revision(key.as_str(), CompareOp::Equal, 0));
        let txn = Txn::new()
            .when(when)
            .and_then([lease_put(key, Vec::new(), secret.lease_id)]);
        let answer = transact(&self.write_lane, &request, txn).await?;
        if answer.succeeded() {
            return Ok(());
        }
        let problem = "the key exists, or the lock is not held by this lease";
        Err(request.error(DcsErrorKind::Conflict, problem))
    }

    fn compares(&self, key: Key, expect: Expect) -> Vec<Compare> {
        let at = |key: String, revision: u64| {
            // Revision 0 is etcd's way to say that there is none: it must not match that.
            let exists = Compare::create_revision(key.as_str(), CompareOp::Greater, 0);
            let revision = i64::try_from(revision).unwrap_or(i64::MAX);
            vec![
                exists,
                Compare::mod_revision(key, CompareOp::Equal, revision),
            ]
        };
        match expect {
            Expect::Anything => Vec::new(),
            Expect::Absent => {
                vec![Compare::create_revision(
                    self.keys.document(key),
                    CompareOp::Equal,
                    0,
                )]
            }
            Expect::Revision(revision) => at(self.keys.document(key), revision.0),
            Expect::Leader(epoch) => at(self.keys.leader(), epoch.0),
        }
    }
}

/// Sends one transaction.
pub(super) async fn transact(
    lane: &Lane,
    request: &Request,
    txn: Txn,
) -> Result<TxnResponse, DcsError> {
    lane.call(request, |client| {
        let txn = txn.clone();
        Box::pin(async move { client.kv_client().txn(txn).await })
    })
    .await
}

/// Returns the leader key as read.
pub(super) fn leader(kv: &KeyValue) -> LeaderRecord {
    LeaderRecord {
        name: Bytes::copy_from_slice(kv.value()),
        epoch: Epoch(revision(kv.mod_revision()).0),
        lease_id: u64::try_from(kv.lease()).ok().filter(|id| *id != 0),
    }
}

/// Returns etcd's number as ours; etcd has no negative ones.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

fn entry(kv: &KeyValue) -> Entry {
    Entry {
        value: Bytes::copy_from_slice(kv.value()),
        revision: revision(kv.mod_revision()),
    }
}

fn expected(request: &Request, expect: Expect, answer: &TxnResponse) -> Result<(), DcsError> {
    if answer.succeeded() {
        return Ok(());
    }
    let problem = match expect {
        Expect::Anything => "etcd refused a transaction without a condition".to_owned(),
        Expect::Absent => "the key exists".to_owned(),
        Expect::Revision(revision) => format!("the key is not at revision {revision}"),
        Expect::Leader(epoch) => format!("the lock is not held in epoch {epoch}"),
    };
    Err(request.error(DcsErrorKind::Conflict, problem))
}

/// Every document may be as large as etcd takes (1.5 MiB), and there may be many members.
const LARGEST_SNAPSHOT: usize = 64 << 20;
