//! What happened, for people to read.

use std::fmt;

/// The end of a long story, a line an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Story {
    title: String,
    lines: std::collections::VecDeque<String>,
    quiet: bool,
}

impl Story {
    /// Sets the line that stands above all.
    pub(super) fn title(&mut self, text: String) {
        self.title = text;
    }

    pub(super) fn add(&mut self, now: u64, text: fmt::Arguments<'_>) {
        if self.quiet {
            return;
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        let line = format!("{:>6}.{:03} {text}", now / 1000, now % 1000);
        self.lines.push_back(line);
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.title.is_empty() {
            writeln!(f, "{}", self.title)?;
        }
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// How many lines are kept: about the last minute of a cluster in trouble.
const KEPT: usize = 160;
