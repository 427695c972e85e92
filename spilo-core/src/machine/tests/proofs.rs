//! When a lock that vanished may be taken.

use super::*;
use crate::decide::Rule;

/// The key of `b` was deleted, and it had the lock for ten seconds at most.
fn vanished() -> Trace {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    trace.snapshot(free(25, Some(taken("b", 20))));
    trace
}

/// `b` was asked what it is after its key was gone.
fn asked_after_it_vanished() -> Trace {
    let mut trace = vanished();
    if trace.peers.contains_key(&name("b")) {
        trace.answer_peer("b", None);
    }
    trace.pass(600);
    trace
}

fn waits(trace: &mut Trace, what: &str) {
    for _ in 0..20 {
        trace.step(50, Event::Tick);
        assert_eq!(trace.lease, None, "{what}");
        if let Some(ticket) = trace.peers.remove(&name("b")) {
            trace.step(1, Event::PeerAnswered(ticket, name("b"), None));
        }
    }
    assert_eq!(trace.rule(), Rule::PredecessorMayWrite, "{what}");
}

#[test]
fn f28_a_lock_that_vanished_is_waited_out() {
    let mut trace = vanished();
    let gone = trace.now;
    while trace.lease.is_none() {
        if let Some(ticket) = trace.peers.remove(&name("b")) {
            trace.step(1, Event::PeerAnswered(ticket, name("b"), None));
        }
        trace.step(50, Event::Tick);
        assert!(
            trace.now.since(gone) < Duration::from_millis(10_500),
            "{}",
            trace.rule()
        );
    }
    assert!(trace.now.since(gone) >= Duration::from_secs(10));
}

#[test]
fn a_release_of_another_epoch_proves_nothing() {
    for record in [released("b", 19), taken("b", 20)] {
        let mut trace = trace();
        trace.snapshot(led_by("b", 20));
        trace.snapshot(free(25, Some(record)));
        waits(&mut trace, "a record of another holding");
    }
}

#[test]
fn the_holders_own_word_counts_if_it_was_asked_after_the_key_was_gone() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    trace.pass(3000);
    let early = trace
        .peers
        .remove(&name("b"))
        .expect("the leader is asked now and then");
    trace.snapshot(free(25, Some(taken("b", 20))));
    trace.step(1, Event::PeerAnswered(early, name("b"), Some(peer())));
    waits(&mut trace, "an answer to a question from before");
    for wrong in [
        PeerStatus {
            primary: true,
            ..peer()
        },
        PeerStatus {
            cannot_write: false,
            ..peer()
        },
        PeerStatus {
            name: Some(name("c")),
            ..peer()
        },
    ] {
        let mut trace = asked_after_it_vanished();
        trace.answer_peer("b", Some(wrong.clone()));
        assert_eq!(
            trace.machine.facts().predecessor.as_ref().unwrap().proof,
            None,
            "{wrong:?}"
        );
    }
    let mut trace = asked_after_it_vanished();
    trace.answer_peer("b", Some(peer()));
    assert!(
        matches!(trace.lease, Some((_, LeaseRequest::Acquire(_)))),
        "{}",
        trace.rule()
    );
}

#[test]
fn a_patroni_peers_record_counts_if_it_is_newer_than_the_deletion() {
    let record = |revision, own: &str| {
        let text = format!(r#"{{"api_url":"http://b","state":"running","role":"replica"{own}}}"#);
        let mut raw = free(60, None);
        raw.members.insert("b".to_owned(), entry(text, revision));
        raw
    };
    for (revision, own, counts) in [
        (24, "", false),
        (30, "", true),
        // One of ours may have written it before it knew.
        (30, r#","spilo_version":"0""#, false),
    ] {
        let mut trace = vanished();
        trace.snapshot(record(revision, own));
        let proof = trace.machine.facts().predecessor.as_ref().unwrap().proof;
        assert_eq!(proof.is_some(), counts, "revision {revision}{own}");
    }
}

#[test]
fn an_ended_lease_counts_only_if_our_own_clock_agrees() {
    for (rest, counts) in [
        (Duration::from_secs(9), false),
        (Duration::from_secs(1), true),
    ] {
        let mut trace = trace();
        trace.snapshot(led_by("b", 20));
        // It suspects the leader, which does not answer, and asks how long its lease lasts.
        let asked = loop {
            match trace.read.take() {
                Some((ticket, ReadRequest::LeaseLeft(_))) => break ticket,
                Some((ticket, _)) => {
                    let answer = ReadAnswer::Snapshot(Box::new(led_by("b", 20)));
                    trace.step(1, Event::Read(ticket, Ok(answer)));
                }
                None => {
                    trace.step(50, Event::Tick);
                }
            }
        };
        trace.step(1, Event::Read(asked, Ok(ReadAnswer::LeaseLeft(Some(rest)))));
        trace.pass(1500);
        trace.snapshot(free(25, Some(taken("b", 20))));
        for _ in 0..10 {
            trace.step(50, Event::Tick);
            let Some((ticket, request)) = trace.read.take() else {
                continue;
            };
            let answer = match request {
                ReadRequest::LeaseEnded(_) => ReadAnswer::LeaseEnded(true),
                ReadRequest::LeaseLeft(_) => ReadAnswer::LeaseLeft(None),
                ReadRequest::Snapshot => {
                    ReadAnswer::Snapshot(Box::new(free(25, Some(taken("b", 20)))))
                }
            };
            trace.step(1, Event::Read(ticket, Ok(answer)));
        }
        let proof = trace.machine.facts().predecessor.as_ref().unwrap().proof;
        assert_eq!(proof.is_some(), counts, "{rest:?}");
    }
}

#[test]
fn a_holding_that_nobody_saw_is_found_after_the_lock_was_taken_and_waited_out() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    trace.snapshot(free(22, Some(released("b", 20))));
    trace.answer_peer("b", Some(peer()));
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
    // Between the look and the acquisition `c` had the lock, and lost its key.
    let mut raw = led_by("a", 30);
    raw.documents
        .insert(Key::Release, entry(taken("c", 26), 27));
    trace.snapshot(raw.clone());
    let found = trace.now;
    while trace.now.since(found) < Duration::from_millis(9900) {
        assert_eq!(trace.until(), None);
        trace.write_all();
        trace.step(50, Event::Tick);
        if trace.lease.is_some() {
            trace.answer_lease(Ok(LeaseAnswer::Done));
        }
        if trace.read.is_some() {
            trace.snapshot(raw.clone());
        }
    }
    trace.pass(200);
    trace.write_all();
    assert!(trace.until().is_some(), "{}", trace.rule());
}
