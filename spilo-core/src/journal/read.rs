//! Reading the lines of a journal, whatever bytes they are.

use std::iter::{Enumerate, Peekable};

use super::is_header;
use super::line::{AnyHeader, FORMAT, HeaderLine, TurnLine, check};
use crate::dcs::RawSnapshot;
use crate::machine::{Event, Machine, ReadAnswer, Step};
use crate::time::NodeTime;

/// Reads lines into records.
///
/// A journal that was begun anew in the same place (after a restart, or after lines were lost)
/// gives a [`Record::Begin`] again. A line that is cut off at the end of what one program wrote
/// gives an error of [`Fault::Cut`], after which the reader goes on with what follows, if
/// anything does. After any other error it is at its end.
#[derive(Debug)]
pub struct Reader<'a, I: Iterator<Item = &'a str>> {
    lines: Peekable<Enumerate<I>>,
    begun: bool,
    ended: bool,
    number: u64,
    snapshot: Option<RawSnapshot>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A header.
    Begin(Begin),
    /// A turn.
    Turn(Box<Turn>),
}

/// Where a journal begins, or begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The number of the line, from one.
    pub line: usize,
    /// The version of spilo that wrote it.
    pub version: String,
    /// How many steps are missing before it.
    pub lost: u64,
    /// The machine as it stood.
    pub machine: Box<Machine>,
}

/// One step as it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The number of the line, from one.
    pub line: usize,
    /// The time that the machine was told.
    pub now: NodeTime,
    /// What happened.
    pub event: Event,
    /// What came of it.
    pub step: Step,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct JournalError {
    /// The number of the line, from one.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is the last one of a program that ended while it wrote; the lines before it count.
    #[error("cut off; what stands before it counts")]
    Cut,
    /// It is not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Lines before it are gone.
    #[error("{missing} lines are missing before it")]
    Missing {
        /// How many.
        missing: u64,
    },
    /// It is the header of another version of the format.
    #[error("format {found}, and this program reads format {FORMAT}")]
    Format {
        /// The version that it says.
        found: u64,
    },
    /// There is no header before it.
    #[error("a journal begins with a header, and this is none")]
    NoHeader,
    /// The machine makes something else of it today.
    #[error("the replay differs: {0}")]
    Differs(String),
}

impl<'a, I: Iterator<Item = &'a str>> Reader<'a, I> {
    /// Creates a reader of lines, without their line breaks. Empty lines are passed over.
    pub fn new(lines: impl IntoIterator<IntoIter = I>) -> Self {
        Self {
            lines: lines.into_iter().enumerate().peekable(),
            begun: false,
            ended: false,
            number: 0,
            snapshot: None,
        }
    }

    fn record(&mut self, line: usize, text: &str) -> Result<Record, Fault> {
        if is_header(text) {
            // Before the sum, which another format may make in another way.
            match serde_json::from_str::<AnyHeader>(text) {
                Ok(any) if any.journal != FORMAT => {
                    return Err(Fault::Format { found: any.journal });
                }
                Ok(_) | Err(_) => {}
            }
        } else if !self.begun {
            return Err(Fault::NoHeader);
        }
        match check(text) {
            Some(true) => {}
            Some(false) => return Err(damaged("its sum is another one")),
            None if self.is_last() => return Err(Fault::Cut),
            None => return Err(damaged("it does not end with its sum")),
        }
        if is_header(text) {
            let header: HeaderLine = parse(text)?;
            self.begun = true;
            self.number = 0;
            self.snapshot = None;
            return Ok(Record::Begin(Begin {
                line,
                version: header.spilo,
                lost: header.lost,
                machine: header.machine,
            }));
        }
        let turn: TurnLine = parse(text)?;
        self.turn(line, turn)
            .map(|turn| Record::Turn(Box::new(turn)))
    }

    fn turn(&mut self, line: usize, turn: TurnLine) -> Result<Turn, Fault> {
        let expected = self.number.saturating_add(1);
        if turn.n > expected {
            let missing = turn.n - expected;
            return Err(Fault::Missing { missing });
        }
        if turn.n < expected {
            return Err(damaged("it stands after a later one"));
        }
        self.number = expected;
        let event = match (turn.event, turn.snapshot) {
            (Some(event), None) => event,
            (None, Some(form)) => {
                let ticket = form.ticket;
                let raw = form
                    .resolve(self.snapshot.as_ref())
                    .map_err(Fault::Damaged)?;
                Event::Read(ticket, Ok(ReadAnswer::Snapshot(Box::new(raw))))
            }
            (None, None) | (Some(_), Some(_)) => return Err(damaged("it has no event, or two")),
        };
        if let Some(raw) = super::line::snapshot_in(&event) {
            self.snapshot = Some(raw.clone());
        }
        Ok(Turn {
            line,
            now: turn.now,
            event,
            step: turn.step,
        })
    }

    /// Returns whether the line that was taken last is the last that one program wrote.
    fn is_last(&mut self) -> bool {
        self.lines.peek().is_none_or(|(_, next)| is_header(next))
    }
}

impl<'a, I: Iterator<Item = &'a str>> Iterator for Reader<'a, I> {
    type Item = Result<Record, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let (at, text) = self.lines.by_ref().find(|(_, text)| !text.is_empty())?;
        let line = at + 1;
        let record = self.record(line, text);
        if let Err(fault) = &record {
            self.ended = *fault != Fault::Cut;
        }
        Some(record.map_err(|fault| JournalError { line, fault }))
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::Damaged(error.to_string()))
}

fn damaged(problem: &str) -> Fault {
    Fault::Damaged(problem.to_owned())
}
