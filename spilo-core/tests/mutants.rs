//! Plants one mistake after the other, and looks how many simulated clusters it takes to see it.
//! `cargo xtask mutants` builds this with `--cfg spilo_mutants`, and shows what saw the rest.

#![cfg(spilo_mutants)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use spilo_core::mutant::{Mutant, plant};
use spilo_core::sim::Plan;

/// Prints a line for each mutant: `NAME<tab>WHAT<tab>SEEDS<tab>VIOLATION`, or one that says
/// `survived` instead of the number of seeds.
#[test]
fn the_simulator_looks_for_mutants() {
    for seed in 0..SEEDS {
        let healthy = Plan::from_seed(seed).run();
        assert!(
            healthy.is_ok(),
            "seed {seed} fails without a mutant: {healthy:?}"
        );
    }
    std::panic::set_hook(Box::new(|_| {}));
    for (mutant, what) in Mutant::ALL {
        plant(Some(*mutant));
        let caught = (0..SEEDS).find_map(|seed| {
            let run = catch_unwind(AssertUnwindSafe(|| Plan::from_seed(seed).run()));
            let violation = match run {
                Ok(Ok(_)) => return None,
                Ok(Err(violation)) => violation.what,
                Err(_) => "an assertion of the machine failed".to_owned(),
            };
            Some((seed + 1, violation))
        });
        plant(None);
        let result = caught.map_or_else(
            || "survived\t".to_owned(),
            |(seeds, violation)| format!("{seeds}\t{}", violation.replace(['\n', '\t'], " ")),
        );
        println!("mutant\t{mutant:?}\t{}\t{result}", what.trim());
    }
}

/// What is not seen in as many clusters is for tests of its own.
const SEEDS: u64 = 150;
