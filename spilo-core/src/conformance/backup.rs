//! The conformance suite of a [`BackupStore`].
//!
//! A store is described by a [`Laboratory`], which puts backups into it as whatever makes them does.
//! [`backup_conformance!`](crate::backup_conformance) makes the tests.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::backup::{BackupErrorKind, BackupInfo, BackupName, BackupStore};
use crate::conformance::waiting::{Boxed, all};
use crate::pg::Progress;

/// A store without backups, for one test.
#[async_trait]
pub trait Laboratory: Send + Sync + fmt::Debug {
    /// Returns the store.
    fn store(&self) -> &dyn BackupStore;

    /// Makes a backup of files, given by their paths in the data directory, and returns what a
    /// listing has to say of it. Each is farther along the log than the one before.
    async fn make(&self, files: &BTreeMap<String, Vec<u8>>) -> BackupInfo;

    /// Begins a backup and leaves it unfinished.
    async fn abandon(&self, files: &BTreeMap<String, Vec<u8>>);

    /// Puts something among the backups that is none.
    async fn litter(&self);

    /// Spoils what the store holds of a backup's files.
    async fn damage(&self, backup: &BackupName, how: Damage);

    /// Returns a path at which there is nothing, another each time, in a folder that is there.
    fn path(&self) -> PathBuf;
}

/// How stored bytes are spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The last of them are cut off.
    Cut,
    /// One in the middle is changed.
    Changed,
    /// They are gone altogether.
    Lost,
}

/// Makes one `#[tokio::test]` of each property of
/// [`conformance::backup`](crate::conformance::backup).
///
/// The argument is an async expression of a
/// [`Box<dyn Laboratory>`](crate::conformance::backup::Laboratory); it is evaluated in each test.
///
/// # Examples
/// ```no_run
/// # use spilo_core::conformance::backup::Laboratory;
/// async fn laboratory() -> Box<dyn Laboratory> {
///     unimplemented!("make a store")
/// }
/// # mod tests { use super::*;
/// spilo_core::backup_conformance!(super::laboratory());
/// # }
/// ```
#[macro_export]
macro_rules! backup_conformance {
    ($laboratory:expr) => {
        $crate::backup_conformance!(@each $laboratory;
            a_new_store_has_no_backup,
            backups_are_listed_as_they_were_made,
            an_unfinished_backup_is_none,
            what_is_no_backup_hides_no_other,
            every_byte_comes_back,
            what_is_not_there_is_not_found,
            a_directory_that_is_not_empty_is_left_alone,
            damage_is_an_error,
            many_may_restore_at_once,
        );
    };
    (@each $laboratory:expr; $($property:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $property() {
                let laboratory = $laboratory.await;
                $crate::conformance::backup::$property(&*laboratory).await;
            }
        )*
    };
}

/// A store in which there is nothing says so.
pub async fn a_new_store_has_no_backup(laboratory: &dyn Laboratory) {
    assert_eq!(listed(laboratory).await, []);
}

/// A listing says of each backup what there is to know, and all of them.
pub async fn backups_are_listed_as_they_were_made(laboratory: &dyn Laboratory) {
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(laboratory.make(&sample()).await);
        assert_eq!(listed(laboratory).await, made);
    }
}

/// What is not finished is not listed, and cannot be restored by mistake.
pub async fn an_unfinished_backup_is_none(laboratory: &dyn Laboratory) {
    laboratory.abandon(&sample()).await;
    assert_eq!(listed(laboratory).await, []);
    let made = laboratory.make(&sample()).await;
    assert_eq!(listed(laboratory).await, [made]);
}

/// One bad record hides no other.
pub async fn what_is_no_backup_hides_no_other(laboratory: &dyn Laboratory) {
    let first = laboratory.make(&sample()).await;
    laboratory.litter().await;
    let second = laboratory.make(&sample()).await;
    assert_eq!(listed(laboratory).await, [first, second]);
}

/// A restore gives all files as they were, and no other file that has anything in it.
pub async fn every_byte_comes_back(laboratory: &dyn Laboratory) {
    let made = laboratory.make(&sample()).await;
    let into = laboratory.path();
    restored(laboratory, &made.name, &into).await;
    assert_same(&into, &sample());
}

/// A backup that is not there (any more) is an error of that kind.
pub async fn what_is_not_there_is_not_found(laboratory: &dyn Laboratory) {
    let made = laboratory.make(&sample()).await;
    for name in [format!("{}0", made.name), "..".to_owned(), String::new()] {
        let into = laboratory.path();
        let store = laboratory.store();
        let absent = BackupName(name.clone());
        let outcome = store.restore(&absent, &into, Progress::default());
        let error = outcome.await.expect_err("there is no such backup");
        assert_eq!(error.kind(), BackupErrorKind::NotFound, "{name:?}: {error}");
    }
}

/// Nothing is overwritten.
pub async fn a_directory_that_is_not_empty_is_left_alone(laboratory: &dyn Laboratory) {
    let made = laboratory.make(&sample()).await;
    let into = laboratory.path();
    let precious = BTreeMap::from([("precious".to_owned(), b"data".to_vec())]);
    fs::create_dir(&into).expect("a path in a folder");
    fs::write(into.join("precious"), "data").expect("a folder of one's own");
    let outcome = laboratory
        .store()
        .restore(&made.name, &into, Progress::default());
    let error = outcome.await.expect_err("the directory is not empty");
    assert_eq!(error.kind(), BackupErrorKind::Refused, "{error}");
    assert_same(&into, &precious);
}

/// Spoilt bytes are never handed out.
pub async fn damage_is_an_error(laboratory: &dyn Laboratory) {
    for how in [Damage::Cut, Damage::Changed, Damage::Lost] {
        let made = laboratory.make(&sample()).await;
        laboratory.damage(&made.name, how).await;
        let into = laboratory.path();
        let outcome = laboratory
            .store()
            .restore(&made.name, &into, Progress::default());
        let error = outcome.await.expect_err("the bytes are not those");
        assert_eq!(error.kind(), BackupErrorKind::Damaged, "{how:?}: {error}");
    }
}

/// Restores do not get into each other's way.
pub async fn many_may_restore_at_once(laboratory: &dyn Laboratory) {
    let made = laboratory.make(&sample()).await;
    let (first, second, third) = (laboratory.path(), laboratory.path(), laboratory.path());
    let paths = [first, second, third];
    let restores = paths
        .iter()
        .map(|into| -> Boxed<'_, ()> { Box::pin(restored(laboratory, &made.name, into)) });
    all(restores.collect()).await;
    for into in paths {
        assert_same(&into, &sample());
    }
}

/// What a data directory has in it: nothing, little, much, and bytes that do not compress.
fn sample() -> BTreeMap<String, Vec<u8>> {
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let random: Vec<u8> = (0..700_000).map(|_| noise()).collect();
    let zeros = vec![0; 3 << 20];
    BTreeMap::from([
        ("PG_VERSION".to_owned(), b"15\n".to_vec()),
        ("backup_label".to_owned(), b"START WAL LOCATION\n".to_vec()),
        ("base/1/1249".to_owned(), random),
        ("base/1/1249_fsm".to_owned(), zeros),
        ("base/5/empty".to_owned(), Vec::new()),
        ("global/pg_control".to_owned(), vec![7; 8192]),
    ])
}

async fn listed(laboratory: &dyn Laboratory) -> Vec<BackupInfo> {
    let listed = laboratory.store().backups().await;
    let mut listed = listed.expect("a healthy store is listed");
    listed.sort_by_key(|info| info.start.lsn);
    listed
}

async fn restored(laboratory: &dyn Laboratory, name: &BackupName, into: &Path) {
    let store = laboratory.store();
    if let Err(error) = store.restore(name, into, Progress::default()).await {
        panic!("{name} is restored, and did not fail with: {error}");
    }
}

fn assert_same(root: &Path, expected: &BTreeMap<String, Vec<u8>>) {
    let mut found = BTreeMap::new();
    read(root, root, &mut found);
    for (path, bytes) in expected {
        assert!(found.get(path) == Some(bytes), "{path} is not as it was");
    }
    for (path, bytes) in found {
        let known = expected.contains_key(&path) || bytes.is_empty();
        assert!(known, "{path} was not there");
    }
}

fn read(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(root, &path, found);
            continue;
        }
        let name = path.strip_prefix(root).expect("it is below");
        let bytes = fs::read(&path).expect("a file");
        found.insert(name.display().to_string(), bytes);
    }
}
