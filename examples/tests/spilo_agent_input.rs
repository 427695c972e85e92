//! What the daemon does with input that it cannot use: one clear error, and nothing changed.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on may say so by panicking"
)]

#[path = "support/machine.rs"]
mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use machine::{configuration, free_port};

/// A machine with programs that only say their version, and a configuration that fits it.
struct Machine {
    dir: TempDir,
    config: String,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = configuration(dir.path(), free_port());
        Self { dir, config }
    }

    /// Starts the daemon for good, with `config`; it must not come far enough to stay.
    fn start(&self, config: &str) -> Output {
        self.run(config, &[])
    }

    fn run(&self, config: &str, arguments: &[&str]) -> Output {
        fs::write(self.path("agent.yml"), config).unwrap();
        Command::new(env!("CARGO_BIN_EXE_spilo-agent"))
            .args(arguments)
            .arg("agent.yml")
            .current_dir(self.dir.path())
            .env_clear()
            .output()
            .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                }
                found.insert(path);
            }
        }
        let mut found = BTreeSet::new();
        walk(self.dir.path(), &mut found);
        found.remove(&self.path("agent.yml"));
        found
    }
}

/// Writes a certificate, and its key into the same file.
fn certify(file: &Path) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(file, certificate + &key).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn input_that_cannot_be_used_gives_one_clear_error_and_changes_nothing() {
    let machine = Machine::new();
    let (good, files) = (&machine.config, machine.files());
    let file = machine.path("agent.yml").display().to_string();
    for (config, error) in [
        (
            format!("{good}tags: [1"),
            format!("{file}: did not find expected ',' or ']' at line 11 column 1, while parsing a flow sequence at line 10 column 7"),
        ),
        (good.replace("scope: demo\n", ""), "scope: is missing".to_owned()),
        (
            good.replace("name: a", "name: [a]"),
            "name: must be text (in quotes, if YAML takes it for something else), found a list"
                .to_owned(),
        ),
        (
            good.replace("  data_dir", "  datadir: /x\n  data_dir"),
            "postgresql.datadir: unknown key; did you mean `postgresql.data_dir`?".to_owned(),
        ),
        (
            format!("{good}tags: {{nofailover: true}}"),
            "tags.nofailover: decides who may be promoted, and is not built: remove it, or run \
             this node with Patroni"
                .to_owned(),
        ),
        (
            format!("{good}bootstrap: {{dcs: {{synchronous_mode: on}}}}"),
            "bootstrap.dcs.synchronous_mode: decides who may write or be promoted, and is not built"
                .to_owned(),
        ),
    ] {
        let output = machine.start(&config);
        assert_eq!(text(&output.stderr), format!("spilo-agent: {error}\n"));
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert_eq!(machine.files(), files, "{error}");
    }
}

#[test]
fn a_machine_that_does_not_fit_gives_one_clear_error_and_stays_as_it_was() {
    let refused = |machine: &Machine, config: &str, error: String| {
        let files = machine.files();
        let output = machine.start(config);
        assert_eq!(text(&output.stderr), format!("spilo-agent: {error}\n"));
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert_eq!(machine.files(), files, "{error}");
    };

    let machine = Machine::new();
    let root = machine.dir.path().display();
    fs::remove_file(machine.path("bin/pg_basebackup")).unwrap();
    let error = format!("postgresql.bin_dir: no program pg_basebackup in {root}/bin");
    refused(&machine, &machine.config, error);

    let machine = Machine::new();
    let root = machine.dir.path().display();
    fs::create_dir(machine.path("data")).unwrap();
    fs::write(machine.path("data/PG_VERSION"), "13\n").unwrap();
    let error = format!(
        "postgresql.data_dir: {root}/data is of PostgreSQL 13, and {root}/bin/postgres is \
         PostgreSQL 15"
    );
    refused(&machine, &machine.config, error);

    let machine = Machine::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = format!("{}restapi: {{listen: '127.0.0.1:{port}'}}", {
        let lines = machine
            .config
            .lines()
            .filter(|line| !line.starts_with("restapi"));
        lines.fold(String::new(), |all, line| all + line + "\n")
    });
    let error = format!("restapi.listen: the port {port} of 127.0.0.1 is taken by another program");
    refused(&machine, &config, error);
}

/// A start checks what a validation checks, and both before anything is made.
#[test]
fn settings_that_no_agent_could_start_with_are_named_and_nothing_is_made() {
    let machine = Machine::new();
    let root = machine.dir.path().display();
    for name in ["a.pem", "b.pem"] {
        certify(&machine.path(name));
    }
    fs::write(machine.path("none.pem"), "").unwrap();
    let files = machine.files();
    let restapi = |more: &str| {
        machine
            .config
            .replace("restapi: {", &format!("restapi: {{{more}, "))
    };
    let etcd3 = |more: &str| {
        machine
            .config
            .replace("etcd3: {", &format!("etcd3: {{{more}, "))
    };
    for (config, error) in [
        (
            restapi("allowlist: [10.0.0.0/33]"),
            "restapi.allowlist: allowlist: \"10.0.0.0/33\" is no address, network or host name"
                .to_owned(),
        ),
        (
            restapi("http_extra_headers: {'X A': b}"),
            "restapi: header \"X A\": its name or value has characters that a header may not have"
                .to_owned(),
        ),
        (
            restapi("certfile: a.pem, keyfile: b.pem"),
            format!("restapi: tls: cannot use {root}/b.pem: the key does not fit the certificate"),
        ),
        (
            restapi("certfile: a.pem, cafile: none.pem, verify_client: required"),
            format!("restapi: tls: cannot use {root}/none.pem: it has no certificate"),
        ),
        (
            format!("{}ctl: {{certfile: a.pem, keyfile: b.pem}}", machine.config),
            format!(
                "ctl, restapi: tls: cannot use {root}/a.pem: the key does not fit the certificate"
            ),
        ),
        (
            etcd3("cacert: a.pem, cert: a.pem, key: b.pem, protocol: https"),
            format!("etcd3: tls: cannot use {root}/a.pem: the key does not fit the certificate"),
        ),
        (
            restapi("certfile: missing.pem"),
            format!(
                "restapi.certfile: cannot read {root}/missing.pem: No such file or directory (os \
                 error 2)"
            ),
        ),
        (
            format!("{}log: {{dir: missing}}", machine.config),
            format!("log.dir: cannot write a log in {root}/missing: No such file or directory"),
        ),
    ] {
        for arguments in [["--validate-config"].as_slice(), &[]] {
            let output = machine.run(&config, arguments);
            let said = text(&output.stderr);
            let first = said.lines().next().unwrap_or_default();
            assert!(
                first.starts_with(&format!("spilo-agent: {error}")),
                "{said}"
            );
            assert_eq!(output.status.code(), Some(1), "{error}");
            assert_eq!(machine.files(), files, "{error}");
        }
    }
}

#[test]
fn an_agent_leaves_the_directory_it_was_started_in_and_names_the_way_out_of_being_root() {
    let machine = Machine::new();
    fs::create_dir(machine.path("data")).unwrap();
    fs::write(machine.path("agent.yml"), &machine.config).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_spilo-agent"))
        .arg("../agent.yml")
        .current_dir(machine.path("data"))
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(agent.stderr.take().unwrap()).lines();
    let up = said.any(|line| line.unwrap().contains("spilo-agent starts"));
    let next = said.next().unwrap().unwrap();
    let stands = fs::read_link(format!("/proc/{}/cwd", agent.id()));
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(up);
    assert_eq!(stands.unwrap(), Path::new("/"));
    let warned = next.contains("WARNING: runs as root") && next.contains(": User=postgres)");
    assert_eq!(warned, nix::unistd::geteuid().is_root(), "{next}");
}

#[test]
fn a_log_that_nobody_reads_holds_no_agent_up() {
    let machine = Machine::new();
    fs::write(machine.path("agent.yml"), &machine.config).unwrap();
    // Nothing more goes into it.
    let (_reader, mut full) = std::io::pipe().unwrap();
    full.write_all(&[b'x'; 65_536]).unwrap();
    let told = UnixDatagram::bind(machine.path("notify")).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_spilo-agent"))
        .arg("agent.yml")
        .current_dir(machine.dir.path())
        .env_clear()
        .env("NOTIFY_SOCKET", machine.path("notify"))
        .stderr(full)
        .spawn()
        .unwrap();
    // It has said that it starts, and what it warns of, before it is ready.
    let mut message = [0; 256];
    let ready = told.recv(&mut message);
    let ended = agent.try_wait().unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(message[..ready.unwrap()].starts_with(b"READY=1"));
    assert_eq!(ended, None);
}

#[test]
fn a_valid_configuration_is_ok_and_its_warnings_are_shown() {
    let machine = Machine::new();
    let files = machine.files();
    let config = format!("{}watchdog: {{mode: automatic}}", machine.config);
    let output = machine.run(&config, &["--validate-config"]);
    assert_eq!(text(&output.stdout), "OK\n");
    assert_eq!(
        text(&output.stderr),
        "warning: watchdog.mode: has no effect: no watchdog device is opened; the guard alone ends \
         writes in time\n"
    );
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(machine.files(), files);
}

#[test]
fn the_configuration_is_printed_without_its_secrets() {
    let machine = Machine::new();
    let output = machine.run(&machine.config, &["--print"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        shown.contains("scope: demo") && shown.contains("password: '***'"),
        "{shown}"
    );
    assert!(!shown.contains("s3cret"), "{shown}");
}
