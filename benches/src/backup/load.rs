//! A server under load, and how far its archive is behind.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::calls::{Calls, Resident, Subject};
use super::contender::Contender;
use super::server::Server;
use super::site::{Site, postgres_bin};

/// A load to put on a server.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How long it lasts.
    pub span: Duration,
}

/// How far an archive was behind.
#[derive(Clone, Debug, Serialize)]
pub struct Backlog {
    /// Whose archive.
    pub contender: Contender,
    /// The most files of the log that waited at a moment.
    pub most: usize,
    /// How many waited ten seconds after the end.
    pub left: usize,
    /// How many files of the log the server wrote.
    pub written: u64,
    /// Transactions a second.
    pub tps: f64,
}

impl Load {
    /// Puts the load on a new server that archives with a tool, and watches.
    ///
    /// # Errors
    ///
    /// Fails where the server or its load does.
    pub fn watch(self, site: &Site, contender: Contender) -> Result<Backlog> {
        let home = site.dir().join(format!("load-{}", contender.slug()));
        let mut server = Server::create(&home, &postgres_bin(15)?, site.owner)?;
        let scale = site.options.data_mb.div_ceil(15).max(1).to_string();
        server.pgbench(&["-i", "-q", "-s", &scale])?;
        let (data, restored) = (server.data(), site.restored());
        let subject = Subject {
            server: &server,
            pushed: &data,
            fetched: &restored,
        };
        let prefix = format!("load-{}", contender.slug());
        let calls = Calls::of(contender, site, subject, &prefix)?;
        let resident = calls.resident.as_ref();
        let companion = resident.map(|resident| start(site, &calls, resident));
        let companion = companion.transpose()?;
        server.sql("CHECKPOINT")?;
        server.archive_with(&calls.archive_script())?;
        let before = written(&server)?;
        let (most, tps) = self.sample(&server)?;
        std::thread::sleep(AFTER);
        let backlog = Backlog {
            contender,
            most,
            left: server.waiting(),
            written: written(&server)?.saturating_sub(before),
            tps,
        };
        drop(companion);
        server.stop()?;
        site.store.forget(&format!("{prefix}/"))?;
        Ok(backlog)
    }

    /// Returns the most files that waited, and the transactions a second.
    fn sample(self, server: &Server) -> Result<(usize, f64)> {
        let seconds = self.span.as_secs().to_string();
        std::thread::scope(|scope| {
            let load =
                scope.spawn(|| server.pgbench(&["-c", "8", "-j", "2", "-n", "-T", &seconds]));
            let mut most = 0;
            while !load.is_finished() {
                let began = Instant::now();
                most = most.max(server.waiting());
                std::thread::sleep(BETWEEN_SAMPLES.saturating_sub(began.elapsed()));
            }
            let said = load.join();
            let said = said.map_err(|_| anyhow::anyhow!("the thread of pgbench failed"))??;
            let tps = said.lines().find_map(|line| line.strip_prefix("tps = "));
            let tps = tps.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            Ok((most, tps.context("pgbench names no tps")?))
        })
    }
}

impl Backlog {
    /// Reports whether the acceptance holds: never more than eight behind, and level in the end.
    pub fn holds(&self) -> bool {
        self.most <= 8 && self.left == 0
    }
}

/// Returns how many files of the log the server has begun.
fn written(server: &Server) -> Result<u64> {
    let text = server.sql("SELECT (pg_current_wal_lsn() - '0/0') / (16 * 1024 * 1024)")?;
    let whole = text.split('.').next().unwrap_or_default();
    whole.parse().context("the server names no position")
}

fn start(site: &Site, calls: &Calls, resident: &Resident) -> Result<super::trial::Companion> {
    super::trial::Companion::start(site, calls, resident, None, &site.dir().join("load.log"))
}

const BETWEEN_SAMPLES: Duration = Duration::from_millis(200);

/// How long after its end an archive must be level.
const AFTER: Duration = Duration::from_secs(10);
