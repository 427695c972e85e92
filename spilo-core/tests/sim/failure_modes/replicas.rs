//! F40: long jobs that are left behind.

use spilo_core::sim::{Fault, Sim};

use crate::{another, healthy, three};

#[test]
pub(super) fn f40_a_copy_whose_agent_dies_at_any_moment_is_made_once_and_whole() {
    for fault in [Fault::KillAgent as fn(usize) -> Fault, Fault::KillNode] {
        for moment in 0..18 {
            let mut sim = three(10);
            let primary = sim.primary().unwrap();
            let copy = another(&sim, primary);
            sim.begin(Fault::RemoveData(copy));
            crate::run(&mut sim, 0.05 * f64::from(moment));
            sim.begin(fault(copy));
            crate::run(&mut sim, 2.0);
            sim.end(fault(copy));
            let took = sim.run_until("the copy", 30, Sim::is_healthy);
            assert!(took <= 10_000, "{took} ms\n{sim}");
            let row = sim.commit(primary).unwrap();
            crate::run(&mut sim, 1.0);
            assert!(sim.reads(copy, row), "{sim}");
            healthy(&mut sim);
        }
    }
}
