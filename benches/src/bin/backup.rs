//! Measures archiving tools side by side.
#![expect(
    clippy::print_stdout,
    reason = "the tables are what this program is for"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;
use spilo_benches::backup::{
    self, Backlog, Contender, FloorCodec, FloorTask, Load, Row, Sample, Site, SiteOptions, Summary,
    Trial, Verdict,
};

/// Pushes and fetches the same log and the same base backups with every tool in turn, on one store
/// that speaks S3 over TLS, and prints what each took, beside what it takes without any tool.
#[derive(Debug, Parser)]
#[command(name = "backup", after_help = MANUAL, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// The peers that are measured as well.
    #[arg(long, value_delimiter = ',')]
    vs: Vec<Peer>,
    /// How many rounds there are. The acceptance asks for seven.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// The rows that are measured. A fetch needs its push.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "wal-push,wal-fetch,backup-push,backup-fetch"
    )]
    rows: Vec<Row>,
    /// How many files of the log are pushed and fetched.
    #[arg(long, default_value_t = 64)]
    segments: usize,
    /// About how large the server's data are.
    #[arg(long, default_value_t = 500, value_name = "MB")]
    data_mb: usize,
    /// How many transfers spilo, pgBackRest and the floor have on their way at the same time.
    /// WAL-E has its own numbers.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// How long the store waits before it answers a request, as a distant one does.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    latency_ms: u64,
    /// Measures spilo with WAL-E's codec too.
    #[arg(long)]
    lzo: bool,
    /// Runs spilo's commands alone, without its resident archiver.
    #[arg(long)]
    no_resident: bool,
    /// Instead of the rows: puts `pgbench -c 8` on a server for so long, and watches how far the
    /// archive is behind. The acceptance asks for 300.
    #[arg(long, value_name = "SECONDS")]
    load: Option<u64>,
    /// Exits with 1 where the acceptance does not hold.
    #[arg(long)]
    check: bool,
    /// Writes everything measured to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Peer {
    /// Stock WAL-E, found through `SPILO_WAL_E_BIN`.
    WalE,
    /// Stock pgBackRest, found on the path.
    Pgbackrest,
}

/// What this program is when it starts itself.
#[derive(Debug, Subcommand)]
enum Part {
    /// The store.
    #[command(hide = true)]
    ServeStore {
        #[arg(long)]
        certificates: PathBuf,
        #[arg(long)]
        latency_ms: u64,
    },
    /// Whoever calls the tools.
    #[command(hide = true)]
    Drive,
    /// What is done without any tool.
    #[command(hide = true)]
    Floor(FloorTask),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.part {
        Some(part) => become_part(part).map(|()| true),
        None => measure(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn become_part(part: &Part) -> Result<()> {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
    };
    match part {
        Part::Drive => backup::drive(),
        Part::Floor(task) => backup::floor(task),
        Part::ServeStore {
            certificates,
            latency_ms,
        } => {
            let latency = Duration::from_millis(*latency_ms);
            let runtime = runtime()?;
            let outcome = runtime.block_on(backup::store::serve(certificates, latency));
            // A thread still waits for the end of the input.
            runtime.shutdown_background();
            outcome
        }
    }
}

/// Measures, and returns whether the acceptance holds where that was asked.
fn measure(options: &Options) -> Result<bool> {
    if options.runs == 0 || options.segments == 0 {
        bail!("--runs and --segments begin at 1");
    }
    if options.check && options.load.is_none() && options.vs.is_empty() {
        bail!("--check compares with peers; name them with --vs wal-e,pgbackrest");
    }
    let contenders = options.contenders();
    let site_options = SiteOptions {
        data_mb: options.data_mb,
        segments: options.segments,
        parallel: options.parallel,
        latency: Duration::from_millis(options.latency_ms),
    };
    let mut site = Site::prepare(site_options, &contenders)?;
    if options.no_resident {
        site.without_resident();
    }
    let measured = match options.load {
        Some(seconds) => watch(options, &site, &contenders, seconds),
        None => rounds(options, &site, &contenders),
    };
    measured.with_context(|| format!("logs in {}", site.keep().display()))
}

fn rounds(options: &Options, site: &Site, contenders: &[Contender]) -> Result<bool> {
    let mut samples = Vec::new();
    for round in 1..=options.runs {
        for rows in [
            [Row::WalPush, Row::WalFetch],
            [Row::BackupPush, Row::BackupFetch],
        ] {
            let mut order = contenders.to_vec();
            // Nobody is always the first after the others.
            order.rotate_left((round - 1) % contenders.len());
            for row in rows.iter().filter(|row| options.rows.contains(row)) {
                for contender in &order {
                    let cost = Trial::new(site, *contender, round).run(*row)?;
                    eprintln!(
                        "round {round} of {}: {row}: {contender} ({}): {:.2} s",
                        options.runs,
                        contender.codec(),
                        Duration::from_micros(cost.wall_us).as_secs_f64()
                    );
                    samples.push(Sample {
                        round,
                        row: *row,
                        contender: *contender,
                        cost,
                    });
                }
            }
            for contender in &order {
                Trial::new(site, *contender, round).forget()?;
            }
        }
    }
    let summary = Summary {
        bytes: ((site.segments() as u64) << 24, site.backup_bytes()),
        segments: site.segments(),
        samples,
    };
    println!("{}", options.introduction(site));
    println!("{}", summary.tables(contenders));
    let verdicts = summary.verdicts(contenders);
    for Verdict { row, holds, reason } in &verdicts {
        println!("{} {row}: {reason}", said(*holds));
    }
    let resident = site.is_resident();
    options.write(&json!({ "resident": resident, "summary": summary, "verdicts": verdicts }))?;
    Ok(!options.check || (!verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.holds)))
}

fn watch(options: &Options, site: &Site, contenders: &[Contender], seconds: u64) -> Result<bool> {
    let load = Load {
        span: Duration::from_secs(seconds),
    };
    let mut backlogs: Vec<Backlog> = Vec::new();
    for contender in contenders {
        if !matches!(contender, Contender::Floor(_)) {
            eprintln!("pgbench -c 8 for {seconds} s, archived by {contender}");
            backlogs.push(load.watch(site, *contender)?);
        }
    }
    println!("{}\n", options.introduction(site));
    println!("| tool | codec | files of the log | most waiting | waiting 10 s after | tps |");
    println!("|---|---|---|---|---|---|");
    for backlog in &backlogs {
        println!(
            "| {} | {} | {} | {} | {} | {:.0} |",
            backlog.contender,
            backlog.contender.codec(),
            backlog.written,
            backlog.most,
            backlog.left,
            backlog.tps
        );
    }
    let ours = |backlog: &&Backlog| backlog.contender == Contender::Spilo(FloorCodec::Zstd);
    let holds = backlogs.iter().find(ours).is_some_and(Backlog::holds);
    println!(
        "\n{} spilo: never more than 8 files of the log behind, and level 10 s after the end",
        said(holds)
    );
    options.write(&json!({ "resident": site.is_resident(), "backlogs": backlogs }))?;
    Ok(!options.check || holds)
}

impl Options {
    fn contenders(&self) -> Vec<Contender> {
        let mut all = vec![
            Contender::Floor(FloorCodec::Zstd),
            Contender::Spilo(FloorCodec::Zstd),
        ];
        // Who compresses otherwise stands on a floor of its own.
        if self.lzo || self.vs.contains(&Peer::WalE) {
            all.insert(1, Contender::Floor(FloorCodec::Lzo));
        }
        if self.lzo {
            all.push(Contender::Spilo(FloorCodec::Lzo));
        }
        if self.vs.contains(&Peer::WalE) {
            all.push(Contender::WalE);
        }
        if self.vs.contains(&Peer::Pgbackrest) {
            all.push(Contender::PgBackRest);
        }
        all
    }

    /// Says what the figures are figures of.
    fn introduction(&self, site: &Site) -> String {
        let spilo = if site.is_resident() {
            "with its resident archiver"
        } else {
            "each command alone, without a resident archiver"
        };
        format!(
            "PostgreSQL 13 (15 under load), TLS for every tool, answers after {} ms, {} transfers \
             at the same time; spilo: {spilo}; WAL-E: its own 32, 8 and 4 transfers; pgBackRest: \
             archive-async.",
            self.latency_ms, self.parallel
        )
    }

    fn write(&self, value: &serde_json::Value) -> Result<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(value)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn said(holds: bool) -> &'static str {
    if holds { "HOLDS" } else { "FAILS" }
}

const MANUAL: &str = "\
The floor is what has to be done anyway: reading, compressing (with the same codec and level) and
sending, or the other way round, on all processors, in one process, without a question or a check.

Wall time runs from before the first command to after the last. Log is archived as the server does
it: a command for each file that is .ready, one after the other; a tool may be ahead. CPU is that of
every process of the tool, and of those that outlive the last command too; the archiving that a
server does during a base backup is not in it. Memory is that of all processes of the tool together,
looked at every 50 ms, or the peak of the greatest, if that is more. MB are of what is not
compressed. What was fetched is compared with what was pushed, byte by byte.

  cargo xtask bench backup --runs 1                    spilo and the floor, once
  cargo xtask bench backup --vs wal-e,pgbackrest --check
  cargo xtask bench backup --load 300 --check          how far the archive is behind under load

The tools run as the user postgres where this is root, whose rights it takes to count the processors'
time of what leaves its parent.";
