//! Running a copy of the machine over what it was told.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::read::{Fault, JournalError, Reader, Record, Turn};
use crate::machine::{Machine, Step};

/// Replays a journal: gives its records one by one, and an error where the machine of this program
/// makes something else of an event than the journal says.
///
/// The whole step is compared, down to the words of the reason. After an error that is not
/// [`Fault::Cut`] the replay is at its end.
#[derive(Debug)]
pub struct Replay<'a, I: Iterator<Item = &'a str>> {
    reader: Reader<'a, I>,
    machine: Option<Machine>,
    ended: bool,
}

impl<'a, I: Iterator<Item = &'a str>> Replay<'a, I> {
    /// Creates a replay of lines, without their line breaks.
    pub fn new(lines: impl IntoIterator<IntoIter = I>) -> Self {
        Self {
            reader: Reader::new(lines),
            machine: None,
            ended: false,
        }
    }

    /// Returns the machine as it stands after the record that was given last.
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    fn run(&mut self, turn: &Turn) -> Result<(), Fault> {
        let machine = self.machine.as_mut().ok_or(Fault::NoHeader)?;
        // A journal that somebody wrote by hand may hold facts that no machine ever had, and the
        // machine asserts what it relies on.
        let step = catch_unwind(AssertUnwindSafe(|| {
            machine.step(turn.now, turn.event.clone())
        }))
        .map_err(|_| Fault::Differs("an assertion of the machine fails".to_owned()))?;
        match difference(&turn.step, &step) {
            None => Ok(()),
            Some(difference) => Err(Fault::Differs(difference)),
        }
    }
}

impl<'a, I: Iterator<Item = &'a str>> Iterator for Replay<'a, I> {
    type Item = Result<Record, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = match self.reader.next()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        match &record {
            Record::Begin(begin) => self.machine = Some((*begin.machine).clone()),
            Record::Turn(turn) => {
                if let Err(fault) = self.run(turn) {
                    self.ended = true;
                    let line = turn.line;
                    return Some(Err(JournalError { line, fault }));
                }
            }
        }
        Some(Ok(record))
    }
}

/// Returns the first thing in which two steps differ.
fn difference(then: &Step, today: &Step) -> Option<String> {
    let say = |what: &str, then: &dyn std::fmt::Debug, today: &dyn std::fmt::Debug| {
        Some(format!("{what} was {then:?} and now is {today:?}"))
    };
    let (old, new) = (&then.decision, &today.decision);
    if old.rule != new.rule {
        return say("the rule", &old.rule, &new.rule);
    }
    if old.why != new.why {
        return say("the reason", &old.why, &new.why);
    }
    if old.action != new.action {
        return say("the action", &old.action, &new.action);
    }
    let longer = then.commands.len().max(today.commands.len());
    for number in 0..longer {
        let (old, new) = (then.commands.get(number), today.commands.get(number));
        if old != new {
            let what = format!("command {}", number + 1);
            return match (old, new) {
                (Some(old), Some(new)) => say(&what, old, new),
                (Some(old), None) => Some(format!("{what} was {old:?} and is not given now")),
                (None, _) => Some(format!("{what} is new: {new:?}")),
            };
        }
    }
    if then.wake_at != today.wake_at {
        return say("the time to wake at", &then.wake_at, &today.wake_at);
    }
    if then.news != today.news {
        return say("whether it is news", &then.news, &today.news);
    }
    None
}
