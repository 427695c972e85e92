//! The client, against the server and against servers that mean ill.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::sockets::start;
use super::*;
use crate::serve::Limits;
use crate::{Credentials, HttpPeers, PeerOptions};

fn peers(timeout_ms: u64) -> HttpPeers {
    let timeout = Duration::from_millis(timeout_ms);
    HttpPeers::new(PeerOptions {
        timeout,
        ..PeerOptions::default()
    })
    .unwrap()
}

/// A server that sends `bytes` to whoever asks, and what it was sent.
async fn canned(bytes: Vec<u8>) -> (String, Arc<Mutex<String>>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(String::new()));
    let heard = asked.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            heard
                .lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&request[..read]));
            let _cut_off = stream.write_all(&bytes).await;
        }
    });
    (url, asked, tasks)
}

fn http(body: &str) -> Vec<u8> {
    format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").into_bytes()
}

async fn ask(body: &Value) -> PeerStatus {
    let (url, _, _tasks) = canned(http(&body.to_string())).await;
    peers(5000).ask(&url).await.unwrap()
}

fn credentials(password: &str) -> Credentials {
    Credentials {
        username: "u".to_owned(),
        password: password.to_owned(),
    }
}

fn consent() -> ConsentRequest {
    ConsentRequest {
        scope: Some("demo".to_owned()),
        name: name("a"),
        conn_url: "postgres://a:1/postgres".to_owned(),
        api_url: "http://a:2/patroni".to_owned(),
        slots: [("b".to_owned(), Lsn(5))].into(),
    }
}

#[tokio::test]
async fn spilo_nodes_understand_each_other() {
    let mut dead = primary();
    dead.leadership = None;
    dead.holds_lock = false;
    set_server(&mut dead, Server::Down, NodeState::Crashed);
    let base = PeerStatus {
        scope: Some("demo".to_owned()),
        name: Some(name("a")),
        primary: false,
        position: Some(Lsn(0x300_0000)),
        timeline: Some(Timeline(3)),
        no_failover: false,
        streaming: false,
        cannot_write: false,
        waits: Duration::ZERO,
        barred: false,
        off_branch: false,
    };
    for (case, status, expected) in [
        (
            "primary",
            primary(),
            PeerStatus {
                primary: true,
                ..base.clone()
            },
        ),
        (
            "standby",
            standby(),
            PeerStatus {
                streaming: true,
                cannot_write: true,
                ..base.clone()
            },
        ),
        (
            "dead",
            dead,
            PeerStatus {
                position: None,
                timeline: None,
                cannot_write: true,
                ..base
            },
        ),
    ] {
        let server = start(&Fake::new(status), Limits::default(), None);
        let url = format!("http://{}/patroni", server.address);
        assert_eq!(peers(5000).ask(&url).await.unwrap(), expected, "{case}");
    }
}

#[tokio::test]
async fn consent_travels_both_ways() {
    let node = Fake::new(standby());
    let server = start(&node, Limits::default(), None);
    let url = format!("http://{}/patroni", server.address);
    assert_eq!(
        peers(5000).ask_consent(&url, &consent()).await.unwrap(),
        Some(Lsn(77))
    );
    assert_eq!(*node.consents.lock().unwrap(), [consent()]);
    for answer in [
        ConsentAnswer::RunningAsLeader,
        ConsentAnswer::Off,
        ConsentAnswer::Busy,
        ConsentAnswer::Stranger,
    ] {
        *node.consent.lock().unwrap() = Some(answer);
        assert!(
            peers(5000).ask_consent(&url, &consent()).await.is_err(),
            "{answer:?}"
        );
    }
    *node.consent.lock().unwrap() = Some(ConsentAnswer::Accepted(None));
    assert_eq!(
        peers(5000).ask_consent(&url, &consent()).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn only_accepted_is_a_consent() {
    for (head, body) in [
        ("HTTP/1.0 200 OK", "accepted"),
        ("HTTP/1.0 200 OK", "Accepted\n"),
        ("HTTP/1.0 200 OK", ""),
        ("HTTP/1.0 202 Accepted", "Accepted"),
        ("HTTP/1.0 500 Error", "Accepted"),
        ("HTTP/1.0 302 Found\r\nLocation: /", "Accepted"),
    ] {
        let (url, _, _tasks) = canned(format!("{head}\r\n\r\n{body}").into_bytes()).await;
        let answer = peers(5000).ask_consent(&url, &consent()).await;
        assert!(answer.is_err(), "{head} {body:?}: {answer:?}");
    }
    let (url, _, _tasks) = canned(b"HTTP/1.0 200 OK\r\nlsn: 12x\r\n\r\nAccepted".to_vec()).await;
    assert_eq!(
        peers(5000).ask_consent(&url, &consent()).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn a_question_is_one_request_with_credentials() {
    let (url, asked, _tasks) = canned(b"HTTP/1.0 200 OK\r\n\r\nAccepted".to_vec()).await;
    let options = PeerOptions {
        authentication: Some(credentials("p")),
        ..PeerOptions::default()
    };
    HttpPeers::new(options)
        .unwrap()
        .ask_consent(&url, &consent())
        .await
        .unwrap();
    let asked = asked.lock().unwrap().to_lowercase();
    assert!(asked.starts_with("post /failsafe http/1.1\r\n"), "{asked}");
    assert!(
        asked.contains("\r\nauthorization: basic dtpw\r\n"),
        "{asked}"
    );
    let host = url
        .trim_start_matches("http://")
        .trim_end_matches("/patroni");
    assert!(asked.contains(&format!("\r\nhost: {host}\r\n")), "{asked}");
    assert!(
        asked.ends_with(
            r#"{"scope":"demo","name":"a","conn_url":"postgres://a:1/postgres","api_url":"http://a:2/patroni","slots":{"b":5}}"#
        ),
        "{asked}"
    );
}

#[tokio::test]
async fn members_that_rotate_their_password_consent_to_each_other() {
    let open_to = |password: &str| {
        let mut options = ApiOptions::default();
        options.access.authentication = Some(credentials(password));
        options
    };
    let with = |password: &str| PeerOptions {
        authentication: Some(credentials(password)),
        ..PeerOptions::default()
    };
    let members: Vec<_> = (0..2)
        .map(|_| {
            let api = Api::new(Fake::new(standby()), open_to("old")).unwrap();
            let server = sockets::start_api(&api, Limits::default(), None);
            let url = format!("http://{}/patroni", server.address);
            (api, server, url, HttpPeers::new(with("old")).unwrap())
        })
        .collect();
    let ask = async || {
        let mut answers = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            let (peers, url): (&HttpPeers, &String) = (&members[from].3, &members[to].2);
            answers.push(peers.ask_consent(url, &consent()).await.is_ok());
        }
        answers
    };
    assert_eq!(ask().await, [true, true]);
    for (api, ..) in &members {
        api.reconfigure(open_to("new")).unwrap();
    }
    assert_eq!(ask().await, [false, false]);
    for (.., peers) in &members {
        peers.reconfigure(with("new")).unwrap();
    }
    assert_eq!(ask().await, [true, true]);
    // One that cannot be sent changes nothing.
    let ca = Some("/nonexistent".into());
    let broken = PeerOptions { ca, ..with("x") };
    assert!(members[0].3.reconfigure(broken).is_err());
    assert_eq!(ask().await, [true, true]);
}

#[tokio::test]
async fn patronis_answers_are_understood() {
    let primary = ask(&json!({
        "state": "running", "role": "master", "xlog": {"location": 100}, "timeline": 2,
        "patroni": {"version": "3.0.0", "scope": "x", "name": "pg-0"},
    }))
    .await;
    assert!(primary.primary && !primary.cannot_write);
    assert_eq!(
        (primary.position, primary.timeline),
        (Some(Lsn(100)), Some(Timeline(2)))
    );
    assert_eq!(primary.name, Some(name("pg-0")));
    assert_eq!(primary.scope.as_deref(), Some("x"));
    let replica = ask(&json!({
        "state": "running", "role": "replica", "timeline": null, "replication_state": "streaming",
        "wal": {"received_location": 90, "replayed_location": 95, "location": 0},
    }))
    .await;
    assert!(!replica.primary && replica.streaming);
    assert_eq!((replica.position, replica.timeline), (Some(Lsn(95)), None));
}

#[tokio::test]
async fn a_role_without_a_position_is_a_primary_unless_its_server_is_down() {
    for (role, state, expected) in [
        ("primary", "running", true),
        ("primary", "unknown", true),
        ("promoted", "starting", true),
        ("primary", "stopped", false),
        ("primary", "crashed", false),
        ("replica", "running", false),
        ("demoted", "stopping", false),
    ] {
        let status = ask(&json!({"role": role, "state": state})).await;
        assert_eq!(
            (status.primary, status.position),
            (expected, None),
            "{role} {state}"
        );
    }
    // A node that gives a write position writes, whatever else it says.
    for other in [json!({}), json!({"cannot_write": true})] {
        let status =
            ask(&json!({"role": "replica", "xlog": {"location": 5}, "spilo": other})).await;
        assert!(status.primary && !status.cannot_write, "{other}");
    }
}

#[tokio::test]
async fn what_bars_a_member_from_promotion_is_seen() {
    for (fields, barred) in [
        (json!({}), false),
        (json!({"tags": {}}), false),
        (json!({"tags": {"nofailover": false}}), false),
        (json!({"tags": {"nofailover": true}}), true),
        (json!({"tags": {"nofailover": "on"}}), true),
        (json!({"tags": {"nofailover": "nonsense"}}), true),
        (json!({"tags": {"failover_priority": 0}}), true),
        (json!({"tags": {"failover_priority": -3}}), true),
        (json!({"tags": {"failover_priority": "0"}}), true),
        (json!({"tags": {"failover_priority": 2}}), false),
        (json!({"tags": {"failover_priority": "2"}}), false),
        (
            json!({"tags": {"nofailover": false, "failover_priority": 0}}),
            false,
        ),
        (json!({"watchdog_failed": true}), true),
        (json!({"watchdog_failed": false}), false),
    ] {
        let mut document = object(json!({"role": "replica", "xlog": {"received_location": 1}}));
        document.extend(object(fields.clone()));
        assert_eq!(
            ask(&Value::Object(document)).await.no_failover,
            barred,
            "{fields}"
        );
    }
}

#[tokio::test]
async fn a_hostile_answer_is_an_error() {
    let huge = format!("{{\"role\": \"{}\"}}", "x".repeat(1 << 20));
    let many_headers = "x: y\r\n".repeat(10_000);
    for (case, bytes) in [
        ("nothing", Vec::new()),
        ("garbage", b"\x00\x01\x02\x03\r\n\r\n".to_vec()),
        ("no http", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("huge", http(&huge)),
        (
            "huge head",
            format!("HTTP/1.1 200 OK\r\n{many_headers}\r\n{{}}").into_bytes(),
        ),
        ("not json", http("<html>")),
        ("no object", http("[1]")),
        ("no status", http(r#"{"hello": "world"}"#)),
        ("role of a wrong type", http(r#"{"role": 5}"#)),
        ("deep", http(&"[".repeat(100_000))),
        (
            "cut off",
            b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"role\": \"primary\"}".to_vec(),
        ),
        (
            "too long for its length",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{\"role\": \"primary\"}".to_vec(),
        ),
        (
            "two lengths",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_vec(),
        ),
        (
            "bad chunks",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}".to_vec(),
        ),
        (
            "redirect",
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                .to_vec(),
        ),
        (
            "refused",
            b"HTTP/1.1 503 No\r\nContent-Length: 19\r\n\r\n{\"role\": \"primary\"}".to_vec(),
        ),
    ] {
        let (url, _, _tasks) = canned(bytes).await;
        let answer = peers(5000).ask(&url).await;
        let error = answer
            .map(|status| panic!("{case}: {status:?}"))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("cannot ask {url}: ")),
            "{case}: {error}"
        );
        assert!(
            !error.to_string().contains("no answer within"),
            "{case}: {error}"
        );
    }
}

#[tokio::test]
async fn odd_values_in_a_status_are_left_out() {
    let status = ask(&json!({
        "role": "replica", "timeline": -5, "tags": "x", "patroni": [],
        "spilo": {"cannot_write": 1, "waits_ms": "x"},
        "xlog": {"received_location": -1, "replayed_location": "zz", "location": {}},
    }))
    .await;
    let expected = PeerStatus {
        scope: None,
        name: None,
        primary: false,
        position: Some(Lsn(0)),
        timeline: None,
        no_failover: false,
        streaming: false,
        cannot_write: false,
        waits: Duration::ZERO,
        barred: false,
        off_branch: false,
    };
    assert_eq!(status, expected);
}

#[tokio::test]
async fn a_slow_answer_is_cut_off_by_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // One byte at a time: each is progress, and none is an answer.
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let begun = std::time::Instant::now();
    let error = peers(200).ask(&url).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot ask {url}: no answer within 200ms")
    );
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn an_address_that_is_none_is_named() {
    for url in [
        "",
        "patroni",
        "/patroni",
        "ftp://h/x",
        "http://",
        "http://u:p@h/patroni",
        "http://h:99999/",
    ] {
        let error = peers(200).ask(url).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("cannot ask {url}: ")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn https_without_the_means_for_it_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/patroni", listener.local_addr().unwrap());
    let error = peers(1000).ask(&url).await.unwrap_err();
    assert!(error.to_string().contains("https"), "{error}");
}
