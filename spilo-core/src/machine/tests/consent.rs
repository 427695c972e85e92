//! The laws of consent.

use super::*;
use crate::decide::Rule;

#[test]
fn consent_is_refused_by_whoever_leads_and_a_promise_forbids_to_race_for_a_ttl() {
    let mut trace = trace();
    trace.snapshot(led_by("b", 20));
    assert_eq!(
        trace.ask_consent(),
        ConsentAnswer::Accepted(Some(Lsn(1000)))
    );
    let promised = trace.now;
    trace.snapshot(free(25, Some(released("b", 20))));
    while trace.now.since(promised) < Duration::from_millis(9900) {
        assert_eq!(trace.lease, None);
        assert_eq!(trace.rule(), Rule::Promised);
        trace.step(50, Event::Tick);
    }
    trace.pass(200);
    assert_ne!(trace.rule(), Rule::Promised);
    let mut holder = super::trace();
    holder.acquire();
    assert_eq!(holder.ask_consent(), ConsentAnswer::RunningAsLeader);
}

#[test]
fn consent_counts_from_the_first_request_and_needs_all() {
    for all in [false, true] {
        let mut trace = trace();
        trace.acquire();
        trace.look(primary());
        let until = trace.until().unwrap();
        let asked = trace.until_it_asks_for_consent();
        trace.step(300, Event::Tick);
        let ticket = trace.consent.take().unwrap();
        let accepted = if all {
            BTreeMap::from([(name("b"), None)])
        } else {
            BTreeMap::new()
        };
        trace.step(1, Event::ConsentAnswered(ticket, accepted));
        let expected = if all { asked.0 + 9900 - 250 } else { until };
        assert_eq!(trace.until(), Some(expected));
    }
}

#[test]
fn the_consent_of_most_is_not_enough() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let mut raw = led_by("a", 30);
    let three = r#"{"a":"http://a","b":"http://b","c":"http://c"}"#;
    raw.documents.insert(Key::Failsafe, entry(three, 31));
    trace.snapshot(raw);
    let asked = trace.until_it_asks_for_consent();
    let until = trace.until();
    let ticket = trace.consent.take().unwrap();
    let most = BTreeMap::from([(name("b"), None)]);
    trace.step(1, Event::ConsentAnswered(ticket, most));
    assert_eq!(trace.until(), until);
    assert!(until < Some(asked.0 + 9000), "it would have been longer");
}

#[test]
fn a_consent_ends_with_the_release_of_the_lock_that_it_continues() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    trace.until_it_asks_for_consent();
    let ticket = trace.consent.take().unwrap();
    let all = BTreeMap::from([(name("b"), None)]);
    trace.step(1, Event::ConsentAnswered(ticket, all));
    assert!(trace.until().is_some());
    trace.machine.facts.released = Some(Epoch(30));
    assert_eq!(trace.until(), None);
}

/// The lease that is held may be the shorter one: what is asked for by it must not come too late.
#[test]
fn consent_is_asked_for_by_the_ttl_of_the_lease_that_is_held() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let mut raw = led_by("a", 30);
    let longer = entry(r#"{"ttl":60,"failsafe_mode":true}"#, 31);
    raw.documents.insert(Key::Config, longer);
    trace.snapshot(raw);
    let until = trace.until().unwrap();
    while trace.consent.is_none() {
        assert!(trace.now.0 < until, "nobody was asked");
        if trace.lease.is_some() {
            trace.answer_lease(Err(DcsErrorKind::Unavailable));
        }
        trace.step(50, Event::Tick);
    }
}

/// The write that adds it to the list may have been done, and it counts on being asked.
#[test]
fn a_member_that_is_not_in_the_list_yet_is_asked_for_consent_too() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    trace.snapshot(led_by_a_with_c());
    assert_eq!(who_is_asked(trace), vec![name("b"), name("c")]);
}

/// So it is when its record has ended before the list was read, for as long as the list that it is
/// in may be in the store.
#[test]
fn a_member_of_a_list_that_was_sent_is_asked_for_consent_until_the_list_would_show() {
    let without_c = |revision| {
        let mut raw = led_by("a", 30);
        raw.revision = Revision(revision);
        raw
    };
    let mut sent = trace();
    sent.acquire();
    sent.look(primary());
    sent.snapshot(led_by_a_with_c());
    let (ticket, _) = sent
        .write_until(&Key::Failsafe)
        .expect("c is put into the list");
    let answered = |trace: &mut Trace, failure: Option<DcsErrorKind>| {
        let answer = failure.map_or(Ok(()), |kind| Err(Failure::new(kind, "no")));
        trace.step(1, Event::Written(ticket, answer));
    };
    let (both, one) = (vec![name("b"), name("c")], vec![name("b")]);

    let mut trace = sent.clone();
    trace.snapshot(without_c(41));
    assert_eq!(who_is_asked(trace), both, "the write is under way");

    for failure in [None, Some(DcsErrorKind::Unavailable)] {
        let mut trace = sent.clone();
        trace.step(1, Event::Changed);
        answered(&mut trace, failure);
        trace.snapshot(without_c(41));
        assert_eq!(who_is_asked(trace.clone()), both, "the read left before");
        trace.snapshot(without_c(42));
        assert_eq!(who_is_asked(trace), one, "{failure:?}");
    }

    let mut trace = sent.clone();
    answered(&mut trace, Some(DcsErrorKind::Indeterminate));
    trace.snapshot(without_c(41));
    trace.snapshot(without_c(42));
    assert_eq!(who_is_asked(trace), both, "the write may arrive yet");
}

/// It would count on being asked, and the permission rests on the consent of others.
#[test]
fn nobody_is_put_into_the_list_while_the_permission_rests_on_consent() {
    let mut fresh = trace();
    fresh.acquire();
    fresh.look(primary());
    fresh.write_all();
    let asked = fresh.until_it_asks_for_consent();
    let ticket = fresh.consent.take().unwrap();
    let all = BTreeMap::from([(name("b"), None)]);
    for answered in [false, true] {
        let mut trace = fresh.clone();
        if answered {
            trace.step(1, Event::ConsentAnswered(ticket, all.clone()));
        }
        trace.snapshot(led_by_a_with_c());
        assert_eq!(trace.write_until(&Key::Failsafe), None, "{answered}");
        while trace.machine.facts().holding.as_ref().unwrap().renewed <= asked {
            match &trace.lease {
                Some(_) => trace.answer_lease(Ok(LeaseAnswer::Done)),
                None => drop(trace.step(50, Event::Tick)),
            }
        }
        let mut again = led_by_a_with_c();
        again.revision = Revision(50);
        trace.snapshot(again);
        assert!(trace.write_until(&Key::Failsafe).is_some(), "{answered}");
    }
}

/// A write of the earlier holding may have been done after what was read then.
#[test]
fn no_consent_is_asked_for_before_the_store_was_read_in_this_holding() {
    let mut trace = trace();
    trace.acquire();
    trace.look(primary());
    let mut raw = led_by("a", 30);
    raw.revision = Revision(40);
    raw.documents
        .insert(Key::Config, entry(r#"{"ttl":20,"failsafe_mode":true}"#, 39));
    trace.snapshot(raw);
    trace.write_all();
    let succession = |trace: &Trace| matches!(trace.lease, Some((_, LeaseRequest::Succeed(..))));
    while !succession(&trace) {
        match trace.lease {
            Some(_) => trace.answer_lease(Ok(LeaseAnswer::Done)),
            None => drop(trace.step(50, Event::Tick)),
        }
    }
    trace.answer_lease(Ok(LeaseAnswer::Held(Lease {
        ttl: Duration::from_secs(20),
        ..lease(60)
    })));
    // The store is not heard of again.
    let begun = trace.now;
    while trace.until() > Some(trace.now.0 + 100) {
        if trace.lease.is_some() {
            trace.answer_lease(Err(DcsErrorKind::Indeterminate));
        }
        trace.step(50, Event::Tick);
    }
    assert!(
        trace.now.since(begun) > Duration::from_secs(8),
        "long enough to ask"
    );
    assert_eq!(trace.consent, None);
}

/// The state of the store in which a member has come that is not in the list.
fn led_by_a_with_c() -> RawSnapshot {
    let mut raw = led_by("a", 30);
    raw.revision = Revision(40);
    let member = r#"{"conn_url":"postgres://10.0.0.3:5432/postgres","api_url":"http://c",
        "state":"running","role":"replica","spilo_version":"0","timeline":1}"#;
    raw.members.insert("c".to_owned(), entry(member, 31));
    // What is written before the list is there.
    raw.documents.insert(Key::History, entry("[]", 32));
    raw
}

/// Returns whose consent is asked for when nothing more is heard of the store.
fn who_is_asked(mut trace: Trace) -> Vec<MemberName> {
    trace.until_it_asks_for_consent();
    let asked = trace.commands.iter().find_map(|command| match command {
        Command::AskConsent(_, members, _) => Some(members.keys().cloned().collect()),
        _ => None,
    });
    asked.expect("somebody is asked")
}
