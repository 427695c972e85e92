//! etcd with authentication switched on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Expect, Key};
use spilo_core::{Dcs as _, MemberName, Revision, Scope};
use spilo_dcs::{Etcd, EtcdOptions};

use crate::server::EtcdCluster;

#[tokio::test]
async fn a_user_may_do_what_its_role_allows() {
    let cluster = EtcdCluster::start(1).await;
    let before = Etcd::new(user(cluster.options(), "secret")).unwrap();
    before
        .read()
        .await
        .expect("a user is no error while authentication is off");
    switch_on(&cluster);

    for etcd in [
        before,
        Etcd::new(user(cluster.options(), "secret")).unwrap(),
    ] {
        let me = MemberName::new("a").unwrap();
        etcd.read().await.expect("a later switch is noticed");
        let lease = etcd.acquire(&me, Duration::from_secs(30)).await.unwrap();
        etcd.renew(&lease).await.unwrap();
        etcd.renew(&lease).await.unwrap();
        etcd.announce(&me, Bytes::from_static(b"{}"), Duration::from_secs(30))
            .await
            .unwrap();
        etcd.claim_initialize(&lease).await.unwrap();
        let seen = etcd.read().await.unwrap();
        etcd.changed(Revision(seen.revision.0 - 1)).await.unwrap();
        assert!(!etcd.lease_ended(&seen.leader.unwrap()).await.unwrap());
        let lease = etcd
            .succeed(&lease.secret, &me, Duration::from_secs(30))
            .await
            .unwrap();
        etcd.release(&lease, Bytes::from_static(b"r"))
            .await
            .unwrap();
        etcd.settle().await.unwrap();
    }
}

#[tokio::test]
async fn a_token_that_a_restart_made_invalid_is_renewed() {
    let mut cluster = EtcdCluster::start(1).await;
    switch_on(&cluster);
    let etcd = Etcd::new(user(cluster.options(), "secret")).unwrap();
    let me = MemberName::new("a").unwrap();
    let lease = etcd.acquire(&me, Duration::from_secs(30)).await.unwrap();
    cluster.kill(0);
    cluster.start_member(0);
    cluster.until_ready(&etcd).await;
    etcd.put(
        Key::Status,
        Bytes::from_static(b"1"),
        Expect::Leader(lease.epoch),
    )
    .await
    .unwrap();
    etcd.renew(&lease).await.unwrap();
    etcd.release(&lease, Bytes::from_static(b"r"))
        .await
        .unwrap();
}

/// Etcd does not refuse a watch with a token that counts no more: it opens and cancels it, on a
/// connection that is well.
#[tokio::test]
async fn a_watch_whose_token_counts_no_more_is_opened_again() {
    let cluster = EtcdCluster::start(1).await;
    switch_on(&cluster);
    let etcd = Etcd::new(user(cluster.options(), "secret")).unwrap();
    let since = etcd.read().await.unwrap().revision;
    let quiet = || tokio::time::timeout(Duration::from_secs(2), etcd.changed(since));
    quiet().await.unwrap_err();
    // What a user who is made anew was given before is forgotten.
    for command in [
        "user delete spilo",
        "user add spilo:secret",
        "user grant-role spilo spilo",
    ] {
        let as_root = ["--user", "root:root"].into_iter();
        cluster.ctl(&as_root.chain(command.split(' ')).collect::<Vec<_>>());
    }
    let end = Instant::now() + Duration::from_secs(10);
    // One that cannot be opened ends as a hint, again and again.
    while quiet().await.is_ok() {
        assert!(Instant::now() < end, "there is no watch");
    }
    let key = etcd.put(Key::Sync, Bytes::from_static(b"{}"), Expect::Anything);
    key.await.unwrap();
    quiet().await.unwrap().unwrap();
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_not_taken_for_an_outage() {
    let cluster = EtcdCluster::start(1).await;
    switch_on(&cluster);
    let mut elsewhere = user(cluster.options(), "secret");
    elsewhere.scope = Scope::new("not-ours").unwrap();
    for (options, problem) in [
        (user(cluster.options(), "wrong"), "authentication failed"),
        (cluster.options(), "user name is empty"),
        (elsewhere, "permission denied"),
    ] {
        let etcd = Etcd::new(options).unwrap();
        let me = MemberName::new("a").unwrap();
        let read = etcd.read().await.unwrap_err();
        assert_eq!(read.kind(), DcsErrorKind::Refused, "{read}");
        assert!(read.to_string().contains(problem), "{read}");
        let acquire = etcd
            .acquire(&me, Duration::from_secs(30))
            .await
            .unwrap_err();
        assert_eq!(acquire.kind(), DcsErrorKind::Refused, "{acquire}");
        let write = etcd
            .put(Key::Config, Bytes::new(), Expect::Anything)
            .await
            .unwrap_err();
        assert_eq!(write.kind(), DcsErrorKind::Refused, "{write}");
    }
}

fn switch_on(cluster: &EtcdCluster) {
    for command in [
        "user add root:root",
        "user grant-role root root",
        "role add spilo",
        "role grant-permission spilo --prefix=true readwrite /service/demo/",
        "user add spilo:secret",
        "user grant-role spilo spilo",
        "auth enable",
    ] {
        cluster.ctl(&command.split(' ').collect::<Vec<_>>());
    }
}

fn user(mut options: EtcdOptions, password: &str) -> EtcdOptions {
    options.user = Some(("spilo".to_owned(), password.to_owned()));
    options
}
