//! Answers that no Consul gives: each is named, and nothing is concluded from it.

use std::time::Duration;

use bytes::Bytes;
use spilo_core::dcs::{Dcs as _, DcsErrorKind, Expect, Key, Lease, LeaseSecret};
use spilo_core::{Epoch, MemberName, Scope};
use spilo_dcs::{Consul, ConsulOptions};

use crate::stranger::always;

/// Returns a handle that asks where every request is answered with the same bytes.
fn answered(answer: Vec<u8>) -> Consul {
    let address = always(answer);
    let scope = Scope::new("demo").unwrap();
    let mut options = ConsulOptions::new(scope, format!("http://{address}"));
    options.request_timeout = Duration::from_secs(5);
    Consul::new(options).unwrap()
}

fn http(head: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let text = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    [text.as_bytes(), body.as_bytes()].concat()
}

fn indexed(body: &str) -> Vec<u8> {
    http("200 OK\r\nX-Consul-Index: 7", body)
}

#[tokio::test]
async fn what_is_no_snapshot_is_an_error_that_says_what_was_wrong() {
    let large = format!(
        r#"[{{"Key":"service/demo/config","Value":"{}"}}]"#,
        "eHh4".repeat(3_000_000)
    );
    let mut half = indexed("[]");
    half.truncate(half.len() - 1);
    for (answer, problem) in [
        (
            http("200 OK", "<html>Welcome</html>"),
            "the answer says no X-Consul-Index: is this Consul?",
        ),
        (
            http("200 OK\r\nX-Consul-Index: many", "[]"),
            "the answer says no X-Consul-Index",
        ),
        (
            indexed("<html>"),
            "the answer is no list of keys: expected value",
        ),
        (
            indexed("{}"),
            "the answer is no list of keys: invalid type: map",
        ),
        (
            indexed("[7]"),
            "the answer is no list of keys: invalid type: integer",
        ),
        (
            indexed(r#"[{"Key":"service/demo/leader","Value":"YQ==","ModifyIndex":"7"}]"#),
            "the answer is no list of keys: invalid type: string \"7\"",
        ),
        (
            indexed(r#"[{"Key":"service/demo/leader","Value":"%%","ModifyIndex":7}]"#),
            "the value of service/demo/leader: Invalid symbol 37",
        ),
        (
            indexed(&large),
            "the answer is no list of keys: missing field `ModifyIndex`",
        ),
        (half, "end of file before message length reached"),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            "invalid HTTP version parsed",
        ),
        (http("302 Found", ""), "302 Found"),
        (
            http("500 Oops", "rpc error: EOF"),
            "500 Internal Server Error: rpc error: EOF",
        ),
    ] {
        let error = answered(answer).read().await.unwrap_err();
        assert_eq!(error.kind(), DcsErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains(problem), "{problem}: {error}");
    }
}

#[tokio::test]
async fn a_layout_of_others_is_no_cluster_of_ours() {
    let keys = r#"[
        {"Key":"service/demo/0/leader","Value":"YQ==","ModifyIndex":7},
        {"Key":"service/demo/members/a/b","Value":null,"ModifyIndex":7},
        {"Key":"service/demo/lock","Value":"YQ==","ModifyIndex":7,"Session":"s"},
        {"Key":"service/demo/config","Value":"e30=","ModifyIndex":7}
    ]"#;
    let seen = answered(indexed(keys)).read().await.unwrap();
    assert_eq!(seen.leader, None);
    assert!(seen.members.is_empty());
    assert_eq!(seen.documents.len(), 1, "only what is ours");
}

#[tokio::test]
async fn an_answer_that_nobody_understands_leaves_a_write_in_doubt() {
    let lease = Lease {
        epoch: Epoch(7),
        secret: LeaseSecret("adf4238a-882b-9ddc-4a9d-5b6758e4159e@7".to_owned()),
        ttl: Duration::from_secs(10),
    };
    for answer in [
        http("200 OK", "<html>Welcome</html>"),
        http("200 OK", r#"{"Results":[],"Errors":null}"#),
        http("503 Service Unavailable", ""),
        http("502 Bad Gateway", "<html>"),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
    ] {
        let consul = answered(answer.clone());
        let text = String::from_utf8_lossy(&answer).into_owned();
        let put = consul
            .put(Key::Config, Bytes::new(), Expect::Anything)
            .await;
        let kind = put.unwrap_err().kind();
        assert_eq!(kind, DcsErrorKind::Indeterminate, "{text}");
        let renewed = consul.renew(&lease).await.unwrap_err();
        assert_eq!(renewed.kind(), DcsErrorKind::Indeterminate, "{text}");
        // A session that nobody has the id of holds nothing.
        let me = MemberName::new("a").unwrap();
        let acquired = consul.acquire(&me, Duration::from_secs(10)).await;
        assert_eq!(
            acquired.unwrap_err().kind(),
            DcsErrorKind::Unavailable,
            "{text}"
        );
    }
    // The status of a transaction that was not done, and nothing that says so.
    let consul = answered(http("409 Conflict", "no"));
    let put = consul
        .put(Key::Config, Bytes::new(), Expect::Anything)
        .await;
    assert_eq!(put.unwrap_err().kind(), DcsErrorKind::Indeterminate);
}
