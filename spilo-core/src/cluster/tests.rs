//! Garbage in the store: it is listed, tolerated as the contract says, and stops nobody.

use bytes::Bytes;

use super::{Cluster, Initialize, is_news};
use crate::dcs::{Entry, Key, LeaderRecord, RawSnapshot};
use crate::ids::{Epoch, Revision, SystemId};
use crate::wal::Lsn;

/// A snapshot as a cluster of Patroni nodes writes it.
fn real() -> RawSnapshot {
    let mut raw = RawSnapshot {
        revision: Revision(100),
        leader: Some(LeaderRecord {
            name: Bytes::from_static(b"pg-0"),
            epoch: Epoch(50),
            lease_id: Some(7),
        }),
        ..RawSnapshot::default()
    };
    for (key, text) in [
        (Key::Initialize, "7710822623212245678"),
        (
            Key::Config,
            r#"{"ttl":20,"loop_wait":5,"postgresql":{"use_slots":true}}"#,
        ),
        (
            Key::Status,
            r#"{"optime":67416800,"slots":{"pg_1":5},"retain_slots":["pg_0"]}"#,
        ),
        (Key::Failover, r#"{"leader":"pg-0","member":"pg-1"}"#),
        (
            Key::Sync,
            r#"{"leader":"pg-0","quorum":1,"sync_standby":"pg-1, pg-2"}"#,
        ),
        (
            Key::History,
            r#"[[1,67417248,"no recovery target specified","2026","pg-1"]]"#,
        ),
        (Key::Failsafe, r#"{"pg-0":"http://a","pg-1":"http://b"}"#),
        (
            Key::Release,
            r#"{"epoch":49,"name":"pg-1","timeline":1,"lsn":5}"#,
        ),
    ] {
        raw.documents.insert(key, entry(text.as_bytes().to_vec()));
    }
    let member = r#"{"conn_url":"postgres://1.2.3.4:5432/postgres","api_url":"http://a",
        "state":"running","role":"primary","xlog_location":67393056,"timeline":1}"#;
    raw.members
        .insert("pg-0".to_owned(), entry(member.as_bytes().to_vec()));
    raw
}

fn entry(value: impl Into<Bytes>) -> Entry {
    Entry {
        value: value.into(),
        revision: Revision(90),
    }
}

fn with(key: Key, value: &str) -> Cluster {
    let mut raw = real();
    raw.documents.insert(key, entry(value.as_bytes().to_vec()));
    Cluster::read(&raw, Some(&Cluster::read(&real(), None)))
}

fn garbage() -> Vec<Vec<u8>> {
    let deep = "[".repeat(10_000);
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(2_000_000));
    vec![
        b"".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"{".to_vec(),
        b"[1,2".to_vec(),
        b"\"text\"".to_vec(),
        b"true".to_vec(),
        b"-1e999".to_vec(),
        b"99999999999999999999999999".to_vec(),
        deep.into_bytes(),
        huge.into_bytes(),
        br#"{"leader":{},"optime":-4,"ttl":[],"epoch":"x","name":7,"pg-0":3}"#.to_vec(),
        br#"[[1],["x","y","z"],[4294967296,1,"r"]]"#.to_vec(),
    ]
}

#[test]
fn garbage_in_any_key_is_listed_and_keeps_the_rest() {
    let good = Cluster::read(&real(), None);
    assert_eq!(good.malformed, []);
    for key in Key::ALL {
        for bytes in garbage() {
            let mut raw = real();
            raw.documents.insert(key, entry(bytes.clone()));
            let read = Cluster::read(&raw, Some(&good));
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            assert!(
                read.malformed.iter().all(|m| m.path == key.path()),
                "{key:?} {shown}: {:?}",
                read.malformed
            );
            assert_eq!(read.leader, good.leader, "{key:?} {shown}");
            assert_eq!(read.members, good.members, "{key:?} {shown}");
            assert!(read.config.is_some(), "{key:?} {shown}");
        }
    }
}

#[test]
fn a_malformed_configuration_leaves_the_last_good_one_in_force_and_is_named() {
    let good = Cluster::read(&real(), None);
    for bytes in [&b""[..], b"{", b"[]", b"\xff", br#"{"ttl":"soon"}"#] {
        let mut raw = real();
        raw.documents.insert(Key::Config, entry(bytes.to_vec()));
        let read = Cluster::read(&raw, Some(&good));
        assert_eq!(read.config, good.config);
        assert_eq!(read.malformed[0].path, "config");
        assert_eq!(Cluster::read(&raw, None).config, None);
    }
}

#[test]
fn garbage_in_a_member_record_is_a_member_without_anything() {
    for bytes in garbage() {
        let mut raw = real();
        raw.members.insert("pg-1".to_owned(), entry(bytes));
        let read = Cluster::read(&raw, None);
        let member = read
            .members
            .values()
            .find(|m| m.name.as_str() == "pg-1")
            .unwrap();
        assert_eq!((&member.conn_url, member.position()), (&None, None));
        assert!(read.malformed.iter().all(|m| m.path == "members/pg-1"));
    }
    let mut raw = real();
    raw.members.insert("a/b".to_owned(), entry("{}"));
    assert_eq!(Cluster::read(&raw, None).malformed[0].path, "members/a/b");
}

#[test]
fn a_leader_key_that_is_no_name_is_a_lock_that_is_held() {
    for bytes in [&b""[..], b"\xff\xff", b"a/b", b"two\nlines"] {
        let mut raw = real();
        raw.leader.as_mut().unwrap().name = Bytes::from_static(bytes);
        let read = Cluster::read(&raw, None);
        assert_eq!(read.leader.unwrap().name, None);
        assert_eq!(read.malformed[0].path, "leader");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_form_that_the_contract_tolerates_is_read() {
    for (text, expected) in [
        ("", Initialize::Claimed),
        (
            "7710822623212245678",
            Initialize::Known(SystemId(7_710_822_623_212_245_678)),
        ),
        ("123", Initialize::Invalid),
        ("77108226232x", Initialize::Invalid),
    ] {
        assert_eq!(with(Key::Initialize, text).initialize, expected, "{text}");
    }
    for nothing in ["", "{}", "null"] {
        let read = with(Key::Failover, nothing);
        assert_eq!(
            (read.failover, read.malformed),
            (None, Vec::new()),
            "{nothing}"
        );
    }
    let legacy = with(Key::Failover, "pg-0:pg-1").failover.unwrap();
    assert_eq!(
        (legacy.leader.as_deref(), legacy.candidate.as_deref()),
        (Some("pg-0"), Some("pg-1"))
    );
    for empty in [
        "{}",
        r#"{"leader":null}"#,
        r#"{"quorum":5,"sync_standby":"x"}"#,
    ] {
        assert_eq!(with(Key::Sync, empty).sync, None, "{empty}");
    }
    for (text, optime) in [
        ("12", 12),
        (r#"{"optime":"13"}"#, 13),
        (r#"{"optime":14}"#, 14),
    ] {
        assert_eq!(
            with(Key::Status, text).status.unwrap().optime,
            Some(Lsn(optime)),
            "{text}"
        );
    }
    let quoted = with(
        Key::Status,
        r#"{"slots":"{\"s\":3}","retain_slots":"[\"r\"]"}"#,
    )
    .status
    .unwrap();
    assert_eq!(quoted.slots["s"], Lsn(3));
    assert!(quoted.retain_slots.contains("r"));
    let mut raw = real();
    raw.documents.remove(&Key::Status);
    raw.documents.insert(Key::LegacyOptime, entry("15"));
    assert_eq!(
        Cluster::read(&raw, None).status.unwrap().optime,
        Some(Lsn(15))
    );
    let governor = "postgres://u:p@h:5433/db?application_name=http://x/patroni";
    raw.members.insert("pg-1".to_owned(), entry(governor));
    raw.members.insert(
        "pg-2".to_owned(),
        entry(r#"{"conn_kwargs":{"host":"h","port":1}}"#),
    );
    let read = Cluster::read(&raw, None);
    let urls: Vec<_> = read
        .members
        .values()
        .map(|m| m.api_url.as_deref())
        .collect();
    assert_eq!(urls, [Some("http://a"), Some("http://x/patroni"), None]);
    let hosts: Vec<_> = read
        .members
        .values()
        .filter_map(super::Member::host_port)
        .collect();
    assert_eq!(hosts[1..], [("h".to_owned(), 5433), ("h".to_owned(), 1)]);
}

#[test]
fn a_record_of_a_holding_that_cannot_be_read_proves_no_release() {
    for (text, taken) in [
        (r#"{"epoch":9,"name":"a"}"#, false),
        (r#"{"epoch":9,"name":"a","taken":false}"#, false),
        (r#"{"epoch":9,"name":"a","taken":true}"#, true),
        (r#"{"epoch":9,"name":"a","taken":"no"}"#, true),
    ] {
        assert_eq!(
            with(Key::Release, text).release.unwrap().taken,
            taken,
            "{text}"
        );
    }
}

/// Changes some bytes of some keys, by chance.
#[test]
fn no_changed_byte_in_a_real_snapshot_panics() {
    let good = Cluster::read(&real(), None);
    let mut seed = 0x1234_5678_9ABC_DEF1_u64;
    let mut draw = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 40).unwrap() % below
    };
    for _ in 0..3000 {
        let mut raw = real();
        let entries: Vec<&mut Entry> = raw
            .documents
            .values_mut()
            .chain(raw.members.values_mut())
            .collect();
        for entry in entries {
            let mut bytes = entry.value.to_vec();
            for _ in 0..draw(4) {
                let at = draw(bytes.len());
                bytes[at] = u8::try_from(draw(256)).unwrap();
            }
            bytes.truncate(bytes.len() - draw(bytes.len().min(3)));
            entry.value = bytes.into();
        }
        let read = Cluster::read(&raw, Some(&good));
        assert_eq!(read.leader, good.leader);
        assert!(read.config.is_some());
    }
}

#[test]
fn a_member_that_only_moved_is_no_news() {
    let record = |role: &str, lsn: u64| {
        format!(
            r#"{{"role":"{role}","xlog_location":{lsn},"receive_lsn":{lsn},"replay_lsn":{lsn}}}"#
        )
    };
    let news = |before: &str, record: &str| is_news(before.as_bytes(), record.as_bytes());
    let replica = record("replica", 1);
    assert!(!news(&replica, &replica));
    assert!(!news(&replica, &record("replica", 2)));
    assert!(news(&replica, &record("primary", 2)));
    // A record that went, one that came, and what is none.
    assert!(news(&replica, ""));
    assert!(news("", &replica));
    assert!(news("[1", "[2"));
    assert!(!news("[1", "[1"));
}
