//! Clusters under fire. Many more seeds than here are run by `cargo xtask sim`.

use spilo_core::sim::Plan;

#[test]
fn a_few_seeds_break_nothing() {
    for seed in 0..20 {
        if let Err(violation) = Plan::from_seed(seed).run() {
            panic!("cargo xtask sim --seed {seed}\n{violation}");
        }
    }
}
