//! Patroni's keys, as another program sees them.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Expect, Key, LeaderRecord};
use spilo_core::{Dcs as _, Epoch, MemberName};
use spilo_dcs::Etcd;

use crate::server::EtcdCluster;

#[tokio::test]
async fn keys_and_values_are_patronis_byte_for_byte() {
    let cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let me = MemberName::new("pg-0").unwrap();
    let record = r#"{"conn_url":"postgres://127.0.0.1:5432/postgres","role":"primary"}"#;
    let lease = etcd.acquire(&me, Duration::from_secs(30)).await.unwrap();
    let by = Expect::Leader(lease.epoch);
    etcd.announce(&me, bytes(record), Duration::from_secs(30))
        .await
        .unwrap();
    etcd.put(Key::Initialize, bytes("7710822623212245678"), by)
        .await
        .unwrap();
    etcd.put(Key::LegacyOptime, bytes("67416800"), by)
        .await
        .unwrap();
    etcd.put(Key::Status, bytes(r#"{"optime":67416800}"#), by)
        .await
        .unwrap();
    assert_eq!(
        cluster.ctl(&["get", "--prefix", "/"]),
        format!(
            "/service/demo/initialize\n7710822623212245678\n\
             /service/demo/leader\npg-0\n\
             /service/demo/members/pg-0\n{record}\n\
             /service/demo/optime/leader\n67416800\n\
             /service/demo/status\n{{\"optime\":67416800}}\n"
        )
    );

    let id = etcd.read().await.unwrap().leader.unwrap().lease_id.unwrap();
    let shown = cluster.ctl(&["lease", "timetolive", "--keys", &format!("{id:x}")]);
    assert!(shown.contains("granted with TTL(30s)"), "{shown}");
    assert!(
        shown.contains("attached keys([/service/demo/leader])"),
        "{shown}"
    );

    etcd.release(&lease, bytes("{\"epoch\":1}")).await.unwrap();
    assert_eq!(cluster.ctl(&["get", "/service/demo/leader"]), "");
    assert_eq!(
        cluster.ctl(&["get", "/service/demo/release"]),
        "/service/demo/release\n{\"epoch\":1}\n"
    );
    let leases = cluster.ctl(&["lease", "list"]);
    assert!(
        leases.starts_with("found 1 leases"),
        "the member's only: {leases}"
    );
}

#[tokio::test]
async fn what_others_write_is_read_as_it_is() {
    let cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    for (key, value) in [
        ("leader", "pg-9"),
        ("members/pg-9", "{"),
        ("members/pg-9/deeper", "x"),
        ("0/leader", "citus"),
        ("unheard-of", "x"),
        ("sync", "null"),
    ] {
        cluster.ctl(&["put", &format!("/service/demo/{key}"), value]);
    }
    cluster.ctl(&["put", "/service/demo2/config", "another cluster"]);
    let seen = etcd.read().await.unwrap();
    let leader = LeaderRecord {
        name: bytes("pg-9"),
        epoch: Epoch(2),
        lease_id: None,
    };
    assert_eq!(seen.leader, Some(leader.clone()));
    assert_eq!(seen.members.keys().collect::<Vec<_>>(), ["pg-9"]);
    assert_eq!(seen.documents.keys().collect::<Vec<_>>(), [&Key::Sync]);
    assert!(
        !etcd.lease_ended(&leader).await.unwrap(),
        "no lease, no proof"
    );

    let me = MemberName::new("a").unwrap();
    let held = etcd
        .acquire(&me, Duration::from_secs(30))
        .await
        .unwrap_err();
    assert_eq!(held.kind(), DcsErrorKind::Conflict, "{held}");
    let leases = cluster.ctl(&["lease", "list"]);
    assert!(
        leases.starts_with("found 0 leases"),
        "it was given back: {leases}"
    );
}

#[tokio::test]
async fn a_namespace_is_kept_to() {
    let cluster = EtcdCluster::start(1).await;
    let mut options = cluster.options();
    options.namespace = "/db//prod/".to_owned();
    let etcd = Etcd::new(options).unwrap();
    etcd.put(Key::Config, bytes("{}"), Expect::Absent)
        .await
        .unwrap();
    assert_eq!(
        cluster.ctl(&["get", "--prefix", "/"]),
        "/db/prod/demo/config\n{}\n"
    );
    assert!(cluster.etcd().read().await.unwrap().documents.is_empty());
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
