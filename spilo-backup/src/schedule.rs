//! When base backups are due.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// The times of base backups: a cron expression of five fields, in UTC, like `0 1 * * *`.
///
/// In UTC, so that members of one cluster agree on them whatever zones they are in, and none is left
/// out or comes twice when summer begins or ends.
#[derive(Clone)]
pub struct Schedule(Cron);

/// A text that is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no schedule: {problem}; it is minute, hour, day, month and weekday, like `0 1 * * *`"
)]
pub struct BadSchedule {
    text: String,
    problem: String,
}

impl Schedule {
    /// Returns the last of its times that is not after `now`, if there was one.
    pub fn latest(&self, now: SystemTime) -> Option<SystemTime> {
        let now = DateTime::<Utc>::from(now);
        let found = self.0.find_previous_occurrence(&now, true);
        found.ok().map(SystemTime::from)
    }

    /// Returns the first of its times after `now`, if there will be one.
    pub fn next(&self, now: SystemTime) -> Option<SystemTime> {
        let now = DateTime::<Utc>::from(now);
        let found = self.0.find_next_occurrence(&now, false);
        found.ok().map(SystemTime::from)
    }
}

impl FromStr for Schedule {
    type Err = BadSchedule;

    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        let bad = |problem: String| BadSchedule {
            text: text.to_owned(),
            problem,
        };
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(text).map_err(|error| {
            let said = error.to_string();
            bad(said.trim_end_matches('.').to_owned())
        })?;
        let schedule = Self(cron);
        match schedule.next(SystemTime::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(bad("that never comes".to_owned())),
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schedule").field(&self.0.as_str()).finish()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        DateTime::parse_from_rfc3339(text).unwrap().into()
    }

    #[test]
    fn a_schedule_has_a_last_time_and_a_next_one() {
        let nightly: Schedule = "0 1 * * *".parse().unwrap();
        for (now, latest, next) in [
            (
                "2026-11-30T00:59:59Z",
                "2026-11-29T01:00:00Z",
                "2026-11-30T01:00:00Z",
            ),
            (
                "2026-11-30T01:00:00Z",
                "2026-11-30T01:00:00Z",
                "2026-12-01T01:00:00Z",
            ),
            (
                "2027-01-01T00:00:00Z",
                "2026-12-31T01:00:00Z",
                "2027-01-01T01:00:00Z",
            ),
        ] {
            assert_eq!(nightly.latest(at(now)), Some(at(latest)), "{now}");
            assert_eq!(nightly.next(at(now)), Some(at(next)), "{now}");
        }
        // A fraction of a second after its time is after it.
        let late = at("2026-11-30T01:00:00.5Z");
        assert_eq!(nightly.latest(late), Some(at("2026-11-30T01:00:00Z")));
        let sundays: Schedule = "30 3 * * sun".parse().unwrap();
        let now = at("2026-11-30T12:00:00Z");
        assert_eq!(sundays.latest(now), Some(at("2026-11-29T03:30:00Z")));
        assert_eq!(sundays.next(now), Some(at("2026-12-06T03:30:00Z")));
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_what_is_wrong() {
        for text in [
            "",
            "1 *",
            "61 * * * *",
            "0 0 30 2 *",
            "0 0 1 * * *",
            "nightly",
            "* * * * x",
        ] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{text:?} is no schedule: ")),
                "{error}"
            );
        }
    }
}
