//! Runs every fault of the guard and of the store many times over, and fails where anything is
//! written too late.
#![expect(
    clippy::print_stdout,
    reason = "the tables are what this program is for"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;
use spilo_benches::Kind;
use spilo_benches::chaos::{Fault, Plan, Report};
use spilo_benches::clock::wall_us;
use spilo_benches::store_faults::{StoreFault, StorePlan, StoreReport};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Kills and freezes agents, guards, servers and etcd, with a paced writer per node and loops
/// inside the server; the server's own write-ahead log is the witness. Ends with status 1 where a
/// fault violated a promise.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Options {
    /// How often each fault is run.
    #[arg(long, default_value_t = 20)]
    repeat: usize,
    /// How often each fault of the store is run; these take minutes.
    #[arg(long, default_value_t = 3)]
    store_repeat: usize,
    /// The lease in seconds.
    #[arg(long, default_value_t = 10)]
    ttl: u64,
    /// How many clusters are run at once; the one with 300 busy backends runs alone.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only these faults of the guard; `none` for no fault.
    #[arg(long, value_delimiter = ',')]
    faults: Option<Vec<String>>,
    /// Only these faults of the store; `none` for no fault.
    #[arg(long, value_delimiter = ',')]
    store_faults: Option<Vec<String>>,
    /// For how many seconds all of etcd is gone, or its domain.
    #[arg(long, default_value_t = 60)]
    outage: u64,
    /// Runs the faults of the guard against Patroni instead, to see the witnesses object.
    #[arg(long)]
    patroni: bool,
    /// Repeats the moments of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes everything seen to a file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything asked for; a fault that cannot be run to its end is reported, and the others
/// still run.
async fn run(options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(wall_us);
    let kind = if options.patroni {
        Kind::Patroni
    } else {
        Kind::Spilo
    };
    let mut wrong = Vec::new();
    let jobs = Jobs::new(options.jobs);
    let (mut of_guard, mut of_store) = (Vec::new(), Vec::new());
    for fault in chosen::<Fault>(options.faults.as_deref())? {
        let plan = Plan::new(fault, options.ttl)
            .repeat(options.repeat)
            .kind(kind)
            .seed(seed);
        let alone = fault == Fault::BusyBackends;
        of_guard.push(jobs.start(alone, async move { plan.run().await }));
    }
    for fault in chosen::<StoreFault>(options.store_faults.as_deref())? {
        let repeat = if fault == StoreFault::BootstrapKilled {
            options.repeat
        } else {
            options.store_repeat
        };
        let plan = StorePlan::new(fault, options.ttl)
            .repeat(repeat)
            .outage(Duration::from_secs(options.outage));
        of_store.push(jobs.start(false, async move { plan.run().await }));
    }
    let reports = gather(of_guard, Report::violations, &mut wrong).await;
    let store_reports = gather(of_store, StoreReport::violations, &mut wrong).await;
    print(&reports, &store_reports, &wrong);
    if let Some(path) = &options.json {
        let all = json!({ "seed": seed, "guard": reports, "store": store_reports, "wrong": wrong });
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(wrong.is_empty())
}

/// Waits for all jobs. Returns what was reported, and notes what was wrong.
async fn gather<R>(
    jobs: Vec<JoinHandle<Result<R>>>,
    violations: fn(&R) -> Vec<String>,
    wrong: &mut Vec<String>,
) -> Vec<R> {
    let mut reports = Vec::new();
    for job in jobs {
        match job.await.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(report) => {
                wrong.extend(violations(&report));
                reports.push(report);
            }
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    reports
}

/// Clusters that run at once.
struct Jobs {
    places: Arc<Semaphore>,
    all: u32,
}

impl Jobs {
    fn new(jobs: usize) -> Self {
        let all = u32::try_from(jobs.max(1)).unwrap_or(u32::MAX);
        let places = Arc::new(Semaphore::new(jobs.max(1)));
        Self { places, all }
    }

    fn start<T: Send + 'static>(
        &self,
        alone: bool,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let places = Arc::clone(&self.places).acquire_many_owned(if alone { self.all } else { 1 });
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _place = places.await.ok();
            work.await
        })
    }
}

fn chosen<T: ValueEnum>(names: Option<&[String]>) -> Result<Vec<T>> {
    let Some(names) = names else {
        return Ok(T::value_variants().to_vec());
    };
    let names = names.iter().filter(|name| *name != "none");
    names
        .map(|name| T::from_str(name, true).map_err(anyhow::Error::msg))
        .collect()
}

fn print(reports: &[Report], store_reports: &[StoreReport], wrong: &[String]) {
    if !reports.is_empty() {
        println!("{}", Report::table_head());
        reports
            .iter()
            .for_each(|report| println!("{}", report.table_row()));
    }
    if !store_reports.is_empty() {
        println!("\n{}", StoreReport::table_head());
        store_reports
            .iter()
            .for_each(|report| println!("{}", report.table_row()));
    }
    if wrong.is_empty() {
        println!("\nno violation");
    } else {
        println!("\n{} violations:", wrong.len());
        wrong.iter().for_each(|what| println!("- {what}"));
    }
}
