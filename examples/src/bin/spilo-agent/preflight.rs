//! What is checked on this machine before anything on disk or in the store is touched.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use spilo_core::local::{Local, Postgresql};

use crate::wiring;

/// Returns what does not fit the configuration, a line each.
pub(crate) fn check(local: &Local, ports: bool) -> Vec<String> {
    let postgresql = &local.postgresql;
    let mut faults = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    match programs(postgresql, &path) {
        Ok(postgres) => faults.extend(version(postgresql, &postgres).err()),
        Err(missing) => faults.extend(missing),
    }
    match directory(&postgresql.data_dir) {
        Ok(()) => faults.extend(beside(local)),
        Err(fault) => faults.push(fault),
    }
    faults.extend(log_dir(local).err());
    let unreadable = files(local);
    if unreadable.is_empty() {
        faults.extend(wiring::check(local));
    }
    faults.extend(unreadable);
    if ports {
        let restapi = &local.restapi.listen;
        let taken = free("restapi.listen", &restapi.hosts, restapi.port);
        if taken.is_empty() {
            // All at once: an address that is in another one cannot be had beside it.
            let together = wiring::listeners(restapi);
            faults.extend(together.err().map(|error| format!("{error:#}")));
        }
        faults.extend(taken);
        // The port of a server that is to be taken over is taken, by that server.
        if !serving(&postgresql.data_dir) {
            let listen = &postgresql.listen;
            faults.extend(free("postgresql.listen", &listen.hosts, listen.port));
        }
    }
    faults
}

/// Finds every program that an agent starts sooner or later; returns `postgres`.
fn programs(postgresql: &Postgresql, path: &OsString) -> Result<PathBuf, Vec<String>> {
    let mut missing = Vec::new();
    let mut postgres = PathBuf::new();
    for name in PROGRAMS {
        let found = match &postgresql.bin_dir {
            Some(dir) => Some(dir.join(name)).filter(|program| is_program(program)),
            None => std::env::split_paths(path)
                .map(|dir| dir.join(name))
                .find(|program| is_program(program)),
        };
        match (found, &postgresql.bin_dir) {
            (Some(program), _) if name == "postgres" => postgres = program,
            (Some(_), _) => {}
            (None, Some(dir)) => {
                missing.push(format!(
                    "postgresql.bin_dir: no program {name} in {}",
                    dir.display()
                ));
            }
            (None, None) => {
                missing.push(format!(
                    "postgresql.bin_dir: not given, and no {name} in PATH"
                ));
            }
        }
    }
    if missing.is_empty() {
        Ok(postgres)
    } else {
        Err(missing)
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A server of another major version cannot read the data directory, and must not try.
fn version(postgresql: &Postgresql, postgres: &Path) -> Result<(), String> {
    let shown = postgres.display();
    let output = Command::new(postgres).arg("--version").output();
    let output = output.map_err(|e| format!("postgresql.bin_dir: cannot run {shown}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(programs) = major(&text) else {
        return Err(format!(
            "postgresql.bin_dir: {shown} says {:?} for a version",
            text.trim()
        ));
    };
    if programs < OLDEST {
        return Err(format!(
            "postgresql.bin_dir: {shown} is PostgreSQL {programs}; at least {OLDEST} is needed"
        ));
    }
    let file = postgresql.data_dir.join("PG_VERSION");
    match fs::read_to_string(&file) {
        Ok(data) if data.trim() == programs.to_string() => Ok(()),
        Ok(data) => Err(format!(
            "postgresql.data_dir: {} is of PostgreSQL {}, and {shown} is PostgreSQL {programs}",
            postgresql.data_dir.display(),
            data.trim()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!(
            "postgresql.data_dir: cannot read {}: {error}",
            file.display()
        )),
    }
}

/// Reads `15` out of `postgres (PostgreSQL) 15.6 (Debian …)` and of `… 18beta1`.
fn major(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    let end = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    number[..end].parse().ok()
}

/// A data directory is one, or empty, or can be made; what else is there is somebody's.
fn directory(data_dir: &Path) -> Result<(), String> {
    let fault = |problem: String| Err(format!("postgresql.data_dir: {problem}"));
    let shown = data_dir.display();
    match fs::metadata(data_dir) {
        Ok(meta) if !meta.is_dir() => fault(format!("{shown} is not a directory")),
        Ok(_) => match fs::read_dir(data_dir) {
            Ok(_) => Ok(()),
            Err(error) => fault(format!("cannot read {shown}: {error}")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let existing = data_dir.ancestors().find(|dir| dir.exists());
            match existing {
                Some(dir) if !dir.is_dir() => {
                    fault(format!("{} is not a directory", dir.display()))
                }
                _ => Ok(()),
            }
        }
        Err(error) => fault(format!("cannot look at {shown}: {error}")),
    }
}

/// The agent makes the directories beside the data directory, and must be able to.
fn beside(local: &Local) -> Vec<String> {
    let Ok(options) = wiring::postgres(local) else {
        return Vec::new();
    };
    let fault = |dir: PathBuf| {
        let existing = dir.ancestors().find(|dir| dir.exists())?;
        let error = tempfile::tempfile_in(existing).err()?;
        let shown = dir.display();
        Some(format!(
            "postgresql.data_dir: cannot make {shown} beside it: {error}"
        ))
    };
    [options.guard_dir(), options.state_dir()]
        .into_iter()
        .filter(|dir| !dir.exists())
        .filter_map(fault)
        .collect()
}

/// Writes a file that has no name, and so leaves none behind.
fn log_dir(local: &Local) -> Result<(), String> {
    let Some(dir) = &local.log.dir else {
        return Ok(());
    };
    let written = tempfile::tempfile_in(dir);
    let shown = dir.display();
    written
        .map(drop)
        .map_err(|error| format!("log.dir: cannot write a log in {shown}: {error}"))
}

/// Certificates and keys that are named have to be readable.
fn files(local: &Local) -> Vec<String> {
    let mut named: Vec<(&str, Option<&PathBuf>)> = Vec::new();
    if let Some(tls) = &local.restapi.tls {
        named.push(("restapi.certfile", Some(&tls.certificate)));
        named.push(("restapi.keyfile", tls.key.as_ref()));
        named.push(("restapi.cafile", tls.client_authorities.as_ref()));
    }
    named.push(("ctl.cacert", local.ctl.tls.authorities.as_ref()));
    named.push(("ctl.certfile", local.ctl.tls.certificate.as_ref()));
    named.push(("ctl.keyfile", local.ctl.tls.key.as_ref()));
    if let Some(etcd) = &local.etcd3 {
        named.push(("etcd3.cacert", etcd.tls.authorities.as_ref()));
        named.push(("etcd3.cert", etcd.tls.certificate.as_ref()));
        named.push(("etcd3.key", etcd.tls.key.as_ref()));
    }
    if let Some(consul) = &local.consul {
        named.push(("consul.cacert", consul.tls.authorities.as_ref()));
        named.push(("consul.cert", consul.tls.certificate.as_ref()));
        named.push(("consul.key", consul.tls.key.as_ref()));
    }
    let custom = local.postgresql.custom_conf.as_ref();
    // A relative one is found by PostgreSQL, beside configuration files that may not exist yet.
    let custom = custom.filter(|file| file.is_absolute());
    named.push(("postgresql.custom_conf", custom));
    let unreadable = |(key, file): (&str, Option<&PathBuf>)| {
        let file = file?;
        let error = fs::File::open(file).err()?;
        Some(format!("{key}: cannot read {}: {error}", file.display()))
    };
    named.into_iter().filter_map(unreadable).collect()
}

/// Tries to listen, which is the one test that cannot be wrong about who else does.
fn free(key: &str, hosts: &[String], port: u16) -> Vec<String> {
    let mut faults = Vec::new();
    for host in hosts {
        let host = if host == "*" { "0.0.0.0" } else { host };
        let listened = (host, port)
            .to_socket_addrs()
            .and_then(|addresses| TcpListener::bind(addresses.collect::<Vec<_>>().as_slice()));
        match listened {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                faults.push(format!(
                    "{key}: the port {port} of {host} is taken by another program"
                ));
            }
            Err(error) => faults.push(format!("{key}: cannot listen on {host}:{port}: {error}")),
        }
    }
    faults
}

/// Returns whether a server of this data directory is alive.
fn serving(data_dir: &Path) -> bool {
    let pid = fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
    let pid: Option<u32> = pid.lines().next().and_then(|pid| pid.trim().parse().ok());
    let Some(pid) = pid else { return false };
    // The file outlives a server that was killed, and its pid may be another program's by now.
    let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
    let data_dir = fs::canonicalize(data_dir);
    matches!((cwd, data_dir), (Ok(cwd), Ok(data_dir)) if cwd == data_dir)
}

/// Everything that is run of PostgreSQL.
const PROGRAMS: [&str; 7] = [
    "postgres",
    "initdb",
    "pg_basebackup",
    "pg_controldata",
    "pg_rewind",
    "pg_waldump",
    "psql",
];

/// The oldest major version of PostgreSQL that is supported.
const OLDEST: u32 = 13;

#[cfg(test)]
#[path = "../../../../spilo-dcs/tests/ports/ports.rs"]
mod ports;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn local(dir: &Path, postgresql_port: u16, restapi_port: u16) -> Local {
        let document = json!({
            "scope": "demo",
            "name": "a",
            "restapi": {"listen": format!("127.0.0.1:{restapi_port}")},
            "postgresql": {
                "listen": format!("127.0.0.1:{postgresql_port}"),
                "data_dir": dir.join("data"),
                "bin_dir": dir.join("bin"),
            },
        });
        Local::parse(document, &BTreeMap::new()).unwrap().local
    }

    /// A machine on which everything fits, with programs that only say their version.
    fn machine() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for name in PROGRAMS {
            let program = dir.path().join("bin").join(name);
            fs::write(
                &program,
                "#!/bin/sh\necho 'postgres (PostgreSQL) 15.6 (Debian)'\n",
            )
            .unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    fn free_port() -> u16 {
        ports::free_ports(1)[0]
    }

    #[test]
    fn a_machine_that_fits_has_no_faults_and_is_left_as_it_was() {
        let dir = machine();
        let local = local(dir.path(), free_port(), free_port());
        assert_eq!(check(&local, true), [""; 0]);
        assert!(!dir.path().join("data").exists());
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = machine();
        let shown = dir.path().join("bin").display().to_string();
        fs::remove_file(dir.path().join("bin/psql")).unwrap();
        let not_executable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(dir.path().join("bin/initdb"), not_executable).unwrap();
        assert_eq!(
            check(&local(dir.path(), free_port(), free_port()), true),
            [
                format!("postgresql.bin_dir: no program initdb in {shown}"),
                format!("postgresql.bin_dir: no program psql in {shown}"),
            ]
        );
    }

    #[test]
    fn a_log_directory_that_is_none_is_named() {
        let dir = machine();
        let mut local = local(dir.path(), free_port(), free_port());
        local.log.dir = Some(dir.path().join("bin"));
        assert_eq!(check(&local, true), [""; 0]);
        local.log.dir = Some(dir.path().join("log"));
        let shown = dir.path().join("log").display().to_string();
        let faults = check(&local, true);
        let expected = format!("log.dir: cannot write a log in {shown}: No such file");
        assert!(
            faults.len() == 1 && faults[0].starts_with(&expected),
            "{faults:?}"
        );
    }

    #[test]
    fn addresses_that_cannot_be_had_together_are_named() {
        let dir = machine();
        let mut local = local(dir.path(), free_port(), free_port());
        local.restapi.listen.hosts = vec!["0.0.0.0".to_owned(), "127.0.0.1".to_owned()];
        let port = local.restapi.listen.port;
        let faults = check(&local, true);
        let expected = format!("restapi.listen: 127.0.0.1:{port}: Address already in use");
        assert!(
            faults.len() == 1 && faults[0].starts_with(&expected),
            "{faults:?}"
        );
    }

    #[test]
    fn a_data_directory_of_another_version_is_named_with_both_versions() {
        let dir = machine();
        fs::create_dir(dir.path().join("data")).unwrap();
        fs::write(dir.path().join("data/PG_VERSION"), "14\n").unwrap();
        let shown = dir.path().display();
        assert_eq!(
            check(&local(dir.path(), free_port(), free_port()), true),
            [format!(
                "postgresql.data_dir: {shown}/data is of PostgreSQL 14, and {shown}/bin/postgres \
                 is PostgreSQL 15"
            )]
        );
    }

    #[test]
    fn a_data_directory_that_is_a_file_is_named() {
        let dir = machine();
        fs::write(dir.path().join("data"), "").unwrap();
        let faults = check(&local(dir.path(), free_port(), free_port()), true);
        let expected = format!(
            "postgresql.data_dir: {}/data is not a directory",
            dir.path().display()
        );
        assert!(faults.contains(&expected), "{faults:?}");
    }

    #[test]
    fn a_taken_port_is_named_unless_ports_are_not_looked_at() {
        let dir = machine();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let local = local(dir.path(), port, port);
        assert_eq!(
            check(&local, true),
            ["restapi.listen", "postgresql.listen"].map(|key| format!(
                "{key}: the port {port} of 127.0.0.1 is taken by another program"
            ))
        );
        assert_eq!(check(&local, false), [""; 0]);
    }

    #[test]
    fn the_version_is_read_from_every_form_that_postgres_prints() {
        for (text, expected) in [
            (
                "postgres (PostgreSQL) 15.6 (Debian 15.6-0+deb12u1)\n",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (EnterpriseDB) 15\n", None),
        ] {
            assert_eq!(major(text), expected, "{text}");
        }
    }
}
