//! Failover times, for people to see.

use std::fmt::Write as _;

/// Draws the quantiles of each column; times are in milliseconds, smallest first.
pub(crate) fn table(columns: &[(String, Vec<u64>)]) -> String {
    let mut text = String::new();
    for (name, times) in columns {
        // Writing to a string does not fail.
        let _: Result<(), _> = writeln!(
            text,
            "{name}: min {} p10 {} p50 {} p90 {} p99 {} max {}",
            at(times, 0),
            at(times, 10),
            at(times, 50),
            at(times, 90),
            at(times, 99),
            at(times, 100),
        );
    }
    text
}

/// Draws one column as bars for a terminal.
pub(crate) fn bars(name: &str, times: &[u64]) -> String {
    let counts = histogram(times);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mut text = format!("\n{name}\n");
    for (n, count) in counts.iter().enumerate() {
        let bar = "#".repeat(count * 50 / most);
        let _: Result<(), _> = writeln!(text, "{:>6} ms {count:>5} {bar}", start(times, n));
    }
    text
}

/// Draws all columns as an SVG picture.
pub(crate) fn svg(columns: &[(String, Vec<u64>)]) -> String {
    let height = 20 + columns.len() * 130;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    for (row, (name, times)) in columns.iter().enumerate() {
        let (top, counts) = (20 + row * 130, histogram(times));
        let most = counts.iter().copied().max().unwrap_or(1).max(1);
        let _: Result<(), _> = writeln!(
            text,
            "<text x=\"10\" y=\"{}\">{name}: {} to {} ms, median {}</text>",
            top + 10,
            at(times, 0),
            at(times, 100),
            at(times, 50)
        );
        for (n, count) in counts.iter().enumerate() {
            let tall = count * 90 / most;
            let _: Result<(), _> = writeln!(
                text,
                "<rect x=\"{}\" y=\"{}\" width=\"30\" height=\"{tall}\" fill=\"#336791\">\
                 <title>{} ms: {count}</title></rect>",
                10 + n * 34,
                top + 110 - tall,
                start(times, n)
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

fn at(times: &[u64], share: usize) -> u64 {
    let last = times.len().saturating_sub(1);
    times.get(last * share / 100).copied().unwrap_or(0)
}

/// Counts how many lie in each twentieth of the span.
fn histogram(times: &[u64]) -> [usize; BARS] {
    let mut counts = [0; BARS];
    for time in times {
        let past = time - at(times, 0);
        let bar = usize::try_from(past / width(times)).unwrap_or(0);
        counts[bar.min(BARS - 1)] += 1;
    }
    counts
}

fn start(times: &[u64], bar: usize) -> u64 {
    at(times, 0) + width(times) * u64::try_from(bar).unwrap_or(0)
}

fn width(times: &[u64]) -> u64 {
    let span = at(times, 100) - at(times, 0);
    span / u64::try_from(BARS).unwrap_or(1) + 1
}

const BARS: usize = 20;
