//! Copying another server.

use spilo_core::SystemId;
use spilo_core::pg::{PgError, PgOpKind, Progress, Upstream};

use crate::guard::{Role, fence_without_guard};

use super::conninfo::Endpoint;
use super::controldata::ControlData;
use super::files::{self, Mark, Marker};
use super::observe::Alive;
use super::start::write_signal;
use super::{LocalPostgres, disk, refused, retry};

impl LocalPostgres {
    /// Replaces the data directory by a copy of `from`, ready to start as its standby.
    pub(super) async fn clone_from(
        &self,
        from: &Upstream,
        replace: Option<SystemId>,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let action = format!("clone {}", from.name);
        let endpoint =
            Endpoint::parse(&from.conn_url).map_err(|problem| refused(&action, problem))?;
        let old = self.may_replace(&action, replace).await?;
        self.prepare().await?;
        self.end_leftovers(&action).await?;
        if let Some(old) = old {
            self.check_source(&action, from, &old).await?;
        }
        self.blocking(&action, |options| {
            Marker::new(&options.state_dir()).set(PgOpKind::Clone, options.uid_gid)
        })
        .await?;
        let config = self.config().await?;
        self.state().config.get_or_insert(config);
        self.make_replica(&action, from, &endpoint, progress)
            .await?;
        self.blocking(&action, |options| write_signal(options, Role::Standby))
            .await?;
        let read = self
            .blocking(&action, |options| Ok(disk::read_control(options)))
            .await?;
        let control = read.map_err(|problem| retry(&action, problem.to_string()))?;
        let wiring = self.standby_of(Some(from))?;
        Box::pin(self.write_files(&wiring, Some(&control))).await?;
        let marker = self.marker();
        self.blocking(&action, move |_| marker.clear()).await
    }

    /// Makes sure that there is something to copy before data are thrown away for it: the record
    /// of a member outlives its server. What is lost of the log is recorded.
    async fn check_source(&self, action: &str, from: &Upstream, old: &Old) -> Result<(), PgError> {
        let (system, history) = Box::pin(self.remote_history(from)).await?;
        if let Some(own) = old.of
            && own != system
        {
            let problem = format!("it is of the database cluster {system}, not of {own}");
            return Err(refused(action, problem));
        }
        if let Some(control) = &old.unrecorded {
            let theirs = (system == control.system_id).then_some(&history);
            // No reason to keep it.
            self.record(control, theirs, from, "clone").await;
        }
        Ok(())
    }

    /// Checks that the data directory is empty, or is what may be thrown away. Returns what there
    /// is to lose.
    async fn may_replace(
        &self,
        action: &str,
        replace: Option<SystemId>,
    ) -> Result<Option<Old>, PgError> {
        if self.eye.alive(&self.guard()).await? != Alive::Nobody {
            return Err(retry(
                action,
                "processes of a server are alive in the data directory",
            ));
        }
        let marker = self.marker();
        let (marked, empty, control) = self
            .blocking(action, move |options| {
                let empty = files::is_empty(&options.data_dir)?;
                let control = if empty {
                    None
                } else {
                    disk::read_control(options).ok()
                };
                Ok((marker.read()?, empty, control))
            })
            .await?;
        // What a clone or a bootstrap left half done was never anything that could be lost. What
        // a rewind left may be all that there is of its log, but for the record of it.
        let half_rewound = marked == Some(Mark::Unfinished(PgOpKind::Rewind));
        if empty || (matches!(marked, Some(Mark::Unfinished(_))) && !half_rewound) {
            return Ok(None);
        }
        // One that was made here and that nobody wants gives way to a cluster that is another.
        let of = replace.filter(|_| marked != Some(Mark::Provisional));
        let found = control.as_ref().map(|control| control.system_id);
        match (found, replace) {
            (Some(found), Some(allowed)) if found == allowed => Ok(Some(Old {
                of,
                unrecorded: control.filter(|_| !half_rewound),
            })),
            (None, Some(_)) if half_rewound => Ok(Some(Old {
                of,
                unrecorded: None,
            })),
            (Some(found), Some(allowed)) => {
                let problem = format!(
                    "the data directory is of the database cluster {found}, and only {allowed} may be \
                     replaced"
                );
                Err(refused(action, problem))
            }
            (Some(found), None) => {
                let problem = format!("the data directory has the database cluster {found}");
                Err(refused(action, problem))
            }
            (None, _) => {
                let problem = "the data directory has something that is no database cluster";
                Err(refused(action, problem))
            }
        }
    }

    /// Ends programs that an agent before this one started and did not live to end.
    pub(super) async fn end_leftovers(&self, action: &str) -> Result<(), PgError> {
        self.blocking(action, |options| fence_without_guard(&options.state_dir()))
            .await
            .map(drop)
    }
}

/// Data that a copy takes the place of.
struct Old {
    /// The database cluster that the copy must be of too.
    of: Option<SystemId>,
    /// What its log ends with, where that was not recorded yet.
    unrecorded: Option<ControlData>,
}
