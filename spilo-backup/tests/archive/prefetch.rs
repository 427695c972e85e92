//! What a resident archiver fetches before it is asked.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use spilo_backup::Archiver;
use spilo_core::backup::BackupErrorKind;

use crate::watched::{Beside, Verb, named, private, until, whole};
use crate::{Place, on_every_store};

on_every_store! {
    what_follows_is_fetched_before_it_is_asked_for,
    what_does_not_follow_any_more_is_deleted,
    f38_a_part_is_never_seen,
}

/// Fetches a file as a server does, and compares it.
async fn fetch(archiver: &Archiver, beside: &Beside, name: &str) {
    let into = beside.path("RECOVERYXLOG");
    archiver.fetch(name, &into).await.unwrap();
    assert!(fs::read(&into).unwrap() == whole(name), "{name}");
    fs::remove_file(into).unwrap();
}

async fn holds(archiver: &Archiver, names: &[String]) {
    let what = format!("{names:?} are there");
    until(&what, async || archiver.status().await.fetched == names).await;
}

async fn what_follows_is_fetched_before_it_is_asked_for(place: Place) {
    let beside = Beside::on(place);
    // The number of the file goes from FFF to 1000, which is 0 of the next.
    let names: Vec<String> = (4090..4106).map(|n| named(1, n)).collect();
    for name in &names {
        beside.archived(name).await;
    }
    let archiver = beside.archiver();
    fetch(&archiver, &beside, &names[0]).await;
    holds(&archiver, &names[1..9]).await;
    for name in &names[1..] {
        fetch(&archiver, &beside, name).await;
        assert!(beside.kept() <= 8, "{}", beside.kept());
    }
    let gets = beside.store.asked(Verb::Get);
    for name in &names {
        let of_it = gets.iter().filter(|key| key.contains(name.as_str()));
        assert_eq!(of_it.count(), 1, "{name} of {gets:?}");
    }
    assert_eq!(
        fs::read_dir(beside.path("")).unwrap().count(),
        1,
        "only the status"
    );
    let next = archiver
        .fetch(&named(1, 4106), &beside.path("RECOVERYXLOG"))
        .await;
    assert_eq!(next.unwrap_err().kind(), BackupErrorKind::NotFound);
    until("nothing is kept", async || beside.kept() == 0).await;
}

async fn what_does_not_follow_any_more_is_deleted(place: Place) {
    let beside = Beside::on(place);
    let names = |timeline: u32, from: u32| -> Vec<String> {
        (from..from + 9).map(|n| named(timeline, n)).collect()
    };
    let (begin, far, later) = (names(1, 3), names(1, 40), names(2, 6));
    for name in [&begin, &far, &later].into_iter().flatten() {
        beside.archived(name).await;
    }
    let archiver = beside.archiver();
    for line in [&begin, &far, &later, &begin] {
        fetch(&archiver, &beside, &line[0]).await;
        holds(&archiver, &line[1..]).await;
        until("eight are kept", async || beside.kept() == 8).await;
    }
    // What is asked for in vain gives up nothing.
    let into = beside.path("RECOVERYXLOG");
    for name in ["00000009.history", &named(3, 6)] {
        archiver.fetch(name, &into).await.unwrap_err();
    }
    holds(&archiver, &begin[1..]).await;
    // Also what is on its way.
    beside.store.hold(Some(&far[3]));
    fetch(&archiver, &beside, &far[0]).await;
    until("they have begun", async || beside.kept() == 8).await;
    fetch(&archiver, &beside, &later[0]).await;
    holds(&archiver, &later[1..]).await;
    until("eight are kept", async || beside.kept() == 8).await;
}

/// Wherever the archiver dies, and whatever it was about to do.
async fn f38_a_part_is_never_seen(place: Place) {
    let beside = Beside::on(place);
    let names: Vec<String> = (3..8).map(|n| named(1, n)).collect();
    for name in &names {
        beside.archived(name).await;
    }
    let into = beside.path("RECOVERYXLOG");
    let moment = Duration::from_millis(300);

    // One that is asked for.
    let archiver = beside.archiver();
    beside.store.hold(Some(&names[0]));
    let fetched = tokio::time::timeout(moment, archiver.fetch(&names[0], &into)).await;
    assert!(fetched.is_err() && !into.exists());
    drop(archiver);

    // One that was on its way before.
    let archiver = beside.archiver();
    beside.store.hold(Some(&names[1]));
    fetch(&archiver, &beside, &names[0]).await;
    holds(&archiver, &names[2..]).await;
    let fetched = tokio::time::timeout(moment, archiver.fetch(&names[1], &into)).await;
    assert!(fetched.is_err() && !into.exists());
    let gets = beside.store.asked(Verb::Get);
    let of_it = gets.iter().filter(|key| key.contains(&names[1]));
    assert_eq!(of_it.count(), 1, "it is waited for: {gets:?}");
    drop(archiver);

    // What a dead one left is deleted, and not used.
    let left = beside.work_dir().join("fetched/left");
    private(&left);
    fs::write(left.join(&names[1]), "half of it").unwrap();
    let archiver = beside.archiver();
    assert_eq!(beside.kept(), 0);
    beside.store.hold(None);
    fetch(&archiver, &beside, &names[1]).await;
    fetch(&archiver, &beside, &names[2]).await;
}

/// What was not there when nobody had asked for it is asked for when somebody does.
#[tokio::test(start_paused = true)]
async fn what_was_fetched_too_early_delays_nothing() {
    let beside = Beside::on(Place::directory());
    let names: Vec<String> = (3..6).map(|n| named(1, n)).collect();
    beside.archived(&names[0]).await;
    let archiver = beside.archiver();
    fetch(&archiver, &beside, &names[0]).await;
    until("all were asked for", async || {
        beside.store.asked(Verb::List).len() >= 8 && beside.kept() == 0
    })
    .await;
    beside.archived(&names[1]).await;
    beside.store.forget();
    fetch(&archiver, &beside, &names[1]).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(
        beside.store.times().len(),
        1,
        "the others were missed before"
    );
    beside.archived(&names[2]).await;
    fetch(&archiver, &beside, &names[2]).await;
    // Where the log ends, one is asked for in vain and not eight.
    until("the next one", async || {
        beside.store.asked(Verb::List).len() == 1 && beside.kept() == 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(beside.store.times().len(), 4, "nobody has asked");
}

#[tokio::test]
async fn what_failed_before_it_was_asked_for_is_told_to_nobody() {
    let beside = Beside::on(Place::directory());
    let names: Vec<String> = (3..6).map(|n| named(1, n)).collect();
    for name in &names {
        beside.archived(name).await;
    }
    let archiver = beside.archiver();
    beside
        .place
        .meddle(&format!("wal_005/{}.zst", names[1]), |bytes| {
            bytes.truncate(99);
        });
    fetch(&archiver, &beside, &names[0]).await;
    holds(&archiver, &names[2..]).await;
    let into = beside.path("RECOVERYXLOG");
    let error = archiver.fetch(&names[1], &into).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Damaged, "{error}");
    assert!(!into.exists());
    fetch(&archiver, &beside, &names[2]).await;
}

#[tokio::test]
async fn files_come_from_another_file_system() {
    let beside = Beside::on(Place::directory());
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("NOT RUN: there is no other file system in /dev/shm");
        return;
    };
    let device = |path: &std::path::Path| fs::metadata(path).unwrap().dev();
    if device(other.path()) == device(beside.place.scratch()) {
        eprintln!("NOT RUN: /dev/shm is no other file system");
        return;
    }
    let names: Vec<String> = (3..6).map(|n| named(1, n)).collect();
    for name in &names {
        beside.archived(name).await;
    }
    let mut options = beside.options();
    options.work_dir = other.path().join("work");
    let archiver = Archiver::open(beside.store.archive(), options).unwrap();
    fetch(&archiver, &beside, &names[0]).await;
    holds(&archiver, &names[1..]).await;
    fetch(&archiver, &beside, &names[1]).await;
    fetch(&archiver, &beside, &names[2]).await;
    assert_eq!(
        fs::read_dir(beside.path("")).unwrap().count(),
        1,
        "only the status"
    );
}
