//! Clusters of agents under fire.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use spilo_core::sim::Plan;

use super::Journals;

/// `SPILO_SEED` runs one seed alone, and `SPILO_JOURNALS` names a directory for what its agents
/// recorded, to be read with `explain`.
#[test]
fn agents_survive_what_seeds_do_to_them() {
    let one = told("SPILO_SEED").map(|seed| seed.to_str().unwrap().parse().unwrap());
    let seeds = one.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let mut steps = 0;
    let mut broken = Vec::new();
    for seed in seeds {
        match run(seed) {
            Ok(taken) => steps += taken,
            Err(problem) => {
                eprintln!("{problem}\n{REPEAT}={seed} {COMMAND}\n");
                broken.push(seed);
            }
        }
    }
    eprintln!("{steps} steps were replayed");
    assert!(
        broken.is_empty() && steps > 0,
        "broken by the seeds {broken:?}"
    );
}

/// Runs a plan with agents, and replays what they recorded; returns how many steps they took.
fn run(seed: u64) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let journals = Journals::default();
    let kept = journals.clone();
    let mut plan = Plan::from_seed(seed);
    plan.seconds = SECONDS;
    let outcome = runtime.block_on(plan.run_agents(move |node, agent| kept.kept_by(node, agent)));
    if let Some(directory) = told("SPILO_JOURNALS") {
        journals.write_to(Path::new(&directory));
    }
    outcome.map_err(|violation| violation.to_string())?;
    journals.replay()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one who repeats a test says so from outside"
)]
fn told(name: &str) -> Option<OsString> {
    env::var_os(name)
}

const SEEDS: u64 = 100;

/// Shorter than what bare machines are put to: every step is recorded, and taken again.
const SECONDS: u64 = 100;

const REPEAT: &str = "to repeat it: SPILO_SEED";

const COMMAND: &str =
    "cargo nextest run -p spilo-core --all-features --test outside agents_survive";
