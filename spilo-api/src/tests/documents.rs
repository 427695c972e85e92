//! The documents of the cluster, and changes of the configuration.

use super::*;
use crate::view::AGE_HEADER;

#[tokio::test]
async fn the_cluster_reads_as_patronis() {
    let answer = get(&Fake::new(primary()), "/cluster").await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers.get(AGE_HEADER), None);
    let member = |name: &str, role: &str, state: &str, port: u16| {
        object(json!({
            "name": name, "role": role, "state": state,
            "api_url": format!("http://127.0.0.1:{}/patroni", port + 1000),
            "host": "127.0.0.1", "port": port, "timeline": 3,
        }))
    };
    let mut b = member("b", "replica", "streaming", 5002);
    b.extend(object(json!({
        "tags": {"clonefrom": true},
        "receive_lsn": "0/2FFFF00", "receive_lag": 256,
        "replay_lsn": "0/2FFFE00", "replay_lag": 512,
        "lsn": "0/2FFFF00", "lag": 256,
    })));
    let mut c = member("c", "replica", "stopped", 5003);
    for key in [
        "receive_lsn",
        "receive_lag",
        "replay_lsn",
        "replay_lag",
        "lsn",
        "lag",
    ] {
        c.insert(key.to_owned(), "unknown".into());
    }
    let expected = json!({
        "members": [member("a", "leader", "running", 5001), b, c],
        "scope": "demo",
    });
    assert_eq!(answer.json(), expected);
    assert!(
        answer
            .body
            .starts_with(r#"{"members": [{"name": "a", "role": "leader", "#)
    );
}

#[tokio::test]
async fn documents_are_what_the_store_has() {
    let node = Fake::new(standby());
    for (path, body) in [
        (
            "/config",
            r#"{"ttl": 10, "postgresql": {"use_slots": true}}"#,
        ),
        (
            "/history",
            r#"[[1, 100, "no recovery target specified"], [2, 200, "x", "then", "a"]]"#,
        ),
        ("/failsafe", r#"{"a": "http://127.0.0.1:6001/patroni"}"#),
        (
            "/config/x",
            r#"{"ttl": 10, "postgresql": {"use_slots": true}}"#,
        ),
    ] {
        assert_eq!(get(&node, path).await.parts(), (200, body), "{path}");
        assert_eq!(
            send(&node, "OPTIONS", path, "").await.parts(),
            (200, ""),
            "{path}"
        );
    }
}

#[tokio::test]
async fn documents_that_are_absent_are_not_invented() {
    let node = Fake::new(standby());
    node.dcs.raw.lock().unwrap().documents.clear();
    node.look();
    assert_eq!(get(&node, "/history").await.parts(), (200, "[]"));
    assert_eq!(get(&node, "/config").await.code, 502);
    assert_eq!(get(&node, "/failsafe").await.code, 502);
    assert_eq!(
        send(&node, "PATCH", "/config", r#"{"ttl": 5}"#).await.code,
        503
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_leaves_the_last_view() {
    for (mood, waited) in [(Mood::Hangs, 1), (Mood::Fails, 0)] {
        let node = Fake::new(primary());
        node.change(|status| status.cluster_at = Some(NOW.before(Duration::from_millis(1500))));
        *node.dcs.mood.lock().unwrap() = mood;
        for path in ["/cluster", "/config", "/history"] {
            let begun = tokio::time::Instant::now();
            let answer = get(&node, path).await;
            assert_eq!(answer.code, 200, "{path} {mood:?}");
            assert_eq!(answer.headers[AGE_HEADER], "1500", "{path} {mood:?}");
            assert_eq!(begun.elapsed().as_secs(), waited, "{path} {mood:?}");
        }
        node.change(|status| status.cluster = None);
        for path in ["/cluster", "/config", "/history"] {
            let answer = get(&node, path).await;
            assert_eq!(answer.code, 503, "{path} {mood:?}");
            assert!(answer.json()["error"].is_string(), "{path} {mood:?}");
        }
    }
}

#[tokio::test]
async fn many_who_look_share_one_read() {
    let node = Fake::new(primary());
    let api = node.api();
    for _ in 0..50 {
        assert_eq!(
            send_to(&api, request("GET", "/cluster", "")).await.code,
            200
        );
    }
    assert_eq!(node.dcs.reads.load(Ordering::SeqCst), 1);
    *node.now.lock().unwrap() = NOW + Duration::from_millis(101);
    send_to(&api, request("GET", "/config", "")).await;
    assert_eq!(node.dcs.reads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_patch_merges_and_wakes_the_agent() {
    let node = Fake::new(primary());
    let api = node.api();
    assert_eq!(send_to(&api, request("GET", "/config", "")).await.code, 200);
    let change =
        r#"{"ttl": 20, "postgresql": {"use_slots": null, "parameters": {"work_mem": "8MB"}}}"#;
    let answer = send_to(&api, request("PATCH", "/config", change)).await;
    let expected = r#"{"ttl": 20, "postgresql": {"parameters": {"work_mem": "8MB"}}}"#;
    assert_eq!(answer.parts(), (200, expected));
    assert_eq!(node.woken.load(Ordering::SeqCst), 1);
    // Shown at once, although the clock has not moved.
    assert_eq!(
        send_to(&api, request("GET", "/config", "")).await.parts(),
        (200, expected)
    );
}

#[tokio::test]
async fn a_patch_that_changes_nothing_writes_nothing() {
    let node = Fake::new(primary());
    let answer = send(&node, "PATCH", "/config", r#"{"ttl": 10, "pause": null}"#).await;
    assert_eq!(answer.code, 200);
    assert_eq!(node.dcs.raw.lock().unwrap().revision, Revision(20));
}

#[tokio::test]
async fn a_patch_that_lost_the_race_is_a_conflict() {
    let node = Fake::new(primary());
    *node.dcs.meddler.lock().unwrap() = Some(Key::Config);
    let answer = send(&node, "PATCH", "/config", r#"{"ttl": 20}"#).await;
    assert_eq!(answer.code, 409);
    assert_eq!(node.dcs.document(Key::Config), Some(json!({"ttl": 99})));
}

#[tokio::test]
async fn a_put_replaces_even_a_malformed_configuration() {
    let node = Fake::new(primary());
    node.dcs.write(Key::Config, "{garbage");
    assert_eq!(
        send(&node, "PATCH", "/config", r#"{"ttl": 20}"#).await.code,
        503
    );
    let answer = send(&node, "PUT", "/config", r#"{"ttl": 20}"#).await;
    assert_eq!(answer.parts(), (200, r#"{"ttl": 20}"#));
    assert_eq!(node.dcs.document(Key::Config), Some(json!({"ttl": 20})));
}

#[tokio::test]
async fn a_configuration_that_no_node_could_use_is_refused() {
    let node = Fake::new(primary());
    for (body, says) in [
        (
            r#"{"ttl": "soon"}"#,
            "ttl: wanted a number of seconds, found \"soon\"",
        ),
        (
            r#"{"postgresql": 3}"#,
            "postgresql: wanted an object, found 3",
        ),
        (
            r#"{"pause": true}"#,
            "pause: not supported by this version; no node would take the lock with it",
        ),
    ] {
        for method in ["PATCH", "PUT"] {
            assert_eq!(
                send(&node, method, "/config", body).await.parts(),
                (400, says),
                "{method}"
            );
        }
    }
    assert_eq!(node.dcs.raw.lock().unwrap().revision, Revision(20));
    // One that came another way does not stand in the way of others, nor of its own removal.
    node.dcs
        .write(Key::Config, r#"{"pause":true,"slots":{"x":null}}"#);
    assert_eq!(
        send(&node, "PATCH", "/config", r#"{"slots": null}"#)
            .await
            .code,
        200
    );
    assert_eq!(
        send(&node, "PATCH", "/config", r#"{"pause": null, "ttl": 9}"#)
            .await
            .code,
        200
    );
}

#[tokio::test]
async fn a_write_with_an_unknown_outcome_is_no_success() {
    let node = Fake::new(primary());
    *node.dcs.mood.lock().unwrap() = Mood::RefusesWrites;
    for method in ["PATCH", "PUT"] {
        let answer = send(&node, method, "/config", r#"{"ttl": 20}"#).await;
        assert_eq!(
            answer.parts(),
            (502, "fake: cannot do it: the test says so"),
            "{method}"
        );
    }
}
