//! One row of one tool.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::calls::{Calls, Resident, Subject};
use super::compare;
use super::contender::{Contender, Row};
use super::driver::{Done, Job};
use super::meter::{Cost, Group, Sampler, cpu_us_of};
use super::site::Site;

/// One tool in one round: what it pushes, it fetches afterwards.
#[derive(Debug)]
pub struct Trial<'a> {
    site: &'a Site,
    contender: Contender,
    prefix: String,
}

/// A process that is ended with this.
pub(crate) struct Companion {
    process: Child,
}

impl<'a> Trial<'a> {
    /// Prepares a tool for a round, which has a place of its own in the store.
    pub fn new(site: &'a Site, contender: Contender, round: usize) -> Self {
        Self {
            site,
            contender,
            prefix: format!("{}-{round}", contender.slug()),
        }
    }

    /// Runs a row, checks what came of it, and returns what it took.
    ///
    /// # Errors
    ///
    /// Fails where the tool does, with the end of what it said, and where what it brings back is
    /// not what it was given.
    pub fn run(&self, row: Row) -> Result<Cost> {
        let told = format!("{} of {} ({})", row, self.contender, self.contender.codec());
        self.measured(row).with_context(|| told)
    }

    /// Throws away what it stored, and returns how many bytes that was.
    ///
    /// # Errors
    ///
    /// Fails where the store does not answer.
    pub fn forget(&self) -> Result<u64> {
        self.site.store.forget(&format!("{}/", self.prefix))
    }

    fn measured(&self, row: Row) -> Result<Cost> {
        let site = self.site;
        let restored = site.restored();
        let pushed = match row {
            Row::WalFetch => restored.clone(),
            Row::WalPush => site.wal(),
            Row::BackupPush | Row::BackupFetch => site.server.data(),
        };
        match row {
            Row::WalPush => site.all_ready()?,
            Row::WalFetch => drop(site.recovering()?),
            Row::BackupPush => drop(site.server.sql("CHECKPOINT")?),
            Row::BackupFetch => drop(site.empty_restored()?),
        }
        let subject = Subject {
            server: &site.server,
            pushed: &pushed,
            fetched: &restored,
        };
        let calls = Calls::of(self.contender, site, subject, &self.prefix)?;
        let job = self.job(row, &calls);
        let archives = row == Row::BackupPush && !matches!(self.contender, Contender::Floor(_));
        if archives {
            // The server's own archiver is not in the sum, whoever's command it runs.
            let plain = Calls {
                resident: None,
                ..calls
            };
            site.server.archive_with(&plain.archive_script())?;
            let cost = self.cost(row, &plain, &job);
            // A command that still works would hold up the archiver in the next trial.
            self.level()?;
            site.server.archive_with("exit 0")?;
            return cost;
        }
        let cost = self.cost(row, &calls, &job)?;
        self.check(row)?;
        Ok(cost)
    }

    /// Waits until the server has archived all of its log.
    fn level(&self) -> Result<()> {
        let begun = Instant::now();
        while self.site.server.waiting() > 0 {
            if begun.elapsed() > LEVEL {
                bail!("the server has not archived its log within {LEVEL:?} of a backup's end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn job(&self, row: Row, calls: &Calls) -> Job {
        let without_tool = matches!(self.contender, Contender::Floor(_));
        match row {
            Row::WalPush if !without_tool => Job::Archive {
                data_dir: self.site.wal(),
                command: calls.wal_push.clone(),
            },
            Row::WalFetch if !without_tool => Job::Restore {
                data_dir: self.site.restored(),
                command: calls.wal_fetch.clone(),
                names: self.site.segments.clone(),
            },
            Row::WalPush => Job::Once {
                command: calls.wal_push.clone(),
            },
            Row::WalFetch => Job::Once {
                command: calls.wal_fetch.clone(),
            },
            Row::BackupPush => Job::Once {
                command: calls.backup_push.clone(),
            },
            Row::BackupFetch => Job::Once {
                command: calls.backup_fetch.clone(),
            },
        }
    }

    fn cost(&self, row: Row, calls: &Calls, job: &Job) -> Result<Cost> {
        let site = self.site;
        let group = Group::create(&format!("spilo-bench-{}", std::process::id()));
        let log = site.dir().join("tool.log");
        let companion = match (&calls.resident, row.is_of_log()) {
            (Some(resident), true) => Some(Companion::start(
                site,
                calls,
                resident,
                group.as_ref(),
                &log,
            )?),
            _ => None,
        };
        let mut command = site.owner.command(&site.dir().join("bench"));
        let mut driver = calls
            .export(command.arg("drive"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()
            .context("cannot start the driver")?;
        let sampler = match &group {
            Some(group) => {
                group.take(driver.id())?;
                Some(Sampler::begin(group, driver.id()))
            }
            None => None,
        };
        let store_before = cpu_us_of(site.store.pid());
        let mut stdin = driver.stdin.take().context("the driver has no stdin")?;
        writeln!(stdin, "{}", serde_json::to_string(job)?)?;
        drop(stdin);
        let output = driver.wait_with_output()?;
        let store_after = cpu_us_of(site.store.pid());
        if let Some(group) = &group {
            let but = companion.as_ref().map(|companion| companion.process.id());
            group.settle(but.as_slice(), SETTLING);
        }
        let sampled = sampler.map_or(Ok(0), Sampler::end)?;
        drop(companion);
        if !output.status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            bail!(
                "it failed: {}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
        fs::remove_file(&log)?;
        let done: Done = serde_json::from_slice(&output.stdout)?;
        Ok(Cost {
            wall_us: done.wall_us,
            cpu_us: group
                .and_then(|group| group.cpu_us())
                .unwrap_or(done.cpu_us),
            peak_kib: sampled.max(done.peak_kib),
            store_cpu_us: store_after
                .zip(store_before)
                .map_or(0, |(after, before)| after.saturating_sub(before)),
            commands: done.commands,
        })
    }

    /// Compares what came back.
    fn check(&self, row: Row) -> Result<()> {
        let site = self.site;
        match row {
            Row::WalPush | Row::BackupPush => Ok(()),
            Row::WalFetch => {
                let (there, back) = (site.wal().join("pg_wal"), site.restored().join("pg_wal"));
                for name in &site.segments {
                    compare::same(&there.join(name), &back.join(name))?;
                }
                Ok(())
            }
            Row::BackupFetch => {
                let part = Path::new("base");
                compare::directories(&site.server.data().join(part), &site.restored().join(part))
            }
        }
    }
}

impl Companion {
    /// Starts what a tool keeps, and waits until it is there.
    pub(crate) fn start(
        site: &Site,
        calls: &Calls,
        resident: &Resident,
        group: Option<&Group>,
        log: &Path,
    ) -> Result<Self> {
        let mut command = site.owner.command(&resident.program);
        let log = File::options().create(true).append(true).open(log)?;
        let process = calls
            .export(command.args(&resident.arguments))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the resident archiver")?;
        let companion = Self { process };
        if let Some(group) = group {
            group.take(companion.process.id())?;
        }
        let end = Instant::now() + Duration::from_secs(5);
        while fs::read_dir(&resident.work_dir)?.next().is_none() {
            if Instant::now() > end {
                bail!(
                    "the resident archiver has put nothing into {} for five seconds",
                    resident.work_dir.display()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(companion)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            crate::procs::signal(pid, Signal::SIGTERM);
        }
        self.process.wait().ok();
    }
}

/// What a tool still does after its last command, such as fetching ahead what is not there, counts
/// as its processor time; it may take some tries.
const SETTLING: Duration = Duration::from_secs(20);

/// Longer than pgBackRest waits for its own process in the background.
const LEVEL: Duration = Duration::from_secs(120);
