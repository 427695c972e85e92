//! Where others come in and where this node goes out to them: REST API and its client.

use std::sync::Arc;

use anyhow::Result;
use spilo_api::{Api, ApiOptions, HttpPeers, ServerTls};
use spilo_core::local::Local;

use crate::wiring;

/// What passwords and certificates of the REST API are used in, by both sides.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(crate) api: Api,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) peers: Arc<HttpPeers>,
}

impl Doors {
    /// Goes on with `renewed`. Either all of it is taken over or nothing: members with different
    /// passwords consent to nothing.
    pub(crate) fn take_over(&self, renewed: Renewed) -> Result<()> {
        // The only one that can fail, and it changes nothing then.
        self.api.reconfigure(renewed.api)?;
        if let (Some(old), Some(new)) = (&self.tls, &renewed.tls) {
            old.replace(new);
        }
        self.peers.replace(renewed.peers);
        Ok(())
    }
}

/// What settings and their files have become, before anything is changed.
#[derive(Debug)]
pub(crate) struct Renewed {
    api: ApiOptions,
    tls: Option<ServerTls>,
    peers: HttpPeers,
}

impl Renewed {
    /// Reads the files that `local` names, which blocks.
    pub(crate) fn read(local: &Local) -> Result<Self> {
        Ok(Self {
            tls: wiring::server_tls(local)?,
            peers: HttpPeers::new(wiring::peers(local))?,
            api: wiring::api(local)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::time::SystemTime;

    use async_trait::async_trait;
    use serde_json::json;
    use spilo_api::{Node, serve};
    use spilo_core::peer::{ConsentAnswer, ConsentRequest};
    use spilo_core::status::Status;
    use spilo_core::{Dcs, MemberName, NodeTime, Peers};
    use tokio::task::JoinSet;

    use super::*;

    /// A node that consents, and can do nothing else.
    struct Consenting;

    #[async_trait]
    impl Node for Consenting {
        fn status(&self) -> Arc<Status> {
            unreachable!("nobody asks")
        }

        fn now(&self) -> NodeTime {
            unreachable!("nobody asks")
        }

        async fn consent(&self, _: ConsentRequest) -> ConsentAnswer {
            ConsentAnswer::Accepted(None)
        }

        fn wake(&self) {}

        fn detach(&self) -> bool {
            false
        }

        fn dcs(&self) -> Arc<dyn Dcs> {
            unreachable!("nobody asks")
        }

        fn peers(&self) -> Arc<dyn Peers> {
            unreachable!("nobody asks")
        }

        fn wall_clock(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }
    }

    fn local(dir: &Path, password: &str) -> Local {
        let document = json!({
            "scope": "demo",
            "name": "a",
            "restapi": {
                "listen": "127.0.0.1:8008",
                "authentication": {"username": "u", "password": password},
                "certfile": dir.join("both.pem"),
                "cafile": dir.join("both.pem"),
                "verify_client": "required",
            },
            "postgresql": {"listen": "127.0.0.1:5432", "data_dir": "/srv/pg"},
        });
        Local::parse(document, &BTreeMap::new()).unwrap().local
    }

    /// Writes a certificate that is its own authority, for both sides.
    fn certify(dir: &Path) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(dir.join("both.pem"), certificate + &key).unwrap();
    }

    fn peers(local: &Local) -> HttpPeers {
        HttpPeers::new(wiring::peers(local)).unwrap()
    }

    #[tokio::test]
    async fn a_rotation_is_taken_over_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        certify(dir.path());
        let (old, new) = (local(dir.path(), "old"), local(dir.path(), "new"));
        let doors = Doors {
            api: Api::new(Arc::new(Consenting), wiring::api(&old).unwrap()).unwrap(),
            tls: wiring::server_tls(&old).unwrap(),
            peers: Arc::new(peers(&old)),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/patroni", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        let (router, tls) = (doors.api.router(), doors.tls.clone());
        serving.spawn(serve(listener, router, tls, std::future::pending()));
        let reload = |local: &Local| doors.take_over(Renewed::read(local)?);
        let request = ConsentRequest {
            scope: None,
            name: MemberName::new("b").unwrap(),
            conn_url: "x".to_owned(),
            api_url: "y".to_owned(),
            slots: BTreeMap::new(),
        };
        // Both in one: this node asks itself as its members ask each other.
        let consents = async |peers: &HttpPeers| peers.ask_consent(&url, &request).await.is_ok();
        assert!(consents(&doors.peers).await);
        let as_before = peers(&old);

        fs::write(dir.path().join("both.pem"), "garbage").unwrap();
        reload(&new).unwrap_err();
        assert!(consents(&doors.peers).await && consents(&as_before).await);
        let mut headless = new.clone();
        headless.restapi.http_headers = vec![("a b".to_owned(), "c".to_owned())];
        certify(dir.path());
        reload(&headless).unwrap_err();
        assert!(consents(&doors.peers).await && consents(&as_before).await);

        reload(&new).unwrap();
        assert!(consents(&doors.peers).await && !consents(&as_before).await);
        // With today's certificate and yesterday's password.
        assert!(!consents(&peers(&old)).await);
    }
}
