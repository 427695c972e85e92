//! What a store has to do, on this one. The suite is all the tests that a backend needs to begin
//! with; its own failures, which no suite knows, come after it.

#![expect(clippy::unwrap_used, reason = "a test fails where it is surprised")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use spilo_core::conformance::dcs::Laboratory;
use spilo_core::dcs::{DcsErrorKind, Key};
use spilo_core::{Dcs, MemberName, async_trait};
use spilo_custom_dcs::FileStore;
use tempfile::TempDir;

#[derive(Debug)]
struct Directory {
    dir: TempDir,
    started: Instant,
}

impl Directory {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            started: Instant::now(),
        }
    }

    fn store(&self) -> FileStore {
        FileStore::new(self.dir.path().join("demo.json"))
    }
}

#[async_trait]
impl Laboratory for Directory {
    async fn node(&self) -> Arc<dyn Dcs> {
        Arc::new(self.store())
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn delete_leader_key(&self) {
        // As with an editor. The store's own words for that are not for agents.
        let path = self.dir.path().join("demo.json");
        let mut content: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        content["store"]["leader"] = serde_json::Value::Null;
        let revision = content["store"]["revision"].as_u64().unwrap() + 1;
        content["store"]["revision"] = revision.into();
        content["store"]["noticed"] = revision.into();
        let new = self.dir.path().join("edited");
        std::fs::write(&new, content.to_string()).unwrap();
        std::fs::rename(new, path).unwrap();
    }
}

spilo_core::dcs_conformance!(async { Box::new(Directory::new()) });

#[tokio::test]
async fn a_file_with_nonsense_is_an_error_and_stays_as_it_is() {
    let directory = Directory::new();
    let path = directory.dir.path().join("demo.json");
    let me = MemberName::new("a").unwrap();
    for nonsense in ["", "{", "[]", "\u{0}", r#"{"boot": 1, "store": {}}"#] {
        std::fs::write(&path, nonsense).unwrap();
        let store = directory.store();
        let read = store.read().await.unwrap_err();
        assert_eq!(read.kind(), DcsErrorKind::Unavailable);
        assert!(read.to_string().contains("demo.json"), "{read}");
        let acquired = store.acquire(&me, Duration::from_secs(10)).await;
        assert_eq!(acquired.unwrap_err().kind(), DcsErrorKind::Indeterminate);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), nonsense);
    }
}

#[tokio::test]
async fn what_is_acknowledged_outlives_every_handle() {
    let directory = Directory::new();
    let (value, me) = (b"7.5".as_slice(), MemberName::new("a").unwrap());
    let first = directory.store();
    let lease = first.acquire(&me, Duration::from_secs(10)).await.unwrap();
    let by = spilo_core::dcs::Expect::Leader(lease.epoch);
    let put = first.put(Key::Status, value.into(), by).await;
    put.unwrap();
    drop(first);
    let second = directory.store();
    let found = second.read().await.unwrap();
    assert_eq!(found.documents[&Key::Status].value, value);
    assert_eq!(found.leader.unwrap().epoch, lease.epoch);
    second.renew(&lease).await.unwrap();
}
