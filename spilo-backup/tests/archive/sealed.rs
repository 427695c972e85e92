//! Objects that the store cannot read.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use spilo_backup::{Archive, ArchiveOptions, Body, Codec, Objects, Sealed, SealingKeys};
use spilo_core::backup::BackupErrorKind;

use crate::{Place, segment};

const NAME: &str = "000000010000000000000003";

fn keys(numbers: &[u8]) -> SealingKeys {
    let lines = numbers.iter().map(|number| format!("{number:064x}\n"));
    lines.collect::<String>().parse().unwrap()
}

impl Place {
    /// The same, with all objects sealed.
    pub(crate) fn sealed(mut self, with: &[u8]) -> Self {
        self.objects = Arc::new(Sealed::new(self.objects, keys(with)));
        self.suffix = ".sealed";
        self
    }

    /// Returns the archive with other keys.
    fn opened(&self, plain: &Arc<dyn Objects>, with: &[u8]) -> Archive {
        let mut options = ArchiveOptions::default();
        options.codec = Codec::None;
        let sealed = Sealed::new(Arc::clone(plain), keys(with));
        Archive::new(Arc::new(sealed), options)
    }
}

/// Returns everything in a directory, names and bytes.
fn everything(directory: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            all.extend(everything(&entry.path()));
        } else {
            all.extend(fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_length_comes_back_and_nothing_is_to_be_read() {
    let place = Place::directory().sealed(&[1]);
    const PIECE: usize = 64 << 10;
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 17] {
        let bytes: Vec<u8> = b"a secret ".iter().copied().cycle().take(length).collect();
        let key = format!("some/{length}");
        place
            .objects
            .put(&key, Body::whole(bytes.clone()))
            .await
            .unwrap();
        let back = place.objects.get(&key).await.unwrap().all(1 << 20).await;
        assert!(back.unwrap() == bytes, "{length}");
    }
    let stored = everything(&place.files);
    assert!(!stored.windows(6).any(|six| six == b"secret"));
    let listed = place.objects.list("some/").await.unwrap();
    assert_eq!(listed.len(), 7);
    assert_eq!(listed[0].key, "some/0");
    place.objects.delete("some/0").await.unwrap();
    assert_eq!(place.objects.list("some/").await.unwrap().len(), 6);
}

/// Wherever it is cut, changed, lengthened or put: nothing of it is taken for what was sealed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_sealed_is_damaged() {
    let place = Place::directory().sealed(&[1]);
    let bytes = vec![7; 200_000];
    let put = async |key: &str| {
        let body = Body::whole(bytes.clone());
        place.objects.put(key, body).await.unwrap();
    };
    let fails = async |key: &str, what: &str| {
        let body = place.objects.get(key).await.unwrap();
        let error = body.all(1 << 20).await.expect_err(what);
        assert_eq!(error.kind(), BackupErrorKind::Damaged, "{what}: {error}");
    };
    put("a").await;
    put("b").await;
    let whole = fs::read(place.files.join("a.sealed")).unwrap();
    for length in [
        0,
        10,
        33,
        34,
        50,
        34 + 65_552,
        34 + 2 * 65_552,
        whole.len() - 1,
    ] {
        place.meddle("a", |bytes| bytes.truncate(length));
        fails("a", &format!("cut to {length}")).await;
        place.meddle("a", |bytes| bytes.clone_from(&whole));
    }
    for at in (0..whole.len()).step_by(9_973) {
        place.meddle("a", |bytes| bytes[at] ^= 1);
        fails("a", &format!("changed at {at}")).await;
        place.meddle("a", |bytes| bytes.clone_from(&whole));
    }
    place.meddle("a", |bytes| bytes.push(0));
    fails("a", "lengthened").await;
    // Two pieces in the other order.
    place.meddle("a", |bytes| {
        let (first, second) = bytes[34..34 + 2 * 65_552].split_at_mut(65_552);
        first.swap_with_slice(second);
    });
    fails("a", "out of order").await;
    fs::copy(place.files.join("b.sealed"), place.files.join("a.sealed")).unwrap();
    fails("a", "under another name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_opened_with_any_of_its_keys_and_with_no_other() {
    let place = Place::directory();
    let plain = Arc::clone(&place.objects);
    let bytes = segment(NAME, 7, 1 << 20, 1);
    let path = place.file(NAME, &bytes);
    place.opened(&plain, &[1]).push_wal(&path).await.unwrap();
    let into = place.scratch().join("x");
    // A new key seals, and the old one goes on to open.
    place
        .opened(&plain, &[2, 1])
        .fetch_wal(NAME, &into)
        .await
        .unwrap();
    assert!(fs::read(&into).unwrap() == bytes);
    let error = place.opened(&plain, &[2]).fetch_wal(NAME, &into).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Damaged);
    assert!(
        error.to_string().contains("none of the keys opens it"),
        "{error}"
    );
    // Without a key it is not taken for one in which there is nothing, which would end a recovery.
    let error = place.archive(Codec::None).fetch_wal(NAME, &into).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused);
    assert!(error.to_string().contains("it is sealed"), "{error}");
    let error = place.archive(Codec::None).verify_wal(None).await;
    assert_eq!(error.unwrap_err().kind(), BackupErrorKind::Refused);

    // Nor is one that is not sealed, with a key.
    let place = Place::directory();
    let plain = Arc::clone(&place.objects);
    let path = place.file(NAME, &bytes);
    place.archive(Codec::None).push_wal(&path).await.unwrap();
    let error = place.opened(&plain, &[1]).fetch_wal(NAME, &into).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), BackupErrorKind::Refused);
    assert!(error.to_string().contains("it is not sealed"), "{error}");
    let error = place.opened(&plain, &[1]).verify_wal(None).await;
    assert_eq!(error.unwrap_err().kind(), BackupErrorKind::Refused);
}

/// A wrong key does not make an archive one without backups.
#[tokio::test(flavor = "multi_thread")]
async fn backups_of_which_none_can_be_read_are_an_error() {
    let place = Place::directory();
    let plain = Arc::clone(&place.objects);
    let sealed = Sealed::new(Arc::clone(&plain), keys(&[1]));
    let key = "basebackups_005/base_000000010000000000000003_00000040_backup_stop_sentinel.json";
    let sentinel = r#"{"wal_segment_backup_stop": "000000010000000000000003",
        "wal_segment_offset_backup_stop": "00000312", "expanded_size_bytes": 24}"#;
    sealed.put(key, Body::whole(sentinel)).await.unwrap();
    let backups = place.opened(&plain, &[1]).backups_by_age().await.unwrap();
    assert_eq!(backups.len(), 1);
    let error = place.opened(&plain, &[2]).backups_by_age().await;
    assert_eq!(error.unwrap_err().kind(), BackupErrorKind::Damaged);
}
