//! Base backups, out of parts made by hand.

use std::fs;
use std::path::Path;

use spilo_backup::{Body, Codec};
use spilo_core::backup::{BackupErrorKind, BackupName, BackupStore as _};
use spilo_core::pg::Progress;
use tar::{Builder, EntryType, Header};

use crate::{Place, on_every_store};

on_every_store! {
    a_backup_of_wal_e_is_listed_and_restored,
    a_directory_that_is_not_empty_is_left_alone,
    a_part_that_is_lost_or_damaged_leaves_no_data_directory,
    nothing_is_written_outside_of_the_directory,
    a_sentinel_that_says_nothing_hides_no_other,
}

const NAME: &str = "base_000000010000000000000003_00000040";
const FOLDER: &str = "basebackups_005/base_000000010000000000000003_00000040/tar_partitions";

/// A tar file. Paths are written as they are, whatever a library would say to them.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = Header::new_gnu();
        let is_folder = path.ends_with('/') && *path != "/";
        header.set_entry_type(if is_folder {
            EntryType::Directory
        } else {
            EntryType::Regular
        });
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

async fn put(place: &Place, key: &str, bytes: Vec<u8>) {
    place.objects.put(key, Body::whole(bytes)).await.unwrap();
}

async fn sentinel(place: &Place, name: &str) {
    let text = r#"{"wal_segment_backup_stop": "000000010000000000000003",
        "wal_segment_offset_backup_stop": "00000312", "expanded_size_bytes": 24,
        "spec": {"base_prefix": "/srv/pg/", "tablespaces": []}}"#;
    let key = format!("basebackups_005/{name}_backup_stop_sentinel.json");
    put(place, &key, text.as_bytes().to_vec()).await;
}

/// A backup in two parts.
async fn backup(place: &Place) {
    let first = tar(&[("base/", ""), ("base/1/", ""), ("base/1/1249", "pages")]);
    put(place, &format!("{FOLDER}/part_00000000.tar"), first).await;
    let second = tar(&[("global/pg_control", "control"), ("backup_label", "label")]);
    put(place, &format!("{FOLDER}/part_00000001.tar"), second).await;
    sentinel(place, NAME).await;
}

fn name(text: &str) -> BackupName {
    BackupName(text.to_owned())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

async fn a_backup_of_wal_e_is_listed_and_restored(place: Place) {
    backup(&place).await;
    let archive = place.archive(Codec::Zstd);
    let listed = archive.backups().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, name(NAME));
    assert_eq!(
        (listed[0].start.lsn.0, listed[0].stop.lsn.0),
        (0x300_0028, 0x300_0138)
    );
    let into = place.scratch().join("data");
    archive
        .restore(&name(NAME), &into, Progress::default())
        .await
        .unwrap();
    assert_eq!(read(&into.join("base/1/1249")), "pages");
    assert_eq!(read(&into.join("global/pg_control")), "control");
    assert!(into.join("pg_wal").is_dir());

    let error = archive
        .restore(&name("base_x"), &into, Progress::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::NotFound, "{error}");
}

async fn a_directory_that_is_not_empty_is_left_alone(place: Place) {
    backup(&place).await;
    let into = place.scratch().join("data");
    fs::create_dir(&into).unwrap();
    fs::write(into.join("precious"), "data").unwrap();
    let archive = place.archive(Codec::Zstd);
    let error = archive
        .restore(&name(NAME), &into, Progress::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused);
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 1);
}

async fn a_part_that_is_lost_or_damaged_leaves_no_data_directory(place: Place) {
    backup(&place).await;
    let archive = place.archive(Codec::Zstd);
    let into = place.scratch().join("data");
    let first = format!("{FOLDER}/part_00000000.tar");
    place.meddle(&first, |bytes| bytes.truncate(700));
    let error = archive
        .restore(&name(NAME), &into, Progress::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains(&first), "{error}");
    assert!(!into.join("global/pg_control").exists());

    fs::remove_dir_all(&into).unwrap();
    place.objects.delete(&first).await.unwrap();
    let error = archive
        .restore(&name(NAME), &into, Progress::default())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("its part part_00000000 is not in"),
        "{error}"
    );
    assert!(!into.exists());
}

async fn nothing_is_written_outside_of_the_directory(place: Place) {
    for path in ["../outside", "base/../../outside", "/outside"] {
        let place = &place;
        let bytes = tar(&[("global/pg_control", "control"), (path, "evil")]);
        put(place, &format!("{FOLDER}/part_00000000.tar"), bytes).await;
        sentinel(place, NAME).await;
        let into = place.scratch().join("data");
        let archive = place.archive(Codec::Zstd);
        let error = archive
            .restore(&name(NAME), &into, Progress::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), BackupErrorKind::Damaged, "{path}: {error}");
        assert!(!place.scratch().join("outside").exists());
        assert!(!into.join("global/pg_control").exists());
        fs::remove_dir_all(&into).unwrap();
        for object in place.objects.list("").await.unwrap() {
            place.objects.delete(&object.key).await.unwrap();
        }
    }
}

async fn a_sentinel_that_says_nothing_hides_no_other(place: Place) {
    backup(&place).await;
    for (other, text) in [
        ("base_000000010000000000000005_00000040", "{"),
        ("base_000000010000000000000006_00000040", ""),
        ("base_garbage", "{}"),
    ] {
        let key = format!("basebackups_005/{other}_backup_stop_sentinel.json");
        put(&place, &key, text.as_bytes().to_vec()).await;
    }
    let listed = place.archive(Codec::Zstd).backups().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, name(NAME));
}
