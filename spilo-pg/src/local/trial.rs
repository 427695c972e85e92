//! Trying the settings on the server's own program before anything depends on them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use spilo_core::pg::PgError;

use super::child::Program;
use super::configure::{conf_file, render};
use super::controldata::ControlData;
use super::settings::{self, Settings, Wiring};
use super::start::program;
use super::{LocalPostgres, failed_io, files, libraries, refused, retry};

impl LocalPostgres {
    /// Lets the server's own program read the settings, and does without what it does not take.
    pub(super) async fn check(
        &self,
        decided: Settings,
        wiring: &Wiring,
        control: Option<&ControlData>,
    ) -> Result<Settings, PgError> {
        if let Some((before, checked)) = &self.state().checked
            && *before == decided
        {
            return Ok(checked.clone());
        }
        let trial = self.options.conf_dir().join("postgresql.conf.spilo-trial");
        let floors = control.filter(|_| wiring.replays());
        let tried = Box::pin(self.try_settings(&trial, decided.clone(), wiring, floors)).await;
        self.blocking(CHECK, move |_| files::remove(&trial)).await?;
        let settings = tried?;
        for warning in &settings.warnings {
            tracing::warn!(%warning, "a parameter is not used as it was set");
        }
        self.state().checked = Some((decided, settings.clone()));
        Ok(settings)
    }

    /// Returns what is left of the settings when the server's program takes them.
    ///
    /// # Errors
    /// When it refuses what is left, and does not say for which parameter.
    async fn try_settings(
        &self,
        trial: &Path,
        mut settings: Settings,
        wiring: &Wiring,
        floors: Option<&ControlData>,
    ) -> Result<Settings, PgError> {
        let before = self.blocking(CHECK, |options| {
            Ok(fs::read_to_string(conf_file(options)).unwrap_or_default())
        });
        let before = before.await?;
        let mut said = String::new();
        for _ in 0..MOST_PROBLEMS {
            let text = render(&self.options, &settings, wiring);
            let path = trial.to_owned();
            self.blocking(CHECK, move |options| {
                files::replace(&path, &text, options.uid_gid)
            })
            .await?;
            said = match self.try_configuration(trial).await? {
                Verdict::Accepted { library_path } => {
                    settings.keep_connections();
                    return self.keep_libraries(settings, library_path).await;
                }
                Verdict::Refused { said } => said,
            };
            let mut mended = false;
            for (name, why) in problems(&said) {
                let before = settings::find(&before, &name);
                mended |= settings.refuse(&name, &why, before.as_deref(), floors);
            }
            if !mended {
                break;
            }
        }
        let complaint = complaint(&said);
        let problem = format!(
            "the server would not start with it: {complaint}; nothing was changed; correct what is \
             named there, in the configuration or in the file"
        );
        Err(refused(CHECK, problem))
    }

    /// Leaves out the libraries that the server would not find, if it can be told where it looks.
    async fn keep_libraries(
        &self,
        mut settings: Settings,
        library_path: String,
    ) -> Result<Settings, PgError> {
        self.blocking(CHECK, move |options| {
            match libraries::directory(&program(options)) {
                Some(own) => settings.keep_libraries(|name| {
                    libraries::is_present(name, &library_path, &own, &options.data_dir)
                }),
                None => tracing::debug!("it is not known where the server's libraries are"),
            }
            Ok(settings)
        })
        .await
    }

    /// Lets the server's program read a configuration file.
    async fn try_configuration(&self, file: &Path) -> Result<Verdict, PgError> {
        let ended = Program::new(&self.options, "postgres")
            .arg("-D")
            .arg(&self.options.data_dir)
            .arg(format!("--config-file={}", file.display()))
            .args(["-C", "dynamic_library_path"])
            .within(Duration::from_secs(20))
            .run(|_| {})
            .await
            .map_err(|error| failed_io(CHECK, error))?;
        if ended.status.success() {
            let library_path = ended.stdout.trim_end_matches('\n').to_owned();
            return Ok(Verdict::Accepted { library_path });
        }
        // One that was killed has judged nothing.
        if ended.status.code().is_none() || ended.stderr.trim().is_empty() {
            return Err(retry(CHECK, format!("postgres -C: {}", ended.status)));
        }
        Ok(Verdict::Refused { said: ended.stderr })
    }
}

/// What the server's program makes of a configuration file.
enum Verdict {
    /// It takes it.
    Accepted {
        /// Where it would look for libraries.
        library_path: String,
    },
    /// It would not start with it.
    Refused {
        /// What it says against it.
        said: String,
    },
}

/// Finds what parameters the server's program complains of, and how.
fn problems(said: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in said.lines() {
        let Some((_, rest)) = line.split_once("parameter \"") else {
            continue;
        };
        let Some((name, _)) = rest.split_once('"') else {
            continue;
        };
        let why = line.split_once(":  ").map_or(line, |(_, why)| why);
        found.push((name.to_owned(), why.trim().to_owned()));
    }
    found
}

/// Picks what a refusal is about out of what the server's program says: all lines but the last,
/// which says only that there are some.
fn complaint(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.contains("contains errors"))
        .map(|line| line.split_once(":  ").map_or(line, |(_, text)| text).trim())
        .filter(|line| !line.is_empty())
        .collect();
    match lines.is_empty() {
        true => said.trim().to_owned(),
        false => lines.join("; "),
    }
}

const CHECK: &str = "check the configuration";
/// Each round of the check finds at least one problem, so this bounds its length.
const MOST_PROBLEMS: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_their_parameter() {
        let said = "\
2026 GMT [1] LOG:  unrecognized configuration parameter \"foo\" in file \"/x.conf\" line 1
2026 GMT [1] LOG:  invalid value for parameter \"work_mem\": \"banana\"
2026 GMT [1] HINT:  Valid units for this parameter are \"B\", \"kB\".
2026 GMT [1] LOG:  1 kB is outside the valid range for parameter \"wal_keep_size\" (2 .. 3)
2026 GMT [1] FATAL:  configuration file \"/x.conf\" contains errors";
        let names: Vec<_> = problems(said).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["foo", "work_mem", "wal_keep_size"]);
        assert_eq!(
            problems(said)[1].1,
            "invalid value for parameter \"work_mem\": \"banana\""
        );
    }

    #[test]
    fn a_refusal_without_a_parameter_is_quoted() {
        let said = "\
2026 GMT [1] LOG:  syntax error in file \"/x.conf\" line 1, near token \"=\"
2026 GMT [1] FATAL:  configuration file \"/y.conf\" contains errors";
        assert_eq!(problems(said), []);
        assert_eq!(
            complaint(said),
            "syntax error in file \"/x.conf\" line 1, near token \"=\""
        );
        assert_eq!(complaint("postgres: no\n"), "postgres: no");
    }
}
