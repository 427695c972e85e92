//! How a replica is made, against a formula of its own: log is counted in files and what is in them,
//! histories are walked, and shares are of numbers that do not overflow.

use proptest::prelude::*;
use proptest::sample::Index;
use spilo_core::backup::{BackupInfo, BackupName};
use spilo_core::history::History;
use spilo_core::ids::SystemId;
use spilo_core::replica::{Method, Source, Thresholds, choose_method};
use spilo_core::segment::SegmentSize;
use spilo_core::wal::{Lsn, Timeline, WalPosition};

const OURS: u64 = 7_710_822_623_212_245_678;

/// A timeline of the source's history: its number, and where it begins and ends. The source is at
/// the end of the last.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    number: u32,
    begin: u64,
    end: u64,
}

/// A place on a timeline.
type Place = (u32, u64);

#[derive(Clone, Debug)]
struct Drawn {
    start: Place,
    stop: Place,
    system: Option<u64>,
    size: Option<u64>,
}

#[derive(Clone, Debug)]
struct Case {
    segment: u64,
    history: Vec<Stretch>,
    backups: Vec<Drawn>,
    limit: u64,
    percent: u32,
}

/// Up to 8 PiB, of all magnitudes.
fn bytes() -> impl Strategy<Value = u64> {
    (0_u32..=53, any::<u64>()).prop_map(|(bits, drawn)| drawn & ((1 << bits) - 1))
}

fn history() -> impl Strategy<Value = Vec<Stretch>> {
    prop::collection::vec((1_u32..4, bytes()), 1..6).prop_map(|drawn| {
        let mut history: Vec<Stretch> = Vec::new();
        for (gap, length) in drawn {
            let before = history
                .last()
                .map_or((0, 0), |last| (last.number, last.end));
            history.push(Stretch {
                number: before.0 + gap,
                begin: before.1,
                end: before.1 + length + 1,
            });
        }
        history
    })
}

/// Most places are on the history, some at the end of a part of it or just past that, some anywhere.
fn place() -> impl Strategy<Value = (u8, Index, u64, u32)> {
    (0_u8..12, any::<Index>(), bytes(), 1_u32..20)
}

fn placed(drawn: (u8, Index, u64, u32), history: &[Stretch]) -> Place {
    let (luck, nth, along, number) = drawn;
    let on = nth.get(history);
    match luck {
        0 => (number, along),
        1 => (on.number, on.end),
        2 => (on.number, on.end + 1),
        _ => (on.number, on.begin + along % (on.end - on.begin)),
    }
}

fn case() -> impl Strategy<Value = Case> {
    let system = prop_oneof![6 => Just(Some(OURS)), 1 => Just(None), 1 => Just(Some(1))];
    let size = prop_oneof![9 => bytes().prop_map(Some), 1 => Just(None)];
    let backup = (place(), place(), bytes(), any::<bool>(), system, size);
    (
        20_u32..=30,
        history(),
        prop::collection::vec(backup, 0..7),
        bytes(),
        0_u32..=300,
    )
        .prop_map(|(exponent, history, drawn, limit, percent)| {
            let backups = drawn
                .into_iter()
                .map(|(start, stop, length, near, system, size)| {
                    let start = placed(start, &history);
                    // Most end on the timeline that they begin on, and not long after.
                    let stop = if near {
                        (start.0, start.1 + length % (1 << 20))
                    } else {
                        placed(stop, &history)
                    };
                    Drawn {
                        start,
                        stop,
                        system,
                        size,
                    }
                });
            Case {
                segment: 1 << exponent,
                backups: backups.collect(),
                history,
                limit,
                percent,
            }
        })
}

/// Whether what a server at that place has is all in the history.
fn is_part(place: Place, history: &[Stretch]) -> bool {
    let on = history
        .iter()
        .rev()
        .find(|stretch| stretch.number == place.0);
    on.is_some_and(|stretch| {
        stretch.number == history[history.len() - 1].number || place.1 <= stretch.end
    })
}

/// The log from a backup's beginning to the source: what is left of its first file, whole files, and
/// what there is of the last.
fn log_since(case: &Case, start: u64) -> u128 {
    let end = case.history[case.history.len() - 1].end;
    let (first, last) = (start / case.segment, end / case.segment);
    let within = |place: u64| u128::from(place % case.segment);
    if first == last {
        return within(end) - within(start);
    }
    let segment = u128::from(case.segment);
    (segment - within(start)) + u128::from(last - first - 1) * segment + within(end)
}

/// The numbers of the backups that may be chosen; a replica is a copy where there are none.
fn expected(case: &Case) -> Vec<usize> {
    let source = case.history[case.history.len() - 1];
    let usable = |drawn: &Drawn| {
        drawn.system.is_none_or(|system| system == OURS)
            && drawn.start.1 <= drawn.stop.1
            && drawn.stop.1 <= source.end
            && is_part(drawn.start, &case.history)
            && is_part(drawn.stop, &case.history)
    };
    let mut best: Vec<usize> = (0..case.backups.len())
        .filter(|n| usable(&case.backups[*n]))
        .collect();
    let along = |n: usize| (case.backups[n].start.1, case.backups[n].stop.1);
    let newest = best.iter().map(|n| along(*n)).max();
    best.retain(|n| Some(along(*n)) == newest);
    // Of several that are equally far, the first is taken, and judged by its own size.
    best.truncate(1);
    best.retain(|n| {
        let wal = log_since(case, case.backups[*n].start.1);
        let share = |size: u64| u128::from(size) * u128::from(case.percent) / 100;
        wal < u128::from(case.limit) && case.backups[*n].size.is_some_and(|size| wal < share(size))
    });
    best
}

fn chosen(case: &Case) -> Method {
    let mut stretches = case.history.iter();
    let first = stretches.next().expect("there is one");
    let mut history = History::root(Timeline(first.number));
    let mut end = first.end;
    for stretch in stretches {
        history = history.promoted(Timeline(stretch.number), Lsn(end));
        end = stretch.end;
    }
    let at = |place: Place| WalPosition {
        timeline: Timeline(place.0),
        lsn: Lsn(place.1),
    };
    let backups: Vec<BackupInfo> = (0..)
        .zip(&case.backups)
        .map(|(number, drawn): (usize, _)| {
            let name = BackupName(number.to_string());
            let mut info = BackupInfo::new(name, at(drawn.start), at(drawn.stop));
            info.system = drawn.system.map(SystemId);
            info.size = drawn.size;
            info.segment_size = SegmentSize::new(case.segment).expect("it is one");
            info
        })
        .collect();
    let mut thresholds = Thresholds::default();
    (thresholds.wal, thresholds.backup_percent) = (case.limit, case.percent);
    let source = Source {
        system: SystemId(OURS),
        history: &history,
        position: Lsn(end),
    };
    choose_method(&backups, source, &thresholds).method
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn f37_the_choice_is_that_of_an_independent_formula(case in case()) {
        let wanted = match expected(&case).first() {
            Some(number) => Method::Restore(BackupName(number.to_string())),
            None => Method::Clone,
        };
        prop_assert_eq!(chosen(&case), wanted);
    }
}

/// Both ways are taken often enough for the property to say something.
#[test]
fn the_cases_are_of_both_kinds() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut restored = 0;
    for _ in 0..2000 {
        let case = case().new_tree(&mut runner).expect("it is drawn").current();
        restored += usize::from(!expected(&case).is_empty());
    }
    assert!(
        (200..1800).contains(&restored),
        "{restored} of 2000 are restored"
    );
}
