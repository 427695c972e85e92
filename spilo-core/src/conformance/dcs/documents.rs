//! Snapshots, documents, member records and the watch.

use std::time::Duration;

use bytes::Bytes;

use super::super::waiting::{Boxed, all, either};
use super::{
    Laboratory, MARGIN, STEP, acquired, acquired_after_end, bytes, kind, name, shortest, snapshot,
    until_free, value,
};
use crate::dcs::{Dcs, DcsErrorKind, Entry, Expect, Key, RawSnapshot};
use crate::ids::Revision;

/// A write that names an epoch is refused once that epoch is over, in the write's transaction.
pub async fn a_deposed_leader_cannot_write(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let ttl = shortest(&*a);
    let from = laboratory.elapsed();
    let old = acquired(&*a, "a", ttl).await;
    let by_old = Expect::Leader(old.epoch);
    a.put(Key::Status, bytes("1"), by_old)
        .await
        .expect("the leader writes");
    until_free(laboratory, &*b, from, ttl).await;
    let refused = kind(a.put(Key::Status, bytes("2"), by_old).await);
    assert_eq!(
        refused,
        Err(DcsErrorKind::Conflict),
        "nobody holds the lock"
    );
    let new = acquired_after_end(laboratory, &*b, "b", Duration::from_secs(60)).await;
    let refused = kind(a.put(Key::Status, bytes("3"), by_old).await);
    assert_eq!(
        refused,
        Err(DcsErrorKind::Conflict),
        "another holds the lock"
    );
    assert_eq!(
        kind(a.delete(Key::Status, by_old).await),
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(value(&snapshot(&*b).await, Key::Status), Some(bytes("1")));
    let by_new = Expect::Leader(new.epoch);
    b.put(Key::Status, bytes("4"), by_new)
        .await
        .expect("the leader writes");
    assert_eq!(value(&snapshot(&*a).await, Key::Status), Some(bytes("4")));
    b.delete(Key::Status, by_new)
        .await
        .expect("the leader deletes");
    assert_eq!(value(&snapshot(&*a).await, Key::Status), None);
}

/// Each expectation lets through exactly what it says, and a refused write changes nothing.
pub async fn a_write_is_done_only_as_expected(laboratory: &dyn Laboratory) {
    let node = laboratory.node().await;
    let key = Key::Sync;
    let put = async |text: &str, expect| kind(node.put(key, bytes(text), expect).await);
    let delete = async |expect| kind(node.delete(key, expect).await);
    let entry = async || snapshot(&*node).await.documents.get(&key).cloned();
    let at = |text, revision| {
        Some(Entry {
            value: bytes(text),
            revision,
        })
    };
    let conflict = DcsErrorKind::Conflict;

    assert_eq!(
        put("x", Expect::Revision(Revision(1))).await,
        Err(conflict),
        "there is none"
    );
    let first = put("1", Expect::Absent).await.expect("there is none");
    assert_eq!(
        put("x", Expect::Absent).await,
        Err(conflict),
        "there is one"
    );
    assert_eq!(entry().await, at("1", first));
    let second = put("2", Expect::Revision(first))
        .await
        .expect("it is at that revision");
    assert!(second > first);
    assert_eq!(
        put("x", Expect::Revision(first)).await,
        Err(conflict),
        "it has moved on"
    );
    let third = put("3", Expect::Anything).await.expect("anything goes");
    assert_eq!(entry().await, at("3", third));

    assert_eq!(delete(Expect::Revision(second)).await, Err(conflict));
    assert_eq!(delete(Expect::Absent).await, Err(conflict), "there is one");
    assert_eq!(entry().await, at("3", third));
    delete(Expect::Revision(third))
        .await
        .expect("it is at that revision");
    assert_eq!(entry().await, None);
    delete(Expect::Anything)
        .await
        .expect("there is none, and that is allowed");
    delete(Expect::Absent).await.expect("there is none");
    assert_eq!(delete(Expect::Revision(third)).await, Err(conflict));
}

/// A snapshot shows every write that was acknowledged before it, and no later write without the
/// earlier ones; its revision never goes back.
pub async fn a_snapshot_is_of_one_revision(laboratory: &dyn Laboratory) {
    let (writer, reader) = (laboratory.node().await, laboratory.node().await);
    let number = |snapshot: &RawSnapshot, key| {
        let value = value(snapshot, key)?;
        std::str::from_utf8(&value).ok()?.parse::<u32>().ok()
    };
    let write: Boxed<'_, ()> = Box::pin(async {
        for i in 1..=40 {
            for key in [Key::Config, Key::History] {
                let text = bytes(&i.to_string());
                let written = writer.put(key, text, Expect::Anything).await;
                written.expect("a healthy store is written");
                let seen = snapshot(&*writer).await;
                assert_eq!(number(&seen, key), Some(i), "an acknowledged write is seen");
            }
        }
    });
    let read: Boxed<'_, ()> = Box::pin(async {
        let mut last = Revision(0);
        loop {
            let seen = snapshot(&*reader).await;
            let config = number(&seen, Key::Config).unwrap_or(0);
            let history = number(&seen, Key::History).unwrap_or(0);
            assert!(
                config == history || config == history + 1,
                "{config} and {history}"
            );
            assert!(seen.revision >= last, "{} after {last}", seen.revision);
            assert!(seen.documents.values().all(|e| e.revision <= seen.revision));
            last = seen.revision;
            if history == 40 {
                break;
            }
            laboratory.sleep(Duration::from_millis(1)).await;
        }
    });
    all(vec![write, read]).await;

    let before = snapshot(&*reader).await;
    let deleted = writer.delete(Key::Config, Expect::Anything).await;
    deleted.expect("a healthy store is written");
    let after = snapshot(&*reader).await;
    assert!(
        after.revision > before.revision,
        "no two states are of one revision"
    );
}

/// Bytes that are no text, empty ones, and many come back as they were written, from every key.
pub async fn any_bytes_come_back_unharmed(laboratory: &dyn Laboratory) {
    let node = laboratory.node().await;
    let me = name("a b%c");
    let garbage = [
        bytes(""),
        bytes("{\"a\": nul"),
        Bytes::from_static(b"\x00\xff\xfe\n\xc3\x28"),
        bytes(&"x".repeat(100_000)),
    ];
    for wanted in &garbage {
        for key in Key::ALL {
            let written = node.put(key, wanted.clone(), Expect::Anything).await;
            written.expect("any bytes are stored");
        }
        let announced = node
            .announce(&me, wanted.clone(), Duration::from_secs(60))
            .await;
        announced.expect("any bytes are announced");
        let seen = snapshot(&*node).await;
        for key in Key::ALL {
            assert!(value(&seen, key).as_ref() == Some(wanted), "{key:?}");
        }
        assert!(seen.members["a b%c"].value == wanted);
    }
}

/// A member record stays while it is announced, follows its changes, vanishes when it is not
/// announced any more, whatever others announce, and comes back with the next announcement.
pub async fn a_member_record_vanishes_when_it_is_not_announced(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    let (me, ttl) = (name("a"), shortest(&*a));
    let announce = async |text: &str| {
        a.announce(&me, bytes(text), ttl)
            .await
            .expect("a member announces itself");
    };
    let member = async |dcs: &dyn Dcs| snapshot(dcs).await.members.get("a").cloned();
    for _ in 0..6 {
        announce("one").await;
        laboratory.sleep(ttl / 3).await;
        let seen = member(&*b).await.expect("an announced member is there");
        assert_eq!(seen.value, bytes("one"));
    }
    let before = member(&*b).await.expect("it is there").revision;
    let sent = laboratory.elapsed();
    announce("two").await;
    let after = member(&*b).await.expect("it is there");
    assert_eq!(after.value, bytes("two"));
    assert!(after.revision > before);
    while member(&*b).await.is_some() {
        let latest = sent + ttl + b.capabilities().release_slack + MARGIN;
        assert!(laboratory.elapsed() < latest, "gone after its ttl");
        let other = b.announce(&name("b"), bytes("other"), ttl).await;
        other.expect("another member announces itself");
        laboratory.sleep(STEP).await;
    }
    let others: Vec<_> = snapshot(&*b).await.members.into_keys().collect();
    assert_eq!(others, ["b"], "each record has a time of its own");
    let age = laboratory.elapsed() - sent;
    assert!(
        age >= ttl,
        "a changed record lasts for its ttl too: {age:?}"
    );
    announce("two").await;
    assert_eq!(member(&*b).await.map(|e| e.value), Some(bytes("two")));
}

/// A store that watches wakes its watcher for a change after the revision it was given, also when
/// the change came before the watch, and for the end of a lease.
pub async fn a_change_wakes_a_watcher(laboratory: &dyn Laboratory) {
    let (a, b) = (laboratory.node().await, laboratory.node().await);
    if !a.capabilities().watches {
        return;
    }
    let ttl = shortest(&*a);
    let patience = ttl + b.capabilities().release_slack + MARGIN;
    let wake = async |since, what: &str| {
        let woken = either(b.changed(since), laboratory.sleep(patience)).await;
        woken
            .unwrap_or_else(|| panic!("the watcher wakes for {what}"))
            .expect("it is a hint");
    };
    let since = snapshot(&*b).await.revision;
    let lease = acquired(&*a, "a", ttl).await;
    wake(since, "an earlier change").await;

    let since = snapshot(&*b).await.revision;
    let write: Boxed<'_, ()> = Box::pin(async {
        laboratory.sleep(STEP).await;
        let by = Expect::Leader(lease.epoch);
        a.put(Key::Config, bytes("{}"), by)
            .await
            .expect("the leader writes");
    });
    let woken: Boxed<'_, ()> = Box::pin(async {
        let woken = either(b.changed(since), laboratory.sleep(patience)).await;
        woken
            .expect("the watcher wakes for a document")
            .expect("it is a hint");
    });
    all(vec![woken, write]).await;

    let mut seen = snapshot(&*b).await;
    let deadline = laboratory.elapsed() + patience;
    while seen.leader.is_some() {
        assert!(laboratory.elapsed() < deadline, "the lease ends");
        wake(seen.revision, "the end of a lease").await;
        seen = snapshot(&*b).await;
    }
}
