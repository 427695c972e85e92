//! Answers that no ZooKeeper gives, and values that no spilo writes: each is named, and nothing is
//! concluded from it.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Expect, Key};
use spilo_core::{Dcs as _, MemberName};
use spilo_dcs::ZooKeeper;
use zookeeper_client::{Acls, CreateMode};

use crate::server::{ZooKeeperServer, options};
use crate::stranger::always;

fn asking(host: &str) -> ZooKeeper {
    let mut options = options([host.to_owned()]);
    options.request_timeout = Duration::from_secs(2);
    ZooKeeper::new(options).unwrap()
}

/// A session is granted, and then half an answer comes.
const HALF_AN_ANSWER: &[u8] = b"\0\0\0\x25\0\0\0\0\0\0\x27\x10\0\0\0\0\0\0\0\x07\0\0\0\x10\
    0123456789abcdef\0\0\0\0\x40\0\0\0\x01";
/// A session is granted, and then the answer to a request that nobody sent.
const UNASKED: &[u8] = b"\0\0\0\x25\0\0\0\0\0\0\x27\x10\0\0\0\0\0\0\0\x07\0\0\0\x10\
    0123456789abcdef\0\0\0\0\x10\0\0\x03\xe7\0\0\0\0\0\0\0\x01\0\0\0\0";

#[tokio::test]
async fn what_does_not_speak_zookeepers_protocol_answers_nothing() {
    for answer in [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".as_slice(),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"This ZooKeeper instance is not currently serving requests\n",
        b"",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x04\0\0\0\0",
        HALF_AN_ANSWER,
        UNASKED,
    ] {
        let text = String::from_utf8_lossy(answer);
        let zookeeper = asking(&always(answer.to_vec()).to_string());
        let error = zookeeper.read().await.unwrap_err();
        assert_eq!(error.kind(), DcsErrorKind::Unavailable, "{text}: {error}");
        assert!(error.to_string().contains("read the cluster"), "{error}");
        let me = MemberName::new("a").unwrap();
        let put = zookeeper
            .put(Key::Config, Bytes::new(), Expect::Anything)
            .await;
        let acquired = zookeeper.acquire(&me, Duration::from_secs(10)).await;
        for error in [put.map(drop), acquired.map(drop)] {
            let kind = error.unwrap_err().kind();
            assert!(
                matches!(
                    kind,
                    DcsErrorKind::Unavailable | DcsErrorKind::Indeterminate
                ),
                "{text}: {kind:?}"
            );
        }
    }
}

/// What others make below the node of a cluster: it is seen past, and what is ours is as it is.
#[tokio::test]
async fn a_layout_of_others_is_no_cluster_of_ours() {
    let server = ZooKeeperServer::start().await;
    let others = server.client().await;
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    for (path, value) in [
        ("/service", ""),
        ("/service/demo", "a value of its own"),
        ("/service/demo/0", ""),
        ("/service/demo/0/leader", "citus"),
        ("/service/demo/members", "[1, 2]"),
        ("/service/demo/members/b", "{"),
        ("/service/demo/members/b/deeper", "x"),
        ("/service/demo/config", "\u{0}\u{1}"),
        ("/service/demo/unheard-of", "x"),
    ] {
        others.create(path, value.as_bytes(), &open).await.unwrap();
    }
    let zookeeper = server.zookeeper();
    let seen = zookeeper.read().await.unwrap();
    assert_eq!(seen.leader, None);
    assert_eq!(seen.members.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(seen.documents.keys().collect::<Vec<_>>(), [&Key::Config]);
    let me = MemberName::new("a").unwrap();
    let lease = zookeeper
        .acquire(&me, Duration::from_secs(10))
        .await
        .unwrap();
    zookeeper.renew(&lease).await.unwrap();
}

#[tokio::test]
async fn values_of_ten_megabytes_are_read_and_hide_nothing() {
    let server = ZooKeeperServer::start_with(&["-Djute.maxbuffer=20000000"]).await;
    let zookeeper = server.zookeeper();
    let me = MemberName::new("a").unwrap();
    let lease = zookeeper
        .acquire(&me, Duration::from_secs(30))
        .await
        .unwrap();
    let others = server.client().await;
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let large = vec![b'x'; 10_000_000];
    for (path, is_document) in [("config", true), ("unheard-of", false)] {
        let path = format!("/service/demo/{path}");
        others.create(&path, &large, &open).await.unwrap();
        let seen = zookeeper.read().await.unwrap();
        assert_eq!(seen.leader.expect("it is seen beside the value").name, "a");
        let read = seen.documents.get(&Key::Config);
        assert_eq!(
            read.is_some_and(|entry| entry.value.len() >= large.len()),
            is_document
        );
        zookeeper.renew(&lease).await.unwrap();
        others.delete(&path, None).await.unwrap();
    }
}
