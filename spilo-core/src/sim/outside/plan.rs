//! Plans with the production driver in place of bare machines.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::plan::{Outcome, Plan, empty_lost_list, make_peace};
use super::super::{Chance, Sim, Violation};
use super::Outside;
use crate::agent::Agent;

impl Plan {
    /// Runs the plan with an [`Agent`] on each node, as [`run`](Self::run) does with machines. In
    /// what it comes to are neither rules nor steps: those are in the agents' journals, if
    /// `prepare` gives them any.
    ///
    /// # Errors
    /// The invariant that was broken, or what did not come in time, with the story.
    ///
    /// # Cancellation
    /// Safe to drop: everything ends.
    ///
    /// # Panics
    /// Outside a runtime of tokio; see [`Outside`] for which.
    pub async fn run_agents(
        &self,
        prepare: impl FnMut(usize, Agent) -> Agent + Send + 'static,
    ) -> Result<Outcome, Box<Violation>> {
        let mut chance = self.chance;
        let outside = Outside::with_agents(self.begin(&mut chance), prepare);
        let mut done = self.disturb_agents(&outside, &mut chance).await;
        if done.is_ok() {
            done = mend(&outside).await;
        }
        outside.change(|sim| {
            if let Err(what) = done {
                sim.break_with(what);
            }
            match sim.violation() {
                Some(violation) => Err(Box::new(violation)),
                None => Ok(Outcome {
                    elapsed: sim.elapsed(),
                    rules: BTreeSet::new(),
                    promotions: sim.promotions(),
                    rows: sim.rows(),
                    steps: 0,
                }),
            }
        })
    }

    async fn disturb_agents(&self, outside: &Outside, chance: &mut Chance) -> Result<(), String> {
        expect(outside, 60, "a new cluster is not healthy within a minute").await?;
        outside.change(|sim| sim.set_conditions(self.conditions.clone()));
        let end = Instant::now() + Duration::from_secs(self.seconds);
        while Instant::now() < end && !is_broken(outside) {
            let pause = Duration::from_millis(20 + chance.below(self.pause_ms));
            sleep(pause.min(end - Instant::now())).await;
            if !self.kinds.is_empty() {
                outside.change(|sim| self.strike(sim, chance));
            }
        }
        Ok(())
    }
}

async fn mend(outside: &Outside) -> Result<(), String> {
    outside.change(make_peace);
    if expect(outside, 60, "").await.is_err() {
        outside.change(empty_lost_list);
    }
    expect(outside, 120, "not healthy two minutes after the faults").await?;
    // A lease of before may end yet whose holder died before the guard had its secret.
    sleep(Duration::from_secs(40)).await;
    expect(outside, 60, "not healthy again").await?;
    sleep(Duration::from_secs(5)).await;
    if !outside.look(Sim::is_healthy) {
        return Err("it did not last".to_owned());
    }
    outside.look(Sim::unsound_in_peace).map_or(Ok(()), Err)
}

async fn expect(outside: &Outside, seconds: u32, what: &str) -> Result<(), String> {
    for _ in 0..seconds {
        if outside.wait(Duration::from_secs(1), Sim::is_healthy).await {
            return Ok(());
        }
        // An agent that was told to stop may still be doing so when its fault is over.
        outside.change(|sim| (0..sim.len()).for_each(|n| sim.start_agent(n)));
    }
    Err(what.to_owned())
}

fn is_broken(outside: &Outside) -> bool {
    outside.look(|sim| sim.violation.is_some())
}
