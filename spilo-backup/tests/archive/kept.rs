//! What is deleted, and what never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spilo_backup::{Archive, ArchiveOptions, Body, Codec, Keep, Object, Objects};
use spilo_core::async_trait;
use spilo_core::backup::{BackupError, BackupErrorKind, BackupName, BackupStore as _};

use crate::{Place, on_every_store};

on_every_store! {
    log_goes_only_if_no_kept_backup_needs_it,
    nothing_goes_while_a_sentinel_cannot_be_read,
    what_a_recovery_gave_up_is_older_than_what_came_after_it,
    what_was_deleted_is_not_missed,
    what_a_backup_lacks_is_found,
}

async fn put(place: &Place, key: &str, text: &str) {
    let body = Body::whole(text.to_owned());
    place.objects.put(key, body).await.unwrap();
}

pub(crate) fn name(timeline: u32, segment: u32) -> String {
    format!("base_{timeline:08X}00000000{segment:08X}_00000040")
}

/// A backup inside one file of the log.
async fn backup(place: &Place, timeline: u32, segment: u32) {
    let name = name(timeline, segment);
    let folder = format!("basebackups_005/{name}");
    put(
        place,
        &format!("{folder}/tar_partitions/part_00000000.tar.lzo"),
        "",
    )
    .await;
    let sentinel = format!(
        r#"{{"wal_segment_backup_stop": "{timeline:08X}00000000{segment:08X}",
            "wal_segment_offset_backup_stop": "00000312", "expanded_size_bytes": 24}}"#
    );
    put(
        place,
        &format!("{folder}_backup_stop_sentinel.json"),
        &sentinel,
    )
    .await;
}

async fn log(place: &Place, timeline: u32, segments: std::ops::RangeInclusive<u32>) {
    for segment in segments {
        put(
            place,
            &format!("wal_005/{timeline:08X}00000000{segment:08X}.lzo"),
            "",
        )
        .await;
    }
}

async fn keys(place: &Place) -> Vec<String> {
    let listed = place.objects.list("").await.unwrap();
    listed.into_iter().map(|object| object.key).collect()
}

/// Three backups over two timelines, the first of which was left in its tenth file.
pub(crate) async fn history(place: &Place) {
    log(place, 1, 1..=10).await;
    log(place, 2, 10..=15).await;
    put(place, "wal_005/00000002.history.lzo", "").await;
    put(place, "wal_005/00000001000000000000000A.partial.lzo", "").await;
    backup(place, 1, 2).await;
    backup(place, 1, 8).await;
    backup(place, 2, 12).await;
    // Two that were never finished: one that is dead, and one that may be under way.
    for segment in [1, 14] {
        let name = name(2, segment);
        put(
            place,
            &format!("basebackups_005/{name}/tar_partitions/part_0.tar.lzo"),
            "",
        )
        .await;
    }
}

async fn log_goes_only_if_no_kept_backup_needs_it(place: Place) {
    history(&place).await;
    let archive = place.archive(Codec::Zstd);
    let before = keys(&place).await;
    let told = archive.expire(&Keep::Newest(2), true).await.unwrap();
    assert_eq!(keys(&place).await, before, "a dry run deletes nothing");
    let expired = archive.expire(&Keep::Newest(2), false).await.unwrap();
    assert_eq!(expired, told);
    let gone = [name(1, 2), name(2, 1)].map(BackupName);
    assert_eq!(expired.backups, gone);
    assert_eq!(expired.wal_files, 7);
    let left = keys(&place).await;
    let of_log: Vec<&str> = left
        .iter()
        .filter_map(|key| key.strip_prefix("wal_005/"))
        .collect();
    assert_eq!(
        of_log,
        [
            "000000010000000000000008.lzo",
            "000000010000000000000009.lzo",
            "00000001000000000000000A.lzo",
            "00000001000000000000000A.partial.lzo",
            "00000002.history.lzo",
            "00000002000000000000000A.lzo",
            "00000002000000000000000B.lzo",
            "00000002000000000000000C.lzo",
            "00000002000000000000000D.lzo",
            "00000002000000000000000E.lzo",
            "00000002000000000000000F.lzo",
        ]
    );
    assert!(
        left.iter().any(|key| key.contains(&name(2, 14))),
        "it may be under way"
    );
    assert_eq!(archive.backups().await.unwrap().len(), 2);

    let keep = Keep::From(BackupName(name(2, 12)));
    let expired = archive.expire(&keep, false).await.unwrap();
    assert_eq!(expired.backups, [BackupName(name(1, 8))]);
    let again = archive.expire(&keep, false).await.unwrap();
    assert_eq!((again.backups.len(), again.wal_files), (0, 0));
}

async fn nothing_goes_while_a_sentinel_cannot_be_read(place: Place) {
    history(&place).await;
    let key = format!("basebackups_005/{}_backup_stop_sentinel.json", name(1, 1));
    put(&place, &key, "{").await;
    let before = keys(&place).await;
    let archive = place.archive(Codec::Zstd);
    let error = archive.expire(&Keep::Newest(1), false).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused);
    assert!(error.to_string().contains(&name(1, 1)), "{error}");
    for keep in [Keep::Newest(0), Keep::From(BackupName("base_x".to_owned()))] {
        assert!(archive.expire(&keep, false).await.is_err(), "{keep:?}");
    }
    assert_eq!(keys(&place).await, before);
}

async fn what_a_backup_lacks_is_found(place: Place) {
    log(&place, 1, 1..=3).await;
    log(&place, 1, 6..=9).await;
    backup(&place, 1, 2).await;
    backup(&place, 1, 5).await;
    put(&place, "wal_005/.hidden", "").await;
    put(&place, "wal_005/something", "").await;
    let report = place.archive(Codec::Zstd).verify_wal(None).await.unwrap();
    assert!(!report.is_whole());
    assert_eq!(report.holes.len(), 1);
    let hole = &report.holes[0];
    assert_eq!(hole.first, "000000010000000000000004");
    assert_eq!(
        (&hole.last[..], hole.files),
        ("000000010000000000000005", 2)
    );
    let lost = (
        BackupName(name(1, 5)),
        "000000010000000000000005".to_owned(),
    );
    assert_eq!(report.unusable, [lost]);
    assert!(report.unknown.contains(&"wal_005/something".to_owned()));
}

async fn what_a_recovery_gave_up_is_older_than_what_came_after_it(place: Place) {
    log(&place, 1, 1..=100).await;
    backup(&place, 1, 90).await;
    backup(&place, 1, 99).await;
    // A recovery to a moment in the fiftieth file.
    log(&place, 2, 50..=66).await;
    for segment in [55, 60, 65] {
        backup(&place, 2, segment).await;
    }
    let archive = place.archive(Codec::Zstd);
    let by_age = archive.backups_by_age().await.unwrap();
    assert_eq!(by_age.last().unwrap().name.0, name(2, 65));
    let expired = archive.expire(&Keep::Newest(2), false).await.unwrap();
    let gone = [name(1, 90), name(1, 99), name(2, 55)].map(BackupName);
    assert_eq!(expired.backups, gone);
    let left = keys(&place).await;
    for segment in 60..=66 {
        let file = format!("wal_005/0000000200000000{segment:08X}.lzo");
        assert!(left.contains(&file), "{file}");
    }
}

/// Histories stay for ever; what they tell of need not.
async fn what_was_deleted_is_not_missed(place: Place) {
    let history = place.file("00000002.history", b"1\t0/A000100\tpromoted\n");
    let archive = place.archive(Codec::Zstd);
    archive.push_wal(&history).await.unwrap();
    log(&place, 1, 1..=9).await;
    log(&place, 2, 10..=30).await;
    backup(&place, 1, 2).await;
    backup(&place, 2, 20).await;
    assert!(archive.verify_wal(None).await.unwrap().is_whole());
    archive.expire(&Keep::Newest(1), false).await.unwrap();
    let report = archive.verify_wal(None).await.unwrap();
    assert!(report.is_whole(), "{report:?}");
    let lost = "wal_005/000000020000000000000018.lzo";
    place.objects.delete(lost).await.unwrap();
    let report = archive.verify_wal(None).await.unwrap();
    assert_eq!(report.holes.len(), 1, "{report:?}");
}

/// A store that deletes so many objects and then no more, as if whoever deletes had been killed.
#[derive(Debug)]
struct Stops {
    store: Arc<dyn Objects>,
    left: AtomicUsize,
}

#[async_trait]
impl Objects for Stops {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn place(&self, key: &str) -> String {
        self.store.place(key)
    }

    async fn put(&self, key: &str, body: Body) -> Result<(), BackupError> {
        self.store.put(key, body).await
    }

    async fn get(&self, key: &str) -> Result<Body, BackupError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, BackupError> {
        self.store.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), BackupError> {
        let left = self
            .left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            let kind = BackupErrorKind::Unavailable;
            return Err(BackupError::new("stops", kind, "delete", "on purpose"));
        }
        self.store.delete(key).await
    }
}

#[tokio::test]
async fn wherever_a_deletion_stops_every_backup_is_whole_and_the_next_one_ends_it() {
    let whole = Place::directory();
    history(&whole).await;
    let kept = Keep::Newest(2);
    whole
        .archive(Codec::Zstd)
        .expire(&kept, false)
        .await
        .unwrap();
    let end = keys(&whole).await;
    for stop in 0.. {
        let place = Place::directory();
        history(&place).await;
        let stops = Stops {
            store: Arc::clone(&place.objects),
            left: AtomicUsize::new(stop),
        };
        let stopped = Archive::new(Arc::new(stops), ArchiveOptions::default());
        let done = stopped.expire(&kept, false).await.is_ok();
        let archive = place.archive(Codec::Zstd);
        let there = keys(&place).await;
        for backup in archive.backups().await.unwrap() {
            let part = format!("basebackups_005/{}/tar_partitions/", backup.name);
            assert!(
                there.iter().any(|key| key.starts_with(&part)),
                "{stop}: {backup:?}"
            );
        }
        let lacks = archive.verify_wal(None).await.unwrap().unusable;
        assert!(lacks.is_empty(), "{stop}: {lacks:?}");
        archive.expire(&kept, false).await.unwrap();
        assert_eq!(keys(&place).await, end, "{stop}");
        if done {
            assert!(stop > 8, "only {stop} objects were deleted");
            break;
        }
    }
}
