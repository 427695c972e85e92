//! Which path answers 200 when, and the status document.

use super::*;

/// A standby, an unusable standby, a primary in each of its bad moments.
fn cases() -> Vec<(&'static str, Status)> {
    let mut crashed = primary();
    set_server(&mut crashed, Server::Down, NodeState::Crashed);
    let mut promoting = standby();
    promoting.leadership = primary().leadership;
    promoting.holds_lock = true;
    let mut expired = primary();
    expired.leadership.as_mut().unwrap().until = NOW;
    let mut without_lock = primary();
    without_lock.leadership = None;
    without_lock.holds_lock = false;
    let mut hidden = standby();
    set_tags(&mut hidden, json!({"noloadbalance": true}));
    let mut stale = standby();
    stale.postgres_at = Some(NOW.before(Duration::from_secs(16)));
    let mut stale_primary = primary();
    stale_primary.postgres_at = stale.postgres_at;
    let mut starting = standby();
    let busy = Server::Busy {
        saying: "the database system is starting up".to_owned(),
        guarded: true,
    };
    set_server(&mut starting, busy, NodeState::Starting);
    vec![
        ("primary", primary()),
        ("standby", standby()),
        ("crashed", crashed),
        ("promoting", promoting),
        ("expired", expired),
        ("without lock", without_lock),
        ("hidden", hidden),
        ("stale", stale),
        ("stale primary", stale_primary),
        ("starting", starting),
    ]
}

/// For each path, the cases above that pass; every other must fail.
const PASSES: &[(&str, &[&str])] = &[
    ("/", &["primary"]),
    ("/primary", &["primary"]),
    ("/master", &["primary"]),
    ("/read-write", &["primary"]),
    ("/leader", &["primary"]),
    ("/standby_leader", &[]),
    ("/standby-leader", &[]),
    ("/replica", &["standby", "promoting"]),
    ("/replica?lag=1000", &["standby", "promoting"]),
    ("/replica?lag=999", &[]),
    ("/replica?lag=1kB", &["standby", "promoting"]),
    ("/replica?lag=0x3e7", &[]),
    ("/replica?lag=nonsense", &["standby", "promoting"]),
    ("/replica?lag=", &["standby", "promoting"]),
    ("/replica?lag=-1", &[]),
    (
        "/replica?replication_state=streaming",
        &["standby", "promoting"],
    ),
    ("/replica?replication_state=in%20archive%20recovery", &[]),
    ("/replica?tag_zone=a", &[]),
    ("/read-only", &["primary", "standby", "promoting"]),
    ("/read-only?lag=10", &["primary"]),
    ("/async", &["standby", "promoting"]),
    ("/sync", &[]),
    ("/quorum", &[]),
    ("/read-only-sync", &["primary"]),
    ("/read-only-quorum", &["primary"]),
    (
        "/health",
        &[
            "primary",
            "standby",
            "promoting",
            "expired",
            "without lock",
            "hidden",
        ],
    ),
    ("/nonsense", &[]),
    ("/my/primary/check", &["primary"]),
];

#[tokio::test]
async fn each_health_path_answers_by_the_table() {
    for (case, status) in cases() {
        let node = Fake::new(status);
        for (path, passing) in PASSES {
            let code = if passing.contains(&case) { 200 } else { 503 };
            for method in ["GET", "HEAD", "OPTIONS"] {
                let answer = send(&node, method, path, "").await;
                assert_eq!(answer.code.as_u16(), code, "{method} {path} on {case}");
                if method == "GET" {
                    assert_eq!(answer.json()["patroni"]["name"], "a", "{path} on {case}");
                } else {
                    assert_eq!(answer.body, "", "{method} {path} on {case}");
                }
            }
        }
    }
}

#[tokio::test]
async fn f9_primary_is_never_200_after_the_permission_ended() {
    let node = Fake::new(primary());
    let until = node.status().leadership.unwrap().until;
    for (at, code) in [
        (until.0 - 1, 200),
        (until.0, 503),
        (until.0 + 1, 503),
        (u64::MAX, 503),
    ] {
        *node.now.lock().unwrap() = NodeTime(at);
        for path in [
            "/",
            "/primary",
            "/leader",
            "/master",
            "/read-write",
            "/read-only",
        ] {
            assert_eq!(get(&node, path).await.code.as_u16(), code, "{path} at {at}");
        }
        assert_eq!(
            get(&node, "/patroni").await.json()["spilo"]["write"],
            code == 200,
            "at {at}"
        );
        // Readiness follows it: a primary without permission is no standby either.
        assert_eq!(
            get(&node, "/readiness").await.code.as_u16(),
            code,
            "at {at}"
        );
    }
}

#[tokio::test]
async fn consent_makes_a_primary_as_a_lease_does() {
    let mut status = primary();
    status.leadership.as_mut().unwrap().by = PermittedBy::Consent;
    status.holds_lock = false;
    status.failsafe_active = true;
    let node = Fake::new(status);
    assert_eq!(get(&node, "/primary").await.code, 200);
    let document = get(&node, "/patroni").await.json();
    assert_eq!(document["failsafe_mode_is_active"], true);
    assert_eq!(document["spilo"]["lease"]["by"], "consent");
}

#[tokio::test]
async fn tags_filter_replicas_and_never_the_primary() {
    let mut tagged = standby();
    set_tags(
        &mut tagged,
        json!({"zone": "a b", "big": true, "n": 5, "none": null}),
    );
    let node = Fake::new(tagged);
    for (query, code) in [
        ("tag_zone=a%20b", 200),
        ("tag_zone=a+b&tag_big=true&tag_n=5", 200),
        ("tag_zone=b", 503),
        ("tag_big=True", 503),
        ("tag_none=null", 503),
        ("tag_other=x", 503),
    ] {
        let answer = get(&node, &format!("/replica?{query}")).await;
        assert_eq!(answer.code.as_u16(), code, "{query}");
    }
    let node = Fake::new(primary());
    assert_eq!(get(&node, "/primary?tag_zone=b").await.code, 200);
    assert_eq!(get(&node, "/read-only?tag_zone=b").await.code, 503);
}

#[tokio::test]
async fn synchronous_standbys_are_told_apart() {
    let node = Fake::new(standby());
    node.dcs.write(
        Key::Sync,
        r#"{"leader":"b","sync_standby":"A,c","quorum":0}"#,
    );
    node.look();
    for (path, code) in [
        ("/sync", 200),
        ("/synchronous", 200),
        ("/async", 503),
        ("/quorum", 503),
    ] {
        assert_eq!(get(&node, path).await.code.as_u16(), code, "{path}");
    }
    assert_eq!(get(&node, "/patroni").await.json()["sync_standby"], true);
    node.change(|status| {
        let config = object(json!({"synchronous_mode": "quorum"}));
        status.config = Arc::new(DynamicConfig::parse(config).unwrap());
    });
    for (path, code) in [("/sync", 503), ("/quorum", 200), ("/read-only-quorum", 200)] {
        assert_eq!(get(&node, path).await.code.as_u16(), code, "{path}");
    }
    // Without a view of the store nobody knows who is synchronous.
    node.change(|status| status.cluster_at = Some(NOW.before(Duration::from_secs(60))));
    for path in ["/sync", "/async", "/quorum", "/read-only-quorum"] {
        assert_eq!(get(&node, path).await.code, 503, "{path}");
    }
}

#[tokio::test]
async fn liveness_follows_the_steps_of_the_machine() {
    for (status, allowed_secs) in [(primary(), 10), (standby(), 20)] {
        let node = Fake::new(status);
        for (age_ms, code) in [
            (0, 200),
            (allowed_secs * 1000 - 1, 200),
            (allowed_secs * 1000, 503),
        ] {
            *node.now.lock().unwrap() = NOW + Duration::from_millis(age_ms);
            for method in ["GET", "HEAD", "OPTIONS"] {
                let answer = send(&node, method, "/liveness", "").await;
                assert_eq!(answer.parts(), (code, ""), "{method} after {age_ms} ms");
            }
        }
    }
}

#[tokio::test]
async fn readiness_wants_a_primary_or_a_close_streaming_standby() {
    for (case, status) in cases() {
        let ready = ["primary", "standby", "promoting", "hidden"].contains(&case);
        let node = Fake::new(status);
        for method in ["GET", "HEAD", "OPTIONS"] {
            let answer = send(&node, method, "/readiness", "").await;
            assert_eq!(answer.code == 200, ready, "{method} {case}");
        }
    }
    let node = Fake::new(standby());
    for (query, code) in [
        ("lag=999", 503),
        ("lag=999&mode=write", 200),
        ("lag=1000&mode=apply", 200),
        ("lag=?", 200),
    ] {
        assert_eq!(
            get(&node, &format!("/readiness?{query}"))
                .await
                .code
                .as_u16(),
            code,
            "{query}"
        );
    }
    // Further behind than `maximum_lag_on_failover`, by what the leader published.
    node.dcs.write(Key::Status, r#"{"optime": 50335649}"#);
    node.look();
    assert_eq!(get(&node, "/readiness").await.code, 503);
}

#[tokio::test]
async fn a_standby_that_does_not_stream_is_not_ready() {
    let mut status = standby();
    if let Some(Server::Running(running)) = status.postgres.as_mut().map(|p| &mut p.server)
        && let Role::Standby { streaming, .. } = &mut running.role
    {
        *streaming = false;
    }
    let node = Fake::new(status);
    assert_eq!(get(&node, "/readiness").await.code, 503);
    assert_eq!(get(&node, "/replica").await.code, 200);
    assert_eq!(
        get(&node, "/replica?replication_state=streaming")
            .await
            .code,
        503
    );
}

#[tokio::test]
async fn the_status_of_a_primary_reads_as_patronis() {
    let answer = get(&Fake::new(primary()), "/patroni").await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    let expected = concat!(
        r#"{"state": "running", "postmaster_start_time": "2000-01-01 00:00:00+00", "#,
        r#""role": "primary", "server_version": 150018, "xlog": {"location": 50331648}, "#,
        r#""timeline": 3, "dcs_last_seen": 1700000000, "#,
        r#""database_system_identifier": "7710822623212245678", "#,
        r#""patroni": {"version": "4.1.4", "scope": "demo", "name": "a"}, "#,
        r#""spilo": {"version": ""#,
        env!("CARGO_PKG_VERSION"),
        r#"", "rule": "KeepLock", "reason": "all is well", "write": true, "#,
        r#""cannot_write": false, "waits_ms": 0, "barred": false, "off_branch": false, "#,
        r#""unsupported": [], "adjusted": [], "lease": {"epoch": 7, "until_ms": 1005000, "left_ms": 5000, "by": "lease"}, "#,
        r#""fence": "guard", "weaknesses": [], "worst_fence_ms": 12, "stepped_ms_ago": 0, "#,
        r#""postgres_seen_ms_ago": 0, "dcs_seen_ms_ago": 0}}"#,
    );
    assert_eq!(answer.body, expected);
}

#[tokio::test]
async fn the_status_of_a_standby_reads_as_patronis() {
    let document = get(&Fake::new(standby()), "/patroni").await.json();
    assert_eq!(document["role"], "replica");
    assert_eq!(document["replication_state"], "streaming");
    assert_eq!(
        document["xlog"],
        json!({"received_location": 0x300_0000, "replayed_location": 0x300_0000 - 1000,
               "replayed_timestamp": null, "paused": false})
    );
    assert_eq!(document["spilo"]["cannot_write"], true);
    assert_eq!(document["spilo"]["lease"], Value::Null);
}

#[tokio::test]
async fn a_node_whose_server_does_not_answer_gives_no_position() {
    for (server, state, role) in [
        (Server::Down, NodeState::Stopped, "demoted"),
        (
            Server::Hung { guarded: true },
            NodeState::Unknown,
            "demoted",
        ),
    ] {
        let mut status = primary();
        status.leadership = None;
        status.holds_lock = false;
        set_server(&mut status, server, state);
        let document = get(&Fake::new(status), "/patroni").await.json();
        assert_eq!(document["state"], state.as_str());
        assert_eq!(document["role"], role);
        for key in [
            "xlog",
            "timeline",
            "server_version",
            "postmaster_start_time",
        ] {
            assert_eq!(document.get(key), None, "{key}");
        }
    }
}

#[tokio::test]
async fn only_a_node_that_cannot_begin_to_write_says_so() {
    let down = |change: fn(&mut Status)| {
        let mut status = primary();
        set_server(&mut status, Server::Down, NodeState::Crashed);
        change(&mut status);
        status
    };
    for (case, status, expected) in [
        ("down, and has its permission still", down(|_| {}), false),
        (
            "down, and may get its permission back",
            down(|s| s.leadership = None),
            false,
        ),
        (
            "down without the lock",
            down(|s| {
                s.leadership = None;
                s.holds_lock = false;
            }),
            true,
        ),
        (
            "seen down long ago",
            down(|s| {
                s.leadership = None;
                s.holds_lock = false;
                s.postgres_at = Some(NodeTime(0));
            }),
            false,
        ),
        ("primary", primary(), false),
        ("standby", standby(), true),
    ] {
        let document = get(&Fake::new(status), "/patroni").await.json();
        assert_eq!(document["spilo"]["cannot_write"], expected, "{case}");
    }
}

#[tokio::test]
async fn the_store_out_of_sight_is_said() {
    let node = Fake::new(primary());
    node.change(|status| status.cluster_at = Some(NOW.before(Duration::from_secs(11))));
    let document = get(&node, "/patroni").await.json();
    assert_eq!(document["cluster_unlocked"], true);
    assert_eq!(document["dcs_last_seen"], 1_700_000_000 - 11);
    assert_eq!(document["spilo"]["dcs_seen_ms_ago"], 11_000);
    node.change(|status| status.cluster_at = None);
    assert_eq!(get(&node, "/patroni").await.json()["dcs_last_seen"], 0);
}

#[tokio::test]
async fn the_metrics_are_patronis_and_say_how_far_the_archive_is() {
    let mut status = primary();
    if let Some(postgres) = &mut status.postgres {
        postgres.archive = Some(spilo_core::pg::ArchiveStatus {
            waiting: 7,
            first_waiting: Some("000000010000000000000002".to_owned()),
        });
    }
    let node = Fake::new(status);
    let text = get(&node, "/metrics").await.body;
    for line in [
        "# TYPE patroni_version gauge",
        "patroni_version{scope=\"demo\",name=\"a\"} 040104",
        "patroni_postgres_running{scope=\"demo\",name=\"a\"} 1",
        "patroni_primary{scope=\"demo\",name=\"a\"} 1",
        "patroni_replica{scope=\"demo\",name=\"a\"} 0",
        "patroni_postgres_state{scope=\"demo\",name=\"a\"} 5",
        "spilo_writable{scope=\"demo\",name=\"a\"} 1",
        "spilo_archive_waiting{scope=\"demo\",name=\"a\"} 7",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} in:\n{text}");
    }
    assert_eq!(
        get(&node, "/patroni").await.json()["archive"],
        json!({"waiting": 7, "first_waiting": "000000010000000000000002"})
    );
    let quiet = Fake::new(standby());
    let text = get(&quiet, "/metrics").await.body;
    assert!(!text.contains("spilo_archive_waiting"), "{text}");
}

#[tokio::test]
async fn walsenders_and_pending_restarts_are_listed() {
    let mut status = primary();
    if let Some(Server::Running(running)) = status.postgres.as_mut().map(|p| &mut p.server) {
        running.walsenders = vec![spilo_core::pg::Walsender {
            user: "replicator".to_owned(),
            application: "b".to_owned(),
            client: Some("127.0.0.1".to_owned()),
            state: "streaming".to_owned(),
            sync_state: "async".to_owned(),
            sync_priority: 0,
            flushed: None,
        }];
        running.pending_restart = vec![(
            "max_connections".to_owned(),
            "100".to_owned(),
            "200".to_owned(),
        )];
    }
    let document = get(&Fake::new(status), "/patroni").await.json();
    assert_eq!(
        document["replication"],
        json!([{"usename": "replicator", "application_name": "b", "client_addr": "127.0.0.1",
                "state": "streaming", "sync_state": "async", "sync_priority": 0}])
    );
    assert_eq!(document["pending_restart"], true);
    assert_eq!(
        document["pending_restart_reason"],
        json!({"max_connections": {"old_value": "100", "new_value": "200"}})
    );
}
