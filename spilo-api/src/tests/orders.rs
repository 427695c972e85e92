//! Switchover, consent, detach, and what is not an order.

use super::*;

const SWITCH: &str = r#"{"leader": "a", "candidate": "b"}"#;

fn good(position: Option<u64>) -> PeerStatus {
    PeerStatus {
        scope: None,
        name: None,
        primary: false,
        position: position.map(Lsn),
        timeline: Some(Timeline(3)),
        no_failover: false,
        streaming: true,
        cannot_write: true,
        waits: Duration::ZERO,
        barred: false,
        off_branch: false,
    }
}

/// A primary with two members that can be promoted.
fn cluster() -> Arc<Fake> {
    let node = Fake::new(primary());
    let mut peers = node.peers.0.lock().unwrap();
    for port in [6002, 6003] {
        peers.insert(format!("http://127.0.0.1:{port}/patroni"), good(Some(1)));
    }
    drop(peers);
    node
}

/// Moves the lock in the store and lets the agent see it.
fn promote(node: &Fake, new: &str, state: &str) {
    let mut raw = node.dcs.raw.lock().unwrap();
    raw.revision.0 += 1;
    let revision = raw.revision;
    let leader = new.as_bytes().to_vec().into();
    raw.leader = Some(LeaderRecord {
        name: leader,
        epoch: Epoch(revision.0),
        lease_id: None,
    });
    let record = json!({"conn_url": "postgres://x:1/postgres", "role": "primary", "state": state});
    let entry = Entry {
        value: record.to_string().into(),
        revision,
    };
    raw.members.insert(new.to_owned(), entry);
    raw.documents.remove(&Key::Failover);
    drop(raw);
    node.look();
}

#[tokio::test]
async fn an_order_that_cannot_be_is_refused_in_the_words_of_the_contract() {
    for (body, code, says) in [
        (
            "",
            400,
            "the body is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        ("[]", 400, "the body is JSON, but not an object"),
        ("{}", 400, "the body is an empty JSON object"),
        (r#"{"leader": 5}"#, 400, "leader: wanted a text, found 5"),
        (
            r#"{"candidate": "b"}"#,
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            r#"{"leader": "a", "scheduled_at": "2100-01-01T00:00+00:00"}"#,
            400,
            "scheduled_at: a scheduled switchover is not supported by this version",
        ),
        (
            r#"{"leader": "a", "member": "a"}"#,
            400,
            "Switchover target and source are the same",
        ),
        (
            r#"{"leader": "b", "candidate": "c"}"#,
            412,
            "leader name does not match",
        ),
        (
            r#"{"leader": "a", "candidate": "z"}"#,
            412,
            "candidate does not exists",
        ),
    ] {
        let node = cluster();
        let answer = send(&node, "POST", "/switchover", body).await;
        assert_eq!(answer.parts(), (code, says), "{body}");
        assert_eq!(node.dcs.document(Key::Failover), None, "{body}");
        assert_eq!(node.woken.load(Ordering::SeqCst), 0, "{body}");
    }
}

#[tokio::test]
async fn a_paused_cluster_switches_over_to_a_named_candidate_only() {
    let node = cluster();
    node.dcs.write(Key::Config, r#"{"pause": true}"#);
    for (body, says) in [
        (
            r#"{"leader": "a"}"#,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
        (
            r#"{"leader": "a", "scheduled_at": "x"}"#,
            "Can't schedule switchover in the paused state",
        ),
    ] {
        assert_eq!(
            send(&node, "POST", "/switchover", body).await.parts(),
            (400, says)
        );
    }
}

#[tokio::test]
async fn priority_mode_takes_named_standbys_only() {
    let node = cluster();
    node.dcs.write(Key::Config, r#"{"synchronous_mode": true}"#);
    for (body, says) in [
        (SWITCH, "candidate name does not match with sync_standby"),
        (
            r#"{"leader": "a"}"#,
            "switchover is not possible: can not find sync_standby",
        ),
    ] {
        assert_eq!(
            send(&node, "POST", "/switchover", body).await.parts(),
            (412, says)
        );
    }
}

#[tokio::test]
async fn a_switchover_needs_a_member_to_switch_to() {
    let node = cluster();
    node.dcs
        .raw
        .lock()
        .unwrap()
        .members
        .retain(|name, _| name == "a");
    let answer = send(&node, "POST", "/switchover", r#"{"leader": "a"}"#).await;
    let says = "switchover is not possible: cluster does not have members except leader";
    assert_eq!(answer.parts(), (412, says));
}

#[tokio::test]
async fn a_switchover_without_a_good_candidate_says_what_is_wrong_with_each() {
    let node = cluster();
    node.peers.0.lock().unwrap().clear();
    node.peers
        .0
        .lock()
        .unwrap()
        .insert("http://127.0.0.1:6003/patroni".to_owned(), good(None));
    let answer = send(&node, "POST", "/switchover", r#"{"leader": "a"}"#).await;
    let says = "switchover is not possible: no good candidates have been found \
                (b: cannot ask http://127.0.0.1:6002/patroni: connection refused; \
                c: its server does not answer)";
    assert_eq!(answer.parts(), (412, says));
    let barred = PeerStatus {
        no_failover: true,
        ..good(Some(1))
    };
    node.peers
        .0
        .lock()
        .unwrap()
        .insert("http://127.0.0.1:6002/patroni".to_owned(), barred);
    let answer = send(&node, "POST", "/switchover", SWITCH).await;
    let says = "switchover is not possible: no good candidates have been found \
                (b: may not be promoted)";
    assert_eq!(answer.parts(), (412, says));
}

#[tokio::test]
async fn an_order_that_cannot_be_written_is_no_success() {
    let node = cluster();
    *node.dcs.mood.lock().unwrap() = Mood::RefusesWrites;
    let answer = send(&node, "POST", "/switchover", SWITCH).await;
    assert_eq!(answer.code, 503);
    assert!(
        answer
            .body
            .starts_with("failed to write failover key into DCS"),
        "{}",
        answer.body
    );
    *node.dcs.mood.lock().unwrap() = Mood::Fails;
    let answer = send(&node, "POST", "/switchover", SWITCH).await;
    assert_eq!(answer.code, 503);
    assert!(
        answer.body.starts_with("cannot read the cluster: "),
        "{}",
        answer.body
    );
}

/// Orders `body`, waits until the order is in the store, does `then`, and returns the answer.
async fn order(node: &Arc<Fake>, body: &'static str, then: impl AsyncFnOnce(&Fake)) -> Answer {
    let asking = async { send(node, "POST", "/switchover", body).await };
    let working = async {
        while node.woken.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        then(node).await;
    };
    let (answer, ()) = tokio::join!(asking, working);
    answer
}

#[tokio::test(start_paused = true)]
async fn a_switchover_answers_when_the_new_leader_serves() {
    let node = cluster();
    let begun = tokio::time::Instant::now();
    let answer = order(&node, SWITCH, async |node| {
        assert_eq!(
            node.dcs.raw.lock().unwrap().documents[&Key::Failover].value,
            r#"{"leader":"a","member":"b"}"#
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
        promote(node, "b", "starting");
        tokio::time::sleep(Duration::from_secs(1)).await;
        promote(node, "b", "running");
    })
    .await;
    assert_eq!(
        answer.parts(),
        (200, r#"Successfully switched over to "b""#)
    );
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_millis(2100),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_switchover_to_another_than_asked_says_so() {
    let answer = order(&cluster(), SWITCH, async |node| {
        promote(node, "c", "running");
    })
    .await;
    assert_eq!(
        answer.parts(),
        (200, r#"Switched over to "c" instead of "b""#)
    );
    let any = r#"{"leader": "a"}"#;
    let answer = order(&cluster(), any, async |node| promote(node, "c", "running")).await;
    assert_eq!(
        answer.parts(),
        (200, r#"Successfully switched over to "c""#)
    );
}

#[tokio::test(start_paused = true)]
async fn a_switchover_that_was_given_up_says_why() {
    let withdraw = async |node: &Fake| {
        node.look();
        tokio::time::sleep(Duration::from_secs(1)).await;
        node.dcs.write(Key::Failover, "{}");
        node.look();
    };
    let answer = order(&cluster(), SWITCH, withdraw).await;
    assert_eq!(answer.parts(), (503, "Switchover failed"));
    let node = cluster();
    node.change(|status| {
        status.decision = ("SwitchoverRefused", "b is 9 MB behind".to_owned());
    });
    let answer = order(&node, SWITCH, withdraw).await;
    assert_eq!(answer.parts(), (503, "Switchover failed: b is 9 MB behind"));
}

#[tokio::test(start_paused = true)]
async fn a_switchover_without_an_end_is_unknown() {
    // The agent's view stays older than the order, so that the absent key proves nothing.
    let begun = tokio::time::Instant::now();
    let answer = order(&cluster(), SWITCH, async |_| {}).await;
    let says = "Switchover status unknown after 20 seconds; operation may still be in progress";
    assert_eq!(answer.parts(), (503, says));
    assert_eq!(begun.elapsed().as_secs(), 20);
}

const ASK: &str = r#"{"name": "b", "conn_url": "postgres://b:1/postgres", "api_url": "http://b:2/patroni", "slots": {"c": 12}}"#;

#[tokio::test]
async fn a_consent_is_exactly_what_patroni_takes_for_one() {
    let node = Fake::new(standby());
    let answer = send(&node, "POST", "/failsafe", ASK).await;
    assert_eq!(answer.parts(), (200, "Accepted"));
    assert_eq!(answer.headers["lsn"], "77");
    let asked = ConsentRequest {
        scope: None,
        name: name("b"),
        conn_url: "postgres://b:1/postgres".to_owned(),
        api_url: "http://b:2/patroni".to_owned(),
        slots: [("c".to_owned(), Lsn(12))].into(),
    };
    assert_eq!(*node.consents.lock().unwrap(), [asked]);
    *node.consent.lock().unwrap() = Some(ConsentAnswer::Accepted(None));
    let answer = send(&node, "POST", "/failsafe", ASK).await;
    assert_eq!(
        (answer.parts(), answer.headers.get("lsn")),
        ((200, "Accepted"), None)
    );
}

#[tokio::test]
async fn a_refused_consent_has_its_own_code() {
    for (consent, code) in [
        (ConsentAnswer::RunningAsLeader, 500),
        (ConsentAnswer::Off, 502),
        (ConsentAnswer::Busy, 503),
        (ConsentAnswer::Stranger, 412),
    ] {
        let node = Fake::new(standby());
        *node.consent.lock().unwrap() = Some(consent);
        let answer = send(&node, "POST", "/failsafe", ASK).await;
        assert_eq!(answer.code.as_u16(), code, "{consent:?}");
        assert!(!answer.body.contains("Accepted"), "{consent:?}");
        if consent == ConsentAnswer::RunningAsLeader {
            assert_eq!(answer.body, "Running as a leader");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_consents_to_nothing() {
    let node = Fake::new(standby());
    *node.consent.lock().unwrap() = None;
    let answer = send(&node, "POST", "/failsafe", ASK).await;
    assert_eq!(answer.parts(), (503, "the agent did not answer in time"));
}

#[tokio::test]
async fn a_malformed_question_for_consent_is_named_and_not_asked() {
    let node = Fake::new(standby());
    for (body, says) in [
        (r#"{"conn_url": "x", "api_url": "y"}"#, "name: is missing"),
        (
            r#"{"name": "a/b", "conn_url": "x", "api_url": "y"}"#,
            "name: member name \"a/b\": ",
        ),
        (r#"{"name": "b", "api_url": "y"}"#, "conn_url: is missing"),
        (r#"{"name": "b", "conn_url": "x"}"#, "api_url: is missing"),
        (
            r#"{"name": "b", "conn_url": [], "api_url": "y"}"#,
            "conn_url: wanted a text, found []",
        ),
        (
            r#"{"name": "b", "conn_url": "x", "api_url": "y", "slots": []}"#,
            "slots: wanted an object, found []",
        ),
        (
            r#"{"name": "b", "conn_url": "x", "api_url": "y", "slots": {"s": -1}}"#,
            "slots.s: wanted a position as a number, found -1",
        ),
    ] {
        let answer = send(&node, "POST", "/failsafe", body).await;
        assert_eq!(answer.code, 400, "{body}");
        assert!(answer.body.starts_with(says), "{body}: {}", answer.body);
    }
    assert_eq!(*node.consents.lock().unwrap(), []);
}

#[tokio::test]
async fn detach_is_passed_on() {
    let node = Fake::new(primary());
    assert_eq!(
        send(&node, "POST", "/detach", "").await.parts(),
        (202, "detach requested")
    );
    assert_eq!(node.detached.load(Ordering::SeqCst), 1);
    for body in ["null", "{\"a\": 1}", "\u{0}"] {
        let answer = send(&node, "POST", "/detach", body).await;
        assert_eq!(answer.parts(), (400, "the request takes no body"));
    }
    assert_eq!(node.detached.load(Ordering::SeqCst), 1);
    assert_eq!(send(&node, "POST", "/detach", "{}").await.code, 202);
    *node.busy.lock().unwrap() = true;
    let refused = send(&node, "POST", "/detach", "").await;
    assert_eq!(refused.code, 503);
    assert!(refused.body.contains("ask again"), "{}", refused.body);
}

#[tokio::test]
async fn an_unknown_method_says_what_patronictl_looks_for() {
    let node = Fake::new(primary());
    for (method, path) in [
        ("POST", "/restart"),
        ("POST", "/"),
        ("POST", "/failover"),
        ("DELETE", "/switchover"),
        ("PUT", "/switchover"),
        ("PATCH", "/primary"),
        ("BREW", "/coffee"),
        ("TRACE", "/primary"),
        ("CONNECT", "host:80"),
    ] {
        let answer = send(&node, method, path, "{}").await;
        assert_eq!(answer.code, 501, "{method} {path}");
        assert!(
            answer
                .body
                .contains("Server does not support this operation"),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn garbage_in_any_body_is_answered_and_changes_nothing() {
    let node = cluster();
    let deep = "[".repeat(60_000);
    let big = format!("{{\"x\": \"{}\"}}", "y".repeat(70_000));
    for (method, path) in [
        ("PATCH", "/config"),
        ("PUT", "/config"),
        ("POST", "/switchover"),
        ("POST", "/failsafe"),
    ] {
        for (body, code) in [
            ("", 400),
            ("null", 400),
            ("7", 400),
            ("{", 400),
            ("{\"a\": 1e999}", 400),
            ("\u{0}\u{1}", 400),
            (deep.as_str(), 400),
            (big.as_str(), 413),
        ] {
            let answer = send(&node, method, path, body).await;
            assert_eq!(answer.code.as_u16(), code, "{method} {path} {:.20}", body);
            assert!(!answer.body.is_empty(), "{method} {path} {:.20}", body);
        }
        let mut unsized_request = request(method, path, "");
        unsized_request.headers_mut().remove("content-length");
        assert_eq!(
            send_to(&node.api(), unsized_request).await.code,
            411,
            "{method} {path}"
        );
    }
    assert_eq!(node.dcs.raw.lock().unwrap().revision, Revision(20));
    assert_eq!(node.woken.load(Ordering::SeqCst), 0);
}
