//! What becomes of requests when Consul fails.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use spilo_core::dcs::{Dcs as _, DcsErrorKind, Expect, Key};
use spilo_core::{DcsError, MemberName};
use spilo_dcs::Consul;

use crate::server::{ConsulServer, MASTER};

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn kind<T>(result: Result<T, DcsError>) -> Result<T, DcsErrorKind> {
    result.map_err(|error| error.kind())
}

/// Whether it was not done for the time being, or may have been: an open connection tells of its end
/// at any moment.
fn is_an_outage<T>(result: &Result<T, DcsErrorKind>) -> bool {
    matches!(
        result,
        Err(DcsErrorKind::Unavailable | DcsErrorKind::Indeterminate)
    )
}

/// Tries to acquire until that is done; returns when.
async fn acquired(dcs: &Consul, ttl: Duration, patience: Duration) -> Instant {
    let deadline = Instant::now() + patience;
    loop {
        match dcs.acquire(&name("other"), ttl).await {
            Ok(_) => return Instant::now(),
            Err(error) => {
                assert_eq!(error.kind(), DcsErrorKind::Conflict, "{error}");
                assert!(Instant::now() < deadline, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test]
async fn f11_the_lock_of_a_dead_holder_is_free_within_the_stated_time() {
    // As Consul is delivered: sessions last for 10 s or more.
    let server = ConsulServer::with(json!({})).await;
    let mut options = server.options();
    options.session_ttl_min = Duration::from_secs(10);
    let (holder, other) = (Consul::new(options.clone()), Consul::new(options));
    let (holder, other) = (holder.unwrap(), other.unwrap());
    let ttl = Duration::from_secs(10);
    let lease = holder.acquire(&name("a"), ttl).await.unwrap();
    let renewed = Instant::now();
    holder.renew(&lease).await.unwrap();
    let stated = other.capabilities();
    let latest = ttl + stated.release_slack + ttl.min(stated.lock_delay_max);
    assert_eq!(latest, Duration::from_secs(32));
    let freed = acquired(&other, ttl, latest + Duration::from_secs(5)).await - renewed;
    // A busy machine asks later than it may.
    let late = latest + Duration::from_secs(2);
    assert!(freed >= ttl && freed <= late, "{freed:?}");
}

#[tokio::test]
async fn f12_a_session_destroyed_under_its_holder_keeps_the_lock_back() {
    let server = ConsulServer::start().await;
    let (holder, other) = (server.consul(), server.consul());
    let ttl = Duration::from_secs(4);
    let lease = holder.acquire(&name("a"), ttl).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let renewed = Instant::now();
    holder.renew(&lease).await.unwrap();
    let session = server.session_of("leader");
    server.api("PUT", &format!("session/destroy/{session}"));

    assert_eq!(other.read().await.unwrap().leader, None);
    assert_eq!(
        kind(holder.renew(&lease).await),
        Err(DcsErrorKind::Conflict)
    );
    let by = Expect::Leader(lease.epoch);
    let written = holder.put(Key::Status, Bytes::from_static(b"1"), by).await;
    assert_eq!(kind(written), Err(DcsErrorKind::Conflict));
    let age = acquired(&other, ttl, ttl * 2).await - renewed;
    assert!(age >= ttl, "the holder may write for {ttl:?}, not {age:?}");
}

#[tokio::test]
async fn f12_a_restart_of_the_server_or_of_the_local_agent_ends_no_lease() {
    let mut server = ConsulServer::start().await;
    let mut agent = server.client().await;
    let holder = agent.consul();
    let ttl = Duration::from_secs(20);
    let lease = holder.acquire(&name("a"), ttl).await.unwrap();
    let by = Expect::Leader(lease.epoch);

    agent.stop();
    let down = kind(holder.put(Key::Status, Bytes::from_static(b"1"), by).await);
    assert!(is_an_outage(&down), "{down:?}");
    agent.run();
    agent.until_ready().await;
    holder.renew(&lease).await.unwrap();

    server.kill();
    let down = kind(holder.put(Key::Status, Bytes::from_static(b"2"), by).await);
    assert!(is_an_outage(&down), "{down:?}");
    server.run();
    server.until_ready().await;
    agent.until_ready().await;
    let deadline = Instant::now() + Duration::from_secs(15);
    while let Err(error) = holder.renew(&lease).await {
        assert_ne!(error.kind(), DcsErrorKind::Conflict, "{error}");
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let leader = server.consul().read().await.unwrap().leader.unwrap();
    assert_eq!(leader.epoch, lease.epoch);
}

#[tokio::test]
async fn f14_a_frozen_server_leaves_writes_in_doubt_and_nothing_else() {
    let server = ConsulServer::start().await;
    let mut options = server.options();
    options.request_timeout = Duration::from_millis(500);
    let dcs = Consul::new(options).unwrap();
    let lease = dcs
        .acquire(&name("a"), Duration::from_secs(20))
        .await
        .unwrap();
    let by = Expect::Leader(lease.epoch);
    server.signal("-STOP");
    let asked = Instant::now();
    assert_eq!(kind(dcs.read().await), Err(DcsErrorKind::Unavailable));
    let written = kind(dcs.put(Key::Status, Bytes::from_static(b"1"), by).await);
    assert_eq!(written, Err(DcsErrorKind::Indeterminate));
    assert_eq!(
        kind(dcs.renew(&lease).await),
        Err(DcsErrorKind::Indeterminate)
    );
    assert!(asked.elapsed() < Duration::from_secs(3));
    server.signal("-CONT");
    dcs.renew(&lease).await.unwrap();
    dcs.put(Key::Status, Bytes::from_static(b"2"), by)
        .await
        .unwrap();
    assert_eq!(dcs.read().await.unwrap().leader.unwrap().epoch, lease.epoch);
}

#[tokio::test]
async fn f16_a_watch_on_a_server_that_dies_returns() {
    let mut server = ConsulServer::start().await;
    let dcs = server.consul();
    let since = dcs.read().await.unwrap().revision;
    let watch = tokio::time::timeout(Duration::from_secs(5), dcs.changed(since));
    let kill = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill();
    };
    let (woken, ()) = tokio::join!(watch, kill);
    woken.expect("it returns").unwrap();
}

#[tokio::test]
async fn f17_the_leaders_position_wakes_nobody() {
    let server = ConsulServer::start().await;
    let (writer, watcher) = (server.consul(), server.consul());
    let put = async |key, text: &'static str| {
        let value = Bytes::from_static(text.as_bytes());
        writer.put(key, value, Expect::Anything).await.unwrap();
    };
    put(Key::Config, "{}").await;
    let since = watcher.read().await.unwrap().revision;
    let watch = watcher.changed(since);
    tokio::pin!(watch);
    for text in ["1", "2", "3", "4", "5"] {
        put(Key::Status, text).await;
        put(Key::LegacyOptime, text).await;
        let quiet = tokio::time::timeout(Duration::from_millis(100), &mut watch).await;
        assert!(quiet.is_err(), "nobody waits for a position");
    }
    put(Key::Failover, "{}").await;
    let woken = tokio::time::timeout(Duration::from_secs(2), &mut watch).await;
    woken.expect("a switchover is waited for").unwrap();
}

#[tokio::test]
async fn a_ttl_over_the_longest_lock_delay_is_held_back_for_that() {
    let server = ConsulServer::start().await;
    let dcs = server.consul();
    let ttl = Duration::from_secs(90);
    let lease = dcs.acquire(&name("a"), ttl).await.unwrap();
    assert_eq!(lease.ttl, ttl);
    let session = server.session_of("leader");
    let (_, found) = server.api("GET", &format!("session/info/{session}"));
    assert_eq!(found[0]["LockDelay"], 60_000_000_000_u64);
}

#[tokio::test]
async fn trying_again_while_the_lock_is_kept_back_makes_no_heap_of_sessions() {
    let server = ConsulServer::start().await;
    let (holder, other) = (server.consul(), server.consul());
    let ttl = Duration::from_secs(20);
    holder.acquire(&name("a"), ttl).await.unwrap();
    let session = server.session_of("leader");
    server.api("PUT", &format!("session/destroy/{session}"));
    for _ in 0..5 {
        let error = other.acquire(&name("b"), ttl).await.unwrap_err();
        assert_eq!(error.kind(), DcsErrorKind::Conflict);
        assert!(error.to_string().contains("lock delay"), "{error}");
    }
    let (_, sessions) = server.api("GET", "session/list");
    assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{sessions}");
}

#[tokio::test]
async fn without_the_right_token_everything_is_refused() {
    let acl = json!({
        "session_ttl_min": "1s",
        "acl": {
            "enabled": true, "default_policy": "deny", "down_policy": "deny",
            "tokens": { "master": MASTER, "agent": MASTER },
        },
    });
    let server = ConsulServer::with(acl).await;
    let ttl = Duration::from_secs(20);
    let with = |token: Option<&str>| {
        let mut options = server.options();
        options.token = token.map(str::to_owned);
        Consul::new(options).unwrap()
    };
    for token in [None, Some("b19533c4-e7c1-4bd5-9b4c-000000000000")] {
        let dcs = with(token);
        let acquired = kind(dcs.acquire(&name("a"), ttl).await);
        assert_eq!(
            acquired.map(|_| ()),
            Err(DcsErrorKind::Refused),
            "{token:?}"
        );
        let value = Bytes::from_static(b"1");
        let written = kind(dcs.put(Key::Config, value, Expect::Anything).await);
        assert_eq!(written.map(|_| ()), Err(DcsErrorKind::Refused), "{token:?}");
        let read = kind(dcs.read().await);
        assert_eq!(
            read,
            Err(DcsErrorKind::Refused),
            "{token:?}: not an empty cluster"
        );
    }
    let dcs = with(Some(MASTER));
    let lease = dcs.acquire(&name("a"), ttl).await.unwrap();
    assert_eq!(dcs.read().await.unwrap().leader.unwrap().epoch, lease.epoch);
}
