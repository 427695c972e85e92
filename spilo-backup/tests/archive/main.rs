//! What holds of an archive on every store.

#![expect(clippy::unwrap_used, reason = "what helps a test fails as a test does")]

#[path = "../s3/s3.rs"]
mod s3;

mod absent;
mod ahead;
mod base;
mod conformance;
mod faults;
mod forks;
mod kept;
mod prefetch;
mod resident;
mod sealed;
mod wal;
mod watched;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spilo_backup::{Archive, ArchiveOptions, Codec, Directory, Objects, S3, S3Options};
use tempfile::TempDir;

/// An archive, and where its objects lie as files.
struct Place {
    objects: Arc<dyn Objects>,
    files: PathBuf,
    scratch: TempDir,
    /// What stands behind the names of its objects.
    suffix: &'static str,
    _server: Option<s3::S3Server>,
}

impl Place {
    fn directory() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let files = scratch.path().join("archive");
        fs::create_dir(&files).unwrap();
        Self {
            objects: Arc::new(Directory::new(&files)),
            files,
            scratch,
            suffix: "",
            _server: None,
        }
    }

    async fn s3() -> Self {
        let server = s3::S3Server::start().await;
        Self {
            objects: Arc::new(client(&server.url()).await),
            files: server.bucket().join("some/where"),
            scratch: tempfile::tempdir().unwrap(),
            suffix: "",
            _server: Some(server),
        }
    }

    fn archive(&self, codec: Codec) -> Archive {
        let mut options = ArchiveOptions::default();
        options.codec = codec;
        Archive::new(Arc::clone(&self.objects), options)
    }

    fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Writes a file to be archived.
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.scratch().join("pg_wal").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Changes what lies in the store behind its back.
    fn meddle(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.files.join(format!("{key}{}", self.suffix));
        let mut bytes = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

async fn client(url: &str) -> S3 {
    let mut options = S3Options::new(s3::BUCKET, "some/where");
    options.endpoint = Some(url.to_owned());
    options.path_style = true;
    options.part_bytes = 5 << 20;
    options.credentials = Some((s3::ACCESS_KEY.to_owned(), s3::SECRET_KEY.to_owned()));
    S3::new(options).await.unwrap()
}

/// The first bytes of a file of the log say whose it is.
fn segment(name: &str, system: u64, bytes: u32, fill: u8) -> Vec<u8> {
    let number = |range| u64::from_str_radix(&name[range], 16).unwrap();
    let begin = (number(8..16) << 32) + number(16..24) * u64::from(bytes);
    let mut segment = noise(usize::try_from(bytes).unwrap(), fill);
    segment[..2].copy_from_slice(&0xD10D_u16.to_ne_bytes());
    segment[2..4].copy_from_slice(&2_u16.to_ne_bytes());
    segment[8..16].copy_from_slice(&begin.to_ne_bytes());
    segment[24..32].copy_from_slice(&system.to_ne_bytes());
    segment[32..36].copy_from_slice(&bytes.to_ne_bytes());
    segment
}

/// Bytes of which half compress.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(seed);
    let mut bytes = vec![seed; length];
    for (n, chunk) in bytes.chunks_mut(8).enumerate() {
        if (n / 512).is_multiple_of(2) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
    }
    bytes
}

/// Makes a test of each property for each store.
macro_rules! on_every_store {
    ($($property:ident,)*) => {
        mod directory {
            $(#[tokio::test]
            async fn $property() {
                super::$property(crate::Place::directory()).await;
            })*
        }

        mod s3 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $property() {
                super::$property(crate::Place::s3().await).await;
            })*
        }
    };
}
use on_every_store;
