//! The measurements side by side, and what they say.

use std::fmt::Write as _;

use serde::Serialize;

use super::contender::{Contender, FloorCodec, Row};
use super::meter::Cost;

/// What one run of one row of one tool took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// The round.
    pub round: usize,
    /// The row.
    pub row: Row,
    /// The tool.
    pub contender: Contender,
    /// What it took.
    pub cost: Cost,
}

/// All samples of a run.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The uncompressed bytes of the files of the log, and of a base backup.
    pub bytes: (u64, u64),
    /// How many files of the log there are.
    pub segments: usize,
    /// What was measured.
    pub samples: Vec<Sample>,
}

/// Whether the acceptance holds in a row.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The row.
    pub row: Row,
    /// Whether it does.
    pub holds: bool,
    /// Why, or why not.
    pub reason: String,
}

/// What the runs of a row took together.
struct Line {
    contender: Contender,
    wall: Vec<f64>,
    cpu_s: f64,
    peak_mib: f64,
    store_cpu_s: f64,
}

impl Summary {
    /// Returns the tables in Markdown, one per row, tools in the order in which they were named.
    pub fn tables(&self, contenders: &[Contender]) -> String {
        let mut text = String::new();
        for row in Row::ALL {
            let lines: Vec<Line> = contenders
                .iter()
                .filter_map(|contender| self.line(row, *contender))
                .collect();
            if !lines.is_empty() {
                self.table(&mut text, row, &lines);
            }
        }
        text
    }

    /// Returns a verdict for every row that has a peer.
    pub fn verdicts(&self, contenders: &[Contender]) -> Vec<Verdict> {
        let rows = Row::ALL.into_iter();
        rows.filter_map(|row| self.verdict(row, contenders))
            .collect()
    }

    fn verdict(&self, row: Row, contenders: &[Contender]) -> Option<Verdict> {
        let ours = self.line(row, Contender::Spilo(FloorCodec::Zstd))?;
        let floor = self.line(row, Contender::Floor(FloorCodec::Zstd));
        let peers = contenders.iter().filter(|contender| contender.is_peer());
        let peers: Vec<Line> = peers.filter_map(|peer| self.line(row, *peer)).collect();
        if peers.is_empty() {
            return None;
        }
        let (own, runs) = (ours.median(), ours.wall.len());
        let mut holds = runs >= RUNS;
        let mut reasons = vec![format!("{runs} runs of {RUNS}")];
        for peer in &peers {
            let (theirs, name) = (peer.median(), peer.contender);
            let within = if row.is_of_log() { MARGIN } else { 1.0 };
            let near = floor.as_ref().filter(|floor| {
                row.is_of_log() && floor.median() > theirs * MARGIN && own <= floor.median() * NEAR
            });
            let good = own < theirs * within || near.is_some();
            holds &= good;
            let wins = self.wins(row, peer.contender);
            reasons.push(format!(
                "{:.2} of {name}'s time, ahead in {wins} of {runs}{}",
                own / theirs,
                if near.is_some() {
                    ", within 5 % of the floor"
                } else {
                    ""
                }
            ));
        }
        if ours.peak_mib >= MEMORY_MIB {
            holds = false;
        }
        reasons.push(format!("peak {:.0} MiB of {MEMORY_MIB:.0}", ours.peak_mib));
        Some(Verdict {
            row,
            holds,
            reason: reasons.join("; "),
        })
    }

    /// Returns in how many rounds spilo was faster.
    fn wins(&self, row: Row, peer: Contender) -> usize {
        let wall = |round: usize, contender: Contender| {
            let mut samples = self.samples.iter();
            let found = samples.find(|sample| {
                sample.round == round && sample.row == row && sample.contender == contender
            });
            found.map(|sample| sample.cost.wall_us)
        };
        let rounds = self.samples.iter().map(|sample| sample.round).max();
        let ours = Contender::Spilo(FloorCodec::Zstd);
        let won = |round: &usize| {
            wall(*round, ours)
                .zip(wall(*round, peer))
                .is_some_and(|(own, theirs)| own < theirs)
        };
        (1..=rounds.unwrap_or(0)).filter(won).count()
    }

    fn line(&self, row: Row, contender: Contender) -> Option<Line> {
        let samples = self.samples.iter();
        let costs: Vec<Cost> = samples
            .filter(|sample| sample.row == row && sample.contender == contender)
            .map(|sample| sample.cost)
            .collect();
        let of = |pick: fn(&Cost) -> u64| {
            let mut all: Vec<f64> = costs.iter().map(|cost| as_f64(pick(cost))).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let wall: Vec<f64> = of(|cost| cost.wall_us).iter().map(|us| us / 1e6).collect();
        let greatest = *of(|cost| cost.peak_kib).last()?;
        Some(Line {
            contender,
            wall,
            cpu_s: median(&of(|cost| cost.cpu_us)) / 1e6,
            peak_mib: greatest / 1024.0,
            store_cpu_s: median(&of(|cost| cost.store_cpu_us)) / 1e6,
        })
    }

    fn table(&self, text: &mut String, row: Row, lines: &[Line]) {
        let bytes = as_f64(if row.is_of_log() {
            self.bytes.0
        } else {
            self.bytes.1
        });
        let what = if row.is_of_log() {
            format!("{} files of the log", self.segments)
        } else {
            "one base backup".to_owned()
        };
        let of = |contender: Contender| {
            let mut lines = lines.iter();
            let found = lines.find(|line| line.contender == contender);
            found.map(Line::median)
        };
        let spilo = of(Contender::Spilo(FloorCodec::Zstd));
        let mut add = |line: String| writeln!(text, "{line}").expect("a string takes every text");
        add(format!("\n{row}: {what}, {:.0} MB\n", bytes / 1e6));
        add(HEAD.to_owned());
        add(format!("|{}", "---|".repeat(HEAD.matches('|').count() - 1)));
        for line in lines {
            let wall = line.median();
            let ratio = |other: Option<f64>| {
                other.map_or_else(|| "-".to_owned(), |other| format!("{:.2}", wall / other))
            };
            let rate = if row.is_of_log() {
                format!("{:.1}", as_f64(self.segments as u64) / wall)
            } else {
                "-".to_owned()
            };
            let (least, greatest) = (line.wall.first(), line.wall.last());
            add(format!(
                "| {} | {} | {rate} | {:.1} | {:.2} | {:.0} | {wall:.2} [{:.2}..{:.2}] | {} | {} | {:.2} |",
                line.contender,
                line.contender.codec(),
                bytes / 1e6 / wall,
                line.cpu_s / (bytes / 1e9),
                line.peak_mib,
                least.unwrap_or(&wall),
                greatest.unwrap_or(&wall),
                ratio(spilo),
                ratio(of(Contender::Floor(line.contender.floor()))),
                line.store_cpu_s,
            ));
        }
    }
}

impl Line {
    fn median(&self) -> f64 {
        median(&self.wall)
    }
}

/// Returns the middle of a series in order; of an even number, the mean of the two.
fn median(series: &[f64]) -> f64 {
    let middle = series.len() / 2;
    match series {
        [] => 0.0,
        series if series.len() % 2 == 1 => series[middle],
        series => f64::midpoint(series[middle - 1], series[middle]),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes and microseconds of minutes fit a double exactly"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

const HEAD: &str = "| tool | codec | segments/s | MB/s | CPU s/GB | peak MiB | wall s: median \
                    [min..max] | to spilo | to floor | store's CPU s |";

/// What the acceptance asks for.
const RUNS: usize = 7;
const MARGIN: f64 = 0.9;
const NEAR: f64 = 1.05;
const MEMORY_MIB: f64 = 256.0;

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Contender = Contender::Spilo(FloorCodec::Zstd);

    fn summary(row: Row, walls: &[(Contender, u64)], peak_kib: u64) -> Summary {
        let sample = |round| {
            walls.iter().map(move |(contender, wall_us)| Sample {
                round,
                row,
                contender: *contender,
                cost: Cost {
                    wall_us: *wall_us,
                    cpu_us: 1,
                    peak_kib,
                    store_cpu_us: 1,
                    commands: 1,
                },
            })
        };
        Summary {
            bytes: (1 << 30, 1 << 30),
            segments: 64,
            samples: (1..=7).flat_map(sample).collect(),
        }
    }

    fn holds(row: Row, ours: u64, floor: u64, peer: u64, peak_kib: u64) -> bool {
        let walls = [
            (OURS, ours),
            (Contender::Floor(FloorCodec::Zstd), floor),
            (Contender::WalE, peer),
        ];
        let summary = summary(row, &walls, peak_kib);
        summary.verdicts(&[OURS, Contender::WalE])[0].holds
    }

    #[test]
    fn log_has_to_be_a_tenth_faster_and_a_backup_faster() {
        assert!(holds(Row::WalPush, 89, 50, 100, 1));
        assert!(!holds(Row::WalPush, 95, 50, 100, 1));
        assert!(holds(Row::BackupPush, 95, 50, 100, 1));
        assert!(!holds(Row::BackupPush, 101, 50, 100, 1));
    }

    #[test]
    fn where_the_floor_leaves_less_being_near_it_is_enough() {
        assert!(holds(Row::WalFetch, 97, 95, 100, 1));
        assert!(!holds(Row::WalFetch, 100, 95, 100, 1));
    }

    #[test]
    fn too_much_memory_is_a_failure() {
        assert!(!holds(Row::WalPush, 1, 1, 100, 256 << 10));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert!((median(&[1.0, 2.0, 4.0, 8.0]) - 3.0).abs() < f64::EPSILON);
    }
}
