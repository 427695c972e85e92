//! What becomes of requests when ZooKeeper fails.

use std::time::{Duration, Instant};

use bytes::Bytes;
use spilo_core::dcs::{Dcs as _, DcsErrorKind, Expect, Key, Lease};
use spilo_core::{DcsError, MemberName};
use spilo_dcs::ZooKeeper;

use crate::server::{Ensemble, ZooKeeperServer};

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn kind<T>(result: Result<T, DcsError>) -> Result<T, DcsErrorKind> {
    result.map_err(|error| error.kind())
}

/// Whether it was not done for the time being, or may have been.
fn is_an_outage<T>(result: &Result<T, DcsErrorKind>) -> bool {
    matches!(
        result,
        Err(DcsErrorKind::Unavailable | DcsErrorKind::Indeterminate)
    )
}

/// Renews until that is done, and nothing before it says that the lease has ended.
async fn renewed(dcs: &ZooKeeper, lease: &Lease, patience: Duration) {
    let deadline = Instant::now() + patience;
    while let Err(error) = dcs.renew(lease).await {
        assert_ne!(error.kind(), DcsErrorKind::Conflict, "{error}");
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn f11_the_lock_of_a_dead_holder_is_free_within_the_stated_time() {
    let server = ZooKeeperServer::start().await;
    let (holder, other) = (server.zookeeper(), server.zookeeper());
    let ttl = Duration::from_secs(2);
    let lease = holder.acquire(&name("a"), ttl).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let renewed = Instant::now();
    holder.renew(&lease).await.unwrap();
    let latest = ttl + other.capabilities().release_slack;
    let freed = loop {
        match other.acquire(&name("b"), ttl).await {
            Ok(_) => break renewed.elapsed(),
            Err(error) => assert_eq!(error.kind(), DcsErrorKind::Conflict, "{error}"),
        }
        assert!(renewed.elapsed() < latest * 3, "it is never free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // A busy machine asks later than it may.
    let late = latest + Duration::from_secs(2);
    assert!(freed >= ttl && freed <= late, "{freed:?}");
}

#[tokio::test]
async fn f12_a_restart_of_the_server_ends_no_lease() {
    let mut server = ZooKeeperServer::start().await;
    let holder = server.zookeeper();
    let lease = holder.acquire(&name("a"), TTL).await.unwrap();
    let by = Expect::Leader(lease.epoch);
    server.kill();
    let down = kind(holder.put(Key::Status, Bytes::from_static(b"1"), by).await);
    assert!(is_an_outage(&down), "{down:?}");
    let down = kind(holder.renew(&lease).await);
    assert!(is_an_outage(&down), "{down:?}");
    server.run();
    server.until_ready().await;
    renewed(&holder, &lease, TTL).await;
    let leader = server.zookeeper().read().await.unwrap().leader.unwrap();
    assert_eq!(leader.epoch, lease.epoch);
    let written = holder.put(Key::Status, Bytes::from_static(b"2"), by).await;
    assert!(written.is_ok(), "{written:?}");
}

#[tokio::test]
async fn f14_a_frozen_server_leaves_writes_in_doubt_and_nothing_else() {
    let server = ZooKeeperServer::start().await;
    let (holder, other) = (server.zookeeper(), server.zookeeper());
    let lease = holder.acquire(&name("a"), TTL).await.unwrap();
    let (read, put, b) = (holder.read().await, Bytes::from_static(b"1"), name("b"));
    read.unwrap();
    server.signal("-STOP");
    let (renewal, written, read, acquired) = tokio::join!(
        holder.renew(&lease),
        holder.put(Key::Status, put, Expect::Anything),
        holder.read(),
        other.acquire(&b, TTL),
    );
    server.signal("-CONT");
    for result in [
        kind(renewal),
        kind(written.map(drop)),
        kind(acquired.map(drop)),
    ] {
        assert!(is_an_outage(&result), "{result:?}");
    }
    assert_eq!(kind(read.map(drop)), Err(DcsErrorKind::Unavailable));
    other.settle().await.unwrap();
    renewed(&holder, &lease, TTL).await;
}

#[tokio::test]
async fn f13_a_lease_outlives_the_leader_of_three_servers() {
    let mut ensemble = Ensemble::start().await;
    let holder = ensemble.zookeeper();
    let lease = holder.acquire(&name("a"), TTL).await.unwrap();
    let leader = ensemble.leader();
    ensemble.servers[leader].kill();
    renewed(&holder, &lease, TTL).await;
    let by = Expect::Leader(lease.epoch);
    let written = holder.put(Key::Status, Bytes::from_static(b"1"), by).await;
    assert!(written.is_ok(), "{written:?}");
    let found = holder.read().await.unwrap().leader.unwrap();
    assert_eq!(found.epoch, lease.epoch);
}

/// A follower whose leader is gone answers pings and reads for some ticks, while a new leader may
/// be elected elsewhere and let sessions end.
#[tokio::test]
async fn f15_a_server_that_has_lost_its_leader_renews_nothing_and_tells_no_news() {
    let ensemble = Ensemble::start().await;
    let leader = ensemble.leader();
    let lonely = (leader + 1) % 3;
    let holder = ensemble.servers[lonely].zookeeper();
    let lease = holder.acquire(&name("a"), TTL).await.unwrap();
    holder.read().await.unwrap();
    // A client of the library's own is told nothing of it.
    let trusting = ensemble.servers[lonely].client().await;
    for away in [leader, (leader + 2) % 3] {
        ensemble.servers[away].signal("-STOP");
    }
    let cut = Instant::now();
    let stale = trusting.get_data("/service/demo/leader").await;
    assert!(stale.is_ok(), "{stale:?}");
    let (renewal, read) = tokio::join!(holder.renew(&lease), holder.read());
    assert!(
        cut.elapsed() < Duration::from_secs(4),
        "{:?}",
        cut.elapsed()
    );
    for away in [leader, (leader + 2) % 3] {
        ensemble.servers[away].signal("-CONT");
    }
    let renewal = kind(renewal);
    assert!(is_an_outage(&renewal), "{renewal:?}");
    assert_eq!(kind(read.map(drop)), Err(DcsErrorKind::Unavailable));
    renewed(&holder, &lease, TTL).await;
}

#[tokio::test]
async fn f16_a_watch_outlives_its_server() {
    let mut server = ZooKeeperServer::start().await;
    let (watching, other) = (server.zookeeper(), server.zookeeper());
    let put = |text: &'static str| {
        let value = Bytes::from_static(text.as_bytes());
        other.put(Key::Config, value, Expect::Anything)
    };
    put("1").await.unwrap();
    let seen = watching.read().await.unwrap().revision;
    let hint = watching.changed(seen);
    let kill = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill();
        server.run();
        server.until_ready().await;
        while put("2").await.is_err() {}
    };
    let both = async { tokio::join!(hint, kill) };
    let (hint, ()) = tokio::time::timeout(TTL, both).await.unwrap();
    hint.unwrap();
    // And once more, on a connection that was made anew, after all hints that were on their way.
    let seen = loop {
        let Ok(snapshot) = watching.read().await else {
            continue;
        };
        let quiet = watching.changed(snapshot.revision);
        if tokio::time::timeout(Duration::from_secs(1), quiet)
            .await
            .is_err()
        {
            break snapshot.revision;
        }
    };
    let again = async {
        tokio::join!(watching.changed(seen), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            put("3").await.unwrap();
        })
    };
    let (hint, ()) = tokio::time::timeout(TTL, again).await.unwrap();
    hint.unwrap();
}

#[tokio::test]
async fn f17_the_leaders_position_wakes_nobody() {
    let server = ZooKeeperServer::start().await;
    let (watching, holder) = (server.zookeeper(), server.zookeeper());
    let lease = holder.acquire(&name("a"), TTL).await.unwrap();
    let by = Expect::Leader(lease.epoch);
    let put = |key, text: &'static str| holder.put(key, Bytes::from_static(text.as_bytes()), by);
    for key in [Key::Status, Key::LegacyOptime] {
        put(key, "0").await.unwrap();
    }
    let seen = watching.read().await.unwrap().revision;
    let hint = watching.changed(seen);
    let write = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for text in ["1", "2", "3"] {
            put(Key::Status, text).await.unwrap();
            put(Key::LegacyOptime, text).await.unwrap();
            holder.renew(&lease).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    tokio::pin!(hint);
    tokio::select! {
        _ = &mut hint => panic!("it was woken"),
        () = write => {}
    }
    let (hint, written) = tokio::join!(hint, put(Key::Config, "1"));
    hint.unwrap();
    written.unwrap();
}

const TTL: Duration = Duration::from_secs(20);
