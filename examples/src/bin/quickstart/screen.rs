//! What the watcher sees: a story that grows, and under it a table that is redrawn.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::{Duration, Instant};

/// The terminal, or the file that takes its place.
///
/// On a terminal the table is redrawn in place. Elsewhere it is printed when something in it
/// changes that matters, and now and then.
#[derive(Debug)]
pub(crate) struct Screen {
    begun: Instant,
    is_terminal: bool,
    colours: bool,
    /// How many lines of the table are on the terminal.
    drawn: usize,
    /// The table as it is or would be on the terminal.
    table: Vec<String>,
    /// What mattered in the table that was printed last, and when that was.
    printed: Option<(Vec<String>, Instant)>,
    /// How often the table is printed although nothing in it has changed.
    every: Option<Duration>,
}

/// A line of the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) member: String,
    pub(crate) role: String,
    pub(crate) state: String,
    pub(crate) timeline: String,
    pub(crate) position: String,
    pub(crate) lag: String,
    pub(crate) lease: String,
    pub(crate) rule: String,
    pub(crate) is_dead: bool,
}

impl Screen {
    /// Creates the screen; its time begins now.
    pub(crate) fn new() -> Self {
        let is_terminal = stdout().is_terminal();
        Self {
            begun: Instant::now(),
            is_terminal,
            colours: is_terminal && std::env::var_os("NO_COLOR").is_none(),
            drawn: 0,
            table: Vec::new(),
            printed: None,
            every: Some(PRINT_EVERY),
        }
    }

    /// Prints the table no more without a change of what it shows.
    pub(crate) fn calm(&mut self) {
        self.every = None;
    }

    /// Tells an event of the story, with its time.
    pub(crate) fn tell(&mut self, at: Instant, text: &str) {
        let seconds = at.saturating_duration_since(self.begun).as_secs_f64();
        let mut lines = wrapped(text, WIDTH - INDENT).into_iter();
        let mut told = format!("{seconds:7.2} s  {}\n", lines.next().unwrap_or_default());
        for line in lines {
            told.push_str(&format!("{:INDENT$}{line}\n", ""));
        }
        self.put(&told);
    }

    /// Prints lines that belong to no moment.
    pub(crate) fn say(&mut self, text: &str) {
        self.put(&format!("{text}\n"));
    }

    /// Prints a fact under its name, in a column of its own.
    pub(crate) fn state(&mut self, name: &str, fact: &str) {
        let mut lines = wrapped(fact, WIDTH - NAME).into_iter();
        let mut told = format!("{name:NAME$}{}\n", lines.next().unwrap_or_default());
        for line in lines {
            told.push_str(&format!("{:NAME$}{line}\n", ""));
        }
        self.put(&told);
    }

    /// Shows the table and a line under it.
    pub(crate) fn show(&mut self, rows: &[Row], under: &str) {
        let mut table = vec![String::new(), self.paint(DIM, &header())];
        table.extend(rows.iter().map(|row| self.line(row)));
        if !under.is_empty() {
            table.push(self.paint(DIM, under));
        }
        self.table = table;
        if self.is_terminal {
            self.put("");
            return;
        }
        let matters: Vec<String> = rows
            .iter()
            .map(|row| [&*row.member, &row.role, &row.state, &row.timeline].join(" "))
            .collect();
        let due = match &self.printed {
            None => true,
            Some((last, at)) if *last == matters => {
                self.every.is_some_and(|pause| at.elapsed() > pause)
            }
            // Several things change at once; one table is enough.
            Some((_, at)) => at.elapsed() > PRINT_PAUSE,
        };
        if due {
            self.printed = Some((matters, Instant::now()));
            write(&format!("{}\n\n", self.table.join("\n")));
        }
    }

    /// Leaves the table where it is, and goes on under it.
    pub(crate) fn leave(&mut self) {
        self.drawn = 0;
        self.table.clear();
    }

    /// Prints text in the place of the table, and the table after it.
    fn put(&mut self, text: &str) {
        if !self.is_terminal {
            write(text);
            return;
        }
        let mut all = String::new();
        if self.drawn > 0 {
            // Up to the table's first line, and clear to the end of the screen.
            all.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        all.push_str(text);
        if !self.table.is_empty() {
            // On a narrow terminal lines are cut, not wrapped: their number must be what it seems.
            all.push_str(&format!("\x1b[?7l{}\n\x1b[?7h", self.table.join("\n")));
        }
        self.drawn = self.table.len();
        write(&all);
    }

    fn line(&self, row: &Row) -> String {
        let plain = columns([
            &row.member,
            &row.role,
            &row.state,
            &row.timeline,
            &row.position,
            &row.lag,
            &row.lease,
            &row.rule,
        ]);
        match (row.is_dead, row.role.as_str()) {
            (true, _) => self.paint(RED, &plain),
            (false, "primary") => self.paint(GREEN, &plain),
            (false, _) => plain,
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours {
            format!("{colour}{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn header() -> String {
    columns([
        "member", "role", "state", "timeline", "position", "lag", "lease", "rule",
    ])
}

fn columns(cells: [&str; 8]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        let cell: String = cell.chars().take(width).collect();
        line.push_str(&format!("{cell:<width$}  "));
    }
    line.trim_end().to_owned()
}

/// Breaks text into lines, between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is one line at least");
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn write(text: &str) {
    // Nobody who looks is no reason to stop: the exit status tells the rest.
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .unwrap_or_default();
}

const WIDTH: usize = 100;
/// The width of a time, and the space after it.
const INDENT: usize = 11;
/// The width of the name of a fact.
const NAME: usize = 16;
/// Of the columns; with two spaces between them they fill the width.
const WIDTHS: [usize; 8] = [8, 7, 16, 8, 10, 8, 6, 22];

const PRINT_EVERY: Duration = Duration::from_secs(5);
const PRINT_PAUSE: Duration = Duration::from_millis(700);

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
