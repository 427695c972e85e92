//! Answers that no etcd gives, and values that no spilo writes: each is named, and nothing is
//! concluded from it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::{DcsErrorKind, Expect, Key};
use spilo_core::{Dcs as _, MemberName, Scope};
use spilo_dcs::{Etcd, EtcdOptions};

use crate::server::EtcdCluster;
use crate::stranger::always;

fn asking(endpoints: &[SocketAddr]) -> Etcd {
    let scope = Scope::new("demo").unwrap();
    let endpoints = endpoints.iter().map(ToString::to_string);
    let mut options = EtcdOptions::new(scope, endpoints);
    options.request_timeout = Duration::from_secs(2);
    Etcd::new(options).unwrap()
}

/// Beginnings of HTTP/2 connections: the settings, their acknowledgement, and then a frame.
const HALF_A_FRAME: &[u8] =
    b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0\0\0\x40\x01\x04\0\0\0\x01\x88";
const FRAME_OF_NO_STREAM: &[u8] =
    b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0\0\0\x04\0\x01\0\0\0\x01abcd";
const REFUSED_CONNECTION: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";

#[tokio::test]
async fn what_does_not_speak_etcds_protocol_is_named_and_answers_nothing() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n<html>Welcome</html>".as_slice(),
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\0\x02\x02\x46",
        b"",
        HALF_A_FRAME,
        FRAME_OF_NO_STREAM,
        REFUSED_CONNECTION,
    ] {
        let text = String::from_utf8_lossy(answer);
        let address = always(answer.to_vec());
        let etcd = asking(&[address]);
        let error = etcd.read().await.unwrap_err();
        assert_eq!(error.kind(), DcsErrorKind::Unavailable, "{text}: {error}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");

        let me = MemberName::new("a").unwrap();
        let put = etcd.put(Key::Config, Bytes::new(), Expect::Anything).await;
        let acquired = etcd.acquire(&me, Duration::from_secs(10)).await;
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

#[tokio::test]
async fn beside_one_that_is_none_the_other_endpoint_is_used() {
    let cluster = EtcdCluster::start(1).await;
    let address = cluster.endpoints()[0].replace("http://", "");
    let stranger = always(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec());
    let etcd = asking(&[stranger, address.parse().unwrap()]);
    for _ in 0..3 {
        etcd.read().await.unwrap();
    }
}

#[tokio::test]
async fn values_of_ten_megabytes_are_read_and_hide_nothing() {
    let mut cluster = EtcdCluster::prepare(1, "http", &["--max-request-bytes=16777216".to_owned()]);
    cluster.start_all();
    let etcd = cluster.etcd();
    cluster.until_ready(&etcd).await;
    let me = MemberName::new("a").unwrap();
    let ttl = Duration::from_secs(60);
    let lease = etcd.acquire(&me, ttl).await.unwrap();

    let (others, large) = (cluster.etcd(), Bytes::from(vec![b'x'; 10_000_000]));
    let put = |key| others.put(key, large.clone(), Expect::Anything);
    put(Key::Config).await.unwrap();
    let b = MemberName::new("b").unwrap();
    others.announce(&b, large.clone(), ttl).await.unwrap();
    let seen = etcd.read().await.unwrap();
    assert_eq!(seen.leader.unwrap().name, "a");
    assert_eq!(seen.documents[&Key::Config].value, large);
    assert_eq!(seen.members["b"].value, large);
    etcd.renew(&lease).await.unwrap();

    // More than 64 MiB in all are an error, which names the cause and ends with it.
    let many = [
        Key::Sync,
        Key::History,
        Key::Status,
        Key::Failsafe,
        Key::Failover,
    ];
    for key in many {
        put(key).await.unwrap();
    }
    let error = etcd.read().await.unwrap_err();
    assert_eq!(error.kind(), DcsErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("message length too large"),
        "{error}"
    );
    etcd.renew(&lease).await.unwrap();
    for key in many {
        others.delete(key, Expect::Anything).await.unwrap();
    }
    etcd.read().await.unwrap();
}
