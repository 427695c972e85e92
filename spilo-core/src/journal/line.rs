//! The lines of a journal.
//!
//! Every line ends with a sum over what stands before it, so that a byte that changed on a disk
//! is told apart from a machine that decides otherwise. A snapshot of the store comes every few
//! seconds and hardly differs from the one before: what did not change in it is written as its
//! revision alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dcs::{Entry, Key, LeaderRecord, RawSnapshot};
use crate::ids::Revision;
use crate::machine::{Event, Machine, ReadAnswer, Step, Ticket};
use crate::time::NodeTime;

/// A header, as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct HeaderLine {
    /// The version of the program that wrote it.
    pub(super) spilo: String,
    /// How many steps are missing before it.
    pub(super) lost: u64,
    /// The machine.
    pub(super) machine: Box<Machine>,
}

/// The part of a header that every version of the format has.
#[derive(Debug, Deserialize)]
pub(super) struct AnyHeader {
    /// The version of the format.
    pub(super) journal: u64,
}

/// A turn, as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct TurnLine {
    /// Its number since the header.
    pub(super) n: u64,
    /// The time that the machine was told.
    pub(super) now: NodeTime,
    /// What happened, unless it is a snapshot.
    pub(super) event: Option<Event>,
    /// The snapshot that was read.
    pub(super) snapshot: Option<SnapshotForm>,
    /// What came of it.
    pub(super) step: Step,
}

/// A snapshot of the store without what the one before it had.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotForm {
    pub(super) ticket: Ticket,
    revision: Revision,
    leader: Option<LeaderRecord>,
    members: BTreeMap<String, EntryForm>,
    documents: BTreeMap<Key, EntryForm>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum EntryForm {
    /// As in the snapshot before, which had it at this revision too.
    Same(Revision),
    New(Entry),
}

impl SnapshotForm {
    fn of(ticket: Ticket, raw: &RawSnapshot, last: Option<&RawSnapshot>) -> Self {
        let form = |entry: &Entry, before: Option<&Entry>| match before {
            Some(before) if before == entry => EntryForm::Same(entry.revision),
            _ => EntryForm::New(entry.clone()),
        };
        Self {
            ticket,
            revision: raw.revision,
            leader: raw.leader.clone(),
            members: raw
                .members
                .iter()
                .map(|(name, entry)| {
                    let before = last.and_then(|last| last.members.get(name));
                    (name.clone(), form(entry, before))
                })
                .collect(),
            documents: raw
                .documents
                .iter()
                .map(|(key, entry)| {
                    let before = last.and_then(|last| last.documents.get(key));
                    (*key, form(entry, before))
                })
                .collect(),
        }
    }

    /// Returns the snapshot, or the name of an entry that `last` should have and has not.
    pub(super) fn resolve(self, last: Option<&RawSnapshot>) -> Result<RawSnapshot, String> {
        let entry = |form: EntryForm, name: &str, before: Option<&Entry>| match form {
            EntryForm::New(entry) => Ok(entry),
            EntryForm::Same(revision) => before
                .filter(|entry| entry.revision == revision)
                .cloned()
                .ok_or_else(|| {
                    format!("it refers to {name} of revision {revision}, which no line had")
                }),
        };
        let mut raw = RawSnapshot {
            revision: self.revision,
            leader: self.leader,
            ..RawSnapshot::default()
        };
        for (name, form) in self.members {
            let before = last.and_then(|last| last.members.get(&name));
            let entry = entry(form, &format!("member {name}"), before)?;
            raw.members.insert(name, entry);
        }
        for (key, form) in self.documents {
            let before = last.and_then(|last| last.documents.get(&key));
            raw.documents.insert(key, entry(form, key.path(), before)?);
        }
        Ok(raw)
    }
}

/// Returns the header line, or `None` if the machine cannot be written.
pub(super) fn header(machine: &Machine, lost: u64) -> Option<String> {
    let machine = serde_json::to_string(machine).ok()?;
    let version = env!("CARGO_PKG_VERSION");
    Some(summed(format!(
        r#"{HEADER}{FORMAT},"spilo":"{version}","lost":{lost},"machine":{machine}"#
    )))
}

/// Returns the half of a turn's line that is known before the step.
pub(super) fn told(
    number: u64,
    now: NodeTime,
    event: &Event,
    last: Option<&RawSnapshot>,
) -> Option<String> {
    let (name, event) = match event {
        Event::Read(ticket, Ok(ReadAnswer::Snapshot(raw))) => {
            let form = SnapshotForm::of(*ticket, raw, last);
            ("snapshot", serde_json::to_string(&form).ok()?)
        }
        other => ("event", serde_json::to_string(other).ok()?),
    };
    Some(format!(
        r#"{{"n":{number},"now":{},"{name}":{event}"#,
        now.0
    ))
}

/// Returns the whole line of a turn, given its first half.
pub(super) fn finished(told: String, step: &Step) -> Option<String> {
    let step = serde_json::to_string(step).ok()?;
    Some(summed(format!(r#"{told},"step":{step}"#)))
}

/// Returns the snapshot of the store that an event brings.
pub(super) fn snapshot_in(event: &Event) -> Option<&RawSnapshot> {
    match event {
        Event::Read(_, Ok(ReadAnswer::Snapshot(raw))) => Some(raw),
        _ => None,
    }
}

/// Returns what the sum of a line is over, and whether the sum is right; `None` if there is none.
pub(super) fn check(line: &str) -> Option<bool> {
    let sum = line.strip_suffix("\"}")?;
    let at = sum.len().checked_sub(SUM_DIGITS)?;
    let (body, digits) = (sum.get(..at)?.strip_suffix(SUM)?, sum.get(at..)?);
    Some(digits == format!("{:016x}", sum_of(body)))
}

pub(super) fn summed(mut body: String) -> String {
    let sum = sum_of(&body);
    body.push_str(SUM);
    body.push_str(&format!("{sum:016x}\"}}"));
    body
}

/// FNV-1a of 64 bits: it has to find bytes that changed by accident, and needs no dependency.
fn sum_of(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// How a header begins, and no turn does.
pub(super) const HEADER: &str = "{\"journal\":";

/// The version of the format. It changes with everything that makes an older program read
/// something else than what was written, and so with most changes of what a machine holds.
pub(super) const FORMAT: u64 = 5;

const SUM: &str = ",\"sum\":\"";

const SUM_DIGITS: usize = 16;
