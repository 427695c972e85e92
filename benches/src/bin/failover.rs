//! Measures how long a cluster takes no writes, side by side with its peer.
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use spilo_benches::analysis::Spread;
use spilo_benches::chance::Chance;
use spilo_benches::clock::wall_us;
use spilo_benches::failover::{Contender, Fault, Measure, Measured};
use spilo_benches::idle::Idle;
use spilo_benches::{Cluster, Kind, StoreKind};

/// Runs faults on a real store with one writer per node every 10 ms, and prints what each cost.
/// Ends with status 1 where spilo missed a target.
#[derive(Debug, Parser)]
#[command(name = "failover")]
struct Options {
    /// The faults, in order.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "switchover,postmaster,node,packets,agent-killed,agent-frozen"
    )]
    faults: Vec<Fault>,
    /// How often each fault is run.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// spilo's leases in seconds, one column each; 0 leaves spilo out.
    #[arg(long, value_delimiter = ',', default_value = "10,3")]
    ttl: Vec<u64>,
    /// The stores that the clusters agree through, columns of their own each; etcd's stand beside
    /// every other's.
    #[arg(long, value_delimiter = ',', default_value = "etcd")]
    dcs: Vec<StoreKind>,
    /// Runs the peer as well, at its defaults and at its floor.
    #[arg(long)]
    vs: Option<Peer>,
    /// How many times the peer runs each fault; as often as spilo where not given.
    #[arg(long)]
    peer_runs: Option<usize>,
    /// How many clusters are started from nothing only to take the time.
    #[arg(long, default_value_t = 2)]
    starts: usize,
    /// For how many seconds each contender is watched while idle; 0 for not at all.
    #[arg(long, default_value_t = 30)]
    idle: u64,
    /// Writes everything measured to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Repeats the moments of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Peer {
    /// Stock Patroni, found through `SPILO_PATRONI_BIN`.
    Patroni,
}

struct Column {
    contender: Contender,
    runs: usize,
    starts_ms: Vec<u64>,
    idle: Option<Idle>,
    rows: Vec<(Fault, Vec<Measure>)>,
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

/// Measures everything asked for, and returns whether all targets were met. An error ends the
/// measuring; what was measured until then is printed and written all the same.
async fn run(options: &Options) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(wall_us);
    eprintln!("seed {seed} (repeat with --seed {seed})");
    let mut chance = Chance::seeded(seed);
    let ours = options
        .ttl
        .iter()
        .filter(|ttl| **ttl > 0)
        .map(|ttl| (Contender::spilo(*ttl), options.runs));
    let peers = options.vs.map(|Peer::Patroni| {
        let runs = options.peer_runs.unwrap_or(options.runs);
        [
            (Contender::patroni(), runs),
            (Contender::patroni_floor(), runs),
        ]
    });
    let contenders: Vec<_> = ours.chain(peers.into_iter().flatten()).collect();
    let mut stores = options.dcs.clone();
    if !stores.contains(&StoreKind::Etcd) {
        stores.insert(0, StoreKind::Etcd);
    }
    let on_each_store = stores.into_iter().flat_map(|store| {
        let contenders = contenders.iter();
        contenders.map(move |(contender, runs)| (contender.clone().on(store), *runs))
    });
    let mut columns: Vec<Column> = on_each_store
        .map(|(contender, runs)| Column {
            contender,
            runs,
            starts_ms: Vec::new(),
            idle: None,
            rows: Vec::new(),
        })
        .collect();
    let mut ended = Ok(());
    for column in &mut columns {
        ended = column
            .measure(options, &mut chance)
            .await
            .with_context(|| column.contender.label.clone());
        if ended.is_err() {
            break;
        }
    }
    let missed: Vec<String> = columns.iter().flat_map(Column::missed).collect();
    println!("{}", table(&columns, &options.faults));
    if let Some(path) = &options.json {
        let columns: Vec<Value> = columns.iter().map(Column::as_json).collect();
        let all = json!({ "seed": seed, "columns": columns, "missed": missed });
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !missed.is_empty() {
        println!("\ntargets missed:");
        missed.iter().for_each(|what| println!("- {what}"));
    } else if ended.is_ok() {
        println!("\nall targets met");
    }
    ended.map(|()| missed.is_empty())
}

impl Column {
    async fn measure(&mut self, options: &Options, chance: &mut Chance) -> Result<()> {
        for _ in 0..options.starts {
            drop(self.start(false).await?);
        }
        let mut cluster: Option<(bool, Cluster)> = None;
        if options.idle > 0 {
            let idle = self.start(false).await?;
            // Start-up is over when nothing has changed for a while.
            tokio::time::sleep(Duration::from_secs(15)).await;
            let measured = Idle::measure(&idle, Duration::from_secs(options.idle)).await?;
            eprintln!("{}: idle: {measured:?}", self.contender.label);
            self.idle = Some(measured);
            cluster = Some((false, idle));
        }
        for fault in &options.faults {
            let namespaces = fault.needs_namespaces();
            let fitting = cluster.take().filter(|(kind, _)| *kind == namespaces);
            let current = match fitting {
                Some((_, cluster)) => cluster,
                None => self.start(namespaces).await?,
            };
            self.rows.push((*fault, Vec::new()));
            for run in 1..=self.runs {
                let measure = fault.measure(&current, &self.contender, chance).await?;
                eprintln!(
                    "{}: {fault} {run}/{}: gap {} ms, two primaries {} rows, lost {} rows, \
                     back after {} ms",
                    self.contender.label,
                    self.runs,
                    measure.gap_ms,
                    measure.two_primaries,
                    measure.lost,
                    measure.back_ms
                );
                // One by one, so that an error in the next run does not lose them.
                let row = self.rows.last_mut().context("a row was just begun")?;
                row.1.push(measure);
            }
            cluster = Some((namespaces, current));
        }
        Ok(())
    }

    async fn start(&mut self, namespaces: bool) -> Result<Cluster> {
        let (cluster, ms) = self.contender.start(namespaces).await?;
        eprintln!(
            "{}: three streaming nodes from nothing in {ms} ms",
            self.contender.label
        );
        self.starts_ms.push(ms);
        Ok(cluster)
    }

    fn missed(&self) -> Vec<String> {
        let measured = Measured {
            contender: &self.contender,
            starts_ms: &self.starts_ms,
            idle: self.idle.as_ref(),
            faults: &self.rows,
        };
        measured.missed()
    }

    fn of(&self, fault: Fault) -> &[Measure] {
        self.rows
            .iter()
            .find(|(row, _)| *row == fault)
            .map_or(&[], |(_, measures)| measures)
    }

    fn as_json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(fault, runs)| json!({ "fault": fault, "runs": runs }))
            .collect();
        json!({
            "label": self.contender.label,
            "ttl": self.contender.ttl,
            "starts_ms": self.starts_ms,
            "idle": self.idle,
            "faults": rows,
        })
    }
}

/// Returns a table in Markdown: a row per fault and measure, a column per contender, and a ratio
/// per peer.
fn table(columns: &[Column], faults: &[Fault]) -> String {
    let peers = columns
        .iter()
        .filter(|column| column.contender.kind == Kind::Patroni);
    let ratios = peers.map(|peer| format!("spilo / {}", peer.contender.label));
    let labels = columns.iter().map(|column| column.contender.label.clone());
    let head = std::iter::once("min / median / max".to_owned())
        .chain(labels)
        .chain(ratios);
    let head: Vec<String> = head.collect();
    let mut lines = vec![row(&head), format!("|{}", "---|".repeat(head.len()))];
    let mut add = |name: &str, of: &dyn Fn(&Column) -> Option<Spread>| {
        if columns.iter().any(|column| of(column).is_some()) {
            lines.push(line(columns, name, of));
        }
    };
    add("three streaming nodes from nothing, ms", &|column| {
        Spread::of(column.starts_ms.iter().copied())
    });
    add(
        "agent and guard: memory, KiB",
        &idle(|idle| Some(idle.memory_kib)),
    );
    add(
        "agent and guard: idle, µs of CPU a second",
        &idle(|idle| Some(idle.cpu_us_per_s)),
    );
    add(
        "one empty wake of a thread on this machine, µs of CPU",
        &idle(|idle| Some(idle.empty_wake_us)),
    );
    add(
        "etcd calls a minute, three idle nodes",
        &idle(|idle| idle.etcd_calls_per_minute),
    );
    for fault in faults {
        let of = |pick: fn(&Measure) -> u64| {
            move |column: &Column| Spread::of(column.of(*fault).iter().map(pick))
        };
        add(&format!("{fault}: gap, ms"), &of(|run| run.gap_ms));
        add(
            &format!("{fault}: rows of two primaries"),
            &of(|run| run.two_primaries as u64),
        );
        add(
            &format!("{fault}: acknowledged rows lost"),
            &of(|run| run.lost as u64),
        );
        add(
            &format!("{fault}: old node streams again, ms"),
            &of(|run| run.back_ms),
        );
    }
    lines.join("\n")
}

/// Returns one measure of all contenders, and what spilo's median is of each peer's.
fn line(columns: &[Column], name: &str, of: &dyn Fn(&Column) -> Option<Spread>) -> String {
    let ours = columns
        .iter()
        .find(|column| column.contender.kind == Kind::Spilo)
        .and_then(of);
    let peers = columns
        .iter()
        .filter(|column| column.contender.kind == Kind::Patroni);
    let ratio = |peer: &Column| match (ours, of(peer)) {
        (Some(own), Some(peer)) if peer.median > 0 => {
            format!("{:.3}", as_f64(own.median) / as_f64(peer.median))
        }
        _ => "-".to_owned(),
    };
    let value = |column: &Column| of(column).map_or_else(|| "-".to_owned(), |s| s.to_string());
    let cells = columns.iter().map(value).chain(peers.map(ratio));
    row(&std::iter::once(name.to_owned())
        .chain(cells)
        .collect::<Vec<_>>())
}

fn idle(pick: fn(&Idle) -> Option<u64>) -> impl Fn(&Column) -> Option<Spread> {
    move |column| Spread::of(column.idle.as_ref().and_then(pick))
}

fn row(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of minutes fit a double exactly"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}
