//! Base backups at their times.

use std::time::{Duration, SystemTime};

use spilo_core::backup::{BackupError, BackupName, BackupSource, BackupStore};
use spilo_core::ids::MemberName;
use spilo_core::pg::Progress;

use crate::Schedule;
use crate::archive::age;

/// Makes the base backups of a cluster at their times.
///
/// Each member has one and is told whose turn it is, by [`turn`](spilo_core::backup::turn). What is
/// remembered is in the store: a backup is due from one of the schedule's times on until there is
/// one that was begun later. So a cluster without backups gets one at once, another member goes on
/// where one was lost, and what was missed while nobody was there is made up for once.
///
/// Older backups are deleted after a new one was made, and only then.
#[derive(Debug)]
pub struct Scheduler {
    schedule: Schedule,
    retain: Option<usize>,
    /// The last of the times that is settled.
    settled: Option<SystemTime>,
    failures: u32,
    /// The last of the times after which it was looked whether a backup is missing.
    told: Option<SystemTime>,
    /// That time, if one is: others than those whose turn it was make it then.
    missing: Option<SystemTime>,
}

/// Whose turn it is to make a base backup.
#[derive(Clone, Debug)]
pub enum Turn {
    /// This member's.
    Own(BackupSource),
    /// Another one's.
    Of(MemberName),
    /// Nobody's: there is no server to make one of.
    Nobody,
}

impl Scheduler {
    /// Creates one that deletes nothing.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            retain: None,
            settled: None,
            failures: 0,
            told: None,
            missing: None,
        }
    }

    /// Keeps so many backups, the newest and at least one, and the log that they need.
    #[must_use]
    pub fn with_retention(mut self, count: usize) -> Self {
        self.retain = Some(count);
        self
    }

    /// Makes backups for as long as it runs; `turn` is asked when one is due, and told whether it is
    /// so late that whoever's turn it was is not going to make it.
    ///
    /// # Cancellation
    /// Dropping the future ends a backup that is being made, which then is none.
    pub async fn run(
        mut self,
        store: &dyn BackupStore,
        mut turn: impl FnMut(bool) -> Turn + Send,
    ) -> std::convert::Infallible {
        loop {
            let pause = self.step(SystemTime::now(), store, &mut turn).await;
            tokio::time::sleep(pause).await;
        }
    }

    /// Does what is to be done at `now`; returns how long nothing is.
    async fn step(
        &mut self,
        now: SystemTime,
        store: &dyn BackupStore,
        turn: &mut (impl FnMut(bool) -> Turn + Send),
    ) -> Duration {
        let Some(due) = self.schedule.latest(now) else {
            return LOOK;
        };
        if self.settled == Some(due) {
            let next = self.schedule.next(now);
            let wait = next.and_then(|next| next.duration_since(now).ok());
            // Machines sleep and clocks are set, and a timer knows of neither.
            return wait.unwrap_or(LOOK).clamp(SHORTEST, LOOK);
        }
        let late = self.missing.is_some() && self.missing == self.overdue(now);
        match turn(late) {
            Turn::Own(source) => match self.make(now, due, store, &source).await {
                Ok(()) => {
                    (self.settled, self.failures) = (Some(due), 0);
                    SHORTEST
                }
                Err(error) => {
                    let pause = (LOOK * 2_u32.pow(self.failures.min(5))).min(LONGEST);
                    self.failures += 1;
                    tracing::error!(
                        "the base backup that is due since {} failed, and is tried again in \
                         {pause:?}; nothing is deleted: {error}",
                        shown(due)
                    );
                    pause
                }
            },
            Turn::Of(member) => {
                self.look_after(now, store, &format!("it is {member}'s turn"))
                    .await;
                TURN
            }
            Turn::Nobody => {
                let why = "no member with a running server may make one";
                self.look_after(now, store, why).await;
                TURN
            }
        }
    }

    /// Makes the backup that is due, unless there is one.
    async fn make(
        &self,
        now: SystemTime,
        due: SystemTime,
        store: &dyn BackupStore,
        source: &BackupSource,
    ) -> Result<(), BackupError> {
        if is_made(store, now, due).await? {
            return Ok(());
        }
        tracing::info!(
            "makes the base backup that is due since {}, of {}",
            shown(due),
            source.data_dir.display()
        );
        let say = || Progress::to(|line| tracing::info!("backup: {line}"));
        let name = store.push(source, say()).await?;
        tracing::info!("the base backup {name} is made");
        if let Some(count) = self.retain
            && let Err(problem) = retain(store, count, &name, say()).await
        {
            // The next backup is followed by the next try.
            tracing::error!("nothing beside {count} base backups was to stay, and did: {problem}");
        }
        Ok(())
    }

    /// Returns the last of the times of which a backup that is not there is late.
    fn overdue(&self, now: SystemTime) -> Option<SystemTime> {
        self.schedule.latest(now.checked_sub(PATIENCE)?)
    }

    /// Tells people of a backup that is not made by whoever it is to be made by.
    async fn look_after(&mut self, now: SystemTime, store: &dyn BackupStore, why: &str) {
        let Some(due) = self.overdue(now).filter(|due| self.told != Some(*due)) else {
            return;
        };
        self.told = Some(due);
        let since = shown(due);
        match is_made(store, now, due).await {
            Ok(true) => self.missing = None,
            Ok(false) => {
                tracing::warn!("no base backup was made since {since}; {why}");
                self.missing = Some(due);
            }
            Err(error) => {
                tracing::warn!(
                    "nobody knows whether a base backup was made since {since}: {error}"
                );
            }
        }
    }
}

/// Deletes what is not needed beside the newest backups, of which the one that was just made has to
/// be the first: a branch of later timelines that somebody keeps in the same archive would count as
/// newer, and this cluster's backups as what is not needed.
async fn retain(
    store: &dyn BackupStore,
    count: usize,
    made: &BackupName,
    progress: Progress,
) -> Result<(), String> {
    let backups = store.backups().await.map_err(|error| error.to_string())?;
    let newest = backups.iter().max_by_key(|backup| age(backup));
    match newest {
        Some(newest) if newest.name == *made => {}
        Some(newest) => {
            return Err(format!(
                "{} counts as newer than {made}, which was just made; if it is of a branch that \
                 nobody needs, delete it by hand",
                newest.name
            ));
        }
        None => return Err(format!("{made} is not listed")),
    }
    let retained = store.retain(count, progress).await;
    retained.map_err(|error| error.to_string())
}

/// Returns whether there is a backup that was made at that time or later. One that is of the future
/// says nothing: whoever made it has a clock that is wrong.
async fn is_made(
    store: &dyn BackupStore,
    now: SystemTime,
    due: SystemTime,
) -> Result<bool, BackupError> {
    let seconds = |at: SystemTime| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    };
    let (due, latest) = (seconds(due), seconds(now + SKEW));
    let backups = store.backups().await?;
    let made = backups.iter().filter_map(|backup| backup.made);
    Ok(made.into_iter().any(|made| (due..=latest).contains(&made)))
}

fn shown(at: SystemTime) -> String {
    let at = chrono::DateTime::<chrono::Utc>::from(at);
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}

/// How often it is looked whose turn it is while a backup is due, which costs nothing.
const TURN: Duration = Duration::from_secs(5);

/// How often it is looked whether a backup is due.
const LOOK: Duration = Duration::from_secs(60);

const SHORTEST: Duration = Duration::from_secs(1);

/// How long a backup that fails again and again is left alone at most.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// How far the clock of another member may be ahead.
const SKEW: Duration = Duration::from_secs(60 * 60);

/// How late a backup may be before people are told and others try.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use spilo_core::backup::{BackupErrorKind, BackupInfo};
    use spilo_core::wal::{Lsn, Timeline, WalPosition};

    use super::*;

    /// A store that notes what is asked of it.
    #[derive(Debug, Default)]
    struct Noted {
        backups: Mutex<Vec<BackupInfo>>,
        asked: Mutex<Vec<String>>,
        fails: Mutex<bool>,
    }

    impl Noted {
        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut *self.asked.lock().unwrap())
        }

        /// Adds a backup that was made then; each is farther along the log than the one before.
        fn add(&self, timeline: u32, made: u64) -> BackupName {
            let mut backups = self.backups.lock().unwrap();
            let position = WalPosition {
                timeline: Timeline(timeline),
                lsn: Lsn((backups.len() as u64 + 1) << 24),
            };
            let name = BackupName(format!("{timeline}-{made}"));
            let mut info = BackupInfo::new(name.clone(), position, position);
            info.made = Some(made);
            backups.push(info);
            name
        }
    }

    #[async_trait]
    impl BackupStore for Noted {
        async fn backups(&self) -> Result<Vec<BackupInfo>, BackupError> {
            Ok(self.backups.lock().unwrap().clone())
        }

        async fn restore(&self, _: &BackupName, _: &Path, _: Progress) -> Result<(), BackupError> {
            unreachable!("nobody restores")
        }

        async fn push(&self, _: &BackupSource, _: Progress) -> Result<BackupName, BackupError> {
            self.asked.lock().unwrap().push("push".to_owned());
            if *self.fails.lock().unwrap() {
                let kind = BackupErrorKind::Unavailable;
                return Err(BackupError::new(
                    "test",
                    kind,
                    "push",
                    "it is asked to fail",
                ));
            }
            // Of a machine whose clock is wrong by years.
            Ok(self.add(1, 5))
        }

        async fn retain(&self, count: usize, _: Progress) -> Result<(), BackupError> {
            self.asked.lock().unwrap().push(format!("retain {count}"));
            Ok(())
        }

        fn restore_command(&self) -> Option<String> {
            None
        }
    }

    /// So many seconds after one in the night of the first of January 1970.
    fn after_one(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(ONE + seconds)
    }

    const ONE: u64 = 3600;

    fn nightly() -> Scheduler {
        Scheduler::new("0 1 * * *".parse().unwrap()).with_retention(3)
    }

    fn own(_: bool) -> Turn {
        Turn::Own(BackupSource::new("/srv/pg", "host=/run"))
    }

    #[tokio::test]
    async fn a_backup_is_made_at_its_time_and_once_and_older_ones_are_deleted_after_it() {
        let (store, mut scheduler) = (Noted::default(), nightly());
        store.add(1, ONE - 5);
        scheduler.step(after_one(0), &store, &mut own).await;
        assert_eq!(store.asked(), ["push", "retain 3"]);
        for seconds in [1, 60, 3600, 86_399] {
            let pause = scheduler.step(after_one(seconds), &store, &mut own).await;
            assert!(pause <= LOOK, "{pause:?}");
            assert_eq!(store.asked(), [""; 0]);
        }
        // Just before the next time it is waited for no longer than that.
        let pause = scheduler.step(after_one(86_380), &store, &mut own).await;
        assert_eq!(pause, Duration::from_secs(20));
        scheduler.step(after_one(86_400), &store, &mut own).await;
        assert_eq!(store.asked(), ["push", "retain 3"]);
    }

    #[tokio::test]
    async fn what_another_member_made_since_counts() {
        let (store, mut scheduler) = (Noted::default(), nightly());
        store.add(1, ONE);
        scheduler.step(after_one(7200), &store, &mut own).await;
        assert_eq!(store.asked(), [""; 0]);
    }

    #[tokio::test]
    async fn after_a_failure_nothing_is_deleted_and_it_is_tried_again_later_and_later() {
        let (store, mut scheduler) = (Noted::default(), nightly());
        *store.fails.lock().unwrap() = true;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = scheduler.step(after_one(9), &store, &mut own).await;
            pauses.push(pause.as_secs() / 60);
            assert_eq!(store.asked(), ["push"]);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        *store.fails.lock().unwrap() = false;
        scheduler.step(after_one(9), &store, &mut own).await;
        assert_eq!(store.asked(), ["push", "retain 3"]);
    }

    #[tokio::test]
    async fn a_backup_of_the_future_is_none_of_tonight() {
        let (store, mut scheduler) = (Noted::default(), nightly());
        store.add(1, ONE + 3 * 86_400);
        scheduler.step(after_one(60), &store, &mut own).await;
        assert_eq!(store.asked(), ["push", "retain 3"]);
        // A clock that is a little ahead is nobody's fault.
        let (store, mut scheduler) = (Noted::default(), nightly());
        store.add(1, ONE + 120);
        scheduler.step(after_one(60), &store, &mut own).await;
        assert_eq!(store.asked(), [""; 0]);
    }

    #[tokio::test]
    async fn one_that_is_late_is_told_of_however_often_there_are_any() {
        let store = Noted::default();
        let mut hourly = Scheduler::new("0 * * * *".parse().unwrap());
        let mut late = Vec::new();
        let mut other = |is_late| {
            late.push(is_late);
            Turn::Of(MemberName::new("b").unwrap())
        };
        for seconds in [0, 3600, 7200, 7260] {
            hourly.step(after_one(seconds), &store, &mut other).await;
        }
        assert_eq!(hourly.missing, Some(after_one(0)));
        let mut nightly = nightly();
        nightly.step(after_one(7199), &store, &mut other).await;
        nightly.step(after_one(7200), &store, &mut other).await;
        nightly.step(after_one(7205), &store, &mut other).await;
        assert_eq!(late, [false, false, false, true, false, false, true]);
    }

    #[tokio::test]
    async fn beside_a_branch_of_later_timelines_nothing_is_deleted() {
        let (store, mut scheduler) = (Noted::default(), nightly());
        store.add(7, ONE - 5);
        scheduler.step(after_one(0), &store, &mut own).await;
        assert_eq!(store.asked(), ["push"]);
    }

    #[tokio::test]
    async fn nothing_is_made_when_it_is_anothers_turn_or_nobodys() {
        let (store, mut scheduler) = (Noted::default(), nightly());
        let mut other = |_| Turn::Of(MemberName::new("b").unwrap());
        let mut nobody = |_| Turn::Nobody;
        for seconds in [0, 7200, 7300] {
            scheduler.step(after_one(seconds), &store, &mut other).await;
            scheduler
                .step(after_one(seconds), &store, &mut nobody)
                .await;
        }
        assert_eq!(store.asked(), [""; 0]);
        assert_eq!(scheduler.missing, Some(after_one(0)), "people are told");
        // Whoever it was did not do it, and it is ours now.
        scheduler.step(after_one(7400), &store, &mut own).await;
        assert_eq!(store.asked(), ["push", "retain 3"]);
    }
}
