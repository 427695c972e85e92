//! Runs simulated clusters under fire: `simulate --help`.

#![expect(clippy::print_stdout, reason = "its tables are what it is for")]

mod picture;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressStyle};
use spilo_core::decide::Rule;
use spilo_core::sim::{FaultKind, Outcome, Plan, failover_ms};

/// Simulates clusters under faults that are drawn from seeds.
///
/// Each seed draws a cluster, how fast and how reliable everything is, which faults there are and
/// when they strike; then the faults end, and the cluster must mend itself. The run ends with the
/// first seed in which an invariant breaks, with the story of what led to it and the command that
/// repeats it.
///
/// Examples:
///   simulate --seeds 20000             runs the seeds 0 to 19999
///   simulate --seeds 20000 --from 8000 goes on at 8000
///   simulate --seed 4711               runs one, and says what it is
///   simulate --only kill-node,wipe     lets only these faults strike
///   simulate --failover --svg time.svg measures how long failovers take
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment)]
struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs this seed alone
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Lets only these kinds of fault strike, in all seeds
    #[arg(long, value_delimiter = ',', value_parser = kinds())]
    only: Vec<String>,
    /// Lets these kinds of fault never strike
    #[arg(long, value_delimiter = ',', value_parser = kinds())]
    without: Vec<String>,
    /// The time to live in seconds, in all seeds
    #[arg(long)]
    ttl: Option<u64>,
    /// How many seeds run at once
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Goes on after a violation, and tells only the first line of each
    #[arg(long)]
    go_on: bool,
    /// Fails if a rule was never decided by
    #[arg(long)]
    all_rules: bool,
    /// Measures instead how long failovers take, with and without hints from the store
    #[arg(long)]
    failover: bool,
    /// Fails unless the failover times are exactly the table in this file, of ttl 3 and 10
    #[arg(long, requires = "failover")]
    expect: Option<std::path::PathBuf>,
    /// Where to draw the failover times
    #[arg(long, requires = "failover")]
    svg: Option<std::path::PathBuf>,
}

/// What all seeds so far came to.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    elapsed: Duration,
    promotions: u64,
    rows: u64,
    lost: u64,
    steps: u64,
    rules: BTreeSet<Rule>,
    /// The seeds that broke an invariant, with the story.
    broken: Vec<(u64, String)>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = if options.failover {
        failover(&options)
    } else {
        Ok(seeds(&options))
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn seeds(options: &Options) -> bool {
    let (first, count) = match options.seed {
        Some(seed) => (seed, 1),
        None => (options.from, options.seeds),
    };
    let end = first.saturating_add(count);
    let bar = ProgressBar::new(count).with_style(style());
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let broken = !locked(&sum).broken.is_empty();
                    if seed >= end || (broken && !options.go_on) {
                        return;
                    }
                    let outcome = options.plan(seed).run();
                    let done = locked(&sum).add(seed, outcome.map_err(|v| v.to_string()));
                    bar.inc(1);
                    if bar.is_hidden() && done.is_multiple_of(NEWS_EVERY) {
                        // Others may still be at work on seeds shortly before this one.
                        let from = seed.saturating_sub(options.threads as u64).max(first);
                        eprintln!("{done} of {count} seeds; to go on from here: --from {from}");
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let sum = sum
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    sum.tell(first, begun.elapsed(), options.go_on);
    let missing: Vec<_> = Rule::ALL
        .iter()
        .filter(|rule| !sum.rules.contains(rule) && **rule != UNREACHABLE)
        .map(|rule| rule.as_str())
        .collect();
    if options.all_rules && !missing.is_empty() {
        eprintln!("error: never decided by: {}", missing.join(", "));
        return false;
    }
    sum.broken.is_empty()
}

fn locked(sum: &Mutex<Sum>) -> std::sync::MutexGuard<'_, Sum> {
    sum.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Options {
    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::from_seed(seed);
        if !self.only.is_empty() {
            plan.kinds = named(&self.only);
        }
        let without = named(&self.without);
        plan.kinds.retain(|kind| !without.contains(kind));
        plan.ttl = self.ttl.unwrap_or(plan.ttl);
        plan
    }
}

impl Sum {
    /// Returns how many seeds there are now.
    fn add(&mut self, seed: u64, outcome: Result<Outcome, String>) -> u64 {
        self.seeds += 1;
        match outcome {
            Ok(outcome) => {
                self.elapsed += outcome.elapsed;
                self.promotions += outcome.promotions;
                self.rows += outcome.rows.0;
                self.lost += outcome.rows.1;
                self.steps += outcome.steps;
                self.rules.extend(outcome.rules);
            }
            Err(story) => self.broken.push((seed, story)),
        }
        self.seeds
    }

    fn tell(&self, first: u64, took: Duration, short: bool) {
        for (seed, story) in &self.broken {
            if short {
                let what = story.lines().next().unwrap_or_default();
                eprintln!("seed {seed}: {what}");
                continue;
            }
            eprintln!("{story}\nto repeat it: cargo xtask sim --seed {seed}\n");
        }
        let hours = self.elapsed.as_secs_f64() / 3600.0;
        let minutes = took.as_secs_f64() / 60.0;
        println!(
            "{} seeds from {first}: {hours:.1} hours simulated in {:.1} s ({:.0} hours a minute), \
             {} steps, {} promotions, {} rows acknowledged, {} left behind by failovers, {} of {} \
             rules, {} violations",
            self.seeds,
            took.as_secs_f64(),
            hours / minutes,
            self.steps,
            self.promotions,
            self.rows,
            self.lost,
            self.rules.len(),
            Rule::ALL.len(),
            self.broken.len(),
        );
    }
}

fn failover(options: &Options) -> Result<bool> {
    let mut columns = Vec::new();
    let ttls = match (options.ttl, &options.expect) {
        (Some(ttl), _) => vec![ttl],
        (None, Some(_)) => vec![3, 10],
        (None, None) => vec![3, 10, 30],
    };
    for ttl in ttls {
        for hints in [true, false] {
            let times = failover_ms(ttl, hints, options.seeds);
            columns.push((format!("ttl {ttl}, hints {hints}"), times));
        }
    }
    let table = picture::table(&columns);
    print!("{table}");
    if let Some(path) = &options.expect {
        let expected = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if expected != table {
            eprintln!(
                "error: the failover times are not those of {}, which are\n{expected}",
                path.display()
            );
            return Ok(false);
        }
        return Ok(true);
    }
    for (name, times) in &columns {
        print!("{}", picture::bars(name, times));
    }
    if let Some(path) = &options.svg {
        std::fs::write(path, picture::svg(&columns))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(true)
}

/// A second lock on a door that is closed: whoever promises has neither the lock nor an attempt to
/// take it under way, and whoever promised makes none. A row of its own tests it.
const UNREACHABLE: Rule = Rule::PromisedHolder;

/// After how many seeds there is a line of news where there is no terminal to draw a bar on.
const NEWS_EVERY: u64 = 1000;

fn kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(FaultKind::ALL.map(FaultKind::as_str))
}

fn named(names: &[String]) -> Vec<FaultKind> {
    let all = FaultKind::ALL.into_iter();
    all.filter(|kind| names.iter().any(|name| name == kind.as_str()))
        .collect()
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
