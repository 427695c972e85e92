//! What the driver must do well, as sentences.

use std::time::Duration;

use spilo_core::machine::{Exit, Order};
use spilo_core::sim::{Fault, Outside, Sim};

use super::Journals;

const NAMES: [&str; 3] = ["a", "b", "c"];

async fn three(ttl: u64) -> (Outside, usize) {
    let cluster = Outside::with_agents(Sim::new(NAMES, ttl), |_, agent| agent);
    cluster
        .run_until("a healthy cluster", 30, Sim::is_healthy)
        .await;
    cluster.run_for(Duration::from_secs(15)).await;
    let primary = cluster.look(Sim::primary).unwrap();
    (cluster, primary)
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_replaced_within_the_ttl_and_comes_back() {
    for ttl in [3, 10] {
        let (cluster, primary) = three(ttl).await;
        cluster.change(|sim| sim.begin(Fault::KillNode(primary)));
        let took = cluster
            .run_until("a successor", 40, |sim| sim.primary().is_some())
            .await;
        assert!(took <= ttl * 1000 + 500, "ttl {ttl}: {took} ms");
        cluster.change(|sim| sim.end(Fault::KillNode(primary)));
        cluster
            .run_until("a healthy cluster", 60, Sim::is_healthy)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_told_to_stop_hands_over_and_says_so() {
    let (cluster, primary) = three(10).await;
    cluster
        .handle(primary)
        .unwrap()
        .order(Order::Shutdown)
        .await;
    let exited = |sim: &Sim| sim.exited(primary) == Some(&Exit::Stopped);
    cluster.run_until("its end", 10, exited).await;
    let took = cluster
        .run_until("a successor", 10, |sim| sim.primary().is_some())
        .await;
    assert!(took < 1000, "{took} ms");
}

#[tokio::test(start_paused = true)]
async fn all_consent_while_the_store_is_away() {
    let (cluster, primary) = three(10).await;
    cluster.change(|sim| sim.begin(Fault::StopStore));
    for _ in 0..600 {
        cluster.run_for(Duration::from_millis(100)).await;
        assert_eq!(
            cluster.look(Sim::primary),
            Some(primary),
            "{}",
            cluster.look(Sim::to_string)
        );
    }
    cluster.change(|sim| sim.end(Fault::StopStore));
    cluster
        .run_until("a healthy cluster", 60, Sim::is_healthy)
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stands_still_takes_no_step() {
    let journals = Journals::default();
    let kept = journals.clone();
    let cluster = Outside::with_agents(Sim::new(NAMES, 10), move |node, agent| {
        kept.kept_by(node, agent)
    });
    cluster
        .run_until("a healthy cluster", 30, Sim::is_healthy)
        .await;
    let primary = cluster.look(Sim::primary).unwrap();
    cluster.change(|sim| sim.begin(Fault::PauseAgent(primary)));
    let handle = cluster.handle(primary).unwrap();
    let stepped_at = handle.status().stepped_at;
    cluster
        .run_until("a successor", 30, |sim| {
            sim.primary().is_some_and(|node| node != primary)
        })
        .await;
    assert_eq!(handle.status().stepped_at, stepped_at);
    cluster.change(|sim| sim.end(Fault::PauseAgent(primary)));
    cluster
        .run_until("a healthy cluster", 60, Sim::is_healthy)
        .await;
    assert!(handle.status().stepped_at > stepped_at);
    assert!(journals.replay().unwrap() > 100);
}
