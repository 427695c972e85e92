//! Making a new database cluster.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use spilo_core::DynamicConfig;
use spilo_core::pg::{PgError, PgErrorKind, PgOpKind, Postgres as _, Progress};

use crate::guard::{GuardClient, Role};
use crate::{Credentials, LocalOptions};

use super::child::{Program, SecretFile};
use super::files::{self, Mark, Marker};
use super::observe::Alive;
use super::settings::Wiring;
use super::sql::{Session, identifier, literal};
use super::{LocalPostgres, conninfo, failed_guard, failed_io, failed_query, refused, retry};

impl LocalPostgres {
    /// Makes a new database cluster and leaves its server running as a primary.
    ///
    /// # Cancellation
    /// A server that was started already goes on under the guard, whose deadline ends it; the
    /// marker stays.
    pub(super) async fn bootstrap(
        &self,
        config: Arc<DynamicConfig>,
        progress: &Progress,
    ) -> Result<(), PgError> {
        let action = "bootstrap a new database cluster";
        let guard = self.guard();
        let report = guard
            .report()
            .await
            .map_err(|error| failed_guard(action, error))?;
        if report.status.deadline.is_none() {
            return Err(PgError::new(
                PgErrorKind::NotGuarded,
                action,
                "the guard is not armed",
            ));
        }
        if self.eye.alive(&guard).await? != Alive::Nobody {
            return Err(retry(
                action,
                "processes of a server are alive in the data directory",
            ));
        }
        let marker = self.marker();
        let free = self.blocking(action, move |options| {
            let marked = marker.read()?;
            Ok(files::is_empty(&options.data_dir)?
                || matches!(
                    marked,
                    Some(Mark::Unfinished(PgOpKind::Bootstrap | PgOpKind::Clone))
                ))
        });
        if !free.await? {
            return Err(refused(action, "the data directory is not empty"));
        }
        self.prepare().await?;
        self.end_leftovers(action).await?;
        self.blocking(action, |options| {
            Marker::new(&options.state_dir()).set(PgOpKind::Bootstrap, options.uid_gid)?;
            files::empty(&options.data_dir)?;
            files::private_directory(&options.data_dir, options.uid_gid)
        })
        .await?;
        self.state().config = Some(config);
        match &self.options.recovery {
            None => {
                progress.say("initdb");
                self.initdb(action).await?;
            }
            Some(recovery) => Box::pin(self.unpack(action, recovery, progress)).await?,
        }
        self.blocking(action, append_access).await?;
        if let Err(error) = Box::pin(self.bring_up(action, &guard, progress)).await {
            // What is half made must not take writes.
            self.fence().await?;
            return Err(error);
        }
        let marker = self.marker();
        self.blocking(action, move |options| {
            marker.set_provisional(options.uid_gid)
        })
        .await
    }

    /// Starts what is in the data directory as a primary, and creates the roles.
    async fn bring_up(
        &self,
        action: &str,
        guard: &GuardClient,
        progress: &Progress,
    ) -> Result<(), PgError> {
        match &self.options.recovery {
            None => {
                Box::pin(self.write_files(&Wiring::Primary, None)).await?;
                let settings = self.checked_settings().unwrap_or_default();
                progress.say("starting the server");
                Box::pin(self.launch(guard, &settings, Role::Primary)).await?;
            }
            Some(recovery) => Box::pin(self.recover(action, guard, recovery, progress)).await?,
        }
        progress.say("creating the roles");
        self.furnish(action).await
    }

    /// Ends a bootstrap: what is in the data directory is the cluster from now on, and its log is
    /// archived.
    pub(super) async fn confirm(&self) -> Result<(), PgError> {
        let marker = self.marker();
        let confirmed = self.blocking("confirm the bootstrap", move |_| match marker.read()? {
            None => Ok(false),
            Some(Mark::Provisional) => marker.clear().map(|()| true),
            Some(Mark::Unfinished(kind)) => Err(io::Error::other(format!(
                "the data directory is half made by {kind}"
            ))),
        });
        if confirmed.await? {
            let control = self.eye.look_at_disk().await?.control;
            Box::pin(self.write_files(&Wiring::Primary, control.as_ref())).await?;
            self.reload().await?;
        }
        Ok(())
    }

    async fn initdb(&self, action: &str) -> Result<(), PgError> {
        let options = &self.options;
        let given = |name: &str| {
            let name = format!("--{name}");
            options
                .initdb
                .iter()
                .any(|argument| argument.split('=').next() == Some(name.as_str()))
        };
        let mut program = Program::new(options, "initdb")
            .arg("--pgdata")
            .arg(&options.data_dir)
            .arg(format!("--username={}", options.superuser.username))
            .args(options.initdb.clone());
        if !given("encoding") {
            program = program.arg("--encoding=UTF8");
        }
        if ![
            "locale",
            "no-locale",
            "lc-collate",
            "lc-ctype",
            "locale-provider",
        ]
        .into_iter()
        .any(given)
        {
            program = program.arg("--locale=C.UTF-8");
        }
        if !given("data-checksums") && !given("no-data-checksums") {
            program = program.arg("--data-checksums");
        }
        let secret = match &options.superuser.password {
            None => None,
            Some(password) => {
                let password = password.clone();
                let file = self.blocking(action, move |options| {
                    let path = options.state_dir().join("pwfile");
                    SecretFile::write(path, &format!("{password}\n"), options.uid_gid)
                });
                Some(file.await?)
            }
        };
        if let Some(secret) = &secret {
            program = program.arg(format!("--pwfile={}", secret.path().display()));
            if !["auth", "auth-host", "auth-local"].into_iter().any(given) {
                program = program.arg("--auth=scram-sha-256");
            }
        }
        let ended = program
            .run(|_| {})
            .await
            .map_err(|error| failed_io(action, error))?;
        ended
            .success()
            .map(drop)
            .map_err(|problem| refused(action, format!("initdb: {problem}")))
    }

    /// Creates the roles and runs the command of the configuration, in Patroni's order.
    async fn furnish(&self, action: &str) -> Result<(), PgError> {
        let options = &self.options;
        let session = self.session(action).await?;
        let run = async |statements: String| {
            let result = session.rows(&statements, STATEMENT_LIMIT).await;
            result
                .map(drop)
                .map_err(|error| failed_query(action, error))
        };
        run(QUIET.to_owned()).await?;
        let has_role = |user: &Credentials| user.username != options.superuser.username;
        if let Some(command) = &options.post_bootstrap {
            self.post_bootstrap(action, command, &session).await?;
        }
        if has_role(&options.replication) {
            run(role(&options.replication, "LOGIN REPLICATION")).await?;
        }
        if let Some(rewind) = options.rewind.as_ref().filter(|user| has_role(user)) {
            if rewind.username != options.replication.username {
                run(role(rewind, "LOGIN")).await?;
            }
            for function in REWIND_FUNCTIONS {
                let user = identifier(&rewind.username);
                run(format!(
                    "GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {user}"
                ))
                .await?;
            }
        }
        Ok(())
    }

    async fn post_bootstrap(
        &self,
        action: &str,
        command: &str,
        _session: &Session,
    ) -> Result<(), PgError> {
        let options = &self.options;
        let conninfo = conninfo::write(&[
            ("dbname", &options.database),
            ("user", &options.superuser.username),
            ("host", &options.own_host()),
            ("port", &options.port.to_string()),
        ]);
        let ended = Program::shell(options, command)
            .arg(conninfo)
            .env(
                "PGOPTIONS",
                "-c synchronous_commit=local -c statement_timeout=0",
            )
            .run(|line| tracing::info!(%line, "post_bootstrap"))
            .await
            .map_err(|error| failed_io(action, error))?;
        ended
            .success()
            .map(drop)
            .map_err(|problem| refused(action, format!("post_bootstrap: {problem}")))
    }
}

/// Returns the statement that creates a role, or gives it its attributes and password.
///
/// The password goes over as its verifier, which nobody can log in with.
fn role(user: &Credentials, attributes: &str) -> String {
    let name = identifier(&user.username);
    let password = user.password.as_ref().map_or_else(String::new, |password| {
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        format!(" PASSWORD{}", literal(&verifier))
    });
    let exists = literal(&user.username);
    // The body is a literal, so no name can end it.
    let body = literal(&format!(
        "BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname ={exists}) \
         THEN ALTER ROLE {name} WITH {attributes}{password}; \
         ELSE CREATE ROLE {name} WITH {attributes}{password}; END IF; END"
    ));
    format!("DO{body}")
}

fn append_access(options: &LocalOptions) -> io::Result<()> {
    if options.bootstrap_pg_hba.is_empty() {
        return Ok(());
    }
    let path = options.data_dir.join("pg_hba.conf");
    let mut file = files::open_own(&path, OpenOptions::new().append(true), options.uid_gid)?;
    for line in &options.bootstrap_pg_hba {
        writeln!(file, "{}", line.replace(['\n', '\r', '\0'], " "))?;
    }
    file.sync_all()
}

/// Nothing of what follows in the session may be logged, nor wait for a standby.
const QUIET: &str = "SET log_statement = 'none'; SET log_min_duration_statement = -1; \
    SET log_min_error_statement = 'panic'; SET synchronous_commit = 'local'";

/// What pg_rewind calls on the server that it copies from.
const REWIND_FUNCTIONS: &[&str] = &[
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

const STATEMENT_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_created_without_its_password() {
        let user = Credentials::new("o'b\"r", Some("secret".to_owned()));
        let statement = role(&user, "LOGIN");
        assert!(!statement.contains("secret"), "{statement}");
        assert!(statement.contains("SCRAM-SHA-256$4096:"), "{statement}");
        assert!(statement.contains("\"o''b\"\"r\""), "{statement}");
    }
}
