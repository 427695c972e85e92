//! What stands in ZooKeeper, as its own tools and Patroni see it.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::MemberName;
use spilo_core::dcs::{Dcs as _, DcsErrorKind, Expect, Key};
use spilo_dcs::ZooKeeper;
use zookeeper_client::Error;

use crate::server::ZooKeeperServer;

#[tokio::test]
async fn nodes_and_values_are_those_of_patroni() {
    let server = ZooKeeperServer::start().await;
    let (dcs, me) = (server.zookeeper(), MemberName::new("pg-0").unwrap());
    let lease = dcs.acquire(&me, TTL).await.unwrap();
    let record = Bytes::from_static(br#"{"role":"primary"}"#);
    dcs.announce(&me, record, TTL).await.unwrap();
    dcs.claim_initialize(&lease).await.unwrap();
    let by = Expect::Leader(lease.epoch);
    let id = Bytes::from_static(b"7710822623212245678");
    dcs.put(Key::Initialize, id, by).await.unwrap();
    let position = Bytes::from_static(b"67416800");
    dcs.put(Key::LegacyOptime, position, by).await.unwrap();

    let client = server.client().await;
    for (path, value, is_ephemeral) in [
        ("initialize", "7710822623212245678", false),
        ("leader", "pg-0", true),
        ("members/pg-0", r#"{"role":"primary"}"#, true),
        ("optime/leader", "67416800", false),
        ("epoch", "", false),
    ] {
        let path = format!("/service/demo/{path}");
        let (found, stat) = client.get_data(&path).await.unwrap();
        assert_eq!(String::from_utf8(found).unwrap(), value, "{path}");
        assert_eq!(stat.ephemeral_owner != 0, is_ephemeral, "{path}");
    }
    let mut children = client.list_children("/service/demo").await.unwrap();
    children.sort();
    let all = ["epoch", "initialize", "leader", "members", "optime"];
    assert_eq!(children, all);
}

#[tokio::test]
async fn a_record_of_an_earlier_incarnation_is_taken_over() {
    let server = ZooKeeperServer::start().await;
    let me = MemberName::new("pg-0").unwrap();
    for text in ["one", "two"] {
        // A new handle knows nothing of the session that the record hangs on.
        let dcs = server.zookeeper();
        let record = Bytes::from_static(text.as_bytes());
        dcs.announce(&me, record.clone(), TTL).await.unwrap();
        assert_eq!(dcs.read().await.unwrap().members["pg-0"].value, record);
    }
}

#[tokio::test]
async fn a_record_that_somebody_deleted_is_written_again_and_the_same_record_is_no_change() {
    let server = ZooKeeperServer::start().await;
    let (dcs, me) = (server.zookeeper(), MemberName::new("pg-0").unwrap());
    let announce = || dcs.announce(&me, Bytes::from_static(b"x"), TTL);
    announce().await.unwrap();
    let before = dcs.read().await.unwrap().revision;
    announce().await.unwrap();
    assert_eq!(dcs.read().await.unwrap().revision, before);
    let client = server.client().await;
    let path = "/service/demo/members/pg-0";
    client.delete(path, None).await.unwrap();
    announce().await.unwrap();
    assert_eq!(dcs.read().await.unwrap().members.len(), 1);
}

#[tokio::test]
async fn what_is_made_by_a_user_is_for_that_user_alone() {
    let server = ZooKeeperServer::start().await;
    let me = MemberName::new("pg-0").unwrap();
    let mut options = server.options();
    options.digest = Some("spilo:secret".to_owned());
    let ours = ZooKeeper::new(options.clone()).unwrap();
    let lease = ours.acquire(&me, TTL).await.unwrap();
    ours.renew(&lease).await.unwrap();
    let stranger = server.client().await;
    let read = stranger.get_data("/service/demo/leader").await;
    assert_eq!(read.unwrap_err(), Error::NoAuth);
    // Nothing of that is taken for a store that has nothing.
    options.digest = Some("spilo:wrong".to_owned());
    let theirs = ZooKeeper::new(options).unwrap();
    let refused = theirs.read().await.unwrap_err();
    assert_eq!(refused.kind(), DcsErrorKind::Refused, "{refused}");
    let refused = theirs.acquire(&me, TTL).await.unwrap_err();
    assert_eq!(refused.kind(), DcsErrorKind::Refused, "{refused}");
}

#[tokio::test]
async fn a_ttl_that_the_servers_do_not_grant_is_refused_with_the_remedy() {
    let server = ZooKeeperServer::start().await;
    let (dcs, me) = (server.zookeeper(), MemberName::new("pg-0").unwrap());
    let refused = dcs
        .acquire(&me, Duration::from_secs(3601))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), DcsErrorKind::Refused);
    assert!(
        refused.to_string().contains("maxSessionTimeout"),
        "{refused}"
    );
    assert_eq!(dcs.read().await.unwrap().leader, None);
}

#[tokio::test]
async fn a_leader_of_patronis_is_seen_and_not_written_over() {
    let server = ZooKeeperServer::start().await;
    let (dcs, me) = (server.zookeeper(), MemberName::new("pg-0").unwrap());
    let lease = dcs.acquire(&me, TTL).await.unwrap();
    // Somebody deletes the leader node, and Patroni takes the lock.
    let patroni = server.client().await;
    patroni.delete("/service/demo/leader", None).await.unwrap();
    let mode = zookeeper_client::CreateMode::Ephemeral;
    let options = mode.with_acls(zookeeper_client::Acls::anyone_all());
    let made = patroni
        .create("/service/demo/leader", b"pg-1", &options)
        .await;
    made.unwrap();
    let by = Expect::Leader(lease.epoch);
    for refused in [
        dcs.renew(&lease).await,
        dcs.release(&lease, Bytes::new()).await,
        dcs.put(Key::Status, Bytes::new(), by).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), DcsErrorKind::Conflict);
    }
    let leader = dcs.read().await.unwrap().leader.unwrap();
    assert_eq!(leader.name, "pg-1");
    assert!(leader.epoch > lease.epoch);
}

#[tokio::test]
async fn a_holder_from_before_the_store_was_wiped_holds_nothing_of_its_successors() {
    let server = ZooKeeperServer::start().await;
    let (old, new) = (server.zookeeper(), server.zookeeper());
    let (a, b) = (MemberName::new("a").unwrap(), MemberName::new("b").unwrap());
    let lease = old.acquire(&a, TTL).await.unwrap();
    old.read().await.unwrap();
    // Everything goes, and with it the versions that tell one holding from another.
    let client = server.client().await;
    let mut left = vec!["/service/demo".to_owned()];
    while let Some(path) = left.last().cloned() {
        match client.delete(&path, None).await {
            Ok(()) => drop(left.pop()),
            Err(Error::NotEmpty) => {
                let names = client.list_children(&path).await.unwrap();
                left.extend(names.into_iter().map(|name| format!("{path}/{name}")));
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
    let later = new.acquire(&b, TTL).await.unwrap();
    assert!(later.epoch > lease.epoch);
    let by = Expect::Leader(lease.epoch);
    for refused in [
        old.renew(&lease).await,
        old.release(&lease, Bytes::new()).await,
        old.put(Key::Status, Bytes::new(), by).await.map(drop),
        old.claim_initialize(&lease).await,
        server
            .zookeeper()
            .succeed(&lease.secret, &a, TTL)
            .await
            .map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), DcsErrorKind::Conflict);
    }
    new.renew(&later).await.unwrap();
    let found = new.read().await.unwrap().leader.unwrap();
    assert_eq!(found.epoch, later.epoch);
}

const TTL: Duration = Duration::from_secs(10);
