//! Finding the configuration: file, directory or environment.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use spilo_core::config::patch;
use spilo_core::local::{ClientTls, ConfigError, ConfigErrorKind, Local, Parsed};

use crate::yaml;

/// The variables of the environment that begin with `PATRONI_`.
pub(crate) type Env = BTreeMap<String, String>;

/// Where the configuration comes from, to read it now and again.
#[derive(Debug)]
pub(crate) struct Source {
    config: Option<PathBuf>,
    env: Env,
    /// What relative paths of files are relative to: where the agent was started.
    base: PathBuf,
}

/// Everything that is wrong, a line each.
#[derive(Debug)]
pub(crate) struct Faults(pub(crate) Vec<String>);

impl Source {
    /// Takes what the command line names and the environment of this process.
    pub(crate) fn new(config: Option<&Path>) -> Result<Self> {
        let base = std::env::current_dir().context("cannot tell the working directory")?;
        Ok(Self {
            config: config.map(|config| base.join(config)),
            env: environment()?,
            base,
        })
    }

    /// Reads the configuration.
    pub(crate) fn load(&self) -> Result<Parsed, Faults> {
        let mut parsed = load(self.config.as_deref(), &self.env)?;
        for file in files(&mut parsed.local) {
            *file = self.base.join(&*file);
        }
        Ok(parsed)
    }
}

/// Reads the configuration that the command line and the environment name.
fn load(config: Option<&Path>, env: &Env) -> Result<Parsed, Faults> {
    let (document, env) = document(config, env).map_err(|e| Faults(vec![format!("{e:#}")]))?;
    let parsed = Local::parse(document, &env);
    let no_store = || {
        let problem = "is missing: the cluster agrees through etcd, so say where it is (or `consul`, or `zookeeper`)";
        ConfigError::new(ConfigErrorKind::Missing, "etcd3", problem)
    };
    match parsed {
        Ok(parsed) if has_store(&parsed.local) => Ok(parsed),
        Ok(_) => Err(Faults(vec![no_store().to_string()])),
        Err(errors) => Err(Faults(errors.iter().map(ToString::to_string).collect())),
    }
}

/// Returns whether there is a store to agree through.
pub(crate) fn has_store(local: &Local) -> bool {
    local.etcd3.is_some() || local.consul.is_some() || local.zookeeper.is_some()
}

/// Returns the `PATRONI_*` variables of this process.
fn environment() -> Result<Env> {
    let mut env = Env::new();
    for (name, text) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with("PATRONI_")) else {
            continue;
        };
        let Ok(text) = text.into_string() else {
            bail!("{name}: is not valid UTF-8")
        };
        env.insert(name.to_owned(), text);
    }
    Ok(env)
}

/// Returns the paths of the agent's own files. `custom_conf` is PostgreSQL's, and relative to its
/// configuration files.
fn files(local: &mut Local) -> impl Iterator<Item = &mut PathBuf> {
    fn client(tls: &mut ClientTls) -> [Option<&mut PathBuf>; 3] {
        [&mut tls.authorities, &mut tls.certificate, &mut tls.key].map(Option::as_mut)
    }
    let mut named = vec![local.log.dir.as_mut()];
    if let Some(tls) = &mut local.restapi.tls {
        named.push(Some(&mut tls.certificate));
        named.push(tls.key.as_mut());
        named.push(tls.client_authorities.as_mut());
    }
    named.extend(client(&mut local.ctl.tls));
    if let Some(etcd3) = &mut local.etcd3 {
        named.extend(client(&mut etcd3.tls));
    }
    if let Some(consul) = &mut local.consul {
        named.extend(client(&mut consul.tls));
    }
    named.into_iter().flatten()
}

fn document(config: Option<&Path>, env: &Env) -> Result<(Value, Env)> {
    match (config, env.get(CONFIGURATION)) {
        (Some(path), _) => Ok((read(path)?, env.clone())),
        // The whole configuration: no other variable counts then.
        (None, Some(text)) => Ok((yaml::parse(CONFIGURATION, text)?, Env::new())),
        (None, None) if env.is_empty() => bail!(
            "no configuration: name a file or a directory, or set {CONFIGURATION} (--help shows \
             an example)"
        ),
        (None, None) => Ok((Value::Null, env.clone())),
    }
}

fn read(path: &Path) -> Result<Value> {
    let shown = path.display();
    if !path.is_dir() {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        return yaml::parse(&shown.to_string(), &text);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot read the directory {shown}"))?;
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "yml" || extension == "yaml")
    });
    files.sort();
    if files.is_empty() {
        bail!("{shown}: has no file *.yml or *.yaml");
    }
    let mut merged = Map::new();
    for file in files {
        match read(&file)? {
            Value::Object(map) => patch(&mut merged, &map),
            Value::Null => {}
            other => bail!(
                "{}: must be a map of sections, found {other}",
                file.display()
            ),
        }
    }
    Ok(Value::Object(merged))
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.join("\n").fmt(f)
    }
}

const CONFIGURATION: &str = "PATRONI_CONFIGURATION";

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
scope: demo
name: a
etcd3: {host: 127.0.0.1}
restapi: {listen: 127.0.0.1:8008}
postgresql:
  listen: 127.0.0.1:5432
  data_dir: /srv/pg
  authentication: {superuser: {password: p}, replication: {password: p}}
";

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_files_of_a_directory_are_merged_in_the_order_of_their_names() {
        let dir = written(&[
            ("10.yml", FILE),
            ("20.yaml", "name: b\npostgresql: {listen: '127.0.0.1:5433'}"),
            ("30.yml", ""),
            ("ignored.txt", "name: ["),
        ]);
        let local = load(Some(dir.path()), &Env::new()).unwrap().local;
        assert_eq!(
            (local.name.as_str(), local.postgresql.listen.port),
            ("b", 5433)
        );
    }

    #[test]
    fn variables_override_a_file_and_the_whole_text_stands_alone() {
        let dir = written(&[("f.yml", FILE)]);
        let variables = env(&[("PATRONI_NAME", "b"), ("PATRONI_CONFIGURATION", FILE)]);
        let name = |config: Option<&Path>| load(config, &variables).unwrap().local.name.to_string();
        let file = dir.path().join("f.yml");
        assert_eq!(name(Some(file.as_path())), "b");
        assert_eq!(name(None), "a");
    }

    #[test]
    fn the_example_that_is_shipped_is_valid_and_gives_no_warning() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("spilo-agent.yml");
        let parsed = load(Some(&file), &Env::new()).unwrap();
        assert_eq!(parsed.warnings, [""; 0]);
    }

    #[test]
    fn relative_paths_lead_from_where_the_agent_was_started() {
        let dir = written(&[(
            "f.yml",
            &format!(
                "{}\nlog: {{dir: log}}\nctl: {{certfile: c, keyfile: /k}}",
                FILE.replace("etcd3: {", "etcd3: {cacert: ../ca, ")
                    .replace("restapi: {", "restapi: {certfile: a/b, ")
            ),
        )]);
        let source = Source {
            config: Some(dir.path().join("f.yml")),
            env: Env::new(),
            base: "/base".into(),
        };
        let mut local = source.load().unwrap().local;
        let found: Vec<&mut PathBuf> = files(&mut local).collect();
        assert_eq!(
            found,
            ["/base/log", "/base/a/b", "/base/c", "/k", "/base/../ca"].map(Path::new)
        );
    }

    #[test]
    fn what_cannot_be_found_is_said_in_one_line() {
        let dir = written(&[]);
        let shown = dir.path().display();
        let missing = dir.path().join("missing.yml");
        for (config, message) in [
            (None, "no configuration: name a file".to_owned()),
            (
                Some(dir.path()),
                format!("{shown}: has no file *.yml or *.yaml"),
            ),
            (
                Some(missing.as_path()),
                format!("cannot read {shown}/missing.yml: No such file"),
            ),
        ] {
            let faults = load(config, &Env::new()).unwrap_err().0;
            assert!(
                faults.len() == 1 && faults[0].starts_with(&message),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn a_node_without_a_store_is_refused() {
        let dir = written(&[("f.yml", &FILE.replace("etcd3: {host: 127.0.0.1}", ""))]);
        let faults = load(Some(dir.path()), &Env::new()).unwrap_err().0;
        assert_eq!(
            faults,
            [
                "etcd3: is missing: the cluster agrees through etcd, so say where it is (or `consul`, or `zookeeper`)"
            ]
        );
    }
}
