//! The messages between an agent and its guard: one line of JSON each.
//!
//! A request carries the version and, once it is known, the name of the guard that it is meant
//! for. A guard may be older than the agent that talks to it, so unknown fields are ignored, and
//! an unknown request is an error that leaves everything as it was.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spilo_core::dcs::LeaseSecret;
use spilo_core::guard::{Deadline, GuardStatus};
use spilo_core::ids::Epoch;
use spilo_core::time::NodeTime;

/// How PostgreSQL is to be started.
///
/// The server gets exactly this environment and nothing of the guard's or the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Launch {
    /// The `postgres` program.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its whole environment, as names and values.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The file that standard output and error are appended to.
    pub log_file: PathBuf,
    /// The user and group that the server runs as; none for those of the guard.
    #[serde(default)]
    pub uid_gid: Option<(u32, u32)>,
    /// What the server starts as.
    pub role: Role,
}

/// What a server is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It takes writes; refused unless a deadline lies ahead.
    Primary,
    /// It follows; refused unless the data directory has `standby.signal` or `recovery.signal`.
    Standby,
}

/// A signal to the postmaster, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerSignal {
    /// SIGHUP: read the configuration files again.
    Reload,
    /// SIGTERM: stop when the last client has left.
    SmartStop,
    /// SIGINT: end the clients, send all WAL to the standbys, stop.
    FastStop,
    /// SIGQUIT: end without a checkpoint.
    ImmediateStop,
    /// SIGUSR1, which means to promote once `promote` was written, and nothing before that; refused
    /// unless a deadline lies ahead. The server counts as a primary from then on.
    Promote,
}

/// A request, as it arrived, without its kind.
#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) v: u32,
    /// The guard that the request is meant for; any, if it names none.
    #[serde(default)]
    pub(super) guard: Option<String>,
}

/// What an agent may ask.
#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Request {
    /// Marks the connection as that of a living agent: while it is open the guard stays.
    Hello,
    Status,
    Arm(DeadlineText),
    Disarm,
    Launch(Launch),
    Signal {
        signal: ServerSignal,
    },
    Fence,
    /// Answered once the count of changes is another than `since`.
    Changed {
        since: u64,
    },
    Quit,
}

/// A deadline on the wire. It has no `Debug`, because it bears the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeadlineText {
    epoch: u64,
    secret: String,
    soft: u64,
    hard: u64,
}

/// An answer. Exactly one per request, in their order.
#[derive(Serialize, Deserialize, Default)]
pub(super) struct Reply {
    pub(super) v: u32,
    /// The name of the guard that answers.
    #[serde(default)]
    pub(super) guard: String,
    /// How often the server's processes have changed so far.
    #[serde(default)]
    pub(super) changes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Box<StatusText>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) took_micros: Option<u64>,
}

/// Why a request failed.
#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Whether the request was meant for another guard, which then is gone.
    #[serde(default)]
    pub(super) other_guard: bool,
    pub(super) problem: String,
}

/// A guard's status on the wire.
#[derive(Serialize, Deserialize, Default)]
pub(super) struct StatusText {
    #[serde(default)]
    pub(super) guard_pid: u32,
    #[serde(default)]
    pub(super) postmaster: Option<u32>,
    #[serde(default)]
    pub(super) alive: bool,
    #[serde(default)]
    pub(super) deadline: Option<DeadlineText>,
    #[serde(default)]
    pub(super) worst_fence_micros: u64,
    #[serde(default)]
    pub(super) fences: u64,
    #[serde(default)]
    pub(super) last_fence: Option<String>,
    #[serde(default)]
    pub(super) weaknesses: Vec<String>,
    #[serde(default)]
    pub(super) data_dir: Option<PathBuf>,
    #[serde(default)]
    pub(super) role: Option<Role>,
    #[serde(default)]
    pub(super) last_exit: Option<String>,
}

impl Launch {
    /// Creates a launch without arguments and environment, as the guard's own user.
    pub fn new(
        program: impl Into<PathBuf>,
        data_dir: impl Into<PathBuf>,
        log_file: impl Into<PathBuf>,
        role: Role,
    ) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            data_dir: data_dir.into(),
            log_file: log_file.into(),
            uid_gid: None,
            role,
        }
    }
}

impl StatusText {
    pub(super) fn into_status(self) -> GuardStatus {
        let mut status = GuardStatus::idle();
        status.postmaster = self.postmaster;
        status.alive = self.alive;
        status.deadline = self.deadline.map(Deadline::from);
        status.worst_fence = Duration::from_micros(self.worst_fence_micros);
        status.fences = self.fences;
        status.last_fence = self.last_fence;
        status.weaknesses = self.weaknesses;
        status
    }
}

impl From<Deadline> for DeadlineText {
    fn from(deadline: Deadline) -> Self {
        Self {
            epoch: deadline.epoch.0,
            secret: deadline.secret.0,
            soft: deadline.soft.0,
            hard: deadline.hard.0,
        }
    }
}

impl From<DeadlineText> for Deadline {
    fn from(text: DeadlineText) -> Self {
        Self {
            epoch: Epoch(text.epoch),
            secret: LeaseSecret(text.secret),
            soft: NodeTime(text.soft),
            hard: NodeTime(text.hard),
        }
    }
}

impl Failure {
    /// Creates the failure of a request that the guard refuses.
    pub(super) fn refused(problem: impl Into<String>) -> Self {
        Self {
            other_guard: false,
            problem: problem.into(),
        }
    }
}

/// Reads one request, meant for the guard named `me`.
pub(super) fn parse(line: &[u8], me: &str) -> Result<Request, Failure> {
    let not_a_request = |_| Failure::refused("not a request");
    let header: Header = serde_json::from_slice(line).map_err(not_a_request)?;
    if header.v != VERSION {
        return Err(Failure::refused(format!(
            "version {} of the protocol is not spoken here, only {VERSION}",
            header.v
        )));
    }
    if header.guard.is_some_and(|name| name != me) {
        let problem = "the request is meant for another guard".to_owned();
        return Err(Failure {
            other_guard: true,
            problem,
        });
    }
    // The parser's own message may quote the line, and the line may bear the secret.
    serde_json::from_slice(line)
        .map_err(|error| Failure::refused(format!("unknown request (column {})", error.column())))
}

/// Writes one request, meant for the guard named `to`.
pub(super) fn write(request: &Request, to: Option<&str>) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Whole<'a> {
        #[serde(flatten)]
        header: Header,
        #[serde(flatten)]
        request: &'a Request,
    }
    let header = Header {
        v: VERSION,
        guard: to.map(str::to_owned),
    };
    let mut line = serde_json::to_vec(&Whole { header, request })?;
    line.push(b'\n');
    Ok(line)
}

/// The version of the protocol. A field that an older guard may ignore does not change it.
pub(super) const VERSION: u32 = 1;

/// The longest line: a launch with its environment fits many times.
pub(super) const MAX_LINE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: &str) -> String {
        match parse(line.as_bytes(), "me") {
            Ok(_) => panic!("was taken for a request: {line}"),
            Err(failure) => failure.problem,
        }
    }

    #[test]
    fn request_survives_the_wire() {
        let deadline = Deadline {
            epoch: Epoch(u64::MAX),
            secret: LeaseSecret("a \"b\"\n\u{e9}".to_owned()),
            soft: NodeTime(1),
            hard: NodeTime(2),
        };
        let line = write(&Request::Arm(deadline.clone().into()), Some("me")).unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let Ok(Request::Arm(read)) = parse(&line, "me") else {
            panic!("not an arm")
        };
        assert_eq!(Deadline::from(read), deadline);
    }

    #[test]
    fn launch_survives_the_wire() {
        let mut launch = Launch::new("/bin/postgres", "/data", "/log", Role::Standby);
        launch.args = vec!["-D".to_owned(), "/data".to_owned()];
        launch.env = vec![("A".to_owned(), "b c".to_owned())];
        launch.uid_gid = Some((1, 2));
        let line = write(&Request::Launch(launch.clone()), None).unwrap();
        let Ok(Request::Launch(read)) = parse(&line, "me") else {
            panic!("not a launch")
        };
        assert_eq!(read, launch);
    }

    #[test]
    fn field_of_a_newer_agent_is_ignored() {
        let line = r#"{"v":1,"do":"arm","epoch":1,"secret":"s","soft":2,"hard":3,"colour":"red"}"#;
        assert!(matches!(parse(line.as_bytes(), "me"), Ok(Request::Arm(_))));
        assert!(matches!(
            parse(br#"{"v":1,"do":"status","x":[]}"#, "me"),
            Ok(Request::Status)
        ));
    }

    #[test]
    fn garbage_is_a_failure_that_names_no_content() {
        assert_eq!(problem("GET / HTTP/1.1"), "not a request");
        assert_eq!(problem(""), "not a request");
        assert!(problem(r#"{"v":1,"do":"dance"}"#).starts_with("unknown request"));
        assert!(problem(r#"{"v":9,"do":"status"}"#).starts_with("version 9"));
        let secret = r#"{"v":1,"do":"arm","epoch":"hush","secret":"hush"}"#;
        assert!(!problem(secret).contains("hush"));
    }

    #[test]
    fn request_for_another_guard_says_so() {
        let line = write(&Request::Fence, Some("you")).unwrap();
        assert!(parse(&line, "me").is_err_and(|failure| failure.other_guard));
    }
}
