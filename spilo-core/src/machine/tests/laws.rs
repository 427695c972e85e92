//! The laws of the lease.

use super::*;
use crate::decide::Rule;
use crate::ids::OpId;
use crate::pg::{PgErrorKind, PgOp, PgOpKind};

#[test]
fn a_lease_counts_from_when_the_request_left() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    trace.snapshot(free(25, Some(released("b", 20))));
    trace.answer_peer("b", Some(peer()));
    let left = trace.now;
    // The answer takes two seconds.
    trace.pass(2000);
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
    trace.snapshot(led_by("a", 30));
    trace.write_all();
    assert_eq!(trace.until(), Some(left.0 + 9900 - 250));
}

#[test]
fn f10_the_lease_is_renewed_in_every_quarter_of_its_time() {
    let mut trace = trace();
    trace.acquire();
    let mut last = trace.now;
    for _ in 0..400 {
        trace.step(50, Event::Tick);
        if let Some((_, LeaseRequest::Renew(_))) = &trace.lease {
            assert!(
                trace.now.since(last) <= Duration::from_millis(2600),
                "{last}"
            );
            last = trace.now;
            trace.answer_lease(Ok(LeaseAnswer::Done));
        }
        if trace.read.is_some() {
            trace.snapshot(led_by("a", 30));
        }
    }
    assert!(trace.now.since(last) <= Duration::from_millis(2600));
}

#[test]
fn f9_the_permission_ends_before_the_lease_whatever_was_said_before() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let until = NodeTime(trace.until().unwrap());
    let status = trace.machine.status();
    assert!(status.is_writable(until.before(Duration::from_millis(1))));
    assert!(!status.is_writable(until));
}

#[test]
fn nothing_is_written_by_a_holding_before_the_store_has_the_record_of_it() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    trace.snapshot(free(25, Some(released("b", 20))));
    trace.answer_peer("b", Some(peer()));
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
    trace.snapshot(led_by("a", 30));
    trace.pass(500);
    assert_eq!(trace.until(), None);
    assert_eq!(trace.rule(), Rule::PermissionShort);
    trace.write_all();
    assert!(trace.until().is_some());
}

#[test]
fn a_promotion_whose_lease_is_lost_is_cancelled_and_fenced() {
    let mut trace = trace();
    trace.acquire();
    let promotes = |c: &Command| matches!(c, Command::StartOp(_, PgOp::Promote));
    assert!(trace.commands.iter().any(promotes), "{:?}", trace.rule());
    trace.commands.clear();
    trace.snapshot(led_by("b", 40));
    assert_eq!(trace.rule(), Rule::OperationWithoutPermission);
    let cancels = |c: &Command| matches!(c, Command::CancelOp(_));
    assert!(trace.commands.iter().any(cancels) && trace.commands.contains(&Command::Fence));
}

#[test]
fn an_epoch_that_was_given_up_is_never_held_again() {
    let mut trace = trace();
    trace.acquire();
    trace.snapshot(free(35, None));
    assert_eq!(trace.machine.facts().given_up, Some(Epoch(30)));
    // A renewal of it that was under way, and an old answer to an acquisition, change nothing.
    trace.step(1, Event::Lease(Ticket(1), Ok(LeaseAnswer::Held(lease(30)))));
    assert_eq!(trace.machine.facts().holding, None);
    // Even as the answer to a request that is under way.
    let mut trace = trace_that_gave_up_30();
    trace.until_it_acquires(|_| None);
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
    assert!(trace.machine.facts().unsettled);
    assert_eq!(trace.machine.facts().holding, None);
}

#[test]
fn f18_an_acquisition_without_an_answer_is_settled_before_anything_else() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    trace.snapshot(free(25, Some(released("b", 20))));
    trace.answer_peer("b", Some(peer()));
    trace.answer_lease(Err(DcsErrorKind::Indeterminate));
    // It even has the key, by name: only an answer makes it ours.
    trace.snapshot(led_by("a", 30));
    assert_eq!(trace.machine.facts().holding, None);
    trace.pass(500);
    assert_eq!(
        trace.lease.as_ref().map(|(_, r)| r),
        Some(&LeaseRequest::Settle)
    );
    trace.answer_lease(Err(DcsErrorKind::Unavailable));
    trace.pass(500);
    assert_eq!(
        trace.lease.as_ref().map(|(_, r)| r),
        Some(&LeaseRequest::Settle)
    );
    assert_eq!(trace.ask_consent(), ConsentAnswer::Busy);
    trace.answer_lease(Ok(LeaseAnswer::Done));
    assert!(!trace.machine.facts().unsettled);
}

#[test]
fn f14_no_failed_request_ends_the_permission_while_there_is_time() {
    for kind in [
        DcsErrorKind::Indeterminate,
        DcsErrorKind::Unavailable,
        DcsErrorKind::Refused,
    ] {
        let mut trace = trace();
        trace.acquire();
        trace.look(primary());
        let until = trace.until();
        while trace.lease.is_none() {
            trace.step(50, Event::Tick);
        }
        trace.answer_lease(Err(kind));
        assert_eq!(trace.until(), until, "{kind:?}");
        assert!(!trace.commands.contains(&Command::Fence), "{kind:?}");
    }
}

#[test]
fn a_lock_that_is_passed_to_a_shorter_lease_permits_no_longer_than_that_one() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let mut raw = led_by("a", 30);
    raw.documents.insert(Key::Config, entry(r#"{"ttl":3}"#, 31));
    trace.snapshot(raw);
    let asked = trace.now;
    assert!(
        matches!(trace.lease, Some((_, LeaseRequest::Succeed(..)))),
        "{:?}",
        trace.lease
    );
    // Whether it was done is not known yet, and it may have been.
    assert_eq!(trace.until(), Some(asked.0 + 2970 - 250));
    trace.answer_lease(Err(DcsErrorKind::Indeterminate));
    assert_eq!(trace.until(), Some(asked.0 + 2970 - 250));
}

/// ZooKeeper grants no session that is longer than its servers allow.
#[test]
fn a_lease_that_is_not_granted_leaves_the_old_one_to_be_renewed() {
    let config = |ttl: u64, revision| entry(format!(r#"{{"ttl":{ttl}}}"#), revision);
    for kind in [DcsErrorKind::Refused, DcsErrorKind::Unavailable] {
        let mut trace = trace();
        trace.acquire();
        trace.look(primary());
        let mut raw = led_by("a", 30);
        raw.documents.insert(Key::Config, config(60, 31));
        trace.snapshot(raw.clone());
        let (mut renewed, mut asked) = (0, 0);
        let begun = trace.now;
        while trace.now.since(begun) < Duration::from_secs(30) {
            match &trace.lease {
                Some((_, LeaseRequest::Renew(_))) => {
                    renewed += 1;
                    trace.answer_lease(Ok(LeaseAnswer::Done));
                    raw.revision = Revision(raw.revision.0 + 1);
                    trace.snapshot(raw.clone());
                }
                Some((_, LeaseRequest::Succeed(..))) => {
                    asked += 1;
                    trace.answer_lease(Err(kind));
                }
                Some((_, other)) => panic!("{other:?}"),
                None => drop(trace.step(50, Event::Tick)),
            }
        }
        assert!(renewed >= 11, "{kind:?}: {renewed} renewals");
        assert!(trace.until() > Some(trace.now.0 + 6000), "{kind:?}");
        match kind {
            DcsErrorKind::Refused => assert_eq!(asked, 1),
            _ => assert!(asked >= 10, "asked for {asked} times"),
        }
        // Another one is asked for.
        raw.documents.insert(Key::Config, config(20, 90));
        raw.revision = Revision(raw.revision.0 + 100);
        let other = |trace: &Trace| match &trace.lease {
            Some((_, LeaseRequest::Succeed(_, ttl))) => *ttl == Duration::from_secs(20),
            _ => false,
        };
        for _ in 0..100 {
            if other(&trace) {
                break;
            }
            trace.snapshot(raw.clone());
            match trace.lease {
                Some((_, LeaseRequest::Renew(_))) => trace.answer_lease(Ok(LeaseAnswer::Done)),
                Some(_) if !other(&trace) => trace.answer_lease(Err(kind)),
                _ => drop(trace.step(50, Event::Tick)),
            }
        }
        assert!(other(&trace), "{kind:?}: {:?}", trace.lease);
    }
}

/// A new agent knows of a member that has left from what the leader before it kept.
#[test]
fn the_time_of_a_slot_that_was_retained_begins_with_the_first_snapshot() {
    let mut trace = trace();
    let mut raw = led_by("b", 20);
    let status = r#"{"optime":1000,"retain_slots":["c","Nobody's"]}"#;
    raw.documents.insert(Key::Status, entry(status, 21));
    let from = trace.now;
    trace.snapshot(raw.clone());
    let seen = &trace.machine.facts().slot_seen;
    assert_eq!(seen.get(&name("c").slot()), Some(&trace.now));
    assert_eq!(
        seen.keys()
            .filter(|slot| slot.as_str().contains("nobody"))
            .count(),
        0
    );
    trace.pass(3000);
    raw.revision = Revision(raw.revision.0 + 1);
    trace.snapshot(raw);
    let seen = trace.machine.facts().slot_seen[&name("c").slot()];
    assert!(
        seen.since(from) < Duration::from_secs(1),
        "it is kept for ever"
    );
}

#[test]
fn a_snapshot_from_the_past_undoes_nothing() {
    let mut trace = trace();
    trace.acquire();
    let cluster = trace.machine.facts().cluster.clone();
    trace.snapshot(led_by("b", 20));
    assert_eq!(trace.machine.facts().cluster, cluster);
    assert!(trace.machine.facts().store_failing.is_some());
    assert!(!trace.commands.contains(&Command::Fence));
}

#[test]
fn the_end_of_an_older_operation_is_no_news() {
    let mut trace = trace();
    trace.acquire();
    let running = trace.machine.facts().op.clone();
    let id = running.as_ref().expect("it promotes").id;
    trace.step(1, Event::OpEnded(OpId(id.0 - 1), Ok(())));
    assert_eq!(trace.machine.facts().op, running);
}

#[test]
fn f8_the_same_trace_at_another_time_is_decided_the_same() {
    let rules = |origin: u64| {
        let mut trace = trace_from(origin);
        trace.acquire();
        let mut rules = vec![trace.rule()];
        trace.look(primary());
        for _ in 0..300 {
            trace.step(50, Event::Tick);
            rules.push(trace.rule());
        }
        rules
    };
    assert_eq!(rules(0), rules(7_200_000));
    assert_eq!(rules(0), rules(1 << 50));
}

#[test]
fn f7_a_frozen_holder_that_thaws_does_not_write() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let op = trace.machine.facts().op.as_ref().expect("it promotes").id;
    trace.step(1, Event::OpEnded(op, Ok(())));
    trace.look(primary());
    assert_eq!(trace.machine.facts().fencing, None);
    trace.step(20_000, Event::Tick);
    assert_eq!(trace.rule(), Rule::WriterWithoutPermission);
    assert!(trace.commands.contains(&Command::Fence));
}

#[test]
fn no_changed_byte_of_a_snapshot_stops_the_machine() {
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    let mut draw = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 40).unwrap() % below
    };
    let mut trace = trace();
    for revision in 30..800 {
        let mut raw = if draw(2) == 0 {
            led_by("b", revision)
        } else {
            free(revision, Some(taken("b", revision)))
        };
        raw.revision = Revision(revision + 1);
        // Another cluster's identifier ends the agent, and rightly.
        raw.documents.remove(&Key::Initialize);
        for entry in raw.documents.values_mut().chain(raw.members.values_mut()) {
            let mut bytes = entry.value.to_vec();
            for _ in 0..draw(3) {
                let at = draw(bytes.len());
                bytes[at] = u8::try_from(draw(256)).unwrap();
            }
            entry.value = bytes.into();
        }
        trace.snapshot(raw);
        trace.pass(200);
        assert!(trace.machine.decision().is_some(), "revision {revision}");
        if trace.lease.is_some() {
            trace.answer_lease(Err(DcsErrorKind::Conflict));
        }
    }
}

/// A standby that held epoch 30 and lost it, with nothing under way.
fn trace_that_gave_up_30() -> Trace {
    let mut trace = trace();
    trace.acquire();
    let op = trace.machine.facts().op.as_ref().expect("it promotes").id;
    let failure = Failure::new(PgErrorKind::Retry, "no");
    trace.step(1, Event::OpEnded(op, Err(failure)));
    trace.look(standby());
    trace.snapshot(free(35, Some(taken("a", 30))));
    if trace.lease.is_some() {
        trace.answer_lease(Err(DcsErrorKind::Conflict));
    }
    assert_eq!(trace.machine.facts().given_up, Some(Epoch(30)));
    trace
}

/// Another node may begin anew as long as the store does not have its identifier.
#[test]
fn a_cluster_that_is_being_bootstrapped_is_none_to_write_to() {
    let mut trace = trace();
    trace.acquire();
    let half_made = [
        DataDir::Unfinished(PgOpKind::Bootstrap),
        match primary().data {
            DataDir::Ready(control) => DataDir::Ready(Control {
                provisional: true,
                ..control
            }),
            other => other,
        },
    ];
    for data in half_made {
        trace.look(PgStatus { data, ..primary() });
        let status = trace.machine.status();
        assert!(status.leadership.is_some_and(|l| trace.now < l.until));
        assert!(!status.is_writable(trace.now), "{:?}", status.postgres);
    }
    trace.look(primary());
    assert!(trace.machine.status().is_writable(trace.now));
}

/// Patroni that is killed amid its bootstrap leaves an empty value for ever, and so may people.
#[test]
fn a_claim_that_somebody_left_is_replaced_by_the_holder_of_a_whole_cluster() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let mut raw = led_by("a", 30);
    raw.revision = Revision(40);
    raw.documents.insert(Key::Initialize, entry("", 39));
    trace.snapshot(raw);
    let (_, value) = trace.write_until(&Key::Initialize).expect("it is written");
    assert_eq!(value, ID.to_string());
}
