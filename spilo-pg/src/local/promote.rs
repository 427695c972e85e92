//! Making the running standby a primary.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use spilo_core::pg::{PgError, PgErrorKind};
use tokio::time::{Instant, sleep};

use crate::guard::{Role, ServerSignal};

use super::observe::is_primary;
use super::settings::Wiring;
use super::sql::{Purpose, Session};
use super::start::write_signal;
use super::{CONNECT, LocalPostgres, failed_guard, files, retry};

impl LocalPostgres {
    /// Promotes, and returns once the server takes writes.
    ///
    /// The guard passes the signal on, and refuses when no deadline lies ahead at that moment. It
    /// is asked before the order is written as well, when the signal means nothing yet: from the
    /// file on any other signal of the server's own processes may begin the promotion, and whoever
    /// asks the guard then must hear of a primary.
    pub(super) async fn promote(&self) -> Result<(), PgError> {
        let action = "promote";
        let guard = self.guard();
        let report = guard
            .report()
            .await
            .map_err(|error| failed_guard(action, error))?;
        if report.status.postmaster.is_none() {
            return Err(retry(action, "no server runs under the guard"));
        }
        if report.status.deadline.is_none() {
            return Err(PgError::new(
                PgErrorKind::NotGuarded,
                action,
                "the guard is not armed",
            ));
        }
        // The order goes out before the connection is made: the server promotes meanwhile. A
        // primary has no such file, and keeps none while it becomes one.
        let standby = self.blocking(action, |options| {
            Ok(options.data_dir.join("standby.signal").exists())
        });
        if standby.await? {
            let promotes = || async {
                let signalled = guard.signal(ServerSignal::Promote).await;
                signalled.map_err(|error| failed_guard(action, error))
            };
            promotes().await?;
            let order = self
                .blocking(action, |options| {
                    let path = options.data_dir.join("promote");
                    files::create(&path, options.uid_gid)?;
                    Ok(Order(Some(path)))
                })
                .await?;
            promotes().await?;
            order.given();
        }
        self.wait_for_promotion(action).await
    }

    /// Waits until the server says that it takes writes. The order is out: a server that does not
    /// answer yet is asked again, and not left to become a primary behind everybody's back.
    async fn wait_for_promotion(&self, action: &str) -> Result<(), PgError> {
        let begun = Instant::now();
        let mut connection: Option<Session> = None;
        loop {
            let asked = match &connection {
                Some(session) => is_primary(session).await,
                None => match Session::connect(&self.options, Purpose::Work, CONNECT).await {
                    Ok(session) => {
                        let answer = is_primary(&session).await;
                        connection = Some(session);
                        answer
                    }
                    Err(error) => Err(error),
                },
            };
            let problem = match asked {
                Ok(true) => return Ok(()),
                Ok(false) => "it is in recovery still".to_owned(),
                Err(error) => {
                    connection = None;
                    error.to_string()
                }
            };
            if begun.elapsed() > self.options.pg_ctl_timeout {
                return Err(retry(
                    action,
                    format!("{problem}, after {:?}", begun.elapsed()),
                ));
            }
            if self
                .guard()
                .report()
                .await
                .is_ok_and(|report| report.status.postmaster.is_none())
            {
                return Err(retry(action, format!("the server ended; {problem}")));
            }
            sleep(POLL).await;
        }
    }

    /// Brings the files in line with what a promoted server is now. It can wait, because the next
    /// start writes them in any case; its failure does not undo the promotion and is only said.
    pub(super) async fn settle_as_primary(&self) {
        let settled = async {
            let control = self.eye.look_at_disk().await?.control;
            Box::pin(self.write_files(&Wiring::Primary, control.as_ref())).await?;
            self.blocking("promote", |options| write_signal(options, Role::Primary))
                .await?;
            self.reload().await
        };
        if let Err(error) = settled.await {
            tracing::warn!(%error, "promoted, but the configuration files are a standby's still");
        }
    }
}

/// The file that tells the server to promote when the signal comes. One that is left behind is
/// removed, so that no later signal finds it.
struct Order(Option<PathBuf>);

impl Order {
    fn given(mut self) {
        self.0 = None;
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot take an order to promote back");
        }
    }
}

/// A promotion takes tens of milliseconds, and clients wait.
const POLL: Duration = Duration::from_millis(5);
