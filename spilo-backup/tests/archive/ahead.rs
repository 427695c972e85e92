//! What a resident archiver pushes.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use spilo_core::backup::BackupErrorKind;

use crate::watched::{Beside, Verb, named, until, whole};
use crate::{Place, on_every_store};

on_every_store! {
    what_is_asked_for_next_is_pushed_at_the_same_time,
    histories_go_first_and_everything_goes_once,
    a_new_archiver_goes_on_where_one_died,
}

async fn what_is_asked_for_next_is_pushed_at_the_same_time(place: Place) {
    let beside = Beside::on(place);
    let names = beside.ready_from(3, 12);
    let archiver = Arc::new(beside.archiver());
    beside.store.let_puts(false);
    let mut pushing = tokio::task::JoinSet::new();
    let (asked, name) = (Arc::clone(&archiver), names[0].clone());
    pushing.spawn(async move { asked.push(&name).await });
    let puts = || beside.store.asked(Verb::Put);
    until("nine are under way", async || puts().len() >= 9).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut begun = puts();
    begun.sort();
    let expected: Vec<String> = names[..9]
        .iter()
        .map(|name| format!("wal_005/{name}.zst"))
        .collect();
    assert_eq!(begun, expected);
    assert!(pushing.try_join_next().is_none(), "nothing is durable yet");
    assert_eq!(beside.names().await, Vec::<String>::new());

    beside.store.let_puts(true);
    pushing.join_next().await.unwrap().unwrap().unwrap();
    assert!(beside.names().await.contains(&names[0]));
    beside.done(&names[0]);
    for name in &names[1..] {
        archiver.push(name).await.unwrap();
        assert!(beside.names().await.contains(name), "{name}");
        beside.done(name);
    }
    assert_eq!(beside.names().await, names);
    assert_eq!(puts().len(), 12, "each once: {:?}", puts());
}

async fn histories_go_first_and_everything_goes_once(place: Place) {
    let beside = Beside::on(place);
    let mut names = beside.ready_from(3, 12);
    let partial = format!("{}.partial", named(1, 15));
    beside.ready(&partial, &whole(&named(1, 15)));
    let label = format!("{}.00000028.backup", names[11]);
    beside.ready(&label, b"START WAL LOCATION: \n");
    beside.ready("00000002.history", b"1\t0/1000000\tno recovery target\n");
    let archiver = beside.archiver();
    archiver.push(&names[0]).await.unwrap();
    let history = "wal_005/00000002.history.zst".to_owned();
    until("the history", async || {
        beside.store.asked(Verb::Put).contains(&history)
    })
    .await;
    names.extend([partial, label, "00000002.history".to_owned()]);
    for name in &names {
        // As often as it likes.
        archiver.push(name).await.unwrap();
        archiver.push(name).await.unwrap();
        beside.done(name);
    }
    names.sort();
    assert_eq!(beside.names().await, names);
    assert_eq!(beside.store.asked(Verb::Put).len(), names.len());
    let status = archiver.status().await;
    assert_eq!(status.ready, Some(0));
    assert_eq!(status.last_error, None);
}

async fn a_new_archiver_goes_on_where_one_died(place: Place) {
    let beside = Beside::on(place);
    let names = beside.ready_from(3, 12);
    let archiver = beside.archiver();
    archiver.push(&names[0]).await.unwrap();
    until("all are there", async || beside.names().await.len() == 9).await;
    beside.done(&names[0]);
    beside.store.let_puts(false);
    let pushed = tokio::time::timeout(Duration::from_millis(200), archiver.push(&names[9]));
    assert!(
        pushed.await.is_err(),
        "nothing is said of what is not durable"
    );
    drop(archiver);
    beside.store.let_puts(true);

    let archiver = beside.archiver();
    beside.store.forget();
    for name in &names[1..] {
        archiver.push(name).await.unwrap();
        beside.done(name);
    }
    assert_eq!(beside.names().await, names);
    let puts = beside.store.asked(Verb::Put);
    let there = |name: &String| puts.iter().any(|key| key.contains(name.as_str()));
    let again: Vec<_> = names[..9].iter().filter(|name| there(name)).collect();
    assert!(again.is_empty(), "they were there: {again:?}");
}

#[tokio::test]
async fn what_failed_is_tried_when_it_is_asked_for_and_not_before() {
    let beside = Beside::on(Place::directory());
    let names = beside.ready_from(3, 12);
    let archiver = beside.archiver();
    beside.store.fail(true);
    let error = archiver.push(&names[0]).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Unavailable, "{error}");
    until("all have failed", async || {
        archiver.status().await.pushing.is_empty()
    })
    .await;
    beside.store.forget();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(beside.store.times().len(), 0, "nobody has asked");
    archiver.push(&names[0]).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let listed = beside.store.asked(Verb::List);
    let of_it = |key: &String| key.contains(&names[0]) || key.ends_with(".history");
    assert!(listed.iter().all(of_it), "only what was asked: {listed:?}");
    assert!(archiver.status().await.last_error.is_some());

    beside.store.fail(false);
    for name in &names[..3] {
        archiver.push(name).await.unwrap();
        beside.done(name);
    }
    until("it goes ahead again", async || {
        beside.names().await.len() == 11
    })
    .await;
}

#[tokio::test]
async fn what_was_taken_away_is_no_error() {
    let beside = Beside::on(Place::directory());
    let names = beside.ready_from(3, 4);
    fs::remove_file(beside.path(&names[1])).unwrap();
    let archiver = beside.archiver();
    beside.store.let_puts(false);
    let archived = async {
        archiver.push(&names[0]).await.unwrap();
    };
    let told = async {
        let under_way = async || archiver.status().await.pushing.len() == 3;
        until("the others", async || {
            beside.store.asked(Verb::Put).len() == 3 && under_way().await
        })
        .await;
        assert_eq!(archiver.status().await.last_error, None);
        beside.store.let_puts(true);
    };
    tokio::join!(archived, told);
    until("all are there", async || beside.names().await.len() == 3).await;
    let error = archiver.push(&names[1]).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Unavailable, "{error}");
}

/// After a server was rewound, its log may be another under the same names.
#[tokio::test]
async fn another_file_of_the_same_name_is_not_taken_for_the_one_that_was_pushed() {
    let beside = Beside::on(Place::directory());
    let names = beside.ready_from(3, 2);
    let archiver = beside.archiver();
    archiver.push(&names[0]).await.unwrap();
    until("both", async || beside.names().await.len() == 2).await;
    let mut other = whole(&names[1]);
    other[9000] ^= 1;
    fs::remove_file(beside.path(&names[1])).unwrap();
    fs::write(beside.path(&names[1]), other).unwrap();
    let error = archiver.push(&names[1]).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Conflict, "{error}");
}

/// A push that is under way says nothing of the file that took the place of the one it began with.
#[tokio::test]
async fn a_file_that_is_replaced_while_it_is_pushed_is_pushed_again() {
    let beside = Beside::on(Place::directory());
    let names = beside.ready_from(3, 1);
    let archiver = beside.archiver();
    beside.store.let_puts(false);
    let mut other = whole(&names[0]);
    other[9000] ^= 1;
    let first = archiver.push(&names[0]);
    let second = async {
        until("the first", async || {
            !beside.store.asked(Verb::Put).is_empty()
        })
        .await;
        fs::remove_file(beside.path(&names[0])).unwrap();
        fs::write(beside.path(&names[0]), &other).unwrap();
        let second = archiver.push(&names[0]);
        let let_go = async { beside.store.let_puts(true) };
        tokio::join!(second, let_go).0
    };
    let (first, second) = tokio::join!(first, second);
    // One of the two is archived, and neither is told that both are.
    if first.is_ok() && second.is_ok() {
        // The first was not read before it was replaced.
        let into = beside.path("RECOVERYXLOG");
        archiver.fetch(&names[0], &into).await.unwrap();
        assert_eq!(fs::read(&into).unwrap(), other);
    }
    for outcome in [first, second].into_iter().filter_map(Result::err) {
        assert_eq!(outcome.kind(), BackupErrorKind::Conflict, "{outcome}");
    }
}

#[tokio::test]
async fn a_name_is_no_path() {
    let beside = Beside::on(Place::directory());
    fs::write(beside.data_dir().join("postgresql.conf"), "").unwrap();
    let archiver = beside.archiver();
    for name in ["../postgresql.conf", "", "/etc/passwd", "archive_status"] {
        let error = archiver.push(name).await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
        let into = beside.path("RECOVERYXLOG");
        let error = archiver.fetch(name, &into).await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    }
    assert_eq!(beside.store.times().len(), 0);
}
