//! What the agent serves and whom it talks to: log, REST API, its clients.

use std::path::PathBuf;

use super::address::{Address, Listen};
use super::error::{ConfigErrorKind, Problems};
use super::secret::Secret;
use super::section::Section;

/// Where log lines go and what they look like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// Their form.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
    /// The directory of the log file; standard error if there is none.
    pub dir: Option<PathBuf>,
    /// The permissions of the log file.
    pub file_mode: Option<u32>,
    /// How many full files are kept beside the current one.
    pub file_count: u32,
    /// How large a file becomes before the next is begun.
    pub file_bytes: u64,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// Time, level, message, fields.
    Plain,
    /// One JSON object a line.
    Json,
}

/// The importance of a log line, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Something changed.
    Info,
    /// What leads to a change.
    Debug,
    /// Everything.
    Trace,
}

/// The REST API of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestApi {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it.
    pub connect: Address,
    /// What a caller of a protected endpoint has to show.
    pub credentials: Option<Credentials>,
    /// How it speaks TLS; plain HTTP if `None`.
    pub tls: Option<ServerTls>,
    /// The networks that may call protected endpoints; everyone if empty.
    pub allowlist: Vec<String>,
    /// Whether members of the cluster may call protected endpoints wherever they are.
    pub allowlist_include_members: bool,
    /// Headers of every answer, by name.
    pub http_headers: Vec<(String, String)>,
    /// Headers of every answer over TLS, by name.
    pub https_headers: Vec<(String, String)>,
    /// How much the `Server` header says.
    pub server_tokens: ServerTokens,
}

/// How much the `Server` header of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerTokens {
    /// The product and its version.
    Version,
    /// The product.
    ProductOnly,
}

/// How a server speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerTls {
    /// Its certificate, with the chain, as PEM.
    pub certificate: PathBuf,
    /// The private key; in the certificate's file if `None`.
    pub key: Option<PathBuf>,
    /// The authorities whose clients are believed.
    pub client_authorities: Option<PathBuf>,
    /// Who has to show a certificate.
    pub verify_client: VerifyClient,
}

/// Which callers have to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerifyClient {
    /// Nobody.
    None,
    /// Callers of protected endpoints.
    Optional,
    /// Everybody.
    Required,
}

/// How this node calls the REST API of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ctl {
    /// What it shows; those of the node's own REST API if there are none.
    pub credentials: Option<Credentials>,
    /// Whether `patronictl` believes any certificate; the agent never looks at it.
    pub insecure: bool,
    /// How it speaks TLS.
    pub tls: ClientTls,
}

/// How a client speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientTls {
    /// The authorities that are believed.
    pub authorities: Option<PathBuf>,
    /// The client's certificate, as PEM.
    pub certificate: Option<PathBuf>,
    /// The private key; in the certificate's file if `None`.
    pub key: Option<PathBuf>,
}

/// A user's name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Secret,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Plain,
            level: LogLevel::Info,
            dir: None,
            file_mode: None,
            file_count: 4,
            file_bytes: 25_000_000,
        }
    }
}

impl Log {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Self {
        let default = Self::default();
        let level = section
            .text("level")
            .and_then(|level| section.valid("level", LogLevel::parse(&level), problems));
        Self {
            format: match section.words("type").as_deref() {
                Some("json") => LogFormat::Json,
                _ => LogFormat::Plain,
            },
            level: level.unwrap_or(default.level),
            dir: section.file("dir"),
            file_mode: section.count("mode"),
            file_count: section.count("file_num").unwrap_or(default.file_count),
            file_bytes: section.count("file_size").unwrap_or(default.file_bytes),
        }
    }
}

impl LogLevel {
    /// Reads the names and the numbers of Python's levels, which Patroni's files have.
    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_str() {
            "CRITICAL" | "FATAL" | "ERROR" | "50" | "40" => Ok(Self::Error),
            "WARNING" | "WARN" | "30" => Ok(Self::Warn),
            "INFO" | "20" => Ok(Self::Info),
            "DEBUG" | "10" => Ok(Self::Debug),
            "NOTSET" | "TRACE" | "0" => Ok(Self::Trace),
            _ => Err(format!(
                "must be one of `CRITICAL`, `ERROR`, `WARNING`, `INFO`, `DEBUG` or `TRACE`, found \
                 {text:?}"
            )),
        }
    }
}

impl RestApi {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        let (listen, connect) = listening(section, None, problems);
        let headers = |name: &str| {
            let map = section.map(name).unwrap_or_default();
            map.iter()
                .filter_map(|(k, v)| Some((k.clone(), super::scalar::text(v)?)))
                .collect()
        };
        let read = Self {
            credentials: section.inner("authentication").credentials(problems),
            tls: ServerTls::read(section, problems),
            allowlist: section.list("allowlist").unwrap_or_default(),
            allowlist_include_members: section.flag("allowlist_include_members").unwrap_or(false),
            http_headers: headers("http_extra_headers"),
            https_headers: headers("https_extra_headers"),
            server_tokens: match section.words("server_tokens").as_deref() {
                Some("productonly") => ServerTokens::ProductOnly,
                _ => ServerTokens::Version,
            },
            listen: listen?,
            connect: connect?,
        };
        Some(read)
    }
}

impl ServerTls {
    fn read(section: &Section<'_>, problems: &mut Problems) -> Option<Self> {
        let verify_client = match section.words("verify_client").as_deref() {
            Some("optional") => VerifyClient::Optional,
            Some("required") => VerifyClient::Required,
            _ => VerifyClient::None,
        };
        let client_authorities = section.file("cafile");
        if verify_client != VerifyClient::None && client_authorities.is_none() {
            return section.lacks("cafile", "verify_client", problems);
        }
        let Some(certificate) = section.file("certfile") else {
            // Without TLS these would be silently void, and the API open.
            for needs in ["keyfile", "verify_client", "cafile"] {
                let void = needs == "verify_client" && verify_client == VerifyClient::None;
                if section.value(needs).is_some() && !void {
                    return section.lacks("certfile", needs, problems);
                }
            }
            return None;
        };
        Some(Self {
            certificate,
            key: section.file("keyfile"),
            client_authorities,
            verify_client,
        })
    }
}

impl Ctl {
    pub(super) fn read(section: &Section<'_>, problems: &mut Problems) -> Self {
        Self {
            credentials: section.inner("authentication").credentials(problems),
            insecure: section.flag("insecure").unwrap_or(false),
            tls: ClientTls::read(section, ["cacert", "certfile", "keyfile"], problems),
        }
    }
}

impl ClientTls {
    pub(super) fn read(section: &Section<'_>, names: [&str; 3], problems: &mut Problems) -> Self {
        let [authorities, certificate, key] = names.map(|name| section.file(name));
        if key.is_some() && certificate.is_none() {
            let _missing: Option<()> = section.lacks(names[1], names[2], problems);
        }
        Self {
            authorities,
            certificate,
            key,
        }
    }
}

/// Reads where a service listens and where others reach it.
pub(super) fn listening(
    section: &Section<'_>,
    default_port: Option<u16>,
    problems: &mut Problems,
) -> (Option<Listen>, Option<Address>) {
    let text = section.required("listen", problems);
    let listen =
        text.and_then(|text| section.valid("listen", Listen::parse(&text, default_port), problems));
    let connect = if section.value("connect_address").is_some() {
        section.address("connect_address", problems)
    } else {
        let address = listen.as_ref().and_then(Listen::address);
        if let (Some(listen), None) = (&listen, &address) {
            problems.error(
                &section.path("connect_address"),
                ConfigErrorKind::Missing,
                format!("is missing: others cannot reach this node at {listen}"),
            );
        }
        address
    };
    (listen, connect)
}
