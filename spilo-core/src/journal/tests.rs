//! What is written is read, what is read is replayed, and what is damaged is named.

#[cfg(feature = "agent")]
mod driven;
mod forms;
mod words;
mod world;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// A sink and what it took, with what it answers to each line.
fn sink(
    answer: impl Fn(&str) -> Taken + Send + 'static,
) -> (
    Arc<Mutex<Vec<String>>>,
    impl FnMut(&str) -> Taken + Send + 'static,
) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let take = move |line: &str| {
        let taken = answer(line);
        if taken != Taken::Lost {
            kept.lock().unwrap().push(line.to_owned());
        }
        taken
    };
    (lines, take)
}

/// The journal of a node that makes a cluster, leads it for a while and stops.
fn recorded() -> Vec<String> {
    let (lines, take) = sink(|_| Taken::Kept);
    let mut recorder = Recorder::new(take);
    world::live(&mut |machine, now, event| recorder.step(machine, now, event));
    let lines = lines.lock().unwrap();
    lines.clone()
}

fn replay(lines: &[String]) -> Result<Vec<Record>, JournalError> {
    Replay::new(lines.iter().map(String::as_str)).collect()
}

fn fault(lines: &[String]) -> (usize, Fault) {
    let error = replay(lines).unwrap_err();
    (error.line, error.fault)
}

#[test]
fn a_replay_ends_with_the_same_machine() {
    let mut last = None;
    let (lines, take) = sink(|_| Taken::Kept);
    let mut recorder = Recorder::new(take);
    world::live(&mut |machine, now, event| {
        let step = recorder.step(machine, now, event);
        last = Some(machine.clone());
        step
    });
    let lines = lines.lock().unwrap();
    let mut replay = Replay::new(lines.iter().map(String::as_str));
    let records: Result<Vec<_>, _> = replay.by_ref().collect();
    assert_eq!(records.unwrap().len(), lines.len());
    assert_eq!(replay.machine(), last.as_ref());
}

#[test]
fn a_journal_may_begin_at_any_moment() {
    let (lines, take) = sink(|_| Taken::Kept);
    let mut recorder = Recorder::new(take);
    let mut steps = 0;
    world::live(&mut |machine, now, event| {
        steps += 1;
        if steps < 40 {
            machine.step(now, event)
        } else {
            recorder.step(machine, now, event)
        }
    });
    let lines = lines.lock().unwrap();
    assert_eq!(replay(&lines).unwrap().len(), steps - 38);
}

#[test]
fn a_snapshot_of_the_store_repeats_nothing() {
    let lines = recorded();
    let snapshots: Vec<_> = lines
        .iter()
        .filter(|l| l.contains("\"snapshot\":"))
        .collect();
    let with_settings = snapshots.iter().filter(|l| l.contains("loop_wait"));
    assert!(snapshots.len() > 10, "{}", snapshots.len());
    assert_eq!(with_settings.count(), 1);
    let longest = snapshots.last().unwrap().len();
    assert!(longest < 1000, "{longest} bytes");
}

#[test]
fn lines_that_were_lost_begin_a_journal_anew() {
    let (lines, take) = {
        let count = Mutex::new(0);
        sink(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            if (30..33).contains(&*count) {
                Taken::Lost
            } else {
                Taken::Kept
            }
        })
    };
    let mut recorder = Recorder::new(take);
    world::live(&mut |machine, now, event| recorder.step(machine, now, event));
    let lines = lines.lock().unwrap();
    let records = replay(&lines).unwrap();
    let begins: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Begin(begin) => Some(begin.lost),
            Record::Turn(_) => None,
        })
        .collect();
    // The line, and the steps until two headers had been tried in vain and ten seconds apart.
    assert_eq!(begins.len(), 2);
    assert!(begins[1] > 3, "{begins:?}");
}

#[test]
fn a_sink_that_has_enough_gets_a_header_next() {
    let (lines, take) = {
        let count = Mutex::new(0);
        sink(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            if *count % 20 == 0 {
                Taken::Full
            } else {
                Taken::Kept
            }
        })
    };
    let mut recorder = Recorder::new(take);
    world::live(&mut |machine, now, event| recorder.step(machine, now, event));
    let lines = lines.lock().unwrap();
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(is_header(line), at % 20 == 0, "line {at}");
    }
    replay(&lines).unwrap();
}

#[test]
fn a_byte_that_changed_is_found_in_its_line() {
    let lines = recorded();
    let snapshot = lines
        .iter()
        .position(|l| l.contains("\"snapshot\":"))
        .unwrap();
    for at in [0, 1, snapshot, lines.len() - 1] {
        let length = lines[at].len();
        for byte in (0..length).step_by(length / 40).chain(length - 20..length) {
            let mut damaged = lines.clone();
            let mut bytes = damaged[at].clone().into_bytes();
            bytes[byte] ^= 1;
            damaged[at] = String::from_utf8_lossy(&bytes).into_owned();
            let error = read_all(&damaged).unwrap_err();
            assert_eq!(error.line, at + 1, "byte {byte}: {error}");
            let expected = match error.fault {
                Fault::Damaged(_) => true,
                Fault::Cut => at + 1 == lines.len(),
                // What tells a header from other lines is in its first bytes.
                Fault::Format { .. } | Fault::NoHeader => at == 0 && byte < 13,
                Fault::Missing { .. } | Fault::Differs(_) => false,
            };
            assert!(expected, "byte {byte}: {error}");
        }
    }
}

#[test]
fn lines_that_are_gone_are_missed() {
    let mut lines = recorded();
    lines.drain(7..9);
    assert_eq!(fault(&lines), (8, Fault::Missing { missing: 2 }));
    let mut lines = recorded();
    lines.swap(7, 8);
    assert_eq!(fault(&lines), (8, Fault::Missing { missing: 1 }));
    let mut lines = recorded();
    lines.insert(8, lines[7].clone());
    assert!(matches!(fault(&lines), (9, Fault::Damaged(_))));
    let mut lines = recorded();
    lines.remove(0);
    assert_eq!(fault(&lines), (1, Fault::NoHeader));
}

#[test]
fn what_stands_before_a_cut_counts() {
    let mut lines = recorded();
    let whole = lines.len();
    let half = lines[whole - 1].len() / 2;
    lines[whole - 1].truncate(half);
    let mut replay = Replay::new(lines.iter().map(String::as_str));
    let turns = replay.by_ref().take_while(Result::is_ok).count();
    assert_eq!(turns, whole - 1);
    assert_eq!(fault(&lines), (whole, Fault::Cut));

    // The next agent adds its journal to the same file.
    lines.extend(recorded());
    let replay = Replay::new(lines.iter().map(String::as_str));
    let (good, bad): (Vec<_>, Vec<_>) = replay.partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (2 * whole - 1, 1));
    // In the middle of what one program wrote it is no cut.
    let mut lines = recorded();
    lines[5].truncate(20);
    assert!(matches!(fault(&lines), (6, Fault::Damaged(_))));
}

#[test]
fn the_header_of_another_format_is_told_as_such() {
    let mut lines = recorded();
    lines[0] = r#"{"journal":0,"anything":"else"}"#.to_owned();
    assert_eq!(fault(&lines), (1, Fault::Format { found: 0 }));
}

#[test]
fn a_step_that_comes_out_otherwise_is_named_with_its_first_difference() {
    let lines = recorded();
    let change = |from: &str, to: &str| {
        let at = lines.iter().rposition(|l| l.contains(from)).unwrap();
        let mut changed = lines.clone();
        let body = changed[at].replacen(from, to, 1);
        let body = body[..body.rfind(",\"sum\"").unwrap()].to_owned();
        changed[at] = line::summed(body);
        (at + 1, fault(&changed))
    };
    let rule = r#""step":{"decision":{"rule":"Lead""#;
    let (at, found) = change(rule, r#""step":{"decision":{"rule":"Promote""#);
    let text = "the rule was Promote and now is Lead".to_owned();
    assert_eq!(found, (at, Fault::Differs(text)));
    let (at, found) = change(
        r#""commands":[{"Lease":"#,
        r#""commands":["Fence",{"Lease":"#,
    );
    assert!(
        matches!(&found, (line, Fault::Differs(text)) if *line == at
            && text.starts_with("command 1 was Fence and now is Lease(")),
        "{found:?}"
    );
}

#[test]
fn facts_that_no_machine_had_end_the_replay_and_not_the_program() {
    let mut lines = recorded();
    let body = lines[0].replacen(r#""ticket":0"#, &format!(r#""ticket":{}"#, u64::MAX), 1);
    let body = body[..body.rfind(",\"sum\"").unwrap()].to_owned();
    lines[0] = line::summed(body);
    assert!(matches!(fault(&lines), (2, Fault::Differs(_))));
}

#[test]
fn any_bytes_give_an_error_and_no_panic() {
    let whole = recorded();
    let mut seed = 1_u64;
    let mut draw = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for _ in 0..300 {
        let mut bytes = whole[draw(whole.len())].clone().into_bytes();
        bytes.truncate(draw(4000));
        for _ in 0..draw(8) {
            if !bytes.is_empty() {
                let at = draw(bytes.len());
                bytes[at] = u8::try_from(draw(256)).unwrap();
            }
        }
        bytes.retain(|byte| *byte != b'\n');
        let line = String::from_utf8_lossy(&bytes).into_owned();
        let read = read_all(&[whole[0].clone(), line.clone(), whole[1].clone()]);
        assert!(
            read.is_err() || line.is_empty() || whole.contains(&line),
            "{line}"
        );
    }
}

fn read_all(lines: &[String]) -> Result<Vec<Record>, JournalError> {
    Reader::new(lines.iter().map(String::as_str)).collect()
}

#[test]
fn a_header_alone_is_a_snapshot() {
    let mut machine = world::machine();
    machine.step(NodeTime(500), Event::Tick);
    let header = snapshot(&machine);
    let records = replay(&[header]).unwrap();
    assert!(matches!(&records[..], [Record::Begin(begin)] if *begin.machine == machine));
}
