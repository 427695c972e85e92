//! What a server asks for again and again, and the archive does not have.

use std::fs;
use std::time::Duration;

use spilo_backup::Archiver;
use spilo_core::backup::BackupErrorKind;
use tokio::time::Instant;

use crate::Place;
use crate::watched::{Beside, Verb, named, whole};

/// Asks for both names as a standby without a primary does; whether the first is there.
async fn round(archiver: &Archiver, beside: &Beside, names: [&str; 2]) -> bool {
    let into = beside.path("RECOVERYXLOG");
    let mut first = false;
    for name in names {
        match archiver.fetch(name, &into).await {
            Ok(()) => first |= name == names[0],
            Err(error) => assert_eq!(error.kind(), BackupErrorKind::NotFound, "{error}"),
        }
    }
    first
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_a_primary_makes_two_requests_in_a_second_at_most() {
    let beside = Beside::on(Place::directory());
    let archiver = beside.archiver();
    let segment = named(1, 7);
    let names = [segment.as_str(), "00000002.history"];
    assert!(!round(&archiver, &beside, names).await);
    let first = beside.store.times().len();
    assert_eq!(first, 4, "each is asked for, and looked for in a list");
    let begun = Instant::now();
    for _ in 0..50 {
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(!round(&archiver, &beside, names).await);
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "the clock stood");
    let later = beside.store.times().split_off(first);
    for from in &later {
        let within = later.iter().filter(|at| {
            let since = at.checked_duration_since(*from);
            since.is_some_and(|since| since < Duration::from_secs(1))
        });
        assert!(within.count() <= 2, "{later:?}");
    }
    assert!(later.len() >= 8, "it does look again: {later:?}");
    assert_eq!(beside.store.asked(Verb::Get).len(), 2, "only in lists");

    // What comes is seen within a second.
    beside.archived(&segment).await;
    let come = Instant::now();
    while !round(&archiver, &beside, names).await {
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(
        come.elapsed() <= Duration::from_secs(1),
        "{:?}",
        come.elapsed()
    );
    let fetched = fs::read(beside.path("RECOVERYXLOG")).unwrap();
    assert!(fetched == whole(&segment));
}

#[tokio::test(start_paused = true)]
async fn only_that_something_is_not_there_is_remembered() {
    let beside = Beside::on(Place::directory());
    let archiver = beside.archiver();
    let name = named(1, 7);
    let into = beside.path("RECOVERYXLOG");
    let kind = async || archiver.fetch(&name, &into).await.unwrap_err().kind();
    beside.store.fail(true);
    assert_eq!(kind().await, BackupErrorKind::Unavailable);
    beside.store.fail(false);
    assert_eq!(kind().await, BackupErrorKind::NotFound);
    beside.store.fail(true);
    assert_eq!(
        kind().await,
        BackupErrorKind::NotFound,
        "it was a moment ago"
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(kind().await, BackupErrorKind::Unavailable);
    assert_eq!(
        kind().await,
        BackupErrorKind::Unavailable,
        "nothing is known"
    );
    beside.store.fail(false);
    beside.archived(&name).await;
    archiver.fetch(&name, &into).await.unwrap();
}
