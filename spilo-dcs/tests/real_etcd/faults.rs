//! etcd that is killed, restarted, frozen, wiped or replaced.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spilo_core::conformance::dcs::Laboratory as _;
use spilo_core::dcs::{DcsErrorKind, Expect, Key, Lease};
use spilo_core::{Dcs as _, DcsError, MemberName, Revision};
use spilo_dcs::Etcd;
use tokio::time::timeout;

use crate::ports::free_ports;
use crate::server::EtcdCluster;

#[tokio::test]
async fn f13_a_lease_outlives_any_one_of_three_members() {
    let mut cluster = EtcdCluster::start(3).await;
    let etcd = cluster.etcd();
    let lease = etcd.acquire(&me(), TTL).await.unwrap();
    // Each in turn: one of them is the leader of etcd, and one the endpoint in use.
    for i in 0..3 {
        cluster.kill(i);
        kept_for(&etcd, &lease, Duration::from_secs(3)).await;
        until_written(&etcd, &lease).await;
        cluster.start_member(i);
        kept_for(&etcd, &lease, Duration::from_secs(1)).await;
    }
    assert_eq!(
        etcd.read().await.unwrap().leader.unwrap().epoch,
        lease.epoch
    );
}

#[tokio::test]
async fn f13_a_lease_outlives_a_restart_of_etcd() {
    let mut cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let lease = etcd.acquire(&me(), TTL).await.unwrap();
    etcd.renew(&lease).await.unwrap();
    cluster.kill(0);
    let down = etcd.renew(&lease).await.unwrap_err();
    assert!(transient(&down), "{down}");
    cluster.start_member(0);
    kept_for(&etcd, &lease, Duration::from_secs(2)).await;
    assert_eq!(
        etcd.read().await.unwrap().leader.unwrap().epoch,
        lease.epoch
    );
    until_written(&etcd, &lease).await;
}

#[tokio::test]
async fn a_frozen_member_delays_no_renewal() {
    let cluster = EtcdCluster::start(3).await;
    let etcd = cluster.etcd();
    let lease = etcd.acquire(&me(), TTL).await.unwrap();
    for i in 0..3 {
        cluster.signal(i, "-STOP");
        kept_for(&etcd, &lease, Duration::from_secs(3)).await;
        until_written(&etcd, &lease).await;
        bounded(etcd.read()).await.unwrap();
        cluster.signal(i, "-CONT");
        kept_for(&etcd, &lease, Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn who_does_not_wait_for_a_frozen_member_comes_to_another_one() {
    let cluster = EtcdCluster::start(3).await;
    let mut options = cluster.options();
    options.request_timeout = Duration::from_secs(9);
    let etcd = Etcd::new(options).unwrap();
    let lease = etcd.acquire(&me(), Duration::from_secs(60)).await.unwrap();
    for i in 0..3 {
        cluster.signal(i, "-STOP");
        // The stream that was open, the member that it led to, another one; and two members may
        // have to elect a leader of etcd first.
        let (short, frozen) = (Duration::from_millis(700), Instant::now());
        while !matches!(timeout(short, etcd.renew(&lease)).await, Ok(Ok(()))) {
            assert!(frozen.elapsed() < Duration::from_secs(20), "member {i}");
        }
        cluster.signal(i, "-CONT");
        kept_for(&etcd, &lease, Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn without_an_answer_every_call_ends_in_time_and_says_what_is_known() {
    let cluster = EtcdCluster::start(1).await;
    let mut options = cluster.options();
    options.request_timeout = Duration::from_secs(1);
    let etcd = Etcd::new(options).unwrap();
    let lease = etcd.acquire(&me(), Duration::from_secs(60)).await.unwrap();
    etcd.announce(&me(), bytes("{}"), TTL).await.unwrap();
    let put = || etcd.put(Key::Config, bytes("{}"), Expect::Anything);
    put().await.unwrap();
    cluster.signal(0, "-STOP");

    // What leaves on a connection that was open may be done. The next connection gets no answer to
    // the question who is there, and nothing leaves on it.
    let unknown = Err(DcsErrorKind::Indeterminate);
    let not_done = Err(DcsErrorKind::Unavailable);
    assert_eq!(
        bounded(etcd.read()).await.map(|_| ()),
        Err(DcsErrorKind::Unavailable)
    );
    assert_eq!(bounded(etcd.renew(&lease)).await, unknown);
    assert_eq!(bounded(put()).await.map(|_| ()), unknown);
    assert_eq!(bounded(put()).await.map(|_| ()), not_done);
    assert_eq!(
        bounded(etcd.delete(Key::Config, Expect::Anything)).await,
        not_done
    );
    assert_eq!(bounded(etcd.claim_initialize(&lease)).await, not_done);
    assert_eq!(
        bounded(etcd.announce(&me(), bytes("{}"), TTL)).await,
        not_done
    );
    assert_eq!(bounded(etcd.release(&lease, bytes("r"))).await, not_done);
    let me = me();
    let succession = etcd.succeed(&lease.secret, &me, TTL);
    // Not even a lease was granted, so the lock is certainly not taken.
    assert_eq!(
        bounded(succession).await.map(|_| ()),
        Err(DcsErrorKind::Unavailable)
    );
    assert_eq!(bounded(etcd.settle()).await, Ok(()));

    cluster.signal(0, "-CONT");
    cluster.until_ready(&etcd).await;
    etcd.settle().await.unwrap();
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_done() {
    let mut cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let lease = etcd.acquire(&me(), Duration::from_secs(60)).await.unwrap();
    cluster.kill(0);
    let etcd = cluster.etcd();

    let nothing = Err(DcsErrorKind::Unavailable);
    let begun = Instant::now();
    assert_eq!(bounded(etcd.read()).await.map(|_| ()), nothing);
    assert_eq!(bounded(etcd.acquire(&me(), TTL)).await.map(|_| ()), nothing);
    assert_eq!(bounded(etcd.renew(&lease)).await, nothing);
    assert_eq!(bounded(etcd.release(&lease, bytes("r"))).await, nothing);
    let put = etcd.put(Key::Config, bytes("{}"), Expect::Anything);
    assert_eq!(bounded(put).await.map(|_| ()), nothing);
    assert_eq!(
        bounded(etcd.announce(&me(), bytes("{}"), TTL)).await,
        nothing
    );
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "a refused connection is not waited for"
    );
    let error = etcd.read().await.unwrap_err().to_string();
    assert!(
        error.contains("cannot read the cluster: http://127.0.0.1:"),
        "{error}"
    );
    assert!(error.contains("onnection refused"), "{error}");
}

#[tokio::test]
async fn f14_a_lost_quorum_fails_no_renewal_for_good() {
    let mut cluster = EtcdCluster::start(3).await;
    let etcd = cluster.etcd();
    let lease = etcd.acquire(&me(), TTL).await.unwrap();
    cluster.kill(1);
    cluster.kill(2);
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        if let Err(error) = etcd.renew(&lease).await {
            assert!(transient(&error), "{error}");
        }
        if let Err(error) = etcd.read().await {
            assert!(transient(&error), "{error}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.start_member(1);
    cluster.until_ready(&etcd).await;
    until_written(&etcd, &lease).await;
}

#[tokio::test]
async fn f15_a_store_that_went_back_in_time_is_not_believed() {
    let mut cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    for i in 0..5 {
        etcd.put(Key::Config, bytes(&i.to_string()), Expect::Anything)
            .await
            .unwrap();
    }
    cluster.kill(0);
    cluster.wipe(0);
    cluster.start_member(0);
    cluster.until_ready(&cluster.etcd()).await;
    let behind = etcd.read().await.unwrap_err();
    assert_eq!(behind.kind(), DcsErrorKind::Unavailable, "{behind}");
    assert!(behind.to_string().contains("it is behind"), "{behind}");
    let behind = etcd
        .put(Key::Config, bytes("x"), Expect::Absent)
        .await
        .unwrap_err();
    assert_eq!(behind.kind(), DcsErrorKind::Indeterminate, "{behind}");
}

#[tokio::test]
async fn another_etcd_at_the_same_address_is_named() {
    let mut cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    etcd.read().await.unwrap();
    cluster.kill(0);
    cluster.wipe(0);
    cluster.start_anew(0);
    cluster.until_ready(&cluster.etcd()).await;
    let foreign = etcd.read().await.unwrap_err();
    assert_eq!(foreign.kind(), DcsErrorKind::Refused, "{foreign}");
    assert!(
        foreign.to_string().contains("another etcd cluster"),
        "{foreign}"
    );
}

#[tokio::test]
async fn a_revoked_lease_cannot_be_renewed() {
    let cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let lease = etcd.acquire(&me(), TTL).await.unwrap();
    etcd.renew(&lease).await.unwrap();
    let id = etcd.read().await.unwrap().leader.unwrap().lease_id.unwrap();
    cluster.ctl(&["lease", "revoke", &format!("{id:x}")]);
    assert_eq!(
        bounded(etcd.renew(&lease)).await,
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(
        bounded(etcd.renew(&lease)).await,
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(
        bounded(etcd.claim_initialize(&lease)).await,
        Err(DcsErrorKind::Conflict)
    );
    assert_eq!(etcd.read().await.unwrap().leader, None);
}

#[tokio::test]
async fn a_lost_member_record_comes_back() {
    let cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let there = async || etcd.read().await.unwrap().members.contains_key("a");
    etcd.announce(&me(), bytes("{}"), TTL).await.unwrap();
    assert!(there().await);

    cluster.ctl(&["del", "--prefix", "/service/demo/"]);
    assert!(!there().await, "a snapshot shows that it is gone");
    etcd.announce(&me(), bytes("{}"), TTL).await.unwrap();
    assert!(there().await, "a deleted key is written again");

    for id in cluster.ctl(&["lease", "list"]).lines().skip(1) {
        cluster.ctl(&["lease", "revoke", id]);
    }
    assert!(!there().await);
    etcd.announce(&me(), bytes("{}"), TTL).await.unwrap();
    assert!(there().await, "a lost lease is granted again");
}

#[tokio::test]
async fn a_watch_that_cannot_go_on_ends_as_a_hint() {
    let mut cluster = EtcdCluster::start(1).await;
    let mut options = cluster.options();
    options.request_timeout = Duration::from_secs(1);
    let etcd = Etcd::new(options).unwrap();
    let mut last = Revision(0);
    for _ in 0..3 {
        last = etcd
            .put(Key::Config, bytes("{}"), Expect::Anything)
            .await
            .unwrap();
    }
    cluster.ctl(&["compact", &last.to_string()]);
    within(Duration::from_secs(3), etcd.changed(Revision(1))).await;

    let (woken, ()) = tokio::join!(
        timeout(Duration::from_secs(40), etcd.changed(last)),
        async {
            cluster.sleep(Duration::from_millis(300)).await;
            cluster.signal(0, "-STOP");
        }
    );
    woken.expect("a silent watch ends").unwrap();
    cluster.signal(0, "-CONT");
    cluster.until_ready(&etcd).await;

    cluster.kill(0);
    within(Duration::from_secs(3), etcd.changed(last)).await;
    cluster.start_member(0);
    cluster.until_ready(&etcd).await;
    etcd.put(Key::Config, bytes("{}"), Expect::Anything)
        .await
        .unwrap();
    within(Duration::from_secs(3), etcd.changed(last)).await;
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_not_woken_in_a_circle() {
    let cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let since = etcd.read().await.unwrap().revision;
    let put = async |text| {
        etcd.put(Key::Config, bytes(text), Expect::Anything)
            .await
            .unwrap()
    };
    put("1").await;
    let begun = Instant::now();
    let mut woken = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        etcd.changed(since).await.unwrap();
        woken += 1;
    }
    assert!((2..=6).contains(&woken), "{woken} times in 2 s");

    // What etcd takes for the put is its own.
    let stored = async {
        put("2").await;
        Instant::now()
    };
    let told = async {
        etcd.changed(since).await.unwrap();
        Instant::now()
    };
    let (stored, told) = tokio::join!(stored, told);
    let took = told.saturating_duration_since(stored);
    assert!(
        took < Duration::from_millis(300),
        "news is told at once, not after {took:?}"
    );
}

#[tokio::test]
async fn positions_wake_no_watcher() {
    let cluster = EtcdCluster::start(1).await;
    let etcd = cluster.etcd();
    let me = MemberName::new("a").unwrap();
    let announce = async |record: &str| {
        let ttl = Duration::from_secs(30);
        etcd.announce(&me, bytes(record), ttl).await.unwrap();
    };
    announce(r#"{"role":"replica","xlog_location":1}"#).await;
    let since = etcd.read().await.unwrap().revision;
    for key in [Key::Status, Key::LegacyOptime] {
        etcd.put(key, bytes("1"), Expect::Anything).await.unwrap();
    }
    announce(r#"{"role":"replica","xlog_location":2}"#).await;
    let woken = timeout(Duration::from_secs(1), etcd.changed(since)).await;
    assert!(woken.is_err(), "nobody waits for them");
    announce(r#"{"role":"primary","xlog_location":2}"#).await;
    within(Duration::from_secs(1), etcd.changed(since)).await;
    let since = etcd.read().await.unwrap().revision;
    etcd.put(Key::Failover, bytes("{}"), Expect::Anything)
        .await
        .unwrap();
    within(Duration::from_secs(1), etcd.changed(since)).await;
}

#[tokio::test]
async fn an_endpoint_that_is_gone_costs_no_call() {
    let cluster = EtcdCluster::start(1).await;
    let mut options = cluster.options();
    options.endpoints.insert(0, closed_port());
    let etcd = Etcd::new(options).unwrap();
    etcd.put(Key::Config, bytes("{}"), Expect::Absent)
        .await
        .unwrap();
    every_repeatable_call(&etcd).await;
}

#[tokio::test]
async fn an_endpoint_that_never_answers_costs_no_call_that_may_be_repeated() {
    let cluster = EtcdCluster::start(1).await;
    // The kernel takes the connection, and nobody reads from it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = cluster.options();
    options
        .endpoints
        .insert(0, silent.local_addr().unwrap().to_string());
    let etcd = Etcd::new(options).unwrap();
    let put = etcd.put(Key::Config, bytes("{}"), Expect::Absent).await;
    assert_eq!(
        put.unwrap_err().kind(),
        DcsErrorKind::Indeterminate,
        "it may have been done"
    );
    etcd.put(Key::Config, bytes("{}"), Expect::Absent)
        .await
        .expect("the next endpoint is next");
    every_repeatable_call(&etcd).await;
}

/// Renews as an agent does, and fails if the lease was ever without a renewal for too long.
async fn kept_for(etcd: &Etcd, lease: &Lease, span: Duration) {
    let until = Instant::now() + span;
    let mut renewed = Instant::now();
    while Instant::now() < until {
        let sent = Instant::now();
        match etcd.renew(lease).await {
            Ok(()) => renewed = sent,
            Err(error) => assert!(transient(&error), "{error}"),
        }
        assert!(
            renewed.elapsed() < TTL * 2 / 3,
            "a renewal gets through in time"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(renewed.elapsed() < TTL / 3, "renewals get through again");
}

/// Makes one call on each lane that is still to find out which endpoint answers.
async fn every_repeatable_call(etcd: &Etcd) {
    bounded(etcd.read()).await.unwrap();
    let lease = bounded(etcd.acquire(&me(), TTL)).await.unwrap();
    bounded(etcd.renew(&lease)).await.unwrap();
    bounded(etcd.settle()).await.unwrap();
    bounded(etcd.renew(&lease))
        .await
        .expect("settling leaves an answered lease alone");
    bounded(etcd.changed(Revision(0))).await.unwrap();
    bounded(etcd.release(&lease, bytes("r"))).await.unwrap();
}

/// Returns the address of a port on which nobody listens.
fn closed_port() -> String {
    format!("127.0.0.1:{}", free_ports(1)[0])
}

async fn until_written(etcd: &Etcd, lease: &Lease) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = etcd
        .put(Key::Status, bytes("1"), Expect::Leader(lease.epoch))
        .await
    {
        assert!(transient(&error) && Instant::now() < deadline, "{error}");
    }
}

/// Runs one call, and fails if it takes longer than any here is configured to.
async fn bounded<T>(call: impl Future<Output = Result<T, DcsError>>) -> Result<T, DcsErrorKind> {
    let begun = Instant::now();
    let result = call.await;
    let took = begun.elapsed();
    assert!(
        took < Duration::from_millis(3_500),
        "an answer within 3 s, not {took:?}"
    );
    result.map_err(|error| error.kind())
}

async fn within(span: Duration, call: impl Future<Output = Result<(), DcsError>>) {
    timeout(span, call).await.expect("it ends in time").unwrap();
}

fn transient(error: &DcsError) -> bool {
    matches!(
        error.kind(),
        DcsErrorKind::Unavailable | DcsErrorKind::Indeterminate
    )
}

fn me() -> MemberName {
    MemberName::new("a").unwrap()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

const TTL: Duration = Duration::from_secs(10);
