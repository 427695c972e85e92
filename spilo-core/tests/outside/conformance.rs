//! The simulator's servers pass what real ones must pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Map;
use spilo_core::agent::Backends;
use spilo_core::conformance::postgres::{Laboratory, Node};
use spilo_core::pg::Upstream;
use spilo_core::sim::{Outside, Row, Sim};
use spilo_core::{DynamicConfig, Guard, NodeTime, Postgres};

const NAMES: [&str; 3] = ["a", "b", "c"];

async fn laboratory() -> Box<dyn Laboratory> {
    tokio::time::pause();
    Box::new(Simulated(Arc::new(Cluster {
        outside: Outside::new(Sim::new(NAMES, 10)),
        rows: Mutex::default(),
    })))
}

spilo_core::postgres_conformance!(laboratory());

#[derive(Debug)]
struct Simulated(Arc<Cluster>);

#[derive(Debug)]
struct Cluster {
    outside: Outside,
    rows: Mutex<BTreeMap<u64, Row>>,
}

#[derive(Debug)]
struct Server {
    cluster: Arc<Cluster>,
    number: usize,
    backends: Backends,
}

impl Cluster {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<u64, Row>> {
        self.rows.lock().unwrap()
    }
}

#[async_trait]
impl Laboratory for Simulated {
    async fn node(&self, name: &str) -> Box<dyn Node> {
        let number = NAMES.iter().position(|known| *known == name).unwrap();
        Box::new(Server {
            cluster: Arc::clone(&self.0),
            number,
            backends: self.0.outside.backends(number),
        })
    }

    async fn sleep(&self, span: Duration) {
        self.0.outside.run_for(span).await;
    }
}

#[async_trait]
impl Node for Server {
    fn postgres(&self) -> &dyn Postgres {
        &*self.backends.postgres
    }

    fn guard(&self) -> &dyn Guard {
        &*self.backends.guard
    }

    fn now(&self) -> NodeTime {
        self.backends.clock.now()
    }

    fn upstream(&self) -> Upstream {
        let identity = self.cluster.outside.identity(self.number);
        Upstream {
            name: identity.name,
            conn_url: identity.conn_url,
        }
    }

    fn config(&self) -> Arc<DynamicConfig> {
        Arc::new(DynamicConfig::seed(&Map::new()).unwrap())
    }

    async fn write(&self, row: u64) -> bool {
        let committed = self.cluster.outside.change(|sim| sim.commit(self.number));
        if let Some(place) = committed {
            self.cluster.rows().insert(row, place);
        }
        committed.is_some()
    }

    async fn rows(&self) -> BTreeSet<u64> {
        let rows = self.cluster.rows();
        let reads = |row: &Row| {
            self.cluster
                .outside
                .look(|sim| sim.reads(self.number, *row))
        };
        let there = rows.iter().filter(|(_, row)| reads(row));
        there.map(|(number, _)| *number).collect()
    }
}
