//! What was tried on a data directory, and what follows for the one that takes its place.

use super::*;
use crate::decide::Rule;
use crate::ids::OpId;
use crate::pg::{PgErrorKind, PgOp, StartRole, Upstream};

#[test]
fn a_copy_that_was_just_made_is_started_and_not_made_again() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    for times in 1..=5 {
        assert_eq!(trace.run_next(&stopped(), Err(PgErrorKind::Retry)), start());
        let rule = if times < 5 {
            Rule::StartFailed
        } else {
            Rule::Stuck
        };
        trace.settle(&stopped());
        assert_eq!(trace.rule(), rule, "after {times} starts");
    }
    // Somebody follows the advice, and moves the data away.
    let copy = PgOp::Clone {
        from: b(),
        replace: None,
    };
    let moved_away = down(DataDir::Empty);
    assert_eq!(trace.run_next(&moved_away, Ok(())), copy);
    let copied = trace.now;
    assert_eq!(trace.run_next(&stopped(), Err(PgErrorKind::Retry)), start());
    assert!(trace.now.since(copied) < Duration::from_secs(1));
    trace.settle(&stopped());
    assert_eq!(trace.rule(), Rule::StartFailed);
}

#[test]
fn what_a_rewind_mended_is_started_at_once() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    for _ in 0..5 {
        assert_eq!(trace.run_next(&stopped(), Err(PgErrorKind::Retry)), start());
    }
    let rewind = PgOp::Rewind { from: b() };
    let half = down(DataDir::Unfinished(crate::pg::PgOpKind::Rewind));
    assert_eq!(trace.run_next(&half, Err(PgErrorKind::Retry)), rewind);
    assert_eq!(trace.run_next(&half, Ok(())), rewind);
    let mended = trace.now;
    assert_eq!(trace.run_next(&stopped(), Ok(())), start());
    assert!(trace.now.since(mended) < Duration::from_secs(1));
}

#[test]
fn a_look_from_before_an_operation_ended_decides_nothing_though_both_were_in_one_millisecond() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    let half = || down(DataDir::Unfinished(crate::pg::PgOpKind::Rewind));
    let (id, op) = trace.next_op(&half());
    assert_eq!(op, PgOp::Rewind { from: b() });
    let amid = match trace.observe.take() {
        Some(ticket) => ticket,
        None => {
            trace.step(50, Event::ServerChanged);
            trace.observe.take().expect("it looks when it is told to")
        }
    };
    trace.step(0, Event::OpEnded(id, Ok(())));
    trace.step(10, Event::Observed(amid, Ok(half())));
    // Once more would be a rewind of a whole directory, whose recovery forks the log.
    assert_eq!(trace.rule(), Rule::Looking);
    assert_eq!(trace.next_op(&stopped()).1, start());
}

#[test]
fn a_primary_that_was_started_as_a_standby_is_remembered_to_have_led() {
    let mut trace = trace();
    let mut led = stopped();
    let DataDir::Ready(control) = &mut led.data else {
        panic!("{led:?}")
    };
    control.standby = false;
    trace.look(led);
    trace.look(standby());
    assert_eq!(trace.machine.facts().led, Some(Timeline(1)));
}

#[test]
fn what_cannot_be_rewound_to_one_leader_is_rewound_to_the_next() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    let rewind = PgOp::Rewind { from: b() };
    let half = down(DataDir::Unfinished(crate::pg::PgOpKind::Rewind));
    let failed = trace.run_next(&half, Err(PgErrorKind::CannotRewind));
    assert_eq!(failed, rewind);
    trace.snapshot(led_by("b", 30));
    for _ in 0..10 {
        let failed = trace.run_next(&half, Err(PgErrorKind::Retry));
        assert_eq!(failed, rewind);
    }
    // Whatever comes after a cut network is the first of its kind.
    for _ in 0..3 {
        let failed = trace.run_next(&half, Err(PgErrorKind::Refused));
        assert_eq!(failed, rewind);
    }
    assert_ne!(trace.next_op(&half).1, rewind);
}

#[test]
fn no_start_that_fails_throws_data_away_however_often() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    let begun = trace.now;
    for _ in 0..100 {
        assert_eq!(trace.run_next(&stopped(), Err(PgErrorKind::Retry)), start());
    }
    // Ten seconds is the greatest pause, after ten that grow.
    let spent = trace.now.since(begun);
    assert!(spent >= Duration::from_secs(900), "{spent:?}");
    assert!(spent <= Duration::from_secs(1000), "{spent:?}");
}

#[test]
fn a_configuration_of_extremes_panics_nowhere() {
    for extreme in ["9000000000000000000", "18446744073709551615", "1e300", "-1"] {
        let mut trace = trace();
        let mut raw = led_by("b", 20);
        let config = [
            "ttl",
            "loop_wait",
            "retry_timeout",
            "primary_start_timeout",
            "member_slots_ttl",
            "maximum_lag_on_failover",
            "max_timelines_history",
        ]
        .map(|name| format!("{name:?}:{extreme}"))
        .join(",");
        let config = format!(r#"{{{config},"failsafe_mode":true}}"#);
        raw.documents.insert(Key::Config, entry(config, 2));
        trace.snapshot(raw);
        // A promise of a day, which would keep it from all that follows.
        trace.clone().ask_consent();
        trace.pass(500);
        trace.machine.status();
        while let Some((who, ticket)) = trace.peers.pop_first() {
            trace.step(1, Event::PeerAnswered(ticket, who, None));
        }
        // Nobody races for a ttl after its start.
        trace.step(2 * 86_400_000, Event::Tick);
        trace.acquire();
        trace.look(primary());
        trace.pass(500);
        assert!(trace.machine.facts().holding.is_some(), "{extreme}");
    }
}

#[test]
fn a_hand_over_that_failed_is_not_tried_again_for_the_same_request() {
    let mut trace = trace();
    trace.acquire();
    let asked = |revision: u64| {
        let mut raw = led_by("a", 30);
        raw.revision = Revision(revision);
        let failover = entry(r#"{"leader":"a","candidate":"b"}"#, revision);
        raw.documents.insert(Key::Failover, failover);
        raw
    };
    trace.snapshot(asked(40));
    let hand_over = |trace: &mut Trace| {
        let facts = &mut trace.machine.facts;
        facts.op = None;
        let candidate = Some(name("b"));
        facts.start_op(PgOp::HandOver { candidate })
    };
    let id = hand_over(&mut trace);
    let failure = || Err(Failure::new(PgErrorKind::Retry, "it broke"));
    trace.step(1, Event::OpEnded(id, failure()));
    let refused = |trace: &Trace| trace.machine.facts().refused_failover.clone();
    assert_eq!(refused(&trace), Some((Revision(40), "it broke".to_owned())));
    // However long the server takes to be back.
    trace.pass(3000);
    assert!(refused(&trace).is_some());
    // Another request is another matter, also one that came while this one was tried.
    trace.snapshot(asked(41));
    assert_eq!(refused(&trace), None);
    let id = hand_over(&mut trace);
    trace.snapshot(asked(42));
    trace.step(1, Event::OpEnded(id, failure()));
    trace.snapshot(asked(42));
    assert_eq!(refused(&trace), None);
}

impl Trace {
    /// Answers what is asked about the server until an operation starts, and ends that.
    fn run_next(&mut self, status: &PgStatus, result: Result<(), PgErrorKind>) -> PgOp {
        let (id, op) = self.next_op(status);
        let result = result.map_err(|kind| Failure::new(kind, "it broke"));
        self.step(1, Event::OpEnded(id, result));
        op
    }

    fn next_op(&mut self, status: &PgStatus) -> (OpId, PgOp) {
        for _ in 0..400 {
            self.observe_again(status);
            for command in std::mem::take(&mut self.commands) {
                if let Command::ReadHistory(ticket, Some(_)) = command {
                    let answer = Ok((ID, History::root(Timeline(1))));
                    self.step(1, Event::HistoryRead(ticket, answer));
                }
            }
            if let Some(running) = &self.machine.facts().op {
                return (running.id, running.op.clone());
            }
        }
        panic!("no operation was started: {:?}", self.rule());
    }

    /// Answers looks at the server until one began after the last operation.
    fn settle(&mut self, status: &PgStatus) {
        while !self.machine.facts().pg_is_current() {
            self.observe_again(status);
        }
    }

    fn observe_again(&mut self, status: &PgStatus) {
        self.step(50, Event::Tick);
        if let Some(ticket) = self.observe.take() {
            self.step(1, Event::Observed(ticket, Ok(status.clone())));
        }
    }
}

fn down(data: DataDir) -> PgStatus {
    PgStatus {
        data,
        server: Server::Down,
        configured: Some(Revision(2)),
        archive: None,
    }
}

/// A level standby that was stopped.
fn stopped() -> PgStatus {
    down(standby().data)
}

fn start() -> PgOp {
    PgOp::Start {
        role: StartRole::Standby {
            upstream: Some(b()),
        },
    }
}

fn b() -> Upstream {
    Upstream {
        name: name("b"),
        conn_url: "postgres://10.0.0.2:5432/postgres".to_owned(),
    }
}
