//! All clusters of a namespace, hundreds of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spilo_core::dcs::{Expect, Key, Lease};
use spilo_core::{Dcs as _, MemberName, Scope};
use spilo_dcs::Etcd;
use spilo_dcs::discovery::{ClusterOverview, Directory as _, Discovery, Health};
use spilo_dcs::etcd::EtcdDirectory;
use tokio::task::JoinSet;

use crate::server::EtcdCluster;

#[tokio::test]
async fn three_hundred_clusters_are_listed_at_once_and_followed_for_nothing() {
    let store = EtcdCluster::start(1).await;
    let mut making = JoinSet::new();
    for n in 0..300 {
        let etcd = handle(&store, &format!("c{n:03}"));
        making.spawn(async move { healthy(&etcd).await });
    }
    while let Some(made) = making.join_next().await {
        made.unwrap();
    }

    let asked = Instant::now();
    let mut discovery = discovery(&store);
    let all = discovery.next().await.unwrap();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(2), "first listing: {took:?}");
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|cluster| cluster.health == Health::Healthy));
    assert_eq!(all[7].members[1].lag_bytes, Some(100));

    // Whatever the listing left under way is over.
    until(&mut discovery, |all| all.len() == 300).await;
    let ranges = ranges(&store);
    let etcd = handle(&store, "c007");
    for round in 0..5_u64 {
        let text = Bytes::from(format!("{{\"optime\":{}}}", 2000 + round));
        etcd.put(Key::Status, text, Expect::Anything).await.unwrap();
        let changed = Instant::now();
        until(&mut discovery, |all| {
            all[7].members[1].lag_bytes == Some(1100 + round)
        })
        .await;
        let took = changed.elapsed();
        assert!(took < Duration::from_secs(1), "a change: {took:?}");
        assert_eq!(discovery.changed().len(), 1);
    }
    let after = self::ranges(&store);
    assert_eq!(
        after, ranges,
        "a change costs no read, of one cluster or of all"
    );
}

#[tokio::test]
async fn a_failover_shows_within_a_second() {
    let store = EtcdCluster::start(1).await;
    let etcd = handle(&store, "demo");
    let lease = healthy(&etcd).await;
    let mut discovery = discovery(&store);
    assert_eq!(
        discovery.next().await.unwrap()[0].leader.as_deref(),
        Some("n1")
    );
    etcd.release(&lease, Bytes::from_static(b"{}"))
        .await
        .unwrap();
    let next = MemberName::new("n2").unwrap();
    etcd.acquire(&next, Duration::from_secs(60)).await.unwrap();
    let changed = Instant::now();
    until(&mut discovery, |all| all[0].leader.as_deref() == Some("n2")).await;
    assert!(changed.elapsed() < Duration::from_secs(1));
    let health = discovery.overview()[0].health.clone();
    let Health::Leaderless(why) = health else {
        panic!("{health:?}");
    };
    assert_eq!(why, "n2 holds the lock and is replica, running");
}

#[tokio::test]
async fn garbage_below_one_scope_is_reported_and_hides_no_other() {
    let store = EtcdCluster::start(1).await;
    healthy(&handle(&store, "good")).await;
    healthy(&handle(&store, "bad")).await;
    let large = "x".repeat(1_000_000);
    for (key, value) in [
        ("bad/config", "{"),
        ("bad/members/n9", "[1, 2]"),
        ("bad/history", large.as_str()),
        ("bad/elsewhere/leader", "n1"),
        ("no-scope", "x"),
    ] {
        let name = format!("/service/{key}");
        // Through standard input: an argument may not be so long.
        store.ctl_with_input(&["put", &name], value);
    }
    let mut discovery = discovery(&store);
    let all = discovery.next().await.unwrap();
    let scopes: Vec<_> = all.iter().map(|cluster| cluster.scope.as_str()).collect();
    assert_eq!(scopes, ["bad", "good"]);
    assert_eq!(
        (&all[1].health, all[1].problems.len()),
        (&Health::Healthy, 0)
    );
    let problems = all[0].problems.join("\n");
    for part in ["config", "members/n9", "history", "elsewhere/leader"] {
        assert!(problems.contains(part), "{part}: {}", &problems[..500]);
    }
    assert_eq!(all[0].leader.as_deref(), Some("n1"));
}

#[tokio::test]
async fn an_outage_leaves_the_last_view_and_ends_by_itself() {
    let mut store = EtcdCluster::start(1).await;
    let etcd = handle(&store, "demo");
    healthy(&etcd).await;
    let mut discovery = discovery(&store);
    discovery.next().await.unwrap();
    store.kill(0);
    let quiet = tokio::time::timeout(Duration::from_secs(2), discovery.next()).await;
    assert!(quiet.is_err(), "an outage is no news");
    assert_eq!(discovery.overview()[0].health, Health::Healthy);
    store.start_member(0);
    store.until_ready(&etcd).await;
    let text = Bytes::from_static(b"{\"optime\":3000}");
    etcd.put(Key::Status, text, Expect::Anything).await.unwrap();
    until(&mut discovery, |all| {
        all[0].members[1].lag_bytes == Some(2100)
    })
    .await;
}

#[tokio::test]
async fn what_is_published_is_there_for_others_and_on_a_lease() {
    let store = EtcdCluster::start(1).await;
    let directory = EtcdDirectory::new(store.options()).unwrap();
    let value = Bytes::from_static(b"{}");
    for name in ["a", "b"] {
        let published = directory.publish("/spilo/clusters", name, Some(value.clone()));
        published.await.unwrap();
    }
    let get = || store.ctl(&["get", "--prefix", "--keys-only", "/spilo/"]);
    assert_eq!(get(), "/spilo/clusters/a\n\n/spilo/clusters/b\n\n");
    directory
        .publish("spilo/clusters/", "a", None)
        .await
        .unwrap();
    assert_eq!(get(), "/spilo/clusters/b\n\n");
    let leases = store.ctl(&["lease", "list"]);
    let lease = leases.lines().last().unwrap();
    let keys = store.ctl(&["lease", "timetolive", "--keys", lease]);
    assert!(
        keys.contains("TTL(60s)") && keys.contains("/spilo/clusters/b"),
        "{keys}"
    );
}

/// Writes what a healthy cluster of two has.
async fn healthy(etcd: &Etcd) -> Lease {
    let ttl = Duration::from_secs(600);
    let lease = etcd
        .acquire(&MemberName::new("n1").unwrap(), ttl)
        .await
        .unwrap();
    for (name, record) in [
        (
            "n1",
            r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","state":"running","role":"primary",
            "xlog_location":1000,"timeline":1}"#,
        ),
        (
            "n2",
            r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","state":"running","role":"replica",
            "replication_state":"streaming","xlog_location":900,"timeline":1}"#,
        ),
    ] {
        let name = MemberName::new(name).unwrap();
        let record = Bytes::copy_from_slice(record.as_bytes());
        etcd.announce(&name, record, ttl).await.unwrap();
    }
    let id = Bytes::from_static(b"7710822623212245678");
    etcd.put(Key::Initialize, id, Expect::Anything)
        .await
        .unwrap();
    lease
}

fn handle(store: &EtcdCluster, scope: &str) -> Etcd {
    let mut options = store.options();
    options.scope = Scope::new(scope).unwrap();
    options.request_timeout = Duration::from_secs(20);
    Etcd::new(options).unwrap()
}

fn discovery(store: &EtcdCluster) -> Discovery {
    Discovery::new(EtcdDirectory::new(store.options()).unwrap())
}

/// Follows until all clusters are as wanted.
async fn until(discovery: &mut Discovery, is_so: impl Fn(&[ClusterOverview]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut all: Arc<[_]> = discovery.overview();
    while !is_so(&all) {
        let left = deadline.saturating_duration_since(Instant::now());
        let next = tokio::time::timeout(left, discovery.next()).await;
        all = next.expect("it is told of in time").unwrap();
    }
}

/// Returns how many reads of keys etcd has answered, as it says so.
fn ranges(store: &EtcdCluster) -> String {
    let address = store.endpoints()[0].replace("http://", "");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let is_of_ranges =
        |line: &&str| line.starts_with("grpc_server_started_total") && line.contains("\"Range\"");
    let line = text
        .lines()
        .find(is_of_ranges)
        .expect("etcd counts its reads");
    line.to_owned()
}
