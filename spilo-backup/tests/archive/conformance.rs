//! The conformance suite of stores of backups.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use spilo_backup::{Archive, Body, Codec};
use spilo_core::async_trait;
use spilo_core::backup::{BackupInfo, BackupName, BackupStore};
use spilo_core::conformance::backup::{Damage, Laboratory};
use spilo_core::wal::{Lsn, Timeline, WalPosition};
use tar::{Builder, Header};

use crate::Place;

/// Backups as WAL-E would have left them, but compressed by zstd.
struct Laid {
    place: Place,
    archive: Archive,
    made: AtomicU32,
    paths: AtomicU32,
}

impl Laid {
    fn laboratory(place: Place) -> Box<dyn Laboratory> {
        Box::new(Self {
            archive: place.archive(Codec::Zstd),
            place,
            made: AtomicU32::new(1),
            paths: AtomicU32::new(0),
        })
    }

    /// Stores the files of the next backup, in two parts, and returns its name and segment.
    async fn parts(&self, files: &BTreeMap<String, Vec<u8>>) -> (String, u32) {
        let segment = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("base_0000000100000000{segment:08X}_00000040");
        for number in 0..2 {
            let mut tar = Builder::new(Vec::new());
            for (path, bytes) in files.iter().skip(number).step_by(2) {
                let mut header = Header::new_gnu();
                header.set_mode(0o600);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, &bytes[..]).unwrap();
            }
            let tar = tar.into_inner().unwrap();
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            std::io::copy(&mut &tar[..], &mut encoder).unwrap();
            let key = part(&name, number);
            let body = Body::whole(encoder.finish().unwrap());
            self.place.objects.put(&key, body).await.unwrap();
        }
        (name, segment)
    }

    async fn sentinel(&self, name: &str, text: String) {
        let key = format!("basebackups_005/{name}_backup_stop_sentinel.json");
        let put = self.place.objects.put(&key, Body::whole(text));
        put.await.unwrap();
    }
}

fn part(name: &str, number: usize) -> String {
    format!("basebackups_005/{name}/tar_partitions/part_{number:08}.tar.zst")
}

#[async_trait]
impl Laboratory for Laid {
    fn store(&self) -> &dyn BackupStore {
        &self.archive
    }

    async fn make(&self, files: &BTreeMap<String, Vec<u8>>) -> BackupInfo {
        let (name, segment) = self.parts(files).await;
        let size: usize = files.values().map(Vec::len).sum();
        let text = format!(
            r#"{{"wal_segment_backup_stop": "0000000100000000{segment:08X}",
                "wal_segment_offset_backup_stop": "00000312", "expanded_size_bytes": {size}}}"#
        );
        self.sentinel(&name, text).await;
        let at = |offset| WalPosition {
            timeline: Timeline(1),
            lsn: Lsn((u64::from(segment) << 24) + offset),
        };
        let mut info = BackupInfo::new(BackupName(name), at(40), at(312));
        info.size = Some(size as u64);
        info
    }

    async fn abandon(&self, files: &BTreeMap<String, Vec<u8>>) {
        self.parts(files).await;
    }

    async fn litter(&self) {
        let segment = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("base_0000000100000000{segment:08X}_00000040");
        self.sentinel(&name, "{".to_owned()).await;
        self.sentinel("base_x", "{}".to_owned()).await;
    }

    async fn damage(&self, backup: &BackupName, how: Damage) {
        let key = part(&backup.0, 0);
        match how {
            Damage::Cut => self
                .place
                .meddle(&key, |bytes| bytes.truncate(bytes.len() - 5)),
            Damage::Changed => self.place.meddle(&key, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }),
            Damage::Lost => {
                let file = format!("{key}{}", self.place.suffix);
                fs::remove_file(self.place.files.join(file)).unwrap();
            }
        }
    }

    fn path(&self) -> PathBuf {
        let number = self.paths.fetch_add(1, Ordering::Relaxed);
        self.place.scratch().join(format!("data{number}"))
    }
}

impl std::fmt::Debug for Laid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.archive.fmt(f)
    }
}

mod directory {
    use crate::Place;

    spilo_core::backup_conformance!(async { super::Laid::laboratory(Place::directory()) });
}

mod s3 {
    use crate::Place;

    spilo_core::backup_conformance!(async { super::Laid::laboratory(Place::s3().await) });
}

mod sealed {
    use crate::Place;

    spilo_core::backup_conformance!(async {
        super::Laid::laboratory(Place::directory().sealed(&[1]))
    });
}
