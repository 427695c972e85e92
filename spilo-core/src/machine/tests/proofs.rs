//! When a lock that vanished may be taken.

use super::*;
use crate::decide::Rule;
use crate::guard::Deadline;
use crate::pg::PgErrorKind;

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

impl Trace {
    /// Answers what it reads: how long the lease of `b` lasts, whether it has ended, and `raw`.
    fn answer_reads(&mut self, left: Option<Duration>, ended: bool, raw: &RawSnapshot) {
        while let Some((ticket, request)) = self.read.take() {
            let answer = match request {
                ReadRequest::LeaseEnded(_) => ReadAnswer::LeaseEnded(ended),
                ReadRequest::LeaseLeft(_) => ReadAnswer::LeaseLeft(left),
                ReadRequest::Snapshot => ReadAnswer::Snapshot(Box::new(raw.clone())),
            };
            self.step(1, Event::Read(ticket, Ok(answer)));
        }
    }

    /// Lets time pass with `raw` in the store.
    fn pass_with(&mut self, millis: u64, left: Option<Duration>, ended: bool, raw: &RawSnapshot) {
        for _ in 0..millis / 50 {
            self.step(50, Event::Tick);
            self.answer_reads(left, ended, raw);
        }
    }

    fn proof(&self) -> Option<crate::machine::lease::Proof> {
        self.machine.facts().predecessor.as_ref()?.proof
    }
}

#[test]
fn what_was_heard_of_a_lease_long_ago_proves_nothing_when_it_ends_early() {
    for healthy_for in [0, 9_000, 60_000] {
        let mut trace = trace();
        // Not streaming yet, it asks how long the lease lasts; then it streams, and does not ask.
        trace.snapshot(led_by("b", 20));
        trace.pass_with(2000, Some(Duration::from_secs(1)), false, &led_by("b", 20));
        let heard = |trace: &Trace| trace.machine.facts().predecessor.as_ref().unwrap().left;
        assert!(heard(&trace).is_some());
        let (asked, _) = heard(&trace).unwrap();
        let mut streams = standby();
        if let Server::Running(running) = &mut streams.server
            && let Role::Standby { streaming, .. } = &mut running.role
        {
            *streaming = true;
        }
        trace.look(streams);
        trace.pass(healthy_for);
        // An old leader of the store revokes a lease that was renewed all the time.
        let gone = free(25, Some(taken("b", 20)));
        trace.snapshot(gone.clone());
        trace.pass_with(2000, None, true, &gone);
        assert_eq!(heard(&trace).unwrap().0, asked);
        assert_eq!(trace.proof().is_some(), healthy_for == 0, "{healthy_for}");
    }
}

#[test]
fn a_rest_that_was_heard_long_before_the_end_says_nothing_of_renewals_in_between() {
    let mut trace = trace();
    let left = Duration::from_secs(9);
    trace.snapshot(led_by("b", 20));
    trace.pass_with(800, Some(left), false, &led_by("b", 20));
    trace.pass_with(9000, None, false, &led_by("b", 20));
    let gone = free(25, Some(taken("b", 20)));
    trace.snapshot(gone.clone());
    trace.pass_with(500, None, true, &gone);
    assert_eq!(trace.proof(), None);
}

#[test]
fn a_holder_that_took_its_own_lock_over_for_less_may_write_by_the_longer_lease() {
    let long = |epoch| {
        let record = format!(r#"{{"epoch":{epoch},"name":"b","ttl_ms":30000,"taken":true}}"#);
        Bytes::from(record)
    };
    let mut raw = led_by("b", 20);
    raw.documents.insert(Key::Release, entry(long(20), 21));
    // The ttl was lowered to 10 s. The key is a new one, and its holder died before it knew.
    let mut next = led_by("b", 25);
    next.documents.insert(Key::Release, entry(long(20), 21));
    for told in [true, false] {
        let mut trace = trace();
        if told {
            trace.snapshot(raw.clone());
        }
        trace.snapshot(next.clone());
        let seen = trace.now;
        trace.pass_with(9000, Some(Duration::from_secs(1)), false, &next);
        let mut gone = free(40, None);
        gone.documents.insert(Key::Release, entry(long(20), 21));
        trace.snapshot(gone.clone());
        // The lease of ten seconds has ended of age; that of thirty has not.
        while trace.now.since(seen) < Duration::from_millis(29_500) {
            trace.step(50, Event::Tick);
            trace.answer_reads(None, true, &gone);
            if let Some(ticket) = trace.peers.remove(&name("b")) {
                trace.step(1, Event::PeerAnswered(ticket, name("b"), None));
            }
            assert_eq!((trace.lease.clone(), trace.proof()), (None, None));
        }
    }
}

#[test]
fn a_promotion_that_was_ordered_counts_as_a_writer_while_its_server_lives() {
    let mut trace = trace();
    trace.acquire();
    let order = trace.commands.iter().find_map(|command| match command {
        Command::StartOp(id, crate::pg::PgOp::Promote) => Some(*id),
        _ => None,
    });
    let late = Failure::new(PgErrorKind::Retry, "not done in time");
    trace.step(1, Event::OpEnded(order.expect("it promotes"), Err(late)));
    trace.commands.clear();
    // The key is deleted: the order stands, and the server may be a primary at any moment.
    trace.snapshot(free(35, None));
    trace.look(standby());
    assert!(!trace.machine.status().cannot_write());
    while trace.guard.is_some() {
        trace.answer_guard(GuardStatus::idle());
    }
    trace.pass(12_000);
    let disarms = |c: &Command| matches!(c, Command::Guard(_, GuardRequest::Disarm));
    assert!(!trace.commands.iter().any(disarms));
    assert!(trace.commands.contains(&Command::Fence), "{}", trace.rule());
}

#[test]
fn a_server_that_was_promoted_counts_as_a_writer_until_somebody_looks() {
    let mut trace = trace();
    trace.acquire();
    let order = trace.commands.iter().find_map(|command| match command {
        Command::StartOp(id, crate::pg::PgOp::Promote) => Some(*id),
        _ => None,
    });
    // It has worked, and from then on no look at the data is answered.
    trace.step(1, Event::OpEnded(order.expect("it promotes"), Ok(())));
    trace.commands.clear();
    trace.snapshot(free(35, None));
    assert!(!trace.machine.status().cannot_write());
    let mut fenced = false;
    for _ in 0..240 {
        trace.step(50, Event::Tick);
        assert!(!trace.machine.status().cannot_write());
        fenced |= trace.commands.contains(&Command::Fence);
        trace.commands.clear();
        if fenced {
            return;
        }
    }
    panic!("it is fenced when the permission ends: {}", trace.rule());
}

#[test]
fn a_member_of_another_cluster_at_a_reused_address_is_neither_heard_nor_promised_anything() {
    let mut trace = asked_after_it_vanished();
    let stranger = PeerStatus {
        scope: Some("another".to_owned()),
        primary: true,
        ..peer()
    };
    trace.answer_peer("b", Some(stranger));
    let heard = &trace.machine.facts().peers[&name("b")].value;
    assert_eq!((heard, trace.proof()), (&None, None));

    let ask = |scope: Option<&str>| ConsentRequest {
        scope: scope.map(str::to_owned),
        name: name("b"),
        conn_url: String::new(),
        api_url: String::new(),
        slots: BTreeMap::new(),
    };
    for (scope, accepted) in [(Some("another"), false), (Some("demo"), true), (None, true)] {
        let mut trace = trace.clone();
        let step = trace.step(1, Event::ConsentAsked(Ticket(7), ask(scope)));
        let answer = step.commands.iter().find_map(|command| match command {
            Command::AnswerConsent(_, answer) => Some(*answer),
            _ => None,
        });
        let yes = matches!(answer, Some(ConsentAnswer::Accepted(_)));
        assert_eq!(yes, accepted, "{scope:?}");
        assert_eq!(trace.machine.facts().promise.is_some(), accepted);
    }
}

#[test]
fn f28_a_node_with_data_that_finds_no_record_of_a_holder_writes_a_lease_later() {
    let mut trace = trace();
    trace.snapshot(free(25, None));
    trace.until_it_acquires(|_| Some(peer()));
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
    let held = trace.now;
    let mut raw = led_by("a", 30);
    // Somebody who held the lock before the store was wiped may write to the end of its lease.
    raw.documents.remove(&Key::Release);
    trace.snapshot(raw);
    trace.write_all();
    let holding = trace.machine.facts().holding.as_ref();
    let clear = holding.and_then(|held| held.clear);
    assert!(clear >= Some(held + Duration::from_secs(10)), "{clear:?}");
    assert_eq!(trace.until(), None);
}

/// Its lock was released since, another node has held it, and the store was wiped.
#[test]
fn a_deadline_that_an_earlier_agent_left_under_a_standby_permits_nothing() {
    let mut trace = trace();
    let left = Deadline {
        epoch: Epoch(20),
        secret: LeaseSecret("20".to_owned()),
        soft: trace.now + Duration::from_secs(118),
        hard: trace.now + Duration::from_secs(120),
    };
    let mut keeps = GuardStatus::idle();
    keeps.deadline = Some(left.clone());
    trace.answer_guard(keeps);
    assert_eq!(trace.machine.facts().armed, Some(left.clone()));
    assert_eq!(trace.until(), None);
    trace.snapshot(free(25, None));
    trace.until_it_acquires(|_| Some(peer()));
    assert!(trace.now < left.soft);
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(30))));
    let held = trace.now;
    let mut raw = led_by("a", 30);
    raw.documents.remove(&Key::Release);
    trace.snapshot(raw);
    let holding = trace.machine.facts().holding.as_ref();
    let clear = holding.and_then(|held| held.clear);
    assert!(clear >= Some(held + Duration::from_secs(10)), "{clear:?}");
    assert_eq!(trace.until(), None);
    // Under a primary it is the permission that an agent which was restarted finds.
    trace.look(primary());
    assert!(trace.until().is_some());
}

/// The promotion that an earlier agent ordered may still be under way in PostgreSQL.
#[test]
fn a_standby_under_a_deadline_that_was_left_does_not_say_that_it_cannot_write() {
    let mut trace = trace();
    let hard = trace.now + Duration::from_secs(20);
    let mut keeps = GuardStatus::idle();
    keeps.alive = true;
    keeps.postmaster = Some(7);
    keeps.deadline = Some(Deadline {
        epoch: Epoch(20),
        secret: LeaseSecret("20".to_owned()),
        soft: trace.now + Duration::from_secs(19),
        hard,
    });
    assert!(trace.machine.status().cannot_write());
    trace.answer_guard(keeps);
    trace.look(standby());
    assert_eq!(trace.until(), None);
    assert!(!trace.machine.status().cannot_write());
}

/// The data directory does not answer, and the guard that had the deadline hangs.
#[test]
fn a_server_that_an_earlier_agent_left_is_ended_in_time_though_nobody_could_look_at_it() {
    let mut trace = bare(1_000_000);
    let hard = trace.now + Duration::from_secs(5);
    let mut keeps = GuardStatus::idle();
    keeps.alive = true;
    keeps.postmaster = Some(7);
    keeps.deadline = Some(Deadline {
        epoch: Epoch(20),
        secret: LeaseSecret("20".to_owned()),
        soft: trace.now + Duration::from_secs(4),
        hard,
    });
    trace.step(1, Event::Tick);
    trace.answer_guard(keeps);
    assert_eq!(trace.until(), Some(hard.0));
    while trace.now < hard {
        if let Some(ticket) = trace.observe.take() {
            let answer = Failure::new(PgErrorKind::Retry, "the data directory does not answer");
            trace.step(1, Event::Observed(ticket, Err(answer)));
        }
        assert!(
            !trace.commands.contains(&Command::Fence),
            "{}",
            trace.rule()
        );
        trace.step(50, Event::Tick);
    }
    assert!(trace.commands.contains(&Command::Fence), "{}", trace.rule());
    trace.commands.clear();
    // The guard still hangs; its last answer is from before the fence.
    trace.step(50, Event::Fenced(Ok(())));
    trace.pass(1000);
    assert!(
        !trace.commands.contains(&Command::Fence),
        "{}",
        trace.rule()
    );
}

#[test]
fn what_is_proven_of_a_holder_that_never_wrote_proves_nothing_of_the_one_before_it() {
    let member = r#"{"conn_url":"postgres://10.0.0.3:5432/postgres","api_url":"http://c",
        "state":"running","role":"replica","spilo_version":"0","timeline":1}"#;
    // Whether this agent looked while b held the lock, or has only the record to know it by.
    for saw_b in [true, false] {
        let mut trace = trace();
        let with_c = |mut raw: RawSnapshot| {
            raw.documents
                .insert(Key::Release, entry(taken("b", 20), 21));
            raw.members.insert("c".to_owned(), entry(member, 4));
            raw
        };
        if saw_b {
            trace.snapshot(with_c(led_by("b", 20)));
            trace.snapshot(with_c(free(25, None)));
        }
        let lost = trace.now;
        // c takes the lock, waits for b, and loses it again before it wrote.
        trace.snapshot(with_c(led_by("c", 30)));
        trace.snapshot(with_c(free(35, None)));
        trace.until_it_acquires(|who| {
            (who == "c").then(|| PeerStatus {
                name: Some(name("c")),
                ..peer()
            })
        });
        trace.answer_lease(Ok(LeaseAnswer::Held(lease(40))));
        trace.snapshot(with_c(led_by("a", 40)));
        let holding = trace.machine.facts().holding.as_ref();
        let clear = holding.and_then(|held| held.clear);
        assert!(
            clear >= Some(lost + Duration::from_millis(9990)),
            "{clear:?}"
        );
    }
}

#[test]
fn who_took_and_lost_the_lock_while_it_was_being_acquired_is_waited_for() {
    let with_record = |mut raw: RawSnapshot| {
        raw.documents
            .insert(Key::Release, entry(taken("c", 30), 31));
        raw
    };
    // Whether this agent read while c had the key, or just after, or only once it held the lock.
    for reads in [
        vec![led_by("c", 30)],
        vec![free(33, None)],
        vec![led_by("c", 30), free(33, None)],
        vec![],
    ] {
        let mut trace = trace();
        trace.snapshot(led_by("b", 20));
        trace.snapshot(free(25, Some(released("b", 20))));
        trace.answer_peer("b", Some(peer()));
        assert!(matches!(trace.lease, Some((_, LeaseRequest::Acquire(_)))));
        let asked = trace.now;
        for raw in reads {
            trace.snapshot(with_record(raw));
        }
        trace.answer_lease(Ok(LeaseAnswer::Held(lease(35))));
        trace.snapshot(with_record(led_by("a", 35)));
        let holding = trace.machine.facts().holding.as_ref();
        let clear = holding.and_then(|held| held.clear);
        assert!(clear >= Some(asked + Duration::from_secs(10)), "{clear:?}");
    }
}

#[test]
fn an_old_record_under_a_leader_that_leaves_none_is_waited_for_once() {
    let mut trace = trace();
    let stale = |mut raw: RawSnapshot| {
        raw.documents
            .insert(Key::Release, entry(taken("c", 10), 11));
        raw
    };
    trace.snapshot(stale(led_by("b", 20)));
    trace.pass(60_000);
    let mut gone = stale(free(25, None));
    gone.revision = Revision(40);
    trace.snapshot(gone);
    trace.until_it_acquires(|_| Some(peer()));
    trace.answer_lease(Ok(LeaseAnswer::Held(lease(50))));
    trace.snapshot(stale(led_by("a", 50)));
    let holding = trace.machine.facts().holding.as_ref();
    let clear = holding.and_then(|held| held.clear);
    assert!(clear <= Some(trace.now), "{clear:?}");
}
