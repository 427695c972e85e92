//! Fences that fail, and servers that the kernel holds up.

use super::*;
use crate::decide::Rule;
use crate::guard::{Deadline, GuardErrorKind};
use crate::pg::{PgErrorKind, PgOp};

#[test]
fn a_fence_that_fails_at_once_is_tried_again_after_a_moment() {
    let mut trace = leader();
    trace.snapshot(led_by("b", 40));
    assert_eq!(trace.rule(), Rule::WriterWithoutPermission);
    for _ in 0..3 {
        assert!(trace.commands.contains(&Command::Fence));
        trace.commands.clear();
        trace.step(1, Event::Fenced(Err(no_process_is_found())));
        trace.look(primary());
        for _ in 0..4 {
            trace.step(10, Event::Tick);
            assert_eq!(trace.rule(), Rule::WriterWithoutPermission);
            assert!(!trace.commands.contains(&Command::Fence));
        }
        trace.step(10, Event::Tick);
    }
    // Of processes that the kernel holds up it is no use to kill them again and again.
    let hung = || {
        let mut seen = primary();
        seen.server = Server::Hung { guarded: true };
        seen
    };
    trace.commands.clear();
    trace.step(1, Event::Fenced(Ok(())));
    // The first of them may have begun before the fence ended.
    for _ in 0..2 {
        trace.look(hung());
    }
    assert!(trace.machine.facts().pg_is_current());
    assert!(!trace.commands.contains(&Command::Fence));
    assert!(trace.machine.facts().unburied.is_some());
    trace.pass(100);
    assert!(trace.commands.contains(&Command::Fence), "{}", trace.rule());
    trace.step(1, Event::Fenced(Ok(())));
    let mut down = primary();
    down.server = Server::Down;
    for _ in 0..2 {
        trace.look(down.clone());
    }
    assert_eq!(trace.machine.facts().unburied, None);
}

/// For how long the lock is renewed by a holder whose server hangs and whose fences fail.
fn renewed_without_a_fence(
    guard: impl Fn(Option<Deadline>) -> Result<GuardStatus, GuardErrorKind>,
) -> Duration {
    let mut trace = leader();
    let mut armed = None;
    let (mut failing, mut renewed) = (None, None);
    for _ in 0..1000 {
        if trace.commands.contains(&Command::Fence) {
            trace.commands.clear();
            failing = failing.or(Some(trace.now));
            trace.step(1, Event::Fenced(Err(no_process_is_found())));
        }
        if matches!(&trace.lease, Some((_, LeaseRequest::Renew(_)))) {
            renewed = Some(trace.now);
            trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
        }
        if trace.read.is_some() {
            trace.snapshot(led_by("a", 30));
        }
        if trace.observe.is_some() {
            let mut seen = primary();
            seen.server = Server::Hung { guarded: true };
            trace.look(seen);
        }
        if let Some((ticket, request)) = trace.guard.take() {
            if let GuardRequest::Arm(deadline) = request {
                armed = Some(deadline);
            }
            let answer = guard(armed.clone()).map_err(|kind| Failure::new(kind, "it hangs"));
            trace.step(1, Event::Guard(ticket, answer));
        }
        trace.write_all();
        trace.step(50, Event::Tick);
    }
    renewed.unwrap().since(failing.expect("a fence"))
}

#[test]
fn a_holder_that_can_end_its_server_by_no_fence_leaves_that_to_the_guard_and_the_lock_to_others() {
    let renewed = renewed_without_a_fence(|deadline| {
        Ok(GuardStatus {
            alive: true,
            deadline,
            ..GuardStatus::idle()
        })
    });
    assert!(renewed <= Duration::from_secs(2), "{renewed:?}");
    // Without a guard that answers, or with one that took the place of the server's own, nobody
    // would end what may be written.
    let renewed = renewed_without_a_fence(|_| Err(GuardErrorKind::Silent));
    assert!(renewed >= Duration::from_secs(20), "{renewed:?}");
    let renewed = renewed_without_a_fence(|deadline| {
        Ok(GuardStatus {
            deadline,
            ..GuardStatus::idle()
        })
    });
    assert!(renewed >= Duration::from_secs(20), "{renewed:?}");
}

/// A primary that holds epoch 30.
fn leader() -> Trace {
    let mut trace = trace();
    trace.acquire();
    let order = trace.commands.iter().find_map(|command| match command {
        Command::StartOp(id, PgOp::Promote) => Some(*id),
        _ => None,
    });
    trace.step(1, Event::OpEnded(order.expect("it promotes"), Ok(())));
    trace.look(primary());
    trace.commands.clear();
    trace
}

fn no_process_is_found() -> Failure<PgErrorKind> {
    Failure::new(PgErrorKind::Retry, "/proc: permission denied")
}

#[test]
fn a_node_that_has_not_looked_at_its_data_writes_nothing() {
    let mut trace = bare(0);
    trace.step(0, Event::Tick);
    trace.answer_guard(GuardStatus::idle());
    trace.snapshot(led_by("b", 20));
    trace.pass(1000);
    assert_eq!(trace.writes, []);
    trace.look(standby());
    let wrote = trace.writes.iter().map(|(_, request)| request);
    let announced = wrote.filter(|request| matches!(request, WriteRequest::Announce(..)));
    assert_eq!(announced.count(), 1);
}
