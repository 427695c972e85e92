//! What a primary that comes back does not archive.

use std::fs;
use std::time::Duration;

use spilo_backup::{Codec, Pushed};
use spilo_core::backup::BackupErrorKind;

use crate::watched::{Beside, Verb, named, whole};
use crate::{Place, on_every_store};

on_every_store! {
    f39_log_past_a_fork_is_not_archived,
    f39_what_is_there_stays_there,
}

/// In the middle of the fifth file of 1 MiB.
const SECOND: &[u8] = b"1\t0/580000\tno recovery target specified\n";

async fn f39_log_past_a_fork_is_not_archived(place: Place) {
    let beside = Beside::on(place);
    let archive = beside.store.archive();
    let history = beside.place.file("00000002.history", SECOND);
    archive.push_wal(&history).await.unwrap();
    fs::remove_file(history).unwrap();
    beside.ready_from(3, 4);
    let partial = format!("{}.partial", named(1, 5));
    beside.ready(&partial, &whole(&named(1, 5)));
    beside.ready(&named(2, 5), &whole(&named(2, 5)));
    // As one command, as the next one, and as the archiver that has pushed the others.
    let archiver = beside.archiver();
    for n in [5, 6] {
        for archive in [&beside.store.archive(), &archive] {
            let error = archive
                .push_wal(&beside.path(&named(1, n)))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
        }
        let error = archiver.push(&named(1, n)).await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("timeline 1 was left at 0/580000 for timeline 2"),
            "{text}"
        );
        assert!(text.contains("must be rewound"), "{text}");
    }
    for name in [named(1, 3), named(1, 4), partial.clone(), named(2, 5)] {
        archiver.push(&name).await.unwrap();
    }
    let mut expected = [
        named(1, 3),
        named(1, 4),
        partial,
        "00000002.history".to_owned(),
        named(2, 5),
    ];
    expected.sort();
    assert_eq!(beside.names().await, expected);

    // The third timeline left the second where a file ends.
    let third = b"1\t0/580000\tx\n2\t0/700000\tx\n";
    let history = beside.place.file("00000003.history", third);
    beside.store.archive().push_wal(&history).await.unwrap();
    fs::remove_file(history).unwrap();
    let archive = beside.store.archive();
    for (n, goes) in [(6, true), (7, false), (8, false)] {
        let path = beside.place.file(&named(2, n), &whole(&named(2, n)));
        assert_eq!(archive.push_wal(&path).await.is_ok(), goes, "{n}");
    }
}

async fn f39_what_is_there_stays_there(place: Place) {
    let beside = Beside::on(place);
    let archive = beside.store.archive();
    let path = beside.place.file(&named(1, 5), &whole(&named(1, 5)));
    archive.push_wal(&path).await.unwrap();
    let history = beside.place.file("00000002.history", SECOND);
    let pushed = archive.push_wal(&path).await.unwrap();
    assert_eq!(pushed, Pushed::Already, "there is nothing to keep out");
    let mut other = whole(&named(1, 5));
    other[9000] ^= 1;
    let path = beside.place.file(&named(1, 5), &other);
    // This server went along, and another one has archived the file before.
    let refused = archive.push_wal(&path).await.unwrap_err();
    assert_eq!(refused.kind(), BackupErrorKind::Conflict, "{refused}");
    beside.place.file(&named(2, 5), &whole(&named(2, 5)));
    let pushed = archive.push_wal(&path).await.unwrap();
    assert_eq!(pushed, Pushed::GivenUp);
    fs::remove_file(history).unwrap();
    let error = archive.push_wal(&path).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Conflict, "{error}");
}

/// A server with a history beside its log went along: it passes over what others need not have.
#[tokio::test]
async fn f39_what_a_server_has_left_behind_holds_up_nothing() {
    let beside = Beside::on(Place::directory());
    fs::write(beside.path("00000002.history"), SECOND).unwrap();
    fs::write(beside.path(&named(2, 5)), whole(&named(2, 5))).unwrap();
    let names = beside.ready_from(4, 2);
    let archive = beside.store.archive();
    archive.push_wal(&beside.path(&names[0])).await.unwrap();
    let pushed = archive.push_wal(&beside.path(&names[1])).await.unwrap();
    assert_eq!(pushed, Pushed::GivenUp);
    assert_eq!(beside.names().await, [names[0].clone()]);
    fs::write(beside.path("00000002.history"), "not a history").unwrap();
    let names = beside.ready_from(8, 1);
    let error = archive.push_wal(&beside.path(&names[0])).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Damaged, "{error}");
}

/// A promotion that failed, or a recovery to an earlier moment, leaves a timeline earlier than those
/// who went on with it: what they came by is archived.
#[tokio::test]
async fn f39_the_last_fork_of_all_counts() {
    let beside = Beside::on(Place::directory());
    for (name, text) in [
        ("00000002.history", SECOND),
        ("00000003.history", b"1\t0/380000\tbefore\n"),
    ] {
        let history = beside.place.file(name, text);
        beside.store.archive().push_wal(&history).await.unwrap();
    }
    let names = beside.ready_from(3, 3);
    let archive = beside.store.archive();
    for name in &names[..2] {
        let pushed = archive.push_wal(&beside.path(name)).await.unwrap();
        assert_eq!(pushed, Pushed::New, "{name}");
    }
    let error = archive.push_wal(&beside.path(&names[2])).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("left at 0/580000 for timeline 2"), "{text}");
    // Nor does a history that this server was told of, and did not go along with.
    fs::write(beside.path("00000003.history"), "1\t0/380000\tbefore\n").unwrap();
    let again = beside.store.archive();
    assert_eq!(
        again.push_wal(&beside.path(&names[1])).await.unwrap(),
        Pushed::Already
    );
    again.push_wal(&beside.path(&names[2])).await.unwrap_err();
}

/// Whether there is a later timeline costs one request, and not one for each file.
#[tokio::test(start_paused = true)]
async fn f39_a_later_timeline_is_asked_for_once_in_five_seconds() {
    let beside = Beside::on(Place::directory());
    let names = beside.ready_from(3, 6);
    let archive = beside.store.archive();
    archive.push_wal(&beside.path(&names[0])).await.unwrap();
    let requests = || beside.store.times().len();
    assert_eq!(requests(), 3, "two lists and a put");
    archive.push_wal(&beside.path(&names[1])).await.unwrap();
    assert_eq!(requests(), 5, "a list and a put");

    let history = beside.place.file("00000002.history", SECOND);
    let behind = beside.place.archive(Codec::Zstd);
    behind.push_wal(&history).await.unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    let error = archive.push_wal(&beside.path(&names[2])).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    beside.store.forget();
    let error = archive.push_wal(&beside.path(&names[3])).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    assert_eq!(beside.store.asked(Verb::Get).len(), 0, "it never changes");
}
