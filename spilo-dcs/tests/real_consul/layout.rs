//! What stands in Consul, as its own tools and Patroni see it.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use spilo_core::MemberName;
use spilo_core::dcs::{Dcs as _, Expect, Key};
use spilo_dcs::Consul;
use spilo_dcs::consul::Registration;

use crate::server::ConsulServer;

#[tokio::test]
async fn keys_and_values_are_those_of_patroni() {
    let server = ConsulServer::start().await;
    let (dcs, me) = (server.consul(), MemberName::new("pg-0").unwrap());
    let lease = dcs.acquire(&me, Duration::from_secs(30)).await.unwrap();
    let record = Bytes::from_static(br#"{"role":"primary"}"#);
    dcs.announce(&me, record, Duration::from_secs(30))
        .await
        .unwrap();
    dcs.claim_initialize(&lease).await.unwrap();
    let by = Expect::Leader(lease.epoch);
    let id = Bytes::from_static(b"7710822623212245678");
    dcs.put(Key::Initialize, id, by).await.unwrap();
    let position = Bytes::from_static(b"67416800");
    dcs.put(Key::LegacyOptime, position, by).await.unwrap();

    let keys = server.ctl(&["kv", "get", "-recurse", "service/demo/"]);
    let keys: Vec<_> = keys.lines().collect();
    assert_eq!(
        keys,
        [
            "service/demo/initialize:7710822623212245678",
            "service/demo/leader:pg-0",
            "service/demo/members/pg-0:{\"role\":\"primary\"}",
            "service/demo/optime/leader:67416800",
        ]
    );
    let (_, initialize) = server.api("GET", "kv/service/demo/initialize");
    assert_eq!(
        initialize[0]["Session"],
        Value::Null,
        "the identifier outlives its writer"
    );
}

#[tokio::test]
async fn sessions_have_a_time_and_a_delay_and_no_checks() {
    let server = ConsulServer::start().await;
    let (dcs, me) = (server.consul(), MemberName::new("pg-0").unwrap());
    dcs.acquire(&me, Duration::from_secs(30)).await.unwrap();
    let ttl = Duration::from_secs(31);
    dcs.announce(&me, Bytes::new(), ttl).await.unwrap();
    for (key, ttl, delay_s) in [("leader", "15s", 30), ("members/pg-0", "16s", 0)] {
        let session = server.session_of(key);
        let (_, found) = server.api("GET", &format!("session/info/{session}"));
        let found = &found[0];
        assert_eq!(found["Name"], "demo-pg-0");
        assert_eq!(found["TTL"], ttl);
        assert_eq!(
            found["LockDelay"],
            json!(delay_s * 1_000_000_000_u64),
            "{key}"
        );
        assert_eq!(found["Behavior"], "delete");
        let checks = found["NodeChecks"].as_array().is_none_or(Vec::is_empty);
        assert!(checks, "{found}");
    }
}

#[tokio::test]
async fn a_record_of_an_earlier_incarnation_is_taken_over() {
    let server = ConsulServer::start().await;
    let me = MemberName::new("pg-0").unwrap();
    let ttl = Duration::from_secs(30);
    for text in ["one", "two"] {
        // A new handle knows nothing of the session that the record hangs on.
        let dcs = server.consul();
        let record = Bytes::from_static(text.as_bytes());
        dcs.announce(&me, record.clone(), ttl).await.unwrap();
        assert_eq!(dcs.read().await.unwrap().members["pg-0"].value, record);
    }
}

#[tokio::test]
async fn a_record_that_somebody_deleted_is_written_again() {
    let server = ConsulServer::start().await;
    let (dcs, me) = (server.consul(), MemberName::new("pg-0").unwrap());
    let announce = || dcs.announce(&me, Bytes::from_static(b"x"), Duration::from_secs(30));
    announce().await.unwrap();
    server.ctl(&["kv", "delete", "service/demo/members/pg-0"]);
    announce().await.unwrap();
    assert!(
        dcs.read().await.unwrap().members.is_empty(),
        "nobody looked"
    );
    announce().await.unwrap();
    assert_eq!(dcs.read().await.unwrap().members.len(), 1);
}

#[tokio::test]
async fn a_member_is_a_service_while_it_serves() {
    let server = ConsulServer::start().await;
    let mut options = server.options();
    options.registration = Some(Registration::default());
    let (dcs, me) = (
        Consul::new(options).unwrap(),
        MemberName::new("pg-0").unwrap(),
    );
    for (role, state, tags) in [
        ("primary", "running", json!(["primary", "master"])),
        ("replica", "running", json!(["replica"])),
        ("replica", "stopped", Value::Null),
        ("replica", "running", json!(["replica"])),
    ] {
        let record = json!({
            "conn_url": "postgres://127.0.0.1:5432/postgres",
            "api_url": "http://127.0.0.1:8008/patroni",
            "state": state,
            "role": role,
        });
        dcs.announce(&me, record.to_string().into(), Duration::from_secs(30))
            .await
            .unwrap();
        let (_, services) = server.api("GET", "agent/services");
        assert_eq!(services["demo/pg-0"]["Tags"], tags, "{services}");
    }
}
