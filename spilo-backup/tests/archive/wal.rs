//! Files of the log.

use std::fs;

use spilo_backup::{Codec, Pushed};
use spilo_core::backup::BackupErrorKind;

use crate::{Place, noise, on_every_store, segment};

const NAME: &str = "000000010000000000000003";

on_every_store! {
    what_is_pushed_is_fetched,
    files_of_the_log_may_be_large,
    what_is_there_already_is_no_error,
    what_is_there_with_other_bytes_is_kept_and_the_error_says_whose_it_is,
    what_is_not_there_leaves_nothing_behind,
    what_is_damaged_is_not_handed_out,
    a_good_copy_in_another_form_is_found,
    what_is_not_what_its_name_says_is_not_archived,
}

async fn what_is_pushed_is_fetched(place: Place) {
    let history = b"1\t0/3000000\tno recovery target specified\n".to_vec();
    let files = [
        (NAME, segment(NAME, 7, 1 << 20, 1)),
        (
            "000000010000000000000004.partial",
            segment("000000010000000000000004", 7, 1 << 20, 4),
        ),
        ("00000002.history", history),
        (
            "000000010000000000000003.00000028.backup",
            b"START WAL LOCATION: \n".to_vec(),
        ),
    ];
    let into = place.scratch().join("RECOVERYXLOG");
    for codec in Codec::ALL {
        let archive = place.archive(codec);
        for (name, bytes) in &files {
            let pushed = archive.push_wal(&place.file(name, bytes)).await.unwrap();
            assert_eq!(pushed, Pushed::New, "{codec} {name}");
            archive.fetch_wal(name, &into).await.unwrap();
            assert!(fs::read(&into).unwrap() == *bytes, "{codec} {name}");
            let key = format!("wal_005/{name}{}", codec.suffix());
            place.objects.delete(&key).await.unwrap();
        }
    }
}

/// In S3, a file that does not compress goes in parts.
async fn files_of_the_log_may_be_large(place: Place) {
    let into = place.scratch().join("RECOVERYXLOG");
    for (name, size, codec) in [
        (NAME, 16 << 20, Codec::None),
        ("000000020000000000000001", 64 << 20, Codec::Lz4),
    ] {
        let archive = place.archive(codec);
        let bytes = segment(name, 7, size, 1);
        archive.push_wal(&place.file(name, &bytes)).await.unwrap();
        archive.fetch_wal(name, &into).await.unwrap();
        assert!(fs::read(&into).unwrap() == bytes, "{name}");
    }
}

async fn what_is_there_already_is_no_error(place: Place) {
    let archive = place.archive(Codec::Zstd);
    let path = place.file(NAME, &segment(NAME, 7, 16 << 20, 1));
    assert_eq!(archive.push_wal(&path).await.unwrap(), Pushed::New);
    assert_eq!(archive.push_wal(&path).await.unwrap(), Pushed::Already);
    let other_codec = place.archive(Codec::Lzo);
    assert_eq!(other_codec.push_wal(&path).await.unwrap(), Pushed::Already);
    let listed = place.objects.list("wal_005/").await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
}

async fn what_is_there_with_other_bytes_is_kept_and_the_error_says_whose_it_is(place: Place) {
    let archive = place.archive(Codec::Zstd);
    let ours = segment(NAME, 7, 1 << 20, 1);
    archive.push_wal(&place.file(NAME, &ours)).await.unwrap();
    let mut changed = ours.clone();
    changed[8192] ^= 1;
    let foreign = segment(NAME, 8, 1 << 20, 1);
    for (bytes, said) in [
        (changed, "from byte 8192 on; it is of the same cluster"),
        (
            foreign,
            "from byte 24 on; it is of the cluster 7, and this one of 8",
        ),
    ] {
        let error = archive
            .push_wal(&place.file(NAME, &bytes))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Conflict);
        assert!(error.to_string().contains(said), "{error}");
        assert!(
            error
                .to_string()
                .contains("wal_005/000000010000000000000003.zst"),
            "{error}"
        );
    }
    let history = place.file("00000002.history", b"1\t0/3000000\tpromoted\n");
    archive.push_wal(&history).await.unwrap();
    let history = place.file("00000002.history", b"1\t0/4000000\tpromoted\n");
    let error = archive.push_wal(&history).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Conflict);

    let into = place.scratch().join("x");
    archive.fetch_wal(NAME, &into).await.unwrap();
    assert!(fs::read(into).unwrap() == ours);
}

/// The server of the tests for S3 looks first and writes then, so that it keeps the last of those
/// that come at once; Amazon's does not.
#[tokio::test]
async fn of_many_that_push_at_once_one_is_kept() {
    let place = Place::directory();
    let mut pushing = tokio::task::JoinSet::new();
    for n in 0..8 {
        let archive = place.archive(Codec::Lz4);
        let folder = place.scratch().join(n.to_string());
        fs::create_dir(&folder).unwrap();
        let path = folder.join(NAME);
        fs::write(&path, segment(NAME, 7, 1 << 20, n)).unwrap();
        pushing.spawn(async move { (n, archive.push_wal(&path).await) });
    }
    let mut kept = Vec::new();
    while let Some(pushed) = pushing.join_next().await {
        match pushed.unwrap() {
            (n, Ok(Pushed::New)) => kept.push(n),
            (_, Ok(Pushed::Already | Pushed::GivenUp)) => panic!("the bytes differ"),
            (_, Err(error)) => assert_eq!(error.kind(), BackupErrorKind::Conflict, "{error}"),
        }
    }
    assert_eq!(kept.len(), 1);
    let into = place.scratch().join("x");
    place
        .archive(Codec::Lz4)
        .fetch_wal(NAME, &into)
        .await
        .unwrap();
    assert!(fs::read(into).unwrap() == segment(NAME, 7, 1 << 20, kept[0]));
}

async fn what_is_not_there_leaves_nothing_behind(place: Place) {
    let into = place.scratch().join("RECOVERYXLOG");
    let archive = place.archive(Codec::Zstd);
    for name in [NAME, "00000002.history"] {
        let error = archive.fetch_wal(name, &into).await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::NotFound, "{error}");
    }
    let error = archive
        .fetch_wal("../../etc/passwd", &into)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    let left = fs::read_dir(place.scratch()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name == "archive"), "{left:?}");
}

async fn what_is_damaged_is_not_handed_out(place: Place) {
    let into = place.scratch().join("RECOVERYXLOG");
    let bytes = segment(NAME, 7, 1 << 20, 1);
    for codec in Codec::ALL {
        let archive = place.archive(codec);
        let key = format!("wal_005/{NAME}{}", codec.suffix());
        let changes: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes.truncate(bytes.len() / 2),
            |bytes| bytes.clear(),
            |bytes| bytes.extend_from_slice(b"and more"),
            |bytes| bytes[9] ^= 0xFF,
        ];
        for change in changes {
            archive.push_wal(&place.file(NAME, &bytes)).await.unwrap();
            place.meddle(&key, change);
            let error = archive.fetch_wal(NAME, &into).await.unwrap_err();
            assert_eq!(error.kind(), BackupErrorKind::Damaged, "{codec}: {error}");
            assert!(error.to_string().contains(&key), "{error}");
            assert!(!into.exists());
            place.objects.delete(&key).await.unwrap();
        }
    }
    let left = fs::read_dir(place.scratch()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        left.iter()
            .all(|name| name == "pg_wal" || name == "archive"),
        "{left:?}"
    );
}

async fn a_good_copy_in_another_form_is_found(place: Place) {
    let bytes = segment(NAME, 7, 1 << 20, 1);
    let path = place.file(NAME, &bytes);
    let zstd = place.archive(Codec::Zstd);
    zstd.push_wal(&path).await.unwrap();
    let into = place.scratch().join("x");
    place
        .archive(Codec::Lzo)
        .fetch_wal(NAME, &into)
        .await
        .unwrap();
    assert!(fs::read(&into).unwrap() == bytes);

    let key = format!("wal_005/{NAME}.lz4");
    let mut other = place.archive(Codec::Lz4);
    place
        .objects
        .delete(&format!("wal_005/{NAME}.zst"))
        .await
        .unwrap();
    other.push_wal(&path).await.unwrap();
    let packed = place
        .objects
        .get(&key)
        .await
        .unwrap()
        .all(1 << 30)
        .await
        .unwrap();
    place.objects.delete(&key).await.unwrap();
    zstd.push_wal(&path).await.unwrap();
    place
        .objects
        .put(&key, spilo_backup::Body::whole(packed))
        .await
        .unwrap();
    place.meddle(&format!("wal_005/{NAME}.zst"), |bytes| bytes.truncate(100));
    fs::remove_file(&into).unwrap();
    other = place.archive(Codec::Zstd);
    other.fetch_wal(NAME, &into).await.unwrap();
    assert!(fs::read(&into).unwrap() == bytes);
}

async fn what_is_not_what_its_name_says_is_not_archived(place: Place) {
    let archive = place.archive(Codec::Zstd);
    let mut short = segment(NAME, 7, 1 << 20, 1);
    short.truncate(4096);
    for (name, bytes, said) in [
        ("postgresql.conf", b"x".to_vec(), "is no name of a file"),
        (
            NAME,
            short,
            "it has 4096 bytes, and files of its log have 1048576",
        ),
        (
            NAME,
            noise(1 << 20, 1),
            "does not begin as a file of the log does",
        ),
        (NAME, Vec::new(), "it has only 0 bytes"),
        (
            NAME,
            segment("000000010000000000000004", 7, 1 << 20, 1),
            "it is the file that begins at 0/400000",
        ),
    ] {
        let error = archive
            .push_wal(&place.file(name, &bytes))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Refused);
        assert!(error.to_string().contains(said), "{error}");
    }
    let absent = place.scratch().join(NAME);
    let error = archive.push_wal(&absent).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Unavailable, "{error}");
    assert!(place.objects.list("").await.unwrap().is_empty());
}

/// What retention has taken from under a recovery is a hole, and not where the log ends.
#[tokio::test(start_paused = true)]
async fn a_hole_is_not_the_end_of_the_log() {
    let place = Place::directory();
    let archive = place.archive(Codec::Zstd);
    let name = |number: u32| format!("0000000100000000{number:08X}");
    for number in [3, 5] {
        let bytes = segment(&name(number), 7, 1 << 20, 1);
        let path = place.file(&name(number), &bytes);
        archive.push_wal(&path).await.unwrap();
    }
    let into = place.scratch().join("RECOVERYXLOG");
    let fetch = async |name: &str| archive.fetch_wal_to_the_end(name, &into).await;
    fetch(&name(3)).await.unwrap();
    let error = fetch(&name(4)).await.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Damaged, "{error}");
    let beyond = [
        name(6),
        "000000020000000000000004".to_owned(),
        "00000002.history".to_owned(),
    ];
    for name in beyond {
        let error = fetch(&name).await.unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::NotFound, "{name}: {error}");
    }
}
