//! One node of a cluster, by the library alone. Several on one etcd fail over by themselves.
//!
//! Runs as a user who is not root, with PostgreSQL's programs in `PATH` and the password of its
//! superuser and of its replicas in `PGPASSWORD`.

use std::{env, future::pending, net::TcpListener, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Map;
use spilo_api::{Api, ApiOptions, HttpPeers, PeerOptions, serve};
use spilo_core::agent::{Agent, Backends};
use spilo_core::machine::{Exit, Identity, Order};
use spilo_core::{DynamicConfig, MemberName, Scope};
use spilo_dcs::{Etcd, EtcdOptions};
use spilo_pg::{BootClock, GuardKeeper, GuardOptions, LocalOptions};
use tokio::signal::ctrl_c;

fn main() -> Result<()> {
    spilo_pg::run_if_guard(); // First of all: the guard is this same program, in another process.
    let arguments = env::args().skip(1).collect::<Vec<_>>().try_into();
    let [name, data_dir, pg_port, api_port, etcd]: [String; 5] = arguments.map_err(usage)?;
    tracing_subscriber::fmt::init();
    let (scope, name) = (Scope::new("demo")?, MemberName::new(name)?);
    let mut local = LocalOptions::new(scope.clone(), name.clone(), data_dir, pg_port.parse()?);
    let guard = GuardOptions::new(local.guard_dir());
    local.superuser.password = Some(env::var("PGPASSWORD")?);
    local.replication.password = local.superuser.password.clone();
    let identity = Identity {
        scope: scope.clone(),
        name,
        conn_url: format!("postgres://127.0.0.1:{pg_port}/postgres"),
        api_url: format!("http://127.0.0.1:{api_port}/patroni"),
        proxy_url: None,
        tags: Map::new(),
        bootstrap: DynamicConfig::seed(&Map::new()).ok().map(Arc::new),
        fence_budget: Duration::from_millis(250),
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let (guard, postgres) =
            GuardKeeper::start(guard, local, Arc::new(BootClock::default())).await?;
        let backends = Backends {
            dcs: Arc::new(Etcd::new(EtcdOptions::new(scope, [etcd]))?),
            postgres,
            guard,
            peers: Arc::new(HttpPeers::new(PeerOptions::default())?),
            clock: Arc::new(BootClock::default()),
        };
        let (agent, handle) = Agent::new(identity, backends);
        let api = Api::new(Arc::new(handle.clone()), ApiOptions::default())?;
        let listener = TcpListener::bind(format!("127.0.0.1:{api_port}"))?;
        tokio::spawn(serve(listener, api.router(), None, pending()));
        // An order to stop: hand over, stop PostgreSQL, end.
        tokio::spawn(async move { ctrl_c().await.map(|()| handle.try_order(Order::Shutdown)) });
        ensure!(!matches!(agent.run().await, Exit::Fatal(_)), "cannot go on");
        Ok(())
    })
}

fn usage(_: Vec<String>) -> anyhow::Error {
    anyhow::anyhow!("usage: embed NAME DATA_DIR PG_PORT API_PORT ETCD")
}
